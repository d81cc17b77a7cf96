"""Reads ZooKeeper for all HTTP requests."""

from __future__ import annotations

import contextlib
import heapq
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from .. import clock
from ..errors import ZkBeatError
from ..log import get_logger
from ..status.reader import Basis, Reader
from ..status.snapshot import Snapshot, plain
from ..zookeeper.session import connected
from .state import Beat

logger = get_logger(__name__)

#: Seconds from one reading of ZooKeeper to the next. More if reading takes long: it may take only a
#: part of the time.
_EVERY, _PART = 2.0, 1 / 5
#: For how many seconds a reading is used; and after how many seconds without a request reading
#: ends.
_CURRENT, _IDLE = 10.0, 30.0
#: How many seconds a request waits for a reading; and how many requests may wait: fewer than there
#: are threads.
_PATIENCE, _MOST_WAITING = 2.0, 2
#: Most entries on the page.
_MOST_SHOWN = 50


class Look(Protocol):
    """What reads ZooKeeper: see :class:`.Reader`."""

    def read(self) -> Snapshot:
        """Reads the status. Raises a ZkBeatError if that fails."""

    def basis(self) -> Basis:
        """What one needs to compute the next runs, as of the last :meth:`read`."""


class Reading:
    """A snapshot, taken at `at` on boottime(): as JSON for everybody, as JSON for the page, and
    what one needs to compute the next runs."""

    def __init__(self, snapshot: Snapshot, basis: Basis, at: float) -> None:
        self.snapshot, self.basis = snapshot, basis
        self.at = at
        self.page = _for_page(snapshot)
        self._full = b""
        self._making = clock.Lock()

    def full(self) -> bytes:
        with self._making:
            self._full = self._full or json.dumps(self.snapshot.to_json()).encode()
            return self._full


def _for_page(snapshot: Snapshot) -> bytes:
    planned = (entry for entry in snapshot.entries if entry.next_run_at is not None)
    upcoming = heapq.nsmallest(_MOST_SHOWN, planned, key=lambda e: (e.next_run_at, e.name))
    paused = [entry for entry in snapshot.entries if entry.paused is not None]
    opened = [(each.tracked.open_since, each) for each in snapshot.entries if each.tracked]
    oldest = sorted((each for each in opened if each[0]), key=lambda each: (each[0], each[1].name))
    shown = replace(snapshot, entries=()).to_json()
    del shown["entries"]
    shown["upcoming"] = plain(upcoming)
    shown["paused_entries"] = plain(paused[:_MOST_SHOWN])
    shown["counts"] = {"entries": len(snapshot.entries), "paused": len(paused)}
    if opened:
        shown["open_entries"] = plain([each for _, each in oldest[:_MOST_SHOWN]])
        shown["counts"]["open"] = len(oldest)
    return json.dumps(shown).encode()


class Readings:
    """Reads the status for all requests: every few seconds, as long as there are requests.

    Args:
        connect: provides a :class:`Look` inside a ``with`` block; raises a ZkBeatError if that
            fails.
    """

    def __init__(self, connect: Callable[[], contextlib.AbstractContextManager[Look]]) -> None:
        self._connect = connect
        self._news = clock.Condition()
        self._last: Reading | None = None
        self._error: str | None = None
        self._waiting = 0
        # All on boottime().
        self._asked = 0.0
        #: When the last attempt to read ended, and since when the present one runs.
        self._ended, self._begun = -math.inf, math.inf
        self._at_work = False

    def get(self) -> tuple[Reading | None, str | None]:
        """Returns the last reading and, if it is older than some seconds, the reason. For any
        thread. Waits up to ``_PATIENCE`` if there was no request for a while."""
        with self._news:
            self._asked = clock.boottime()
            if not self._at_work:
                self._at_work = True
                clock.thread(self._work, "zk-beat-status").start()
            if not self._is_current() and self._waiting < _MOST_WAITING:
                self._waiting += 1
                self._news.wait_for(self._is_current, _PATIENCE)
                self._waiting -= 1
            if self._is_current():
                return self._last, self._error
            age = clock.boottime() - self._begun
            return self._last, (
                f"ZooKeeper has not answered for {age:.1f} s" if age > 1 else "being read just now"
            )

    def _is_current(self) -> bool:
        return clock.boottime() - self._ended < _CURRENT

    def _work(self) -> None:
        while self._is_wanted():
            self._begun = clock.boottime()
            try:
                with self._connect() as look:
                    while self._is_wanted():
                        self._begun = begun = clock.boottime()
                        try:
                            self._note(Reading(look.read(), look.basis(), begun), None)
                        except ZkBeatError as exc:
                            self._note(None, str(exc))
                        clock.sleep(max(_EVERY, (self._ended - begun) / _PART))
            except ZkBeatError as exc:
                self._note(None, str(exc))
                clock.sleep(_EVERY)
            except Exception as exc:
                logger.exception("the status cannot be read")
                self._note(None, f"the status cannot be read: {exc!r}")
                clock.sleep(_EVERY)

    def _is_wanted(self) -> bool:
        with self._news:
            self._at_work = clock.boottime() - self._asked < _IDLE
            return self._at_work

    def _note(self, reading: Reading | None, error: str | None) -> None:
        with self._news:
            self._last, self._error = reading or self._last, error
            self._ended, self._begun = clock.boottime(), math.inf
            self._news.notify_all()


@contextlib.contextmanager
def reader(beat: Beat) -> Iterator[Reader]:
    """Connects with a session of its own: the beat's session has more urgent work."""
    settings, timeout = beat.settings, beat.settings.session_timeout
    with connected(settings.hosts, timeout, _PATIENCE, lambda: None, settings.access) as session:
        yield Reader(session, settings, beat.schedule, on_change=lambda: None)
