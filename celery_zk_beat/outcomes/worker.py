"""`ReportOutcomes`, which has a Celery worker report what becomes of tracked runs.

It listens in the worker's main process. Of each tracked message it puts itself before the functions
of that one request which Celery's pool calls: when the task is accepted, and when it has ended.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery import bootsteps, signals
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded
from celery.utils.serialization import UnpickleableExceptionWrapper

from .. import clock
from ..errors import RootError, UnsupportedEnvironment
from ..log import get_logger
from ..settings import WORKER, Settings
from . import reports
from .reports import Report, delivery_of
from .sending import Sender

logger = get_logger(__name__)


class ReportOutcomes(bootsteps.StartStopStep):  # type: ignore[misc]
    """Has workers report what becomes of tracked runs. One line in the app's configuration::

        app.steps["worker"].add(celery_zk_beat.ReportOutcomes)

    It does nothing unless ``zk_beat_outcomes`` is "worker".
    """

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._watch: Watch | None = None

    def include(self, worker: Any) -> bool:
        # First, and so it is stopped last: when the pool has ended all tasks.
        worker.steps.insert(0, self)
        return True

    def start(self, worker: Any) -> None:
        """Begins to listen.

        Raises:
            SettingsError: a setting cannot work.
        """
        settings = Settings.from_app(worker.app)
        if settings.outcomes != WORKER:
            return
        if getattr(worker.pool, "is_green", False):
            logger.error(
                "this worker reports no outcomes: with gevent and eventlet the threads that write "
                "to ZooKeeper do not run reliably: have another pool run tracked tasks, such as "
                "prefork or threads"
            )
        else:
            self._watch = Watch(worker, Sender(settings))
            self._watch.start()

    def stop(self, worker: Any) -> None:
        """Ends the worker's session, once the last reports are written."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    terminate = stop


class Watch:
    """Listens to one worker for tracked messages."""

    def __init__(self, worker: Any, sender: Sender) -> None:
        self._worker, self._sender = worker, sender
        self._numbers = itertools.count(1)
        self._has_warned = False
        #: Deliveries by the id of their header, an object of each message's own.
        self._deliveries: weakref.WeakValueDictionary[int, Delivery] = weakref.WeakValueDictionary()
        self._receivers = (
            (signals.task_received, self._on_received),
            (signals.task_revoked, self._on_revoked),
            (signals.task_unknown, self._on_unknown),
            (signals.task_rejected, self._on_rejected),
        )

    def start(self) -> None:
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False)
        # Celery has no signal for a message that it cannot decode.
        consumer = self._worker.consumer
        on_decode_error = consumer.on_decode_error

        def rejected(message: Any, exc: Exception) -> None:
            self._never_began(message, reports.REJECTED, type(exc).__name__)
            on_decode_error(message, exc)

        consumer.on_decode_error = rejected

    def stop(self) -> None:
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)
        self._sender.stop()

    # Signals. Celery logs what a receiver raises, and goes on. ------------------------------------

    def _on_received(self, sender: Any, request: Any, **kwargs: Any) -> None:
        header = request.message.headers.get("zk_beat")
        if header is None or sender is not self._worker.consumer:
            return
        report = self._report(header, request.id)
        if report is not None:
            delivery = Delivery(self._sender, self._name(report), report, header, request)
            self._deliveries[id(header)] = delivery

    def _on_revoked(self, sender: Any, request: Any, expired: bool, **kwargs: Any) -> None:
        """Also before the request is received. `request` is a task's context, not a Request."""
        header = getattr(request, "zk_beat", None)
        if header is None or request.hostname != self._worker.hostname:
            return
        state = reports.EXPIRED if expired else reports.REVOKED
        delivery = self._deliveries.get(id(header))
        if delivery is not None:
            delivery.end(state)
        else:
            self._end(header, request.id, state)

    def _on_unknown(self, sender: Any, message: Any, **kwargs: Any) -> None:
        if sender is self._worker.consumer:
            self._never_began(message, reports.REJECTED, "NotRegistered")

    def _on_rejected(self, sender: Any, message: Any, exc: Any = None, **kwargs: Any) -> None:
        if sender is self._worker.consumer:
            error = None if exc is None else type(exc).__name__
            self._never_began(message, reports.REJECTED, error)

    # ----------------------------------------------------------------------------------------------

    def _never_began(self, message: Any, state: str, error: str | None) -> None:
        headers = message.headers
        if isinstance(headers, Mapping) and headers.get("zk_beat") is not None:
            self._end(headers["zk_beat"], headers.get("id"), state, error)

    def _end(self, header: Any, id: Any, state: str, error: str | None = None) -> None:
        report = self._report(header, id)
        if report is not None:
            self._sender.end(self._name(report), report.ended(state, None, error))

    def _name(self, report: Report) -> str:
        return delivery_of(report.id, self._sender.process, next(self._numbers))

    def _report(self, header: Any, id: Any) -> Report | None:
        """Returns the report on a message with this header; None if nobody asks for it."""
        wanted = header.get("report") if isinstance(header, Mapping) else None
        if wanted is None:
            return None
        if wanted != self._sender.inbox:
            self._warn("reports are wanted at %s, and this app's are at %s", wanted)
            return None
        try:
            report = Report.of(header, id, self._worker.hostname)
            self._sender.start()
        except (RootError, UnsupportedEnvironment) as exc:
            self._warn("%s; its beats are at %s", exc)
            return None
        return report

    def _warn(self, text: str, what: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = f"a run's outcome is not reported: {text}. Further ones are not logged"
            logger.warning(text, what, self._sender.inbox)


class Delivery:
    """One delivery of a tracked message to this worker. Puts itself before the functions of its
    request through which Celery's pool says what becomes of it.

    What these return or raise is passed on.
    """

    def __init__(
        self, sender: Sender, name: str, report: Report, header: object, request: Any
    ) -> None:
        self._sender, self._name, self._report = sender, name, report
        self._request = request
        #: Kept, so that no other object has its id.
        self._header = header
        #: When it was accepted, on boottime().
        self._began: float | None = None
        self._runtime: float | None = None
        self._is_over = False
        #: The last event of Celery's that says what becomes of a task that has not succeeded.
        self._event = ""
        self._is_requeued = False
        #: Celery decides what becomes of it.
        self._is_deciding = False
        self._on_accepted, request.on_accepted = request.on_accepted, self.on_accepted
        self._on_success, request.on_success = request.on_success, self.on_success
        self._on_failure, request.on_failure = request.on_failure, self.on_failure
        self._on_timeout, request.on_timeout = request.on_timeout, self.on_timeout
        self._send_event, request.send_event = request.send_event, self.send_event

    def on_accepted(self, pid: Any, time_accepted: float) -> Any:
        """Before Celery acknowledges the message, unless it does that late."""
        self._began = clock.boottime()
        if not self._is_over:  # with prefork the answer of a short task may be faster
            again = bool(self._request.task.acks_late)
            self._report = replace(self._report, again=again)
            self._sender.begin(self._name, self._report)
        return self._on_accepted(pid, time_accepted)

    def on_success(self, result: Any, **kwargs: Any) -> Any:
        """The task has ended, not necessarily well."""
        # A pool of threads passes on what is no Exception, such as SystemExit, as an ExceptionInfo.
        failed, value, self._runtime = result if isinstance(result, tuple) else (True, result, None)
        try:
            return self._on_success(result, **kwargs)
        finally:
            if failed:
                self._decide(value.exception)
            else:
                self.end(reports.SUCCESS)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        self._is_deciding = True
        try:
            return self._on_failure(exc_info, *args, **kwargs)
        finally:
            self._decide(exc_info.exception)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """A soft limit only has the task raise something."""
        self._is_deciding = not soft
        try:
            return self._on_timeout(soft, timeout)
        finally:
            if not soft:
                self._decide(TimeLimitExceeded(timeout))

    def send_event(self, type: str, **fields: Any) -> Any:
        """Celery calls this whether or not anybody listens to its events."""
        if type in ("task-rejected", "task-retried", "task-succeeded"):
            self._event, self._is_requeued = type, bool(fields.get("requeue"))
            if type == "task-rejected" and not self._is_deciding:  # before it began
                self.end(reports.REQUEUED if self._is_requeued else reports.REJECTED)
        return self._send_event(type, **fields)

    def _decide(self, exc: Any) -> None:
        """Ends what did not succeed, after Celery has decided what becomes of it."""
        self._is_deciding = False
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if self._event == "task-succeeded":  # and then its process was lost
            self.end(reports.SUCCESS)
        elif self._event == "task-retried":
            self.end(reports.RETRY, _name_of(exc))
        elif self._is_requeued or not self._request.acknowledged:
            self.end(reports.REQUEUED, _name_of(exc))
        elif isinstance(exc, Ignore):
            self.end(reports.IGNORED)
        elif isinstance(exc, Reject):
            self.end(reports.REJECTED)
        else:
            self.end(reports.FAILURE, _name_of(exc))

    def end(self, state: str, error: str | None = None) -> None:
        """Reports the end. The first one counts."""
        if self._is_over:
            return
        self._is_over = True
        runtime = self._runtime
        if runtime is None and self._began is not None:
            runtime = clock.boottime() - self._began
        self._sender.end(self._name, self._report.ended(state, runtime, error))


def _name_of(exc: Any) -> str:
    """Returns the type of an exception, also of one that could not be pickled, or that a retry is
    for."""
    if isinstance(exc, Retry) and exc.exc is not None:
        exc = exc.exc
    if isinstance(exc, UnpickleableExceptionWrapper):
        return str(exc.exc_cls_name)
    return type(exc).__name__
