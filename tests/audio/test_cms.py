"""Encrypted media, with keys and certificates made here; envelopes by two writers (cryptography, openssl)."""

from __future__ import annotations

import base64
import builtins
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.audio.cms import Undecipherable, decrypt, parse

pytest.importorskip("cryptography", minversion="44")

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES, AES256
from cryptography.hazmat.primitives.serialization import pkcs7

AUDIO = b"ID3\x04" + os.urandom(9_001)
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")


class Owner:
    """A key and its self-signed certificate."""

    def __init__(self, name: str, key: rsa.RSAPrivateKey | None = None) -> None:
        self.key = key or rsa.generate_private_key(65537, 2048)
        who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder(who, who, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.public = self.certificate.public_bytes(serialization.Encoding.PEM)

    def pem(self, password: bytes | None = None) -> bytes:
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)

    def envelope(self, data: bytes) -> bytes:
        return (
            pkcs7.PKCS7EnvelopeBuilder()
            .set_data(data)
            .set_content_encryption_algorithm(AES256)
            .add_recipient(self.certificate)
            .encrypt(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
        )


OWNER, OTHER = Owner("recordings 2024"), Owner("recordings 2019")


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8 or 1, "big")
    return bytes([tag]) + (bytes([len(body)]) if len(body) < 128 else bytes([128 + len(size)]) + size) + body


def detached(envelope: bytes) -> tuple[bytes, bytes]:
    """The envelope without its content, and the content."""
    content = parse(envelope).content
    assert content is not None
    at = envelope.index(content)
    inner = envelope[: at - len(der(0x80, content)) + len(content)]
    # Every length around the content shrinks: build the four layers again from what stays the same.
    enveloped = inner[inner.index(bytes.fromhex("06092a864886f70d010703")) + 11 :]
    fields = enveloped[enveloped.index(b"\x02\x01\x00") :]
    split = fields.rindex(bytes.fromhex("06092a864886f70d010701"))
    head = fields[: fields.rindex(b"\x30", 0, split)]
    return (
        der(
            0x30,
            bytes.fromhex("06092a864886f70d010703"),
            der(0xA0, der(0x30, head, der(0x30, fields[split:]))),
        ),
        content,
    )


def aes(session: bytes, iv: bytes, data: bytes) -> bytes:
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(AES(session), modes.CBC(iv)).encryptor()
    return encryptor.update(padder.update(data) + padder.finalize()) + encryptor.finalize()


def test_a_medium_that_is_an_envelope_itself_is_opened():
    assert decrypt(OWNER.envelope(AUDIO), None, OWNER.pem()) == AUDIO


@pytest.mark.parametrize("armour", ["pem", "base64", "smime"])
def test_an_armoured_envelope_is_opened(armour):
    text = base64.encodebytes(OWNER.envelope(AUDIO))
    data = {
        "pem": b"-----BEGIN PKCS7-----\n" + text + b"-----END PKCS7-----\n",
        "base64": text,
        "smime": b"MIME-Version: 1.0\r\nContent-Type: application/pkcs7-mime\r\n\r\n" + text,
    }[armour]
    assert decrypt(data, None, OWNER.pem()) == AUDIO


def test_an_envelope_without_its_content_opens_the_medium():
    envelope, content = detached(OWNER.envelope(AUDIO))
    assert parse(envelope).content is None
    assert decrypt(content, base64.b64encode(envelope).decode(), OWNER.pem()) == AUDIO


@pytest.mark.parametrize("size", [16, 24, 32])
@pytest.mark.parametrize("iv", ["body", "zero"])
def test_an_envelope_that_holds_the_session_key_opens_the_medium(size, iv):
    session, vector = os.urandom(size), os.urandom(16) if iv == "body" else bytes(16)
    medium = (vector if iv == "body" else b"") + aes(session, vector, AUDIO)
    field = base64.b64encode(OWNER.envelope(session)).decode()
    assert decrypt(medium, field, OWNER.pem(), layout="key", iv=iv) == AUDIO


def test_the_layout_is_found_by_looking():
    session, vector = os.urandom(32), os.urandom(16)
    field = base64.b64encode(OWNER.envelope(session)).decode()
    assert decrypt(vector + aes(session, vector, AUDIO), field, OWNER.pem()) == AUDIO


def test_every_old_key_is_tried():
    assert decrypt(OTHER.envelope(AUDIO), None, OWNER.pem() + OTHER.pem()) == AUDIO


def test_a_key_whose_certificate_stands_beside_it_opens_only_what_names_it():
    bundle = OWNER.pem() + OWNER.public + OTHER.pem() + OTHER.public
    assert decrypt(OTHER.envelope(AUDIO), None, bundle) == AUDIO
    renewed = Owner("renewed", OWNER.key)
    with pytest.raises(Undecipherable, match="no key"):
        decrypt(OWNER.envelope(AUDIO), None, OWNER.pem() + renewed.public)


def test_a_key_under_a_password_is_opened_with_it():
    assert decrypt(OWNER.envelope(AUDIO), None, OWNER.pem(b"s3cret"), password=b"s3cret") == AUDIO
    with pytest.raises(Undecipherable, match="password") as caught:
        decrypt(OWNER.envelope(AUDIO), None, OWNER.pem(b"s3cret"), password=b"wrong-one")
    assert "wrong-one" not in str(caught.value)


def test_the_wrong_key_is_said():
    with pytest.raises(Undecipherable, match="no key"):
        decrypt(OWNER.envelope(AUDIO), None, OTHER.pem())


@pytest.mark.parametrize("key", [b"", b"no pem at all", OWNER.public])
def test_a_file_without_a_key_is_said(key):
    with pytest.raises(Undecipherable, match="private key"):
        decrypt(OWNER.envelope(AUDIO), None, key)


def test_clear_audio_is_not_taken_for_an_envelope():
    with pytest.raises(Undecipherable, match="neither"):
        decrypt(AUDIO, None, OWNER.pem())


def test_the_page_s_own_example_of_an_envelope_is_refused_cleanly():
    with pytest.raises(Undecipherable):
        decrypt(AUDIO, "SJOSSWKGUEKSHSVHSU", OWNER.pem())


def test_a_cut_medium_is_said():
    with pytest.raises(Undecipherable):
        decrypt(OWNER.envelope(AUDIO)[:-20], None, OWNER.pem(), layout="body")


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=80), st.integers(0, 700))
def test_no_bytes_raise_anything_else(noise, at):
    """Envelopes come from elsewhere: whatever they hold, the answer is one error."""
    whole = OWNER.envelope(b"x" * 100)
    for data in (noise, b"\x30" + noise, whole[:at] + noise + whole[at + len(noise) :], b"\x30\x80" * 40 + noise):
        try:
            decrypt(data, None, OTHER.pem(), layout="body")
        except Undecipherable:
            continue
        pytest.fail("it opened")


@pytest.mark.parametrize("nested", [b"\x30\x80" * 30_000, b"\x24\x80" * 30_000, b"\xa0\x80" * 30_000])
def test_no_depth_of_nesting_does_harm(nested):
    whole = OWNER.envelope(b"x" * 100)
    content = parse(whole).content
    for data in (nested, whole.replace(b"\x80" + bytes([len(content)]) + content, nested)):
        with pytest.raises(Undecipherable):
            parse(data)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Undecipherable, match="install"):
        decrypt(b"", None, b"")


#: How openssl encrypts, and whether the library opens the envelope as a whole, given the certificate too.
BY_OPENSSL = {
    "-aes-128-cbc": True,
    "-aes-192-cbc": False,
    "-aes-256-cbc": True,
    "-des3": False,
    "-aes-256-cbc -stream": False,
    "-aes-256-cbc -keyid": False,
    "-aes-256-cbc -keyopt rsa_padding_mode:oaep": False,
    "-aes-256-cbc -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256": False,
}


def by_the_library(envelope: bytes) -> bool:
    try:
        return pkcs7.pkcs7_decrypt_der(envelope, OWNER.certificate, OWNER.key, []) == AUDIO
    except (ValueError, UnsupportedAlgorithm):
        return False


def test_the_library_opens_what_it_wrote_and_nothing_without_content():
    envelope = OWNER.envelope(AUDIO)
    assert by_the_library(envelope)
    assert not by_the_library(detached(envelope)[0])


@openssl
@pytest.mark.parametrize(("how", "also_by_the_library"), BY_OPENSSL.items())
def test_what_openssl_encrypts_is_opened(tmp_path: Path, how, also_by_the_library):
    """Streamed output is BER with indefinite lengths and an octet string in pieces.

    Where the library alone opens more than it did, there is less for us to read.
    """
    (tmp_path / "cert.pem").write_bytes(OWNER.public)
    (tmp_path / "clear").write_bytes(AUDIO)
    cipher, *more = how.split()
    command = f"openssl cms -encrypt -binary -in clear -outform DER -out secret {cipher} -recip cert.pem"
    subprocess.run([*command.split(), *more], cwd=tmp_path, check=True, capture_output=True)
    secret = (tmp_path / "secret").read_bytes()
    assert decrypt(secret, None, OTHER.pem() + OWNER.pem()) == AUDIO
    assert by_the_library(secret) is also_by_the_library
