"""Two masters in turn, whatever they do with their ledgers and whatever they lose of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_zk_beat import MasterElection
from celery_zk_beat.errors import ZkBeatError
from celery_zk_beat.ledger import BELOW_ROOT, RunLedger
from celery_zk_beat.runs import Run

from .checker import Checker
from .client import SimulatedKazoo
from .ensemble import Ensemble, Link
from .run import simulation
from .world import Machine, Thread, World

ROOT = "/property"
NAMES = ("a", "b", "c", "d")
SESSION_TIMEOUT = 4.0
START = datetime(2026, 1, 1, tzinfo=timezone.utc)

names = st.sets(st.sampled_from(NAMES), min_size=1)
who = st.integers(0, 1)


class Ledgers(RuleBasedStateMachine):
    """What is claimed, published and dropped here, and what each ledger knows, is compared with
    what the ensemble holds; the checker watches each write."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.simulation = simulation()
        self.simulation.__enter__()
        self.world = World(seed, slow=0.0)
        self.ensemble = SimulatedKazoo.ensemble = Ensemble(self.world)
        self.links = SimulatedKazoo.links = {}
        self.checker = Checker(self.world, "drop", {}, ROOT, SESSION_TIMEOUT)
        self.ensemble.observers.append(self.checker.on_write)
        self.machines, self.elections, self.ledgers = [], [], []
        for name in ("one", "two"):
            machine = Machine(self.world, name)
            self.links[name] = Link()
            election = MasterElection(
                "z1,z2,z3", ROOT, id=name, session_timeout=SESSION_TIMEOUT, below=BELOW_ROOT
            )
            self.machines.append(machine)
            self.elections.append(election)
            self.ledgers.append(RunLedger(election))
            with self.world.on(machine):
                election.start()
        self.clock = START
        self.settle()
        (who,) = (who for who in (0, 1) if self.ledgers[who].term is not None)
        self.do(who, lambda: self.ledgers[who].first_seen(dict.fromkeys(NAMES[:3], START)))

    def teardown(self) -> None:
        for machine in self.machines:
            machine.die()
        self.simulation.__exit__(None, None, None)

    @rule()
    def settle(self) -> None:
        """All is well for so long that one is master, and it loads its ledger."""
        for link in self.links.values():
            link.set()
        self.world.run(lambda: any(election.is_master for election in self.elections), 60.0)
        masters = [who for who, election in enumerate(self.elections) if election.is_master]
        for who in masters:
            self.load(who)

    @rule(who=who)
    def load(self, who: int) -> None:
        term = self.elections[who].term
        if term is not None:
            self.do(who, lambda: self.ledgers[who].load(term))

    @rule(who=who, names=names)
    def first_seen(self, who: int, names: set[str]) -> None:
        ledger = self.ledgers[who]
        unseen = {name: self.clock for name in sorted(names) if ledger.state(name) is None}
        self.do(who, lambda: ledger.first_seen(unseen))

    @rule(who=who, names=names, confirm=st.booleans())
    def claim(self, who: int, names: set[str], confirm: bool) -> None:
        ledger = self.ledgers[who]
        self.clock += timedelta(seconds=1)
        states = {name: ledger.state(name) for name in sorted(names - ledger.outbox.keys())}
        runs = [
            Run(name, state.total_run_count + 1, self.clock, self.clock, ledger.term.epoch)
            for name, state in states.items()
            if state is not None and ledger.term is not None
        ]
        if runs:
            meanwhile = ledger.confirm if confirm else lambda: None
            self.do(who, lambda: ledger.claim(runs, meanwhile=meanwhile))

    @rule(who=who, names=names, late=st.booleans())
    def publish(self, who: int, names: set[str], late: bool) -> None:
        ledger = self.ledgers[who]
        clock = self.clock + timedelta(milliseconds=1) if late else None
        for name in sorted(names & ledger.outbox.keys()):
            run = ledger.outbox[name]
            self.checker.published.add((name, run.number))
            self.do(who, functools.partial(ledger.published, run, run.claimed, clock))

    @rule(who=who, names=names)
    def drop(self, who: int, names: set[str]) -> None:
        ledger = self.ledgers[who]
        runs = [ledger.outbox[name] for name in sorted(names & ledger.outbox.keys())]
        self.do(who, lambda: ledger.drop(runs, "by the test"))

    @rule(who=who)
    def confirm(self, who: int) -> None:
        self.do(who, self.ledgers[who].confirm)

    @rule(who=who)
    def flush(self, who: int) -> None:
        self.do(who, self.ledgers[who].flush)

    @rule(who=who)
    def resign(self, who: int) -> None:
        self.do(who, self.elections[who].resign)

    @rule(who=who, cut=st.booleans(), answers=st.booleans(), seconds=st.floats(0, 8))
    def lose(self, who: int, cut: bool, answers: bool, seconds: float) -> None:
        blocked = frozenset({"answers"} if answers else {"requests", "answers"})
        link = self.links[self.elections[who].id]
        link.set(cut=cut, blocked=frozenset() if cut else blocked)
        self.world.after(seconds, link.set)

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.world.run(lambda: False, seconds)

    @invariant()
    def nothing_is_violated(self) -> None:
        if hasattr(self, "checker"):
            assert self.checker.violation is None

    @invariant()
    def a_ledger_knows_what_stands_there(self) -> None:
        """That of the master, when nothing is on its way."""
        for election, ledger in zip(*self.both()):
            term = ledger.term
            if term is None or term != election.term or term.epoch != self.checker.epoch:
                continue
            if ledger._confirming is not None:
                continue
            if not ledger.unconfirmed:
                assert set(self.checker.outbox) == {
                    (name, run.number) for name, run in ledger.outbox.items()
                }
                for name in NAMES:
                    assert ledger.state(name) == self.checker.states.get(name)

    def both(self) -> tuple[list[MasterElection], list[RunLedger]]:
        return getattr(self, "elections", []), getattr(self, "ledgers", [])

    def do(self, who: int, action: Callable[[], Any]) -> None:
        """On a thread of the machine's, until it is done."""

        def attempt() -> None:
            try:
                action()
            except ZkBeatError:
                assert self.ledgers[who].term is None, "it forgets all that it is not sure of"

        machine = self.machines[who]
        with self.world.on(machine):
            thread = Thread(target=attempt)
            thread.start()
        self.world.run(lambda: not thread.is_alive(), 60.0)
        assert not machine.failures


Ledgers.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedgers = Ledgers.TestCase


@pytest.fixture
def ledgers() -> Iterator[Ledgers]:
    ledgers = Ledgers()
    ledgers.begin(seed=1)
    yield ledgers
    ledgers.teardown()


def lose_an_answer(ledgers: Ledgers, who: int) -> None:
    """What is asked next is done, and then the connection ends unanswered; the next goes to a
    server that hears of all this two seconds late."""
    world, replicas = ledgers.world, ledgers.ensemble.replicas
    link = ledgers.links[ledgers.elections[who].id]
    behind = next(
        replica
        for replica in replicas
        if not any(connection._link is link for connection in replica.connections)
    )
    behind.log.delay = 2.0
    link.set(blocked=frozenset({"answers"}))
    world.after(0.5, lambda: link.set(cut=True))
    world.after(0.5, lambda: replicas.__setitem__(slice(None), [behind]))
    world.after(0.6, link.set)


def test_a_claim_whose_answer_was_lost(ledgers: Ledgers) -> None:
    """It is not taken for one that was not done."""
    (who,) = (who for who in (0, 1) if ledgers.ledgers[who].term is not None)
    ledger = ledgers.ledgers[who]
    lose_an_answer(ledgers, who)
    ledgers.claim(who, {"a", "b"}, confirm=False)
    assert ledgers.checker.outbox.keys() == {("a", 1), ("b", 1)}
    assert ledger.term is None
    assert ledgers.world.run(lambda: ledgers.elections[who].is_master, 60.0)
    ledgers.load(who)
    assert ledger.outbox.keys() == {"a", "b"}
    ledgers.claim(who, {"c"}, confirm=True)
    assert ledgers.checker.violation is None
    assert ledger.outbox.keys() == {"a", "b", "c"}


def test_a_resignation_whose_answer_was_lost(ledgers: Ledgers) -> None:
    """Whoever resigned is not master again under the epoch that was given up."""
    (who,) = (who for who in (0, 1) if ledgers.ledgers[who].term is not None)
    election, other = ledgers.elections[who], ledgers.elections[1 - who]
    ledgers.world.run(lambda: False, 1.0)  # else it is the answer to a write of its member znode
    lose_an_answer(ledgers, who)
    ledgers.resign(who)
    assert ledgers.world.run(lambda: other.is_master, 60.0)
    assert not ledgers.world.run(lambda: election.is_master, 10.0)
    assert other.epoch == 2
    assert other.is_master


def test_another_hand_on_the_outbox(ledgers: Ledgers) -> None:
    """It brings the outbox to the version that a claim would have left: the claim is refused, and
    so is what was sent behind it."""
    (who,) = (who for who in (0, 1) if ledgers.ledgers[who].term is not None)
    ledger, ensemble = ledgers.ledgers[who], ledgers.ensemble
    ledgers.claim(who, {"b"}, confirm=False)
    outbox = ledgers.elections[who].paths.outbox

    def write() -> None:
        ensemble.before_write = lambda: None
        ensemble.set((outbox, ensemble.tree[outbox].data, 0))

    def publish() -> None:
        ledger.published(ledger.outbox["b"], ledgers.clock)
        ledger.confirm()

    ensemble.before_write = write
    ensemble.observers.clear()  # to the checker it is no master that writes
    run = Run("a", 1, ledgers.clock, ledgers.clock, 1)
    ledgers.do(who, lambda: ledger.claim([run], meanwhile=publish))
    assert ledger.term is None
    ledgers.settle()
    ledgers.load(who)
    assert ledger.outbox.keys() == set()
