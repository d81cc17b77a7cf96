"""The guards of simulated beats: as the package decides, on a simulated kernel and ensemble."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from kazoo.protocol.serialization import Close, Connect

from celery_zk_beat.guard import program

from .ensemble import Connection, Ensemble, Link
from .world import Machine, SimpleQueue, Thread, World

if TYPE_CHECKING:
    from celery_zk_beat.zookeeper.session import ZooKeeperSession

#: How often one takes long to hear of a death, and how long at most, seconds.
SLOW, SLOWEST = 0.2, 4.0


class Guard:
    """In place of the keeper's, and of the process that it starts."""

    #: As those of the simulated client.
    ensemble: Ensemble
    links: dict[str, Link]
    #: Called with what is wrong.
    fail: Callable[[str], None]
    #: All that were made in a run.
    made: ClassVar[list[Guard]] = []

    state = "on"

    def __init__(self, access: object) -> None:
        self._beat = World.active.here
        self._machine = Machine(World.active, self._beat.name)
        self._events: SimpleQueue = SimpleQueue()
        self._told = 0
        self.made.append(self)

    def start(self, on_change: Callable[[], None]) -> None:
        self._beat.on_death.append(self._on_death)
        with World.active.on(self._machine):
            Thread(target=self._run, name="guard").start()

    def tell(self, session: ZooKeeperSession) -> None:
        connection = session.connection
        handle = None if connection == self._told else session.handle
        if handle is not None:
            self._told = connection
            self._events.put(json.dumps({"id": handle.id}).encode())

    def close(self, *, ended: bool) -> None:
        if ended:
            self._events.put(program.FAREWELL)

    @classmethod
    def no_sign_of(cls, beat: str) -> None:
        """Something that is no proof of its death."""
        for guard in cls.made:
            if guard._beat.name == beat and guard._beat.alive:
                guard._events.put(b"")

    @classmethod
    def end_all(cls) -> None:
        for guard in cls.made:
            guard._machine.die()
        cls.made.clear()

    def _on_death(self) -> None:
        world = World.active
        late = world.random.uniform(0, SLOWEST) if world.random.random() < SLOW else 0.0
        world.after(late + world.moment(), lambda: self._events.put(None))

    def _happens(self) -> Iterator[bytes | None]:
        while True:
            yield self._events.get()

    def _run(self) -> None:
        said = program.last_words(self._happens())
        if said:
            world = World.active
            if self._beat.alive:
                # Its successor may then be there before its own deadline is over.
                Guard.fail(f"I4: the session of {self._beat.name} is ended, and it lives")
            world.after(program._LASTS, self._machine.die)
            _Closing(self._machine, self.links[self._machine.name], self.ensemble, json.loads(said))


class _Closing:
    """Takes up a session and closes it, by one connection after another."""

    def __init__(
        self, machine: Machine, link: Link, ensemble: Ensemble, session: dict[str, Any]
    ) -> None:
        self.machine = machine
        # Of its own: what holds up the beat's connection is its server, perhaps.
        self._link, self._of_beat = Link(), link
        self._link.latency = link.latency
        self._ensemble, self._session = ensemble, session
        self._server: Connection | None = None
        self._connect()

    def _connect(self) -> None:
        if self._of_beat.cut or not self._ensemble.up:
            self._again()
            return
        replica = self._ensemble.world.random.choice(self._ensemble.replicas)
        self._server = server = Connection(replica, self, self._link)
        request = Connect(0, 0, 1, self._session["id"], b"x" * 16, False)
        self._link.put("requests", server.up, lambda: server.connect(request))

    def _again(self) -> None:
        self._ensemble.world.after(program._AGAIN_AFTER, self._connect, self.machine)

    def on_connected(self, server: Connection, answer: Any) -> None:
        if answer.time_out > 0:
            self._link.put("requests", server.up, lambda: server.receive(Close()))
        else:
            self._leave()

    def on_answer(self, server: Connection, answer: Any, zxid: int) -> None:
        self._leave()

    def on_event(self, server: Connection, path: str, kind: str) -> None:
        pass

    def on_closed(self, server: Connection) -> None:
        if self._server is server:
            self._leave()
            self._again()

    def lose(self) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def _leave(self) -> None:
        if self._server is not None:
            self._link.put("requests", self._server.up, self._server.close)
            self._server = None
