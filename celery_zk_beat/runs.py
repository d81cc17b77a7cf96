"""What is remembered of runs, and how it lies in the pages and the outbox. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from .znodes import count, decode, encode, field, instant, to_text


@dataclass(frozen=True)
class RunState:
    """What is remembered of an entry. Instants are aware, UTC.

    Attributes:
        last_run_at: when its last run was claimed; before the first, when it was first seen.
        total_run_count: number of its last run, 0 before the first.
        due: the instant that the last run was for, None before the first.
        dropped: numbers of the last runs that were dropped, by the recovery policy.
        unnamed_since: since when no master's schedule named the entry, None while one does.
    """

    last_run_at: datetime
    total_run_count: int = 0
    due: datetime | None = None
    dropped: tuple[int, ...] = ()
    unnamed_since: datetime | None = None


@dataclass(frozen=True)
class Run:
    """One due execution of one entry. Instants are aware, UTC.

    Attributes:
        entry: the entry's name.
        number: counts the entry's runs from 1, for ever.
        due: the earliest instant at which the entry was due and had not run.
        claimed: when it is claimed: the entry's next ``last_run_at``.
        epoch: of the master that claims it.
    """

    entry: str
    number: int
    due: datetime
    claimed: datetime
    epoch: int


def encode_page(states: dict[str, RunState]) -> bytes:
    return encode({"entries": {name: _state_fields(state) for name, state in states.items()}})


def _state_fields(state: RunState) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "last_run_at": to_text(state.last_run_at),
        "total_run_count": state.total_run_count,
    }
    # What most entries have not is left out: a page is written whole.
    if state.due is not None:
        fields["due"] = to_text(state.due)
    if state.dropped:
        fields["dropped"] = list(state.dropped)
    if state.unnamed_since is not None:
        fields["unnamed_since"] = to_text(state.unnamed_since)
    return fields


def decode_page(path: str, data: bytes) -> dict[str, RunState]:
    entries = field(path, decode(path, data), "entries", dict)
    return {name: _decode_state(path, fields) for name, fields in entries.items()}


def _decode_state(path: str, fields: Any) -> RunState:
    state = RunState(instant(path, fields, "last_run_at"), count(path, fields, "total_run_count"))
    if "due" in fields:
        state = replace(state, due=instant(path, fields, "due"))
    if "dropped" in fields:
        state = replace(state, dropped=tuple(field(path, fields, "dropped", list)))
    if "unnamed_since" in fields:
        state = replace(state, unnamed_since=instant(path, fields, "unnamed_since"))
    return state


def encode_outbox(runs: Iterable[Run]) -> bytes:
    return encode(
        {
            "runs": [
                {**asdict(run), "due": to_text(run.due), "claimed": to_text(run.claimed)}
                for run in runs
            ]
        }
    )


def decode_outbox(path: str, data: bytes) -> list[Run]:
    return [
        Run(
            field(path, fields, "entry", str),
            count(path, fields, "number"),
            instant(path, fields, "due"),
            instant(path, fields, "claimed"),
            count(path, fields, "epoch"),
        )
        for fields in field(path, decode(path, data), "runs", list)
    ]
