"""Messages that leave together, and runs that are claimed ahead of time; turned by hand, on a real
ZooKeeper and Redis."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Producer

from celery_zk_beat import ZooKeeperScheduler, planner, publishing
from celery_zk_beat.broker import MOST_TOGETHER
from celery_zk_beat.messages import Sender
from celery_zk_beat.signals import run_published
from example_project.servers import Redis, wait_until
from tests.conftest import PATIENCE
from tests.history import check

from .conftest import LONG_AGO, Make, every, history, state_of, turn

needs_batches = pytest.mark.skipif(
    not hasattr(Producer, "supports_batch_publish"), reason="kombu before 5.7"
)


def due(*names: str, **more: object) -> dict[str, object]:
    return {name: every(3600, name, last_run_at=LONG_AGO, **more) for name in names}


@needs_batches
def test_all_of_them(app: Celery, make: Make) -> None:
    """Each once, and each is announced."""
    names = [f"e{number}" for number in range(350)]
    one = make(beat_schedule=due("first"))
    turn(one)
    one.update_from_dict(due(*names))
    announced = []

    def note(entry: str, **kwargs: object) -> None:
        announced.append(entry)

    run_published.connect(note)
    try:
        assert one._broker.most_together == MOST_TOGETHER
        wait_until(
            lambda: one._loop.turn() is not None and len(announced) == len(names),
            PATIENCE,
            "all signals",
        )
    finally:
        run_published.disconnect(note)
    assert sorted(announced) == sorted(names)
    assert sorted(message.task for message in history(app)) == sorted(["first", *names])
    assert check(history(app)) == []
    assert one._loop.ledger.outbox == {}


@needs_batches
def test_one_that_cannot_be_made(app: Celery, make: Make) -> None:
    """It holds up none of those that leave with it."""
    one = make(beat_schedule=due("first"))
    turn(one)
    one.update_from_dict({**due("a", "b"), **due("bad", args=[object()]), **due("y", "z")})
    turn(one)
    assert sorted(message.task for message in history(app)) == ["a", "b", "first", "y", "z"]
    assert one._loop.ledger.outbox == {}
    assert one.metrics.dropped == 1


def test_a_queue_that_is_nowhere(app: Celery, make: Make) -> None:
    """It is one entry's fault, though kombu takes a KeyError for one of the connection."""
    one = make(beat_schedule=due("first"), task_create_missing_queues=False)
    turn(one)
    producer = one.producer
    one.update_from_dict({**due("a", "z"), **due("bad", options={"queue": "nowhere"})})
    turn(one)
    assert sorted(message.task for message in history(app)) == ["a", "first", "z"]
    assert one._loop.ledger.outbox == {}
    assert one.metrics.dropped == 1
    assert one._loop.dispatcher.publisher.failing_since is None
    assert one.producer is producer


@needs_batches
def test_one_that_the_broker_refuses(app: Celery, make: Make, redis_server: Redis) -> None:
    """What leaves together may fail because of one. All is in doubt then, and sent again, each by
    itself and with the same id: once, though the one fails each time."""
    one = make(beat_schedule=due("first", options={"queue": "refusing"}))
    turn(one)
    with redis.Redis.from_url(redis_server.url(0)) as server:
        server.set("refusing", "no list any more")
    good = {f"e{number}" for number in range(5)}
    one.update_from_dict({**due(*good), **due("bad", options={"queue": "refusing"})})
    wait_until(
        lambda: one._loop.turn() is not None and list(one._loop.ledger.outbox) == ["bad"],
        PATIENCE,
        "others",
    )
    sent = [message for message in history(app) if message.task in good]
    assert {message.task for message in sent} == good
    assert max(Counter(message.task for message in sent).values()) <= 2
    assert len({(message.task, message.id) for message in sent}) == len(good)


def claimed_ahead(
    make: Make, also: dict[str, object] | None = None, **conf: object
) -> tuple[ZooKeeperScheduler, datetime]:
    """A scheduler that has claimed a run which is due in a moment: then, and not before."""
    one = make(beat_schedule={"e": every(3600), **(also or {})}, **conf)
    assert one.election.wait(PATIENCE)
    # Only now, for a beat that is made after it was due publishes at once.
    at = datetime.now(timezone.utc) + timedelta(seconds=0.9)
    one.schedule["e"].last_run_at = at - timedelta(hours=1)
    wait_until(
        lambda: one._loop.turn() is not None and one._loop.ledger.outbox, PATIENCE, "a claim"
    )
    return one, at


def test_not_before_it_is_due(app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    one, at = claimed_ahead(make)
    while history(app) == []:
        sent_after = datetime.now(timezone.utc)
        one._loop.turn()
    assert datetime.now(timezone.utc) >= at
    assert sent_after > at - timedelta(milliseconds=500)
    (message,) = history(app)
    assert message.due == at
    assert state_of(one, "e").last_run_at == at


@needs_batches
def test_made_before_it_is_due(app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is made by then, and leaves then."""
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    monkeypatch.setattr(publishing, "_MAKE_AHEAD", 0.5)
    made = []
    one, at = claimed_ahead(make, due("first"))
    send = Sender._send

    def note(self: Sender, *args: Any) -> None:
        send(self, *args)
        made.append((datetime.now(timezone.utc), len(history(app))))

    monkeypatch.setattr(Sender, "_send", note)
    wait_until(lambda: one._loop.turn() is not None and made, PATIENCE, "a message")
    assert datetime.now(timezone.utc) >= at
    ((when, sent),) = made
    assert when < at
    assert sent == len(history(app)) - 1


@pytest.mark.parametrize("late", [False, True])
def test_a_stop_leaves_nothing_that_was_claimed_ahead(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The next master would take it for one that was perhaps published, and may drop it."""
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    one, at = claimed_ahead(make, zk_beat_recovery="drop")
    assert history(app) == []
    if late:  # and its turn had not come yet
        wait_until(lambda: datetime.now(timezone.utc) > at, PATIENCE, "the instant")
    one._loop.dispatcher.close(60)
    one._loop.say_goodbye()
    assert datetime.now(timezone.utc) >= at
    one.close()
    turn(make())
    assert len(history(app)) == 1


def test_a_stop_does_not_publish_for_ever(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is slow costs the time in which to note what was published."""
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    one, _ = claimed_ahead(make)
    one._loop.dispatcher.close(0)
    one._loop.say_goodbye()
    one.close()
    assert history(app) == []
    two = make()
    wait_until(lambda: two._loop.turn() is not None and history(app), PATIENCE, "the next master")


def test_one_of_a_clock_that_was_ahead(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another master claimed for an instant far away is not held back until then."""
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    one, _ = claimed_ahead(make)
    (run,) = one._loop.ledger.outbox.values()
    far = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert publishing.early(run, run.due - timedelta(seconds=0.5)) == pytest.approx(0.5)
    assert publishing.early(run, run.due - timedelta(seconds=30)) == 0.0
    assert publishing.early(run, far) == 0.0
