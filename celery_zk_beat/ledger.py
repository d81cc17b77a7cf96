"""Which runs were claimed, and which of those are published: a transactional outbox in ZooKeeper.

It knows nothing of schedules or brokers. For each run its caller does three things in this order:
claim, publish, call :meth:`RunLedger.published`. One transaction claims a run and checks the epoch,
so a run is claimed once, by a master. The run stays in the outbox until a later write confirms that
it was published, so the next master knows of it.

There is one recovery path. Whatever goes wrong (no answer, an unexpected version, a deleted znode),
the ledger forgets all it knows and raises. Its caller loads it again and continues from what
ZooKeeper says.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, NoReturn

from . import clock, limits
from .election.public import MasterElection
from .election.terms import Term
from .errors import Conflict, NotMaster, Outdated, RootError, Uncertain, ZkBeatError
from .history import Histories
from .limits import MOST_RUNS, Limits
from .log import get_logger
from .names import in_order
from .pages import OVERHEAD, Changes, Kept, Pages, size_of, too_large
from .paths import is_page, page_of
from .runs import (
    LONGEST_MADE,
    NEVER,
    PROMPT,
    Outcome,
    PastRun,
    Run,
    RunState,
    bytes_of,
    decode_outbox,
    encode_outbox,
)
from .zookeeper.operations import Check, Create, Delete, Node, Operation, Pending, SetData

logger = get_logger(__name__)

#: What an election creates below its root for a ledger: `below` of MasterElection.
BELOW_ROOT = ("runs", "history")
#: Most bytes per znode of a damaged outbox that is saved aside.
_PIECE = 500_000
#: Seconds for which histories wait for another write to join, and for a burst to end.
HISTORIES_WITHIN = 5.0
#: If no more runs than this are published and not confirmed, there is no burst.
_FEW = 10
#: Seconds after which a master writes the outbox even if it has not changed.
TOUCH_EVERY = 30.0
#: An acknowledged write proves that the session is alive for this part of the session time-out,
#: counted from when the write was sent. Not for all of it: a follower tells the leader of our
#: session up to half a tick late, and a tick is at most half a session time-out.
SAFE_PART = 2 / 3


class _Published(NamedTuple):
    """A run, what its entry's history says of it, and the entry's next `last_run_at`. The latter
    two are None if the claim already has them right."""

    run: Run
    past: PastRun | None
    goes_on_from: datetime | None


class RunLedger:
    """The run states and the outbox below one election's root. For one thread at a time.

    It is one long class because all of it serves one transaction, :meth:`_send`: every write has to
    know what this checks and what it changes. What needs no ZooKeeper is in :mod:`.runs`,
    :mod:`.pages` and :mod:`.limits`.

    Every method that talks to ZooKeeper raises

    - NotMaster: this beat is not the master of the loaded epoch, or is not any more;
    - Conflict: something has changed since it was loaded;
    - Uncertain: no answer;
    - ZooKeeperError, RootError: refused, or cannot be understood; the message names the znode.

    After any of them the ledger is empty and must be loaded again. Only after Outdated it is as it
    was: a check failed that was given as part of the transaction, and nothing else.
    """

    def __init__(self, election: MasterElection) -> None:
        self._election = election
        self._session = election.session
        self._paths = election.paths
        #: What this process published and ZooKeeper has not confirmed, by entry. It must not be
        #: published again, even if the write that would confirm it was lost.
        self._published: dict[str, _Published] = {}
        #: How many writes, and about how many bytes, so far.
        self.writes = self.written_bytes = 0
        #: How much is written at once.
        self.limits = Limits(self._paths.root)
        #: An epoch, and the numbers, by entry, of runs that were certainly not sent before it.
        self._unsent_in: tuple[int, dict[str, int]] = 0, {}
        self.forget()

    def forget(self) -> None:
        """Forgets all that was read."""
        #: The term for which this was loaded, None if it is not loaded.
        self.term: Term | None = None
        #: The runs that are claimed and not known to be published, oldest first. Read only.
        self.outbox: dict[str, Run] = {}
        #: Entries whose runs were certainly not sent before this was loaded.
        self.unsent: set[str] = set()
        #: See :attr:`outbox_bytes`; None if it must be computed again.
        self._outbox_bytes: int | None = None
        self._pages = Pages(self._paths, self.limits)
        self._histories = Histories(self._paths, self.limits)
        self._outbox_version = 0
        self._outbox_changed = False
        #: The runs of a claim that has been sent and not answered.
        self._claiming: dict[str, Run] = {}
        self._confirming: _Sent | None = None
        #: All writes that have been sent and not answered.
        self._under_way: list[_Sent] = []
        #: Runs that were published late, or by another master than the one that claimed them, by
        #: entry. The entry's state records this, and the run leaves the outbox in ZooKeeper with
        #: the write of that state.
        self._amended: dict[str, Run] = {}
        #: When the outbox was last written, by boottime().
        self._written_at = -math.inf
        #: Until when ZooKeeper cannot have elected another master, by boottime().
        self._entitled_until = 0.0

    def load(self, term: Term) -> None:
        """Reads all run states and the outbox, as the master of `term`.

        A page that cannot be understood is logged and left as it is: its entries have no
        :meth:`state`, and cannot be claimed until the page is repaired.
        """
        self.forget()
        self.limits.try_more(clock.boottime())
        # A server may answer a read without knowing the latest writes (ZooKeeper Programmer's
        # Guide, consistency guarantees), such as a claim of ours whose answer was lost. But a read
        # after a write of the same session sees that write, and a check counts as a write.
        fence = self._session.send(Check(self._paths.epoch, term.epoch))
        for path in (self._paths.runs, self._paths.history):
            self._session.ensure(path)  # somebody may have deleted it
        names = sorted(filter(is_page, self._session.children(self._paths.runs)))
        try:
            fence.result()
        except Conflict:
            text = f"{self._paths.epoch}: no longer at {term.epoch}, the epoch of this beat"
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
            # Before any of them is sent: else the next master would believe that none was.
            self._commit({}, self.outbox)

    @property
    def epoch(self) -> int:
        """The epoch of the loaded term. Raises NotMaster if none is loaded."""
        return self._loaded().epoch

    @property
    def era(self) -> str:
        return self._loaded().era

    @property
    def inbox(self) -> str:
        """The znode, chroot included, below which workers report."""
        return self._paths.inbox

    def _loaded(self) -> Term:
        if self.term is None:
            raise NotMaster(f"{self._paths.root}: the run states are not loaded")
        return self.term

    def state(self, entry: str) -> RunState | None:
        """The state of an entry; None if it was never seen, or is :meth:`damaged`."""
        return self._pages.state(entry)

    def damaged(self, entry: str) -> bool:
        """True if the entry's page cannot be understood, or has no room for the entry."""
        return self._pages.damaged(entry)

    @property
    def is_damaged(self) -> bool:
        """True if any page, or volume of histories, cannot be understood."""
        return self._pages.is_damaged or self._histories.is_damaged

    def first_seen(
        self,
        entries: Mapping[str, datetime],
        keys: Mapping[str, str | None] | None = None,
        zones: Mapping[str, str | None] | None = None,
        counted: Mapping[str, int] | None = None,
    ) -> None:
        """Creates states for entries that have none.

        If an entry's last run waits in the outbox, as after its page was deleted, its state is
        that of this run. If a page is full, states of entries that are not in the schedule are
        removed, those first that have not been in it for longest. An entry that has no room, or
        whose name is too long, is logged, and is :meth:`damaged`.

        Args:
            entries: by name, the instants from which their clocks run.
            keys, zones: by name, the keys and time zones of entries that have one.
            counted: by name, how many runs entries had elsewhere.
        """
        keys, zones, counted = keys or {}, zones or {}, counted or {}
        states: dict[str, RunState] = {}
        ahead = self._ahead
        for name, at in entries.items():
            floor, waiting = self._pages.of(name).floor, self.outbox.get(name)
            floor, zone = max(floor, counted.get(name, 0)), zones.get(name)
            states[name] = RunState.first(at, floor, keys.get(name), zone, ahead, waiting)
        self.rewrite(self._pages.admit(states, self.outbox))

    def begin_anew(
        self,
        entries: Mapping[str, datetime],
        keys: Mapping[str, str | None],
        zones: Mapping[str, str | None] | None = None,
    ) -> None:
        """Starts the clocks of entries that have a state at these instants. What ran before does
        not count as theirs: they were enabled again, or other entries had their names. `zones`: of
        those of which that is known."""
        states: dict[str, RunState] = {}
        for name, at in entries.items():
            state = self._pages.of(name).states[name]
            zone = zones.get(name) if zones else state.zone
            begun = state.begun_anew(at, keys[name], self.ahead_at(at))
            states[name] = replace(begun, zone=zone)
        self.rewrite(states)

    def leave(self, entries: Iterable[str]) -> None:
        """Notes that the schedule does not name these any more."""
        states: dict[str, RunState] = {}
        since = self.server_now
        for name in entries:
            state = self.state(name)
            if state is not None and state.unnamed_since is None:
                states[name] = replace(state, unnamed_since=since)
        self.rewrite(states)

    def names_by_key(self) -> dict[str, str]:
        """The names of all entries that have a key."""
        return self._pages.names_by_key()

    def rename(self, names: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Renames entries that have a state: `names` is from old to new.

        Clocks, numbers and waiting runs move to the new name. What ran before stays in the history
        of the old name. Entries that swap names are renamed in one transaction. An entry is not
        renamed if there is no room, or if a run of the new name waits.

        Yields:
            after each transaction, what was renamed.
        """
        left, pending = deque(in_order(names)), set(names)
        while left:
            moves: dict[str, str] = {}
            room = self.limits.enough - self.outbox_bytes
            while left and len(moves) < MOST_RUNS // 2:
                room -= sum(map(self._bytes_of_move, left[0].items()))
                if moves and room < 0:
                    break
                moves.update(left.popleft())
            moved = self._rename(moves, pending)
            pending -= moved.keys()
            if moved:
                yield moved

    def _bytes_of_move(self, move: tuple[str, str]) -> int:
        """Most bytes that renaming one entry takes in a transaction."""
        old, new = move
        pages = self._pages.of(old).size + self._pages.of(new).size
        return pages + size_of(new, self._pages.of(old).states[old]) + 4 * OVERHEAD

    def _rename(self, moves: dict[str, str], pending: set[str]) -> dict[str, str]:
        """Renames as many as it can in one transaction, and returns these. `pending`: all names
        that entries are still to leave, in this transaction or a later one."""
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
        since = self.server_now
        for old in moves:
            states[old] = before[old].left_behind(since, self.outbox.get(old))
        for old, new in moves.items():
            other = there[new] or RunState(since, self._pages.of(new).floor)
            if new in moves:  # its waiting run goes to another name
                other = other.left_behind(since, self.outbox.get(new))
            states[new] = before[old].renamed(old, other, self.outbox.get(old))
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
        """Moves what is known of waiting runs to their entries' new names."""
        epoch, known = self._unsent_in
        unsent = {name: run.number for name, run in waiting.items() if name in self.unsent}
        known = {name: number for name, number in known.items() if name not in unsent}
        known.update((moves[name], number) for name, number in unsent.items())
        self._unsent_in = epoch, known
        self.unsent = (self.unsent - unsent.keys()) | {moves[name] for name in unsent}

    def rewrite(self, states: Changes, *also: Operation) -> None:
        """Writes new states of entries. `also` is part of each transaction."""
        for batch in self._batches(states):
            self._commit(batch, self.outbox, *also)

    def set_back(self) -> dict[str, RunState]:
        """Sets back the clocks of entries that a beat whose clock was ahead has set: to an instant
        that is in the future, and by ZooKeeper's clock already was when it was written. Call it
        after :meth:`load`. Returns the states as they were."""
        # The time of a page says nothing about changes that are not written yet.
        ahead = self._ahead
        after = self._pages.set_back(clock.now(), ahead, but=self._amended)
        before = {name: self._pages.of(name).states[name] for name in after}
        self.rewrite(after)
        return before

    @property
    def server_now(self) -> datetime:
        """ZooKeeper's time, as far as it is known."""
        return datetime.fromtimestamp(self._session.likely_server_time, timezone.utc)

    @property
    def _ahead(self) -> timedelta:
        """How much this machine's clock is ahead of ZooKeeper's."""
        return timedelta(seconds=self._session.clock_offset)

    def ahead_at(self, told: datetime) -> timedelta:
        """How much, at least, this machine's clock was ahead of ZooKeeper's when it told this
        instant. It was set back since if that is still to come."""
        return self._ahead + max(timedelta(), told - clock.now())

    def claim(
        self,
        runs: Sequence[Run],
        *also: Operation,
        meanwhile: Callable[[], object] = lambda: None,
        made: Callable[[Run, RunState], RunState | None] = lambda run, before: None,
    ) -> list[Run]:
        """Claims runs in one transaction.

        Args:
            runs: at most one of each entry; each entry has a state, and no run in the outbox.
            also: is part of the transaction.
            meanwhile: is called while the answer is on its way; may publish and confirm what is in
                the outbox.
            made: returns the state after the claim of a run, if it was made already of that
                before.

        Returns:
            the claimed runs, which are now in the outbox: as many as fit into a transaction, at
            least one unless the outbox is :attr:`full`. The others are unchanged.
        """
        room = self.limits.largest_outbox - self.outbox_bytes
        ahead = self.ahead_at(max((run.claimed for run in runs), default=NEVER))
        states: dict[str, RunState] = {}
        for run in runs:
            room -= bytes_of([run])
            if room < 0 and (states or self.full):
                break
            before = self._pages.of(run.entry).states.get(run.entry) or RunState(run.claimed)
            # Not by this machine's clock, which may have been set since the run was found due.
            server_ms = int(self._session.latest_server_time * 1000) if run.tracked else None
            after = made(run, before)
            states[run.entry] = after or before.after_claim(run, ahead, server_ms)
        if not states:
            return []
        batch = next(self._batches(states))
        claimed = [run for run in runs if run.entry in batch]
        self._claiming = {run.entry: run for run in claimed}
        sent = self._send(batch, self.outbox, *also)
        try:
            meanwhile()
        except Outdated as exc:
            # Another write was refused. This claim may be done: read the outbox to find out.
            self._fail(Conflict(exc.path, "is no longer as it was read"))
        try:
            self._finish_in_order(sent)
        except Outdated:
            self._claiming, self._outbox_bytes = {}, None
            raise
        self.outbox.update(self._claiming)
        self._outbox_bytes = None
        self._claiming = {}
        return claimed

    def drop(self, runs: Iterable[Run], why: str | Mapping[str, str], *also: Operation) -> None:
        """Takes runs out of the outbox unpublished, and records that in the states of their
        entries, which must have one. `why` is for the history, the same for all or by entry; `also`
        is part of each transaction."""
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

    def fold(
        self,
        outcomes: Mapping[str, Mapping[PastRun, Outcome | None]],
        also: Mapping[str, Sequence[Operation]],
    ) -> Iterator[list[str]]:
        """Records what became of tracked runs, with as few transactions as it takes.

        Args:
            outcomes: by entry, its runs, each with its outcome, and the outcomes that these had
                until now. Each entry has a state.
            also: by entry, what is part of its transaction.

        Yields:
            after each transaction, the entries whose outcomes it has recorded.

        Raises:
            Outdated: a znode of `also` is not as it was read. The ledger is as it was.
        """
        states: dict[str, RunState] = {}
        for name, runs in outcomes.items():
            state = self._pages.of(name).states[name]
            for past, before in runs.items():
                state = state.after_outcome(past, before)
            states[name] = state
        for batch in self._batches(states):
            self._commit(batch, self.outbox, *(each for name in batch for each in also[name]))
            yield [*batch]

    def open_of(self, entry: str) -> tuple[PastRun, ...]:
        """The tracked runs of an entry that have not ended, also under the name that it had before,
        the oldest first."""
        state = self.state(entry)
        if state is None:
            return ()
        before = None if state.was is None else self.state(state.was)
        return state.open if before is None else (*before.open, *state.open)

    def open_runs(self) -> dict[str, tuple[PastRun, ...]]:
        """The runs that are tracked and have not ended, of all entries that have some."""
        return self._pages.open_runs()

    def skip(
        self,
        entries: Mapping[str, tuple[datetime, datetime]],
        why: str | Mapping[str, str],
        *also: Operation,
    ) -> None:
        """Records that a due instant of each entry does not run, and moves the entries' clocks.

        Args:
            entries: by name, the due instant and the instant from which the clock continues. Each
                entry has a state.
            why: for the history, the same for all or by entry.
            also: is part of each transaction.
        """
        states: dict[str, RunState] = {}
        for name, (due, at) in entries.items():
            reason = why if isinstance(why, str) else why[name]
            past = PastRun.of(None, due, at, self.epoch, reason)
            state = self._pages.of(name).states[name]
            states[name] = state.after_skip(past, at, self.ahead_at(at))
        self.rewrite(states, *also)

    @property
    def outbox_bytes(self) -> int:
        """The size of the outbox as it would be written."""
        if self._outbox_bytes is None:
            waiting, amended = self.outbox.values(), self._amended.values()
            runs = bytes_of(waiting) + bytes_of(amended)
            self._outbox_bytes = len(encode_outbox(())) + runs
        return self._outbox_bytes

    @property
    def full(self) -> bool:
        """True if the outbox may have no room, in bytes, for one more run."""
        most = self.limits.largest_outbox - self.limits.longest_name - OVERHEAD
        return self.outbox_bytes > max(0, most)

    def note_named(self, named: Container[str], *, anew: bool = False) -> list[str]:
        """Marks the states of entries that are not in `named`, this master's schedule. Removes
        states that have been marked for longer than RETENTION and have no waiting run. With `anew`,
        the clock of an entry that is named again after more than ABSENCE starts now.

        Returns:
            the names of the removed entries.
        """
        server = self.server_now
        changed = self._pages.note_named(named, clock.now(), server, anew, waiting=self.outbox)
        self.rewrite(changed)
        return [name for name, state in changed.items() if state is None]

    def assure(self) -> None:
        """Call this before each publish. It returns if this beat is still the master of the loaded
        term, and the server has confirmed that within a safe part of the session time-out. If the
        last confirmation is too old, it asks the server. Otherwise it raises."""
        if clock.boottime() >= self._entitled_until:
            self._commit({}, self.outbox)
        if self._election.term != self.term or clock.boottime() >= self._entitled_until:
            self._fail(NotMaster(f"{self._paths.master}: this beat is perhaps no longer master"))

    def published(self, run: Run, at: datetime, goes_on_from: datetime | None = None) -> None:
        """Takes a run that was published at `at` out of the outbox. The next :meth:`confirm` or
        claim writes that to ZooKeeper. `goes_on_from`: the entry's next `last_run_at`, if it
        differs from that of the claim."""
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
            after = state.after_publish(past, goes_on_from, self.ahead_at(past.at))
            self._pages.change({run.entry: after})
            self._amended[run.entry] = run

    def move_to_end(self, run: Run, error: str | None = None) -> None:
        """Moves a run to the end of the outbox, so that the others do not wait for it. `error`:
        what is wrong with the run, which `status` shows."""
        before = self.outbox.pop(run.entry)
        self.outbox[run.entry] = after = before.with_error(error)
        if after is not before:
            # An error text may differ each time: only the first is worth a write.
            self._outbox_changed |= before.error is None or after.error is None
            self._outbox_bytes = None

    def keep(self, run: Run, made: str) -> None:
        """Keeps for the next master what hooks have made of a waiting run, if there is room."""
        before = self.outbox.get(run.entry)
        if before is None or before != run or before.made == made:
            return
        after = replace(before, made=made)
        more = len(after.text) - len(before.text)
        if len(made) <= LONGEST_MADE and self.outbox_bytes + more <= self.limits.largest_outbox:
            self.outbox[run.entry] = after
            self._outbox_changed, self._outbox_bytes = True, self.outbox_bytes + more

    def confirm(self) -> None:
        """Confirms what was published, without waiting for the answer.

        Only one such write is on its way at any time. The next one takes all that was published
        meanwhile, and the histories that are due. If there has been nothing to write for
        TOUCH_EVERY seconds, it writes all the same: the outbox's modification time shows that this
        master works.
        """
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
        """Returns the operations that move past runs from the states to the histories. There are
        some if a write `is_time` and few runs were published, or after HISTORIES_WITHIN in any
        case. From now on states are written without these past runs. The outbox is written with the
        histories, so its version makes sure that no later write can succeed without this one."""
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
        """True if something was published that no write on its way confirms, and a write could."""
        return self._outbox_changed and (bool(self._amended) or not self._goes_alone(False))

    def hand_over(self, unsent: Iterable[str]) -> None:
        """Does what :meth:`flush` does, and tells the next master which entries' runs, `unsent`,
        were certainly not sent. Publish nothing after that until this is loaded again."""
        for name in unsent:
            self.outbox[name] = replace(self.outbox[name], unsent=True)
            self._outbox_changed, self._outbox_bytes = True, None
        self.flush()

    def flush(self) -> None:
        """Does what :meth:`confirm` does, and waits for the answer."""
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
        """Sends the transaction with which everything is written. It does nothing unless the epoch,
        the pages and the outbox have the versions that this ledger knows. These already include the
        writes that are on their way, so the next write need not wait for them."""
        operations: list[Operation] = [Check(self._paths.epoch, self.epoch)]
        operations += also
        before = _Before(self._pages.as_they_are(states), self._amended, self._outbox_changed)
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
            # This must fail if the claim on its way fails. The outbox's version cannot ensure that:
            # somebody else may have written the outbox, and so raised it to the same version.
            version = self._pages.of(entry).version
            assert version is not None
            operations.append(Check(self._paths.page(page_of(entry)), version))
        is_needed = outbox is not self.outbox or bool(self._claiming)
        if not is_needed and self._goes_alone(bool(touched)):
            operations.append(Check(self._paths.outbox, self._outbox_version))
            confirmed, writes_outbox = {}, False
        else:
            runs = [*outbox.values(), *self._amended.values(), *self._claiming.values()]
            data = encode_outbox(runs)
            operations.append(SetData(self._paths.outbox, data, self._outbox_version))
            self._outbox_version += 1
            self._outbox_changed = bool(self._amended)
            confirmed = {k: each for k, each in self._published.items() if k not in self._amended}
            writes_outbox = True
        size = sum(map(_bytes_of, operations))
        try:
            self._written_at = clock.boottime()
            conditions = frozenset(each.path for each in also if isinstance(each, (Check, Delete)))
            pending = self._session.send(*operations)
            sent = _Sent(pending, confirmed, size, conditions, before, writes_outbox)
        except ZkBeatError as exc:
            self._fail(exc)
        self._under_way.append(sent)
        self.writes, self.written_bytes = self.writes + 1, self.written_bytes + size
        return sent

    def _goes_alone(self, has_states: bool) -> bool:
        """True if a transaction must leave the outbox in ZooKeeper as it is, because it is too
        large to write, or to write together with something else. Another release, or somebody else,
        may have written it, or the server's limit was higher then. It shrinks as runs are
        published."""
        if has_states:
            most = self.limits.largest_outbox + self.limits.longest_name + OVERHEAD
            return self.outbox_bytes > most
        return self.outbox_bytes > self.limits.most_bytes

    def _finish_in_order(self, sent: _Sent) -> None:
        if self._confirming is not None and self._confirming.pending.sent <= sent.pending.sent:
            # It was sent first, so its answer comes first: this costs no round trip, and its answer
            # is not mistaken for that of the later write.
            self._finish_confirming()
        self._finish(sent)

    def _finish(self, sent: _Sent) -> None:
        try:
            sent.pending.result()
        except ZkBeatError as exc:
            if isinstance(exc, Uncertain):
                largest = max(each.size for each in (sent, *self._under_way))
                self.limits.unanswered(largest, clock.boottime())
            if isinstance(exc, Conflict) and exc.path in sent.conditions and self._undo(sent):
                raise Outdated(exc.path, "not as it was read") from None
            self._fail(exc)
        self._under_way = [each for each in self._under_way if each is not sent]
        self.limits.answered(sent.size)
        self._entitled_until = sent.pending.sent + SAFE_PART * self._session.timeout
        for entry, published in sent.confirmed.items():
            if self._published.get(entry) is published:
                del self._published[entry]

    def _undo(self, sent: _Sent) -> bool:
        """Has everything be as it was before a write that was refused, and before those that were
        sent since: they count on the versions that it was to leave, so they are refused, too. False
        where they are not, for certain."""
        at = next(n for n, each in enumerate(self._under_way) if each is sent)
        since = self._under_way[at:]
        for each in since[1:]:
            try:
                each.pending.result()
                return False
            except Conflict:
                pass
            except ZkBeatError:
                return False
        for each in reversed(since):
            self._pages.put_back(each.before.pages)
            self._amended = {**each.before.amended, **self._amended}
            self._outbox_changed |= each.before.outbox_changed
            self._outbox_version -= each.writes_outbox
            if each is self._confirming:
                self._confirming = None
        self._under_way, self._outbox_bytes = self._under_way[:at], None
        return True

    def _finish_confirming(self) -> None:
        confirming, self._confirming = self._confirming, None
        if confirming is not None:
            self._finish(confirming)

    def _fail(self, exc: ZkBeatError) -> NoReturn:
        self.forget()
        raise exc

    def _batches(self, states: Changes) -> Iterator[Changes]:
        """Splits the states into parts that each fit into one transaction, with at least one state
        each; each part is computed when it is needed. It goes page by page, because a page is
        written as a whole."""
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
            # Without an outbox nothing can be claimed. Nothing is lost: a copy is kept.
            aside = self._paths.damaged_outbox(node.data)
            for n in range(0, len(node.data) or 1, _PIECE):
                piece = Create(f"{aside}-at-{n}" if n else aside, node.data[n : n + _PIECE])
                with contextlib.suppress(Conflict):  # an earlier try has created it
                    self._session.commit(piece)
            self._session.commit(fenced, SetData(path, encode_outbox(()), node.version))
            self._outbox_version += 1
            logger.error("%s; saved as %s: runs in it were perhaps not published", exc, aside)
            return
        sent = self._published
        done = {run.entry for run in runs if run.entry in sent and sent[run.entry].run == run}
        known = self._unsent_in[1] if self._unsent_in[0] == term.epoch else {}
        known = {**known, **{run.entry: run.number for run in runs if run.unsent}}
        self._unsent_in = term.epoch, known
        self.unsent = {run.entry for run in runs if known.get(run.entry) == run.number}
        self.outbox = {
            run.entry: replace(run, unsent=False) for run in runs if run.entry not in done
        }
        self._outbox_bytes = None
        self._published = {name: sent[name] for name in done}


class _Before(NamedTuple):
    """What the ledger knew before a write."""

    pages: list[Kept]
    amended: dict[str, Run]
    outbox_changed: bool


@dataclass(frozen=True)
class _Sent:
    """A write that has been sent, with what it confirms of :attr:`RunLedger._published`.

    Attributes:
        conditions: znodes that only have to be as they were read.
        writes_outbox: it leaves another version of that.
    """

    pending: Pending
    confirmed: dict[str, _Published]
    size: int
    conditions: frozenset[str]
    before: _Before
    writes_outbox: bool


def _bytes_of(operation: Operation) -> int:
    """About how many bytes an operation has in a request."""
    data = operation.data if isinstance(operation, (Create, SetData)) else b""
    return len(operation.path) + len(data) + 60
