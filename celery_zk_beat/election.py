"""Electing one master among any number of processes, through ZooKeeper; no Celery in sight.

What this does not promise, first: an election is not a fence. A process that was paused (a
suspended machine, SIGSTOP) may believe for an instant after it wakes that it is still master.
Whatever must never be done twice has to carry :attr:`MasterElection.epoch` to the place where it
takes effect, and be refused there when a higher one has been seen.

The protocol: whoever creates the ephemeral znode ``master`` is master. In the same transaction the
znode ``epoch`` is written, and its new version numbers this term. The others watch ``master`` and
try again when it goes. After every reconnect, and after every request without an answer, there is
one way on: read ``master`` and ``epoch``, and believe what they say.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Callable

from . import clock
from .errors import (
    AccessDenied,
    ConnectTimeout,
    QuotaExceeded,
    RootError,
    SettingsError,
    Uncertain,
    ZkBeatError,
    ZooKeeperError,
)
from .errors import Conflict as _Conflict
from .log import get_logger
from .paths import Paths, quote_name
from .records import (
    EpochRecord,
    MasterRecord,
    MemberRecord,
    RootRecord,
    TermRecord,
    decode_masters,
    encode_masters,
    next_era,
    to_text,
)
from .security import Access
from .settings import check_hosts, check_id, check_path, check_seconds, default_id
from .version import __version__
from .zookeeper.operations import Check, Create, Delete, Node, Operation, SetData
from .zookeeper.session import ZooKeeperSession

logger = get_logger(__name__)

#: Seconds for which a master that resigned leaves the field to the others, or to its successor.
RESIGN_PAUSE = 1.0
#: Seconds for which a candidate that was useless as master leaves the field to others that are
#: not: the first time, twice as long each time, and the longest.
_STAND_BACK, _LONGEST_STAND_BACK = 1.0, 10.0
#: Seconds between two log lines about a ZooKeeper that does not answer.
_REMIND_EVERY = 5.0
#: Seconds between two log lines about a quota that is used up.
_REMIND_OF_QUOTA_EVERY = 60.0
#: Most characters of why a time as master ended.
_LONGEST_WHY = 200
#: Seconds before something that was refused, or stands in the way, is tried again.
_RETRY_AFTER = 1.0
#: Seconds after which the member znode is written anew: its time shows how the clocks are apart.
_SHOW_EVERY = 600.0


@dataclass(frozen=True)
class Term:
    """One uninterrupted time as master, as seen by the master itself.

    A reconnect within the same session begins a new term with the same epoch.

    Attributes:
        epoch: the fencing token; grows with every election under this root.
        era: when it was elected, by ZooKeeper's clock, as ISO 8601 UTC; grows with every election,
            also where the epochs begin anew: after the root was deleted, or restored from a copy.
        connection: the connection on which ZooKeeper last said so.
    """

    epoch: int
    era: str
    connection: int


class MasterElection:
    """One candidate. All methods and properties may be used from any thread.

    Args:
        hosts: ZooKeeper connection string, ``host:port,host:port/chroot``.
        root: absolute znode path of this election; made when it is missing.
        id: how this candidate shows itself; default ``<host>:<pid>``.
        session_timeout: seconds, asked of ZooKeeper; the time after which a crashed master is
            replaced. The server answers within its own bounds (2 to 20 times its tickTime).
        app: name of the program that owns the root. A root with another's name is refused.
        schedule: a digest of what this candidate would do as master, shown to the others.
        broker: a digest of where it would send messages, shown to them, too.
        auth, sasl, tls, acl: credentials, TLS and the rights on the znodes, as the settings
            ``zk_beat_auth`` ... take them.
        access: the same four, checked already.
        on_elected: called with the epoch after each election.
        on_demoted: called with the reason, a text, when mastership ends.

    The two callbacks run one after another on a thread of their own, so they may block; by the
    time they run, things may have moved on: :attr:`is_master` tells what holds now.

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
        auth: object = None,
        sasl: object = None,
        tls: object = None,
        acl: object = None,
        access: Access | None = None,
        on_elected: Callable[[int], object] | None = None,
        on_demoted: Callable[[str], object] | None = None,
    ) -> None:
        self.hosts = _checked("hosts", check_hosts, hosts)
        self.paths = Paths.of(self.hosts, _checked("root", check_path, root))
        self.id = default_id() if id is None else _checked("id", check_id, id)
        timeout = _checked("session_timeout", check_seconds, session_timeout)
        access = access or Access.checked(auth, sasl, tls, acl)
        self.session = ZooKeeperSession(
            self.hosts.partition("/")[0], timeout, self._on_connection, access
        )
        self._app = app
        self._schedule = schedule
        self._broker = broker
        self._on_elected = on_elected
        self._on_demoted = on_demoted
        self._inbox: clock.SimpleQueue[_Resignation | None] = clock.SimpleQueue()
        self._calls: clock.SimpleQueue[Callable[[], object] | None] = clock.SimpleQueue()
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._thread: clock.Thread | None = None
        self._caller: clock.Thread | None = None
        self._stopping = False
        self._failure: ZkBeatError | None = None
        self._term: Term | None = None
        #: The session for which the root is known to be ready.
        self._prepared_for = 0
        #: The session that the log tells of.
        self._greeted_in = 0
        #: Whether the role was decided since the start.
        self._decided = False
        #: The connection on which what is read is no older than what this session has written.
        self._caught_up = 0
        self._master: MasterRecord | None = None
        self._elected_epoch = 0
        self._member_state: tuple[int, str, str | None] | None = None
        #: On boottime(): when the member znode is to be written anew.
        self._show_at = 0.0
        #: When this candidate was started, as the member znode tells it.
        self._since = ""
        #: The last masters as this one wrote them down, and for which epoch it did.
        self._terms: list[TermRecord] = []
        self._terms_of = 0
        #: The session in which the master znode was last made, and what was written.
        self._wrote: tuple[int, MasterRecord] | None = None
        #: The session that was seen to hold the member znode of this one's name, and on
        #: boottime() until when it may be that of a process that is gone.
        self._namesake, self._namesake_until = 0, math.inf
        self._abstain_until = 0.0
        #: Why this candidate was useless as master, as long as it is taken for that; and how often
        #: in a row it was.
        self._useless: str | None = None
        self._times_useless = 0
        #: On boottime(): since when nobody is master, while nobody is.
        self._vacant_since: float | None = None
        self._remind_at = 0.0
        #: What was last complained of, and until when that is not said again.
        self._complaint: tuple[str, float] = ("", 0.0)
        #: On boottime(): until when nothing is asked, as it would be denied.
        self._denied_until = 0.0
        #: Whether the rights of others on our znodes were looked at.
        self._saw_rights = False

    # What is asked of it ----------------------------------------------------------------------

    def start(self, timeout: float | None = None) -> None:
        """Begins to contend, on a thread of its own.

        Args:
            timeout: seconds within which ZooKeeper must have answered and the role be decided;
                None: return at once and wait for ZooKeeper as long as it takes.

        Raises:
            ConnectTimeout: not within `timeout`; the election is stopped.
            RootError: the root is another app's, or of an unknown format.
            RuntimeError: started before.
        """
        if self._thread is not None:
            raise RuntimeError("this election was started before: make a new MasterElection")
        if timeout is not None:
            timeout = _checked("timeout", check_seconds, timeout)
        self._since = _now()
        self._thread = clock.thread(self._run, "zk-beat-election")
        self._thread.start()
        if self._on_elected or self._on_demoted:
            self._caller = clock.thread(self._run_calls, "zk-beat-callbacks")
            self._caller.start()
        if timeout is not None and not self._wait_until(lambda: self._decided, timeout):
            refusal = self.session.refusal or self._complaint[0]
            trouble = self.session.trouble
            self.stop()
            raise ConnectTimeout(
                f"{refusal}; gave up after {timeout:g} s"
                if refusal
                else f"ZooKeeper at {self.hosts} did not answer within {timeout:g} s: "
                f"is it running{'' if trouble else ', and is this its address'}?{trouble}"
            )

    @property
    def is_master(self) -> bool:
        """Whether this candidate is master, as far as it knows. No network, cheap to ask."""
        return self.term is not None

    @property
    def term(self) -> Term | None:
        """The current time as master, None on a standby. No network."""
        term = self._term
        if term is None or not self.session.connected:
            return None
        return term if term.connection == self.session.connection else None

    @property
    def epoch(self) -> int | None:
        """The fencing token of this master, None on a standby. No network."""
        term = self.term
        return None if term is None else term.epoch

    @property
    def era(self) -> str | None:
        """When this master was elected, ISO 8601 UTC, None on a standby. No network. Receivers that
        compare (`era`, `epoch`) also bear the loss of ZooKeeper's data."""
        term = self.term
        return None if term is None else term.era

    @property
    def master(self) -> MasterRecord | None:
        """The master that was last seen, this one included; None when there was none."""
        return self._master

    @property
    def decided(self) -> bool:
        """Whether it has been seen, since the start, who is master. No network."""
        return self._decided

    @property
    def failure(self) -> ZkBeatError | None:
        """Why the election has ended by itself, None as long as it has not."""
        return self._failure

    @property
    def useless(self) -> str | None:
        """Why this candidate is taken for useless as master, None when it is not. No network."""
        return self._useless

    @property
    def clock_offset(self) -> float:
        """Seconds by which this machine's clock is at least ahead of ZooKeeper's, below 0: behind;
        0 as long as no answer has shown it."""
        return self.session.clock_offset

    def wait(self, timeout: float | None = None) -> bool:
        """Waits to become master.

        Args:
            timeout: seconds; None: as long as it takes.

        Returns:
            Whether this candidate is master; False also when the election was stopped.

        Raises:
            RootError: the root is another app's, or of an unknown format.
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
        """Gives up the mastership to another candidate and stays as a standby. For a second
        (``RESIGN_PAUSE``) it does not contend; if nobody else has by then, it does again.

        Args:
            to: id of the candidate that is to be the next master; None: whoever is first.
            why: what is remembered of it, as one line.
            also: is part of the transaction that gives it up.
            useless: this candidate can do nothing as master. Until :meth:`of_use` it leaves the
                field to others that can, for a time that grows each time it was useless.

        Returns:
            Whether it gave it up; False where it was not master, `to` is no other candidate, `also`
            was refused, or within `timeout` seconds no answer came.
        """
        reply: clock.SimpleQueue[bool] = clock.SimpleQueue()
        why = why[:_LONGEST_WHY]
        resignation = _Resignation(to, why, tuple(also), useless, reply)
        self._inbox.put(resignation)
        try:
            return reply.get(timeout=timeout)
        except clock.Empty:
            resignation.withdrawn = True
            return False

    def of_use(self) -> None:
        """This candidate was useless as master, and could do something now."""
        if self.is_master:
            self._times_useless = 0
        if self._useless is not None:
            self._useless = None
            self._inbox.put(None)

    def recheck(self) -> None:
        """Has it read anew, soon, whether this candidate is master: for a holder of the epoch
        whose write was refused."""
        self._inbox.put(None)

    def complain(self, what: str | ZooKeeperError) -> None:
        """Logs what may come every second, now and then; a quota rarely, for to raise it may take
        an administrator's time."""
        complaint = str(what)
        every = _REMIND_OF_QUOTA_EVERY if isinstance(what, QuotaExceeded) else _REMIND_EVERY
        last, until = self._complaint
        now = clock.boottime()
        if complaint != last or now >= until:
            logger.warning("%s; trying again every %g s", complaint, _RETRY_AFTER)
            self._complaint = (complaint, now + every)

    def stop(self, timeout: float = 5.0) -> None:
        """Ends the session, and with it a mastership at once; waits for callbacks that are still
        to be called. Returns within `timeout` seconds. May be called twice, from a signal handler,
        and where nothing was started."""
        self._stopping = True
        self._inbox.put(None)
        deadline = clock.boottime() + timeout
        for thread in (self._thread, self._caller):
            ours = clock.is_current(thread)
            if thread is not None and thread.is_alive() and not ours:
                thread.join(max(0.0, deadline - clock.boottime()))

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Has `listener` called whenever something may have changed, on threads that it must
        not block: it may hand a token to another thread, no more."""
        self._listeners += (listener,)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        self._listeners = tuple(each for each in self._listeners if each != listener)

    def __enter__(self) -> MasterElection:
        if self._thread is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        role = f"master of epoch {self.epoch}" if self.is_master else "standby"
        return f"<MasterElection {self.id} {role} at {self.hosts} {self.paths.root}>"

    # The thread that decides ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.session.start()
            delay: float | None = 0.0
            while not self._stopping:
                self._hear(delay)
                if not self._stopping:
                    delay = self._turn()
            self._resign(None, "stopped")
        except ZkBeatError as exc:
            self._failure = exc
        except Exception as exc:
            logger.exception("the election ends by a mistake of its own")
            self._failure = ZkBeatError(f"the election ended: {exc!r}")
        finally:
            self._demote("stopped" if self._failure is None else str(self._failure))
            self.session.stop(timeout=3.0)
            self._stopping = True
            self._calls.put(None)
            self._tell()

    def _hear(self, timeout: float | None) -> None:
        """Waits for a token (the connection, a watch, recheck, stop) or a request to resign."""
        try:
            resignation = self._inbox.get(timeout=timeout)
        except clock.Empty:
            return
        if resignation is not None and not resignation.withdrawn:
            why = f"resigned: {resignation.why}" if resignation.why else "resigned"
            done = self._resign(resignation.to, why, resignation.also)
            if done and resignation.useless:
                self._times_useless += 1
                self._useless = resignation.why
                logger.info("%s leaves it to others to be master, until it can do more", self.id)
            resignation.reply.put(done)

    def _turn(self) -> float:
        """Decides the role anew, and says after how many seconds to do so without being told by
        a watch."""
        if not self.session.connected:
            self._vacant_since = None
            self._demote("the connection to ZooKeeper is lost")
            return self._wait_for_zookeeper()
        self._remind_at = 0.0
        pause = self._denied_until - clock.boottime()
        if pause > 0:
            return pause
        try:
            self._prepare()
            while not self._settle():
                pause = self._held_back()
                if pause > 0:
                    # Whoever is elected meanwhile may have this one for its successor.
                    if self.session.exists(self.paths.master, self._on_watch):
                        continue
                    self._show()
                    return pause
                self._contend()
            if not self._decided:
                self._decided = True
                self._tell()
            try:
                self._remember_term()
            except QuotaExceeded as exc:
                self.complain(exc)
            except ZooKeeperError as exc:
                logger.warning("%s; this time as master is not remembered", exc)
            if not self._show():
                return _RETRY_AFTER
            now = clock.boottime()
            theirs = self._abstain_until - now
            return max(0.0, min(self._show_at - now, theirs if theirs > 0 else math.inf))
        except Uncertain as exc:
            logger.debug("asking again: %s", exc)
            return 0.1
        except _Conflict as exc:
            # A znode of ours was deleted by hand: make it again.
            logger.warning("%s; looking again", exc)
            self._prepared_for = 0
            return 0.1
        except QuotaExceeded as exc:
            # A master is master all the same: it is its member znode that cannot be written.
            self.complain(exc)
            return _RETRY_AFTER
        except ZooKeeperError as exc:
            self._demote("denied by ZooKeeper" if isinstance(exc, AccessDenied) else str(exc))
            self.complain(exc)
            if isinstance(exc, AccessDenied):
                # A server may close the connection, too, and the next comes at once.
                self._denied_until = clock.boottime() + _RETRY_AFTER
                if self.session.outdated:
                    self._renew_session()
            return _RETRY_AFTER
        except RootError as exc:
            if not self._decided:
                raise
            # Not a mistake of who started this beat, which has been fine.
            self._demote(str(exc))
            logger.error("%s; looking again in %g s", exc, _REMIND_EVERY)
            return _REMIND_EVERY

    def _settle(self) -> bool:
        """Reads who is master, this one perhaps, and arms the watch; False when nobody is."""
        connection = self.session.connection
        if connection != self._caught_up:
            # Else it might read that it is master, though it has resigned and not heard the answer.
            self.session.catch_up(self.paths.epoch)
            self._caught_up = connection
        node = self.session.read(self.paths.master, watch=self._on_watch)
        if node is None:
            self._vacant_since = self._vacant_since or clock.boottime()
            self._demote("its znode is gone")
            if self._master is not None:
                logger.info("master %s is gone - contending", self._master.id)
                self._master = None
            return False
        self._vacant_since = None
        try:
            seen = MasterRecord.decode(self.paths.master, node.data)
        except RootError as exc:
            logger.warning("%s", exc)
            seen = MasterRecord("unknown", "", 0, "", 0, "", self._schedule, None)
        if node.owner == self.session.id:
            if seen.successor is None or clock.boottime() >= self._abstain_until:
                self._begin(connection, seen, node.version)
            return True
        if self._wrote == (self.session.id, replace(seen, successor=None)):
            # The handshake that named the session was garbled; with every other name we are
            # never master, and keep others from it.
            logger.warning("%s, written by this session, has another owner", self.paths.master)
            self._renew_session()
            raise Uncertain(f"{self.paths.master}: asked under a name that is not ours")
        self._demote(f"{seen.id} is master")
        successor, seen = seen.successor, replace(seen, successor=None)
        if seen != self._master:
            who = ""
            if seen.id == self.id:
                ours = self._wrote is not None and self._wrote[1] == seen
                who = f" ({self._whose(ours, seen)})"
            logger.info("not elected because %s%s is master, epoch %d", seen.id, who, seen.epoch)
            if node.owner == 0:
                logger.error(
                    "%s is not ephemeral, so no beat made it, and none is master: delete it",
                    self.paths.master,
                )
            if seen.schedule != self._schedule:
                logger.warning(
                    "%s, the master, has another schedule than %s (digests %s and %s): is a "
                    "deploy under way?",
                    seen.id,
                    self.id,
                    seen.schedule,
                    self._schedule,
                )
            if None not in (seen.broker, self._broker) and seen.broker != self._broker:
                logger.warning(
                    "%s, the master, sends to another broker than %s (digests %s and %s): are "
                    "these two environments with one %s?",
                    seen.id,
                    self.id,
                    seen.broker,
                    self._broker,
                    self.session.access.name("root"),
                )
        self._master = seen
        # What was read may be old, and this be refused: then the watch that was armed tells.
        leave = Delete(self.paths.master, node.version)
        if successor == self.id and self._contend(leave, of=seen.epoch):
            return self._settle()
        return True

    def _begin(self, connection: int, seen: MasterRecord, version: int) -> None:
        """The master znode, at this version, is of our session: begin a term, if the epoch is ours
        too. If there is an successor, its time is over."""
        node = self.session.read(self.paths.epoch)
        made = None if node is None else self._decoded(node)
        if node is None or made is None or made.session != self._session_name():
            # Somebody wrote the epoch by hand: nothing may be done under it, so start afresh. Or
            # the successor was elected just now: its znode has another version.
            self._demote(f"{self.paths.epoch} is not as this master left it")
            self.session.commit(Delete(self.paths.master, version))
            raise _Conflict(self.paths.epoch, "written by somebody else while this was master")
        if seen.successor is not None:
            logger.warning("%s did not take over; going on as master", seen.successor)
            self._terms_of = 0
            seen = replace(seen, successor=None)
            stay = SetData(self.paths.master, seen.encode(), version)
            self.session.commit(Check(self.paths.epoch, node.version), stay)
        term = Term(node.version, made.era, connection)
        self._master = seen
        if self._term != term:
            self._demote("reconnected")
            self._term = term
            self._tell()
            how = "still" if node.version == self._elected_epoch else "elected"
            self._elected_epoch = node.version
            logger.info("%s: %s is master, epoch %d", how, self.id, term.epoch)
            self._call(self._on_elected, term.epoch)

    def _decoded(self, epoch: Node) -> EpochRecord | None:
        """Who made an epoch; None where nobody has yet, or it cannot be understood."""
        try:
            return EpochRecord.decode(self.paths.epoch, epoch.data) if epoch.data else None
        except RootError as exc:
            logger.warning("%s", exc)
            return None

    def _held_back(self) -> float:
        """Seconds for which this candidate does not contend, though nobody is master."""
        now = clock.boottime()
        if now < self._abstain_until or self._useless is None or self._vacant_since is None:
            return self._abstain_until - now
        times = min(self._times_useless - 1, 10)
        patience: float = min(_STAND_BACK * 2**times, _LONGEST_STAND_BACK)
        left = self._vacant_since + patience - now
        if left <= 0 or not self._is_another_of_use():
            return 0.0
        return min(left, _RETRY_AFTER)  # the other may say meanwhile that it is useless, too

    def _is_another_of_use(self) -> bool:
        """Whether a beat is there, beside this one, that is not known to be useless."""
        others = [
            f"{self.paths.members}/{name}"
            for name in self.session.children(self.paths.members)
            if name != quote_name(self.id)
        ]
        for path, node in zip(others, self.session.read_all(others)):
            with contextlib.suppress(RootError):
                if node is not None and MemberRecord.decode(path, node.data).useless is None:
                    return True
        return False

    def _contend(self, *before: Operation, of: int | None = None) -> bool:
        """Tries to become master. Whether it worked is for :meth:`_settle` to read.

        Args:
            before: makes room for it, in the same transaction.
            of: the epoch of the master that names this successor; where that is over, nothing is
                tried.

        Returns:
            whether it was not refused.
        """
        epoch = self.session.read(self.paths.epoch)
        if epoch is None:
            raise _Conflict(self.paths.epoch, "missing")
        return of in (None, epoch.version) and self._elect(epoch, *before)

    def _elect(self, last: Node, *before: Operation) -> bool:
        """The election: the one transaction that makes a master, after the `last` epoch. Whether it
        was not refused."""
        made = self._decoded(last)
        era = next_era("" if made is None else made.era, self.session.server_time)
        mine = MasterRecord(
            self.id,
            socket.gethostname(),
            os.getpid(),
            _now(),
            last.version + 1,
            __version__,
            self._schedule,
            None,
            self._broker,
        )
        epoch = EpochRecord(self.id, self._session_name(), era)
        try:
            self.session.commit(
                *before,
                Create(self.paths.master, mine.encode(), ephemeral=True),
                SetData(self.paths.epoch, epoch.encode(), last.version),
            )
        except _Conflict as exc:
            if exc.path not in (self.paths.master, self.paths.epoch):
                raise
            logger.debug("not elected: %s", exc)
            return False
        self._wrote = self.session.id, mine
        return True

    def _resign(self, to: str | None, why: str, also: Sequence[Operation] = ()) -> bool:
        term = self.term
        if term is None or self._master is None:
            return False
        try:
            if to is None:
                leave: Operation = Delete(self.paths.master)
            elif not self._is_other_member(to):
                logger.warning("not resigning in favour of %r: no other beat of this name", to)
                return False
            else:
                leave = SetData(self.paths.master, replace(self._master, successor=to).encode())
            # The epoch, not the znode's version: a successor's znode starts at version 0 again.
            self.session.commit(
                Check(self.paths.epoch, term.epoch),
                leave,
                *also,
                *self._end_of_term(term.epoch, why),
            )
        except ZkBeatError as exc:
            if isinstance(exc, _Conflict) and exc.path == self.paths.masters:
                self._terms_of = 0  # it was deleted by hand, and is nothing to stay master for
                return self._resign(to, why, also)
            logger.warning("could not resign: %s", exc)
            return False
        self._abstain_until = clock.boottime() + RESIGN_PAUSE
        self._demote(why)
        return True

    def _is_other_member(self, id: str) -> bool:
        return (
            id != self.id
            and id.isprintable()
            and quote_name(id) in self.session.children(self.paths.members)
        )

    def _demote(self, why: str) -> None:
        term, self._term = self._term, None
        if term is not None:
            logger.info("demoted: %s was master, epoch %d: %s", self.id, term.epoch, why)
            self._tell()
            self._call(self._on_demoted, why)

    # What surrounds the decision --------------------------------------------------------------

    def _prepare(self) -> None:
        """Sees to it, once a session, that the root is ours and has what an election needs."""
        session = self.session.id
        if self._prepared_for == session:
            return
        if self._greeted_in != session:
            self._greeted_in = session
            logger.info(
                "connected to ZooKeeper at %s, root %s, session time-out %g s%s",
                self.hosts,
                self.paths.root,
                self.session.timeout,
                self.session.granted_otherwise,
            )
        for path in (self.paths.root, self.paths.epoch, self.paths.members, self.paths.runs):
            self.session.ensure(path)
        self._claim_root()
        # For an answer with ZooKeeper's time in it: each session may be with another server.
        self.session.commit(SetData(self.paths.members, b""))
        if not self._saw_rights:
            self._look_at_rights()
            self._saw_rights = True
        self._prepared_for = session
        self._member_state = None

    def _look_at_rights(self) -> None:
        """Tells, once, what others may do with our znodes that they should not."""
        access, root = self.session.access, self.paths.root
        if access.tls is not None and not access.tls.verify:
            logger.warning(
                "%s: with verify = False anybody may pass for ZooKeeper", access.name("tls")
            )
        if access.open_by_default:
            logger.warning(
                "whoever reaches ZooKeeper at %s may change %s: set %s (docs/security.md)",
                self.hosts,
                root,
                access.credentials("or"),
            )
            return
        below = [f"{root}/{name}" for name in self.session.children(root)]
        pages = [f"{self.paths.runs}/{name}" for name in self.session.children(self.paths.runs)]
        paths = [root, *sorted(below), *sorted(pages)]
        found = [
            (path, excess[0])
            for path, grants in zip(paths, self.session.grants(paths))
            if (excess := access.excess(grants))
        ]
        if found:
            path, grant = found[0]
            more = f" and {len(found) - 1} more" if found[1:] else ""
            logger.warning(
                "%s%s give %s, which is more than %s: zkCli.sh, as a user who may, mends it with "
                "setAcl -R %s %s",
                path,
                more,
                grant,
                access.name("acl") if access.acl else "to the creator alone",
                root,
                ",".join(map(str, access.grants)),
            )

    def _claim_root(self) -> None:
        if self._app is None:
            return None
        node = self.session.read(self.paths.root)
        if node is not None and not node.data:
            try:
                self.session.commit(
                    SetData(self.paths.root, RootRecord(self._app).encode(), node.version)
                )
            except _Conflict:
                return self._claim_root()  # another beat was first: see what it wrote
        elif node is not None:
            owner = RootRecord.decode(self.paths.root, node.data).app
            if owner != self._app:
                raise RootError(
                    f"{self.paths.root} belongs to the app {owner!r}, and this is {self._app!r}: "
                    "give each app a root of its own (zk_beat_root)"
                )
        return None

    def _remember_term(self) -> None:
        """Writes down, once, that this candidate is master now, and that the last one is not."""
        term = self.term
        if term is None or self._master is None or self._terms_of == term.epoch:
            return
        path = self.paths.masters
        node = self.session.read(path)
        try:
            past = decode_masters(path, b"" if node is None else node.data)
        except RootError as exc:
            logger.warning("%s; the list of masters begins anew", exc)
            past = []
        mine = self._master
        past = [each for each in past if each.epoch < term.epoch]
        if past and past[-1].until is None:
            past[-1] = replace(past[-1], until=mine.since, why="its session ended")
        past.append(TermRecord(term.epoch, mine.id, mine.host, mine.pid, mine.since, None, None))
        data = encode_masters(past)
        self.session.commit(
            Check(self.paths.epoch, term.epoch),
            Create(path, data) if node is None else SetData(path, data, node.version),
        )
        self._terms, self._terms_of = past, term.epoch

    def _end_of_term(self, epoch: int, why: str) -> list[Operation]:
        if self._terms_of != epoch:
            return []  # it was too short to be written down
        *others, mine = self._terms
        terms = [*others, replace(mine, until=_now(), why=why)]
        return [SetData(self.paths.masters, encode_masters(terms))]

    def _show(self) -> bool:
        """Writes this candidate's member znode when its role changed, and now and then; False when
        another's of the same name is in the way (an earlier session that has not expired yet,
        usually)."""
        state = "master" if self._term is not None else "standby"
        shown = (self.session.id, state, useless := self._useless)
        if self._member_state == shown and clock.boottime() < self._show_at:
            return True
        path = self.paths.member(self.id)
        data = MemberRecord(
            self.id,
            socket.gethostname(),
            os.getpid(),
            state,
            self._since,
            __version__,
            self._schedule,
            _now(),
            useless,
            self._broker,
        ).encode()
        node = self.session.read(path)
        if node is None:
            self.session.commit(Create(path, data, ephemeral=True))
        elif node.owner == self.session.id:
            self.session.commit(SetData(path, data))
        else:
            self._note_namesake(path, node)
            return False
        self._member_state = shown
        self._show_at = clock.boottime() + _SHOW_EVERY
        return True

    def _note_namesake(self, path: str, node: Node) -> None:
        """Says, once, whose the member znode of this candidate's name is; and once more when that
        is certain to be another's, for a session that nobody keeps is over by then."""
        now = clock.boottime()
        if node.owner != self._namesake:
            self._namesake, self._namesake_until = node.owner, now + 3 * self.session.timeout
            whose = "another process with the same id"
            with contextlib.suppress(RootError):
                held = MemberRecord.decode(path, node.data)
                whose = self._whose(held.since == self._since, held)
            logger.warning("%s is held by %s", path, whose)
        elif now >= self._namesake_until:
            self._namesake_until = math.inf
            logger.warning(
                "%s is still held by another process, so there are two beats with the id %s: give "
                "each one of its own (%s)",
                path,
                self.id,
                self.session.access.name("id"),
            )

    def _whose(self, is_ours: bool, held: MasterRecord | MemberRecord) -> str:
        """Who it is that has this candidate's id."""
        here = held.host, held.pid
        if is_ours and here == (socket.gethostname(), os.getpid()):
            return "an earlier session of this process, which will expire"
        return (
            f"another process with the same id, pid {held.pid} on {held.host}: one that is gone, "
            f"whose session will expire, or a beat with the same {self.session.access.name('id')}"
        )

    def _wait_for_zookeeper(self) -> float:
        if self.session.dead:
            self._renew_session()
            return _RETRY_AFTER
        now = clock.boottime()
        refusal = self.session.refusal
        if refusal is not None:
            self.complain(refusal)
        if self._remind_at <= now:
            if self._remind_at and refusal is None:
                logger.warning(
                    "ZooKeeper at %s does not answer; waiting for it as a standby%s",
                    self.hosts,
                    self.session.trouble,
                )
            self._remind_at = now + _REMIND_EVERY
        return max(0.1, self._remind_at - now)

    def _renew_session(self) -> None:
        self.session.stop(timeout=_RETRY_AFTER)
        self.session.start()

    def _session_name(self) -> str:
        return f"{self.session.id:#x}"

    def _on_connection(self) -> None:
        self._inbox.put(None)
        self._tell()

    def _on_watch(self, event: object) -> None:
        self._inbox.put(None)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _wait_until(self, holds: Callable[[], bool], timeout: float | None) -> bool:
        """Waits without a lock of Python's, so that a signal handler may interrupt it anywhere
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

    def _call(self, callback: Callable[..., object] | None, argument: object) -> None:
        if callback is not None:
            self._calls.put(lambda: callback(argument))

    def _run_calls(self) -> None:
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
    #: Nobody waits for it any more.
    withdrawn: bool = False


def _now() -> str:
    return to_text(clock.now())


def _checked(name: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except SettingsError as exc:
        raise SettingsError(f"{name} = {exc}") from None
