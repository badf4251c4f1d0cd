"""A store as an archive leaves it, made without an archive: 40 source-days, their audio, lists, certificates and log.

``python -m tests.proof.build FOLDER`` makes one to try docs/proof.md with; it prints the key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archiver.proof import certificates, handout, log, note
from archiver.proof.certificates import Gap, Leaf, Leaves, Listings, Medium
from archiver.proof.layout import media_key
from archiver.proof.log import Log
from archiver.proof.note import Checkpoint, FileKey

ORIGIN = "calls.example.com/archive"
FIRST = date(2024, 5, 14)
NIGHTS = 10
HOUR = timedelta(hours=1)


def key_of(seed: int) -> FileKey:
    return FileKey(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


class Call:
    """A recording: its handle is as good as random, and the same each time."""

    def __init__(self, source: str, day: date, number: int, state: str = "archived", media: int = 1) -> None:
        self.source, self.day, self.number, self.state = source, day, number, state
        self.started = midnight(day) + timedelta(minutes=90 * number)
        self.handle = sha256(f"{source} {day} {number}".encode()).hexdigest()[:24]
        self.bodies = [b"RIFF of %s" % f"{self.handle} {n}".encode() * 20 for n in range(media)]
        if state != "archived":
            self.bodies = []

    def key(self, n: int) -> str:
        digest = sha256(self.bodies[n]).hexdigest()
        return media_key("", self.source, self.started, f"call/{self.number}", f"part{n}", digest, "wav")

    def leaf(self, stores: list[str]) -> Leaf:
        about = certificates.about(certificates.disclosure(self.handle.encode()[:16], {"caller": "+16504668888"}))
        media = [Medium(size=len(body), sha256=sha256(body).hexdigest()) for body in self.bodies]
        media = media or [Medium(self.state)]
        flags = ["unchecked"] if self.number == 2 else []
        return Leaf(self.handle, self.state, about, flags, media, stores if self.bodies else [])


class Archive:
    """A folder that grows as a store does: nothing is overwritten."""

    def __init__(self, folder: Path, signer: FileKey | None = None) -> None:
        self.folder, self.log = folder, Log()
        self.signers = [signer or key_of(1)]
        self.previous: dict[str, str] = {}
        self.told: dict[tuple[str, date], tuple[int, list[str]]] = {}
        self.entries: list[bytes] = []
        self.stamp = 0
        self.leaves = Leaves
        #: Changes a certificate before it is signed: what a dishonest owner of the key could do.
        self.forge: Callable[[dict[str, Any]], None] = lambda told: None
        self.put_proof("verify.py", handout.script())
        self.put_proof("README.txt", handout.readme(ORIGIN, self.vkey))
        self.put_proof("keys/allowed_signers", note.allowed_signers(ORIGIN, self.signers[0].public).encode())

    @property
    def vkey(self) -> str:
        return note.vkey(ORIGIN, self.signers[0].public)

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)

    def put_proof(self, name: str, data: bytes) -> None:
        self.put(f"_proof/{name}", data)

    def certify(
        self,
        source: str,
        day: date,
        calls: list[Call],
        *,
        basis: Any = "window",
        gaps: list[Gap] | None = None,
        stores: list[str] | None = None,
        put_media: bool = True,
    ) -> None:
        """One certificate; what an earlier one of the day told of stays in its list."""
        revision, earlier = self.told.get((source, day), (0, []))
        leaves, parts = self.leaves(earlier), []
        for call in sorted(calls, key=lambda call: call.handle):
            parts.append(leaves.add(call.leaf(stores or ["main"])))
            for n, body in enumerate(call.bodies if put_media else []):
                if not (self.folder / call.key(n)).exists():
                    self.put(call.key(n), body)
        lines = b"".join([*parts, leaves.finish()])
        self.stamp += 1
        issued = certificates.issue(
            leaves,
            source=source,
            kind="chronicall",
            day=day,
            revision=revision + 1,
            previous=self.previous.get(source),
            issued_at=midnight(day) + 50 * HOUR + timedelta(minutes=self.stamp),
            software="archiver 0.1.0",
            settings=None,
            basis=basis,
            covered=(midnight(day), midnight(day) + 24 * HOUR),
            first_day=day == FIRST,
            gaps=gaps or [],
            listings=Listings(48, midnight(day), midnight(day) + 48 * HOUR, len(calls), 0, bytes(32)),
            folders={"/".join(call.key(0).split("/")[:-2]) for call in calls if call.bodies},
            stamp=f"01HY{self.stamp:022}",
        )
        told = certificates.json.loads(issued.entry)
        self.forge(told)
        entry = certificates._json(told)
        for name, data in issued.objects:
            self.put_proof(name, entry + b"\n" if name.endswith(".certificate.json") else data)
        if issued.leaves_name is not None:
            self.put_proof(issued.leaves_name, lines)
        self.previous[source] = sha256(entry).hexdigest()
        self.told[source, day] = (revision + 1, list(certificates.handles(lines.splitlines())))
        self.entries.append(entry)

    def checkpoint(self) -> Path:
        """Puts what was certified into the log, and signs it; the path of the checkpoint."""
        for name, data in self.log.append(self.entries):
            self.put_proof(name, data)
        self.entries = []
        checkpoint = Checkpoint(ORIGIN, self.log.size, self.log.root)
        name = log.checkpoint_name(self.log.size)
        self.put_proof(name, note.sign_checkpoint(checkpoint, self.signers))
        self.put_proof(f"{name}.sig", note.sshsig(checkpoint.text(), self.signers[0]))
        self.put_proof(f"{name}.tsa.tsr", b"a time stamp")
        return self.folder / "_proof" / name

    # -- to spoil it -------------------------------------------------------------------------------------------------

    def files(self, pattern: str) -> list[Path]:
        return sorted(path for path in self.folder.glob(pattern) if path.is_file())

    def list_of(self, source: str, day: date) -> Path:
        return self.files(f"_proof/days/{source}/{day:%Y/%m/%d}/*.leaves.jsonl")[-1]

    def audio_of(self, call: Call) -> Path:
        return self.folder / call.key(0)


def calls_of(source: str, day: date) -> list[Call]:
    """Of `hq` five a day, of `branch` three that end after midnight, of `paper` one, of `quiet` none."""
    if source == "hq":
        stored = [Call(source, day, n, media=2 - n % 2) for n in range(3)]
        return [*stored, Call(source, day, 3, "empty"), Call(source, day, 4, "gone")]
    if source == "branch":
        return [Call(source, day - timedelta(days=1), 15), *(Call(source, day, n) for n in (1, 2))]
    return [Call(source, day, 1)] if source == "paper" else []


SOURCES = ("hq", "branch", "paper", "quiet")


def night(archive: Archive, day: date, **other: Any) -> None:
    """A day of each source."""
    for source in SOURCES:
        archive.certify(source, day, calls_of(source, day), basis="ids" if source == "paper" else "window", **other)


def build(folder: Path, signer: FileKey | None = None, nights: int = NIGHTS) -> Archive:
    """40 source-days, a checkpoint a night; on the fifth, the third day of `hq` is certified again: a call moved."""
    archive = Archive(folder, signer)
    for n in range(nights):
        night(archive, FIRST + timedelta(days=n))
        if n == 4:
            day = FIRST + timedelta(days=2)
            archive.certify("hq", day, [*calls_of("hq", day)[1:], Call("hq", day, 9)])
        archive.checkpoint()
    return archive


if __name__ == "__main__":
    print(build(Path(sys.argv[1])).vkey)
