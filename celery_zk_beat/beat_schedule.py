"""The entries of ``beat_schedule``. A planner decides which are due; here they are dispatched."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from datetime import datetime
from typing import Any

from celery.beat import Scheduler

from . import clock
from .dispatcher import Dispatcher
from .due import as_of, utc_of, zone_of
from .errors import Outdated
from .hooks import Sender
from .log import get_logger
from .names import Entries
from .planner import SHORTEST_WAIT, Planner, Skipped
from .policies import ALL
from .publishing import Send
from .runs import Run, RunState
from .source import Source, no_collector, only_logged

logger = get_logger(__name__)

#: Seconds until we look again at a faulty entry whose last run waits.
_RETRY_AFTER = 1.0
#: Most entries per turn whose next instants are computed after their runs: when nothing else is
#: due, and when something is.
_PLACED, _PLACED_IN_BURST = 50, 5
#: Most runs per turn that are made ahead, and the seconds without a due entry that this needs.
_MADE, _MADE_IN = 25, 0.005
#: Looking for entries that a program has changed: most entries per turn; the part of the time that
#: this may take; looks shorter than this many seconds are not limited; the longest pause between
#: looks, in seconds; and how much longer that is while crontabs of a burst have no next instant.
_MOST_SEEN = 1000
_SEEN_PART, _SHORT_LOOK, _LONGEST_REST, _BURST = 0.02, 0.00002, 0.05, 0.5


class BeatSchedule(Source):
    """The entries of ``beat_schedule``, with their states from the ledger."""

    def __init__(self, scheduler: Scheduler, names: Entries, dispatcher: Dispatcher) -> None:
        super().__init__(scheduler, names, dispatcher)
        policies, root = dispatcher.policies, self._election.paths.root
        self._planner = Planner(
            names,
            self,
            scheduler.is_due,
            scheduler.max_interval,
            policies,
            root,
            dispatcher.ahead.run,
        )
        #: When to look next for changed entries, by boottime().
        self._look_again = 0.0

    # For the planner (Known) ----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self._dispatcher.epoch

    def state(self, name: str) -> RunState | None:
        return self._ledger.state(name)

    def key(self, name: str) -> str | None:
        return None

    def waits(self, name: str) -> float | None:
        if name not in self._ledger.outbox:
            return None
        publisher = self._dispatcher.publisher
        least = _RETRY_AFTER if publisher.is_at_fault(name) else SHORTEST_WAIT
        return max(least, publisher.back_off(name))

    def holds(self, name: str) -> bool:
        return self._control.holds(name)

    # For the loop (Source) ------------------------------------------------------------------------

    def open(self) -> None:
        """Does nothing: the entries exist before the term begins."""

    def close(self) -> None:
        """The entries stay."""
        self._dispatcher.ahead.clear()  # a standby needs none

    def write(self) -> None:
        """Does nothing: the ledger has everything."""

    def sender(self) -> Send:
        send = Sender(self._scheduler, self._scheduler.producer).send
        return lambda run, attempt: send(attempt)

    def has_run_extra(self, name: str, number: int) -> None:
        entry = self.entries.get(name)
        if entry is not None:  # another thread may have removed it during the claim
            entry.total_run_count = number

    def refresh(self) -> None:
        if self._names.is_current:
            self._look_for_changes()
        if not self._names.is_current:
            with no_collector():
                self._build()

    def look_again(self, name: str) -> None:
        self._planner.look_again(name)

    def turn(self) -> float:
        """Claims what is due or will be in a moment, and publishes it when it is due.

        It claims no more than the outbox has room for: the outbox is written as a whole. What is
        not claimed stays due.

        Returns:
            the seconds until something may be due.
        """
        if self._control.pauses_stale:
            return 0.0
        now, dispatcher = clock.now(), self._dispatcher
        self._planner.max_interval = self._scheduler.max_interval  # users may set it at any time
        plan = self._planner.plan(now, dispatcher.room())
        look_again = plan.look_again
        self._skip(plan.skipped)
        if plan.runs:
            unchanged, publish = self._control.unchanged, dispatcher.publish_waiting
            claimed: list[Run] = []  # all that was planned is due still, where it is refused
            with contextlib.suppress(Outdated), no_collector():
                claimed = dispatcher.claim(plan.runs, unchanged, meanwhile=publish)
            look_again = self._planner.note_claimed(claimed, clock.now())
        if not plan.runs or look_again > now.timestamp():
            dispatcher.publish_waiting()  # else it is published during the next claim
            look_again = self._planner.place_later(_PLACED)
        else:
            look_again = self._planner.place_later(_PLACED_IN_BURST)
        if not self._names.is_current or self._planner.has_later:
            return 0.0
        left = look_again - clock.timestamp() if dispatcher.room() > 0 else math.inf
        if left > _MADE_IN and self._make_ahead(now):
            return 0.0
        if left > 0 and self._planner.seen.is_midway:
            left = min(left, max(SHORTEST_WAIT, self._look_again - clock.boottime()))
        return left

    def _make_ahead(self, now: datetime) -> bool:
        """Makes what can be made of the runs that are due next. Returns True if there are probably
        more."""
        runs, are_more = self._planner.look_ahead(now, _MADE)
        self._dispatcher.ahead.make(runs)
        return are_more

    def _skip(self, skipped: list[Skipped]) -> None:
        """Records the skips; those of one entry one after another."""
        while skipped:
            first = {each.entry: each for each in reversed(skipped)}
            for reason in dict.fromkeys(each.reason for each in first.values()):
                missed = [each for each in first.values() if each.reason == reason]
                self._dispatcher.skip({each.entry: (each.due, each.at) for each in missed}, reason)
            skipped = [each for each in skipped if first[each.entry] is not each]

    def goes_on_from(self, run: Run, at: datetime) -> datetime | None:
        policy = self._dispatcher.policies.of(run.entry)
        if policy is not None and policy.coalesce == ALL:
            return None  # each instant that was due since then gets its own run
        return super().goes_on_from(run, at)

    def _set_clock(self, entry: Any, last_run_at: datetime) -> None:
        entry.last_run_at = as_of(entry, last_run_at)

    # Changes of the schedule ----------------------------------------------------------------------

    def _note_counts(self) -> None:
        self._dispatcher.metrics.by_source = {"code": len(self.entries)}

    def _build(self) -> None:
        """Reads all entries again, with their states from the ledger."""
        names, ledger, app = self._names, self._ledger, self._scheduler.app
        names.is_current = True  # set it first: an entry may be added meanwhile
        names.look_anew()
        self._dispatcher.ahead.clear()
        self._note_named(anew=True)
        entries = list(self.entries.items())
        for pattern in self._dispatcher.policies.unmatched(self.entries):
            names.warn_once(f"zk_beat_policies: {pattern!r} matches no entry")
        self._note_counts()
        unseen, zones = {}, {}
        for name, entry in entries:
            if ledger.state(name) is None and not ledger.damaged(name):
                with only_logged(name):
                    unseen[name] = self._clock_starts(name, entry)
                    zones[name] = zone_of(entry)
        ledger.first_seen(unseen, zones=zones)
        changed = self._planner.seen.replace_all(entries, len(names.known))
        self._start_anew_in_another_zone(entries)
        deadline, is_own = app.conf.beat_cron_starting_deadline, self._asks_another_class
        self._note_ahead(self._planner.build(clock.now(), changed, deadline, is_own))

    @property
    def _asks_another_class(self) -> bool:
        """True if a class derived from ours says when an entry is due."""
        return type(self._scheduler).is_due is not Scheduler.is_due

    def _look_for_changes(self) -> None:
        """Looks for entries that a program has changed, added or removed. If there are any, the
        agenda is built again."""
        begun, known, scheduler = clock.boottime(), self._names.known, self._scheduler
        schedule = scheduler.schedule
        if schedule is not known and (
            # Else the property makes a new dict each time.
            schedule is scheduler.schedule or not scheduler.schedules_equal(known, schedule)
        ):
            self._names.is_current = False
        if begun < self._look_again + (_BURST if self._planner.has_later else 0.0):
            return
        if self._planner.seen.is_changed(self.entries, len(known), _MOST_SEEN):
            self._names.is_current = False
        took = clock.boottime() - begun
        self._look_again = begun
        if took > _SHORT_LOOK:
            self._look_again += min(took / _SEEN_PART, _LONGEST_REST)

    def _clock_starts(self, name: str, entry: Any) -> datetime:
        """The `last_run_at` of an entry that is seen for the first time: the one from the
        configuration, else now. When this beat was started does not matter."""
        if self._planner.seen.is_same(name, entry):
            # It had a state, which is gone. Its last run is what this beat was told of in an
            # earlier term: others may have run it since.
            return utc_of(entry, entry.default_now())
        given = utc_of(entry, entry.last_run_at)
        # A time before the scheduler was created cannot be Celery's default.
        return given if given < self._names.made_at else utc_of(entry, entry.default_now())

    def _start_anew_in_another_zone(self, entries: list[tuple[str, Any]]) -> None:
        """Starts the clock anew of each entry that last ran in another time zone, as Celery does:
        else it might be due immediately in the new zone."""
        now, changed, anew = clock.now(), {}, []
        ahead = self._ledger.ahead_at(now)
        for name, entry in entries:
            state = self._ledger.state(name)
            zone = None if state is None else zone_of(entry)
            if state is None or zone is None or zone == state.zone:
                continue
            changed[name] = replace(state, zone=zone)
            if state.zone is not None:
                anew.append(name)
                changed[name] = changed[name].moved(state.last_run_at, now, ahead)
        self._ledger.rewrite(changed)
        if anew:
            logger.warning(
                "%d entries last ran in another time zone (%s is now at %s), such as %s: their "
                "clocks start anew",
                len(anew),
                self._scheduler.app.timezone,
                changed[anew[0]].zone,
                anew[0],
            )
