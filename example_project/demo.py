"""A failover to watch: ``python -m example_project.demo`` (or ``make demo``), about 70 seconds.

Starts a ZooKeeper, a Redis, two workers and three beats of the example project on free ports, in
a temporary folder. Kills the master, stops the next one, starts both again; then says how long
each take-over took and whether any run was lost or made twice.

Exit status: 0 no run was lost or made twice; 1 one was, or something else went wrong; 2 something
is not installed; 130 Ctrl-C. In every case all processes have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NoReturn

from .servers import Process, Redis, ZooKeeper, celery_beat, celery_worker, find_missing

if TYPE_CHECKING:
    from .verdict import Delivery, Verdict
    from .view import Beat, Board, Lines, TakeOver

# Packages that are not Python's own are imported late: Ctrl-C finds us ready for it from the
# first moment, and one that is missing gets a clear line.

TICK_TIME = 500  # Milliseconds, of ZooKeeper.
SESSION_TIMEOUT = 2.0  # Seconds: what ZooKeeper allows a silent master before it is deposed.
STEADY = 10.0  # Seconds between two faults.
#: Seconds from the first election to the end: a minute begins in it, clear of both ends.
LENGTH = 62.5
PATIENCE = 30.0  # Seconds that a thing may take before the demo has failed.
_POLL = 0.03


class Failed(Exception):
    """The demo cannot go on; the text says why."""


class Demo:
    """The play; all instants are seconds since 1970.

    Args:
        stack: ends, when it is closed, all that was started.
        folder: for logs, data and the journal.
        svg: where to put a picture of the live view, taken after the second fault.
    """

    def __init__(
        self, stack: contextlib.ExitStack, folder: Path, *, plain: bool, svg: Path | None
    ) -> None:
        from rich.console import Console

        from .app import app
        from .journal import Journal
        from .verdict import Entry
        from .view import Board, Lines, Screen

        self._stack = stack
        self._folder = folder
        self._svg = svg
        self._root = f"/celery-zk-beat/{app.main}"
        schedule = app.conf.beat_schedule
        self._entries = [
            Entry(name, entry["schedule"])
            if isinstance(entry["schedule"], float)
            else Entry(name, 60, on_the_minute=True)
            for name, entry in schedule.items()
        ]
        tasks = {entry["task"].rpartition(".")[2]: name for name, entry in schedule.items()}
        self._journal = Journal(folder / "journal.jsonl", tasks)
        self.board: Board = Board(self._entries, self._journal.deliveries)
        console = Console()
        live = console.is_terminal and not console.is_dumb_terminal and not plain
        self._show: Lines = Screen(self.board, console) if live else Lines(self.board)
        stack.callback(self._show.close)
        self._masters: queue.SimpleQueue[tuple[float, bytes | None]] = queue.SimpleQueue()
        self._workers: list[Process] = []

    def run(self) -> Verdict:
        """Plays it.

        Raises:
            Failed: a process ended that should not, or something took longer than PATIENCE.
        """
        started = self._start()
        self._steady("all is well", STEADY)
        self._fault(signal.SIGKILL, "the master is killed")
        self._steady("the successor goes on", STEADY)
        self._fault(signal.SIGTERM, "the next master is stopped")
        self._steady("the last one goes on", STEADY / 2)
        if self._svg:
            from .view import save_svg

            save_svg(self.board, self._svg)
        self._restart()
        self._steady("three beats again", started + LENGTH - time.time())
        ended = self._stop()

        from .verdict import judge

        faults = [fault.at for fault in self.board.faults]
        return judge(self._journal.deliveries, self._entries, faults, started, ended)

    def _start(self) -> float:
        """Returns when the first master was elected."""
        from .journal import VARIABLE
        from .view import COLOURS, Beat

        self._phase("servers start")
        zookeeper = ZooKeeper(self._folder, tick_time=TICK_TIME)
        self._stack.enter_context(zookeeper).start()
        self._redis = Redis(self._folder)
        self._stack.enter_context(self._redis).start()
        self._show.event("ZooKeeper and Redis run")
        env = {
            "CELERY_BROKER_URL": self._redis.url(0),
            "CELERY_RESULT_BACKEND": self._redis.url(1),
            "ZK_BEAT_HOSTS": zookeeper.hosts,
            "ZK_BEAT_SESSION_TIMEOUT": str(SESSION_TIMEOUT),
            VARIABLE: str(self._folder / "journal.jsonl"),
        }
        journal = ["--include", "example_project.journal"]
        self._phase("workers start")
        for name in ("worker-1", "worker-2"):
            worker = celery_worker(self._folder, name, env=env, args=journal)
            self._workers.append(self._stack.enter_context(worker).start())
        self._until(lambda: all("ready." in w.log() for w in self._workers), "two workers")
        self._show.event("two workers are ready")
        self._watch(zookeeper.hosts)
        self._phase("beats start")
        for number, colour in enumerate(COLOURS, 1):
            process = celery_beat(self._folder, f"beat-{number}", env=env)
            beat = Beat(process.name, colour, self._stack.enter_context(process))
            self.board.beats.append(beat)
            self._start_beat(beat)
        self._until(lambda: self.board.reigns, "a master")
        self._until(self._all_joined, "all beats to join")
        return self.board.reigns[0].since

    def _start_beat(self, beat: Beat) -> None:
        from .view import STARTING

        beat.role = STARTING
        beat.process.start()
        beat.pids.append(beat.process.pid)

    def _watch(self, hosts: str) -> None:
        """Notes each change of the master's znode, at the moment that ZooKeeper tells of it."""
        from kazoo.client import KazooClient

        logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # Its words would tear the view.
        self._zookeeper = KazooClient(hosts)
        self._stack.callback(self._zookeeper.close)
        self._stack.callback(self._zookeeper.stop)
        self._zookeeper.start()
        self._zookeeper.DataWatch(
            f"{self._root}/master",
            lambda data, stat: self._masters.put((time.time(), data if stat else None)),
        )

    def _fault(self, number: signal.Signals, phase: str) -> None:
        """Ends the master at a random moment of the second and waits for the successor's first
        run."""
        from .verdict import resumed
        from .view import KILLED, STOPPED, TakeOver

        self._steady(self.board.phase, random.random())
        victim = self._master()
        self._phase(phase)
        fault = TakeOver(number.name, victim, time.time())
        victim.process.send(number)
        victim.role = KILLED if number is signal.SIGKILL else STOPPED
        self.board.faults.append(fault)
        self._show.event(f"{number.name} to {victim.name}, the master", "bold red")
        self._until(lambda: self._master_since(fault), "another master")
        self._until(lambda: self._resumed(fault), "its first run")
        self._until(lambda: not victim.process.alive, f"the end of {victim.name}")
        if number is signal.SIGTERM:
            self._show.event(f"{victim.name} has ended with status {victim.process.exit_code}")
        fault.resumed = resumed(self._in_order(), fault.at) - fault.at
        self._show.event(fault.short, "bold green")

    def _master_since(self, fault: TakeOver) -> bool:
        reign = self.board.reigns[-1]
        if reign.since < fault.at or reign.until:
            return False
        fault.successor, fault.elected = reign.beat, reign.since - fault.at
        return True

    def _resumed(self, fault: TakeOver) -> bool:
        from .verdict import resumed

        return resumed(self._in_order(), fault.at) > fault.at

    def _in_order(self) -> list[Delivery]:
        return sorted(self._journal.deliveries, key=lambda delivery: delivery.received)

    def _restart(self) -> None:
        self._phase("both start again")
        for fault in self.board.faults:
            self._start_beat(fault.victim)
            self._show.event(f"{fault.victim.name} starts again")
        self._until(self._all_joined, "both to join again")
        self._show.event("three beats again, still one master")

    def _stop(self) -> float:
        """Stops the standbys, then the master, and lets the workers finish. Returns when the
        master was told to stop."""
        self._phase("beats stop")
        master = self._master()
        others = [beat for beat in self.board.beats if beat is not master]
        self._end(others)
        ended = time.time()
        self._end([master])
        self._phase("workers finish")
        self._until(self._drained, "the workers to execute what is queued")
        return ended

    def _end(self, beats: Sequence[Beat]) -> None:
        from .view import STOPPED

        for beat in beats:
            beat.role = STOPPED
            beat.process.send(signal.SIGTERM)
        self._until(lambda: not any(beat.process.alive for beat in beats), "beats to end")
        for beat in beats:
            self._show.event(f"{beat.name} has ended with status {beat.process.exit_code}")

    def _drained(self) -> bool:
        import redis

        with redis.Redis.from_url(self._redis.url(0)) as broker:
            queued = broker.llen("celery") or broker.hlen("unacked")
        self._read_journal()  # After the queue, so that nothing can be in neither.
        return not queued and all(run.executed is not None for run in self._journal.deliveries)

    def _all_joined(self) -> bool:
        """Each beat is seen in ZooKeeper, as master or as a member."""
        from kazoo.exceptions import NoNodeError

        from .view import STANDBY, STARTING

        with contextlib.suppress(NoNodeError):
            members = self._zookeeper.get_children(f"{self._root}/members")
            for beat in self.board.beats:
                if beat.role == STARTING and any(m.endswith(f":{beat.pids[-1]}") for m in members):
                    beat.role = STANDBY
        return all(beat.role != STARTING for beat in self.board.beats)

    def _master(self) -> Beat:
        from .view import MASTER

        self._until(lambda: any(b.role == MASTER for b in self.board.beats), "a master")
        return next(beat for beat in self.board.beats if beat.role == MASTER)

    def _phase(self, text: str) -> None:
        self.board.phase = text
        self._show.refresh()

    def _steady(self, phase: str, seconds: float) -> None:
        self._phase(phase)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()

    def _until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"waited {PATIENCE:g} s for {what}")
            self._look()

    def _look(self) -> None:
        """Takes in what has happened, shows it, and waits a moment for more."""
        from .view import KILLED, STOPPED

        with contextlib.suppress(queue.Empty):
            self._take_master(*self._masters.get(timeout=_POLL))
        self._read_journal()
        watched = [b.process for b in self.board.beats if b.role not in (KILLED, STOPPED)]
        for process in [*self._workers, *watched]:
            if not process.alive:
                raise Failed(f"{process.name} has ended by itself, status {process.exit_code}")
        self._show.refresh()

    def _read_journal(self) -> None:
        for run in self._journal.read():
            self._show.executed(run)

    def _take_master(self, at: float, data: bytes | None) -> None:
        from .view import MASTER, STANDBY, Reign

        for reign in self.board.reigns:
            if reign.until is None:
                reign.until = at
                if reign.beat.role == MASTER:
                    reign.beat.role = STANDBY
        if data is None:
            return
        record = json.loads(data)
        beat = next((b for b in self.board.beats if record["pid"] in b.pids), None)
        if beat is None:
            raise Failed(f"a stranger is master: {record}")
        beat.role, beat.epoch = MASTER, record["epoch"]
        self.board.reigns.append(Reign(beat, record["epoch"], at))
        self._show.event(f"{beat.name} is master, epoch {beat.epoch}", f"bold {beat.colour}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted; all processes have ended", file=sys.stderr)
        return 128 + signal.SIGINT


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser("python -m example_project.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--plain", action="store_true", help="plain lines on a terminal, too")
    parser.add_argument("--svg", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if missing := find_missing() + _missing_packages():
        print("\n".join(["The demo needs:", *missing]), file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="celery-zk-beat-demo-"))
    keep = True
    try:
        with contextlib.ExitStack() as stack:
            try:
                demo = Demo(stack, folder, plain=options.plain, svg=options.svg)
                verdict = demo.run()
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Nothing may cut the ending short.
        keep = not verdict.good
    except (KeyboardInterrupt, SystemExit):
        keep = False
        raise
    except (Failed, TimeoutError, RuntimeError) as exc:
        print(f"the demo failed: {exc}", file=sys.stderr)
        return 1
    finally:
        if keep:
            print(f"logs and journal are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(*demo.board.faults, *verdict.lost, *verdict.twice, verdict, sep="\n", flush=True)
    return 0 if verdict.good else 1


def _missing_packages() -> list[str]:
    wanted = ("celery", "celery_zk_beat", "kazoo", "redis", "rich")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [f"Python packages: {', '.join(missing)} (pip install -e '.[demo]')"]


def _leave(number: int, frame: object) -> NoReturn:
    """As by Ctrl-C, all processes end, when the terminal closes or somebody kills us politely."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
