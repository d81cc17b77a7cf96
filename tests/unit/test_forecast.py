"""What will run: timelines, and what `zk-beat next` shows of them."""

from __future__ import annotations

import itertools
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar

from celery_zk_beat.forecast import Forecast, Outlook
from celery_zk_beat.runs import RunState
from celery_zk_beat.schedulers import scheduler_of
from celery_zk_beat.testing import timeline
from celery_zk_beat.upcoming import end_of, table_of, table_of_minutes, utc

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def app_of(zone: str = "UTC", policies: Any = None, **entries: Any) -> Celery:
    app = Celery("forecast", set_as_current=False)
    app.conf.timezone, app.conf.result_expires = zone, None
    app.conf.zk_beat_policies = policies or {}
    app.conf.beat_schedule = {
        name: {"task": "t", "schedule": every} for name, every in entries.items()
    }
    return app


def schedule_of(app: Celery, states: dict[str, RunState] | None = None, **more: Any) -> Outlook:
    scheduler, _ = scheduler_of(app)
    entries = scheduler.entries
    return Outlook(scheduler, scheduler.settings, entries, states or {}, (), NOON, **more)


def test_a_week() -> None:
    app = app_of(nightly=crontab(minute="0", hour="3"), often=schedule(6 * 3600))
    found = timeline(app, NOON, NOON + 2 * DAY)
    assert [run.due for run in found.runs_of("nightly")] == [NOON + 15 * HOUR, NOON + 39 * HOUR]
    assert [run.due for run in found.runs_of("often")] == [NOON + n * 6 * HOUR for n in range(1, 9)]
    assert [run.number for run in found.runs_of("often")] == [*range(1, 9)]
    assert [run.at for run in found.runs] == sorted(run.at for run in found.runs)
    assert not found.skips


def test_outages() -> None:
    """One run stands for all that was missed, unless a policy says something else."""
    policies = {"each": {"coalesce": "all"}, "strict": {"catch_up": 60}}
    hourly = crontab(minute="0")
    app = app_of(policies=policies, one=hourly, each=hourly, strict=hourly)
    outage = NOON + HOUR / 2, NOON + 3.5 * HOUR
    found = timeline(app, NOON, NOON + 4 * HOUR, outages=[outage])
    assert [run.due - NOON for run in found.runs_of("one")] == [HOUR, 4 * HOUR]
    assert [run.at - NOON for run in found.runs_of("one")] == [3.5 * HOUR, 4 * HOUR]
    assert [run.due - NOON for run in found.runs_of("each")] == [n * HOUR for n in (1, 2, 3, 4)]
    assert [run.due - NOON for run in found.runs_of("strict")] == [4 * HOUR]
    assert [(skip.due - NOON, skip.reason) for skip in found.skips] == [(HOUR, "catch_up")]


def test_last_runs_are_given() -> None:
    app = app_of(often=schedule(3600))
    found = timeline(app, NOON, NOON + 2 * HOUR, last_run_at={"often": "2026-06-01T11:30:00Z"})
    assert [run.due - NOON for run in found.runs] == [HOUR / 2, 1.5 * HOUR]


def test_once_and_jitter() -> None:
    app = app_of(
        policies={"a": {"once": True}, "b": {"jitter": 600}},
        a=crontab(minute="0"),
        b=crontab(minute="0"),
    )
    found = timeline(app, NOON, NOON + 5 * HOUR)
    assert len(found.runs_of("a")) == 1
    assert all(timedelta() < run.at - run.due < HOUR / 6 for run in found.runs_of("b"))
    assert found == timeline(app, NOON, NOON + 5 * HOUR)


def test_a_schedule_that_looks_at_the_clock() -> None:
    pytest.importorskip("ephem")
    app = app_of(sunrise=solar("sunrise", 52.5, 13.4))
    found = timeline(app, NOON, NOON + 3 * DAY)
    assert [run.due.hour for run in found.runs] == [2, 2, 2]


def test_one_that_is_always_due_has_an_end() -> None:
    class Always(schedule):
        def is_due(self, last_run_at: datetime) -> Any:
            return True, 0

    app = app_of(always=Always(60))
    scheduler, _ = scheduler_of(app)
    forecast = Forecast(scheduler, scheduler.settings, NOON, {})
    assert len(list(itertools.islice(forecast.until(NOON + HOUR), 3000))) == 3000
    assert forecast.now > NOON


@pytest.mark.parametrize(
    ("start", "end", "outages", "says"),
    [
        ("soon", NOON, (), "Invalid isoformat"),
        (datetime(2026, 1, 1), NOON, (), "expected an aware datetime"),
        (NOON, 5, (), "5: expected an aware"),
        (NOON, NOON, [(NOON + HOUR, NOON)], "ends before that"),
    ],
)
def test_bad_instants(start: Any, end: Any, outages: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        timeline(app_of(a=schedule(60)), start, end, outages)


def test_next_runs() -> None:
    states = {"often": RunState(NOON - HOUR / 2, 7)}
    found = schedule_of(app_of(often=schedule(3600), new=schedule(3600)), states)
    runs = list(found.runs(NOON, NOON + 2 * HOUR))
    assert [(run.entry, run.run, run.due - NOON) for run in runs] == [
        ("often", 8, HOUR / 2),
        ("new", 1, HOUR),
        ("often", 9, 1.5 * HOUR),
        ("new", 2, 2 * HOUR),
    ]
    assert [run.entry for run in found.runs(NOON, NOON + HOUR, "often")] == ["often"]


def test_from_a_later_instant() -> None:
    """Intervals keep their instants, and what is counted has been."""
    states = {"often": RunState(NOON - HOUR / 2, 7)}
    app = app_of(
        policies={"few": {"runs": 3}}, often=schedule(3600), few=crontab(minute="0", hour="3")
    )
    found = schedule_of(app, states)
    later = NOON + 3 * DAY
    runs = list(found.runs(later, later + HOUR))
    assert [(run.entry, run.due - later) for run in runs] == [("often", HOUR / 2)]
    assert not list(found.runs(later, later + 3 * DAY, "few"))
    assert len(list(found.runs(later - DAY, later + 3 * DAY, "few"))) == 1


def test_from_an_earlier_instant() -> None:
    """As if it were then."""
    states = {"often": RunState(NOON - HOUR / 2, 7), "night": RunState(NOON - 9 * HOUR, 3)}
    app = app_of(often=schedule(3600), night=crontab(minute="0", hour="3"))
    earlier = NOON - 3 * DAY
    runs = list(schedule_of(app, states).runs(earlier, earlier + DAY))
    assert [run.due - earlier for run in runs if run.entry == "night"] == [15 * HOUR]
    assert next(run.due - earlier for run in runs if run.entry == "often") == HOUR / 2


def test_clocks_change() -> None:
    app = app_of("Europe/Berlin", nightly=crontab(minute="30", hour="3"))
    found = schedule_of(app)
    begin = datetime(2026, 10, 23, 12, tzinfo=timezone.utc)
    runs = list(found.runs(begin, begin + 3 * DAY))
    assert [run.local for run in runs] == [
        "2026-10-24T03:30:00+02:00",
        "2026-10-25T03:30:00+01:00",
        "2026-10-26T03:30:00+01:00",
    ]
    assert [run.clocks_change for run in runs] == [None, "+02:00 to +01:00", None]
    lines = table_of(runs, NOON, lambda text, colour: text, 200, with_entry=True)
    assert "clocks change that day, +02:00 to +01:00" in lines[2]


def test_busy() -> None:
    """Short intervals are counted as they would run one by one."""
    app = app_of(
        fast=schedule(7), slow=schedule(90), nightly=crontab(minute="5"), policy=schedule(11)
    )
    app.conf.zk_beat_policies = {"policy": {"coalesce": "all"}}
    until = NOON + HOUR
    counted = schedule_of(app).busy(NOON, until)
    one_by_one: dict[datetime, int] = {}
    for run in schedule_of(app).runs(NOON, until):
        minute = run.at.replace(second=0, microsecond=0)
        one_by_one[minute] = one_by_one.get(minute, 0) + 1
    assert counted == one_by_one
    lines = table_of_minutes(counted, lambda text, colour: text, 200)
    assert len(lines) == 22
    assert "and 41 minutes with fewer" in lines[-1]


def test_instants_of_the_command_line() -> None:
    assert utc("2026-06-01T12:00", timezone(2 * HOUR)) == NOON - 2 * HOUR
    assert utc("2026-06-01T12:00Z", timezone(2 * HOUR)) == NOON
    assert end_of("+7d", NOON, lambda text: NOON) == NOON + 7 * DAY
    for text in ("+", "+7", "+x", "+7w", "+-1d"):
        with pytest.raises(ValueError, match="expected an instant, or"):
            end_of(text, NOON, lambda text: NOON)


def test_the_example_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, Any] = {}
    before = celery.current_app._get_current_object()
    try:
        exec(compile(code, "docs/testing.md", "exec"), names)
        names["test_invoices_run_after_an_outage"]()
    finally:
        before.set_current()
