"""One read-only look at an election: who is master, what runs next, what ran last.

It asks ZooKeeper alone, never the broker or a beat, writes nothing and takes part in no election.
docs/status.md describes what comes out as JSON. What is missing is left out and what cannot be
understood is named in `warnings`: a look at a half-broken root must not fail.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from .errors import RootError
from .runs import Run, RunState, decode_outbox, decode_page
from .schedulers import ZooKeeperScheduler, next_run, schedule_text
from .session import Node, ZooKeeperSession
from .settings import Settings
from .znodes import FORMAT, Paths, RootRecord, decode, from_text, to_text

logger = logging.getLogger(__name__)

#: A master that has not written the outbox for so long is not ticking; it does so every 30 s.
TICKING_WITHIN = timedelta(seconds=120)
#: How long a run is in the outbox without a word of warning.
_WAITS_QUIETLY = timedelta(seconds=10)
#: Seconds that a beat's clock may be off without a warning.
_CLOCK_TOLERANCE = 1.0
#: Most runs in `recent`.
MOST_RECENT = 50


@dataclass(frozen=True)
class Master:
    """Instants are aware, UTC, here and below.

    Attributes:
        heir: the id of the standby to whom it is handing over, if it is.
        ticked_at: when its dispatch loop last wrote the outbox, by the server's clock.
        ticking: whether that was less than TICKING_WITHIN ago.
    """

    id: str
    host: str
    pid: int
    epoch: int
    since: datetime | None
    version: str
    schedule: str | None
    heir: str | None
    ticked_at: datetime | None
    ticking: bool


@dataclass(frozen=True)
class Member:
    """A beat. `clock_offset`: seconds by which its clock is ahead of the server's, None if it does
    not tell; `since`: when its process began."""

    id: str
    host: str
    pid: int
    state: str
    since: datetime | None
    version: str | None
    schedule: str | None
    clock_offset: float | None


@dataclass(frozen=True)
class Entry:
    """An entry of the asker's schedule, or one of which only ZooKeeper knows (`in_schedule`).

    Attributes:
        paused: since when.
        last_run_at: when its last run was claimed; before the first, when it was first seen.
        last_due: the instant that its last run was for.
        next_run_at: None where it cannot be told, and while it is paused.
        waiting: the number of its run in the outbox.
    """

    name: str
    task: str | None
    schedule: str | None
    paused: datetime | None
    last_run_at: datetime | None
    total_run_count: int
    last_due: datetime | None
    next_run_at: datetime | None
    waiting: int | None
    in_schedule: bool


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
        paused: since when everything is paused.
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
    entries: tuple[Entry, ...]
    outbox: tuple[Run, ...]
    recent: tuple[RecentRun, ...]
    masters: tuple[Term, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is a master that is ticking."""
        return self.master is not None and self.master.ticking

    def to_json(self) -> dict[str, Any]:
        """As docs/status.md says: instants are ISO 8601 texts in UTC, seconds numbers."""
        plain: dict[str, Any] = _plain(self)
        for run in plain["outbox"]:
            run["run"] = run.pop("number")
        return {"format": FORMAT, **plain}


def read(session: ZooKeeperSession, settings: Settings, scheduler: ZooKeeperScheduler) -> Snapshot:
    """Looks once.

    Args:
        session: a connected one.
        settings: those of the asker, which say where to look.
        scheduler: the asker's, for its schedule; it need not, and will not, connect.

    Raises:
        Uncertain: no answer.
        ZooKeeperError: refused.
        RootError: the root belongs to another app.
    """
    return Reader(session, settings, scheduler).read()


class Reader:
    """Looks again and again, and asks only for what has changed. For one thread at a time.

    Args:
        session, settings, scheduler: as for :func:`read`.
        on_change: called on kazoo's thread, which it must not block, whenever the next look may
            find something new. Without it no watch is set, and every look reads everything.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        settings: Settings,
        scheduler: ZooKeeperScheduler,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._session = session
        self._settings = settings
        self._scheduler = scheduler
        chroot = settings.hosts.partition("/")[2]
        self._paths = Paths((f"/{chroot}" if chroot else "") + settings.root)
        self._on_change = on_change

    def read(self) -> Snapshot:
        """Raises as :func:`read`."""
        paths = self._paths
        below = [paths.members, paths.runs]
        names = [self._session.children(path) for path in below]
        all_paths = [
            paths.root,
            paths.master,
            f"{paths.root}/masters",
            f"{paths.root}/pauses",
            *(f"{path}/{name}" for path, found in zip(below, names) for name in sorted(found)),
            paths.outbox,  # after the pages: what it says is never older than they are
        ]
        nodes = dict(zip(all_paths, self._session.read_all(all_paths)))
        now = datetime.now(timezone.utc)
        return _Look(paths, self._settings, self._scheduler, nodes, now).snapshot()


class _Look:
    """Makes sense of what was read. Pure."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        scheduler: ZooKeeperScheduler,
        nodes: Mapping[str, Node | None],
        now: datetime,
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._scheduler = scheduler
        self._nodes = nodes
        self._now = now
        self._warnings: list[str] = []

    def snapshot(self) -> Snapshot:
        app = self._app()
        digest = self._scheduler.digest()
        master = self._master()
        members = self._members()
        outbox = self._outbox()
        states = self._states()
        masters = self._masters()
        pauses = self._record(f"{self._paths.root}/pauses")
        paused = _since(pauses.get("all"))
        entries = self._entries(states, outbox, pauses.get("entries"), paused)
        recent = self._recent(states, masters)
        warnings = (
            *_about_master(master),
            *_about_clocks(members),
            *_about_schedules(digest, members),
            *_about_outbox(outbox, self._now),
            *([f"everything is paused since {_short(paused)}"] if paused else []),
            *self._warnings,
        )
        return Snapshot(
            hosts=self._settings.hosts,
            root=self._settings.root,
            app=app,
            read_at=self._now,
            master=master,
            members=tuple(members),
            schedule=digest,
            paused=paused,
            entries=tuple(entries),
            outbox=tuple(outbox),
            recent=tuple(recent),
            masters=tuple(masters),
            warnings=warnings,
        )

    # What is where ------------------------------------------------------------------------------

    def _app(self) -> str | None:
        node = self._nodes.get(self._paths.root)
        if node is None or not node.data:
            return None
        owner = RootRecord.decode(self._paths.root, node.data).app
        if self._settings.app is not None and owner != self._settings.app:
            raise RootError(
                f"{self._paths.root} belongs to the app {owner!r}, and this is "
                f"{self._settings.app!r}: give each app a root of its own (zk_beat_root)"
            )
        return owner

    def _master(self) -> Master | None:
        fields = self._record(self._paths.master)
        if not fields:
            return None
        outbox = self._nodes.get(self._paths.outbox)
        ticked_at = None if outbox is None else datetime.fromtimestamp(outbox.mtime, timezone.utc)
        return Master(
            id=str(fields.get("id")),
            host=str(fields.get("host")),
            pid=_number(fields.get("pid")),
            epoch=_number(fields.get("epoch")),
            since=_instant(fields.get("since")),
            version=str(fields.get("version")),
            schedule=fields.get("schedule"),
            heir=fields.get("heir"),
            ticked_at=ticked_at,
            ticking=ticked_at is not None and self._now - ticked_at < TICKING_WITHIN,
        )

    def _members(self) -> list[Member]:
        members = [
            Member(
                id=str(fields.get("id")),
                host=str(fields.get("host")),
                pid=_number(fields.get("pid")),
                state=str(fields.get("state")),
                since=_instant(fields.get("since")),
                version=fields.get("version"),
                schedule=fields.get("schedule"),
                clock_offset=_offset(_instant(fields.get("written")), node),
            )
            for path, node, fields in self._records_below(self._paths.members)
        ]
        return sorted(members, key=lambda member: (member.state != "master", member.id))

    def _outbox(self) -> list[Run]:
        node = self._nodes.get(self._paths.outbox)
        try:
            return [] if node is None else decode_outbox(self._paths.outbox, node.data)
        except RootError as exc:
            self._warnings.append(str(exc))
            return []

    def _states(self) -> dict[str, RunState]:
        states: dict[str, RunState] = {}
        for path, node in self._nodes_below(self._paths.runs):
            try:
                states.update(decode_page(path, node.data))
            except RootError as exc:
                self._warnings.append(f"{exc}; until then the entries on this page do not run")
        return states

    def _masters(self) -> list[Term]:
        listed = self._record(f"{self._paths.root}/masters").get("masters")
        return [
            Term(
                epoch=_number(fields.get("epoch")),
                id=str(fields.get("id")),
                host=str(fields.get("host")),
                pid=_number(fields.get("pid")),
                since=_instant(fields.get("since")),
                until=_instant(fields.get("until")),
                why=fields.get("why"),
            )
            for fields in reversed(listed if isinstance(listed, list) else [])
            if isinstance(fields, dict)
        ]

    # What follows from it -----------------------------------------------------------------------

    def _entries(
        self,
        states: Mapping[str, RunState],
        outbox: Iterable[Run],
        pauses: Any,
        all_paused: datetime | None,
    ) -> Iterator[Entry]:
        pauses = pauses if isinstance(pauses, dict) else {}
        schedule = dict(self._scheduler.schedule)
        waiting = {run.entry: run.number for run in outbox}
        for name in sorted({*schedule, *states}):
            entry, state = schedule.get(name), states.get(name)
            paused = _since(pauses.get(name))
            next_run_at = None
            if entry is not None and state is not None and not (paused or all_paused):
                next_run_at = next_run(entry, state.last_run_at)
            yield Entry(
                name=name,
                task=None if entry is None else str(entry.task),
                schedule=None if entry is None else schedule_text(entry.schedule),
                paused=paused,
                last_run_at=None if state is None else state.last_run_at,
                total_run_count=0 if state is None else state.total_run_count,
                last_due=None if state is None else state.due,
                next_run_at=next_run_at,
                waiting=waiting.get(name),
                in_schedule=entry is not None,
            )

    def _recent(
        self, states: Mapping[str, RunState], masters: Iterable[Term]
    ) -> Iterator[RecentRun]:
        ids = {master.epoch: master.id for master in masters}
        past = (
            (past.at, name, past)
            for name, state in states.items()
            for past in getattr(state, "history", ())
        )
        for _, name, run in heapq.nlargest(MOST_RECENT, past, key=lambda each: each[0]):
            task_id = None
            if run.number is not None:
                task_id = self._scheduler.task_id(name, run.number)
            yield RecentRun(
                entry=name,
                run=run.number,
                due=run.due,
                at=run.at,
                epoch=run.epoch,
                by=ids.get(run.epoch),
                task_id=task_id,
                note=run.note,
            )

    # Reading ------------------------------------------------------------------------------------

    def _nodes_below(self, parent: str) -> Iterator[tuple[str, Node]]:
        for path, node in self._nodes.items():
            if node is not None and path.startswith(f"{parent}/"):
                yield path, node

    def _records_below(self, parent: str) -> Iterator[tuple[str, Node, dict[str, Any]]]:
        for path, node in self._nodes_below(parent):
            if fields := self._record(path):
                yield path, node, fields

    def _record(self, path: str) -> dict[str, Any]:
        """The fields of a record; none, and perhaps a warning, where there is no such record."""
        node = self._nodes.get(path)
        if node is None or not node.data:
            return {}
        try:
            return decode(path, node.data)
        except RootError as exc:
            self._warnings.append(str(exc))
            return {}


def _about_master(master: Master | None) -> Iterator[str]:
    if master is None:
        yield "there is no master: nothing is dispatched"
    elif not master.ticking:
        since = "yet" if master.ticked_at is None else f"since {_short(master.ticked_at)}"
        yield f"{master.id} is master, but has not ticked {since}: it hangs, or is cut off"


def _about_clocks(members: Iterable[Member]) -> Iterator[str]:
    for member in members:
        offset = member.clock_offset
        if offset is not None and abs(offset) > _CLOCK_TOLERANCE:
            side = "ahead of" if offset > 0 else "behind"
            yield f"the clock of {member.id} is {abs(offset):.1f} s {side} ZooKeeper's"


def _about_schedules(digest: str, members: Iterable[Member]) -> Iterator[str]:
    other = [member.id for member in members if member.schedule not in (digest, None)]
    if other:
        yield f"another schedule than the one here: {', '.join(other)}; is a deploy under way?"


def _about_outbox(outbox: Iterable[Run], now: datetime) -> Iterator[str]:
    waiting = [run.claimed for run in outbox if now - run.claimed > _WAITS_QUIETLY]
    if waiting:
        runs = "1 run waits" if len(waiting) == 1 else f"{len(waiting)} runs wait"
        yield f"{runs} for the broker since {_short(min(waiting))}"


def _since(pause: Any) -> datetime | None:
    """Since when, by the record of a pause; None once it is over."""
    if not isinstance(pause, dict) or pause.get("until") is not None:
        return None
    return _instant(pause.get("since"))


def _offset(written: datetime | None, node: Node) -> float | None:
    return None if written is None else round(written.timestamp() - node.mtime, 3)


def _instant(value: Any) -> datetime | None:
    try:
        return from_text(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _short(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_text(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if fields := getattr(value, "__dataclass_fields__", None):
        return {name: _plain(getattr(value, name)) for name in fields}
    return value
