"""Folds outcomes into the run states.

Each outcome is folded once. The transaction that records it in the entry's state also closes the
run there and deletes the report. So a master that is killed leaves either both or neither.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from .. import clock
from ..dispatcher import Dispatcher
from ..errors import Conflict, Outdated
from ..log import get_logger
from ..runs import FAILURES, Outcome, PastRun
from ..source import Source
from ..zookeeper.operations import Check, Operation
from .deliveries import Delivery
from .reporting import Reporting

logger = get_logger(__name__)

#: Most entries whose outcomes are folded in a turn, and most reports that are deleted at once.
_AT_ONCE, _DELETED_AT_ONCE = 200, 200
#: Most reports that are deleted with the outcome of their run; the others are deleted afterwards.
_DELETED_WITH_IT = 5
#: Seconds for which reports are not deleted after that was not allowed.
_KEEPS_FOR = 600.0
#: More than the bytes of an operation that deletes a report.
_BYTES_OF_DELETE = 1_000
#: After so many refusals in a row outcomes are folded without a look at the reports.
_MOST_REFUSALS = 2


@dataclass
class _Folded:
    """What is to be recorded of an entry: its runs, each with its outcome, and the outcomes that
    these had until now; and how their reports are deleted in the same transaction."""

    runs: dict[PastRun, Outcome | None] = field(default_factory=dict)
    deletes: list[Operation] = field(default_factory=list)


class Folding:
    """Collects outcomes, and folds them. For the dispatch loop's thread. Raises the ledger's
    errors."""

    def __init__(self, dispatcher: Dispatcher, source: Source, reporting: Reporting) -> None:
        self._dispatcher, self._source, self._reporting = dispatcher, source, reporting
        self._ledger, self._control = dispatcher.ledger, dispatcher.control
        #: Until when reports are not deleted, by boottime().
        self._keeps_until = -math.inf
        self.forget()

    def may_not_delete(self) -> None:
        """Call this if a transaction was refused for want of rights. For a while the reports stay:
        else nothing that is in the same turn would ever be done."""
        self._keeps_until = clock.boottime() + _KEEPS_FOR

    def forget(self) -> None:
        """The term is over, or all is read anew."""
        self.clear()
        #: Deliveries that somebody has changed in such a way that they cannot be deleted.
        self._stuck: set[str] = set()
        #: Deliveries because of which a transaction was refused, once.
        self._refused: set[str] = set()
        #: How many times in a row outcomes were refused because of a delivery.
        self._refusals = 0

    def clear(self) -> None:
        """Forgets what was collected."""
        self._folded: dict[str, _Folded] = {}

    def add(
        self,
        name: str,
        past: PastRun,
        outcome: Outcome | None,
        deliveries: Iterable[Delivery] = (),
    ) -> None:
        """Collects the outcome of a run, which is known as `past`. None reopens the run.
        `deliveries`: those whose reports are deleted."""
        each = self._folded.setdefault(name, _Folded())
        each.runs[past._replace(outcome=outcome)] = past.outcome
        if self._refusals < _MOST_REFUSALS:
            each.deletes += self._deletes(deliveries)[:_DELETED_WITH_IT]

    def has(self, name: str, past: PastRun) -> bool:
        """True if an outcome of this run is collected."""
        return name in self._folded and any(
            each.run == past.run for each in self._folded[name].runs
        )

    def _deletes(self, deliveries: Iterable[Delivery]) -> list[Operation]:
        if clock.boottime() < self._keeps_until:
            return []
        return [
            delete for each in deliveries if each.name not in self._stuck for delete in each.deletes
        ]

    def fold(self) -> bool:
        """Folds what was collected. Returns False if that was too much at once.

        A worker may make any number of reports that cannot be deleted. So after some refusals in a
        row the reports stay. That loses nothing: the run is not open any more, so they are deleted
        later, and what one of them says by then may replace what the master has concluded.

        Raises:
            Outdated: a report has changed: see :meth:`refused`.
        """
        try:
            is_done = self._fold()
        except Outdated:
            self._refusals += 1
            raise
        self._refusals = 0
        return is_done

    def _fold(self) -> bool:
        known = {name: each for name, each in self._folded.items() if self._ledger.state(name)}
        count = len(known)
        known = dict(itertools.islice(known.items(), _AT_ONCE))
        pausing = {name: each for name, each in known.items() if self._must_pause(name, each)}
        for name, each in pausing.items():
            del known[name]
            self._fold_and_pause(name, each)
        outcomes = {name: each.runs for name, each in known.items()}
        also = {name: each.deletes for name, each in known.items()}
        for names in self._ledger.fold(outcomes, also):
            for name in names:
                self._tell(name, known[name])
        return count <= _AT_ONCE

    def _must_pause(self, name: str, folded: _Folded) -> bool:
        """True if these outcomes are the last that it takes to pause the entry."""
        policy, before = self._dispatcher.policies.of(name), self._ledger.state(name)
        if policy is None or policy.pause_after_failures is None or before is None:
            return False
        after, most = before, policy.pause_after_failures
        for past, known in folded.runs.items():
            after = after.after_outcome(past, known)
        is_paused = self._control.pauses.of(name).since is not None
        return after.failed // most > before.failed // most and not is_paused

    def _fold_and_pause(self, name: str, folded: _Folded) -> None:
        policy = self._dispatcher.policies.of(name)
        assert policy is not None
        failures = (each.outcome for each in reversed(folded.runs) if each.outcome is not None)
        error = next((each.error for each in failures if each.state in FAILURES), None)
        why = f"beat {self._dispatcher.settings.id}: {policy.pause_after_failures} runs failed in a"
        why += f" row, the last with {error}" if error else " row"
        pausing = self._control.pausing(name, clock.now(), why)
        also = [*folded.deletes, *([] if pausing is None else [pausing[0]])]
        for _ in self._ledger.fold({name: folded.runs}, {name: also}):
            if pausing is not None:
                self._control.paused(pausing[1])
                logger.error("%s: paused by %s", name, why)
            self._tell(name, folded)
        self._source.outdated()
        self._source.refresh()  # before this turn claims the entry's next run

    def delete(self, deliveries: Iterable[Delivery]) -> bool:
        """Deletes reports that say nothing new, such as those of runs that nobody tracks. Returns
        False if they were too many at once.

        Raises:
            Outdated: a report has changed: see :meth:`refused`.
        """
        all_ = self._deletes(deliveries)
        if not all_:
            return True
        most = min(_DELETED_AT_ONCE, self._ledger.limits.most_bytes // _BYTES_OF_DELETE)
        operations = all_[:most]
        election = self._dispatcher.election
        epoch = Check(election.paths.epoch, self._dispatcher.epoch)
        try:
            election.session.commit(epoch, *operations)
        except Conflict as exc:
            if exc.path == epoch.path:
                raise
            raise Outdated(exc.path, "not as it was read") from None
        return len(operations) == len(all_)

    def refused(self, path: str) -> str:
        """Notes that a report was not as it was read, or could not be deleted. One that is refused
        again stays. Returns the delivery."""
        name = path.rpartition("/")[2]
        (self._stuck if name in self._refused else self._refused).add(name)
        return name

    def _tell(self, name: str, folded: _Folded) -> None:
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
