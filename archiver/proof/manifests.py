"""What a store says about itself: JSON lines, one recording a line, that describe every copy beside them.

A later line for the same recording replaces an earlier one (contract: "Inside a store").
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, Raw, Struct

from ..audio.spool import Spool, SpoolSink
from ..common.scope import Row, Unlisted, listed
from ..errors import ObjectFailed, SpoolDown, StoreError
from ..model import LONGEST_ID, Body, Direction, State, holdable, holdable_tree, utc_text
from ..ports import Store
from ..wire.recorder import loads
from .layout import ledger_key, manifest_key, renamed_key, safe, verified_key

#: Manifests read at once, or so many bytes of them; lines of one handed on at once, and bytes of them.
_WIDTH = 8
_WIDTH_BYTES = 16 << 20
_PART = 1000
_PART_BYTES = 1 << 20
#: A row of a listing is never so long, with all that it becomes.
_LONGEST_LINE = 32 << 20
#: Levels of objects and lists: those of an answer, and what is around them here.
_DEEPEST = 100
#: So many ledgers before the newest may stand in for it.
_OLDER_LEDGERS = 8

T = TypeVar("T")
#: From an object's folder and a line what the line tells.
_Check = Callable[[str, bytes], T]


async def write(
    store: Store, prefix: str, source: str, documents: Sequence[Mapping[str, Any]], now: datetime, stamp: str
) -> str:
    """One manifest of these recordings, all of one source; its key. ``stamp``: its ULID. Raises StoreError."""
    lines = b"".join(sealed(document) for document in documents)
    key = manifest_key(prefix, source, now, stamp)
    await store.put(key, Body.of(lines))
    return key


def line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def sealed(document: Mapping[str, Any]) -> bytes:
    """The line with the SHA-256 of what it would be without: no changed digit may make more of it than there was."""
    return line({**document, "sha256": hashlib.sha256(line(document)).hexdigest()})


async def write_ledger(store: Store, prefix: str, ledger: Mapping[str, Any], now: datetime) -> str:
    """What of a source was listed, beside the manifests that describe what was found; its key. Raises StoreError."""
    key = ledger_key(prefix, ledger["source"], now)
    await store.put(key, Body.of(sealed(ledger)))
    return key


async def write_verified(
    store: Store, prefix: str, source: str, copies: Sequence[tuple[str, str, datetime]], now: datetime
) -> str:
    """Which copies (store, key, when) of a source were read back and found right; its key. Raises StoreError.

    A line for all that were found at one moment, far shorter than the recordings' own.
    """
    lines = [
        sealed({"source": source, "store": of, "verified_at": utc_text(at), "keys": [key for _, key, _ in found]})
        for (of, at), found in itertools.groupby(copies, key=lambda copy: (copy[0], copy[2]))
    ]
    key = verified_key(prefix, source, now)
    await store.put(key, Body.of(b"".join(lines)))
    return key


async def write_renamed(
    store: Store, prefix: str, what: Literal["source", "store"], old: str, new: str, stamp: str
) -> str:
    """That what was written before ``stamp`` (a ULID) calls ``old`` what is ``new`` now; its key. Raises StoreError."""
    key = renamed_key(prefix, stamp)
    await store.put(key, Body.of(sealed({"what": what, "old": old, "new": new})))
    return key


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """Some lines of one object, in their order."""

    key: str
    documents: list[T]
    #: Bytes of these lines.
    size: int
    #: What is wrong with the object so far, told once.
    problem: str | None
    #: Nothing of this object follows.
    last: bool
    #: Of a manifest, its source's name now, as a folder's name.
    folder: str = ""


async def read(
    store: Store, prefix: str, spool: Spool, *, after: str = "", under: str = "", row: Row | None = None
) -> AsyncGenerator[Part[Recording], None]:
    """Every manifest's recordings and what is wrong with it, by source, oldest first, from behind a key on.

    ``under``: only those of this folder, of a source or a part of one. A manifest that can't be read, or a folder that
    can't be listed, is a part with a problem. ``row``: which objects of the store failed before. Raises StoreError
    where it is the store that fails.
    """
    row = row or Row(good=after or None)
    # Who looks into one folder looks for what is told there, whatever it was called before.
    names, base = await renamings(store, prefix, spool, all_needed=not under), f"{prefix}_manifests/"
    async with aclosing(_all(store, base, under, after, spool, _recording, row)) as parts:
        async for part in parts:
            stamp = stamp_of(part.key)
            for recording in part.documents if names.renamed else ():
                names.of_recording(stamp, recording)
            yield replace(part, folder=names.now("folder", part.key.removeprefix(base).split("/")[0], stamp))


async def read_verified(store: Store, prefix: str, spool: Spool) -> AsyncGenerator[Part[dict[str, Any]], None]:
    """What :func:`write_verified` wrote, by source, oldest first; problems as in :func:`read`. Raises StoreError."""
    names = await renamings(store, prefix, spool)
    async with aclosing(_all(store, f"{prefix}_verified/", "", "", spool, _verification, Row())) as parts:
        async for part in parts:
            for told in part.documents:
                told["source"] = names.now("source", told["source"], stamp_of(part.key))
                told["store"] = names.now("store", told["store"], stamp_of(part.key))
            yield part


async def _all(
    store: Store, base: str, under: str, after: str, spool: Spool, check: _Check[T], row: Row
) -> AsyncGenerator[Part[T], None]:
    async for found in _several(store, base + under, after, row):
        if isinstance(found, Unlisted):
            yield Part(found.key, [], 0, f"it can't be listed: {found.why}", last=True)
            continue
        async with aclosing(_read(store, base, found, spool, check, row)) as parts:
            async for part in parts:
                yield part


async def _several(store: Store, prefix: str, after: str, row: Row) -> AsyncIterator[list[str] | Unlisted]:
    """Keys of manifests, as many at a time as are read at once; and what can't be listed, in its place."""
    keys: list[str] = []
    size = 0
    async for found in listed(store, prefix, after, row):
        if isinstance(found, Unlisted):
            if keys:
                yield keys
                keys, size = [], 0
            yield found
            continue
        if found.key.endswith(".jsonl"):
            keys.append(found.key)
            size += found.size
        if len(keys) == _WIDTH or size >= _WIDTH_BYTES:
            yield keys
            keys, size = [], 0
    if keys:
        yield keys


async def count(store: Store, prefix: str) -> int:
    """How many manifests there are, as far as they can be listed. Raises StoreError."""
    return sum([found.key.endswith(".jsonl") async for found in listed(store, f"{prefix}_manifests/")])


async def read_ledgers(store: Store, prefix: str, spool: Spool) -> AsyncGenerator[Part[dict[str, Any]], None]:
    """The newest ledger of each source; where that can't be read, what is wrong with it and the newest that can.

    Raises StoreError where it is the store that fails.
    """
    base, row = f"{prefix}_ledger/", Row()
    names = await renamings(store, prefix, spool)
    newest: dict[str, deque[str]] = {}
    async for found in listed(store, base, "", row):
        if isinstance(found, Unlisted):
            yield Part(found.key, [], 0, f"it can't be listed: {found.why}", last=True)
        else:
            # A source that was renamed has one ledger, in two folders.
            folder = names.now("folder", found.key.removeprefix(base).split("/")[0], stamp_of(found.key))
            newest.setdefault(folder, deque(maxlen=2 * _OLDER_LEDGERS)).append(found.key)
    for keys in newest.values():
        for key in sorted(keys, key=stamp_of, reverse=True):
            told: list[dict[str, Any]] = []
            problem = None
            async with aclosing(_read(store, base, [key], spool, _ledger, row)) as parts:
                async for part in parts:
                    told, problem = told or part.documents[:1], problem or part.problem
            for ledger in told:
                ledger["source"] = names.now("source", ledger["source"], stamp_of(key))
            yield Part(key, told if problem is None else [], 0, problem, last=True)
            if problem is None:
                break


class Renamings:
    """What was renamed when: names in what was written before are those of now."""

    def __init__(self) -> None:
        #: ULID, what, old, new; oldest first. A folder is what a source's name is as a key.
        self.renamed: list[tuple[str, str, str, str]] = []

    def add(self, stamp: str, what: str, old: str, new: str) -> None:
        self.renamed.append((stamp, what, old, new))
        if what == "source":
            self.renamed.append((stamp, "folder", safe(old), safe(new)))

    def now(self, what: str, name: str, stamp: str) -> str:
        """What is called now what was called that in what was written at ``stamp`` (a ULID)."""
        for at, of, old, new in self.renamed:
            if of == what and old == name and at > stamp:
                name = new
        return name

    def of_recording(self, stamp: str, told: Recording) -> None:
        told.source = self.now("source", told.source, stamp)
        for medium in told.media:
            for copy in medium.copies:
                copy.store = self.now("store", copy.store, stamp)
            # One that was put twice, under either name, is one.
            medium.copies = list({(copy.store, copy.key): copy for copy in medium.copies}.values())
            if medium.stores is not None:
                medium.stores = list(dict.fromkeys(self.now("store", name, stamp) for name in medium.stores))


async def renamings(store: Store, prefix: str, spool: Spool, *, all_needed: bool = True) -> Renamings:
    """What was ever renamed in this archive.

    Raises StoreError, also (where ``all_needed``) for one renaming that can't be read: no name is certain then.
    """
    names, base = Renamings(), f"{prefix}_renamed/"
    async with aclosing(_all(store, base, "", "", spool, _renaming, Row())) as parts:
        async for part in parts:
            if part.problem is not None and all_needed:
                raise ObjectFailed(f"{part.key}: {part.problem}; without it no name in this store is certain")
            for told in part.documents:
                names.add(stamp_of(part.key), told["what"], told["old"], told["new"])
    return names


def stamp_of(key: str) -> str:
    """The ULID in the name of one of ours."""
    return key.rpartition("/")[2].partition(".")[0]


async def _read(
    store: Store, base: str, keys: Sequence[str], spool: Spool, check: _Check[T], row: Row
) -> AsyncGenerator[Part[T], None]:
    """These objects, fetched at once, line by line, so that none has to fit into memory."""
    with ExitStack() as held:
        sinks = [held.enter_context(spool.sink()) for _ in keys]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_body(store, *one, row)) for one in zip(keys, sinks, strict=True)]
        except* StoreError as lost:
            raise lost.exceptions[0] from None
        for key, task in zip(keys, tasks, strict=True):
            body = task.result()
            if isinstance(body, str):
                yield Part(key, [], 0, body, last=True)
                continue
            lines = _parts(base, key, body, check)
            last = False
            while not last:
                part = await asyncio.to_thread(next, lines)
                yield part
                last = part.last


async def _body(store: Store, key: str, sink: SpoolSink, row: Row) -> Body | str:
    """The object's bytes, or why they can't be read. Raises StoreError of the store, and SpoolDown."""
    try:
        await store.get(key, sink)
    except SpoolDown:
        raise
    except StoreError as error:
        if await row.concerns_store(store, error, key):
            raise
        return f"it can't be read: {error}"
    row.worked(key)
    return await sink.body()


def _parts(base: str, key: str, body: Body, check: _Check[T]) -> Iterator[Part[T]]:
    folder = key.removeprefix(base).split("/")[0]
    documents: list[T] = []
    size, problem, cut = 0, None if body.length else "it is empty", False
    for number, (row, whole) in enumerate(_rows(body), 1):
        cut = not whole
        try:
            if row is None:
                raise ValueError(f"it is longer than {_LONGEST_LINE} bytes")
            documents.append(check(folder, row))
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            problem = problem or f"line {number}: {_reason(error)}"
        size += len(row or b"")
        if len(documents) >= _PART or size >= _PART_BYTES:
            yield Part(key, documents, size, None, last=False)
            documents, size = [], 0
    if cut:
        problem = problem or "its last line is cut off"
    yield Part(key, documents, size, problem, last=True)


def _rows(body: Body) -> Iterator[tuple[bytes | None, bool]]:
    """Each line, and whether its end came with it; None for one that is longer than any of ours."""
    begun, skipping = bytearray(), False
    for chunk in body.chunks():
        *ended, rest = chunk.split(b"\n")
        for row in ended:
            yield None if skipping or len(begun) + len(row) > _LONGEST_LINE else bytes(begun + row), True
            begun.clear()
            skipping = False
        skipping = skipping or len(begun) + len(rest) > _LONGEST_LINE
        if skipping:
            begun.clear()
        else:
            begun += rest
    if begun or skipping:
        yield None if skipping else bytes(begun), False


# -- what a line must be, for nobody else checks what comes from a store ----------------------------------------------

_Id = Annotated[str, Meta(min_length=1)]
_Seconds = Annotated[float, Meta(ge=-1e13, le=1e13)]
_Size = Annotated[int, Meta(ge=0, lt=1 << 44)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Handle = Annotated[str, Meta(pattern=r"^[0-9a-f]{24}\Z")]
_Salt = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Flags = list[Annotated[str, Meta(pattern=r"^[a-z_]+\Z")]]


class Copy(Struct, gc=False):
    """Moments are texts here, as ISO 8601 has them, in UTC: they compare as what they mean."""

    store: str
    key: str
    archived_at: str
    verified_at: str | None
    size: _Size
    sha256: _Sha256

    def __post_init__(self) -> None:
        _name(self.store)
        _short("key", self.key, 1500)
        self.archived_at = _moment("archived_at", self.archived_at)
        self.verified_at = _moment("verified_at", self.verified_at) if self.verified_at is not None else None


class Medium(Struct, gc=False):
    """One medium of a recording."""

    media_id: _Id
    state: Literal[tuple(s.value for s in State)]  # type: ignore[valid-type]
    content_type: str | None
    size: _Size | None
    sha256: _Sha256 | None
    duration: _Seconds | None
    attempts: Annotated[int, Meta(ge=0, lt=1 << 31)]
    error: str | None
    copies: list[Copy]
    stores: list[str] | None = None
    coding: str | None = None
    flags: _Flags = []
    note: str | None = None

    def __post_init__(self) -> None:
        _short("media_id", self.media_id, LONGEST_ID)
        for store in self.stores or ():
            _name(store)


class Recording(Struct, gc=False):
    """A line of a manifest. What is kept as it is has not been read: it is JSON that PostgreSQL takes."""

    source: str
    kind: str
    recording_id: _Id
    call_id: str | None
    started_at: str
    ended_at: str | None
    duration: _Seconds | None
    direction: Literal[tuple(d.value for d in Direction)]  # type: ignore[valid-type]
    caller: str | None
    callee: str | None
    agent: str | None
    queue: str | None
    parties: Raw
    events: Raw
    attributes: Raw
    media: list[Medium]
    raw: Raw
    flags: _Flags = []
    missing_since: str | None = None
    #: First versions wrote none of these: 96 random bits, 128 more, and the line's own SHA-256.
    handle: _Handle | None = None
    salt: _Salt | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        _name(self.source)
        _name(self.kind)
        _short("recording_id", self.recording_id, LONGEST_ID)
        _short("call_id", self.call_id or "", 2500)
        self.started_at = _moment("started_at", self.started_at)
        self.ended_at = _moment("ended_at", self.ended_at) if self.ended_at is not None else None
        self.missing_since = _moment("missing_since", self.missing_since) if self.missing_since is not None else None


class _Verification(Struct):
    source: str
    store: str
    verified_at: str
    keys: list[str]

    def __post_init__(self) -> None:
        _name(self.source)
        _name(self.store)
        _moment("verified_at", self.verified_at)
        for key in self.keys:
            _short("keys", key, 1500)
            _held("keys", key)


class _Renaming(Struct):
    what: Literal["source", "store"]
    old: str
    new: str

    def __post_init__(self) -> None:
        _name(self.old)
        _name(self.new)


class _Ledger(Struct):
    source: str
    kind: str
    start: str
    covered: list[tuple[str, str]]
    cursor: str | None
    #: From where it was listed; earlier versions told neither.
    origin: str | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        _name(self.source)
        _name(self.kind)
        _moment("start", self.start)
        _held("cursor", self.cursor or "")
        _held("origin", self.origin or "")
        _held("account", self.account or "")
        if any(_moment("covered", start) >= _moment("covered", end) for start, end in self.covered):
            raise ValueError("a span ends before it starts")


@lru_cache(1024)
def _name(text: str) -> None:
    """Of a source, a kind, a store."""
    _short("a name", text, 200)
    _held("a name", text)
    if not text or "," in text:
        raise ValueError("a name is empty or holds a comma")


def _short(field: str, text: str, longest: int) -> None:
    if len(text) * 4 > longest and len(text.encode("utf-8", "surrogatepass")) > longest:
        raise ValueError(f"{field} is longer than {longest} bytes")


def _held(field: str, text: str) -> None:
    if holdable(text) != text:
        raise ValueError(f"{field} holds what no database can")


#: What is at these places of a moment as we write it (utc_text): all but its digits.
_OURS, _MARKS = itemgetter(4, 7, 10, 13, 16, 19, -1), tuple("--T::.Z")


def _moment(field: str, text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is UTC and len(text) > 20 and _OURS(text) == _MARKS:
            return text[:-1] + "+00:00"
        if moment.tzinfo is not None:
            return moment.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{field} is no moment")


class _Kept(Struct):
    """The fields of a recording that are kept as they are."""

    parties: list[dict[str, Any]]
    events: list[dict[str, Any]]
    attributes: dict[str, Any]
    raw: dict[str, Any]


_RECORDING = msgspec.json.Decoder(Recording)
_READABLE = {name: msgspec.json.Decoder(kind).decode for name, kind in get_type_hints(_Kept).items()}


def _recording(folder: str, row: bytes) -> Recording:
    """A line of a manifest. Raises ValueError where it is no recording of the folder's source."""
    try:
        told = _read_at_once(row)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        told = _read_with_care(row)
    _whole(told, row)
    _of(folder, told.source)
    if len(told.media) > 1 and len({medium.media_id for medium in told.media}) < len(told.media):
        raise ValueError("a medium is told twice")
    for medium in told.media:
        if len({(copy.store, copy.key) for copy in medium.copies}) < len(medium.copies):
            raise ValueError("a copy is told twice")
        for copy in medium.copies:
            _named(copy, told, medium)
            of_now = copy.sha256 == medium.sha256
            if of_now != (copy.sha256[:12] == (medium.sha256 or "")[:12]) or (of_now and copy.size != medium.size):
                raise ValueError("a copy is not of the bytes that its medium has")
        if not (medium.stores or medium.copies):
            raise ValueError("a medium is meant for no store")
        if medium.state == State.ARCHIVED and not any(copy.sha256 == medium.sha256 for copy in medium.copies):
            raise ValueError("a medium is archived, and no copy holds it")
    return told


#: A line's own SHA-256 as :func:`sealed` writes it, at the end, and what is in its place in the bytes that it is of.
_SEAL, _SEALED = re.compile(rb',"sha256":"([^"]*)"}\Z'), b"}\n"


def _whole(told: Recording, row: bytes) -> None:
    """Of the bytes as they lie there: nothing is written again to be compared.

    Raises ValueError where a line is not the one that was written. First versions wrote no SHA-256, and no handle.
    """
    seal = _SEAL.search(row, max(0, len(row) - 100))
    if seal is None:
        if told.sha256 is not None or told.handle is not None or told.salt is not None:
            raise ValueError("its SHA-256 is missing at its end")
        return
    if seal[1] != hashlib.sha256(row[: seal.start()] + _SEALED).hexdigest().encode():
        raise ValueError("its SHA-256 is another")


def _read_at_once(row: bytes) -> Recording:
    """A line as nearly all are. Raises also where it could be read with more care."""
    if b"\\u" in row or row.count(b"[") + row.count(b"{") > _DEEPEST:
        raise ValueError("it may hold what no database can, or nest too deeply")
    # A decoder does not look into what it skips.
    row.decode()
    told = _RECORDING.decode(row)
    for name, readable in _READABLE.items():
        readable(getattr(told, name))
    return told


def _read_with_care(row: bytes) -> Recording:
    """What PostgreSQL can't hold of what is kept is written out, as it is when it comes from a source."""
    value = _object(row)
    kept = msgspec.structs.asdict(msgspec.convert(value, _Kept))
    texts = {n: json.dumps(holdable_tree(v), ensure_ascii=False, separators=(",", ":")) for n, v in kept.items()}
    told = msgspec.convert(value | {name: Raw(text.encode()) for name, text in texts.items()}, Recording)
    for one in (told, *told.media, *(copy for medium in told.media for copy in medium.copies)):
        for field in one.__struct_fields__:
            if isinstance(text := getattr(one, field), str):
                _held(field, text)
    return told


_ASIDE = re.compile(r"(.+)~[0-9]{8}T[0-9]{6}", re.DOTALL)


def _named(copy: Copy, told: Recording, medium: Medium) -> None:
    """Is the key the one that such a copy gets? (layout.media_key; its day stays when the call's start changes)"""
    stem, _, ext = copy.key.rpartition(".")
    # One that was set aside got its id later (catalog.set_former_aside).
    recording_id = told.recording_id
    while not stem.endswith(f"/{safe(recording_id)}/{safe(medium.media_id)}-{copy.sha256[:12]}"):
        if (aside := _ASIDE.fullmatch(recording_id)) is None:
            break
        recording_id = aside[1]
    tail = f"/{safe(recording_id)}/{safe(medium.media_id)}-{copy.sha256[:12]}"
    day = stem[: -len(tail)][-11:]
    prefix = stem[: -len(tail) - 11]
    if (
        not stem.endswith(tail)
        or not re.fullmatch("/[0-9]{4}/[0-9]{2}/[0-9]{2}", day)
        # Any source's folder: one that was renamed keeps its old one, and not every store was told of that.
        or not prefix.rpartition("/")[2]
        or not re.fullmatch("[a-z0-9]+", ext)
        or {".", ".."} & set(prefix.split("/"))
    ):
        raise ValueError("a copy's key is not the one that it would get")


def _verification(folder: str, row: bytes) -> dict[str, Any]:
    bare = _unsealed(row)
    _of(folder, msgspec.convert(bare, _Verification).source)
    return bare


def _renaming(_folder: str, row: bytes) -> dict[str, Any]:
    bare = _unsealed(row)
    msgspec.convert(bare, _Renaming)
    return bare


def _ledger(folder: str, row: bytes) -> dict[str, Any]:
    bare = _unsealed(row)
    _of(folder, msgspec.convert(bare, _Ledger).source)
    return bare


def _unsealed(row: bytes) -> dict[str, Any]:
    """The line as it was before :func:`sealed`; first versions wrote none."""
    value = _object(row)
    bare = {name: told for name, told in value.items() if name != "sha256"}
    if "sha256" in value and value["sha256"] != hashlib.sha256(line(bare)).hexdigest():
        raise ValueError("its SHA-256 is another")
    return bare


def _object(row: bytes) -> dict[str, Any]:
    value = loads(row, deepest=_DEEPEST)
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - said of the line, not of our arguments
    return value


_folder = lru_cache(64)(safe)


def _of(folder: str, source: str) -> None:
    if _folder(source) != folder:
        raise ValueError("it tells of another source than its folder")


def _reason(error: Exception) -> str:
    """Without what was told: that may be long, and anything."""
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, msgspec.ValidationError):
        what, _, place = str(error).partition(" - at `$")
        # Some quote it.
        what = what.partition(" '")[0]
        place = re.sub(r"\[(\d+)\]", r".\1", place.rstrip("`")).strip(".")
        return f"{place}: {what}" if place else what
    return "it is no JSON" if isinstance(error, UnicodeDecodeError | json.JSONDecodeError) else str(error)
