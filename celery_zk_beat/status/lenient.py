"""Reads the records of an election, as far as they are not damaged.

Reading a half-broken root must not fail: missing records are left out, and damaged ones are
reported.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from datetime import datetime, timezone
from typing import Any, TypeVar

from ..backfills import Backfills
from ..control import Pauses
from ..errors import RootError
from ..history import Pasts, decode_volume
from ..paths import Paths
from ..records import LARGEST_NUMBER, TERMS_REMEMBERED, RootRecord, decode, from_text
from ..runs import PastRun, Run, RunState, decode_outbox, decode_page
from ..zookeeper.operations import Node
from .mirror import Mirror
from .snapshot import Master, Member, RecentTerm
from .tracked import OpenRuns, open_of

#: A master counts as not ticking if it has not written the outbox for so many seconds. It writes it
#: at least every 30 s.
TICKING_WITHIN = 120.0
#: Most runs in `recent`.
MOST_RECENT = 50
#: Most characters of an id and similar texts.
_LONGEST_TEXT = 200

D = TypeVar("D")
T = TypeVar("T", Master, Member, RecentTerm)
#: A past run, and its entry.
Past = tuple[PastRun, str]


class LenientRecords:
    """Decodes, for one look, the records of a mirror.

    Attributes:
        warnings: a line for each requested record that cannot be parsed.
    """

    def __init__(self, mirror: Mirror, paths: Paths) -> None:
        self._mirror = mirror
        self._node = mirror.nodes.get
        self._paths = paths
        self.warnings: list[str] = []

    def app(self, expected: str | None) -> str | None:
        """Returns the app to which the root belongs; None if the root does not say.

        Raises:
            RootError: it is another app than `expected`, the asker's.
        """
        path = self._paths.root
        node = self._node(path)
        if node is None:
            self.warnings.append(
                f"{path}: no such znode: no beat has run there yet (zk_beat_hosts, zk_beat_root)"
            )
        if node is None or not node.data:
            return None
        owner = RootRecord.decode(path, node.data).app
        if expected is not None and owner != expected:
            raise RootError(
                f"{path} belongs to the app {owner!r}, and this is {expected!r}: give "
                "each app a root of its own (zk_beat_root)"
            )
        return owner

    def master(self, now: datetime) -> Master | None:
        node = self._node(self._paths.master)
        fields = self._record(self._paths.master)
        if node is None:
            return None
        outbox = self._node(self._paths.outbox)
        # A master that was elected just now may not have ticked yet.
        alive_at = max(node.mtime, 0.0 if outbox is None else outbox.mtime)
        return _made(
            Master,
            fields,
            ticked_at=None if outbox is None else _server_time(outbox.mtime),
            ticking=now.timestamp() - alive_at < TICKING_WITHIN,
        )

    def members(self) -> list[Member]:
        members = [
            _made(Member, fields, clock_offset=_offset(_instant(fields.get("written")), node))
            for path, node in self._mirror.below(self._paths.members)
            if (fields := self._record(path))
        ]
        return sorted(members, key=lambda member: (member.state != "master", member.id))

    def masters(self) -> list[RecentTerm]:
        """Returns the terms, newest first."""
        listed = self._record(self._paths.masters).get("masters")
        return [
            _made(RecentTerm, fields)
            for fields in reversed(listed[-TERMS_REMEMBERED:] if isinstance(listed, list) else [])
            if isinstance(fields, dict)
        ]

    def outbox(self) -> list[Run]:
        return self._decoded(self._paths.outbox, decode_outbox, [])

    def pauses(self) -> Pauses:
        then = "; nothing is dispatched until then"
        return self._decoded(self._paths.pauses, Pauses.decode, Pauses(), then)

    def backfills(self) -> Backfills:
        then = "; no backfill runs until then"
        return self._decoded(self._paths.backfills, Backfills.decode, Backfills(), then)

    def _record(self, path: str) -> dict[str, Any]:
        return self._decoded(path, lambda path, data: decode(path, data) if data else {}, {})

    def _decoded(
        self, path: str, decoder: Callable[[str, bytes], D], otherwise: D, then: str = ""
    ) -> D:
        """Decodes a znode. If that fails, returns `otherwise`, and perhaps warns."""
        node = self._node(path)
        try:
            return otherwise if node is None else decoder(path, node.data)
        except RootError as exc:
            self.warnings.append(f"{exc}{then}")
            return otherwise


@dataclass(frozen=True)
class PageContent:
    """The run states of a page, the newest of their past runs, and the open ones; `damage` says why
    they cannot be parsed."""

    states: dict[str, RunState]
    newest: list[Past]
    damage: str = ""
    opened: OpenRuns = field(default_factory=dict)

    @classmethod
    def of(cls, path: str, data: bytes) -> PageContent:
        try:
            states = decode_page(path, data)
        except RootError as exc:
            return cls({}, [], f"{exc}; the entries on this page do not run until then")
        past = ((run, name) for name, state in states.items() for run in state.past)
        opened = open_of({name: state for name, state in states.items() if state.open})
        return cls(states, latest(MOST_RECENT, past), opened=opened)


@dataclass(frozen=True)
class VolumeContent:
    """The histories of a volume, by entry. The rest is as in :class:`PageContent`."""

    pasts: Pasts
    newest: list[Past]
    damage: str = ""

    @classmethod
    def of(cls, path: str, data: bytes) -> VolumeContent:
        try:
            pasts = decode_volume(path, data)
        except RootError as exc:
            return cls({}, [], f"{exc}; no runs are added to it until then")
        past = ((run, name) for name, past in pasts.items() for run in past)
        return cls(pasts, latest(MOST_RECENT, past))


def latest(limit: int, past: Iterable[Past]) -> list[Past]:
    return heapq.nlargest(limit, past, key=lambda each: (each[0].at_ms, each[1]))


def recent(pages: Iterable[PageContent], volumes: Iterable[VolumeContent]) -> list[Past]:
    """Returns the newest past runs of all entries, each once."""
    found: dict[Any, Past] = {}
    for newest in (*(each.newest for each in volumes), *(each.newest for each in pages)):
        for run, name in newest:  # the states are newer
            found[name, run if run.number is None else run.run] = run, name
    return latest(MOST_RECENT, found.values())


def _offset(written: datetime | None, node: Node) -> float | None:
    return None if written is None else round(written.timestamp() - node.mtime, 3)


def _instant(value: Any) -> datetime | None:
    try:
        return from_text(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _server_time(mtime: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(mtime, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= LARGEST_NUMBER else 0


def _text(value: Any) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


def _text_or_none(value: Any) -> str | None:
    return _text(value) if isinstance(value, str) else None


_KINDS: dict[Any, Callable[[Any], Any]] = {
    "int": _number,
    "str": _text,
    "str | None": _text_or_none,
    "datetime | None": _instant,
}


def _made(cls: type[T], fields: dict[str, Any], **others: Any) -> T:
    """Makes a `cls` from the fields of a record, except `others`."""
    kinds = {each.name: each.type for each in dataclass_fields(cls) if each.name not in others}
    return cls(**{name: _KINDS[kind](fields.get(name)) for name, kind in kinds.items()}, **others)
