"""Which entry is to be looked at next, and when. Pure: no I/O, no clock."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from .znodes import page_of


class Item(NamedTuple):
    """An entry's place. `at` is when to look at it, seconds since 1970; `order` settles ties. `due`
    is when it is due, UTC, where that is known; else it is to be asked."""

    at: float
    order: int
    name: str
    due: datetime | None


class Agenda:
    """Entries in the order of their times. What is due at the same time comes page by page, for a
    claim writes whole pages."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._heap: list[Item] = []
        #: What has come, the first last.
        self._come: list[Item] = []

    def clear(self) -> None:
        self._heap, self._come = [], []

    def put(self, name: str, at: float, due: datetime | None = None) -> None:
        heapq.heappush(self._heap, Item(at, next(self._order), name, due))

    def put_back(self, items: Iterable[Item]) -> None:
        """Items that were taken, of which the first is to be taken next."""
        self._come.extend(reversed(list(items)))

    def take(self, now: float, together: float = 0.0) -> Item | None:
        """What has come by `now`, one by one; and with it what comes within `together` seconds, if
        it is known when that is due."""
        if not self._come and self._heap and self._heap[0].at <= now:
            while self._heap and self._heap[0].at <= now + (together if self._heap[0].due else 0.0):
                self._come.append(heapq.heappop(self._heap))
            if len(self._come) > 1:
                self._come.sort(key=lambda item: page_of(item.name), reverse=True)
        return self._come.pop() if self._come else None

    @property
    def next_at(self) -> float:
        """When :meth:`take` has something, in the past where it has now, infinite for never."""
        if self._come:
            return -math.inf
        return self._heap[0].at if self._heap else math.inf
