"""Arithmetic on ledgers and clocks: nothing is skipped, nothing doubled, whatever crashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.model import ListingKey, Window
from archiver.settings.options import Retry, SourceOptions
from archiver.sync.windows import EPOCH, Piece, cut, halve, intersect, merge, next_look, next_try, plan, subtract
from tests.factories import NOON, a_window, at

MICROSECOND = timedelta(microseconds=1)
#: A small world, so that windows meet, touch and overlap often; its unit is a second in one run, a microsecond in
#: the next, an hour in the third.
TICKS = st.integers(0, 48)
UNITS = st.sampled_from([timedelta(seconds=1), MICROSECOND, timedelta(hours=1), timedelta(microseconds=333_333)])


def window(one: int, other: int, unit: timedelta = timedelta(seconds=1)) -> Window:
    start, end = sorted((one, other))
    return Window(NOON + start * unit, NOON + (end + (start == end)) * unit)


def windows_of(unit: timedelta, **size: int) -> st.SearchStrategy[list[Window]]:
    return st.lists(st.builds(window, TICKS, TICKS, st.just(unit)), **size)


LEDGERS = UNITS.flatmap(lambda unit: windows_of(unit, max_size=8))


@st.composite
def worlds(draw):
    """A ledger, what is wanted, and how to list it."""
    unit = draw(UNITS)
    wanted = draw(st.builds(window, TICKS, TICKS, st.just(unit)))
    # Either a few listed windows, or everything but a few gaps.
    gaps = st.builds(lambda start, length: window(start, start + length, unit), TICKS, st.integers(1, 4))
    holed = st.lists(gaps, max_size=4).map(lambda gaps: subtract([window(0, 49, unit)], gaps))
    return {
        "covered": draw(st.one_of(windows_of(unit, max_size=6), holed)),
        "wanted": wanted,
        "longest": unit * draw(st.integers(1, 60)),
        "lookback": unit * draw(st.integers(0, 30)),
        "recent": draw(st.booleans()),
        "doubtful": [NOON + n * unit for n in draw(st.lists(TICKS, max_size=3))],
    }


def planned(world, **changes) -> list[Piece]:
    world = world | changes
    return plan(world.pop("covered"), world.pop("wanted"), **world)


def moments(windows: Sequence[Window]) -> set[datetime]:
    """The edges, and the moments just beside them: where sets of these windows can differ."""
    edges = {edge for w in windows for edge in (w.start, w.end)}
    return edges | {edge - MICROSECOND for edge in edges}


def lie_in(moment: datetime, windows: Sequence[Window]) -> bool:
    return any(moment in w for w in windows)


def before(moment: datetime, by: timedelta, within: Window) -> list[Window]:
    start = max(within.start, moment - by)
    return [Window(start, moment)] if start < moment else []


class TestSets:
    @given(LEDGERS)
    def test_merging_keeps_every_moment_and_is_compact(self, windows):
        merged = merge(windows)
        assert all(lie_in(m, windows) == lie_in(m, merged) for m in moments(windows))
        assert all(a.end < b.start for a, b in pairwise(merged))

    @given(UNITS.flatmap(lambda unit: st.tuples(windows_of(unit, max_size=6), windows_of(unit, max_size=6))))
    def test_subtracting_and_intersecting_split_the_wanted(self, both):
        wanted, covered = both
        left, shared = subtract(wanted, covered), intersect(wanted, covered)
        for moment in moments([*wanted, *covered]):
            assert lie_in(moment, left) == (lie_in(moment, wanted) and not lie_in(moment, covered))
            assert lie_in(moment, shared) == (lie_in(moment, wanted) and lie_in(moment, covered))
        assert left == merge(left)
        assert shared == merge(shared)
        assert merge([*left, *shared]) == merge(wanted)

    @given(UNITS.flatmap(lambda unit: st.tuples(st.builds(window, TICKS, TICKS, st.just(unit)), st.integers(1, 60))))
    def test_a_cut_span_is_whole_short_and_cut_at_fixed_moments(self, given_):
        span, count = given_
        longest = max(span.length / 7, MICROSECOND) * count
        pieces = cut(span, longest)
        assert pieces[0].start == span.start
        assert pieces[-1].end == span.end
        assert all(a.end == b.start for a, b in pairwise(pieces))
        assert all(piece.length <= longest for piece in pieces)
        assert all((piece.end - EPOCH) % longest == timedelta() for piece in pieces[:-1])

    def test_touching_windows_become_one(self):
        assert merge([a_window("11:00", "12:00"), a_window("10:00", "11:00")]) == [a_window("10:00", "12:00")]

    def test_a_gap_of_a_microsecond_stays_a_gap(self):
        one, other = Window(at("10:00"), at("11:00") - MICROSECOND), a_window("11:00", "12:00")
        assert merge([one, other]) == [one, other]
        assert subtract([a_window("10:00", "12:00")], [one, other]) == [Window(at("11:00") - MICROSECOND, at("11:00"))]


class TestHalve:
    @given(
        st.timedeltas(timedelta(days=10_000), timedelta(days=30_000)).map(lambda age: EPOCH + age),
        st.timedeltas(MICROSECOND, timedelta(days=400)),
    )
    def test_halves_are_the_whole_cut_at_a_whole_second(self, start, length):
        whole = Window(start, start + length)
        halves = halve(whole)
        if halves is None:
            assert length < timedelta(seconds=2)
            return
        older, newer = halves
        assert (older.start, older.end, newer.end) == (whole.start, newer.start, whole.end)
        assert newer.start.microsecond == 0
        assert abs(older.length - newer.length) <= timedelta(seconds=2)

    def test_a_second_is_not_halved(self):
        assert halve(Window(NOON, NOON + timedelta(seconds=1))) is None
        assert halve(Window(NOON, NOON + timedelta(seconds=2))) is not None


class TestPlan:
    @given(worlds())
    def test_pieces_are_short_disjoint_and_inside(self, world):
        pieces = planned(world)
        in_order = sorted(piece.window for piece in pieces)
        assert all(w.length <= world["longest"] for w in in_order)
        assert all(a.end <= b.start for a, b in pairwise(in_order))
        assert all(world["wanted"].start <= w.start and w.end <= world["wanted"].end for w in in_order)

    @given(worlds())
    def test_pieces_are_the_gaps_and_what_is_listed_again(self, world):
        gaps = subtract([world["wanted"]], world["covered"])
        listed = merge(piece.window for piece in planned(world))
        assert subtract(gaps, listed) == []
        needed = [w for gap in gaps for w in before(gap.start, world["lookback"], world["wanted"])]
        if world["recent"]:
            needed += before(world["wanted"].end, world["lookback"], world["wanted"])
        assert subtract(needed, listed) == []
        # More than that is listed only for doubtful moments and down to the next fixed cut.
        beyond = subtract(listed, [*gaps, *needed])
        if not world["doubtful"]:
            assert all(w.length < world["longest"] for w in beyond)
            assert world["recent"] or not beyond

    @given(worlds())
    def test_what_a_piece_opens_is_what_the_ledger_lacks_of_it(self, world):
        gaps = subtract([world["wanted"]], world["covered"])
        for piece in planned(world):
            assert list(piece.opens) == intersect([piece.window], gaps)

    @given(worlds(), LEDGERS)
    def test_no_piece_holds_what_is_left_out_and_every_other_gap_is_listed(self, world, without):
        pieces = [piece.window for piece in planned(world, without=without)]
        assert intersect(pieces, without) == []
        assert subtract(subtract([world["wanted"]], world["covered"]), [*pieces, *without]) == []

    @given(worlds())
    def test_listed_again_comes_first_then_gaps_newest_first(self, world):
        pieces = planned(world)
        opening = [bool(piece.opens) for piece in pieces]
        assert opening == sorted(opening)
        for kind in (True, False):
            starts = [piece.window.start for piece in pieces if bool(piece.opens) is kind]
            assert starts == sorted(starts, reverse=True)

    @given(worlds())
    def test_a_second_plan_opens_nothing(self, world):
        covered = [*world["covered"], *(piece.window for piece in planned(world))]
        assert not any(piece.opens for piece in planned(world, covered=covered))

    @given(worlds(), st.data())
    def test_whatever_is_killed_in_the_end_all_is_covered_and_every_lookback_was_listed(self, world, data):
        """A run is killed after any of its pieces; the next one plans anew from the ledger it finds."""
        wanted = world["wanted"]
        gaps = subtract([wanted], world["covered"])
        guards = [w for gap in gaps for w in before(gap.start, world["lookback"], wanted)]
        ledger, listed = list(world["covered"]), []
        while subtract([wanted], ledger):
            pieces = planned(world, covered=ledger)
            kills = data.draw(st.integers(1, len(pieces)), label=f"killed after, of {len(pieces)}")
            # Work is done in each run, or it would be killed for ever: at least one gap's piece.
            kills = max(kills, 1 + next(n for n, piece in enumerate(pieces) if piece.opens))
            listed += [piece.window for piece in pieces[:kills]]
            ledger += [piece.window for piece in pieces[:kills]]
        assert subtract([wanted], ledger) == []
        assert subtract(guards, listed) == []

    @given(worlds(), st.data())
    def test_whatever_fails_is_a_gap_in_the_end_all_is_covered_and_every_lookback_was_listed(self, world, data):
        """As sync does it: what can't be listed leaves the ledger, and holds up nothing else."""
        wanted = world["wanted"]
        gaps = subtract([wanted], world["covered"])
        ledger, listed = list(world["covered"]), []
        for piece in planned(world):
            if data.draw(st.booleans(), label=f"{piece.window} fails"):
                ledger = subtract(ledger, [piece.window])
                continue
            listed.append(piece.window)
            ledger.append(piece.window)
        # The next run, of which nothing fails.
        for piece in planned(world, covered=ledger):
            listed.append(piece.window)
            ledger.append(piece.window)
        guards = [w for gap in gaps for w in before(gap.start, world["lookback"], wanted)]
        assert subtract([wanted], ledger) == []
        assert subtract(guards, listed) == []

    def test_what_lies_between_two_gaps_is_listed_again_before_the_newer_one_joins(self):
        """One piece spans the older gap and what lies behind it: killed before it, the newer gap's lookback is lost."""
        wanted = a_window("00:00", "23:00")
        gaps = [a_window("10:00", "11:00"), a_window("12:00", "13:00")]
        pieces = plan(
            subtract([wanted], gaps), wanted, longest=timedelta(hours=12), lookback=timedelta(hours=3), recent=False
        )
        until = next(n for n, piece in enumerate(pieces) if at("12:00") in piece.window)
        listed = [piece.window for piece in pieces[: until + 1]]
        assert subtract([a_window("11:00", "12:00")], listed) == []

    def test_an_everyday_poll_lists_a_few_windows_on_fixed_cuts(self):
        wanted = Window(at("10T00:00"), at("18T11:58"))
        covered = [Window(at("10T00:00"), at("18T11:53"))]
        pieces = plan(covered, wanted, longest=timedelta(hours=24), lookback=timedelta(hours=24))
        assert [(piece.window, piece.opens) for piece in pieces] == [
            (Window(at("17T00:00"), at("18T00:00")), ()),
            (Window(at("18T00:00"), at("18T11:58")), (Window(at("18T11:53"), at("18T11:58")),)),
        ]

    def test_polls_that_follow_each_other_list_the_same_windows(self):
        seen, polls = set(), range(0, 300, 5)
        covered = [Window(at("10T00:00"), at("18T06:00"))]
        for minutes in polls:
            wanted = Window(at("10T00:00"), at("18T06:05") + timedelta(minutes=minutes))
            pieces = plan(covered, wanted, longest=timedelta(hours=1), lookback=timedelta(hours=3))
            seen |= {piece.window.start for piece in pieces}
            covered = merge([*covered, *(piece.window for piece in pieces)])
        fixed = {start for start in seen if (start - EPOCH) % timedelta(hours=1) == timedelta()}
        assert len(fixed) == 8
        # Once an hour the lookback of the gap begins a little before that of the poll.
        assert len(seen - fixed) <= 5

    def test_a_doubtful_moment_is_looked_at_again_wherever_it_lies(self):
        wanted = Window(at("10T00:00"), at("18T11:58"))
        pieces = plan(
            [wanted], wanted, longest=timedelta(hours=1), lookback=timedelta(hours=1), doubtful=[at("12T03:30")]
        )
        assert Window(at("12T03:00"), at("12T04:00")) in [piece.window for piece in pieces]

    def test_without_lookback_nothing_is_listed_twice(self):
        wanted = Window(at("10T00:00"), at("18T00:00"))
        covered = [Window(at("11T00:00"), at("12T00:00"))]
        pieces = plan(covered, wanted, longest=timedelta(hours=24), lookback=timedelta(), recent=False)
        assert merge(piece.window for piece in pieces) == subtract([wanted], covered)
        assert all(piece.opens == (piece.window,) for piece in pieces)

    @pytest.mark.parametrize(
        ("night", "hours"), [((2024, 3, 31), 23), ((2024, 10, 27), 25)], ids=["spring forward", "fall back"]
    )
    @pytest.mark.parametrize("longest", [timedelta(hours=1), timedelta(hours=24), timedelta(minutes=90)], ids=str)
    def test_the_nights_of_the_clock_change_have_23_and_25_hours(self, night, hours, longest):
        zone = ZoneInfo("Europe/Paris")
        midnight = datetime(*night, tzinfo=zone).astimezone(UTC)
        next_one = (datetime(*night, tzinfo=zone) + timedelta(days=1)).astimezone(UTC)
        pieces = plan([], Window(midnight, next_one), longest=longest, lookback=timedelta(hours=3))
        assert sum((piece.window.length for piece in pieces), timedelta()) == timedelta(hours=hours)
        assert merge(piece.window for piece in pieces) == [Window(midnight, next_one)]
        assert all(piece.window.start.tzinfo is UTC for piece in pieces)

    @pytest.mark.parametrize(
        ("key", "relisted"), [(ListingKey.START, timedelta(hours=8)), (ListingKey.END, timedelta(hours=1))]
    )
    def test_a_source_that_filters_by_start_looks_back_by_its_longest_call(self, key, relisted):
        options = SourceOptions(kind="x", base_url="http://h", lookback="1h", longest_call="8h")
        assert options.relisted(key) == relisted
        covered = [a_window("00:00", "11:50")]
        pieces = plan(covered, a_window("00:00", "11:55"), longest=timedelta(hours=1), lookback=options.relisted(key))
        again = merge(piece.window for piece in pieces)
        assert subtract([Window(at("11:55") - relisted, at("11:55"))], again) == []
        assert again[0].length < relisted + timedelta(hours=1)


RETRIES = st.builds(
    lambda first, factor: Retry(first=first, cap=first * factor),
    st.timedeltas(timedelta(milliseconds=1), timedelta(hours=1)),
    st.floats(1, 1000),
)
JITTER = st.floats(0, 1, exclude_max=True)


class TestWaiting:
    @given(st.integers(0, 10_000), RETRIES, JITTER)
    def test_a_retry_waits_between_first_and_cap_give_or_take_a_quarter(self, attempts, retry, jitter):
        wait = next_try(attempts, retry, jitter)
        assert retry.first * 0.749 <= wait <= retry.cap * 1.251

    @given(st.integers(0, 60), RETRIES, JITTER)
    def test_the_next_retry_waits_no_shorter(self, attempts, retry, jitter):
        assert next_try(attempts, retry, jitter) <= next_try(attempts + 1, retry, jitter)

    @given(st.integers(1, 60), RETRIES, JITTER, st.timedeltas(timedelta(), timedelta(days=1)))
    def test_what_the_source_asks_for_is_the_least_it_gets(self, attempts, retry, jitter, asked):
        assert next_try(attempts, retry, jitter, asked) == max(asked, next_try(attempts, retry, jitter))

    def test_retries_double(self):
        retry = Retry(first=timedelta(seconds=30), cap=timedelta(hours=6))
        waits = [next_try(n, retry, 0.5).total_seconds() for n in range(1, 13)]
        assert waits == [30, 60, 120, 240, 480, 960, 1920, 3840, 7680, 15360, 21600, 21600]

    @given(st.timedeltas(timedelta(), timedelta(days=4000)), JITTER)
    def test_a_look_at_what_is_not_ready_comes_within_a_minute_and_six_hours(self, age, jitter):
        wait = next_look(age, jitter)
        assert timedelta(seconds=45) <= wait <= timedelta(hours=7.5)
        assert wait <= next_look(age + timedelta(minutes=1), jitter)

    @given(RETRIES, st.integers(1, 20))
    def test_jitter_spreads_retries(self, retry, attempts):
        assert next_try(attempts, retry, 0.0) < next_try(attempts, retry, 0.99)
