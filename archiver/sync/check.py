"""May these bytes be kept? They are read as audio and compared with what their source says of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from .. import audio
from ..catalog.catalog import Catalog
from ..errors import Doubtful, Empty, Mismatch
from ..model import Body, Claim, Flag, Medium, Verdict
from ..ports import Expects
from .failures import LONG_ENOUGH, TWICE, YOUNG, YOUNG_IF_SHORT, age_of, resume_source
from .feeds import REFUSALS, Feed

log = structlog.get_logger()

#: Audio that lasts less than this part of what its source says is short.
SHORT_BELOW = 0.2


async def checked(feed: Feed, claim: Claim, body: Body, catalog: Catalog, told_type: str | None = None) -> audio.Audio:
    """What bytes from the source are, once they may be kept. Raises SourceError.

    ``told_type``: what their answer calls them.
    """
    medium = claim.medium
    if medium.content_type is None and told_type is not None:
        medium = replace(medium, content_type=told_type)
    found = await verified(medium, body, feed)
    accept(feed, claim, body, found, catalog.clock.now())
    await delivered(feed, catalog)
    return found


async def delivered(feed: Feed, catalog: Catalog) -> None:
    """Audio came: the account may have it."""
    feed.health.worked()
    feed.gave_way, feed.delivered_at = 0, catalog.clock.now()
    refused, feed.refused, feed.refused_newest = feed.refused, set(), set()
    if len(refused) >= REFUSALS and feed.pauses:
        await catalog.forgive(refused, "refused", catalog.clock.now())
        await resume_source(feed, catalog)


async def verified(medium: Medium, body: Body, feed: Feed | None = None) -> audio.Audio:
    """What the bytes are. Raises Mismatch where they are not what the source promised, TryAgain where no audio.

    What it promised counts as far as the options of its source (of now) say.
    """
    if feed is not None and isinstance(feed.source, Expects):
        medium = feed.source.expected(medium)
    if medium.size is not None and body.length != medium.size:
        raise Mismatch(f"the source says {medium.size} bytes, {body.length} came")
    if medium.sha256 is not None and body.sha256 != medium.sha256.lower():
        raise Mismatch(f"the source says SHA-256 {medium.sha256[:12]}…, the bytes have {body.sha256[:12]}…")
    return await inspected(body, medium, feed)


async def inspected(body: Body, medium: Medium, feed: Feed | None) -> audio.Audio:
    how: dict[str, Any] = {"opaque": medium.opaque, "told_type": medium.content_type}
    if feed is not None and feed.options.audio is not None:
        how["raw"] = feed.options.audio
    if body.path is not None or body.length > 4 << 20:
        return await asyncio.to_thread(audio.inspect, body, **how)
    return audio.inspect(body, **how)


def evidence(found: audio.Audio, expected: timedelta | None) -> tuple[tuple[Flag, ...], str | None]:
    """Why bytes can only be kept as evidence, and what was seen; ``expected``: how long they last by their source."""
    lasts = timedelta() if found.verdict is Verdict.EMPTY else found.duration
    flags: tuple[Flag, ...] = ()
    notes = []
    if found.verdict in {Verdict.UNFINISHED, Verdict.CUT}:
        flags = (Flag.UNFINISHED, Flag.UNCHECKED)
    elif found.verdict is Verdict.UNCHECKED:
        flags = (Flag.UNCHECKED,)
    if found.reason is not None:
        notes.append(found.reason)
    if expected is not None and expected > LONG_ENOUGH and lasts is not None and lasts < expected * SHORT_BELOW:
        flags = (*flags, Flag.SHORT)
        notes.append(f"{lasts.total_seconds():.1f} s of audio, the source told of {expected.total_seconds():.1f} s")
    return flags, "; ".join(notes) if flags or notes else None


def accept(feed: Feed, claim: Claim, body: Body, found: audio.Audio, now: datetime) -> None:
    """May these bytes be kept? Raises Empty, or Doubtful where they are to be looked at again.

    What may not be whole is waited for while the call is young, and kept once the same bytes came twice. The source's
    own hash, or the size of what nobody can check, stands for the second time.
    """
    flags, note = evidence(found, claim.medium.duration)
    if not flags:
        if found.verdict is Verdict.EMPTY:
            raise Empty(note or "it holds no audio")
        return
    young = YOUNG_IF_SHORT if Flag.SHORT in flags else YOUNG
    vouched = claim.medium.sha256 is not None or (found.verdict is Verdict.UNCHECKED and claim.medium.size is not None)
    came = claim.seen_at if claim.seen_sha256 == body.sha256 else None
    if age_of(claim, now) < young or not (vouched or (came is not None and now - came >= TWICE)):
        what = "short" if Flag.SHORT in flags else found.verdict.value
        raise Doubtful(note or what, what=what, sha256=body.sha256)
    if found.verdict is Verdict.EMPTY and body.length == 0:
        raise Empty(note or "it holds no audio")
    log.warning("recording.evidence", source=feed.name, recording_id=claim.medium.recording_id, flags=flags, why=note)
