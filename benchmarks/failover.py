"""How long nobody dispatches when the master is killed, told to end, or asked to hand over.

    python -m benchmarks.failover kill --times 20
    python -m benchmarks.failover term --times 20
    python -m benchmarks.failover resign --times 50

Three beats, a session time-out of 2 s, one entry with a period of 1 s. At a random instant the
master gets the signal; it is started again as a standby, and so on. To resign, it is asked as by
``zk-beat resign``, each second time in favour of a standby; then there are 20 entries, which begin
50 ms apart.
"""

from __future__ import annotations

import argparse
import queue
import random
import signal
import socket
import sys
import time
from datetime import datetime, timezone

from celery_zk_beat.control import RESIGN, Asking, RequestRecord
from celery_zk_beat.records import to_text
from celery_zk_beat.zookeeper.session import connected

from .bench import PATHS, PATIENCE, Cluster, Row, end_of, report, scratch

BEATS = 3
PERIOD = 1.0
SESSION_TIMEOUT = 2.0
#: From the kill to the next run. ZooKeeper expires a session within a tick (0.5 s) after it was
#: silent for the time-out, and the entry may just have run.
NEXT_RUN_BOUND = SESSION_TIMEOUT + 0.5 + PERIOD
#: From SIGTERM to the znode of another master.
HAND_OVER_BOUND = 0.2
#: From the request, or from when it is due if that is later, to the next master's first run.
RESIGN_BOUND = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.failover", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("signal", choices=("kill", "term", "resign"))
    parser.add_argument("--times", type=int, default=20)
    args = parser.parse_args()
    with scratch() as folder, Cluster(folder, SESSION_TIMEOUT, PERIOD) as cluster:
        if args.signal == "resign":
            cluster.start_beats(BEATS, env={"BENCHMARK_ENTRIES": "20", "BENCHMARK_SPREAD": "1"})
            return report(*measure_resigning(cluster, args.times))
        cluster.start_beats(BEATS)
        number = signal.SIGKILL if args.signal == "kill" else signal.SIGTERM
        return report(*measure(cluster, number, args.times))


def measure(cluster: Cluster, number: signal.Signals, times: int) -> tuple[list[Row], list[str]]:
    """The rows of the table and what must not be."""
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
    print(f"\n{len(arrivals.all)} messages, {arrivals.repeats} of them a run once more")
    killed = number == signal.SIGKILL
    if arrivals.repeats and not killed:
        faults.append("a run was repeated although every master ended in order")
    rows = [
        Row("signal -> another master", elected, bound=None if killed else HAND_OVER_BOUND),
        Row("signal -> next run, of another beat", resumed, bound=NEXT_RUN_BOUND),
        Row("signal -> the process has ended", ended),
    ]
    return rows, faults + arrivals.faults()


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
    print(f"\n{len(cluster.arrivals.all)} messages, {cluster.arrivals.repeats} a run once more")
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
