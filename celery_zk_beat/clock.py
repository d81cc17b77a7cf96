"""Time, threads, and how one thread wakes another: the only module that imports :mod:`time`,
:mod:`threading` or :mod:`queue`.

Other modules write ``clock.now()`` and import no name out of this module. So a test can replace
time by replacing the names of this one module.

Threads wake each other through a :class:`SimpleQueue`, never through a lock, a condition or an
event. The reason: ``MasterElection.stop`` and ``ZooKeeperScheduler.close`` run inside signal
handlers, and a handler may interrupt any line of the main thread. If that line holds a lock, nobody
can release it then. The documentation says that ``put()`` of a SimpleQueue is reentrant. Nothing
else in the standard library is.
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
    """Returns seconds on a clock that also counts while the machine is suspended, and never
    jumps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def timestamp() -> float:
    """Returns the time of day as seconds since 1970."""
    return time.time()


def now() -> datetime:
    """Returns the time of day in UTC."""
    return datetime.now(timezone.utc)


def sleep(seconds: float) -> None:
    """Waits so many seconds."""
    time.sleep(seconds)


def thread(target: Callable[[], object], name: str) -> Thread:
    """Makes a thread that does not keep the process alive. Does not start it."""
    return Thread(target=target, name=name, daemon=True)


def is_current(thread: Thread | None) -> bool:
    """True if it is the thread that asks."""
    return thread is current_thread()


def in_main_thread() -> bool:
    """True in the thread in which signal handlers run."""
    return current_thread() is main_thread()


class Wakeup:
    """Lets one thread wait until another thread, or a signal handler, wakes it.

    A call of :meth:`set` before the wait counts, and several calls count as one.
    """

    def __init__(self) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def set(self, event: object = None) -> None:
        """Wakes the thread that waits now, or ends the next wait at once. Never blocks. `event` is
        what a watch passes."""
        self._tokens.put(None)

    def is_set(self) -> bool:
        """True if the next wait ends at once."""
        return not self._tokens.empty()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits at most so many seconds (None: no limit). Returns False if nobody woke it."""
        try:
            self._tokens.get(timeout=None if seconds is None else max(0.0, seconds))
        except Empty:
            return False
        with contextlib.suppress(Empty):
            while True:
                self._tokens.get_nowait()
        return True
