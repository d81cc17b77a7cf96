"""How a snapshot looks as plain text: what `zk-beat status`, `history` and `watch` print."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Callable

from ..log import safe as safe
from .snapshot import Entry, RecentRun, RecentTerm, Snapshot

#: Gives a text a colour by name, or None for none.
Style = Callable[[str, str], str]

_GAP = "  "
#: Most columns to which others are filled up: one name of a megabyte must not make a hundred.
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
        lines += [*_members(snapshot, now).lines(style, width), ""]
    entries = sorted(snapshot.entries, key=_by_next_run)
    room = height - len(lines) - 1  # for the titles
    shown = entries if len(entries) <= room else entries[: max(0, int(room) - 1)]
    lines += _entries(shown, now).lines(style, width)
    if len(shown) < len(entries):
        lines.append(f"... and {len(entries) - len(shown)} more")
    return lines


def history(runs: Sequence[RecentRun], style: Style, width: float, with_entry: bool) -> list[str]:
    """A table of what ran, newest first."""
    table = Table(
        [
            Column("DUE"),
            Column("DISPATCHED", drop=1),
            Column("LATE", right=True),
            Column("RUN", right=True),
            Column("EPOCH", right=True, drop=2),
            Column("BY"),
            Column("TASK ID", drop=3),
            *([Column("ENTRY")] if with_entry else []),
            Column("NOTE", needed=False),
        ]
    )
    for run in runs:
        late = (run.at - run.due).total_seconds()
        table.add(
            iso(run.due),
            iso(run.at) if run.run is not None else "skipped",
            duration(late) if run.run is not None else "-",
            "-" if run.run is None else str(run.run),
            str(run.epoch),
            run.by or "?",
            run.task_id or "-",
            *([run.entry] if with_entry else []),
            run.note or "",
            colour="yellow" if run.note or late > _LATE else "",
        )
    return table.lines(style, width)


def masters(terms: Iterable[RecentTerm], now: datetime, style: Style, width: float) -> list[str]:
    """A table of the terms, newest first."""
    table = Table(
        [
            Column("EPOCH", right=True),
            Column("SINCE"),
            Column("UNTIL", drop=1),
            Column("FOR", right=True),
            Column("MASTER"),
            Column("ENDED"),
        ]
    )
    for term in terms:
        end = term.until or now
        table.add(
            str(term.epoch),
            iso(term.since),
            iso(term.until),
            "-" if term.since is None else duration((end - term.since).total_seconds()),
            term.id,
            "-" if term.until is None else term.why or "?",
            colour="green" if term.until is None else "",
        )
    return table.lines(style, width)


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
    for warning in snapshot.warnings:
        yield f"{style('warning', 'yellow')}   {safe(warning)}"


def _members(snapshot: Snapshot, now: datetime) -> Table:
    table = Table(
        [
            Column("STATE"),
            Column("STARTED AT", drop=1),
            Column("STARTED", drop=3),
            Column("CLOCK", right=True),
            Column("VERSION", drop=4),
            Column("SCHEDULE"),
            Column("HOST", drop=5),
            Column("PID", right=True, drop=2),
            Column("MEMBER"),
        ]
    )
    for member in snapshot.members:
        same = member.schedule == snapshot.schedule
        offset = member.clock_offset
        table.add(
            member.state,
            iso(member.since),
            age(member.since, now),
            "-" if offset is None else f"{round(offset, 2) or 0.0:+} s",
            member.version or "-",
            "same" if same else f"{member.schedule or '?'} differs",
            member.host,
            str(member.pid),
            member.id,
            colour="green" if member.state == "master" else "" if same else "yellow",
        )
    return table


def _entries(entries: Iterable[Entry], now: datetime) -> Table:
    table = Table(
        [
            Column("NEXT RUN AT", drop=2),
            Column("NEXT RUN"),
            Column("LAST RUN AT", drop=1),
            Column("LAST RUN"),
            Column("RUNS", right=True),
            Column("SCHEDULE"),
            Column("STATE", needed=False),
            Column("ENTRY"),
        ]
    )
    for entry in entries:
        late = entry.next_run_at is not None and (now - entry.next_run_at).total_seconds() > _LATE
        notes = [
            *_paused(entry),
            *([f"run {entry.waiting} waits"] if entry.waiting is not None else []),
            *([] if entry.in_schedule else ["not in schedule"]),
            *(["late"] if late else []),
        ]
        table.add(
            iso(entry.next_run_at),
            age(entry.next_run_at, now),
            iso(entry.last_run_at),
            age(entry.last_run_at, now),
            str(entry.total_run_count),
            entry.schedule or "-",
            ", ".join(notes),
            entry.name,
            colour="yellow" if notes else "",
        )
    return table


def _paused(entry: Entry) -> list[str]:
    by = "" if entry.paused_by is None else f" by {entry.paused_by}"
    return [] if entry.paused is None else [f"paused{by}"]


def _by_next_run(entry: Entry) -> tuple[float, str]:
    at = entry.next_run_at
    return (math.inf if at is None else at.timestamp(), entry.name)


# Tables --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """`drop`: above 0 it may be left out where the terminal is narrow, those with lower numbers
    first; not `needed`: it is left out where it is empty."""

    title: str
    right: bool = False
    drop: int = 0
    needed: bool = True


@dataclass
class Table:
    columns: Sequence[Column]
    _rows: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def add(self, *cells: str, colour: str = "") -> None:
        self._rows.append((tuple(map(safe, cells)), colour))

    def lines(self, style: Style, width: float) -> list[str]:
        """Lays it out in lines, the first of them with the titles. One column that is too wide for
        the terminal is better than a name that is cut short."""
        cells = [[column.title for column in self.columns], *(row for row, _ in self._rows)]
        widths = [min(_WIDEST, max(map(_columns, column))) for column in zip(*cells)]
        kept = [
            number
            for number, column in enumerate(self.columns)
            if column.needed or any(row[number] for row, _ in self._rows)
        ]
        for number in sorted(kept, key=lambda number: self.columns[number].drop):
            total = sum(widths[each] + len(_GAP) for each in kept) - len(_GAP)
            if self.columns[number].drop and total > width:
                kept.remove(number)
        titles = self._line(cells[0], kept, widths)
        return [
            style(titles, "bold"),
            *(
                style(line, colour) if colour else line
                for row, colour in self._rows
                for line in [self._line(row, kept, widths)]
            ),
        ]

    def _line(self, row: Sequence[str], kept: Sequence[int], widths: Sequence[int]) -> str:
        parts = []
        for number in kept:
            room = " " * (widths[number] - _columns(row[number]))
            right = self.columns[number].right
            parts.append(room + row[number] if right else row[number] + room)
        return _GAP.join(parts).rstrip()


def _columns(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )
