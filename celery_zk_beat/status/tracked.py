"""What became of tracked runs, as readers see it. Pure: no I/O."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping

from ..history import merged
from ..runs import LATE_FINISH, LATE_START, Outcome, PastRun, RunState
from .executing import Execution
from .snapshot import OPEN, RunOutcome, Tracked

#: The tracked runs of entries that have not ended, by entry and :attr:`.PastRun.run`.
OpenRuns = Mapping[str, Mapping[tuple["int | None", int], PastRun]]

_LATE = {LATE_START: "start", LATE_FINISH: "finish"}


def open_of(states: Mapping[str, RunState]) -> OpenRuns:
    """The open runs of these entries."""
    return {name: {past.run: past for past in state.open} for name, state in states.items()}


def outcome_of(
    past: PastRun, is_open: PastRun | None, execution: Execution | None
) -> RunOutcome | None:
    """What became of a run; None if it is not tracked.

    Args:
        is_open: the run among those that are open; None if it is not.
        execution: who executes it; None if nobody is known to.
    """
    if is_open is not None:
        late = None if is_open.outcome is None else _LATE.get(is_open.outcome.state)
        if execution is None:
            return RunOutcome(state=OPEN, at=None, late=late)
        worker, since = execution
        return RunOutcome(state=OPEN, at=None, worker=worker, running_since=since, late=late)
    return None if past.outcome is None else _ended(past.outcome)


def _ended(outcome: Outcome) -> RunOutcome:
    return RunOutcome(
        state=outcome.state,
        at=outcome.at,
        runtime=None if outcome.runtime_ms is None else outcome.runtime_ms / 1000,
        worker=outcome.worker,
        error=outcome.error,
    )


def tracked_of(state: RunState | None, history: tuple[PastRun, ...]) -> Tracked | None:
    """What is known of an entry's tracked runs; None if there are none."""
    if state is None:
        return None
    if not state.open and not any(past.outcome for past in (*history, *state.past)):
        return None
    is_open = {past.run for past in state.open}
    ended = [
        past.outcome
        for past in merged(history, state.past)
        if past.outcome is not None and past.outcome.is_final and past.run not in is_open
    ]
    runtimes = [each.runtime_ms / 1000 for each in ended if each.runtime_ms is not None]
    oldest = state.open[0] if state.open else None
    return Tracked(
        open=len(state.open),
        open_since=None if oldest is None else oldest.at,
        late=_latest_said(state.open),
        last=_ended(ended[-1]) if ended else None,
        failed_in_a_row=state.failed,
        outcomes=dict(Counter(each.state for each in ended)),
        runtime_median=round(statistics.median(runtimes), 3) if runtimes else None,
        runtime_longest=max(runtimes, default=None),
    )


def _latest_said(opened: tuple[PastRun, ...]) -> str | None:
    """The worst that was said of open runs."""
    said = {past.outcome.state for past in opened if past.outcome is not None}
    return next((_LATE[state] for state in (LATE_FINISH, LATE_START) if state in said), None)
