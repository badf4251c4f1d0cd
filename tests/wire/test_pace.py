"""The pace that suits a recorder, on simulated ones: virtual seconds, nothing left to luck."""

import heapq

import pytest

from archiver.wire.gate import Gate
from archiver.wire.pace import Pace

LIMIT = 24


def rate(width, served_in, *, answers=4000, pace=None, varied=False):
    """Answers a second of a recorder whose answers take ``served_in(running)``; the second half counts."""
    running, now, counted_from, widths = [], 0.0, 0.0, []
    for done in range(answers):
        while len(running) < (min(pace.width, LIMIT) if pace else width):
            seconds = served_in(len(running) + 1) * (1 + (done * 7919 % 13) * varied)
            heapq.heappush(running, (now + seconds, now))
        now, began = heapq.heappop(running)
        if pace:
            pace.answered(now - began, LIMIT)
            widths.append(pace.width)
        if done == answers // 2:
            counted_from = now
    return (answers - answers // 2 - 1) / (now - counted_from), widths


def workers(count, seconds):
    """A recorder that serves so many at once; the others wait."""
    return lambda running: seconds * max(1.0, running / count)


def thrashing(count, seconds):
    """One that is worse off the more it is asked."""
    return lambda running: seconds * max(1.0, running / count) ** 1.3


@pytest.mark.parametrize("varied", [False, True], ids=["calls alike", "calls of 1 to 13 times the length"])
@pytest.mark.parametrize("recorder", [workers, thrashing])
@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_the_rate_is_within_a_tenth_of_the_best_fixed_setting(recorder, count, varied):
    served_in = recorder(count, 0.2)
    best = max(rate(width, served_in, varied=varied)[0] for width in range(1, LIMIT + 1))
    reached, widths = rate(0, served_in, pace=Pace(), varied=varied)
    assert reached >= 0.9 * best
    assert max(widths) <= LIMIT


def test_a_small_recorder_is_not_crowded():
    _, widths = rate(0, workers(2, 0.2), pace=Pace())
    assert max(widths[1000:]) <= 2 + 6


def test_quick_answers_never_slow_it_down():
    _, widths = rate(0, lambda running: 0.001 * running, pace=Pace())
    assert widths[-1] == LIMIT


def test_it_falls_to_half_at_once_and_once_for_what_was_on_its_way():
    pace = Pace(16)
    pace.refused()
    assert pace.width == 8
    for _ in range(7):
        pace.refused()
    assert pace.width == 8
    for _ in range(20):
        pace.answered(0.01, LIMIT)
    pace.refused()
    assert pace.width in {4, 5}


def test_it_never_falls_below_one_and_comes_back():
    pace = Pace(2)
    for _ in range(50):
        pace.refused()
    assert pace.width == 1
    for _ in range(400):
        pace.answered(0.01, 6)
    assert pace.width == 6


async def test_the_gate_admits_no_more_than_the_pace_nor_than_the_limit():
    gate = Gate(8, pace=Pace(2))
    async with gate.slot(), gate.slot():
        assert gate.room == 0
        gate.limit = 1
        assert gate.room == 0
    gate.limit = 8
    for _ in range(200):
        gate.answered(0.01)
    assert gate.room == 8
    gate.refused()
    assert gate.room == 4
