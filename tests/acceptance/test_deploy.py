"""What docs/deploy says of beats: as units of systemd (with a socket of ours in its place), and how
long they take to stop."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from example_project.servers import REPOSITORY, Process, Redis, ZooKeeper, free_port
from tests.conftest import PATIENCE

from .conftest import Site

DEPLOY = REPOSITORY / "docs" / "deploy"
UNIT = DEPLOY / "celery-beat.service"


class Listener:
    """What a beat told systemd."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server

    def wait_for(self, line: str) -> list[str]:
        """All lines up to, and with, that one."""
        lines: list[str] = []
        while line not in lines:
            lines += self._server.recv(1000).decode().splitlines()
        return lines


StartUnit = Callable[[Site, str], tuple[Process, Listener]]


@pytest.fixture
def start_unit(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartUnit]:
    """Starts a beat of a site as systemd would."""
    with contextlib.ExitStack() as stack:

        def start(site: Site, name: str) -> tuple[Process, Listener]:
            address = f"zk-beat-{uuid.uuid4()}"
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            server.settimeout(PATIENCE)
            server.bind("\0" + address)
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + address)
            return site.beat(name), Listener(server)

        yield start


def test_ready_and_status(own_site: Site, own_zookeeper: ZooKeeper, start_unit: StartUnit) -> None:
    """Ready before ZooKeeper is; then the role, a sign of life from a standby, too, and the end."""
    one, of_one = start_unit(own_site, "one")
    lines = of_one.wait_for("STATUS=standby, ZooKeeper does not answer")
    assert lines[0] == "READY=1"
    own_zookeeper.start()
    assert "READY=1" not in of_one.wait_for("STATUS=master, epoch 1")
    two, of_two = start_unit(own_site, "two")
    of_two.wait_for("STATUS=standby, one is master")
    of_two.wait_for("WATCHDOG=1")
    assert one.terminate(PATIENCE) == 0
    assert "STOPPING=1" in of_one.wait_for("STATUS=stopping")
    of_two.wait_for("STATUS=master, epoch 2")
    of_two.wait_for("WATCHDOG=1")
    assert two.terminate(PATIENCE) == 0


def test_unit_file(tmp_path: Path) -> None:
    """systemd has nothing to say against it, on a machine where its program is there."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None and "CI" not in os.environ:
        pytest.skip("systemd-analyze is not installed")
    assert analyze is not None
    option = "--recursive-errors=no"
    if option[:-3] not in subprocess.check_output([analyze, "--help"], text=True):
        pytest.skip("systemd before 250 cannot do without what other units say")
    text = UNIT.read_text()
    assert text.count("/srv/proj/.venv/bin/celery") == 1
    celery = str(Path(sys.executable).with_name("celery"))
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/srv/proj/.venv/bin/celery", celery))
    done = subprocess.run(
        [analyze, "verify", "--man=no", option, str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_stopping_while_all_hangs(
    own_site: Site,
    own_zookeeper: ZooKeeper,
    redis_server: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ZooKeeper, the broker and a receiver of a signal: it gives all of them up in less than half
    of the time after which systemd and Kubernetes would kill it."""
    own_zookeeper.start()
    monkeypatch.setenv("RECEIVED", str(tmp_path / "received"))
    monkeypatch.setenv("DISTURB", "hang")
    http = f"127.0.0.1:{free_port()}"
    beat = own_site.beat("one", app="tests.acceptance.signals_app", zk_beat_http=http)
    own_site.wait_for_run(beat)
    own_zookeeper.pause()
    redis_server.pause()
    begun = time.monotonic()
    assert beat.terminate(PATIENCE) == 0
    took = time.monotonic() - begun
    for file, setting in (
        (UNIT, r"TimeoutStopSec=(\d+)"),
        (DEPLOY / "kubernetes.yaml", r"terminationGracePeriodSeconds: (\d+)"),
    ):
        found = re.search(setting, file.read_text())
        assert found is not None
        assert took < int(found[1]) / 2
