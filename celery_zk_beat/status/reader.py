"""One read-only look at an election: who is master, what runs next, what ran last.

It asks ZooKeeper alone, never the broker or a beat, writes nothing and takes part in no election.
docs/status.md describes what comes out as JSON. What is missing is left out and what cannot be
understood is named in `warnings`: a look at a half-broken root must not fail.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from .. import clock
from ..control import Pause, Pauses
from ..due import ask_at, is_ahead, is_steady, next_free, next_run, schedule_text
from ..errors import RootError, ZkBeatError
from ..paths import Paths, is_page, page_of
from ..records import (
    FORMAT,
    LARGEST_NUMBER,
    TERMS_REMEMBERED,
    RootRecord,
    decode,
    from_text,
    to_text,
)
from ..runs import PastRun, Run, RunState, decode_outbox, decode_page
from ..session import CLOCK_TOLERANCE, Node, Quota, ZooKeeperSession, changed_path
from ..settings import Settings

#: Seconds after which a master that has not written the outbox is not ticking; it does so every
#: 30 s at the latest.
TICKING_WITHIN = 120.0
#: How long a run is in the outbox without a word of warning.
_WAITS_QUIETLY = timedelta(seconds=10)
#: How long after it is due a run is claimed, and after which the outbox is written again, at the
#: latest, where nothing keeps the master from it.
_CLAIMED_WITHIN, _WRITES_WITHIN = timedelta(seconds=5), timedelta(seconds=45)
#: Most characters of an id and the like.
_LONGEST_TEXT = 200
#: Most runs in `recent`.
MOST_RECENT = 50


@dataclass(frozen=True)
class Master:
    """Instants are aware, UTC, here and below.

    Attributes:
        successor: the id of the standby to whom it is handing over, if it is.
        ticked_at: when its dispatch loop last wrote the outbox, by the server's clock.
        ticking: whether that, or its election, was less than TICKING_WITHIN ago.
    """

    id: str
    host: str
    pid: int
    epoch: int
    since: datetime | None
    version: str
    schedule: str | None
    successor: str | None
    ticked_at: datetime | None
    ticking: bool


@dataclass(frozen=True)
class Member:
    """A beat. `clock_offset`: seconds by which its clock is ahead of the server's, None if it does
    not tell; `since`: when its process began; `useless`: why it could do nothing when it was
    master, as long as it has not shown that it can."""

    id: str
    host: str
    pid: int
    state: str
    since: datetime | None
    version: str | None
    schedule: str | None
    clock_offset: float | None
    useless: str | None
    broker: str | None = None


@dataclass(frozen=True)
class Entry:
    """An entry of the asker's schedule, or one of which only ZooKeeper knows (`in_schedule`).

    Attributes:
        paused, paused_by: since when, and by whom.
        last_run_at: when its last run was dispatched; None before the first.
        last_due: the instant that its last run was for.
        next_run_at: None where it cannot be told, and while it is paused.
        waiting: the number of its run in the outbox.
    """

    name: str
    task: str | None
    schedule: str | None
    paused: datetime | None
    paused_by: str | None
    last_run_at: datetime | None
    total_run_count: int
    last_due: datetime | None
    next_run_at: datetime | None
    waiting: int | None
    in_schedule: bool


#: What a run waits for, where nothing else is known.
FOR_BROKER = "the broker"
_FOR_RESUME, _FOR_SCHEDULE = "the end of a pause", "a schedule that names it"


@dataclass(frozen=True)
class WaitingRun:
    """A run of the outbox; as :class:`.runs.Run`.

    Attributes:
        waits_for: what it waits for.
        error: what was wrong when it was to be published last, where that was its own fault.
    """

    entry: str
    run: int
    due: datetime
    claimed: datetime
    epoch: int
    extra: bool
    key: str | None
    waits_for: str
    error: str | None


@dataclass(frozen=True)
class RecentRun:
    """A run that was dispatched, or skipped; then `run` is None and `note` says why.

    Attributes:
        at: when it was dispatched, or the skipping was noted.
        by: the id of the master of `epoch`, if it is still known.
    """

    entry: str
    run: int | None
    due: datetime
    at: datetime
    epoch: int
    by: str | None
    task_id: str | None
    note: str | None


@dataclass(frozen=True)
class Term:
    """One time as master; `until` and `why` are None while it lasts."""

    epoch: int
    id: str
    host: str
    pid: int
    since: datetime | None
    until: datetime | None
    why: str | None


@dataclass(frozen=True)
class Snapshot:
    """What one look found; immutable.

    Attributes:
        app: the app that the root belongs to, None where that is not written.
        schedule: digest of the asker's schedule.
        members: the master first, then by id.
        paused, paused_by: since when everything is paused, and by whom.
        recent: the last runs, newest first.
        masters: newest first.
        warnings: what somebody should look at, a line each.
    """

    hosts: str
    root: str
    app: str | None
    read_at: datetime
    master: Master | None
    members: tuple[Member, ...]
    schedule: str
    paused: datetime | None
    paused_by: str | None
    entries: tuple[Entry, ...]
    outbox: tuple[WaitingRun, ...]
    recent: tuple[RecentRun, ...]
    masters: tuple[Term, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is a master that is ticking."""
        return self.master is not None and self.master.ticking

    def to_json(self) -> dict[str, Any]:
        """As docs/status.md says: instants are ISO 8601 texts in UTC, seconds numbers."""
        return {"format": FORMAT, **plain(self)}


class Schedule(Protocol):
    """What of the asker's scheduler a look needs."""

    @property
    def entries(self) -> Mapping[str, Any]:
        """Celery's, by name."""

    def digest(self) -> str:
        """Tells schedules apart."""

    def task_id(self, entry: str, number: int, due: datetime) -> str:
        """The one with which a run is, or was, published."""


class Reader:
    """Looks once, or again and again, and then asks only for what has changed. For one thread at a
    time.

    Args:
        session: a connected one.
        settings: those of the asker, which say where to look.
        schedule: the asker's.
        on_change: called on kazoo's thread, which it must not block, whenever the next look may
            find something new; not when the connection comes back, which the session tells.
            Without it no watch is set, and every look reads everything.
        remarks: warnings about the asker.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        settings: Settings,
        schedule: Schedule,
        on_change: Callable[[], None] | None = None,
        remarks: Iterable[str] = (),
    ) -> None:
        self._session = session
        self._settings = settings
        self._schedule = schedule
        self._paths = paths = Paths.of(settings.hosts, settings.root)
        self._on_change = on_change
        self._remarks = tuple(remarks)
        self._digest = schedule.digest()
        #: What is always looked at, and what may be missing and come.
        self._fixed = (paths.root, paths.master, paths.masters, paths.pauses, paths.outbox)
        self._parents = (paths.root, paths.members, paths.runs)
        #: Paths that changed since they were read; None for all of them.
        self._changed: clock.SimpleQueue[str | None] = clock.SimpleQueue()
        self._changed.put(None)
        self._nodes: dict[str, Node | None] = {}
        self._pages: dict[str, _Page] = {}
        self._quota: Quota | None = None
        #: An entry as it was last shown, and what it was made of.
        self._shown: dict[str, tuple[tuple[Any, ...], Entry]] = {}

    def read(self) -> Snapshot:
        """
        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.
            RootError: the root belongs to another app.

        After any of them the next look begins from nothing.
        """
        try:
            self._refresh()
        except ZkBeatError:
            self._changed.put(None)
            raise
        return self._snapshot(clock.now())

    def history(self, entry: str | None, limit: int) -> list[RecentRun]:
        """The last runs, newest first, of one entry or of all, as far as the last :meth:`read`
        saw them."""
        past = (
            (run, name)
            for page in self._pages.values()
            for name in (page.states if entry is None else {entry} & page.states.keys())
            for run in page.states[name].history
        )
        masters = _masters(self._record(self._paths.masters, []))
        return self._recent(_newest(limit, past), masters)

    # Reading ------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        changed = self._take_changed()
        if not self._session.connected:
            changed.add(None)  # so that it is said, though the watches have not told it yet
        if not changed and self._on_change is not None:
            return
        everything = None in changed or self._on_change is None
        watch = None if self._on_change is None else self._on_watch
        wanted = {path for path in changed if path in self._nodes}
        # What is missing has no watch of its own: the one on the root tells that it has come.
        something_came = everything or self._paths.root in changed
        if something_came:
            wanted.update(self._fixed)
            # Whether there are children is not asked, and so not watched, of what is not there.
            if watch is not None:
                self._session.exists(self._paths.root, watch)
        for parent in self._parents:
            if something_came or parent in changed:
                names = self._session.children(parent, watch)
                if parent != self._paths.root:
                    wanted |= self._follow(parent, names, everything)
        self._quota = self._session.quota(self._paths.root)
        # The outbox after the pages: what it says is then never older than what they say.
        paths = sorted(wanted, key=lambda path: (path == self._paths.outbox, path))
        for path, node in zip(paths, self._session.read_all(paths, watch) if paths else ()):
            self._nodes[path] = node
            self._pages.pop(path, None)

    def _take_changed(self) -> set[str | None]:
        changed = set()
        with contextlib.suppress(clock.Empty):
            while True:
                changed.add(self._changed.get_nowait())
        return changed

    def _follow(self, parent: str, names: Iterable[str], everything: bool) -> set[str]:
        """Forgets the znodes that are no longer below `parent`; returns those to be read."""
        if parent == self._paths.runs:
            names = filter(is_page, names)
        there = {f"{parent}/{name}" for name in names}
        known = {path for path in self._nodes if path.startswith(f"{parent}/")}
        for path in known - there:
            del self._nodes[path]
            self._pages.pop(path, None)
        return there if everything else there - known

    def _on_watch(self, event: object) -> None:
        self._changed.put(changed_path(event))
        if self._on_change is not None:
            self._on_change()

    # What is where ------------------------------------------------------------------------------

    def _snapshot(self, now: datetime) -> Snapshot:
        warnings: list[str] = []
        app = self._app(warnings)
        master = self._master(warnings, now)
        members = self._members(warnings)
        runs = self._outbox(warnings)
        pages = self._read_pages(warnings)
        masters = _masters(self._record(self._paths.masters, warnings))
        pauses = self._pauses(warnings)
        everything = pauses.everything
        past = (each for page in pages for each in page.newest)
        entries = self._entries(pages, runs, pauses, now)
        outbox = list(_waiting(runs, pauses, entries))
        if master is not None and self._quota is not None and self._quota.is_tight:
            stuck = _is_stuck(master, entries, outbox, now)
            master = replace(master, ticking=master.ticking and not stuck)
        warnings[:0] = [
            *_about_master(master, now),
            *_about_quota(self._quota),
            *self._remarks,
            *_about_pause(everything),
            *_about_clocks(members),
            *_about_useless(members),
            *_about_schedules(self._digest, members),
            *_about_brokers(members),
            *_about_outbox(outbox, now),
            *self._about_ahead(pages, now),
        ]
        return Snapshot(
            hosts=self._settings.hosts,
            root=self._settings.root,
            app=app,
            read_at=now,
            master=master,
            members=tuple(members),
            schedule=self._digest,
            paused=everything.since,
            paused_by=None if everything.since is None else everything.by,
            entries=tuple(entries),
            outbox=tuple(outbox),
            recent=tuple(self._recent(_newest(MOST_RECENT, past), masters)),
            masters=tuple(masters),
            warnings=tuple(warnings),
        )

    def _app(self, warnings: list[str]) -> str | None:
        path = self._paths.root
        node = self._nodes.get(path)
        if node is None:
            warnings.append(
                f"{path}: no such znode: no beat has run there yet (zk_beat_hosts, zk_beat_root)"
            )
        if node is None or not node.data:
            return None
        owner = RootRecord.decode(path, node.data).app
        if self._settings.app is not None and owner != self._settings.app:
            raise RootError(
                f"{path} belongs to the app {owner!r}, and this is {self._settings.app!r}: give "
                "each app a root of its own (zk_beat_root)"
            )
        return owner

    def _master(self, warnings: list[str], now: datetime) -> Master | None:
        node = self._nodes.get(self._paths.master)
        fields = self._record(self._paths.master, warnings)
        if node is None:
            return None
        outbox = self._nodes.get(self._paths.outbox)
        ticked_at = None if outbox is None else _server_time(outbox.mtime)
        # One that was elected just now may not have ticked yet.
        alive_at = max(node.mtime, 0.0 if outbox is None else outbox.mtime)
        return Master(
            id=_text(fields.get("id")),
            host=_text(fields.get("host")),
            pid=_number(fields.get("pid")),
            epoch=_number(fields.get("epoch")),
            since=_instant(fields.get("since")),
            version=_text(fields.get("version")),
            schedule=_text_or_none(fields.get("schedule")),
            successor=_text_or_none(fields.get("successor")),
            ticked_at=ticked_at,
            ticking=now.timestamp() - alive_at < TICKING_WITHIN,
        )

    def _members(self, warnings: list[str]) -> list[Member]:
        members = []
        for path, node in self._below(self._paths.members):
            if fields := self._record(path, warnings):
                members.append(
                    Member(
                        id=_text(fields.get("id")),
                        host=_text(fields.get("host")),
                        pid=_number(fields.get("pid")),
                        state=_text(fields.get("state")),
                        since=_instant(fields.get("since")),
                        version=_text_or_none(fields.get("version")),
                        schedule=_text_or_none(fields.get("schedule")),
                        clock_offset=_offset(_instant(fields.get("written")), node),
                        useless=_text_or_none(fields.get("useless")),
                        broker=_text_or_none(fields.get("broker")),
                    )
                )
        return sorted(members, key=lambda member: (member.state != "master", member.id))

    def _outbox(self, warnings: list[str]) -> list[Run]:
        node = self._nodes.get(self._paths.outbox)
        try:
            return [] if node is None else decode_outbox(self._paths.outbox, node.data)
        except RootError as exc:
            warnings.append(str(exc))
            return []

    def _pauses(self, warnings: list[str]) -> Pauses:
        node = self._nodes.get(self._paths.pauses)
        try:
            return Pauses() if node is None else Pauses.decode(self._paths.pauses, node.data)
        except RootError as exc:
            warnings.append(f"{exc}; until then nothing is dispatched")
            return Pauses()

    def _read_pages(self, warnings: list[str]) -> list[_Page]:
        for path, node in self._below(self._paths.runs):
            if path not in self._pages:
                self._pages[path] = _Page.of(path, node.data)
        warnings += [page.damage for page in self._pages.values() if page.damage]
        return list(self._pages.values())

    def _below(self, parent: str) -> Iterator[tuple[str, Node]]:
        for path, node in self._nodes.items():
            if node is not None and path.startswith(f"{parent}/"):
                yield path, node

    def _record(self, path: str, warnings: list[str]) -> dict[str, Any]:
        """The fields of a record; none, and perhaps a warning, where there is no such record."""
        node = self._nodes.get(path)
        if node is None or not node.data:
            return {}
        try:
            return decode(path, node.data)
        except RootError as exc:
            warnings.append(str(exc))
            return {}

    # What follows from it -----------------------------------------------------------------------

    def _entries(
        self,
        pages: Iterable[_Page],
        outbox: Iterable[Run],
        pauses: Pauses,
        now: datetime,
    ) -> list[Entry]:
        schedule = dict(self._schedule.entries)
        waiting = {run.entry: run.number for run in outbox}
        states = {name: state for page in pages for name, state in page.states.items()}
        # Of those of a gated scheduler ZooKeeper alone knows.
        gated = self._settings.scheduler is not None
        before, self._shown = self._shown, {}
        for name in sorted({*schedule, *states, *waiting}):
            entry = schedule.get(name)
            made_of = (
                states.get(name),
                waiting.get(name),
                pauses.of(name),
                pauses.since(name) is not None,
                None if entry is None or is_steady(entry.schedule) else now,
                entry,
                gated,
            )
            known = before.get(name)
            if known is None or known[0] != made_of:
                known = made_of, _entry(name, *made_of)
            self._shown[name] = known
        return [entry for _, entry in self._shown.values()]

    def _about_ahead(self, pages: Iterable[_Page], now: datetime) -> Iterator[str]:
        ahead = {
            name: state.last_run_at
            for page in pages
            for name, state in page.states.items()
            if is_ahead(state.last_run_at, now) and name in self._schedule.entries
        }
        for name in sorted(ahead)[:1]:
            others = f" (and so for {len(ahead) - 1} more)" if len(ahead) > 1 else ""
            yield (
                f"{name} ran last at {_short(ahead[name])}, says {self._paths.page(page_of(name))}"
                f"{others}, which is still to come: a clock is wrong. It goes on when a beat whose "
                "clock is right reads that as master"
            )

    def _recent(
        self, past: Iterable[tuple[PastRun, str]], masters: Iterable[Term]
    ) -> list[RecentRun]:
        ids = {master.epoch: master.id for master in masters}
        return [
            RecentRun(
                entry=name,
                run=run.number,
                due=run.due,
                at=run.at,
                epoch=run.epoch,
                by=ids.get(run.epoch),
                task_id=(
                    None
                    if run.number is None
                    else self._schedule.task_id(name, run.number, run.due)
                ),
                note=run.note,
            )
            for run, name in past
        ]


@dataclass(frozen=True)
class _Page:
    """What a page holds; `damage` says why that is not to be understood."""

    states: dict[str, RunState]
    newest: list[tuple[PastRun, str]]
    damage: str = ""

    @classmethod
    def of(cls, path: str, data: bytes) -> _Page:
        try:
            states = decode_page(path, data)
        except RootError as exc:
            return cls({}, [], f"{exc}; until then the entries on this page do not run")
        past = ((run, name) for name, state in states.items() for run in state.history)
        return cls(states, _newest(MOST_RECENT, past))


def _newest(limit: int, past: Iterable[tuple[PastRun, str]]) -> list[tuple[PastRun, str]]:
    return heapq.nlargest(limit, past, key=lambda each: (each[0].at_ms, each[1]))


def _entry(
    name: str,
    state: RunState | None,
    waiting: int | None,
    pause: Pause,
    held: bool,
    now: datetime | None,
    entry: Any,
    gated: bool,
) -> Entry:
    next_run_at = None
    if entry is not None and state is not None and not held:
        next_run_at = next_free(entry, next_run(entry, state.last_run_at), state)
        asked_at = ask_at(entry, state)
        if asked_at is not None:
            next_run_at = max(asked_at, next_run_at or asked_at)
    return Entry(
        name=name,
        task=None if entry is None else str(entry.task),
        schedule=None if entry is None or entry.schedule is None else schedule_text(entry.schedule),
        paused=pause.since,
        paused_by=None if pause.since is None else pause.by,
        last_run_at=None if state is None else _last_run_at(state),
        total_run_count=0 if state is None else state.total_run_count,
        last_due=None if state is None else state.due,
        next_run_at=next_run_at,
        waiting=waiting,
        in_schedule=gated or entry is not None,
    )


def _last_run_at(state: RunState) -> datetime | None:
    """Not that of the state, from which the entry's clock runs: it is also set by a run that is
    skipped, and not by one that an operator asks for."""
    for past in reversed(state.history):
        if past.number is not None:
            return past.at
    return state.last_run_at if state.due is not None else None


def _masters(record: Mapping[str, Any]) -> list[Term]:
    listed = record.get("masters")
    return [
        Term(
            epoch=_number(fields.get("epoch")),
            id=_text(fields.get("id")),
            host=_text(fields.get("host")),
            pid=_number(fields.get("pid")),
            since=_instant(fields.get("since")),
            until=_instant(fields.get("until")),
            why=_text_or_none(fields.get("why")),
        )
        for fields in reversed(listed[-TERMS_REMEMBERED:] if isinstance(listed, list) else [])
        if isinstance(fields, dict)
    ]


def _about_master(master: Master | None, now: datetime) -> Iterator[str]:
    if master is None:
        yield "there is no master: nothing is dispatched"
    elif not master.ticking:
        since = "" if master.ticked_at is None else f" since {_short(master.ticked_at)}"
        yield f"{master.id} is master, but has not ticked{since}: does it hang?"
    if master is not None and master.ticked_at is not None:
        ahead = (master.ticked_at - now).total_seconds()
        if ahead > CLOCK_TOLERANCE:
            yield f"the clock of this machine is {ahead:.1f} s behind ZooKeeper's"


def _about_quota(quota: Quota | None) -> Iterator[str]:
    if quota is not None and quota.is_tight:
        used = f"{quota.used[0]} bytes and {quota.used[1]} znodes"
        yield (
            f"{quota.path} has a quota of {quota.limits}, and {used}: ZooKeeper may refuse to "
            f"write more, so that nothing can be dispatched: {quota.remedy}"
        )


def _is_stuck(
    master: Master, entries: Iterable[Entry], outbox: Iterable[WaitingRun], now: datetime
) -> bool:
    """Whether the master seems to be kept from writing: what is due is not claimed, or what was
    published is not noted."""
    quiet = timedelta(0) if master.ticked_at is None else now - master.ticked_at
    waits = quiet > _WAITS_QUIETLY and any(
        now - run.claimed > _WAITS_QUIETLY for run in outbox if run.waits_for == FOR_BROKER
    )
    if quiet > _WRITES_WITHIN or waits:
        return True
    return any(
        entry.waiting is None
        and entry.next_run_at is not None
        and now - entry.next_run_at > _CLAIMED_WITHIN
        for entry in entries
    )


def _about_pause(everything: Pause) -> Iterator[str]:
    if everything.since is not None:
        by = "" if everything.by is None else f" by {everything.by}"
        yield f"everything is paused since {_short(everything.since)}{by}"


def _about_clocks(members: Iterable[Member]) -> Iterator[str]:
    for member in members:
        offset = member.clock_offset
        if offset is not None and abs(offset) > CLOCK_TOLERANCE:
            side = "ahead of" if offset > 0 else "behind"
            yield f"the clock of {member.id} is {abs(offset):.1f} s {side} ZooKeeper's"


def _about_useless(members: Iterable[Member]) -> Iterator[str]:
    for member in members:
        if member.useless is not None and member.state != "master":
            yield f"{member.id} leaves it to others to be master, for as master: {member.useless}"


def _about_schedules(digest: str, members: Iterable[Member]) -> Iterator[str]:
    other = [member.id for member in members if member.schedule not in (digest, None)]
    if other:
        yield (
            f"another schedule than the one here: {', '.join(other)}; is a deploy under way, or "
            "is this another configuration?"
        )


def _about_brokers(members: Iterable[Member]) -> Iterator[str]:
    """Not compared with the one of who asks, who needs none."""
    brokers: dict[str, list[str]] = {}
    for member in members:
        if member.broker is not None:
            brokers.setdefault(member.broker, []).append(member.id)
    if len(brokers) > 1:
        told = "; ".join(f"{', '.join(ids)} to {broker}" for broker, ids in brokers.items())
        yield (
            f"the beats send to different brokers ({told}): are these two environments with one "
            "zk_beat_root?"
        )


def _waiting(runs: Iterable[Run], pauses: Pauses, entries: Iterable[Entry]) -> Iterator[WaitingRun]:
    named = {entry.name for entry in entries if entry.in_schedule}
    for run in runs:
        waits_for = FOR_BROKER
        if run.entry not in named:
            waits_for = _FOR_SCHEDULE
        elif not run.extra and pauses.since(run.entry) is not None:
            waits_for = _FOR_RESUME
        yield WaitingRun(
            run.entry,
            run.number,
            run.due,
            run.claimed,
            run.epoch,
            run.extra,
            run.key,
            waits_for,
            run.error,
        )


def _about_outbox(outbox: Iterable[WaitingRun], now: datetime) -> Iterator[str]:
    """What waits for the same, in one line; apart from what has an error of its own."""
    alike: dict[tuple[str, bool], list[WaitingRun]] = {}
    for run in outbox:
        if now - run.claimed > _WAITS_QUIETLY:
            has_error = run.waits_for == FOR_BROKER and run.error is not None
            alike.setdefault((run.waits_for, has_error), []).append(run)
    for (waits_for, has_error), runs in sorted(alike.items()):
        count = "1 run waits" if len(runs) == 1 else f"{len(runs)} runs wait"
        line = f"outbox: {count} for {waits_for} since {_short(min(run.claimed for run in runs))}"
        if has_error:
            line += f", such as {runs[0].entry}: {runs[0].error}"
        elif waits_for == _FOR_SCHEDULE:
            line += f", such as {runs[0].entry}; `zk-beat drop ENTRY` drops it"
        yield line


def _offset(written: datetime | None, node: Node) -> float | None:
    return None if written is None else round(written.timestamp() - node.mtime, 3)


def _instant(value: Any) -> datetime | None:
    try:
        return from_text(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _server_time(mtime: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(mtime, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= LARGEST_NUMBER else 0


def _text(value: Any) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


def _text_or_none(value: Any) -> str | None:
    return _text(value) if isinstance(value, str) else None


def _short(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """What :mod:`json` takes, of any of the above."""
    if isinstance(value, datetime):
        return to_text(value)
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if fields := getattr(value, "__dataclass_fields__", None):
        return {name: plain(getattr(value, name)) for name in fields}
    return value
