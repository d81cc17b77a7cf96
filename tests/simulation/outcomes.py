"""What becomes of runs: workers that report it, what goes wrong with them, and what is checked."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from celery import Celery

from celery_zk_beat import clock
from celery_zk_beat.control import Pauses
from celery_zk_beat.errors import RootError
from celery_zk_beat.outcomes import reports, sending
from celery_zk_beat.outcomes.reports import Report, delivery_of
from celery_zk_beat.outcomes.sending import Sender
from celery_zk_beat.paths import Paths
from celery_zk_beat.runs import (
    CONCLUDED,
    FAILURES,
    LATE_FINISH,
    LATE_START,
    LOST,
    UNKNOWN,
    Outcome,
    PastRun,
    RunState,
    decode_page,
)
from celery_zk_beat.settings import Settings

from .broker import Sent
from .ensemble import Ensemble, Link, Tree, Write, Znode
from .scenario import Rule
from .world import BEGINNING, Machine, SimpleQueue, Thread, World

WORKERS = ("worker1", "worker2")
#: So many times as many steps are taken, for those of workers are among them.
STEPS = 4
#: Tasks that a worker executes at once.
POOL = 4
#: By the names of entries, what tracks them. One is not tracked, and none of this is to reach it.
POLICIES: dict[str, dict[str, Any]] = {
    "skip": {"overlap": "skip"},
    "queue": {"overlap": "queue"},
    "queue all": {"overlap": "queue", "coalesce": "all", "limit": 5},
    "track": {"track": True},
    "late": {"start_within": 2.0, "finish_within": 4.0},
    "late skip": {"overlap": "skip", "start_within": 1.5, "finish_within": 5.0},
    "pause": {"pause_after_failures": 2},
    "pause skip": {"overlap": "skip", "pause_after_failures": 3},
    "untracked": {"catch_up": 600.0},
}
#: Seconds.
OVERLAP_TIMEOUTS = (6.0, 15.0)
#: Seconds for which a master may act on what it read: it may stand still, or wait for an answer.
LAG = 12.0
#: Seconds by which what it takes for ZooKeeper's time may be off, for each second that a message
#: may be on its way.
OFF = 0.5
#: What goes wrong with workers, and how often.
FAULTS = {
    "kill": 3,
    "stop": 1,
    "pause": 2,
    "cut": 3,
    "block requests": 1,
    "block answers": 2,
    "delay": 1,
}
#: Of what is skipped by the policy.
SKIPPED = "skipped: the run before is still open"
#: Of what is paused by a master.
FAILED = "runs failed in a row"

Run = tuple[str, int]


@dataclass
class _Reported:
    """A report as it is in ZooKeeper; None where nobody understands it."""

    report: Report | None
    at: float
    #: Since when it has been there, and said that its task began.
    since: float

    @property
    def run(self) -> Run | None:
        return None if self.report is None else (self.report.entry, self.report.run)

    @property
    def comes_again(self) -> bool:
        report = self.report
        return report is not None and (
            report.state in ("retry", "requeued") or (report.state == "started" and report.again)
        )


class OutcomeChecker:
    """Each run is open from its claim on; its outcome is folded once, is what was reported or may
    be concluded, and nothing overlaps that must not."""

    def __init__(
        self, world: World, fail: Callable[[str], None], root: str, timeout: float
    ) -> None:
        self._world, self._fail, self._paths = world, fail, Paths(root)
        self._timeout = timeout
        self.rules: Mapping[str, Rule] = {}
        #: ZooKeeper's clock; and those of all beats.
        self.server_is_right = self.clocks_are_right = True
        self.dropped: set[Run] = set()
        #: What is in ZooKeeper.
        self._states: dict[str, RunState] = {}
        self._reported: dict[str, _Reported] = {}
        #: The deliveries that are being executed, since when.
        self._running: dict[str, float] = {}
        self._pauses = Pauses()
        #: When each run was claimed.
        self._claimed: dict[Run, float] = {}
        #: Each outcome that was folded, in order.
        self.folded: dict[Run, list[Outcome]] = defaultdict(list)
        #: Since when each run is open, and those that were opened again.
        self._reopened: set[Run] = set()
        self._failed: dict[str, int] = defaultdict(int)
        self._said: dict[Run, set[str]] = defaultdict(set)
        #: Runs of which a worker lost its session; those with two messages, or which one has twice.
        self._vanished: set[Run] = set()
        self._doubled: set[Run] = set()
        self._arrived: set[Run] = set()
        self._ever_reported: set[Run] = set()
        #: What is executed now: delivery to run.
        self._executed: dict[str, Run] = {}
        #: How many outcomes were folded, and late ones said.
        self.counts: dict[str, int] = defaultdict(int)

    def _policy(self, entry: str) -> dict[str, Any]:
        rule = self.rules.get(entry)
        return {} if rule is None else rule.policy

    def _forbids(self, entry: str) -> bool:
        return bool(self._policy(entry).get("overlap", "allow") != "allow")

    # What workers do ----------------------------------------------------------------------------

    def on_arrived(self, sent: Sent) -> None:
        run = sent.entry, sent.run
        if run in self._arrived:
            self._doubled.add(run)
        self._arrived.add(run)
        policy = self._policy(sent.entry)
        if ("report" in sent.mark) != _is_tracked(policy):
            self._fail(f"I1: is to be reported or not, against {policy}: {sent}")

    def on_doubled(self, run: Run) -> None:
        self._doubled.add(run)

    def on_executed(self, name: str, run: Run) -> None:
        entry, _ = run
        if self._forbids(entry) and not self._is_excused(run):
            for other in self._executed.values():
                if other[0] == entry and other != run and not self._is_excused(other):
                    self._fail(f"I1: {run} is executed while {other} is: {self._states[entry]}")
        self._executed[name] = run

    def on_ended(self, name: str) -> None:
        self._executed.pop(name, None)

    def is_reported(self, run: Run) -> bool:
        """Whether a worker has said that it has its message."""
        return run in self._ever_reported

    def _is_excused(self, run: Run) -> bool:
        """Whether two may overlap: it was concluded what was not so, or a message is there twice,
        or its master has died and nobody knows whether it was sent."""
        is_unknown = any(each.state == UNKNOWN for each in self.folded[run])
        return is_unknown or run in self._vanished | self._doubled | self.dropped

    # What ZooKeeper writes ----------------------------------------------------------------------

    def on_write(self, write: Write, session: int, is_master: bool) -> None:
        changes = write.changes
        node = changes.get(self._paths.pauses)
        pauses = self._pauses if node is None else Pauses.decode(self._paths.pauses, node.data)
        deleted = self._note_deleted(changes)
        folds: dict[Run, Outcome | None] = {}
        for path, page in changes.items():
            if path.startswith(self._paths.runs + "/") and page is not None:
                for entry, state in decode_page(path, page.data).items():
                    if entry in self.rules:
                        folds.update(self._on_state(entry, state, deleted))
        for run, outcome in folds.items():
            self._on_fold(run, outcome, deleted)
        self._on_pauses(pauses, folds, is_master)
        if is_master:
            for name, each in deleted.items():
                self._on_deleted(name, each)
        self._note_inbox(write)

    def _note_deleted(self, changes: Mapping[str, Znode | None]) -> dict[str, _Reported]:
        folder = self._paths.inbox_reports + "/"
        return {
            path[len(folder) :]: self._reported.pop(path[len(folder) :])
            for path, node in changes.items()
            if path.startswith(folder) and node is None
        }

    def _note_inbox(self, write: Write) -> None:
        folder = self._paths.inbox_reports + "/"
        now = self._world.now
        for path, node in write.changes.items():
            if path.startswith(folder) and node is not None:
                name = path[len(folder) :]
                report: Report | None = None
                with contextlib.suppress(RootError):
                    report = Report.decode(path, node.data)
                before = self._reported.get(name)
                since = now if before is None else before.since
                self._reported[name] = _Reported(report, node.modified, since)
                if report is not None:
                    self._ever_reported.add((report.entry, report.run))
        folder = self._paths.inbox_running + "/"
        for path, node in write.changes.items():
            if not path.startswith(folder):
                continue
            name = path[len(folder) :]
            if node is not None:
                if node.owner:  # or it is forged
                    self._running[name] = now
                continue
            if self._running.pop(name, None) is None:
                continue
            each = self._reported.get(name)
            if each is not None and each.run and not (each.report and _has_ended(each.report)):
                self._vanished.add(each.run)

    def _on_deleted(self, name: str, each: _Reported) -> None:
        """A master has deleted a report."""
        report, run = each.report, each.run
        if report is None or run is None:
            return
        state = self._states.get(run[0])
        is_open = state is not None and any(past.run == report.key for past in state.open)
        if report.is_final and is_open:
            self._fail(f"I6: {run} has ended, the report is deleted, and it is open: {report}")
        if name in self._running and self._world.now - self._running[name] > LAG:
            self._fail(f"I6: {run} is being executed, and the report is deleted: {report}")

    def _on_state(
        self, entry: str, state: RunState, deleted: Mapping[str, _Reported]
    ) -> dict[Run, Outcome | None]:
        """Looks at a state; returns what it folds: by run its outcome, None where it is open again
        after all."""
        before = self._states.get(entry) or RunState(state.last_run_at)
        self._states[entry] = state
        if state.total_run_count > before.total_run_count:
            self._on_claim(entry, before, state)
        for past in state.past:
            if past.number is not None and (past.note or "").startswith("dropped: "):
                self.dropped.add((entry, past.number))
        folds: dict[Run, Outcome | None] = {}
        for past in state.past:
            run = entry, past.number or 0
            known = self.folded[run][-1] if self.folded[run] else None
            if past.number is None or past.outcome is None or past.outcome == known:
                continue
            folds[run] = past.outcome
        folds.update(self._on_open(entry, before, state, folds))
        self._on_failed(entry, before, state, folds)
        return folds

    def _on_open(
        self, entry: str, before: RunState, state: RunState, folds: Mapping[Run, Outcome | None]
    ) -> dict[Run, Outcome | None]:
        """Looks at what is open; returns what is open again."""
        was_open = {past.number or 0: past for past in before.open}
        is_open = {past.number or 0: past for past in state.open}
        for number in was_open.keys() - is_open.keys():
            run = entry, number
            if run not in folds and run not in self.dropped:
                self._fail(f"I6: {run} is not open any more, and nobody knows why: {state}")
        for number, past in is_open.items():
            self._on_late((entry, number), was_open.get(number), past)
        claimed = {*range(before.total_run_count + 1, state.total_run_count + 1)}
        return {(entry, number): None for number in is_open.keys() - was_open.keys() - claimed}

    def _on_claim(self, entry: str, before: RunState, state: RunState) -> None:
        number = state.total_run_count
        self._claimed[entry, number] = self._world.now
        policy = self._policy(entry)
        if _is_tracked(policy) != any(past.number == number for past in state.open):
            self._fail(f"I1: {entry}, run {number}, is claimed and open or not, {policy}: {state}")
        if self._forbids(entry) and before.open:
            self._fail(f"I1: {entry}, run {number}, is claimed while another is open: {before}")

    def _on_fold(self, run: Run, outcome: Outcome | None, deleted: Mapping[str, _Reported]) -> None:
        known = self.folded[run][-1] if self.folded[run] else None
        if outcome is None:
            is_concluded = known is not None and known.state in CONCLUDED
            if not is_concluded and run not in self.dropped:  # which was in doubt
                self._fail(f"I6: {run} is open again after {known}")
            self._reopened.add(run)
            self._said.pop(run, None)
            return
        if known is not None:
            may_differ = outcome.state not in CONCLUDED or run in self._reopened
            if known.state not in CONCLUDED or not may_differ:
                self._fail(f"I6: {run} ends with {outcome}, and had ended with {known}")
        self.folded[run].append(outcome)
        self.counts[outcome.state] += 1
        mine = [each for each in deleted.values() if each.run == run]
        running = [
            name
            for name, since in self._running.items()
            if self._world.now - since > LAG
            and (each := self._reported.get(name)) is not None
            and each.run == run
        ]
        if running:
            self._fail(f"I6: {run} ends with {outcome}, and is executed: {running}")
        if outcome.state == LOST:
            self._on_lost(run, mine)
        elif outcome.state == UNKNOWN:
            least = self._policy(run[0])["overlap_timeout"]
            self._on_too_early(run, outcome, least)
        elif not any(
            each.report is not None
            and each.report.state == outcome.state
            and each.report.worker == outcome.worker
            for each in mine
        ):
            self._fail(f"I6: {run} ends with {outcome}, and no report of it is deleted: {mine}")

    def _on_lost(self, run: Run, mine: list[_Reported]) -> None:
        if run not in self._vanished:
            self._fail(f"I6: {run} is lost, and each worker had its session: {mine}")
        last = max(mine, key=lambda each: each.at, default=None)
        if last is None or last.comes_again:
            self._fail(f"I6: {run} is lost, and its message comes again: {last}")

    def _on_too_early(self, run: Run, outcome: Outcome, seconds: float) -> None:
        """Neither unknown nor late before its time."""
        since = self._world.now - self._claimed[run]
        off = OFF * self._world.distance + (3.0 if self._world.is_slow else 0.0)
        # How far a clock is off is known but for what an answer takes.
        off += 0.0 if self.clocks_are_right else 2 * self._timeout
        if self.server_is_right and since < seconds - off:
            self._fail(f"I13: {run} is {outcome.state} after {since} s, not {seconds}: {outcome}")

    def _on_late(self, run: Run, before: PastRun | None, past: PastRun) -> None:
        outcome = past.outcome
        if outcome is None or (before is not None and before.outcome == outcome):
            return
        said, what = self._said[run], outcome.state
        if what in said or LATE_FINISH in said:
            self._fail(f"I6: {run} is said twice to be late: {before}, {past}")
        said.add(what)
        self.counts[what] += 1
        key = "start_within" if what == LATE_START else "finish_within"
        self._on_too_early(run, outcome, self._policy(run[0])[key])
        began = [each for each in self._reported.values() if each.run == run]
        if what == LATE_START and any(self._world.now - each.since > LAG for each in began):
            self._fail(f"I6: {run} is said not to have started, and has: {began}")

    def _on_failed(
        self,
        entry: str,
        before: RunState,
        state: RunState,
        folds: Mapping[Run, Outcome | None],
    ) -> None:
        """A run counts once, however often it is folded."""
        is_open = {(entry, past.number) for past in before.open}
        expected = {
            self._after(before.failed, order, is_open)
            for order in itertools.islice(itertools.permutations(folds.items()), 720)
        }
        if state.failed not in expected:
            self._fail(f"I6: {entry}: {expected} failed, and not {state.failed}: {before}, {folds}")

    def _after(self, failed: int, folds: Any, is_open: Container[tuple[str, int | None]]) -> int:
        for run, outcome in folds:
            known = self.folded[run][-1] if self.folded[run] and run not in is_open else None
            had_failed = known is not None and known.state in FAILURES
            if outcome is None:
                failed = max(0, failed - had_failed)
            elif outcome.state == "success":
                failed = 0
            elif outcome.state in FAILURES and not had_failed:
                failed += 1
        return failed

    def _on_pauses(
        self, pauses: Pauses, folds: Mapping[Run, Outcome | None], is_master: bool
    ) -> None:
        before, self._pauses = self._pauses, pauses
        for entry, rule in self.rules.items():
            most = rule.policy.get("pause_after_failures")
            was, now = before.of(entry), pauses.of(entry)
            if most is None:
                continue
            state = self._states.get(entry)
            outcomes = [each for (name, _), each in folds.items() if name == entry and each]
            crossed = bool(outcomes) and state is not None and self._crosses(entry, state, most)
            if crossed and now.since is None:
                self._fail(f"I7: {entry} is not paused after {most} failures: {state}")
            by_master = was.since is None and now.since is not None and FAILED in (now.by or "")
            if by_master and not crossed:
                self._fail(f"I7: {entry} is paused, and {most} did not fail: {state}, {now}")
            if state is not None:
                self._failed[entry] = state.failed

    def _crosses(self, entry: str, state: RunState, most: int) -> bool:
        return state.failed // most > self._failed[entry] // most

    def on_moved(self, entry: str, before: RunState, state: RunState) -> bool:
        """Looks at a clock that goes on without a run; True where another was open."""
        last = state.past[-1] if state.past else None
        if last is None or last.number is not None or not (last.note or "").startswith(SKIPPED):
            return False
        if self._policy(entry).get("overlap") != "skip" or not before.open:
            self._fail(f"I2: {entry} is skipped, and none is open: {before}, {state}")
        return True

    # In the end ---------------------------------------------------------------------------------

    def left(self, tree: Tree) -> list[str]:
        """What is not closed, or not cleared away."""
        folders = (self._paths.inbox_reports + "/", self._paths.inbox_running + "/")
        still = [
            path
            for path, node in tree.items()
            if path.startswith(folders)
            and "stuck" not in path
            # A forged one whose report was deleted before stays.
            and (node.owner or not path.startswith(folders[1]))
        ]
        return still + [
            f"{entry}: {past}" for entry, state in self._states.items() for past in state.open
        ]


def _is_tracked(policy: Mapping[str, Any]) -> bool:
    return "overlap_timeout" in policy


def _has_ended(report: Report) -> bool:
    return report.state != "started"


@dataclass
class Message:
    header: dict[str, Any]
    id: str
    entry: str
    #: Acknowledged when its task has ended.
    is_late: bool
    holder: Machine | None = None

    @property
    def run(self) -> Run:
        return self.entry, self.header["run"]


class Outcomes:
    """Workers, the queue that they share, and who writes what nobody understands."""

    def __init__(
        self, seed: int, world: World, ensemble: Ensemble, checker: OutcomeChecker, app: Celery
    ) -> None:
        self.world, self.ensemble, self.checker = world, ensemble, checker
        self.random = random.Random(f"outcomes {seed}")
        # By a seed of its own: so all else is as it would be without.
        self.forger = random.Random(f"forger {seed}")
        self.paths = checker._paths
        self.over = False
        app.conf.zk_beat_outcomes = "worker"
        self.settings = Settings.from_app(app)
        self.timeout = self.random.choice(OVERLAP_TIMEOUTS)
        self._longest = self.random.choice((0.5, 3.0, 8.0))
        self._failing = self.random.choice((0.1, 0.5))
        self._late_share = self.random.choice((0.0, 0.5, 1.0))
        self._is_kept = self.random.random() < 0.3
        self.workers = {name: Worker(self, name) for name in WORKERS}
        self._junk = itertools.count()

    def rules(self) -> dict[str, Rule]:
        period = self.random.choice((1.0, 2.0)) * (5.0 if self.world.is_slow else 1.0)
        rules: dict[str, Rule] = {}
        for name, policy in POLICIES.items():
            more = {} if name == "untracked" else {"overlap_timeout": self.timeout}
            if self.world.is_slow and "limit" in policy:
                more["limit"] = 100
            rules[name] = Rule(period, self.random.random() < 0.6, {**policy, **more})
        return rules

    def faults(self) -> Iterator[tuple[float, str, str, float]]:
        """When what goes wrong with which worker, and for how long, seconds."""
        for _ in range(self.random.choice((0, 4, 15))):
            (what,) = self.random.choices(list(FAULTS), list(FAULTS.values()))
            length = self.random.choice((0.3, 1.0, 6.0)) * self.random.uniform(0.3, 1.5)
            yield self.random.uniform(1.0, 15.0), what, self.random.choice(WORKERS), length

    def start(self) -> None:
        for worker in self.workers.values():
            self.world.after(self.random.uniform(0, 1.0), worker.start)
        self.world.after(1.0, self._resume)
        for _ in range(self.random.choice((0, 0, 4, 10))):
            self.world.after(self.random.uniform(1.0, 12.0), self._scribble)
        for _ in range(self.forger.choice((0, 0, 10))):
            self.world.after(self.forger.uniform(1.0, 12.0), self._forge)

    def heal(self) -> None:
        self.over = True
        for worker in self.workers.values():
            worker.heal()

    def end(self) -> None:
        for worker in self.workers.values():
            worker.kill()

    # Messages -----------------------------------------------------------------------------------

    def on_arrived(self, sent: Sent) -> None:
        if sent.entry not in POLICIES:
            return
        self.checker.on_arrived(sent)
        is_late = self.random.random() < self._late_share
        message = Message(sent.mark, sent.id, sent.entry, is_late)
        self.hand_out(message, self._delay())
        if not self.over and self.random.random() < 0.03:
            self.checker.on_doubled(message.run)
            self.hand_out(replace(message), self._delay() + self.random.uniform(0, 6.0))

    def _delay(self) -> float:
        """For how long it is in the queue."""
        if not self.over and self.random.random() < 0.03:
            return self.random.uniform(0.5, 1.5) * self.timeout
        return self.world.moment()

    def hand_out(self, message: Message, delay: float) -> None:
        self.world.after(delay, partial(self._hand_out, message))

    def _hand_out(self, message: Message) -> None:
        alive = [each for each in self.workers.values() if each.takes]
        if alive:
            self.random.choice(alive).take(message)
        else:
            self.hand_out(message, 0.5)

    def not_acknowledged(self, message: Message) -> None:
        """Of a worker that is gone."""
        message.holder = None
        self.hand_out(message, self.random.uniform(0, 6.0) if self._is_kept else 0.1)

    def duration(self) -> float:
        if self.over:
            return self.random.uniform(0.05, 0.5)
        return self.random.choice((0.05, 0.5, 1.0)) * self.random.uniform(0.2, self._longest)

    def end_of(self, message: Message) -> str:
        chance = self.random.random()
        if self.over or chance > 0.9:
            return reports.SUCCESS
        if message.entry.startswith("pause"):
            return reports.FAILURE if chance < self._failing else reports.SUCCESS
        kinds = (reports.FAILURE, reports.RETRY, reports.REQUEUED, reports.IGNORED)
        return self.random.choice(kinds) if chance < 0.2 else reports.SUCCESS

    # Operators and strangers --------------------------------------------------------------------

    def _resume(self) -> None:
        """What masters have paused is resumed some time later."""
        path = self.paths.pauses
        node = self.ensemble.tree.get(path)
        if node is not None:
            pauses = Pauses.decode(path, node.data)
            now = datetime.fromtimestamp(BEGINNING + self.world.now, timezone.utc)
            paused = [name for name, each in pauses.entries.items() if FAILED in (each.by or "")]
            for name in paused:
                skip = self.random.random() < 0.5
                pauses = pauses.resume(name, now, skip)
            if paused:
                self.ensemble.set((path, pauses.encode(), 0))
        self.world.after(self.random.uniform(1.0, 5.0), self._resume)

    def _scribble(self) -> None:
        """Whoever has the rights of a worker may write anything there."""
        folder = self.paths.inbox_reports
        if self.over or folder not in self.ensemble.tree:
            return
        good = [name for name, each in self.checker._reported.items() if each.run is not None]
        kind = self.random.choice(("junk", "nobody", "future", "again", "again"))
        path = f"{folder}/{kind}-{next(self._junk)}"
        due = datetime.fromtimestamp(BEGINNING, timezone.utc)
        report = Report("nobody", 1, due, "x", "celery@x", "success")
        data = report.encode()
        if kind == "junk":
            data = self.random.choice((b"", b"\xff{", b'{"format":2,"entry":"skip"}', b"x" * 9999))
        elif kind == "future":
            data = replace(report, entry="skip", run=10**6).encode()
        elif kind == "again":
            if not good:
                return
            path = f"{folder}/{self.random.choice(good)}"
            data = self.ensemble.tree[path].data
        self.ensemble.set((path, data, 0))

    def _forge(self) -> None:
        """As if a delivery were being executed, but by a znode that ends with no session."""
        reported = self.checker._reported
        paths = [f"{self.paths.inbox_running}/{name}" for name in sorted(reported)]
        paths = [path for path in paths if path not in self.ensemble.tree]
        if paths and not self.over:
            self.ensemble.set((self.forger.choice(paths), b"", 0))


class Worker:
    """A Celery worker as far as it reports. It sends as real ones do."""

    def __init__(self, outcomes: Outcomes, name: str) -> None:
        self.outcomes, self.name = outcomes, name
        self.world, self.checker = outcomes.world, outcomes.checker
        self.link = Link()
        self.random = random.Random(f"{name} {outcomes.random.random()}")
        self.machine: Machine | None = None
        self._offset = self.random.choice((0.0, 0.0, 300.0, -300.0))
        self._held: list[Message] = []
        self._executed: set[str] = set()
        self._is_stopping = False

    @property
    def takes(self) -> bool:
        """Whether it takes messages."""
        machine = self.machine
        is_up = machine is not None and machine.alive and not machine.paused
        return is_up and not self._is_stopping

    def start(self) -> None:
        if self.machine is not None and self.machine.alive:
            return
        self._is_stopping = False
        self.machine = machine = Machine(self.world, self.name)
        machine.clock_offset = self._offset
        self._numbers = itertools.count(1)
        self._queue: SimpleQueue = SimpleQueue()
        with self.world.on(machine):
            self._sender = sender = Sender(self.outcomes.settings)
            sender.start()
            for _ in range(POOL):
                Thread(target=self._work, args=(sender, self._queue), name="pool").start()

    def take(self, message: Message) -> None:
        message.holder = self.machine
        self._held.append(message)
        self._queue.put(message)

    def heal(self) -> None:
        self.link.set()
        if self.machine is not None and self.machine.paused:
            self.machine.resume()
        if not self._is_stopping:
            self.start()

    def kill(self) -> None:
        machine = self.machine
        if machine is None or not machine.alive:
            return
        machine.die()
        for connection in self.link.connections:
            connection.hang_up()
        self.link.connections.clear()
        executed, self._executed = self._executed, set()
        for name in executed:
            self.checker.on_ended(name)
        held, self._held = self._held, []
        for message in held:
            self.outcomes.not_acknowledged(message)

    def stop(self) -> None:
        """SIGTERM: it ends what it executes."""
        machine = self.machine
        if machine is None or not machine.alive or self._is_stopping:
            return
        self._is_stopping = True

        def close() -> None:
            while self._executed:
                clock.sleep(0.1)
            self._sender.stop()
            self.world.after(0.0, end)

        def end() -> None:
            if self.machine is machine:
                self.kill()
                self._is_stopping = False
                self.world.after(self.random.uniform(0.1, 1.0), self.start)

        with self.world.on(machine):
            Thread(target=close, name="stop").start()

    def verb(self, what: str, length: float) -> tuple[Callable[[], None], Callable[[], None]]:
        """How a fault begins, and how it ends."""

        def link(**state: Any) -> tuple[Callable[[], None], Callable[[], None]]:
            return lambda: self.link.set(**state), self.link.set

        def machine(do: str) -> Callable[[], None]:
            return lambda: getattr(self.machine, do)() if self.machine is not None else None

        return {
            "kill": (self.kill, self.start),
            "stop": (self.stop, lambda: None),
            "pause": (machine("pause"), machine("resume")),
            "cut": link(cut=True),
            "block requests": link(blocked=frozenset({"requests"})),
            "block answers": link(blocked=frozenset({"answers"})),
            "delay": link(delay=length / 3),
        }[what]

    def _work(self, sender: Sender, messages: SimpleQueue) -> None:
        while True:
            message = messages.get()
            if not self._is_stopping:
                self._process(sender, message)

    def _process(self, sender: Sender, message: Message) -> None:
        wanted = message.header.get("report")
        name = delivery_of(message.id, sender.process, next(self._numbers))
        report = None
        if wanted is not None:
            report = Report.of(message.header, message.id, f"celery@{self.name}")
        if not self.outcomes.over and self.random.random() < 0.04:
            state = self.random.choice((reports.REVOKED, reports.EXPIRED, reports.REJECTED))
            if report is not None:
                sender.end(name, report.ended(state, None, None))
            self._acknowledge(message)
            return
        # The task may begin before ZooKeeper knows of it, as a process of the pool does.
        self._executed.add(name)
        self.checker.on_executed(name, message.run)
        self.world.breathe()
        if report is not None:
            report = replace(report, again=message.is_late)
            sender.begin(name, report)
        if not message.is_late:
            self._acknowledge(message)
        duration = self.outcomes.duration()
        clock.sleep(duration)
        self._executed.discard(name)
        self.checker.on_ended(name)
        state = self.outcomes.end_of(message)
        if state in (reports.RETRY, reports.REQUEUED):
            self.outcomes.hand_out(replace(message), self.random.uniform(0.0, 1.0))
        self._acknowledge(message)
        if report is not None:
            error = "KeyError" if state == reports.FAILURE else None
            sender.end(name, report.ended(state, duration, error))

    def _acknowledge(self, message: Message) -> None:
        self._held = [each for each in self._held if each is not message]


def patches() -> Any:
    """Ids are of the seed, too."""

    def uuid4() -> Any:
        return SimpleNamespace(hex=f"{World.active.random.getrandbits(128):032x}")

    return mock.patch.object(sending, "uuid", SimpleNamespace(uuid4=uuid4))
