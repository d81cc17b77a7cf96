"""Measures the full minute: N crontabs come due at :00, and each message is so late.

    python -m benchmarks.minute --n 1000,10000
    python -m benchmarks.minute --n 10000 --old CHECKOUT --plot minute.svg

Each contender is a `celery beat` of its own, alone with the servers, one after another. Nobody
takes messages while they come. `--old` is a folder with another commit of this project, and its
`.venv`: the same is measured for it. `--rounds` is how many minutes in a row are watched; the table
has their medians. A contender that does not send all within the minute is watched for one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from example_project.processes import Process
from example_project.servers import Redis, ZooKeeper

from .bench import cpu_seconds, machine, scratch

APP = """
import json
import os

from celery import Celery
from celery.schedules import crontab

app = Celery("minute")
app.conf.update(json.loads(os.environ["BENCHMARK_CONF"]))
app.conf.result_expires = None
app.conf.beat_schedule = {
    f"tenant-{n:06}.invoice": {"task": "invoice", "schedule": crontab(), "args": (n,)}
    for n in range(int(os.environ["BENCHMARK_N"]))
}
"""
OURS = "celery_zk_beat:ZooKeeperScheduler"
SCHEDULERS = {
    "ours": OURS,
    "old": OURS,
    "stock": "celery.beat:Scheduler",
    "redbeat": "redbeat.RedBeatScheduler",
}
#: Seconds after a full minute in which a contender has to be done.
LIMIT = 55.0
#: Which part of the messages the table tells of, per cent.
PARTS = (1, 10, 50, 90, 100)


@dataclass(frozen=True)
class Minute:
    """What was seen of one full minute.

    Attributes:
        seen: how many messages there were, and when, in seconds after the minute.
        cpu: seconds of processor of the beat.
    """

    seen: Sequence[tuple[int, float]]
    cpu: float

    @property
    def sent(self) -> int:
        return self.seen[-1][0] if self.seen else 0

    def late(self, part: float, count: int) -> float:
        """By how many seconds the last message of a part, per cent, was late."""
        found = (at for sent, at in self.seen if sent >= count * part / 100)
        return next(found, float("inf"))


def measure(
    who: str, count: int, rounds: int, old: Path | None, folder: Path, servers: Servers
) -> list[Minute]:
    """Starts a contender and watches it for some full minutes after the first."""
    servers.broker.flushall()
    conf: dict[str, Any] = {
        "broker_url": servers.redis.url(),
        "redbeat_redis_url": servers.redis.url(),
        "zk_beat_hosts": servers.zookeeper.hosts,
        "zk_beat_root": f"/{who}-{count}",
    }
    python = sys.executable if who != "old" else str(old and old / ".venv/bin/python")
    command = [python, "-m", "celery", "-A", "minute_app", "beat", "-S", SCHEDULERS[who]]
    command += ["-l", "WARNING", "--pidfile=", "-s", str(folder / f"schedule-{who}")]
    env = {"BENCHMARK_CONF": json.dumps(conf), "BENCHMARK_N": str(count), "PYTHONPATH": str(folder)}
    found: list[Minute] = []
    with Process(folder, f"{who}-{count}", command, env=env, cwd=folder).start() as beat:
        time.sleep(5 + count / 300)  # RedBeat writes its schedule entry by entry
        while len(found) < rounds:
            found.append(watch(beat, count, servers))
            if found[-1].sent < count:
                break  # the next minute would have messages of this one
    return found


def watch(beat: Process, count: int, servers: Servers) -> Minute:
    due = (time.time() // 60 + 1) * 60
    time.sleep(max(0.0, due - 0.5 - time.time()))
    servers.broker.delete("celery")
    cpu = -cpu_seconds(beat.pid)
    seen: list[tuple[int, float]] = []
    while (now := time.time()) < due + LIMIT:
        sent = servers.sent()
        if sent and (not seen or seen[-1][0] != sent):
            seen.append((sent, now - due))
        if sent >= count:
            break
        time.sleep(0.001)
    time.sleep(2)  # what is done after the last message is part of what it costs
    return Minute(seen, cpu + cpu_seconds(beat.pid))


@dataclass(frozen=True)
class Servers:
    zookeeper: ZooKeeper
    redis: Redis
    broker: Any

    def sent(self) -> int:
        length: Any = self.broker.llen("celery")
        return int(length)


def table(count: int, found: Mapping[str, Sequence[Minute]]) -> str:
    head = ["", "sent", *(f"{part} %, ms late" for part in PARTS), "processor, us a message"]
    rows = [head, ["---"] * len(head)]
    for who, minutes in found.items():
        late = [statistics.median(each.late(part, count) for each in minutes) for part in PARTS]
        sent = statistics.median(each.sent for each in minutes)
        cpu = statistics.median(each.cpu / max(1, each.sent) for each in minutes)
        cells = [f"{1000 * each:,.0f}" for each in late]
        rows.append([who, f"{sent:,.0f}", *cells, f"{1e6 * cpu:.0f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(file: Path, count: int, found: Mapping[str, Sequence[Minute]]) -> None:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for who, minutes in found.items():
        best = sorted(minutes, key=lambda each: each.late(50, count))[len(minutes) // 2]
        axes.plot([sent for sent, _ in best.seen], [at for _, at in best.seen], label=who)
    axes.set(xlabel="messages", ylabel="s late", yscale="log", title=f"{count:,} crontabs at :00")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.minute", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--n", default="10000", help="how many entries, such as 1000,10000")
    parser.add_argument("--contenders", default="ours,stock,redbeat", help=",".join(SCHEDULERS))
    parser.add_argument("--old", type=Path, help="a folder with another commit and its .venv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="an SVG file, of the largest N")
    options = parser.parse_args()
    names = options.contenders.split(",")
    if options.old is not None:
        names.insert(1, "old")
    with scratch() as folder, ZooKeeper(folder) as zookeeper, Redis(folder) as server:
        zookeeper.start()
        server.start()
        (folder / "minute_app.py").write_text(APP)
        with redis.Redis.from_url(server.url()) as broker:
            servers = Servers(zookeeper, server, broker)
            print("\n".join(machine(zookeeper, server)), flush=True)
            for count in map(int, options.n.split(",")):
                found = {}
                for who in names:
                    args = count, options.rounds, options.old, folder, servers
                    found[who] = measure(who, *args)
                    print(f"\n{count:,} crontabs:\n{table(count, found)}", flush=True)
    if options.plot is not None:
        plot(options.plot, count, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
