"""In which order entries are looked at, and that what is computed is what Celery would answer."""

from __future__ import annotations

import copy
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.agenda import Agenda, Seen
from celery_zk_beat.due import as_of, at_one_instant, due_by_celery, last_run
from celery_zk_beat.paths import page_of
from celery_zk_beat.schedules import every as aligned

from .test_next_run import APPS, ZONES, instants, schedules

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
MILLISECOND = timedelta(milliseconds=1)


def taken(agenda: Agenda, now: float, together: float = 0.0) -> list[str]:
    found = []
    while (item := agenda.pop_come(now, together)) is not None:
        found.append(item.name)
    return found


def test_what_has_come_and_no_more() -> None:
    agenda = Agenda()
    assert agenda.next_at == math.inf
    agenda.put("later", 3.0)
    agenda.put("sooner", 2.0)
    assert agenda.next_at == 2.0
    assert taken(agenda, 1.0) == []
    assert taken(agenda, 2.0) == ["sooner"]
    agenda.clear()
    assert agenda.next_at == math.inf


def test_page_by_page() -> None:
    """However many pages there are, each is written once for all that is due on it."""
    agenda = Agenda()
    for number in range(2000):
        agenda.put(f"e{number}", 1.0)
    pages = [page_of(name) for name in taken(agenda, 1.0)]
    assert pages == sorted(pages)
    assert len(pages) == 2000


def test_what_is_put_back_comes_first() -> None:
    agenda = Agenda()
    for number in range(5):
        agenda.put(f"e{number}", 1.0)
    items = [agenda.pop_come(1.0) for _ in range(3)]
    agenda.put_back(item for item in items[1:] if item is not None)
    assert agenda.next_at == -math.inf
    assert agenda.pop_come(0.0) == items[1]
    assert agenda.pop_come(0.0) == items[2]


def test_what_is_taken_off_does_not_come() -> None:
    """Neither from the heap nor of what has come already; what is put afterwards does. What is left
    behind is bounded."""
    agenda = Agenda()
    for number in range(4):
        agenda.put(f"e{number}", 1.0)
    come = agenda.pop_come(1.0)
    assert come is not None
    agenda.put_back([come])
    for name in (come.name, "e3" if come.name != "e3" else "e2"):
        agenda.take_off(name)
    agenda.put(come.name, 2.0)
    assert len(taken(agenda, 1.0)) == 2
    assert taken(agenda, 2.0) == [come.name]
    for number in range(10_000):
        agenda.put(f"e{number % 3}", 5.0 + number)
        agenda.take_off(f"e{number % 3}")
        agenda.put(f"other {number}", 1e6)
    for number in range(10_000):
        agenda.take_off(f"other {number}")
    assert len(agenda._heap) + len(agenda._gone) < 10_000
    assert taken(agenda, 1e9) == []


def test_what_is_due_soon_comes_together() -> None:
    """But not what must be asked, for it would only say that it is not due yet."""
    agenda = Agenda()
    agenda.put("first", 1.0, NOW)
    agenda.put("soon", 1.01, NOW)
    agenda.put("asked", 1.015)
    agenda.put("behind it", 1.018, NOW)
    assert sorted(taken(agenda, 1.0, 0.02)) == ["first", "soon"]
    assert taken(agenda, 0.99, 0.02) == [], "nothing has come that it could come with"


@given(schedules, instants, st.sampled_from(ZONES))
def test_as_celery_answers(schedule: Any, last_run_at: datetime, zone: str) -> None:
    """An entry is due at the instant that is computed, and is not just before."""
    entry = ScheduleEntry("e", "t", schedule=schedule, app=APPS[zone])
    schedule.app = APPS[zone]
    entry.last_run_at = as_of(entry, last_run_at)
    due = due_by_celery(entry)
    assert due is not None
    for now, expected in ((due, True), (due - MILLISECOND, False)):
        with at_one_instant(schedule):
            schedule.nowfun = lambda now=now, tz=entry.last_run_at.tzinfo: now.astimezone(tz)
            assert entry.is_due().is_due is expected


def test_who_has_a_say_is_asked() -> None:
    class Schedule(schedule):
        pass

    class Entry(ScheduleEntry):
        def is_due(self) -> Any:
            return super().is_due()

    app = APPS["UTC"]
    assert due_by_celery(ScheduleEntry(schedule=schedule(1.0), app=app)) is not None
    assert due_by_celery(ScheduleEntry(schedule=Schedule(1.0), app=app)) is None
    assert due_by_celery(Entry(schedule=schedule(1.0), app=app)) is None
    clock = schedule(1.0, nowfun=lambda: NOW)
    assert due_by_celery(ScheduleEntry(schedule=clock, app=app)) is None


@pytest.mark.parametrize(
    ("period", "late", "goes_on"),
    [
        (60.0, 0.0, 0.0),
        (60.0, 0.999, 0.0),
        (60.0, 1.0, 1.0),
        (1.0, 0.499, 0.0),
        (1.0, 0.5, 0.5),
        (60.0, -0.01, 0.0),  # claimed ahead of time
        (0.0, 0.1, 0.1),
    ],
)
def test_an_interval_keeps_its_rhythm(period: float, late: float, goes_on: float) -> None:
    """As long as it is not so late that two runs would come at once."""
    entry = ScheduleEntry(schedule=schedule(period), app=APPS["UTC"])
    seconds = timedelta(seconds=late)
    assert last_run(entry, NOW, NOW + seconds) == NOW + timedelta(seconds=goes_on)


@pytest.mark.parametrize(
    ("late", "goes_on"), [(-0.01, 0.0), (0.0, 0.0), (1.0, 0.0), (59.999, 0.0), (60.0, 60.0)]
)
def test_a_crontab_goes_on_from_its_instant(late: float, goes_on: float) -> None:
    """Unless it may have another since; and never from before it, for it would be due again."""
    entry = ScheduleEntry(schedule=crontab(), app=APPS["UTC"])
    seconds = timedelta(seconds=late)
    assert last_run(entry, NOW, NOW + seconds) == NOW + timedelta(seconds=goes_on)


@pytest.mark.parametrize(("late", "goes_on"), [(0.0, 0.0), (0.099, 0.0), (0.1, 0.1), (0.9, 0.9)])
def test_a_fast_aligned_interval(late: float, goes_on: float) -> None:
    """What it has missed does not run, not even within a second."""
    entry = ScheduleEntry(schedule=aligned(0.1), app=APPS["UTC"])
    seconds = timedelta(seconds=late)
    assert last_run(entry, NOW, NOW + seconds) == NOW + timedelta(seconds=goes_on)


def entries(count: int, kind: Any = 10.0) -> dict[str, ScheduleEntry]:
    app = APPS["UTC"]
    return {
        f"e{n}": ScheduleEntry(name=f"e{n}", task="t", schedule=copy.copy(kind), app=app)
        for n in range(count)
    }


def rounds(seen: Seen, of: dict[str, ScheduleEntry], most: int) -> list[bool]:
    """What the looks of one round say."""
    found = [seen.is_changed(of, len(of), most)]
    while seen.is_midway:
        found.append(seen.is_changed(of, len(of), most))
    return found


class Own:
    """A schedule that is none of Celery's."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> datetime:
        return NOW


@pytest.mark.parametrize(
    ("kind", "attribute", "value"),
    [
        (schedule(10.0), "run_every", timedelta(seconds=9)),
        (crontab(minute=5), "minute", {6}),
        (crontab(minute=5), "day_of_week", {6}),
        (Own(10.0), "seconds", 9.0),
    ],
)
def test_a_change_is_seen_within_a_round(kind: Any, attribute: str, value: Any) -> None:
    """Wherever it is, whatever says when it is due; and what is not changed is not."""
    of = entries(100, kind)
    for name in ("e0", "e50", "e99"):
        seen = Seen()
        assert seen.replace_all(of.items(), len(of)) == set()
        for _ in range(3):
            assert rounds(seen, of, 30) == [False] * 4  # no look is at more than 30
        before = getattr(of[name].schedule, attribute)
        setattr(of[name].schedule, attribute, value)
        assert any(rounds(seen, of, 30))
        assert seen.replace_all(of.items(), len(of)) == {name}
        assert not any(rounds(seen, of, 30))
        setattr(of[name].schedule, attribute, before)


def test_another_entry_of_the_name_is_seen() -> None:
    """Though it is like the one before: it does not know of its last run."""
    of, seen = entries(100), Seen()
    seen.replace_all(of.items(), len(of))
    of["e70"] = entries(100)["e70"]
    assert not seen.is_same("e70", of["e70"])
    assert any(rounds(seen, of, 30))
    seen.note("e70", of["e70"])
    assert seen.is_same("e70", of["e70"])
    assert not any(rounds(seen, of, 30))


def test_what_came_or_went_is_seen_at_once() -> None:
    of, seen = entries(100), Seen()
    seen.replace_all(of.items(), len(of))
    gone = of.pop("e99")
    assert seen.is_changed(of, len(of), 10)
    of["e100"] = gone
    assert any(rounds(seen, of, 10))


def test_a_schedule_that_cannot_be_compared() -> None:
    """Harms nobody."""

    class Odd(Own):
        def __init__(self) -> None:
            self.of = Incomparable()

    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise TypeError("no")

    of, seen = entries(3), Seen()
    of["e1"].schedule = Odd()
    seen.replace_all(of.items(), len(of))
    of["e1"].schedule = Odd()
    assert not any(rounds(seen, of, 10))
    of["e1"].schedule = None
    assert seen.replace_all(of.items(), len(of)) == {"e1"}
