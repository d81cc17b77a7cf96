"""django-celery-beat's DatabaseScheduler behind the election, turned by hand, on SQLite: what its
admin and its own ways with one-off entries have to do with a failover."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.control import change_pauses
from example_project.servers import free_port
from tests.django_database import Database

from .conftest import Make, history
from .test_gate import PERIOD, crash, turn_for, turn_until

SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    pytest.importorskip("django_celery_beat")
    database = Database(tmp_path, None)
    yield database
    database.close()


@pytest.fixture
def start(app: Celery, make: Make, database: Database) -> Callable[..., ZooKeeperScheduler]:
    app.conf.zk_beat_scheduler = SCHEDULER
    return make


@pytest.fixture
def broker(app: Celery) -> Broker:
    return Broker(app)


class Broker:
    """To be away, and back again."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.url = app.conf.broker_url

    def is_away(self) -> None:
        self.app.conf.broker_url = f"redis://127.0.0.1:{free_port()}"
        self.app.amqp.__dict__.pop("_producer_pool", None)

    def is_back(self, scheduler: ZooKeeperScheduler) -> None:
        self.app.conf.broker_url = self.url
        self.app.amqp.__dict__.pop("_producer_pool", None)
        scheduler._drop_connection()
        scheduler._back_off.clear()


def soon(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def test_a_one_off_waits_for_the_broker(
    app: Celery, start: Any, database: Database, broker: Broker
) -> None:
    """Though all entries are asked meanwhile whether they are due."""
    broker.is_away()
    database.add("e", PERIOD, one_off=True)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._ledger.outbox)
    database.add("other", 3600)
    turn_until(scheduler, lambda: "other" in scheduler.schedule)
    turn_for(scheduler, 0.5)
    broker.is_back(scheduler)
    turn_until(scheduler, lambda: history(app))
    turn_until(scheduler, lambda: not database.get("e").enabled)
    assert [run.run for run in history(app)] == [1]


def test_a_one_off_that_ran_is_not_repeated(app: Celery, start: Any, database: Database) -> None:
    database.add("first", 0.5, enabled=True)
    database.add("e", PERIOD, one_off=True)
    first = start()
    turn_until(first, lambda: any(run.task == "e" for run in history(app)))
    assert database.get("e").total_run_count == 0
    crash(first)
    second = start()
    turn_until(second, lambda: not database.get("e").enabled)
    turn_for(second, PERIOD)
    assert len([run for run in history(app) if run.task == "e"]) == 1


def test_its_table_refuses_a_row(app: Celery, start: Any, database: Database) -> None:
    """A run that was published is published, though its scheduler could not write."""
    from django_celery_beat.models import ClockedSchedule, PeriodicTask

    database.add("e", PERIOD)
    clocked, _ = ClockedSchedule.objects.get_or_create(clocked_time=soon(-3600))
    PeriodicTask.objects.update(clocked=clocked)  # two kinds of schedule: it cannot be saved
    scheduler = start(beat_sync_every=1)
    turn_until(scheduler, lambda: history(app))
    turn_for(scheduler, 1)
    assert [run.run for run in history(app)] == [1]


def test_a_one_off_that_is_enabled_again(app: Celery, start: Any, database: Database) -> None:
    """With a start, it is taken for one that never ran."""
    database.add("e", PERIOD, one_off=True, start_time=soon(0.5))
    scheduler = start()
    turn_until(scheduler, lambda: not database.get("e").enabled)
    assert len(history(app)) == 1
    database.change("e", enabled=True, start_time=soon(1.0))
    turn_until(scheduler, lambda: len(history(app)) == 2)


def test_a_start_given_later(app: Celery, start: Any, database: Database) -> None:
    """To an entry that is known and has not run."""
    database.add("e", 3600, one_off=True)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._ledger.state("e"))
    database.change("e", start_time=soon(1.0))
    turn_until(scheduler, lambda: history(app))


def test_a_store_without_time_zones(
    app: Celery,
    start: Any,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told in its own manner what ran."""
    from django.conf import settings

    monkeypatch.setattr(settings, "USE_TZ", False)
    monkeypatch.setattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", False, raising=False)
    database.disconnect()
    database.add("e", PERIOD)
    database.add("other", 0.7)
    first = start()
    turn_until(first, lambda: any(run.task == "e" for run in history(app)))
    crash(first)
    second = start(beat_sync_every=1)
    turn_until(second, lambda: len([r for r in history(app) if r.task == "e"]) == 2)
    assert "could not write to its store" not in caplog.text
    one, two = [r for r in history(app) if r.task == "e"]
    assert PERIOD - 0.1 < (two.due - one.due).total_seconds() < PERIOD + 1


@pytest.mark.parametrize("change", ["deleted", "disabled", "disabled meanwhile"])
def test_an_entry_that_is_gone(
    app: Celery, start: Any, database: Database, broker: Broker, change: str
) -> None:
    """A run of it that waits for the broker does not wait for ever, nor for another of its name."""
    broker.is_away()
    database.add("e", PERIOD)
    database.add("other", 3600)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._ledger.outbox)
    if change == "disabled meanwhile":
        crash(scheduler)
    if change == "deleted":
        database.get("e").delete()
    else:
        database.change("e", enabled=False)
    if change == "disabled meanwhile":
        scheduler = start()
    turn_until(scheduler, lambda: scheduler._gated and not scheduler._ledger.outbox)
    assert scheduler._ledger.state("e").dropped == (1,)


def test_an_entry_that_was_made_anew(
    app: Celery, start: Any, database: Database, broker: Broker
) -> None:
    """A run of the one before, which waits, is not one of the new."""
    broker.is_away()
    database.add("e", PERIOD)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._ledger.outbox)
    database.get("e").delete()
    database.add("e", PERIOD, task="anew", start_time=soon(3600))
    turn_until(scheduler, lambda: scheduler.schedule["e"].task == "anew")
    broker.is_back(scheduler)
    turn_for(scheduler, 1)
    assert history(app) == []
    assert scheduler._ledger.state("e").dropped == (1,)


def test_what_is_changed_when_it_is_due(app: Celery, start: Any, database: Database) -> None:
    database.add("e", PERIOD, task="before")
    scheduler = start()
    turn_until(scheduler, lambda: history(app))
    time.sleep(PERIOD)
    database.change("e", task="after")
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert history(app)[1].task == "after"


def test_an_entry_that_is_added_can_be_asked_for(
    app: Celery, start: Any, database: Database
) -> None:
    database.add("other", 3600)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._gated)
    database.add("e", 3600)
    turn_until(scheduler, lambda: "e" in scheduler.schedule)
    assert scheduler._ledger.state("e") is not None
    assert scheduler.metrics.entries == 2


def test_what_is_due_at_another_hour(app: Celery, start: Any, database: Database) -> None:
    """Is known all day: operators ask for it, and its state is not one that nobody names."""
    from django_celery_beat.models import CrontabSchedule

    hour = (datetime.now(timezone.utc).hour + 12) % 24
    crontab, _ = CrontabSchedule.objects.get_or_create(hour=str(hour), minute="0", timezone="UTC")
    database.add("nightly", 60, interval=None, crontab=crontab)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._gated)
    assert "nightly" in scheduler.schedule


def test_resumed_without_catching_up(app: Celery, start: Any, database: Database) -> None:
    """What is still to come was not missed."""
    start_time = soon(PERIOD)
    database.add("e", 3600, one_off=True, start_time=start_time)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._gated)
    election = scheduler._election
    for change in (
        lambda pauses: pauses.pause(None, soon(0)),
        lambda pauses: pauses.resume(None, soon(0), True),
    ):
        change_pauses(election.session, election.paths, change)
    turn_until(scheduler, lambda: history(app))
    (run,) = history(app)
    assert run.due == start_time
