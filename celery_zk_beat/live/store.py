"""Reads and changes live entries in ZooKeeper.

A change is one transaction. It writes the pages that it touches and the index, each only if its
version is still the one that was read. So changes happen one after another, and each happens
completely or not at all. The index has the ids of the last transactions: a client that got no
answer reads there whether its transaction was done.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Union

from .. import clock
from ..errors import (
    Conflict,
    ConnectTimeout,
    RootError,
    TooLarge,
    Uncertain,
    ZkBeatError,
)
from ..paths import Paths
from ..records import MEND
from ..security import Grant
from ..zookeeper.operations import Create, Delete, Node, Operation, SetData
from ..zookeeper.session import ZooKeeperSession
from .definitions import (
    LARGEST_PAGE,
    MOST_ENTRIES,
    RECENT,
    Coming,
    Content,
    Damaged,
    Definition,
    Found,
    Index,
    Page,
    Sum,
    checksum,
    page_of_entry,
)

Watch = Callable[[object], None]
#: What an entry is to be; perhaps with a clock.
Wanted = Union[Content, Coming]
#: Takes an entry as found, returns its new content; None removes it. It may raise.
Edit = Callable[[Found], Optional[Wanted]]

#: Most bytes of pages that one transaction of :meth:`Changer.change_many` writes.
_AT_ONCE = 500_000
#: Bytes of a page that new entries may not use: existing entries may grow.
_KEPT = 20_000
#: An entry's version, times and changes usually take fewer bytes than this.
_LARGEST_LIFE = 300
#: Seconds until we read ZooKeeper's clock again.
_CLOCK_HOLDS = 60.0
#: Seconds to wait before trying again after a conflict, at first and at most.
_PAUSE, _LONGEST_PAUSE = 0.002, 0.2
_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Indexed:
    """The index as it was read.

    Attributes:
        version: the znode's version, which each change increments; None if there is no znode.
        damage: why it cannot be parsed; then `index` is empty.
    """

    index: Index
    version: int | None
    damage: RootError | None = None


@dataclass(frozen=True)
class Snapshot:
    """All entries as they were read.

    Attributes:
        pages: the pages that are not damaged.
        damaged_pages: the error of each damaged page.
    """

    indexed: Indexed
    pages: Mapping[str, Page] = field(default_factory=dict)
    damaged_pages: Mapping[str, RootError] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, Definition | Damaged]:
        return {name: each for page in self.pages.values() for name, each in page.entries.items()}


def read_index(session: ZooKeeperSession, paths: Paths, watch: Watch | None = None) -> Indexed:
    """Reads the index. `watch` and errors are those of :meth:`.ZooKeeperSession.read`."""
    return _indexed(paths, session.read(paths.entries, watch))


def _indexed(paths: Paths, node: Node | None) -> Indexed:
    if node is None:
        return Indexed(Index(), None)
    try:
        return Indexed(Index.decode(paths.entries, node.data), node.version)
    except RootError as exc:
        return Indexed(Index(), node.version, exc)


def read_pages(
    session: ZooKeeperSession, paths: Paths, pages: Sequence[str]
) -> dict[str, Page | RootError]:
    """Reads these pages with concurrent requests. A damaged page is returned as its error. Raises
    as :meth:`.ZooKeeperSession.read`."""
    nodes = session.read_all(list(map(paths.entries_page, pages)))
    return {page: _page(paths, page, node) for page, node in zip(pages, nodes)}


def _page(paths: Paths, page: str, node: Node | None) -> Page | RootError:
    if node is None:
        return Page()
    path = paths.entries_page(page)
    try:
        return Page.decode(path, node.data, node.version, round(node.mtime * 1000))
    except RootError as exc:
        return exc


def read(session: ZooKeeperSession, paths: Paths, watch: Watch | None = None) -> Snapshot:
    """Reads all entries. Pages may be newer than the index if somebody changes entries meanwhile.
    Raises as :meth:`.ZooKeeperSession.read`."""
    indexed = read_index(session, paths, watch)
    found = read_pages(session, paths, sorted(indexed.index.pages))
    return Snapshot(
        indexed,
        {page: each for page, each in found.items() if isinstance(each, Page)},
        {page: each for page, each in found.items() if isinstance(each, RootError)},
    )


class Changed(NamedTuple):
    """The outcome for an entry: `before` and `after` are the same object if nothing changed."""

    before: Found
    after: Definition | None

    @property
    def is_changed(self) -> bool:
        return self.before is not self.after


class _Attempt(NamedTuple):
    """A transaction. `version`: the version of the index once it is done."""

    version: int
    outcomes: dict[str, Changed]


class Changer:
    """Changes entries. For one thread at a time.

    Args:
        news: is set when the session connects or loses its connection.
        acl: the rights on the znodes of entries; None: as on the session's other znodes.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        news: clock.Wakeup,
        acl: tuple[Grant, ...] | None = None,
    ) -> None:
        self._session, self._paths, self._news, self.acl = session, paths, news, acl
        #: When ZooKeeper's clock was read last, by boottime().
        self._clock_read: float | None = None

    def change(self, edits: Mapping[str, Edit], by: str, deadline: float) -> dict[str, Changed]:
        """Makes changes, all or none. If other clients were faster it tries again.

        Args:
            edits: by the entry's name. Each may be called more than once.
            by: who makes the changes.
            deadline: by boottime().

        Raises:
            ConnectTimeout: not done by `deadline`; nothing was changed.
            Uncertain: no answer by `deadline`; nobody knows whether the changes were made.
            RootError: the index or a page is damaged.
            TooLarge: there are too many entries.
            ZooKeeperError: ZooKeeper refuses the transaction.
            It also raises what `edits` and :meth:`.Content.checked` raise.
        """
        return _Task(self, edits, by, deadline).run()

    def change_many(
        self, edits: Mapping[str, Edit], by: str, timeout: float
    ) -> Iterator[dict[str, Changed]]:
        """Makes more changes than fit into one transaction. All changes of a page are in the same
        transaction, which has as many pages as fit; each transaction may take `timeout` seconds.
        Yields the outcomes of each transaction. Raises as :meth:`change`: the transactions before
        the failed one are done."""
        by_page: dict[str, dict[str, Edit]] = {}
        for name, edit in edits.items():
            by_page.setdefault(page_of_entry(name), {})[name] = edit
        pending = sorted(by_page)
        while pending:
            deadline = clock.boottime() + timeout
            now, size = 0, 0
            read_now = self.pages(pending[:64], deadline)
            together: dict[str, Edit] = {}
            for page in pending[:64]:
                grown = _size_after(read_now[page], by_page[page])
                if together and size + grown > _AT_ONCE:
                    break
                together.update(by_page[page])
                size, now = size + grown, now + 1
            del pending[:now]
            yield self.change(together, by, deadline)

    def pages(self, pages: Sequence[str], deadline: float) -> dict[str, Page | RootError]:
        """Reads pages. Waits for ZooKeeper if necessary."""
        while True:
            try:
                return read_pages(self._session, self._paths, pages)
            except Uncertain as exc:
                if not self.wait_for_connection(deadline):
                    raise ConnectTimeout(f"{exc}; nothing was changed") from None

    def wait_for_connection(self, deadline: float) -> bool:
        """Call this after a request got no answer. Returns False if there is no connection by
        `deadline` (boottime())."""
        while (left := deadline - clock.boottime()) > 0:
            if self._session.connected:
                return True
            self._news.wait(min(left, _LOOK_EVERY))
        return False

    def read(self, names: Iterable[str]) -> tuple[Indexed, dict[str, Page | RootError]]:
        """Reads the index and the pages of these entries. Creates the index if there is none.
        Raises as :meth:`.ZooKeeperSession.read`."""
        pages = sorted(set(map(page_of_entry, names)))
        paths = [self._paths.entries, *map(self._paths.entries_page, pages)]
        while True:
            index, *nodes = self._session.read_all(paths)
            if index is not None:
                found = {page: _page(self._paths, page, each) for page, each in zip(pages, nodes)}
                return _indexed(self._paths, index), found
            # One by one: a client with rights on entries may have none on other znodes.
            self._session.ensure(self._paths.root)
            self._session.ensure(self._paths.entries, self.acl)

    def catch_up(self) -> None:
        self._session.catch_up(self._paths.entries)

    def commit(self, operations: Sequence[Operation]) -> None:
        self._session.commit(*operations)
        self._clock_read = clock.boottime()

    def now(self) -> int:
        """Returns ZooKeeper's time in milliseconds since 1970. Raises as :meth:`commit`."""
        if self._clock_read is None or clock.boottime() - self._clock_read > _CLOCK_HOLDS:
            # The answer to any write has the time; this write leaves no znode.
            path = self._paths.entries_page(f"clock-{uuid.uuid4().hex}")
            made = Create(path, b"", ephemeral=True, acl=self.acl)
            self.commit([made, SetData(path, b""), Delete(path)])
        return round(self._session.server_time * 1000)

    def page_path(self, page: str) -> str:
        return self._paths.entries_page(page)

    @property
    def index_path(self) -> str:
        return self._paths.entries


def _size_after(page: Page | RootError, edits: Mapping[str, Edit]) -> int:
    """Returns an upper estimate of the bytes of a page after the edits."""
    if isinstance(page, RootError):
        return 0  # nothing is written
    size = page.size
    for name, edit in edits.items():
        try:
            content = edit(page.get(name))
        except ZkBeatError:
            continue  # change() raises it again
        if isinstance(content, Coming):
            content = content.content
        size += 0 if content is None else content.size + len(name) * 6 + _LARGEST_LIFE
    return size


class _Lost(Exception):
    """Nobody can find out any more whether a sent transaction was done."""


class _Task:
    """One :meth:`Changer.change`."""

    def __init__(
        self, changer: Changer, edits: Mapping[str, Edit], by: str, deadline: float
    ) -> None:
        self._changer, self._edits, self._by, self._deadline = changer, edits, by, deadline
        self._id = uuid.uuid4().hex[:12]
        #: The transaction that was sent and got no answer.
        self._unanswered: _Attempt | None = None
        #: True if the next read returns data at least as new as the start of this call.
        self._is_fresh = False
        self._pause = _PAUSE * (1 + int(self._id, 16) % 16 / 16)

    def run(self) -> dict[str, Changed]:
        while True:
            try:
                done = self._try()
                if done is not None:
                    return done
            except _Lost:
                raise self._failure(Uncertain(f"{self._changer.index_path}: no answer")) from None
            except Conflict as exc:
                self._rest(exc)
            except Uncertain as exc:
                self._is_fresh = False
                if not self._changer.wait_for_connection(self._deadline):
                    raise self._failure(exc) from None

    def _rest(self, exc: Conflict) -> None:
        """Waits before trying again after a conflict with another client."""
        if clock.boottime() + self._pause > self._deadline:
            raise ConnectTimeout(f"{exc}: other clients keep changing it; nothing was changed")
        clock.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _failure(self, exc: Uncertain) -> ZkBeatError:
        if self._unanswered is None:
            return ConnectTimeout(f"{exc}; nothing was changed")
        return Uncertain(f"{exc}; nobody knows whether it was changed")

    def _try(self) -> dict[str, Changed] | None:
        """Returns None if it must be tried again."""
        changer = self._changer
        if self._unanswered is not None:
            changer.catch_up()
            self._is_fresh = True
        indexed, pages = changer.read(self._edits)
        if self._unanswered is not None:
            if self._was_done(indexed, self._unanswered):
                return self._unanswered.outcomes
            self._unanswered = None
        try:
            if indexed.damage is not None:
                raise indexed.damage
            outcomes = self._outcomes(pages, changer.now())
            operations = self._operations(indexed, pages, outcomes)
        except (Conflict, Uncertain):
            raise
        except ZkBeatError:
            if self._is_fresh:
                raise
            operations = []
        if operations:
            self._commit(_Attempt((indexed.version or 0) + 1, outcomes), operations)
            return outcomes
        if self._is_fresh:
            return outcomes
        # The server may be behind: first make sure that there really is nothing to change.
        changer.catch_up()
        self._is_fresh = True
        return None

    def _commit(self, attempt: _Attempt, operations: Sequence[Operation]) -> None:
        self._unanswered = attempt
        try:
            self._changer.commit(operations)
        except Uncertain:
            raise
        except ZkBeatError:
            self._unanswered = None
            raise

    def _was_done(self, indexed: Indexed, attempt: _Attempt) -> bool:
        """Looks for our transaction in the index.

        Raises:
            _Lost: the index no longer reaches back that far, or is damaged.
        """
        version = -1 if indexed.version is None else indexed.version
        if self._id in indexed.index.recent:
            return True
        if indexed.damage is not None or version - attempt.version >= RECENT:
            raise _Lost
        return False

    def _outcomes(self, pages: Mapping[str, Page | RootError], at: int) -> dict[str, Changed]:
        outcomes = {}
        for name, edit in self._edits.items():
            page = pages[page_of_entry(name)]
            if isinstance(page, RootError):
                raise page
            before = page.get(name)
            content = edit(before)
            outcomes[name] = Changed(before, self._after(name, before, content, at))
        return outcomes

    def _after(self, name: str, before: Found, wanted: Wanted | None, at: int) -> Definition | None:
        if wanted is None:
            return None
        coming = wanted if isinstance(wanted, Coming) else None
        content = wanted.content if isinstance(wanted, Coming) else wanted
        content = content.checked(name)
        if isinstance(before, Definition):
            return before.changed(content, at, self._by, coming)
        return Definition.added(content, uuid.uuid4().hex[:12], at, self._by, coming)

    def _operations(
        self,
        indexed: Indexed,
        pages: Mapping[str, Page | RootError],
        outcomes: Mapping[str, Changed],
    ) -> list[Operation]:
        """Returns the operations of the transaction; empty if there is nothing to change."""
        operations: list[Operation] = []
        sums = {}
        for name, page in pages.items():
            changes = {
                entry: each.after
                for entry, each in outcomes.items()
                if each.is_changed and page_of_entry(entry) == name
            }
            if changes and isinstance(page, Page):
                after, path = page.changed(changes), self._changer.page_path(name)
                data = self._encoded(path, after)
                self._check_size(page, changes, after, data)
                sums[name] = Sum(checksum(data), len(after.told))
                if page.version is None:
                    operations.append(Create(path, data, acl=self._changer.acl))
                else:
                    operations.append(SetData(path, data, page.version))
        if not operations:
            return []
        index, path = indexed.index.changed(sums, self._id), self._changer.index_path
        if index.entries > MOST_ENTRIES and index.entries > indexed.index.entries:
            raise TooLarge(
                f"{path}: this would make {index.entries} live entries, and {MOST_ENTRIES} are "
                "allowed: nothing was changed"
            )
        return [*operations, SetData(path, index.encode(), indexed.version or 0)]

    def _encoded(self, path: str, page: Page) -> bytes:
        try:
            return page.encode()
        except RecursionError:
            raise RootError(f"{path}: is nested too deeply: {MEND.format(path)}") from None

    def _check_size(
        self, before: Page, changes: Mapping[str, Definition | None], after: Page, data: bytes
    ) -> None:
        is_more = len(after.told) > len(before.told)
        most = LARGEST_PAGE - _KEPT if is_more else LARGEST_PAGE
        if len(data) > most:
            name = next((name for name, each in changes.items() if each is not None), "")
            raise TooLarge(
                f"{name:.200}: with this entry the {len(after.told)} entries of its page would "
                f"need {len(data)} bytes, and a page holds {most}: make entries smaller; nothing "
                "was changed"
            )
