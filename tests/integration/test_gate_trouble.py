"""A scheduler behind the election whose store is away, turned by hand: what the log says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from celery_zk_beat.gate import trouble
from example_project.servers import PostgreSQL, Redis
from tests.django_database import Database

from .conftest import history
from .test_gate import PERIOD, REDBEAT, Start, configure, turn_for, turn_until
from .test_gate import start as start
from .test_gate_django import SCHEDULER

#: What the log may say of it, for as long as a test has it be away.
AWAY, FAILED = "DatabaseScheduler continues with what it has read", "RedBeatScheduler failed"


@pytest.fixture(autouse=True)
def soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "_OVER_AFTER", 1.0)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is more than an everyday matter."""
    assert "Traceback" not in caplog.text
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    with Redis(tmp_path, name="own") as server:
        yield server


def test_redis_of_redbeat(
    app: Celery,
    start: Start,
    own_redis: Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fails, and is made anew each second."""
    own_redis.start()
    configure(app, REDBEAT, own_redis, tmp_path)
    scheduler = start(beat_schedule={"e": {"task": "e", "schedule": PERIOD}})
    turn_until(scheduler, lambda: history(app))
    caplog.clear()
    own_redis.stop()
    turn_for(scheduler, 4.0)
    (line,) = lines(caplog)
    assert line.startswith(f"{FAILED}: ConnectionError: ")
    own_redis.start()
    turn_until(scheduler, lambda: len(lines(caplog)) > 1)
    assert lines(caplog)[1].startswith("RedBeatScheduler works again, after ")
    before = len(history(app))
    turn_until(scheduler, lambda: len(history(app)) > before)


def test_database_of_django(
    app: Celery,
    start: Start,
    own_postgresql: PostgreSQL,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on, and has a traceback for each of several looks a second."""
    pytest.importorskip("django_celery_beat")
    database = Database(tmp_path, own_postgresql)
    try:
        app.conf.zk_beat_scheduler = SCHEDULER
        database.add("e", 1)
        scheduler = start()
        turn_until(scheduler, lambda: history(app))
        caplog.clear()
        own_postgresql.stop()
        before = len(history(app))
        turn_for(scheduler, 3.0)
        assert len(history(app)) > before
        (line,) = lines(caplog)
        assert line.startswith(AWAY)
        own_postgresql.start()
        turn_until(scheduler, lambda: len(lines(caplog)) > 1)
        assert lines(caplog)[1].startswith("DatabaseScheduler works again, after ")
    finally:
        database.close()
