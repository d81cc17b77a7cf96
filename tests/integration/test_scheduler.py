"""ZooKeeperScheduler turned by hand, on a real ZooKeeper and Redis, with a clock of the test's own
where the hour matters."""

from __future__ import annotations

import collections
import enum
import json
import logging
import math
import queue
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import BaseSchedule, crontab, schedstate, schedule
from django.utils.functional import lazystr
from kazoo.client import KazooClient

from celery_zk_beat import (
    ZooKeeperScheduler,
    broker,
    clock,
    dispatcher,
    loop,
    runs,
)
from celery_zk_beat.election import restraint
from celery_zk_beat.errors import NotMaster, Uncertain
from celery_zk_beat.ledger import RunLedger
from celery_zk_beat.limits import MOST_RUNS
from celery_zk_beat.paths import page_of
from celery_zk_beat.runs import Run, bytes_of
from celery_zk_beat.schedules import cron
from celery_zk_beat.signals import run_dropped
from example_project.servers import Redis, ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE
from tests.faults import Road
from tests.history import check

from .conftest import (
    LONG_AGO,
    Again,
    Clock,
    Make,
    away,
    back,
    every,
    history,
    past_of,
    planner_of,
    state_of,
    turn,
)


class Colour(enum.Enum):
    RED = 1


class Word(str, enum.Enum):
    FOUR = "four"


def test_lazy_opens_nothing(app: Celery) -> None:
    """[23] The start-up banner makes one, and asks it for its info."""
    app.conf.zk_beat_hosts = f"127.0.0.1:{free_port()}"
    before = threading.enumerate()
    scheduler = ZooKeeperScheduler(app=app, lazy=True)
    assert app.conf.zk_beat_hosts in scheduler.info
    assert app.conf.zk_beat_root in scheduler.info
    scheduler.close()
    assert set(threading.enumerate()) <= set(before)  # those of other tests may end meanwhile


def test_nothing_connects_before_the_first_tick(app: Celery) -> None:
    """[16] Celery may still fork."""
    before = threading.enumerate()
    scheduler = ZooKeeperScheduler(app=app)
    assert set(threading.enumerate()) <= set(before)
    assert "connection" not in vars(scheduler)


def test_a_connection_before_the_first_tick(app: Celery) -> None:
    """Somebody may send by it while the schedule is made still: the others are told of all."""
    scheduler = ZooKeeperScheduler(app=app)
    assert 0 < scheduler.connection.transport_options["socket_connect_timeout"] < 4.0
    scheduler.add(name="late", task="late", schedule=60.0)
    scheduler.tick()
    try:
        wait_until(lambda: scheduler.election.is_master, PATIENCE, "a master")
        master = scheduler.election.master
        assert master is not None
        assert master.schedule == scheduler.digest()
        assert scheduler.metrics.entries == 1
    finally:
        scheduler.close()


def test_http_is_closed_twice(app: Celery) -> None:
    """As Celery does, first in the signal handler; in between its thread has ended, and all that
    it had open is closed."""
    app.conf.zk_beat_http = free_port()
    scheduler = ZooKeeperScheduler(app=app)
    scheduler.tick()
    scheduler.close()
    assert scheduler._server is not None
    scheduler._server._thread.join(PATIENCE)
    assert not scheduler._server._thread.is_alive()
    scheduler.close()


def test_http_when_nobody_asks(app: Celery) -> None:
    """It outlasts the socket time-out that ``celery beat`` sets for all of its process."""
    app.conf.zk_beat_http = port = free_port()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.1)
    try:
        scheduler = ZooKeeperScheduler(app=app)
        scheduler.tick()
    finally:
        socket.setdefaulttimeout(before)
    time.sleep(0.5)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=PATIENCE) as answer:
            assert answer.read().startswith(b"ok: the dispatch loop moved")
    finally:
        scheduler.close()


def test_celerys_own_entry_is_there(app: Celery, tmp_path: Path) -> None:
    """A result backend that does not expire by itself is cleaned up, beside the user's entries."""
    app.conf.result_backend = f"file://{tmp_path}"
    app.conf.result_expires = 3600
    app.conf.beat_schedule = {"mine": every(1)}
    assert set(ZooKeeperScheduler(app=app).schedule) == {"mine", "celery.backend_cleanup"}


def test_an_entry_with_a_time_of_its_own(app: Celery, make: Make) -> None:
    """`last_run_at` in the schedule: taken when the entry is first seen, and not again."""
    scheduler = make(beat_schedule={"e": every(3600, last_run_at=LONG_AGO)})
    turn(scheduler)
    turn(scheduler)
    (message,) = history(app)
    assert message.due == LONG_AGO + timedelta(hours=1)
    scheduler.close()
    turn(make())
    assert len(history(app)) == 1


def test_added_later(app: Celery, make: Make) -> None:
    """Entries that a program adds while it runs, by each of Celery's ways."""
    scheduler = make()
    turn(scheduler)
    for add in (
        lambda: scheduler.add(name="a", task="a", schedule=0.001, last_run_at=LONG_AGO),
        lambda: scheduler.update_from_dict({"b": every(0.001, "b")}),
        lambda: scheduler.merge_inplace({"c": every(0.001, "c")}),
    ):
        add()
        before = len(history(app))

        def ran(before: int = before) -> bool:
            scheduler._loop.turn()
            return len(history(app)) > before

        wait_until(ran, PATIENCE, "a run")


def _put(scheduler: ZooKeeperScheduler) -> None:
    scheduler.schedule["e"] = scheduler.Entry(
        name="e", task="e", schedule=timedelta(seconds=0.001), app=scheduler.app
    )


def _swap(scheduler: ZooKeeperScheduler) -> None:
    """As many entries as before."""
    del scheduler.schedule["other"]
    scheduler.schedule["new"] = scheduler.Entry(
        name="new", task="e", schedule=timedelta(seconds=0.001), app=scheduler.app
    )


def _set(attribute: str, value: Any) -> Callable[[ZooKeeperScheduler], None]:
    def change(scheduler: ZooKeeperScheduler) -> None:
        *path, last = attribute.split(".")
        of = scheduler.schedule["e"]
        for name in path:
            of = getattr(of, name)
        setattr(of, last, value)

    return change


def _replace_all(scheduler: ZooKeeperScheduler) -> None:
    entry = scheduler.Entry(name="e", task="e", schedule=0.001, app=scheduler.app)
    scheduler.schedule = {"e": entry, "other": scheduler.schedule["other"]}


class Countdown:
    """A class of the user's, with no more than Celery asks for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        past = (datetime.now(timezone.utc) - last_run_at).total_seconds()
        return past >= self.seconds, max(0.0, self.seconds - past) or self.seconds

    def now(self) -> datetime:
        return datetime.now(timezone.utc)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (3600.0, _put),
        (3600.0, _swap),
        (3600.0, _replace_all),
        (3600.0, _set("schedule", schedule(0.001))),
        (3600.0, _set("schedule", Countdown(0.001))),
        (3600.0, _set("schedule.run_every", timedelta(seconds=0.001))),
        (Countdown(3600), _set("schedule.seconds", 0.001)),
        (Countdown(3600), _set("schedule", Countdown(0.001))),
        (Countdown(3600), _put),
    ],
)
def test_changed_by_a_program(
    app: Celery, make: Make, kind: Any, change: Callable[[ZooKeeperScheduler], None]
) -> None:
    """Celery sees what was put into the schedule, and taken out, at its next tick; so does ours,
    and what was changed in an entry."""
    one = make(beat_schedule={"e": {"task": "e", "schedule": kind}, "other": every(3600)})
    assert one.election.wait(PATIENCE)
    before = datetime.now(timezone.utc)
    for _ in range(3):
        one._loop.turn()
    assert history(app) == []
    change(one)
    # On a busy machine the look for changes before may have been long: then the next one rests.
    wait_until(lambda: one._loop.turn() is not None and history(app), PATIENCE, "a run")
    assert history(app)[0].task == "e"
    assert before <= history(app)[0].due <= datetime.now(timezone.utc)


def test_a_crontab_that_a_program_has_changed(app: Celery, make: Make) -> None:
    nightly = crontab(minute=0, hour=3)
    one = make(beat_schedule={"e": {"task": "e", "schedule": nightly}})
    assert one.election.wait(PATIENCE)
    one._loop.turn()
    before = planner_of(one)._agenda.next_at
    one._loop.turn()
    assert planner_of(one)._agenda.next_at == before
    one.schedule["e"].schedule.hour = set(range(24))

    def is_seen() -> bool:
        one._loop.turn()
        return planner_of(one)._agenda.next_at < before or before - time.time() < 3600

    wait_until(is_seen, PATIENCE, "the change")  # after a look that took long there is a rest


def test_a_replaced_entry_keeps_its_clock_and_numbers(app: Celery, make: Make) -> None:
    """They are those of its name; a new object, which has none, does not begin to count anew."""
    one = make(beat_schedule={"e": every(0.05, "e", last_run_at=LONG_AGO)})
    assert one.election.wait(PATIENCE)

    def wait_for(runs: int) -> None:
        def ran() -> bool:
            scheduler_left = one._loop.turn()
            one._loop.wait(max(0.0, min(scheduler_left, 0.05)))
            return len(history(app)) >= runs

        wait_until(ran, PATIENCE, "runs")

    for count in (1, 2, 3):
        wait_for(3 * count)
        one.schedule["e"] = one.Entry(name="e", task="e", schedule=0.05, app=app)
    wait_for(12)
    runs = history(app)
    assert [message.run for message in runs] == list(range(1, len(runs) + 1))
    assert check(runs) == []


def test_removed_while_it_is_claimed(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: the loop goes on, and so does the run, when the entry is back."""
    entries = {name: every(0.001, name, last_run_at=LONG_AGO) for name in ("a", "b")}
    one = make(beat_schedule=entries)
    assert one.election.wait(PATIENCE)
    claim = RunLedger.claim
    removed: list[ScheduleEntry] = []

    def remove_meanwhile(*args: Any, **more: Any) -> Any:
        claimed = claim(one._loop.ledger, *args, **more)
        if not removed:
            removed.append(one.schedule.pop("a"))
        return claimed

    monkeypatch.setattr(one._loop.ledger, "claim", remove_meanwhile)
    for _ in range(3):
        one._loop.turn()
    assert {message.task for message in history(app)} == {"b"}
    one.schedule["a"] = removed[0]
    wait_until(lambda: one._loop.turn() and _tasks(app) == {"a", "b"}, PATIENCE, "the other")
    assert check(history(app)) == []


def _tasks(app: Celery) -> set[str]:
    return {message.task for message in history(app)}


def test_a_schedule_that_is_made_anew_at_each_look(app: Celery) -> None:
    """By a class of the user's: it is compared, as Celery does, and its numbers go on."""

    class Fresh(ZooKeeperScheduler):
        period = 0.05

        def setup_schedule(self) -> None:
            pass

        @property
        def schedule(self) -> Any:
            return {"e": self.Entry(name="e", task="e", schedule=self.period, app=self.app)}

    one = Fresh(app=app)
    builds: list[int] = []
    seen = planner_of(one).seen
    replace_all = seen.replace_all

    def counted(entries: Any, count: int) -> set[str]:
        builds.append(count)
        return replace_all(entries, count)

    vars(seen).update(replace_all=counted)
    one.election.start(PATIENCE)
    try:
        assert one.election.wait(PATIENCE)

        def ran() -> bool:
            one._loop.wait(max(0.0, min(one._loop.turn(), 0.05)))
            return len(history(app)) >= 4

        wait_until(ran, PATIENCE, "runs")
        assert len(builds) == 1
        one.period = 3600.0
        one._loop.turn()
        assert len(builds) == 2
        assert planner_of(one)._agenda.next_at > time.time() + 3000
    finally:
        one.close()
    runs = history(app)
    assert [message.run for message in runs] == list(range(1, len(runs) + 1))


def test_names_that_are_no_text(app: Celery, make: Make) -> None:
    """Celery's own beat takes anything for a name."""
    names = [1, "two", Colour.RED, Word.FOUR, ("five", 5), None, 7.5, b"eight", lazystr("nine")]
    schedule = {
        name: every(3600, f"task {n}", last_run_at=LONG_AGO) for n, name in enumerate(names)
    }
    scheduler = make(beat_schedule=schedule)
    turn(scheduler)
    assert sorted(message.task for message in history(app)) == sorted(
        f"task {n}" for n in range(len(names))
    )
    texts = ["1", "two", str(Colour.RED), "four", "('five', 5)", "None", "7.5", "b'eight'", "nine"]
    assert set(scheduler.entries) == set(texts)
    assert all(state_of(scheduler, text).total_run_count == 1 for text in texts)
    assert set(scheduler.schedule) == set(names)  # for hooks and programs: as in Celery


def test_names_with_the_same_text(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Both run; one has another name here, whichever came first, and the log says so, once."""
    for n, names in enumerate(([1, "1"], ["1", 1])):
        schedule = {each: every(3600, repr(each), last_run_at=LONG_AGO) for each in names}
        scheduler = make(beat_schedule=schedule, zk_beat_root=f"{app.conf.zk_beat_root}{n}")
        turn(scheduler)
        turn(scheduler)
        assert {name: entry.task for name, entry in scheduler.entries.items()} == {
            "1": "'1'",
            "1 (int)": "1",
        }
        said = [each.getMessage() for each in caplog.records if "have this name" in each.message]
        assert said == ["1: two entries have this name: one of them is '1 (int)' here"]
        caplog.clear()
    assert sorted(message.task for message in history(app)) == ["'1'", "'1'", "1", "1"]


def test_a_name_without_a_text(app: Celery, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Left out, with a line: it harms no other."""

    class Silent:
        def __str__(self) -> str:
            raise ValueError("no words")

    schedule = {"e": every(3600, "e", last_run_at=LONG_AGO), Silent(): every(0.1, "silent")}
    turn(make(beat_schedule=schedule))
    assert [message.task for message in history(app)] == ["e"]
    assert "a test_a_name_without_a_text.<locals>.Silent, has no text: no words" in caplog.text


def test_is_due_raises(app: Celery, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """One entry that cannot be asked is logged; the others run (Celery 5.7 does so, 5.5 ends)."""

    class Broken(schedule):
        def is_due(self, last_run_at: datetime) -> Any:
            raise ZeroDivisionError("no schedule")

    entries = {
        "broken": {"task": "broken", "schedule": Broken(1)},
        "good": every(0.001, "good", last_run_at=LONG_AGO),
    }
    one = make(beat_schedule=entries)
    turn(one)
    one._loop.turn()  # the first claims it, and has seen that it is due again
    assert "broken: cannot compute when it is due" in caplog.text
    assert {message.task for message in history(app)} == {"good"}


def test_a_max_interval_that_is_set_late(app: Celery, make: Make) -> None:
    """It says when an entry is asked again that does not, as of then."""

    class Speechless(schedule):
        def is_due(self, last_run_at: datetime) -> Any:
            return False, None

    one = make(beat_schedule={"e": {"task": "e", "schedule": Speechless(1)}})
    one.max_interval = 1000
    turn(one)
    assert 900 < planner_of(one)._agenda.next_at - time.time() <= 1000


def test_a_schedule_class_of_ones_own(app: Celery, make: Make) -> None:
    """is_due() is all that Celery asks for."""

    class Always:
        def now(self) -> datetime:
            return datetime.now(timezone.utc)

        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return True, 60.0

    before = datetime.now(timezone.utc)
    turn(make(beat_schedule={"e": {"task": "e", "schedule": Always()}}))
    (message,) = history(app)
    assert abs(message.due - before) < timedelta(seconds=PATIENCE)


def test_asked_once(app: Celery, make: Make, road: Road) -> None:
    """A schedule that says that it is due whatever ran last, and in how many seconds to ask it
    again: a pause, a reconnect or an election is no reason to ask it sooner."""
    entries = {"e": {"task": "e", "schedule": Again(60, 3600)}, "other": every(3600)}
    one = make(beat_schedule=entries, zk_beat_hosts=road.hosts)
    turn(one)
    assert len(history(app)) == 1
    turn(one)
    road.cut()
    wait_until(lambda: not one.election.is_master, PATIENCE, "the cut")
    road.open()
    turn(one)
    one._loop._loaded_at = -loop._LOOK_EVERY
    turn(one)
    one.close()
    two = make()
    turn(two)
    assert len(history(app)) == 1
    two.close()
    # A deploy: that was another's word.
    three = make(beat_schedule={"e": {"task": "e", "schedule": Again(61, 0.2)}})
    turn(three)
    assert len(history(app)) == 2
    wait_until(lambda: turn(three) and len(history(app)) >= 3, PATIENCE, "its seconds")
    assert check(history(app)) == []


@pytest.mark.parametrize(
    "delay", [timedelta(hours=1), math.inf, 1e300, math.nan, -1, 0, None, "soon"], ids=repr
)
def test_asked_again_after_anything(app: Celery, make: Make, delay: Any) -> None:
    """Whatever a class says, it can be written, and read."""
    one = make(beat_schedule={"e": {"task": "e", "schedule": Again(60, delay)}})
    turn(one)
    term = one.election.term
    assert term is not None
    one._loop.ledger.load(term)
    state = state_of(one, "e")
    assert state.total_run_count == 1
    kept = delay in (timedelta(hours=1), math.inf, 1e300)
    assert (state.ask is not None) == kept
    assert kept == (state.ask is not None and state.ask[0] > time.time() * 1000)


def test_another_time_zone(app: Celery, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """What ran last by the hours of one time zone does not run at once by those of another."""
    now = datetime.now(timezone.utc)
    was = now - timedelta(minutes=10)

    def deploy(zone: str) -> ZooKeeperScheduler:
        vars(app).pop("timezone", None)
        caplog.clear()
        entries = {
            "c": {"task": "c", "schedule": crontab(minute=was.minute, hour=was.hour)},
            "e": every(7200, "e"),
        }
        for entry in entries.values():
            entry["last_run_at"] = now - timedelta(hours=1)
        scheduler = make(timezone=zone, beat_schedule=entries)
        turn(scheduler)
        return scheduler

    one = deploy("Asia/Kolkata")
    clock = state_of(one, "e").last_run_at
    one.close()
    two = deploy("UTC")
    assert history(app) == []
    assert "1 entries last ran in another time zone (UTC is now at +0000)" in caplog.text
    assert state_of(two, "c").last_run_at >= now
    assert state_of(two, "e").last_run_at == clock
    two.close()
    deploy("Etc/UTC").close()
    assert "time zone" not in caplog.text
    assert history(app) == []


def test_a_schedule_class_without_celerys_attributes(app: Celery, make: Make) -> None:
    """Derived from Celery's, and made without it."""

    class Bare(schedule):
        def __init__(self) -> None:
            pass

        def now(self) -> datetime:
            return datetime.now(timezone.utc)

        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return True, 60.0

        def __repr__(self) -> str:
            return "bare"

    turn(make(beat_schedule={"e": {"task": "e", "schedule": Bare()}}))
    assert [message.task for message in history(app)] == ["e"]


def test_a_naive_clock(app: Celery, make: Make) -> None:
    """`nowfun` may return naive datetimes, in UTC."""

    def now() -> datetime:
        return datetime.now(timezone.utc).replace(tzinfo=None)

    entries = {"e": {"task": "e", "schedule": schedule(0.001, nowfun=now)}}
    scheduler = make(beat_schedule=entries)
    wait_until(lambda: turn(scheduler) and len(history(app)) >= 2, PATIENCE, "two runs")
    assert check(history(app)) == []


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York"])
def test_a_naive_clock_of_the_app(app: Celery, make: Make, zone: str) -> None:
    """Local time, as of Django without USE_TZ: intervals run as they should, and run states hold
    the time in UTC, so that a beat with another clock can go on."""
    app.conf.update(enable_utc=False, timezone=zone)
    app.now = lambda: datetime.now(ZoneInfo(zone)).replace(tzinfo=None)
    began = datetime.now(timezone.utc)
    one = make(beat_schedule={"e": every(0.5), "m": {"task": "m", "schedule": crontab()}})
    turn(one)
    assert history(app) == []
    wait_until(lambda: one._loop.turn() and len(history(app)) >= 3, PATIENCE, "runs")
    for message in history(app):
        assert began <= message.due <= datetime.now(timezone.utc) + timedelta(seconds=1)
    for name in "em":
        assert began <= state_of(one, name).last_run_at <= datetime.now(timezone.utc)
    assert check(history(app)) == []


def test_a_naive_clock_that_is_set_back_in_autumn(app: Celery, make: Make) -> None:
    """An interval goes on meanwhile."""
    ahead = timedelta(hours=2)
    app.now = lambda: datetime.now(timezone.utc).replace(tzinfo=None) + ahead
    one = make(beat_schedule={"e": every(0.3)})
    wait_until(lambda: one._loop.turn() is not None and history(app), PATIENCE, "a run")
    ahead = timedelta(hours=1)
    before = len(history(app))
    wait_until(lambda: one._loop.turn() and len(history(app)) >= before + 3, PATIENCE, "runs")
    assert check(history(app)) == []


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Shanghai"])
@pytest.mark.parametrize(
    "last", [datetime.min.replace(tzinfo=timezone.utc), datetime.min, datetime(1, 1, 1, 12)]
)
def test_a_last_run_that_cannot_be(app: Celery, make: Make, zone: str, last: datetime) -> None:
    """It runs at once, as in Celery; and runs when that is taken out again."""
    app.conf.timezone = zone
    entries = {
        "e": every(60, last_run_at=last),
        "c": {"task": "c", "schedule": crontab(), "last_run_at": last},
    }
    one = make(beat_schedule=entries)
    turn(one)
    assert sorted(message.task for message in history(app)) == ["c", "task"]
    assert len(past_of(one, "e")) == 1
    one.close()
    two = make(beat_schedule={"e": every(0.1)})
    wait_until(lambda: turn(two) and len(history(app)) >= 4, PATIENCE, "runs")


def test_a_state_with_a_last_run_that_cannot_be(
    app: Celery, make: Make, client: KazooClient
) -> None:
    """The earliest that can be written: elsewhere it is in another year."""
    app.conf.timezone = "America/New_York"
    one = make(beat_schedule={"e": every(60)})
    turn(one)
    path = one.election.paths.page(page_of("e"))
    one.close()
    fields = json.loads(client.get(path)[0])
    fields["entries"]["e"][0] = 0
    client.set(path, json.dumps(fields).encode())
    turn(make())
    assert [message.run for message in history(app)] == [1]


def test_arguments_are_made_when_it_is_sent(app: Celery, make: Make) -> None:
    calls: list[int] = []
    lazy = BeatLazyFunc(lambda: calls.append(1))
    scheduler = make(beat_schedule={"e": every(60, args=[lazy], last_run_at=LONG_AGO)})
    assert calls == []
    turn(scheduler)
    assert calls == [1]


def test_eager(app: Celery, make: Make) -> None:
    """task_always_eager: the task runs in the beat itself, with the header."""
    seen: list[Any] = []

    @app.task(shared=False, bind=True, name="eager")
    def eager(self: Any) -> None:
        seen.append((self.request.zk_beat, self.request.headers["zk_beat"], self.request.id))

    entries = {"e": every(60, "eager", last_run_at=LONG_AGO)}
    one = make(task_always_eager=True, beat_schedule=entries)
    turn(one)
    ((mark, same, task_id),) = seen
    assert mark == same
    assert mark["run"] == 1
    assert task_id == one.task_id("e", 1, LONG_AGO + timedelta(seconds=60))


@pytest.mark.parametrize("behind", [None, "celery.beat:Scheduler"])
@pytest.mark.parametrize("propagates", [False, True])
def test_eager_tasks_that_fail(
    app: Celery,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    propagates: bool,
    behind: str | None,
) -> None:
    """A task that raises was executed, and is not executed again; nor is one that is slow. A run
    whose task cannot be called is skipped."""
    calls: list[str] = []

    @app.task(shared=False, name="fails")
    def fails(text: str) -> None:
        calls.append(text)
        raise OSError("the task's own")

    @app.task(shared=False, name="slow")
    def slow() -> None:
        calls.append("slow")
        time.sleep(app.conf.zk_beat_session_timeout + 1)

    app.conf.update(task_always_eager=True, task_eager_propagates=propagates)
    one = make(
        zk_beat_scheduler=behind,
        beat_schedule={
            "a": every(3600, "fails", args=["a"], last_run_at=LONG_AGO),
            "b": every(3600, "slow", last_run_at=LONG_AGO),
            "c": every(3600, "fails", args=["c"], last_run_at=LONG_AGO),
            "d": every(3600, "fails", args=[object()], last_run_at=LONG_AGO),
        },
    )
    for _ in range(6):
        turn(one)
    assert sorted(calls) == ["a", "c", "slow"]
    assert one._loop.ledger.outbox == {}
    assert (one.metrics.published, one.metrics.dropped) == (3, 1)
    lines = [line for line in caplog.messages if "the task's own" in line]
    assert len(lines) == 2


def test_options_stay_as_they_are(app: Celery, make: Make) -> None:
    """Celery writes headers into the dictionary it is given; it is not the user's."""
    options = {"headers": {"colour": "blue"}, "expires": 60}
    entries = {"e": every(60, options=options, last_run_at=LONG_AGO)}
    turn(make(beat_schedule=entries))
    assert options == {"headers": {"colour": "blue"}, "expires": 60}


def test_one_publish_is_one_attempt(app: Celery, make: Make) -> None:
    """Whatever `task_publish_retry` says: between two attempts we look whether we are master."""
    one = make(task_publish_retry=True, beat_schedule={"e": every(60, last_run_at=LONG_AGO)})
    attempts = []

    def publish(*args: Any, **kwargs: Any) -> None:
        attempts.append(kwargs["retry"])
        raise ConnectionResetError

    one.producer.publish = publish
    turn(one)
    assert attempts == [False]
    assert list(one._loop.ledger.outbox) == ["e"]


def test_expires_and_countdown(app: Celery, make: Make) -> None:
    """They count from the publishing, as in Celery, also of a run that waited in the outbox."""
    options = {"expires": 60, "countdown": 30}
    one = make(beat_schedule={"e": every(60, options=options, last_run_at=LONG_AGO)})
    publish = one._loop.dispatcher.publisher.publish
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    published = datetime.now(timezone.utc)
    one._loop.dispatcher.publisher.publish = publish  # type: ignore[method-assign]
    turn(one)
    with redis.Redis.from_url(app.conf.broker_url) as server:
        headers = json.loads(server.lindex("celery", 0))["headers"]
    for name, seconds in (("expires", 60), ("eta", 30)):
        given = datetime.fromisoformat(headers[name])
        assert 0 <= (given - published).total_seconds() - seconds < PATIENCE


@pytest.mark.parametrize(("deadline", "runs"), [(None, 1), (7200, 1), (60, 0)])
def test_starting_deadline(app: Celery, make: Make, deadline: int | None, runs: int) -> None:
    """beat_cron_starting_deadline: a run missed by more is not made, and is not a run; the next
    one is, and none is made twice."""
    clock = Clock("2026-06-01T12:30")
    entry = crontab(minute="0", nowfun=clock, app=app)
    one = make(beat_schedule={"e": {"task": "e", "schedule": entry}})
    app.conf.beat_cron_starting_deadline = deadline
    one._loop.ledger.load(wait_until(lambda: one.election.term, PATIENCE, "a term"))
    one._loop.ledger.first_seen({"e": clock.now - timedelta(hours=1)})
    turn(one)
    assert len(history(app)) == runs
    clock.now += timedelta(minutes=30)
    turn(one)
    turn(one)
    assert [message.run for message in history(app)] == list(range(1, runs + 2))
    assert one.metrics.skipped["deadline"] == 1 - runs


def test_not_due_within_the_starting_deadline(app: Celery, make: Make) -> None:
    """A schedule that says that it is not due, though it would be, is asked again, not skipped."""

    class Closed(crontab):
        closed = True

        def is_due(self, last_run_at: datetime) -> schedstate:
            return schedstate(False, 60) if self.closed else super().is_due(last_run_at)

    clock = Clock("2026-06-01T12:00")
    hourly = Closed(minute="0", nowfun=clock, app=app)
    app.conf.beat_cron_starting_deadline = 3600
    scheduler = make(beat_schedule={"e": {"task": "task", "schedule": hourly}})
    turn(scheduler)
    clock.now += timedelta(hours=1, minutes=5)
    turn(scheduler)
    hourly.closed = False
    turn(scheduler)
    assert (sum(scheduler.metrics.skipped.values()), len(history(app))) == (0, 1)


def test_the_same_run_has_the_same_id(app: Celery, make: Make) -> None:
    """Whoever publishes it; and no other run has it."""
    entries = {name: every(60, name, last_run_at=LONG_AGO) for name in ("a", "a/1")}
    one = make(beat_schedule=entries)
    turn(one)
    two = ZooKeeperScheduler(app=app)
    app.conf.zk_beat_root += "-other"
    other = ZooKeeperScheduler(app=app)
    sent = history(app)
    assert {message.task for message in sent} == {"a", "a/1"}
    for of in sent:
        assert one.task_id(of.entry, of.run, of.due) == of.id
        assert two.task_id(of.entry, of.run, of.due) == of.id
        assert two.task_id(of.entry, of.run, of.due + timedelta(seconds=1)) != of.id
        assert two.task_id(of.entry, of.run + 1, of.due) != of.id
        assert other.task_id(of.entry, of.run, of.due) != of.id


def test_claimed_and_not_published(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The next master publishes what the last one had claimed, with its number and its due."""
    one = make(beat_schedule={"e": every(60, last_run_at=LONG_AGO)})
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    (run,) = one._loop.ledger.outbox.values()
    assert history(app) == []
    two = make()
    one.close()
    turn(two)
    (message,) = history(app)
    assert (message.run, message.due, message.epoch) == (run.number, run.due, 2)
    assert "e: run 1, due 2020-01-01T00:01:00" in caplog.text
    turn(two)
    assert len(history(app)) == 1
    assert two._loop.ledger.outbox == {}


@pytest.mark.parametrize("who", ["it", "the next", "the next, of one that died"])
@pytest.mark.parametrize("kind", [schedule, crontab])
def test_one_run_for_all_that_was_missed(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch, kind: Any, who: str
) -> None:
    """[I2] What comes due while a run waits for the broker needs no other, unless the run may have
    left before: then it is done already, perhaps, and what came due since is not."""
    clock = Clock("2026-06-01T12:30")
    every_hour = {"run_every": 3600} if kind is schedule else {"minute": 0}
    entry = {"task": "task", "schedule": kind(nowfun=clock, app=app, **every_hour)}
    one = make(beat_schedule={"e": entry})
    turn(one)
    first = clock.now + timedelta(hours=1 if kind is schedule else 0.5)
    good = away(app)
    clock.now += timedelta(hours=1)
    turn(one)
    assert list(one._loop.ledger.outbox) == ["e"]
    clock.now += timedelta(hours=3)
    turn(one)
    back(app, good, one)
    if who == "the next, of one that died":
        monkeypatch.setattr(one._loop.ledger, "confirm", lambda: None)
        turn(one)
        one.election.stop()
        clock.now += timedelta(hours=1)
    elif who == "the next":
        one._loop.hand_over()
        one.close()
    last = one if who == "it" else make()
    for _ in range(3):
        turn(last)
    runs = history(app)
    had_left = who == "the next, of one that died"
    expected = (
        [(1, first), (1, first), (2, first + timedelta(hours=1))] if had_left else [(1, first)]
    )
    assert [(run.run, run.due) for run in runs] == expected
    assert {run.id for run in runs[:2]} >= {last.task_id("e", 1, first)}
    last._loop.ledger.flush()
    state = state_of(last, "e")
    assert state.last_run_at == clock.now
    clock.now += timedelta(hours=1)
    turn(last)
    due = first + timedelta(hours=clock.now.hour - first.hour)
    assert [(run.run, run.due) for run in history(app)[len(runs) :]] == [(expected[-1][0] + 1, due)]


def test_what_certainly_has_not_left_is_not_dropped(app: Celery, make: Make) -> None:
    """With zk_beat_recovery = "drop", also when the states are read anew."""
    sched = {"e": every(3600, "e", last_run_at=LONG_AGO)}
    one = make(beat_schedule=sched, zk_beat_recovery="drop", zk_beat_publish_deadline=None)
    good = away(app)
    turn(one)
    one._loop.say_goodbye()
    one.election.stop()
    two = make()
    turn(two)
    two._loop.ledger.forget()
    turn(two)
    assert two._loop.ledger.unsent == {"e"}
    back(app, good, two)
    turn(two)
    assert [message.entry for message in history(app)] == ["e"]


def test_the_answer_of_the_broker_was_lost(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the message, and a receiver that does each task id once has done it: what comes due
    afterwards is another run's, though the first is sent again."""
    clock = Clock("2026-06-01T12:30")
    entry = {"task": "task", "schedule": schedule(3600, nowfun=clock, app=app)}
    one = make(beat_schedule={"e": entry})
    turn(one)
    first = clock.now + timedelta(hours=1)
    clock.now = first
    begin = one._broker._begin

    def lost(channel: Any) -> None:
        begin(channel)
        one._broker.producer.channel.client.lpush("celery", "{}")
        raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(one._broker, "_begin", lost)
    turn(one)
    monkeypatch.undo()
    assert list(one._loop.ledger.outbox) == ["e"]
    with redis.Redis.from_url(app.conf.broker_url) as server:
        server.delete("celery")
    clock.now += timedelta(hours=2)
    wait_until(lambda: turn(one) is not None and len(history(app)) == 2, PATIENCE, "both")
    assert [(run.run, run.due) for run in history(app)] == [
        (1, first),
        (2, first + timedelta(hours=1)),
    ]


class Events(BaseSchedule):
    """Due once for each event: whoever asks takes it."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def is_due(self, last_run_at: datetime) -> Any:
        is_due = bool(self.events)
        if is_due:
            self.events.pop()
        return schedstate(is_due, 0.01)


def test_a_schedule_is_not_asked_for_a_run_that_is_late(app: Celery, make: Make) -> None:
    """What it says then would be lost."""
    events: list[str] = []
    one = make(beat_schedule={"e": {"task": "e", "schedule": Events(events)}})
    events.append("one")
    good = away(app)
    wait_until(lambda: turn(one) is not None and one._loop.ledger.outbox, PATIENCE, "a claim")
    claimed = one._loop.ledger.outbox["e"].claimed
    wait_until(
        lambda: datetime.now(timezone.utc) - claimed > timedelta(seconds=0.3), PATIENCE, "late"
    )
    events.append("two")
    back(app, good, one)
    wait_until(lambda: turn(one) is not None and len(history(app)) == 2, PATIENCE, "both")


class Every(BaseSchedule):
    """Due so long after it ran last; does not show how long."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def is_due(self, last_run_at: datetime) -> Any:
        left = self.seconds - (self.now() - last_run_at).total_seconds()
        return schedstate(left <= 0, self.seconds if left <= 0 else left)


def test_a_deploy_of_another_period(app: Celery, make: Make) -> None:
    """Which is asked again, for it is not the schedule that said when to."""
    one = make(
        beat_schedule={"e": {"task": "e", "schedule": Every(86400), "last_run_at": LONG_AGO}}
    )
    turn(one)
    assert len(history(app)) == 1
    one.close()
    two = make(beat_schedule={"e": {"task": "e", "schedule": Every(0.1)}})
    wait_until(lambda: turn(two) is not None and len(history(app)) > 2, PATIENCE, "its runs")


def test_no_second_run_when_the_broker_is_back(app: Celery, make: Make) -> None:
    one = make(beat_schedule={"e": every(0.7)})
    good = away(app)
    turn(one)
    wait_until(lambda: one._loop.turn() is not None and one._loop.ledger.outbox, PATIENCE, "a run")
    claimed = one._loop.ledger.outbox["e"].claimed
    wait_until(
        lambda: one._loop.turn() and datetime.now(timezone.utc) - claimed > timedelta(seconds=1.5),
        PATIENCE,
        "the next two to come due",
    )
    back(app, good, one)
    wait_until(
        lambda: one._loop.turn() is not None and len(history(app)) == 3, PATIENCE, "three runs"
    )
    past = past_of(one, "e")
    assert all(then.due > run.at - timedelta(seconds=0.5) for run, then in zip(past, past[1:]))
    assert past[0].at - past[0].due > timedelta(seconds=1.5)


def test_a_run_that_was_asked_for_stands_for_no_other(app: Celery, make: Make) -> None:
    clock = Clock("2026-06-01T12:30")
    one = make(beat_schedule={"e": {"task": "e", "schedule": schedule(3600, nowfun=clock)}})
    turn(one)
    begun, good = clock.now, away(app)
    state = state_of(one, "e")
    now = datetime.now(timezone.utc)
    one._loop.dispatcher.claim([Run("e", state.total_run_count + 1, now, now, 1, True, state.key)])
    clock.now += timedelta(hours=2)
    turn(one)
    back(app, good, one)
    turn(one)
    turn(one)
    assert [(run.run, run.due) for run in history(app)] == [
        (1, now),
        (2, begun + timedelta(hours=1)),
    ]


def test_dropped(app: Celery, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """zk_beat_recovery = "drop": what an earlier master left is noted and not published."""
    one = make(beat_schedule={"e": every(60, last_run_at=LONG_AGO)}, zk_beat_recovery="drop")
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    one.close()
    two = make()
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def receiver(**event: Any) -> None:
        told.put(event)

    run_dropped.connect(receiver, sender=two)
    turn(two)
    assert history(app) == []
    assert "e: run 1, due 2020-01-01T00:01:00" in caplog.text
    assert "it is dropped" in caplog.text
    assert state_of(two, "e").dropped == (1,)
    assert two._loop.ledger.outbox == {}
    assert told.get(timeout=PATIENCE) == {
        "signal": run_dropped,
        "sender": two,
        "entry": "e",
        "run": 1,
        "due": datetime(2020, 1, 1, 0, 1, tzinfo=timezone.utc),
        "epoch": 2,
        "reason": "zk_beat_recovery, perhaps published in epoch 1 or before",
    }


def test_ones_own_runs_are_not_dropped(app: Celery, make: Make, road: Road) -> None:
    """What this master claimed and has not published is not in doubt, whatever it lost
    meanwhile."""
    one = make(
        beat_schedule={"e": every(60, last_run_at=LONG_AGO)},
        zk_beat_recovery="drop",
        zk_beat_hosts=road.hosts,
    )
    publish = one._loop.dispatcher.publisher.publish
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    one._loop.dispatcher.publisher.publish = publish  # type: ignore[method-assign]
    road.cut()
    wait_until(lambda: not one.election.is_master, PATIENCE, "the cut")
    road.open()
    turn(one)
    assert [message.run for message in history(app)] == [1]


def test_a_lost_confirmation_repeats_nothing(app: Celery, make: Make, road: Road) -> None:
    """[I3] Published, then cut off before ZooKeeper knew: the same process knows."""
    one = make(beat_schedule={"e": every(60, last_run_at=LONG_AGO)}, zk_beat_hosts=road.hosts)
    send = one._loop.dispatcher.publisher._send

    def send_and_cut(*args: Any) -> None:
        send(*args)
        road.cut()
        wait_until(lambda: not one.election.is_master, PATIENCE, "the cut")

    one._loop.dispatcher.publisher._send = send_and_cut  # type: ignore[assignment]
    turn(one)
    road.open()
    one._loop.dispatcher.publisher._send = send  # type: ignore[method-assign]
    turn(one)
    one._loop.say_goodbye()
    one.close()
    turn(make())
    assert [message.run for message in history(app)] == [1]


def test_a_master_without_a_broker_resigns(
    app: Celery,
    make: Make,
    redis_server: Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After zk_beat_publish_deadline; the next one goes on with the same outbox."""
    monkeypatch.setattr(restraint, "RESIGN_PAUSE", PATIENCE)
    caplog.set_level("INFO")
    entries = {"e": every(60, last_run_at=LONG_AGO)}
    good = app.conf.broker_url
    one = make(beat_schedule=entries, zk_beat_publish_deadline=0.2, zk_beat_id="one")
    assert one.election.wait(PATIENCE)
    app.conf.broker_write_url = app.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    two = make(zk_beat_id="two")

    def resigned() -> bool:
        one._loop.turn()
        return bool(two.election.is_master)

    wait_until(resigned, PATIENCE, "another master")
    assert "zk_beat_publish_deadline = 0.2" in caplog.text
    assert "demoted: one was master, epoch 1: resigned" in caplog.text
    app.conf.broker_write_url = app.conf.broker_url = good
    two._broker.drop()
    turn(two)
    (message,) = history(app)
    assert (message.run, message.epoch, message.master) == (1, 2, "two")


def test_a_mended_page_is_noticed(app: Celery, make: Make, client: KazooClient) -> None:
    """Without a restart."""
    one = make(beat_schedule={"e": every(0.001, "e")})
    wait_until(lambda: turn(one) and history(app), PATIENCE, "a run")
    path = f"{one.election.paths.runs}/{page_of('e')}"
    good = client.get(path)[0]
    client.set(path, b"{")
    one._loop.ledger.forget()
    turn(one)
    one._loop.dispatcher.publisher.publish_soon(one._loop.ledger.outbox.values())  # claimed before
    before = len(history(app))
    client.set(path, good)
    turn(one)
    assert len(history(app)) == before
    one._loop._loaded_at = -1e9  # long ago
    wait_until(lambda: turn(one) and len(history(app)) > before, PATIENCE, "a run")


def test_another_schedule(app: Celery, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Seen by the standby, when it sees the master."""
    make(beat_schedule={"a": every(60)}, zk_beat_id="one").election.wait(PATIENCE)
    make(beat_schedule={"b": every(60)}, zk_beat_id="two")
    assert "one, the master, has a different schedule from two" in caplog.text


@pytest.mark.parametrize(("shift", "says"), [(5.0, "ahead of"), (-5.0, "behind")])
def test_a_clock_that_is_off(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shift: float,
    says: str,
) -> None:
    """Noticed by a standby, too: ZooKeeper's answers bear its time."""
    make(zk_beat_id="one").election.wait(PATIENCE)
    now = clock.timestamp
    monkeypatch.setattr(clock, "timestamp", lambda: now() + shift)
    two = make(zk_beat_id="two")
    wait_until(lambda: two.election.clock_offset, PATIENCE, "an offset")
    assert abs(two.election.clock_offset - shift) < 2
    assert f"s {says} that of ZooKeeper" in caplog.text


@pytest.mark.parametrize("shift", [5, -5])
def test_clocks_apart(app: Celery, make: Make, shift: float) -> None:
    """A failover to a beat whose clock is 5 s ahead or behind: runs go on, one after another, none
    is lost or made twice, though one comes so much early or late."""
    off = timedelta(0)

    class Shifted(Celery):
        def now(self) -> datetime:
            now: datetime = super().now()
            return now + off

    entries = {"e": {"task": "e", "schedule": 2.0}}
    one = make(beat_schedule=entries)
    app.__class__ = Shifted
    wait_until(lambda: turn(one) and len(history(app)) >= 1, PATIENCE, "a run")
    one._loop.say_goodbye()
    one.close()
    off = timedelta(seconds=shift)
    two = make()
    before = len(history(app))
    wait_until(lambda: turn(two) and len(history(app)) >= before + 2, PATIENCE, "two runs")
    assert check(history(app)) == []
    two._loop.say_goodbye()


def test_claimed_by_a_newer_release(app: Celery, make: Make) -> None:
    """A run of an entry that this beat does not know stays in the outbox, for one that does."""
    one = make(beat_schedule={"new": every(60, last_run_at=LONG_AGO)})
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    one.close()
    two = make(beat_schedule={"old": every(60, "old", last_run_at=LONG_AGO)})
    assert turn(two) > 1  # nor does it keep the beat busy
    assert [message.task for message in history(app)] == ["old"]
    two.close()
    three = make(beat_schedule={"new": every(60, "new", last_run_at=LONG_AGO)})
    turn(three)
    assert [message.task for message in history(app)] == ["old", "new"]


def test_cut_off_between_claim_and_publish(
    app: Celery, make: Make, zookeeper: ZooKeeper, road: Road
) -> None:
    """[1] [2] What is claimed is not published by a beat that cannot be sure any more; once it is
    again, it is, once."""
    one = make(zk_beat_hosts=road.hosts, beat_schedule={"e": every(60, last_run_at=LONG_AGO)})
    publish = one._loop.dispatcher.publisher.publish

    def cut_and_publish(runs: Iterable[Run]) -> None:
        road.cut()
        wait_until(lambda: not one.election.session.connected, PATIENCE, "the cut")
        publish(runs)

    one._loop.dispatcher.publisher.publish = cut_and_publish  # type: ignore[method-assign]
    turn(one)
    assert history(app) == []
    one._loop.dispatcher.publisher.publish = publish  # type: ignore[method-assign]
    road.open()
    turn(one)
    assert [message.run for message in history(app)] == [1]
    turn(one)
    assert len(history(app)) == 1


def test_woken_after_a_long_pause(app: Celery, make: Make, road: Road) -> None:
    """[2] [I4] As after a suspend: the claim is older than what the session time-out allows, so the
    server is asked before anything is published."""
    one = make(zk_beat_hosts=road.hosts, beat_schedule={"e": every(60, last_run_at=LONG_AGO)})
    publish = one._loop.dispatcher.publisher.publish

    def pause_and_publish(runs: Iterable[Run]) -> None:
        if not runs:
            return
        one._loop.ledger._entitled_until = 0.0  # the pause
        road.block()
        with pytest.raises((NotMaster, Uncertain)):
            one._loop.ledger.assure()
        publish(runs)

    one._loop.dispatcher.publisher.publish = pause_and_publish  # type: ignore[method-assign]
    turn(one)
    assert history(app) == []


def test_woken_while_the_message_is_made(app: Celery, make: Make, road: Road) -> None:
    """[I4] As before, but the pause falls between the check and the sending: it is checked once
    more at the last moment."""
    one = make(zk_beat_hosts=road.hosts)
    wait_until(lambda: one.election.is_master, PATIENCE, "a master")

    def pause() -> str:
        one._loop.ledger._entitled_until = 0.0
        road.cut()
        wait_until(lambda: not one.election.is_master, PATIENCE, "the cut")
        return "argument"

    lazy = BeatLazyFunc(pause)
    one.update_from_dict({"e": every(60, args=[lazy], last_run_at=LONG_AGO)})
    turn(one)
    assert history(app) == []
    one.schedule["e"].args = []
    road.open()
    turn(one)
    assert [message.run for message in history(app)] == [1]


def test_damaged_page(app: Celery, make: Make, client: KazooClient) -> None:
    """Its entries wait until it is mended; nothing is reset."""
    names = {"a": every(0.001, "a"), "b": every(0.001, "b")}
    one = make(beat_schedule=names)
    wait_until(lambda: turn(one) and len(history(app)) > 2, PATIENCE, "runs")
    one._loop.say_goodbye()
    one.close()
    path = f"{one.election.paths.runs}/{page_of('a')}"
    good = client.get(path)[0]
    client.set(path, b"{")
    before = len(history(app))
    two = make()
    wait_until(lambda: turn(two) and len(history(app)) > before + 2, PATIENCE, "runs")
    assert {message.task for message in history(app)[before:]} == {"b"}
    client.set(path, good)
    two._loop.say_goodbye()
    two.close()
    three = make()
    before = len(history(app))

    def mended() -> bool:
        turn(three)
        return any(message.task == "a" for message in history(app)[before:])

    wait_until(mended, PATIENCE, "a run of the mended entry")
    assert check(history(app)) == []


def test_tasks_that_nobody_knows(app: Celery, make: Make) -> None:
    """Sent by name, as Celery does: a worker may know them."""
    turn(make(beat_schedule={"e": every(60, "some.where.else", last_run_at=LONG_AGO)}))
    assert [message.task for message in history(app)] == ["some.where.else"]


def test_digest(app: Celery) -> None:
    """The same for the same schedule, another for another."""

    def digest(**entries: Any) -> str:
        app.conf.beat_schedule = entries
        return ZooKeeperScheduler(app=app).digest()

    assert digest(a=every(1), b=every(2)) == digest(b=every(2), a=every(1))

    class Bare(schedule):
        __repr__ = object.__repr__

    assert len({digest(a={"task": "x", "schedule": Bare(1)}) for _ in range(3)}) == 1
    several = [digest(a=every(1)), digest(a=every(2)), digest(b=every(1)), digest(a=every(1, "x"))]
    assert len(set(several)) == len(several)


def days(
    make: Make, clock: Clock, hours: float, spec: dict[str, str] | str, failover: bool
) -> None:
    """Lets the clock go in steps of five minutes; with `failover`, before each of them."""
    that = cron(spec, nowfun=clock) if isinstance(spec, str) else crontab(nowfun=clock, **spec)
    entries = {"e": {"task": "e", "schedule": that}}
    scheduler = make(beat_schedule=entries)
    # The clock of the scheduler itself is years away from the one of the schedule.
    scheduler._loop.ledger.load(wait_until(lambda: scheduler.election.term, PATIENCE, "a term"))
    scheduler._loop.ledger.first_seen({"e": clock.now})
    for _ in range(int(hours * 12)):
        clock.now += timedelta(minutes=5)
        if failover:
            scheduler.close()
            scheduler = make()
        turn(scheduler)
    scheduler.close()


@pytest.mark.parametrize("failover", [False, True])
@pytest.mark.parametrize(
    ("start", "hours", "spec", "due"),
    [
        # Clocks go from 3:00 back to 2:00: it runs in the first of the two hours.
        ("2026-10-25T01:50", 3, {"hour": "2", "minute": "30"}, ["00:30"]),
        # What Celery makes of entries within the repeated hour: they rest in its second half.
        ("2026-10-25T01:50", 2, {"minute": "*/30"}, ["00:00", "00:30"]),
        # Clocks go from 2:00 on to 3:00: what is due in between runs after it.
        ("2026-03-29T01:45", 3, {"hour": "2", "minute": "30"}, ["01:30"]),
        ("2026-03-29T01:45", 2, {"minute": "*/30"}, ["01:00", "01:30", "02:00", "02:30"]),
        # Ours: it runs at once after the hour that is skipped, and in both of the repeated ones.
        ("2026-10-25T01:50", 3, "30 2 * * *", ["00:30"]),
        ("2026-10-25T01:50", 2, "*/30 * * * *", ["00:00", "00:30", "01:00", "01:30"]),
        ("2026-03-29T01:45", 3, "30 2 * * *", ["01:00"]),
    ],
    ids=[
        *("repeated", "repeated, often", "skipped", "skipped, often"),
        *("repeated, cron", "repeated, often, cron", "skipped, cron"),
    ],
)
def test_daylight_saving(
    app: Celery,
    make: Make,
    start: str,
    hours: float,
    spec: dict[str, str] | str,
    due: list[str],
    failover: bool,
) -> None:
    """[30] A failover, be it every five minutes, changes nothing of what Celery does in the hour
    that is repeated or skipped: the same runs, for the same instants."""
    app.conf.timezone = "Europe/Berlin"
    clock = Clock(start)
    days(make, clock, hours, spec, failover)
    sent = history(app)
    assert [message.run for message in sent] == list(range(1, len(due) + 1))
    if isinstance(spec, str):
        assert [f"{message.due:%H:%M}" for message in sent] == due


def test_no_waiting_for_ever(app: Celery) -> None:
    """Where kombu has no time-outs, the beat has; the user's own win."""
    app.conf.broker_transport_options = {"socket_timeout": 60, "priority_steps": [0]}
    options = ZooKeeperScheduler(app=app).connection.transport_options
    assert options["socket_timeout"] == 60
    assert options["socket_connect_timeout"] == pytest.approx(4.0 / 3)  # the rest of the session
    assert options["priority_steps"] == [0]
    amqp = Celery("shop", broker="amqp://127.0.0.1", set_as_current=False)
    options = ZooKeeperScheduler(app=amqp).connection.transport_options
    assert options == {"read_timeout": 5, "write_timeout": 5, "confirm_publish": True}
    memory = Celery("shop", broker="memory://", set_as_current=False)
    assert ZooKeeperScheduler(app=memory).connection.transport_options == {}


def test_the_kernel_gives_up_before_the_session_ends(app: Celery, make: Make) -> None:
    """What it still holds of a message must not arrive when another is master."""
    one = make(beat_schedule={"e": every(60, last_run_at=LONG_AGO)})
    turn(one)
    (connection,) = one.producer.channel.client.connection_pool._available_connections
    held = connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert held / 1000 == pytest.approx(one.election.session.timeout / 3, abs=0.001)


def test_progress_is_seen(app: Celery) -> None:
    """[24] [25] tick() returns again and again on a beat that has nothing to do, and 0, so that
    Celery does not sleep; errors of the loop come out of it."""
    scheduler = ZooKeeperScheduler(app=app)
    try:
        assert [scheduler.tick() for _ in range(2)] == [0, 0]
        scheduler._loop.turn = lambda: 1 / 0  # type: ignore[method-assign]
        scheduler._loop.wake()
        with pytest.raises(ZeroDivisionError):
            collections.deque(iter(scheduler.tick, None), maxlen=0)
    finally:
        scheduler.close()
        scheduler.close()


def raises() -> None:
    raise FileNotFoundError("what the transport takes for a lost connection")


def test_one_that_looks_like_a_broker_that_is_away(app: Celery, make: Make) -> None:
    """It is the oldest in the outbox, and yet the others have their turn."""
    bad = every(60, "bad", args=[BeatLazyFunc(raises)], last_run_at=LONG_AGO)
    one = make(beat_schedule={"bad": bad, "good": every(0.05, "good")})
    wait_until(lambda: turn(one) and len(history(app)) >= 3, PATIENCE, "runs of the good one")
    assert {message.task for message in history(app)} == {"good"}
    assert "bad" in one._loop.ledger.outbox


def test_a_broker_away_under_many_entries(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outbox is bounded, no turn is endless, and each entry has one run afterwards."""
    monkeypatch.setattr(broker, "_BACK_OFF", 1.0)  # not over before a slow turn is
    good = app.conf.broker_url
    app.conf.broker_write_url = app.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    names = [f"e{number}" for number in range(3 * MOST_RUNS)]
    one = make(beat_schedule={name: every(3600, name, last_run_at=LONG_AGO) for name in names})
    turn(one)
    for _ in range(5):
        assert 0 < one._loop.turn() < PATIENCE
        assert len(one._loop.ledger.outbox) == MOST_RUNS
    app.conf.broker_write_url = app.conf.broker_url = good
    one._broker.drop()

    def all_sent() -> bool:
        one._loop.turn()
        return len(history(app)) >= len(names)

    wait_until(all_sent, 3 * PATIENCE, "all of them")
    assert check(history(app)) == []
    assert sorted(message.task for message in history(app)) == sorted(names)


def test_what_no_schedule_names_takes_no_room(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[I12] Deploys that rename entries while the broker is away."""
    monkeypatch.setattr(dispatcher, "MOST_RUNS", 10)
    good = away(app)
    for version in ("a", "b", "c"):
        names = [f"{version}{n}" for n in range(10)]
        one = make(beat_schedule={name: every(3600, last_run_at=LONG_AGO) for name in names})
        turn(one)
        assert one._loop.ledger.outbox.keys() >= set(names)
        one.close()
    app.conf.broker_write_url = app.conf.broker_url = good
    two = make(beat_schedule={f"now{n}": every(3600, last_run_at=LONG_AGO) for n in range(10)})
    turn(two)
    wait_until(
        lambda: two._loop.turn() is not None and len(history(app)) == 10, PATIENCE, "its runs"
    )
    assert len(two._loop.ledger.outbox) == 30
    assert two.metrics.dropped == 0


def test_what_no_schedule_names_is_dropped(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a while; before that, a beat that knows the entry publishes it."""
    away(app)
    for name in ("renamed", "other"):
        one = make(beat_schedule={name: every(3600, last_run_at=LONG_AGO)})
        turn(one)
        one.close()
    monkeypatch.setattr(dispatcher, "_LOOK_AT_HELD_EVERY", 0.0)
    two = make(beat_schedule={"other": every(3600)})
    turn(two)
    assert two._loop.ledger.outbox.keys() == {"renamed", "other"}
    monkeypatch.setattr(dispatcher, "UNNAMED_FOR", timedelta(0))
    two._loop.turn()
    assert two._loop.ledger.outbox.keys() == {"other"}
    why = "no schedule names it, for longer than 0 d"
    assert [past.note for past in past_of(two, "renamed")] == [f"dropped: {why}"]
    assert "renamed: run 1" in caplog.text
    assert two.metrics.dropped == 1


def test_too_much_is_held_back(
    app: Celery, make: Make, client: KazooClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no schedule names goes first, then what cannot be published."""
    away(app)
    one = make(beat_schedule={f"old{n}": every(3600, last_run_at=LONG_AGO) for n in range(2)})
    turn(one)
    one.close()
    two = make(beat_schedule={f"bad{n}": every(3600, last_run_at=LONG_AGO) for n in range(2)})
    turn(two)
    sizes = {name: bytes_of([run]) for name, run in two._loop.ledger.outbox.items()}
    assert sizes.keys() == {"old0", "old1", "bad0", "bad1"}
    for name in ("bad0", "bad1"):
        two._loop.dispatcher.publisher._back_off.punish(name)
    client.delete(two.election.paths.page(page_of("old0")))  # there is no state for the note
    two._loop.ledger.forget()
    for left in (["old1", "bad0", "bad1"], ["bad0", "bad1"], []):
        monkeypatch.setattr(dispatcher, "MOST_HELD", sum(sizes[name] for name in left))
        turn(two)
        assert sorted(two._loop.ledger.outbox) == sorted(left)
    (past,) = past_of(two, "bad0")
    assert (
        past.note
        == "dropped: it cannot be published, and the outbox has no room for more held runs"
    )
    assert state_of(two, "old0").dropped == (1,)


@pytest.mark.parametrize("bad", [10, 30])
def test_what_cannot_be_published_holds_no_other_up(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """[I12] However many there are."""
    monkeypatch.setattr(dispatcher, "MOST_RUNS", 10)
    monkeypatch.setattr(dispatcher, "_MOST_CLAIMED", 5)
    queue = {"queue": "refused", "routing_key": "refused"}
    entries = {f"bad{n}": every(3600, last_run_at=LONG_AGO, options=queue) for n in range(bad)}
    one = make(beat_schedule={**entries, "good": every(0.3, "good")})
    send = one._loop.dispatcher.publisher._send

    def refuse(run: Run, *args: Any) -> None:
        if run.entry != "good":
            raise OSError("refused")
        send(run, *args)

    one._loop.dispatcher.publisher._send = refuse  # type: ignore[assignment]
    wait_until(
        lambda: one._loop.turn() is not None and len(history(app)) == 10, PATIENCE, "ten runs"
    )
    assert {message.task for message in history(app)} == {"good"}
    assert len(one._loop.ledger.outbox) == bad


@pytest.mark.parametrize("is_long", [True, False])
def test_an_entry_that_is_put_back(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    """It does not run at once for what was due while no schedule named it, also where the schedule
    changes under a living master; but it does after a short absence, as in a rolling deploy."""
    monkeypatch.setattr(runs, "ABSENCE", timedelta(hours=0 if is_long else 1))
    entries = {"nightly": every(3600), "x": every(3600)}
    one = make(beat_schedule=entries)
    turn(one)
    state = state_of(one, "nightly")
    long_ago = state.last_run_at - timedelta(days=10)
    one._loop.ledger.rewrite({"nightly": replace(state, last_run_at=long_ago, total_run_count=7)})
    removed = one.schedule.pop("nightly")
    turn(one)
    one.schedule["nightly"] = removed
    turn(one)
    assert len(history(app)) == (0 if is_long else 1)
    one.close()
    two = make(beat_schedule={"x": every(3600)})
    turn(two)
    two.close()
    three = make(beat_schedule=entries)
    turn(three)
    assert len(history(app)) == (0 if is_long else 1)
    assert state_of(three, "nightly").total_run_count == (7 if is_long else 8)


def test_a_long_list_is_not_told_at_each_take_over(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a broker, beats take turns, and each finds the same outbox."""
    entries = {f"e{number}": every(3600, last_run_at=LONG_AGO) for number in range(100)}
    one = make(beat_schedule=entries)
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)

    def told(words: str) -> list[str]:
        found = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
        return [message for message in found if words in message]

    caplog.clear()
    one._loop.ledger.forget()
    turn(one)
    assert told("perhaps") == []  # they were not: it claimed them itself
    assert told("claimed") == ["100 runs were claimed before and will be published now"]
    one.election.stop()
    two = make()
    two._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(two)
    assert 0 < len(told("perhaps not published")) < 50
    assert told("perhaps not published")[-1].startswith("100 runs in all")


def test_an_entry_without_a_schedule(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """One line that names it; the others run."""
    without = {"task": "task"}
    one = make(beat_schedule={"without": without, "e": every(3600, "e", last_run_at=LONG_AGO)})
    turn(one)
    turn(one)
    assert [message.task for message in history(app)] == ["e"]
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (line,) = [record for record in said if "without" in record.getMessage()]
    assert line.getMessage() == "without: its schedule is missing: it is never due"
    assert line.exc_info is None


def test_progress_is_seen_in_a_long_turn(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is slow, but takes each message, is no reason to end."""
    monkeypatch.setattr(loop, "SHOWN_EVERY", 0.0)
    entries = {name: every(3600, name, last_run_at=LONG_AGO) for name in ("a", "b", "c")}
    one = make(beat_schedule=entries)
    seen: list[object] = []
    send = one._loop.dispatcher.publisher._send
    one._progress.wait(0)

    def slow(*args: Any) -> None:
        seen.append(one._progress.wait(0))
        send(*args)

    one._loop.dispatcher.publisher._send = slow  # type: ignore[assignment]
    turn(one)
    assert seen == [False, True, True]  # after the first, and after the second


def test_dropped_without_a_state(app: Celery, make: Make, client: KazooClient) -> None:
    """There is nothing to note it in: then it is published, and the log says so."""
    one = make(beat_schedule={"e": every(60, last_run_at=LONG_AGO)}, zk_beat_recovery="drop")
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    client.delete(one.election.paths.page(page_of("e")))
    one.close()
    two = make()
    turn(two)
    assert [message.run for message in history(app)] == [1]


def test_an_entry_that_cannot_be_scheduled(app: Celery, make: Make) -> None:
    """A last run that is no instant: the others run."""
    entries = {
        "bad": every(60, "bad", last_run_at="yesterday"),
        "good": every(60, "good", last_run_at=LONG_AGO),
    }
    turn(make(beat_schedule=entries))
    assert [message.task for message in history(app)] == ["good"]


def test_added_while_the_heap_is_built(app: Celery, make: Make) -> None:
    """By another thread: it is not forgotten."""
    one = make(beat_schedule={"a": every(3600, "a", last_run_at=LONG_AGO)})
    assert one.election.wait(PATIENCE)
    first_seen = RunLedger.first_seen

    def add_meanwhile(*args: Any, **more: Any) -> None:
        del vars(one._loop.ledger)["first_seen"]
        first_seen(one._loop.ledger, *args, **more)
        one.update_from_dict({"b": every(3600, "b", last_run_at=LONG_AGO)})

    vars(one._loop.ledger)["first_seen"] = add_meanwhile
    one._loop.turn()
    one._loop.turn()
    assert {message.task for message in history(app)} == {"a", "b"}


def test_closed_before_its_thread_runs(app: Celery) -> None:
    """By a signal, between two lines of the first tick."""
    scheduler = ZooKeeperScheduler(app=app)
    scheduler._thread = threading.Thread()
    scheduler.close()


def test_closed_while_the_first_tick_makes_the_loop(app: Celery, client: KazooClient) -> None:
    """By a signal: nothing is dispatched, and the session ends."""

    class Interrupted(ZooKeeperScheduler):
        def digest(self) -> str:
            self.close()
            return super().digest()

    app.conf.beat_schedule = {"e": every(0.001, "e", last_run_at=LONG_AGO)}
    scheduler = Interrupted(app=app)
    scheduler.tick()
    assert scheduler._thread is not None
    scheduler._thread.join(PATIENCE)
    assert not scheduler._thread.is_alive()
    scheduler.close()
    assert history(app) == []
    assert client.exists(scheduler.election.paths.master) is None


def test_an_entry_without_options(
    app: Celery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """If a program takes them away, its run cannot be sent, and the others go on."""
    entries = {name: every(60, last_run_at=LONG_AGO) for name in ("a", "b")}
    one = make(beat_schedule=entries)
    one.schedule["a"].options = None
    turn(one)
    wait_until(lambda: turn(one) and not one._loop.ledger.outbox, PATIENCE, "the end of both")
    assert [message.entry for message in history(app)] == ["b"]
    assert [past.note for past in past_of(one, "a") if past.was_dropped]
