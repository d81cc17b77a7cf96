"""What becomes of an entry's clock when a master's clock was ahead. Pure: no I/O."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.schedules import schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.due import counts_from_last_run, next_free, next_run
from celery_zk_beat.runs import TOLERANCE, RunState, end_of

APP = Celery("x", set_as_current=False)
BEGINNING = datetime(2026, 1, 1, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


class Minutely(schedule):
    """Due at each full minute, as a crontab; it has a clock of its own."""

    def __init__(self, now: datetime) -> None:
        super().__init__(60, nowfun=lambda: now, app=APP)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        since = last_run_at - BEGINNING
        now: datetime = self.now()
        return BEGINNING + (math.floor(since / MINUTE) + 1) * MINUTE - now


def entry(of: schedule) -> Any:
    return SimpleNamespace(schedule=of, default_now=of.now)


class Master:
    """Claims what is due by its clock, which is so much ahead of ZooKeeper's, which is right."""

    def __init__(self) -> None:
        self.now = self.written = BEGINNING + timedelta(seconds=10)
        self.state = RunState(self.now)
        self.dues: list[datetime] = []

    def turn(self, ahead: timedelta, take_over: bool) -> None:
        clock = self.now + ahead
        last = self.state.last_run_at
        if take_over and last > max(clock, self.written) + TOLERANCE:
            self.state = self.state.set_back(min(self.written + ahead, clock), ahead)
            self.written = self.now
        each = entry(Minutely(clock))
        due = next_free(each, next_run(each, self.state.last_run_at), self.state)
        assert due is not None
        if due <= clock:
            self.dues.append(due)
            number = self.state.total_run_count + 1
            self.state = self.state.moved(due, clock, ahead, total_run_count=number, due=due)
            self.written = self.now


STEPS = st.tuples(
    st.sampled_from([timedelta(), timedelta(), timedelta(minutes=7), timedelta(minutes=40)]),
    st.booleans(),
    st.sampled_from([timedelta(seconds=5), timedelta(seconds=61), timedelta(minutes=9)]),
)


@given(st.lists(STEPS, max_size=30))
def test_no_instant_runs_twice(steps: list[tuple[timedelta, bool, timedelta]]) -> None:
    """Whoever is master, with whatever clock; and in the end the entry goes on."""
    master = Master()
    for ahead, take_over, pause in steps:
        # Whoever sees that its clock was set takes over anew.
        master.turn(ahead, take_over or ahead == timedelta())
        master.now += pause
    for _ in range(50):
        master.turn(timedelta(), True)
        master.now += MINUTE
    assert len(set(master.dues)) == len(master.dues)
    assert timedelta() <= master.now - max(master.dues) <= 2 * MINUTE


def test_a_moment_ahead() -> None:
    """One run stands for what was missed by the clock that was ahead; the instants after it that
    were not run still come."""
    master = Master()
    master.turn(timedelta(minutes=40), take_over=False)
    master.turn(timedelta(minutes=40), take_over=False)
    assert master.dues == [BEGINNING + MINUTE]
    for _ in range(5):
        master.now += MINUTE
        master.turn(timedelta(), take_over=True)
    assert master.dues == [BEGINNING + n * MINUTE for n in range(1, 6)]
    assert master.state.done == ()


def test_ahead_for_long() -> None:
    """What ran early is not run again at its time."""
    master = Master()
    for _ in range(10):
        master.turn(timedelta(minutes=40), take_over=False)
        master.now += MINUTE
    early = master.dues[1:]
    assert early == [BEGINNING + n * MINUTE for n in range(41, 50)]
    for _ in range(60):
        master.turn(timedelta(), take_over=True)
        master.now += MINUTE
    assert master.dues[10:] == [
        BEGINNING + n * MINUTE for n in (*range(10, 41), *range(50, 70)) if n > 9
    ]


def test_set_back_by_a_clock_that_is_ahead_itself() -> None:
    """What the first clock left out has run by neither: all of it comes at its time."""
    master = Master()
    master.turn(timedelta(minutes=40), take_over=False)
    master.turn(timedelta(minutes=7), take_over=True)
    assert master.dues == [BEGINNING + MINUTE]
    for _ in range(8):
        master.now += MINUTE
        master.turn(timedelta(), take_over=True)
    assert master.dues == [BEGINNING + n * MINUTE for n in range(1, 9)]


def test_an_interval_has_other_instants_then() -> None:
    """It goes on at once, and none of its instants was there before."""
    assert counts_from_last_run(schedule(60))
    assert not counts_from_last_run(schedule(60, relative=True))
    assert not counts_from_last_run(Minutely(BEGINNING))
    assert counts_from_last_run(SimpleNamespace(is_due=lambda last: (True, 60)))
    last = BEGINNING + timedelta(hours=1, microseconds=123_456)
    for microsecond in (0, 456, 123_456, 999_999):
        at = BEGINNING.replace(microsecond=microsecond)
        back = RunState(last, 7, last, ask=(1_800_000_000_000, 5)).set_back(at)
        assert abs(back.last_run_at - at) < timedelta(milliseconds=1)
        assert (last - back.last_run_at) % timedelta(milliseconds=1)
        each = entry(schedule(60, nowfun=lambda: BEGINNING, app=APP))
        due = back.last_run_at + MINUTE
        assert end_of(back.done, due) is not None
        assert next_free(each, due, back) == due
        assert back.ask is not None
        assert abs(back.ask[0] - 1_800_000_000_000 + 3_600_000) <= 1000


def test_what_never_ran_has_nothing_to_skip() -> None:
    assert RunState(BEGINNING + timedelta(hours=1), 7).set_back(BEGINNING).done == ()


def test_it_stays_small() -> None:
    """However often clocks are set."""
    state = RunState(BEGINNING, 1, BEGINNING)
    for n in range(1, 20):
        state = state.moved(BEGINNING, BEGINNING + n * timedelta(hours=1), timedelta(hours=50))
        state = state.moved(BEGINNING, BEGINNING + n * timedelta(hours=2), timedelta(hours=50))
        assert len(state.leaps) <= 3
        state = state.set_back(BEGINNING + n * timedelta(seconds=1))
        assert len(state.done) <= 3
        assert all(a < b for a, b in state.done)
        assert list(state.done) == sorted(state.done)
