"""Policies over failovers and outages, on a real ZooKeeper and broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.records import from_text
from tests.conftest import PATIENCE
from tests.history import all_headers

from .conftest import Make, away, back, every, history, past_of, state_of

PERIOD = 0.5


def turn_until(scheduler: ZooKeeperScheduler, true: Callable[[], object]) -> None:
    assert scheduler.election.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        scheduler._loop.wait(min(scheduler._loop.turn(), 0.2))


def turn_for(scheduler: ZooKeeperScheduler, seconds: float) -> None:
    end = time.monotonic() + seconds
    turn_until(scheduler, lambda: time.monotonic() > end)


def notes(scheduler: ZooKeeperScheduler) -> set[str]:
    """What the history of the entry says beside the runs that were published."""
    if scheduler._loop.ledger.state("e") is None:
        return set()
    return {past.note for past in past_of(scheduler, "e") if past.note}


def test_each_missed_instant_has_a_run(app: Celery, make: Make) -> None:
    """Over a failover, and an outage of the broker."""
    policies = {"e": {"coalesce": "all"}}
    first = make(beat_schedule={"e": every(PERIOD)}, zk_beat_policies=policies)
    turn_until(first, lambda: len(history(app)) >= 2)
    first.election.stop()
    before = len(history(app))
    time.sleep(3 * PERIOD)  # in which nobody dispatches
    second = make()
    turn_until(second, lambda: len(history(app)) >= before + 4)
    good = away(app)
    second._broker.drop()
    turn_for(second, 4 * PERIOD)
    before = len(all_headers(good))
    back(app, good, second)
    turn_until(second, lambda: len(history(app)) >= before + 5)
    dues = [run.due for run in history(app)]
    assert {b - a for a, b in zip(dues, dues[1:])} == {timedelta(seconds=PERIOD)}
    assert [run.run for run in history(app)] == list(range(1, len(dues) + 1))


def test_what_is_too_late_is_skipped(app: Celery, make: Make) -> None:
    """What waits for the broker, too; the history says so."""
    policies = {"*": {"catch_up": 1}}
    first = make(beat_schedule={"e": every(PERIOD)}, zk_beat_policies=policies)
    turn_until(first, lambda: len(history(app)) >= 1)
    good = away(app)
    first._broker.drop()
    turn_until(first, lambda: notes(first))
    (note,) = notes(first)
    assert note == "dropped: later than catch_up of zk_beat_policies"
    back(app, good, first)
    before = len(history(app))
    turn_until(first, lambda: len(history(app)) >= before + 2)
    first.election.stop()
    time.sleep(2.0)
    second = make()
    turn_until(second, lambda: len(notes(second)) > 1)
    assert "skipped: later than catch_up of zk_beat_policies" in notes(second)


def test_jitter(app: Celery, make: Make) -> None:
    scheduler = make(
        beat_schedule={f"e{n}": every(2.0) for n in range(5)},
        zk_beat_policies={"*": {"jitter": 1.9}},
    )
    turn_until(scheduler, lambda: len(history(app)) >= 10)
    marks = [each["zk_beat"] for each in all_headers(app.conf.broker_url)]
    later = [_seconds(each["leaves"]) - _seconds(each["due"]) for each in marks]
    assert all(0 < each < 1.9 for each in later)
    assert len({round(each, 3) for each in later}) > 5
    for n in range(5):
        dues = [run.due for run in history(app) if run.entry == f"e{n}"]
        assert all(b - a == timedelta(seconds=2) for a, b in zip(dues, dues[1:]))


def test_once(app: Celery, make: Make) -> None:
    schedule = {"e": every(PERIOD), "other": every(PERIOD)}
    first = make(beat_schedule=schedule, zk_beat_policies={"e": {"once": True}})
    turn_until(first, lambda: len(history(app)) >= 4)
    assert state_of(first, "e").ran == 1
    first.election.stop()
    second = make()
    turn_for(second, 3 * PERIOD)
    assert [run.run for run in history(app) if run.entry == "e"] == [1]


@pytest.mark.parametrize("policy", [{"catch_up": 1}, {"jitter": 1.0}], ids=str)
def test_behind_the_election(app: Celery, make: Make, policy: dict[str, Any]) -> None:
    first = make(
        zk_beat_scheduler="celery.beat:Scheduler",
        beat_schedule={"e": every(2.0)},
        zk_beat_policies={"*": policy},
    )
    turn_until(first, lambda: len(history(app)) >= 2)
    marks = [each["zk_beat"] for each in all_headers(app.conf.broker_url)]
    if "jitter" in policy:
        assert all(0 < _seconds(each["leaves"]) - _seconds(each["due"]) < 1 for each in marks)
        return
    first.election.stop()
    time.sleep(3.5)
    second = make()
    turn_until(second, lambda: notes(second))
    assert notes(second) == {"skipped: later than catch_up of zk_beat_policies"}


def _seconds(text: str) -> float:
    return from_text(text).timestamp()
