"""`bundle`: calls taken out of the archive as evidence, with all that a stranger needs to check them.

Streamed: a recording at a time from the first store that has its bytes whole, into a folder or a ZIP file. Written
beside its name and renamed at the end: under the name there is a whole bundle or none. No byte of a call is written
before the audit says that it is taken out. The order of these steps is the whole point: its more than 500 lines stay
together.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeVar

from ..audio.spool import Spool
from ..catalog import face
from ..catalog.catalog import Catalog, Document
from ..common.scope import Row
from ..common.words import number
from ..errors import ArchiverError, SpoolDown, StoreError
from ..model import CHUNK, Body, State
from ..proof import bundle, cover, note
from ..proof.bundle import Call, Heard
from ..stores.syncfs import syncfs
from ..sync.feeds import Outlet

#: Calls that are written down in the audit at a time, before the first of them is read.
PAGE = 100
#: Media that are on their way from the stores at once.
AHEAD = 4
#: Problems and notes that the cover page tells; all are told as they come.
MOST_TOLD = 1000
_T = TypeVar("_T")


class Proofs(Protocol):
    """What the archive signed about its recordings."""

    async def of(self, source: str, recording_id: str) -> Sequence[tuple[str, bytes]]:
        """Names and bytes of the files that prove what is archived of it; none: it is not certified yet.

        Raises ArchiverError where they can't be read.
        """


class Unproved:
    """The proofs of an archive that signs nothing."""

    async def of(self, source: str, recording_id: str) -> Sequence[tuple[str, bytes]]:  # noqa: ARG002
        return ()


@dataclass(frozen=True, slots=True)
class Signing:
    """Under which name and with which key a bundle is signed."""

    origin: str
    signer: note.Signer


class Decode(Protocol):
    """Makes a WAV of bytes that may be hostile."""

    async def __call__(self, source: Path, length: int, ext: str, content_type: str | None, target: Path) -> None:
        """Writes into ``target``, which is there. Raises ArchiverError where they can't be decoded."""


#: The clear bytes of a medium (its recording's JSON, its id), of a source whose media may be encrypted. Blocking.
Clear = Callable[[Document, str, bytes], bytes]


@dataclass(frozen=True, slots=True)
class _Read:
    """What came of reading a medium: its bytes, or why there are none."""

    body: Body | None = None
    key: str = ""
    why: str | None = None


@dataclass(slots=True, kw_only=True)
class Bundler:
    """Writes one bundle."""

    catalog: Catalog
    outlets: Mapping[str, Outlet]
    spool: Spool
    told: cover.Told
    #: Who takes the calls out, as the audit says it; source and recording are filled in here.
    event: face.Event
    proofs: Proofs = field(default_factory=Unproved)
    signing: Signing | None = None
    #: None: no WAV is wanted.
    decode: Decode | None = None
    #: By source, where its media may be encrypted.
    clear: Mapping[str, Clear] = field(default_factory=dict)
    #: Hears of each call that is written, and of what is missing or worth knowing, as it comes.
    on_call: Callable[[Call], None] = lambda _: None
    on_problem: Callable[[str], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    counts: cover.Counts = field(default_factory=cover.Counts)
    problems: int = 0
    _told_problems: list[str] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    #: How reading went, by store, and why those that can't be reached are asked no more.
    _reading: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    _lost: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.signing is not None:
            origin = self.signing.origin
            self.told = replace(self.told, origin=origin, vkey=note.vkey(origin, self.signing.signer.public))

    async def write(self, target: Path, calls: AsyncIterator[Document | str]) -> bool:
        """Write the bundle of these calls; a text in their place says which one there is not. False: there was none.

        A folder, or a ZIP file where the name ends so. Raises FileExistsError where the name is taken, OSError,
        SpoolDown, CatalogDown (CatalogReadOnly: nobody could write down that the calls are taken out).
        """
        await _thread(lambda: _demand_free(target))
        work = Path(
            await _thread(lambda: tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
        )
        try:
            zipped = target.suffix.lower() == ".zip"
            bag = await _thread(
                lambda: _Zip(work, bundle.base(target.stem), self.told.made_at) if zipped else _Folder(work)
            )
            with contextlib.closing(bag), ExitStack() as stack:
                tables = _Tables(work, stack)
                async for page in _pages(calls):
                    await self._page(bag, tables, work, page)
                if not self.counts.calls:
                    return False
                await self._finish(bag, tables)
                await _thread(bag.settle)
            await _thread(lambda: _name(bag.path, target))
            return True
        finally:
            await _thread(lambda: shutil.rmtree(work, ignore_errors=True))

    async def _page(self, bag: _Bag, tables: _Tables, work: Path, page: Sequence[Document | str]) -> None:
        for missing in page:
            if isinstance(missing, str):
                self._problem(missing)
        documents = [document for document in page if not isinstance(document, str)]
        await face.write_down(self.catalog, *(self._event(document) for document in documents))
        async with contextlib.aclosing(self._read_ahead(documents)) as readers:
            async for document, reads in readers:
                await self._call(bag, tables, work, document, reads)

    def _event(self, document: Document) -> face.Event:
        return replace(self.event, source=document["source"], recording_id=document["recording_id"])

    async def _read_ahead(self, documents: Sequence[Document]) -> AsyncGenerator[tuple[Document, list[_Read]]]:
        """Each call with its media read, in order, while those of the next ones are on their way."""
        slots = asyncio.Semaphore(AHEAD)

        async def one(stack: ExitStack, medium: Document) -> _Read:
            try:
                return await self._read(stack, medium)
            finally:
                slots.release()

        waiting: list[tuple[Document, ExitStack, list[asyncio.Task[_Read]]]] = []
        left = iter(documents)
        try:
            while True:
                while len(waiting) < AHEAD and (document := next(left, None)) is not None:
                    stack, tasks = ExitStack(), list[asyncio.Task[_Read]]()
                    waiting.append((document, stack, tasks))
                    for medium in document["media"]:
                        await slots.acquire()
                        tasks.append(asyncio.create_task(one(stack, medium)))
                if not waiting:
                    return
                document, stack, tasks = waiting[0]
                yield document, [await task for task in tasks]
                waiting.pop(0)
                await _thread(stack.close)
        finally:
            for _, stack, tasks in waiting:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                stack.close()

    async def _read(self, stack: ExitStack, medium: Document) -> _Read:
        """The bytes that count, from the first store that has them whole; valid until the stack is left."""
        if medium["state"] != State.ARCHIVED:
            return _Read(why=_not_archived(medium))
        sink = stack.enter_context(self.spool.sink())
        problems = []
        for copy in medium["copies"]:
            if copy["sha256"] != medium["sha256"]:
                continue
            store, key = copy["store"], copy["key"]
            outlet = self.outlets.get(store)
            if outlet is None or store in self._lost:
                problems.append(self._lost.get(store) or f"store {store} is not in the config")
                continue
            await sink.restart()
            try:
                await outlet.store.get(key, sink)
                body = await sink.body()
            except SpoolDown:
                raise
            except StoreError as error:
                problems.append(f"store {store}: {error}")
                if await self._reading[store].concerns_store(outlet.store, error, key):
                    self._lost[store] = problems[-1]
                continue
            self._reading[store].worked(key)
            if body.sha256 == medium["sha256"]:
                return _Read(body, key)
            problems.append(f"store {store} holds other bytes than were archived (`archiver verify` mends them)")
        return _Read(why="; ".join(problems) or "no store of this config holds it")

    async def _call(self, bag: _Bag, tables: _Tables, work: Path, document: Document, reads: Sequence[_Read]) -> None:
        place = self.counts.calls + 1
        name = f"{document['source']} {document['recording_id']}"
        media, bodies = [], []
        for at, (medium, read) in enumerate(zip(document["media"], reads, strict=True), 1):
            if read.body is None:
                media.append(Heard(media_id=medium["media_id"], why=read.why))
                if medium["state"] in (State.EMPTY, State.GONE):
                    self._note(f"{name} {medium['media_id']}: {read.why}")
                else:
                    self._problem(f"{name} {medium['media_id']}: {read.why}")
                continue
            file = bundle.audio_name(place, document, at, read.key)
            heard = Heard(
                media_id=medium["media_id"],
                file=file,
                size=read.body.length,
                sha256=read.body.sha256,
                content_type=medium["content_type"],
                channels=await _thread(partial(_channels, read.body)),
            )
            await bag.add(file, read.body.chunks, read.body.length, read.body.sha256)
            if self.decode is not None:
                heard = await self._wav(bag, work, document, heard, read)
            media.append(heard)
            bodies.append(read.body)
        proof = await self._proof(bag, place, document)
        call = Call(number=place, document=document, media=media, proof=proof)
        if bodies:
            made_at = self.told.made_at
            uuid = bundle.uuid8(made_at, f"{self.told.id}/{place}", self.told.origin or "archiver")
            vcon = bundle.vcon(call, made_at=made_at, uuid=uuid)
            length = sum(body.length for body in bodies) * 4 // 3
            await bag.add(
                bundle.vcon_name(place),
                lambda: bundle.vcon_chunks(vcon, [body.chunks(bundle.STEP) for body in bodies]),
                length,
            )
        await self._events(tables, document)
        self.counts.take(call)
        await _thread(lambda: tables.take(call))
        self.on_call(call)

    async def _events(self, tables: _Tables, document: Document) -> None:
        """What the audit says of it, newest first."""
        lines = bytearray()
        events = face.all_events(self.catalog, source=document["source"], recording_id=document["recording_id"])
        async for event in events:
            lines += bundle.to_json(event) + b"\n"
            if len(lines) > CHUNK:
                await _thread(partial(tables.audit.write, bytes(lines)))
                lines.clear()
        await _thread(partial(tables.audit.write, bytes(lines)))

    async def _wav(self, bag: _Bag, work: Path, document: Document, heard: Heard, read: _Read) -> Heard:
        """The same with a WAV beside it, unless it can't be decoded, which is a note."""
        assert self.decode is not None
        assert read.body is not None
        assert heard.file is not None
        source, target = work / "encoded", work / "decoded"
        ext, body = PurePosixPath(read.key).suffix.removeprefix("."), read.body
        try:
            path = body.path
            if (clear := self.clear.get(document["source"])) is not None:
                plain = await asyncio.to_thread(lambda: clear(document, heard.media_id, body.read()))
                await _thread(lambda: source.write_bytes(plain))
                path, ext = source, ext if sha256(plain).hexdigest() == body.sha256 else "bin"
                length = len(plain)
            else:
                length = body.length
            if path is None:
                path = source
                await _thread(lambda: source.write_bytes(body.read()))
            await _thread(lambda: target.write_bytes(b""))
            await self.decode(path, length, ext, heard.content_type, target)
            made = Body((await _thread(target.stat)).st_size, "", path=target)
            wav = f"{heard.file}.wav"
            await bag.add(wav, made.chunks, made.length)
        except StoreError:
            raise
        except ArchiverError as error:
            why = f"no WAV could be made of it: {error}"
            self._note(f"{document['source']} {document['recording_id']} {heard.media_id}: {why}")
            return heard
        finally:
            for file in (source, target):
                await _thread(partial(file.unlink, missing_ok=True))
        return replace(heard, wav=wav)

    async def _proof(self, bag: _Bag, place: int, document: Document) -> list[str]:
        """Names of the files that prove it, once they are in the bag."""
        source, recording_id = document["source"], document["recording_id"]
        try:
            files = await self.proofs.of(source, recording_id)
        except ArchiverError as error:
            self._problem(f"{source} {recording_id}: its proof can't be read: {error}")
            return []
        names = []
        for name, data in files:
            names.append(bundle.proof_name(place, name))
            await bag.add_bytes(names[-1], data)
        return names

    async def _finish(self, bag: _Bag, tables: _Tables) -> None:
        """The tables, the cover page, and what makes a bag of it."""
        for name, file in tables.files(self.counts):
            await bag.add(name, partial(_chunks, file), file.tell())
        if self.signing is not None:
            public = self.signing.signer.public
            line = note.allowed_signers(self.signing.origin, public)
            for name, text in (("allowed_signers", line), ("vkey", note.vkey(self.signing.origin, public) + "\n")):
                await bag.add_bytes(f"data/proof/{name}", text.encode())
        more = self.problems - len(self._told_problems)
        head = cover.head(self.told, self.counts, self._told_problems, more, self._notes).encode()
        foot = cover.foot(self.counts).encode()
        await bag.add(
            "data/cover.html",
            lambda: (chunk for part in ((head,), _chunks(tables.rows), (foot,)) for chunk in part),
            len(head) + tables.rows.tell() + len(foot),
        )
        told = self.told
        payload = f"{bag.bytes}.{bag.files}"
        await bag.add_bytes("bagit.txt", bundle.DECLARATION)
        fields = bundle.info(
            [
                ("Source-Organization", told.origin or ""),
                ("External-Identifier", told.id),
                ("External-Description", f"Call recordings; {number(self.counts.calls, 'call')}"),
                ("Bagging-Date", f"{told.made_at:%Y-%m-%d}"),
                ("Payload-Oxum", payload),
                ("Bag-Software-Agent", told.software),
                *((name, value or "") for name, value in (("Case", told.case), ("Reason", told.reason))),
                *((name, value or "") for name, value in (("Recipient", told.recipient), ("Purpose", told.purpose))),
            ]
        )
        await bag.add_bytes("bag-info.txt", fields)
        await bag.add(bundle.MANIFEST, partial(_chunks, bag.manifest), bag.manifest.tell())
        tags = bytes(bag.tags)
        await bag.add_bytes(bundle.TAG_MANIFEST, tags)
        if self.signing is not None:
            signature = await asyncio.to_thread(note.sshsig, tags, self.signing.signer)
            await bag.add_bytes(bundle.SIGNATURE, signature)

    def _problem(self, text: str) -> None:
        self.problems += 1
        if len(self._told_problems) < MOST_TOLD:
            self._told_problems.append(text)
        self.on_problem(text)

    def _note(self, text: str) -> None:
        if len(self._notes) < MOST_TOLD:
            self._notes.append(text)
        self.on_note(text)


def _channels(body: Body) -> int | None:
    return bundle.channels(next(body.chunks(64), b""))


def _not_archived(medium: Document) -> str:
    """Why there are no bytes, by the medium's state."""
    state = medium["state"]
    if state == State.EMPTY:
        return "the recorder holds no audio for it"
    if state == State.GONE:
        return "the recorder had deleted it before it could be archived"
    error = f": {medium['error']}" if medium["error"] else ""
    return f"it is not archived ({state}{error}); `archiver why` tells why"


async def _pages(calls: AsyncIterator[Document | str]) -> AsyncIterator[list[Document | str]]:
    page: list[Document | str] = []
    async for call in calls:
        page.append(call)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


class _Tables:
    """The files that grow with each call, until they go into the bag."""

    def __init__(self, work: Path, stack: ExitStack) -> None:
        def file() -> BinaryIO:
            return stack.enter_context(tempfile.TemporaryFile(dir=work))

        self.json, self.csv, self.dat, self.audit, self.rows = (file() for _ in range(5))
        self.json.write(b"[")
        self.csv.write(bundle.csv_heading())
        self.dat.write(bundle.dat_heading())
        self._calls = 0

    def take(self, call: Call) -> None:
        self.json.write((b",\n" if self._calls else b"\n") + bundle.to_json(bundle.recording(call)))
        self.csv.write(bundle.csv_rows(call))
        self.dat.write(bundle.dat_rows(call))
        if self._calls < cover.MOST_ROWS:
            self.rows.write(cover.row(call).encode())
        self._calls += 1

    def files(self, counts: cover.Counts) -> Iterable[tuple[str, BinaryIO]]:
        assert counts.calls == self._calls
        self.json.write(b"\n]\n")
        return (
            ("data/recordings.json", self.json),
            ("data/recordings.csv", self.csv),
            ("data/load.dat", self.dat),
            ("data/audit.jsonl", self.audit),
        )


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """What was written, from its beginning."""
    file.seek(0)
    while chunk := file.read(CHUNK):
        yield chunk


class _Bag:
    """Takes files, and lists them with their SHA-256 as BagIt wants it."""

    def __init__(self, work: Path) -> None:
        #: What is to have the bundle's name at the end.
        self.path = work / "bag"
        #: Of the payload.
        self.bytes = self.files = 0
        self.manifest: BinaryIO = tempfile.TemporaryFile(dir=work)  # noqa: SIM115
        self.tags = bytearray()

    async def add(self, name: str, chunks: Callable[[], Iterable[bytes]], size: int, digest: str | None = None) -> None:
        """A file; ``size``: about its bytes; ``digest``: what their SHA-256 must be. Raises OSError, StoreError."""
        await _thread(lambda: self._add(bundle.checked(name), chunks(), size, digest))

    async def add_bytes(self, name: str, data: bytes) -> None:
        """A small file. Raises OSError."""
        await self.add(name, lambda: (data,), len(data))

    def _add(self, name: str, chunks: Iterable[bytes], size: int, digest: str | None) -> None:
        hashed, length = sha256(), 0
        with self._opened(name, size) as file:
            for chunk in chunks:
                hashed.update(chunk)
                length += len(chunk)
                file.write(chunk)
        found = hashed.hexdigest()
        if digest is not None and found != digest:
            raise StoreError("the bytes changed while they were written")
        line = bundle.manifest_line(found, name)
        if name.startswith("data/"):
            self.bytes += length
            self.files += 1
            self.manifest.write(line)
        elif name not in (bundle.TAG_MANIFEST, bundle.SIGNATURE):
            self.tags += line

    def _opened(self, name: str, size: int) -> contextlib.AbstractContextManager[BinaryIO]:
        raise NotImplementedError

    def settle(self) -> None:
        """All of it is on the disk. Blocking."""
        raise NotImplementedError

    def close(self) -> None:
        self.manifest.close()


class _Folder(_Bag):
    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.path.mkdir()

    def _opened(self, name: str, size: int) -> contextlib.AbstractContextManager[BinaryIO]:  # noqa: ARG002
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")

    def settle(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(descriptor)
        finally:
            os.close(descriptor)


class _Zip(_Bag):
    """One folder in a ZIP file, as BagIt wants it; nothing is compressed: audio hardly can be."""

    def __init__(self, work: Path, base: str, made_at: datetime) -> None:
        super().__init__(work)
        self._base, self._made_at = base, made_at
        self._file = self.path.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def _opened(self, name: str, size: int) -> contextlib.AbstractContextManager[BinaryIO]:
        entry = zipfile.ZipInfo(f"{self._base}/{name}", self._made_at.timetuple()[:6])
        entry.external_attr = 0o644 << 16
        opened: contextlib.AbstractContextManager[BinaryIO] = self._zip.open(  # type: ignore[assignment]
            entry, "w", force_zip64=size > 1 << 30
        )
        return opened

    def settle(self) -> None:
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        super().close()
        # Of one that is given up it would write the directory, for nobody.
        self._zip.fp = None
        self._file.close()


def _demand_free(target: Path) -> None:
    """Raises OSError where the name is taken, or where nothing can be written."""
    if target.is_dir() and target.suffix.lower() != ".zip" and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, "there is something of that name", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))


def _name(path: Path, target: Path) -> None:
    """From now on it has its name."""
    _demand_free(target)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    path.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Not every file system can; the name is there all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _thread(step: Callable[[], _T]) -> _T:
    """To its end, also where the waiting is cancelled: nobody may clear away what a thread still writes to."""
    task: asyncio.Future[_T] = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
