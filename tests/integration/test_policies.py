"""Policies over failovers and outages, on a real ZooKeeper and broker."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.signals import after_task_publish

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.gate.entries import GatedEntries
from celery_zk_beat.paths import page_of
from celery_zk_beat.records import from_text
from celery_zk_beat.runs import decode_outbox, decode_page, encode_outbox, encode_page
from celery_zk_beat.zookeeper.operations import SetData
from tests.conftest import PATIENCE
from tests.history import all_headers

from .conftest import Make, away, back, every, history, past_of, state_of
from .test_gate import turn_for, turn_until

PERIOD = 0.5


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


def test_what_becomes_too_late_while_others_are_published(app: Celery, make: Make) -> None:
    """By a slow broker: it is not sent because it was in time when they began."""

    def slow_down(**more: Any) -> None:
        time.sleep(2.5)

    last = datetime.now(timezone.utc) - timedelta(seconds=3598)
    entries = {name: every(3600, name, last_run_at=last) for name in "ab"}
    after_task_publish.connect(slow_down)
    try:
        scheduler = make(beat_schedule=entries, zk_beat_policies={"*": {"catch_up": 1}})
        turn_until(scheduler, lambda: history(app) and not scheduler._loop.ledger.outbox)
    finally:
        after_task_publish.disconnect(slow_down)
    (run,) = history(app)
    (other,) = {*"ab"} - {run.task}
    dropped = [past.note for past in past_of(scheduler, other)]
    assert dropped == ["dropped: later than catch_up of zk_beat_policies"]


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


def test_what_is_skipped_for_two_reasons(app: Celery, make: Make) -> None:
    """First is first, whatever is skipped of others meanwhile."""
    names = sorted((f"e{n}" for n in range(8)), key=page_of)
    policies = {"e*": {"coalesce": "all", "limit": 2}, names[-1]: {"catch_up": 2.0}}
    first = make(beat_schedule=dict.fromkeys(names, every(PERIOD)), zk_beat_policies=policies)
    turn_until(first, lambda: len(history(app)) >= 8)
    first.election.stop()
    time.sleep(4.0)
    second = make()
    turn_until(second, lambda: len(history(app)) >= 24)
    skipped = [past for past in past_of(second, names[-1]) if past.number is None]
    assert [past.note for past in skipped] == [
        "skipped: later than catch_up of zk_beat_policies",
        "skipped: more were missed than limit of zk_beat_policies",
    ]
    assert skipped[0].due < skipped[1].due


def test_a_run_that_was_to_leave_in_a_thousand_years(app: Celery, make: Make) -> None:
    """As another hand wrote it, or a beat whose policy had a jitter."""
    first = make(beat_schedule={"e": every(PERIOD)}, zk_beat_policies={"e": {"runs": 1000}})
    turn_until(first, lambda: len(history(app)) >= 1)
    good = away(app)
    first._broker.drop()
    turn_until(first, lambda: "e" in first._loop.ledger.outbox)
    first.election.stop()
    second = make()
    assert second.election.wait(PATIENCE)
    session, paths = second.election.session, second.election.paths
    outbox, page = session.read(paths.outbox), session.read(paths.page(page_of("e")))
    assert outbox is not None
    assert page is not None
    (run,) = decode_outbox(paths.outbox, outbox.data)
    later = replace(run, leaves=run.due + timedelta(days=365_000))
    states = decode_page(paths.page(page_of("e")), page.data)
    states["e"] = replace(states["e"], ran=10**9)
    session.commit(
        SetData(paths.outbox, encode_outbox([later])),
        SetData(paths.page(page_of("e")), encode_page(states)),
    )
    back(app, good, second)
    before = len(history(app))
    turn_until(second, lambda: len(history(app)) >= before + 2)
    assert history(app)[before].run == run.number
    assert state_of(second, "e").ran <= state_of(second, "e").total_run_count


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
        # One in a thousand has a jitter of less than a millisecond, which is none.
        later = [
            _seconds(each.get("leaves", each["due"])) - _seconds(each["due"]) for each in marks
        ]
        assert all(0 <= each < 1 for each in later)
        assert any(later)
        return
    first.election.stop()
    time.sleep(3.5)
    second = make()
    turn_until(second, lambda: notes(second))
    assert notes(second) == {"skipped: later than catch_up of zk_beat_policies"}


def test_what_leaves_later_behind_the_election_leaves_room(app: Celery, make: Make) -> None:
    """However many entries have a jitter, the others run on time."""
    later = {f"later{n}": every(300.0) for n in range(320)}
    scheduler = make(
        zk_beat_scheduler="celery.beat:Scheduler",
        beat_schedule={**later, "e": every(1.0)},
        zk_beat_policies={"later*": {"jitter": 299.0}},
    )
    turn_until(scheduler, lambda: len(history(app)) >= 1)
    assert isinstance(scheduler._loop.source, GatedEntries)
    for entry in scheduler._loop.source.entries.values():
        entry.last_run_at -= timedelta(seconds=300)
    scheduler._loop.source._gated.read_anew()
    turn_until(scheduler, lambda: len(history(app)) >= 60)
    before = sum(run.entry == "e" for run in history(app))
    turn_for(scheduler, 3.0)
    assert sum(run.entry == "e" for run in history(app)) >= before + 2


def _seconds(text: str) -> float:
    return from_text(text).timestamp()
