"""What the demos share: real processes on free ports in a temporary folder, faults, a view of what
happens, and a verdict.

Exit status of each: 0 no run was lost or made twice; 1 one was, or something else went wrong; 2
something is not installed; 130 Ctrl-C. In every case all processes have ended.
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
from typing import TYPE_CHECKING, Any, Callable

from .servers import Process, Redis, ZooKeeper, celery_beat, celery_worker, find_missing

if TYPE_CHECKING:
    from .verdict import Delivery, Entry, Verdict
    from .view import Beat, Board, Lines, TakeOver

# Packages that are not Python's own are imported late. So Ctrl-C works from the first moment, and a
# missing package gets a clear line.

#: Printed below the verdict.
MEANING = """\
(lost: a run that a master claimed, and no worker executed. While there is no master no run is
claimed: an instant that passes then has no run of its own. One run stands for all such instants of
an entry, as in Celery.)"""

TICK_TIME = 500  # Milliseconds, of ZooKeeper. It grants the default session time-out, 10 s.
PATIENCE = 30.0  # Seconds that a step may take before the demo fails.
_POLL = 0.03


#: Signals that ask the demo to end. It ends when it next checks this list: an exception in the
#: middle of a start would leave a process that nobody knows of, or a client that cannot be stopped.
_signals: list[int] = []


class Failed(Exception):
    """The demo cannot go on; the text says why."""


class Interrupted(Exception):
    """Somebody pressed Ctrl-C, sent SIGTERM, or closed the terminal."""


class Play:
    """A demo. All instants are seconds since 1970.

    Args:
        stack: when it is closed, it ends all that was started.
        folder: for logs, data and the journal.
        options: the options of the command line.
    """

    #: The Celery app: as ``celery -A`` takes it, and its own name.
    app = ""
    name = ""
    #: Which packages must be installed, and which of our extras brings them.
    packages: Sequence[str] = ("celery", "celery_zk_beat", "kazoo", "redis", "rich")
    extra = "demo"

    def __init__(
        self, stack: contextlib.ExitStack, folder: Path, options: argparse.Namespace
    ) -> None:
        from rich.console import Console

        from .journal import Journal
        from .view import Board, Lines, Screen

        self._stack = stack
        self._folder = folder
        self._options = options
        self._root = f"/celery-zk-beat/{self.name}"
        schedule = self.schedule()
        self._entries = list(schedule.values())
        tasks = {task: entry.name for task, entry in schedule.items()}
        self._journal = Journal(folder / "journal.jsonl", tasks)
        self.board: Board = Board(self._entries, self._journal.deliveries)
        console = Console()
        live = console.is_terminal and not console.is_dumb_terminal and not options.plain
        self._show: Lines = Screen(self.board, console) if live else Lines(self.board)
        stack.callback(self._show.close)
        self._masters: queue.SimpleQueue[tuple[float, bytes | None]] = queue.SimpleQueue()
        #: All processes except the beats. They should run to the end.
        self._others: list[Process] = []
        self._env: dict[str, str] = {}

    def schedule(self) -> dict[str, Entry]:
        """Returns the entries by task name (without the task's module)."""
        raise NotImplementedError

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Adds options of its own to ``--plain``."""

    def run(self) -> Verdict:
        """Plays the demo.

        Raises:
            Failed: a process ended that should not, or a step took longer than PATIENCE.
        """
        raise NotImplementedError

    def summary(self) -> list[str]:
        """Returns lines that say what happened, if the terminal no longer shows it."""
        return self._show.summary()

    def _start_servers(self) -> None:
        from .journal import VARIABLE

        self._phase("servers start")
        zookeeper = ZooKeeper(self._folder, tick_time=TICK_TIME)
        self._stack.enter_context(zookeeper).start()
        self._redis = Redis(self._folder)
        self._stack.enter_context(self._redis).start()
        self._env = {
            "CELERY_BROKER_URL": self._redis.url(0),
            "CELERY_RESULT_BACKEND": self._redis.url(1),
            "ZK_BEAT_HOSTS": zookeeper.hosts,
            VARIABLE: str(self._folder / "journal.jsonl"),
        }
        self._show.event("ZooKeeper and Redis run")
        self._watch(zookeeper.hosts)

    def _start_workers(self) -> None:
        self._phase("workers start")
        journal = ["--include", "example_project.journal"]
        workers = []
        for name in ("worker-1", "worker-2"):
            worker = celery_worker(self._folder, name, self.app, env=self._env, args=journal)
            workers.append(self._stack.enter_context(worker).start())
        self._others += workers
        self._until(lambda: all("ready." in w.log() for w in workers), "two workers")
        self._show.event("two workers are ready")

    def _start_beats(self, count: int) -> float:
        """Returns when the first master was elected."""
        from .view import COLOURS, Beat

        self._phase("beats start")
        for number, colour in enumerate(COLOURS[:count], 1):
            process = celery_beat(self._folder, f"beat-{number}", self.app, env=self._env)
            beat = Beat(process.name, colour, self._stack.enter_context(process))
            self.board.beats.append(beat)
            self._start_beat(beat)
        self._until(lambda: self.board.terms, "a master")
        self._until(self._all_joined, "all beats to join")
        return self.board.terms[0].since

    def _start_beat(self, beat: Beat) -> None:
        from .view import STARTING

        beat.role = STARTING
        beat.process.start()
        beat.pids.append(beat.process.pid)

    def _watch(self, hosts: str) -> None:
        """Notes each change of the master's znode, at the moment when ZooKeeper reports it."""
        from kazoo.client import KazooClient

        logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # Its lines would disturb the view.
        self._zookeeper = KazooClient(hosts)
        self._stack.callback(self._zookeeper.close)
        self._stack.callback(self._zookeeper.stop)
        self._zookeeper.start()
        self._zookeeper.DataWatch(
            f"{self._root}/master",
            lambda data, stat: self._masters.put((time.time(), data if stat else None)),
        )

    def _fault(self, number: signal.Signals, phase: str) -> None:
        """Ends the master at a random moment within a second. Waits for the next master's first
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
        term = self.board.terms[-1]
        if term.since < fault.at or term.until:
            return False
        fault.successor, fault.elected = term.beat, term.since - fault.at
        return True

    def _resumed(self, fault: TakeOver) -> bool:
        from .verdict import resumed

        return resumed(self._in_order(), fault.at) > fault.at

    def _in_order(self) -> list[Delivery]:
        return sorted(self._journal.deliveries, key=lambda delivery: delivery.received)

    def _restart(self) -> None:
        """Starts the beats again that have ended."""
        for beat in self.board.beats:
            if not beat.process.alive:
                self._start_beat(beat)
                self._show.event(f"{beat.name} starts again")
        self._until(self._all_joined, "all to join again")

    def _stop(self, started: float) -> Verdict:
        """Stops the standbys, then the master, and lets the workers finish. Judges all runs since
        the first master was elected."""
        from .verdict import judge

        self._phase("beats stop")
        master = self._master()
        others = [beat for beat in self.board.beats if beat is not master]
        self._end(others)
        ended = time.time()
        self._end([master])
        self._phase("workers finish")
        self._until(self._drained, "the workers to execute what is queued")
        faults = [fault.at for fault in self.board.faults]
        return judge(self._journal.deliveries, self._entries, faults, started, ended)

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
        self._read_journal()  # After the queue: each message is in at least one of the two.
        return not queued and all(run.executed is not None for run in self._journal.deliveries)

    def _all_joined(self) -> bool:
        """True if each beat is in ZooKeeper, as master or as a member."""
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
        """Reads what has happened, shows it, and waits a moment for more."""
        from .view import KILLED, STOPPED

        if _signals:
            raise Interrupted
        with contextlib.suppress(queue.Empty):
            self._take_master(*self._masters.get(timeout=_POLL))
        self._read_journal()
        watched = [b.process for b in self.board.beats if b.role not in (KILLED, STOPPED)]
        for process in [*self._others, *watched]:
            if not process.alive:
                raise Failed(f"{process.name} has ended by itself, status {process.exit_code}")
        self._show.refresh()

    def _read_journal(self) -> None:
        for run in self._journal.read():
            self._show.executed(run)

    def _take_master(self, at: float, data: bytes | None) -> None:
        from .view import MASTER, STANDBY, Term

        for term in self.board.terms:
            if term.until is None:
                term.until = at
                if term.beat.role == MASTER:
                    term.beat.role = STANDBY
        if data is None:
            return
        record = json.loads(data)
        beat = next((b for b in self.board.beats if record["pid"] in b.pids), None)
        if beat is None:
            raise Failed(f"a stranger is master: {record}")
        beat.role, beat.epoch = MASTER, record["epoch"]
        self.board.terms.append(Term(beat, record["epoch"], at))
        self._show.event(f"{beat.name} is master, epoch {beat.epoch}", f"bold {beat.colour}")


def main(play: type[Play], module: str, about: str | None) -> int:
    """Plays a demo with the options of the command line. Returns the exit status.

    Args:
        module: the module with which it is started: ``python -m MODULE``.
        about: the text for ``--help``.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: _signals.append(number))
    try:
        return _main(play, argparse.ArgumentParser(f"python -m {module}", description=about))
    except Interrupted:
        print("\ninterrupted; all processes have ended", file=sys.stderr)
        return 128 + _signals[0]


def _main(play: type[Play], parser: argparse.ArgumentParser) -> int:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--plain", action="store_true", help="plain lines on a terminal, too")
    play.add_options(parser)
    options = parser.parse_args()
    if missing := find_missing() + _missing_packages(play):
        print("\n".join(["The demo needs:", *missing]), file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="celery-zk-beat-demo-"))
    keep = True
    try:
        with contextlib.ExitStack() as stack:
            demo = play(stack, folder, options)
            verdict = demo.run()
        keep = not verdict.good
    except Interrupted:
        keep = False
        raise
    except (Failed, TimeoutError, RuntimeError) as exc:
        print(f"the demo failed: {exc}", file=sys.stderr)
        return 1
    finally:
        if keep:
            print(f"logs and journal are kept in {folder}")
        else:
            _remove(folder)
    if summary := demo.summary():
        print("what happened:", *summary, sep="\n")
    print(*demo.board.faults, *verdict.lost, *verdict.twice, verdict, sep="\n")
    print(MEANING, flush=True)
    return 0 if verdict.good else 1


def _remove(folder: Path) -> None:
    """Removes the folder, even if a process that is just ending still writes to it."""
    deadline = time.monotonic() + 5.0
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)


def _missing_packages(play: type[Play]) -> list[str]:
    missing = [name for name in play.packages if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [f"Python packages: {', '.join(missing)} (pip install -e '.[{play.extra}]')"]
