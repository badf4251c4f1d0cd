"""Signed notes, checkpoints, SSH signatures: published examples, and what other people's tools say of ours."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.proof import note
from archiver.proof.note import Checkpoint, FileKey, ProofError, Verifier

ORIGIN = "calls.example.com/archive"
#: The example of c2sp.org/signed-note.
C2SP = (
    "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    (
        "This is an example message.\n\n— example.com/foo "
        "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
    ),
)
#: The one of Go's sumdb/note.
SUMDB = (
    "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    (
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    ),
)


def changed(text: bytes, at: int) -> bytes:
    return text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]


def key_of(seed: int) -> FileKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return FileKey(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


@pytest.mark.parametrize(("vkey", "text"), [C2SP, SUMDB])
def test_the_published_notes_verify_and_nothing_that_is_near_them(vkey: str, text: str):
    signed, verifier = text.encode(), Verifier.parse(vkey)
    assert verifier.vkey == vkey
    assert note.verify(signed, [verifier]) == signed.rpartition(b"\n\n")[0] + b"\n"
    with pytest.raises(ProofError, match="signature of"):
        note.verify(changed(signed, 3), [verifier])
    with pytest.raises(ProofError, match="not signed by a key that is trusted"):
        note.verify(signed, [Verifier(verifier.name, bytes(32))])


def test_the_published_private_key_signs_the_published_note():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
    signer = FileKey(Ed25519PrivateKey.from_private_bytes(seed))
    text = SUMDB[1].encode().rpartition(b"\n\n")[0] + b"\n"
    assert note.sign(text, "PeterNeumann", [signer]) == SUMDB[1].encode()


@given(st.text(st.characters(blacklist_characters="", blacklist_categories=("Cs", "Cc")), max_size=80))
def test_any_text_that_a_note_may_hold_comes_back(text: str):
    key = key_of(1)
    body = (text + "\n").encode()
    signed = note.sign(body, ORIGIN, [key])
    assert note.verify(signed, [Verifier(ORIGIN, key.public)]) == body


@pytest.mark.parametrize("text", [b"", b"no newline", b"a\r\n", b"a\tb\n", b"nul\0\n"])
def test_what_no_note_may_hold_is_not_signed(text: bytes):
    with pytest.raises(ValueError, match="text of a note"):
        note.sign(text, ORIGIN, [key_of(1)])


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        b"text\n\nno signature\n",
        "text\n\n— calls.example.com/archive ====\n".encode(),
        b"\xff\n\n\xe2\x80\x94 a b\n",
        "text\n\n— a b".encode(),
        b"text\n\n" + "— x AAAAAAAA\n".encode() * 100,
    ],
)
def test_what_is_no_note_is_refused(broken: bytes):
    with pytest.raises(ProofError):
        note.verify(broken, [Verifier(ORIGIN, key_of(1).public)])


def test_a_wrong_line_of_a_trusted_key_spoils_a_note_and_one_of_a_stranger_does_not():
    first, second, stranger = key_of(1), key_of(2), key_of(3)
    text = Checkpoint(ORIGIN, 7, bytes(32)).text()
    both = note.sign(text, ORIGIN, [first, second])
    trusted = [Verifier(ORIGIN, first.public), Verifier(ORIGIN, second.public)]
    assert note.verify(both, trusted) == note.verify(both, trusted[:1]) == note.verify(both, trusted[1:]) == text
    forged = note.sign(b"other\n", ORIGIN, [second]).split(b"\n\n")[1]
    half = note.sign(text, ORIGIN, [first]) + forged
    assert note.verify(half, trusted[:1]) == text
    with pytest.raises(ProofError, match="wrong"):
        note.verify(half, trusted)
    added = note.sign(text, ORIGIN, [first]) + note.sign(text, "witness.example", [stranger]).split(b"\n\n")[1]
    assert note.verify(added, trusted) == text


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "a+b",
        "example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/fop+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903a+AukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903a+Aeky",
        "exam ple+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ],
)
def test_what_is_no_verifier_key_is_refused(vkey: str):
    with pytest.raises(ValueError, match=r"verifier key|name a log"):
        Verifier.parse(vkey)


def test_a_checkpoint_is_read_as_it_was_written():
    key = key_of(1)
    checkpoint = Checkpoint(ORIGIN, 20852163, bytes(range(32)))
    signed = note.sign_checkpoint(checkpoint, [key])
    assert note.open_checkpoint(signed, [Verifier(ORIGIN, key.public)]) == checkpoint
    assert signed.startswith(b"calls.example.com/archive\n20852163\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n")


@pytest.mark.parametrize(
    "text",
    [
        b"origin\n",
        b"origin\n1\n",
        b"origin\n01\n" + base64.b64encode(bytes(32)) + b"\n",
        b"origin\n-1\n" + base64.b64encode(bytes(32)) + b"\n",
        b"origin\n+1\n" + base64.b64encode(bytes(32)) + b"\n",
        b"origin\n1\n" + base64.b64encode(bytes(31)) + b"\n",
        b"origin\nfive\n" + base64.b64encode(bytes(32)) + b"\n",
        b"origin\n1\nno base64\n",
    ],
)
def test_a_signed_note_that_is_no_checkpoint_is_refused(text: bytes):
    with pytest.raises(ProofError, match="not a checkpoint"):
        Checkpoint.parse(text)


def test_a_proof_of_an_entry_is_read_as_it_was_written():
    signed = note.sign_checkpoint(Checkpoint(ORIGIN, 9, bytes(32)), [key_of(1)])
    proof = note.tlog_proof(5, [bytes(32), b"\1" * 32], signed)
    assert proof.startswith(b"c2sp.org/tlog-proof@v1\nindex 5\nAAAA")
    assert note.read_tlog_proof(proof) == (5, [bytes(32), b"\1" * 32], signed)
    assert note.read_tlog_proof(note.tlog_proof(0, [], signed)) == (0, [], signed)
    with_extra = proof.replace(b"@v1\n", b"@v1\nextra QUJD\n")
    assert note.read_tlog_proof(with_extra) == note.read_tlog_proof(proof)
    for broken in (b"", proof[:30], proof.replace(b"index 5", b"index 05"), proof.replace(b"@v1", b"@v2")):
        with pytest.raises(ProofError, match="not a proof"):
            note.read_tlog_proof(broken)


# -- other people's tools ----------------------------------------------------------------------------------------------


def ssh_keygen(*words: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *words], input=text, capture_output=True, timeout=60)


def ssh_verify(folder: Path, text: bytes, *, namespace: str = note.NAMESPACE, at: str = "") -> bool:
    words = ["-Y", "verify", "-f", str(folder / "allowed_signers"), "-I", ORIGIN, "-n", namespace]
    return (
        ssh_keygen(
            *words, "-s", str(folder / "sig"), *(["-O", f"verify-time={at}"] if at else []), text=text
        ).returncode
        == 0
    )


def test_ssh_keygen_verifies_the_signature_and_refuses_another_text_or_namespace(tmp_path: Path):
    key, text = key_of(1), Checkpoint(ORIGIN, 7, bytes(32)).text()
    (tmp_path / "allowed_signers").write_text(note.allowed_signers(ORIGIN, key.public))
    (tmp_path / "sig").write_bytes(note.sshsig(text, key))
    assert ssh_verify(tmp_path, text)
    assert not ssh_verify(tmp_path, text.replace(b"7", b"8"))
    assert not ssh_verify(tmp_path, text, namespace="file")
    (tmp_path / "allowed_signers").write_text(note.allowed_signers(ORIGIN, key_of(2).public))
    assert not ssh_verify(tmp_path, text)


def test_ssh_keygen_refuses_a_key_outside_of_its_time(tmp_path: Path):
    key, text = key_of(1), b"text\n"
    span = {"after": datetime(2026, 1, 1, tzinfo=UTC), "before": datetime(2027, 1, 1, tzinfo=UTC)}
    (tmp_path / "allowed_signers").write_text(note.allowed_signers(ORIGIN, key.public, **span))
    (tmp_path / "sig").write_bytes(note.sshsig(text, key))
    assert ssh_verify(tmp_path, text, at="20260601Z")
    assert not ssh_verify(tmp_path, text, at="20251231Z")
    assert not ssh_verify(tmp_path, text, at="20270102Z")


def test_the_ssh_signature_is_byte_for_byte_what_ssh_keygen_makes(tmp_path: Path):
    key = key_of(1)
    private = tmp_path / "key"
    private.write_bytes(key.to_openssh())
    private.chmod(0o600)
    made = ssh_keygen("-Y", "sign", "-f", str(private), "-n", note.NAMESPACE, text=b"the same bytes\n")
    assert made.stdout == note.sshsig(b"the same bytes\n", key), made.stderr


def test_a_key_made_by_ssh_keygen_is_read_and_one_of_another_kind_or_with_a_passphrase_is_not(tmp_path: Path):
    for name, *words in (("good", "-t", "ed25519"), ("rsa", "-t", "rsa"), ("locked", "-t", "ed25519", "-N", "secret")):
        ssh_keygen("-q", "-f", str(tmp_path / name), *([] if "-N" in words else ["-N", ""]), *words)
    key = FileKey.load((tmp_path / "good").read_bytes())
    public = (tmp_path / "good.pub").read_text().split()[1]
    assert public in note.allowed_signers(ORIGIN, key.public)
    assert FileKey.load(key.to_openssh()).public == key.public
    with pytest.raises(ValueError, match="not of Ed25519"):
        FileKey.load((tmp_path / "rsa").read_bytes())
    with pytest.raises(ValueError, match="without a passphrase"):
        FileKey.load((tmp_path / "locked").read_bytes())
    with pytest.raises(ValueError, match="not a private key"):
        FileKey.load(b"nonsense")


def test_openssl_verifies_the_line_of_the_note_cut_out_with_sed_and_base64(tmp_path: Path):
    key = key_of(1)
    signed = note.sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)), [key])
    (tmp_path / "checkpoint").write_bytes(signed)
    (tmp_path / "vkey").write_text(note.vkey(ORIGIN, key.public))
    script = """
    sed '/^$/,$d' checkpoint > text
    sed -n 's/^— [^ ]* //p' checkpoint | base64 -d | tail -c +5 > signature
    printf '\\060\\052\\060\\005\\006\\003\\053\\145\\160\\003\\041\\000' > key.der
    cut -d+ -f3- vkey | base64 -d | tail -c 32 >> key.der
    openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey key.der -in text -sigfile signature
    """
    good = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Verified Successfully" in good.stdout, good.stderr
    (tmp_path / "checkpoint").write_bytes(signed.replace(b"\n7\n", b"\n8\n"))
    bad = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert bad.returncode != 0
