"""RabbitMQ has an alarm: it takes connections, and reads no more from whoever publishes."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.signals import run_published
from tests.conftest import PATIENCE
from tests.history import messages
from tests.rabbitmq import RabbitMQ

from .conftest import LONG_AGO, Make, every, turn

ENTRIES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _broker(app: Celery, rabbitmq: RabbitMQ) -> None:
    app.conf.broker_write_url = app.conf.broker_url = rabbitmq.url()
    app.conf.zk_beat_publish_deadline = None


def turn_until(scheduler: ZooKeeperScheduler, true: Callable[[], object]) -> None:
    """Turns as the dispatch loop does; none takes long."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        begun = time.monotonic()
        left = scheduler._loop.turn()
        assert time.monotonic() - begun < 2.0  # not the time-out of the socket
        time.sleep(min(max(left, 0), 0.05))


@pytest.mark.parametrize("has_published", [False, True])
def test_one_message_for_each_run(
    app: Celery, make: Make, rabbitmq: RabbitMQ, has_published: bool
) -> None:
    """However long the alarm lasts, and whether it began before the connection or after."""
    schedule = {name: every(36000, name, last_run_at=LONG_AGO) for name in ENTRIES}
    one = make(beat_schedule={"first": every(36000, "first", last_run_at=LONG_AGO)})
    if has_published:
        turn(one)
        assert [message.task for message in messages(rabbitmq.url())] == ["first"]
    rabbitmq.set_alarm()
    one.update_from_dict(schedule)
    turn_until(one, lambda: one.metrics.failed >= 1)
    since = one._loop.dispatcher.publisher.failing_since
    connection = one.connection
    end = time.monotonic() + 6.0  # longer than a time-out of the socket
    turn_until(one, lambda: time.monotonic() > end)
    assert (
        one._loop.dispatcher.publisher.failing_since == since is not None
    )  # so it would make way in time
    assert one.metrics.published == has_published
    rabbitmq.clear_alarm()
    turn_until(one, lambda: not one._loop.ledger.outbox)
    assert one.connection is connection
    assert Counter(message.task for message in messages(rabbitmq.url())) == dict.fromkeys(
        ("first", *ENTRIES), 1
    )
    assert one.metrics.resent == 0
    assert one._loop.dispatcher.publisher.failing_since is None


def test_stopped_meanwhile(app: Celery, make: Make, rabbitmq: RabbitMQ) -> None:
    """It does not wait for the end of the alarm; the next beat sends the run, too: one message of
    each master."""
    schedule = {"a": every(36000, "a", last_run_at=LONG_AGO)}
    one = make(beat_schedule=schedule)
    rabbitmq.set_alarm()
    turn(one)
    assert one._loop.ledger.outbox.keys() == {"a"}
    begun = time.monotonic()
    one.close()
    assert time.monotonic() - begun < 4.0
    rabbitmq.clear_alarm()
    two = make(beat_schedule=schedule)
    turn(two)
    turn_until(two, lambda: not two._loop.ledger.outbox)
    sent = messages(rabbitmq.url())
    assert len({message.id for message in sent}) == 1
    assert len(sent) <= 2


def test_it_dies_meanwhile(app: Celery, make: Make, rabbitmq: RabbitMQ) -> None:
    """What it had not read is gone, and sent again."""
    one = make(beat_schedule={name: every(36000, name, last_run_at=LONG_AGO) for name in ENTRIES})
    rabbitmq.set_alarm()
    turn(one)
    assert one._loop.dispatcher.publisher._on_their_way is not None
    rabbitmq.kill()
    rabbitmq.start()  # without the alarm
    turn_until(one, lambda: not one._loop.ledger.outbox)
    assert Counter(message.task for message in messages(rabbitmq.url())) == dict.fromkeys(
        ENTRIES, 1
    )


def test_its_entry_is_removed_meanwhile(app: Celery, make: Make, rabbitmq: RabbitMQ) -> None:
    """Its message is taken when the alarm ends, and whoever listens is told without its task."""
    one = make(beat_schedule={"a": every(36000, "a", last_run_at=LONG_AGO)})
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def receiver(**event: Any) -> None:
        told.put(event)

    run_published.connect(receiver, sender=one)
    rabbitmq.set_alarm()
    turn_until(one, lambda: one.metrics.failed >= 1)
    del one.schedule["a"]
    rabbitmq.clear_alarm()
    turn_until(one, lambda: not one._loop.ledger.outbox)
    event = told.get(timeout=PATIENCE)
    assert (event["entry"], event["task"]) == ("a", None)
