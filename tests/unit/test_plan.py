"""What a master does at an instant, by table: which entries are due, and when to look again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedstate, schedule

from celery_zk_beat.names import Entries
from celery_zk_beat.planner import Planner
from celery_zk_beat.policies import NO_POLICIES, Policies, check_policies
from celery_zk_beat.runs import PastRun, RunState
from celery_zk_beat.schedules import cron

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc)
EPOCH = 7
NEVER = math.inf
MAX_INTERVAL = 5.0


class _Celery(Celery):
    def now(self) -> datetime:
        return NOON


APP, STRICT = _Celery("plan", set_as_current=False), _Celery("strict", set_as_current=False)
STRICT.conf.beat_cron_starting_deadline = 60


def ago(seconds: float) -> datetime:
    return NOON - timedelta(seconds=seconds)


class Raises(schedule):
    def is_due(self, last_run_at: datetime) -> schedstate:
        raise RuntimeError("a schedule of the user's")


class OnlyIsDue:
    """A schedule that says nothing but whether it is due, and when to ask again."""

    def __init__(self, is_due: bool, seconds: float) -> None:
        self.answer = schedstate(is_due, seconds)
        self.app = APP

    def is_due(self, last_run_at: datetime) -> schedstate:
        return self.answer

    def now(self) -> datetime:
        return NOON


@dataclass
class Known:
    """What the ledger and the operators say."""

    states: Mapping[str, RunState]
    waiting: Mapping[str, float]
    held: tuple[str, ...]
    epoch: int = EPOCH

    def state(self, name: str) -> RunState | None:
        return self.states.get(name)

    def key(self, name: str) -> str | None:
        return None

    def waits(self, name: str) -> float | None:
        return self.waiting.get(name)

    def holds(self, name: str) -> bool:
        return name in self.held


@dataclass
class Case:
    """Entries, each with the seconds since it ran last, and what is expected of them."""

    name: str
    entries: Mapping[str, tuple[Any, float]]
    #: Entry to the instant that is due.
    claims: Mapping[str, datetime] = field(default_factory=dict)
    skips: Mapping[str, datetime] = field(default_factory=dict)
    #: Seconds until something else may be due; None: it is already.
    again: float | None = NEVER
    room: int = 100
    waiting: Mapping[str, float] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    deadline: float | None = None
    opened: tuple[PastRun, ...] = ()


MINUTELY = schedule(60, app=APP)
CASES = [
    Case("nothing is due", {"a": (MINUTELY, 20)}, again=40),
    Case(
        "several are due",
        {"a": (MINUTELY, 60), "b": (MINUTELY, 61), "c": (MINUTELY, 10)},
        claims={"a": NOON, "b": ago(1)},
        again=50,
    ),
    Case(
        "what is due in a moment is claimed ahead",
        {"a": (MINUTELY, 60 - 0.02)},
        claims={"a": NOON + timedelta(seconds=0.02)},
        again=NEVER,
    ),
    Case("its last run waits", {"a": (MINUTELY, 60)}, waiting={"a": 3.0}, again=3),
    Case(
        "one waits, another does not",
        {"a": (MINUTELY, 60), "b": (MINUTELY, 60)},
        waiting={"a": 3.0},
        claims={"b": NOON},
        again=3,
    ),
    Case("it is paused", {"a": (MINUTELY, 60)}, held=("a",), again=NEVER),
    Case(
        "late: one run stands for all that was missed",
        {"a": (MINUTELY, 600)},
        claims={"a": ago(540)},
        again=NEVER,
    ),
    Case(
        "a crontab that is due",
        {"a": (crontab(minute="*/5", app=APP), 299)},
        claims={"a": NOON},
        again=NEVER,
    ),
    Case(
        "too late to be started",
        {"a": (crontab(minute="0", hour="11", app=STRICT), 7200)},
        skips={"a": ago(3600)},
        deadline=60,
        again=23 * 3600,
    ),
    Case(
        "a schedule that raises",
        {"a": (Raises(60, app=APP), 60), "b": (MINUTELY, 60)},
        claims={"b": NOON},
        again=MAX_INTERVAL,
    ),
    Case(
        "one that only has is_due: it is", {"a": (OnlyIsDue(True, 9), 1)}, {"a": NOON}, again=NEVER
    ),
    Case("one that only has is_due: not yet", {"a": (OnlyIsDue(False, 9), 1)}, again=9),
    Case(
        "room for fewer",
        {"a": (MINUTELY, 60), "b": (MINUTELY, 60), "c": (MINUTELY, 60)},
        claims={"b": NOON, "c": NOON},
        room=2,
        again=None,
    ),
    Case("no room: it stays due", {"a": (MINUTELY, 60)}, room=0, again=0),
    Case("no schedule at all", {"a": (None, 60)}, again=NEVER),
    Case("its clock is ahead", {"a": (MINUTELY, -3600)}, again=NEVER),
]


def planner_of(case: Case, policies: Policies = NO_POLICIES) -> Planner:
    entries = {}
    for name, (when, since) in case.entries.items():
        entries[name] = entry = ScheduleEntry(name, name, ago(since), 3, app=APP)
        entry.schedule = when
    states = {
        name: RunState(entry.last_run_at, 3, open=case.opened) for name, entry in entries.items()
    }
    names = Entries(lambda: entries, is_replaced=False)
    known = Known(states, case.waiting, case.held)
    planner = Planner(names, known, lambda entry: entry.is_due(), MAX_INTERVAL, policies)
    planner.seen.replace_all(names.get().items(), len(entries))
    planner.build(NOON, set(), case.deadline)
    return planner


def seconds_until(look_again: float) -> float | None:
    return None if look_again < 0 else look_again - NOON.timestamp()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plan(case: Case) -> None:
    plan = planner_of(case).plan(NOON, case.room)
    assert {run.entry: run.due for run in plan.runs} == case.claims
    assert all((run.number, run.epoch) == (4, EPOCH) for run in plan.runs)
    assert {each.entry: each.due for each in plan.skipped} == case.skips
    # Somewhat before it is due, for the claim takes its time.
    assert seconds_until(plan.look_again) == pytest.approx(case.again, abs=0.05)


@pytest.mark.parametrize(
    ("when", "late", "claimed", "told"),
    [
        (MINUTELY, 10, 10, None),
        (crontab(app=APP), 1, 0, None),
        (crontab(app=APP), 10, 0, 10),
        (crontab(app=APP), 59, 0, 59),
        (crontab(app=APP), 60, 60, None),
    ],
)
@pytest.mark.parametrize("policies", [{}, {"a": {"catch_up": 3600}}])
def test_when_it_is_claimed(
    when: Any, late: float, claimed: float, told: float | None, policies: Any
) -> None:
    """A crontab's clock goes on from its instant, and the run says how late it is."""
    planner = planner_of(Case("", {"a": (when, 60)}), check_policies(policies))
    (run,) = planner.plan(NOON + timedelta(seconds=late), 100).runs
    assert (run.due, run.claimed) == (NOON, NOON + timedelta(seconds=claimed))
    assert run.late == (None if told is None else NOON + timedelta(seconds=told))
    assert run.planned == NOON + timedelta(seconds=told or claimed)


def test_a_late_crontab_that_is_skipped() -> None:
    """The history says when."""
    policies = check_policies({"a": {"overlap": "skip"}})
    opened = (PastRun.of(3, ago(60), ago(60), EPOCH),)
    planner = planner_of(Case("", {"a": (crontab(app=APP), 60)}, opened=opened), policies)
    (skipped,) = planner.plan(NOON + timedelta(seconds=10), 100).skipped
    assert (skipped.due, skipped.at) == (NOON, NOON + timedelta(seconds=10))


def test_what_is_not_claimed_is_due_still() -> None:
    planner = planner_of(Case("", dict.fromkeys("abc", (MINUTELY, 60))))
    first = planner.plan(NOON, 100).runs
    assert len(first) == 3
    assert seconds_until(planner.note_claimed(first[:1], NOON)) is None
    again = planner.plan(NOON, 100).runs
    assert [run.entry for run in again] == [run.entry for run in first[1:]]
    # And that of which a run was claimed is due after its period.
    assert seconds_until(planner.note_claimed(again, NOON)) == pytest.approx(60, abs=0.05)


def test_an_entry_in_the_place_of_another_is_looked_at_first() -> None:
    case = Case("", {"a": (MINUTELY, 60), "b": (MINUTELY, 60)})
    planner = planner_of(case)
    entries = planner._names.get()
    entries["a"] = ScheduleEntry("a", "a", ago(60), 3, MINUTELY, app=APP)
    planner._names.is_current = True
    assert [run.entry for run in planner.plan(NOON, 100).runs] == ["b"]
    assert not planner._names.is_current


def test_when_to_ask_again_is_by_the_clock_of_its_last_run() -> None:
    """A clock may jump between two looks at it. What is set back afterwards is `last_run_at`, and
    when to ask with it: an entry was held for 20 minutes."""
    planner = planner_of(Case("", {"a": (OnlyIsDue(True, 9), 1)}))
    (run,) = planner.plan(NOON + timedelta(minutes=20), 100).runs
    assert run.claimed == NOON
    assert run.ask is not None
    assert run.ask[0] == int((NOON.timestamp() + 9) * 1000)


def test_one_is_put_in_the_place_of_another() -> None:
    """At once, by its own schedule; nothing is left of the other's instants, and nobody has to look
    at all."""
    planner = planner_of(Case("", {"a": (MINUTELY, 59.99), "b": (MINUTELY, 30)}))
    names = planner._names
    names.is_current = True
    other = ScheduleEntry("a", "a", ago(59.99), 3, schedule(90, app=APP), app=APP)
    names.put("a", other)
    assert planner.put("a", other, NOON)
    new = ScheduleEntry("new", "new", ago(80), 3, MINUTELY, app=APP)
    names.put("new", new)
    planner._known.states["new"] = RunState(ago(80), 3)  # type: ignore[attr-defined]
    assert planner.put("new", new, NOON)
    plan = planner.plan(NOON, 100)
    assert [(run.entry, run.due) for run in plan.runs] == [("new", ago(20))]
    assert seconds_until(planner.note_claimed(plan.runs, NOON)) == pytest.approx(30, abs=0.05)
    entries = names.get()
    assert not planner.seen.is_changed(entries, len(entries), 100)
    planner.remove("new")
    del entries["new"]
    assert not planner.seen.is_changed(entries, len(entries), 100)
    later = planner.plan(NOON + timedelta(seconds=100), 100)
    assert sorted(run.entry for run in later.runs) == ["a", "b"]
    assert names.is_current


def test_one_that_ran_in_the_future_has_no_place() -> None:
    planner = planner_of(Case("", {"a": (MINUTELY, -3600)}))
    assert not planner.put("a", planner._names.get()["a"], NOON)
    assert planner.plan(NOON + timedelta(seconds=200), 100).runs == []


def test_the_next_instant_of_a_crontab_is_computed_later() -> None:
    """Whoever is due at once is sent first."""
    hourly = cron("0 * * * *", app=APP)
    planner = planner_of(Case("", {"a": (hourly, 3600), "b": (hourly, 3600), "c": (hourly, 3600)}))
    first = planner.plan(NOON, 2).runs
    assert len(first) == 2
    assert seconds_until(planner.note_claimed(first, NOON)) is None  # the third is due
    assert planner.has_later
    (last,) = planner.plan(NOON, 2).runs
    planner.note_claimed([last], NOON)
    assert planner.plan(NOON, 100).runs == []
    assert seconds_until(planner.place_later(2)) == pytest.approx(3600, abs=0.05)
    assert planner.has_later
    planner.place_later(2)
    assert not planner.has_later
    again = planner.plan(NOON + timedelta(hours=1), 100).runs
    assert {run.due for run in again} == {NOON + timedelta(hours=1)}
    assert len(again) == 3


def test_one_that_is_removed_is_not_computed_later() -> None:
    hourly = cron("0 * * * *", app=APP)
    planner = planner_of(Case("", {"a": (hourly, 3600), "b": (hourly, 3600)}))
    planner.note_claimed(planner.plan(NOON, 2).runs, NOON)
    names = planner._names
    names.is_current = True
    del names.get()["a"]
    planner.remove("a")
    planner.place_later(10)
    assert names.is_current
    assert [run.entry for run in planner.plan(NOON + timedelta(hours=1), 9).runs] == ["b"]
