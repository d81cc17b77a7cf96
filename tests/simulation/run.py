"""One simulated run: some beats, an ensemble, a broker, faults, and what became of the runs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Callable, ClassVar
from unittest import mock

from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedstate, schedule
from kombu.messaging import Producer

from celery_zk_beat import ZooKeeperScheduler, clock, schedulers
from celery_zk_beat.backfills import Backfills
from celery_zk_beat.control import BACKFILL, RESIGN, RUN, Pauses, RequestRecord
from celery_zk_beat.gate import entries, gated
from celery_zk_beat.gate.stores import StoreAdapter
from celery_zk_beat.paths import Paths
from celery_zk_beat.records import to_text
from celery_zk_beat.schedules import every
from celery_zk_beat.zookeeper import client

from . import outcomes as tracked
from . import scenario as scenarios
from . import world as simulated
from .broker import Broker, Sent
from .checker import Checker
from .client import SimulatedKazoo
from .ensemble import Ensemble, Link, Tree, Znode
from .guard import Guard
from .live import NAMES, STEPS, TASKS, Live, patches
from .outcomes import Outcomes
from .scenario import OUTCOMES
from .world import BEGINNING, Machine, World

logger = logging.getLogger(__name__)

BEATS = ("one", "two", "three")
ROOT = "/simulated"
SESSION_TIMEOUT = 4.0
PUBLISH_DEADLINE = 8.0
PERIODS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 7.0, "e": 40.0}
#: Entries that only one of the two variants of the code knows.
VARIANTS = ({"old": 3.0}, {"new": 3.0})
#: Entries whose schedule is of a class that is asked whether it is due.
ASKED = ("b", "d")
#: Entries that are due at multiples of so many seconds, as crontabs are at full minutes.
FIXED = {"t": 1.0}
#: Seconds within which everything must be well again when nothing is wrong any more: a session's
#: time-out, a publish that hangs, back-off, a resignation or two.
RECOVERY = 90.0
#: For how many seconds nothing happens then, longer than PUBLISH_DEADLINE; and by how much the runs
#: may be late meanwhile, where nothing takes long.
CALM, PROMPT = 12.0, 1.0
#: Seconds of a broker that is well between two of its outages.
AFTER_OUTAGE = 6.0
#: Most seconds between two faults, in one run or another.
RHYTHMS = (0.2, 0.6, 2.0)


#: A scenario: beats have guards, and die.
GUARDS = "guards"


class Asked(schedule):
    pass


class Fixed(schedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        since = last_run_at - datetime.fromtimestamp(0, timezone.utc)
        every: timedelta = self.run_every
        now: datetime = self.now()
        return last_run_at + every - since % every - now

    def is_due(self, last_run_at: datetime) -> schedstate:
        left = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(left <= 0, left if left > 0 else self.seconds)


class _Celery(Celery):
    def now(self) -> Any:
        World.active.breathe()
        return simulated.now()


class _Producer(Producer):
    """Making a message takes its time."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        World.active.breathe()
        published = super().publish(*args, **kwargs)  # type: ignore[no-untyped-call]
        World.active.breathe()
        return published


def _make_app(name: str) -> Celery:
    app = _Celery("simulated", broker="simulated://", set_as_current=False)
    app.conf.update(
        zk_beat_hosts="z1,z2,z3",
        zk_beat_root=ROOT,
        zk_beat_id=name,
        zk_beat_session_timeout=SESSION_TIMEOUT,
        zk_beat_publish_deadline=PUBLISH_DEADLINE,
        result_expires=None,
    )
    app.amqp.Producer = _Producer
    return app


class Stored(Scheduler):
    """As a database scheduler: all beats have one store, which is written now and then."""

    #: Name to `last_run_at` and `total_run_count`.
    store: ClassVar[dict[str, tuple[Any, int]]] = {}
    #: Beats that do not reach it.
    unreached: ClassVar[Collection[str]] = ()
    sync_every_tasks = 7

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.dirty: set[str] = set()
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        super().setup_schedule()
        World.active.breathe()
        if World.active.here.name in self.unreached:
            raise ConnectionRefusedError("simulated: no database")
        for name, entry in self.schedule.items():
            last = entry.last_run_at, 0
            entry.last_run_at, entry.total_run_count = self.store.setdefault(name, last)

    def reserve(self, entry: Any) -> Any:
        self.dirty.add(entry.name)
        return super().reserve(entry)

    def should_sync(self) -> bool:
        return bool(self._tasks_since_sync >= self.sync_every_tasks)

    def sync(self) -> None:
        World.active.breathe()
        while self.dirty:
            name = self.dirty.pop()
            if name in self.schedule:
                entry = self.schedule[name]
                self.store[name] = entry.last_run_at, entry.total_run_count


class Rows(Stored):
    """As one that keeps its entries in a table, where they are given other names."""

    #: The names of the rows, by their keys, which are the names of their tasks.
    names: ClassVar[dict[str, str]] = {}

    def setup_schedule(self) -> None:
        self.read()
        super().setup_schedule()

    def read(self) -> None:
        World.active.breathe()
        self.as_read = dict(self.names)
        code = self.app.conf.beat_schedule
        entries = {}
        for key, name in self.as_read.items():
            fields = {**code[key], "name": name, "app": self.app}
            entry = entries[name] = self.Entry(**fields)
            last = entry.last_run_at, 0
            entry.last_run_at, entry.total_run_count = self.store.setdefault(key, last)
        self.data, self._heap = entries, None

    def get_schedule(self) -> Any:
        if self.as_read != self.names:
            self.sync()
            self.read()
        return self.data

    def set_schedule(self, entries: Any) -> None:
        self.data = entries

    schedule = property(get_schedule, set_schedule)

    def reserve(self, entry: Any) -> Any:
        """Looks at the table once more, as one does whose class leaves that to Celery."""
        new = next(entry)
        if entry.name in self.schedule:
            self.dirty.add(entry.name)
        return new

    def sync(self) -> None:
        World.active.breathe()
        while self.dirty:
            entry = self.data.get(self.dirty.pop())
            if entry is not None:
                self.store[entry.task] = entry.last_run_at, entry.total_run_count


class RowsAdapter(StoreAdapter):
    """Its rows are never deleted, and tell when their clocks began."""

    def key(self, entry: Any) -> str | None:
        return str(entry.task)

    def has_run(self, entry: Any, since: datetime) -> bool:
        return True


def _adapter_of(scheduler: type[Scheduler]) -> type[StoreAdapter]:
    return RowsAdapter if issubclass(scheduler, Rows) else StoreAdapter


_apps = {name: _make_app(name) for name in BEATS}
_workers_app = _make_app("workers")


#: Of what a beat may elect: one without a store, and one whose store is behind.
PLAIN, STORED, ROWS = "celery.beat:Scheduler", f"{__name__}:Stored", f"{__name__}:Rows"


def _comes_first(one: ScheduleEntry, other: ScheduleEntry) -> bool:
    return str(one.name) < str(other.name)


@contextlib.contextmanager
def simulation() -> Iterator[None]:
    """Within, the package runs on the world's clock, threads and network."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(clock, **simulated.CLOCK))
        stack.enter_context(mock.patch.object(client, "KazooClient", SimulatedKazoo))
        for module in (gated, entries):
            stack.enter_context(mock.patch.object(module, "adapter_of", _adapter_of))
        stack.enter_context(mock.patch.object(schedulers, "Guard", Guard))
        stack.enter_context(patches())
        stack.enter_context(tracked.patches())
        # Celery orders entries that are due at the same instant by where they are in memory.
        stack.enter_context(mock.patch.object(ScheduleEntry, "__lt__", _comes_first))
        yield


@dataclass(frozen=True)
class Fault:
    """Something that happens at `at`, to the beat `who` where it is about one; over after `length`
    seconds. With `after`, it happens just after the next message, or the next write, from then."""

    at: float
    what: str
    who: str
    length: float
    after: str

    def __str__(self) -> str:
        after = f", after the next {self.after}," if self.after else ""
        return f"{self.at:7.3f} s{after}: {self.what} {self.who} for {self.length:.3f} s"


class Beat:
    """A beat in its lives; as `celery beat` calls the scheduler."""

    def __init__(self, run: Run, name: str, variant: int) -> None:
        self.run, self.name, self.variant = run, name, variant
        self.link = Link()
        self.machine: Machine | None = None
        self.scheduler: ZooKeeperScheduler | None = None
        self.clock_offset = 0.0
        self.stopping = False

    def start(self) -> None:
        if self.machine is not None and self.machine.alive:
            return
        world = self.run.world
        self.stopping = False
        self.machine = machine = Machine(world, self.name)
        machine.clock_offset = self.clock_offset
        self.run.broker.lives[self.name] = self.run.broker.lives.get(self.name, 0) + 1
        app = _apps[self.name]
        scenario = self.run.scenario
        entries = {**PERIODS, **FIXED, **VARIANTS[self.variant], **scenario.entries}
        if self.run.gated == ROWS:
            entries.update((row, PERIODS.get(row, 3.0)) for row in Rows.names if row not in entries)
        entries.update(scenario.own.get(self.name, {}))
        kinds = {**dict.fromkeys(ASKED, Asked), **dict.fromkeys(FIXED, Fixed)}
        kinds.update({name: every for name, rule in scenario.rules.items() if rule.is_fixed})
        app.conf.beat_schedule = {
            entry: {
                "task": entry,
                "schedule": kinds.get(entry, schedule)(period),
                **scenario.options(entry),
            }
            for entry, period in entries.items()
        }
        app.conf.zk_beat_recovery = self.run.recovery
        app.conf.zk_beat_scheduler = self.run.gated
        app.conf.zk_beat_policies = scenario.policies(self.variant)
        app.conf.zk_beat_fast_takeover = self.run.guarded
        app.conf.zk_beat_entries = self.run.live is not None
        app.conf.zk_beat_entries_tasks = TASKS
        app.conf.zk_beat_outcomes = "worker" if self.run.outcomes is not None else None
        with world.on(machine):
            self.scheduler = scheduler = ZooKeeperScheduler(app=app)
            simulated.Thread(target=lambda: self._serve(scheduler), name="main").start()

    @property
    def is_master(self) -> bool:
        # Not by the attribute, which would make one.
        loop = self.scheduler and vars(self.scheduler).get("_loop")
        return loop is not None and loop.election.is_master

    def _serve(self, scheduler: ZooKeeperScheduler) -> None:
        while scheduler._patience_ends is None:
            scheduler.tick()

    def stop(self) -> None:
        """SIGTERM."""
        machine, scheduler = self.machine, self.scheduler
        if machine is None or not machine.alive or scheduler is None:
            return

        self.stopping = True

        def close() -> None:
            assert scheduler is not None
            scheduler.close()
            self.run.world.after(0.0, lambda: self._end(machine))

        with self.run.world.on(machine):
            simulated.Thread(target=close, name="signal").start()

    def kill(self) -> None:
        if self.machine is not None:
            self._end(self.machine)

    def _end(self, machine: Machine) -> None:
        if machine.alive:
            self.run.checker.hurt(self.name, machine.failures)
            machine.die()
            for connection in self.link.connections:
                connection.hang_up()
            self.link.connections.clear()


class Run:
    """Made of two seeds: what goes wrong, and in which order all else happens."""

    def __init__(self, seed: int, only: Collection[int] | None = None) -> None:
        plan = random.Random(f"plan {seed}")
        self.seed = seed
        slow, distance = plan.choice(((0.0, 1.0), (0.0, 10.0), (0.002, 1.0), (0.05, 1.0)))
        self.world = World(seed, slow, distance)
        self.recovery = plan.choice(("resend", "resend", "drop"))
        self.scenario = scenario = scenarios.choose(
            random.Random(f"scenario {seed}"), BEATS, slow > 0
        )
        self._limits = scenario.limits()
        self.ensemble = Ensemble(self.world)
        self.ensemble.most_bytes = scenario.most_bytes
        self.broker = Broker(self.world)
        self.paths = Paths(ROOT)
        self.checker = Checker(self.world, self.recovery, PERIODS, ROOT, SESSION_TIMEOUT)
        self.ensemble.observers.append(self.checker.on_write)
        self.broker.observers.append(self.checker.on_sent)
        self.broker.receivers.append(self.checker.on_arrived)
        self.checker.pages_are_small = scenario.is_small
        self.checker.broken = scenario.broken.keys()
        self.checker.unmade = {
            name for name, why in scenario.broken.items() if why == scenarios.UNMADE
        }
        self.beats = {name: Beat(self, name, plan.randrange(2)) for name in BEATS}
        for name, latency in scenario.latency.items():
            self.beats[name].link.latency = latency
        SimulatedKazoo.ensemble = self.ensemble
        SimulatedKazoo.links = {name: beat.link for name, beat in self.beats.items()}
        Guard.ensemble, Guard.links = self.ensemble, SimulatedKazoo.links
        Guard.fail = self.checker.fail
        self._healed = False
        #: Has ZooKeeper be restored, where its data is lost.
        self._lost: Callable[[], None] | None = None
        self.faults = list(_plan(plan))
        # By a seed of their own: so all else is as it would be without.
        guards = random.Random(f"guards {seed}")
        #: Whether beats have guards.
        self.guarded = guards.random() < 0.7 or scenarios.CHOSEN == GUARDS
        self.faults += _plan_deaths(guards) if self.guarded else ()
        if scenarios.CHOSEN == "plain":
            self.faults = [fault for fault in self.faults if fault.what not in UNUSUAL]
        if scenario.clocks_are_right:
            self.faults = [each for each in self.faults if not each.what.startswith("clock")]
        for what, who, after in MORE.get(scenarios.CHOSEN or "", ()):
            self.faults.append(Fault(plan.uniform(1, 4), what, who, plan.uniform(0, 2), after))
        self.faults += _backfills(random.Random(f"backfills {seed}"))
        Stored.store.clear()
        self.gated = plan.choice((None, None, PLAIN, STORED))
        self._have_rows(seed)
        self.live: Live | None = None
        self._have_live(seed)
        self.outcomes: Outcomes | None = None
        self._have_outcomes(seed)
        if self.gated in (STORED, ROWS):
            # A store that was told of a time in the future holds its entries back until then.
            far = (CLOCK_FAR, CLOCK_FAR_FOR_A_MOMENT)
            self.faults = [fault for fault in self.faults if fault.what not in far]
        if self.gated is None:
            self.checker.rhythmic = PERIODS.keys() - ASKED
        else:
            scenario.leave_to_gated()
        finite = {name for name, rule in scenario.rules.items() if rule.is_finite}
        self.checker.crowd = scenario.entries.keys() - scenario.broken.keys() - finite
        self.checker.policies.rules = scenario.rules
        self.checker.policies.is_gated = self.gated is not None
        self.checker.clocks_are_right = self.checker.policies.clocks_are_right = not any(
            fault.what.startswith("clock") for fault in self.faults
        )
        kinds = {fault.what for fault in self.faults}
        self.checker.live.clocks_are_right = self.checker.clocks_are_right
        self.checker.live.server_is_right = "clock of ZooKeeper" not in kinds
        self.checker.outcomes.server_is_right = self.checker.live.server_is_right
        self.checker.outcomes.clocks_are_right = self.checker.clocks_are_right
        lost = WIPED in kinds or RESTORED in kinds
        self.checker.eras_grow = not (lost and "clock of ZooKeeper" in kinds)
        asked = ASK in kinds or FILL in kinds
        self.checker.numbers_may_differ = lost and (
            asked or bool(scenario.rules) or self.live is not None
        )
        self.checker.has_store = self.gated in (STORED, ROWS)
        self.checker.store_knows_more = lost and self.gated == STORED
        self.broker.together = plan.choice((True, True, False))
        Stored.unreached = ()
        if scenario.useless and self.gated == STORED:
            Stored.unreached = scenario.useless
        else:
            self.broker.unreached = scenario.useless
        self.broker.refused = {
            name for name, why in scenario.broken.items() if why == scenarios.REFUSED
        }
        if self.broker.refused:
            self.broker.together = False
        # Of a seed of its own, so that all else is as it was without.
        self.hooked = not lost and random.Random(f"hooks {seed}").random() < 0.3
        if self.hooked:
            self._limits.enter_context(mock.patch.object(Scheduler, "apply_entry", self._hook()))
        self.checker.hooked = self.hooked
        #: What ZooKeeper may be restored from: copies of each second.
        self._copies: list[tuple[Tree, int]] = []
        self._only = only
        #: Numbers of the faults that happened.
        self.happened: list[int] = []
        #: Faults that wait for a message or a write, or come just before a write.
        self._waiting: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self.ensemble.before_write = self._come_before
        self.broker.observers.append(lambda _: self._trigger("message"))
        #: Beats that die when they have handed their next message to the kernel.
        self._dying: set[str] = set()
        self.broker.observers.append(self._die)
        self.ensemble.observers.append(lambda *_: self._trigger("write"))

    def _hook(self) -> Callable[..., None]:
        """As of a tool that wraps Celery's scheduler: with a header of its own each time."""
        apply_entry, calls = Scheduler.apply_entry, itertools.count(1)

        def hook(scheduler: Any, entry: Any, producer: Any = None) -> None:
            beat = self.world.here.name
            life = f"{beat} in life {self.broker.lives[beat]}"
            headers = entry.options.get("headers") or {}
            self.checker.on_hook(life, entry.name, headers.get("zk_beat"))
            self.world.breathe()
            entry.options["headers"] = {"hook": f"{next(calls)} by {life}"}
            apply_entry(scheduler, entry, producer=producer)

        return hook

    def _have_live(self, seed: int) -> None:
        """In some runs there are live entries, and writers of them."""
        chosen, is_plain = scenarios.CHOSEN == scenarios.LIVE, self.scenario == scenarios.Scenario()
        chance = random.Random(f"live {seed}").random()
        if chosen:
            self.gated = self.checker.rows = None
        elif self.gated or not is_plain or chance > 0.2 or scenarios.CHOSEN:
            return
        self.live = Live(seed, self.world, self.ensemble, self.checker.live)
        SimulatedKazoo.links.update({each.name: each.link for each in self.live.writers.values()})

    def _have_outcomes(self, seed: int) -> None:
        """In some runs there are entries that are tracked, and workers."""
        chosen, is_plain = scenarios.CHOSEN == OUTCOMES, self.scenario == scenarios.Scenario()
        chance = random.Random(f"outcomes {seed}").random()
        if chosen:
            self.gated = self.checker.rows = None
        elif self.gated or self.live or not is_plain or chance > 0.15 or scenarios.CHOSEN:
            return
        checker = self.checker.outcomes
        self.outcomes = Outcomes(seed, self.world, self.ensemble, checker, _workers_app)
        SimulatedKazoo.links.update({w.name: w.link for w in self.outcomes.workers.values()})
        self.broker.receivers.append(self.outcomes.on_arrived)
        self.scenario.rules = self.outcomes.rules()
        self.scenario.entries = {name: rule.period for name, rule in self.scenario.rules.items()}
        # What was open is another matter where ZooKeeper has other data.
        self.faults = [each for each in self.faults if each.what not in (WIPED, RESTORED)]
        self.faults += [
            Fault(at, what, who, length, "") for at, what, who, length in self.outcomes.faults()
        ]
        checker.rules = self.scenario.rules

    def _have_rows(self, seed: int) -> None:
        """In some runs of a store it is a table of rows, of which the names change."""
        plan = random.Random(f"rows {seed}")
        chosen, is_plain = scenarios.CHOSEN == "renames", self.scenario == scenarios.Scenario()
        if not (chosen or (self.gated == STORED and is_plain and plan.random() < 0.5)):
            return
        self.gated, self.checker.rows = ROWS, {}
        rows = [*PERIODS, *FIXED, *VARIANTS[0], *VARIANTS[1], *self.scenario.entries]
        Rows.names = {row: row for row in rows}
        # By what name somebody asks for a row, and what ZooKeeper knows of it, is left out.
        without = (PAUSE, WIPED, RESTORED)
        self.faults = [fault for fault in self.faults if fault.what not in without]
        for _ in range(plan.choice((1, 4, 12))):
            after = plan.choice(("", "message", "write", JUST_BEFORE))
            at = plan.uniform(0.5, 12)
            self.faults.append(Fault(at, RENAME, OPERATOR, plan.uniform(0, 1), after))

    def _rename(self, fault: Fault) -> None:
        """Some rows change places, or one gets a name that no other has, or had once."""
        plan = random.Random(f"{self.seed} {fault.at}")
        names, rows = Rows.names, plan.sample(sorted(PERIODS), plan.choice((1, 2, 2, 3)))
        new = [names[row] for row in (*rows[1:], rows[0])]
        if len(rows) == 1 or plan.random() < 0.5:
            free = {f"new{n}" for n in range(3)} - {*names.values()}
            new[-1] = plan.choice(sorted({*free, f"new{fault.at}"}))
        Rows.names = {**names, **dict(zip(rows, new))}
        logger.info("%7.3f s: rows have names: %s", self.world.now, Rows.names)

    def go(self, steps: int) -> None:
        """Lets `steps` things happen, then all be well again. See ``checker.violation``."""
        world, checker = self.world, self.checker
        self._start()
        if self.live is not None:
            steps *= STEPS
        if self.outcomes is not None:
            steps *= tracked.STEPS
        world.run(lambda: checker.violation or world.steps >= steps, float("inf"))
        self._suffer_outages()
        if self._lost is not None:
            # Not sooner: nobody is to be master of what is lost.
            world.run(lambda: self._lost is None, SESSION_TIMEOUT)
            if self._lost is not None:
                self._lost()
        if not checker.violation:
            self._heal()
            checker.useless |= self.scenario.useless
            self._get_well(len(BEATS))
            if self.scenario.useless or self.scenario.broken or self.live:
                self._stay_well()
            if not self.scenario.useless:
                # None of them needs a hand: each can take over.
                self._hand_over()
                self._hand_over()
            self._be_quiet()
            self._finish()

    def _start(self) -> None:
        world = self.world
        for beat in self.beats.values():
            world.after(world.random.uniform(0, 0.5), beat.start)
        if self.live is not None:
            self.live.start()
        if self.outcomes is not None:
            self.outcomes.start()
        for number, fault in enumerate(self.faults):
            begin = partial(self._begin, number, fault)
            if fault.after:
                begin = partial(self._wait_for, fault.after, begin)
            world.after(fault.at, begin)
        if any(fault.what == RESTORED for fault in self.faults):
            self._copy()

    def _finish(self) -> None:
        self.checker.finish(self.alive())
        if self.live is not None:
            for name, failures in self.live.failures.items():
                self.checker.hurt(name, failures)
        for worker in self.outcomes.workers.values() if self.outcomes else ():
            self.checker.hurt(worker.name, worker.machine.failures if worker.machine else ())

    def end(self) -> None:
        """Lets go of the threads, which would be kept for ever."""
        for beat in self.alive():
            assert beat.machine is not None
            beat.machine.die()
        if self.outcomes is not None:
            self.outcomes.end()
        Guard.end_all()
        self._limits.close()

    def _suffer_outages(self) -> None:
        """Nobody reaches the broker, and all take turns; after each there is a deploy."""
        for own in self.scenario.deploys:
            self._suffer(self.scenario.outage, "refusing")
            self.scenario.own = own
            for beat in self.beats.values():
                self.checker.on_fault(beat.name, self.world.now, 0.0)
                beat.kill()
            self._suffer(AFTER_OUTAGE, "fine")
        self._suffer(self.scenario.outage, "refusing")

    def _suffer(self, seconds: float, mood: str) -> None:
        if seconds == 0.0 or self.checker.violation:
            return
        logger.info("%7.3f s: the broker is %s to all for %g s", self.world.now, mood, seconds)
        for beat in self.beats.values():
            self.broker.set_mood(beat.name, mood)
            self.checker.on_fault(beat.name, self.world.now, seconds)
            beat.start()
        since = self.world.now
        self.world.run(lambda: self.checker.violation or self.world.now > since + seconds, seconds)

    def _stay_well(self) -> None:
        """What is wrong with some beats, or with some entries, harms no others."""
        checker, since, epoch = self.checker, self.world.now, self.checker.epoch
        checker.begin_calm(CALM if self.world.is_slow else PROMPT * self.world.distance)
        self.world.run(lambda: checker.violation or self.world.now > since + CALM, CALM)
        checker.end_calm(self.checker.epoch if self.world.is_slow else epoch)

    def _copy(self) -> None:
        if self.live is None or not self.live.is_damaged:
            self._copies.append(self.ensemble.copy())
        self.world.after(1.0, self._copy)

    def _restore(self, copy: tuple[Tree, int]) -> None:
        self.ensemble.stop()
        if self.live is not None:
            self.live.lost()
        self.ensemble.restore(copy)
        self.checker.on_restore(copy[0])
        self.ensemble.start()

    def _get_well(self, count: int) -> None:
        checker = self.checker
        since = self.world.now

        def over() -> object:
            is_quiet = self.live is None or self.live.is_quiet
            return checker.violation or (is_quiet and checker.is_well(self.alive(), count, since))

        if not self.world.run(over, RECOVERY):
            checker.fail(f"I6: not well after {RECOVERY:g} s: {self!r}")

    def _be_quiet(self) -> None:
        """Nothing is due any more: all that is open is closed."""
        outcomes, checker = self.outcomes, self.checker
        if outcomes is None or checker.violation:
            return
        self._change_pauses(lambda pauses, now: pauses.pause(None, now))
        most = outcomes.timeout + SESSION_TIMEOUT + 15.0
        tree = self.ensemble
        if not self.world.run(lambda: not checker.outcomes.left(tree.tree), most):
            left = checker.outcomes.left(tree.tree)
            checker.fail(f"I6: left after {most:g} s in which nothing was due: {left}")

    def _hand_over(self) -> None:
        beats = self.alive()
        masters = [beat for beat in beats if beat.is_master]
        if self.checker.violation or not masters:
            return
        (master,) = masters
        count = len(self.broker.sent)
        self.world.run(lambda: len(self.broker.sent) > count, RECOVERY)
        self.world.run(lambda: False, self.world.random.expovariate(2000))
        kinds = ("kill", "stop") if self.checker.useless else ("kill", "stop", "broker refuses")
        how = self.world.random.choice(kinds)
        logger.info("%7.3f s: %s %s", self.world.now, how, master.name)
        if how != "stop":
            self.checker.on_fault(master.name, self.world.now, 0.0)
        self._verb(Fault(0.0, how, master.name, 0.0, ""))[0]()
        stays = how == "broker refuses"
        if stays:
            self.checker.useless.add(master.name)
        self._get_well(len(beats) - (not stays))

    def _die(self, sent: Sent) -> None:
        if sent.machine in self._dying:
            self._dying.discard(sent.machine)
            self.checker.on_fault(sent.machine, self.world.now, 0.0)
            kill = self.beats[sent.machine].kill
            soon = self.world.random.expovariate(2000)
            self.world.after(soon, lambda: None if self._healed else kill())

    def _wait_for(self, what: str, begin: Callable[[], None]) -> None:
        self._waiting[what].append(begin)

    def _come_before(self) -> None:
        before, self._waiting[JUST_BEFORE] = self._waiting[JUST_BEFORE], []
        for begin in before:
            begin()

    def _trigger(self, what: str) -> None:
        waiting, self._waiting[what] = self._waiting[what], []
        for begin in waiting:
            self.world.after(self.world.random.expovariate(2000), begin)

    def alive(self) -> list[Beat]:
        return [beat for beat in self.beats.values() if beat.machine and beat.machine.alive]

    def __repr__(self) -> str:
        beats = ", ".join(
            f"{beat.name}: {beat.scheduler and beat.scheduler.election!r} "
            f"{beat.scheduler and beat.scheduler._loop.ledger!r} "
            f"{beat.machine.failures if beat.machine else ''}"
            for beat in self.beats.values()
        )
        return f"<seed {self.seed}, {self.world.now:.3f} s, {beats}>"

    def _begin(self, number: int, fault: Fault) -> None:
        # One that is left out takes its step all the same: else all that comes after would differ.
        if self._healed or not (self._only is None or number in self._only):
            return
        logger.info("%s", fault)
        self.happened.append(number)
        if fault.what not in ("stop", "deploy") and fault.who != OPERATOR:
            self.checker.on_fault(fault.who, self.world.now, fault.length)
        begin, end = self._verb(fault)
        begin()
        self.world.after(fault.length, lambda: None if self._healed else end())

    def _heal(self) -> None:
        self._healed = True
        if self.live is not None:
            self.live.heal()
        if self.outcomes is not None:
            self.outcomes.heal()
        self._dying.clear()
        own, self.scenario.own = self.scenario.own, {}
        self._change_pauses(lambda pauses, now: Pauses())
        self.ensemble.start()
        self.ensemble.clock_offset = 0.0
        for beat in self.beats.values():
            beat.link.set()
            self.broker.set_mood(beat.name)
            if beat.machine is not None and beat.machine.paused:
                beat.machine.resume()
            beat.clock_offset = 0.0
            if beat.machine is not None:
                beat.machine.clock_offset = 0.0
            if beat.stopping or beat.name in own or not self.world.random.randrange(2):
                self.checker.on_fault(beat.name, self.world.now, 0.0)
                beat.kill()
            beat.start()

    # A table of faults, and the small functions that its rows need.
    def _verb(self, fault: Fault) -> tuple[Callable[[], None], Callable[[], None]]:  # noqa: C901
        """How a fault begins, and how it ends."""
        beat = self.beats.get(fault.who)
        ensemble, set_mood = self.ensemble, self.broker.set_mood
        if beat is None:
            if self.outcomes is not None and fault.who in self.outcomes.workers:
                return self.outcomes.workers[fault.who].verb(fault.what, fault.length)
            if fault.who == OPERATOR:
                return self._operate(fault)
            if fault.what == "no quorum":
                return ensemble.stop, lambda: None if self._lost else ensemble.start()
            if fault.what in (WIPED, RESTORED):
                return self._lose(fault)
            if fault.what == "master deleted":
                return lambda: self._delete_master(), lambda: None
            assert fault.what == "clock of ZooKeeper"
            return lambda: self._shift(fault.length), lambda: None

        def step(seconds: float) -> None:
            beat.clock_offset += seconds if fault.at % 1 < 0.5 else -seconds
            if beat.machine is not None:
                beat.machine.clock_offset = beat.clock_offset

        def pause() -> None:
            if beat.machine is not None:
                beat.machine.pause()
                self.world.after(NO_SIGN_AFTER, lambda: Guard.no_sign_of(beat.name))

        def full_kernel() -> None:
            set_mood(beat.name, "kernel")
            self._dying.add(beat.name)

        def start_well() -> None:
            set_mood(beat.name)
            beat.start()

        def machine(do: str) -> Callable[[], None]:
            return lambda: getattr(beat.machine, do)() if beat.machine is not None else None

        def deploy() -> None:
            beat.variant = 1 - beat.variant
            beat.stop()

        def link(**state: Any) -> tuple[Callable[[], None], Callable[[], None]]:
            return lambda: beat.link.set(**state), lambda: beat.link.set()

        def mood(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
            return lambda: set_mood(beat.name, name), lambda: set_mood(beat.name)

        far = 500 * fault.length

        return {
            "kill": (beat.kill, beat.start),
            "stop": (beat.stop, beat.start),
            "deploy": (deploy, beat.start),
            "pause": (pause, machine("resume")),
            FULL_KERNEL: (full_kernel, start_well),
            FILES_CLOSED: (lambda: Guard.no_sign_of(beat.name), lambda: None),
            "cut": link(cut=True),
            "block": link(blocked=frozenset({"requests", "answers"})),
            "block requests": link(blocked=frozenset({"requests"})),
            "block answers": link(blocked=frozenset({"answers"})),
            "delay": link(delay=fault.length / 3),
            "broker slow": mood("slow"),
            "broker refuses": mood("refusing"),
            "broker's answers lost": mood("answer lost"),
            "broker a black hole": mood("black hole"),
            "broker alarmed": mood("alarm"),
            "clock": (lambda: step(fault.length), lambda: None),
            CLOCK_FAR: (lambda: step(far), lambda: None),
            CLOCK_FAR_FOR_A_MOMENT: (lambda: step(far), lambda: step(-far)),
        }[fault.what]

    def _lose(self, fault: Fault) -> tuple[Callable[[], None], Callable[[], None]]:
        """Its data is lost, and it takes longer than a session to be there again."""
        copy: tuple[Tree, int] = ({"/": Znode(b"", 0, 0, 0.0)}, 0)
        if fault.what == RESTORED:
            copy = self._copies[round(1e6 * fault.at) % len(self._copies)]

        def again() -> None:
            if self._lost is again:
                self._lost = None
                self._restore(copy)

        def lose() -> None:
            self.ensemble.stop()
            self._lost = again

        return lose, lambda: self.world.after(SESSION_TIMEOUT, again)

    def _operate(self, fault: Fault) -> tuple[Callable[[], None], Callable[[], None]]:
        """What an operator asks, and how he takes it back."""
        if fault.what == RENAME:
            return lambda: self._rename(fault), lambda: None
        entries = [*PERIODS, *(self.scenario.rules if fault.what != FILL else ())]
        if self.live is not None and fault.what != FILL:
            entries += NAMES
        entry: str | None = entries[round(1e6 * fault.at) % len(entries)]
        if fault.what == PAUSE and fault.at % 1 < 0.3:
            entry = None
        if fault.what == PAUSE:
            skip = fault.length % 0.1 < 0.05
            return (
                lambda: self._change_pauses(lambda pauses, now: pauses.pause(entry, now)),
                lambda: self._change_pauses(lambda pauses, now: pauses.resume(entry, now, skip)),
            )
        if fault.what == FILL:
            return self._backfill(fault, str(entry))
        do, to = (RUN, None) if fault.what == ASK else (RESIGN, None)
        if fault.what == RESIGN_TO:
            to = BEATS[round(1e6 * fault.at) % len(BEATS)]
        path = self.paths.request(f"request{self.happened[-1]}")
        asked = RequestRecord(do, entry if do == RUN else None, to, "2026-01-01", "operator")
        return lambda: self._ask(path, asked), lambda: self.ensemble.delete(path)

    def _ask(self, path: str, asked: RequestRecord) -> None:
        if self.paths.requests in self.ensemble.tree:
            self.ensemble.set((path, asked.encode(), 1), (self.paths.requests, b"", 0))

    def _backfill(self, fault: Fault, entry: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """Of a range in the past that no other has; perhaps cancelled in the middle."""
        number, chance = self.happened[-1], random.Random(f"backfill {fault.at}")
        path = self.paths.request(f"request{number}")
        since = datetime.fromtimestamp(BEGINNING - 1e5 + 1e3 * number, timezone.utc)
        count, rate = chance.choice((1, 3, 8)), chance.choice((1.0, 5.0, 50.0))
        until = since + timedelta(seconds=(count - 0.5) * PERIODS[entry])
        asked = RequestRecord(
            BACKFILL,
            entry,
            None,
            "2026-01-01",
            "operator",
            since=to_text(since),
            until=to_text(until),
            rate=rate,
            most=chance.choice((1000, 1000, 1)),
        )

        def end() -> None:
            self.ensemble.delete(path)
            node = self.ensemble.tree.get(self.paths.backfills)
            if node is not None and chance.random() < 0.3:
                left = Backfills.decode(self.paths.backfills, node.data).having(entry, None)
                self.ensemble.set((self.paths.backfills, left.encode(), 0))

        return lambda: self._ask(path, asked), end

    def _change_pauses(self, change: Callable[[Pauses, datetime], Pauses]) -> None:
        path = self.paths.pauses
        node = self.ensemble.tree.get(path)
        if node is not None:
            now = datetime.fromtimestamp(BEGINNING + self.world.now, timezone.utc)
            pauses = change(Pauses.decode(path, node.data), now)
            self.ensemble.set((path, pauses.encode(), 0))

    def _delete_master(self) -> None:
        self.checker.deposed.add(self.checker.epoch)
        self.ensemble.delete(f"{ROOT}/master")

    def _shift(self, seconds: float) -> None:
        self.ensemble.clock_offset += seconds


#: By hundreds of seconds.
CLOCK_FAR, CLOCK_FAR_FOR_A_MOMENT = "clock far off", "clock far off for a moment"
#: What becomes of ZooKeeper's data.
WIPED, RESTORED = "wiped", "restored from an older copy"
#: A beat closes all its files, the link to its guard among them.
FILES_CLOSED = "files closed"
#: A beat is cut off from the broker, and dies when it has handed a message to its kernel.
FULL_KERNEL = "dies with a full kernel"
#: Seconds after which a beat that stands still gives no sign of life.
NO_SIGN_AFTER = 0.3
#: What a plain run is without.
UNUSUAL = (CLOCK_FAR, CLOCK_FAR_FOR_A_MOMENT, WIPED, RESTORED)
#: What can go wrong, and how often.
KINDS = {
    "kill": 4,
    "stop": 3,
    "deploy": 1,
    "pause": 5,
    "cut": 4,
    "block": 2,
    "block requests": 2,
    "block answers": 3,
    "delay": 3,
    "broker slow": 2,
    "broker refuses": 2,
    "broker's answers lost": 2,
    "broker a black hole": 1,
    "broker alarmed": 2,
    "clock": 2,
    CLOCK_FAR: 2,
    CLOCK_FAR_FOR_A_MOMENT: 2,
    "no quorum": 1,
    "clock of ZooKeeper": 0.3,
    "master deleted": 1,
    WIPED: 1,
    RESTORED: 2,
}

#: What operators ask.
PAUSE, ASK, RESIGN_ALONE, RESIGN_TO = "pause entries", "run an entry", "resign", "resign to"
KINDS.update({PAUSE: 2, ASK: 2, RESIGN_ALONE: 3, RESIGN_TO: 3})
OPERATOR = "operator"
#: What operators have run of the past. Not of KINDS: it has a chance of its own.
FILL = "backfill an entry"
#: What becomes of rows.
RENAME = "rename rows"
#: When an operator acts: the next write of a beat comes to the leader just afterwards.
JUST_BEFORE = "write is sent"
OF_OPERATOR = (PAUSE, ASK, RESIGN_ALONE, RESIGN_TO)
OF_ZOOKEEPER = ("no quorum", "clock of ZooKeeper", "master deleted", WIPED, RESTORED)


#: What happens, beside all else, where it is CHOSEN.
MORE = {
    "lost data": [(RESTORED, "ZooKeeper", "")],
    "pauses": [(PAUSE, OPERATOR, JUST_BEFORE)] * 6,
    GUARDS: [
        *[("kill", who, after) for who in BEATS for after in ("", "message")],
        *[(what, who, "message") for who in BEATS for what in (FILES_CLOSED, "pause")],
        *[
            (what, who, "")
            for what in (FULL_KERNEL, "broker slow", "block answers")
            for who in BEATS
        ],
    ],
    "masters deleted": [("master deleted", "ZooKeeper", after) for after in ("write", "") * 3],
}


def _backfills(plan: random.Random) -> Iterator[Fault]:
    is_chosen = scenarios.CHOSEN == scenarios.BACKFILLS
    if is_chosen or (scenarios.CHOSEN in (None, "renames") and plan.random() < 0.3):
        for _ in range(plan.choice((1, 3, 6))):
            after = plan.choice(("", "message", "write", JUST_BEFORE))
            yield Fault(plan.uniform(0.5, 4), FILL, OPERATOR, plan.uniform(0.5, 6), after)


def _plan(plan: random.Random) -> Iterator[Fault]:
    at = plan.uniform(0.2, 2)
    rhythm = plan.choice(RHYTHMS)
    for _ in range(plan.choice((1, 3, 40, 40))):
        at += plan.uniform(0, rhythm)
        (what,) = plan.choices(list(KINDS), list(KINDS.values()))
        who = "ZooKeeper" if what in OF_ZOOKEEPER else plan.choice(BEATS)
        who = OPERATOR if what in OF_OPERATOR else who
        length = plan.choice((0.2, 0.5, 1.0, 2.0)) * plan.uniform(0, 1.5) * SESSION_TIMEOUT
        after = ("", "message", "write", *((JUST_BEFORE,) if who == OPERATOR else ()))
        yield Fault(at, what, who, length, plan.choice(after))


def _plan_deaths(plan: random.Random) -> Iterator[Fault]:
    for _ in range(plan.choice((0, 1, 5))):
        what, who = plan.choice((FILES_CLOSED, FULL_KERNEL)), plan.choice(BEATS)
        at, length = plan.uniform(0.2, 20), plan.uniform(0.1, 2.0)
        yield Fault(at, what, who, length, plan.choice(("", "message", "write")))
