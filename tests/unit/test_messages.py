"""The short way makes the messages that Celery makes, and is taken where nothing else is asked."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from celery import VERSION, Celery, Task
from celery.app.amqp import AMQP
from celery.app.routes import Router
from celery.backends.base import DisabledBackend
from celery.beat import BeatLazyFunc, ScheduleEntry, Scheduler, SchedulingError
from celery.signals import after_task_publish, before_task_publish
from hypothesis import given
from hypothesis import strategies as st
from kombu import Exchange, Queue

from celery_zk_beat.messages import Sender, addressed, headers_of, task_id

pytestmark = [
    pytest.mark.skipif(VERSION[:2] != (5, 7), reason="all go the long way"),
    pytest.mark.filterwarnings("ignore:\\s*The 'priority' task attribute"),
]


class Counting(Celery):
    """Knows how many messages were made by its own send_task()."""

    long = 0

    def producer_or_acquire(self, producer: Any = None) -> Any:
        self.long += 1
        return super().producer_or_acquire(producer)


class Site:
    def __init__(self, app: Any) -> None:
        self.app = app
        self.scheduler = Scheduler(app, lazy=True)
        connection = app.connection_for_write()
        self.producer = app.amqp.Producer(connection.ensure_connection(), auto_declare=False)
        for queue in self.producer.channel.queues:  # of all apps of this process
            self.producer.channel._purge(queue)

    def sent(self, way: Callable[..., object], entry: Any) -> list[Any]:
        """The message as the broker has it, and what signals were told."""
        told: list[Any] = []

        def note(signal: Any, sender: Any, **more: Any) -> None:
            told.append((signal.name, sender, json.loads(json.dumps(more, default=repr))))

        before_task_publish.connect(note)
        after_task_publish.connect(note)
        try:
            way(self.scheduler, entry, self.producer)
        finally:
            before_task_publish.disconnect(note)
            after_task_publish.disconnect(note)
        channel = self.producer.channel
        messages = []
        for queue in list(channel.queues):
            while channel._size(queue):
                message = channel._get(queue)
                del message["properties"]["delivery_tag"]
                messages.append((queue, message))
        return [told, messages]


def send(scheduler: Any, entry: Any, producer: Any) -> None:
    Sender(scheduler, producer).send(entry, lambda: None)


def long_way(scheduler: Any, entry: Any, producer: Any) -> None:
    scheduler.apply_async(entry, producer=producer, advance=False)


@pytest.fixture
def app() -> Iterator[Any]:
    app = Counting("shop", broker="memory://", set_as_current=False)
    app.conf.task_queues = [
        Queue("celery"),
        Queue("bills", Exchange("bills", type="topic"), routing_key="bills.all"),
    ]
    app.task(shared=False, name="plain")(plain)
    app.task(shared=False, name="mine", priority=3, time_limit=9, serializer="yaml", typing=False)(
        plain
    )
    app.task(shared=False, name="quiet", ignore_result=True, compression="gzip", bind=True)(plain)
    yield app
    app.close()


def plain(*args: object, **kwargs: object) -> None:
    pass


def entry_of(app: Any, task: str, **more: Any) -> Any:
    entry = ScheduleEntry(name="e", task=task, schedule=60.0, app=app, **more)
    run = {"entry": "e", "run": 1, "epoch": 2}
    return addressed(entry, "the-id", headers_of(run, is_extended=True))


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "routes": {"task_routes": {"plain": {"queue": "bills", "priority": 2}, "far*": "bills"}},
    "function": {"task_routes": [lambda name, args, kwargs, options, **more: {"queue": "bills"}]},
    "settings": {
        "task_send_sent_event": True,
        "task_serializer": "yaml",
        "task_compression": "zlib",
        "task_ignore_result": True,
        "task_default_priority": 4,
        "task_time_limit": 70,
        "task_default_delivery_mode": "transient",
    },
    "protocol": {"task_protocol": 1},
    "backend": {"result_backend": "cache+memory://"},
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"queue": "bills"},
    {"exchange": "bills", "routing_key": "bills.late"},
    {"priority": 7, "headers": {"a": 1}},
    {"serializer": "pickle", "compression": "bzip2", "delivery_mode": 1},
    {"ignore_result": True, "time_limit": 5, "soft_time_limit": 4},
    {"expires": None, "time_limit": None, "queue": None},
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("task", ["plain", "mine", "quiet", "far.away"])
def test_the_same_message(app: Any, task: str, configuration: str) -> None:
    app.conf.update(CONFIGURATIONS[configuration])
    site = Site(app)
    for options in OPTIONS:
        for arguments in {}, {"args": [1, BeatLazyFunc(max, 2, 3)], "kwargs": {"y": {"z": 1.5}}}:
            entry = functools.partial(entry_of, app, task, options=options, **arguments)
            assert site.sent(send, entry()) == site.sent(long_way, entry()), (options, arguments)


def test_the_short_way_is_taken(app: Any) -> None:
    site = Site(app)
    for task in "plain", "mine", "quiet", "far.away":
        for options in OPTIONS[:-1]:
            site.sent(send, entry_of(app, task, options=options))
    assert app.long == 0


@pytest.mark.parametrize(
    "options", [{"expires": 60}, {"countdown": 5}, {"shadow": "x"}, {"argsrepr": "hidden"}]
)
def test_what_takes_more(app: Any, options: dict[str, Any]) -> None:
    """Options that Celery's ``send_task`` looks at."""
    Site(app).sent(send, entry_of(app, "plain", options=options))
    assert app.long == 1


class Backend(DisabledBackend):
    """A result backend that notes what it is told; where it is made, and for which messages."""

    made = 0
    calls: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        type(self).made += 1
        super().__init__(*args, **kwargs)

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        self.calls.append(task_id)

    def remove_pending_result(self, result: Any) -> Any:
        self.calls.append(f"no more {result.id}")


@pytest.fixture(params=[False, True])
def backend(request: Any, app: Any) -> type[Backend]:
    """That of the app, not yet made; each thread has its own, or all have one."""
    app.conf.update(result_backend=Backend, result_backend_thread_safe=request.param)
    Backend.made = 0
    Backend.calls.clear()
    return Backend


#: Options with which messages are made in the short way, and in Celery's.
WAYS = [{}, {"expires": 60}]


@pytest.mark.parametrize("options", WAYS)
def test_the_result_backend_takes_no_part(
    app: Any, backend: type[Backend], options: dict[str, Any]
) -> None:
    """Nothing subscribes to the result, and a backend that cannot be made does not matter."""
    site = Site(app)
    for task in "plain", "quiet", "far.away":
        site.sent(send, entry_of(app, task, options=options))
    assert (backend.made, backend.calls) == (0, [])
    assert isinstance(app.backend, Backend)
    site.sent(send, entry_of(app, "plain", options=options))
    assert (backend.made, backend.calls) == (1, [])
    assert isinstance(app.backend, Backend)


@pytest.mark.parametrize("options", WAYS)
def test_what_users_send_meanwhile(
    app: Any, backend: type[Backend], options: dict[str, Any]
) -> None:
    """A function that makes an argument may wait for the result of another task."""
    other = BeatLazyFunc(lambda: app.tasks["plain"].apply_async(task_id="other").id)
    Site(app).sent(send, entry_of(app, "plain", options=options, args=[other]))
    assert backend.calls == ["other", "no more other"]
    assert isinstance(app.backend, Backend)


def test_a_task_that_takes_another_producer(app: Any, backend: type[Backend]) -> None:
    class Own(Task):
        def apply_async(self, *args: Any, producer: Any = None, **kwargs: Any) -> Any:
            return super().apply_async(*args, **kwargs)

    app.task(shared=False, name="own", base=Own)(plain)
    Site(app).sent(send, entry_of(app, "own"))
    assert backend.calls == []


@pytest.mark.parametrize("options", WAYS)
def test_no_queue_for_replies(app: Any, options: dict[str, Any]) -> None:
    """With the backend that has one, Celery declares it when a task is called."""
    app.conf.result_backend = "rpc://"
    site = Site(app)
    queues = set(site.producer.channel.queues)
    site.sent(send, entry_of(app, "plain", options=options))
    assert set(site.producer.channel.queues) <= queues | {"celery"}
    site.sent(long_way, entry_of(app, "plain", options=options))
    assert set(site.producer.channel.queues) - queues - {"celery"} == {app.thread_oid}


def traced(method: Any, calls: list[str]) -> Any:
    @functools.wraps(method)
    def tracing(*args: Any, **kwargs: Any) -> Any:
        calls.append(method.__name__)
        return method(*args, **kwargs)

    return tracing


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Celery, "send_task"),
        (Task, "apply_async"),
        (Task, "shadow_name"),
        (Scheduler, "apply_async"),
        (Scheduler, "sync"),
    ],
)
def test_what_others_wrapped(
    app: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """As tracing tools do: it is called as ever."""
    calls: list[str] = []
    site = Site(app)
    monkeypatch.setattr(site.scheduler, "should_sync", lambda: True)
    monkeypatch.setattr(owner, name, traced(getattr(owner, name), calls))
    site.sent(send, entry_of(app, "plain"))
    assert calls == [name]


class Proxy:
    """As wrapt's: it has all that it wraps has."""

    def __init__(self, wrapped: Any, calls: list[str]) -> None:
        self._wrapped, self._calls = wrapped, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __get__(self, instance: Any, owner: Any) -> Proxy:
        return Proxy(self._wrapped.__get__(instance, owner), self._calls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls.append(self._wrapped.__name__)
        return self._wrapped(*args, **kwargs)


@pytest.mark.parametrize(
    ("owner", "name"), [(Celery, "send_task"), (Task, "apply_async"), (AMQP, "as_task_v2")]
)
def test_what_a_proxy_wraps(
    app: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(owner, name, Proxy(getattr(owner, name), calls))
    Site(app).sent(send, entry_of(app, "plain"))
    assert (calls, app.long) == ([name], 1)


def test_a_message_that_is_made_otherwise(app: Any) -> None:
    """By an AMQP class of the user's, which gives what the short way would give, too."""

    class Hiding(AMQP):
        def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
            return super().as_task_v2(*args, argsrepr="***", origin="here", **kwargs)

    app.amqp_cls = Hiding
    _, ((_, message),) = Site(app).sent(send, entry_of(app, "far.away"))
    assert (message["headers"]["argsrepr"], message["headers"]["origin"]) == ("***", "here")


def test_a_router_of_the_users(app: Any) -> None:
    class Own(Router):
        def route(self, options: Any, *args: Any, **kwargs: Any) -> Any:
            return super().route({**options, "queue": "bills"}, *args, **kwargs)

    app.amqp.Router = lambda: Own(app.amqp.routes, app.amqp.queues, app=app)
    _, ((queue, _),) = Site(app).sent(send, entry_of(app, "plain"))
    assert queue == "bills"


def test_a_class(app: Any) -> None:
    """It has no signature to look at."""

    class Own(Task):
        name = "own"

        def run(self, number: int) -> None: ...

    app.register_task(Own())
    (_, ((queue, _),)) = Site(app).sent(send, entry_of(app, "own", args=[1]))
    assert (queue, app.long) == ("celery", 0)


def test_another_name(app: Any) -> None:
    app.tasks["alias"] = app.tasks["plain"]
    _, ((_, message),) = Site(app).sent(send, entry_of(app, "alias"))
    assert message["headers"]["task"] == "plain"


def test_no_default_queue(app: Any) -> None:
    """Each entry names one: nothing else is needed."""
    app.conf.task_create_missing_queues = False
    app.conf.task_default_queue = "nowhere"
    _, ((queue, _),) = Site(app).sent(send, entry_of(app, "plain", options={"queue": "bills"}))
    assert queue == "bills"


@pytest.mark.parametrize("options", [{"task_id": None}, {"task_id": ""}])
def test_no_id_of_its_own(app: Any, options: dict[str, Any]) -> None:
    _, ((_, message),) = Site(app).sent(send, entry_of(app, "plain", options=options))
    assert message["headers"]["id"] == "the-id"


def fails() -> None:
    try:
        raise OSError
    except OSError:
        raise ValueError("bad day") from None


def test_an_error_is_told_as_by_celery(app: Any) -> None:
    """It is that of one entry, whatever it was before."""
    site, entry = Site(app), functools.partial(entry_of, app, "plain", args=[BeatLazyFunc(fails)])
    with pytest.raises(SchedulingError) as short:
        site.sent(send, entry())
    with pytest.raises(SchedulingError) as long:
        site.sent(long_way, entry())
    assert str(short.value) == str(long.value)
    assert type(short.value.__context__) is type(long.value.__context__) is ValueError
    assert short.value.__cause__ is long.value.__cause__ is None


@pytest.mark.parametrize(
    ("more", "waits"),
    [
        ({}, False),
        ({"args": [1], "kwargs": {"a": 2}}, False),
        ({"args": [BeatLazyFunc(int)]}, True),
        ({"kwargs": {"a": BeatLazyFunc(int)}}, True),
        ({"options": {"countdown": 9}}, True),
        ({"options": {"expires": 9}}, True),
    ],
)
def test_what_looks_at_the_clock(app: Any, more: dict[str, Any], waits: bool) -> None:
    """It is made when it is due, as by Celery, and not before."""
    site = Site(app)
    order: list[str] = []
    entry = entry_of(app, "plain", **more)
    publish = site.producer.publish

    def sent(*args: Any, **kwargs: Any) -> Any:
        order.append("sent")
        return publish(*args, **kwargs)

    site.producer.publish = sent
    Sender(site.scheduler, site.producer).send(entry, lambda: order.append("due"))
    assert order == (["due", "sent"] if waits else ["sent"])


@pytest.mark.parametrize("signal", [before_task_publish, after_task_publish])
def test_receivers_hear_of_it_when_it_is_due(app: Any, signal: Any) -> None:
    order: list[str] = []

    def note(**kwargs: object) -> None:
        order.append("told")

    signal.connect(note)
    try:
        site = Site(app)
        sender = Sender(site.scheduler, site.producer)
        sender.send(entry_of(app, "plain"), lambda: order.append("due"))
    finally:
        signal.disconnect(note)
    assert order == ["due", "told"]


def test_what_a_task_overrides(app: Any) -> None:
    class Own(Task):
        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            return super().apply_async(*args, **{**kwargs, "queue": "bills"})

        def shadow_name(self, *args: Any) -> str:
            return "shadow"

    app.task(shared=False, name="own", base=Own)(plain)
    _, ((queue, message),) = Site(app).sent(send, entry_of(app, "own"))
    assert (queue, message["headers"]["shadow"]) == ("bills", "shadow")


def test_eagerly(app: Any) -> None:
    ran: list[int] = []
    app.task(shared=False, name="eager")(lambda_named(ran))
    app.conf.task_always_eager = True
    assert Site(app).sent(send, entry_of(app, "eager")) == [[], []]
    assert ran == [1]


def lambda_named(ran: list[int]) -> Callable[[], None]:
    def run() -> None:
        ran.append(1)

    return run


def test_arguments_that_do_not_fit(app: Any) -> None:
    def two(a: int, b: int) -> None: ...

    app.task(shared=False, name="two")(two)
    with pytest.raises((TypeError, SchedulingError), match="missing 1 required"):
        Site(app).sent(send, entry_of(app, "two", args=[1]))


def test_a_soft_limit_above_the_hard_one(app: Any) -> None:
    app.task(shared=False, name="wrong", soft_time_limit=9, time_limit=5)(plain)
    with pytest.raises(SchedulingError, match="soft_time_limit must be less"):
        Site(app).sent(send, entry_of(app, "wrong"))


@given(st.text(), st.integers(1), st.integers(0, 10**12))
def test_task_id(entry: str, number: int, ms: int) -> None:
    """A UUID of version 5, of root, entry, number and instant, as others can make it, too."""
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "celery-zk-beat:/root")
    due = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ms, microseconds=7)
    expected = str(uuid.uuid5(namespace, f"{entry}/{number}/{ms}"))
    assert task_id("/root", entry, number, due) == expected


@pytest.mark.parametrize("name", ["e", "é" * 255])
def test_the_name_of_the_entry(name: str) -> None:
    """For django-celery-results, and only where it is asked to keep that."""
    run = {"entry": name}
    assert headers_of(run, is_extended=True) == {"zk_beat": run, "periodic_task_name": name}
    assert headers_of(run, is_extended=False) == {"zk_beat": run}


@pytest.mark.parametrize("name", ["e" * 256, "nul \0", "lone \ud800"])
def test_a_name_that_a_database_might_refuse(name: str) -> None:
    assert headers_of({"entry": name}, is_extended=True) == {"zk_beat": {"entry": name}}


def test_a_name_that_is_there_already() -> None:
    """Django-celery-beat's own."""
    headers = {"periodic_task_name": "a"}
    entry = ScheduleEntry(name="e", task="e", schedule=60.0, app=None, options={"headers": headers})
    made = addressed(entry, "the-id", headers_of({"entry": "e"}, is_extended=True)).options
    assert made["headers"] == {"zk_beat": {"entry": "e"}, "periodic_task_name": "a"}
