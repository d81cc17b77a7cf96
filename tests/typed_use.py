"""The whole public API, used as in an app of somebody who checks types strictly. Only read by mypy
(`make lint`): whatever loses its type, or changes it, is an error here. That it leaves no public
name out is a test of test_architecture's neighbour, unit/test_typed_use.py."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Optional

from celery import Celery
from typing_extensions import assert_type

import celery_zk_beat
from celery_zk_beat import (
    ConnectTimeout,
    MasterElection,
    RootError,
    SettingsError,
    UnsupportedEnvironment,
    ZkBeatError,
    ZooKeeperScheduler,
)
from celery_zk_beat.schedules import cron, every
from celery_zk_beat.signals import beat_demoted, beat_elected, run_dropped, run_published
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


def receivers() -> None:
    def receiver(**more: Any) -> None: ...

    for signal in (beat_elected, beat_demoted, run_published, run_dropped):
        signal.connect(receiver, weak=False)
