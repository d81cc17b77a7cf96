"""What becomes of tracked runs where another scheduler decides what is due. Its clock goes on while
a run is open, and is the same for the next master."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.control import change_pauses
from example_project.servers import Redis
from tests.django_database import Database

from .conftest import every, past_of, turn
from .test_gate import (
    PERSISTENT,
    PLAIN,
    REDBEAT,
    SQLALCHEMY,
    Start,
    configure,
    crash,
    turn_for,
    turn_until,
)
from .test_gate import start as start
from .test_gate_django import SCHEDULER as DJANGO
from .test_outcomes import Worker, folded, headers, skipped
from .test_outcomes import hire as hire
from .test_outcomes import worker as worker

PERIOD = 1.0


@pytest.fixture(params=[PLAIN, PERSISTENT, SQLALCHEMY, REDBEAT, DJANGO], autouse=True)
def behind(
    request: pytest.FixtureRequest, app: Celery, redis_server: Redis, tmp_path: Path
) -> Iterator[None]:
    app.conf.zk_beat_outcomes = "worker"
    if request.param != DJANGO:
        configure(app, request.param, redis_server, tmp_path)
        yield
        return
    pytest.importorskip("django_celery_beat")
    app.conf.zk_beat_scheduler = DJANGO
    app.conf.beat_schedule_filename = None
    database = Database(tmp_path, None)
    yield
    database.close()


def begin(start: Start, policy: dict[str, Any]) -> ZooKeeperScheduler:
    return start(beat_schedule={"e": every(PERIOD)}, zk_beat_policies={"e": policy})


def sent(app: Celery, beat: ZooKeeperScheduler, count: int) -> dict[str, Any]:
    """Waits until so many messages were sent; returns the headers of the last."""
    turn_until(beat, lambda: len(headers(app)) >= count)
    assert len(headers(app)) == count
    return headers(app)[count - 1]


def check_clock(beat: ZooKeeperScheduler) -> None:
    """Asserts that each instant, skipped or not, was due a period after the one before."""
    past = past_of(beat, "e")
    assert len(past) > 2
    for one, following in zip(past, past[1:]):
        # These classes count from when a run was dispatched, which may be late.
        late = (one.at - one.due).total_seconds()
        assert PERIOD - 0.1 < (following.due - one.due).total_seconds() < 2 * PERIOD + late
        assert (following.at - one.at).total_seconds() > PERIOD - 0.1


def test_overlap(app: Celery, start: Start, worker: Worker) -> None:
    """Instants that come while a run is open are skipped, and it is said why; also by the next
    master. The first instant after its end runs."""
    first = begin(start, {"overlap": "skip"})
    header = sent(app, first, 1)
    delivery = worker.begin(header)
    turn_until(first, lambda: len(skipped(first)) == 2)
    assert skipped(first)
    assert all("the run before is still open, since " in (note or "") for note in skipped(first))
    crash(first)
    second = start()
    turn(second)
    turn_until(second, lambda: len(skipped(second)) == 4)
    assert len(headers(app)) == 1
    worker.end(delivery, header)
    following = sent(app, second, 2)
    assert following["zk_beat"]["run"] == 2
    assert folded(second) == [(1, "success")]
    check_clock(second)


def test_deadlines_and_failures(app: Celery, start: Start, worker: Worker) -> None:
    """A run that is late is said to be, and failures in a row pause the entry. Once it is resumed
    it goes on, and what it missed is one run."""
    beat = begin(start, {"start_within": 0.1, "finish_within": 0.4, "pause_after_failures": 2})
    for number in (1, 2):
        header = sent(app, beat, number)
        turn_until(beat, lambda n=number: beat.metrics.late.get("start") == n)  # type: ignore[misc]
        delivery = worker.begin(header)
        turn_until(beat, lambda n=number: beat.metrics.late.get("finish") == n)  # type: ignore[misc]
        worker.end(delivery, header, "failure", error="KeyError")
        turn_until(beat, lambda n=number: len(folded(beat)) == n)  # type: ignore[misc]
    control = beat._loop.control
    assert control.pauses.since("e") is not None
    assert (control.pauses.of("e").by or "").endswith(
        ": 2 runs failed in a row, the last with KeyError"
    )
    count = len(headers(app))  # on a busy machine the next was due before the pause
    turn_for(beat, 2 * PERIOD)
    assert len(headers(app)) == count
    now = datetime.now(timezone.utc)
    resumed = lambda pauses: pauses.resume("e", now, False, "me")  # noqa: E731
    change_pauses(beat.election.session, beat.election.paths, resumed)
    assert sent(app, beat, count + 1)["zk_beat"]["run"] == count + 1
