"""What run states and histories keep of the outcomes of tracked runs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from celery_zk_beat.history import merged
from celery_zk_beat.paths import page_of
from celery_zk_beat.runs import (
    MOST_OPEN,
    Outcome,
    PastRun,
    Run,
    RunState,
    decode_page,
    decode_past,
    encode_page,
    milliseconds,
    past_text,
)

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc)
NO_TIME, MINUTE = timedelta(), timedelta(minutes=1)
SUCCESS = Outcome("success", milliseconds(NOON) + 500, 321, "celery@a", None)
FAILURE = Outcome("failure", milliseconds(NOON) + 500, 12, "celery@a", "ValueError")
LOST = Outcome("lost", milliseconds(NOON) + 900)
LATE = Outcome("late_start", milliseconds(NOON) + 800)


def run(number: int, **more: object) -> Run:
    due = NOON + number * MINUTE
    return Run("e", number, due, due, 3, tracked=True, **more)  # type: ignore[arg-type]


def claimed(*numbers: int, ahead: timedelta = NO_TIME) -> RunState:
    state = RunState(NOON)
    for number in numbers:
        state = state.after_claim(run(number), ahead)
    return state


def test_a_tracked_run_is_open_from_its_claim_on() -> None:
    assert [past.number for past in claimed(1, 2).open] == [1, 2]
    assert RunState(NOON).after_claim(replace(run(1), tracked=False), NO_TIME).open == ()


def test_open_since_by_the_clock_of_zookeeper() -> None:
    """[I13] A clock that is ahead by an hour does not keep the run open for an hour more."""
    (past,) = claimed(1, ahead=60 * MINUTE).open
    assert past.at == NOON + MINUTE - 60 * MINUTE


def test_an_outcome_closes_its_run() -> None:
    state = claimed(1, 2)
    first, second = state.open
    after = state.after_outcome(first._replace(outcome=SUCCESS))
    assert after.open == (second,)
    assert [past.outcome for past in after.past] == [SUCCESS, None]
    assert (after.last_run_at, after.total_run_count) == (state.last_run_at, 2)


def test_late_is_no_end() -> None:
    (past,) = claimed(1).open
    after = claimed(1).after_outcome(past._replace(outcome=LATE))
    assert [each.outcome for each in after.open] == [LATE]
    assert [each.outcome for each in after.past] == [None]
    assert after.after_outcome(past._replace(outcome=SUCCESS)).open == ()


def test_one_that_counted_as_lost_is_open_again() -> None:
    state = claimed(1, 2)
    first, second = state.open
    lost = state.after_outcome(first._replace(outcome=LOST))
    assert lost.open == (second,)
    again = lost.after_outcome(first._replace(outcome=LATE))
    assert [past.number for past in again.open] == [1, 2]


@pytest.mark.parametrize(
    ("outcomes", "failed"),
    [
        ([FAILURE, FAILURE], 2),
        ([FAILURE, LOST], 2),
        ([FAILURE, SUCCESS], 0),
        ([FAILURE, Outcome("revoked", 1), FAILURE], 2),
        ([FAILURE, LATE, FAILURE], 2),
    ],
)
def test_failures_in_a_row(outcomes: list[Outcome], failed: int) -> None:
    state = claimed(*range(1, len(outcomes) + 1))
    for past, outcome in zip(state.open, outcomes):
        state = state.after_outcome(past._replace(outcome=outcome))
    assert state.failed == failed


def test_a_lost_run_that_has_failed_counts_once() -> None:
    """Also when its past run is in the history only, and if it was open again in between."""
    state = claimed(1)
    past = state.open[0]
    lost = replace(state.after_outcome(past._replace(outcome=LOST)), past=())
    assert lost.after_outcome(past._replace(outcome=FAILURE), LOST).failed == 1
    again = lost.after_outcome(past, LOST)
    assert again.failed == 0
    assert again.after_outcome(past._replace(outcome=FAILURE)).failed == 1


def test_what_has_succeeded_since_counts() -> None:
    state = claimed(1, 2)
    first, second = state.open
    for past, outcome in ((first, LOST), (second, SUCCESS)):
        state = state.after_outcome(past._replace(outcome=outcome))
    assert state.after_outcome(first._replace(outcome=FAILURE), LOST).failed == 0
    assert state.after_outcome(first, LOST).failed == 0


def test_a_dropped_run_is_not_open() -> None:
    assert [past.number for past in claimed(1, 2).after_drop(run(1), "why").open] == [2]


def test_a_run_that_leaves_later_is_open_since_then() -> None:
    state = claimed(1)
    late = PastRun.of(1, NOON + MINUTE, NOON + 9 * MINUTE, 3)
    assert state.after_publish(late, None, MINUTE).open[0].at == NOON + 8 * MINUTE


def test_a_clock_that_is_just_set_does_not_end_a_run() -> None:
    """[I13] How far it is off is not known yet. The run is not open since before its claim."""
    stale, server_ms = 60 * MINUTE, milliseconds(NOON + MINUTE)
    state = RunState(NOON).after_claim(run(1), stale, server_ms)
    assert state.open[0].at_ms == server_ms
    late = PastRun.of(1, NOON + MINUTE, NOON + 2 * MINUTE, 3)
    assert state.after_publish(late, None, stale).open[0].at_ms == server_ms


def test_sent_again_it_keeps_its_outcome() -> None:
    state = claimed(1)
    state = state.after_outcome(state.open[0]._replace(outcome=SUCCESS))
    again = state.after_publish(PastRun.of(1, NOON + MINUTE, NOON + MINUTE, 4), None, NO_TIME)
    assert [past.outcome for past in again.past] == [SUCCESS]


def test_open_runs_stay_with_their_name() -> None:
    """But for the one that is not published yet. Who has the name by then keeps its own."""
    entry, other, waiting = claimed(1, 2), claimed(7), run(2)
    left = entry.left_behind(NOON, waiting)
    assert [past.number for past in left.open] == [1]
    new = entry.renamed("old", other, waiting)
    assert ([past.number for past in new.open], new.was) == ([7, 2], "old")
    assert entry.after_claim(run(3), NO_TIME).renamed("old", other, None).was == "old"
    again = claimed(2).renamed("old", RunState(NOON), waiting)
    assert ([past.number for past in again.open], again.was) == ([2], None)


def test_the_name_before_counts_until_the_next_run() -> None:
    state = claimed(1).renamed("old", RunState(NOON), None)
    path = f"/root/runs/{page_of('e')}"
    assert decode_page(path, encode_page({"e": state})) == {"e": state}
    assert state.renamed("new", RunState(NOON), None).was == "old"
    assert state.after_claim(run(2, extra=True), NO_TIME).was == "old"
    assert state.after_claim(run(2), NO_TIME).was is None
    assert state.bare.was is None


def test_many_open_runs() -> None:
    """[I10] A page is bounded, whatever its entries do."""
    numbers = range(1, MOST_OPEN + 3)
    assert [past.number for past in claimed(*numbers).open] == list(numbers)[-MOST_OPEN:]


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE, LOST, LATE, None])
@pytest.mark.parametrize("note", ["asked for", None])
def test_written_and_read(outcome: Outcome | None, note: str | None) -> None:
    past = PastRun.of(1, NOON, NOON, 3, note)._replace(outcome=outcome)
    state = replace(claimed(1), past=(past,), open=(past,), failed=2)
    path = f"/root/runs/{page_of('e')}"
    assert decode_page(path, encode_page({"e": state})) == {"e": state}


def test_what_nobody_tracks_has_not_a_byte_more() -> None:
    state = RunState(NOON).after_claim(replace(run(1), tracked=False), NO_TIME)
    assert json.loads(state.text)[3].keys() == {"past"}
    assert json.loads(past_text(state.past)) == [list(state.past[0][:4])]
    assert "tracked" not in replace(run(1), tracked=False).text


@pytest.mark.parametrize(
    "damaged",
    [1, [], ["odd", 1, 1, "w", "E"], ["success", -1, 1, "w", "E"], ["success", True, 1, "w", "E"]],
)
def test_a_damaged_outcome(damaged: object) -> None:
    (past,) = decode_past([[1, 2, 3, 4, None, damaged]])
    assert past == PastRun(1, 2, 3, 4)


def test_absurd_parts_of_an_outcome() -> None:
    (past,) = decode_past([[1, 2, 3, 4, None, ["success", 5, -7, "w" * 1000, 8]]])
    assert past.outcome == Outcome("success", 5, None, "w" * 100, None)


def test_in_a_history_it_stands_where_its_run_does() -> None:
    one, two, three = (PastRun.of(n, NOON + n * MINUTE, NOON + n * MINUTE, 3) for n in (1, 2, 3))
    known = one._replace(outcome=SUCCESS)
    assert merged((one, two), (known, three)) == (known, two, three)
    assert merged((two,), (known,)) == (known, two)
    assert past_text([known]).endswith('null,["success",1780315200500,321,"celery@a",null]]]')


def test_the_newest_run_is_kept_whatever_its_time() -> None:
    """With `coalesce` "all" it is of an instant that is before the last runs."""
    known = tuple(PastRun(n, n, 1000 + n, 3, None, SUCCESS) for n in range(1, 21))
    skipped = PastRun(None, 20, 1020, 3, "skipped")
    new = (PastRun(20, 20, 1020, 3, None, FAILURE), skipped, PastRun(21, 21, 21, 3))
    assert [past.number for past in merged(known, new)] == [*range(3, 21), None, 21]


def test_an_outcome_of_an_older_run_comes_in_its_place() -> None:
    state = replace(claimed(1, 2, 3), past=claimed(2, 3).past)
    after = state.after_outcome(state.open[0]._replace(outcome=SUCCESS))
    assert [past.number for past in after.past] == [1, 2, 3]
