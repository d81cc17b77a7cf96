"""``zk-beat diff``: what it says of two configurations."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

from celery_zk_beat.comparing import (
    ADDED,
    CHANGED,
    REMOVED,
    RENAMED,
    Difference,
    compare,
    pack,
    unpack,
)
from celery_zk_beat.due import next_run, plan_of, schedule_of_plan
from celery_zk_beat.errors import RootError
from celery_zk_beat.runs import RunState
from celery_zk_beat.schedules import cron, every

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
APP = Celery("x", set_as_current=False)


def entries(**schedules: Any) -> dict[str, Any]:
    return {name: entry(name, that) for name, that in schedules.items()}


def entry(name: str, that: Any, task: str = "t", args: Any = ()) -> Any:
    return ScheduleEntry(name, task, NOON, 0, that, args, app=APP)


def differences(
    before: dict[str, Any], after: dict[str, Any], ran: datetime = NOON - MINUTE
) -> list[Difference]:
    states = {name: RunState(ran, 3) for name in before}
    return compare(after, unpack(pack(before)), states, APP, NOON)


ALL = {
    "interval": schedule(60),
    "crontab": crontab(minute="*/7", hour=3),
    "cron": cron("30 2 * * *", "Europe/Berlin"),
    "chosen": cron("~ ~ * * *"),
    "every": every(21600, offset=3600),
    "own": type("Own", (schedule,), {})(60),
}


def test_nothing_differs() -> None:
    named = entries(**ALL)
    named["chosen"].schedule = named["chosen"].schedule.named("chosen")
    assert differences(named, named) == []


def test_plans() -> None:
    """Of which another process makes what is due at the same instants; of what another hand wrote
    it makes nothing."""
    named = entries(**ALL)
    named["chosen"].schedule = named["chosen"].schedule.named("chosen")
    for name, that in named.items():
        made = schedule_of_plan(json.loads(json.dumps(plan_of(that.schedule))), APP)
        if name == "own":
            assert made is None
        else:
            assert next_run(entry(name, made), NOON) == next_run(that, NOON)
    for plan in ([], ["cron"], ["cron", 3], ["what", 1], ["rule", "x"], ["aligned", -1], None):
        assert schedule_of_plan(plan, APP) is None


def test_added_and_removed() -> None:
    """A new entry's clock begins now."""
    assert differences(entries(a=schedule(60)), entries(b=schedule(90))) == [
        Difference(REMOVED, "a", None, ("t", "every 60 s"), NOON, None),
        Difference(ADDED, "b", None, ("t", "every 90 s"), None, NOON + 1.5 * MINUTE),
    ]


def test_changed() -> None:
    """The clock goes on."""
    (found,) = differences(entries(a=schedule(90)), entries(a=every(3600)))
    what = ("schedule: every 90 s -> every 3600 s, offset 0 s",)
    # The states are of 11:59.
    assert found == Difference(CHANGED, "a", None, what, NOON + MINUTE / 2, NOON)
    before = {"a": entry("a", 60.0, "t", (1,))}
    (found,) = differences(before, {"a": entry("a", 60.0, "u", (2,))})
    assert found.what == ("task: t -> u", "args, kwargs or options")
    assert found.before == found.after == NOON
    # Another class may be due at other times.
    assert len(differences(entries(a=ALL["own"]), entries(a=schedule(60)))) == 1


def test_what_a_tilde_chooses() -> None:
    one, other = (entries(a=cron("~ 4 * * *", key=key)) for key in ("x", "y"))
    (found,) = differences(one, other)
    assert (found.kind, found.before != found.after) == (CHANGED, True)


def test_renamed() -> None:
    """Where all but the name is as before; of each that is gone one."""
    before, after = entries(a=schedule(60), b=schedule(70)), entries(c=schedule(60), d=schedule(60))
    assert differences(before, after) == [
        Difference(REMOVED, "b", None, ("t", "every 70 s"), NOON + MINUTE / 6, None),
        Difference(RENAMED, "c", "a", ("t", "every 60 s"), NOON, NOON + MINUTE),
        Difference(ADDED, "d", None, ("t", "every 60 s"), None, NOON + MINUTE),
    ]
    (found,) = differences(entries(a=ALL["chosen"]), entries(b=ALL["chosen"]))
    assert found.kind == RENAMED


def test_another_zone_starts_the_clock_anew() -> None:
    """As a deploy does: nothing runs at once."""
    states = {"a": RunState(NOON - 48 * HOUR, 3, zone="+0000")}
    before = entries(a=cron("0 11 * * *", "UTC"))
    after = entries(a=cron("0 11 * * *", "Europe/Berlin"))
    (found,) = compare(after, unpack(pack(before)), states, APP, NOON)
    assert (found.before, found.after) == (NOON - 25 * HOUR, NOON + 21 * HOUR)


@pytest.mark.parametrize("text", ["", "x", "1234567890", pack({})[:-2]])
def test_an_answer_that_is_none(text: str) -> None:
    with pytest.raises(RootError, match="answer cannot be understood"):
        unpack(text)


def test_addresses_are_no_difference() -> None:
    """An argument whose repr shows where it lies."""
    one, other = ({"a": entry("a", 60.0, "t", (object(),))} for _ in range(2))
    assert differences(one, other) == []
