"""The cover page of an evidence bundle: what it is, what is in it, what is missing, how to check it; for a court.

One HTML file without scripts, styles or pictures from elsewhere. What a vendor or a user wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from ..common.words import number, plain, size
from ..model import utc_text
from .bundle import MANIFEST, SIGNATURE, TAG_MANIFEST, Call
from .note import NAMESPACE

#: Calls that the page lists; the tables hold all.
MOST_ROWS = 1000

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-top:1px solid #999;padding-top:1rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;
border-bottom:1px solid #ddd}.long{overflow-wrap:anywhere}
pre{background:#f2f2f2;padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere}
.blank{display:inline-block;min-width:14rem;border-bottom:1px solid #111}
.bad{border-left:4px solid #b00;padding-left:.8rem}
@media print{h2{break-after:avoid}tr{break-inside:avoid}.page{break-before:page}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


_WHO = """The third says who made the bundle: compare the key in data/proof/vkey with the one that you got from the
archive's owner by another way."""
_PARTS = (
    ("data/audio/", "the recordings, byte for byte as the recorder made them and the archive keeps them"),
    ("data/audio/NAME.wav", "the same, decoded, so that any player plays it (where asked for)"),
    ("data/recordings.csv", "all calls as a table, for a spreadsheet"),
    ("data/recordings.json", "all that the recorder told of the calls"),
    ("data/load.dat", "Concordance load file for review platforms (UTF-8)"),
    ("data/vcon/", "each call in one file, audio included: vCon 0.4.0, an Internet-Draft of the IETF"),
    ("data/proof/", "for each call, by its number: what the archive signed about it, and when"),
    ("data/audit.jsonl", "who searched, heard, took or changed these calls in the archive, this export included"),
    (f"{MANIFEST}, {TAG_MANIFEST}", "the SHA-256 of every file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Why a bundle was made, by whom, for whom; None: not told."""

    id: str
    made_at: datetime
    made_by: str
    software: str
    reason: str | None = None
    case: str | None = None
    recipient: str | None = None
    purpose: str | None = None
    #: Was WAV asked for?
    wav: bool = False
    #: Who signs the tag manifest, and with which key; None: nobody does.
    origin: str | None = None
    vkey: str | None = None


@dataclass(slots=True)
class Counts:
    """What a bundle holds."""

    calls: int = 0
    #: Media with a file, and their bytes as archived.
    media: int = 0
    bytes: int = 0
    wavs: int = 0
    certified: int = 0
    first: str | None = None
    last: str | None = None

    def take(self, call: Call) -> None:
        held = [one for one in call.media if one.file is not None]
        self.calls += 1
        self.media += len(held)
        self.bytes += sum(one.size or 0 for one in held)
        self.wavs += sum(one.wav is not None for one in held)
        self.certified += bool(call.proof)
        at = str(call.document["started_at"])
        self.first, self.last = min(self.first or at, at), max(self.last or at, at)


def head(told: Told, counts: Counts, problems: Sequence[str], more: int, notes: Sequence[str]) -> str:
    """All that stands above the rows of the calls. ``more``: problems beyond those that are listed."""
    facts = [
        ("Case", told.case),
        ("Reason", told.reason),
        ("Recipient", told.recipient),
        ("Purpose", told.purpose),
        ("Calls", f"{counts.calls}, begun from {counts.first or '–'} to {counts.last or '–'} (UTC)"),
        ("Audio", f"{number(counts.media, 'file')}, {size(counts.bytes)}, as the recorder made them"),
        ("Decoded", f"{number(counts.wavs, 'WAV file')} beside them, made for listening" if told.wav else None),
        ("Certified", _certified(counts)),
        ("Signed by", f"{told.origin}, key {told.vkey}" if told.vkey else "nobody: the archive has no signing key"),
        ("Made", f"{utc_text(told.made_at)} by {told.made_by}, {told.software}"),
        ("Bundle", told.id),
    ]
    rows = "".join(f'<tr><th>{name}</th><td class="long">{_text(value)}</td></tr>' for name, value in facts if value)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Call recordings: evidence bundle {_text(told.id)}</title><style>{_STYLE}</style></head><body>
<h1>Call recordings: evidence bundle</h1>
<table>{rows}</table>
{_missing(problems, more, notes)}
<h2>What is in it</h2>
<table>{"".join(f"<tr><td>{_text(name)}</td><td>{_text(what)}</td></tr>" for name, what in _PARTS)}</table>
<h2>How to check it</h2>
<p>On a machine without any of our software, in the folder that holds {MANIFEST}:</p>
<pre>{escape(_checks(told))}</pre>
<p>The first says whether a file was changed or lost since the bundle was made, the second whether that list was.
{_WHO if told.vkey else ""}</p>
<p>Each file in data/audio is the one with the SHA-256 that data/recordings.csv and the proof of the call name.</p>
<h2>What it does not say</h2>
<p>It holds the calls that were chosen for it. Whether the archive holds all calls of a day is said by the day's
certificate, not by this bundle. Who spoke, and what was said, is to be heard, not proved. A certificate shows what the
archive was told and kept on the day on which it was signed; it can't show what the recorder did before.</p>
<h2>The calls</h2>
<table><tr><th>No.</th><th>Begun (UTC)</th><th>Seconds</th><th>From</th><th>To</th><th>Recorder and id</th>
<th>Audio</th><th>Certified</th></tr>
"""


def row(call: Call) -> str:
    """A call's row."""
    document = call.document
    audio = "<br>".join(_heard(one.file, one.sha256, one.why) for one in call.media) or _text("the recorder has none")
    cells = (
        str(call.number),
        _text(document["started_at"][:19].replace("T", " ")),
        _text(document["duration"]),
        _text(document["caller"]),
        _text(document["callee"]),
        _text(f"{document['source']} {document['recording_id']}"),
        audio,
        "yes" if call.proof else "not certified yet",
    )
    return (
        "<tr>"
        + "".join(f'<td class="long">{cell}</td>' if len(cell) > 60 else f"<td>{cell}</td>" for cell in cells)
        + "</tr>\n"
    )


def foot(counts: Counts) -> str:
    """All that stands below the rows of the calls."""
    left = counts.calls - MOST_ROWS
    more = f"<p>{left} more are in data/recordings.csv.</p>" if left > 0 else ""
    return f"</table>{more}\n{_CERTIFICATION}</body></html>\n"


def _heard(file: str | None, sha256: str | None, why: str | None) -> str:
    told = f"{file.removeprefix('data/audio/')}, SHA-256 {sha256}" if file else ""
    return _text("; ".join(part for part in (told, why) if part))


def _certified(counts: Counts) -> str:
    if counts.certified == counts.calls:
        return "all" if counts.calls > 1 else "yes"
    left = counts.calls - counts.certified
    return (
        f"{counts.certified} of {counts.calls}; {left} not certified yet" if counts.certified else "not certified yet"
    )


def _missing(problems: Sequence[str], more: int, notes: Sequence[str]) -> str:
    made = ""
    if problems:
        items = "".join(f"<li>{_text(problem)}</li>" for problem in problems)
        rest = f"<p>And {more} more; data/recordings.csv has them all (column missing).</p>" if more else ""
        made += f'<div class="bad"><h2>What is missing</h2><ul>{items}</ul>{rest}</div>'
    if notes:
        made += "<h2>Notes</h2><ul>" + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>"
    return made


def _checks(told: Told) -> str:
    lines = [f"sha256sum -c {MANIFEST}", f"sha256sum -c {TAG_MANIFEST}"]
    if told.vkey:
        lines.append(
            f"ssh-keygen -Y verify -f data/proof/allowed_signers -I {told.origin} -n {NAMESPACE} "
            f"-s {SIGNATURE} < {TAG_MANIFEST}"
        )
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"<bdi>{escape(plain(value))}</bdi>"


_BLANK = '<span class="blank">&nbsp;</span>'
_CERTIFICATION = f"""<h2 class="page">Template: certification under Federal Rules of Evidence 902(13) and 902(14)</h2>
<p>For courts of the United States. A template and no legal advice: a qualified person fills it in, strikes what they
do not know of their own knowledge, and signs. Other courts have other forms.</p>
<p>I, {_BLANK}, state:</p>
<ol>
<li>I am {_BLANK} (position) at {_BLANK} (organisation). By {_BLANK} (training, experience) I am qualified to
certify what follows, and I know the system that is described here.</li>
<li><b>The process (902(13)).</b> The organisation keeps its call recordings in an electronic archive. The archive asks
the call recorder at regular times which calls it holds, copies the audio of each call without changing it, computes its
SHA-256, and compares that value again whenever it reads the copy. This process produces accurate results: {_BLANK}
(how this is known: tests, daily use, read-back of all copies).</li>
<li><b>The copies (902(14)).</b> On {_BLANK} (date) I had the files in the folder data/audio of this bundle copied from
that archive. Each was compared by its SHA-256, a value that in practice no other file has, with the value that the
archive recorded when it took in the recording. They agree, but for what is named under "What is missing" on this page.
On {_BLANK} (date) I ran <code>sha256sum -c {MANIFEST}</code> on this bundle, and every file was good.</li>
<li>The SHA-256 of the file {TAG_MANIFEST} of this bundle is {_BLANK}.</li>
<li>To my knowledge the recorder and the archive worked properly at the times in question, except: {_BLANK}.</li>
</ol>
<p>I declare under penalty of perjury under the laws of the United States of America that the foregoing is true and
correct (28 U.S.C. § 1746).</p>
<p>Executed on {_BLANK} (date) at {_BLANK} (place)</p>
<p>Signature {_BLANK}</p>
"""
