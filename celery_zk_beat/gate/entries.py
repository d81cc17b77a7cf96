"""Another scheduler as a source of entries: the master makes it, and it decides what is due."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from celery.beat import Scheduler

from .. import clock
from ..dispatcher import MOST_LOGGED, Dispatcher
from ..due import at_one_instant, instants_of, next_free, next_run, utc_of
from ..limits import MOST_RUNS
from ..log import get_logger, telling
from ..messages import Attempt
from ..names import Entries
from ..policies import Policy
from ..publishing import Send, early
from ..records import to_text
from ..runs import NEVER, TOLERANCE, Run, RunState
from ..source import Source, no_collector
from .gated import Gated, open_gate
from .giving import Given
from .installed import Installed
from .showing import Showing
from .stores import adapter_of
from .trouble import Trouble

logger = get_logger(__name__)

#: Seconds until a held-back entry is asked again: usually; while there is no room for its run; and
#: at least.
_HELD_FOR, _RETRY_AFTER, _SHORTEST_WAIT = 5.0, 1.0, 0.01
#: Most runs that wait because they leave later than they are due: half of all that may wait.
_MOST_LATER = MOST_RUNS // 2


class GatedEntries(Source):
    """The entries of another scheduler while this beat is master; on a standby none. `kind` is its
    class; `arguments` are the arguments with which Celery makes a scheduler."""

    def __init__(
        self,
        scheduler: Scheduler,
        names: Entries,
        dispatcher: Dispatcher,
        kind: type[Scheduler],
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__(scheduler, names, dispatcher)
        self._kind, self._arguments = kind, arguments
        self.installed = Installed(scheduler.app, dispatcher.election)
        self.trouble = Trouble(kind.__name__, adapter_of(kind).is_away)
        self._showing = Showing(
            dispatcher.election, dispatcher.settings.scheduler or "", dispatcher.ledger
        )
        self._opened: Gated | None = None
        #: Its entries as they were last read.
        self._taken: Any = None
        #: What its class dispatches at this moment, and which run that is.
        self._given: Given | None = None
        self._dispatched: tuple[str, int] | None = None
        #: True if there is no room for one more run.
        self._is_full = False

    @property
    def _gated(self) -> Gated:
        assert self._opened is not None, "used outside of a term"
        return self._opened

    # For the loop (Source) ------------------------------------------------------------------------

    def open(self) -> None:
        """Makes the scheduler. Raises SchedulerFailed if its constructor raised."""
        self.trouble.listen(self._kind)
        keeps = adapter_of(self._kind).keeps_installed
        complaints = self.trouble.count
        if keeps:
            self.installed.read()
        self._opened = open_gate(self._kind, self, **self._arguments)
        self._scheduler.data = self._opened.entries
        self._names.look_anew()
        self._rename()  # before anybody decides what happens to a waiting run
        if keeps and self.trouble.count == complaints:
            self.installed.note(self._ledger.epoch)

    def close(self) -> None:
        """Discards the scheduler, with its caches."""
        self.trouble.stop()
        if self._opened is not None:
            self._opened.throw_away()
            self._opened = None
            self._scheduler.data = {}
            self._showing.forget()

    def write(self) -> None:
        if self._opened is not None:
            self._opened.write()

    def row(self, name: str) -> str | None:
        entry = self.entries.get(name)
        return None if entry is None else self._gated.adapter.key(entry)

    def entry_of(self, run: Run) -> Any:
        given = self._given_for(run)
        return self.entries[run.entry] if given is None else given.entry

    def sender(self) -> Send:
        return self._send

    def _send(self, run: Run, attempt: Attempt) -> None:
        given = self._given_for(run)
        if given is None:
            self._gated.send_again(attempt, run.call, self._gated.hooked_apply_entry)
        else:
            self._gated.send(attempt, given)

    def _given_for(self, run: Run) -> Given | None:
        """Returns what is dispatched at this moment, if it is that run."""
        is_it = (run.entry, run.number) == self._dispatched
        return self._given if is_it else None

    def has_run_extra(self, name: str, number: int) -> None:
        """Does nothing: the entry's own count is not changed."""

    def refresh(self) -> None:
        if not self._names.is_current:
            with no_collector():
                self._names.is_current = True  # first, because an entry may be added in between
                self._gated.read_anew()
                self._take_entries()
                self._note_ahead([name for name in self.entries if self._is_ahead(name)])

    def look_at(self, names: list[str]) -> None:
        self._gated.look_at(names)
        if self._gated.entries is not self._taken:
            self._take_entries()

    def turn(self) -> float:
        """Publishes waiting runs, and makes the scheduler dispatch due entries. Returns the seconds
        until something may be due. Raises SchedulerFailed if the scheduler raised an error."""
        began, publisher = clock.boottime(), self._dispatcher.publisher
        now = clock.now()
        waiting = [
            run.entry
            for run in publisher.waiting()
            if publisher.back_off(run.entry) <= 0 and early(run, now) <= _SHORTEST_WAIT
        ]
        if waiting:
            self.look_at(waiting)
        self._dispatcher.publish_waiting()
        self.refresh()  # a run may stand for instants that have passed since
        self._is_full = self._dispatcher.room() <= 0
        gated, left = self._gated, 0.0
        if not self._control.pauses_stale:
            left = gated.turn()
            self.trouble.turned()
        if gated.entries is not self._taken:
            self._take_entries()
        return min(left, self._showing.turn(self.entries, gated.adapter, began))

    def _knows_better(self, entry: Any, state: RunState) -> bool:
        """True if its own store says that it has run, or if it was brought up to date: see
        gated.py."""
        return state.due is None or utc_of(entry, entry.last_run_at or NEVER) >= state.last_run_at

    def _start_of(self, entry: Any) -> datetime | None:
        return self._gated.adapter.start(entry)

    def next_run(self, name: str, state: RunState) -> datetime | None:
        entry = self.entries[name]
        last = max(state.last_run_at, utc_of(entry, entry.last_run_at or NEVER))
        due, start = next_free(entry, next_run(entry, last), state), self._start_of(entry)
        due = due if due is None or start is None else max(due, start)
        return self._by_policy_of(name, state, due)

    def _set_clock(self, entry: Any, last_run_at: datetime) -> None:
        self.outdated()  # so that it knows

    def _take_entries(self) -> None:
        gated = self._gated
        self._scheduler.data = self._taken = gated.entries
        self._names.look_anew()
        self._dispatcher.metrics.by_source = {"store": len(self.entries)}
        self._drop_lost({*gated.renamed.values()})
        self._rename()
        goes_on = {*gated.renamed.values()}
        if goes_on:  # there was no room for some: do not send a run of one entry as another's
            self._drop_lost(goes_on - self.entries.keys())
        self._begin_clocks()
        # The clock of an entry is its own. An entry that cannot be read was not disabled, nor was
        # one that will get another name.
        hidden = {*gated.adapter.unreadable, *goes_on}
        self._note_named(anew=False, hidden=hidden)

    def _drop_lost(self, goes_on: Container[str]) -> None:
        """Drops runs of removed entries, except entries named in `goes_on`."""
        gated, ledger = self._gated, self._ledger
        lost = [
            run
            for name, run in ledger.outbox.items()
            if name not in goes_on and ledger.state(name) is not None
            if gated.has_lost(name, run.key)
        ]
        self._dispatcher.drop(lost, "its entry was deleted or disabled while it waited")

    def _rename(self) -> None:
        """Renames entries in the ledger that have another name now. Their row is the key."""
        ledger, renamed, names = self._ledger, self._gated.renamed, dict[str, str]()
        raw: dict[str, str] = {}
        for name, old in list(renamed.items()):
            new = self._names.text_of(name)
            if new == old:  # it was not known yet which entry has that name
                del renamed[name]
            elif not ledger.damaged(new) and ledger.state(old) is not None:
                names[old], raw[old] = new, name
        count = 0
        for moved in ledger.rename(names):
            self._dispatcher.publisher.renamed(moved)
            self._dispatcher.show_progress()
            for old, new in moved.items():
                del renamed[raw[old]]
                count += 1
                level = logging.WARNING if count <= MOST_LOGGED else logging.DEBUG
                logger.log(level, "%s is now called %s: it continues where it was", old, new)
                if self._control.holds(old) and not self._control.holds(new):
                    logger.log(level, "%s was paused; under its new name, %s, it is not", old, new)
        if count > MOST_LOGGED:
            logger.warning("%d entries were renamed in all", count)

    def _begin_clocks(self) -> None:
        """Records in the ledger since when the clocks run of entries that are new or enabled again.
        That counts until their first run, however often the store is read."""
        gated, ledger, now = self._gated, self._ledger, clock.now()
        unseen: dict[str, datetime] = {}
        anew: dict[str, datetime] = {}
        keys: dict[str, str | None] = {}
        for name, entry in self.entries.items():
            state = ledger.state(name)
            if (state is None and ledger.damaged(name)) or entry.name in gated.renamed:
                continue
            if state is None or gated.begins_anew(entry, state):
                # If a store says that an entry ran in the future, no other beat must take that as
                # its clock.
                since = min(utc_of(entry, entry.last_run_at or NEVER), now)
                (unseen if state is None else anew)[name] = since
                keys[name] = gated.adapter.key(entry)
        ledger.first_seen(unseen, keys)
        ledger.begin_anew(anew, keys)

    # For the gated scheduler: see gated.py --------------------------------------------------------

    @property
    def producer(self) -> Any:
        return self._scheduler.producer

    def state(self, name: str) -> RunState | None:
        return self._ledger.state(self._names.text_of(name))

    def names_by_key(self) -> Mapping[str, str]:
        return self._ledger.names_by_key()

    def waits(self, name: str) -> bool:
        return self._names.text_of(name) in self._ledger.outbox

    def is_open(self) -> bool:
        return self._dispatcher.is_master

    def holds_back(self, name: str) -> float | None:
        name, ledger, dispatcher = self._names.text_of(name), self._ledger, self._dispatcher
        waiting = ledger.outbox.get(name)
        if waiting is not None and dispatcher.may_publish(waiting):
            left = max(dispatcher.publisher.back_off(name), early(waiting, clock.now()))
            return max(_SHORTEST_WAIT, left)
        held = waiting is not None or self._control.holds(name) or ledger.damaged(name)
        if held or self._control.pauses_stale or dispatcher.is_closing:
            return _HELD_FOR
        if self.is_ahead and self._is_ahead(name):
            return _HELD_FOR
        return _RETRY_AFTER if self._is_full else None

    def dispatch(self, given: Given, due: datetime, claimed: datetime) -> None:
        entry = given.entry
        if self._gated.entries is not self._taken:  # it has read them again in this turn
            self._take_entries()
        name, ledger = self._names.text_of(entry.name), self._ledger
        key = self._gated.adapter.key(entry)
        if name in ledger.outbox:
            told = telling("skipped", entry=name, due=to_text(due), epoch=self._dispatcher.epoch)
            text = "%s: its last run still waits for the broker, so this run is not kept"
            logger.error(text, name, extra=told)
            return
        state = ledger.state(name)
        is_others = key is not None and state is not None and state.key != key
        if state is None or is_others or entry.name in self._gated.renamed:
            return  # the ledger has logged why, or another entry has the name by now
        with at_one_instant(entry.schedule):
            free = next_free(entry, due, state)
        if free is None or free > max(due, claimed):
            return  # it already ran, by a clock that was ahead
        if key is not None and state.total_run_count and free <= state.last_run_at:
            # It was enabled again, and has already run for its start.
            free = claimed
        is_asked = state.due is None and self._gated.adapter.keeps_installed
        if key is None and due < state.last_run_at - TOLERANCE and not is_asked:
            # A clock that was behind is right again. (In a store that others write, an entry that
            # never ran may be rescheduled to run, or a row enabled again.)
            return
        number, epoch = state.total_run_count + 1, self._dispatcher.epoch
        run = Run(name, number, free, claimed, epoch, key=key, call=given.call)
        policy = self._dispatcher.policies.of(name)
        if policy is not None:
            by_policy = self._by_policy(policy, run, entry)
            if by_policy is None:
                return
            run = by_policy
        claims = self._dispatcher.claim([run], self._control.unchanged)
        self._given, self._dispatched = given, (name, number)
        try:
            self._dispatcher.publisher.publish(claims)
        finally:
            self._given = self._dispatched = None
        self._is_full = self._dispatcher.room() <= 0

    def _by_policy(self, policy: Policy, run: Run, entry: Any) -> Run | None:
        """Returns the run as the entry's policy changes it; None if the policy skips it."""
        if self._dispatcher.is_blocked(run.entry):
            self._dispatcher.skip({run.entry: (run.due, run.claimed)}, "overlap")
            return None
        now, seed = clock.now(), f"{self._election.paths.root}/{run.entry}"
        instants = instants_of(entry, run.due)
        verdict = policy.decide(run.due, now, instants, 0, seed)
        if verdict.skipped is not None and verdict.clock is not None:
            self._dispatcher.skip({run.entry: (run.due, verdict.clock)}, verdict.skipped)
            due, state = instants.after(verdict.clock), self._ledger.state(run.entry)
            if state is not None:  # some may already have run by a clock that was ahead
                due = next_free(entry, due, state)
            if due is None or due > now:
                return None
            verdict = policy.decide(due, now, instants, 0, seed)
        due = verdict.due or run.due
        # It waits in the outbox. That must not be full of runs that wait for this reason: others
        # would starve.
        is_later = verdict.leaves > due and len(self._ledger.outbox) < _MOST_LATER
        return replace(run, due=due, leaves=verdict.leaves if is_later else None)
