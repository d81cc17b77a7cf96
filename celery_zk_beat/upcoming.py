"""What `zk-beat next` shows: the runs that are to come, and how busy each minute is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta, timezone
from typing import Any

from .due import is_interval, zone_of
from .forecast import Forecast, Missed, moved_on
from .runs import RunState
from .schedulers import ZooKeeperScheduler
from .settings import Settings
from .status.terminal import Column, Style, age, iso, table

#: Of the bars of `--busy`.
_BAR, _MINUTES_SHOWN = 40, 20
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class NextRun:
    """A run that is to come. Instants are aware, UTC.

    Attributes:
        run: its number; None where an instant is skipped.
        due, at: the instant that it is for, and when its message leaves.
        local: `at` in the time zone of its schedule, ISO 8601; None where that has none.
        clocks_change: by how much, ``+01:00 to +02:00``, where they do on that day there.
        skipped: why it does not run, ``catch_up``, ``limit`` or ``deadline``; else None.
    """

    entry: str
    run: int | None
    due: datetime
    at: datetime
    local: str | None
    clocks_change: str | None
    skipped: str | None


class Schedule:
    """The entries of a schedule, with what is known of them.

    Args:
        entries: by name.
        states: those that ZooKeeper has; the clock of another begins at `now`.
        paused: names of entries that are held back.
    """

    def __init__(
        self,
        scheduler: ZooKeeperScheduler,
        settings: Settings,
        entries: Mapping[str, Any],
        states: Mapping[str, RunState],
        paused: Collection[str],
        now: datetime,
    ) -> None:
        self._scheduler, self._settings, self._now = scheduler, settings, now
        self._entries = {name: each for name, each in entries.items() if name not in paused}
        self._states = {name: states.get(name) or RunState(now) for name in self._entries}

    def runs(self, at: datetime, until: datetime, entry: str | None = None) -> Iterator[NextRun]:
        """What leaves from `at` to `until`, in order, of one entry or of all."""
        entries = self._entries
        if entry is not None:
            entries = {entry: entries[entry]} if entry in entries else {}
        for each in self._forecast(at, entries).until(until):
            known = entries[each.entry]
            if isinstance(each, Missed):
                yield _next_run(known, each.entry, None, each.due, each.due, each.reason)
            elif each.at >= at:
                yield _next_run(known, each.entry, each.number, each.due, each.at, None)

    def _forecast(self, at: datetime, entries: Mapping[str, Any]) -> Forecast:
        states = {name: self._state_at(name, entries[name], at) for name in entries}
        return Forecast(self._scheduler, self._settings, at, states, entries)

    def _state_at(self, name: str, entry: Any, at: datetime) -> RunState:
        if at == self._now:
            return self._states[name]
        policy = self._settings.policies.of(name)
        state = moved_on(entry, self._states[name], at)
        if policy is None or policy.runs is None or at < self._now:
            return state
        # Those before then count.
        forecast = Forecast(self._scheduler, self._settings, self._now, self._states, {name: entry})
        gone = itertools.islice(forecast.until(at - _MINUTE / 1000), policy.runs)
        return replace(state, ran=state.ran + sum(not isinstance(each, Missed) for each in gone))

    def busy(self, at: datetime, until: datetime) -> dict[datetime, int]:
        """How many runs leave in each minute in which any does, in order."""
        begin = at.replace(second=0, microsecond=0)
        policies, counts, others = self._settings.policies, Counter[datetime](), {}
        for name, entry in self._entries.items():
            # A million runs of short intervals need not be looked at one by one.
            every = entry.schedule.run_every if is_interval(entry.schedule) else timedelta()
            if every > timedelta() and policies.of(name) is None:
                last = self._state_at(name, entry, at).last_run_at
                _count(counts, last + every, every, begin, until)
            else:
                others[name] = entry
        for each in self._forecast(at, others).until(until):
            if not isinstance(each, Missed) and each.at >= at:
                counts[each.at.replace(second=0, microsecond=0)] += 1
        return dict(sorted(counts.items()))


def _count(
    counts: Counter[datetime], first: datetime, every: timedelta, begin: datetime, until: datetime
) -> None:
    def before(instant: datetime) -> int:
        return max(0, -((first - instant) // every))

    minute = begin
    while minute <= until:
        end = min(minute + _MINUTE, until + timedelta(microseconds=1))
        if found := before(end) - before(minute):
            counts[minute] += found
        minute += _MINUTE


def _next_run(
    entry: Any, name: str, run: int | None, due: datetime, at: datetime, skipped: str | None
) -> NextRun:
    local = change = None
    if zone_of(entry) is not None:
        zone = entry.schedule.tz
        local = at.astimezone(zone).isoformat(timespec="seconds")
        day = due.astimezone(zone).date()
        before, after = (
            datetime.combine(each, time(), zone).isoformat()[19:]
            for each in (day, day + timedelta(days=1))
        )
        change = None if before == after else f"{before} to {after}"
    return NextRun(name, run, due, at, local, change, skipped)


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
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(timezone.utc)
