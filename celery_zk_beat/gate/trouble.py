"""Logs, now and then, that another scheduler's store is away, in the place of each line of its own.

A class that looks at its database several times a second has a traceback for each look that fails.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from .. import clock
from ..log import get_logger

logger = get_logger(__name__)

#: Seconds between two log lines about what lasts, and after which it is over if nothing is heard of
#: it any more.
_REMIND_EVERY, _OVER_AFTER = 60.0, 5.0


class Trouble(logging.Filter):
    """What one scheduler complains of, also when it is made anew meanwhile. For one thread. It is a
    filter of the class's loggers: what they say of an error of its store is left to it.

    Args:
        name: of the scheduler's class.
        is_away: tells the errors of a store that does not answer.
    """

    def __init__(self, name: str, is_away: Callable[[BaseException], bool]) -> None:
        super().__init__()
        self._name, self._is_away = name, is_away
        #: On boottime(): when it began, None while all is well; when it is to be said again; when
        #: something was heard of it last.
        self._since: float | None = None
        self._remind_at = self._last_at = 0.0
        self._said: set[str] = set()
        #: How often something was complained of.
        self.count = 0
        self._loggers: list[logging.Logger] = []

    @property
    def lasts(self) -> bool:
        """True since something was complained of, until it is over."""
        return self._since is not None

    def listen(self, scheduler: type) -> None:
        """Bounds what the modules of a scheduler's class log, until :meth:`stop`."""
        for kind in scheduler.__mro__:
            found = getattr(sys.modules.get(kind.__module__), "logger", None)
            if isinstance(found, logging.Logger) and found not in self._loggers:
                # Of a scheduler that was at work before, and was not stopped: one is at a time.
                for other in [each for each in found.filters if isinstance(each, Trouble)]:
                    found.removeFilter(other)
                found.addFilter(self)
                self._loggers.append(found)

    def stop(self) -> None:
        while self._loggers:
            self._loggers.pop().removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if error is None or record.levelno < logging.WARNING or not self._is_away(error):
            return True
        self.add("continues with what it has read, because its store does not answer", error)
        return False

    def add(self, what: str, exc: BaseException) -> None:
        """Says what the scheduler does because of an error: when that begins, and once a minute.
        What is no matter of its store gets a traceback, once."""
        now = clock.boottime()
        self._last_at = now
        self.count += 1
        if self._since is None:
            self._since, self._remind_at = now, now + _REMIND_EVERY
        is_away = self._is_away(exc)
        kind = what if is_away else f"{what}{type(exc).__name__}"
        if kind not in self._said:
            self._said.add(kind)
            told = None if is_away else exc
            logger.error("%s %s: %s: %s", self._name, what, type(exc).__name__, exc, exc_info=told)
        elif now >= self._remind_at:
            self._remind_at = now + _REMIND_EVERY
            logger.error(
                "%s %s, for %.0f s now: %s: %s",
                self._name,
                what,
                now - self._since,
                type(exc).__name__,
                exc,
            )

    def turned(self) -> None:
        """The scheduler has ticked."""
        if self._since is not None and clock.boottime() - self._last_at > _OVER_AFTER:
            lasted = self._last_at - self._since
            logger.warning("%s works again, after %.0f s of this", self._name, lasted)
            self._since = None
            self._said.clear()
