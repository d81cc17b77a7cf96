"""The live entries, as readers see them: which are in force, which are not, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ..due import copied_at, schedule_text
from ..errors import RootError, ZkBeatError
from ..live import definitions
from ..live.definitions import Content, Page, Sum, Timing, page_of_entry, refusal
from ..live.merging import Live, entry_of, judged
from ..live.store import read_index, read_pages
from ..paths import Paths
from ..policies import OwnPolicies
from ..runs import RunState, from_milliseconds
from ..settings import Settings
from ..zookeeper.session import ZooKeeperSession
from .snapshot import Change


class AskersSchedule(Protocol):
    """The part of the asker's scheduler that this module needs."""

    app: Any
    #: The class of its entries.
    Entry: Any

    @property
    def entries(self) -> Mapping[str, Any]:
        """Celery's, by name."""


class LiveEntries:
    """Reads the live entries. For one thread at a time.

    Args:
        schedule: the asker's schedule. Its app knows the tasks, and the time zone for schedules
            without one.
        on_change: as in :class:`.reader.Reader`. With it, only changes are read after the first
            time.

    Attributes:
        found: all live entries, by name.
        policies: the policies of the setting and of the entries that are in force.
        damages: a line for each record that cannot be parsed.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        settings: Settings,
        schedule: AskersSchedule,
        on_change: Callable[[], None] | None,
    ) -> None:
        self._session, self._paths, self._settings = session, paths, settings
        self._schedule, self._on_change = schedule, on_change
        self._is_stale = True
        #: By page: what the index said of it when it was read, and what is on it.
        self._pages: dict[str, tuple[Sum, Page | RootError]] = {}
        self._is_damaged = False
        self._why_not = functools.lru_cache(None)(self._refusal)
        self.found: dict[str, Live] = {}
        self.policies = OwnPolicies(settings.policies)
        self.damages: list[str] = []

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

    def merged(self) -> dict[str, Any]:
        """Returns the entries that are in force, by name: of the asker's schedule and live ones."""
        entries = dict(self._schedule.entries)
        for name, live in self.found.items():
            if not self._is_hidden(name, live):
                entries.pop(name, None)
                if live.entry is not None:
                    entries[name] = live.entry
        return entries

    def of(self, name: str) -> Live | None:
        """Returns the live entry that a name stands for, in force or not. None if there is none, or
        if an entry of the asker's schedule wins."""
        live = self.found.get(name)
        return None if live is None or self._is_hidden(name, live) else live

    def _is_hidden(self, name: str, live: Live) -> bool:
        """True if the asker's schedule has an entry of the same name, which wins."""
        return name in self._schedule.entries and not live.overrides

    def may_hold(self, name: str) -> bool:
        """True if a record that cannot be parsed may hold this entry."""
        page = self._pages.get(page_of_entry(name))
        return self._is_damaged or (page is not None and isinstance(page[1], RootError))

    def changes(self, name: str | None) -> tuple[Change, ...]:
        """Returns the last changes of an entry, or of all, newest first."""
        names = self.found if name is None else self.found.keys() & {name}
        changes = (
            Change(name, each.version, from_milliseconds(each.at), each.by, each.what)
            for name in names
            for each in _changes(self.found[name])
        )
        return tuple(sorted(changes, key=lambda each: (each.at, each.version), reverse=True))

    def warnings(self) -> Iterator[str]:
        """Returns a line for each kind of trouble. It names the first entry, or the first few."""
        yield from self.damages
        broken, disabled, hidden = list[str](), list[str](), list[str]()
        for name, live in sorted(self.found.items()):
            if self._is_hidden(name, live):
                hidden.append(name)
            elif live.is_disabled:
                disabled.append(name)
            elif live.entry is None:
                broken.append(f"{name}: {live.why}")
        if broken:
            yield f"{_count(broken, 'does not run', 'do not run')}, such as {broken[0]}"
        if hidden:
            yield (
                f"{_count(hidden, 'does not run', 'do not run')}, because beat_schedule has an "
                f"entry of the same name: {_some(hidden)}"
            )
        if disabled:
            yield f"{_count(disabled, 'is disabled', 'are disabled')}: {_some(disabled)}"

    def _refresh(self) -> None:
        watch = None if self._on_change is None else self._on_watch
        if watch is not None:
            self._session.exists(self._paths.entries, watch)  # also fires if it is created later
        indexed = read_index(self._session, self._paths, watch)
        sums, before = indexed.index.pages, self._pages
        differ = [page for page, each in sums.items() if _is_other(before.get(page), each)]
        read = read_pages(self._session, self._paths, differ)
        self._pages = {
            page: (each, read[page]) if page in read else before[page]
            for page, each in sums.items()
        }
        for page in before.keys() - self._pages.keys():
            self._forget(before[page][1])
        for page, found in read.items():
            if page in before:
                self._forget(before[page][1])
            self._take(found)
        self._is_damaged = indexed.damage is not None
        until = "; until it is repaired the live entries"
        self.damages = [] if indexed.damage is None else [f"{indexed.damage}{until} do not run"]
        self.damages += [
            f"{found}{until} on this page do not run"
            for _, found in self._pages.values()
            if isinstance(found, RootError)
        ]

    def _forget(self, page: Page | RootError) -> None:
        for name in () if isinstance(page, RootError) else page.told:
            self.found.pop(name, None)
            self.policies.give(name, {})

    def _take(self, page: Page | RootError) -> None:
        if isinstance(page, RootError):
            return
        for name in page.told:
            live = self.found[name] = judged(name, page, self._make, self._why_not)
            if live.definition is not None and self.of(name) is not None:
                self.policies.give(name, live.definition.content.policy_keys)

    def _make(self, name: str, content: Content) -> Any:
        schedule = copied_at(content.schedule.schedule(), None)
        return entry_of(self._schedule.Entry, self._schedule.app, name, content, schedule)

    def _refusal(self, task: str) -> str | None:
        setting = f"{self._settings.prefix}entries_tasks"
        return refusal(task, self._schedule.app.tasks, self._settings.entries_tasks, setting)

    def _on_watch(self, event: object) -> None:
        self._is_stale = True
        if self._on_change is not None:
            self._on_change()


def begun(state: RunState | None, live: Live) -> RunState:
    """Returns the run state from which the next run of an entry is computed. The entry's clock
    starts anew if the master has not seen the last change yet, or if there is no master."""
    if state is None:
        return RunState(live.begins)
    return state if state.key == live.key else replace(state, last_run_at=live.begins, due=None)


def _changes(live: Live) -> Iterable[definitions.Change]:
    return () if live.definition is None else live.definition.changes


def text_of(timing: Timing) -> str | None:
    """Returns a schedule as text for people; None if it is no valid schedule."""
    try:
        return schedule_text(timing.schedule())
    except ValueError:
        return None


def _is_other(known: tuple[Sum, Page | RootError] | None, sum: Sum) -> bool:
    return known is None or known[0] != sum or isinstance(known[1], RootError)


def _count(names: Iterable[str], one: str, many: str) -> str:
    count = len([*names])
    return f"1 live entry {one}" if count == 1 else f"{count} live entries {many}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if names[3:] else "")
