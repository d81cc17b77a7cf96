"""Other schedulers behind the election, turned by hand, with stores of their own: a crash is a beat
whose session ends and that does nothing more."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import schedule

from celery_zk_beat import ZooKeeperScheduler, clock
from celery_zk_beat.control import RUN, Answer, Asking, Pauses, RequestRecord, change_pauses
from celery_zk_beat.due import to_utc
from celery_zk_beat.gate import gated
from example_project.servers import Redis, free_port, wait_until
from tests.conftest import PATIENCE
from tests.faults import Road
from tests.history import check

from .conftest import Make, away, back, every, gated_of, history, past_of, state_of, turn

PLAIN = "celery.beat:Scheduler"
PERSISTENT = "celery.beat:PersistentScheduler"
SQLALCHEMY = "sqlalchemy_celery_beat.schedulers:DatabaseScheduler"
REDBEAT = "redbeat:RedBeatScheduler"

Start = Callable[..., ZooKeeperScheduler]

#: With a period of this, tests neither take long nor depend on the load of the machine.
PERIOD = 2.0


@pytest.fixture(params=[PLAIN, PERSISTENT, SQLALCHEMY, REDBEAT])
def behind(request: Any, app: Celery, redis_server: Redis, tmp_path: Path) -> str:
    """The class of a scheduler, for which the app is configured."""
    return configure(app, request.param, redis_server, tmp_path)


def configure(app: Celery, name: str, redis_server: Redis, folder: Path) -> str:
    if name == SQLALCHEMY:
        schedulers = pytest.importorskip("sqlalchemy_celery_beat.schedulers")
        schedulers.session_manager.prepared = False  # that is of another test's database
    if name == REDBEAT:
        pytest.importorskip("redbeat")
    app.conf.zk_beat_scheduler = name
    app.conf.beat_schedule_filename = str(folder / "schedule")
    app.conf.beat_dburi = f"sqlite:///{folder}/schedule.db"
    app.conf.redbeat_redis_url = redis_server.url(1)
    app.conf.redbeat_key_prefix = f"{app.conf.zk_beat_root}:"
    return name


@pytest.fixture
def start(app: Celery, make: Make, tmp_path: Path) -> Callable[..., ZooKeeperScheduler]:
    """As beat does: with the arguments that it passes on."""

    def start(**conf: Any) -> ZooKeeperScheduler:
        scheduler = make(**conf)
        scheduler._arguments["schedule_filename"] = app.conf.beat_schedule_filename
        return scheduler

    return start


def crash(scheduler: ZooKeeperScheduler) -> None:
    scheduler.election.stop()
    assert gated_of(scheduler) is not None


def turn_until(scheduler: ZooKeeperScheduler, true: Callable[[], object]) -> None:
    assert scheduler.election.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        scheduler._loop.wait(min(scheduler._loop.turn(), 0.2))


def turn_for(scheduler: ZooKeeperScheduler, seconds: float) -> None:
    end = time.monotonic() + seconds
    turn_until(scheduler, lambda: time.monotonic() > end)
    scheduler._loop.turn()  # perhaps the first, where the machine was slow


def ask_for_run(scheduler: ZooKeeperScheduler, entry: str) -> Answer:
    """As `zk-beat run` does."""
    election = scheduler.election
    record = RequestRecord(RUN, entry, None, "2026-01-01T00:00:00+00:00", "the test")
    with Asking(election.session, election.paths, record, lambda event: None) as asking:
        turn_until(scheduler, lambda: asking.answer() is not None)
        answer = asking.answer()
        assert answer is not None
        return answer


def opened(scheduler: ZooKeeperScheduler) -> Any:
    """The other scheduler, behind the master."""
    gated = gated_of(scheduler)
    assert gated is not None
    return gated


def check_rhythm(scheduler: ZooKeeperScheduler) -> None:
    """Asserts that each run was due a period after the last was dispatched, however late that was:
    not before it was due, nor long after it was claimed."""
    past = past_of(scheduler, "e")
    for one, next_one in zip(past, past[1:]):
        assert (next_one.due - one.due).total_seconds() > PERIOD - 0.1
        assert (next_one.due - one.at).total_seconds() < 2 * PERIOD


def test_a_failover_repeats_and_loses_nothing(app: Celery, start: Start, behind: str) -> None:
    """Its store was not written since the run."""
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: len(history(app)) == 1)
    crash(first)
    second = start()
    turn_until(second, lambda: len(history(app)) == 3)
    runs = history(app)
    assert [run.run for run in runs] == [1, 2, 3]
    assert [run.epoch for run in runs] == [1, 2, 2]
    check_rhythm(second)


def test_names_that_are_no_text(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    configure(app, PERSISTENT, redis_server, tmp_path)
    schedule = {1: every(PERIOD, "int"), "1": every(PERIOD, "str"), (2, 3): every(PERIOD, "tuple")}
    first = start(beat_schedule=schedule)
    turn_until(first, lambda: len(history(app)) == 3)
    crash(first)
    second = start()
    turn_until(second, lambda: len(history(app)) == 6)
    for task, name in (("int", "1 (int)"), ("str", "1"), ("tuple", "(2, 3)")):
        assert [run.run for run in history(app) if run.task == task] == [1, 2]
        state = state_of(second, name)
        assert state.total_run_count == 2


def test_what_was_due_meanwhile_runs_once(app: Celery, start: Start, behind: str) -> None:
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: len(history(app)) == 1)
    crash(first)
    time.sleep(2 * PERIOD)
    second = start()
    turn_until(second, lambda: len(history(app)) == 2)
    turn_for(second, PERIOD / 4)
    check_rhythm(second)


def test_a_clock_that_is_set_back_while_it_is_made(
    app: Celery, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are still known to have no time from a store, and what was due runs."""

    ahead = [timedelta(hours=1)]

    app.conf.zk_beat_scheduler = PLAIN
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: len(history(app)) == 1)
    crash(first)
    time.sleep(PERIOD)
    second = start()
    jumping = SimpleNamespace(
        boottime=clock.boottime, now=lambda: clock.now() + (ahead.pop() if ahead else timedelta())
    )
    monkeypatch.setattr(gated, "clock", jumping)
    turn_until(second, lambda: len(history(app)) == 2)
    assert ahead == []
    check_rhythm(second)


class SetBack(Scheduler):
    """The clock is set back when it has seen that an entry is due."""

    def reserve(self, entry: Any) -> Any:
        reserved = super().reserve(entry)
        reserved.last_run_at -= timedelta(hours=1)
        return reserved


def test_a_clock_that_is_set_back_while_it_dispatches(app: Celery, start: Start) -> None:
    """The entry is not due again."""
    app.conf.zk_beat_scheduler = f"{__name__}:SetBack"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    turn_for(scheduler, PERIOD / 4)
    runs = history(app)
    for one, next_one in zip(runs, runs[1:]):  # each claimed for when it was due
        assert PERIOD - 0.1 < (next_one.due - one.due).total_seconds() < PERIOD + 1


def test_a_run_that_was_claimed_and_not_published(app: Celery, start: Start, behind: str) -> None:
    broker = app.conf.broker_url
    first = start(beat_schedule={"e": every(PERIOD)}, broker_url=f"redis://127.0.0.1:{free_port()}")
    turn_until(first, lambda: first._loop.ledger.outbox)
    claimed = dict(first._loop.ledger.outbox)
    crash(first)
    app.conf.broker_url = broker
    app.amqp.__dict__.pop("_producer_pool", None)
    second = start()
    turn_until(second, lambda: history(app))
    run = history(app)[0]  # and the next, if that is due already
    assert (run.run, run.due, run.epoch) == (1, claimed["e"].due, 2)
    assert check(history(app)) == []
    assert run.id == first.task_id("e", 1, run.due)


def test_one_run_for_all_that_was_missed(app: Celery, start: Start, behind: str) -> None:
    """While the broker was away; its store learns of it."""
    good = away(app)
    app.amqp.__dict__.pop("_producer_pool", None)
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: first._loop.ledger.outbox)
    turn_for(first, 2 * PERIOD + 0.5)
    back(app, good, first)
    app.amqp.__dict__.pop("_producer_pool", None)
    turn_until(first, lambda: len(history(app)) == 3)
    check_rhythm(first)
    assert [run.run for run in history(app)] == [1, 2, 3]


def test_pauses(app: Celery, start: Start, behind: str) -> None:
    """What was due while an entry was paused runs once; or, where that is skipped, does not."""
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn(scheduler)
    election = scheduler.election

    def pauses(change: Callable[[Pauses], Pauses]) -> int:
        """The runs before it was heard of."""
        before = scheduler._loop.control._version
        change_pauses(election.session, election.paths, change)
        turn_until(scheduler, lambda: scheduler._loop.control._version > before)
        return len(history(app))

    before = pauses(lambda pauses: pauses.pause("e", datetime.now(timezone.utc)))
    turn_for(scheduler, 2 * PERIOD)
    assert len(history(app)) == before
    pauses(lambda pauses: pauses.resume("e", datetime.now(timezone.utc), False))
    turn_until(scheduler, lambda: len(history(app)) > before)
    before = pauses(lambda pauses: pauses.pause("e", datetime.now(timezone.utc)))
    turn_for(scheduler, 2 * PERIOD)
    assert len(history(app)) == before
    resumed = datetime.now(timezone.utc)
    pauses(lambda pauses: pauses.resume("e", resumed, True))
    turn_until(scheduler, lambda: len(history(app)) > before)
    assert history(app)[before].due > resumed + timedelta(seconds=PERIOD / 2)


def test_a_demoted_beat_writes_nothing(
    app: Celery,
    start: Start,
    redis_server: Redis,
    tmp_path: Path,
) -> None:
    """Though its scheduler has runs that are not in its store; at a hand-over they are written."""
    configure(app, PERSISTENT, redis_server, tmp_path)
    scheduler = start(beat_schedule={"e": every(0.2)})
    turn_until(scheduler, lambda: len(history(app)) > 2)
    crash(scheduler)
    assert scheduler.election.term is None
    scheduler._loop.turn()
    assert gated_of(scheduler) is None
    # Not read before: some kinds of dbm show nothing of a file that another has open.
    assert stored(tmp_path).total_run_count < 2

    second = start()
    turn_until(second, lambda: len(history(app)) > 4)
    second._loop.say_goodbye()
    assert stored(tmp_path).total_run_count > 2


def stored(folder: Path) -> Any:
    app = Celery("reader", set_as_current=False)
    reader = PersistentScheduler(
        app, schedule_filename=str(folder / "schedule"), lazy=True, max_interval=1
    )
    reader._store = reader._open_schedule()
    try:
        return reader._store["entries"]["e"]
    finally:
        reader._store.close()


class Rewriting(Scheduler):
    """As a site's own class may: for each tenant a message of its own, and a header."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        for _tenant in "ab":
            super().apply_entry(entry, producer)

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        entry.options["headers"]["site"] = "ours"
        return super().apply_async(entry, *args, **kwargs)


def test_what_a_class_overrides_is_called(app: Celery, start: Start) -> None:
    from tests.history import all_headers

    app.conf.zk_beat_scheduler = f"{__name__}:Rewriting"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert [run.run for run in history(app)] == [1, 2]
    assert all(headers["site"] == "ours" for headers in all_headers(app.conf.broker_url))


class Failing(Scheduler):
    """Its database is away as long as there is no file of this name."""

    database = Path("/nonexistent")

    def setup_schedule(self) -> None:
        self.tick()
        super().setup_schedule()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        if not self.database.exists():
            raise RuntimeError("no database")
        return super().tick(*args, **kwargs)


class Reached(Failing):
    """Only one beat reaches its database."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        if self.gate._dispatcher.settings.id != "good":
            raise RuntimeError("no database")
        return Scheduler.tick(self, *args, **kwargs)


def test_only_one_reaches_the_database(app: Celery, start: Start, road: Road) -> None:
    """Beats whose scheduler fails do not keep the one out whose scheduler works, though it takes
    longer to ZooKeeper."""
    schedule = {"e": every(0.5)}
    app.conf.zk_beat_scheduler = f"{__name__}:Reached"
    app.conf.zk_beat_publish_deadline = 0.5
    bad = [start(beat_schedule=schedule, zk_beat_id=id) for id in ("bad1", "bad2")]
    road.slow(0.05)
    good = start(beat_schedule=schedule, zk_beat_id="good", zk_beat_hosts=road.hosts)

    def turn_all() -> bool:
        for scheduler in (*bad, good):
            scheduler._loop.turn()
        return len(history(app)) > 3

    begun = time.monotonic()
    wait_until(turn_all, PATIENCE, "runs")
    assert good.election.is_master
    assert time.monotonic() - begun < 20.0


def test_a_scheduler_that_fails(
    app: Celery,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is made anew, from when it is elected or later; where that does not help, the master
    resigns."""
    monkeypatch.setattr(Failing, "database", tmp_path / "database")
    app.conf.zk_beat_scheduler = f"{__name__}:Failing"
    scheduler = start(beat_schedule={"e": every(0.5)}, zk_beat_publish_deadline=0.5)
    assert scheduler.election.wait(PATIENCE)
    term = scheduler.election.term
    assert term is not None
    turn_until(
        scheduler,
        lambda: scheduler.election.term and scheduler.election.term.epoch > term.epoch,
    )
    assert "Failing failed: RuntimeError: no database" in caplog.text
    Failing.database.touch()
    turn_until(scheduler, lambda: len(history(app)) == 1)
    Failing.database.unlink()
    turn_until(scheduler, lambda: gated_of(scheduler) is None)
    Failing.database.touch()
    turn_until(scheduler, lambda: len(history(app)) == 3)
    assert [run.run for run in history(app)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no.such:Thing", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("celery.beat:NoSuch", "cannot be imported: AttributeError"),
        ("celery:Celery", "not a class derived from celery.beat.Scheduler"),
        ("celery_zk_beat:ZooKeeperScheduler", "remove it"),
    ],
)
def test_no_such_scheduler(app: Celery, name: str, says: str) -> None:
    """Said at the start, in one line."""
    app.conf.zk_beat_scheduler = name
    with pytest.raises(SystemExit) as caught:
        ZooKeeperScheduler(app=app)
    assert str(caught.value).startswith(f"celery beat: zk_beat_scheduler = {name!r}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_banner_makes_none(app: Celery) -> None:
    app.conf.zk_beat_scheduler = "no.such:Thing"
    scheduler = ZooKeeperScheduler(app=app, lazy=True)
    assert ". elected -> no.such:Thing" in scheduler.info


def test_what_is_to_run_once(
    app: Celery, start: Callable[..., ZooKeeperScheduler], redis_server: Redis, tmp_path: Path
) -> None:
    """Does not again after a crash, though its store does not know that it ran."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    once = {**every(2 * PERIOD), "task": "once"}  # not before its row is changed
    first = start(beat_schedule={"often": every(1), "once": once})
    turn_until(first, lambda: history(app))  # the first run is written at once
    with contextlib.closing(sqlite3.connect(tmp_path / "schedule.db")) as store, store:
        store.execute("UPDATE celery_periodictask SET one_off = 1 WHERE name = 'once'")
    turn_until(first, lambda: any(run.task == "once" for run in history(app)))
    crash(first)
    second = start(beat_schedule={})
    turn_for(second, 2 * PERIOD + 0.5)
    assert [run.run for run in history(app) if run.task == "once"] == [1]


def test_two_messages_while_the_broker_is_away(app: Celery, start: Start) -> None:
    """[I2] The second claim must not take the first run out of the outbox."""
    broker = app.conf.broker_url
    app.conf.zk_beat_scheduler = f"{__name__}:Rewriting"
    first = start(beat_schedule={"e": every(PERIOD)}, broker_url=f"redis://127.0.0.1:{free_port()}")
    turn_until(first, lambda: first._loop.ledger.outbox)
    turn_for(first, 0.5)
    crash(first)
    app.conf.broker_url = broker
    app.amqp.__dict__.pop("_producer_pool", None)
    second = start()
    turn_until(second, lambda: len(history(app)) >= 2)
    assert [run.run for run in history(app)][:2] == [1, 2]


def test_a_claim_says_that_the_entry_is_named(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """[I5] An entry that is not in the schedule at the hour of each election and daily look, as
    nightly ones of django-celery-beat 2.8 and 2.9 are not at noon, runs, and must not be forgotten
    after 30 days."""
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 1)
    month_ago = datetime.now(timezone.utc) - timedelta(days=31)
    unnamed = replace(state_of(scheduler, "e"), unnamed_since=month_ago)
    scheduler._loop.ledger.rewrite({"e": unnamed})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    scheduler._loop.ledger.note_named({})
    assert scheduler._loop.ledger.state("e") is not None


def test_run_of_an_entry_that_was_added(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """An entry that came after the election has a state before its first run, without which
    `zk-beat run`, `pause` and `status` do not know it."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    from sqlalchemy_celery_beat.models import IntervalSchedule, Period, PeriodicTask

    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 1)
    gated = gated_of(scheduler)
    assert gated is not None
    session = gated.Session()
    interval = IntervalSchedule(every=3600, period=Period.SECONDS)
    session.add(interval)
    session.commit()
    session.add(PeriodicTask(name="added", task="added", schedule_model=interval))
    session.commit()
    session.close()
    turn_until(scheduler, lambda: "added" in scheduler.schedule)
    assert scheduler._loop.ledger.state("added") is not None


def test_redbeat_entry_deleted(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    configure(app, REDBEAT, redis_server, tmp_path)
    from redbeat import RedBeatSchedulerEntry

    scheduler = start(beat_schedule={})
    RedBeatSchedulerEntry("e", "task", PERIOD, app=app).save()
    turn_until(scheduler, lambda: len(history(app)) == 1)
    RedBeatSchedulerEntry.from_key(f"{app.conf.redbeat_key_prefix}e", app=app).delete()
    turn_for(scheduler, 0.5)
    assert "e" not in scheduler.schedule


def test_redbeat_needs_no_lock_of_ours(app: Celery) -> None:
    """RedBeat listens to `beat_init` and asks the scheduler, which is ours, for its lock."""
    pytest.importorskip("redbeat")
    app.conf.zk_beat_scheduler = REDBEAT
    assert ZooKeeperScheduler(app=app).lock_key is None


@pytest.mark.parametrize("name", [REDBEAT, PERSISTENT, SQLALCHEMY])
def test_its_store_is_lost(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path, name: str
) -> None:
    """What was due meanwhile runs all the same, and for the instant that it was due."""
    configure(app, name, redis_server, tmp_path)
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: len(history(app)) == 1)
    crash(first)
    first._loop.turn()
    with redis.Redis.from_url(redis_server.url(1)) as server:
        server.flushdb()
    for path in tmp_path.glob("schedule*"):
        path.unlink()
    if name == SQLALCHEMY:
        configure(app, name, redis_server, tmp_path)
    time.sleep(1.5 * PERIOD)
    second = start()
    turn_until(second, lambda: len(history(app)) == 2)
    check_rhythm(second)


def add_row(scheduler: ZooKeeperScheduler, name: str, seconds: int, **fields: Any) -> None:
    """To the tables of sqlalchemy-celery-beat, and waits until it is seen."""
    from sqlalchemy_celery_beat.models import IntervalSchedule, Period, PeriodicTask

    turn_until(scheduler, lambda: gated_of(scheduler))
    with opened(scheduler).Session() as session:
        interval = IntervalSchedule(every=seconds, period=Period.SECONDS)
        session.add(interval)
        session.commit()
        session.add(PeriodicTask(name=name, task=name, schedule_model=interval, **fields))
        session.commit()
    turn_until(scheduler, lambda: name in scheduler.schedule)


def test_a_clock_that_never_began(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """Runs since the entry was first seen, whoever is elected, and however often all rows are
    read: sqlalchemy-celery-beat has it begin then."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    first = start(beat_schedule={})
    add_row(first, "e", int(2 * PERIOD))
    began = state_of(first, "e").last_run_at
    add_row(first, "another", 3600)
    crash(first)
    second = start()
    add_row(second, "a third", 3600)
    turn_until(second, lambda: history(app))
    (run,) = history(app)
    assert abs(run.due - began - timedelta(seconds=2 * PERIOD)) < timedelta(milliseconds=2)


def test_a_row_that_was_made_anew_never_ran(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """And its clock begins once, too."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    from sqlalchemy_celery_beat.models import PeriodicTask

    scheduler = start(beat_schedule={})
    add_row(scheduler, "e", 1)
    turn_until(scheduler, lambda: history(app))
    with opened(scheduler).Session() as session:
        session.delete(session.query(PeriodicTask).filter_by(name="e").one())
        session.commit()
    turn_until(scheduler, lambda: "e" not in scheduler.schedule)
    runs, added = len(history(app)), datetime.now(timezone.utc)
    add_row(scheduler, "e", int(2 * PERIOD))
    began = state_of(scheduler, "e").last_run_at
    assert began > added
    add_row(scheduler, "another", 3600)
    turn_until(scheduler, lambda: len(history(app)) > runs)
    run = history(app)[-1]
    assert run.run == runs + 1
    assert abs(run.due - began - timedelta(seconds=2 * PERIOD)) < timedelta(milliseconds=2)


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("is_seen", [False, True])
def test_a_one_off_that_is_enabled_again(
    app: Celery,
    start: Start,
    redis_server: Redis,
    tmp_path: Path,
    starts: bool,
    keeps: bool,
    is_seen: bool,
) -> None:
    """Runs once more, whether or not it keeps its last run, and whether or not a master saw that
    it was disabled."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    from sqlalchemy_celery_beat.models import PeriodicTask

    scheduler = start(beat_schedule={})
    start_time = datetime.now(timezone.utc) - timedelta(seconds=1) if starts else None
    add_row(scheduler, "e", 1, one_off=True, start_time=start_time)

    def is_enabled() -> bool:
        with opened(scheduler).Session() as session:
            return bool(session.query(PeriodicTask).filter_by(name="e").one().enabled)

    turn_until(scheduler, lambda: history(app) and not is_enabled())
    if is_seen:
        turn_until(scheduler, lambda: "e" not in scheduler.schedule)
    with opened(scheduler).Session() as session:
        row = session.query(PeriodicTask).filter_by(name="e").one()
        row.enabled = True
        if not keeps:
            row.last_run_at = None
        session.commit()
    turn_until(scheduler, lambda: len(history(app)) == 2 and not is_enabled())
    turn_for(scheduler, 1.5)
    assert [run.run for run in history(app)] == [1, 2]
    assert history(app)[1].due > history(app)[0].due


def test_a_change_that_is_read_when_the_entry_is_due(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """It is sent as it is now, not as it was."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    from sqlalchemy_celery_beat.models import PeriodicTask

    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 1)
    gated = gated_of(scheduler)
    assert gated is not None
    session = gated.Session()
    row = session.query(PeriodicTask).filter_by(name="e").one()
    row.task = "changed"
    session.commit()
    session.close()
    time.sleep(PERIOD)
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert history(app)[1].task == "changed"


def test_redbeat_rescheduled_by_hand(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """To an earlier time: what ran does not again, what never did runs."""
    configure(app, REDBEAT, redis_server, tmp_path)
    from redbeat import RedBeatSchedulerEntry

    scheduler = start(beat_schedule={"e": every(60, "e"), "ran": every(PERIOD, "ran")})
    turn_until(scheduler, lambda: history(app))
    for name in ("e", "ran"):
        entry = RedBeatSchedulerEntry.from_key(f"{app.conf.redbeat_key_prefix}{name}", app=app)
        entry.reschedule(datetime.now(timezone.utc) - timedelta(hours=1))
    turn_for(scheduler, 0.5 * PERIOD)
    assert [run.task for run in history(app)].count("e") == 1
    # But in its rhythm, where the machine is slow.
    due = [run.due for run in history(app) if run.task == "ran"]
    assert due
    assert all((b - a).total_seconds() > PERIOD - 0.1 for a, b in zip(due, due[1:]))


def test_redbeat_made_anew(app: Celery, start: Start, redis_server: Redis, tmp_path: Path) -> None:
    configure(app, REDBEAT, redis_server, tmp_path)
    from redbeat import RedBeatSchedulerEntry

    scheduler = start(beat_schedule={})
    RedBeatSchedulerEntry("e", "task", PERIOD, app=app).save()
    turn_until(scheduler, lambda: len(history(app)) == 1)
    RedBeatSchedulerEntry.from_key(f"{app.conf.redbeat_key_prefix}e", app=app).delete()
    turn_for(scheduler, 1)
    made = datetime.now(timezone.utc)
    RedBeatSchedulerEntry("e", "task", PERIOD, app=app).save()
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert history(app)[1].due - made > timedelta(seconds=PERIOD - 0.1)
    assert history(app)[1].run == 2


def test_a_run_that_was_asked_for(app: Celery, start: Start, behind: str) -> None:
    """Is none of the entry's own: its clock, which never ran, goes on, also after a failover."""
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: "e" in first.schedule)
    began = state_of(first, "e").last_run_at
    assert ask_for_run(first, "e").run == 1
    crash(first)
    second = start()
    turn_until(second, lambda: len(history(app)) == 2)
    own = history(app)[1]
    assert abs(own.due - began - timedelta(seconds=PERIOD)) < timedelta(milliseconds=2)


def test_a_run_that_was_asked_for_before_its_time(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path
) -> None:
    """An entry that is to run once, at an hour, does all the same, also after a failover."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    from sqlalchemy_celery_beat.models import ClockedSchedule, PeriodicTask

    first = start(beat_schedule={})
    turn_until(first, lambda: gated_of(first))
    at = datetime.now(timezone.utc) + timedelta(seconds=2 * PERIOD)
    session = opened(first).Session()
    clocked = ClockedSchedule(clocked_time=at)
    session.add(clocked)
    session.commit()
    session.add(PeriodicTask(name="e", task="e", schedule_model=clocked, one_off=True))
    session.commit()
    session.close()
    turn_until(first, lambda: "e" in first.schedule)
    assert ask_for_run(first, "e").run == 1
    crash(first)
    second = start()
    turn_until(second, lambda: len(history(app)) == 2)
    assert [run.run for run in history(app)] == [1, 2]
    assert history(app)[1].due == at


class SendsTwice(Scheduler):
    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        super().apply_async(entry, *args, **kwargs)
        return super().apply_async(entry, *args, **kwargs)


def test_two_of_one_id(app: Celery, start: Start) -> None:
    app.conf.zk_beat_scheduler = f"{__name__}:SendsTwice"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    one, two = history(app)
    assert (one.run, one.id) == (two.run, two.id)


@pytest.mark.parametrize("name", [SQLALCHEMY, REDBEAT])
def test_an_entry_that_is_gone(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path, name: str
) -> None:
    """Its run that waits for the broker is dropped: nobody wants it any more."""
    configure(app, name, redis_server, tmp_path)
    first = start(beat_schedule={"e": every(PERIOD)}, broker_url=f"redis://127.0.0.1:{free_port()}")
    turn_until(first, lambda: first._loop.ledger.outbox)
    entry = first.schedule["e"]
    crash(first)
    if name == REDBEAT:
        entry.delete()
    else:
        entry._disable(entry.model)
    second = start(beat_schedule={"other": every(3600)})
    turn_until(second, lambda: gated_of(second) and not second._loop.ledger.outbox)
    assert state_of(second, "e").dropped == (1,)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("name", [REDBEAT, PERSISTENT, SQLALCHEMY])
def test_zone_of_the_app(
    app: Celery, start: Start, redis_server: Redis, tmp_path: Path, name: str, zone: str
) -> None:
    """What is brought up to date is written so that it can be read."""
    configure(app, name, redis_server, tmp_path)
    app.conf.timezone = zone
    first = start(beat_schedule={"e": every(PERIOD)})
    turn_until(first, lambda: len(history(app)) == 2)
    crash(first)
    first._loop.turn()
    second = start()
    turn_until(second, lambda: gated_of(second))
    second._loop.say_goodbye()
    second.close()
    third = start()
    turn_for(third, 1.5 * PERIOD)
    # The first may have died before it confirmed.
    assert list(dict.fromkeys(run.run for run in history(app)))[:3] == [1, 2, 3]
    check_rhythm(third)


class DiskFull(Scheduler):
    sync_every = 0

    def sync(self) -> None:
        raise OSError("no space left on device")


def test_a_store_that_cannot_be_written(app: Celery, start: Start) -> None:
    """[I3] Celery syncs in the end of apply_async(): the message has been sent by then, and is not
    to be sent again."""
    app.conf.zk_beat_scheduler = f"{__name__}:DiskFull"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert [run.run for run in history(app)] == [1, 2]


def test_an_entry_that_runs_once(
    app: Celery,
    start: Start,
    redis_server: Redis,
    tmp_path: Path,
) -> None:
    """Its database does not know of the run, nor of any."""
    configure(app, SQLALCHEMY, redis_server, tmp_path)
    once = every(PERIOD, options={"one_off": True})
    first = start(beat_schedule={"first": every(PERIOD / 2), "e": once})
    turn_until(first, lambda: len(history(app)) == 2)
    turn_until(first, lambda: state_of(first, "e").total_run_count == 1)
    crash(first)
    second = start()
    turn_for(second, PERIOD + 0.5)
    assert state_of(second, "e").total_run_count == 1


class NeverTells(schedule):
    """Cannot tell when it is due, as a place where the sun does not set."""

    def is_due(self, last_run_at: datetime) -> Any:
        raise ValueError("no sunset")


@pytest.mark.parametrize("celery", ["5.5", "5.7"])
def test_an_entry_that_cannot_tell_when_it_is_due(
    app: Celery,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    celery: str,
) -> None:
    """It stops no other: not in a Celery either that does not see to that itself."""
    if celery == "5.5":

        def fails(*args: Any) -> None:
            raise  # what is being handled

        monkeypatch.setattr(Scheduler, "_is_due_failed", fails, raising=False)
    app.conf.zk_beat_scheduler = PLAIN
    bad = {"task": "bad", "schedule": NeverTells(1)}
    scheduler = start(beat_schedule={"bad": bad, "e": every(PERIOD)})
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert {run.task for run in history(app)} == {"task"}
    if celery == "5.5":
        told = [
            line for line in caplog.messages if line.startswith("bad: cannot compute when it is")
        ]
        assert len(told) == 1


class Unreadable(Scheduler):
    """Its entries cannot be read once it is made."""

    closed = 0
    is_made = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_made = True

    def get_schedule(self) -> Any:
        if self.is_made:
            raise RuntimeError("no database")
        return self.data

    schedule = property(get_schedule)

    def close(self) -> None:
        Unreadable.closed += 1
        super().close()


def test_what_is_half_made_is_thrown_away(
    app: Celery, start: Callable[..., ZooKeeperScheduler]
) -> None:
    app.conf.zk_beat_scheduler = f"{__name__}:Unreadable"
    scheduler = start(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: Unreadable.closed)


def test_a_run_that_is_still_to_come(
    app: Celery, start: Start, behind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock was ahead: it is said, the entry goes on, and the store does not get it too."""
    first = start(beat_schedule={"e": every(PERIOD)})
    turn(first)
    now = datetime.now(timezone.utc)
    first._loop.ledger.skip({"e": (now, now + timedelta(days=1))}, "a clock was wrong")
    crash(first)
    second = start()
    turn_until(second, lambda: history(app))
    assert "is in the future: a clock was ahead. It continues from" in caplog.text
    known = second.schedule["e"].last_run_at
    assert to_utc(known) < now + timedelta(hours=1)
