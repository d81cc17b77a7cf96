"""Celery's result backend as a source of outcomes: the master asks it for the results of the runs
that are open.

A thread of its own asks, because a result backend that is away may block for minutes. It only
reads. The results stay as they are, for whoever else waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from celery import states
from celery.app import backends
from celery.backends.base import BaseKeyValueStoreBackend, DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.utils.serialization import UnpickleableExceptionWrapper

from .. import clock
from ..dispatcher import Dispatcher
from ..errors import SettingsError
from ..log import get_logger
from ..policies import ALLOW
from ..runs import LONGEST_WORKER, Run, from_milliseconds
from ..settings import BACKEND, Settings, as_written
from . import reports
from .deliveries import Deliveries, Delivery, Key
from .reports import Report

logger = get_logger(__name__)

#: Most results that are asked for at once.
_AT_ONCE = 500
#: Seconds between two looks for the result of a run: as this share of the time that it has been
#: open, but within these limits. The second limits are for entries with `overlap` or deadlines.
_SHARE, _LIMITS, _CLOSE_LIMITS = 0.1, (0.5, 10.0), (0.2, 1.0)
#: Seconds until we ask again for what could not be read, and between two warnings.
_RETRY_AFTER, _WARN_EVERY = 5.0, 60.0
#: Seconds after which a new master decides without the backend, if that does not answer.
_PATIENCE = 5.0
#: After so many errors in a row the backend is taken for away.
_MOST_ERRORS = 3
#: Celery's states of a result to those of a report. Others, such as RETRY, say nothing new.
_STATES = {
    states.STARTED: reports.STARTED,
    states.SUCCESS: reports.SUCCESS,
    states.FAILURE: reports.FAILURE,
    states.REVOKED: reports.REVOKED,
    states.REJECTED: reports.REJECTED,
    states.IGNORED: reports.IGNORED,
}


def check_backend(app: Any, settings: Settings) -> None:
    """Checks that the app has a result backend which another process can read, where outcomes come
    from it. Makes none: some connect at once.

    Raises:
        SettingsError: it has none, or one of which only the sender of a message can read results.
    """
    if settings.outcomes != BACKEND:
        return
    wanted = f"{settings.prefix}outcomes = {BACKEND!r} needs"
    shown = as_written(app.conf, "result_backend")
    backend = app.backend_cls or app.conf.result_backend
    try:
        kind, _ = backends.by_url(backend, app.loader)
    except Exception as exc:
        raise SettingsError(f"{wanted} {shown}, which cannot be used: {exc}") from None
    if issubclass(kind, DisabledBackend):
        raise SettingsError(f"{wanted} {shown}, which is not set")
    if issubclass(kind, RPCBackend):
        raise SettingsError(
            f"{wanted} another {shown} than rpc://: it sends a result to whoever sent the message, "
            "and beat may be another process by then"
        )


def why_not_told(app: Any, entry: Any, has_start: bool) -> Iterator[str]:
    """Yields what the result backend cannot tell of an entry's tracked runs. `has_start`: its
    policy has `start_within`."""
    task, name = app.tasks.get(entry.task), entry.task
    options = entry.options or {}
    if options.get("task_id"):
        yield "its runs have one task id, so what becomes of each is unknown"
        return
    ignored = app.conf.task_ignore_result if task is None else task.ignore_result
    if options.get("ignore_result", ignored):
        yield f"the results of {name} are ignored, so what becomes of its runs is unknown"
    if has_start and not (app.conf.task_track_started if task is None else task.track_started):
        yield (
            f"'start_within' needs task_track_started, or {name} counts as started only when it "
            "has ended"
        )


@dataclass(frozen=True)
class _Asked:
    """A run whose result is asked for.

    Attributes:
        since: when it was dispatched, on boottime().
        is_close: its entry has `overlap` or deadlines.
    """

    key: Key
    id: str
    since: float
    is_close: bool

    def pause(self, now: float) -> float:
        """Seconds until its result is asked for again."""
        least, most = _CLOSE_LIMITS if self.is_close else _LIMITS
        return min(max(least, _SHARE * (now - self.since)), most)


class BackendDeliveries(Deliveries):
    """Asks for results while runs are open. For the dispatch loop's thread.

    Args:
        dispatcher: tells the task ids and policies of runs.
    """

    def __init__(self, app: Any, dispatcher: Dispatcher) -> None:
        self._app, self._dispatcher = app, dispatcher
        self._asking: _Asking | None = None
        self._has_warned = self._is_outdated = False

    @property
    def stale(self) -> bool:
        return self._is_outdated or (self._asking is not None and self._asking.has_news)

    def forget(self) -> None:
        if self._asking is not None:
            self._asking.close()
        self._asking, self._is_outdated = None, False

    def read(self, open_runs: Iterable[Key]) -> Mapping[str, Delivery]:
        self._is_outdated = False
        asking = self._asking
        if asking is not None:
            asking.has_news = False  # before what is found is read
        asked = {each.key: each for each in map(self._asked, open_runs) if each is not None}
        if asking is None:
            if not asked:
                return {}
            asking = self._asking = _Asking(self._app, self._server_time, self._dispatcher.wake)
        asking.ask(asked)
        return {each.name: each for key, each in asking.found.items() if key in asked}

    def has_looked(self, key: Key) -> bool:
        asking = self._asking
        return asking is None or key in asking.tried or asking.is_settled

    def outdated(self, name: str) -> None:
        self._is_outdated = True

    def _server_time(self) -> float:
        return self._dispatcher.election.session.server_time

    def _asked(self, key: Key) -> _Asked | None:
        """Returns what to ask for; None if the result says nothing of this run alone."""
        asking, dispatcher = self._asking, self._dispatcher
        known = None if asking is None else asking.asked.get(key)
        if known is not None:
            return known
        name, (number, due_ms) = key
        entry, state = dispatcher.source.entries.get(name), dispatcher.ledger.state(name)
        if entry is not None:
            self._look_at_entry(name, entry)
            if entry.options.get("task_id"):
                return None
        found = [] if state is None else [past for past in state.open if past.run == key[1]]
        at = found[0].at.timestamp() if found else self._server_time()
        since = clock.boottime() - max(0.0, self._server_time() - at)
        due = from_milliseconds(due_ms)
        run = Run(name, number or 0, due, due, dispatcher.epoch)
        policy = dispatcher.policies.of(name)
        is_close = policy is not None and (
            policy.overlap != ALLOW
            or policy.start_within is not None
            or policy.finish_within is not None
        )
        return _Asked(key, dispatcher.task_id(run), since, is_close)

    def _look_at_entry(self, name: str, entry: Any) -> None:
        """Warns once about what a result backend cannot tell."""
        policy = self._dispatcher.policies.of(name)
        has_start = policy is not None and policy.start_within is not None
        if not self._has_warned:
            for text in why_not_told(self._app, entry, has_start):
                self._has_warned = True
                logger.warning("%s: %s. Further entries are not logged", name, text)


class _Asking:
    """The thread that asks, during one term. It begins with the first run. All attributes without
    an underscore belong to two threads: each is one that is assigned.

    Args:
        server_time: tells ZooKeeper's clock, in seconds since 1970.
        wake: is called by the thread if it has found something.

    Attributes:
        asked: the runs to ask for.
        found: what is known of them.
        tried: those that were asked for at least once.
        has_news: something was found since somebody set it to False.
    """

    def __init__(
        self, app: Any, server_time: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._app, self._server_time, self._wake = app, server_time, wake
        self.asked: Mapping[Key, _Asked] = {}
        self.found: Mapping[Key, Delivery] = {}
        self.tried: Set[Key] = frozenset()
        self.has_news, self._begun = False, clock.boottime()
        self._is_over, self._news = False, clock.Wakeup()
        #: When to ask for each run, on boottime().
        self._next: dict[Key, float] = {}
        self._backend: Any = None
        self._warned_at: float | None = None
        self._thread: clock.Thread | None = None

    def ask(self, asked: Mapping[Key, _Asked]) -> None:
        """Asks for the results of these runs, and of no others."""
        is_more = asked.keys() - self.asked.keys()
        self.asked = asked
        if is_more:
            self._news.set()
        if self._thread is None:
            self._thread = clock.thread(self._run, "zk-beat-results")
            self._thread.start()

    @property
    def is_settled(self) -> bool:
        """True some seconds after it began."""
        return clock.boottime() - self._begun > _PATIENCE

    def close(self) -> None:
        """Has the thread end soon. What it finds after this is of no use to anybody."""
        self._is_over = True
        self._news.set()

    def _run(self) -> None:
        while not self._is_over:
            self._turn()
            self._news.wait(self._left())

    def _left(self) -> float | None:
        """Seconds until the next look; None: not before there is another run."""
        if not self._next:
            return None
        return max(0.0, min(self._next.values()) - clock.boottime())

    def _turn(self) -> None:
        now, asked = clock.boottime(), self.asked
        found = {key: each for key, each in self.found.items() if key in asked}
        self.found = found
        self._next = {
            key: self._next.get(key, now if now > each.since + each.pause(now) else now + 0.2)
            for key, each in asked.items()
            if key not in found or not _is_final(found[key])
        }
        wanted = sorted((at, asked[key].id, key) for key, at in self._next.items() if at <= now)
        for start in range(0, len(wanted), _AT_ONCE):
            if self._is_over:
                return
            self._look_at([asked[key] for _, _, key in wanted[start : start + _AT_ONCE]])

    def _look_at(self, wanted: Sequence[_Asked]) -> None:
        """Asks for these results, and notes what is new."""
        now = clock.boottime()
        for each in wanted:
            self._next[each.key] = now + _RETRY_AFTER / 2  # unless it is read
        new: dict[Key, Delivery] = {}
        for each, meta in self._read(wanted):
            self._next[each.key] = clock.boottime() + each.pause(now)
            delivery = _delivery(each, meta, self._server_time())
            if delivery is None:
                continue
            known = self.found.get(each.key)
            if known is None or known.report != delivery.report:
                new[each.key] = delivery
            if _is_final(delivery):
                del self._next[each.key]
        if new:
            self.found = {**self.found, **new}
        if not self.is_settled:
            self.tried = self.tried | {each.key for each in wanted}
        if new:
            self.has_news = True
            self._wake()

    # The backend ----------------------------------------------------------------------------------

    def _read(self, wanted: Sequence[_Asked]) -> Iterator[tuple[_Asked, Mapping[str, Any]]]:
        """Yields the results that can be read."""
        try:
            if self._backend is None:
                # One of this thread's own: that of the app may be in use.
                self._backend = self._app._get_backend()
            backend = self._backend
            if isinstance(backend, BaseKeyValueStoreBackend):
                payloads = _payloads(backend, [each.id for each in wanted])
                read = [_decoding(backend, payload) for payload in payloads]
            else:
                read = [_asking(backend, each.id) for each in wanted]
        except Exception as exc:
            self._failed(exc)
            return
        errors = 0
        for each, reading in zip(wanted, read):
            if self._is_over:
                return
            try:
                meta = reading()
            except Exception as exc:
                self._failed(exc, each)
                # Later than those that it kept from being read.
                self._next[each.key] = clock.boottime() + _RETRY_AFTER
                errors += 1
                if errors >= _MOST_ERRORS and not isinstance(backend, BaseKeyValueStoreBackend):
                    return
                continue
            errors = 0
            yield each, meta

    def _failed(self, exc: Exception, asked: _Asked | None = None) -> None:
        """One error is as another: the next look has a new connection."""
        self._backend = None
        now = clock.boottime()
        if self._warned_at is not None and now - self._warned_at < _WARN_EVERY:
            return
        self._warned_at = now
        of = "s of runs" if asked is None else f" of {asked.key[0]}, task id {asked.id},"
        text = "the result%s cannot be read from the result backend: %s: %s"
        logger.warning(text, of, type(exc).__name__, exc)


def _payloads(backend: Any, ids: Sequence[str]) -> list[Any]:
    """Reads the results from a key-value store as they are, all at once if it can; None where there
    is none yet."""
    keys = [backend.get_key_for_task(id) for id in ids]
    try:
        values = backend.mget(keys)
    except NotImplementedError:
        return [backend.get(key) for key in keys]
    if isinstance(values, Mapping):
        return [values.get(key) for key in keys]
    return list(values)


def _decoding(backend: Any, payload: Any) -> Callable[[], Mapping[str, Any]]:
    # Celery's own reading would make an exception of what is only read here.
    return lambda: backend.decode(payload) if payload else {}


def _asking(backend: Any, id: str) -> Callable[[], Mapping[str, Any]]:
    # Not get_task_meta(), which tries again for ever with result_backend_always_retry.
    return lambda: backend._get_task_meta_for(id) or {}


def _is_final(delivery: Delivery) -> bool:
    return delivery.report is not None and delivery.report.is_final


def _delivery(asked: _Asked, meta: Mapping[str, Any], now: float) -> Delivery | None:
    """Returns what a result says; None if nothing. `now`: by ZooKeeper's clock."""
    state, result = _STATES.get(str(meta.get("status"))), meta.get("result")
    if state is None:
        return None
    name, (number, due_ms) = asked.key
    error = None
    if state not in (reports.STARTED, reports.SUCCESS):
        error, arguments = _error(result)
        if state == reports.REVOKED:
            state = reports.EXPIRED if arguments == ["expired"] else state
            error = None
    worker = meta.get("worker")
    if worker is None and state == reports.STARTED and isinstance(result, Mapping):
        worker = result.get("hostname")
    # Nobody knows whether the worker that began it is alive, or whether the message comes again.
    report = Report(
        entry=name,
        run=number or 0,
        due=from_milliseconds(due_ms),
        id=asked.id,
        worker=worker[:LONGEST_WORKER] if isinstance(worker, str) else "",
        state=state,
        again=state == reports.STARTED,
    )
    if report.is_final:
        report = report.ended(state, None, error)
    return Delivery(asked.id, report, now)


def _error(result: Any) -> tuple[str | None, list[Any]]:
    """Returns the type of an exception in a result, and its arguments."""
    if isinstance(result, Mapping):  # as JSON has it
        kind, arguments = result.get("exc_type"), result.get("exc_message")
        arguments = [*arguments] if isinstance(arguments, (list, tuple)) else [arguments]
        return (kind if isinstance(kind, str) else None), arguments
    if isinstance(result, UnpickleableExceptionWrapper):
        return str(result.exc_cls_name), []
    if isinstance(result, BaseException):
        return type(result).__name__, [*result.args]
    return None, []
