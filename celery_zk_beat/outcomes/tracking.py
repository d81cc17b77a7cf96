"""What became of tracked runs: the master folds what workers report into the run states.

Each outcome is folded once. The transaction that records it in the entry's state also closes the
run there and deletes the report. So a master that is killed leaves either both or neither.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from .. import clock
from ..dispatcher import Dispatcher
from ..errors import AccessDenied, Conflict, Outdated, QuotaExceeded, RootError
from ..history import decode_volume
from ..log import get_logger
from ..paths import page_of, volume_of
from ..policies import Policy
from ..records import from_text
from ..runs import CONCLUDED, LATE, LATE_FINISH, LATE_START, LOST, UNKNOWN, Outcome, PastRun
from ..source import Source
from ..zookeeper.operations import Check, Operation
from .deliveries import Deliveries, Delivery, Key
from .reporting import Reporting

logger = get_logger(__name__)

#: Most runs whose outcomes are folded in a turn, and most reports that are deleted at once.
_AT_ONCE, _DELETED_AT_ONCE = 200, 200
#: Least seconds between two looks.
_REST = 0.02
#: Seconds until the next look: if a worker may yet report though it is gone; after a report changed
#: while it was folded; and after ZooKeeper refused something.
_LOOK_EVERY, _AGAIN_AFTER, _RETRY_AFTER = 5.0, 0.05, 10.0
#: Seconds until the next look at a deadline of a run that waits for the broker.
_WAITING_EVERY = 1.0
_NO_POLICY = Policy()


@dataclass
class _Folded:
    """What is to be recorded of an entry: its runs, each with its outcome, and what belongs into
    the same transaction."""

    runs: list[PastRun] = field(default_factory=list)
    also: list[Operation] = field(default_factory=list)


class Tracking:
    """Follows the tracked runs of a master. For the dispatch loop's thread. Methods raise the
    ledger's errors: a ZkBeatError, after which the ledger must be loaded anew.

    Args:
        deliveries: the source of outcomes.
    """

    def __init__(self, dispatcher: Dispatcher, source: Source, deliveries: Deliveries) -> None:
        self._dispatcher, self._source, self._deliveries = dispatcher, source, deliveries
        self._ledger, self._control = dispatcher.ledger, dispatcher.control
        self._election, self._metrics = dispatcher.election, dispatcher.metrics
        self._reporting = Reporting(dispatcher)
        self.forget()

    def forget(self) -> None:
        """The term is over, or all is read anew."""
        self._deliveries.forget()
        #: The tracked runs that have not ended, and those that are open again.
        self._open: dict[Key, PastRun] = {}
        #: Deliveries that somebody has changed in such a way that they cannot be deleted.
        self._stuck: set[str] = set()
        #: The last delivery because of which a transaction was refused.
        self._refused = ""
        #: Runs of which it is known that a worker began to execute them.
        self._started: set[Key] = set()
        #: When to look again, and when we last looked, by boottime().
        self._look_at = self._looked_at = -math.inf
        self._metrics.open = 0

    def turn(self) -> float:
        """Folds what has been reported, and looks at the deadlines. Returns the seconds until there
        is more to do."""
        now = clock.boottime()
        if self._deliveries.stale or self._dispatcher.has_opened:
            self._look_at = min(self._look_at, self._looked_at + _REST)
        if now < self._look_at:
            return self._look_at - now
        self._looked_at = now
        self._dispatcher.has_opened = False
        self._look_at = math.inf
        try:
            self._turn()
        except Outdated as exc:
            self._note_refused(exc.path)
        except (AccessDenied, QuotaExceeded) as exc:
            if self._ledger.term is None:  # the ledger's own write was refused
                raise
            logger.error("what becomes of runs cannot be recorded: %s", exc)
            self._look_in(_RETRY_AFTER)
        return max(0.0, self._look_at - clock.boottime())

    def _turn(self) -> None:
        opened = self._ledger.open_runs()
        self._open = {(name, past.run): past for name, runs in opened.items() for past in runs}
        self._metrics.open = len(self._open)
        found: dict[Key, list[Delivery]] = {}
        useless: list[Delivery] = []
        for each in self._deliveries.read(self._open).values():
            if each.key is None:
                useless.append(each)
            else:
                found.setdefault(each.key, []).append(each)
        self._started &= self._open.keys()
        folded: dict[str, _Folded] = {}
        for key, deliveries in found.items():
            useless += self._judge(key, deliveries, folded)
        self._look_at_deadlines(found, folded)
        self._fold(folded)
        self._delete(useless)

    # What the reports say -------------------------------------------------------------------------

    def _judge(
        self, key: Key, deliveries: list[Delivery], folded: dict[str, _Folded]
    ) -> list[Delivery]:
        """Decides what becomes of a run, by all of its deliveries. Returns those that say nothing
        new."""
        past = self._open.get(key)
        if past is None:
            past = self._find(key, deliveries)
            if past is None:
                return [each for each in deliveries if not each.is_running]
        running = [each for each in deliveries if each.is_running]
        if running:
            self._note_running(key, past, running[-1], folded)
            return []
        ended = sorted((each for each in deliveries if each.outcome), key=lambda each: each.at)
        last = max(deliveries, key=lambda each: each.at)
        if ended:
            outcome = ended[0].outcome
        elif last.comes_again:
            self._look_in(_LOOK_EVERY)
            return [each for each in deliveries if each is not last]
        else:
            worker = None if last.report is None else last.report.worker
            outcome = Outcome(LOST, self._server_ms, None, worker)
        if last.is_started or ended:
            self._note_started(key, past, last)
        self._add(folded, key[0], past._replace(outcome=outcome), deliveries)
        return []

    def _find(self, key: Key, deliveries: list[Delivery]) -> PastRun | None:
        """Finds a run that is not open, if a report can still change what is known of it: the
        master has concluded that it was lost, and was wrong."""
        name, run = key
        state = self._ledger.state(name)
        if state is None or not any(each.outcome or each.is_running for each in deliveries):
            return None
        known = [past for past in state.past if past.run == run]
        if not known:
            path = self._election.paths.volume(volume_of(page_of(name)))
            node = self._election.session.read(path)
            with contextlib.suppress(RootError):
                pasts = {} if node is None else decode_volume(path, node.data)
                known = [past for past in pasts.get(name, ()) if past.run == run]
        for past in known:
            if past.outcome is not None and past.outcome.state in CONCLUDED:
                return past
        return None

    def _note_running(
        self, key: Key, past: PastRun, delivery: Delivery, folded: dict[str, _Folded]
    ) -> None:
        self._note_started(key, past, delivery)
        if key not in self._open:
            logger.warning("%s: run %s is running after all", key[0], past.number)
            folded.setdefault(key[0], _Folded()).runs.append(past._replace(outcome=None))

    def _note_started(self, key: Key, past: PastRun, delivery: Delivery) -> None:
        if key in self._started:
            return
        self._started.add(key)
        assert delivery.report is not None
        worker, (name, _) = delivery.report.worker, key
        if delivery.at < from_text(self._ledger.era).timestamp():
            return  # an earlier master has reported that
        self._reporting.started(name, past, worker)

    # What nobody reports --------------------------------------------------------------------------

    def _look_at_deadlines(
        self, found: Mapping[Key, Sequence[Delivery]], folded: dict[str, _Folded]
    ) -> None:
        now, outbox = self._server_time, self._ledger.outbox
        for key, past in self._open.items():
            name, (number, _) = key
            waiting = outbox.get(name)
            is_waiting = waiting is not None and waiting.number == number
            if name in folded and any(each.run == past.run for each in folded[name].runs):
                continue
            deliveries = found.get(key, ())
            is_running = any(each.is_running for each in deliveries)
            policy = self._dispatcher.policies.of(name) or _NO_POLICY
            said = past.outcome.state if past.outcome is not None else ""
            for state, span in self._deadlines(key, policy, said, is_running):
                left = past.at.timestamp() + span.total_seconds() - now
                if left > 0 or is_waiting:  # then it is not dispatched yet
                    self._look_in(max(left, _WAITING_EVERY if is_waiting else 0.0))
                    continue
                ends = deliveries if state == UNKNOWN else ()
                at_ms = self._server_ms
                self._add(folded, name, past._replace(outcome=Outcome(state, at_ms)), ends)
                break

    def _deadlines(
        self, key: Key, policy: Policy, said: str, is_running: bool
    ) -> Iterator[tuple[str, timedelta]]:
        """Yields what is to be said of a run if it is still open so long after its dispatch, the
        most important first."""
        if not is_running:
            yield UNKNOWN, policy.overlap_timeout
        if policy.finish_within is not None and said != LATE_FINISH:
            yield LATE_FINISH, policy.finish_within
        if policy.start_within is not None and said not in LATE and key not in self._started:
            yield LATE_START, policy.start_within

    # Writing --------------------------------------------------------------------------------------

    def _add(
        self,
        folded: dict[str, _Folded],
        name: str,
        past: PastRun,
        deliveries: Iterable[Delivery],
    ) -> None:
        each = folded.setdefault(name, _Folded())
        each.runs.append(past)
        each.also += self._deletes(deliveries)

    def _deletes(self, deliveries: Iterable[Delivery]) -> list[Operation]:
        return [
            each.delete
            for each in deliveries
            if each.delete is not None and each.name not in self._stuck
        ]

    def _fold(self, folded: dict[str, _Folded]) -> None:
        known = {name: each for name, each in folded.items() if self._ledger.state(name)}
        if len(known) > _AT_ONCE:
            known = dict(itertools.islice(known.items(), _AT_ONCE))
            self._look_at = 0.0
        pausing = {name: each for name, each in known.items() if self._must_pause(name, each)}
        for name, each in pausing.items():
            del known[name]
            self._fold_and_pause(name, each)
        outcomes = {name: each.runs for name, each in known.items()}
        also = {name: each.also for name, each in known.items()}
        for names in self._ledger.fold(outcomes, also):
            for name in names:
                self._folded(name, known[name])

    def _must_pause(self, name: str, folded: _Folded) -> bool:
        """True if these outcomes are the last that it takes to pause the entry."""
        policy, before = self._dispatcher.policies.of(name), self._ledger.state(name)
        if policy is None or policy.pause_after_failures is None or before is None:
            return False
        after, most = before, policy.pause_after_failures
        for past in folded.runs:
            after = after.after_outcome(past)
        is_paused = self._control.pauses.of(name).since is not None
        return after.failed // most > before.failed // most and not is_paused

    def _fold_and_pause(self, name: str, folded: _Folded) -> None:
        policy = self._dispatcher.policies.of(name)
        assert policy is not None
        error = next((each.outcome.error for each in reversed(folded.runs) if each.outcome), None)
        why = f"beat {self._dispatcher.settings.id}: {policy.pause_after_failures} runs failed in a"
        why += f" row, the last with {error}" if error else " row"
        pausing = self._control.pausing(name, clock.now(), why)
        also = [*folded.also, *([] if pausing is None else [pausing[0]])]
        for _ in self._ledger.fold({name: folded.runs}, {name: also}):
            if pausing is not None:
                self._control.paused(pausing[1])
                logger.error("%s: paused by %s", name, why)
            self._folded(name, folded)

    def _delete(self, deliveries: Iterable[Delivery]) -> None:
        """Deletes reports that say nothing new, such as those of runs that nobody tracks."""
        operations = self._deletes(deliveries)[:_DELETED_AT_ONCE]
        if not operations:
            return
        epoch = Check(self._election.paths.epoch, self._dispatcher.epoch)
        try:
            self._election.session.commit(epoch, *operations)
        except Conflict as exc:
            if exc.path == self._election.paths.epoch:
                raise
            raise Outdated(exc.path, "not as it was read") from None

    def _note_refused(self, path: str) -> None:
        """A report has changed while it was folded, or cannot be deleted. If that happens to the
        same one again and again, it stays."""
        name = path.rpartition("/")[2]
        if name == self._refused:
            self._stuck.add(name)
        self._refused = name
        self._deliveries.outdated(name)
        self._look_in(_AGAIN_AFTER)

    def _folded(self, name: str, folded: _Folded) -> None:
        for past in folded.runs:
            if past.outcome is None:
                continue
            if past.outcome.is_final:
                self._reporting.ended(name, past, past.outcome)
            else:
                self._reporting.late(name, past, past.outcome)
        state = self._ledger.state(name)
        if state is not None and not state.open:
            self._source.look_again(name)

    # Time -----------------------------------------------------------------------------------------

    @property
    def _server_time(self) -> float:
        """ZooKeeper's clock, seconds since 1970."""
        return self._election.session.server_time

    @property
    def _server_ms(self) -> int:
        return max(0, int(self._server_time * 1000))

    def _look_in(self, seconds: float) -> None:
        self._look_at = min(self._look_at, clock.boottime() + seconds)
