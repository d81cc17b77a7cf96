"""Which instants a backfill runs, and its record."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar

from celery_zk_beat.backfills import LARGEST_BACKFILLS, Backfill, Backfills
from celery_zk_beat.due import instant_after, instants, tells_instants
from celery_zk_beat.errors import RootError
from celery_zk_beat.records import encode
from celery_zk_beat.schedules import cron, every

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
BACKFILL = Backfill(START, START + 5 * HOUR, 2.0, "ann@host1", START + 9 * HOUR, total=5)


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"
    return app


def entry(app: Celery, of: Any) -> ScheduleEntry:
    return ScheduleEntry("e", "t", schedule=of, app=app)


def test_an_interval_is_counted_from_the_beginning(app: Celery) -> None:
    """Of the range, which its end is no part of; whatever the entry's own clock says."""
    every = entry(app, schedule(HOUR, app=app))
    since = START + timedelta(minutes=7)
    found = [*instants(every, since, since + 3 * HOUR)]
    assert found == [since, since + HOUR, since + 2 * HOUR]
    # Where it is another now, it goes on after the last.
    often = entry(app, schedule(HOUR / 2, app=app))
    assert instant_after(often, since, since + HOUR) == since + 1.5 * HOUR


def test_a_crontab(app: Celery) -> None:
    """By the hours of the app's time zone; the first instant is one, if it is due then."""
    daily = entry(app, crontab(minute=30, hour=3, app=app))
    since = datetime(2026, 1, 5, 2, 30, tzinfo=timezone.utc)
    found = [*instants(daily, since, since + timedelta(days=3))]
    assert found == [since + timedelta(days=n) for n in range(3)]
    assert [*instants(daily, since + timedelta(seconds=1), since + timedelta(days=1))] == []


def test_each_night_once_where_clocks_change(app: Celery) -> None:
    """In order, whatever Celery makes of such a night."""
    for month in (3, 10):
        since = datetime(2026, month, 20, tzinfo=timezone.utc)
        for minute in ("0", "*/20"):
            hours = entry(app, crontab(minute=minute, app=app))
            found = [*instants(hours, since, since + timedelta(days=10))]
            assert found == sorted({*found})
            assert len(found) >= 239


def test_schedules_of_ours(app: Celery) -> None:
    """By a zone of their own, once in each night; and what is aligned stays so."""
    nightly = entry(app, cron("30 2 * * *", tz="Europe/Berlin"))
    since = datetime(2026, 10, 24, tzinfo=timezone.utc)
    found = [*instants(nightly, since, since + timedelta(days=3))]
    assert [at.hour for at in found] == [0, 0, 1]  # the clocks are set back in the second
    aligned = entry(app, every(21600, offset=3600))
    found = [*instants(aligned, since + HOUR / 2, since + 14 * HOUR)]
    assert found == [since + n * HOUR for n in (1, 7, 13)]


class Own(schedule):
    pass


class Estimating(schedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return HOUR


def test_who_tells(app: Celery) -> None:
    """An interval, and what runs at fixed instants of a class that we know."""
    for known in (
        schedule(HOUR, app=app),
        schedule(HOUR, relative=True, app=app),
        crontab(app=app),
        solar("sunrise", 52.5, 13.4, app=app),
        cron("* * * * *", tz="Asia/Tokyo"),
        every(60),
    ):
        assert tells_instants(known)
        found = instant_after(entry(app, known), START, None)
        assert found is not None
        assert found >= START
    for unknown in (Own(HOUR), Estimating(HOUR), schedule(timedelta()), object()):
        assert not tells_instants(unknown)


def test_nothing_is_left(app: Celery) -> None:
    """Where it never fires, or not before the year 9999."""
    assert instant_after(entry(app, schedule(timedelta(days=10**6))), START, None) == START
    far = entry(app, schedule(timedelta(days=10**7), app=app))
    assert instant_after(far, START, START) is None


def test_a_record_can_be_read_again() -> None:
    begun = BACKFILL.after_claim(START + HOUR)
    assert (begun.after, begun.done) == (START + HOUR, 1)
    both = Backfills().having("a", BACKFILL).having("b", begun)
    assert Backfills.decode("/b", both.encode()) == both
    assert both.having("a", None) == Backfills({"b": begun})
    assert Backfills.decode("/b", b"") == Backfills()
    assert not Backfills()
    assert b"key" not in both.encode()
    of_row = Backfills().having("a", replace(BACKFILL, key="17"))
    assert Backfills.decode("/b", of_row.encode()) == of_row


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": None},
        {"since": "1960-01-01T00:00:00+00:00"},
        {"since": "2026-01-02T00:00:00+00:00"},
        {"until": "9999-12-31T00:00:00+00:00"},
        {"after": "2025-01-01T00:00:00+00:00"},
        {"after": "2026-01-01T05:00:00+00:00"},
        {"after": 7},
        {"rate": 0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"rate": 1000},
        {"rate": True},
        {"rate": "1"},
        {"done": -1},
        {"done": 2**53 - 1},
        {"total": "many"},
        {"by": None},
        {"key": 17},
    ],
    ids=str,
)
def test_damaged(wrong: dict[str, Any]) -> None:
    """What would run instants that are none, for ever, or all at once."""
    data = encode({"entries": {"a": {**BACKFILL.fields(), **wrong}}})
    with pytest.raises(RootError, match="/backfills"):
        Backfills.decode("/backfills", data)


def test_too_large() -> None:
    large = b'{"format":2,"entries":{}}' + b" " * LARGEST_BACKFILLS
    with pytest.raises(RootError, match="/backfills: has 60025 bytes"):
        Backfills.decode("/backfills", large)
