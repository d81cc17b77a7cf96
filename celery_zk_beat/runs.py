"""Runs and run states, and their form on pages and in the outbox. Pure: no I/O."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from json import JSONEncoder
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NamedTuple, TypeVar

from .errors import RootError
from .log import Action, telling
from .paths import page_of
from .records import FORMAT, LARGEST_NUMBER, MEND, count, decode, field, shown, to_text

#: The `last_run_at` of an entry that never ran. No `last_run_at` is earlier: near the years 1 and
#: 9999 other time zones overflow, so it could not be computed when the entry is due.
NEVER = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND, _MILLISECOND = timedelta(microseconds=1), timedelta(milliseconds=1)
#: The start of the year 9999, in seconds since 1970.
LATEST = 253_370_764_800
_LATEST_MS, _LATEST_US = 1_000 * LATEST, 1_000_000 * LATEST
#: Most past runs that are kept of an entry.
HISTORY = 20
#: A range of instants, in milliseconds since 1970: after the first, up to and with the second.
Stretch = tuple[int, int]
#: How many stretches of each kind a state keeps.
_MOST_STRETCHES = 3
#: If a last run is no further in the future than this, the clocks agree well enough.
TOLERANCE = timedelta(seconds=2)
#: If a run is published this soon after its claim, its history gives the time of the claim.
PROMPT = timedelta(seconds=1)
#: How many of an entry's dropped runs are remembered.
DROPS_REMEMBERED = 100
#: How long the state of an entry is kept after it has left every master's schedule.
RETENTION = timedelta(days=30)
#: If an entry was in no master's schedule for longer than this, its clock starts anew when it is
#: back. Longer than a rolling deploy takes, during which beats have different schedules.
ABSENCE = timedelta(hours=1)
#: Most characters of a time zone.
_LONGEST_ZONE = 20
#: The history's words for extra runs.
ASKED_FOR, BACKFILLED = "asked for", "backfill"
#: Most characters of a run's error.
LONGEST_ERROR = 100
#: Most bytes of the headers that hooks put into a run.
LONGEST_MADE = 4_000
#: Most characters of a note in the history.
_LONGEST_NOTE = 200
#: Most open runs of an entry; the oldest is forgotten first.
MOST_OPEN = 20
#: Most characters of a worker's name and of an exception's type.
LONGEST_WORKER, LONGEST_TYPE = 100, 100
#: Final states of a run's outcome: what was reported, and what the master concludes if nobody
#: reports. A later report replaces such a conclusion.
REPORTED = ("success", "failure", "revoked", "expired", "rejected", "ignored")
LOST, UNKNOWN = "lost", "unknown"
CONCLUDED = (LOST, UNKNOWN)
#: What is said of a run that is still open, once.
LATE_START, LATE_FINISH = "late_start", "late_finish"
LATE = (LATE_START, LATE_FINISH)
#: Outcomes that count for `pause_after_failures`.
FAILURES = ("failure", LOST)
#: The start of a dropped run's note.
_DROPPED = "dropped: "
#: Made once: making an encoder takes longer than using it.
to_json = JSONEncoder(separators=(",", ":")).encode


class Outcome(NamedTuple):
    """What became of a run that was published.

    Attributes:
        state: one of REPORTED or CONCLUDED; of a run that is still open, one of LATE.
        at_ms: when it was reported or concluded, by ZooKeeper's clock, in milliseconds since 1970.
        runtime_ms: how long the task ran, in milliseconds, as its worker measured it.
        worker: the name of the worker.
        error: the type of the exception.
    """

    state: str
    at_ms: int
    runtime_ms: int | None = None
    worker: str | None = None
    error: str | None = None

    @property
    def is_final(self) -> bool:
        """True once the run is not open any more."""
        return self.state not in LATE

    @property
    def at(self) -> datetime:
        """See `at_ms`: aware, UTC."""
        return NEVER + timedelta(milliseconds=self.at_ms)


class PastRun(NamedTuple):
    """What happened for an instant at which an entry was due. Compact: there are tens of thousands.

    Attributes:
        number: the run's number; None if the instant was skipped.
        due_ms, at_ms: :attr:`due` and :attr:`at`, in milliseconds since 1970.
        epoch: the epoch of the master that dispatched or skipped it.
        note: a remark, such as why it was skipped.
        outcome: what became of it, if the run is tracked and that is known.
    """

    number: int | None
    due_ms: int
    at_ms: int
    epoch: int
    note: str | None = None
    outcome: Outcome | None = None

    @classmethod
    def of(
        cls, number: int | None, due: datetime, at: datetime, epoch: int, note: str | None = None
    ) -> PastRun:
        note = note and note[:_LONGEST_NOTE]
        return cls(number, milliseconds(due), milliseconds(at), epoch, note)

    @property
    def run(self) -> tuple[int | None, int]:
        """Identifies the run within its entry. The number alone is not enough: after a renaming an
        entry may have two runs with one number."""
        return self.number, self.due_ms

    @property
    def was_dropped(self) -> bool:
        """True for a run that was claimed and not published."""
        return self.note is not None and self.note.startswith(_DROPPED)

    @property
    def due(self) -> datetime:
        """The instant at which the entry was due: aware, UTC."""
        return NEVER + timedelta(milliseconds=self.due_ms)

    @property
    def at(self) -> datetime:
        """When it was dispatched (to within the milliseconds from claim to publish) or skipped."""
        return NEVER + timedelta(milliseconds=self.at_ms)


@dataclass(frozen=True)
class RunState:
    """The run state of an entry. Instants are aware, UTC.

    Attributes:
        last_run_at: :attr:`Run.claimed` of its last run; before the first run, when the entry was
            first seen.
        total_run_count: the number of its last run; before the first run :attr:`States.floor`,
            usually 0.
        due: the last instant of the entry's schedule that ran or was skipped; None before the
            first. Runs that an operator asked for do not count.
        dropped: the numbers of the last dropped runs.
        unnamed_since: since when no master's schedule has the entry; None while one has it.
        past: the last past runs, newest last, as far as the entry's history does not have them yet
            (see history.py) or has them otherwise.
        key: which one it is of all entries that had its name; None if unknown.
        zone: the time zone of an entry that runs by local time: :func:`.due.zone_of`.
        ask: if only the entry's class knows when it is due: when to ask it next, in milliseconds
            since 1970, and the checksum of the schedule that said so.
        leaps: stretches that `last_run_at` jumped over, because one run covered all missed
            instants. They are kept as long as a correct clock may not have reached them.
        done: stretches that have run already, by a clock that was ahead. They must not run again.
            They are kept until they are past. Only for entries that run at fixed instants.
        ran: how many runs the entry's policy has counted, if it limits their number.
        open: the tracked runs that are claimed and have not ended, oldest first, at most MOST_OPEN.
            Their `at` is by ZooKeeper's clock.
        failed: how many tracked runs have failed in a row.
        was: the entry's name before, if a run of that name was open when it changed. None from its
            next run on.
    """

    last_run_at: datetime
    total_run_count: int = 0
    due: datetime | None = None
    dropped: tuple[int, ...] = ()
    unnamed_since: datetime | None = None
    past: tuple[PastRun, ...] = ()
    key: str | None = None
    zone: str | None = None
    ask: tuple[int, int] | None = None
    leaps: tuple[Stretch, ...] = ()
    done: tuple[Stretch, ...] = ()
    ran: int = 0
    open: tuple[PastRun, ...] = ()
    failed: int = 0
    was: str | None = None

    @classmethod
    def first(
        cls,
        at: datetime,
        floor: int = 0,
        key: str | None = None,
        zone: str | None = None,
        ahead: timedelta = timedelta(),
        waiting: Run | None = None,
    ) -> RunState:
        """Makes the state of an entry that had none. Its clock starts at `at`, by a clock that is
        `ahead` of ZooKeeper's. `floor`: the page's; `waiting`: its last run, if it is in the
        outbox."""
        state = cls(at, floor, key=key, zone=zone)
        if ahead > TOLERANCE:
            # No instant has run that is still in the future by another clock.
            state = replace(state, last_run_at=NEVER).moved(NEVER, at, ahead)
        if waiting is None:
            return state
        state = replace(state, total_run_count=max(waiting.number, floor), key=waiting.key)
        if waiting.extra:
            return state
        return replace(state, last_run_at=waiting.claimed, due=waiting.due)

    def after_claim(self, run: Run, ahead: timedelta, server_ms: int | None = None) -> RunState:
        """The state once a run is claimed. `last_run_at` never goes back, even if a clock was set
        back or is another machine's.

        Args:
            server_ms: the time by ZooKeeper's clock, from which on a tracked run is open, in
                milliseconds since 1970. None: what `ahead` says of it.
        """
        past = PastRun.of(run.number, run.due, run.planned, run.epoch, run.note)
        changes: dict[str, Any] = {
            "total_run_count": run.number,
            "unnamed_since": None,
            "past": self._with_past(past),
            "key": run.key,
            "ran": self.ran + run.counts,
        }
        if run.tracked:
            at_ms = past.at_ms - ahead // _MILLISECOND if server_ms is None else server_ms
            changes["open"] = (*self.open, past._replace(at_ms=at_ms))[-MOST_OPEN:]
        if run.extra:
            return self.changed(**changes)
        changes["was"] = None
        return self.moved(run.due, run.claimed, ahead, due=run.due, ask=run.ask, **changes)

    def after_publish(
        self, past: PastRun, goes_on_from: datetime | None, ahead: timedelta
    ) -> RunState:
        """The state once a run is published later than its claim said: `past` is what happened,
        and the clock continues from another instant, if one is given."""
        at_ms = past.at_ms - ahead // _MILLISECOND
        opened = tuple(
            # Not before its claim: perhaps the clock was set forward since it told `past.at`.
            each._replace(at_ms=max(at_ms, each.at_ms)) if each.run == past.run else each
            for each in self.open
        )
        state = replace(self, past=self._with_amended(past), open=opened)
        return state if goes_on_from is None else state.moved(self.last_run_at, goes_on_from, ahead)

    def after_outcome(self, past: PastRun, before: Outcome | None = None) -> RunState:
        """The state once the outcome of a tracked run is known. The run is open no longer, unless
        its outcome is not final, or there is none after all: then it is, or is again. `before`: the
        outcome that it had until now."""
        outcome = past.outcome
        others = tuple(each for each in self.open if each.run != past.run)
        had_failed, failed = before is not None and before.state in FAILURES, self.failed
        if outcome is None or not outcome.is_final:
            opened = tuple(in_order((*others, past)))[-MOST_OPEN:]
            return replace(self, open=opened, failed=max(0, failed - had_failed))
        for each in self.past:
            if each.run == past.run:
                past = each._replace(outcome=outcome)
        if outcome.state in FAILURES:
            failed += not had_failed  # one that was lost, and has failed, counts once
        elif outcome.state == "success":
            failed = 0
        return replace(self, open=others, past=self._with_amended(past), failed=failed)

    def after_drop(self, run: Run, why: str) -> RunState:
        """The state once a run is dropped."""
        past = PastRun.of(run.number, run.due, run.claimed_at, run.epoch, f"{_DROPPED}{why}")
        dropped = (*self.dropped, run.number)[-DROPS_REMEMBERED:]
        # A run that was claimed under another name has no past run here yet.
        note = self._with_amended if run.was is None else self._with_past
        opened = tuple(each for each in self.open if each.run != past.run)
        return replace(self, dropped=dropped, past=note(past), open=opened)

    def after_skip(self, past: PastRun, at: datetime, ahead: timedelta) -> RunState:
        """The state once an instant is skipped and its clock goes on from `at`."""
        # No instant up to then has run.
        past_runs = self._with_past(past)
        return self.moved(self.last_run_at, at, ahead, due=past.due, past=past_runs)

    def begun_anew(self, at: datetime, key: str | None, ahead: timedelta) -> RunState:
        """The state of an entry that was enabled again, or is a new entry of the same name: its
        clock starts at `at`, and earlier runs are not its own."""
        state = replace(self, unnamed_since=None, key=key, due=None)
        return state.moved(self.last_run_at, at, ahead, ask=None)

    def renamed(self, old: str, other: RunState, waiting: Run | None) -> RunState:
        """The state of the same entry under another name, of which `other` is the state: past and
        open runs stay with their name, for task ids and headers are made of it. Only `waiting`, the
        run of the entry that is not published yet, goes along. `old`: the name until now."""
        number = max(other.total_run_count, self.total_run_count)
        left = self._without(waiting)
        moved = tuple(each for each in self.open if each not in left)
        opened = (*other.open, *moved)[-MOST_OPEN:]
        was = old if left else self.was
        return replace(self, total_run_count=number, past=other.past, open=opened, was=was)

    def left_behind(self, server: datetime, waiting: Run | None) -> RunState:
        """The state that stays under the old name, for its history. It belongs to no entry.
        `server`: ZooKeeper's time."""
        since = self.unnamed_since or server
        return replace(self, key=None, unnamed_since=since, open=self._without(waiting), was=None)

    def _without(self, run: Run | None) -> tuple[PastRun, ...]:
        """The open runs but this one."""
        known = None if run is None else (run.number, milliseconds(run.due))
        return tuple(each for each in self.open if each.run != known)

    def when_named(self, now: datetime, server: datetime, anew: bool) -> RunState:
        """The state once a master's schedule has the entry. With `anew` its clock starts from
        `now`, if no schedule had it for longer than ABSENCE. `server`: ZooKeeper's time."""
        since = self.unnamed_since
        if since is None:
            return self
        state = replace(self, unnamed_since=None)
        # A clock that is ahead, perhaps for a moment, must not decide it.
        is_late = min(now, server) - since > ABSENCE
        if anew and is_late and now > self.last_run_at:
            return state.moved(self.last_run_at, now, now - server, ask=None)
        return state

    def when_unnamed(self, now: datetime, server: datetime) -> RunState | None:
        """The state while the master's schedule does not have the entry. None: no schedule had it
        for longer than RETENTION, and the state may be removed. `server`: ZooKeeper's time."""
        if self.unnamed_since is None:
            # By ZooKeeper's clock: other beats compare it, and our clock may be wrong.
            return replace(self, unnamed_since=server)
        is_old = min(now, server) - self.unnamed_since > RETENTION
        return None if is_old else self

    def _with_past(self, past: PastRun) -> tuple[PastRun, ...]:
        return (*self.past, past)[-HISTORY:]

    def _with_amended(self, past: PastRun) -> tuple[PastRun, ...]:
        """With what is said of a run replaced, here or, where only that has it, in its history."""
        if any(each.run == past.run for each in self.past):
            known = past.outcome is not None
            return tuple(
                (past if known else past._replace(outcome=each.outcome))
                if each.run == past.run
                else each
                for each in self.past
            )
        if past.outcome is not None:  # perhaps of a run before the last
            return tuple(in_order((*self.past, past)))[-HISTORY:]
        return self._with_past(past)

    def moved(self, since: datetime, at: datetime, ahead: timedelta, **changes: Any) -> RunState:
        """The state after a run for the instant `since`, or none, which has the clock go on at
        `at`, by a clock that is so far `ahead` of ZooKeeper's, with `changes` of other fields."""
        has_leapt = at - since > TOLERANCE
        leaps, done = self.leaps, self.done
        if leaps or done:
            past = milliseconds(at - max(ahead, timedelta()))
            leaps = tuple(leap for leap in leaps if leap[1] > past)
            done = tuple(each for each in done if each[1] > past)
        at = max(at, self.last_run_at)
        if has_leapt:
            leaps = (*leaps, (milliseconds(since), milliseconds(at)))
            if len(leaps) > _MOST_STRETCHES:  # without the shortest
                leaps = tuple(sorted(leaps, key=lambda leap: leap[0] - leap[1])[:-1])
        return self.changed(last_run_at=at, leaps=leaps, done=done, **changes)

    def changed(self, **changes: Any) -> RunState:
        """Does what dataclasses.replace() does, in a sixth of the time: a claim makes hundreds."""
        return _changed(self, **changes)

    def claimed_late(self, at: datetime) -> RunState:
        """The state after the claim of its last run, if that is claimed at this instant."""
        last = self.past[-1]._replace(at_ms=milliseconds(at))
        return self.changed(past=(*self.past[:-1], last))

    def set_back(self, at: datetime, ahead: timedelta = timedelta()) -> RunState:
        """The state as it should be where a clock that was ahead made it: its clock goes on from
        `at`, by a clock that is so far `ahead` of ZooKeeper's, and what has run since then does not
        run again."""
        back = self.last_run_at - at
        # Of an interval the instants that follow are others than those before, for certain: in
        # their microseconds.
        micro = (self.last_run_at.microsecond + 1) % 1000
        at = at.replace(microsecond=at.microsecond // 1000 * 1000 + micro)
        since, until = milliseconds(at), milliseconds(self.last_run_at)
        new = [] if self.due is None else [(since, until)]
        for start, end in self.leaps:
            parts = [((a, min(b, start)), (max(a, end), b)) for a, b in new]
            new = [(a, b) for pair in parts for a, b in pair if a < b]
        done: list[Stretch] = []
        # This clock may be ahead, too: what ran before `at`, or was left out, is still to be known.
        past = since - max(ahead, timedelta()) // _MILLISECOND
        for a, b in sorted([*(each for each in self.done if each[1] > past), *new]):
            if done and (a <= done[-1][1] or len(done) == _MOST_STRETCHES):
                done[-1] = done[-1][0], max(b, done[-1][1])
            else:
                done.append((a, b))
        ask = self.ask and (max(0, self.ask[0] - back // _MILLISECOND), self.ask[1])
        leaps = tuple((a, min(b, since)) for a, b in self.leaps if a < since and b > past)
        return replace(self, last_run_at=at, leaps=leaps, done=tuple(done), ask=ask)

    @cached_property
    def text(self) -> str:
        """The JSON on its page: last_run_at and due in microseconds since 1970, to keep it short,
        because a claim writes the whole page. Rare fields follow, by name. We format it by hand,
        because a claim makes hundreds."""
        due = "null" if self.due is None else microseconds(self.due)
        text = f"[{microseconds(self.last_run_at)},{self.total_run_count},{due}"
        more = []
        if self.past:
            more.append(f'"past":{past_text(self.past)}')
        if self.key is not None:
            more.append(f'"key":{_quoted(self.key)}')
        if self.dropped:
            more.append(f'"dropped":{to_json(self.dropped)}')
        if self.unnamed_since is not None:
            more.append(f'"unnamed_since":{microseconds(self.unnamed_since)}')
        if self.zone is not None:
            more.append(f'"zone":{_quoted(self.zone)}')
        if self.ask is not None:
            more.append(f'"ask":{to_json(self.ask)}')
        self._add_rarest(more)
        return _with_more(text, more)

    def _add_rarest(self, more: list[str]) -> None:
        if self.leaps:
            more.append(f'"leaps":{to_json(self.leaps)}')
        if self.done:
            more.append(f'"done":{to_json(self.done)}')
        if self.ran:
            more.append(f'"ran":{self.ran}')
        if self.open:
            more.append(f'"open":{past_text(self.open)}')
        if self.failed:
            more.append(f'"failed":{self.failed}')
        if self.was is not None:
            more.append(f'"was":{_quoted(self.was)}')

    @property
    def bare(self) -> RunState:
        """The state for a full page: without the past, all but the last drop and the last open
        run, and the data that would help after a clock was ahead."""
        is_short = len(self.dropped) < 2 and len(self.open) < 2 and self.was is None
        if not self.past and not self.leaps and is_short:
            return self
        dropped, opened = self.dropped[-1:], self.open[-1:]
        return replace(self, past=(), leaps=(), dropped=dropped, open=opened, was=None)


@dataclass(frozen=True)
class Run:
    """One execution of one entry. Instants are aware, UTC.

    Attributes:
        entry: the entry's name.
        number: counts the entry's runs, for ever: from 1, or from :attr:`States.floor` + 1.
        due: the earliest instant at which the entry was due and had not run.
        claimed: the entry's next ``last_run_at``: when the run is claimed; `due`, if that is a
            moment ahead or a little before: see :func:`.due.last_run`.
        epoch: of the master that claims it.
        extra: an operator asked for it, at `due` or, where that is not `claimed`, as one run of a
            backfill; the entry's own clock stays as it is.
        key: the key of the entry's state.
        ask: `ask` of the entry's state after the run. Not in the outbox.
        error: why the last publish failed, if it was the run's own fault.
        unsent: the master that handed over knew that it had never left.
        was: the entry's name when the run was claimed, if it has changed since: the task id is made
            of that name.
        call: if a gated scheduler made several runs of the entry at once: which one it is, from 0.
        made: the headers that hooks put into the run, as JSON; None if hooks did not get it.
        leaves: when to publish it, if that is later than `due`.
        counts: its entry's policy counts it. Not in the outbox.
        tracked: its entry's policy asks what becomes of it.
        late: when it is claimed, if that is more than PROMPT after `claimed`.
    """

    entry: str
    number: int
    due: datetime
    claimed: datetime
    epoch: int
    extra: bool = False
    key: str | None = None
    ask: tuple[int, int] | None = dataclasses.field(default=None, compare=False)
    error: str | None = dataclasses.field(default=None, compare=False)
    unsent: bool = dataclasses.field(default=False, compare=False)
    was: str | None = None
    call: int = 0
    made: str | None = dataclasses.field(default=None, compare=False)
    leaves: datetime | None = dataclasses.field(default=None, compare=False)
    counts: bool = dataclasses.field(default=False, compare=False)
    tracked: bool = dataclasses.field(default=False, compare=False)
    late: datetime | None = dataclasses.field(default=None, compare=False)

    @property
    def note(self) -> str | None:
        """The history's words for it."""
        if not self.extra:
            return None
        return ASKED_FOR if self.is_wanted_now else BACKFILLED

    @property
    def expected(self) -> datetime:
        """When it should have been published; lateness counts from there. A backfill's instants
        are long past."""
        return self.claimed if self.extra else self.leaves or self.due

    @property
    def is_wanted_now(self) -> bool:
        """True if an operator asked for it: it runs even if its entry is paused."""
        return self.extra and self.due == self.claimed

    @property
    def claimed_at(self) -> datetime:
        """When it was claimed, to within PROMPT."""
        return self.late or self.claimed

    @property
    def planned(self) -> datetime:
        """When it is published, as far as its claim knows."""
        at = self.claimed_at
        return at if self.leaves is None else at + (self.leaves - self.due)

    def claimed_late(self, at: datetime) -> Run:
        """The run if it is claimed at this instant; faster than dataclasses.replace()."""
        return _changed(self, late=at)

    def renamed(self, name: str) -> Run:
        """The run once its entry has another name."""
        return replace(self, entry=name, was=self.was or self.entry)

    def with_error(self, error: str | None) -> Run:
        """The run with an error, cut to the length that is kept; or with none."""
        error = None if error is None else error[:LONGEST_ERROR]
        return self if error == self.error else replace(self, error=error)

    def telling(self, action: Action, epoch: int, task_id: str) -> dict[str, object]:
        """The fields of a log line about it. `epoch`: the epoch of the master that logs it."""
        due = to_text(self.due)
        return telling(
            action, entry=self.entry, run=self.number, due=due, epoch=epoch, task_id=task_id
        )

    @cached_property
    def text(self) -> str:
        """The JSON in the outbox; made like :attr:`RunState.text`."""
        text = f"[{_quoted(self.entry)},{self.number},{microseconds(self.due)}"
        text += f",{microseconds(self.claimed)},{self.epoch}"
        more = []
        if self.extra:
            more.append('"extra":true')
        if self.unsent:
            more.append('"unsent":true')
        if self.tracked:
            more.append('"tracked":true')
        if self.key is not None:
            more.append(f'"key":{_quoted(self.key)}')
        if self.error is not None:
            more.append(f'"error":{_quoted(self.error)}')
        if self.was is not None:
            more.append(f'"was":{_quoted(self.was)}')
        if self.call:
            more.append(f'"call":{self.call}')
        if self.made is not None:
            more.append(f'"made":{self.made}')
        if self.leaves is not None:
            more.append(f'"leaves":{microseconds(self.leaves)}')
        return _with_more(text, more if self.late is None else self._with_late(more))

    def _with_late(self, more: list[str]) -> list[str]:
        return [*more, f'"late":{microseconds(self.claimed_at)}']


class States(dict[str, RunState]):
    """The states of a page, by the entries' names.

    Attributes:
        floor: the highest run number of all states that were removed from the page. A new entry on
            the page counts its runs from there: so if an entry is removed and comes back, no number
            is used twice.
    """

    floor = 0


def encode_page(states: dict[str, RunState], floor: int = 0) -> bytes:
    """Does what :func:`.records.encode` does, with cached texts: a page is written as a whole."""
    entries = ",".join([f"{_quoted(name)}:{state.text}" for name, state in states.items()])
    rest = f'"floor":{floor},' if floor else ""
    return f'{{"format":{FORMAT},{rest}"entries":{{{entries}}}}}'.encode("ascii")


def decode_page(path: str, data: bytes) -> States:
    fields = decode(path, data)
    entries = field(path, fields, "entries", dict)
    page = path.rpartition("/")[2]
    for name in entries:
        if page_of(name) != page:
            raise RootError(f"{path}: holds {name!r:.80}, whose page is {page_of(name)}")
    states = States({name: _decode_state(path, each) for name, each in entries.items()})
    states.floor = _decode_number(path, "floor", fields.get("floor", 0))
    return states


def _decode_state(path: str, item: Any) -> RunState:
    (last, number, due), more = _decode_fields(path, item, 3, "run state")
    last_run_at = _decode_instant(path, "last_run_at", last)
    due = None if due is None else _decode_instant(path, "due", due)
    if type(number) is not int or not 0 <= number < LARGEST_NUMBER:
        _decode_number(path, "total_run_count", number)  # which says so
    if not more:
        return RunState(last_run_at, number, due)
    return RunState(
        last_run_at,
        number,
        due,
        _decode_dropped(path, more),
        _instant(path, more, "unnamed_since") if "unnamed_since" in more else None,
        decode_past(more.get("past")),
        _decode_text(more, "key"),
        _decode_text(more, "zone", _LONGEST_ZONE),
        _decode_pair(more.get("ask")),
        _decode_stretches(more.get("leaps")),
        _decode_stretches(more.get("done")),
        # No more than there were: it is the end of an entry.
        min(count(path, more, "ran"), number) if "ran" in more else 0,
        decode_past(more.get("open"), MOST_OPEN),
        count(path, more, "failed") if "failed" in more else 0,
        _decode_text(more, "was"),
    )


def _decode_number(path: str, name: str, value: Any) -> int:
    """Reads the number of a run. It must leave room for one more number."""
    if count(path, {name: value}, name) == LARGEST_NUMBER:
        raise RootError(f"{path}: the field {name!r} is {value}, the last; {MEND.format(path)}")
    return int(value)


def _instant(path: str, fields: Any, name: str) -> datetime:
    return _decode_instant(path, name, field(path, fields, name, int))


def _decode_instant(path: str, name: str, value: Any) -> datetime:
    if type(value) is not int or not 0 <= value < _LATEST_US:
        raise RootError(
            f"{path}: the field {name!r} is {shown(value)}, expected microseconds since 1970; "
            f"{MEND.format(path)}"
        )
    return NEVER + timedelta(microseconds=value)


def _decode_pair(item: Any) -> tuple[int, int] | None:
    """Returns None if it is damaged: we can do without it."""
    if not isinstance(item, list) or len(item) != 2:
        return None
    a, b = item
    if not all(type(each) is int and 0 <= each < _LATEST_MS for each in item):
        return None
    return a, b


def _decode_stretches(items: Any) -> tuple[Stretch, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(filter(None, map(_decode_pair, items[-_MOST_STRETCHES:])))


def _decode_text(fields: Any, name: str, most: int | None = None) -> str | None:
    text = fields.get(name)
    return text[:most] if isinstance(text, str) else None


def _decode_made(item: Any) -> str | None:
    """Returns None if it is damaged: then hooks are called again."""
    return to_json(item) if isinstance(item, dict) else None


def _decode_dropped(path: str, fields: Any) -> tuple[int, ...]:
    numbers = field(path, fields, "dropped", list) if "dropped" in fields else ()
    return tuple(number for number in numbers if type(number) is int and 0 <= number < _LATEST_MS)


def in_order(past: Iterable[PastRun]) -> list[PastRun]:
    """Sorts past runs by their numbers. Not by time: a run is claimed for an instant that may be
    long past, and clocks differ. An instant without a run stays behind the runs before it."""
    highest, keyed = 0, []
    for each in past:
        highest = max(highest, each.number or 0)
        keyed.append((each.number or highest, each))
    return [each for _, each in sorted(keyed, key=lambda pair: pair[0])]


def past_text(past: Iterable[PastRun]) -> str:
    """Returns past runs as JSON; by hand, as most of them are four numbers."""
    texts = [
        to_json(each if each.outcome else each[: 5 if each.note else 4])
        if each.note or each.outcome or each.number is None
        else f"[{each.number},{each.due_ms},{each.at_ms},{each.epoch}]"
        for each in past
    ]
    return f"[{','.join(texts)}]"


def decode_past(items: Any, most: int = HISTORY) -> tuple[PastRun, ...]:
    """Reads past runs, and leaves out damaged ones: nothing depends on them."""
    if not isinstance(items, list):
        return ()
    return tuple(filter(None, map(_decode_past, items[-most:])))


def _decode_past(item: Any) -> PastRun | None:
    try:
        number, due_ms, at_ms, epoch, *note = item
    except (TypeError, ValueError):
        return None
    # By hand, because a loop takes three times as long.
    if not (
        (number is None or (type(number) is int and 0 <= number < _LATEST_MS))
        and (type(due_ms) is int and 0 <= due_ms < _LATEST_MS)
        and (type(at_ms) is int and 0 <= at_ms < _LATEST_MS)
        and (type(epoch) is int and 0 <= epoch < _LATEST_MS)
    ):
        return None
    if not note:
        return PastRun(number, due_ms, at_ms, epoch)
    text = note[0][:_LONGEST_NOTE] if isinstance(note[0], str) else None
    outcome = _decode_outcome(note[1]) if len(note) > 1 else None
    return PastRun(number, due_ms, at_ms, epoch, text, outcome)


def _decode_outcome(item: Any) -> Outcome | None:
    try:
        state, at_ms, runtime_ms, worker, error = item
    except (TypeError, ValueError):
        return None
    if not (
        isinstance(state, str)
        and state in (*REPORTED, *CONCLUDED, *LATE)
        and (type(at_ms) is int and 0 <= at_ms < _LATEST_MS)
    ):
        return None
    if type(runtime_ms) is not int or not 0 <= runtime_ms < _LATEST_MS:
        runtime_ms = None
    worker = worker[:LONGEST_WORKER] if isinstance(worker, str) else None
    error = error[:LONGEST_TYPE] if isinstance(error, str) else None
    return Outcome(state, at_ms, runtime_ms, worker, error)


@functools.lru_cache(256)  # the runs of a claim have the same instants
def microseconds(instant: datetime) -> int:
    """Microseconds since 1970 of an aware datetime; limited to what can be read again."""
    return min(max(0, (instant - NEVER) // _MICROSECOND), _LATEST_US - 1)


def milliseconds(instant: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime, rounded down."""
    return (instant - NEVER) // _MILLISECOND


def from_milliseconds(since: int) -> datetime:
    """Returns the datetime, aware, UTC; limited to what can be read again."""
    return NEVER + min(max(0, since), _LATEST_MS) * _MILLISECOND


def end_of(done: tuple[Stretch, ...], instant: datetime) -> datetime | None:
    """Returns the end of the stretch that has `instant`; None if none has it."""
    at = milliseconds(instant)
    for start, end in done:
        if start < at <= end:
            return from_milliseconds(end)
    return None


def encode_outbox(runs: Iterable[Run]) -> bytes:
    """Encodes the outbox like :func:`encode_page`."""
    texts = ",".join([run.text for run in runs])
    return f'{{"format":{FORMAT},"runs":[{texts}]}}'.encode("ascii")


def bytes_of(runs: Iterable[Run]) -> int:
    """Returns the most bytes of runs in the outbox. A hand-over also marks them as unsent."""
    return sum(len(run.text) + 16 for run in runs)


def decode_outbox(path: str, data: bytes) -> list[Run]:
    return [_decode_run(path, item) for item in field(path, decode(path, data), "runs", list)]


def _decode_run(path: str, item: Any) -> Run:
    (entry, number, due, claimed, epoch), more = _decode_fields(path, item, 5, "run")
    return Run(
        field(path, {"entry": entry}, "entry", str),
        count(path, {"number": number}, "number"),
        _decode_instant(path, "due", due),
        _decode_instant(path, "claimed", claimed),
        count(path, {"epoch": epoch}, "epoch"),
        more.get("extra") is True,
        _decode_text(more, "key"),
        error=_decode_text(more, "error", LONGEST_ERROR),
        unsent=more.get("unsent") is True,
        was=_decode_text(more, "was"),
        call=count(path, more, "call") if "call" in more else 0,
        made=_decode_made(more.get("made")),
        leaves=_instant(path, more, "leaves") if "leaves" in more else None,
        tracked=more.get("tracked") is True,
        late=_instant(path, more, "late") if "late" in more else None,
    )


_Record = TypeVar("_Record", Run, RunState)


def _changed(record: _Record, **changes: Any) -> _Record:
    changed = object.__new__(type(record))
    fields = vars(changed)
    fields.update(vars(record))
    fields.pop("text", None)
    fields.update(changes)
    return changed


def _with_more(text: str, more: list[str]) -> str:
    """Ends a JSON array. Its last item is an object with the rare fields."""
    return f"{text},{{{','.join(more)}}}]" if more else f"{text}]"


def _decode_fields(path: str, item: Any, length: int, what: str) -> tuple[list[Any], Any]:
    """Splits an array into the fields that are always there and the rare ones."""
    if isinstance(item, list):
        if len(item) == length:
            return item, {}
        if len(item) == length + 1 and isinstance(item[-1], dict):
            return item[:-1], item[-1]
    raise RootError(f"{path}: {shown(item)} is no {what}; {MEND.format(path)}")
