"""What a master writes for readers about the entries of another scheduler: the records below
``shown``. Pure: no I/O.

A reader does not have the store. It computes the next run of an entry from its run state and its
:class:`Rule`. So a run writes nothing here. The next run itself is written only if no rule
describes the schedule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import RootError
from .paths import page_of
from .records import FORMAT, LARGEST_NUMBER, count, decode, encode, field
from .runs import LATEST, NEVER, from_milliseconds, milliseconds

#: Most characters of a text; of a crontab; most seconds of an interval.
_LONGEST, _LONGEST_CRON, _LONGEST_INTERVAL = 200, 300, 1e10
#: Most bytes of a page. What does not fit is left out.
LARGEST = 100_000
#: Cached, because making it takes longer than using it.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_LATEST = from_milliseconds(1000 * LATEST)


@dataclass(frozen=True)
class Rule:
    """A schedule of Celery's. Either `every` so many seconds, with `relative` as in Celery; or the
    fields of a `cron` line, in the time zone `zone`, None for the app's zone."""

    every: float | None = None
    relative: bool = False
    cron: str | None = None
    zone: str | None = None

    @property
    def fits(self) -> bool:
        """False if it is too large to be written."""
        texts = (self.cron or "", self.zone or "")
        return (self.every or 0) < _LONGEST_INTERVAL and len(max(texts, key=len)) < _LONGEST_CRON


@dataclass(frozen=True)
class ShownEntry:
    """An entry. All instants are UTC.

    Attributes:
        schedule: its text, if it has no `rule`.
        next_run_at: its next run when this was written, if it has no `rule`.
        start: the instant before which it does not run.
        since: since when its clock runs, if that is later than in its run state.
        is_put_off: if `since` is in the future, that is no mistake: this is how its store puts
            entries off.
        error: why its store's class cannot make an entry from it.
    """

    task: str | None = None
    rule: Rule | None = None
    schedule: str | None = None
    next_run_at: datetime | None = None
    start: datetime | None = None
    since: datetime | None = None
    is_disabled: bool = False
    is_put_off: bool = False
    error: str | None = None

    def to_json(self) -> str:
        """Writes it, without the fields that have their usual values."""
        told: dict[str, Any] = {}
        rule = self.rule
        if rule is not None:
            told = {
                name: value
                for name, value in vars(rule).items()
                if value is not None and value is not False
            }
        for name in _TEXTS:
            text = getattr(self, name)
            if text is not None:
                told[name] = text[:_LONGEST]
        for name in _INSTANTS:
            at = getattr(self, name)
            if at is not None:
                told[name] = milliseconds(min(max(at, NEVER), _LATEST))
        if self.is_disabled:
            told["disabled"] = True
        if self.is_put_off:
            told["put_off"] = True
        return _to_json(told)


_TEXTS = ("task", "schedule", "error")
_INSTANTS = ("next_run_at", "start", "since")


@dataclass(frozen=True)
class Index:
    """The record of ``shown`` itself: the class of the scheduler whose entries are below it, and
    the checksum of each page. So one watch reports all changes."""

    scheduler: str
    pages: Mapping[str, int]

    def encode(self) -> bytes:
        return encode({"scheduler": self.scheduler, "pages": dict(sorted(self.pages.items()))})

    @classmethod
    def decode(cls, path: str, data: bytes) -> Index:
        """Reads it. Raises RootError, which names `path`, if `data` is not one."""
        fields = decode(path, data)
        pages = field(path, fields, "pages", dict)
        for page in pages:
            if not is_page_shown(page):
                raise RootError(f"{path}: {page!r:.80} is not a page")
            count(path, pages, page)
        return cls(field(path, fields, "scheduler", str), pages)


def page_shown(name: str) -> str:
    """Returns the page, ``"00"`` to ``"ff"``, on which an entry is shown. It never changes."""
    return page_of(name)[:2]


def is_page_shown(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{2}", name) is not None


def encode_shown(entries: Iterable[tuple[str, str]], most: int = LARGEST) -> bytes:
    """Writes a page of entries: :meth:`ShownEntry.to_json` by name; names are text. Leaves out
    those for which `most` bytes have no room."""
    texts, size = [], 0
    for name, told in sorted(entries):
        text = f"{_to_json(name)}:{told}"
        if size + len(text) <= most:
            texts.append(text)
            size += len(text) + 1
    return f'{{"format":{FORMAT},"entries":{{{",".join(texts)}}}}}'.encode("ascii")


def decode_shown(path: str, data: bytes) -> dict[str, ShownEntry]:
    """Reads a page. Raises RootError, which names `path`, if it cannot be parsed."""
    entries = field(path, decode(path, data), "entries", dict)
    return {name: _decode(path, fields) for name, fields in entries.items()}


def _decode(path: str, fields: Any) -> ShownEntry:
    if not isinstance(fields, dict):
        raise RootError(f"{path}: an entry is a {type(fields).__name__}, expected an object")
    known: dict[str, Any] = {}
    for name in _TEXTS:
        if name in fields:
            known[name] = field(path, fields, name, str)[:_LONGEST]
    for name in _INSTANTS:
        if name in fields:
            known[name] = _instant(path, fields, name)
    return ShownEntry(
        rule=_rule(path, fields),
        is_disabled=fields.get("disabled") is True,
        is_put_off=fields.get("put_off") is True,
        **known,
    )


def _rule(path: str, fields: dict[str, Any]) -> Rule | None:
    if "cron" in fields:
        zone = field(path, fields, "zone", str) if "zone" in fields else None
        rule = Rule(cron=field(path, fields, "cron", str), zone=zone)
    elif "every" in fields:
        every = fields["every"]
        if type(every) not in (int, float) or not 0 <= every <= LARGEST_NUMBER:
            raise RootError(f"{path}: the field 'every' is {every!r:.80}, expected seconds")
        rule = Rule(every=float(every), relative=fields.get("relative") is True)
    else:
        return None
    if not rule.fits:
        raise RootError(f"{path}: a schedule that is too large")
    return rule


def _instant(path: str, fields: dict[str, Any], name: str) -> datetime:
    since = count(path, fields, name)
    if since > 1000 * LATEST:
        raise RootError(f"{path}: the field {name!r} is {since}, later than the year 9999 begins")
    return from_milliseconds(since)
