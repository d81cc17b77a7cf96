"""What is answered to whom, as a function of what the beat tells and what was read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_zk_beat import clock
from celery_zk_beat.errors import SettingsError, Uncertain
from celery_zk_beat.metrics import EntryNumbers, Metrics
from celery_zk_beat.runs import RunState
from celery_zk_beat.settings import Settings
from celery_zk_beat.status.reader import Basis
from celery_zk_beat.status.snapshot import Entry, Snapshot
from celery_zk_beat.web.application import PATHS, Application
from celery_zk_beat.web.listener import Listener, listen
from celery_zk_beat.web.probes import SILENT, Finding, alive, leads, ready
from celery_zk_beat.web.readings import _EVERY, Readings
from celery_zk_beat.web.state import Report, State
from example_project.servers import free_port, wait_until
from tests.conftest import PATIENCE

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
MASTER = State(
    at=100.0,
    began=10.0,
    id="one",
    hosts="zk:2181",
    root="/shop",
    connected=True,
    session_timeout=10.0,
    clock_offset=0.0,
    decided=True,
    epoch=7,
    master="one",
    master_epoch=7,
    metrics=Metrics(ticked=99.0),
)
STANDBY = replace(MASTER, id="two", epoch=None)
CUT_OFF = replace(STANDBY, connected=False)
BEGINS = replace(CUT_OFF, decided=False, master=None, master_epoch=0, metrics=Metrics())


@pytest.fixture(autouse=True, scope="module")
def nobody_reads_any_more() -> Iterator[None]:
    """Afterwards: such a thread would run into what other tests do to the clock. It rests for five
    times as long as it has read: not then."""
    is_over = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "sleep", is_over.wait)
        yield
        patch.setattr("celery_zk_beat.web.readings._IDLE", 0.0)
        is_over.set()
        wait_until(
            lambda: all(thread.name != "zk-beat-status" for thread in threading.enumerate()),
            PATIENCE,
            "the end of all threads",
        )


def entry(name: str, **fields: Any) -> Entry:
    empty: dict[str, Any] = dict.fromkeys(Entry.__dataclass_fields__)
    return Entry(**{**empty, "name": name, "total_run_count": 0, "in_schedule": True, **fields})


def snapshot(*entries: Entry) -> Snapshot:
    return Snapshot(
        hosts="zk:2181",
        root="/shop",
        app="shop",
        read_at=NOW,
        master=None,
        members=(),
        schedule="",
        paused=None,
        paused_by=None,
        entries=entries,
        outbox=(),
        recent=(),
        masters=(),
        warnings=(),
    )


class Look:
    """What reads, and knows the state of an entry."""

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self.read = read

    def basis(self) -> Basis:
        return Basis({}, {"a": RunState(NOW, 3)}, Settings.from_mapping({}, "shop"))


def make_readings(read: Callable[[], Snapshot]) -> Readings:
    @contextlib.contextmanager
    def connect() -> Iterator[Look]:
        yield Look(read)

    return Readings(connect)


def day(name: str, basis: Basis, held: Collection[str]) -> list[Any]:
    return [{"at": basis.states[name].last_run_at.isoformat()}] if name in basis.states else []


class Client:
    """Asks an application that has been told `state`."""

    def __init__(
        self, state: State, read: Callable[[], Snapshot] = snapshot, answers: bool = True
    ) -> None:
        self.app = Application(
            lambda: Report(state, answers),
            make_readings(read),
            os.getpid(),
            day,
        )

    def get(self, path: str, method: str = "GET") -> tuple[str, dict[str, str], bytes]:
        started: list[Any] = []
        path, _, query = path.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
        body = b"".join(self.app(environ, lambda *args: started.extend(args)))
        return started[0], dict(started[1]), body


@pytest.mark.parametrize(
    ("state", "now", "finding"),
    [
        (MASTER, 99.5, Finding(True, "the dispatch loop moved 0.5 s ago")),
        (CUT_OFF, 159.0, Finding(True, "the dispatch loop moved 60.0 s ago")),
        (MASTER, 160.0, Finding(False, "the dispatch loop moved 61.0 s ago")),
        (BEGINS, 69.0, Finding(True, "the dispatch loop begins")),
        (BEGINS, 71.0, Finding(False, "the dispatch loop begins")),
    ],
)
def test_alive(state: State, now: float, finding: Finding) -> None:
    """As long as the loop moves, with or without ZooKeeper; at the start it has as much time."""
    assert alive(state, now) == finding


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        (Report(MASTER, True), (True, "one is master, epoch 7")),
        (Report(STANDBY, True), (True, "two is a standby, one is master")),
        (
            Report(replace(STANDBY, master=None), True),
            (True, "two is a standby, no master is known"),
        ),
        (
            Report(replace(BEGINS, connected=True), True),
            (False, "two is neither master nor standby yet"),
        ),
    ],
)
def test_ready_where_there_is_a_connection(report: Report, findings: tuple[bool, str]) -> None:
    assert ready(report) == [
        Finding(True, "connected to ZooKeeper, session time-out 10 s"),
        Finding(*findings),
    ]


def test_not_ready() -> None:
    assert ready(Report(CUT_OFF, True)) == [Finding(False, "no connection to ZooKeeper at zk:2181")]
    assert ready(Report(MASTER, False)) == [SILENT]


def test_leads() -> None:
    assert leads(Report(MASTER, True)) == Finding(True, "one is master, epoch 7")
    assert leads(Report(STANDBY, True)) == Finding(False, "two is a standby, one is master")
    assert leads(Report(MASTER, False)) == SILENT


def test_a_state_on_its_way() -> None:
    metrics = Metrics(claimed=3, ticked=1.25)
    metrics.lateness.observe(0.02)
    state = replace(MASTER, id="<ä\n\ud800>", metrics=metrics)
    line = state.encode()
    assert line.count(b"\n") == 1
    arrived = State.decode(line)
    assert arrived.encode() == line
    assert (arrived.id, arrived.metrics.claimed) == (state.id, 3)
    assert arrived.metrics.lateness.counts == metrics.lateness.counts


def test_one_line_a_check() -> None:
    status, headers, body = Client(CUT_OFF).get("/readyz")
    assert status == "503 Service Unavailable"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert body == b"failed: no connection to ZooKeeper at zk:2181\n"
    status, _, body = Client(STANDBY).get("/readyz")
    assert status == "200 OK"
    assert [line.partition(b":")[0] for line in body.splitlines()] == [b"ok", b"ok"]


@pytest.mark.parametrize("path", PATHS)
def test_headers(path: str) -> None:
    """Nothing is kept, nothing runs but the page's own script, and HEAD is GET without the body."""
    client = Client(replace(MASTER, metrics=Metrics(ticked=clock.boottime())))
    status, headers, body = client.get(path)
    assert (status, headers["Content-Length"]) == ("200 OK", str(len(body)))
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    status, _, body = client.get(path, "HEAD")
    assert (status, body) == ("200 OK", b"")
    status, headers, _ = client.get(path, "POST")
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")


@pytest.mark.parametrize("path", ["", "/nothing", "/livez/", "/../web.py", "//", "/page/page.js"])
def test_nothing_else(path: str) -> None:
    assert Client(MASTER).get(path)[0] == "404 Not Found"


def test_metrics() -> None:
    """The histogram's buckets are cumulative, and the last tick is a time of day."""
    metrics = Metrics(ticked=clock.boottime() - 100, elections=2)
    metrics.skipped["deadline"] = 3
    for lateness in (0.001, 0.02, 0.02, 1000.0):
        metrics.lateness.observe(lateness)
    _, headers, body = Client(replace(STANDBY, metrics=metrics)).get("/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    values = {
        (
            sample.name.replace("celery_zk_beat_", ""),
            sample.labels.get("le", sample.labels.get("reason")),
        ): (sample.value)
        for family in families.values()
        for sample in family.samples
    }
    lateness_ = "dispatch_lateness_seconds"
    assert [values[f"{lateness_}_bucket", le] for le in ("0.005", "0.025", "300.0", "+Inf")] == [
        1,
        3,
        3,
        4,
    ]
    assert (values[f"{lateness_}_count", None], values["elections_total", None]) == (4, 2)
    skipped = [values["runs_skipped_total", reason] for reason in ("deadline", "resumed")]
    assert skipped == [3, 0]
    assert (values["is_master", None], values["epoch", None]) == (0, 7)
    now = datetime.now(timezone.utc).timestamp()
    assert values["last_tick_timestamp_seconds", None] == pytest.approx(now - 100, abs=10)
    assert "process_resident_memory_bytes" in families


def test_metrics_of_entries() -> None:
    """Of those that are asked for, on a master; whatever their names are."""
    known = EntryNumbers("nightly \ud800", 100.5, 0.25, 200.5, {"resumed": 50.0})
    asked_for = Metrics(by_entry=[known, EntryNumbers("new", 90.0, None, None, {})], selected=2)
    told = State.decode(replace(MASTER, metrics=asked_for).encode())
    assert told.metrics.by_entry == asked_for.by_entry
    _, _, body = Client(told).get("/metrics")
    name = "celery_zk_beat_entry"
    found = [line for line in body.decode().splitlines() if line.startswith(name)]
    assert found == [
        f'{name}_last_run_timestamp_seconds{{entry="nightly \\\\ud800"}} 100.5',
        f'{name}_last_run_timestamp_seconds{{entry="new"}} 90.0',
        f'{name}_last_lateness_seconds{{entry="nightly \\\\ud800"}} 0.25',
        f'{name}_next_run_timestamp_seconds{{entry="nightly \\\\ud800"}} 200.5',
        f'{name}_last_skip_timestamp_seconds{{entry="nightly \\\\ud800",reason="resumed"}} 50.0',
    ]
    assert b"celery_zk_beat_entries_selected 2.0\n" in body
    _, _, body = Client(MASTER).get("/metrics")
    assert name.encode() not in body
    assert b"selected" not in body


def test_metrics_of_outcomes() -> None:
    """Only where runs are tracked. All states are there from the beginning, so that Prometheus sees
    the first of each."""
    metrics = Metrics(tracks=True, outcomes={"lost": 2}, late={"finish": 1}, open=3)
    metrics.runtime.observe(0.3)
    ended = EntryNumbers("a", 1.0, None, None, {}, "failure", 90.5, 0.25, 50.0, 95.0)
    metrics.by_entry = [ended, EntryNumbers("b", 1.0, None, None, {})]
    told = State.decode(replace(MASTER, metrics=metrics).encode())
    _, _, body = Client(told).get("/metrics")
    lines = body.decode().splitlines()
    counted = [line for line in lines if line.startswith("celery_zk_beat_run_outcomes_total")]
    assert len(counted) == 8
    assert {line for line in counted if not line.endswith(" 0.0")} == {
        'celery_zk_beat_run_outcomes_total{state="lost"} 2.0'
    }
    assert {
        'celery_zk_beat_runs_late_total{what="start"} 0.0',
        'celery_zk_beat_runs_late_total{what="finish"} 1.0',
        "celery_zk_beat_open_runs 3.0",
        'celery_zk_beat_run_runtime_seconds_bucket{le="0.1"} 0.0',
        'celery_zk_beat_run_runtime_seconds_bucket{le="0.5"} 1.0',
    } <= {*lines}
    name = "celery_zk_beat_entry"
    assert [line for line in lines if line.startswith(name) and '"a"' in line][1:] == [
        f'{name}_last_outcome_timestamp_seconds{{entry="a",state="failure"}} 90.5',
        f'{name}_last_success_timestamp_seconds{{entry="a"}} 50.0',
        f'{name}_last_runtime_seconds{{entry="a"}} 0.25',
        f'{name}_open_since_timestamp_seconds{{entry="a"}} 95.0',
    ]
    assert len([line for line in lines if '"b"' in line]) == 1
    _, _, body = Client(replace(MASTER, metrics=replace(metrics, tracks=False))).get("/metrics")
    assert not any(
        word in body for word in (b"outcome", b"open_run", b"open_since", b"runtime", b"late_total")
    )


def test_a_beat_that_is_silent_is_down_for_prometheus() -> None:
    status, _, body = Client(MASTER, answers=False).get("/metrics")
    assert status == "503 Service Unavailable"
    assert body == b"failed: the beat has not answered for 1 s\n"


def test_the_page_gets_what_it_shows() -> None:
    """Of a thousand entries, the next and the paused ones; /status.json has all."""
    entries = [
        *(entry(f"e{n:03}", next_run_at=NOW + timedelta(hours=n)) for n in reversed(range(999))),
        entry("held", paused=NOW),
    ]
    client = Client(MASTER, lambda: snapshot(*entries))
    page = json.loads(client.get("/page.json")[2])
    assert page["beat"] == {"id": "one", "version": "0.1.0", "answers": True, "connected": True}
    assert page["error"] is None
    status = page["status"]
    assert [each["name"] for each in status["upcoming"]] == [f"e{n:03}" for n in range(50)]
    assert [each["name"] for each in status["paused_entries"]] == ["held"]
    assert status["counts"] == {"entries": 1000, "paused": 1}
    assert json.loads(client.get("/status.json")[2]) == snapshot(*entries).to_json()


def test_zookeeper_is_away() -> None:
    """The status says so, and since when; the page still gets what was read last."""
    failing = False

    def read() -> Snapshot:
        if failing:
            raise Uncertain("no connection to ZooKeeper")
        return snapshot()

    client = Client(MASTER, read)
    assert client.get("/status.json")[0] == "200 OK"
    failing = True
    wait_until(lambda: client.get("/status.json")[0] != "200 OK", PATIENCE, "an error")
    status, headers, body = client.get("/status.json")
    assert (status, headers["Content-Type"]) == ("503 Service Unavailable", "application/json")
    found = json.loads(body)
    assert found["error"] == "no connection to ZooKeeper"
    assert found["read_at"] == "2026-01-01T00:00:00.000000+00:00"
    assert 0 < found["age"] < PATIENCE
    page = json.loads(client.get("/page.json")[2])
    assert (page["error"], page["status"]["root"]) == ("no connection to ZooKeeper", "/shop")


def test_zookeeper_hangs() -> None:
    """Two requests wait for it, and no longer than 2 s; all others are answered at once, for the
    probes need a thread, too."""
    goes_on = threading.Event()

    def read() -> Snapshot:
        goes_on.wait(PATIENCE)
        return snapshot()

    asked = make_readings(read)
    answers: list[tuple[float, str | None]] = []

    def ask() -> None:
        begun = clock.boottime()
        _, error = asked.get()
        answers.append((clock.boottime() - begun, error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    ask()
    waited = sorted(took for took, _ in answers)
    assert waited[1] < 1 < 2 <= waited[3]
    assert all(error is not None for _, error in answers)
    goes_on.set()
    wait_until(lambda: asked.get()[1] is None, PATIENCE, "an answer")


def test_one_reading_is_for_all() -> None:
    count = 0

    def read() -> Snapshot:
        nonlocal count
        count += 1
        return snapshot()

    asked = make_readings(read)
    begun = clock.boottime()
    readings = [asked.get()[0] for _ in range(100)]  # kept, for their ids to be their own
    most = 1 + int((clock.boottime() - begun) / _EVERY)
    assert len({id(reading) for reading in readings}) <= most
    assert count <= most


def test_no_connection_lives_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose client sends a byte now and then, or reads nothing of much."""
    monkeypatch.setattr("celery_zk_beat.web.listener._LIFETIME", 1.0)
    much = bytes(50_000_000)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(len(much)))])
        return [much]

    with contextlib.ExitStack() as stack:
        (listening,) = listen("127.0.0.1", free_port())
        listener = Listener(app, [stack.enter_context(listening)])
        (server,) = listener._servers
        stack.callback(server.close)
        stack.callback(server.task_dispatcher.shutdown)
        slow, deaf = (
            stack.enter_context(socket.create_connection(listening.getsockname())) for _ in range(2)
        )
        deaf.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        begun = time.monotonic()
        while time.monotonic() < begun + 1 or server.active_channels:
            assert time.monotonic() < begun + PATIENCE
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"G")
            listener.turn()


def test_an_address_in_use() -> None:
    port = free_port()
    (first,) = listen("127.0.0.1", port)
    with first, pytest.raises(SettingsError) as caught:
        listen("127.0.0.1", port)
    assert str(caught.value) == (
        f"zk_beat_http = '127.0.0.1:{port}': cannot listen there: Address already in use"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "x" * 300])
def test_no_address_of_this_machine(host: str) -> None:
    with pytest.raises(SettingsError, match=r"zk_beat_http = '.*:80': cannot listen there: "):
        listen(host, 80)


def test_localhost_is_all_that_it_is_here() -> None:
    port = free_port()
    sockets = listen("localhost", port)
    assert sockets
    for each in sockets:
        with each, socket.create_connection(each.getsockname()[:2], PATIENCE):
            pass


def test_the_next_day() -> None:
    client = Client(MASTER)
    told = json.loads(client.get("/day.json?entry=a")[2])
    assert told == {"entry": "a", "runs": [{"at": NOW.isoformat()}]}
    assert json.loads(client.get("/day.json?entry=%00")[2]) == {"entry": "\0", "runs": []}
    assert json.loads(client.get("/day.json")[2])["runs"] == []
