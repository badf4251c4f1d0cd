"""The log of certificates in the stores: who signs it, how far each store holds it, and how it goes on.

Every store holds the whole log below ``{prefix}_proof/``. Before anything is signed the newest checkpoint of each store
that answers is read, and the log goes on only from what is the beginning of all of them: a database that was restored
does not sign a second history while a store that holds the first one answers. A store that was away is given what it
lacks; what it holds beside that is told as two histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Entry, LogState
from ..errors import ObjectFailed, StoreConflict, StoreError, StoreMissing
from ..model import Body
from ..proof import handout
from ..proof.certificates import objects_of
from ..proof.log import (
    CHECKPOINTS,
    Log,
    checkpoint_name,
    edge_names,
    entries,
    entry_names,
    extends,
    extends_names,
    size_of,
)
from ..proof.note import (
    Checkpoint,
    FileKey,
    ProofError,
    Verifier,
    allowed_signers,
    open_checkpoint,
    sign_checkpoint,
    sshsig,
)
from ..settings.config import Config
from ..sync.feeds import Outlet

log = structlog.get_logger()

#: So many entries are read and written together.
PAGE = 4096
#: So many objects are put at once.
_AT_ONCE = 8


class BehindError(ProofError):
    """The stores hold more of the log than this database knows of."""


class NoStoreError(ProofError):
    """No store takes anything, or can be read."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The log's name and the key that signs it."""

    origin: str
    key: FileKey

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.origin, self.key.public)


def identity(config: Config, *, make: bool = True) -> Identity:
    """As the config says, else as it lies in data_dir/proof; made where there is none. Blocks.

    Raises ProofError where it can't be read, or is not there and may not be made.
    """
    folder = config.data_dir / "proof"
    try:
        origin = config.proof.origin or _kept(folder / "origin", _new_origin, make).decode().strip()
        if config.proof.key is not None:
            data, what = config.proof.key.get_secret_value().encode() + b"\n", "[proof] key"
        else:
            data, what = _kept(folder / "key", _new_key, make), str(folder / "key")
    except OSError as error:
        raise ProofError(f"the proof's key can't be read: {error}") from None
    try:
        return Identity(origin, FileKey.load(data))
    except ValueError as error:
        raise ProofError(f"{what}: {error}") from None


def _new_origin() -> bytes:
    return f"archiver/{secrets.token_hex(8)}\n".encode()


def _new_key() -> bytes:
    return FileKey.generate().to_openssh()


def _kept(path: Path, new: Callable[[], bytes], make: bool) -> bytes:
    """What lies there. Two processes that make it at once keep the same; made by root it is the data_dir's owner's."""
    if make and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.parent.parent.stat()
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(new())
                if os.geteuid() == 0:
                    os.chown(path.parent, owner.st_uid, owner.st_gid)
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    return path.read_bytes()


@dataclass(slots=True)
class Head:
    """How far a store holds the log."""

    outlet: Outlet
    checkpoint: Checkpoint | None = None
    note: bytes = b""

    @property
    def size(self) -> int:
        return self.checkpoint.size if self.checkpoint is not None else 0


class PublicLog:
    """The log, while this process is the one that writes it."""

    def __init__(self, catalog: Catalog, spool: Spool, who: Identity, outlets: Mapping[str, Outlet]) -> None:
        self.catalog = catalog
        self.who = who
        self.heads: dict[str, Head] = {}
        #: By store why it is left out of this run.
        self.away: dict[str, str] = {}
        self.spool = spool
        self._outlets = dict(outlets)
        self._size = self._entries = 0

    @property
    def size(self) -> int:
        """Entries that are known: those of the next checkpoint."""
        return self._entries

    async def open(self) -> None:
        """Read the newest checkpoint of every store, and be sure that it is ours and that the log is one.

        Raises ProofError where it is not, BehindError where this database is older than what the stores hold.
        """
        state = await self.catalog.log_state()
        for name, outlet in self._outlets.items():
            try:
                self.heads[name] = await self._head(outlet, state.size)
            except StoreError as error:
                self._leave_out(name, error)
        if not self.heads:
            raise NoStoreError(f"no store can be read: {'; '.join(self.away.values())}")
        newest = max(self.heads.values(), key=lambda head: head.size)
        await self._be_one(newest)
        self._size, self._entries = state.size, state.entries
        if state.adopt:
            await self._adopt(newest)
        elif 0 < newest.size < state.size:
            raise ProofError(
                f"the stores hold {newest.size} entries of the log, and {state.size} were put there: put back what was "
                f"taken away below _proof/"
            )
        else:
            await self._agree(newest, state)

    async def _head(self, outlet: Outlet, known: int) -> Head:
        """Its newest checkpoint. Raises StoreError, ProofError."""
        folder = f"{outlet.prefix}_proof/"
        sizes: list[int] = []
        # Most of the time it is the one that we put; what lies before that is listed only where it is not.
        for after in ([f"{folder}{CHECKPOINTS}{known:012}"[:-1]] if known else []) + [""]:
            found = outlet.store.list(f"{folder}{CHECKPOINTS}", after)
            sizes = [size async for one in found if (size := size_of(one.key.removeprefix(folder))) is not None]
            if sizes:
                break
        if not sizes:
            return Head(outlet)
        note = await self.read(outlet, checkpoint_name(max(sizes)))
        try:
            checkpoint = open_checkpoint(note, [self.who.verifier])
        except ProofError as error:
            raise ProofError(
                f"store {outlet.name}: the log that lies there is not ours: {error}; its first line names it; give "
                f"[proof] origin and key of that log, or use a store (or a prefix) without one"
            ) from None
        if checkpoint.size != max(sizes):
            raise ProofError(f"store {outlet.name}: the checkpoint named {max(sizes)} tells of {checkpoint.size}")
        return Head(outlet, checkpoint, note)

    async def _be_one(self, newest: Head) -> None:
        """Is the log of each store the beginning of the newest one? Raises ProofError."""
        if newest.checkpoint is None:
            return
        for name, head in self.heads.items():
            if head.checkpoint is None:
                continue
            wanted = extends_names(newest.size, head.size)
            tiles = {each: await self.read(newest.outlet, each) for each in wanted}
            if not extends(newest.checkpoint, head.checkpoint, tiles.__getitem__):
                raise ProofError(
                    f"two histories: the log in store {name} (size {head.size}) is not the beginning of the one in "
                    f"store {newest.outlet.name} (size {newest.size}); nothing is signed until one of them is put aside"
                )

    async def _agree(self, newest: Head, state: LogState) -> None:
        """Does this database know what the newest checkpoint tells of? Raises BehindError."""
        if newest.checkpoint is None or newest.size == 0:
            return
        behind = BehindError(
            f"this database knows {state.entries} entries of the log, and store {newest.outlet.name} holds "
            f"{newest.size}: it was restored, or is new; point [database] at an empty one, and "
            f"`archiver rebuild --store {newest.outlet.name}`"
        )
        if newest.size > state.entries:
            raise behind
        known = Log()
        if state.note:
            ours = open_checkpoint(state.note, [self.who.verifier])
            known = await self._opened(newest.outlet, ours)
        known.append(await self.catalog.entries(state.size, newest.size))
        if known.root != newest.checkpoint.root:
            raise behind
        if newest.size > state.size:
            # A crash between the store and the catalog.
            await self.catalog.advance(newest.size, newest.note)
            self._size = newest.size

    async def _adopt(self, newest: Head) -> None:
        """Take the log as the stores hold it: this catalog was made again from one of them."""
        await self.catalog.forget_entries(0)
        known = Log()
        for first in range(0, newest.size, PAGE):
            last = min(first + PAGE, newest.size)
            read = await self.read_all(newest.outlet, entry_names(first, last, newest.size))
            page = list(entries(first, last, newest.size, read))
            known.append(page)
            await self.catalog.take_entries(first, [Entry.read(entry) for entry in page])
        if newest.checkpoint is not None and known.root != newest.checkpoint.root:
            raise ProofError(f"store {newest.outlet.name}: the entries of the log are not those of its checkpoint")
        self._size = self._entries = newest.size
        await self.catalog.advance(newest.size, newest.note or None)

    async def add(self, found: Sequence[Entry]) -> None:
        """The log goes on with these; they are in the stores with the next :meth:`publish`."""
        await self.catalog.take_entries(self._entries, found)
        self._entries += len(found)

    async def publish(self) -> None:
        """Bring every store up to all that is known. Raises NoStoreError where none took it."""
        for name, head in list(self.heads.items()):
            try:
                await self._bring_up(head)
            except StoreError as error:
                self._leave_out(name, error)
        if not self.heads:
            raise NoStoreError(f"no store took the log: {'; '.join(self.away.values())}")

    async def _bring_up(self, head: Head) -> None:
        if head.size == self._entries:
            return
        at = await self._opened(head.outlet, head.checkpoint) if head.checkpoint is not None else Log()
        if at.size == 0:
            await self._hand_out(head.outlet)
        while at.size < self._entries:
            page = await self.catalog.entries(at.size, min(at.size + PAGE, self._entries))
            await self._with_lists(head, page)
            for name, data in await asyncio.to_thread(at.append, page):
                await self.put(head.outlet, name, data)
        checkpoint = Checkpoint(self.who.origin, at.size, at.root)
        note = sign_checkpoint(checkpoint, [self.who.key])
        name = checkpoint_name(at.size)
        await self.put(head.outlet, f"{name}.sig", sshsig(checkpoint.text(), self.who.key))
        await self.put(head.outlet, name, note)
        head.checkpoint, head.note = checkpoint, note
        if at.size > self._size:
            await self.catalog.advance(at.size, note)
            self._size = at.size

    async def _with_lists(self, head: Head, page: Sequence[bytes]) -> None:
        """What lies beside these certificates lies in this store too. Raises StoreError, of the first that failed."""
        few, failed = asyncio.Semaphore(_AT_ONCE), list[StoreError]()

        async def one(entry: bytes) -> None:
            async with few:
                try:
                    for name, is_list in objects_of(entry) if not failed else ():
                        if not is_list:
                            await self.put(head.outlet, name, entry + b"\n")
                        elif await head.outlet.store.stat(f"{head.outlet.prefix}_proof/{name}") is None:
                            await self._fetch_over(head, name)
                except StoreError as error:
                    failed.append(error)

        async with asyncio.TaskGroup() as group:
            for entry in page:
                group.create_task(one(entry))
        if failed:
            raise failed[0]

    async def _fetch_over(self, head: Head, name: str) -> None:
        problem: StoreError | None = None
        for other in self.heads.values():
            if other is head:
                continue
            with self.spool.sink() as sink:
                try:
                    await other.outlet.store.get(f"{other.outlet.prefix}_proof/{name}", sink)
                except StoreError as error:
                    problem = error
                    continue
                await head.outlet.store.put(f"{head.outlet.prefix}_proof/{name}", await sink.body())
                return
        if self.away or (problem is not None and not isinstance(problem, StoreMissing)):
            raise problem or StoreMissing(f"no store that answers holds _proof/{name}")
        # It is lost with the store that held it, and the log goes on: verify.py names it.
        log.error("proof.list_lost", key=f"_proof/{name}")

    async def _hand_out(self, outlet: Outlet) -> None:
        """The script and the key, for whoever has nothing but the store."""
        who = self.who.verifier
        texts = {
            "verify.py": await asyncio.to_thread(handout.script),
            "README.txt": handout.readme(self.who.origin, who.vkey),
            f"keys/{who.key_id.hex()}.vkey": who.vkey.encode() + b"\n",
            "keys/allowed_signers": allowed_signers(self.who.origin, who.public).encode(),
        }
        for name, data in texts.items():
            if await outlet.store.stat(f"{outlet.prefix}_proof/{name}") is None:
                await self.put(outlet, name, data)

    async def _opened(self, outlet: Outlet, checkpoint: Checkpoint) -> Log:
        read = await self.read_all(outlet, edge_names(checkpoint.size))
        return await asyncio.to_thread(Log.open, checkpoint.size, checkpoint.root, read)

    async def read_all(self, outlet: Outlet, names: Sequence[str]) -> Callable[[str], bytes]:
        return {name: await self.read(outlet, name) for name in names}.__getitem__

    async def read(self, outlet: Outlet, name: str) -> bytes:
        """An object below _proof/. Raises StoreError."""
        return await _read(outlet, self.spool, name)

    async def put(self, outlet: Outlet, name: str, data: bytes) -> None:
        """An object below _proof/. Raises StoreError, StoreConflict where another lies there."""
        await outlet.store.put(f"{outlet.prefix}_proof/{name}", await asyncio.to_thread(Body.of, data))

    async def put_everywhere(self, name: str, body: Body) -> None:
        """Into each store that takes part. Raises NoStoreError where none does; StoreError where this can't be put."""
        for store, head in list(self.heads.items()):
            try:
                await head.outlet.store.put(f"{head.outlet.prefix}_proof/{name}", body)
            except (ObjectFailed, StoreConflict):
                raise
            except StoreError as error:
                self._leave_out(store, error)
        if not self.heads:
            raise NoStoreError(f"no store took _proof/{name}: {'; '.join(self.away.values())}")

    async def read_anywhere(self, name: str) -> bytes | None:
        """From the first store that has it; None: no store has. Raises ProofError where one that may can't be read."""
        outlets = [head.outlet for head in self.heads.values()]
        data, said = await read_of(outlets, self.spool, name)
        if data is None and (said or self.away):
            raise ProofError(f"no store gives _proof/{name}: {'; '.join([*said, *self.away.values()])}")
        return data

    def _leave_out(self, name: str, error: StoreError) -> None:
        self.heads.pop(name, None)
        self.away[name] = f"store {name}: {error}"
        log.warning("proof.store_left_out", store=name, error=str(error))


async def drill(config: Config, catalog: Catalog, spool: Spool, outlet: Outlet) -> list[str]:
    """What a rebuilt catalog would lack of the log that this one knows; nothing: that store holds all of it.

    Reads every entry in the store; changes nothing. Raises StoreError, CatalogDown.
    """
    state = await catalog.log_state()
    if state.size == 0 or state.note is None:
        return []
    try:
        who = await asyncio.to_thread(identity, config, make=False)
        public = PublicLog(catalog, spool, who, {outlet.name: outlet})
        ours = open_checkpoint(state.note, [who.verifier])
        there = Log()
        for first in range(0, ours.size, PAGE):
            last = min(first + PAGE, ours.size)
            read = await public.read_all(outlet, entry_names(first, last, ours.size))
            there.append(list(entries(first, last, ours.size, read)))
        note = await public.read(outlet, checkpoint_name(ours.size))
        if there.root != ours.root or open_checkpoint(note, [who.verifier]) != ours:
            return [f"_proof/: the log in store {outlet.name} is not the one that this catalog knows"]
    except (ProofError, StoreMissing) as error:
        return [f"_proof/: {error}"]
    return []


async def read_of(outlets: Iterable[Outlet], spool: Spool, name: str) -> tuple[bytes | None, list[str]]:
    """An object below _proof/ of the first of these stores that gives it; else why those that may have it don't."""
    said = []
    for outlet in outlets:
        try:
            return await _read(outlet, spool, name), []
        except StoreMissing:
            continue
        except StoreError as error:
            said.append(f"store {outlet.name}: {error}")
    return None, said


async def _read(outlet: Outlet, spool: Spool, name: str) -> bytes:
    with spool.sink() as sink:
        await outlet.store.get(f"{outlet.prefix}_proof/{name}", sink)
        return await asyncio.to_thread((await sink.body()).read)
