"""Other people's schedulers behind the election, and databases as users have them: connections that
are kept, pooled, and lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from example_project.servers import MariaDB
from tests.conftest import PATIENCE
from tests.django_database import Server
from tests.history import Message, check
from tests.stores import Django, SQLAlchemy, Store

from .conftest import Site

#: Django's settings of a connection, by what a user would call them.
KEPT = {"CONN_MAX_AGE": None}
KEPT_AND_LOOKED_AT = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
POOLED = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 2, "timeout": 5}}}
DATABASES: dict[str, tuple[str, Any]] = {
    "PostgreSQL": ("own_postgresql", {}),
    "PostgreSQL, kept": ("own_postgresql", KEPT),
    "PostgreSQL, kept and looked at": ("own_postgresql", KEPT_AND_LOOKED_AT),
    "PostgreSQL, pooled": ("own_postgresql", POOLED),
    "MariaDB": ("own_mariadb", {}),
    "MariaDB, kept": ("own_mariadb", KEPT),
    "SQLAlchemy": ("own_postgresql", None),
}


@pytest.fixture(params=DATABASES)
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(DATABASES[request.param][0])
    return server


@pytest.fixture
def store(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[Store]:
    _, connection = DATABASES[request.node.callspec.params["server"]]
    store: Store
    if connection is None:
        pytest.importorskip("sqlalchemy_celery_beat")
        store = SQLAlchemy(tmp_path, server)
    else:
        django = pytest.importorskip("django")
        pytest.importorskip("django_celery_beat")
        if connection is POOLED and django.VERSION < (5, 1):
            pytest.skip("Django has no pool before 5.1")
        store = Django(tmp_path, server, **connection)
    yield store
    store.close()


@pytest.fixture
def shop(site: Site, store: Store) -> Site:
    """Whose entries are those of the store."""
    del site.conf["beat_schedule"]
    site.conf.update(store.conf)
    site.conf["zk_beat_scheduler"] = store.scheduler
    if store.env:
        site.app = "tests.acceptance.django_app"
    return site


def runs(history: list[Message], task: str) -> list[Message]:
    return [message for message in history if message.task == task]


def test_it_restarts(shop: Site, store: Store, server: Server) -> None:
    """Under a running master, and stays away for a while: no hand is needed after it."""
    store.add("often", 1)
    beat = shop.beat()
    shop.wait(lambda history: history, "a run")
    server.stop()
    time.sleep(2)  # the outage itself
    server.start()
    store.disconnect()
    before = len(shop.history())
    shop.wait(lambda history: len(history) > before + 3, "runs")
    store.change("often", enabled=False)
    store.add("new", 1)
    shop.wait(lambda history: runs(history, "new"), "a run of what was added since")
    assert beat.alive
    assert check(shop.history()) == []


@pytest.mark.parametrize("server", ["MariaDB, kept"], indirect=True)
def test_its_server_hangs_up_on_who_is_silent(
    shop: Site, store: Store, server: MariaDB, own_mariadb: MariaDB
) -> None:
    """As MySQL does after hours (`wait_timeout`). DatabaseScheduler connects anew the next time."""
    assert isinstance(store, Django)
    store.database.execute("SET GLOBAL wait_timeout = 1")
    store.disconnect()
    store.add("seldom", 3)
    beat = shop.beat()
    shop.wait(lambda history: len(history) == 2, "two runs")
    beat.wait_for_log("continues with what it has read", PATIENCE, since=0)
    store.disconnect()
    store.add("new", 1)
    history = shop.wait(lambda history: len(runs(history, "new")) == 2, "runs of what was added")
    assert check(history) == []
    for one, next_one in zip(runs(history, "seldom"), runs(history, "seldom")[1:]):
        assert 3 <= (next_one.due - one.due).total_seconds() < 6
