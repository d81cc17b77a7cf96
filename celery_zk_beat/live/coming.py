"""Turns an entry of another scheduler into a live entry, with its clock. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery.schedules import crontab

from .. import schedules
from ..due import is_interval
from ..errors import EntryError
from ..records import to_text
from ..runs import NEVER, TOLERANCE, RunState, milliseconds
from .definitions import LONGEST_NOTE, Coming, Content, Definition, Found, Timing, timing_of

_MILLISECOND = timedelta(milliseconds=1)
#: The interval, in seconds, of an entry that its policy lets run only once, at a given instant.
_DAY = 86_400.0
#: The fields of a line of cron, in the order of crontab; and how many values each can have.
_FIELDS = (
    ("minute", 60),
    ("hour", 24),
    ("day_of_month", 31),
    ("month_of_year", 12),
    ("day_of_week", 7),
)
_KINDS = "an interval, a crontab, or an instant"


@dataclass(frozen=True)
class Newcomer:
    """An entry as its own scheduler has it. Instants are aware, UTC.

    Attributes:
        entry: an entry of that scheduler's class.
        last_run_at: None if it never ran, and so is due at once.
        has_run: True if it ran at `last_run_at`; otherwise its clock only runs since then.
        starts, ends: it does not run for an instant before, or after.
        at: the one instant at which it runs.
    """

    name: str
    entry: Any
    is_enabled: bool = True
    last_run_at: datetime | None = None
    has_run: bool = True
    starts: datetime | None = None
    ends: datetime | None = None
    at: datetime | None = None
    is_one_off: bool = False
    note: str = ""


def come_over(
    new: Newcomer, before: Found, state: RunState | None, now: datetime
) -> Coming | Content:
    """Returns the live entry that it becomes, with its clock if that is not known here yet.

    Args:
        before: the live entry of the same name.
        state: the run state of the same name. It belongs to this entry, because an election may
            already have run it.

    Raises:
        EntryError: a live entry cannot express something of it.
    """
    last = new.last_run_at
    if last is not None and new.has_run and last > now + TOLERANCE:
        raise EntryError(new.name, "last_run_at", to_text(last), "an instant that is past")
    if state is not None:
        last = max(state.last_run_at, last or NEVER) if new.has_run else state.last_run_at
    since = 0 if last is None else _ceil(min(last, now))
    is_news = _is_news(new, before, state, since)
    content = Content(
        task=new.entry.task,
        schedule=_timing(new, before, since, last, is_news, now),
        args=list(new.entry.args or ()),
        kwargs=dict(new.entry.kwargs or {}),
        options=_options(new),
        policy=_policy(new, last),
        enabled=new.is_enabled and not (new.is_one_off and new.entry.total_run_count),
        note=new.note[:LONGEST_NOTE],
    ).checked(new.name)
    return Coming(content, since, new.entry.total_run_count or 0) if is_news else content


def _is_news(new: Newcomer, before: Found, state: RunState | None, since: int) -> bool:
    """True if the clock must go on at `since`. Otherwise it is already known, or is past that."""
    if not isinstance(before, Definition):
        return True
    if since <= before.since:
        return False
    is_taken = state is not None and state.key == before.key
    if not new.has_run and (state is None or is_taken):
        return False
    if state is None or not is_taken:
        return True
    return new.last_run_at is not None and new.last_run_at > state.last_run_at + _MILLISECOND


def _ceil(instant: datetime) -> int:
    """Returns milliseconds since 1970, rounded up: what ran at that instant must not run again."""
    found = milliseconds(instant)
    return found if instant.microsecond % 1000 == 0 else found + 1


def _timing(
    new: Newcomer, before: Found, since: int, last: datetime | None, is_news: bool, now: datetime
) -> Timing:
    schedule = new.entry.schedule
    if new.at is not None:
        if new.at <= now:
            raise EntryError(new.name, "schedule", to_text(new.at), "an instant that is to come")
        return Timing(every=_DAY, offset=_phase(_ceil(new.at), _DAY))
    if isinstance(schedule, (schedules.cron, schedules.every)):
        return timing_of(new.name, schedule)
    if is_interval(schedule):
        if schedule.relative:
            accepted = "one without relative=True: a crontab, or every(...) with an offset"
            raise EntryError(new.name, "schedule", repr(schedule), accepted)
        every = schedule.run_every.total_seconds()
        if isinstance(before, Definition) and not is_news:
            known = before.content.schedule
            if known.every == every:
                return known
        # It is due at the same instants as before.
        begins = since if last is not None else milliseconds(now)
        if new.starts is not None and not new.has_run:
            begins = _ceil(new.starts)
        return Timing(every=every, offset=_phase(begins, every))
    if isinstance(schedule, crontab) and hasattr(schedule, "_orig_minute"):
        return _line(new.name, schedule)
    raise EntryError(new.name, "schedule", str(schedule), _KINDS)


def _phase(at: int, every: float) -> float:
    """Returns the seconds, to the millisecond, from an instant of an interval to `at`."""
    span = round(every * 1000)
    return at % span / 1000 if span else 0.0


def _line(name: str, schedule: Any) -> Timing:
    """Returns the line of cron that is due at the same minutes."""
    if len(schedule.day_of_month) < 31 and len(schedule.day_of_week) < 7:
        accepted = "either days of the month or of the week: a line of cron runs where one is right"
        raise EntryError(name, "schedule", str(schedule), accepted)
    zone = None
    if type(schedule) is not crontab:  # it has a zone of its own
        zone = getattr(schedule.tz, "key", None) or str(schedule.tz)
    text, numbers = [], []
    for field, many in _FIELDS:
        found = getattr(schedule, field)
        own = getattr(schedule, f"_orig_{field}")
        listed = ",".join(map(str, sorted(found))) if len(found) < many else "*"
        numbers.append(listed)
        text.append("".join(own.split()) if isinstance(own, str) and listed != "*" else listed)
    for line in (" ".join(text), " ".join(numbers)):
        timing = Timing(cron=line, tz=zone)
        try:
            cron: Any = timing.schedule()
        except ValueError as exc:
            why = str(exc)
            continue
        if all(set(getattr(cron, name)) == set(getattr(schedule, name)) for name, _ in _FIELDS):
            return timing
        why = "it would run at other times"
    raise EntryError(name, "schedule", str(schedule), f"a line of cron: {why}")


def _options(new: Newcomer) -> dict[str, Any]:
    options = {key: value for key, value in (new.entry.options or {}).items() if value is not None}
    expires = options.get("expires")
    if isinstance(expires, timedelta):
        options["expires"] = expires.total_seconds()
    elif isinstance(expires, datetime) and new.ends is not None:
        del options["expires"]  # its policy has that
    if not options.get("headers"):
        options.pop("headers", None)
    return options


def _policy(new: Newcomer, last: datetime | None) -> dict[str, Any]:
    policy: dict[str, Any] = {}
    starts = new.starts if new.at is None else new.at
    if starts is not None and (not new.has_run or last is None or starts > last):
        policy["starts"] = to_text(starts)
    if new.ends is not None:
        policy["ends"] = to_text(new.ends)
    if new.is_one_off or new.at is not None:
        policy["once"] = True
    return policy
