"""What the master does for operators. They talk to it through control.py."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Protocol

from . import clock
from .backfilling import Backfilling
from .comparing import pack
from .control import BACKFILL, DROP_RUN, RESIGN, RUN, TELL, Answer, Pauses, Request
from .dispatcher import MOST_LOGGED, Dispatcher
from .errors import Conflict, Outdated, ZooKeeperError
from .log import get_logger, telling
from .metrics import SKIPPED
from .records import to_text
from .runs import Run
from .source import Source, only_logged

logger = get_logger(__name__)

#: Seconds for which a master that resigns still publishes what it has claimed.
LAST_PUBLISHING = 1.5


class Master(Protocol):
    """The loop, as far as operators need it."""

    def hand_over(self) -> None:
        """Records all that the next master needs."""

    def forget(self) -> None:
        """Forgets the ledger, so that it is loaded again."""


class Operators:
    """The requests and pauses of operators. For the dispatch loop's thread.

    Methods raise a ZkBeatError if ZooKeeper does not answer or refuses.
    """

    def __init__(
        self, master: Master, dispatcher: Dispatcher, source: Source, backfilling: Backfilling
    ) -> None:
        self._master, self._dispatcher, self._source = master, dispatcher, source
        self._backfilling = backfilling
        self._election, self._ledger = dispatcher.election, dispatcher.ledger
        self._control = dispatcher.control
        #: The pauses that are already in the log.
        self._logged = Pauses()

    def hear(self) -> list[Request]:
        """Reads the pauses, and returns the requests. Pass these to :meth:`answer` after the source
        was refreshed."""
        control = self._control
        before = control.pauses, control.damage, control.unchanged
        backfills = control.backfills.entries
        requests = control.read()
        for name in backfills.keys() - control.backfills.entries.keys():
            logger.warning("%s: its backfill was cancelled", name)
        if control.backfills_damage is not None:
            logger.error("%s; no backfill runs until then", control.backfills_damage)
        if (control.pauses, control.damage, control.unchanged) != before:
            self._source.outdated()
            news, self._logged = control.pauses.news(self._logged), control.pauses
            for line in news[:MOST_LOGGED]:
                logger.warning("%s", line)
            if len(news) > MOST_LOGGED:
                logger.warning("%d changes of pauses in all", len(news))
        if control.damage is not None:
            logger.error("%s; nothing is dispatched until then", control.damage)
        if control.pauses.skips:
            self._source.outdated()
            self._skip_missed()
            # Their pages may be repaired.
            left = [*filter(self._ledger.damaged, self._source.entries)]
            control.skipped(self._dispatcher.epoch, self._is_known, left)
        return requests

    def answer(self, requests: list[Request]) -> None:
        """Does what the requests ask for, as long as this beat is master."""
        for request in requests:
            if self._dispatcher.is_master:
                try:
                    self._answer(request)
                except ZooKeeperError:
                    self._control.give_up(request)
                    raise

    def _is_known(self, entry: str) -> bool:
        """True if this beat knows what the entry missed. If not, another master may have to."""
        return entry in self._source.entries and not self._ledger.damaged(entry)

    def _skip_missed(self) -> None:
        """Skips what was due while entries were paused, if they were resumed with --skip."""
        reason = "resumed"
        missed: dict[str, tuple[datetime, datetime]] = {}
        pauses, unchanged = self._control.pauses, self._control.unchanged
        for name in list(self._source.entries):
            until, state = pauses.skip_until(name), self._ledger.state(name)
            if until is not None and state is not None:
                with only_logged(name):
                    if found := self._source.missed(name, state, until):
                        missed[name] = found
        waiting = [
            run
            for name, run in self._ledger.outbox.items()
            if not run.extra and self._ledger.state(name) is not None
            for until in [pauses.skip_until(name)]
            if until is not None and run.claimed <= until
        ]
        self._dispatcher.drop(waiting, SKIPPED[reason], unchanged)
        self._dispatcher.skip(missed, reason, unchanged)

    def _answer(self, request: Request) -> None:
        record = request.record
        of = f" {record.entry}" if record.entry else f" to {record.to}" if record.to else ""
        told = telling("asked", entry=record.entry, epoch=self._election.epoch)
        logger.info("asked by %s to %s%s", record.by, record.do, of, extra=told)
        answer: Answer | None
        if record.do == RUN:
            answer = self._run_now(request, record.entry or "")
        elif record.do == DROP_RUN:
            answer = self._drop_now(request, record.entry or "")
        elif record.do == RESIGN:
            answer = self._resign(request)
        elif record.do == TELL:
            answer = self._tell()
        elif record.do == BACKFILL:
            answer = self._backfilling.begin(request)
        else:
            answer = Answer(False, f"this release does not know the request {record.do!r}")
        if answer is not None and answer.run is None:
            with contextlib.suppress(Conflict):  # it was withdrawn
                self._election.session.commit(request.answer(answer))

    def _resign(self, request: Request) -> Answer | None:
        """Resigns. Returns None if that has answered the request."""
        record = request.record
        self._dispatcher.publish_soon(LAST_PUBLISHING)
        self._master.hand_over()
        # In one transaction: the next master must not find the request still open.
        if self._election.resign(
            to=record.to,
            why=f"asked by {record.by}",
            also=[request.answer(Answer(True, "resigned"))],
        ):
            return None
        self._master.forget()
        return Answer(False, "could not resign: see the master's log")

    def _tell(self) -> Answer:
        """Returns what the entries are. Only on request: writing it at each change would be
        megabytes for each deploy of a large schedule."""
        entries = self._source.entries
        text, most = pack(entries), self._ledger.limits.most_bytes * 3 // 4
        if len(text) > most:
            told = f"its {len(entries)} entries need {len(text)} bytes, and only {most} fit"
            return Answer(False, told)
        return Answer(True, text)

    def _run_now(self, request: Request, name: str) -> Answer | None:
        """Claims an extra run. The answer is part of the claim's transaction. None: the claim has
        to be tried again."""
        self._source.look_at([name])
        dispatcher, state = self._dispatcher, self._ledger.state(name)
        if name not in self._source.entries:
            return Answer(False, f"the master's schedule has no entry {name!r}")
        waiting = self._ledger.outbox.get(name)
        if waiting is not None:
            # Otherwise a run that leaves in a moment would be in the way.
            dispatcher.publisher.publish_soon([waiting])
            waiting = self._ledger.outbox.get(name)
        if waiting is not None:
            why = "the end of the pause" if self._control.holds(name) else "the broker"
            return Answer(False, f"run {waiting.number} waits for {why}")
        if state is None:
            return Answer(False, "its run state is missing or damaged: see the master's log")
        if self._ledger.full:
            return Answer(False, "too many runs wait for the broker")
        if not request.record.overlap and dispatcher.is_blocked(name):
            past = self._ledger.open_of(name)[0]
            text = f"run {past.number} is still open, since {to_text(past.at)}: --overlap runs "
            return Answer(False, f"{text}the entry all the same")
        now = clock.now()
        number = state.total_run_count + 1
        run = Run(name, number, now, now, dispatcher.epoch, True, state.key)
        answer = Answer(True, "claimed", number, dispatcher.task_id(run))
        try:
            claimed = dispatcher.claim([run], request.answer(answer))
        except Outdated:
            self._control.stale = True  # so that the request is read again
            return None
        self._source.has_run_extra(name, number)
        dispatcher.publisher.publish(claimed)
        return answer

    def _drop_now(self, request: Request, name: str) -> Answer:
        """Drops a waiting run. The answer is part of the transaction."""
        run = self._ledger.outbox.get(name)
        if run is None:
            return Answer(False, "no run of this entry waits")
        if self._ledger.state(name) is None:
            if not self._ledger.damaged(name):
                self._ledger.first_seen({name: run.claimed})
            if self._ledger.state(name) is None:
                return Answer(False, "its run state is missing or damaged: see the master's log")
        is_unsent = self._dispatcher.publisher.is_unsent(run)
        text = "not published" if is_unsent else "perhaps already published"
        task_id = self._dispatcher.task_id(run)
        answer = Answer(True, text, run.number, task_id)
        waited = self._dispatcher.held_because(run) or "it waited for the broker"
        why = f"{request.record.by[:100]} asked for it; {waited}"
        self._dispatcher.drop([run], why, request.answer(answer))
        return answer
