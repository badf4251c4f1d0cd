#!/usr/bin/env python3
"""Check what an archive of call recordings claims, from a copy of one of its stores.

    python3 verify.py COPY VKEY [--media] [--store NAME] [--expect-since CHECKPOINT]

COPY is a folder: a copy of the store, or of its `_proof` folder alone (then without --media). VKEY is the archive's
public key (name+id+key), or a file that holds it; get it from the archive's owner, not from the copy.
It needs Python 3.8 or newer and nothing else: no packages, no network, no database. It changes nothing. It is one file
of some 500 lines, so that it can be read, and carried, alone.

A line is printed for each problem; last the days that it vouches for. Exit code: 0 good, 1 problems, 2 wrong usage.

What is checked, in the order of this file:
1. The log: the key signed each checkpoint, and each one's log is the beginning of the next one's.
2. The certificates in it: each source's are a chain and leave no day out; each says of itself what its numbers say.
3. The list of each certificate: its lines are those that were signed, its counts are those of its lines, and what
   an earlier certificate of the same day told of is not missing.
4. With --media: for each line that has audio, the copy holds a file with the SHA-256 that was signed.

A copy can't show that its newest days were taken away, log and all. Keep the newest file of _proof/log/checkpoint
each time, and name it the next time with --expect-since.
"""

# ruff: noqa: PTH110, PTH112, PTH113, PTH114, PTH116, PTH118, PTH119, PTH123, PTH202, PTH208, T201
from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from datetime import date
from hashlib import sha256, sha512
from typing import Any

CERTIFICATE, KEY = "archiver/certificate/v1", "archiver/key/v1"
STATES = ("archived", "empty", "gone", "failed", "pending", "excluded", "erased", "expired", "moved")
LONGEST_LINE, LONGEST_FILE = 1 << 20, 1 << 26
#: So many files' SHA-256 are remembered, and at least those of one folder.
REMEMBERED = 1000000
#: What may come of reading what is not ours.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, OSError)

# -- Ed25519 (RFC 8032), signed notes and checkpoints (c2sp.org/signed-note, c2sp.org/tlog-checkpoint) -----------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def point(data: bytes) -> tuple[int, ...]:
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if len(data) != 32 or y >= P or (x * x - square) % P or (x == 0 and sign):
        raise ValueError("not a point of the curve")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def is_signed(public: bytes, text: bytes, signature: bytes) -> bool:
    try:
        r, (x, y, _, t) = point(signature[:32]), point(public)
    except ValueError:
        return False
    s = int.from_bytes(signature[32:], "little")
    h = int.from_bytes(sha512(signature[:32] + public + text).digest(), "little") % L
    # s * BASE - h * public, both at once, from the highest bit down: it must be r.
    minus: tuple[int, ...] = (P - x, y, 1, P - t)
    sums = [(0, 1, 1, 0), BASE, minus, add(BASE, minus)]
    q: tuple[int, ...] = sums[0]
    for bit in range(255, -1, -1):
        q = add(q, q)
        which = s >> bit & 1 | (h >> bit & 1) << 1
        if which:
            q = add(q, sums[which])
    return s < L and len(signature) == 64 and (q[0] - r[0] * q[2]) % P == 0 and (q[1] - r[1] * q[2]) % P == 0


def key_of(vkey: str) -> tuple[str, str, bytes]:
    """Name, id and public key."""
    name, key_id, text = vkey.strip().split("+", 2)
    data = base64.b64decode(text, validate=True)
    if data[:1] != b"\1" or len(data) != 33 or sha256(name.encode() + b"\n" + data).hexdigest()[:8] != key_id:
        raise ValueError("not an Ed25519 key as name+id+key")
    return name, key_id, data[1:]


def opened(note: bytes, keys: list[tuple[str, str, bytes]]) -> tuple[int, bytes]:
    """How many entries, and under which root, a checkpoint tells of that one of the keys signed. Raises ValueError."""
    text, _, lines = note.rpartition(b"\n\n")
    text += b"\n"
    good = False
    for line in lines.decode().split("\n")[:-1] or [""]:
        found = re.match("^\u2014 ([^ ]+) ([A-Za-z0-9+/=]+)$", line)
        if not found or lines[-1:] != b"\n":
            raise ValueError("it is not a signed note")
        signature = base64.b64decode(found.group(2), validate=True)
        for name, key_id, public in keys:
            if (name, key_id) == (found.group(1), signature[:4].hex()):
                if not is_signed(public, text, signature[4:]):
                    raise ValueError("the signature is wrong")
                good = True
    origin, size, root = text.decode().split("\n")[:3]
    if not good or origin != keys[0][0]:
        raise ValueError(f"it is not signed by {keys[0][0]} with this key")
    return int(size), base64.b64decode(root, validate=True)


class Tree:
    """The Merkle root (RFC 6962) of leaves that come one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self.roots: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        self.size += 1
        found, n = sha256(b"\0" + leaf).digest(), self.size
        while not n & 1:
            found, n = sha256(b"\1" + self.roots.pop() + found).digest(), n >> 1
        self.roots.append(found)

    def root(self) -> bytes:
        found = self.roots[-1] if self.roots else sha256(b"").digest()
        for left in self.roots[-2::-1]:
            found = sha256(b"\1" + left + found).digest()
        return found


# -- reading the copy, which anyone may have changed -------------------------------------------------------------------


def inside(folder: str, name: str) -> str:
    """The path of a name; ValueError where nothing lies there, or where it leads out of the copy, also by a link."""
    path = os.path.join(folder, *name.split("/"))
    if "\0" in name or not path.startswith(folder + os.sep) or os.path.realpath(path) != path:
        raise ValueError(name + " leads out of the copy")
    if not os.path.exists(path):
        raise ValueError(name + " is missing")
    return path


def read(folder: str, name: str) -> bytes:
    path = inside(folder, name)
    if not os.path.isfile(path) or os.path.getsize(path) > LONGEST_FILE:
        raise ValueError(name + " is no file of an archive")
    with open(path, "rb") as file:
        return file.read()


def lines_of(folder: str, name: str) -> Iterator[bytes]:
    path = inside(folder, name)
    with open(path if os.path.isfile(path) else os.devnull, "rb") as file:
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            if line[-1:] != b"\n":
                raise ValueError(name + " has a line that was cut")
            yield line[:-1]


class Days:
    """A source. Of each day from the first on: the newest certificate's place in the log (from 1 on) and revision."""

    def __init__(self) -> None:
        self.previous: str | None = None
        self.first = self.complete = self.claims = 0
        self.entries, self.revisions = array("q"), array("q")

    def at(self, day: str) -> int:
        ordinal = date(int(day[:4]), int(day[5:7]), int(day[8:])).toordinal()
        self.first = self.first if self.entries else ordinal
        before, behind = max(self.first - ordinal, 0), max(ordinal - self.first + 1 - len(self.entries), 0)
        if before or behind:
            none = array("q", [0])
            self.entries = none * before + self.entries + none * behind
            self.revisions = none * before + self.revisions + none * behind
            self.first -= before
        return ordinal - self.first

    def day(self, at: int) -> str:
        return date.fromordinal(self.first + at).isoformat()


class Check:
    def __init__(self, copy: str, keys: list[tuple[str, str, bytes]], stores: set[str], media: bool) -> None:
        self.copy = os.path.realpath(copy)
        # A store's prefix that does not end in a slash is part of the names in it.
        names = [name for name in sorted(os.listdir(copy)) if re.match("^log$|.*_proof$", name)]
        folders = [os.path.join(self.copy, name) if name != "log" else self.copy for name in names]
        folders = [folder for folder in folders if os.path.isdir(os.path.join(folder, "log/checkpoint"))]
        self.proof = folders[0] if folders else os.path.join(self.copy, "_proof")
        self.prefix = os.path.basename(self.proof)[: -len("_proof")]
        self.keys, self.stores, self.media = keys, stores, media
        self.issued, self.size, self.problems = "none", 0, 0
        self.recordings = self.with_audio = self.bytes = self.found = self.moved = self.others = 0
        self.sources: dict[str, Days] = {}
        #: Of each entry the place of the certificate that it replaces, else 0; -1 where nobody can read it.
        self.replaced = array("q")
        self.new_keys: list[tuple[int, tuple[str, str, bytes]]] = []
        #: By folder how many files have this SHA-256; by the SHA-256 in its name a file that has another.
        self.folders: OrderedDict[str, dict[bytes, int]] = OrderedDict()
        self.changed: dict[str, str] = {}

    def say(self, *words: object, problem: bool = True) -> None:
        self.problems += problem
        print("".join(c if c.isprintable() else "?" for c in ": ".join(map(str, words))))

    # -- 1. the log ----------------------------------------------------------------------------------------------------

    def log(self, expected: list[str]) -> None:
        notes, folder = [], "log/checkpoint/"
        names = [name for name in os.listdir(os.path.join(self.proof, folder)) if re.match("^[0-9]{12,}$", name)]
        for own, name in [(True, name) for name in names] + [(False, name) for name in expected]:
            try:
                note = read(self.proof, folder + name) if own else read(*os.path.split(os.path.realpath(name)))
                size = int(note.split(b"\n")[1])
                if own and size != int(name):
                    raise ValueError(f"it tells of {size} entries")
                notes.append((size, own, name, note))
            except UNREADABLE as error:
                self.say("checkpoint " + name, error)
        if not names:
            self.say("there is no checkpoint: nothing in this copy is signed")
        self.size = max((size for size, own, _, _ in notes if own), default=0)
        roots = self.walk({size for size, _, _, _ in notes})
        good, broken = 0, False
        for size, own, name, note in sorted(notes):
            try:
                root = opened(note, self.keys)[1]
                if size > self.size:
                    raise ValueError(f"the log was cut back: it had {size} entries then, here it has {self.size}")
                if size in roots and roots[size] != root and not (own and broken):
                    broken, first = broken or own, good + 1 if own else 1
                    raise ValueError(f"another log was signed than is in this copy: entries {first} to {size} differ")
                if roots.get(size) == root:
                    good = size if own else good
                    self.keys += [key for at, key in self.new_keys if at <= size and key not in self.keys]
            except UNREADABLE as error:
                self.say("checkpoint " + name, error)

    def walk(self, sizes: set[int]) -> dict[int, bytes]:
        """Reads the log from its beginning; its roots at these sizes."""
        tree, roots = Tree(), {0: Tree().root()}
        try:
            for entry in self.entries(0):
                tree.add(entry)
                if tree.size in sizes:
                    roots[tree.size] = tree.root()
                self.replaced.append(0)
                try:
                    self.entry(tree.size, entry, json.loads(entry))
                except UNREADABLE as error:
                    self.replaced[-1] = -1
                    self.say(f"entry {tree.size} of the log can't be read", repr(error))
        except UNREADABLE as error:
            self.say("the log", error)
        return roots

    def entries(self, first: int) -> Iterator[bytes]:
        """From the bundle of 256 on in which this one lies."""
        for n in range(first // 256, (self.size + 255) // 256):
            digits = str(n).zfill((len(str(n)) + 2) // 3 * 3)
            width = min(256, self.size - n * 256)
            name = "".join("x" + digits[at : at + 3] + "/" for at in range(0, len(digits) - 3, 3)) + digits[-3:]
            name = f"log/tile/entries/{name}" + (f".p/{width}" if width < 256 else "")
            bundle, at = read(self.proof, name), 0
            for _ in range(width):
                length = int.from_bytes(bundle[at : at + 2], "big")
                at += 2 + length
                if not length or at > len(bundle):
                    raise ValueError(name + " is cut")
                yield bundle[at - length : at]
            if at != len(bundle):
                raise ValueError(name + " holds more than its entries")

    def entry(self, number: int, entry: bytes, told: Any) -> None:
        if told["type"] != CERTIFICATE:
            self.others += 1
            if told["type"] == KEY and key_of(told["vkey"])[0] == self.keys[0][0]:
                self.new_keys.append((number, key_of(told["vkey"])))
            return
        source, where = str(told["source"]), f"{told['source']} {told['day']}"
        days = self.sources.get(source, Days())
        at = days.at(told["day"])
        self.sources[source] = days
        if told["previous"] != days.previous:
            self.say(where, "the certificate is not chained to the one before it")
        if told["revision"] != days.revisions[at] + 1:
            self.say(where, f"revision {told['revision']} follows on revision {days.revisions[at]}")
        self.issued = max(self.issued if self.issued != "none" else "", told["issued_at"])
        self.replaced[-1], days.entries[at], days.revisions[at] = days.entries[at], number, told["revision"]
        days.previous = sha256(entry).hexdigest()

    # -- 2. the certificates -------------------------------------------------------------------------------------------

    def certificates(self) -> None:
        for source, days in sorted(self.sources.items()):
            if 0 in days.entries:
                first = days.day(days.entries.index(0))
                self.say(source, f"days without a certificate: {days.entries.count(0)}, the first is {first}")
        try:
            for number, entry in enumerate(self.entries(0), 1):
                try:
                    told = json.loads(entry) if self.replaced[number - 1] >= 0 else None
                    if told is not None and told["type"] == CERTIFICATE:
                        self.certificate(number, entry, told, self.sources[str(told["source"])])
                except UNREADABLE as error:
                    self.say(f"entry {number} of the log can't be read", repr(error))
        except UNREADABLE:
            return  # the log's problem: it was told

    def certificate(self, number: int, entry: bytes, told: Any, days: Days) -> None:
        counts, cover, at = told["counts"], told["coverage"], days.at(told["day"])
        newest = days.entries[at] == number
        where = f"{told['source']} {told['day']}" + ("" if newest else f" revision {told['revision']}")
        try:
            if read(self.proof, told["name"] + ".certificate.json") != entry + b"\n":
                self.say(where, f"{told['name']}.certificate.json is not the certificate that is in the log")
            gaps = self.gaps(where, told)
        except UNREADABLE as error:
            self.say(where, error)
            gaps = [{"why": "?"}]
        total = sum(counts[state] for state in STATES)
        if counts["listed"] != total - counts["moved"] or told["leaves"]["size"] != total:
            self.say(where, "the counts do not add up")
        midnight, end = (f"{days.day(at + n)}T00:00:00.000Z" for n in (0, 1))
        whole = cover["to"] == end and (cover["from"] == midnight or (at == 0 and midnight < cover["from"] < end))
        left = [f"gaps {len(gaps)} ({gaps[0]['why']})"] if gaps else []
        left += [] if whole else ["part of the day was not covered"]
        left += [f"{state} {counts[state]}" for state in ("failed", "pending") if counts[state]]
        left += [f"unreadable rows {told['listings']['unreadable']}"] if told["listings"]["unreadable"] else []
        if told["complete"] is not (None if told["basis"] == "ids" else not left):
            self.say(where, f"it says complete: {told['complete']}, which its own numbers do not", ", ".join(left))
        elif left and newest:
            self.say(where, "not complete, as the certificate says itself", ", ".join(left))
        if newest:
            days.complete += told["complete"] is True
            days.claims += told["complete"] is not None
            self.recordings, self.moved = self.recordings + counts["listed"], self.moved + counts["moved"]
            self.with_audio, self.bytes = self.with_audio + told["media"], self.bytes + told["bytes"]
        try:
            self.leaves(where, told, self.earlier(self.replaced[number - 1]), self.media and newest)
        except UNREADABLE as error:
            self.say(where, "the list can't be read", error)

    def gaps(self, where: str, told: Any) -> Any:
        """Those in the certificate, or in the file beside it where they are too many."""
        gaps = told["coverage"]["gaps"]
        if isinstance(gaps, dict):
            data, signed = read(self.proof, told["name"] + ".gaps.jsonl"), gaps
            gaps = [json.loads(line) for line in data.splitlines()]
            if (sha256(data).hexdigest(), len(gaps)) != (signed["sha256"], signed["size"]):
                self.say(where, f"{told['name']}.gaps.jsonl does not hold the gaps that were signed")
        return gaps

    # -- 3. the lists --------------------------------------------------------------------------------------------------

    def earlier(self, number: int) -> Iterator[str]:
        """The recordings of the certificate at this place; none where it is 0."""
        if number:
            entries = self.entries(number - 1)
            told = json.loads([next(entries) for _ in range((number - 1) % 256 + 1)][-1])
            for line in lines_of(self.proof, told["name"] + ".leaves.jsonl") if told["leaves"]["size"] else ():
                yield json.loads(line)["recording"]

    def leaves(self, where: str, told: Any, earlier: Iterator[str], media: bool) -> None:
        folders = [self.folder(name) for name in told["folders"]] if media else []
        tree, have = Tree(), dict.fromkeys((*STATES, "media", "bytes"), 0)
        flags: dict[str, int] = {}
        last, before, lost = "", next(earlier, None), 0
        for line in lines_of(self.proof, told["name"] + ".leaves.jsonl") if told["leaves"]["size"] else ():
            tree.add(line)
            one = json.loads(line)
            recording = one["recording"]
            have[one["state"]] += 1
            for flag in one.get("flags", ()):
                flags[flag] = flags.get(flag, 0) + 1
            if recording <= last:
                self.say(where, f"the list is out of order, or holds recording {recording} twice")
            while before is not None and before < recording:
                before, lost = next(earlier, None), lost + 1
            if before == recording:
                before = next(earlier, None)
            last = recording
            here = not self.stores or not self.stores.isdisjoint(one.get("stores", ()))
            for medium in one.get("media", ()):
                if "sha256" in medium:
                    have["media"], have["bytes"] = have["media"] + 1, have["bytes"] + medium["size"]
                    if media and here:
                        self.medium(f"{where}: recording {recording}", medium, folders)
        lost += 0 if before is None else 1 + sum(1 for _ in earlier)
        if lost:
            self.say(where, f"recordings missing that an earlier certificate of this day told of: {lost}")
        want = dict(told["counts"], media=told["media"], bytes=told["bytes"])
        other = [f"{name} {have[name]}, signed {want[name]}" for name in have if have[name] != want[name]]
        other += [] if flags == told["flags"] else [f"flags {flags}, signed {told['flags']}"]
        if tree.root().hex() != told["leaves"]["root"]:
            lines = f"{tree.size} lines, signed {told['leaves']['size']}"
            self.say(where, "the list is not the one that was signed", "; ".join([lines, *other]))
        elif other:
            self.say(where, "the counts are not those of the list", "; ".join(other))

    # -- 4. the audio --------------------------------------------------------------------------------------------------

    def medium(self, where: str, medium: Any, folders: list[dict[bytes, int]]) -> None:
        """Takes a file with this SHA-256 out of those that were found: each medium has one of its own."""
        digest = bytes.fromhex(medium["sha256"])
        for files in folders:
            if files.get(digest):
                files[digest] -= 1
                self.found += 1
                return
        changed = self.changed.get(medium["sha256"][:12])
        what = f"{changed} holds other bytes, not those" if changed else f"{medium['size']} bytes are missing, those"
        self.say(where, f"{what} with SHA-256 {medium['sha256']}")

    def folder(self, name: str) -> dict[bytes, int]:
        """What lies in a day's folder. A file's name ends in 12 digits of its SHA-256."""
        if name in self.folders:
            return self.folders[name]
        files: dict[bytes, int] = {}
        buffer = memoryview(bytearray(1 << 20))
        try:
            top = inside(self.copy, self.prefix + name)
        except ValueError:
            return files  # what should lie there is missing, and is told as such
        for folder, _, names in os.walk(top):
            for path in (os.path.join(folder, name) for name in names):
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                found = sha256()
                try:
                    with open(path, "rb", buffering=0) as file:
                        count = file.readinto(buffer)
                        while count:
                            found.update(buffer[:count])
                            count = file.readinto(buffer)
                except OSError as error:
                    self.say(error)
                    continue
                files[found.digest()] = files.get(found.digest(), 0) + 1
                named = re.search("-([0-9a-f]{12})[.][^.]*$", path)
                if named and not found.hexdigest().startswith(named.group(1)):
                    self.changed[named.group(1)] = os.path.relpath(path, self.copy)
        self.folders[name] = files
        while len(self.folders) > 1 and sum(map(len, self.folders.values())) > REMEMBERED:
            self.folders.popitem(last=False)
        return files

    def summary(self, expected: int) -> None:
        lines = []
        for source, days in sorted(self.sources.items()):
            claim = f"{days.complete} complete" if days.claims else "listed by call ids: they claim no completeness"
            lines.append(
                f"{source}: {days.day(0)} to {days.day(len(days.entries) - 1)}, {len(days.entries)} days, {claim}"
            )
        audio = f"{self.found} found as signed" if self.media else "not read without --media"
        lines.append(f"{self.recordings} recordings listed, {self.with_audio} media with {self.bytes} bytes: {audio}")
        if self.moved or self.others:
            lines.append(f"moved to other days: {self.moved}; entries of other kinds, not looked at: {self.others}")
        what = "checked" if self.problems else "vouches for"
        lines.append(f"{what} {self.keys[0][0]} up to entry {self.size}, certificates up to {self.issued}")
        if not expected:
            lines.append(
                "a log that was cut back looks the same: keep the newest checkpoint, name it next time: --expect-since"
            )
        for line in [*lines, f"problems: {self.problems}" if self.problems else "good"]:
            self.say(line, problem=False)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check what an archive of call recordings claims.")
    parser.add_argument("copy", help="a folder: a copy of a store of the archive")
    parser.add_argument("vkey", help="its public key (name+id+key), or a file that holds it")
    parser.add_argument("--media", action="store_true", help="read the audio, too")
    parser.add_argument("--store", action="append", default=[], help="expect the audio of this store only")
    parser.add_argument("--expect-since", action="append", default=[], metavar="CHECKPOINT", help="one kept before")
    args = parser.parse_args()
    try:
        text = args.vkey
        if os.path.isfile(text):
            with open(text, encoding="utf-8") as file:
                text = file.read()
        check = Check(args.copy, [key_of(vkey) for vkey in text.split()], set(args.store), args.media)
        os.listdir(os.path.join(check.proof, "log/checkpoint"))
        if check.media and check.proof == check.copy:
            raise ValueError("--media needs a copy of the whole store, not of _proof alone")
        for name in args.expect_since:
            os.stat(name)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    check.log(args.expect_since)
    check.certificates()
    check.summary(len(args.expect_since))
    return 1 if check.problems else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
