"""A master that can do nothing resigns, so that another beat can try. As a standby it checks
whether it can do something again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from . import clock
from .broker import Broker
from .election.public import MasterElection
from .log import get_logger, telling
from .metrics import Metrics

logger = get_logger(__name__)

#: Why a master is useless.
NO_BROKER, NO_SCHEDULER = "nothing could be published", "the scheduler failed"
#: Seconds between two checks of such a standby whether it reaches the broker.
_PROBE_EVERY = 1.0


class Usefulness:
    """What makes this beat useless or useful as master. For the dispatch loop's thread.

    Args:
        deadline: seconds after which a master that can do nothing resigns; None: it stays.
        make_broker: makes a connection to the broker for this object alone.
        resign: hands over and resigns, for the given reason, as useless.
        is_over: returns True when nobody needs to know any more.
    """

    def __init__(
        self,
        deadline: float | None,
        election: MasterElection,
        metrics: Metrics,
        make_broker: Callable[[], Broker],
        resign: Callable[[str], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._deadline, self._election, self._metrics = deadline, election, metrics
        self._make_broker, self._resign, self._is_over = make_broker, resign, is_over
        #: Why this beat was useless when it last resigned, and how much it had published until
        #: then.
        self._lacked, self._published_before = "", 0
        #: On boottime(): when the gated scheduler began to fail.
        self._scheduler_fails_since: float | None = None
        #: Checks the broker while this is a standby that did not reach it as master.
        self._prober: clock.Thread | None = None

    def term_is_over(self) -> None:
        """Notes that this beat is a standby."""
        self._scheduler_fails_since = None
        if self._election.useless is not None and self._lacked != NO_SCHEDULER:
            self._look_for_broker()

    def scheduler_failed(self) -> None:
        """Notes that the gated scheduler raised an error. Resigns if that goes on for too long."""
        self._scheduler_fails_since = self._scheduler_fails_since or clock.boottime()
        self._resign_if_long(self._scheduler_fails_since, NO_SCHEDULER)

    def has_turned(self, publishing_fails_since: float | None) -> None:
        """Notes that the master has done a turn. `publishing_fails_since`: on boottime(); None if
        publishing works."""
        self._scheduler_fails_since = None
        is_flagged = self._lacked or self._election.useless is not None
        if is_flagged and (
            self._lacked == NO_SCHEDULER or self._metrics.published > self._published_before
        ):
            self._lacked = ""
            self._election.of_use()
        self._resign_if_long(publishing_fails_since, NO_BROKER)

    def _resign_if_long(self, since: float | None, what: str) -> None:
        deadline = self._deadline
        if deadline is None or since is None or clock.boottime() - since <= deadline:
            return
        logger.error(
            "%s for %g s (zk_beat_publish_deadline = %g): resigning, so that another beat can try",
            what,
            clock.boottime() - since,
            deadline,
            extra=telling("resigning", epoch=self._election.epoch),
        )
        self._scheduler_fails_since = None
        self._lacked, self._published_before = what, self._metrics.published
        self._resign(f"{what} for {deadline:g} s")

    def _look_for_broker(self) -> None:
        """Checks the broker on another thread: a broker may keep one waiting for long, and in that
        time this beat may have to stop or take over."""
        if self._prober is None or not self._prober.is_alive():
            self._prober = clock.thread(self._probe, "zk-beat-probe")
            self._prober.start()

    def _probe(self) -> None:
        while not self._is_over() and self._election.useless is not None:
            broker = self._make_broker()
            try:
                reached = broker.producer is not None
            except Exception as exc:
                reached = False
                logger.debug("the broker cannot be reached: %s", exc)
            with contextlib.suppress(Exception):
                broker.drop()
            if reached:
                logger.info("the broker can be reached again")
                self._election.of_use()
                break
            clock.sleep(_PROBE_EVERY)
