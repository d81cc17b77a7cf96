"""The one place that builds, bounds and stops a KazooClient, and that sees kazoo's exceptions.

kazoo runs callbacks on threads of its own, which must never block (kazoo#381, #426): the ones
given to :class:`ZooKeeperSession` are called there and may only hand a token to another thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from kazoo.client import KazooClient
from kazoo.exceptions import (
    EXCEPTIONS,
    BadVersionError,
    ConnectionClosedError,
    ConnectionDropped,
    ConnectionLoss,
    KazooException,
    NodeExistsError,
    NoNodeError,
    OperationTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SessionExpiredError,
    SessionMovedError,
    ZookeeperError,
)
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.protocol.serialization import Connect
from kazoo.protocol.states import ZnodeStat
from kazoo.retry import KazooRetry

from .errors import Conflict, ConnectTimeout, Uncertain, UnsupportedEnvironment, ZooKeeperError
from .log import get_logger

#: Longest pause between two attempts to connect, seconds. kazoo's own default grows to a minute.
_RECONNECT_PAUSE = 1.0

_UNCERTAIN = (
    ConnectionLoss,
    ConnectionClosedError,
    KazooTimeoutError,
    OperationTimeoutError,
    SessionExpiredError,
    SessionMovedError,
)
#: What the innocent operations of a refused transaction answer.
_BYSTANDER = (RolledBackError, RuntimeInconsistency)
#: Answers of ZooKeeper 3.8 (KeeperException.Code) that kazoo 2.11 does not know, and over which
#: it would end its loop.
_UNKNOWN_TO_KAZOO = {
    -13: "NewConfigNoQuorum",
    -14: "ReconfigInProgress",
    -123: "ReconfigDisabled",
    -124: "SessionClosedRequireSaslAuth",
    -125: "QuotaExceeded",
    -127: "ThrottledOp",
}
for _code, _name in _UNKNOWN_TO_KAZOO.items():
    EXCEPTIONS.setdefault(_code, type(_name, (ZookeeperError,), {"code": _code}))

_CONFLICTS = (NodeExistsError, NoNodeError, BadVersionError)

#: Seconds: a longer session time-out is granted only to who asks for it.
_LONGEST_GRANTED = 300.0
#: Seconds that :func:`connected` waits for the end of its session.
_CLOSE_WITHIN = 2.0
#: Seconds that clocks may be apart without a word.
_CLOCK_TOLERANCE = 1.0

logger = get_logger(__name__)
#: kazoo logs each attempt to connect; what matters of it is said by election.py, once.
_kazoo_log = get_logger("celery_zk_beat.kazoo")


def boottime() -> float:
    """Seconds on a clock that goes on while the machine is suspended, and never jumps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class Node:
    """A znode as it was read. `data` is empty also where there is none, `owner` the session of an
    ephemeral one, else 0; `mtime` is the server's clock when it was written, seconds since 1970."""

    data: bytes
    version: int
    owner: int
    mtime: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Create:
    path: str
    data: bytes
    ephemeral: bool = False


@dataclass(frozen=True)
class SetData:
    path: str
    data: bytes
    version: int = -1


@dataclass(frozen=True)
class Check:
    path: str
    version: int


@dataclass(frozen=True)
class Delete:
    path: str
    version: int = -1


Operation = Union[Create, SetData, Check, Delete]
#: As what kazoo reads the answers.
_ANSWERS = {Create: str, SetData: ZnodeStat, Check: bool, Delete: bool}


class Pending:
    """A transaction on its way. Answers of one connection come in the order of the requests."""

    def __init__(self, session: ZooKeeperSession, operations: Sequence[Operation]) -> None:
        self._session = session
        self._operations = operations
        self._result: Any = None
        #: Just before it was sent, on :func:`boottime`: the server has heard of us since then.
        #: Not just after, for a process may be stopped in between.
        self.sent = boottime()
        self._sent_at = time.time()

    def send(self, transaction: Any) -> Pending:
        self._result = transaction.commit_async()
        return self

    @property
    def answered(self) -> bool:
        return bool(self._result.ready())

    def result(self) -> list[int]:
        """Waits for the answer: the new data version of each operation's znode, in order (0 for
        a created one, the checked one for a check, -1 for a deleted one).

        Raises:
            Conflict: a znode was not as the transaction said; nothing was done.
            Uncertain: no answer, so it may or may not have been done.
            ZooKeeperError: refused for another reason (rights, quota); nothing was done.
        """
        what = self._operations[0].path
        answers = _translated(what, self._result.get, timeout=self._session.timeout)
        for operation, answer in zip(self._operations, answers):
            if isinstance(answer, Exception) and not isinstance(answer, _BYSTANDER):
                raise _error(operation.path, answer)
        kinds = [_ANSWERS[type(operation)] for operation in self._operations]
        if [type(answer) for answer in answers] != kinds:
            raise Uncertain(f"{what}: an answer that fits no question")
        for operation, answer in zip(self._operations, answers):
            if isinstance(operation, SetData):
                self._session.compare_clocks(self._sent_at, answer.mtime / 1000, time.time())
        return [_version_after(op, answer) for op, answer in zip(self._operations, answers)]


class ZooKeeperSession:
    """ZooKeeper sessions, one after another, for as long as the object is started.

    Args:
        servers: ``host:port,host:port``, without a chroot: paths are always absolute.
        timeout: session time-out to ask for, seconds.
        on_change: called on kazoo's thread whenever the connection came or went.

    Reading and writing may be done from any thread that is not kazoo's own.
    """

    def __init__(self, servers: str, timeout: float, on_change: Callable[[], None]) -> None:
        self._servers = servers
        self._asked = timeout
        self._on_change = on_change
        self._client: Any = None
        #: The session time-out that the server granted, seconds; kazoo forgets it (kazoo#769).
        self.timeout = timeout
        #: Changes whenever the connection comes or goes: what was learned under another number
        #: must be read again. It changes on the way down too, so that there is no instant at
        #: which the next connection is up and still bears the number of the last.
        self.connection = 0
        #: Seconds by which this machine's clock is at least ahead of (or, below 0, behind) the
        #: server's, by the last write; 0 as long as none shows it.
        self.clock_offset = 0.0

    @property
    def connected(self) -> bool:
        """No network: what kazoo last saw."""
        return self._client is not None and bool(self._client.connected)

    @property
    def id(self) -> int:
        """The session's id, 0 before there is one."""
        found = None if self._client is None else self._client.client_id
        return int(found[0]) if found else 0

    @property
    def granted_otherwise(self) -> str:
        """For a log line: what was asked for, where the server granted another time-out."""
        return "" if self.timeout == self._asked else f" (asked for {self._asked:g} s)"

    @property
    def dead(self) -> bool:
        """kazoo's loop has ended for good (refused credentials, an answer it cannot parse): only
        a new client helps."""
        thread = None if self._client is None else self._client._connection._connection_routine
        return thread is not None and not thread.is_alive()

    def start(self) -> None:
        """Begins to connect and returns at once. Only after the last fork: a child that inherits
        a session would share its socket (kazoo#519, #628).

        Raises:
            UnsupportedEnvironment: gevent or eventlet has patched this process.
        """
        _refuse_green_threads()
        if _kazoo_log.level == logging.NOTSET:
            _kazoo_log.setLevel(logging.ERROR)
        self._client = client = KazooClient(
            hosts=self._servers,
            timeout=self._asked,
            handler=_Handler(self._asked / (self._servers.count(",") + 1)),
            read_only=False,
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, max_delay=_RECONNECT_PAUSE),
            # Unused: a fenced write must never be repeated blindly, least of all after expiry.
            command_retry=KazooRetry(max_tries=1, ignore_expire=False),
            logger=_kazoo_log,
        )
        self._note_granted_timeout(client)
        client.add_listener(lambda state: self._on_state(client))
        client.start_async()

    def stop(self, timeout: float) -> None:
        """Ends the session, which deletes its ephemeral znodes at once. Returns within `timeout`
        seconds, whatever ZooKeeper does (kazoo's own stop joins threads without a bound,
        kazoo#582)."""
        client, self._client = self._client, None
        if client is not None:
            closer = threading.Thread(target=_close, args=(client,), daemon=True)
            closer.start()
            closer.join(timeout)

    def read(self, path: str, watch: Callable[[object], None] | None = None) -> Node | None:
        """The znode, or None where there is none. `watch` is called once, on kazoo's thread, when
        an existing znode changes, is deleted, or the connection is lost; the same one given again
        before that is still called once.

        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.
        """
        return self.read_all([path], watch)[0]

    def read_all(
        self, paths: Sequence[str], watch: Callable[[object], None] | None = None
    ) -> list[Node | None]:
        """As :meth:`read` for many znodes, with all requests on their way at once."""
        client = self._live_client(paths[0] if paths else "")
        pending = [(path, client.get_async(path, watch=watch)) for path in paths]
        nodes: list[Node | None] = []
        for path, result in pending:
            try:
                data, stat = _translated(path, result.get, timeout=self.timeout)
                nodes.append(
                    Node(data or b"", stat.version, stat.ephemeralOwner, stat.mtime / 1000)
                )
            except Conflict:
                nodes.append(None)
        return nodes

    def children(self, path: str, watch: Callable[[object], None] | None = None) -> list[str]:
        """Names of the znodes below `path`, none where it is missing. `watch` is called as that of
        :meth:`read`, when one is made or deleted. Raises as :meth:`read`."""
        try:
            result = self._live_client(path).get_children_async(path, watch)
            names = _translated(path, result.get, timeout=self.timeout)
        except Conflict:
            return []
        # Not what garbled answers may hold, and no path is made of.
        return [name for name in names if name and "/" not in name and name not in (".", "..")]

    def ensure(self, path: str) -> None:
        """Creates a persistent znode and its parents where they are missing. Raises as
        :meth:`read`."""
        result = self._live_client(path).ensure_path_async(path)
        _translated(path, result.get, timeout=self.timeout)

    def commit(self, *operations: Operation) -> list[int]:
        """Does all operations or none, and waits: see :meth:`Pending.result`."""
        return self.send(*operations).result()

    def send(self, *operations: Operation) -> Pending:
        """As :meth:`commit`, without waiting."""
        client = self._live_client(operations[0].path)
        transaction = client.transaction()
        for op in operations:
            if isinstance(op, Create):
                transaction.create(op.path, op.data, ephemeral=op.ephemeral)
            elif isinstance(op, SetData):
                transaction.set_data(op.path, op.data, op.version)
            elif isinstance(op, Check):
                transaction.check(op.path, op.version)
            else:
                transaction.delete(op.path, op.version)
        return Pending(self, operations).send(transaction)

    def compare_clocks(self, before: float, server: float, after: float) -> None:
        """Notes the time at which the server made a write, between two of this machine's; all in
        seconds since 1970. Warns, once, of a difference that matters."""
        was_off = abs(self.clock_offset) > _CLOCK_TOLERANCE
        # The server's clock is read in milliseconds.
        self.clock_offset = max(0.0, before - server - 0.001) or min(0.0, after - server)
        if abs(self.clock_offset) > _CLOCK_TOLERANCE and not was_off:
            logger.warning(
                "the clock of this machine is %.1f s %s that of ZooKeeper at %s: runs may come so "
                "much too %s; is NTP running on both?",
                abs(self.clock_offset),
                "ahead of" if self.clock_offset > 0 else "behind",
                self._servers,
                "early" if self.clock_offset > 0 else "late",
            )

    def _live_client(self, path: str) -> Any:
        client = self._client
        if client is None or not client.connected:
            # Asked while disconnected, kazoo would queue the request for an unknown time.
            raise Uncertain(f"{path}: no connection to ZooKeeper ({self._servers})")
        return client

    def _on_state(self, client: Any) -> None:
        if client is not self._client:
            return  # the last words of a client that was stopped
        self.connection += 1
        self._on_change()

    def _note_granted_timeout(self, client: Any) -> None:
        invoke = client._connection._invoke

        refused_since: float | None = None

        def noting(timeout: float, request: Any, xid: int | None = None) -> Any:
            nonlocal refused_since
            if not isinstance(request, Connect):
                return invoke(timeout, request, xid)
            try:
                answer = invoke(timeout, request, xid)
            except ConnectionDropped:
                now = time.monotonic()
                refused_since = refused_since or now
                if now - refused_since > self.timeout:
                    # A server hangs up on who has seen more than it has, which would be for ever
                    # where its data was lost, or a garbled answer made us believe so. We can bear
                    # to read what is old: every write says what it has read.
                    client.last_zxid = 0
                raise
            refused_since = None
            granted = answer[0].time_out / 1000
            if granted > max(self._asked, _LONGEST_GRANTED):
                raise ConnectionDropped(f"a session time-out of {granted:g} s cannot be meant")
            if granted > 0:
                self.timeout = granted
            return answer

        client._connection._invoke = noting


def changed_path(event: object) -> str | None:
    """The znode of which a watch tells; None: the connection is lost, so it may be any."""
    return getattr(event, "path", None)


@contextlib.contextmanager
def connected(
    hosts: str, session_timeout: float, timeout: float, on_change: Callable[[], None]
) -> Iterator[ZooKeeperSession]:
    """A session that is connected, for as long as the block lasts.

    Args:
        hosts: ZooKeeper connection string; a chroot in it is ignored, for paths are absolute.
        session_timeout, on_change: as those of :class:`ZooKeeperSession`.
        timeout: seconds to wait for ZooKeeper.

    Raises:
        ConnectTimeout: ZooKeeper did not answer in time.
        UnsupportedEnvironment: gevent or eventlet has patched this process.
    """
    news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def tell() -> None:
        news.put(None)
        on_change()

    session = ZooKeeperSession(hosts.partition("/")[0], session_timeout, tell)
    session.start()
    try:
        deadline = time.monotonic() + timeout
        while not session.connected:
            try:
                news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ConnectTimeout(
                    f"ZooKeeper at {hosts} did not answer within {timeout:g} s: is it running, "
                    "and is zk_beat_hosts right?"
                ) from None
        yield session
    finally:
        session.stop(_CLOSE_WITHIN)


def _without_traceback(record: logging.LogRecord) -> bool:
    """For a logging.Filter: the exception that kazoo tells of becomes part of the line."""
    if record.exc_info:
        record.msg, record.args = "%s (%r)", (record.getMessage(), record.exc_info[1])
        record.exc_info = None
    return True


_kazoo_log.addFilter(_without_traceback)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo waits a whole session time-out for one silent server; ours leaves time for the
    others, as ZooKeeper's Java client does (session time-out / number of servers)."""

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def loop() -> None:
            try:
                func(*args, **kwargs)
            except Exception:  # over an answer that it cannot parse: kazoo has logged it
                logger.debug("kazoo's loop has ended", exc_info=True)

        return super().spawn(loop)

    def __init__(self, connect_timeout: float) -> None:
        super().__init__()
        self._connect_timeout = connect_timeout

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = min(
            kwargs.get("timeout") or self._connect_timeout, self._connect_timeout
        )
        return super().create_connection(*args, **kwargs)


def _close(client: Any) -> None:
    try:
        client.stop()
        client.close()
    except Exception:  # the session is over either way
        logger.debug("while closing", exc_info=True)


def _refuse_green_threads() -> None:
    gevent = sys.modules.get("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    if (gevent and gevent.is_module_patched("threading")) or (
        eventlet and eventlet.is_monkey_patched("thread")
    ):
        raise UnsupportedEnvironment(
            "this process is monkey-patched by gevent or eventlet, in which the threads that "
            "watch ZooKeeper do not run reliably: start celery beat as a process of its own, "
            "without the patch"
        )


def _translated(path: str, call: Callable[..., Any], **kwargs: Any) -> Any:
    try:
        return call(**kwargs)
    except (KazooException, KazooTimeoutError) as exc:
        raise _error(path, exc) from None
    except Exception as exc:  # what kazoo's own reading of garbled bytes came to
        raise Uncertain(f"{path}: an answer that cannot be understood ({exc!r})") from None


def _error(path: str, exc: Exception) -> Exception:
    name = type(exc).__name__
    if isinstance(exc, _CONFLICTS):
        return Conflict(path, name)
    if isinstance(exc, _UNCERTAIN):
        return Uncertain(f"{path}: no answer from ZooKeeper ({name})")
    return ZooKeeperError(f"{path}: refused by ZooKeeper ({name}{f': {exc}' if str(exc) else ''})")


def _version_after(operation: Operation, answer: Any) -> int:
    if isinstance(operation, SetData):
        return int(answer.version)
    if isinstance(operation, Check):
        return operation.version
    return 0 if isinstance(operation, Create) else -1
