"""The contract of gate/stores.py: key, last run, start, one-off, enabled, changed since, decodable.
Each adapter has to keep it, with the scheduler and the store themselves. One more is added by a
:class:`tests.stores.Store`, a hand in its store, and a line in KINDS."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler

from celery_zk_beat import clock
from celery_zk_beat.gate.gated import Gated, open_gate, scheduler_class
from celery_zk_beat.gate.giving import Given
from celery_zk_beat.gate.stores import (
    DjangoAdapter,
    FileAdapter,
    RedBeatAdapter,
    SQLAlchemyAdapter,
    StoreAdapter,
    adapter_of,
)
from celery_zk_beat.gate.trouble import Trouble
from celery_zk_beat.runs import RunState, milliseconds
from tests.conftest import PATIENCE
from tests.stores import Code, CodeAndFile, Django, Folder, RedBeat, SQLAlchemy, Store

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
MOMENT = timedelta(milliseconds=2)


@dataclass
class OpenGate:
    """Lets all runs pass, and remembers them as the ledger does."""

    states: dict[str, RunState] = field(default_factory=dict)
    runs: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    #: Of each run, that of the entry as it was dispatched.
    tasks: list[str] = field(default_factory=list)
    gated: Any = None
    producer: Any = None
    #: As before the first beat of all.
    installed: Any = field(default_factory=lambda: SimpleNamespace(is_current=False, is_first=True))
    trouble: Trouble = field(default_factory=lambda: Trouble("shop", lambda exc: False))

    def state(self, name: str) -> RunState | None:
        return self.states.get(name)

    def names_by_key(self) -> dict[str, str]:
        return {state.key: name for name, state in self.states.items() if state.key is not None}

    def holds_back(self, name: str) -> float | None:
        return None

    def waits(self, name: str) -> bool:
        return False

    def dispatch(self, given: Given, due: datetime, claimed: datetime) -> None:
        entry = given.entry
        self.runs.append((entry.name, due, claimed))
        self.tasks.append(entry.task)
        key = self.gated.adapter.key(entry)
        self.states[entry.name] = RunState(claimed, len(self.runs), due, key=key)

    def is_open(self) -> bool:
        return True

    def names(self) -> list[str]:
        return [name for name, _, _ in self.runs]


@dataclass(frozen=True)
class Kind:
    """`adapter` is that which belongs to the store that `make` makes."""

    adapter: type[StoreAdapter]
    make: Callable[[Path, pytest.FixtureRequest], Store]
    module: str = "celery"


KINDS = {
    "Scheduler": Kind(StoreAdapter, lambda *_: Code()),
    "PersistentScheduler": Kind(FileAdapter, lambda *_: CodeAndFile()),
    "own": Kind(StoreAdapter, lambda folder, _: Folder(folder)),
    "RedBeat": Kind(
        RedBeatAdapter,
        lambda _, request: RedBeat(request.getfixturevalue("redis_server").url(1)),
        "redbeat",
    ),
    "SQLAlchemy": Kind(
        SQLAlchemyAdapter, lambda folder, _: SQLAlchemy(folder, None), "sqlalchemy_celery_beat"
    ),
    "SQLAlchemy-MariaDB": Kind(
        SQLAlchemyAdapter,
        lambda folder, request: SQLAlchemy(folder, request.getfixturevalue("mariadb")),
        "sqlalchemy_celery_beat",
    ),
    "Django": Kind(DjangoAdapter, lambda folder, _: Django(folder, None), "django_celery_beat"),
}


class Site:
    """An app whose scheduler is that of a store."""

    def __init__(self, store: Store, folder: Path, stack: ExitStack) -> None:
        self.store, self._stack = store, stack
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.result_expires = None
        self.app.conf.beat_schedule_filename = str(folder / "schedule")
        self.app.conf.update(store.conf)

    @property
    def scheduler(self) -> type[Scheduler]:
        return scheduler_class(self.store.scheduler, "scheduler")

    def open(self, gate: OpenGate | None = None) -> Gated:
        gate = gate or OpenGate()
        gated = open_gate(
            self.scheduler,
            gate,
            app=self.app,
            schedule_filename=self.app.conf.beat_schedule_filename,
            lazy=False,
        )
        gate.gated = weakref.proxy(gated)
        self._stack.callback(gated.throw_away)
        return gated


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found = KINDS[request.param]
    pytest.importorskip(found.module)
    return found


@pytest.fixture
def site(kind: Kind, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "store"
    folder.mkdir()
    if kind.adapter is SQLAlchemyAdapter:
        from sqlalchemy_celery_beat.schedulers import session_manager

        session_manager.prepared = False  # that is of another test's database
    store = kind.make(folder, request)
    with ExitStack() as stack:
        stack.callback(store.close)
        yield Site(store, tmp_path, stack)


def until(gated: Gated, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(min(0.1, max(0.0, gated.turn())))


def turn_for(gated: Gated, seconds: float) -> None:
    end = time.monotonic() + seconds
    until(gated, lambda: time.monotonic() > end)


def wait_for_next_instant(store: Store) -> None:
    """A store that keeps whole seconds cannot tell two instants of one second apart."""
    time.sleep(max(0.01, store.precision.total_seconds()))


# Its class ----------------------------------------------------------------------------------------


def test_it_is_told_from_the_others(site: Site, kind: Kind) -> None:
    """By the scheduler's class, or a site's own that is derived from it."""
    assert adapter_of(site.scheduler) is kind.adapter
    assert adapter_of(type("Own", (site.scheduler,), {})) is kind.adapter
    assert type(site.open().adapter) is kind.adapter


def test_a_family_that_is_only_half_known() -> None:
    """It is taken for one without a store."""

    class HalfEntry(ScheduleEntry):
        model_schedules = ()

    class Half(Scheduler):
        Entry = HalfEntry

    assert adapter_of(Half) is StoreAdapter


# Changed since ------------------------------------------------------------------------------------


def test_all_entries_are_known(site: Site) -> None:
    """Also those that are not due for long; the same dictionary, until one comes or goes."""
    site.store.add("soon", 1)
    site.store.add("late", 30 * 86400)
    gated = site.open()
    known = gated.entries
    assert sorted(known) == ["late", "soon"]
    gated.read_anew()
    assert gated.entries is known or not site.store.tells_lost
    if site.store.is_live:
        wait_for_next_instant(site.store)
        site.store.add("new")
        until(gated, lambda: "new" in gated.entries)
        wait_for_next_instant(site.store)
        site.store.delete("late")
        until(gated, lambda: "late" not in gated.entries)


def test_what_is_changed_is_dispatched(site: Site) -> None:
    """Soon, and nothing of what it was before."""
    if not site.store.is_live:
        pytest.skip("what is changed arrives with the next beat")
    site.store.add("e", 1)
    gate = OpenGate()
    gated = site.open(gate)
    until(gated, lambda: gate.runs)
    wait_for_next_instant(site.store)
    site.store.change("e", task="changed")
    until(gated, lambda: "changed" in gate.tasks)
    turn_for(gated, 1.5)
    assert gate.tasks == sorted(gate.tasks, reverse=True)


def test_no_entry_starves(tmp_path: Path) -> None:
    """Though more is due than can be dispatched, and all are asked anew each time."""
    store, gate = Code(), OpenGate()
    for name in "abc":
        store.add(name, 0.001)
    with ExitStack() as stack:
        gated = Site(store, tmp_path, stack).open(gate)
        for count in range(1, 7):
            time.sleep(0.002)  # all are due again
            gated.read_anew()
            until(gated, lambda count=count: len(gate.runs) == count)  # type: ignore[misc]
    assert sorted(gate.names()[:3]) == [*"abc"]
    assert gate.names()[:3] == gate.names()[3:]


# Enabled ------------------------------------------------------------------------------------------


def test_what_is_disabled_does_not_run(site: Site) -> None:
    """Until it is enabled again, from when its clock goes on."""
    if not site.store.is_live:
        pytest.skip("its entries cannot be disabled")
    site.store.add("e", 1)
    gate = OpenGate()
    gated = site.open(gate)
    until(gated, lambda: gate.runs)
    wait_for_next_instant(site.store)
    site.store.change("e", enabled=False)
    turn_for(gated, 0.3)
    before = len(gate.runs)
    turn_for(gated, 1.5)
    assert len(gate.runs) == before
    site.store.change("e", enabled=True)
    until(gated, lambda: len(gate.runs) == before + 1)


# Last run -----------------------------------------------------------------------------------------


def test_a_clock_that_never_ran(site: Site) -> None:
    """It began when the entry was made, or the scheduler; or that is not known."""
    before = clock.now() - site.store.precision
    site.store.add("e")
    gated = site.open()
    since = gated.adapter.last_run_at(gated.entries["e"])
    first = datetime.min.replace(tzinfo=timezone.utc)
    assert since.tzinfo is timezone.utc
    assert since == first or before <= since <= clock.now()


def test_a_clock_that_never_ran_begins_once(site: Site) -> None:
    """When the ledger first saw the entry, however often its store is read and changed."""
    site.store.add("e", 3600)
    site.store.add("other")
    first = site.open()
    entry = first.entries["e"]
    at = first.adapter.last_run_at(entry)
    gate = OpenGate({"e": RunState(at, key=first.adapter.key(entry))})
    first.throw_away()
    wait_for_next_instant(site.store)
    gated = site.open(gate)
    assert abs(gated.adapter.last_run_at(gated.entries["e"]) - at) < MOMENT
    if site.store.is_live:
        site.store.delete("other")
        until(gated, lambda: "other" not in gated.entries)
        assert abs(gated.adapter.last_run_at(gated.entries["e"]) - at) < MOMENT


def test_a_last_run_that_is_still_to_come(site: Site) -> None:
    """Holds its entry back while its store says so, and no longer."""
    if not site.store.is_live:
        pytest.skip("nobody else writes it")
    site.store.add("e", 1)
    site.store.set_last_run("e", clock.now() + HOUR)
    gate = OpenGate()
    gated = site.open(gate)
    turn_for(gated, 1.5)
    assert gate.runs == []
    wait_for_next_instant(site.store)
    site.store.set_last_run("e", clock.now() - HOUR)
    until(gated, lambda: gate.runs)


def test_a_last_run_by_a_clock_that_was_ahead(site: Site) -> None:
    """The ledger has set it back: the entry goes on from there, not from what its store was told,
    and no instant that follows on that runs again."""
    if not site.store.is_live:
        pytest.skip("a test cannot write it")
    site.store.add("e", 60)
    first = site.open()
    key = first.adapter.key(first.entries["e"])
    first.throw_away()
    now = clock.now().replace(microsecond=0)
    site.store.set_last_run("e", now + HOUR)
    begins, ends = milliseconds(now + HOUR), milliseconds(now + HOUR + 5 * MINUTE)
    state = RunState(now, 6, now + HOUR + 5 * MINUTE, key=key, done=((begins, ends),))
    gated = site.open(OpenGate({"e": state}))
    known = gated.adapter.last_run_at(gated.entries["e"])
    assert abs(known - now) <= site.store.precision


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_what_the_ledger_knows_is_written(site: Site, zone: str) -> None:
    """As exactly as its store has it, which says it to the next scheduler, which has no ledger."""
    site.app.conf.timezone = zone
    site.store.add("e", 60)  # RedBeat is told of what is nearly due
    first = site.open()
    key = first.adapter.key(first.entries["e"])
    first.throw_away()
    at = clock.now()
    wait_for_next_instant(site.store)
    second = site.open(OpenGate({"e": RunState(at, 1, at - HOUR, key=key)}))
    assert abs(second.adapter.last_run_at(second.entries["e"]) - at) < MOMENT
    second.write()
    second.throw_away()
    third = site.open()
    is_known = abs(third.adapter.last_run_at(third.entries["e"]) - at) < site.store.precision
    assert is_known == site.store.keeps_last_run


def test_what_ran_is_written(site: Site) -> None:
    """By the scheduler's class, when it is told to."""
    site.store.add("e", 1)
    gate = OpenGate()
    first = site.open(gate)
    until(first, lambda: gate.runs)
    first.write()
    first.throw_away()
    wait_for_next_instant(site.store)
    second = site.open()
    ((_, _, claimed),) = gate.runs
    ran = second.adapter.last_run_at(second.entries["e"])
    assert (abs(ran - claimed) < site.store.precision) == site.store.keeps_last_run


def test_what_is_thrown_away_writes_nothing(site: Site) -> None:
    """And is gone at once, with its connections."""
    if isinstance(site.store, RedBeat):
        pytest.skip("it writes each run at once")
    site.store.add("e")
    gated = site.open()
    before = gated.adapter.last_run_at(gated.entries["e"])
    wait_for_next_instant(site.store)
    gated.schedule["e"] = gated.reserve(gated.entries["e"])
    ran = gated.adapter.last_run_at(gated.entries["e"])
    site._stack.pop_all()
    gated.throw_away()
    gone = weakref.ref(gated)
    del gated
    assert gone() is None
    wait_for_next_instant(site.store)
    gated = site.open()
    assert ran > before
    assert abs(gated.adapter.last_run_at(gated.entries["e"]) - ran) >= site.store.precision


def test_what_is_due_is_dispatched_once(site: Site) -> None:
    """For the instant at which it was due, and as its clock goes on."""
    site.store.add("e", 1)
    gate = OpenGate()
    gated = site.open(gate)
    until(gated, lambda: gate.runs)
    ((name, due, claimed),) = gate.runs
    assert name == "e"
    assert due <= claimed <= clock.now()
    assert abs(gated.adapter.last_run_at(gated.schedule["e"]) - claimed) < MOMENT


def test_a_run_that_its_store_does_not_know_is_not_repeated(site: Site) -> None:
    """By the next scheduler, that has the same ledger."""
    site.store.add("e", 1)
    gate = OpenGate()
    first = site.open(gate)
    until(first, lambda: gate.runs)
    first.throw_away()
    second = site.open(gate)
    until(second, lambda: len(gate.runs) == 2)
    (_, _, ran), (_, due, _) = gate.runs
    assert due - ran >= timedelta(seconds=1) - MOMENT


# Key ----------------------------------------------------------------------------------------------


def test_the_key_is_that_of_one_entry(site: Site) -> None:
    """It stays while the entry is read anew; of another by the same name it is another."""
    site.store.add("e")
    gated = site.open()
    key = gated.adapter.key(gated.entries["e"])
    assert (key is not None) == site.store.has_rows
    gated.throw_away()
    gated = site.open()
    assert gated.adapter.key(gated.entries["e"]) == key
    gated.throw_away()
    site.store.delete("e")
    site.store.add("other")
    site.store.add("e")
    gated = site.open()
    again = gated.adapter.key(gated.entries["e"])
    assert again != key if site.store.has_rows else again is None


def test_an_entry_of_another_name(site: Site) -> None:
    """What ran under its name before ran; also where its store does not say so."""
    if not site.store.has_rows:
        pytest.skip("an entry is its name")
    site.store.add("e", 3600)
    gate = OpenGate()
    gated = site.open(gate)
    at = clock.now()
    gate.states["e"] = RunState(at, 1, at - HOUR, key=gated.adapter.key(gated.entries["e"]))
    wait_for_next_instant(site.store)
    site.store.change("e", name="other")
    until(gated, lambda: "other" in gated.entries)
    assert gated.renamed == {"other": "e"}
    assert abs(gated.adapter.last_run_at(gated.entries["other"]) - at) < MOMENT
    gated.throw_away()
    gated = site.open(gate)
    assert abs(gated.adapter.last_run_at(gated.entries["other"]) - at) < MOMENT


def test_an_entry_that_is_gone(site: Site) -> None:
    """Deleted or disabled in the store, not merely unseen by this beat; made anew it is another."""
    for name in ("e", "deleted", "disabled", "anew"):
        site.store.add(name)
    gated = site.open()
    keys = {name: gated.adapter.key(entry) for name, entry in gated.entries.items()}
    site.store.delete("deleted")
    site.store.delete("anew")
    if site.store.is_live:
        site.store.change("disabled", enabled=False)
    else:
        site.store.delete("disabled")
    site.store.add("last")  # some tables give the last key again
    site.store.add("anew")
    gated.throw_away()
    gated = site.open()
    assert not gated.has_lost("e", keys["e"])
    assert gated.has_lost("deleted", keys["deleted"]) == site.store.tells_lost
    assert gated.has_lost("disabled", keys["disabled"]) == site.store.tells_lost
    assert gated.has_lost("anew", keys["anew"]) == site.store.has_rows
    if site.store.has_rows:
        # Claimed by a scheduler that has no keys, or out of sight: who knows.
        assert not gated.has_lost("deleted", None)
        del gated.entries["e"]
        assert not gated.has_lost("e", keys["e"])


# Start --------------------------------------------------------------------------------------------


def test_the_start(site: Site) -> None:
    """An entry is not due before, whenever its store pretends that it ran."""
    start = clock.now().replace(microsecond=0) + HOUR
    site.store.add("e")
    more = {"start_time": start} if site.store.has_rows else {}
    site.store.add("later", 1, **more)
    gated = site.open()
    assert gated.adapter.start(gated.entries["e"]) is None
    assert gated.adapter.start(gated.entries["later"]) == more.get("start_time")


def test_it_runs_at_its_start(site: Site) -> None:
    if not site.store.has_rows:
        pytest.skip("its entries have no start")
    start = clock.now().replace(microsecond=0) + timedelta(seconds=2)
    site.store.add("e", 3600, start_time=start)
    gate = OpenGate()
    gated = site.open(gate)
    until(gated, lambda: gate.runs)
    ((_, due, claimed),) = gate.runs
    assert due == start <= claimed


def test_a_crontab_waits_for_its_instant_after_the_start(site: Site) -> None:
    """Also where another master looks at it first; its class has it run at its start, whatever the
    hour (django-celery-beat#912)."""
    if not site.store.has_rows:
        pytest.skip("its entries have no start")
    now = clock.now()
    later, past = now + timedelta(minutes=90), now - timedelta(minutes=1)
    site.store.add_crontab("e", later.minute, later.hour, start_time=past)
    at = clock.now()
    gate = OpenGate()
    first = site.open(gate)
    key = first.adapter.key(first.entries["e"])
    turn_for(first, 1.0)
    assert abs(first.adapter.last_run_at(first.entries["e"]) - at) < timedelta(seconds=2)
    first.throw_away()
    known = OpenGate({"e": RunState(at, key=key)})
    second = site.open(known)
    turn_for(second, 1.0)
    assert gate.runs == known.runs == []


# One-off ------------------------------------------------------------------------------------------


def test_a_one_off_runs_once(site: Site) -> None:
    """Also where its scheduler is thrown away before it has written the run; and once more when it
    is enabled again."""
    if not site.store.has_rows:
        pytest.skip("all of its entries run again and again")
    site.store.add("e", 1, one_off=True)
    gate = OpenGate()
    first = site.open(gate)
    until(first, lambda: gate.runs)
    first.throw_away()
    wait_for_next_instant(site.store)
    second = site.open(gate)
    key = gate.states["e"].key
    until(second, lambda: "e" not in second.entries)
    assert second.has_lost("e", key)
    turn_for(second, 1.5)
    assert gate.names() == ["e"]
    site.store.change("e", enabled=True)
    until(second, lambda: len(gate.runs) == 2)
    turn_for(second, 1.5)
    assert gate.names() == ["e", "e"]


# Decodable ----------------------------------------------------------------------------------------


def test_one_that_cannot_be_decoded(site: Site) -> None:
    """The others run, also where it was one of them before; it is not."""
    if not site.store.is_live:
        pytest.skip("its entries are Python's")
    site.store.add("damaged", 1)
    site.store.add("e", 1)
    gate = OpenGate()
    gated = site.open(gate)
    until(gated, lambda: {"e", "damaged"} <= set(gate.names()))
    wait_for_next_instant(site.store)
    site.store.damage("damaged")
    turn_for(gated, 0.3)
    before = len(gate.runs)
    until(gated, lambda: len(gate.runs) == before + 2)
    assert gate.names()[before:] == ["e", "e"]
