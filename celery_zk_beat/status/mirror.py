"""A copy of the znodes below a root, for repeated reading."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from .. import clock
from ..errors import ZkBeatError
from ..paths import Paths, is_page, is_volume
from ..zookeeper.operations import Node, changed_path
from ..zookeeper.quota import Quota, quota_of
from ..zookeeper.session import ZooKeeperSession


class Mirror:
    """Keeps the znodes of an election as they were last read. With watches it reads only what has
    changed. For one thread at a time. `on_change` is as in :class:`.reader.Reader`.

    Attributes:
        nodes: by path; None for a znode that does not exist and may be created later.
        quota: the tightest quota that applies to the root.
    """

    def __init__(
        self, session: ZooKeeperSession, paths: Paths, on_change: Callable[[], None] | None
    ) -> None:
        self._session = session
        self._paths = paths
        self._on_change = on_change
        #: The paths that are always read. Some may not exist yet.
        self._fixed = (
            *(paths.root, paths.master, paths.masters),
            *(paths.pauses, paths.backfills, paths.outbox),
        )
        self._parents = (paths.root, paths.members, paths.runs)
        #: Paths that have changed since they were read; None stands for all of them.
        self._changed: clock.SimpleQueue[str | None] = clock.SimpleQueue()
        self._changed.put(None)
        self.nodes: dict[str, Node | None] = {}
        self.quota: Quota | None = None

    def refresh(self) -> None:
        """Reads what has changed.

        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.

        After either of them the next call reads everything again.
        """
        try:
            self._refresh()
        except ZkBeatError:
            self._changed.put(None)
            raise

    def below(self, parent: str) -> Iterator[tuple[str, Node]]:
        """Yields the znodes below `parent`, with their paths."""
        for path, node in self.nodes.items():
            if node is not None and path.startswith(f"{parent}/"):
                yield path, node

    def _refresh(self) -> None:
        changed = self._take_changed()
        if not self._session.connected:
            changed.add(None)  # to report it, even if the watches have not fired yet
        if not changed and self._on_change is not None:
            return
        everything = None in changed or self._on_change is None
        watch = self._watch
        wanted = {path for path in changed if path in self.nodes}
        # A znode that does not exist has no watch of its own: the watch on the root reports its
        # creation.
        something_came = everything or self._paths.root in changed
        if something_came:
            wanted.update(self._fixed)
            # We do not ask a znode that does not exist for its children, and so do not watch them.
            if watch is not None:
                self._session.exists(self._paths.root, watch)
        for parent in self._parents:
            if something_came or parent in changed:
                names = self._session.children(parent, watch)
                if parent != self._paths.root:
                    wanted |= self._follow(parent, names, everything)
        self.quota = quota_of(self._paths.root, self._session.read_all)
        wanted = {path for path in wanted if not self._is_history(path)}
        # Read the outbox after the pages: then it is never older than they are.
        self._read(sorted(wanted, key=lambda path: (path == self._paths.outbox, path)))
        self._refresh_histories(changed, something_came, everything)

    def _refresh_histories(
        self, changed: set[str | None], something_came: bool, everything: bool
    ) -> None:
        """Reads the histories after the pages: they contain past runs that the pages no longer
        have."""
        for path in self._take_changed():  # in between
            if self._is_history(path):
                changed.add(path)
            else:
                self._changed.put(path)
        wanted = {path for path in self.nodes if path in changed and self._is_history(path)}
        if something_came or self._paths.history in changed:
            names = self._session.children(self._paths.history, self._watch)
            wanted |= self._follow(self._paths.history, names, everything)
        self._read(sorted(wanted))

    def _read(self, paths: list[str]) -> None:
        if paths:
            self.nodes.update(zip(paths, self._session.read_all(paths, self._watch)))

    @property
    def _watch(self) -> Callable[[object], None] | None:
        return None if self._on_change is None else self._on_watch

    def _is_history(self, path: str | None) -> bool:
        """True also for the parent of all histories."""
        return path is not None and path.startswith(self._paths.history)

    def _take_changed(self) -> set[str | None]:
        changed: set[str | None] = set()
        with contextlib.suppress(clock.Empty):
            while True:
                changed.add(self._changed.get_nowait())
        return changed

    def _follow(self, parent: str, names: Iterable[str], everything: bool) -> set[str]:
        """Forgets the znodes that are no longer below `parent`. Returns those that must be read."""
        if parent == self._paths.runs:
            names = filter(is_page, names)
        elif parent == self._paths.history:
            names = filter(is_volume, names)
        there = {f"{parent}/{name}" for name in names}
        known = {path for path in self.nodes if path.startswith(f"{parent}/")}
        for path in known - there:
            del self.nodes[path]
        return there if everything else there - known

    def _on_watch(self, event: object) -> None:
        self._changed.put(changed_path(event))
        if self._on_change is not None:
            self._on_change()
