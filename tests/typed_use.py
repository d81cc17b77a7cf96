"""Uses the whole public API, as an app does whose author checks types strictly. Only mypy reads it
(`make lint`): a name that loses or changes its type is an error here. unit/test_typed_use.py checks
that no public name is missing here."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Optional

from celery import Celery
from typing_extensions import assert_type

import celery_zk_beat
from celery_zk_beat import (
    ConnectTimeout,
    Entries,
    EntryChange,
    EntryError,
    EntryVersion,
    LiveEntry,
    MasterElection,
    ReportOutcomes,
    RootError,
    SettingsError,
    TooLarge,
    Uncertain,
    UnsupportedEnvironment,
    VersionConflict,
    ZkBeatError,
    ZooKeeperScheduler,
)
from celery_zk_beat.schedules import cron, every
from celery_zk_beat.signals import (
    beat_demoted,
    beat_elected,
    entries_changed,
    run_dropped,
    run_finished,
    run_late,
    run_published,
    run_started,
)
from celery_zk_beat.testing import Missed, Timeline, Upcoming, timeline

assert_type(celery_zk_beat.__version__, str)


def an_election() -> None:
    def elected(epoch: int) -> None: ...

    def demoted(reason: str) -> None: ...

    election = MasterElection(
        "zk1:2181,zk2:2181",
        "/shop",
        id="here",
        session_timeout=10.0,
        app="shop",
        auth=None,
        sasl=None,
        tls=None,
        acl=None,
        on_elected=elected,
        on_demoted=demoted,
    )
    with election as same:
        assert_type(same, MasterElection)
        election.start(timeout=30)
        assert_type(election.wait(5.0), bool)
        assert_type(election.is_master, bool)
        assert_type(election.epoch, Optional[int])
        assert_type(election.era, Optional[str])
        assert_type(election.id, str)
        assert_type(election.hosts, str)
        election.resign(5.0, to="there", why="a deploy")
        election.stop(5.0)


def its_errors() -> None:
    try:
        an_election()
    except ConnectTimeout as exc:
        late: TimeoutError = exc
        raise late from exc
    except SettingsError as exc:
        wrong: ValueError = exc
        raise wrong from exc
    except UnsupportedEnvironment as exc:
        where: RuntimeError = exc
        raise where from exc
    except RootError as exc:
        mine: ZkBeatError = exc
        raise mine from exc


class MyScheduler(ZooKeeperScheduler):
    def setup_schedule(self) -> None:
        super().setup_schedule()


def an_app() -> Celery:
    app = Celery("shop")
    app.conf.beat_scheduler = MyScheduler
    app.conf.beat_schedule = {
        "nightly": {"task": "night", "schedule": cron("30 2 * * *", tz="Europe/Berlin")},
        "often": {"task": "often", "schedule": every(30, offset=timedelta(seconds=5))},
    }
    app.steps["worker"].add(ReportOutcomes)
    return app


def a_test_of_its_own() -> None:
    start = datetime(2026, 6, 1, tzinfo=timezone.utc)
    found = timeline(
        an_app(),
        start,
        "2026-06-02T00:00Z",
        outages=[(start, "2026-06-01T08:00Z")],
        last_run_at={"nightly": start},
    )
    assert_type(found, Timeline)
    assert_type(found.runs, tuple[Upcoming, ...])
    assert_type(found.skips, tuple[Missed, ...])
    for run in found.runs_of("nightly"):
        assert_type(run.entry, str)
        assert_type(run.number, int)
        assert_type(run.due, datetime)
        assert_type(run.at, datetime)
    for skip in found.skips_of("nightly"):
        assert_type(skip.entry, str)
        assert_type(skip.due, datetime)
        assert_type(skip.until, datetime)
        assert_type(skip.reason, str)


def live_entries() -> None:
    with Entries(an_app(), timeout=5.0, by="web") as entries:
        made = entries.put(
            "tenant-7",
            task="report",
            schedule=cron("0 9 * * *", "Europe/Paris"),
            args=[1],
            kwargs={"tenant": 7},
            options={"queue": "reports"},
            policy={"jitter": timedelta(minutes=5)},
            enabled=True,
            override=False,
            note="asked for",
            if_version=0,
        )
        assert_type(made, LiveEntry)
        assert_type(entries.set("tenant-7", schedule=every(60), if_version=made.version), LiveEntry)
        assert_type(entries.set("tenant-7", enabled=False, kwargs={}), LiveEntry)
        assert_type(entries.get("tenant-7"), Optional[LiveEntry])
        assert_type(entries.remove("tenant-7", if_version=3), bool)
        assert_type(len(entries), int)
        assert_type(entries.read(), tuple[list[LiveEntry], dict[str, str]])
        for entry in entries:
            assert_type(entry.name, str)
            assert_type(entry.kwargs, dict[str, Any])
            assert_type(entry.at, datetime)
            assert_type(entry.changes, tuple[EntryVersion, ...])
            assert_type(entry.changes[-1].what, tuple[str, ...])
        for change in entries.changes(timeout=1):
            assert_type(change, EntryChange)
            assert_type(change.before, Optional[LiveEntry])
            assert_type(change.after, Optional[LiveEntry])


def errors_of_live_entries() -> None:
    try:
        live_entries()
    except EntryError as exc:
        assert_type(exc.name, str)
        assert_type(exc.field, Optional[str])
        assert_type(exc.accepted, str)
        wrong: ValueError = exc
        raise wrong from exc
    except VersionConflict as exc:
        assert_type((exc.wanted, exc.found), tuple[int, int])
    except (TooLarge, Uncertain) as exc:
        mine: ZkBeatError = exc
        raise mine from exc


def receivers() -> None:
    def receiver(**more: Any) -> None: ...

    runs = (run_published, run_dropped, run_started, run_finished, run_late)
    for signal in (beat_elected, beat_demoted, entries_changed, *runs):
        signal.connect(receiver, weak=False)
