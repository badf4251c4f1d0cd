"""Merkle trees as RFC 6962 (section 2.1) has them, over SHA-256: roots, proofs of inclusion and of consistency.

A *leaf hash* stands for one entry. ``mth(start, end)`` below is a function that gives the root of the leaves
``[start, end)``: of a list in memory (:func:`over`), or from the tiles of a log (:mod:`.log`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

#: From ``start`` and ``end`` the root of those leaves.
Mth = Callable[[int, int], bytes]

#: The root of no leaf.
EMPTY = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash (32 bytes) of an entry."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash (32 bytes) of the node above two others."""
    return sha256(b"\1" + left + right).digest()


class Stack:
    """The root of leaves that come one after the other; keeps a hash a level, whatever their number."""

    def __init__(self) -> None:
        self.size = 0
        #: Roots of full subtrees from the left, each smaller than the one before.
        self._roots: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """One more leaf, by its hash."""
        self.size += 1
        n = self.size
        while not n & 1:
            leaf = node_hash(self._roots.pop(), leaf)
            n >>= 1
        self._roots.append(leaf)

    def root(self) -> bytes:
        """The root (32 bytes) of all leaves so far."""
        if not self._roots:
            return EMPTY
        *others, found = self._roots
        for left in reversed(others):
            found = node_hash(left, found)
        return found


def root(leaves: Iterable[bytes]) -> bytes:
    """The root (32 bytes) over these leaf hashes."""
    stack = Stack()
    for leaf in leaves:
        stack.add(leaf)
    return stack.root()


def over(leaves: Sequence[bytes]) -> Mth:
    """The roots of spans of a list of leaf hashes."""
    return lambda start, end: root(leaves[start:end])


def split(size: int) -> int:
    """How many of so many leaves (two or more) lie left of the root: the largest power of two below."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(index: int, size: int, mth: Mth) -> list[bytes]:
    """The hashes that lead from leaf ``index`` to the root of ``size`` leaves, its neighbour first (RFC 6962, 2.1.1).

    Raises ValueError where there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path, start, end = [], 0, size
    while end - start > 1:
        middle = start + split(end - start)
        if index < middle:
            path.append(mth(middle, end))
            end = middle
        else:
            path.append(mth(start, middle))
            start = middle
    return path[::-1]


def included(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a proof of inclusion leads to (RFC 9162, 2.1.3.2): the caller compares it with the signed one.

    Raises ValueError where the proof has not the length that it must have.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    found, n, last = leaf, index, size - 1
    for other in path:
        if last == 0:
            raise ValueError("the proof is too long")
        if n & 1 or n == last:
            found = node_hash(other, found)
            while not n & 1 and n:
                n, last = n >> 1, last >> 1
        else:
            found = node_hash(found, other)
        n, last = n >> 1, last >> 1
    if last:
        raise ValueError("the proof is too short")
    return found


def consistency_proof(old: int, new: int, mth: Mth) -> list[bytes]:
    """The hashes that show that the first ``old`` of ``new`` leaves are those of the older tree (RFC 6962, 2.1.2).

    Raises ValueError where ``old`` is none of 1 … ``new``.
    """
    if not 0 < old <= new:
        raise ValueError(f"no tree of {old} leaves comes before one of {new}")
    path, start, end, whole = [], 0, new, True
    while old != end:
        middle = start + split(end - start)
        if old <= middle:
            path.append(mth(middle, end))
            end = middle
        else:
            path.append(mth(start, middle))
            start, whole = middle, False
    if not whole:
        path.append(mth(start, end))
    return path[::-1]


def is_consistent(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Does the proof show that the newer tree extends the older (RFC 9162, 2.1.4.2)? All extend the empty one."""
    if old > new:
        return False
    if old in (0, new):
        return not path and (old_root == new_root if old else old_root == EMPTY)
    hashes = list(path) if old & old - 1 else [old_root, *path]
    n, last = old - 1, new - 1
    while n & 1:
        n, last = n >> 1, last >> 1
    if not hashes:
        return False
    of_old = of_new = hashes[0]
    for other in hashes[1:]:
        if last == 0:
            return False
        if n & 1 or n == last:
            of_old, of_new = node_hash(other, of_old), node_hash(other, of_new)
            while not n & 1 and n:
                n, last = n >> 1, last >> 1
        else:
            of_new = node_hash(of_new, other)
        n, last = n >> 1, last >> 1
    return last == 0 and of_old == old_root and of_new == new_root
