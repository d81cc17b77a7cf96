"""A source of entries: what the loop, the dispatcher and the operators ask of it. There are two,
the entries of ``beat_schedule`` and those of another scheduler."""

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
    is_ahead,
    last_run,
    leaves_of,
    missed_instant,
    next_free,
    next_run_of,
)
from .log import get_logger
from .names import Entries
from .paths import page_of
from .publishing import Send
from .records import to_text
from .runs import RETENTION, Run, RunState
from .zookeeper.operations import Check

logger = get_logger(__name__)

#: So late a run is published that its entry may have come due again.
_LATE = timedelta(seconds=0.1)


class Source(ABC):
    """Entries, and when they are due. For the dispatch loop's thread.

    Its methods raise a ZkBeatError where ZooKeeper does not answer or refuses.

    Args:
        scheduler: what Celery knows for its scheduler.
        names: the entries of that.

    Attributes:
        is_ahead: an entry's state says that it ran in the future.
        readings: how often the entries were read anew.
    """

    def __init__(self, scheduler: Scheduler, names: Entries, dispatcher: Dispatcher) -> None:
        self._scheduler, self._names, self._dispatcher = scheduler, names, dispatcher
        self._election, self._ledger = dispatcher.election, dispatcher.ledger
        self._control = dispatcher.control
        self.is_ahead = False
        self.readings = 0

    @property
    def entries(self) -> Mapping[str, Any]:
        """By names that are text."""
        return self._names.get()

    def outdated(self) -> None:
        """Has all entries be looked at anew by the next :meth:`refresh`."""
        self._names.is_current = False

    @property
    def is_damaged(self) -> bool:
        """True where something cannot be understood that another hand may mend, unseen."""
        return False

    @abstractmethod
    def open(self) -> None:
        """Begins a term: the ledger is loaded."""

    @abstractmethod
    def close(self) -> None:
        """Ends it; nothing is written."""

    @abstractmethod
    def write(self) -> None:
        """Writes what another master should find, apart from the ledger."""

    @abstractmethod
    def refresh(self) -> None:
        """Looks what has changed."""

    def look_at(self, names: list[str]) -> None:  # noqa: B027 - most need not
        """Has these entries be as they are now, where the source keeps what it has read."""

    @abstractmethod
    def turn(self) -> float:
        """Claims what is due and publishes it; returns the seconds after which something may be."""

    def entry_of(self, run: Run) -> Any:
        """See :meth:`.publishing.Entries.entry_of`."""
        return self.entries[run.entry]

    def conditions(self, runs: Iterable[Run]) -> Sequence[Check]:
        """See :meth:`.publishing.Entries.conditions`."""
        return ()

    def is_refused(self, path: str) -> None:  # noqa: B027 - most go by nothing
        """See :meth:`.publishing.Entries.is_refused`."""

    @abstractmethod
    def sender(self) -> Send:
        """See :meth:`.publishing.Entries.sender`."""

    @abstractmethod
    def has_run_extra(self, name: str, number: int) -> None:
        """An operator had the entry run: its clock stays as it is."""

    @abstractmethod
    def _set_clock(self, entry: Any, last_run_at: datetime) -> None:
        """Has the entry go on from another instant."""

    def _knows_better(self, entry: Any, state: RunState) -> bool:
        """True where the entry's clock counts, and not that of its state."""
        return False

    def _start_of(self, entry: Any) -> datetime | None:
        """The instant before which it does not run, UTC, where it has one."""
        return None

    def missed(
        self, name: str, state: RunState, until: datetime, ask: bool = True
    ) -> tuple[datetime, datetime] | None:
        """The first instant after its last run, until then, for which an entry has no run, and the
        instant from which it goes on; None where there is none. `ask`: also where only the class
        of its schedule can tell."""
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
        """When the next run of an entry that has this state is to leave, UTC; None where there is
        none, or that cannot be told."""
        return self._by_policy_of(name, state, next_run_of(self.entries[name], state))

    def _by_policy_of(self, name: str, state: RunState, due: datetime | None) -> datetime | None:
        """When the next run leaves, by the entry's policy, where it is due then."""
        policy = self._dispatcher.policies.of(name)
        seed = f"{self._election.paths.root}/{name}"
        return leaves_of(self.entries[name], due, policy, state, seed)

    def goes_on_from(self, run: Run, at: datetime) -> datetime | None:
        """See :meth:`.publishing.Entries.goes_on_from`."""
        state = self._ledger.state(run.entry)
        if run.extra or state is None or at - run.planned < _LATE:
            return None
        found = None
        with only_logged(run.entry):
            # A class that does not say when it was due will say so itself.
            found = self.missed(run.entry, state, at, ask=False)
        if found is None:
            return None
        entry = self.entries[run.entry]
        last_run_at = last_run(entry, *found)
        self._set_clock(entry, last_run_at)
        return last_run_at

    def _note_named(self, *, anew: bool, hidden: Iterable[str] = ()) -> None:
        """Tells the ledger what the schedule names, whenever that may have changed; `hidden` it
        names, too. `anew`: the clock of what was away for long starts anew."""
        self.readings += 1
        named: Container[str] = {*self.entries, *hidden} if hidden else self._named()
        for name in self._ledger.note_named(named, clock.now(), anew=anew):
            logger.warning("%s: not in any schedule for %s, its state is removed", name, RETENTION)

    def _named(self) -> Container[str]:
        """What counts as named by the schedule; it goes on being asked."""
        return self.entries

    def _is_ahead(self, name: str) -> bool:
        state = self._ledger.state(name)
        return state is not None and is_ahead(state.last_run_at, clock.now())

    def _note_ahead(self, names: list[str]) -> None:
        """Logs which entries wait because the clock of this machine is behind."""
        self.is_ahead = bool(names)
        for name in names[:1]:
            state = self._ledger.state(name)
            assert state is not None
            logger.error(
                "%s last ran at %s according to %s, which is in the future by the clock of this "
                "machine (%.1f s %s ZooKeeper's)%s: it does not run here until then",
                name,
                to_text(state.last_run_at),
                self._election.paths.page(page_of(name)),
                abs(self._election.clock_offset),
                "behind" if self._election.clock_offset < 0 else "ahead of",
                f", and so for {len(names) - 1} more" if len(names) > 1 else "",
            )


@contextlib.contextmanager
def only_logged(name: str) -> Iterator[None]:
    """Logs what goes wrong with one entry: it must not harm the others."""
    try:
        yield
    except Exception:
        logger.exception("%s: cannot be scheduled, so it never runs", name)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """While much is made that stays, Python's collector looks through all of it again and again: a
    quarter of the time of a take-over with 100,000 entries."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
