"""The contract of gate/stores.py, as each adapter keeps it, with the schedulers and stores
themselves. An adapter is added with a :class:`Site` of its own."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler

from celery_zk_beat import clock
from celery_zk_beat.gate.gated import Gated, open_gate, scheduler_class
from celery_zk_beat.gate.stores import (
    DjangoAdapter,
    FileAdapter,
    RedBeatAdapter,
    SQLAlchemyAdapter,
    StoreAdapter,
    adapter_of,
)
from celery_zk_beat.runs import RunState
from example_project.servers import Redis
from tests.conftest import PATIENCE
from tests.django_database import Database

HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=2)


@dataclass
class OpenGate:
    """Lets all runs pass, and knows of entries what a test says."""

    states: dict[str, RunState] = field(default_factory=dict)
    runs: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    producer: Any = None

    def state(self, name: str) -> RunState | None:
        return self.states.get(name)

    def holds_back(self, name: str) -> float | None:
        return None

    def dispatch(self, entry: Any, due: datetime, claimed: datetime) -> None:
        self.runs.append((entry.name, due, claimed))

    def is_open(self) -> bool:
        return True


class Site:
    """An app whose scheduler is `name`, and somebody who edits its entries."""

    name = "celery.beat:Scheduler"
    adapter: type[StoreAdapter] = StoreAdapter
    #: Whether the store outlives the scheduler; all beats have it; it has keys and starts.
    keeps = is_shared = has_rows = False

    def __init__(self, folder: Path, request: pytest.FixtureRequest, stack: ExitStack) -> None:
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.result_expires = None
        self.app.conf.beat_schedule_filename = str(folder / "schedule")
        self.stack = stack
        self.set_up(folder, request)

    def set_up(self, folder: Path, request: pytest.FixtureRequest) -> None:
        pass

    @property
    def scheduler(self) -> type[Scheduler]:
        return scheduler_class(self.name, "scheduler")

    def open(self, gate: OpenGate | None = None) -> Gated:
        gated = open_gate(
            self.scheduler,
            gate or OpenGate(),
            app=self.app,
            schedule_filename=self.app.conf.beat_schedule_filename,
            lazy=False,
        )
        self.stack.callback(gated.throw_away)
        return gated

    def add(self, name: str, seconds: float = 3600, start: datetime | None = None) -> None:
        self.app.conf.beat_schedule[name] = {"task": name, "schedule": seconds}

    def delete(self, name: str) -> None:
        del self.app.conf.beat_schedule[name]


class File(Site):
    name = "celery.beat:PersistentScheduler"
    adapter = FileAdapter
    keeps = True


class RedBeat(Site):
    name = "redbeat:RedBeatScheduler"
    adapter = RedBeatAdapter
    keeps = is_shared = True

    def set_up(self, folder: Path, request: pytest.FixtureRequest) -> None:
        pytest.importorskip("redbeat")
        server: Redis = request.getfixturevalue("redis_server")
        self.app.conf.redbeat_redis_url = server.url(1)

    def add(self, name: str, seconds: float = 3600, start: datetime | None = None) -> None:
        from redbeat import RedBeatSchedulerEntry

        RedBeatSchedulerEntry(name, name, seconds, app=self.app).save()

    def delete(self, name: str) -> None:
        from redbeat import RedBeatSchedulerEntry

        key = f"{self.app.redbeat_conf.key_prefix}{name}"
        RedBeatSchedulerEntry.from_key(key, app=self.app).delete()


class SQLAlchemy(Site):
    name = "sqlalchemy_celery_beat.schedulers:DatabaseScheduler"
    adapter = SQLAlchemyAdapter
    keeps = is_shared = has_rows = True

    def set_up(self, folder: Path, request: pytest.FixtureRequest) -> None:
        schedulers = pytest.importorskip("sqlalchemy_celery_beat.schedulers")
        schedulers.session_manager.prepared = False  # that is of another test's database
        self.app.conf.beat_dburi = f"sqlite:///{folder}/schedule.db"
        first = self.open()  # makes the tables
        self.session = first.Session
        first.throw_away()

    def add(self, name: str, seconds: float = 3600, start: datetime | None = None) -> None:
        from sqlalchemy_celery_beat.models import IntervalSchedule, Period, PeriodicTask

        with self.session() as session:
            interval = IntervalSchedule(every=int(seconds), period=Period.SECONDS)
            session.add(interval)
            session.commit()
            row = PeriodicTask(name=name, task=name, schedule_model=interval, start_time=start)
            session.add(row)
            session.commit()

    def delete(self, name: str) -> None:
        with self.session() as session:
            session.delete(self._row(session, name))
            session.commit()

    def disable(self, name: str) -> None:
        with self.session() as session:
            self._row(session, name).enabled = False
            session.commit()

    def _row(self, session: Any, name: str) -> Any:
        from sqlalchemy_celery_beat.models import PeriodicTask

        return session.query(PeriodicTask).filter_by(name=name).one()


class Django(Site):
    name = "django_celery_beat.schedulers:DatabaseScheduler"
    adapter = DjangoAdapter
    keeps = is_shared = has_rows = True

    def set_up(self, folder: Path, request: pytest.FixtureRequest) -> None:
        pytest.importorskip("django_celery_beat")
        self.database = Database(folder, None)
        self.stack.callback(self.database.close)

    def add(self, name: str, seconds: float = 3600, start: datetime | None = None) -> None:
        self.database.add(name, seconds, start_time=start)

    def delete(self, name: str) -> None:
        self.database.get(name).delete()

    def disable(self, name: str) -> None:
        self.database.change(name, enabled=False)


@pytest.fixture(params=[Site, File, RedBeat, SQLAlchemy, Django], ids=lambda kind: kind.__name__)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield request.param(tmp_path, request, stack)


def until(gated: Gated, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(min(0.1, max(0.0, gated.turn())))


def test_it_is_told_from_the_others(site: Site) -> None:
    """By the scheduler's class, or a site's own that is derived from it."""
    assert adapter_of(site.scheduler) is site.adapter
    assert adapter_of(type("Own", (site.scheduler,), {})) is site.adapter
    assert type(site.open().adapter) is site.adapter


def test_a_family_that_is_only_half_known() -> None:
    """It is taken for one without a store."""

    class HalfEntry(ScheduleEntry):
        model_schedules = ()

    class Half(Scheduler):
        Entry = HalfEntry

    assert adapter_of(Half) is StoreAdapter


def test_all_entries_are_known(site: Site) -> None:
    """Also those that are not due for long; the same dictionary, until one comes or goes."""
    site.add("soon", 1)
    site.add("late", 30 * 86400)
    gated = site.open()
    known = gated.entries
    assert sorted(known) == ["late", "soon"]
    gated.read_anew()
    assert gated.entries is known
    if site.is_shared:
        time.sleep(0.01)
        site.add("new")
        until(gated, lambda: "new" in gated.entries)
        site.delete("late")
        until(gated, lambda: "late" not in gated.entries)


def test_a_clock_that_never_ran(site: Site) -> None:
    """It began when the entry was made, or the scheduler; or that is not known."""
    before = clock.now() - MOMENT
    site.add("e")
    gated = site.open()
    since = gated.adapter.last_run_at(gated.entries["e"])
    first = datetime.min.replace(tzinfo=timezone.utc)
    assert since.tzinfo is timezone.utc
    assert since == first or before <= since <= clock.now()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_what_the_ledger_knows_is_written(site: Site, zone: str) -> None:
    """To the millisecond; its store says it to the next scheduler, which has no ledger."""
    site.app.conf.timezone = zone
    site.add("e", 60)  # RedBeat is told of what is nearly due
    first = site.open()
    key = first.adapter.key(first.entries["e"])
    first.throw_away()
    at = clock.now()
    time.sleep(2 * MOMENT.total_seconds())
    second = site.open(OpenGate({"e": RunState(at, 1, at - HOUR, key=key)}))
    assert abs(second.adapter.last_run_at(second.entries["e"]) - at) < MOMENT
    second.write()
    second.throw_away()
    third = site.open()
    is_known = abs(third.adapter.last_run_at(third.entries["e"]) - at) < MOMENT
    assert is_known == site.keeps


def test_the_key_is_that_of_one_entry(site: Site) -> None:
    """It stays while the entry is read anew; of another by the same name it is another."""
    site.add("e")
    gated = site.open()
    key = gated.adapter.key(gated.entries["e"])
    assert (key is not None) == site.has_rows
    gated.throw_away()
    gated = site.open()
    assert gated.adapter.key(gated.entries["e"]) == key
    gated.throw_away()
    site.delete("e")
    site.add("other")
    site.add("e")
    gated = site.open()
    again = gated.adapter.key(gated.entries["e"])
    assert again != key if site.has_rows else again is None


def test_the_start(site: Site) -> None:
    """An entry is not due before, whenever its store pretends that it ran."""
    start = clock.now().replace(microsecond=0) + HOUR
    site.add("e")
    site.add("later", 1, start)
    gated = site.open()
    assert gated.adapter.start(gated.entries["e"]) is None
    assert gated.adapter.start(gated.entries["later"]) == (start if site.has_rows else None)


def test_an_entry_that_is_gone(site: Site) -> None:
    """Deleted or disabled in the store, not merely unseen by this beat; made anew it is another."""
    for name in ("e", "deleted", "disabled", "anew"):
        site.add(name)
    gated = site.open()
    keys = {name: gated.adapter.key(entry) for name, entry in gated.entries.items()}
    site.delete("deleted")
    site.delete("anew")
    if isinstance(site, (SQLAlchemy, Django)):
        site.disable("disabled")
    else:
        site.delete("disabled")
    site.add("last")  # some tables give the last key again
    site.add("anew")
    gated.throw_away()
    gated = site.open()
    assert not gated.has_lost("e", keys["e"])
    assert gated.has_lost("deleted", keys["deleted"]) == site.is_shared
    assert gated.has_lost("disabled", keys["disabled"]) == site.is_shared
    assert gated.has_lost("anew", keys["anew"]) == site.has_rows
    if site.has_rows:
        # Claimed by a scheduler that has no keys, or out of sight: who knows.
        assert not gated.has_lost("deleted", None)
        del gated.entries["e"]
        assert not gated.has_lost("e", keys["e"])


def test_what_is_thrown_away_writes_nothing(site: Site) -> None:
    """And is gone at once, with its connections."""
    if isinstance(site, RedBeat):
        pytest.skip("it writes each run at once")
    site.add("e")
    gated = site.open()
    before = gated.adapter.last_run_at(gated.entries["e"])
    gated.schedule["e"] = gated.reserve(gated.entries["e"])
    ran = gated.adapter.last_run_at(gated.entries["e"])
    site.stack.pop_all()
    gated.throw_away()
    gone = weakref.ref(gated)
    del gated
    assert gone() is None
    gated = site.open()
    assert ran > before
    assert gated.adapter.last_run_at(gated.entries["e"]) != ran


def test_what_is_due_is_dispatched_once(site: Site) -> None:
    """For the instant at which it was due, and as its clock goes on."""
    site.add("e", 1)
    gate = OpenGate()
    gated = site.open(gate)
    until(gated, lambda: gate.runs)
    ((name, due, claimed),) = gate.runs
    assert name == "e"
    assert due <= claimed <= clock.now()
    assert abs(gated.adapter.last_run_at(gated.schedule["e"]) - claimed) < MOMENT
