"""What wraps Celery's scheduler, where another is behind the election: called once for each run,
never before its claim. Turned by hand, on real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery, beat

from example_project.servers import Redis
from tests.history import all_headers

from .conftest import away, back, every, history, past_of
from .test_control import Operator, heard
from .test_control import operator as operator
from .test_gate import (
    PERIOD,
    PERSISTENT,
    PLAIN,
    REDBEAT,
    Start,
    configure,
    crash,
    turn_for,
    turn_until,
)
from .test_gate import start as start
from .test_hooks import Calls, refusing, tops

Patch = pytest.MonkeyPatch
TENANTS = "tests.integration.test_gate_apply:Tenants"


@pytest.fixture(params=[PLAIN, PERSISTENT, REDBEAT])
def hooked(
    request: Any, app: Celery, redis_server: Redis, tmp_path: Path, monkeypatch: Patch
) -> Calls:
    """The class of a scheduler, and the hook of a tool."""
    configure(app, request.param, redis_server, tmp_path)
    if request.param == REDBEAT:  # as Sentry does
        from redbeat.schedulers import RedBeatScheduler

        return Calls(monkeypatch, RedBeatScheduler, "apply_async")
    return Calls(monkeypatch, beat.Scheduler, "apply_entry")


def test_called_once_a_run(app: Celery, start: Start, hooked: Calls) -> None:
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert hooked.of == ["e", "e"]
    assert [top[:2] for top in tops(app)] == [(1, 1), (2, 2)]


def test_never_before_the_claim(app: Celery, start: Start, hooked: Calls) -> None:
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    known: list[Any] = []

    def note(entry: Any) -> None:
        session = scheduler.election.session
        known.append(session.read(scheduler.election.paths.outbox))

    hooked.before = note
    turn_until(scheduler, lambda: history(app))
    assert b'["e",1,' in known[0].data


def test_not_called_again_for_a_run_that_waits(
    app: Celery, start: Start, hooked: Calls, redis_server: Redis
) -> None:
    """Be it of this master, or of one before it."""
    scheduler = start(beat_schedule={"e": every(PERIOD)}, broker_url=redis_server.url(0))
    turn_until(scheduler, lambda: scheduler.entries)
    good: list[str] = []

    def cut(entry: Any) -> None:
        good.append(away(app))
        scheduler._broker.connection.release()
        scheduler._broker.drop()
        hooked.before = lambda entry: None

    hooked.before = cut
    turn_until(scheduler, lambda: scheduler.metrics.failed >= 3)
    turn_until(scheduler, lambda: not scheduler._loop.ledger.unconfirmed)
    crash(scheduler)
    second = start()
    back(app, good[0], second)
    turn_until(second, lambda: history(app))
    assert tops(app)[0][:2] == (1, 1)
    assert hooked.of == ["e"] * len(history(app))


def test_a_run_that_an_operator_asks_for(
    app: Celery, start: Start, operator: Operator, hooked: Calls
) -> None:
    scheduler = start(beat_schedule={"e": every(3600)})
    turn_for(scheduler, 0.2)
    with operator.ask("run", "e"):
        heard(scheduler)
        assert [top[:2] for top in tops(app)] == [(1, 1)]
        assert hooked.of == ["e"]


def test_a_class_that_makes_several_runs(app: Celery, start: Start, monkeypatch: Patch) -> None:
    """Its own `apply_entry` makes them, in a context of its own; the tool sees each."""
    was = beat.Scheduler.apply_entry
    seen: list[Any] = []

    def apply_entry(self: Any, entry: Any, producer: Any = None) -> None:
        seen.append(entry.kwargs["tenant"])
        entry.options["headers"]["check_in"] = len(seen)
        was(self, entry, producer=producer)

    monkeypatch.setattr(beat.Scheduler, "apply_entry", apply_entry)
    app.conf.zk_beat_scheduler = TENANTS
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 4)
    assert seen == ["a", "b", "a", "b"]
    found = all_headers(app.conf.broker_url)
    assert [(h["zk_beat"]["run"], h["context"], h["check_in"]) for h in found] == [
        (1, "a", 1),
        (2, "b", 2),
        (3, "a", 3),
        (4, "b", 4),
    ]


def test_a_class_that_makes_several_runs_which_wait(
    app: Celery, start: Start, monkeypatch: Patch, redis_server: Redis
) -> None:
    """That is called again, for the sake of its context, and the tool is not."""
    was = beat.Scheduler.apply_entry
    seen: list[Any] = []

    def apply_entry(self: Any, entry: Any, producer: Any = None) -> None:
        seen.append(entry.kwargs["tenant"])
        entry.options["headers"]["check_in"] = len(seen)
        was(self, entry, producer=producer)

    monkeypatch.setattr(beat.Scheduler, "apply_entry", apply_entry)
    app.conf.zk_beat_scheduler = TENANTS
    scheduler = start(beat_schedule={"e": every(3600)})
    turn_until(scheduler, lambda: scheduler.entries)
    refusing(redis_server, "1")
    scheduler._loop.source._opened.schedule["e"].schedule.run_every /= 3600 / PERIOD  # type: ignore[attr-defined]
    scheduler._names.is_current = False
    turn_until(scheduler, lambda: scheduler.metrics.failed >= 3)
    assert seen == ["a"]
    refusing(redis_server, "0")
    turn_until(scheduler, lambda: history(app))
    (headers,) = all_headers(app.conf.broker_url)[:1]
    assert (headers["zk_beat"]["run"], headers["context"], headers["check_in"]) == (1, "a", 1)


def test_it_raises(app: Celery, start: Start, hooked: Calls, caplog: Any) -> None:
    def fail(entry: Any) -> None:
        raise RuntimeError("no network")

    hooked.before = fail
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: history(app))
    hooked.before, hooked.after = hooked.after, fail
    turn_until(scheduler, lambda: len(history(app)) == 2)
    turn_for(scheduler, 0.3)
    assert [message.run for message in history(app)] == [1, 2]
    assert caplog.text.count("raised RuntimeError: no network; the run is published") == 2
    assert [past.note for past in past_of(scheduler, "e")] == [None, None]
