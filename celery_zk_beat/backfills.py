"""The record ``backfills``: which runs of the past operators have asked for, and how far each
backfill is. Pure: no I/O.

The transaction that claims the next run of a backfill also writes how far the backfill is. So a
failover in the middle leaves no gap and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from .errors import RootError
from .records import LARGEST_NUMBER, count, decode, encode, instant, shown, to_text
from .records import field as _field
from .runs import NEVER

#: Most bytes of the record; and fewer if a backfill is added, because the others grow.
LARGEST_BACKFILLS = 60_000
MOST_BEGUN = LARGEST_BACKFILLS // 2
#: Runs a second. If the operator says nothing: so few that workers hardly notice, and that the
#: operator has time to cancel. And the most, because each is a transaction.
RATE, MOST_RATE = 1.0, 100.0
#: Most runs, unless the operator allows more.
MOST_UNASKED = 1000
#: Most characters of the name of the user who asks.
_LONGEST_WHO = 200


@dataclass(frozen=True)
class Backfill:
    """The instants of an entry from `since` on and before `until`, as extra runs. Instants are
    aware, UTC.

    Attributes:
        rate: runs a second, at most.
        by, at: who asked for it, and when.
        after: the last instant that was claimed; None before the first.
        done: how many were claimed.
        total: how many there are; None if there are too many to count.
        key: the key of the entry's row, if the entry is a row of a table. The backfill goes with
            the row if that is renamed.
    """

    since: datetime
    until: datetime
    rate: float
    by: str
    at: datetime
    after: datetime | None = None
    done: int = 0
    total: int | None = None
    key: str | None = None

    def after_claim(self, due: datetime) -> Backfill:
        """Returns the backfill as it is when the run of an instant is claimed."""
        return replace(self, after=due, done=self.done + 1)

    def fields(self) -> dict[str, Any]:
        told = {name: at for name, at in vars(self).items() if name != "key" or at is not None}
        return {n: to_text(at) if isinstance(at, datetime) else at for n, at in told.items()}

    @classmethod
    def of(cls, path: str, fields: Any) -> Backfill:
        """Makes a backfill from fields. Raises RootError, which names `path`, if they are not those
        of one."""
        since, until = instant(path, fields, "since"), instant(path, fields, "until")
        rate, has_begun = fields.get("rate"), fields.get("after") is not None
        after = instant(path, fields, "after") if has_begun else None
        if not NEVER <= since <= (after or since) < until or until.year > 9998:
            raise RootError(f"{path}: {shown(fields)}: its instants are not in order")
        if type(rate) not in (int, float) or not 0 < rate <= MOST_RATE:
            raise RootError(f"{path}: the rate {shown(rate)}, expected at most {MOST_RATE:g}")
        done = count(path, fields, "done")
        if done == LARGEST_NUMBER:
            raise RootError(f"{path}: {shown(fields)}: no more runs are possible")
        total = None if fields.get("total") is None else count(path, fields, "total")
        by = _field(path, fields, "by", str)[:_LONGEST_WHO]
        key = None if fields.get("key") is None else _field(path, fields, "key", str)
        at = instant(path, fields, "at")
        return cls(since, until, float(rate), by, at, after, done, total, key)


@dataclass(frozen=True)
class Backfills:
    """All backfills of one root, by the names of their entries: at most one for each."""

    entries: Mapping[str, Backfill] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def having(self, entry: str, backfill: Backfill | None) -> Backfills:
        """Returns a copy with another backfill for an entry, or with none."""
        others = {name: each for name, each in self.entries.items() if name != entry}
        return Backfills(others if backfill is None else {**self.entries, entry: backfill})

    def encode(self) -> bytes:
        return encode({"entries": {name: each.fields() for name, each in self.entries.items()}})

    @classmethod
    def decode(cls, path: str, data: bytes) -> Backfills:
        """Reads the record. Empty `data` means that there are none.

        Raises:
            RootError: it cannot be parsed.
        """
        if not data:
            return cls()
        if len(data) > LARGEST_BACKFILLS:
            raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_BACKFILLS}")
        entries = _field(path, decode(path, data), "entries", dict)
        return cls({name: Backfill.of(path, each) for name, each in entries.items()})
