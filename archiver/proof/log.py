"""An append-only log as files that never change: entries, tiles of hashes and checkpoints (c2sp.org/tlog-tiles).

Nothing here reads or writes a store. What must be put comes as names and bytes, in the order in which they are put;
what must be read is asked for by name of ``read``, and the ``…_names`` functions tell beforehand which names these are:
fetch them, and pass the dictionary's ``__getitem__``. Names are relative to ``{prefix}_proof/``.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterator, Sequence

from . import tree
from .note import Checkpoint, ProofError

#: Hashes in a full tile, entries in a full bundle.
WIDTH = 256
#: An entry's length is written in 16 bits.
LONGEST_ENTRY = 65_535
CHECKPOINTS = "log/checkpoint/"

#: From the name of an object its bytes.
Read = Callable[[str], bytes]


def checkpoint_name(size: int) -> str:
    """The checkpoint over so many entries; ``.sig`` (SSH signature) and ``.NAME.tsr`` (time stamps) lie beside it.

    A store that overwrites nothing thus holds one checkpoint a size, and no second history.
    """
    return f"{CHECKPOINTS}{size:012}"


def size_of(name: str) -> int | None:
    """The size in a checkpoint's name; None where it is another object's, one beside a checkpoint included."""
    found = re.fullmatch(f"(?:.*/)?{CHECKPOINTS}([0-9]{{12,}})", name)
    return int(found[1]) if found and checkpoint_name(int(found[1])).endswith(found[1]) else None


def tile_name(level: int, n: int, width: int = WIDTH) -> str:
    """Tile ``n`` of a level; ``width`` hashes of it are there."""
    return f"log/tile/{level}/{_number(n, width)}"


def entries_name(n: int, width: int = WIDTH) -> str:
    """The entries of tile ``n`` of level 0."""
    return f"log/tile/entries/{_number(n, width)}"


def _number(n: int, width: int) -> str:
    """``x001/x234/067``, and how much of it is there where it is not full."""
    digits = f"{n:0{(len(str(n)) + 2) // 3 * 3}}"
    *above, last = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    return "/".join([*(f"x{part}" for part in above), last]) + (f".p/{width}" if width < WIDTH else "")


class Log:
    """The right edge of a log: all that is needed to append to it."""

    def __init__(self) -> None:
        self.size = 0
        #: By level the hashes of its tile that is not full yet.
        self._tiles: list[list[bytes]] = []
        #: The entries of the bundle that is not full yet, as they are stored.
        self._bundle = b""

    @classmethod
    def open(cls, size: int, root: bytes, read: Read) -> Log:
        """The log whose checkpoint tells of this size and root. Raises ProofError where what is read is another."""
        log = cls()
        log.size = size
        for level in range(_levels(size)):
            count = size >> 8 * level
            log._tiles.append(_hashes(read, level, count // WIDTH, count) if count % WIDTH else [])
        if size % WIDTH:
            name = entries_name(size // WIDTH, size % WIDTH)
            log._bundle = read(name)
            if [tree.leaf_hash(entry) for entry in unpack(log._bundle, name)] != log._tiles[0]:
                raise ProofError(f"{name} does not hold the entries of its tile")
        if log.root != root:
            raise ProofError(f"the tiles are not those of the checkpoint over {size} entries")
        return log

    @property
    def root(self) -> bytes:
        """The root over all entries."""
        below: list[bytes] = []
        for tile in self._tiles:
            if hashes := tile + below:
                below = [tree.root(hashes)]
        return below[0] if below else tree.EMPTY

    def append(self, entries: Sequence[bytes]) -> list[tuple[str, bytes]]:
        """Takes in these entries; the objects to put before a checkpoint is signed, in their order.

        Raises ValueError where an entry is too long; then nothing was taken in.
        """
        if any(len(entry) > LONGEST_ENTRY for entry in entries):
            raise ValueError(f"an entry is longer than {LONGEST_ENTRY} bytes")
        bundles: list[tuple[str, bytes]] = []
        tiles: list[tuple[str, bytes]] = []
        before = self.size
        for entry in entries:
            self._bundle += struct.pack(">H", len(entry)) + entry
            self.size += 1
            self._add(0, tree.leaf_hash(entry), tiles)
            if self.size % WIDTH == 0:
                bundles.append((entries_name(self.size // WIDTH - 1), self._bundle))
                self._bundle = b""
        if self.size > before and self._bundle:
            bundles.append((entries_name(self.size // WIDTH, self.size % WIDTH), self._bundle))
        for level, tile in enumerate(self._tiles):
            if tile and self.size >> 8 * level > before >> 8 * level:
                tiles.append((tile_name(level, self.size >> 8 * level + 8, len(tile)), b"".join(tile)))
        return bundles + tiles

    def _add(self, level: int, hash_: bytes, full: list[tuple[str, bytes]]) -> None:
        if level == len(self._tiles):
            self._tiles.append([])
        tile = self._tiles[level]
        tile.append(hash_)
        if len(tile) == WIDTH:
            full.append((tile_name(level, (self.size >> 8 * level + 8) - 1), b"".join(tile)))
            self._tiles[level] = []
            self._add(level + 1, tree.root(tile), full)


def _levels(size: int) -> int:
    """How many levels of tiles a log of so many entries has."""
    return (size.bit_length() + 7) // 8


def _hashes(read: Read, level: int, n: int, within: int) -> list[bytes]:
    """The hashes of tile ``n`` of a level that has ``within`` of them. Raises ProofError where its length is wrong."""
    width = min(WIDTH, within - n * WIDTH)
    name = tile_name(level, n, width)
    data = read(name)
    if len(data) != 32 * width:
        raise ProofError(f"{name} has {len(data)} bytes, not {32 * width}")
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def unpack(bundle: bytes, name: str = "a bundle") -> list[bytes]:
    """The entries of a bundle. Raises ProofError where it is cut."""
    entries, at = [], 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + 2], "big")
        entry = bundle[at + 2 : at + 2 + length]
        if at + 2 > len(bundle) or len(entry) != length:
            raise ProofError(f"{name} ends within an entry")
        entries.append(entry)
        at += 2 + length
    return entries


# -- reading -----------------------------------------------------------------------------------------------------------


def edge_names(size: int) -> list[str]:
    """What :meth:`Log.open` reads."""
    return _asked(lambda read: Log.open(size, b"", read)) if size else []


def _asked(work: Callable[[Read], object]) -> list[str]:
    """Which names a function asks for: it does so before it looks at any byte but their number."""
    asked: dict[str, None] = {}

    def read(name: str) -> bytes:
        asked[name] = None
        width = int(name.rpartition(".p/")[2]) if ".p/" in name else WIDTH
        return b"\0\0" * width if name.startswith("log/tile/entries/") else bytes(32 * width)

    with contextlib.suppress(ProofError):
        work(read)
    return list(asked)


def _mth(within: int, read: Read) -> tree.Mth:
    """Roots of spans of entries, from the tiles of a log of ``within`` entries."""

    def mth(start: int, end: int) -> bytes:
        count = end - start
        if count & count - 1 or start % count:
            middle = start + tree.split(count)
            return tree.node_hash(mth(start, middle), mth(middle, end))
        level = (count.bit_length() - 1) // 8
        first, n = start >> 8 * level, count >> 8 * level
        at = first % WIDTH
        return tree.root(_hashes(read, level, first // WIDTH, within >> 8 * level)[at : at + n])

    return mth


def extends_names(new: int, old: int) -> list[str]:
    """What :func:`extends` reads, from the sizes of both."""
    if not 0 < old < new:
        return []
    return _asked(lambda read: tree.consistency_proof(old, new, _mth(new, read)))


def extends(new: Checkpoint, old: Checkpoint, read: Read) -> bool:
    """Is the newer log the older one, with more entries behind? ``read`` gives tiles of the newer, which may be wrong.

    Raises ProofError where a tile has not its length.
    """
    if new.origin != old.origin or old.size > new.size:
        return False
    path = tree.consistency_proof(old.size, new.size, _mth(new.size, read)) if 0 < old.size < new.size else []
    return tree.is_consistent(old.size, old.root, new.size, new.root, path)


def inclusion_names(index: int, size: int) -> list[str]:
    """What :func:`inclusion` reads."""
    return _asked(lambda read: inclusion(index, size, read))


def inclusion(index: int, size: int, read: Read) -> list[bytes]:
    """The proof that entry ``index`` is in the log of ``size`` entries (verify it by :func:`.tree.included`).

    Raises ValueError where there is no such entry, ProofError where a tile has not its length.
    """
    return tree.inclusion_proof(index, size, _mth(size, read))


def entry_names(first: int, last: int, size: int) -> list[str]:
    """What :func:`entries` reads."""
    return [entries_name(n, min(WIDTH, size - n * WIDTH)) for n in range(first // WIDTH, (last + WIDTH - 1) // WIDTH)]


def entries(first: int, last: int, size: int, read: Read) -> Iterator[bytes]:
    """The bytes of the entries ``[first, last)`` of a log of ``size``. Raises ProofError where a bundle is cut."""
    for name in entry_names(first, last, size):
        n = first // WIDTH
        found = unpack(read(name), name)
        if len(found) != min(WIDTH, size - n * WIDTH):
            raise ProofError(f"{name} holds {len(found)} entries")
        yield from found[first - n * WIDTH : last - n * WIDTH]
        first = (n + 1) * WIDTH
