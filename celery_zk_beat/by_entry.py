"""The metrics of single entries, where they are asked for: what the ledger knows of each.

Taken from run states and histories, not counted: so a new master has them, too. No run waits for
it: it looks at a few entries at a time, between the turns of the dispatch loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from . import clock
from .dispatcher import Dispatcher
from .errors import RootError, ZkBeatError
from .history import Pasts, decode_volume, merged
from .log import get_logger
from .metrics import SKIPPED, EntryNumbers, select
from .paths import page_of, volume_of
from .runs import BACKFILLED, NEVER, TOLERANCE, PastRun, Run, RunState, milliseconds
from .source import Source

logger = get_logger(__name__)

#: Seconds from one look at all selected entries to the next, and after which that looks also at
#: those of which nothing seems to have changed: their schedules may have.
_LOOK_EVERY, _LOOK_ANEW_AFTER = 1.0, 60.0
#: Entries that are looked at in a turn of the loop; the seconds until the next.
_AT_ONCE, _REST = 20, 0.01
_REASONS = {f"skipped: {words}": reason for reason, words in SKIPPED.items()}
#: What was skipped for a reason of another release.
_OTHER = "other"


def _reason_of(note: str) -> str:
    words, _, _ = note.partition(", since ")
    return _REASONS.get(words, _OTHER)


class _Known(NamedTuple):
    """The numbers of an entry, what they were made of, and when, on boottime()."""

    numbers: EntryNumbers
    made_of: tuple[Any, ...]
    at: float


class ByEntry:
    """The numbers of a master's selected entries, in :attr:`.Metrics.by_entry`. For the dispatch
    loop's thread.

    Args:
        patterns: of the names of the entries.
    """

    def __init__(self, patterns: Sequence[str], dispatcher: Dispatcher, source: Source) -> None:
        self._patterns, self._setting = patterns, f"{dispatcher.settings.prefix}metrics_entries"
        self._ledger, self._control = dispatcher.ledger, dispatcher.control
        self._election, self._metrics = dispatcher.election, dispatcher.metrics
        self._source = source
        self._warned: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """The term is over, or all is read anew."""
        self._metrics.by_entry = None
        self._names: list[str] = []
        self._readings = 0
        #: Those of the names that are still to be looked at.
        self._left: list[str] = []
        #: On boottime(): when the next look begins, or goes on.
        self._look_at = -math.inf
        #: Volumes of histories that were read, those that cannot be, and what is known of entries.
        self._volumes: set[str] = set()
        self._unreadable: set[str] = set()
        self._pasts: Pasts = {}
        self._known: dict[str, _Known] = {}
        #: Tracked runs that were open at the last look.
        self._open: dict[str, tuple[PastRun, ...]] = {}

    def turn(self) -> float:
        """Looks at some entries, where it is time; returns the seconds after which to go on."""
        now = clock.boottime()
        if now >= self._look_at:
            if not self._left:
                self._begin()
            some, self._left = self._left[:_AT_ONCE], self._left[_AT_ONCE:]
            self._read({volume_of(page_of(name)) for name in some} - self._volumes)
            for name in some:
                self._look(name, now)
            if not self._left:
                self._show()
            self._look_at = now + (_REST if self._left else _LOOK_EVERY)
        return self._look_at - now if self._left else math.inf

    def _begin(self) -> None:
        if self._readings != self._source.readings:
            self._readings = self._source.readings
            found = select(self._patterns, list(self._source.entries), self._setting)
            self._names, self._metrics.selected = found.names, found.matching
            for fault in found.faults:
                if fault not in self._warned:
                    self._warned.add(fault)
                    logger.warning("%s", fault)
            self._known = {n: each for n, each in self._known.items() if n in found.names}
        self._left = self._names

    def _read(self, volumes: set[str]) -> None:
        """Reads histories. What comes afterwards is in the run states, for a while."""
        wanted = sorted(volumes - self._unreadable)
        if not wanted:
            return
        self._volumes.update(wanted)
        paths = list(map(self._election.paths.volume, wanted))
        try:
            nodes = self._election.session.read_all(paths)
        except ZkBeatError as exc:
            self._lack(wanted, exc)
            return
        for volume, path, node in zip(wanted, paths, nodes):
            try:
                pasts = {} if node is None else decode_volume(path, node.data)
            except RootError as exc:
                self._lack([volume], exc)
            else:
                self._pasts.update({n: pasts[n] for n in self._names if n in pasts})

    def _lack(self, volumes: Iterable[str], exc: ZkBeatError) -> None:
        self._unreadable.update(volumes)
        logger.warning("%s; metrics of single entries lack earlier values", exc)

    def _past(self, name: str, state: RunState) -> tuple[PastRun, ...]:
        """What is known of the entry's past runs."""
        pasts = merged(self._pasts.get(name, ()), state.past)
        runs, due = {past.number for past in pasts}, {past.due_ms for past in pasts}
        has_run = state.total_run_count in runs or not state.total_run_count
        has_due = state.due is None or milliseconds(state.due) in due
        has_outcomes = self._has_outcomes(name, state, pasts)
        if not (has_run and has_due and has_outcomes):
            self._read({volume_of(page_of(name))})  # which has taken it over since the last look
            pasts = merged(self._pasts.get(name, ()), state.past)
        self._pasts[name] = pasts
        return pasts

    def _has_outcomes(self, name: str, state: RunState, pasts: Sequence[PastRun]) -> bool:
        """False if a run was open at the last look, is not now, and its outcome is not among
        `pasts`."""
        before = self._open.pop(name, ())
        if state.open:
            self._open[name] = state.open
        ended = {past.run for past in before} - {past.run for past in state.open}
        return not ended or ended <= {past.run for past in pasts if past.outcome is not None}

    def _look(self, name: str, now: float) -> None:
        entry, state = self._source.entries.get(name), self._ledger.state(name)
        if entry is None or (state is None and not self._ledger.damaged(name)):
            self._known.pop(name, None)
            return
        waiting, held = self._ledger.outbox.get(name), self._control.holds(name)
        made_of, known = (entry, state, waiting, held), self._known.get(name)
        if (
            known is None
            or now - known.at > _LOOK_ANEW_AFTER
            or any(a is not b for a, b in zip(known.made_of, made_of))
        ):
            before = None if known is None else known.numbers
            numbers = self._numbers(name, state, waiting, held, before)
            self._known[name] = _Known(numbers, made_of, now)

    def _numbers(
        self,
        name: str,
        state: RunState | None,
        waiting: Run | None,
        is_held: bool,
        before: EntryNumbers | None,
    ) -> EntryNumbers:
        skipped = {} if before is None else before.skipped
        if state is None:
            return EntryNumbers(name, 0.0, None, None, skipped)
        pasts = self._past(name, state)
        last_run, lateness = _last_run(pasts, state, waiting)
        found = {
            _reason_of(past.note or ""): past.at_ms / 1000 for past in pasts if past.number is None
        }
        next_run = self._next_run(name, state, waiting, is_held)
        numbers = EntryNumbers(name, last_run, lateness, next_run, {**skipped, **found})
        return numbers._replace(**_outcomes(pasts, state, before))

    def _next_run(
        self, name: str, state: RunState, waiting: Run | None, is_held: bool
    ) -> float | None:
        if is_held:
            return None
        if waiting is not None and not waiting.extra:
            return (waiting.leaves or waiting.due).timestamp()
        try:
            at = self._source.next_run(name, state)
        except Exception:  # of a class of the user's
            return None
        return None if at is None else at.timestamp()

    def _show(self) -> None:
        known = self._known
        self._metrics.by_entry = [known[name].numbers for name in self._names if name in known]


def _outcomes(
    pasts: Sequence[PastRun], state: RunState, before: EntryNumbers | None
) -> dict[str, Any]:
    """What is known of the entry's tracked runs, as fields of EntryNumbers."""
    opened = {past.run for past in state.open}
    ended = [
        (past, past.outcome)
        for past in pasts
        if past.outcome is not None and past.outcome.is_final and past.run not in opened
    ]
    if not ended and not opened:
        return {}
    good = [outcome.at_ms / 1000 for _, outcome in ended if outcome.state == "success"]
    if before is not None and before.succeeded is not None:
        good.append(before.succeeded)
    oldest = min(past.at_ms / 1000 for past in (*(past for past, _ in ended), *state.open))
    found: dict[str, Any] = {"succeeded": max(good, default=oldest)}
    if state.open:
        found["open_since"] = state.open[0].at_ms / 1000
    if ended:
        last = ended[-1][1]
        runtime = None if last.runtime_ms is None else last.runtime_ms / 1000
        found.update(outcome=last.state, ended=last.at_ms / 1000, runtime=runtime)
    return found


def _last_run(
    pasts: Sequence[PastRun], state: RunState, waiting: Run | None
) -> tuple[float, float | None]:
    """When an entry ran last, and how late. Not `last_run_at` of the state: that is also set by
    what is skipped or dropped, and not by what an operator asks for."""
    newest = max((past.at for past in pasts), default=NEVER)
    if waiting is None and state.last_run_at - newest > TOLERANCE:
        return state.last_run_at.timestamp(), None  # its clock began then, perhaps anew
    for past in reversed(pasts):
        is_run = past.number is not None and not past.was_dropped
        if is_run and (waiting is None or past.number != waiting.number):
            late = max(0, past.at_ms - past.due_ms) / 1000
            # The instants of a backfill are long past.
            return past.at_ms / 1000, None if past.note == BACKFILLED else late
    return (pasts[0].due if pasts else state.last_run_at).timestamp(), None
