"""Asks Celery's entries and schedules when they are due. Only this module looks into a schedule."""

from __future__ import annotations

import collections
import contextlib
import functools
import zlib
import zoneinfo
from collections.abc import Callable, Hashable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import celery
import celery.schedules
from celery.beat import ScheduleEntry
from celery.schedules import crontab

from . import clock
from .names import without_addresses
from .policies import Instants, Policy
from .runs import NEVER, RunState, end_of, from_milliseconds
from .schedules import cron, every
from .shown import Rule

_MINUTE = timedelta(minutes=1)
_LATEST = datetime(9999, 1, 1, tzinfo=timezone.utc)
#: Naive clocks show the local time of some zone: so far from UTC at most, in steps of this.
_FURTHEST_ZONE, _STEP_OF_ZONES = timedelta(hours=15), timedelta(minutes=15)
#: What a schedule of Celery's keeps of the process that it is in.
_OF_PROCESS = ("app", "_app", "nowfun", "tz", "utc_enabled")
#: Packages whose schedules and entries say when they are due from when they ran last.
_PLAIN = ("celery", "celery_zk_beat", "django_celery_beat", "sqlalchemy_celery_beat", "redbeat")
#: Ours, which know the instant themselves.
_OURS = (cron, every)
_STEADY = (crontab, celery.schedules.schedule, *_OURS)
#: The fields of a line of cron, by Celery's names.
_CRON = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
#: Instants whose offsets from UTC tell one time zone from another: always these, so that what
#: comes of it is the same each year.
_WINTER, _SUMMER = datetime(2025, 1, 1), datetime(2025, 7, 1)
#: What is not due for so long never is.
_NEVER = timedelta(days=36525)
#: Next instants of crontabs, by what they depend on, and how many are kept.
_known: dict[tuple[Any, ...], datetime] = {}
_MOST_KNOWN = 1000
#: So late a run may be, and its entry's clock goes on as if it were not.
_LITTLE = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
#: Of earlier releases what a crontab tells depends on whether it ran today.
_TELLS_CRONTABS = celery.VERSION >= (5, 7)


def next_run(entry: Any, last_run_at: datetime) -> datetime | None:
    """Returns when an entry that last ran at `last_run_at` (aware) is due again, in UTC, perhaps in
    the past; None if its schedule does not know it. For any thread."""
    schedule = entry.schedule
    try:
        if is_steady(schedule):
            return _next_of_steady(schedule, last_run_at)
        now, last = entry.default_now(), as_of(entry, last_run_at)
        if hasattr(schedule, "nowfun"):  # it would look at the clock again, a moment later
            schedule = copied_at(schedule, lambda: now)
        left: timedelta = schedule.remaining_estimate(last)
        return utc_of(entry, now) + left
    except Exception:
        return None


def least_gap(schedule: Any) -> timedelta:
    """Returns what lies between two instants of the schedule at least."""
    return _MINUTE if type(schedule) is crontab else timedelta()


def is_slow(schedule: Any) -> bool:
    """True if it takes long to compute when it is due next, and that is a minute away or more."""
    return isinstance(schedule, crontab)


def _next_of_steady(schedule: Any, last_run_at: datetime) -> datetime | None:
    """Many entries have the same crontab, and have run at the same time: then it is computed
    once."""
    if type(schedule) is every:
        return _computed(schedule, last_run_at)
    if is_slow(schedule):
        with contextlib.suppress(TypeError):  # not hashable, such as a time zone of dateutil
            key = (*_key_of(schedule), schedule.tz, last_run_at)
            found = _known.get(key)
            if found is None and (found := _computed(schedule, last_run_at)) is not None:
                if len(_known) >= _MOST_KNOWN:
                    _known.clear()
                _known[key] = found
            return found
    return _computed(schedule, last_run_at)


def _key_of(schedule: Any) -> tuple[Any, ...]:
    """Returns what a crontab's instants depend on, beside its time zone."""
    if type(schedule) is cron:
        return (schedule.instants,)
    fields = (frozenset(getattr(schedule, name)) for name in _CRON)
    return (*fields, schedule._orig_day_of_month == "*", schedule._orig_month_of_year == "*")


def _computed(schedule: Any, last_run_at: datetime) -> datetime | None:
    try:
        if type(schedule) in _OURS:
            return to_utc(schedule.following(last_run_at))
        # What is left, from any instant, and that instant make the next run, exactly; and it takes
        # half the time when the clock need not be asked. A copy, for beat uses it, too.
        now = last_run_at.astimezone(schedule.tz)
        left: timedelta = copied_at(schedule, lambda: now).remaining_estimate(now)
        return to_utc(last_run_at) + left
    except Exception:
        return None


def next_free(entry: Any, due: datetime | None, state: RunState) -> datetime | None:
    """Returns `due`, the entry's next run, or the first instant after it that has not run yet: a
    beat whose clock was ahead may have run some. An interval has no such instants."""
    if state.done and not counts_from_last_run(entry.schedule):
        for _ in state.done:
            end = None if due is None else end_of(state.done, due)
            if end is None:
                break
            due = next_run(entry, end)
    return due


def next_run_of(entry: Any, state: RunState) -> datetime | None:
    """Returns the next run of an entry of `beat_schedule` with this state, in UTC, perhaps in the
    past; None if its schedule does not know it. For any thread."""
    next_run_at = next_free(entry, next_run(entry, state.last_run_at), state)
    asked_at = ask_at(entry, state)
    return next_run_at if asked_at is None else max(asked_at, next_run_at or asked_at)


class _Fixed:
    """The instants of a schedule that has them whenever its entry ran last: see policies.py."""

    is_fixed = True

    def __init__(self, entry: Any) -> None:
        self._entry = entry
        #: Of what was asked last: `most`, `since`, the first instant that was not counted, and how
        #: many there were before that, no more than `most`.
        self._few: tuple[int, datetime, datetime | None, int] | None = None

    def beginning(self, instant: datetime) -> _Fixed:
        return self

    def after(self, instant: datetime) -> datetime | None:
        found = next_run(self._entry, instant)
        return found if found is None or found > instant else None

    def clock_before(self, instant: datetime) -> datetime:
        return instant - _MILLISECOND

    def last(self, since: datetime, until: datetime, most: int) -> datetime | None:
        following = self.after(since)
        if following is None or following > until or self._are_few(since, until, most):
            return None
        window = (following - since) * most
        while True:  # from near the end, for from its beginning there may be a hundred thousand
            start = max(since, until - window)
            found = collections.deque([since] if start == since else (), most + 1)
            each = self.after(start)
            while each is not None and each <= until:
                found.append(each)
                each = self.after(each)
            if start == since and len(found) <= most:
                self._few = most, since, each, len(found)
                return None
            if len(found) >= most:
                return found[-most]
            window *= 2

    def _are_few(self, since: datetime, until: datetime, most: int) -> bool:
        """True if we know from the last count that there are no more. So we need not count again
        for each run while missed instants run one after another."""
        if self._few is None or self._few[0] != most or self._few[1] > since:
            return False
        _, first, following, count = self._few
        while following is not None and following <= until and count < most:
            following, count = self.after(following), count + 1
        self._few = most, first, following, count
        return following is None or following > until


class _Every:
    """The instants of an interval, counted from the known instant `start`."""

    is_fixed = False

    def __init__(self, start: datetime, every: timedelta) -> None:
        self._start, self._every = start, every

    def beginning(self, instant: datetime) -> _Every:
        return self if instant == self._start else _Every(instant, self._every)

    def after(self, instant: datetime) -> datetime | None:
        count = max(0, (instant - self._start) // self._every + 1)
        try:
            return self._start + count * self._every
        except OverflowError:
            return None

    def clock_before(self, instant: datetime) -> datetime:
        return instant - self._every

    def last(self, since: datetime, until: datetime, most: int) -> datetime | None:
        count = (until - since) // self._every + 1
        return None if count <= most else since + (count - most) * self._every


def instants_of(entry: Any, due: datetime) -> Instants:
    """When an entry is due that is at `due`, after its last run."""
    schedule, period = entry.schedule, timedelta()
    if is_interval(schedule):
        period = schedule.run_every
        if schedule.relative:  # which rounds down what follows on its last run
            period = (next_run(entry, due) or due) - due
    return _Every(due, period) if period > timedelta() else _Fixed(entry)


def leaves_of(
    entry: Any, due: datetime | None, policy: Policy | None, state: RunState, seed: str
) -> datetime | None:
    """Returns when an entry's run for `due` leaves, by its policy; None if no run does."""
    if policy is None or due is None:
        return due
    instants = instants_of(entry, due)
    verdict = policy.decide(due, due, instants, state.ran, seed, state.due)
    return None if verdict.due is None else verdict.leaves


def counts_from_last_run(schedule: Any) -> bool:
    """True if the entry has no fixed instants at which it runs."""
    estimate = getattr(type(schedule), "remaining_estimate", None)
    if estimate is celery.schedules.schedule.remaining_estimate:
        return not schedule.relative
    return estimate is None or estimate is celery.schedules.BaseSchedule.remaining_estimate


def due_by_celery(entry: Any) -> datetime | None:
    """Returns when an entry is due after its last run, in UTC, perhaps in the past: the same as its
    `is_due()`. None if a class other than Celery's decides, or it is not known: ask the entry."""
    schedule, kind = entry.schedule, type(entry)
    if not is_steady(schedule) or (kind is not ScheduleEntry and not _is_celerys(kind)):
        return None
    if type(schedule) in _OURS:
        return _next_of_steady(schedule, to_utc(entry.last_run_at))
    if type(schedule) is crontab:
        return _next_of_steady(schedule, to_utc(entry.last_run_at)) if _TELLS_CRONTABS else None
    if schedule.relative or (celery.VERSION < (5, 7) and schedule.tz.utcoffset(None) is None):
        return _next_of_steady(schedule, to_utc(entry.last_run_at))
    try:
        at: datetime = to_utc(entry.last_run_at) + schedule.run_every
    except OverflowError:
        return None
    return at


def _is_celerys(kind: Any) -> bool:
    names = ("is_due", "default_now", "_next_instance", "__next__")
    return all(getattr(kind, name) is getattr(ScheduleEntry, name) for name in names)


def last_run(entry: Any, due: datetime, now: datetime) -> datetime:
    """Returns the `last_run_at` for a run that was due at `due` and is claimed now, both UTC. If
    the run is only a little late, the entry's clock continues from `due`: else each run of an
    interval would be later. So does that of a crontab that has no other instant since."""
    schedule = entry.schedule
    little = least_gap(schedule) or (_LITTLE if type(schedule) in _STEADY else timedelta())
    if is_interval(schedule):
        little = min(_LITTLE, schedule.run_every / 2)
    elif type(schedule) is every:  # else all that it missed within a second would run
        little = min(_LITTLE, schedule.interval)
    return due if now - due < little else max(due, now)


def is_interval(schedule: Any) -> bool:
    """True for an interval of Celery's own class."""
    return type(schedule) is celery.schedules.schedule


def is_steady(schedule: Any) -> bool:
    """True if :func:`next_run` always returns the same, whenever it is called."""
    return type(schedule) in _STEADY and schedule.nowfun is None and _is_apps_time(schedule)


def looks_at_clock(schedule: Any) -> bool:
    """True if its `is_due()`, which we must ask, depends on the present time."""
    return not is_steady(schedule) or (type(schedule) is crontab and not _TELLS_CRONTABS)


def _is_apps_time(schedule: Any) -> bool:
    """True if the app's clock shows the time in the zone of its settings. A user may have replaced
    `now`; it may be naive or of another zone."""
    app = schedule.app
    if getattr(type(app), "now", None) is celery.Celery.now and "now" not in vars(app):
        return True
    now = app.now()
    zone = schedule.tz
    return now.tzinfo is not None and now.utcoffset() == now.astimezone(zone).utcoffset()


def copied_at(schedule: Any, nowfun: Callable[[], datetime] | None) -> Any:
    """Copies a schedule with another clock (None: the app's). Much faster than :mod:`copy`, which
    parses a crontab again."""
    copied = object.__new__(type(schedule))
    vars(copied).update(vars(schedule), nowfun=nowfun)
    return copied


def schedule_text(schedule: Any) -> str:
    """Returns a text for people: ``every 10 s``, ``crontab 0 3 * * 1``,
    ``cron 0 3 * * 1 Europe/Berlin``, or the `repr` of another class."""
    if type(schedule) in _OURS:
        return str(schedule)
    if is_interval(schedule):
        return f"every {schedule.run_every.total_seconds():g} s"
    if type(schedule) is crontab:
        return repr(schedule)[1:].replace(":", "", 1).partition(" (")[0]
    return shown(schedule)


def rule_of(schedule: Any) -> Rule | None:
    """Of which :func:`schedule_of` makes a schedule that is due at the same instants; None where
    only its class knows them."""
    kind = type(schedule)
    if is_interval(schedule):
        every, relative = schedule.run_every.total_seconds(), schedule.relative is True
        return Rule(every=every, relative=relative)
    if (
        kind in _OURS
        or not isinstance(schedule, crontab)
        or kind.__module__.partition(".")[0] not in _PLAIN
    ):
        return None
    line = " ".join([_cron_field(getattr(schedule, f"_orig_{name}")) for name in _CRON])
    if kind is crontab:
        return Rule(cron=line)
    zone = getattr(schedule.tz, "key", None) or str(schedule.tz)
    return None if _zone(zone) is None else Rule(cron=line, zone=zone)


def _cron_field(value: Any) -> str:
    is_text = isinstance(value, (str, int))
    text = str(value) if is_text else ",".join(map(str, sorted(value)))
    return "".join(text.split())


def schedule_of(rule: Rule, app: Any) -> Any:
    """Makes a schedule of Celery's from a rule; None if the rule is damaged."""
    try:
        if rule.cron is None:
            every = timedelta(seconds=rule.every or 0)
            return celery.schedules.schedule(every, rule.relative, app=app)
        found = crontab(**dict(zip(_CRON, rule.cron.split(" "))), app=app)
        if rule.zone is not None:
            found.tz = _zone(rule.zone)
        return found if found.tz is not None else None
    except Exception:  # of its parser, which has several
        return None


def plan_of(schedule: Any) -> list[Any] | None:
    """As JSON has it, of which :func:`schedule_of_plan` makes a schedule that is due at the same
    instants; None where only its class knows them."""
    if type(schedule) is cron:
        zone = None if schedule.zone is None else schedule.zone.key
        return ["cron", schedule.expression, zone, schedule.name]
    if type(schedule) is every:
        return ["aligned", schedule.seconds, schedule.offset.total_seconds()]
    rule = rule_of(schedule)
    return None if rule is None else ["rule", rule.every, rule.relative, rule.cron, rule.zone]


def schedule_of_plan(plan: list[Any] | None, app: Any) -> Any:
    """Makes a schedule from a plan; None if the plan is damaged."""
    try:
        kind, *values = plan or [None]
        if kind == "rule":
            return schedule_of(Rule(*values), app)
        found = {"cron": cron, "aligned": every}[kind](*values)
        found.app = app
        return found
    except Exception:
        return None


def rule_text(rule: Rule, schedule: Any) -> str:
    """As :func:`schedule_text` of the schedule that was made of it, with its time zone, where that
    is not the app's."""
    if schedule is None:
        return f"crontab {rule.cron}" if rule.every is None else f"every {rule.every:g} s"
    text = schedule_text(schedule)
    if rule.zone is None or _offsets_of(schedule.tz) == _offsets_of(schedule.app.timezone):
        return text
    return f"{text} {rule.zone}"


@functools.lru_cache(256)
def _zone(name: str) -> tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except Exception:  # there are several that no zone has
        return None


def name_schedule(name: str, entry: Any) -> None:
    """Gives the entry's name to its schedule, if the schedule needs it. Then the entry gets a copy,
    because other entries may share the schedule."""
    schedule = entry.schedule
    if isinstance(schedule, cron) and schedule.needs_name:
        entry.schedule = schedule.named(name)


def in_zone(schedule: Any, zone: tzinfo) -> Any:
    """Returns the same schedule in another time zone."""
    copied = object.__new__(type(schedule))
    vars(copied).update(vars(schedule), tz=zone)
    return copied


def interval_of(schedule: Any) -> timedelta | None:
    """Returns the interval of a schedule, or None if it has none."""
    if type(schedule) is every:
        return schedule.interval
    return schedule.run_every if is_interval(schedule) else None


def why_never(entry: Any, now: datetime) -> str | None:
    """Returns why an entry is never due; None if it is due some time, or that is not known."""
    schedule = entry.schedule
    if not hasattr(schedule, "is_due"):
        what = "missing" if schedule is None else f"{schedule!r}"[:200]
        return f"its schedule is {what}: it is never due"
    try:
        with at_one_instant(schedule):
            due = now + schedule.remaining_estimate(as_of(entry, now))
    except (NotImplementedError, AttributeError):  # of a class that has only is_due()
        return None
    except Exception as exc:
        return f"its schedule, {schedule_text(schedule)}, fails: {type(exc).__name__}: {exc}"
    is_known = isinstance(due, datetime) and due - now > _NEVER
    return f"{schedule_text(schedule)} is never due" if is_known else None


def why_no_row(schedule: Any, keeps_zones: bool) -> str | None:
    """Returns why a scheduler that stores schedules in rows refuses one of ours."""
    if type(schedule) not in _OURS:
        return None
    why: str | None = schedule.why_no_row()
    if why is None and not keeps_zones and type(schedule) is cron and schedule.zone is not None:
        return f"{schedule!r} cannot be a row of this scheduler, which stores no time zones"
    return why


def shown(schedule: Any) -> str:
    """Returns the same checksum in every process, even if a class shows only its address."""
    kind: Any = type(schedule)
    is_silent = kind.__repr__ is object.__repr__
    return kind.__qualname__ if is_silent else without_addresses(repr(schedule))


def tells_instants(schedule: Any) -> bool:
    """True if :func:`instant_after` is correct for it: for intervals, and for known schedules that
    run at fixed instants. Instants of a user's class may depend on when one asks for them."""
    if is_interval(schedule):
        return bool(schedule.run_every > timedelta())
    package = type(schedule).__module__.partition(".")[0]
    return package in _PLAIN and not counts_from_last_run(schedule)


def instant_after(entry: Any, since: datetime, after: datetime | None) -> datetime | None:
    """Returns the first instant of an entry's schedule later than `after`; if `after` is None, the
    first at or after `since`. Both are UTC; an interval counts from `since`. None if there is
    none."""
    schedule = entry.schedule
    last = since - timedelta(microseconds=1) if after is None else after
    if is_interval(schedule) and schedule.relative is not True:
        return _Every(since, schedule.run_every).after(last)
    found = next_run(entry, last)
    return found if found is not None and found > last else None


def instants(entry: Any, since: datetime, until: datetime) -> Iterator[datetime]:
    """Yields the instants of an entry's schedule from `since` up to, not including, `until`."""
    found = instant_after(entry, since, None)
    while found is not None and found < until:
        yield found
        found = instant_after(entry, since, found)


def is_free(entry: Any) -> bool:
    """True if a user's class decides when it is due, perhaps not from its last run."""
    kinds = (type(entry), type(entry.schedule))
    return any(kind.__module__.partition(".")[0] not in _PLAIN for kind in kinds)


def timing(schedule: Any) -> Any:
    """Returns a value that stays equal until somebody changes when the entry is due. Fast."""
    kind = type(schedule)
    if kind is celery.schedules.schedule:
        return schedule.run_every
    if kind is crontab:
        return (
            schedule.minute,
            schedule.hour,
            schedule.day_of_week,
            schedule.day_of_month,
            schedule.month_of_year,
        )
    if kind in _OURS:
        return schedule.instants
    return _Fields(schedule)


class _Fields:
    """Those of a schedule of another class, as they were."""

    __slots__ = ("_fields", "_kind")

    def __init__(self, schedule: Any) -> None:
        self._kind = type(schedule)
        self._fields = dict(getattr(schedule, "__dict__", None) or {"itself": schedule})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Fields) or self._kind is not other._kind:
            return False
        try:
            return self._fields == other._fields
        except Exception:  # a value's __repr__ fails: changes of it are not seen
            return True


def checksum(schedule: Any) -> int:
    """Of what its class shows, and of its attributes: another one where it was changed."""
    values = {name: value for name, value in vars(schedule).items() if name not in _OF_PROCESS}
    text = f"{type(schedule).__qualname__} {shown(schedule)} {without_addresses(repr(values))}"
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def ask_at(entry: Any, state: RunState) -> datetime | None:
    """Returns when to ask an entry next whether it is due, as it said after its last run, in UTC.
    None: ask it now, because it did not say so, or its schedule has changed."""
    if state.ask is None or state.ask[1] != checksum(entry.schedule):
        return None
    return from_milliseconds(state.ask[0])


def zone_of(entry: Any) -> str | None:
    """Of an entry that runs by the hour of a time zone: that zone, as its offsets from UTC in
    winter and summer, ``+0100+0200``. Not its name: that has other spellings."""
    schedule = entry.schedule
    if not isinstance(schedule, crontab) and getattr(schedule, "relative", False) is not True:
        return None
    try:
        return _offsets_of(schedule.tz)
    except Exception:  # of a class of the user's
        return None


def _offsets_of(zone: Any) -> str | None:
    # Those of dateutil cannot be kept.
    return _offsets(zone) if isinstance(zone, Hashable) else _offsets.__wrapped__(zone)


@functools.lru_cache(64)
def _offsets(zone: tzinfo) -> str | None:
    offsets = [instant.replace(tzinfo=zone).strftime("%z") for instant in (_WINTER, _SUMMER)]
    return "".join(dict.fromkeys(offsets)) or None


def due_instant(entry: Any) -> datetime:
    """Returns the earliest instant, in UTC, at which an entry is due after its last run; now, if
    its schedule's class does not say."""
    now = utc_of(entry, entry.default_now())
    return _next_after_last(entry, now) or now


def _next_after_last(entry: Any, now: datetime) -> datetime | None:
    try:
        return to_utc(now + entry.schedule.remaining_estimate(entry.last_run_at))
    except Exception:  # a class that has only is_due()
        return None


def missed_instant(
    entry: Any, until: datetime, ask: bool = True
) -> tuple[datetime, datetime] | None:
    """Returns the earliest instant at which an entry was due after its last run, and the end of the
    search: `until`, or now if that is earlier (another machine's clock may be ahead). Both are UTC.
    None if it was not due by then. If its class does not say when: with `ask` we ask it whether it
    is due now; without, it counts as not due."""
    with at_one_instant(entry.schedule):
        now = utc_of(entry, entry.default_now())
        until = min(until, now)
        due = _next_after_last(entry, now)
        if due is None:
            return (until, until) if ask and entry.is_due()[0] else None
        return (due, until) if due <= until else None


@contextlib.contextmanager
def at_one_instant(schedule: Any) -> Iterator[None]:
    """Stops the clock of a schedule of Celery's inside the block. It reads its clock several times
    to compute when it is due: a pause in between would change the result."""
    if not hasattr(schedule, "nowfun"):  # a class of the user's, which need not have one
        yield
        return
    now, nowfun = schedule.now(), schedule.nowfun
    schedule.nowfun = lambda: now
    try:
        yield
    finally:
        schedule.nowfun = nowfun


def is_ahead(last_run_at: datetime, now: datetime) -> bool:
    """True if a last run is further in the future than clocks may differ; both are aware."""
    return last_run_at - now > _MINUTE


def to_utc(instant: datetime) -> datetime:
    """Returns an aware instant. Celery takes a naive one for UTC."""
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=timezone.utc)
    try:
        return min(max(instant.astimezone(timezone.utc), NEVER), _LATEST)
    except OverflowError:
        return NEVER if instant.year < NEVER.year else _LATEST


def utc_of(entry: Any, instant: datetime) -> datetime:
    """The UTC of an instant that the entry's own clock shows, or one that is in its manner. Where
    that clock is naive Celery takes both sides of each comparison for UTC, so that it does not
    matter which time they are; here it does."""
    if instant.tzinfo is not None:
        return to_utc(instant)
    return to_utc(to_utc(instant) - _offset(entry))


def has_run(entry: Any, instant: datetime) -> bool:
    """True if the entry's last run was at this instant, UTC, or after it."""
    last: datetime = entry.last_run_at
    return (utc_of(entry, last) if last.tzinfo is None else last) >= instant


def as_of(entry: Any, instant: datetime) -> datetime:
    """`instant` in the manner of the entry's own clock: its time zone, or naive."""
    schedule = entry.schedule
    # If the entry uses the app's clock, we need not read it.
    if is_steady(schedule):
        return instant.astimezone(schedule.app.timezone)
    zone = entry.default_now().tzinfo
    if zone is None:
        return (instant + _offset(entry)).replace(tzinfo=None)
    return instant.astimezone(zone)


def _offset(entry: Any) -> timedelta:
    """By how much the entry's own clock, if it is naive, is ahead of UTC; none where it is that of
    no zone."""
    now = entry.default_now()
    if now.tzinfo is not None:
        return timedelta()
    ahead: timedelta = now - clock.now().replace(tzinfo=None)
    if abs(ahead) > _FURTHEST_ZONE:
        return timedelta()
    return round(ahead / _STEP_OF_ZONES) * _STEP_OF_ZONES
