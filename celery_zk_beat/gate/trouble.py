"""Logs now and then that another scheduler's store does not answer, and suppresses the scheduler's
own lines about that.

A class that looks at its database several times a second logs a traceback each time that fails.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from .. import clock
from ..log import get_logger

logger = get_logger(__name__)

#: Seconds between two log lines about trouble that lasts. Seconds without a complaint after which
#: it is over.
_REMIND_EVERY, _OVER_AFTER = 60.0, 5.0


class Trouble(logging.Filter):
    """The complaints of one scheduler, also if it is made again in between. For one thread. It is a
    filter of the class's loggers: it takes what they log about an error of the store.

    Args:
        name: the name of the scheduler's class.
        is_away: returns True for errors which mean that the store does not answer.
    """

    def __init__(self, name: str, is_away: Callable[[BaseException], bool]) -> None:
        super().__init__()
        self._name, self._is_away = name, is_away
        #: On boottime(): when the trouble began, None if there is none; when to log it again; when
        #: the last complaint came.
        self._since: float | None = None
        self._remind_at = self._last_at = 0.0
        self._said: set[str] = set()
        #: The number of complaints.
        self.count = 0
        self._loggers: list[logging.Logger] = []

    @property
    def lasts(self) -> bool:
        """True from the first complaint until the trouble is over."""
        return self._since is not None

    def listen(self, scheduler: type) -> None:
        """Limits what the modules of a scheduler's class log, until :meth:`stop`."""
        for kind in scheduler.__mro__:
            found = getattr(sys.modules.get(kind.__module__), "logger", None)
            if isinstance(found, logging.Logger) and found not in self._loggers:
                # An earlier scheduler was not stopped: only one works at a time.
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
        """Logs what the scheduler does because of an error: at once, then once a minute. If the
        store is not the cause, the first line has a traceback."""
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
        """Notes that the scheduler has ticked. Logs the end of the trouble if it is over."""
        if self._since is not None and clock.boottime() - self._last_at > _OVER_AFTER:
            lasted = self._last_at - self._since
            logger.warning("%s works again, after %.0f s of this", self._name, lasted)
            self._since = None
            self._said.clear()
