"""An ensemble in memory.

It does what ZooKeeper's guides say: writes are ordered by a leader, each replica applies them
after a while, reads are answered by the replica that the client is connected to, and see at least
the client's own writes; answers and watch events of one connection keep their order; a session
expires when the leader has not heard of it for its time-out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol

from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
    SessionMovedError,
)
from kazoo.protocol.serialization import (
    CheckVersion,
    Close,
    Create,
    Delete,
    Exists,
    GetChildren,
    GetData,
    SetData,
    Transaction,
)
from kazoo.protocol.states import ZnodeStat

from celery_zk_beat.zookeeper.reads import MultiRead

from .world import BEGINNING, Lane, Machine, World

REPLICAS = 3
PING = "ping"
#: Seconds.
TICK = 0.5


class Client(Protocol):
    """The other end of a connection."""

    machine: Machine

    def on_connected(self, server: Connection, answer: Any) -> None: ...
    def on_answer(self, server: Connection, answer: Any, zxid: int) -> None: ...
    def on_event(self, server: Connection, path: str, kind: str) -> None: ...
    def on_closed(self, server: Connection) -> None: ...
    def lose(self) -> None: ...
    def hang_up(self) -> None: ...


@dataclass(frozen=True)
class Znode:
    data: bytes
    version: int
    owner: int
    modified: float

    def stat(self) -> ZnodeStat:
        at = int(1000 * self.modified)
        size = len(self.data)
        return ZnodeStat(0, 0, at, at, self.version, 0, 0, self.owner, size, 0, 0)


Tree = dict[str, Znode]


@dataclass
class Write:
    """What the leader decided: `changes` are the znodes as they are afterwards, None without."""

    zxid: int
    changes: dict[str, Znode | None]
    result: Any
    connection: Connection | None = None
    ends: int = 0


@dataclass
class Session:
    id: int
    timeout: float
    connection: Connection | None
    #: When the leader last heard of it.
    heard: float


class Link:
    """The road between a machine and the ensemble. It may be cut, or hold back what goes one way,
    or be slow."""

    def __init__(self) -> None:
        self.cut = False
        #: "requests", "answers" or both.
        self.blocked: set[str] = set()
        #: Seconds.
        self.delay = 0.0
        #: Seconds that it takes longer than others, always.
        self.latency = 0.0
        self._held: list[tuple[str, Lane, Callable[[], None]]] = []
        self.connections: list[Client] = []

    def put(self, way: str, lane: Lane, action: Callable[[], None]) -> None:
        if way in self.blocked:
            self._held.append((way, lane, action))
        else:
            lane.delay = self.delay + self.latency
            lane.put(action)

    def set(
        self, *, cut: bool = False, blocked: frozenset[str] = frozenset(), delay: float = 0.0
    ) -> None:
        self.cut, self.blocked, self.delay = cut, set(blocked), delay
        held, self._held = self._held, []
        for way, lane, action in held:
            if not cut:
                self.put(way, lane, action)
        if cut:
            for connection in list(self.connections):
                connection.lose()


class Ensemble:
    """The servers. `observers` are called with each write that changes something."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock_offset = 0.0
        self.up = True
        self.tree: Tree = {"/": Znode(b"", 0, 0, 0.0)}
        self.sessions: dict[int, Session] = {}
        self.zxid = 0
        self.replicas = [Replica(self) for _ in range(REPLICAS)]
        self.observers: list[Callable[[Write, int], None]] = []
        #: Of a request at which a server hangs up (jute.maxbuffer).
        self.most_bytes = 0xFFFFF
        #: Called when a client's write has come to the leader.
        self.before_write: Callable[[], None] = lambda: None
        self._session_ids = itertools.count(0x1000)
        world.after(TICK, self._tick)

    def stop(self) -> None:
        """No quorum: the servers answer nobody."""
        self.up = False
        for replica in self.replicas:
            replica.drop_all()

    def start(self) -> None:
        """A new leader gives each session its whole time-out again."""
        self.up = True
        for session in self.sessions.values():
            session.heard = self.world.now

    def copy(self) -> tuple[Tree, int]:
        """For :meth:`restore`; without what is ephemeral, which a server forgets when it starts."""
        lasting = {path: node for path, node in self.tree.items() if not node.owner}
        return lasting, self.zxid

    def restore(self, copy: tuple[Tree, int]) -> None:
        """From a copy made before, by hand, while it is stopped: whatever came later, each session
        among it, has never been."""
        assert not self.up
        self.sessions.clear()
        tree, self.zxid = copy
        self.tree = dict(tree)
        # What is on its way still comes out of the old ones, for nobody.
        self.replicas = [Replica(self) for _ in range(REPLICAS)]

    def _next_zxid(self) -> int:
        self.zxid += 1
        return self.zxid

    def open_session(self, timeout: float, connection: Connection) -> Session:
        session = Session(next(self._session_ids), timeout, connection, self.world.now)
        self.sessions[session.id] = session
        self._commit({}, None, None)
        return session

    def delete(self, path: str) -> None:
        """By hand."""
        if path in self.tree:
            self._commit({path: None}, None, None)

    def set(self, *nodes: tuple[str, bytes, int]) -> None:
        """By hand, in one transaction: path, data and owner, of new znodes and old."""
        changes: dict[str, Znode | None] = {}
        now = BEGINNING + self.world.now + self.clock_offset
        for path, data, owner in nodes:
            before = self.tree.get(path)
            version = 0 if before is None else before.version + 1
            changes[path] = Znode(data, version, owner, now)
        self._commit(changes, None, None)

    def write(self, connection: Connection, request: Any) -> None:
        """The leader's turn."""
        session = self.sessions.get(connection.session)
        if session is None:
            self._commit({}, SessionExpiredError(), connection)
        elif session.connection is not connection:
            self._commit({}, SessionMovedError(), connection)
        elif isinstance(request, Close):
            self._end(session, connection)
        else:
            self.before_write()
            changes, result = self._decide(session.id, request)
            self._commit(changes, result, connection)

    def _tick(self) -> None:
        for session in list(self.sessions.values()):
            if self.up and self.world.now - session.heard > session.timeout:
                self._end(session, None)
        self.world.after(TICK, self._tick)

    def _end(self, session: Session, connection: Connection | None) -> None:
        del self.sessions[session.id]
        gone: dict[str, Znode | None] = {
            path: None for path, node in self.tree.items() if node.owner == session.id
        }
        self._commit(gone, True, connection, ends=session.id)

    def _commit(
        self,
        changes: dict[str, Znode | None],
        result: Any,
        connection: Connection | None,
        ends: int = 0,
    ) -> None:
        write = Write(self._next_zxid(), changes, result, connection, ends)
        if changes:
            for observe in self.observers:
                observe(write, connection.session if connection else ends)
        _apply(self.tree, changes)
        for replica in self.replicas:
            replica.log.put(lambda replica=replica: replica.apply(write))  # type: ignore[misc]

    def _decide(self, session: int, request: Any) -> tuple[dict[str, Znode | None], Any]:
        many = isinstance(request, Transaction)
        operations = request.operations if many else [request]
        changes: dict[str, Znode | None] = {}
        results: list[Any] = []
        try:
            for operation in operations:
                results.append(self._one(session, operation, changes))
        except KazooException as exc:
            if not many:
                return {}, exc
            # As the server answers: those before it, the culprit, those after it.
            after = len(operations) - len(results) - 1
            before = [RolledBackError() for _ in results]
            return {}, [*before, exc, *(RuntimeInconsistency() for _ in range(after))]
        return changes, results if many else results[0]

    def _one(self, session: int, operation: Any, changes: dict[str, Znode | None]) -> Any:
        path = operation.path
        node = changes[path] if path in changes else self.tree.get(path)
        now = BEGINNING + self.world.now + self.clock_offset
        if isinstance(operation, Create):
            parent = path.rpartition("/")[0] or "/"
            if node is not None:
                raise NodeExistsError
            if (changes[parent] if parent in changes else self.tree.get(parent)) is None:
                raise NoNodeError
            owner = session if operation.flags & 1 else 0
            changes[path] = Znode(operation.data, 0, owner, now)
            return path
        if node is None:
            raise NoNodeError
        if operation.version not in (-1, node.version):
            raise BadVersionError
        if isinstance(operation, SetData):
            node = replace(node, data=operation.data, version=node.version + 1, modified=now)
            changes[path] = node
            return node.stat()
        if isinstance(operation, Delete):
            if _children(self.tree, path):
                raise NotEmptyError
            changes[path] = None
            return True
        assert isinstance(operation, CheckVersion)
        return True


class Replica:
    """One server: the tree as far as it has come, and the connections to it."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.world = ensemble.world
        self.tree: Tree = dict(ensemble.tree)
        self.zxid = ensemble.zxid
        #: Writes on their way from the leader; and, the other way, what this one forwards.
        self.log = Lane(self.world)
        self.forward = Lane(self.world)
        self.connections: list[Connection] = []

    def apply(self, write: Write) -> None:
        events = [
            (path, "DELETED" if node is None else "CHANGED" if path in self.tree else "CREATED")
            for path, node in write.changes.items()
        ]
        _apply(self.tree, write.changes)
        self.zxid = write.zxid
        for connection in list(self.connections):
            for path, kind in events:
                connection.tell(path, kind)
                if kind != "CHANGED":
                    connection.tell_of_child(path.rpartition("/")[0] or "/")
        if write.connection is not None and write.connection in self.connections:
            write.connection.answer(write.result, write.zxid)
        for connection in list(self.connections):
            if write.ends and connection.session == write.ends:
                connection.close()

    def drop_all(self) -> None:
        for connection in list(self.connections):
            connection.close()


class Connection:
    """A connection as the server sees it. Requests are dealt with one after another."""

    def __init__(self, replica: Replica, client: Client, link: Link) -> None:
        self.replica = replica
        self.ensemble = replica.ensemble
        self.session = 0
        self.open = True
        self._client = client
        self._link = link
        self._watched: set[str] = set()
        #: Whose children are watched.
        self._parents: set[str] = set()
        self._requests: deque[Any] = deque()
        self._busy = False
        #: What goes to the client, and comes from it.
        self._down = Lane(replica.world, client.machine)
        self.up = Lane(replica.world)
        replica.connections.append(self)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.replica.connections.remove(self)
            self._send(lambda: self._client.on_closed(self))

    def connect(self, request: Any) -> None:
        ensemble = self.ensemble
        if not ensemble.up or not self.open or request.last_zxid_seen > self.replica.zxid:
            return self.close()
        session = ensemble.sessions.get(request.session_id)
        timeout = min(max(request.time_out / 1000, 2 * TICK), 20 * TICK)
        if request.session_id and session is None:
            timeout = 0.0
        elif session is None:
            session = ensemble.open_session(timeout, self)
        else:
            session.connection = self
        if session is not None:
            self.session = session.id
            session.heard = ensemble.world.now
        answer = SimpleNamespace(
            protocol_version=0,
            time_out=round(1000 * timeout),
            session_id=self.session,
            passwd=b"x" * 16,
            read_only=False,
        )
        return self._send(lambda: self._client.on_connected(self, answer))

    def receive(self, request: Any) -> None:
        if not self.open:
            return
        if _size(request) > self.ensemble.most_bytes:
            self.close()
            return
        self._requests.append(request)
        # The leader hears of a session through the replica, up to half a tick later.
        self.ensemble.world.after(self.ensemble.world.random.uniform(0, TICK / 2), self._touch)
        self._next()

    def answer(self, result: Any, zxid: int) -> None:
        self._busy = False
        self._send(lambda: self._client.on_answer(self, result, zxid))
        self._next()

    def tell(self, path: str, kind: str) -> None:
        if path in self._watched:
            self._watched.discard(path)
            self._send(lambda: self._client.on_event(self, path, kind))

    def tell_of_child(self, parent: str) -> None:
        if parent in self._parents:
            self._parents.discard(parent)
            self._send(lambda: self._client.on_event(self, parent, "CHILD"))

    def _touch(self) -> None:
        session = self.ensemble.sessions.get(self.session)
        if session is not None and self.ensemble.up:
            session.heard = self.ensemble.world.now

    def _next(self) -> None:
        while self.open and self._requests and not self._busy:
            request = self._requests.popleft()
            if isinstance(request, (GetData, GetChildren, Exists, MultiRead)) or request == PING:
                self._read(request)
            else:
                self._busy = True
                self.replica.forward.put(lambda request=request: self._forward(request))  # type: ignore[misc]

    def _forward(self, request: Any) -> None:
        if self.ensemble.up:
            self.ensemble.write(self, request)

    def _read(self, request: Any) -> None:
        node = self.replica.tree.get(getattr(request, "path", ""))
        result: Any = None
        if isinstance(request, GetChildren):
            found = node is not None
            result = _children(self.replica.tree, request.path) if found else NoNodeError()
            if request.watcher and found:
                self._parents.add(request.path)
        elif isinstance(request, MultiRead):
            nodes = map(self.replica.tree.get, request.paths)
            result = [NoNodeError() if each is None else (each.data, each.stat()) for each in nodes]
        elif isinstance(request, GetData):
            result = (node.data, node.stat()) if node is not None else NoNodeError()
            if request.watcher and node is not None:
                self._watched.add(request.path)
        elif isinstance(request, Exists):
            result = node.stat() if node is not None else None
            if request.watcher:
                self._watched.add(request.path)
        self._send(lambda: self._client.on_answer(self, result, self.replica.zxid))

    def _send(self, action: Callable[[], None]) -> None:
        self._link.put("answers", self._down, action)


def _size(request: Any) -> int:
    """Of it on the wire, bytes; about."""
    operations = request.operations if isinstance(request, Transaction) else [request]
    return sum(
        32 + len(getattr(each, "path", "")) + len(getattr(each, "data", b"")) for each in operations
    )


def _apply(tree: Tree, changes: dict[str, Znode | None]) -> None:
    for path, node in changes.items():
        if node is None:
            tree.pop(path, None)
        else:
            tree[path] = node


def _children(tree: Tree, path: str) -> list[str]:
    prefix = path.rstrip("/") + "/"
    below = (name[len(prefix) :] for name in tree if name.startswith(prefix))
    return [name for name in below if name and "/" not in name]
