"""What follows from a failure: decided in one place, ``explain``, by the error's type (errors.py: whom it concerns)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from ..catalog.catalog import Catalog
from ..common.scope import canary, concerns_store
from ..errors import (
    Busy,
    Doubtful,
    Empty,
    Gone,
    Mismatch,
    NotReady,
    Refused,
    Scope,
    SourceError,
    StoreError,
    StoreRefused,
    TryAgain,
)
from ..model import (
    Claim,
    Flag,
    Outcome,
    State,
)
from .feeds import Feed, Outlet
from .windows import next_look, next_try

log = structlog.get_logger()


#: A medium that its source neither lists nor delivers any more is gone after so long.
GONE_AFTER = timedelta(days=3)
#: A fresh file without audio may still be written.
FRESH = timedelta(minutes=15)
#: Audio that may not be whole is waited for while its call ended less than so long ago …
YOUNG = timedelta(hours=1)
#: … and so long, if it is far shorter than its source says.
YOUNG_IF_SHORT = timedelta(days=1)
#: Then it is kept as evidence, once the same bytes came twice, so long apart.
TWICE = timedelta(minutes=10)
#: Only of a call that is longer than this by its source, less than a fifth is short.
LONG_ENOUGH = timedelta(minutes=1)
#: The reason of a medium whose bytes are not what its source says.
MISMATCH = "mismatch"
#: A recorder that was seen to work so lately is not asked again because of single items.
ALIVE_FOR = timedelta(seconds=30)
#: After so many failures in a row a source's queue is taken from its other end, for so long, in seconds.
OTHER_END_AFTER, OTHER_END = 3, 60.0
#: Where it asks for fewer requests, it gets none for so long: what it asked for itself, within these bounds.
SPARED, SPARED_AT_MOST = timedelta(seconds=2), timedelta(minutes=1)
#: In a medium's ref: its details are not known yet, so it can't be fetched.
UNDETAILED = "undetailed"
#: An account counts as refused when so many media from the other end of the queue were refused too, and no audio came
#: for so long.
SAMPLED = 3
SILENT = timedelta(minutes=10)


class RecorderLost(Exception):
    """The recorder itself does not work: no window is to blame."""


async def works(feed: Feed, catalog: Catalog, error: SourceError) -> bool:
    """Something failed: does the recorder itself work? Asked, unless it was seen to a moment ago. Opens its breaker.

    Raises Refused.
    """
    now = catalog.clock.now()
    lately = feed.alive_at is not None and now - feed.alive_at < ALIVE_FOR
    if lately and error.scope is not Scope.RECORDER:
        return True
    try:
        await feed.source.check()
    except Refused:
        raise
    except SourceError as dead:
        now, asked = catalog.clock.now(), getattr(dead, "retry_after", None)
        if not feed.health.open(now):
            feed.health.opens(now, str(dead), asked)
            feed.gate.refused()
            log.warning("source.down", source=feed.name, error=str(dead))
        return False
    feed.alive_at = catalog.clock.now()
    return True


async def pause_source(feed: Feed, catalog: Catalog, why: str) -> None:
    """Our account is refused: leave the source alone for a while, longer each time; its queue stays as it is."""
    if feed.paused_until is not None and catalog.clock.now() < feed.paused_until:
        # Another request got the same answer first.
        return
    feed.pauses += 1
    wait = min(timedelta(minutes=1) * 2 ** min(feed.pauses - 1, 10), timedelta(minutes=15))
    feed.paused_until, feed.paused_why, feed.account_worked_at = catalog.clock.now() + wait, why, None
    await catalog.pause(feed.name, feed.paused_until, why)
    log.error("source.refused", source=feed.name, error=why, retry_in_s=wait.total_seconds())


async def resume_source(feed: Feed, catalog: Catalog) -> None:
    if feed.paused_until is not None or feed.pauses:
        log.info("source.welcome", source=feed.name, pauses=feed.pauses)
    feed.paused_until, feed.paused_why, feed.pauses = None, "", 0
    # Only a recorder that answers nothing has its breaker open, and it just listed.
    feed.health.worked()
    await catalog.pause(feed.name, None, None)


def age_of(claim: Claim, now: datetime) -> timedelta:
    """How long ago its call ended."""
    return max(now - (claim.ended_at or claim.started_at), timedelta())


def postponed(claim: Claim, due_at: datetime, why: str) -> Outcome:
    """Nothing is wrong with this medium: it is due again then, and no attempt is counted."""
    return Outcome(
        claim=claim,
        state=State.PENDING,
        due_at=due_at,
        error=why,
        attempts=claim.attempts,
        failing_since=claim.failing_since,
        what="store failed",
    )


def refused_object(feed: Feed, claim: Claim, catalog: Catalog, due_at: datetime, why: str) -> Outcome:
    """The store does not take this one: an attempt, for it was downloaded; given up like any other."""
    now = catalog.clock.now()
    gives_up = now - (claim.failing_since or now) >= feed.options.retry.give_up_after
    return Outcome(
        claim=claim,
        state=State.FAILED if gives_up else State.PENDING,
        due_at=due_at,
        error=why,
        attempts=claim.attempts + 1,
        failing_since=claim.failing_since or now,
        what="store refused it",
    )


async def store_failed(outlet: Outlet, catalog: Catalog, error: StoreError, key: str) -> datetime | None:
    """Until when nothing more is put there; None where this object alone is to blame, and the others go on."""
    if not outlet.health.open(catalog.clock.now()):
        if not await concerns_store(outlet, error, key, outlet.refused_objects):
            return None
        if not outlet.health.open(catalog.clock.now()):
            level = log.error if isinstance(error, StoreRefused) else log.warning
            level("store.down", store=outlet.name, error=str(error))
            # With a canary that works it may as well be these objects: the next ones are let through soon.
            wait = SPARED if outlet.refused_objects.exceeded else None
            outlet.refused_objects.worked()
            outlet.health.opens(catalog.clock.now(), str(error), wait=wait)
    return outlet.health.until


async def explain(feed: Feed, claim: Claim, catalog: Catalog, error: SourceError) -> Outcome:
    """What follows from a failure: the one place that decides (the table in docs/reliability.md)."""
    now = catalog.clock.now()
    jitter = random.random()  # noqa: S311 - spreads load, guards nothing

    def outcome(state: State, what: str, due_at: datetime = now, *, counts: bool = False) -> Outcome:
        return Outcome(
            claim=claim,
            state=state,
            due_at=due_at,
            error=f"{what}: {error}"[:500],
            attempts=claim.attempts + counts,
            failing_since=(claim.failing_since or now) if counts else claim.failing_since,
            what=what,
        )

    if isinstance(error, Refused):
        if await _account_works(feed, catalog):
            return await _refused(feed, claim, catalog, error, outcome)
        later = outcome(State.PENDING, "account refused", feed.paused_until or now + timedelta(minutes=1))
        return replace(later, troubled=claim.troubled)
    if isinstance(error, NotReady | Empty | Gone):
        # The recorder answered.
        feed.health.failures = 0
        return await _not_there(feed, claim, catalog, error, outcome)
    await _suspect(feed, catalog, error)
    asked = error.retry_after if isinstance(error, TryAgain) else None
    failing = now - (claim.failing_since or now)
    if failing >= feed.options.retry.give_up_after:
        return outcome(State.FAILED, "gave up", counts=True)
    wait = next_try(claim.attempts + 1, feed.options.retry, jitter, asked)
    return outcome(State.PENDING, MISMATCH if isinstance(error, Mismatch) else "failed", now + wait, counts=True)


async def _not_there(
    feed: Feed, claim: Claim, catalog: Catalog, error: SourceError, outcome: Callable[..., Outcome]
) -> Outcome:
    """No audio, none yet, none any more, or some that may not be whole."""
    now, jitter = catalog.clock.now(), random.random()  # noqa: S311
    age = age_of(claim, now)
    if isinstance(error, Empty) and age > FRESH:
        ended = outcome(State.EMPTY, "empty")
        long = claim.medium.duration is not None and claim.medium.duration > LONG_ENOUGH
        return replace(ended, flags=(Flag.SHORT,), note=str(error)) if long else ended
    if isinstance(error, Gone):
        return outcome(State.GONE, "gone")
    if isinstance(error, Doubtful):
        again = error.sha256 == claim.seen_sha256
        # Other bytes each time, and of a call that ended long ago: that is a failure like any other.
        counts = not again and claim.seen_sha256 is not None and age > YOUNG_IF_SHORT
        young = age < (YOUNG_IF_SHORT if error.what == "short" else YOUNG)
        wait = max(TWICE, next_try(claim.attempts + 1, feed.options.retry, jitter)) if counts else TWICE
        due_at = now + (next_look(age, jitter) if young else wait)
        return replace(outcome(State.PENDING, error.what, due_at, counts=counts), seen=error.sha256)
    missing = await catalog.missing_since(feed.name, claim.medium.recording_id)
    if missing is not None and now - missing > GONE_AFTER:
        return outcome(State.GONE, "gone")
    return outcome(State.PENDING, "not ready", now + next_look(age, jitter))


async def _suspect(feed: Feed, catalog: Catalog, error: SourceError) -> None:
    """A request failed. After several in a row the recorder itself is asked; that alone opens its breaker."""
    asks = feed.health.suspects()
    if feed.health.failures >= OTHER_END_AFTER:
        feed.other_end_until = time.monotonic() + OTHER_END
    if not asks:
        return
    async with feed.logging_in:
        now = catalog.clock.now()
        if feed.health.failures < feed.health.allowed or feed.health.open(now):
            # Another one asked meanwhile.
            return
        try:
            alive = await works(feed, catalog, error)
        except Refused as refusal:
            await pause_source(feed, catalog, str(refusal))
            return
        if not alive:
            return
        feed.health.failures = 0
        if isinstance(error, Busy):
            # It works, and wants fewer requests.
            feed.gate.refused()
            wait = min(max(error.retry_after or SPARED, SPARED), SPARED_AT_MOST)
            feed.health.opens(now, str(error), wait=wait)


async def heal(feed: Feed, catalog: Catalog) -> None:
    """The breaker's time is over: does the recorder work again?"""
    async with feed.logging_in:
        try:
            await feed.source.check()
        except Refused as refusal:
            # It answers: what follows is the account's.
            feed.health.worked()
            await pause_source(feed, catalog, str(refusal))
        except SourceError as error:
            feed.health.opens(catalog.clock.now(), str(error), getattr(error, "retry_after", None))
        else:
            feed.alive_at = catalog.clock.now()
            feed.health.worked()
            log.info("source.up", source=feed.name)


async def heal_store(outlet: Outlet, catalog: Catalog) -> bool:
    """The breaker's time is over: does the store work again? If so, one transfer is let through, and decides."""
    error = await canary(outlet.store)
    if error is not None:
        outlet.health.opens(catalog.clock.now(), str(error))
        return False
    # A canary is small: it fits on a disk that is full for recordings.
    outlet.health.trying = True
    log.info("store.up", store=outlet.name)
    return True


async def _refused(
    feed: Feed, claim: Claim, catalog: Catalog, error: Refused, outcome: Callable[..., Outcome]
) -> Outcome:
    """The account is welcome, this medium is refused: it alone, or all of them?

    Where several are refused and none is delivered in between, the next ones come from the other end of the queue.
    """
    feed.refused.add(claim.id)
    if claim.newest:
        feed.refused_newest.add(claim.id)
    now = catalog.clock.now()
    lately = feed.delivered_at is not None and now - feed.delivered_at < SILENT
    if len(feed.refused_newest) < SAMPLED or lately:
        if lately or (not feed.samples and await catalog.delivered(feed.name)):
            return outcome(State.FAILED, "refused", counts=True)
        # An account that never got any audio may not be meant to; and perhaps all are refused now.
        due_at = catalog.clock.now() + next_try(claim.attempts + 1, feed.options.retry, 0.5)
        return outcome(State.PENDING, "refused", due_at, counts=True)
    await pause_source(feed, catalog, f"the account may list recordings, but is refused the audio of each: {error}")
    # Behind the others, which may be allowed.
    due_at = (feed.paused_until or catalog.clock.now()) + timedelta(minutes=1)
    await catalog.forgive(feed.refused, "refused", due_at)
    return outcome(State.PENDING, "account refused", due_at)


async def _account_works(feed: Feed, catalog: Catalog) -> bool:
    """Was only this one item refused? Asks with a login, at most once a minute; a refused one pauses the source."""
    async with feed.logging_in:
        now = catalog.clock.now()
        if feed.paused_until is not None and now < feed.paused_until:
            return False
        if feed.account_worked_at is not None and now - feed.account_worked_at < timedelta(minutes=1):
            return True
        try:
            await feed.source.check()
        except Refused as refusal:
            await pause_source(feed, catalog, str(refusal))
            return False
        except SourceError as error:
            if not feed.health.open(now):
                feed.health.opens(now, str(error))
            return False
        feed.account_worked_at = feed.alive_at = now
        return True
