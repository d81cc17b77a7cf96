"""Kills workers and masters while an entry that must not overlap is always due. Then judges what
the tasks noted.

    python -m tests.chaos.overlap --minutes 10
    python -m tests.chaos.overlap --minutes 10 --pause    workers lose their sessions, too

The task takes five seconds and is due every two, with ``overlap: "skip"``. There are three beats
and three workers (prefork; messages are acknowledged before the task begins). Every twenty seconds
a worker and the master are killed, each at a random instant, and started again. With ``--pause``
the main process of a worker hangs once in three rounds until its session has expired, while its
child goes on with the task.

The exit status is 1 if two tasks ever ran at once, though the worker of the first had not lost its
session; or if no task ran for longer than a session time-out and what the next instant takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from celery_zk_beat.paths import Paths
from celery_zk_beat.records import MasterRecord, from_text
from example_project.servers import (
    Process,
    Redis,
    ZooKeeper,
    celery_beat,
    celery_worker,
    wait_until,
)

APP = "tests.chaos.overlap_app"
NOTES = "notes"
ROOT = "/overlap"
PERIOD, LASTS = 2.0, 5.0
SESSION_TIMEOUT = 4.0
ROUND = 20.0
#: What a gap may take beyond a session time-out: until the next instant, and for a slow machine.
MARGIN = PERIOD + 3.0
#: Seconds after which Redis hands out again what a killed worker had taken and not acknowledged,
#: and how often kombu looks for that.
VISIBILITY, LOOKS_EVERY = 10.0, 10.0
PATIENCE = 60.0


@dataclass
class Task:
    """A task that began. `until`: its end, or the death of its worker; None: it is running."""

    id: str
    run: int
    due: float
    worker: str
    since: float
    until: float | None = None


class Site:
    """Three beats and three workers, and what happened to them."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.zookeeper = stack.enter_context(ZooKeeper(folder)).start()
        self.broker = stack.enter_context(Redis(folder)).start()
        self.client = KazooClient(self.zookeeper.hosts)
        self.client.start(PATIENCE)
        stack.callback(self.client.close)
        stack.callback(self.client.stop)
        self.notes = redis.Redis.from_url(self.broker.url())
        stack.callback(self.notes.close)
        self.paths = Paths(ROOT)
        conf = {
            "broker_url": self.broker.url(),
            "broker_connection_retry_on_startup": True,
            "broker_transport_options": {"visibility_timeout": VISIBILITY},
            "worker_prefetch_multiplier": 1,
            "zk_beat_hosts": self.zookeeper.hosts,
            "zk_beat_root": ROOT,
            "zk_beat_session_timeout": SESSION_TIMEOUT,
            "zk_beat_outcomes": "worker",
            "zk_beat_policies": {"work": {"overlap": "skip"}},
            "beat_schedule": {
                "work": {"task": f"{APP}.work", "schedule": PERIOD, "args": [LASTS]},
            },
        }
        self.beats, self.workers = {}, {}
        for name in ("one", "two", "three"):
            env = {"CONF": json.dumps({**conf, "zk_beat_id": name})}
            self.beats[name] = stack.enter_context(celery_beat(folder, name, APP, env=env))
        for name in ("worker-1", "worker-2", "worker-3"):
            env, args = {"CONF": json.dumps(conf)}, ["--pool", "prefork", "-c", "2"]
            worker = celery_worker(folder, name, APP, env=env, args=args)
            self.workers[name] = stack.enter_context(worker)
        for process in (*self.beats.values(), *self.workers.values()):
            process.start()
        #: When each worker was killed.
        self.deaths: dict[str, list[float]] = defaultdict(list)
        #: The sessions in which a task's delivery was announced.
        self.sessions: dict[str, set[int]] = defaultdict(set)

    def master(self) -> Process:
        def look() -> Process | None:
            with contextlib.suppress(NoNodeError):
                data, _ = self.client.get(self.paths.master)
                beat = self.beats[MasterRecord.decode(self.paths.master, data).id]
                return beat if beat.alive else None
            return None

        return wait_until(look, PATIENCE, "a master")

    def tasks(self) -> list[Task]:
        """All tasks that began, in that order."""
        found: dict[str, list[Task]] = defaultdict(list)
        for line in self.notes.lrange(NOTES, 0, -1):
            note: dict[str, Any] = json.loads(line)
            if note["what"] == "begins":
                due = from_text(note["due"]).timestamp()
                task = Task(note["id"], note["run"], due, note["worker"], note["at"])
                died = [at for at in self.deaths[note["worker"]] if at >= note["at"]]
                task.until = min(died, default=None)
                found[note["id"]].append(task)
            else:
                found[note["id"]][-1].until = note["at"]
        return sorted((task for each in found.values() for task in each), key=lambda e: e.since)

    def worker_that_works(self) -> Process | None:
        for task in reversed(self.tasks()):
            if task.until is None and self.workers[task.worker].alive:
                return self.workers[task.worker]
        return None

    def note_sessions(self, is_over: threading.Event) -> None:
        """Notes who announces which delivery, until it is over."""
        seen = set()
        while not is_over.wait(0.1):
            with contextlib.suppress(NoNodeError):
                for name in self.client.get_children(self.paths.inbox_running):
                    stat = self.client.exists(f"{self.paths.inbox_running}/{name}")
                    if stat is not None and (name, stat.ephemeralOwner) not in seen:
                        seen.add((name, stat.ephemeralOwner))
                        self.sessions[name.rpartition(".")[0]].add(stat.ephemeralOwner)

    def expired(self) -> set[int]:
        """The sessions that ZooKeeper has ended, because it did not hear from their clients."""
        found = re.findall("Expiring session 0x([0-9a-f]+)", self.zookeeper.log())
        return {int(each, 16) for each in found}


def torment(site: Site, minutes: float, *, pauses: bool) -> dict[str, int]:
    """Kills until the time is over. Returns how often what was done."""
    counts: dict[str, int] = defaultdict(int)
    ends, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < ends:
        begun, number = time.monotonic(), number + 1
        is_pause = pauses and number % 3 == 0
        verbs = [(_pause_worker if is_pause else _kill_worker), _kill_master]
        plan = sorted(((random.uniform(0, ROUND - 8), verb) for verb in verbs), key=lambda e: e[0])
        for at, verb in plan:
            time.sleep(max(0.0, begun + at - time.monotonic()))  # the random instant
            counts[verb(site)] += 1
        left = begun + ROUND - time.monotonic()
        time.sleep(max(0.0, left))
        print(f"round {number}: {dict(counts)}, {len(site.tasks())} tasks", flush=True)
    return counts


def _kill_worker(site: Site) -> str:
    worker = site.worker_that_works() if random.random() < 0.8 else None
    was_busy, worker = worker is not None, worker or random.choice([*site.workers.values()])
    worker.kill()
    site.deaths[worker.name].append(time.time())
    worker.start()
    return "workers killed that worked" if was_busy else "workers killed at random"


def _kill_master(site: Site) -> str:
    master = site.master()
    master.kill()
    master.start()
    return "masters killed"


def _pause_worker(site: Site) -> str:
    worker = wait_until(site.worker_that_works, PATIENCE, "a worker that works")
    worker.pause()
    time.sleep(1.5 * SESSION_TIMEOUT)  # the pause itself
    worker.resume()
    return "workers paused"


def judge(site: Site) -> tuple[str, bool]:
    """Returns the verdict in words, and if it is good."""
    tasks, expired = site.tasks(), site.expired()
    overlaps, excused, stuck, restored, longest = 0, 0, 0, 0, 0.0
    lines = []
    for number, task in enumerate(tasks):
        for other in tasks[:number]:
            if other.until is None or other.until <= task.since:
                continue
            # Its worker lost its session and went on.
            is_excused = bool(site.sessions[other.id] & expired)
            excused, overlaps = excused + is_excused, overlaps + (not is_excused)
            if not is_excused:
                lines.append(f"overlap: {other} and {task}")
        ended = [each.until for each in tasks[:number] if each.until is not None]
        gap = task.since - max(ended) if ended else 0.0
        allowed = SESSION_TIMEOUT + MARGIN
        if gap > allowed and task.since - task.due > gap / 2:
            # A killed worker had taken its message from the broker, and not acknowledged it yet.
            restored, allowed = restored + 1, allowed + VISIBILITY + LOOKS_EVERY
        else:
            longest = max(longest, gap)
        if gap > allowed:
            stuck += 1
            lines.append(f"stuck for {gap:.1f} s before {task}")
    last = max((task.until or time.time() for task in tasks), default=0.0)
    if time.time() - last > SESSION_TIMEOUT + MARGIN:
        stuck += 1
        lines.append("stuck at the end")
    died = sum(
        any(abs(task.until - at) < 1e-6 for at in site.deaths[task.worker])
        for task in tasks
        if task.until is not None
    )
    lines += [
        f"{len(tasks)} tasks began, {died} died with their workers",
        f"{overlaps} ran while another did; {excused} more after a worker had lost its session",
        f"{stuck} times no task ran for longer than {SESSION_TIMEOUT + MARGIN:g} s; the longest "
        f"gap was {longest:.1f} s, but for {restored} messages that a killed worker had taken",
    ]
    return "\n".join(lines), not overlaps and not stuck and bool(tasks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pause", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overlap-")))
        site = Site(stack, folder)
        is_over = threading.Event()
        thread = threading.Thread(target=site.note_sessions, args=[is_over], daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(is_over.set)
        wait_until(site.tasks, PATIENCE, "the first task")
        counts = torment(site, options.minutes, pauses=options.pause)
        text, good = judge(site)
        print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
        lost = sum(len(re.findall(r"run \d+: lost", beat.log())) for beat in site.beats.values())
        print(f"{text}\n{lost} runs were taken for lost")
        if not good:
            for process in (*site.beats.values(), *site.workers.values()):
                Path(tempfile.gettempdir(), f"overlap-{process.name}.log").write_text(process.log())
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
