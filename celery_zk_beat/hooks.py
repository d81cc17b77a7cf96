"""Hooks: code that wraps or overrides Celery's ``apply_entry``, ``apply_async`` or ``send_task``,
as monitoring tools do. We call hooks once for each run, when it is published for the first time.
What they put into the entry is in the message, also if the message is sent again.

Without hooks this costs one check per group of messages that leave together.
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

#: The run that this thread gives to hooks at the moment.
_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("zk_beat_call", default=None)
#: True while this thread calls Celery's own ``tick`` only for its wrappers.
_ticking: contextvars.ContextVar[bool] = contextvars.ContextVar("zk_beat_ticking", default=False)


def current_call() -> Call | None:
    """Returns the call in which hooks run in this thread, or None."""
    return _call.get()


class Hooked(Scheduler):
    """Stands between a scheduler's class and Celery's own. Only the master's runs may use
    `apply_entry` and `apply_async`: any other caller would bypass the election."""

    _tick_failed = ""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        call = _call.get()
        if call is None:
            _refuse(entry, "apply_entry")
            return
        apply_entry = super().apply_entry
        if is_own(apply_entry):  # we do the rest of it ourselves
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
        """Calls Celery's own ``tick`` if something wraps it. It finds nothing to do."""
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
    """True if anything wraps or overrides Celery's methods, in a subclass of ours or below us.
    Somebody may patch a class, an instance or a module at any time."""
    ways = scheduler.apply_entry, scheduler.apply_async, scheduler.send_task, scheduler.sync
    return not all(map(is_own, (*ways, Scheduler.apply_entry, Scheduler.apply_async)))


def is_patched(kind: type, name: str, below: type) -> bool:
    """True if somebody has replaced a method: the method that `kind` finds after the class `below`
    in its order comes from another module than the class that has it."""
    order = kind.__mro__
    holder = next(each for each in order[order.index(below) + 1 :] if name in vars(each))
    method = vars(holder)[name]
    if type(method) is not FunctionType:
        return True
    return bool(method.__globals__.get("__name__") != holder.__module__)


class Sender:
    """Sends the runs of a :class:`Hooked` scheduler. Make one for each group of messages that leave
    together: it looks for hooks once."""

    def __init__(self, scheduler: Hooked, producer: Any) -> None:
        self._scheduler, self._producer = scheduler, producer
        self._is_hooked = is_hooked(scheduler)
        apply_async = apply_plainly if self._is_hooked else Scheduler.apply_async
        self._plain = messages.Sender(
            scheduler, producer, functools.partial(apply_async, scheduler)
        )

    def send(self, attempt: Attempt) -> None:
        """Raises as :meth:`.messages.Sender.send`."""
        if attempt.before is not None:
            self._plain.send(attempt.before.put_on(attempt.entry), attempt.until_due)
        elif self._is_hooked:
            attempt.until_due()
            Call(attempt, self._scheduler, self._producer, self._send_plainly).through(
                self._scheduler.apply_entry
            )
        else:
            self._plain.send_plain(attempt)

    def _send_plainly(self, entry: Any) -> None:
        self._plain.send(entry, lambda: None)


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
        """Raises what sending raises, and LookupError if the hooks sent nothing."""
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
        """Sends the entry as the hooks around ``apply_entry`` have changed it, by `apply_async`. It
        keeps an error: Celery's own ``apply_entry`` would only log it. `is_hook`: if `apply_async`
        itself fails, the run is sent all the same."""
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
