"""What real beats answer over HTTP, also to clients who misbehave."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery.beat
import pytest

from example_project.processes import LOOPBACK
from example_project.servers import ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE

from .conftest import Site

#: Seconds within which an answer comes that has not to wait, on a machine with other things to do.
SOON = 5.0


class Server:
    """What a beat of `site` serves."""

    def __init__(self, site: Site, name: str = "one", **conf: Any) -> None:
        self.port = free_port()
        self.beat = site.beat(name, zk_beat_http=self.port, **conf)
        self.beat.wait_for_log("serving HTTP", PATIENCE)

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def wait(self, path: str, status: int, text: str = "") -> str:
        """The answer, once it is as wanted."""

        def wanted() -> str | None:
            found, body = self.get(path)
            return body if found == status and text in body else None

        return wait_until(wanted, PATIENCE, f"{status} of {path} with {text!r}") or ""

    def connect(self) -> socket.socket:
        return socket.create_connection((LOOPBACK, self.port), PATIENCE)

    @property
    def child(self) -> int:
        found = re.search(r"serving HTTP at \S+, process (\d+)", self.beat.log())
        assert found is not None
        return int(found[1])

    def is_open(self) -> bool:
        with contextlib.suppress(ConnectionError), self.connect():
            return True
        return False


def test_master_and_standby(site: Site) -> None:
    one = Server(site, "one")
    one.wait("/leader", 200, "ok: one is master, epoch 1\n")
    two = Server(site, "two")
    two.wait("/readyz", 200, "ok: two is a standby, one is master\n")
    assert two.get("/leader") == (503, "failed: two is a standby, one is master\n")
    for server in (one, two):
        assert server.get("/livez")[0] == 200
        status = json.loads(server.wait("/status.json", 200, '"id": "two"'))
        assert [member["id"] for member in status["members"]] == ["one", "two"]
        assert server.get("/livez", "HEAD") == (200, "")
        assert server.get("/livez", "POST")[0] == 405
    one.beat.kill()
    two.wait("/leader", 200, "ok: two is master, epoch 2\n")
    two.wait("/metrics", 200, "celery_zk_beat_elections_total 1.0\n")  # once all is loaded


def test_without_zookeeper(own_site: Site, own_zookeeper: ZooKeeper) -> None:
    """Before it is there, and after: alive, but not ready."""
    server = Server(own_site)
    assert server.get("/livez")[0] == 200
    assert server.get("/readyz")[0] == 503
    assert "did not answer within 2 s" in server.wait("/status.json", 503, "ZooKeeper at")
    own_zookeeper.start()
    server.wait("/leader", 200)
    server.wait("/status.json", 200, '"master": {"id": "one"')
    own_zookeeper.kill()
    server.wait("/readyz", 503, "failed: no connection to ZooKeeper at")
    server.wait("/leader", 503)
    away = json.loads(server.wait("/status.json", 503, '"age"'))
    assert away["age"] < PATIENCE
    assert json.loads(server.get("/page.json")[1])["status"]["master"]["id"] == "one"
    assert server.get("/livez")[0] == 200


def test_a_beat_that_is_stopped(site: Site) -> None:
    """Its child says so, and goes when it goes, so that the next beat can have the port."""
    server = Server(site)
    server.wait("/leader", 200)
    server.beat.pause()
    server.wait("/readyz", 503, "failed: the beat has not answered for 1 s\n")
    assert server.get("/leader")[0] == 503
    assert server.get("/metrics")[0] == 503
    assert not json.loads(server.get("/page.json")[1])["beat"]["answers"]
    server.beat.resume()
    server.wait("/readyz", 200)
    os.kill(server.child, signal.SIGTERM)  # as a service manager does to all of a group
    server.beat.kill()
    wait_until(lambda: not server.is_open(), PATIENCE, "the end of the child")


def test_stopping(site: Site) -> None:
    server = Server(site)
    server.wait("/leader", 200)
    assert server.beat.terminate(PATIENCE) == 0
    assert not server.is_open()
    assert "the process that serves HTTP has ended" not in server.beat.log()


def test_the_child_has_no_connections_of_the_beat(site: Site) -> None:
    """Celery's remote control has some when the child is forked, and whatever the app opened: they
    would not end when the beat closes them."""
    server = Server(site, beat_enable_remote_control=True)
    site.wait_for_run(server.beat)
    if hasattr(celery.beat, "BeatPidbox"):  # from 5.7 on
        server.beat.wait_for_log("beat pidbox: Connected", PATIENCE)
    server.wait("/status.json", 200)

    def sockets(pid: int) -> set[str]:
        found = set()
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it is closed meanwhile
                found.add(os.readlink(each))
        return {link for link in found if link.startswith("socket:")}

    shared = sockets(server.beat.pid) & sockets(server.child)
    assert not shared
    assert sockets(server.child)  # those that it serves and asks with
    assert server.beat.terminate(PATIENCE) == 0


def test_the_child_is_killed(site: Site) -> None:
    """The beat says so, and goes on."""
    server = Server(site)
    site.wait_for_run(server.beat)
    os.kill(server.child, signal.SIGKILL)
    server.beat.wait_for_log("the process that serves HTTP has ended (-9)", PATIENCE)
    site.wait_for_run(server.beat)
    assert server.beat.terminate(PATIENCE) == 0


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"GET\r\n\r\n",
    b"GET /livez HTTP/9.9\r\n\r\n",
    b"GET " + b"/" * 20000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10000 + b"\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET /\x00\xff HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\n" * 50000,
]


def half_a_request(server: Server) -> Iterator[socket.socket]:
    for _ in range(20):
        connection = server.connect()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: ")
        yield connection


def no_reading(server: Server) -> Iterator[socket.socket]:
    """Thousands of requests each, of which no answer is read."""
    for _ in range(20):
        connection = server.connect()
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"GET /page.js HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
        yield connection


def garbage(server: Server) -> Iterator[socket.socket]:
    for words in GARBAGE:
        connection = server.connect()
        connection.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            connection.sendall(words)
        yield connection


def many(server: Server) -> Iterator[socket.socket]:
    for _ in range(300):
        yield server.connect()


@pytest.mark.parametrize("misbehave", [half_a_request, no_reading, garbage, many])
def test_a_client_who_misbehaves(
    site: Site, misbehave: Callable[[Server], Iterator[socket.socket]]
) -> None:
    """Others are answered, the beat dispatches, and the log has no traceback."""
    server = Server(site)
    site.wait_for_run(server.beat)
    with contextlib.ExitStack() as stack:
        for connection in misbehave(server):
            stack.enter_context(connection)
        for path in ("/livez", "/leader", "/metrics", "/status.json", "/"):
            begun = time.monotonic()
            assert server.get(path)[0] == 200
            assert time.monotonic() - begun < SOON
        site.wait_for_run(server.beat)
    assert "Traceback" not in server.beat.log()


def run_beat(site: Site, **conf: Any) -> str:
    """A beat that cannot start: its log."""
    beat = site.beat("one", **conf)
    assert beat.wait(PATIENCE) == 1
    return beat.log()


def test_an_address_in_use(site: Site) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        log = run_beat(site, zk_beat_http=port)
    (line,) = [line for line in log.splitlines() if "zk_beat_http" in line]
    assert line.endswith(
        f"beat stops: zk_beat_http = '127.0.0.1:{port}': cannot listen there: "
        "Address already in use"
    )
    assert "Traceback" not in log


@pytest.mark.parametrize("missing", ["waitress", "prometheus_client"])
def test_a_package_is_missing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Where it is asked for, one line says what to install; elsewhere nobody needs it."""
    (tmp_path / f"{missing}.py").write_text("raise ModuleNotFoundError('not installed here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = run_beat(site, zk_beat_http=free_port())
    assert "pip install 'celery-zk-beat[http]' (not installed here)" in log
    assert "Traceback" not in log
    site.wait_for_run(site.beat("two"))
