"""Measures what tracked runs cost, compared with untracked ones.

    python -m benchmarks.outcomes [--entries 1000] [--seconds 60] [--rounds 3]

In turn, a beat dispatches entries of a period of 60 s that are tracked, and the same untracked.
They are due evenly spread, and two workers (prefork, two processes each) execute them. Each time
has its own root, and its own processes.

Lateness is the time from the instant at which a run was due until Redis got its message. Writes are
records in ZooKeeper's transaction log, by whose they are. Processor time is that of the beat, of
all processes of the workers, and of ZooKeeper. The exit status is 1 if the lateness of tracked runs
(p99, median of the rounds) is more than BOUND times that of untracked ones.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from celery_zk_beat.records import from_text
from example_project.processes import Process
from example_project.servers import celery_beat, celery_worker

from .bench import PATIENCE, Row, Servers, cpu_seconds, machine, report, scratch
from .txn_log import Transaction, read_log

BOUND = 1.2
#: Seconds until the beat has caught up with what was due while it started.
WARM_UP = 15.0
#: Whose a write is.
BEGINS, ENDS, STATES = "worker begins", "worker ends", "master claims and folds"
CONFIRMS, OTHER = "master confirms", "other"
KINDS = (BEGINS, ENDS, STATES, CONFIRMS, OTHER)
PROCESSES = ("beat", "workers", "ZooKeeper")


@dataclass(frozen=True)
class Measured:
    """What was seen in one window.

    Attributes:
        late: seconds, of each run.
        writes: by whose they are; written: their bytes.
        used: processor seconds of each of PROCESSES.
    """

    late: Sequence[float]
    writes: Counter[str]
    written: int
    used: Sequence[float]

    @property
    def runs(self) -> int:
        return len(self.late)

    def percentile(self, part: float) -> float:
        return sorted(self.late)[min(self.runs - 1, int(self.runs * part))]


class Watch:
    """Notes when the broker gets which message: for a ``with`` block."""

    _DUE = re.compile(r'\\*"due\\*": *\\*"([^"\\]+)')

    def __init__(self, url: str) -> None:
        self.seen: list[tuple[float, float]] = []
        self._client: Any = redis.Redis.from_url(url, socket_timeout=None)
        self._is_over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._client.ping()  # one more that it sees
        self._thread.join(PATIENCE)
        self._client.close()

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            while not self._is_over:
                told = monitor.next_command()
                if told["command"].startswith("LPUSH"):
                    for due in self._DUE.findall(told["command"]):
                        self.seen.append((told["time"], from_text(due).timestamp()))


def kind_of(transaction: Transaction) -> str:
    paths = [write.path for write in transaction.writes]
    if any("/runs/" in path for path in paths):
        return STATES
    if any("/inbox/running/" in path for path in paths):
        return BEGINS
    if any("/inbox/reports/" in path for path in paths):
        return ENDS
    return CONFIRMS if any(path.endswith("/outbox") for path in paths) else OTHER


def family(process: Process) -> Iterator[int]:
    """Yields the pids of a process and its children."""
    yield process.pid
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    yield from map(int, children.split())


def measure(servers: Servers, entries: int, seconds: float, number: int, tracked: bool) -> Measured:
    root = f"/benchmark-{number}"
    env = {
        "CELERY_BROKER_URL": servers.redis.url(),
        "ZK_BEAT_HOSTS": servers.zookeeper.hosts,
        "ZK_BEAT_ROOT": root,
        "BENCHMARK_ENTRIES": str(entries),
        "BENCHMARK_TRACKED": "yes" if tracked else "",
    }
    app = "benchmarks.outcomes_app"
    with contextlib.ExitStack() as stack:
        workers = []
        for name in (f"worker-{number}-1", f"worker-{number}-2"):
            args = ["--pool", "prefork", "-c", "2", "-l", "WARNING"]
            worker = celery_worker(servers.folder, name, app, env=env, args=args)
            workers.append(stack.enter_context(worker).start())
        args = ["-l", "WARNING"]
        beat = celery_beat(servers.folder, f"beat-{number}", app, env=env, args=args)
        stack.enter_context(beat).start()
        watch = stack.enter_context(Watch(servers.redis.url()))
        time.sleep(WARM_UP)  # until it has caught up

        def used() -> list[float]:
            of_workers = [pid for each in workers for pid in family(each)]
            pids = [[beat.pid], of_workers, [servers.zookeeper.pid]]
            return [sum(map(cpu_seconds, each)) for each in pids]

        begun, before = time.time(), used()
        time.sleep(seconds)  # the measurement
        after, ended = used(), time.time()
    log = [
        each
        for each in read_log(servers.folder / "zookeeper", begun)
        if each.at <= ended and (not each.writes or each.writes[0].path.startswith(root))
    ]
    return Measured(
        [at - due for at, due in watch.seen if begun <= at <= ended],
        Counter(map(kind_of, log)),
        sum(each.size for each in log),
        [b - a for a, b in zip(before, after)],
    )


def tell(what: str, found: Sequence[Measured]) -> None:
    """Prints what was measured, as lines of a table."""
    runs = sum(each.runs for each in found)
    writes = sum((each.writes for each in found), Counter[str]())
    kinds = " | ".join(f"{writes[kind] / runs:.2f}" for kind in KINDS)
    all_writes = sum(writes.values()) / runs
    used = [1000 * sum(parts) / runs for parts in zip(*(each.used for each in found))]
    p50, p99 = (
        1000 * statistics.median(each.percentile(part) for each in found) for part in (0.5, 0.99)
    )
    print(
        f"| {what} | {runs} | {p50:.1f} / {p99:.1f} | {kinds} | {all_writes:.2f} | "
        f"{sum(each.written for each in found) / runs:,.0f} | "
        f"{' | '.join(f'{each:.1f}' for each in used)} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[bool, list[Measured]] = {False: [], True: []}
    with scratch() as folder, Servers(folder) as servers:
        print("\n".join(machine(servers.zookeeper, servers.redis)), flush=True)
        numbers = itertools.count()
        for turn in range(options.rounds):
            for tracked in (False, True) if turn % 2 == 0 else (True, False):
                measured = measure(
                    servers, options.entries, options.seconds, next(numbers), tracked
                )
                found[tracked].append(measured)
    print(
        f"\n| {options.entries:,} runs a minute | runs | late, p50 / p99, ms | "
        f"{' | '.join(KINDS)} | writes a run | bytes | {' | '.join(PROCESSES)}, ms a run |"
    )
    print("|---" * (len(KINDS) + len(PROCESSES) + 5) + "|")
    tell("untracked", found[False])
    tell("tracked", found[True])
    p99 = {
        tracked: statistics.median(each.percentile(0.99) for each in rounds)
        for tracked, rounds in found.items()
    }
    ratio = p99[True] / p99[False]
    return report([Row("lateness (p99), tracked to untracked", [ratio], "", BOUND)])


if __name__ == "__main__":
    sys.exit(main())
