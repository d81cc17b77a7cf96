"""What is made of runs before they are due, and what makes it void."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler, ahead, clock, planner
from celery_zk_beat.ahead import MadeAhead
from celery_zk_beat.beat_schedule import BeatSchedule
from celery_zk_beat.runs import RunState
from example_project.servers import wait_until
from tests.conftest import PATIENCE
from tests.history import all_headers

from .conftest import Make, every, state_of

PERIOD = 1.0


def go(beat: ZooKeeperScheduler, until: Callable[[], Any], what: str) -> None:
    wait_until(lambda: beat._loop.turn() is not None and until(), PATIENCE, what)


def made_of(beat: ZooKeeperScheduler) -> MadeAhead:
    return beat._loop.dispatcher.ahead


def second_is_made(make: Make, **more: Any) -> ZooKeeperScheduler:
    """Returns a master that has sent the first run of an entry and has made the second."""
    beat = make(beat_schedule={"e": every(PERIOD, args=(1,))}, **more)
    assert beat.election.wait(PATIENCE)
    go(beat, lambda: beat.metrics.published == 1 and made_of(beat).run("e"), "the second run")
    return beat


def will_be_used(make: Make, monkeypatch: pytest.MonkeyPatch, **entry: Any) -> ZooKeeperScheduler:
    """As second_is_made(), but the second run is made when the first has left: what is made of its
    message is still there when it leaves."""
    monkeypatch.setattr(planner, "_MADE_WITHIN", PERIOD / 2)
    beat = make(beat_schedule={"e": every(PERIOD, **entry)})
    assert beat.election.wait(PATIENCE)
    go(beat, lambda: beat.metrics.published == 1 and made_of(beat).run("e"), "the second run")
    return beat


def second(app: Celery, beat: ZooKeeperScheduler) -> dict[str, Any]:
    go(beat, lambda: beat.metrics.published == 2, "the second message")
    found: dict[str, Any] = all_headers(app.conf.broker_url)[-1]
    return found


def test_what_is_made_is_used(app: Celery, make: Make) -> None:
    """The run, its state and its message are those that were made."""
    beat = second_is_made(make)
    made = made_of(beat)._made["e"]
    header = second(app, beat)
    assert state_of(beat, "e") is made.after
    assert header["id"] == made.texts.task_id
    assert header["zk_beat"] == made.texts.headers["zk_beat"]
    assert header["zk_beat"]["run"] == 2
    assert header["argsrepr"] == "[1]"


def test_the_message_is_that_which_was_made(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = will_be_used(make, monkeypatch)
    made_of(beat)._made["e"].texts.task_id = "made ahead"
    assert second(app, beat)["id"] == "made ahead"


def test_an_id_that_the_entry_has_no_more(
    app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message has the id of its run then, not the one that its entry had when it was made."""
    beat = will_be_used(make, monkeypatch, options={"task_id": "mine"})
    run = made_of(beat)._made["e"].run
    beat.schedule["e"].options.clear()
    assert second(app, beat)["id"] == beat._loop.dispatcher.task_id(run) != "mine"


def arguments(beat: ZooKeeperScheduler) -> None:
    beat.schedule["e"].args = (2,)


def task_id(beat: ZooKeeperScheduler) -> None:
    beat.schedule["e"].options["task_id"] = "mine"


@pytest.mark.parametrize(
    ("change", "expected"),
    [(arguments, {"argsrepr": "[2]"}), (task_id, {"id": "mine", "root_id": "mine"})],
)
def test_a_change_of_the_entry(
    app: Celery,
    make: Make,
    change: Callable[[ZooKeeperScheduler], None],
    expected: dict[str, Any],
) -> None:
    """It is in the next message."""
    beat = second_is_made(make)
    change(beat)
    header = second(app, beat)
    assert header["zk_beat"]["run"] == 2
    assert {name: header[name] for name in expected} == expected


def test_an_id_of_its_own(make: Make) -> None:
    """An entry whose options have one now does not get the one that was made."""
    beat = second_is_made(make)
    run, entry = made_of(beat)._made["e"].run, beat.schedule["e"]
    entry.options["task_id"] = "mine"
    assert made_of(beat).texts(run, entry).task_id == "mine"
    assert made_of(beat).run("e") is None


def test_a_change_of_the_state(app: Celery, make: Make) -> None:
    """What was written since is kept."""
    beat = second_is_made(make)
    made, ledger = made_of(beat)._made["e"], beat._loop.ledger
    ledger.rewrite({"e": replace(state_of(beat, "e"), dropped=(77,))})
    assert second(app, beat)["id"] == made.texts.task_id
    state: RunState = state_of(beat, "e")
    assert (state.dropped, state.total_run_count) == ((77,), 2)


def test_another_term(app: Celery, make: Make) -> None:
    """A message has the epoch of the master that sends it."""
    beat = second_is_made(make)
    before = made_of(beat)._made["e"]
    beat._loop.hand_over()
    beat.election.resign(why="test")
    assert beat.election.wait(PATIENCE)
    header = second(app, beat)
    assert header["zk_beat"]["epoch"] == before.term.epoch + 1
    assert header["id"] == before.texts.task_id


def test_a_late_run(app: Celery, make: Make) -> None:
    """If it is claimed so late that its entry's clock does not go on from its instant, its message
    is still the one that was made."""
    beat = second_is_made(make)
    made = made_of(beat)._made["e"]
    due = made.run.due.timestamp()
    wait_until(lambda: beat.app.now().timestamp() > due + PERIOD / 2 + 0.1, PATIENCE, "lateness")
    assert second(app, beat)["id"] == made.texts.task_id
    assert state_of(beat, "e").last_run_at > made.after.last_run_at


def test_the_state_of_a_late_run(make: Make) -> None:
    """It is made of that which was made, if it is the same run."""
    beat = second_is_made(make)
    made = made_of(beat)._made["e"]
    late = made.run.claimed_late(made.run.due + timedelta(seconds=9))
    state = made_of(beat).state(late, made.before)
    assert state == made.before.after_claim(late, timedelta())
    assert made_of(beat).state(replace(late, number=3), made.before) is None
    assert made_of(beat).state(late, replace(made.before)) is None


def test_a_standby_keeps_nothing(make: Make) -> None:
    beat = second_is_made(make)
    beat._loop.forget()
    assert made_of(beat).run("e") is None


@pytest.mark.parametrize("entry", [None, object(), {}])
def test_an_entry_that_was_just_replaced(make: Make, entry: Any) -> None:
    """Whatever a program has put there, nothing is made of it, and nothing breaks."""
    beat = make(beat_schedule={"e": every(PERIOD)})
    assert beat.election.wait(PATIENCE)
    go(beat, lambda: beat.metrics.published == 1, "the first run")
    source = beat._loop.source
    assert isinstance(source, BeatSchedule)
    source._planner._agenda.put("e", 0.0, clock.now())
    beat.schedule["e"] = entry
    assert source._planner.look_ahead(clock.now(), 25)[0] == []


def test_among_entries_with_policies(make: Make) -> None:
    """Those do not keep the others from being made."""
    names = [f"e{number:03}" for number in range(200)]
    beat = make(
        beat_schedule={name: every(5.0) for name in names},
        zk_beat_policies={"e??[05]": {"jitter": 1}},
    )
    assert beat.election.wait(PATIENCE)
    wait_until(lambda: beat._loop.turn() > 0.0, PATIENCE, "nothing to do")
    assert [name for name in names if made_of(beat).run(name) is None] == names[::5]


def test_there_is_a_bound(app: Celery, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above it are made when they are due."""
    monkeypatch.setattr(ahead, "MOST_MADE", 2)
    beat = make(beat_schedule={f"e{n}": every(PERIOD) for n in range(5)})
    assert beat.election.wait(PATIENCE)
    go(beat, lambda: len(made_of(beat)._made) == 2, "two runs")
    go(beat, lambda: beat.metrics.published >= 10, "two runs of each")
    assert len(made_of(beat)._made) <= 2
