"""An evidence bundle's files as bytes: BagIt 1.0 (RFC 8493), vCon 0.4.0, CSV, a Concordance load file.

Pure functions from a recording's JSON. What is written where, and from which store, is upkeep/bundling.py's.
No file of a bundle has a name that a vendor chose, or one with a percent sign: tools disagree on what that is in a bag.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha1, sha256
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

from ..common.words import plain
from ..model import utc_text

DECLARATION: Final = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
MANIFEST: Final = "manifest-sha256.txt"
TAG_MANIFEST: Final = "tagmanifest-sha256.txt"
SIGNATURE: Final = f"{TAG_MANIFEST}.sig"
#: What a file of a bundle may be called, below ``data/`` and beside it.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=~-]*(/[A-Za-z0-9_][A-Za-z0-9_.=~-]*)*")
#: Base64 is made of whole triples of bytes.
STEP: Final = 3 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A medium of a recording in the bundle: the files that hold it, or why none does."""

    media_id: str
    #: ``data/audio/…``: the bytes as archived.
    file: str | None = None
    #: The same, decoded.
    wav: str | None = None
    #: Why a file is missing.
    why: str | None = None
    size: int | None = None
    sha256: str | None = None
    content_type: str | None = None
    #: Of a WAV, as its header tells.
    channels: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A recording in the bundle."""

    #: From 1, in the order of the bundle: its files bear it in their names.
    number: int
    document: Mapping[str, Any]
    media: Sequence[Heard] = ()
    #: Names of the files that prove what an archive said of it; none: it is not certified yet.
    proof: Sequence[str] = field(default=())


# -- names -------------------------------------------------------------------------------------------------------------


def checked(name: str) -> str:
    """The same name. Raises ValueError where a tool on some system could not take it."""
    if not _NAME.fullmatch(name) or len(name) > 200:
        raise ValueError(f"no name for a file of a bundle: {name!r}")
    return name


def base(told: str) -> str:
    """The name of the folder in a ZIP file, from that of the ZIP."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", told).strip("._-")[:100] or "bundle"


def audio_name(number: int, document: Mapping[str, Any], place: int, key: str) -> str:
    """``data/audio/000001-hq-20240517T114532Z-1.wav``; ``place``: of the medium, from 1; ``key``: as in a store."""
    at = re.sub(r"[^0-9TZ]", "", re.sub(r"\.[0-9]+", "", str(document["started_at"])))
    source = re.sub(r"[^A-Za-z0-9_-]+", "_", str(document["source"]))[:40]
    ext = re.sub(r"[^a-z0-9]", "", PurePosixPath(key).suffix.lower())[:8] or "bin"
    return checked(f"data/audio/{number:06}-{source}-{at}-{place}.{ext}")


def vcon_name(number: int) -> str:
    """``data/vcon/000001.json``."""
    return f"data/vcon/{number:06}.json"


def proof_name(number: int, name: str) -> str:
    """``data/proof/000001/{name}``. Raises ValueError where the name is none for a bundle."""
    return checked(f"data/proof/{number:06}/{name.replace('%', '=')}")


# -- the bag -----------------------------------------------------------------------------------------------------------


def info(fields: Iterable[tuple[str, str]]) -> bytes:
    """``bag-info.txt``: a label and its value a line; empty ones are left out."""
    return "".join(f"{label}: {told}\n" for label, value in fields if (told := plain(value).strip())).encode()


def manifest_line(digest: str, name: str) -> bytes:
    """As ``sha256sum`` writes it."""
    return f"{digest}  {name}\n".encode()


# -- JSON --------------------------------------------------------------------------------------------------------------


def to_json(value: Any, *, indent: int | None = None) -> bytes:
    """UTF-8; text that is none (lone surrogates) in JSON's escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))
    return text.encode("utf-8", "backslashreplace")


def recording(call: Call) -> dict[str, Any]:
    """The recording's JSON, with the files of this bundle."""
    heard = {one.media_id: one for one in call.media}
    media = []
    for medium in call.document["media"]:
        one = heard.get(medium["media_id"], Heard(media_id=medium["media_id"]))
        media.append({**medium, "file": one.file, "wav": one.wav, "missing": one.why})
    vcon = vcon_name(call.number) if any(one.file for one in call.media) else None
    return {"number": call.number, **call.document, "media": media, "vcon": vcon, "proof": list(call.proof)}


# -- vCon --------------------------------------------------------------------------------------------------------------


def uuid8(made_at: datetime, seed: str, name: str) -> str:
    """A UUID of version 8 as vCon wants it: time and chance as in version 7, then 62 bits of a name's SHA-1.

    ``seed`` stands for chance: the same vCon of the same bundle has the same one.
    """
    milliseconds = int(made_at.timestamp() * 1000) & (1 << 48) - 1
    chance = int.from_bytes(sha256(seed.encode("utf-8", "surrogatepass")).digest()[:2]) & 0xFFF
    # 62 bits of the name alone would be the same for every vCon of an archive made in one millisecond.
    named = int.from_bytes(sha1(f"{name}\n{seed}".encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()[:8])
    return str(UUID(int=milliseconds << 80 | 8 << 76 | chance << 64 | 2 << 62 | named >> 2))


_MEDIA_TYPES = {
    "audio/wav": "audio/x-wav",
    "audio/x-wav": "audio/x-wav",
    "audio/mpeg": "audio/x-mp3",
    "audio/mp4": "audio/x-mp4",
    "audio/ogg": "audio/ogg",
    "audio/opus": "audio/ogg",
}


def vcon(call: Call, *, made_at: datetime, uuid: str) -> dict[str, Any]:
    """The recording as vCon 0.4.0 (draft-ietf-vcon-vcon-core-04), unsigned; each ``body`` is None yet.

    :func:`vcon_chunks` puts the bytes in. Which channel holds whom is not known: each of several names all parties.
    """
    document = call.document
    media = {medium["media_id"]: medium for medium in document["media"]}
    parties = _parties(document)
    everyone = list(range(len(parties)))
    dialog = []
    for one in call.media:
        if one.file is None:
            continue
        kind = str(one.content_type or "application/octet-stream").split(";")[0].strip()
        seconds = media[one.media_id]["duration"]
        seconds = document["duration"] if seconds is None else seconds
        dialog.append(
            {
                "type": "recording",
                "start": document["started_at"],
                **({"duration": seconds} if seconds is not None and seconds >= 0 else {}),
                "parties": [everyone] * one.channels if one.channels and one.channels > 1 else everyone,
                "mediatype": _MEDIA_TYPES.get(kind, kind),
                "filename": one.file.rpartition("/")[2],
                "encoding": "base64url",
                "body": None,
            }
        )
    return {
        "vcon": "0.4.0",
        "uuid": uuid,
        "extensions": [],
        "created_at": utc_text(made_at),
        "subject": f"recording {document['recording_id']} of {document['source']}",
        "parties": parties,
        "dialog": dialog,
    }


def vcon_chunks(made: Mapping[str, Any], bodies: Sequence[Iterable[bytes]]) -> Iterator[bytes]:
    """The file of a :func:`vcon`. ``bodies``: of each dialog its bytes, in pieces of :data:`STEP` but for the last."""
    head = to_json({**made, "dialog": []})
    assert head.endswith(b"[]}")
    yield head[:-2]
    for number, (dialog, body) in enumerate(zip(made["dialog"], bodies, strict=True)):
        text = to_json(dialog)
        assert text.endswith(b'"body":null}')
        yield (b"," if number else b"") + text[: -len(b"null}")] + b'"'
        for chunk in body:
            # Only the last piece is no multiple of three bytes: only it would be padded.
            yield base64.urlsafe_b64encode(chunk).rstrip(b"=")
        yield b'"}'
    yield b"]}\n"


def _parties(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """Who took part: the caller first, then the callee, then whoever else the recorder told of."""
    found: list[dict[str, str]] = []
    known: set[str] = set()
    told = {str(party["number"]): party for party in document["parties"] if party.get("number")}
    for number in (document["caller"], document["callee"]):
        if number and number not in known:
            known.add(number)
            found.append(_party(number, told.get(number, {})))
    for party in document["parties"]:
        if party.get("number") in known:
            continue
        if party.get("number"):
            known.add(party["number"])
        if made := _party(party.get("number"), party):
            found.append(made)
    if document["agent"] and not any(document["agent"] in (p.get("name"), p.get("tel")) for p in found):
        found.append({"name": document["agent"]})
    return found


def _party(number: str | None, party: Mapping[str, Any]) -> dict[str, str]:
    name = party.get("name") or party.get("user")
    return {**({"tel": str(number)} if number else {}), **({"name": str(name)} if name else {})}


def channels(head: bytes) -> int | None:
    """Of a WAV file, by its first bytes; None where they are none."""
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt " and len(head) >= 24:
        return int.from_bytes(head[22:24], "little") or None
    return None


# -- tables ------------------------------------------------------------------------------------------------------------

COLUMNS: Final = (
    "number",
    "source",
    "recording_id",
    "call_id",
    "started_at",
    "ended_at",
    "duration",
    "direction",
    "caller",
    "callee",
    "agent",
    "queue",
    "state",
    "flags",
    "media_id",
    "file",
    "wav",
    "missing",
    "content_type",
    "coding",
    "size",
    "sha256",
    "handle",
    "proof",
)
#: Of the load file: what review platforms call them.
FIELDS: Final = (
    "DOCID",
    "BEGATTACH",
    "ENDATTACH",
    "CUSTODIAN",
    "SOURCE",
    "RECORDINGID",
    "CALLID",
    "MEDIAID",
    "STARTED",
    "ENDED",
    "TIMEZONE",
    "SECONDS",
    "DIRECTION",
    "FROM",
    "TO",
    "QUEUE",
    "FILENAME",
    "FILEEXT",
    "FILESIZE",
    "SHA256",
    "NATIVEPATH",
)


def csv_heading() -> bytes:
    """The first line; with a byte order mark, or a spreadsheet takes UTF-8 for something else."""
    return "\ufeff".encode() + _csv_line(COLUMNS)


def csv_rows(call: Call) -> bytes:
    """A line a medium; one where there is none."""
    document = call.document
    told = {medium["media_id"]: medium for medium in document["media"]}
    lines = []
    for one in call.media or (Heard(media_id=""),):
        medium = told.get(one.media_id, {})
        row = {
            **{name: document[name] for name in COLUMNS if name in document},
            "number": call.number,
            "flags": " ".join(medium.get("flags", ())),
            "state": medium.get("state", document["state"]),
            "media_id": one.media_id,
            "file": one.file,
            "wav": one.wav,
            "missing": one.why,
            "content_type": one.content_type or medium.get("content_type"),
            "coding": medium.get("coding"),
            "size": one.size,
            "sha256": one.sha256,
            "proof": "certified" if call.proof else "not certified yet",
        }
        lines.append(_csv_line([_cell(row.get(name)) for name in COLUMNS]))
    return b"".join(lines)


def _csv_line(cells: Sequence[str]) -> bytes:
    made = io.StringIO()
    csv.writer(made, lineterminator="\r\n").writerow(cells)
    return made.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    """A text that a spreadsheet takes for a formula is told to be a text; a cell is one line."""
    text = "" if value is None else plain(value)
    return (
        f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")) else text
    )


def dat_heading() -> bytes:
    """The first line of the load file, with the mark by which review platforms know UTF-8."""
    return "\ufeff".encode() + _dat_line(FIELDS)


def dat_rows(call: Call) -> bytes:
    """A line a medium that has a file. The media of a recording are one family (BEGATTACH, ENDATTACH)."""
    document = call.document
    held = [(place, one) for place, one in enumerate(call.media, 1) if one.file is not None]
    lines = []
    for place, one in held:
        file = PurePosixPath(one.file or "")
        lines.append(
            _dat_line(
                (
                    f"{call.number:06}-{place}",
                    f"{call.number:06}-{held[0][0]}",
                    f"{call.number:06}-{held[-1][0]}",
                    document["agent"],
                    document["source"],
                    document["recording_id"],
                    document["call_id"],
                    one.media_id,
                    document["started_at"],
                    document["ended_at"],
                    "UTC",
                    document["duration"],
                    document["direction"],
                    document["caller"],
                    document["callee"],
                    document["queue"],
                    file.name,
                    file.suffix.removeprefix("."),
                    one.size,
                    one.sha256,
                    # Relative to the load file, as those write it who load it.
                    "\\".join(file.parts[1:]),
                )
            )
        )
    return b"".join(lines)


def _dat_line(values: Sequence[Any]) -> bytes:
    """Fields apart by 0x14, each between two thorns; a line's end in a field is a registered sign."""
    return ("\x14".join(f"þ{_dat(value)}þ" for value in values) + "\r\n").encode("utf-8", "backslashreplace")


def _dat(value: Any) -> str:
    """The format can't escape its own marks: they are written otherwise. The true text is in recordings.json."""
    text = "" if value is None else str(value)
    text = text.replace("þ", "th").replace("®", "(R)")
    return plain(re.sub(r"\r\n|[\r\n]", "®", text))
