"""The log as files: names as c2sp.org/tlog-tiles has them, appending, reading back, proofs from tiles alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.proof import log, tree
from archiver.proof.log import Log
from archiver.proof.note import Checkpoint, ProofError


def numbered(first: int, last: int) -> list[bytes]:
    return [b"entry %d" % n for n in range(first, last)]


class Written:
    """Objects that were put; nothing is overwritten by other bytes."""

    def __init__(self, *sizes: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.log = Log()
        self.roots = {0: tree.EMPTY}
        for size in sizes:
            self.append(numbered(self.log.size, size))

    def append(self, entries: list[bytes]) -> None:
        for name, data in self.log.append(entries):
            assert self.objects.setdefault(name, data) == data
        self.roots[self.log.size] = self.log.root

    def only(self, names: list[str]):
        """Reads what was asked for beforehand, and nothing else."""
        return {name: self.objects[name] for name in names}.__getitem__

    def at(self, size: int) -> Checkpoint:
        return Checkpoint("log", size, tree.root(tree.leaf_hash(entry) for entry in numbered(0, size)))


def names(size: int) -> Iterator[str]:
    """Every bundle and tile of a log of so many entries."""
    level, count = 0, size
    while count:
        for n in range((count + log.WIDTH - 1) // log.WIDTH):
            width = min(log.WIDTH, count - n * log.WIDTH)
            if level == 0:
                yield log.entries_name(n, width)
            yield log.tile_name(level, n, width)
        level, count = level + 1, count // log.WIDTH


def test_names_are_those_of_the_specification():
    assert log.tile_name(0, 0) == "log/tile/0/000"
    assert log.tile_name(3, 67, 5) == "log/tile/3/067.p/5"
    assert log.tile_name(0, 1000) == "log/tile/0/x001/000"
    assert log.entries_name(1234067) == "log/tile/entries/x001/x234/067"
    assert log.entries_name(999_999, 255) == "log/tile/entries/x999/999.p/255"


def test_a_log_of_70000_entries_has_the_tiles_that_the_specification_counts():
    all_names = list(names(70_000))
    level = [[name for name in all_names if name.startswith(f"log/tile/{n}/")] for n in range(4)]
    assert [len(of) for of in level] == [274, 2, 1, 0]
    assert level[0][-1] == "log/tile/0/273.p/112"
    assert level[1] == ["log/tile/1/000", "log/tile/1/001.p/17"]
    assert level[2] == ["log/tile/2/000.p/1"]
    assert sum(name.startswith("log/tile/entries/") for name in all_names) == 274
    assert list(names(256)) == ["log/tile/entries/000", "log/tile/0/000", "log/tile/1/000.p/1"]


def test_only_what_is_named_as_a_checkpoint_is_one():
    assert log.checkpoint_name(512) == "log/checkpoint/000000000512"
    assert log.size_of("log/checkpoint/000000000512") == 512
    assert log.size_of("archive/_proof/log/checkpoint/000000000512") == 512
    for other in ("000000000512.sig", "000000000512.tsa.tsr", "512", "0000000000512", "00000000051x"):
        assert log.size_of(f"log/checkpoint/{other}") is None


def test_entries_come_back_and_roots_are_those_of_the_tree():
    written = Written(1, 2, 255, 256, 257, 600, 1300)
    for size, root in written.roots.items():
        assert root == written.at(size).root, size
        read = written.only(log.entry_names(0, size, size))
        assert list(log.entries(0, size, size, read)) == numbered(0, size)
    read = written.only(log.entry_names(250, 600, 1300))
    assert list(log.entries(250, 600, 1300, read)) == numbered(250, 600)
    assert set(names(1300)) <= written.objects.keys()


def test_a_tile_above_the_first_level_is_named_by_its_own_number():
    written = Written(70_000, 70_001)
    assert set(names(70_001)) <= written.objects.keys()
    again = Log.open(70_001, written.log.root, written.only(log.edge_names(70_001)))
    assert again.root == written.at(70_001).root


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(1, 300))
def test_a_log_that_is_opened_goes_on_where_it_ended(steps: list[int], more: int):
    written = Written(*itertools.accumulate(steps))
    size = written.log.size
    again = Log.open(size, written.log.root, written.only(log.edge_names(size)))
    entries = numbered(size, size + more)
    assert again.append(entries) == written.log.append(entries)
    assert again.root == written.log.root == written.at(size + more).root


def test_an_append_puts_no_more_than_what_changed():
    written = Written(300)
    assert [name for name, _ in written.log.append(numbered(300, 301))] == [
        "log/tile/entries/001.p/45",
        "log/tile/0/001.p/45",
    ]
    assert written.log.append([]) == []


def test_bundles_are_put_before_tiles_so_that_no_tile_tells_of_an_entry_that_is_not_there():
    names = [name for name, _ in Log().append(numbered(0, 600))]
    assert names == [
        *(f"log/tile/entries/{n}" for n in ("000", "001", "002.p/88")),
        *(f"log/tile/0/{n}" for n in ("000", "001", "002.p/88")),
        "log/tile/1/000.p/2",
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1300), st.data())
def test_inclusion_and_extension_are_proved_from_tiles_alone(size: int, data: st.DataObject):
    written = Written(size)
    now = written.at(size)
    index = data.draw(st.integers(0, size - 1))
    path = log.inclusion(index, size, written.only(log.inclusion_names(index, size)))
    assert tree.included(tree.leaf_hash(b"entry %d" % index), index, size, path) == now.root
    before = data.draw(st.integers(0, size))
    read = written.only(log.extends_names(size, before))
    assert log.extends(now, written.at(before), read)
    assert not log.extends(now, Checkpoint("log", before, bytes(32)), read)
    assert not log.extends(now, Checkpoint("another", before, written.at(before).root), read)
    assert not log.extends(now, Checkpoint("log", size + 1, now.root), read)


def test_extending_is_judged_by_both_roots_so_wrong_tiles_prove_nothing():
    written = Written(700)
    names = log.extends_names(700, 300)
    wrong = {name: bytes(len(written.objects[name])) for name in names}
    assert not log.extends(written.at(700), written.at(300), wrong.__getitem__)
    short = {name: written.objects[name][:-32] for name in names}
    with pytest.raises(ProofError, match="bytes, not"):
        log.extends(written.at(700), written.at(300), short.__getitem__)


def test_a_log_that_is_not_its_checkpoints_is_not_opened():
    written = Written(300)
    for name in log.edge_names(300):
        for spoilt in (bytes(len(written.objects[name])), written.objects[name][:-1], b""):
            with pytest.raises(ProofError):
                Log.open(300, written.log.root, {**written.objects, name: spoilt}.__getitem__)
    with pytest.raises(ProofError, match="not those of the checkpoint"):
        Log.open(300, bytes(32), written.objects.__getitem__)


def test_an_entry_that_is_too_long_is_refused_before_anything_is_taken_in():
    written = Log()
    with pytest.raises(ValueError, match="65535"):
        written.append([b"good", bytes(65_536)])
    assert written.size == 0
    written.append([bytes(65_535)])
    assert written.size == 1


def test_a_bundle_that_was_cut_is_refused():
    written = Written(3)
    name, data = next(iter(written.objects.items()))
    for cut in (data[:-1], data[:1], data + b"\0"):
        with pytest.raises(ProofError, match="ends within"):
            list(log.entries(0, 3, 3, {name: cut}.__getitem__))
    with pytest.raises(ProofError, match="holds 2 entries"):
        list(log.entries(0, 3, 3, {name: data[: 2 * 9]}.__getitem__))
