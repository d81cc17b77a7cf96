"""The faults. Each is a verb that damages something, waits, and repairs it. One seed decides which
faults come, when, for how long, and against what. It does not decide what goes on at that time.
Times are seconds."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable

import redis

from example_project.servers import ZooKeeper

from .checker import STEP
from .contenders import SESSION_TIMEOUT
from .site import PATIENCE, Beat, Site, resize

#: Mean time from the beginning of one fault to the beginning of the next.
EVERY = 4.0
#: How many faults may be under way at the same time.
MOST = 4


@dataclass(frozen=True)
class Fault:
    """`at` counts from the beginning. `beat` is a name, or "master" for the beat that is master
    then, or None if the fault does not hit a beat itself. `argument` belongs to the verb."""

    number: int
    at: float
    verb: str
    beat: str | None
    seconds: float
    argument: float


@dataclass(frozen=True)
class Verb:
    """`on` is what it damages; `least` and `most` limit the seconds."""

    name: str
    on: str
    act: Callable[[Site, Any, Fault], contextlib.AbstractContextManager[None]]
    least: float
    most: float

    @property
    def of_a_beat(self) -> bool:
        return self.on in ("process", "zookeeper road", "broker road", "clock")


def plan(seed: int, seconds: float, verbs: Sequence[Verb]) -> list[Fault]:
    """Returns the faults of one campaign: every verb once, in random order, then all of them
    again."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    at = rng.uniform(1, EVERY)
    left: list[Verb] = []
    while at < seconds:
        left = left or rng.sample(verbs, len(verbs))
        verb = left.pop()
        # Half of them hit the master, because it has something to lose.
        whom = rng.choice(["master", "master", "master", "one", "two", "three"])
        faults.append(
            Fault(
                len(faults) + 1,
                round(at, 2),
                verb.name,
                whom if verb.of_a_beat else None,
                round(rng.uniform(verb.least, verb.most), 2),
                round(rng.random(), 2),
            )
        )
        # Some come together: that finds the most trouble.
        at += rng.uniform(0, 0.5) if rng.random() < 0.2 else rng.expovariate(1 / EVERY)
    return faults


def run(site: Site, faults: Sequence[Fault], verbs: Sequence[Verb], seconds: float) -> None:
    """Runs the faults, each as soon after its time as nothing else damages the same thing. Leaves
    out those for which that is not before the end."""
    begun = time.monotonic()
    by_name = {verb.name: verb for verb in verbs}
    pending = list(faults)
    running: list[Future[None]] = []
    over = threading.Event()
    with ThreadPoolExecutor(MOST) as pool:
        while pending and time.monotonic() < begun + seconds:
            done = [future for future in running if future.done()]
            for future in done:
                future.result()  # a fault that failed ends the campaign
            running = [future for future in running if future not in done]
            for fault in [each for each in pending if begun + each.at <= time.monotonic()]:
                verb = by_name[fault.verb]
                held = _hold(site, verb, fault) if len(running) < MOST else None
                if held is not None:
                    pending.remove(fault)
                    running.append(pool.submit(_do, site, verb, fault, *held))
            over.wait(0.05)  # until the next is due, or something is repaired
        for future in running:
            future.result()


def _hold(site: Site, verb: Verb, fault: Fault) -> tuple[Beat | None, threading.Lock] | None:
    """Returns what the fault hits, and its lock, which is held. None if all are taken."""
    if not verb.of_a_beat:
        lock = site.lock(verb.on)
        return (None, lock) if lock.acquire(blocking=False) else None
    name = site.last_sender if fault.beat == "master" else fault.beat
    if name is None:
        return None
    lock = site.lock(f"{verb.on} {name}")
    return (site.beats[name], lock) if lock.acquire(blocking=False) else None


def _do(site: Site, verb: Verb, fault: Fault, beat: Beat | None, lock: threading.Lock) -> None:
    name = beat and beat.name
    try:
        site.record.write(
            "fault",
            phase="begin",
            number=fault.number,
            verb=verb.name,
            on=verb.on,
            beat=name,
            seconds=fault.seconds,
            argument=fault.argument,
        )
        with verb.act(site, beat, fault):
            time.sleep(fault.seconds)  # the fault itself
        site.record.write("fault", phase="end", number=fault.number)
    finally:
        lock.release()


# Processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _kill(site: Site, beat: Beat, fault: Fault) -> Iterator[None]:
    beat.process.kill()
    yield
    site.start_beat(beat)


@contextlib.contextmanager
def _terminate(site: Site, beat: Beat, fault: Fault) -> Iterator[None]:
    code = beat.process.terminate(PATIENCE)
    if code not in (0, -signal.SIGTERM):  # the latter if it was still starting
        site.record.write("ended", beat=beat.name, exit_code=code)
    yield
    site.start_beat(beat)


@contextlib.contextmanager
def _stop(site: Site, beat: Beat, fault: Fault) -> Iterator[None]:
    beat.process.pause()
    yield
    beat.process.resume()


# Roads ----------------------------------------------------------------------------------------


def _road(to: str, order: str) -> Callable[[Site, Beat, Fault], Any]:
    @contextlib.contextmanager
    def act(site: Site, beat: Beat, fault: Fault) -> Iterator[None]:
        roads = beat.zookeeper if to == "zookeeper" else [beat.broker]
        for road in roads:
            if order == "slow":
                road.slow(0.05 + 0.5 * fault.argument)
            else:
                getattr(road, order)()
        yield
        for road in roads:
            road.open()

    return act


# Clocks ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _step(site: Site, beat: Beat, fault: Fault) -> Iterator[None]:
    beat.step_clock(STEP if fault.argument < 0.5 else -STEP)
    yield
    beat.step_clock(0)


# ZooKeeper ------------------------------------------------------------------------------------


def _servers(site: Site) -> list[ZooKeeper]:
    assert site.ensemble is not None
    return site.ensemble.servers


@contextlib.contextmanager
def _kill_leader(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    assert site.ensemble is not None
    leader = site.ensemble.leader(PATIENCE)
    leader.kill()
    yield
    leader.start()


@contextlib.contextmanager
def _roll(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    for server in _servers(site):
        server.terminate()
        server.start()
    yield


def _kill_servers(count: int) -> Callable[[Site, None, Fault], Any]:
    @contextlib.contextmanager
    def act(site: Site, beat: None, fault: Fault) -> Iterator[None]:
        first = int(3 * fault.argument) % 3
        hurt = (_servers(site) * 2)[first : first + count]
        for server in hurt:
            server.kill()
        yield
        for server in hurt:
            server.start(wait=False)
        for server in hurt:
            server.wait_ready()

    return act


@contextlib.contextmanager
def _fill_disk(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    assert site.disk is not None
    server = _servers(site)[-1]
    used = shutil.disk_usage(site.disk).used
    if not resize(site.disk, str(used)):  # new data is in the way
        resize(site.disk, str(used + (1 << 16)))
    yield
    resize(site.disk, "1g")
    # What ZooKeeper demands of operators: it ends if it cannot write, and it does not start while
    # there is a log without a header.
    server.stop()
    for log in site.disk.glob("version-2/log.*"):
        with log.open("rb") as file:
            headless = file.read(4) != b"ZKLG"
        if headless:
            log.unlink()
    server.start()


# The broker -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _kill_broker(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    site.broker.kill()
    yield
    site.broker.start()


@contextlib.contextmanager
def _restart_broker(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    site.broker.terminate()
    yield
    site.broker.start()


@contextlib.contextmanager
def _stop_broker(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    site.broker.pause()
    yield
    site.broker.resume()


@contextlib.contextmanager
def _fill_broker(site: Site, beat: None, fault: Fault) -> Iterator[None]:
    with redis.Redis(port=site.broker.port) as broker:
        broker.config_set("maxmemory", 1)  # it refuses what needs memory; that is its default
        yield
        broker.config_set("maxmemory", 0)


_LONG = 3 * SESSION_TIMEOUT
_ORDERS = {
    "cut": "cut",
    "black hole": "block",
    "black hole of requests": "block_requests",
    "black hole of answers": "block_answers",
    "delay": "slow",
}


def verbs(site: Site, common: bool = False) -> list[Verb]:
    """Returns all verbs that this machine allows, and records those that it does not. `common`:
    leaves out those that only our scheduler can meet."""
    found = [
        Verb("kill", "process", _kill, 0, 3),
        Verb("terminate", "process", _terminate, 0, 3),
        Verb("short stop", "process", _stop, 0.1, 0.8 * SESSION_TIMEOUT),
        Verb("long stop", "process", _stop, 1.2 * SESSION_TIMEOUT, _LONG),
        Verb("kill the broker", "broker", _kill_broker, 0, 4),
        Verb("restart the broker", "broker", _restart_broker, 0, 4),
        Verb("stop the broker", "broker", _stop_broker, 0.5, 4),
        Verb("fill the broker", "broker", _fill_broker, 0.5, 4),
    ]
    found += [
        Verb(f"{name} to the broker", "broker road", _road("broker", order), 0.2, _LONG)
        for name, order in _ORDERS.items()
    ]
    if site.clock is not None:
        found.append(Verb("clock step", "clock", _step, 1, 8))
    else:
        _skip(site, "clock step", "needs a C compiler (cc), Linux and Python 3.11 or later")
    if site.ensemble is None or common:
        return found
    found += [
        Verb(f"{name} to ZooKeeper", "zookeeper road", _road("zookeeper", order), 0.2, _LONG)
        for name, order in _ORDERS.items()
    ]
    found += [
        Verb("kill the leader", "ensemble", _kill_leader, 0, 4),
        Verb("rolling restart", "ensemble", _roll, 0, 0.1),
        Verb("loss of quorum", "ensemble", _kill_servers(2), 0.5, 5),
        Verb("full stop", "ensemble", _kill_servers(3), 0.5, 5),
    ]
    if site.disk is not None:
        found.append(Verb("full disk", "ensemble", _fill_disk, 1, 5))
    else:
        _skip(site, "full disk", "mounting a small disk needs root")
    return found


def _skip(site: Site, verb: str, why: str) -> None:
    site.record.write("skipped", verb=verb, why=why)
    print(f"skipped: {verb}: {why}")
