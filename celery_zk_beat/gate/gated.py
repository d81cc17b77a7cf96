"""Puts any other Celery scheduler behind the election.

The elected beat makes its own instance of the class in ``zk_beat_scheduler`` and calls its tick:
the instance decides what is due. Each dispatch is first claimed in the run ledger. So only the
master dispatches it, and once, even if the instance's store is behind: an instant that has run
according to the ledger is not due again. A demoted beat discards the instance with its caches and
writes nothing to its store. Only for the dispatch loop's thread, which owns the instance's database
connections.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from celery import VERSION
from celery.beat import Scheduler, event_t
from celery.schedules import schedstate
from celery.utils.imports import symbol_by_name

from .. import clock
from ..due import as_of, at_one_instant, counts_from_last_run, due_instant, is_ahead
from ..errors import SettingsError, ZkBeatError
from ..log import get_logger
from ..records import to_text
from ..runs import NEVER, RunState, milliseconds
from ..source import no_collector
from .giving import Given, Giving, Innermost
from .installed import Installed
from .stores import StoreAdapter, Unreadable, adapter_of
from .trouble import Trouble

logger = get_logger(__name__)

#: By how much a store may round the time of a run; the second if it stores whole seconds.
_ROUNDED, _SECOND = timedelta(milliseconds=1), timedelta(seconds=1)
_ASKS_THE_FIRST_ALONE = VERSION[:2] < (5, 7)


class SchedulerFailed(ZkBeatError):
    """The gated scheduler raised an error. Usually its database is away."""


class Gate(Protocol):
    """The gating scheduler, as far as the gated one needs it."""

    #: Logs its trouble; and says which `beat_schedule` was already written into the store.
    trouble: Trouble
    installed: Installed

    @property
    def producer(self) -> Any:
        """The producer, which sends messages to the broker."""

    def state(self, name: str) -> RunState | None:
        """Returns the ledger's state of an entry, or None."""

    def names_by_key(self) -> Mapping[str, str]:
        """Returns the names of all entries whose key the ledger knows."""

    def holds_back(self, name: str) -> float | None:
        """Returns for how many seconds not to ask an entry whether it is due; None: ask it now."""

    def dispatch(self, given: Given, due: datetime, claimed: datetime) -> None:
        """Claims a run, and publishes it now or later. Raises a ZkBeatError if it is not certain
        that the run is claimed."""

    def waits(self, name: str) -> bool:
        """True while an entry, by its name in the ledger, has a run that may not have been sent."""

    def is_open(self) -> bool:
        """True while this beat is the master."""


def scheduler_class(name: str, shown: str) -> type[Scheduler]:
    """Returns the class that `zk_beat_scheduler` names; `shown` is how the user writes that
    setting. Raises SettingsError if there is none, or if it is no scheduler."""
    try:
        found = symbol_by_name(name)
    except Exception as exc:  # raised by its module
        raise SettingsError(
            f"{shown} = {name!r}: cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(found, type) or not issubclass(found, Scheduler):
        raise SettingsError(f"{shown} = {name!r}: not a class derived from celery.beat.Scheduler")
    return found


def open_gate(scheduler: type[Scheduler], gate: Gate, **arguments: Any) -> Gated:
    """Makes an instance of a scheduler behind a gate, with the arguments that Celery passes. Raises
    SchedulerFailed if its constructor raised an error."""
    adapter = adapter_of(scheduler)
    # The gate is an attribute of the class. The constructor takes Celery's arguments alone, and may
    # tick, or ask for its schedule, before anybody could give the gate to the instance.
    names = {"gate": gate, "adapter_class": adapter, **adapter.overrides(scheduler)}
    bases = (Gated, Innermost) if scheduler is Scheduler else (Gated, scheduler, Innermost)
    kind = type(scheduler.__name__, bases, names)
    with _failing(scheduler.__name__, gate.trouble):
        gated: Gated = kind(**arguments)
        try:
            gated.opened()
        except BaseException:
            gated.throw_away()
            raise
        level = logging.DEBUG if gate.trouble.lasts else logging.INFO
        logger.log(level, " ".join([scheduler.__name__, "is elected", *gated.info.split()]))
    return gated


@contextlib.contextmanager
def _failing(name: str, trouble: Trouble) -> Iterator[None]:
    try:
        yield
    except ZkBeatError:
        raise
    except Exception as exc:
        trouble.add("failed", exc)
        raise SchedulerFailed(f"{name} failed: {type(exc).__name__}: {exc}") from exc


class Gated(Giving):
    """A mixin that comes before a scheduler class."""

    gate: Gate
    adapter_class: type[StoreAdapter]
    #: The connection to the broker belongs to the gating scheduler.
    producer = None
    #: The entries as they were last read, all that are known, by name.
    entries: dict[str, Any]
    #: When entries ran last, by name, if their store says that this is in the future.
    ahead: dict[str, datetime]
    #: New name to old, of entries that the ledger knows by the old one.
    renamed: dict[str, str]

    _built_at = datetime.max.replace(tzinfo=timezone.utc)
    _is_open = _is_over = False
    #: The entries during a tick, because each look at the store may return others.
    _asked: Any = None
    _last_read: Any = None
    _last_reserved: Any = None
    _failure: ZkBeatError | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.entries, self.ahead, self.renamed = {}, {}, {}
        #: While entries are brought up to date: all of them, and what names_by_key() says.
        self._being_read: Mapping[str, Any] = {}
        self._names_before: Mapping[str, str] | None = None
        self._unreadable: dict[str, str] = {}
        #: Why entries could not say when they are due, by name.
        self._undecided: dict[str, str] = {}
        self.adapter = self.adapter_class(self)
        began, since = clock.now(), clock.boottime()
        super().__init__(*args, **kwargs)
        self._built_at = _earliest(began, since)

    def opened(self) -> None:
        """Call this once, after it is made."""
        self.adapter.opened()
        read = self.schedule
        known = self._known(self.adapter.entries(read, self.entries), self._built_at)
        read.update(known)
        self._is_open = True
        self.read_anew()

    def read_anew(self) -> None:
        """Makes it ask all entries again when they are due."""
        self._last_read = self._heap = None
        _ = self.schedule

    def turn(self) -> float:
        """Dispatches what is due, or some of it. Returns after how many seconds to call again.
        Raises SchedulerFailed if the scheduler raised an error, and a ZkBeatError if it is not
        certain that a run is claimed."""
        with _failing(type(self).__name__, self.gate.trouble):
            wait = self.tick()
        if self._failure is not None:
            raise self._failure
        return wait if isinstance(wait, (int, float)) else self.max_interval

    def write(self) -> None:
        """Makes it write to its store what is not there yet."""
        self._do_sync()

    def look_at(self, names: list[str]) -> None:
        """Reads these entries from their store again, whether they are due or not. Raises
        SchedulerFailed if the store does not answer."""
        with _failing(type(self).__name__, self.gate.trouble):
            self._take(self.adapter.look_at(names, self.entries))

    def has_lost(self, name: str, key: str | None) -> bool:
        """True if the entry of a run is certainly deleted or disabled, in a store that all beats
        share, and not merely invisible, as a row that cannot be read. Raises SchedulerFailed if its
        store does not answer."""
        with _failing(type(self).__name__, self.gate.trouble):
            if name in self.entries:  # perhaps another one; a run of our own scheduler has no key
                return key is not None and self.adapter.key(self.entries[name]) not in (None, key)
            return self.adapter.has_lost(name, key)

    def throw_away(self) -> None:
        """Closes it. Writes nothing."""
        self._is_over = True
        self.adapter.forget()
        try:
            self.close()
        except Exception as exc:
            self.gate.trouble.add("could not be closed", exc)

    # What its class calls, or would --------------------------------------------------------------

    @property
    def schedule(self) -> Any:
        if self._asked is not None:
            return self._asked
        began, since = clock.now(), clock.boottime()
        with no_collector():  # because it may read a whole table
            entries = super().schedule
            if self._is_open and entries is not self._last_read:
                self._last_read = entries
                self._bring_up_to_date(entries, _earliest(began, since))
        return entries

    @schedule.setter
    def schedule(self, entries: Any) -> None:
        super(Gated, type(self)).schedule.__set__(self, entries)

    def update_from_dict(self, dict_: Any) -> None:
        """Writes into its store, while it is made, only what no beat has written yet."""
        installed = self.gate.installed
        if not self._is_open and installed.is_current:
            dict_ = self.adapter.to_install(dict_, is_first=installed.is_first)
        super().update_from_dict(dict_)

    def is_due(self, entry: Any) -> Any:
        seconds = self._held_back(entry)
        if seconds is not None:
            return _made_way(self, entry, schedstate(False, seconds))
        try:
            return super().is_due(entry)
        except Exception as exc:
            return _made_way(self, entry, self._cannot_tell(entry, exc))

    def _cannot_tell(self, entry: Any, exc: Exception) -> Any:
        """What to assume of an entry that fails to say whether it is due. It must not stop the
        others, as it would with Celery before 5.7; that logs a traceback whenever it asks."""
        if self.adapter.is_away(exc):
            raise exc
        why = f"{type(exc).__name__}: {exc}"
        if self._undecided.get(entry.name) != why:
            self._undecided[entry.name] = why
            text = "%s: cannot compute when it is due, so it does not run: %s"
            logger.error(text, entry.name, why)
        return schedstate(False, self.max_interval)

    def _held_back(self, entry: Any) -> float | None:
        return self.gate.holds_back(self.renamed.get(entry.name, entry.name))

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        """Does not ask held-back entries. Here Celery asks the entries themselves. A database entry
        that runs once disables itself when it is asked after its run: too early, if the run still
        waits for the broker."""
        held = []
        self._asked = self.schedule
        try:
            for entry in self._asked.values():
                seconds = self._held_back(entry)
                if seconds is not None:
                    held.append(entry)
                    entry.is_due = functools.partial(schedstate, False, seconds)
            try:
                super().populate_heap(*args, **kwargs)
            except Exception:
                held += self._hold_undecided(self._asked.values())
                super().populate_heap(*args, **kwargs)
            _put_longest_waiting_first(self, {*map(id, held)})
        finally:
            self._asked = None
            for entry in held:
                del entry.is_due

    def _hold_undecided(self, entries: Iterable[Any]) -> Iterator[Any]:
        for entry in entries:
            try:
                entry.is_due()
            except Exception as exc:
                entry.is_due = functools.partial(tuple, self._cannot_tell(entry, exc))
                yield entry

    def reserve(self, entry: Any) -> Any:
        self._last_reserved = new = super().reserve(entry)
        # As Celery's own does. Without it, as in database schedulers, an entry runs twice when all
        # are asked again.
        key = self.adapter.key
        for entries in (self._last_read, self.entries):
            # If all were read again in between, another entry may have its name.
            if entries and entry.name in entries and key(entries[entry.name]) == key(new):
                entries[entry.name] = new
        return new

    def claim(self, given: Given, advance: bool) -> None:
        """Claims and publishes a run. :meth:`turn` reports errors."""
        entry = given.entry
        if self._failure is not None or (advance and self._held_back(entry) is not None):
            return
        # With `advance`, as in RedBeat, reserve() writes the store. That must not be before the
        # claim: a crash in between would lose the run.
        reserved = None if advance else self._last_reserved
        reserved = None if reserved is None or reserved.name != entry.name else reserved
        claimed = clock.now() if reserved is None else self.adapter.last_run_at(reserved)
        due = _due(entry, self.adapter.start(entry))
        if claimed < due:  # the clock was set back since: it would be due again
            claimed = due
            if reserved is not None:
                reserved.last_run_at = as_of(entry, due)
        try:
            self.gate.dispatch(given, due, claimed)
        except ZkBeatError as exc:
            self._failure = exc
        else:
            if advance and self.gate.is_open():
                self.reserve(entry)

    def _do_sync(self) -> None:
        """Raises nothing: Celery calls it just after a publish, and an error would make the run
        look as if it was not published."""
        try:
            super()._do_sync()
        except Exception as exc:
            self.gate.trouble.add("could not write to its store", exc)

    def sync(self) -> None:
        if not self._is_over and self.gate.is_open():
            super().sync()

    # What the ledger knows better ----------------------------------------------------------------

    def _bring_up_to_date(self, entries: Any, since: datetime) -> None:
        """Tells the scheduler what the ledger knows and its store does not say. `since`: when the
        entries were made, or before."""
        entries.update(self._known(entries, since))
        self._take(self.adapter.entries(entries, self.entries))

    def _take(self, entries: dict[str, Any]) -> None:
        before, self._unreadable = self._unreadable, dict(self.adapter.unreadable)
        for name, why in self._unreadable.items():
            if before.get(name) != why:
                logger.error("%s: cannot be read, so it does not run: %s", name, why)
        self.entries = entries

    def _known(self, entries: Mapping[str, Any], since: datetime) -> dict[str, Any]:
        """Returns the entries that change because of what the ledger knows."""
        before, self.ahead = self.ahead, {}
        self.renamed, self._names_before = {}, None
        self._being_read = entries
        now = clock.now()
        found = {name: self._as_known(entry, since, now) for name, entry in entries.items()}
        news = [name for name, at in self.ahead.items() if before.get(name) != at]
        for name in news[:1]:
            logger.error(
                "%s: its store says that it last ran at %s, which is in the future%s: it does not "
                "run until then, unless the store is corrected",
                name,
                to_text(self.ahead[name]),
                f", and {len(news) - 1} more" if len(news) > 1 else "",
            )
        return {name: entry for name, entry in found.items() if entry is not entries[name]}

    def _as_known(self, entry: Any, since: datetime, now: datetime) -> Any:
        """Returns an entry as it is by its store and by the runs that the ledger knows: the later
        of the two counts. If it never ran, its clock runs since it was first seen, however often it
        is read."""
        if isinstance(entry, Unreadable):
            return entry
        adapter, state = self.adapter, self._state(entry)
        at, has_run = adapter.last_run_at(entry), adapter.has_run(entry, since)
        is_wrong = _is_wrong(entry, at, state)
        if has_run and not adapter.puts_off and not is_wrong and is_ahead(at, now):
            self.ahead[entry.name] = at
        # Do not give its store a time in the future: somebody would have to correct it there, too.
        if state is None or is_ahead(state.last_run_at, now):
            return entry
        ran = state.last_run_at
        if self._begins_anew(entry, state, has_run):
            return adapter.as_if_known(entry, ran, False) if has_run and at < ran else entry
        if state.due is None:
            start = adapter.start(entry)
            if start is not None and not counts_from_last_run(entry.schedule):
                ran, start = max(ran, start - _SECOND), None
            # If it has a start, its class pretends that it ran long ago.
            is_right = has_run or abs(at - ran) <= _ROUNDED or start is not None
            return entry if is_right else adapter.as_if_known(entry, ran, False)
        if not has_run:
            return adapter.as_if_known(entry, ran, True)
        return _of_the_later(adapter, entry, at, ran, is_wrong)

    def _state(self, entry: Any) -> RunState | None:
        key, state = self.adapter.key(entry), self.gate.state(entry.name)
        if key is not None and (state is None or state.key != key):
            state = self._state_before(entry, key)
        return state if state is not None and state.key == key else None

    def _state_before(self, entry: Any, key: str) -> RunState | None:
        """Returns the state of an entry whose name has changed, among the entries at hand."""
        if self._names_before is None:
            self._names_before = self.gate.names_by_key()
        before = self._names_before.get(key)
        state = None if before is None else self.gate.state(before)
        if before is None or state is None:
            return None
        is_taken, has_run = before in self._being_read, self.adapter.has_run(entry, NEVER)
        if is_taken and state.due is not None and not has_run:
            # This entry may be new: some databases number rows from the first again.
            return None
        self.renamed[entry.name] = before
        return state

    def begins_anew(self, entry: Any, state: RunState) -> bool:
        """True if what the ledger knows of it is out of date: it was enabled again, or is another
        entry of the same name."""
        key = self.adapter.key(entry)
        if key is None:
            return False
        return key != state.key or self._begins_anew(
            entry, state, self.adapter.has_run(entry, NEVER)
        )

    def _begins_anew(self, entry: Any, state: RunState, has_run: bool) -> bool:
        adapter = self.adapter
        if state.unnamed_since is not None and state.key is not None:
            return True  # it was gone from a store that all beats share
        if has_run or state.due is None or not adapter.is_one_off(entry):
            return False
        # Somebody disabled and enabled it between two looks, or while no beat looked.
        changed = adapter.changed_at(entry)
        if changed is None or self.gate.waits(self.renamed.get(entry.name, entry.name)):
            return False  # it has not run yet
        sent = [past.at for past in state.past if past.number is not None and past.note is None]
        return changed > max([state.last_run_at, *sent])


def _earliest(began: datetime, since: float) -> datetime:
    """Returns an instant before all that happened since `began` by the clock of day, and `since` on
    boottime(), even if the clock of day was set back in between."""
    return min(began, clock.now() - timedelta(seconds=clock.boottime() - since))


def _due(entry: Any, start: datetime | None) -> datetime:
    with at_one_instant(entry.schedule):
        due = due_instant(entry)
    # If an entry has a start, database schedulers pretend a last run 30 years before it.
    return due if start is None else max(due, start)


def _is_wrong(entry: Any, at: datetime, state: RunState | None) -> bool:
    """True if `at`, an interval's last run by its store, was told by a clock that was ahead, and
    the ledger has set that back. Instants that follow on it have run: they would run again."""
    if state is None or not state.done or at <= state.last_run_at:
        return False
    told, is_interval = milliseconds(at), counts_from_last_run(entry.schedule)
    return is_interval and any(start <= told <= end for start, end in state.done)


def _of_the_later(
    adapter: StoreAdapter, entry: Any, at: datetime, ran: datetime, is_wrong: bool
) -> Any:
    """Returns an entry that last ran at `at` by its store, and at `ran` by the ledger."""
    if abs(at - ran) <= _ROUNDED:
        return entry
    if is_wrong or (at.microsecond == 0 and abs(at - ran) < _SECOND):
        return adapter.as_if_known(entry, ran, False)
    return adapter.as_if_run(entry, ran) if at < ran else entry


def _made_way(scheduler: Any, entry: Any, state: Any) -> Any:
    """Puts an entry that is not to run behind those that are due. Returns what to say of it. Celery
    before 5.7 asks the first of its heap until that is due, and meanwhile no other
    (celery#7649)."""
    heap = getattr(scheduler, "_heap", None)
    if not _ASKS_THE_FIRST_ALONE or not heap or heap[0].entry is not entry:
        return state
    later = event_t(scheduler._when(entry, state.next), heap[0].priority, entry)
    heapq.heapreplace(heap, later)
    return state if heap[0].entry is entry else schedstate(False, 0)


def _put_longest_waiting_first(scheduler: Any, held: Container[int]) -> None:
    """Puts due entries in the order of their last runs. Celery has them due at this moment, one
    after another: so if the heap is made again and again, as after each late run, and more is due
    than can be dispatched, the last of the schedule would never run."""
    heap = scheduler._heap
    now = scheduler._when(heap[0].entry, 0) if heap else 0.0
    for at, event in enumerate(heap):
        if event.time <= now and id(event.entry) not in held:
            ran = scheduler.adapter.last_run_at(event.entry).timestamp()
            heap[at] = event._replace(time=min(event.time, ran))
    heapq.heapify(heap)
