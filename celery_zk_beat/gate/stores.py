"""Where other people's schedulers keep their entries: an adapter for each kind, of one contract.

All that knows more of a scheduler, or of its entries, than what Celery's own have is in here.
"""

from __future__ import annotations

import contextlib
import shelve
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from multiprocessing.util import Finalize
from typing import Any, ClassVar

from celery.beat import Scheduler

from ..due import as_of, to_utc, utc_of

#: How long ago an entry that has a start and never ran has run, says django-celery-beat.
_PRETENDED = timedelta(days=365 * 30)


class StoreAdapter:
    """The contract, and how it is kept for a scheduler that has no store that we know of: all
    that its entries tell is what those of ``beat_schedule`` do. For the thread of its scheduler."""

    #: Methods that the scheduler's class gets in the place of its own, by name.
    overrides: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    def __init__(self, scheduler: Scheduler) -> None:
        #: A proxy, so that it is freed, with its connections, as soon as it is thrown away.
        self._scheduler: Any = weakref.proxy(scheduler)

    def opened(self) -> None:
        """Is called once, before the scheduler ticks."""

    def entries(self, read: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """All entries that the store has, by name. `read`: those of the scheduler's ``schedule``;
        `known`: all, as they were before, returned itself where none has come or gone."""
        return read

    def key(self, entry: Any) -> str | None:
        """Tells an entry from another of the same name that is made after this one was deleted;
        None where the store does not."""
        return None

    def start(self, entry: Any) -> datetime | None:
        """The instant, UTC, before which an entry does not run; None where it has none."""
        return None

    def last_run_at(self, entry: Any) -> datetime:
        """When an entry ran last, UTC; or since when its clock runs, if it never did. The first
        instant of all where its store does not say."""
        at = entry.last_run_at
        return datetime.min.replace(tzinfo=timezone.utc) if at is None else utc_of(entry, at)

    def as_if_run(self, entry: Any, at: datetime) -> Any:
        """The entry as it is after a run at `at`, UTC, of which the store does not know."""
        return entry._next_instance(last_run_at=as_of(entry, at))

    def as_if_known(self, entry: Any, at: datetime, has_run: bool) -> Any:
        """The entry as it would be, had its store known of it: its clock goes on from `at`, UTC,
        when it ran, where it `has_run`."""
        entry.last_run_at = as_of(entry, at)
        return entry

    def has_lost(self, key: str | None) -> bool:
        """True where an entry that is not among :meth:`entries` is certainly deleted or disabled,
        in a store that all beats have. `key`: what :meth:`key` said of it."""
        return False

    def forget(self) -> None:
        """Has the scheduler, which is to be closed, write none of what it has not written."""
        finalize = getattr(self._scheduler, "_finalize", None)
        if isinstance(finalize, Finalize):  # as all have it that take after django-celery-beat
            finalize.cancel()  # it would sync at the end of the process, and keeps it alive


class FileAdapter(StoreAdapter):
    """Of ``celery.beat.PersistentScheduler``: a file that the beats of one machine have."""

    def forget(self) -> None:
        super().forget()
        store = self._scheduler._store
        if isinstance(store, shelve.Shelf):
            vars(store)["cache"].clear()  # which closing it would write


class RedBeatAdapter(StoreAdapter):
    """Entries are read from Redis at each look, and only those that are nearly due."""

    def opened(self) -> None:
        self._scheduler.lock_key = None  # who is master is decided elsewhere

    def entries(self, read: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        from redbeat.schedulers import get_redis

        app, found = self._scheduler.app, {}
        by_key = {entry.key: entry for entry in (*known.values(), *read.values())}
        for key in get_redis(app).zrange(app.redbeat_conf.schedule_key, 0, -1):
            with contextlib.suppress(KeyError):  # deleted
                entry = by_key.get(key) or self._scheduler.Entry.from_key(key, app=app)
                found[entry.name] = entry
        if found.keys() != known.keys():
            return found
        known.update(found)
        return known

    def as_if_known(self, entry: Any, at: datetime, has_run: bool) -> Any:
        entry = super().as_if_known(entry, at, has_run)
        entry.reschedule(entry.last_run_at)
        return entry

    def has_lost(self, key: str | None) -> bool:
        return True  # its entries were just read, all of them


class RowAdapter(StoreAdapter):
    """Of a ``DatabaseScheduler``: each entry has a row of a table, its ``model``."""

    #: The row's attribute that tells it from all others.
    key_name: ClassVar = "id"

    def key(self, entry: Any) -> str | None:
        key = getattr(entry.model, self.key_name)
        return None if key is None else str(key)

    def start(self, entry: Any) -> datetime | None:
        start = entry.model.start_time
        return None if start is None else to_utc(start)

    def as_if_run(self, entry: Any, at: datetime) -> Any:
        # It takes no time as an argument; it asks itself for the present one, in a manner that
        # depends on its settings.
        zone = entry._default_now().tzinfo
        own = at.replace(tzinfo=None) if zone is None else at.astimezone(zone)
        now: Callable[[], datetime] = lambda: own  # noqa: E731
        entry.default_now = entry._default_now = now
        return self._scheduler.reserve(entry)

    def as_if_known(self, entry: Any, at: datetime, has_run: bool) -> Any:
        # One that is to run once asks its row whether it did.
        return self.as_if_run(entry, at) if has_run else super().as_if_known(entry, at, has_run)


class DjangoAdapter(RowAdapter):
    """Of django-celery-beat."""

    # By itself it leaves out of its schedule what is not due for hours: operators could not ask
    # for it, and what it missed, or has waiting, would have to wait for its hour.
    overrides: ClassVar = {
        "_get_crontab_exclude_query": lambda scheduler: _no_row(),
        "get_excluded_hours_for_crontab_tasks": lambda scheduler: [],  # before 2.9
    }

    key_name = "pk"

    def last_run_at(self, entry: Any) -> datetime:
        # With a start, one that never ran is said to have run long ago. It never did since it was
        # last changed: to be enabled again, perhaps, after its one run.
        at, changed = entry.last_run_at, entry.model.date_changed
        if at is not None and changed is not None and at == changed - _PRETENDED:
            return utc_of(entry, changed)
        return super().last_run_at(entry)

    def has_lost(self, key: str | None) -> bool:
        rows = self._scheduler.Model.objects.filter(pk=key, enabled=True)
        return key is not None and not rows.exists()


class SQLAlchemyAdapter(RowAdapter):
    """Of sqlalchemy-celery-beat."""

    def has_lost(self, key: str | None) -> bool:
        if key is None:
            return False
        with self._scheduler.Session() as session:
            row = session.get(self._scheduler.Model, int(key))
            return row is None or not row.enabled


def _no_row() -> Any:
    from django.db.models import Q

    return Q(pk__in=())


def adapter_of(scheduler: type[Scheduler]) -> type[StoreAdapter]:
    """The adapter for a scheduler's class, told by what only that family has: so do forks and
    copies, of which the names differ."""
    if hasattr(scheduler.Entry, "from_key"):
        return RedBeatAdapter
    if hasattr(scheduler.Entry, "model_schedules") and hasattr(scheduler, "Model"):
        return DjangoAdapter if hasattr(scheduler.Model, "objects") else SQLAlchemyAdapter
    return FileAdapter if hasattr(scheduler, "_store") else StoreAdapter
