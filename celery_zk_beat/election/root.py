"""The root: creates what an election needs there, and refuses the root of another app."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Conflict, RootError
from ..log import get_logger
from ..paths import Paths
from ..records import RootRecord
from ..zookeeper.operations import SetData
from ..zookeeper.session import ZooKeeperSession
from .membership import SessionNotes

logger = get_logger(__name__)


class Root:
    """The root of one election.

    Args:
        hosts: the connection string, for log lines.
        app: the program to which the root must belong; None: do not check.
        below: the names of further znodes to create below the root.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        hosts: str,
        paths: Paths,
        app: str | None,
        below: Sequence[str],
    ) -> None:
        self._session, self._hosts, self._paths, self._app = session, hosts, paths, app
        self._below = [f"{paths.root}/{name}" for name in below]
        #: True if we have looked which rights others have on our znodes.
        self._saw_rights = False

    def prepare(self, notes: SessionNotes) -> None:
        """Creates what is missing, and checks that the root is ours: once per session. Raises
        RootError if the root belongs to another app or has an unknown format."""
        if notes.root_is_ready:
            return
        if not notes.is_greeted:
            notes.is_greeted = True
            logger.info(
                "connected to ZooKeeper at %s, root %s, session time-out %g s%s",
                self._hosts,
                self._paths.root,
                self._session.timeout,
                self._session.granted_otherwise,
            )
        for path in (self._paths.root, self._paths.epoch, self._paths.members, *self._below):
            self._session.ensure(path)
        self._put_name()
        # The answer has ZooKeeper's time in it. Each session may be with another server.
        self._session.commit(SetData(self._paths.members, b""))
        if not self._saw_rights:
            self._look_at_rights()
            self._saw_rights = True
        notes.root_is_ready, notes.announced = True, None

    def _put_name(self) -> None:
        """Writes the app's name into a root that has none yet. Otherwise compares the two."""
        if self._app is None:
            return
        path = self._paths.root
        node = self._session.read(path)
        if node is not None and not node.data:
            try:
                self._session.commit(SetData(path, RootRecord(self._app).encode(), node.version))
            except Conflict:
                self._put_name()  # another beat was first: see what it wrote
        elif node is not None:
            owner = RootRecord.decode(path, node.data).app
            if owner != self._app:
                raise RootError(
                    f"{path} belongs to the app {owner!r}, and this is {self._app!r}: "
                    f"give each app its own root ({self._session.access.name('root')})"
                )

    def _look_at_rights(self) -> None:
        """Warns if others have more rights on our znodes than they should."""
        access, root = self._session.access, self._paths.root
        if access.tls is not None and not access.tls.verify:
            logger.warning(
                "%s: with verify = False anybody can pretend to be ZooKeeper", access.name("tls")
            )
        if access.open_by_default:
            logger.warning(
                "anybody who reaches ZooKeeper at %s can change %s: set %s (docs/security.md)",
                self._hosts,
                root,
                access.credentials("or"),
            )
            return
        paths = [root]
        for parent in (root, *self._below):
            paths += sorted(f"{parent}/{name}" for name in self._session.children(parent))
        found = [
            (path, excess[0])
            for path, grants in zip(paths, self._session.grants(paths))
            if (excess := access.excess(grants))
        ]
        if found:
            path, grant = found[0]
            more = f" and {len(found) - 1} more" if found[1:] else ""
            logger.warning(
                "%s%s give %s, which is more than %s: to repair it, a user with that right runs "
                "in zkCli.sh: setAcl -R %s %s",
                path,
                more,
                grant,
                access.name("acl") if access.acl else "to the creator alone",
                root,
                ",".join(map(str, access.grants)),
            )
