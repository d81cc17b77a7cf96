"""What a campaign tests: an ensemble of three servers, a broker that keeps everything, three beats,
each with its own connections through proxies, and two workers. Times are seconds."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from example_project import journal
from example_project.processes import Process, wait_until
from example_project.servers import Ensemble, Redis, ZooKeeper, celery_beat, celery_worker
from tests.faults import Road

from .contenders import Contender
from .record import Record

NAMES = ("one", "two", "three")
#: The rare entries show which runs are lost. Of the others, most outages make one run of several.
PERIODS = {1.0: 10, 2.0: 10, 10.0: 10, 60.0: 2}
ENTRIES = {f"e{period:g}-{n}": period for period, count in PERIODS.items() for n in range(count)}
ROOT = "/chaos"
PATIENCE = 60.0
CLOCK = Path(__file__).with_name("clock.c")


@dataclass
class Beat:
    """A beat, the proxies between it and each ZooKeeper server and the broker, and its clock: the
    file that clock.c reads."""

    name: str
    process: Process
    zookeeper: list[Road]
    broker: Road
    clock: Path

    def step_clock(self, seconds: float) -> None:
        """Sets the clock of day so much off from now on. Monotonic clocks stay right."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("=q", int(seconds)))


@dataclass
class Site:
    """All of it. `held` has a lock for each thing that only one fault at a time may damage."""

    contender: Contender
    record: Record
    folder: Path
    broker: Redis
    ensemble: Ensemble | None = None
    beats: dict[str, Beat] = field(default_factory=dict)
    workers: list[Process] = field(default_factory=list)
    held: dict[str, threading.Lock] = field(default_factory=dict)
    #: Names by pid, for all processes of beats that ever were.
    pids: dict[int, str] = field(default_factory=dict)
    #: The beat that sent the last message. Without asking ZooKeeper, it is the master.
    last_sender: str | None = None
    #: What makes clocks adjustable; None if this machine does not allow it.
    clock: Path | None = None
    #: A small disk for the last server, if the machine allows it.
    disk: Path | None = None

    def lock(self, what: str) -> threading.Lock:
        return self.held.setdefault(what, threading.Lock())

    def start_beat(self, beat: Beat) -> None:
        beat.process.start()
        self.pids[beat.process.pid] = beat.name
        self.record.write("started", beat=beat.name, pid=beat.process.pid)


def build(stack: contextlib.ExitStack, folder: Path, contender: Contender, record: Record) -> Site:
    """Builds a site with all its processes. They end with the stack."""
    broker = Redis(folder)
    # After a SIGKILL it still has what it has accepted: the append-only file, synced at each write.
    broker.args += ["--appendonly", "yes", "--appendfsync", "always"]
    site = Site(contender, record, folder, stack.enter_context(broker).start())
    site.clock = _compile_clock(folder / "clock.so")
    contender.prepare(folder)
    if contender.session_timeout is not None:
        # Each transaction log is allocated in small steps, so that it fits on a small disk.
        ensemble = Ensemble(folder, config={"preAllocSize": 512})
        site.disk = _mount(stack, folder / ensemble.servers[-1].name)
        site.ensemble = stack.enter_context(ensemble).start()
    for name in NAMES:
        site.beats[name] = _beat(stack, site, name)
    for number in (1, 2):
        _worker(stack, site, f"worker-{number}")
    for beat in site.beats.values():
        site.start_beat(beat)
    return site


def _compile_clock(library: Path) -> Path | None:
    # Before 3.11 Python waits by the clock of day, which would then be the real one.
    compiler = shutil.which("cc") if sys.version_info >= (3, 11) else None
    if compiler is None or sys.platform != "linux":
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(CLOCK)], check=True)
    return library


def _mount(stack: contextlib.ExitStack, folder: Path) -> Path | None:
    folder.mkdir()
    if not resize(folder, "1g", new=True):
        return None
    stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=False)
    return folder


def resize(disk: Path, size: str, *, new: bool = False) -> bool:
    """Sets the size of the small disk. Returns False if we may not do that."""
    kind = ["-t", "tmpfs", "-o", f"size={size}"] if new else ["-o", f"remount,size={size}"]
    command = ["mount", *kind, "chaos", str(disk)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def _beat(stack: contextlib.ExitStack, site: Site, name: str) -> Beat:
    servers: list[ZooKeeper] = site.ensemble.servers if site.ensemble else []
    zookeeper = [stack.enter_context(Road(server.port)) for server in servers]
    broker = stack.enter_context(Road(site.broker.port))
    clock = site.folder / f"{name}.clock"
    clock.write_bytes(struct.pack("=q", 0))
    url = f"redis://{broker.hosts}/0"
    contender = site.contender
    conf = {"broker_url": url, "beat_schedule": _schedule(), **contender.settings}
    if contender.url:
        conf[contender.url] = url
    if site.ensemble is not None:
        hosts = ",".join(road.hosts for road in zookeeper)
        conf.update(zk_beat_hosts=hosts, zk_beat_root=ROOT, zk_beat_id=name)
    env = {"CONF": json.dumps(conf), **contender.env(site.folder)}
    if site.clock is not None:
        env.update(LD_PRELOAD=str(site.clock), CHAOS_CLOCK=str(clock))
    args = ["-S", contender.scheduler]
    process = celery_beat(site.folder, name, "tests.chaos.app", env=env, args=args)
    return Beat(name, stack.enter_context(process), zookeeper, broker, clock)


def _worker(stack: contextlib.ExitStack, site: Site, name: str) -> None:
    conf = {
        "broker_url": site.broker.url(),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "beat_schedule": _schedule(),
    }
    env = {"CONF": json.dumps(conf), journal.VARIABLE: str(site.record.path)}
    args = ["-Q", "work", "--include", "example_project.journal", "-l", "WARNING"]
    worker = celery_worker(site.folder, name, "tests.chaos.app", env=env, args=args)
    site.workers.append(stack.enter_context(worker).start())


def _schedule() -> dict[str, Any]:
    return {name: {"task": name, "schedule": period} for name, period in ENTRIES.items()}


def wait_for_sender(site: Site, timeout: float) -> str | None:
    """Returns the beat that sends the next message; None if no living beat does in time."""

    def living() -> str | None:
        name = site.last_sender
        return name if name is not None and site.beats[name].process.alive else None

    site.last_sender = None
    try:
        return wait_until(living, timeout, "a message")
    except TimeoutError:
        return None
