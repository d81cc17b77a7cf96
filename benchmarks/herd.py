"""Measures an election with many standbys, which all see at the same time that the master is gone.

    python -m benchmarks.herd --standbys 50

Starts real beats with a session time-out of 2 s and one entry with a period of 1 s. The master gets
SIGKILL and SIGTERM in turn. Counts the requests that ZooKeeper got from each beat between the
signal and five seconds after the election, without pings.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict

from .bench import Cluster, Row, end_of, report, scratch

PERIOD = 1.0
SESSION_TIMEOUT = 2.0
#: Seconds after the election for which requests are counted.
WINDOW = 5.0
#: As in failover.py: session time-out, a tick, and a period.
NEXT_RUN_BOUND = SESSION_TIMEOUT + 0.5 + PERIOD
#: What a standby sends that is not elected: read the znode, try to create it, read who was faster.
REQUESTS_BOUND = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.herd", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--standbys", type=int, default=50)
    parser.add_argument("--times", type=int, default=3, help="how often to send each signal")
    args = parser.parse_args()
    with (
        scratch() as folder,
        Cluster(folder, SESSION_TIMEOUT, PERIOD, log_requests=True) as cluster,
    ):
        cluster.start_beats(args.standbys + 1)
        return measure(cluster, args.standbys, args.times)


def measure(cluster: Cluster, standbys: int, times: int) -> int:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    faults = []
    for number in [signal.SIGKILL, signal.SIGTERM] * times:
        term = cluster.settled()
        sessions = cluster.wait_members()
        time.sleep(random.uniform(0, PERIOD))  # a random instant
        beat = cluster.beat(term.pid)
        at = time.time()
        beat.send(number)
        end_of(beat)
        successor = cluster.elections.after(term)
        arrival = cluster.arrivals.after(term)
        time.sleep(max(0.0, successor.since + WINDOW - time.time()))  # the rest of the window
        if successor.epoch != term.epoch + 1 or cluster.elections.last != successor:
            faults.append(f"epoch {term.epoch}: more than one election followed")
        beat.start()

        requests = [r for r in cluster.requests(at) if r.at <= successor.since + WINDOW]
        gone = next(
            (
                r.at
                for r in requests
                if r.kind == "closeSession" and r.session == sessions[term.pid]
            ),
            at,
        )
        by_beat = {
            pid: Counter(r.kind for r in requests if r.session == session and r.kind != "ping")
            for pid, session in sessions.items()
            if pid not in (term.pid, successor.pid)
        }
        losers = [sum(kinds.values()) for kinds in by_beat.values()]
        kinds = sum(by_beat.values(), Counter())
        name = number.name
        values[name, "signal -> another master"].append(successor.since - at)
        values[name, "session gone -> another master"].append(successor.since - gone)
        values[name, "elected and due -> first run"].append(
            arrival.at - max(successor.since, arrival.due)
        )
        values[name, "signal -> next run, of another beat"].append(arrival.at - at)
        values[name, "requests of each that lost"] += losers
        values[name, "requests of all that lost"].append(sum(losers))
        print(
            f"{name}: epoch {successor.epoch} elected {successor.since - at:.3f} s after it, first "
            f"run after {arrival.at - at:.3f} s; the {len(losers)} others sent {dict(kinds)}, "
            f"{statistics.mean(losers):.2f} each",
            flush=True,
        )
    bounds = {
        "signal -> next run, of another beat": NEXT_RUN_BOUND,
        "requests of each that lost": REQUESTS_BOUND,
    }
    rows = [
        Row(f"{name}: {what}", numbers, "" if "requests" in what else "s", bounds.get(what))
        for (name, what), numbers in values.items()
    ]
    print(f"\n{standbys} standbys")
    return report(rows, faults + cluster.arrivals.faults())


if __name__ == "__main__":
    sys.exit(main())
