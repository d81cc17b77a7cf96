"""The pages of run states: what fits on a page and into a transaction. No I/O: :mod:`.ledger`
writes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from json.encoder import encode_basestring_ascii as _quoted
from typing import NamedTuple, Optional

from . import limits
from .errors import RootError
from .history import Pasts
from .limits import Limits
from .log import get_logger
from .paths import PAGES_OF_VOLUME, Paths, page_of
from .records import to_text
from .runs import LATEST, TOLERANCE, PastRun, RunState, decode_page, encode_page

logger = get_logger(__name__)

#: How many times as long a page may become when it is written again.
_MOST_LONGER = 5
#: Bytes by which a state may grow that has no past: as it runs, and is named no longer.
_GROWTH = 350
#: At least the bytes of a transaction, and of a run in the outbox, beside names and data.
OVERHEAD = 300

#: States to write, by entry; None removes a state.
Changes = Mapping[str, Optional[RunState]]
#: Says of an entry and its state that it may be removed to make room.
MayGo = Callable[[str, RunState], bool]


@dataclass
class Page:
    """A page as it is in ZooKeeper.

    Attributes:
        version: the znode's version; None if there is no znode yet.
        size: its bytes.
        floor: see :class:`.runs.States`.
        mtime: when it was written, as it was loaded, by ZooKeeper's clock, seconds since 1970.
    """

    states: dict[str, RunState]
    version: int | None = None
    size: int = 0
    floor: int = 0
    mtime: float = 0.0

    def change(self, entry: str, state: RunState | None) -> None:
        """Puts a state onto the page; None removes it."""
        if state is None:
            self.floor = max(self.floor, self.states.pop(entry).total_run_count)
        else:
            self.states[entry] = state

    def encode(self, most: int) -> bytes:
        """Returns the page's bytes. Leaves out the oldest past runs if it has more than `most`."""
        data = encode_page(self.states, self.floor)
        if len(data) > most:
            keep = max(len(state.past) for state in self.states.values())
            while len(data) > most and keep:
                keep //= 2
                self._cut_past(keep)
                data = encode_page(self.states, self.floor)
        self.size = len(data)
        return data

    def _cut_past(self, keep: int) -> None:
        for entry, state in self.states.items():
            if not keep:
                self.states[entry] = state.bare
            elif len(state.past) > keep:
                self.states[entry] = replace(state, past=state.past[-keep:])

    def room(self, most: int) -> int:
        """How many bytes of states there is room for, on a page of at most so many."""
        room = most - self.size - _GROWTH * len(self.states)
        if room > 0:
            return room  # at least; nearly always this is enough
        return most - sum(_least(*each) for each in self.states.items())

    def admit(
        self, new: Mapping[str, RunState], most: int, may_go: MayGo
    ) -> tuple[list[str], list[str]]:
        """Finds room for new states on a page of at most `most` bytes. Changes nothing. Returns the
        entries whose states must go, and the new entries for which there is still no room."""
        sizes = {entry: _least(entry, state) for entry, state in new.items()}
        room, needed = self.room(most), sum(sizes.values())
        removed: list[str] = []
        if needed > room:
            # More than is needed now, so that not each new entry has to do it again.
            removed = self._removable(needed - room + most // 10, may_go)
            room += sum(_least(entry, self.states[entry]) for entry in removed)
        refused = []
        for entry, size in sizes.items():
            room -= size
            if room < 0:
                refused.append(entry)
                room += size
        return removed, refused

    def cut(self, most: int, may_go: MayGo) -> int:
        """Removes what can be removed if the page has more than `most` bytes. Returns by how many
        bytes it is still too large."""
        excess = len(self.encode(most)) - most
        if excess > 0:
            for entry in self._removable(excess, may_go):
                self.change(entry, None)
            excess = len(self.encode(most)) - most
        return excess

    def _removable(self, needed: int, may_go: MayGo) -> list[str]:
        """Returns entries that may go: enough to make room for so many bytes, or all if that is not
        enough. Those come first that have been in no schedule for longest."""
        found: list[str] = []
        for entry, state in sorted(
            self.states.items(), key=lambda each: each[1].unnamed_since or each[1].last_run_at
        ):
            if needed <= 0:
                break
            if may_go(entry, state):
                found.append(entry)
                needed -= _least(entry, state)
        return found

    def set_back(self, now: datetime, ahead: timedelta, but: Container[str]) -> dict[str, RunState]:
        """Returns corrected states for entries whose last run lies in the future, now and when the
        page was written: a beat with a clock that was ahead wrote them. Leaves out the entries of
        `but`. The clock that says `now` is `ahead` of ZooKeeper's clock."""
        latest = now + TOLERANCE
        found: dict[str, RunState] = {}
        for name, state in self.states.items():
            if state.last_run_at <= latest:
                continue
            written = datetime.fromtimestamp(min(self.mtime, LATEST), timezone.utc)
            if state.last_run_at > written + TOLERANCE and name not in but:
                at = min(written + ahead, now)
                if state.due is not None and state.due <= now:
                    at = max(at, state.due)
                found[name] = state.set_back(at, ahead)
        return found


class Kept(NamedTuple):
    """A page, and what it was before some of its states were changed."""

    page: Page
    version: int | None
    size: int
    floor: int
    states: dict[str, RunState | None]


class Pages:
    """All run states, as they are in ZooKeeper, or will be when the transactions on their way are
    done."""

    def __init__(self, paths: Paths, limits: Limits) -> None:
        self._paths, self._limits = paths, limits
        self._pages: dict[str, Page] = {}
        self._damaged: set[str] = set()
        #: Entries whose states cannot be kept.
        self._refused: set[str] = set()
        #: Entries that may have open runs; None before anybody asks for these.
        self._opened: set[str] | None = None
        #: The names of the schedule; None if they are not known.
        self._named: Container[str] | None = None

    def __len__(self) -> int:
        """Returns the number of states."""
        return sum(len(page.states) for page in self._pages.values())

    def of(self, entry: str) -> Page:
        """Returns the page of an entry; an empty one if there is none yet."""
        return self._pages.get(page_of(entry)) or Page({})

    def state(self, entry: str) -> RunState | None:
        page = self._pages.get(page_of(entry))
        return None if page is None or entry in self._refused else page.states.get(entry)

    def damaged(self, entry: str) -> bool:
        return entry in self._refused or page_of(entry) in self._damaged

    @property
    def is_damaged(self) -> bool:
        """True if a page is damaged."""
        return bool(self._damaged)

    def names_by_key(self) -> dict[str, str]:
        states = (each for page in self._pages.values() for each in page.states.items())
        return {state.key: name for name, state in states if state.key is not None}

    def open_runs(self) -> dict[str, tuple[PastRun, ...]]:
        """See :meth:`.RunLedger.open_runs`."""
        opened = self._opened
        if opened is None:
            opened = {name for page in self._pages.values() for name in page.states}
        states = ((name, self.of(name).states.get(name)) for name in opened)
        found = {name: state.open for name, state in states if state is not None and state.open}
        self._opened = set(found)
        return found

    def change(self, states: Changes) -> dict[str, Page]:
        """Puts states onto their pages, or removes them. Returns the changed pages, by name."""
        touched = {}
        for entry, state in states.items():
            name = page_of(entry)
            page = touched[name] = self._pages.setdefault(name, Page({}))
            page.change(entry, state)
        if self._opened is not None:
            self._opened.update(states)
        return touched

    def as_they_are(self, names: Iterable[str]) -> list[Kept]:
        """What :meth:`change` changes of these entries: for :meth:`put_back`."""
        kept: dict[str, Kept] = {}
        for entry in names:
            name = page_of(entry)
            if name not in kept:
                page = self._pages.setdefault(name, Page({}))
                kept[name] = Kept(page, page.version, page.size, page.floor, {})
            kept[name].states[entry] = kept[name].page.states.get(entry)
        return [*kept.values()]

    def put_back(self, kept: Iterable[Kept]) -> None:
        """Gives entries their earlier states back."""
        for page, version, size, floor, states in kept:
            page.version, page.size, page.floor = version, size, floor
            for entry, state in states.items():
                if state is not None:
                    page.states[entry] = state
                else:
                    page.states.pop(entry, None)
            if self._opened is not None:
                self._opened.update(states)

    def pasts(self, volume: str) -> Pasts | None:
        """Returns the past runs of all entries of a volume, as far as they are on the pages. None
        if one of these pages is damaged, so that not all entries are known."""
        names = [f"{volume}{number:x}" for number in range(PAGES_OF_VOLUME)]
        if not self._damaged.isdisjoint(names):
            return None
        pages = filter(None, map(self._pages.get, names))
        return {name: state.past for page in pages for name, state in page.states.items()}

    def take_over(self, pasts: Pasts) -> None:
        """Removes past runs from the pages, because a volume has them from now on."""
        for name, past in pasts.items():
            if past:
                states = self.of(name).states
                states[name] = states[name].changed(past=())

    def next_batch(self, left: deque[str], states: Changes, room: int) -> Changes:
        """Takes entries from the left of `left`, where they are in the order of their pages. Takes
        as many as fit into one transaction with `room` bytes, at least one. Each page is written
        whole."""
        batch: dict[str, RunState | None] = {}
        last = None
        while left and len(batch) < limits.MOST_RUNS:
            name = left[0]
            room -= size_of(name, states[name])
            if page_of(name) != last:
                last = page_of(name)
                room -= self.of(name).size + OVERHEAD
            if batch and room < 0:
                break
            batch[left.popleft()] = states[name]
        return batch

    def note_named(
        self,
        named: Container[str],
        now: datetime,
        server: datetime,
        anew: bool,
        waiting: Container[str],
    ) -> Changes:
        """Returns what changes if the schedule has the names `named`: see
        :meth:`.RunLedger.note_named`. It does not remove entries of `waiting`. `server`:
        ZooKeeper's time."""
        self._named = named
        changed: dict[str, RunState | None] = {}
        for page in self._pages.values():
            for name, state in page.states.items():
                if name not in named:
                    new = state.when_unnamed(now, server)
                    if new is None and name in waiting:
                        continue
                elif state.unnamed_since is None:
                    continue
                else:
                    new = state.when_named(now, server, anew)
                    if new.last_run_at != state.last_run_at:
                        logger.info(
                            "%s: it was in no master's schedule since %s: its clock starts anew",
                            name,
                            to_text(state.unnamed_since),
                        )
                if new is not state:
                    changed[name] = new
        return changed

    def set_back(self, now: datetime, ahead: timedelta, but: Container[str]) -> dict[str, RunState]:
        """Does what :meth:`Page.set_back` does, for all pages."""
        found: dict[str, RunState] = {}
        for page in self._pages.values():
            found.update(page.set_back(now, ahead, but))
        return found

    def admit(self, new: Mapping[str, RunState], waiting: Container[str]) -> Changes:
        """Returns the new states for which there is room, and None for each state that is removed
        to make room: of an entry that the schedule does not name and that is not in `waiting`. The
        other new entries count as :meth:`damaged`."""
        by_page: dict[str, dict[str, RunState]] = {}
        for entry, state in new.items():
            if self._takes_name(entry):
                by_page.setdefault(page_of(entry), {})[entry] = state
        states: dict[str, RunState | None] = {}
        for name, fit in by_page.items():
            page, largest = self._pages.get(name) or Page({}), self._limits.largest_page
            removed, refused = page.admit(fit, largest, self._may_go(new, waiting))
            states.update(dict.fromkeys(removed))
            for entry in refused:
                del fit[entry]
            states.update(fit)
            self._refused.difference_update(fit)
            self._refused.update(refused)
            path = self._paths.page(name)
            if removed:
                text = "%s: full, so %d states of entries in no schedule are removed"
                logger.warning(text, path, len(removed))
            if refused:
                logger.error(
                    "%s: full, with %d entries: there is no room for %d more, which do not run, "
                    "such as %.80r",
                    path,
                    len(page.states) - len(removed) + len(fit),
                    len(refused),
                    refused[0],
                )
        return states

    def _takes_name(self, entry: str) -> bool:
        """True if an entry's name is not too long. Logs it if it is."""
        longest = self._limits.longest_name
        # A character has at most 12 bytes in JSON, for example an emoji.
        if len(entry) * 12 + 2 <= longest or (size := len(_quoted(entry))) <= longest:
            return True
        self._refused.add(entry)
        logger.error(
            "%.80s...: does not run, because its name is too long: %d bytes in JSON, expected at "
            "most %d",
            entry,
            size,
            longest,
        )
        return False

    def _may_go(self, new: Container[str], waiting: Container[str]) -> MayGo:
        """Returns a function that says whether a state may go: the schedule does not name its
        entry."""

        def may_go(entry: str, state: RunState) -> bool:
            unnamed = state.unnamed_since if self._named is None else entry not in self._named
            return bool(unnamed) and entry not in waiting and entry not in new

        return may_go

    def read(self, name: str, data: bytes, version: int, mtime: float, but: Container[str]) -> None:
        """Takes a page as it was read. Logs an error if it cannot be parsed or is too large to be
        written again. If it is too large, states go that no schedule names, except those of
        `but`."""
        path, largest = self._paths.page(name), self._limits.largest_page
        try:
            states = decode_page(path, data)
            page = Page(states, version, len(data), states.floor, mtime=mtime)
            # Another program may have written it shorter than we do, for example not in ASCII.
            if page.size > largest // _MOST_LONGER:
                excess = page.cut(largest, self._may_go((), but))
                if excess > largest // 20:
                    raise too_large(path, page.size, largest, self._limits.is_lowered)
            self._pages[name] = page
            if self._limits.is_lowered:
                for entry in page.states:
                    self._takes_name(entry)
        except RootError as exc:
            self._damaged.add(name)
            self._limits.fall_short()
            logger.error("%s; the entries on this page do not run until then", exc)


def too_large(path: str, size: int, most: int, less: bool = False) -> RootError:
    """Makes the error for a page that is too large. `less`: the server accepts less than usual."""
    remedy = "raise jute.maxbuffer of the servers" if less else "delete in it what is not needed"
    return RootError(
        f"{path}: would have {size} bytes, and at most {most} can be written: {remedy}"
    )


def size_of(name: str, state: RunState | None) -> int:
    """Returns how many bytes at least an entry's state needs on its page, together with its run in
    the outbox."""
    size = 2 * len(_quoted(name)) + 230
    if state is not None:
        size += len(state.text) + len(_quoted(state.key or ""))
    return size


def _least(name: str, state: RunState) -> int:
    """Returns how many bytes an entry's state needs on its page without its past, even if it
    grows."""
    return len(_quoted(name)) + len(state.bare.text) + _GROWTH
