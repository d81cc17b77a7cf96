"""Decides what became of tracked runs, by what is reported of them, and by what is not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone

from .. import clock
from ..dispatcher import Dispatcher
from ..errors import AccessDenied, Outdated, QuotaExceeded, RootError
from ..history import Pasts, decode_volume
from ..log import get_logger
from ..paths import page_of, volume_of
from ..policies import Policy
from ..records import from_text
from ..runs import (
    CONCLUDED,
    LATE,
    LATE_FINISH,
    LATE_START,
    LOST,
    UNKNOWN,
    Outcome,
    PastRun,
    milliseconds,
)
from ..source import Source
from .deliveries import Deliveries, Delivery, Key
from .folding import Folding
from .inbox import CHECK_EVERY
from .reporting import Reporting

logger = get_logger(__name__)

#: Least seconds between two looks; and how many times as long as a look the rest after it is. Each
#: look costs some round trips, during which nothing is dispatched.
_REST, _RESTS_FOR = 0.2, 4
#: Seconds until the next look: if the source takes time; if a worker may yet report though it is
#: gone; after a report changed while it was folded; and after ZooKeeper refused something.
_LOOK_SOON, _LOOK_EVERY, _AGAIN_AFTER, _RETRY_AFTER = 0.25, 5.0, 0.05, 10.0
#: A look takes some milliseconds. If a run must be published sooner than in so many seconds, it
#: comes after that, at most so many seconds later; seconds until then if it is due already.
_CLEAR, _PUT_OFF, _SHORTLY = 0.025, 0.1, 0.001
#: Seconds until the next look at a deadline of a run that waits for the broker.
_WAITING_EVERY = 1.0
#: Most histories that are read in a turn, for reports of runs that are not open.
_MOST_READS = 20
#: Seconds after which it is odd that no worker has reported anything.
_SILENT_FOR = 60.0
_NO_POLICY = Policy()


class Tracking:
    """Follows the tracked runs of a master. For the dispatch loop's thread. Methods raise the
    ledger's errors: a ZkBeatError, after which the ledger must be loaded anew.

    Args:
        deliveries: the source of outcomes.
    """

    def __init__(self, dispatcher: Dispatcher, source: Source, deliveries: Deliveries) -> None:
        self._dispatcher, self._source, self._deliveries = dispatcher, source, deliveries
        self._ledger = dispatcher.ledger
        self._election, self._metrics = dispatcher.election, dispatcher.metrics
        self._reporting = Reporting(dispatcher)
        self._folding = Folding(dispatcher, source, self._reporting)
        self.forget()

    def forget(self) -> None:
        """The term is over, or all is read anew."""
        self._deliveries.forget()
        #: The tracked runs that have not ended, and those that are open again.
        self._open: dict[Key, PastRun] = {}
        self._folding.forget()
        #: Runs of which it is known that a worker began to execute them.
        self._started: set[Key] = set()
        #: Runs that are not open, of which no report changes anything.
        self._strange: set[Key] = set()
        #: How many histories may still be read in this turn, and those that were, by path.
        self._reads_left, self._histories = 0, dict[str, Pasts]()
        #: When to look again, and until when not to, by boottime().
        self._look_at = self._rests_until = -math.inf
        #: No report was ever read in this term.
        self._is_silent = True
        self._metrics.open = 0

    def turn(self) -> float:
        """Folds what has been reported, and looks at the deadlines. Returns the seconds until there
        is more to do."""
        now = clock.boottime()
        if self._deliveries.stale or self._dispatcher.has_opened:
            self._look_in(0.0)
        look_at = max(self._look_at, self._rests_until)
        if now < look_at:
            return look_at - now
        left = self._dispatcher.publisher.left()
        if left < _CLEAR and now < look_at + _PUT_OFF:
            return max(left, _SHORTLY)
        self._dispatcher.has_opened = False
        self._look_at, self._rests_until = math.inf, now + _REST
        try:
            self._turn()
            # Whoever floods the inbox does not take the time of dispatch.
            took = clock.boottime() - now
            self._rests_until = max(self._rests_until, now + (1 + _RESTS_FOR) * took)
        except Outdated as exc:
            # A report has changed meanwhile.
            self._deliveries.outdated(self._folding.refused(exc.path))
            self._look_in(0.0)
            self._rests_until = clock.boottime() + _AGAIN_AFTER
        except AccessDenied:
            self._folding.may_not_delete()
            raise
        return max(0.0, max(self._look_at, self._rests_until) - clock.boottime())

    def _turn(self) -> None:
        opened = self._ledger.open_runs()
        for name in {name for name, _ in self._open} - opened.keys():
            self._source.look_again(name)  # its last open run was dropped
        self._open = {(name, past.run): past for name, runs in opened.items() for past in runs}
        self._metrics.open = len(self._open)
        found: dict[Key, list[Delivery]] = {}
        useless: list[Delivery] = []
        for each in self._read():
            if each.key is None:
                useless.append(each)
            else:
                found.setdefault(each.key, []).append(each)
        self._started &= self._open.keys()
        self._reads_left, self._histories = _MOST_READS, {}
        folding = self._folding
        folding.clear()
        for key, deliveries in found.items():
            self._confirm(key, deliveries)
            useless += self._judge(key, deliveries)
        self._look_at_deadlines(found)
        is_done = folding.fold()
        if not folding.delete(useless) or not is_done:
            self._look_in(0.0)

    def _read(self) -> Iterable[Delivery]:
        """Reads the deliveries. If that is refused, open runs still end by `overlap_timeout`."""
        try:
            found = self._deliveries.read(self._open).values()
        except (AccessDenied, QuotaExceeded) as exc:
            logger.error("what becomes of runs is not known: %s", exc)
            self._rests_until = clock.boottime() + _RETRY_AFTER
            return ()
        self._warn_if_silent(bool(found))
        return found

    def _warn_if_silent(self, is_heard: bool) -> None:
        """Warns once if nobody reports anything: the app's workers may not be set up for it."""
        self._is_silent = self._is_silent and not is_heard
        if not self._is_silent or not self._open:
            return
        age = self._server_time - min(past.at.timestamp() for past in self._open.values())
        if age < _SILENT_FOR:
            self._look_in(_SILENT_FOR - age)
            return
        self._is_silent = False
        logger.warning(
            "nobody has reported what became of a run in this term, though %d are open, the oldest "
            "for %d s: docs/outcomes.md says what workers, or the result backend, need for it",
            len(self._open),
            age,
        )

    def _confirm(self, key: Key, deliveries: Sequence[Delivery]) -> None:
        """Does not let a run be sent again that a worker already has. An earlier master sent it, or
        this one did not hear from the broker."""
        waiting = self._ledger.outbox.get(key[0])
        if waiting is None or not waiting.tracked:
            return  # nobody asked for a report: a forged one does not keep a run from being sent
        if (waiting.number, milliseconds(waiting.due)) != key[1]:
            return
        if not self._dispatcher.publisher.is_unsent(waiting):
            ahead = self._election.session.clock_offset
            at = min(each.at for each in deliveries) + ahead
            self._ledger.published(waiting, datetime.fromtimestamp(at, timezone.utc))
            told = self._dispatcher.telling(waiting, "recovered")
            text = "%s: run %d was published: a worker has it"
            logger.info(text, waiting.entry, waiting.number, extra=told)

    # What the reports say -------------------------------------------------------------------------

    def _judge(self, key: Key, deliveries: list[Delivery]) -> list[Delivery]:
        """Decides what becomes of a run, by all of its deliveries. Returns those that say nothing
        new."""
        past = self._open.get(key)
        if past is None and self._ledger.damaged(key[0]):
            return []  # its page may be repaired: then the run is open, perhaps
        if past is None and key not in self._strange:
            if not self._reads_left:
                self._look_in(0.0)
                return []
            past = self._find(key, deliveries)
        if past is None:
            self._strange.add(key)
            return [each for each in deliveries if not each.is_running]
        running = [each for each in deliveries if each.is_running]
        if running:
            self._note_running(key, past, running[-1])
            return []
        ended = sorted((each for each in deliveries if each.outcome), key=lambda each: each.at)
        last = max(deliveries, key=lambda each: each.at)
        if ended:
            outcome = ended[0].outcome
        elif last.comes_again:
            if last.is_started:
                self._note_started(key, past, last)
            self._look_in(_LOOK_EVERY)
            return [each for each in deliveries if each is not last]
        else:
            worker = None if last.report is None else last.report.worker
            outcome = Outcome(LOST, self._server_ms, None, worker)
        if last.is_started or ended:
            self._note_started(key, past, last)
        # What decides comes first: of many reports only some are deleted with the outcome.
        deliveries = [*ended, *(each for each in deliveries if not each.outcome)]
        self._folding.add(key[0], past, outcome, deliveries)
        return []

    def _find(self, key: Key, deliveries: list[Delivery]) -> PastRun | None:
        """Finds a run that is not open, if a report can still change what is known of it: the
        master has concluded that it was lost, or has dropped it because it was perhaps published,
        and was wrong."""
        name, run = key
        state = self._ledger.state(name)
        if state is None or not any(each.outcome or each.is_running for each in deliveries):
            return None
        known = [past for past in state.past if past.run == run]
        if not known:
            known = [past for past in self._history(name) if past.run == run]
        for past in known:
            outcome = past.outcome
            if past.was_dropped if outcome is None else outcome.state in CONCLUDED:
                return past
        return None

    def _history(self, name: str) -> tuple[PastRun, ...]:
        """Reads the history of an entry, once in a turn."""
        path = self._election.paths.volume(volume_of(page_of(name)))
        if path not in self._histories:
            self._reads_left -= 1
            node, self._histories[path] = self._election.session.read(path), {}
            with contextlib.suppress(RootError):
                self._histories[path] = {} if node is None else decode_volume(path, node.data)
        return self._histories[path].get(name, ())

    def _note_running(self, key: Key, past: PastRun, delivery: Delivery) -> None:
        self._note_started(key, past, delivery)
        self._look_in(CHECK_EVERY)
        if key not in self._open:
            logger.warning("%s: run %s is running after all", key[0], past.number)
            self._folding.add(key[0], past, None)

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

    def _look_at_deadlines(self, found: Mapping[Key, Sequence[Delivery]]) -> None:
        now, outbox = self._server_time, self._ledger.outbox
        for key, past in self._open.items():
            name, (number, _) = key
            waiting = outbox.get(name)
            is_waiting = waiting is not None and waiting.number == number
            if self._folding.has(name, past):
                continue
            if not self._deliveries.has_looked(key):
                self._look_in(_LOOK_SOON)
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
                self._folding.add(name, past, Outcome(state, self._server_ms), ends)
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
