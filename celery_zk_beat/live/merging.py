"""The master's side of live entries: what there is in ZooKeeper, and what of that is in force."""

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

#: Most entries that are logged one by one, of those that cannot be in force.
_MOST_LOGGED = 20
#: Seconds for which changes are taken to go on after a claim was refused for one.
_CONTENDED_FOR = 10.0
_ABSENT = object()


@dataclass(frozen=True)
class Live:
    """An entry that is there.

    Attributes:
        definition: None where it cannot be understood.
        entry: as Celery has it; None where it is not in force: it is disabled, its task is not to
            be run, or it cannot be understood.
        begins: the instant from which its clock runs, by ZooKeeper's clock.
        why: it is not in force, unless it is only disabled.
    """

    definition: Definition | None
    entry: Any
    begins: datetime
    why: str | None = None

    @property
    def key(self) -> str | None:
        """Of its run state."""
        return None if self.definition is None else self.definition.key

    @property
    def is_disabled(self) -> bool:
        return self.definition is not None and not self.definition.content.enabled

    @property
    def overrides(self) -> bool:
        """True where it counts, and not an entry of `beat_schedule`."""
        if self.definition is None or not self.definition.content.override:
            return False
        return self.entry is not None or self.is_disabled


def judged(
    name: str,
    page: Page,
    make: Callable[[str, Content], Any],
    why_not: Callable[[str], str | None],
) -> Live:
    """Says what an entry of a page is, and whether it is in force. `make` and `why_not` are as
    `make` and `refusal` of :class:`Merging`."""
    definition, entry, why = page.get(name), None, None
    begins = from_milliseconds(page.written)
    if not isinstance(definition, Definition):
        why = definition.why if isinstance(definition, Damaged) else "it is not there"
        return Live(None, None, begins, why)
    # A changer's clock is not to say what is still to come.
    begins = min(begins, definition.since_at)
    if definition.content.enabled:
        try:
            why = why_not(definition.content.task)
            if why is None:
                entry = make(check_name(name), definition.content)
        except EntryError as exc:
            why = exc.what
        except Exception as exc:  # of its schedule, or a class of the user's
            why = str(exc) or repr(exc)
    return Live(definition, entry, begins, why)


def entry_of(kind: Callable[..., Any], app: Any, name: str, content: Content, schedule: Any) -> Any:
    """What Celery takes: an entry of this class."""
    return kind(
        name=name,
        task=content.task,
        last_run_at=NEVER,  # until its state says so; to look at the clock would take longer
        schedule=schedule,
        args=content.args,
        kwargs=dict(content.kwargs),
        options=dict(content.options),
        app=app,
    )


Kind = Literal["added", "changed", "removed"]


class News(NamedTuple):
    """What has become of an entry: `kind` is "added", "changed" or "removed"; `by` and `what` are
    texts, empty where nobody knows."""

    name: str
    kind: Kind
    by: str = ""
    what: str = ""
    version: int | None = None


def news_of(before: Mapping[str, Live | None], merging: Merging) -> list[News]:
    """Of the entries that :meth:`Merging.read` returned. Not of those that cannot be understood any
    more, or are on what cannot."""
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
    """A line each, of the first, and one that counts all."""
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
    """What the master knows of the entries. For one thread; `wake` is called on kazoo's when they
    have changed.

    Args:
        make: makes of an entry's name, and of what users say of it, what Celery takes; it may raise
            anything.
        refusal: why a task is not to be run; None where it is.
        acl: the rights on the znode that is made where there is none; None: as on others.

    Attributes:
        stale: they may have changed since they were read.
        found: all that are there, by name.
        damage: why the index cannot be understood, None where it can; as long as it cannot, no
            entry is in force, and none counts as removed.
        damaged_pages: the same of single pages.
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
        #: What the index said of each page when that was read; and what was on it.
        self._sums: dict[str, Sum] = {}
        self._pages: dict[str, Page] = {}
        #: Versions of pages that the index does not name, for there is nothing on them.
        self._empty: dict[str, int] = {}
        #: On boottime(): until when claims are refused for changes that do not concern them.
        self._is_contended_until = -math.inf
        #: Why entries are not in force, as far as the log was told.
        self._told: dict[str, str] = {}
        #: By task, while pages are read.
        self._refusals: dict[str, str | None] = {}

    def unchanged(self, names: Iterable[str]) -> list[Check]:
        """For a claim of runs of these entries: refuses it when any of them has changed since they
        were read. As a rule it is the index that is checked. Where others change entries all the
        time, so that claims are refused for what does not concern them, it is these pages: else
        nothing would run. Raises as :meth:`.ZooKeeperSession.commit`."""
        if clock.boottime() < self._is_contended_until:
            versions = {page: self._version_of(page) for page in set(map(page_of_entry, names))}
            if None not in versions.values():
                return [
                    Check(self._paths.entries_page(page), version)
                    for page, version in versions.items()
                    if version is not None
                ]
        return [Check(self._paths.entries, self._version)]

    def is_refused(self) -> None:
        """A claim was, because they have changed."""
        self.stale, self._is_contended_until = True, clock.boottime() + _CONTENDED_FOR

    def _version_of(self, page: str) -> int | None:
        """That of a page as it was read, or as this makes it where there is none: an entry that
        comes to it has to change it. None where that is not known."""
        if page in self._pages and page not in self.damaged_pages:
            return self._pages[page].version
        if page not in self._empty and page not in self._sums:
            with contextlib.suppress(Conflict):  # another has made it just now
                made = Create(self._paths.entries_page(page), Page().encode(), acl=self._acl)
                self._session.commit(made)
            found = read_pages(self._session, self._paths, [page])[page]
            if isinstance(found, Page) and not found.told and found.version is not None:
                self._empty[page] = found.version
        return self._empty.get(page)

    @property
    def is_damaged(self) -> bool:
        """True where something cannot be understood that another hand may mend, unseen."""
        return bool(self.damage or self.damaged_pages)

    def holds(self, name: str) -> bool:
        """True for what is there, in force or not, and for what may be, where that cannot be
        understood."""
        is_there = name in self.found or self.damage is not None
        return is_there or (bool(self.damaged_pages) and page_of_entry(name) in self.damaged_pages)

    def read(self) -> dict[str, Live | None]:
        """Reads what has changed, and returns the entries that have, as they were before. Raises as
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
            self._session.ensure(path, self._acl)  # else nothing could tell of the first
            indexed = read_index(self._session, self._paths, self._on_watch)
        if indexed.version is None:
            raise Uncertain(f"{path}: deleted as soon as it is made")
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
            if self._sums.get(page) != each or page in self.damaged_pages
        ]
        # All that could be read is, before any of it counts.
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
                    f"{path}: no such znode, and there should be {count} entries on it"
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
        self._complain(complaints)
        return changed

    def _take(self, page: str, after: Page, complaints: dict[str, str]) -> dict[str, Live | None]:
        """Takes a page as it is now; returns which of its entries have changed, as they were."""
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
        """Says why entries are not in force, where that was not said before."""
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
    except RecursionError:  # no hand of ours wrote it
        return False
