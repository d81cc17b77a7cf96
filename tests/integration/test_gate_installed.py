"""An entry that code defines, and that was changed in the store: schedulers behind the election,
turned by hand. What code defines is written when code changes, not whenever a beat is elected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.paths import Paths
from example_project.servers import Redis
from tests.stores import Django, RedBeat, SQLAlchemy, Store

from .conftest import every, gated_of
from .test_gate import Start, crash, turn_until
from .test_gate import start as start

CODE = {"a": every(3600, "code"), "b": every(3600, "code")}


@pytest.fixture(params=["RedBeat", "SQLAlchemy", "Django"])
def store(
    request: pytest.FixtureRequest, app: Celery, redis_server: Redis, tmp_path: Path
) -> Iterator[Store]:
    """A store, for which the app is configured."""
    found: Store
    if request.param == "RedBeat":
        pytest.importorskip("redbeat")
        found = RedBeat(redis_server.url(1))
    elif request.param == "SQLAlchemy":
        schedulers = pytest.importorskip("sqlalchemy_celery_beat.schedulers")
        schedulers.session_manager.prepared = False  # that is of another test's database
        found = SQLAlchemy(tmp_path, None)
    else:
        pytest.importorskip("django_celery_beat")
        found = Django(tmp_path, None)
    app.conf.update(found.conf, zk_beat_scheduler=found.scheduler)
    yield found
    found.close()


def elected(scheduler: ZooKeeperScheduler) -> dict[str, str]:
    """Its entries and their tasks, once it is master."""
    turn_until(scheduler, lambda: gated_of(scheduler))
    return {name: entry.task for name, entry in scheduler.schedule.items()}


def test_a_change_in_the_store_outlives_a_failover(start: Start, store: Store) -> None:
    first, second = start(beat_schedule=CODE), start()
    assert elected(first) == {"a": "code", "b": "code"}
    store.change("a", task="store")
    store.change("b", enabled=False)
    crash(first)
    assert elected(second) == {"a": "store"}
    crash(second)
    assert elected(start()) == {"a": "store"}


def test_a_scheduler_that_is_made_anew_writes_nothing(start: Start, store: Store) -> None:
    """After a failure, or once a day, in one process: also what was deleted stays so."""
    scheduler = start(beat_schedule=CODE)
    elected(scheduler)
    store.change("a", task="store")
    store.delete("b")
    scheduler._loop.forget()
    assert elected(scheduler) == {"a": "store"}


def test_what_was_deleted_comes_back_with_another_process(start: Start, store: Store) -> None:
    """As with the class by itself. The store may be another one, or a copy of an older one."""
    first = start(beat_schedule=CODE)
    elected(first)
    store.change("a", task="store")
    store.delete("b")
    crash(first)
    assert elected(start()) == {"a": "store", "b": "code"}


def test_code_that_has_changed_is_written(start: Start, store: Store) -> None:
    first = start(beat_schedule=CODE)
    elected(first)
    store.change("a", task="store")
    crash(first)
    second = start(beat_schedule={**CODE, "c": every(3600, "more")})
    assert elected(second) == {"a": "code", "b": "code", "c": "more"}


def test_what_was_not_written_is_written_later(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store was away in the middle: the class logs that, and goes on without the entry."""
    if isinstance(store, RedBeat):
        pytest.skip("it raises")
    away = [True]
    first = start(beat_schedule=CODE)
    entry_class: Any = first._gated_class.Entry  # type: ignore[union-attr]
    from_entry = entry_class.from_entry.__func__

    def fails(cls: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "b" and away:
            if isinstance(store, Django):
                from django.db import OperationalError

                raise OperationalError("refused")
            from sqlalchemy.exc import OperationalError as Refused

            raise Refused("", None, Exception("refused"))
        return from_entry(cls, name, *args, **kwargs)

    monkeypatch.setattr(entry_class, "from_entry", classmethod(fails))
    assert elected(first) == {"a": "code"}
    away.clear()
    first._loop.forget()
    assert elected(first) == {"a": "code", "b": "code"}


def test_what_was_installed_is_damaged(
    app: Celery, start: Start, store: Store, client: Any, root: str
) -> None:
    """All is written once more."""
    first = start(beat_schedule=CODE)
    elected(first)
    store.change("a", task="store")
    crash(first)
    client.set(Paths(root).installed, b"{")
    second = start()
    assert elected(second) == {"a": "code", "b": "code"}
    crash(second)
    store.change("a", task="store")
    assert elected(start())["a"] == "store"


def test_it_may_not_be_read(app: Celery, start: Start, store: Store, client: KazooClient) -> None:
    """Nothing that runs waits for it; what code defines is written at each election then."""
    first, second = start(beat_schedule=CODE), start()
    elected(first)
    store.change("a", task="store")
    path = Paths(app.conf.zk_beat_root).installed
    client.set_acls(path, [make_digest_acl("another", "secret", all=True)])
    crash(first)
    assert elected(second) == {"a": "code", "b": "code"}
