"""A real RabbitMQ server on loopback, from Debian's package."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from example_project.processes import LOOPBACK, PathLike, Process, free_port
from example_project.servers import START_TIMEOUT, wait_serving

if TYPE_CHECKING:
    from typing_extensions import Self

#: Debian's own program. The wrapper on PATH changes the user and drops our environment.
_DEBIAN = "/usr/lib/rabbitmq/bin/rabbitmq-server"


def missing_rabbitmq() -> str | None:
    if _program():
        return None
    return "RabbitMQ: rabbitmq-server is not on PATH (Debian: apt-get install rabbitmq-server)"


def _program() -> str | None:
    return shutil.which(_DEBIAN) or shutil.which("rabbitmq-server")


#: In Erlang: there is an alarm as long as a file exists.
_WATCH = """spawn(fun() -> (fun Watch(Was) ->
    Is = filelib:is_regular("%s"),
    if Is =:= Was -> ok;
       Is -> rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}),
             rabbit_alarm:get_alarms(),
             [catch rabbit_reader:info(P, [state]) || P <- rabbit_networking:local_connections()],
             logger:warning("every connection knows of the alarm");
       true -> rabbit_alarm:clear_alarm({resource_limit, memory, node()})
    end,
    timer:sleep(20),
    Watch(Is)
end)(false) end).""".replace("\n", " ")


class RabbitMQ(Process):
    """A RabbitMQ server. It keeps its queues, its data and its port when it is started again."""

    def __init__(self, folder: PathLike, *, name: str = "rabbitmq") -> None:
        self.port = free_port()
        self._home = Path(folder) / name
        self._config = self._home / "rabbitmq.conf"
        node = f"{name}@{LOOPBACK}"
        nobody = str(free_port())
        # RabbitMQ insists on a node name, but no other node must reach it. So it does not listen
        # for them, and needs no epmd: Erlang would start that as a daemon which outlives it.
        alone = ["-name", node, "-dist_listen", "false", "-erl_epmd_port", nobody]
        env = {
            "HOME": str(self._home),  # for Erlang's cookie
            "ERL_FLAGS": "-start_epmd false",
            "ERL_EPMD_PORT": nobody,  # the machine may have an epmd on the usual port
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_CONF_ENV_FILE": str(self._home / "none"),  # not the machine's
            "RABBITMQ_CONFIG_FILE": str(self._config),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._home / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "none"),
            "RABBITMQ_MNESIA_BASE": str(self._home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_LOGS": "-",
            # By default Erlang's threads look for work for a while before they sleep: a fifth more
            # CPU.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            # Makes the script become the server, instead of starting it and forwarding signals.
            "RABBITMQ_ALLOW_INPUT": "1",
        }
        self._alarm = self._home / "alarm"
        command = [_program() or "", "-noinput", *alone, "-eval", _WATCH % self._alarm]
        super().__init__(folder, name, command, env=env, cwd=folder)

    def url(self) -> str:
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    def start(self) -> Self:
        """Starts it and waits until it serves.

        Raises:
            RuntimeError: it is not installed.
            TimeoutError: it does not serve; the text contains the end of its log.
        """
        if missing := missing_rabbitmq():
            raise RuntimeError(missing)
        self._home.mkdir(parents=True, exist_ok=True)
        self._alarm.unlink(missing_ok=True)
        self._config.write_text(f"listeners.tcp.1 = {LOOPBACK}:{self.port}\n")
        super().start()
        wait_serving(self, self._answers, 2 * START_TIMEOUT)  # it takes 5 s of CPU
        return self

    def set_alarm(self) -> None:
        """Sets or ends an alarm, as if its memory ran out: it blocks connections that publish."""
        since = len(self.log())
        self._alarm.touch()
        self.wait_for_log("every connection knows of the alarm", START_TIMEOUT, since=since)

    def clear_alarm(self) -> None:
        if not self._alarm.exists():
            return
        since = len(self.log())
        self._alarm.unlink()
        self.wait_for_log("alarm clear", START_TIMEOUT, since=since)

    def _answers(self) -> bool:
        """True if it greets a client."""
        try:
            with socket.create_connection((LOOPBACK, self.port), 2) as connection:
                connection.sendall(b"AMQP\0\0\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False
