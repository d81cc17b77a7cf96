"""Compares ``cron`` with brute force: each minute of UTC around each time at which a zone's clock
is set.

To go through all zones from 1990 to 2037, which takes most of an hour; the test takes a sample:

    python -m tests.zones [ZONE...]
"""

from __future__ import annotations

import bisect
import random
import sys
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from zoneinfo import ZoneInfo

from celery_zk_beat.schedules import cron

YEARS = range(1990, 2038)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
#: How much before and after a change to look at; and how much earlier to begin reading the wall
#: clock.
AROUND, BEFORE = 30 * HOUR, 3 * DAY


class Line(NamedTuple):
    """An expression, and what it means, written independently."""

    expression: str
    is_fixed: bool
    matches: Callable[[datetime], bool]


def lines(before: datetime, after: datetime) -> Iterator[Line]:
    """Yields expressions for times that a change of the clock skips or repeats, and some for
    others."""
    one, other = before.hour, after.hour
    both = f"{min(one, other)},{max(one, other)}"
    yield Line("*/15 * * * *", False, lambda wall: wall.minute % 15 == 0)
    yield Line("10 * * * *", False, lambda wall: wall.minute == 10)
    yield Line("0 */2 * * *", False, lambda wall: wall.minute == 0 and wall.hour % 2 == 0)
    yield Line(f"*/20 {one} * * *", False, lambda wall: wall.minute % 20 == 0 and wall.hour == one)
    yield Line("0 0 * * *", True, lambda wall: wall.hour == wall.minute == 0)
    yield Line("40 23 * * *", True, lambda wall: (wall.hour, wall.minute) == (23, 40))
    yield Line(f"30 {one} * * *", True, lambda wall: (wall.hour, wall.minute) == (one, 30))
    yield Line(f"30 {other} * * *", True, lambda wall: (wall.hour, wall.minute) == (other, 30))
    yield Line(
        f"1-59/9 {both} * * *",
        True,
        lambda wall: wall.hour in (one, other) and wall.minute % 9 == 1,
    )
    yield Line(
        f"{before.minute} {one} {before.day} {before.month} *",
        True,
        lambda wall: (
            (wall.minute, wall.hour, wall.day, wall.month)
            == (before.minute, one, before.day, before.month)
        ),
    )
    yield Line(
        "5 12 L * *", True, lambda wall: (wall.hour, wall.minute, (wall + DAY).day) == (12, 5, 1)
    )


def changes(zone: ZoneInfo, years: range = YEARS) -> list[datetime]:
    """Returns the minutes of UTC at which a zone's clock is set."""
    found = []
    hour, end = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in (years.start, years.stop))
    offset = hour.astimezone(zone).utcoffset()
    while hour < end:
        following = hour + HOUR
        if following.astimezone(zone).utcoffset() != offset:
            while hour.astimezone(zone).utcoffset() == offset:
                hour += MINUTE
            found.append(hour)
            offset = following.astimezone(zone).utcoffset()
        hour = following
    return found


def brute_force(line: Line, minutes: list[datetime], walls: list[datetime]) -> list[datetime]:
    """Returns the minutes at which it is due: when the wall clock matches. For fixed times: the
    first minute at which the wall clock has reached or passed a time that it had not reached
    before."""
    if not line.is_fixed:
        return [minute for minute, wall in zip(minutes, walls) if line.matches(wall)]
    found, reached = [], walls[0]
    for minute, wall in zip(minutes, walls):
        is_due = False
        while reached < wall:
            reached += MINUTE
            is_due = is_due or line.matches(reached)
        if is_due:
            found.append(minute)
    return found


def check(zone: ZoneInfo, change: datetime, chance: random.Random) -> int:
    """Raises an AssertionError if they differ. Returns how many instants it compared."""
    start = change - AROUND - BEFORE
    minutes = [start + number * MINUTE for number in range(int((BEFORE + 2 * AROUND) / MINUTE))]
    walls = [minute.astimezone(zone).replace(tzinfo=None) for minute in minutes]
    asked = 0
    for line in lines((change - MINUTE).astimezone(zone) + MINUTE, change.astimezone(zone)):
        due = brute_force(line, minutes, walls)
        that = cron(line.expression, zone)
        at = [*due, change, change - MINUTE]
        at += [chance.choice(minutes) + timedelta(seconds=chance.choice((0, 59.999))) for _ in at]
        for instant in [*at, *(each - timedelta(microseconds=1) for each in at)]:
            index = bisect.bisect_right(due, instant)
            if instant < change - AROUND or index == len(due):
                continue
            found = that.following(instant)
            assert found == due[index], (
                f"{that!r} after {instant.isoformat()}: {found}, not {due[index]}"
            )
            asked += 1
    return asked


def main(names: list[str]) -> None:
    seen, asked, count = set(), 0, 0
    for name in names or sorted(zoneinfo.available_timezones()):
        zone = ZoneInfo(name)
        found = changes(zone)
        begun = datetime(YEARS.start, 1, 1, tzinfo=timezone.utc)
        alike = tuple((each, each.astimezone(zone).utcoffset()) for each in (begun, *found))
        if alike in seen:
            continue
        seen.add(alike)
        asked += sum(check(zone, change, random.Random(name)) for change in found)
        count += len(found)
        print(f"{name}: {len(found)}", flush=True)
    print(f"{len(seen)} zones, {count} changes of the clock, {asked} instants: all right")


if __name__ == "__main__":
    main(sys.argv[1:])
