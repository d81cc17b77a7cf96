"""The road that other tests hurt does what they think it does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import PATIENCE
from tests.faults import Road


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def ends(server: socket.socket) -> Iterator[tuple[Road, socket.socket, socket.socket]]:
    """A road, and the client's and the server's end of a connection over it."""
    with (
        Road(server.getsockname()[1]) as road,
        socket.create_connection(("127.0.0.1", road.port), PATIENCE) as client,
    ):
        far, _ = server.accept()
        with far:
            far.settimeout(PATIENCE)
            yield road, client, far


def silent(end: socket.socket) -> bool:
    """Whether nothing comes within a tenth of a second."""
    end.settimeout(0.1)
    try:
        end.recv(1, socket.MSG_PEEK)
    except socket.timeout:  # of its own until Python 3.10
        return True
    finally:
        end.settimeout(PATIENCE)
    return False


def test_slow(ends: tuple[Road, socket.socket, socket.socket]) -> None:
    """Both directions take the delay; what left before it was lifted arrives before the rest, and
    the end of the connection last."""
    road, client, far = ends
    road.slow(0.3)
    begun = time.monotonic()
    client.sendall(b"a")
    assert far.recv(1) == b"a"
    far.sendall(b"b")
    assert client.recv(1) == b"b"
    assert time.monotonic() - begun >= 0.6
    client.sendall(b"1")
    road.open()
    client.sendall(b"2")
    client.shutdown(socket.SHUT_WR)
    received = b""
    while more := far.recv(1024):
        received += more
    assert received == b"12"


def test_block_requests(ends: tuple[Road, socket.socket, socket.socket]) -> None:
    """Answers come, requests do not until the road is open."""
    road, client, far = ends
    road.block_requests()
    client.sendall(b"a")
    far.sendall(b"b")
    assert client.recv(1) == b"b"
    assert silent(far)
    road.open()
    assert far.recv(1) == b"a"


def test_an_end_that_closes_while_it_is_blocked(server: socket.socket) -> None:
    with Road(server.getsockname()[1]) as road:
        for _ in range(300):
            client = socket.create_connection(("127.0.0.1", road.port), PATIENCE)
            server.accept()[0].close()
            client.close()
            road.block()
            road.open()
