"""The dispatch loop: what a beat does in a turn, as standby and as master."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery.beat import Scheduler

from . import clock
from .backfilling import Backfilling
from .broker import Broker
from .by_entry import ByEntry
from .dispatcher import MOST_LOGGED, Dispatcher
from .election.public import MasterElection
from .election.terms import Term
from .errors import AccessDenied, QuotaExceeded, ZkBeatError
from .gate.gated import SchedulerFailed
from .log import get_logger, telling
from .metrics import Metrics
from .operators import LAST_PUBLISHING, Operators
from .paths import page_of
from .records import to_text
from .runs import TOLERANCE
from .settings import BACKEND, DROP, Settings
from .signals import Announcer
from .source import Source, no_collector
from .usefulness import Usefulness

if TYPE_CHECKING:
    from .outcomes.deliveries import Deliveries
    from .outcomes.tracking import Tracking

logger = get_logger(__name__)

#: Most seconds between two turns, and so between two ticks. `celery inspect ping` considers a beat
#: hung if its last tick is a minute old.
_LONGEST_WAIT = 5.0
#: Least seconds between two signs of progress.
SHOWN_EVERY = 0.1
#: Seconds until we confirm runs, if another confirm is on its way.
_CONFIRM_AFTER = 0.005
#: Seconds until we try again after ZooKeeper refused something.
_RETRY_AFTER = 1.0
#: Seconds until the run states are read anew, as after a take-over; the second if one is damaged.
_LOOK_EVERY, _LOOK_AT_DAMAGE_EVERY = 86400.0, 60.0


class Loop:
    """Makes the parts of a dispatching beat, and calls them in each turn. For one thread, except
    :meth:`close` and :meth:`wake`, which any thread and signal handler may call.

    Args:
        scheduler: Celery's scheduler.
        make_source: makes the source of entries.
        progress: is set from time to time while work makes progress.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        metrics: Metrics,
        election: MasterElection,
        broker: Broker,
        announcer: Announcer,
        make_source: Callable[[Dispatcher], Source],
        progress: clock.Wakeup,
    ) -> None:
        self._scheduler, self._settings, self._metrics = scheduler, settings, metrics
        self._progress, self._wakeup = progress, clock.Wakeup()
        self.election = election
        self.dispatcher = dispatcher = Dispatcher(
            settings, metrics, election, broker, announcer, self.wake, self.show_progress
        )
        self.ledger, self.control = dispatcher.ledger, dispatcher.control
        dispatcher.source = self.source = make_source(dispatcher)
        self.backfilling = Backfilling(dispatcher, self.source)
        self.operators = Operators(self, dispatcher, self.source, self.backfilling)
        patterns = settings.metrics_entries
        self._by_entry = None if patterns is None else ByEntry(patterns, dispatcher, self.source)
        self._tracking = self._make_tracking()
        self._usefulness = Usefulness(
            settings.publish_deadline,
            election,
            metrics,
            lambda: Broker(scheduler.app, lambda: election.session.timeout, lambda: None),
            self._resign_as_useless,
            lambda: dispatcher.is_closing or dispatcher.is_master,
        )
        self._dispatching_epoch = 0
        #: When the run states were read, by boottime().
        self._loaded_at = 0.0
        #: How many seconds the time of day was ahead of boottime() at the last turn.
        self._clock: float | None = None
        election.subscribe(self.wake)

    def _make_tracking(self) -> Tracking | None:
        if self._settings.outcomes is None:
            return None
        from .outcomes.tracking import Tracking  # which most have no use for

        return Tracking(self.dispatcher, self.source, self._make_deliveries())

    def _make_deliveries(self) -> Deliveries:
        if self._settings.outcomes == BACKEND:
            from .outcomes.backend import BackendDeliveries

            return BackendDeliveries(self._scheduler.app, self.dispatcher)
        from .outcomes.inbox import Inbox

        session, paths = self.election.session, self.election.paths
        return Inbox(session, paths, self._settings.outcomes_acl, self.wake)

    def run(self) -> None:
        """Turns until it is closed.

        Raises:
            ZkBeatError: an error that does not go away by waiting, such as another app's root.
        """
        self.election.start(self._settings.connect_timeout)
        while not self.dispatcher.is_closing:
            wait = self.turn()
            self.show_progress()
            self.wait(wait)
        self.say_goodbye()

    def close(self) -> None:
        """Makes it end soon. Before that it publishes claimed runs, as far as that is quick."""
        if not self.dispatcher.is_closing:
            self.dispatcher.close(LAST_PUBLISHING)
        self.wake()

    def wait(self, seconds: float) -> None:
        """Waits until :meth:`wake`, at most so many seconds."""
        self._wakeup.wait(min(seconds, _LONGEST_WAIT, self._scheduler.max_interval))

    def wake(self) -> None:
        """Makes the next turn start immediately."""
        self._wakeup.set()

    def show_progress(self) -> None:
        """Notes that a piece of work is done."""
        now = clock.boottime()
        # Not too often: each time the main thread wakes up and this one has to wait for it.
        if now - self._metrics.ticked >= SHOWN_EVERY:
            self._metrics.ticked = now
            if not self._progress.is_set():
                self._progress.set()

    def turn(self) -> float:
        """Dispatches due entries if this beat is master. Returns the seconds until more work."""
        if self.election.failure is not None:
            raise self.election.failure
        self._look_at_clock()
        term = self.election.term
        if term is None:
            self.forget()
            self._usefulness.term_is_over()
            self._metrics.outbox = 0
            self.source.stand_by()
            return _LONGEST_WAIT
        try:
            if self.ledger.term != term or self._is_time_to_look_again():
                with no_collector():
                    self._take_over(term)
            return self._dispatch()
        except ZkBeatError as exc:
            # The only recovery path: forget the ledger, and load it anew if this beat is still
            # master.
            if self.dispatcher.is_closing or self.election.term is None:
                return 0.0
            if isinstance(exc, (AccessDenied, QuotaExceeded)):
                self.election.complain(exc)
            elif not isinstance(exc, SchedulerFailed):  # the gate logs it
                logger.warning("%s; reading the run states again", exc)
            self.forget()
            if isinstance(exc, SchedulerFailed):
                self._usefulness.scheduler_failed()
            self.election.recheck()
            return _RETRY_AFTER

    def _dispatch(self) -> float:
        requests = self.operators.hear() if self.control.stale else []
        self.source.refresh()
        if requests:
            self.operators.answer(requests)
            if not self.dispatcher.is_master:
                return 0.0  # a request made it resign
        self.dispatcher.drop_held()
        outcomes = math.inf if self._tracking is None else self._tracking.turn()
        left = self.source.turn()
        if left > 0:
            left = min(left, outcomes, self.backfilling.turn())
        self.ledger.confirm()
        self._metrics.outbox = len(self.ledger.outbox)
        self._metrics.writes = self.ledger.writes
        self._metrics.written_bytes = self.ledger.written_bytes
        if self._by_entry is not None:
            left = min(left, self._by_entry.turn())
        publisher = self.dispatcher.publisher
        self._usefulness.has_turned(publisher.failing_since)
        # While an earlier write is on its way, come back soon for the next confirm: a crash would
        # repeat the runs that are not confirmed.
        if left <= 0:
            return left
        confirm = _CONFIRM_AFTER if self.ledger.unconfirmed else math.inf
        return min(left, confirm, publisher.left())

    def _look_at_clock(self) -> None:
        """Checks whether the clock was set. If so, reads the run states anew: the agenda is for
        wrong instants, and runs during the wrong time have set the clocks of entries."""
        since = clock.boottime()
        before, self._clock = self._clock, clock.now().timestamp() - since
        moved = 0.0 if before is None else self._clock - before
        if abs(moved) > TOLERANCE.total_seconds():
            side = "forward" if moved > 0 else "back"
            logger.warning("the clock of this machine was set %s by %.1f s", side, abs(moved))
            self._loaded_at = -math.inf

    def _is_time_to_look_again(self) -> bool:
        """True if it is time to read the run states anew: once a day, and more often while a state
        is damaged, for somebody may repair it."""
        age = clock.boottime() - self._loaded_at
        source = self.source
        damaged = self.ledger.is_damaged or source.is_ahead or source.is_damaged
        return age > (_LOOK_AT_DAMAGE_EVERY if damaged else _LOOK_EVERY)

    # The beginning and the end of a term ----------------------------------------------------------

    def _take_over(self, term: Term) -> None:
        """Continues where the last master stopped."""
        self.forget()
        self.ledger.load(term)
        self._set_back_clocks()
        self.source.open()
        self.control.forget()
        self.dispatcher.note_loaded()
        self._loaded_at = clock.boottime()
        self.source.outdated()
        self._recover(term.epoch)
        logger.info(
            "dispatching %d entries as master, epoch %d",
            len(self.source.entries),
            term.epoch,
            extra=telling("dispatching", epoch=term.epoch),
        )
        if term.epoch != self._dispatching_epoch:
            self._dispatching_epoch = term.epoch
            self.dispatcher.publisher.forget_failures()
            self._metrics.elections += 1

    def _set_back_clocks(self) -> None:
        before = self.ledger.set_back()
        for name in sorted(before)[:1]:
            state = self.ledger.state(name)
            assert state is not None
            logger.warning(
                "%s last ran at %s according to %s, which is in the future: a clock was ahead. It "
                "continues from %s%s; what has already run does not run again",
                name,
                to_text(before[name].last_run_at),
                self.election.paths.page(page_of(name)),
                to_text(state.last_run_at),
                f", and {len(before) - 1} more" if len(before) > 1 else "",
            )

    def _recover(self, epoch: int) -> None:
        """Decides what happens to runs that an earlier master claimed and perhaps did not publish.

        Some runs were certainly not published: runs of this epoch, and runs that the last master
        listed as unsent when it handed over. They are always published.
        """
        certain = self.ledger.unsent.union(
            name for name, run in self.ledger.outbox.items() if run.epoch == epoch
        )
        drop = []
        for number, run in enumerate(self.ledger.outbox.values()):
            if run.entry not in self.source.entries:
                fate = "kept, because it is not in this beat's schedule"
            elif self._settings.recovery != DROP or run.entry in certain:
                fate = "published"
            elif self.ledger.state(run.entry) is None:
                fate = "published, because there is no state in which to record a drop"
            else:
                fate = "dropped"
                drop.append(run)
            # Of many runs, as after an outage, log only the first; unsent runs are no news.
            told = fate == "dropped" or (run.entry not in certain and number < MOST_LOGGED)
            logger.log(
                logging.WARNING if told else logging.DEBUG,
                "%s: run %d, due %s, was claimed in epoch %d and perhaps not published: it is %s",
                run.entry,
                run.number,
                to_text(run.due),
                run.epoch,
                fate,
                extra=self.dispatcher.telling(run, "recovered"),
            )
        others = len(self.ledger.outbox) - len(certain)
        if others > MOST_LOGGED:
            logger.warning("%d runs in all were perhaps not published", others)
        if certain:
            logger.warning("%d runs were claimed before and will be published now", len(certain))
        why = f"zk_beat_recovery, perhaps published in epoch {epoch - 1} or before"
        self.dispatcher.drop(drop, why)

    def _resign_as_useless(self, why: str) -> None:
        self.hand_over()
        self.election.resign(why=why, useless=True)
        self.forget()

    def say_goodbye(self) -> None:
        """Publishes claimed runs, as far as that is quick, and hands over."""
        try:
            self.dispatcher.publish_soon()
            self.hand_over()
        except ZkBeatError as exc:
            logger.warning("the next master may repeat a run: %s", exc)
        self.forget()

    def hand_over(self) -> None:
        """Writes all that the next master needs. After this the beat must not publish any more."""
        if self.ledger.term is not None:
            self.ledger.hand_over(self.dispatcher.publisher.unsent())
        self.source.write()

    def forget(self) -> None:
        """Forgets the ledger: it must be loaded anew before anything is dispatched."""
        self.ledger.forget()
        self.source.close()
        if self._tracking is not None:
            self._tracking.forget()
        if self._by_entry is not None:
            self._by_entry.forget()
