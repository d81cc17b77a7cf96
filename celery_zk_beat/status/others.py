"""The entries of another scheduler, as the master wrote them: see :mod:`..shown`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .. import clock
from ..due import is_ahead, next_free, next_run, rule_text, schedule_of
from ..errors import RootError, ZkBeatError
from ..paths import Paths
from ..runs import RunState
from ..shown import Index, Rule, ShownEntry, decode_shown
from ..zookeeper.operations import Node
from ..zookeeper.session import ZooKeeperSession

_UNTIL = "; tasks and schedules of entries are not known until the master writes it again"


@dataclass(frozen=True)
class OtherEntry:
    """An entry in the form of Celery's, as far as a look needs it. `schedule`: None if only its
    class knows it."""

    name: str
    told: ShownEntry
    schedule: Any

    @property
    def task(self) -> str | None:
        return self.told.task

    @property
    def text(self) -> str | None:
        """The schedule as text."""
        rule = self.told.rule
        return self.told.schedule if rule is None else rule_text(rule, self.schedule)

    def default_now(self) -> datetime:
        return clock.now()

    def next_run_at(self, state: RunState) -> datetime | None:
        """None if it is unknown."""
        told, due = self.told, self.told.next_run_at
        if told.is_disabled or told.error is not None:
            return None
        if self.schedule is not None:
            last = max(state.last_run_at, told.since or state.last_run_at)
            due = next_free(self, next_run(self, last), state)
        elif due is not None and state.due is not None and due <= state.last_run_at:
            return None  # the master has not written yet what comes after that run
        return due if due is None or told.start is None else max(due, told.start)


class OtherEntries:
    """Reads the entries of another scheduler. With `on_change`, as in :class:`.reader.Reader`, it
    reads only what has changed. For one thread at a time.

    Args:
        scheduler: the name of the class; entries of any other class are ignored.
        app: the asker's app. Its time zone is the zone of a schedule without one.

    Attributes:
        entries: by name.
        warnings: a line for each record that cannot be parsed.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        scheduler: str,
        app: Any,
        on_change: Callable[[], None] | None,
    ) -> None:
        self._session, self._paths = session, paths
        self._scheduler, self._app, self._on_change = scheduler, app, on_change
        self._is_stale = True
        self._pages: dict[str, _Page] = {}
        self._schedules: dict[Rule, Any] = {}
        self.entries: dict[str, OtherEntry] = {}
        self.warnings: list[str] = []

    def ahead(self, now: datetime) -> dict[str, datetime]:
        """Returns the entries that are held back because, according to their store, they ran in the
        future; and when."""
        return {
            name: entry.told.since
            for name, entry in self.entries.items()
            if entry.told.since is not None and is_ahead(entry.told.since, now)
            if not (entry.told.is_put_off or entry.told.is_disabled)
        }

    def refresh(self) -> None:
        """Reads what has changed.

        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.

        After either of them the next call reads again.
        """
        if self._is_stale or self._on_change is None:
            self._is_stale = False  # before reading: a watch may fire at once
            try:
                self._refresh()
            except ZkBeatError:
                self._is_stale = True
                raise

    def _refresh(self) -> None:
        path = self._paths.shown
        if self._on_change is not None:
            self._session.exists(path, self._on_watch)  # also fires if it is created later
        node, damage, index = self._session.read(path), [], None
        try:
            index = None if node is None else Index.decode(path, node.data)
        except RootError as exc:
            damage.append(f"{exc}{_UNTIL}")
        pages, before = dict[str, int](), self._pages
        if index is not None and index.scheduler == self._scheduler:
            pages.update(index.pages)
        paths = {
            page: self._paths.shown_page(page)
            for page, checksum in pages.items()
            if page not in before or before[page].checksum != checksum
        }
        nodes = self._session.read_all([*paths.values()])
        read = {
            page: self._page(paths[page], pages[page], node) for page, node in zip(paths, nodes)
        }
        if read or pages.keys() != before.keys():
            self._pages = {page: read.get(page) or before[page] for page in pages}
            self.entries = {}
            for each in self._pages.values():
                self.entries.update(each.entries)
        self.warnings = [*damage, *(each.damage for each in self._pages.values() if each.damage)]

    def _page(self, path: str, checksum: int, node: Node | None) -> _Page:
        try:
            told = {} if node is None else decode_shown(path, node.data)
        except RootError as exc:
            return _Page(checksum, {}, f"{exc}{_UNTIL}")
        return _Page(checksum, {name: self._entry(name, each) for name, each in told.items()})

    def _entry(self, name: str, told: ShownEntry) -> OtherEntry:
        rule = told.rule
        if rule is None:
            return OtherEntry(name, told, None)
        if rule not in self._schedules:
            self._schedules[rule] = schedule_of(rule, self._app)
        return OtherEntry(name, told, self._schedules[rule])

    def _on_watch(self, event: object) -> None:
        self._is_stale = True
        if self._on_change is not None:
            self._on_change()


@dataclass(frozen=True)
class _Page:
    """The entries of a page, and the checksum that the page had in the index. `damage` says why
    they cannot be parsed."""

    checksum: int
    entries: dict[str, OtherEntry]
    damage: str = ""
