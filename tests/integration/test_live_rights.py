"""Who may change live entries, and nothing else: a right of its own, given by ZooKeeper's ACLs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_acl, make_digest_acl_credential

from celery_zk_beat import Entries, ZooKeeperScheduler
from celery_zk_beat.errors import AccessDenied
from celery_zk_beat.live.definitions import page_of_entry
from celery_zk_beat.paths import Paths
from example_project.servers import ZooKeeper
from tests.conftest import PATIENCE

from .conftest import Make, turn

BEAT, WEB, STRANGER = "beat:sesame", "web:open", "stranger:x"


def granted(*users: str) -> str:
    made = (make_digest_acl_credential(*user.split(":")) for user in users)
    return ",".join(f"digest:{each}:cdrw" for each in made)


@pytest.fixture
def secured(app: Celery) -> Celery:
    app.conf.zk_beat_auth = BEAT
    app.conf.zk_beat_entries = True
    app.conf.zk_beat_entries_tasks = ["task"]
    app.conf.zk_beat_entries_acl = granted(BEAT, WEB)
    return app


OPEN = make_acl("world", "anyone", all=True)
Open = Callable[[str], Entries]


@pytest.fixture
def entries_of(secured: Celery) -> Iterator[Open]:
    """Entries as one user, with the settings of the beats otherwise."""
    with contextlib.ExitStack() as stack:

        def make(user: str) -> Entries:
            app = Celery("shop", set_as_current=False)
            app.conf.update({**secured.conf.changes, "zk_beat_auth": user})
            return stack.enter_context(Entries(app, PATIENCE))

        yield make


def put(entries: Entries, name: str) -> None:
    entries.put(name, task="task", schedule=3600)


def is_refused(change: Callable[[], object]) -> bool:
    try:
        change()
    except (AccessDenied, NoAuthError):
        return True
    return False


def test_the_web_application_may_change_entries_alone(
    make: Make, entries_of: Open, secured: Celery, zookeeper: ZooKeeper, root: str
) -> None:
    """The beat was there first, and reads what the others write, each of whom may change what the
    other has made."""
    scheduler = make(beat_schedule={})
    turn(scheduler)
    web, beat = entries_of(WEB), entries_of(BEAT)
    put(web, "a")
    put(beat, "b")
    assert web.remove("b")
    assert beat.set("a", note="x").version == 2
    turn(scheduler)
    assert isinstance(scheduler, ZooKeeperScheduler)
    assert {"a"} <= set(scheduler._loop.source.entries)

    paths, client = Paths(root), KazooClient(zookeeper.hosts)
    client.start(PATIENCE)
    try:
        client.add_auth("digest", WEB)
        for path in (root, paths.epoch, paths.outbox, paths.pauses, paths.requests, paths.runs):
            assert is_refused(lambda path=path: client.set(path, b"")), path  # type: ignore[misc]
            assert is_refused(lambda path=path: client.get(path)), path  # type: ignore[misc]
            assert is_refused(lambda path=path: client.create(f"{path}/x")), path  # type: ignore[misc]
        assert is_refused(lambda: client.delete(paths.entries))
        for path in (paths.entries, paths.entries_page(page_of_entry("a"))):
            assert is_refused(lambda path=path: client.set_acls(path, [OPEN]))  # type: ignore[misc]
    finally:
        client.stop()
        client.close()


def test_others_may_not(make: Make, entries_of: Open) -> None:
    turn(make(beat_schedule={}))
    put(entries_of(WEB), "a")
    stranger = entries_of(STRANGER)
    for change in (
        lambda: put(stranger, "a"),
        lambda: put(stranger, "b"),
        lambda: stranger.remove("a"),
        lambda: stranger.get("a"),
        lambda: list(stranger),
    ):
        assert is_refused(change)
    assert [entry.name for entry in entries_of(BEAT)] == ["a"]


def test_credentials_that_change(entries_of: Open, secured: Celery, make: Make) -> None:
    """Where the old ones are refused, the new ones are shown, without a restart."""
    turn(make(beat_schedule={}))
    user = [STRANGER]
    secured.conf.zk_beat_auth = lambda: user[0]
    with Entries(secured, PATIENCE) as entries:
        assert is_refused(lambda: put(entries, "a"))
        user[0] = WEB
        put(entries, "a")


def test_the_web_application_is_first(entries_of: Open, make: Make, client: KazooClient) -> None:
    """Where an administrator has made the root, no beat need have run."""
    entries = entries_of(BEAT)
    client.create(entries.settings.root)
    web = entries_of(WEB)
    put(web, "a")
    put(entries, "b")
    assert len(web) == 2
