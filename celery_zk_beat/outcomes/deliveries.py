"""What is known of the deliveries of tracked runs' messages, whatever the source. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Optional, Protocol

from ..runs import Outcome
from ..zookeeper.operations import Delete
from .reports import COMES_AGAIN, STARTED, Report

#: An entry, and :attr:`.PastRun.run` of one of its runs.
Key = tuple[str, tuple[Optional[int], int]]


@dataclass(frozen=True)
class Delivery:
    """One delivery of a run's message to a worker.

    Attributes:
        name: of the delivery, unique.
        report: None if it cannot be understood.
        at: when the report was written, by ZooKeeper's clock, in seconds since 1970.
        is_running: the worker that executes it is certainly alive.
        deletes: remove what ZooKeeper holds of it, the report last.
    """

    name: str
    report: Report | None
    at: float = 0.0
    is_running: bool = False
    deletes: tuple[Delete, ...] = ()

    @property
    def key(self) -> Key | None:
        """Identifies the run; None if the report cannot be understood."""
        return None if self.report is None else (self.report.entry, self.report.key)

    @property
    def is_started(self) -> bool:
        """True if the task began, and the worker has not reported its end."""
        return self.report is not None and self.report.state == STARTED

    @property
    def outcome(self) -> Outcome | None:
        """The outcome that it reports; None if it reports no end."""
        report = self.report
        if report is None or not report.is_final:
            return None
        runtime_ms = None if report.runtime is None else round(report.runtime * 1000)
        at_ms = max(0, int(self.at * 1000))
        return Outcome(report.state, at_ms, runtime_ms, report.worker or None, report.error)

    @property
    def comes_again(self) -> bool:
        """True if the broker delivers the message again."""
        report = self.report
        return report is not None and (
            report.state in COMES_AGAIN or (self.is_started and report.again)
        )


class Deliveries(Protocol):
    """A source of outcomes. For the dispatch loop's thread."""

    @property
    def stale(self) -> bool:
        """True if there is something new to read."""

    def forget(self) -> None:
        """Forgets what was read in an earlier term."""

    def read(self, open_runs: Iterable[Key]) -> Mapping[str, Delivery]:
        """Returns the deliveries that are known, by their names.

        Raises:
            ZkBeatError: the source cannot be read now.
        """

    def has_looked(self, key: Key) -> bool:
        """True if what :meth:`read` returns of a run is what is known of it. False for a moment
        after a take-over, if the source takes time."""

    def outdated(self, name: str) -> None:
        """Makes the next :meth:`read` read this delivery again."""
