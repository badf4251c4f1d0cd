"""What a vCon may be, by draft-ietf-vcon-vcon-core-04 (September 2026), as a JSON schema in our own words.

Stricter than the draft's own where it leaves names open: what a vCon of ours holds must be in the draft.
"""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_MOMENT = {"type": "string", "format": "date-time"}
_INDEX = {"type": "integer", "minimum": 0}
_INDICES = {"type": "array", "items": _INDEX}

PARTY = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(("tel", "sip", "mailto", "name", "did", "uuid", "type", "org", "dept"), _TEXT),
}
#: A recording that is held within: text that was no JSON is base64url, and its type is told.
RECORDING = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "start", "parties", "mediatype", "body", "encoding"],
    "properties": {
        "type": {"const": "recording"},
        "start": _MOMENT,
        "duration": {"type": "number", "minimum": 0},
        "parties": {"anyOf": [_INDEX, _INDICES, {"type": "array", "items": {"anyOf": [_INDEX, _INDICES]}}]},
        "originator": _INDEX,
        "mediatype": {"type": "string", "pattern": "^[a-z]+/[A-Za-z0-9.+_-]+$"},
        "filename": _TEXT,
        "body": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        "encoding": {"const": "base64url"},
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "additionalProperties": False,
    "required": ["uuid", "created_at", "parties", "dialog"],
    "properties": {
        # Until the draft is an RFC; then the member goes.
        "vcon": {"const": "0.4.0"},
        "uuid": {"type": "string", "format": "uuid", "pattern": "^.{14}8.{4}[89ab]"},
        "extensions": {"type": "array", "items": _TEXT},
        "created_at": _MOMENT,
        "subject": _TEXT,
        "parties": {"type": "array", "items": PARTY},
        "dialog": {"type": "array", "items": RECORDING},
    },
}
