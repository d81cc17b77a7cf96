"""Entries whose messages cannot be sent: each alone bears it, and nobody takes it for a broker that
is away."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import kombu
import pytest
import redis
from celery import Celery, Task
from celery.beat import BeatLazyFunc
from kombu import Queue

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.runs import Run
from celery_zk_beat.signals import run_dropped
from example_project.servers import Redis, wait_until
from tests.conftest import PATIENCE
from tests.history import messages
from tests.rabbitmq import RabbitMQ

from .conftest import LONG_AGO, Make, every, history, past_of, turn
from .test_together import needs_batches


def turn_until(scheduler: ZooKeeperScheduler, true: Callable[[], object]) -> None:
    """Turns as the dispatch loop does; the broker is never taken to be away meanwhile."""
    turn(scheduler)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(min(max(scheduler._loop.turn(), 0), 0.05))
        assert scheduler._loop.dispatcher.publisher.failing_since is None


def refuse(error: Exception) -> Any:
    def refuse() -> None:
        raise error

    return BeatLazyFunc(refuse)


class AlreadyQueued(Exception):
    """As celery-once has it."""


class Once(Task):
    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        raise AlreadyQueued(7)


def once() -> None:
    pass


@pytest.mark.parametrize("behind", [None, "celery.beat:Scheduler"])
def test_an_instant_is_skipped(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture, behind: str | None
) -> None:
    """As by Celery, where the message cannot be made: the history says why, the schedule goes on,
    and the others are on time. One line in the log for each, without a traceback."""
    app.task(shared=False, name="once", base=Once)(once)
    why: dict[tuple[str, int], str] = {}

    def note(sender: object, entry: str, run: int, reason: str, **kwargs: object) -> None:
        why[entry, run] = reason

    run_dropped.connect(note)
    caplog.set_level(logging.INFO)
    period = 0.5
    one = make(
        zk_beat_scheduler=behind,
        beat_schedule={
            "value": every(period, "value", args=[refuse(ValueError("bad day"))]),
            "json": every(period, "json", args=[object()]),
            "once": every(period, "once"),
            "long": every(period, "long", args=[refuse(KeyError("x" * 100_000))]),
            "queue": every(period, "queue", options={"headers": {"a": object()}}),
            "good": every(period, "good"),
        },
    )
    turn_until(one, lambda: len(history(app)) >= 4)
    assert {message.task for message in history(app)} == {"good"}
    assert [message.run for message in history(app)][:4] == [1, 2, 3, 4]
    one._loop.ledger.flush()
    for entry, said in [
        ("value", "ValueError: bad day"),
        ("json", "Object of type object is not JSON serializable"),
        ("once", "AlreadyQueued: 7"),
        ("long", "KeyError: 'xxx"),
        ("queue", "Object of type object is not JSON serializable"),
    ]:
        state = one._loop.ledger.state(entry)
        assert state is not None
        assert state.total_run_count >= 2  # it runs on at its instants
        notes = [past.note for past in past_of(one, entry) if past.number in (1, 2)]
        assert len(notes) == 2
        assert all(str(note).startswith("dropped: cannot be sent, ") for note in notes)
        assert all(said in str(note) and len(str(note)) < 200 for note in notes)
        lines = [line for line in caplog.messages if line.startswith(f"{entry}: run 1, due ")]
        assert len(lines) == 1
    one._announcer.close()
    assert why["once", 1] == "cannot be sent, AlreadyQueued: 7"
    assert one.metrics.dropped >= 10
    assert not any(record.exc_info for record in caplog.records)


def test_one_that_may_pass_is_tried_again(app: Celery, make: Make) -> None:
    """It is oldest in the outbox, and alone there; no sign of a broker that is away."""
    left = 3

    def argument() -> int:
        nonlocal left
        left -= 1
        if left > 0:
            raise OSError("the file is not there yet")
        return left

    bad = every(3600, "bad", args=[BeatLazyFunc(argument)], last_run_at=LONG_AGO)
    one = make(beat_schedule={"bad": bad})
    turn_until(one, lambda: [message.task for message in history(app)] == ["bad"])
    assert one.metrics.failed == 2


@pytest.mark.parametrize("behind", [None, "celery.beat:Scheduler"])
def test_no_memory_for_one_argument(app: Celery, make: Make, behind: str | None) -> None:
    """It may be there in a moment: the run waits, with its number, and the others go on."""
    raised: list[MemoryError] = []

    def argument() -> int:
        if len([message for message in history(app) if message.task == "good"]) < 3:
            raised.append(MemoryError())
            raise raised[-1]
        return 1

    one = make(
        zk_beat_scheduler=behind,
        beat_schedule={
            "bad": every(3600, "bad", args=[BeatLazyFunc(argument)], last_run_at=LONG_AGO),
            "good": every(0.2, "good"),
        },
    )
    turn_until(one, lambda: "bad" in {message.task for message in history(app)})
    assert raised
    assert one.metrics.failed == len(raised)
    assert one.metrics.dropped == 0
    assert [message.run for message in history(app) if message.task == "bad"] == [1]


def test_a_task_that_sends_by_itself(app: Celery, make: Make) -> None:
    """And meets a broker that is away: the road of all is looked at, and is there."""

    class Own(Task):
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            raise kombu.exceptions.OperationalError("connection refused")

    app.task(shared=False, name="own", base=Own)(once)
    schedule = {"own": every(3600, "own", last_run_at=LONG_AGO), "good": every(0.2, "good")}
    one = make(beat_schedule=schedule)
    turn_until(one, lambda: len(history(app)) >= 3)
    assert "own" in one._loop.ledger.outbox
    assert {message.task for message in history(app)} == {"good"}


def test_redis_refuses(app: Celery, make: Make, redis_server: Redis) -> None:
    """What is under the name of a queue is none, until it is mended."""
    with redis.Redis.from_url(redis_server.url(0)) as server:
        server.set("odd", "no list")
        bad = every(3600, "bad", options={"queue": "odd"}, last_run_at=LONG_AGO)
        one = make(beat_schedule={"bad": bad, "good": every(0.2, "good")})
        turn_until(one, lambda: len(history(app)) >= 3)
        assert "bad" in one._loop.ledger.outbox
        server.delete("odd")
        turn_until(one, lambda: server.exists("odd"))
        (text,) = server.lrange("odd", 0, -1)
        assert json.loads(text)["headers"]["zk_beat"]["run"] == 1


#: What RabbitMQ refuses, by the name of an entry: with a nack; by closing the channel; the same
#: when a queue is declared; by closing the connection.
REFUSED = {
    "full": {"queue": "full"},
    "nowhere": {"exchange": "nowhere", "routing_key": "x"},
    "another": {"queue": "another"},
    "immediate": {"immediate": True},
}


def test_rabbitmq_refuses(
    app: Celery, make: Make, rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """A message, or its queue: the others leave, in the same turn too, and the master stays. What
    it refused leaves once it does not."""
    app.conf.broker_write_url = app.conf.broker_url = url = rabbitmq.url()
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        channel.queue_declare("full", durable=True, auto_delete=False, arguments=full)
        channel.queue_declare("another", durable=False, auto_delete=False)
        connection.Producer(channel).publish("x", exchange="", routing_key="full")
    app.conf.task_queues = [
        Queue("celery"),
        Queue("full", routing_key="full", queue_arguments=full),
        Queue("another", routing_key="another"),
    ]
    app.conf.zk_beat_publish_deadline = 1.0
    bad = {
        name: every(3600, name, options=options, last_run_at=LONG_AGO)
        for name, options in REFUSED.items()
    }
    rest = {f"good{n}": every(3600, f"good{n}", last_run_at=LONG_AGO) for n in range(3)}
    one = make(beat_schedule={**bad, **rest})
    turn(one)
    assert {message.task for message in messages(url)} == rest.keys()
    turn_until(one, lambda: caplog.text.count("could not be published") >= 4 * len(bad))
    assert one._loop.ledger.outbox.keys() == bad.keys()
    assert (
        "does not take the message (basic.nack), perhaps because its queue is full" in caplog.text
    )
    assert one.election.term is not None
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        assert [channel.basic_get("full", no_ack=True).body] == ["x"]
        channel.queue_delete("another")
        channel.exchange_declare("nowhere", "fanout", durable=True, auto_delete=False)
    turn_until(one, lambda: one._loop.ledger.outbox.keys() == {"immediate"})
    assert [message.task for message in messages(url, "full")] == ["full"]
    assert [message.task for message in messages(url, "another")] == ["another"]
    assert one.election.epoch == 1


@pytest.mark.parametrize("what", ["no memory", "a replica"])
def test_redis_takes_nothing_of_anybody(
    app: Celery, make: Make, redis_server: Redis, what: str
) -> None:
    """That is no entry's fault: all wait as for a broker that is away, and none is dropped."""
    app.conf.zk_beat_publish_deadline = None
    with redis.Redis.from_url(redis_server.url(0)) as server:
        one = make(beat_schedule={f"e{n}": every(3600, last_run_at=LONG_AGO) for n in range(20)})
        if what == "no memory":
            server.config_set("maxmemory", 1)
        else:
            server.execute_command("REPLICAOF", "127.0.0.1", "1")
        wait_until(
            lambda: turn(one) is not None and one._loop.dispatcher.publisher.failing_since,
            PATIENCE,
            "a refusal",
        )
        assert not any(run.error for run in one._loop.ledger.outbox.values())
        server.config_set("maxmemory", 0)
        server.execute_command("REPLICAOF", "NO", "ONE")
        wait_until(
            lambda: one._loop.turn() is not None and not one._loop.ledger.outbox,
            PATIENCE,
            "the runs",
        )
    assert one.metrics.dropped == 0
    assert {message.entry for message in history(app)} == {f"e{n}" for n in range(20)}


@pytest.mark.parametrize(
    "conf",
    [
        {"broker_write_url": "redis://127.0.0.1:70000/0"},
        {"broker_write_url": f"amqp://guest:guest@{'a' * 70}.example//"},
    ],
    ids=["no port", "no host name"],
)
def test_a_wrong_setting_of_the_broker(app: Celery, make: Make, conf: dict[str, Any]) -> None:
    """It is no entry's fault either."""
    one = make(beat_schedule={"e": every(3600, last_run_at=LONG_AGO)}, **conf)
    wait_until(lambda: turn(one) is not None and one.metrics.failed > 1, PATIENCE, "two attempts")
    assert list(one._loop.ledger.outbox) == ["e"]
    assert one._loop.dispatcher.publisher.failing_since is not None


def test_one_of_two_queues_refuses(app: Celery, make: Make, rabbitmq: RabbitMQ) -> None:
    """The other has the message: it may have left."""
    app.conf.broker_write_url = app.conf.broker_url = url = rabbitmq.url()
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        channel.exchange_declare("fan", "fanout", durable=True, auto_delete=False)
        channel.queue_declare("taken", durable=True, auto_delete=False, arguments=full)
        channel.queue_declare("free", durable=True, auto_delete=False)
        for queue in ("taken", "free"):
            channel.queue_bind(queue, "fan", "")
        connection.Producer(channel).publish("x", exchange="", routing_key="taken")
    options = {"exchange": "fan", "exchange_type": "fanout", "routing_key": ""}
    one = make(beat_schedule={"e": every(3600, "e", options=options, last_run_at=LONG_AGO)})
    turn_until(one, lambda: one._loop.ledger.outbox["e"].error)
    assert [message.entry for message in messages(url, "free")] == ["e"]
    assert one._loop.dispatcher.publisher.unsent() == []


@needs_batches
def test_one_of_several_that_leave_together_is_refused(
    app: Celery, make: Make, redis_server: Redis
) -> None:
    """The others may have left, and come due again before they leave for certain."""
    with redis.Redis.from_url(redis_server.url(0)) as server:
        options = {"queue": "odd"}
        one = make(beat_schedule={"declared": every(3600, options=options, last_run_at=LONG_AGO)})
        turn(one)
        server.delete("odd")
        server.set("odd", "no list")
        one.update_from_dict(
            {
                "good": every(3600, "good", last_run_at=LONG_AGO),
                "bad": every(3600, "bad", options=options, last_run_at=LONG_AGO),
            }
        )
        note, unsent = one._loop.dispatcher.publisher._note_failed, []

        def noted(runs: list[Run], *args: Any) -> None:
            note(runs, *args)
            unsent.append(one._loop.dispatcher.publisher.unsent())

        one._loop.dispatcher.publisher._note_failed = noted  # type: ignore[assignment]
        turn_until(one, lambda: unsent)
    assert "good" not in unsent[0]


def test_what_was_refused_holds_nobody_up_at_a_take_over(
    app: Celery, make: Make, rabbitmq: RabbitMQ
) -> None:
    """[I12] The next master knows from the outbox what failed by itself, and tries it last."""
    app.conf.broker_write_url = app.conf.broker_url = rabbitmq.url()
    options = {"exchange": "nowhere", "routing_key": "x"}
    entries = {f"bad{n}": every(36000, options=options, last_run_at=LONG_AGO) for n in range(50)}
    one = make(beat_schedule={**entries, "good": every(0.5, "good")})
    turn_until(one, lambda: sum(bool(run.error) for run in one._loop.ledger.outbox.values()) >= 50)
    one._loop.say_goodbye()
    one.election.stop()
    two = make()
    turn_until(two, lambda: two.metrics.published > 0)
    assert two.metrics.failed < 50
