"""Does the backfills that operators ask for: one run at a time, while nothing is due."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace
from datetime import datetime
from typing import Any

from . import clock
from .backfills import LARGEST_BACKFILLS, MOST_BEGUN, MOST_UNASKED, Backfill, Backfills
from .control import Answer, Request
from .dispatcher import Dispatcher
from .due import instant_after, instants, schedule_text, tells_instants
from .errors import Conflict, Outdated, RootError
from .log import get_logger
from .records import to_text
from .runs import TOLERANCE, Run
from .source import Source
from .zookeeper.operations import Check, Operation

logger = get_logger(__name__)

#: Most bytes of the record after a renaming: backfills still grow.
_MOST_MOVED = (MOST_BEGUN + LARGEST_BACKFILLS) // 2
_GONE = "%s: its row is gone, and another has its name: its backfill ends after %d runs"
#: Seconds between two looks at an entry that cannot be backfilled now.
_LOOK_EVERY = 1.0


class Backfilling:
    """For the dispatch loop's thread. Raises as :class:`.dispatcher.Dispatcher`."""

    def __init__(self, dispatcher: Dispatcher, source: Source) -> None:
        self._dispatcher, self._source = dispatcher, source
        self._ledger, self._control = dispatcher.ledger, dispatcher.control
        #: On boottime(): when the next run of an entry may be claimed.
        self._next_at: dict[str, float] = {}
        #: Why entries have to wait, as far as it was logged.
        self._told: dict[str, str] = {}

    def turn(self) -> float:
        """Claims the next run of one backfill, if its time has come, and publishes it. Returns the
        seconds after which there may be another. Call it only while no entry is due."""
        if not self._control.backfills or self._control.pauses_stale:
            return math.inf
        self._follow_rows()
        backfills = self._control.backfills.entries
        now, left = clock.boottime(), math.inf
        for name in sorted(backfills, key=lambda name: self._next_at.get(name, 0.0)):
            wait = self._next_at.get(name, 0.0) - now
            if wait > 0:
                left = min(left, wait)
            elif not self._waits(name, backfills[name]):
                with contextlib.suppress(Outdated):  # the next turn tries again
                    self._run(name, backfills[name])
                return 0.0  # what is due comes first
        return left

    def _follow_rows(self) -> None:
        """Has each backfill go with its row to the new name, if that was renamed. The backfill of a
        row that is gone ends if another row has its name."""
        before, ledger = self._control.backfills.entries, self._ledger
        left = [
            name
            for name, backfill in before.items()
            for state in [ledger.state(name)]
            if backfill.key is not None and state is not None and state.key != backfill.key
        ]
        if not left:
            return
        names, moved = ledger.names_by_key(), dict[str, str]()
        after = Backfills({name: before[name] for name in before.keys() - left})
        for name in left:
            backfill, new = before[name], names.get(before[name].key or "")
            if new is None and self._source.row(name) is None:  # the master knows no rows
                backfill, new = replace(backfill, key=None), name
            if new is None or new in after.entries:
                continue
            wider = after.having(new, backfill)
            if len(wider.encode()) <= _MOST_MOVED:
                after, moved[name] = wider, new
        self._write(after)
        next_at = {moved[name]: self._next_at.pop(name, 0.0) for name in moved}
        self._next_at.update(next_at)
        for name in left:
            text = "%s: its backfill goes on as that of %s" if name in moved else _GONE
            told = (name, moved[name]) if name in moved else (name, before[name].done)
            logger.warning(text, *told)

    def _waits(self, name: str, backfill: Backfill) -> bool:
        """True if the next run of an entry has to wait. What it waits for wakes the loop, or is
        looked at again."""
        ledger = self._ledger
        if name in ledger.outbox or self._control.holds(name) or ledger.damaged(name):
            return True
        if self._dispatcher.is_blocked(name):
            return True
        self._source.look_at([name])
        entry, why = self._source.entries.get(name), ""
        if entry is None:
            why = "it is not in the master's schedule"
        elif not tells_instants(entry.schedule):
            why = f"only its class knows the instants of {schedule_text(entry.schedule)}"
        elif backfill.key is not None and self._source.row(name) not in (None, backfill.key):
            why = "another row has its name"
        if why:
            self._next_at[name] = clock.boottime() + _LOOK_EVERY
            if self._told.get(name) != why:
                logger.warning("%s: its backfill waits: %s", name, why)
        self._told[name] = why
        # look_at() may have changed the outbox and the state.
        if why or name in ledger.outbox or ledger.state(name) is None:
            return True
        return self._dispatcher.room() <= 0

    def _run(self, name: str, backfill: Backfill) -> None:
        dispatcher, control, state = self._dispatcher, self._control, self._ledger.state(name)
        entry = self._source.entries[name]
        due = _next(entry, backfill)
        if due is None or state is None:  # its schedule has changed
            self._end(name, backfill)
            return
        number = state.total_run_count + 1
        run = Run(name, number, due, clock.now(), dispatcher.epoch, True, state.key)
        after = backfill.after_claim(due)
        is_last = _next(entry, after) is None
        changed = control.backfills.having(name, None if is_last else after)
        written = control.write_backfills(changed)
        claimed = dispatcher.claim([run], control.unchanged, written)
        if not claimed:
            return  # there was no room for it in the outbox
        control.backfills_written(changed)
        self._next_at[name] = clock.boottime() + 1.0 / backfill.rate
        self._source.has_run_extra(name, number)
        if is_last:
            self._tell_end(name, after)
        dispatcher.publisher.publish(claimed)

    def _end(self, name: str, backfill: Backfill) -> None:
        self._write(self._control.backfills.having(name, None))
        self._tell_end(name, backfill)

    def _write(self, changed: Backfills, *also: Operation) -> None:
        election, written = self._dispatcher.election, self._control.write_backfills(changed)
        epoch = Check(election.paths.epoch, self._dispatcher.epoch)
        election.session.commit(epoch, *also, written)
        self._control.backfills_written(changed)

    def _tell_end(self, name: str, backfill: Backfill) -> None:
        self._next_at.pop(name, None)
        self._told.pop(name, None)
        logger.info("%s: its backfill is done: %d runs", name, backfill.done)

    def begin(self, request: Request) -> Answer | None:
        """Begins a backfill. Returns why it does not; None if the request is answered."""
        record, control, now = request.record, self._control, clock.now()
        name = record.entry or ""
        self._follow_rows()
        fields = {**vars(record), "at": to_text(now), "done": 0}
        try:
            backfill = Backfill.of("the request", fields)
        except RootError as exc:
            return Answer(False, str(exc))
        refused = self._refusal(name, backfill, now)
        if refused is not None:
            return Answer(False, refused)
        total, text = _count(self._source.entries[name], backfill)
        if total == 0:
            return Answer(False, "its schedule has no instant in that range")
        if record.most is not None and (total is None or total > record.most):
            return Answer(False, f"{text} runs are more than {record.most}")
        backfill = replace(backfill, total=total, key=self._source.row(name))
        changed = control.backfills.having(name, backfill)
        if len(changed.encode()) > MOST_BEGUN:
            return Answer(False, "too many backfills at the same time")
        # In one transaction: a backfill exists exactly if the answer says so.
        answer = request.answer(Answer(True, f"{text} runs"))
        try:
            self._write(changed, answer)
        except Conflict:  # it was withdrawn; or another was cancelled: it will be answered again
            control.stale = True
        return None

    def _refusal(self, name: str, backfill: Backfill, now: datetime) -> str | None:
        self._source.look_at([name])
        entry, control = self._source.entries.get(name), self._control
        key, under_way = self._source.row(name), control.backfills.entries
        of_row = (each for each in under_way.values() if key is not None and each.key == key)
        there = under_way.get(name) or next(of_row, None)
        if control.backfills_damage is not None:
            return str(control.backfills_damage)
        if there is not None:
            since, until = to_text(there.since), to_text(there.until)
            return f"a backfill from {since} to {until}, by {there.by}, is already under way"
        if entry is None:
            return f"the master's schedule has no entry {name!r}"
        if not tells_instants(entry.schedule):
            text = schedule_text(entry.schedule)
            return f"only the class of its schedule, {text}, knows its instants"
        if backfill.until - now > TOLERANCE:
            return f"{to_text(backfill.until)} is in the future by the master's clock"
        return None


def _next(entry: Any, backfill: Backfill) -> datetime | None:
    due = instant_after(entry, backfill.since, backfill.after)
    return due if due is not None and due < backfill.until else None


def _count(entry: Any, backfill: Backfill) -> tuple[int | None, str]:
    """Returns how many runs a backfill has, and that as text. The number is None if there are too
    many: a master that has to dispatch must not count for long."""
    found = instants(entry, backfill.since, backfill.until)
    total = sum(1 for _ in itertools.islice(found, MOST_UNASKED + 1))
    return (None, f"more than {MOST_UNASKED}") if total > MOST_UNASKED else (total, str(total))
