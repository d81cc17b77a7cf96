"""Runs that leave for RabbitMQ together: each has its own answer, whatever happens in between."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import kombu
import pytest
from celery import Celery
from celery.signals import after_task_publish
from kombu import Queue

from celery_zk_beat import ZooKeeperScheduler, broker, confirms
from celery_zk_beat.broker import MOST_TOGETHER
from celery_zk_beat.errors import NotMaster
from tests.conftest import PATIENCE
from tests.faults import Road
from tests.history import messages
from tests.rabbitmq import RabbitMQ, missing_rabbitmq

from .conftest import LONG_AGO, Make, every, turn

#: How many messages are written together with `small_parts`.
PART = 13
NAMES = [f"e{number:02}" for number in range(100)]
#: A full queue, which refuses what is published to it.
FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One for all tests, because it takes seconds to start."""
    missing = missing_rabbitmq()
    if missing and not os.environ.get("CI"):
        pytest.skip(missing)
    with RabbitMQ(tmp_path_factory.mktemp("confirms")) as server:
        yield server.start()


@pytest.fixture
def url(server: RabbitMQ) -> Iterator[str]:
    yield server.url()
    server.clear_alarm()
    with kombu.Connection(server.url()) as connection:
        connection.channel().queue_delete("celery")
        connection.channel().queue_delete("full")


@pytest.fixture
def road(server: RabbitMQ, url: str) -> Iterator[Road]:
    with Road(server.port) as road:
        yield road


@pytest.fixture(autouse=True)
def _broker(app: Celery, road: Road) -> None:
    app.conf.broker_write_url = app.conf.broker_url = f"amqp://guest:guest@{road.hosts}//"
    app.conf.zk_beat_publish_deadline = None


def due(*names: str, **more: Any) -> dict[str, Any]:
    return {name: every(36000, name, last_run_at=LONG_AGO, **more) for name in names}


def connected(make: Make, **conf: Any) -> ZooKeeperScheduler:
    """A master that has published a message. It was the first, and so it left alone."""
    scheduler = make(beat_schedule=due("first"), **conf)
    turn(scheduler)
    assert scheduler.metrics.published == 1
    return scheduler


def turn_until(scheduler: ZooKeeperScheduler, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(min(max(scheduler._loop.turn(), 0), 0.05))


def turn_until_all_are_out(
    scheduler: ZooKeeperScheduler, but: frozenset[str] = frozenset()
) -> None:
    turn(scheduler)
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox.keys() <= but)


def counted(url: str) -> Counter[str]:
    """How many messages each entry has. No two ids of one run."""
    all_ = messages(url)
    assert len({message.id for message in all_}) == len({message.entry for message in all_})
    return Counter(message.entry for message in all_)


def once(*names: str) -> Counter[str]:
    return Counter(["first", *names])


def full_queue(url: str) -> list[Queue]:
    """Makes a queue that takes nothing."""
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        channel.queue_declare("full", durable=True, auto_delete=False, arguments=FULL)
        connection.Producer(channel).publish("x", exchange="", routing_key="full")
    return [Queue("celery"), Queue("full", routing_key="full", queue_arguments=FULL)]


class Writes:
    """What is written at once: calls `hook`, with how often it was called, before each time."""

    def __init__(self, scheduler: ZooKeeperScheduler, hook: Callable[[int], object]) -> None:
        self.count = 0
        assure = scheduler._broker._assure

        def begin() -> None:
            self.count += 1
            hook(self.count)
            assure()

        scheduler._broker._assure = begin


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is some 760 bytes: 100 of them are written in eight parts."""
    monkeypatch.setattr(confirms, "_MOST_BYTES", 10_000)


def test_a_burst(make: Make, url: str) -> None:
    """All once, and few writes: a message alone would have one of its own."""
    one = connected(make)
    assert one._broker.most_together == MOST_TOGETHER
    names = [f"e{number}" for number in range(1000)]
    writes = Writes(one, lambda count: None)
    one.update_from_dict(due(*names))
    turn_until_all_are_out(one)
    assert counted(url) == once(*names)
    assert writes.count <= 30
    assert (one.metrics.failed, one.metrics.resent) == (0, 0)


@pytest.mark.usefixtures("small_parts")
def test_the_connection_is_lost_in_the_middle(make: Make, url: str, road: Road) -> None:
    """Of what is being written some may have arrived: that is sent again, alone. What was confirmed
    before is not, and what was not written is sent once."""
    one = connected(make)

    def cut(count: int) -> None:
        if count in (3, 12):
            road.cut()
            road.open()

    Writes(one, cut)
    one.update_from_dict(due(*NAMES))
    turn_until_all_are_out(one)
    assert counted(url) == once(*NAMES)  # it was cut before anything of the part arrived
    assert one.metrics.failed > 0


@pytest.mark.usefixtures("small_parts")
def test_answers_are_lost(make: Make, url: str, road: Road) -> None:
    """Exactly what was not confirmed is sent again, with the same ids."""
    one = connected(make, broker_transport_options={"read_timeout": 0.5})
    lost: list[int] = []

    def lose(count: int) -> None:
        if count == 4:
            lost.append(one.metrics.published)
            road.block_answers()
        elif lost and count == 5:
            road.open()

    Writes(one, lose)
    one.update_from_dict(due(*NAMES))
    turn(one)
    road.cut()
    road.open()
    taken = one.metrics.published - 1
    assert taken == 3 * PART
    turn_until_all_are_out(one)
    count = counted(url)
    assert count.keys() == once(*NAMES).keys()
    twice = [name for name, times in count.items() if times > 1]
    assert len(twice) == PART
    assert max(count.values()) == 2
    # Those that were not written are sent alone, too: nobody knows what ended the connection.
    assert one.metrics.resent == len(NAMES) - taken


@pytest.mark.parametrize("seed", range(3))
def test_the_connection_is_lost_again_and_again(
    make: Make, url: str, road: Road, seed: int
) -> None:
    """At any instant: no run is lost, and only what was under way is sent twice."""
    one = connected(make)
    names = [f"e{number}" for number in range(500)]
    random, writing, cuts = Random(seed), threading.Event(), 5

    def cut() -> None:
        for _ in range(cuts):
            assert writing.wait(PATIENCE)
            time.sleep(random.uniform(0, 0.005))  # writing and waiting take some milliseconds
            road.cut()
            road.open()
            writing.clear()

    Writes(one, lambda count: writing.set())
    one.update_from_dict(due(*names))
    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(cut)
        turn_until_all_are_out(one)
        cutting.result(PATIENCE)
    count = counted(url)
    assert count.keys() == once(*names).keys()
    assert max(count.values()) <= 1 + cuts
    assert one.metrics.failed >= cuts


def test_one_of_many_is_refused(make: Make, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """By a nack: it alone waits, and the others have one message."""
    one = connected(make, task_queues=full_queue(url))
    good = [name for name in NAMES if name != "e50"]
    one.update_from_dict({**due(*NAMES), **due("e50", options={"queue": "full"})})
    turn_until_all_are_out(one, frozenset({"e50"}))
    assert counted(url) == once(*good)
    assert one._loop.dispatcher.publisher.failing_since is None
    assert one._loop.dispatcher.publisher.unsent() == []  # another queue may have it
    assert "e50: run 1 could not be published" in caplog.text
    assert caplog.text.count("could not be published") == one.metrics.failed
    connection = one.connection
    with kombu.Connection(url) as other:
        other.channel().queue_purge("full")
    turn_until_all_are_out(one)
    assert [message.entry for message in messages(url, "full")] == ["e50"]
    assert one.connection is connection


@pytest.mark.parametrize(
    "options",
    [
        {"exchange": "nowhere", "routing_key": "x"},
        {"immediate": True},
        {"mandatory": True, "exchange": "amq.fanout", "routing_key": "x"},
    ],
    ids=["no exchange", "not implemented", "returned"],
)
def test_one_of_many_ends_the_channel(
    make: Make, url: str, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    """RabbitMQ does not say because of which message. So it went alone, and it alone waits."""
    one = connected(make)
    good = [name for name in NAMES if name != "e50"]
    one.update_from_dict({**due(*NAMES), **due("e50", options=options)})
    turn_until_all_are_out(one, frozenset({"e50"}))
    assert counted(url) == once(*good)
    assert one.metrics.resent == 0
    assert one._loop.dispatcher.publisher.failing_since is None
    lines = [line for line in caplog.messages if "could not be published" in line]
    assert lines
    assert all(line.startswith("e50: run 1 could not") for line in lines)
    assert one._loop.dispatcher.publisher.unsent() == ["e50"]


def test_a_known_exchange_is_deleted(
    make: Make, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written with its message is in doubt then, and sent again, each alone."""
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        channel.exchange_declare("gone", "fanout", durable=True, auto_delete=False)
        one = connected(make)
        options = {"exchange": "gone", "routing_key": "x"}
        one.update_from_dict(due("known", options=options))
        turn_until_all_are_out(one)
        channel.exchange_delete("gone")
    good = [name for name in NAMES if name != "e50"]
    one.update_from_dict({**due(*NAMES), **due("e50", options=options)})
    turn_until_all_are_out(one, frozenset({"e50"}))
    count = counted(url)  # without "known", which went nowhere
    assert count.keys() == once(*good).keys()
    assert max(count.values()) == 2
    assert one._loop.dispatcher.publisher.is_at_fault("e50")
    assert not any(one._loop.dispatcher.publisher.is_at_fault(name) for name in good)


def test_a_queue_that_cannot_be_declared(make: Make, url: str) -> None:
    """That is seen while messages are made: the others leave in the same turn."""
    with kombu.Connection(url) as connection:
        connection.channel().queue_declare("another", durable=False, auto_delete=False)
    one = connected(make)
    good = [name for name in NAMES if name != "e50"]
    one.update_from_dict({**due(*NAMES), **due("e50", options={"queue": "another"})})
    turn(one)
    assert counted(url) == once(*good)
    assert (one.metrics.failed, one.metrics.resent) == (1, 0)
    assert list(one._loop.ledger.outbox) == ["e50"]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("ends", ["it ends", "RabbitMQ dies"])
def test_an_alarm_in_the_middle(make: Make, url: str, server: RabbitMQ, ends: str) -> None:
    """What is on its way then has one message in the end; the rest leaves afterwards."""
    one = connected(make)
    Writes(one, lambda count: server.set_alarm() if count == 4 else None)
    one.update_from_dict(due(*NAMES))
    turn(one)
    waiting = one._loop.dispatcher.publisher._on_their_way
    assert waiting is not None
    assert len(waiting.runs) == PART
    taken = one.metrics.published - 1
    assert taken == 3 * PART
    connection = one.connection
    if ends == "RabbitMQ dies":
        server.kill()
        server.start()  # without the alarm
    else:
        server.clear_alarm()
    turn_until_all_are_out(one)
    assert counted(url) == once(*NAMES)
    if ends == "it ends":
        assert one.connection is connection
        assert one.metrics.resent == len(NAMES) - taken - PART  # not what was on its way


def test_nothing_else_leaves_under_an_alarm(
    make: Make, url: str, server: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even in the same turn: the answers to what is on its way would be mistaken for others."""
    monkeypatch.setattr(broker, "_BACK_OFF", 0.0)
    one = connected(make, task_queues=full_queue(url))
    bad = due("bad", options={"queue": "full"})
    one.update_from_dict(bad)
    turn(one)
    publisher, outbox = one._loop.dispatcher.publisher, one._loop.ledger.outbox
    assert publisher.is_at_fault("bad")  # so it is the last in each turn
    set_: list[int] = []

    def alarm(count: int) -> None:
        if len(outbox) > len(NAMES) and not set_:
            set_.append(count)
            server.set_alarm()

    Writes(one, alarm)
    one.update_from_dict({**bad, **due(*NAMES)})
    turn(one)
    assert publisher._on_their_way is not None
    assert {run.entry for run in publisher._on_their_way.runs} == set(NAMES)
    server.clear_alarm()
    turn_until_all_are_out(one, frozenset({"bad"}))
    assert counted(url) == once(*NAMES)


def test_what_waits_for_an_alarm_is_dropped(make: Make, url: str, server: RabbitMQ) -> None:
    """Of two runs on their way one is dropped: the other still waits for its answer."""
    one = connected(make)
    server.set_alarm()
    one.update_from_dict(due("a", "b"))
    turn(one)
    publisher = one._loop.dispatcher.publisher
    assert publisher._on_their_way is not None
    run = one._loop.ledger.outbox["a"]
    one._loop.dispatcher.drop([run], {"a": "an operator"}, level=20)
    one._loop.turn()
    assert publisher._on_their_way is not None
    server.clear_alarm()
    turn_until_all_are_out(one)
    assert counted(url) == once("a", "b")


@pytest.mark.usefixtures("small_parts")
def test_the_term_ends_in_the_middle(make: Make, url: str) -> None:
    """What was confirmed before is known to be published, and not sent again."""
    one = connected(make)
    ended: list[int] = []

    def end(count: int) -> None:
        if count == 4 and not ended:
            ended.append(count)
            one._loop.ledger._fail(NotMaster("a test"))

    Writes(one, end)
    one.update_from_dict(due(*NAMES))
    turn(one)
    assert one.metrics.published == 1 + 3 * PART
    turn_until(one, lambda: one.metrics.published >= 1 + len(NAMES))
    assert ended
    assert counted(url) == once(*NAMES)


@pytest.mark.usefixtures("small_parts")
def test_without_confirmations(make: Make, url: str) -> None:
    """Who switches them off has messages leave one by one: nobody would know which are lost."""
    one = connected(make, broker_transport_options={"confirm_publish": False})
    assert one._broker.most_together == 1
    one.update_from_dict(due(*NAMES))
    turn_until_all_are_out(one)
    assert counted(url) == once(*NAMES)


def test_who_is_told_of_each_message(make: Make, url: str) -> None:
    """Celery's signal says that a message has left. So each leaves alone, and one that RabbitMQ
    refuses is not told."""
    one = connected(make, task_queues=full_queue(url))
    told: list[str] = []

    def note(sender: str, **more: Any) -> None:
        told.append(sender)

    after_task_publish.connect(note)
    try:
        one.update_from_dict({**due("a", "c"), **due("b", options={"queue": "full"})})
        turn_until_all_are_out(one, frozenset({"b"}))
    finally:
        after_task_publish.disconnect(note)
    assert sorted(told) == ["a", "c"]
    assert counted(url) == once("a", "c")
