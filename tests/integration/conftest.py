"""Schedulers that a test turns step by step, on a real ZooKeeper and Redis. If the time matters,
the test has its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import schedule

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.beat_schedule import BeatSchedule
from celery_zk_beat.gate.entries import GatedEntries
from celery_zk_beat.gate.gated import Gated
from celery_zk_beat.history import decode_volume, merged
from celery_zk_beat.paths import page_of, volume_of
from celery_zk_beat.planner import Planner
from celery_zk_beat.runs import PastRun, RunState
from example_project.servers import Redis, ZooKeeper, free_port
from tests.conftest import PATIENCE
from tests.history import Message, messages

BERLIN = ZoneInfo("Europe/Berlin")

Make = Callable[..., ZooKeeperScheduler]


@pytest.fixture
def app(zookeeper: ZooKeeper, redis_server: Redis, root: str) -> Celery:
    app = Celery("shop", broker=redis_server.url(0), set_as_current=False)
    app.conf.zk_beat_hosts = zookeeper.hosts
    app.conf.zk_beat_root = root
    app.conf.zk_beat_session_timeout = 4.0
    app.conf.result_expires = None  # no entry of Celery's own
    app.conf.zk_beat_fast_takeover = False  # the guard would guard this process
    return app


@pytest.fixture
def make(app: Celery) -> Iterator[Make]:
    """Makes schedulers that the test turns. The first becomes master."""
    made: list[ZooKeeperScheduler] = []

    def make(**conf: Any) -> ZooKeeperScheduler:
        app.conf.update(conf)
        scheduler = ZooKeeperScheduler(app=app)
        made.append(scheduler)
        scheduler.election.start(PATIENCE)
        return scheduler

    yield make
    for scheduler in made:
        scheduler.close()
        # On this thread, which opened it: no other thread, such as one that collects garbage, may
        # close a file of PersistentScheduler that is an SQLite (Python 3.13).
        if scheduler._thread is None:
            scheduler._loop.forget()


def turn(scheduler: ZooKeeperScheduler) -> float:
    """Does one turn as master, and looks at every entry again."""
    assert scheduler.election.wait(PATIENCE)
    scheduler._names.is_current = False
    return scheduler._loop.turn()


def away(app: Celery) -> str:
    """Takes the broker away. Returns where it was."""
    good: str = app.conf.broker_url
    app.conf.broker_write_url = app.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    return good


def back(app: Celery, good: str, scheduler: ZooKeeperScheduler) -> None:
    """Brings the broker back, for a scheduler that need not wait before it tries again."""
    app.conf.broker_write_url = app.conf.broker_url = good
    scheduler._broker.drop()
    scheduler._loop.dispatcher.publisher.forget_failures()


def history(app: Celery) -> list[Message]:
    return messages(app.conf.broker_url)


def state_of(scheduler: ZooKeeperScheduler, entry: str) -> RunState:
    """Returns the master's state of an entry that has one."""
    state: RunState | None = scheduler._loop.ledger.state(entry)
    assert state is not None
    return state


def past_of(scheduler: ZooKeeperScheduler, entry: str) -> tuple[PastRun, ...]:
    """Returns the past runs of an entry, from its history and its state."""
    path = scheduler.election.paths.volume(volume_of(page_of(entry)))
    node = scheduler.election.session.read(path)
    pasts = {} if node is None else decode_volume(path, node.data)
    return merged(pasts.get(entry, ()), state_of(scheduler, entry).past)


def every(seconds: float, task: str = "task", **more: Any) -> dict[str, Any]:
    return {"task": task, "schedule": seconds, **more}


LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)


class Again(schedule):
    """Always due, and to be asked again after so many seconds."""

    def __init__(self, every: float, delay: Any) -> None:
        super().__init__(every)
        self.delay = delay

    def is_due(self, last_run_at: datetime) -> Any:
        return True, self.delay


class Clock:
    """Stands still until the test moves it."""

    def __init__(self, local: str, zone: ZoneInfo = BERLIN) -> None:
        self.zone = zone
        self.now = datetime.fromisoformat(local).replace(tzinfo=zone).astimezone(timezone.utc)

    def __call__(self) -> datetime:
        return self.now.astimezone(self.zone)


def planner_of(scheduler: ZooKeeperScheduler) -> Planner:
    """Returns what decides which of the entries are due."""
    assert isinstance(scheduler._loop.source, BeatSchedule)
    return scheduler._loop.source._planner


def gated_of(scheduler: ZooKeeperScheduler) -> Gated | None:
    """Returns the other scheduler behind this one; None if it is not master."""
    assert isinstance(scheduler._loop.source, GatedEntries)
    return scheduler._loop.source._opened
