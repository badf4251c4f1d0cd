"""What the stores that keep keys as files in folders share: the walk in key order, and temporary names."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from ..model import Receipt

#: One folder's entries: the name and the size in bytes, None for a folder.
Entries = Iterable[tuple[str, int | None]]

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def temporary_name() -> str:
    """A hidden name for a file that is not whole yet; short, so that any legal name has room for it."""
    return f".{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    return _TEMPORARY.fullmatch(name) is not None


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
    return None


async def walk(entries: Callable[[str], Awaitable[Entries]], prefix: str, after: str) -> AsyncIterator[Receipt]:
    """Every file whose key starts with the prefix and sorts after ``after``, sorted by key.

    ``entries`` reads one folder, named with its final slash (the root: ``""``). A folder sorts as its
    name with the slash: ``a-b`` comes before ``a/c``.
    """
    folder = prefix[: prefix.rfind("/") + 1]
    todo: list[tuple[str, int | None]] = [(folder, None)]
    while todo:
        key, size = todo.pop()
        if size is not None:
            if key > after and key.startswith(prefix):
                yield Receipt(key=key, size=size)
        elif (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
            found = [
                (f"{key}{name}/" if size is None else f"{key}{name}", size)
                for name, size in await entries(key)
                if not is_temporary(name)
            ]
            found.sort(key=lambda entry: entry[0], reverse=True)
            todo += found
