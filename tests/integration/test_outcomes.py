"""What becomes of tracked runs, on real masters. The reports are written as workers write them."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.schedules import crontab
from kazoo.client import KazooClient
from kazoo.security import make_acl, make_digest_acl

from celery_zk_beat import ZooKeeperScheduler, clock
from celery_zk_beat.control import RUN, Answer, Asking, RequestRecord, change_pauses
from celery_zk_beat.outcomes.inbox import Inbox
from celery_zk_beat.outcomes.reports import Report, delivery_of
from celery_zk_beat.paths import Paths, page_of
from celery_zk_beat.records import from_text, to_text
from celery_zk_beat.runs import RunState
from celery_zk_beat.signals import run_finished, run_late, run_started
from celery_zk_beat.zookeeper.operations import Create, Delete, SetData
from celery_zk_beat.zookeeper.session import ZooKeeperSession, connected
from example_project.servers import Redis, ZooKeeper, wait_until
from tests.conftest import LONG_TIMEOUT, PATIENCE
from tests.history import all_headers

from .conftest import Make, every, past_of

PERIOD = 0.5
#: Not while a test lasts.
YEARLY = crontab("0", "0", "*", "1", "1")


class Worker:
    """Reports as a worker does, with a session of its own."""

    def __init__(self, session: ZooKeeperSession, paths: Paths, name: str) -> None:
        self._session, self._paths, self.name, self._count = session, paths, name, 0

    def begin(self, header: dict[str, Any], **more: Any) -> str:
        """Begins to execute a message. Returns the delivery."""
        self._count += 1
        name = delivery_of(header["id"], self.name, self._count)
        self._session.commit(*self._both(name, self._report(header, **more)))
        return name

    def end(self, name: str, header: dict[str, Any], state: str = "success", **more: Any) -> None:
        """Ends it."""
        report = self._report(header).ended(state, more.get("runtime", 0.25), more.get("error"))
        self._session.commit(
            SetData(f"{self._paths.inbox_reports}/{name}", report.encode()),
            Delete(f"{self._paths.inbox_running}/{name}"),
        )

    def report(self, header: dict[str, Any], state: str) -> None:
        """Reports a message that it does not execute."""
        self._count += 1
        name = delivery_of(header["id"], self.name, self._count)
        data = self._report(header).ended(state, None, None).encode()
        self._session.commit(Create(f"{self._paths.inbox_reports}/{name}", data))

    def again(self, name: str, header: dict[str, Any]) -> None:
        """Makes the znodes of a delivery again, as after the session has expired."""
        self._session.commit(*self._both(name, self._report(header)))

    def forge(self, header: dict[str, Any]) -> str:
        """Begins to execute a message, as no worker does: with a znode that is not ephemeral."""
        name = delivery_of(header["id"], self.name, 99)
        both = self._both(name, self._report(header))
        self._session.commit(*(replace(each, ephemeral=False) for each in both))
        return name

    def _report(self, header: dict[str, Any], **more: Any) -> Report:
        return replace(Report.of(header["zk_beat"], header["id"], f"celery@{self.name}"), **more)

    def _both(self, name: str, report: Report) -> list[Create]:
        return [
            Create(f"{self._paths.inbox_reports}/{name}", report.encode()),
            Create(f"{self._paths.inbox_running}/{name}", b"", ephemeral=True),
        ]

    def die(self) -> None:
        self._session.stop(PATIENCE)


@pytest.fixture
def hire(zookeeper: ZooKeeper, root: str) -> Iterator[Callable[[str], Worker]]:
    """Makes workers."""
    with contextlib.ExitStack() as stack:

        def hire(name: str) -> Worker:
            session = stack.enter_context(
                connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, lambda: None)
            )
            return Worker(session, Paths(root), name)

        yield hire


@pytest.fixture
def worker(hire: Callable[[str], Worker]) -> Worker:
    return hire("00000001")


@pytest.fixture(autouse=True)
def settings(app: Celery) -> None:
    app.conf.zk_beat_outcomes = "worker"


class Results:
    """Does as a :class:`Worker`, with the app's result backend."""

    def __init__(self, app: Celery) -> None:
        self._app, self.name = app, "00000001"
        app.conf.update(zk_beat_outcomes="backend", result_extended=True)

    def begin(self, header: dict[str, Any], **more: Any) -> str:
        """As with task_track_started."""
        self._store(header, {"pid": 1, "hostname": f"celery@{self.name}"}, states.STARTED)
        return str(header["id"])

    def end(self, name: str, header: dict[str, Any], state: str = "success", **more: Any) -> None:
        if state == "failure":
            error = getattr(builtins, more.get("error", "ValueError"))("secret")
            self._store(header, error, states.FAILURE)
        elif state == "success":
            self._store(header, None, states.SUCCESS)
        else:  # as Celery has both
            self._store(header, TaskRevokedError(state), states.REVOKED)

    def _store(self, header: dict[str, Any], result: Any, state: str) -> None:
        id = header["id"]
        request = Context(id=id, hostname=f"celery@{self.name}", delivery_info={})
        self._app.backend.store_result(id, result, state, request=request)


@pytest.fixture(params=["worker", "redis", "json", "sqlite"])
def reporter(
    request: pytest.FixtureRequest, app: Celery, redis_server: Redis, tmp_path: Path
) -> Worker | Results:
    """Each source of outcomes. A test that asks for it runs with each."""
    if request.param == "worker":
        worker: Worker = request.getfixturevalue("worker")
        return worker
    if request.param == "sqlite":
        pytest.importorskip("sqlalchemy")
        app.conf.result_backend = f"db+sqlite:///{tmp_path}/results"
    else:
        app.conf.result_backend = redis_server.url(1)
        app.conf.result_serializer = "json" if request.param == "json" else "pickle"
        app.conf.accept_content = ["json", "pickle"]
    return Results(app)


def master(make: Make, policy: dict[str, Any], **schedule: Any) -> ZooKeeperScheduler:
    app_schedule = schedule or {"e": every(PERIOD)}
    beat = make(beat_schedule=app_schedule, zk_beat_policies={"*": policy})
    assert beat.election.wait(PATIENCE)
    beat._loop.turn()
    return beat


def go(beat: ZooKeeperScheduler, until: Callable[[], Any], what: str = "it to come") -> None:
    wait_until(lambda: beat._loop.turn() is not None and until(), PATIENCE, what)


def headers(app: Celery) -> list[dict[str, Any]]:
    return all_headers(app.conf.broker_url)


def sent(app: Celery, beat: ZooKeeperScheduler, count: int = 1) -> dict[str, Any]:
    """Waits until so many messages were sent in all; returns the headers of the last."""
    go(beat, lambda: len(headers(app)) >= count, "a message")
    return headers(app)[count - 1]


def state(beat: ZooKeeperScheduler, name: str = "e") -> RunState:
    found = beat._loop.ledger.state(name)
    assert found is not None
    return found


def folded(beat: ZooKeeperScheduler, name: str = "e") -> list[tuple[int | None, str]]:
    """The outcomes in the history, with the numbers of their runs."""
    found = past_of(beat, name)
    return [(past.number, past.outcome.state) for past in found if past.outcome is not None]


def skipped(beat: ZooKeeperScheduler) -> list[str | None]:
    return [past.note for past in past_of(beat, "e") if past.number is None]


def reports(client: KazooClient, root: str) -> list[str]:
    return list(client.get_children(f"{root}/inbox/reports"))


def for_a_while(beat: ZooKeeperScheduler, seconds: float) -> None:
    until = clock.boottime() + seconds
    go(beat, lambda: clock.boottime() > until)


def ask(zookeeper: ZooKeeper, beat: ZooKeeperScheduler, **more: Any) -> Answer:
    """Asks for a run of the entry, and returns the answer."""
    news = clock.Wakeup()
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, news.set) as session:
        record = RequestRecord(RUN, "e", None, to_text(datetime.now(timezone.utc)), "me", **more)
        with Asking(session, beat.election.paths, record, lambda event: None) as asking:
            go(beat, lambda: asking.answer() is not None, "an answer")
            answer = asking.answer()
            assert answer is not None
            return answer


def test_from_claim_to_outcome(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """The run is open from its claim on, and its outcome is folded once."""
    beat = master(make, {"track": True})
    header = sent(app, beat)
    assert header["zk_beat"]["report"] == f"{root}/inbox"
    assert state(beat).open[0].number == 1
    delivery = worker.begin(header)
    for_a_while(beat, 0.1)
    assert folded(beat) == []
    worker.end(delivery, header)
    go(beat, lambda: folded(beat) == [(1, "success")], "the outcome")
    (outcome,) = [past.outcome for past in past_of(beat, "e") if past.outcome is not None]
    assert (outcome.runtime_ms, outcome.worker) == (250, "celery@00000001")
    assert all(past.number != 1 for past in state(beat).open)
    go(beat, lambda: reports(client, root) == [], "the report to be deleted")
    assert beat.metrics.outcomes == {"success": 1}


def test_what_nobody_tracks(app: Celery, make: Make, client: KazooClient, root: str) -> None:
    beat = master(make, {"catch_up": 60})
    header = sent(app, beat, 2)
    assert "report" not in header["zk_beat"]
    assert state(beat).open == ()


def test_overlap_skip(app: Celery, make: Make, reporter: Worker | Results) -> None:
    """An instant that comes while a run is open is skipped, also while its message waits."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    go(beat, lambda: len(skipped(beat)) > 1, "skipped instants")
    assert len(headers(app)) == 1
    since = to_text(state(beat).open[0].at)
    assert set(skipped(beat)) == {f"skipped: the run before is still open, since {since}"}
    delivery = reporter.begin(header)
    count = len(skipped(beat))
    go(beat, lambda: len(skipped(beat)) > count, "another one")
    reporter.end(delivery, header)
    assert sent(app, beat, 2)["zk_beat"]["run"] == 2
    assert folded(beat) == [(1, "success")]


def test_overlap_queue(app: Celery, make: Make, reporter: Worker | Results) -> None:
    """The first instant that was missed waits, and leaves when the open run has ended."""
    beat = master(make, {"overlap": "queue"})
    header = sent(app, beat)
    delivery = reporter.begin(header)
    for_a_while(beat, 2.5 * PERIOD)
    assert len(headers(app)) == 1
    reporter.end(delivery, header)
    second = sent(app, beat, 2)
    one, two = (from_text(each["zk_beat"]["due"]) for each in (header, second))
    assert timedelta(seconds=PERIOD / 2) < two - one < timedelta(seconds=1.5 * PERIOD)
    assert skipped(beat) == []


def test_a_worker_that_dies(app: Celery, make: Make, worker: Worker) -> None:
    """[I12] Its run is lost, and the entry goes on."""
    beat = master(make, {"overlap": "skip"})
    worker.begin(sent(app, beat))
    for_a_while(beat, PERIOD)
    worker.die()
    sent(app, beat, 2)
    assert folded(beat) == [(1, "lost")]


def test_delivered_again(
    app: Celery, make: Make, hire: Callable[[str], Worker], client: KazooClient, root: str
) -> None:
    """With acks_late a run is not lost with its worker: the message goes to another one."""
    beat, one, two = master(make, {"overlap": "skip"}), hire("00000001"), hire("00000002")
    header = sent(app, beat)
    one.begin(header, again=True)
    one.die()
    go(beat, lambda: len(skipped(beat)) > 1, "skipped instants")
    assert folded(beat) == []
    delivery = two.begin(header, again=True)
    count = len(skipped(beat))
    go(beat, lambda: len(skipped(beat)) > count, "another one")
    two.end(delivery, header)
    sent(app, beat, 2)
    assert folded(beat) == [(1, "success")]
    go(beat, lambda: reports(client, root) == [], "the reports to be deleted")


def test_reported_twice(app: Celery, make: Make, hire: Callable[[str], Worker]) -> None:
    """The run is open as long as one delivery runs; the first outcome counts, once."""
    beat, one, two = master(make, {"overlap": "skip"}), hire("00000001"), hire("00000002")
    header = sent(app, beat)
    first, second = one.begin(header), two.begin(header)
    one.end(first, header)
    go(beat, lambda: len(skipped(beat)) > 1, "skipped instants")
    two.end(second, header, "failure")
    sent(app, beat, 2)
    assert folded(beat) == [(1, "success")]
    two.report(header, "failure")
    for_a_while(beat, 0.3)
    assert folded(beat) == [(1, "success")]
    assert beat.metrics.outcomes == {"success": 1}


def test_a_worker_that_was_taken_for_dead(
    app: Celery, make: Make, hire: Callable[[str], Worker]
) -> None:
    """Its session expired though it lives. Its run is open again, and what it reports counts."""
    beat, one, two = master(make, {"overlap": "skip"}), hire("00000001"), hire("00000001")
    header = sent(app, beat)
    delivery = one.begin(header)
    for_a_while(beat, 0.1)
    one.die()
    go(beat, lambda: folded(beat) == [(1, "lost")], "it to be lost")
    two.again(delivery, header)
    go(beat, lambda: any(past.number == 1 for past in state(beat).open), "it to be open again")
    two.end(delivery, header)
    go(beat, lambda: folded(beat)[:1] == [(1, "success")], "its outcome")


def test_an_outcome_of_a_paused_entry(app: Celery, make: Make, worker: Worker) -> None:
    """[I7] The entry is not claimed because of it."""
    beat = master(make, {"overlap": "queue"})
    header = sent(app, beat)
    delivery = worker.begin(header)
    now = datetime.now(timezone.utc)
    paused = lambda pauses: pauses.pause("e", now, "me")  # noqa: E731
    change_pauses(beat.election.session, beat.election.paths, paused)
    go(beat, lambda: beat._loop.control.pauses.since("e") is not None, "the pause")
    worker.end(delivery, header)
    go(beat, lambda: folded(beat) == [(1, "success")], "the outcome")
    for_a_while(beat, 2 * PERIOD)
    assert state(beat).total_run_count == 1


@pytest.mark.parametrize("read", [0, 1])
def test_a_run_that_ends_while_the_inbox_is_read(
    app: Celery, make: Make, worker: Worker, zookeeper: ZooKeeper, root: str, read: int
) -> None:
    """[I12] After the list of what is executed was read, or one znode more, and before its report
    is."""
    header = sent(app, master(make, {"track": True}))
    delivery = worker.begin(header)

    class Session(ZooKeeperSession):
        def read_all(self, paths: Any, watch: Any = None) -> Any:
            if ended:
                return super().read_all(paths, watch)
            first = super().read_all(paths[:read], watch)
            ended.append(delivery)
            worker.end(delivery, header)
            return first + super().read_all(paths[read:], watch)

    ended: list[str] = []
    session = Session(zookeeper.hosts, LONG_TIMEOUT, lambda: None)
    session.start()
    try:
        wait_until(lambda: session.connected, PATIENCE, "a connection")
        inbox = Inbox(session, Paths(root), None, lambda: None)
        for _ in range(2):
            found = inbox.read()[delivery]
            assert found.outcome is not None
            assert not found.is_running
            inbox.outdated("")
    finally:
        session.stop(PATIENCE)


def test_nobody_reports(app: Celery, make: Make) -> None:
    beat = master(make, {"overlap": "skip", "overlap_timeout": 3 * PERIOD})
    sent(app, beat)
    second = sent(app, beat, 2)
    assert folded(beat) == [(1, "unknown")]
    assert 1 <= len(skipped(beat)) <= 4
    assert second["zk_beat"]["run"] == 2


def test_a_worker_that_is_alive_takes_its_time(app: Celery, make: Make, worker: Worker) -> None:
    """`overlap_timeout` is for what nobody reports, not for what takes long."""
    beat = master(make, {"overlap": "skip", "overlap_timeout": PERIOD})
    worker.begin(sent(app, beat))
    go(beat, lambda: len(skipped(beat)) > 3, "skipped instants")
    assert folded(beat) == []


def test_late(app: Celery, make: Make, reporter: Worker | Results, zookeeper: ZooKeeper) -> None:
    """It is said once, whoever is master; and that it came after all."""
    heard: list[tuple[str, int]] = []

    def hear(signal: Any, run: int, **more: Any) -> None:
        heard.append((more.get("what") or more.get("state") or "started", run))

    signals = (run_late, run_started, run_finished)
    for signal in signals:
        signal.connect(hear)
    try:
        policy = {"start_within": 0.2}  # on a busy machine the first look may come after both
        yearly = {"e": {"task": "task", "schedule": YEARLY}}
        beat = master(make, policy, **yearly)
        assert ask(zookeeper, beat).ok
        header = sent(app, beat)
        go(beat, lambda: beat.metrics.late == {"start": 1}, "it to be late")
        beat.close()
        two = master(make, {**policy, "finish_within": 1.0}, **yearly)
        delivery = reporter.begin(header)
        go(two, lambda: two.metrics.late == {"finish": 1}, "it to be late again")
        reporter.end(delivery, header)
        go(two, lambda: folded(two) == [(1, "success")], "its outcome")
        wait_until(lambda: len(heard) == 4, PATIENCE, "the signals")
        assert heard == [("start", 1), ("started", 1), ("finish", 1), ("success", 1)]
    finally:
        for signal in signals:
            signal.disconnect(hear)


def test_failures_pause_the_entry(app: Celery, make: Make, reporter: Worker | Results) -> None:
    beat = master(make, {"pause_after_failures": 2, "overlap": "skip"})
    for number in (1, 2):
        header = sent(app, beat, number)
        reporter.end(reporter.begin(header), header, "failure", error="KeyError")
    control = beat._loop.control
    go(beat, lambda: control.pauses.since("e") is not None, "the pause")
    by = control.pauses.of("e").by or ""
    assert by.endswith(": 2 runs failed in a row, the last with KeyError")
    for_a_while(beat, 2 * PERIOD)
    assert len(headers(app)) == state(beat).total_run_count == 2
    now = datetime.now(timezone.utc)
    resumed = lambda pauses: pauses.resume("e", now, True, "me")  # noqa: E731
    change_pauses(beat.election.session, beat.election.paths, resumed)
    header = sent(app, beat, 3)
    reporter.end(reporter.begin(header), header, "failure")
    header = sent(app, beat, 4)  # it takes two more to pause it again
    assert control.pauses.since("e") is None


def test_a_lost_run_that_has_failed_counts_once(
    app: Celery, make: Make, hire: Callable[[str], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when only the history still has it."""
    monkeypatch.setattr("celery_zk_beat.history._LEAST", 0)
    beat = master(make, {"pause_after_failures": 2})
    one, two = hire("00000001"), hire("00000001")
    header = sent(app, beat)
    one.begin(header)
    for_a_while(beat, 0.1)
    one.die()
    go(beat, lambda: folded(beat) == [(1, "lost")], "it to be lost")
    assert state(beat).failed == 1
    go(beat, lambda: all(past.number != 1 for past in state(beat).past), "the history")
    two.report(header, "failure")
    go(beat, lambda: folded(beat) == [(1, "failure")], "its outcome")
    assert state(beat).failed == 1


def test_a_run_that_is_asked_for(
    app: Celery, make: Make, reporter: Worker | Results, zookeeper: ZooKeeper
) -> None:
    beat = master(make, {"overlap": "skip"})
    reporter.begin(sent(app, beat))
    refused = ask(zookeeper, beat)
    assert not refused.ok
    assert refused.text.startswith("run 1 is still open, since ")
    assert refused.text.endswith(": --overlap runs the entry all the same")
    assert ask(zookeeper, beat, overlap=1).ok
    assert sent(app, beat, 2)["zk_beat"]["run"] == 2


def test_reports_of_no_use(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """[I12] Damaged, of runs that nobody knows, unreadable, or such that they cannot be deleted:
    none holds up the others, and those that can be deleted are."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    folder = f"{root}/inbox/reports"
    client.create(f"{folder}/damaged", b"\xff{")
    client.create(f"{folder}/a.00000009-1", b'{"format":2,"entry":"e"}')
    worker.report({**header, "zk_beat": {**header["zk_beat"], "run": 77}}, "success")
    worker.report({**header, "zk_beat": {**header["zk_beat"], "entry": "nobody"}}, "success")
    secret = make_digest_acl("somebody", "else", all=True)
    client.create(f"{folder}/unreadable", b"", acl=[secret])
    delivery = worker.begin(header)
    client.create(f"{folder}/{delivery}/below")
    worker.end(delivery, header)
    second = sent(app, beat, 2)
    assert folded(beat) == [(1, "success")]
    go(beat, lambda: reports(client, root) == [delivery], "the others to be deleted")
    other = worker.begin(second)
    worker.end(other, second)
    sent(app, beat, 3)
    assert folded(beat) == [(1, "success"), (2, "success")]
    assert beat.metrics.elections == 1


def test_a_worker_has_what_was_perhaps_not_sent(
    app: Celery, make: Make, worker: Worker, zookeeper: ZooKeeper
) -> None:
    """[I3] A master that dies before it confirms a run leaves the next one in doubt. It does not
    send the run again if a worker has it."""
    beat = master(make, {"track": True}, e={"task": "task", "schedule": YEARLY})
    beat._loop.ledger.confirm = lambda: None  # type: ignore[method-assign]
    assert ask(zookeeper, beat).ok
    header = sent(app, beat)
    delivery = worker.begin(header)
    beat.election.stop()
    two = make()
    assert two.election.wait(PATIENCE)
    two._loop.turn()
    assert two._loop.ledger.outbox == {}
    worker.end(delivery, header)
    go(two, lambda: folded(two) == [(1, "success")], "the outcome")
    assert len(headers(app)) == 1


def test_a_source_that_cannot_be_read(
    app: Celery, make: Make, client: KazooClient, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """[I12] Runs go on, and open ones end by `overlap_timeout`."""
    secret = make_digest_acl("somebody", "else", all=True)
    client.create(f"{root}/inbox/reports", makepath=True)
    client.create(f"{root}/inbox/running", acl=[secret])
    client.set_acls(f"{root}/inbox/reports", [secret])
    beat = master(make, {"overlap": "skip", "overlap_timeout": PERIOD})
    go(beat, lambda: folded(beat)[:1] == [(1, "unknown")], "its end")
    sent(app, beat, 2)
    errors = [each for each in caplog.records if "is not known" in each.getMessage()]
    assert 1 <= len(errors) < 4
    assert beat.metrics.elections == 1


def test_ended_while_nobody_was_master(app: Celery, make: Make, worker: Worker) -> None:
    """[I6] The next master folds it, and a run whose worker died meanwhile is lost."""
    entries = {name: every(PERIOD) for name in ("a", "b")}
    beat = master(make, {"overlap": "skip"}, **entries)
    go(beat, lambda: len(headers(app)) == 2, "a run of each")
    one, two = headers(app)
    first = worker.begin(one)
    worker.begin(two)
    beat.close()
    worker.end(first, one)
    worker.die()
    after = make()
    assert after.election.wait(PATIENCE)
    go(after, lambda: len(headers(app)) >= 4, "the next of each")
    assert folded(after, one["zk_beat"]["entry"])[:1] == [(1, "success")]
    assert folded(after, two["zk_beat"]["entry"])[:1] == [(1, "lost")]


def stick(client: KazooClient, root: str, delivery: str) -> None:
    """Makes a report such that it cannot be deleted."""
    client.create(f"{root}/inbox/reports/{delivery}/below")


def test_reports_that_cannot_be_deleted(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """[I12] Several of them keep nobody's run open."""
    names = ("a", "b", "c")
    beat = master(make, {"overlap": "skip"}, **{name: every(PERIOD) for name in names})
    go(beat, lambda: len(headers(app)) == 3, "a run of each")
    first = headers(app)
    for header in first:
        for _ in range(10):
            stick(client, root, worker.begin(header))
    worker.die()
    go(beat, lambda: len(headers(app)) >= 6, "the next of each")
    for name in names:
        assert folded(beat, name)[:1] == [(1, "lost")]
    assert beat.metrics.outcomes["lost"] == 3
    assert beat.metrics.elections == 1


def test_reports_with_long_names(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """[I12] A transaction that deletes some of them would be larger than the server takes."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    loads = beat._loop.ledger.limits
    for number in range(3):
        client.create(f"{root}/inbox/reports/{number}" + 400_000 * "a", b"")
    delivery = worker.begin(header)
    worker.end(delivery, header)
    sent(app, beat, 2)
    assert folded(beat) == [(1, "success")]
    assert beat._loop.ledger.limits is loads
    assert beat.metrics.elections == 1


@pytest.mark.parametrize("folder", ["reports", "running"])
def test_a_folder_that_somebody_has_deleted(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str, folder: str
) -> None:
    """The master makes it again."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    client.delete(f"{root}/inbox/{folder}", recursive=True)
    go(beat, lambda: client.exists(f"{root}/inbox/{folder}") is not None, "the folder")
    delivery = worker.begin(header)
    worker.end(delivery, header)
    sent(app, beat, 2)
    assert folded(beat) == [(1, "success")]


def test_the_open_run_is_dropped(
    app: Celery, make: Make, worker: Worker, zookeeper: ZooKeeper
) -> None:
    """What was queued behind it leaves."""
    beat = master(make, {"overlap": "queue"})
    header = sent(app, beat)
    delivery = worker.begin(header)
    for_a_while(beat, 2 * PERIOD)
    dispatcher = beat._loop.dispatcher
    dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    dispatcher.publisher.publish_soon = lambda runs: None  # type: ignore
    assert ask(zookeeper, beat, overlap=1).ok
    worker.end(delivery, header)
    go(beat, lambda: folded(beat) == [(1, "success")], "the outcome")
    del dispatcher.publisher.publish
    waiting = beat._loop.ledger.outbox["e"]
    assert [past.number for past in state(beat).open] == [2]
    dispatcher.drop([waiting], "asked for")
    assert sent(app, beat, 2)["zk_beat"]["run"] == 3


def test_a_page_that_is_repaired(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """What is reported while its page is damaged is not lost."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    delivery = worker.begin(header)
    for_a_while(beat, 0.2)
    path = beat.election.paths.page(page_of("e"))
    beat.close()
    good = client.get(path)[0]
    client.set(path, b"damaged")
    two = make()
    assert two.election.wait(PATIENCE)
    two._loop.turn()
    worker.end(delivery, header)
    for_a_while(two, 0.5)
    assert reports(client, root) == [delivery]
    client.set(path, good)
    two._loop._loaded_at = -1e9
    sent(app, two, 2)
    assert folded(two) == [(1, "success")]


def test_forged_reports_of_what_nobody_tracks(
    app: Celery, make: Make, worker: Worker, zookeeper: ZooKeeper
) -> None:
    """They do not keep a run from being sent."""
    yearly = {"task": "task", "schedule": YEARLY}
    beat = make(beat_schedule={"e": yearly}, zk_beat_policies={"x": {"track": True}})
    assert beat.election.wait(PATIENCE)
    beat._loop.turn()
    beat._loop.ledger.confirm = lambda: None  # type: ignore[method-assign]
    assert ask(zookeeper, beat).ok
    worker.begin(sent(app, beat))
    beat.election.stop()
    two = make()
    assert two.election.wait(PATIENCE)
    sent(app, two, 2)


def test_a_forged_znode_of_what_is_executed(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """[I12] One that is not ephemeral would stay for ever. It keeps no run open, and goes with its
    report; also if the run is unknown, or the znode cannot be read."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    worker.forge(header)
    worker.forge({**header, "id": "x", "zk_beat": {**header["zk_beat"], "run": 77}})
    second = sent(app, beat, 2)
    assert folded(beat) == [(1, "lost")]
    secret = make_digest_acl("somebody", "else", all=True)
    client.set_acls(f"{root}/inbox/running/{worker.forge(second)}", [secret])
    sent(app, beat, 3)
    assert folded(beat) == [(1, "lost"), (2, "lost")]
    go(beat, lambda: reports(client, root) == [], "the reports to be deleted")
    assert client.get_children(f"{root}/inbox/running") == []
    assert beat.metrics.elections == 1


def test_a_forged_znode_in_the_place_of_another(
    app: Celery,
    make: Make,
    worker: Worker,
    client: KazooClient,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names of what is executed are the same then."""
    for module in ("inbox", "tracking"):
        monkeypatch.setattr(f"celery_zk_beat.outcomes.{module}.CHECK_EVERY", 0.5)
    beat = master(make, {"overlap": "skip"})
    path = f"{root}/inbox/running/{worker.begin(sent(app, beat))}"
    for_a_while(beat, 1.0)
    assert folded(beat) == []
    transaction = client.transaction()
    transaction.delete(path)
    transaction.create(path, b"")
    transaction.commit()
    sent(app, beat, 2)
    assert folded(beat) == [(1, "lost")]


def test_a_forged_znode_that_cannot_be_deleted(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    beat = master(make, {"overlap": "skip"})
    client.create(f"{root}/inbox/running/{worker.forge(sent(app, beat))}/below")
    sent(app, beat, 2)
    assert folded(beat) == [(1, "lost")]
    assert beat.metrics.elections == 1


def test_a_run_that_was_dropped_in_doubt(
    app: Celery, make: Make, worker: Worker, zookeeper: ZooKeeper
) -> None:
    """With zk_beat_recovery "drop" the next master drops what was perhaps published. If a worker
    has it after all, the run is open as any other."""
    app.conf.zk_beat_recovery = "drop"
    beat = master(make, {"overlap": "skip"}, e={"task": "task", "schedule": YEARLY})
    beat._loop.ledger.confirm = lambda: None  # type: ignore[method-assign]
    assert ask(zookeeper, beat).ok
    header = sent(app, beat)
    beat.election.stop()
    two = make()
    assert two.election.wait(PATIENCE)
    two._loop.turn()
    assert state(two).open == ()
    delivery = worker.begin(header)
    go(two, lambda: [past.number for past in state(two).open] == [1], "it to be open")
    worker.end(delivery, header)
    go(two, lambda: folded(two) == [(1, "success")], "its outcome")
    assert len(headers(app)) == 1


def test_reports_that_must_not_be_deleted(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """[I12] Where the master lacks the right, outcomes are folded all the same."""
    client.create(f"{root}/inbox/reports", makepath=True)
    acl = make_acl("world", "anyone", read=True, create=True)
    client.set_acls(f"{root}/inbox/reports", [acl])
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    worker.end(worker.begin(header), header)
    sent(app, beat, 2)
    for_a_while(beat, 2 * PERIOD)
    assert folded(beat) == [(1, "success")]
    assert beat.metrics.outcomes == {"success": 1}


def test_many_forged_reports(
    app: Celery, make: Make, worker: Worker, client: KazooClient, root: str
) -> None:
    """Reports of runs that an entry never had are soon deleted."""
    beat = master(make, {"overlap": "skip"})
    header = sent(app, beat)
    for number in range(1000, 2000):
        forged = {**header, "zk_beat": {**header["zk_beat"], "run": number}}
        worker.report(forged, "success")
    for_a_while(beat, 3.0)
    assert reports(client, root) == []
