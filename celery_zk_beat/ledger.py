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
from datetime import datetime, timedelta, timezone
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NamedTuple, NoReturn

from . import clock
from .election import MasterElection, Term
from .errors import Conflict, NotMaster, RootError, Uncertain, ZkBeatError
from .log import get_logger
from .paths import is_page, page_of
from .records import to_text
from .runs import (
    HISTORY,
    HISTORY_OF_PAGE,
    LATEST,
    LONGEST_ERROR,
    NEVER,
    TOLERANCE,
    PastRun,
    Run,
    RunState,
    decode_outbox,
    decode_page,
    encode_outbox,
    encode_page,
)
from .zookeeper.operations import Check, Create, Node, Operation, Pending, SetData

logger = get_logger(__name__)

#: Most runs of one transaction: what a crash in the middle may leave in the outbox.
MOST_RUNS = 500
#: Most bytes of one transaction, unless the server takes less: it hangs up on a request of more
#: than its jute.maxbuffer (Administrator's Guide), which is 1,048,575 where nobody has changed it.
#: Where this is less, so are the limits that follow, in proportion.
MOST_BYTES = 1_000_000
#: However little it takes: a request of fewer bytes is not lost for its size.
_LEAST_BYTES = 16_000
#: How often in a row, each within so many seconds, a large transaction has to get no answer to be
#: taken for too large; and how often where one of its size once got one.
_LOST, _LOST_WITHIN, _LOST_AND_ONCE_NOT = 2, 60.0, 5
#: Seconds after which more bytes are tried again.
_RAISE_AFTER = 3600.0
#: The same, at first, where entries do not run for want of them.
_RAISE_SOON = 60.0
#: Most bytes of the outbox when something is claimed, and of a page: both are written together.
LARGEST_OUTBOX, LARGEST_PAGE = 400_000, 500_000
#: Most bytes of an entry's name, in JSON: those of the requests that bear it are bounded, too.
LONGEST_NAME = 20_000
#: Bytes of the pages of a transaction that could hold less: not much more than a claim needs.
_ENOUGH = 480_000
#: Bytes by which a state may grow that has no history: as it runs, and is named no longer.
_GROWTH = 250
#: At least the bytes of a transaction, and of a run in the outbox, beside names and data.
_OVERHEAD = 300
#: How many times as long a page may become when it is written again.
_MOST_LONGER = 5
#: Bytes of an outbox that is put aside that go into one znode.
_PIECE = 500_000
#: How many of an entry's dropped runs are remembered.
DROPS_REMEMBERED = 100
#: How long the state of an entry is kept that no master's schedule names.
RETENTION = timedelta(days=30)
#: How long no master's schedule may name an entry whose clock goes on when it is back: longer than
#: a rolling deploy, in which beats disagree, takes.
ABSENCE = timedelta(hours=1)
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
    """A page as it is in ZooKeeper.

    Attributes:
        version: None where there is none yet.
        size: in bytes.
        floor: see :class:`.runs.States`.
        most_past: how many past runs of an entry there is room for; less where it is full.
        mtime: when it was written, as it was loaded, by ZooKeeper's clock, seconds since 1970.
    """

    states: dict[str, RunState]
    version: int | None = None
    size: int = 0
    floor: int = 0
    most_past: int = HISTORY
    mtime: float = 0.0

    def remembered(self, history: tuple[PastRun, ...], past: PastRun) -> tuple[PastRun, ...]:
        """The history of an entry on this page with one more."""
        most = max(1, min(HISTORY, HISTORY_OF_PAGE // max(1, len(self.states))))
        return (*history, past)[-min(most, self.most_past) :] if self.most_past else ()

    def remove(self, entry: str) -> None:
        self.floor = max(self.floor, self.states.pop(entry).total_run_count)

    def encode(self, most: int) -> bytes:
        """Its bytes; where they are more than `most`, without what is oldest in the histories."""
        data = encode_page(self.states, self.floor)
        while len(data) > most and self.most_past:
            self.most_past //= 2
            for entry, state in self.states.items():
                if not self.most_past:
                    self.states[entry] = state.bare
                elif len(state.history) > self.most_past:
                    self.states[entry] = replace(state, history=state.history[-self.most_past :])
            data = encode_page(self.states, self.floor)
        self.size = len(data)
        return data

    def room(self, most: int) -> int:
        """How many bytes of states there is room for, on a page of at most so many."""
        room = most - self.size - _GROWTH * len(self.states)
        if room > 0:
            return room  # at least, and so it is nearly always
        return most - sum(_least(*each) for each in self.states.items())


class _Published(NamedTuple):
    """A run, what the history of its entry is to say of it, and the entry's next `last_run_at`; the
    latter two are None where they are as the claim has it."""

    run: Run
    past: PastRun | None
    goes_on_from: datetime | None


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
        #: What this process published and ZooKeeper is not known to have heard of: it stays done,
        #: though the write that would have said so was lost. By entry.
        self._published: dict[str, _Published] = {}
        #: Most bytes of a transaction; and, on boottime(), since when it is so.
        self._most_bytes, self._most_bytes_since = MOST_BYTES, 0.0
        #: An epoch, and the numbers, by entry, of runs that had certainly not left when it began.
        self._unsent_in: tuple[int, dict[str, int]] = 0, {}
        #: The largest transaction that was answered; and, of those in a row that were not since,
        #: how many there are, the bytes of the smallest, and when the last was lost.
        self._passed_bytes = 0
        #: Seconds after which more are tried, as long as a page is too large for what is written.
        self._raise_after, self._lacks_bytes = _RAISE_SOON, False
        self._lost, self._lost_bytes, self._lost_at = 0, 0, 0.0
        self.forget()

    def forget(self) -> None:
        """Throws away all that was read."""
        #: The term for which this was loaded, None when it is not.
        self.term: Term | None = None
        #: The runs that are claimed and not known to be published, oldest first. Read only.
        self.outbox: dict[str, Run] = {}
        #: Entries of which the runs had certainly not left when this was loaded.
        self.unsent: set[str] = set()
        #: See :attr:`outbox_bytes`; None when it is to be reckoned anew.
        self._outbox_bytes: int | None = None
        self._pages: dict[str, _Page] = {}
        self._damaged: set[str] = set()
        #: Entries of which no state can be kept.
        self._refused: set[str] = set()
        #: What the schedule names, None when it is not known.
        self._named: Container[str] | None = None
        self._outbox_version = 0
        self._outbox_changed = False
        #: Those of a claim that is on its way.
        self._claiming: dict[str, Run] = {}
        self._confirming: _Sent | None = None
        #: All that is on its way.
        self._under_way: list[_Sent] = []
        #: Runs that were published late, or by another master than claimed them, by entry: its
        #: state says so. A run leaves the outbox in ZooKeeper with the write of that state.
        self._amended: dict[str, Run] = {}
        #: On boottime(): when the outbox was last written.
        self._written_at = -math.inf
        #: On boottime(): until when ZooKeeper cannot have given the mastership to another.
        self._entitled_until = 0.0

    def load(self, term: Term) -> None:
        """Reads all run states and the outbox, as the master of `term`.

        A page that cannot be understood is reported, and left alone: its entries have no
        :meth:`state` and cannot be claimed until it is mended.
        """
        self.forget()
        after = self._raise_after if self._lacks_bytes else _RAISE_AFTER
        self._lacks_bytes = False
        if clock.boottime() - self._most_bytes_since > after:
            # The server may take more by now, or the network was to blame.
            self._most_bytes = min(2 * self._most_bytes, MOST_BYTES)
            self._most_bytes_since = clock.boottime()
        # A read may be answered by a server that has not heard of the latest writes (ZooKeeper
        # Programmer's Guide, consistency guarantees), such as a claim of ours whose answer was
        # lost. But not one that follows a write of the same session, which a mere check is, too.
        fence = self._session.send(Check(self._paths.epoch, term.epoch))
        names = sorted(filter(is_page, self._session.children(self._paths.runs)))
        try:
            fence.result()
        except Conflict:
            text = f"{self._paths.epoch}: no longer at {term.epoch}, the epoch of ours"
            raise NotMaster(text) from None
        paths = [self._paths.outbox, *map(self._paths.page, names)]
        outbox, *pages = self._session.read_all(paths)
        self.term = term
        try:
            self._take_outbox(outbox, term)
        except ZkBeatError as exc:
            self._fail(exc)
        for name, node in zip(names, pages):
            if node is not None:
                self._take_page(name, node)
        for published in self._published.values():
            self._amend(published)
        if self.unsent:
            # Before any of them leaves: the next master is not to believe it for ever.
            self._commit({}, self.outbox)

    def state(self, entry: str) -> RunState | None:
        """The state of an entry, None if it was never seen, or is :meth:`damaged`."""
        page = self._pages.get(page_of(entry))
        return None if page is None or entry in self._refused else page.states.get(entry)

    def damaged(self, entry: str) -> bool:
        """Whether the entry's page cannot be understood, or has no room for it."""
        return entry in self._refused or page_of(entry) in self._damaged

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
        its page was deleted, that of this run. Where a page is full, states that the schedule does
        not name make room, those first that it has not named for longest; an entry for which there
        is none, or whose name is too long, is reported, and :meth:`damaged`.

        Args:
            entries: name to `last_run_at`, the instant from which their clock runs.
            keys: name to key, of those that have one.
            zones: name to time zone, of those that run by one.
        """
        keys, zones = keys or {}, zones or {}
        pages: dict[str, dict[str, RunState | None]] = {}
        for name, at in entries.items():
            floor = self._page(name).floor
            state = RunState(at, floor, key=keys.get(name), zone=zones.get(name))
            if self._ahead > TOLERANCE:
                # Nothing of what is still to come by another clock has run.
                state = replace(state, last_run_at=NEVER).moved(NEVER, at, self._ahead)
            if name in self.outbox:
                run = self.outbox[name]
                number = max(run.number, floor)
                state = replace(
                    state, last_run_at=run.claimed, total_run_count=number, due=run.due, key=run.key
                )
            pages.setdefault(page_of(name), {})[name] = state
        states: dict[str, RunState | None] = {}
        for page, new in pages.items():
            states.update(self._admitted(page, new))
        self._commit_all(states)

    def rewrite(self, states: Mapping[str, RunState]) -> None:
        """Writes other states for entries that have one."""
        self._commit_all(states)

    def set_back(self, now: datetime) -> dict[str, RunState]:
        """Has the clocks of entries go on that a beat with a clock that was ahead has set: to an
        instant that is still to come, and was when it was written, by ZooKeeper's clock. To be
        called after :meth:`load`.

        Returns:
            their states as they were.
        """
        before, after = {}, {}
        latest = now + TOLERANCE
        for page in self._pages.values():
            ahead = [
                (name, each) for name, each in page.states.items() if each.last_run_at > latest
            ]
            if not ahead:
                continue
            written = datetime.fromtimestamp(min(page.mtime, LATEST), timezone.utc)
            for name, state in ahead:
                # The time of its page says nothing of what is not written yet.
                if state.last_run_at > written + TOLERANCE and name not in self._amended:
                    at = min(written + self._ahead, now)
                    if state.due is not None and state.due <= now:
                        at = max(at, state.due)
                    before[name], after[name] = state, state.set_back(at)
        self._commit_all(after)
        return before

    @property
    def _ahead(self) -> timedelta:
        """By how much this machine's clock is ahead of ZooKeeper's."""
        return timedelta(seconds=self._session.clock_offset)

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
            at least one unless it is :attr:`full`. The others are as before.
        """
        room = self.largest_outbox - self.outbox_bytes
        states: dict[str, RunState | None] = {}
        for run in runs:
            room -= self.bytes_of([run])
            if room < 0 and (states or self.full):
                break
            states[run.entry] = self._after(run)
        if not states:
            return []
        batch = next(self._batches(states))
        claimed = [run for run in runs if run.entry in batch]
        self._claiming = {run.entry: run for run in claimed}
        sent = self._send(batch, self.outbox, also)
        meanwhile()
        self._finish_in_order(sent)
        self.outbox.update(self._claiming)
        self._outbox_bytes = None
        self._claiming = {}
        return claimed

    def drop(self, runs: Iterable[Run], why: str | Mapping[str, str], *also: Operation) -> None:
        """Takes runs out of the outbox unpublished, and notes them in the states of their entries,
        which must have one. `why` is for their history, the same for all or by entry; `also` is
        part of each transaction."""
        states = {}
        for run in runs:
            state = self._pages[page_of(run.entry)].states[run.entry]
            note = f"dropped: {why if isinstance(why, str) else why[run.entry]}"
            past = PastRun.of(run.number, run.due, run.claimed, run.epoch, note)
            states[run.entry] = replace(
                state,
                dropped=(*state.dropped, run.number)[-DROPS_REMEMBERED:],
                history=_amended(state.history, past),
            )
        for batch in self._batches(states):
            outbox = {name: run for name, run in self.outbox.items() if name not in batch}
            if self._goes_alone(True):
                self._commit(batch, self.outbox, also)
                self._outbox_changed = True
            else:
                self._commit(batch, outbox, also)
            self.outbox, self._outbox_bytes = outbox, None

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
        assert self.term is not None
        states: dict[str, RunState | None] = {}
        for name, (due, at) in entries.items():
            page = self._pages[page_of(name)]
            state = page.states[name]
            past = PastRun.of(None, due, at, self.term.epoch, why)
            # None of what was due until then has run.
            states[name] = state.moved(
                state.last_run_at,
                at,
                self._ahead,
                history=page.remembered(state.history, past),
            )
        self._commit_all(states, also)

    @property
    def largest_outbox(self) -> int:
        """Most bytes of the runs in the outbox that something more is claimed beside."""
        return min(LARGEST_OUTBOX, self._most_bytes * 2 // 5)

    @property
    def outbox_bytes(self) -> int:
        """Those of the outbox, as it would be written."""
        if self._outbox_bytes is None:
            waiting, amended = self.outbox.values(), self._amended.values()
            runs = self.bytes_of(waiting) + self.bytes_of(amended)
            self._outbox_bytes = len(encode_outbox(())) + runs
        return self._outbox_bytes

    @property
    def full(self) -> bool:
        """Whether the outbox may have no room, in bytes, for one more run."""
        most = self.largest_outbox - self._longest_name - _OVERHEAD
        return self.outbox_bytes > max(0, most)

    @staticmethod
    def bytes_of(runs: Iterable[Run]) -> int:
        """Those of runs in the outbox, at most: a hand-over adds to them that they are unsent."""
        return sum(len(run.text) + 16 for run in runs)

    def note_named(self, named: Container[str], now: datetime, *, anew: bool = False) -> list[str]:
        """Marks the states of entries that `named`, this master's schedule, does not name, and
        removes those that have been marked for longer than RETENTION and have no run that waits.

        Args:
            anew: whether the clocks of entries that are named again, and were not for longer than
                ABSENCE, start from `now`.

        Returns:
            the names of the removed.
        """
        self._named = named
        # A clock that is ahead, perhaps for a moment, is not to say that it is time.
        sure = now - max(self._ahead, timedelta())
        changed: dict[str, RunState | None] = {}
        for page in self._pages.values():
            for name, state in page.states.items():
                if name in named:
                    since = state.unnamed_since
                    if since is None:
                        continue
                    changed[name] = state = replace(state, unnamed_since=None)
                    if anew and sure - since > ABSENCE and now > state.last_run_at:
                        changed[name] = state.moved(state.last_run_at, now, self._ahead, ask=None)
                        logger.info(
                            "%s: no master's schedule has named it since %s: its clock starts anew",
                            name,
                            to_text(since),
                        )
                elif state.unnamed_since is None:
                    # By ZooKeeper's clock: others are to judge by it, and ours may be wrong.
                    changed[name] = replace(state, unnamed_since=now - self._ahead)
                elif sure - state.unnamed_since > RETENTION and name not in self.outbox:
                    changed[name] = None
        self._commit_all(changed)
        return [name for name, state in changed.items() if state is None]

    def assure(self) -> None:
        """To be called before each publish: returns if this is still the master that claimed,
        as far as can be told, and no more than a safe part of the session time-out after the
        server heard of it; asks the server where that was too long ago."""
        if clock.boottime() >= self._entitled_until:
            self._commit({}, self.outbox)
        if self._election.term != self.term or clock.boottime() >= self._entitled_until:
            self._fail(NotMaster(f"{self._paths.master}: not, or not certainly, of this beat"))

    def published(self, run: Run, at: datetime, goes_on_from: datetime | None = None) -> None:
        """Takes a run, which was published at `at`, out of the outbox; ZooKeeper learns it from
        the next :meth:`confirm`, or from the next claim.

        Args:
            goes_on_from: the entry's next `last_run_at`, if it is not that of the claim.
        """
        assert self.term is not None
        past = None
        if goes_on_from is not None or run.epoch != self.term.epoch or at - run.claimed > PROMPT:
            past = PastRun.of(run.number, run.due, at, self.term.epoch, run.note)
        del self.outbox[run.entry]
        self._published[run.entry] = published = _Published(run, past, goes_on_from)
        self._amend(published)

    def _amend(self, published: _Published) -> None:
        run, past, goes_on_from = published
        self._outbox_changed, self._outbox_bytes = True, None
        state = self.state(run.entry)
        if past is not None and state is not None:
            last = state.last_run_at
            self._pages[page_of(run.entry)].states[run.entry] = state.moved(
                last, goes_on_from or last, self._ahead, history=_amended(state.history, past)
            )
            self._amended[run.entry] = run

    def put_last(self, run: Run, error: str | None = None) -> None:
        """Has a run be the last of the outbox: no other waits for it any more. `error`: what is
        wrong with it, for whoever looks at what waits."""
        run = self.outbox.pop(run.entry)
        error = None if error is None else error[:LONGEST_ERROR]
        if error != run.error:
            # A text that differs each time is no reason to write it each time.
            self._outbox_changed |= error is None or run.error is None
            run = replace(run, error=error)
            self._outbox_bytes = None
        self.outbox[run.entry] = run

    def confirm(self) -> None:
        """Writes down what was published, without waiting; only one such write is on its way at
        any time, and takes what has gathered meanwhile. Where there is nothing to write, and has
        not been for a while, it writes all the same: the time of the outbox tells others that
        this master is at work."""
        if self._confirming is not None and self._confirming.pending.answered:
            self._finish_confirming()
        if self._confirming is None and (
            self.unconfirmed or clock.boottime() - self._written_at > TOUCH_EVERY
        ):
            states = {name: self.state(name) for name in self._amended}
            self._confirming = self._send(next(self._batches(states), {}), self.outbox)

    @property
    def unconfirmed(self) -> bool:
        """Whether something was published of which no write on its way tells, and one could."""
        return self._outbox_changed and (bool(self._amended) or not self._goes_alone(False))

    def hand_over(self, unsent: Iterable[str]) -> None:
        """As :meth:`flush`, and tells the next master which runs have certainly not left. Nothing
        is to be published after that, until this is loaded again.

        Args:
            unsent: their entries.
        """
        for name in unsent:
            self.outbox[name] = replace(self.outbox[name], unsent=True)
            self._outbox_changed, self._outbox_bytes = True, None
        self.flush()

    def flush(self) -> None:
        """As :meth:`confirm`, and waits until ZooKeeper knows it."""
        while self._confirming is not None or self.unconfirmed:
            if self._confirming is not None:
                self._finish_confirming()
            if self.unconfirmed:
                self.confirm()

    def __repr__(self) -> str:
        states = sum(len(page.states) for page in self._pages.values())
        return f"<RunLedger {self.term} {states} states, {len(self.outbox)} in the outbox>"

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
    ) -> _Sent:
        """The one transaction with which everything is written (a state of None is removed):
        nothing happens unless the epoch, the pages and the outbox are as this ledger knows them.
        A write that is still on its way is counted in the versions that it will leave, so the
        next need not wait for it."""
        if self.term is None:
            raise NotMaster(f"{self._paths.root}: the run states are not loaded")
        operations: list[Operation] = [Check(self._paths.epoch, self.term.epoch)]
        operations += also
        touched = {}
        for entry, state in states.items():
            name = page_of(entry)
            page = touched[name] = self._pages.setdefault(name, _Page({}))
            if state is None:
                page.remove(entry)
            else:
                page.states[entry] = state
        if self._amended:
            self._amended = {
                k: run for k, run in self._amended.items() if page_of(k) not in touched
            }
            self._outbox_bytes = None
        for name, page in touched.items():
            data = page.encode(self._largest_page)
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
        is_needed = outbox is not self.outbox or bool(self._claiming)
        if not is_needed and self._goes_alone(bool(touched)):
            operations.append(Check(self._paths.outbox, self._outbox_version))
            told = {}
        else:
            runs = [*outbox.values(), *self._amended.values(), *self._claiming.values()]
            data = encode_outbox(runs)
            operations.append(SetData(self._paths.outbox, data, self._outbox_version))
            self._outbox_version += 1
            self._outbox_changed = bool(self._amended)
            told = {k: each for k, each in self._published.items() if k not in self._amended}
        size = sum(map(_bytes_of, operations))
        try:
            self._written_at = clock.boottime()
            sent = _Sent(self._session.send(*operations), told, size)
        except ZkBeatError as exc:
            self._fail(exc)
        self._under_way.append(sent)
        return sent

    def _goes_alone(self, has_states: bool) -> bool:
        """Whether a transaction is to leave the outbox as it is in ZooKeeper. For that may be
        larger than it should be to have room for something beside it, or than can be written: it
        is of another release, of another hand, or of a time when the server took more. What is
        published makes it smaller."""
        if has_states:
            return self.outbox_bytes > self.largest_outbox + self._longest_name + _OVERHEAD
        return self.outbox_bytes > self._most_bytes

    def _finish_in_order(self, sent: _Sent) -> None:
        if self._confirming is not None and self._confirming.sent <= sent.sent:
            # It was sent before, so it is answered before: this costs no further round trip,
            # and what it says is not mistaken for an answer to what follows.
            self._finish_confirming()
        self._finish(sent)

    def _finish(self, sent: _Sent) -> None:
        try:
            sent.pending.result()
        except ZkBeatError as exc:
            if isinstance(exc, Uncertain):
                self._note_lost(max(each.size for each in (sent, *self._under_way)))
            self._fail(exc)
        self._under_way = [each for each in self._under_way if each is not sent]
        self._passed_bytes = max(self._passed_bytes, sent.size)
        if 2 * sent.size >= self._lost_bytes:
            self._lost = 0
        self._entitled_until = sent.sent + SAFE_PART * self._session.timeout
        for entry, published in sent.told.items():
            if self._published.get(entry) is published:
                del self._published[entry]

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
            room = min(_ENOUGH, self._most_bytes // 2)
            room -= 0 if self._goes_alone(True) else self.outbox_bytes
            batch: dict[str, RunState | None] = {}
            page = None
            while left and len(batch) < MOST_RUNS:
                name = left[0]
                room -= _size(name, states[name])
                if page_of(name) != page:
                    page = page_of(name)
                    room -= self._page(name).size + _OVERHEAD
                if batch and room < 0:
                    break
                batch[left.popleft()] = states[name]
            yield batch

    def _after(self, run: Run) -> RunState:
        """The state of an entry whose run is claimed. A clock that was set back, or another
        machine's, does not set it back."""
        page = self._page(run.entry)
        before = page.states.get(run.entry) or RunState(run.claimed)
        past = PastRun.of(run.number, run.due, run.claimed, run.epoch, run.note)
        changes: dict[str, Any] = {
            "total_run_count": run.number,
            "due": run.due,
            "unnamed_since": None,
            "history": page.remembered(before.history, past),
            "key": run.key,
        }
        if run.extra:
            return replace(before, **changes)
        return before.moved(run.due, run.claimed, self._ahead, ask=run.ask, **changes)

    # Room ---------------------------------------------------------------------------------------

    def _note_lost(self, size: int) -> None:
        """A server hangs up without a word on what is more than its jute.maxbuffer, again and
        again: writes less from then on, where that is likely."""
        if size < _LEAST_BYTES or self._most_bytes <= _LEAST_BYTES:
            return
        now = clock.boottime()
        if self._lost and now - self._lost_at < _LOST_WITHIN:
            size = min(size, self._lost_bytes)
        else:
            self._lost = 0
        self._lost, self._lost_bytes, self._lost_at = self._lost + 1, size, now
        if self._lost < (_LOST if size > self._passed_bytes else _LOST_AND_ONCE_NOT):
            return
        most = max(_LEAST_BYTES, min(size, self._most_bytes) // 2)
        self._most_bytes, self._most_bytes_since = most, now
        self._passed_bytes = min(self._passed_bytes, most)
        self._lost = 1  # the next is proof enough
        self._raise_after = min(2 * self._raise_after, _RAISE_AFTER)
        logger.warning(
            "%s: no answer from ZooKeeper to transactions of %d bytes and more: is its "
            "jute.maxbuffer lower than the default, 1048575? From now on at most %d bytes are "
            "written at once",
            self._paths.root,
            size,
            most,
        )

    @property
    def _largest_page(self) -> int:
        return min(LARGEST_PAGE, self._most_bytes // 2)

    @property
    def _longest_name(self) -> int:
        return min(LONGEST_NAME, self._most_bytes // 50)

    def _page(self, entry: str) -> _Page:
        """That of an entry; an empty one, where there is none yet."""
        return self._pages.get(page_of(entry)) or _Page({})

    def _admitted(self, name: str, new: dict[str, RunState | None]) -> dict[str, RunState | None]:
        """Those of the states that a page has room for, with None for each that makes room."""
        path, page = self._paths.page(name), self._pages.get(name) or _Page({})
        sizes = {
            entry: _least(entry, state)
            for entry, state in new.items()
            if state is not None and self._takes_name(entry)
        }
        room, needed = page.room(self._largest_page), sum(sizes.values())
        removed: dict[str, RunState | None] = {}
        if needed > room:
            # More than is needed at the moment, so that it is not for each new one.
            removed = self._removable(page, needed - room + self._largest_page // 10, new)
            room += sum(_least(entry, page.states[entry]) for entry in removed)
        refused = []
        for entry, size in sizes.items():
            room -= size
            if room < 0:
                refused.append(entry)
                room += size
        admitted = {entry: new[entry] for entry in sizes.keys() - set(refused)}
        self._refused.difference_update(admitted)
        if removed:
            logger.warning(
                "%s: full, so %d states are removed that no schedule names", path, len(removed)
            )
        if refused:
            self._refused.update(refused)
            logger.error(
                "%s: full, with %d entries: there is no room for %d more, which do not run, such "
                "as %.80r",
                path,
                len(page.states) - len(removed) + len(admitted),
                len(refused),
                refused[0],
            )
        return {**removed, **admitted}

    def _takes_name(self, entry: str) -> bool:
        """Whether an entry's name is not too long; reports it, if it is."""
        # A character has 12 bytes in JSON at most, as an emoji has.
        if len(entry) * 12 + 2 <= self._longest_name:
            return True
        size = len(_quoted(entry))
        if size <= self._longest_name:
            return True
        self._refused.add(entry)
        logger.error(
            "%.80s...: does not run, for its name is too long: %d bytes in JSON, expected at most "
            "%d",
            entry,
            size,
            self._longest_name,
        )
        return False

    def _removable(
        self, page: _Page, needed: int, but: Container[str] = ()
    ) -> dict[str, RunState | None]:
        """None for each of so many states that the schedule does not name that they make room for
        so many bytes, if there are as many: those that it has not named for longest."""
        found: dict[str, RunState | None] = {}
        for entry, state in sorted(
            page.states.items(), key=lambda each: each[1].unnamed_since or each[1].last_run_at
        ):
            if needed <= 0:
                break
            unnamed = state.unnamed_since if self._named is None else entry not in self._named
            if unnamed and entry not in self.outbox and entry not in but:
                found[entry] = None
                needed -= _least(entry, state)
        return found

    # Reading ------------------------------------------------------------------------------------

    def _take_outbox(self, node: Node | None, term: Term) -> None:
        path = self._paths.outbox
        fenced = Check(self._paths.epoch, term.epoch)
        if node is None:
            self._session.commit(fenced, Create(path, encode_outbox(())))
            self._published = {}
            return
        self._outbox_version = node.version
        try:
            runs = decode_outbox(path, node.data)
            if (size := len(encode_outbox(runs))) > MOST_BYTES:
                raise _too_large(path, size, MOST_BYTES)  # it was not written by us
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
        known = self._unsent_in[1] if self._unsent_in[0] == term.epoch else {}
        known = {**known, **{run.entry: run.number for run in runs if run.unsent}}
        self._unsent_in = term.epoch, known
        self.unsent = {run.entry for run in runs if known.get(run.entry) == run.number}
        self.outbox = {
            run.entry: replace(run, unsent=False) for run in runs if run.entry not in done
        }
        self._outbox_bytes = None
        self._published = {name: self._published[name] for name in done}

    def _has_published(self, run: Run) -> bool:
        published = self._published.get(run.entry)
        return published is not None and published.run == run

    def _take_page(self, name: str, node: Node) -> None:
        path = self._paths.page(name)
        try:
            states = decode_page(path, node.data)
            size = len(node.data)
            page = _Page(states, node.version, size, states.floor, mtime=node.mtime)
            self._pages[name] = page
            # Another hand may have written it shorter than we do: not in ASCII, for one.
            if page.size > self._largest_page // _MOST_LONGER:
                self._cut_to_size(path, page)
            if self._most_bytes < MOST_BYTES:
                for entry in page.states:
                    self._takes_name(entry)
        except RootError as exc:
            self._pages.pop(name, None)
            self._damaged.add(name)
            self._lacks_bytes |= self._most_bytes < MOST_BYTES
            logger.error("%s; until then the entries on this page do not run", exc)

    def _cut_to_size(self, path: str, page: _Page) -> None:
        """Removes of a page what need not be there, where it could not be written otherwise.

        Raises:
            RootError: that is not enough.
        """
        excess = len(page.encode(self._largest_page)) - self._largest_page
        if excess > 0:
            for entry in self._removable(page, excess):
                page.remove(entry)
            size = len(page.encode(self._largest_page))
            if size > self._largest_page + self._largest_page // 20:
                less = self._most_bytes < MOST_BYTES
                raise _too_large(path, size, self._largest_page, less)


@dataclass(frozen=True)
class _Sent:
    """A write that is on its way, with what it tells of :attr:`RunLedger._published`."""

    pending: Pending
    told: dict[str, _Published]
    size: int

    @property
    def sent(self) -> float:
        return self.pending.sent


def _too_large(path: str, size: int, most: int, less: bool = False) -> RootError:
    """`less`: whether the server takes less than is usual."""
    remedy = "raise jute.maxbuffer of the servers" if less else "delete in it what is not needed"
    return RootError(
        f"{path}: has {size} bytes as it would be written, and more than {most} cannot be: {remedy}"
    )


def _bytes_of(operation: Operation) -> int:
    """About those of an operation in a request."""
    data = operation.data if isinstance(operation, (Create, SetData)) else b""
    return len(operation.path) + len(data) + 60


def _amended(history: tuple[PastRun, ...], past: PastRun) -> tuple[PastRun, ...]:
    """With what is said of a run replaced, as long as it is remembered."""
    return tuple(past if each.number == past.number else each for each in history)


def _size(name: str, state: RunState | None) -> int:
    """At least the bytes of an entry's state in its page and of its run in the outbox."""
    size = 2 * len(_quoted(name)) + 230
    if state is not None:
        size += len(state.text) + len(_quoted(state.key or ""))
    return size


def _least(name: str, state: RunState | None) -> int:
    """Bytes that an entry's state has on its page, however it grows, without its history."""
    return len(_quoted(name)) + (len(state.bare.text) if state is not None else 0) + _GROWTH
