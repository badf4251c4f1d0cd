"""What `list` and the pages look for, as conditions of SQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..model import State, holdable
from .from_rows import FINISHED


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
    text: str | None = None
    longer_than: timedelta | None = None
    shorter_than: timedelta | None = None
    #: Digits that a party's number ends with (common/numbers.py).
    number: str | None = None
    #: Part of an agent's name, number or user; part of a queue's name. ``*`` is a wildcard.
    agent: str | None = None
    queue: str | None = None
    #: Of one of its media.
    flag: str | None = None
    newest: bool = False
    limit: int | None = None


def where_of(query: Query) -> tuple[list[str], list[Any]]:
    """The conditions over ``recordings r``, to be joined by AND, and their arguments."""
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
        n = value("%" + like(query.text, wild=False) + "%")
        columns = "r.recording_id", "r.call_id", "r.caller", "r.callee", "r.agent", "r.queue", "r.raw::text"
        where.append("(" + " OR ".join(f"{c} ILIKE {n}" for c in (*columns, "r.attributes::text")) + ")")
    if query.flag is not None:
        flagged = f"SELECT source, recording_id FROM media WHERE flags <> '{{}}' AND {value(query.flag)} = ANY(flags)"
        where.append(f"(r.source, r.recording_id) IN ({flagged})")
    return where, values


def _of_parties(query: Query, value: Callable[[Any], str]) -> Iterator[str]:
    """Who called whom, and where. ``value`` makes an argument and returns its name."""
    for column, given in (("caller", query.caller), ("callee", query.callee)):
        if given is not None and "*" in given:
            yield f"r.{column} LIKE {value(like(given))}"
        elif given is not None:
            yield f"r.{column} = ANY({value(written(given))}::text[])"
    if query.number is not None:
        n = value("%" + like(query.number, wild=False))
        ends = f"regexp_replace({{}}, '[^0-9]', '', 'g') LIKE {n}"
        party = "SELECT FROM jsonb_array_elements(r.parties) p WHERE " + ends.format("p->>'number'")
        yield f"({ends.format('r.caller')} OR {ends.format('r.callee')} OR EXISTS ({party}))"
    if query.agent is not None:
        yield agent_is(value([f"%{like(query.agent)}%"]))
    if query.queue is not None:
        yield f"r.queue ILIKE {value(f'%{like(query.queue)}%')}"


def agent_is(patterns: str) -> str:
    """SQL over ``recordings r``: is an agent or a party like one of the patterns, which are an argument's name?"""
    party = "SELECT FROM jsonb_array_elements(r.parties) p WHERE "
    party += " OR ".join(f"p->>'{key}' ILIKE ANY({patterns}::text[])" for key in ("number", "name", "user"))
    return f"(r.agent ILIKE ANY({patterns}::text[]) OR EXISTS ({party}))"


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
