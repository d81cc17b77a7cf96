"""A source of entries, for the loop, the dispatcher and the operators. There are two kinds: the
entries of ``beat_schedule``, and the entries of another scheduler."""

from __future__ import annotations

import contextlib
import gc
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from celery.beat import Scheduler

from . import clock
from .dispatcher import Dispatcher
from .due import (
    as_of,
    ask_at,
    due_by_celery,
    is_ahead,
    last_run,
    least_gap,
    leaves_of,
    missed_instant,
    next_free,
    next_run_of,
    utc_of,
)
from .log import get_logger
from .names import Entries
from .paths import page_of
from .publishing import Send
from .records import to_text
from .runs import RETENTION, Run, RunState
from .zookeeper.operations import Check

logger = get_logger(__name__)

#: If a run is published so late, its entry may have become due again.
_LATE = timedelta(seconds=0.1)


class Source(ABC):
    """Entries, and when they are due. For the dispatch loop's thread.

    Methods raise a ZkBeatError if ZooKeeper does not answer or refuses.

    Args:
        scheduler: Celery's scheduler.
        names: the scheduler's entries.

    Attributes:
        is_ahead: an entry's state says that it ran in the future.
        readings: how often the entries were read again.
    """

    def __init__(self, scheduler: Scheduler, names: Entries, dispatcher: Dispatcher) -> None:
        self._scheduler, self._names, self._dispatcher = scheduler, names, dispatcher
        self._election, self._ledger = dispatcher.election, dispatcher.ledger
        self._control = dispatcher.control
        self.is_ahead = False
        self.readings = 0

    @property
    def entries(self) -> Mapping[str, Any]:
        """The entries, by name. All names are text."""
        return self._names.get()

    def outdated(self) -> None:
        """Makes the next :meth:`refresh` read all entries again."""
        self._names.is_current = False

    @property
    def is_damaged(self) -> bool:
        """True if a znode is damaged. Somebody may repair it without our noticing."""
        return False

    def stand_by(self) -> None:  # noqa: B027 - most need not
        """Prepares a term, while another beat is master."""

    @abstractmethod
    def open(self) -> None:
        """Starts a term. The ledger is loaded already."""

    @abstractmethod
    def close(self) -> None:
        """Ends the term. Writes nothing."""

    @abstractmethod
    def write(self) -> None:
        """Writes what the next master needs, apart from the ledger."""

    @abstractmethod
    def refresh(self) -> None:
        """Reads what has changed."""

    def look_at(self, names: list[str]) -> None:  # noqa: B027 - most need not
        """Reads these entries again, if the source keeps what it has read."""

    def look_again(self, name: str) -> None:  # noqa: B027 - most need not
        """Decides again about an entry whose instant waits until its open run has ended."""

    @abstractmethod
    def turn(self) -> float:
        """Claims due runs and publishes them. Returns the seconds until something may be due."""

    def row(self, name: str) -> str | None:
        """Returns the key of the entry's row; None if it is no row of a table, or unknown."""
        return None

    def entry_of(self, run: Run) -> Any:
        """See :meth:`.publishing.Entries.entry_of`."""
        return self.entries[run.entry]

    def conditions(self, runs: Iterable[Run]) -> Sequence[Check]:
        """See :meth:`.publishing.Entries.conditions`."""
        return ()

    def is_refused(self, path: str) -> None:  # noqa: B027 - most have no conditions
        """See :meth:`.publishing.Entries.is_refused`."""

    @abstractmethod
    def sender(self) -> Send:
        """See :meth:`.publishing.Entries.sender`."""

    @abstractmethod
    def has_run_extra(self, name: str, number: int) -> None:
        """Notes that an operator made the entry run: its clock stays as it is."""

    @abstractmethod
    def _set_clock(self, entry: Any, last_run_at: datetime) -> None:
        """Makes the entry continue from another instant."""

    def _knows_better(self, entry: Any, state: RunState) -> bool:
        """True if the entry's own clock counts, and not its state's."""
        return False

    def _start_of(self, entry: Any) -> datetime | None:
        """Returns the instant before which the entry does not run, UTC, or None."""
        return None

    def missed(
        self, name: str, state: RunState, until: datetime, ask: bool = True
    ) -> tuple[datetime, datetime] | None:
        """Returns the first instant without a run, after the entry's last run and up to `until`,
        and the instant from which the entry continues; None if there is no such instant. `ask`:
        ask the schedule's class if only it knows."""
        entry = self.entries[name]
        if not hasattr(entry.schedule, "is_due"):
            return None
        if not self._knows_better(entry, state):
            entry.last_run_at = as_of(entry, state.last_run_at)
        start = self._start_of(entry)
        if (start is not None and start > until) or (ask_at(entry, state) or until) > until:
            return None
        found = missed_instant(entry, until, ask)
        if found is None:
            return None
        due, until = next_free(entry, found[0], state), found[1]
        return (due, until) if due is not None and due <= until else None

    def next_run(self, name: str, state: RunState) -> datetime | None:
        """Returns when the next run of an entry with this state leaves, UTC; None if there is none
        or it is not known."""
        return self._by_policy_of(name, state, next_run_of(self.entries[name], state))

    def _by_policy_of(self, name: str, state: RunState, due: datetime | None) -> datetime | None:
        """Returns when a run that is due at `due` leaves, by the entry's policy."""
        policy = self._dispatcher.policies.of(name)
        seed = f"{self._election.paths.root}/{name}"
        return leaves_of(self.entries[name], due, policy, state, seed)

    def goes_on_from(self, run: Run, at: datetime) -> datetime | None:
        """See :meth:`.publishing.Entries.goes_on_from`."""
        if run.extra or at - run.planned < _LATE:
            return None
        entry = self.entries.get(run.entry)
        if entry is None or (run.claimed == run.due and at - run.due < least_gap(entry.schedule)):
            return None
        found, state = None, self._ledger.state(run.entry)
        if state is None:
            return None
        with only_logged(run.entry):
            if utc_of(entry, entry.last_run_at) == state.last_run_at:
                following = due_by_celery(entry)  # this costs less than to look closely
                if following is not None and following > at:
                    return None
            # Do not ask a class that does not tell when it was due: it will return it itself.
            found = self.missed(run.entry, state, at, ask=False)
        if found is None:
            return None
        last_run_at = last_run(entry, *found)
        self._set_clock(entry, last_run_at)
        return last_run_at

    def _note_named(self, *, anew: bool, hidden: Iterable[str] = ()) -> None:
        """Tells the ledger which names the schedule has, whenever they may have changed. `hidden`:
        more names. `anew`: the clock of an entry that was gone for long starts anew."""
        self.readings += 1
        named: Container[str] = {*self.entries, *hidden} if hidden else self._named()
        for name in self._ledger.note_named(named, anew=anew):
            logger.warning("%s: not in any schedule for %s, its state is removed", name, RETENTION)

    def _named(self) -> Container[str]:
        """The names that the schedule has. The ledger keeps asking it."""
        return self.entries

    def _is_ahead(self, name: str) -> bool:
        state = self._ledger.state(name)
        return state is not None and is_ahead(state.last_run_at, clock.now())

    def _note_ahead(self, names: list[str]) -> None:
        """Logs which entries wait because the clock of this machine is behind."""
        self.is_ahead = bool(names)
        for name in names[:1]:
            offset = self._election.clock_offset
            state = self._ledger.state(name)
            assert state is not None
            logger.error(
                "%s last ran at %s according to %s, which is in the future by the clock of this "
                "machine (%.1f s %s ZooKeeper's)%s: it does not run here until then",
                name,
                to_text(state.last_run_at),
                self._election.paths.page(page_of(name)),
                abs(offset),
                "behind" if offset < 0 else "ahead of",
                f", and so for {len(names) - 1} more" if len(names) > 1 else "",
            )


@contextlib.contextmanager
def only_logged(name: str) -> Iterator[None]:
    """Logs an entry's error: it must not stop other entries."""
    try:
        yield
    except Exception:
        logger.exception("%s: cannot be scheduled, so it never runs", name)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Turns Python's garbage collector off while we make many lasting objects: it would go through
    all of them again and again, a quarter of the time of a take-over with 100,000 entries, and a
    tenth of that of a burst."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
