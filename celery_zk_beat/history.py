"""Histories: what became of the last instants at which each entry was due, apart from the states.

A claim writes a page of states; were the histories on it, they would be most of what a run costs
ZooKeeper. So a past run stands in the state of its entry first, from where it is taken over, with
others, into a volume of histories: a znode for the entries of 16 pages. Whoever reads takes both
together. No past run is ever in neither of them, for a state is written without it only after its
volume was written with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from typing import Optional, Protocol

from . import clock
from .errors import RootError
from .limits import Limits
from .log import get_logger
from .paths import Paths, page_of, volume_of
from .records import FORMAT, decode, field
from .runs import HISTORY, PastRun, RunState, decode_past, in_order, past_text
from .zookeeper.operations import Create, Node, Operation, SetData

logger = get_logger(__name__)

#: Most past runs in one volume, as long as each entry has one.
_HISTORY_OF_VOLUME = 200
#: About the bytes of a past run that is written, and of its outcome.
_PAST_BYTES, _OUTCOME_BYTES = 38, 50

#: Most volumes, and bytes of them, in one transaction.
_AT_ONCE, _BYTES_AT_ONCE = 64, 200_000

#: At least the bytes of an operation beside path and data.
_OVERHEAD = 60
#: Bytes that past runs may cost in any case before their volume is written: to write it again and
#: again while it is small costs processor time.
_LEAST = 2_000

#: By entry, newest last.
Pasts = dict[str, tuple[PastRun, ...]]


#: Reads znodes: :meth:`.ZooKeeperSession.read_all`.
ReadAll = Callable[[Sequence[str]], Sequence[Optional[Node]]]


def share(entries: int) -> int:
    """How many past runs are kept of each, where a volume is that of so many entries."""
    return max(1, min(HISTORY, _HISTORY_OF_VOLUME // max(1, entries)))


def merged(
    old: tuple[PastRun, ...], new: tuple[PastRun, ...], most: int = HISTORY
) -> tuple[PastRun, ...]:
    """The last of an entry's past runs: `old` are those of its history, and `new` those of its
    state, which know better."""
    there = set(old)
    # What comes before one that was taken over was so, too, though it may not be kept any more.
    taken = max((n for n, past in enumerate(new, 1) if past in there), default=0)
    amended = {past.run: past for past in new if past.number is not None}
    kept = [amended.get(past.run, past) for past in old]
    there.update(kept)
    past = (*kept, *(past for past in new[taken:] if past not in there))
    if any(each.outcome for each in new):
        past = (*in_order(past),)  # an outcome may be of a run before the last
    return past[-most:] if most else ()


@dataclass(frozen=True)
class Volume:
    """A volume as it is in ZooKeeper: `version` is None where there is none yet."""

    pasts: Pasts
    version: int | None
    size: int

    def after(self, path: str, new: Pasts, most_bytes: int) -> tuple[Volume, Create | SetData]:
        """The volume once past runs are taken over into it, and how it is written, of at most so
        many bytes: without the oldest, if need be. `new` names all entries of the volume; others
        are forgotten."""
        most = share(len(new))
        while True:
            pasts = {
                name: past
                for name, more in new.items()
                if (past := merged(self.pasts.get(name, ()), more, most))
            }
            data = encode_volume(pasts)
            if len(data) <= most_bytes or not most:
                break
            most //= 2
        if self.version is None:
            return Volume(pasts, 0, len(data)), Create(path, data)
        return Volume(pasts, self.version + 1, len(data)), SetData(path, data, self.version)


class States(Protocol):
    """The pages of states, as far as histories need them."""

    def pasts(self, volume: str) -> Pasts | None:
        """The past runs that the states of a volume's entries have, of all of them; None where
        not all are known."""

    def take_over(self, pasts: Pasts) -> None:
        """Forgets past runs that a volume has from now on."""


class Histories:
    """Which volume is to be written, and when, and those that were, or are as they were read.

    A past run costs its bytes with each claim that writes its page, until its volume is written,
    which costs the bytes of that. So a volume is written once its past runs have cost as much: this
    is never more than twice what the best moment, known beforehand, would have cost.
    """

    def __init__(self, paths: Paths, limits: Limits) -> None:
        self._paths, self._limits = paths, limits
        self._volumes: dict[str, Volume] = {}
        #: Bytes that past runs have cost, by volume, since it was written.
        self._cost: dict[str, int] = {}
        #: Volumes that are to be written, in the order in which they came to be so.
        self._due: dict[str, None] = {}
        #: On boottime(): since when some are.
        self._due_since = math.inf
        #: Those that cannot be understood: they are left alone.
        self._damaged: set[str] = set()

    @property
    def is_damaged(self) -> bool:
        """True where some cannot be understood."""
        return bool(self._damaged)

    @property
    def due_since(self) -> float:
        """Since when some are to be written, on boottime(); infinite where none is."""
        return self._due_since if self._due else math.inf

    def note_written(self, page: str, states: Mapping[str, RunState]) -> None:
        """Notes that a page was written, with these states."""
        cost = sum(
            _PAST_BYTES + len(past.note or "") + (_OUTCOME_BYTES if past.outcome else 0)
            for state in states.values()
            for past in state.past
        )
        if not cost:
            return
        name = volume_of(page)
        self._cost[name] = self._cost.get(name, 0) + cost
        if name not in self._damaged and not self._is_early(name):
            if not self._due:
                self._due_since = clock.boottime()
            self._due[name] = None

    def _is_early(self, name: str) -> bool:
        """False also where the volume must be read before that can be told."""
        known = self._volumes.get(name)
        return known is not None and self._cost[name] < max(known.size, _LEAST)

    def write(self, states: States, read_all: ReadAll, room: int) -> list[Operation]:
        """Has those that are to be written take over what the states have; returns how they are
        written, of at most `room` bytes, and few at a time, beside other things. Reads, once,
        each that it writes; raises what `read_all` does."""
        operations: list[Operation] = []
        if room <= 0:
            return operations
        now = list(self._due)[:_AT_ONCE]
        if unread := [name for name in now if name not in self._volumes]:
            paths = list(map(self._paths.volume, unread))
            for name, path, node in zip(unread, paths, read_all(paths)):
                self._read(name, path, node)
        room = min(room, _BYTES_AT_ONCE)
        for name in now:
            pasts = states.pasts(name)
            if pasts is None or name in self._damaged or self._is_early(name):
                del self._due[name]
                continue
            before, path = self._volumes[name], self._paths.volume(name)
            after, operation = before.after(path, pasts, self._limits.largest_volume)
            size = len(operation.data) + len(path) + _OVERHEAD
            if size > room:
                continue
            room -= size
            self._volumes[name] = after
            del self._cost[name], self._due[name]
            states.take_over(pasts)
            operations.append(operation)
        return operations

    def _read(self, name: str, path: str, node: Node | None) -> None:
        try:
            pasts = {} if node is None else decode_volume(path, node.data)
        except RootError as exc:
            self._damaged.add(name)
            logger.error("%s; no runs are added to it until then", exc)
            return
        version, size = (None, 0) if node is None else (node.version, len(node.data))
        self._volumes[name] = Volume(pasts, version, size)


def encode_volume(pasts: Mapping[str, tuple[PastRun, ...]]) -> bytes:
    entries = ",".join([f"{_quoted(name)}:{past_text(past)}" for name, past in pasts.items()])
    return f'{{"format":{FORMAT},"entries":{{{entries}}}}}'.encode("ascii")


def decode_volume(path: str, data: bytes) -> Pasts:
    """Reads a volume; RootError, which names `path`, where `data` is none. Past runs that are not
    understood are left out, and so are those of entries that belong elsewhere."""
    entries = field(path, decode(path, data), "entries", dict)
    volume = path.rpartition("/")[2]
    return {
        name: decode_past(items)
        for name, items in entries.items()
        if volume_of(page_of(name)) == volume
    }
