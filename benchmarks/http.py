"""Measures how much later runs are dispatched while there are many HTTP requests.

One beat. Rounds with and without so many requests a second take turns. Another process sends the
requests, for every path, each on a new connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

from celery_zk_beat.web.application import PATHS
from example_project.processes import LOOPBACK, free_port, wait_until

from .bench import PATIENCE, Cluster, Row, cpu_seconds, report, scratch

#: How many times as late runs may be with requests as without.
BOUND = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=20)
    parser.add_argument("--period", type=float, default=1.0, help="of each entry, in seconds")
    parser.add_argument("--spread", action="store_true", help="entries due one after another")
    parser.add_argument("--rate", type=int, default=200, help="requests a second")
    parser.add_argument("--rounds", type=int, default=8, help="with requests, and as many without")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a round takes")
    options = parser.parse_args()
    port = free_port()
    env = {"BENCHMARK_ENTRIES": str(options.entries), "BENCHMARK_HTTP": str(port)}
    if options.spread:
        env["BENCHMARK_SPREAD"] = "yes"
    lateness: dict[bool, list[list[float]]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    answers: list[float] = []
    with scratch() as folder, Cluster(folder, 2.0, options.period) as cluster:
        print(f"{options.entries} entries, {options.rate} requests/s", flush=True)
        cluster.start_beats(1, env=env)
        enough = 3 * options.entries
        wait_until(lambda: len(cluster.arrivals.all) > enough, PATIENCE, f"{enough} runs")
        for asking in (False, True) * options.rounds:
            with Load(port, options.rate) if asking else contextlib.nullcontext() as load:
                late, used = _round(cluster, options.seconds)
            lateness[asking].append(late)
            cpu[asking].append(used)
            answers += load.times if load else []
    rows = []
    for part in (0.5, 0.99):
        name = f"p{100 * part:g}"
        without = [1000 * quantile(each, part) for each in lateness[False]]
        asked = [1000 * quantile(each, part) for each in lateness[True]]
        ratio = statistics.median(asked) / statistics.median(without)
        rows += [
            Row(f"lateness, {name} of each round, without requests", without, "ms"),
            Row(f"lateness, {name} of each round, with requests", asked, "ms"),
            Row(f"ratio of the medians of {name}", [ratio], "", BOUND),
        ]
    for asking, text in ((False, "without requests"), (True, "with requests")):
        rows.append(Row(f"beat's process, {text}", cpu[asking], "%"))
    rows.append(Row("answers", [1000 * each for each in answers], "ms"))
    rows.append(Row("answers, p99", [1000 * quantile(answers, 0.99)], "ms"))
    return report(rows)


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


def _round(cluster: Cluster, seconds: float) -> tuple[list[float], float]:
    """Returns how late each run was, and how many per cent of a core the beat itself used."""
    time.sleep(1.0)
    (beat,) = cluster.beats
    before, begun, used = len(cluster.arrivals.all), time.monotonic(), cpu_seconds(beat.pid)
    time.sleep(seconds)
    used = 100 * (cpu_seconds(beat.pid) - used) / (time.monotonic() - begun)
    return [arrival.at - arrival.due for arrival in cluster.arrivals.all[before:]], used


class Load:
    """Sends so many requests a second as long as the ``with`` block lasts. Afterwards `times` has
    the seconds that each answer took.

    Raises:
        RuntimeError: at the end, if an answer was wrong.
    """

    def __init__(self, port: int, rate: int) -> None:
        self.times: list[float] = []
        context = get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=ask, args=(port, rate, there), daemon=True)

    def __enter__(self) -> Load:
        self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._here.send("enough")
            self.times, faults = self._here.recv()
            if faults:
                raise RuntimeError(f"{len(faults)} answers were wrong: {sorted(set(faults))}")
        self._process.terminate()
        self._process.join()


def ask(port: int, rate: int, control: Connection) -> None:
    """Sends the requests. Runs in its own process."""
    times: list[float] = []
    faults: list[str] = []

    async def one(path: str) -> None:
        begun = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), 5)  # all of it: the server hangs up
            writer.close()
            if not answer.startswith(b"HTTP/1.1 200"):
                faults.append(f"{path}: {answer[:12]!r}")
        except (OSError, asyncio.TimeoutError) as exc:
            faults.append(f"{path}: {exc!r}")
        times.append(time.monotonic() - begun)

    async def many() -> None:
        await one("/status.json")  # the first answer has to wait until ZooKeeper was read
        begun = time.monotonic()
        asked = set()
        for number, path in enumerate(itertools.cycle(PATHS)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            if control.poll():
                break
            asked.add(asyncio.ensure_future(one(path)))
        await asyncio.wait(asked)

    asyncio.run(many())
    control.send((times, faults))


if __name__ == "__main__":
    sys.exit(main())
