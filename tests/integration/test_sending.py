"""The reports of a worker on their way: whatever happens to them, ZooKeeper holds in the end what
the worker said last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from celery import Celery
from kazoo.client import KazooClient

from celery_zk_beat.outcomes import sending
from celery_zk_beat.outcomes.reports import Report
from celery_zk_beat.outcomes.sending import Sender
from celery_zk_beat.paths import Paths
from celery_zk_beat.settings import Settings
from example_project.servers import wait_until
from tests.conftest import LONG_TIMEOUT, PATIENCE, SESSION_TIMEOUT
from tests.faults import Road

DUE = datetime(2026, 1, 1, tzinfo=timezone.utc)
STARTED = Report("invoices", 1, DUE, "task-id", "celery@host", "started")
ENDED = STARTED.ended("success", 0.5, None)


class Inbox:
    """What ZooKeeper holds."""

    def __init__(self, client: KazooClient, root: str) -> None:
        self.client, self.paths = client, Paths(root)
        for path in (self.paths.inbox_reports, self.paths.inbox_running):
            client.ensure_path(path)

    def reports(self) -> dict[str, str]:
        folder = self.paths.inbox_reports
        names = self.client.get_children(folder)
        data = {name: self.client.get(f"{folder}/{name}")[0] for name in names}
        return {name: Report.decode(name, each).state for name, each in data.items()}

    def wait_for(self, reports: dict[str, str], running: set[str]) -> None:
        def are_there() -> bool:
            found = {*self.client.get_children(self.paths.inbox_running)}
            return (self.reports(), found) == (reports, running)

        wait_until(are_there, PATIENCE, f"{reports}, and running {running}")


@pytest.fixture
def inbox(client: KazooClient, root: str) -> Inbox:
    return Inbox(client, root)


@pytest.fixture
def make(road: Road, root: str) -> Iterator[Callable[..., Sender]]:
    """Makes senders, which are started, and stops them in the end."""
    made: list[Sender] = []

    def make(hosts: str = road.hosts, session_timeout: float = SESSION_TIMEOUT) -> Sender:
        app = Celery("shop", set_as_current=False)
        app.conf.zk_beat_hosts, app.conf.zk_beat_root = hosts, root
        app.conf.zk_beat_session_timeout = session_timeout
        made.append(Sender(Settings.from_app(app)))
        made[-1].start()
        return made[-1]

    yield make
    road.open()
    for sender in made:
        sender.stop()


def test_the_beginning_is_known_when_it_returns(make: Callable[..., Sender], inbox: Inbox) -> None:
    sender = make()
    sender.begin("a", STARTED)
    assert inbox.reports() == {"a": "started"}
    assert inbox.client.get_children(inbox.paths.inbox_running) == ["a"]
    sender.end("a", ENDED)
    sender.end("b", ENDED)
    inbox.wait_for({"a": "success", "b": "success"}, set())


@pytest.mark.parametrize(
    ("fault", "lasts"),
    [
        ("cut", 0.2),
        ("block_answers", 0.2),
        ("block_answers", 2 * SESSION_TIMEOUT),
        ("block", 2 * SESSION_TIMEOUT),
    ],
)
def test_no_answer(
    make: Callable[..., Sender], inbox: Inbox, road: Road, fault: str, lasts: float
) -> None:
    """It may have been done or not, and the session may be over: it reads, and writes the rest."""
    sender = make()
    sender.begin("goes on", STARTED)
    sender.begin("ends", STARTED)
    sender.begin("is given up", STARTED)
    getattr(road, fault)()
    sender.end("ends", ENDED)
    begun = time.monotonic()
    sender.begin("begins", STARTED)
    sender.begin("begins and ends", STARTED)
    assert time.monotonic() - begun < 2 * sending.BEGIN_WITHIN
    sender.end("begins and ends", ENDED)
    time.sleep(lasts)
    # The master took it for lost.
    inbox.client.delete(f"{inbox.paths.inbox_reports}/is given up")
    road.open()
    sender.end("is given up", ENDED)
    ended = dict.fromkeys(("ends", "begins and ends", "is given up"), "success")
    inbox.wait_for({**ended, "goes on": "started", "begins": "started"}, {"goes on", "begins"})
    sender.end("goes on", replace(ENDED, state="failure"))
    sender.end("begins", ENDED)
    inbox.wait_for({**ended, "goes on": "failure", "begins": "success"}, set())


def test_the_last_ones_are_kept(
    make: Callable[..., Sender],
    inbox: Inbox,
    road: Road,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sending, "MOST_KEPT", 3)
    sender = make()
    sender.begin("running", STARTED)
    road.cut()
    for number in range(5):
        sender.end(str(number), ENDED)
    wait_until(lambda: "more than 3 runs have ended" in caplog.text, PATIENCE, "a warning")
    road.open()
    inbox.wait_for({**dict.fromkeys("234", "success"), "running": "started"}, {"running"})
    assert caplog.text.count("have ended") == 1


def test_a_folder_that_is_missing(
    make: Callable[..., Sender], client: KazooClient, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the root was deleted. It waits for a master that makes it."""
    sender = make()
    sender.begin("a", STARTED)
    begun = time.monotonic()
    sender.begin("b", STARTED)
    assert time.monotonic() - begun < 0.5, "it waits a second once"
    wait_until(lambda: "NoNodeError" in caplog.text, PATIENCE, "a warning")
    Inbox(client, root).wait_for({"a": "started", "b": "started"}, {"a", "b"})
    assert caplog.text.count("is not written") == 1


def test_the_end_of_the_worker(
    make: Callable[..., Sender],
    inbox: Inbox,
    road: Road,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It takes as long as the reports take, and its session is over at once."""
    monkeypatch.setattr(sending, "END_WITHIN", 0.5)
    sender = make(session_timeout=LONG_TIMEOUT)
    sender.begin("a", STARTED)
    sender.begin("b", STARTED)
    sender.end("a", ENDED)
    begun = time.monotonic()
    sender.stop()
    assert time.monotonic() - begun < LONG_TIMEOUT
    inbox.wait_for({"a": "success", "b": "started"}, set())
    other = make()
    other.begin("c", STARTED)
    road.block()
    other.end("c", ENDED)
    other.stop()
    assert "1 runs have ended" in caplog.text
    assert inbox.reports()["c"] == "started"


def test_a_znode_of_an_older_session(make: Callable[..., Sender], inbox: Inbox) -> None:
    """It would go when that session ends, and the run would be taken for lost."""
    path = f"{inbox.paths.inbox_running}/a"
    inbox.client.create(path, ephemeral=True)
    make().begin("a", STARTED)
    inbox.wait_for({"a": "started"}, {"a"})
    owner = inbox.client.get(path)[1].ephemeralOwner
    assert owner != inbox.client.client_id[0]


def test_a_fault_of_our_own(
    make: Callable[..., Sender], inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is executed for ever because the thread that would say its end is gone."""
    sender = make()
    sender.begin("a", STARTED)
    sender.end("b", replace(ENDED, entry=b"no text"))  # type: ignore[arg-type]
    inbox.wait_for({"a": "started"}, set())
    assert "outcomes of runs are not reported any more" in caplog.text


def test_many_at_once(make: Callable[..., Sender], inbox: Inbox) -> None:
    """More than are on their way together."""
    sender = make()
    names = [str(number) for number in range(300)]
    for name in names:
        sender.end(name, ENDED)
    inbox.wait_for(dict.fromkeys(names, "success"), set())
