"""What wraps or overrides Celery's ``apply_entry``, ``apply_async`` or ``send_task``, as tools do
that watch a beat: it is called once for each run, when that is published for the first time, and
what it puts into the entry is in the message, also when that is sent again.

Where nothing does, all this costs is a look, once for messages that leave together.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from celery.beat import Scheduler, SchedulingError

from . import messages
from .errors import ZkBeatError
from .log import get_logger, telling
from .messages import Attempt, Made, addressed, apply_plainly, is_own, ours, send_by_celery

logger = get_logger(__name__)

#: The run that is given to hooks at this very moment, by this very thread.
_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("zk_beat_call", default=None)
#: Celery's own ``tick`` is called for nothing but what wraps it, by this very thread.
_ticking: contextvars.ContextVar[bool] = contextvars.ContextVar("zk_beat_ticking", default=False)


def current_call() -> Call | None:
    """Where hooks are at work, by this thread."""
    return _call.get()


class Hooked(Scheduler):
    """Goes between a scheduler's class and Celery's own. Both ways in are for the master's runs
    alone: whoever else calls one would send past the election."""

    _tick_failed = ""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        call = _call.get()
        if call is None:
            _refuse(entry, "apply_entry")
            return
        apply_entry = super().apply_entry
        if is_own(apply_entry):  # what it does beyond this is done already, or to come
            self.apply_async(entry, producer=producer, advance=False)
        else:
            apply_entry(entry, producer=producer)

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> None:
        call = _call.get()
        if call is None:
            _refuse(entry, "apply_async")
            return
        call.give(entry, functools.partial(super().apply_async, **kwargs))

    def tick_for_hooks(self) -> None:
        """Calls Celery's own ``tick``, which finds nothing to do, where something wraps that."""
        tick = super().tick
        if is_own(tick):
            return
        self._heap: list[Any] | None = []
        token = _ticking.set(True)
        try:
            tick()
        except Exception as exc:
            why = f"{type(exc).__name__}: {exc}"
            if why != self._tick_failed:
                self._tick_failed = why
                logger.error("a wrapper of tick raised %s; this is logged once", why)
        finally:
            _ticking.reset(token)

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        return _ticking.get() or bool(super().schedules_equal(old_schedules, new_schedules))


def _refuse(entry: Any, name: str) -> None:
    logger.warning(
        "%s: %s was called outside a run of the master, so nothing is sent: another beat might do "
        "the same. To do something once, when a beat is elected, use the signal beat_elected",
        getattr(entry, "name", entry),
        name,
    )


def is_hooked(scheduler: Scheduler) -> bool:
    """True where anything is between us and Celery's own, before us or behind us: a class, an
    instance or a module may be changed at any time."""
    ways = scheduler.apply_entry, scheduler.apply_async, scheduler.send_task, scheduler.sync
    return not all(map(is_own, (*ways, Scheduler.apply_entry, Scheduler.apply_async)))


def is_patched(kind: type, name: str, below: type) -> bool:
    """True where a method, as a class finds it below another one in its order, is not of the class
    that has it: somebody has put it there."""
    order = kind.__mro__
    holder = next(each for each in order[order.index(below) + 1 :] if name in vars(each))
    method = vars(holder)[name]
    if type(method) is not FunctionType:
        return True
    return bool(method.__globals__.get("__name__") != holder.__module__)


class Sender:
    """Sends the runs of a :class:`Hooked` scheduler. For messages that leave together: hooks are
    looked for once."""

    def __init__(self, scheduler: Hooked, producer: Any) -> None:
        self._scheduler, self._producer = scheduler, producer
        self._is_hooked = is_hooked(scheduler)
        apply_async = apply_plainly if self._is_hooked else Scheduler.apply_async
        self._plain = messages.Sender(
            scheduler, producer, functools.partial(apply_async, scheduler)
        ).send

    def send(self, attempt: Attempt) -> None:
        """Raises as :meth:`.messages.Sender.send`."""
        if attempt.before is not None:
            self._plain(attempt.before.put_on(attempt.entry), attempt.until_due)
        elif self._is_hooked:
            attempt.until_due()
            Call(attempt, self._scheduler, self._producer, self._send_plainly).through(
                self._scheduler.apply_entry
            )
        else:
            self._plain(attempt.entry, attempt.until_due)

    def _send_plainly(self, entry: Any) -> None:
        self._plain(entry, lambda: None)


class Call:
    """Gives a run to hooks. `plainly` sends an entry past them."""

    def __init__(
        self,
        attempt: Attempt,
        scheduler: Scheduler,
        producer: Any,
        plainly: Callable[[Any], object],
    ) -> None:
        self._attempt, self._scheduler, self._producer = attempt, scheduler, producer
        self._plainly = plainly
        self._given = 0
        self._error: Exception | None = None

    def through(self, apply_entry: Callable[..., object]) -> None:
        """Raises what sending raises; LookupError where the hooks let nothing be sent."""
        entry = addressed(self._attempt.entry, *self._address)  # a copy that they may change
        token = _call.set(self)
        try:
            apply_entry(entry, producer=self._producer)
        except Exception as exc:
            self._note_failed(entry, "apply_entry", exc)
            if not self._given:
                self._give_plainly()
        finally:
            _call.reset(token)
        if self._error is not None:
            raise self._error
        if not self._given:
            raise LookupError("apply_entry was called, and sent nothing")

    @property
    def _address(self) -> tuple[str, Any]:
        options = self._attempt.entry.options
        return options["task_id"], ours(options["headers"])

    def give(self, entry: Any, apply_async: Callable[..., object], *, is_hook: bool = True) -> None:
        """Sends what the hooks around ``apply_entry`` have made of the entry, by `apply_async`. It
        keeps what that raises: Celery's own ``apply_entry`` would only log it. `is_hook`: what
        `apply_async` raises by itself is no reason not to send."""
        self._given += 1
        if self._given > 1:
            text = "%s: hooks made more than one message for its run: this one is not sent"
            logger.error(text, entry.name, extra=self._telling(entry))
            return
        made = addressed(entry, *self._address)
        try:
            self._send(made, apply_async, is_hook)
        except Exception as exc:
            self._error = exc
        finally:
            self._attempt.made = Made.of(made, self._attempt.entry)

    def _send(self, entry: Any, apply_async: Callable[..., object], is_hook: bool) -> None:
        handed = self._attempt.handed()
        try:
            send_by_celery(apply_async, self._scheduler.app, self._producer, entry)
        except (SchedulingError, ZkBeatError):
            raise
        except Exception as exc:
            if not is_hook:
                raise
            self._note_failed(entry, "apply_async", exc)
            if self._attempt.handed() == handed:
                self._plainly(entry)

    def _give_plainly(self) -> None:
        self._given, self._attempt.made = 1, Made({})
        try:
            self._plainly(self._attempt.entry)
        except Exception as exc:
            self._error = exc

    def _note_failed(self, entry: Any, name: str, exc: Exception) -> None:
        logger.error(
            "%s: a wrapper or override of %s raised %s: %s; the run is published all the same",
            entry.name,
            name,
            type(exc).__name__,
            exc,
            extra=self._telling(entry),
        )

    def _telling(self, entry: Any) -> dict[str, object]:
        return telling("raised", entry=entry.name, task_id=self._address[0])
