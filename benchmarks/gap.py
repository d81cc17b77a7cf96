"""Measures the time from the last look at the clock until the kernel has a message. A master that
is stopped within this gap sends the message when it wakes (docs/guarantees.md)."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any, Callable
from unittest import mock

from celery import Celery
from redis.connection import AbstractConnection

from celery_zk_beat import ZooKeeperScheduler
from example_project.servers import Redis, ZooKeeper

from .bench import PATIENCE

ENTRIES = 50
SECONDS = 10.0


def main() -> int:
    gaps: list[float] = []
    looked = 0.0
    send: Callable[..., Any] = AbstractConnection.send_packed_command

    def timed_send(self: AbstractConnection, command: Any, *args: Any, **kwargs: Any) -> Any:
        answer = send(self, command, *args, **kwargs)
        if any(b"LPUSH" in part for part in command):  # not the greeting of a new connection
            gaps.append(time.perf_counter() - looked)
        return answer

    with (
        tempfile.TemporaryDirectory() as folder,
        ZooKeeper(folder) as zookeeper,
        Redis(folder) as redis,
    ):
        app = Celery("gap", broker=redis.start().url(), set_as_current=False)
        app.conf.zk_beat_hosts = zookeeper.start().hosts
        app.conf.result_expires = None  # no entry of Celery's own
        app.conf.beat_schedule = {f"e{n}": {"task": "t", "schedule": 0.05} for n in range(ENTRIES)}
        beat = ZooKeeperScheduler(app=app)
        assure = beat._loop.ledger.assure

        def look() -> None:
            nonlocal looked
            assure()
            looked = time.perf_counter()

        with (
            mock.patch.object(beat._loop.ledger, "assure", look),
            mock.patch.object(AbstractConnection, "send_packed_command", timed_send),
        ):
            beat.election.start(PATIENCE)
            assert beat.election.wait(PATIENCE)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                beat._loop.wait(beat._loop.turn())
            beat.close()
    gaps.sort()
    median, p99 = (1000 * gaps[int(len(gaps) * part)] for part in (0.5, 0.99))
    print(f"{len(gaps)} messages: median {median:.2f} ms, p99 {p99:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
