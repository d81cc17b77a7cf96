"""Which run a message is of, and which is newer: what docs/headers.md has receivers do, through all
that ZooKeeper's data may go through."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery
from kazoo.client import KazooClient

from celery_zk_beat import ZooKeeperScheduler, runs
from celery_zk_beat.paths import Paths, page_of
from example_project.servers import Redis, ZooKeeper, wait_until
from tests.conftest import PATIENCE
from tests.history import Message

from .conftest import LONG_AGO, Make, every, history, state_of, turn


def receive(messages: Sequence[Message]) -> None:
    """Asserts that both recipes take each message, but for one whose instant was done."""
    newest, done = ("", 0), dict[str, object]()
    for message in messages:
        at = message.era, message.epoch
        assert at >= newest, f"refused as old: {message}, after {newest}"
        newest = at
        assert done.setdefault(message.id, message.due) == message.due, f"done: {message}"


@pytest.fixture
def more(app: Celery, make: Make) -> Callable[..., None]:
    """Has a new beat send some messages more, and stop."""

    def more(count: int = 3, schedule: object = None) -> None:
        scheduler = make(beat_schedule=schedule or {"x": every(0.2, "x")})
        wanted = len(history(app)) + count
        wait_until(lambda: turn(scheduler) and len(history(app)) >= wanted, PATIENCE, "runs")
        scheduler.close()

    return more


def test_one_beat_after_another(app: Celery, more: Callable[..., None]) -> None:
    for _ in range(3):
        more(2)
    receive(history(app))
    assert len({message.era for message in history(app)}) == 3
    assert {message.entry for message in history(app)} == {"x"}


def test_a_page_was_deleted(
    app: Celery, more: Callable[..., None], client: KazooClient, root: str
) -> None:
    """As the log advises where one is damaged."""
    more()
    client.delete(Paths(root).page(page_of("x")))
    more()
    receive(history(app))


def test_a_page_was_deleted_and_another_had_run_since(
    app: Celery, make: Make, more: Callable[..., None], client: KazooClient, root: str
) -> None:
    """A beat that was master before remembers a last run. It is not the last any more."""
    schedule = {"x": every(3, "x")}
    more(1, {"x": every(3, "x", last_run_at=LONG_AGO)})
    first = make(beat_schedule=schedule)
    turn(first)
    assert state_of(first, "x").total_run_count == 1
    second = make(beat_schedule=schedule)
    first.election.resign()
    wait_until(lambda: turn(second) and len(history(app)) == 2, PATIENCE, "a run of the second")
    second.close()
    client.delete(Paths(root).page(page_of("x")))
    wait_until(lambda: turn(first) and len(history(app)) == 3, PATIENCE, "a run of the first")
    receive(history(app))
    assert len({message.due for message in history(app)}) == 3


def test_the_root_was_deleted(
    app: Celery, more: Callable[..., None], client: KazooClient, root: str
) -> None:
    more()
    more()
    client.delete(root, recursive=True)
    more()
    receive(history(app))
    assert history(app)[-1].epoch < history(app)[3].epoch  # which alone would have it refused


def test_an_entry_that_comes_back_after_its_retention(
    app: Celery, make: Make, more: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RETENTION", timedelta(0))
    more()
    for _ in range(2):  # it is missed first, and then removed
        without = make(beat_schedule={"other": every(3600, "other")})
        turn(without)
        without.close()
    more()
    receive(history(app))


def test_environments_with_a_chroot_each(
    app: Celery, more: Callable[..., None], zookeeper: ZooKeeper
) -> None:
    """Which share a result backend, and the rows of a receiver."""
    for environment in ("production", "staging"):
        app.conf.zk_beat_hosts = f"{zookeeper.hosts}/{environment}"
        more()
    assert len({message.id for message in history(app)}) == len(history(app))


def test_zookeeper_was_restored(tmp_path: Path, redis_server: Redis, root: str) -> None:
    """From a copy of its data that was some elections and runs old."""
    app = Celery("shop", broker=redis_server.url(0), set_as_current=False)
    app.conf.update(
        zk_beat_root=root,
        zk_beat_session_timeout=2.0,
        result_expires=None,
        beat_schedule={"x": every(0.2, "x")},
    )
    with ZooKeeper(tmp_path, tick_time=200) as server:
        server.start()
        app.conf.zk_beat_hosts = server.hosts

        def beat(count: int) -> None:
            scheduler = ZooKeeperScheduler(app=app)
            scheduler.election.start(PATIENCE)
            wanted = len(history(app)) + count
            try:
                wait_until(lambda: turn(scheduler) and len(history(app)) >= wanted, PATIENCE, "x")
            finally:
                scheduler.close()

        beat(2)
        server.stop()
        home = tmp_path / "zookeeper"
        shutil.copytree(home, tmp_path / "copy")
        server.start()
        beat(2)
        beat(2)
        server.stop()
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "copy", home)
        server.start()
        beat(3)
    receive(history(app))
    assert history(app)[-1].epoch < history(app)[5].epoch
