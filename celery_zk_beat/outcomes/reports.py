"""What a worker reports of one delivery of a run's message: the records below ``inbox/reports``.
Pure: no I/O.

Workers write these znodes, and whoever has a worker's rights may write anything there. So a report
is data that is checked, bounded, and never shown without being made printable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..errors import RootError
from ..limits import LONGEST_NAME
from ..records import LARGEST_NUMBER, decode, encode, field, instant, shown, to_text
from ..runs import LATEST, LONGEST_ERROR, NEVER, REPORTED, from_milliseconds, milliseconds

STARTED, RETRY, REQUEUED = "started", "retry", "requeued"
#: With one of these the run is over.
FINAL_REPORTS = frozenset(REPORTED)
SUCCESS, FAILURE, REVOKED, EXPIRED, REJECTED, IGNORED = REPORTED
#: With one of these the message is delivered again.
COMES_AGAIN = frozenset({RETRY, REQUEUED})
_STATES = {STARTED, *COMES_AGAIN, *FINAL_REPORTS}
#: Most characters of a task's id, and of a worker's name.
_LONGEST_ID, _LONGEST_WORKER = 500, 200
#: Most seconds of a runtime: more than 300 years.
_LONGEST_RUNTIME = 1e10
#: Most bytes of a report: its texts, each character six bytes long, and its numbers.
LARGEST_REPORT = 6 * (LONGEST_NAME + _LONGEST_ID + _LONGEST_WORKER + LONGEST_ERROR) + 1000
_LATEST = from_milliseconds(1000 * LATEST)


@dataclass(frozen=True)
class Report:
    """What became of a delivery, as far as the worker knows.

    Attributes:
        entry, run, due: of the run, as its message's header has them. `due` is aware, UTC.
        id: the task's id.
        worker: the name of the worker, as ``celery@host``.
        state: "started", "retry" or "requeued", or one of :data:`FINAL_REPORTS`.
        runtime: how long the task ran, in seconds, by the worker's monotonic clock; None before
            its end, and if it never began.
        error: the type of the exception that ended it, such as "KeyError".
        again: the broker delivers the message again if this worker dies.
    """

    entry: str
    run: int
    due: datetime
    id: str
    worker: str
    state: str
    runtime: float | None = None
    error: str | None = None
    again: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the run within its entry, as :attr:`.PastRun.run` does."""
        return self.run, milliseconds(self.due)

    @property
    def is_final(self) -> bool:
        """True if the run is over."""
        return self.state in FINAL_REPORTS

    def ended(self, state: str, runtime: float | None, error: str | None) -> Report:
        """The report once the delivery has ended."""
        if runtime is not None:
            runtime = round(runtime, 6) if 0 <= runtime <= _LONGEST_RUNTIME else None
        error = error and error[:LONGEST_ERROR]
        return replace(self, state=state, runtime=runtime, error=error)

    @classmethod
    def of(cls, header: Mapping[str, Any], id: str, worker: str) -> Report:
        """Makes the report that a message is being executed. `header`: the message's ``zk_beat``.

        Raises:
            RootError: the header describes no run.
        """
        fields = {**header, "id": id, "worker": worker, "state": STARTED}
        return _report("header zk_beat", fields)

    def encode(self) -> bytes:
        fields: dict[str, Any] = {
            "entry": self.entry,
            "run": self.run,
            "due": to_text(self.due),
            "id": self.id,
            "worker": self.worker,
            "state": self.state,
        }
        if self.runtime is not None:
            fields["runtime"] = self.runtime
        if self.error is not None:
            fields["error"] = self.error
        if self.again:
            fields["again"] = True
        return encode(fields)

    @classmethod
    def decode(cls, path: str, data: bytes) -> Report:
        """Reads a report. What only adds to it, such as the runtime, is left out if it cannot be
        right.

        Raises:
            RootError: it says of no run what became of it. The error names `path`.
        """
        if len(data) > LARGEST_REPORT:
            raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_REPORT}")
        fields = decode(path, data)
        report = _report(path, fields)
        error = fields.get("error")
        return replace(
            report,
            runtime=_runtime(fields.get("runtime")),
            error=error[:LONGEST_ERROR] if isinstance(error, str) else None,
            again=fields.get("again") is True,
        )


def _report(path: str, fields: Mapping[str, Any]) -> Report:
    run, state = fields.get("run"), field(path, fields, "state", str)
    if type(run) is not int or not 0 <= run <= LARGEST_NUMBER:
        raise RootError(f"{path}: the field 'run' is {shown(run)}, expected 0 to {LARGEST_NUMBER}")
    if state not in _STATES:
        raise RootError(f"{path}: the field 'state' is {shown(state)}, which is unknown")
    due = instant(path, fields, "due")
    if not NEVER <= due <= _LATEST:
        raise RootError(f"{path}: the field 'due' is {to_text(due)}, expected 1970 to 9998")
    return Report(
        entry=_text(path, fields, "entry", LONGEST_NAME),
        run=run,
        due=due,
        id=_text(path, fields, "id", _LONGEST_ID),
        worker=field(path, fields, "worker", str)[:_LONGEST_WORKER],
        state=state,
    )


def _text(path: str, fields: Mapping[str, Any], name: str, most: int) -> str:
    text: str = field(path, fields, name, str)
    if len(text) > most:
        raise RootError(f"{path}: the field {name!r} has {len(text)} characters, at most {most}")
    return text


def _runtime(value: Any) -> float | None:
    known = type(value) in (int, float) and 0 <= value <= _LONGEST_RUNTIME
    return float(value) if known else None


def delivery_of(id: str, process: str, number: int) -> str:
    """Names the znodes of one delivery of a message. Each delivery has names of its own, so that no
    worker touches the znodes of another.

    Args:
        id: of the task. An entry's options may have given it: it may be any text.
        process: eight hexadecimal digits, of the worker process' own.
        number: which of the deliveries to that process it is.
    """
    if not re.fullmatch("[0-9A-Za-z_:-]{1,100}", id):
        id = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{id}.{process}-{number}"
