"""What readers see of tracked runs, on real masters."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler, by_entry, history
from celery_zk_beat.metrics import EntryNumbers
from celery_zk_beat.paths import Paths, page_of
from celery_zk_beat.status import terminal
from celery_zk_beat.status.executing import Executing
from celery_zk_beat.status.reader import Reader
from celery_zk_beat.status.snapshot import Entry, RecentRun
from celery_zk_beat.zookeeper.operations import Create
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import LONG_TIMEOUT, PATIENCE

from . import test_outcomes as played
from .conftest import Make, every

Worker = played.Worker
hire, worker, settings = played.hire, played.worker, played.settings

Look = Callable[[ZooKeeperScheduler], Reader]


@pytest.fixture
def look(zookeeper: ZooKeeper) -> Iterator[Look]:
    """Reads anew, with a session of its own."""
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, lambda: None) as session:

        def look(beat: ZooKeeperScheduler) -> Reader:
            reader = Reader(session, beat.settings, beat)
            reader.read()
            return reader

        yield look


def plain(message: str, colour: str) -> str:
    return message


def run_of(reader: Reader, number: int) -> RecentRun:
    (found,) = [run for run in reader.history("e", 100) if run.run == number]
    return found


def entry_of(reader: Reader) -> Entry:
    (found,) = [entry for entry in reader.read().entries if entry.name == "e"]
    return found


def columns(lines: list[str]) -> list[str]:
    """The titles of a table."""
    return lines[0].split("  ")


def test_a_run_from_its_claim_to_its_outcome(
    app: Celery, make: Make, worker: Worker, look: Look
) -> None:
    """Open; then running on a worker, for as long as that says so; then ended, and how."""
    beat = played.master(make, {"overlap": "skip"})
    header = played.sent(app, beat)
    reader = look(beat)
    outcome = run_of(reader, 1).outcome
    assert outcome is not None
    assert (outcome.state, outcome.at, outcome.worker, outcome.late) == ("open", None, None, None)
    tracked = entry_of(reader).tracked
    assert tracked is not None
    assert (tracked.open, tracked.last, tracked.outcomes) == (1, None, {})

    delivery = worker.begin(header)
    outcome = run_of(look(beat), 1).outcome
    assert outcome is not None
    assert (outcome.state, outcome.worker) == ("open", "celery@00000001")
    assert outcome.running_since is not None
    lines = terminal.history([run_of(look(beat), 1)], now(), plain, math.inf, False)
    assert " running for " in lines[1]

    played.go(beat, lambda: played.skipped(beat), "a skipped instant")
    worker.end(delivery, header, "failure", error="KeyError")
    played.go(beat, lambda: played.folded(beat) == [(1, "failure")], "the outcome")
    reader = look(beat)
    outcome = run_of(reader, 1).outcome
    assert outcome is not None
    assert (outcome.state, outcome.error, outcome.runtime) == ("failure", "KeyError", 0.25)
    assert outcome.at is not None
    tracked = entry_of(reader).tracked
    assert tracked is not None
    assert (tracked.failed_in_a_row, tracked.outcomes) == (1, {"failure": 1})
    assert (tracked.runtime_median, tracked.runtime_longest) == (0.25, 0.25)
    assert tracked.last == outcome
    lines = terminal.history(reader.history("e", 100), now(), plain, math.inf, False)
    (line,) = [line for line in lines if "failure: KeyError" in line]
    assert "250 ms" in line
    assert "celery@00000001" in line
    assert any("skipped: the run before is still open" in line for line in lines)
    (line,) = [line for line in status_of(reader) if line.endswith("  e")]
    assert "failure: KeyError, " in line
    assert line.split()[-6:] == ["0", "of", "1", "250", "ms", "e"]
    json.dumps(reader.read().to_json())


def test_late(app: Celery, make: Make, look: Look, zookeeper: ZooKeeper) -> None:
    yearly = {"task": "task", "schedule": played.YEARLY}
    beat = played.master(make, {"start_within": 0.1, "finish_within": 0.5}, e=yearly)
    assert played.ask(zookeeper, beat).ok
    played.sent(app, beat)
    played.go(beat, lambda: beat.metrics.late.get("start"), "it to be late")
    outcome = run_of(look(beat), 1).outcome
    assert outcome is not None
    assert (outcome.state, outcome.late) == ("open", "start")
    played.go(beat, lambda: beat.metrics.late.get("finish"), "it to be late again")
    reader = look(beat)
    tracked = entry_of(reader).tracked
    assert tracked is not None
    assert (tracked.late, tracked.open_since) == ("finish", state_open_since(beat))
    (line,) = [line for line in status_of(reader) if line.endswith("  e")]
    assert ", late to finish" in line
    lines = terminal.history(reader.history("e", 100), now(), plain, math.inf, False)
    assert any(", late to finish" in line for line in lines)


def test_what_nobody_tracks(app: Celery, make: Make, look: Look) -> None:
    """It is shown as ever."""
    beat = played.master(make, {"catch_up": 60})
    played.sent(app, beat)
    reader = look(beat)
    assert run_of(reader, 1).outcome is None
    assert entry_of(reader).tracked is None
    lines = terminal.history(reader.history("e", 100), now(), plain, math.inf, False)
    assert {"OUTCOME", "RUNTIME", "WORKER"}.isdisjoint(columns(lines))
    (titles,) = [line for line in status_of(reader) if line.startswith("NEXT RUN AT")]
    assert {"LAST OUTCOME", "OPEN", "SUCCESS", "RUNTIME"}.isdisjoint(columns([titles]))


def test_following(app: Celery, make: Make, worker: Worker, zookeeper: ZooKeeper) -> None:
    """Who follows is told that a worker begins, and is not asked for what has not changed."""
    beat = played.master(make, {"track": True})
    news: list[Any] = []
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, lambda: None) as session:
        reader = Reader(session, beat.settings, beat, on_change=lambda: news.append(1))
        header = played.sent(app, beat)
        number = header["zk_beat"]["run"]

        def seen() -> Any:
            reader.read()
            outcome = run_of(reader, number).outcome
            assert outcome is not None
            return outcome

        assert seen().worker is None
        del news[:]
        worker.begin(header)
        wait_until(lambda: news, PATIENCE, "the news")
        assert seen().worker == "celery@00000001"


def test_who_executes_a_run(zookeeper: ZooKeeper, root: str, worker: Worker) -> None:
    """It is found, although no beat had made the inbox at the first look. What has ended, and what
    cannot be understood or is forged, is not."""
    paths = Paths(root)
    header = {"entry": "e", "run": 1, "due": "2026-01-01T12:00:00.000000+00:00"}
    message = {"zk_beat": header, "id": "a-b"}
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, lambda: None) as session:
        executing = Executing(session, paths, lambda: None)
        assert executing.read(["a-b"]) == {}
        for path in (paths.inbox_reports, paths.inbox_running):
            session.ensure(path)
        session.commit(Create(f"{paths.inbox_reports}/c.00000001-1", b"{"))
        session.commit(Create(f"{paths.inbox_running}/c.00000001-1", b""))
        worker.forge({**message, "id": "d"})
        delivery = worker.begin(message)
        (found,) = executing.read(["a-b", "c", "d"]).values()
        assert found.worker == "celery@00000001"
        assert executing.read(["another"]) == {}
        worker.end(delivery, message)
        wait_until(lambda: not executing.read(["a-b"]), PATIENCE, "its end")


def numbers(beat: ZooKeeperScheduler) -> EntryNumbers:
    found = beat.metrics.by_entry
    assert found is not None
    return found[0]


def test_metrics_of_an_entry(
    app: Celery,
    make: Make,
    worker: Worker,
    zookeeper: ZooKeeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken from ZooKeeper, so that the next master says the same; also of what moved to the
    history between two looks."""
    monkeypatch.setattr(by_entry, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(history, "_LEAST", 0)
    app.conf.zk_beat_metrics_entries = ["e"]
    neighbour = next(n for n in map(str, itertools.count()) if page_of(n) == page_of("e"))
    schedule = {"e": {"task": "task", "schedule": played.YEARLY}, neighbour: every(played.PERIOD)}
    beat = played.master(make, {"track": True}, **schedule)

    def asked(number: int) -> dict[str, Any]:
        """The headers of a run that is asked for."""
        assert played.ask(zookeeper, beat).ok

        def sent() -> list[dict[str, Any]]:
            wanted = {"entry": "e", "run": number}
            return [
                each for each in played.headers(app) if wanted.items() <= each["zk_beat"].items()
            ]

        played.go(beat, sent, "a message")
        return sent()[0]

    header = asked(1)
    opened = state_open_since(beat).timestamp()
    played.go(beat, lambda: numbers(beat).open_since == opened, "the open run")
    assert (numbers(beat).outcome, numbers(beat).succeeded) == (None, opened)
    worker.end(worker.begin(header), header)
    played.go(beat, lambda: numbers(beat).outcome == "success", "the outcome")
    ended = numbers(beat).succeeded
    assert ended is not None
    assert ended == numbers(beat).ended
    assert ended >= opened
    assert numbers(beat).runtime == 0.25

    header = asked(2)
    played.go(beat, lambda: numbers(beat).open_since is not None, "the open run")
    monkeypatch.setattr(beat._loop._by_entry, "turn", lambda: math.inf)
    worker.end(worker.begin(header), header, "failure")
    played.go(beat, lambda: played.folded(beat)[1:] == [(2, "failure")], "the outcome")
    played.go(beat, lambda: not played.state(beat).past, "the history")
    monkeypatch.undo()
    played.go(beat, lambda: numbers(beat).outcome == "failure", "the next look")
    assert numbers(beat).succeeded == ended
    said = numbers(beat)

    beat.close()
    two = make()
    played.go(two, lambda: two.metrics.by_entry, "the next master")
    assert numbers(two) == said


def status_of(reader: Reader) -> list[str]:
    seen = reader.read()
    return terminal.status(seen, seen.read_at, plain, math.inf)


def state_open_since(beat: ZooKeeperScheduler) -> datetime:
    return played.state(beat).open[0].at


def now() -> datetime:
    return datetime.now(timezone.utc)
