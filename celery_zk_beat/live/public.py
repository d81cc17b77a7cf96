"""`Entries`, the users' API for live entries: for a web application, a worker, a script."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar, Union

from .. import clock
from ..control import LONGEST_WHO, who
from ..errors import (
    AccessDenied,
    ConnectTimeout,
    EntryError,
    RootError,
    Uncertain,
    VersionConflict,
    ZkBeatError,
)
from ..paths import Paths, page_of
from ..policies import check_policy, needs_outcomes
from ..runs import RunState, decode_page, from_milliseconds
from ..schedules import cron, every
from ..settings import Settings, check_seconds
from ..zookeeper.session import ZooKeeperSession, wait_for_connection
from . import store
from .definitions import (
    Content,
    Damaged,
    Definition,
    Found,
    Page,
    Sum,
    as_policy,
    check_name,
    refusal,
    timing_of,
)

T = TypeVar("T")
#: A schedule: cron(), every(), seconds, or the mapping that a definition has.
Schedule = Union[cron, every, float, timedelta, Mapping[str, Any]]

#: Seconds to wait for the end of a session.
_CLOSE_WITHIN = 2.0


class Keep(Enum):
    """The type of KEEP, which stands for "leave this field as it is"."""

    KEEP = "as it was"


KEEP = Keep.KEEP


@dataclass(frozen=True)
class EntryVersion:
    """One change of an entry. `what`: names of fields, or "added", "enabled", "disabled"."""

    version: int
    at: datetime
    by: str
    what: tuple[str, ...]


@dataclass(frozen=True)
class LiveEntry:
    """A live entry, as it was when it was read. Instants are aware, UTC, by ZooKeeper's clock.

    Attributes:
        schedule: :class:`.cron` or :class:`.every`.
        version: 1 when it was added, one more with each change.
        by, at: who changed it last, and when.
        since: when its clock started: when somebody added it, changed its schedule or enabled it
            again.
        changes: the last ten, oldest first.
    """

    name: str
    task: str
    schedule: cron | every
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    policy: dict[str, Any]
    enabled: bool
    override: bool
    note: str
    version: int
    by: str
    at: datetime
    since: datetime
    changes: tuple[EntryVersion, ...]

    @classmethod
    def of(cls, name: str, found: Definition | Damaged) -> LiveEntry:
        """Raises EntryError if the definition is damaged."""
        if isinstance(found, Damaged):
            raise EntryError(name, None, found.why, "an entry that can be understood")
        content = found.content
        try:
            schedule = content.schedule.schedule()
        except ValueError as exc:
            what = f"a valid schedule: {exc}"
            raise EntryError(name, "schedule", content.schedule.told, what) from None
        changes = tuple(
            EntryVersion(each.version, from_milliseconds(each.at), each.by, each.what)
            for each in found.changes
        )
        return cls(
            name,
            content.task,
            schedule,
            list(content.args),
            dict(content.kwargs),
            dict(content.options),
            dict(content.policy),
            content.enabled,
            content.override,
            content.note,
            found.version,
            changes[-1].by if changes else "",
            changes[-1].at if changes else found.since_at,
            found.since_at,
            changes,
        )


@dataclass(frozen=True)
class EntryChange:
    """A change of an entry: `before` is None if it was added, `after` is None if it was removed.
    Several changes of an entry may be reported as one."""

    name: str
    before: LiveEntry | None
    after: LiveEntry | None


def refuse_tracking(settings: Settings, name: str, policy: Mapping[str, Any]) -> None:
    """Raises EntryError if an entry's policy needs to know what becomes of runs, and nobody tells.
    `policy`: as a definition has it."""
    if settings.outcomes is None:
        for key in needs_outcomes(check_policy(policy)):
            accepted = f"nothing, unless {settings.prefix}outcomes is set"
            raise EntryError(name, f"policy.{key}", policy[key], accepted)


class Entries:
    """The live entries of an app. One object per process is enough; all threads may use it. It
    connects on the first call, and once more in a forked child process.

    Args:
        app: the Celery app. Its settings say where ZooKeeper is.
        timeout: the most seconds that a call waits for ZooKeeper. A server that hangs is noticed
            after the session time-out.
        by: who makes the changes; each change records it. Default: ``user@host``.

    All methods raise:
        ConnectTimeout: ZooKeeper was not reached in time; nothing was changed.
        ZooKeeperError: ZooKeeper refuses the call: missing rights, a quota.
        RootError: a znode of live entries is damaged.
    """

    def __init__(self, app: Any, timeout: float = 10.0, by: str | None = None) -> None:
        self._app = app
        self.settings = Settings.from_app(app)
        self._timeout = check_seconds(timeout)
        self._by = (by or who())[:LONGEST_WHO]
        self._is_closed = False
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Creates what each process needs for itself."""
        self._lock = clock.Lock()
        self._link: _Link | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()

    def put(
        self,
        name: str,
        *,
        task: str,
        schedule: Schedule,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
        enabled: bool = True,
        override: bool = False,
        note: str = "",
        if_version: int | None = None,
    ) -> LiveEntry:
        """Adds an entry, or replaces the definition of the entry of this name. It changes nothing
        if the entry has this definition already. Once it returns, any master claims runs by this
        definition only.

        Args:
            schedule: ``cron(...)``, ``every(...)``, or seconds.
            args, kwargs: values that JSON can hold.
            options: message options, such as ``{"queue": "reports"}``.
            policy: keys as in ``zk_beat_policies``, for this entry only.
            override: run it even if the app's ``beat_schedule`` has an entry of this name.
            if_version: change it only if it has this version; 0: only if it does not exist.

        Raises:
            EntryError: a field is wrong; it names the field, its value and what is accepted.
            VersionConflict: the entry does not have the version `if_version`.
            TooLarge: there are too many entries.
            Uncertain: no answer came, and nobody knows whether it was changed. You may safely call
                it again with the same arguments.
        """
        content = Content(
            task=task,
            schedule=timing_of(name, schedule),
            args=list(args) if isinstance(args, tuple) else args,
            kwargs=_as_dict(kwargs),
            options=_as_dict(options),
            policy=as_policy(_as_dict(policy)),
            enabled=enabled,
            override=override,
            note=note,
        ).checked(check_name(name))
        self.check_task(name, content.task)
        refuse_tracking(self.settings, name, content.policy)

        def edit(found: Found) -> Content:
            _check_version(name, found, if_version, content)
            return content

        return self._change(name, edit)

    def set(
        self,
        name: str,
        *,
        task: str | Keep = KEEP,
        schedule: Schedule | Keep = KEEP,
        args: Sequence[Any] | Keep = KEEP,
        kwargs: Mapping[str, Any] | Keep = KEEP,
        options: Mapping[str, Any] | Keep = KEEP,
        policy: Mapping[str, Any] | Keep = KEEP,
        enabled: bool | Keep = KEEP,
        override: bool | Keep = KEEP,
        note: str | Keep = KEEP,
        if_version: int | None = None,
    ) -> LiveEntry:
        """Changes only the given fields of an entry. Raises as :meth:`put`, and KeyError if there
        is no such entry."""
        check_name(name)
        said: dict[str, Any] = {
            "task": task,
            "schedule": schedule if schedule is KEEP else timing_of(name, schedule),
            "args": list(args) if isinstance(args, tuple) else args,
            "kwargs": kwargs if kwargs is KEEP else _as_dict(kwargs),
            "options": options if options is KEEP else _as_dict(options),
            "policy": policy if policy is KEEP else as_policy(_as_dict(policy)),
            "enabled": enabled,
            "override": override,
            "note": note,
        }
        said = {key: value for key, value in said.items() if value is not KEEP}
        if task is not KEEP:
            self.check_task(name, task)

        def edit(found: Found) -> Content:
            if found is None:
                raise _NotThere(name)
            if isinstance(found, Damaged):
                raise EntryError(name, None, found.why, "an entry that can be understood")
            content = replace(found.content, **said).checked(name)
            if policy is not KEEP:
                refuse_tracking(self.settings, name, content.policy)
            _check_version(name, found, if_version, content)
            return content

        try:
            return self._change(name, edit)
        except _NotThere:
            raise KeyError(name) from None

    def remove(self, name: str, if_version: int | None = None) -> bool:
        """Removes an entry. Returns False if there is none. An entry of this name that you add
        later is a new entry. Raises as :meth:`put`."""

        def edit(found: Found) -> None:
            if found is not None:
                _check_version(name, found, if_version, None)

        found = self._with(lambda link, until: link.changer.change({name: edit}, self._by, until))
        return found[name].is_changed

    def get(self, name: str) -> LiveEntry | None:
        """Returns the entry of this name, or None. Raises EntryError if it is damaged."""

        def read(link: _Link, until: float) -> Found:
            _, pages = link.changer.read([name])
            for page in pages.values():
                if not isinstance(page, Page):
                    raise page
                return page.get(name)
            return None

        found = self._with(_patiently(read))
        return None if found is None else LiveEntry.of(name, found)

    def __iter__(self) -> Iterator[LiveEntry]:
        """Iterates over all entries by name, as they are at the time of this call."""
        return iter(self.read()[0])

    def __len__(self) -> int:
        """Returns the number of entries."""
        return self._with(_patiently(lambda link, until: link.index().index.entries))

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def read(self) -> tuple[list[LiveEntry], dict[str, str]]:
        """Returns all entries by name, and a dict of the damaged ones: name to reason."""
        found: dict[str, _Known] = {}
        self._with(_patiently(lambda link, until: link.read(found, None)))
        entries, damaged = [], {}
        for name, each in sorted(_entries(found).items()):
            try:
                entries.append(LiveEntry.of(name, each))
            except EntryError as exc:
                damaged[name] = each.why if isinstance(each, Damaged) else exc.what
        return entries, damaged

    def changes(self, timeout: float | None = None) -> Iterator[EntryChange]:
        """Yields each change from now on. It waits for the next change, even while ZooKeeper
        cannot be reached.

        Args:
            timeout: it ends after this many seconds without a change; None: it ends at
                :meth:`close`.
        """
        news = clock.Wakeup()
        known: dict[str, _Known] = {}
        self._listeners += (news.set,)
        try:
            self._with(_patiently(lambda link, until: link.read(known, news.set)))
        except BaseException:
            self._forget(news.set)
            raise
        return self._changes(known, news, timeout)

    def _changes(
        self, known: dict[str, _Known], news: clock.Wakeup, timeout: float | None
    ) -> Iterator[EntryChange]:
        entries = _entries(known)
        until = None if timeout is None else clock.boottime() + timeout
        try:
            while not self._is_closed:
                with contextlib.suppress(ConnectTimeout):
                    self._with(_patiently(lambda link, until: link.read(known, news.set)))
                    before, entries = entries, _entries(known)
                    for change in _differences(before, entries):
                        yield change
                        until = None if timeout is None else clock.boottime() + timeout
                left = None if until is None else until - clock.boottime()
                if (left is not None and left <= 0) or self._is_closed:
                    return
                news.wait(left)
        finally:
            self._forget(news.set)

    def close(self) -> None:
        """Ends the session and all iterators of :meth:`changes`. Later calls raise ZkBeatError."""
        self._is_closed = True
        self._drop()
        self._tell()

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Entries at {self.settings.hosts} {self.settings.root}>"

    def _change(self, name: str, edit: store.Edit) -> LiveEntry:
        found = self._with(lambda link, until: link.changer.change({name: edit}, self._by, until))
        after = found[name].after
        assert after is not None
        return LiveEntry.of(name, after)

    def definitions(self) -> dict[str, Definition | Damaged]:
        """For `import`: returns all definitions, by name."""
        found: dict[str, _Known] = {}
        self._with(_patiently(lambda link, until: link.read(found, None)))
        return _entries(found)

    def states(self, names: Iterable[str]) -> dict[str, RunState]:
        """For `import`: the run states of entries that have one, and that can be understood."""
        pages = sorted({page_of(name) for name in names})

        def read(link: _Link, until: float) -> dict[str, RunState]:
            found: dict[str, RunState] = {}
            paths = [link.paths.page(page) for page in pages]
            for path, node in zip(paths, link.session.read_all(paths)):
                with contextlib.suppress(RootError):
                    found.update({} if node is None else decode_page(path, node.data))
            return found

        return self._with(_patiently(read))

    def change_many(self, edits: Mapping[str, store.Edit]) -> Iterator[dict[str, store.Changed]]:
        """For `import`, which has one thread: see :meth:`.Changer.change_many`."""
        link = self._linked(clock.boottime() + self._timeout)
        return link.changer.change_many(edits, self._by, self._timeout)

    def check_task(self, name: str, task: str) -> None:
        """Raises EntryError if the beats would not run this task."""
        patterns, setting = self.settings.entries_tasks, f"{self.settings.prefix}entries_tasks"
        why = refusal(task, self._app.tasks, patterns, setting)
        if why is not None and patterns is None:
            # Not all tasks of an app are known before a worker, or a beat, starts.
            self._app.loader.import_default_modules()
            why = refusal(task, self._app.tasks, patterns, setting)
        if why is not None:
            raise EntryError(name, "task", task, f"a task that may run: {why}")

    def _with(self, do: Callable[[_Link, float], T]) -> T:
        """Calls `do` with a connection and the deadline, by boottime()."""
        until = clock.boottime() + self._timeout
        lock = self._lock
        if not lock.acquire(timeout=self._timeout):
            raise ConnectTimeout(f"{self!r}: other threads wait as well; nothing was changed")
        try:
            try:
                return do(self._linked(until), until)
            except AccessDenied:
                # The session may have outdated credentials.
                if self._link is None or not self._link.session.outdated:
                    raise
                self._drop()
                return do(self._linked(until), until)
        finally:
            lock.release()

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.session.stop(_CLOSE_WITHIN)

    def _linked(self, until: float) -> _Link:
        if self._is_closed:
            raise ZkBeatError(f"{self!r} is closed")
        if self._link is not None and self._link.session.dead:
            self._drop()
        link = self._link
        if link is None:
            self._link = link = _Link(self.settings, self._timeout, self._tell)
        link.wait(until)
        return link

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _forget(self, listener: Callable[[], None]) -> None:
        self._listeners = tuple(each for each in self._listeners if each != listener)


#: All objects, so that each can start again in a forked process: a session belongs to one process
#: (kazoo#519).
_all: weakref.WeakSet[Entries] = weakref.WeakSet()


def _after_fork() -> None:
    for entries in list(_all):
        entries._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


#: A page as it was read: its line in the index, and its entries.
_Known = tuple[Sum, dict[str, Union[Definition, Damaged]]]


class _Link:
    """One session with ZooKeeper."""

    def __init__(self, settings: Settings, timeout: float, tell: Callable[[], None]) -> None:
        self.news = clock.Wakeup()
        self._settings, self._tell = settings, tell
        self.paths = Paths.of(settings.hosts, settings.root)
        self.session = ZooKeeperSession(
            settings.hosts.partition("/")[0],
            min(timeout, settings.session_timeout),
            self._on_change,
            settings.access,
        )
        self.changer = store.Changer(self.session, self.paths, self.news, settings.entries_acl)
        #: The last connection on which we caught up: see catch_up().
        self._caught_up = -1
        self.session.start()

    def _on_change(self) -> None:
        self.news.set()
        self._tell()

    def wait(self, until: float) -> None:
        """Raises ConnectTimeout if there is no connection by `until`."""
        wait_for_connection(self.session, self._settings.hosts, until, self.news)
        if self._caught_up != self.session.connection:
            connection = self.session.connection
            with contextlib.suppress(Uncertain):
                self.session.catch_up(self.paths.entries)
                self._caught_up = connection

    def index(self) -> store.Indexed:
        found = store.read_index(self.session, self.paths)
        if found.damage is not None:
            raise found.damage
        return found

    def read(self, known: dict[str, _Known], watch: store.Watch | None) -> None:
        """Brings `known` up to date: reads only the pages that have changed."""
        found = store.read_index(self.session, self.paths, watch)
        if found.damage is not None:
            raise found.damage
        if found.version is None and watch is not None:
            self.session.ensure(self.paths.root)
            self.session.ensure(self.paths.entries, self.changer.acl)
            found = store.read_index(self.session, self.paths, watch)
        sums = found.index.pages
        stale = [page for page, each in sums.items() if page not in known or known[page][0] != each]
        read = store.read_pages(self.session, self.paths, stale)
        for page in [*known]:
            if page not in sums:
                del known[page]
        for page, each in read.items():
            if not isinstance(each, Page):
                raise each
            known[page] = sums[page], each.entries


def _patiently(read: Callable[[_Link, float], T]) -> Callable[[_Link, float], T]:
    """Makes a read that is tried again if the connection is lost."""

    def again(link: _Link, until: float) -> T:
        while True:
            try:
                return read(link, until)
            except Uncertain:
                link.wait(until)
                if clock.boottime() >= until:
                    raise ConnectTimeout("ZooKeeper did not answer in time") from None

    return again


def _entries(known: Mapping[str, _Known]) -> dict[str, Definition | Damaged]:
    return {name: each for _, entries in known.values() for name, each in entries.items()}


def _differences(
    before: Mapping[str, Definition | Damaged], after: Mapping[str, Definition | Damaged]
) -> Iterable[EntryChange]:
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was != now:
            yield EntryChange(name, _or_none(name, was), _or_none(name, now))


def _or_none(name: str, found: Found) -> LiveEntry | None:
    with contextlib.suppress(EntryError):
        return None if found is None else LiveEntry.of(name, found)
    return None


class _NotThere(ZkBeatError):
    pass


def _check_version(name: str, found: Found, wanted: int | None, content: Content | None) -> None:
    """Raises VersionConflict if the entry does not have the version `wanted`."""
    if wanted is None:
        return
    if isinstance(found, Damaged):
        raise EntryError(name, None, found.why, "an entry that can be understood")
    version = 0 if found is None else found.version
    if version == wanted:
        return
    # The change was made already: a caller that got no answer may try again.
    if found is not None and version == wanted + 1 and found.content.is_same(content):
        return
    raise VersionConflict(name, wanted, version)


def _as_dict(value: Any) -> Any:
    """Returns a mapping as a dict. Other values stay as they are, and are refused later."""
    return dict(value or {}) if value is None or isinstance(value, Mapping) else value
