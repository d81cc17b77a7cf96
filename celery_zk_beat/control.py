"""How operators and the master talk, through ZooKeeper.

Operators pause entries, and ask the master to run an entry now, to drop a run, to resign, or to
backfill.

A pause lasts, so the operator's command writes it into a znode. Every claim checks the version of
this znode: once a pause is written, no master claims a run that is paused. Everything else happens
once, so it is a request: an ephemeral znode of the command, into which the master writes its
answer. A command that stops waiting deletes its request, so no request outlives its command.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from .backfills import Backfill, Backfills
from .errors import RootError, TooLarge, Uncertain, ZkBeatError
from .log import get_logger
from .paths import Paths
from .records import Record, decode, encode, instant, to_text
from .records import field as _field
from .zookeeper.operations import (
    Check,
    Create,
    Delete,
    Node,
    Operation,
    SetData,
    changed_path,
)
from .zookeeper.session import ZooKeeperSession

logger = get_logger(__name__)

RUN, DROP_RUN, RESIGN, TELL, BACKFILL = "run", "drop", "resign", "tell", "backfill"

#: Most bytes of a request; one with the longest entry name (limits.LONGEST_NAME) fits. The answer
#: repeats the request, and has to fit into a transaction.
LARGEST_REQUEST = 30_000
#: Most characters of the name of who asks.
LONGEST_WHO = 200
#: Most bytes of the pauses, which may get three times as long when they are written again; and how
#: many of these stay free for the name of who resumes.
LARGEST_PAUSES, _KEPT = 300_000, 5_000


@dataclass(frozen=True)
class Pause:
    """A pause of one entry, or of everything. Instants are aware, in UTC.

    Attributes:
        since: nothing is dispatched from this instant on; None: not paused any more.
        skip: the master still has to skip what was due until this instant; None: nothing.
        by: who paused.
    """

    since: datetime | None
    skip: datetime | None = None
    by: str | None = None


_NONE = Pause(None)


@dataclass(frozen=True)
class Pauses:
    """All pauses of one root. The pause of `everything` and those of single entries are
    independent. `by` is who changed them last."""

    everything: Pause = _NONE
    entries: Mapping[str, Pause] = field(default_factory=dict)
    by: str | None = None

    def of(self, entry: str | None) -> Pause:
        """The pause of an entry by name; with None, the pause of everything."""
        return self.everything if entry is None else self.entries.get(entry, _NONE)

    def since(self, entry: str) -> datetime | None:
        """Since when an entry is paused, None if it is not."""
        if not self.entries and self.everything.since is None:
            return None  # as nearly always: a burst asks for each run
        held = [each.since for each in (self.everything, self.of(entry)) if each.since is not None]
        return min(held, default=None)

    def skip_until(self, entry: str) -> datetime | None:
        """The instant up to which to skip what the entry missed, None for nothing. If the entry
        itself is paused, the pause of everything does not count."""
        own = self.of(entry)
        pauses = (own,) if own.since is not None else (self.everything, own)
        return max((each.skip for each in pauses if each.skip is not None), default=None)

    @property
    def skips(self) -> bool:
        """True if there is something to skip."""
        return any(each.skip is not None for each in (self.everything, *self.entries.values()))

    def without_skips(self, of: Callable[[str], bool], left: Iterable[str] = ()) -> Pauses:
        """Returns the pauses after the skips of these entries, and of everything, were done; but
        not yet of the entries `left`."""
        kept = {name: replace(self.of(name), skip=self.skip_until(name)) for name in left}
        done = {k: replace(v, skip=None) if of(k) else v for k, v in self.entries.items()}
        entries = {k: v for k, v in {**done, **kept}.items() if v != _NONE}
        return replace(self, everything=replace(self.everything, skip=None), entries=entries)

    def pause(self, entry: str | None, at: datetime, by: str | None = None) -> Pauses:
        """Returns the pauses with an entry, or with None everything, paused from `at` on;
        unchanged if it is already paused."""
        before = self.of(entry)
        if before.since is not None:
            return self
        return self._with(entry, replace(before, since=at, by=by), by)

    def resume(self, entry: str | None, at: datetime, skip: bool, by: str | None = None) -> Pauses:
        """Returns the pauses with an entry, or with None everything, not paused any more."""
        before = self.of(entry)
        if before.since is None:
            return self
        return self._with(entry, Pause(None, at if skip else before.skip), by)

    def _with(self, entry: str | None, pause: Pause, by: str | None) -> Pauses:
        if entry is None:
            return replace(self, everything=pause, by=by)
        entries = {k: v for k, v in {**self.entries, entry: pause}.items() if v != _NONE}
        return replace(self, entries=entries, by=by)

    def news(self, before: Pauses) -> list[str]:
        """Returns a line for each entry that was paused or resumed since `before`."""
        lines = []
        for entry in (None, *sorted({*before.entries, *self.entries})):
            what = "everything" if entry is None else entry
            was, now = before.of(entry), self.of(entry)
            if now.since is not None and now.since != was.since:
                lines.append(f"{what}: paused since {to_text(now.since)} by {now.by or '?'}")
            elif now.since is None and was.since is not None:
                lines.append(f"{what}: resumed; the last change is by {self.by or '?'}")
        return lines

    def encode(self) -> bytes:
        fields = {name: _pause_fields(pause) for name, pause in self.entries.items()}
        return encode({"all": _pause_fields(self.everything), "entries": fields, "by": self.by})

    @classmethod
    def decode(cls, path: str, data: bytes) -> Pauses:
        """Empty `data` means no pauses.

        Raises:
            RootError: `data` cannot be understood.
        """
        if not data:
            return cls()
        if len(data) > LARGEST_PAUSES:
            raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_PAUSES}")
        fields = decode(path, data)
        entries = _field(path, fields, "entries", dict)
        return cls(
            _pause(path, fields.get("all")),
            {name: _pause(path, each) for name, each in entries.items()},
            _who(fields),
        )


def _pause_fields(pause: Pause) -> dict[str, Any]:
    fields = vars(pause).items()
    return {name: to_text(at) if isinstance(at, datetime) else at for name, at in fields}


def _pause(path: str, fields: Any) -> Pause:
    fields = _field(path, {"pause": fields}, "pause", dict)
    names = [name for name in ("since", "skip") if fields.get(name) is not None]
    instants = {name: instant(path, fields, name) for name in names}
    return replace(_NONE, by=_who(fields), **instants)


def _who(fields: dict[str, Any]) -> str | None:
    by = fields.get("by")
    return by[:LONGEST_WHO] if isinstance(by, str) else None


@dataclass(frozen=True)
class RequestRecord(Record):
    """One request.

    Attributes:
        do: "run", "drop" or "backfill" `entry`; "resign", perhaps to the beat `to`; or "tell" what
            the entries are.
        asked: when, ISO 8601, UTC.
        by: who asks, for the log and the history.
        since, until, rate: of a backfill, as in :class:`.backfills.Backfill`.
        most: refuse a backfill of more runs than this.
        overlap: 1: run the entry even if a run of it is open and its policy forbids that.
    """

    do: str
    entry: str | None
    to: str | None
    asked: str
    by: str
    since: str | None = None
    until: str | None = None
    rate: float | None = None
    most: int | None = None
    overlap: int | None = None


@dataclass(frozen=True)
class Answer:
    """The master's answer. `text` is one line for a human, or the answer to "tell". `run` and
    `task_id` are those of a run that was claimed or dropped."""

    ok: bool
    text: str
    run: int | None = None
    task_id: str | None = None


@dataclass(frozen=True)
class Request:
    """An open request in the znode `path`, as the master sees it."""

    path: str
    record: RequestRecord

    def answer(self, answer: Answer) -> Operation:
        """Returns an operation for the transaction that does what was asked. ZooKeeper refuses it
        if the request was withdrawn, or is already answered."""
        return SetData(self.path, encode({**asdict(self.record), **asdict(answer)}), version=0)


class Control:
    """The master's side. For one thread. Raises what :meth:`ZooKeeperSession.read` raises.

    `wake` is called on kazoo's thread when an operator wrote something for :meth:`read`.
    """

    def __init__(self, session: ZooKeeperSession, paths: Paths, wake: Callable[[], None]) -> None:
        self._session = session
        self._paths = paths
        self._wake = wake
        #: Paths of requests that ZooKeeper does not let us answer, or that are damaged.
        self._given_up: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Forgets what was known in an earlier term."""
        #: Whether something was written since the last read, and whether it was the pauses.
        self.stale = self.pauses_stale = True
        self.pauses = Pauses()
        #: Why the pauses cannot be understood, None if they can. While they cannot, everything is
        #: held back: a late run can be caught up, a run that should not be cannot be undone.
        self.damage: RootError | None = None
        self._version = 0
        #: The backfills; why they cannot be understood, None if they can. While they cannot, no
        #: backfill runs.
        self.backfills = Backfills()
        self.backfills_damage: RootError | None = None
        #: None if there is no such znode: nobody has asked for a backfill yet.
        self._backfills_version: int | None = None

    def read(self) -> list[Request]:
        """Reads the pauses and backfills, and returns the open requests."""
        self.stale = self.pauses_stale = False
        try:
            both = [self._paths.pauses, self._paths.requests]
            all_ = [*both, self._paths.backfills]
            pauses, requests, backfills = self._session.read_all(all_, watch=self._on_watch)
            if pauses is None or requests is None:
                for path in both:
                    self._session.ensure(path)
                pauses, requests, backfills = self._session.read_all(all_, watch=self._on_watch)
            if pauses is None or requests is None:
                raise Uncertain(f"{self._paths.pauses}: deleted as soon as it is created")
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
        self._take_backfills(backfills)
        return [
            Request(path, record)
            for path, node in zip(paths, nodes)
            if node is not None and node.version == 0
            for record in self._understood(path, node.data)
        ]

    def _take_backfills(self, node: Node | None) -> None:
        self.backfills, self.backfills_damage, self._backfills_version = Backfills(), None, None
        if node is not None:
            self._backfills_version = node.version
            try:
                self.backfills = Backfills.decode(self._paths.backfills, node.data)
            except RootError as exc:
                self.backfills_damage = exc

    def write_backfills(self, backfills: Backfills) -> Operation:
        """Returns an operation for a transaction; call :meth:`backfills_written` after it.
        ZooKeeper refuses it if the backfills have changed since they were read."""
        path, data = self._paths.backfills, backfills.encode()
        if self._backfills_version is None:
            return Create(path, data)
        return SetData(path, data, self._backfills_version)

    def backfills_written(self, backfills: Backfills) -> None:
        self.backfills = backfills
        if self._backfills_version is None:
            self.stale = True  # read it, to set a watch
        self._backfills_version = (
            0 if self._backfills_version is None else self._backfills_version + 1
        )

    def holds(self, entry: str) -> bool:
        """True if the entry must not be dispatched."""
        return self.damage is not None or self.pauses.since(entry) is not None

    @property
    def unchanged(self) -> Operation:
        """An operation for a claim: ZooKeeper refuses the claim if the pauses have changed since
        they were read."""
        return Check(self._paths.pauses, self._version)

    def outdated(self) -> None:
        """Makes the next turn read the pauses again, because they have changed."""
        self.stale = self.pauses_stale = True

    def skipped(self, epoch: int, of: Callable[[str], bool], left: Iterable[str]) -> None:
        """Records that the skips of these entries, and of everything, were done; but not yet of the
        entries `left`."""
        pauses, bare = self.pauses.without_skips(of, left), self.pauses.without_skips(of)
        if pauses != bare and len(pauses.encode()) > LARGEST_PAUSES - _KEPT:
            logger.error("%s: no room for what is to be skipped later", self._paths.pauses)
            pauses = bare
        if pauses != self.pauses:
            written = SetData(self._paths.pauses, pauses.encode(), self._version)
            self._session.commit(Check(self._paths.epoch, epoch), written)
            self.pauses, self._version = pauses, self._version + 1

    def pausing(self, entry: str, at: datetime, by: str) -> tuple[Operation, Pauses] | None:
        """Returns an operation that pauses an entry, for a transaction, and what to give to
        :meth:`paused` after it. None if there are too many pauses."""
        pauses = self.pauses.pause(entry, at, by[:LONGEST_WHO])
        data = pauses.encode()
        if self.damage is not None or len(data) > LARGEST_PAUSES - _KEPT:
            return None
        return SetData(self._paths.pauses, data, self._version), pauses

    def paused(self, pauses: Pauses) -> None:
        """Notes that the pauses were written."""
        self.pauses, self._version = pauses, self._version + 1

    def give_up(self, request: Request) -> None:
        """Ignores this request from now on."""
        self._given_up.add(request.path)

    def _understood(self, path: str, data: bytes) -> list[RequestRecord]:
        with contextlib.suppress(RootError):
            if len(data) <= LARGEST_REQUEST:
                return [RequestRecord.decode(path, data)]
        self._given_up.add(path)  # not written by our commands, so nobody waits for an answer
        return []

    def _on_watch(self, event: object) -> None:
        if changed_path(event) not in (self._paths.requests, self._paths.backfills):
            self.pauses_stale = True
        self.stale = True
        self._wake()


# The operators' side ----------------------------------------------------------------------------


def who() -> str:
    """Returns who asks: user@host, for the log and the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:LONGEST_WHO]


def change_pauses(
    session: ZooKeeperSession, paths: Paths, change: Callable[[Pauses], Pauses]
) -> tuple[Pauses, Pauses]:
    """Applies `change` to the pauses and writes them, if they have changed.

    Returns:
        the pauses before and after.

    Raises:
        RootError: they cannot be understood, or no beat has run under this root.
        TooLarge: there are too many.
        Uncertain, ZooKeeperError: as :meth:`ZooKeeperSession.commit`.
        Conflict: somebody else changed them at the same time: try again.
    """
    node = session.read(paths.pauses)
    if node is None:
        raise RootError(
            f"{paths.pauses}: no such znode: no beat of this release has run under this root yet"
        )
    before = Pauses.decode(paths.pauses, node.data)
    after = change(before)
    if after != before:
        data, more = after.encode(), len(after.entries) > len(before.entries)
        most = LARGEST_PAUSES - _KEPT if more else LARGEST_PAUSES
        if len(data) > most:
            raise TooLarge(
                f"{paths.pauses}: nothing was changed: {len(after.entries)} pauses would have "
                f"{len(data)} bytes, and the master reads at most {most}; resume some, or pause "
                "everything"
            )
        session.commit(SetData(paths.pauses, data, node.version))
    return before, after


def cancel_backfill(session: ZooKeeperSession, paths: Paths, entry: str) -> Backfill | None:
    """Cancels the backfill of an entry: the master claims no more runs of it. Returns the backfill
    as it was, None if there is none. Raises what :func:`change_pauses` raises."""
    node = session.read(paths.backfills)
    before = Backfills() if node is None else Backfills.decode(paths.backfills, node.data)
    found = before.entries.get(entry)
    if node is not None and found is not None:
        data = before.having(entry, None).encode()
        session.commit(SetData(paths.backfills, data, node.version))
    return found


class Asking:
    """A request: a context manager that sends it and removes it. `on_change` is called on kazoo's
    thread when there may be an answer."""

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
        """Sends the request.

        Raises:
            TooLarge: the master would not read it.
            Uncertain, ZooKeeperError: as :meth:`ZooKeeperSession.commit`.
        """
        data = self._record.encode()
        if len(data) > LARGEST_REQUEST:
            raise TooLarge(
                f"the request has {len(data)} bytes, and the master reads at most "
                f"{LARGEST_REQUEST}: no entry has such a long name"
            )
        self._session.commit(Create(self._path, data, ephemeral=True), SetData(self._requests, b""))
        return self

    def answer(self) -> Answer | None:
        """Returns the master's answer, None if there is none yet. Raises what
        :meth:`ZooKeeperSession.read` raises."""
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
        """Withdraws the request. Returns True if there was no answer yet: nothing will be done."""
        try:
            self._session.commit(Delete(self._path, version=0))
        except ZkBeatError:
            return False
        return True

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ZkBeatError):  # else it is deleted when the session ends
            self._session.commit(Delete(self._path))
