"""What systemd is told, on a real socket; tests/acceptance has it from a real beat."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_zk_beat import clock
from celery_zk_beat.systemd import Unit
from tests.conftest import PATIENCE

Listen = Callable[[str], socket.socket]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """systemd's side of NOTIFY_SOCKET."""
    with contextlib.ExitStack() as stack:

        def listen(address: str) -> socket.socket:
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            server.settimeout(PATIENCE)
            server.bind(address.replace("@", "\0"))
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            return server

        yield listen


def test_a_life(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready once; alive at each tick, but not more than once a second unless the status is new."""
    now = 1000.0
    monkeypatch.setattr(clock, "boottime", lambda: now)
    server = listen(f"@zk-beat-{uuid.uuid4()}")
    unit = Unit()
    unit.ticked("standby, zwei ist Löwe")
    assert server.recv(1000).decode() == "READY=1\nWATCHDOG=1\nSTATUS=standby, zwei ist Löwe"
    for _ in range(5):
        now += 0.1
        unit.ticked("standby, zwei ist Löwe")
    unit.ticked("master, epoch 7")
    assert server.recv(1000).decode() == "WATCHDOG=1\nSTATUS=master, epoch 7"
    for _ in range(15):
        now += 0.1
        unit.ticked("master, epoch 7")
    assert server.recv(1000).decode() == "WATCHDOG=1\nSTATUS=master, epoch 7"
    unit.stopping()
    assert server.recv(1000).decode() == "STOPPING=1\nSTATUS=stopping"


def test_a_status_is_one_line_of_bearable_length(listen: Listen) -> None:
    """Whatever is in it: another line would be an order, and what is too long is not taken."""
    server = listen(f"@zk-beat-{uuid.uuid4()}")
    Unit().ticked("standby, x\nMAINPID=1\ud800" + "x" * 1_000_000)
    ready, watchdog, status = server.recv(10_000).decode().split("\n")
    assert (ready, watchdog) == ("READY=1", "WATCHDOG=1")
    assert status.startswith("STATUS=standby, x?MAINPID=1?xxx")


def test_ready_is_not_lost(listen: Listen, tmp_path: Path) -> None:
    """A systemd that is behind with its reading makes nobody wait, and is told again."""
    address = str(tmp_path / "notify")
    server = listen(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"noise", address)
    unit = Unit()
    begun = time.monotonic()
    unit.ticked("master, epoch 1")
    assert time.monotonic() - begun < PATIENCE / 2
    while server.recv(1000) == b"noise":
        unit.ticked("master, epoch 1")
        if time.monotonic() - begun > PATIENCE:
            pytest.fail("not told again")


@pytest.mark.parametrize(
    "address", [None, "", "/nowhere/notify", "relative", "vsock:2:1", "x" * 200]
)
def test_no_systemd(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Nothing happens, least of all an error."""
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    unit = Unit()
    unit.ticked("master, epoch 1")
    unit.stopping()
