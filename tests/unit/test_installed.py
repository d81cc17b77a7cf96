"""What tells one `beat_schedule` from another."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab

from celery_zk_beat.gate.installed import digest_of

ENTRY: dict[str, Any] = {"task": "t", "schedule": 60.0, "args": (1,), "options": {"queue": "q"}}


@pytest.mark.parametrize(
    "other",
    [
        {"task": "u"},
        {"schedule": 61.0},
        {"schedule": crontab(minute=1)},
        {"args": (2,)},
        {"kwargs": {"a": 1}},
        {"options": {"queue": "p"}},
    ],
    ids=repr,
)
def test_it_tells_a_change(other: dict[str, Any]) -> None:
    assert digest_of({"e": ENTRY}) != digest_of({"e": {**ENTRY, **other}})
    assert digest_of({"e": ENTRY}) != digest_of({"f": ENTRY})


def test_it_is_the_same_in_each_process() -> None:
    code = (
        "from celery.beat import BeatLazyFunc, ScheduleEntry; from celery.schedules import crontab;"
        "from celery_zk_beat.gate.installed import digest_of;"
        "print(digest_of({'e': {'task': 't', 'schedule': crontab(hour=4),"
        "'args': (BeatLazyFunc(int), object())}, 5: {'schedule': 7, 'task': 'u'}}))"
    )
    run = [sys.executable, "-c", code]
    found = {subprocess.check_output(run, env={"PYTHONHASHSEED": seed}) for seed in "12"}
    here = digest_of(
        {
            5: {"task": "u", "schedule": 7},
            "e": {
                "args": (BeatLazyFunc(int), object()),
                "task": "t",
                "schedule": crontab(hour=4),
            },
        }
    )
    assert found == {f"{here}\n".encode()}


def test_an_entry_that_is_an_object() -> None:
    one, two = (ScheduleEntry("e", "t", schedule=seconds, last_run_at=0) for seconds in (5, 6))
    assert digest_of({"e": one}) != digest_of({"e": two})
