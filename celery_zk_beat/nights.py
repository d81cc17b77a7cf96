"""What entries do in the nights in which the clock of their time zone is set. This asks their
schedules, as beat does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, NamedTuple

from .due import in_zone, next_run, zone_of
from .schedules import changes

_TICK = timedelta(microseconds=1)
#: Most instants to look at. What is due more often is due often enough.
_MOST = 2000


class Meeting(NamedTuple):
    """An entry and such a night. `is_harmless`: it runs as if the clock were not set, or it runs
    once."""

    text: str
    is_harmless: bool


def meetings(entry: Any, since: datetime, until: datetime) -> Iterator[Meeting]:
    """Yields the nights that an entry meets, in order; none if it does not run by the hours of a
    zone."""
    if zone_of(entry) is None:
        return
    schedule = entry.schedule
    for at, before, after in changes(schedule.tz, since, until):
        meeting = _Night(schedule, at, before, after).meeting()
        if meeting is not None:
            yield meeting


class _Night:
    """A schedule and one such night. A wall is the time on the clock of the zone, written as if it
    were UTC.

    Args:
        at: when the clock is set.
        before, after: the offsets from UTC.
    """

    def __init__(self, schedule: Any, at: datetime, before: timedelta, after: timedelta) -> None:
        self._schedule, self._at = schedule, at
        #: The walls that are skipped, or that come twice.
        self._first, self._last = at + min(before, after), at + max(before, after)
        self._is_skip, self._span = after > before, abs(after - before)
        #: The same schedule in a zone whose clock is never set.
        self._even = in_zone(schedule, timezone.utc)

    def meeting(self) -> Meeting | None:
        walls = _instants(self._even, self._first, self._last)
        if not walls:
            return None
        # If it runs in each such span, it need not run in this one.
        is_often = all(
            _instants(self._even, start, start + self._span)
            for start in (self._first - self._span, self._last)
        )
        return self._skipped(walls, is_often) if self._is_skip else self._twice(is_often)

    def _skipped(self, walls: list[datetime], is_often: bool) -> Meeting | None:
        if is_often:
            return None
        runs = _instants(self._schedule, self._at, self._at + self._span)
        known = {*_instants(self._even, self._last, self._last + self._span)}
        instead = [run for run in runs if _wall(run, self._schedule.tz) not in known] or runs[:1]
        more = f" and {len(walls) - 1} more are" if walls[1:] else " is"
        what = f"{self._night} {walls[0]:%H:%M}{more} skipped"
        if not instead:
            return Meeting(f"{what}: does not run for it", False)
        return Meeting(f"{what}: runs at {self._shown(instead)}", True)

    def _twice(self, is_often: bool) -> Meeting | None:
        first = _instants(self._schedule, self._at - self._span, self._at)
        second = _instants(self._schedule, self._at, self._at + self._span)
        what = f"{self._night} {self._first:%H:%M} to {self._last:%H:%M} comes twice"
        if first and second:
            runs = self._shown([first[0], second[0]])
            return None if is_often else Meeting(f"{what}: runs both times, at {runs}", False)
        if not first and not second:
            return Meeting(f"{what}: does not run", False)
        if is_often:
            which = "second" if first else "first"
            return Meeting(f"{what}: does not run in the {which} of them", False)
        return Meeting(f"{what}: runs once, at {self._shown(first or second)}", True)

    @property
    def _night(self) -> str:
        return f"{self._first:%Y-%m-%d},"

    def _shown(self, runs: list[datetime]) -> str:
        return ", ".join(f"{run.astimezone(self._schedule.tz):%H:%M %Z}" for run in runs[:3])


def _wall(at: datetime, zone: Any) -> datetime:
    return at.astimezone(zone).replace(tzinfo=timezone.utc)


def _instants(schedule: Any, since: datetime, until: datetime) -> list[datetime]:
    """Returns when it is due, from `since` on and before `until`."""
    found: list[datetime] = []
    entry = SimpleNamespace(schedule=schedule, default_now=schedule.now)
    at: datetime | None = since - _TICK
    while at is not None and len(found) < _MOST:
        following = next_run(entry, at)
        if following is None or not at < following < until:
            break
        found.append(following)
        at = following
    return found
