"""Schedulers of a site's own behind the election, turned by hand, whose `apply_entry` changes what
is sent: when it is sent at once, and when it is sent again."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.beat import Scheduler

from celery_zk_beat import ZooKeeperScheduler
from tests.history import all_headers

from .conftest import away, back, every, history, past_of
from .test_control import Operator, heard
from .test_control import operator as operator
from .test_gate import PERIOD, Start, crash, turn_for, turn_until
from .test_gate import start as start

#: As a database's connection knows which tenant's schema it is to use.
thread = threading.local()


def nothing(tenant: str) -> None:
    pass


class Tenants(Scheduler):
    """A message for each tenant: with an argument, an option and a context of its own."""

    tenants: ClassVar = ["a", "b"]
    #: Called before each message.
    before: ClassVar[Any] = staticmethod(nothing)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        for tenant in self.tenants:
            self.before(tenant)
            entry.kwargs = {**entry.kwargs, "tenant": tenant}
            entry.options["headers"] = {"site": "ours"}
            thread.tenant = tenant
            try:
                super().apply_entry(entry, producer=producer)
            finally:
                del thread.tenant

    #: Something that it needs for each message is away.
    fails = False

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise ConnectionError("refused")
        entry.options["headers"]["context"] = thread.tenant
        return super().apply_async(entry, *args, **kwargs)


class Forwards(Scheduler):
    """Has arguments of its own."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.apply_async(entry, producer=producer, advance=False, shard=7)

    def apply_async(self, entry: Any, *args: Any, shard: int = 0, **kwargs: Any) -> Any:
        entry.options["headers"]["shard"] = shard
        return super().apply_async(entry, *args, **kwargs)


class FailsLater(Scheduler):
    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        super().apply_entry(entry, producer=producer)
        raise RuntimeError("later")


def sent(app: Celery) -> list[tuple[int, str]]:
    """The run and the tenant of each message, whose parts agree on it."""
    found = []
    for headers in all_headers(app.conf.broker_url):
        tenant = headers["context"]
        assert headers["site"] == "ours"
        assert f"'tenant': '{tenant}'" in headers["kwargsrepr"]
        found.append((headers["zk_beat"]["run"], tenant))
    return found


def test_what_it_changes_is_sent(app: Celery, start: Start) -> None:
    app.conf.zk_beat_scheduler = f"{__name__}:Tenants"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 4)
    assert sent(app) == [(1, "a"), (2, "b"), (3, "a"), (4, "b")]


def test_arguments_of_its_own(app: Celery, start: Start) -> None:
    app.conf.zk_beat_scheduler = f"{__name__}:Forwards"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: history(app))
    good = away(app)
    scheduler._broker.drop()
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    back(app, good, scheduler)
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert [headers["shard"] for headers in all_headers(good)] == [7, 7]


def test_a_run_that_waits_for_the_broker(app: Celery, start: Start) -> None:
    app.conf.zk_beat_scheduler = f"{__name__}:Tenants"
    good = away(app)
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    turn_for(scheduler, 0.5)
    back(app, good, scheduler)
    turn_until(scheduler, lambda: len(history(app)) >= 3)
    assert sent(app)[:3] == [(1, "a"), (2, "a"), (3, "b")]


@pytest.fixture
def of_another_master(
    app: Celery, start: Start, monkeypatch: pytest.MonkeyPatch
) -> tuple[ZooKeeperScheduler, str]:
    """A run of tenant b waits, of a master that is gone; the one that is there, and where the
    broker is, that is away."""
    good = app.conf.broker_url
    app.conf.zk_beat_scheduler = f"{__name__}:Tenants"
    first = start(beat_schedule={"e": every(PERIOD)})

    def before(tenant: str) -> None:
        if tenant == "b":
            away(app)
            first._broker.drop()

    monkeypatch.setattr(Tenants, "before", staticmethod(before))
    turn_until(first, lambda: first._loop.ledger.outbox)
    monkeypatch.setattr(Tenants, "before", staticmethod(nothing))
    assert first._loop.ledger.outbox["e"].number == 2
    crash(first)
    return start(), good


def test_a_run_of_another_master(
    app: Celery, of_another_master: tuple[ZooKeeperScheduler, str]
) -> None:
    """It is sent as the first meant it, for the tenant that had none yet."""
    second, good = of_another_master
    back(app, good, second)
    turn_until(second, lambda: len(history(app)) >= 2)
    assert sent(app)[:2] == [(1, "a"), (2, "b")]
    assert history(app)[1].epoch == 2


def test_a_run_that_it_does_not_give_any_more(
    app: Celery,
    of_another_master: tuple[ZooKeeperScheduler, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tenant is gone: it is dropped, and its history says so."""
    second, good = of_another_master
    monkeypatch.setattr(Tenants, "tenants", ["a"])
    back(app, good, second)
    turn_until(second, lambda: second.metrics.dropped)
    (note,) = [past.note for past in past_of(second, "e") if past.number == 2]
    assert note == (
        "dropped: cannot be sent, LookupError: apply_entry gave 1 runs this time, not 2"
    )


def test_a_run_that_an_operator_asks_for(app: Celery, start: Start, operator: Operator) -> None:
    """As the first of those that it would give now."""
    app.conf.zk_beat_scheduler = f"{__name__}:Tenants"
    scheduler = start(beat_schedule={"e": every(3600)})
    turn_for(scheduler, 0.2)
    with operator.ask("run", "e"):
        heard(scheduler)
        assert sent(app) == [(1, "a")]


def test_it_fails_when_the_message_is_sent(
    app: Celery, start: Start, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    """That is logged, and the message is not sent again."""
    app.conf.zk_beat_scheduler = f"{__name__}:FailsLater"
    scheduler = start(beat_schedule={"e": every(3600)})
    turn_for(scheduler, 0.2)
    with operator.ask("run", "e"):
        heard(scheduler)
        turn_for(scheduler, 0.5)
        assert len(history(app)) == 1
    assert not scheduler._loop.ledger.outbox
    assert "e: apply_entry failed after its message was sent" in caplog.text


def test_what_goes_wrong_when_it_is_sent_again(
    app: Celery, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's own apply_entry only logs it: that is not to count as sent, nor as not given."""
    app.conf.zk_beat_scheduler = f"{__name__}:Tenants"
    monkeypatch.setattr(Tenants, "fails", True)
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: scheduler.metrics.failed >= 3)
    assert scheduler._loop.ledger.outbox["e"].number == 1
    monkeypatch.setattr(Tenants, "fails", False)
    turn_until(scheduler, lambda: history(app))
    assert sent(app)[0] == (1, "a")
