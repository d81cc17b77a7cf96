"""Measures what the election costs django-celery-beat's DatabaseScheduler with many rows.

    python -m benchmarks.rows --rows 30000 --seconds 60

A row is changed every second. Each time DatabaseScheduler reads all rows again. Two beats run at
the same time, each with its own copy of one SQLite file: one with DatabaseScheduler by itself, one
with it behind the election. One row is due every second, all others in an hour. The processor time
of each beat, as the kernel counts it, is divided by how often it has read its table: a slower beat
reads less often.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sqlite3
import sys
import time
from pathlib import Path

from example_project.processes import Process, wait_until
from example_project.servers import Redis, ZooKeeper, celery_beat
from tests.django_database import Database
from tests.history import all_headers

from .bench import Row, cpu_seconds, report, scratch

SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
PLAIN, GATED = "by itself", "behind the election"
PATIENCE = 120.0
#: The most processor time behind the election, as a multiple of the time by itself.
BOUND = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.rows", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two changes")
    args = parser.parse_args()
    with scratch() as folder, contextlib.ExitStack() as stack:
        zookeeper = stack.enter_context(ZooKeeper(folder)).start()
        broker = stack.enter_context(Redis(folder)).start()
        files = _tables(folder, args.rows)
        beats = {
            PLAIN: _beat(folder, files[PLAIN], broker.url(1), "-S", SCHEDULER),
            GATED: _beat(folder, files[GATED], broker.url(2), zookeeper=zookeeper),
        }
        for beat in beats.values():
            stack.enter_context(beat).start()
        for number in (1, 2):
            wait_until(functools.partial(all_headers, broker.url(number)), PATIENCE, "a message")
        return measure(beats, files, args.seconds, args.every)


def measure(beats: dict[str, Process], files: dict[str, Path], seconds: float, every: float) -> int:
    _change(files)
    looks = {name: Looks(beat) for name, beat in beats.items()}
    end, next_change = time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < end:
        if now >= next_change:
            _change(files)
            next_change = now + every
        for look in looks.values():
            look()
        time.sleep(0.02)
    rows = []
    for name, look in looks.items():
        rows.append(Row(f"{name}: readings", [len(look.cpu) - 1], ""))
        rows.append(Row(f"{name}: processor for one", [look.cost]))
    rows.append(Row("ratio of these", [looks[GATED].cost / looks[PLAIN].cost], "", BOUND))
    return report(rows)


class Looks:
    """Records how much processor time a beat had used each time that it began to read its table."""

    def __init__(self, beat: Process) -> None:
        self._beat = beat
        self._readings = self._count()
        self.cpu: list[float] = []

    def __call__(self) -> None:
        if (readings := self._count()) != self._readings:
            self._readings = readings
            self.cpu.append(cpu_seconds(self._beat.pid))

    def _count(self) -> int:
        return self._beat.log().count("Schedule changed")

    @property
    def cost(self) -> float:
        """The processor time of one reading, with all other work in between."""
        return (self.cpu[-1] - self.cpu[0]) / (len(self.cpu) - 1)


def _beat(
    folder: Path, file: Path, broker: str, *args: str, zookeeper: ZooKeeper | None = None
) -> Process:
    conf: dict[str, object] = {"broker_url": broker, "result_expires": None, "zk_beat_id": "beat"}
    if zookeeper is not None:
        conf.update({"zk_beat_hosts": zookeeper.hosts, "zk_beat_scheduler": SCHEDULER})
    env = {
        "CONF": json.dumps(conf),
        "DJANGO_SETTINGS_MODULE": "tests.django_settings",
        "DJANGO_DATABASE": str(file),
    }
    name = "gated" if zookeeper else "plain"
    return celery_beat(folder, name, "tests.acceptance.django_app", env=env, args=args)


def _tables(folder: Path, count: int) -> dict[str, Path]:
    """Makes the database file of each beat."""
    database = Database(folder, None)
    from django.utils.timezone import now
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    hour = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.HOURS)
    PeriodicTask.objects.bulk_create(
        (
            PeriodicTask(name=f"e{number:05}", task="e", interval=hour, last_run_at=now())
            for number in range(count)
        ),
        batch_size=500,
    )
    database.add("tick", 1)
    source = os.environ["DJANGO_DATABASE"]
    database.close()
    files = {PLAIN: folder / "plain.sqlite3", GATED: folder / "gated.sqlite3"}
    for file in files.values():
        shutil.copy(source, file)
    return files


def _change(files: dict[str, Path]) -> None:
    """Changes one row in each file, as the admin does."""
    for file in files.values():
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as connection, connection:
            connection.execute(
                "UPDATE django_celery_beat_periodictask SET description = ? WHERE name = 'e00007'",
                (str(time.time()),),
            )
            connection.execute(
                "UPDATE django_celery_beat_periodictasks"
                " SET last_update = strftime('%Y-%m-%d %H:%M:%f', 'now')"
            )


if __name__ == "__main__":
    sys.exit(main())
