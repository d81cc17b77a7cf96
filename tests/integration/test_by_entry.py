"""The metrics of single entries: what a master says of each, whoever was master before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import schedule
from kazoo.client import KazooClient

from celery_zk_beat import ZooKeeperScheduler, by_entry, history
from celery_zk_beat.control import RUN, Asking, RequestRecord, change_pauses
from celery_zk_beat.metrics import MOST_SELECTED, EntryNumbers
from celery_zk_beat.paths import page_of
from celery_zk_beat.status.reader import Reader
from celery_zk_beat.zookeeper.session import ZooKeeperSession, connected
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import PATIENCE

from .conftest import Clock, Make, away, back, every, state_of, turn

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def looked_at_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_entry, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(history, "_LEAST", 0)  # so that histories are written soon


@pytest.fixture
def clock() -> Clock:
    return Clock("2026-06-01T12:00")


@pytest.fixture
def entries(app: Celery, clock: Clock) -> dict[str, Any]:
    """An entry of an hour, on the clock, of which metrics are asked for, and one of which not."""
    app.conf.zk_beat_metrics_entries = ["nightly-*"]
    return {
        name: {"task": name, "schedule": schedule(HOUR, nowfun=clock, app=app)}
        for name in ("nightly-a", "b")
    }


@pytest.fixture
def session(zookeeper: ZooKeeper) -> Iterator[ZooKeeperSession]:
    with connected(zookeeper.hosts, 4.0, PATIENCE, lambda: None) as session:
        yield session


def numbers(scheduler: ZooKeeperScheduler) -> EntryNumbers:
    """Those of the one selected entry, after a turn."""
    turn(scheduler)
    assert scheduler.metrics.by_entry is not None
    (found,) = scheduler.metrics.by_entry
    return found


def seconds(instant: datetime) -> float:
    return instant.timestamp()


def ran_just_now(found: EntryNumbers, due: datetime) -> bool:
    """By the clock of the machine: that of the schedule is the test's."""
    now = time.time()
    lateness = found.last_run - seconds(due)
    return now - PATIENCE < found.last_run <= now and found.lateness == pytest.approx(lateness)


def skip(scheduler: ZooKeeperScheduler, session: ZooKeeperSession, clock: Clock) -> None:
    """An operator has an hour, and the instant in it, be skipped."""
    paths = scheduler.election.paths
    change_pauses(session, paths, lambda pauses: pauses.pause(None, clock.now, "ann"))
    clock.now += HOUR
    change_pauses(session, paths, lambda pauses: pauses.resume(None, clock.now, True, "ann"))
    before = scheduler.metrics.skipped["resumed"]
    wait_until(
        lambda: turn(scheduler) is not None and scheduler.metrics.skipped["resumed"] > before,
        PATIENCE,
        "what is skipped",
    )


def test_a_run(make: Make, clock: Clock, entries: dict[str, Any]) -> None:
    """Before it, when the clock of its entry began to run; then when it was, for which instant, and
    when the next is due."""
    one = make(beat_schedule=entries)
    begun = clock.now
    assert numbers(one) == EntryNumbers(
        "nightly-a", seconds(begun), None, seconds(begun + HOUR), {}
    )
    clock.now += HOUR
    after = numbers(one)
    assert ran_just_now(after, clock.now)
    assert after.next_run == seconds(clock.now + HOUR)
    assert one.metrics.selected == 1


def test_a_standby(make: Make, entries: dict[str, Any]) -> None:
    """Only the master says something of entries: what others knew is old."""
    one, two = make(beat_schedule=entries), make()
    numbers(one)
    two._loop.turn()
    assert two.metrics.by_entry is None
    one._loop.election.resign()
    wait_until(lambda: one.election.term is None, PATIENCE, "the end of the term")
    one._loop.turn()
    assert one.metrics.by_entry is None
    numbers(two)


def test_a_new_master(
    make: Make, clock: Clock, entries: dict[str, Any], session: ZooKeeperSession
) -> None:
    """It knows what ran, and what was skipped, before it was there: by the histories, where the run
    states do not tell any more."""
    one = make(beat_schedule=entries)
    turn(one)
    clock.now += HOUR
    ran = numbers(one)
    assert ran_just_now(ran, clock.now)
    skip(one, session, clock)
    expected = ran._replace(
        next_run=seconds(clock.now + HOUR), skipped={"resumed": seconds(clock.now)}
    )
    assert numbers(one) == expected
    wait_until(
        lambda: turn(one) is not None and not state_of(one, "nightly-a").past,
        PATIENCE,
        "a history that has taken it over",
    )
    assert numbers(one) == expected
    one._loop.ledger.rewrite({"nightly-a": state_of(one, "nightly-a")})
    one.close()
    two = make()
    assert numbers(two) == expected
    assert not state_of(two, "nightly-a").past


def test_what_waits_and_what_is_dropped(
    app: Celery, make: Make, clock: Clock, entries: dict[str, Any]
) -> None:
    """Neither is a run. An entry of which a run waits is still due."""
    one = make(beat_schedule=entries)
    turn(one)
    clock.now += HOUR
    ran = numbers(one)
    assert ran_just_now(ran, clock.now)
    good = away(app)
    one._broker.drop()
    clock.now += HOUR
    waits = ran._replace(next_run=seconds(clock.now))
    assert numbers(one) == waits
    one.close()
    two = make()
    assert numbers(two) == waits
    two._loop.dispatcher.drop([two._loop.ledger.outbox["nightly-a"]], "for a test")
    assert numbers(two) == ran._replace(next_run=seconds(clock.now + HOUR))
    back(app, good, two)


def test_an_extra_run(
    make: Make, clock: Clock, entries: dict[str, Any], session: ZooKeeperSession
) -> None:
    """It ran, if not by its schedule."""
    one = make(beat_schedule=entries)
    begun = numbers(one)
    paths = one.election.paths
    record = RequestRecord(RUN, "nightly-a", None, "2026-01-01T00:00:00+00:00", "the test")
    with Asking(session, paths, record, lambda event: None) as asking:
        answer = wait_until(lambda: numbers(one) and asking.answer(), PATIENCE, "an answer")
        assert answer.ok
    after = numbers(one)
    assert after.last_run > begun.last_run
    assert after.next_run == begun.next_run


def test_a_pause(
    make: Make, clock: Clock, entries: dict[str, Any], session: ZooKeeperSession
) -> None:
    one = make(beat_schedule=entries)
    assert numbers(one).next_run is not None
    paths = one.election.paths
    change_pauses(session, paths, lambda pauses: pauses.pause("nightly-a", clock.now, "ann"))
    wait_until(lambda: numbers(one).next_run is None, PATIENCE, "the pause")


def test_a_damaged_page(make: Make, entries: dict[str, Any], client: KazooClient) -> None:
    """The entry does not run, and that is to be noticed."""
    one = make(beat_schedule=entries)
    numbers(one)
    client.set(one.election.paths.page(page_of("nightly-a")), b"no JSON")
    one._loop.forget()
    assert numbers(one) == EntryNumbers("nightly-a", 0.0, None, None, {})


def test_a_damaged_history(
    make: Make, entries: dict[str, Any], client: KazooClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else depends on it."""
    one = make(beat_schedule=entries)
    path = one.election.paths.volume(page_of("nightly-a")[:2])
    wait_until(lambda: one.election.term, PATIENCE, "a term")
    client.create(path, b"no JSON", makepath=True)
    assert numbers(one).next_run is not None
    assert f"{path}: " in caplog.text
    assert "metrics of single entries lack earlier values" in caplog.text


def test_many_runs_between_two_looks(
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    session: ZooKeeperSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So many that the history has the last of them already, and the state not any more; and the
    same of what is skipped."""
    one = make(beat_schedule=entries)
    numbers(one)
    look = one._loop._by_entry
    assert look is not None
    clock.now += HOUR + timedelta(seconds=7)
    with monkeypatch.context() as patch:
        patch.setattr(look, "turn", lambda: 1.0)
        wait_until(
            lambda: turn(one) and one.metrics.published and not state_of(one, "nightly-a").past,
            PATIENCE,
            "a history that has taken it over",
        )
    ran = numbers(one)
    assert ran_just_now(ran, clock.now - timedelta(seconds=7))
    with monkeypatch.context() as patch:
        patch.setattr(look, "turn", lambda: 1.0)
        skip(one, session, clock)
        wait_until(
            lambda: turn(one) and not state_of(one, "nightly-a").past,
            PATIENCE,
            "a history that has taken it over",
        )
    after = numbers(one)
    assert (after.last_run, after.lateness) == (ran.last_run, ran.lateness)
    assert after.skipped == {"resumed": seconds(clock.now)}


def test_a_clock_that_began_anew(make: Make, clock: Clock, entries: dict[str, Any]) -> None:
    """What ran before is not this entry's."""
    one = make(beat_schedule=entries)
    turn(one)
    clock.now += HOUR
    assert ran_just_now(numbers(one), clock.now)
    since = datetime.now(timezone.utc) + timedelta(seconds=10)
    one._loop.ledger.begin_anew({"nightly-a": since}, {"nightly-a": None})
    anew = numbers(one)
    assert (anew.last_run, anew.lateness) == (seconds(since), None)


def test_too_many(
    app: Celery,
    make: Make,
    session: ZooKeeperSession,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as there may be have metrics, a few in each turn; one line says so, and `zk-beat
    status`, which also says where a pattern has a slip."""
    app.conf.zk_beat_metrics_entries = ["a*", "nihgtly-*"]
    names = [f"a{n:03}" for n in range(MOST_SELECTED + 7)] + ["a" * 201, "b"]
    one = make(beat_schedule={name: every(HOUR.total_seconds()) for name in names})
    looked_at = 0
    while one.metrics.by_entry is None:
        assert looked_at < MOST_SELECTED
        turn(one)
        looked_at += by_entry._AT_ONCE
        monkeypatch.setattr(one._loop._by_entry, "_look_at", 0.0)
    assert [each.name for each in one.metrics.by_entry] == sorted(names)[:MOST_SELECTED]
    assert one.metrics.selected == MOST_SELECTED + 8
    faults = [
        "zk_beat_metrics_entries: no entry has a name like 'nihgtly-*'",
        "zk_beat_metrics_entries: 108 entries match, and 100 of them have metrics of their own: "
        "100 at most, with names of up to 200 characters",
    ]
    turn(one)
    assert [line for line in caplog.messages if "metrics_entries" in line] == faults
    warnings = Reader(session, one.settings, one).read().warnings
    assert set(faults) <= set(warnings)


@pytest.mark.parametrize("gated", [False, True])
def test_policies(app: Celery, make: Make, gated: bool) -> None:
    """The next run leaves when its entry's policy has it leave, if ever."""
    app.conf.zk_beat_metrics_entries = ["*"]
    app.conf.zk_beat_policies = {"late": {"jitter": 3600}}
    if gated:
        app.conf.zk_beat_scheduler = f"{__name__}:Own"
    else:
        app.conf.zk_beat_policies["over"] = {"ends": "2020-01-01T00:00:00+00:00"}
    one = make(beat_schedule=dict.fromkeys(["late", "over"], every(86400.0)))

    def next_runs(scheduler: ZooKeeperScheduler) -> list[float]:
        """How long after it was seen first each entry runs, in seconds; 0: never."""
        turn(scheduler)
        turn(scheduler)
        known = scheduler.metrics.by_entry
        assert known is not None
        return [(each.next_run and each.next_run - each.last_run) or 0.0 for each in known]

    late, over = next_runs(one)
    assert 86401.0 < late < 90000.0
    assert over == pytest.approx(86400.0, abs=1.0) if gated else over == 0
    one.close()
    assert next_runs(make()) == [late, over]


class Own(Scheduler):
    """Another scheduler, whose entry starts later than it was due."""

    def setup_schedule(self) -> None:
        self.merge_inplace(self.app.conf.beat_schedule)


def test_behind_the_election(app: Celery, make: Make) -> None:
    app.conf.zk_beat_metrics_entries = ["nightly-*"]
    app.conf.zk_beat_scheduler = f"{__name__}:Own"
    before = datetime.now(timezone.utc)
    one = make(beat_schedule={"nightly-a": every(3600.0), "b": every(3600.0)})
    turn(one)
    found = numbers(one)
    assert found.name == "nightly-a"
    assert found.last_run == pytest.approx(seconds(before), abs=PATIENCE)
    assert found.next_run == pytest.approx(found.last_run + 3600, abs=1)


def test_a_class_that_raises(make: Make, app: Celery) -> None:
    """Its next run cannot be told; what ran can."""

    class Bad(schedule):
        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            raise RuntimeError("for a test")

    app.conf.zk_beat_metrics_entries = ["*"]
    one = make(beat_schedule={"a": {"task": "a", "schedule": Bad(3600.0, app=app)}})
    assert numbers(one).next_run is None
