"""What may be the name of a file in a store that keeps keys as files in folders, and names of files not whole yet."""

from __future__ import annotations

import re
import secrets

#: The second form is for servers that take no name with a leading dot, the third for those that take no such ending.
TEMPORARIES = (".{}.tmp", "archiver-{}.tmp", "archiver-{}-tmp")
#: In the root of a store that is a folder: it tells this disk from another. No key, and never listed.
MARKER = ".archiver-store.json"
_TEMPORARY = re.compile(r"(\.[0-9a-f]{16}\.tmp|archiver-[0-9a-f]{16}[.-]tmp)")


def temporary_name(form: str = TEMPORARIES[0]) -> str:
    """A name for a file that is not whole yet, hidden where that may be; short, so that any legal name has room."""
    return form.format(secrets.token_hex(8))


def is_temporary(name: str) -> bool:
    return _TEMPORARY.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Is it no object, but a file of the store's own?"""
    return is_temporary(name) or name == MARKER


def fault_of(key: str) -> str | None:
    """Why a key names no file below the store's root, or None where it does."""
    if not key or key.startswith("/") or key.endswith("/"):
        return "is no relative file name"
    names = key.split("/")
    if any(name in {"", ".", ".."} for name in names):
        return "has an empty, . or .. part"
    if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in key):
        return "has control characters or lone surrogates"
    if any(len(name.encode()) > 255 for name in names):
        return "has a part of more than 255 bytes"
    if is_temporary(names[-1]):
        return "looks like a temporary file"
    if key == MARKER:
        return "is the name of the store's own marker"
    return None
