"""Snapshots of a real ZooKeeper."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab
from kazoo.client import KazooClient

from celery_zk_beat import MasterElection, RootError, ZooKeeperScheduler
from celery_zk_beat.control import Pauses, change_pauses
from celery_zk_beat.errors import Uncertain
from celery_zk_beat.ledger import RunLedger
from celery_zk_beat.paths import page_of
from celery_zk_beat.runs import Run
from celery_zk_beat.settings import Settings
from celery_zk_beat.status import terminal
from celery_zk_beat.status.reader import Reader
from celery_zk_beat.status.snapshot import Snapshot
from celery_zk_beat.zookeeper.session import ZooKeeperSession, connected
from example_project.processes import REPOSITORY
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import PATIENCE
from tests.faults import Road

Candidate = Callable[..., MasterElection]

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def scheduler(zookeeper: ZooKeeper, root: str) -> ZooKeeperScheduler:
    """The asker's: it never connects."""
    app = Celery("shop", set_as_current=False)
    app.conf.zk_beat_hosts = zookeeper.hosts
    app.conf.zk_beat_root = root
    app.conf.result_expires = None  # no entry of Celery's own
    app.conf.beat_schedule = {
        "often": {"task": "tasks.often", "schedule": 10.0},
        "nightly": {"task": "tasks.nightly", "schedule": crontab(minute=0, hour=3)},
        "never seen": {"task": "tasks.new", "schedule": 10.0},
    }
    return ZooKeeperScheduler(app)


@pytest.fixture
def session(zookeeper: ZooKeeper) -> Iterator[ZooKeeperSession]:
    with connected(zookeeper.hosts, 4.0, PATIENCE, lambda: None) as session:
        yield session


@pytest.fixture
def look(session: ZooKeeperSession, scheduler: ZooKeeperScheduler) -> Callable[[], Snapshot]:
    return lambda: Reader(session, scheduler.settings, scheduler).read()


@pytest.fixture
def election(
    candidate: Candidate, scheduler: ZooKeeperScheduler, session: ZooKeeperSession
) -> MasterElection:
    election = candidate("one", session_timeout=4.0, app="shop", schedule=scheduler.digest())
    election.start(PATIENCE)
    assert election.wait(PATIENCE)
    member = election.paths.member("one")
    wait_until(lambda: session.read(member), PATIENCE, "all that an election writes")
    return election


@pytest.fixture
def ledger(election: MasterElection) -> RunLedger:
    """Of a master that has seen two of the three entries, an hour ago."""
    ledger = RunLedger(election)
    assert election.term is not None
    ledger.load(election.term)
    ledger.first_seen(dict.fromkeys(("often", "nightly", "gone"), now() - HOUR))
    return ledger


def now() -> datetime:
    return datetime.now(timezone.utc)


def claim(ledger: RunLedger, entry: str, at: datetime | None = None) -> Run:
    state, at = ledger.state(entry), at or now()
    assert state is not None
    assert ledger.term is not None
    run = Run(entry, state.total_run_count + 1, at - SECOND, at, ledger.term.epoch)
    return ledger.claim([run])[0]


def test_what_it_says(
    ledger: RunLedger, candidate: Candidate, look: Callable[[], Snapshot]
) -> None:
    candidate("two", app="shop", schedule="other").start(PATIENCE)
    wait_until(lambda: len(look().members) == 2, PATIENCE, "a standby")
    done, waiting = claim(ledger, "often"), claim(ledger, "nightly")
    ledger.published(done, done.claimed)
    ledger.flush()

    seen = look()
    assert seen.ok
    assert seen.app == "shop"
    assert seen.master is not None
    assert (seen.master.id, seen.master.epoch, seen.master.successor) == ("one", 1, None)
    assert seen.master.ticked_at is not None
    assert abs(seen.master.ticked_at - seen.read_at) < 10 * SECOND
    assert [(member.id, member.state) for member in seen.members] == [
        ("one", "master"),
        ("two", "standby"),
    ]
    offsets = [member.clock_offset for member in seen.members]
    assert all(offset is not None and abs(offset) < 10 for offset in offsets)
    assert [term.id for term in seen.masters] == ["one"]
    (waits,) = seen.outbox
    assert (waits.entry, waits.run, waits.due) == (waiting.entry, waiting.number, waiting.due)
    assert waits.waits_for == "the broker"
    (recent,) = [run for run in seen.recent if run.entry == "often"]
    assert (recent.run, recent.epoch, recent.by, recent.note) == (1, 1, "one", None)

    entries = {entry.name: entry for entry in seen.entries}
    assert list(entries) == ["gone", "never seen", "nightly", "often"]
    assert entries["often"].next_run_at == done.claimed + 10 * SECOND
    assert (entries["often"].total_run_count, entries["often"].waiting) == (1, None)
    assert entries["often"].last_due == done.due
    assert entries["nightly"].waiting == 1
    assert entries["nightly"].schedule == "crontab 0 3 * * *"
    assert entries["never seen"].next_run_at is None
    assert not entries["gone"].in_schedule
    assert entries["gone"].task is None

    (warning,) = seen.warnings
    assert "another schedule than the one here: two" in warning


def test_nobody_was_ever_here(look: Callable[[], Snapshot], root: str) -> None:
    seen = look()
    assert not seen.ok
    assert seen.master is None
    assert [entry.next_run_at for entry in seen.entries] == [None, None, None]
    assert any(f"{root}: no such znode" in warning for warning in seen.warnings)
    assert any("no master" in warning for warning in seen.warnings)


def test_json(ledger: RunLedger, look: Callable[[], Snapshot], session: ZooKeeperSession) -> None:
    """It survives JSON, and docs/status.md names each of its fields."""
    ledger.published(claim(ledger, "often"), now())
    ledger.flush()
    claim(ledger, "nightly")
    told = json.loads(json.dumps(look().to_json()))
    assert told["format"] == 1
    assert told["outbox"][0]["run"] == 1
    documented = set(re.findall(r"`(\w+)`", (REPOSITORY / "docs/status.md").read_text()))

    def names(value: Any) -> Iterator[str]:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from each
                for below in each.values():
                    yield from names(below)

    assert set(names(told)) - documented == set()
    assert all(told[name] for name in ("master", "members", "entries", "recent", "masters"))


def test_another_apps_root(candidate: Candidate, look: Callable[[], Snapshot], root: str) -> None:
    candidate("one", app="bakery").start(PATIENCE)
    with pytest.raises(RootError, match=f"{root} belongs to the app 'bakery', and this is 'shop'"):
        wait_until(lambda: look().app, PATIENCE, "the other app")


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b'{"format":9}', b'{"format":2}', b'{"format":2,"runs":7}']
)
def test_what_cannot_be_understood(
    ledger: RunLedger, client: KazooClient, look: Callable[[], Snapshot], data: bytes
) -> None:
    """It is named, where it matters; everything else is shown all the same."""
    paths = ledger._election.paths
    page = paths.page(page_of("nightly"))
    strange = [paths.master, paths.masters, paths.outbox, page, paths.member("one")]
    client.create(paths.member("strange"), data)
    for path in strange:
        client.set(path, data)
    client.ensure_path(paths.pauses)
    client.set(paths.pauses, data)
    seen = look()
    warnings = " ".join(seen.warnings)
    for path in (paths.outbox, page):
        assert f"{path}: " in warnings
    if data and data != b'{"format":2}' and b"runs" not in data:
        for path in (*strange, paths.pauses, paths.member("strange")):
            assert f"{path}: " in warnings
    assert {entry.name: entry.total_run_count for entry in seen.entries}["often"] == 0
    json.dumps(seen.to_json())


def test_a_master_that_does_not_tick(
    ledger: RunLedger,
    session: ZooKeeperSession,
    scheduler: ZooKeeperScheduler,
    look: Callable[[], Snapshot],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also for a reader with watches, which nobody tells that nothing happens."""
    assert look().ok
    follower = Follower(session, scheduler)
    assert follower.reader.read().ok
    monkeypatch.setattr("celery_zk_beat.status.lenient.TICKING_WITHIN", 0.3)
    wait_until(lambda: not look().ok, PATIENCE, "silence")
    assert "one is master, but has not ticked since" in look().warnings[0]
    assert not follower.reader.read().ok
    ledger.published(claim(ledger, "often"), now())
    ledger.flush()
    monkeypatch.setattr("celery_zk_beat.status.lenient.TICKING_WITHIN", PATIENCE)
    assert look().ok


def test_what_waits_for_the_broker(ledger: RunLedger, look: Callable[[], Snapshot]) -> None:
    claim(ledger, "often")
    assert look().warnings == ()
    claim(ledger, "nightly", now() - HOUR)
    (warning,) = look().warnings
    assert "1 run waits for the broker since " in warning


def test_what_waits_and_why(
    ledger: RunLedger, look: Callable[[], Snapshot], client: KazooClient
) -> None:
    """A line for each reason. Of an entry without a state the outbox alone knows."""
    ledger.first_seen(dict.fromkeys(("renamed", "lost"), now() - HOUR))
    for name in ("often", "nightly", "renamed", "lost"):
        claim(ledger, name, now() - HOUR)
    ledger.move_to_end(ledger.outbox["nightly"], "\u00e9" * 500)
    ledger.flush()
    client.delete(ledger._election.paths.page(page_of("lost")))
    path = ledger._election.paths.pauses
    client.ensure_path(path)
    client.set(path, Pauses().pause("often", now(), "the test").encode())
    found = look()
    assert {run.entry: run.waits_for for run in found.outbox} == {
        "often": "the end of a pause",
        "nightly": "the broker",
        "renamed": "a schedule that names it",
        "lost": "a schedule that names it",
    }
    assert {run.entry: run.error for run in found.outbox if run.error} == {
        "nightly": "\u00e9" * 100
    }
    entries = {entry.name: entry for entry in found.entries}
    assert (entries["lost"].waiting, entries["lost"].in_schedule) == (1, False)
    about = [line for line in found.warnings if line.startswith("outbox: ")]
    assert len(about) == 3
    (drops,) = (line for line in about if "2 runs wait for a schedule that names it" in line)
    assert "`zk-beat drop ENTRY`" in drops
    assert any(line.endswith(f", such as nightly: {100 * chr(0xE9)}") for line in about)
    lines = terminal.status(found, now(), lambda text, colour: text, math.inf)
    assert any("2 waiting for a schedule that names it" in line for line in lines)


def test_a_clock_that_is_off(
    ledger: RunLedger, client: KazooClient, look: Callable[[], Snapshot]
) -> None:
    path = ledger._election.paths.member("one")
    fields = json.loads(client.get(path)[0])
    fields["written"] = (now() + 5 * SECOND).isoformat()
    client.set(path, json.dumps(fields).encode())
    (warning,) = look().warnings
    assert re.fullmatch(r"the clock of one is [45]\.\d s ahead of ZooKeeper's", warning)


def test_pauses(
    ledger: RunLedger,
    client: KazooClient,
    look: Callable[[], Snapshot],
    session: ZooKeeperSession,
) -> None:
    paths, at = ledger._election.paths, now()
    client.ensure_path(paths.pauses)

    def change(make: Callable[[Pauses], Pauses]) -> Snapshot:
        change_pauses(session, paths, make)
        return look()

    seen = change(lambda pauses: pauses.pause("often", at, "ann@host1"))
    often = next(entry for entry in seen.entries if entry.name == "often")
    assert (often.paused, often.next_run_at, seen.paused) == (at, None, None)
    assert (often.paused_by, seen.paused_by) == ("ann@host1", None)
    assert next(entry for entry in seen.entries if entry.name == "nightly").next_run_at

    seen = change(lambda pauses: pauses.pause(None, at, "bob@host2"))
    assert (seen.paused, seen.paused_by) == (at, "bob@host2")
    assert {entry.next_run_at for entry in seen.entries} == {None}
    (warning,) = [each for each in seen.warnings if "everything is paused since" in each]
    assert warning.endswith(" by bob@host2")

    change(lambda pauses: pauses.resume(None, at, skip=True))
    seen = change(lambda pauses: pauses.resume("often", at, skip=False))
    assert (seen.paused, seen.paused_by) == (None, None)
    assert {(entry.paused, entry.paused_by) for entry in seen.entries} == {(None, None)}


def test_history(
    ledger: RunLedger, session: ZooKeeperSession, scheduler: ZooKeeperScheduler
) -> None:
    """Newest first, of one entry or of all; more than is in the snapshot, and no more than asked
    for. What was skipped has no number and no task id."""
    began = now() - HOUR
    for number in range(60):
        run = claim(ledger, "often" if number % 2 else "nightly", began + number * SECOND)
        ledger.published(run, run.claimed)
    ledger.skip({"gone": (began, began)}, "skipped: for a test")
    ledger.flush()
    reader = Reader(session, scheduler.settings, scheduler)
    seen = reader.read()
    everything = reader.history(None, 1000)
    assert tuple(everything[: len(seen.recent)]) == seen.recent
    assert [run.at for run in everything] == sorted((run.at for run in everything), reverse=True)
    assert everything[0].task_id == scheduler.task_id("often", 30, everything[0].due)
    often = reader.history("often", 1000)
    assert often == [run for run in everything if run.entry == "often"]
    assert reader.history("often", 3) == often[:3]
    (skipped,) = reader.history("gone", 3)
    assert (skipped.run, skipped.task_id, skipped.note) == (None, None, "skipped: for a test")
    assert reader.history("nobody", 3) == []


def test_when_it_ran_last(ledger: RunLedger, look: Callable[[], Snapshot]) -> None:
    """Neither what was skipped nor when it was first seen counts, and what an operator asked for
    does; when it is due next is another matter."""
    seen = {entry.name: entry for entry in look().entries}
    assert {entry.last_run_at for entry in seen.values()} == {None}
    at, due = now().replace(microsecond=0), seen["often"].next_run_at
    ledger.skip({"nightly": (at, at)}, "skipped: for a test")
    ledger.claim([Run("often", 1, at, at, 1, extra=True)])
    seen = {entry.name: entry for entry in look().entries}
    assert seen["nightly"].last_run_at is None
    assert (seen["often"].last_run_at, seen["often"].next_run_at) == (at, due)


def test_names_like_none_other(
    election: MasterElection, scheduler: ZooKeeperScheduler, look: Callable[[], Snapshot]
) -> None:
    names = ["\x1b[31m\n\0", "\udc80", "<script>", "a/b/../c", "日本", "x" * 500]
    scheduler.schedule.update(dict.fromkeys(names, scheduler.schedule["often"]))
    ledger = RunLedger(election)
    assert election.term is not None
    ledger.load(election.term)
    ledger.first_seen(dict.fromkeys(names, now()))
    ledger.claim([Run(name, 1, now(), now(), 1) for name in names])
    seen = look()
    assert {run.entry for run in seen.outbox} == set(names)
    told = json.loads(json.dumps(seen.to_json()))
    assert set(names) <= {entry["name"] for entry in told["entries"] if entry["waiting"] == 1}


class Follower:
    """A reader that keeps watches."""

    def __init__(self, session: ZooKeeperSession, scheduler: ZooKeeperScheduler) -> None:
        self.news = threading.Event()
        self.reader = Reader(session, scheduler.settings, scheduler, self.news.set)

    def sees_what_a_fresh_one_sees(self, look: Callable[[], Snapshot], what: str) -> None:
        assert self.news.wait(PATIENCE), f"not told of {what}"

        def same() -> bool:
            mine, fresh = self.reader.read(), look()
            instant = fresh.read_at
            return replace(mine, read_at=instant) == fresh

        wait_until(same, PATIENCE, f"the same picture after {what}")
        self.news.clear()


def test_following(
    ledger: RunLedger,
    candidate: Candidate,
    client: KazooClient,
    session: ZooKeeperSession,
    scheduler: ZooKeeperScheduler,
    look: Callable[[], Snapshot],
) -> None:
    """A reader with watches is told of every change, and then sees what one without them sees."""
    follower = Follower(session, scheduler)
    assert follower.reader.read().ok
    paths = ledger._election.paths

    run = claim(ledger, "often")
    follower.sees_what_a_fresh_one_sees(look, "a claim")
    ledger.published(run, run.claimed)
    ledger.flush()
    follower.sees_what_a_fresh_one_sees(look, "a confirmation")
    ledger.first_seen({"new": now()})
    follower.sees_what_a_fresh_one_sees(look, "a new page")
    client.create(paths.pauses, Pauses().pause(None, now()).encode())
    follower.sees_what_a_fresh_one_sees(look, "a pause")
    client.set(paths.pauses, b"")
    follower.sees_what_a_fresh_one_sees(look, "the end of a pause")
    second = candidate("two", app="shop", schedule=scheduler.digest())
    second.start(PATIENCE)
    follower.sees_what_a_fresh_one_sees(look, "a standby")
    ledger._election.stop()
    assert second.wait(PATIENCE)
    follower.sees_what_a_fresh_one_sees(look, "another master")
    client.delete(paths.page(page_of("often")))
    follower.sees_what_a_fresh_one_sees(look, "a page that is gone")
    second.stop()
    follower.sees_what_a_fresh_one_sees(look, "no master")
    client.delete(paths.root, recursive=True)
    follower.sees_what_a_fresh_one_sees(look, "nothing at all")


@pytest.mark.parametrize("there", [True, False])
def test_following_from_the_beginning(
    candidate: Candidate,
    client: KazooClient,
    session: ZooKeeperSession,
    scheduler: ZooKeeperScheduler,
    look: Callable[[], Snapshot],
    there: bool,
) -> None:
    """A reader that came before the first run, or before the root, is told of that, too."""
    if there:
        client.create(scheduler.settings.root)
    follower = Follower(session, scheduler)
    assert follower.reader.read().master is None
    election = candidate("one", app="shop", schedule=scheduler.digest())
    election.start(PATIENCE)
    assert election.wait(PATIENCE)
    follower.sees_what_a_fresh_one_sees(look, "a master")
    ledger = RunLedger(election)
    assert election.term is not None
    ledger.load(election.term)
    ledger.first_seen({"often": now()})
    follower.sees_what_a_fresh_one_sees(look, "the first page")
    assert follower.reader.read().entries[-1].next_run_at is not None
    claim(ledger, "often")
    follower.sees_what_a_fresh_one_sees(look, "a claim")


def test_following_asks_for_nothing_else(
    ledger: RunLedger,
    zookeeper: ZooKeeper,
    session: ZooKeeperSession,
    scheduler: ZooKeeperScheduler,
) -> None:
    """No request when nothing has changed; after a claim only for the outbox and the page."""
    follower = Follower(session, scheduler)
    follower.reader.read()

    def requests() -> int:
        found = re.search(rf"recved=(\d+),.*\bsid=0x{session.id:x},", zookeeper.four_letter("cons"))
        assert found
        return int(found[1])

    before = requests()
    for _ in range(100):
        follower.reader.read()
    assert requests() - before < 10  # pings
    claim(ledger, "often")
    assert follower.news.wait(PATIENCE)
    wait_until(lambda: len(follower.reader.read().outbox), PATIENCE, "the claim")
    assert requests() - before < 20


def test_following_through_a_lost_connection(
    ledger: RunLedger, road: Road, scheduler: ZooKeeperScheduler, look: Callable[[], Snapshot]
) -> None:
    changed = threading.Event()
    with connected(road.hosts, 4.0, PATIENCE, changed.set) as session:
        reader = Reader(session, scheduler.settings, scheduler, changed.set)
        reader.read()
        changed.clear()
        road.cut()
        wait_until(lambda: not session.connected, PATIENCE, "the loss of the connection")
        assert changed.wait(PATIENCE)
        with pytest.raises(Uncertain):
            reader.read()
        claim(ledger, "often")
        road.open()
        wait_until(lambda: session.connected, PATIENCE, "the connection")
        assert [run.entry for run in reader.read().outbox] == ["often"]


def test_a_chroot(zookeeper: ZooKeeper, tmp_path: Path, root: str) -> None:
    """The root lies below the chroot, as for beats."""
    app = Celery("shop", set_as_current=False)
    app.conf.zk_beat_hosts = f"{zookeeper.hosts}{root}"
    settings = Settings.from_app(app)
    with MasterElection(settings.hosts, settings.root, id="one", app="shop") as election:
        assert election.wait(PATIENCE)
        with connected(settings.hosts, 4.0, PATIENCE, lambda: None) as session:
            seen = Reader(session, settings, ZooKeeperScheduler(app)).read()
        assert seen.master is not None
        assert election.paths.root == f"{root}/celery-zk-beat/shop"
