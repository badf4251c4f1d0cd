"""What `list` and the pages look for, and within which limits, as conditions of SQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..model import State, holdable
from .from_rows import FINISHED

#: Numbers of so many characters or fewer are of the house's own.
EXTENSION = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Filters of ``list``; None: any."""

    source: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    caller: str | None = None
    callee: str | None = None
    direction: str | None = None
    state: str | None = None
    #: Words, all of which occur; ``*`` at the end of one: its beginning. Signs alone are looked for as they stand.
    text: str | None = None
    longer_than: timedelta | None = None
    shorter_than: timedelta | None = None
    #: Digits that a party's number ends with (common/numbers.py). Written with a +, it has this calling code; of these
    #: sources, it is not written nationally.
    number: str | None = None
    code: str | None = None
    abroad: tuple[str, ...] = ()
    #: Part of an agent's name, number or user; part of a queue's name. ``*`` is a wildcard.
    agent: str | None = None
    queue: str | None = None
    #: Of one of its media.
    flag: str | None = None
    newest: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The one predicate of scope: calls of one of these sources and queues and agents; an empty part limits nothing.

    A call without queue or agent is in no scope of queues or agents. ``*`` is a wildcard; case does not matter.
    """

    sources: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()

    def conditions(self, values: list[Any]) -> list[str]:
        """SQL over ``recordings r``; its arguments are added to ``values``."""

        def value(given: Any) -> str:
            values.append(given)
            return f"${len(values)}"

        where = []
        if self.sources:
            where.append(f"r.source = ANY({value(list(self.sources))}::text[])")
        if self.queues:
            where.append(f"r.queue ILIKE ANY({_any(value([like(queue) for queue in self.queues]))})")
        if self.agents:
            where.append(self._of_agents(value))
        return where

    def _of_agents(self, value: Callable[[Any], str]) -> str:
        """An agent of the call is one of these, by number, name or user; or a whole number is any party's.

        Some recorders tell no agent, and of an internal call the other one. A name says nothing of other parties, nor
        does a part of a number: customers have both.
        """
        likes = _any(value([like(agent) for agent in self.agents]))
        numbers = _any(value([holdable(agent) for agent in self.agents if "*" not in agent]))
        agent = " OR ".join(f"p->>'{key}' ILIKE ANY({likes})" for key in ("number", "name", "user"))
        party = f"p->>'number' = ANY({numbers}) OR (p->>'role' = 'agent' AND ({agent}))"
        parties = f"SELECT FROM jsonb_array_elements(r.parties) p WHERE {party}"
        return f"(r.agent ILIKE ANY({likes}) OR EXISTS ({parties}))"

    def of_events(self, values: list[Any], name: str) -> list[str]:
        """SQL over ``audit a``: events about calls in scope, and the account's own; its arguments are added."""
        if not (self.sources or self.queues or self.agents):
            return []
        calls = Limits(queues=self.queues, agents=self.agents).conditions(values)
        if calls:
            of = "r.source = a.source AND r.recording_id = a.recording_id"
            calls = [f"EXISTS (SELECT FROM recordings r WHERE {of} AND {' AND '.join(calls)})"]
        if self.sources:
            values.append(list(self.sources))
            calls.append(f"a.source = ANY(${len(values)}::text[])")
        values.append(name)
        return [f"(a.who = ${len(values)} OR ({' AND '.join(calls)}))"]


def where_of(query: Query, words: str = "search_words_of(r)") -> tuple[list[str], list[Any]]:
    """The conditions over ``recordings r``, to be joined by AND, and their arguments.

    ``words``: SQL that gives the words of a recording.
    """
    values: list[Any] = []

    def value(given: Any) -> str:
        values.append(holdable(given) if isinstance(given, str) else given)
        return f"${len(values)}"

    where = []
    compared = {
        "source =": query.source,
        "direction =": query.direction,
        "started_at >=": query.start,
        "started_at <": query.end,
        "duration >": query.longer_than,
        "duration <": query.shorter_than,
    }
    for condition, given in compared.items():
        if given is not None:
            where.append(f"r.{condition} {value(given)}")
    where += _of_parties(query, value)
    if query.state is not None:
        n = value(query.state)
        less = [s.value for s in State if FINISHED[s] < FINISHED[State(query.state)]]
        of = "SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id"
        none = f" OR NOT EXISTS ({of})" if query.state == State.EMPTY else ""
        where.append(f"(EXISTS ({of} AND m.state = {n}){none})")
        if less:
            where.append(f"NOT EXISTS ({of} AND m.state = ANY({value(less)}))")
    if query.text is not None:
        if has_words(query.text):
            where.append(f"{words} @@ search_query({value(query.text)})")
        else:
            n = value("%" + like(query.text, wild=False) + "%")
            columns = "r.recording_id", "r.call_id", "r.caller", "r.callee", "r.agent", "r.queue", "r.raw::text"
            where.append("(" + " OR ".join(f"{c} LIKE {n}" for c in (*columns, "r.attributes::text")) + ")")
    if query.flag is not None:
        flagged = f"SELECT source, recording_id FROM media WHERE flags <> '{{}}' AND {value(query.flag)} = ANY(flags)"
        where.append(f"(r.source, r.recording_id) IN ({flagged})")
    return where, values


def _any(texts: str) -> str:
    """An argument's texts, for ANY; the planner is not to weigh each of hundreds."""
    return f"ARRAY(SELECT unnest({texts}::text[]))"


def has_words(text: str | None) -> bool:
    """Are there words in it, and not signs alone?"""
    return text is not None and any(c.isalnum() for c in text)


def _of_parties(query: Query, value: Callable[[Any], str]) -> Iterator[str]:
    """Who called whom, and where. ``value`` makes an argument and returns its name."""
    for column, given in (("caller", query.caller), ("callee", query.callee)):
        if given is not None and "*" in given:
            yield f"r.{column} LIKE {value(like(given))}"
        elif given is not None:
            yield f"r.{column} = ANY({value(written(given))}::text[])"
    if query.number is not None:
        digits = "regexp_replace({0}, '[^0-9]', '', 'g')"
        ends = f"{digits} LIKE {value('%' + like(query.number, wild=False))}"
        if query.code is not None:
            ends += f" AND ({{0}} !~ '^\\s*\\+' OR {digits} LIKE {value(query.code + '%')})"
        if query.abroad:
            national = f"ltrim({digits}, '0') = {value(query.number)}"
            ends += f" AND NOT (r.source = ANY({value(list(query.abroad))}::text[]) AND {national})"
        party = "SELECT FROM jsonb_array_elements(r.parties) p WHERE " + ends.format("p->>'number'")
        yield f"(({ends.format('r.caller')}) OR ({ends.format('r.callee')}) OR EXISTS ({party}))"
    if query.agent is not None:
        yield agent_is(value([f"%{like(query.agent)}%"]))
    if query.queue is not None:
        yield f"r.queue ILIKE {value(f'%{like(query.queue)}%')}"


def agent_is(patterns: str) -> str:
    """SQL over ``recordings r``: is an agent like one of the patterns, which are an argument's name?

    Whom the recorder calls an agent, knows as a user, or who has a number of the house's own (see agents_of).
    """
    inside = f"(p->>'role' = 'agent' OR p->>'user' IS NOT NULL OR length(p->>'number') <= {EXTENSION})"
    like = " OR ".join(f"p->>'{key}' ILIKE ANY({patterns}::text[])" for key in ("number", "name", "user"))
    party = f"SELECT FROM jsonb_array_elements(r.parties) p WHERE {inside} AND ({like})"
    return f"(r.agent ILIKE ANY({patterns}::text[]) OR EXISTS ({party}))"


def agents_of(parties: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Names, numbers and users of the agents among the parties, as agent_is has it: customers are none."""
    for party in parties:
        number, user = party.get("number"), party.get("user")
        if party.get("role") == "agent" or user or (number and len(number) <= EXTENSION):
            yield from (told for told in (number, party.get("name"), user) if told)


def written(number: str) -> list[str]:
    """How a number may stand in the catalog that somebody typed so: as it is, bare, with + or 00 before it."""
    bare = re.sub(r"[\s()./-]", "", number)
    if not re.fullmatch(r"\+?[0-9]+", bare):
        return [holdable(number)]
    digits = bare.removeprefix("+").removeprefix("00")
    return list(dict.fromkeys([holdable(number), bare, digits, f"+{digits}", f"00{digits}"]))


def like(pattern: str, *, wild: bool = True) -> str:
    """A LIKE pattern: ``*`` is the wildcard, everything else stands for itself."""
    escaped = holdable(pattern).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%") if wild else escaped
