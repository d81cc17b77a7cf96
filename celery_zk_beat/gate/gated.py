"""Puts any other Celery scheduler behind the election.

The elected beat makes an instance of its own of the class in ``zk_beat_scheduler`` and has it tick:
it decides what is due. Each of its dispatches is claimed in the run ledger first, so that it is
made by the master alone, and once, however far its own store is behind: what the ledger knows to
have run is not due again. A demoted beat throws the instance away, with all that it had cached, and
writes nothing to its store. For the dispatch loop's thread alone, to which its database connections
belong.
"""

from __future__ import annotations

import contextlib
import functools
import shelve
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from multiprocessing.util import Finalize
from typing import Any, Callable, Protocol

from celery.beat import Scheduler
from celery.schedules import schedstate
from celery.utils.imports import symbol_by_name

from .. import clock
from ..due import as_of, at_one_instant, due_instant, is_ahead, utc_of
from ..errors import SettingsError, ZkBeatError
from ..log import get_logger
from ..messages import send_by_celery
from ..runs import RunState
from .stores import key_of, start_of

logger = get_logger(__name__)

#: By how much a store may round the time of a run.
_ROUNDED = timedelta(milliseconds=1)


#: How long ago an entry that has a start and never ran has run, say database schedulers.
_PRETENDED = timedelta(days=365 * 30)


class SchedulerFailed(ZkBeatError):
    """The gated scheduler raised something: its database is away, as a rule."""


class Gate(Protocol):
    """What a gated scheduler asks of the one that gates it."""

    @property
    def producer(self) -> Any:
        """Of messages, for the broker."""

    def state(self, name: str) -> RunState | None:
        """What the ledger knows of an entry."""

    def holds_back(self, name: str) -> float | None:
        """For how many seconds an entry is not to be asked whether it is due; None: ask it."""

    def dispatch(self, entry: Any, due: datetime, claimed: datetime) -> None:
        """Claims a run, and publishes it now or later.

        Raises:
            ZkBeatError: it is not certain to be claimed.
        """

    def is_open(self) -> bool:
        """Whether this beat is still the master."""


def scheduler_class(name: str, shown: str) -> type[Scheduler]:
    """The class that `zk_beat_scheduler` names.

    Args:
        shown: how the user writes the name of the setting.

    Raises:
        SettingsError: there is none, or it is no scheduler.
    """
    try:
        found = symbol_by_name(name)
    except Exception as exc:  # whatever its module raises
        raise SettingsError(
            f"{shown} = {name!r}: cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(found, type) or not issubclass(found, Scheduler):
        raise SettingsError(f"{shown} = {name!r}: is no class derived from celery.beat.Scheduler")
    return found


def open_gate(scheduler: type[Scheduler], gate: Gate, **arguments: Any) -> Gated:
    """Makes an instance of a scheduler, as Celery does with these arguments, behind a gate.

    Raises:
        SchedulerFailed: its constructor raised.
    """
    kind = type(scheduler.__name__, (Gated, scheduler), {"gate": gate})
    with _failing(scheduler.__name__):
        gated: Gated = kind(**arguments)
        try:
            gated.opened()
        except BaseException:
            gated.throw_away()
            raise
        logger.info(" ".join([scheduler.__name__, "is elected", *gated.info.split()]))
    return gated


@contextlib.contextmanager
def _failing(name: str) -> Iterator[None]:
    try:
        yield
    except ZkBeatError:
        raise
    except Exception as exc:
        logger.exception("%s failed", name)
        raise SchedulerFailed(f"{name} failed: {type(exc).__name__}: {exc}") from exc


class Gated(Scheduler):
    """Goes before a scheduler class among the bases of another."""

    gate: Gate
    #: The connection to the broker is that of the gating scheduler.
    producer = None
    #: The entries as they were last read, all that are known, by name.
    entries: dict[str, Any]

    _built_at = datetime.max.replace(tzinfo=timezone.utc)
    _is_open = _is_over = False
    #: The entries while they are asked, for each look at the store may bring others.
    _asked: Any = None
    _last_read: Any = None
    _last_reserved: Any = None
    _failure: ZkBeatError | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.entries = {}
        began, since = clock.now(), clock.boottime()
        super().__init__(*args, **kwargs)
        # No entry was made earlier, by the clock of day, also if that was set back in between.
        took = timedelta(seconds=clock.boottime() - since)
        self._built_at = min(began, clock.now() - took)

    def opened(self) -> None:
        """To be called once, after it is made."""
        if hasattr(self, "lock_key"):
            self.lock_key = None  # RedBeat's: who is master is decided elsewhere
        entries = self.schedule
        for name, entry in list(self._with_others(entries).items()):
            state = self._state(entry)
            # A time since it was made cannot be from its store, which does not know the entry.
            if state is not None and _last_run_at(entry) >= max(self._built_at, state.last_run_at):
                if state.due is not None and hasattr(entry, "model"):
                    entries[name] = self._as_if_run(entry, state.last_run_at)
                    continue
                entry.last_run_at = as_of(entry, state.last_run_at)
                if self._is_redbeat:
                    entry.reschedule(entry.last_run_at)
        self._is_open = True
        self.read_anew()

    def read_anew(self) -> None:
        """Has all entries asked anew when they are due."""
        self._last_read = self._heap = None
        _ = self.schedule

    def turn(self) -> float:
        """Dispatches what is due, or some of it; says after how many seconds to call again.

        Raises:
            SchedulerFailed: the scheduler raised something.
            ZkBeatError: a run is not certain to be claimed.
        """
        with _failing(type(self).__name__):
            wait = self.tick()
        if self._failure is not None:
            raise self._failure
        return wait if isinstance(wait, (int, float)) else self.max_interval

    def send(self, entry: Any, until_due: Callable[[], object]) -> None:
        """Sends an entry, in the manner of the scheduler's class.

        Args:
            until_due: returns when the entry is due.

        Raises:
            celery.beat.SchedulingError: as Celery's own.
        """
        until_due()
        send_by_celery(super().apply_async, self.app, self.gate.producer, entry)

    @property
    def _is_redbeat(self) -> bool:
        """Whether entries are read from Redis at each look, and only those that are nearly due."""
        return hasattr(self.Entry, "from_key")

    def write(self) -> None:
        """Has it write to its store what is not there yet."""
        self._do_sync()

    def has_lost(self, name: str, key: str | None) -> bool:
        """Whether the entry of a run is certainly deleted, or disabled, in a store that all beats
        have: not merely out of sight, as a row may be that cannot be read.

        Raises:
            SchedulerFailed: its store does not answer.
        """
        with _failing(type(self).__name__):
            if name in self.entries:  # another one, perhaps; a run of our own scheduler has no key
                return key is not None and key_of(self.entries[name]) not in (None, key)
            if self._is_redbeat:
                return True  # its entries were just read, all of them
            rows = getattr(self, "Model", None)
            if key is None or rows is None:
                return False
            if hasattr(rows, "objects"):
                return not rows.objects.filter(pk=key, enabled=True).exists()
            with self.Session() as session:
                row = session.get(rows, int(key))
                return row is None or not row.enabled

    def throw_away(self) -> None:
        """Closes it; nothing is written."""
        self._is_over = True
        finalize = getattr(self, "_finalize", None)
        if isinstance(finalize, Finalize):
            finalize.cancel()  # which would sync at the end of the process, and keeps this alive
        store = getattr(self, "_store", None)
        if isinstance(store, shelve.Shelf):
            vars(store)["cache"].clear()  # which closing it would write
        try:
            self.close()
        except Exception:
            logger.exception("%s could not be closed", type(self).__name__)

    # What its class calls, or would --------------------------------------------------------------

    @property
    def schedule(self) -> Any:
        entries = super().schedule if self._asked is None else self._asked
        if self._is_open and entries is not self._last_read:
            self._last_read = entries
            self._bring_up_to_date(entries)
        return entries

    @schedule.setter
    def schedule(self, entries: Any) -> None:
        super(Gated, type(self)).schedule.__set__(self, entries)

    def is_due(self, entry: Any) -> Any:
        seconds = self.gate.holds_back(entry.name)
        return super().is_due(entry) if seconds is None else schedstate(False, seconds)

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        """Does not ask what is held back. For here Celery asks the entries themselves, and one of a
        database that is to run once disables itself when it is asked after its run: too early,
        where that waits for the broker."""
        held = []
        self._asked = self.schedule
        try:
            for entry in self._asked.values():
                seconds = self.gate.holds_back(entry.name)
                if seconds is not None:
                    held.append(entry)
                    entry.is_due = functools.partial(schedstate, False, seconds)
            super().populate_heap(*args, **kwargs)
        finally:
            self._asked = None
            for entry in held:
                del entry.is_due

    def reserve(self, entry: Any) -> Any:
        self._last_reserved = new = super().reserve(entry)
        # As Celery's own does. Where it is left out, as by database schedulers, an entry runs twice
        # when all are asked anew.
        for entries in (self._last_read, self.entries):
            if entries is not None and entry.name in entries:
                entries[entry.name] = new
        return new

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> None:
        """Has a run claimed and published. What goes wrong is for :meth:`turn` to tell: Celery
        only logs what this raises."""
        if self._failure is not None or (advance and self.gate.holds_back(entry.name) is not None):
            return
        # With `advance`, as RedBeat has it, the store is written by reserve(): not before the
        # claim, for a crash in between would lose the run.
        reserved = None if advance else self._last_reserved
        if reserved is not None and reserved.name != entry.name:
            reserved = None
        claimed = clock.now() if reserved is None else _last_run_at(reserved)
        due = _due(entry)
        if claimed < due:  # the clock was set back since it was asked: it would be due again
            claimed = due
            if reserved is not None:
                reserved.last_run_at = as_of(entry, due)
        try:
            self.gate.dispatch(entry, due, claimed)
        except ZkBeatError as exc:
            self._failure = exc
        else:
            if advance and self.gate.is_open():
                self.reserve(entry)

    def _do_sync(self) -> None:
        """Raises nothing: Celery calls it when it has just published something, and that would be
        taken for not published."""
        try:
            super()._do_sync()
        except Exception:
            logger.exception("%s could not write to its store", type(self).__name__)

    def sync(self) -> None:
        if not self._is_over and self.gate.is_open():
            super().sync()

    # What the ledger knows better ----------------------------------------------------------------

    def _state(self, entry: Any) -> RunState | None:
        state = self.gate.state(entry.name)
        if state is not None and is_ahead(state.last_run_at, clock.now()):
            return None  # not for its store, where it would have to be mended too
        return state if state is not None and state.key == key_of(entry) else None

    def _bring_up_to_date(self, entries: Any) -> None:
        """Has the scheduler know what ran though its store does not say so."""
        for name, entry in list(entries.items()):
            state = self._state(entry)
            if state is not None and _last_run_at(entry) < state.last_run_at - _ROUNDED:
                entries[name] = self._as_if_run(entry, state.last_run_at)
        self.entries = self._with_others(entries)

    def _as_if_run(self, entry: Any, at: datetime) -> Any:
        if not hasattr(entry, "model"):
            return entry._next_instance(last_run_at=as_of(entry, at))
        # An entry of a database takes no time as an argument; it asks itself for the present one,
        # in a manner that depends on its settings.
        zone = entry._default_now().tzinfo
        own = at.replace(tzinfo=None) if zone is None else at.astimezone(zone)
        now: Callable[[], datetime] = lambda: own  # noqa: E731
        entry.default_now = entry._default_now = now
        return self.reserve(entry)

    def _with_others(self, entries: Any) -> dict[str, Any]:
        """The entries that were read, with those of RedBeat that are not due yet; the same
        dictionary as long as none has come or gone."""
        if not self._is_redbeat:
            return entries  # type: ignore[no-any-return]
        from redbeat.schedulers import get_redis

        app, found = self.app, {}
        known = {entry.key: entry for entry in (*self.entries.values(), *entries.values())}
        for key in get_redis(app).zrange(app.redbeat_conf.schedule_key, 0, -1):
            with contextlib.suppress(KeyError):  # deleted
                entry = known.get(key) or self.Entry.from_key(key, app=app)
                found[entry.name] = entry
        if found.keys() != self.entries.keys():
            return found
        self.entries.update(found)
        return self.entries

    # django-celery-beat leaves out of its schedule what is not due for hours: operators could not
    # ask for it, and what it missed, or has waiting, would have to wait for its hour.

    def _get_crontab_exclude_query(self) -> Any:
        from django.db.models import Q

        return Q(pk__in=())

    def get_excluded_hours_for_crontab_tasks(self) -> list[int]:
        return []  # as it is called before 2.9


def _last_run_at(entry: Any) -> datetime:
    at = entry.last_run_at
    if at is None:
        return datetime.min.replace(tzinfo=timezone.utc)
    # With a start, database schedulers pretend that an entry that never ran did, long ago. It never
    # did since it was last changed: to be enabled again, perhaps, after its one run.
    changed = getattr(getattr(entry, "model", None), "date_changed", None)
    return utc_of(entry, changed if changed is not None and at == changed - _PRETENDED else at)


def _due(entry: Any) -> datetime:
    with at_one_instant(entry.schedule):
        due = due_instant(entry)
    # With a start, database schedulers pretend a last run of 30 years before.
    start = start_of(entry)
    return due if start is None else max(due, start)
