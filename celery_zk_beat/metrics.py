"""Counts what this beat has done so far. Plain, for whoever wants to show them.

Written by the dispatch loop alone, and read by any thread without a lock: each number is right by
itself, though two that are read one after the other may be of different instants.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Seconds.
_LATENESS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_CLAIMS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: Why a due instant has no run: as a label, and in words, for the history and the log.
SKIPPED = {
    "deadline": "older than beat_cron_starting_deadline",
    "resumed": "an operator resumed without catching up",
}


@dataclass
class Histogram:
    """How many values fell between which bounds.

    Attributes:
        bounds: upper ones, inclusive, ascending.
        counts: one for each bound, and one for what is above the last; not cumulative.
        sum: of all values.
    """

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass
class Metrics:
    """Since the process was started.

    Attributes:
        elections: times that this beat began to dispatch as master of a new epoch.
        claimed, published, dropped: runs.
        resent: runs among the published that were perhaps published before, by another or by this
            beat: the broker did not say.
        skipped: instants that were due and had no run, by the reasons of SKIPPED.
        failed: attempts to publish that failed.
        lateness: seconds from the instant that a run was for to its publish.
        claim_seconds: seconds that a claim took.
        writes, written_bytes: transactions that the ledger has sent to ZooKeeper, and about their
            bytes.
        outbox: runs that are claimed and not known to be published, on the master.
        entries: of this beat's schedule.
        ticked: when the dispatch loop moved last, on boottime(); 0 before.
    """

    elections: int = 0
    claimed: int = 0
    published: int = 0
    resent: int = 0
    dropped: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIPPED, 0))
    failed: int = 0
    lateness: Histogram = field(default_factory=lambda: Histogram(_LATENESS))
    claim_seconds: Histogram = field(default_factory=lambda: Histogram(_CLAIMS))
    writes: int = 0
    written_bytes: int = 0
    outbox: int = 0
    entries: int = 0
    ticked: float = 0.0
