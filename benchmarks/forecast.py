"""Measures how long it takes to say what will run.

    python -m benchmarks.forecast

First `timeline` for a year of 1,000 crontabs, each once a day, in this process. Then `zk-beat next`
for 10,000 intervals, as a command, with a ZooKeeper that knows no last runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery
from celery.schedules import crontab

from celery_zk_beat.testing import timeline
from example_project.processes import REPOSITORY
from example_project.servers import ZooKeeper

from .bench import Row, report, scratch

CRONTABS, ENTRIES = 1_000, 10_000
#: Seconds.
TIMELINE_BOUND, NEXT_BOUND = 10.0, 2.0
APP = """
from celery import Celery

app = Celery("many")
app.conf.zk_beat_hosts = {hosts!r}
app.conf.beat_scheduler = "celery_zk_beat:ZooKeeperScheduler"
app.conf.beat_schedule = {{
    f"e{{n}}": {{"task": "t", "schedule": 60.0 + n % 600}} for n in range({entries})
}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.forecast", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = [Row("timeline", [of_a_year() for _ in range(rounds)], bound=TIMELINE_BOUND)]
    with scratch() as folder, ZooKeeper(folder) as zookeeper:
        hosts = zookeeper.start().hosts
        rows.append(
            Row("zk-beat next", [of_many(folder, hosts) for _ in range(rounds)], bound=NEXT_BOUND)
        )
    return report(rows)


def of_a_year() -> float:
    app = Celery("forecast", set_as_current=False)
    app.conf.result_expires = None
    app.conf.beat_schedule = {
        f"e{n}": {"task": "t", "schedule": crontab(minute=str(n % 60), hour=str(n % 24))}
        for n in range(CRONTABS)
    }
    began = time.perf_counter()
    found = timeline(app, "2026-01-01T00:00Z", "2027-01-01T00:00Z")
    took = time.perf_counter() - began
    assert len(found.runs) == 365 * CRONTABS
    return took


def of_many(folder: Path, hosts: str) -> float:
    (folder / "many.py").write_text(APP.format(hosts=hosts, entries=ENTRIES))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "many", "zk-beat", "next"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    took = time.perf_counter() - began
    assert len(done.stdout.splitlines()) == 11
    return took


if __name__ == "__main__":
    sys.exit(main())
