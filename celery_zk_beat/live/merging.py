"""The master's side of live entries: which exist in ZooKeeper, and which of them are in force."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from .. import clock
from ..errors import Conflict, EntryError, RootError, Uncertain, ZkBeatError
from ..log import get_logger, telling
from ..paths import Paths
from ..runs import NEVER, from_milliseconds
from ..security import Grant
from ..zookeeper.operations import Check, Create
from ..zookeeper.session import ZooKeeperSession
from .definitions import Content, Damaged, Definition, Page, Sum, check_name, page_of_entry
from .store import Indexed, read_index, read_pages

logger = get_logger(__name__)

#: How many entries that cannot run are logged one by one at WARNING.
_MOST_LOGGED = 20
#: After a change made a claim fail, we expect more changes for this many seconds.
_CONTENDED_FOR = 10.0
_ABSENT = object()


@dataclass(frozen=True)
class Live:
    """A live entry that exists in ZooKeeper.

    Attributes:
        definition: None if it is damaged.
        entry: Celery's entry; None if it is not in force: it is disabled, its task may not run, or
            it is damaged.
        begins: the instant at which its clock starts, by ZooKeeper's clock.
        why: the reason why it is not in force; None if it is, or is only disabled.
    """

    definition: Definition | None
    entry: Any
    begins: datetime
    why: str | None = None

    @property
    def key(self) -> str | None:
        """The key of its run state."""
        return None if self.definition is None else self.definition.key

    @property
    def is_disabled(self) -> bool:
        return self.definition is not None and not self.definition.content.enabled

    @property
    def overrides(self) -> bool:
        """True if it replaces an entry of the same name in `beat_schedule`."""
        if self.definition is None or not self.definition.content.override:
            return False
        return self.entry is not None or self.is_disabled


def judged(
    name: str,
    page: Page,
    make: Callable[[str, Content], Any],
    why_not: Callable[[str], str | None],
) -> Live:
    """Reads an entry of a page and decides whether it is in force. `make` and `why_not` are `make`
    and `refusal` of :class:`Merging`."""
    definition, entry, why = page.get(name), None, None
    begins = from_milliseconds(page.written)
    if not isinstance(definition, Definition):
        why = definition.why if isinstance(definition, Damaged) else "it does not exist"
        return Live(None, None, begins, why)
    # Do not trust a client that gives a start in the future.
    begins = min(begins, definition.since_at)
    if definition.content.enabled:
        try:
            why = why_not(definition.content.task)
            if why is None:
                entry = make(check_name(name), definition.content)
        except EntryError as exc:
            why = exc.what
        except Exception as exc:  # raised by its schedule or a user's class
            why = str(exc) or repr(exc)
    return Live(definition, entry, begins, why)


def entry_of(kind: Callable[..., Any], app: Any, name: str, content: Content, schedule: Any) -> Any:
    """Makes Celery's entry, of class `kind`."""
    return kind(
        name=name,
        task=content.task,
        last_run_at=NEVER,  # until its state gives one; reading the clock takes longer
        schedule=schedule,
        args=content.args,
        kwargs=dict(content.kwargs),
        options=dict(content.options),
        app=app,
    )


Kind = Literal["added", "changed", "removed"]


class News(NamedTuple):
    """A change of an entry: `kind` is "added", "changed" or "removed"; `by` and `what` are texts,
    empty if unknown."""

    name: str
    kind: Kind
    by: str = ""
    what: str = ""
    version: int | None = None


def news_of(before: Mapping[str, Live | None], merging: Merging) -> list[News]:
    """Returns the changes of the entries that :meth:`Merging.read` returned. Leaves out entries
    that are damaged now or lie on a damaged page."""
    news = []
    for name in sorted(before):
        was, live = before[name], merging.found.get(name)
        if live is None:
            if not merging.holds(name):
                news.append(News(name, "removed"))
        elif live.definition is not None:
            known = None if was is None else was.definition
            version = 0 if known is None or known.born != live.definition.born else known.version
            late = [each for each in live.definition.changes if each.version > version]
            by = dict.fromkeys(each.by for each in late)
            what = dict.fromkeys(one for each in late for one in each.what if one != "added")
            kind: Kind = "added" if was is None else "changed"
            news.append(News(name, kind, _few(by), _few(what), live.definition.version))
    return news


def _few(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:5]) + (" ..." if texts[5:] else "")


def log_news(news: Sequence[News], epoch: int) -> None:
    """Logs a line for each of the first entries, and one line with the count of all."""
    for number, each in enumerate(news):
        level = logging.INFO if number < _MOST_LOGGED else logging.DEBUG
        by = f" by {each.by}" if each.by else ""
        what = f": {each.what}" if each.what else ""
        version = f" (version {each.version})" if each.version else ""
        text = f"live entry {each.name:.200} is {each.kind}{by}{what}{version}"
        logger.log(level, "%s", text, extra=telling(each.kind, entry=each.name, epoch=epoch))
    if len(news) > _MOST_LOGGED:
        logger.info("%d live entries were added, changed or removed", len(news))


class Merging:
    """What the master knows of the live entries. For one thread. When entries change, kazoo's
    thread calls `wake`.

    Args:
        make: makes Celery's entry from a name and a content; it may raise anything.
        refusal: returns why a task may not run, or None if it may.
        acl: the rights on znodes that this creates; None: as on other znodes.

    Attributes:
        stale: entries may have changed since they were read.
        found: all live entries, by name.
        damage: why the index cannot be parsed, or None. While it is damaged no live entry is in
            force, and none counts as removed.
        damaged_pages: the same for single pages.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        make: Callable[[str, Content], Any],
        refusal: Callable[[str], str | None],
        wake: Callable[[], None],
        acl: tuple[Grant, ...] | None = None,
    ) -> None:
        self._session, self._paths, self._wake, self._acl = session, paths, wake, acl
        self._make, self._refusal = make, refusal
        self.stale = True
        self.found: dict[str, Live] = {}
        self.damage: RootError | None = None
        self.damaged_pages: dict[str, RootError] = {}
        self._version = 0
        #: Each page as it was read, and its line in the index at that time.
        self._sums: dict[str, Sum] = {}
        self._pages: dict[str, Page] = {}
        #: Versions of empty pages, which the index does not list.
        self._empty: dict[str, int] = {}
        #: Pages whose version may not be the known one.
        self._unsure: set[str] = set()
        #: Until when, by boottime(), claims check pages instead of the index.
        self._is_contended_until = -math.inf
        #: Why entries are not in force, as far as it was logged.
        self._told: dict[str, str] = {}
        #: By task, while pages are read.
        self._refusals: dict[str, str | None] = {}

    def unchanged(self, names: Iterable[str]) -> list[Check]:
        """Returns checks that make a claim of runs of these entries fail if one of the entries has
        changed since it was read.

        Usually it checks the index. But each change of any entry changes the index: while clients
        keep changing entries every claim would fail and nothing would run. Then it checks only the
        pages of these entries. Raises as :meth:`.ZooKeeperSession.commit`.
        """
        if clock.boottime() < self._is_contended_until:
            versions = {page: self._version_of(page) for page in set(map(page_of_entry, names))}
            if None not in versions.values():
                return [
                    Check(self._paths.entries_page(page), version)
                    for page, version in versions.items()
                    if version is not None
                ]
        return [Check(self._paths.entries, self._version)]

    def is_refused(self, path: str) -> None:
        """Notes that a claim failed because the index, or a page, has changed."""
        self.stale, self._is_contended_until = True, clock.boottime() + _CONTENDED_FOR
        # A page that was changed and changed back has its old checksum, but a new version.
        page = path.rpartition("/")[2]
        self._unsure.add(page)
        self._empty.pop(page, None)

    def _version_of(self, page: str) -> int | None:
        """Returns the version of a page as it was read, or None if it is unknown. Creates the page
        if there is none: then a client that adds an entry to it changes its version."""
        if page in self._pages and page not in self.damaged_pages:
            return self._pages[page].version
        if page not in self._empty and page not in self._sums:
            with contextlib.suppress(Conflict):  # another client created it just now
                made = Create(self._paths.entries_page(page), Page().encode(), acl=self._acl)
                self._session.commit(made)
            found = read_pages(self._session, self._paths, [page])[page]
            if isinstance(found, Page) and not found.told and found.version is not None:
                self._empty[page] = found.version
        return self._empty.get(page)

    @property
    def is_damaged(self) -> bool:
        """True if a znode is damaged. If somebody repairs it, we may not notice."""
        return bool(self.damage or self.damaged_pages)

    def holds(self, name: str) -> bool:
        """True if there is a live entry of this name, in force or not; also if there may be one in
        a damaged znode."""
        is_there = name in self.found or self.damage is not None
        return is_there or (bool(self.damaged_pages) and page_of_entry(name) in self.damaged_pages)

    def read(self) -> dict[str, Live | None]:
        """Reads the changes. Returns the changed entries as they were before. Raises as
        :meth:`.ZooKeeperSession.read`."""
        self.stale, self._refusals = False, {}
        try:
            indexed = self._read_index()
            return self._read_pages(indexed)
        except ZkBeatError:
            self.stale = True
            raise

    def _read_index(self) -> Indexed:
        path = self._paths.entries
        indexed = read_index(self._session, self._paths, self._on_watch)
        if indexed.version is None:
            # Otherwise no watch could report the first entry. One by one: the root has other
            # rights.
            self._session.ensure(self._paths.root)
            self._session.ensure(path, self._acl)
            indexed = read_index(self._session, self._paths, self._on_watch)
        if indexed.version is None:
            raise Uncertain(f"{path}: deleted as soon as it is created")
        self._version = indexed.version
        if indexed.damage is not None and str(indexed.damage) != str(self.damage):
            logger.error("%s; until then no live entry runs", indexed.damage)
        self.damage = indexed.damage
        return indexed

    def _read_pages(self, indexed: Indexed) -> dict[str, Live | None]:
        sums, complaints = indexed.index.pages, dict[str, str]()
        differ = [
            page
            for page, each in sums.items()
            if self._sums.get(page) != each or page in self.damaged_pages or page in self._unsure
        ]
        # Read all pages first: an error must not leave half of the changes in force.
        found = read_pages(self._session, self._paths, differ) if differ else {}
        changed: dict[str, Live | None] = {}
        for page in self._sums.keys() - sums.keys():
            self.damaged_pages.pop(page, None)
            changed.update(self._take(page, Page(), complaints))
            del self._sums[page], self._pages[page]
        for page, each in found.items():
            if isinstance(each, Page) and each.version is None and sums[page].entries:
                path, count = self._paths.entries_page(page), sums[page].entries
                each = RootError(
                    f"{path}: the znode does not exist, but it should have {count} entries"
                )
            if isinstance(each, RootError):
                if str(each) != str(self.damaged_pages.get(page)):
                    logger.error("%s; until then the live entries on this page do not run", each)
                self.damaged_pages[page], each = each, Page()
            else:
                self.damaged_pages.pop(page, None)
            changed.update(self._take(page, each, complaints))
            self._sums[page] = sums[page]
            self._empty.pop(page, None)
        self._unsure.clear()
        self._complain(complaints)
        return changed

    def _take(self, page: str, after: Page, complaints: dict[str, str]) -> dict[str, Live | None]:
        """Takes a page as it is now. Returns its changed entries as they were before."""
        before = self._pages[page].told if page in self._pages else {}
        self._pages[page] = after
        changed: dict[str, Live | None] = {}
        for name in before.keys() | after.told.keys():
            if _is_same(before.get(name, _ABSENT), after.told.get(name, _ABSENT)):
                continue
            changed[name] = self.found.get(name)
            if name in after.told:
                self.found[name] = self._live(name, after, complaints)
            else:
                del self.found[name]
                self._told.pop(name, None)
        return changed

    def _live(self, name: str, page: Page, complaints: dict[str, str]) -> Live:
        live = judged(name, page, self._make, self._why_not)
        if live.why is not None:
            complaints[name] = live.why
        elif name in self._told:
            del self._told[name]
        return live

    def _why_not(self, task: str) -> str | None:
        if task not in self._refusals:
            self._refusals[task] = self._refusal(task)
        return self._refusals[task]

    def _complain(self, complaints: dict[str, str]) -> None:
        """Logs why entries are not in force, unless it was logged before."""
        news = {name: why for name, why in complaints.items() if self._told.get(name) != why}
        self._told.update(news)
        for number, (name, why) in enumerate(news.items()):
            level = logging.WARNING if number < _MOST_LOGGED else logging.DEBUG
            logger.log(level, "%.200s: the live entry does not run: %s", name, why)
        if len(news) > _MOST_LOGGED:
            logger.warning("%d live entries in all do not run for such reasons", len(news))

    def _on_watch(self, event: object) -> None:
        self.stale = True
        self._wake()


def _is_same(before: Any, after: Any) -> bool:
    try:
        return bool(before == after)
    except RecursionError:  # none of our programs wrote it
        return False
