"""Recordings from a ZIP of whatever layout: trust nothing, match members by the recording's id in their names.

A member that is doubtful in any way is left out, so that its recording is fetched by itself. Names are compared and
never become paths.
"""

from __future__ import annotations

import asyncio
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO

from ...model import CHUNK, Medium
from ...ports import Sink

#: zipfile holds the whole directory in memory; a batch's takes about a hundred bytes a member.
_DIRECTORY = 4 << 20
#: Deflate packs silence a thousandfold, which no recorder's noise allows; small members may.
_RATIO, _SMALL = 200, 1 << 20
_AUDIO = (b"OggS", b"RIFF")
_HOSTILE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|[\x00-\x1f]")
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError)


async def unpack(file: IO[bytes], media: Sequence[Medium], into: Mapping[str, Sink], largest: int) -> set[str]:
    """Fill the sinks from the ZIP; returns the media_ids whose member was whole and matched its CRC.

    ``largest``: bytes that all members together may have. Raises nothing for a ZIP that can't be read.
    """
    delivered: set[str] = set()
    try:
        archive, members = await asyncio.to_thread(_members, file, media, largest)
    except _BROKEN:
        return delivered
    for media_id, info in members.items():
        if await _copy(archive, info, into[media_id]):
            delivered.add(media_id)
        else:
            await into[media_id].restart()
    return delivered


async def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, sink: Sink) -> bool:
    size = 0
    try:
        member = await asyncio.to_thread(archive.open, info)
    except _BROKEN:
        return False
    while True:
        try:
            chunk = await asyncio.to_thread(member.read, CHUNK)
        except _BROKEN:
            return False
        if not chunk:
            return size == info.file_size
        size += len(chunk)
        await sink.write(chunk)


def _members(
    file: IO[bytes], media: Sequence[Medium], largest: int
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """By media_id, the one audio member of each medium that has just one and a sound one."""
    _refuse_a_long_directory(file)
    archive = zipfile.ZipFile(file)
    audio: dict[str, zipfile.ZipInfo] = {}
    doubtful: set[str] = set()
    room = largest
    for info in archive.infolist():
        named = [m for m in media if _names(info.orig_filename, m.recording_id)]
        if len(named) != 1:
            doubtful |= {m.media_id for m in named}
        elif not _is_sound(info, room) or (is_audio := _is_audio(archive, info)) is None:
            doubtful.add(named[0].media_id)
        elif is_audio:
            room -= info.file_size
            if named[0].media_id in audio or named[0].size not in {None, info.file_size}:
                doubtful.add(named[0].media_id)
            audio[named[0].media_id] = info
    return archive, {media_id: info for media_id, info in audio.items() if media_id not in doubtful}


def _refuse_a_long_directory(file: IO[bytes]) -> None:
    """APPNOTE 4.3.16 (end of the directory). ZIP64 lets it be told elsewhere, and is for ZIPs longer than a batch."""
    end = file.seek(0, 2)
    file.seek(max(0, end - (1 << 16) - 42))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or b"PK\x06\x07" in tail[max(0, at - 20) : at] or struct.unpack_from("<L", tail, at + 12)[0] > _DIRECTORY:
        raise zipfile.BadZipFile


def _names(name: str, key: str) -> bool:
    """Does a member's name hold the id, or, of an id ``{uuid}-{number}``, the uuid with no other number behind it?"""
    uuid = key.rpartition("-")[0]
    whole = rf"(?<![0-9A-Za-z]){re.escape(key)}(?![0-9A-Za-z])"
    short = rf"(?<![0-9A-Za-z]){re.escape(uuid)}(?![0-9A-Za-z]|-\d)"
    return re.search(whole, name) is not None or (len(uuid) > 20 and re.search(short, name) is not None)


def _is_sound(info: zipfile.ZipInfo, room: int) -> bool:
    """A relative name, not encrypted, stored or deflated, and of a believable size."""
    return (
        not _HOSTILE.search(info.orig_filename)
        and not info.flag_bits & 0x41
        and info.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
        and info.file_size <= room
        and (info.file_size <= _SMALL or info.file_size <= info.compress_size * _RATIO)
    )


def _is_audio(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool | None:
    """By its first bytes; None where they can't be read."""
    try:
        with archive.open(info) as member:
            return member.read(4) in _AUDIO
    except _BROKEN:
        return None
