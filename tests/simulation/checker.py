"""The invariants over what a simulated run did: what ZooKeeper wrote, in order, and what
was handed to the broker."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_zk_beat import limits
from celery_zk_beat.backfills import Backfill, Backfills
from celery_zk_beat.control import Pauses
from celery_zk_beat.errors import RootError
from celery_zk_beat.history import Pasts, decode_volume, merged
from celery_zk_beat.paths import Paths, page_of, volume_of
from celery_zk_beat.records import EpochRecord, MasterRecord, decode_masters, from_text
from celery_zk_beat.runs import (
    ASKED_FOR,
    BACKFILLED,
    Run,
    RunState,
    decode_outbox,
    decode_page,
)
from celery_zk_beat.shown import Index, decode_shown

from .broker import Sent
from .ensemble import Tree, Write, Znode
from .live import GONE, LiveChecker
from .outcomes import OutcomeChecker
from .policies import PolicyChecker
from .world import BEGINNING, World

if TYPE_CHECKING:
    from .run import Beat

#: Seconds by which a due instant may be off.
TOLERANCE = 0.000_001
#: Seconds by which a store may round.
ROUNDED = 0.001
#: Of the session time-out, for which a write vouches. Not the ledger's own, which a mutation
#: changes.
SAFE_PART = 2 / 3
#: Seconds by which a last run is in the future that a clock has written which was wrong.
WRONG = 2.0
#: Why a run is dropped whatever the policy.
_NOT_BY_POLICY = re.compile(
    "dropped: (an operator|no schedule names it|it cannot be published|it is paused|later than)"
    f"|{GONE}"
)
#: Seconds between the last look at what is due and the sending: a beat may stand still in between,
#: as long as its session lives, and then asks ZooKeeper.
SLACK = 8.0


class Checker:
    def __init__(
        self, world: World, recovery: str, periods: Mapping[str, float], root: str, timeout: float
    ) -> None:
        self._world = world
        self._recovery = recovery
        self._periods = periods
        self._paths = Paths(root)
        self._timeout = timeout
        #: Of the entries that have a policy.
        self.policies = PolicyChecker(world, self.fail, root)
        self.live = LiveChecker(world, self.fail, root, self.policies)
        self.outcomes = OutcomeChecker(world, self.fail, root, timeout)
        self.begin()
        #: Entries of which no message can be sent.
        self.broken: Collection[str] = ()
        #: Those of which none can be made, at any time.
        self.unmade: Collection[str] = ()
        #: Entries that all beats have beside the usual, and that must run where they have a state.
        self.crowd: set[str] = set()
        #: What operators hold back, as it was before the write that is looked at.
        self.pauses = Pauses()
        #: Beats that are not to be master in the end, for they do not reach the broker.
        self.useless: set[str] = set()
        #: Entries of which a run that is a little late does not make the next one later.
        self.rhythmic: Collection[str] = ()
        self.clocks_are_right = True
        #: Where entries are rows whose names change: name to row. All else is by row.
        self.rows: dict[str, str] | None = None
        #: Whether pages may be full, so that no history is kept.
        self.pages_are_small = False
        #: Up to which number the runs of an entry are of the time before its clock began anew.
        self._not_its_own: dict[str, int] = {}
        #: Of all times: task id to entry and due instant, and the other way; what a receiver that
        #: refuses an old epoch has seen last.
        self._meaning: dict[str, tuple[str, str]] = {}
        self._id: dict[tuple[str, str], str] = {}
        #: What was sent in other times.
        self._sent_before: dict[tuple[str, int], list[Sent]] = defaultdict(list)
        self._seen = "", 0
        #: Where ZooKeeper's clock is set back, and its data lost, eras may go back.
        self.eras_grow = True
        #: Whether a gated scheduler's store may know what ZooKeeper has lost, all but the numbers.
        self.store_knows_more = False
        #: Whether what had another number before ZooKeeper lost its data may run again: a run that
        #: was asked for came before it then, or one that a policy skips now.
        self.numbers_may_differ = False
        #: Whether a gated scheduler has one, which may be behind.
        self.has_store = False
        #: Runs of which a receiver that refuses old epochs has had the message.
        self._accepted: set[tuple[str, int]] = set()
        self._arrivals: dict[str, list[float]] = defaultdict(list)
        self._calm_since = self._may_be_late = 0.0
        self._last_sent: dict[str, float] = {}
        self._faults: list[tuple[str, float, float]] = []
        #: Whether something wraps Celery's scheduler; and of which life and run it was called.
        self.hooked = False
        self._hooks: set[tuple[str, str, int, str]] = set()
        #: The first that was found. Kept, since it may be found deep within a beat, which would
        #: take it for an error of its own.
        self.violation: str | None = None

    def begin(self) -> None:
        """What follows is another time: ZooKeeper has lost its data, or got back older ones."""
        self.states: dict[str, RunState] = {}
        #: The entries on each page.
        self._pages: dict[str, set[str]] = {}
        #: The histories.
        self._volumes: dict[str, Pasts] = {}
        #: The last runs of each entry, since it was last skipped: they are to be remembered.
        self._ran: dict[str, list[int]] = defaultdict(list)
        #: When the state of each entry was written as it is, by ZooKeeper's clock.
        self._written: dict[str, float] = {}
        self.outbox: dict[tuple[str, int], Run] = {}
        #: What is in the outbox with the write that is looked at.
        self._claims: dict[tuple[str, int], Run] = {}
        #: What operators have run of the past, and how many runs of each were claimed.
        self.backfills = Backfills()
        self._filled: dict[tuple[str, datetime], int] = defaultdict(int)
        self.epoch = 0
        #: The session that was elected last.
        self.master = 0
        #: When each run was claimed, and when an epoch first wrote run states.
        self.claimed: dict[tuple[str, int], float] = {}
        self._claimed_in: dict[tuple[str, int], int] = {}
        self.began: dict[int, float] = {}
        #: When each last wrote any.
        self.wrote: dict[int, float] = {}
        #: Epochs whose master's znode was deleted by hand: it learns of it a while later.
        self.deposed: set[int] = set()
        self._answers: set[tuple[str, int]] = set()
        #: Entry and due instant of the claims.
        self._dues: set[tuple[str, datetime]] = set()
        self.policies.ran.clear()
        #: The highest number of each entry.
        self._highest: dict[str, int] = defaultdict(int)
        self.dropped: set[tuple[str, int]] = set()
        self.dropped_in_any_case: set[tuple[str, int]] = set()
        self.asked_for: set[tuple[str, int]] = set()
        #: Of the write that is looked at: runs that were published late.
        self._confirmed: set[tuple[str, int]] = set()
        #: Where nothing is sent: what is said to be.
        self.published: set[tuple[str, int]] = set()
        self.sent: dict[tuple[str, int], list[Sent]] = defaultdict(list)

    def fail(self, what: str) -> None:
        self.violation = self.violation or f"{self._world.now:.3f} s: {what}"

    # What happened ------------------------------------------------------------------------------

    def on_fault(self, who: str, at: float, length: float) -> None:
        self._faults.append((who, at, at + length))

    def on_restore(self, tree: Tree) -> None:
        """ZooKeeper has this now, and nothing else."""
        for run, each in self.sent.items():
            self._sent_before[run] += each
        self.begin()
        self.live.on_restore(tree)
        self.pauses = Pauses()
        for path, node in tree.items():
            if path == self._paths.epoch:
                self.epoch = node.version
            elif path == self._paths.outbox:
                self.outbox = {
                    (run.entry, run.number): run for run in decode_outbox(path, node.data)
                }
            elif path == self._paths.pauses:
                self.pauses = Pauses.decode(path, node.data)
            elif path == self._paths.backfills:
                self.backfills = Backfills.decode(path, node.data)
                for entry, filled in self.backfills.entries.items():
                    self._filled[entry, filled.since] = filled.done
            elif path.startswith(self._paths.history + "/"):
                self._volumes[path] = decode_volume(path, node.data)
            elif path.startswith(self._paths.runs + "/"):
                states = decode_page(path, node.data)
                self.states.update(states)
                self._pages[path] = set(states)
                self._written.update(dict.fromkeys(states, node.modified))
        self.policies.ran.update({name: state.ran for name, state in self.states.items()})
        self._highest.update({name: state.total_run_count for name, state in self.states.items()})
        self.claimed = dict.fromkeys(self.outbox, self._world.now)
        # A beat that lived through it may know.
        self.published = {
            run
            for run, waiting in self.outbox.items()
            if any(
                not each.failed and from_text(each.due) == waiting.due
                for each in self._sent_before[run]
            )
        }

    def hurt(self, who: str, failures: Sequence[BaseException]) -> None:
        if failures:
            self.fail(f"I6: {who} ended by itself: {failures!r}")

    # One write is told of in many znodes, and is judged by what all of them say.
    def on_write(self, write: Write, session: int) -> None:  # noqa: C901
        changes = write.changes
        self._read_all(changes)
        self.live.on_write(changes, session)
        if self._paths.epoch in changes:
            node = changes[self._paths.epoch]
            assert node is not None
            if node.version > 0 and self._paths.master not in changes:
                self.fail(f"an epoch without a master: {write}")
            self.epoch = max(self.epoch, node.version)
        pages = [path for path in changes if path.startswith(self._paths.runs + "/")]
        if self._paths.outbox in changes:
            self.began.setdefault(self.epoch, self._world.now)
            self.wrote[self.epoch] = self._world.now
            if session != self.master:
                self.fail(f"I4: written by another than the master: {write}")
        if self._paths.shown in changes and session != self.master:
            self.fail(f"I4: shown by another than the master: {write}")
        if self._paths.master in changes:
            node = changes[self._paths.master]
            self.master = self.master if node is None else node.owner
        claimed: set[tuple[str, int]] = set()
        renamed = self._note_rows(changes, pages)
        self._answers = {
            (self._row(fields["entry"]), fields["run"])
            for path, node in changes.items()
            if path.startswith(self._paths.requests + "/") and node is not None and node.version
            for fields in [json.loads(node.data)]
            if fields.get("run") is not None
        }
        outbox = changes.get(self._paths.outbox)
        if outbox is not None:
            runs = decode_outbox(self._paths.outbox, outbox.data)
            self._claims = {(self._row_of(run.entry, run.key), run.number): run for run in runs}
        for path in pages:
            node = changes[path]
            assert node is not None
            states = self._by_row(decode_page(path, node.data))
            for entry, state in states.items():
                is_new = self.states.get(entry) != state
                if entry in renamed:
                    self._on_renamed(entry, state)
                claimed |= self._on_state(entry, state, self._written.get(entry, 0.0))
                if is_new:
                    self._written[entry] = node.modified
            for entry in self._pages.get(path, set()) - states.keys() - renamed:
                self._on_removed(entry)
            self._pages[path] = set(states)
        for path in changes:
            if path.startswith(self._paths.history + "/"):
                node = changes[path]
                assert node is not None
                self._volumes[path] = decode_volume(path, node.data)
        if not self.pages_are_small:
            for path in pages:
                for entry in self._pages[path]:
                    self._on_past(entry)
        if self._paths.outbox in changes:
            node = changes[self._paths.outbox]
            assert node is not None
            runs = decode_outbox(self._paths.outbox, node.data)
            if self.rows is not None:
                runs = [
                    replace(run, entry=self._row_of(run.entry, run.key), was=None) for run in runs
                ]
            self._on_outbox(runs, claimed)
        if self._paths.backfills in changes:
            node = changes[self._paths.backfills]
            assert node is not None
            filled = Backfills.decode(self._paths.backfills, node.data).entries
            by_row = {self._row_of(name, each.key): each for name, each in filled.items()}
            self._on_backfills(Backfills(by_row), len(by_row) < len(filled), session)
        if not self._answers <= claimed:
            self.fail(f"I8: said to be claimed, and is not: {self._answers - claimed}")
        if self._paths.pauses in changes:
            node = changes[self._paths.pauses]
            assert node is not None
            self.pauses = Pauses.decode(self._paths.pauses, node.data)
        if self.outcomes.rules:
            self.outcomes.on_write(write, session, session == self.master != 0)

    def _row(self, name: str) -> str:
        return name if self.rows is None else self.rows.get(name, name)

    def _row_of(self, name: str, key: str | None) -> str:
        """The row of a record: of that which it was written for, whatever name it has."""
        return name if self.rows is None or key is None else key

    def _by_row(self, states: Mapping[str, RunState]) -> dict[str, RunState]:
        """Without those that a row has left under an old name."""
        if self.rows is None:
            return dict(states)
        return {state.key: state for state in states.values() if state.key is not None}

    def _note_rows(self, changes: Mapping[str, Znode | None], pages: Collection[str]) -> set[str]:
        """Notes by what names the rows are known; returns those that are known by others now."""
        if self.rows is None:
            return set()
        before = {row: name for name, row in self.rows.items()}
        for path in pages:
            node = changes[path]
            assert node is not None
            for name, state in decode_page(path, node.data).items():
                if state.key is None:
                    self.rows.pop(name, None)
                else:
                    self.rows[name] = state.key
        after = {row: name for name, row in self.rows.items()}
        if len(after) < len(self.rows):
            self.fail(f"I11: a row has two names: {self.rows}")
        return {row for row, name in after.items() if row in before and before[row] != name}

    def _on_renamed(self, entry: str, state: RunState) -> None:
        """A row's clock goes on, and its numbers grow: those of two names may come together."""
        before = self.states[entry]
        self._ran[entry].clear()
        number = before.total_run_count
        if state.due != before.due or state.total_run_count < number:
            self.fail(f"I5: {entry} has another name, and {before} becomes {state}")
        if state.last_run_at > before.last_run_at:
            self._on_late(entry, before, state)
        self.states[entry] = replace(state, past=before.past)

    # A branch for each kind of znode.
    def _read_all(self, changes: Mapping[str, Znode | None]) -> None:  # noqa: C901
        """As the package would: what a beat wrote is understood, and can be written again."""
        paths = self._paths
        for path, node in changes.items():
            if node is None or not node.data:
                continue
            try:
                if path == paths.outbox:
                    decode_outbox(path, node.data)
                    self._measure(path, node, limits.LARGEST_OUTBOX)
                elif path == paths.master:
                    MasterRecord.decode(path, node.data)
                elif path == paths.epoch:
                    EpochRecord.decode(path, node.data)
                elif path == paths.masters:
                    decode_masters(path, node.data)
                elif path == paths.pauses:
                    Pauses.decode(path, node.data)
                elif path == paths.backfills:
                    Backfills.decode(path, node.data)
                elif path.startswith(paths.runs + "/"):
                    decode_page(path, node.data)
                    self._measure(path, node, limits.LARGEST_PAGE)
                elif path == paths.shown:
                    index = Index.decode(path, node.data)
                    for page, checksum in index.pages.items():
                        written = changes.get(paths.shown_page(page))
                        if written is not None and zlib.crc32(written.data) != checksum:
                            self.fail(f"the index of {page} tells of another page")
                elif path.startswith(paths.shown + "/"):
                    decode_shown(path, node.data)
                elif path.startswith(paths.history + "/"):
                    decode_volume(path, node.data)
                    self._measure(path, node, limits.LARGEST_PAGE)
                elif path.startswith(f"{paths.root}/outbox-damaged"):
                    self.fail(f"I10: an outbox is put aside as {path}")
            except RootError as exc:
                self.fail(f"I10: {exc}")

    def _measure(self, path: str, node: Znode, most: int) -> None:
        if len(node.data) > most:
            self.fail(f"I10: {path} has {len(node.data)} bytes, which no beat takes over: {most}")

    def _on_past(self, entry: str) -> None:
        """However its past runs go from its state into its history, none of the last is missing."""
        name = next((name for name, row in (self.rows or {}).items() if row == entry), entry)
        volume = self._volumes.get(self._paths.volume(volume_of(page_of(name))), {})
        past = merged(volume.get(name, ()), self.states[entry].past)
        missing = {*self._ran[entry][-3:]} - {each.number for each in past}
        if missing:
            self.fail(f"I10: the history of {entry} lacks {missing}: {past}")

    def _on_removed(self, entry: str) -> None:
        del self.states[entry]
        self.policies.ran.pop(entry, None)
        self._ran.pop(entry, None)
        if self.has_store:
            # What a store that is behind says is all that is known of it now.
            self._forget(entry)
        if any(entry == each for each, _ in self.outbox):
            self.fail(f"I2: the state of {entry} is removed, and its run waits")

    def _forget(self, entry: str) -> None:
        """Its instants may run again."""
        self._dues = {each for each in self._dues if each[0] != entry}
        self._id = {each: id for each, id in self._id.items() if each[0] != entry}

    # What may follow on what, case by case, in the order in which one excludes the next.
    def _on_state(self, entry: str, state: RunState, written: float) -> set[tuple[str, int]]:  # noqa: C901
        """`written`: when it was so before, by ZooKeeper's clock."""
        before = self.states.get(entry)
        self.states[entry] = state
        number = state.total_run_count
        # Where a page is full its histories are shed, and only the numbers are left.
        self.dropped |= {(entry, dropped) for dropped in getattr(state, "dropped", ())}
        self.dropped |= {
            (entry, past.number)
            for past in state.past
            if past.number is not None and (past.note or "").startswith("dropped: ")
        }
        for past in state.past:
            if past.number is not None and (past.note or "").startswith(GONE):
                self.live.on_dropped(entry, past.number)
        self.dropped_in_any_case |= {
            (entry, past.number)
            for past in state.past
            if past.number is not None and _NOT_BY_POLICY.match(past.note or "")
        }
        highest, self._highest[entry] = self._highest[entry], max(number, self._highest[entry])
        if before is None:
            if number < highest:
                self.fail(f"I5: {entry}: a state that begins with run {number}, after {highest}")
            if not any(entry == each for each, _ in self.outbox):
                self.live.on_begun(entry, None, state)
            return set()
        back = (before.last_run_at - state.last_run_at).total_seconds()
        # ZooKeeper tells the time in milliseconds.
        was_ahead = before.last_run_at.timestamp() - written > WRONG - 0.001
        if back > 0 and was_ahead and number == before.total_run_count:
            return set()
        if back > 0 or number < before.total_run_count:
            self.fail(f"I5: {entry} goes back, from {before} to {state}, {written}")
        if number > before.total_run_count:
            self._ran[entry].append(number)
        elif state.past and state.past[-1].number is None:
            self._ran[entry].clear()
        if number == before.total_run_count:
            if self.rows is None and self.live.on_begun(entry, before, state):
                if not self.clocks_are_right:
                    # What ran before its time by a clock that was ahead was not its own, nor is
                    # what was claimed so and leaves later.
                    self._forget(entry)
                    self._not_its_own[entry] = number
                return set()
            if state.last_run_at > before.last_run_at:
                last = state.past[-1] if state.past else None
                is_told = (entry, number) in self.outbox
                if self.outcomes.on_moved(entry, before, state) or self.policies.on_moved(
                    entry, before, state, is_told
                ):
                    pass
                elif last.number is None if last else self.pauses.skip_until(entry):
                    self._on_skip(entry, before, state)
                else:
                    self._on_late(entry, before, state)
            return set()
        if number != before.total_run_count + 1 or (entry, number) in self.claimed:
            self.fail(f"I1: {entry}: {before} is followed by {state}")
        notes = {past.number: past.note for past in state.past}
        if number not in notes:
            if state.past or not self.pages_are_small:
                self.fail(f"I8: {entry}, run {number}, is not remembered: {state}")
                return set()
            claim = self._claims.get((entry, number))
            notes[number] = None if claim is None else claim.note
        # That the run before was published late may be told with the claim of the next.
        is_told = any(entry == each for each, _ in self.outbox)
        is_extra = notes[number] in (ASKED_FOR, BACKFILLED)
        self.live.on_claim(entry, before, state, is_told, is_extra)
        if notes[number] in (ASKED_FOR, BACKFILLED):
            if is_told and state.last_run_at > before.last_run_at:
                self._on_late(entry, before, replace(before, last_run_at=state.last_run_at))
            elif (state.last_run_at, state.due) != (before.last_run_at, before.due):
                self.fail(f"I8: {entry}, run {number}, was asked for and moves the clock: {state}")
            if notes[number] == BACKFILLED:
                self._on_backfilled(entry, number)
            elif (entry, number) not in self._answers:
                self.fail(f"I8: {entry}, run {number}: claimed without an answer to who asked")
            self.claimed[entry, number] = self._world.now
            self.asked_for.add((entry, number))
            return {(entry, number)}
        if self.pauses.since(entry) is not None or self.pauses.skip_until(entry) is not None:
            self.fail(f"I7: {entry}, run {number}, is claimed against {self.pauses}")
        period = self._periods.get(entry)
        if state.due is None:
            self.fail(f"{entry}, run {number}: for no instant")
            return set()
        if (entry, state.due) in self._dues:
            self.fail(f"I11: {entry}, run {number}: {state.due} was claimed before")
        self._dues.add((entry, state.due))
        if not self.policies.on_claim(entry, before, state, is_told):
            self._on_next(entry, number - 1, state.due)
        if period is not None and is_told:
            clock = state.due - timedelta(seconds=period)
            if clock > before.last_run_at:
                later = replace(before, last_run_at=clock)
                self._on_late(entry, before, later)
                before = later
        late = (state.due - before.last_run_at).total_seconds()
        off = period is not None and self._is_off(late - period, before)
        if off and not self.store_knows_more:
            self.fail(f"I2: {entry}, run {number}: due {late} s after the last, not {period}")
        lost = (state.last_run_at - state.due).total_seconds()
        if entry in self.rhythmic and period is not None and 0 < lost < min(1.0, period / 2):
            self.fail(f"I9: {entry}, run {number}: {lost} s late, and so are those that follow")
        self.claimed[entry, number] = self._world.now
        self._claimed_in[entry, number] = self.epoch
        return {(entry, number)}

    def _is_off(self, by: float, before: RunState) -> bool:
        """Whether a run is due at another instant than its state says."""
        if self.has_store and before.due is None:
            # Of what never ran, a store may tell a little otherwise when its clock began.
            return abs(by) > ROUNDED
        # A last run that is still to come by its store delays an entry until then: documented.
        is_delayed = self.has_store and not self.clocks_are_right and by > 0
        return abs(by) > TOLERANCE and not is_delayed

    def _on_backfilled(self, entry: str, number: int) -> None:
        """Each instant of what was asked for, in order, and nothing else."""
        claim, backfill = self._claims.get((entry, number)), self.backfills.entries.get(entry)
        if self.pauses.since(entry) is not None:
            self.fail(f"I7: {entry}, run {number}, is claimed against {self.pauses}")
        if claim is None or backfill is None:
            self.fail(f"I8: {entry}, run {number}, is of no backfill: {claim}, {self.backfills}")
            return
        due = self._instants(entry, backfill)
        done = self._filled[entry, backfill.since]
        self._filled[entry, backfill.since] += 1
        if due[done : done + 1] != [claim.due]:
            self.fail(f"I8: {entry}, run {number}, is not the next of {due}, {done}: {claim}")

    def _instants(self, entry: str, backfill: Backfill) -> list[datetime]:
        every, left = timedelta(seconds=self._periods[entry]), backfill.until - backfill.since
        return [backfill.since + n * every for n in range(math.ceil(left / every))]

    def _on_backfills(self, backfills: Backfills, is_doubled: bool, session: int) -> None:
        if is_doubled:
            self.fail(f"I8: a row has two backfills: {backfills}")
        for entry, backfill in self.backfills.entries.items():
            if session and backfills.entries.get(entry) is None:
                due, done = self._instants(entry, backfill), self._filled[entry, backfill.since]
                if done != len(due):
                    self.fail(f"I8: {entry}: its backfill ends after {done} of {len(due)} runs")
        self.backfills = backfills

    def _on_late(self, entry: str, before: RunState, state: RunState) -> None:
        """A run that was published late stands for what came due while it waited, too."""
        waits = [run for run in self.outbox if run[0] == entry]
        run = waits[0] if waits else (entry, state.total_run_count)
        if run not in self.outbox or not (self.sent[run] or run in self.published):
            self.fail(f"I2: {entry}: the clock moves without a run: {before} becomes {state}")
        self._confirmed.add(run)
        period = self._periods.get(entry)
        moved = (state.last_run_at - before.last_run_at).total_seconds()
        if period is not None and moved < period - TOLERANCE:
            self.fail(f"I2: {entry} was not due again: {before} becomes {state}")
        # Whoever has had it before has done it: it is no part of that what came due since.
        arrived = min((sent.at for sent in self.sent[run] if sent.arrived), default=math.inf)
        left = min(arrived, max((sent.at for sent in self.sent[run]), default=math.inf))
        if self.clocks_are_right and state.last_run_at.timestamp() > BEGINNING + left:
            self.fail(f"I2: {entry} came due after its run left at {left}: {state}")

    def _on_next(self, entry: str, number: int, due: datetime) -> None:
        """What was due when the run before left needs no other."""
        run = entry, number
        done = [sent for sent in self.sent[run] if not sent.failed]
        # Where it may have left before, what came due since needs another.
        may_have_left = len(self.sent[run]) > 1 or self._claimed_in.get(run) != self.epoch
        if (
            not done
            or may_have_left
            or run in self.asked_for | self.dropped
            or not self.clocks_are_right
        ):
            return
        late = BEGINNING + done[-1].at - due.timestamp()
        if late > SLACK:
            self.fail(f"I2: {entry}, due {due}, needs no second run {late} s later: {done[-1]}")

    def _on_skip(self, entry: str, before: RunState, state: RunState) -> None:
        until = self.pauses.skip_until(entry)
        # Earlier where the master's clock is behind the operator's.
        if until is None or state.last_run_at > until:
            self.fail(f"I7: {entry} is skipped against {self.pauses}: {before} becomes {state}")
        period = self._periods.get(entry)
        if period is not None and until is not None:
            due = before.last_run_at + timedelta(seconds=period)
            if due > until:
                self.fail(f"I2: {entry} is skipped before it was due, {due}: {state}")

    def _on_outbox(self, runs: list[Run], claimed: set[tuple[str, int]]) -> None:
        found = {(run.entry, run.number): run for run in runs}
        if not claimed <= found.keys():
            self.fail(f"I2: claimed and not in the outbox: {claimed - found.keys()}")
        if not found.keys() <= self.outbox.keys() | claimed:
            self.fail(f"I1: in the outbox and not claimed: {found}")
        if self._confirmed & found.keys():
            self.fail(f"I2: known to be published, and still to be: {self._confirmed}")
        self._confirmed.clear()
        for run in self.outbox.keys() - found.keys():
            told = any(sent.arrived and not sent.failed for sent in self.sent[run])
            told = told or self.outcomes.is_reported(run)
            if not told and run not in self.dropped | self.published:
                self.fail(f"I2: {run} leaves the outbox unpublished")
        self.outbox = found

    def on_sent(self, sent: Sent) -> None:
        run = sent.entry, sent.run
        if run not in self.claimed:
            self.fail(f"I1: published and not claimed: {sent}")
        self.live.on_sent(sent)
        if self.clocks_are_right:
            self._on_sent_in_time(sent)
        for epoch, since in self.began.items():
            if epoch > sent.epoch and sent.at > since and sent.epoch not in self.deposed:
                self.fail(f"I4: epoch {epoch} began at {since}, and then came {sent}")
        if sent.at > self.wrote.get(sent.epoch, -math.inf) + SAFE_PART * self._timeout:
            self.fail(f"I4: past the deadline after {self.wrote.get(sent.epoch)}: {sent}")
        if self.hooked and sent.hook is None:
            self.fail(f"I3: without what a hook made of it: {sent}")
        for before in self.sent[run]:
            self._on_repeat(before, sent)
        self.sent[run].append(sent)
        # A receiver that does each task id once would never do the other.
        what = sent.entry, sent.due
        if self._meaning.setdefault(sent.id, what) != what:
            self.fail(f"I11: {sent} has the task id of {self._meaning[sent.id]}")
        is_its_own = sent.run > self._not_its_own.get(sent.entry, 0)
        if is_its_own and self._id.setdefault(what, sent.id) != sent.id:
            self._on_another_id(sent, self._id[what])

    def _on_another_id(self, sent: Sent, before: str) -> None:
        if not (self.store_knows_more or self.numbers_may_differ):
            self.fail(f"I11: {sent} had the task id {before}")

    def _on_sent_in_time(self, sent: Sent) -> None:
        waiting = self.outbox.get((sent.entry, sent.run))
        if waiting is None or not waiting.extra:
            self.policies.on_sent(sent)
        if sent.early > TOLERANCE:
            self.fail(f"I9: published before it is due: {sent}")

    def on_hook(self, life: str, entry: str, mark: Mapping[str, Any] | None) -> None:
        """What wraps Celery's scheduler is called for a run, of which the entry's header tells."""
        run = self._row(entry), 0 if mark is None else mark["run"]
        if mark is None or run not in self.claimed:
            self.fail(f"I1: a hook is called for {run}, which is not claimed")
            return
        waiting, call = self.outbox.get(run), (life, *run, mark["due"])
        is_kept = waiting is not None and waiting.made is not None
        if call in self._hooks or (is_kept and mark["epoch"] == self.epoch):
            self.fail(f"I3: a hook is called again for {run}, by {life}: {waiting}")
        self._hooks.add(call)

    def on_arrived(self, sent: Sent) -> None:
        self._last_sent[sent.entry] = self._world.now
        self.live.on_arrived(sent)
        self._arrivals[sent.entry].append(self._world.now)
        token = sent.era, sent.epoch
        if token >= self._seen:
            self._seen = token
            self._accepted.add((sent.entry, sent.run))
        elif self.eras_grow and not sent.failed and sent.epoch not in self.deposed:
            self.fail(f"I11: a receiver that has seen {self._seen} refuses {sent}")

    def _on_repeat(self, before: Sent, sent: Sent) -> None:
        if before.id != sent.id:
            self.fail(f"I3: a run with two ids: {before}, {sent}")
        same_life = (before.machine, before.life) == (sent.machine, sent.life)
        if same_life and before.hook != sent.hook:
            self.fail(f"I3: not as a hook made it: {before}, {sent}")
        if before.failed:
            return  # the beat was told that it failed
        if same_life:
            self.fail(f"I3: published again by the same beat: {before}, {sent}")
        if not self._was_hurt(before.machine, before.at, sent.at):
            self.fail(f"I3: published again without a reason: {before}, {sent}")

    def _was_hurt(self, machine: str, since: float, until: float) -> bool:
        return self._world.is_slow or any(
            who in (machine, "ZooKeeper") and begin <= until and end >= since - 1.0
            for who, begin, end in self._faults
        )

    # In the end ---------------------------------------------------------------------------------

    def is_well(self, beats: Sequence[Beat], count: int, since: float) -> bool:
        """Whether `count` beats live, one of them is master, no run of its schedule waits, and all
        entries had a run after `since`."""
        masters = [beat for beat in beats if beat.is_master]
        if len(beats) != count or len(masters) != 1 or masters[0].name in self.useless:
            return False
        assert masters[0].scheduler is not None
        known = {*map(self._row, masters[0].scheduler.schedule)} - {*self.broken}
        if self.backfills and not self._world.is_slow:  # else something is due at any time
            return False
        if not self.live.is_well(since):
            return False
        return not any(entry in known for entry, _ in self.outbox) and all(
            self._last_sent.get(entry, 0.0) > since or self._has_run_ahead(entry)
            for entry in ("a", "b", "c", "d", *(self.crowd & known & self.states.keys()))
        )

    def _has_run_ahead(self, entry: str) -> bool:
        """Whether each instant that is due now ran by a clock that was far ahead."""
        state, now = self.states.get(entry), BEGINNING + self._world.now
        return state is not None and any(a < 1000 * now < b for a, b in state.done)

    def begin_calm(self, late: float) -> None:
        """From now on nothing happens but what is wrong with some entries, or beats: all others run
        at most `late` seconds after they are due."""
        self._calm_since, self._may_be_late = self._world.now, late
        self._arrivals = defaultdict(list)

    def end_calm(self, epoch: int) -> None:
        if self.epoch != epoch:
            self.fail(f"I12: epoch {self.epoch} though nothing happened since {epoch}")
        for entry, number in self.outbox:
            waits = self._world.now - self.claimed[entry, number]
            if entry in self.unmade and waits > self._may_be_late + 2.0:
                self.fail(f"I2: {entry}, run {number}, cannot be made, and waits for {waits} s")
        for entry, period in {**self._periods, **self.live.periods}.items():
            at = [self._calm_since, *self._arrivals[entry], self._world.now]
            gap = max(later - earlier for earlier, later in zip(at, at[1:]))
            if gap > period + self._may_be_late:
                self.fail(f"I12: {entry}, of {period} s, did not run for {gap} s")

    def _is_deposed(self, run: tuple[str, int]) -> bool:
        # One that a worker has begun is not sent again, whatever its epoch.
        is_known = not self.eras_grow or self.outcomes.is_reported(run)
        return is_known or any(sent.epoch in self.deposed for sent in self.sent[run])

    def finish(self, beats: Sequence[Beat]) -> None:
        for beat in beats:
            assert beat.machine is not None
            assert beat.scheduler is not None
            self.hurt(beat.name, beat.machine.failures)
            if beat.scheduler._failure is not None:
                self.fail(f"I6: {beat.name} ended by itself: {beat.scheduler._failure!r}")
        for run in self.claimed:
            arrived = any(sent.arrived for sent in self.sent[run])
            known = self.dropped | self.published | self.outbox.keys()
            if not arrived and run not in known:
                self.fail(f"I2: {run} was never published")
            if arrived and run not in known | self._accepted and not self._is_deposed(run):
                self.fail(f"I2: a receiver that refuses old epochs never got {run}")
            by_policy = self._recovery == "drop" or run in self.dropped_in_any_case
            if arrived and run in self.dropped and not by_policy:
                self.fail(f"I2: {run} was dropped, against the policy")
