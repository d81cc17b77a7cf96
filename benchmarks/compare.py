"""Compares contenders: real ``celery beat`` processes, one broker, and one ZooKeeper for ours.

    make bench
    python -m benchmarks.compare all --quick
    python -m benchmarks.compare burst --n 1000 --contenders ours,stock

The cases:

    burst     N entries are due at one instant
    idle      a tick in which none of N entries is due
    start     from the start, with N entries whose state is stored, to the first message; memory
    takeover  the same for a standby when the master ends (only ours)
    spread    10,000 entries with a period of 60 s, one after another: how late they are
    drift     one entry with a period of 1 s, all contenders at the same time, and a standby of ours
    failover  benchmarks.failover: from the signal to another master's first run (only ours)

--output writes all measurements as JSON, a table and plots into a folder. The exit status is 1 if a
bound was missed or a fault was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shutil
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable

from kazoo.exceptions import NoNodeError

from celery_zk_beat.records import MasterRecord, from_text
from example_project.processes import Process, wait_until
from example_project.servers import celery_beat

from . import failover, tables
from .bench import (
    PATHS,
    PATIENCE,
    Cluster,
    Servers,
    Term,
    connection,
    cpu_seconds,
    load,
    machine,
    scratch,
    sessions,
)
from .contenders import CONTENDERS, DAY, EACH, Load, fill, in_configuration

Result = dict[str, Any]
OURS = "ours"
#: Seconds in which the last runs of a window may still arrive.
GRACE = 0.25
#: Each tick of these takes longer if there are more entries. So the rate of the first seconds of a
#: burst stays the same later.
STEADY = ("stock", "stock-sentry", "persistent", "database", "multibeat")


@dataclass(frozen=True)
class Plan:
    """How much of each case to measure.

    Attributes:
        rounds: how many rounds of bursts of up to `small` entries: they are short, so a busy
            neighbour may spoil one. A third as many of up to `often` entries; one of all else.
        fully: these contenders take part in everything; the others in the first round, with up to
            `often` entries.
        times: how many bursts of one entry there are in each round.
        limit: the longest burst, in seconds; `short_limit` for a contender in STEADY.
        spread: how many entries, and for how many seconds to watch them.
        drift: for how many seconds.
        ends: how many masters to end, with each of two signals.
    """

    bursts: Sequence[int] = (1, 100, 1000, 10_000, 100_000)
    idle: Sequence[int] = (100, 10_000, 100_000)
    starts: Sequence[int] = (10_000, 100_000)
    rounds: int = 9
    small: int = 1000
    often: int = 10_000
    fully: Sequence[str] = (OURS, "stock", "redbeat")
    times: int = 10
    limit: float = 60.0
    short_limit: float = 5.0
    idle_seconds: float = 1.0
    spread: tuple[int, float] = (10_000, 60.0)
    drift: float = 300.0
    ends: int = 4

    def rounds_of(self, n: int) -> int:
        """Returns how many rounds there are with so many entries."""
        if n > self.often:
            return 1
        return self.rounds if n <= self.small else math.ceil(self.rounds / 3)


QUICK = Plan(
    bursts=(1, 1000),
    idle=(10_000,),
    starts=(10_000,),
    rounds=1,
    times=5,
    limit=5.0,
    short_limit=2.0,
    idle_seconds=0.5,
    spread=(10_000, 3.0),
    drift=10.0,
    ends=2,
)


class Site(Servers):
    """ZooKeeper and Redis, and beats that start with what each case puts there."""

    def prepare(self, load: Load, *names: str) -> None:
        """Removes what others have left, and gives the named contenders their schedule."""
        self.broker.flushall()
        if self.client.exists(PATHS.root):
            self.client.delete(PATHS.root, recursive=True)
        for who in names:
            shutil.rmtree(self.folder / who, ignore_errors=True)
            (self.folder / who).mkdir()
            fill(EACH[who], load, self.folder / who, self.redis.url())

    def process(
        self, who: str, load: Load, name: str = "", queue: str = "celery", **conf: Any
    ) -> Process:
        """Makes a contender's beat. Does not start it."""
        env, files = self.env(who, load, task_default_queue=queue, **conf), self.files(who)
        args = ["-S", EACH[who].scheduler, "-l", "WARNING", "-s", files]
        return celery_beat(self.folder, name or who, "benchmarks.beat_app", env=env, args=args)

    def env(self, who: str, load: Load, **conf: Any) -> dict[str, str]:
        contender, url = EACH[who], self.redis.url()
        conf = {
            "broker_url": url,
            "zk_beat_hosts": self.zookeeper.hosts,
            **contender.settings,
            **({contender.url: url} if contender.url else {}),
            **conf,
        }
        env = {"BENCHMARK_CONF": json.dumps(conf), **contender.env(self.folder / who)}
        return {**env, "BENCHMARK_LOAD": load.to_json()} if in_configuration(contender) else env

    def files(self, who: str) -> str:
        """Returns the file in which a PersistentScheduler keeps its states."""
        return str(self.folder / who / "schedule")

    def wait_sent(self, count: int, deadline: float) -> tuple[int, float]:
        """Waits until so many messages are in the queue, or until the deadline. Returns how many
        there are, and when that was seen. Looks often at first; later the steps grow in
        proportion to the time."""
        begun = time.time()
        while True:
            length: Any = self.broker.llen("celery")
            sent, now = int(length), time.time()
            if sent >= count or now > deadline:
                return sent, now
            time.sleep(min(0.02, max(0.0003, (now - begun) / 100)))

    def take(self, until: float, queues: Sequence[str] = ("celery",)) -> tuple[float, str, Any]:
        """Takes the next message. Returns when it was there, its queue, and its headers.

        Raises:
            TimeoutError: none came.
        """
        while (wait := until - time.time()) > 0:
            taken: Any = self.broker.brpop(list(queues), timeout=max(0.01, min(1.0, wait)))
            at = time.time()
            if taken is not None:
                return at, taken[0].decode(), json.loads(taken[1])["headers"]
        raise TimeoutError("no message")

    def term(self) -> Term | None:
        """Returns the master; None if there is none."""
        with contextlib.suppress(NoNodeError):
            data, stat = self.client.get(PATHS.master)
            record = MasterRecord.decode(PATHS.master, data)
            return Term(record.epoch, record.pid, stat.ctime / 1000)
        return None

    def requests(self, pid: int) -> int:
        """Returns how many requests ZooKeeper got from a beat; 0 if the beat has no session."""
        session = sessions(self.client).get(pid)
        return 0 if session is None else connection(self.zookeeper, session)[0]


def burst(site: Site, plan: Plan, who: str, n: int) -> Result:
    """Measures from the instant at which all entries are due until the last message is in the
    broker. The beat is up and has sent a message before. For one entry: the median of several
    bursts."""
    times, gap = (plan.times, 0.2) if n == 1 else (1, 0.0)
    limit = plan.short_limit if who in STEADY else plan.limit
    at = _begin(n)
    schedule = Load(n * times, DAY, at, n, gap, probe=(DAY, at - 1))
    site.prepare(schedule, who)
    begun = time.time()
    with site.process(who, schedule).start() as beat:
        sent, ready = site.wait_sent(1, begun + 2 * PATIENCE)
        if not sent:
            raise TimeoutError(f"sent nothing within {ready - begun:.0f} s")
        time.sleep(max(0.0, at - 0.1 - time.time()))
        cpu, requests, seconds = -cpu_seconds(beat.pid), -site.requests(beat.pid), []
        for turn in range(times):
            begin = max(at + turn * gap, ready)
            time.sleep(max(0.0, begin - 0.005 - time.time()))
            sent, end = site.wait_sent(1 + n * (turn + 1), begin + limit)
            seconds.append(max(end - begin, 0.0001))
        time.sleep(0.2)  # what a beat does after the last message is part of the cost
        cpu += cpu_seconds(beat.pid)
        requests += site.requests(beat.pid)
    done = (sent - 1) / times
    return {
        "dispatched": sent - 1,
        "seconds": statistics.median(seconds),
        "rate": done / statistics.median(seconds),
        "cpu_ms": 1000 * cpu / times / done if done else None,
        "requests": requests / (sent - 1) if requests else None,
    }


def _begin(n: int) -> float:
    """Returns an instant at which a beat with `n` entries is up. It is a whole second, because
    RedBeat rounds to seconds."""
    return math.ceil(time.time() + 2.5 + n / 6000)


def idle(site: Site, plan: Plan, who: str, n: int) -> Result:
    schedule = Load(n, DAY, time.time() + DAY)
    site.prepare(schedule, who)
    args = [EACH[who].scheduler, site.files(who), str(plan.idle_seconds)]
    process = Process(
        site.folder,
        f"idle-{who}",
        [sys.executable, "-m", "benchmarks.idle", *args],
        env=site.env(who, schedule),
    )
    with process.start():
        line = process.wait_for_log('{"ticks"', 2 * PATIENCE)
    return json.loads(line)  # type: ignore[no-any-return]


def start(site: Site, plan: Plan, who: str, n: int) -> Result:
    """Measures from the start of the process to its first message. Contenders that store states
    find those of an earlier beat."""
    schedule = Load(n, DAY, time.time() + DAY, probe=(0.1, time.time()))
    site.prepare(schedule, who)
    with site.process(who, schedule).start() as beat:
        if who in (OURS, "persistent"):
            site.take(time.time() + 2 * PATIENCE)
            beat.terminate()
            site.broker.delete("celery")
            beat.start()
        begun = time.time()
        at, _, _ = site.take(begun + 2 * PATIENCE)
        result = {"seconds": at - begun, "memory": _memory(beat.pid)}
        if who == OURS:
            term = site.term()
            assert term is not None
            result["elected"] = at - term.since
    return result


def _memory(pid: int) -> float:
    """Returns the most memory that a process has used, in MB."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def takeover(site: Site, plan: Plan, n: int) -> Iterator[Result]:
    """Measures from when a standby is elected and a run is due to its first message. The two
    signals take turns."""
    schedule = Load(n, DAY, time.time() + DAY, probe=(0.1, time.time()))
    site.prepare(schedule, OURS)
    with contextlib.ExitStack() as stack:
        beats = [
            stack.enter_context(
                site.process(OURS, schedule, f"beat-{number}", zk_beat_session_timeout=2.0)
            )
            for number in range(2)
        ]
        for beat in beats:
            beat.start()
        for end in [signal.SIGTERM, signal.SIGKILL] * (plan.ends // 2):
            wait_until(
                lambda: {beat.pid for beat in beats} <= set(sessions(site.client)),
                PATIENCE,
                "both to be members",
            )
            before, _, _ = _dispatching(site, 0)
            master = next(beat for beat in beats if beat.pid == before.pid)
            standby = next(beat for beat in beats if beat is not master)
            memory, signalled = _memory(standby.pid), time.time()
            master.send(end)
            term, at, headers = _dispatching(site, before.epoch)
            due = from_text(headers["zk_beat"]["due"]).timestamp()
            master.wait(10)
            yield {
                "signal": end.name,
                "elected": at - max(term.since, due),
                "seconds": at - signalled,
                "memory": memory,
            }
            master.start()


def _dispatching(site: Site, epoch: int) -> tuple[Term, float, Any]:
    """Returns the next master after the one of the epoch, and its first message from now on."""
    until = time.time() + 2 * PATIENCE
    while True:
        at, _, headers = site.take(until)
        term = site.term()
        if term is not None and headers["zk_beat"]["epoch"] == term.epoch > epoch:
            return term, at, headers


def spread(site: Site, plan: Plan, who: str) -> Result:
    n, seconds = plan.spread
    for allow in 1, 10:
        begin = _begin(allow * n)
        schedule = Load(n, 60.0, begin, apart=60.0 / n, probe=(DAY, begin - 0.5))
        site.prepare(schedule, who)
        with site.process(who, schedule).start() as beat, contextlib.suppress(TimeoutError):
            site.take(begin)  # the probe
            return _spread(site, beat, schedule, seconds)
    raise TimeoutError("was not ready in time")


def _spread(site: Site, beat: Process, schedule: Load, seconds: float) -> Result:
    late: dict[int, float] = {}
    cpu, requests = -cpu_seconds(beat.pid), -site.requests(beat.pid)
    with contextlib.suppress(TimeoutError):
        while True:
            at, _, headers = site.take(schedule.first + seconds + GRACE)
            number = int(headers["task"].partition("-")[2])
            # Its first run: the window is not longer than its period.
            late.setdefault(number, at - schedule.first - number * schedule.apart)
    cpu += cpu_seconds(beat.pid)
    requests += site.requests(beat.pid)
    due = math.ceil(schedule.count * seconds / schedule.period)
    values = sorted(value for number, value in late.items() if number < due)
    return {
        "share": len(values) / due,
        "missing": due - len(values),
        "late_ms": _quantiles(values),
        "cpu_minute": 60 * cpu / (seconds + GRACE),
        "requests": requests / len(values) if requests else None,
    }


def _quantiles(values: Sequence[float]) -> list[float]:
    """Returns the quantiles 0, 1, ... 100 per cent in milliseconds. `values`: seconds, sorted."""
    last = len(values) - 1
    return [round(1000 * values[round(last * part / 100)], 3) for part in range(101) if values]


def drift(site: Site, plan: Plan, names: Sequence[str]) -> Iterator[Result]:
    """Watches all contenders at the same time, each with its own queue."""
    schedule = Load(1, 1.0, time.time())
    site.prepare(schedule, *names)
    came: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        beats = {}
        for who in names:
            process = stack.enter_context(site.process(who, schedule, queue=who))
            beats[who] = process.start()
        if OURS in names:
            wait_until(site.term, PATIENCE, "a master")
            process = stack.enter_context(site.process(OURS, schedule, "standby", queue=OURS))
            beats["standby"] = process.start()
        for who in names:
            site.take(time.time() + PATIENCE, [who])
        time.sleep(2)  # now all have started and are idle
        site.broker.delete(*names)
        begin = time.time()
        cpu = {who: -cpu_seconds(beat.pid) for who, beat in beats.items()}
        requests = {who: -site.requests(beat.pid) for who, beat in beats.items()}
        with contextlib.suppress(TimeoutError):
            while True:
                at, who, _ = site.take(begin + plan.drift + 1, names)
                came[who].append(at)
        for who, beat in beats.items():
            cpu[who] += cpu_seconds(beat.pid)
            requests[who] += site.requests(beat.pid)
    for who in beats:
        first = came[who][0] if came[who] else 0.0
        times = [at - first for at in came[who] if at - first < plan.drift - 0.5]
        yield {
            "who": who,
            "seconds": plan.drift,
            "runs": len(times),
            "period": times[-1] / (len(times) - 1) if len(times) > 1 else None,
            "late_ms": [round(1000 * (at - number), 3) for number, at in enumerate(times)],
            "cpu_minute": 60 * cpu[who] / (plan.drift + 1),
            "requests": requests[who] / (plan.drift + 1) if requests[who] else None,
        }


def failovers(folder: Path, plan: Plan) -> Iterator[Result]:
    for end in signal.SIGKILL, signal.SIGTERM:
        place = folder / end.name
        with Cluster(place, failover.SESSION_TIMEOUT, failover.PERIOD) as cluster:
            cluster.start_beats(failover.BEATS)
            rows, faults = failover.measure(cluster, end, plan.ends)
        for row in rows:
            yield {
                "what": f"{end.name}: {row.what}",
                "values": list(row.values),
                "bound": row.bound,
            }
        for fault in faults:
            yield {"what": f"{end.name}: {fault}", "fault": True}


CASES = ("burst", "idle", "start", "takeover", "spread", "drift", "failover")


# All cases, one after another: each is a line or two.
def run(  # noqa: C901
    site: Site, plan: Plan, cases: Sequence[str], names: Sequence[str]
) -> Iterator[Result]:
    """Measures everything. Yields each result as it comes: which case, which contender, how many
    entries, and the values."""

    def each(
        case: str, measure: Callable[..., Result], sizes: Sequence[int], turn: int = 0
    ) -> Iterator[Result]:
        for n in sizes:
            for who in names:
                takes_part = who in plan.fully or (n <= plan.often and turn == 0)
                if takes_part and turn < plan.rounds_of(n):
                    yield {"case": case, "who": who, "n": n, **caught(measure, who, n)}

    def caught(measure: Callable[..., Result], *args: Any) -> Result:
        try:
            return measure(site, plan, *args)
        except (TimeoutError, OSError, RuntimeError) as exc:
            return {"error": str(exc)}

    if "burst" in cases:
        for turn in range(plan.rounds):
            yield from each("burst", burst, plan.bursts, turn)
    if "idle" in cases:
        yield from each("idle", idle, plan.idle)
    if "start" in cases:
        yield from each("start", start, plan.starts)
    if "takeover" in cases and OURS in names:
        for n in plan.starts:
            for result in takeover(site, plan, n):
                yield {"case": "takeover", "who": OURS, "n": n, **result}
    if "spread" in cases:
        for who in names:
            yield {"case": "spread", "who": who, **caught(spread, who)}
    if "drift" in cases:
        for result in drift(site, plan, names):
            yield {"case": "drift", **result}
    if "failover" in cases and OURS in names:
        for result in failovers(site.folder, plan):
            yield {"case": "failover", "who": OURS, **result}


def installed() -> list[str]:
    """Returns the contenders whose packages are installed."""
    found = []
    for name, contender in CONTENDERS.items():
        with contextlib.suppress(PackageNotFoundError):
            for package in contender.packages:
                version(package)
            found.append(name)
    return found


def compare(plan: Plan, cases: Sequence[str], names: Sequence[str], output: Path | None) -> int:
    """Measures, and prints or writes the results. Returns the exit status."""
    results: list[Result] = []
    begun = time.monotonic()
    with scratch() as folder, Site(folder) as site:
        packages = {"celery", "kombu", "redis", "kazoo"}
        packages.update(package for name in names for package in EACH[name].packages)
        about = [f"{datetime.now(timezone.utc):%Y-%m-%d}:"]
        about += machine(site.zookeeper, site.redis, sorted(packages))
        print("\n".join(about), flush=True)
        for result in run(site, plan, cases, names):
            results.append(result)
            print(f"{time.monotonic() - begun:6.0f} s  {_line(result)}", flush=True)
    about.append(f"load average at the end {load()}; {(time.monotonic() - begun) / 60:.0f} minutes")
    if output is None:
        print("\n" + tables.text(about, results))
    else:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(_json(about, results))
        print("\n" + tables.write(output))
        print(f"see {output / 'README.md'}")
    return 0 if all(bound.met for bound in tables.bounds(results)) else 1


def _line(result: Mapping[str, Any]) -> str:
    short = {key: value for key, value in result.items() if key not in ("late_ms", "values")}
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in short.items()
        if value is not None
    )


def _json(about: Sequence[str], results: Sequence[Result]) -> str:
    """Returns JSON with a line for each result."""
    lines = ",\n".join(json.dumps(result) for result in results)
    return f'{{"about": {json.dumps(about)}, "results": [\n{lines}\n]}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("case", nargs="+", choices=("all", *CASES))
    parser.add_argument("--quick", action="store_true", help="measure less, for development")
    parser.add_argument("--contenders", help=f"{','.join(CONTENDERS)}; default: all installed")
    parser.add_argument("--n", help="how many entries, such as 100,1000")
    parser.add_argument("--seconds", type=float, help="length of spread (at most 60) and drift")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    if args.n:
        sizes = [int(n) for n in args.n.split(",")]
        plan = replace(plan, bursts=sizes, idle=sizes, starts=sizes, spread=(sizes[0], 60.0))
    if args.seconds:
        plan = replace(plan, drift=args.seconds, spread=(plan.spread[0], min(60, args.seconds)))
    if args.rounds:
        plan = replace(plan, rounds=args.rounds)
    names = installed()
    if args.contenders:
        names = args.contenders.split(",")
        plan = replace(plan, fully=names)
    cases = CASES if "all" in args.case else args.case
    return compare(plan, cases, names, args.output)


if __name__ == "__main__":
    sys.exit(main())
