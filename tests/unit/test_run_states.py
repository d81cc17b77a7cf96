"""What becomes of the state of an entry: with a claim, a skip, and without a name. Pure: no I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from celery_zk_beat.runs import (
    ABSENCE,
    DROPS_REMEMBERED,
    HISTORY,
    NEVER,
    RETENTION,
    PastRun,
    Run,
    RunState,
)

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
NONE = timedelta()

RAN = RunState(NOW, 4, NOW - SECOND, past=(PastRun.of(4, NOW - SECOND, NOW, 1),))
WAITS = Run("e", 7, NOW - SECOND, NOW, 2, key="5")


@pytest.mark.parametrize(
    ("claimed", "extra", "clock"),
    [
        (NOW + HOUR, False, NOW + HOUR),
        (NOW - HOUR, False, NOW),  # by a clock that was set back
        (NOW + HOUR, True, NOW),  # asked for
    ],
)
def test_a_claim(claimed: datetime, extra: bool, clock: datetime) -> None:
    """Its number is the last one, whether or not the clock goes on; and its instant, unless an
    operator asked for it."""
    unnamed = replace(RAN, unnamed_since=NOW, key="1")
    run = Run("e", 5, claimed, claimed, 3, extra, "1")
    state = unnamed.after_claim(run, NONE)
    assert (state.total_run_count, state.last_run_at) == (5, clock)
    assert state.due == (RAN.due if extra else claimed)
    assert (state.key, state.unnamed_since) == ("1", None)
    note = "asked for" if extra else None
    assert state.past == (*RAN.past, PastRun.of(5, claimed, claimed, 3, note))


def test_a_past_is_not_endless() -> None:
    state = RAN
    for number in range(HISTORY):
        state = state.after_skip(PastRun.of(None, NOW, NOW, number, "paused"), NOW, NONE)
    assert [past.epoch for past in state.past] == [*range(HISTORY)]


def test_a_skip_is_one_of_its_own_instants() -> None:
    state = RunState(NOW).after_skip(PastRun.of(None, NOW, NOW + HOUR, 1, "paused"), NOW, NONE)
    assert (state.due, state.total_run_count) == (NOW, 0)


def test_a_drop_is_noted() -> None:
    """In the past, also of a run that only the history has; and its number for longer."""
    run = Run("e", 4, NOW - SECOND, NOW, 1)
    state = RAN.after_drop(run, "nobody wants it")
    assert [past.note for past in state.past] == ["dropped: nobody wants it"]
    assert (state.last_run_at, state.dropped) == (NOW, (4,))
    assert replace(RAN, past=()).after_drop(run, "nobody wants it").past == state.past
    for number in range(5, 5 + DROPS_REMEMBERED):
        state = state.after_drop(replace(run, number=number), "")
    assert state.dropped == tuple(range(5, 5 + DROPS_REMEMBERED))


def test_claimed_late() -> None:
    """[I13] The clock goes on from its instant; the history says when it was claimed."""
    run = Run("e", 5, NOW, NOW, 2)
    late = run.claimed_late(NOW + 9 * SECOND)
    state = RAN.after_claim(late, NONE)
    assert (state.last_run_at, state.past[-1].at) == (NOW, NOW + 9 * SECOND)
    made = RAN.after_claim(run, NONE)
    assert made.claimed_late(NOW + 9 * SECOND).text == state.text
    assert state.after_drop(late, "why").past[-1].at == NOW + 9 * SECOND


def test_published_late() -> None:
    """The history says when, by whom; the clock goes on from there only where that is said."""
    past = PastRun.of(4, NOW - SECOND, NOW + HOUR, 2)
    assert RAN.after_publish(past, None, NONE) == replace(RAN, past=(past,))
    state = RAN.after_publish(past, NOW + HOUR, NONE)
    assert (state.last_run_at, state.past) == (NOW + HOUR, (past,))


@pytest.mark.parametrize(
    ("absent", "anew", "clock"),
    [
        (ABSENCE, True, NOW),
        (ABSENCE + SECOND, True, NOW + ABSENCE + SECOND),
        (ABSENCE + SECOND, False, NOW),
    ],
)
def test_named_again(absent: timedelta, anew: bool, clock: datetime) -> None:
    state = replace(RAN, unnamed_since=NOW).when_named(NOW + absent, NOW + absent, anew)
    assert (state.last_run_at, state.unnamed_since) == (clock, None)


@pytest.mark.parametrize(("now", "server"), [(2, 0), (0, 2)])
def test_one_clock_alone_does_not_say_that_it_was_away(now: int, server: int) -> None:
    """[I13] This machine's or ZooKeeper's may be wrong, perhaps for a moment."""
    state = replace(RAN, unnamed_since=NOW).when_named(
        NOW + now * ABSENCE, NOW + server * ABSENCE, True
    )
    assert (state.last_run_at, state.unnamed_since) == (NOW, None)


def test_named_all_along() -> None:
    assert RAN.when_named(NOW + 2 * ABSENCE, NOW + 2 * ABSENCE, True) is RAN


@pytest.mark.parametrize(
    ("passed", "ahead", "stays"),
    [
        (RETENTION, NONE, True),
        (RETENTION + SECOND, NONE, False),
        (RETENTION + SECOND, HOUR, True),  # by our clock alone
        (RETENTION + SECOND, -HOUR, False),
    ],
)
def test_named_no_longer(passed: timedelta, ahead: timedelta, stays: bool) -> None:
    """Since when is told by ZooKeeper's clock; a state goes once both clocks say it is time."""
    unnamed = RAN.when_unnamed(NOW, NOW - HOUR)
    assert unnamed == replace(RAN, unnamed_since=NOW - HOUR)
    unnamed, now = replace(RAN, unnamed_since=NOW), NOW + passed
    assert unnamed.when_unnamed(now, now - ahead) is (unnamed if stays else None)


@pytest.mark.parametrize(
    ("floor", "ahead", "waiting", "expected"),
    [
        (0, NONE, None, RunState(NOW, 0, key="1", zone="+0000")),
        (3, NONE, None, RunState(NOW, 3, key="1", zone="+0000")),
        (0, NONE, WAITS, RunState(NOW, 7, NOW - SECOND, key="5", zone="+0000")),
        (9, NONE, WAITS, RunState(NOW, 9, NOW - SECOND, key="5", zone="+0000")),
        (0, NONE, replace(WAITS, extra=True), RunState(NOW, 7, key="5", zone="+0000")),
    ],
)
def test_seen_for_the_first_time(
    floor: int, ahead: timedelta, waiting: Run | None, expected: RunState
) -> None:
    """A run that waits, as after the page was deleted, is its last; numbers go on in any case."""
    assert RunState.first(NOW, floor, "1", "+0000", ahead, waiting) == expected


def test_seen_by_a_clock_that_is_ahead() -> None:
    """What is still to come by ZooKeeper's clock has not run: it comes all the same."""
    state = RunState.first(NOW, ahead=HOUR)
    assert state.last_run_at == NOW
    assert state.leaps == ((0, (NOW - NEVER) // timedelta(milliseconds=1)),)
    back = state.set_back(NOW - HOUR)
    assert back.done == ()
