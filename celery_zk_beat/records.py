"""The JSON records that the znodes hold. Pure: no I/O.

Every record has ``"format": 2``. Raise FORMAT if the release before can no longer read what a
release writes. A record of an unknown format is refused, and the error names the format.

Some records are made elsewhere, with the functions of this module. runs.py has pages and outbox:
its states keep their text, because a claim writes hundreds of them. control.py has pauses and
requests, because what they mean changes with how they are written.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from reprlib import Repr
from typing import Any, TypeVar

from .errors import RootError

FORMAT = 2
#: The largest whole number that every JSON reader keeps exact.
LARGEST_NUMBER = 2**53 - 1
#: How many masters are remembered.
TERMS_REMEMBERED = 50
#: Most bytes of the list of masters. We write no larger one, and it might not fit into the
#: transaction of an election.
LARGEST_MASTERS = 400_000

#: For messages: shortens a value that may be large, or nested too deep for repr().
_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
shown = _repr.repr
#: What to do about a znode if a part of it is damaged.
MEND = "repair it (zkCli.sh get {0}), or delete the znode to start afresh"

R = TypeVar("R", bound="Record")

#: Says of an annotation which values it allows.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int and 0 <= value <= LARGEST_NUMBER,
    "str | None": lambda value: value is None or isinstance(value, str),
    "int | None": lambda value: value is None or _KINDS["int"](value),
    "float | None": lambda value: (
        value is None or _KINDS["int"](value) or (type(value) is float and math.isfinite(value))
    ),
}


class Record:
    """A frozen dataclass that is stored as a JSON object."""

    def encode(self) -> bytes:
        return encode(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def decode(cls: type[R], path: str, data: bytes) -> R:
        """Reads a record. Raises RootError, which names `path`, if `data` is not one. Ignores
        unknown fields: the format number says whether we may."""
        return cls.of(path, decode(path, data))

    @classmethod
    def of(cls: type[R], path: str, fields: Any) -> R:
        """Makes a record from the fields of a part of another record. Raises as :meth:`decode`."""
        if not isinstance(fields, dict):
            raise RootError(f"{path}: {shown(fields)} is no {cls.__name__}; {_remedy(path)}")
        for name, kind in cls.__dataclass_fields__.items():  # type: ignore[attr-defined]
            if not _KINDS[kind.type](fields.get(name)):
                raise RootError(
                    f"{path}: the field {name!r} is {shown(fields.get(name))}, expected "
                    f"{kind.type}; {_remedy(path)}"
                )
        return cls(**{name: fields.get(name) for name in cls.__dataclass_fields__})  # type: ignore[attr-defined]


@dataclass(frozen=True)
class RootRecord(Record):
    """Which app the root belongs to."""

    app: str


@dataclass(frozen=True)
class MasterRecord(Record):
    """Who is master. `since` is ISO 8601 UTC, `version` the version of this package, `schedule` and
    `broker` are as in :class:`MemberRecord`, `successor` is the id of the beat to which it hands
    over."""

    id: str
    host: str
    pid: int
    since: str
    epoch: int
    version: str
    schedule: str | None
    successor: str | None
    broker: str | None = None


@dataclass(frozen=True)
class EpochRecord(Record):
    """Who was elected last. The version of this znode is the epoch. `session` is hexadecimal;
    :func:`next_era` makes `era`."""

    id: str
    session: str
    era: str


@dataclass(frozen=True)
class MemberRecord(Record):
    """One beat.

    Attributes:
        state: "master" or "standby".
        since: when it was started.
        schedule: a digest of what it would run.
        written: when this was written, by the clock of its machine. The znode's mtime is the
            server's clock, so the difference shows how far the two clocks are apart.
        useless: why it could do nothing when it was master; None once it has shown that it can.
        broker: a digest of where it would send runs.
        guard: "on" if it has a guard, else why it has none; None if none is wanted.
    """

    id: str
    host: str
    pid: int
    state: str
    since: str
    version: str
    schedule: str | None
    written: str
    useless: str | None
    broker: str | None = None
    guard: str | None = None


@dataclass(frozen=True)
class InstalledRecord(Record):
    """The `digest` of the `beat_schedule` that was last written into another scheduler's store."""

    digest: str


@dataclass(frozen=True)
class TermRecord(Record):
    """One time as master. `until` is when it ended, None while it lasts; `why` says how it
    ended."""

    epoch: int
    id: str
    host: str
    pid: int
    since: str
    until: str | None
    why: str | None


def next_era(last: str, now: float) -> str:
    """Makes the era of an epoch: ISO 8601 UTC to the millisecond, so that texts sort as instants
    do.

    Args:
        last: the era of the epoch before; a text that is no instant is ignored. It makes the eras
            grow if ZooKeeper's clock was set back.
        now: seconds since 1970 by ZooKeeper's clock. It makes the eras grow if `last` was lost with
            the root.
    """
    era = datetime.fromtimestamp(math.floor(now * 1000) / 1000, timezone.utc)
    with contextlib.suppress(ValueError, OverflowError):
        era = max(era, from_text(last) + timedelta(milliseconds=1))
    return to_text(era)


def encode_masters(terms: Sequence[TermRecord]) -> bytes:
    """Writes the last terms, as many as fit."""
    terms = terms[-TERMS_REMEMBERED:]
    while True:
        data = encode({"masters": [asdict(term) for term in terms]})
        if len(data) <= LARGEST_MASTERS or len(terms) < 2:
            return data
        terms = terms[(len(terms) + 1) // 2 :]


def decode_masters(path: str, data: bytes) -> list[TermRecord]:
    """Reads terms, oldest first; none if `data` is empty. Raises as :meth:`Record.decode`."""
    if not data:
        return []
    if len(data) > LARGEST_MASTERS:
        raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_MASTERS}")
    return [TermRecord.of(path, term) for term in field(path, decode(path, data), "masters", list)]


def encode(fields: dict[str, Any]) -> bytes:
    """Writes a record: compact JSON in ASCII (a lone surrogate in a name is kept as an escape)."""
    return json.dumps({"format": FORMAT, **fields}, separators=(",", ":")).encode("ascii")


def decode(path: str, data: bytes) -> dict[str, Any]:
    """Returns the fields of a record. Raises RootError if it is not JSON, not an object, or of a
    format that this release does not know."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RootError(f"{path}: not JSON ({exc}); {_remedy(path)}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise RootError(
            f"{path}: a record of format {shown(found)}, and this release reads format "
            f"{FORMAT}: run the release that wrote it, or {_remedy(path)}"
        )
    return fields


def field(path: str, fields: Any, name: str, kind: type) -> Any:
    """Returns the field `name`, of type `kind`, of a record that was read from `path`. Raises
    RootError if it is missing or of another type. So do the next two functions."""
    value = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RootError(
            f"{path}: the field {name!r} is {shown(value)}, expected {kind.__name__}: "
            f"{MEND.format(path)}"
        )
    return value


def count(path: str, fields: Any, name: str) -> int:
    """Returns a :func:`field` that counts something."""
    value: int = field(path, fields, name, int)
    if not 0 <= value <= LARGEST_NUMBER:
        raise RootError(
            f"{path}: the field {name!r} is {shown(value)}, expected 0 to {LARGEST_NUMBER}"
        )
    return value


def instant(path: str, fields: Any, name: str) -> datetime:
    """Returns a :func:`field` that holds an instant as :func:`to_text` writes it."""
    text = field(path, fields, name, str)
    try:
        return from_text(text)
    except (ValueError, OverflowError):
        raise RootError(
            f"{path}: the field {name!r} is {text!r:.80}, expected an ISO 8601 instant"
        ) from None


def _remedy(path: str) -> str:
    return f"look at it (zkCli.sh get {path}) and delete it if it is not needed"


def to_text(instant: datetime) -> str:
    """Writes an aware datetime as ISO 8601 in UTC, always with microseconds, so that texts sort."""
    return _utc_text(instant.astimezone(timezone.utc))


@functools.lru_cache(1024)
def _utc_text(instant: datetime) -> str:
    """Cached, because a run's page, the outbox and its message need the same text. For UTC alone:
    in other zones two datetimes can be equal and yet an hour apart, when clocks are set back."""
    return instant.isoformat(timespec="microseconds")


def from_text(text: str) -> datetime:
    """Reads what :func:`to_text` wrote. Returns an aware datetime in UTC. Raises ValueError if it
    is no such text."""
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(f"no UTC offset in {text!r}")
    return instant.astimezone(timezone.utc)
