"""How long nobody dispatches when the master is killed, or told to end.

    python -m benchmarks.failover kill --times 20
    python -m benchmarks.failover term --times 20

Three beats, a session time-out of 2 s, one entry with a period of 1 s. At a random instant the
master gets the signal; it is started again as a standby, and so on.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time

from .bench import Cluster, Row, end_of, report, scratch

BEATS = 3
PERIOD = 1.0
SESSION_TIMEOUT = 2.0
#: From the kill to the next run. ZooKeeper expires a session within a tick (0.5 s) after it was
#: silent for the time-out, and the entry may just have run.
NEXT_RUN_BOUND = SESSION_TIMEOUT + 0.5 + PERIOD
#: From SIGTERM to the znode of another master.
HAND_OVER_BOUND = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.failover", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("signal", choices=("kill", "term"))
    parser.add_argument("--times", type=int, default=20)
    args = parser.parse_args()
    with scratch() as folder, Cluster(folder, SESSION_TIMEOUT, PERIOD) as cluster:
        cluster.start_beats(BEATS)
        number = signal.SIGKILL if args.signal == "kill" else signal.SIGTERM
        return measure(cluster, number, args.times)


def measure(cluster: Cluster, number: signal.Signals, times: int) -> int:
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
        arrival = cluster.arrivals.first(lambda each, term=term: each.epoch > term.epoch)
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
    return report(rows, faults + arrivals.faults())


if __name__ == "__main__":
    sys.exit(main())
