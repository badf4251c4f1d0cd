"""What an error of PostgreSQL means for archiver, by its SQLSTATE: which CatalogDown, with which remedy.

https://www.postgresql.org/docs/current/errcodes-appendix.html; what is not here is a defect of ours.
"""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple

from ..errors import (
    CatalogBusy,
    CatalogDamaged,
    CatalogDown,
    CatalogForbidden,
    CatalogFull,
    CatalogMisfit,
    CatalogPooled,
    CatalogReadOnly,
    CatalogRefused,
)


class Meaning(NamedTuple):
    kind: type[CatalogDown]
    #: What to do about it; None: as errors.advice says of the kind.
    remedy: str | None = None


_LOCKED = "see what holds its locks (pg_locks, pg_stat_activity) or keeps it busy; it goes on by itself"
_POOLER = Meaning(CatalogPooled)

#: By the longest beginning of the SQLSTATE that is here.
_MEANINGS = {
    # A pooler says nearly everything so.
    "08": Meaning(CatalogDown),
    "26": _POOLER,
    "42P05": _POOLER,
    "0A000": Meaning(
        CatalogMisfit, "archiver needs PostgreSQL 14 or later, and not another product that speaks like it"
    ),
    "25006": Meaning(CatalogReadOnly),
    "25P": Meaning(CatalogBusy, "raise or remove idle_in_transaction_session_timeout and transaction_timeout there"),
    "28": Meaning(CatalogRefused),
    "3D": Meaning(CatalogRefused, "create that database (createdb), or mend the name at the end of [database] url"),
    "3F": Meaning(CatalogMisfit, "make that schema, or mend search_path (of the role, or in [database] url)"),
    "40": Meaning(CatalogDown, "it is tried again by itself; see the log of PostgreSQL where it goes on"),
    "42": Meaning(CatalogMisfit),
    "42501": Meaning(CatalogForbidden),
    "53": Meaning(CatalogBusy, "see the limits of that server; it goes on by itself"),
    "53100": Meaning(CatalogFull),
    "53200": Meaning(
        CatalogBusy, "give PostgreSQL more memory (or shared_buffers, max_locks_per_transaction); it goes on by itself"
    ),
    "53300": Meaning(
        CatalogBusy,
        "raise max_connections there (or the role's limit), or end other clients; archiver takes up to 8 a process",
    ),
    "54": Meaning(CatalogBusy, "see the limits of that server"),
    "55000": Meaning(CatalogDown),
    "55": Meaning(CatalogBusy, _LOCKED),
    "57": Meaning(CatalogDown),
    "57014": Meaning(CatalogBusy, f"raise or remove statement_timeout for this role; {_LOCKED}"),
    "57P03": Meaning(
        CatalogDown, "it is starting, stopping or a standby that takes no sessions: wait; it goes on by itself"
    ),
    "57P04": Meaning(
        CatalogRefused, "that database was dropped: restore it, or make the catalog again (`archiver rebuild`)"
    ),
    "57P05": Meaning(CatalogDown, "raise or remove idle_session_timeout for this role; it goes on by itself"),
    "58": Meaning(CatalogDamaged),
    "F0": Meaning(CatalogDamaged),
    "XX": Meaning(CatalogDamaged),
}
# Defects of ours, within classes that otherwise are not.
_OURS = {"42601", "54001", "54011", "54023"}


def meaning(error: BaseException, *, connecting: bool = False) -> Meaning | None:
    """None where it says nothing of the database. ``connecting``: all that was asked by then stands in the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Meaning(CatalogDown, "name the certificate of its issuer: sslrootcert=FILE in [database] url")
    if "pooling mode" in str(error):
        return _POOLER
    code, text = str(getattr(error, "sqlstate", None) or ""), str(error)
    if connecting and ((code[:2] in {"22", "42"} and code != "42501") or "unsupported startup parameter" in text):
        return Meaning(CatalogRefused, "leave that parameter out of [database] url")
    if code == "08P01" and re.search(r"no such|authentication failed|password", text):
        return Meaning(CatalogRefused, "mend user, password and database in [database] url, or in the pooler's config")
    if code == "0A000" and "cached" in text:
        # Another process has changed the tables meanwhile.
        return Meaning(CatalogDown, "it is tried again by itself")
    if not code or code in _OURS:
        return None
    return next((_MEANINGS[code[:n]] for n in (5, 3, 2) if code[:n] in _MEANINGS), None)
