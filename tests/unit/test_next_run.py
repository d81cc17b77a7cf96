"""When an entry is due next, as the status tells it, and as Celery's own schedules do."""

from __future__ import annotations

import functools
import itertools
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import celery
import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from dateutil import tz
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.due import (
    as_of,
    checksum,
    copied_at,
    due_instant,
    is_free,
    next_run,
    schedule_text,
    to_utc,
    utc_of,
    zone_of,
)
from celery_zk_beat.runs import NEVER

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe")
APPS = {zone: Celery("x", set_as_current=False) for zone in ZONES}
for zone, app in APPS.items():
    app.conf.timezone = zone

FIELDS = ("*", 0, 17, "*/7")
crontabs = st.builds(
    dict,
    minute=st.sampled_from(FIELDS),
    hour=st.sampled_from((*FIELDS[:2], 2, "1-3")),
    day_of_week=st.sampled_from(("*", "mon-fri", 0)),
    day_of_month=st.sampled_from(("*", 1, 29)),
).map(lambda fields: crontab(**fields))
intervals = st.builds(
    schedule, st.floats(0.5, 1e6).map(lambda seconds: timedelta(seconds=seconds)), st.booleans()
)
# Until some release after 5.5 the estimate of a crontab depends on whether it ran today.
schedules = crontabs | intervals if celery.VERSION >= (5, 7) else intervals
instants = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(timezone.utc))


def entry(schedule: Any, app: Celery) -> Any:
    schedule.app = app
    return SimpleNamespace(schedule=schedule, default_now=schedule.now)


@given(schedules, instants, st.sampled_from(ZONES))
def test_as_celery_has_it(schedule: Any, last_run_at: datetime, zone: str) -> None:
    """It is now and what Celery's estimate says is left: in every zone, at every change of the
    clocks, for every kind of schedule."""
    that = entry(schedule, APPS[zone])
    before = datetime.now(timezone.utc)
    left = schedule.remaining_estimate(as_of(that, last_run_at))
    after = datetime.now(timezone.utc)
    told = next_run(that, last_run_at)
    assert told is not None
    assert before + left <= told <= after + left
    assert schedule.nowfun is None


def test_exactly() -> None:
    """To the microsecond, and to the full minute."""
    last = datetime(2026, 3, 28, 23, 30, 1, 234567, timezone.utc)
    berlin = APPS["Europe/Berlin"]
    assert next_run(entry(schedule(10), berlin), last) == last + timedelta(seconds=10)
    assert next_run(entry(crontab(minute=0, hour=5), berlin), last) == datetime(
        2026, 3, 29, 3, 0, tzinfo=timezone.utc
    )


def test_exactly_with_a_clock_of_its_own() -> None:
    """The clock is looked at once: a moment between two looks would show, a second early."""
    berlin, now = APPS["Europe/Berlin"], itertools.count()

    def nowfun() -> datetime:
        later = timedelta(microseconds=next(now))
        return (datetime(2026, 3, 28, 23, 30, tzinfo=timezone.utc) + later).astimezone(
            berlin.timezone
        )

    last = datetime(2026, 3, 28, 23, 30, 1, 234567, timezone.utc)
    clocked = crontab(minute=0, hour=5, nowfun=nowfun)
    due = datetime(2026, 3, 29, 3, 0, tzinfo=timezone.utc)
    assert next_run(entry(clocked, berlin), last) == due
    assert clocked.nowfun is nowfun


class Odd(schedule):
    """Celery's own, but for the answer."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return timedelta(seconds=5)


class Broken(schedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        raise RuntimeError


class TzAwareCrontab(crontab):
    """As of django-celery-beat, which is a package that is known."""

    __module__ = "django_celery_beat.tzcrontab"


class Bare:
    """No class of Celery's; it has what beat needs, and no clock."""

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        return False, 60.0


def test_classes_of_the_users() -> None:
    now = datetime.now(timezone.utc)
    soon = next_run(entry(Odd(60), APPS["UTC"]), now)
    assert soon is not None
    assert now + timedelta(seconds=5) <= soon < now + timedelta(seconds=60)
    assert next_run(entry(Broken(60), APPS["UTC"]), now) is None
    assert next_run(SimpleNamespace(schedule=Bare(), default_now=lambda: now), now) is None


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (schedule(10), "every 10 s"),
        (schedule(0.25), "every 0.25 s"),
        (schedule(3600.0), "every 3600 s"),
        (crontab(minute="*/15", day_of_week="mon-fri"), "crontab */15 * * * mon-fri"),
        (Bare(), "Bare"),
    ],
)
def test_schedule_text(schedule: Any, text: str) -> None:
    assert schedule_text(schedule) == text


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York", "Asia/Kathmandu", "UTC"])
@pytest.mark.parametrize(
    "that", [schedule(3600), crontab(minute="*/20"), crontab(minute=0, hour=4)]
)
def test_a_naive_clock_of_the_app(zone: str, that: Any) -> None:
    """`app.now` is local time: an entry is due when Celery, which compares naive times, says so;
    and what we note is UTC."""
    app = Celery("naive", set_as_current=False)
    app.conf.update(timezone=zone, enable_utc=False)
    app.now = lambda: datetime.now(ZoneInfo(zone)).replace(tzinfo=None)
    that = type(that)(that.run_every) if type(that) is schedule else crontab(*that.__reduce__()[1])
    each = entry(that, app)
    now = datetime.now(timezone.utc)
    last = now - timedelta(minutes=50)
    each.last_run_at = as_of(each, last)
    assert each.last_run_at.tzinfo is None
    assert utc_of(each, each.last_run_at) == last
    assert abs(utc_of(each, app.now()) - now) < timedelta(seconds=30)
    left = that.remaining_estimate(each.last_run_at)
    told = next_run(each, last)
    assert told is not None
    for instant in (told, due_instant(each)):
        assert abs(instant - now - left) < timedelta(seconds=30)


def test_a_clock_of_the_app_in_another_zone() -> None:
    app = Celery("other", set_as_current=False)
    app.conf.timezone = "Asia/Tokyo"
    app.now = lambda: datetime.now(ZoneInfo("Europe/Berlin"))
    each = entry(crontab(minute=0, hour=5), app)
    last = datetime(2026, 3, 28, 23, 30, tzinfo=timezone.utc)
    before = datetime.now(timezone.utc)
    left = each.schedule.remaining_estimate(last.astimezone(ZoneInfo("Europe/Berlin")))
    told = next_run(each, last)
    assert told is not None
    assert abs(told - before - left) < timedelta(seconds=30)


@pytest.mark.parametrize("zone", [None, *ZONES, "America/New_York"])
def test_a_last_run_that_cannot_be(zone: str | None) -> None:
    """Near the first year, and the last, there is no time of day in other zones."""
    own = None if zone is None else ZoneInfo(zone)
    app = Celery("far", set_as_current=False)
    app.conf.timezone = zone
    if zone is None:
        app.now = lambda: datetime.now() + timedelta(hours=8)
    for that in (schedule(2), crontab(minute=0)):
        each = entry(that, app)
        for far in (datetime.min, datetime(1, 1, 2), datetime(1969, 1, 1)):
            for instant in (far.replace(tzinfo=timezone.utc), far.replace(tzinfo=own), far):
                found = utc_of(each, instant)
                assert found == NEVER
                due = next_run(each, found)
                assert due is not None
                assert due - NEVER <= timedelta(hours=1, seconds=1)
        for far in (datetime.max, datetime.max - timedelta(hours=3)):
            for instant in (far.replace(tzinfo=timezone.utc), far.replace(tzinfo=own), far):
                assert to_utc(instant).year >= 9998
                assert utc_of(each, instant).year >= 9998
                as_of(each, utc_of(each, instant))


def test_which_zone_an_entry_runs_by() -> None:
    zones = {}
    for zone in (*ZONES, "Europe/Paris", "Asia/Kolkata", "Etc/GMT", "Australia/Sydney"):
        app = Celery("zones", set_as_current=False)
        app.conf.timezone = zone
        zones[zone] = zone_of(entry(crontab(minute=0), app))
        assert zone_of(entry(schedule(60), app)) is None
        assert zone_of(entry(schedule(60, relative=True), app)) == zones[zone]
        assert zone_of(SimpleNamespace(schedule=Bare())) is None
    assert zones["UTC"] == zones["Etc/GMT"] == "+0000"
    assert zones["Europe/Berlin"] == zones["Europe/Paris"] == "+0100+0200"
    assert zones["Asia/Kolkata"] == "+0530"
    assert zones["Australia/Lord_Howe"] != zones["Australia/Sydney"] == "+1100+1000"


@pytest.mark.parametrize("zone", [tz.tzlocal(), tz.gettz("Europe/Berlin"), tz.UTC, None, "?"])
def test_odd_zones(zone: Any) -> None:
    """Those of dateutil cannot be kept in a dictionary."""

    class Own(crontab):
        tz = zone

    text = zone_of(entry(Own(minute=0), APPS["UTC"]))
    assert text == zone_of(entry(Own(minute=1), APPS["UTC"]))
    assert (text is None) == (zone is None or zone == "?")


def test_what_says_by_itself_when_it_is_due() -> None:
    class Named(Bare):
        def __repr__(self) -> str:
            return f"<Named at {id(self):#x}>"

    def made(schedule: Any) -> Any:
        now = datetime.now(timezone.utc)
        return ScheduleEntry("e", "task", now, schedule=schedule, app=APPS["UTC"])

    assert not any(map(is_free, map(made, (schedule(1), crontab(), TzAwareCrontab()))))
    assert all(map(is_free, map(made, (Odd(1), Bare(), Named()))))
    assert checksum(Odd(1)) == checksum(Odd(1)) != checksum(Odd(2))
    assert checksum(Bare()) == checksum(Bare()) != checksum(Named()) == checksum(Named())


def test_what_is_computed_once_for_many_crontabs() -> None:
    """It differs with each field, with the day of the month that stands for all, with the zone, and
    after a change in place."""
    at, app, berlin = datetime(2026, 6, 4, 10, 20, tzinfo=timezone.utc), APPS["UTC"], APPS[ZONES[1]]
    fields: list[dict[str, Any]] = [
        {},
        {"minute": 10},
        {"hour": 9},
        {"day_of_week": "fri"},
        {"day_of_month": 1},
        {"month_of_year": 8},
        {"minute": 0, "hour": 0},
    ]
    for each in fields * 2:
        for of in (app, berlin):
            that = entry(crontab(**each), of)
            # At that instant: before Celery 5.7 what is left depends on whether it ran today.
            then = functools.partial(at.astimezone, that.schedule.tz)
            left = copied_at(that.schedule, then).remaining_estimate(then())
            assert next_run(that, at) == at + left
    that = entry(crontab(minute=10), app)
    assert next_run(that, at) == at.replace(hour=11, minute=10)
    that.schedule.minute = {25}
    assert next_run(that, at) == at.replace(minute=25)
