"""Recipes of the docs, as they are printed there, in real beats."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from example_project.servers import REPOSITORY, Process, free_port, wait_until
from tests.conftest import PATIENCE

from .conftest import Site

PRINTED = "https://hc-ping.com/your-uuid-here"


class Service:
    """What is pinged. While it hangs it takes connections, and answers none.

    Attributes:
        pings: the paths that were asked for.
        open: connections that are.
        most: that were at any time.
    """

    def __init__(self) -> None:
        self.pings: list[str] = []
        self.open = self.most = 0
        self.answers = threading.Event()
        self.answers.set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.pings.append(self.path)
                service.open += 1
                service.most = max(service.most, service.open)
                service.answers.wait()
                service.open -= 1
                with contextlib.suppress(OSError):  # it is not waited for any more
                    self.send_response(200)
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/ping"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever)
    thread.start()
    yield service
    service.answers.set()
    service.server.shutdown()
    thread.join()
    service.server.server_close()


def beat_with_switch(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> Process:
    """A beat whose app has the dead man's switch, for the entry `nightly-invoices`."""
    text = (REPOSITORY / "docs" / "monitoring.md").read_text()
    found = re.search(r"```python\n# proj/heartbeat.py\n(.*?)```", text, re.DOTALL)
    assert found is not None
    assert PRINTED in found[1]
    (folder / "heartbeat.py").write_text(found[1].replace(PRINTED, url))
    app = "from tests.acceptance.app import app as app\nimport heartbeat as heartbeat\n"
    (folder / "watched_app.py").write_text(app)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    site.conf["beat_schedule"] = {
        name: {"task": name, "schedule": 0.2} for name in ("nightly-invoices", "often")
    }
    return site.beat("one", app="watched_app")


def test_a_dead_mans_switch(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """A ping for a run of the entry that is watched, and for no other; none once the beat is
    gone."""
    beat = beat_with_switch(site, tmp_path, monkeypatch, service.url)
    wait_until(lambda: len(service.pings) > 3, PATIENCE, "pings")
    assert beat.terminate(PATIENCE) == 0
    history = site.history()
    runs = [message for message in history if message.entry == "nightly-invoices"]
    assert len(service.pings) <= len(runs) < len(history)
    assert set(service.pings) == {"/ping"}
    assert "no ping" not in beat.log()


def test_a_service_that_hangs(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """It has one ping to hang on to, runs are on time, and the beat ends as soon as ever."""
    service.answers.clear()
    beat = beat_with_switch(site, tmp_path, monkeypatch, service.url)
    wait_until(lambda: service.open, PATIENCE, "a ping")
    seen = len(site.history())
    history = site.wait(lambda history: len(history) > seen + 20, "runs")
    behind = datetime.now(timezone.utc) - history[-1].due
    assert behind.total_seconds() < 5.0
    assert service.most == 1
    begun = time.monotonic()
    assert beat.terminate(PATIENCE) == 0
    assert time.monotonic() - begun < 5.0
    assert "a receiver of the signal" not in beat.log()


def test_a_service_that_is_not_there(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = beat_with_switch(site, tmp_path, monkeypatch, f"http://127.0.0.1:{free_port()}")
    beat.wait_for_log("no ping for nightly-invoices: <urlopen error", PATIENCE)
    site.wait_for_run(beat)
