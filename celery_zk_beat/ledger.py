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
from typing import NamedTuple, NoReturn

from . import clock, limits
from .election.public import MasterElection
from .election.terms import Term
from .errors import Conflict, NotMaster, RootError, Uncertain, ZkBeatError
from .history import Histories
from .limits import MOST_RUNS, Limits
from .log import get_logger
from .names import in_order
from .pages import OVERHEAD, Changes, Pages, size_of, too_large
from .paths import is_page, page_of
from .runs import LONGEST_MADE, PastRun, Run, RunState, bytes_of, decode_outbox, encode_outbox
from .zookeeper.operations import Check, Create, Node, Operation, Pending, SetData

logger = get_logger(__name__)

#: What an election makes below its root for a ledger: `below` of MasterElection.
BELOW_ROOT = ("runs", "history")
#: Bytes of an outbox that is put aside that go into one znode.
_PIECE = 500_000
#: Seconds that histories wait for a write to go with, and for a burst to be over.
HISTORIES_WITHIN = 5.0
#: So many runs that were published and are not confirmed are no burst.
_FEW = 10
#: Seconds after which a master writes the outbox though nothing in it has changed.
TOUCH_EVERY = 30.0
#: A run that is published so soon after its claim was dispatched when it was claimed.
PROMPT = timedelta(seconds=1)
#: Part of the session time-out for which an acknowledged write vouches for the session, counted
#: from when it was sent. Not all of it: a follower passes on to the leader that it heard of us
#: with a delay of up to half a tick, and a tick is at most half a session time-out.
SAFE_PART = 2 / 3


class _Published(NamedTuple):
    """A run, what the history of its entry is to say of it, and the entry's next `last_run_at`; the
    latter two are None where they are as the claim has it."""

    run: Run
    past: PastRun | None
    goes_on_from: datetime | None


class RunLedger:
    """The run states and the outbox below one election's root. For one thread at a time.

    One class, though long, for all of it serves one transaction, :meth:`_send`: what that checks
    and leaves behind has to be known wherever something is written, or on its way. What needs no
    ZooKeeper is in :mod:`.runs`, :mod:`.pages` and :mod:`.limits`.

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
        #: How often, and about how many bytes, it has written so far.
        self.writes = self.written_bytes = 0
        #: How much is written at once.
        self.limits = Limits(self._paths.root)
        #: An epoch, and the numbers, by entry, of runs that had certainly not left when it began.
        self._unsent_in: tuple[int, dict[str, int]] = 0, {}
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
        self._pages = Pages(self._paths, self.limits)
        self._histories = Histories(self._paths, self.limits)
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
        self.limits.try_more(clock.boottime())
        # A read may be answered by a server that has not heard of the latest writes (ZooKeeper
        # Programmer's Guide, consistency guarantees), such as a claim of ours whose answer was
        # lost. But not one that follows a write of the same session, which a mere check is, too.
        fence = self._session.send(Check(self._paths.epoch, term.epoch))
        for path in (self._paths.runs, self._paths.history):
            self._session.ensure(path)  # another hand may have deleted it
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
                self._pages.read(name, node.data, node.version, node.mtime, self.outbox)
        for published in self._published.values():
            self._amend(published)
        if self.unsent:
            # Before any of them leaves: the next master is not to believe it for ever.
            self._commit({}, self.outbox)

    @property
    def epoch(self) -> int:
        """That of the term for which this was loaded; NotMaster where it is not."""
        return self._loaded().epoch

    @property
    def era(self) -> str:
        return self._loaded().era

    def _loaded(self) -> Term:
        if self.term is None:
            raise NotMaster(f"{self._paths.root}: the run states are not loaded")
        return self.term

    def state(self, entry: str) -> RunState | None:
        """The state of an entry, None if it was never seen, or is :meth:`damaged`."""
        return self._pages.state(entry)

    def damaged(self, entry: str) -> bool:
        """True where the entry's page cannot be understood, or has no room for it."""
        return self._pages.damaged(entry)

    @property
    def is_damaged(self) -> bool:
        """True where some page, or volume of histories, cannot be understood."""
        return self._pages.is_damaged or self._histories.is_damaged

    def first_seen(
        self,
        entries: Mapping[str, datetime],
        keys: Mapping[str, str | None] | None = None,
        zones: Mapping[str, str | None] | None = None,
    ) -> None:
        """Gives entries that have none a state; one whose last run waits in the outbox, as after
        its page was deleted, that of this run. Where a page is full, states that the schedule does
        not name make room, those first that it has not named for longest; an entry for which there
        is none, or whose name is too long, is reported, and :meth:`damaged`. By name: `entries` has
        the instants from which their clocks run, `keys` and `zones` those of entries that have one.
        """
        keys, zones = keys or {}, zones or {}
        states: dict[str, RunState] = {}
        for name, at in entries.items():
            floor, waiting = self._pages.of(name).floor, self.outbox.get(name)
            zone = zones.get(name)
            states[name] = RunState.first(at, floor, keys.get(name), zone, self._ahead, waiting)
        self.rewrite(self._pages.admit(states, self.outbox))

    def begin_anew(self, entries: Mapping[str, datetime], keys: Mapping[str, str | None]) -> None:
        """Has the clocks of entries that have a state run from these instants, and none of what ran
        before count as theirs: they were enabled again, or others had their names."""
        states: dict[str, RunState] = {}
        for name, at in entries.items():
            state = self._pages.of(name).states[name]
            states[name] = state.begun_anew(at, keys[name], self._ahead)
        self.rewrite(states)

    def names_by_key(self) -> dict[str, str]:
        """The names of all entries that have a key."""
        return self._pages.names_by_key()

    def rename(self, names: Mapping[str, str], now: datetime) -> Iterator[dict[str, str]]:
        """Has entries that have a state go on under other names, `names` from old to new: their
        clocks, their numbers, and runs that wait. Those that take each other's names do so in one
        transaction. What ran before stays in the history of the old name. Yields, transaction by
        transaction, for which it is done: not for those for which there is no room, or where a run
        waits of the other name."""
        left, pending = deque(in_order(names)), set(names)
        while left:
            moves: dict[str, str] = {}
            room = self.limits.enough - self.outbox_bytes
            while left and len(moves) < MOST_RUNS // 2:
                room -= sum(map(self._bytes_of_move, left[0].items()))
                if moves and room < 0:
                    break
                moves.update(left.popleft())
            moved = self._rename(moves, pending, now)
            pending -= moved.keys()
            if moved:
                yield moved

    def _bytes_of_move(self, move: tuple[str, str]) -> int:
        """At most those of a change of name in a transaction."""
        old, new = move
        pages = self._pages.of(old).size + self._pages.of(new).size
        return pages + size_of(new, self._pages.of(old).states[old]) + 4 * OVERHEAD

    def _rename(self, moves: dict[str, str], pending: set[str], now: datetime) -> dict[str, str]:
        """Does it for as many as can be, in one transaction, and returns these. `pending`: the
        names that are to be left, by these and others."""
        size = sum(map(self._bytes_of_move, moves.items()))
        if self.outbox_bytes + size > self.limits.most_bytes:
            return {}
        before = {old: self._pages.of(old).states[old] for old in moves}
        there = {new: self._pages.of(new).states.get(new) for new in moves.values()}
        fresh = {new: before[old] for old, new in moves.items() if there[new] is None}
        room = self._pages.admit(fresh, self.outbox)
        taken = {*self.outbox, *pending, *(fresh.keys() - room.keys())}
        while refused := [old for old, new in moves.items() if new in taken and new not in moves]:
            moves = {old: new for old, new in moves.items() if old not in refused}
        if not moves:
            return {}
        states: dict[str, RunState | None] = {
            name: state for name, state in room.items() if state is None
        }
        for old in moves:
            states[old] = before[old].left_behind(now, self._ahead)
        for old, new in moves.items():
            other = there[new]
            number, past = (
                (self._pages.of(new).floor, ())
                if other is None
                else (other.total_run_count, other.past)
            )
            states[new] = before[old].renamed(number, past)
        waiting = {name: self.outbox[name] for name in moves if name in self.outbox}
        outbox = self.outbox
        if waiting:
            outbox = {
                moves.get(name, name): run.renamed(moves[name]) if name in moves else run
                for name, run in outbox.items()
            }
        self._commit(states, outbox)
        self.outbox, self._outbox_bytes = outbox, None
        self._note_renamed(moves, waiting)
        return moves

    def _note_renamed(self, moves: Mapping[str, str], waiting: Mapping[str, Run]) -> None:
        """What is known of runs that wait is known by their entries' names."""
        epoch, known = self._unsent_in
        unsent = {name: run.number for name, run in waiting.items() if name in self.unsent}
        known = {name: number for name, number in known.items() if name not in unsent}
        known.update((moves[name], number) for name, number in unsent.items())
        self._unsent_in = epoch, known
        self.unsent = (self.unsent - unsent.keys()) | {moves[name] for name in unsent}

    def rewrite(self, states: Changes, *also: Operation) -> None:
        """Writes other states for entries. `also` is part of each transaction."""
        for batch in self._batches(states):
            self._commit(batch, self.outbox, *also)

    def set_back(self, now: datetime) -> dict[str, RunState]:
        """Has the clocks of entries go on that a beat with a clock that was ahead has set: to an
        instant that is still to come, and was when it was written, by ZooKeeper's clock. To be
        called after :meth:`load`. Returns their states as they were."""
        # The time of a page says nothing of what is not written yet.
        after = self._pages.set_back(now, self._ahead, but=self._amended)
        before = {name: self._pages.of(name).states[name] for name in after}
        self.rewrite(after)
        return before

    @property
    def _ahead(self) -> timedelta:
        """By how much this machine's clock is ahead of ZooKeeper's."""
        return timedelta(seconds=self._session.clock_offset)

    def claim(
        self, runs: Sequence[Run], *also: Operation, meanwhile: Callable[[], object] = lambda: None
    ) -> list[Run]:
        """Claims runs, in one transaction, of which `also` is part: at most one of each entry, of
        entries that have a state and no run in the outbox. `meanwhile` is called while the answer
        is on its way, and may publish and confirm what is in the outbox.

        Returns those that were claimed and are now in the outbox: as many as fit into a
        transaction, at least one unless it is :attr:`full`. The others are as before."""
        room = self.limits.largest_outbox - self.outbox_bytes
        states: dict[str, RunState] = {}
        for run in runs:
            room -= bytes_of([run])
            if room < 0 and (states or self.full):
                break
            before = self._pages.of(run.entry).states.get(run.entry) or RunState(run.claimed)
            states[run.entry] = before.after_claim(run, self._ahead)
        if not states:
            return []
        batch = next(self._batches(states))
        claimed = [run for run in runs if run.entry in batch]
        self._claiming = {run.entry: run for run in claimed}
        sent = self._send(batch, self.outbox, *also)
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
            state = self._pages.of(run.entry).states[run.entry]
            reason = why if isinstance(why, str) else why[run.entry]
            states[run.entry] = state.after_drop(run, reason)
        for batch in self._batches(states):
            outbox = {name: run for name, run in self.outbox.items() if name not in batch}
            alone = self._goes_alone(True)
            self._commit(batch, self.outbox if alone else outbox, *also)
            self._outbox_changed |= alone
            self.outbox, self._outbox_bytes = outbox, None

    def skip(
        self, entries: Mapping[str, tuple[datetime, datetime]], why: str, *also: Operation
    ) -> None:
        """Notes that what was due does not run, and has the clocks of entries go on from there.
        `entries`: name, of one that has a state, to the instant that was due and the one from which
        its clock goes on; `why` is for their history, `also` part of each transaction."""
        states: dict[str, RunState] = {}
        for name, (due, at) in entries.items():
            past = PastRun.of(None, due, at, self.epoch, why)
            states[name] = self._pages.of(name).states[name].after_skip(past, at, self._ahead)
        self.rewrite(states, *also)

    @property
    def outbox_bytes(self) -> int:
        """Those of the outbox, as it would be written."""
        if self._outbox_bytes is None:
            waiting, amended = self.outbox.values(), self._amended.values()
            runs = bytes_of(waiting) + bytes_of(amended)
            self._outbox_bytes = len(encode_outbox(())) + runs
        return self._outbox_bytes

    @property
    def full(self) -> bool:
        """True where the outbox may have no room, in bytes, for one more run."""
        most = self.limits.largest_outbox - self.limits.longest_name - OVERHEAD
        return self.outbox_bytes > max(0, most)

    def note_named(self, named: Container[str], now: datetime, *, anew: bool = False) -> list[str]:
        """Marks the states of entries that `named`, this master's schedule, does not name, and
        removes those that have been marked for longer than RETENTION and have no run that waits.
        Returns the names of the removed. With `anew` the clocks of entries that are named again,
        and were not for longer than ABSENCE, start from `now`."""
        changed = self._pages.note_named(named, now, self._ahead, anew, waiting=self.outbox)
        self.rewrite(changed)
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
        the next :meth:`confirm`, or from the next claim. `goes_on_from`: the entry's next
        `last_run_at`, if it is not that of the claim."""
        past, epoch = None, self.epoch
        if goes_on_from is not None or run.epoch != epoch or at - run.planned > PROMPT:
            past = PastRun.of(run.number, run.due, at, epoch, run.note)
        del self.outbox[run.entry]
        self._published[run.entry] = published = _Published(run, past, goes_on_from)
        self._amend(published)

    def _amend(self, published: _Published) -> None:
        run, past, goes_on_from = published
        self._outbox_changed, self._outbox_bytes = True, None
        state = self.state(run.entry)
        if past is not None and state is not None:
            after = state.after_publish(past, goes_on_from, self._ahead)
            self._pages.change({run.entry: after})
            self._amended[run.entry] = run

    def put_last(self, run: Run, error: str | None = None) -> None:
        """Has a run be the last of the outbox: no other waits for it any more. `error`: what is
        wrong with it, for whoever looks at what waits."""
        before = self.outbox.pop(run.entry)
        self.outbox[run.entry] = after = before.with_error(error)
        if after is not before:
            # A text that differs each time is no reason to write it each time.
            self._outbox_changed |= before.error is None or after.error is None
            self._outbox_bytes = None

    def keep(self, run: Run, made: str) -> None:
        """Has the next master find what hooks have made of a run that waits, if there is room."""
        before = self.outbox.get(run.entry)
        if before is None or before != run or before.made == made:
            return
        after = replace(before, made=made)
        more = len(after.text) - len(before.text)
        if len(made) <= LONGEST_MADE and self.outbox_bytes + more <= self.limits.largest_outbox:
            self.outbox[run.entry] = after
            self._outbox_changed, self._outbox_bytes = True, self.outbox_bytes + more

    def confirm(self) -> None:
        """Writes down what was published, without waiting; only one such write is on its way at
        any time, and takes what has gathered meanwhile, and the histories that are due. Where there
        is nothing to write, and has not been for a while, it writes all the same: the time of the
        outbox tells others that this master is at work."""
        if self._confirming is not None and self._confirming.pending.answered():
            self._finish_confirming()
        if self._confirming is not None:
            return
        now = clock.boottime()
        is_time = self.unconfirmed or now - self._written_at > TOUCH_EVERY
        histories = self._histories_due(now, is_time)
        if histories or is_time:
            states = {} if histories else {name: self.state(name) for name in self._amended}
            self._confirming = self._send(next(self._batches(states), {}), self.outbox, *histories)

    def _histories_due(self, now: float, is_time: bool) -> list[Operation]:
        """What adds past runs to their histories, where something `is_time` to be written, and few
        runs were published; after HISTORIES_WITHIN in any case. From now on the states are written
        without them: never without this, which the version of the outbox tells that is written with
        both."""
        waited = now - self._histories.due_since
        is_calm = is_time and not self._amended and len(self._published) <= _FEW
        if waited < 0 or self._claiming or not (is_calm or waited > HISTORIES_WITHIN):
            return []
        try:
            room = self.limits.most_bytes // 2 - self.outbox_bytes
            return self._histories.write(self._pages, self._session.read_all, room)
        except ZkBeatError as exc:
            self._fail(exc)

    @property
    def unconfirmed(self) -> bool:
        """True where something was published of which no write on its way tells, and one could."""
        return self._outbox_changed and (bool(self._amended) or not self._goes_alone(False))

    def hand_over(self, unsent: Iterable[str]) -> None:
        """Does what :meth:`flush` does, and tells the next master of which entries, `unsent`,
        the runs have certainly not left. Nothing is to be published after
        that, until this is loaded again."""
        for name in unsent:
            self.outbox[name] = replace(self.outbox[name], unsent=True)
            self._outbox_changed, self._outbox_bytes = True, None
        self.flush()

    def flush(self) -> None:
        """Does what :meth:`confirm` does, and waits until ZooKeeper knows it."""
        while self._confirming is not None or self.unconfirmed:
            self._finish_confirming()
            if self.unconfirmed:
                self.confirm()

    def __repr__(self) -> str:
        states, waiting = len(self._pages), len(self.outbox)
        return f"<RunLedger {self.term} {states} states, {waiting} in the outbox>"

    # Writing ------------------------------------------------------------------------------------

    def _commit(self, states: Changes, outbox: dict[str, Run], *also: Operation) -> None:
        self._finish_in_order(self._send(states, outbox, *also))

    def _send(self, states: Changes, outbox: dict[str, Run], *also: Operation) -> _Sent:
        """The one transaction with which everything is written: nothing happens unless the epoch,
        the pages and the outbox are as this ledger knows them. A write that is still on its way is
        counted in the versions that it will leave, so the next need not wait for it."""
        operations: list[Operation] = [Check(self._paths.epoch, self.epoch)]
        operations += also
        touched = self._pages.change(states)
        if self._amended:
            amended = self._amended.items()
            self._amended = {name: run for name, run in amended if page_of(name) not in touched}
            self._outbox_bytes = None
        for name, page in touched.items():
            data = page.encode(self.limits.largest_page)
            self._histories.note_written(name, page.states)
            path = self._paths.page(name)
            if page.version is None:
                operations.append(Create(path, data))
                page.version = 0
            else:
                operations.append(SetData(path, data, page.version))
                page.version += 1
        if self._claiming and page_of(entry := next(iter(self._claiming))) not in touched:
            # Not without the claim that is on its way. The version of the outbox does not tell:
            # another hand may have brought it to where that claim would have.
            version = self._pages.of(entry).version
            assert version is not None
            operations.append(Check(self._paths.page(page_of(entry)), version))
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
        self.writes, self.written_bytes = self.writes + 1, self.written_bytes + size
        return sent

    def _goes_alone(self, has_states: bool) -> bool:
        """True where a transaction is to leave the outbox as it is in ZooKeeper. That may be
        larger than it should be to have room for something beside it, or than can be written: it
        is of another release, of another hand, or of a time when the server took more. What is
        published makes it smaller."""
        if has_states:
            most = self.limits.largest_outbox + self.limits.longest_name + OVERHEAD
            return self.outbox_bytes > most
        return self.outbox_bytes > self.limits.most_bytes

    def _finish_in_order(self, sent: _Sent) -> None:
        if self._confirming is not None and self._confirming.pending.sent <= sent.pending.sent:
            # It was sent before, so it is answered before: this costs no further round trip,
            # and what it says is not mistaken for an answer to what follows.
            self._finish_confirming()
        self._finish(sent)

    def _finish(self, sent: _Sent) -> None:
        try:
            sent.pending.result()
        except ZkBeatError as exc:
            if isinstance(exc, Uncertain):
                largest = max(each.size for each in (sent, *self._under_way))
                self.limits.unanswered(largest, clock.boottime())
            self._fail(exc)
        self._under_way = [each for each in self._under_way if each is not sent]
        self.limits.answered(sent.size)
        self._entitled_until = sent.pending.sent + SAFE_PART * self._session.timeout
        for entry, published in sent.told.items():
            if self._published.get(entry) is published:
                del self._published[entry]

    def _finish_confirming(self) -> None:
        confirming, self._confirming = self._confirming, None
        if confirming is not None:
            self._finish(confirming)

    def _fail(self, exc: ZkBeatError) -> NoReturn:
        self.forget()
        raise exc

    def _batches(self, states: Changes) -> Iterator[Changes]:
        """The states in parts, of which each, when it is asked for, is as large as fits into one
        transaction, and holds at least one. Page by page, since every page that is touched is
        written whole."""
        left = deque(sorted(states, key=page_of))
        while left:
            room = self.limits.enough - (0 if self._goes_alone(True) else self.outbox_bytes)
            yield self._pages.next_batch(left, states, room)

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
            if (size := len(encode_outbox(runs))) > limits.MOST_BYTES:
                raise too_large(path, size, limits.MOST_BYTES)  # it was not written by us
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
        told = self._published
        done = {run.entry for run in runs if run.entry in told and told[run.entry].run == run}
        known = self._unsent_in[1] if self._unsent_in[0] == term.epoch else {}
        known = {**known, **{run.entry: run.number for run in runs if run.unsent}}
        self._unsent_in = term.epoch, known
        self.unsent = {run.entry for run in runs if known.get(run.entry) == run.number}
        self.outbox = {
            run.entry: replace(run, unsent=False) for run in runs if run.entry not in done
        }
        self._outbox_bytes = None
        self._published = {name: told[name] for name in done}


@dataclass(frozen=True)
class _Sent:
    """A write that is on its way, with what it tells of :attr:`RunLedger._published`."""

    pending: Pending
    told: dict[str, _Published]
    size: int


def _bytes_of(operation: Operation) -> int:
    """About those of an operation in a request."""
    data = operation.data if isinstance(operation, (Create, SetData)) else b""
    return len(operation.path) + len(data) + 60
