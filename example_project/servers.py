"""Real servers and Celery processes on loopback, for the demos and the tests.

Each is a :class:`~.processes.Process`: it can be started, killed, paused, resumed and stopped, and
has a log. All timeouts are seconds.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from .processes import LOOPBACK, REPOSITORY, PathLike, Process, free_port, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "LOOPBACK",
    "REPOSITORY",
    "Ensemble",
    "MariaDB",
    "PostgreSQL",
    "Process",
    "Redis",
    "ZooKeeper",
    "celery_beat",
    "celery_worker",
    "find_missing",
    "free_port",
    "missing_mariadb",
    "missing_postgresql",
    "wait_until",
]

START_TIMEOUT = 30.0


def find_missing() -> list[str]:
    """Returns what must be installed before servers can start, a line each; empty if nothing is
    missing."""
    return [line for line in (_missing_zookeeper(), _missing_redis()) if line]


def _missing_zookeeper() -> str | None:
    missing = []
    if not shutil.which("java"):
        missing.append("java is not on PATH")
    if not _zookeeper_classpath():
        missing.append("zookeeper.jar is not in /usr/share/java")
    if not missing:
        return None
    return (
        f"ZooKeeper: {', '.join(missing)} (Debian: apt-get install zookeeper default-jre-headless; "
        "elsewhere: set ZOOKEEPER_CLASSPATH to '<unpacked release>/lib/*')"
    )


def _missing_redis() -> str | None:
    if shutil.which("redis-server"):
        return None
    return "Redis: redis-server is not on PATH (Debian: apt-get install redis-server)"


def _zookeeper_classpath() -> str:
    if given := os.environ.get("ZOOKEEPER_CLASSPATH"):
        return given
    # Netty's codecs are needed for TLS, and zookeeper.jar does not name them.
    names = ("zookeeper.jar", "slf4j-simple.jar", "netty-codec.jar", "netty-resolver.jar")
    jars = [Path("/usr/share/java") / name for name in names]
    return ":".join(str(jar) for jar in jars if jar.exists()) if jars[0].exists() else ""


class ZooKeeper(Process):
    """A ZooKeeper server. It keeps its data and its port when it is started again.

    Args:
        tick_time: milliseconds. ZooKeeper grants session time-outs of 2 to 20 ticks.
        servers: ``server.N`` lines of an ensemble: ``host:port:port`` by number.
        my_id: this server's number among `servers`.
        config: further lines of ``zoo.cfg``. They replace lines with the same key.
        java: further options for Java.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        name: str = "zookeeper",
        tick_time: int = 500,
        port: int | None = None,
        servers: Mapping[int, str] | None = None,
        my_id: int = 1,
        config: Mapping[str, object] | None = None,
        java: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        home = Path(folder) / name
        self._config: dict[str, object] = {
            "dataDir": home,
            "clientPort": self.port,
            "clientPortAddress": LOOPBACK,
            "tickTime": tick_time,
            "initLimit": 20,
            "syncLimit": 6,
            "maxClientCnxns": 0,
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "srvr,mntr,cons,ruok",
            "quorumListenOnAllIPs": "false",
            **{f"server.{number}": address for number, address in (servers or {}).items()},
            **(config or {}),
        }
        self._my_id = my_id
        command = ["java", "-Xmx640m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        log = "-Dorg.slf4j.simpleLogger"
        command += [f"{log}.showDateTime=true", f"{log}.dateTimeFormat=HH:mm:ss.SSS", *java]
        command += ["-cp", _zookeeper_classpath()]
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        super().__init__(folder, name, [*command, main, str(home / "zoo.cfg")], cwd=folder)

    @property
    def hosts(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self, *, wait: bool = True) -> Self:
        """Starts it and, if `wait`, waits until it serves.

        Raises:
            RuntimeError: Java or ZooKeeper is not installed.
            TimeoutError: it does not serve; the text contains the end of its log.
        """
        if missing := _missing_zookeeper():
            raise RuntimeError(missing)
        home = Path(str(self._config["dataDir"]))
        home.mkdir(parents=True, exist_ok=True)
        (home / "myid").write_text(f"{self._my_id}\n")
        lines = [f"{key}={value}\n" for key, value in self._config.items()]
        (home / "zoo.cfg").write_text("".join(lines))
        super().start()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Waits until it serves clients, alone or as a member of a quorum."""
        wait_serving(self, lambda: bool(self.mode), timeout)

    @property
    def mode(self) -> str:
        """``standalone``, ``leader`` or ``follower``; empty if it does not serve."""
        try:
            found = re.search(r"^Mode: (\w+)", self.four_letter("srvr"), re.MULTILINE)
        except OSError:
            return ""
        return found[1] if found else ""

    def four_letter(self, word: str, timeout: float = 2) -> str:
        """Returns the answer to a four-letter word.

        Raises:
            OSError: it does not answer within `timeout`.
        """
        return _ask(self.port, word.encode(), timeout).decode()

    def restart(self) -> Self:
        """Kills it and starts it on the same port with the same data."""
        self.stop()
        return self.start()


class Ensemble:
    """ZooKeeper servers that form a quorum."""

    def __init__(
        self,
        folder: PathLike,
        size: int = 3,
        tick_time: int = 500,
        config: Mapping[str, object] | None = None,
    ) -> None:
        numbers = range(1, size + 1)
        peers = {n: f"{LOOPBACK}:{free_port()}:{free_port()}" for n in numbers}
        self.servers = [
            ZooKeeper(
                folder,
                name=f"zookeeper-{n}",
                tick_time=tick_time,
                servers=peers,
                my_id=n,
                config=config,
            )
            for n in numbers
        ]

    @property
    def hosts(self) -> str:
        return ",".join(server.hosts for server in self.servers)

    def start(self) -> Self:
        """Starts all servers and waits until each of them serves."""
        try:
            for server in self.servers:
                server.start(wait=False)
            for server in self.servers:
                server.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def leader(self, timeout: float = START_TIMEOUT) -> ZooKeeper:
        """Returns the leader. Waits while the servers elect one."""

        def leading() -> ZooKeeper | None:
            return next((s for s in self.servers if s.alive and s.mode == "leader"), None)

        return wait_until(leading, timeout, "a leader of the ensemble")

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Redis(Process):
    """A Redis server that stores nothing on disk."""

    def __init__(self, folder: PathLike, *, name: str = "redis", port: int | None = None) -> None:
        self.port = port or free_port()
        args = ["redis-server", "--port", str(self.port), "--bind", LOOPBACK]
        args += ["--save", "", "--appendonly", "no"]
        super().__init__(folder, name, args, cwd=folder)

    def url(self, db: int = 0) -> str:
        return f"redis://{LOOPBACK}:{self.port}/{db}"

    def start(self) -> Self:
        """Starts it and waits until it answers.

        Raises:
            RuntimeError: it is not installed.
            TimeoutError: it does not answer; the text contains the end of its log.
        """
        if missing := _missing_redis():
            raise RuntimeError(missing)
        super().start()
        wait_serving(self, self._answers, START_TIMEOUT)
        return self

    def _answers(self) -> bool:
        try:
            return _ask(self.port, b"PING\r\nQUIT\r\n", 2).startswith(b"+PONG")
        except OSError:
            return False


def missing_postgresql() -> str | None:
    """Returns what must be installed before :class:`PostgreSQL` can start; None if nothing is
    missing."""
    if _postgresql_programs() is None:
        return "PostgreSQL: there is no initdb (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        return "PostgreSQL: does not run as root, and setpriv is not on PATH"
    return None


def _postgresql_programs() -> Path | None:
    """Returns the folder of the newest PostgreSQL. Debian does not put it on PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = max(debian, key=lambda path: float(path.parts[-3]), default=None)
    on_path = shutil.which("initdb")
    return found.parent if found else Path(on_path).resolve().parent if on_path else None


class PostgreSQL(Process):
    """A PostgreSQL server. It keeps its databases and its port when it is started again. Everybody
    on loopback is its superuser.

    It refuses to run as root. If we are root, it runs as nobody, with one right of root: to reach a
    folder below one that only root may read.
    """

    def __init__(self, folder: PathLike, *, name: str = "postgresql") -> None:
        self.port = free_port()
        self._home = Path(folder) / name
        programs = _postgresql_programs() or Path()
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "dynamic_shared_memory_type": "mmap",  # in its folder, which is removed in the end
        }
        command = [str(programs / "postgres"), "-D", str(self._home)]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        self._initdb = [*_as_nobody(), str(programs / "initdb"), "-D", str(self._home)]
        self._initdb += ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        super().__init__(folder, name, [*_as_nobody(), *command], cwd=folder)

    def env_of(self, database: str = "postgres") -> dict[str, str]:
        """Returns the environment variables for clients that use libpq."""
        return {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
        }

    def start(self) -> Self:
        """Starts it and waits until it serves.

        Raises:
            RuntimeError: it is not installed, or cannot make its folder.
            TimeoutError: it does not serve; the text holds the end of its log.
        """
        if missing := missing_postgresql():
            raise RuntimeError(missing)
        if not self._home.exists():
            _make_home("PostgreSQL", self._home, self._initdb)
        super().start()
        try:
            self.wait_for_log("database system is ready to accept connections", START_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends it at once. Its children have process groups of their own, so the server itself has
        to end them."""
        if self.alive:
            self.send(signal.SIGQUIT)
            with contextlib.suppress(TimeoutError):
                self.wait(5)
        super().stop()


def missing_mariadb() -> str | None:
    """Returns what must be installed before :class:`MariaDB` can start; None if nothing is
    missing."""
    if not _mariadb_program() or not shutil.which("mariadb-install-db"):
        return "MariaDB: there is no mariadbd (Debian: apt-get install mariadb-server-core)"
    if not shutil.which("my_print_defaults"):  # mariadb-install-db needs it
        return "MariaDB: no my_print_defaults (Debian: apt-get install mariadb-client-core)"
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        return "MariaDB: does not run as root, and setpriv is not on PATH"
    return None


def _mariadb_program() -> str | None:
    """Returns its path. Debian puts it into a folder that is only on root's PATH."""
    return shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")


class MariaDB(Process):
    """A MariaDB server. It keeps its databases and its port when it is started again. Its user
    `root` has no password; its socket is in its folder.

    If we are root, it runs as nobody: see :class:`PostgreSQL`.
    """

    def __init__(self, folder: PathLike, *, name: str = "mariadb") -> None:
        self.port = free_port()
        self._home = Path(folder) / name
        settings = {
            "datadir": self._home,
            "tmpdir": self._home,
            "bind-address": LOOPBACK,
            "port": self.port,
            "socket": "mariadb.sock",  # relative to datadir: the whole path may be too long
            "pid-file": "mariadb.pid",
            "skip-log-bin": 1,
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-buffer-pool-size": "32M",
            "performance-schema": 0,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        command = [*_as_nobody(), _mariadb_program() or "mariadbd", "--no-defaults", *options]
        self._install = [*_as_nobody(), "mariadb-install-db", "--no-defaults", "--skip-test-db"]
        self._install += [f"--datadir={self._home}", "--auth-root-authentication-method=normal"]
        super().__init__(folder, name, command, cwd=folder)

    def env_of(self, database: str = "mysql") -> dict[str, str]:
        """Returns the environment variables that the settings of the tests read."""
        return {
            "MYSQL_HOST": LOOPBACK,
            "MYSQL_TCP_PORT": str(self.port),
            "MYSQL_DATABASE": database,
        }

    def start(self) -> Self:
        """Starts it and waits until it serves.

        Raises:
            RuntimeError: it is not installed, or cannot make its folder.
            TimeoutError: it does not serve; the text holds the end of its log.
        """
        if missing := missing_mariadb():
            raise RuntimeError(missing)
        if not self._home.exists():
            _make_home("MariaDB", self._home, self._install)
        super().start()
        try:
            self.wait_for_log("ready for connections", START_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        return self


def _as_nobody() -> list[str]:
    """Returns what to put before a command so that it runs as nobody; nothing if we are not
    root."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    return [
        "setpriv",
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--pdeathsig=KILL",  # again: a change of the user removes it
        "--",
    ]


def _make_home(name: str, home: Path, command: Sequence[str]) -> None:
    """Makes the folder of a server's databases. `command` fills it."""
    home.mkdir(parents=True)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
    made = subprocess.run(command, cwd=home.parent, capture_output=True, text=True)
    if made.returncode != 0:
        raise RuntimeError(f"{name}: no databases can be made: {made.stdout}{made.stderr}")


def _ask(port: int, question: bytes, timeout: float) -> bytes:
    """Returns what the server sends until it closes the connection."""
    with socket.create_connection((LOOPBACK, port), timeout) as connection:
        connection.sendall(question)
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer


def wait_serving(server: Process, serves: Callable[[], bool], timeout: float) -> None:
    try:
        wait_until(lambda: not server.alive or serves(), timeout, f"{server.name} to serve")
        if not server.alive:
            raise TimeoutError(f"{server.name} ended with {server.exit_code}{server._tail()}")
    except BaseException:
        server.stop()
        raise


Environment = Mapping[str, Optional[str]]


def celery_beat(
    folder: PathLike,
    name: str = "beat",
    app: str = "example_project.app",
    *,
    env: Environment | None = None,
    args: Sequence[str] = (),
) -> Process:
    """Makes a ``celery beat`` with our scheduler. Does not start it."""
    command = ["-A", app, "beat", "-S", "zookeeper", "--pidfile=", "-l", "INFO", *args]
    return _celery(folder, name, command, env)


def celery_worker(
    folder: PathLike,
    name: str = "worker",
    app: str = "example_project.app",
    *,
    env: Environment | None = None,
    args: Sequence[str] = (),
) -> Process:
    """Makes a ``celery worker`` that runs one task at a time. Does not start it.

    `args` may say ``-P prefork``.
    """
    command = ["-A", app, "worker", "-n", f"{name}@%h", "-l", "INFO"]
    # Not both: gevent's patches are made for the first, and the pool is the last.
    command += [] if {"-P", "--pool"} & {*args} else ["--pool", "solo"]
    command += ["--without-mingle", "--without-gossip", *args]
    return _celery(folder, name, command, env)


def _celery(
    folder: PathLike, name: str, command: Sequence[str], env: Environment | None
) -> Process:
    # A developer's own settings must not affect what we start.
    strange = {key: None for key in os.environ if key.startswith(("CELERY_", "ZK_BEAT_"))}
    args = [sys.executable, "-m", "celery", *command]
    return Process(folder, name, args, env={**strange, **(env or {})})
