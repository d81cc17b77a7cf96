"""Names of ZooKeeper servers: what they stand for, and what is said of those that lead nowhere."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_zk_beat import ConnectTimeout, MasterElection
from celery_zk_beat.log import LOGGERS
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE, TICK_TIME

Candidate = Callable[..., MasterElection]

#: As a service of Kubernetes is: one name for several servers.
NAME = "zookeeper.test"
SILENT, SERVER = ("127.0.0.1", "127.0.0.2"), "127.0.0.3"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the name stands for; may be changed."""
    addresses: list[str] = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != NAME:
            return resolve(host, *args, **kwargs)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [each for ip in addresses for each in resolve(ip, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return addresses


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ZooKeeper]:
    """On an address of its own; on two others somebody accepts connections and says nothing."""
    config = {"clientPortAddress": SERVER}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ZooKeeper(tmp_path, tick_time=TICK_TIME, config=config))
        for ip in SILENT:
            listener = stack.enter_context(socket.create_server((ip, server.port), backlog=50))
            listener.setblocking(False)
        server.start(wait=False)
        wait_until(lambda: answers(server), PATIENCE, "ZooKeeper")
        yield server


def answers(server: ZooKeeper) -> bool:
    address = SERVER, server.port
    with contextlib.suppress(OSError), socket.create_connection(address, 1.0) as connection:
        # It says that it is ok before it takes sessions.
        connection.sendall(b"srvr")
        with connection.makefile("rb") as answer:
            return b"Mode:" in answer.read()
    return False


def test_one_name_of_several_servers(
    candidate: Candidate, server: ZooKeeper, addresses: list[str]
) -> None:
    """Each has its part of the session time-out, as if each had a name: two that are silent do not
    take the whole of it twice."""
    addresses += [*SILENT, SERVER]
    for number in range(3):  # they are tried in any order
        begun = time.monotonic()
        one = candidate(f"one{number}", f"{NAME}:{server.port}", session_timeout=9.0)
        one.start(PATIENCE)
        assert one.wait(PATIENCE)
        assert time.monotonic() - begun < 9.0
        one.stop()


def test_a_name_gets_another_address(
    candidate: Candidate, server: ZooKeeper, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGERS)
    one = candidate("one", f"{NAME}:{server.port}", session_timeout=2.0)
    one.start()
    wait_until(lambda: "waiting for it" in caplog.text, PATIENCE, "a line")
    trouble = f"({NAME} does not resolve: Name or service not known: is hosts right?)"
    assert trouble in caplog.text
    addresses.append(SERVER)
    assert one.wait(PATIENCE)
    assert one.session.servers.trouble == ""


def test_a_server_that_refuses(candidate: Candidate, addresses: list[str]) -> None:
    """Unlike one that is silent."""
    port = free_port()
    addresses.append("127.0.0.1")
    says = f"{NAME}:{port} (127.0.0.1) refuses connections: is hosts right?"
    with pytest.raises(ConnectTimeout) as caught:
        candidate("one", f"{NAME}:{port}").start(timeout=1.0)
    assert says in str(caught.value)
    with (
        pytest.raises(ConnectTimeout) as caught,
        connected(f"127.0.0.1:{port},nowhere.invalid", 1.0, 1.0, lambda: None),
    ):
        pass
    assert f"127.0.0.1:{port} refuses connections" in str(caught.value)
    assert "nowhere.invalid does not resolve" in str(caught.value)
    silent = pytest.raises(ConnectTimeout, match="is it running, and is this its address")
    with socket.create_server(("127.0.0.1", port)), silent:
        candidate("two", f"{NAME}:{port}").start(timeout=1.0)
