"""Computes what will run: the master's planner, with a clock that the caller sets."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta, timezone
from typing import Any, NamedTuple

from celery.beat import Scheduler

from . import clock
from .due import copied_at, is_interval, looks_at_clock, zone_of
from .messages import copied
from .names import Entries
from .paths import Paths
from .planner import SHORTEST_WAIT, Planner
from .runs import Run, RunState
from .settings import Settings
from .status.reader import Basis
from .status.snapshot import plain

#: How often we look at one instant before time goes on in any case: an entry may say that it is due
#: whenever it is asked.
_MOST_LOOKS = 1000
_EVERYTHING = 2**31
_MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
#: Most runs of an entry that the status page shows.
_MOST_OF_A_DAY = 50


class Upcoming(NamedTuple):
    """A run in the future. Instants are aware, UTC.

    Attributes:
        entry: the entry's name.
        number: the run's number.
        due: the instant that it is for.
        at: when its message leaves.
    """

    entry: str
    number: int
    due: datetime
    at: datetime


class Missed(NamedTuple):
    """Instants that get no run. Instants are aware, UTC.

    Attributes:
        entry: the entry's name.
        due: the first of them.
        until: the instant from which the entry's clock goes on.
        reason: ``catch_up``, ``limit`` or ``deadline``.
    """

    entry: str
    due: datetime
    until: datetime
    reason: str


class Forecast:
    """What a master would do from an instant on. It has entries of its own, and changes none.

    Args:
        scheduler: whose entries, and whose `is_due`, these are.
        states: those of the ledger; the clock of an entry that has none begins at `start`.
        entries: others than the scheduler's.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        start: datetime,
        states: Mapping[str, RunState],
        entries: Mapping[str, Any] | None = None,
        holds: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.now, self.epoch = start, 0
        self._holds, found = holds, dict(scheduler.schedule if entries is None else entries)
        self._entries = {name: self._copied(entry) for name, entry in found.items()}
        names = Entries(lambda: self._entries, False)
        self._texts = names.get()
        self._states = {name: states.get(name) or RunState(start) for name in self._texts}
        self._planner = Planner(
            names,
            self,
            scheduler.is_due,
            scheduler.max_interval,
            settings.policies,
            Paths.of(settings.hosts, settings.root).root,
        )
        self._deadline = scheduler.app.conf.beat_cron_starting_deadline
        self._is_own = type(scheduler).is_due is not Scheduler.is_due
        self._begin()

    def _copied(self, entry: Any) -> Any:
        copy = copied(entry)
        if looks_at_clock(copy.schedule) and hasattr(copy.schedule, "nowfun"):
            zone = copy.schedule.now().tzinfo
            copy.schedule = copied_at(copy.schedule, lambda: self.now.astimezone(zone))
        return copy

    def _begin(self) -> None:
        """Does what a master does that is elected now."""
        self._planner.seen.replace_all(self._texts.items(), len(self._entries))
        self._planner.build(self.now, set(), self._deadline, self._is_own)

    # What the planner uses ------------------------------------------------------------------------

    def state(self, name: str) -> RunState | None:
        return self._states.get(name)

    def key(self, name: str) -> str | None:
        return None

    def waits(self, name: str) -> float | None:
        return None

    def holds(self, name: str) -> bool:
        return self._holds(name)

    # What is asked --------------------------------------------------------------------------------

    def until(self, end: datetime) -> Iterator[Upcoming | Missed]:
        """Yields what happens up to and including an instant, in order."""
        looks = 0
        while self.now <= end:
            before = self.now
            plan = self._planner.plan(self.now, _EVERYTHING)
            for skipped in plan.skipped:
                yield Missed(*skipped)
            again = plan.look_again
            for run in plan.runs:
                self._take(run)
                at = max(run.leaves or run.due, self.now)
                if at <= end:
                    yield Upcoming(run.entry, run.number, run.due, at)
            if plan.runs:
                self._planner.note_claimed(plan.runs, self.now)
                again = self._planner.place_later(len(plan.runs))
            if math.isinf(again) and again > 0:
                self.now = max(end, self.now) + timedelta(microseconds=1)
                return
            if again > self.now.timestamp():
                self.now = datetime.fromtimestamp(again, timezone.utc)
            looks = looks + 1 if self.now <= before else 0
            if looks > _MOST_LOOKS:
                self.now += timedelta(seconds=SHORTEST_WAIT)

    def outage(self, end: datetime) -> None:
        """Lets nobody dispatch until then."""
        self.now = max(self.now, end)
        self._begin()

    def _take(self, run: Run) -> None:
        state = self._states[run.entry]
        self._states[run.entry] = RunState(
            run.claimed,
            run.number,
            run.due,
            ask=run.ask,
            done=state.done,
            ran=state.ran + run.counts,
        )


def moved_on(entry: Any, state: RunState, at: datetime) -> RunState:
    """Returns the state that an entry will have, or had, shortly before an instant, if it always
    runs on time. Does not go through each of its runs."""
    last = at - timedelta(milliseconds=1)
    if is_interval(entry.schedule) and entry.schedule.run_every > timedelta():
        every = entry.schedule.run_every
        last = state.last_run_at + (last - state.last_run_at) // every * every
    return RunState(last, state.total_run_count, state.due, ran=state.ran)


@dataclass(frozen=True)
class NextRun:
    """A run that is to come. Instants are aware, UTC.

    Attributes:
        run: its number; None where an instant is skipped.
        due, at: the instant that it is for, and when its message leaves.
        local: `at` in the time zone of its schedule, ISO 8601; None where that has none.
        clocks_change: by how much, ``+01:00 to +02:00``, where they do on that day there.
        skipped: why it does not run, ``catch_up``, ``limit`` or ``deadline``; else None.
    """

    entry: str
    run: int | None
    due: datetime
    at: datetime
    local: str | None
    clocks_change: str | None
    skipped: str | None


class Outlook:
    """The entries of a schedule, with what is known of them.

    Args:
        entries: by name.
        states: those that ZooKeeper has; the clock of another begins at `now`.
        paused: names of entries that are held back.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        entries: Mapping[str, Any],
        states: Mapping[str, RunState],
        paused: Collection[str],
        now: datetime,
    ) -> None:
        self._scheduler, self._settings, self._now = scheduler, settings, now
        self._entries = {name: each for name, each in entries.items() if name not in paused}
        self._states = {name: states.get(name) or RunState(now) for name in self._entries}

    def runs(self, at: datetime, until: datetime, entry: str | None = None) -> Iterator[NextRun]:
        """Yields what leaves from `at` to `until`, in order, of one entry or of all."""
        entries = self._entries
        if entry is not None:
            entries = {entry: entries[entry]} if entry in entries else {}
        for each in self._forecast(at, entries).until(until):
            known = entries[each.entry]
            if isinstance(each, Missed):
                yield _next_run(known, each.entry, None, each.due, each.due, each.reason)
            elif each.at >= at:
                yield _next_run(known, each.entry, each.number, each.due, each.at, None)

    def _forecast(self, at: datetime, entries: Mapping[str, Any]) -> Forecast:
        states = {name: self._state_at(name, entries[name], at) for name in entries}
        return Forecast(self._scheduler, self._settings, at, states, entries)

    def _state_at(self, name: str, entry: Any, at: datetime) -> RunState:
        if at == self._now:
            return self._states[name]
        policy = self._settings.policies.of(name)
        state = moved_on(entry, self._states[name], at)
        if policy is None or policy.runs is None or at < self._now:
            return state
        # Runs before `at` count for policies, too.
        forecast = Forecast(self._scheduler, self._settings, self._now, self._states, {name: entry})
        gone = itertools.islice(forecast.until(at - _MINUTE / 1000), policy.runs)
        return replace(state, ran=state.ran + sum(not isinstance(each, Missed) for each in gone))

    def busy(self, at: datetime, until: datetime) -> dict[datetime, int]:
        """Returns how many runs leave in each minute with any, in order."""
        begin = at.replace(second=0, microsecond=0)
        policies, counts, others = self._settings.policies, Counter[datetime](), {}
        for name, entry in self._entries.items():
            # For short intervals we need not look at a million runs one by one.
            every = entry.schedule.run_every if is_interval(entry.schedule) else timedelta()
            if every > timedelta() and policies.of(name) is None:
                last = self._state_at(name, entry, at).last_run_at
                _count(counts, last + every, every, begin, until)
            else:
                others[name] = entry
        for each in self._forecast(at, others).until(until):
            if not isinstance(each, Missed) and each.at >= at:
                counts[each.at.replace(second=0, microsecond=0)] += 1
        return dict(sorted(counts.items()))


def next_day(scheduler: Scheduler, name: str, basis: Basis, held: Collection[str]) -> list[Any]:
    """What of an entry runs within a day from now, or is skipped, as JSON; the first of it. Of one
    of another scheduler nothing is known."""
    now, settings = clock.now(), basis.settings
    entries = basis.entries if settings.scheduler is None else scheduler.schedule
    entry = entries.get(name)
    if entry is None or entry.schedule is None:
        return []
    outlook = Outlook(scheduler, settings, {name: entry}, basis.states, held, now)
    return [plain(run) for run in itertools.islice(outlook.runs(now, now + DAY), _MOST_OF_A_DAY)]


def _count(
    counts: Counter[datetime], first: datetime, every: timedelta, begin: datetime, until: datetime
) -> None:
    def before(instant: datetime) -> int:
        return max(0, -((first - instant) // every))

    minute = begin
    while minute <= until:
        end = min(minute + _MINUTE, until + timedelta(microseconds=1))
        if found := before(end) - before(minute):
            counts[minute] += found
        minute += _MINUTE


def _next_run(
    entry: Any, name: str, run: int | None, due: datetime, at: datetime, skipped: str | None
) -> NextRun:
    local = change = None
    if zone_of(entry) is not None:
        zone = entry.schedule.tz
        local = at.astimezone(zone).isoformat(timespec="seconds")
        day = due.astimezone(zone).date()
        before, after = (
            datetime.combine(each, time(), zone).isoformat()[19:]
            for each in (day, day + timedelta(days=1))
        )
        change = None if before == after else f"{before} to {after}"
    return NextRun(name, run, due, at, local, change, skipped)
