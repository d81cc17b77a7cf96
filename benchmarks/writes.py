"""Measures what a run costs ZooKeeper, and what a take-over reads.

    python -m benchmarks.writes --entries 100,10000 --seconds 30

For each number of entries it starts one ZooKeeper. This program itself is the first master. It
makes each entry run as often as in an hour, at most HISTORY times, so that histories are full. Then
it measures twice: with entries that are due evenly spread over their period, and with all due at
one instant. Each time it starts a `celery beat` as a standby. The first master writes last runs
that make the entries due like this. It ends when the first entry is due, or some seconds before all
are. The beat takes over and dispatches what was due in between. From then on it is watched.

Bytes are bytes of ZooKeeper's transaction log, without space that is allocated in advance. Every
server writes each of them to its disk. They are counted by znode:

    states      pages of run states, without histories
    history     past runs
    claims      the outbox, in transactions with a page of states
    confirms    the outbox in all other transactions
    overhead    records without the data of znodes: paths, versions, checks, checksums
    other       all else, such as members

Requests a run are transactions with a page of states, and without one. A take-over begins with the
end of the first master. The beat's requests are taken from ZooKeeper's log of requests; each znode
that it read counts with the size that it had then. The exit status is 1 if a bound is missed, or if
runs are not spread evenly enough.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from celery_zk_beat import MasterElection
from celery_zk_beat import ledger as ledger_module
from celery_zk_beat.ledger import BELOW_ROOT, RunLedger
from celery_zk_beat.limits import MOST_RUNS
from celery_zk_beat.paths import page_of
from celery_zk_beat.runs import HISTORY, Run, decode_outbox
from example_project.processes import Process, wait_until
from example_project.servers import celery_beat

from .bench import (
    PATHS,
    PATIENCE,
    Row,
    Servers,
    machine,
    requests,
    scratch,
    sessions,
)
from .txn_log import Transaction, read_log

#: Seconds: of the beat's session, and for which the history is that of an hour.
SESSION_TIMEOUT, HOUR = 10.0, 3600.0
#: Entries that have a longer period, and that of the others, seconds.
MANY, PERIOD, LONG_PERIOD = 100_000, 60.0, 600.0
#: Most bytes a run.
BOUNDS = {(10_000, 60.0, "spread"): 1500.0, (100_000, 600.0, "spread"): 3000.0}
#: A run that is later than so many seconds was due at the take-over.
LATE = 0.1
#: The share by which the number of runs may differ from an even spread.
UNEVEN = 0.05
PARTS = ("states", "history", "claims", "confirms", "overhead", "other")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.writes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--entries", default="100,1000,10000,100000", help="how many, with commas")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to watch each")
    parser.add_argument("--period", type=float, help="of the entries; default 60, with many 600")
    args = parser.parse_args()
    ledger_module.HISTORIES_WITHIN = 0.0  # here; not in the beat
    found: list[Measured] = []
    for count in map(int, args.entries.split(",")):
        period = args.period or (LONG_PERIOD if count >= MANY else PERIOD)
        with scratch() as folder, Site(folder, count, period) as site:
            found += site.measure(min(args.seconds, period))
    return report(found)


def history_bytes(page: bytes) -> int:
    """Returns how many bytes of a page are past runs. Only this function looks into a znode."""
    total = 0
    for _, _, _, *more in json.loads(page)["entries"].values():
        for past in (fields["past"] for fields in more if "past" in fields):
            total += len('"past":' + json.dumps(past, separators=(",", ":")))
    return total


@dataclass(frozen=True)
class Window:
    """The time in which a beat was watched, in seconds since 1970, and how many runs there were."""

    begins: float
    ends: float
    runs: int
    expected: int

    def holds(self, at: float) -> bool:
        return self.begins <= at < self.ends

    @property
    def is_even(self) -> bool:
        return abs(self.runs - self.expected) <= max(2.0, UNEVEN * self.expected)


@dataclass(frozen=True)
class TakeOver:
    """What was read, and the `seconds` from the end of the first master to the first claim."""

    requests: int
    znodes: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One line of the tables.

    Attributes:
        parts: bytes in the log, by part.
        claims, confirms: transactions with a page of states, and without one.
        reads: requests.
    """

    entries: int
    period: float
    how: str
    window: Window
    parts: Counter[str]
    claims: int
    confirms: int
    reads: int
    takeover: TakeOver

    @property
    def row(self) -> Row:
        what = f"{self.entries:,} of {self.period:g} s, {self.how}"
        bound = BOUNDS.get((self.entries, self.period, self.how))
        return Row(what, [sum(self.parts.values()) / self.window.runs], "bytes a run", bound)


class Site(Servers):
    """Servers with so many entries of one period. They live as long as the ``with`` block."""

    def __init__(self, folder: Path, entries: int, period: float) -> None:
        super().__init__(folder, log_requests=True)
        self.entries, self.period = entries, period
        self.names = sorted((f"entry-{n}" for n in range(entries)), key=page_of)
        #: How many seconds it takes to write all states.
        self.took = 0.0

    def measure(self, seconds: float) -> Iterator[Measured]:
        print("\n".join(machine(self.zookeeper, self.redis)), flush=True)
        for how in "spread", "burst":
            with self._first_master() as ledger:
                if not self.took:
                    self._fill(ledger)
                beat = self._start_standby(how)
                begins = self._place(ledger, how)
                sizes, queued, ended = self._sizes(), self._queued(), time.time()
            if how == "spread":
                window = self._watch_spread(begins, queued, seconds)
            else:
                window = self._watch_burst(begins, queued, seconds)
            session = sessions(self.client)[beat.pid]
            yield self._measured(how, window, session, ended, sizes)
            beat.terminate(PATIENCE)

    @contextlib.contextmanager
    def _first_master(self) -> Iterator[RunLedger]:
        hosts, root = self.zookeeper.hosts, PATHS.root
        with MasterElection(hosts, root, app="benchmark", below=BELOW_ROOT) as election:
            assert election.wait(PATIENCE)
            assert election.term is not None
            ledger = RunLedger(election)
            ledger.load(election.term)
            yield ledger

    def _fill(self, ledger: RunLedger) -> None:
        """Makes each entry run as often as in an hour."""
        rounds = max(1, min(HISTORY, int(HOUR / self.period)))
        first = datetime.now(timezone.utc) - timedelta(seconds=(rounds + 1) * self.period)
        ledger.first_seen(dict.fromkeys(self.names, first))
        for number in range(1, rounds + 1):
            begun = time.perf_counter()
            due = first + timedelta(seconds=number * self.period)
            left = [Run(name, number, due, due, ledger.epoch) for name in self.names]
            while left:
                claimed = ledger.claim(left[:MOST_RUNS])
                for run in claimed:
                    ledger.published(run, run.claimed)
                done = {run.entry for run in claimed}
                left = [run for run in left[:MOST_RUNS] if run.entry not in done] + left[MOST_RUNS:]
            self.took = time.perf_counter() - begun
            ledger.flush()
            while ledger._histories.due_since < math.inf:  # as in the time between two rounds
                ledger.confirm()
                ledger.flush()

    def _start_standby(self, how: str) -> Process:
        env = {
            "CELERY_BROKER_URL": self.redis.url(),
            "ZK_BEAT_HOSTS": self.zookeeper.hosts,
            "ZK_BEAT_SESSION_TIMEOUT": str(SESSION_TIMEOUT),
            "BENCHMARK_ENTRIES": str(self.entries),
            "BENCHMARK_PERIOD": str(self.period),
        }
        beat = celery_beat(self.folder, f"beat-{how}", "benchmarks.app", env=env)
        self._stack.enter_context(beat).start()
        wait_until(lambda: beat.pid in sessions(self.client), PATIENCE, "a standby")
        return beat

    def _place(self, ledger: RunLedger, how: str) -> float:
        """Writes when each entry ran last, and waits until another beat may be master: if it read a
        last run in the future, it would assume that a clock was ahead. Returns when the entries are
        due; the first one if they are spread."""
        begins = time.time() + 1.5 * self.took + 2.0
        until = begins - 0.5
        if how == "burst":
            begins += 2.0 + self.entries / 10_000  # for the take-over
        step = self.period / self.entries if how == "spread" else 0.0
        states = {}
        for number in range(self.entries):
            name, ran = f"entry-{number}", begins + number * step - self.period
            state = ledger.state(name)
            assert state is not None
            at = datetime.fromtimestamp(ran, timezone.utc)
            states[name] = replace(state, last_run_at=at, due=at, leaps=())
        ledger.rewrite(states)
        late = time.time() - until
        if late > 0:
            raise RuntimeError(f"to write all states took {late:.1f} s longer than was expected")
        time.sleep(-late)  # until an instant, not for something
        return begins

    def _sizes(self) -> dict[str, int]:
        """Returns how many bytes each znode has, by path."""
        sizes = {}
        paths = [PATHS.root]
        for path in paths:
            stat = self.client.exists(path)
            if stat is not None:
                sizes[path] = stat.dataLength
                if stat.numChildren:
                    paths += [f"{path}/{name}" for name in self.client.get_children(path)]
        return sizes

    def _watch_spread(self, begins: float, queued: int, seconds: float) -> Window:
        step = self.period / self.entries

        def has_caught_up() -> bool:
            return self._queued() - queued >= (time.time() - begins - LATE) / step > 0

        wait_until(has_caught_up, PATIENCE, "all that was due at the take-over to run")
        begins, queued = time.time(), self._queued()
        time.sleep(seconds)
        return Window(begins, time.time(), self._queued() - queued, round(seconds / step))

    def _watch_burst(self, begins: float, queued: int, seconds: float) -> Window:
        def is_over() -> bool:
            return self._queued() - queued >= self.entries and self._is_confirmed()

        wait_until(is_over, 5 * PATIENCE, "the burst to be over")
        # Include what is written later about this burst, but not the next one.
        time.sleep(max(0.0, begins + min(seconds, self.period / 2) - time.time()))
        return Window(begins - 1.0, time.time(), self._queued() - queued, self.entries)

    def _measured(
        self, how: str, window: Window, session: int, ended: float, sizes: dict[str, int]
    ) -> Measured:
        told = [each for each in requests(self.zookeeper, ended) if each.session == session]
        read = [each for each in told if each.kind not in ("ping", "multi")]
        before = [each for each in read if each.at < window.begins]
        paths = {each.path for each in before if each.kind == "getData"}
        # The log does not say what a request for several znodes reads: pages and outbox.
        paths |= {each for each in sizes if each.startswith((f"{PATHS.runs}/", PATHS.outbox))}
        transactions = list(read_log(self.folder / "zookeeper", ended))
        claimed = next(each.at for each in transactions if _has_states(each))
        taken = sum(sizes.get(path, 0) for path in paths)
        seen = [each for each in transactions if window.holds(each.at)]
        return Measured(
            self.entries,
            self.period,
            how,
            window,
            sum(map(parts_of, seen), Counter()),
            sum(_has_states(each) for each in seen),
            sum(each.is_multi and not _has_states(each) for each in seen),
            sum(window.holds(each.at) for each in read),
            TakeOver(len(before), len(paths), taken, claimed - ended),
        )

    def _queued(self) -> int:
        return int(self.broker.llen("celery"))

    def _is_confirmed(self) -> bool:
        data, _ = self.client.get(PATHS.outbox)
        return not decode_outbox(PATHS.outbox, data)


def _has_states(transaction: Transaction) -> bool:
    return any(write.path.startswith(f"{PATHS.runs}/") for write in transaction.writes)


def parts_of(transaction: Transaction) -> Counter[str]:
    """Returns how many bytes each part has in a transaction."""
    parts = Counter({"overhead": transaction.size})
    for write in transaction.writes:
        size = len(write.data)
        parts["overhead"] -= size
        if write.path.startswith(f"{PATHS.runs}/"):
            past = history_bytes(write.data)
            parts["history"] += past
            parts["states"] += size - past
        elif write.path.startswith(f"{PATHS.root}/history/"):
            parts["history"] += size
        elif write.path == PATHS.outbox:
            parts["claims" if _has_states(transaction) else "confirms"] += size
        else:
            parts["other"] += size
    return parts


def report(found: list[Measured]) -> int:
    """Prints the tables. Returns the exit status."""
    print(f"\n| bytes a run | {' | '.join(PARTS)} | all | bound | requests a run | reads |")
    print("|---" * (len(PARTS) + 5) + "|")
    for each in found:
        row, runs = each.row, each.window.runs
        cells = [row.what, *(f"{each.parts[part] / runs:,.0f}" for part in PARTS)]
        cells += [f"{row.values[0]:,.0f}", "" if row.bound is None else f"{row.bound:,.0f}"]
        claims, confirms = each.claims / runs, each.confirms / runs
        cells += [f"{claims:.3f} + {confirms:.3f} = {claims + confirms:.3f}", str(each.reads)]
        print("|", " | ".join(cells), "|")
    print("\n| take-over | requests | znodes | bytes | first claim after |")
    print("|---" * 5 + "|")
    for each in found:
        took = each.takeover
        cells = [each.row.what, str(took.requests), str(took.znodes), f"{took.bytes:,}"]
        # In a burst there is nothing to claim at once.
        cells.append(f"{took.seconds:.2f} s" if each.how == "spread" else "")
        print("|", " | ".join(cells), "|")
    bad = [f"{each.row.what}: its bound is missed" for each in found if not each.row.met]
    bad += [
        f"{each.row.what}: {each.window.runs} runs, expected were {each.window.expected}"
        for each in found
        if not each.window.is_even
    ]
    print("\n".join(["", *bad]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
