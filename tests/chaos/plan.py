"""What goes wrong when, and to whom: a pure function of a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

RECORDERS = ("chronicall", "xivo", "imagicle", "noojee", "genesys")
DAEMONS = ("one", "two")

#: Of a hundred kills, how many are of what; and how long it stays up at least before it is the next one's turn.
#: A daemon's time begins when it is at work.
KILLS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(RECORDERS, (11.0, 3.0)),
    **{f"daemon {name}": (8.0, 8.0) for name in DAEMONS},
    "postgres": (11.0, 6.0),
    "apache": (11.0, 4.0),
    "seaweed": (6.0, 12.0),
}
#: How PostgreSQL dies: all of it at once, by an immediate shutdown, or one of its processes.
DEATHS = ("kill", "abort", "kill one")
#: What a connection does: forwards little, forwards late, forwards nothing, ends with a reset.
TROUBLES = ("slow", "late", "hang", "cut")


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """``what`` happens to ``whom`` so many seconds after the beginning, and lasts ``lasting`` seconds."""

    at: float
    whom: str
    what: str
    lasting: float

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.what} {self.whom} for {self.lasting:.1f} s"


def links() -> list[str]:
    """The connections that can be troubled: each daemon's to its database, everybody's to stores and recorders."""
    return [*(f"{name} to postgres" for name in DAEMONS), "to seaweed", "to apache", *(f"to {r}" for r in RECORDERS)]


def plan(seed: int, *, kills: int, seconds: float, longest_stop: float = 30.0) -> list[Event]:
    """So many kills within so many seconds, for each seven of them a stop, for each five a troubled connection."""
    dice = random.Random(seed)
    weights = [weight for weight, _ in KILLS.values()]
    events: list[Event] = []
    busy: dict[str, list[tuple[float, float]]] = {}

    def place(whom: str, what: str, lasting: float, after: float) -> None:
        """At a time when nothing else happens to them; late ones may have to share."""
        for _ in range(200):
            at = dice.uniform(0.01, 0.97) * seconds
            span = (at, at + lasting + after)
            if all(span[1] < begin or span[0] > end for begin, end in busy.get(whom, ())):
                break
        busy.setdefault(whom, []).append(span)
        events.append(Event(round(at, 2), whom, what, round(lasting, 2)))

    for whom in dice.choices(list(KILLS), weights, k=kills):
        how = dice.choice(DEATHS) if whom == "postgres" else "kill"
        place(whom, how, 0.0 if how == "kill one" else dice.uniform(0.0, 2.5), KILLS[whom][1])
    for whom in dice.choices(list(KILLS), k=max(3, kills // 7)):
        place(whom, "stop", min(dice.expovariate(1 / 6) + 1, longest_stop), 2.0)
    for whom in dice.choices(links(), k=max(4, kills // 5)):
        place(whom, dice.choice(TROUBLES), dice.uniform(1.0, 8.0), 1.0)
    return sorted(events)
