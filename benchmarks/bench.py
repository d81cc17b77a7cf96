"""What the benchmarks share: servers and beats, three ways to watch them, and a table.

Instants are seconds since 1970 by this machine's clock. It is also ZooKeeper's clock, because all
runs on one machine. All timeouts are seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import select
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import redis
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from celery_zk_beat.paths import Paths
from celery_zk_beat.records import MasterRecord, from_text
from celery_zk_beat.settings import default_root
from example_project.processes import Process, wait_until
from example_project.servers import Redis, ZooKeeper, celery_beat

if TYPE_CHECKING:
    from typing_extensions import Self

#: ZooKeeper's tickTime, milliseconds: it expires sessions up to one tick late.
TICK_TIME = 500
#: How long a step may take on a busy machine before the benchmark gives up.
PATIENCE = 60.0
PATHS = Paths(default_root("benchmark"))
#: Options of Java with which ZooKeeper logs each request.
LOG_REQUESTS = (
    "-Dorg.slf4j.simpleLogger.log.org.apache.zookeeper.server.FinalRequestProcessor=debug",
)


@dataclass(frozen=True)
class Term:
    """A master. `since` is when ZooKeeper created its znode, to the millisecond."""

    epoch: int
    pid: int
    since: float


@dataclass(frozen=True)
class Arrival:
    """A message that the broker got at `at`. `pid` is the pid of the beat that sent it."""

    at: float
    entry: str
    id: str
    run: int
    epoch: int
    pid: int
    due: float


@dataclass(frozen=True)
class Request:
    """A request that ZooKeeper processed, according to its own log. `kind` is for example
    "getData". Ignore `path` if the request has several paths, such as a multi."""

    at: float
    session: int
    kind: str
    path: str


class Servers:
    """ZooKeeper and Redis, and a client for each. They live as long as the ``with`` block.

    Args:
        log_requests: makes ZooKeeper log each request, for :func:`requests`.
    """

    def __init__(self, folder: Path, *, log_requests: bool = False) -> None:
        self.folder = folder
        java = LOG_REQUESTS if log_requests else ()
        self.zookeeper = ZooKeeper(folder, tick_time=TICK_TIME, java=java)
        self.redis = Redis(folder)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
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


class Cluster:
    """ZooKeeper, Redis and beats of one app. They live as long as the ``with`` block.

    Args:
        session_timeout: the session time-out of the beats.
        period: the period of their only entry.
        log_requests: makes ZooKeeper log each request, for :meth:`requests`.
    """

    def __init__(
        self, folder: Path, session_timeout: float, period: float, *, log_requests: bool = False
    ) -> None:
        self.folder = folder
        self.session_timeout = session_timeout
        self.period = period
        self.beats: list[Process] = []
        java = LOG_REQUESTS if log_requests else ()
        self.zookeeper = ZooKeeper(folder, tick_time=TICK_TIME, java=java)
        self.redis = Redis(folder)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.zookeeper).start()
            stack.enter_context(self.redis).start()
            self.client = KazooClient(self.zookeeper.hosts)
            self.client.start(PATIENCE)
            stack.callback(self.client.close)
            stack.callback(self.client.stop)
            self.elections = Elections(self.client)
            self.arrivals = stack.enter_context(Arrivals(self.redis.url()))
            self._stack = stack.pop_all()
        _introduce(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_beats(
        self, count: int, at_once: int = 4, env: Mapping[str, str] | None = None
    ) -> None:
        """Starts so many more beats, a few at a time, and waits until all are members. `env`: more
        environment variables for benchmarks/app.py."""
        env = {
            "CELERY_BROKER_URL": self.redis.url(),
            "ZK_BEAT_HOSTS": self.zookeeper.hosts,
            "ZK_BEAT_SESSION_TIMEOUT": str(self.session_timeout),
            "BENCHMARK_PERIOD": str(self.period),
            **(env or {}),
        }
        for number in range(count):
            name = f"beat-{len(self.beats)}"
            beat = celery_beat(self.folder, name, "benchmarks.app", env=env)
            self._stack.enter_context(beat).start()
            self.beats.append(beat)
            if number % at_once == at_once - 1:
                self.wait_members()
        self.wait_members()

    def beat(self, pid: int) -> Process:
        return next(beat for beat in self.beats if beat.pid == pid)

    def wait_members(self) -> dict[int, int]:
        """Waits until every beat is a member. Returns the session of each, by pid."""
        wanted = {beat.pid for beat in self.beats}
        found: dict[int, int] = {}

        def all_here() -> bool:
            found.clear()
            found.update(sessions(self.client))
            return wanted <= set(found)

        wait_until(all_here, PATIENCE, f"{len(wanted)} members")
        return {pid: found[pid] for pid in wanted}

    def settled(self) -> Term:
        """Waits until every beat is a member and the master has dispatched. Returns the master."""
        self.wait_members()

        def dispatching() -> Term | None:
            term = self.elections.last
            sent = any(arrival.epoch == term.epoch for arrival in self.arrivals.all)
            return term if sent else None

        return wait_until(dispatching, PATIENCE, "a master that dispatches")

    def requests(self, since: float) -> list[Request]:
        return requests(self.zookeeper, since)


def requests(zookeeper: ZooKeeper, since: float) -> list[Request]:
    """Returns the requests that a server has processed since then, in order. It must have been
    started with the options LOG_REQUESTS."""
    found = [
        Request(_today_at(match[1]), int(match[2], 16), match[3], match[4] or "")
        for match in _REQUEST.finditer(zookeeper.log())
    ]
    if not found:
        raise RuntimeError("this ZooKeeper does not log requests: is its logger slf4j-simple?")
    return [request for request in found if request.at >= since]


_REQUEST = re.compile(
    r"^(\S+) .*FinalRequestProcessor - Processing request:: sessionid:0x(\w+) type:(\w+)"
    r"(?:.* reqpath:(\S+))?",
    re.M,
)


def _today_at(clock: str) -> float:
    now = datetime.now()
    at = datetime.combine(now.date(), datetime.strptime(clock, "%H:%M:%S.%f").time())
    return (at - timedelta(days=1) if at > now + timedelta(hours=1) else at).timestamp()


def sessions(client: KazooClient) -> dict[int, int]:
    """Returns the session of each member, by pid."""
    found = {}
    with contextlib.suppress(NoNodeError):
        for name in client.get_children(PATHS.members):
            stat = client.exists(f"{PATHS.members}/{name}")
            if stat is not None:
                found[_pid(name)] = stat.ephemeralOwner
    return found


def connection(zookeeper: ZooKeeper, session: int) -> tuple[int, str]:
    """Returns how many packets a session has sent on its connection, and the kind of the last
    one."""
    text = zookeeper.four_letter("cons")
    found = re.search(rf"recved=(\d+),.*\bsid=0x{session:x},lop=(\w+)", text)
    if found is None:
        raise RuntimeError(f"session 0x{session:x} has no connection:\n{text}")
    return int(found[1]), found[2]


def _pid(id: str) -> int:
    """Returns the pid of a beat with the default id."""
    return int(id.rpartition(":")[2])


class Elections:
    """All masters that a watch has shown. Term 0 is the time before the first."""

    def __init__(self, client: KazooClient) -> None:
        self._terms = [Term(0, 0, 0.0)]
        self._news = threading.Condition()
        client.DataWatch(PATHS.master, self._seen)

    def _seen(self, data: bytes | None, stat: Any) -> None:
        if data is not None:
            record = MasterRecord.decode(PATHS.master, data)
            with self._news:
                self._terms.append(Term(record.epoch, record.pid, stat.ctime / 1000))
                self._news.notify_all()

    @property
    def last(self) -> Term:
        return self._terms[-1]

    def after(self, term: Term, timeout: float = PATIENCE) -> Term:
        """Waits for the next master, and returns it."""

        def found() -> Term | None:
            return next((each for each in self._terms if each.epoch > term.epoch), None)

        with self._news:
            if not self._news.wait_for(found, timeout):
                raise TimeoutError(f"no master within {timeout:g} s")
            successor = found()
            assert successor is not None
            return successor


class Arrivals:
    """Takes the messages from the broker when they come, and keeps them."""

    def __init__(self, broker: str) -> None:
        self.all: list[Arrival] = []
        self._broker = redis.Redis.from_url(broker)
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._take, name="arrivals", daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join(5)
        self._broker.close()

    def _take(self) -> None:
        while not self._stopping:
            taken: Any = self._broker.brpop(["celery"], timeout=1)
            at = time.time()
            if taken is None:
                continue
            headers = json.loads(taken[1])["headers"]
            mark = headers["zk_beat"]
            due = from_text(mark["due"]).timestamp()
            arrival = Arrival(
                at,
                headers["task"],
                headers["id"],
                mark["run"],
                mark["epoch"],
                _pid(mark["master"]),
                due,
            )
            with self._news:
                self.all.append(arrival)
                self._news.notify_all()

    def after(self, term: Term, timeout: float = PATIENCE) -> Arrival:
        """Waits for the first message of a later master, and returns it."""
        return self.wait_for(lambda each: each.epoch > term.epoch, timeout)

    def wait_for(self, is_it: Callable[[Arrival], bool], timeout: float = PATIENCE) -> Arrival:
        """Waits for the first message for which `is_it` is true, and returns it."""
        looked_at = 0
        with self._news:
            until = time.monotonic() + timeout
            while True:
                while looked_at < len(self.all):
                    if is_it(self.all[looked_at]):
                        return self.all[looked_at]
                    looked_at += 1
                if not self._news.wait(until - time.monotonic()):
                    raise TimeoutError(f"the message did not come within {timeout:g} s")

    def faults(self) -> list[str]:
        """Returns what must not happen: a run that was left out or made twice. One repetition is
        allowed: the successor of a killed master cannot know whether a claimed run was published,
        so it sends the run again with the same id."""
        found = []
        first: dict[tuple[str, int], Arrival] = {}
        last: dict[str, int] = {}
        for arrival in self.all:
            run = arrival.entry, arrival.run
            before = first.setdefault(run, arrival)
            last[arrival.entry] = max(arrival.run, last.get(arrival.entry, 0))
            if before is arrival:
                continue
            if before.id != arrival.id or before.epoch >= arrival.epoch:
                found.append(f"run {run} twice: {before} and {arrival}")
        for entry, number in last.items():
            for left_out in range(1, number):
                if (entry, left_out) not in first:
                    found.append(f"run {left_out} of {entry} was left out")
        return found

    @property
    def repeats(self) -> int:
        return len(self.all) - len({(arrival.entry, arrival.run) for arrival in self.all})


def cpu_seconds(pid: int) -> float:
    """Returns the user and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end_of(process: Process, timeout: float = PATIENCE) -> float:
    """Waits for the end of a process. Returns when that was. (Popen.wait() polls.)"""
    descriptor = os.pidfd_open(process.pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], timeout)
        at = time.time()
    finally:
        os.close(descriptor)
    if not ready:
        raise TimeoutError(f"{process.name} still runs after {timeout:g} s")
    return at


@dataclass(frozen=True)
class Row:
    """One line of the table. `bound`: the most that a value may be."""

    what: str
    values: Sequence[float]
    unit: str = "s"
    bound: float | None = None

    @property
    def met(self) -> bool:
        return self.bound is None or max(self.values) <= self.bound


def report(rows: Sequence[Row], faults: Sequence[str] = ()) -> int:
    """Prints the table and the faults. Returns the exit status: 1 if a bound was missed."""
    width = max(len(row.what) for row in rows)
    print(f"\n{'':{width}}  {'min':>8} {'median':>8} {'max':>8}        bound")
    for row in rows:
        values = (min(row.values), statistics.median(row.values), max(row.values))
        numbers = " ".join(f"{value:8.3f}" for value in values)
        bound = "-" if row.bound is None else f"{row.bound:g}"
        mark = "" if row.met else "  MISSED"
        print(f"{row.what:{width}}  {numbers} {row.unit:5} {bound:>7}{mark}")
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"load average {load()}")
    return 0 if all(row.met for row in rows) and not faults else 1


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Makes a folder that is removed when the program ends, also if SIGTERM ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="zk-beat-benchmark-") as folder:
        yield Path(folder)


def machine(
    zookeeper: ZooKeeper,
    server: Redis,
    packages: Sequence[str] = ("celery", "kombu", "redis", "kazoo"),
) -> list[str]:
    """Returns two lines that describe the machine and the versions."""
    found = re.search(r"version: ([\d.]+)", zookeeper.four_letter("srvr"))
    with redis.Redis.from_url(server.url()) as client:
        info: Any = client.info("server")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        f"{os.cpu_count()} cores, load average {load()}, Python {platform.python_version()},",
        f"{versions}, ZooKeeper {found[1] if found else '?'}, Redis {info['redis_version']}",
    ]


def _introduce(cluster: Cluster) -> None:
    lines = machine(cluster.zookeeper, cluster.redis)
    print("\n".join(lines) + ";")
    print(
        f"session time-out {cluster.session_timeout:g} s, tickTime {TICK_TIME} ms, "
        f"one entry every {cluster.period:g} s",
        flush=True,
    )


def load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())
