"""Beat needs no result: nothing is left of a run in the result backend, and one that is away holds
nothing up."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import Celery

from example_project.processes import LOOPBACK, free_port
from example_project.servers import Redis

from .conftest import LONG_AGO, Make, every, history, turn

#: What is asked of the message, and which scheduler is behind the election. The first is made in
#: the short way, the others by Celery's own functions.
WAYS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"expires": 3600}, None),
    ({}, "celery.beat:Scheduler"),
]


def known() -> None:
    pass


def dispatch(app: Celery, make: Make, options: dict[str, Any], behind: str | None) -> None:
    """Ten runs, half of them of tasks that the app has."""
    app.task(shared=False, name="known")(known)
    tasks = ["known", "unknown"] * 5
    schedule = {
        f"e{n}": every(36000, task, options=options, last_run_at=LONG_AGO)
        for n, task in enumerate(tasks)
    }
    scheduler = make(zk_beat_scheduler=behind, beat_schedule=schedule)
    for _ in tasks:  # Celery's own dispatches one at each tick
        turn(scheduler)
    assert sorted(message.task for message in history(app)) == sorted(tasks)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("options", "behind"), WAYS)
def test_nothing_is_left_in_redis(
    app: Celery,
    make: Make,
    redis_server: Redis,
    options: dict[str, Any],
    behind: str | None,
    shared: bool,
) -> None:
    """A subscription to each result would stay for ever."""
    app.conf.update(result_backend=redis_server.url(1), result_backend_thread_safe=shared)
    dispatch(app, make, options, behind)
    with redis.Redis.from_url(redis_server.url(1)) as server:
        assert server.pubsub_channels() == []
        assert {client["sub"] for client in server.client_list()} == {"0"}
        assert server.keys() == []


@pytest.mark.parametrize(("options", "behind"), WAYS)
def test_it_is_away(app: Celery, make: Make, options: dict[str, Any], behind: str | None) -> None:
    """Celery would try for 20 s to reach it, for each message."""
    app.conf.result_backend = f"redis://{LOOPBACK}:{free_port()}/1"
    dispatch(app, make, options, behind)
    assert app.backend.result_consumer._pubsub is None
