"""Says which entry to look at next, and when. Pure: no I/O, no clock."""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from .due import timing
from .paths import page_of

#: The heap may keep this many items of removed entries, plus half of its length.
_MOST_GONE = 1000


class Item(NamedTuple):
    """An entry's place. `at` is when to look at it, seconds since 1970; `order` settles ties. `due`
    is when it is due, UTC; None if that is unknown, so that its schedule must be asked."""

    at: float
    order: int
    name: str
    due: datetime | None


class Agenda:
    """Entries in the order of their times. Entries that are due at the same time come page by page,
    because a claim writes whole pages."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._heap: list[Item] = []
        #: Items whose time has come. The last one comes off first.
        self._come: list[Item] = []
        #: Items that :meth:`look_ahead` has seen, in order.
        self._ahead: list[Item] = []
        #: Items of entries whose times have yet to be computed.
        self._later: deque[Item] = deque()
        #: Names that were removed: items of a lower order are gone.
        self._gone: dict[str, int] = {}
        self._count_gone = 0
        #: Names that wait for something, and are put again when it comes.
        self._waiting: set[str] = set()

    def clear(self) -> None:
        self._waiting.clear()
        self._heap, self._come, self._gone, self._count_gone = [], [], {}, 0
        self._ahead.clear()
        self._later.clear()

    def put(self, name: str, at: float, due: datetime | None = None) -> None:
        heapq.heappush(self._heap, Item(at, next(self._order), name, due))

    def put_waiting(self, name: str, at: float, due: datetime | None) -> None:
        """Puts an entry that waits for something, until `at` at most: see :meth:`wake`."""
        self._waiting.add(name)
        self.put(name, at, due)

    def wake(self, name: str) -> None:
        """What the entry waits for has come: it comes off next. Does nothing for others, which may
        be off the agenda because they are paused."""
        if name in self._waiting:
            self.take_off(name)
            self.put(name, 0.0)

    def take_off(self, name: str) -> None:
        """Removes an entry, however often it was put."""
        self._waiting.discard(name)
        self._gone[name] = next(self._order)
        self._count_gone += 1
        if self._count_gone > _MOST_GONE + (len(self._heap) + len(self._ahead)) // 2:
            self._heap = [item for item in self._heap if not self._is_gone(item)]
            heapq.heapify(self._heap)
            self._ahead = [item for item in self._ahead if not self._is_gone(item)]
            self._come = [item for item in self._come if not self._is_gone(item)]
            self._later = deque(item for item in self._later if not self._is_gone(item))
            self._gone.clear()
            self._count_gone = 0

    def _is_gone(self, item: Item) -> bool:
        return item.order < self._gone.get(item.name, 0)

    def put_later(self, name: str) -> None:
        """Keeps an entry until :meth:`pop_later`: its time is yet to be computed."""
        self._later.append(Item(-math.inf, next(self._order), name, None))

    def pop_later(self) -> str | None:
        """Takes off the entry that was first put later; None if there is none."""
        while self._later:
            item = self._later.popleft()
            if not self._is_gone(item):
                return item.name
        return None

    @property
    def has_later(self) -> bool:
        """True if there may be an entry whose time is yet to be computed."""
        return bool(self._later)

    def look_ahead(self, until: float, most: int) -> list[Item]:
        """Returns the items that come off next, up to `until`, at most so many. Each is returned
        once."""
        found: list[Item] = []
        while self._heap and self._heap[0].at <= until and len(found) < most:
            item = heapq.heappop(self._heap)
            bisect.insort(self._ahead, item)  # nearly always at the end
            if not self._is_gone(item):
                found.append(item)
        return found

    def put_back(self, items: Iterable[Item]) -> None:
        """Puts back items that were popped. The first of them comes off next."""
        self._come.extend(reversed(list(items)))

    def pop_come(self, now: float, together: float = 0.0) -> Item | None:
        """Takes off the next entry whose time has come by `now`. Returns None if there is none.
        With the first one come those of the next `together` seconds if their due times are
        known."""
        while True:
            if not self._come:
                self._fetch(now, together)
            item = self._come.pop() if self._come else None
            if item is None or not self._gone or not self._is_gone(item):
                return item

    def _fetch(self, now: float, together: float) -> None:
        """Finds the items whose time has come."""
        if self._first_at <= now:
            seen = bisect.bisect_right(self._ahead, (now + together, math.inf))
            for item in self._ahead[:seen]:
                if item.due or item.at <= now:
                    self._come.append(item)
                else:
                    heapq.heappush(self._heap, item)
            del self._ahead[:seen]
            while self._heap and self._heap[0].at <= now + (together if self._heap[0].due else 0.0):
                self._come.append(heapq.heappop(self._heap))
            if len(self._come) > 1:
                self._come.sort(key=lambda item: page_of(item.name), reverse=True)

    @property
    def next_at(self) -> float:
        """When :meth:`pop_come` returns an entry: in the past if it does now, infinite if never."""
        return -math.inf if self._come else self._first_at

    @property
    def _first_at(self) -> float:
        first = self._heap[0].at if self._heap else math.inf
        return min(first, self._ahead[0].at) if self._ahead else first


class Seen:
    """Remembers how entries were when they were planned, and so finds out whether a program has
    changed them since. Each look compares some of them, in turn, not all."""

    def __init__(self) -> None:
        #: By name: the entry, and what says when it is due.
        self._rows: dict[str, tuple[Any, Any]] = {}
        self._count = 0
        self._round: Iterator[str] = iter(())
        #: True if a round has begun and has not reached its end.
        self.is_midway = False

    def replace_all(self, entries: Iterable[tuple[str, Any]], count: int) -> set[str]:
        """Remembers all entries of a schedule. `count` is how many it has, including those without
        a text as name. Returns the names of those that were there before and have changed."""
        before, self._rows = self._rows, {name: (entry, _timing(entry)) for name, entry in entries}
        self._count, self._round, self.is_midway = count, iter([*self._rows]), False
        return {
            name
            for name, (entry, at) in (self._rows.items() if before else ())
            if name in before and (before[name][0] is not entry or before[name][1] != at)
        }

    def note(self, name: str, entry: Any) -> None:
        """Remembers an entry as it is now, if the schedule has it."""
        if name in self._rows:
            self._rows[name] = entry, _timing(entry)

    def put(self, name: str, entry: Any) -> None:
        """Remembers an entry that was put into the schedule, perhaps in place of another."""
        self._count += name not in self._rows
        self._rows[name] = entry, _timing(entry)

    def remove(self, name: str) -> bool:
        """Forgets an entry that was removed from the schedule. Returns False if it was not
        there."""
        was_there = self._rows.pop(name, None) is not None
        self._count -= was_there
        return was_there

    def is_same(self, name: str, entry: Any) -> bool:
        """True if the schedule had this very object under that name."""
        return name in self._rows and self._rows[name][0] is entry

    def is_changed(self, entries: Mapping[str, Any], count: int, most: int) -> bool:
        """Looks at `most` entries at most. Returns True if one of them has changed, or if the
        number of all entries has."""
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
    except Exception:  # raised by a user's class
        return None
