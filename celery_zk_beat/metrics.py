"""Counts what this beat has done so far, as plain numbers.

Only the dispatch loop writes them. Any thread reads them without a lock: each number is correct,
but two numbers read one after the other may be of different instants.
"""

from __future__ import annotations

import fnmatch
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Seconds.
_LATENESS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_RUNTIMES = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_CLAIMS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: Why a due instant has no run: as a label, and in words, for the history and the log.
SKIPPED = {
    "deadline": "older than beat_cron_starting_deadline",
    "resumed": "an operator resumed without catching up",
    "catch_up": "later than catch_up of zk_beat_policies",
    "limit": "more were missed than limit of zk_beat_policies",
    "overlap": "the run before is still open",
}
#: Most entries with metrics of their own, and most characters of their names: each is a label.
MOST_SELECTED, LONGEST_SELECTED = 100, 200


class Selected(NamedTuple):
    """The entries that have metrics of their own.

    Attributes:
        names: sorted.
        matching: how many match the patterns.
        faults: a line for each thing that somebody should look at.
    """

    names: list[str]
    matching: int
    faults: list[str]


def select(patterns: Sequence[str], names: Iterable[str], setting: str) -> Selected:
    """Selects the `names` that match an fnmatch pattern, case-sensitive, up to the most that are
    allowed. `setting`: the name of the setting with the patterns, for the faults."""
    each = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
    matches = re.compile("|".join(pattern.pattern for pattern in each)).match
    found = sorted(filter(matches, names))
    selected = [name for name in found if len(name) <= LONGEST_SELECTED][:MOST_SELECTED]
    faults = [
        f"{setting}: no entry has a name like {text!r}"
        for text, pattern in zip(patterns, each)
        if not any(map(pattern.match, found))
    ]
    if len(selected) < len(found):
        faults.append(
            f"{setting}: {len(found)} entries match, and {len(selected)} of them have metrics of "
            f"their own: {MOST_SELECTED} at most, with names of up to {LONGEST_SELECTED} characters"
        )
    return Selected(selected, len(found), faults)


class EntryNumbers(NamedTuple):
    """Those of one entry, by the run states and the history. Instants in seconds since 1970.

    Attributes:
        last_run: when it ran last; where it is not known to have, since when its clock runs; 0
            where its state cannot be read, so that it does not run.
        lateness: of that run, in seconds: from the instant that it was for.
        next_run: the instant of its next run, or of the one that waits to be published; None where
            it is paused, or its schedule cannot tell.
        skipped: by reason, when an instant of it was skipped last.
        outcome, ended, runtime: of its last tracked run that has ended: how, when, and after how
            many seconds of work. None if that is not known.
        succeeded: when its last tracked run that succeeded has ended. If none is remembered, when
            the oldest tracked run that is was dispatched; None if there is none.
        open_since: when the oldest of its open runs was dispatched; None if none is open.
    """

    name: str
    last_run: float
    lateness: float | None
    next_run: float | None
    skipped: dict[str, float]
    outcome: str | None = None
    ended: float | None = None
    runtime: float | None = None
    succeeded: float | None = None
    open_since: float | None = None


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
        by_source: how many entries this beat's schedule has, by where they come from: "code",
            "live" or "store".
        outcomes: tracked runs that have ended, by their outcome.
        runtime: seconds that their tasks ran.
        late: tracked runs that did not start, or end, in time: "start" and "finish".
        open: tracked runs that have not ended, on the master.
        tracks: runs are tracked where a policy asks for it: without, these four mean nothing.
        by_entry: the numbers of selected entries; None on a standby, where none are asked for, and
            before they are known.
        selected: how many entries match what they are asked for of.
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
    by_source: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    runtime: Histogram = field(default_factory=lambda: Histogram(_RUNTIMES))
    late: dict[str, int] = field(default_factory=dict)
    open: int = 0
    tracks: bool = False
    by_entry: list[EntryNumbers] | None = None
    selected: int = 0
    ticked: float = 0.0

    @property
    def entries(self) -> int:
        return sum(self.by_source.values())
