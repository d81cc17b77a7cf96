"""Stores of other people's schedulers, and a hand in each, as its users have it: to add entries,
and to change them while beats run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from celery import Celery

from example_project.servers import LOOPBACK, PostgreSQL

from .django_database import Database, Server, make_database


class Store:
    """Where `scheduler` keeps its entries. `conf` has the settings of apps that use this one, and
    `env` what is added to the environment of their processes.

    Each task has the name of its entry. Methods raise NotImplementedError where there is no such
    thing in a store of its kind.
    """

    scheduler: ClassVar[str]

    def __init__(self) -> None:
        self.conf: dict[str, Any] = {}
        self.env: dict[str, str] = {}

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        """`fields`: ``start_time``, ``one_off``, ``last_run_at``."""
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError

    def enable(self, name: str, enabled: bool) -> None:
        raise NotImplementedError

    def damage(self, name: str) -> None:
        """Has it be something that its class cannot decode."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of it."""


class Django(Store):
    """Of django-celery-beat."""

    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"

    def __init__(self, folder: Path, server: Server | None) -> None:
        super().__init__()
        self.database = Database(folder, server)
        self.env = self.database.env

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        self.database.add(name, seconds, **fields)

    def delete(self, name: str) -> None:
        self.database.get(name).delete()

    def enable(self, name: str, enabled: bool) -> None:
        self.database.change(name, enabled=enabled)

    def damage(self, name: str) -> None:
        self.database.change(name, args="[")

    def close(self) -> None:
        self.database.close()


class SQLAlchemy(Store):
    """Of sqlalchemy-celery-beat."""

    scheduler = "sqlalchemy_celery_beat.schedulers:DatabaseScheduler"

    def __init__(self, folder: Path, server: Server | None) -> None:
        super().__init__()
        from sqlalchemy_celery_beat.session import SessionManager

        if server is None:
            url = f"sqlite:///{folder}/schedule.db"
        elif isinstance(server, PostgreSQL):
            url = f"postgresql+psycopg://postgres@{LOOPBACK}:{server.port}/{make_database(server)}"
        else:
            url = f"mysql+pymysql://root@{LOOPBACK}:{server.port}/{make_database(server)}"
        self.conf = {"beat_dburi": url}
        manager = SessionManager()
        self._engine, self._session = manager.create_session(url)
        manager.prepare_models(self._engine)

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        from sqlalchemy_celery_beat.models import IntervalSchedule, Period, PeriodicTask

        with self._session() as session:
            interval = IntervalSchedule(every=int(seconds), period=Period.SECONDS)
            session.add(interval)
            session.commit()
            session.add(PeriodicTask(name=name, task=name, schedule_model=interval, **fields))
            session.commit()

    def delete(self, name: str) -> None:
        with self._row(name) as (session, row):
            session.delete(row)

    def enable(self, name: str, enabled: bool) -> None:
        with self._row(name) as (_, row):
            row.enabled = enabled

    def damage(self, name: str) -> None:
        with self._row(name) as (_, row):
            row.args = "["

    @contextlib.contextmanager
    def _row(self, name: str) -> Iterator[Any]:
        from sqlalchemy_celery_beat.models import PeriodicTask

        with self._session() as session:
            yield session, session.query(PeriodicTask).filter_by(name=name).one()
            session.commit()

    def close(self) -> None:
        self._engine.dispose()


class RedBeat(Store):
    """Of celery-redbeat."""

    scheduler = "redbeat:RedBeatScheduler"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.conf = {"redbeat_redis_url": url}
        self._app = Celery("hand", set_as_current=False)
        self._app.conf.update(self.conf)

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        from redbeat import RedBeatSchedulerEntry

        RedBeatSchedulerEntry(name, name, seconds, app=self._app, **fields).save()

    def delete(self, name: str) -> None:
        self._entry(name).delete()

    def enable(self, name: str, enabled: bool) -> None:
        entry = self._entry(name)
        entry.enabled = enabled
        entry.save()

    def damage(self, name: str) -> None:
        from redbeat.schedulers import get_redis

        get_redis(self._app).hset(self._entry(name).key, "definition", "{")

    def _entry(self, name: str) -> Any:
        from redbeat import RedBeatSchedulerEntry

        key = RedBeatSchedulerEntry.generate_key(self._app, name)
        return RedBeatSchedulerEntry.from_key(key, app=self._app)
