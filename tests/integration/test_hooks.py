"""What wraps or overrides Celery's scheduler, as tools do: called once for each run, never before
its claim, and what it puts into the entry is in the message. Turned by hand, on real servers."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import kombu
import pytest
import redis
from celery import Celery, beat
from celery.signals import after_task_publish, before_task_publish
from kazoo.client import KazooClient

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.hooks import is_hooked
from example_project.servers import Redis
from tests.history import all_headers, messages

from .conftest import LONG_AGO, Make, away, back, every, history, past_of, state_of
from .test_gate import turn_for, turn_until

Patch = pytest.MonkeyPatch
#: Due once in a test.
ONCE = {"e": every(3600, last_run_at=LONG_AGO)}


class Calls:
    """Wraps a method of a scheduler's class, or of an instance, as tools do: with a header."""

    def __init__(self, monkeypatch: Patch, target: Any, name: str) -> None:
        self.of: list[str] = []
        self.before: Callable[[Any], object] = lambda entry: None
        self.after: Callable[[Any], object] = lambda entry: None
        was = getattr(target, name)

        @functools.wraps(was)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            entry = args[-1]
            self.of.append(entry.name)
            # Tools replace what is there, and keep what they know to have been there.
            headers = {} if name == "apply_entry" else entry.options["headers"]
            entry.options["headers"] = {**headers, "number": len(self.of), "thing": [name]}
            self.before(entry)
            result = was(*args, **kwargs)
            self.after(entry)
            return result

        monkeypatch.setattr(target, name, wrapper)


def tops(app: Celery) -> list[Any]:
    """What the hooks put into each message, and which run it is of."""
    found = all_headers(app.conf.broker_url)
    return [(h["zk_beat"]["run"], h.get("number"), h.get("thing")) for h in found]


@pytest.mark.parametrize("name", ["apply_entry", "apply_async"])
@pytest.mark.parametrize("where", ["class", "instance"])
def test_called_once_a_run(
    app: Celery, make: Make, monkeypatch: Patch, name: str, where: str
) -> None:
    """Though it was patched when the scheduler was there already, and had sent."""
    scheduler = make(beat_schedule={"e": every(0.3)})
    turn_until(scheduler, lambda: len(history(app)) == 1)
    target = beat.Scheduler if where == "class" else scheduler
    calls = Calls(monkeypatch, target, name)
    turn_until(scheduler, lambda: len(history(app)) >= 3)
    assert tops(app) == [(1, None, None), (2, 1, [name]), (3, 2, [name])]
    assert calls.of == ["e", "e"]
    monkeypatch.undo()
    turn_until(scheduler, lambda: len(history(app)) == 4)
    assert tops(app)[3] == (4, None, None)
    assert calls.of == ["e", "e"]


def test_the_short_way_is_left_for_no_longer_than_needed(
    app: Celery, make: Make, monkeypatch: Patch
) -> None:
    scheduler = make(beat_schedule={})
    assert not is_hooked(scheduler)
    for target, name in [
        (beat.Scheduler, "apply_entry"),
        (beat.Scheduler, "apply_async"),
        (beat.Scheduler, "send_task"),
        (ZooKeeperScheduler, "apply_entry"),
        (scheduler, "send_task"),
    ]:
        with monkeypatch.context() as patch:
            hook = functools.partial(getattr(target, name))
            # Python 3.13 warns of a partial that is a class's own: it is to be a method one day.
            patch.setattr(target, name, staticmethod(hook) if isinstance(target, type) else hook)
            assert is_hooked(scheduler)
        assert not is_hooked(scheduler)


class Mine(ZooKeeperScheduler):
    """A site's own."""

    calls: ClassVar[list[str]] = []

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.calls.append("apply_entry")
        entry.kwargs = {**entry.kwargs, "by": "ours"}
        super().apply_entry(entry, producer=producer)

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append("apply_async")
        super().apply_async(entry, *args, **kwargs)

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("send_task")
        return super().send_task(*args, **kwargs)


@pytest.fixture
def mine(app: Celery, monkeypatch: Patch) -> Any:
    monkeypatch.setattr(f"{__name__}.ZooKeeperScheduler", Mine)
    monkeypatch.setattr("tests.integration.conftest.ZooKeeperScheduler", Mine)
    monkeypatch.setattr(Mine, "calls", [])
    return Mine


def test_a_class_derived_from_ours(app: Celery, make: Make, mine: Any) -> None:
    scheduler = make(beat_schedule=ONCE)
    turn_until(scheduler, lambda: history(app))
    assert mine.calls == ["apply_entry", "apply_async", "send_task"]
    (headers,) = all_headers(app.conf.broker_url)
    assert headers["kwargsrepr"] == "{'by': 'ours'}"


def test_never_before_the_claim(app: Celery, make: Make, monkeypatch: Patch) -> None:
    scheduler = make(beat_schedule=ONCE)
    known: list[Any] = []
    calls = Calls(monkeypatch, beat.Scheduler, "apply_entry")

    def note(entry: Any) -> None:
        session = scheduler.election.session
        known.append(session.read(scheduler.election.paths.outbox))

    calls.before = note
    turn_until(scheduler, lambda: history(app))
    assert b'["e",1,' in known[0].data


def test_not_called_again_for_a_run_that_waits(app: Celery, make: Make, monkeypatch: Patch) -> None:
    calls = Calls(monkeypatch, beat.Scheduler, "apply_entry")
    good: list[str] = []

    def cut(entry: Any) -> None:
        if not good:  # after it was connected
            good.append(away(app))
            scheduler._broker.connection.release()
            scheduler._broker.drop()

    calls.before = cut
    scheduler = make(beat_schedule=ONCE)
    # The producer that the hook was given is dead.
    turn_until(scheduler, lambda: scheduler.metrics.failed >= 3)
    back(app, good[0], scheduler)
    turn_until(scheduler, lambda: history(app))
    assert calls.of == ["e"]
    assert tops(app) == [(1, 1, ["apply_entry"])]


def refusing(server: Redis, maxmemory: str) -> None:
    """Has Redis take nothing, or all."""
    with redis.Redis(port=server.port) as hand:
        hand.config_set("maxmemory", maxmemory)


def test_not_called_again_for_a_run_that_cannot_be_sent(
    app: Celery, make: Make, monkeypatch: Patch, client: KazooClient
) -> None:
    """Though its drop is refused, because somebody has written the outbox meanwhile."""
    scheduler = make(beat_schedule={"e": {**ONCE["e"], "args": [object()]}})
    calls = Calls(monkeypatch, beat.Scheduler, "apply_entry")
    path = scheduler.election.paths.outbox
    calls.before = lambda entry: client.set(path, client.get(path)[0])
    turn_until(scheduler, lambda: calls.of)
    ledger = scheduler._loop.ledger  # which is loaded once more
    turn_until(scheduler, lambda: (state := ledger.state("e")) is not None and state.dropped)
    assert state_of(scheduler, "e").dropped == (1,)
    assert calls.of == ["e"]


def test_the_next_master_sends_what_the_hook_made(
    app: Celery, make: Make, monkeypatch: Patch, redis_server: Redis
) -> None:
    calls = Calls(monkeypatch, beat.Scheduler, "apply_entry")
    refusing(redis_server, "1")
    first = make(beat_schedule={**ONCE, "f": every(3600, last_run_at=LONG_AGO)})
    turn_until(first, lambda: first.metrics.failed >= 4)
    turn_until(first, lambda: not first._loop.ledger.unconfirmed)
    first.election.stop()
    refusing(redis_server, "0")
    second = make()
    turn_until(second, lambda: len(history(app)) == 2)
    assert sorted(calls.of) == ["e", "f"]
    assert sorted(top[1] for top in tops(app)) == [1, 2]
    assert {message.epoch for message in history(app)} == {2}


def test_it_raises(
    app: Celery, make: Make, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the message is sent, and after: it is sent, once, and a line says so."""
    calls = Calls(monkeypatch, beat.Scheduler, "apply_entry")

    def fail(entry: Any) -> None:
        if entry.name == "before":
            raise RuntimeError("no network")

    def fail_later(entry: Any) -> None:
        raise RuntimeError("later")

    calls.before, calls.after = fail, fail_later
    scheduler = make(
        beat_schedule={name: every(3600, last_run_at=LONG_AGO) for name in ("before", "after")}
    )
    turn_until(scheduler, lambda: len(history(app)) == 2)
    turn_for(scheduler, 0.3)
    assert len(history(app)) == 2
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert sorted(lines) == [
        "after: a wrapper or override of apply_entry raised RuntimeError: later; the run is "
        "published all the same",
        "before: a wrapper or override of apply_entry raised RuntimeError: no network; the run is "
        "published all the same",
    ]
    assert not scheduler._loop.ledger.outbox


def test_one_around_apply_async_raises(
    app: Celery, make: Make, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(monkeypatch, beat.Scheduler, "apply_async")

    def fail(entry: Any) -> None:
        raise RuntimeError("no network")

    calls.before, calls.after = fail, fail
    scheduler = make(beat_schedule=ONCE)
    turn_until(scheduler, lambda: history(app))
    calls.before = lambda entry: None
    scheduler.update_from_dict({"f": every(3600, last_run_at=LONG_AGO)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    turn_for(scheduler, 0.3)
    assert len(history(app)) == 2
    assert caplog.text.count("override of apply_async raised RuntimeError: no network") == 2


def test_one_that_sends_nothing(app: Celery, make: Make, monkeypatch: Patch) -> None:
    """As with plain beat; the history says so."""
    monkeypatch.setattr(beat.Scheduler, "apply_entry", lambda self, entry, producer=None: None)
    scheduler = make(beat_schedule=ONCE)
    turn_until(scheduler, lambda: scheduler.metrics.dropped)
    (past,) = past_of(scheduler, "e")
    assert past.note == (
        "dropped: cannot be sent, LookupError: apply_entry was called, and sent nothing"
    )
    assert not history(app)


def test_one_that_sends_twice(
    app: Celery, make: Make, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run is one message; behind the election there may be more runs."""
    was = beat.Scheduler.apply_entry

    def twice(self: Any, entry: Any, producer: Any = None) -> None:
        was(self, entry, producer=producer)
        was(self, entry, producer=producer)

    monkeypatch.setattr(beat.Scheduler, "apply_entry", twice)
    scheduler = make(beat_schedule=ONCE)
    turn_until(scheduler, lambda: history(app))
    assert len(history(app)) == 1
    assert "e: hooks made more than one message for its run: this one is not sent" in caplog.text


def test_who_calls_it_by_himself_sends_nothing(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Be it on a standby, in a receiver of beat_init, or while the master sends."""
    scheduler = make(beat_schedule={"e": every(3600)})
    (entry,) = scheduler.schedule.values()
    scheduler.apply_entry(entry)
    scheduler.apply_async(entry)
    turn_for(scheduler, 0.3)
    scheduler.apply_entry(entry, producer=scheduler.producer)
    assert not history(app)
    lines = [line for line in caplog.text.splitlines() if "beat_elected" in line]
    assert ["apply_async" in line for line in lines] == [False, True, False]


def test_another_thread_calls_it_meanwhile(app: Celery, make: Make, monkeypatch: Patch) -> None:
    calls = Calls(monkeypatch, beat.Scheduler, "apply_entry")
    scheduler = make(beat_schedule=ONCE)

    def call(entry: Any) -> None:
        other = threading.Thread(target=lambda: scheduler.apply_async(entry))
        other.start()
        other.join()

    calls.before = call
    turn_until(scheduler, lambda: history(app))
    assert len(history(app)) == 1


def test_what_wraps_tick(
    app: Celery, make: Make, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """Is called in each tick, and does nothing that Celery's own does; what it raises is said
    once."""
    app.conf.beat_schedule = ONCE
    scheduler = ZooKeeperScheduler(app=app)
    scheduler.tick()
    ticks: list[float] = []
    was = beat.Scheduler.tick

    def tick(self: Any, *args: Any, **kwargs: Any) -> float:
        ticks.append(was(self, *args, **kwargs))
        raise RuntimeError("full disk")

    monkeypatch.setattr(beat.Scheduler, "tick", tick)
    try:
        assert [scheduler.tick(), scheduler.tick()] == [0, 0]
    finally:
        scheduler.close()
    assert ticks == [scheduler.max_interval] * 2
    assert caplog.text.count("a wrapper of tick raised RuntimeError: full disk") == 1
    assert [message.run for message in messages(app.conf.broker_url)] in ([], [1])


def test_after_task_publish_is_sent_when_a_message_has_left(
    app: Celery, make: Make, redis_server: Redis
) -> None:
    """And not of one that is refused (celery#4079: a file that says that beat is alive)."""
    there: list[Any] = []

    def note(**more: Any) -> None:
        there.append([message.id for message in messages(app.conf.broker_url)][-1])

    after_task_publish.connect(note)
    try:
        scheduler = make(
            beat_schedule={str(n): every(3600, last_run_at=LONG_AGO) for n in range(5)}
        )
        turn_until(scheduler, lambda: len(history(app)) == 5)
        assert there == [message.id for message in history(app)]
        refusing(redis_server, "1")
        scheduler.update_from_dict(ONCE)
        turn_until(scheduler, lambda: scheduler.metrics.failed >= 2)
        assert len(there) == 5
    finally:
        after_task_publish.disconnect(note)


@pytest.mark.skipif(kombu.VERSION < (5, 7), reason="messages leave together with kombu 5.7")
def test_without_a_receiver_they_leave_together(app: Celery, make: Make) -> None:
    scheduler = make(beat_schedule=ONCE)
    turn_until(scheduler, lambda: history(app))
    assert scheduler._broker.most_together > 1

    def note(**more: Any) -> None:
        pass

    before_task_publish.connect(note)
    try:
        assert scheduler._broker.most_together > 1
    finally:
        before_task_publish.disconnect(note)
    after_task_publish.connect(note)
    try:
        assert scheduler._broker.most_together == 1
    finally:
        after_task_publish.disconnect(note)
