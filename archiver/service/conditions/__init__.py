"""The one list of what can be wrong with an archive.

`status`, `check`, ``/readyz``, the alerts, the metric ``archiver_condition`` and the table in docs/monitoring.md are
made from it, and monitoring/archiver.rules.yml is compared with it. A new condition is one entry, its section in
docs/monitoring.md, its rule, and its cause in tests/service/test_conditions.py.

Each is a function of what is known now (facts.py), and remembers nothing: it is over when its cause is.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...settings.config import Alerts
from ..facts import Survey
from . import of_hosts, of_identity, of_sources, of_stores
from .base import Condition, Finding, Found, Level, Of, Severity

__all__ = [
    "BY_NAME",
    "CONDITIONS",
    "Condition",
    "Finding",
    "Found",
    "Level",
    "Of",
    "Severity",
    "found",
    "table",
    "unready",
]

_OF_ALL = (*of_hosts.CONDITIONS, *of_identity.CONDITIONS)
CONDITIONS: tuple[Condition, ...] = (*_OF_ALL, *of_sources.CONDITIONS, *of_stores.CONDITIONS)
BY_NAME = {condition.name: condition for condition in CONDITIONS}


def found(survey: Survey, alerts: Alerts) -> list[Found]:
    """What is wrong now; where the database does not answer, only what can be said without it."""
    told = [each for condition in _OF_ALL for each in condition.of_host(survey)]
    for source in survey.sources.values():
        told += [each for condition in of_sources.CONDITIONS for each in condition.of_source(source, alerts)]
    for store in survey.stores.values():
        told += [each for condition in of_stores.CONDITIONS for each in condition.of_store(store)]
    return [each for each in told if each.condition.local or not survey.blind]


def unready(survey: Survey, alerts: Alerts) -> Iterator[str]:
    """Why the daemon can't work just now, by name; nothing: it can."""
    for each in found(survey, alerts):
        if each.condition.unready is not None:
            yield each.condition.unready.format(each.of)


def table() -> str:
    """The conditions as docs/monitoring.md shows them."""
    rows = [
        f"| [{c.name}](#{c.name.lower()}) | {c.of} | {c.level} | {c.severity} | {c.about} |"
        for c in sorted(CONDITIONS, key=lambda c: list(Of).index(c.of))
    ]
    head = ["| condition | of | in `status` | alert | what it says |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"
