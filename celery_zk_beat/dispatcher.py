"""Claims, publishes, drops and skips runs, for all sources of entries and for the operators. A
claim passes through loop, source, dispatcher, ledger."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from . import clock
from .ahead import MadeAhead
from .broker import Broker
from .control import Control
from .election.public import MasterElection
from .errors import Outdated
from .ledger import RunLedger
from .limits import LARGEST_OUTBOX, MOST_RUNS
from .log import Action, get_logger, telling
from .messages import run_id
from .metrics import SKIPPED, Metrics
from .policies import ALLOW, LEAST_CATCH_UP
from .publishing import Entries, Publisher
from .records import to_text
from .runs import NEVER, Run, bytes_of
from .settings import Settings
from .signals import Announcer, run_dropped, run_published
from .zookeeper.operations import Operation

logger = get_logger(__name__)

#: Most runs of one claim: so we can publish one claim's runs while the next claim is on its way.
_MOST_CLAIMED = MOST_RUNS // 2
#: Most bytes of the outbox that held-back runs may take.
MOST_HELD = LARGEST_OUTBOX // 2
#: How long a run waits for a master whose schedule has its entry; seconds between two checks.
UNNAMED_FOR = timedelta(days=1)
_LOOK_AT_HELD_EVERY = 60.0
#: Why a run is held back. If there is no room, runs with the first reason are dropped first.
_UNNAMED, _AT_FAULT, _PAUSED = "no schedule names it", "it cannot be published", "it is paused"
#: Most runs, or changes, that are logged one by one.
MOST_LOGGED = 20


class Dispatcher:
    """Decides what happens to runs. For the dispatch loop's thread, except :meth:`close`.

    Methods raise a ZkBeatError if ZooKeeper does not answer or refuses. Then the ledger must be
    loaded anew.

    Args:
        wake: called on kazoo's thread when an operator wrote something.
        show_progress: is called after each piece of work.

    Attributes:
        source: the source of entries. Set it before any other use.
        wake: makes the loop turn; for any thread.
        policies: the entries' policies: those of the settings, and perhaps more from the source.
        is_closing: this beat is stopping.
        ahead: what is made of runs before they are due.
        has_opened: tracked runs were claimed, or dropped, since somebody set it to False.
    """

    source: Entries

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        election: MasterElection,
        broker: Broker,
        announcer: Announcer,
        wake: Callable[[], None],
        show_progress: Callable[[], None],
    ) -> None:
        self.settings, self.metrics, self.show_progress = settings, metrics, show_progress
        self.policies, self.wake = settings.policies, wake
        self.election, self._announcer = election, announcer
        self.ledger = RunLedger(election)
        self.control = Control(election.session, election.paths, wake)
        self.publisher = Publisher(self, broker, self.ledger)
        self.ahead = MadeAhead(settings, self.ledger, election.paths.root, self.task_id)
        self.is_closing = self.has_opened = False
        #: Until when we may publish, by boottime().
        self._publish_until = math.inf
        #: When we last checked the held-back runs, by boottime().
        self._held_looked_at = -math.inf

    def close(self, seconds: float) -> None:
        """Stops publishing after so many seconds. For any thread and signal handler."""
        self._publish_until = clock.boottime() + seconds
        self.is_closing = True

    def note_loaded(self) -> None:
        """Call this after the ledger was loaded. Held-back runs are checked soon. A run that would
        leave later than this beat's policy for its entry allows leaves immediately."""
        self._held_looked_at = -math.inf
        for name, run in self.ledger.outbox.items():
            policy = self.policies.of(name)
            most = timedelta() if policy is None else policy.jitter
            if run.leaves is not None and run.leaves - run.due > most:
                self.ledger.outbox[name] = replace(run, leaves=None)

    @property
    def epoch(self) -> int:
        """The epoch of the term for which the ledger is loaded."""
        return self.ledger.epoch

    @property
    def is_master(self) -> bool:
        """True while the term lasts for which the ledger is loaded."""
        return self.ledger.term is not None and self.ledger.term == self.election.term

    # For the publisher (publishing.Runs) ----------------------------------------------------------

    def task_id(self, run: Run) -> str:
        """Returns the task id of a run. Every beat computes the same id for the same run."""
        root, entries = self.election.paths.root, self.source.entries
        return run_id(root, entries, run.entry, run.number, run.due, run.was)

    def telling(self, run: Run, action: Action) -> dict[str, object]:
        """Returns the fields of a log line about a run."""
        return run.telling(action, self.epoch, self.task_id(run))

    def may_publish(self, run: Run) -> bool:
        """True if this beat's schedule has the entry, and nothing holds the run back."""
        held = not run.is_wanted_now and self.control.holds(run.entry)
        return run.entry in self.source.entries and not held

    def may_publish_now(self) -> bool:
        """True if this beat may publish anything at the moment."""
        is_late = self.is_closing and clock.boottime() > self._publish_until
        return not (is_late or self.control.pauses_stale)

    def tell_published(self, runs: list[Run]) -> None:
        """Logs it, in the words of Celery's own beat, and sends our signal."""
        is_logged, is_heard = logger.isEnabledFor(logging.DEBUG), bool(run_published.receivers)
        for run in runs if is_logged or is_heard else ():
            task_id = self.task_id(run)
            task = getattr(self.source.entries.get(run.entry), "task", None)
            told = run.telling("published", self.epoch, task_id)
            logger.debug("%s sent. id->%s", task, task_id, extra=told)
            if is_heard:
                self._announcer.send(
                    run_published,
                    entry=run.entry,
                    task=task,
                    run=run.number,
                    due=run.due,
                    epoch=self.epoch,
                    task_id=task_id,
                )

    def announce(self, signal: object, **arguments: object) -> None:
        """Has a signal be sent, without waiting for it."""
        self._announcer.send(signal, **arguments)

    # For sources and operators --------------------------------------------------------------------

    def claim(
        self,
        runs: list[Run],
        *also: Operation,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[Run]:
        """Claims runs, if what the source has read is still up to date. Returns the claimed runs.

        Args:
            also: is part of the transaction.
            meanwhile: called while the claim is on its way.

        Raises:
            Outdated: pauses or entries have changed; the next turn reads them anew. The ledger is
                as it was.
        """
        begun = clock.boottime()
        if self.policies and self.settings.outcomes is not None:
            runs = [self._tracked(run) for run in runs]
        try:
            also += (*self.source.conditions(runs),)
            claimed = self.ledger.claim(runs, *also, meanwhile=meanwhile, made=self.ahead.state)
        except Outdated as exc:
            if exc.path == self.election.paths.pauses:
                self.control.outdated()
            else:
                self.source.is_refused(exc.path)
            raise
        self.metrics.claim_seconds.observe(clock.boottime() - begun)
        self.metrics.claimed += len(claimed)
        return claimed

    def _tracked(self, run: Run) -> Run:
        policy = self.policies.of(run.entry)
        if policy is None or not policy.is_tracked:
            return run
        self.has_opened = True
        return replace(run, tracked=True)

    def is_blocked(self, name: str) -> bool:
        """True if a run of the entry is open, and its policy forbids that two overlap."""
        policy = self.policies.of(name)
        overlaps = policy is None or policy.overlap == ALLOW
        return not overlaps and bool(self.ledger.open_of(name))

    def publish_waiting(self) -> None:
        """Publishes the runs of the outbox that may be published now."""
        if self.policies and self.ledger.outbox:
            self._drop_late()
        self.publisher.publish(self.ledger.outbox.values())

    def publish_soon(self, seconds: float = math.inf) -> None:
        """Publishes runs before this beat gives up its term: see :meth:`.Publisher.publish_soon`.
        Runs that are too late stay for the next master to drop."""
        self.publisher.publish_soon(self.ledger.outbox.values(), seconds)

    def _drop_late(self) -> None:
        late = [run for run in self.publisher.waiting() if self._is_late(run)]
        self._drop_noted(late, SKIPPED["catch_up"])

    def in_time(self, runs: list[Run]) -> list[Run]:
        """Returns the runs that are not too late for their policy, or whose drop has no place."""
        if not self.policies:
            return runs
        return [run for run in runs if not self._is_late(run) or self.ledger.damaged(run.entry)]

    def _is_late(self, run: Run) -> bool:
        """True if a run is later than its policy allows to start. It allows a moment more, for runs
        that were claimed just in time."""
        policy = self.policies.of(run.entry)
        if run.extra or policy is None:
            return False
        return policy.is_too_late(run.leaves or run.due, clock.now() - LEAST_CATCH_UP)

    def room(self) -> int:
        """Returns how many runs may be claimed at once. This limits the runs that wait for the
        broker. Held-back runs do not count here: :meth:`drop_held` limits them."""
        outbox = self.ledger.outbox
        if self.ledger.full:
            return 0
        if len(outbox) <= MOST_RUNS - _MOST_CLAIMED:
            return _MOST_CLAIMED  # no need to look at each run
        left = MOST_RUNS - sum(self.held_because(run) is None for run in outbox.values())
        return min(left, _MOST_CLAIMED)

    def held_because(self, run: Run) -> str | None:
        """Returns why a run is held back, or None if it waits for the broker only."""
        if run.entry not in self.source.entries:
            return _UNNAMED
        if not self.may_publish(run):
            return _PAUSED
        return _AT_FAULT if run.error or self.publisher.is_at_fault(run.entry) else None

    def drop(
        self,
        runs: list[Run],
        why: str | Mapping[str, str],
        *also: Operation,
        level: int = logging.WARNING,
    ) -> None:
        """Takes runs out of the outbox that will not be published.

        Args:
            why: the reason for the history, one for all or by entry.
            also: is part of the transaction.
            level: the level of the log lines.
        """
        self.ledger.drop(runs, why, *also)
        self.has_opened |= any(run.tracked for run in runs)
        self.metrics.dropped += len(runs)
        if len(runs) > MOST_LOGGED:
            logger.warning("%d runs in all are dropped", len(runs))
        for number, run in enumerate(runs):
            reason = why if isinstance(why, str) else why[run.entry]
            logger.log(
                level if number < MOST_LOGGED else logging.DEBUG,
                "%s: run %d, due %s, is dropped: %s",
                run.entry,
                run.number,
                to_text(run.due),
                reason,
                extra=self.telling(run, "dropped"),
            )
            self._announcer.send(
                run_dropped,
                entry=run.entry,
                run=run.number,
                due=run.due,
                epoch=self.epoch,
                reason=reason,
            )

    def skip(
        self, missed: Mapping[str, tuple[datetime, datetime]], reason: str, *also: Operation
    ) -> None:
        """Records that instants get no run.

        Args:
            missed: entry to the instant that was due, and the instant from which its clock goes on.
            reason: one of metrics.SKIPPED.
            also: is part of the transaction.
        """
        if missed:
            why = SKIPPED[reason]
            whys = {name: f"skipped: {why}{self._since(name, reason)}" for name in missed}
            self.ledger.skip(missed, whys, *also)
            self.metrics.skipped[reason] += len(missed)
            if len(missed) > MOST_LOGGED:
                logger.warning("instants of %d entries are skipped: %s", len(missed), why)
            for number, (name, (instant, _)) in enumerate(missed.items()):
                due = to_text(instant)
                level = logging.WARNING if number < MOST_LOGGED else logging.DEBUG
                if reason == "overlap":  # as the policy asks for
                    level = min(level, logging.INFO)
                told = telling("skipped", entry=name, due=due, epoch=self.epoch)
                logger.log(level, "%s: due %s, is skipped: %s", name, due, why, extra=told)

    def _since(self, name: str, reason: str) -> str:
        opened = self.ledger.open_of(name) if reason == "overlap" else ()
        return f", since {to_text(opened[0].at)}" if opened else ""

    def drop_held(self) -> None:
        """Drops runs that no schedule has named for too long, and held-back runs for which there is
        no room. It checks from time to time, and whenever they take too much room."""
        is_time = clock.boottime() - self._held_looked_at > _LOOK_AT_HELD_EVERY
        if not is_time and self.ledger.outbox_bytes <= self._most_held:
            return
        self._held_looked_at = clock.boottime()
        held: dict[str, list[Run]] = {_UNNAMED: [], _AT_FAULT: [], _PAUSED: []}
        late = []
        # Neither clock alone says that a run is too old: one of them may be wrong.
        now = min(clock.now(), self.ledger.server_now)
        for run in self.ledger.outbox.values():
            why = self.held_because(run)
            if why is None or self.ledger.damaged(run.entry):
                continue
            if why == _UNNAMED and self._is_long_unnamed(run, now):
                late.append(run)
            else:
                held[why].append(run)
        self._drop_noted(late, f"{_UNNAMED}, for longer than {UNNAMED_FOR.days} d")
        over = bytes_of(itertools.chain(*held.values())) - self._most_held
        for why, runs in held.items():
            dropped = []
            for run in sorted(runs, key=lambda run: run.claimed):
                if over > 0:
                    dropped.append(run)
                    over -= bytes_of([run])
            self._drop_noted(dropped, f"{why}, and the outbox has no room for more held runs")

    @property
    def _most_held(self) -> int:
        return min(MOST_HELD, self.ledger.limits.largest_outbox // 2)

    def _is_long_unnamed(self, run: Run, now: datetime) -> bool:
        state = self.ledger.state(run.entry)
        since = run.claimed if state is None else max(run.claimed, state.unnamed_since or NEVER)
        return now - since > UNNAMED_FOR

    def _drop_noted(self, runs: Iterable[Run], why: str) -> None:
        """Drops runs. An entry without a state gets one to record the drop, if there is room."""
        unseen = {run.entry: run.claimed for run in runs if self.ledger.state(run.entry) is None}
        self.ledger.first_seen(unseen)
        noted = [run for run in runs if self.ledger.state(run.entry) is not None]
        self.drop(noted, why, self.control.unchanged)
