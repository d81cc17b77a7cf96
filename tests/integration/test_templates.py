"""Messages from templates, on a real Redis: each is the one that Celery makes, except for its
delivery tag."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.beat import BeatLazyFunc, Scheduler
from celery.signals import before_task_publish
from kombu import Producer, Queue

from celery_zk_beat.broker import Broker
from celery_zk_beat.messages import Attempt, Sender
from celery_zk_beat.templates import Texts

pytestmark = pytest.mark.skipif(
    not hasattr(Producer, "supports_batch_publish"), reason="kombu before 5.7"
)

#: Of any run.
HEADER = {"entry": "é", "era": "2026", "epoch": 3, "run": 1, "due": "2026-01-01", "master": "one"}


class Site:
    """A sender and its broker; nothing is sent."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.broker = Broker(app, lambda: 10.0, lambda: None)
        self.scheduler = Scheduler(app, lazy=True)
        self.entries: dict[str, Any] = {}
        self.number = 0

    def entry(self, **more: Any) -> Any:
        fields = {"name": "e", "task": "t", "schedule": 1.0, "app": self.app, **more}
        return self.scheduler.Entry(**fields)

    def send(self, *entries: Any, plainly: bool = False) -> list[Any]:
        """Returns the commands with which runs of these entries would leave together."""
        batch = self.broker.producer.templates._gathered
        taken: list[Any] = []

        def take() -> None:
            taken.extend(batch.commands)
            batch.commands = []

        with self.broker.together(take, lambda: None):
            sender = Sender(self.scheduler, self.broker.producer)
            for entry in entries:
                self.number += not plainly
                run = {**HEADER, "run": self.number}
                texts, due = Texts(f"id {self.number}", {"zk_beat": run}), lambda: None
                attempt = Attempt(entry, texts, due, lambda: 0)
                if plainly:
                    sender.send(attempt.entry, due)
                else:
                    sender.send_plain(attempt)
        return taken

    @property
    def templates(self) -> int:
        """How many there are."""
        return sum(each is not None for each in self.broker.producer.templates._by_key.values())


@pytest.fixture
def site(app: Celery) -> Iterator[Site]:
    site = Site(app)
    yield site
    site.broker.drop()


def but_tag(commands: list[Any]) -> list[Any]:
    """With every delivery tag the same: each is another."""
    return [
        (name, tuple(re.sub('"delivery_tag": "[^"]+"', "", part) for part in parts))
        for name, parts in commands
    ]


def assert_same(site: Site, entry: Any) -> None:
    """The message from a template is the message of Celery."""
    site.send(*[entry] * 3)
    (sent,) = site.send(entry)
    (celerys,) = site.send(entry, plainly=True)
    assert but_tag([sent]) == but_tag([celerys])
    assert sent != celerys  # no tag is used twice


PLAIN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "args": {"args": (1, "é%s", None, [True, 2.5], {"a": "%(task)s"})},
    "kwargs": {"kwargs": {"a": 1, "b": "x" * 3000}},
    "both": {"args": ["a" * 2000], "kwargs": {"b": {"c": [1, 2]}}},
    "queue": {"options": {"queue": "another"}},
    "priority": {"options": {"priority": 7}},
    "headers": {"options": {"headers": {"tenant": "é", "n": 1, "more": {"a": [1]}}}},
    "header of ours": {"options": {"headers": {"zk_beat": "mine"}}},
    "serializer": {"args": (1,), "options": {"serializer": "yaml"}},
    "pickle": {"args": (1,), "options": {"serializer": "pickle"}},
    "limits": {"options": {"time_limit": 3, "soft_time_limit": 2, "ignore_result": True}},
    "delivery": {"options": {"delivery_mode": 1}},
    "task id": {"options": {"task_id": 'own "id"'}},
    "name": {"task": 'a "task" é %s'},
}


@pytest.mark.parametrize("name", PLAIN)
def test_same(site: Site, name: str) -> None:
    assert_same(site, site.entry(**PLAIN[name]))
    assert site.templates == 1


@pytest.mark.parametrize("name", PLAIN)
def test_same_of_a_task(site: Site, name: str) -> None:
    @site.app.task(name="known", shared=False, serializer="json", ignore_result=True)
    def known(*args: Any, **kwargs: Any) -> None: ...

    assert_same(site, site.entry(**{**PLAIN[name], "task": "known"}))
    assert site.templates == 1


def test_one_template_for_all(site: Site) -> None:
    """Whatever names and arguments they have."""
    entries = [site.entry(name=f"e{n}", task=f"t{n}", args=(n,) * (n % 3)) for n in range(20)]
    sent = site.send(*entries)
    site.number = 0
    celerys = [site.send(entry) and site.send(entry, plainly=True)[0] for entry in entries]
    assert but_tag(sent) == but_tag(celerys)
    assert site.templates == 1


OTHERS: dict[str, dict[str, Any]] = {
    "compression": {"options": {"compression": "gzip"}},
    "an exchange": {"options": {"exchange": "topics", "routing_key": "a.b"}},
    "expires": {"options": {"expires": 30}},
    "countdown": {"options": {"countdown": 5}},
    "lazy": {"args": (BeatLazyFunc(lambda: 5),)},
    "a queue that is an object": {"options": {"queue": Queue("of an object")}},
    "a queue that expires": {"options": {"queue": "expiring"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_made_by_celery(site: Site, name: str) -> None:
    """What looks at the clock, at the message or at the broker is made as ever."""
    site.app.conf.task_queues = [
        Queue("celery"),
        Queue("expiring", queue_arguments={"x-expires": 60_000}),
    ]
    entry = site.entry(**OTHERS[name])
    for _ in range(5):
        site.send(entry)
    assert site.templates == 0


def test_arguments_that_a_task_does_not_take(site: Site) -> None:
    @site.app.task(name="strict", shared=False)
    def strict(a: int) -> None: ...

    site.send(*[site.entry(task="strict", args=(1,))] * 4)
    assert site.templates == 1
    with pytest.raises(Exception, match="missing 1 required positional argument"):
        site.send(site.entry(task="strict"))


CHANGES: dict[str, Callable[[Any], object]] = {
    "an argument in place": lambda entry: entry.args[0].append(2),
    "arguments": lambda entry: setattr(entry, "args", (True,)),
    "a keyword": lambda entry: entry.kwargs.update(a=1),
    "the task": lambda entry: setattr(entry, "task", "other"),
    "the queue": lambda entry: entry.options.update(queue="other"),
    "a header in place": lambda entry: entry.options["headers"].update(tenant="b"),
    "one that is equal": lambda entry: entry.options["headers"].update(n=True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_entry(site: Site, name: str) -> None:
    """The next message is that of the entry as it is."""
    entry = site.entry(args=[[1]], options={"headers": {"tenant": "a", "n": 1}})
    site.send(*[entry] * 4)
    (before,) = site.send(entry)
    CHANGES[name](entry)
    (after,) = site.send(entry)
    (celerys,) = site.send(entry, plainly=True)
    assert but_tag([after]) == but_tag([celerys])
    assert but_tag([before]) != but_tag([after])


def test_a_changed_task(site: Site) -> None:
    @site.app.task(name="known", shared=False)
    def known() -> None: ...

    entry = site.entry(task="known")
    site.send(*[entry] * 4)
    site.app.tasks["known"].ignore_result = True
    assert_same(site, entry)
    (sent,) = site.send(entry)
    assert json.loads(sent[1][1])["headers"]["ignore_result"] is True


def test_a_changed_app(site: Site) -> None:
    """Somebody has replaced what makes messages."""
    entry = site.entry()
    site.send(*[entry] * 4)
    make, made = site.app.amqp.create_task_message, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return make(*args, **kwargs)

    site.app.amqp.create_task_message = wrapped
    site.send(*[entry] * 4)
    assert len(made) == 4


def test_a_receiver_that_looks_at_messages(site: Site) -> None:
    entry = site.entry()
    site.send(*[entry] * 4)
    seen = []

    def look(body: Any, **kwargs: Any) -> None:
        seen.append(body)

    before_task_publish.connect(look)
    try:
        site.send(entry)
    finally:
        before_task_publish.disconnect(look)
    assert len(seen) == 1


def test_many_kinds(site: Site) -> None:
    """There is a bound to what is kept."""
    for number in range(1200):
        site.send(*[site.entry(options={"headers": {"n": number}})] * 3)
    templates = site.broker.producer.templates
    assert len(templates._by_key) <= 500
    assert len(templates._asked) <= 500


def test_what_leaves_together_is_written_at_once(site: Site) -> None:
    """redis-py by itself would write some kilobytes at a time."""
    with site.broker.producer.channel.conn_or_acquire() as client:
        connection = client.connection_pool.get_connection()
        try:
            commands = [("LPUSH", "queue", *["x" * 1000] * 50), ("PING",)]
            (written,) = connection.pack_commands(commands)
            assert written.count(b"x" * 1000) == 50
            connection.send_packed_command([written])
            assert connection.read_response() == 50
            assert connection.read_response() in (b"PONG", "PONG")
        finally:
            client.connection_pool.release(connection)
