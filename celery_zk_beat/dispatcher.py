"""Claims runs, has them published, drops and skips them: what all sources of entries, and the
operators, do with runs. A claim passes loop, source, dispatcher, ledger."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from . import clock
from .broker import Broker
from .control import Control
from .election.public import MasterElection
from .errors import Outdated
from .ledger import RunLedger
from .limits import LARGEST_OUTBOX, MOST_RUNS
from .log import Action, get_logger, telling
from .messages import run_id
from .metrics import SKIPPED, Metrics
from .policies import LEAST_CATCH_UP
from .publishing import Entries, Publisher
from .records import to_text
from .runs import NEVER, Run, bytes_of
from .settings import Settings
from .signals import Announcer, run_dropped, run_published
from .zookeeper.operations import Operation

logger = get_logger(__name__)

#: Most runs of one claim, so that one can be on its way while those before are published.
_MOST_CLAIMED = MOST_RUNS // 2
#: Most bytes in the outbox of runs that are held back, each for a reason of its own.
MOST_HELD = LARGEST_OUTBOX // 2
#: How long a run waits for a master whose schedule names it, and seconds between two looks at that.
UNNAMED_FOR = timedelta(days=1)
_LOOK_AT_HELD_EVERY = 60.0
#: Why a run is held back; what is first is dropped first, where there is no room for all.
_UNNAMED, _AT_FAULT, _PAUSED = "no schedule names it", "it cannot be published", "it is paused"
#: Most runs, or changes, that are logged one by one.
MOST_LOGGED = 20


class Dispatcher:
    """Decides what becomes of runs. For the dispatch loop's thread, but for :meth:`close`.

    Methods raise a ZkBeatError where ZooKeeper does not answer or refuses: the ledger is to be
    loaded anew then.

    Args:
        wake: called on kazoo's thread when an operator wrote something.
        show_progress: to be called when something has been done.

    Attributes:
        source: of the entries; to be set before anything else is asked.
        wake: has the loop turn; for any thread.
        policies: of the entries; those of the settings, unless the source has more.
        is_closing: this beat stops.
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
        self.is_closing = False
        #: On boottime(): until when something is published.
        self._publish_until = math.inf
        #: On boottime(): when it was looked at what is held back.
        self._held_looked_at = -math.inf

    def close(self, seconds: float) -> None:
        """Has nothing be published after so many seconds. For any thread and signal handler."""
        self._publish_until = clock.boottime() + seconds
        self.is_closing = True

    def note_loaded(self) -> None:
        """The ledger was loaded anew: what is held back is looked at soon, and what was to leave
        later than its entry's policy, as this beat has it, may leave: at once."""
        self._held_looked_at = -math.inf
        for name, run in self.ledger.outbox.items():
            policy = self.policies.of(name)
            most = timedelta() if policy is None else policy.jitter
            if run.leaves is not None and run.leaves - run.due > most:
                self.ledger.outbox[name] = replace(run, leaves=None)

    @property
    def epoch(self) -> int:
        """Of the master's term for which the ledger is loaded."""
        return self.ledger.epoch

    @property
    def is_master(self) -> bool:
        """True while the term for which the ledger is loaded goes on."""
        return self.ledger.term is not None and self.ledger.term == self.election.term

    # What the publisher asks: see publishing.py ---------------------------------------------------

    def task_id(self, run: Run) -> str:
        """The same for the same run, whoever publishes it, and whoever asks."""
        root, entries = self.election.paths.root, self.source.entries
        return run_id(root, entries, run.entry, run.number, run.due, run.was)

    def telling(self, run: Run, action: Action) -> dict[str, object]:
        """Of a log line that tells of a run."""
        return run.telling(action, self.epoch, self.task_id(run))

    def may_publish(self, run: Run) -> bool:
        """True for what is this beat's to publish, and not held back."""
        held = not run.is_wanted_now and self.control.holds(run.entry)
        return run.entry in self.source.entries and not held

    def may_publish_now(self) -> bool:
        """True where anything is to be published at the moment."""
        is_late = self.is_closing and clock.boottime() > self._publish_until
        return not (is_late or self.control.pauses_stale)

    def tell_published(self, runs: list[Run]) -> None:
        """Tells the log, in the words of Celery's own beat, and the receivers of our signal."""
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

    # What sources and operators ask ---------------------------------------------------------------

    def claim(
        self,
        runs: list[Run],
        *also: Operation,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[Run]:
        """Claims runs, and returns those that were; not against what the source goes by.

        Args:
            also: is part of the transaction.
            meanwhile: called while the claim is on its way.

        Raises:
            Outdated: what it goes by has to be read anew, which the next turn does; the ledger is
                as it was.
        """
        begun = clock.boottime()
        try:
            claimed = self.ledger.claim(
                runs, *also, *self.source.conditions(runs), meanwhile=meanwhile
            )
        except Outdated as exc:
            if exc.path == self.election.paths.pauses:
                self.control.outdated()
            else:
                self.source.is_refused(exc.path)
            raise
        self.metrics.claim_seconds.observe(clock.boottime() - begun)
        self.metrics.claimed += len(claimed)
        return claimed

    def publish_waiting(self) -> None:
        """Publishes of the outbox what may be published now."""
        if self.policies and self.ledger.outbox:
            self._drop_late()
        self.publisher.publish(self.ledger.outbox.values())

    def publish_soon(self, seconds: float = math.inf) -> None:
        """The same, before this beat gives up its term: see :meth:`.Publisher.publish_soon`. What
        is too late is left to the next master, to drop."""
        late = {run.entry for run in self._late()} if self.policies else ()
        waiting = [run for run in self.ledger.outbox.values() if run.entry not in late]
        self.publisher.publish_soon(waiting, seconds)

    def _drop_late(self) -> None:
        self._drop_noted(self._late(), SKIPPED["catch_up"])

    def _late(self) -> list[Run]:
        """What has waited for longer than its entry's policy lets it start. A moment more is for
        what was claimed just in time."""
        now, policies = clock.now() - LEAST_CATCH_UP, self.policies
        return [
            run
            for run in self.ledger.outbox.values()
            if not run.extra and self.may_publish(run)
            for policy in [policies.of(run.entry)]
            if policy is not None and policy.is_too_late(run.leaves or run.due, now)
        ]

    def room(self) -> int:
        """How many runs may be claimed at once: what waits for the broker is bounded. What is held
        back for a reason of its own takes none of this room: :meth:`drop_held` bounds it."""
        outbox = self.ledger.outbox
        if self.ledger.full:
            return 0
        if len(outbox) <= MOST_RUNS - _MOST_CLAIMED:
            return _MOST_CLAIMED  # without a look at each
        left = MOST_RUNS - sum(self.held_because(run) is None for run in outbox.values())
        return min(left, _MOST_CLAIMED)

    def held_because(self, run: Run) -> str | None:
        """Why a run waits though the broker may be there; None where it does not."""
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
            why: for the history, the same for all or by entry.
            also: is part of the transaction.
            level: of the line in the log.
        """
        self.ledger.drop(runs, why, *also)
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
        """Notes that instants have no run.

        Args:
            missed: entry to the instant that it was due, and from which its clock goes on.
            reason: one of metrics.SKIPPED.
            also: is part of the transaction.
        """
        if missed:
            why = SKIPPED[reason]
            self.ledger.skip(missed, f"skipped: {why}", *also)
            self.metrics.skipped[reason] += len(missed)
            if len(missed) > MOST_LOGGED:
                logger.warning("instants of %d entries are skipped: %s", len(missed), why)
            for number, (name, (instant, _)) in enumerate(missed.items()):
                due = to_text(instant)
                level = logging.WARNING if number < MOST_LOGGED else logging.DEBUG
                told = telling("skipped", entry=name, due=due, epoch=self.epoch)
                logger.log(level, "%s: due %s, is skipped: %s", name, due, why, extra=told)

    def drop_held(self) -> None:
        """Drops, now and then and where they take much, the runs that no schedule has named for
        too long and, of all that are held back, those for which there is no room."""
        is_time = clock.boottime() - self._held_looked_at > _LOOK_AT_HELD_EVERY
        if not is_time and self.ledger.outbox_bytes <= self._most_held:
            return
        self._held_looked_at = clock.boottime()
        held: dict[str, list[Run]] = {_UNNAMED: [], _AT_FAULT: [], _PAUSED: []}
        late = []
        for run in self.ledger.outbox.values():
            why = self.held_because(run)
            if why is None or self.ledger.damaged(run.entry):
                continue
            if why == _UNNAMED and self._is_long_unnamed(run):
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

    def _is_long_unnamed(self, run: Run) -> bool:
        state = self.ledger.state(run.entry)
        since = run.claimed if state is None else max(run.claimed, state.unnamed_since or NEVER)
        # Neither a clock that is ahead, for a moment, says that it is time, nor ZooKeeper's.
        ahead = timedelta(seconds=max(0.0, self.election.clock_offset))
        return clock.now() - ahead - since > UNNAMED_FOR

    def _drop_noted(self, runs: Iterable[Run], why: str) -> None:
        """Drops them; what has no state gets one, for the note, if there is room for it."""
        unseen = {run.entry: run.claimed for run in runs if self.ledger.state(run.entry) is None}
        self.ledger.first_seen(unseen)
        noted = [run for run in runs if self.ledger.state(run.entry) is not None]
        self.drop(noted, why, self.control.unchanged)
