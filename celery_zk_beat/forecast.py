"""What will run: the planner of the master, with a clock that is told the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from celery.beat import Scheduler

from .beat_schedule import SHORTEST_WAIT, Planner
from .due import copied_at, is_interval, is_steady
from .messages import copied
from .names import Entries
from .runs import Run, RunState
from .settings import Settings

#: How often one instant is looked at before time goes on in any case: an entry may say that it is
#: due whenever it is asked.
_MOST_LOOKS = 1000
_EVERYTHING = 2**31


class Upcoming(NamedTuple):
    """A run. Instants are aware, UTC.

    Attributes:
        entry: the entry's name.
        number: of the run.
        due: the instant that it is for.
        at: when its message leaves.
    """

    entry: str
    number: int
    due: datetime
    at: datetime


class Missed(NamedTuple):
    """Instants without a run. Instants are aware, UTC.

    Attributes:
        entry: the entry's name.
        due: the first of them.
        until: from when the entry's clock goes on.
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
            settings.root,
        )
        self._deadline = scheduler.app.conf.beat_cron_starting_deadline
        self._is_own = type(scheduler).is_due is not Scheduler.is_due
        self._begin()

    def _copied(self, entry: Any) -> Any:
        copy = copied(entry)
        if not is_steady(copy.schedule) and hasattr(copy.schedule, "nowfun"):
            zone = copy.schedule.now().tzinfo
            copy.schedule = copied_at(copy.schedule, lambda: self.now.astimezone(zone))
        return copy

    def _begin(self) -> None:
        """As a master that is elected now."""
        self._planner.seen.replace_all(self._texts.items(), len(self._entries))
        self._planner.build(self.now, set(), self._deadline, self._is_own)

    # What the planner goes by ---------------------------------------------------------------------

    def state(self, name: str) -> RunState | None:
        return self._states.get(name)

    def waits(self, name: str) -> float | None:
        return None

    def holds(self, name: str) -> bool:
        return self._holds(name)

    # What is asked --------------------------------------------------------------------------------

    def until(self, end: datetime) -> Iterator[Upcoming | Missed]:
        """What happens up to an instant, that included, in order."""
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
                again = self._planner.note_claimed(plan.runs, self.now)
            if math.isinf(again) and again > 0:
                self.now = max(end, self.now) + timedelta(microseconds=1)
                return
            if again > self.now.timestamp():
                self.now = datetime.fromtimestamp(again, timezone.utc)
            looks = looks + 1 if self.now <= before else 0
            if looks > _MOST_LOOKS:
                self.now += timedelta(seconds=SHORTEST_WAIT)

    def outage(self, end: datetime) -> None:
        """Nobody dispatches until then."""
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
    """The state that an entry will have, or had, shortly before an instant, where it always runs as
    it should: without a look at each of its runs."""
    last = at - timedelta(milliseconds=1)
    if is_interval(entry.schedule) and entry.schedule.run_every > timedelta():
        every = entry.schedule.run_every
        last = state.last_run_at + (last - state.last_run_at) // every * every
    return RunState(last, state.total_run_count, state.due, ran=state.ran)
