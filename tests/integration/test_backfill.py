"""Runs of the past that an operator asks for; turned by hand, on a real ZooKeeper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule
from kazoo.client import KazooClient

from celery_zk_beat import ZooKeeperScheduler, by_entry
from celery_zk_beat.backfills import Backfill, Backfills
from celery_zk_beat.control import (
    BACKFILL,
    Answer,
    Asking,
    RequestRecord,
    cancel_backfill,
    change_pauses,
)
from celery_zk_beat.errors import Conflict
from celery_zk_beat.metrics import EntryNumbers
from celery_zk_beat.paths import Paths
from celery_zk_beat.records import from_text, to_text
from celery_zk_beat.runs import BACKFILLED
from celery_zk_beat.zookeeper.operations import SetData
from celery_zk_beat.zookeeper.session import ZooKeeperSession
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import PATIENCE
from tests.django_database import Database

from .conftest import LONG_AGO, Make, away, back, every, history, past_of, state_of, turn
from .test_gate_django import SCHEDULER
from .test_gate_django import database as database

HOUR = timedelta(hours=1)
SINCE = datetime(2026, 1, 5, tzinfo=timezone.utc)
SEVEN = [SINCE + n * HOUR for n in range(7)]


@pytest.fixture
def session(zookeeper: ZooKeeper) -> Iterator[ZooKeeperSession]:
    session = ZooKeeperSession(zookeeper.hosts, 4.0, lambda: None)
    session.start()
    wait_until(lambda: session.connected, PATIENCE, "a session")
    yield session
    session.stop(PATIENCE)


class Operator:
    """Somebody at a command line."""

    def __init__(self, session: ZooKeeperSession, paths: Paths) -> None:
        self.session, self.paths = session, paths

    def asking(self, entry: str, hours: float = 7, **more: Any) -> Asking:
        record = RequestRecord(
            BACKFILL,
            entry,
            None,
            to_text(SINCE),
            "ann@host1",
            **{
                "since": to_text(SINCE),
                "until": to_text(SINCE + hours * HOUR),
                "rate": 100.0,
                "most": 1000,
                **more,
            },
        )
        return Asking(self.session, self.paths, record, lambda event: None)

    def asks(
        self, scheduler: ZooKeeperScheduler, entry: str, hours: float = 7, **more: Any
    ) -> Answer:
        """What a master answers."""
        with self.asking(entry, hours, **more) as asking:

            def answered() -> Answer | None:
                if scheduler._loop.control.stale:
                    turn(scheduler)
                return asking.answer()

            answer = wait_until(answered, PATIENCE, "an answer")
            assert answer is not None
            return answer

    def left(self) -> Backfills:
        node = self.session.read(self.paths.backfills)
        return Backfills() if node is None else Backfills.decode("/b", node.data)

    def cancels(self, entry: str) -> int:
        """Returns how many runs of it there were."""
        found = cancel_backfill(self.session, self.paths, entry)
        assert found is not None
        return found.done


@pytest.fixture
def operator(session: ZooKeeperSession, root: str) -> Operator:
    return Operator(session, Paths(root))


def until(scheduler: ZooKeeperScheduler, count: int, app: Celery) -> list[datetime]:
    """The instants of the runs that are published, once they are so many."""
    wait_until(
        lambda: turn(scheduler) is not None and len(history(app)) >= count,
        PATIENCE,
        f"{count} runs",
    )
    return [run.due for run in history(app)]


def numbers_of(scheduler: ZooKeeperScheduler) -> EntryNumbers:
    """Of the one entry of which metrics are asked for."""
    (found,) = scheduler.metrics.by_entry or []
    return found


def test_each_instant_once(
    app: Celery, make: Make, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As runs with numbers of their own, that do not move the entry's clock; then it is over."""
    monkeypatch.setattr(by_entry, "_LOOK_EVERY", 0.0)
    scheduler = make(beat_schedule={"a": every(3600)}, zk_beat_metrics_entries=["a"])
    turn(scheduler)
    before = state_of(scheduler, "a")
    assert operator.asks(scheduler, "a").text == "7 runs"
    assert until(scheduler, 7, app) == SEVEN
    assert [run.run for run in history(app)] == [*range(1, 8)]
    assert len({run.id for run in history(app)}) == 7
    after = state_of(scheduler, "a")
    assert (after.last_run_at, after.due) == (before.last_run_at, before.due)
    assert {run.note for run in past_of(scheduler, "a")} == {BACKFILLED}
    assert operator.left() == Backfills()
    assert numbers_of(scheduler).lateness is None
    # Its own next run has the next number.
    assert scheduler.schedule["a"].total_run_count == 7
    assert scheduler.metrics.lateness.sum < 60


def test_by_a_crontab(app: Celery, make: Make, operator: Operator) -> None:
    entry = {"task": "a", "schedule": crontab(minute=30, hour="0-3")}
    scheduler = make(beat_schedule={"a": entry})
    turn(scheduler)
    assert operator.asks(scheduler, "a").ok
    assert until(scheduler, 4, app) == [SINCE + (n + 0.5) * HOUR for n in range(4)]


def test_at_a_rate(app: Celery, make: Make, operator: Operator) -> None:
    """One, and nothing else for as long as that says; the loop need not turn before."""
    scheduler = make(beat_schedule={"a": every(3600)})
    turn(scheduler)
    assert operator.asks(scheduler, "a", rate=0.001).ok
    until(scheduler, 1, app)
    assert scheduler._loop.backfilling.turn() > 900
    for _ in range(5):
        turn(scheduler)
    assert len(history(app)) == 1
    assert operator.left().entries["a"].after == SINCE


def test_what_is_due_comes_first(
    app: Celery, make: Make, operator: Operator, client: KazooClient
) -> None:
    """However fast the backfill may be."""
    late = {f"b{n}": every(3600, "b", last_run_at=LONG_AGO) for n in range(300)}
    scheduler = make(beat_schedule={"a": every(3600), **late})
    backfill = Backfill(SINCE, SINCE + 7 * HOUR, 100.0, "", SINCE)
    client.create(operator.paths.backfills, Backfills({"a": backfill}).encode())
    assert turn(scheduler) <= 0  # more are due than one claim takes
    assert operator.left().entries["a"].done == 0
    until(scheduler, 307, app)
    assert [run.task for run in history(app)[:300]] == ["b"] * 300


def test_the_next_master_goes_on(app: Celery, make: Make, operator: Operator) -> None:
    """After one that was killed, without a gap or a repeat."""
    conf = {"beat_schedule": {"a": every(3600)}}
    one, two = make(**conf), make(**conf)
    turn(one)
    assert operator.asks(one, "a").ok
    assert until(one, 3, app) == SEVEN[:3]
    one._loop.control.forget()
    one.election.session._kazoo("").stop()
    assert until(two, 7, app) == SEVEN
    assert [run.run for run in history(app)] == [*range(1, 8)]


def test_not_while_its_last_run_waits(app: Celery, make: Make, operator: Operator) -> None:
    scheduler = make(beat_schedule={"a": every(3600)})
    turn(scheduler)
    good = away(app)
    scheduler._broker.drop()
    assert operator.asks(scheduler, "a").ok
    wait_until(
        lambda: turn(scheduler) is not None and scheduler._loop.ledger.outbox,
        PATIENCE,
        "a claim",
    )
    for _ in range(5):
        turn(scheduler)
    assert operator.left().entries["a"].done == 1
    back(app, good, scheduler)
    assert until(scheduler, 7, app) == SEVEN


def test_not_while_it_is_paused(app: Celery, make: Make, operator: Operator) -> None:
    """Nor is what waits for the broker published then, or dropped by what is skipped."""
    scheduler = make(beat_schedule={"a": every(3600)})
    turn(scheduler)
    good = away(app)
    scheduler._broker.drop()
    assert operator.asks(scheduler, "a").ok
    wait_until(
        lambda: turn(scheduler) is not None and scheduler._loop.ledger.outbox,
        PATIENCE,
        "a claim",
    )
    now = datetime.now(timezone.utc)
    change_pauses(operator.session, operator.paths, lambda pauses: pauses.pause("a", now))
    wait_until(lambda: scheduler._loop.control.pauses_stale, PATIENCE, "the watch")
    back(app, good, scheduler)
    for _ in range(5):
        turn(scheduler)
    assert history(app) == []
    change_pauses(
        operator.session, operator.paths, lambda pauses: pauses.resume("a", now, skip=True)
    )
    assert until(scheduler, 7, app) == SEVEN


def test_cancelled(
    app: Celery, make: Make, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is claimed after that; another may be asked for."""
    scheduler = make(beat_schedule={"a": every(3600)})
    turn(scheduler)
    assert operator.asks(scheduler, "a", rate=0.001).ok
    until(scheduler, 1, app)
    refused = operator.asks(scheduler, "a")
    assert not refused.ok
    assert "by ann@host1, is already under way" in refused.text
    assert operator.cancels("a") == 1
    assert cancel_backfill(operator.session, operator.paths, "a") is None
    # A claim that is refused before the master hears of it has it forget what was under way.
    wait_until(lambda: scheduler._loop.control.stale, PATIENCE, "the watch")
    scheduler._loop.backfilling._next_at.clear()
    for _ in range(3):
        turn(scheduler)
    assert len(history(app)) == 1
    assert "a: its backfill was cancelled" in caplog.text
    assert operator.asks(scheduler, "a", hours=2).ok
    assert until(scheduler, 3, app) == [*SEVEN[:1], *SEVEN[:2]]


def test_a_claim_against_a_cancellation(app: Celery, make: Make, operator: Operator) -> None:
    """That the master has not heard of: it is refused."""
    scheduler = make(beat_schedule={"a": every(3600)})
    turn(scheduler)
    assert operator.asks(scheduler, "a", rate=0.001).ok
    until(scheduler, 1, app)
    loop = scheduler._loop
    while loop.control.stale:
        turn(scheduler)
    operator.cancels("a")
    loop.backfilling._next_at.clear()
    with pytest.raises(Conflict):
        loop.backfilling.turn()
    assert not loop.ledger.outbox
    for _ in range(3):
        turn(scheduler)
    assert len(history(app)) == 1


class Own(schedule):
    pass


def test_refused(app: Celery, make: Make, operator: Operator) -> None:
    scheduler = make(beat_schedule={"a": every(3600), "own": {"task": "b", "schedule": Own(60)}})
    turn(scheduler)
    year = datetime.now(timezone.utc).year
    yearly = (datetime(year + 1, 1, 1, tzinfo=timezone.utc) - SINCE) / HOUR
    for entry, more, why in (
        ("b", {}, "the master's schedule has no entry 'b'"),
        ("own", {}, "only the class of its schedule, "),
        ("a", {"hours": 1001}, "more than 1000 runs are more than 1000"),
        ("a", {"hours": 7, "most": 6}, "7 runs are more than 6"),
        ("a", {"hours": yearly}, "is in the future by the master's clock"),
        ("a", {"rate": None}, "the rate None"),
        ("a", {"since": "soon"}, "expected an ISO 8601 instant"),
        ("a", {"hours": 0}, "not in order"),
    ):
        answer = operator.asks(scheduler, entry, **more)
        assert not answer.ok
        assert why in answer.text
    assert operator.left() == Backfills()
    assert history(app) == []
    assert operator.asks(scheduler, "a", hours=1001, most=None).text == "more than 1000 runs"


def test_more_than_can_be_kept(app: Celery, make: Make, operator: Operator) -> None:
    """Their record is written with each run of theirs."""
    names = [f"{n}{'x' * 4000}" for n in range(10)]
    scheduler = make(beat_schedule={name: every(3600) for name in names})
    turn(scheduler)
    answers = [operator.asks(scheduler, name, rate=0.001) for name in names]
    assert [answer.ok for answer in answers] == [True] * 7 + [False] * 3
    assert "too many backfills" in answers[-1].text


def test_an_entry_that_is_gone(
    app: Celery, make: Make, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits until it is back, for beats disagree in a deploy; the others' go on."""
    scheduler = make(beat_schedule={"a": every(3600), "b": every(3600, "b")})
    turn(scheduler)
    gone = scheduler.schedule.pop("a")
    assert operator.asks(scheduler, "b").ok
    assert until(scheduler, 7, app) == SEVEN
    scheduler.schedule["a"] = gone
    turn(scheduler)
    assert operator.asks(scheduler, "a", rate=0.001).ok
    del scheduler.schedule["a"]
    for _ in range(3):
        turn(scheduler)
    assert caplog.text.count("its backfill waits: it is not in the master's schedule") <= 1
    scheduler._loop.backfilling._next_at.clear()
    for _ in range(3):
        turn(scheduler)
    assert caplog.text.count("its backfill waits: it is not in the master's schedule") == 1
    count = len(history(app))
    scheduler.schedule["a"] = gone
    done = operator.left().entries["a"].done
    turn(scheduler)
    scheduler._loop.backfilling._next_at.clear()
    until(scheduler, count + 1, app)
    assert operator.left().entries["a"].done == done + 1


def test_a_record_that_is_damaged(
    app: Celery,
    make: Make,
    operator: Operator,
    client: KazooClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing of it is done, and the log names it; all else goes on, and once it is mended it."""
    scheduler = make(beat_schedule={"a": every(3600), "b": every(0.1, "b")})
    turn(scheduler)
    path = operator.paths.backfills
    client.create(path, b"{")
    scheduler._loop.control.stale = True
    until(scheduler, 2, app)
    assert f"{path}: not JSON" in caplog.text
    assert path in operator.asks(scheduler, "a").text
    client.set(path, b"")
    wait_until(lambda: operator.asks(scheduler, "a").ok, PATIENCE, "a backfill")
    wait_until(
        lambda: turn(scheduler) and len([r for r in history(app) if r.task == "task"]) == 7,
        PATIENCE,
        "seven runs",
    )


def test_what_is_told_to_programs(app: Celery, make: Make, operator: Operator) -> None:
    """That the record is as it is documented."""
    scheduler = make(beat_schedule={"a": every(3600)})
    turn(scheduler)
    assert operator.asks(scheduler, "a", rate=0.5).ok
    until(scheduler, 1, app)
    node = operator.session.read(operator.paths.backfills)
    assert node is not None
    told = json.loads(node.data)["entries"]["a"]
    assert from_text(told.pop("at")) <= datetime.now(timezone.utc)
    assert told == {
        "since": to_text(SINCE),
        "until": to_text(SEVEN[-1] + HOUR),
        "rate": 0.5,
        "by": "ann@host1",
        "after": to_text(SINCE),
        "done": 1,
        "total": 7,
    }


def test_entries_of_another_scheduler(app: Celery, make: Make, operator: Operator) -> None:
    """As far as their schedules tell; what that scheduler counts stays as it is."""
    scheduler = make(
        beat_schedule={"a": every(3600), "own": {"task": "b", "schedule": Own(60)}},
        zk_beat_scheduler="celery.beat:Scheduler",
    )
    turn(scheduler)
    assert "only the class of its schedule" in operator.asks(scheduler, "own").text
    assert operator.asks(scheduler, "a").ok
    assert until(scheduler, 7, app) == SEVEN
    assert scheduler.schedule["a"].total_run_count == 0
    assert operator.left() == Backfills()


def test_rows_that_swap_names(
    app: Celery, make: Make, operator: Operator, database: Database
) -> None:
    """Each backfill goes with its row, and runs its task for each instant once, whatever name the
    row has now; a row has one at a time."""
    for name in "ab":
        database.add(name, 3600)
    scheduler = make(zk_beat_scheduler=SCHEDULER)
    turn(scheduler)
    assert operator.asks(scheduler, "a", hours=3, rate=0.001).ok
    assert operator.asks(scheduler, "b", hours=2, rate=0.001).ok
    until(scheduler, 2, app)
    key = str(database.get("a").pk)
    database.rename({"a": "b", "b": "c"})

    def is_renamed() -> bool:
        return turn(scheduler) is not None and operator.left().entries.keys() == {"b", "c"}

    wait_until(is_renamed, PATIENCE, "the new names")
    assert operator.left().entries["b"].key == key
    assert "is already under way" in operator.asks(scheduler, "b").text
    assert len(history(app)) == 2  # at the rate that was asked for
    scheduler._loop.backfilling._next_at.clear()
    wait_until(
        lambda: turn(scheduler) is not None and "c" not in operator.left().entries,
        PATIENCE,
        "the end of one",
    )
    scheduler._loop.backfilling._next_at.clear()
    until(scheduler, 5, app)
    assert operator.left() == Backfills()
    runs = history(app)
    assert [run.due for run in runs if run.task == "a"] == SEVEN[:3]
    assert [run.due for run in runs if run.task == "b"] == SEVEN[:2]
    # Where one is still under a name that the ledger knows nothing of.
    other = Backfill(SINCE, SINCE + HOUR, 1.0, "ann@host1", SINCE, key=key)
    node = operator.session.read(operator.paths.backfills)
    assert node is not None
    written = SetData(operator.paths.backfills, Backfills({"x": other}).encode(), node.version)
    operator.session.commit(written)
    assert "by ann@host1, is already under way" in operator.asks(scheduler, "b").text


def test_a_row_that_is_gone(
    app: Celery,
    make: Make,
    operator: Operator,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was asked of it is not run by another that has its name."""
    for name in "ab":
        database.add(name, 3600)
    scheduler = make(zk_beat_scheduler=SCHEDULER)
    turn(scheduler)
    assert operator.asks(scheduler, "a", rate=0.001).ok
    until(scheduler, 1, app)
    database.get("a").delete()
    database.rename({"b": "a"})
    wait_until(
        lambda: turn(scheduler) is not None and not operator.left(), PATIENCE, "the end of it"
    )
    assert "a: its row is gone, and another has its name: its backfill ends after 1 runs" in (
        caplog.text
    )
    assert [run.task for run in history(app)] == ["a"]
