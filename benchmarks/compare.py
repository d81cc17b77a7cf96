"""Contenders side by side.

python -m benchmarks.compare burst --n 1000 --contenders ours,stock
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from kazoo.client import KazooClient

from example_project.processes import Process
from example_project.servers import Redis, ZooKeeper, celery_beat

from .bench import PATHS, PATIENCE, TICK_TIME, cpu_seconds, scratch
from .contenders import CONTENDERS, DAY, Load, fill, in_configuration

Result = dict[str, Any]


class Site:
    """ZooKeeper and Redis, and one beat at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self.zookeeper = ZooKeeper(folder, tick_time=TICK_TIME)
        self.redis = Redis(folder)

    def __enter__(self) -> Site:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.zookeeper).start()
            stack.enter_context(self.redis).start()
            self.client = KazooClient(self.zookeeper.hosts)
            self.client.start(PATIENCE)
            stack.callback(self.client.close)
            stack.callback(self.client.stop)
            self.broker = stack.enter_context(redis.Redis.from_url(self.redis.url()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def beat(self, who: str, load: Load) -> Iterator[Process]:
        """One that has started from nothing but its schedule; it is ended by SIGKILL."""
        self.clear()
        fill(CONTENDERS[who], load, self.folder, self.redis.url())
        with self.process(who, load) as beat:
            yield beat.start()

    def clear(self) -> None:
        """Nothing is left of whoever was here before."""
        self.broker.flushall()
        if self.client.exists(PATHS.root):
            self.client.delete(PATHS.root, recursive=True)
        for old in self.folder.glob("schedule*"):
            old.unlink()

    def process(self, who: str, load: Load, name: str = "beat") -> Process:
        """Not started yet."""
        contender, url = CONTENDERS[who], self.redis.url()
        conf = {
            "broker_url": url,
            "zk_beat_hosts": self.zookeeper.hosts,
            **contender.settings,
            **({contender.url: url} if contender.url else {}),
        }
        env: dict[str, str] = {"BENCHMARK_CONF": json.dumps(conf), **contender.env(self.folder)}
        if in_configuration(contender):
            env["BENCHMARK_LOAD"] = load.to_json()
        args = ["-S", contender.scheduler, "-l", "WARNING", "-s", str(self.folder / "schedule")]
        return celery_beat(self.folder, name, "benchmarks.beat_app", env=env, args=args)

    def sent(self) -> int:
        """How many messages wait in the queue."""
        return int(self.broker.llen("celery"))  # type: ignore[arg-type]

    def wait_sent(self, count: int, deadline: float) -> tuple[int, float]:
        """Waits until so many have been sent, or for the deadline; how many there are, and when
        that was seen. It looks often at first, and less often, in proportion, as time goes by."""
        begun = time.time()
        while True:
            sent, now = self.sent(), time.time()
            if sent >= count or now > deadline:
                return sent, now
            time.sleep(min(0.02, max(0.0003, (now - begun) / 100)))


def burst(site: Site, who: str, n: int, limit: float) -> Result:
    """`n` entries that come due at one instant, when the beat is up and has sent a message before:
    from that instant until the last is in the broker. `limit`: seconds for this."""
    times = 10 if n == 1 else 1
    gap = 0.5
    at = math.ceil(time.time() + _time_to_start(who, n))
    load = Load(n * times, DAY, at, n, gap, probe=(DAY, at - 1))
    with site.beat(who, load) as beat:
        patience = at + PATIENCE
        sent, ready = site.wait_sent(1, patience)
        if sent == 0:
            return {"ready": None}
        time.sleep(max(0.0, at - 0.005 - time.time()))
        cpu, seconds = -cpu_seconds(beat.pid), []
        for turn in range(times):
            begin = max(at + turn * gap, ready)
            sent, end = site.wait_sent(1 + n * (turn + 1), begin + limit)
            seconds.append(end - begin)
        time.sleep(0.2)  # what is done after the last message is part of its cost
        cpu += cpu_seconds(beat.pid)
    dispatched = sent - 1
    return {
        "ready": round(ready - at + 1, 3),
        "dispatched": dispatched,
        "seconds": round(sum(seconds), 4),
        "rate": round(dispatched / times / statistics.median(seconds), 1),
        "cpu": round(cpu, 2),
    }


def _time_to_start(who: str, n: int) -> float:
    """Seconds that are enough for a beat with so many entries to be ready."""
    return 4 + n / 5000


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("case", choices=("burst",))
    parser.add_argument("--n", default="1,100,1000,10000")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=10.0)
    args = parser.parse_args()
    names = args.contenders.split(",")
    with scratch() as folder, Site(folder) as site:
        for turn in range(args.rounds):
            for n in map(int, args.n.split(",")):
                for who in names:
                    result = burst(site, who, n, args.limit)
                    print(f"{turn + 1}  burst of {n:6}  {who:10}  {result}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
