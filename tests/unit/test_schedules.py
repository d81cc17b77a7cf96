"""``cron`` and ``every``: what they run, as docs/schedules.md tells it, and for whom."""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import celery
import pytest
from celery import Celery
from celery.beat import PersistentScheduler, ScheduleEntry, Scheduler
from celery.schedules import crontab, schedule

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.due import (
    checksum,
    counts_from_last_run,
    due_by_celery,
    is_free,
    next_run,
    rule_of,
    schedule_text,
    timing,
    zone_of,
)
from celery_zk_beat.names import Entries
from celery_zk_beat.schedules import _changes, changes, cron, every
from example_project.processes import REPOSITORY
from tests import zones

BERLIN = ZoneInfo("Europe/Berlin")
APP = Celery("x", set_as_current=False)
NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


def runs(that: Any, after: datetime, until: datetime) -> Iterator[datetime]:
    """Those of which Celery would hear, asked as it asks: at once after each run."""
    while True:
        that.nowfun = lambda now=after: now
        after = after + that.remaining_estimate(after)
        if after >= until:
            return
        yield after


# Nights -------------------------------------------------------------------------------------------

PAGE = (REPOSITORY / "docs" / "schedules.md").read_text()
#: Schedule, the night of spring, that of autumn.
ROWS = re.findall(r"^\| `((?:cron|every|crontab)\(.*\))` \| (.*) \| (.*) \|$", PAGE, re.M)
NIGHTS = (datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN))


def test_the_page_has_both_kinds() -> None:
    assert len([text for text, *_ in ROWS if text.startswith("crontab")]) >= 4
    assert len([text for text, *_ in ROWS if not text.startswith("crontab")]) >= 8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_that_night(row: tuple[str, str, str]) -> None:
    """The table says what runs from midnight to five."""
    text, *expected = row
    if text.startswith("crontab") and celery.VERSION < (5, 7):
        pytest.skip("the table is of Celery 5.7")
    names = {"cron": cron, "every": every, "crontab": crontab}
    for midnight, told in zip(NIGHTS, expected):
        that = eval(text, names)
        that.tz = BERLIN
        start = midnight.astimezone(timezone.utc)
        five = datetime(midnight.year, midnight.month, midnight.day, 5, tzinfo=BERLIN)
        found = [
            at.astimezone(BERLIN).strftime("%H:%M %Z")
            for at in runs(that, start - SECOND, five.astimezone(timezone.utc))
        ]
        assert (", ".join(found) or "never") == told


NAMED = {
    "Europe/Berlin",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Antarctica/Troll",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "Asia/Pyongyang",
}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_against_brute_force(name: str) -> None:
    """A sample of what `make zones` does. Whatever the year and the zone, the first and the last
    change are among them, and those of which the offset is another than an hour."""
    zone, chance = ZoneInfo(name), random.Random(name)
    found = [
        change
        for year in zones.YEARS
        for change, _ in _changes(zone, year)
        for change in (change.replace(tzinfo=timezone.utc),)
    ]
    sample = chance.sample(found, min(len(found), 4))
    assert sum(zones.check(zone, change, chance) for change in {found[0], found[-1], *sample}) > 50


def test_the_changes_of_a_zone_are_all_found() -> None:
    zone, years = ZoneInfo("Africa/Casablanca"), range(2008, 2016)
    found = [change for year in years for change, _ in _changes(zone, year)]
    assert [each.replace(tzinfo=timezone.utc) for each in found] == zones.changes(zone, years)


class _Restless(tzinfo):
    """Set at 03:00 and at 21:00 UTC of one day, and on the last second of a year."""

    CHANGES = (
        datetime(2026, 5, 5, 3),
        datetime(2026, 5, 5, 21),
        datetime(2026, 12, 31, 23, 59, 59),
    )

    def fromutc(self, at: datetime) -> datetime:
        return at + HOUR * sum(each <= at.replace(tzinfo=None) for each in self.CHANGES)

    def utcoffset(self, at: datetime | None) -> None:
        return None

    dst = tzname = utcoffset

    __hash__ = None  # type: ignore[assignment]


def test_changes_that_are_close() -> None:
    """Each is found, once; also of a zone that cannot be kept."""
    zone = _Restless()
    assert [at for year in (2026, 2027) for at, _ in _changes.__wrapped__(zone, year)] == [
        *_Restless.CHANGES
    ]
    until = datetime(2027, 2, 1, tzinfo=timezone.utc)
    assert [at.replace(tzinfo=None) for at, *_ in changes(zone, NOON - 60 * DAY, until)] == [
        *_Restless.CHANGES
    ]


def test_a_day_that_a_zone_leapt_over() -> None:
    """In Samoa there was no 30 December 2011."""
    apia = ZoneInfo("Pacific/Apia")
    daily = cron("30 2 * * *", "Pacific/Apia")
    end = datetime(2011, 12, 31, tzinfo=timezone.utc)
    found = [f"{at.astimezone(apia):%d %H:%M}" for at in runs(daily, end - 2 * DAY, end)]
    assert found == ["29 02:30", "31 00:00", "31 02:30"]


# Intervals ----------------------------------------------------------------------------------------


def test_every_is_aligned() -> None:
    """Whenever it ran last, and to the microsecond."""
    that = every(21600, offset=3600)
    for last in (NOON, NOON + 17 * SECOND, NOON + timedelta(hours=0.999)):
        assert that.following(last) == NOON + HOUR
    assert that.following(NOON + HOUR) == NOON + 7 * HOUR
    assert that.following(NOON + HOUR - timedelta(microseconds=1)) == NOON + HOUR
    assert every(0.1).following(NOON) == NOON + timedelta(seconds=0.1)
    assert every(timedelta(days=1)).following(NOON) == NOON + 12 * HOUR


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "told"),
    {
        "61 * * * *": "minute '61': expected 0 to 59",
        "* 24 * * *": "hour '24': expected 0 to 23",
        "* * 0 * *": "day of month '0': expected 1 to 31, L, LW",
        "* * * 13 *": "month '13': expected 1 to 12, jan to dec",
        "* * * * 8": "day of week '8': expected 0 to 7, sun to sat",
        "*/0 * * * *": "minute '*/0'",
        "5-1 * * * *": "minute '5-1'",
        "L * * * *": "minute 'L'",
        "* * * *": "4 fields, expected five",
        "0 * * * * *": "6 fields, expected five",
        "": "0 fields, expected five",
        "0 0 30 2 *": "there is no such day",
        "0 0 */5 2 6#5": "there is no such day",
        "5~3 * * * *": "minute '5~3': expected a~b from 0 to 59",
        "x~3 * * * *": "minute 'x~3': expected ~ or a~b",
        "0 0 28~31 * *": "day of month '28~31': expected a~b from 1 to 28",
        "0 0 1 ~ *": "month '~': expected no ~",
    }.items(),
)
def test_bad_expressions(expression: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        cron(expression)
    assert str(caught.value).startswith(f"cron({expression!r}): ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc", 3, timezone.utc])
def test_bad_zones(tz: Any) -> None:
    with pytest.raises(ValueError, match=r"tz=.*: expected the name of a time zone"):
        cron("* * * * *", tz)


@pytest.mark.parametrize(
    ("seconds", "offset"),
    [
        *((seconds, 0) for seconds in (0, -1, "60", True, float("nan"), 1e300, 1 / 3)),
        *((60, offset) for offset in (60, -1, None)),
    ],
)
def test_bad_intervals(seconds: Any, offset: Any) -> None:
    with pytest.raises(ValueError, match=r"^every\(.*\): [^\n]+$"):
        every(seconds, offset)


def test_what_never_comes_is_far_away() -> None:
    """Of a date that is too late, too."""
    assert cron("0 0 1 1 *").following(datetime(9998, 12, 31, tzinfo=timezone.utc)).year == 9999
    assert every(1e9).following(datetime(9999, 12, 31, tzinfo=timezone.utc)).year == 9999


# `~` ----------------------------------------------------------------------------------------------


def test_a_minute_that_is_chosen() -> None:
    """By the hash of the name: the same in each process and release, and spread."""
    that = cron("10~19 ~ * * *")
    at = that.named("invoices").following(NOON)
    assert at.isoformat() == "2026-06-01T23:10:00+00:00"
    chosen = [that.named(f"tenant-{number}").following(NOON) for number in range(500)]
    assert {at.minute for at in chosen} == {*range(10, 20)}
    assert {at.hour for at in chosen} == {*range(24)}
    assert that.named("invoices") == that
    keyed = cron("10~19 ~ * * *", key="invoices")
    assert keyed.following(NOON) == that.named("invoices").following(NOON)
    assert keyed.named("other") is keyed
    assert cron("5 4 * * *").named("x").following(NOON) == cron("5 4 * * *").following(NOON)


def test_entries_may_share_one() -> None:
    """Each entry of ours has it told its own name; in a schedule that comes later, too."""
    app = Celery("shop", set_as_current=False)
    shared = cron("~ ~ * * *")
    app.conf.beat_schedule = {name: {"task": name, "schedule": shared} for name in "abc"}
    scheduler = ZooKeeperScheduler(app)
    scheduler.entries  # noqa: B018 - looked at
    scheduler.add(name="d", task="d", schedule=shared)
    scheduler._names.look_anew()
    found = {name: scheduler.entries[name].schedule.following(NOON) for name in "abcd"}
    assert found == {name: cron("~ ~ * * *", key=name).following(NOON) for name in "abcd"}
    assert len({*found.values()}) == 4
    assert shared.following(NOON) == cron("~ ~ * * *", key="").following(NOON)
    # As they were defined: the entries are not for ever taken for others.
    assert scheduler.schedules_equal(
        scheduler.schedule, {**ZooKeeperScheduler(app).schedule, "d": scheduler.entries["d"]}
    )


def test_names_are_told_when_the_schedule_is_looked_at() -> None:
    told: list[tuple[str, Any]] = []
    entries = Entries(lambda: {"a": 1}, False, lambda name, entry: told.append((name, entry)))
    entries.get()
    entries.get()
    assert told == [("a", 1)]


# For Celery ---------------------------------------------------------------------------------------

SCHEDULES = [
    cron("30 2 * * *", "Europe/Berlin"),
    cron("*/5 * * * *"),
    cron("~ 3 * * 1#2", key="a", app=APP),
    every(21600, offset=3600),
    every(0.5),
]


@pytest.mark.parametrize("that", SCHEDULES, ids=repr)
def test_pickle_and_equality(that: Any) -> None:
    again = pickle.loads(pickle.dumps(that))
    assert again == that
    assert repr(again) == repr(that)
    assert again.following(NOON) == that.following(NOON)
    assert [other for other in SCHEDULES if other == that] == [that]
    with pytest.raises(TypeError):
        hash(that)  # as Celery's own


def test_what_is_not_equal() -> None:
    assert cron("0 3 * * *") != crontab(minute="0", hour="3")
    assert crontab(minute="0", hour="3") != cron("0 3 * * *")
    assert cron("0 3 * * *") != cron("0 3 * * *", "Europe/Berlin")
    assert every(60) != schedule(60)
    assert schedule(60) != every(60)
    assert every(60) != every(60, 1)
    assert every(60) != timedelta(seconds=60)


@pytest.mark.parametrize("that", SCHEDULES, ids=repr)
def test_due_and_not_due(that: Any) -> None:
    """As Celery asks, also with naive times, which are UTC."""
    last = that.following(NOON)
    due = that.following(last)
    for moment, is_due in ((-SECOND / 10, False), (SECOND * 0, True), (SECOND / 10, True)):
        that.nowfun = lambda now=due + moment: now
        left = (due if not is_due else that.following(due + moment)) - (due + moment)
        assert that.is_due(last) == (is_due, left.total_seconds())
        assert that.is_due(last.replace(tzinfo=None)) == (is_due, left.total_seconds())
        assert that.remaining_estimate(last) == -moment
    that.nowfun = None


@pytest.mark.parametrize(("late", "is_due"), [(59, True), (60, True), (61, False)])
def test_starting_deadline(late: float, is_due: bool) -> None:
    app = Celery("strict", set_as_current=False)
    app.conf.beat_cron_starting_deadline = 60
    that = cron("0 * * * *", nowfun=lambda: NOON + late * SECOND, app=app)
    assert that.is_due(NOON - HOUR) == (is_due, 3600 - late)
    # The last that was missed counts, not the first.
    assert that.is_due(NOON - 5 * HOUR)[0] is is_due


def test_the_apps_zone_is_that_of_a_cron_without_one() -> None:
    app = Celery("berlin", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"
    assert cron("0 12 * * *", app=app).following(NOON) == NOON + 22 * HOUR
    assert cron("0 12 * * *", "UTC", app=app).following(NOON) == NOON + DAY


class _Memory(Scheduler):
    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.sent.append(entry.name)

    sent: list[str]


def test_plain_beat_runs_them() -> None:
    app = Celery("plain", broker="memory://", set_as_current=False)
    app.conf.result_expires = None
    app.conf.beat_schedule = {"a": {"task": "a", "schedule": cron("* * * * *")}}
    app.conf.beat_schedule["b"] = {"task": "b", "schedule": every(60)}
    scheduler = _Memory(app)
    scheduler.sent = []
    for entry in scheduler.schedule.values():
        entry.last_run_at -= timedelta(minutes=5)
    scheduler.populate_heap()
    for _ in range(3):
        scheduler.tick()
    assert sorted(scheduler.sent) == ["a", "b"]


def test_a_file_keeps_them(tmp_path: Path) -> None:
    app = Celery("file", broker="memory://", set_as_current=False)
    app.conf.result_expires = None
    entries = {f"{index}": {"task": "t", "schedule": that} for index, that in enumerate(SCHEDULES)}
    app.conf.beat_schedule = entries
    for _ in range(2):
        scheduler = PersistentScheduler(app, schedule_filename=str(tmp_path / "schedule"))
        found = {name: entry.schedule for name, entry in scheduler.schedule.items()}
        assert found == {name: fields["schedule"] for name, fields in entries.items()}
        scheduler.close()


# For ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("that", SCHEDULES, ids=repr)
def test_they_are_first_class(that: Any) -> None:
    """Computed, not asked; with fixed instants; no class of the user's."""
    that.app, that.nowfun = APP, None
    entry = ScheduleEntry("a", "a", NOON, 3, that, app=APP)
    assert due_by_celery(entry) == next_run(entry, NOON) == that.following(NOON)
    assert not counts_from_last_run(that)
    assert not is_free(entry)
    assert timing(that) == timing(pickle.loads(pickle.dumps(that)))
    assert checksum(that) == checksum(that)
    assert rule_of(that) is None
    # One with a clock of its own is asked.
    that.nowfun = lambda: NOON
    assert due_by_celery(entry) is None
    assert next_run(entry, NOON) == that.following(NOON)
    that.nowfun = None


def test_text_and_zone() -> None:
    texts = [schedule_text(that) for that in SCHEDULES]
    assert texts == [
        "cron 30 2 * * * Europe/Berlin",
        "cron */5 * * * *",
        "cron ~ 3 * * 1#2",
        "every 21600 s, offset 3600 s",
        "every 0.5 s, offset 0 s",
    ]
    berlin, interval = (ScheduleEntry("a", "a", NOON, 0, SCHEDULES[at], app=APP) for at in (0, 3))
    assert zone_of(berlin) == "+0100+0200"
    assert zone_of(interval) is None
    assert timing(cron("* * * * *")) != timing(cron("* * * * *", "UTC"))
    assert timing(cron("~ * * * *").named("a")) != timing(cron("~ * * * *").named("b"))
    assert timing(every(60)) != timing(every(60, 1))


# For who makes rows of them -----------------------------------------------------------------------


def fields_of(that: cron) -> str:
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    return " ".join(str(getattr(that, f"_orig_{name}")) for name in names)


def test_rows() -> None:
    """Where Celery's crontab can say the same, in its words."""
    for tz in (None, "Europe/Berlin"):
        assert fields_of(cron("*/20 5/9 * jan-mar *", tz)) == "0,20,40 5,14,23 * 1,2,3 *"
        assert fields_of(cron("0 0 * * 5-7", tz)) == "0 0 * * 0,5,6"
        assert fields_of(cron("0~0 0 * * *", tz, key="x")) == "0 0 * * *"
    assert cron("0 0 * * *", "Europe/Berlin").tz is BERLIN
    assert every(21600).run_every == timedelta(hours=6)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("0 0 L * *", "has no L"),
        ("0 0 LW * *", "has no L"),
        ("0 0 * * 1#2", "has no L"),
        ("0 0 * * 5L", "has no L"),
        ("0 0 1 * 1", "if both days match"),
        ("~ 0 * * *", "needs cron"),
    ],
)
def test_no_rows(expression: str, why: str) -> None:
    """Where a row would be due at other times; who only shows it, such as Sentry, can."""
    that = cron(expression)
    with pytest.raises(ValueError, match=why):
        fields_of(that)
    days = f"{that._orig_day_of_month} {that._orig_day_of_week}"
    assert days.split() == [expression.split()[2], expression.split()[4]]
    with pytest.raises(ValueError, match="which has no offsets"):
        every(60, 1).run_every  # noqa: B018 - it raises
    assert every(60, 1).seconds == 60
