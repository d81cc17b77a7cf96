"""The one place that builds, bounds and stops a KazooClient, and that sees kazoo's exceptions.

kazoo runs callbacks on threads of its own, which must never block (kazoo#381, #426): the ones
given to :class:`ZooKeeperSession` are called there and may only hand a token to another thread.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import (
    EXCEPTIONS,
    AuthFailedError,
    BadVersionError,
    ConnectionClosedError,
    ConnectionDropped,
    ConnectionLoss,
    KazooException,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    OperationTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SASLException,
    SessionExpiredError,
    SessionMovedError,
    ZookeeperError,
)
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.protocol.serialization import SASL, Auth, Connect
from kazoo.protocol.states import ZnodeStat
from kazoo.retry import KazooRetry
from kazoo.security import ACL, Id

from .. import clock
from ..errors import (
    AccessDenied,
    Conflict,
    ConnectTimeout,
    QuotaExceeded,
    SettingsError,
    Uncertain,
    UnsupportedEnvironment,
    ZooKeeperError,
)
from ..log import get_logger
from ..security import Access, Grant
from .operations import Check, Create, Delete, Node, Operation, Pending, SetData
from .quota import quota_of

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
_OVER_QUOTA = EXCEPTIONS[-125]
#: Also what a server answers that wants all its clients to authenticate.
_DENIALS = (NoAuthError, AuthFailedError, EXCEPTIONS[-124])

#: Seconds: a longer session time-out is granted only to who asks for it.
_LONGEST_GRANTED = 300.0
#: Seconds that :func:`connected` waits for the end of its session.
_CLOSE_WITHIN = 2.0
#: Most servers that are named in a line.
_MOST_NAMED = 5
#: Seconds that clocks may be apart without a word.
CLOCK_TOLERANCE = 1.0

logger = get_logger(__name__)
#: kazoo logs each attempt to connect; what matters of it is said by election.py, once.
_kazoo_log = logging.getLogger("celery_zk_beat.kazoo")


def _hide_secrets(record: logging.LogRecord) -> bool:
    """kazoo logs each request in DEBUG, and below that each answer; credentials and the password of
    the session are among them."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            f"{type(arg).__name__}(***)" if isinstance(arg, (Auth, Connect, SASL)) else arg
            for arg in record.args
        )
    return record.levelno >= logging.DEBUG


def _without_traceback(record: logging.LogRecord) -> bool:
    """For a logging.Filter: the exception that kazoo tells of becomes part of the line."""
    if record.exc_info:
        record.msg, record.args = "%s (%r)", (record.getMessage(), record.exc_info[1])
        record.exc_info = None
    return True


# In this order: what is made one line of text is no longer to be known for a secret.
_kazoo_log.addFilter(_hide_secrets)
_kazoo_log.addFilter(_without_traceback)
get_logger(_kazoo_log.name)


#: As what kazoo reads the answers.
_ANSWERS = {Create: str, SetData: ZnodeStat, Check: bool, Delete: bool}


class ZooKeeperSession:
    """ZooKeeper sessions, one after another, for as long as the object is started.

    Args:
        servers: ``host:port,host:port``, without a chroot: paths are always absolute.
        timeout: session time-out to ask for, seconds.
        on_change: called on kazoo's thread whenever the connection came or went.
        access: who this is to ZooKeeper, how it is spoken to, and the ACL of what is made.

    Reading and writing may be done from any thread that is not kazoo's own.
    """

    def __init__(
        self,
        servers: str,
        timeout: float,
        on_change: Callable[[], None],
        access: Access | None = None,
    ) -> None:
        self._servers = servers
        self._asked = timeout
        self._on_change = on_change
        self.access = access or Access()
        self._client: Any = None
        #: Why each server was left again, while none is connected: credentials, certificates.
        self._refusals: dict[tuple[str, ...], str] = {}
        #: The same, where it may as well be something else.
        self._suspicion: str | None = None
        #: Seconds for which a server may be silent before the next one is tried.
        self._patience = timeout
        #: Address and port of each server to its name in the setting.
        self._names: dict[tuple[str, ...], str] = {}
        #: What became of the last attempt to connect to each address, where it was answered; and
        #: names for which there is none.
        self._unreachable: dict[tuple[str, ...], str] = {}
        #: The session time-out that the server granted, seconds; kazoo forgets it (kazoo#769).
        self.timeout = timeout
        #: Changes whenever the connection comes or goes: what was learned under another number
        #: must be read again. It changes on the way down too, so that there is no instant at
        #: which the next connection is up and still bears the number of the last.
        self.connection = 0
        #: Seconds by which this machine's clock is at least ahead of (or, below 0, behind) the
        #: server's, by the last write; 0 as long as none shows it.
        self.clock_offset = 0.0
        #: What the server's clock said at the last write, and when that was, on boottime().
        self._server_clock: tuple[float, float] | None = None

    @property
    def server_time(self) -> float:
        """What the server's clock says now, seconds since 1970, going by the last write; what this
        machine's says, as long as there was none. Any thread may ask."""
        if self._server_clock is None:
            return clock.timestamp()
        server, at = self._server_clock
        return server + clock.boottime() - at

    @property
    def connected(self) -> bool:
        """No network: what kazoo last saw."""
        client = self._client
        # kazoo says that it is connected before it has told who it is (kazoo#594).
        return client is not None and bool(client.connected and client.authenticated)

    @property
    def refusal(self) -> str | None:
        """Why there is no connection, in a line, where that is known: it is about a setting, or a
        certificate. Trying goes on."""
        return next(iter(self._refusals.values()), self._suspicion)

    @property
    def trouble(self) -> str:
        """Which of the servers have no address, or answer and cannot be connected to, and which
        setting names them, for the end of a line; empty where all are silent."""
        found = list(dict.fromkeys(self._unreachable.copy().values()))
        if not found:
            return ""
        more = f" and {len(found) - _MOST_NAMED} more" if found[_MOST_NAMED:] else ""
        said = ", ".join(found[:_MOST_NAMED])
        return f" ({said}{more}: is {self.access.name('hosts')} right?)"

    @property
    def refused(self) -> bool:
        """Whether each of the servers that can be reached has shown such a reason."""
        refusals, rest = self._refusals, self._names.keys() - self._unreachable.keys()
        return bool(refusals) and all(key in refusals for key in rest)

    @property
    def outdated(self) -> bool:
        """Whether the credentials are others now than when they were shown to ZooKeeper."""
        if not self.access.identified or self._client is None:
            return False
        try:
            return bool(self.access.identity().fingerprint() != self._client.fingerprint)
        except SettingsError:
            return False

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
            handler=_Handler(lambda: self._patience, self.access, self._note_unreachable),
            read_only=False,
            # None: all for the world, kazoo's own default.
            default_acl=None if self.access.open_by_default else _acl(self.access.grants),
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, max_delay=_RECONNECT_PAUSE),
            # Unused: a fenced write must never be repeated blindly, least of all after expiry.
            command_retry=KazooRetry(max_tries=1, ignore_expire=False),
            logger=_kazoo_log,
        )
        client.authenticated = not self.access.authenticates
        client.fingerprint = None
        self._watch_handshakes(client)
        client._connection._expand_client_hosts = lambda: self._addresses(client)
        if self.access.authenticates or self.access.tls is not None:
            self._authenticate(client)
        client.add_listener(lambda state: self._on_state(client))
        client.start_async()

    def stop(self, timeout: float) -> None:
        """Ends the session, which deletes its ephemeral znodes at once. Returns within `timeout`
        seconds, whatever ZooKeeper does (kazoo's own stop joins threads without a bound,
        kazoo#582)."""
        client, self._client = self._client, None
        if client is not None:
            closer = clock.thread(lambda: _close(client), "zk-beat-close")
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
                data, stat = self._translated(path, result.get, timeout=self.timeout)
                nodes.append(
                    Node(data or b"", stat.version, stat.ephemeralOwner, stat.mtime / 1000)
                )
            except Conflict:
                nodes.append(None)
        return nodes

    def catch_up(self, path: str) -> None:
        """Waits until the server has all that was written before, or will ever be by an earlier
        connection of this session: what is read from then on is no older. (A server that one comes
        to anew may be behind: ZooKeeper Programmer's Guide, consistency guarantees. It is a write,
        of nothing, because ``sync`` is none.) `path`: any. Raises as :meth:`read`."""
        with contextlib.suppress(Conflict):
            self.commit(Check(path, -1))

    def exists(self, path: str, watch: Callable[[object], None] | None = None) -> bool:
        """Whether there is such a znode. `watch` is called as that of :meth:`read` and, other than
        there, also when a missing znode is made. Raises as :meth:`read`."""
        result = self._live_client(path).exists_async(path, watch)
        return self._translated(path, result.get, timeout=self.timeout) is not None

    def children(self, path: str, watch: Callable[[object], None] | None = None) -> list[str]:
        """Names of the znodes below `path`, none where it is missing. `watch` is called as that of
        :meth:`read`, when one is made or deleted. Raises as :meth:`read`."""
        try:
            result = self._live_client(path).get_children_async(path, watch)
            names = self._translated(path, result.get, timeout=self.timeout)
        except Conflict:
            return []
        # Not what garbled answers may hold, and no path is made of.
        return [name for name in names if name and "/" not in name and name not in (".", "..")]

    def ensure(self, path: str) -> None:
        """Creates a persistent znode and its parents where they are missing; needs no right on
        those that are there. Raises as :meth:`read`."""
        client = self._live_client(path)
        try:
            result = client.ensure_path_async(path)
            self._translated(path, result.get, timeout=self.timeout)
        except AccessDenied:
            # To make one is a right on its parent, and to look whether there is one needs none.
            while path != "/" and not self.exists(path):
                path = path.rpartition("/")[0] or "/"
            raise AccessDenied(self._denial(path, "NoAuth")) from None

    def grants(self, paths: Sequence[str]) -> list[list[Grant]]:
        """The ACL of each znode, empty where there is none or it may not be read. Raises as
        :meth:`read`."""
        client = self._live_client(paths[0])
        found: list[list[Grant]] = []
        for path, result in [(path, client.get_acls_async(path)) for path in paths]:
            try:
                acls, _ = self._translated(path, result.get, timeout=self.timeout)
                found.append([Grant(acl.id.scheme, acl.id.id, acl.perms) for acl in acls])
            except (Conflict, AccessDenied):
                found.append([])
        return found

    def commit(self, *operations: Operation) -> list[int]:
        """Does all operations or none, and waits: see :meth:`.Pending.result`."""
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
        sent, sent_at = clock.boottime(), clock.timestamp()
        answer = transaction.commit_async()
        return Pending(sent, answer.ready, lambda: self._versions(operations, answer, sent_at))

    def _versions(self, operations: Sequence[Operation], answer: Any, sent_at: float) -> list[int]:
        """See :meth:`.Pending.result`; sent when this machine's clock said `sent_at`."""
        what = operations[0].path
        answers = self._translated(what, answer.get, timeout=self.timeout)
        for operation, each in zip(operations, answers):
            if isinstance(each, Exception) and not isinstance(each, _BYSTANDER):
                raise self._error(_denying(operation, each), each)
        if [type(each) for each in answers] != [_ANSWERS[type(each)] for each in operations]:
            raise Uncertain(f"{what}: an answer that fits no question")
        for each in answers:
            if isinstance(each, ZnodeStat):
                self._compare_clocks(sent_at, each.mtime / 1000, clock.timestamp())
        return [_version_after(op, each) for op, each in zip(operations, answers)]

    def _compare_clocks(self, before: float, server: float, after: float) -> None:
        """Notes the time at which the server made a write, between two of this machine's; all in
        seconds since 1970. Warns, once, of a difference that matters."""
        self._server_clock = server, clock.boottime()
        was_off = abs(self.clock_offset) > CLOCK_TOLERANCE
        # The server's clock is read in milliseconds.
        self.clock_offset = max(0.0, before - server - 0.001) or min(0.0, after - server)
        if abs(self.clock_offset) > CLOCK_TOLERANCE and not was_off:
            logger.warning(
                "the clock of this machine is %.1f s %s that of ZooKeeper at %s: runs may come so "
                "much too %s; is NTP running on both?",
                abs(self.clock_offset),
                "ahead of" if self.clock_offset > 0 else "behind",
                self._servers,
                "early" if self.clock_offset > 0 else "late",
            )

    def clock_moved(self, seconds: float) -> None:
        """To be called when this machine's clock was set: forward, or, below 0, back."""
        self.clock_offset += seconds

    def _live_client(self, path: str) -> Any:
        client = self._client
        if client is None or not self.connected:
            # Asked while disconnected, kazoo would queue the request for an unknown time.
            raise Uncertain(f"{path}: no connection to ZooKeeper ({self._servers})")
        return client

    def _on_state(self, client: Any) -> None:
        if client is not self._client:
            return  # the last words of a client that was stopped
        self.connection += 1
        self._on_change()

    def _addresses(self, client: Any) -> list[tuple[str, str, int]]:
        """Of all servers, asked for anew before each round of attempts. A name may stand for
        several, and then each of them has its part of the session time-out, as if it had a name of
        its own: all are tried within a session, as ZooKeeper's Java client has it."""
        found: dict[tuple[str, str, int], None] = {}
        unreachable: dict[tuple[str, ...], str] = {}
        for host, port in client.hosts:
            try:
                known = socket.getaddrinfo(host, port, 0, 0, socket.IPPROTO_TCP)
            except (OSError, UnicodeError) as exc:
                why = getattr(exc, "strerror", None) or exc
                unreachable[(host,)] = f"{host} does not resolve: {why}"
            else:
                found.update({(host, str(each[4][0]), port): None for each in known})
        names: dict[tuple[str, ...], str] = {(ip, str(port)): host for host, ip, port in found}
        old = self._unreachable
        unreachable.update({key: old[key] for key in names if key in old})
        if client is self._client:
            self._names, self._unreachable = names, unreachable
            self._refusals = {key: why for key, why in self._refusals.items() if key in names}
            self._patience = min(self._asked, self.timeout) / max(1, len(found))
        addresses = list(found)
        random.shuffle(addresses)
        return addresses

    def _note_unreachable(self, ip: str, port: int, exc: Exception) -> None:
        key = ip, str(port)
        self._unreachable.pop(key, None)
        name = self._names.get(key, ip)
        server = f"{name}:{port}" if name == ip else f"{name}:{port} ({ip})"
        if isinstance(exc, ConnectionRefusedError):
            self._unreachable[key] = f"{server} refuses connections"
        elif not isinstance(exc, (TimeoutError, socket.timeout)) and isinstance(exc, OSError):
            self._unreachable[key] = f"{server}: {(exc.strerror or str(exc)).lower()}"

    def _authenticate(self, client: Any) -> None:
        """Has each attempt to connect take the credentials as they are then, and a refusal be
        nothing but another failed attempt: kazoo itself would end its loop, and the session."""
        connection = client._connection
        connect = connection._connect

        def connecting(host: str, address: str, port: int) -> Any:
            access = self.access
            client.authenticated = not access.authenticates
            client.handler.server_name = host
            try:
                identity = access.identity()
                client.fingerprint = identity.fingerprint()
                if identity.user is not None:
                    client.auth_data = {("digest", identity.user)}
                connection.sasl_options = identity.sasl
                answer = connect(host, address, port)
            except SessionExpiredError:
                raise
            except Exception as exc:
                if client is self._client:  # or it was stopped
                    self._note_failure(exc, host, (address, str(port)))
                if isinstance(exc, (ConnectionDropped, KazooTimeoutError)):
                    raise
                raise ConnectionDropped(type(exc).__name__) from None
            finally:
                client.auth_data = set()
                connection.sasl_options = None
            if client is self._client:
                self._refusals.clear()
                self._suspicion = None
            if not client.authenticated:
                client.authenticated = True
                self._on_state(client)
            return answer

        connection._connect = connecting

    def _note_failure(self, exc: Exception, host: str, address: tuple[str, str]) -> None:
        self._suspicion = None
        self._refusals.pop(address, None)
        why = self._refusal(exc, f"{host}:{address[1]}")
        if why is not None:
            self._refusals[address] = why
        if self.refusal is not None:
            self._on_change()

    def _refusal(self, exc: Exception, server: str) -> str | None:
        """What the end of an attempt to connect says about a setting; None: nothing."""
        access = self.access
        if isinstance(exc, SettingsError):
            return str(exc)
        if isinstance(exc, _TlsError):
            if exc.certain:
                return str(exc)
            self._suspicion = str(exc)
            return None
        failure = _sasl_failure(exc)
        if failure is not None:
            return f"{access.name('sasl')}: {failure}"
        if isinstance(exc, ZookeeperError):
            names = [access.name(name) for name in ("auth", "sasl") if getattr(access, name)]
            return f"ZooKeeper at {server} refuses {' or '.join(names)}"
        client = self._client
        if client is None or client.connected:
            return None  # the connection was lost while it was asked who we are
        if access.tls is not None and isinstance(exc, ConnectionDropped):
            alert, name = exc.__context__, access.name("tls")
            if isinstance(alert, ssl.SSLError):
                return _tls_refusal(access, server, alert)
            self._suspicion = (
                f"ZooKeeper at {server} hangs up after the TLS handshake: it has no quorum, or "
                f"wants another certificate in {name}"
            )
        return None

    def _translated(self, path: str, call: Callable[..., Any], **kwargs: Any) -> Any:
        """What `call` returns, its errors as ours."""
        try:
            return call(**kwargs)
        except (KazooException, KazooTimeoutError) as exc:
            raise self._error(path, exc) from None
        except Exception as exc:  # what kazoo's own reading of garbled bytes came to
            raise Uncertain(f"{path}: an answer that cannot be understood ({exc!r})") from None

    def _error(self, path: str, exc: Exception) -> Exception:
        """kazoo's error as ours."""
        name = type(exc).__name__
        if isinstance(exc, _CONFLICTS):
            return Conflict(path, name)
        if isinstance(exc, _UNCERTAIN):
            return Uncertain(f"{path}: no answer from ZooKeeper ({name})")
        if isinstance(exc, _DENIALS):
            return AccessDenied(self._denial(path, name.replace("Error", "")))
        if isinstance(exc, _OVER_QUOTA):
            return QuotaExceeded(self._over_quota(path))
        return ZooKeeperError(
            f"{path}: refused by ZooKeeper ({name}{f': {exc}' if str(exc) else ''})"
        )

    def _over_quota(self, path: str) -> str:
        """Names the quota, not the znode that would have been written: that is no more to blame
        than others below the same quota."""
        quota = quota_of(self, path)
        if quota is None:
            return (
                f"{path}: refused by ZooKeeper (QuotaExceeded): the quota of this znode, or of one "
                "above it, is used up: zkCli.sh listquota shows it, setquota raises it, delquota "
                "removes it"
            )
        return (
            f"ZooKeeper refuses to write below {quota.path} (QuotaExceeded): the quota of "
            f"{quota.limits} of that znode is used up: {quota.remedy}"
        )

    def _denial(self, path: str, name: str) -> str:
        if not self.access.identified:
            names = self.access.credentials("or")
            return f"{path}: denied by ZooKeeper ({name}), as nobody: set {names}"
        names = self.access.credentials("and")
        return (
            f"{path}: denied by ZooKeeper ({name}) to the user of {names}: is that the right one, "
            f"and is it in the znode's ACL (getAcl {path})?"
        )

    def _watch_handshakes(self, client: Any) -> None:
        """Notes what a server grants; and has a client that servers hang up on begin anew."""
        invoke = client._connection._invoke
        refused_since: float | None = None

        def handshake(timeout: float, request: Any, xid: int | None = None) -> Any:
            nonlocal refused_since
            if not isinstance(request, Connect):
                return invoke(timeout, request, xid)
            # kazoo's own is for as many servers as there are names.
            timeout = min(timeout, self._patience)
            try:
                answer = invoke(timeout, request, xid)
            except ConnectionDropped:
                now = clock.boottime()
                refused_since = refused_since or now
                if now - refused_since > self.timeout:
                    # A server hangs up on who has seen more than it has, which would be for ever
                    # where its data was lost, or a garbled answer made us believe so. We can bear
                    # to read what is old: every write says what it has read.
                    client.last_zxid = 0
                raise
            refused_since = None
            if client is self._client:
                self._unreachable = {}
            granted = answer[0].time_out / 1000
            if granted > max(self._asked, _LONGEST_GRANTED):
                raise ConnectionDropped(f"a session time-out of {granted:g} s cannot be meant")
            if granted > 0:
                self.timeout = granted
            return answer

        client._connection._invoke = handshake


@contextlib.contextmanager
def connected(
    hosts: str,
    session_timeout: float,
    timeout: float,
    on_change: Callable[[], None],
    access: Access | None = None,
) -> Iterator[ZooKeeperSession]:
    """A session that is connected, for as long as the block lasts.

    Args:
        hosts: ZooKeeper connection string; a chroot in it is ignored, for paths are absolute.
        session_timeout, on_change, access: as those of :class:`ZooKeeperSession`.
        timeout: seconds to wait for ZooKeeper.

    Raises:
        ConnectTimeout: ZooKeeper did not answer in time, or refuses this access.
        UnsupportedEnvironment: gevent or eventlet has patched this process.
    """
    news = clock.Wakeup()

    def tell() -> None:
        news.set()
        on_change()

    session = ZooKeeperSession(hosts.partition("/")[0], session_timeout, tell, access)
    session.start()
    try:
        deadline = clock.boottime() + timeout
        while not session.connected:
            if session.refused:
                raise ConnectTimeout(str(session.refusal))
            if not news.wait(deadline - clock.boottime()):
                if session.refusal is not None:
                    raise ConnectTimeout(session.refusal) from None
                setting = (
                    "" if session.trouble else f", and is {session.access.name('hosts')} right"
                )
                raise ConnectTimeout(
                    f"ZooKeeper at {hosts} did not answer within {timeout:g} s: is it running"
                    f"{setting}?{session.trouble}"
                ) from None
        yield session
    finally:
        session.stop(_CLOSE_WITHIN)


class _TlsError(Exception):
    """Not an OSError, of which kazoo would keep too little.

    Attributes:
        certain: whether it cannot be that the network, or the server, has just failed.
    """

    def __init__(self, message: str, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


def _tls_refusal(access: Access, server: str, exc: Exception) -> str:
    """What went wrong with TLS, in a line."""
    name = access.name("tls")
    if isinstance(exc, ssl.SSLCertVerificationError):
        why = exc.verify_message.rstrip(".")
        return f"{name}: the certificate of ZooKeeper at {server} is not accepted: {why}"
    reason = exc.reason if isinstance(exc, ssl.SSLError) else None
    why = (reason or getattr(exc, "strerror", None) or str(exc)).lower().replace("_", " ")
    if " alert " in why:
        ours = f"the certificate of {name}" if access.tls and access.tls.certificate else name
        return f"ZooKeeper at {server} refuses {ours}: {why}"
    return f"{name}: no TLS with ZooKeeper at {server} ({why}): is that its secureClientPort?"


def _sasl_failure(exc: Exception) -> str | None:
    """What went wrong on our side of SASL, without a secret; None: nothing did."""
    cause = exc.__cause__
    # kazoo lets the error through when it is the look-up of a principal's ticket that fails.
    for each in (exc, cause):
        if each is not None and type(each).__module__ == "kerberos":
            # Pairs of a text and a code, the general one first; 0 is no error.
            said = [pair[0] for pair in each.args if isinstance(pair, tuple) and pair[-1]]
            return f"Kerberos: {said[-1] if said else type(each).__name__}"
    in_library = cause is not None and not isinstance(cause, ConnectionDropped)
    if in_library and isinstance(exc, (SASLException, AuthFailedError)):
        return f"{type(cause).__name__} in the SASL library"
    return None


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo waits a whole session time-out for one silent server; ours leaves time for the
    others.

    TLS is ours: kazoo trusts the system's CAs beside the given one, checks no host name unless it
    is told to, and 2.10 never does."""

    def __init__(
        self,
        patience: Callable[[], float],
        access: Access,
        note: Callable[[str, int, Exception], object],
    ) -> None:
        super().__init__()
        self._patience = patience
        self._access = access
        self._note = note
        #: As the setting names it; kazoo 2.10 tells only the address.
        self.server_name = ""

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def loop() -> None:
            try:
                func(*args, **kwargs)
            except Exception:  # over an answer that it cannot parse: kazoo has logged it
                logger.debug("kazoo's loop has ended", exc_info=True)

        return super().spawn(loop)

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._create_connection(*args, **kwargs)
        except Exception as exc:
            ip, port = kwargs["address"][:2]
            self._note(ip, port, exc)
            raise

    def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        timeout = kwargs["timeout"] = self._patience()
        if self._access.tls is None:
            return super().create_connection(*args, **kwargs)
        context = self._access.tls_context()
        address = kwargs["address"]
        connection = socket.create_connection(address, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return context.wrap_socket(connection, server_hostname=self.server_name)
        except (OSError, ValueError) as exc:
            connection.close()
            if isinstance(exc, (TimeoutError, socket.timeout)):  # one class since Python 3.10
                raise
            certain = not isinstance(exc, (ConnectionError, ssl.SSLEOFError))
            server = f"{self.server_name}:{address[1]}"
            raise _TlsError(_tls_refusal(self._access, server, exc), certain) from None

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """TLS may have read from the socket already what kazoo waits for."""
        ready = [each for each in args[0] if isinstance(each, ssl.SSLSocket) and each.pending() > 0]
        if not ready:
            return super().select(*args, **kwargs)
        others = super().select(args[0], args[1], args[2], 0)
        return [*ready, *(each for each in others[0] if each not in ready)], *others[1:]


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


def _denying(operation: Operation, answer: Exception) -> str:
    """The znode whose ACL a refusal is about: making and deleting are rights on the parent."""
    if isinstance(answer, NoAuthError) and isinstance(operation, (Create, Delete)):
        return operation.path.rpartition("/")[0] or "/"
    return operation.path


def _acl(grants: Sequence[Grant]) -> list[Any]:
    return [ACL(grant.rights, Id(grant.scheme, grant.id)) for grant in grants]


def _version_after(operation: Operation, answer: Any) -> int:
    if isinstance(operation, SetData):
        return int(answer.version)
    if isinstance(operation, Check):
        return operation.version
    return 0 if isinstance(operation, Create) else -1
