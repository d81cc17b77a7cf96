"""What celery-once and celery-singleton do where the broker is lost in the midst of a publish, and
where they refuse: docs/integrations.md."""

from __future__ import annotations

import celery_singleton.backends
import pytest
import redis
from celery import Celery
from celery_once import QueueOnce
from celery_singleton import DuplicateTaskError, Singleton

from example_project.servers import Redis, wait_until
from tests.conftest import PATIENCE
from tests.faults import Road

from .conftest import LONG_AGO, Make, every, past_of, turn


@pytest.fixture(autouse=True)
def place(app: Celery, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where both keep their locks."""
    place = redis_server.url(1)
    app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": {"url": place}}
    app.conf.singleton_backend_url = place
    monkeypatch.setattr(celery_singleton.backends, "_backend", None)  # that of another test
    return place


def work() -> None: ...


@pytest.mark.parametrize(
    ("base", "becomes"),
    [
        (QueueOnce, "dropped: cannot be sent, AlreadyQueued: "),
        (Singleton, ""),
    ],
)
def test_a_broker_that_is_lost(
    app: Celery, make: Make, redis_server: Redis, place: str, base: type, becomes: str
) -> None:
    """celery-once does not release the lock of what could not be sent; celery-singleton does."""
    app.task(name="e", base=base, shared=False)(work)  # with no other app
    with Road(redis_server.port) as road:
        app.conf.broker_url = f"redis://127.0.0.1:{road.port}/0"
        one = make(beat_schedule={"e": every(0.5, "e", last_run_at=LONG_AGO)})
        turn(one)
        assert one.metrics.published == 1
        redis.Redis.from_url(place).flushdb()  # as if a worker had done it
        road.cut()
        wait_until(lambda: turn(one) and one.metrics.failed, PATIENCE, "a failure")
        road.open()

        def is_over() -> bool:
            turn(one)
            return all(run.number != 2 for run in one._loop.ledger.outbox.values())

        wait_until(is_over, PATIENCE, "the end of the second run")
    second = next(past for past in past_of(one, "e") if past.number == 2)
    assert (second.note or "").startswith(becomes)
    assert bool(second.note) == bool(becomes)


def test_a_singleton_that_refuses(app: Celery, make: Make) -> None:
    """With `raise_on_duplicate` the history says so."""
    task = app.task(name="e", base=Singleton, raise_on_duplicate=True, shared=False)(work)
    task.delay()
    with pytest.raises(DuplicateTaskError):
        task.delay()
    one = make(beat_schedule={"e": every(3600.0, "e", last_run_at=LONG_AGO)})
    turn(one)
    (past,) = past_of(one, "e")
    assert (past.note or "").startswith("dropped: cannot be sent, DuplicateTaskError: ")
