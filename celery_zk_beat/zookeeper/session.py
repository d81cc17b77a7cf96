"""ZooKeeper sessions: reading, writing, and errors of our own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import ZnodeStat

from .. import clock
from ..errors import AccessDenied, Conflict, ConnectTimeout, Uncertain, ZkBeatError
from ..log import get_logger
from ..security import Access, Grant
from . import answers, reads
from .client import Client, acl_of
from .operations import Check, Create, Handle, Node, Operation, Pending, SetData
from .quota import quota_of
from .servers import Servers

#: Seconds that :func:`connected` waits for the end of its session.
_CLOSE_WITHIN = 2.0
#: Clocks may differ by so many seconds before we warn.
CLOCK_TOLERANCE = 1.0

logger = get_logger(__name__)


class ZooKeeperSession:
    """ZooKeeper sessions, one after another, for as long as the object is started.

    Args:
        hosts: ``host:port,host:port``, without a chroot: paths are always absolute.
        timeout: session time-out to ask for, seconds.
        on_change: called on kazoo's thread whenever the connection came or went. It must never
            block (kazoo#381, #426): it may only hand a token to another thread.
        access: credentials, TLS, and the ACL of new znodes.

    Reading and writing may be done from any thread that is not kazoo's own.
    """

    def __init__(
        self,
        hosts: str,
        timeout: float,
        on_change: Callable[[], None],
        access: Access | None = None,
    ) -> None:
        self._hosts = hosts
        self._asked = timeout
        self._on_change = on_change
        self.access = access or Access()
        self._client: Client | None = None
        #: The servers: where they are, and why we are connected to none. Known since the last
        #: start.
        self.servers = Servers(timeout, self.access)
        #: The session time-out that was last granted; used while there is no client.
        self._granted = timeout
        #: Changes whenever the connection comes or goes: what was learned under another number must
        #: be read again. It changes on the way down too: so the next connection is never up while
        #: this still has the number of the last.
        self.connection = 0
        #: We have warned that the clocks differ, and they have not agreed since.
        self._has_warned = False
        #: What the server's clock said at the last write, when that was sent, and when its answer
        #: was read, on boottime().
        self._server_clock: tuple[float, float, float] | None = None

    @property
    def server_time(self) -> float:
        """The server's time in seconds since 1970, computed from the last write; before the first
        write this machine's time. It may be behind by as long as the answer took to be read. For
        any thread."""
        if self._server_clock is None:
            return clock.timestamp()
        server, _, read = self._server_clock
        return server + clock.boottime() - read

    @property
    def latest_server_time(self) -> float:
        """As :attr:`server_time`, but it may be ahead by so long, and is never behind."""
        if self._server_clock is None:
            return clock.timestamp()
        server, sent, _ = self._server_clock
        return server + clock.boottime() - sent

    @property
    def likely_server_time(self) -> float:
        """What this machine's clock says, if the server's may say that, too: else the time nearest
        to it that it may say. So it is no worse than :attr:`server_time`, whatever the clock says,
        and needs no second look at it."""
        now = clock.timestamp()
        return min(max(now, self.server_time), self.latest_server_time)

    @property
    def clock_offset(self) -> float:
        """By how many seconds at least this machine's clock is ahead of the server's (negative:
        behind); 0 if no write has shown it. It is right as soon as this machine's clock is set:
        what we know of the server's goes by boottime(), which nobody sets. If you subtract it from
        an earlier look at the clock, that may have been set in between. For any thread."""
        if self._server_clock is None:
            return 0.0
        server, sent, read = self._server_clock
        before, now, after = clock.timestamp(), clock.boottime(), clock.timestamp()
        # The server's clock is read in milliseconds.
        ahead = before - (server + now - sent) - 0.001
        return max(0.0, ahead) or min(0.0, after - (server + now - read))

    @property
    def connected(self) -> bool:
        """True while requests are answered, as far as kazoo knows. Uses no network."""
        client = self._client
        return client is not None and client.connected

    @property
    def timeout(self) -> float:
        """The session time-out that the server granted, in seconds; before that the one to ask
        for."""
        client = self._client
        return self._granted if client is None else client.timeout

    @property
    def outdated(self) -> bool:
        """True when the credentials have changed: :attr:`.Client.outdated`."""
        client = self._client
        return client is not None and client.outdated

    @property
    def dead(self) -> bool:
        """True when only another start helps: :attr:`.Client.dead`."""
        client = self._client
        return client is not None and client.dead

    @property
    def id(self) -> int:
        """The session's id, 0 before there is one."""
        client = self._client
        return 0 if client is None else client.id

    @property
    def handle(self) -> Handle | None:
        """What one needs to continue or end the session; None without a connection."""
        client = self._client
        return None if client is None else client.handle

    @property
    def granted_otherwise(self) -> str:
        """A text for a log line, if the server granted another time-out than we asked for."""
        return "" if self.timeout == self._asked else f" (asked for {self._asked:g} s)"

    def start(self) -> None:
        """Begins to connect and returns at once. Only after the last fork: a child that inherits
        a session would share its socket (kazoo#519, #628).

        Raises:
            UnsupportedEnvironment: gevent or eventlet has patched this process.
        """
        self._client = client = Client(
            self._hosts,
            self._asked,
            self._granted,
            self.access,
            self.servers,
            on_state=self._on_state,
            on_refusal=self._on_change,
        )
        client.start()

    def stop(self, timeout: float) -> bool:
        """Ends the session, which deletes its ephemeral znodes at once. Returns within `timeout`
        seconds, whatever ZooKeeper does: True if there is no session any more."""
        client = self._client
        if client is None:
            return True
        self._granted, self._client = client.timeout, None
        self.servers = Servers(self._asked, self.access)
        return client.stop(timeout)

    def read(self, path: str, watch: Callable[[object], None] | None = None) -> Node | None:
        """Returns the znode, or None. `watch` is called once, on kazoo's thread, when an existing
        znode changes or is deleted, or the connection is lost. If you pass the same watch again
        before that, it is still called only once.

        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.
        """
        return self.read_all([path], watch)[0]

    def read_all(
        self, paths: Sequence[str], watch: Callable[[object], None] | None = None
    ) -> list[Node | None]:
        """Reads many znodes with concurrent requests: see :meth:`read`."""
        kazoo = self._kazoo(paths[0] if paths else "")
        nodes: list[Node | None] = []
        if watch is None:
            for asked, result in reads.send(kazoo, paths):
                found = self._answer(asked[0], result)
                if len(found) != len(asked):
                    raise Uncertain(f"{asked[0]}: {len(found)} of {len(asked)} answers")
                nodes += [self._node(*each) for each in zip(asked, found)]
            return nodes
        for path, result in [(path, kazoo.get_async(path, watch=watch)) for path in paths]:
            try:
                nodes.append(self._node(path, self._answer(path, result)))
            except Conflict:
                nodes.append(None)
        return nodes

    def _node(self, path: str, found: Any) -> Node | None:
        if isinstance(found, NoNodeError):
            return None
        if isinstance(found, KazooException):
            raise self._error(path, found)
        data, stat = found
        return Node(data or b"", stat.version, stat.ephemeralOwner, stat.mtime / 1000)

    def catch_up(self, path: str) -> None:
        """Waits until the server has everything that an earlier connection of this session has
        written or may still write: what we read from then on is no older. (After a reconnect
        another server may be behind: ZooKeeper Programmer's Guide, consistency guarantees. This
        writes nothing in particular, because ``sync`` is no write.) `path`: any. Raises as
        :meth:`read`."""
        with contextlib.suppress(Conflict):
            self.commit(Check(path, -1))

    def exists(self, path: str, watch: Callable[[object], None] | None = None) -> bool:
        """True if the znode exists. `watch` is called as with :meth:`read`, and also when a missing
        znode is created. Raises as :meth:`read`."""
        result = self._kazoo(path).exists_async(path, watch)
        return self._answer(path, result) is not None

    def children(self, path: str, watch: Callable[[object], None] | None = None) -> list[str]:
        """Returns the names of the znodes below `path`; none if it does not exist. `watch` is
        called as with :meth:`read`, when one is created or deleted. Raises as :meth:`read`."""
        try:
            result = self._kazoo(path).get_children_async(path, watch)
            names = self._answer(path, result)
        except Conflict:
            return []
        # Ignore names that only a garbled answer can contain: no path can be made of them.
        return [name for name in names if name and "/" not in name and name not in (".", "..")]

    def ensure(self, path: str, acl: tuple[Grant, ...] | None = None) -> None:
        """Creates a persistent znode and its parents if they do not exist. Needs no rights on the
        existing ones. `acl`: the rights on the new ones, if not :attr:`.Access.grants`. Raises as
        :meth:`read`."""
        kazoo = self._kazoo(path)
        try:
            result = kazoo.ensure_path_async(path, acl_of(acl))
            self._answer(path, result)
        except AccessDenied:
            # Creating needs a right on the parent; checking whether a znode exists needs none.
            while path != "/" and not self.exists(path):
                path = path.rpartition("/")[0] or "/"
            raise answers.denied(path, self.access) from None

    def grants(self, paths: Sequence[str]) -> list[list[Grant]]:
        """Returns the ACL of each znode; empty if the znode does not exist or we may not read it.
        Raises as :meth:`read`."""
        kazoo = self._kazoo(paths[0])
        found: list[list[Grant]] = []
        for path, result in [(path, kazoo.get_acls_async(path)) for path in paths]:
            try:
                acls, _ = self._answer(path, result)
                found.append([Grant(acl.id.scheme, acl.id.id, acl.perms) for acl in acls])
            except (Conflict, AccessDenied):
                found.append([])
        return found

    def commit(self, *operations: Operation) -> list[int]:
        """Does all operations or none, and waits: see :meth:`.Pending.result`."""
        return self.send(*operations).result()

    def send(self, *operations: Operation) -> Pending:
        """Sends what :meth:`commit` sends, but does not wait."""
        kazoo = self._kazoo(operations[0].path)
        transaction = kazoo.transaction()
        for op in operations:
            if isinstance(op, Create):
                transaction.create(op.path, op.data, acl_of(op.acl), ephemeral=op.ephemeral)
            elif isinstance(op, SetData):
                transaction.set_data(op.path, op.data, op.version)
            elif isinstance(op, Check):
                transaction.check(op.path, op.version)
            else:
                transaction.delete(op.path, op.version)
        sent = clock.boottime()
        answer = transaction.commit_async()
        return Pending(sent, answer.ready, lambda: self._versions(operations, answer, sent))

    def _versions(self, operations: Sequence[Operation], answer: Any, sent: float) -> list[int]:
        """Waits for the :meth:`.Pending.result` of what was sent at that time, on boottime()."""
        found = self._answer(operations[0].path, answer)
        refusal = answers.refusal(operations, found)
        if refusal is not None:
            raise self._error(*refusal)
        versions = answers.versions(operations, found)
        stat = next((each for each in found if isinstance(each, ZnodeStat)), None)
        if stat is not None:  # all of a transaction have the same time
            self._server_clock = stat.mtime / 1000, sent, clock.boottime()
            self._compare_clocks()
        return versions

    def _compare_clocks(self) -> None:
        """Warns, once, of a difference that matters."""
        offset, has_warned = self.clock_offset, self._has_warned
        self._has_warned = abs(offset) > CLOCK_TOLERANCE
        if self._has_warned and not has_warned:
            logger.warning(
                "the clock of this machine is %.1f s %s that of ZooKeeper at %s: runs may come so "
                "much too %s; is NTP running on both?",
                abs(offset),
                "ahead of" if offset > 0 else "behind",
                self._hosts,
                "early" if offset > 0 else "late",
            )

    def _kazoo(self, path: str) -> Any:
        client = self._client
        if client is None or not client.connected:
            # Asked while disconnected, kazoo would queue the request for an unknown time.
            raise Uncertain(f"{path}: no connection to ZooKeeper ({self._hosts})")
        return client.kazoo

    def _on_state(self) -> None:
        self.connection += 1
        self._on_change()

    def _answer(self, path: str, result: Any) -> Any:
        """Waits for kazoo's answer about `path`; raises its errors as ours."""
        try:
            return result.get(timeout=self.timeout)
        except (KazooException, KazooTimeoutError) as exc:
            raise self._error(path, exc) from None
        except Exception as exc:  # kazoo may raise anything if it reads garbled bytes
            raise Uncertain(f"{path}: an answer that cannot be understood ({exc!r})") from None

    def _error(self, path: str, exc: Exception) -> ZkBeatError:
        return answers.error(path, exc, self.access, lambda: quota_of(path, self.read_all))


@contextlib.contextmanager
def connected(
    hosts: str,
    session_timeout: float,
    timeout: float,
    on_change: Callable[[], None],
    access: Access | None = None,
) -> Iterator[ZooKeeperSession]:
    """Provides a connected session inside the block.

    Args:
        hosts: ZooKeeper connection string. A chroot in it is ignored, because paths are absolute.
        session_timeout, on_change, access: as for :class:`ZooKeeperSession`.
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
        wait_for_connection(session, hosts, clock.boottime() + timeout, news)
        yield session
    finally:
        session.stop(_CLOSE_WITHIN)


def wait_for_connection(
    session: ZooKeeperSession, hosts: str, deadline: float, news: clock.Wakeup
) -> None:
    """Waits until a session that was started is connected.

    Args:
        hosts: the user's text, for the error.
        deadline: on boottime().
        news: is set when the session's state changes.

    Raises:
        ConnectTimeout: not by `deadline`; or ZooKeeper refuses this access.
    """
    begun = clock.boottime()
    while not session.connected:
        in_time = not session.servers.all_refuse and news.wait(deadline - clock.boottime())
        if not in_time and session.servers.refusal is not None:
            raise ConnectTimeout(session.servers.refusal)
        if not in_time:
            trouble = session.servers.trouble
            setting = "" if trouble else f", and is {session.access.name('hosts')} right"
            raise ConnectTimeout(
                f"ZooKeeper at {hosts} did not answer within {max(0, deadline - begun):.3g} s: is "
                f"it running{setting}?{trouble}"
            )
