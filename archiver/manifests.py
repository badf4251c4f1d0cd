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
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import StoreError
from .http import loads
from .layout import ledger_key, manifest_key, safe, verified_key
from .model import LONGEST_ID, Body, Direction, State, holdable, utc_text
from .ports import Store
from .spool import Spool, SpoolSink

#: Manifests read at once, and recordings of one handed on at once.
_WIDTH = 8
_PART = 500
#: A row of a listing is never so long, with all that it becomes.
_LONGEST_LINE = 32 << 20
#: Levels of objects and lists: those of an answer, and what is around them here.
_DEEPEST = 100
#: So many ledgers before the newest may stand in for it.
_OLDER_LEDGERS = 8

_Check = Callable[[str, Any], dict[str, Any]]


async def write(
    store: Store, prefix: str, source: str, documents: Sequence[Mapping[str, Any]], now: datetime, stamp: str
) -> str:
    """One manifest of these recordings, all of one source; its key. ``stamp``: its ULID. Raises StoreError."""
    lines = b"".join(line(document) for document in documents)
    key = manifest_key(prefix, source, now, stamp)
    await store.put(key, Body.of(lines))
    return key


def line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _sealed(document: Mapping[str, Any]) -> bytes:
    """The line with the SHA-256 of what it would be without: no changed digit may make more of it than there was."""
    return line({**document, "sha256": hashlib.sha256(line(document)).hexdigest()})


async def write_ledger(store: Store, prefix: str, ledger: Mapping[str, Any], now: datetime) -> str:
    """What of a source was listed, beside the manifests that describe what was found; its key. Raises StoreError."""
    key = ledger_key(prefix, ledger["source"], now)
    await store.put(key, Body.of(_sealed(ledger)))
    return key


async def write_verified(
    store: Store, prefix: str, source: str, copies: Sequence[tuple[str, str, datetime]], now: datetime
) -> str:
    """Which copies (store, key, when) of a source were read back and found right; its key. Raises StoreError.

    A line for all that were found at one moment, far shorter than the recordings' own.
    """
    lines = [
        _sealed({"source": source, "store": of, "verified_at": utc_text(at), "keys": [key for _, key, _ in found]})
        for (of, at), found in itertools.groupby(copies, key=lambda copy: (copy[0], copy[2]))
    ]
    key = verified_key(prefix, source, now)
    await store.put(key, Body.of(b"".join(lines)))
    return key


@dataclass(frozen=True, slots=True)
class Part:
    """Some lines of one object, in their order."""

    key: str
    documents: list[dict[str, Any]]
    #: What is wrong with the object so far, told once.
    problem: str | None
    #: Nothing of this object follows.
    last: bool


async def read(store: Store, prefix: str, spool: Spool, *, after: str = "") -> AsyncGenerator[Part, None]:
    """Every manifest's recordings and what is wrong with it, by source, oldest first, from behind a key on.

    Raises StoreError.
    """
    base = f"{prefix}_manifests/"
    async for keys in _several(store, base, after):
        async with aclosing(_read(store, base, keys, spool, _recording)) as parts:
            async for part in parts:
                yield part


async def read_verified(store: Store, prefix: str, spool: Spool) -> AsyncGenerator[Part, None]:
    """What :func:`write_verified` wrote, by source, oldest first. Raises StoreError."""
    base = f"{prefix}_verified/"
    async for keys in _several(store, base, ""):
        async with aclosing(_read(store, base, keys, spool, _verification)) as parts:
            async for part in parts:
                yield part


async def _several(store: Store, prefix: str, after: str) -> AsyncIterator[list[str]]:
    """Keys of manifests, as many at a time as are read at once."""
    keys: list[str] = []
    async for found in store.list(prefix, after):
        if found.key.endswith(".jsonl"):
            keys.append(found.key)
        if len(keys) == _WIDTH:
            yield keys
            keys = []
    if keys:
        yield keys


async def count(store: Store, prefix: str) -> int:
    """How many manifests there are. Raises StoreError."""
    return sum([found.key.endswith(".jsonl") async for found in store.list(f"{prefix}_manifests/")])


async def read_ledgers(store: Store, prefix: str, spool: Spool) -> AsyncGenerator[Part, None]:
    """The newest ledger of each source; where that can't be read, what is wrong with it and the newest that can.

    Raises StoreError.
    """
    base = f"{prefix}_ledger/"
    newest: dict[str, deque[str]] = {}
    async for found in store.list(base):
        newest.setdefault(found.key.rsplit("/", 1)[0], deque(maxlen=_OLDER_LEDGERS)).append(found.key)
    for keys in newest.values():
        for key in reversed(keys):
            told: list[dict[str, Any]] = []
            problem = None
            async with aclosing(_read(store, base, [key], spool, _ledger)) as parts:
                async for part in parts:
                    told, problem = told or part.documents[:1], problem or part.problem
            yield Part(key, told if problem is None else [], problem, last=True)
            if problem is None:
                break


async def _read(
    store: Store, base: str, keys: Sequence[str], spool: Spool, check: _Check
) -> AsyncGenerator[Part, None]:
    """These objects, fetched at once, line by line, so that none has to fit into memory."""
    with ExitStack() as held:
        sinks = [held.enter_context(spool.sink()) for _ in keys]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_body(store, *one)) for one in zip(keys, sinks, strict=True)]
        except* StoreError as lost:
            raise lost.exceptions[0] from None
        for key, task in zip(keys, tasks, strict=True):
            lines = _parts(base, key, task.result(), check)
            last = False
            while not last:
                part = await asyncio.to_thread(next, lines)
                yield part
                last = part.last


async def _body(store: Store, key: str, sink: SpoolSink) -> Body:
    await store.get(key, sink)
    return await sink.body()


def _parts(base: str, key: str, body: Body, check: _Check) -> Iterator[Part]:
    folder = key.removeprefix(base).split("/")[0]
    documents: list[dict[str, Any]] = []
    size, problem, cut = 0, None if body.length else "it is empty", False
    for number, (row, whole) in enumerate(_rows(body), 1):
        cut = not whole
        try:
            if row is None:
                raise ValueError(f"it is longer than {_LONGEST_LINE} bytes")
            documents.append(check(folder, loads(row, deepest=_DEEPEST)))
        except (ValueError, RecursionError) as error:
            problem = problem or f"line {number}: {_reason(error)}"
        size += len(row or b"")
        if len(documents) >= _PART or size >= _LONGEST_LINE:
            yield Part(key, documents, None, last=False)
            documents, size = [], 0
    if cut:
        problem = problem or "its last line is cut off"
    yield Part(key, documents, problem, last=True)


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


def _held(text: str) -> str:
    if holdable(text) != text:
        raise ValueError("holds what no database can")
    return text


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None and moment.astimezone(UTC):
            return text
    except OverflowError:
        pass
    raise ValueError("is no moment")


def _short(longest: int) -> Any:
    def check(text: str) -> str:
        if len(text.encode()) > longest:
            raise ValueError(f"is longer than {longest} bytes")
        return text

    return AfterValidator(check)


_Text = Annotated[str, AfterValidator(_held)]
_Id = Annotated[_Text, _short(LONGEST_ID), Field(min_length=1)]
_Name = Annotated[_Text, _short(200), Field(pattern="^[^,]+$")]
_Key = Annotated[_Text, _short(1500)]
_Moment = Annotated[str, AfterValidator(_moment)]
_Seconds = Annotated[float, Field(ge=-1e13, le=1e13, allow_inf_nan=False)]
_Size = Annotated[int, Field(ge=0, lt=1 << 44)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True)


class _Copy(_Line):
    store: _Name
    key: _Key
    archived_at: _Moment
    verified_at: _Moment | None
    size: _Size
    sha256: _Sha256


class _Medium(_Line):
    media_id: _Id
    state: Literal[tuple(State)]  # type: ignore[valid-type]
    content_type: _Text | None
    size: _Size | None
    sha256: _Sha256 | None
    duration: _Seconds | None
    attempts: Annotated[int, Field(ge=0, lt=1 << 31)]
    error: _Text | None
    stores: list[_Name] | None = None
    copies: list[_Copy]


class _Recording(_Line):
    source: _Name
    kind: _Name
    recording_id: _Id
    call_id: Annotated[_Text, _short(2500)] | None
    started_at: _Moment
    ended_at: _Moment | None
    duration: _Seconds | None
    direction: Literal[tuple(Direction)]  # type: ignore[valid-type]
    caller: _Text | None
    callee: _Text | None
    agent: _Text | None
    queue: _Text | None
    parties: list[dict[str, Any]]
    events: list[dict[str, Any]]
    attributes: dict[str, Any]
    flags: list[Annotated[str, Field(pattern="^[a-z_]+$")]] = []
    missing_since: _Moment | None = None
    media: list[_Medium]
    raw: dict[str, Any]


class _Verification(_Line):
    source: _Name
    store: _Name
    verified_at: _Moment
    keys: list[_Key]


class _Ledger(_Line):
    source: _Name
    kind: _Name
    start: _Moment
    covered: list[Annotated[list[_Moment], Field(min_length=2, max_length=2)]]
    cursor: _Text | None


def _recording(folder: str, value: Any) -> dict[str, Any]:
    """A line of a manifest. Raises ValueError where it is no recording of the folder's source."""
    told = _Recording.model_validate(value)
    _of(folder, told.source)
    ids = {medium.media_id for medium in told.media}
    if len(ids) < len(told.media):
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
    return dict(value)


def _named(copy: _Copy, told: _Recording, medium: _Medium) -> None:
    """Is the key the one that such a copy gets? (layout.media_key; its day stays when the call's start changes)"""
    stem, _, ext = copy.key.rpartition(".")
    tail = f"/{safe(told.recording_id)}/{safe(medium.media_id)}-{copy.sha256[:12]}"
    day = stem[: -len(tail)][-11:]
    prefix = stem[: -len(tail) - 11]
    if (
        not stem.endswith(tail)
        or not re.fullmatch("/[0-9]{4}/[0-9]{2}/[0-9]{2}", day)
        or not prefix.endswith(safe(told.source))
        or not re.fullmatch("[a-z0-9]+", ext)
        or {".", ".."} & set(prefix.split("/"))
    ):
        raise ValueError("a copy's key is not the one that it would get")


def _verification(folder: str, value: Any) -> dict[str, Any]:
    bare = _unsealed(value)
    _of(folder, _Verification.model_validate(bare).source)
    return bare


def _ledger(folder: str, value: Any) -> dict[str, Any]:
    bare = _unsealed(value)
    told = _Ledger.model_validate(bare)
    _of(folder, told.source)
    if any(datetime.fromisoformat(start) >= datetime.fromisoformat(end) for start, end in told.covered):
        raise ValueError("a span ends before it starts")
    return bare


def _unsealed(value: Any) -> dict[str, Any]:
    """The line as it was before :func:`_sealed`; first versions wrote none."""
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - said of the line, not of our arguments
    bare = {name: told for name, told in value.items() if name != "sha256"}
    if "sha256" in value and value["sha256"] != hashlib.sha256(line(bare)).hexdigest():
        raise ValueError("its SHA-256 is another")
    return bare


def _of(folder: str, source: str) -> None:
    if safe(source) != folder:
        raise ValueError("it tells of another source than its folder")


def _reason(error: Exception) -> str:
    """Without what was told: that may be long, and anything."""
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place or 'it'}: {first['msg']}"
    return "it is no JSON" if isinstance(error, UnicodeDecodeError | json.JSONDecodeError) else str(error)
