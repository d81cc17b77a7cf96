"""Servers for the tests. If ZooKeeper or Redis is not installed, the tests that need it fail. If
RabbitMQ, PostgreSQL or MariaDB is not, the tests that need it are skipped. `make test` sets up all
that it can."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from kazoo.client import KazooClient

from celery_zk_beat import MasterElection
from celery_zk_beat.ledger import BELOW_ROOT
from celery_zk_beat.zookeeper.session import ZooKeeperSession
from example_project import processes
from example_project.servers import (
    MariaDB,
    PostgreSQL,
    Redis,
    ZooKeeper,
    missing_mariadb,
    missing_postgresql,
)

from .faults import Road
from .rabbitmq import RabbitMQ, missing_rabbitmq
from .secure import Authority, SecureZooKeeper

TICK_TIME = 200
#: Seconds. ZooKeeper allows a client to be silent so long: five ticks.
SESSION_TIMEOUT = 1.0
#: Seconds. For sessions that no test lets expire: the longest that ZooKeeper grants, twenty ticks.
#: A busy machine can be silent for a second.
LONG_TIMEOUT = 4.0
#: Seconds. Far more than anything here needs, even on a busy machine.
PATIENCE = 30.0


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker ports of its own, if tests run side by side."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % workers  # in place of a dead one
    processes.given_ports |= {port for port in processes.PORTS if port % workers != mine}
    # django-celery-beat 2.8 causes it, and Python 3.12 warns. Our own code uses clock.py.
    config.addinivalue_line("filterwarnings", "ignore:datetime.datetime.utcnow:DeprecationWarning")
    # A busy machine is no fault. (In CI, later releases of Hypothesis do this by themselves.)
    slow = [HealthCheck.too_slow]
    settings.register_profile("busy", settings(), deadline=None, suppress_health_check=slow)
    settings.load_profile("busy")


def kazoo_of(session: ZooKeeperSession) -> KazooClient:
    """Returns kazoo's client, for what only a test does with it."""
    assert session._client is not None
    return session._client.kazoo


@pytest.fixture(autouse=True, scope="session")
def _no_settings_of_the_developer() -> None:
    for name in list(os.environ):
        if name.startswith(("CELERY_", "ZK_BEAT_", "NOTIFY_SOCKET", "DJANGO_", "PG", "MYSQL_")):
            del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def _sigint_is_obeyed() -> None:
    """A shell makes background processes ignore SIGINT. They would pass that on to all that we
    start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    """A server that all tests share. No test may harm it."""
    with ZooKeeper(tmp_path_factory.mktemp("zookeeper"), tick_time=TICK_TIME) as server:
        yield server.start()


@pytest.fixture
def own_zookeeper(tmp_path: Path) -> Iterator[ZooKeeper]:
    """A server that the test may stop and start. It is not started yet."""
    with ZooKeeper(tmp_path, tick_time=TICK_TIME) as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def secure_zookeeper(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[SecureZooKeeper]:
    """A server with TLS on one of its ports. It accepts every kind of credential but needs none. No
    test may harm it."""
    folder = tmp_path_factory.mktemp("secure")
    with SecureZooKeeper(folder, authority, authority.issue("server")) as server:
        yield server.start()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    with Redis(tmp_path) as server:
        yield server.start()


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[RabbitMQ]:
    """Skips the test if it is not installed, except in CI."""
    missing = missing_rabbitmq()
    if missing and not os.environ.get("CI"):
        pytest.skip(missing)
    with RabbitMQ(tmp_path) as server:
        yield server.start()


@pytest.fixture(scope="session")
def _postgresql_is_there() -> None:
    """Skips the test if it is not installed, except in CI."""
    missing = missing_postgresql()
    if missing and not os.environ.get("CI"):
        pytest.skip(missing)


@pytest.fixture(scope="session")
def postgresql(
    tmp_path_factory: pytest.TempPathFactory, _postgresql_is_there: None
) -> Iterator[PostgreSQL]:
    """A server that all tests share. No test may harm it."""
    with PostgreSQL(tmp_path_factory.mktemp("postgresql")) as server:
        yield server.start()


@pytest.fixture
def own_postgresql(tmp_path: Path, _postgresql_is_there: None) -> Iterator[PostgreSQL]:
    """A server that the test may stop and start."""
    with PostgreSQL(tmp_path) as server:
        yield server.start()


@pytest.fixture(scope="session")
def _mariadb_is_there() -> None:
    """Skips the test if it is not installed, except in CI."""
    missing = missing_mariadb()
    if missing and not os.environ.get("CI"):
        pytest.skip(missing)


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory, _mariadb_is_there: None) -> Iterator[MariaDB]:
    """A server that all tests share. No test may harm it."""
    with MariaDB(tmp_path_factory.mktemp("mariadb")) as server:
        yield server.start()


@pytest.fixture
def own_mariadb(tmp_path: Path, _mariadb_is_there: None) -> Iterator[MariaDB]:
    """A server that the test may stop and start."""
    with MariaDB(tmp_path) as server:
        yield server.start()


@pytest.fixture
def root() -> str:
    return f"/{uuid.uuid4()}"


@contextlib.contextmanager
def kazoo_client(hosts: str) -> Iterator[KazooClient]:
    """A connected client of kazoo, not of ours."""
    client = KazooClient(hosts)
    client.start(PATIENCE)
    yield client
    client.stop()
    client.close()


@pytest.fixture
def client(zookeeper: ZooKeeper) -> Iterator[KazooClient]:
    with kazoo_client(zookeeper.hosts) as client:
        yield client


@pytest.fixture
def road(zookeeper: ZooKeeper) -> Iterator[Road]:
    """A connection to ZooKeeper that the test can cut."""
    with Road(zookeeper.port) as road:
        yield road


@pytest.fixture
def candidate(zookeeper: ZooKeeper, root: str) -> Iterator[Callable[..., MasterElection]]:
    """Makes candidates of one election, with the znodes for a ledger. Stops them in the end."""
    made: list[MasterElection] = []

    def make(id: str, hosts: str = zookeeper.hosts, **options: Any) -> MasterElection:
        options = {"session_timeout": SESSION_TIMEOUT, "below": BELOW_ROOT, **options}
        made.append(MasterElection(hosts, options.pop("root", root), id=id, **options))
        return made[-1]

    yield make
    for election in made:
        election.stop()
