"""`MasterElection`, for users. The candidate decides on its own thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

from .. import clock
from ..errors import ConnectTimeout, SettingsError, ZkBeatError, ZooKeeperError
from ..guard.keeper import Guard
from ..log import get_logger
from ..paths import Paths
from ..records import MasterRecord
from ..security import Access
from ..settings import check_hosts, check_id, check_path, check_seconds, default_id
from ..zookeeper.operations import Operation
from ..zookeeper.session import ZooKeeperSession
from .candidate import Candidate
from .complaints import Complaints
from .membership import Identity
from .root import Root
from .terms import Term

logger = get_logger(__name__)
T = TypeVar("T")

#: Most characters of the reason why a term ended.
_LONGEST_WHY = 200


class MasterElection:
    """One candidate of an election. All methods and properties may be used from any thread.

    Args:
        hosts: ZooKeeper connection string, ``host:port,host:port/chroot``.
        root: absolute znode path of this election; created if it does not exist.
        id: the name of this candidate; default ``<host>:<pid>``.
        session_timeout: seconds; after this time a crashed master is replaced. The server limits
            it to 2 to 20 times its tickTime.
        app: name of the program that owns the root. A root with another name is refused.
        schedule: a digest of what this candidate would do as master, shown to the others.
        broker: a digest of where it would send messages, also shown to the others.
        below: names of further znodes to create below the root.
        auth, sasl, tls, acl: credentials, TLS and the rights on the znodes, in the form of the
            settings ``zk_beat_auth`` and so on.
        access: the same four, already checked.
        guard: ends the session if this process dies; not started yet.
        on_elected: called with the epoch after each election.
        on_demoted: called with the reason, a text, when the term ends.

    The two callbacks run one after another on their own thread, so they may block. When they run,
    the role may have changed again: :attr:`is_master` says what holds now.

    Raises:
        SettingsError: an argument cannot work.
    """

    def __init__(
        self,
        hosts: str = "127.0.0.1:2181",
        root: str = "/election",
        *,
        id: str | None = None,
        session_timeout: float = 10.0,
        app: str | None = None,
        schedule: str | None = None,
        broker: str | None = None,
        below: Sequence[str] = (),
        auth: object = None,
        sasl: object = None,
        tls: object = None,
        acl: object = None,
        access: Access | None = None,
        guard: Guard | None = None,
        on_elected: Callable[[int], object] | None = None,
        on_demoted: Callable[[str], object] | None = None,
    ) -> None:
        self.hosts = _checked("hosts", check_hosts, hosts)
        self.paths = Paths.of(self.hosts, _checked("root", check_path, root))
        self.id = default_id() if id is None else _checked("id", check_id, id)
        timeout = _checked("session_timeout", check_seconds, session_timeout)
        access = access or Access.checked(auth, sasl, tls, acl)
        self.session = ZooKeeperSession(
            self.hosts.partition("/")[0], timeout, self._note_connection, access
        )
        self._callbacks = _Callbacks(on_elected or on_demoted)
        self._inbox: clock.SimpleQueue[_Resignation | None] = clock.SimpleQueue()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._thread: clock.Thread | None = None
        self._stopping = False
        self._failure: ZkBeatError | None = None
        self._guard = guard
        self._complaints = Complaints(self.session, self.hosts)
        self._candidate = Candidate(
            self.session,
            self.paths,
            Identity(self.id, schedule, broker),
            Root(self.session, self.hosts, self.paths, app, below),
            self._complaints,
            guard,
            on_watch=lambda event: self.recheck(),
            on_change=self._tell_listeners,
            on_elected=lambda epoch: self._callbacks.call(on_elected, epoch),
            on_demoted=lambda why: self._callbacks.call(on_demoted, why),
        )

    def start(self, timeout: float | None = None) -> None:
        """Starts to contend, on its own thread.

        Args:
            timeout: seconds within which ZooKeeper must answer and the role must be decided;
                None: return immediately and wait for ZooKeeper as long as it takes.

        Raises:
            ConnectTimeout: not within `timeout`; the election is stopped.
            RootError: the root belongs to another app, or has an unknown format.
            RuntimeError: already started.
        """
        if self._thread is not None:
            raise RuntimeError("this election was already started: create a new MasterElection")
        if timeout is not None:
            timeout = _checked("timeout", check_seconds, timeout)
        self._candidate.membership.begin()
        self._thread = clock.thread(self._run, "zk-beat-election")
        self._thread.start()
        self._callbacks.start()
        if timeout is not None and not self._wait_until(lambda: self.decided, timeout):
            refusal = self.session.servers.refusal or self._complaints.last
            trouble = self.session.servers.trouble
            self.stop()
            raise ConnectTimeout(
                f"{refusal}; gave up after {timeout:g} s"
                if refusal
                else f"ZooKeeper at {self.hosts} did not answer within {timeout:g} s: "
                f"is it running{'' if trouble else ', and is this its address'}?{trouble}"
            )

    @property
    def is_master(self) -> bool:
        """True while this candidate is master, as far as it knows. Cheap; uses no network."""
        return self.term is not None

    @property
    def term(self) -> Term | None:
        """The current term as master; None on a standby. Uses no network."""
        return self._candidate.term

    @property
    def epoch(self) -> int | None:
        """The fencing token of this master; None on a standby. Uses no network."""
        term = self.term
        return None if term is None else term.epoch

    @property
    def era(self) -> str | None:
        """When this master was elected, ISO 8601, UTC; None on a standby. Uses no network. If a
        receiver compares (`era`, `epoch`), it is right even after ZooKeeper lost its data."""
        term = self.term
        return None if term is None else term.era

    @property
    def master(self) -> MasterRecord | None:
        """The master that was last seen, perhaps this candidate; None if there was none."""
        return self._candidate.master

    @property
    def decided(self) -> bool:
        """True if it was seen since the start who is master. Uses no network."""
        return self._candidate.is_decided

    @property
    def failure(self) -> ZkBeatError | None:
        """The error that has ended the election; None if it has not ended."""
        return self._failure

    @property
    def useless(self) -> str | None:
        """Why this candidate is of no use as master; None if it is of use. Uses no network."""
        return self._candidate.restraint.useless

    @property
    def clock_offset(self) -> float:
        """By how many seconds, at least, this machine's clock is ahead of ZooKeeper's; negative if
        it is behind; 0 if that is not known yet."""
        return self.session.clock_offset

    def wait(self, timeout: float | None = None) -> bool:
        """Waits to become master.

        Args:
            timeout: seconds; None: as long as it takes.

        Returns:
            True if this candidate is master; False if not, or if the election was stopped.

        Raises:
            RootError: the root belongs to another app, or has an unknown format.
        """
        self._wait_until(lambda: self.is_master, timeout)
        return self.is_master

    def resign(
        self,
        timeout: float = 5.0,
        *,
        to: str | None = None,
        why: str = "",
        also: Sequence[Operation] = (),
        useless: bool = False,
    ) -> bool:
        """Hands over to another candidate and stays as a standby. It does not contend for a second
        (``RESIGN_PAUSE``); if nobody else is master then, it contends again.

        Args:
            timeout: seconds to wait for the answer.
            to: id of the successor; None: the first that is elected.
            why: the reason for the list of masters, one line.
            also: is part of the transaction that resigns.
            useless: this candidate can do nothing as master. Until :meth:`of_use` is called, it
                stands back for other candidates that can; longer each time it was useless.

        Returns:
            True if it resigned; False if it was not master, `to` is not another candidate, `also`
            was refused, or no answer came within `timeout` seconds.
        """
        reply: clock.SimpleQueue[bool] = clock.SimpleQueue()
        resignation = _Resignation(to, why[:_LONGEST_WHY], tuple(also), useless, reply)
        self._inbox.put(resignation)
        try:
            return reply.get(timeout=timeout)
        except clock.Empty:
            resignation.withdrawn = True
            return False

    def of_use(self) -> None:
        """Call this when this candidate, which was useless as master, can work again."""
        if self._candidate.restraint.take_for_useful(as_master=self.is_master):
            self.recheck()

    def recheck(self) -> None:
        """Reads again, soon, who is master. Call this when a write with the epoch was refused."""
        self._inbox.put(None)

    def complain(self, what: str | ZooKeeperError) -> None:
        """Logs trouble that may recur every second only now and then. A used-up quota is logged
        rarely: only an administrator can raise it."""
        self._complaints.add(what)

    def stop(self, timeout: float = 5.0) -> None:
        """Ends the session, and so a term as master, immediately; waits for outstanding callbacks.
        Returns within `timeout` seconds. May be called twice, from a signal handler, and before
        :meth:`start`."""
        self._stopping = True
        self._inbox.put(None)
        deadline = clock.boottime() + timeout
        for thread in (self._thread, self._callbacks.thread):
            if thread is not None and thread.is_alive() and not clock.is_current(thread):
                thread.join(max(0.0, deadline - clock.boottime()))

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever something may have changed. It must not block the calling
        thread: it may only wake another thread."""
        self._listeners += (listener,)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        """Stops calling `listener`."""
        self._listeners = tuple(each for each in self._listeners if each != listener)

    def __enter__(self) -> MasterElection:
        if self._thread is None:
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        role = f"master of epoch {self.epoch}" if self.is_master else "standby"
        return f"<MasterElection {self.id} {role} at {self.hosts} {self.paths.root}>"

    def _run(self) -> None:
        """Turns the candidate, on the election's own thread, until it must stop or fails."""
        try:
            if self._guard is not None:
                self._guard.start(self.recheck)
            self.session.start()
            delay: float | None = 0.0
            while not self._stopping:
                self._wait_for_news(delay)
                if not self._stopping:
                    delay = self._candidate.turn()
            self._candidate.resign(None, "stopped")
        except ZkBeatError as exc:
            self._failure = exc
        except Exception as exc:
            logger.exception("the election ends because of a bug")
            self._failure = ZkBeatError(f"the election ended: {exc!r}")
        finally:
            self._candidate.demote("stopped" if self._failure is None else str(self._failure))
            ended = self.session.stop(timeout=3.0)
            if self._guard is not None:
                self._guard.close(ended=ended)
            self._stopping = True
            self._callbacks.end()
            self._tell_listeners()

    def _wait_for_news(self, timeout: float | None) -> None:
        """Waits for a token (the connection, a watch, recheck, stop) or for a request to resign,
        and answers that."""
        try:
            resignation = self._inbox.get(timeout=timeout)
        except clock.Empty:
            return
        if resignation is not None and not resignation.withdrawn:
            why = f"resigned: {resignation.why}" if resignation.why else "resigned"
            done = self._candidate.resign(resignation.to, why, resignation.also)
            if done and resignation.useless:
                self._candidate.restraint.take_for_useless(resignation.why)
                logger.info("%s stands back for other beats until it can be of use", self.id)
            resignation.reply.put(done)

    def _note_connection(self) -> None:
        self.recheck()
        self._tell_listeners()

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    def _wait_until(self, holds: Callable[[], bool], timeout: float | None) -> bool:
        """Waits without one of Python's locks, so that a signal handler may interrupt it anywhere
        and call :meth:`stop`."""
        news = clock.Wakeup()
        self.subscribe(news.set)
        deadline = None if timeout is None else clock.boottime() + timeout
        try:
            while not holds():
                if self._failure is not None:
                    raise self._failure
                if self._stopping:
                    return False
                left = None if deadline is None else deadline - clock.boottime()
                if left is not None and left <= 0:
                    return False
                if not news.wait(left):
                    return holds()
            return True
        finally:
            self.unsubscribe(news.set)


class _Callbacks:
    """Calls the functions that users passed, one after another, on a thread of its own."""

    def __init__(self, is_needed: object) -> None:
        self._calls: clock.SimpleQueue[Callable[[], object] | None] = clock.SimpleQueue()
        self.thread = clock.thread(self._run, "zk-beat-callbacks") if is_needed else None

    def start(self) -> None:
        if self.thread is not None:
            self.thread.start()

    def call(self, callback: Callable[[T], object] | None, argument: T) -> None:
        if callback is not None:
            self._calls.put(lambda: callback(argument))

    def end(self) -> None:
        """Ends the thread after all calls that are waiting now."""
        self._calls.put(None)

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            try:
                call()
            except Exception:
                logger.exception("a callback of the election raised")


@dataclass
class _Resignation:
    to: str | None
    why: str
    also: tuple[Operation, ...]
    useless: bool
    reply: clock.SimpleQueue[bool]
    #: True if nobody waits for it any more.
    withdrawn: bool = False


def _checked(name: str, check: Callable[[Any], T], value: Any) -> T:
    try:
        return check(value)
    except SettingsError as exc:
        raise SettingsError(f"{name} = {exc}") from None
