"""From archived bytes to something that every browser plays, with its true length and a waveform.

The bytes are read from a store, compared with their SHA-256, and only then looked at, by a child process with limits
(decoder.py): hostile audio costs that child. What was made is kept by content (cache.py); of encrypted audio nothing is
kept, it lies in files without a name as long as somebody may hear it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from ..audio.spool import Spool
from ..common.words import reason_of
from ..errors import ArchiverError, SpoolDown, StoreError
from ..model import Body
from ..ports import Sink
from .cache import Cache

log = structlog.get_logger()

#: Part of the names in the cache: another number makes all anew.
VERSION = 1
#: Seconds that a child may take, and children at a time; so many more may wait.
PATIENCE, CHILDREN, QUEUE = 60.0, 2, 20
#: Seconds that "it can't be played" holds before it is tried again, and how many are remembered.
REMEMBERED, MOST_REMEMBERED = 600.0, 1000
#: Bytes that an answer of a child may have.
_LONGEST_ANSWER = 4 << 20

Read = Callable[[Sink], Awaitable[None]]
Clear = Callable[[bytes], bytes]


class NotPlayable(ArchiverError):
    """Why these bytes can't be heard here; they can still be downloaded."""


class Unavailable(ArchiverError):
    """They can't be had just now: the stores are away, or too much is asked at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An archived medium: what its bytes must be, and what they were taken for when they were archived."""

    sha256: str
    ext: str
    content_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Playable:
    """A file that a browser plays. Durations are in seconds, samples from -32768 to 32767."""

    path: Path
    content_type: str
    #: Of the archived bytes that it was made from.
    sha256: str
    as_is: bool
    duration: float
    #: Seconds that the container tells of and that could not be decoded.
    missing: float
    rate: int
    channels: int
    coding: str | None
    #: For each channel, the lowest and highest sample of each of (at most) 1,800 parts.
    peaks: list[list[list[int]]] = field(repr=False)
    #: Spans without sound.
    silences: list[list[float]] = field(repr=False)
    #: The open file of what has no name (encrypted audio): close it when nobody may hear it any more.
    handle: BinaryIO | None = field(default=None, repr=False)


class Playback:
    """Makes media playable, a few at a time; the same one once, however many ask."""

    def __init__(self, folder: Path, most: int, *, reserve: int | None = None) -> None:
        """``folder``: below data_dir; ``most``: bytes that the cache holds; ``reserve``: as the spool's."""
        self.cache = Cache(folder / "cache", most)
        # No memory: what comes from a store goes to a file, for the child reads it there.
        self._spool = Spool(folder / "spool", 0, reserve)
        self._children = asyncio.Semaphore(CHILDREN)
        self._making: dict[str, asyncio.Task[Playable]] = {}
        self._refused: dict[str, tuple[float, str]] = {}

    async def open(self) -> None:
        """Ready the folders. Raises OSError."""
        await asyncio.to_thread(self.cache.open)
        await asyncio.to_thread(self._spool.clear)

    async def close(self) -> None:
        """End what is under way, children included."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def playable(self, wanted: Wanted, copies: Sequence[tuple[str, Read]]) -> Playable:
        """From the cache, else from the first copy (name of its store, how to read it) whose bytes are right.

        Raises NotPlayable and Unavailable.
        """
        found = await asyncio.to_thread(self._cached, wanted.sha256)
        if found is not None:
            return found
        self._remembered(wanted.sha256)
        task = self._making.get(wanted.sha256)
        if task is None:
            if len(self._making) >= CHILDREN + QUEUE:
                raise Unavailable("too many calls are being made ready just now; try again in a moment")
            task = asyncio.create_task(self._kept(wanted, copies))
            self._making[wanted.sha256] = task
            task.add_done_callback(lambda _: self._making.pop(wanted.sha256, None))
        # Who goes away does not take it from those who wait for the same.
        return await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def original(self, wanted: Wanted, copies: Sequence[tuple[str, Read]]) -> AsyncIterator[Body]:
        """The archived bytes, compared with their SHA-256, until the context ends. Raises Unavailable."""
        with self._spool.sink() as sink:
            yield await self._verified(wanted, copies, sink)

    async def private(self, wanted: Wanted, copies: Sequence[tuple[str, Read]], clear: Clear) -> Playable:
        """The same for encrypted audio: ``clear`` decrypts it (it blocks), and nothing of it is kept.

        The caller closes the ``handle``. Raises NotPlayable and Unavailable.
        """
        self._remembered(wanted.sha256)
        async with self._children:
            with contextlib.ExitStack() as stack:
                sink = stack.enter_context(self._spool.sink())
                body = await self._verified(wanted, copies, sink)
                plain, made = await asyncio.to_thread(_two, self.cache)
                stack.callback(plain.unlink, missing_ok=True)
                stack.callback(made.unlink, missing_ok=True)
                try:
                    await asyncio.to_thread(lambda: plain.write_bytes(clear(body.read())))
                except ArchiverError as error:
                    raise self._refuse(wanted.sha256, str(error)) from error
                told = await self._decoded(wanted, plain, "bin", made)
                chosen = plain if told["as_is"] else made
                handle = await asyncio.to_thread(chosen.open, "rb")
        return _playable(told, wanted.sha256, Path(f"/proc/self/fd/{handle.fileno()}"), handle)

    def _remembered(self, sha256: str) -> None:
        refused = self._refused.get(sha256)
        if refused is not None and time.monotonic() - refused[0] < REMEMBERED:
            raise NotPlayable(refused[1])

    def _refuse(self, sha256: str, why: str) -> NotPlayable:
        if len(self._refused) >= MOST_REMEMBERED:
            self._refused.pop(next(iter(self._refused)))
        self._refused[sha256] = (time.monotonic(), why)
        return NotPlayable(why)

    def _cached(self, sha256: str) -> Playable | None:
        told = self.cache.find(sha256, f"{VERSION}.json")
        if told is None:
            return None
        try:
            answer = json.loads(told.read_bytes())
            sound = self.cache.find(sha256, _suffix(answer))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return _playable(answer, sha256, sound) if sound is not None else None

    async def _kept(self, wanted: Wanted, copies: Sequence[tuple[str, Read]]) -> Playable:
        async with self._children:
            with contextlib.ExitStack() as stack:
                sink = stack.enter_context(self._spool.sink())
                body = await self._verified(wanted, copies, sink)
                if body.path is None:
                    raise self._refuse(wanted.sha256, "it holds no audio")
                made, note = await asyncio.to_thread(_two, self.cache)
                stack.callback(made.unlink, missing_ok=True)
                stack.callback(note.unlink, missing_ok=True)
                told = await self._decoded(wanted, body.path, wanted.ext, made)
                chosen = body.path if told["as_is"] else made
                return await asyncio.to_thread(self._keep, wanted.sha256, told, chosen, note)

    def _keep(self, sha256: str, told: dict[str, Any], sound: Path, note: Path) -> Playable:
        try:
            path = self.cache.keep(sound, sha256, _suffix(told))
            note.write_text(json.dumps(told, separators=(",", ":")), "utf-8")
            self.cache.keep(note, sha256, f"{VERSION}.json")
        except OSError as error:
            raise Unavailable(f"the cache of the face can't be written: {reason_of(error)}") from error
        return _playable(told, sha256, path)

    async def _verified(self, wanted: Wanted, copies: Sequence[tuple[str, Read]], sink: Any) -> Body:
        """The first copy's bytes whose SHA-256 is the archived one. Raises Unavailable."""
        problems = []
        for store, read in copies:
            await sink.restart()
            try:
                await read(sink)
                body: Body = await sink.body()
            except SpoolDown as error:
                raise Unavailable(str(error)) from error
            except StoreError as error:
                problems.append(f"store {store}: {error}")
                continue
            if body.sha256 == wanted.sha256:
                return body
            log.error("playback.wrong_bytes", store=store, wanted=wanted.sha256, found=body.sha256)
            problems.append(f"store {store}: the bytes are not those that were archived; `archiver verify` tells more")
        raise Unavailable("; ".join(problems) or "no store of this config holds a copy of it")

    async def _decoded(self, wanted: Wanted, source: Path, ext: str, target: Path) -> dict[str, Any]:
        """What the child says, once the target holds what it decoded. Raises NotPlayable and Unavailable."""
        size = (await asyncio.to_thread(source.stat)).st_size
        job = {
            "source": str(source),
            "target": str(target),
            "size": size,
            "ext": ext,
            "content_type": wanted.content_type,
        }
        began = time.monotonic()
        try:
            told = await decode(job)
        except NotPlayable as error:
            log.warning("playback.refused", sha256=wanted.sha256, error=str(error))
            raise self._refuse(wanted.sha256, str(error)) from None
        log.info("playback.ready", sha256=wanted.sha256, seconds=round(time.monotonic() - began, 3))
        return told


def _two(cache: Cache) -> tuple[Path, Path]:
    return cache.temporary(), cache.temporary()


def _suffix(told: dict[str, Any]) -> str:
    return "original" if told["as_is"] else f"{VERSION}.wav"


def _playable(told: dict[str, Any], sha256: str, path: Path, handle: BinaryIO | None = None) -> Playable:
    return Playable(
        path=path,
        content_type=told["type"],
        sha256=sha256,
        as_is=told["as_is"],
        duration=told["duration"],
        missing=told["missing"],
        rate=told["rate"],
        channels=told["channels"],
        coding=told["coding"],
        peaks=told["peaks"],
        silences=told["silences"],
        handle=handle,
    )


async def decode(job: Mapping[str, Any]) -> dict[str, Any]:
    """One child, one job (see decoder.py); it is gone when this returns. Raises NotPlayable and Unavailable."""
    if importlib.util.find_spec("av") is None:
        raise NotPlayable('playing needs PyAV: pip install "archiver[web]"; until then download it')
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            "archiver.web.decoder",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LONGEST_ANSWER,
            cwd="/",
            # Nothing of ours: no credential, no proxy, no library path.
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:
        raise Unavailable(f"the decoder can't be started: {reason_of(error)}") from error
    try:
        async with asyncio.timeout(PATIENCE):
            answer, _ = await child.communicate(json.dumps(job).encode())
    except TimeoutError:
        raise NotPlayable(f"decoding it took longer than {PATIENCE:.0f} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        why = f"by {signal.Signals(-child.returncode).name}" if child.returncode < 0 else "with an error"
        raise NotPlayable(f"its decoder ended {why}: the audio is damaged, or made to do harm")
    try:
        told: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise NotPlayable("its decoder gave no answer") from None
    if "error" in told:
        raise NotPlayable(told["error"])
    return told
