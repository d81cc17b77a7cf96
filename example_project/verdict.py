"""Was any run lost, or made twice? Compares what the workers executed with what was due. It does
not rely on what a beat says about itself. Pure: no clock, no I/O.

All times are seconds since 1970.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import floor, inf

#: How many seconds late a run may arrive, on a busy machine, before it counts as lost.
SLACK = 1.0
MINUTE = 60


@dataclass(frozen=True)
class Entry:
    """An entry of the schedule: every `period` seconds after its last run, or, if it is
    `on_the_minute` (then `period` is 60), when each minute begins."""

    name: str
    period: float
    on_the_minute: bool = False
    #: When it came into the schedule, and when it left it.
    since: float = 0.0
    until: float = inf


@dataclass
class Delivery:
    """A message that a worker received, and when the worker had executed it; None if it has not.

    `run` and `epoch` come from the message's header, None if it has none. `run` numbers the entry's
    runs from 1, `epoch` numbers the elections.
    """

    entry: str
    id: str
    run: int | None
    epoch: int | None
    received: float
    executed: float | None
    worker: str = ""
    master: str = ""

    def same(self, id: str, worker: str) -> bool:
        return (self.id, self.worker) == (id, worker)


@dataclass
class Verdict:
    """`lost` and `twice` have a sentence for each lost run and each run made twice."""

    dispatched: int = 0
    executed: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.dispatched > 0 and not self.lost and not self.twice

    def __str__(self) -> str:
        return (
            f"runs: {self.dispatched} dispatched, {self.executed} executed, "
            f"{len(self.lost)} lost, {len(self.twice)} twice"
        )


def judge(
    deliveries: Iterable[Delivery],
    entries: Iterable[Entry],
    faults: Sequence[float],
    started: float,
    ended: float,
) -> Verdict:
    """Judges all runs.

    Args:
        deliveries: everything that the workers received; the queue is empty.
        entries: the whole schedule. The root was new, so run numbers begin at 1.
        faults: when a master was killed or stopped.
        started: when the first master was elected.
        ended: when the beats got the signal to stop.
    """
    ordered = sorted(deliveries, key=lambda delivery: delivery.received)
    verdict = Verdict(
        dispatched=len({delivery.id for delivery in ordered}),
        executed=sum(delivery.executed is not None for delivery in ordered),
    )
    by_entry: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in ordered:
        by_entry[delivery.entry].append(delivery)
    outages = [(fault, resumed(ordered, fault)) for fault in faults]
    for entry in entries:
        span = max(started, entry.since), min(ended, entry.until)
        _judge_entry(verdict, entry, by_entry[entry.name], outages, span)
    return verdict


def resumed(ordered: Sequence[Delivery], fault: float) -> float:
    """Returns when the first run of the next master arrived. If none did, returns `fault`: then
    there is no excuse for the silence after it."""
    before = max((d.epoch or 0 for d in ordered if d.received <= fault), default=0)
    later = (d.received for d in ordered if d.received > fault and (d.epoch or 0) > before)
    return next(later, fault)


def _judge_entry(
    verdict: Verdict,
    entry: Entry,
    received: Sequence[Delivery],
    outages: Sequence[tuple[float, float]],
    span: tuple[float, float],
) -> None:
    executed = [delivery for delivery in received if delivery.executed is not None]
    once: dict[object, Delivery] = {}
    for run in executed:
        if once.setdefault(run.id if run.run is None else run.run, run) is not run:
            verdict.twice.append(f"{entry.name}: run {run.run} ({run.id}) was executed again")
        elif any(run.id == other.id for other in once.values() if other is not run):
            verdict.twice.append(f"{entry.name}: task {run.id} was executed for two runs")
    runs = list(once.values())
    numbers = {run.run for run in runs}
    missing = set(range(1, max((d.run or 0 for d in received), default=0) + 1)) - numbers
    verdict.lost += [f"{entry.name}: run {n} was not executed" for n in sorted(missing)]
    if entry.on_the_minute:
        _judge_minutes(verdict, entry, runs, span, excused=len(missing))
    else:
        _judge_too_close(verdict, entry, runs)
        _judge_too_far(verdict, entry, runs, missing, outages, span)


def _judge_minutes(
    verdict: Verdict,
    entry: Entry,
    runs: Sequence[Delivery],
    span: tuple[float, float],
    excused: int,
) -> None:
    """Expects one run for each minute that began, but not if start or end are too close. `excused`
    of the runs are already known to be lost, by their numbers."""
    minutes = [floor(run.received / MINUTE) for run in runs]
    for minute in sorted(set(minutes)):
        again = minutes.count(minute) - 1
        verdict.twice += [f"{entry.name}: executed again in minute {minute % 60}"] * again
    first, last = (floor(moment / MINUTE) for moment in (span[0] + SLACK, span[1] - SLACK))
    unseen = [minute for minute in range(first + 1, last + 1) if minute not in minutes]
    verdict.lost += [f"{entry.name}: no run for minute {m % 60}" for m in unseen[excused:]]


def _judge_too_close(verdict: Verdict, entry: Entry, runs: Sequence[Delivery]) -> None:
    """Two executions less than half a period apart are one too many, unless the first of them was
    late: then the second is on time."""
    half = entry.period / 2
    for before, previous, run in zip([None, *runs], runs, runs[1:]):
        early = run.received - previous.received < half
        late = before is None or run.received - before.received > 3 * half
        if early and not late:
            verdict.twice.append(f"{entry.name}: run {run.run} came too early after the one before")


def _judge_too_far(
    verdict: Verdict,
    entry: Entry,
    runs: Sequence[Delivery],
    missing: set[int],
    outages: Sequence[tuple[float, float]],
    span: tuple[float, float],
) -> None:
    """Two periods or more without a run are too long, except for two reasons. There was no master
    for a part of the time: what was due then becomes one run, as in Celery. Or the runs in between
    are already known to be lost."""
    times = [span[0], *(run.received for run in runs), span[1]]
    numbers = [0, *(run.run or 0 for run in runs), max(missing, default=0) + 1]
    for begin, end, after, before in zip(times, times[1:], numbers, numbers[1:]):
        excuse = sum(max(0, min(end, until) - max(begin, at)) for at, until in outages)
        known = len(missing & set(range(after, before)))
        silent = end - begin - excuse - known * entry.period
        if silent > 2 * entry.period + SLACK:
            lost = floor((silent - SLACK) / entry.period) - 1
            verdict.lost += [
                f"{entry.name}: silent for {end - begin:.1f} s before run {before}"
            ] * lost
