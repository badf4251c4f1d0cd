"""TLS to recorders and stores: what is asked of the other side, and what to do where that fails."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.words import reason_of

#: OpenSSL's codes (openssl/x509_vfy.h).
_UNTRUSTED = {2, 20, 21}
_SELF_SIGNED = {18, 19}
_TOO_WEAK = {66, 67, 68}
#: What X509_V_FLAG_X509_STRICT alone finds: key identifiers and the like that are missing.
_FORMAL = set(range(79, 95)) | {24}

#: How servers say that they want another certificate of ours, or one at all; OpenSSL writes some with spaces.
_WANTS_OURS = (
    "CERTIFICATE_REQUIRED", "CERTIFICATE REQUIRED", "BAD_CERTIFICATE", "BAD CERTIFICATE", "UNKNOWN_CA", "UNKNOWN CA",
    "CERTIFICATE_UNKNOWN", "CERTIFICATE UNKNOWN", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED",
)  # fmt: skip

#: How OpenSSL says that the two have no version, cipher or key length in common.
_OLD = (
    "PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "LEGACY_RENEGOTIATION", "TOO_SMALL", "TOO_WEAK", "HANDSHAKE_FAILURE",
    "NO_SHARED_CIPHER", "WRONG_SIGNATURE_TYPE", "DISALLOWED", "ILLEGAL_OR_UNSUITABLE",
)  # fmt: skip


class BadFile(OSError):
    """A file of certificates or keys can't be used. The text names the option, the file and the reason."""


def context(
    ca_file: Path | None = None,
    *,
    verify: bool = True,
    legacy: bool = False,
    own: tuple[Path, Path | None] | None = None,
) -> ssl.SSLContext:
    """Blocking. Raises BadFile where a file can't be read, or holds no certificate or not the key to it.

    ``ca_file``: whom to trust in place of the public authorities; an issuer in between is enough, or the server itself.
    ``legacy``: also TLS 1.0 and 1.1, short keys, and servers that renegotiate without RFC 5746.
    ``own``: the certificate that a server is shown which asks for one, and its key (None: in the same file).
    """
    with _named("ca_file", ca_file):
        made = ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    if ca_file is not None:
        # Certificates of one's own authority often lack key identifiers, for which Python asks from 3.13 on. Chain,
        # name and time are checked all the same.
        made.verify_flags &= ~ssl.VERIFY_X509_STRICT
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if legacy:
        with warnings.catch_warnings():
            # That these are old is why they are asked for.
            warnings.simplefilter("ignore", DeprecationWarning)
            made.minimum_version = ssl.TLSVersion.TLSv1
        made.set_ciphers("DEFAULT:@SECLEVEL=0")
        made.options |= getattr(ssl, "OP_LEGACY_SERVER_CONNECT", 0x4)
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if own is not None:
        cert, key = own
        # Read here for their own errors: OpenSSL does not tell which of the two it can't read.
        for option, path in (("client_cert", cert), ("client_key", key)):
            with _named(option, path):
                if path is not None:
                    path.read_bytes()
        with _named("client_cert" if key is None else "client_key", key or cert):
            # Else an encrypted key is asked for at the terminal.
            made.load_cert_chain(cert, key, password="")
    return made


@contextmanager
def _named(option: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = "it is not the key of client_cert"
        elif option == "ca_file":
            why = "it holds no certificate (PEM)"
        else:
            why = "it does not hold a certificate and its key (PEM, the key without a password)"
        raise BadFile(f"{option} {path}: {why}") from None
    except OSError as error:
        raise BadFile(error.errno, f"{option} {path}: {reason_of(error)}") from None


def remedy(error: ssl.SSLError, *, address: str, ca_file: Path | None, legacy: str | None) -> str:
    """What to do about it. ``address``: the option that names the server; ``legacy``: the one for old TLS, if any."""
    code, said = getattr(error, "verify_code", None), f"{error.reason or ''} {error}".upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(code or 0, address, ca_file, legacy)
    if "WRONG_VERSION_NUMBER" in said or "HTTP_REQUEST" in said or "UNEXPECTED_MESSAGE" in said:
        return f"that port speaks no TLS: write http:// in {address}, or name the port that does"
    if any(word in said for word in _OLD):
        how = f", or set {legacy} = true until that is done (weaker: a warning stays)" if legacy else ""
        # The alert of that name says nothing more.
        asks = "; where it asks who we are, set client_cert and client_key" if "HANDSHAKE_FAILURE" in said else ""
        return f"it speaks old TLS only: let it speak TLS 1.2 or later{how}{asks}"
    if any(word in said for word in _WANTS_OURS):
        return "it asks for a certificate of ours, or refuses the one it is shown: set client_cert and client_key"
    return f"see that {address} names a server that speaks TLS, and what its log says"


def _certificate(code: int, address: str, ca_file: Path | None, legacy: str | None) -> str:
    if code == 10:
        return "renew its certificate (or that of its issuer), or set this host's clock right"
    if code == 9:
        return "its certificate begins in the future: set this host's clock right, or the server's and make it anew"
    if code in {62, 64}:
        return f"{address} must name the host as its certificate does"
    if code in _TOO_WEAK:
        return f"its key is too short: make it a new one{f', or set {legacy} = true until then' if legacy else ''}"
    if code in _FORMAL:
        return "its issuer left out parts that are asked for: name that issuer's certificate in ca_file"
    if ca_file is None:
        if code in _SELF_SIGNED:
            return "set ca_file to that certificate (fetched from the server itself, not over the network)"
        return "set ca_file to the certificate of its issuer"
    if code in _SELF_SIGNED:
        return f"{ca_file} holds another certificate: put the one that the server (or its root) has now into it"
    return f"{ca_file} holds another issuer: put the one of this certificate into it, and those between"


def reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, in its words."""
    told = getattr(error, "verify_message", None) or error.reason or str(error)
    return str(told).split("] ")[-1].replace("_", " ").rstrip(".")
