"""Which runs were claimed, and which of those are published: a transactional outbox in ZooKeeper.

It knows nothing of schedules or brokers. Its holder does, for each run, in this order: claim,
publish, say that it is published. A run is claimed in one transaction that checks the epoch, so
it is claimed once, by a master; it stays in the outbox until a later write says that it was
published, so whoever is master next knows of it.

There is one recovery path. Whatever goes wrong (no answer, a version that is not the known one, a
znode deleted underfoot), the ledger forgets all it knows and raises; its holder loads it again and
goes on from what ZooKeeper says.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from json.encoder import encode_basestring_ascii as _quoted
from typing import NamedTuple, NoReturn

from .election import MasterElection, Reign
from .errors import Conflict, NotMaster, RootError, ZkBeatError
from .log import get_logger
from .runs import (
    HISTORY,
    HISTORY_OF_PAGE,
    PastRun,
    Run,
    RunState,
    decode_outbox,
    decode_page,
    encode_outbox,
    encode_page,
)
from .session import Check, Create, Node, Operation, Pending, SetData, boottime
from .znodes import is_page, page_of

logger = get_logger(__name__)

#: Most runs of one transaction: what a crash in the middle may leave in the outbox.
MOST_RUNS = 500
#: Most bytes of data in one transaction that could be less; ZooKeeper drops the connection at a
#: request of 1 MiB (jute.maxbuffer, Administrator's Guide), again and again.
MOST_BYTES = 480_000
#: Most bytes of a page, and of the outbox: the largest of both fit into one transaction.
LARGEST_PAGE, LARGEST_OUTBOX = MOST_BYTES, 500_000
#: Bytes of an outbox that is put aside that go into one znode.
_PIECE = 500_000
#: How many times as long a page, or an outbox, may become when it is written again.
_MOST_LONGER = 5
#: How many of an entry's dropped runs are remembered.
DROPS_REMEMBERED = 100
#: How long the state of an entry is kept that no master's schedule names.
RETENTION = timedelta(days=30)
#: Seconds after which a master writes the outbox though nothing in it has changed.
TOUCH_EVERY = 30.0
#: A run that is published so soon after its claim was dispatched when it was claimed.
PROMPT = timedelta(seconds=1)
#: Part of the session time-out for which an acknowledged write vouches for the session, counted
#: from when it was sent. Not all of it: a follower passes on to the leader that it heard of us
#: with a delay of up to half a tick, and a tick is at most half a session time-out.
SAFE_PART = 2 / 3


@dataclass
class _Page:
    """A page as it is in ZooKeeper; `version` is None where there is none yet, `size` in bytes."""

    states: dict[str, RunState]
    version: int | None = None
    size: int = 0

    def remembered(self, history: tuple[PastRun, ...], past: PastRun) -> tuple[PastRun, ...]:
        """The history of an entry on this page with one more."""
        most = max(1, min(HISTORY, HISTORY_OF_PAGE // max(1, len(self.states))))
        return (*history, past)[-most:]


class _Published(NamedTuple):
    """A run, what the history of its entry is to say of it, and the entry's next `last_run_at`; the
    latter two are None where they are as the claim has it."""

    run: Run
    past: PastRun | None
    clock: datetime | None


class RunLedger:
    """The run states and the outbox below one election's root. For one thread at a time.

    Everything that talks to ZooKeeper raises

    - NotMaster: this is not, or no longer, the master of the epoch that was loaded;
    - Conflict: something was not as it was loaded;
    - Uncertain: no answer;
    - ZooKeeperError, RootError: refused, or not to be understood; the message names the znode.

    After any of them the ledger is empty and must be loaded again.
    """

    def __init__(self, election: MasterElection) -> None:
        self._election = election
        self._session = election.session
        self._paths = election.paths
        #: The last run of each entry that this process published: what it knows to be done stays
        #: done, though the write that would have said so was lost.
        self._published: dict[str, _Published] = {}
        self.forget()

    def forget(self) -> None:
        """Throws away all that was read."""
        #: The reign for which this was loaded, None when it is not.
        self.reign: Reign | None = None
        #: The runs that are claimed and not known to be published, oldest first. Read only.
        self.outbox: dict[str, Run] = {}
        self._pages: dict[str, _Page] = {}
        self._damaged: set[str] = set()
        self._outbox_version = 0
        self._outbox_changed = False
        #: Those of a claim that is on its way.
        self._claiming: dict[str, Run] = {}
        self._confirming: Pending | None = None
        #: Runs that were published late, or by another master than claimed them, by entry: its
        #: state says so. A run leaves the outbox in ZooKeeper with the write of that state.
        self._amended: dict[str, Run] = {}
        #: On :func:`boottime`: when the outbox was last written.
        self._written_at = -math.inf
        #: On :func:`boottime`: until when ZooKeeper cannot have given the mastership to another.
        self._entitled_until = 0.0

    def load(self, reign: Reign) -> None:
        """Reads all run states and the outbox, as the master of `reign`.

        A page that cannot be understood is reported, and left alone: its entries have no
        :meth:`state` and cannot be claimed until it is mended.
        """
        self.forget()
        # A read may be answered by a server that has not heard of the latest writes (ZooKeeper
        # Programmer's Guide, consistency guarantees), such as a claim of ours whose answer was
        # lost. But not one that follows a write of the same session, which a mere check is, too.
        fence = self._session.send(Check(self._paths.epoch, reign.epoch))
        names = sorted(filter(is_page, self._session.children(self._paths.runs)))
        try:
            fence.result()
        except Conflict:
            text = f"{self._paths.epoch}: no longer at {reign.epoch}, the epoch of ours"
            raise NotMaster(text) from None
        paths = [self._paths.outbox, *map(self._paths.page, names)]
        outbox, *pages = self._session.read_all(paths)
        for name, node in zip(names, pages):
            if node is not None:
                self._take_page(name, node)
        self.reign = reign
        try:
            self._take_outbox(outbox, reign)
        except ZkBeatError as exc:
            self._fail(exc)

    def state(self, entry: str) -> RunState | None:
        """The state of an entry, None if it was never seen or is on a damaged page."""
        page = self._pages.get(page_of(entry))
        return None if page is None else page.states.get(entry)

    def damaged(self, entry: str) -> bool:
        """Whether the entry's page cannot be understood."""
        return page_of(entry) in self._damaged

    @property
    def is_damaged(self) -> bool:
        """Whether any page cannot be understood."""
        return bool(self._damaged)

    def first_seen(
        self,
        entries: Mapping[str, datetime],
        keys: Mapping[str, str | None] | None = None,
        zones: Mapping[str, str | None] | None = None,
    ) -> None:
        """Gives entries that have none a state; one whose last run waits in the outbox, as after
        its page was deleted, that of this run.

        Args:
            entries: name to `last_run_at`, the instant from which their clock runs.
            keys: name to key, of those that have one.
            zones: name to time zone, of those that run by one.
        """
        keys, zones = keys or {}, zones or {}
        states = {
            name: RunState(at, key=keys.get(name), zone=zones.get(name))
            for name, at in entries.items()
        }
        for name in states.keys() & self.outbox.keys():
            run = self.outbox[name]
            states[name] = RunState(
                run.claimed, run.number, run.due, key=run.key, zone=zones.get(name)
            )
        self._commit_all(states)

    def rewrite(self, states: Mapping[str, RunState]) -> None:
        """Writes other states for entries that have one."""
        self._commit_all(states)

    def claim(
        self,
        runs: Sequence[Run],
        *also: Operation,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[Run]:
        """Claims runs, in one transaction.

        Args:
            runs: at most one of each entry, of entries that have a state and no run in the
                outbox.
            also: is part of the transaction.
            meanwhile: is called while the answer is on its way, and may publish and confirm what
                is in the outbox.

        Returns:
            those that were claimed and are now in the outbox: as many as fit into a transaction,
            at least one. The others are as before.
        """
        states = {run.entry: self._after(run) for run in runs}
        batch = next(self._batches(states))
        claimed = [run for run in runs if run.entry in batch]
        self._claiming = {run.entry: run for run in claimed}
        sent = self._send(batch, self.outbox, also)
        meanwhile()
        self._finish_in_order(sent)
        self.outbox.update(self._claiming)
        self._claiming = {}
        return claimed

    def drop(self, runs: Iterable[Run], why: str, *also: Operation) -> None:
        """Takes runs out of the outbox unpublished, and notes them in the states of their entries,
        which must have one. `why` is for their history, `also` part of each transaction."""
        states = {}
        for run in runs:
            state = self._pages[page_of(run.entry)].states[run.entry]
            past = PastRun.of(run.number, run.due, run.claimed, run.epoch, f"dropped: {why}")
            states[run.entry] = replace(
                state,
                dropped=(*state.dropped, run.number)[-DROPS_REMEMBERED:],
                history=_amended(state.history, past),
            )
        for batch in self._batches(states):
            outbox = {name: run for name, run in self.outbox.items() if name not in batch}
            self._commit(batch, outbox, also)
            self.outbox = outbox

    def skip(
        self, entries: Mapping[str, tuple[datetime, datetime]], why: str, *also: Operation
    ) -> None:
        """Notes that what was due does not run, and has the clocks of entries go on from there.

        Args:
            entries: name, of one that has a state, to the instant that was due and the one from
                which its clock goes on.
            why: for their history.
            also: is part of each transaction.
        """
        assert self.reign is not None
        states: dict[str, RunState | None] = {}
        for name, (due, at) in entries.items():
            page = self._pages[page_of(name)]
            state = page.states[name]
            past = PastRun.of(None, due, at, self.reign.epoch, why)
            states[name] = replace(
                state,
                last_run_at=max(at, state.last_run_at),
                history=page.remembered(state.history, past),
            )
        self._commit_all(states, also)

    def note_named(self, named: Container[str], now: datetime) -> list[str]:
        """Marks the states of entries that `named`, this master's schedule, does not name, and
        removes those that have been marked for longer than RETENTION and have no run that waits.

        Returns:
            the names of the removed.
        """
        changed: dict[str, RunState | None] = {}
        for page in self._pages.values():
            for name, state in page.states.items():
                if name in named:
                    if state.unnamed_since is not None:
                        changed[name] = replace(state, unnamed_since=None)
                elif state.unnamed_since is None:
                    changed[name] = replace(state, unnamed_since=now)
                elif now - state.unnamed_since > RETENTION and name not in self.outbox:
                    changed[name] = None
        self._commit_all(changed)
        return [name for name, state in changed.items() if state is None]

    def assure(self) -> None:
        """To be called before each publish: returns if this is still the master that claimed,
        as far as can be told, and no more than a safe part of the session time-out after the
        server heard of it; asks the server where that was too long ago."""
        if boottime() >= self._entitled_until:
            self._commit({}, self.outbox)
        if self._election.reign != self.reign or boottime() >= self._entitled_until:
            self._fail(NotMaster(f"{self._paths.master}: not, or not certainly, of this beat"))

    def published(self, run: Run, at: datetime, clock: datetime | None = None) -> None:
        """Takes a run, which was published at `at`, out of the outbox; ZooKeeper learns it from
        the next :meth:`confirm`, or from the next claim.

        Args:
            clock: the entry's next `last_run_at`, where it is another than that of the claim.
        """
        assert self.reign is not None
        past = None
        if clock is not None or run.epoch != self.reign.epoch or at - run.claimed > PROMPT:
            past = PastRun.of(run.number, run.due, at, self.reign.epoch, run.note)
        del self.outbox[run.entry]
        self._published[run.entry] = published = _Published(run, past, clock)
        self._amend(published)

    def _amend(self, published: _Published) -> None:
        run, past, clock = published
        self._outbox_changed = True
        state = self.state(run.entry)
        if past is not None and state is not None:
            self._pages[page_of(run.entry)].states[run.entry] = replace(
                state,
                last_run_at=max(clock or state.last_run_at, state.last_run_at),
                history=_amended(state.history, past),
            )
            self._amended[run.entry] = run

    def put_last(self, run: Run) -> None:
        """Has a run be the last of the outbox: no other waits for it any more."""
        self.outbox[run.entry] = self.outbox.pop(run.entry)

    def confirm(self) -> None:
        """Writes down what was published, without waiting; only one such write is on its way at
        any time, and takes what has gathered meanwhile. Where there is nothing to write, and has
        not been for a while, it writes all the same: the time of the outbox tells others that
        this master is at work."""
        if self._confirming is not None and self._confirming.answered:
            self._finish_confirming()
        if self._confirming is None and (
            self._outbox_changed or boottime() - self._written_at > TOUCH_EVERY
        ):
            states = {name: self.state(name) for name in self._amended}
            self._confirming = self._send(next(self._batches(states), {}), self.outbox)

    @property
    def unconfirmed(self) -> bool:
        """Whether something was published of which no write on its way tells."""
        return self._outbox_changed

    def flush(self) -> None:
        """As :meth:`confirm`, and waits until ZooKeeper knows it."""
        while self._confirming is not None or self._outbox_changed:
            if self._confirming is not None:
                self._finish_confirming()
            if self._outbox_changed:
                self.confirm()

    def __repr__(self) -> str:
        states = sum(len(page.states) for page in self._pages.values())
        return f"<RunLedger {self.reign} {states} states, {len(self.outbox)} in the outbox>"

    # Writing ------------------------------------------------------------------------------------

    def _commit_all(
        self, states: Mapping[str, RunState | None], also: Sequence[Operation] = ()
    ) -> None:
        for batch in self._batches(states):
            self._commit(batch, self.outbox, also)

    def _commit(
        self,
        states: Mapping[str, RunState | None],
        outbox: dict[str, Run],
        also: Sequence[Operation] = (),
    ) -> None:
        self._finish_in_order(self._send(states, outbox, also))

    def _send(
        self,
        states: Mapping[str, RunState | None],
        outbox: dict[str, Run],
        also: Sequence[Operation] = (),
    ) -> Pending:
        """The one transaction with which everything is written (a state of None is removed):
        nothing happens unless the epoch, the pages and the outbox are as this ledger knows them.
        A write that is still on its way is counted in the versions that it will leave, so the
        next need not wait for it."""
        if self.reign is None:
            raise NotMaster(f"{self._paths.root}: the run states are not loaded")
        operations: list[Operation] = [Check(self._paths.epoch, self.reign.epoch)]
        operations += also
        touched = {}
        for entry, state in states.items():
            name = page_of(entry)
            page = touched[name] = self._pages.setdefault(name, _Page({}))
            if state is None:
                del page.states[entry]
            else:
                page.states[entry] = state
        if self._amended:
            self._amended = {
                k: run for k, run in self._amended.items() if page_of(k) not in touched
            }
        for name, page in touched.items():
            data = encode_page(page.states)
            page.size = len(data)
            path = self._paths.page(name)
            if page.version is None:
                operations.append(Create(path, data))
                page.version = 0
            else:
                operations.append(SetData(path, data, page.version))
                page.version += 1
        if self._claiming and (name := page_of(next(iter(self._claiming)))) not in touched:
            # Not without the claim that is on its way. The version of the outbox does not tell:
            # another hand may have brought it to where that claim would have.
            version = self._pages[name].version
            assert version is not None
            operations.append(Check(self._paths.page(name), version))
        runs = [*outbox.values(), *self._amended.values(), *self._claiming.values()]
        operations.append(SetData(self._paths.outbox, encode_outbox(runs), self._outbox_version))
        self._outbox_version += 1
        self._outbox_changed = bool(self._amended)
        try:
            self._written_at = boottime()
            return self._session.send(*operations)
        except ZkBeatError as exc:
            self._fail(exc)

    def _finish_in_order(self, sent: Pending) -> None:
        if self._confirming is not None and self._confirming.sent <= sent.sent:
            # It was sent before, so it is answered before: this costs no further round trip,
            # and what it says is not mistaken for an answer to what follows.
            self._finish_confirming()
        self._finish(sent)

    def _finish(self, sent: Pending) -> None:
        try:
            sent.result()
        except ZkBeatError as exc:
            self._fail(exc)
        self._entitled_until = sent.sent + SAFE_PART * self._session.timeout

    def _finish_confirming(self) -> None:
        confirming, self._confirming = self._confirming, None
        assert confirming is not None
        self._finish(confirming)

    def _fail(self, exc: ZkBeatError) -> NoReturn:
        self.forget()
        raise exc

    def _batches(
        self, states: Mapping[str, RunState | None]
    ) -> Iterator[dict[str, RunState | None]]:
        """The states in parts, of which each, when it is asked for, is as large as fits into one
        transaction, and holds at least one. Page by page, since every page that is touched is
        written whole."""
        left = deque(sorted(states, key=page_of))
        while left:
            runs = [*self.outbox.values(), *self._amended.values()]
            room = MOST_BYTES - len(encode_outbox(runs))
            batch: dict[str, RunState | None] = {}
            page = None
            while left and len(batch) < MOST_RUNS:
                name = left[0]
                room -= _size(name, states[name])
                if page_of(name) != page:
                    page = page_of(name)
                    room -= self._pages[page].size if page in self._pages else 0
                if batch and room < 0:
                    break
                batch[left.popleft()] = states[name]
            yield batch

    def _after(self, run: Run) -> RunState:
        """The state of an entry whose run is claimed. A clock that was set back, or another
        machine's, does not set it back."""
        page = self._pages.get(page_of(run.entry)) or _Page({})
        before = page.states.get(run.entry) or RunState(run.claimed)
        past = PastRun.of(run.number, run.due, run.claimed, run.epoch, run.note)
        return replace(
            before,
            last_run_at=before.last_run_at if run.extra else max(run.claimed, before.last_run_at),
            total_run_count=run.number,
            due=run.due,
            unnamed_since=None,
            history=page.remembered(before.history, past),
            key=run.key,
            ask=before.ask if run.extra else run.ask,
        )

    # Reading ------------------------------------------------------------------------------------

    def _take_outbox(self, node: Node | None, reign: Reign) -> None:
        path = self._paths.outbox
        fenced = Check(self._paths.epoch, reign.epoch)
        if node is None:
            self._session.commit(fenced, Create(path, encode_outbox(())))
            return
        self._outbox_version = node.version
        try:
            runs = decode_outbox(path, node.data)
            _check_size(path, len(node.data), LARGEST_OUTBOX, lambda: encode_outbox(runs))
        except RootError as exc:
            # Without an outbox nothing can be claimed. Nothing is lost: it is kept.
            aside = self._paths.damaged_outbox(node.data)
            for n in range(0, len(node.data) or 1, _PIECE):
                piece = Create(f"{aside}-at-{n}" if n else aside, node.data[n : n + _PIECE])
                with contextlib.suppress(Conflict):  # there since another try
                    self._session.commit(piece)
            self._session.commit(fenced, SetData(path, encode_outbox(()), node.version))
            self._outbox_version += 1
            logger.error("%s; put aside as %s: runs in it were perhaps not published", exc, aside)
            return
        done = {run.entry for run in runs if self._has_published(run)}
        self.outbox = {run.entry: run for run in runs if run.entry not in done}
        for name in done:
            self._amend(self._published[name])

    def _has_published(self, run: Run) -> bool:
        published = self._published.get(run.entry)
        return published is not None and published.run == run

    def _take_page(self, name: str, node: Node) -> None:
        path = self._paths.page(name)
        try:
            states = decode_page(path, node.data)
            size = len(node.data)
            size = _check_size(path, size, LARGEST_PAGE, lambda: encode_page(states))
            self._pages[name] = _Page(states, node.version, size)
        except RootError as exc:
            self._damaged.add(name)
            logger.error("%s; until then the entries on this page do not run", exc)


def _check_size(path: str, size: int, most: int, encode: Callable[[], bytes]) -> int:
    """How many bytes a znode of so many has when it is written again, at most.

    Raises:
        RootError: too many.
    """
    # Another hand may have written it shorter than we do: not in ASCII, without microseconds.
    size = max(size, len(encode())) if size > most / _MOST_LONGER else size
    if size > most:
        raise RootError(
            f"{path}: has {size} bytes, and more than {most} cannot be written: delete in it what "
            "is not needed"
        )
    return size


def _amended(history: tuple[PastRun, ...], past: PastRun) -> tuple[PastRun, ...]:
    """With what is said of a run replaced, as long as it is remembered."""
    return tuple(past if each.number == past.number else each for each in history)


def _size(name: str, state: RunState | None) -> int:
    """At least the bytes of an entry's state in its page and of its run in the outbox."""
    size = 2 * len(_quoted(name)) + 230
    if state is not None:
        size += len(state.text) + len(_quoted(state.key or ""))
    return size
