"""Adapts kazoo's client: how it connects, waits, authenticates, logs and stops.

It runs callbacks on threads of its own, which must never block (kazoo#381, #426).
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionDropped, SessionExpiredError
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.protocol.serialization import SASL, Auth, Connect
from kazoo.retry import KazooRetry
from kazoo.security import ACL, Id

from .. import clock
from ..errors import SettingsError, UnsupportedEnvironment
from ..log import LOGGERS, get_logger
from ..security import Access, Grant
from .operations import Handle
from .servers import Servers, TlsError, tls_refusal

#: Longest pause between two attempts to connect, seconds. kazoo's own default grows to a minute.
_RECONNECT_PAUSE = 1.0
#: Seconds: a longer session time-out is granted only if the setting asks for it.
_LONGEST_GRANTED = 300.0

logger = get_logger(__name__)
#: kazoo logs each attempt to connect; election/ logs what matters, once.
_kazoo_log = logging.getLogger(f"{LOGGERS}.kazoo")


def _hide_secrets(record: logging.LogRecord) -> bool:
    """Hides secrets: at DEBUG kazoo logs each request, and below that each answer. Credentials and
    the password of the session are among them."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            f"{type(arg).__name__}(***)" if isinstance(arg, (Auth, Connect, SASL)) else arg
            for arg in record.args
        )
    return record.levelno >= logging.DEBUG


def _without_traceback(record: logging.LogRecord) -> bool:
    """For a logging.Filter: puts the exception that kazoo logs into the line."""
    if record.exc_info:
        record.msg, record.args = "%s (%r)", (record.getMessage(), record.exc_info[1])
        record.exc_info = None
    return True


# In this order: in a line of text one cannot recognize a secret any more.
_kazoo_log.addFilter(_hide_secrets)
_kazoo_log.addFilter(_without_traceback)
get_logger(f"{__package__.partition('.')[0]}.kazoo")


def acl_of(grants: tuple[Grant, ...] | None) -> list[ACL] | None:
    """Returns an ACL in kazoo's form; None stands for kazoo's default."""
    if grants is None:
        return None
    return [ACL(grant.rights, Id(grant.scheme, grant.id)) for grant in grants]


class Client:
    """One client of kazoo's, which connects, again and again, from its start to its stop.

    Args:
        hosts: ``host:port,host:port``.
        asked: session time-out to ask for, seconds.
        granted: the one that was granted to the client before this, seconds; else `asked`.
        servers: takes down what becomes known of them.
        on_state: called on kazoo's thread whenever the connection came or went.
        on_refusal: called there whenever there is a :attr:`.Servers.refusal`.

    Attributes:
        kazoo: its own client, which has no types: for requests.
        timeout: the session time-out that the server granted, seconds; kazoo forgets it
            (kazoo#769).

    Raises:
        UnsupportedEnvironment: gevent or eventlet has patched this process.
    """

    def __init__(
        self,
        hosts: str,
        asked: float,
        granted: float,
        access: Access,
        servers: Servers,
        on_state: Callable[[], None],
        on_refusal: Callable[[], None],
    ) -> None:
        _refuse_green_threads()
        if _kazoo_log.level == logging.NOTSET:
            _kazoo_log.setLevel(logging.ERROR)
        self._asked = asked
        self.timeout = granted
        self._access = access
        self._on_state = on_state
        self._on_refusal = on_refusal
        self._stopped = False
        self._authenticated = not access.authenticates
        #: The fingerprint of the credentials that ZooKeeper last got.
        self._fingerprint: bytes | None = None
        #: Since when servers close our connections, on boottime(); None if they do not.
        self._refused_since: float | None = None
        self._servers = servers
        self._handler = Handler(servers, access)
        self.kazoo: Any = KazooClient(
            hosts=hosts,
            timeout=asked,
            handler=self._handler,
            read_only=False,
            # None: all rights for everybody, kazoo's own default.
            default_acl=None if access.open_by_default else acl_of(access.grants),
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, max_delay=_RECONNECT_PAUSE),
            # Unused: a fenced write must never be repeated blindly, least of all after expiry.
            command_retry=KazooRetry(max_tries=1, ignore_expire=False),
            logger=_kazoo_log,
        )
        connection = self.kazoo._connection
        self._invoke = connection._invoke
        connection._invoke = self._shake_hands
        connection._expand_client_hosts = self._addresses
        if access.authenticates or access.tls is not None:
            self._connect = connection._connect
            connection._connect = self._connect_as_somebody
        self.kazoo.add_listener(self._hear)

    def start(self) -> None:
        """Begins to connect and returns at once."""
        self.kazoo.start_async()

    def stop(self, timeout: float) -> bool:
        """Ends the session within so many seconds, whatever ZooKeeper does (kazoo's own stop may
        join threads for ever, kazoo#582). Afterwards we ignore all that kazoo reports. Returns True
        if the session has been ended, as far as we know."""
        self._stopped = True
        connected = self.connected
        closer = clock.thread(self._close, "zk-beat-close")
        closer.start()
        closer.join(timeout)
        return connected and not closer.is_alive()

    def _close(self) -> None:
        try:
            self.kazoo.stop()
            self.kazoo.close()
        except Exception:  # the session is over either way
            logger.debug("while closing", exc_info=True)

    @property
    def connected(self) -> bool:
        """True if kazoo last saw a connection. Uses no network."""
        # kazoo says that it is connected before it has authenticated (kazoo#594).
        return bool(self.kazoo.connected and self._authenticated)

    @property
    def id(self) -> int:
        """The session's id, 0 before there is one."""
        found = self.kazoo.client_id
        return int(found[0]) if found else 0

    @property
    def handle(self) -> Handle | None:
        """What one needs to continue or end the session; None without a connection."""
        found = self.kazoo.client_id
        return Handle(int(found[0]), bytes(found[1]), self._servers.known) if found else None

    @property
    def dead(self) -> bool:
        """True when kazoo's loop has ended for good (refused credentials, an answer it cannot
        parse): only a new client helps."""
        thread = self.kazoo._connection._connection_routine
        return thread is not None and not thread.is_alive()

    @property
    def outdated(self) -> bool:
        """True if the credentials have changed since ZooKeeper got them."""
        if not self._access.identified:
            return False
        try:
            return self._access.identity().fingerprint() != self._fingerprint
        except SettingsError:
            return False

    def _hear(self, state: object) -> None:
        if not self._stopped:
            self._on_state()

    def _addresses(self) -> list[tuple[str, str, int]]:
        return self._servers.addresses(self.kazoo.hosts, min(self._asked, self.timeout))

    def _shake_hands(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        """Notes what a server grants. If servers keep closing our connections, forgets how much we
        have seen."""
        if not isinstance(request, Connect):
            return self._invoke(timeout, request, xid)
        # kazoo's own value assumes one server for each name.
        timeout = min(timeout, self._servers.patience)
        try:
            answer = self._invoke(timeout, request, xid)
        except ConnectionDropped:
            now = clock.boottime()
            self._refused_since = self._refused_since or now
            if now - self._refused_since > self.timeout:
                # A server closes the connection if we have seen more than it has. If its data was
                # lost, or a garbled answer made us believe so, it would do that for ever. We can
                # bear to read old data: every write says what it is based on.
                self.kazoo.last_zxid = 0
            raise
        self._refused_since = None
        self._servers.note_answer()
        granted = answer[0].time_out / 1000
        if granted > max(self._asked, _LONGEST_GRANTED):
            raise ConnectionDropped(f"a session time-out of {granted:g} s is not plausible")
        if granted > 0:
            self.timeout = granted
        return answer

    def _connect_as_somebody(self, host: str, address: str, port: int) -> Any:
        """Makes each attempt to connect use the credentials as they are then, and treats a refusal
        as one more failed attempt: kazoo itself would end its loop, and the session."""
        kazoo, connection, access = self.kazoo, self.kazoo._connection, self._access
        self._authenticated = not access.authenticates
        self._handler.server_name = host
        try:
            identity = access.identity()
            self._fingerprint = identity.fingerprint()
            if identity.user is not None:
                kazoo.auth_data = {("digest", identity.user)}
            connection.sasl_options = identity.sasl
            answer = self._connect(host, address, port)
        except SessionExpiredError:
            raise
        except Exception as exc:
            self._servers.note_failure(exc, host, (address, str(port)), kazoo.connected)
            if self._servers.refusal is not None and not self._stopped:
                self._on_refusal()
            if isinstance(exc, (ConnectionDropped, KazooTimeoutError)):
                raise
            raise ConnectionDropped(type(exc).__name__) from None
        finally:
            kazoo.auth_data = set()
            connection.sasl_options = None
        self._servers.note_success()
        if not self._authenticated:
            self._authenticated = True
            self._hear(None)
        return answer


class Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo waits a whole session time-out for one silent server. This leaves time for the others.

    TLS is ours, too: kazoo trusts the system's CAs in addition to the given one, checks host names
    only on request, and 2.10 never does.
    """

    def __init__(self, servers: Servers, access: Access) -> None:
        super().__init__()
        self._servers = servers
        self._access = access
        #: The names as the setting has them; kazoo 2.10 passes only the address.
        self.server_name = ""

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def loop() -> None:
            try:
                func(*args, **kwargs)
            except Exception:  # an answer that kazoo cannot parse: kazoo has logged it
                logger.debug("kazoo's loop has ended", exc_info=True)

        return super().spawn(loop)

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._create_connection(*args, **kwargs)
        except Exception as exc:
            ip, port = kwargs["address"][:2]
            self._servers.note_unreachable(ip, port, exc)
            raise

    def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        timeout = kwargs["timeout"] = self._servers.patience
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
            raise TlsError(tls_refusal(self._access, server, exc), certain) from None

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """TLS may already have read from the socket what kazoo waits for."""
        ready = [each for each in args[0] if isinstance(each, ssl.SSLSocket) and each.pending() > 0]
        if not ready:
            return super().select(*args, **kwargs)
        others = super().select(args[0], args[1], args[2], 0)
        return [*ready, *(each for each in others[0] if each not in ready)], *others[1:]


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
