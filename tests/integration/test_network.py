"""A network that is really gone, with a broker on the far side of it: in a namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_zk_beat.broker import transport_options
from example_project.processes import Process, wait_until
from tests.conftest import PATIENCE

#: Seconds. The kernel gives up after a third of it.
SESSION_TIMEOUT = 2.0
OUTAGE = 1.5
#: By when the kernel has tried again: 0.2 s after the sending, 0.6, 1.4, 3.0, 6.2.
TRIED_AGAIN = 6.5

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="making a network needs root and ip (Debian: apt-get install iproute2)",
)


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


class Far:
    """A Redis server beyond a network that can be cut."""

    def __init__(self, folder: Path) -> None:
        self._name = f"zkbeat{os.getpid()}"
        self._near, self._far = f"zkb{os.getpid() % 10**6}a", f"zkb{os.getpid() % 10**6}b"
        # Of the range for tests of networks (RFC 2544); it exists in our namespace alone.
        self._here, self.host = "198.18.7.1", "198.18.7.2"
        command = ["ip", "netns", "exec", self._name, "redis-server"]
        options = ["--bind", self.host, "--port", "6379", "--protected-mode", "no", "--save", ""]
        self._server = Process(folder, "redis", command + options, cwd=folder)

    def __enter__(self) -> Far:
        ip("netns", "add", self._name)
        ip("link", "add", self._near, "type", "veth", "peer", self._far, "netns", self._name)
        ip("address", "add", f"{self._here}/30", "dev", self._near)
        ip("link", "set", self._near, "up")
        ip("-n", self._name, "address", "add", f"{self.host}/30", "dev", self._far)
        self.mend()
        # Known for good, for packets to a neighbour that cannot be found are kept elsewhere.
        far = json.loads(ip("-n", self._name, "-json", "link", "show", "dev", self._far))
        mac = far[0]["address"]
        ip("neighbour", "replace", self.host, "lladdr", mac, "dev", self._near, "nud", "permanent")
        self._server.start()
        wait_until(self._answers, PATIENCE, "Redis")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        ip("netns", "delete", self._name)

    def cut(self) -> None:
        ip("-n", self._name, "link", "set", self._far, "down")

    def mend(self) -> None:
        ip("-n", self._name, "link", "set", self._far, "up")

    def waiting(self) -> int:
        """Messages in the queue."""
        with redis.Redis(self.host) as client:
            return int(client.llen("celery"))

    def _answers(self) -> bool:
        try:
            return self.waiting() == 0
        except redis.ConnectionError:
            return False


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    with Far(tmp_path) as far:
        yield far


def publish_into_a_cut(far: Far, options: dict[str, Any]) -> float:
    """Hands a message to the kernel when the network is gone, for a while. Returns when that
    was, on the monotonic clock."""
    app = Celery("far", broker=f"redis://{far.host}/0", set_as_current=False)
    with app.connection_for_write() as connection:
        connection.transport_options = options
        producer = app.amqp.Producer(connection, auto_declare=False)
        app.send_task("in time", producer=producer, retry=False)  # declares the queue
        with redis.Redis(far.host) as client:
            client.delete("celery")
        far.cut()
        begun = time.monotonic()
        with pytest.raises(Exception, match=r"Timeout|timed out"):
            app.send_task("late", producer=producer, retry=False)
    time.sleep(OUTAGE)  # the outage itself
    far.mend()
    return begun


def test_what_the_kernel_holds_dies_with_the_session(far: Far) -> None:
    """[I4] Else it would arrive after the successor's: without our options, it does."""
    begun = publish_into_a_cut(far, transport_options("redis", SESSION_TIMEOUT))
    wait_until(lambda: time.monotonic() > begun + TRIED_AGAIN, PATIENCE, "the kernel's tries")
    assert far.waiting() == 0
    publish_into_a_cut(far, {"socket_timeout": 1.0, "socket_connect_timeout": 1.0})
    wait_until(lambda: far.waiting() == 1, PATIENCE, "the message that was late")
