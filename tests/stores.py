"""The stores of other schedulers. Tests use these classes to add entries and to change them while
beats run, as users would."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from celery import Celery

from example_project.servers import LOOPBACK, PostgreSQL

from . import own_scheduler
from .django_database import Database, Server, make_database


class Store:
    """Where `scheduler` keeps its entries. `conf` has the settings for apps that use this store,
    and `env` what to add to the environment of their processes.

    Each task has the name of its entry, unless a test changes that. The attributes of a class say
    what the store can do, in the words of the contract of gate/stores.py. Tests do not call what a
    store cannot do.
    """

    scheduler: ClassVar[str]
    #: Whether it keeps when an entry ran last, for other schedulers and beats; and how exactly.
    keeps_last_run: ClassVar[bool] = True
    precision: timedelta = timedelta(milliseconds=2)
    #: Whether its scheduler sees changes while it runs.
    is_live: ClassVar[bool] = True
    #: Whether it knows an entry from another of the same name, and has starts and entries that run
    #: once.
    has_rows: ClassVar[bool] = False
    #: Whether all beats share it, so that what is not in it is certainly gone.
    tells_lost: ClassVar[bool] = True

    def __init__(self) -> None:
        self.conf: dict[str, Any] = {}
        self.env: dict[str, str] = {}

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        """Adds an entry. `fields`: ``start_time``, ``one_off``."""
        raise NotImplementedError

    def add_crontab(self, name: str, minute: int, hour: int, **fields: Any) -> None:
        """Adds a crontab in UTC. `fields`: as for :meth:`add`."""
        raise NotImplementedError

    def change(self, name: str, /, **fields: Any) -> None:
        """Changes an entry. `fields`: ``task``, ``enabled``."""
        raise NotImplementedError

    def set_last_run(self, name: str, at: datetime) -> None:
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError

    def damage(self, name: str) -> None:
        """Writes something that the scheduler's class cannot decode."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Closes the connection. The next use opens a new one."""

    def close(self) -> None:
        """Releases what it holds."""


class Code(Store):
    """No store: ``beat_schedule``."""

    scheduler = "celery.beat:Scheduler"
    keeps_last_run = is_live = tells_lost = False

    def __init__(self) -> None:
        super().__init__()
        self.conf = {"beat_schedule": {}}

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        self.conf["beat_schedule"][name] = {"task": name, "schedule": seconds}

    def delete(self, name: str) -> None:
        del self.conf["beat_schedule"][name]


class CodeAndFile(Code):
    """The same, but last runs are in a file."""

    scheduler = "celery.beat:PersistentScheduler"
    keeps_last_run = True


class Folder(Store):
    """The store of a scheduler that a site has written itself."""

    scheduler = "tests.own_scheduler:FolderScheduler"
    tells_lost = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = str(folder)
        self.conf = {"beat_folder": self._folder}

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        own_scheduler.write(self._folder, name, json.dumps({"task": name, "seconds": seconds}))

    def change(self, name: str, /, **fields: Any) -> None:
        own_scheduler.write(self._folder, name, **fields)

    def set_last_run(self, name: str, at: datetime) -> None:
        self.change(name, last_run_at=at.isoformat())

    def delete(self, name: str) -> None:
        (Path(self._folder) / f"{name}.json").unlink()

    def damage(self, name: str) -> None:
        own_scheduler.write(self._folder, name, "{")


class Django(Store):
    """The store of django-celery-beat."""

    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    has_rows = True

    def __init__(self, folder: Path, server: Server | None, **connection: Any) -> None:
        super().__init__()
        self.database = Database(folder, server, **connection)
        self.env = self.database.env

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        self.database.add(name, seconds, **fields)

    def add_crontab(self, name: str, minute: int, hour: int, **fields: Any) -> None:
        from django_celery_beat.models import CrontabSchedule, PeriodicTask

        crontab = CrontabSchedule.objects.create(minute=minute, hour=hour, timezone="UTC")
        PeriodicTask.objects.create(name=name, task=name, crontab=crontab, **fields)

    def delete(self, name: str) -> None:
        self.database.get(name).delete()

    def change(self, name: str, /, **fields: Any) -> None:
        self.database.change(name, **fields)

    def set_last_run(self, name: str, at: datetime) -> None:
        self.change(name, last_run_at=at)

    def damage(self, name: str) -> None:
        self.database.change(name, headers="{")

    def disconnect(self) -> None:
        self.database.disconnect()

    def close(self) -> None:
        self.database.close()


class SQLAlchemy(Store):
    """The store of sqlalchemy-celery-beat."""

    scheduler = "sqlalchemy_celery_beat.schedulers:DatabaseScheduler"
    has_rows = True

    def __init__(self, folder: Path, server: Server | None) -> None:
        super().__init__()
        from sqlalchemy_celery_beat.session import SessionManager

        if server is None:
            url = f"sqlite:///{folder}/schedule.db"
        elif isinstance(server, PostgreSQL):
            url = f"postgresql+psycopg://postgres@{LOOPBACK}:{server.port}/{make_database(server)}"
        else:
            url = f"mysql+pymysql://root@{LOOPBACK}:{server.port}/{make_database(server)}"
            self.precision = timedelta(seconds=1)  # its columns have no fractions there
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

    def add_crontab(self, name: str, minute: int, hour: int, **fields: Any) -> None:
        from sqlalchemy_celery_beat.models import CrontabSchedule, PeriodicTask

        with self._session() as session:
            crontab = CrontabSchedule(minute=str(minute), hour=str(hour), timezone="UTC")
            session.add(crontab)
            session.commit()
            session.add(PeriodicTask(name=name, task=name, schedule_model=crontab, **fields))
            session.commit()

    def delete(self, name: str) -> None:
        with self._row(name) as (session, row):
            session.delete(row)

    def change(self, name: str, /, **fields: Any) -> None:
        with self._row(name) as (_, row):
            for field, value in fields.items():
                setattr(row, field, value)

    def set_last_run(self, name: str, at: datetime) -> None:
        self.change(name, last_run_at=at)

    def damage(self, name: str) -> None:
        self.change(name, headers="{")

    @contextlib.contextmanager
    def _row(self, name: str) -> Iterator[Any]:
        from sqlalchemy_celery_beat.models import PeriodicTask

        with self._session() as session:
            yield session, session.query(PeriodicTask).filter_by(name=name).one()
            session.commit()

    def close(self) -> None:
        self._engine.dispose()


class RedBeat(Store):
    """The store of celery-redbeat."""

    scheduler = "redbeat:RedBeatScheduler"

    def __init__(self, url: str) -> None:
        super().__init__()
        from redbeat.schedulers import ensure_conf

        self.conf = {"redbeat_redis_url": url}
        self._app = Celery("hand", set_as_current=False)
        self._app.conf.update(self.conf)
        ensure_conf(self._app)

    def add(self, name: str, seconds: float = 3600, **fields: Any) -> None:
        from redbeat import RedBeatSchedulerEntry

        RedBeatSchedulerEntry(name, name, seconds, app=self._app, **fields).save()

    def delete(self, name: str) -> None:
        self._entry(name).delete()

    def change(self, name: str, /, **fields: Any) -> None:
        entry = self._entry(name)
        for field, value in fields.items():
            setattr(entry, field, value)
        entry.save()

    def set_last_run(self, name: str, at: datetime) -> None:
        self._entry(name).reschedule(at)

    def damage(self, name: str) -> None:
        from redbeat.schedulers import get_redis

        get_redis(self._app).hset(self._entry(name).key, "definition", "{")

    def _entry(self, name: str) -> Any:
        from redbeat import RedBeatSchedulerEntry

        key = RedBeatSchedulerEntry.generate_key(self._app, name)
        return RedBeatSchedulerEntry.from_key(key, app=self._app)
