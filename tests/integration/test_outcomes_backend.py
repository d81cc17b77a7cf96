"""What becomes of tracked runs, as Celery's result backend tells it. What both sources of outcomes
have in common is in test_outcomes.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_zk_beat import ZooKeeperScheduler, clock
from example_project.processes import LOOPBACK, free_port
from example_project.servers import Redis
from tests.conftest import PATIENCE

from .conftest import LONG_AGO, Make, every, past_of
from .test_outcomes import PERIOD, Results, folded, for_a_while, go, headers, master, sent, skipped


@pytest.fixture
def results(app: Celery, redis_server: Redis) -> Results:
    app.conf.result_backend = redis_server.url(1)
    return Results(app)


def keys(app: Celery) -> set[bytes]:
    """Those of the result backend."""
    with redis.Redis.from_url(app.conf.result_backend) as server:
        found: set[bytes] = set(server.keys())
        return found


def test_what_is_recorded(app: Celery, make: Make, results: Results) -> None:
    """The type of an exception, never its arguments. The results stay."""
    before = keys(app) if app.conf.result_backend else set()
    beat = master(make, {"track": True})
    for number, (state, more) in enumerate(
        [("success", {}), ("failure", {"error": "KeyError"}), ("revoked", {}), ("expired", {})], 1
    ):
        header = sent(app, beat, number)
        results.end(results.begin(header), header, state, **more)
        go(beat, lambda number=number: len(folded(beat)) == number, f"outcome {number}")  # type: ignore[misc]
    found = [past.outcome for past in past_of(beat, "e") if past.outcome is not None]
    assert [(each.state, each.error) for each in found] == [
        ("success", None),
        ("failure", "KeyError"),
        ("revoked", None),
        ("expired", None),
    ]
    assert {(each.worker, each.runtime_ms) for each in found} == {("celery@00000001", None)}
    assert len(keys(app) - before) == 4


def test_a_term_that_ends(app: Celery, make: Make, results: Results) -> None:
    """[I6] The next master asks for what is open then, before it decides that anything is late."""
    beat = master(make, {"overlap": "skip", "finish_within": 1.0, "overlap_timeout": 1.0})
    header = sent(app, beat)
    beat.close()
    results.end("", header)
    clock.sleep(1.5)  # so that both are over
    after = make()
    assert after.election.wait(PATIENCE)
    sent(app, after, 2)
    assert folded(after)[0] == (1, "success")
    assert after.metrics.late == {}


def test_it_is_away(
    app: Celery, make: Make, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """[I6] Dispatching goes on. Open runs wait for `overlap_timeout`, and once it is back it is
    asked again."""
    results = Results(app)
    app.conf.result_backend = f"redis://{LOOPBACK}:{free_port()}/1"
    policies = {"a": {"overlap": "skip", "overlap_timeout": 3 * PERIOD}, "b": {"overlap": "skip"}}
    beat = make(
        beat_schedule={name: every(PERIOD) for name in "abc"},
        zk_beat_policies=policies,
    )
    assert beat.election.wait(PATIENCE)
    go(beat, lambda: folded(beat, "a"), "the time-out")
    assert folded(beat, "a")[0] == (1, "unknown")
    assert folded(beat, "b") == []
    assert sum(each["zk_beat"]["entry"] == "c" for each in headers(app)) >= 3
    warnings = [each for each in caplog.messages if "cannot be read from the result" in each]
    assert len(warnings) == 1
    app.conf.result_backend = redis_server.url(1)
    app._backend = app._get_backend()
    header = next(each for each in headers(app) if each["zk_beat"]["entry"] == "b")
    results.end("", header)
    go(beat, lambda: folded(beat, "b"), "the outcome")
    assert folded(beat, "b")[0] == (1, "success")


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_damaged_results(
    app: Celery, make: Make, redis_server: Redis, tmp_path: Path, kind: str
) -> None:
    """[I12] They do not hold up the others, however many there are."""
    names = [f"damaged{number}" for number in range(6)]
    app.conf.result_backend = redis_server.url(1)
    if kind == "sqlite":
        pytest.importorskip("sqlalchemy")
        app.conf.result_backend = f"db+sqlite:///{tmp_path}/results"
    results = Results(app)
    entries = {name: every(36000, last_run_at=LONG_AGO) for name in [*names, "good"]}
    beat = make(beat_schedule=entries, zk_beat_policies={"*": {"track": True}})
    assert beat.election.wait(PATIENCE)
    go(beat, lambda: len(headers(app)) == 7, "all messages")
    for header in headers(app):
        if header["zk_beat"]["entry"] == "good":
            results.end("", header)
        else:
            damage(app, kind, results, header)
    go(beat, lambda: folded(beat, "good"), "the outcome")
    assert folded(beat, "good") == [(1, "success")]
    assert all(folded(beat, name) == [] for name in names)


def damage(app: Celery, kind: str, results: Results, header: dict[str, Any]) -> None:
    if kind == "redis":
        with redis.Redis.from_url(app.conf.result_backend) as server:
            server.set(f"celery-task-meta-{header['id']}", b"{")
        return
    from sqlalchemy import text

    results.end("", header)
    with app.backend.ResultSession() as session:
        changed = text("UPDATE celery_taskmeta SET result = X'80' WHERE task_id = :id")
        session.execute(changed, {"id": header["id"]})
        session.commit()


def test_a_backend_that_hangs(app: Celery, make: Make) -> None:
    """[I12] Nobody waits for it but the thread that asks, and a new master some seconds."""
    import socket

    with socket.create_server((LOOPBACK, 0)) as silent:
        app.conf.result_backend = f"redis://{LOOPBACK}:{silent.getsockname()[1]}/1"
        Results(app)
        beat = master(make, {"overlap": "skip", "overlap_timeout": 2 * PERIOD})
        second = sent(app, beat, 2)
        assert folded(beat)[0] == (1, "unknown")
        assert second["zk_beat"]["run"] == 2
        assert 1 <= len(skipped(beat)) <= 7 / PERIOD
        beat.close()


def test_what_cannot_be_told(
    app: Celery, make: Make, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once."""
    beat = master(make, {"start_within": 1})
    sent(app, beat, 2)
    for_a_while(beat, 0.2)
    said = [each for each in caplog.messages if "task_track_started" in each]
    assert said == [
        "e: 'start_within' needs task_track_started, or task counts as started only when it has "
        "ended. Further entries are not logged"
    ]


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (None, "result_backend, which is not set"),
        ("disabled://", "result_backend, which is not set"),
        ("rpc://", "another result_backend than rpc://"),
        ("nothing://", "result_backend, which cannot be used: "),
    ],
)
def test_backends_that_are_refused(app: Celery, backend: str | None, why: str) -> None:
    app.conf.update(zk_beat_outcomes="backend", result_backend=backend)
    with pytest.raises(SystemExit, match="zk_beat_outcomes = 'backend' needs ") as refused:
        ZooKeeperScheduler(app=app, lazy=True)
    assert why in str(refused.value)
