"""How fast a burst leaves for RabbitMQ, each message confirmed.

    python -m benchmarks.rabbitmq --n 1000
    python -m benchmarks.rabbitmq --n 1000 --before ../checkout

N entries come due at one instant, and the burst ends when RabbitMQ has the last message, as in
benchmarks.compare. `--before` is a checkout of another commit, whose beat is measured in turn with
this one's. Only the median of all rounds and the ratios say something: the machine is shared, and
RabbitMQ takes a core of its own. The exit status is 1 if a run was lost or sent twice, or if the
ratio is below `--bound`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu

from example_project.processes import REPOSITORY, Process
from tests.history import messages
from tests.rabbitmq import RabbitMQ

from .bench import PATHS, PATIENCE, Servers, cpu_seconds, load, scratch
from .contenders import DAY, Load

QUEUE = "celery"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.rabbitmq", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--n", type=int, default=1000, help="entries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a checkout of another commit")
    parser.add_argument("--bound", type=float, default=0.0, help="the least ratio of the two rates")
    args = parser.parse_args()
    sources = {"this": REPOSITORY, **({"before": args.before.resolve()} if args.before else {})}
    rates: dict[str, list[float]] = {name: [] for name in sources}
    costs: dict[str, list[float]] = {name: [] for name in sources}
    faults = []
    with scratch() as folder, Servers(folder) as servers, RabbitMQ(folder).start() as rabbitmq:
        for _ in range(args.rounds):
            for name, source in sources.items():
                rate, cost, sent = burst(servers, rabbitmq, source, args.n)
                rates[name].append(rate)
                costs[name].append(cost)
                ids = {message.id for message in sent}
                if not len(ids) == len(sent) == args.n + 1:
                    faults.append(f"{name}: {len(sent)} messages of {len(ids)} runs")
    for name in sources:
        each = " ".join(f"{rate:,.0f}" for rate in sorted(rates[name]))
        cost = statistics.median(costs[name])
        print(f"{name:6} {statistics.median(rates[name]):8,.0f} messages/s ({each})", end="")
        print(f", {cost:.3f} ms of processor time each")
    print(f"N = {args.n:,}; load average {load()}")
    ratio = 1.0
    if args.before:
        ratio = statistics.median(rates["this"]) / statistics.median(rates["before"])
        print(f"ratio {ratio:.2f}")
    for fault in faults:
        print(f"FAULT: {fault}")
    return int(bool(faults) or ratio < args.bound)


def burst(servers: Servers, rabbitmq: RabbitMQ, source: Path, n: int) -> tuple[float, float, Any]:
    """Returns messages a second, ms of processor time for each, and all messages."""
    if servers.client.exists(PATHS.root):
        servers.client.delete(PATHS.root, recursive=True)
    shutil.rmtree(servers.folder / "schedule", ignore_errors=True)
    at = float(int(time.time()) + 4 + n // 3000)
    schedule = Load(n, DAY, at, n, probe=(DAY, at - 1))
    conf = {"broker_url": rabbitmq.url(), "zk_beat_hosts": servers.zookeeper.hosts}
    env = {"BENCHMARK_CONF": json.dumps(conf), "BENCHMARK_LOAD": schedule.to_json()}
    beat = ["-A", "benchmarks.beat_app", "beat", "-S", "celery_zk_beat:ZooKeeperScheduler"]
    options = ["--pidfile=", "-l", "WARNING", "-s", str(servers.folder / "schedule")]
    command = [sys.executable, "-m", "celery", *beat, *options]
    with queue(rabbitmq.url()) as length:
        with Process(servers.folder, "beat", command, env=env, cwd=source).start() as process:
            wait(length, 1, at + PATIENCE)
            time.sleep(max(0.0, at - 0.1 - time.time()))
            cpu = -cpu_seconds(process.pid)
            seconds = wait(length, n + 1, at + PATIENCE) - at
            time.sleep(0.2)  # what is done after the last message is part of what it costs
            cpu += cpu_seconds(process.pid)
        return n / seconds, 1000 * cpu / n, messages(rabbitmq.url(), QUEUE)


@contextmanager
def queue(url: str) -> Iterator[Any]:
    """An empty queue; yields what returns its length."""
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        channel.queue_delete(QUEUE)
        kombu.Queue(QUEUE, kombu.Exchange(QUEUE), routing_key=QUEUE, channel=channel).declare()
        yield lambda: channel.queue_declare(QUEUE, passive=True).message_count
        channel.queue_delete(QUEUE)


def wait(length: Any, count: int, deadline: float) -> float:
    """Returns when so many messages are in the queue.

    Raises:
        TimeoutError: they are not.
    """
    while length() < count:
        if time.time() > deadline:
            raise TimeoutError(f"{length()} messages of {count}")
        time.sleep(0.005)
    return time.time()


if __name__ == "__main__":
    sys.exit(main())
