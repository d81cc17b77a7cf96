"""Measures how long nobody dispatches when the master is killed, stopped, ended or asked to resign.

    python -m benchmarks.failover kill --times 50              with guards; also with
                                            --entries 10000, or --load 4
    python -m benchmarks.failover stop --times 50              SIGSTOP for 5 s
    python -m benchmarks.failover expire --times 20            as when its machine dies
    python -m benchmarks.failover term --times 20
    python -m benchmarks.failover resign --times 50

There are three beats. With kill and stop the session time-out is 10 s, the default, and there is an
entry with a period of 0.1 s, or many entries of which 100 run each second. Otherwise it is 2 s, and
there is an entry with a period of 1 s. At a random instant the master gets the signal: with expire
it is SIGKILL, and no beat has a guard. Then it is started again as a standby, and so on. With
resign the master gets the request of ``zk-beat resign``, every second time with a standby as
successor; there are 20 entries, 50 ms apart.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import random
import signal
import socket
import statistics
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone

from celery_zk_beat.control import RESIGN, Asking, RequestRecord
from celery_zk_beat.records import to_text
from celery_zk_beat.zookeeper.session import connected
from example_project.processes import Process, wait_until

from .bench import PATHS, PATIENCE, Cluster, Row, end_of, report, scratch

BEATS = 3
PERIOD = 1.0
SESSION_TIMEOUT = 2.0
#: From the kill to the next run. ZooKeeper ends a session within a tick (0.5 s) after it was silent
#: for the time-out, and the entry may just have run.
NEXT_RUN_BOUND = SESSION_TIMEOUT + 0.5 + PERIOD
#: With guards: the default session time-out, and how often something is due, seconds.
GUARDED_TIMEOUT, GUARDED_PERIOD, RUNS_A_SECOND = 10.0, 0.1, 100
#: From the kill to the next run: the longest; the longest on a busy machine; the median.
KILL_BOUND, BUSY_BOUND, MEDIAN_BOUND = 0.5, 1.0, 0.15
#: Seconds for which a master is stopped.
STOPPED = 5.0
#: From SIGTERM to the znode of another master.
HAND_OVER_BOUND = 0.2
#: From the request, or from when the run is due if that is later, to the next master's first run.
RESIGN_BOUND = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.failover", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("signal", choices=("kill", "stop", "expire", "term", "resign"))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--entries", type=int, default=1, help="kill: how many entries")
    parser.add_argument("--load", type=int, default=0, help="kill: how many busy processes")
    args = parser.parse_args()
    if args.signal in ("kill", "stop"):
        many = args.entries > 1
        period = args.entries / RUNS_A_SECOND if many else GUARDED_PERIOD
        with scratch() as folder, Cluster(folder, GUARDED_TIMEOUT, period) as cluster:
            spread = {"BENCHMARK_ENTRIES": str(args.entries), "BENCHMARK_SPREAD": "1"}
            cluster.start_beats(BEATS, env=spread if many else {})
            if args.signal == "stop":
                return report(*measure_stopping(cluster, args.times))
            return report(*measure_killing(cluster, args.times, args.load))
    with scratch() as folder, Cluster(folder, SESSION_TIMEOUT, PERIOD) as cluster:
        if args.signal == "resign":
            cluster.start_beats(BEATS, env={"BENCHMARK_ENTRIES": "20", "BENCHMARK_SPREAD": "1"})
            return report(*measure_resigning(cluster, args.times))
        cluster.start_beats(BEATS, env={"BENCHMARK_UNGUARDED": "1"})
        number = signal.SIGKILL if args.signal == "expire" else signal.SIGTERM
        return report(*measure(cluster, number, args.times))


def measure(cluster: Cluster, number: signal.Signals, times: int) -> tuple[list[Row], list[str]]:
    """Returns the rows of the table, and the faults."""
    elected, resumed, ended, faults = [], [], [], []
    for turn in range(1, times + 1):
        term = cluster.settled()
        time.sleep(random.uniform(0, 2 * PERIOD))  # the random instant
        if cluster.elections.last != term:
            faults.append(f"turn {turn}: the master changed by itself")
            term = cluster.settled()
        beat = cluster.beat(term.pid)
        at = time.time()
        beat.send(number)
        ended.append(end_of(beat) - at)
        successor = cluster.elections.after(term)
        arrival = cluster.arrivals.after(term)
        elected.append(successor.since - at)
        resumed.append(arrival.at - at)
        code = beat.wait(1)
        print(
            f"{turn:3}  epoch {term.epoch} ended with {code:2} after {ended[-1]:.3f} s, another "
            f"elected after {elected[-1]:.3f} s, its first run, {arrival.run}, "
            f"after {resumed[-1]:.3f} s",
            flush=True,
        )
        if code not in (0, -signal.SIGKILL):
            faults.append(f"turn {turn}: exit status {code}")
        beat.start()
    arrivals = cluster.arrivals
    print(f"\n{len(arrivals.all)} messages, {arrivals.repeats} of them repeat a run")
    killed = number == signal.SIGKILL
    if arrivals.repeats and not killed:
        faults.append("a run was repeated although every master ended in order")
    rows = [
        Row("signal -> another master", elected, bound=None if killed else HAND_OVER_BOUND),
        Row("signal -> next run, of another beat", resumed, bound=NEXT_RUN_BOUND),
        Row("signal -> the process has ended", ended),
    ]
    return rows, faults + arrivals.faults()


def measure_killing(cluster: Cluster, times: int, load: int) -> tuple[list[Row], list[str]]:
    busy = [sys.executable, "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for number in range(load):
            stack.enter_context(Process(cluster.folder, f"busy-{number}", busy)).start()
        rows, faults = measure(cluster, signal.SIGKILL, times)
    resumed = rows[1]
    median = statistics.median(resumed.values)
    if not load and cluster.period == GUARDED_PERIOD and median > MEDIAN_BOUND:
        faults.append(f"{median:.3f} s in the median, bound {MEDIAN_BOUND} s")
    rows[1] = replace(resumed, bound=BUSY_BOUND if load else KILL_BOUND)
    return rows, faults


def measure_stopping(cluster: Cluster, times: int) -> tuple[list[Row], list[str]]:
    """Measures with SIGSTOP: a master that stops for a while is not replaced."""
    resumed, faults = [], []
    for turn in range(1, times + 1):
        term = cluster.settled()
        beat = cluster.beat(term.pid)
        time.sleep(random.uniform(0, 2 * GUARDED_PERIOD))  # the random instant
        beat.pause()
        time.sleep(STOPPED)  # the pause itself
        beat.resume()
        at, seen = time.time(), len(cluster.arrivals.all)
        wait_until(lambda: len(cluster.arrivals.all) > seen, PATIENCE, "a run")  # noqa: B023
        resumed.append(cluster.arrivals.all[-1].at - at)
        if cluster.elections.last != term:
            faults.append(f"turn {turn}: another master")
        print(f"{turn:3}  epoch {cluster.elections.last.epoch}", flush=True)
    return [Row("SIGCONT -> a run", resumed)], faults + cluster.arrivals.faults()


def measure_resigning(cluster: Cluster, times: int) -> tuple[list[Row], list[str]]:
    resumed, answered, late, changed = [], [], [], []
    news: queue.SimpleQueue[object] = queue.SimpleQueue()
    with connected(cluster.zookeeper.hosts, SESSION_TIMEOUT, PATIENCE, lambda: None) as session:
        for turn in range(1, times + 1):
            term = cluster.settled()
            time.sleep(random.uniform(0, 2 * PERIOD))  # the random instant
            if cluster.elections.last != term:
                changed.append(f"turn {turn}: the master changed by itself")
                term = cluster.settled()
            others = [pid for pid in cluster.wait_members() if pid != term.pid]
            to = f"{socket.gethostname()}:{random.choice(others)}" if turn % 2 else None
            record = RequestRecord(RESIGN, None, to, to_text(datetime.now(timezone.utc)), "bench")
            at = time.time()
            with Asking(session, PATHS, record, news.put) as asking:
                while (answer := asking.answer()) is None:
                    news.get(timeout=PATIENCE)
            answered.append(time.time() - at)
            if not answer.ok:
                raise RuntimeError(f"{answer.text}:\n{cluster.beat(term.pid).log()}")
            arrival = cluster.arrivals.after(term)
            assert to is None or to.endswith(f":{arrival.pid}")
            resumed.append(arrival.at - at)
            late.append(arrival.at - max(at, arrival.due))
            print(
                f"{turn:3}  epoch {term.epoch}: the next master's first run after "
                f"{resumed[-1]:.3f} s, {late[-1]:.3f} s after it was due",
                flush=True,
            )
    print(f"\n{len(cluster.arrivals.all)} messages, {cluster.arrivals.repeats} repeat a run")
    faults = changed + cluster.arrivals.faults()
    if cluster.arrivals.repeats:
        faults.append("a run was repeated although every master resigned in order")
    rows = [
        Row("asked -> next run, of another beat", resumed),
        Row("asked, and due -> that run", late, bound=RESIGN_BOUND),
        Row("asked -> answered", answered),
    ]
    return rows, faults


if __name__ == "__main__":
    sys.exit(main())
