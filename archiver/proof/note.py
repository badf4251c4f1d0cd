"""Signed notes and what is one: checkpoints of a log, proofs that lie by themselves, and SSH signatures beside them.

The formats are public: c2sp.org/signed-note, /tlog-checkpoint and /tlog-proof, and OpenSSH's PROTOCOL.sshsig. One
Ed25519 key signs both; a stranger checks the first with 20 lines of code, the second by ``ssh-keygen -Y verify``.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256, sha512
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from ..errors import ArchiverError, Scope

#: Of the SSH signatures (``ssh-keygen -Y verify -n archiver``).
NAMESPACE = "archiver"
#: A name that a note, an ``allowed_signers`` file and a shell all take as it is.
_NAME = re.compile(r"[^\s+*?!,\"'#\\\x00-\x20\x7f]{1,200}")
_SIGNATURE = re.compile("\u2014 ([^ +]+) ([A-Za-z0-9+/]+={0,2})")
_ED25519 = b"\1"
_PROOF = "c2sp.org/tlog-proof@v1"
#: So many signatures are looked at: what a stranger adds to a note costs nothing.
_MOST_SIGNATURES = 64


class ProofError(ArchiverError):
    """A proof does not hold."""

    scope = Scope.STORE


class Signer(Protocol):
    """Who can sign with an Ed25519 key: a file, an agent, a device."""

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes (RFC 8032)."""


class FileKey:
    """A private key that is held in memory."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> FileKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, data: bytes) -> FileKey:
        """From an OpenSSH or PKCS #8 file. Raises ValueError where it holds no Ed25519 key, or wants a passphrase."""
        try:
            load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
            key = load(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"not a private key that can be read without a passphrase: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(  # noqa: TRY004
                "a private key, but not of Ed25519: make one by `ssh-keygen -t ed25519 -N ''`"
            )
        return cls(key)

    def to_openssh(self) -> bytes:
        """The file's text, without a passphrase."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key under its name: what a *vkey* says."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """4 bytes that tell this key from others of the same name."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        """``name+id+key``, as c2sp.org/signed-note writes it."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Raises ValueError where it is none, or not of Ed25519."""
        try:
            name, key_id, text = vkey.strip().split("+", 2)
            key = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"not a verifier key (name+id+key): {vkey!r}") from None
        if key[:1] != _ED25519 or len(key) != 33:
            raise ValueError(f"not a verifier key of Ed25519: {vkey!r}")
        found = cls(check_origin(name), key[1:])
        if found.key_id.hex() != key_id:
            raise ValueError(f"the id in this verifier key is not its own: {vkey!r}")
        return found

    def verifies(self, message: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def check_origin(origin: str) -> str:
    """The same text. Raises ValueError where it can't name a log (spaces, plus signs, quotes, wildcards)."""
    if not _NAME.fullmatch(origin):
        raise ValueError(f"{origin!r} can't name a log: no spaces and none of + * ? ! , # \\ or quotes")
    return origin


def vkey(origin: str, public: bytes) -> str:
    """The verifier key of a log's public key (32 bytes)."""
    return Verifier(check_origin(origin), public).vkey


# -- notes -------------------------------------------------------------------------------------------------------------


def sign(text: bytes, name: str, signers: Sequence[Signer]) -> bytes:
    """The note: the text and a line of each signer. Raises ValueError where the text can't be one of a note."""
    if not text.endswith(b"\n") or any(c < 32 and c != 10 for c in text):
        raise ValueError("the text of a note ends in a newline and holds no other control character")
    lines = []
    for signer in signers:
        key_id = Verifier(check_origin(name), signer.public).key_id
        lines.append(f"\u2014 {name} {base64.b64encode(key_id + signer.sign(text)).decode()}\n")
    return text + b"\n" + "".join(lines).encode()


def verify(note: bytes, verifiers: Sequence[Verifier]) -> bytes:
    """The text of a note that at least one of these signed. Raises ProofError where none did, or where one is wrong."""
    head, middle, tail = note.rpartition(b"\n\n")
    try:
        head.decode()
        lines = tail.decode().split("\n")
    except UnicodeDecodeError:
        raise ProofError("not a signed note: it is no UTF-8") from None
    if not middle or lines.pop() != "" or not lines or len(lines) > _MOST_SIGNATURES:
        raise ProofError("not a signed note")
    if any(c < 32 and c != 10 for c in note):
        raise ProofError("not a signed note: it holds control characters")
    text, good = head + b"\n", False
    for line in lines:
        if not (found := _SIGNATURE.fullmatch(line)):
            raise ProofError("not a signed note: a line below the text is no signature")
        try:
            signature = base64.b64decode(found[2], validate=True)
        except binascii.Error:
            raise ProofError("not a signed note: a line below the text is no signature") from None
        for verifier in verifiers:
            if (verifier.name, verifier.key_id) == (found[1], signature[:4]):
                if not verifier.verifies(text, signature[4:]):
                    raise ProofError(f"the signature of {found[1]} is wrong")
                good = True
    if not good:
        raise ProofError("not signed by a key that is trusted here")
    return text


# -- checkpoints -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log's signature says: so many entries, under this root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    @classmethod
    def parse(cls, text: bytes) -> Checkpoint:
        """Raises ProofError where the text of a note is none. Lines below the third are not read."""
        try:
            origin, size, root = text.decode().split("\n")[:3]
            checkpoint = cls(origin, int(size), base64.b64decode(root, validate=True))
        except (ValueError, binascii.Error):
            raise ProofError("a signed note, but not a checkpoint") from None
        if not text.startswith(checkpoint.text()) or len(checkpoint.root) != 32 or checkpoint.size < 0:
            raise ProofError("a signed note, but not a checkpoint")
        return checkpoint


def sign_checkpoint(checkpoint: Checkpoint, signers: Sequence[Signer]) -> bytes:
    """The note: during a rotation with the lines of both keys."""
    return sign(checkpoint.text(), checkpoint.origin, signers)


def open_checkpoint(note: bytes, verifiers: Sequence[Verifier]) -> Checkpoint:
    """Raises ProofError where it is none, or not signed, or of another log."""
    checkpoint = Checkpoint.parse(verify(note, verifiers))
    if checkpoint.origin not in {verifier.name for verifier in verifiers}:
        raise ProofError(f"a checkpoint of another log: {checkpoint.origin}")
    return checkpoint


# -- proofs of one entry -----------------------------------------------------------------------------------------------


def tlog_proof(index: int, path: Sequence[bytes], checkpoint_note: bytes) -> bytes:
    """A file (``.tlog-proof``) that shows by itself that the log holds an entry: index, path, checkpoint."""
    lines = [_PROOF, f"index {index}", *(base64.b64encode(part).decode() for part in path), "", ""]
    return "\n".join(lines).encode() + checkpoint_note


def read_tlog_proof(proof: bytes) -> tuple[int, list[bytes], bytes]:
    """Index, path and checkpoint note of such a file; nothing is verified. Raises ProofError where it is none."""
    head, _, note = proof.partition(b"\n\n")
    try:
        first, *lines = head.decode().split("\n")
        if lines and lines[0].startswith("extra "):
            lines.pop(0)
        index = re.fullmatch("index (0|[1-9][0-9]{0,18})", lines[0])
        path = [base64.b64decode(line, validate=True) for line in lines[1:]]
    except (ValueError, IndexError, binascii.Error):
        index = None
    if index is None or first != _PROOF or not note or any(len(part) != 32 for part in path):
        raise ProofError("not a proof of an entry of a log")
    return int(index[1]), path, note


# -- SSH signatures ----------------------------------------------------------------------------------------------------


def sshsig(message: bytes, signer: Signer, namespace: str = NAMESPACE) -> bytes:
    """What ``ssh-keygen -Y sign`` writes for these bytes, in its armour."""
    public = _strings(b"ssh-ed25519", signer.public)
    head = _strings(namespace.encode(), b"", b"sha512")
    signature = signer.sign(b"SSHSIG" + head + _strings(sha512(message).digest()))
    blob = b"SSHSIG" + struct.pack(">I", 1) + _strings(public) + head + _strings(_strings(b"ssh-ed25519", signature))
    text = base64.b64encode(blob).decode()
    lines = [text[at : at + 70] for at in range(0, len(text), 70)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""]).encode()


def allowed_signers(
    origin: str, public: bytes, *, after: datetime | None = None, before: datetime | None = None
) -> str:
    """The line of an ``allowed_signers`` file (with its newline): who may sign, and from when to when."""
    options = [f'namespaces="{NAMESPACE}"']
    for name, moment in (("valid-after", after), ("valid-before", before)):
        if moment is not None:
            options.append(f'{name}="{moment.astimezone(UTC):%Y%m%d%H%M%SZ}"')
    key = base64.b64encode(_strings(b"ssh-ed25519", public)).decode()
    return f"{check_origin(origin)} {','.join(options)} ssh-ed25519 {key}\n"


def _strings(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)
