"""django-celery-beat's DatabaseScheduler behind the election, turned by hand, on SQLite: what its
admin and its own ways with one-off entries have to do with a failover."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.control import change_pauses
from celery_zk_beat.paths import page_of
from celery_zk_beat.zookeeper.operations import Create, Delete, SetData
from example_project.servers import free_port
from tests.conftest import PATIENCE
from tests.django_database import Database
from tests.history import check

from .conftest import Make, every, gated_of, history, past_of, state_of, turn
from .test_gate import PERIOD, Start, ask_for_run, crash, turn_for, turn_until
from .test_outcomes import Worker, folded, headers
from .test_outcomes import hire as hire
from .test_outcomes import worker as worker

SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    pytest.importorskip("django_celery_beat")
    database = Database(tmp_path, None)
    yield database
    database.close()


@pytest.fixture
def start(app: Celery, make: Make, database: Database) -> Start:
    app.conf.zk_beat_scheduler = SCHEDULER
    return make


@pytest.fixture
def broker(app: Celery) -> Broker:
    return Broker(app)


class Broker:
    """To be away, and back again."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.url = app.conf.broker_url

    def is_away(self) -> None:
        self.app.conf.broker_url = f"redis://127.0.0.1:{free_port()}"
        self.app.amqp.__dict__.pop("_producer_pool", None)

    def is_back(self, scheduler: ZooKeeperScheduler) -> None:
        self.app.conf.broker_url = self.url
        self.app.amqp.__dict__.pop("_producer_pool", None)
        scheduler._broker.drop()
        scheduler._loop.dispatcher.publisher.forget_failures()


def soon(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def test_a_one_off_waits_for_the_broker(
    app: Celery, start: Start, database: Database, broker: Broker
) -> None:
    """Though all entries are asked meanwhile whether they are due."""
    broker.is_away()
    database.add("e", PERIOD, one_off=True)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    database.add("other", 3600)
    turn_until(scheduler, lambda: "other" in scheduler.schedule)
    turn_for(scheduler, 0.5)
    broker.is_back(scheduler)
    turn_until(scheduler, lambda: history(app))
    turn_until(scheduler, lambda: not database.get("e").enabled)
    assert [run.run for run in history(app)] == [1]


def test_a_one_off_that_ran_is_not_repeated(app: Celery, start: Start, database: Database) -> None:
    database.add("first", 0.5, enabled=True)
    database.add("e", PERIOD, one_off=True)
    first = start()
    turn_until(first, lambda: any(run.task == "e" for run in history(app)))
    assert database.get("e").total_run_count == 0
    crash(first)
    second = start()
    turn_until(second, lambda: not database.get("e").enabled)
    turn_for(second, PERIOD)
    assert len([run for run in history(app) if run.task == "e"]) == 1


def test_its_table_refuses_a_row(app: Celery, start: Start, database: Database) -> None:
    """A run that was published is published, though its scheduler could not write."""
    from django_celery_beat.models import ClockedSchedule, PeriodicTask

    database.add("e", PERIOD)
    clocked, _ = ClockedSchedule.objects.get_or_create(clocked_time=soon(-3600))
    PeriodicTask.objects.update(clocked=clocked)  # two kinds of schedule: it cannot be saved
    scheduler = start(beat_sync_every=1)
    turn_until(scheduler, lambda: history(app))
    turn_for(scheduler, 1)
    assert check(history(app)) == []


def test_a_one_off_that_is_enabled_again(app: Celery, start: Start, database: Database) -> None:
    """It has a start, so django-celery-beat has it that it ran 30 years before: not in the ledger,
    where it ran just now."""
    database.add("e", PERIOD, one_off=True, start_time=soon(-10))
    scheduler = start()
    turn_until(scheduler, lambda: history(app) and not database.get("e").enabled)
    database.change("e", enabled=True)
    turn_until(scheduler, lambda: len(history(app)) == 2 and not database.get("e").enabled)
    assert [run.run for run in history(app)] == [1, 2]


def test_a_run_that_was_asked_for(app: Celery, start: Start, database: Database) -> None:
    """Before the hour at which an entry is to run once: it does, also after a failover."""
    from django_celery_beat.models import ClockedSchedule

    at = soon(2 * PERIOD)
    clocked = ClockedSchedule.objects.create(clocked_time=at)
    database.add("e", PERIOD, interval=None, clocked=clocked, one_off=True)
    first = start()
    turn_until(first, lambda: "e" in first.schedule)
    assert ask_for_run(first, "e").run == 1
    crash(first)
    second = start()
    turn_until(second, lambda: len(history(app)) == 2)
    assert [run.run for run in history(app)] == [1, 2]
    assert history(app)[1].due == at


def test_a_crontab_that_is_far_from_its_hour(app: Celery, start: Start, database: Database) -> None:
    """django-celery-beat would leave it out of the schedule until then."""
    from django_celery_beat.models import CrontabSchedule

    hour = (datetime.now(timezone.utc).hour + 12) % 24
    crontab = CrontabSchedule.objects.create(minute="0", hour=hour, timezone="UTC")
    database.add("nightly", 1, interval=None, crontab=crontab)
    scheduler = start()
    turn(scheduler)
    assert "nightly" in scheduler.schedule
    assert state_of(scheduler, "nightly").unnamed_since is None


def test_a_run_of_an_entry_that_was_made_anew(
    app: Celery, start: Start, database: Database, broker: Broker
) -> None:
    """It is dropped, not sent as the other."""
    broker.is_away()
    database.add("e", PERIOD)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    database.get("e").delete()
    database.add("e", PERIOD, task="another")
    turn_until(scheduler, lambda: [r.number for r in scheduler._loop.ledger.outbox.values()] != [1])
    broker.is_back(scheduler)
    turn_until(scheduler, lambda: history(app))
    run = history(app)[0]
    assert (run.run, run.task) == (2, "another")
    why = "its entry was deleted or disabled while it waited"
    assert [past.note for past in past_of(scheduler, "e")[:2]] == [f"dropped: {why}", None]


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("changes", [{}, {"enabled": False}])
def test_renamed_while_it_waits(
    app: Celery,
    start: Start,
    database: Database,
    broker: Broker,
    meanwhile: bool,
    changes: dict[str, Any],
) -> None:
    """A row is its key: the run that waits goes on under the new name, with its task id, and the
    entry with its clock and numbers; also where no beat sees it until the next master. Of one that
    is disabled, too, it is dropped."""
    broker.is_away()
    database.add("old", PERIOD)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    waits = scheduler._loop.ledger.outbox["old"]
    if meanwhile:
        crash(scheduler)
    database.change("old", name="new", **changes)
    if meanwhile:
        scheduler = start()
    if changes:
        turn_until(scheduler, lambda: gated_of(scheduler) and not scheduler._loop.ledger.outbox)
        assert state_of(scheduler, "old").dropped == (1,)
        return
    turn_until(scheduler, lambda: "new" in scheduler._loop.ledger.outbox)
    broker.is_back(scheduler)
    turn_until(scheduler, lambda: len(history(app)) == 2)
    one, two = history(app)
    assert (one.entry, one.run, one.due) == ("new", 1, waits.due)
    assert one.id == scheduler.task_id("old", 1, waits.due)
    assert (two.entry, two.run) == ("new", 2)
    assert two.id == scheduler.task_id("new", 2, two.due)
    assert two.due - one.due > timedelta(seconds=PERIOD - 0.1)
    assert [past.number for past in past_of(scheduler, "old")] == [1]
    assert state_of(scheduler, "old").unnamed_since is not None


def test_renamed(app: Celery, start: Start, database: Database) -> None:
    """After a run that is not in its row: no instant has two runs, and no number comes twice, also
    when it is renamed again, and another gets its first name."""
    database.add("first", 0.5)
    database.add("old", PERIOD)
    first = start()
    turn_until(first, lambda: any(run.entry == "old" for run in history(app)))
    crash(first)
    database.change("old", name="new")
    second = start()
    turn_until(second, lambda: any(run.entry == "new" for run in history(app)))
    database.change("new", name="old")
    turn_until(second, lambda: sum(run.entry == "old" for run in history(app)) == 2)
    database.change("old", name="last")
    turn_until(second, lambda: "last" in second.schedule)
    database.add("old", PERIOD)
    turn_until(second, lambda: sum(run.entry == "old" for run in history(app)) == 3)
    turn_until(second, lambda: any(run.entry == "last" for run in history(app)))
    runs = [run for run in history(app) if run.entry != "first"]
    numbers = {name: [run.run for run in runs if run.entry == name] for name in ("old", "new")}
    assert numbers == {"old": [1, 3, 4], "new": [2]}
    assert next(run.run for run in runs if run.entry == "last") == 4
    renamed = [run for run in runs if (run.entry, run.run) != ("old", 4)]
    for one, next_one in zip(renamed, renamed[1:]):
        assert next_one.due - one.due > timedelta(seconds=PERIOD - 0.1)
    assert len({run.id for run in runs}) == len(runs)


@pytest.mark.parametrize("waits", [False, True])
def test_renamed_while_its_run_is_open(
    app: Celery, start: Start, database: Database, broker: Broker, worker: Worker, waits: bool
) -> None:
    """The next run, under the new name, waits for the end of that one, whose outcome is kept with
    the name in its header: the old one, or the new one if it still waited for the broker."""
    app.conf.zk_beat_outcomes = "worker"
    database.add("old", PERIOD)
    if waits:
        broker.is_away()
    scheduler = start(zk_beat_policies={"*": {"overlap": "skip"}})
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox if waits else headers(app))
    if not waits:
        delivery = worker.begin(headers(app)[0])
    database.change("old", name="new")
    turn_until(scheduler, lambda: "new" in scheduler.schedule)
    if waits:
        turn_until(scheduler, lambda: "new" in scheduler._loop.ledger.outbox)
        broker.is_back(scheduler)
        turn_until(scheduler, lambda: headers(app))
        delivery = worker.begin(headers(app)[0])
    first = headers(app)[0]
    assert first["zk_beat"]["entry"] == ("new" if waits else "old")
    turn_until(scheduler, lambda: len([p for p in past_of(scheduler, "new") if not p.number]) == 2)
    notes = [past.note for past in past_of(scheduler, "new") if past.number is None]
    assert all("the run before is still open, since " in (note or "") for note in notes)
    refused = ask_for_run(scheduler, "new")
    assert refused.text.startswith("run 1 is still open, since ")
    crash(scheduler)
    after = start()
    turn_for(after, PERIOD)
    assert len(headers(app)) == 1
    worker.end(delivery, first)
    turn_until(after, lambda: len(headers(app)) == 2)
    assert (second := headers(app)[1]["zk_beat"])["entry"] == "new"
    assert second["run"] == 2
    assert folded(after, first["zk_beat"]["entry"]) == [(1, "success")]
    assert [past.number for past in state_of(after, "new").open] == [2]
    assert state_of(after, "new").was is None


TAKEN_OVER = {
    "swap": {"a": "b", "b": "a"},
    "chain": {"a": "b", "b": "c"},
    "a new one": {"a": "c"},
    "of one that is gone": {"a": "b"},
}


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("how", TAKEN_OVER)
def test_a_name_is_taken_over(
    app: Celery,
    start: Start,
    database: Database,
    broker: Broker,
    how: str,
    meanwhile: bool,
    waits: bool,
) -> None:
    """Between two looks, or while no beat looks. A row is its key, whoever has its name now: what
    ran does not run again, though the row does not say that it did, and what waits is sent under
    the new name, once."""
    names = TAKEN_OVER[how]
    if waits:
        broker.is_away()
    for name in "ab":
        database.add(name, 30, last_run_at=soon(-29))
    scheduler = start()
    ledger = scheduler._loop.ledger
    turn_until(scheduler, lambda: len(ledger.outbox if waits else history(app)) == 2)
    before = {name: state_of(scheduler, name) for name in "ab"}
    if meanwhile:
        crash(scheduler)
    if how == "of one that is gone":
        database.get("b").delete()
    database.rename(names)
    if how == "a new one":
        database.add("a", 30, task="new")
    if meanwhile:
        scheduler = start()
        ledger = scheduler._loop.ledger
    tasks = {(new, old) for old, new in names.items()}
    turn_until(
        scheduler,
        lambda: tasks <= {(name, entry.task) for name, entry in scheduler.schedule.items()},
    )
    turn_for(scheduler, 0.3)
    for old, new in names.items():
        state = state_of(scheduler, new)
        assert (state.last_run_at, state.due) == (before[old].last_run_at, before[old].due)
        if waits:
            assert ledger.outbox[new].was == old
    if waits:
        broker.is_back(scheduler)
        turn_until(scheduler, lambda: not ledger.outbox)
    turn_for(scheduler, 0.3)
    gone = waits and how == "of one that is gone"  # what waited of it is dropped
    assert sorted(run.task for run in history(app)) == (["a"] if gone else ["a", "b"])
    run = next(run for run in history(app) if run.task == "a")
    assert run.id == scheduler.task_id("a", 1, run.due)


def test_rows_that_were_made_anew(app: Celery, start: Start, database: Database) -> None:
    """And numbered from the first once more: they are not the others."""
    for name in "ab":
        database.add(name, 30, last_run_at=soon(-29))
    first = start()
    turn_until(first, lambda: len(history(app)) == 2)
    crash(first)
    keys = {name: database.get(name).pk for name in "ab"}
    for name in "ab":
        database.get(name).delete()
    database.add("b", 3600, pk=keys["a"])
    database.add("a", 3600, pk=keys["b"])
    second = start()
    turn_until(second, lambda: gated_of(second) and "a" in second.schedule)
    assert state_of(second, "a").due is None
    assert state_of(second, "a").last_run_at > soon(-60)


def test_a_name_of_which_the_page_is_damaged(app: Celery, start: Start, database: Database) -> None:
    """A renamed entry waits until that is mended, and goes on where it was then."""
    database.add("a", 30, last_run_at=soon(-29))
    first = start()
    turn_until(first, lambda: history(app))
    before = state_of(first, "a")
    paths, session = first.election.paths, first.election.session
    page = paths.page(page_of("b"))
    session.commit(Create(page, b"{"))
    crash(first)
    database.rename({"a": "b"})
    second = start()
    turn_until(second, lambda: gated_of(second) and "b" in second.schedule)
    turn_for(second, 0.3)
    assert state_of(second, "a") == before
    second.election.session.commit(Delete(page))
    second._loop.forget()
    turn_until(second, lambda: second._loop.ledger.state("b"))
    after = state_of(second, "b")
    assert (after.last_run_at, after.due) == (before.last_run_at, before.due)
    turn_for(second, 0.3)
    assert len(history(app)) == 1


def test_a_name_that_shows_an_address(app: Celery, start: Start, database: Database) -> None:
    """Another text stands for it. That is no other name."""
    database.add("run at 0x1F", 30, last_run_at=soon(-29))
    first = start()
    turn_until(first, lambda: history(app))
    before = state_of(first, "run")
    crash(first)
    second = start()
    turn_until(second, lambda: gated_of(second))
    turn_for(second, 0.3)
    assert state_of(second, "run") == before
    assert len(history(app)) == 1


@pytest.mark.parametrize("changes", [{"description": "other"}, {"name": "other"}])
def test_a_one_off_that_is_changed_while_it_waits(
    app: Celery,
    start: Start,
    database: Database,
    broker: Broker,
    changes: dict[str, Any],
) -> None:
    """Is not enabled again by that, whoever is elected then: it runs once."""
    broker.is_away()
    database.add("e", 1, one_off=True)
    first = start()
    turn_until(first, lambda: first._loop.ledger.outbox)
    crash(first)
    database.change("e", **changes)
    second = start()
    turn_until(second, lambda: gated_of(second) and second._loop.ledger.outbox)
    turn_for(second, 0.3)
    broker.is_back(second)
    turn_until(second, lambda: history(app))
    turn_until(second, lambda: not database.get(changes.get("name", "e")).enabled)
    turn_for(second, 1.5)
    assert len(history(app)) == 1


@pytest.mark.parametrize("name", ["row", "code"])
def test_a_clock_that_never_began(app: Celery, start: Start, database: Database, name: str) -> None:
    """Runs since the entry was first seen, whoever is elected, and however often all rows are
    read: django-celery-beat has it begin when it reads what code defines."""
    code = {"code": every(2 * PERIOD, "code")}
    if name == "row":
        database.add("row", 2 * PERIOD)
        code = {}
    first = start(beat_schedule=code)
    turn_until(first, lambda: name in first.schedule)
    began = state_of(first, name).last_run_at
    turn_for(first, PERIOD / 2)
    crash(first)
    second = start()
    turn_until(second, lambda: name in second.schedule)
    database.add("another", 3600)
    turn_until(second, lambda: "another" in second.schedule)
    turn_until(second, lambda: history(app))
    (run,) = history(app)
    assert abs(run.due - began - timedelta(seconds=2 * PERIOD)) < timedelta(milliseconds=2)


@pytest.mark.parametrize("cure", ["corrected", "unknown", "made anew"])
@pytest.mark.parametrize("has_run", [False, True])
def test_a_last_run_in_the_future(
    app: Celery,
    start: Start,
    database: Database,
    cure: str,
    has_run: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Holds the entry back, as without us, until somebody mends it in the database; the next
    master need not be elected for that."""
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    def tell(last_run_at: datetime | None) -> None:
        PeriodicTask.objects.filter(name="e").update(last_run_at=last_run_at)
        PeriodicTasks.update_changed()

    database.add("e", PERIOD)
    runs = 0
    if has_run:
        first = start(beat_sync_every=1)
        turn_until(first, lambda: history(app))
        first._loop.say_goodbye()
        first.close()
        runs = len(history(app))
    tell(soon(2 * 3600))
    scheduler = start()
    turn_for(scheduler, 1.5 * PERIOD)
    assert len(history(app)) == runs
    assert caplog.text.count("e: its store says that it last ran at") == 1
    mended = soon(0)
    if cure == "made anew":
        database.get("e").delete()
        database.add("e", PERIOD)
    else:
        tell(mended if cure == "corrected" else None)
    turn_until(scheduler, lambda: len(history(app)) == runs + 1)
    run = history(app)[-1]
    assert run.run == runs + 1
    if cure == "corrected":
        assert abs(run.due - mended - timedelta(seconds=PERIOD)) < timedelta(milliseconds=2)
    state = state_of(scheduler, "e")
    assert state.last_run_at < soon(60)


def test_a_store_of_whole_seconds(app: Celery, start: Start, database: Database) -> None:
    """Says of a run that it was up to a second before: that is the same one, and is not counted
    again; the next is due when it would be otherwise."""
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    database.add("e", PERIOD)
    scheduler = start(beat_sync_every=1)
    turn_until(scheduler, lambda: history(app))
    ran = state_of(scheduler, "e").last_run_at
    PeriodicTask.objects.filter(name="e").update(last_run_at=ran.replace(microsecond=0))
    for _ in range(3):
        time.sleep(0.01)
        PeriodicTasks.update_changed()
        turn_for(scheduler, 0.2)
    turn_until(scheduler, lambda: len(history(app)) == 2)
    assert history(app)[1].due - ran < timedelta(seconds=PERIOD, milliseconds=2)
    assert history(app)[1].due - ran > timedelta(seconds=PERIOD, milliseconds=-2)
    turn_until(scheduler, lambda: database.get("e").total_run_count == 2)


ZONES = ["UTC", "Asia/Shanghai", "America/New_York"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("uses", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("starts", [False, True])
def test_a_one_off_in_all_zones(
    app: Celery,
    start: Start,
    database: Database,
    zone: str,
    uses: tuple[bool, bool],
    starts: bool,
) -> None:
    """Runs once, however often it is read, also after a failover; and again when it is enabled
    again, whichever clock writes what, and whether or not a master saw that it was disabled."""
    from django.test import override_settings

    use_tz, aware = uses
    if starts and use_tz and not aware:
        pytest.skip("django-celery-beat compares what cannot be compared")
    app.conf.timezone = zone
    with override_settings(USE_TZ=use_tz, DJANGO_CELERY_BEAT_TZ_AWARE=aware, TIME_ZONE=zone):
        began = soon(-1) if use_tz else soon(-1).replace(tzinfo=None)
        more = {"start_time": began} if starts else {}
        database.add("e", 1, one_off=True, **more)
        first = start()
        turn_until(first, lambda: history(app) and not database.get("e").enabled)
        turn_until(first, lambda: "e" not in first.schedule)
        assert state_of(first, "e").unnamed_since is not None
        database.change("e", enabled=True)
        turn_until(first, lambda: len(history(app)) == 2)
        crash(first)
        second = start()
        turn_until(second, lambda: not database.get("e").enabled)
        database.change("e", enabled=True)  # at once
        turn_until(second, lambda: len(history(app)) == 3 and not database.get("e").enabled)
        turn_for(second, 1.5)
    assert [run.run for run in history(app)] == [1, 2, 3]
    assert len({run.due for run in history(app)}) == 3


def test_without_time_zones(app: Celery, start: Start, database: Database) -> None:
    """What the ledger knows is written in the manner of the settings."""
    from django.test import override_settings

    with override_settings(USE_TZ=False, DJANGO_CELERY_BEAT_TZ_AWARE=False):
        database.add("e", PERIOD)
        first = start(beat_sync_every=1)
        turn_until(first, lambda: len(history(app)) == 2)
        crash(first)
        first._loop.turn()
        second = start()
        turn_until(second, lambda: len(history(app)) == 4)
    assert [run.run for run in history(app)] == [1, 2, 3, 4]
    for one, next_one in zip(history(app), history(app)[1:]):
        assert timedelta(seconds=PERIOD - 0.1) < next_one.due - one.due


@pytest.mark.parametrize("how", ["headers", "hour", "timezone", "unit"])
def test_a_row_that_is_damaged(
    app: Celery, start: Start, database: Database, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Harms no other; one line names it, and it is not taken for deleted."""
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule

    database.add("e", PERIOD)
    if how == "headers":
        database.add("damaged", PERIOD, headers="{")
    elif how == "unit":
        interval = IntervalSchedule.objects.create(every=1, period="fortnights")
        database.add("damaged", PERIOD, interval=interval)
    else:
        crontab = CrontabSchedule.objects.create(hour=4)
        database.add("damaged", PERIOD, interval=None, crontab=crontab)
        # As by hand, or by another release; Django's own checks would refuse it.
        sql = f"UPDATE django_celery_beat_crontabschedule SET {how} = '61'"
        database.execute(sql)
    scheduler = start()
    turn_until(scheduler, lambda: history(app))
    assert "damaged" not in scheduler.schedule
    (line,) = [line for line in caplog.messages if "damaged" in line]
    assert line.startswith("damaged: cannot be read, so it does not run: ")
    gated = gated_of(scheduler)
    assert gated is not None
    assert list(gated.adapter.unreadable) == ["damaged"]
    assert not gated.has_lost("damaged", str(database.get_key("damaged")))
    database.execute("DELETE FROM django_celery_beat_periodictask WHERE name = 'damaged'")
    database.add("other", 3600)
    turn_until(scheduler, lambda: "other" in scheduler.schedule)
    assert gated.adapter.unreadable == {}


def test_a_one_off_that_was_damaged_meanwhile(
    app: Celery, start: Start, database: Database
) -> None:
    """Was not disabled: that it ran still counts, though its row does not say so."""
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    database.add("first", 0.5)
    database.add("e", PERIOD, one_off=True)
    first = start()
    turn_until(first, lambda: any(run.task == "e" for run in history(app)))
    crash(first)
    PeriodicTask.objects.filter(name="e").update(headers="{", last_run_at=None, total_run_count=0)
    second = start()
    turn_until(second, lambda: gated_of(second) and "e" not in second.schedule)
    PeriodicTask.objects.filter(name="e").update(headers="{}")
    PeriodicTasks.update_changed()
    turn_until(second, lambda: not database.get("e").enabled)
    assert len([run for run in history(app) if run.task == "e"]) == 1


def test_added_while_another_is_due(app: Celery, start: Start, database: Database) -> None:
    """It has a state all the same."""
    database.add("e", PERIOD)
    scheduler = start()
    turn_until(scheduler, lambda: gated_of(scheduler))
    time.sleep(PERIOD)
    database.add("added", 3600)
    turn_until(scheduler, lambda: "added" in scheduler.schedule)
    assert history(app)
    assert scheduler._loop.ledger.state("added") is not None


def test_a_run_that_our_own_scheduler_claimed(
    app: Celery, start: Start, database: Database, broker: Broker
) -> None:
    """Before the beats were configured for this one, with the same entries."""
    broker.is_away()
    app.conf.zk_beat_scheduler = None
    first = start(beat_schedule={"e": {"task": "e", "schedule": PERIOD}})
    turn_until(first, lambda: first._loop.ledger.outbox)
    first.election.stop()
    app.conf.zk_beat_scheduler = SCHEDULER
    second = start(broker_url=broker.url)
    broker.is_back(second)
    turn_until(second, lambda: history(app))
    run = history(app)[0]
    assert run.id == first.task_id("e", 1, run.due)


def test_a_run_whose_page_is_damaged(
    app: Celery, start: Start, database: Database, broker: Broker
) -> None:
    """And whose entry was made anew: there is no state in which to note that it is dropped."""
    broker.is_away()
    database.add("e", PERIOD)
    first = start()
    turn_until(first, lambda: first._loop.ledger.outbox)
    crash(first)
    database.get("e").delete()
    database.add("e", 3600)
    second = start()
    assert second.election.wait(PATIENCE)
    page = second.election.paths.page(page_of("e"))
    second.election.session.commit(SetData(page, b"damaged"))
    second._loop.turn()
    assert gated_of(second) is not None


def test_resumed_without_catching_up(app: Celery, start: Start, database: Database) -> None:
    """What is still to come was not missed."""
    before = soon(0)
    start_time = before + timedelta(seconds=PERIOD)
    database.add("e", 3600, one_off=True, start_time=start_time)
    scheduler = start()
    turn_until(scheduler, lambda: gated_of(scheduler))
    election = scheduler.election
    for change in (
        lambda pauses: pauses.pause(None, before),
        lambda pauses: pauses.resume(None, before, True),
    ):
        change_pauses(election.session, election.paths, change)
    turn_until(scheduler, lambda: history(app))
    (run,) = history(app)
    assert run.due == start_time


@pytest.mark.parametrize("change", ["deleted", "disabled", "disabled meanwhile"])
def test_an_entry_that_is_gone(
    app: Celery, start: Start, database: Database, broker: Broker, change: str
) -> None:
    """A run of it that waits for the broker does not wait for ever, nor for another of its name."""
    broker.is_away()
    database.add("e", PERIOD)
    database.add("other", 3600)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    if change == "disabled meanwhile":
        crash(scheduler)
    if change == "deleted":
        database.get("e").delete()
    else:
        database.change("e", enabled=False)
    if change == "disabled meanwhile":
        scheduler = start()
    turn_until(scheduler, lambda: gated_of(scheduler) and not scheduler._loop.ledger.outbox)
    assert state_of(scheduler, "e").dropped == (1,)


class Replica:
    """Has Django read from a copy of the database, which is behind."""

    def __init__(self, database: Database, folder: Path) -> None:
        from django.db import connections

        self._from = database.env["DJANGO_DATABASE"]
        self._to = str(folder / "replica.sqlite3")
        self.catch_up()
        connections.settings["replica"] = {**connections.settings["default"], "NAME": self._to}

    def catch_up(self) -> None:
        connect = sqlite3.connect
        with closing(connect(self._from)) as source, closing(connect(self._to)) as target:
            source.backup(target)

    def close(self) -> None:
        from django.db import connections

        connections["replica"].close()
        del connections["replica"], connections.settings["replica"]

    # As DATABASE_ROUTERS has it.

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True


def test_reads_from_a_replica_that_lags(
    app: Celery, start: Start, database: Database, tmp_path: Path
) -> None:
    """The ledger knows what ran, so that nothing runs again, whatever the copy says."""
    from django.test import override_settings

    database.add("e", PERIOD)
    replica = Replica(database, tmp_path)
    with override_settings(DATABASE_ROUTERS=[replica]), closing(replica):
        first = start()
        turn_until(first, lambda: len(history(app)) == 2)
        crash(first)
        second = start()
        turn_until(second, lambda: len(history(app)) == 3)
        database.change("e", enabled=False)
        turn_until(second, lambda: len(history(app)) == 4)  # it does not know
        replica.catch_up()
        turn_until(second, lambda: "e" not in second.schedule)
        turn_for(second, PERIOD)
    assert [run.run for run in history(app)] == [1, 2, 3, 4]
    assert check(history(app)) == []
    for one, next_one in zip(history(app), history(app)[1:]):
        assert timedelta(seconds=PERIOD - 0.1) < next_one.due - one.due
