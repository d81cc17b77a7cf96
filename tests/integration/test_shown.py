"""What readers are told of the entries of other schedulers, with real stores, by schedulers that
are turned by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import crontab, schedule

from celery_zk_beat import ZooKeeperScheduler, clock
from celery_zk_beat.control import change_pauses
from celery_zk_beat.gate import showing
from celery_zk_beat.gate.entries import GatedEntries
from celery_zk_beat.gate.showing import Showing
from celery_zk_beat.gate.stores import StoreAdapter
from celery_zk_beat.paths import Paths
from celery_zk_beat.shown import LARGEST, page_shown
from celery_zk_beat.status import terminal
from celery_zk_beat.status.reader import Reader
from celery_zk_beat.status.snapshot import Entry, Snapshot
from celery_zk_beat.web.readings import Reading
from celery_zk_beat.zookeeper.operations import Create, Delete, Node, Pending, SetData
from celery_zk_beat.zookeeper.session import ZooKeeperSession, connected
from example_project.servers import Redis, ZooKeeper, wait_until
from tests.conftest import PATIENCE
from tests.django_database import Database

from .conftest import Make, every, history, state_of, turn
from .test_gate import PERIOD, PLAIN, REDBEAT, configure, crash, turn_for, turn_until

DJANGO = "django_celery_beat.schedulers:DatabaseScheduler"
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(showing, "_WRITE_EVERY", 0.05)


@pytest.fixture
def session(zookeeper: ZooKeeper) -> Iterator[ZooKeeperSession]:
    with connected(zookeeper.hosts, 4.0, PATIENCE, lambda: None) as session:
        yield session


class Eye:
    """Of somebody who asks, with the app's settings."""

    def __init__(self, app: Celery, session: ZooKeeperSession) -> None:
        self.app, self.session = app, session
        self.paths = Paths.of(app.conf.zk_beat_hosts, app.conf.zk_beat_root)
        self.news: list[None] = []

    def reader(self, watches: bool = False) -> Reader:
        asker = ZooKeeperScheduler(app=self.app)
        tell: Callable[[], None] | None = (lambda: self.news.append(None)) if watches else None
        return Reader(self.session, asker.settings, asker, tell)

    def look(self) -> Snapshot:
        return self.reader().read()

    def entries(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.look().entries}

    def entry(self, name: str) -> Entry:
        return self.entries()[name]

    def znodes(self) -> dict[str, Node]:
        """All that was written, with the number of times."""
        names = self.session.children(self.paths.shown)
        paths = [self.paths.shown, *map(self.paths.shown_page, names)]
        return {path: node for path, node in zip(paths, self.session.read_all(paths)) if node}


@pytest.fixture
def eye(app: Celery, session: ZooKeeperSession) -> Eye:
    return Eye(app, session)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    pytest.importorskip("django_celery_beat")
    database = Database(tmp_path, None)
    yield database
    database.close()


def showing_of(scheduler: ZooKeeperScheduler) -> Showing:
    assert isinstance(scheduler._loop.source, GatedEntries)
    return scheduler._loop.source._showing


def turn_until_shown(scheduler: ZooKeeperScheduler) -> None:
    """All that there is at the moment."""
    turn(scheduler)
    shows, seen = showing_of(scheduler), showing_of(scheduler)._look_at
    turn_until(
        scheduler,
        lambda: (
            shows._look_at > seen + 0.1 and not (shows._look or shows._changed or shows._pending)
        ),
    )


def test_django_celery_beat(app: Celery, make: Make, database: Database, eye: Eye) -> None:
    """Each kind of schedule, as the master has it."""
    from django_celery_beat.models import (
        ClockedSchedule,
        CrontabSchedule,
        PeriodicTask,
        SolarSchedule,
    )

    app.conf.zk_beat_scheduler = DJANGO
    add = PeriodicTask.objects.create
    soon = datetime.now(timezone.utc).replace(microsecond=0) + 200 * SECOND
    database.add("often", 30, task="tasks.often")
    database.add("later", 30, start_time=soon)
    database.add("same", 3600)
    night = CrontabSchedule.objects.create(minute="0", hour="3", timezone="Asia/Tokyo")
    add(name="nightly", task="tasks.nightly", crontab=night)
    once = ClockedSchedule.objects.create(clocked_time=soon)
    add(name="once", task="tasks.once", clocked=once, one_off=True)
    sun = SolarSchedule.objects.create(event="sunset", latitude=50, longitude=5)
    add(name="sun", task="tasks.sun", solar=sun)
    scheduler = make()
    turn_until_shown(scheduler)

    entries = eye.entries()
    often = state_of(scheduler, "often")
    assert entries["often"].next_run_at == often.last_run_at + 30 * SECOND
    assert (entries["often"].task, entries["often"].schedule) == ("tasks.often", "every 30 s")
    assert entries["later"].next_run_at == soon
    at = entries["nightly"].next_run_at
    assert at is not None
    assert (at.hour, at.minute) == (18, 0)
    assert timedelta() < at - datetime.now(timezone.utc) <= timedelta(days=1)
    assert entries["nightly"].schedule == "crontab 0 3 * * * Asia/Tokyo"
    assert entries["once"].next_run_at == soon
    assert entries["once"].task == "tasks.once"
    sunset = entries["sun"].next_run_at
    assert sunset is not None
    assert timedelta() < sunset - datetime.now(timezone.utc) < timedelta(days=1.1)
    assert "sunset" in str(entries["sun"].schedule)
    assert all(entry.in_schedule for entry in entries.values())

    database.change("often", task="tasks.other", interval=database.add("x", 60).interval)
    database.change("later", enabled=False)
    database.get("once").delete()
    turn_until(scheduler, lambda: eye.entry("often").task == "tasks.other")
    entries = eye.entries()
    assert entries["often"].schedule == "every 60 s"
    same = state_of(scheduler, "same")
    assert entries["same"].next_run_at == same.last_run_at + 3600 * SECOND
    for gone in ("later", "once"):
        entry = entries[gone]
        assert (entry.in_schedule, entry.task, entry.schedule) == (False, None, None)
        assert entry.next_run_at is None
    turn_until(scheduler, lambda: eye.paths.shown_page(page_shown("once")) not in eye.znodes())


def test_redbeat(app: Celery, make: Make, redis_server: Redis, tmp_path: Path, eye: Eye) -> None:
    configure(app, REDBEAT, redis_server, tmp_path)
    from redbeat import RedBeatSchedulerEntry

    def add(name: str, when: Any, **more: Any) -> Any:
        return RedBeatSchedulerEntry(name, f"tasks.{name}", when, app=app, **more).save()

    add("often", schedule(PERIOD, app=app))
    add("nightly", crontab(minute=0, hour=3, app=app))
    gone, off = (add(name, schedule(3600, app=app)) for name in ("gone", "off"))
    off.enabled = False
    off.save()
    bad = add("bad", schedule(3600, app=app))
    redis.Redis.from_url(app.conf.redbeat_redis_url).hset(bad.key, "definition", "{")
    scheduler = make()
    turn_until_shown(scheduler)
    turn_until(scheduler, lambda: history(app))
    entries = eye.entries()
    assert (entries["often"].task, entries["often"].schedule) == ("tasks.often", "every 2 s")
    last = state_of(scheduler, "often").last_run_at
    assert entries["often"].next_run_at == last + PERIOD * SECOND
    assert entries["nightly"].task == "tasks.nightly"
    assert entries["nightly"].schedule == "crontab 0 3 * * *"
    assert (entries["off"].disabled, entries["off"].task) == (True, "tasks.off")
    assert entries["off"].next_run_at is None
    assert entries["bad"].error is not None
    (warning,) = [each for each in eye.look().warnings if "damaged" in each]
    assert warning.startswith("bad is damaged in its store, and does not run: ")
    shown = terminal.status(eye.look(), datetime.now(timezone.utc), lambda text, _: text, math.inf)
    notes = {line.split()[-1]: line for line in shown if line}
    assert "disabled" in notes["off"]
    assert "damaged: " in notes["bad"]

    gone.delete()
    bad.delete()
    off.enabled = True
    off.save()
    turn_until(scheduler, lambda: not eye.entry("gone").in_schedule)
    turn_until(scheduler, lambda: eye.entry("off").next_run_at)
    turn_until(scheduler, lambda: "bad" not in eye.entries())
    turn_until(scheduler, lambda: eye.paths.shown_page(page_shown("gone")) not in eye.znodes())


def test_a_last_run_in_the_future(app: Celery, make: Make, database: Database, eye: Eye) -> None:
    """Of which only the store knows: a warning says it, until it is mended."""
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    def warnings() -> list[str]:
        return [each for each in eye.look().warnings if "according to its store" in each]

    database.add("e", 3600)
    future = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=2)
    PeriodicTask.objects.update(last_run_at=future)
    app.conf.zk_beat_scheduler = DJANGO
    scheduler = make()
    turn_until(scheduler, warnings)
    assert warnings() == [
        f"e last ran at {future:%Y-%m-%dT%H:%M:%SZ} according to its store, which is in the "
        "future: it does not run until then, unless the store is corrected"
    ]
    assert eye.entry("e").next_run_at == future + timedelta(hours=1)
    PeriodicTask.objects.update(last_run_at=None)
    PeriodicTasks.update_changed()
    turn_until(scheduler, lambda: not warnings())


def test_redbeat_rescheduled(
    app: Celery, make: Make, redis_server: Redis, tmp_path: Path, eye: Eye
) -> None:
    """That is no mistake."""
    configure(app, REDBEAT, redis_server, tmp_path)
    from redbeat import RedBeatSchedulerEntry

    later = datetime.now(timezone.utc) + timedelta(hours=2)
    RedBeatSchedulerEntry("e", "e", schedule(3600, app=app), app=app).save().reschedule(later)
    scheduler = make()
    turn_until_shown(scheduler)
    assert eye.entry("e").next_run_at is not None
    assert [each for each in eye.look().warnings if "according to its store" in each] == []


def test_runs_write_nothing(app: Celery, make: Make, eye: Eye) -> None:
    """What runs next is known all the same."""
    app.conf.zk_beat_scheduler = PLAIN
    scheduler = make(beat_schedule={"e": every(PERIOD), "never": every(1e6)})
    turn_until_shown(scheduler)
    before = eye.znodes()
    assert len(before) == 3
    turn_until(scheduler, lambda: len(history(app)) == 2)
    turn_for(scheduler, 0.5)
    assert eye.znodes() == before
    last = state_of(scheduler, "e").last_run_at
    assert eye.entry("e").next_run_at == last + PERIOD * SECOND
    change_pauses(eye.session, eye.paths, lambda pauses: pauses.pause("e", last, "me"))
    assert eye.entry("e").next_run_at is None


class Own(schedule):
    """No rule describes it: every 2 s, says only its class."""

    def __repr__(self) -> str:
        return "<when it likes>"


def test_what_only_a_class_knows(app: Celery, make: Make, eye: Eye) -> None:
    """Its next run is told anew when it has run."""
    app.conf.zk_beat_scheduler = PLAIN
    scheduler = make(beat_schedule={"e": {"task": "t", "schedule": Own(PERIOD)}})
    turn_until_shown(scheduler)
    assert eye.entry("e").schedule == "<when it likes>"
    turn_until(scheduler, lambda: history(app))
    turn_until_shown(scheduler)
    last = state_of(scheduler, "e").last_run_at
    at = eye.entry("e").next_run_at
    assert at is not None
    assert abs(at - last - PERIOD * SECOND) < SECOND / 100


class Unreadable(schedule):
    def __repr__(self) -> str:
        raise ValueError("not to be shown")


def test_a_class_that_cannot_be_shown(app: Celery, make: Make, eye: Eye) -> None:
    """It says so itself, and the others are shown."""
    app.conf.zk_beat_scheduler = PLAIN
    entries = {"bad": {"task": "t", "schedule": Unreadable(1e6)}, "e": every(1e6)}
    scheduler = make(beat_schedule=entries)
    turn_until_shown(scheduler)
    assert eye.entry("e").schedule == "every 1e+06 s"
    bad = eye.entry("bad")
    assert (bad.task, bad.error) == (None, "ValueError: not to be shown")


def test_a_change_writes_its_page(app: Celery, make: Make, eye: Eye) -> None:
    """And the index, however many entries there are."""
    app.conf.zk_beat_scheduler = PLAIN
    scheduler = make(beat_schedule={f"e{n}": every(1e6) for n in range(3000)})
    turn_until_shown(scheduler)
    before = eye.znodes()
    assert len(before) == 257
    assert max(len(node.data) for node in before.values()) < 5000
    for seconds in (1000.0, 2000.0, 3000.0):
        scheduler._loop.source._gated.entries["e7"].schedule = schedule(seconds, app=app)  # type: ignore[attr-defined]
        turn_until(
            scheduler,
            lambda: eye.entry("e7").schedule == f"every {seconds:g} s",  # noqa: B023
        )
    after = eye.znodes()
    page = eye.paths.shown_page(page_shown("e7"))
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {eye.paths.shown, page}
    for path in changed:
        assert after[path].version == before[path].version + 3


def test_a_write_is_bounded(app: Celery, make: Make, eye: Eye) -> None:
    """Much is written in parts, of which each leaves a valid index."""
    app.conf.zk_beat_scheduler = PLAIN
    scheduler = make(beat_schedule={f"e{n}": every(1e6, "t" * 200) for n in range(2000)})
    turn_until_shown(scheduler)
    znodes = eye.znodes()
    size = sum(len(node.data) for node in znodes.values())
    assert size > 4 * LARGEST
    writes = znodes[eye.paths.shown].version + 1
    assert size / LARGEST <= writes < size / LARGEST + 3


def test_a_server_that_takes_less(
    app: Celery, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs up on a write that is too large: the next ones are smaller, until all is told."""
    monkeypatch.setattr(showing, "_RETRY_AFTER", 0.5)
    app.conf.zk_beat_scheduler = PLAIN
    with ZooKeeper(tmp_path, java=("-Djute.maxbuffer=65536",)) as server:
        server.start()
        app.conf.zk_beat_hosts = server.hosts
        scheduler = make(beat_schedule={f"e{n}": every(1e6, "t" * 200) for n in range(2000)})
        turn(scheduler)
        shows = showing_of(scheduler)
        turn_until(scheduler, lambda: shows._is_current and not shows._changed)
        with connected(server.hosts, 4.0, PATIENCE, lambda: None) as session:
            turn_until(scheduler, lambda: shows._pending is None)
            assert {entry.task for entry in Eye(app, session).look().entries} == {"t" * 200}
        assert 25_000 <= shows._most < LARGEST
        scheduler.close()


def test_nothing_where_nothing_is_gated(app: Celery, make: Make, eye: Eye) -> None:
    scheduler = make(beat_schedule={"e": every(PERIOD)})
    turn_until(scheduler, lambda: history(app))
    assert eye.znodes() == {}
    assert eye.entry("e").schedule == "every 2 s"


def test_those_of_another_scheduler(app: Celery, make: Make, eye: Eye) -> None:
    """They are shown to who asks for it, nobody else; the next master writes its own."""
    app.conf.zk_beat_scheduler = PLAIN
    first = make(beat_schedule={"old": every(1e6), "both": every(1e6)})
    turn_until_shown(first)
    crash(first)
    app.conf.zk_beat_scheduler = None
    app.conf.beat_schedule = {"own": every(1e6)}
    assert not eye.entry("old").in_schedule
    assert eye.entry("own").task == "task"
    app.conf.zk_beat_scheduler = f"{__name__}:Another"
    app.conf.beat_schedule = {"both": every(5e5), "new": every(5e5)}
    assert eye.entry("old").task is None
    second = make()
    turn_until_shown(second)
    entries = eye.entries()
    assert entries["both"].schedule == entries["new"].schedule == "every 500000 s"
    assert not entries["old"].in_schedule
    assert len(eye.znodes()) == 3


class Another(Scheduler):
    pass


def test_a_take_over(app: Celery, make: Make, eye: Eye) -> None:
    """Writes nothing where nothing has changed; an old master writes nothing any more."""
    app.conf.zk_beat_scheduler = PLAIN
    first = make(beat_schedule={"e": every(1e6), "f": every(1e6)})
    turn_until_shown(first)
    before = eye.znodes()
    crash(first)
    second = make()
    turn_until_shown(second)
    assert eye.znodes() == before

    stale = Showing(second.election, PLAIN, first._loop.ledger)
    entries: dict[str, Any] = {
        "e": first.Entry("e", "old", schedule=schedule(1.0, app=app), app=app)
    }
    adapter = StoreAdapter(second)

    def write() -> Pending | None:
        stale.turn(entries, adapter, clock.boottime())
        return stale._pending

    wait_until(wait_until(write, PATIENCE, "a write").answered, PATIENCE, "an answer")
    stale.turn(entries, adapter, clock.boottime())
    assert stale._written is None
    assert eye.znodes() == before


def test_what_another_hand_has_done(
    app: Celery, make: Make, eye: Eye, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is damaged is named, the others are shown; and with the next change, or the next
    term, all is as it should be."""
    monkeypatch.setattr(showing, "_RETRY_AFTER", 0.1)
    app.conf.zk_beat_scheduler = PLAIN
    scheduler = make(beat_schedule={"e": every(1e6), "f": every(1e6)})
    turn_until_shown(scheduler)
    page = eye.paths.shown_page(page_shown("e"))
    eye.session.commit(SetData(page, b"{"))
    seen = eye.look()
    assert [warning for warning in seen.warnings if page in warning]
    assert eye.entry("e").in_schedule
    assert eye.entry("e").task is None
    assert eye.entry("f").task == "task"

    eye.session.commit(Delete(page))
    scheduler._loop.source._gated.entries["e"].task = "other"  # type: ignore[attr-defined]
    turn_until(scheduler, lambda: eye.entry("e").task == "other")
    assert len(history(app)) == 0

    strange = f"{eye.paths.shown}/strange"
    eye.session.commit(SetData(eye.paths.shown, b"[]"), Create(strange, b""))
    assert [warning for warning in eye.look().warnings if eye.paths.shown in warning]
    crash(scheduler)
    turn_until_shown(make())
    assert eye.entry("e").task == "task"


def test_a_reader_that_watches(app: Celery, make: Make, eye: Eye) -> None:
    """It is told, and reads what has changed; also where there was nothing yet."""
    app.conf.zk_beat_scheduler = PLAIN
    reader = eye.reader(watches=True)
    assert reader.read().entries == ()
    scheduler = make(beat_schedule={"e": every(1e6), "f": every(1e6)})
    turn_until(scheduler, lambda: [entry.task for entry in reader.read().entries] == ["task"] * 2)
    turn_until_shown(scheduler)
    seen = reader.read()
    eye.news.clear()
    scheduler._loop.source._gated.entries["e"].task = "other"  # type: ignore[attr-defined]
    turn_until(scheduler, lambda: eye.news)
    tasks = {entry.name: entry.task for entry in reader.read().entries}
    assert tasks == {"e": "other", "f": "task"}
    page = json.loads(Reading(seen, reader.basis(), 0.0).page)
    assert [entry["schedule"] for entry in page["upcoming"]] == ["every 1e+06 s"] * 2


class Strange(StoreAdapter):
    @property
    def disabled(self) -> Any:  # type: ignore[override]
        raise ValueError("nobody knows")


def test_a_store_that_raises(
    app: Celery, make: Make, eye: Eye, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is shown, which one line says, and nothing else comes of it."""
    app.conf.zk_beat_scheduler = PLAIN
    scheduler = make(beat_schedule={"e": every(PERIOD)})
    turn(scheduler)
    shows = Showing(scheduler.election, PLAIN, scheduler._loop.ledger)
    for _ in range(2):
        shows._look_at = 0.0
        assert shows.turn(scheduler.entries, Strange(scheduler), 0.0) == showing._RETRY_AFTER
    assert caplog.text.count("ValueError('nobody knows'); so `zk-beat status` does not") == 1
