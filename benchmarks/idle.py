"""Measures in this process how long a tick takes in which nothing is due. benchmarks.compare runs
it, with the same scheduler and app as for ``celery beat``. Prints JSON.

Ours works in a thread of its own, so this measures a turn of its dispatch loop.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Callable

from celery.beat import Scheduler, Service
from celery.signals import beat_init

from celery_zk_beat import ZooKeeperScheduler

from .beat_app import app
from .bench import PATIENCE


def main(scheduler: str, file: str, seconds: float) -> None:
    service = Service(app, scheduler_cls=scheduler, schedule_filename=file)
    turn = _dispatch_loop(service.scheduler) or service.scheduler.tick
    if turn == service.scheduler.tick:
        beat_init.send(sender=service)  # RedBeat takes its lock
    end = time.monotonic() + 1  # then late work, such as confirmations, is over
    for _ in range(3):
        turn()
    while time.monotonic() < end:
        turn()
    ticks, begun, cpu = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() < begun + seconds or ticks < 10:
        turn()
        ticks += 1
    wall, cpu = time.perf_counter() - begun, time.thread_time() - cpu
    print(json.dumps({"ticks": ticks, "wall": 1e6 * wall / ticks, "cpu": 1e6 * cpu / ticks}))
    service.scheduler.close()


def _dispatch_loop(scheduler: Scheduler) -> Callable[[], object] | None:
    if not isinstance(scheduler, ZooKeeperScheduler):
        return None
    scheduler.election.start(PATIENCE)
    assert scheduler.election.wait(PATIENCE)
    return scheduler._loop.turn


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
