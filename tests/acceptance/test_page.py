"""The status page of real beats, in a real browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from kazoo.client import KazooClient

from celery_zk_beat.paths import Paths
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import Process, ZooKeeper, free_port, wait_until
from tests.browser import Browser, missing_chromium
from tests.conftest import LONG_TIMEOUT, PATIENCE
from tests.history import all_headers
from tests.integration.test_outcomes import Worker

from .conftest import Site

HOSTILE = [
    "<img src=x onerror=\"document.title='run'\">",
    "</script><script>document.title='run'</script>",
    "\u202egnp.exe\x1b[31m\x00",
    "x" * 300,
]
#: The texts on the page that are hard to read: less than 4.5 to 1 against what is behind them.
UNREADABLE = """
(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const { backgroundColor } = getComputedStyle(node);
    return parts(backgroundColor)[3] === 0 ? behind(node.parentElement) : backgroundColor;
  };
  return Array.from(document.querySelectorAll("body *"))
    .filter((node) => node.offsetParent && node.firstChild?.nodeType === 3)
    .filter((node) => {
      const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    })
    .map((node) => `${node.tagName}.${node.className}: ${node.textContent}`);
})()
"""
#: What the page says of the beats' guards.
GUARDS = """
Array.from(document.querySelectorAll("#beats li"), (card) =>
  `${card.querySelector("bdi").innerText}: ${card.innerText.match(/Guard\\s+(.*)/)[1]}`)
"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"


@pytest.fixture(scope="module")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    missing = missing_chromium()
    if missing and not os.environ.get("CI"):
        pytest.skip(missing)
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(_browser: Browser) -> Browser:
    _browser.open("about:blank")
    _browser.complaints.clear()
    _browser.resize(1200)
    _browser.prefer("light")
    return _browser


def open_page(browser: Browser, site: Site, name: str, **conf: Any) -> Process:
    port = free_port()
    beat = site.beat(name, zk_beat_http=port, **conf)
    beat.wait_for_log("serving HTTP", PATIENCE)
    browser.open(f"http://127.0.0.1:{port}/")
    return beat


def test_how_it_looks(site: Site, browser: Browser) -> None:
    """Names that hold HTML stay text, nothing is wider than a phone, and all can be read, in the
    light and in the dark."""
    site.schedule(**dict.fromkeys(HOSTILE, 2.0), often=0.5)
    open_page(browser, site, "one", zk_beat_id="<b>one</b>")
    browser.wait_for_text("#verdict", "<b>one</b> is master")
    browser.wait_for("document.querySelectorAll('#upcoming tr').length === 5")
    browser.wait_for("document.querySelectorAll('#recent tr').length > 4")
    browser.run("document.querySelector('#recent-all').click()")
    site.zk_beat("pause", "often")
    browser.wait_for("parseInt(document.querySelector('#paused td:last-child')?.innerText) >= 1")
    site.zk_beat("resume", "--skip", "often")
    browser.wait_for_text(".struck .tag", "skipped")

    assert browser.run("document.title").startswith("<b>one</b> is master")
    assert browser.run("document.querySelectorAll('main b, main img, main script').length") == 0
    names = browser.run(
        "Array.from(document.querySelectorAll('#upcoming .entry'), e => e.innerText)"
    )
    assert {HOSTILE[0], HOSTILE[1], r"\u202egnp.exe\u001b[31m\u0000"} <= set(names)
    for entry in range(5):  # the next day of each, whatever its name
        browser.run(f"document.querySelectorAll('#upcoming summary')[{entry}].click()")
    browser.wait_for("document.querySelectorAll('#upcoming .day li').length === 250")

    assert browser.run(UNREADABLE) == []
    assert min(browser.run(BACKGROUND)) > 230
    browser.prefer("dark")
    assert browser.run(UNREADABLE) == []
    assert max(browser.run(BACKGROUND)) < 40
    for width in (320, 375):
        browser.resize(width)
        assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.complaints == []


def test_it_updates_by_itself(site: Site, browser: Browser) -> None:
    """After a failover it shows the new master, and what was selected still is; when its own beat
    is gone it says so, and marks what it shows as old."""
    one = site.beat("one")
    one.wait_for_log("is master", PATIENCE)
    two = open_page(browser, site, "two")
    browser.wait_for_text("#verdict", "one is master")
    browser.wait_for("document.querySelectorAll('#beats li').length === 2")
    browser.wait_for_text("#live", "live")
    browser.run("getSelection().selectAllChildren(document.querySelectorAll('#beats bdi')[1])")
    browser.resize(1200, 300)
    browser.run("scrollTo(0, 20)")

    one.kill()
    browser.wait_for_text("#verdict", "two is master")
    browser.wait_for("document.querySelectorAll('#beats li').length === 1")
    assert browser.run("getSelection().toString()") == "two"
    assert browser.run("scrollY") == 20
    # The new master writes it down after it was elected.
    browser.wait_for_text("#masters-text", "1 change of master")
    assert browser.run("document.querySelectorAll('#chart .lane.none rect').length") == 1
    browser.run("document.querySelector('#masters-list').open = true")
    assert "its session ended" in browser.text("#masters")
    assert browser.complaints == []

    assert browser.text("#trouble") == ""
    two.kill()
    browser.wait_for_text("#trouble", "two does not answer")
    assert "as of" in browser.text("#trouble")
    assert browser.run("getComputedStyle(document.querySelector('main')).opacity < 1")


def test_which_beats_have_a_guard(site: Site, browser: Browser, client: KazooClient) -> None:
    """As `zk-beat status` has it: it is there, or is not, or none is wanted."""
    members = f"{site.conf['zk_beat_root']}/members"
    one = site.beat("one")
    one.wait_for_log("is master", PATIENCE)
    open_page(browser, site, "two", zk_beat_fast_takeover=False)
    browser.wait_for("document.querySelectorAll('#beats li').length === 2")
    record = json.loads(client.get(f"{members}/two")[0])
    record.update(id="three", guard="it has ended (-9)")
    client.create(f"{members}/three", json.dumps(record).encode())
    expected = ["one: on", "three: none", "two: \u2013"]
    browser.wait_for(f"{GUARDS.strip()}.sort().join() === {json.dumps(','.join(expected))}")
    assert browser.complaints == []


def test_no_zookeeper(own_site: Site, own_zookeeper: ZooKeeper, browser: Browser) -> None:
    """It says so, and is live again when ZooKeeper is back."""
    own_zookeeper.start()
    own_site.schedule()
    open_page(browser, own_site, "one")
    browser.wait_for_text("#verdict", "one is master")
    assert browser.text("#no-upcoming") == "The schedule is empty."
    own_zookeeper.pause()
    browser.wait_for_text("#trouble", "no connection to ZooKeeper")
    own_zookeeper.resume()
    browser.wait_for_text("#live", "live")
    assert browser.text("#trouble") == ""
    assert browser.complaints == []


def test_tracked_runs(site: Site, browser: Browser) -> None:
    """What became of them, and which are open; in the light, in the dark, and on a phone."""
    site.schedule(**{HOSTILE[0]: 3600.0, "sync": 0.5, "untracked": 3600.0})
    site.conf.update(
        zk_beat_outcomes="worker",
        zk_beat_policies={"sync": {"overlap": "skip"}, "<*": {"finish_within": 0.5}},
    )
    open_page(browser, site, "one")
    browser.wait_for_text("#verdict", "is master")
    assert not browser.run("document.querySelector('#open-part').offsetParent")
    hosts, paths = site.conf["zk_beat_hosts"], Paths(site.conf["zk_beat_root"])

    def sent() -> list[Any]:
        return all_headers(site.conf["broker_url"])

    with connected(hosts, LONG_TIMEOUT, PATIENCE, lambda: None) as session:
        worker = Worker(session, paths, "<i>w")
        wait_until(sent, PATIENCE, "a run")
        worker.end(worker.begin(sent()[0]), sent()[0], "failure", error="<b>Bad</b>")
        wait_until(lambda: len(sent()) > 1, PATIENCE, "another run")
        worker.begin(sent()[1])
        site.zk_beat("run", HOSTILE[0])
        browser.wait_for("document.querySelectorAll('#open tr').length === 2")
        browser.wait_for_text("#open", "late to finish")
        browser.wait_for_text("#recent .more", "running since ")
        browser.wait_for_text("#recent", "failure")
        recent = browser.text("#recent")
        assert "on celery@<i>w" in recent
        assert "took 250 ms" in recent
        assert "<b>Bad</b>" in recent
        upcoming = browser.text("#upcoming")
        assert "0 of 1 succeeded" in upcoming
        assert "250 ms each, at most 250 ms" in upcoming
        assert browser.run("document.querySelectorAll('#upcoming .tag.bad').length") == 1
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            assert browser.run(UNREADABLE) == []
        browser.resize(320)
        assert browser.run("document.documentElement.scrollWidth") == 320
    assert browser.run("document.querySelectorAll('main b, main i').length") == 0
    assert browser.complaints == []


def test_live_entries(site: Site, browser: Browser) -> None:
    """Each with its version and who made it; its next day is known as those of others are."""
    site.schedule(code=3600.0)
    site.conf.update(zk_beat_entries=True, zk_beat_entries_tasks=["shop.*"])
    open_page(browser, site, "one")
    site.zk_beat("add", HOSTILE[0], "--task", "shop.report", "--every", "20")
    site.zk_beat("add", "off", "--task", "shop.report", "--every", "20", "--disabled")
    browser.wait_for_text("#upcoming", HOSTILE[0])
    site.zk_beat("set", HOSTILE[0], "--note", "x")
    browser.wait_for_text("#upcoming .more", "version 2 by ")
    assert browser.text("#upcoming .tag") == "live"
    assert "1 live entry is disabled: off" in browser.text("#warnings")
    browser.run("document.querySelector('#upcoming summary').click()")
    browser.wait_for("document.querySelectorAll('#upcoming .day li').length === 50")
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        assert browser.run(UNREADABLE) == []
    browser.resize(320)
    assert browser.run("document.documentElement.scrollWidth") == 320
    assert browser.complaints == []
