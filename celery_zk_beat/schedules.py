"""Schedules for ``beat_schedule`` that are right every night: :class:`cron` and :class:`every`.

They derive from Celery's own schedules, so any Celery scheduler runs them. cronsim parses the
expressions and computes times without a zone; this module applies the time zone. See
docs/schedules.md.
"""

from __future__ import annotations

import calendar
import functools
import hashlib
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from celery.schedules import BaseSchedule, crontab, schedstate, schedule
from cronsim import CronSim, CronSimError

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Stands for an instant that never comes.
_NEVER = datetime(9999, 1, 1, tzinfo=timezone.utc)
_LAST = datetime(9998, 12, 1)
_TICK, _SECOND, _DAY = timedelta(microseconds=1), timedelta(seconds=1), timedelta(days=1)
#: Run states keep milliseconds: an instant between two of them would come twice.
_FINEST = timedelta(milliseconds=1)
_LONGEST_INTERVAL = timedelta(seconds=1e10)
#: No clock is set back by more: Apia and Kwajalein have moved by a whole day.
_LONGEST_FOLD = timedelta(days=2)
_ZONE = "the name of a time zone, such as 'Europe/Berlin'"

#: The fields of an expression in order: name, Celery's name, lowest and highest number, and
#: the highest that `~` chooses: a day that each month has, and no month.
_FIELDS = (
    ("minute", "minute", 0, 59, 59),
    ("hour", "hour", 0, 23, 23),
    ("day of month", "day_of_month", 1, 31, 28),
    ("month", "month_of_year", 1, 12, 0),
    ("day of week", "day_of_week", 0, 7, 6),
)
_ALSO = {"day of month": ", L, LW", "month": ", jan to dec", "day of week": ", sun to sat, 5L, 1#2"}


class cron(crontab):
    """A cron expression in a time zone. Immutable; entries may share it.

    If neither minute nor hour begins with ``*``, the times are fixed: each runs once, at the first
    instant when the zone's clock has reached it. Else it runs at each matching minute, as often as
    the clock passes it. Debian's cron does the same.

    Args:
        expression: five fields: minute, hour, day of month, month, day of week. A field is ``*``, a
            number, a range ``a-b`` or a list, each also with a step ``/n``; or ``~`` or ``a~b``: a
            number chosen by the hash of the entry's name. If both days are restricted, one match is
            enough.
        tz: name of the time zone; None: the app's.
        key: replaces the entry's name for ``~``, for schedulers that do not tell the name.
        nowfun, app: as in Celery's own schedules.

    Raises:
        ValueError: one line that names the field and what is accepted.
    """

    def __init__(
        self,
        expression: str,
        tz: str | ZoneInfo | None = None,
        key: str | None = None,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
    ) -> None:
        if not isinstance(expression, str):
            raise ValueError(f"cron({expression!r}): expected five fields as text")
        BaseSchedule.__init__(self, nowfun=nowfun, app=app)
        self.expression, self.key = " ".join(expression.split()), key
        self.zone = None if tz is None else _zone_of(tz, f"cron({self.expression!r})")
        if self.zone is not None:
            self.tz = self.zone
        self._choose(key)
        if self._next_wall(datetime(2000, 1, 1)) is None:
            raise ValueError(f"cron({self.expression!r}): there is no such day")

    def _choose(self, name: str | None) -> None:
        """Replaces `~` by what the hash of `name` gives."""
        self._name, texts = name, self.expression.split(" ")
        what = f"cron({self.expression!r})"
        if len(texts) != len(_FIELDS):
            raise ValueError(
                f"{what}: {len(self.expression.split())} fields, expected five: minute, hour, day "
                "of month, month, day of week"
            )
        chosen = [_choose(index, text, name or "", what) for index, text in enumerate(texts)]
        self._sim = _parse(chosen, what)
        self._times = _times(frozenset(self._sim.minutes), frozenset(self._sim.hours))
        #: True for fixed times; as in Debian's cron.
        self._is_fixed = not any(text.startswith("*") for text in chosen[:2])
        self._be_crontab(chosen)

    def _be_crontab(self, texts: list[str]) -> None:
        """Sets the attributes of Celery's class, from which other schedulers make their rows."""
        sim, refusal = self._sim, self.why_no_row()
        days = {day % 7 for day in sim.weekdays if isinstance(day, int)}
        found = (sim.minutes, sim.hours, {day for day in sim.days if day > 0}, sim.months, days)
        for (_, name, *_), text, numbers in zip(_FIELDS, texts, found):
            setattr(self, name, set(numbers))
            shown = text if text == "*" else ",".join(map(str, sorted(numbers)))
            if refusal is not None or self.zone is not None:
                field: Any = FieldOfCron(numbers)
                field.text, field.refusal = text if refusal else shown, refusal
            else:
                field = shown
            setattr(self, f"_orig_{name}", field)

    def why_no_row(self) -> str | None:
        """Says why a scheduler refuses it that stores entries as rows of Celery's crontabs. None:
        it does not."""
        sim, what = self._sim, f"cron({self.expression!r}) cannot be a row of this scheduler: "
        if min(sim.days) < 0 or not all(isinstance(day, int) for day in sim.weekdays):
            return f"{what}Celery's crontab has no L, LW or #"
        if not sim.day_and:
            return f"{what}Celery's crontab runs if both days match, cron if either does"
        if "~" in self.expression and self.key is None:
            return f"{what}it does not tell the entry's name, so `~` needs cron(..., key='name')"
        return None

    @property
    def name(self) -> str | None:
        """The name that decides about `~`; None if there is no `~`, or if it does not know the
        name."""
        return self._name if "~" in self.expression else None

    @property
    def needs_name(self) -> bool:
        return self.key is None and "~" in self.expression

    def named(self, name: str) -> cron:
        """Returns this schedule if an entry's name makes no difference; otherwise a copy with this
        `name`."""
        if not self.needs_name or self._name == name:
            return self
        copied: Any = object.__new__(type(self))
        vars(copied).update(vars(self))
        copied._choose(name)
        return copied  # type: ignore[no-any-return]

    @property
    def instants(self) -> Any:
        """Equal for two schedules that are due at the same instants."""
        return self._args, self._name

    def following(self, after: datetime) -> datetime:
        """Returns the first instant after an aware one at which it is due, UTC. In the year 9999 if
        there is none."""
        if after.year > _LAST.year:
            return _NEVER
        zone, at = self.tz, after.astimezone(timezone.utc).replace(tzinfo=None)
        offset = _offset(zone, at)
        wall = self._next_wall(self._reached(zone, at, offset))
        while wall is not None and wall < _LAST:
            change = _first_change(zone, at, wall - offset)
            if change is None:
                return (wall - offset).replace(tzinfo=timezone.utc)
            at, offset = change
            if not self._is_fixed:
                wall = self._next_wall(at + offset - _TICK)
            elif at + offset >= wall:  # the clock has skipped it
                return at.replace(tzinfo=timezone.utc)
        return _NEVER

    def _reached(self, zone: tzinfo, at: datetime, offset: timedelta) -> datetime:
        """Returns the time on the zone's clock after which to go on. A fixed time is not due again
        if the clock had reached it before it was set back."""
        wall = at + offset
        if self._is_fixed:
            begun = at - _LONGEST_FOLD
            before, change = _offset(zone, begun), _first_change(zone, begun, at)
            while change is not None:
                wall = max(wall, change[0] + before - _TICK)
                before, change = change[1], _first_change(zone, change[0], at)
        return wall

    def _next_wall(self, wall: datetime) -> datetime | None:
        """Returns the next time after `wall`, without a zone; None if there is none in fifty
        years."""
        sim, times = self._sim, self._times
        day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        index = bisect_right(times, wall.hour * 60 + wall.minute)
        # cronsim goes hour by hour to the end of the day. Most schedules are due today or tomorrow.
        for _ in range(2):
            if index < len(times) and day.month in sim.months and sim.match_day(day):
                return day + timedelta(minutes=times[index])
            day, index = day + _DAY, 0
        far: Any = object.__new__(CronSim)
        far.__dict__.update(vars(sim), dt=day - timedelta(minutes=1))
        try:
            return next(far)  # type: ignore[no-any-return]
        except (StopIteration, OverflowError):
            return None

    def remaining_estimate(self, last_run_at: datetime, ffwd: Any = None) -> timedelta:
        return _left(self, last_run_at)

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        deadline = self.app.conf.beat_cron_starting_deadline
        late = None if deadline is None else timedelta(seconds=deadline)
        return _state(self, last_run_at, late)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        key = "" if self.key is None else f" key={self.key!r}"
        return f"<{self}{key}>"

    def __str__(self) -> str:
        return f"cron {self.expression}{'' if self.zone is None else f' {self.zone.key}'}"

    @property
    def _args(self) -> Any:
        return self.expression, None if self.zone is None else self.zone.key, self.key, self.nowfun

    def __reduce__(self) -> Any:
        return type(self), self._args

    def __eq__(self, other: object) -> bool:
        # The entry's name does not count: two that are defined alike are equal.
        return isinstance(other, cron) and self._args == other._args

    __hash__ = None  # type: ignore[assignment]


class every(schedule):
    """An aligned interval: due `offset` after midnight UTC on 1 January 1970, and every interval
    from there. It does not depend on when beat was started, and does not drift. Immutable.

    Args:
        seconds: the interval, in seconds or as a timedelta. Whole milliseconds, like `offset`.
        offset: seconds or a timedelta; at least 0, less than the interval.
        nowfun, app: as in Celery's own schedules.

    Raises:
        ValueError: one line that names the value and what is accepted.
    """

    relative = False

    def __init__(
        self,
        seconds: float | timedelta,
        offset: float | timedelta = 0,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
    ) -> None:
        BaseSchedule.__init__(self, nowfun=nowfun, app=app)
        self.interval = _duration(seconds, "every({!r})")
        self.offset = _duration(offset, "every(..., offset={!r})")
        if not self.interval:
            raise ValueError(f"every({seconds!r}): expected more than 0 seconds")
        if self.offset >= self.interval:
            raise ValueError(f"every({seconds!r}, offset={offset!r}): the offset is not less")

    @property
    def run_every(self) -> timedelta:
        """Other schedulers make their rows from it."""
        refusal = self.why_no_row()
        if refusal is not None:
            raise ValueError(refusal)
        return self.interval

    def why_no_row(self) -> str | None:
        """Says why a scheduler refuses it that stores entries as rows of intervals. None: it does
        not."""
        knows = "cannot be a row of this scheduler, which has no offsets"
        return f"{self!r} {knows}" if self.offset else None

    @property
    def seconds(self) -> float:
        return self.interval.total_seconds()

    @property
    def instants(self) -> Any:
        """Equal for two schedules that are due at the same instants."""
        return self._args

    def following(self, after: datetime) -> datetime:
        """Returns the first instant after an aware one at which it is due, UTC."""
        start = _EPOCH + self.offset
        try:
            return start + ((after - start) // self.interval + 1) * self.interval
        except OverflowError:
            return _NEVER

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return _left(self, last_run_at)

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        return _state(self, last_run_at, None)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"every {self.seconds:.12g} s, offset {self.offset.total_seconds():.12g} s"

    @property
    def _args(self) -> Any:
        return self.interval, self.offset, self.nowfun

    def __reduce__(self) -> Any:
        return type(self), self._args

    def __eq__(self, other: object) -> bool:
        return isinstance(other, every) and self._args == other._args

    __hash__ = None  # type: ignore[assignment]


class FieldOfCron(frozenset):  # type: ignore[type-arg]
    """A field, for other schedulers that make rows from Celery's crontabs. Its text is what a row
    has. It raises a ValueError if a row of it would be wrong. RedBeat stores no time zones and
    cannot make JSON from it: the error names this class."""

    text: str
    refusal: str | None

    def __str__(self) -> str:
        if self.refusal is not None:
            raise ValueError(self.refusal)
        return self.text

    def __repr__(self) -> str:
        return repr(self.text)

    def __format__(self, spec: str) -> str:  # for code that only shows it, such as Sentry
        return self.text


def _left(that: Any, last_run_at: datetime) -> timedelta:
    due: datetime = that.following(that.maybe_make_aware(last_run_at))
    return due - _now(that)


def _state(that: Any, last_run_at: datetime, late: timedelta | None) -> Any:
    """Returns what is_due() returns. `late`: how late a run may start."""
    now, due = _now(that), that.following(that.maybe_make_aware(last_run_at))
    if due > now:
        return schedstate(False, (due - now).total_seconds())
    is_in_time = late is None or that.following(now - late - _TICK) <= now
    return schedstate(is_in_time, (that.following(now) - now).total_seconds())


def _now(that: Any) -> datetime:
    now: datetime = that.maybe_make_aware(that.now()).astimezone(timezone.utc)
    return now


def _duration(value: Any, what: str) -> timedelta:
    if isinstance(value, timedelta):
        found = value
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{what.format(value)}: expected seconds, as a number or a timedelta")
    else:
        found = timedelta(seconds=min(max(value, -1), 1e12))
    if not timedelta() <= found <= _LONGEST_INTERVAL or found % _FINEST:
        raise ValueError(f"{what.format(value)}: expected 0 to 1e10 seconds, in whole milliseconds")
    return found


def _zone_of(tz: Any, what: str) -> ZoneInfo:
    if isinstance(tz, ZoneInfo) and tz.key:
        return tz
    try:
        if isinstance(tz, str):
            return ZoneInfo(tz)
    except Exception:  # there are several that no zone has
        pass
    raise ValueError(f"{what}: tz={tz!r}: expected {_ZONE}")


# Fields ------------------------------------------------------------------------------------------


def _parse(texts: list[str], what: str) -> CronSim:
    start = datetime(2000, 1, 1)
    for index, (name, _, low, high, _) in enumerate(_FIELDS):
        alone = ["*"] * len(_FIELDS)
        alone[index] = texts[index]
        try:
            sim = CronSim(" ".join(alone), start)
            if not (sim.minutes and sim.hours and sim.days and sim.months and sim.weekdays):
                raise CronSimError(name)
        except Exception:  # a 31st in months without one; it has assertions and other errors, too
            raise ValueError(
                f"{what}: {name} {texts[index]!r}: expected {low} to {high}{_ALSO.get(name, '')}, "
                "ranges (a-b), lists (a,b), steps (*/5), * or a~b"
            ) from None
    try:
        return CronSim(" ".join(texts), start)
    except CronSimError:
        raise ValueError(f"{what}: there is no such day") from None


@functools.lru_cache(1000)
def _times(minutes: frozenset[int], hours: frozenset[int]) -> tuple[int, ...]:
    """Returns minutes of a day, in order. Cached, because many schedules have the same."""
    return tuple(sorted(60 * hour + minute for hour in hours for minute in minutes))


def _choose(index: int, text: str, name: str, what: str) -> str:
    """Returns a field with numbers in place of `~`."""
    if "~" not in text:
        return text
    field, _, low, _, high = _FIELDS[index]
    parts = []
    for number, part in enumerate(text.split(",")):
        if "~" in part:
            match = re.fullmatch(r"(?:(\d{1,2})~(\d{1,2}))|~", part)
            if match is None:
                raise ValueError(f"{what}: {field} {text!r}: expected ~ or a~b with numbers")
            first, last = (int(each or limit) for each, limit in zip(match.groups(), (low, high)))
            if not low <= first <= last <= high:
                wanted = f"a~b from {low} to {high}" if high else "no ~"
                raise ValueError(f"{what}: {field} {text!r}: expected {wanted}")
            digest = hashlib.sha256(f"{name}\0{index}\0{number}".encode(errors="replace")).digest()
            part = str(first + int.from_bytes(digest[:8], "big") % (last - first + 1))
        parts.append(part)
    return ",".join(parts)


# Time zones --------------------------------------------------------------------------------------


def _offset(zone: tzinfo, at: datetime) -> timedelta:
    """Returns the offset from UTC at an instant. The instant is UTC and naive, like all here.
    Computed from the local time: not every zone can answer for a local time that comes twice."""
    return at.replace(tzinfo=timezone.utc).astimezone(zone).replace(tzinfo=None) - at


def changes(
    zone: tzinfo, since: datetime, until: datetime
) -> Iterator[tuple[datetime, timedelta, timedelta]]:
    """Yields the instants (UTC) at which a zone's clock is set, after `since` and up to `until`,
    both aware; with the offsets before and after."""
    at, end = (each.astimezone(timezone.utc).replace(tzinfo=None) for each in (since, until))
    before, change = _offset(zone, at), _first_change(zone, at, end)
    while change is not None:
        at, after = change
        yield at.replace(tzinfo=timezone.utc), before, after
        before, change = after, _first_change(zone, at, end)


def _first_change(
    zone: tzinfo, after: datetime, until: datetime
) -> tuple[datetime, timedelta] | None:
    """Returns the first instant after `after` and up to `until` at which a zone's clock is set, and
    its offset from then on; None if there is none."""
    of_year = _changes if isinstance(zone, Hashable) else _changes.__wrapped__
    for year in range(after.year, until.year + 1):
        for change in of_year(zone, year):
            if after < change[0] <= until:
                return change
    return None


@functools.lru_cache(1000)
def _changes(zone: tzinfo, year: int) -> tuple[tuple[datetime, timedelta], ...]:
    """Returns the changes of one year of UTC. It does not see a zone that is set and set back
    within a day."""
    found, day = [], datetime(year, 1, 1)
    before = _offset(zone, day - _SECOND)
    if _offset(zone, day) != before:
        before = _offset(zone, day)
        found.append((day, before))
    for _ in range(366 if calendar.isleap(year) else 365):
        # To the last second: the next year begins at its first.
        following = day + _DAY
        end = min(following, datetime(year, 12, 31, 23, 59, 59))
        while _offset(zone, end) != before:
            low, high = int((day - _E).total_seconds()), int((end - _E).total_seconds())
            while high - low > 1:
                middle = (low + high) // 2
                if _offset(zone, _E + middle * _SECOND) == before:
                    low = middle
                else:
                    high = middle
            day = _E + high * _SECOND
            before = _offset(zone, day)
            found.append((day, before))
        day = following
    return tuple(found)


_E = _EPOCH.replace(tzinfo=None)
