"""Which entry is to be looked at next, and when. Pure: no I/O, no clock."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from .due import timing
from .paths import page_of

#: Items of entries that were taken off that may be left, beside half of all.
_MOST_GONE = 1000


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
        #: Names that were taken off, with the order of the first item that is not.
        self._gone: dict[str, int] = {}
        self._count_gone = 0

    def clear(self) -> None:
        self._heap, self._come, self._gone, self._count_gone = [], [], {}, 0

    def put(self, name: str, at: float, due: datetime | None = None) -> None:
        heapq.heappush(self._heap, Item(at, next(self._order), name, due))

    def take_off(self, name: str) -> None:
        """Has nothing be there of an entry, however often it was put."""
        self._gone[name] = next(self._order)
        self._count_gone += 1
        if self._count_gone > _MOST_GONE + len(self._heap) // 2:
            self._heap = [item for item in self._heap if not self._is_gone(item)]
            heapq.heapify(self._heap)
            self._come = [item for item in self._come if not self._is_gone(item)]
            self._gone.clear()
            self._count_gone = 0

    def _is_gone(self, item: Item) -> bool:
        return item.order < self._gone.get(item.name, 0)

    def put_back(self, items: Iterable[Item]) -> None:
        """Puts back what was taken off; the first is to come off next."""
        self._come.extend(reversed(list(items)))

    def pop_come(self, now: float, together: float = 0.0) -> Item | None:
        """Takes off the next entry whose time has come by `now`; None where there is none. With the
        first come those of the next `together` seconds, if it is known when they are due."""
        while True:
            if not self._come:
                self._fetch(now, together)
            item = self._come.pop() if self._come else None
            if item is None or not self._gone or not self._is_gone(item):
                return item

    def _fetch(self, now: float, together: float) -> None:
        """Finds those whose time has come."""
        if self._heap and self._heap[0].at <= now:
            while self._heap and self._heap[0].at <= now + (together if self._heap[0].due else 0.0):
                self._come.append(heapq.heappop(self._heap))
            if len(self._come) > 1:
                self._come.sort(key=lambda item: page_of(item.name), reverse=True)

    @property
    def next_at(self) -> float:
        """When :meth:`pop_come` has something, in the past where it has now, infinite for never."""
        if self._come:
            return -math.inf
        return self._heap[0].at if self._heap else math.inf


class Seen:
    """How entries were when their places were looked for, so that it can be told whether another
    hand has changed them since. Not all at once: a share of them at each look, in turn."""

    def __init__(self) -> None:
        #: Name to the entry, and what says when it is due.
        self._rows: dict[str, tuple[Any, Any]] = {}
        self._count = 0
        self._round: Iterator[str] = iter(())
        #: Whether a round has begun and is not at its end.
        self.is_midway = False

    def replace_all(self, entries: Iterable[tuple[str, Any]], count: int) -> set[str]:
        """Remembers all of a schedule, which has `count` of them, with those that have no name as
        text. Returns the names of those that were there and have changed."""
        before, self._rows = self._rows, {name: (entry, _timing(entry)) for name, entry in entries}
        self._count, self._round, self.is_midway = count, iter([*self._rows]), False
        return {
            name
            for name, (entry, at) in (self._rows.items() if before else ())
            if name in before and (before[name][0] is not entry or before[name][1] != at)
        }

    def note(self, name: str, entry: Any) -> None:
        """Remembers one of them as it is now."""
        if name in self._rows:
            self._rows[name] = entry, _timing(entry)

    def put(self, name: str, entry: Any) -> None:
        """Remembers one that was put into the schedule, or in the place of another there."""
        self._count += name not in self._rows
        self._rows[name] = entry, _timing(entry)

    def remove(self, name: str) -> bool:
        """Forgets one that was taken out of it; False where it was not there."""
        was_there = self._rows.pop(name, None) is not None
        self._count -= was_there
        return was_there

    def is_same(self, name: str, entry: Any) -> bool:
        """True where it is this very entry."""
        return name in self._rows and self._rows[name][0] is entry

    def is_changed(self, entries: Mapping[str, Any], count: int, most: int) -> bool:
        """Looks at some, at most so many; true where any is not as it was, or where there are more
        or fewer of them."""
        if count != self._count:
            return True
        looked = 0
        for name in itertools.islice(self._round, most):
            looked += 1
            row = self._rows.get(name)
            if row is not None and (entries.get(name) is not row[0] or _timing(row[0]) != row[1]):
                return True
        self.is_midway = looked == most
        if not self.is_midway:
            self._round = iter([*self._rows])
        return False


def _timing(entry: Any) -> Any:
    try:
        return timing(entry.schedule)
    except Exception:  # of a class of the user's
        return None
