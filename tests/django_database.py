"""django-celery-beat's tables, new for each test, and changes as Django's admin makes them."""

from __future__ import annotations

import importlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from example_project.servers import LOOPBACK, MariaDB, PostgreSQL

if TYPE_CHECKING:
    from django_celery_beat.models import PeriodicTask

_SETTINGS = "tests.django_settings"

#: Variables that one test sets for its database, and that the next test must not see.
_UNSAID: dict[str, Any] = {
    "HOST": "",
    "PORT": "",
    "USER": "",
    "OPTIONS": {},
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
}

Server = Union[PostgreSQL, MariaDB]


class Database:
    """The database of one test. Processes that are started with :attr:`env` use it. So does this
    process, until it makes another.

    Args:
        server: None: SQLite, in `folder`.
        connection: added to what DATABASES says, such as CONN_MAX_AGE.
    """

    def __init__(self, folder: Path, server: Server | None, **connection: Any) -> None:
        import django
        from django.core.management import call_command
        from django.db import connections

        self.env = {"DJANGO_SETTINGS_MODULE": _SETTINGS}
        if server is None:
            self.env["DJANGO_DATABASE"] = str(folder / "django.sqlite3")
        else:
            self.env.update(server.env_of(make_database(server)))
        if connection:
            self.env["DJANGO_CONNECTION"] = json.dumps(connection)
        os.environ.update(self.env)
        if not django.apps.apps.ready:
            django.setup()
        # As a process that is started with this environment: Django reads it once.
        settings = importlib.reload(importlib.import_module(_SETTINGS))
        connections["default"].close()
        connections.settings["default"].update({**_UNSAID, **settings.DATABASES["default"]})
        del connections["default"]
        call_command("migrate", verbosity=0)

    def close(self) -> None:
        self.disconnect()
        for name in self.env:
            del os.environ[name]

    def disconnect(self) -> None:
        """Closes the connection. The next use opens a new one."""
        from django.db import connections

        connection = connections["default"]
        connection.close()
        if "pool" in connection.settings_dict["OPTIONS"]:
            connection.close_pool()

    def add(self, name: str, seconds: float, **fields: Any) -> PeriodicTask:
        """Adds an entry. Its task has the same name, unless `fields` say another."""
        from django_celery_beat.models import IntervalSchedule, PeriodicTask

        every, period = seconds, IntervalSchedule.SECONDS
        if seconds != int(seconds):
            every, period = round(1e6 * seconds), IntervalSchedule.MICROSECONDS
        interval, _ = IntervalSchedule.objects.get_or_create(every=every, period=period)
        fields = {"task": name, "interval": interval, **fields}
        return PeriodicTask.objects.create(name=name, **fields)

    def get(self, name: str) -> PeriodicTask:
        from django_celery_beat.models import PeriodicTask

        return PeriodicTask.objects.get(name=name)

    def get_key(self, name: str) -> int:
        """Returns the key of a row, even if the row cannot be read."""
        from django_celery_beat.models import PeriodicTask

        key: int = PeriodicTask.objects.values_list("pk", flat=True).get(name=name)
        return key

    def change(self, name: str, /, **fields: Any) -> None:
        entry = self.get(name)
        for field, value in fields.items():
            setattr(entry, field, value)
        entry.save()

    def rename(self, names: Mapping[str, str]) -> None:
        """Renames rows in one transaction: old name to new name."""
        from django.db import transaction
        from django_celery_beat.models import PeriodicTask, PeriodicTasks

        with transaction.atomic():
            keys = {old: self.get(old).pk for old in names}
            for old, key in keys.items():
                PeriodicTask.objects.filter(pk=key).update(name=f"once {old}")
            for old, key in keys.items():
                PeriodicTask.objects.filter(pk=key).update(name=names[old])
            PeriodicTasks.update_changed()

    def watch_writers(self) -> None:
        """Makes PostgreSQL record from now on who writes run states."""
        self.execute(
            """
            CREATE TABLE writers (name text);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    INSERT INTO writers VALUES (current_setting('application_name'));
                    RETURN NULL;
                END
            $$;
            CREATE TRIGGER note AFTER UPDATE OF last_run_at ON django_celery_beat_periodictask
                EXECUTE FUNCTION note();
            """
        )

    def writers(self) -> list[str]:
        """Returns the id of a beat for each time that it wrote."""
        return [name for (name,) in self.execute("SELECT name FROM writers")]

    def execute(self, statement: str) -> list[Any]:
        """Executes a statement of SQL. Returns the rows that it found."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []


def make_database(server: Server) -> str:
    """Makes an empty database. Returns its name."""
    name = f"t{uuid.uuid4().hex}"
    if isinstance(server, MariaDB):
        import pymysql

        with pymysql.connect(host=LOOPBACK, port=server.port, user="root") as connection:
            connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    else:
        import psycopg

        with psycopg.connect(
            host=LOOPBACK, port=server.port, user="postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
    return name
