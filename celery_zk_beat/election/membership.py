"""The member znodes, one for each candidate: writes the one of this candidate, reads the others."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from dataclasses import dataclass

from .. import clock
from ..errors import RootError
from ..log import get_logger, telling
from ..paths import Paths, quote_name
from ..records import MasterRecord, MemberRecord, to_text
from ..version import __version__
from ..zookeeper.operations import Create, Node, SetData
from ..zookeeper.session import ZooKeeperSession

logger = get_logger(__name__)

#: Seconds after which the member znode is written again: its time shows how far clocks are apart.
_ANNOUNCE_EVERY = 600.0


@dataclass
class SessionNotes:
    """All that is known of one session. The next session gets a new one, so that nothing is kept by
    mistake.

    Attributes:
        id: the id of the session.
        is_greeted: it was logged.
        root_is_ready: all that an election needs exists, and is ours.
        made: the master znode as this session last wrote it.
        announced: role, uselessness and guard, as the member znode of this session has them.
        announce_at: on boottime(), when to write the member znode again.
    """

    id: int
    is_greeted: bool = False
    root_is_ready: bool = False
    made: MasterRecord | None = None
    announced: tuple[str, str | None, str | None] | None = None
    announce_at: float = 0.0


@dataclass(frozen=True)
class Identity:
    """What others see of a candidate: `schedule` is a digest of what it would do as master,
    `broker` a digest of where it would send runs."""

    id: str
    schedule: str | None
    broker: str | None

    def as_master(self, epoch: int) -> MasterRecord:
        """Makes the record of this candidate as master, from now on."""
        who, now = (self.id, socket.gethostname(), os.getpid()), to_text(clock.now())
        return MasterRecord(*who, now, epoch, __version__, self.schedule, None, self.broker)

    def as_member(
        self, role: str, since: str, useless: str | None, guard: str | None
    ) -> MemberRecord:
        """Makes the member record of this candidate as it is now."""
        who, doing = (self.id, socket.gethostname(), os.getpid()), (role, since, __version__)
        now = to_text(clock.now())
        return MemberRecord(*who, *doing, self.schedule, now, useless, self.broker, guard)


class Membership:
    """This candidate among the others."""

    def __init__(self, session: ZooKeeperSession, paths: Paths, identity: Identity) -> None:
        self._session, self._paths, self._identity = session, paths, identity
        #: When this candidate was started, as the member znode has it.
        self._since = ""
        #: The other session that was seen to hold the member znode of this name; and, on
        #: boottime(), until when it may be the session of a process that has ended.
        self._namesake, self._namesake_until = 0, math.inf

    def begin(self) -> None:
        """Notes that this candidate starts now."""
        self._since = to_text(clock.now())

    def announce(
        self, notes: SessionNotes, role: str, useless: str | None, guard: str | None
    ) -> bool:
        """Writes the member znode if its content has changed, and now and then. Returns False if
        another session's znode of the same name is in the way: usually an earlier session that has
        not expired yet."""
        told = role, useless, guard
        if notes.announced == told and clock.boottime() < notes.announce_at:
            return True
        path = self._paths.member(self._identity.id)
        data = self._identity.as_member(role, self._since, useless, guard).encode()
        node = self._session.read(path)
        if node is None:
            self._session.commit(Create(path, data, ephemeral=True))
        elif node.owner == self._session.id:
            self._session.commit(SetData(path, data))
        else:
            self._note_namesake(path, node)
            return False
        notes.announced = told
        notes.announce_at = clock.boottime() + _ANNOUNCE_EVERY
        return True

    def is_other(self, id: str) -> bool:
        """True if another candidate with this id is a member now."""
        return (
            id != self._identity.id
            and id.isprintable()
            and quote_name(id) in self._session.children(self._paths.members)
        )

    def is_another_of_use(self) -> bool:
        """True if there is another candidate that is not known to be useless."""
        others = [
            f"{self._paths.members}/{name}"
            for name in self._session.children(self._paths.members)
            if name != quote_name(self._identity.id)
        ]
        for path, node in zip(others, self._session.read_all(others)):
            with contextlib.suppress(RootError):
                if node is not None and MemberRecord.decode(path, node.data).useless is None:
                    return True
        return False

    def log_master(self, master: MasterRecord, owner: int, *, is_ours: bool) -> None:
        """Logs who is master. Warns if that master would do other things than this candidate, or
        send runs to another broker. `owner`: the session of the master znode. `is_ours`: as in
        :meth:`_whose`."""
        own = self._identity
        who = f" ({self._whose(is_ours, master)})" if master.id == own.id else ""
        logger.info(
            "not elected because %s%s is master, epoch %d",
            master.id,
            who,
            master.epoch,
            extra=telling("standby", epoch=master.epoch),
        )
        if owner == 0:
            logger.error(
                "%s is not ephemeral, so no beat created it, and no beat can become master: "
                "delete it",
                self._paths.master,
            )
        if master.schedule != own.schedule:
            logger.warning(
                "%s, the master, has a different schedule from %s (digests %s and %s): is a "
                "deploy under way?",
                master.id,
                own.id,
                master.schedule,
                own.schedule,
            )
        if None not in (master.broker, own.broker) and master.broker != own.broker:
            logger.warning(
                "%s, the master, sends to another broker than %s (digests %s and %s): are "
                "these two environments with one %s?",
                master.id,
                own.id,
                master.broker,
                own.broker,
                self._session.access.name("root"),
            )

    def _whose(self, is_ours: bool, held: MasterRecord | MemberRecord) -> str:
        """Says, for a log line, who has this candidate's id. `is_ours`: this process seems to have
        written `held`, unless another process has the same host name and pid."""
        here = held.host, held.pid
        if is_ours and here == (socket.gethostname(), os.getpid()):
            return "an earlier session of this process, which will expire"
        return (
            f"another process with the same id, pid {held.pid} on {held.host}: one that is gone, "
            f"whose session will expire, or a beat with the same {self._session.access.name('id')}"
        )

    def _note_namesake(self, path: str, node: Node) -> None:
        """Logs once who holds the member znode of this candidate's name. Logs it once more when it
        is certain to be another process: an abandoned session would have ended by then."""
        now = clock.boottime()
        if node.owner != self._namesake:
            self._namesake, self._namesake_until = node.owner, now + 3 * self._session.timeout
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
                self._identity.id,
                self._session.access.name("id"),
            )
