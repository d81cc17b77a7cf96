"""The inbox: what workers report, as the master reads it. The counterpart of the outbox."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .. import clock
from ..errors import AccessDenied, RootError, ZkBeatError
from ..log import get_logger
from ..paths import Paths
from ..security import Grant
from ..zookeeper.operations import Delete, Node
from ..zookeeper.session import ZooKeeperSession
from .deliveries import Deliveries, Delivery, Key
from .reports import Report

logger = get_logger(__name__)

#: Most reports that are read at once; the others are read in the next turn.
_AT_ONCE = 1000
#: Most characters of a delivery's name, of which :func:`.reports.delivery_of` makes shorter ones.
#: The paths of some thousand must fit into a transaction.
_LONGEST_DELIVERY = 150
#: Seconds after which it is read again who executes what. No watch tells that somebody has put
#: another znode in the place of one that ended with its session.
CHECK_EVERY = 30.0


class Inbox(Deliveries):
    """Reads the reports of workers. For one thread. Raises what
    :meth:`.ZooKeeperSession.read` raises.

    Args:
        acl: the rights on the folders; None: as on all other znodes.
        wake: is called on kazoo's thread when there is something new.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        acl: tuple[Grant, ...] | None,
        wake: Callable[[], None],
    ) -> None:
        self._session, self._paths, self._acl, self._wake = session, paths, acl, wake
        self.forget()

    def forget(self) -> None:
        self._stale, self._is_there, self._is_unsettled = True, False, False
        self._known: dict[str, Delivery] = {}
        #: When to read again what is executed, on boottime(), and what is left of that.
        self._check_at, self._unchecked = 0.0, set[str]()
        self._has_warned = False

    @property
    def stale(self) -> bool:
        return self._stale

    def read(self, open_runs: Iterable[Key] = ()) -> Mapping[str, Delivery]:
        if self._stale or self._is_unsettled or clock.boottime() >= self._check_at:
            self._stale = False
            try:
                self._read()
            except ZkBeatError:
                self._stale = True
                raise
        return self._known

    def has_looked(self, key: Key) -> bool:
        return True

    def outdated(self, name: str) -> None:
        self._known.pop(name, None)
        self._stale = True

    def _read(self) -> None:
        paths = self._paths
        if not self._is_there:
            for path in (paths.inbox, paths.inbox_reports, paths.inbox_running):
                self._session.ensure(path, self._acl)
            self._is_there = True
        # In this order. A worker creates both znodes of a delivery at once, and writes the end and
        # deletes the second at once. So if the second is missing, the report that is read
        # afterwards says how it ended, or nobody is left to say it.
        names = self._session.children(paths.inbox_reports, self._on_watch)
        running = set(self._session.children(paths.inbox_running, self._on_watch))
        if not (names and running):
            self._look_for_folders()
        names = self._short(names)
        known = self._known
        for gone in known.keys() - set(names):
            del known[gone]
        if clock.boottime() >= self._check_at:
            self._check_at = clock.boottime() + CHECK_EVERY
            self._unchecked = {name for name, each in known.items() if each.is_running}
        wanted = [name for name in names if self._must_read(name, running)]
        self._stale |= len(wanted) > _AT_ONCE
        for name, node, held in self._nodes(wanted[:_AT_ONCE], running):
            self._unchecked.discard(name)
            if node is not None:
                known[name] = self._delivery(name, node, held)
        # No watch tells what their workers may yet write.
        self._is_unsettled = any(self._must_read(name, running) for name in known)

    def _look_for_folders(self) -> None:
        """Makes sure that a folder which seems to be empty is there. Without it no worker could
        report anything, and no watch would tell."""
        folders = (self._paths.inbox_reports, self._paths.inbox_running)
        if not all(self._session.exists(path) for path in folders):
            self._is_there, self._stale = False, True

    def _short(self, names: list[str]) -> list[str]:
        """Leaves out names that no worker of ours gives, and that are so long that a transaction
        which deletes them might be too large."""
        short = [name for name in names if len(name) <= _LONGEST_DELIVERY]
        if len(short) < len(names) and not self._has_warned:
            self._has_warned = True
            text = "%s: %d znodes have names longer than %d characters; they are left alone"
            count = len(names) - len(short)
            logger.warning(text, self._paths.inbox_reports, count, _LONGEST_DELIVERY)
        return short

    def _must_read(self, name: str, running: set[str]) -> bool:
        known = self._known.get(name)
        if known is None:
            return True
        if known.report is None or known.report.is_final:
            return False
        # The worker may go on although its session has expired, and write the end.
        return name not in running or not known.is_running or name in self._unchecked

    def _nodes(
        self, names: Sequence[str], running: set[str]
    ) -> Iterator[tuple[str, Node | None, Node | None]]:
        """Reads the reports of deliveries, and before each the znode that says that the delivery is
        executed, if there is one."""
        reports = {name: f"{self._paths.inbox_reports}/{name}" for name in names}
        held = {name: f"{self._paths.inbox_running}/{name}" for name in names if name in running}
        paths = [path for name in names for path in (held.get(name), reports[name]) if path]
        try:
            nodes = dict(zip(paths, self._session.read_all(paths)))
        except AccessDenied:
            nodes = {path: self._lenient(path) for path in paths}
        for name, path in reports.items():
            yield name, nodes[path], nodes.get(held.get(name, ""))

    def _lenient(self, path: str) -> Node | None:
        """Reads one znode. One that we may not read is as one that cannot be understood."""
        try:
            return self._session.read(path)
        except AccessDenied as exc:
            if path.rpartition("/")[2] not in self._known:  # else it was said
                logger.warning("%s; it is ignored", exc)
            return Node(b"", -1, 0)

    def _delivery(self, name: str, node: Node, held: Node | None) -> Delivery:
        path = f"{self._paths.inbox_reports}/{name}"
        deletes = [Delete(path, node.version)]
        # Workers make ephemeral ones. Any other would stay when its worker is gone.
        is_running = held is not None and held.owner != 0
        if held is not None and not is_running:
            deletes.insert(0, Delete(f"{self._paths.inbox_running}/{name}", held.version))
        report: Report | None = None
        try:
            report = Report.decode(path, node.data)
        except RootError as exc:
            logger.warning("%s; it is ignored", exc)
        if report is not None and report.is_final:
            is_running = False  # it ended after the other znode was read
        return Delivery(name, report, node.mtime, is_running, tuple(deletes))

    def _on_watch(self, event: object) -> None:
        self._stale = True
        self._wake()
