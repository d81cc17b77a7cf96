"""Formats a snapshot as plain text: the output of `zk-beat status`, `history` and `watch`."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable, Generic, TypeVar

from ..log import safe
from ..runs import BACKFILLED, FAILURES
from .snapshot import (
    LIVE,
    OPEN,
    Change,
    Entry,
    Member,
    RecentRun,
    RecentTerm,
    RunningBackfill,
    RunOutcome,
    Snapshot,
    Tracked,
)

#: Gives a text a colour, by name; None for no colour.
Style = Callable[[str, str], str]
Row = TypeVar("Row")

_GAP = "  "
#: Most columns that cells are padded to: one name of a megabyte must not pad all other lines.
_WIDEST = 300
#: Seconds that a run may be late without a colour.
_LATE = 5.0


def iso(instant: datetime | None) -> str:
    """To the second, in UTC."""
    return "-" if instant is None else f"{instant.isoformat(timespec='seconds')[:19]}Z"


def duration(seconds: float) -> str:
    """``23 ms``, ``1.2 s``, ``45 s``, ``3 min``, ``2 h``, ``12 d``: rounded down."""
    if seconds < 1:
        return f"{max(0, math.floor(seconds * 1000))} ms"
    if seconds < 10:
        return f"{math.floor(seconds * 10) / 10:g} s"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < length * most:
            return f"{math.floor(seconds / length)} {unit}"
    return f"{math.floor(seconds / 86400)} d"


def age(instant: datetime | None, now: datetime) -> str:
    """``12 s ago``, ``in 3 min``."""
    if instant is None:
        return "-"
    seconds = (now - instant).total_seconds()
    whole = duration(math.floor(abs(seconds)) or 0.0)
    if abs(seconds) < 1:
        return "now"
    return f"{whole} ago" if seconds > 0 else f"in {whole}"


def status(
    snapshot: Snapshot, now: datetime, style: Style, width: float, height: float = math.inf
) -> list[str]:
    """All of it.

    Args:
        width: columns of the terminal; what does not fit is left out where it can be.
        height: its lines; of the entries there are those that run next.
    """
    lines = [*_head(snapshot, now, style), ""]
    if snapshot.members:
        lines += [*_members(snapshot, now, style, width), ""]
    entries = sorted(snapshot.entries, key=_by_next_run)
    room = height - len(lines) - 1  # for the titles
    shown = entries if len(entries) <= room else entries[: max(0, int(room) - 1)]
    lines += _entries(shown, now, style, width)
    if len(shown) < len(entries):
        lines.append(f"... and {len(entries) - len(shown)} more")
    return lines


def history(
    runs: Iterable[RecentRun],
    now: datetime,
    style: Style,
    width: float,
    with_entry: bool,
    changes: Sequence[Change] = (),
) -> list[str]:
    """A table of what ran, newest first, with the changes of entries between the runs."""
    rows: list[RecentRun | Change] = [*runs]
    if changes:
        rows = sorted([*rows, *changes], key=lambda row: row.at, reverse=True)
    columns: list[Column[RecentRun | Change]] = [
        Column("DUE", lambda row: iso(row.at if isinstance(row, Change) else row.due)),
        Column("DISPATCHED", _dispatched, drop=1),
        Column("LATE", _lateness, right=True),
        Column("RUN", lambda row: str(_of_run(row, "run")), right=True),
        Column("EPOCH", lambda row: str(_of_run(row, "epoch")), right=True, drop=2),
        Column("BY", lambda row: row.by or "?"),
        Column("OUTCOME", lambda row: _outcome(row, now), needed=False),
        Column("RUNTIME", _runtime, right=True, drop=5, needed=False),
        Column("WORKER", _worker, drop=4, needed=False),
        Column("TASK ID", lambda row: str(_of_run(row, "task_id")), drop=3),
        *([Column[Any]("ENTRY", lambda row: row.entry)] if with_entry else []),
        Column("NOTE", _note, needed=False),
    ]
    shown = [(row, _colour(row)) for row in rows]
    return table(columns, shown, style, width)


def _dispatched(row: RecentRun | Change) -> str:
    if isinstance(row, Change):
        return "changed"
    return "skipped" if row.run is None else iso(row.at)


def _of_run(row: RecentRun | Change, field: str) -> object:
    found = getattr(row, field, None)
    return "-" if found is None else found


def _note(row: RecentRun | Change) -> str:
    if isinstance(row, Change):
        return f"version {row.version}: {', '.join(row.what)}"
    return row.note or ""


def _outcome(row: RecentRun | Change, now: datetime) -> str:
    if isinstance(row, Change) or row.outcome is None:
        return ""
    outcome = row.outcome
    if outcome.state != OPEN:
        return outcome.state if outcome.error is None else f"{outcome.state}: {outcome.error}"
    if outcome.running_since is not None:
        text = f"running for {_span(outcome.running_since, now)}"
    else:
        text = f"open for {_span(row.at, now)}"
    return f"{text}, {_late_words(outcome.late)}" if outcome.late else text


def _span(since: datetime, now: datetime) -> str:
    return duration(max(0.0, (now - since).total_seconds()))


def _late_words(late: str) -> str:
    return f"late to {late}"


def _runtime(row: RecentRun | Change) -> str:
    runtime = None if isinstance(row, Change) or row.outcome is None else row.outcome.runtime
    return "" if runtime is None else duration(runtime)


def _worker(row: RecentRun | Change) -> str:
    return "" if isinstance(row, Change) or row.outcome is None else row.outcome.worker or ""


def _is_bad(outcome: RunOutcome | None) -> bool:
    return outcome is not None and outcome.state in FAILURES


def _colour(row: RecentRun | Change) -> str:
    if isinstance(row, Change):
        return "cyan"
    if _is_bad(row.outcome):
        return "red"
    if row.outcome is not None and row.outcome.late:
        return "yellow"
    return "yellow" if row.note or _late(row) > _LATE else ""


def _lateness(row: RecentRun | Change) -> str:
    if isinstance(row, Change) or row.run is None or row.note == BACKFILLED:
        return "-"
    return duration(_late(row))


def _late(run: RecentRun) -> float:
    return (run.at - run.due).total_seconds()


def masters(terms: Iterable[RecentTerm], now: datetime, style: Style, width: float) -> list[str]:
    """A table of the terms, newest first."""

    def length(term: RecentTerm) -> str:
        end = term.until or now
        return "-" if term.since is None else duration((end - term.since).total_seconds())

    columns: list[Column[RecentTerm]] = [
        Column("EPOCH", lambda term: str(term.epoch), right=True),
        Column("SINCE", lambda term: iso(term.since)),
        Column("UNTIL", lambda term: iso(term.until), drop=1),
        Column("FOR", length, right=True),
        Column("MASTER", lambda term: term.id),
        Column("ENDED", lambda term: "-" if term.until is None else term.why or "?"),
    ]
    shown = [(term, "green" if term.until is None else "") for term in terms]
    return table(columns, shown, style, width)


# The parts of a status ---------------------------------------------------------------------------


def _head(snapshot: Snapshot, now: datetime, style: Style) -> Iterator[str]:
    yield f"root      {safe(snapshot.root)} at {safe(snapshot.hosts)}"
    master = snapshot.master
    if master is None:
        beats = f", of {len(snapshot.members)} beats" if snapshot.members else ", and no beat"
        yield f"master    {style('none', 'red')}{beats}"
    else:
        yield (
            f"master    {style(safe(master.id), 'green' if master.ticking else 'red')}, epoch "
            f"{master.epoch}, since {iso(master.since)} ({age(master.since, now)})"
        )
        handing = "" if master.successor is None else f"; handing over to {safe(master.successor)}"
        yield f"ticked    {iso(master.ticked_at)} ({age(master.ticked_at, now)}){handing}"
    yield f"schedule  {len(snapshot.entries)} entries, digest {snapshot.schedule}"
    waiting = Counter(run.waits_for for run in snapshot.outbox)
    counts = [f"{count} waiting for {what}" for what, count in waiting.items()]
    yield f"outbox    {', '.join(counts) or 'empty'}"
    yield from map(_backfill, snapshot.backfills)
    for warning in snapshot.warnings:
        yield f"{style('warning', 'yellow')}   {safe(warning)}"


def _backfill(backfill: RunningBackfill) -> str:
    of = "" if backfill.total is None else f" of {backfill.total}"
    how = f"{backfill.rate:g} a second"
    if backfill.waits_for is not None:
        how = f"waiting for {backfill.waits_for}"
    at = "none yet" if backfill.after is None else f"the last for {iso(backfill.after)}"
    return safe(
        f"backfill  {backfill.entry}: {backfill.done}{of} runs, {at}, from {iso(backfill.since)} "
        f"to {iso(backfill.until)}, {how}, by {backfill.by}"
    )


def _members(snapshot: Snapshot, now: datetime, style: Style, width: float) -> list[str]:
    def schedule(member: Member) -> str:
        same = member.schedule == snapshot.schedule
        return "same" if same else f"{member.schedule or '?'} differs"

    def colour(member: Member) -> str:
        if member.state == "master":
            return "green"
        return "" if member.schedule == snapshot.schedule else "yellow"

    columns: list[Column[Member]] = [
        Column("STATE", lambda member: member.state),
        Column("STARTED AT", lambda member: iso(member.since), drop=1),
        Column("STARTED", lambda member: age(member.since, now), drop=3),
        Column("CLOCK", _clock, right=True),
        Column("GUARD", _guard, drop=6),
        Column("VERSION", lambda member: member.version or "-", drop=4),
        Column("SCHEDULE", schedule),
        Column("HOST", lambda member: member.host, drop=5),
        Column("PID", lambda member: str(member.pid), right=True, drop=2),
        Column("MEMBER", lambda member: member.id),
    ]
    return table(columns, [(each, colour(each)) for each in snapshot.members], style, width)


def _guard(member: Member) -> str:
    return "-" if member.guard is None else "on" if member.guard == "on" else "none"


def _clock(member: Member) -> str:
    offset = member.clock_offset
    return "-" if offset is None else f"{round(offset, 2) or 0.0:+} s"


def _entries(entries: Iterable[Entry], now: datetime, style: Style, width: float) -> list[str]:
    columns: list[Column[Entry]] = [
        Column("NEXT RUN AT", lambda entry: iso(entry.next_run_at), drop=2),
        Column("NEXT RUN", lambda entry: age(entry.next_run_at, now)),
        Column("LAST RUN AT", lambda entry: iso(entry.last_run_at), drop=1),
        Column("LAST RUN", lambda entry: age(entry.last_run_at, now)),
        Column("RUNS", lambda entry: str(entry.total_run_count), right=True),
        Column("SCHEDULE", lambda entry: entry.schedule or "-"),
        Column("STATE", lambda entry: ", ".join(_notes(entry, now)), needed=False),
        Column("LAST OUTCOME", lambda entry: _last(entry.tracked, now), needed=False),
        Column("OPEN", lambda entry: _open(entry.tracked, now), needed=False),
        Column("SUCCESS", lambda entry: _rate(entry.tracked), drop=6, needed=False),
        Column("RUNTIME", lambda entry: _runtimes(entry.tracked), drop=5, needed=False),
        Column("CHANGED", lambda entry: _changed(entry, now), drop=3, needed=False),
        Column("FROM", _source, drop=4, needed=False),
        Column("ENTRY", lambda entry: entry.name),
    ]
    shown = [(entry, _colour_of(entry, now)) for entry in entries]
    return table(columns, shown, style, width)


def _colour_of(entry: Entry, now: datetime) -> str:
    tracked = entry.tracked
    if tracked is not None and _is_bad(tracked.last):
        return "red"
    is_late = tracked is not None and tracked.late is not None
    return "yellow" if is_late or _notes(entry, now) else ""


def _last(tracked: Tracked | None, now: datetime) -> str:
    if tracked is None or tracked.last is None:
        return ""
    last = tracked.last
    what = last.state if last.error is None else f"{last.state}: {last.error}"
    return f"{what}, {age(last.at, now)}"


def _open(tracked: Tracked | None, now: datetime) -> str:
    if tracked is None or tracked.open_since is None:
        return ""
    text = f"{tracked.open}, for {_span(tracked.open_since, now)}"
    return f"{text}, {_late_words(tracked.late)}" if tracked.late else text


def _rate(tracked: Tracked | None) -> str:
    if tracked is None or not tracked.outcomes:
        return ""
    return f"{tracked.outcomes.get('success', 0)} of {sum(tracked.outcomes.values())}"


def _runtimes(tracked: Tracked | None) -> str:
    if tracked is None or tracked.runtime_median is None or tracked.runtime_longest is None:
        return ""
    if sum(tracked.outcomes.values()) == 1:
        return duration(tracked.runtime_longest)
    return f"{duration(tracked.runtime_median)}, at most {duration(tracked.runtime_longest)}"


def _source(entry: Entry) -> str:
    """Empty for what needs no word: all come from code, or from the store."""
    return "" if entry.version is None else f"live, version {entry.version}"


def _changed(entry: Entry, now: datetime) -> str:
    if entry.changed_at is None:
        return ""
    return f"{age(entry.changed_at, now)} by {entry.changed_by}"


def _notes(entry: Entry, now: datetime) -> list[str]:
    late = entry.next_run_at is not None and (now - entry.next_run_at).total_seconds() > _LATE
    by = "" if entry.paused_by is None else f" by {entry.paused_by}"
    notes = (
        (f"paused{by}", entry.paused is not None),
        (f"run {entry.waiting} waits", entry.waiting is not None),
        ("not in schedule", not entry.in_schedule),
        ("disabled", entry.disabled),
        (f"damaged: {entry.error}", entry.error is not None and entry.source != LIVE),
        (f"does not run: {entry.error}", entry.error is not None and entry.source == LIVE),
        ("late", late),
    )
    return [note for note, holds in notes if holds]


def _by_next_run(entry: Entry) -> tuple[float, str]:
    at = entry.next_run_at
    return (math.inf if at is None else at.timestamp(), entry.name)


# Tables --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column(Generic[Row]):
    """`cell`: its text for a row. `drop`: above 0 it may be left out where the terminal is narrow,
    those with lower numbers first; not `needed`: it is left out where it is empty."""

    title: str
    cell: Callable[[Row], str]
    right: bool = False
    drop: int = 0
    needed: bool = True


def table(
    columns: Sequence[Column[Row]], rows: Iterable[tuple[Row, str]], style: Style, width: float
) -> list[str]:
    """Lays out rows, each with its colour, in lines, the first of them with the titles. One column
    that is too wide for the terminal is better than a name that is cut short."""
    coloured = [([safe(column.cell(row)) for column in columns], colour) for row, colour in rows]
    coloured.insert(0, ([column.title for column in columns], "bold"))
    cells = [row for row, _ in coloured]
    widths = [min(_WIDEST, max(map(_columns, column))) for column in zip(*cells)]
    kept = [
        number
        for number, column in enumerate(columns)
        if column.needed or any(row[number] for row in cells[1:])
    ]
    for number in sorted(kept, key=lambda number: columns[number].drop):
        total = sum(widths[each] + len(_GAP) for each in kept) - len(_GAP)
        if columns[number].drop and total > width:
            kept.remove(number)

    def line(row: Sequence[str]) -> str:
        parts = []
        for number in kept:
            room = " " * (widths[number] - _columns(row[number]))
            parts.append(room + row[number] if columns[number].right else row[number] + room)
        return _GAP.join(parts).rstrip()

    return [style(line(row), colour) if colour else line(row) for row, colour in coloured]


def _columns(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )
