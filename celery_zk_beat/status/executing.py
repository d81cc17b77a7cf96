"""Which open runs workers execute at this moment: what workers say of it below ``inbox``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import NamedTuple

from ..errors import AccessDenied, RootError, ZkBeatError
from ..outcomes.reports import STARTED, Report
from ..paths import Paths
from ..zookeeper.session import ZooKeeperSession

#: Most reports that are read at a look; of other runs it is only known that they are open.
_MOST_READ = 200


class Execution(NamedTuple):
    """A worker that executes a run, and since when it does, by ZooKeeper's clock."""

    worker: str
    since: datetime


class Executing:
    """For one thread at a time. `on_change`: as that of :class:`.reader.Reader`."""

    def __init__(
        self, session: ZooKeeperSession, paths: Paths, on_change: Callable[[], None] | None
    ) -> None:
        self._session, self._paths, self._on_change = session, paths, on_change
        #: What is known, by delivery.
        self._known: dict[str, Execution | None] = {}
        self._is_stale = True
        self._running: list[str] = []

    def read(self, task_ids: Iterable[str]) -> dict[str, Execution]:
        """Returns who executes the runs with these task ids, as far as somebody does.

        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.
        """
        wanted = set(task_ids)
        if not wanted:
            self._is_stale = True
            return {}
        # A folder that does not exist has no watch.
        if self._is_stale or not self._running or self._on_change is None:
            self._is_stale = False
            watch = None if self._on_change is None else self._on_watch
            try:
                self._running = self._session.children(self._paths.inbox_running, watch)
            except AccessDenied:  # then they are open, and no more is known
                self._running = []
            except ZkBeatError:
                self._is_stale = True
                raise
        # A delivery's name begins with the task id.
        names = {name: name.rpartition(".")[0] for name in self._running}
        names = {name: task_id for name, task_id in names.items() if task_id in wanted}
        self._known = {name: each for name, each in self._known.items() if name in names}
        self._read([name for name in names if name not in self._known][:_MOST_READ])
        return {names[name]: each for name, each in self._known.items() if each is not None}

    def _read(self, names: list[str]) -> None:
        folder, running = self._paths.inbox_reports, self._paths.inbox_running
        paths = [f"{each}/{name}" for name in names for each in (running, folder)]
        try:
            nodes = self._session.read_all(paths)
        except AccessDenied:  # of somebody else's making
            return
        for name, held, node in zip(names, nodes[::2], nodes[1::2]):
            self._known[name] = None
            # Workers make ephemeral ones: see Inbox.
            if node is None or held is None or not held.owner:
                continue
            try:
                report = Report.decode(f"{folder}/{name}", node.data)
                since = datetime.fromtimestamp(node.mtime, timezone.utc)
            except (RootError, ValueError, OverflowError, OSError):
                continue
            if report.state == STARTED:
                self._known[name] = Execution(report.worker, since)

    def _on_watch(self, event: object) -> None:
        self._is_stale = True
        assert self._on_change is not None
        self._on_change()
