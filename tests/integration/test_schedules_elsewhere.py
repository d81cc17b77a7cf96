"""``cron`` and ``every`` in the ``beat_schedule`` of other people's schedulers: the rows that they
make, or refuse to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler

from celery_zk_beat.gate.gated import SchedulerFailed, open_gate, scheduler_class
from celery_zk_beat.schedules import cron, every
from example_project.servers import Redis
from tests.stores import Django, RedBeat, SQLAlchemy, Store

from .test_stores import OpenGate

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)

#: Of each entry what becomes of it: the next run after NOON, from a row.
AS_ROWS = {
    "plain": (cron("*/20 5 * * *"), NOON + timedelta(hours=17)),
    "zoned": (cron("30 2 * * 7", "Asia/Kolkata"), datetime(2026, 6, 6, 21, tzinfo=timezone.utc)),
    "keyed": (cron("~ 3 * * *", "UTC", key="tidy"), NOON + timedelta(hours=15, minutes=8)),
    "interval": (every(21600), NOON + timedelta(hours=6)),
}
REFUSED = {
    "last": cron("0 0 L * *"),
    "second": cron("0 0 * * 1#2", "UTC"),
    "either": cron("0 0 1 * 1"),
    "chosen": cron("~ 0 * * *"),
    "offset": every(21600, offset=3600),
}

Make = Callable[[dict[str, Any]], Scheduler]


@pytest.fixture(params=["django_celery_beat", "sqlalchemy_celery_beat"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes the scheduler of a database, anew each time."""
    pytest.importorskip(request.param)
    store: Store
    if request.param == "django_celery_beat":
        store = Django(tmp_path, None)
    else:
        from sqlalchemy_celery_beat.schedulers import session_manager

        session_manager.prepared = False  # that is of another test's database
        store = SQLAlchemy(tmp_path, None)
    yield lambda schedules: _scheduler(store, schedules)
    store.close()


def _scheduler(store: Store, schedules: dict[str, Any]) -> Scheduler:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.result_expires = None
    app.conf.update(store.conf)
    app.conf.beat_schedule = {
        name: {"task": name, "schedule": that} for name, that in schedules.items()
    }
    # By itself a database's class reads crontabs only when their hour is near.
    gate, kind = OpenGate(), scheduler_class(store.scheduler, "scheduler")
    gate.gated = open_gate(kind, gate, app=app, lazy=False)
    return gate.gated


def next_run(entry: Any) -> datetime:
    entry.schedule.nowfun = lambda: NOON
    # In its zone, as its is_due() asks it: Celery before 5.7 stays in the zone of the last run.
    left: timedelta = entry.schedule.remaining_estimate(NOON.astimezone(entry.schedule.tz))
    return NOON + left


def test_rows(make: Make) -> None:
    """Of their own classes, due at the same instants; also as another process reads them."""
    for schedules in ({name: that for name, (that, _) in AS_ROWS.items()}, {}):
        entries = make(schedules).schedule
        assert {name: next_run(entries[name]) for name in AS_ROWS} == {
            name: at for name, (_, at) in AS_ROWS.items()
        }
        assert not any(isinstance(entry.schedule, (cron, every)) for entry in entries.values())


def test_refused(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """What no row can say is left out, and the log says why; the others are there."""
    entries = make({**REFUSED, "plain": AS_ROWS["plain"][0]}).schedule
    assert {*REFUSED, "plain"} & {*entries} == {"plain"}
    assert {*REFUSED, "plain"} & {*make({}).schedule} == {"plain"}
    for reason in ("has no L", "if both days match", "needs cron", "has no offsets"):
        assert reason in caplog.text


def test_redbeat(redis_server: Redis) -> None:
    """Crontabs in the app's zone, and intervals; it ends at its start where they would be wrong."""
    pytest.importorskip("redbeat")
    store = RedBeat(redis_server.url(3))
    good = {name: AS_ROWS[name] for name in ("plain", "interval")}
    from redbeat import RedBeatSchedulerEntry

    _scheduler(store, {name: that for name, (that, _) in good.items()})
    for name, (_, at) in good.items():
        key = RedBeatSchedulerEntry.generate_key(store._app, name)
        assert next_run(RedBeatSchedulerEntry.from_key(key, app=store._app)) == at
    for that in (AS_ROWS["zoned"][0], AS_ROWS["keyed"][0], *REFUSED.values()):
        with pytest.raises(SchedulerFailed, match=r"FieldOfCron is not JSON|has no offsets"):
            _scheduler(store, {"wrong": that})
