"""Names inside a store: pure functions from ids and times to keys (contract: "Inside a store")."""

from __future__ import annotations

import hashlib
import os
import re
from datetime import datetime
from urllib.parse import quote

#: A file name of 255 bytes holds an id of this length, the hash and the extension.
_LONGEST = 150
#: What lies below a store's prefix beside the sources' folders: what describes and proves them, and test objects.
DESCRIBING = ("_audit/", "_ledger/", "_manifests/", "_proof/", "_renamed/", "_verified/")
OURS = (*DESCRIBING, "_canary/")


def safe(identifier: str) -> str:
    """An id percent-encoded so that no vendor can name a path; long ones are cut and made unique by a hash."""
    text = quote(identifier, safe="", errors="surrogatepass")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > _LONGEST:
        digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        text = re.sub("%.?$", "", text[:_LONGEST]) + "~" + digest
    return text


def media_key(
    prefix: str, source: str, started_at: datetime, recording_id: str, media_id: str, sha256: str, ext: str
) -> str:
    """``{prefix}{source}/{YYYY}/{MM}/{DD}/{recording_id}/{media_id}-{12 hex of SHA-256}.{ext}``."""
    day = f"{started_at.year:04}/{started_at.month:02}/{started_at.day:02}"
    return f"{prefix}{safe(source)}/{day}/{safe(recording_id)}/{safe(media_id)}-{sha256[:12]}.{ext}"


def manifest_key(prefix: str, source: str, now: datetime, stamp: str) -> str:
    """``{prefix}_manifests/{source}/{YYYY}/{MM}/{DD}/{ulid}.jsonl``; sorts by the moment that its ULID was made."""
    return f"{prefix}_manifests/{safe(source)}/{now:%Y/%m/%d}/{stamp}.jsonl"


def ledger_key(prefix: str, source: str, now: datetime) -> str:
    """``{prefix}_ledger/{source}/{ulid}.json``; sorts by the moment it was written."""
    return f"{prefix}_ledger/{safe(source)}/{ulid(now)}.json"


def verified_key(prefix: str, source: str, now: datetime) -> str:
    """``{prefix}_verified/{source}/{YYYY}/{MM}/{DD}/{ulid}.jsonl``; sorts by the moment it was written."""
    return f"{prefix}_verified/{safe(source)}/{now:%Y/%m/%d}/{ulid(now)}.jsonl"


def renamed_key(prefix: str, stamp: str) -> str:
    """``{prefix}_renamed/{ulid}.jsonl``; sorts by the moment of the renaming."""
    return f"{prefix}_renamed/{stamp}.jsonl"


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Ulids:
    """Makes ULIDs: 48 bits of milliseconds since 1970 and 80 random bits in Crockford's base 32.

    Those of one process sort by the order in which they were made, also within a millisecond.
    """

    def __init__(self) -> None:
        self._last = 0

    def __call__(self, now: datetime) -> str:
        number = int(now.timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10))
        if number >> 80 == self._last >> 80:
            number = self._last + 1
        self._last = number
        return _ulid(number)


ulid = Ulids()


def first_ulid(moment: datetime) -> str:
    """None that is made from then on sorts before it."""
    return _ulid(int(moment.timestamp() * 1000) << 80)


def _ulid(number: int) -> str:
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
