"""One source's media on their way through this process: what is claimed, what runs, what may begin next."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..common.tally import Timings
from ..model import Claim, State
from .feeds import Feed

#: Claims are for the next so many seconds at the rate of late, where that is more than keeps every slot busy.
AHEAD = 0.25
#: What failed before gets one turn to so many of others that wait, and as much less of the source's time.
SPARING = 9
#: What waits for an answer (Feed.question) is looked at again so often; each poll asks whether it came.
ASKED = timedelta(seconds=10)
#: A run that has nothing to do until another process has finished, or what failed is due again, looks so often, in
#: seconds.
SOON = 0.5


@dataclass(slots=True)
class Lane:
    """One source's media on their way through this process."""

    feed: Feed
    queue: deque[Claim] = field(default_factory=deque)
    #: What failed before: it starts only where it takes nothing from what never did (see :meth:`next_claims`).
    behind: deque[Claim] = field(default_factory=deque)
    running: int = 0
    #: Of these, how many failed before; and from when on one more may take the place of what never did (monotonic).
    running_behind: int = 0
    spared_at: float = 0.0
    #: How many that never failed were begun since one that did.
    fresh: int = 0
    #: When a claim last found nothing that never failed (monotonic).
    exhausted_at: float = float("-inf")
    due_at: datetime | None = None
    #: How many were begun since the last claim, when that was (monotonic clock), and how many a second before it.
    begun: int = 0
    claimed_at: float = 0.0
    rate: float = 0.0

    @property
    def batch(self) -> int:
        return self.feed.batches.batch if self.feed.batches is not None else 1

    @property
    def waiting(self) -> int:
        """How many are claimed and not begun."""
        return len(self.queue) + len(self.behind)

    def blocked(self, now: datetime) -> datetime | None:
        """Until when nothing of this source can be transferred, if so; what is over there is healed first."""
        feed = self.feed
        until = [o.health.until for o in feed.outlets.values() if o.health.probing and not o.health.trying]
        until += [feed.health.until] if feed.health.probing else []
        until += [feed.paused_until] if feed.paused_until and now < feed.paused_until else []
        # Asked again with each poll.
        until += [now + ASKED] if feed.question is not None else []
        moments = [moment for moment in until if moment is not None]
        return max(moments) if moments else None

    def waits(self, now: datetime) -> bool:
        """Is something due that could be transferred?"""
        if self.due_at is None or self.due_at > now or self.blocked(now) is not None:
            return False
        # Is all that is due what failed before, and no room for it?
        return self.room_behind()[0] > 0 or time.monotonic() > self.exhausted_at + SOON

    def slots(self) -> int:
        """How many transfers may run. The gate bounds their requests; twice as many keep it busy during puts.

        But not of a recorder that just failed: those waiting at the gate would ask it although the breaker opened.
        """
        return self.feed.gate.limit * (1 if self.feed.health.failures else 2)

    def slots_behind(self) -> int:
        """How many of these what failed before may take: half of the requests stay free for what never did."""
        return max(1, self.feed.gate.limit // 2)

    def room(self) -> int:
        """How many more media to claim: enough to keep every slot busy while the next claim is under way.

        But no more than others would have to wait for long.
        """
        if any(o.health.trying for o in self.feed.outlets.values()):
            return 1 - self.running - self.waiting
        most = max(self.feed.gate.limit * 5 * self.batch, int(self.rate * AHEAD))
        return most - self.running - self.waiting

    def room_behind(self) -> tuple[int, int]:
        """How many that failed before to claim at the most, and at the least although others wait."""
        if any(o.health.trying for o in self.feed.outlets.values()):
            return self.room(), 0
        most = 2 * self.slots_behind() - self.running_behind - len(self.behind)
        return max(0, most), int(most > 0 and not self.running_behind and not self.behind and self._may_spare())

    def _may_spare(self) -> bool:
        return self.fresh >= SPARING and time.monotonic() >= self.spared_at

    def next_claims(self) -> list[Claim]:
        """What to begin next: one claim, or as many fresh ones as the source delivers in one answer; or nothing yet.

        What failed before gets a tenth of the turns and of the time while others wait; then half of the slots.
        """
        spared = self.behind and not self.running_behind and self._may_spare()
        if self.queue and self.feed.samples and not self.queue[0].newest:
            # Others are tried first; these are about to be given back.
            return []
        if self.queue and not spared:
            claims = [self.queue.popleft()]
            self.fresh += 1
        elif self.behind and self.running_behind < self.slots_behind():
            self.running_behind += 1
            self.fresh = 0
            claims = [self.behind.popleft()]
        else:
            return []
        self.begun += 1
        while self.batch > 1 and self.queue and len(claims) < self.batch:
            if claims[-1].attempts or claims[-1].copies or self.queue[0].attempts or self.queue[0].copies:
                break
            claims.append(self.queue.popleft())
            self.begun += 1
        return claims

    def ended(self, claims: Sequence[Claim], seconds: float) -> None:
        """What :meth:`next_claims` gave is done."""
        self.running -= 1
        if claims[0].troubled:
            self.running_behind -= 1
            self.spared_at = time.monotonic() + SPARING * seconds

    def claimed(self) -> None:
        now = time.monotonic()
        self.rate, self.begun, self.claimed_at = self.begun / (now - self.claimed_at), 0, now


@dataclass(slots=True)
class Tally:
    """What happened to media since the engine began, by source."""

    states: Counter[tuple[str, State]] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    #: How attempts ended: archived, stored in part, or what the history calls it.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: How long transfers and polls took.
    transfers: defaultdict[str, Timings] = field(default_factory=lambda: defaultdict(Timings))
    polls: defaultdict[str, Timings] = field(default_factory=lambda: defaultdict(Timings))
    #: Polls that ended with an error.
    failed_polls: Counter[str] = field(default_factory=Counter)
