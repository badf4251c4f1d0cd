"""Merkle trees: RFC 6962's published roots, and every proof against a tree that is written as the RFC defines it."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.proof import tree

#: The eight entries and the roots over the first 0 … 8 of them, as the reference implementations publish them.
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [tree.leaf_hash(entry) for entry in ENTRIES]


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\1" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


def numbered(size: int) -> list[bytes]:
    return [tree.leaf_hash(b"%d" % n) for n in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots_come_out(size: int):
    assert tree.root(LEAVES[:size]).hex() == ROOTS[size]


def test_the_published_proof_of_the_sixth_of_seven_comes_out():
    path = tree.inclusion_proof(5, 7, tree.over(LEAVES[:7]))
    assert [part.hex()[:8] for part in path] == ["bc1a0643", "b08693ec", "d37ee418"]
    assert tree.included(LEAVES[5], 5, 7, path).hex() == ROOTS[7]


def test_the_published_proof_from_six_to_eight_comes_out():
    path = tree.consistency_proof(6, 8, tree.over(LEAVES))
    assert [part.hex()[:8] for part in path] == ["0ebc5d34", "ca854ea1", "d37ee418"]


@given(st.integers(0, 200))
def test_the_root_of_a_stream_is_that_of_the_definition(size: int):
    leaves = numbered(size)
    assert tree.root(leaves) == by_definition(leaves)


@given(st.data())
def test_an_inclusion_proof_leads_to_the_root_and_a_changed_one_does_not(data: st.DataObject):
    size = data.draw(st.integers(1, 120))
    index = data.draw(st.integers(0, size - 1))
    leaves = numbered(size)
    whole = by_definition(leaves)
    path = tree.inclusion_proof(index, size, tree.over(leaves))
    assert tree.included(leaves[index], index, size, path) == whole
    assert tree.included(tree.leaf_hash(b"another"), index, size, path) != whole
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert tree.included(leaves[index], index, size, [*path[:at], bytes(32), *path[at + 1 :]]) != whole
        with pytest.raises(ValueError, match="too short"):
            tree.included(leaves[index], index, size, path[:-1])
    with pytest.raises(ValueError, match="too long"):
        tree.included(leaves[index], index, size, [*path, bytes(32)])


@given(st.data())
def test_a_consistency_proof_holds_for_what_was_extended_and_for_nothing_else(data: st.DataObject):
    new = data.draw(st.integers(1, 120))
    old = data.draw(st.integers(1, new))
    leaves = numbered(new)
    path = tree.consistency_proof(old, new, tree.over(leaves))
    roots = by_definition(leaves[:old]), by_definition(leaves)
    assert tree.is_consistent(old, roots[0], new, roots[1], path)
    other = by_definition([*leaves[: old - 1], tree.leaf_hash(b"another")])
    assert not tree.is_consistent(old, other, new, roots[1], path)
    assert not tree.is_consistent(old, roots[0], new, bytes(32), path)
    assert not tree.is_consistent(old, roots[0], new, roots[1], [*path, bytes(32)])
    assert not path or not tree.is_consistent(old, roots[0], new, roots[1], path[:-1])


def test_every_tree_extends_the_empty_one():
    assert tree.is_consistent(0, tree.EMPTY, 3, tree.root(LEAVES[:3]), [])
    assert not tree.is_consistent(0, bytes(32), 3, tree.root(LEAVES[:3]), [])
    assert not tree.is_consistent(4, tree.EMPTY, 3, tree.EMPTY, [])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(index: int, size: int):
    with pytest.raises(ValueError, match="has no leaf"):
        tree.inclusion_proof(index, size, tree.over(LEAVES[: max(size, 0)]))
    with pytest.raises(ValueError, match="has no leaf"):
        tree.included(LEAVES[0], index, size, [])
