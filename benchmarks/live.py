"""Measures live entries: the time until a change is in force, a take-over, a burst compared with
the same entries in code, and the time to add them.

    python -m benchmarks.live [--entries 10000] [--changes 200] [--takeovers 6] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from celery_zk_beat import clock
from celery_zk_beat.live.definitions import Content
from celery_zk_beat.live.store import Changer
from celery_zk_beat.zookeeper.session import connected
from example_project.processes import Process, wait_until
from example_project.servers import celery_beat

from .bench import PATHS, PATIENCE, Arrival, Arrivals, Elections, Servers, cpu_seconds, sessions

DAY = 86400
#: A schedule that is not due during the benchmark.
RARELY = {"cron": "0 0 1 1 *"}
#: The name and the schedule of the entry that is changed.
PROBE, OFTEN = "probe", {"every": 0.01}


class Site(contextlib.ExitStack):
    """Servers, and a client that changes entries."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self._number = folder, itertools.count()

    def __enter__(self) -> Site:
        super().__enter__()
        self.servers = self.enter_context(Servers(self.folder))
        news = clock.Wakeup()
        session = connected(self.servers.zookeeper.hosts, 10.0, PATIENCE, news.set)
        self._changer = Changer(self.enter_context(session), PATHS, news)
        return self

    def beat(self, entries: int = 0, offset: int = 0) -> Process:
        env = {
            "CELERY_BROKER_URL": self.servers.redis.url(),
            "ZK_BEAT_HOSTS": self.servers.zookeeper.hosts,
            "BENCHMARK_ENTRIES": str(entries),
            "BENCHMARK_OFFSET": str(offset),
        }
        name = f"beat-{next(self._number)}"
        return celery_beat(self.folder, name, "benchmarks.live_app", env=env)

    def put(self, entries: Mapping[str, Mapping[str, Any]]) -> float:
        """Puts live entries there. Returns the seconds that it took."""
        edits = {
            name: lambda found, name=name, said=said: Content.of(name, {"task": "entry", **said})
            for name, said in entries.items()
        }
        begun = time.time()
        for _ in self._changer.change_many(edits, "benchmark", clock.boottime() + 10 * PATIENCE):
            pass
        return time.time() - begun

    def clear(self) -> None:
        self.servers.client.delete(PATHS.root, recursive=True)
        self.servers.broker.flushall()


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def _is_of(task: str, arrival: Arrival) -> bool:
    return arrival.entry == task


def changes(site: Site, count: int, times: int) -> list[float]:
    """Changes an entry that is due every 10 ms, beside many others. Returns the seconds from the
    answer to each change until the first message that follows it."""
    site.put({f"entry-{number}": {"schedule": RARELY} for number in range(count - 1)})
    site.put({PROBE: {"schedule": OFTEN, "task": PROBE}})
    found = []
    with site.beat().start(), Arrivals(site.servers.redis.url()) as arrivals:
        arrivals.wait_for(lambda each: each.entry == PROBE)
        for number in range(times):
            task = f"{PROBE}-{number}"
            site.put({PROBE: {"schedule": OFTEN, "task": task}})
            answered = time.time()
            arrival = arrivals.wait_for(functools.partial(_is_of, task))
            found.append(max(0.0, arrival.at - answered))
            time.sleep(0.05)
    return found


def takeovers(site: Site, count: int, times: int) -> list[float]:
    """Returns the seconds from the election of a standby to its first message."""
    site.put({f"entry-{number}": {"schedule": RARELY} for number in range(count - 1)})
    site.put({PROBE: {"schedule": {"every": 0.1}}})
    found = []
    with contextlib.ExitStack() as stack:
        beats = [stack.enter_context(site.beat()).start() for _ in range(2)]
        elections = Elections(site.servers.client)
        arrivals = stack.enter_context(Arrivals(site.servers.redis.url()))
        for end in itertools.islice(itertools.cycle([signal.SIGTERM, signal.SIGKILL]), times):
            found.append(_takeover(site, beats, elections, arrivals, end))
    return found


def _takeover(
    site: Site,
    beats: Sequence[Process],
    elections: Elections,
    arrivals: Arrivals,
    end: signal.Signals,
) -> float:
    wanted, client = {beat.pid for beat in beats}, site.servers.client
    wait_until(lambda: wanted <= set(sessions(client)), PATIENCE, "both to be members")
    before = elections.last
    arrivals.wait_for(lambda each: each.epoch == before.epoch)
    time.sleep(0.5)
    master = next(beat for beat in beats if beat.pid == before.pid)
    master.send(end)
    term = elections.after(before)
    arrival = arrivals.wait_for(lambda each: each.epoch == term.epoch)
    master.wait(10)
    master.start()
    return arrival.at - max(term.since, arrival.due)


def burst(site: Site, count: int, is_live: bool) -> tuple[float, float]:
    """Returns the seconds from the instant at which all are due until the last message is in the
    broker, and the processor seconds of the beat."""
    at = int(time.time()) + 15 + count // 2000
    offset, broker = at % DAY, site.servers.broker
    schedule = {"every": DAY, "offset": offset}
    if is_live:
        site.put({f"entry-{number}": {"schedule": schedule} for number in range(count)})
    with site.beat(0 if is_live else count, offset).start() as beat:
        wait_until(lambda: beat.pid in sessions(site.servers.client), PATIENCE, "the beat")
        time.sleep(max(0.0, at - 1 - time.time()))
        cpu = cpu_seconds(beat.pid)
        until = at + PATIENCE
        while (sent := broker.llen("celery")) < count and time.time() < until:
            time.sleep(0.002)
        seconds = time.time() - at
        if sent < count:
            raise TimeoutError(f"{sent} of {count} messages within {PATIENCE:g} s")
        time.sleep(0.2)
        return seconds, cpu_seconds(beat.pid) - cpu


@contextlib.contextmanager
def fresh() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder, Site(Path(folder)) as site:
        yield site


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in ("entries", 10_000), ("changes", 200), ("takeovers", 6), ("rounds", 3):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    n = args.entries
    print(f"{n:,} live entries\n\n| | | bound |\n|---|---|---|")

    def row(what: str, value: str, bound: str = "") -> None:
        print(f"| {what} | {value} | {bound} |", flush=True)

    with fresh() as site:
        seconds = site.put({f"entry-{number}": {"schedule": RARELY} for number in range(n - 1)})
        row("to add all but one, many at a time", f"{seconds:.2f} s", "10 s" if n <= 10_000 else "")
        if args.changes:
            found = [1000 * each for each in changes(site, n, args.changes)]
            row(
                "from the answer to a change to its first message, median",
                f"{statistics.median(found):.1f} ms",
                "50 ms",
            )
            row("... p99", f"{percentile(found, 0.99):.1f} ms", "200 ms")
            row("... longest", f"{max(found):.1f} ms")
        if args.takeovers:
            found = takeovers(site, n, args.takeovers)
            row(
                "take-over: from the election to the first message, median",
                f"{statistics.median(found):.3f} s",
            )
            row("... longest", f"{max(found):.3f} s", "0.6 s" if n <= 10_000 else "")
    live: list[tuple[float, float]] = []
    code: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        for measured, is_live in (live, True), (code, False):
            with fresh() as site:
                measured.append(burst(site, n, is_live))
    if args.rounds:
        live_s, code_s = (statistics.median(each[0] for each in many) for many in (live, code))
        row("a burst of all of them", f"{live_s:.2f} s, processor {live[0][1]:.2f} s")
        row("... of the same entries in code", f"{code_s:.2f} s, processor {code[0][1]:.2f} s")
        row("... ratio of the two", f"{live_s / code_s:.2f}", "1.1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
