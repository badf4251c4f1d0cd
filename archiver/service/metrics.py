"""The archive's numbers as Prometheus reads them. Labels are names from the config and words of ours, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .. import __version__
from ..common.tally import BOUNDS, Timings
from ..model import Flag, State
from ..settings.config import Alerts
from ..sync.engine import Engine
from ..sync.feeds import Feed, Outlet
from ..sync.lane import Tally
from .alarms import KINDS
from .conditions import CONDITIONS, Of, found
from .facts import SourceView, StoreView, Survey, places

K = TypeVar("K", bound=tuple[str, ...])

_MORE = {
    "archiver_heartbeat_age_seconds": "Since the heartbeat was last taken (or the start).",
    "archiver_alerts_undelivered": "Did the last news reach nobody?",
}


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposition(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """The page for a scraper that accepts these media types, and its own type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    # Memory, CPU time, open files, start.
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def families(
    survey: Survey,
    alerts: Alerts,
    engine: Engine,
    outlets: Mapping[str, Outlet],
    more: Mapping[str, float | None],
) -> Iterable[Metric]:
    """All there is to tell; ``more`` gauges by name, where they are known."""
    yield InfoMetricFamily("archiver_build", "The program.", {"version": __version__})
    yield _gauge("archiver_database_up", "Does the database answer?", {(): float(survey.database is None)})
    yield _gauge(
        "archiver_stuck", "Parts of the daemon that have not moved for too long.", {(): float(len(survey.stuck))}
    )
    yield _gauge("archiver_transfers_running", "Transfers under way in this process.", {(): float(engine.busy)})
    if survey.disk is not None:
        yield _gauge("archiver_data_free_bytes", "Free on the disk of data_dir.", {(): float(survey.disk[0])})
        yield _gauge("archiver_data_size_bytes", "Size of the disk of data_dir.", {(): float(survey.disk[1])})
    for name, value in more.items():
        if value is not None:
            yield _gauge(name, _MORE[name], {(): value})
    yield _conditions(survey, alerts)
    yield from _sources(list(survey.sources.values()))
    yield from _stores(list(survey.stores.values()))
    yield from _work(engine.tally, [name for name in survey.sources if name in engine.feeds])
    yield from _requests(engine.feeds)
    yield from _puts(outlets)


def _conditions(survey: Survey, alerts: Alerts) -> Metric:
    """Of each what it holds for, and 0 where it does not; nothing of what can't be known without the database."""
    subjects = {Of.SOURCE: survey.sources, Of.STORE: survey.stores}
    known = [c for c in CONDITIONS if not c.outside and (c.local or not survey.blind)]
    values = {(c.name, c.of.value, name): 0.0 for c in known for name in subjects.get(c.of, ("",))}
    del values["DiskFull", Of.HOST.value, ""]
    values |= {("DiskFull", Of.HOST.value, place): 0.0 for place, _, _ in places(survey)}
    for each in found(survey, alerts):
        # A part of the daemon that is stuck may be any.
        of = "" if each.condition.name == "Stuck" else each.of
        values[each.condition.name, each.condition.of.value, of] = 1.0
    about = "Is it so? docs/monitoring.md lists them; some are news for people only after a while."
    return _gauge("archiver_condition", about, values, "name", "scope", "of")


def _sources(views: list[SourceView]) -> Iterable[Metric]:
    def each(name: str, about: str, values: Iterable[float | None]) -> Metric:
        told = zip(views, values, strict=True)
        return _gauge(f"archiver_source_{name}", about, {(v.name,): x for v, x in told if x is not None}, "source")

    yield each("lag_seconds", "Age of the newest closed window.", (v.lag for v in views))
    yield each(
        "overdue_seconds", "How far the next window is past its time by the schedule.", (v.overdue for v in views)
    )
    yield each("gaps", "Gaps in the ledger since the source's start.", (v.gaps for v in views))
    yield each("gap_seconds", "Length of all gaps in the ledger.", (v.gap_seconds for v in views))
    yield each("waiting_seconds", "How long the longest waiting medium has been waiting.", (v.waiting for v in views))
    yield each("failing_seconds", "How long the longest failing medium has been failing.", (v.failing for v in views))
    yield each("archived_bytes", "Bytes of archived media.", (v.bytes for v in views))
    yield each("rejected_rows", "Rows of listings that nobody could read.", (v.rejected for v in views))
    yield each("rejected_age_seconds", "Since such a row was last listed.", (v.rejected_ago for v in views))
    yield each("poll_failed", "Did the last poll end with an error?", (v.error is not None for v in views))
    yield each("paused", "Is our account refused, and the source left alone for a while?", (v.paused for v in views))
    yield each("breaker_open", "Have so many requests failed that few are made?", (v.breaker_open for v in views))
    yield each("concurrency", "Requests that this process may make at once.", (v.slots for v in views))
    odd = {(v.name, kind): float(kind in v.warnings) for v in views for kind in KINDS}
    yield _gauge("archiver_source_warning", "What is wrong although nothing fails.", odd, "source", "kind")
    media = {(v.name, state.value): float(v.count(state)) for v in views for state in State}
    media |= {(v.name, State.ARCHIVED.value): float(v.archived) for v in views}
    yield _gauge("archiver_media", "Media by state.", media, "source", "state")
    flagged = {(v.name, f.value): float(v.flagged.get(f, (0, 0))[0]) for v in views for f in Flag}
    yield _gauge("archiver_flagged_media", "Media that are kept as evidence, by flag.", flagged, "source", "flag")
    queue = {(v.name, state, _word(reason)): float(n) for v in views for (state, reason), n in v.queue.items()}
    yield _gauge("archiver_queue", "Unfinished media by state and reason.", queue, "source", "state", "reason")


def _stores(views: list[StoreView]) -> Iterable[Metric]:
    def each(name: str, about: str, values: Iterable[float | None]) -> Metric:
        told = zip(views, values, strict=True)
        return _gauge(f"archiver_store_{name}", about, {(v.name,): x for v, x in told if x is not None}, "store")

    yield each("up", "Does the store take what is put?", (v.up for v in views))
    yield each("copies", "Copies that it holds.", (v.copies for v in views))
    yield each("bytes", "Bytes of these.", (v.bytes for v in views))
    yield each("bad_copies", "Copies that are known to be bad or missing.", (v.bad for v in views))
    about = "Since the copy that was longest unread was read back, or made."
    yield each("verification_age_seconds", about, (v.unverified for v in views))
    yield each("verification_overdue_seconds", "How far that is past its cycle.", (v.verify_overdue for v in views))
    yield each("free_bytes", "Free on a file store's disk.", (v.disk[0] if v.disk else None for v in views))
    yield each("size_bytes", "Size of a file store's disk.", (v.disk[1] if v.disk else None for v in views))


def _work(tally: Tally, names: list[str]) -> Iterable[Metric]:
    outcomes = {(of, _word(what)): float(n) for (of, what), n in tally.outcomes.items() if of in names}
    yield _counter("archiver_attempts", "Attempts by how they ended.", outcomes, "source", "outcome")
    yield _counter("archiver_archived_bytes", "Bytes archived.", {(n,): float(tally.bytes[n]) for n in names}, "source")
    about = "Transfers: fetch, check and put."
    yield _histogram("archiver_transfer_duration_seconds", about, {n: tally.transfers[n] for n in names}, "source")
    yield _histogram("archiver_poll_duration_seconds", "Polls.", {n: tally.polls[n] for n in names}, "source")
    failed = {(n,): float(tally.failed_polls[n]) for n in names}
    yield _counter("archiver_polls_failed", "Polls that ended with an error.", failed, "source")


def _requests(feeds: Mapping[str, Feed]) -> Iterable[Metric]:
    gates = {name: feed.gate for name, feed in feeds.items()}
    answers = {(name, str(code)): float(n) for name, gate in gates.items() for code, n in gate.answers.items()}
    yield _counter("archiver_source_requests", "Answers of a source by HTTP status.", answers, "source", "code")
    broken = {(name,): float(gate.broken) for name, gate in gates.items()}
    yield _counter("archiver_source_requests_broken", "Requests without a (whole) answer.", broken, "source")
    latencies = {name: gate.latency for name, gate in gates.items()}
    yield _histogram("archiver_source_request_duration_seconds", "Until an answer's head came.", latencies, "source")
    running = {(name,): float(gate.running) for name, gate in gates.items()}
    yield _gauge("archiver_source_requests_running", "Requests under way.", running, "source")


def _puts(outlets: Mapping[str, Outlet]) -> Iterable[Metric]:
    puts = {name: outlet.puts for name, outlet in outlets.items()}
    yield _histogram("archiver_store_put_duration_seconds", "Puts of recordings.", puts, "store")
    written = {(name,): float(outlet.bytes_put) for name, outlet in outlets.items()}
    yield _counter("archiver_store_put_bytes", "Bytes put.", written, "store")
    failed = {(name,): float(outlet.failed_puts) for name, outlet in outlets.items()}
    yield _counter("archiver_store_puts_failed", "Puts that failed.", failed, "store")


def _word(reason: str) -> str:
    return reason.replace(" ", "_")


def _gauge(name: str, about: str, values: Mapping[K, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, about: str, values: Mapping[K, float], *labels: str) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(name: str, about: str, values: Mapping[str, Timings], label: str) -> Metric:
    family = HistogramMetricFamily(name, about, labels=[label])
    for key, timings in values.items():
        below, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), timings.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric([key], buckets, timings.total)
    return family
