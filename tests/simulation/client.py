"""kazoo's own client (states, watches, transactions) on a connection to the simulated ensemble."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionDropped, SessionExpiredError, SessionMovedError
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.handlers.utils import AsyncResult
from kazoo.protocol.serialization import Close, Connect, GetChildren
from kazoo.protocol.states import Callback, KeeperState, WatchedEvent

from .ensemble import PING, Connection, Ensemble, Link
from .world import Condition, Lane, Machine, World

#: Most seconds between two attempts to connect.
CONNECT_PAUSE = 1.0


class Handler(SequentialThreadingHandler):
    """kazoo's threads for callbacks, and what it waits with."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._callbacks = Lane(world, machine)
        self._completions = Lane(world, machine)
        self.completion_queue = SimpleNamespace(put=self._completions.put)

    running = property(lambda self: True)

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def event_object(self) -> Any:
        return Flag()

    def lock_object(self) -> Any:
        return Condition()

    rlock_object = lock_object

    def async_result(self, api: Any = None) -> Any:
        return AsyncResult(self, Condition, KazooTimeoutError)

    def dispatch_callback(self, callback: Callback) -> None:
        self._callbacks.put(lambda: callback.func(*callback.args))


@dataclass
class Flag:
    """As :class:`threading.Event`; looking at it, a thread may be interrupted just before."""

    _set: bool = False

    def is_set(self) -> bool:
        World.active.breathe()
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False


@dataclass
class ClientConnection:
    """In place of kazoo's ConnectionHandler: the same conversation with the client, without a
    socket. Runs as callbacks, so nothing in it may wait."""

    client: Any
    machine: Machine
    link: Link
    ensemble: Ensemble
    _server: Connection | None = None
    _established: bool = False
    _timeout: float = 0.0
    _pinging: bool = False
    _heard: float = 0.0
    _answer: Any = None
    _closed: Condition = field(default_factory=Condition)
    _running: bool = False

    # What the client asks of it.

    def start(self) -> None:
        self._running = True
        self.link.connections.append(self)
        self._connect()

    def stop(self, timeout: float | None = None) -> bool:
        if self._running:
            self._closed.wait(timeout)
        return not self._running

    def close(self) -> None:
        pass

    @property
    def _write_sock(self) -> Any:
        return SimpleNamespace(send=lambda _: self._flush())

    @property
    def _connection_routine(self) -> Any:
        return SimpleNamespace(is_alive=lambda: self._running)

    def _invoke(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        if self._answer is None:
            raise ConnectionDropped("simulated: the server hangs up")
        return self._answer, 0

    # Its life.

    def _connect(self) -> None:
        if not self._running:
            return None
        if self.client._stopped._set:
            return self._end()
        if self.client._state != KeeperState.CONNECTING:
            self.client._session_callback(KeeperState.CONNECTING)
        world = self.ensemble.world
        if self.link.cut or not self.ensemble.up:
            return self._again()
        replica = world.random.choice(self.ensemble.replicas)
        self._server = server = Connection(replica, self, self.link)
        self._established = False
        self._answer = None
        request = Connect(
            0,
            self.client.last_zxid,
            self.client._session_timeout,
            self.client._session_id or 0,
            self.client._session_passwd,
            False,
        )
        self._request = request
        self.link.put("requests", server.up, lambda: server.connect(request))
        world.after(
            self.client._session_timeout / 3000, lambda: self._give_up(server), self.machine
        )
        return None

    def _give_up(self, server: Connection) -> None:
        if self._server is server and not self._established:
            self.lose()

    def _again(self) -> None:
        world = self.ensemble.world
        world.after(world.random.uniform(0.05, CONNECT_PAUSE), self._connect, self.machine)

    def on_connected(self, server: Connection, answer: Any) -> None:
        if self._server is not server:
            return None
        self._answer = answer
        self._invoke_again()
        if answer.time_out <= 0:
            self._server = None
            self.client._session_callback(KeeperState.EXPIRED_SESSION)
            return self._again()
        self._established = True
        self._pinging = False
        self._heard = self.ensemble.world.now
        self._timeout = answer.time_out / 1000
        self.client._session_id = answer.session_id
        self.client._session_passwd = answer.passwd
        self.client._session_callback(KeeperState.CONNECTED)
        self._flush()
        return self._keep_alive(server)

    def _invoke_again(self) -> None:
        # Through the client's attribute, which zookeeper/client.py wraps to learn the time-out.
        self.client._connection._invoke(0, self._request)

    def _keep_alive(self, server: Connection) -> None:
        """As kazoo: a ping after a third of the time-out; the connection is given up when the
        answer to one has not come by the next."""
        if self._server is not server:
            return None
        silent = self.ensemble.world.now - self._heard
        if self._pinging and silent > self._timeout / 2:
            return self.lose()
        self._pinging = True
        self.link.put("requests", server.up, lambda: server.receive(PING))
        self.client._pending.append((PING, None, 0))
        self.ensemble.world.after(self._timeout / 3, lambda: self._keep_alive(server), self.machine)
        return None

    def _flush(self) -> None:
        server = self._server
        while self._established and server is not None and self.client._queue:
            request, result = self.client._queue.popleft()
            self.client._pending.append((request, result, 0))
            self.link.put(
                "requests",
                server.up,
                lambda request=request: server.receive(request),  # type: ignore[misc]
            )

    def on_answer(self, server: Connection, answer: Any, zxid: int) -> None:
        if self._server is not server or not self.client._pending:
            return
        request, result, _ = self.client._pending.popleft()
        self._heard = self.ensemble.world.now
        self.client.last_zxid = max(zxid, self.client.last_zxid)
        if request == PING:
            self._pinging = False
        elif isinstance(request, Close):
            self._end()
        elif isinstance(answer, (SessionExpiredError, SessionMovedError)):
            result.set_exception(answer)
            self.lose()
        elif isinstance(answer, Exception):
            result.set_exception(answer)
        else:
            result.set(answer)
            if getattr(request, "watcher", None):
                self._watchers_of(isinstance(request, GetChildren))[request.path].add(
                    request.watcher
                )

    def on_event(self, server: Connection, path: str, kind: str) -> None:
        if self._server is not server:
            return
        event = WatchedEvent(kind, self.client._state, path)
        for watcher in self._watchers_of(kind == "CHILD").pop(path, ()):
            self.client.handler.dispatch_callback(Callback("watch", watcher, (event,)))

    def _watchers_of(self, are_children: bool) -> Any:
        return self.client._child_watchers if are_children else self.client._data_watchers

    def on_closed(self, server: Connection) -> None:
        if self._server is server:
            if not self._established:
                with contextlib.suppress(ConnectionDropped):
                    self._invoke_again()
            self.lose()

    def lose(self) -> None:
        """The connection is gone."""
        self._established = False
        if self._server is not None:
            self.hang_up()
            self._server = None
            self.ensemble.world.after(0.0, self._lost, self.machine)

    def _lost(self) -> None:
        if self._running:
            if self.client._state == KeeperState.CONNECTED:
                self.client._session_callback(KeeperState.CONNECTING)
            self._again()

    def hang_up(self) -> None:
        """The server learns of it as of everything else: after what was sent before."""
        if self._server is not None:
            self.link.put("requests", self._server.up, self._server.close)

    def _end(self) -> None:
        self.hang_up()
        self._server = None
        self._running = False
        self.link.connections.remove(self)
        self.client._session_callback(KeeperState.CLOSED)
        self._closed.notify_all()


class SimulatedKazoo(KazooClient):
    """kazoo's client on a simulated connection, for the machine that makes it."""

    #: Where the machines' roads lead to.
    ensemble: Ensemble
    links: dict[str, Link]

    def __init__(self, **options: Any) -> None:
        world = World.active
        machine = world.here
        options["handler"] = Handler(world, machine)
        super().__init__(**options)
        self._connection = ClientConnection(self, machine, self.links[machine.name], self.ensemble)
