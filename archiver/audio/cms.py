"""Decrypt what a recorder encrypted for its owner: CMS EnvelopedData (RFC 5652, 6; formerly PKCS #7).

RSA (PKCS #1 v1.5 or OAEP) wraps a session key, AES-CBC or 3DES-CBC hides the audio.

All cryptography is the package ``cryptography``'s; the envelope is read here, because its ``pkcs7_decrypt_der``
(version 50) opens three of the ten forms that recorders' envelopes have, and wants the recipient's certificate, where
owners often kept the key alone. It opens no envelope without content (the audio lies beside it), none of streamed
output (BER), none that names the key by its identifier, no OAEP, no AES-192, no 3DES. test_cms.py holds that table.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ArchiverError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

#: Where the parts lie: ``body`` the medium is an EnvelopedData itself · ``detached`` the envelope lacks its content,
#: which is the medium · ``key`` the envelope's content is the session key of an AES-CBC medium · ``auto`` looks.
Layout = Literal["auto", "body", "detached", "key"]

_ENVELOPED = bytes.fromhex("2a864886f70d010703")
_RSA = bytes.fromhex("2a864886f70d010101")
_OAEP = bytes.fromhex("2a864886f70d010107")
_SHA256 = bytes.fromhex("608648016503040201")
_DES3 = bytes.fromhex("2a864886f70d0307")
_AES = {bytes.fromhex(f"6086480165030401{n}"): size for n, size in (("02", 16), ("16", 24), ("2a", 32))}
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class Undecipherable(ArchiverError):
    """It can't be decrypted."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an EnvelopedData tells. ``recipients``: issuer (DER) and serial where named so, algorithm, wrapped key."""

    recipients: tuple[tuple[tuple[bytes, int] | None, bytes, bytes], ...]
    algorithm: bytes
    iv: bytes
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Key:
    """A private key, and the issuer and serial of the certificate that came with it."""

    private: RSAPrivateKey
    certificates: tuple[tuple[bytes, int], ...]


def decrypt(
    data: bytes,
    pkcs7: str | None,
    key: bytes,
    *,
    password: bytes | None = None,
    layout: Layout = "auto",
    iv: Literal["body", "zero"] = "body",
) -> bytes:
    """The clear bytes of an encrypted medium.

    ``pkcs7`` is the field of that name (base64, armoured or not). ``key`` (PEM) holds one or more private keys, old
    ones too, each with its certificate beside it or not. ``iv`` says where a medium of layout ``key`` has its
    initialisation vector: in its first block, or all zero. Raises Undecipherable; blocking.
    """
    keys = _keys(key, password)
    outer = _unarmoured(data)
    if layout == "body" or (layout == "auto" and _is_envelope(outer)):
        return _open(parse(outer), None, keys)
    if not pkcs7:
        raise Undecipherable("neither the medium nor its metadata hold a PKCS #7 envelope")
    envelope = parse(_unarmoured(pkcs7.encode()))
    if layout == "detached" or (layout == "auto" and envelope.content is None):
        return _open(envelope, data, keys)
    session = _open(envelope, None, keys)
    if len(session) not in _AES.values():
        raise Undecipherable(f"the envelope holds {len(session)} bytes, which is no AES key")
    return _cbc(b"", session, *((data[:16], data[16:]) if iv == "body" else (bytes(16), data)))


def key_pem(told: str) -> bytes:
    """A key that is told as PEM, or as the path of a PEM file. Raises Undecipherable; blocking."""
    try:
        return told.encode() if "-----BEGIN" in told else Path(told).read_bytes()
    except (OSError, ValueError):
        raise Undecipherable("the file of decrypt_key can't be read") from None


def parse(der: bytes) -> Envelope:
    """Read a ContentInfo that holds EnvelopedData, in DER or in BER with indefinite lengths. Raises Undecipherable."""
    try:
        kind, content = _children(_children(memoryview(der))[0][1])[:2]
        if bytes(kind[1]) != _ENVELOPED:
            raise Undecipherable("it is CMS, but no EnvelopedData")
        fields = _children(_children(content[1])[0][1])
        recipients = next(body for tag, body in fields if tag == 0x31)
        _, algorithm, *rest = _children([body for tag, body in fields if tag == 0x30][0])  # noqa: RUF015
        cipher, *parameters = _children(algorithm[1])
        return Envelope(
            tuple(_recipient(body) for tag, body in _children(recipients) if tag == 0x30),
            bytes(cipher[1]),
            bytes(parameters[0][1]) if parameters else b"",
            next((_octets(tag, body) for tag, body in rest if tag in {0x80, 0xA0}), None),
        )
    except (IndexError, ValueError, StopIteration, RecursionError):
        raise Undecipherable("it is no CMS EnvelopedData, or was cut off") from None


def _recipient(body: memoryview) -> tuple[tuple[bytes, int] | None, bytes, bytes]:
    _, who, algorithm, wrapped = _children(body)
    named = None
    if who[0] == 0x30:
        issuer, serial = _raw_children(who[1])
        named = (bytes(issuer[2]), int.from_bytes(serial[1], "big", signed=True))
    return named, bytes(algorithm[1]), bytes(wrapped[1])


def _raw_children(data: memoryview) -> list[tuple[int, memoryview, memoryview]]:
    """(tag, content, whole encoding) of each item."""
    items = []
    while data:
        tag, body, used = _item(data)
        items.append((tag, body, data[:used]))
        data = data[used:]
    return items


def _children(data: memoryview) -> list[tuple[int, memoryview]]:
    return [(tag, body) for tag, body, _ in _raw_children(data)]


def _item(data: memoryview) -> tuple[int, memoryview, int]:
    tag, length, head = data[0], data[1], 2
    if tag & 0x1F == 0x1F:
        raise ValueError("a tag of more than one byte")
    if length == 0x80:
        at = 2
        while data[at] or data[at + 1]:
            at += _item(data[at:])[2]
        return tag, data[2:at], at + 2
    if length > 0x80:
        head += length & 0x7F
        length = int.from_bytes(data[2:head], "big")
    if head + length > len(data):
        raise ValueError("cut off")
    return tag, data[head : head + length], head + length


def _octets(tag: int, body: memoryview) -> bytes:
    """An octet string, whole or (constructed, X.690 8.7.3) in pieces."""
    return b"".join(_octets(t, piece) for t, piece in _children(body)) if tag & 0x20 else bytes(body)


def _is_envelope(data: bytes) -> bool:
    try:
        parse(data)
    except Undecipherable:
        return False
    return True


def _unarmoured(data: bytes) -> bytes:
    """DER as it is; base64, PEM and S/MIME without what is around them."""
    if data[:1] == b"\x30":
        return data
    text = data
    if block := _PEM.search(data):
        text = b"".join(block[0].splitlines()[1:-1])
    elif data[:64].lower().startswith((b"mime-version:", b"content-type:")):
        text = data.replace(b"\r\n", b"\n").partition(b"\n\n")[2]
    try:
        return base64.b64decode(b"".join(text.split()).translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except (binascii.Error, ValueError):
        return data


@lru_cache(maxsize=4)
def _keys(pem: bytes, password: bytes | None) -> tuple[Key, ...]:
    """Every private key of the file (checking one takes longer than decrypting with it)."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise Undecipherable('decrypting needs the package "cryptography"; install it beside archiver') from None
    blocks = [(match[1], match[0]) for match in _PEM.finditer(pem)]
    keys: list[Key] = []
    try:
        certificates = [x509.load_pem_x509_certificate(block) for kind, block in blocks if kind == b"CERTIFICATE"]
        for kind, block in blocks:
            if not kind.endswith(b"PRIVATE KEY"):
                continue
            private = load_pem_private_key(block, password if b"ENCRYPTED" in block[:120] else None)
            if not isinstance(private, RSAPrivateKey):
                raise Undecipherable("decrypt_key is no RSA key")
            mine = [c for c in certificates if c.public_key() == private.public_key()]
            keys.append(Key(private, tuple((c.issuer.public_bytes(), c.serial_number) for c in mine)))
    except (ValueError, TypeError):
        raise Undecipherable("decrypt_key can't be read; is it PEM, and is its password right?") from None
    if not keys:
        raise Undecipherable("decrypt_key holds no private key in PEM form")
    return tuple(keys)


def _open(envelope: Envelope, detached: bytes | None, keys: tuple[Key, ...]) -> bytes:
    content = envelope.content if detached is None else detached
    if content is None:
        raise Undecipherable("the envelope has no content")
    # A wrong key may unwrap to a random one (implicit rejection): every pair is tried, and one result must remain.
    clear: set[bytes] = set()
    for named, algorithm, wrapped in envelope.recipients:
        for key in keys:
            if named and key.certificates and named not in key.certificates:
                continue
            session = _unwrap(key.private, algorithm, wrapped)
            if session is None:
                continue
            try:
                clear.add(_cbc(envelope.algorithm, session, envelope.iv, content))
            except ValueError:
                continue
    if len(clear) > 1:
        raise Undecipherable("more than one key seems to fit; put each key's certificate beside it")
    if not clear:
        raise Undecipherable("no key of decrypt_key opens it; was it encrypted for another (older) certificate?")
    return clear.pop()


def _unwrap(key: RSAPrivateKey, algorithm: bytes, wrapped: bytes) -> bytes | None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    named, *parameters = _children(memoryview(algorithm))
    how: padding.AsymmetricPadding = padding.PKCS1v15()
    if bytes(named[1]) == _OAEP:
        # RFC 4055, 4.1: SHA-1 unless the parameters say otherwise; both hashes alike, as every tool writes them.
        digest = hashes.SHA256() if any(_SHA256 in bytes(p[1]) for p in parameters) else hashes.SHA1()  # noqa: S303
        how = padding.OAEP(padding.MGF1(digest), digest, None)
    elif bytes(named[1]) != _RSA:
        return None
    try:
        return key.decrypt(wrapped, how)
    except ValueError:
        return None


def _cbc(algorithm: bytes, session: bytes, iv: bytes, content: bytes) -> bytes:
    """Decrypt and take the padding off. ``algorithm`` is an OID, or empty for AES of the key's own length."""
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives import padding
    from cryptography.hazmat.primitives.ciphers import Cipher, modes
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

    if algorithm and algorithm != _DES3 and algorithm not in _AES:
        raise Undecipherable("it is encrypted in a way other than AES-CBC and 3DES-CBC")
    if len(session) != (24 if algorithm == _DES3 else _AES.get(algorithm, len(session))):
        raise ValueError("a session key of another length")
    cipher = TripleDES(session) if algorithm == _DES3 else AES(session)
    try:
        decryptor = Cipher(cipher, modes.CBC(iv)).decryptor()
        unpadder = padding.PKCS7(cipher.block_size).unpadder()
        return unpadder.update(decryptor.update(content) + decryptor.finalize()) + unpadder.finalize()
    except ValueError:
        if algorithm:
            raise
        raise Undecipherable("the medium does not fit the session key of its envelope") from None
