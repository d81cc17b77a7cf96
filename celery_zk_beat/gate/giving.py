"""Takes what another scheduler's class passes to ``apply_async``, and sends it now or again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from celery.beat import Scheduler

from ..hooks import Call, current_call, is_patched
from ..log import get_logger, telling
from ..messages import Attempt, addressed, apply_plainly, copied, is_own, ours, send_by_celery

logger = get_logger(__name__)


class Given(NamedTuple):
    """What a scheduler's class passed to ``apply_async``: an entry, which it may have changed, and
    its own arguments. `call`: how many runs its ``apply_entry`` has passed before. `apply_entry`:
    Celery's own, if a tool wraps that; it has not been called yet."""

    entry: Any
    arguments: Mapping[str, Any]
    call: int
    apply_entry: Callable[..., object] | None = None


@dataclass
class _Again:
    """A run to send again, as `attempt` says. If the class passes several runs, number `call` is
    the one."""

    attempt: Attempt
    call: int
    given: int = 0
    is_sent: bool = False
    error: Exception | None = None


class Sends(Protocol):
    """The gate, as far as sending needs it."""

    @property
    def producer(self) -> Any:
        """The producer, which sends messages to the broker."""


class Innermost(Scheduler):
    """Goes between a scheduler's class and Celery's own. A tool that wraps Celery's own must be
    called when a run is claimed. It must not be called when the class calls it, which may make
    several runs of an entry."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        apply_entry = super().apply_entry
        if is_own(apply_entry):
            apply_entry(entry, producer=producer)
            return
        try:
            self.give_to_hooks(entry, apply_entry)
        except Exception:  # as Celery does: it would call apply_async here
            logger.exception("%s: its run cannot be dispatched", entry.name)

    def give_to_hooks(self, entry: Any, apply_entry: Callable[..., object]) -> None:
        raise NotImplementedError

    @property
    def hooked_apply_entry(self) -> Callable[..., object] | None:
        """Celery's own, if a tool wraps it."""
        apply_entry: Callable[..., object] = super().apply_entry
        return None if is_own(apply_entry) else apply_entry


class Giving(Scheduler):
    """Comes before a scheduler class among the bases of a class."""

    gate: Sends
    entries: dict[str, Any]
    #: How many runs its ``apply_entry``, if that is running, has passed so far.
    _calls: int | None = None
    _again: _Again | None = None

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self._calls = 0
        try:
            super().apply_entry(entry, producer=producer)
        finally:
            self._calls = None

    def apply_async(
        self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> None:
        """A class calls it for each run: this claims the run. Then the classes between us and
        Celery's own call it, when the run is claimed: this sends it."""
        if (call := current_call()) is not None:
            apply_async = functools.partial(super().apply_async, **kwargs)
            call.give(entry, apply_async, is_hook=self.has_patched_apply_async)
        elif (given := self.given(entry, kwargs)) is not None:
            self.claim(given, advance)

    def give_to_hooks(self, entry: Any, apply_entry: Callable[..., object]) -> None:
        """Claims a run of an entry that Celery's ``apply_entry`` will send."""
        if (given := self.given(entry, {}, apply_entry)) is not None:
            self.claim(given, False)

    def claim(self, given: Given, advance: bool) -> None:
        raise NotImplementedError

    def send(self, attempt: Attempt, given: Given) -> None:
        """Sends what its class passed, in the way of that class, when the run is due. Raises as
        Celery's own."""
        attempt.until_due()
        apply_async = functools.partial(super().apply_async, **given.arguments)
        if self.has_patched_apply_async:
            apply_async = functools.partial(apply_plainly, self)
        plainly = functools.partial(send_by_celery, apply_async, self.app, self.gate.producer)
        through = given.apply_entry
        if through is None and self.has_patched_apply_async:
            through = functools.partial(self.apply_async, **given.arguments)
        if attempt.before is not None:
            plainly(attempt.before.put_on(attempt.entry))
        elif through is None:
            plainly(attempt.entry)
        else:
            Call(attempt, self, self.gate.producer, plainly).through(through)

    @property
    def has_patched_apply_async(self) -> bool:
        """True if a tool wraps ``apply_async``, as with RedBeat, which does not use
        ``apply_entry``. The tool must be called once; what belongs to the class may be called
        again."""
        return is_patched(type(self), "apply_async", Giving)

    def send_again(self, attempt: Attempt, call: int, hooked: Callable[..., object] | None) -> None:
        """Does the same for a run that the class does not pass at this moment: it waited, or an
        operator asks for it. If its class has its own ``apply_entry``, this calls it again, for
        what that does to the entry or around the call. Of the runs that it passes then, the run of
        `call` is sent. Raises LookupError if there is none. `hooked`: Celery's ``apply_entry``, if
        a tool wraps that."""
        if is_own(super().apply_entry):
            self.send(attempt, Given(attempt.entry, {}, 0, hooked))
            return
        attempt.until_due()
        again = self._again = _Again(attempt, call)
        plain = copied(self.entries[attempt.entry.name])
        plain.options = dict(plain.options)
        try:
            super().apply_entry(plain, producer=self.gate.producer)
        except Exception:
            if not again.is_sent:
                raise
            text = "%s: apply_entry failed after its message was sent"
            told = telling(
                "raised", entry=plain.name, task_id=again.attempt.entry.options["task_id"]
            )
            logger.exception(text, plain.name, extra=told)
        finally:
            self._again = None
        if again.error is not None:
            raise again.error
        if not again.is_sent:
            raise LookupError(f"apply_entry gave {again.given} runs this time, not {call + 1}")

    def given(
        self,
        entry: Any,
        arguments: Mapping[str, Any],
        apply_entry: Callable[..., object] | None = None,
    ) -> Given | None:
        """Returns what its class passes now. None if it passes it once more and all is done."""
        given = Given(entry, arguments, self._calls or 0, apply_entry)
        if self._again is not None:
            self._give_again(self._again, given)
            return None
        if self._calls is not None:
            self._calls += 1
        return given

    def _give_again(self, again: _Again, given: Given) -> None:
        """Keeps an error for :meth:`send_again`: Celery's ``apply_entry`` only logs it."""
        is_it, again.given = again.given == again.call, again.given + 1
        if not is_it:
            return
        attempt = again.attempt
        of = attempt.entry.options
        attempt.entry = addressed(given.entry, of["task_id"], ours(of["headers"]))
        try:
            self.send(attempt, given)
            again.is_sent = True
        except Exception as exc:
            again.error = exc
