"""What is told of another scheduler's entries: their schedules as data, and bounds."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery.schedules import crontab, schedule, solar
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.due import next_run, rule_of, rule_text, schedule_of
from celery_zk_beat.runs import NEVER, RunState
from celery_zk_beat.shown import (
    LARGEST,
    Index,
    Rule,
    ShownEntry,
    decode_shown,
    encode_shown,
    page_shown,
)
from celery_zk_beat.status.others import OtherEntry

from .test_next_run import APPS, ZONES, entry, instants, schedules

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
UTC = APPS["UTC"]


@given(schedules, instants, st.sampled_from(ZONES))
def test_a_rule_is_due_as_its_schedule(of: Any, last_run_at: datetime, zone: str) -> None:
    app = APPS[zone]
    rule = rule_of(of)
    assert rule is not None
    made = entry(schedule_of(rule, app), app)
    assert next_run(made, last_run_at) == next_run(entry(of, app), last_run_at)


@pytest.mark.parametrize(
    "package", ["django_celery_beat.tzcrontab", "sqlalchemy_celery_beat.tzcrontab"]
)
def test_a_crontab_with_a_zone_of_its_own(package: str) -> None:
    module = pytest.importorskip(package)
    from zoneinfo import ZoneInfo

    of = module.TzAwareCrontab("0", "3", tz=ZoneInfo("Asia/Tokyo"))
    rule = rule_of(of)
    assert rule == Rule(cron="0 3 * * *", zone="Asia/Tokyo")
    made = schedule_of(rule, UTC)
    assert rule_text(rule, made) == "crontab 0 3 * * * Asia/Tokyo"
    assert next_run(entry(made, UTC), NOW) == datetime(2026, 1, 1, 18, tzinfo=timezone.utc)
    same = Rule(cron="0 3 * * *", zone="Etc/UTC")
    assert rule_text(same, schedule_of(same, UTC)) == "crontab 0 3 * * *"


def test_fields_that_are_no_text() -> None:
    assert rule_of(crontab({30, 0}, 7, "1 , 2")) == Rule(cron="0,30 7 * * 1,2")


def test_what_no_rule_describes() -> None:
    """A class that may say something else."""

    class Own(crontab):
        pass

    class OwnInterval(schedule):
        pass

    assert [rule_of(each) for each in (Own(), OwnInterval(3), solar("sunset", 1, 1), None)] == (
        [None] * 4
    )


@pytest.mark.parametrize(
    "rule",
    [
        Rule(cron=""),
        Rule(cron="a b c d e f g"),
        Rule(cron="61 * * * *"),
        Rule(cron="* * * *"),
        Rule(cron="* * * * *", zone="Nowhere/Land"),
        Rule(cron="* * * * *", zone="../../etc/passwd"),
        Rule(every=1e15),
    ],
    ids=repr,
)
def test_a_rule_of_another_hand(rule: Rule) -> None:
    """It is shown as it is."""
    found = schedule_of(rule, UTC)
    assert rule_text(rule, found)
    other = OtherEntry("e", ShownEntry("t", rule), found)
    assert other.next_run_at(RunState(NOW, 1)) is None or found is not None


def test_a_page_is_bounded() -> None:
    """So is each text; what has no room is left out, the same by each master."""
    told = ShownEntry("t" * 1000, schedule="é" * 1000, next_run_at=NOW).to_json()
    entries = {f"{n:05}": told for n in range(1000)}
    data = encode_shown(entries.items())
    assert LARGEST - 3000 < len(data) < LARGEST + 100
    found = decode_shown("/p", data)
    assert [*found] == sorted(entries)[: len(found)]
    assert found["00000"] == ShownEntry("t" * 200, schedule="é" * 200, next_run_at=NOW)
    assert encode_shown(reversed(entries.items())) == data


def test_the_index_is_small() -> None:
    pages = {page_shown(str(n)): 2**32 - 1 for n in range(10_000)}
    index = Index("package.module:Class", pages)
    assert len(pages) == 256
    assert len(index.encode()) < 5000
    assert Index.decode("/i", index.encode()) == index


def told(**fields: Any) -> OtherEntry:
    shown = ShownEntry("t", **fields)
    return OtherEntry("e", shown, shown.rule and schedule_of(shown.rule, UTC))


HOURLY = Rule(every=3600.0)
RAN = RunState(NOW, 1, NOW)


@pytest.mark.parametrize(
    ("fields", "due"),
    [
        ({"rule": HOURLY}, NOW + HOUR),
        ({"rule": HOURLY, "start": NOW + 5 * HOUR}, NOW + 5 * HOUR),
        ({"rule": HOURLY, "start": NOW - 5 * HOUR}, NOW + HOUR),
        ({"rule": HOURLY, "since": NOW + 2 * HOUR}, NOW + 3 * HOUR),
        ({"rule": HOURLY, "since": NOW - 2 * HOUR}, NOW + HOUR),
        ({"rule": HOURLY, "is_disabled": True}, None),
        ({"rule": HOURLY, "error": "broken"}, None),
        ({"next_run_at": NOW + 2 * HOUR}, NOW + 2 * HOUR),
        # It ran since that was told.
        ({"next_run_at": NOW}, None),
        ({}, None),
    ],
    ids=repr,
)
def test_the_next_run(fields: dict[str, Any], due: datetime | None) -> None:
    assert told(**fields).next_run_at(RAN) == due


def test_the_next_run_of_what_never_ran() -> None:
    assert told(next_run_at=NOW).next_run_at(RunState(NEVER, 0)) == NOW


def test_an_instant_that_cannot_be_told() -> None:
    first = ShownEntry(start=datetime.min.replace(tzinfo=timezone.utc)).to_json()
    last = ShownEntry(start=datetime.max.replace(tzinfo=timezone.utc)).to_json()
    found = decode_shown("/p", encode_shown([("a", first), ("b", last)]))
    assert found["a"].start == NEVER
    assert found["b"].start == datetime(9999, 1, 1, tzinfo=timezone.utc)


def test_a_schedule_that_is_none() -> None:
    assert rule_of(SimpleNamespace()) is None
