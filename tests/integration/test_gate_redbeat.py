"""RedBeat behind the election, turned by hand: what lies in Redis is what counts, also of an entry
that is not due for long, or that cannot be decoded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.schedules import schedule

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.gate import stores
from celery_zk_beat.runs import Run
from example_project.servers import Redis

from .conftest import away, back, gated_of, history, state_of
from .test_control import Operator, heard
from .test_control import operator as operator
from .test_gate import PERIOD, REDBEAT, Start, configure, crash, turn_for, turn_until
from .test_gate import start as start

DAY = 86400.0


class Entries:
    """The entries in Redis, and a hand in them."""

    def __init__(self, app: Celery, server: redis.Redis) -> None:
        self.app, self.server = app, server

    def add(self, name: str, seconds: float, **fields: Any) -> None:
        from redbeat import RedBeatSchedulerEntry

        task = fields.pop("task", name)
        RedBeatSchedulerEntry(name, task, seconds, app=self.app, **fields).save()

    def get(self, name: str) -> Any:
        from redbeat import RedBeatSchedulerEntry

        return RedBeatSchedulerEntry.from_key(self.key(name), app=self.app)

    def change(self, name: str, **fields: Any) -> None:
        """As RedBeat's documentation has it: an entry of the same name is saved."""
        entry = self.get(name)
        for field, value in fields.items():
            setattr(entry, field, value)
        entry.save()

    def key(self, name: str) -> str:
        return f"{self.app.conf.redbeat_key_prefix}{name}"


@pytest.fixture
def entries(app: Celery, redis_server: Redis, tmp_path: Path) -> Iterator[Entries]:
    configure(app, REDBEAT, redis_server, tmp_path)
    app.conf.beat_max_loop_interval = 1
    with redis.Redis.from_url(redis_server.url(1), decode_responses=True) as server:
        yield Entries(app, server)


def asked(scheduler: ZooKeeperScheduler, operator: Operator, name: str) -> str:
    """What the master answers to whoever asks for a run."""
    with operator.ask("run", name) as asking:
        heard(scheduler)
        answer = asking.answer()
        assert answer is not None
        return answer.text


def test_a_run_of_what_was_changed(
    app: Celery, start: Start, entries: Entries, operator: Operator
) -> None:
    """An entry that is due tomorrow; changed, disabled, deleted, or made a moment before."""
    entries.add("far", DAY, task="old", args=["old"])
    scheduler = start()
    turn_until(scheduler, lambda: "far" in scheduler.schedule)
    entries.change("far", task="new", args=["new"])
    assert asked(scheduler, operator, "far") == "claimed"
    assert [run.task for run in history(app)] == ["new"]
    entries.change("far", enabled=False)
    assert "no entry 'far'" in asked(scheduler, operator, "far")
    entries.change("far", enabled=True)
    assert asked(scheduler, operator, "far") == "claimed"
    entries.get("far").delete()
    assert "no entry 'far'" in asked(scheduler, operator, "far")
    entries.add("made", DAY)
    assert asked(scheduler, operator, "made") == "claimed"


def test_what_is_not_due_is_read_now_and_then(
    app: Celery, start: Start, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_READ_EVERY", 0.5)
    entries.add("far", DAY, task="old")
    entries.add("disabled", DAY)
    scheduler = start()
    turn_until(scheduler, lambda: "far" in scheduler.schedule)
    entries.change("far", task="new")
    entries.change("disabled", enabled=False)
    turn_until(scheduler, lambda: scheduler.schedule["far"].task == "new")
    turn_until(scheduler, lambda: "disabled" not in scheduler.schedule)


def test_what_has_not_changed_is_not_decoded(
    app: Celery, start: Start, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_READ_EVERY", 0.0)
    entries.add("far", DAY)
    scheduler = start()
    turn_until(scheduler, lambda: "far" in scheduler.schedule)
    turn_for(scheduler, 0.5)
    known = scheduler.schedule["far"]
    turn_for(scheduler, 1.0)
    assert scheduler.schedule["far"] is known


@pytest.mark.parametrize("change", ["changed", "disabled", "deleted"])
def test_a_run_that_waits(app: Celery, start: Start, entries: Entries, change: str) -> None:
    """Of an entry that is not due again for long. What is sent is what lies in Redis then."""
    entries.add("e", PERIOD, task="old")
    good = away(app)
    scheduler = start()
    turn_until(scheduler, lambda: scheduler._loop.ledger.outbox)
    entries.change("e", schedule=schedule(DAY))
    turn_for(scheduler, 1.5)  # so that RedBeat itself does not read it any more
    if change == "changed":
        entries.change("e", task="new")
    elif change == "disabled":
        entries.change("e", enabled=False)
    else:
        entries.get("e").delete()
    back(app, good, scheduler)
    turn_until(scheduler, lambda: not scheduler._loop.ledger.outbox)
    if change == "changed":
        assert [run.task for run in history(app)] == ["new"]
    else:
        assert history(app) == []
        assert state_of(scheduler, "e").dropped == (1,)


def spoil(entries: Entries, name: str, how: str) -> None:
    key, server = entries.key(name), entries.server
    text: Any = server.hget(key, "definition")
    if how == "no JSON":
        server.hset(key, "definition", text[:-5])
    elif how == "no such schedule":
        server.hset(key, "definition", text.replace('"interval"', '"lunar"'))
    elif how == "no schedule":
        server.hset(key, "definition", text.replace('"schedule"', '"other"'))
    elif how == "half a schedule":
        server.hset(key, "definition", text.replace('"every"', '"other"'))
    elif how == "no time":
        server.hset(key, "meta", '{"last_run_at": "yesterday"}')
    elif how == "no text":
        server.hset(key, "definition", b"\xff")
    else:
        server.delete(key)
        server.set(key, "a string")


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        *(("no JSON", PERIOD), ("no JSON", DAY), ("no such schedule", PERIOD)),
        *(("no schedule", PERIOD), ("half a schedule", PERIOD), ("no time", PERIOD)),
        *(("no text", PERIOD), ("no text", DAY), ("no hash", PERIOD), ("no hash", DAY)),
    ],
)
def test_an_entry_that_cannot_be_decoded(
    app: Celery,
    start: Start,
    entries: Entries,
    caplog: pytest.LogCaptureFixture,
    how: str,
    seconds: float,
) -> None:
    """The others go on, one line names it, and it is not lost: when it is mended it runs."""
    entries.add("bad", seconds)
    entries.add("e", PERIOD)
    good: Any = entries.server.hgetall(entries.key("bad"))
    spoil(entries, "bad", how)
    scheduler = start()
    turn_until(scheduler, lambda: history(app))
    turn_for(scheduler, 1.0)
    (line,) = [line for line in caplog.messages if re.search(r"\bbad\b", line)]
    assert line.startswith("bad: cannot be read, so it does not run: ")
    assert "Traceback" not in caplog.text
    gated = gated_of(scheduler)
    assert gated is not None
    assert list(gated.adapter.unreadable) == ["bad"]
    assert "bad" not in scheduler.schedule
    entries.server.delete(entries.key("bad"))
    entries.server.hset(entries.key("bad"), mapping=good)
    entries.change("bad", schedule=schedule(1))
    gated.adapter._read_at = 0.0  # type: ignore[attr-defined]
    turn_until(scheduler, lambda: any(run.task == "bad" for run in history(app)))
    assert gated.adapter.unreadable == {}


def test_a_run_that_waits_while_its_entry_cannot_be_decoded(
    app: Celery, start: Start, entries: Entries
) -> None:
    """It is not dropped: somebody may mend the entry."""
    entries.add("e", PERIOD)
    good = away(app)
    first = start()
    turn_until(first, lambda: first._loop.ledger.outbox)
    crash(first)
    mended = entries.server.hget(entries.key("e"), "definition")
    spoil(entries, "e", "no JSON")
    app.conf.broker_write_url = app.conf.broker_url = good
    second = start()
    turn_for(second, PERIOD / 2)
    waiting: list[Run] = list(second._loop.ledger.outbox.values())
    assert [run.number for run in waiting] == [1]
    entries.server.hset(entries.key("e"), "definition", str(mended))
    turn_until(second, lambda: history(app))
    assert history(app)[0].run == 1


def test_one_that_cannot_be_decoded_is_next(app: Celery, start: Start, entries: Entries) -> None:
    """RedBeat asks Redis which entry is next: that it is this one says nothing of those after
    it, and they are to run in time."""
    app.conf.beat_max_loop_interval = 5
    entries.add("bad", 3)
    spoil(entries, "bad", "no JSON")
    entries.add("e", 4)
    scheduler = start()
    turn_until(scheduler, lambda: gated_of(scheduler))
    gated = gated_of(scheduler)
    assert gated is not None
    assert gated.turn() <= 1.0
