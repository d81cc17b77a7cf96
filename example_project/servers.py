"""Real servers and Celery processes on loopback, for the demo and the tests.

Each is a :class:`~.processes.Process`: start, kill, pause, resume, stop, and a log to look into.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from .processes import LOOPBACK, REPOSITORY, Process, free_port, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

    Environment = Mapping[str, str | None]

__all__ = [
    "REPOSITORY",
    "Process",
    "Redis",
    "ZooKeeper",
    "celery_beat",
    "celery_worker",
    "find_missing",
    "free_port",
    "wait_until",
]

START_TIMEOUT = 30.0  # Seconds.
_ZOO_CFG = """\
dataDir={home}
clientPort={port}
clientPortAddress={host}
tickTime={tick_time}
maxClientCnxns=0
admin.enableServer=false
4lw.commands.whitelist=srvr
"""


def find_missing() -> list[str]:
    """What must be installed before the servers can start, a line each; empty when all is there."""
    missing = []
    if not shutil.which("java") or not _zookeeper_classpath():
        missing.append(
            "ZooKeeper (Debian: apt-get install zookeeper default-jre-headless; elsewhere: java on "
            "PATH, and ZOOKEEPER_CLASSPATH set to '<unpacked release>/lib/*')"
        )
    if not shutil.which("redis-server"):
        missing.append("Redis: redis-server on PATH (Debian: apt-get install redis-server)")
    return missing


def _zookeeper_classpath() -> str:
    if given := os.environ.get("ZOOKEEPER_CLASSPATH"):
        return given
    jars = [Path("/usr/share/java") / name for name in ("zookeeper.jar", "slf4j-simple.jar")]
    return ":".join(str(jar) for jar in jars if jar.exists()) if jars[0].exists() else ""


class ZooKeeper(Process):
    """A ZooKeeper server; its data and port stay the same from start to start.

    Args:
        tick_time: milliseconds; session time-outs are bounded to 2 to 20 ticks.
    """

    def __init__(self, folder: Path, *, tick_time: int = 500) -> None:
        self.port = free_port()
        self.hosts = f"{LOOPBACK}:{self.port}"
        home = folder / "zookeeper"
        home.mkdir(parents=True, exist_ok=True)
        config = home / "zoo.cfg"
        config.write_text(
            _ZOO_CFG.format(home=home, port=self.port, host=LOOPBACK, tick_time=tick_time)
        )
        # Perf data would be left behind outside the folder.
        java = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        java += ["-XX:-UsePerfData", "-cp", _zookeeper_classpath()]
        log = "-Dorg.slf4j.simpleLogger"
        java += [f"{log}.showDateTime=true", f"{log}.dateTimeFormat=HH:mm:ss.SSS"]
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        super().__init__(folder, "zookeeper", [*java, main, str(config)], cwd=folder)

    def start(self) -> Self:
        """Starts it and waits until it serves.

        Raises:
            TimeoutError: it does not serve; the text holds the end of its log.
        """
        super().start()
        _wait_serving(self, lambda: b"Mode: " in _ask(self.port, b"srvr"))
        return self

    def restart(self) -> Self:
        """Kills it and starts it on the same port with the same data."""
        self.stop()
        return self.start()


class Redis(Process):
    """A Redis server that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        args = ["redis-server", "--port", str(self.port), "--bind", LOOPBACK]
        args += ["--save", "", "--appendonly", "no"]
        super().__init__(folder, "redis", args, cwd=folder)

    def url(self, db: int = 0) -> str:
        return f"redis://{LOOPBACK}:{self.port}/{db}"

    def start(self) -> Self:
        """Starts it and waits until it answers.

        Raises:
            TimeoutError: it does not answer; the text holds the end of its log.
        """
        super().start()
        _wait_serving(self, lambda: _ask(self.port, b"PING\r\nQUIT\r\n").startswith(b"+PONG"))
        return self


def _ask(port: int, question: bytes) -> bytes:
    """What the server says until it hangs up; nothing if it cannot be reached."""
    answer = b""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
            connection.sendall(question)
            while more := connection.recv(65536):
                answer += more
    except OSError:
        pass
    return answer


def _wait_serving(server: Process, serves: Callable[[], bool]) -> None:
    try:
        wait_until(lambda: not server.alive or serves(), START_TIMEOUT, f"{server.name} to serve")
        if not server.alive:
            raise TimeoutError(f"{server.name} ended, status {server.exit_code}{server.tail()}")
    except BaseException:
        server.stop()
        raise


def celery_beat(
    folder: Path,
    name: str = "beat",
    app: str = "example_project.app",
    *,
    env: Environment | None = None,
    args: Sequence[str] = (),
) -> Process:
    """A ``celery beat`` on our scheduler, not yet started."""
    command = ["-A", app, "beat", "-S", "zookeeper", "--pidfile=", "-l", "INFO", *args]
    return _celery(folder, name, command, env)


def celery_worker(
    folder: Path,
    name: str = "worker",
    app: str = "example_project.app",
    *,
    env: Environment | None = None,
    args: Sequence[str] = (),
) -> Process:
    """A ``celery worker`` that runs one task at a time, not yet started.

    Of options given twice, Celery takes the last, so `args` may say ``--pool prefork``.
    """
    command = ["-A", app, "worker", "-n", f"{name}@%h", "--pool", "solo", "-l", "INFO"]
    command += ["--without-mingle", "--without-gossip", *args]
    return _celery(folder, name, command, env)


def _celery(folder: Path, name: str, command: Sequence[str], env: Environment | None) -> Process:
    # A developer's own settings must not reach what we start.
    strange = {key: None for key in os.environ if key.startswith(("CELERY_", "ZK_BEAT_"))}
    args = [sys.executable, "-m", "celery", *command]
    return Process(folder, name, args, env={**strange, **(env or {})})
