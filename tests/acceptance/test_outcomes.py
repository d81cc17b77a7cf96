"""What real workers report of tracked runs, in every way in which these can end."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from datetime import datetime, timezone
from typing import Any, Optional

import kombu
import pytest
from celery import Celery
from celery.utils import uuid
from kazoo.client import KazooClient

from celery_zk_beat.outcomes.reports import Report
from celery_zk_beat.paths import Paths
from example_project.servers import Process, Redis, wait_until
from tests.conftest import PATIENCE
from tests.rabbitmq import RabbitMQ

from .conftest import Site

APP = "tests.acceptance.outcomes_app"
DUE = "2026-01-01T12:00:00.000000+00:00"
PREFORK, THREADS = "prefork", "threads"


class Runs:
    """Sends tracked runs, as a beat does, and reads what workers report of them."""

    def __init__(self, site: Site, client: KazooClient) -> None:
        self.site, self.client = site, client
        self.paths = Paths(site.conf["zk_beat_root"])
        self.app = Celery(set_as_current=False)
        self.app.conf.broker_url = site.conf["broker_url"]
        self._numbers = itertools.count(1)
        for folder in (self.paths.inbox_reports, self.paths.inbox_running):
            client.ensure_path(folder)

    def send(self, entry: str, task: str, *args: Any, **options: Any) -> str:
        """Returns the task's id."""
        header = {"entry": entry, "run": next(self._numbers), "due": DUE}
        header = {**header, "report": self.paths.inbox, **options.pop("header", {})}
        name = task if "." in task else f"{APP}.{task}"
        return str(self.app.send_task(name, args, headers={"zk_beat": header}, **options).id)

    def reports(self) -> dict[str, list[Report]]:
        """Of each entry, in the order in which they began."""
        found = defaultdict(list)
        for name in self.client.get_children(self.paths.inbox_reports):
            path = f"{self.paths.inbox_reports}/{name}"
            data, stat = self.client.get(path)
            report = Report.decode(path, data)
            found[report.entry].append((stat.czxid, report))
        return {
            entry: [report for _, report in sorted(each, key=lambda pair: pair[0])]
            for entry, each in found.items()
        }

    def states(self) -> dict[str, list[tuple[str, str | None]]]:
        return {
            entry: [(report.state, report.error) for report in each]
            for entry, each in self.reports().items()
        }

    def running(self) -> list[str]:
        running: list[str] = self.client.get_children(self.paths.inbox_running)
        return running

    def wait_for(self, entry: str, *states: str) -> None:
        def are_there() -> bool:
            return [state for state, _ in self.states().get(entry, ())] == [*states]

        wait_until(are_there, PATIENCE, f"{entry}: {states}")

    def send_raw(self, entry: str, queue: str, content_type: str) -> None:
        """Sends a message whose body cannot be decoded."""
        header = {"entry": entry, "run": next(self._numbers), "due": DUE}
        marked = {**header, "report": self.paths.inbox}
        headers = {"zk_beat": marked, "task": f"{APP}.works", "id": uuid(), "lang": "py"}
        exchange = kombu.Exchange(queue)
        with self.app.connection_for_write() as connection:
            connection.Producer().publish(
                b"{",
                headers=headers,
                content_type=content_type,
                content_encoding="utf-8",
                exchange=exchange,
                routing_key=queue,
                declare=[kombu.Queue(queue, exchange, queue)],
            )

    def revoke(self, id: str, **options: Any) -> None:
        """Returns when a worker has heard it."""
        asked = {"task_id": id, **options}
        assert self.app.control.broadcast("revoke", asked, reply=True, limit=1, timeout=PATIENCE)


@pytest.fixture
def outcomes(site: Site, broker: Redis | RabbitMQ, client: KazooClient) -> Runs:
    site.conf["zk_beat_outcomes"] = "worker"
    site.conf["beat_schedule"] = {}
    return Runs(site, client)


def worker_of(outcomes: Runs, pool: str, **conf: Any) -> Process:
    """A worker of a queue that is called as its pool."""
    return outcomes.site.worker(pool, "-P", pool, "-c", "4", "-Q", pool, app=APP, **conf)


Outcomes = dict[str, list[tuple[str, Optional[str]]]]
SUCCESS: list[tuple[str, str | None]] = [("success", None)]
#: Task -> what is reported of it, with any pool.
ANYWHERE: Outcomes = {
    "works": SUCCESS,
    "fails": [("failure", "KeyError")],
    "fails_late": [("failure", "KeyError")],
    "fails_oddly": [("failure", "Unpicklable")],
    "retries": [("retry", "KeyError"), *SUCCESS],
    "retries_in_vain": [("retry", "KeyError"), ("failure", "KeyError")],
    "ignores": [("ignored", None)],
    "rejects": [("rejected", None)],
    "requeues": [("requeued", "Reject"), *SUCCESS],
    "limited": SUCCESS,
    "unknown": [("rejected", "NotRegistered")],
}
#: What only a pool of processes can do.
PROCESSES: Outcomes = {
    "softly_limited": [("failure", "SoftTimeLimitExceeded")],
    "hard_limited": [("failure", "TimeLimitExceeded")],
    "hard_limited_late": [("requeued", "TimeLimitExceeded"), *SUCCESS],
    "dies": [("failure", "WorkerLostError")],
    "dies_late": [("requeued", "WorkerLostError"), *SUCCESS],
}
#: They take a path, and do otherwise the first time.
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
TWICE = {"requeues", "hard_limited_late", "dies_late"}


def send_all(outcomes: Runs, pool: str) -> Outcomes:
    """Sends a run for each way to end. Returns what should be reported."""
    expected: Outcomes = {}
    for task, states in (ANYWHERE if pool == THREADS else {**ANYWHERE, **PROCESSES}).items():
        path = outcomes.site.folder / f"{pool}-{task}"
        outcomes.send(f"{pool} {task}", task, *[str(path)] * (task in TWICE), queue=pool)
        expected[f"{pool} {task}"] = states
    outcomes.send(f"{pool} later", "works", queue=pool, countdown=1)
    expected[f"{pool} later"] = SUCCESS
    # RabbitMQ itself throws away what has expired in its queue, and nobody knows.
    is_redis = outcomes.app.conf.broker_url.startswith("redis")
    late: dict[str, Any] = {"expires": LONG_AGO} if is_redis else {"expires": 0.5, "countdown": 1}
    outcomes.send(f"{pool} expired", "works", queue=pool, **late)
    expected[f"{pool} expired"] = [("expired", None)]
    revoked: dict[str, dict[str, Any]] = {"revoked": {}, "revoked later": {"countdown": 1}}
    for entry, options in revoked.items():
        id = uuid()
        outcomes.revoke(id, destination=[])
        outcomes.send(f"{pool} {entry}", "works", queue=pool, task_id=id, **options)
        expected[f"{pool} {entry}"] = [("revoked", None)]
    outcomes.send_raw(f"{pool} damaged", pool, "application/json")
    expected[f"{pool} damaged"] = [("rejected", "DecodeError")]
    outcomes.send_raw(f"{pool} pickled", pool, "application/x-python-serialize")
    expected[f"{pool} pickled"] = [("rejected", "ContentDisallowed")]
    return expected


def test_every_way_to_end(outcomes: Runs) -> None:
    """What was reported is right, and of what has ended no znode says that it is running."""
    workers = [worker_of(outcomes, pool) for pool in (PREFORK, THREADS)]
    expected = {**send_all(outcomes, PREFORK), **send_all(outcomes, THREADS)}
    terminated = outcomes.send("terminated", "works", 60, queue=PREFORK)
    outcomes.wait_for("terminated", "started")
    outcomes.revoke(terminated, terminate=True)
    expected["terminated"] = [("revoked", None)]
    with contextlib.suppress(TimeoutError):  # then the next line says which
        wait_until(lambda: outcomes.states() == expected, 15, "all reports")
    assert outcomes.states() == expected
    assert outcomes.running() == []
    for worker in workers:
        assert "report" not in worker.log().replace('"report"', "").replace("'report'", "")
