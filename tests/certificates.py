"""Certificates of an authority of one's own."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


def a_house(folder: Path) -> Path:
    """root.pem has signed between.pem, which has signed server.pem; alone.pem nobody, nor early.pem, of next year."""
    now = datetime.now(UTC)

    def make(name: str, issuer=None, *, ca: bool, after: timedelta = -timedelta(days=1)):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, issuer[0] if issuer else name)]
        made = (
            x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
            .not_valid_before(now + after)
            .not_valid_after(now + timedelta(days=900))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if name not in {"root", "between"}:
            address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
            made = made.add_extension(address, critical=False)
        signed = made.sign(issuer[1] if issuer else key, hashes.SHA256())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = signed.public_bytes(Encoding.PEM)
        (folder / f"{name}.pem").write_bytes(public if name in {"root", "between"} else private + public)
        return name, key

    between = make("between", make("root", ca=True), ca=True)
    make("server", between, ca=False)
    make("alone", ca=True)
    make("early", ca=True, after=timedelta(days=365))
    with (folder / "server.pem").open("ab") as chain:
        chain.write((folder / "between.pem").read_bytes())
    return folder


def presenting(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
