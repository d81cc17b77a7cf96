"""The documentation site in a browser: `make docs`, then this. Without a site that was built it is
skipped."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from example_project.processes import REPOSITORY
from tests.browser import Browser, missing_chromium

SITE = REPOSITORY / "build" / "site"


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    if not (SITE / "index.html").exists():
        pytest.skip("there is no site: make docs")
    if missing_chromium() and not os.environ.get("CI"):
        pytest.skip(missing_chromium() or "")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_site(tmp_path: Path, url: str) -> None:
    """Nothing is asked of another host, the search finds, and no page is wider than a phone."""
    with Browser(tmp_path) as browser:
        browser.resize(390)
        for page in ("commands", "failures", "python", "security", "index"):
            browser.open(f"{url}{page}.html")
            browser.wait_for("document.readyState == 'complete'")
            assert browser.run("document.documentElement.scrollWidth") == 390, page
        browser.resize(1200)
        browser.run("document.querySelector('.md-search__input').focus()")
        browser.call("Input.insertText", text="daylight saving")
        browser.wait_for_text(".md-search-result__meta", "matching document")
        loaded = browser.run("performance.getEntriesByType('resource').map((each) => each.name)")
        assert [each for each in loaded if not each.startswith((url, "data:"))] == []
        assert any("search_index" in each for each in loaded)
        assert browser.complaints == []
