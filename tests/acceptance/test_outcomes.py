"""What real workers report of tracked runs, in every way in which these can end."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import time
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import celery
import kombu
import pytest
from celery import Celery
from celery.utils import uuid
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_digest_acl, make_digest_acl_credential

from celery_zk_beat.outcomes.reports import Report
from celery_zk_beat.outcomes.sending import BEGIN_WITHIN
from celery_zk_beat.paths import Paths
from example_project.servers import Process, Redis, ZooKeeper, wait_until
from tests.conftest import PATIENCE, kazoo_client
from tests.faults import Road
from tests.rabbitmq import RabbitMQ

from .conftest import Site

APP = "tests.acceptance.outcomes_app"
DUE = "2026-01-01T12:00:00.000000+00:00"
PREFORK, THREADS = "prefork", "threads"
#: How many workers there are where a message is revoked.
WORKERS = 2


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

    def revoke(self, id: str, workers: int, **options: Any) -> None:
        """Returns when so many workers have heard it."""
        asked = {"task_id": id, **options}
        control = self.app.control
        answers = control.broadcast("revoke", asked, reply=True, limit=workers, timeout=PATIENCE)
        assert len(answers) == workers


@pytest.fixture
def outcomes(site: Site, broker: Redis | RabbitMQ, client: KazooClient) -> Runs:
    site.conf["zk_beat_outcomes"] = "worker"
    site.conf["beat_schedule"] = {}
    return Runs(site, client)


def worker_of(outcomes: Runs, pool: str, **conf: Any) -> Process:
    """A worker of a queue that is called as its pool."""
    return outcomes.site.worker(pool, "-P", pool, "-c", "8", "-Q", pool, app=APP, **conf)


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
    "replaces": [("ignored", None)],
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
if celery.VERSION >= (5, 7):
    PROCESSES["retried_when_lost"] = [("retry", "WorkerLostError"), *SUCCESS]
    PROCESSES["succeeds_and_dies"] = SUCCESS
#: They take a path, and do otherwise the first time.
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
TWICE = {"requeues", "hard_limited_late", "dies_late", "retried_when_lost"}


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
        outcomes.revoke(id, WORKERS)
        outcomes.send(f"{pool} {entry}", "works", queue=pool, task_id=id, **options)
        expected[f"{pool} {entry}"] = [("revoked", None)]
    outcomes.send_raw(f"{pool} damaged", pool, "application/json")
    expected[f"{pool} damaged"] = [("rejected", "DecodeError")]
    outcomes.send_raw(f"{pool} pickled", pool, "application/x-python-serialize")
    expected[f"{pool} pickled"] = [("rejected", "ContentDisallowed")]
    return expected


@pytest.mark.timeout(300)  # for a busy machine: it takes 20 s
def test_what_workers_report(outcomes: Runs) -> None:
    workers = [worker_of(outcomes, pool) for pool in (PREFORK, THREADS)]
    every_way_to_end(outcomes)
    for worker in workers:
        assert "report" not in worker.log().replace('"report"', "").replace("'report'", "")
    workers_that_are_killed(outcomes, workers)
    if not outcomes.app.conf.broker_url.startswith("redis"):
        # With Redis that takes `visibility_timeout`, an hour.
        what_comes_again(outcomes)


def every_way_to_end(outcomes: Runs) -> None:
    """What is reported is right, and of what has ended no znode says that it is running."""
    expected = {**send_all(outcomes, PREFORK), **send_all(outcomes, THREADS)}
    terminated = outcomes.send("terminated", "works", 60, queue=PREFORK)
    outcomes.wait_for("terminated", "started")
    outcomes.revoke(terminated, WORKERS, terminate=True)
    expected["terminated"] = [("revoked", None)]
    with contextlib.suppress(TimeoutError):  # then the next line says which
        wait_until(lambda: outcomes.states() == expected, PATIENCE, "all reports")
    assert outcomes.states() == expected
    assert outcomes.running() == []


#: Entries whose runs last until a file is there.
WAITING = {f"{pool} waits {when}" for pool in (PREFORK, THREADS) for when in ("early", "late")}


def workers_that_are_killed(outcomes: Runs, workers: list[Process]) -> None:
    """The end of its session tells what it executed."""
    release = str(outcomes.site.folder / "release")
    for pool in (PREFORK, THREADS):
        outcomes.send(f"{pool} waits early", "waits", release, queue=pool)
        outcomes.send(f"{pool} waits late", "waits_late", release, queue=pool)
    wait_until(lambda: outcomes.reports().keys() >= WAITING, PATIENCE, "all to begin")
    assert len(outcomes.running()) == 4
    for worker in workers:
        worker.kill()
    wait_until(lambda: outcomes.running() == [], PATIENCE, "the end of the sessions")
    reports = outcomes.reports()
    assert {entry: [(each.state, each.again) for each in reports[entry]] for entry in WAITING} == {
        entry: [("started", entry.endswith("late"))] for entry in WAITING
    }


def what_comes_again(outcomes: Runs) -> None:
    """What was not acknowledged is told of by its next worker. A cold shutdown tells what it
    ends; a warm one waits."""
    cold, warm = (worker_of(outcomes, pool) for pool in (PREFORK, THREADS))
    for pool in (PREFORK, THREADS):
        outcomes.wait_for(f"{pool} waits late", "started", "started")
    warm.send(signal.SIGTERM)
    release = outcomes.site.folder / "release"
    outcomes.send("cold", "waits", str(release), queue=PREFORK)
    outcomes.wait_for("cold", "started")
    cold.send(signal.SIGQUIT)
    cold.wait(PATIENCE)
    states = outcomes.states()
    assert states["cold"] == [("failure", "Terminated")]
    assert states["prefork waits late"] == [("started", None), ("requeued", "Terminated")]
    release.touch()
    warm.wait(PATIENCE)
    assert outcomes.states()["threads waits late"] == [("started", None), *SUCCESS]
    assert outcomes.running() == []


def test_zookeeper_is_away(site: Site, client: KazooClient, road: Road) -> None:
    """The worker's session ends while it lives: it goes on, tells again what it executes, and how
    ended what ended meanwhile."""
    site.conf.update(zk_beat_outcomes="worker", zk_beat_hosts=road.hosts, beat_schedule={})
    outcomes = Runs(site, client)
    worker = worker_of(outcomes, PREFORK)
    release = site.folder / "release"
    outcomes.send("long", "waits", str(release), queue=PREFORK)
    outcomes.wait_for("long", "started")
    [running] = outcomes.running()
    road.block()
    begun = time.monotonic()
    ids = [outcomes.send(f"short {number}", "works", queue=PREFORK) for number in range(20)]
    for id in ids:
        worker.wait_for_log(f"[{id}] succeeded", PATIENCE)
    assert time.monotonic() - begun < 15 * BEGIN_WITHIN, "it waits once, not for each"
    wait_until(lambda: outcomes.running() == [], PATIENCE, "the end of the session")
    assert {*outcomes.states()} == {"long"}
    road.open()
    for number in range(20):
        outcomes.wait_for(f"short {number}", "success")
    wait_until(lambda: outcomes.running() == [running], PATIENCE, "it to run again")
    assert outcomes.states()["long"] == [("started", None)]
    # The beats took it for lost, and threw its report away.
    client.delete(f"{outcomes.paths.inbox_reports}/{running}")
    release.touch()
    outcomes.wait_for("long", "success")
    assert outcomes.running() == []
    assert worker.terminate() == 0


def test_a_worker_may_write_below_the_inbox_alone(
    site: Site, client: KazooClient, zookeeper: ZooKeeper
) -> None:
    """And where it is told to write elsewhere, or what a header says of a run cannot be, it runs
    the task and reports nothing."""
    beat, worker = "beat:sesame", "worker:open"
    hashed = [make_digest_acl_credential(*user.split(":")) for user in (beat, worker)]
    granted = ",".join(f"digest:{each}:cdrw" for each in hashed)
    site.conf.update(zk_beat_outcomes="worker", zk_beat_outcomes_acl=granted, beat_schedule={})
    root = site.conf["zk_beat_root"]
    with kazoo_client(zookeeper.hosts) as master:
        master.add_auth("digest", beat)
        only_beats = [make_digest_acl(*beat.split(":"), all=True)]
        for path in ("", "/runs", "/pauses", "/other", "/other/inbox", "/other/inbox/reports"):
            master.create(f"{root}{path}", b"", only_beats)
        both = [make_digest_acl(*user.split(":"), all=True) for user in (beat, worker)]
        for path in ("/inbox", "/inbox/reports", "/inbox/running"):
            master.create(f"{root}{path}", b"", both)
        outcomes = Runs(site, master)
        process = site.worker("worker", "-Q", "solo", app=APP, zk_beat_auth=worker)
        sessions = zookeeper.four_letter("cons").count("sid=")
        untracked = str(outcomes.app.send_task(f"{APP}.works", queue="solo").id)
        process.wait_for_log(f"[{untracked}] succeeded", PATIENCE)
        assert zookeeper.four_letter("cons").count("sid=") == sessions
        release = str(site.folder / "release")
        outcomes.send("good", "waits", release, queue="solo")
        outcomes.wait_for("good", "started")
        client.add_auth("digest", worker)
        for path in (root, f"{root}/runs", f"{root}/pauses"):
            with pytest.raises(NoAuthError):
                client.set(path, b"")
            with pytest.raises(NoAuthError):
                client.create(f"{path}/mine", b"")
            with pytest.raises(NoAuthError):
                client.get(path)
        Path(release).touch()
        outcomes.wait_for("good", "success")
        strange: list[dict[str, Any]] = [
            {"report": f"{root}/other/inbox"},
            {"run": 10**30},
            {"due": "yesterday"},
            {"entry": "x" * 100_000},
            {"report": ["inbox"]},
        ]
        ids = [outcomes.send("bad", "works", queue="solo", header=each) for each in strange]
        for id in ids:
            process.wait_for_log(f"[{id}] succeeded", PATIENCE)
        outcomes.send("last", "works", queue="solo")
        outcomes.wait_for("last", "success")
        assert {*outcomes.states()} == {"good", "last"}
        assert master.get_children(f"{root}/other/inbox/reports") == []
        assert process.log().count("outcome is not reported") == 1
        for report in master.get_children(outcomes.paths.inbox_reports):
            acl, _ = master.get_acls(f"{outcomes.paths.inbox_reports}/{report}")
            assert {each.id.id for each in acl} == {"beat:x", "worker:x"}  # no hash for strangers


def test_no_right_to_report(site: Site, client: KazooClient) -> None:
    """Nor is there, for a worker with green threads, a way to. Tasks run as ever."""
    site.conf.update(zk_beat_outcomes="worker", zk_beat_auth="worker:open", beat_schedule={})
    outcomes = Runs(site, client)
    for path in (outcomes.paths.inbox_reports, outcomes.paths.inbox_running):
        client.set_acls(path, [make_digest_acl("beat", "sesame", all=True)])
    workers = [site.worker(pool, "-P", pool, "-Q", pool, app=APP) for pool in ("solo", "gevent")]
    for worker in workers:
        id = outcomes.send("any", "works", queue=worker.name)
        worker.wait_for_log(f"[{id}] succeeded", PATIENCE)
    workers[0].wait_for_log("inbox/reports: denied by ZooKeeper (NoAuth)", PATIENCE)
    workers[1].wait_for_log("this worker reports no outcomes: with gevent", PATIENCE)


def test_a_beat_and_its_workers(site: Site, client: KazooClient) -> None:
    """A run does not begin before the one before it has ended, or its worker is lost."""
    site.conf.update(
        zk_beat_outcomes="worker",
        zk_beat_policies={"slow": {"overlap": "skip"}},
        beat_schedule={"slow": {"task": f"{APP}.works", "schedule": 0.4, "args": [0.6]}},
    )
    outcomes = Runs(site, client)

    def told() -> list[str]:
        """How the last runs ended, newest first; "skipped" for an instant."""
        answer = site.zk_beat("history", "--json", "--limit", "1000")
        assert answer.returncode == 0, answer.stderr
        runs = json.loads(answer.stdout)["runs"]
        for run in runs:
            assert run["run"] or "the run before is still open" in run["note"]
        return [run["outcome"]["state"] if run["run"] else "skipped" for run in runs]

    def ended(how: str) -> bool:
        return next((state for state in told() if state in ("success", "lost")), "") == how

    site.beat("one", app=APP).wait_for_log("elected", PATIENCE)
    worker = site.worker("first", app=APP)
    wait_until(lambda: ended("success"), PATIENCE, "the end of a run")
    wait_until(outcomes.running, PATIENCE, "a run")
    worker.kill()
    wait_until(lambda: ended("lost"), PATIENCE, "the end of a session")
    site.worker("second", app=APP)
    wait_until(lambda: ended("success"), PATIENCE, "the end of another run")
    states = told()
    assert "skipped" in states
    assert {*states} <= {"success", "lost", "open", "running", "skipped"}
