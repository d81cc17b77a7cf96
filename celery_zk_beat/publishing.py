"""Publishes claimed runs when they are due, several at once if the broker can; and tries again
after a failure."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any, Protocol

from kombu.exceptions import OperationalError

from . import clock
from .ahead import MadeAhead
from .broker import BackOff, Broker, Fault, comes_from, unwrapped
from .errors import ZkBeatError
from .ledger import RunLedger
from .log import Action, get_logger
from .messages import Attempt, Made
from .metrics import Metrics
from .runs import Run
from .settings import Settings
from .zookeeper.operations import Check

logger = get_logger(__name__)

#: Messages that leave together are made before they are due. We start so many seconds early: for
#: the wake-up, and for each message.
_MAKE_AHEAD, _MAKE_ONE = 0.001, 0.00004
#: Runs due within so many seconds leave together, when the last of them is due.
_SAME_INSTANT = 0.001
#: Seconds per turn for runs that have failed through their own fault.
_RETRYING = 0.05
#: A run may be claimed at most so many seconds before it is due. A run that is further ahead was
#: claimed by a master with another clock: it is published immediately.
_FURTHEST_AHEAD = 1.0
#: How many characters of an error the history keeps.
_LONGEST_WHY = 150


Send = Callable[[Run, Attempt], None]


@dataclass
class _Together:
    """Runs whose messages leave together.

    Attributes:
        begun: when we began with them, by boottime().
        left: when they left.
        messages: for each entry whose message is made, the numbers of its messages.
        refused: for each entry whose message cannot be made, or that the broker refuses, the error.
        making: the run whose message was being made when an error ended all.
    """

    runs: list[Run]
    begun: float
    left: datetime
    messages: dict[str, range] = field(default_factory=dict)
    refused: dict[str, Exception] = field(default_factory=dict)
    making: Run | None = None

    def wait(self) -> None:
        """Returns when all are due."""
        _wait_until_due(self.runs)
        self.left = clock.now()

    def sort(self, broker: Broker, *, is_ended: bool) -> tuple[list[Run], list[Run]]:
        """Returns the runs whose messages the broker has taken, and those of which it did not say
        so before all ended. Forgets the first, and puts those that it has refused into
        `refused`."""
        taken: list[Run] = []
        rest: list[Run] = []
        for run in self.runs:
            messages = self.messages.get(run.entry)
            if run.entry in self.refused:
                continue
            if messages is None or run is self.making:
                rest.append(run)
            elif (refusal := broker.refusal(messages)) is not None:
                self.refused[run.entry] = refusal
            elif not is_ended or broker.has_taken(messages):
                taken.append(run)
            else:
                rest.append(run)
        entries = {run.entry for run in taken}
        self.runs = [run for run in self.runs if run.entry not in entries]
        return taken, rest

    def blame(self, rest: list[Run], broker: Broker, exc: Exception) -> tuple[list[Run], list[Run]]:
        """Returns which of the rest may have left, and which of it `exc` concerns: all if the
        broker is away. Otherwise what has not left waits for nothing."""
        left = [run for run in rest if broker.has_left(self.messages.get(run.entry, range(0)))]
        if broker.fault(exc) is Fault.AWAY:
            return left, rest
        return left, [self.making] if self.making is not None else left or rest

    def keep_waiting(self, outbox: Mapping[str, Run]) -> None:
        """Forgets runs that do not wait any more."""
        numbers = {run.entry: (run.number, run.due) for run in self.runs}
        waiting = (outbox[entry] for entry in numbers if entry in outbox)
        self.runs = [run for run in waiting if (run.number, run.due) == numbers[run.entry]]


class Entries(Protocol):
    """The source of entries, as far as publishing needs it: see source.py."""

    @property
    def entries(self) -> Mapping[str, Any]:
        """The entries, by name."""

    def entry_of(self, run: Run) -> Any:
        """Returns the entry to send for a run."""

    def conditions(self, runs: Iterable[Run]) -> Sequence[Check]:
        """Returns checks that make a claim of these runs fail if the entries have changed."""

    def is_refused(self, path: str) -> None:
        """Notes that a claim failed because the znode `path` has changed."""

    def sender(self) -> Send:
        """Returns the function that tries to send one run; used for messages that leave together.
        It raises as :meth:`messages.Sender.send`."""

    def goes_on_from(self, run: Run, at: datetime) -> datetime | None:
        """Returns the entry's next `last_run_at` once a run is published at `at`, or None if the
        claim's stays. It differs if the entry became due again meanwhile: one run covers all."""


class Runs(Protocol):
    """The dispatcher, as far as the publisher needs it."""

    settings: Settings
    metrics: Metrics
    source: Entries
    ahead: MadeAhead
    #: Call it after each piece of work.
    show_progress: Callable[[], None]

    def task_id(self, run: Run) -> str:
        """Returns the task id of a run."""

    def telling(self, run: Run, action: Action) -> dict[str, object]:
        """Returns the fields of a log line about a run."""

    def may_publish(self, run: Run) -> bool:
        """True if this beat's schedule has the entry, and nothing holds the run back."""

    def in_time(self, runs: list[Run]) -> list[Run]:
        """Returns the runs that are not too late for their policy."""

    def may_publish_now(self) -> bool:
        """True if this beat may publish anything at the moment."""

    def tell_published(self, runs: list[Run]) -> None:
        """Reports that the broker has taken the messages of these runs."""

    def drop(self, runs: list[Run], why: Mapping[str, str], *, level: int) -> None:
        """Takes runs that cannot be published out of the outbox. `why`: the reasons, by entry.
        `level`: the level of the log lines."""


class Publisher:
    """Publishes the runs of the outbox and takes them out of it. For the dispatch loop's thread.
    Methods raise the ledger's errors: a ZkBeatError, after which the ledger must be loaded anew."""

    def __init__(self, dispatcher: Runs, broker: Broker, ledger: RunLedger) -> None:
        self._dispatcher, self._broker, self._ledger = dispatcher, broker, ledger
        self._metrics = dispatcher.metrics
        self._back_off, self._hooked = BackOff(), _Hooked()
        self._failing_since: float | None = None
        #: Entry to a run whose publish failed: the broker may or may not have the message.
        self._in_doubt: dict[str, int] = {}
        #: Entry to a run that may have left before: it does not cover instants due since then.
        self._may_have_left: dict[str, int] = {}
        #: Entry to a run whose last publish failed because the broker was away.
        self._unreached: dict[str, int] = {}
        #: Entry to a run that cannot be published, with the reason.
        self._impossible: dict[str, tuple[Run, str]] = {}
        #: Runs whose messages are on their way, while the broker is blocked.
        self._on_their_way: _Together | None = None

    def forget_failures(self) -> None:
        """Forgets past failures, so that no run has to wait because of them."""
        self._back_off.clear()
        waiting = self._ledger.outbox
        self._may_have_left = {
            entry: number
            for entry, number in self._may_have_left.items()
            if entry in waiting and waiting[entry].number == number
        }
        self._failing_since = None

    def renamed(self, names: Mapping[str, str]) -> None:
        """Notes that entries have other names now: from old to new. Their runs may be waiting."""
        for known in (self._in_doubt, self._may_have_left, self._unreached):
            known.update({names[old]: known.pop(old) for old in names if old in known})
        self._hooked.renamed(names)

    @property
    def failing_since(self) -> float | None:
        """When publishing began to fail because the broker was away, by boottime(). None once no
        failed run waits."""
        if self._failing_since is not None and not any(
            self._unreached.get(run.entry) == run.number for run in self.waiting()
        ):
            self._failing_since = None
        return self._failing_since

    def is_unsent(self, run: Run) -> bool:
        """True if a run certainly has not left before. If it may have left, its task may be done
        already, under this task id; then instants due since get another run."""
        term = self._ledger.term
        is_known = run.entry in self._ledger.unsent or (
            term is not None and run.epoch == term.epoch
        )
        return is_known and self._may_have_left.get(run.entry) != run.number

    def unsent(self) -> list[str]:
        """Returns the entries whose waiting runs have certainly not left."""
        return [name for name, run in self._ledger.outbox.items() if self.is_unsent(run)]

    def back_off(self, entry: str) -> float:
        """Returns the seconds that an entry must wait after a failure."""
        return self._back_off.left([entry]) if self._back_off.is_needed else 0.0

    def is_at_fault(self, entry: str) -> bool:
        """True if its last run, or the one before, could not be published through its own fault."""
        return self._back_off.is_punished(entry)

    def waiting(self) -> list[Run]:
        """Returns the runs of the outbox that this beat must still publish."""
        return [run for run in self._ledger.outbox.values() if self._dispatcher.may_publish(run)]

    def left(self) -> float:
        """Returns the seconds until a run of the outbox must be published; inf if there is none."""
        groups = self._by_instant(self._ledger.outbox.values())
        return min(
            (max(wait, self._back_off.left(run.entry for run in runs)) for wait, runs in groups),
            default=math.inf,
        )

    def publish(self, runs: Iterable[Run]) -> None:
        """Publishes the runs that may be published now or in a moment. In the second case it makes
        their messages now and sends them when they are due."""
        if self._on_their_way is not None and not self._are_answered(self._on_their_way):
            return
        good, at_fault = _by_fault(runs, self.is_at_fault)
        for wait, due in self._by_instant(good):
            if wait <= 0:
                self._publish_all(due)
        until = clock.boottime() + _RETRYING
        for wait, due in self._by_instant(at_fault):
            if wait <= 0:
                self._publish_all(due, until)

    def _are_answered(self, sent: _Together) -> bool:
        """True if the broker has answered for the runs whose messages are on their way, or the
        answers do not matter any more. Until then we publish nothing else: the broker would not
        read it."""
        sent.begun, error = clock.boottime(), None
        sent.keep_waiting(self._ledger.outbox)
        if not sent.runs:
            self._broker.drop()
        elif self._broker.are_on_their_way:
            if self._back_off.left(sent.messages) > 0:
                return False
            try:
                if not self._broker.late_answers():
                    self._failing_since = self._failing_since or sent.begun
                    self._back_off.punish(None)
                    return False
            except Exception as exc:
                error = exc
            for run in sent.runs:
                if self._broker.has_taken(sent.messages[run.entry]):
                    self._in_doubt.pop(run.entry, None)  # it was sent once
            sent.left = clock.now()
            self._note_all(sent, error)
        self._on_their_way = None
        return True

    def publish_soon(self, runs: Iterable[Run], seconds: float = math.inf) -> None:
        """Publishes runs as :meth:`publish` does, and waits for those that are due in a moment. If
        they were left to the next master, it could not know that they were not published. After so
        many seconds it starts nothing more. It does nothing if the broker is away."""
        until = clock.boottime() + seconds
        if self.failing_since is None and self._on_their_way is None:
            for each in _by_fault(runs, self.is_at_fault):
                for _, due in self._by_instant(each):
                    self._publish_all(due, until)

    def _by_instant(self, runs: Iterable[Run]) -> list[tuple[float, list[Run]]]:
        """Groups the runs that may be published, as :func:`_by_instant`."""
        may_publish = filter(self._dispatcher.may_publish, runs)
        return _by_instant(may_publish, self._broker.most_together)

    def _publish_all(self, runs: list[Run], until: float = math.inf) -> None:
        """Publishes runs together, as many as the broker takes at once. A run in doubt goes alone:
        it may have caused the failure of the others. Starts nothing after `until` (boottime())."""
        self._impossible.clear()
        together, most = list[Run](), self._broker.most_together
        for run in runs:
            if self._in_doubt.get(run.entry) == run.number:
                self._publish_together([run], until)
                continue
            together.append(run)
            if len(together) >= most:
                self._publish_together(together, until)
                together, most = [], self._broker.most_together  # known once it is connected
        self._publish_together(together, until)
        self._drop_impossible()

    def _drop_impossible(self) -> None:
        if self._impossible:
            impossible, self._impossible = self._impossible, {}
            why = {entry: f"cannot be sent, {why}" for entry, (_, why) in impossible.items()}
            runs = [run for run, _ in impossible.values()]
            self._dispatcher.drop(runs, why, level=logging.ERROR)  # as of Celery's own beat
            self._hooked.forget(impossible)  # not before: if this is refused, they are tried again

    def _publish_together(self, runs: list[Run], until: float) -> None:
        """Publishes runs together. If one of them alone ends all, the others leave after it."""
        in_time = self._dispatcher.in_time  # those before them may have taken long
        while runs := [run for run in in_time(runs) if self.back_off(run.entry) <= 0]:
            is_over = self._on_their_way is not None or clock.boottime() > until
            if is_over or not self._dispatcher.may_publish_now():
                return
            runs = self._publish_once(runs)

    def _publish_once(self, runs: list[Run]) -> list[Run]:
        """Publishes runs together. Returns those that have not left, through another's fault."""
        self._ledger.assure()
        self._broker.may_have_left = False
        together = _Together(runs, clock.boottime(), clock.now())
        try:
            with self._broker.together(together.wait, lambda: self._note_taken(together)):
                self._make(together)
        except Exception as exc:
            return self._note_all(together, exc)
        return self._note_all(together)

    def _make(self, together: _Together) -> None:
        """Makes messages, which leave later. Raises only what concerns all of them."""
        send = self._dispatcher.source.sender()
        for run in together.runs:
            first, more = self._broker.handed_over(), 0
            try:
                self._send(run, send)
            except Exception as exc:
                ends_all = comes_from(exc, [ZkBeatError]) or self._broker.is_lost(exc)
                if len(together.runs) == 1 or ends_all:
                    together.making, more = run, 1
                    raise
                together.refused[run.entry] = exc
            finally:
                together.messages[run.entry] = range(first, self._broker.handed_over() + more)
            self._dispatcher.show_progress()

    def _send(self, run: Run, send: Send) -> None:
        entry = self._dispatcher.source.entry_of(run)
        texts = self._dispatcher.ahead.texts(run, entry)
        if logger.isEnabledFor(logging.INFO):
            text = "Scheduler: Sending due task %s (%s), run %d"
            told = run.telling("sending", self._ledger.epoch, texts.task_id)
            logger.info(text, run.entry, entry.task, run.number, extra=told)
        until_due = functools.partial(_wait_until_due, [run])
        handed, before = self._broker.handed_over, self._hooked.before(run)
        attempt = Attempt(entry, texts, until_due, handed, before)
        try:
            send(run, attempt)
        finally:
            self._hooked.note(run, attempt)

    def _note_published(self, runs: list[Run], left: datetime) -> None:
        """Records that the messages of these runs left at `left` or a moment later."""
        if not runs:
            return
        epoch, at = self._ledger.epoch, clock.now()
        self._failing_since = None
        for run in runs:
            self._back_off.forgive(run.entry)
            self._unreached.pop(run.entry, None)
            in_doubt = self._in_doubt.pop(run.entry, None) == run.number
            if in_doubt or run.epoch != epoch:
                self._metrics.resent += 1
            self._metrics.lateness.observe((at - run.expected).total_seconds())
            goes_on_from = None
            if self.is_unsent(run):
                goes_on_from = self._dispatcher.source.goes_on_from(run, left)
            self._may_have_left.pop(run.entry, None)
            self._ledger.published(run, at, goes_on_from)
        self._metrics.published += len(runs)
        self._hooked.forget(run.entry for run in runs)
        self._dispatcher.tell_published(runs)
        self._ledger.confirm()

    def _note_taken(self, together: _Together, *, is_ended: bool = True) -> list[Run]:
        """Records which messages the broker has taken so far: before the next look at the clock,
        after which the ledger may not be loaded. Returns the runs of which it did not say so."""
        taken, rest = together.sort(self._broker, is_ended=is_ended)
        self._note_published(taken, together.left)
        self._dispatcher.show_progress()
        return rest

    def _note_all(self, together: _Together, exc: Exception | None = None) -> list[Run]:
        """Records what became of runs. `exc` ended all before each had its answer: raises it if it
        comes from the check of the election. Returns the runs to which it does not matter."""
        rest = self._note_taken(together, is_ended=exc is not None)
        if exc is None:
            self._note_refused(together)
            return []
        error = exc.__context__ if isinstance(exc.__context__, ZkBeatError) else exc
        if isinstance(error, ZkBeatError):
            raise error from None  # Celery may have wrapped it
        broker = self._broker
        left, blamed = together.blame(rest, broker, exc)
        # Redis may take some of several messages and refuse others; so may the queues of one.
        if len(blamed) > 1 or not broker.has_wholly_refused(exc):
            self._may_have_left.update({run.entry: run.number for run in left})
        self._note_refused(together)
        if blamed:
            self._note_failed(blamed, exc, together.begun)
        elif broker.is_lost(exc):
            broker.drop()
        if broker.are_on_their_way:
            self._on_their_way = _Together(left, together.begun, together.left, together.messages)
        entries = {run.entry for run in blamed}
        return [run for run in rest if run.entry not in entries]

    def _note_refused(self, together: _Together) -> None:
        for run in together.runs:
            if (error := together.refused.get(run.entry)) is not None:
                if together.messages.get(run.entry) and not self._broker.has_wholly_refused(error):
                    self._may_have_left[run.entry] = run.number
                self._note_failed([run], error, together.begun)

    def _note_failed(self, runs: list[Run], exc: Exception, begun: float) -> None:
        """Records a failure. Any number of these runs may have been published."""
        fault, error, run = self._broker.fault(exc), unwrapped(exc), runs[0]
        self._metrics.failed += len(runs)
        self._hooked.keep(runs, self._ledger)
        if fault is Fault.AWAY:
            self._unreached.update({run.entry: run.number for run in runs})
            self._failing_since = self._failing_since or begun
        else:
            for each in runs:
                self._unreached.pop(each.entry, None)
            if self._broker.has_refused(exc):
                self._failing_since = None
        # If a task sends by itself and its connection failed, ours may have failed, too.
        if self._broker.is_lost(exc) or comes_from(error, [OperationalError]):
            self._broker.drop()
        if fault is Fault.AWAY or len(runs) > 1:
            self._in_doubt.update({run.entry: run.number for run in runs})
        own = fault is not Fault.AWAY and len(runs) == 1
        if own and fault is Fault.LASTING and self._ledger.state(run.entry) is not None:
            why = f"{type(error).__name__}: {error}"[:_LONGEST_WHY]
            told = self._dispatcher.telling(run, "failed")
            text = "%s: run %d cannot be sent"
            logger.debug(text, run.entry, run.number, exc_info=exc, extra=told)
            self._impossible[run.entry] = run, why
            return
        for each in runs:
            self._ledger.move_to_end(each, str(exc) if own else None)
        pause = 0.0  # only a run that was sent alone is certainly to blame
        if fault is Fault.AWAY or own:
            pause = self._back_off.punish(run.entry if own else None)
        others = f" and {len(runs) - 1} others" if len(runs) > 1 else ""
        logger.error(
            "%s: run %d%s could not be published, trying again in %.3g s: %s",
            run.entry,
            run.number,
            others,
            pause,
            exc,
            exc_info=exc if logger.isEnabledFor(logging.DEBUG) else None,
            extra=self._dispatcher.telling(run, "failed"),
        )


class _Hooked:
    """The waiting runs that this process gave to hooks, with what the hooks made of each."""

    def __init__(self) -> None:
        self._by_entry: dict[str, tuple[Run, Made]] = {}

    def note(self, run: Run, attempt: Attempt) -> None:
        if attempt.made is not None:
            self._by_entry[run.entry] = run, attempt.made

    def before(self, run: Run) -> Made | None:
        """Returns what hooks made of a run, in this process or in an earlier master's."""
        known = self._by_entry.get(run.entry) if self._by_entry else None
        if known is not None and known[0] == run:
            return known[1]
        return None if run.made is None else Made.from_text(run.made)

    def keep(self, runs: Iterable[Run], ledger: RunLedger) -> None:
        """Writes into the ledger what hooks made of these runs, for a later master."""
        for run in runs if self._by_entry else ():
            known = self._by_entry.get(run.entry)
            if known is not None and known[0] == run:
                ledger.keep(run, known[1].text)

    def forget(self, entries: Iterable[str]) -> None:
        for entry in entries if self._by_entry else ():
            self._by_entry.pop(entry, None)

    def renamed(self, names: Mapping[str, str]) -> None:
        known = {old: self._by_entry.pop(old) for old in names if old in self._by_entry}
        for old, (run, made) in known.items():
            self._by_entry[names[old]] = run.renamed(names[old]), made


def early(run: Run, now: datetime) -> float:
    """Returns the seconds until a run that was claimed ahead of time is due; 0 if it is due."""
    if run.due <= now and run.leaves is None:
        return 0.0  # as of nearly all in a burst
    left, furthest = (run.due - now).total_seconds(), _FURTHEST_AHEAD
    if run.leaves is not None:
        later = (run.leaves - run.due).total_seconds()
        left, furthest = left + later, furthest + later
    return left if 0 < left <= furthest else 0.0


def _by_fault(
    runs: Iterable[Run], is_at_fault: Callable[[str], bool]
) -> tuple[list[Run], list[Run]]:
    """Returns the runs that have not failed through their own fault, and those that have. The
    second come last and get little time, so that no other run waits for them."""
    good: list[Run] = []
    at_fault: list[Run] = []
    for run in runs:
        (at_fault if is_at_fault(run.entry) or run.error else good).append(run)
    return good, at_fault


def _by_instant(runs: Iterable[Run], most_together: int) -> list[tuple[float, list[Run]]]:
    """Groups runs: those that are due, then those due at nearly the same instant. Returns each
    group with the seconds until we must start with it, to make the messages that leave together."""
    now, first = clock.now(), 0.0
    groups: dict[float, list[Run]] = {}
    for wait, run in sorted(((early(run, now), run) for run in runs), key=itemgetter(0)):
        if wait > first + (_SAME_INSTANT if first else 0.0):
            first = wait
        groups.setdefault(first, []).append(run)
    if most_together == 1:
        return list(groups.items())
    return [
        (wait - _MAKE_AHEAD - _MAKE_ONE * min(len(due), most_together), due)
        for wait, due in groups.items()
    ]


def _wait_until_due(runs: list[Run]) -> None:
    """Returns when all runs are due."""
    now = clock.now()
    for run in runs:
        while left := early(run, now):
            clock.sleep(left)
            now = clock.now()
