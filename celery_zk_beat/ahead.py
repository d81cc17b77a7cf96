"""What is made of runs before they are due, while there is nothing else to do: the run, its entry's
state after the claim, and what its message has of its own. So a full minute does less at :00.

Nothing here is claimed or sent. What an entry says (its task, options and arguments) is not made
ahead, so a change of it cannot be missed. What is made counts only for the very run, state and term
that it was made for: whoever asks for it says what there is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from .election.terms import Term
from .ledger import RunLedger
from .messages import headers_of, task_id
from .records import to_text
from .runs import Run, RunState
from .settings import Settings
from .templates import Texts

#: Most runs that are kept. Each takes some 2.3 kB.
MOST_MADE = 100_000


class _Made(NamedTuple):
    """`before` and `after`: the state of the entry before and after the claim of the run. `term`:
    that in which the texts are right."""

    run: Run
    before: RunState
    after: RunState
    term: Term
    texts: Texts


class MadeAhead:
    """Those of one master. For the dispatch loop's thread.

    Args:
        root: the path that task ids are made of.
        id_now: returns the task id of a run, or that which its entry has of its own.
    """

    def __init__(
        self, settings: Settings, ledger: RunLedger, root: str, id_now: Callable[[Run], str]
    ) -> None:
        self._settings, self._ledger, self._root, self._id_now = settings, ledger, root, id_now
        self._made: dict[str, _Made] = {}

    def clear(self) -> None:
        self._made.clear()

    def forget(self, entry: str) -> None:
        """Forgets what was made for an entry that is replaced or removed."""
        self._made.pop(entry, None)

    def make(self, runs: Iterable[Run]) -> None:
        """Makes what can be made of these runs, each the next of its entry, as far as there is
        room."""
        term = self._ledger.term
        for run in runs:
            before = self._ledger.state(run.entry)
            # Some states depend on how much our clock is ahead of ZooKeeper's.
            if before is None or before.leaps or before.done or term is None:
                continue
            if len(self._made) >= MOST_MADE and run.entry not in self._made:
                continue
            # Not the id that the entry has of its own: it may have none when the run is sent.
            made_of_run = task_id(self._root, run.entry, run.number, run.due)
            after, texts = before.after_claim(run, timedelta()), self._texts(run, made_of_run)
            _ = run.text, after.text, texts.written
            self._made[run.entry] = _Made(run, before, after, term, texts)

    def run(self, entry: str) -> Run | None:
        """Returns the run of an entry that was made."""
        made = self._made.get(entry)
        return None if made is None else made.run

    def state(self, run: Run, before: RunState) -> RunState | None:
        """Returns the state after the claim of a run, if it was made, and of this `before`."""
        made = self._made.get(run.entry)
        if made is None or made.before is not before:
            return None
        if run.late is None:
            return made.after if made.run is run else None
        return made.after.claimed_late(run.late) if made.run == run else None

    def texts(self, run: Run, entry: Any) -> Texts:
        """Returns what the message of a run has of its own. What was made of the run is forgotten
        then. The texts are the same if the run was claimed later than it was made for."""
        made = self._made.get(run.entry)
        if made is None or (made.run.number, made.run.due) != (run.number, run.due):
            return self._texts_now(run)
        del self._made[run.entry]
        if run.was or run.leaves or run.tracked or (entry.options or {}).get("task_id"):
            return self._texts_now(run)
        return made.texts if made.term is self._ledger.term else self._texts_now(run)

    def _texts_now(self, run: Run) -> Texts:
        return self._texts(run, self._id_now(run))

    def _texts(self, run: Run, task_id: str) -> Texts:
        ledger, settings = self._ledger, self._settings
        header = {
            "entry": run.entry,
            "era": ledger.era,
            "epoch": ledger.epoch,
            "run": run.number,
            "due": to_text(run.due),
            "master": settings.id,
        }
        if run.leaves is not None:
            header["leaves"] = to_text(run.leaves)
        if run.tracked:
            header["report"] = ledger.inbox
        headers = headers_of(header, is_extended=settings.result_extended)
        return Texts(task_id, headers)
