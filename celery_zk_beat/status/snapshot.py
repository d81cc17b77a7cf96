"""The snapshot: what one look at ZooKeeper found. docs/status.md describes its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..records import to_text

#: The format of the JSON. It grows when a field changes its meaning or is removed.
FORMAT = 1


@dataclass(frozen=True)
class Master:
    """The master. Instants are aware and in UTC, in all classes of this module.

    Attributes:
        successor: the id of the standby to which it hands over; None if it does not.
        ticked_at: when its dispatch loop last wrote the outbox, by the server's clock.
        ticking: True if that, or its election, was less than TICKING_WITHIN ago.
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
    """A beat.

    Attributes:
        since: when its process began.
        clock_offset: how many seconds its clock is ahead of the server's; None if unknown.
        useless: why it could do nothing when it was master; None once it has shown that it can.
        guard: "on" if it has a guard, else why it has none; None if none is wanted.
    """

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
    guard: str | None = None


#: The state of a tracked run that has not ended.
OPEN = "open"


@dataclass(frozen=True)
class RunOutcome:
    """What became of a tracked run.

    Attributes:
        state: OPEN, or how it ended: one of :data:`.runs.REPORTED` or :data:`.runs.CONCLUDED`.
        at: when its end was reported or concluded; None while it is open.
        runtime: how many seconds the task ran.
        error: the type of the exception.
        late: "start" or "finish", if it is open, and its policy asked for that by now.
        running_since: when `worker` began to execute it, if it is open and that is known.
    """

    state: str
    at: datetime | None
    runtime: float | None = None
    worker: str | None = None
    error: str | None = None
    late: str | None = None
    running_since: datetime | None = None


@dataclass(frozen=True)
class Tracked:
    """What is known of the tracked runs of an entry: of the open ones, and of those that are
    remembered.

    Attributes:
        open: how many have not ended.
        open_since: when the oldest of these was dispatched.
        late: the worst :attr:`RunOutcome.late` of these.
        last: what became of the last one that has ended.
        failed_in_a_row: how many have failed since the last success.
        outcomes: how many remembered runs ended how.
        runtime_median, runtime_longest: of the remembered runs, in seconds.
    """

    open: int
    open_since: datetime | None
    late: str | None
    last: RunOutcome | None
    failed_in_a_row: int
    outcomes: Mapping[str, int] = field(default_factory=dict)
    runtime_median: float | None = None
    runtime_longest: float | None = None


@dataclass(frozen=True)
class Entry:
    """An entry of the asker's schedule; or, if not `in_schedule`, one that only ZooKeeper knows.

    Attributes:
        paused, paused_by: since when, and by whom.
        last_run_at: when its last run was dispatched; None before the first.
        last_due: the instant that its last run was for.
        next_run_at: None if it is unknown or the entry is paused.
        waiting: the number of its run in the outbox.
        disabled: True if it is disabled in another scheduler's store or as a live entry.
        error: why another scheduler cannot use what its store has; or why a live entry is not in
            force.
        source: where it comes from: CODE, LIVE or STORE; None if it is not in the schedule.
        version, changed_at, changed_by: only of a live entry: its version, when it was changed
            last, and by whom.
        tracked: what became of its runs; None if none of them is tracked.
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
    disabled: bool = False
    error: str | None = None
    source: str | None = None
    version: int | None = None
    changed_at: datetime | None = None
    changed_by: str | None = None
    tracked: Tracked | None = None


#: Where an entry comes from: `beat_schedule`, ZooKeeper, or the store of another scheduler.
CODE, LIVE, STORE = "code", "live", "store"

#: What a run waits for if nothing else is known.
FOR_BROKER = "the broker"
FOR_RESUME, FOR_SCHEDULE = "the end of a pause", "a schedule that names it"


@dataclass(frozen=True)
class WaitingRun:
    """A run of the outbox; as :class:`.runs.Run`. `error`: why it could not be published at the
    last attempt, if the message itself was the cause."""

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
class RunningBackfill:
    """A backfill that is under way; as :class:`..backfills.Backfill`. `waits_for`: what it waits
    for; None if it does not wait."""

    entry: str
    since: datetime
    until: datetime
    rate: float
    by: str
    at: datetime
    after: datetime | None
    done: int
    total: int | None
    waits_for: str | None


@dataclass(frozen=True)
class RecentRun:
    """A run that was dispatched, or a due instant that was skipped: then `run` is None and `note`
    says why.

    Attributes:
        at: when it was dispatched, or when the skip was recorded.
        by: the id of the master of `epoch`, if it is still known.
        outcome: what became of it; None if it is not tracked.
    """

    entry: str
    run: int | None
    due: datetime
    at: datetime
    epoch: int
    by: str | None
    task_id: str | None
    note: str | None
    outcome: RunOutcome | None = None


@dataclass(frozen=True)
class Change:
    """A change of a live entry: the `version` that it made, when, by whom, and `what` was changed:
    names of fields, or "added", "enabled", "disabled"."""

    entry: str
    version: int
    at: datetime
    by: str
    what: tuple[str, ...]


@dataclass(frozen=True)
class RecentTerm:
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
    """All that one look found. Immutable.

    Attributes:
        app: the app that the root belongs to; None if the root does not say.
        schedule: a digest of the asker's schedule.
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
    masters: tuple[RecentTerm, ...]
    warnings: tuple[str, ...]
    backfills: tuple[RunningBackfill, ...] = ()

    @property
    def ok(self) -> bool:
        """True if there is a master and it ticks."""
        return self.master is not None and self.master.ticking

    def to_json(self) -> dict[str, Any]:
        """Returns what docs/status.md describes. Instants are ISO 8601 texts in UTC, seconds are
        numbers."""
        return {"format": FORMAT, **plain(self)}


def plain(value: Any) -> Any:
    """Turns any of the above into what :mod:`json` takes."""
    if isinstance(value, datetime):
        return to_text(value)
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if fields := getattr(value, "__dataclass_fields__", None):
        return {name: plain(getattr(value, name)) for name in fields}
    return value
