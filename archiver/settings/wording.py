"""What is wrong with a config file, in plain words: keys as TOML writes them, pydantic's findings as sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel

from ..common.words import nearest
from .tables import Top

#: Keys from the top of the file down.
Where: TypeAlias = tuple[str, ...]
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_WORDS = {
    "missing": "is missing; add it",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "has too few entries",
    "too_long": "has too many entries",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}
_DATES = "is no date; write it like 2024-01-31 or 2024-01-31T08:00:00Z"


def in_plain_words(told: Mapping[str, Any], model: type[BaseModel], place: Where) -> str:
    """One of pydantic's findings, without the value and without pydantic's words."""
    kind, context = told["type"], told.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields(model, place[:-1]) + (["stores", "sources"] if model is Top and len(place) == 1 else [])
        return f"unknown key{did_you_mean(place[-1], known) or _nearest_of(place[-1], known)}"
    if kind == "missing" and place == ("timezone",):
        return 'is missing: the times of this API carry no zone; write it like "Europe/Paris"'
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error") or "is not valid")
    if kind.startswith(("date", "time")):
        return _DATES
    if kind in _WORDS:
        return _WORDS[kind].format_map({name: str(value).replace("'", '"') for name, value in context.items()})
    return "is not valid"


def _nearest_of(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f'; the nearest known one is "{found[0]}"' if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""


def steps(location: Iterable[int | str], table: Any) -> Iterator[str]:
    """A pydantic location as it stands in the file: without the steps into the branches of a union."""
    here = table
    for step in location:
        if isinstance(here, dict) and isinstance(step, str) and (step in here or NAME.fullmatch(step)):
            here = here.get(step)
            yield step
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            yield str(step)


def _fields(model: type[BaseModel], place: Where) -> list[str]:
    for step in place:
        inner = next((inner_model(f.annotation) for n, f in model.model_fields.items() if step == (f.alias or n)), None)
        if inner is None:
            return []
        model = inner
    return [about.alias or name for name, about in model.model_fields.items()]


def inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(inner_model, get_args(annotation)) if m is not None), None)


def dotted(place: Where) -> str:
    return ".".join(map(key_text, place))


def key_text(name: str) -> str:
    """A key as TOML writes it."""
    return name if NAME.fullmatch(name) else json.dumps(name[:64])
