"""``zk-beat check``: what it finds, and that it finds nothing where nothing is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import celery
import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule

from celery_zk_beat.checking import check_names
from celery_zk_beat.cli import _findings
from celery_zk_beat.nights import meetings
from celery_zk_beat.schedules import cron, every
from example_project.processes import REPOSITORY

SINCE = datetime(2026, 1, 1, tzinfo=timezone.utc)
YEAR = timedelta(days=365)


def app_of(schedule: dict[str, Any], **conf: Any) -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.result_expires = None
    app.conf.beat_scheduler = "celery_zk_beat:ZooKeeperScheduler"
    app.conf.beat_schedule = schedule
    app.conf.update(conf)

    @app.task(name="add", shared=False)
    def add(x: int, y: int = 0) -> int:
        return x + y

    return app


def lines(app: Celery) -> list[str]:
    return [str(each) for each in _findings(app)[0]]


def one(schedule: Any = 60, task: str = "add", args: Any = (1,), **fields: Any) -> dict[str, Any]:
    return {"a": {"task": task, "schedule": schedule, "args": args, **fields}}


class Own(schedule):
    def is_due(self, last_run_at: datetime) -> Any:
        return False, 1.0


def test_nothing_is_wrong() -> None:
    app = app_of(
        {
            **one(),
            "b": {"task": "add", "schedule": cron("~ 4 * * *"), "kwargs": {"x": 1, "y": 2}},
            "c": {"task": "add", "schedule": every(1), "args": [BeatLazyFunc(print)]},
            "d": {"task": "add", "schedule": crontab(), "args": (1,), "options": {"queue": "q"}},
            "e": {"task": "add", "schedule": Own(60), "args": (1,)},
        },
        zk_beat_policies={"a": {"jitter": 3}},
        beat_dburi="sqlite://",  # of another package
    )
    assert lines(app) == []
    assert _findings(app)[1] == 5


BACKEND = {"zk_beat_outcomes": "backend", "result_backend": "redis://127.0.0.1:1"}
#: An app, and a line for all that is wrong with it.
FINDINGS: dict[str, tuple[Callable[[], Celery], str]] = {
    "task": (
        lambda: app_of(one(task="ad")),
        "warning: a: its task 'ad' is not registered here: did you mean 'add'?",
    ),
    "arguments": (
        lambda: app_of(one(args=(object(),))),
        "error: a: its arguments cannot be encoded as json: EncodeError: Object of type object is "
        "not JSON serializable",
    ),
    "serializer": (
        lambda: app_of(one(options={"serializer": "jsn"})),
        "error: a: its arguments cannot be encoded as jsn: SerializerNotInstalled: No encoder "
        "installed for jsn",
    ),
    "taken": (
        lambda: app_of(one(args=())),
        "error: a: its task does not accept its arguments: add() missing 1 required positional "
        "argument: 'x'",
    ),
    "kinds": (
        lambda: app_of(one(args="12")),
        "error: a: its args must be a list or tuple, and its kwargs a dictionary",
    ),
    "no schedule": (
        lambda: app_of(one(None)),
        "error: a: its schedule is missing: it is never due",
    ),
    "failing": (
        lambda: app_of(one(crontab(minute=[]))),
        "error: a: its schedule, crontab [] * * * *, fails: ValueError: max() ",
    ),
    "fast": (lambda: app_of(one(0.5)), "warning: a: runs every 0.5 s, less than 1 s"),
    "aligned": (lambda: app_of(one(every(0.1))), "warning: a: runs every 0.1 s, less than 1 s"),
    "zero": (lambda: app_of(one(0)), "error: a: runs every 0 s, less than 1 s"),
    "unknown key": (
        lambda: app_of(one(shedule=60)),
        "error: a: cannot be made: TypeError: ",
    ),
    "value": (
        lambda: app_of(one(), zk_beat_hosts="a:b"),
        "error: zk_beat_hosts = 'a:b': 'a:b' is not a server",
    ),
    "name": (
        lambda: app_of(one(), zk_beat_host="a"),
        "error: zk_beat_host is not a setting of celery-zk-beat: did you mean zk_beat_hosts?",
    ),
    "namespace": (
        lambda: app_of(one(), CELERY_BEAT_SCHEDULE={}),
        "error: CELERY_BEAT_SCHEDULE has no effect: write beat_schedule",
    ),
    "misspelt": (
        lambda: app_of(one(), beat_shedule={}),
        "warning: beat_shedule is not a setting of Celery: did you mean beat_schedule?",
    ),
    "another scheduler": (
        lambda: app_of(one(), beat_scheduler="celery.beat:PersistentScheduler"),
        "warning: beat_scheduler = 'celery.beat:PersistentScheduler': a beat that is started with "
        "it takes no part in the election",
    ),
    "gated": (
        lambda: app_of(one(), zk_beat_scheduler="no.such:Scheduler"),
        "error: beat does not start: celery beat: zk_beat_scheduler = 'no.such:Scheduler'",
    ),
    "rows": (
        lambda: app_of(one(cron("0 0 L * *")), zk_beat_scheduler="redbeat:RedBeatScheduler"),
        "error: a: cron('0 0 L * *') cannot be a row of this scheduler: Celery's crontab has no",
    ),
    "zones": (
        lambda: app_of(one(cron("0 0 * * *", "UTC")), zk_beat_scheduler="redbeat:RedBeatScheduler"),
        "error: a: <cron 0 0 * * * UTC> cannot be a row of this scheduler, which stores no time",
    ),
    "no match": (
        lambda: app_of(one(), zk_beat_policies={"b*": {"jitter": 3}}),
        "warning: zk_beat_policies: 'b*' matches no entry",
    ),
    "ended": (
        lambda: app_of(one(), zk_beat_policies={"a": {"ends": "2020-01-01T00:00:00Z"}}),
        "warning: a: its policy has ended: 2020-01-01T00:00:00+00:00",
    ),
    "contradiction": (
        lambda: app_of(
            one(),
            zk_beat_policies={
                "*": {"ends": "2030-01-01T00:00:00Z"},
                "a": {"starts": "2031-01-01T00:00:00Z"},
            },
        ),
        "error: a: 'ends' is before 'starts' in its policy: it never runs",
    ),
    "own class": (
        lambda: app_of(one(Own(60)), zk_beat_policies={"a": {"jitter": 3}}),
        "warning: a: its policy is not applied: a class of yours says when it is due",
    ),
    "no backend": (
        lambda: app_of(one(), zk_beat_outcomes="backend"),
        "error: beat does not start: celery beat: zk_beat_outcomes = 'backend' needs "
        "result_backend, which is not set",
    ),
    "no start": (
        lambda: app_of(one(), **BACKEND, zk_beat_policies={"a": {"start_within": 3}}),
        "warning: a: 'start_within' needs task_track_started, or add counts as started only when",
    ),
    "no result": (
        lambda: app_of(
            one(options={"ignore_result": True}), **BACKEND, zk_beat_policies={"a": {"track": True}}
        ),
        "warning: a: the results of add are ignored, so what becomes of its runs is unknown",
    ),
    "one task id": (
        lambda: app_of(
            one(options={"task_id": "x"}), **BACKEND, zk_beat_policies={"a": {"track": True}}
        ),
        "warning: a: its runs have one task id, so what becomes of each is unknown",
    ),
}


@pytest.mark.parametrize("what", FINDINGS)
def test_what_is_wrong(what: str) -> None:
    """One line, and no other."""
    make, expected = FINDINGS[what]
    (found,) = lines(make())
    assert found.startswith(expected)
    assert "\n" not in found


def test_names_with_a_namespace() -> None:
    """As of Django: told as they are written there."""

    class Settings:
        CELERY_BEAT_MAX_LOOP_INTERVAL = 5
        CELERY_BEAT_SHEDULE: ClassVar[dict[str, Any]] = {}
        CELERY_BEAT_SCHEDULE: ClassVar[dict[str, Any]] = {}
        BEAT_SCHEDULE: ClassVar[dict[str, Any]] = {}

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Settings, namespace="CELERY")
    assert [str(each) for each in check_names(app.conf)] == [
        "error: BEAT_SCHEDULE has no effect: write CELERY_BEAT_SCHEDULE",
        "warning: CELERY_BEAT_SHEDULE is not a setting of Celery: did you mean "
        "CELERY_BEAT_SCHEDULE?",
    ]


# Nights -------------------------------------------------------------------------------------------

CELERYS = pytest.mark.skipif(celery.VERSION < (5, 7), reason="other releases do otherwise")


@pytest.mark.parametrize(
    ("that", "zone", "expected"),
    [
        (cron("30 4 * * *"), "Europe/Berlin", []),
        (cron("30 2 * * *"), "UTC", []),
        (cron("30 * * * *"), "Europe/Berlin", []),
        (every(3600), "Europe/Berlin", []),
        (
            cron("30 2 * * *"),
            "Europe/Berlin",
            [
                (True, "2026-03-29, 02:30 is skipped: runs at 03:00 CEST"),
                (True, "2026-10-25, 02:00 to 03:00 comes twice: runs once, at 02:30 CEST"),
            ],
        ),
        (
            cron("30 2,3 * * *"),
            "Europe/Berlin",
            [
                (True, "2026-03-29, 02:30 is skipped: runs at 03:00 CEST"),
                (True, "2026-10-25, 02:00 to 03:00 comes twice: runs once, at 02:30 CEST"),
            ],
        ),
        (
            cron("*/20 2 * * *"),
            "Europe/Berlin",
            [
                (False, "2026-03-29, 02:00 and 2 more are skipped: does not run for it"),
                (
                    False,
                    "2026-10-25, 02:00 to 03:00 comes twice: runs both times, at 02:00 CEST, "
                    "02:00 CET",
                ),
            ],
        ),
        (
            cron("45 1 * * *"),
            "Australia/Lord_Howe",
            [(True, "2026-04-05, 01:30 to 02:00 comes twice: runs once, at 01:45 +11")],
        ),
        (
            cron("15 2 * * *"),
            "Australia/Lord_Howe",
            [(True, "2026-10-04, 02:15 is skipped: runs at 02:30 +11")],
        ),
        pytest.param(
            crontab(minute=30, hour=2),
            "Europe/Berlin",
            [
                (True, "2026-03-29, 02:30 is skipped: runs at 03:30 CEST"),
                (True, "2026-10-25, 02:00 to 03:00 comes twice: runs once, at 02:30 CEST"),
            ],
            marks=CELERYS,
        ),
        pytest.param(
            crontab(minute="*/15"),
            "Europe/Berlin",
            [
                (
                    False,
                    "2026-10-25, 02:00 to 03:00 comes twice: does not run in the second of them",
                )
            ],
            marks=CELERYS,
        ),
    ],
)
def test_nights(that: Any, zone: str, expected: list[tuple[bool, str]]) -> None:
    app = app_of(one(that), timezone=zone)
    that.app = app
    vars(that).pop("tz", None)
    entry = app_entry(app)
    found = [(each.is_harmless, each.text) for each in meetings(entry, SINCE, SINCE + YEAR)]
    assert found == expected


def app_entry(app: Celery) -> Any:
    from celery_zk_beat import ZooKeeperScheduler

    return ZooKeeperScheduler(app).entries["a"]


def test_nights_are_of_the_year_to_come() -> None:
    """A warning for what runs twice, or not; a note for what runs once."""
    app = app_of(
        {
            **one(cron("*/20 2 * * *")),
            "b": {"task": "add", "args": (1,), "schedule": cron("5 2 * * *")},
        },
        timezone="Europe/Berlin",
    )
    found = sorted(_findings(app)[0], key=str)
    assert [(each.level, each.entry) for each in found] == [
        *[("note", "b")] * 2,
        *[("warning", "a")] * 2,
    ]


# The command --------------------------------------------------------------------------------------


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", "zk-beat", "check", *args],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{REPOSITORY}", "PATH": ""},
        capture_output=True,
        text=True,
    )


def test_the_command(tmp_path: Path) -> None:
    """No server is there. Errors make it 1, warnings with --strict alone."""
    proj = tmp_path / "proj.py"
    proj.write_text(
        "from celery import Celery\n"
        "app = Celery('proj', broker='redis://127.0.0.1:1')\n"
        "app.conf.beat_scheduler = 'celery_zk_beat:ZooKeeperScheduler'\n"
        "app.conf.zk_beat_hosts = '127.0.0.1:1'\n"
        "app.conf.beat_schedule = {'a': {'task': 'b', 'schedule': 60}}\n"
    )
    text = "warning: a: its task 'b' is not registered here"
    plain, strict = run(tmp_path), run(tmp_path, "--strict")
    assert plain.stderr == strict.stderr == ""
    assert plain.stdout == f"{text}\n2 entries: 0 errors, 1 warning, 0 notes\n" == strict.stdout
    assert (plain.returncode, strict.returncode) == (0, 1)
    proj.write_text(proj.read_text() + "app.conf.zk_beat_root = 'x'\n")
    told = run(tmp_path, "--json")
    assert told.returncode == 1
    error, *_ = json.loads(told.stdout)["findings"]
    assert (error["level"], error["kind"], error["entry"]) == ("error", "setting", None)
