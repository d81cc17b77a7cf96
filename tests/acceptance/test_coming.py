"""`zk-beat import --from-...`: entries of other schedulers come over with their clocks, from their
own stores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery.schedules import crontab

from celery_zk_beat.command_line import NOT_DONE, UNREACHABLE
from celery_zk_beat.records import from_text
from example_project.servers import Redis, free_port, wait_until
from tests.conftest import PATIENCE
from tests.stores import Django, RedBeat, SQLAlchemy, Store

from .conftest import Site
from .test_cli import did, refused
from .test_live_entries import done, shown

HOUR, MOMENT = timedelta(hours=1), timedelta(milliseconds=2)


def now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture
def shop(site: Site) -> Site:
    site.conf.update(beat_schedule={}, zk_beat_entries=True, zk_beat_entries_tasks=["*"])
    return site


@pytest.fixture(params=["redbeat", "django", "sqlalchemy"])
def source(
    request: pytest.FixtureRequest, shop: Site, redis_server: Redis, tmp_path: Path
) -> Iterator[tuple[str, Store]]:
    """The option's word, and a hand in the store."""
    name = request.param
    store: Store
    if name == "redbeat":
        pytest.importorskip("redbeat")
        store = RedBeat(redis_server.url(2))
    elif name == "django":
        pytest.importorskip("django_celery_beat")
        store = Django(tmp_path, None)
    else:
        pytest.importorskip("sqlalchemy_celery_beat")
        from sqlalchemy_celery_beat.schedulers import session_manager

        session_manager.prepared = False  # that is of another test's database
        store = SQLAlchemy(tmp_path, None)
    shop.conf.update(store.conf)
    yield name, store
    store.close()


def entries(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(site, "export"))["entries"]
    return found


def due(site: Site, *names: str) -> dict[str, datetime]:
    """When these run next, once a master has them."""

    def look() -> dict[str, datetime] | None:
        told = json.loads(done(site, "status", "--json"))["entries"]
        found = {each["name"]: each["next_run_at"] for each in told if each["name"] in names}
        is_known = len(found) == len(names) and None not in found.values()
        return {name: from_text(at) for name, at in found.items()} if is_known else None

    return wait_until(look, PATIENCE, "the entries to be known")


def test_clocks_come_along(shop: Site, source: tuple[str, Store]) -> None:
    """What was due meanwhile runs at once, for the instant at which it was due; what ran does not
    run again, and intervals keep their instants."""
    name, store = source
    late, ran = now() - HOUR - timedelta(seconds=30), now() - timedelta(seconds=30)
    for entry, at in (("late", late), ("ran", ran), ("off", ran)):
        store.add(entry, 3600)
        store.set_last_run(entry, at)
    store.change("off", enabled=False)
    option = f"--from-{name}"
    did(shop.zk_beat("import", option, "--dry-run"), "3 to add.*\nnothing was changed")
    assert entries(shop) == {}
    did(shop.zk_beat("import", option), "3 entries are changed")
    did(shop.zk_beat("import", option), "0 to add, 0 to change, 0 to remove\nnothing was changed")
    assert abs(from_text(shown(shop, "late")["since"]) - late) < MOMENT
    assert not shown(shop, "off")["enabled"]
    master = shop.beat("one")
    master.wait_for_log("elected: one is master", PATIENCE)
    (run,) = shop.wait(lambda history: history, "a run of what was late")
    assert run.entry == "late"
    assert abs(run.due - late - HOUR) < MOMENT
    following = due(shop, "ran", "late")
    assert abs(following["ran"] - ran - HOUR) < MOMENT
    assert abs(following["late"] - late - 2 * HOUR) < MOMENT


def test_what_the_old_beats_ran_after_an_import_counts(
    shop: Site, source: tuple[str, Store]
) -> None:
    name, store = source
    store.add("a", 3600)
    store.set_last_run("a", now() - 2 * HOUR)
    did(shop.zk_beat("import", f"--from-{name}"), "1 entries are changed")
    ran = now() - timedelta(minutes=1)
    store.set_last_run("a", ran)
    did(shop.zk_beat("import", f"--from-{name}"), "~ a: schedule, clock since .*\n.*1 to change")
    assert abs(from_text(shown(shop, "a")["since"]) - ran) < MOMENT
    assert shown(shop, "a")["changes"][-1]["what"] == ["schedule", "clock"]


def test_what_an_election_ran_keeps_its_number_and_clock(
    shop: Site, source: tuple[str, Store]
) -> None:
    """In two steps: first behind the election, then without the store."""
    name, store = source
    store.add("a", 3600)
    store.set_last_run("a", now() - HOUR + timedelta(seconds=1))
    app = "tests.acceptance.django_app" if name == "django" else shop.app
    beat = shop.beat("one", app=app, zk_beat_entries=False, zk_beat_scheduler=store.scheduler)
    beat.wait_for_log("elected: one is master", PATIENCE)
    (first,) = shop.wait(lambda history: history, "a run by the store")
    assert first.run == 1
    beat.terminate()
    store.set_last_run("a", now() - 2 * HOUR)  # as after a crash
    did(shop.zk_beat("import", f"--from-{name}"), "1 entries are changed")
    beat = shop.beat("two")
    beat.wait_for_log("elected: two is master", PATIENCE)
    assert due(shop, "a")["a"] > now() + HOUR / 2
    assert len(shop.history()) == 1
    did(shop.zk_beat("run", "a"), "")
    shop.wait(lambda history: len(history) == 2 and history[-1].run == 2, "number 2")


def test_what_cannot_come_over_is_named(shop: Site, source: tuple[str, Store]) -> None:
    name, store = source
    shop.conf["zk_beat_entries_tasks"] = ["good", "code", "broken"]
    shop.conf["beat_schedule"] = {"code": {"task": "code", "schedule": 60.0}}
    for entry in ("good", "code", "broken", "refused"):
        store.add(entry)
    store.damage("broken")
    found = shop.zk_beat("import", f"--from-{name}")
    assert found.returncode == NOT_DONE
    assert "3 entries cannot come over; --skip" in found.stderr
    for line in (
        r"! refused: task is 'refused': ",
        r"! code: name is 'code': expected a name that is not in beat_schedule",
        r"! broken: \w+Error: ",
        r"^\+ good: ",
        r"nothing was changed",
    ):
        assert re.search(line, found.stdout, re.MULTILINE), (line, found.stdout)
    assert entries(shop) == {}
    did(shop.zk_beat("import", f"--from-{name}", "--skip"), "1 entries are changed")
    assert [*entries(shop)] == ["good"]


def test_a_store_that_is_away(shop: Site) -> None:
    pytest.importorskip("redbeat")
    shop.conf["redbeat_redis_url"] = f"redis://127.0.0.1:{free_port()}/2"
    refused(shop.zk_beat("import", "--from-redbeat"), UNREACHABLE, "--from-redbeat", "refused")


def test_redbeat(shop: Site, redis_server: Redis) -> None:
    pytest.importorskip("redbeat")
    from redbeat import RedBeatSchedulerEntry
    from redbeat.schedules import rrule

    store = RedBeat(redis_server.url(2))
    shop.conf.update(store.conf)

    def add(name: str, schedule: Any, **more: Any) -> Any:
        return RedBeatSchedulerEntry(name, "t", schedule, app=store._app, **more).save()

    options = {"queue": "q", "expires": 300, "priority": None}
    add("cron", crontab("*/15", "9-17", "mon-fri"), args=[1], kwargs={"a": [2]}, options=options)
    add("sunday", crontab(0, 3, day_of_week="sun"))
    add("set", crontab([5, 10], "1,2"))
    add("both", crontab(0, 0, day_of_month="1", day_of_week="mon"))
    add("rule", rrule("DAILY"))
    add("later", 60.0).reschedule(now() + HOUR)
    add("option", 60.0, options={"link": "x"})
    ran = add("ran", 60.0)
    for _ in range(3):
        ran = next(ran)
    found = shop.zk_beat("import", "--from-redbeat", "--skip")
    assert found.returncode == 0, found
    refusals = re.findall(r"^! (\w+): (.*)$", found.stdout, re.MULTILINE)
    assert {name for name, _ in refusals} == {"both", "rule", "later", "option"}
    whys = dict(refusals)
    assert "either days of the month or of the week" in whys["both"]
    assert "an interval, a crontab" in whys["rule"]
    assert "an instant that is past" in whys["later"]
    assert "options.link" in whys["option"]
    told = entries(shop)
    assert told["cron"] == {
        "task": "t",
        "schedule": {"cron": "*/15 9-17 * * mon-fri"},
        "args": [1],
        "kwargs": {"a": [2]},
        "options": {"queue": "q", "expires": 300},
    }
    assert told["sunday"]["schedule"] == {"cron": "0 3 * * sun"}
    assert told["set"]["schedule"] == {"cron": "5,10 1,2 * * *"}
    # Three runs, counted where it has come from.
    master = shop.beat("one")
    master.wait_for_log("elected: one is master", PATIENCE)
    due(shop, "ran")  # or there is nobody yet who knows it
    did(shop.zk_beat("run", "ran"), "")
    shop.wait(
        lambda history: any((run.entry, run.run) == ("ran", 4) for run in history), "number 4"
    )
    did(shop.zk_beat("import", "--from-redbeat", "--skip"), "nothing was changed")


def test_a_row_that_never_ran(shop: Site, source: tuple[str, Store]) -> None:
    name, store = source
    if not store.has_rows:
        pytest.skip("it has no rows")
    starts = now() + HOUR
    store.add("new", 3600)
    store.add("starts", 7200, start_time=starts)
    store.add("once", 7200, start_time=now() - HOUR, one_off=True)
    did(shop.zk_beat("import", f"--from-{name}"), "3 entries are changed")
    did(shop.zk_beat("import", f"--from-{name}"), "0 to add, 0 to change.*\nnothing was changed")
    master = shop.beat("one")
    master.wait_for_log("elected: one is master", PATIENCE)
    following = due(shop, "new", "starts")
    assert abs(following["starts"] - starts) < MOMENT
    assert now() + HOUR / 2 < following["new"] < now() + HOUR
    (run,) = shop.wait(lambda history: history, "what should have begun")
    assert run.entry == "once"


def test_django(shop: Site, tmp_path: Path) -> None:
    pytest.importorskip("django_celery_beat")
    store = Django(tmp_path, None)
    from django_celery_beat.models import (
        ClockedSchedule,
        CrontabSchedule,
        PeriodicTask,
        SolarSchedule,
    )

    def add(name: str, **fields: Any) -> None:
        PeriodicTask.objects.create(name=name, task="t", **fields)

    def clocked(at: datetime) -> ClockedSchedule:
        return ClockedSchedule.objects.create(clocked_time=at)

    paris = CrontabSchedule.objects.create(minute=0, hour=9, timezone="Europe/Paris")
    ends, starts = now() + 48 * HOUR, now() + 24 * HOUR
    more = {"queue": "q", "expires": ends, "description": "pays", "headers": '{"x": 1}'}
    add("paris", crontab=paris, start_time=starts, kwargs='{"a": 1}', **more)
    add("expires", crontab=paris, expire_seconds=90)
    at = (now() + HOUR).replace(microsecond=123_000)
    add("clocked", clocked=clocked(at), one_off=True)
    add("past", clocked=clocked(now() - HOUR), one_off=True)
    solar_ = SolarSchedule.objects.create(event="sunset", latitude=52, longitude=13)
    add("solar", solar=solar_)
    add("once", crontab=paris, one_off=True)
    add("done", crontab=paris, one_off=True, total_run_count=1, last_run_at=now() - HOUR)
    try:
        found = shop.zk_beat("import", "--from-django", "--skip")
    finally:
        store.close()
    assert found.returncode == 0, found
    refusals = dict(re.findall(r"^! (\w+): (.*)$", found.stdout, re.MULTILINE))
    assert refusals.keys() == {"past", "solar"}
    assert "an instant that is to come" in refusals["past"]
    told = entries(shop)
    policy = told["paris"].pop("policy")
    assert abs(from_text(policy["starts"]) - starts) < MOMENT
    assert abs(from_text(policy["ends"]) - ends) < MOMENT
    assert told["paris"] == {
        "task": "t",
        "schedule": {"cron": "0 9 * * *", "tz": "Europe/Paris"},
        "kwargs": {"a": 1},
        "options": {"queue": "q", "headers": {"x": 1}},
        "note": "pays",
    }
    assert told["expires"]["options"]["expires"] == 90
    assert told["once"]["policy"] == {"once": True}
    assert "enabled" not in told["once"]
    assert told["done"]["enabled"] is False
    master = shop.beat("one")
    master.wait_for_log("elected: one is master", PATIENCE)
    assert due(shop, "clocked")["clocked"] == at


def test_beat_schedule(shop: Site) -> None:
    """Our own clock of each goes on."""
    shop.schedule(a=3600.0, b=300.0)
    beat = shop.beat("one")
    beat.wait_for_log("elected: one is master", PATIENCE)
    before = due(shop, "a", "b")
    beat.terminate()
    did(shop.zk_beat("import", "--from-schedule"), "2 entries are changed")
    did(shop.zk_beat("import", "--from-schedule"), "0 to add, 0 to change.*\nnothing was changed")
    shop.conf["beat_schedule"] = {}
    beat = shop.beat("two")
    beat.wait_for_log("elected: two is master", PATIENCE)
    after = due(shop, "a", "b")
    for name, at in before.items():
        assert abs(after[name] - at) < MOMENT
