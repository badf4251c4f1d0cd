"""The time that a fleet agrees on: the database's, carried on by this host's monotonic clock.

A host whose own clock jumps or is wrong neither steals a lease nor lists the future.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


class Clock:
    def __init__(self) -> None:
        self.set(datetime.now(UTC))

    def set(self, now: datetime) -> None:
        """It is ``now`` now."""
        self._base, self._mark = now, time.monotonic()

    def now(self) -> datetime:
        return self._base + timedelta(seconds=time.monotonic() - self._mark)
