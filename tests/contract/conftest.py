"""Runs the same tests on a real server and on the simulated one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from celery_zk_beat.zookeeper.session import ZooKeeperSession
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import PATIENCE, TICK_TIME
from tests.faults import Road
from tests.simulation.client import SimulatedKazoo
from tests.simulation.ensemble import TICK, Ensemble, Link
from tests.simulation.run import simulation
from tests.simulation.world import Machine, Thread, World


class Backend(Protocol):
    #: Seconds between two times at which the server checks its sessions.
    tick: float

    def session(self, timeout: float = ...) -> ZooKeeperSession:
        """A session of its own client, connected."""
        ...

    def until(self, condition: Callable[[], object]) -> None: ...

    def cut(self, session: ZooKeeperSession) -> None:
        """Closes the connection, and each new one."""
        ...

    def block(self, session: ZooKeeperSession) -> None:
        """Lets nothing through, in both directions."""
        ...

    def open(self, session: ZooKeeperSession) -> None: ...


class Real:
    tick = TICK_TIME / 1000

    def __init__(self, server: ZooKeeper, stack: contextlib.ExitStack) -> None:
        self._server, self._stack = server, stack
        self._roads: dict[ZooKeeperSession, Road] = {}

    def session(self, timeout: float = 2.0) -> ZooKeeperSession:
        road = self._stack.enter_context(Road(self._server.port))
        session = ZooKeeperSession(road.hosts, timeout, lambda: None)
        self._roads[session] = road
        session.start()
        self._stack.callback(session.stop, PATIENCE)
        self.until(lambda: session.connected)
        return session

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, PATIENCE, "what is told by the line above")

    def cut(self, session: ZooKeeperSession) -> None:
        self._roads[session].cut()

    def block(self, session: ZooKeeperSession) -> None:
        self._roads[session].block()

    def open(self, session: ZooKeeperSession) -> None:
        self._roads[session].open()


class Simulated:
    tick = TICK

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        SimulatedKazoo.ensemble = Ensemble(self.world)
        SimulatedKazoo.links = {}
        self._links: dict[ZooKeeperSession, Link] = {}

    def session(self, timeout: float = 2.0) -> ZooKeeperSession:
        machine = Machine(self.world, f"machine{len(self._links)}")
        SimulatedKazoo.links[machine.name] = link = Link()
        session = ZooKeeperSession("z1,z2,z3", timeout, lambda: None)
        self._links[session] = link
        with self.world.on(machine):
            session.start()
        self.until(lambda: session.connected)
        return session

    def until(self, condition: Callable[[], object]) -> None:
        deadline = self.world.now + PATIENCE
        while not condition():
            assert self.world.now < deadline
            self.world.park(0.02)

    def cut(self, session: ZooKeeperSession) -> None:
        self._links[session].set(cut=True)

    def block(self, session: ZooKeeperSession) -> None:
        self._links[session].set(blocked=frozenset({"requests", "answers"}))

    def open(self, session: ZooKeeperSession) -> None:
        self._links[session].set()

    def run(self, test: Callable[[], object]) -> None:
        """Runs the test as a thread of the simulated world, because it waits for what happens
        there."""
        machine = Machine(self.world, "test")
        with self.world.on(machine):
            thread = Thread(target=test)
            thread.start()
        self.world.run(lambda: not thread.is_alive(), 1000 * PATIENCE)
        for failure in machine.failures:
            raise failure
        assert not thread.is_alive()


@pytest.fixture(params=["real", *(f"simulated {seed}" for seed in range(5))])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    kind, _, seed = request.param.partition(" ")
    with contextlib.ExitStack() as stack:
        if kind == "real":
            yield Real(request.getfixturevalue("zookeeper"), stack)
        else:
            stack.enter_context(simulation())
            yield Simulated(int(seed))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    backend = pyfuncitem.funcargs.get("backend")
    if not isinstance(backend, Simulated):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    backend.run(lambda: pyfuncitem.obj(**arguments))
    return True
