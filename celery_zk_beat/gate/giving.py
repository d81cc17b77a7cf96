"""What another scheduler's class gives to ``apply_async``, and how it is sent: now, or again."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Protocol

from celery.beat import Scheduler

from ..log import get_logger
from ..messages import addressed, copied, is_own, send_by_celery

logger = get_logger(__name__)


class Given(NamedTuple):
    """What a scheduler's class gave to ``apply_async``: an entry, as it has perhaps changed it, and
    arguments of its own. `call`: how many runs its ``apply_entry`` has given before."""

    entry: Any
    arguments: Mapping[str, Any]
    call: int


@dataclass
class _Again:
    """A run that is given once more: the first that is for `call`, under what `addressed` says."""

    addressed: Any
    call: int
    given: int = 0
    is_sent: bool = False
    error: Exception | None = None


class Sends(Protocol):
    """The gate, as far as sending needs it."""

    @property
    def producer(self) -> Any:
        """Of messages, for the broker."""


class Giving(Scheduler):
    """Goes before a scheduler class among the bases of another."""

    gate: Sends
    entries: dict[str, Any]
    #: How many runs its ``apply_entry``, if that is at work, has given so far.
    _calls: int | None = None
    _again: _Again | None = None

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self._calls = 0
        try:
            super().apply_entry(entry, producer=producer)
        finally:
            self._calls = None

    def send(
        self, entry: Any, until_due: Callable[[], object], arguments: Mapping[str, Any]
    ) -> None:
        """Sends an entry, in the manner of the scheduler's class, when `until_due` returns.
        `arguments`: of its own. Raises as Celery's own."""
        until_due()
        apply_async = functools.partial(super().apply_async, **arguments)
        send_by_celery(apply_async, self.app, self.gate.producer, entry)

    def send_again(self, entry: Any, until_due: Callable[[], object], call: int) -> None:
        """The same for a run that is not given at this very moment: it waited, or an operator asks
        for it. What an ``apply_entry`` of its class's own does to the entry, or around the call,
        it does again; of the runs that it gives then, that of `call` is sent. LookupError where
        there is none."""
        if is_own(super().apply_entry):
            self.send(entry, until_due, {})
            return
        until_due()
        again = self._again = _Again(entry, call)
        plain = copied(self.entries[entry.name])
        plain.options = dict(plain.options)
        try:
            super().apply_entry(plain, producer=self.gate.producer)
        except Exception:
            if not again.is_sent:
                raise
            logger.exception("%s: apply_entry failed after its message was sent", entry.name)
        finally:
            self._again = None
        if again.error is not None:
            raise again.error
        if not again.is_sent:
            raise LookupError(f"apply_entry gave {again.given} runs this time, not {call + 1}")

    def given(self, entry: Any, arguments: Mapping[str, Any]) -> Given | None:
        """What its class gives now; None where it gives it again, and all is done."""
        given = Given(entry, arguments, self._calls or 0)
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
        of = again.addressed.options
        entry = addressed(given.entry, of["task_id"], of["headers"]["zk_beat"])
        try:
            self.send(entry, lambda: None, given.arguments)
            again.is_sent = True
        except Exception as exc:
            again.error = exc
