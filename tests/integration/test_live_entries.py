"""`Entries`, as an application uses it, with a real ZooKeeper and no beat near."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from kazoo.client import KazooClient

from celery_zk_beat import (
    ConnectTimeout,
    Entries,
    EntryError,
    LiveEntry,
    RootError,
    SettingsError,
    VersionConflict,
    ZkBeatError,
    clock,
)
from celery_zk_beat.live.definitions import page_of_entry
from celery_zk_beat.paths import Paths
from celery_zk_beat.schedules import cron, every
from example_project.servers import ZooKeeper, free_port
from tests.conftest import PATIENCE
from tests.faults import Road

SHORT = 0.5


@pytest.fixture
def app(zookeeper: ZooKeeper, root: str) -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.zk_beat_hosts = zookeeper.hosts
    app.conf.zk_beat_root = root
    app.conf.zk_beat_session_timeout = 4.0
    app.conf.zk_beat_entries = True

    @app.task(name="shop.report", shared=False)
    def report(*args: Any, **kwargs: Any) -> None: ...

    return app


@pytest.fixture
def entries(app: Celery) -> Iterator[Entries]:
    with Entries(app, PATIENCE, by="web") as entries:
        yield entries


def test_put_get_remove(entries: Entries) -> None:
    assert entries.get("tenant-7") is None
    starts = datetime(2026, 6, 1, tzinfo=timezone.utc)
    made = entries.put(
        "tenant-7",
        task="shop.report",
        schedule=cron("0 9 * * *", "Europe/Paris"),
        args=(1, "two"),
        kwargs={"tenant": 7},
        options={"queue": "reports"},
        policy={"jitter": timedelta(minutes=5), "starts": starts},
        note="asked for",
    )
    assert made == entries.get("tenant-7")
    assert (made.version, made.by, made.task) == (1, "web", "shop.report")
    assert made.schedule == cron("0 9 * * *", "Europe/Paris")
    assert made.policy == {"jitter": 300.0, "starts": "2026-06-01T00:00:00.000000+00:00"}
    assert (made.args, made.kwargs, made.options) == (
        [1, "two"],
        {"tenant": 7},
        {"queue": "reports"},
    )
    assert abs(made.at - datetime.now(timezone.utc)) < timedelta(minutes=1)
    assert "tenant-7" in entries
    assert entries.remove("tenant-7")
    assert not entries.remove("tenant-7")
    assert "tenant-7" not in entries


def test_policies_that_need_outcomes(app: Celery, entries: Entries) -> None:
    """They are refused where nobody would tell what becomes of runs, as in the setting."""
    entries.put("e", task="shop.report", schedule=30, policy={"overlap": "allow"})
    refused = r"e: policy\.overlap is 'skip': expected nothing, unless zk_beat_outcomes is set"
    with pytest.raises(EntryError, match=refused):
        entries.put("e", task="shop.report", schedule=30, policy={"overlap": "skip"})
    with pytest.raises(EntryError, match=r"policy\.finish_within"):
        entries.set("e", policy={"finish_within": timedelta(minutes=1)})
    app.conf.zk_beat_outcomes = "worker"
    with Entries(app, PATIENCE) as others:
        others.put("e", task="shop.report", schedule=30, policy={"overlap": "skip"})
    changed = entries.set("e", note="it stays as it is")
    assert changed.policy == {"overlap": "skip"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (30, every(30)),
        (timedelta(minutes=1), every(60)),
        (every(60, 5), every(60, 5)),
        (cron("~ 3 * * *"), cron("~ 3 * * *")),
        ({"every": 30}, every(30)),
        ({"cron": "0 9 * * *", "tz": "UTC"}, cron("0 9 * * *", "UTC")),
    ],
)
def test_schedules(entries: Entries, given: Any, found: Any) -> None:
    assert entries.put("e", task="shop.report", schedule=given).schedule == found
    again = entries.get("e")
    assert again is not None
    assert again.schedule == found


@pytest.mark.parametrize("given", ["soon", None, cron("~ 3 * * *", key="x"), True, -1])
def test_no_schedule(entries: Entries, given: Any) -> None:
    with pytest.raises(EntryError, match="e: schedule"):
        entries.put("e", task="shop.report", schedule=given)


def test_set_changes_what_is_named(entries: Entries) -> None:
    with pytest.raises(KeyError, match="e"):
        entries.set("e", enabled=False)
    entries.put("e", task="shop.report", schedule=30, kwargs={"a": 1}, note="x")
    changed = entries.set("e", enabled=False, note="off for now")
    assert (changed.enabled, changed.note, changed.kwargs) == (False, "off for now", {"a": 1})
    assert changed.changes[-1].what == ("note", "disabled")
    on = entries.set("e", enabled=True)
    assert on.since > changed.since
    with pytest.raises(EntryError, match="kwargs is"):
        entries.set("e", kwargs=[1])  # type: ignore[arg-type]


def test_versions(entries: Entries) -> None:
    def put(if_version: int | None, schedule: float = 30) -> LiveEntry:
        return entries.put("e", task="shop.report", schedule=schedule, if_version=if_version)

    with pytest.raises(VersionConflict, match="is not there, expected version 1"):
        put(1)
    assert put(0).version == 1
    assert put(0).version == 1, "who got no answer says the same again"
    with pytest.raises(VersionConflict) as raised:
        put(0, 31)
    assert (raised.value.wanted, raised.value.found) == (0, 1)
    assert put(1, 31).version == 2
    with pytest.raises(VersionConflict, match="is of version 2, expected version 1"):
        entries.remove("e", if_version=1)
    with pytest.raises(VersionConflict):
        entries.set("e", note="x", if_version=7)
    assert entries.remove("e", if_version=2)


def test_tasks(app: Celery, entries: Entries) -> None:
    with pytest.raises(EntryError, match=r"not registered: did you mean 'shop\.report'\?"):
        entries.put("e", task="shop.reprot", schedule=30)
    with pytest.raises(EntryError, match="Celery's own"):
        entries.put("e", task="celery.map", schedule=30)
    app.conf.zk_beat_entries_tasks = ["elsewhere.*"]
    with Entries(app) as others:
        others.put("e", task="elsewhere.task", schedule=30)
        with pytest.raises(EntryError, match="no pattern of zk_beat_entries_tasks"):
            others.put("e", task="shop.report", schedule=30)


def test_all_of_them(entries: Entries, client: KazooClient, root: str) -> None:
    assert list(entries) == []
    for name in ("b", "a", "c"):
        entries.put(name, task="shop.report", schedule=30)
    assert [entry.name for entry in entries] == ["a", "b", "c"]
    assert len(entries) == 3
    assert entries
    path = Paths(root).entries_page(page_of_entry("a"))
    client.set(path, b'{"format":2,"entries":{"a":{"task":7}}}')
    found, damaged = entries.read()
    assert [entry.name for entry in found] == ["b", "c"]
    assert list(damaged) == ["a"]
    with pytest.raises(EntryError, match="an entry that can be understood"):
        entries.get("a")
    with pytest.raises(EntryError):
        entries.set("a", note="x")
    client.set(path, b"{")
    for read in (lambda: entries.get("a"), lambda: list(entries)):
        with pytest.raises(RootError, match=path):
            read()


def test_changes(app: Celery, entries: Entries) -> None:
    """Those of others, as they come; what another writes in between is not lost."""
    entries.put("old", task="shop.report", schedule=30)
    with Entries(app, PATIENCE, by="other") as other:
        changes = other.changes()
        entries.put("new", task="shop.report", schedule=30)
        first = next(changes)
        assert (first.name, first.before) == ("new", None)
        assert first.after is not None
        assert first.after.by == "web"
        entries.set("new", note="x")
        second = next(changes)
        assert second.before == first.after
        assert second.after is not None
        assert second.after.version == 2
        entries.remove("old")
        third = next(changes)
        assert (third.name, third.after) == ("old", None)
        assert list(other.changes(timeout=0.05)) == []
        clock.thread(other.close, "test").start()
        assert list(changes) == []


def test_changes_go_on_when_zookeeper_is_back(app: Celery, entries: Entries, road: Road) -> None:
    app.conf.zk_beat_hosts = f"127.0.0.1:{road.port}"
    with Entries(app, SHORT) as far:
        changes = far.changes()
        road.cut()
        entries.put("e", task="shop.report", schedule=30)
        clock.thread(road.open, "test").start()
        assert next(changes).name == "e"


def test_zookeeper_is_away(app: Celery) -> None:
    """A call waits as long as was said, and says where it looked; later it works."""
    app.conf.zk_beat_hosts = f"127.0.0.1:{free_port()}"
    begun = clock.boottime()
    with Entries(app, SHORT) as entries:
        for call in (
            lambda: entries.put("e", task="shop.report", schedule=30),
            lambda: entries.get("e"),
            lambda: entries.remove("e"),
            lambda: list(entries),
        ):
            with pytest.raises(ConnectTimeout, match=app.conf.zk_beat_hosts):
                call()
    assert clock.boottime() - begun < 4 * SHORT + 2


def test_it_is_back(app: Celery, road: Road) -> None:
    app.conf.zk_beat_hosts = f"127.0.0.1:{road.port}"
    with Entries(app, SHORT) as entries:
        entries.put("e", task="shop.report", schedule=30)
        road.cut()
        with pytest.raises(ConnectTimeout):
            entries.get("e")
        road.open()
        entries._timeout = PATIENCE
        assert entries.set("e", note="x").version == 2


def test_many_threads(app: Celery, entries: Entries) -> None:
    """With one object, and beside another."""
    failed: list[BaseException] = []

    def work(number: int, of: Entries) -> None:
        try:
            for turn in range(10):
                of.put(f"own-{number}", task="shop.report", schedule=30, args=[turn])
                while True:
                    shared = of.get("shared")
                    args = [] if shared is None else shared.args
                    version = 0 if shared is None else shared.version
                    try:
                        of.put(
                            "shared",
                            task="shop.report",
                            schedule=30,
                            args=[*args, [number, turn]],
                            if_version=version,
                        )
                        break
                    except VersionConflict:
                        pass
        except BaseException as exc:
            failed.append(exc)

    with Entries(app, PATIENCE) as other:
        threads = [
            clock.thread(lambda number=number: work(number, (entries, other)[number % 2]), "test")  # type: ignore[misc]
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert not failed
    shared = entries.get("shared")
    assert shared is not None
    assert sorted(shared.args) == [[number, turn] for number in range(6) for turn in range(10)]
    assert all(entries.get(f"own-{number}").args == [9] for number in range(6))  # type: ignore[union-attr]


def test_a_process_that_was_forked(entries: Entries) -> None:
    """It has a session of its own, and the parent's goes on."""
    entries.put("parent", task="shop.report", schedule=30)
    mine = entries._link
    with entries._lock:  # another thread is at work
        pid = os.fork()
    if not pid:
        status = 1
        try:
            entries.put("child", task="shop.report", schedule=30)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {entry.name for entry in entries} == {"parent", "child"}
    assert entries._link is mine


def test_closed(app: Celery) -> None:
    entries = Entries(app)
    entries.close()
    with pytest.raises(ZkBeatError, match="is closed"):
        entries.get("e")


@pytest.mark.parametrize("timeout", [0, -1, None, "10"])
def test_no_timeout(app: Celery, timeout: Any) -> None:
    with pytest.raises(SettingsError, match="seconds above 0"):
        Entries(app, timeout)
