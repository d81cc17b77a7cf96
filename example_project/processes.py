"""Starts processes, sends them signals, watches them, and ends them in every case.

No process outlives the program that started it. Leaving a ``with`` block, or :meth:`Process.stop`,
ends the whole process group. If the program is killed (``kill -9``), the kernel ends the process
(``PR_SET_PDEATHSIG``, Linux).

All timeouts are seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Callable, TypeVar, Union

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
PathLike = Union[str, "os.PathLike[str]"]

REPOSITORY = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
_POLL = 0.02

#: The parent-death signal comes when the *thread* that forked ends. So one thread, which lives as
#: long as the program, starts all processes for all threads.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="process-spawner")
#: Below Linux's range of ephemeral ports: a client that keeps trying to reach a dead server on an
#: ephemeral port may get that very port and connect to itself.
PORTS = range(10240, 32768)
#: Ports that :func:`free_port` does not return (any more).
given_ports: set[int] = set()


def free_port() -> int:
    """Returns a TCP port of :data:`PORTS` that nobody listens on; never the same twice in one
    program."""
    while True:
        port = random.choice(PORTS)
        if port in given_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            given_ports.add(port)
            return port


def wait_until(condition: Callable[[], T | None], timeout: float, what: str) -> T:
    """Calls `condition` every 20 ms. Returns its first true value.

    Raises:
        TimeoutError: none came within `timeout`; the text says that it waited for `what`.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(_POLL)
    return value


class Process:
    """One process in a session of its own, with a log file that survives its restarts.

    Args:
        name: its name in errors; its output is appended to ``<folder>/<name>.log``.
        args: the program and its arguments.
        env: variables to add to this program's environment, or, with the value None, to remove.
        cwd: the current directory; by default the root of the repository.
    """

    def __init__(
        self,
        folder: PathLike,
        name: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: PathLike = REPOSITORY,
    ) -> None:
        self.folder = Path(folder)
        self.name = name
        self.args = list(args)
        self.env = {"PYTHONUNBUFFERED": "1", **(env or {})}
        self.cwd = Path(cwd)
        self.log_path = self.folder / f"{name}.log"
        self._popen: subprocess.Popen[bytes] | None = None
        self._group_ended = False
        self._mark = 0

    def __repr__(self) -> str:
        if self._popen is None:
            return f"<{type(self).__name__} {self.name}: not started>"
        state = "alive" if self.alive else f"ended with {self.exit_code}"
        return f"<{type(self).__name__} {self.name}: pid {self.pid}, {state}>"

    def start(self) -> Self:
        """Starts it, or starts it again after it has ended."""
        if self.alive:
            raise RuntimeError(f"{self.name} is running already (pid {self.pid})")
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark = len(self.log())
        _spawner.submit(self._spawn).result()
        return self

    def _spawn(self) -> None:
        env = {key: value for key, value in {**os.environ, **self.env}.items() if value is not None}
        # Not with preexec_fn: it runs Python in a fork of a program that may have many threads.
        setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
        guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                guard + self.args,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self.cwd,
                start_new_session=True,
            )
            self._group_ended = False

    @property
    def pid(self) -> int:
        if self._popen is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """True if it runs, also while SIGSTOP holds it."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs (or before it ran); ``-N`` when signal N ended it."""
        return self._popen.poll() if self._popen else None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to this process, not to its children."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """Sends SIGKILL to this process alone, as the out-of-memory killer does. Waits for its
        end."""
        self.send(signal.SIGKILL)
        self.wait(10)

    def terminate(self, timeout: float = 10) -> int:
        """Sends SIGTERM, and after `timeout` SIGKILL. Returns the exit code."""
        self.send(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except TimeoutError:
            self.kill()
            return self.wait(10)

    def pause(self) -> None:
        """Sends SIGSTOP: the process hangs, with all its connections open."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def wait(self, timeout: float) -> int:
        """Waits for its end. Returns its exit code.

        Raises:
            TimeoutError: it still runs after `timeout`.
        """
        if self._popen is None:
            raise RuntimeError(f"{self.name} has not been started")
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{self.name} still runs after {timeout:g} s{self._tail()}"
            ) from None

    def log(self) -> str:
        """Returns all that it has written since its first start."""
        try:
            return self.log_path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for_log(
        self,
        pattern: str | re.Pattern[str],
        timeout: float = 10,
        *,
        since: int | None = None,
    ) -> str:
        """Waits until the log holds `pattern` (plain text, or a compiled regular expression).

        Args:
            since: how many characters of the log to skip; by default all before the last start.

        Returns:
            the line with the pattern.

        Raises:
            TimeoutError: it is not there after `timeout`, or the process has ended without it.
        """
        regex = re.compile(re.escape(pattern)) if isinstance(pattern, str) else pattern
        since = self._mark if since is None else since

        deadline = time.monotonic() + timeout
        while True:
            # Before reading the log: otherwise we would miss the last lines of a process that ends.
            alive, late = self.alive, time.monotonic() > deadline
            text = self.log()
            found = regex.search(text, since)
            if found:
                end = text.find("\n", found.end())
                return text[text.rfind("\n", 0, found.start()) + 1 : end if end >= 0 else None]
            if late or not alive:
                why = f"not within {timeout:g} s" if alive else f"ended with {self.exit_code}"
                raise TimeoutError(
                    f"{self.name} never logged {regex.pattern!r}: {why}{self._tail()}"
                )
            time.sleep(_POLL)

    def _tail(self, lines: int = 20) -> str:
        text = "\n".join(self.log()[self._mark :].splitlines()[-lines:])
        return f"; the last lines of {self.log_path}:\n{text or '(empty)'}\n"

    def stop(self) -> None:
        """Ends the whole process group at once, in every state. Idempotent."""
        if self._popen is not None and not self._group_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait(10)
            self._group_ended = True  # Another process group may get its number now.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
