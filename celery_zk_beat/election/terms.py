"""Terms: the epoch that numbers a term, and the list of the last terms."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import clock
from ..errors import RootError
from ..log import get_logger
from ..paths import Paths
from ..records import EpochRecord, MasterRecord, TermRecord, decode_masters, encode_masters, to_text
from ..zookeeper.operations import Check, Create, Node, Operation, SetData
from ..zookeeper.session import ZooKeeperSession

logger = get_logger(__name__)


@dataclass(frozen=True)
class Term:
    """One uninterrupted time as master, as the master itself sees it.

    A reconnect within the same session begins a new Term with the same epoch.

    Attributes:
        epoch: the fencing token. It grows with every election under this root.
        era: when the master was elected, by ZooKeeper's clock, as ISO 8601 UTC. It grows with every
            election, even if the epochs start again: after the root was deleted, or restored from
            a copy.
        connection: the connection on which ZooKeeper last confirmed it.
    """

    epoch: int
    era: str
    connection: int


def epoch_record(path: str, epoch: Node) -> EpochRecord | None:
    """Reads who was elected last. Returns None if nobody was yet, or if it cannot be parsed."""
    try:
        return EpochRecord.decode(path, epoch.data) if epoch.data else None
    except RootError as exc:
        logger.warning("%s", exc)
        return None


class PastTerms:
    """The znode with the last terms of all candidates, as this one writes it."""

    def __init__(self, session: ZooKeeperSession, paths: Paths) -> None:
        self._session, self._paths = session, paths
        #: The terms as they were last written, and for which epoch that was.
        self._written: list[TermRecord] = []
        self._written_for = 0

    def write_down(self, term: Term, mine: MasterRecord) -> None:
        """Writes, once per epoch, that this candidate is master and that the last term is over."""
        if self._written_for == term.epoch:
            return
        path = self._paths.masters
        node = self._session.read(path)
        try:
            past = decode_masters(path, b"" if node is None else node.data)
        except RootError as exc:
            logger.warning("%s; the list of masters starts empty", exc)
            past = []
        past = [each for each in past if each.epoch < term.epoch]
        if past and past[-1].until is None:
            past[-1] = replace(past[-1], until=mine.since, why="its session ended")
        past.append(TermRecord(term.epoch, mine.id, mine.host, mine.pid, mine.since, None, None))
        data = encode_masters(past)
        self._session.commit(
            Check(self._paths.epoch, term.epoch),
            Create(path, data) if node is None else SetData(path, data, node.version),
        )
        self._written, self._written_for = past, term.epoch

    def end(self, epoch: int, why: str) -> list[Operation]:
        """Returns the operations that write that the term of `epoch` ends now, for the caller's
        transaction."""
        if self._written_for != epoch:
            return []  # the term was too short to be written
        *others, mine = self._written
        past = [*others, replace(mine, until=to_text(clock.now()), why=why)]
        return [SetData(self._paths.masters, encode_masters(past))]

    def forget(self) -> None:
        """Makes the next :meth:`write_down` read and write the list again."""
        self._written_for = 0
