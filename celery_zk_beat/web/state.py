"""The report of a beat to the process that serves HTTP for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import clock
from ..election.public import MasterElection
from ..metrics import EntryNumbers, Histogram, Metrics
from ..settings import Settings
from ..status.reader import Basis, Schedule

#: A running beat answers within so many seconds.
ANSWERS_WITHIN = 1.0


#: See :class:`Beat`; the runs are as JSON.
Day = Callable[[str, Basis, Collection[str]], "list[Any]"]


@dataclass(frozen=True)
class Beat:
    """All of a beat that HTTP shows. For any thread."""

    settings: Settings
    election: MasterElection
    metrics: Metrics
    schedule: Schedule
    #: Says what of an entry runs on the next day. It also gets the names of entries that are held
    #: back.
    day: Day


@dataclass(frozen=True)
class State:
    """All that a beat reports of itself. Times on boottime().

    Attributes:
        at: when the beat reported it.
        began: when serving began.
        epoch: its own epoch as master; None on a standby.
        master, master_epoch: the master it knows, perhaps itself; None and 0 if it knows none.
    """

    at: float
    began: float
    id: str
    hosts: str
    root: str
    connected: bool
    session_timeout: float
    clock_offset: float
    decided: bool
    epoch: int | None
    master: str | None
    master_epoch: int
    metrics: Metrics

    @classmethod
    def of(cls, beat: Beat, began: float) -> State:
        """Makes it from the beat as it is now. For any thread."""
        election = beat.election
        session, epoch, master = election.session, election.epoch, election.master
        return cls(
            at=clock.boottime(),
            began=began,
            id=election.id,
            hosts=election.hosts,
            root=beat.settings.root,
            connected=session.connected,
            session_timeout=session.timeout,
            clock_offset=election.clock_offset,
            decided=election.decided,
            epoch=epoch,
            master=None if master is None else master.id,
            master_epoch=epoch or (0 if master is None else master.epoch),
            metrics=beat.metrics,
        )

    def encode(self) -> bytes:
        """Writes it as one line."""
        return json.dumps(vars(self), default=vars).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> State:
        """Reads what :meth:`encode` wrote."""
        fields = json.loads(line)
        metrics = fields.pop("metrics")
        for name in ("lateness", "claim_seconds", "runtime"):
            metrics[name] = Histogram(**metrics[name])
        if metrics["by_entry"] is not None:
            metrics["by_entry"] = [EntryNumbers(*each) for each in metrics["by_entry"]]
        return cls(metrics=Metrics(**metrics), **fields)


class Report(NamedTuple):
    """The newest State. `answers`: True if it is not older than a second."""

    state: State
    answers: bool
