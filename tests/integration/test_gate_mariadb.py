"""django-celery-beat's DatabaseScheduler behind the election, turned by hand, on MariaDB, whose
columns may be older than its fractions of a second."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from example_project.servers import MariaDB
from tests.django_database import Database
from tests.history import Message, check

from .conftest import Make, history, past_of
from .test_gate import PERIOD, Start, crash, turn_for, turn_until
from .test_gate_django import SCHEDULER, soon

#: What `last_run_at` and its like keep of a time: MariaDB cuts off what a column has no room for,
#: MySQL (and MariaDB in this mode) rounds, so that a run may seem to come half a second later.
EXACT, CUT, ROUNDED = "exact", "cut", "rounded"
COLUMNS = ("last_run_at", "date_changed", "start_time", "expires")
ROUND = "SET sql_mode = CONCAT(@@sql_mode, ',TIME_ROUND_FRACTIONAL')"


@pytest.fixture(params=[EXACT, CUT, ROUNDED])
def seconds(request: Any) -> str:
    """What is kept of them."""
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["USE_TZ", "naive"])
def use_tz(request: Any) -> bool:
    return bool(request.param)


@pytest.fixture
def database(mariadb: MariaDB, seconds: str, use_tz: bool, tmp_path: Path) -> Iterator[Database]:
    pytest.importorskip("django_celery_beat")
    from django.test import override_settings

    options = {"init_command": ROUND} if seconds == ROUNDED else {}
    database = Database(tmp_path, mariadb, OPTIONS=options)
    if seconds != EXACT:
        for column in COLUMNS:
            null = "NOT NULL" if column == "date_changed" else "NULL"
            database.execute(
                f"ALTER TABLE django_celery_beat_periodictask MODIFY {column} DATETIME {null}"
            )
    # The class by itself writes nothing with one of these and not the other: its times are aware
    # then, and Django refuses them for MySQL.
    with override_settings(USE_TZ=use_tz, DJANGO_CELERY_BEAT_TZ_AWARE=use_tz):
        yield database
    database.close()


@pytest.fixture
def start(app: Celery, make: Make, database: Database) -> Start:
    app.conf.zk_beat_scheduler = SCHEDULER
    return make


def runs(app: Celery, task: str) -> list[Message]:
    return [message for message in history(app) if message.task == task]


def stored(at: datetime, use_tz: bool) -> datetime:
    """As Django takes it for this database."""
    return at if use_tz else at.astimezone(timezone.utc).replace(tzinfo=None)


def test_nothing_is_lost_or_made_twice(
    app: Celery, start: Start, database: Database, use_tz: bool
) -> None:
    """Though a row is changed, upon which all are written and read anew, the master dies with a run
    that is not written, and what is to run once is enabled again."""
    at = soon(3 * PERIOD).replace(microsecond=0)
    database.add("e", PERIOD)
    database.add("once", PERIOD, one_off=True)
    database.add("later", 3600, start_time=stored(at, use_tz))
    database.add("other", 3600)
    first = start()
    turn_until(first, lambda: runs(app, "e") and runs(app, "once"))
    database.change("other", description="changed")
    turn_until(first, lambda: len(runs(app, "e")) == 2)
    crash(first)
    second = start()
    turn_until(second, lambda: len(runs(app, "e")) == 3 and not database.get("once").enabled)
    database.change("once", enabled=True)
    turn_until(second, lambda: len(runs(app, "once")) == 2 and not database.get("once").enabled)
    turn_for(second, PERIOD)
    assert len(runs(app, "once")) == 2
    (later,) = runs(app, "later")
    assert later.due == at
    assert check(history(app)) == []
    of_e = past_of(second, "e")
    assert [past.number for past in of_e] == [run.run for run in runs(app, "e")]
    for one, next_one in zip(of_e, of_e[1:]):
        # The clock goes on from when a run was claimed, which may be late, and rounded up.
        apart, late = next_one.due - one.due, one.at - one.due
        assert PERIOD - 0.1 < apart.total_seconds() < 2 * PERIOD - 0.1 + late.total_seconds()
