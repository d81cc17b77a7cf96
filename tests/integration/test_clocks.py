"""Clocks of day that are wrong, for a moment or for good; turned by hand, on a real ZooKeeper,
whose clock is right."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import crontab

from celery_zk_beat import ZooKeeperScheduler, clock
from celery_zk_beat.due import next_free, next_run
from celery_zk_beat.runs import end_of
from example_project.servers import wait_until
from tests.conftest import PATIENCE
from tests.history import check

from .conftest import LONG_AGO, Make, away, every, history, state_of, turn


class Day:
    """The clock of day of all that runs here: so much ahead of the real one."""

    ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self.ahead


@pytest.fixture
def day(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Day:
    day = Day()

    class ShiftedApp(Celery):
        def now(self) -> datetime:
            right: datetime = super().now()
            return right + day.ahead

    monkeypatch.setattr(clock, "now", day.now)
    monkeypatch.setattr(clock, "timestamp", lambda: day.now().timestamp())
    app.__class__ = ShiftedApp
    return day


def runs(app: Celery, scheduler: ZooKeeperScheduler, count: int) -> None:
    """Turns it until there are so many more."""
    count += len(history(app))
    wait_until(
        lambda: scheduler._loop.turn() is not None and len(history(app)) >= count, PATIENCE, "runs"
    )


def check_instants(app: Celery) -> None:
    """None runs twice."""
    instants = [(message.entry, message.due) for message in history(app)]
    assert len(set(instants)) == len(instants)


@pytest.mark.parametrize("seconds", [5, 30, 7200, -7200])
def test_set_for_a_moment(
    app: Celery, make: Make, day: Day, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """The beat sees it by itself, and goes on within seconds, with what is due by its clock."""
    one = make(beat_schedule={"e": every(0.3), "m": {"task": "m", "schedule": crontab()}})
    turn(one)
    runs(app, one, 2)
    day.ahead = timedelta(seconds=seconds)
    if seconds > 0:
        runs(app, one, 3)
    else:
        one._loop.turn()
    day.ahead = timedelta()
    before = time.monotonic()
    runs(app, one, 3)
    assert time.monotonic() - before < PATIENCE / 2
    check_instants(app)
    state = state_of(one, "e")
    assert abs(state.last_run_at - datetime.now(timezone.utc)) < timedelta(seconds=5)
    side, back = ("forward", "back") if seconds > 0 else ("back", "forward")
    assert f"the clock of this machine was set {side} by" in caplog.text
    assert f"the clock of this machine was set {back} by" in caplog.text


@pytest.mark.parametrize("elected", [None, "celery.beat:Scheduler"])
def test_ahead_for_good(
    app: Celery, make: Make, day: Day, caplog: pytest.LogCaptureFixture, elected: str | None
) -> None:
    """When it is gone the next master goes on at once; a crontab does not run again for what it
    ran for, and does for the minutes that one run stood for by the clock that was ahead."""
    app.conf.zk_beat_scheduler = elected
    # No full minute comes before the clock is set.
    wait_until(lambda: datetime.now(timezone.utc).second < 50, PATIENCE, "a minute")
    one = make(beat_schedule={"e": every(0.3), "m": {"task": "m", "schedule": crontab()}})
    turn(one)
    runs(app, one, 1)
    now = datetime.now(timezone.utc)
    # Just before a full minute.
    minute = (now + timedelta(minutes=40)).replace(second=59, microsecond=0)
    day.ahead = minute - now
    wait_until(
        lambda: one._loop.turn() is not None and [m.task for m in history(app)].count("m") >= 2,
        PATIENCE,
        "a run in the minute after",
    )
    early = max(message.due for message in history(app) if message.task == "m")
    one._loop.say_goodbye()
    one.close()
    day.ahead = timedelta()
    caplog.clear()
    two = make()
    turn(two)
    assert "which is in the future: a clock was ahead. It continues from" in caplog.text
    runs(app, two, 3)
    check_instants(app)
    state, entry = state_of(two, "m"), two.schedule["m"]
    assert end_of(state.done, early) is not None
    due = next_free(entry, next_run(entry, state.last_run_at), state)
    assert due is not None
    # The minute for which the one run was is done, too.
    assert timedelta() < due - state.last_run_at <= timedelta(minutes=2)
    assert due not in {message.due for message in history(app)}
    after = next_free(entry, early, state)
    assert after == early + timedelta(minutes=1)
    # When that minute comes.
    day.ahead = early - timedelta(seconds=1) - datetime.now(timezone.utc)
    wait_until(
        lambda: two._loop.turn() is not None and day.now() > early + timedelta(seconds=1),
        PATIENCE,
        "the minute",
    )
    check_instants(app)
    dues = [message.due for message in history(app) if message.task == "m"]
    assert len(dues) == 3


def test_behind(app: Celery, make: Make, day: Day, caplog: pytest.LogCaptureFixture) -> None:
    """A master whose clock is behind does not take what others wrote for wrong: ZooKeeper's clock
    says when that was. When its clock is right again, it goes on."""
    one = make(beat_schedule={"e": every(0.3)})
    turn(one)
    runs(app, one, 2)
    one._loop.say_goodbye()
    clock = one.schedule["e"].last_run_at
    one.close()
    day.ahead = timedelta(hours=-1)
    two = make()
    turn(two)
    turn(two)
    assert "which is in the future by the clock of this machine (360" in caplog.text
    assert "behind ZooKeeper's): it does not run here until then" in caplog.text
    assert state_of(two, "e").last_run_at == clock
    day.ahead = timedelta()
    runs(app, two, 2)
    check_instants(app)


@pytest.mark.parametrize("hours", [1, -1])
def test_the_clock_of_zookeeper_is_wrong(
    app: Celery, make: Make, day: Day, caplog: pytest.LogCaptureFixture, hours: int
) -> None:
    """All beats go on by their own, which agree, and warn."""
    day.ahead = timedelta(hours=hours)
    one = make(beat_schedule={"e": every(0.3), "m": {"task": "m", "schedule": crontab()}})
    turn(one)
    runs(app, one, 3)
    one._loop.say_goodbye()
    one.close()
    two = make()
    turn(two)
    runs(app, two, 3)
    assert "in the future" not in caplog.text
    assert f"s {'ahead of' if hours > 0 else 'behind'} that of ZooKeeper" in caplog.text
    check_instants(app)
    assert check(history(app)) == []
    assert state_of(two, "m").done == ()


def test_ahead_from_the_start(app: Celery, make: Make, day: Day) -> None:
    """The first master of all, which gave entries their clocks, was ahead: those that had not run
    go on as if they had just been seen."""
    day.ahead = timedelta(minutes=40)
    one = make(
        beat_schedule={"e": every(0.3), "m": {"task": "m", "schedule": crontab(minute="*/5")}}
    )
    turn(one)
    runs(app, one, 1)
    one._loop.say_goodbye()
    one.close()
    day.ahead = timedelta()
    two = make()
    turn(two)
    runs(app, two, 2)
    check_instants(app)
    if "m" not in {message.task for message in history(app)}:
        state, entry = state_of(two, "m"), two.schedule["m"]
        assert state.done == ()
        due = next_free(entry, next_run(entry, state.last_run_at), state)
        assert due is not None
        assert timedelta() < due - datetime.now(timezone.utc) < timedelta(minutes=5)


def set_for_a_moment(day: Day, scheduler: ZooKeeperScheduler, ahead: timedelta) -> None:
    day.ahead = ahead
    scheduler._loop.turn()
    scheduler._loop.turn()
    day.ahead = timedelta()
    scheduler._loop.turn()


def test_what_another_schedule_names(app: Celery, make: Make, day: Day) -> None:
    """[I13] As during a deploy: neither its run nor its state is given up for a clock that says for
    a moment that it is time."""
    one = make(
        beat_schedule={
            "a": every(3600, "a", last_run_at=LONG_AGO),
            "idle": every(3600, "idle"),
        },
        zk_beat_publish_deadline=None,
    )
    away(app)
    turn(one)
    assert list(one._loop.ledger.outbox) == ["a"]
    one.close()
    two = make(beat_schedule={"b": every(3600, "b")})
    turn(two)
    assert state_of(two, "idle").unnamed_since is not None
    set_for_a_moment(day, two, timedelta(hours=25))
    assert "a" in two._loop.ledger.outbox
    set_for_a_moment(day, two, timedelta(days=31))
    assert two._loop.ledger.state("idle") is not None


def test_skipped_while_it_is_ahead(app: Celery, make: Make, day: Day) -> None:
    """[I13] What was too old by a clock that was ahead has not run, and is still to come."""
    app.conf.beat_cron_starting_deadline = 60
    one = make(beat_schedule={"m": {"task": "m", "schedule": crontab(minute="*/10")}})
    turn(one)
    # Five minutes past the last one that it has by then: what is due just now is not skipped.
    day.ahead = timedelta(minutes=45 - datetime.now().minute % 10)
    wait_until(
        lambda: (
            turn(one) is not None
            and state_of(one, "m").last_run_at > day.now() - timedelta(minutes=5)
        ),
        PATIENCE,
        "a skip",
    )
    day.ahead = timedelta()
    turn(one)
    turn(one)
    state, entry = state_of(one, "m"), one.entries["m"]
    due = next_free(entry, next_run(entry, state.last_run_at), state)
    assert due is not None
    assert due - datetime.now(timezone.utc) <= timedelta(minutes=10)


def test_behind_while_it_does_not_name_an_entry(app: Celery, make: Make, day: Day) -> None:
    """[I13] As during a deploy, of seconds: the next master that names it does not take it for one
    that was away for as long as that clock was behind, and what is due is not lost."""
    one = make(beat_schedule={"e": every(3600, "e", last_run_at=LONG_AGO)})
    turn(one)
    clock = state_of(one, "e").last_run_at
    one._loop.say_goodbye()
    one.close()
    day.ahead = timedelta(hours=-2)
    two = make(beat_schedule={"other": every(3600)})
    turn(two)
    since = state_of(two, "e").unnamed_since
    assert since is not None
    assert abs(since - datetime.now(timezone.utc)) < timedelta(minutes=1)
    two.close()
    day.ahead = timedelta()
    three = make(beat_schedule={"e": every(3600, "e")})
    turn(three)
    assert state_of(three, "e").last_run_at == clock


@pytest.mark.parametrize("hours", [-2, 2])
def test_set_right_just_before_it_takes_over(
    app: Celery, make: Make, day: Day, hours: float
) -> None:
    """[I13] It knows what the time is when it says that it does not name an entry: the election
    has compared the clocks again before the loop sees that its clock was set."""
    one = make(beat_schedule={"e": every(3600, "e", last_run_at=LONG_AGO)}, zk_beat_id="one")
    turn(one)
    day.ahead = timedelta(hours=hours)
    two = make(beat_schedule={"other": every(3600)}, zk_beat_id="two")
    wait_until(lambda: two.election.clock_offset, PATIENCE, "an offset")
    two._loop.turn()
    day.ahead = timedelta()
    one.close()
    session, paths = two.election.session, two.election.paths
    wait_until(
        lambda: all(
            node is not None and word in node.data
            for node, word in zip(
                session.read_all([paths.member("two"), paths.masters]), (b'"master"', b'"two"')
            )
        ),
        PATIENCE,
        "what it writes when it is elected",
    )
    turn(two)
    since = state_of(two, "e").unnamed_since
    assert since is not None
    assert abs(since - datetime.now(timezone.utc)) < timedelta(minutes=1)


class SetRight(Scheduler):
    """The clock, which was behind when this was made, is set right when it begins to dispatch."""

    day: Day

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        self.day.ahead = max(self.day.ahead, timedelta())
        return super().tick(*args, **kwargs)


def test_behind_when_another_scheduler_is_made(
    app: Celery, make: Make, day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[I13] By that clock its entry was due half an hour ago, before it ran."""
    app.conf.zk_beat_scheduler = "celery.beat:Scheduler"
    one = make(beat_schedule={"e": every(1800, "e", last_run_at=LONG_AGO)})
    turn(one)
    one._loop.say_goodbye()
    assert len(history(app)) == 1
    one.close()
    day.ahead = timedelta(hours=-1)
    monkeypatch.setattr(SetRight, "day", day, raising=False)
    app.conf.zk_beat_scheduler = f"{__name__}:SetRight"
    two = make(beat_schedule={"e": every(1800, "e")})
    turn(two)
    assert day.ahead == timedelta()
    two._loop.turn()
    assert len(history(app)) == 1
    state = state_of(two, "e")
    assert state.total_run_count == 1
    assert abs(state.last_run_at - datetime.now(timezone.utc)) < timedelta(minutes=1)
    day.ahead = timedelta(minutes=30)
    runs(app, two, 1)
    assert history(app)[-1].due == state.last_run_at + timedelta(minutes=30)
