"""How `zk-beat next` shows the runs that are to come, and how busy each minute is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from .forecast import NextRun
from .status.terminal import Column, Style, age, iso, table

#: A day, or a time of it; how one ends that names its offset.
_INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d(Z|[Tt ]\d\d:\d\d(:\d\d(\.\d{3}|\.\d{6})?)?([Zz]|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_OFFSET = re.compile(r"([Zz]|[+-]\d\d:\d\d)$", re.ASCII)
#: Of the bars of `--busy`.
_BAR, _MINUTES_SHOWN = 40, 20


# As text ------------------------------------------------------------------------------------------


def table_of(
    runs: Iterable[NextRun], now: datetime, style: Style, width: float, with_entry: bool
) -> list[str]:
    """A line a run."""

    def note(run: NextRun) -> str:
        notes = []
        if run.skipped is not None:
            notes.append(f"skipped: {run.skipped}")
        elif run.at - run.due >= timedelta(milliseconds=1):
            notes.append(f"due {iso(run.due)}")
        if run.clocks_change is not None:
            notes.append(f"clocks change that day, {run.clocks_change}")
        return ", ".join(notes)

    columns: list[Column[NextRun]] = [
        Column("AT", lambda run: iso(run.at)),
        Column("IN", lambda run: age(run.at, now), drop=1),
        Column("LOCAL", lambda run: run.local or "", needed=False),
        Column("RUN", lambda run: "-" if run.run is None else str(run.run), right=True, drop=2),
        *([Column[NextRun]("ENTRY", lambda run: run.entry)] if with_entry else []),
        Column("NOTE", note, needed=False),
    ]
    return table(columns, [(run, "yellow" if note(run) else "") for run in runs], style, width)


def table_of_minutes(counts: Mapping[datetime, int], style: Style, width: float) -> list[str]:
    """The busiest minutes, the busiest first."""
    busiest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MINUTES_SHOWN]
    most = max((count for _, count in busiest), default=1)

    def bar(item: tuple[datetime, int]) -> str:
        return "#" * round(_BAR * item[1] / most)

    columns: list[Column[tuple[datetime, int]]] = [
        Column("MINUTE", lambda item: iso(item[0])),
        Column("RUNS", lambda item: str(item[1]), right=True),
        Column("", bar, drop=1),
    ]
    lines = table(columns, [(item, "") for item in busiest], style, width)
    more = len(counts) - len(busiest)
    return [*lines, *([f"... and {more} minutes with fewer"] if more > 0 else [])]


def end_of(text: str, at: datetime, instant: Callable[[str], datetime]) -> datetime:
    """Of ``+7d``, ``+12h``, ``+30m`` or an instant; ValueError for anything else."""
    if not text.startswith("+"):
        return instant(text)
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    if text[-1] not in units or not text[1:-1].isdecimal():
        raise ValueError(f"{text!r}: expected an instant, or +7d, +12h, +30m, +10s")
    return at + timedelta(seconds=int(text[1:-1]) * units[text[-1]])


def utc(text: str, zone: Any) -> datetime:
    """Of ISO 8601; without an offset it is of `zone`. ValueError for anything else."""
    if _INSTANT.fullmatch(text) is None:  # Python takes more, in each release something else
        raise ValueError(f"{text!r:.80} is not an instant such as 2026-11-01T03:00, perhaps with Z")
    found = datetime.fromisoformat(text.rstrip("Zz"))
    if found.tzinfo is None:
        found = found.replace(tzinfo=zone if names_no_zone(text) else timezone.utc)
    return found.astimezone(timezone.utc)


def names_no_zone(text: str) -> bool:
    """True for an instant that is of the zone which is given."""
    return _OFFSET.search(text) is None
