"""Policies: what is accepted, and what they say of an instant, by table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.due import _Fixed, instants_of
from celery_zk_beat.errors import SettingsError
from celery_zk_beat.names import Entries
from celery_zk_beat.planner import Plan, Planner
from celery_zk_beat.policies import NO_POLICIES, Policies, Policy, check_policies
from celery_zk_beat.runs import PastRun, RunState
from celery_zk_beat.schedules import cron, every
from celery_zk_beat.settings import Settings

APP = Celery("policies", set_as_current=False)
NOON = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
HOURLY, MINUTELY = crontab(minute="0", app=APP), schedule(60, app=APP)
#: In which Berlin's clocks are set back, at 01:00 UTC.
NIGHT = datetime(2026, 10, 25, 0, 0, tzinfo=timezone.utc)
#: What is due at 12:00 next, so that it is an hour late at 13:00.
LAST = NOON - timedelta(seconds=30)


def at(hours: float = 0, **more: float) -> datetime:
    return NOON + timedelta(hours=hours, **more)


class Known:
    """What the ledger says of one entry."""

    epoch = 7

    def __init__(self, state: RunState) -> None:
        self._state = state

    def state(self, name: str) -> RunState | None:
        return self._state

    def key(self, name: str) -> str | None:
        return None

    def waits(self, name: str) -> float | None:
        return None

    def holds(self, name: str) -> bool:
        return False


#: The runs of an entry of which one has not ended.
_OPEN = (PastRun.of(3, LAST, LAST, 7),)


def plan(
    policies: Mapping[str, Any],
    when: Any,
    last: datetime,
    now: datetime,
    ran: int = 0,
    deadline: float | None = None,
    is_open: bool = False,
) -> Plan:
    """What is to be done at `now` with an entry that ran `last`. `deadline`: the setting
    beat_cron_starting_deadline."""
    entries = {"e": ScheduleEntry("e", "t", last, schedule=when, app=APP)}
    names = Entries(lambda: entries, False)
    planner = Planner(
        names,
        Known(RunState(last, 3, due=last, ran=ran, open=_OPEN if is_open else ())),
        lambda entry: entry.is_due(),
        5.0,
        check_policies(policies),
        "/root",
    )
    planner.seen.replace_all(entries.items(), len(entries))
    planner.build(now, set(), deadline)
    return planner.plan(now, 100)


@dataclass
class Case:
    name: str
    policy: Mapping[str, Any]
    every: Any
    last: datetime
    now: datetime
    #: What is claimed, and from when the clock goes on where that is not `now`.
    due: datetime | None = None
    claimed: datetime | None = None
    #: The first instant that is skipped, why, and from when the clock goes on.
    skipped: tuple[datetime, str] | None = None
    #: When something is due next; None: never.
    again: datetime | None = None
    ran: int = 0
    deadline: float | None = None
    is_open: bool = False


CASES = [
    Case("overlap", {"track": True}, HOURLY, LAST, at(0, seconds=1), due=at(0), is_open=True),
    Case("none is open", {"overlap": "skip"}, HOURLY, LAST, at(0, seconds=1), due=at(0)),
    Case(
        "skip: not before it is due, for the other run may end until then",
        {"overlap": "skip"},
        HOURLY,
        LAST,
        at(0, seconds=-0.01),
        again=at(0),
        is_open=True,
    ),
    Case(
        "skip: one for all that was missed",
        {"overlap": "skip"},
        HOURLY,
        LAST,
        at(2, seconds=1),
        skipped=(at(0), "overlap"),
        again=at(3),
        is_open=True,
    ),
    Case(
        "skip: an interval keeps its instants",
        {"overlap": "skip"},
        schedule(3600, app=APP),
        at(-1),
        at(0, seconds=0.01),
        skipped=(at(0), "overlap"),
        again=at(1),
        is_open=True,
    ),
    Case(
        "queue: it waits for the end of the other, not for an instant",
        {"overlap": "queue"},
        HOURLY,
        LAST,
        at(2, seconds=1),
        again=datetime(9999, 1, 1, tzinfo=timezone.utc),
        is_open=True,
    ),
    Case(
        "queue: what is too late meanwhile is skipped",
        {"overlap": "queue", "catch_up": 60},
        HOURLY,
        LAST,
        at(0.5),
        skipped=(at(0), "catch_up"),
        again=at(1),
        is_open=True,
    ),
    Case("nothing is asked", {}, HOURLY, LAST, at(5.5), due=at(0)),
    Case("in time", {"catch_up": 60}, HOURLY, LAST, at(0, seconds=59), due=at(0)),
    Case(
        "too late: skipped, and nothing runs",
        {"catch_up": 60},
        HOURLY,
        LAST,
        at(0.5),
        skipped=(at(0), "catch_up"),
        again=at(1),
    ),
    Case(
        "the older are skipped, and the one in time runs",
        {"catch_up": 60},
        HOURLY,
        LAST,
        at(3, seconds=30),
        skipped=(at(0), "catch_up"),
        due=at(3),
    ),
    Case(
        "an interval keeps its instants",
        {"catch_up": 600},
        schedule(3600, app=APP),
        at(-1),
        at(3, minutes=30),
        skipped=(at(0), "catch_up"),
        again=at(4),
    ),
    Case("0 is a second", {"catch_up": 0}, HOURLY, LAST, at(0, seconds=0.9), due=at(0)),
    Case(
        "all: the oldest first, and the clock stays with it",
        {"coalesce": "all"},
        HOURLY,
        LAST,
        at(5.5),
        due=at(0),
        claimed=at(0),
    ),
    Case(
        "all, of an interval",
        {"coalesce": "all"},
        MINUTELY,
        at(-1),
        at(0.5),
        due=at(-1, minutes=1),
        claimed=at(-1, minutes=1),
    ),
    Case(
        "all within catch_up",
        {"coalesce": "all", "catch_up": 2 * HOUR},
        HOURLY,
        LAST,
        at(5.5),
        skipped=(at(0), "catch_up"),
        due=at(4),
        claimed=at(4),
    ),
    Case(
        "all, but no more than the limit",
        {"coalesce": "all", "limit": 2},
        HOURLY,
        LAST,
        at(5.5),
        skipped=(at(0), "limit"),
        due=at(4),
        claimed=at(4),
    ),
    Case(
        "all, of an interval, but no more than the limit",
        {"coalesce": "all", "limit": 3},
        schedule(3600, app=APP),
        at(-1),
        at(5.5),
        skipped=(at(0), "limit"),
        due=at(3),
        claimed=at(3),
    ),
    Case("before it starts", {"starts": at(5)}, HOURLY, LAST, at(0.5), again=at(5)),
    Case("an interval starts then", {"starts": at(5)}, MINUTELY, at(-1), at(0), again=at(5)),
    Case("it starts", {"starts": at(5)}, HOURLY, LAST, at(5), due=at(5)),
    Case("it has ended", {"ends": at(-1)}, HOURLY, LAST, at(0)),
    Case("it ends now", {"ends": at(0)}, HOURLY, LAST, at(0), due=at(0)),
    Case("its runs are over", {"runs": 2}, HOURLY, LAST, at(0), ran=2),
    Case(
        "the limit is one of what ends lets run",
        {"coalesce": "all", "limit": 3, "ends": at(2)},
        HOURLY,
        LAST,
        at(50.5),
        due=at(0),
        claimed=at(0),
    ),
    Case(
        "an interval keeps the instants that begin at starts",
        {"starts": at(0.25), "catch_up": 600},
        schedule(3600, app=APP),
        at(-1),
        at(3, minutes=20),
        skipped=(at(0.25), "catch_up"),
        due=at(3.25),
    ),
    Case(
        "a relative interval has instants that its last run rounds down",
        {"coalesce": "all", "limit": 2},
        schedule(7200, relative=True, app=APP),
        at(-1),
        at(9.5),
        skipped=(at(1), "limit"),
        due=at(7),
        claimed=at(7),
    ),
    Case(
        "a relative interval, too late",
        {"catch_up": 600},
        schedule(7200, relative=True, app=APP),
        at(-1),
        at(5.5),
        skipped=(at(1), "catch_up"),
        again=at(7),
    ),
    Case(
        "an interval without a length is always due, at no instant",
        {"coalesce": "all", "catch_up": 600},
        schedule(0, app=APP),
        at(-1),
        at(0),
        skipped=(at(-1), "catch_up"),
        due=at(0),
        claimed=at(0),
    ),
    Case(
        "all, of a cron, over the hour that comes twice",
        {"coalesce": "all", "limit": 7},
        cron("*/30 * * * *", tz="Europe/Berlin", app=APP),
        NIGHT - HOUR,
        NIGHT + 3 * HOUR,
        skipped=(NIGHT - HOUR / 2, "limit"),
        due=NIGHT,
        claimed=NIGHT,
    ),
    Case(
        "of an every with an offset",
        {"catch_up": 60},
        every(3600, offset=900, app=APP),
        at(-1),
        at(2.5),
        skipped=(at(-0.75), "catch_up"),
        again=at(3.25),
    ),
    Case(
        "a deadline of Celery's is the catch_up of crontabs",
        {"coalesce": "all"},
        HOURLY,
        LAST,
        at(3, minutes=5),
        skipped=(at(0), "catch_up"),
        due=at(3),
        claimed=at(3),
        deadline=600,
    ),
    Case(
        "which has none of its own",
        {"catch_up": 7200},
        HOURLY,
        LAST,
        at(1.5),
        due=at(0),
        deadline=600,
    ),
    Case(
        "nor is it an interval's", {"runs": 9}, MINUTELY, LAST, at(3), due=LAST + MINUTE, deadline=9
    ),
    Case("its last run", {"runs": 2}, HOURLY, LAST, at(0), due=at(0), ran=1),
    Case("once, and no more", {"once": True}, HOURLY, LAST, at(0), ran=1),
    Case("once", {"once": True}, HOURLY, LAST, at(0), due=at(0)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plan(case: Case) -> None:
    found = plan(
        {"*": case.policy},
        case.every,
        case.last,
        case.now,
        case.ran,
        case.deadline,
        case.is_open,
    )
    assert [run.due for run in found.runs] == ([] if case.due is None else [case.due])
    assert [(each.due, each.reason) for each in found.skipped] == (
        [] if case.skipped is None else [case.skipped]
    )
    if case.claimed is not None:
        assert found.runs[0].claimed == case.claimed
    if case.due is None:
        again = math.inf if case.again is None else case.again.timestamp()
        assert found.look_again == pytest.approx(again, abs=0.1)


def test_each_missed_instant_is_skipped() -> None:
    """An instant that comes while a run is open has its own line in the history."""
    policy = {"overlap": "skip", "coalesce": "all"}
    found = plan({"*": policy}, HOURLY, LAST, at(2, seconds=1), is_open=True)
    assert [each.due for each in found.skipped] == [at(0), at(1), at(2)]
    assert found.runs == []


def test_runs_are_counted() -> None:
    (run,) = plan({"*": {"runs": 2}}, HOURLY, LAST, at(0)).runs
    state = RunState(LAST, 3).after_claim(run, timedelta())
    assert state.ran == 1
    (run,) = plan({}, HOURLY, LAST, at(0)).runs
    assert state.after_claim(run, timedelta()).ran == 1


def test_jitter_is_the_same_everywhere() -> None:
    (run,) = plan({"e": {"jitter": 600}}, HOURLY, LAST, at(0.5)).runs
    (again,) = plan({"e": {"jitter": 600}}, HOURLY, LAST, at(0.75)).runs
    assert (run.due, run.leaves) == (again.due, again.leaves)
    assert run.due == at(0)
    assert run.leaves is not None
    assert timedelta() < run.leaves - run.due < timedelta(seconds=600)
    before = plan({"e": {"jitter": 600}}, HOURLY, LAST, run.leaves - timedelta(seconds=1))
    assert not before.runs
    assert before.look_again == pytest.approx(run.leaves.timestamp(), abs=0.1)


@given(st.floats(0, 100_000), st.integers(0, 10**6), st.sampled_from([HOURLY, MINUTELY]))
def test_jitter_stays_before_the_next(jitter: float, hour: int, every: Any) -> None:
    policy, due = Policy(jitter=timedelta(seconds=jitter)), NOON + timedelta(hours=hour)
    entry = ScheduleEntry("e", "t", due, schedule=every, app=APP)
    instants = instants_of(entry, due)
    following = instants.after(due)
    assert following is not None
    leaves = policy.leaves(due, instants, "/root/e")
    assert due <= leaves < following
    assert leaves - due <= timedelta(seconds=jitter)


def test_jitter_is_no_lateness() -> None:
    """What leaves later by its policy is not too late for it."""
    policies = check_policies({"e": {"jitter": 3000, "catch_up": 10}})
    policy = policies.of("e")
    assert policy is not None
    entry = ScheduleEntry("e", "t", LAST, schedule=HOURLY, app=APP)
    leaves = policy.leaves(at(0), instants_of(entry, at(0)), "/root/e")
    assert leaves > at(0, seconds=10)
    found = plan({"e": {"jitter": 3000, "catch_up": 10}}, HOURLY, LAST, leaves)
    assert [each.due for each in found.runs] == [at(0)]
    late = plan({"e": {"jitter": 3000, "catch_up": 10}}, HOURLY, LAST, leaves + 20 * MINUTE / 60)
    assert [each.due for each in late.skipped] == [at(0)]


def test_intervals_do_not_drift_by_their_jitter() -> None:
    every = schedule(3600, app=APP)
    (run,) = plan({"e": {"jitter": 600}}, every, at(-1), at(0, minutes=10)).runs
    assert run.due == at(0)
    assert run.leaves is not None
    (prompt,) = plan({"e": {"jitter": 600}}, every, at(-1), run.leaves).runs
    assert prompt.claimed == at(0)


@pytest.mark.parametrize("count", [1, 2, 100, 101, 5000])
def test_the_last_of_many(count: int) -> None:
    """By brute force."""
    entry = ScheduleEntry("e", "t", NOON, schedule=crontab(app=APP), app=APP)
    instants = instants_of(entry, NOON)
    until = NOON + (count - 1) * MINUTE
    kept = instants.last(NOON, until, 100)
    assert kept == (None if count <= 100 else until - 99 * MINUTE)


class Counted(_Fixed):
    """Counts how often the schedule is asked."""

    count = 0

    def after(self, instant: datetime) -> datetime | None:
        self.count += 1
        return super().after(instant)


@pytest.mark.parametrize("jitter", [0, 864_000])
def test_what_is_too_late_is_found_soon(jitter: float) -> None:
    """After a year, and among ten days of instants."""
    entry = ScheduleEntry("e", "t", NOON, schedule=crontab(app=APP), app=APP)
    policy = Policy(catch_up=timedelta(seconds=90), jitter=timedelta(seconds=jitter))
    instants = Counted(entry)
    now = at(24 * 365, seconds=30)
    verdict = policy.decide(NOON, now, instants, 0, "/root/e")
    assert verdict.skipped == "catch_up"
    assert verdict.clock is not None
    kept = instants.after(verdict.clock)
    assert kept is not None
    assert not policy.is_too_late(policy.leaves(kept, instants, "/root/e"), now)
    before = kept - MINUTE
    assert policy.is_too_late(policy.leaves(before, instants, "/root/e"), now)
    assert instants.count < 60


def test_what_is_missed_is_counted_once() -> None:
    """Not again for each of them that runs, while more come due."""
    entry = ScheduleEntry("e", "t", NOON, schedule=crontab(app=APP), app=APP)
    policy, instants = Policy(coalesce="all", limit=1000), Counted(entry)
    due = NOON
    for number in range(900):
        now = at(0, minutes=900 + number / 10)
        verdict = policy.decide(due, now, instants, 0, "/root/e")
        assert (verdict.due, verdict.skipped) == (due, None)
        due += MINUTE
    assert instants.count < 5000
    verdict = policy.decide(due, due + 2000 * MINUTE, instants, 0, "/root/e")
    assert verdict.skipped == "limit"
    assert verdict.clock is not None
    assert instants.after(verdict.clock) == due + 1001 * MINUTE


def test_a_run_is_past_when_it_leaves() -> None:
    (run,) = plan({"e": {"jitter": 600}}, HOURLY, LAST, at(0, minutes=10)).runs
    assert run.leaves is not None
    state = RunState(LAST, 3).after_claim(run, timedelta())
    assert state.past[-1].due == at(0)
    assert state.past[-1].at == max(run.leaves, at(0, minutes=10))


def test_patterns() -> None:
    policies = check_policies(
        {"*": {"catch_up": 10, "jitter": 5}, "tenant-*": {"jitter": 300}, "b": {"catch_up": None}}
    )
    assert policies.of("a") == Policy(timedelta(seconds=10), jitter=timedelta(seconds=5))
    assert policies.of("tenant-1") == Policy(timedelta(seconds=10), jitter=timedelta(seconds=300))
    assert policies.of("b") == Policy(None, jitter=timedelta(seconds=5))
    assert NO_POLICIES.of("a") is None
    assert check_policies({"x": {"jitter": 1}}).of("a") is None
    assert policies.unmatched(["a", "b"]) == ["tenant-*"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5: expected a dictionary, pattern to policy"),
        ({3: {}}, "3: expected a pattern of entries' names"),
        ({"a": 5}, "'a': 5: expected a dictionary"),
        (
            {"a": {"catchup": 5}},
            "'a': 'catchup' is not a key of a policy; expected one of catch_up,",
        ),
        ({"a": {"catch_up": "1 h"}}, "'a': 'catch_up': '1 h': expected seconds or a timedelta"),
        ({"a": {"catch_up": -1}}, "'a': 'catch_up': -1: expected seconds"),
        ({"a": {"catch_up": True}}, "'a': 'catch_up': True: expected seconds"),
        ({"a": {"jitter": math.nan}}, "'a': 'jitter': nan: expected seconds"),
        ({"a": {"jitter": 1e300}}, "'a': 'jitter': 1e+300: expected seconds"),
        ({"a": {"jitter": None}}, "'a': 'jitter': None: expected seconds"),
        ({"a": {"coalesce": "none"}}, "'a': 'coalesce': 'none': expected 'one' or 'all'"),
        ({"a": {"limit": 0}}, "'a': 'limit': 0: expected a whole number, 1 to 10000"),
        ({"a": {"runs": 1.5}}, "'a': 'runs': 1.5: expected a whole number"),
        ({"a": {"once": 1}}, "'a': 'once': 1: expected True or False"),
        ({"a": {"starts": "soon"}}, "'a': 'starts': 'soon': expected an aware datetime"),
        (
            {"a": {"starts": "0001-01-01T00:00:00+14:00"}},
            "'a': 'starts': '0001-01-01T00:00:00+14:00'",
        ),
        (
            {"a": {"ends": "9999-12-31T23:00:00-14:00"}},
            "'a': 'ends': '9999-12-31T23:00:00-14:00': exp",
        ),
        ({"a": {"ends": datetime(2026, 1, 1)}}, "'a': 'ends': datetime.datetime(2026, 1, 1, 0, 0)"),
        ({"a": {"starts": at(1), "ends": at(0)}}, "'a': 'ends' is before 'starts'"),
        ({"a": {"once": True, "runs": 3}}, "'a': 'once' and 'runs': 3 contradict each other"),
        ({"a": {"coalesce": "one", "limit": 3}}, "'a': 'limit' is for 'coalesce': 'all' alone"),
    ],
)
def test_refused(value: Any, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"zk_beat_policies": value}, "app")
    assert str(caught.value).startswith(f"zk_beat_policies = {text}")
    assert "\n" not in str(caught.value)


def test_refused_behind_the_election() -> None:
    conf = {"zk_beat_scheduler": "a.b:C", "zk_beat_policies": {"a": {"coalesce": "all"}}}
    with pytest.raises(SettingsError, match="'coalesce' does not work with zk_beat_scheduler"):
        Settings.from_mapping(conf, "app")
    conf["zk_beat_policies"] = {"a": {"catch_up": 5, "jitter": 5}}
    assert Settings.from_mapping(conf, "app").policies.of("a") is not None
    conf["zk_beat_outcomes"] = "worker"
    conf["zk_beat_policies"] = {"a": {"overlap": "skip", "finish_within": 5, "track": True}}
    assert Settings.from_mapping(conf, "app").policies.of("a") is not None
    conf["zk_beat_policies"] = {"a": {"overlap": "queue"}}
    with pytest.raises(SettingsError, match="'overlap': 'queue' does not work with zk_beat_sched"):
        Settings.from_mapping(conf, "app")


def test_an_instant_as_text() -> None:
    policy = check_policies({"a": {"starts": "2026-06-01T14:00:00+02:00"}}).of("a")
    assert policy is not None
    assert policy.starts == NOON
    assert isinstance(Policies(), Policies)


def test_an_interval_starts_once() -> None:
    """Where its first run was claimed by a clock that was ahead, and the clock is right again."""
    policy, starts = Policy(starts=at(5)), at(5)
    last = at(-1, microseconds=7)
    entry = ScheduleEntry("e", "t", last, schedule=MINUTELY, app=APP)
    due = last + MINUTE
    first = policy.decide(due, at(0), instants_of(entry, due), 0, "")
    again = policy.decide(due, at(0), instants_of(entry, due), 1, "", last_due=starts)
    assert first.due == starts
    assert again.due == starts + timedelta(microseconds=7)
