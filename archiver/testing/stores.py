"""The contract of a store, as tests. A store's own test file subclasses it and supplies construction and quirks.

class TestFile(StoreContract):
    @pytest_asyncio.fixture
    async def store(self, tmp_path): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..errors import ObjectFailed, StoreConflict, StoreDown, StoreMissing, StoreRefused
from ..model import Body, Receipt
from ..ports import Store
from ..proof.layout import media_key

ODD_NAMES = (
    "a%2Fb.wav",
    "a%252Fb.wav",
    "a%252e",
    "with space and + plus.wav",
    "tilde~dot.dash-_under!.wav",
    "=equals&and;semi,comma:colon@at$dollar.wav",
    "'single' \"double\" (round) [square] {curly} <angle>.wav",
    "what?#hash.wav",
    "pipe|caret^tick`.wav",
    "back\\slash.wav",
    "ünïcödé – 通話 – 😀.wav",
    "n" * 200,
    "é" * 100,
)

#: Whose order tells code points from folder trees and from locales.
ORDERED = (
    "A", "B/c", "a b", "a!/x", "a+", "a-b", "a.b", "a/b-c", "a/b/c", "a/c", "a0", "a~", "aa", "b", "é", "\uffee", "😀",
)  # fmt: skip


class Kept:
    """A sink that keeps what it was given."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, chunk: bytes) -> None:
        self.data += chunk

    def told(self, *, content_type: str | None = None) -> None:
        pass

    async def restart(self) -> None:
        self.data.clear()


async def read(store: Store, key: str) -> bytes:
    sink = Kept()
    await store.get(key, sink)
    return bytes(sink.data)


async def keys(store: Store, prefix: str, after: str = "") -> list[str]:
    return [receipt.key async for receipt in store.list(prefix, after)]


#: Everything that can be asked of a store.
USES: tuple[Callable[[Store], Awaitable[Any]], ...] = (
    lambda store: store.put("x/y", Body.of(b"x")),
    lambda store: store.stat("x/y"),
    lambda store: read(store, "x/y"),
    lambda store: keys(store, ""),
    lambda store: store.check(),
    lambda store: store.alive(),
)


def spooled(folder: Path, data: bytes) -> Body:
    """A body whose bytes lie in a file."""
    path = folder / secrets.token_hex(8)
    path.write_bytes(data)
    return Body(len(data), hashlib.sha256(data).hexdigest(), path=path)


class StoreContract:
    """Every store passes these. Subclasses give the fixture ``store`` and the three context managers."""

    #: Of two who put different bytes at the same instant, does exactly one succeed? (Keys of media hold a
    #: hash, so it never comes to that.)
    atomic: ClassVar[bool] = True
    #: Odd names that the server itself, not the store, can't hold.
    unholdable: ClassVar[frozenset[str]] = frozenset()
    #: Below this every test keeps its keys; ends with a slash.
    prefix: ClassVar[str] = "contract/"
    #: How many objects make a listing longer than one page of the fixture's store.
    many: ClassVar[int] = 25
    #: A body that takes the path for long ones.
    long_length: ClassVar[int] = 5_000_000

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[Store]:
        """A store whose server does not answer (or whose disk fails)."""
        pytest.skip("this store has no server that could be down")
        yield

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[tuple[Store, str]]:
        """A store whose server refuses the account, and the secret that no message may show."""
        pytest.skip("this store knows no accounts")
        yield

    async def leftovers(self, store: Store, under: str) -> list[str]:  # noqa: ARG002  # subclasses ask it
        """What the server holds below this test's folder that list() does not show: temporary files, parts."""
        return []

    @pytest.fixture
    def under(self) -> str:
        """A folder for one test's keys."""
        return f"{self.prefix}{secrets.token_hex(6)}/"

    async def test_check_says_what_it_saw_and_leaves_nothing(self, store: Store) -> None:
        said = await store.check()
        assert said
        assert "\n" not in said
        assert [key for key in await keys(store, "") if "_canary" in key] == []

    async def test_a_store_that_is_alive_says_nothing_and_keeps_nothing(self, store: Store) -> None:
        for _ in range(2):
            await store.alive()
        assert [key for key in await keys(store, "") if "_canary" in key] == []

    async def test_a_name_that_is_too_long_is_of_no_concern_to_others(self, store: Store, under: str) -> None:
        with pytest.raises(ObjectFailed):
            await store.put(under + "/".join(["n" * 300] * 40), Body.of(b"x"))
        await store.alive()
        await store.put(f"{under}short", Body.of(b"x"))
        assert await keys(store, under) == [f"{under}short"]

    async def test_what_lies_in_the_place_of_a_folder_is_of_no_concern_to_others(
        self, store: Store, under: str
    ) -> None:
        """Where keys are files in folders; where they are not, both are kept."""
        await store.put(f"{under}a/b", Body.of(b"a file"))
        for key in (f"{under}a/b/c", f"{under}a"):
            with contextlib.suppress(ObjectFailed):
                await store.put(key, Body.of(b"x"))
                assert await read(store, key) == b"x"
        await store.alive()
        assert await read(store, f"{under}a/b") == b"a file"

    async def test_what_was_put_is_there_with_its_size_and_hash(self, store: Store, under: str) -> None:
        body = Body.of(secrets.token_bytes(200_000))
        key = f"{under}2024/05/17/id/a.wav"
        put = await store.put(key, body)
        assert (put.key, put.size) == (key, body.length)
        assert put.sha256 in {None, body.sha256}
        there = await store.stat(key)
        assert there is not None
        assert (there.key, there.size) == (key, body.length)
        assert there.sha256 in {None, body.sha256}
        assert await read(store, key) == body.data
        assert await self.leftovers(store, under) == []

    async def test_an_empty_body_is_kept_too(self, store: Store, under: str) -> None:
        await store.put(f"{under}empty", Body.of(b""))
        assert await store.stat(f"{under}empty") is not None
        assert await read(store, f"{under}empty") == b""

    async def test_a_long_body_comes_from_the_spool(self, store: Store, under: str, tmp_path: Path) -> None:
        data = secrets.token_bytes(self.long_length)
        body = spooled(tmp_path, data)
        await store.put(f"{under}long.wav", body)
        assert await read(store, f"{under}long.wav") == data
        await store.put(f"{under}long.wav", body)
        with pytest.raises(StoreConflict):
            await store.put(f"{under}long.wav", spooled(tmp_path, data[:-1] + bytes([data[-1] ^ 1])))
        assert await read(store, f"{under}long.wav") == data
        assert await self.leftovers(store, under) == []

    async def test_a_long_body_in_memory_is_kept_too(self, store: Store, under: str) -> None:
        body = Body.of(secrets.token_bytes(self.long_length))
        await store.put(f"{under}long.wav", body)
        assert await read(store, f"{under}long.wav") == body.data

    async def test_the_same_bytes_twice_are_success(self, store: Store, under: str) -> None:
        body = Body.of(b"the same")
        first = await store.put(f"{under}twice", body)
        assert await store.put(f"{under}twice", body) == first
        assert await keys(store, under) == [f"{under}twice"]
        assert await self.leftovers(store, under) == []

    @pytest.mark.parametrize("other", [b"longer than these bytes", b"other bytes"], ids=["longer", "as long"])
    async def test_other_bytes_never_replace_what_is_there(self, store: Store, under: str, other: bytes) -> None:
        await store.put(f"{under}taken", Body.of(b"these bytes"))
        with pytest.raises(StoreConflict):
            await store.put(f"{under}taken", Body.of(other))
        assert await read(store, f"{under}taken") == b"these bytes"
        assert await self.leftovers(store, under) == []

    async def test_bytes_that_lack_the_announced_hash_are_refused(self, store: Store, under: str) -> None:
        body = Body(5, hashlib.sha256(b"right").hexdigest(), b"wrong")
        with pytest.raises((ObjectFailed, StoreDown)):
            await store.put(f"{under}damaged", body)
        assert await store.stat(f"{under}damaged") is None
        assert await keys(store, under) == []
        assert await self.leftovers(store, under) == []
        await store.put(f"{under}damaged", Body.of(b"right"))
        assert await read(store, f"{under}damaged") == b"right"

    async def test_a_long_body_that_lacks_the_announced_hash_is_refused(
        self, store: Store, under: str, tmp_path: Path
    ) -> None:
        whole = spooled(tmp_path, secrets.token_bytes(self.long_length))
        with pytest.raises((ObjectFailed, StoreDown)):
            await store.put(f"{under}damaged", Body(whole.length, "0" * 64, path=whole.path))
        assert await store.stat(f"{under}damaged") is None
        assert await self.leftovers(store, under) == []

    @pytest.mark.timeout(30)
    async def test_a_spool_file_that_is_too_short_is_refused(self, store: Store, under: str, tmp_path: Path) -> None:
        cut = spooled(tmp_path, secrets.token_bytes(100_000))
        with pytest.raises((ObjectFailed, StoreDown)):
            await store.put(f"{under}cut", Body(150_000, cut.sha256, path=cut.path))
        assert await store.stat(f"{under}cut") is None

    @pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
    async def test_a_key_comes_back_as_it_was(self, store: Store, under: str, name: str) -> None:
        if name in self.unholdable:
            pytest.skip("this server can't hold that name")
        key = f"{under}{name}/{name}"
        await store.put(key, Body.of(name.encode()))
        assert await store.stat(key) == Receipt(key=key, size=len(name.encode()), sha256=(await self._hash(store, key)))
        assert await read(store, key) == name.encode()
        assert await keys(store, under) == [key]
        await store.delete(key)
        assert await store.stat(key) is None

    async def _hash(self, store: Store, key: str) -> str | None:
        told = await store.stat(key)
        assert told is not None
        if told.sha256 is not None:
            assert told.sha256 == hashlib.sha256(await read(store, key)).hexdigest()
        return told.sha256

    async def test_a_key_like_that_of_a_medium_comes_back_as_it_was(self, store: Store, under: str) -> None:
        odd = "a:b c~é+d/" + "x" * 200
        key = media_key(under, "hq", datetime(2024, 5, 17, tzinfo=UTC), odd, odd, "0" * 64, "wav")
        await store.put(key, Body.of(b"RIFF"))
        assert await keys(store, under) == [key]
        assert await read(store, key) == b"RIFF"
        there = await store.stat(key)
        assert there is not None
        assert there.size == 4

    async def test_keys_that_differ_only_in_encoding_are_two(self, store: Store, under: str) -> None:
        await store.put(f"{under}a%2Fb", Body.of(b"encoded once"))
        await store.put(f"{under}a%252Fb", Body.of(b"encoded twice"))
        await store.put(f"{under}a/b", Body.of(b"a folder"))
        assert await read(store, f"{under}a%2Fb") == b"encoded once"
        assert await read(store, f"{under}a%252Fb") == b"encoded twice"
        assert await keys(store, under) == [f"{under}a%252Fb", f"{under}a%2Fb", f"{under}a/b"]

    async def test_what_is_missing_is_missing(self, store: Store, under: str) -> None:
        assert await store.stat(f"{under}nothing/here") is None
        with pytest.raises(StoreMissing):
            await read(store, f"{under}nothing/here")
        assert await keys(store, f"{under}nothing/") == []
        await store.delete(f"{under}nothing/here")

    async def test_a_listing_is_sorted_by_code_points(self, store: Store, under: str) -> None:
        ordered = sorted(ORDERED)
        for name in reversed(ordered):
            await store.put(f"{under}{name}", Body.of(name.encode()))
        listed = [receipt async for receipt in store.list(under)]
        assert [receipt.key for receipt in listed] == [f"{under}{name}" for name in ordered]
        assert [receipt.size for receipt in listed] == [len(name.encode()) for name in ordered]
        for name in ordered:
            after = [f"{under}{other}" for other in ordered if other > name]
            assert await keys(store, under, f"{under}{name}") == after
        for start in ("a", "a/", "a/b", "a-", "é", "nothing"):
            assert await keys(store, under + start) == [under + name for name in ordered if name.startswith(start)]

    async def test_a_listing_is_complete_however_many_there_are(self, store: Store, under: str) -> None:
        names = [f"{under}{n % 7:02}{'/-'[n % 2]}{n:05}" for n in range(self.many)]
        for start in range(0, len(names), 50):
            await asyncio.gather(*(store.put(name, Body.of(b".")) for name in names[start : start + 50]))
        names.sort()
        assert await keys(store, under) == names
        middle = names[len(names) // 2]
        assert await keys(store, under, middle) == names[len(names) // 2 + 1 :]
        assert await keys(store, f"{under}03/") == [name for name in names if name.startswith(f"{under}03/")]

    async def test_what_was_deleted_is_gone(self, store: Store, under: str) -> None:
        await store.put(f"{under}short-lived", Body.of(b"x"))
        await store.delete(f"{under}short-lived")
        assert await store.stat(f"{under}short-lived") is None
        await store.delete(f"{under}short-lived")
        await store.put(f"{under}short-lived", Body.of(b"y"))
        assert await read(store, f"{under}short-lived") == b"y"

    async def test_twenty_who_put_the_same_at_once_all_succeed(self, store: Store, under: str) -> None:
        body = Body.of(secrets.token_bytes(50_000))
        receipts = await asyncio.gather(*(store.put(f"{under}deep/er/one", body) for _ in range(20)))
        assert {(receipt.key, receipt.size) for receipt in receipts} == {(f"{under}deep/er/one", body.length)}
        assert await keys(store, under) == [f"{under}deep/er/one"]
        assert await read(store, f"{under}deep/er/one") == body.data
        assert await self.leftovers(store, under) == []

    async def test_of_many_who_put_different_bytes_at_once_one_wins(self, store: Store, under: str) -> None:
        bodies = [Body.of(bytes([n]) * 1000) for n in range(8)]
        came = await asyncio.gather(*(store.put(f"{under}race", body) for body in bodies), return_exceptions=True)
        won = [body for body, receipt in zip(bodies, came, strict=True) if isinstance(receipt, Receipt)]
        lost = [error for error in came if not isinstance(error, Receipt)]
        if self.atomic:
            assert len(won) == 1
            assert all(isinstance(error, StoreConflict) for error in lost)
            assert await read(store, f"{under}race") == won[0].data
        else:
            assert all(isinstance(error, StoreConflict | StoreDown) for error in lost)

    @pytest.mark.parametrize("moment", [0.0, 0.001, 0.004, 0.015, 0.05])
    async def test_a_cancelled_put_leaves_all_or_nothing(
        self, store: Store, under: str, tmp_path: Path, moment: float
    ) -> None:
        await store.put(f"{under}before", Body.of(b"warm"))
        body = spooled(tmp_path, secrets.token_bytes(3_000_000))
        task = asyncio.create_task(store.put(f"{under}cancelled", body))
        await asyncio.sleep(moment)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        there = await store.stat(f"{under}cancelled")
        assert there is None or there.size == body.length
        await store.put(f"{under}cancelled", body)
        assert await read(store, f"{under}cancelled") == body.read()
        assert await keys(store, under) == [f"{under}before", f"{under}cancelled"]

    async def test_a_store_that_is_down_says_so(self) -> None:
        async with self.unreachable() as store:
            for use in USES:
                with pytest.raises(StoreDown):
                    await use(store)

    async def test_a_refused_account_is_told_without_its_secret(self) -> None:
        async with self.refusing() as (store, secret):
            for use in USES:
                with pytest.raises(StoreRefused) as caught:
                    await use(store)
                assert secret not in str(caught.value)
                assert caught.value.__suppress_context__ or secret not in repr(caught.value.__context__)
                assert secret not in repr(store) + repr(vars(store).get("options"))
