"""The stores of other schedulers: one adapter for each kind, with one contract.

Only this module knows more about a scheduler or its entries than Celery's own classes have.
"""

from __future__ import annotations

import contextlib
import functools
import shelve
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from multiprocessing.util import Finalize
from types import MappingProxyType
from typing import Any, ClassVar

from celery.beat import Scheduler

from .. import clock
from ..due import as_of, counts_from_last_run, to_utc, utc_of
from ..live.coming import Newcomer
from ..runs import NEVER, TOLERANCE

#: Least seconds between two readings of all that RedBeat has; which share of the time they may
#: take; how many entries are read together.
_READ_EVERY, _READ_SHARE, _READ_TOGETHER = 5.0, 0.02, 500
#: Seconds until we ask again whether a damaged entry is due.
_ASK_AGAIN = 1.0
#: Most characters of an entry's error.
_LONGEST_WHY = 200
_SECOND = timedelta(seconds=1)
#: An attribute of entries that have rows: the row says that the entry ran.
_HAS_RUN = "row_has_run"


class StoreAdapter:
    """The contract. This class implements it for a scheduler without a store that we know: its
    entries tell us what those of ``beat_schedule`` do. For the thread of its scheduler."""

    #: True if entries that the scheduler has written from code into its store stay there as they
    #: are.
    keeps_installed: ClassVar = False
    #: What is wrong with each entry that its class cannot decode, by name. :meth:`entries` leaves
    #: these out.
    unreadable: Mapping[str, str] = MappingProxyType({})
    #: Entries that do not run and that :meth:`entries` leaves out, as far as they were read, by
    #: name.
    disabled: Mapping[str, Any] = MappingProxyType({})
    #: True if the scheduler puts an entry off by a last run in the future: then that is no mistake.
    puts_off: ClassVar = False

    def __init__(self, scheduler: Scheduler) -> None:
        #: A proxy, so that the scheduler is freed, with its connections, as soon as it is
        #: discarded.
        self._scheduler: Any = weakref.proxy(scheduler)

    @classmethod
    def overrides(cls, scheduler: type[Scheduler]) -> dict[str, Any]:
        """Returns the attributes that replace those of the scheduler's class, by name."""
        return {}

    @classmethod
    def is_away(cls, exc: BaseException) -> bool:
        """True if an error means that the store does not answer or refuses."""
        return False

    def to_install(self, entries: Mapping[str, Any], *, is_first: bool) -> Mapping[str, Any]:
        """Returns which entries to write into the store again, of those that code defines and that
        were all in the store once: deleted ones, if it `is_first`; all if nothing of
        `beat_schedule` is left, because then the store was lost; and all if there is no store."""
        if not self.keeps_installed:
            return entries
        code = self._scheduler.app.conf.beat_schedule
        there = self.stored([*entries, *code])
        is_lost = bool(code) and not any(name in there for name in code)
        missing = {name: fields for name, fields in entries.items() if name not in there}
        return missing if is_first or is_lost else {}

    def stored(self, names: Iterable[str]) -> Collection[str]:
        """Returns which of these the store has, even disabled or damaged; perhaps others, too."""
        return ()

    def opened(self) -> None:
        """Called once, before the scheduler ticks."""

    def entries(self, read: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """Returns all entries that the store has, by name. `read`: those of the scheduler's
        ``schedule``; `known`: all, as they were before. Returns `known` itself if none has come or
        gone."""
        return read

    def look_at(self, names: Iterable[str], known: dict[str, Any]) -> dict[str, Any]:
        """Does the same after reading some entries again, even if they are not due. A store of
        which nothing is kept for longer than a look need not do that."""
        return known

    def key(self, entry: Any) -> str | None:
        """Returns a key that differs from that of a later entry of the same name, made after this
        one was deleted; None if the store has no such key."""
        return None

    def start(self, entry: Any) -> datetime | None:
        """Returns the instant before which an entry does not run, in UTC, or None."""
        return None

    def last_run_at(self, entry: Any) -> datetime:
        """Returns when an entry ran last, UTC; or since when its clock runs, if it never ran. The
        first instant of all if its store does not say."""
        at = entry.last_run_at
        return datetime.min.replace(tzinfo=timezone.utc) if at is None else utc_of(entry, at)

    def has_run(self, entry: Any, since: datetime) -> bool:
        """True if the store says that the entry ran at :meth:`last_run_at`. False if only its clock
        runs since then. `since`: when the entry was made, or before."""
        # A time after it was made did not come from the store. A time in the future did, if it is
        # further ahead than a clock may have been set back in between.
        return not since <= self.last_run_at(entry) <= clock.now() + TOLERANCE

    def changed_at(self, entry: Any) -> datetime | None:
        """Returns when somebody last changed the entry, in UTC; None if the store does not say."""
        return None

    def is_one_off(self, entry: Any) -> bool:
        """True if the entry runs once and is then disabled."""
        return False

    def as_if_run(self, entry: Any, at: datetime) -> Any:
        """Returns the entry after a run at `at` (UTC) that the store does not know."""
        return entry._next_instance(last_run_at=as_of(entry, at))

    def as_if_known(self, entry: Any, at: datetime, has_run: bool) -> Any:
        """Returns the entry as if its store had known that its clock goes on from `at`, UTC; since
        a run of it, if it `has_run`."""
        entry.last_run_at = as_of(entry, at)
        return entry

    @classmethod
    def reading(cls, scheduler: type[Scheduler]) -> dict[str, Any]:
        """Returns what replaces attributes of the scheduler's class, by name, if its store is only
        read."""
        return cls.overrides(scheduler)

    def everything(self) -> Iterator[tuple[Any, bool]]:
        """For users who leave this scheduler: returns all entries that the store has, and whether
        each is enabled. Then :attr:`unreadable` has the others."""
        raise NotImplementedError

    def newcomer(self, entry: Any, is_enabled: bool) -> Newcomer:
        """Returns an entry in the form in which another scheduler can take it over."""
        return Newcomer(entry.name, entry, is_enabled, self.last_run_at(entry))

    def has_lost(self, name: str, key: str | None) -> bool:
        """True if an entry that is not among :meth:`entries` is certainly deleted or disabled, in a
        store that all beats share. `key`: what :meth:`key` returned for it."""
        return False

    def forget(self) -> None:
        """Stops the scheduler from writing anything more, before it is closed."""
        finalize = getattr(self._scheduler, "_finalize", None)
        if isinstance(finalize, Finalize):  # as in all forks of django-celery-beat
            finalize.cancel()  # it would sync when the process ends, and keeps it alive


class FileAdapter(StoreAdapter):
    """The store of ``celery.beat.PersistentScheduler``: a file that the beats of one machine
    share."""

    def forget(self) -> None:
        super().forget()
        store = self._scheduler._store
        if isinstance(store, shelve.Shelf):
            vars(store)["cache"].clear()  # closing would write it


class Unreadable:
    """Replaces an entry that cannot be decoded in a schedule of RedBeat. It is never due."""

    last_run_at = None
    enabled = False

    def __init__(self, name: str, key: str, why: str) -> None:
        self.name, self.key, self.why = name, key, why

    def is_due(self) -> tuple[bool, float]:
        # RedBeat asks Redis which entry comes next, and may get only this one.
        return False, _ASK_AGAIN


class RedBeatAdapter(StoreAdapter):
    """Entries are read from Redis at each look, but only those that are nearly due. All are read
    now and then, and entries that somebody asks for. Only changed ones are decoded."""

    keeps_installed = True

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        #: By key: what Redis had of an entry, None if that is unknown, and the entry.
        self._read: dict[str, tuple[Any, Any]] = {}
        #: On boottime(): when to read all of them.
        self._read_at = 0.0
        self.unreadable: dict[str, str] = {}
        self.disabled: dict[str, Any] = {}

    @classmethod
    def overrides(cls, scheduler: type[Scheduler]) -> dict[str, Any]:
        own: Any = scheduler.Entry

        def from_key(entry_class: Any, key: str, app: Any = None) -> Any:
            try:
                entry = own.from_key.__func__(entry_class, key, app=app)
                entry.is_due()  # otherwise its tick() would end with what this raises
            except Exception as exc:
                is_gone = isinstance(exc, KeyError) and exc.args == (key,)
                if is_gone or cls.is_away(exc):
                    raise
                return Unreadable(key[len(app.redbeat_conf.key_prefix) :], key, _told(exc))
            return entry

        kind: Any = type(own.__name__, (own,), {"from_key": classmethod(from_key)})
        return {"Entry": kind}

    @classmethod
    def is_away(cls, exc: BaseException) -> bool:
        from redis.exceptions import RedisError

        return isinstance(exc, RedisError) and "WRONGTYPE" not in str(exc)

    puts_off: ClassVar = True  # by reschedule()

    def stored(self, names: Iterable[str]) -> Collection[str]:
        names, scheduler = list(names), self._scheduler
        keys = [scheduler.Entry.generate_key(scheduler.app, name) for name in names]
        return {name for name, text in zip(names, self._texts(keys)) if text is not None}

    def opened(self) -> None:
        self._scheduler.lock_key = None  # our election decides who is master

    def entries(self, read: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        from redbeat.schedulers import get_redis

        app, began = self._scheduler.app, clock.boottime()
        for entry in (*known.values(), *read.values()):
            self._read[entry.key] = self._read.get(entry.key, (None, None))[0], entry
        keys = get_redis(app).zrange(app.redbeat_conf.schedule_key, 0, -1)
        self._read = {key: self._read[key] for key in keys if key in self._read}
        if began >= self._read_at:
            self._look_at(keys)
            took = clock.boottime() - began
            self._read_at = began + max(_READ_EVERY, took / _READ_SHARE)
        else:
            self._look_at([key for key in keys if key not in self._read])
        return self._found(known)

    def look_at(self, names: Iterable[str], known: dict[str, Any]) -> dict[str, Any]:
        entry_class, app = self._scheduler.Entry, self._scheduler.app
        self._look_at([entry_class.generate_key(app, name) for name in names])
        return self._found(known)

    def everything(self) -> Iterator[tuple[Any, bool]]:
        found = self.entries({}, {})
        yield from ((entry, True) for entry in found.values())
        yield from ((entry, False) for entry in self.disabled.values())

    def newcomer(self, entry: Any, is_enabled: bool) -> Newcomer:
        last = None if entry.last_run_at is None else self.last_run_at(entry)
        return Newcomer(entry.name, entry, is_enabled, last)

    def _look_at(self, keys: list[str]) -> None:
        """Reads entries, and decodes the changed ones."""
        for key, text in zip(keys, self._texts(keys)):
            if text is None:
                self._read.pop(key, None)
            elif self._read.get(key, (None,))[0] != text:
                with contextlib.suppress(KeyError):  # deleted
                    entry = self._scheduler.Entry.from_key(key, app=self._scheduler.app)
                    self._read[key] = text, entry

    def _texts(self, keys: list[str]) -> Iterator[Any]:
        """Returns what Redis has for each; None if it has nothing."""
        for start in range(0, len(keys), _READ_TOGETHER):
            yield from self._texts_together(keys[start : start + _READ_TOGETHER])

    def _texts_together(self, keys: list[str]) -> list[Any]:
        from redbeat.schedulers import get_redis

        with get_redis(self._scheduler.app).pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, "definition", "meta")
            try:
                found = pipe.execute(raise_on_error=False)
            except UnicodeDecodeError as exc:
                if len(keys) == 1:
                    return [str(exc)]
                half = len(keys) // 2
                return [*self._texts_together(keys[:half]), *self._texts_together(keys[half:])]
        for each in found:
            if isinstance(each, Exception) and self.is_away(each):
                raise each
        return [
            str(each) if isinstance(each, Exception) else each if each[0] else None
            for each in found
        ]

    def _found(self, known: dict[str, Any]) -> dict[str, Any]:
        entries = [entry for _, entry in self._read.values()]
        self.unreadable = {each.name: each.why for each in entries if isinstance(each, Unreadable)}
        self.disabled = {
            each.name: each
            for each in entries
            if not (each.enabled or isinstance(each, Unreadable))
        }
        found = {entry.name: entry for entry in entries if entry.enabled}
        if found.keys() != known.keys():
            return found
        known.update(found)
        return known

    def as_if_known(self, entry: Any, at: datetime, has_run: bool) -> Any:
        entry = super().as_if_known(entry, at, has_run)
        entry.reschedule(entry.last_run_at)
        return entry

    def has_lost(self, name: str, key: str | None) -> bool:
        return name not in self.unreadable  # because all of its entries were just read


class RowAdapter(StoreAdapter):
    """The store of a ``DatabaseScheduler``: each entry has a row of a table, its ``model``."""

    #: The row's attribute that distinguishes it from all others.
    key_name: ClassVar = "id"

    keeps_installed = True

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self.unreadable: dict[str, str] = self._scheduler.unreadable_rows

    @classmethod
    def overrides(cls, scheduler: type[Scheduler]) -> dict[str, Any]:
        own: Any = scheduler
        unreadable: dict[str, str] = {}

        def make(entry: Any, model: Any, *args: Any, **kwargs: Any) -> None:
            # Once it is made, its row has a time in any case.
            has_run = bool(model.last_run_at)
            setattr(entry, _HAS_RUN, has_run)
            try:
                super(kind, entry).__init__(model, *args, **kwargs)
                if not has_run and model.start_time is None:
                    cls.begin(entry)
                elif not has_run and not counts_from_last_run(entry.schedule):
                    cls.begin_at_start(entry)
            except Exception as exc:
                if cls.is_away(exc):
                    raise
                unreadable[model.name] = _told(exc)
                raise ValueError(_told(exc)) from exc  # its class leaves such a row out

        def all_as_schedule(scheduler: Any) -> Any:
            unreadable.clear()
            return own.all_as_schedule(scheduler)

        names = {"__init__": make, "__module__": own.Entry.__module__}
        kind: Any = type(own.Entry.__name__, (own.Entry,), names)
        return {
            "Entry": kind,
            "unreadable_rows": unreadable,
            "all_as_schedule": all_as_schedule,
        }

    @classmethod
    def reading(cls, scheduler: type[Scheduler]) -> dict[str, Any]:
        found = cls.overrides(scheduler)

        def disable(entry: Any, row: Any) -> None:
            raise ValueError("what it has for a schedule, or for arguments, cannot be understood")

        found["Entry"]._disable = disable  # it writes that into the store
        return found

    def everything(self) -> Iterator[tuple[Any, bool]]:
        for name, make in self._rows():
            try:
                entry = make()
            except Exception as exc:
                if self.is_away(exc):
                    raise
                self.unreadable[name] = _told(exc)
            else:
                yield entry, bool(entry.model.enabled)

    def _rows(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yields the name of each row, and what makes an entry from it."""
        raise NotImplementedError

    def newcomer(self, entry: Any, is_enabled: bool) -> Newcomer:
        row, options = entry.model, entry.options
        # Its class adds it. So does the code that sends the message of a live entry.
        for told in (options, options["headers"]):
            told.pop("periodic_task_name", None)
        return Newcomer(
            entry.name,
            entry,
            is_enabled,
            self.last_run_at(entry),
            has_run=self.has_run(entry, NEVER),
            starts=self.start(entry),
            ends=None if row.expires is None else to_utc(row.expires),
            at=getattr(entry.schedule, "clocked_time", None),
            is_one_off=self.is_one_off(entry),
            note=row.description or "",
        )

    @classmethod
    def begin(cls, entry: Any) -> None:
        """Called for an entry that never ran, after its class has said since when its clock
        runs."""

    @classmethod
    def begin_at_start(cls, entry: Any) -> None:
        """Lets an entry that never ran, and that has a start and fixed instants, wait for the first
        instant after its start. Its class pretends that it ran long ago, as if it were due at its
        start."""
        changed = entry.model.date_changed
        since = to_utc(entry.model.start_time) - _SECOND
        if changed is not None:
            since = max(since, cls._utc_of_row(changed))
        entry.last_run_at = as_of(entry, since)

    def key(self, entry: Any) -> str | None:
        key = getattr(entry.model, self.key_name)
        return None if key is None else str(key)

    def start(self, entry: Any) -> datetime | None:
        start = entry.model.start_time
        return None if start is None else to_utc(start)

    def has_run(self, entry: Any, since: datetime) -> bool:
        return bool(getattr(entry, _HAS_RUN, True))

    def changed_at(self, entry: Any) -> datetime | None:
        # Its class writes what code defines again at each start.
        if entry.name in self._scheduler.app.conf.beat_schedule:
            return None
        changed = entry.model.date_changed
        return None if changed is None else self._utc_of_row(changed)

    @classmethod
    def _utc_of_row(cls, instant: datetime) -> datetime:
        """Returns the UTC of an instant that the database layer itself has written."""
        return to_utc(instant)

    def is_one_off(self, entry: Any) -> bool:
        return bool(entry.model.one_off)

    def as_if_run(self, entry: Any, at: datetime) -> Any:
        # It takes no time as an argument: it asks for the present time itself, in a way that
        # depends on its settings.
        zone = entry._default_now().tzinfo
        own = at.replace(tzinfo=None) if zone is None else at.astimezone(zone)
        now: Callable[[], datetime] = lambda: own  # noqa: E731
        entry.default_now = entry._default_now = now
        return self._scheduler.reserve(entry)

    def as_if_known(self, entry: Any, at: datetime, has_run: bool) -> Any:
        if has_run:  # an entry that runs once asks its row whether it did
            return self.as_if_run(entry, at)
        entry.last_run_at = at.astimezone(self._scheduler.app.timezone)
        return entry


class DjangoAdapter(RowAdapter):
    """The store of django-celery-beat."""

    key_name = "pk"

    @classmethod
    def overrides(cls, scheduler: type[Scheduler]) -> dict[str, Any]:
        own: Any = scheduler
        found = super().overrides(scheduler)
        unreadable = found["unreadable_rows"]

        def enabled_models(scheduler: Any) -> Any:
            try:
                return own.enabled_models(scheduler)
            except Exception as exc:
                if cls.is_away(exc):
                    raise
                return list(one_by_one(scheduler.enabled_models_qs()))

        def one_by_one(rows: Any) -> Iterator[Any]:
            for pk, name in rows.values_list("pk", "name"):
                try:
                    yield from rows.filter(pk=pk)
                except Exception as exc:
                    if cls.is_away(exc):
                        raise
                    unreadable[name] = _told(exc)

        if hasattr(scheduler, "enabled_models_qs"):
            found["enabled_models"] = enabled_models
        # By itself it leaves entries out of its schedule that are not due for hours. Then operators
        # could not ask for them, and what an entry missed, or has waiting, would wait for its hour.
        return {
            **found,
            "_get_crontab_exclude_query": lambda scheduler: _no_row(),
            "get_excluded_hours_for_crontab_tasks": lambda scheduler: [],  # before 2.9
        }

    def stored(self, names: Iterable[str]) -> Collection[str]:
        return set(self._scheduler.Model.objects.values_list("name", flat=True))

    @classmethod
    def is_away(cls, exc: BaseException) -> bool:
        from django.db import Error

        return isinstance(exc, Error)

    @classmethod
    def begin(cls, entry: Any) -> None:
        # It treats the time of the change as UTC, whatever zone it is in.
        changed = entry.model.date_changed
        if changed is not None and changed.tzinfo is None:
            entry.last_run_at = as_of(entry, cls._utc_of_row(changed))

    @classmethod
    def _utc_of_row(cls, instant: datetime) -> datetime:
        from django.utils.timezone import get_default_timezone

        if instant.tzinfo is None:  # without USE_TZ
            instant = instant.replace(tzinfo=get_default_timezone())
        return to_utc(instant)

    def _rows(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        scheduler = self._scheduler
        for pk, name in scheduler.Model.objects.order_by("name").values_list("pk", "name"):
            yield name, functools.partial(self._entry, pk)

    def _entry(self, pk: Any) -> Any:
        row = self._scheduler.Model.objects.get(pk=pk)
        return self._scheduler.Entry(row, app=self._scheduler.app)

    def has_lost(self, name: str, key: str | None) -> bool:
        rows = self._scheduler.Model.objects.filter(pk=key, enabled=True)
        return key is not None and not rows.exists()


class SQLAlchemyAdapter(RowAdapter):
    """The store of sqlalchemy-celery-beat."""

    def stored(self, names: Iterable[str]) -> Collection[str]:
        with self._scheduler.Session() as session:
            return {name for (name,) in session.query(self._scheduler.Model.name)}

    @classmethod
    def is_away(cls, exc: BaseException) -> bool:
        from sqlalchemy.exc import DBAPIError

        return isinstance(exc, DBAPIError)

    def _rows(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        scheduler = self._scheduler
        with scheduler.Session() as session:
            for row in session.query(scheduler.Model):
                make = functools.partial(scheduler.Entry, row, scheduler.Session)
                yield row.name, functools.partial(make, app=scheduler.app)

    def has_lost(self, name: str, key: str | None) -> bool:
        if key is None:
            return False
        with self._scheduler.Session() as session:
            row = session.get(self._scheduler.Model, int(key))
            return row is None or not row.enabled


def _told(exc: BaseException) -> str:
    """Returns the error's text in one line."""
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:_LONGEST_WHY]


def _no_row() -> Any:
    from django.db.models import Q

    return Q(pk__in=())


def adapter_of(scheduler: type[Scheduler]) -> type[StoreAdapter]:
    """Returns the adapter for a scheduler's class. It looks for attributes that only one family of
    schedulers has, so it also knows forks and copies with other names."""
    if hasattr(scheduler.Entry, "from_key"):
        return RedBeatAdapter
    if hasattr(scheduler.Entry, "model_schedules") and hasattr(scheduler, "Model"):
        return DjangoAdapter if hasattr(scheduler.Model, "objects") else SQLAlchemyAdapter
    return FileAdapter if hasattr(scheduler, "_store") else StoreAdapter
