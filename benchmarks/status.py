"""Measures how long `celery -A proj zk-beat status` takes, from start to end, with many entries.

    python -m benchmarks.status

Uses a real ZooKeeper with a real election. Each entry has a state and a full history. Half of the
entries are intervals, half crontabs. The exit status is 1 if the bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime, timedelta, timezone

from celery_zk_beat import MasterElection
from celery_zk_beat.history import Pasts, encode_volume, share
from celery_zk_beat.ledger import BELOW_ROOT
from celery_zk_beat.paths import page_of, volume_of
from celery_zk_beat.runs import (
    PastRun,
    RunState,
    encode_outbox,
    encode_page,
)
from celery_zk_beat.settings import default_root
from celery_zk_beat.zookeeper.operations import Create
from example_project.servers import ZooKeeper

from .bench import PATIENCE, TICK_TIME, Row, report, scratch

#: Seconds, for 10,000 entries.
BOUND = 2.0
COMMANDS = ("--help", "status", "status --json", "history", "run no-such-entry")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.status", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    with scratch() as folder, ZooKeeper(folder, tick_time=TICK_TIME) as server:
        os.environ["ZK_BEAT_HOSTS"] = server.start().hosts
        os.environ["BENCHMARK_ENTRIES"] = str(args.entries)
        return measure(server.hosts, args.times)


def measure(hosts: str, times: int) -> int:
    from . import many

    names = list(many.app.conf.beat_schedule)
    rows, faults = [], []
    root = default_root("benchmark")
    with MasterElection(hosts, root, app="benchmark", below=BELOW_ROOT) as election:
        assert election.wait(PATIENCE)
        fill(election, names)
        for command in COMMANDS:
            took = []
            for _ in range(times):
                begun = time.perf_counter()
                done = zk_beat(command)
                took.append(time.perf_counter() - begun)
            if command == "status --json":
                entries = json.loads(done.stdout)["entries"]
                told = sum(entry["next_run_at"] is not None for entry in entries)
                if told != len(names):
                    faults.append(f"{told} of {len(names)} entries have a next run")
            bound = BOUND if command.startswith("status") else None
            rows.append(Row(f"zk-beat {command}", took, "s", bound))
    return report(rows, faults)


def fill(election: MasterElection, names: list[str]) -> None:
    """Writes a full history for each entry. The last run was an hour ago."""
    now = datetime.now(timezone.utc)
    volumes: defaultdict[str, Pasts] = defaultdict(dict)
    for name in names:
        volumes[volume_of(page_of(name))][name] = ()
    runs = share(max(map(len, volumes.values())))
    past = [
        PastRun.of(number, at, at, 1)
        for number in range(1, runs + 1)
        for at in [now - timedelta(hours=runs - number + 1)]
    ]
    state = RunState(past[-1].at, runs, past[-1].due)
    pages: defaultdict[str, dict[str, RunState]] = defaultdict(dict)
    for name in names:
        pages[page_of(name)][name] = state
    for page, states in pages.items():
        election.session.commit(Create(election.paths.page(page), encode_page(states)))
    for volume, pasts in volumes.items():
        data = encode_volume(dict.fromkeys(pasts, tuple(past)))
        election.session.commit(Create(election.paths.volume(volume), data))
    election.session.commit(Create(election.paths.outbox, encode_outbox([])))


def zk_beat(command: str) -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-m", "celery", "-A", "benchmarks.many", "zk-beat", *command.split()]
    return subprocess.run(args, capture_output=True, text=True, timeout=PATIENCE)


if __name__ == "__main__":
    sys.exit(main())
