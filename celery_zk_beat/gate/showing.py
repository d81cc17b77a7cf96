"""Writes the entries of another scheduler to ZooKeeper, for readers: see shown.py.

No run waits for it or depends on it. It works in slices between the turns of the dispatch loop,
sends one write at a time and does not wait for the answer. Each write checks the epoch, so an old
master never overwrites a new master's data. If a write fails, it is logged, and everything is read
and written again later. (The ledger's way is to load the run states anew: that would delay runs,
for data that is only for reading.)
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from .. import clock
from ..due import next_run, rule_of, schedule_text, utc_of
from ..election.public import MasterElection
from ..errors import Conflict, RootError, Uncertain, ZkBeatError
from ..ledger import RunLedger
from ..log import get_logger
from ..runs import NEVER
from ..shown import LARGEST, Index, ShownEntry, encode_shown, is_page_shown, page_shown
from ..zookeeper.operations import Check, Create, Delete, Operation, Pending, SetData
from .stores import StoreAdapter

logger = get_logger(__name__)

#: Seconds from one look at all entries to the next; between two writes; and until we try again
#: after a failure.
LOOK_EVERY, _WRITE_EVERY, _RETRY_AFTER = 10.0, 1.0, 60.0
#: The least and the most seconds of a slice of a look. In between, a slice takes a share of what
#: the rest of the turn took: each slice costs a turn, and with many entries a turn takes long. Then
#: the pause between two slices, and the entries between two looks at the clock.
_SLICE, _LONGEST_SLICE, _PART, _REST, _AT_ONCE = 0.003, 0.25, 0.5, 0.01, 20
#: Seconds until we check whether a write was answered.
_LOOK_FOR_ANSWER = 0.5
#: Least bytes of the pages of a write, even if the server accepts less; and the bytes of a page
#: beside its data.
_LEAST, _PAGE_OVERHEAD = 10_000, 100
#: How far the clock of an entry may be ahead of the clock of its state: stores round.
_ROUNDED = timedelta(seconds=2)


class _Told(NamedTuple):
    """What was written about an entry, and from what."""

    text: str
    schedule: Any
    task: Any
    is_disabled: bool
    #: Only for an entry whose next run only its class knows: its last run.
    last_run_at: datetime | None


class Showing:
    """Writes for one beat, in its dispatch loop's thread.

    Args:
        scheduler: the name of the class. It tells readers whose entries these are.
    """

    def __init__(self, election: MasterElection, scheduler: str, ledger: RunLedger) -> None:
        self._session, self._paths = election.session, election.paths
        self._scheduler, self._ledger = scheduler, ledger
        #: Most bytes of a page, and of the pages of a write; and how many writes in a row got no
        #: answer: a server closes the connection if a write is too large for it.
        self._most, self._lost = LARGEST, 0
        self._is_failing = False
        #: On boottime(): when to look next, and when to write next.
        self._look_at = self._write_at = -math.inf
        self._pending: Pending | None = None
        self.forget()

    def forget(self) -> None:
        """Forgets everything, so that it is read again: the term is over, or an error occurred."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.answered():
            with contextlib.suppress(ZkBeatError):
                self._take_answer(pending)
        #: The checksums of the pages as they were written, None: still to be read; which pages
        #: exist; and whether the index is right.
        self._written: dict[str, int] | None = None
        self._there: set[str] = set()
        self._is_current = self._has_index = False
        self._look: Iterator[None] | None = None
        #: What was written about each entry; the names on each page; and the pages to write, empty
        #: if they have no entries.
        self._told: dict[str, _Told] = {}
        self._names: dict[str, set[str]] = {}
        self._changed: dict[str, bytes] = {}

    def turn(self, entries: Mapping[str, Any], adapter: StoreAdapter, began: float) -> float:
        """Does a part of the work. Returns the seconds after which to call it again. `began`: when
        this turn of the loop began, on boottime()."""
        try:
            return self._turn(entries, adapter, began)
        except Exception as exc:  # also raised by a user's class of entries
            if not self._is_failing and not isinstance(exc, Conflict):
                # This usually means that another beat is master by now.
                what = exc if isinstance(exc, ZkBeatError) else repr(exc)
                logger.warning("%s; so `zk-beat status` does not know the entries", what)
                self._is_failing = True
            self.forget()
            self._look_at = clock.boottime() + _RETRY_AFTER
            return _RETRY_AFTER

    def _turn(self, entries: Mapping[str, Any], adapter: StoreAdapter, began: float) -> float:
        now = clock.boottime()
        if self._look is None and not self._changed and self._look_at <= now:
            self._look, self._look_at = self._looks(entries, adapter), now + LOOK_EVERY
        if self._look is not None:
            end = now + max(_SLICE, min(_LONGEST_SLICE, _PART * (now - began)))
            for _ in self._look:
                if clock.boottime() > end:
                    return _REST
            self._look = None
        if self._pending is not None and self._pending.answered():
            self._take_answer(self._pending)
        if self._pending is None and self._write_at <= now:
            self._write()
        if self._pending is not None:
            return _LOOK_FOR_ANSWER
        return max(_REST, (self._write_at if self._changed else self._look_at) - now)

    # Looking --------------------------------------------------------------------------------------

    def _looks(self, entries: Mapping[str, Any], adapter: StoreAdapter) -> Iterator[None]:
        """Goes through all entries, with pauses."""
        told, changed = self._told, set[str]()
        self._most = min(self._most, max(_LEAST, self._ledger.limits.most_bytes // 2))
        if self._written is None:
            self._written = self._read_index()
            changed.update(self._there)
        everything = {**dict.fromkeys(adapter.unreadable), **adapter.disabled, **entries}
        for number, (name, entry) in enumerate(everything.items()):
            if number % _AT_ONCE == 0:
                yield
            known = told.get(name)
            new = self._tell(name, entry, adapter, known)
            if new is not known:
                told[name] = new
                if known is None or known.text != new.text:
                    page = page_shown(name)
                    self._names.setdefault(page, set()).add(name)
                    changed.add(page)
        for name in told.keys() - everything.keys() if len(told) != len(everything) else ():
            del told[name]
            page = page_shown(name)
            self._names[page].discard(name)
            changed.add(page)
        for page in sorted(changed):
            yield
            names = self._names.get(page)
            texts = [(name, told[name].text) for name in names or ()]
            data = encode_shown(texts, self._most) if names else b""
            is_news = zlib.crc32(data) != self._written.get(page) if data else page in self._there
            if is_news:
                self._changed[page] = data

    def _tell(self, name: str, entry: Any, adapter: StoreAdapter, known: _Told | None) -> _Told:
        if entry is None:
            error = adapter.unreadable.get(name, "")
            return _Told(ShownEntry(error=error).to_json(), None, None, False, None)
        schedule, is_disabled = entry.schedule, name in adapter.disabled
        if (
            known is not None
            and known.schedule is schedule
            and known.task == entry.task
            and known.is_disabled == is_disabled
            and (known.last_run_at is None or known.last_run_at == self._last_run_at(name))
        ):
            return known
        last_run_at = self._last_run_at(name)
        try:
            shown = _shown(entry, is_disabled, adapter.start(entry), last_run_at)
            if adapter.puts_off and shown.since is not None:
                shown = replace(shown, is_put_off=True)
        except Exception as exc:  # raised by a user's class, which shows itself
            shown = ShownEntry(error=f"{type(exc).__name__}: {exc}")
        ran = None if shown.rule else last_run_at
        return _Told(shown.to_json(), schedule, entry.task, is_disabled, ran)

    def _last_run_at(self, name: str) -> datetime:
        state = self._ledger.state(name)
        return NEVER if state is None else state.last_run_at

    # Reading and writing --------------------------------------------------------------------------

    def _read_index(self) -> dict[str, int]:
        self._there = {*filter(is_page_shown, self._session.children(self._paths.shown))}
        node, index = self._session.read(self._paths.shown), None
        self._has_index = node is not None
        if node is not None:
            with contextlib.suppress(RootError):  # it will be written again
                index = Index.decode(self._paths.shown, node.data)
        self._is_current = index is not None and index.scheduler == self._scheduler
        pages = index.pages if index is not None and self._is_current else {}
        return {page: pages[page] for page in pages if page in self._there}

    def _write(self) -> None:
        """Sends the next pages, as many as fit into a write, and the index that lists them."""
        if self._written is None or (self._is_current and not self._changed):
            return
        paths, size, pages = self._paths, 0, list[Operation]()
        while self._changed:
            page, data = next(iter(self._changed.items()))
            if size and size + len(data) > self._most:
                break
            size += len(data) + _PAGE_OVERHEAD
            del self._changed[page]
            path = paths.shown_page(page)
            if not data:
                pages.append(Delete(path))
                self._there.discard(page)
                self._written.pop(page, None)
                continue
            pages.append(SetData(path, data) if page in self._there else Create(path, data))
            self._there.add(page)
            self._written[page] = zlib.crc32(data)
        data = Index(self._scheduler, self._written).encode()
        index = SetData(paths.shown, data) if self._has_index else Create(paths.shown, data)
        # In this order: the index must exist before the pages below it.
        self._pending = self._session.send(Check(paths.epoch, self._ledger.epoch), index, *pages)
        self._has_index = self._is_current = True
        self._write_at = clock.boottime() + _WRITE_EVERY

    def _take_answer(self, pending: Pending) -> None:
        self._pending = None
        try:
            pending.result()
        except Uncertain:
            # Perhaps the server closed the connection because of it, and would do so each time.
            self._look_at = clock.boottime() + _RETRY_AFTER
            self._lost += 1
            if self._lost > 1:
                self._most = max(_LEAST, self._most // 2)
            raise
        self._lost = 0
        if self._is_failing:
            logger.info("`zk-beat status` knows the entries again")
            self._is_failing = False


def _shown(
    entry: Any, is_disabled: bool, start: datetime | None, last_run_at: datetime
) -> ShownEntry:
    task = str(entry.task)
    own = entry.last_run_at  # None: it does not know
    since = None if own is None else utc_of(entry, own)
    if since is not None and since <= last_run_at + _ROUNDED:
        since = None
    rule = rule_of(entry.schedule)
    if rule is not None and rule.fits:
        return ShownEntry(task, rule, start=start, since=since, is_disabled=is_disabled)
    return ShownEntry(
        task,
        schedule=schedule_text(entry.schedule),
        next_run_at=next_run(entry, since or last_run_at),
        start=start,
        since=since,
        is_disabled=is_disabled,
    )
