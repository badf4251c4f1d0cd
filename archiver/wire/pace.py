"""How many requests at once suit a recorder: found by how it answers, never told.

As TCP Vegas does it: the quickest answer ever seen says how long one takes while nothing waits; what answers take
beyond it is time spent waiting, in a queue of ``width × (1 − quickest ÷ now)`` requests. More at once only lengthen
that queue, and a recorder serves beside recording calls. Pure: seconds go in, a width comes out.

Brakmo, Peterson: TCP Vegas, https://doi.org/10.1109/49.464716
"""

from __future__ import annotations

#: Quicker answers are no burden to anybody, whatever the quickest was.
_QUICK = 0.05
#: So many requests may wait at the recorder before there are fewer; with less there is room for more. The more there
#: are, the more of them chance lets wait.
_MOST_WAITING, _LEAST_WAITING, _BY_CHANCE = 1.0, 0.5, 0.05
#: Answers that are looked at together: the quickest of them, since some calls are longer than others.
_ANSWERS = 16
#: How much the memory of the quickest answer fades with each look, so that a slower recorder gets another chance.
_FADES = 1.002


class Pace:
    """One recorder's. Begins with few, doubles until answers slow down, then feels its way."""

    def __init__(self, width: float = 4.0) -> None:
        self._width = width
        self._doubling = True
        self._quickest: float | None = None
        self._seen = 0
        self._least = 0.0
        self._spared = 0

    @property
    def width(self) -> int:
        """How many at once, at least 1."""
        return int(self._width)

    def answered(self, seconds: float, limit: int) -> None:
        """An answer began so long after its request; ``limit``: what is allowed at most."""
        self._spared = max(0, self._spared - 1)
        self._least = seconds if self._seen == 0 else min(self._least, seconds)
        self._seen += 1
        if self._seen < max(_ANSWERS, 2 * self._width):
            return
        least, self._seen = self._least, 0
        self._quickest = least if self._quickest is None else min(least, self._quickest * _FADES)
        waiting = self._width * (1 - self._quickest / least) if least > _QUICK else 0.0
        waiting -= self._width * _BY_CHANCE
        if waiting > _MOST_WAITING:
            self._doubling = False
            self._width = max(1.0, self._width - max(1.0, waiting / 2))
        elif waiting < _LEAST_WAITING:
            self._width = min(float(max(1, limit)), self._width * 2 if self._doubling else self._width + 0.5)

    def refused(self) -> None:
        """It says that it is too much (429, 503, a time-out): half at once.

        What was already on its way then says so too, and is not counted again.
        """
        self._doubling = False
        if self._spared == 0:
            self._spared = self.width
            self._width = max(1.0, self._width / 2)
            self._seen = 0
        else:
            self._spared -= 1
