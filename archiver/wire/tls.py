"""TLS to recorders and stores: what is asked of the other side, and what to do where that fails."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path

#: OpenSSL's codes (openssl/x509_vfy.h).
_UNTRUSTED = {2, 20, 21}
_SELF_SIGNED = {18, 19}
_TOO_WEAK = {66, 67, 68}
#: What X509_V_FLAG_X509_STRICT alone finds: key identifiers and the like that are missing.
_FORMAL = set(range(79, 95)) | {24}

#: How OpenSSL says that the two have no version, cipher or key length in common.
_OLD = (
    "PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "LEGACY_RENEGOTIATION", "TOO_SMALL", "TOO_WEAK", "HANDSHAKE_FAILURE",
    "NO_SHARED_CIPHER", "WRONG_SIGNATURE_TYPE", "DISALLOWED", "ILLEGAL_OR_UNSUITABLE",
)  # fmt: skip


def context(ca_file: Path | None = None, *, verify: bool = True, legacy: bool = False) -> ssl.SSLContext:
    """Raises OSError (ssl.SSLError among them) where ca_file can't be read or holds no certificate.

    ``ca_file``: whom to trust in place of the public authorities; an issuer in between is enough, or the server itself.
    ``legacy``: also TLS 1.0 and 1.1, short keys, and servers that renegotiate without RFC 5746.
    """
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
    return made


def remedy(error: ssl.SSLError, *, address: str, ca_file: Path | None, legacy: str | None) -> str:
    """What to do about it. ``address``: the option that names the server; ``legacy``: the one for old TLS, if any."""
    code, said = getattr(error, "verify_code", None), f"{error.reason or ''} {error}".upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(code or 0, address, ca_file, legacy)
    if "WRONG_VERSION_NUMBER" in said or "HTTP_REQUEST" in said or "UNEXPECTED_MESSAGE" in said:
        return f"that port speaks no TLS: write http:// in {address}, or name the port that does"
    if any(word in said for word in _OLD):
        how = f", or set {legacy} = true until that is done (weaker: a warning stays)" if legacy else ""
        return f"it speaks old TLS only: let it speak TLS 1.2 or later{how}"
    if "CERTIFICATE_REQUIRED" in said or "BAD_CERTIFICATE" in said or "UNKNOWN_CA" in said:
        return "it asks for a certificate of ours, or refuses it: archiver sends none; put a proxy before it that does"
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
