"""Time, threads, and how one thread wakes another: the only module that imports :mod:`time`,
:mod:`threading` or :mod:`queue`.

Others call it by its name, as in ``clock.now()``, and import nothing out of it, so that a test
replaces time by replacing the names of this one module.

Threads wake each other through a :class:`SimpleQueue`, never through a lock, a condition or an
event: ``MasterElection.stop`` and ``ZooKeeperScheduler.close`` run inside signal handlers, and a
handler may interrupt any line of the main thread. A lock which that line holds is never released
then. The ``put()`` of a SimpleQueue is reentrant, by its documentation; nothing else in the
standard library is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timezone
from queue import Empty as Empty
from queue import SimpleQueue as SimpleQueue
from threading import Condition as Condition
from threading import Lock as Lock
from threading import Thread as Thread
from threading import current_thread, main_thread


def boottime() -> float:
    """Seconds on a clock that goes on while the machine is suspended, and never jumps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def timestamp() -> float:
    """The clock of day: seconds since 1970."""
    return time.time()


def now() -> datetime:
    """The clock of day, in UTC."""
    return datetime.now(timezone.utc)


def sleep(seconds: float) -> None:
    """Returns after so many seconds."""
    time.sleep(seconds)


def thread(target: Callable[[], object], name: str) -> Thread:
    """A thread that does not keep the process alive; not started yet."""
    return Thread(target=target, name=name, daemon=True)


def is_current(thread: Thread | None) -> bool:
    """True for the thread that asks."""
    return thread is current_thread()


def in_main_thread() -> bool:
    """True in the thread in which signal handlers run."""
    return current_thread() is main_thread()


class Wakeup:
    """Has one thread wait until another, or a signal handler, wakes it.

    What was set before the wait counts, and many times count as one.
    """

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def set(self, event: object = None) -> None:
        """Wakes who waits, now or next. Never blocks. `event` is what a watch is called with."""
        self._tokens.put(None)

    def is_set(self) -> bool:
        """True where the next wait ends at once."""
        return not self._tokens.empty()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits at most so many seconds (None: for ever). False where nobody woke it."""
        try:
            self._tokens.get(timeout=None if seconds is None else max(0.0, seconds))
        except Empty:
            return False
        with contextlib.suppress(Empty):
            while True:
                self._tokens.get_nowait()
        return True
