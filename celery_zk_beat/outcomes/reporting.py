"""Reports what became of tracked runs: log, metrics, signals."""

from __future__ import annotations

from ..dispatcher import Dispatcher
from ..log import get_logger
from ..policies import Policy
from ..records import to_text
from ..runs import LATE_FINISH, LATE_START, Outcome, PastRun, Run
from ..signals import run_finished, run_late, run_started

logger = get_logger(__name__)

_NO_POLICY = Policy()
_WHAT = {LATE_START: "start", LATE_FINISH: "finish"}


class Reporting:
    """For the dispatch loop's thread."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher, self._metrics = dispatcher, dispatcher.metrics
        self._metrics.tracks = True

    def started(self, name: str, past: PastRun, worker: str) -> None:
        """Reports that a worker began to execute a run."""
        run = self._run(name, past)
        told = run.telling("started", self._dispatcher.epoch, self._dispatcher.task_id(run))
        logger.debug("%s: run %s started on %s", name, past.number, worker, extra=told)
        if run_started.receivers:
            self._announce(run_started, name, past, worker=worker)

    def ended(self, name: str, past: PastRun, outcome: Outcome) -> None:
        """Reports the end of a run."""
        metrics, seconds = self._metrics, None
        metrics.outcomes[outcome.state] = metrics.outcomes.get(outcome.state, 0) + 1
        if outcome.runtime_ms is not None:
            seconds = outcome.runtime_ms / 1000
            metrics.runtime.observe(seconds)
        run = self._run(name, past)
        told = run.telling("finished", self._dispatcher.epoch, self._dispatcher.task_id(run))
        is_good = outcome.state in ("success", "ignored")
        log = logger.debug if is_good else logger.warning
        log("%s: run %s: %s", name, past.number, words_of(outcome), extra=told)
        if run_finished.receivers:
            self._announce(
                run_finished,
                name,
                past,
                state=outcome.state,
                runtime=seconds,
                worker=outcome.worker,
                error=outcome.error,
            )

    def late(self, name: str, past: PastRun, outcome: Outcome) -> None:
        """Reports that a run did not start, or end, in time."""
        what = _WHAT[outcome.state]
        policy = self._dispatcher.policies.of(name) or _NO_POLICY
        span = policy.start_within if what == "start" else policy.finish_within
        seconds = 0.0 if span is None else span.total_seconds()
        self._metrics.late[what] = self._metrics.late.get(what, 0) + 1
        run = self._run(name, past)
        told = run.telling("late", self._dispatcher.epoch, self._dispatcher.task_id(run))
        text = "%s: run %s, due %s, did not %s within %g s"
        logger.warning(text, name, past.number, to_text(past.due), what, seconds, extra=told)
        if run_late.receivers:
            self._announce(run_late, name, past, what=what, seconds=seconds)

    def _announce(self, signal: object, name: str, past: PastRun, **more: object) -> None:
        self._dispatcher.announce(
            signal,
            entry=name,
            run=past.number,
            due=past.due,
            epoch=self._dispatcher.epoch,
            task_id=self._dispatcher.task_id(self._run(name, past)),
            **more,
        )

    def _run(self, name: str, past: PastRun) -> Run:
        return Run(name, past.number or 0, past.due, past.at, past.epoch)


def words_of(outcome: Outcome) -> str:
    """Describes an outcome in words."""
    text = outcome.state.replace("_", " ")
    if outcome.error is not None:
        text += f", {outcome.error}"
    if outcome.runtime_ms is not None:
        text += f", after {outcome.runtime_ms / 1000:.3g} s"
    if outcome.worker is not None:
        text += f", on {outcome.worker}"
    return text
