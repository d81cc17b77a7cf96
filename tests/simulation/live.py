"""Live entries: who changes them, what goes wrong with that, and what is checked of it."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from celery_zk_beat import clock
from celery_zk_beat.errors import ConnectTimeout, EntryError, RootError, Uncertain
from celery_zk_beat.live import store
from celery_zk_beat.live.definitions import (
    Content,
    Damaged,
    Definition,
    Found,
    Index,
    Page,
    Sum,
    Timing,
    checksum,
    is_page_of_entries,
    page_of_entry,
)
from celery_zk_beat.live.store import Changed, Changer
from celery_zk_beat.paths import Paths
from celery_zk_beat.runs import RunState, from_milliseconds
from celery_zk_beat.zookeeper.session import ZooKeeperSession

from .broker import Sent
from .ensemble import Ensemble, Link, Tree, Write, Znode
from .policies import PolicyChecker
from .scenario import Rule
from .world import Machine, Thread, World

WRITERS = ("writer1", "writer2", "writer3")
#: Two lie on one page; one is of a task that beats must not run.
NAMES = ("live0", "live1", "live2")
FORBIDDEN = "forbidden"
#: The setting that names the tasks which may run; each has the name of its entry.
TASKS = ["live*"]
assert page_of_entry("live0") == page_of_entry("live1")
#: Seconds of a change, at most.
DEADLINES = (3.0, 10.0)
#: So many times as many steps are taken, for those of writers are among them.
STEPS = 3
#: Seconds by which `since` may be off ZooKeeper's clock when the change is written.
SINCE = 15.0
#: Why a run is dropped whose entry is gone.
GONE = "dropped: its entry was removed or disabled"

Edits = dict[str, store.Edit]
#: What a write did, by name.
Transaction = dict[str, tuple[Found, Found]]


class LiveChecker:
    """I14: each change that was answered is there, whole, and once; and nothing is claimed by an
    older definition than the last."""

    def __init__(
        self, world: World, fail: Callable[[str], None], root: str, policies: PolicyChecker
    ) -> None:
        self._world, self._fail, self._paths = world, fail, Paths(root)
        self._policies = policies
        #: What was said not to be done, and must not be.
        self._never: set[str] = set()
        #: Which ZooKeeper's clock is always right; and those of all beats.
        self.server_is_right = self.clocks_are_right = True
        self.damages = 0
        self.time = 0
        self.begin()

    def begin(self) -> None:
        """ZooKeeper has other data."""
        self.time += 1
        self.index = Index()
        self.entries: dict[str, Definition | Damaged] = {}
        #: What is on the pages; and what of that is told by the index, damaged or not.
        self._there: dict[str, dict[str, Definition | Damaged]] = {}
        self._pages: dict[str, dict[str, Definition | Damaged]] = {}
        self.transactions: list[Transaction] = []
        #: The entries before the first transaction, and after each.
        self._moments: list[dict[str, Definition | Damaged]] = [{}]
        self._ids: set[str] = set()
        #: Of each name what was there, in order; and since which of it each run may be.
        self._history: dict[str, list[Found]] = defaultdict(lambda: [None])
        self._since: dict[tuple[str, int], int] = {}
        self._sent: dict[str, tuple[str | None, float]] = {}

    def on_restore(self, tree: Tree) -> None:
        self.begin()
        index = tree.get(self._paths.entries)
        pages = {
            path.rpartition("/")[2]: node
            for path, node in tree.items()
            if path.startswith(self._paths.entries + "/")
        }
        self._on_hand({} if index is None else {self._paths.entries: index}, pages)

    # What ZooKeeper writes ----------------------------------------------------------------------

    def on_write(self, changes: Mapping[str, Znode | None], session: int) -> None:
        root = self._paths.entries
        pages = {
            path.rpartition("/")[2]: node
            for path, node in changes.items()
            if path.startswith(root + "/") and node is not None
        }
        # A master makes pages that are empty, for its claims to check.
        pages = {
            name: node
            for name, node in pages.items()
            if is_page_of_entries(name) and (node.version or node.data != Page().encode())
        }
        if not pages and root not in changes:
            return
        if session == 0:
            self._on_hand(changes, pages)
            return
        index = changes.get(root)
        if index is None:
            self._fail(f"I14: written without the index, and nobody is told: {pages}")
            return
        try:
            record = Index.decode(root, index.data)
            decoded = {
                name: Page.decode(self._paths.entries_page(name), node.data)
                for name, node in pages.items()
            }
        except RootError as exc:
            self._fail(f"I10: {exc}")
            return
        if not pages:
            return  # it is made
        self._on_index(record, {name: node.data for name, node in pages.items()}, decoded)
        transaction: Transaction = {}
        for name, page in decoded.items():
            before, after = self._there.get(name, {}), page.entries
            for entry in before.keys() | after.keys():
                if before.get(entry) != after.get(entry):
                    transaction[entry] = before.get(entry), after.get(entry)
                    self._on_entry(entry, *transaction[entry], pages[name].modified)
            self._there[name] = self._pages[name] = dict(after)
        if not transaction:
            self._fail(f"I14: written, and nothing is another: {pages.keys()}")
        self.transactions.append(transaction)
        self._note()

    def _on_index(
        self, record: Index, data: Mapping[str, bytes], pages: Mapping[str, Page]
    ) -> None:
        for name, page in pages.items():
            if record.pages.get(name) != Sum(checksum(data[name]), len(page.told)):
                self._fail(f"I14: the index of {name} tells of another page")
        for name in record.pages.keys() | self.index.pages.keys():
            if name not in pages and record.pages.get(name) != self.index.pages.get(name):
                self._fail(f"I14: the index of {name} is another, and the page is not")
        id = record.recent[-1]
        if id in self._ids:
            self._fail(f"I14: the change {id} is made twice")
        self._ids.add(id)
        self.index = record

    def _on_entry(self, entry: str, before: Found, after: Found, modified: float) -> None:
        if isinstance(after, Damaged):
            self._fail(f"I10: {entry}: {after}")
        if not isinstance(after, Definition):
            return
        label = _label_of(after)
        if label in self._never:
            self._fail(f"I14: {entry} is changed though nothing was, as was said: {after}")
        is_anew = True
        if isinstance(before, Definition) and before.born == after.born:
            one, other = before.content, after.content
            is_anew = one.schedule != other.schedule or (other.enabled and not one.enabled)
            if after.version != before.version + 1:
                self._fail(f"I14: {entry}: on {before} follows {after}")
            if not is_anew and after.since != before.since:
                self._fail(f"I14: {entry}: its clock begins anew: {before}, {after}")
        elif after.version != 1:
            self._fail(f"I14: {entry}: it begins with version {after.version}: {after}")
        if is_anew and self.server_is_right and abs(after.since / 1000 - modified) > SINCE:
            self._fail(f"I13: {entry}: its clock begins at no time of ZooKeeper's: {after}")

    def _on_hand(self, changes: Mapping[str, Znode | None], pages: Mapping[str, Znode]) -> None:
        """By hand, and at a restore. What the index does not tell of, no master sees."""
        index = changes.get(self._paths.entries)
        is_told = index is not None
        if index is not None:
            # As long as it is damaged nothing is another.
            with contextlib.suppress(RootError):
                self.index = Index.decode(self._paths.entries, index.data)
        for name, node in pages.items():
            try:
                after = dict(Page.decode(self._paths.entries_page(name), node.data).entries)
            except RootError:
                after = dict.fromkeys(self._there.get(name, {}), Damaged("page"))
            self._there[name] = after
            if is_told or not any(isinstance(each, Damaged) for each in after.values()):
                self._pages[name] = after
        self._note()

    def _note(self) -> None:
        entries = {name: each for page in self._pages.values() for name, each in page.items()}
        for name in self.entries.keys() | entries.keys():
            if self.entries.get(name) != entries.get(name):
                self._history[name].append(entries.get(name))
        self.entries = entries
        there = {name: each for page in self._there.values() for name, each in page.items()}
        self._moments.append(there)

    # What writers are told ----------------------------------------------------------------------

    def on_done(self, time: int, moment: int, outcomes: Mapping[str, Changed]) -> None:
        """A change was answered that was begun at that `moment`."""
        if time != self.time:
            return
        changed = {
            name: (each.before, each.after) for name, each in outcomes.items() if each.is_changed
        }
        same = {name: each.before for name, each in outcomes.items() if not each.is_changed}
        moments = self._moments[moment:]
        if not changed:
            if not any(all(at.get(n) == each for n, each in same.items()) for at in moments):
                self._fail(f"I14: said to be so already, and was not: {same}")
            return
        found = sum(each == changed for each in self.transactions)
        if found != 1:
            self._fail(f"I14: answered, and there {found} times: {changed}")

    def on_refused(self, time: int, label: str, exc: Exception, damages: int) -> None:
        if isinstance(exc, (RootError, EntryError)):
            if damages == 0 and time == self.time:
                self._fail(f"I14: a change is refused, and nothing is damaged: {exc!r}")
        elif not isinstance(exc, ConnectTimeout):
            return  # nobody knows
        if time == self.time and label in self._labels():
            self._fail(f"I14: said not to be done, and is: {label}")
        self._never.add(label)

    def _labels(self) -> set[str]:
        return {
            _label_of(after)
            for transaction in self.transactions
            for _, after in transaction.values()
        }

    # What beats do ------------------------------------------------------------------------------

    def on_begun(self, entry: str, before: RunState | None, state: RunState) -> bool:
        """Looks at a state without a run; True where its clock begins, or begins anew."""
        is_ours = entry in (*NAMES, FORBIDDEN)
        if not is_ours or (before is not None and before.key == state.key):
            return False
        definition = next(
            (
                each
                for each in self._history.get(entry, ())
                if isinstance(each, Definition) and each.key == state.key
            ),
            None,
        )
        if definition is None or not definition.content.enabled:
            if state.key is not None:
                self._fail(f"I14: {entry}: a clock of no definition: {state}")
            return False
        since = from_milliseconds(definition.since)
        if before is not None:
            since = max(since, before.last_run_at)
        off = abs(state.last_run_at - since)
        if self.clocks_are_right and off > timedelta(seconds=0.01):
            self._fail(f"I14: {entry}: its clock is to begin at {since}: {before}, {state}")
        return True

    def on_claim(
        self, entry: str, before: RunState, state: RunState, is_told: bool, is_extra: bool
    ) -> None:
        if entry not in (*NAMES, FORBIDDEN):
            return
        number, definition = state.total_run_count, self.entries.get(entry)
        self._since[entry, number] = len(self._history[entry]) - 1
        if not isinstance(definition, Definition) or not definition.content.enabled:
            self._fail(f"I14: {entry}, run {number}, is claimed, and it is {definition}")
        elif entry == FORBIDDEN:
            self._fail(f"I14: {entry}, run {number}, is of a task that is not to be run")
        elif state.key != definition.key:
            self._fail(f"I14: {entry}, run {number}, is by an older {state.key}: {definition}")
        elif before.key != definition.key:
            self._fail(f"I14: {entry}, run {number}: its clock did not begin anew: {before}")
        elif not is_extra and state.due is not None:
            rule = Rule(definition.content.schedule.every or 0.0, True, {})
            expected = self._policies.first(rule, before)
            if state.due != expected and not (state.due > expected and is_told):
                self._fail(f"I2: {entry}: after {before} {expected} is due, and not {state}")

    def on_dropped(self, entry: str, number: int) -> None:
        """A run that was claimed is not sent, since its entry is gone."""
        if (entry, number) in self._since:
            found = self._history[entry][self._since[entry, number] :]
            first = found[0]
            if isinstance(first, Definition) and all(
                isinstance(each, Definition) and each.content.enabled and each.born == first.born
                for each in found
            ):
                self._fail(f"I2: {entry}, run {number}, is dropped, and was always there")

    def on_sent(self, sent: Sent) -> None:
        since = self._since.get((sent.entry, sent.run))
        if since is None:
            return
        known = {_label_of(each) for each in self._history[sent.entry][since:]}
        if sent.label not in known:
            self._fail(f"I14: by an older definition than when it was claimed, {known}: {sent}")

    def on_arrived(self, sent: Sent) -> None:
        self._sent[sent.entry] = sent.label, self._world.now

    # In the end ---------------------------------------------------------------------------------

    @property
    def periods(self) -> dict[str, float]:
        """Of what is in force."""
        return {
            name: each.content.schedule.every or 0.0
            for name, each in self.entries.items()
            if isinstance(each, Definition) and each.content.enabled and name != FORBIDDEN
        }

    def is_well(self, since: float) -> bool:
        """Each had a run, as it is now."""
        for name in self.periods:
            label, at = self._sent.get(name, (None, 0.0))
            if at <= since or label != _label_of(self.entries[name]):
                return False
        return True


def _label_of(found: Found) -> str:
    args = found.content.args if isinstance(found, Definition) else ()
    return _label(*args)


def _label(*args: str) -> str:
    """As a message has it."""
    return repr([*args])


class Live:
    """Writers, and a hand that damages what they write."""

    def __init__(self, seed: int, world: World, ensemble: Ensemble, checker: LiveChecker) -> None:
        self.world, self.ensemble, self.checker = world, ensemble, checker
        self.paths = checker._paths
        self.random = random.Random(f"live {seed}")
        self.period = 5.0 if world.is_slow else 1.0
        self.over = False
        self._mend: Callable[[], None] | None = None
        count = self.random.choice((1, 2, 3, 3))
        self.writers = {name: Writer(self, name) for name in WRITERS[:count]}
        ensemble.observers.append(self._on_write)

    def start(self) -> None:
        for writer in self.writers.values():
            writer.start()
        for _ in range(self.random.choice((0, 0, 1, 4))):
            self.world.after(self.random.uniform(0.5, 6.0), self._damage)

    def heal(self) -> None:
        self.over = True
        if self._mend is not None:
            self._mend()
        for writer in self.writers.values():
            writer.heal()

    def lost(self) -> None:
        """ZooKeeper has other data: there is nothing to be mended."""
        self._mend = None

    @property
    def is_damaged(self) -> bool:
        return self._mend is not None

    @property
    def is_quiet(self) -> bool:
        """Whether all that was begun is ended."""
        return not any(writer.is_busy for writer in self.writers.values())

    @property
    def failures(self) -> dict[str, list[BaseException]]:
        return {
            writer.name: writer.machine.failures
            for writer in self.writers.values()
            if writer.machine is not None
        }

    def _on_write(self, write: Write, session: int) -> None:
        for writer in self.writers.values():
            if write.connection is not None and write.connection._link is writer.link:
                writer.on_write(self.paths.entries in write.changes)

    def _mend_if(self, mend: Callable[[], None]) -> None:
        if self._mend is mend:
            mend()

    def _damage(self) -> None:
        """A page, an entry or the index; it is mended some seconds later."""
        tree, path = self.ensemble.tree, self.paths.entries
        if self.over or self._mend is not None or path not in tree or not self.checker.index.pages:
            return
        self.checker.damages += 1
        chance = self.random
        page = chance.choice(sorted(self.checker.index.pages))
        page_path = self.paths.entries_page(page)
        index, good = tree[path].data, tree[page_path].data
        bad = chance.choice((b"{", b'{"format": 2, "entries": []}'))
        if chance.random() < 0.3:
            self.ensemble.set((path, bad, 0))
            self._mend = lambda: self._mended((path, index, 0))
        else:
            entries = Page.decode(page_path, good)
            if chance.random() < 0.5 and entries.told:
                one = chance.choice(sorted(entries.told))
                bad = Page({**entries.told, one: {"task": 5}}).encode()
            self._write_page(page, bad, len(entries.told), chance.random() < 0.6)
            is_told = chance.random() < 0.7
            self._mend = lambda: self._mended_page(page, good, bad, is_told)
        self.world.after(chance.uniform(0.2, 6.0), partial(self._mend_if, self._mend))

    def _mended(self, *nodes: tuple[str, bytes, int]) -> None:
        self._mend = None
        self.ensemble.set(*nodes)

    def _mended_page(self, page: str, good: bytes, bad: bytes, is_told: bool) -> None:
        self._mend = None
        path = self.paths.entries_page(page)
        if self.ensemble.tree[path].data == bad:  # else a writer has mended it
            self._write_page(page, good, len(Page.decode(path, good).told), is_told)

    def _write_page(self, page: str, data: bytes, entries: int, is_told: bool) -> None:
        nodes = [(self.paths.entries_page(page), data, 0)]
        if is_told:
            pages = {**self.checker.index.pages, page: Sum(checksum(data), entries)}
            index = replace(self.checker.index, pages=pages)
            nodes.append((self.paths.entries, index.encode(), 0))
        self.ensemble.set(*nodes)


class Writer:
    """A process that changes live entries; its connection, its clock and its life go wrong."""

    def __init__(self, live: Live, name: str) -> None:
        self.live, self.name = live, name
        self.link = Link()
        self.random = random.Random(f"{name} {live.random.random()}")
        self.machine: Machine | None = None
        self.is_busy = False
        self._labels = 0
        self._rhythm = self.random.choice((0.1, 0.5))
        self._offset = self.random.choice((0.0, 0.0, 300.0, -300.0))

    def start(self) -> None:
        if self.live.over:
            return
        self.is_busy = False
        self.machine = machine = Machine(self.live.world, self.name)
        machine.clock_offset = self._offset
        with self.live.world.on(machine):
            Thread(target=self._work, name="writer").start()

    def heal(self) -> None:
        self.link.set()

    def on_write(self, is_change: bool) -> None:
        """A write of its own has come to the leader: it may be that it never learns so."""
        chance, after = self.random.random(), self.live.world.after
        if self.live.over or not is_change:
            return
        if chance < 0.1:
            after(0.0, lambda: self.link.set(cut=True))
            after(self.random.choice((0.1, 1.0, 9.0)), self.link.set)
        elif chance < 0.15:
            after(0.0, lambda: self.link.set(blocked=frozenset({"answers"})))
            after(self.random.choice((0.1, 1.0, 9.0)), self.link.set)
        elif chance < 0.18:
            after(0.0, self._die)
            after(self.random.uniform(0.1, 2.0), self.start)

    def _die(self) -> None:
        if self.machine is not None and self.machine.alive:
            self.machine.die()
            for connection in self.link.connections:
                connection.hang_up()
            self.link.connections.clear()
            self.is_busy = False

    def _work(self) -> None:
        news = clock.Wakeup()
        session = ZooKeeperSession("z1,z2,z3", 4.0, news.set)
        changer = Changer(session, self.live.paths, news)
        session.start()
        while True:
            clock.sleep(self.random.expovariate(1 / self._rhythm))
            if self.live.over:
                return
            for edits in self._edits():
                self._change(changer, edits)

    def _change(self, changer: Changer, edits: Edits) -> None:
        checker, label = self.live.checker, self._label
        time, moment = checker.time, len(checker._moments) - 1
        damages = checker.damages if self.live._mend is None else -1
        deadline = clock.boottime() + self.random.choice(DEADLINES)
        self.is_busy = True
        try:
            checker.on_done(time, moment, changer.change(edits, self.name, deadline))
        except (ConnectTimeout, Uncertain, RootError, EntryError) as exc:
            checker.on_refused(time, label, exc, checker.damages - damages)
        finally:
            self.is_busy = False

    def _edits(self) -> Iterator[Edits]:
        """What is to be changed, one after the other."""
        self._labels += 1
        self._label, chance = _label(f"{self.name}-{self._labels}"), self.random
        name = chance.choice((*NAMES, *NAMES, FORBIDDEN))
        kind = chance.choice(("put", "args", "args", "schedule", "switch", "remove", "again"))
        if chance.random() < 0.2:
            some = chance.sample(NAMES, chance.choice((2, 3)))
            yield {each: self._edit(chance.choice(("put", "args")), each) for each in some}
        elif kind == "again":
            yield {name: lambda found: None}
            self._labels += 1
            self._label = _label(f"{self.name}-{self._labels}")
            yield {name: self._edit("put", name)}
        else:
            yield {name: self._edit(kind, name)}

    def _edit(self, kind: str, name: str) -> store.Edit:
        label, period = f"{self.name}-{self._labels}", self.live.period
        timing = Timing(every=period * self.random.choice((1, 2, 3)))
        new = Content(name, timing, args=[label])

        def edit(found: Found) -> Content | None:
            if kind == "remove":
                return None
            if kind == "put" or not isinstance(found, Definition):
                return new
            content = found.content
            if kind == "args":
                return replace(content, args=[label])
            if kind == "switch":
                return replace(content, enabled=not content.enabled, args=[label])
            return replace(content, schedule=timing, args=[label])

        return edit


def patches() -> Any:
    """Ids are of the seed, too."""

    def uuid4() -> Any:
        return SimpleNamespace(hex=f"{World.active.random.getrandbits(128):032x}")

    return mock.patch.object(store, "uuid", SimpleNamespace(uuid4=uuid4))
