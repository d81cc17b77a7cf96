"""The metrics of a beat in Prometheus' formats; docs/monitoring.md lists them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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

from .. import clock
from ..metrics import EntryNumbers, Histogram, Metrics
from ..runs import CONCLUDED, REPORTED
from ..version import __version__
from .state import State


def exposition(state: State, pid: int, accept: str) -> tuple[str, bytes]:
    """Returns a content type that a client who sent `accept` takes, and the numbers in it: those
    of the beat, and those of its process, `pid`."""
    encode, type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Collector(state))
    ProcessCollector(pid=lambda: pid, registry=registry)
    return type, encode(registry)


class _Collector(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        metrics = state.metrics
        yield InfoMetricFamily(
            "celery_zk_beat",
            "What this beat is.",
            {"version": __version__, "id": state.id, "root": state.root},
        )
        gauges = (
            ("is_master", "Whether this beat is master: 1 or 0.", int(state.epoch is not None)),
            (
                "epoch",
                "Epoch of the master that this beat knows, itself included; 0 before the first.",
                state.master_epoch,
            ),
            (
                "session_connected",
                "Whether there is a connection to ZooKeeper: 1 or 0.",
                int(state.connected),
            ),
            (
                "clock_offset_seconds",
                "How far this machine's clock is at least ahead of ZooKeeper's; below 0: behind.",
                state.clock_offset,
            ),
            (
                "outbox_runs",
                "Runs that are claimed and not known to be published; 0 on a standby.",
                metrics.outbox,
            ),
            (
                # Not an age: that would stand still, and look well, if nobody counted it on.
                "last_tick_timestamp_seconds",
                "When the dispatch loop moved last, as seconds since 1970; before: when it began.",
                clock.timestamp() - (clock.boottime() - (metrics.ticked or state.began)),
            ),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"celery_zk_beat_{name}", text, value)
        yield _entries(metrics.by_source)
        counters = (
            ("elections", "Times that this beat was elected.", metrics.elections),
            ("runs_claimed", "Runs that this beat claimed.", metrics.claimed),
            ("runs_published", "Runs that this beat published.", metrics.published),
            (
                "runs_resent",
                "Published runs that were perhaps already published, with the same task id.",
                metrics.resent,
            ),
            ("runs_dropped", "Claimed runs that this beat dropped.", metrics.dropped),
            ("publish_failures", "Attempts to publish a run that failed.", metrics.failed),
            ("zookeeper_writes", "Transactions sent to ZooKeeper for runs.", metrics.writes),
            (
                "zookeeper_written_bytes",
                "Bytes of these transactions, about.",
                metrics.written_bytes,
            ),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"celery_zk_beat_{name}", text, value)
        yield _skipped(metrics.skipped)
        yield _histogram(
            "dispatch_lateness_seconds",
            "Time from a run's due instant to its publish.",
            metrics.lateness,
        )
        yield _histogram(
            "claim_duration_seconds",
            "How long claims took, of one run or many at once.",
            metrics.claim_seconds,
        )
        if metrics.tracks:
            yield from _outcomes(metrics)
        if metrics.by_entry is not None:
            yield GaugeMetricFamily(
                "celery_zk_beat_entries_selected",
                "Entries that match zk_beat_metrics_entries; on the master alone.",
                metrics.selected,
            )
            yield from _by_entry(metrics.by_entry, metrics.tracks)


def _outcomes(metrics: Metrics) -> Iterator[Metric]:
    """What became of tracked runs. All states from the beginning: Prometheus does not see that a
    counter grows if it appears with its first value."""
    family = CounterMetricFamily(
        "celery_zk_beat_run_outcomes",
        "Tracked runs of which this beat recorded that they have ended.",
        labels=["state"],
    )
    for state in (*REPORTED, *CONCLUDED):
        family.add_metric([state], metrics.outcomes.get(state, 0))
    yield family
    yield _histogram(
        "run_runtime_seconds", "How long the tasks of tracked runs ran.", metrics.runtime
    )
    family = CounterMetricFamily(
        "celery_zk_beat_runs_late",
        "Tracked runs that did not start, or finish, in the time that their policy gives them.",
        labels=["what"],
    )
    for what in ("start", "finish"):
        family.add_metric([what], metrics.late.get(what, 0))
    yield family
    yield GaugeMetricFamily(
        "celery_zk_beat_open_runs",
        "Tracked runs that have not ended; 0 on a standby.",
        metrics.open,
    )


def _by_entry(numbers: Iterable[EntryNumbers], with_outcomes: bool) -> Iterator[Metric]:
    def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"celery_zk_beat_entry_{name}", text, labels=["entry", *labels])

    last_run = family("last_run_timestamp_seconds", "When the entry ran last.")
    lateness = family("last_lateness_seconds", "How late that run was.")
    next_run = family(
        "next_run_timestamp_seconds", "When the entry is due next, or was, and waits."
    )
    last_skip = family(
        "last_skip_timestamp_seconds", "When an instant of the entry was skipped last.", "reason"
    )
    outcome = family(
        "last_outcome_timestamp_seconds", "When its last run that has ended has ended.", "state"
    )
    success = family(
        "last_success_timestamp_seconds", "When its last run that succeeded has ended."
    )
    runtime = family("last_runtime_seconds", "How long its last run that has ended ran.")
    open_since = family(
        "open_since_timestamp_seconds", "When its oldest run that has not ended was dispatched."
    )
    tracked = (
        (success, "succeeded"),
        (runtime, "runtime"),
        (open_since, "open_since"),
    )
    for each in numbers:
        name = each.name.encode(errors="backslashreplace").decode()
        last_run.add_metric([name], each.last_run)
        if each.lateness is not None:
            lateness.add_metric([name], each.lateness)
        if each.next_run is not None:
            next_run.add_metric([name], each.next_run)
        for reason, at in each.skipped.items():
            last_skip.add_metric([name, reason], at)
        if each.outcome is not None and each.ended is not None:
            outcome.add_metric([name, each.outcome], each.ended)
        for metric, field in tracked:
            value = getattr(each, field)
            if value is not None:
                metric.add_metric([name], value)
    yield from (last_run, lateness, next_run, last_skip)
    if with_outcomes:
        yield from (outcome, success, runtime, open_since)


def _entries(counts: Mapping[str, int]) -> Metric:
    text = "Entries of this beat's schedule, by where they come from."
    family = GaugeMetricFamily("celery_zk_beat_entries", text, labels=["source"])
    for source, count in counts.items():
        family.add_metric([source], count)
    return family


def _skipped(counts: Mapping[str, int]) -> Metric:
    text = "Due instants that this beat gave no run."
    family = CounterMetricFamily("celery_zk_beat_runs_skipped", text, labels=["reason"])
    for reason, count in counts.items():
        family.add_metric([reason], count)
    return family


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    counts, buckets, below = list(values.counts), [], 0
    for bound, count in zip((*map(str, values.bounds), "+Inf"), counts):
        below += count
        buckets.append((bound, below))
    return HistogramMetricFamily(f"celery_zk_beat_{name}", text, buckets, values.sum)
