"""Measures what an idle beat costs: a standby, and a master whose entry is not due.

    python -m benchmarks.standby

Two beats run for a minute, with the default session time-out of 10 s and one entry a day. Measures
their processor time, as the kernel counts it, and what ZooKeeper got from them, in two ways. Every
half second it asks the four-letter word `cons`, which shows a counter and the last operation of
each connection. And it reads ZooKeeper's log, which has every request.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter

from celery_zk_beat.ledger import TOUCH_EVERY
from example_project.processes import wait_until

from .bench import Cluster, Row, connection, cpu_seconds, report, scratch

DAY = 86400.0
SESSION_TIMEOUT = 10.0
#: Per cent of one core.
CPU_BOUND = 1.0
#: kazoo pings after it has sent nothing for a third of the session time-out, less 0.01 to 0.40 s.
PING_EVERY = (SESSION_TIMEOUT / 3 - 0.4, SESSION_TIMEOUT / 3 - 0.01)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.standby", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with scratch() as folder, Cluster(folder, SESSION_TIMEOUT, DAY, log_requests=True) as cluster:
        cluster.start_beats(2)
        return measure(cluster, args.seconds)


def measure(cluster: Cluster, seconds: float) -> int:
    sessions = cluster.wait_members()
    master = cluster.elections.last.pid
    roles = {pid: "master" if pid == master else "standby" for pid in sessions}
    for pid in roles:
        # Until both are idle: they use no processor time for a whole second.
        _wait_idle(pid)

    begin = time.time()
    cpu = {pid: -cpu_seconds(pid) for pid in roles}
    received = {pid: -connection(cluster.zookeeper, sessions[pid])[0] for pid in roles}
    last_ops: dict[int, Counter[str]] = {pid: Counter() for pid in roles}
    seen = {pid: -count for pid, count in received.items()}
    while time.time() < begin + seconds:
        time.sleep(0.5)  # between two samples
        for pid in roles:
            count, operation = connection(cluster.zookeeper, sessions[pid])
            last_ops[pid][operation] += count - seen[pid]
            seen[pid] = count
    end = time.time()
    for pid in roles:
        cpu[pid] += cpu_seconds(pid)
        received[pid] += seen[pid]

    rows, faults = [], []
    fewest = math.floor((end - begin) / PING_EVERY[1])
    most = math.ceil((end - begin) / PING_EVERY[0])
    print(f"\nin {end - begin:.1f} s; pings expected: {fewest} to {most}")
    for pid, role in roles.items():
        kinds = Counter(
            request.kind
            for request in cluster.requests(begin)
            if request.session == sessions[pid] and request.at <= end
        )
        print(f"{role}: cons: {received[pid]} packets, by last operation {dict(last_ops[pid])}")
        print(f"{role}: log of requests: {dict(kinds)}")
        # A master writes now and then to show that it ticks.
        writes = math.ceil((end - begin) / TOUCH_EVERY) + 1 if role == "master" else 0
        if set(kinds) - {"ping", "multi"} or kinds["multi"] > writes:
            faults.append(f"{role}: sent something other than pings and {writes} writes")
        if not fewest <= received[pid] <= most:
            faults.append(f"{role}: {received[pid]} packets are not the pings expected")
        rows.append(Row(f"{role}, processor", [100 * cpu[pid] / (end - begin)], "%", CPU_BOUND))
        rows.append(Row(f"{role}, packets to ZooKeeper", [received[pid]], "", most))
    if cluster.arrivals.all:
        faults.append("an entry that is due once a day has run")
    if cluster.elections.last.pid != master:
        faults.append("the master changed")
    return report(rows, faults)


def _wait_idle(pid: int) -> None:
    last, since = cpu_seconds(pid), time.monotonic()

    def idle() -> bool:
        nonlocal last, since
        now = cpu_seconds(pid)
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 1

    wait_until(idle, 30, f"process {pid} to be idle")


if __name__ == "__main__":
    sys.exit(main())
