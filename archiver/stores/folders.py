"""What the stores that keep keys as files in folders share: the walk in key order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from ..errors import StoreError
from ..model import Receipt
from .names import is_ours

#: One folder's entries: the name and the size in bytes, None for a folder.
Entries = Iterable[tuple[str, int | None]]


async def walk(entries: Callable[[str], Awaitable[Entries]], prefix: str, after: str) -> AsyncIterator[Receipt]:
    """Every file whose key starts with the prefix and sorts after ``after``, sorted by key.

    ``entries`` reads one folder, named with its final slash (the root: ``""``); a StoreError of it names the folder.
    A folder sorts as its name with the slash: ``a-b`` comes before ``a/c``.
    """
    folder = prefix[: prefix.rfind("/") + 1]
    todo: list[tuple[str, int | None]] = [(folder, None)]
    while todo:
        key, size = todo.pop()
        if size is not None:
            if key > after and key.startswith(prefix):
                yield Receipt(key=key, size=size)
        elif (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
            try:
                listed = await entries(key)
            except StoreError as error:
                error.folder = key
                raise
            found = [
                (f"{key}{name}/" if size is None else f"{key}{name}", size)
                for name, size in listed
                if not is_ours(name)
            ]
            found.sort(key=lambda entry: entry[0], reverse=True)
            todo += found
