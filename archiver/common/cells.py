"""The audit as rows for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("at", "who", "role", "means", "address", "action", "outcome", "source", "recording_id", "reason", "case")


def heading() -> str:
    """The first line of CSV."""
    return _line(COLUMNS)


def row(event: Mapping[str, Any]) -> str:
    """An event's line of CSV."""
    return _line([_cell(event[column]) for column in COLUMNS])


def _line(cells: Sequence[str]) -> str:
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerow(cells)
    return made.getvalue()


def _cell(value: Any) -> str:
    """A text that a spreadsheet takes for a formula is told to be a text."""
    text = "" if value is None else str(value)
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
