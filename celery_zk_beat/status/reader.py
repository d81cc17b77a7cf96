"""Reads the status of an election: who is master, what runs next, what ran last.

It reads ZooKeeper only, not the broker or a beat. It writes nothing and takes part in no election.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from .. import clock
from ..backfills import Backfills
from ..control import Pause, Pauses
from ..due import is_ahead, is_steady, leaves_of, next_run_of, schedule_text
from ..history import Pasts, merged
from ..live.merging import Live
from ..metrics import select
from ..paths import Paths
from ..runs import PastRun, Run, RunState, from_milliseconds, milliseconds
from ..settings import WORKER, Settings
from ..zookeeper.operations import Node
from ..zookeeper.session import ZooKeeperSession
from .executing import Executing, Execution
from .lenient import LenientRecords, PageContent, VolumeContent, latest, recent
from .live import AskersSchedule, LiveEntries, begun, text_of
from .mirror import Mirror
from .others import OtherEntries, OtherEntry
from .snapshot import (
    CODE,
    FOR_BROKER,
    FOR_RESUME,
    FOR_SCHEDULE,
    LIVE,
    STORE,
    Change,
    Entry,
    Master,
    RecentRun,
    RecentTerm,
    RunningBackfill,
    Snapshot,
    WaitingRun,
)
from .tracked import OpenRuns, outcome_of, tracked_of
from .warnings import WAITS_QUIETLY, warnings_of

#: How long after it is due a run is claimed, and how often the outbox is written, at the latest, if
#: nothing prevents the master from doing it.
_CLAIMED_WITHIN, _WRITES_WITHIN = timedelta(seconds=5), timedelta(seconds=45)


C = TypeVar("C")


class Schedule(AskersSchedule, Protocol):
    """The part of the reader's own scheduler that it needs."""

    def digest(self) -> str:
        """Returns a digest that differs between schedules."""

    def task_id(self, entry: str, number: int, due: datetime) -> str:
        """Returns the task id with which a run is or was published."""


class Basis(NamedTuple):
    """What one needs to compute the next runs of entries, as of one look; by name.

    Attributes:
        entries: see :meth:`Reader.named`.
        settings: see :attr:`Reader.settings`.
    """

    entries: Mapping[str, Any]
    states: Mapping[str, RunState]
    settings: Settings


class Contents(Generic[C]):
    """What the znodes below one parent contain. Each is decoded again when it has changed."""

    def __init__(self, mirror: Mirror, parent: str, decode: Callable[[str, bytes], C]) -> None:
        self._mirror, self._parent, self._decode = mirror, parent, decode
        self._known: dict[str, tuple[Node, C]] = {}

    def read(self) -> list[C]:
        before, self._known = self._known, {}
        for path, node in self._mirror.below(self._parent):
            known = before.get(path)
            if known is None or known[0] is not node:
                known = node, self._decode(path, node.data)
            self._known[path] = known
        return [*self]

    def __iter__(self) -> Iterator[C]:
        return (content for _, content in self._known.values())


class Reader:
    """Reads once or many times; after the first time it reads only what has changed. For one thread
    at a time.

    Args:
        session: a connected session.
        settings: the reader's own settings; they say where to read.
        schedule: the reader's own schedule.
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
        self._settings = settings
        self._schedule = schedule
        self._paths = Paths.of(settings.hosts, settings.root)
        self._remarks = tuple(remarks)
        self._digest = schedule.digest()
        self._mirror = Mirror(session, self._paths, on_change)
        scheduler, self._others = settings.scheduler, None
        if scheduler is not None:
            self._others = OtherEntries(session, self._paths, scheduler, schedule.app, on_change)
        self._live: LiveEntries | None = None
        if settings.entries:
            self._live = LiveEntries(session, self._paths, settings, schedule, on_change)
        self._executing: Executing | None = None
        if settings.outcomes == WORKER:
            self._executing = Executing(session, self._paths, on_change)
        #: Who executes open runs, by their task ids.
        self._executions: Mapping[str, Execution] = {}
        #: The contents of the pages, and of the volumes of histories.
        self._pages = Contents(self._mirror, self._paths.runs, PageContent.of)
        self._volumes = Contents(self._mirror, self._paths.history, VolumeContent.of)
        #: Entries as they were last shown, and from what they were made.
        self._shown: dict[str, tuple[tuple[Any, ...], Entry]] = {}

    def read(self) -> Snapshot:
        """Reads the status.

        Raises:
            Uncertain: no answer.
            ZooKeeperError: refused.
            RootError: the root belongs to another app.
        """
        self._mirror.refresh()
        if self._others is not None:
            self._others.refresh()
        if self._live is not None:
            self._live.refresh()
        return self._snapshot(clock.now())

    def states(self) -> dict[str, RunState]:
        """Returns the run states, by entry, as of the last :meth:`read`."""
        return {name: state for page in self._pages for name, state in page.states.items()}

    def named(self) -> Mapping[str, Any]:
        """Returns the entries by name: those of the asker's schedule and the live ones that are in
        force; with another scheduler, those that the master has written."""
        if self._live is not None:
            return self._live.merged()
        return self._schedule.entries if self._others is None else self._others.entries

    @property
    def settings(self) -> Settings:
        """The asker's settings, with the policies of live entries."""
        if self._live is None:
            return self._settings
        return replace(self._settings, policies=self._live.policies)

    def basis(self) -> Basis:
        """Returns what another thread needs to compute the next runs."""
        return Basis(self.named(), self.states(), self.settings)

    def changes(self, entry: str | None) -> tuple[Change, ...]:
        """Returns the last changes of a live entry, or of all, newest first, as of the last
        :meth:`read`."""
        return () if self._live is None else self._live.changes(entry)

    def history(self, entry: str | None, limit: int) -> list[RecentRun]:
        """Returns the last runs of one entry, or of all, newest first, as of the last
        :meth:`read`."""
        states = {name: state.past for page in self._pages for name, state in page.states.items()}
        pasts = self._pasts()
        names = {*states, *pasts} if entry is None else {entry}
        opened = self._open_runs()
        past = (
            (run, name)
            for name in names
            for run in _with_open(
                merged(pasts.get(name, ()), states.get(name, ())), opened.get(name, {})
            )
        )
        masters = LenientRecords(self._mirror, self._paths).masters()
        return self._recent(latest(limit, past), masters)

    def _snapshot(self, now: datetime) -> Snapshot:
        records = LenientRecords(self._mirror, self._paths)
        app = records.app(self._settings.app)
        master = records.master(now)
        members = records.members()
        runs = records.outbox()
        pages, volumes = self._pages.read(), self._volumes.read()
        if self._executing is not None:
            self._executions = self._executing.read(
                self._schedule.task_id(name, past.number, past.due)
                for name, opened in self._open_runs().items()
                for past in opened.values()
                if past.number is not None
            )
        damages = (*(page.damage for page in pages), *(volume.damage for volume in volumes))
        records.warnings += filter(None, damages)
        masters = records.masters()
        pauses = records.pauses()
        everything = pauses.everything
        entries = self._entries(pages, runs, pauses, now)
        outbox = tuple(_waiting(runs, pauses, entries))
        quota = self._mirror.quota
        if master is not None and quota is not None and quota.is_tight:
            stuck = _is_stuck(master, entries, outbox, now)
            master = replace(master, ticking=master.ticking and not stuck)
        found = Snapshot(
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
            outbox=outbox,
            recent=tuple(self._recent(recent(pages, volumes), masters)),
            masters=tuple(masters),
            warnings=(),
            backfills=tuple(_backfills(records.backfills(), pauses, entries)),
        )
        held_back: Mapping[str, datetime] = {}
        if self._others is not None:
            records.warnings += self._others.warnings
            held_back = self._others.ahead(now)
        if self._live is not None:
            records.warnings += self._live.warnings()
        patterns = self._settings.metrics_entries
        if patterns is not None and (named := self.named()):
            setting = f"{self._settings.prefix}metrics_entries"
            records.warnings += select(patterns, list(named), setting).faults
        seen = warnings_of(found, quota, self._remarks, self._ahead(pages, now), held_back)
        return replace(found, warnings=(*seen, *records.warnings))

    def _pasts(self) -> Pasts:
        return {name: past for volume in self._volumes for name, past in volume.pasts.items()}

    def _entries(
        self, pages: Iterable[PageContent], outbox: Iterable[Run], pauses: Pauses, now: datetime
    ) -> list[Entry]:
        schedule = dict(self.named())
        waiting = {run.entry: run.number for run in outbox}
        states = {name: state for page in pages for name, state in page.states.items()}
        pasts = self._pasts()
        before, self._shown = self._shown, {}
        found = () if self._live is None else self._live.found
        for name in sorted({*schedule, *states, *waiting, *found}):
            entry = schedule.get(name)
            live = None if self._live is None else self._live.of(name)
            made_of = (
                states.get(name),
                pasts.get(name, ()),
                waiting.get(name),
                pauses.of(name),
                pauses.since(name) is not None,
                None if entry is None or is_steady(entry.schedule) else now,
                self._source(name, states.get(name), entry, live),
                live,
                entry,  # after `live`: Celery's cannot be compared with None
            )
            known = before.get(name)
            if known is None or known[0] != made_of:
                shown = _entry(name, *made_of)
                known = made_of, self._with_policy(shown, states.get(name), live, entry)
            self._shown[name] = known
        return [entry for _, entry in self._shown.values()]

    def _source(
        self, name: str, state: RunState | None, entry: Any, live: Live | None
    ) -> str | None:
        if self._others is not None:
            return STORE
        if live is not None:
            return LIVE
        if entry is not None:
            return CODE
        is_held = self._live is not None and self._live.may_hold(name)
        return LIVE if is_held and state is not None and state.key is not None else None

    def _with_policy(
        self, shown: Entry, state: RunState | None, live: Live | None, entry: Any
    ) -> Entry:
        state = state if live is None else begun(state, live)
        policies = self._settings.policies if self._live is None else self._live.policies
        policy = policies.of(shown.name)
        if policy is None or state is None or shown.next_run_at is None:
            return shown
        seed = f"{self._paths.root}/{shown.name}"
        at = leaves_of(entry, shown.next_run_at, policy, state, seed)
        return replace(shown, next_run_at=at)

    def _open_runs(self) -> OpenRuns:
        return {name: runs for page in self._pages for name, runs in page.opened.items()}

    def _is_named(self, name: str, state: RunState) -> bool:
        if self._others is not None:
            return state.unnamed_since is None
        return name in self._schedule.entries or (
            self._live is not None and self._live.of(name) is not None
        )

    def _ahead(self, pages: Iterable[PageContent], now: datetime) -> dict[str, datetime]:
        """Returns the entries here whose last run is in the future, and when that is."""
        return {
            name: state.last_run_at
            for page in pages
            for name, state in page.states.items()
            if is_ahead(state.last_run_at, now) and self._is_named(name, state)
        }

    def _recent(
        self, past: Iterable[tuple[PastRun, str]], masters: Iterable[RecentTerm]
    ) -> list[RecentRun]:
        ids = {master.epoch: master.id for master in masters}
        opened = self._open_runs()
        return [self._recent_run(run, name, ids, opened) for run, name in past]

    def _recent_run(
        self, run: PastRun, name: str, ids: Mapping[int, str], opened: OpenRuns
    ) -> RecentRun:
        task_id = None
        if run.number is not None:
            task_id = self._schedule.task_id(name, run.number, run.due)
        execution = None if task_id is None else self._executions.get(task_id)
        return RecentRun(
            entry=name,
            run=run.number,
            due=run.due,
            at=run.at,
            epoch=run.epoch,
            by=ids.get(run.epoch),
            task_id=task_id,
            note=run.note,
            outcome=outcome_of(run, opened.get(name, {}).get(run.run), execution),
        )


def _with_open(
    past: tuple[PastRun, ...], opened: Mapping[tuple[int | None, int], PastRun]
) -> Iterator[PastRun]:
    """Adds the open runs that are not remembered any more."""
    yield from past
    if opened:
        known = {each.run for each in past}
        yield from (each for run, each in opened.items() if run not in known)


def _entry(
    name: str,
    state: RunState | None,
    history: tuple[PastRun, ...],
    waiting: int | None,
    pause: Pause,
    held: bool,
    now: datetime | None,
    source: str | None,
    live: Live | None,
    entry: Any,
) -> Entry:
    last_run_at, last_due = _last_ran(state, history)
    in_schedule, gated = source is not None, source == STORE
    told = entry.told if isinstance(entry, OtherEntry) else None
    if gated and state is not None and state.unnamed_since is not None:
        # The state is written at once, and what the master shows of the entry some seconds later.
        # The store may still have the entry.
        in_schedule = told is not None and (told.is_disabled or told.error is not None)
        entry, told = (entry, told) if in_schedule else (None, None)
    clock_of = state if live is None else begun(state, live)
    shown = Entry(
        name=name,
        task=None if entry is None or entry.task is None else str(entry.task),
        schedule=_schedule_text(entry),
        paused=pause.since,
        paused_by=None if pause.since is None else pause.by,
        last_run_at=last_run_at,
        total_run_count=0 if state is None else state.total_run_count,
        last_due=last_due,
        next_run_at=None if entry is None or held or not clock_of else _next_run(entry, clock_of),
        waiting=waiting,
        in_schedule=in_schedule,
        disabled=told is not None and told.is_disabled,
        error=None if told is None else told.error,
        source=source if in_schedule else None,
        tracked=tracked_of(state, history),
    )
    return shown if live is None else _with_definition(shown, live)


def _with_definition(shown: Entry, live: Live) -> Entry:
    found = live.definition
    if found is None:
        return replace(shown, error=live.why)
    last = found.changes[-1] if found.changes else None
    return replace(
        shown,
        task=found.content.task,
        schedule=shown.schedule or text_of(found.content.schedule),
        disabled=live.is_disabled,
        error=live.why,
        version=found.version,
        changed_at=None if last is None else from_milliseconds(last.at),
        changed_by=None if last is None else last.by,
    )


def _next_run(entry: Any, state: RunState) -> datetime | None:
    if isinstance(entry, OtherEntry):
        return entry.next_run_at(state)
    return next_run_of(entry, state)


def _schedule_text(entry: Any) -> str | None:
    if isinstance(entry, OtherEntry):
        return entry.text
    return None if entry is None or entry.schedule is None else schedule_text(entry.schedule)


def _last_ran(
    state: RunState | None, history: tuple[PastRun, ...]
) -> tuple[datetime | None, datetime | None]:
    """Returns when an entry ran last, and for which instant. Does not use `last_run_at` of the
    state, from which the entry's clock runs: a skipped run sets it, too, and a run that an operator
    asks for does not."""
    if state is None:
        return None, None
    for past in (*reversed(state.past), *reversed(history)):
        if past.number is not None:
            # To the microsecond, if it is an instant of its own schedule.
            is_own = state.due is not None and milliseconds(state.due) == past.due_ms
            return past.at, state.due if is_own else past.due
    if state.due is None or not state.total_run_count:  # all of them were skipped
        return None, None
    return state.last_run_at, state.due


def _is_stuck(
    master: Master, entries: Iterable[Entry], outbox: Iterable[WaitingRun], now: datetime
) -> bool:
    """True if something seems to prevent the master from writing: due runs are not claimed, or
    published runs are not confirmed."""
    quiet = timedelta(0) if master.ticked_at is None else now - master.ticked_at
    waits = quiet > WAITS_QUIETLY and any(
        now - run.claimed > WAITS_QUIETLY for run in outbox if run.waits_for == FOR_BROKER
    )
    if quiet > _WRITES_WITHIN or waits:
        return True
    return any(
        entry.waiting is None
        and entry.next_run_at is not None
        and now - entry.next_run_at > _CLAIMED_WITHIN
        for entry in entries
    )


def _backfills(
    backfills: Backfills, pauses: Pauses, entries: Iterable[Entry]
) -> Iterator[RunningBackfill]:
    known = {entry.name: entry for entry in entries}
    for name, backfill in sorted(backfills.entries.items()):
        entry, waits_for = known.get(name), None
        if entry is None or not entry.in_schedule:
            waits_for = FOR_SCHEDULE
        elif pauses.since(name) is not None:
            waits_for = FOR_RESUME
        elif entry.waiting is not None:
            waits_for = f"run {entry.waiting}"
        fields = {field: value for field, value in vars(backfill).items() if field != "key"}
        yield RunningBackfill(entry=name, **fields, waits_for=waits_for)


def _waiting(runs: Iterable[Run], pauses: Pauses, entries: Iterable[Entry]) -> Iterator[WaitingRun]:
    named = {entry.name for entry in entries if entry.in_schedule}
    for run in runs:
        waits_for = FOR_BROKER
        if run.entry not in named:
            waits_for = FOR_SCHEDULE
        elif not run.is_wanted_now and pauses.since(run.entry) is not None:
            waits_for = FOR_RESUME
        yield WaitingRun(
            run.entry,
            run.number,
            run.due,
            run.claimed_at,
            run.epoch,
            run.extra,
            run.key,
            waits_for,
            run.error,
        )
