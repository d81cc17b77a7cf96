"""The candidate: reads who is master, and becomes master if nobody is. The thread of its
:class:`~.public.MasterElection` turns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Callable

from .. import clock
from ..errors import (
    AccessDenied,
    Conflict,
    QuotaExceeded,
    RootError,
    Uncertain,
    ZkBeatError,
    ZooKeeperError,
)
from ..guard.keeper import Guard
from ..log import get_logger, telling
from ..paths import Paths
from ..records import EpochRecord, MasterRecord, next_era
from ..zookeeper.operations import Check, Create, Delete, Node, Operation, SetData
from ..zookeeper.session import ZooKeeperSession
from .complaints import REMIND_EVERY, RETRY_AFTER, Complaints
from .membership import Identity, Membership, SessionNotes
from .restraint import Restraint
from .root import Root
from .terms import PastTerms, Term, epoch_record

logger = get_logger(__name__)

#: Seconds until we ask ZooKeeper again after it did not answer, or something has just changed.
_ASK_AGAIN_AFTER = 0.1


class Candidate:
    """Decides, turn by turn, whether it is master.

    Args:
        on_watch: watches call it.
        on_change: is called when role or master may have changed.
        guard: gets each session before the candidate contends in it; None: no guard.
        on_elected, on_demoted: are called afterwards, with the epoch and with the reason.

    Attributes:
        master: the master that was last seen, perhaps this candidate.
        is_decided: True if it was seen since the start who is master.
        membership: announces this candidate to the others.
        restraint: holds it back while it must not contend.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        identity: Identity,
        root: Root,
        complaints: Complaints,
        guard: Guard | None,
        *,
        on_watch: Callable[[object], None],
        on_change: Callable[[], None],
        on_elected: Callable[[int], None],
        on_demoted: Callable[[str], None],
    ) -> None:
        self._session, self._paths, self._identity = session, paths, identity
        self._root, self._complaints, self._guard = root, complaints, guard
        self._on_watch, self._on_change = on_watch, on_change
        self._on_elected, self._on_demoted = on_elected, on_demoted
        self.membership = Membership(session, paths, identity)
        self.restraint = Restraint()
        self.master: MasterRecord | None = None
        self.is_decided = False
        self._past_terms = PastTerms(session, paths)
        #: Empty until the first session: before that nobody would answer.
        self._notes = SessionNotes(0, root_is_ready=True)
        #: The number of the connection on which reads are no older than this session's writes.
        self._caught_up = 0
        self._term: Term | None = None
        self._elected_epoch = 0
        #: The master znode as this candidate made it last, in this session or an earlier one.
        self._made: MasterRecord | None = None
        #: On boottime(): until when we ask nothing, because it would be denied.
        self._denied_until = 0.0

    @property
    def term(self) -> Term | None:
        """The term of this master; None on a standby. Uses no network; for any thread."""
        term = self._term
        if term is None or not self._session.connected:
            return None
        return term if term.connection == self._session.connection else None

    def turn(self) -> float:
        """Decides the role again. Returns after how many seconds to do it next, unless a watch
        fires earlier. Raises RootError if, at the start, the root belongs to another app or has an
        unknown format."""
        if not self._session.connected:
            self.restraint.vacant_since = None
            self.demote("the connection to ZooKeeper is lost")
            if self._session.dead:
                self._renew_session()
                return RETRY_AFTER
            return self._complaints.no_answer()
        self._complaints.answered()
        pause = self._denied_until - clock.boottime()
        if pause > 0:
            return pause
        try:
            return self._decide()
        except ZkBeatError as exc:
            return self._go_on_after(exc)

    def resign(self, to: str | None, why: str, also: Sequence[Operation] = ()) -> bool:
        """Resigns, as :meth:`MasterElection.resign`. Returns False if it did not."""
        term = self.term
        if term is None or self.master is None:
            return False
        try:
            if to is None:
                leave: Operation = Delete(self._paths.master)
            elif not self.membership.is_other(to):
                text = "not resigning to %r: there is no other beat with this name"
                logger.warning(text, to, extra=telling("stays", epoch=term.epoch))
                return False
            else:
                leave = SetData(self._paths.master, replace(self.master, successor=to).encode())
            # The epoch, not the znode's version: a successor's znode starts at version 0 again.
            self._session.commit(
                Check(self._paths.epoch, term.epoch),
                leave,
                *also,
                *self._past_terms.end(term.epoch, why),
            )
        except ZkBeatError as exc:
            if isinstance(exc, Conflict) and exc.path == self._paths.masters:
                self._past_terms.forget()  # it was deleted by hand: no reason to stay master
                return self.resign(to, why, also)
            logger.warning("could not resign: %s", exc, extra=telling("stays", epoch=term.epoch))
            return False
        self.restraint.resigned(clock.boottime())
        self.demote(why)
        return True

    def demote(self, why: str) -> None:
        """Ends the term, if there is one. Sends nothing."""
        term, self._term = self._term, None
        if term is not None:
            logger.info(
                "demoted: %s was master, epoch %d: %s",
                self._identity.id,
                term.epoch,
                why,
                extra=telling("demoted", epoch=term.epoch),
            )
            self._on_change()
            self._on_demoted(why)

    def elect(self, last: Node, *before: Operation) -> bool:
        """Sends the one transaction that makes a master, after the `last` epoch. `before` is a part
        of it that makes room. Returns True if it was not refused; :meth:`turn` reads whether it
        worked."""
        made = epoch_record(self._paths.epoch, last)
        era = next_era("" if made is None else made.era, self._session.server_time)
        mine = self._identity.as_master(last.version + 1)
        epoch = EpochRecord(self._identity.id, self._session_name(), era)
        try:
            self._session.commit(
                *before,
                Create(self._paths.master, mine.encode(), ephemeral=True),
                SetData(self._paths.epoch, epoch.encode(), last.version),
            )
        except Conflict as exc:
            if exc.path not in (self._paths.master, self._paths.epoch):
                raise
            logger.debug("not elected: %s", exc)
            return False
        self._this_session.made = self._made = mine
        return True

    @property
    def _this_session(self) -> SessionNotes:
        """Returns the notes on the present session; new ones if the session has changed."""
        session = self._session.id
        if session not in (0, self._notes.id):  # 0: no connection at the moment
            self._notes = SessionNotes(session)
        return self._notes

    def _decide(self) -> float:
        if self._guard is not None:
            self._guard.tell(self._session)
        self._root.prepare(self._this_session)
        while not self._read_master():
            pause = self.restraint.seconds(clock.boottime(), self.membership.is_another_of_use)
            if pause > 0:
                # The next master may name this candidate as its successor.
                if self._session.exists(self._paths.master, self._on_watch):
                    continue
                self._announce()
                return pause
            self._contend()
        if not self.is_decided:
            self.is_decided = True
            self._on_change()
        self._write_down_term()
        if not self._announce():
            return RETRY_AFTER
        now = clock.boottime()
        left, pause = self._notes.announce_at - now, self.restraint.pause(now)
        return max(0.0, min(left, pause) if pause > 0 else left)

    def _go_on_after(self, exc: ZkBeatError) -> float:
        """Handles an error, or raises it. Returns as :meth:`turn`."""
        if isinstance(exc, Uncertain):
            logger.debug("asking again: %s", exc)
            return _ASK_AGAIN_AFTER
        if isinstance(exc, Conflict):
            # A znode of ours was deleted by hand: make it again.
            logger.warning("%s; looking again", exc)
            self._notes.root_is_ready = False
            return _ASK_AGAIN_AFTER
        if isinstance(exc, ZooKeeperError):
            # A master whose quota is used up is master all the same: it only cannot write its
            # member znode.
            if not isinstance(exc, QuotaExceeded):
                self.demote("denied by ZooKeeper" if isinstance(exc, AccessDenied) else str(exc))
            self._complaints.add(exc)
            if isinstance(exc, AccessDenied):
                # A server may close the connection, too, and the next comes at once.
                self._denied_until = clock.boottime() + RETRY_AFTER
                if self._session.outdated:
                    self._renew_session()
            return RETRY_AFTER
        if isinstance(exc, RootError) and self.is_decided:
            # The user who started this beat made no mistake: it has worked before.
            self.demote(str(exc))
            logger.error("%s; looking again in %g s", exc, REMIND_EVERY)
            return REMIND_EVERY
        raise exc

    def _read_master(self) -> bool:
        """Reads who is master, and sets the watch. Returns False if nobody is master."""
        connection = self._session.connection
        if connection != self._caught_up:
            # Otherwise it might read that it is master, although it has resigned and missed the
            # answer.
            self._session.catch_up(self._paths.epoch)
            self._caught_up = connection
        node = self._session.read(self._paths.master, watch=self._on_watch)
        if node is None:
            self.restraint.vacant_since = self.restraint.vacant_since or clock.boottime()
            self.demote("its znode is gone")
            if self.master is not None:
                told = telling("contending", epoch=self.master.epoch)
                logger.info("master %s is gone - contending", self.master.id, extra=told)
                self.master = None
            return False
        self.restraint.vacant_since = None
        try:
            seen = MasterRecord.decode(self._paths.master, node.data)
        except RootError as exc:
            logger.warning("%s", exc)
            seen = MasterRecord("unknown", "", 0, "", 0, "", self._identity.schedule, None)
        if node.owner == self._session.id:
            if seen.successor is None or self.restraint.pause(clock.boottime()) <= 0:
                self._begin(connection, seen, node.version)
            return True
        return self._follow(node, seen)

    def _follow(self, node: Node, seen: MasterRecord) -> bool:
        """Stands by, because another session made the master znode. Takes over from it if it names
        this candidate. Returns False if nobody is master afterwards."""
        successor, seen = seen.successor, replace(seen, successor=None)
        if self._this_session.made == seen:
            # The handshake that named the session was garbled. Under a wrong session id we can
            # never be master, and keep others from it.
            logger.warning("%s, written by this session, has another owner", self._paths.master)
            self._renew_session()
            raise Uncertain(f"{self._paths.master}: this session has the wrong id")
        self.demote(f"{seen.id} is master")
        if seen != self.master:
            self.membership.log_master(seen, node.owner, is_ours=self._made == seen)
        self.master = seen
        # What was read may be old, and then this is refused: the watch that was set will report it.
        leave = Delete(self._paths.master, node.version)
        if successor == self._identity.id and self._contend(leave, of=seen.epoch):
            return self._read_master()
        return True

    def _begin(self, connection: int, seen: MasterRecord, version: int) -> None:
        """Begins a term, because the master znode, at this version, belongs to our session, if the
        epoch is ours too. If the znode names a successor, its time is over."""
        node = self._session.read(self._paths.epoch)
        made = None if node is None else epoch_record(self._paths.epoch, node)
        if node is None or made is None or made.session != self._session_name():
            # Somebody wrote the epoch by hand: nothing may be done under it, so start afresh. Or
            # the successor was elected just now: its znode has another version.
            self.demote(f"{self._paths.epoch} was changed by somebody else")
            self._session.commit(Delete(self._paths.master, version))
            raise Conflict(self._paths.epoch, "written by somebody else while this was master")
        if seen.successor is not None:
            told = telling("stays", epoch=node.version)
            logger.warning("%s did not take over; staying master", seen.successor, extra=told)
            self._past_terms.forget()
            seen = replace(seen, successor=None)
            stay = SetData(self._paths.master, seen.encode(), version)
            self._session.commit(Check(self._paths.epoch, node.version), stay)
        term = Term(node.version, made.era, connection)
        self.master = seen
        if self._term != term:
            self.demote("reconnected")
            self._term = term
            self._on_change()
            how = "still" if node.version == self._elected_epoch else "elected"
            self._elected_epoch = node.version
            logger.info(
                "%s: %s is master, epoch %d",
                how,
                self._identity.id,
                term.epoch,
                extra=telling("elected", epoch=term.epoch),
            )
            self._on_elected(term.epoch)

    def _contend(self, *before: Operation, of: int | None = None) -> bool:
        """Tries to become master, as :meth:`elect`. `of`: the epoch of the master that names this
        candidate as successor; if that term is over, does nothing."""
        epoch = self._session.read(self._paths.epoch)
        if epoch is None:
            raise Conflict(self._paths.epoch, "missing")
        return of in (None, epoch.version) and self.elect(epoch, *before)

    def _write_down_term(self) -> None:
        term = self.term
        if term is None or self.master is None:
            return
        try:
            self._past_terms.write_down(term, self.master)
        except QuotaExceeded as exc:
            self._complaints.add(exc)
        except ZooKeeperError as exc:
            logger.warning("%s; this term is not added to the list of masters", exc)

    def _announce(self) -> bool:
        role = "master" if self._term is not None else "standby"
        guard = None if self._guard is None else self._guard.state
        return self.membership.announce(self._this_session, role, self.restraint.useless, guard)

    def _renew_session(self) -> None:
        self._session.stop(timeout=RETRY_AFTER)
        self._session.start()

    def _session_name(self) -> str:
        return f"{self._session.id:#x}"
