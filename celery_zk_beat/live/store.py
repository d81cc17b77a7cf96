"""Live entries in ZooKeeper: to read them, and to change them.

A change is one transaction: the pages that it touches, at the versions at which they were read,
and the index, at its own. So of all changes one comes after the other, and each is there whole or
not at all. The index names the transactions of late: who got no answer finds out whether his was
done.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

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
#: What is to become of an entry, by what is found: its content; None: it is removed. It may raise.
Edit = Callable[[Found], Optional[Content]]

#: Most bytes of the pages that one transaction of many changes writes.
_AT_ONCE = 500_000
#: Bytes of a page that are left for changes of what is there.
_KEPT = 20_000
#: More than the bytes of what is known of an entry's life, as a rule.
_LARGEST_LIFE = 300
#: Seconds for which ZooKeeper's clock is known after it was asked.
_CLOCK_HOLDS = 60.0
#: Seconds to wait before what others have changed is tried again, at first and at most.
_PAUSE, _LONGEST_PAUSE = 0.002, 0.2
_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Indexed:
    """The index as it was read.

    Attributes:
        version: of the znode, None where there is none; each change makes it one more.
        damage: why it cannot be understood; then `index` is empty.
    """

    index: Index
    version: int | None
    damage: RootError | None = None


@dataclass(frozen=True)
class Snapshot:
    """All that was read of the entries.

    Attributes:
        pages: those that can be understood.
        damaged_pages: why others cannot.
    """

    indexed: Indexed
    pages: Mapping[str, Page] = field(default_factory=dict)
    damaged_pages: Mapping[str, RootError] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, Definition | Damaged]:
        return {name: each for page in self.pages.values() for name, each in page.entries.items()}


def read_index(session: ZooKeeperSession, paths: Paths, watch: Watch | None = None) -> Indexed:
    """Reads the index; `watch` and what is raised are as of :meth:`.ZooKeeperSession.read`."""
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
    """Reads these pages, with all requests on their way at once; for one that cannot be understood
    there is the reason. Raises as :meth:`.ZooKeeperSession.read`."""
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
    """Reads all. It may be newer than its index where somebody changes entries meanwhile. Raises as
    :meth:`.ZooKeeperSession.read`."""
    indexed = read_index(session, paths, watch)
    found = read_pages(session, paths, sorted(indexed.index.pages))
    return Snapshot(
        indexed,
        {page: each for page, each in found.items() if isinstance(each, Page)},
        {page: each for page, each in found.items() if isinstance(each, RootError)},
    )


class Changed(NamedTuple):
    """What became of an entry: `before` and `after` are the same where nothing had to be done."""

    before: Found
    after: Definition | None

    @property
    def is_changed(self) -> bool:
        return self.before is not self.after


class _Attempt(NamedTuple):
    """A transaction. `version`: of the index, if it is done."""

    version: int
    outcomes: dict[str, Changed]


class Changer:
    """Changes entries. For one thread at a time.

    Args:
        news: is set when the connection of `session` comes, or goes.
        acl: the rights on the znodes of entries; None: those of the session's others.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        news: clock.Wakeup,
        acl: tuple[Grant, ...] | None = None,
    ) -> None:
        self._session, self._paths, self._news, self.acl = session, paths, news, acl
        #: On boottime(): when ZooKeeper's clock was asked last.
        self._clock_read: float | None = None

    def change(self, edits: Mapping[str, Edit], by: str, deadline: float) -> dict[str, Changed]:
        """Makes some changes, all or none, and tries again where others were faster.

        Args:
            edits: by name of the entry. Each may be called more than once.
            by: who makes them.
            deadline: on boottime().

        Raises:
            ConnectTimeout: not by `deadline`; nothing was changed.
            Uncertain: not by `deadline`, and nobody knows whether they were made.
            RootError: the index, or a page, cannot be understood.
            TooLarge: there are too many entries.
            ZooKeeperError: ZooKeeper refuses it.
            What `edits` raise, and :meth:`.Content.checked`.
        """
        return _Task(self, edits, by, deadline).run()

    def change_many(
        self, edits: Mapping[str, Edit], by: str, timeout: float
    ) -> Iterator[dict[str, Changed]]:
        """Makes more changes than one transaction can hold: each page whole or not at all, and as
        many pages together as there is room for, each transaction within `timeout` seconds. Returns
        what became of each transaction's; raises as :meth:`change`, and then those before it are
        made."""
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
        """Reads pages, and waits for ZooKeeper if need be."""
        while True:
            try:
                return read_pages(self._session, self._paths, pages)
            except Uncertain as exc:
                if not self.wait_for_connection(deadline):
                    raise ConnectTimeout(f"{exc}; nothing was changed") from None

    def wait_for_connection(self, deadline: float) -> bool:
        """False where there is none by then. To be called after a request got no answer."""
        while (left := deadline - clock.boottime()) > 0:
            if self._session.connected:
                return True
            self._news.wait(min(left, _LOOK_EVERY))
        return False

    def read(self, names: Iterable[str]) -> tuple[Indexed, dict[str, Page | RootError]]:
        """The index, and the pages of these entries. Raises as :meth:`.ZooKeeperSession.read`."""
        pages = sorted(set(map(page_of_entry, names)))
        paths = [self._paths.entries, *map(self._paths.entries_page, pages)]
        while True:
            index, *nodes = self._session.read_all(paths)
            if index is not None:
                found = {page: _page(self._paths, page, each) for page, each in zip(pages, nodes)}
                return _indexed(self._paths, index), found
            # One by one: rights on entries are none on what is beside them.
            self._session.ensure(self._paths.root)
            self._session.ensure(self._paths.entries, self.acl)

    def catch_up(self) -> None:
        self._session.catch_up(self._paths.entries)

    def commit(self, operations: Sequence[Operation]) -> None:
        self._session.commit(*operations)
        self._clock_read = clock.boottime()

    def now(self) -> int:
        """Milliseconds since 1970, by ZooKeeper's clock. Raises as :meth:`commit`."""
        if self._clock_read is None or clock.boottime() - self._clock_read > _CLOCK_HOLDS:
            # Any write's answer tells; this one leaves nothing.
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
    """At least the bytes of a page once it is changed."""
    if isinstance(page, RootError):
        return 0  # nothing is written
    size = page.size
    for name, edit in edits.items():
        try:
            content = edit(page.get(name))
        except ZkBeatError:
            continue  # it will say so again
        size += 0 if content is None else content.size + len(name) * 6 + _LARGEST_LIFE
    return size


class _Lost(Exception):
    """Nobody knows any more whether what was sent was done."""


class _Task:
    """One :meth:`Changer.change`."""

    def __init__(
        self, changer: Changer, edits: Mapping[str, Edit], by: str, deadline: float
    ) -> None:
        self._changer, self._edits, self._by, self._deadline = changer, edits, by, deadline
        self._id = uuid.uuid4().hex[:12]
        #: What was sent, and got no answer.
        self._unanswered: _Attempt | None = None
        #: What is read is not older than this call.
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
        """Waits before what others have changed meanwhile is tried again."""
        if clock.boottime() + self._pause > self._deadline:
            raise ConnectTimeout(f"{exc}: others change it all the time; nothing was changed")
        clock.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _failure(self, exc: Uncertain) -> ZkBeatError:
        if self._unanswered is None:
            return ConnectTimeout(f"{exc}; nothing was changed")
        return Uncertain(f"{exc}; whether it was changed is not known")

    def _try(self) -> dict[str, Changed] | None:
        """None: it has to be tried again."""
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
        # A server may be behind: that there is nothing to do is not certain yet.
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
        """
        Raises:
            _Lost: so much has been changed since that nobody knows.
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

    def _after(
        self, name: str, before: Found, content: Content | None, at: int
    ) -> Definition | None:
        if content is None:
            return None
        content = content.checked(name)
        if isinstance(before, Definition):
            return before.changed(content, at, self._by)
        return Definition.added(content, uuid.uuid4().hex[:12], at, self._by)

    def _operations(
        self,
        indexed: Indexed,
        pages: Mapping[str, Page | RootError],
        outcomes: Mapping[str, Changed],
    ) -> list[Operation]:
        """None, where there is nothing to be changed."""
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
                f"{path}: {index.entries} live entries, and there may be {MOST_ENTRIES}: nothing "
                "was changed"
            )
        return [*operations, SetData(path, index.encode(), indexed.version or 0)]

    def _encoded(self, path: str, page: Page) -> bytes:
        try:
            return page.encode()
        except RecursionError:
            raise RootError(f"{path}: holds what is too deep: {MEND.format(path)}") from None

    def _check_size(
        self, before: Page, changes: Mapping[str, Definition | None], after: Page, data: bytes
    ) -> None:
        is_more = len(after.told) > len(before.told)
        most = LARGEST_PAGE - _KEPT if is_more else LARGEST_PAGE
        if len(data) > most:
            name = next((name for name, each in changes.items() if each is not None), "")
            raise TooLarge(
                f"{name:.200}: with it the {len(after.told)} entries of its page would have "
                f"{len(data)} bytes, and a page holds {most}: make them smaller; nothing was "
                "changed"
            )
