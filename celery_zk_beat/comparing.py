"""Compares what a master runs with another configuration: `zk-beat diff`.

The master writes nothing about its entries for that. The command asks, and the master answers.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

from .due import next_free, next_run, plan_of, schedule_of_plan, schedule_text, zone_of
from .errors import RootError
from .names import without_addresses
from .runs import RunState

ADDED, REMOVED, RENAMED, CHANGED = "added", "removed", "renamed", "changed"
#: Most bytes that an answer unpacks to. No master makes a larger one.
_LARGEST = 200_000_000


class Told(NamedTuple):
    """An entry, as text. `plan`: from it one can make a schedule that is due at the same instants;
    None: only its class knows them. `arguments`: a checksum of args, kwargs and options."""

    task: str
    schedule: str
    plan: list[Any] | None
    arguments: int

    def is_same_schedule(self, other: Told) -> bool:
        return (self.plan or self.schedule) == (other.plan or other.schedule)


def told(entry: Any) -> Told:
    shown = without_addresses(repr((entry.args, entry.kwargs, entry.options)))
    arguments = zlib.crc32(shown.encode("utf-8", "surrogatepass"))
    schedule = entry.schedule
    text = "none" if schedule is None else schedule_text(schedule)
    return Told(str(entry.task), text, plan_of(schedule), arguments)


def pack(entries: Mapping[str, Any]) -> str:
    """Packs entries for :func:`unpack`."""
    rows = {name: told(entry) for name, entry in list(entries.items())}
    data = json.dumps(rows, separators=(",", ":")).encode()
    return base64.b85encode(zlib.compress(data, 1)).decode()


def unpack(text: str) -> dict[str, Told]:
    """Returns the packed entries.

    Raises:
        RootError: :func:`pack` did not make it.
    """
    try:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(base64.b85decode(text), _LARGEST)
        if not unpacking.eof:
            raise ValueError("it is cut off")
        rows = {str(name): Told(*row) for name, row in json.loads(data).items()}
    except Exception as exc:
        raise RootError(f"the master's answer cannot be understood: {exc}") from None
    for name, row in rows.items():
        fits = isinstance(row.plan, (list, type(None))) and isinstance(row.arguments, int)
        if not (fits and isinstance(row.task, str) and isinstance(row.schedule, str)):
            raise RootError(f"the master's answer cannot be understood: {name!r:.100}")
    return rows


@dataclass(frozen=True)
class Difference:
    """A difference in one entry. Instants are UTC; None if unknown.

    Attributes:
        kind: ADDED, REMOVED, RENAMED (perhaps) or CHANGED.
        was: its earlier name, if it is renamed.
        what: what is different, in words.
        before, after: when it runs next, as things are, and with the other configuration from now
            on.
    """

    kind: str
    entry: str
    was: str | None
    what: tuple[str, ...]
    before: datetime | None
    after: datetime | None


def compare(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Told],
    states: Mapping[str, RunState],
    app: Any,
    now: datetime,
) -> list[Difference]:
    """Returns what changes from `theirs`, the entries that the master runs, to our entries; by
    name."""

    def before(name: str) -> datetime | None:
        schedule = schedule_of_plan(theirs[name].plan, app)
        if schedule is None:
            return None
        return _next(SimpleNamespace(schedule=schedule, default_now=schedule.now), name)

    def _next(entry: Any, name: str) -> datetime | None:
        state = states.get(name)
        if state is None or zone_of(entry) != state.zone:  # its clock starts now
            return next_run(entry, now)
        return next_free(entry, next_run(entry, state.last_run_at), state)

    mine = {name: told(entry) for name, entry in ours.items()}
    gone = {name: theirs[name] for name in sorted(theirs) if name not in mine}
    found = []
    for name in sorted(mine):
        entry, row = ours[name], mine[name]
        if name not in theirs:
            was = next((old for old, each in gone.items() if _is_alike(row, each)), None)
            kind, what = ADDED, (row.task, row.schedule)
            if was is not None:
                del gone[was]
                kind = RENAMED
            at = None if was is None else before(was)
            found.append(Difference(kind, name, was, what, at, _next(entry, name)))
        else:
            changed = tuple(_changes(theirs[name], row))
            if changed:
                at = before(name)
                found.append(Difference(CHANGED, name, None, changed, at, _next(entry, name)))
    for name, row in gone.items():
        what = (row.task, row.schedule)
        found.append(Difference(REMOVED, name, None, what, before(name), None))
    return sorted(found, key=lambda each: each.entry)


def _is_alike(one: Told, other: Told) -> bool:
    """True if they differ only in the name, and in what depends on the name."""
    alike = (one.task, one.schedule, one.arguments)
    return alike == (other.task, other.schedule, other.arguments)


def _changes(before: Told, after: Told) -> Iterator[str]:
    if before.task != after.task:
        yield f"task: {before.task} -> {after.task}"
    if not before.is_same_schedule(after):
        yield f"schedule: {before.schedule} -> {after.schedule}"
    if before.arguments != after.arguments:
        yield "args, kwargs or options"
