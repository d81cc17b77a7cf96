"""What operators ask of the master: to hold entries back, to run one now, to resign.

It all lies in ZooKeeper. What is to last, pauses, is written by who asks, in a znode whose version
every claim checks: once it is written nothing that is paused is claimed, whoever is master. What is
done once is a request: an ephemeral znode of who asks, in which the master answers; who loses
patience takes it back, and a request of which nobody waits for the answer is not there.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from .errors import RootError, Uncertain, ZkBeatError
from .session import (
    Check,
    Create,
    Delete,
    Operation,
    SetData,
    ZooKeeperSession,
    changed_path,
)
from .znodes import Paths, Record, decode, encode, instant, to_text
from .znodes import field as _field

RUN, RESIGN = "run", "resign"

#: Most bytes of a request: the answer, in which it is repeated, has to fit into a transaction.
LARGEST_REQUEST = 10_000
#: Most bytes of pauses: they are written again, perhaps thrice as long.
LARGEST_PAUSES = 300_000


@dataclass(frozen=True)
class Pause:
    """Nothing is dispatched from `since` on. When it is over, `until` says to when what was due is
    still to be skipped; a pause whose missed runs are caught up with is over by being removed."""

    since: datetime
    until: datetime | None = None


@dataclass(frozen=True)
class Pauses:
    """All of one root. `everything` and those of single entries are independent of each other."""

    everything: Pause | None = None
    entries: Mapping[str, Pause] = field(default_factory=dict)

    def since(self, entry: str) -> datetime | None:
        """Since when an entry is held back, None where it is not."""
        held = [
            pause.since
            for pause in (self.everything, self.entries.get(entry))
            if pause is not None and pause.until is None
        ]
        return min(held, default=None)

    def skip_until(self, entry: str) -> datetime | None:
        """The instant up to which what the entry missed is to be skipped, None for none; also of
        an entry that goes on being held back with all the others."""
        own = self.entries.get(entry)
        if own is not None and own.until is None:
            return None
        over = [
            pause.until
            for pause in (self.everything, own)
            if pause is not None and pause.until is not None
        ]
        return max(over, default=None)

    @property
    def ended(self) -> bool:
        """Whether there is a pause that is over, with what was missed to be skipped."""
        pauses = (self.everything, *self.entries.values())
        return any(pause is not None and pause.until is not None for pause in pauses)

    def without_ended(self) -> Pauses:
        everything = self.everything
        if everything is not None and everything.until is not None:
            everything = None
        return Pauses(
            everything, {name: each for name, each in self.entries.items() if each.until is None}
        )

    def pause(self, entry: str | None, at: datetime) -> Pauses:
        """With an entry, or None: everything, held back from `at` on; as it is where it is so
        already."""
        before = self.everything if entry is None else self.entries.get(entry)
        pause = before if before is not None and before.until is None else Pause(at)
        return self._with(entry, pause)

    def resume(self, entry: str | None, at: datetime, skip: bool) -> Pauses:
        """With an entry, or None: everything, held back no longer."""
        before = self.everything if entry is None else self.entries.get(entry)
        if before is None or before.until is not None:
            return self
        return self._with(entry, replace(before, until=at) if skip else None)

    def _with(self, entry: str | None, pause: Pause | None) -> Pauses:
        if entry is None:
            return replace(self, everything=pause)
        entries = {**self.entries, entry: pause}
        return replace(self, entries={k: v for k, v in entries.items() if v is not None})

    def encode(self) -> bytes:
        fields = {name: _pause_fields(pause) for name, pause in self.entries.items()}
        everything = None if self.everything is None else _pause_fields(self.everything)
        return encode({"all": everything, "entries": fields})

    @classmethod
    def decode(cls, path: str, data: bytes) -> Pauses:
        """Empty `data` is none at all.

        Raises:
            RootError: not to be understood.
        """
        if not data:
            return cls()
        if len(data) > LARGEST_PAUSES:
            raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_PAUSES}")
        fields = decode(path, data)
        everything = fields.get("all")
        return cls(
            None if everything is None else _pause(path, everything),
            {
                name: _pause(path, each)
                for name, each in _field(path, fields, "entries", dict).items()
            },
        )


def _pause_fields(pause: Pause) -> dict[str, Any]:
    until = None if pause.until is None else to_text(pause.until)
    return {"since": to_text(pause.since), "until": until}


def _pause(path: str, fields: Any) -> Pause:
    over = isinstance(fields, dict) and fields.get("until") is not None
    return Pause(instant(path, fields, "since"), instant(path, fields, "until") if over else None)


@dataclass(frozen=True)
class RequestRecord(Record):
    """What is asked. `do` is "run", of `entry`, or "resign", perhaps in favour of the beat `to`;
    `asked` is ISO 8601 UTC, `by` who asks, for the log and the history."""

    do: str
    entry: str | None
    to: str | None
    asked: str
    by: str


@dataclass(frozen=True)
class Answer:
    """The master's. `text` is one line for a human; `run` and `task_id` are of a claimed run."""

    ok: bool
    text: str
    run: int | None = None
    task_id: str | None = None


@dataclass(frozen=True)
class Request:
    """As the master sees it: open, in the znode `path`."""

    path: str
    record: RequestRecord

    def answer(self, answer: Answer) -> Operation:
        """To be part of the transaction that does what was asked. It is refused when the request
        was taken back, or answered already."""
        return SetData(self.path, encode({**asdict(self.record), **asdict(answer)}), version=0)


class Control:
    """The master's side. For one thread; all but `wake` raises as :meth:`ZooKeeperSession.read`.

    Args:
        wake: called on kazoo's thread when an operator wrote something: :meth:`read` it.
    """

    def __init__(self, session: ZooKeeperSession, paths: Paths, wake: Callable[[], None]) -> None:
        self._session = session
        self._paths = paths
        self._wake = wake
        #: The requests that ZooKeeper does not let us answer, and those that are none.
        self._given_up: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """What is known was of another time as master."""
        #: Whether something was written since it was read, and whether it was pauses.
        self.stale = self.pauses_stale = True
        self.pauses = Pauses()
        #: Why the pauses cannot be understood, None when they can; while it is so, everything is
        #: held back, for what is late can be caught up with.
        self.damage: RootError | None = None
        self._version = 0

    def read(self) -> list[Request]:
        """Reads the pauses, and returns the requests that are open."""
        self.stale = self.pauses_stale = False
        try:
            both = [self._paths.pauses, self._paths.requests]
            pauses, requests = self._session.read_all(both, watch=self._on_watch)
            if pauses is None or requests is None:
                for path in both:
                    self._session.ensure(path)
                pauses, requests = self._session.read_all(both, watch=self._on_watch)
            if pauses is None or requests is None:
                raise Uncertain(f"{self._paths.pauses}: deleted as soon as it is made")
            names = sorted(self._session.children(self._paths.requests))
            paths = [path for path in map(self._paths.request, names) if path not in self._given_up]
            nodes = self._session.read_all(paths) if paths else []
        except ZkBeatError:
            self.stale = self.pauses_stale = True
            raise
        self.damage = None
        self._version = pauses.version
        try:
            self.pauses = Pauses.decode(self._paths.pauses, pauses.data)
        except RootError as exc:
            self.damage = exc
        return [
            Request(path, record)
            for path, node in zip(paths, nodes)
            if node is not None and node.version == 0
            for record in self._understood(path, node.data)
        ]

    def holds(self, entry: str) -> bool:
        """Whether nothing of the entry is to be dispatched."""
        return self.damage is not None or self.pauses.since(entry) is not None

    @property
    def unchanged(self) -> Operation:
        """For a claim: refuses it when the pauses are no longer as they were read."""
        return Check(self._paths.pauses, self._version)

    def forget_ended(self, epoch: int) -> None:
        """What was missed has been skipped: the pauses that are over are removed."""
        pauses = self.pauses.without_ended()
        self._session.commit(
            Check(self._paths.epoch, epoch),
            SetData(self._paths.pauses, pauses.encode(), self._version),
        )
        self.pauses = pauses
        self._version += 1

    def give_up(self, request: Request) -> None:
        """Has it be left alone."""
        self._given_up.add(request.path)

    def _understood(self, path: str, data: bytes) -> list[RequestRecord]:
        with contextlib.suppress(RootError):
            if len(data) <= LARGEST_REQUEST:
                return [RequestRecord.decode(path, data)]
        self._given_up.add(path)  # nobody who uses this package waits for an answer to it
        return []

    def _on_watch(self, event: object) -> None:
        if changed_path(event) != self._paths.requests:
            self.pauses_stale = True
        self.stale = True
        self._wake()


# The side of who asks ---------------------------------------------------------------------------


def change_pauses(
    session: ZooKeeperSession, paths: Paths, change: Callable[[Pauses], Pauses]
) -> tuple[Pauses, Pauses]:
    """Writes what `change` makes of the pauses, unless it leaves them as they are.

    Returns:
        the pauses before and after.

    Raises:
        RootError: they are not to be understood, or nothing of ours is under this root.
        Uncertain, ZooKeeperError: as :meth:`ZooKeeperSession.commit`.
        Conflict: somebody else changed them at the same time: again, please.
    """
    node = session.read(paths.pauses)
    if node is None:
        raise RootError(
            f"{paths.pauses}: no such znode: no beat of this release has run under this root yet"
        )
    before = Pauses.decode(paths.pauses, node.data)
    after = change(before)
    if after != before:
        session.commit(SetData(paths.pauses, after.encode(), node.version))
    return before, after


class Asking:
    """A request, from making it to taking it back; a context manager.

    Args:
        on_change: called on kazoo's thread when there may be an answer.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        paths: Paths,
        record: RequestRecord,
        on_change: Callable[[object], None],
    ) -> None:
        self._session = session
        self._requests = paths.requests
        self._path = paths.request(uuid.uuid4().hex)
        self._record = record
        self._on_change = on_change

    def __enter__(self) -> Asking:
        """Raises as :meth:`ZooKeeperSession.commit`."""
        self._session.commit(
            Create(self._path, self._record.encode(), ephemeral=True),
            SetData(self._requests, b""),
        )
        return self

    def answer(self) -> Answer | None:
        """The master's answer, None as long as there is none. Raises as
        :meth:`ZooKeeperSession.read`."""
        node = self._session.read(self._path, watch=self._on_change)
        if node is None or node.version == 0:
            return None
        fields = decode(self._path, node.data)
        text, run, task_id = fields.get("text"), fields.get("run"), fields.get("task_id")
        return Answer(
            fields.get("ok") is True,
            text if isinstance(text, str) else "",
            run if isinstance(run, int) else None,
            task_id if isinstance(task_id, str) else None,
        )

    def take_back(self) -> bool:
        """Whether there was no answer yet, so that nothing will be done."""
        try:
            self._session.commit(Delete(self._path, version=0))
        except ZkBeatError:
            return False
        return True

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ZkBeatError):  # it goes with the session, too
            self._session.commit(Delete(self._path))
