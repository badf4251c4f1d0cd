"""What the archive signed about single recordings, as files that anyone can check without the archive."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Document
from ..proof.certificates import read_leaf
from ..proof.log import Log, checkpoint_name, inclusion, inclusion_names
from ..proof.note import Checkpoint, ProofError, allowed_signers, open_checkpoint, tlog_proof
from ..sync.feeds import Outlet
from .certify import disclosed
from .public_log import Identity, read_of

#: So many days' lists are kept.
_DAYS = 4


@dataclass(frozen=True, slots=True)
class _List:
    """A day's list: its lines, where each handle is, and the tiles of its tree."""

    lines: Sequence[bytes]
    places: Mapping[str, int]
    tiles: Mapping[str, bytes]

    @classmethod
    def read(cls, data: bytes) -> _List:
        lines = data.splitlines()
        tiles = {name: held for name, held in Log().append(lines) if "/entries/" not in name}
        return cls(lines, {read_leaf(line).recording: at for at, line in enumerate(lines)}, tiles)


class Proofs:
    """Of the certificates under the newest checkpoint."""

    def __init__(self, catalog: Catalog, spool: Spool, who: Identity, outlets: Mapping[str, Outlet]) -> None:
        self._catalog = catalog
        self._spool = spool
        self._who = who
        self._outlets = dict(outlets)
        self._lists: OrderedDict[str, _List] = OrderedDict()
        self._newest: tuple[bytes, Checkpoint] | None = None

    async def of(self, source: str, recording_id: str) -> Sequence[tuple[str, bytes]]:
        """Names and bytes of the files that prove what is archived of it; none: it is not certified yet.

        The same names for the same day's certificate, the checkpoint and the key. Raises ProofError, CatalogDown.
        """
        found = await self._catalog.certificate_for(source, recording_id)
        newest = await self._checkpoint()
        if found is None or newest is None:
            return ()
        document = (await self._catalog.documents([(source, recording_id)]))[source, recording_id][0]
        told = json.loads(found.entry)
        known = await self._list(told)
        at = known.places.get(document["handle"])
        if at is None:
            return ()
        handle, day = document["handle"], told["name"].replace("/", "-")
        note, checkpoint = newest
        path = await asyncio.to_thread(inclusion, at, len(known.lines), known.tiles.__getitem__)
        names = inclusion_names(found.position, checkpoint.size)
        tiles = {name: await self._read(name) for name in names}
        in_log = tlog_proof(found.position, inclusion(found.position, checkpoint.size, tiles.__getitem__), note)
        return [
            (f"{handle}.leaf.json", known.lines[at] + b"\n"),
            (f"{handle}.leaf-proof.json", _leaf_proof(at, len(known.lines), told, path)),
            (f"{handle}.disclosure.txt", disclosed(document).encode() + b"\n"),
            (f"{day}.certificate.json", found.entry + b"\n"),
            (f"{day}.tlog-proof", in_log),
            ("checkpoint", note),
            ("checkpoint.text", checkpoint.text()),
            ("checkpoint.sig", await self._read(f"{checkpoint_name(checkpoint.size)}.sig")),
            ("key.vkey", self._who.verifier.vkey.encode() + b"\n"),
            ("allowed_signers", allowed_signers(self._who.origin, self._who.verifier.public).encode()),
        ]

    async def _checkpoint(self) -> tuple[bytes, Checkpoint] | None:
        if self._newest is None:
            state = await self._catalog.log_state()
            if state.note is not None:
                self._newest = state.note, open_checkpoint(state.note, [self._who.verifier])
        return self._newest

    async def _list(self, told: Document) -> _List:
        name = f"{told['name']}.leaves.jsonl"
        if name not in self._lists:
            data = await self._read(name) if told["leaves"]["size"] else b""
            self._lists[name] = await asyncio.to_thread(_List.read, data)
            if len(self._lists) > _DAYS:
                self._lists.popitem(last=False)
        self._lists.move_to_end(name)
        return self._lists[name]

    async def _read(self, name: str) -> bytes:
        data, said = await read_of(self._outlets.values(), self._spool, name)
        if data is None:
            raise ProofError(f"no store gives _proof/{name}: {'; '.join(said) or 'it lies in none'}")
        return data


def _leaf_proof(at: int, size: int, told: Document, path: Sequence[bytes]) -> bytes:
    """That the line is in the day's list (RFC 6962, 2.1.1), as JSON."""
    proof = {
        "list": told["name"],
        "index": at,
        "size": size,
        "root": told["leaves"]["root"],
        "path": [base64.b64encode(part).decode() for part in path],
    }
    return json.dumps(proof, separators=(",", ":")).encode() + b"\n"
