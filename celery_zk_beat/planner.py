"""Decides which entries are due, without I/O; callers pass the time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from celery.schedules import crontab

from .agenda import Agenda, Item, Seen
from .due import (
    as_of,
    ask_at,
    at_one_instant,
    checksum,
    due_by_celery,
    due_instant,
    has_run,
    instants_of,
    interval_of,
    is_ahead,
    is_free,
    is_interval,
    is_slow,
    last_run,
    next_free,
    next_run,
    utc_of,
)
from .log import get_logger
from .names import Entries
from .policies import NO_POLICIES, ONE, Instants, Policies, Policy, Verdict
from .runs import PROMPT, Run, RunState

logger = get_logger(__name__)

#: Most seconds until an entry is asked again that says when it has to be asked: ten years.
_LONGEST_DELAY = 3.2e8
#: Least seconds until an entry that is not due is asked again.
SHORTEST_WAIT = 0.01
#: A run is claimed this many seconds before it is due, so that it is published on time even if
#: hundreds are due; and claims wait this many seconds for each other, since one claim of many runs
#: costs little more than one of a single run.
_CLAIM_AHEAD, _CLAIM_TOGETHER = 0.025, 0.02
#: Seconds before an entry is due in which its run may be made.
_MADE_WITHIN = 10.0
#: Most entries to ask before those that are due are claimed.
_MOST_LOOKED_AT = 1000


class Known(Protocol):
    """What a plan needs to know beside the entries and the time."""

    @property
    def epoch(self) -> int:
        """The epoch of the master that claims."""

    def state(self, name: str) -> RunState | None:
        """The ledger's state of an entry; None if it has none."""

    def key(self, name: str) -> str | None:
        """Returns which one it is of all entries that had this name, or None if unknown."""

    def waits(self, name: str) -> float | None:
        """Seconds until to look again at an entry whose last run waits for the broker; None if no
        run of it waits."""

    def holds(self, name: str) -> bool:
        """True if an operator has paused the entry."""


class Skipped(NamedTuple):
    """A due instant that gets no run. The entry's clock continues from `at`. `reason` is a key of
    metrics.SKIPPED."""

    entry: str
    due: datetime
    at: datetime
    reason: str


class _Asked(NamedTuple):
    """An entry's own class said that it is due. `following` is the entry after the run; `delay` is
    the seconds until to ask that entry."""

    following: Any
    delay: Any


@dataclass
class Plan:
    """What to do at an instant.

    Attributes:
        runs: the runs to claim.
        skipped: the instants to record as skipped, before the claim.
        look_again: when something may be due, seconds since 1970; if in the past, immediately.
    """

    runs: list[Run] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    look_again: float = math.inf


class _Applied:
    """The policies that are applied: `of`, by the entry's name."""

    def __init__(self, names: Entries, known: Known, policies: Policies, root: str) -> None:
        self._names, self._known, self._all, self._root = names, known, policies, root
        self.of: dict[str, Policy] = {}
        #: Instants that do not depend on an entry's last run.
        self._instants: dict[str, Instants] = {}

    def find_all(self, is_own: bool, starting_deadline: float | None) -> None:
        self.of, self._instants = {}, {}
        if self._all:
            for name, entry in list(self._names.get().items()):
                self.find(name, entry, is_own, starting_deadline)

    def find(self, name: str, entry: Any, is_own: bool, starting_deadline: float | None) -> None:
        policy = self._all.of(name)
        if policy is None:
            return
        if is_own or is_free(entry):
            self._names.warn_once(
                f"{name}: its policy is not applied: its own class says when it is due"
            )
            return
        is_crontab = isinstance(entry.schedule, crontab)  # only they have the deadline
        if policy.catch_up is None and starting_deadline is not None and is_crontab:
            policy = replace(policy, catch_up=timedelta(seconds=starting_deadline))
        if is_interval(entry.schedule) and entry.schedule.run_every <= timedelta():
            policy = replace(policy, coalesce=ONE)  # it is always due, at no instant
        self.of[name] = policy

    def forget(self, name: str) -> None:
        self.of.pop(name, None)
        self._instants.pop(name, None)

    def verdict(
        self, name: str, entry: Any, policy: Policy, due: datetime, now: datetime
    ) -> Verdict:
        state, instants = self._known.state(name), self._instants.get(name)
        if instants is None:
            instants = instants_of(entry, due)
            if instants.is_fixed:
                self._instants[name] = instants
        seed = f"{self._root}/{name}"
        if state is None:
            return policy.decide(due, now, instants, 0, seed)
        return policy.decide(
            due, now, instants, state.ran, seed, state.due, is_open=bool(state.open)
        )


class Planner:
    """Decides which entries are due. It does no I/O and reads no clock: callers pass the time.

    Args:
        names: the entries; marked as not current if the planner finds that they have changed.
        is_due: asks an entry, as ``Scheduler.is_due`` does.
        max_interval: seconds until to ask an entry again that does not say when.
        policies: the policies of entries, by name.
        root: the seed of the jitter; the same for all beats of an app.
        made: returns what was kept of :meth:`look_ahead`, by the entry's name.
    """

    def __init__(
        self,
        names: Entries,
        known: Known,
        is_due: Callable[[Any], Any],
        max_interval: float,
        policies: Policies = NO_POLICIES,
        root: str = "",
        made: Callable[[str], Run | None] = lambda name: None,
    ) -> None:
        self._names, self._known, self._is_due, self._made = names, known, is_due, made
        self.max_interval = max_interval
        self._policies = _Applied(names, known, policies, root)
        self._agenda = Agenda()
        self.seen = Seen()
        #: The setting beat_cron_starting_deadline, in seconds.
        self._starting_deadline: float | None = None
        #: True if a class of the user's says when an entry is due; if only Celery does.
        self._is_own, self._is_computed = False, True
        #: What is planned and not yet claimed, in order.
        self._planned: dict[str, tuple[Item, _Asked | None]] = {}

    def build(
        self,
        now: datetime,
        changed: set[str],
        starting_deadline: float | None,
        is_own: bool = False,
    ) -> list[str]:
        """Builds the agenda from all entries and their states.

        Args:
            changed: names of the entries to ask again, whatever they said before.
            is_own: a class of the user's says when an entry is due.

        Returns:
            the entries whose states say that they ran in the future. They wait until then.
        """
        self._agenda.clear()
        self._planned.clear()
        self._starting_deadline = starting_deadline
        self._is_own, self._is_computed = is_own, not is_own and starting_deadline is None
        self._policies.find_all(is_own, starting_deadline)
        ahead = []
        for name, entry in list(self._names.get().items()):
            if not self._take(name, entry, now, name in changed):
                ahead.append(name)
        return ahead

    def put(self, name: str, entry: Any, now: datetime) -> bool:
        """Takes an entry that was added to the schedule or replaced there, with its state; see
        :meth:`build`. Returns False if its state says that it ran in the future."""
        self.remove(name)
        self.seen.put(name, entry)
        self._policies.find(name, entry, self._is_own, self._starting_deadline)
        return self._take(name, entry, now, False)

    def remove(self, name: str) -> None:
        """Forgets an entry that was removed from the schedule."""
        if self.seen.remove(name):
            self._policies.forget(name)
            self._agenda.take_off(name)

    def look_again(self, name: str) -> None:
        """Looks at an entry at once if its instant waits for the end of an open run."""
        self._agenda.wake(name)

    def _take(self, name: str, entry: Any, now: datetime, is_changed: bool) -> bool:
        """Puts an entry on the agenda. Returns False if its state says that it ran in the future:
        then it is not on the agenda."""
        state = self._known.state(name)
        if state is None or self._known.holds(name):
            return True
        if not hasattr(entry.schedule, "is_due"):
            what = "missing" if entry.schedule is None else f"{entry.schedule!r}"[:200]
            self._names.warn_once(f"{name}: its schedule is {what}: it is never due")
            return True
        if is_ahead(state.last_run_at, now):
            return False
        try:  # only_logged() would be slow: there may be a hundred thousand entries
            self._begin(name, entry, state, is_changed)
        except Exception:
            logger.exception("%s: cannot be scheduled, so it never runs", name)
        return True

    def _begin(self, name: str, entry: Any, state: RunState, is_changed: bool) -> None:
        entry.last_run_at = as_of(entry, state.last_run_at)
        entry.total_run_count = state.total_run_count
        asked_at = None if is_changed else ask_at(entry, state)
        if asked_at is not None:
            self._agenda.put(name, asked_at.timestamp())
        else:
            # A crontab is slow to compute: dispatch others first.
            self._place(name, None if interval_of(entry.schedule) is None else entry)

    def plan(self, now: datetime, room: int) -> Plan:
        """Decides what to do at `now`.

        If the plan has runs, call :meth:`note_claimed` before the next plan.

        Args:
            room: how many runs may be claimed at once.
        """
        plan, entries = Plan(), self._names.get()
        for _ in range(_MOST_LOOKED_AT):
            item = None
            if len(plan.runs) < room:
                item = self._agenda.pop_come(now.timestamp(), _CLAIM_TOGETHER)
            if item is None:
                break
            entry = entries.get(item.name)
            if entry is None:
                continue
            if not self.seen.is_same(item.name, entry):  # the new one does not know its last run
                self._names.is_current = False
                continue
            # While its last run waits for the broker, the next is not claimed: else a flood of
            # runs would follow.
            left = self._known.waits(item.name)
            if left is not None:
                self._agenda.put(item.name, now.timestamp() + left, item.due)
            else:
                self._look_at(item, entry, now, plan)
        plan.look_again = self._agenda.next_at
        return plan

    def _look_at(self, item: Item, entry: Any, now: datetime, plan: Plan) -> None:
        """Plans a run if the entry is due; else puts the entry back for later."""
        instant = item.due
        if instant is None or has_run(entry, instant):
            # The last run already covered this instant.
            instant = self._due(item.name, entry)
        if instant is None:
            self._ask(item, entry, now, plan)
            return
        policy = self._policies.of.get(item.name)
        if policy is not None:
            self._look_by(policy, item, instant, entry, now, plan)
        elif self._is_time(item, instant, instant, now):
            made = self._made(item.name)
            plan.runs.append(_next_run(item.name, entry, instant, now, self._known, made))
            self._planned[item.name] = item, None

    def look_ahead(self, now: datetime, most: int) -> tuple[list[Run], bool]:
        """Returns the runs of entries without a policy, each once; and if more are due soon."""
        runs, entries, until = [], self._names.get(), now.timestamp() + _MADE_WITHIN
        for _, _, name, due in (items := self._agenda.look_ahead(until, most)):
            entry = entries.get(name)  # perhaps a program has just put it there
            if due is not None and name not in self._policies.of and self.seen.is_same(name, entry):
                runs.append(_next_run(name, entry, due, due, self._known))
        return runs, len(items) == most

    def _is_time(self, item: Item, due: datetime, leaves: datetime, now: datetime) -> bool:
        """True if a run that leaves at `leaves` is to be claimed now; else puts it back."""
        if leaves.timestamp() - now.timestamp() > _CLAIM_AHEAD + _CLAIM_TOGETHER:
            self._agenda.put(item.name, leaves.timestamp() - _CLAIM_AHEAD, due)
            return False
        return True

    def _look_by(
        self, policy: Policy, item: Item, due: datetime, entry: Any, now: datetime, plan: Plan
    ) -> None:
        """Does what the entry's policy says about `due`."""
        verdict = self._policies.verdict(item.name, entry, policy, due, now)
        if verdict.due is None:
            self._agenda.put(item.name, math.inf)
            return
        due, leaves = verdict.due, verdict.leaves
        # Jitter is not lateness: only the time after `leaves` counts.
        at = now - (leaves - due)
        claimed = verdict.clock or last_run(entry, due, at)
        late = None if verdict.clock or at - claimed <= PROMPT else at
        if verdict.waits is not None:
            self._agenda.put_waiting(item.name, verdict.waits.timestamp(), due)
        elif verdict.skipped is not None:
            plan.skipped.append(Skipped(item.name, due, late or claimed, verdict.skipped))
            entry.last_run_at = as_of(entry, late or claimed)
            self._place(item.name, entry)
        elif self._is_time(item, due, leaves, now):
            run = Run(
                *(item.name, entry.total_run_count + 1, due, claimed, self._known.epoch),
                key=self._known.key(item.name),
                leaves=leaves if leaves > due else None,
                counts=policy.runs is not None,
                late=late,
            )
            plan.runs.append(run)
            self._planned[item.name] = item, None

    def _ask(self, item: Item, entry: Any, now: datetime, plan: Plan) -> None:
        """Asks the entry's own class whether it is due."""
        try:
            with at_one_instant(entry.schedule):
                state = self._known.state(item.name)
                if state is not None and entry.last_run_at.tzinfo is None:
                    # In autumn naive times go back by an hour.
                    entry.last_run_at = as_of(entry, state.last_run_at)
                is_due, delay = self._is_due(entry)
                if is_due:
                    self._plan_asked(item, entry, delay, now, plan)
                    return
                missed = _too_late(entry, self._starting_deadline)
                if missed is not None:
                    plan.skipped.append(Skipped(item.name, *missed, "deadline"))
        except Exception:
            logger.exception("%s: cannot compute when it is due, trying again later", item.name)
            delay = self.max_interval
        delay = max(SHORTEST_WAIT, delay) if _is_number(delay) else delay
        self._ask_later(item.name, delay, now)
        self.seen.note(item.name, entry)  # is_due may have changed it

    def _plan_asked(self, item: Item, entry: Any, delay: Any, now: datetime, plan: Plan) -> None:
        """Plans a run of an entry whose class said that it is due."""
        following = next(entry)
        claimed = utc_of(following, following.last_run_at)
        run = Run(
            item.name,
            following.total_run_count,
            due_instant(entry),
            claimed,
            self._known.epoch,
            key=self._known.key(item.name),
        )
        state = self._known.state(item.name)
        free = run.due if state is None else next_free(entry, run.due, state)
        if free is None or free > max(run.due, run.claimed):
            # This instant has already run.
            at = now if free is None else free
            self._ask_later(item.name, (at - now).total_seconds() or None, now)
            return
        plan.runs.append(
            replace(run, due=free, ask=_ask_again(entry, delay, claimed, self._is_own))
        )
        self._planned[item.name] = item, _Asked(following, delay)

    def note_claimed(self, claimed: list[Run], now: datetime) -> float:
        """Moves the clocks of the entries whose runs were claimed. Other planned entries stay due.
        Entries whose next instant is slow to compute wait for :meth:`place_later`.

        Returns:
            when something may be due, as :attr:`Plan.look_again`.
        """
        for run in claimed:
            _, asked = self._planned.pop(run.entry)
            self._move_clock(run, asked, now)
        self._agenda.put_back(item for item, _ in self._planned.values())
        self._planned.clear()
        return self._agenda.next_at

    @property
    def has_later(self) -> bool:
        """True if entries wait for :meth:`place_later`."""
        return self._agenda.has_later

    def place_later(self, most: int) -> float:
        """Puts entries on the agenda whose clocks were moved, at most so many. To be called when
        their runs have left: a crontab's next instant takes as long as several messages. Returns
        when something may be due, as :attr:`Plan.look_again`."""
        entries = self._names.get()
        for _ in range(most):
            name = self._agenda.pop_later()
            if name is None:
                break
            entry = entries.get(name)
            if entry is None or not self.seen.is_same(name, entry):
                self._names.is_current = False
            else:
                self._place(name, entry)
        return self._agenda.next_at

    def _move_clock(self, run: Run, asked: _Asked | None, now: datetime) -> None:
        entries = self._names.get()
        entry = entries.get(run.entry)
        if entry is None or not self.seen.is_same(run.entry, entry):
            self._names.is_current = False  # it was just replaced or removed
        elif asked is None:
            entry.last_run_at, entry.total_run_count = as_of(entry, run.claimed), run.number
            if is_slow(entry.schedule):
                self._agenda.put_later(run.entry)
            else:
                self._place(run.entry, entry)
        else:
            entries[run.entry] = asked.following
            self._ask_later(run.entry, asked.delay, now)
            self.seen.note(run.entry, asked.following)

    def _due(self, name: str, entry: Any) -> datetime | None:
        """When an entry is due; None if it must be asked."""
        due = None
        if self._is_computed or name in self._policies.of:
            due = due_by_celery(entry)
            if due is None and name in self._policies.of:
                due = next_run(entry, utc_of(entry, entry.last_run_at))
        state = self._known.state(name)
        return due if state is None else next_free(entry, due, state)

    def _place(self, name: str, entry: Any) -> None:
        """Puts the entry on the agenda for when it is due. If that is not known, or `entry` is
        None, it is asked now."""
        due = None if entry is None else self._due(name, entry)
        self._agenda.put(name, 0.0 if due is None else due.timestamp() - _CLAIM_AHEAD, due)

    def _ask_later(self, name: str, delay: Any, now: datetime) -> None:
        """Puts the entry on the agenda, to ask it after `delay`, as a schedule returned it."""
        seconds = _seconds(delay)
        seconds = self.max_interval if seconds is None else seconds
        self._agenda.put(name, now.timestamp() + seconds)


def _next_run(
    name: str,
    entry: Any,
    due: datetime,
    now: datetime,
    known: Known,
    made: Run | None = None,
) -> Run:
    """Returns the next run of an entry, claimed now: the one that was made, if it is the same."""
    number, epoch, key = entry.total_run_count + 1, known.epoch, known.key(name)
    run, claimed = made, last_run(entry, due, now)
    if run is None or (run.number, run.due, run.claimed, run.epoch, run.key) != (
        *(number, due, claimed, epoch, key),
    ):
        run = Run(name, number, due, claimed, epoch, key=key)
    return run.claimed_late(now) if now - claimed > PROMPT else run


def _too_late(entry: Any, starting_deadline: float | None) -> tuple[datetime, datetime] | None:
    """The instant that Celery skips because of beat_cron_starting_deadline, and the time now;
    None if there is none. Celery itself only says that the entry is not due."""
    if starting_deadline is None:
        return None
    at, missed = utc_of(entry, entry.default_now()), due_instant(entry)
    if (at - missed).total_seconds() <= starting_deadline:
        return None
    entry.last_run_at = as_of(entry, at)
    return missed, at


def _ask_again(entry: Any, delay: Any, claimed: datetime, is_own: bool) -> tuple[int, int] | None:
    """When to ask an entry again that was due and returned `delay`, for its state: in
    milliseconds since 1970, with a checksum of its schedule. It is counted from the entry's
    `last_run_at`, so that both use the same clock and are set back together."""
    if not (is_free(entry) or is_own):
        return None
    seconds = _seconds(delay)
    if seconds is None or seconds <= 0:
        return None
    at = claimed.timestamp() + min(seconds, _LONGEST_DELAY)
    return int(at * 1000), checksum(entry.schedule)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _seconds(delay: Any) -> float | None:
    """The seconds of what a schedule returned; None if it is not a number."""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    return float(seconds) if _is_number(seconds) and not math.isnan(seconds) else None
