"""What is so in one simulated run beside its faults, as its seed chooses; about half of them are
plain. Limits are as many times lower as the rest of a run is smaller than a real one."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

from celery.beat import BeatLazyFunc

from celery_zk_beat import dispatcher, history, limits, records, runs, source
from celery_zk_beat.paths import page_of

from .world import BEGINNING

#: Bytes of a request at which a server hangs up (jute.maxbuffer).
JUTE = 0xFFFFF
#: How much lower the limits in bytes are, where they are to be reached; and those in runs.
FEWER_BYTES, FEWER_RUNS = 50, 20
#: Limits of the package, by module.
IN_BYTES = {
    limits: (
        "MOST_BYTES",
        "LARGEST_PAGE",
        "LARGEST_OUTBOX",
        "LONGEST_NAME",
        "_ENOUGH",
        "_LEAST_BYTES",
    ),
    dispatcher: ("MOST_HELD",),
    records: ("LARGEST_MASTERS",),
}
IN_RUNS = {
    limits: ("MOST_RUNS",),
    dispatcher: ("MOST_RUNS", "_MOST_CLAIMED"),
}
#: Letters by the bytes that JSON takes for them: 1, 6 and 12.
LETTERS = ("x", "\u0436", "\U0001f600")

#: What is left out. A server that takes less than the package believes: the checker would have to
#: know of writes without the outbox, and the fixed parts of a transaction are too large for it.
PENDING = frozenset({"low jute.maxbuffer"})

#: What all runs have, where one who looks for something wants it so; see KINDS.
CHOSEN: str | None = None

#: What can be the matter with an entry.
UNMADE, LAZY, REFUSED = "cannot be made", "an argument raises", "refused by the broker"
#: What an entry's argument raises when it is made, while it is `Scenario.failing`.
FAULTS_OF_ENTRIES = (UNMADE, LAZY, REFUSED)


class Unreadable:
    """Of no type that can be sent."""


@dataclass(frozen=True)
class Rule:
    """How an entry with a policy is due.

    Attributes:
        period: seconds.
        is_fixed: at multiples of it; else so long after its last run.
        policy: as a user writes it; `starts` and `ends` are seconds since the run began.
        changes: only one of the two variants of the code has the policy.
    """

    period: float
    is_fixed: bool
    policy: dict[str, Any]
    changes: bool = False

    @property
    def is_gated(self) -> bool:
        """True where another scheduler's entry may have the policy."""
        return self.policy.keys() <= {"catch_up", "jitter"}

    @property
    def is_finite(self) -> bool:
        """True where nothing runs any more in the end."""
        return bool(self.policy.keys() & {"runs", "once", "ends"})

    @property
    def setting(self) -> dict[str, Any]:
        """The policy as it stands in ``zk_beat_policies``."""
        instants = {
            key: datetime.fromtimestamp(BEGINNING + self.policy[key], timezone.utc)
            for key in self.policy.keys() & {"starts", "ends"}
        }
        return {**self.policy, **instants}


@dataclass
class Scenario:
    """
    Attributes:
        is_small: limits are low enough to be reached.
        most_bytes: of a request to ZooKeeper.
        entries: more of them than the usual, name to period; those of all beats.
        own: those that only one beat knows, until all is healed.
        broken: entries of which no message can be sent, to what is the matter.
        useless: beats that never reach the broker (or, gated, the store).
        latency: what each request and answer of a beat takes longer, seconds.
        outage: for how many seconds nobody reaches the broker, before all is healed.
        deploys: what `own` is next, after an outage.
        retention: seconds, None where it is not reached.
        rules: of the entries that have a policy, by name.
        clocks_are_right: those of the beats, and ZooKeeper's.
    """

    is_small: bool = False
    most_bytes: int = JUTE
    entries: dict[str, float] = field(default_factory=dict)
    own: dict[str, dict[str, float]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    useless: frozenset[str] = frozenset()
    latency: dict[str, float] = field(default_factory=dict)
    outage: float = 0.0
    deploys: list[dict[str, dict[str, float]]] = field(default_factory=list)
    retention: float | None = None
    rules: dict[str, Rule] = field(default_factory=dict)
    clocks_are_right: bool = False

    def policies(self, variant: int) -> dict[str, dict[str, Any]]:
        """What ``zk_beat_policies`` is in one of the two variants of the code."""
        return {
            name: rule.setting for name, rule in self.rules.items() if variant or not rule.changes
        }

    def leave_to_gated(self) -> None:
        """Leaves out what another scheduler's entries cannot have."""
        for name in [name for name, rule in self.rules.items() if not rule.is_gated]:
            del self.rules[name], self.entries[name]

    def limits(self) -> ExitStack:
        """Sets those of the package, until it is closed."""
        stack = ExitStack()
        # Runs are few here, and their histories are to be written all the same.
        stack.enter_context(mock.patch.object(history, "_LEAST", 0))
        if self.is_small:
            for limits, fewer in ((IN_BYTES, FEWER_BYTES), (IN_RUNS, FEWER_RUNS)):
                for module, names in limits.items():
                    low = {name: getattr(module, name) // fewer for name in names}
                    stack.enter_context(mock.patch.multiple(module, **low))
        if self.retention is not None:
            low_retention = timedelta(seconds=self.retention)
            for module in (runs, source):
                stack.enter_context(mock.patch.object(module, "RETENTION", low_retention))
            stack.enter_context(mock.patch.object(dispatcher, "UNNAMED_FOR", 4 * low_retention))
        return stack

    def options(self, entry: str) -> dict[str, Any]:
        """What an entry of ``beat_schedule`` has beside task and schedule."""
        what = self.broken.get(entry)
        if what == UNMADE:
            return {"args": (Unreadable(),)}
        if what == LAZY:
            return {"args": (BeatLazyFunc(_raise),)}
        return {}


def _raise() -> None:
    raise OSError("simulated: no such file")


def choose(plan: random.Random, beats: tuple[str, ...], is_slow: bool) -> Scenario:
    kind = CHOSEN or plan.choice((*["plain"] * 7, *_KINDS))
    scenario = Scenario()
    if kind in _KINDS and kind not in PENDING:
        _KINDS[kind](plan, beats, scenario)
    if scenario.is_small:
        scenario.most_bytes = JUTE // FEWER_BYTES
        if plan.random() < 0.2 and "low jute.maxbuffer" not in PENDING:
            scenario.most_bytes //= 3
    if is_slow:
        # Else they would come due faster than they can be dispatched, one after another.
        some = list(scenario.entries.items())[:15]
        scenario.entries = {name: 10 * period for name, period in some}
    for name, rule in scenario.rules.items():
        policy = rule.policy
        if is_slow and "catch_up" in policy:  # else most would be too late
            policy = {**policy, "catch_up": 10 + policy["catch_up"]}
        scenario.rules[name] = replace(rule, period=scenario.entries[name], policy=policy)
    if CHOSEN == "retention" or (plan.random() < 0.2 and CHOSEN != "plain"):
        scenario.retention = plan.choice((0.5, 3.0, 8.0))
    return scenario


def _long_names(plan: random.Random, beats: tuple[str, ...], scenario: Scenario) -> None:
    """More than an outbox holds, in bytes."""
    scenario.is_small = True
    letter = plan.choice(LETTERS)
    # The longest that are taken have 400.
    size = plan.choice((100, 380, 380, 1000)) // (len(json.dumps(letter)) - 2)
    names = [f"{n}{letter * size}" for n in range(plan.choice((10, 30, 50)))]
    scenario.entries = {name: plan.choice((2.0, 5.0)) for name in names}
    scenario.outage = plan.choice((0.0, 25.0))


def _full_page(plan: random.Random, beats: tuple[str, ...], scenario: Scenario) -> None:
    """More than a page holds; some that are gone in the end."""
    scenario.is_small = True
    names = _on_one_page(plan.choice(LETTERS), plan.choice((10, 40)), 60)
    some = plan.choice((10, 30, 50))
    for name in names[:some]:
        scenario.entries[name] = plan.choice((2.0, 5.0))
    for number, name in enumerate(names[some:]):
        scenario.own.setdefault(beats[number % len(beats)], {})[name] = 2.0


def _broken_entries(plan: random.Random, beats: tuple[str, ...], scenario: Scenario) -> None:
    """One of which no message can be sent, or more than an outbox holds."""
    many = plan.random() < 0.4
    scenario.is_small = many or plan.random() < 0.2
    what = plan.choice(FAULTS_OF_ENTRIES)
    for number in range(40 if many else 1):
        scenario.entries[f"broken{number}"] = plan.choice((1.0, 3.0))
        scenario.broken[f"broken{number}"] = what


def _deploys(plan: random.Random, beats: tuple[str, ...], scenario: Scenario) -> None:
    """Whose runs wait, while nobody reaches the broker, until no schedule names them any more."""
    scenario.is_small = True
    count = plan.choice((10, 40))
    if plan.random() < 0.5:  # each beat has others, and all take turns
        scenario.own = {beat: _names(f"{beat}-", count) for beat in beats}
        scenario.outage = 25.0
    else:  # all have the same, and others after each deploy
        rounds = plan.choice((2, 6))
        scenario.own, *scenario.deploys = (
            {beat: _names(f"{n}-", count) for beat in beats} for n in range(rounds)
        )
        scenario.outage = 6.0


def _names(prefix: str, count: int) -> dict[str, float]:
    return {f"{prefix}{number}": 0.5 for number in range(count)}


def _useless_beats(plan: random.Random, beats: tuple[str, ...], scenario: Scenario) -> None:
    """Two that never reach the broker, and are nearer to ZooKeeper than one that does."""
    good = plan.choice(beats)
    scenario.useless = frozenset(beats) - {good}
    if plan.random() < 0.8:
        scenario.latency[good] = plan.choice((0.005, 0.02, 0.1))


def _policies(plan: random.Random, beats: tuple[str, ...], scenario: Scenario) -> None:
    """Of each kind, on intervals and on fixed instants; and some that a deploy adds and removes."""
    some_all = {"coalesce": "all", "limit": plan.choice((5, 100))}
    policies: dict[str, dict[str, Any]] = {
        "all": {"coalesce": "all"},
        "late": {"catch_up": plan.choice((0, 3.0))},
        "limit": {"coalesce": "all", "limit": 5},
        "jitter": {"jitter": plan.choice((0.6, 5.0))},
        "every policy": {**some_all, "catch_up": 6.0, "jitter": 0.9},
        "runs": {"runs": 3, **plan.choice(({}, some_all))},
        "window": {"starts": 5.0, "ends": plan.choice((10.0, 30.0)), **plan.choice(({}, some_all))},
    }
    for name, policy in policies.items():
        is_fixed = plan.random() < 0.6
        scenario.rules[name] = Rule(plan.choice((1.0, 2.0)), is_fixed, policy)
    for number, is_fixed in enumerate((True, False)):
        policy = {"coalesce": "all", "jitter": 0.5}
        scenario.rules[f"deployed{number}"] = Rule(1.0, is_fixed, policy, changes=True)
    scenario.entries = {name: rule.period for name, rule in scenario.rules.items()}
    scenario.outage = plan.choice((0.0, 20.0))
    scenario.clocks_are_right = plan.random() < 0.6


_KINDS: dict[str, Callable[[random.Random, tuple[str, ...], Scenario], None]] = {
    "long names": _long_names,
    "a full page": _full_page,
    "broken entries": _broken_entries,
    "deploys": _deploys,
    "useless beats": _useless_beats,
    "policies": _policies,
}

#: What may be CHOSEN.
BACKFILLS, LIVE, OUTCOMES = "backfills", "live", "outcomes"
KINDS = (
    *("plain", "retention", "lost data", "pauses", "masters deleted", "renames", "guards"),
    *(BACKFILLS, LIVE, OUTCOMES, *_KINDS),
)


@functools.lru_cache(maxsize=64)
def _on_one_page(letter: str, size: int, count: int) -> list[str]:
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = f"{letter * size}{number}"
        if page_of(name) == "07a":
            names.append(name)
        number += 1
    return names
