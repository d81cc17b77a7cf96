"""What operators ask, and what a master does about it; turned by hand, on a real ZooKeeper."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.schedules import schedstate, schedule
from kazoo.client import KazooClient
from kazoo.security import READ_ACL_UNSAFE

from celery_zk_beat import (
    ZooKeeperScheduler,
    dispatcher,
    ledger,
    operators,
    planner,
)
from celery_zk_beat.comparing import unpack
from celery_zk_beat.control import (
    RUN,
    TELL,
    Answer,
    Asking,
    Pause,
    Pauses,
    Request,
    RequestRecord,
    change_pauses,
)
from celery_zk_beat.errors import RootError, TooLarge, ZkBeatError
from celery_zk_beat.history import decode_volume, merged
from celery_zk_beat.paths import Paths, page_of, volume_of
from celery_zk_beat.records import encode, to_text
from celery_zk_beat.runs import PastRun, decode_page
from celery_zk_beat.zookeeper.operations import Operation
from celery_zk_beat.zookeeper.session import ZooKeeperSession
from example_project.servers import ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE

from .conftest import (
    LONG_AGO,
    Again,
    Clock,
    Make,
    away,
    back,
    every,
    history,
    past_of,
    turn,
)

HOUR = timedelta(hours=1)


class Operator:
    """Somebody at a command line."""

    def __init__(self, session: ZooKeeperSession, paths: Paths) -> None:
        self.session, self.paths = session, paths

    def pause(self, entry: str | None, at: datetime, by: str = "ann@host1") -> None:
        change_pauses(self.session, self.paths, lambda pauses: pauses.pause(entry, at, by))

    def resume(
        self, entry: str | None, at: datetime, skip: bool = False, by: str = "ann@host1"
    ) -> None:
        change_pauses(self.session, self.paths, lambda pauses: pauses.resume(entry, at, skip, by))

    def ask(self, do: str, entry: str | None = None, to: str | None = None) -> Asking:
        record = RequestRecord(do, entry, to, "2026-01-01T00:00:00+00:00", "the test")
        return Asking(self.session, self.paths, record, lambda event: None)


@pytest.fixture
def operator(zookeeper: ZooKeeper, root: str) -> Iterator[Operator]:
    session = ZooKeeperSession(zookeeper.hosts, 4.0, lambda: None)
    session.start()
    wait_until(lambda: session.connected, PATIENCE, "a session")
    yield Operator(session, Paths(root))
    session.stop(PATIENCE)


@pytest.fixture
def clock() -> Clock:
    return Clock("2026-06-01T12:00")


@pytest.fixture
def entries(app: Celery, clock: Clock) -> dict[str, Any]:
    """Two entries of an hour, on the clock."""
    return {
        name: {"task": name, "schedule": schedule(HOUR, nowfun=clock, app=app)}
        for name in ("a", "b")
    }


def heard(scheduler: ZooKeeperScheduler) -> None:
    """A turn after it knows that something was written."""
    wait_until(lambda: scheduler._loop.control.stale, PATIENCE, "the watch")
    while scheduler._loop.control.stale:  # again, where more news came in the middle
        turn(scheduler)


def published(scheduler: ZooKeeperScheduler, number: int) -> None:
    """As many turns as it takes for so many runs: the master hears of its own writes, too, and what
    it is in the middle of then waits for the next."""
    wait_until(
        lambda: turn(scheduler) is not None and scheduler.metrics.published == number,
        PATIENCE,
        f"{number} runs",
    )


def past(client: KazooClient, root: str, entry: str) -> list[PastRun]:
    path, volume = Paths(root).page(page_of(entry)), Paths(root).volume(volume_of(page_of(entry)))
    new = decode_page(path, client.get(path)[0])[entry].past
    old = decode_volume(volume, client.get(volume)[0]) if client.exists(volume) else {}
    return list(merged(old.get(entry, ()), new))


def runs(app: Celery, task: str) -> list[tuple[int, datetime]]:
    return [(each.run, each.due) for each in history(app) if each.task == task]


def test_paused(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
) -> None:
    """It does not run, whoever is master, and the others do; then the missed instants are one
    run, for the first of them."""
    one = make(beat_schedule=entries)
    turn(one)
    begun = clock.now
    operator.pause("a", clock.now)
    clock.now += HOUR
    heard(one)
    assert runs(app, "a") == []
    assert runs(app, "b") == [(1, begun + HOUR)]
    one.close()
    two = make()
    clock.now += 2 * HOUR
    turn(two)
    assert runs(app, "a") == []
    operator.resume("a", clock.now)
    heard(two)
    turn(two)
    assert runs(app, "a") == [(1, begun + HOUR)]
    assert two.metrics.skipped["resumed"] == 0


def test_the_log_says_who_paused(
    make: Make, clock: Clock, entries: dict[str, Any], operator: Operator, caplog: Any
) -> None:
    """And who resumed: the master's, once for each, also where it reads the run states anew; and
    that of the next master, what holds then."""
    one = make(beat_schedule=entries)
    turn(one)

    def said(scheduler: ZooKeeperScheduler) -> list[str]:
        caplog.clear()
        turn(scheduler)
        scheduler._loop.ledger.forget()
        turn(scheduler)
        told = [each.getMessage() for each in caplog.records]
        return [each for each in told if ": paused" in each or ": resumed" in each]

    def wait_for(*lines: str) -> None:
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        assert said(one) == list(lines)

    at = to_text(clock.now)
    operator.pause("a", clock.now, "ann@host1")
    wait_for(f"a: paused since {at} by ann@host1")
    operator.pause(None, clock.now, "bob@host2")
    wait_for(f"everything: paused since {at} by bob@host2")
    operator.resume("a", clock.now, skip=True, by="cid@host3")
    wait_for("a: resumed; the last change is by cid@host3")
    one.close()
    assert said(make()) == [f"everything: paused since {at} by bob@host2"]


def test_everything_is_paused(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
) -> None:
    """And what is paused by itself stays so when the rest goes on."""
    one = make(beat_schedule=entries)
    turn(one)
    operator.pause(None, clock.now)
    operator.pause("a", clock.now)
    clock.now += HOUR
    heard(one)
    assert history(app) == []
    operator.resume(None, clock.now)
    heard(one)
    assert {each.task for each in history(app)} == {"b"}


def test_resumed_without_catching_up(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    client: KazooClient,
    root: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was missed is skipped, and remembered as such; the clock goes on from the resumption,
    of an entry that missed nothing as before. What waited for the broker is dropped."""
    one = make(beat_schedule=entries)
    turn(one)
    begun = clock.now
    clock.now += HOUR
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    assert set(one._loop.ledger.outbox) == {"a", "b"}
    del one._loop.dispatcher.publisher.publish
    operator.pause("a", clock.now)
    heard(one)
    assert set(one._loop.ledger.outbox) == {"a"}
    clock.now += 2.5 * HOUR
    resumed = clock.now
    operator.resume("a", resumed, skip=True)
    heard(one)
    assert runs(app, "a") == []
    assert one._loop.ledger.outbox == {}
    assert (one.metrics.skipped["resumed"], one.metrics.dropped) == (1, 1)
    dropped, skipped = past(client, root, "a")
    why = "an operator resumed without catching up"
    assert (dropped.number, dropped.note) == (1, f"dropped: {why}")
    assert skipped == PastRun.of(None, begun + 2 * HOUR, resumed, 1, f"skipped: {why}")
    assert f"a: run 1, due {to_text(begun + HOUR)}, is dropped: {why}" in caplog.messages
    assert not one._loop.control.pauses.skips
    clock.now += HOUR
    published(one, 4)
    assert runs(app, "a") == [(2, resumed + HOUR)]
    # b had nothing to be skipped: held back for a moment in which nothing was due.
    operator.pause("b", clock.now)
    operator.resume("b", clock.now + timedelta(minutes=1), skip=True)
    heard(one)
    assert one.metrics.skipped["resumed"] == 1


def test_a_run_that_was_dropped_in_doubt(
    app: Celery, make: Make, clock: Clock, entries: dict[str, Any], operator: Operator
) -> None:
    """The next of its entry is not taken for one that was sent again."""
    one = make(beat_schedule={"a": entries["a"]})
    turn(one)
    clock.now += HOUR
    good = app.conf.broker_url
    app.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    turn(one)
    assert one.metrics.failed > 0
    app.conf.broker_url = good
    operator.pause("a", clock.now)
    operator.resume("a", clock.now, skip=True)
    heard(one)
    assert one.metrics.dropped == 1
    clock.now += HOUR
    published(one, 1)
    assert runs(app, "a") == [(2, clock.now)]
    assert one.metrics.resent == 0


def test_resumed_while_everything_is_paused(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
) -> None:
    """That an entry is not to catch up holds also when it goes on with the others later."""
    one = make(beat_schedule=entries)
    turn(one)
    operator.pause("a", clock.now)
    operator.pause(None, clock.now)
    clock.now += 1.5 * HOUR
    operator.resume("a", clock.now, skip=True)
    heard(one)
    operator.resume(None, clock.now)
    heard(one)
    assert {each.task for each in history(app)} == {"b"}


def test_paused_while_it_is_not_to_be_asked(app: Celery, make: Make, operator: Operator) -> None:
    """An entry whose class said in how many seconds to ask it again has missed nothing until then,
    and does not run at the end of the pause."""
    one = make(beat_schedule={"e": {"task": "e", "schedule": Again(60, 3600)}})
    one._loop.turn()
    wait_until(lambda: one._loop.turn() is not None and len(history(app)) == 1, PATIENCE, "a run")
    for skip in (True, False):
        now = datetime.now(timezone.utc)
        operator.pause("e", now)
        one._loop.control.forget()
        one._loop.turn()
        operator.resume("e", now + timedelta(minutes=10), skip)
        one._loop.control.forget()
        one._loop.turn()
        one._loop.turn()
    assert len(history(app)) == 1
    (past,) = past_of(one, "e")
    assert past.number == 1


@pytest.mark.parametrize("ahead", [24 * HOUR, datetime.max - datetime(2027, 1, 1)])
def test_resumed_by_a_clock_that_is_ahead(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    ahead: timedelta,
) -> None:
    """What is due after the resumption runs, whatever the operator's machine takes for now."""
    one = make(beat_schedule=entries)
    turn(one)
    operator.pause(None, clock.now)
    clock.now += 1.5 * HOUR
    resumed = clock.now
    operator.resume(None, clock.now + ahead, skip=True)
    heard(one)
    clock.now += HOUR
    published(one, 2)
    assert runs(app, "a") == [(1, resumed + HOUR)]


class Late:
    """A schedule of the user's, which can say only whether it is due."""

    def __init__(self, clock: Clock) -> None:
        self.now = clock

    def is_due(self, last_run_at: datetime) -> schedstate:
        return schedstate(self.now() - last_run_at >= HOUR, 60)


def test_resumed_with_a_schedule_that_has_no_future(
    app: Celery, make: Make, clock: Clock, operator: Operator
) -> None:
    """It is skipped if it is due when the master hears of it."""
    one = make(beat_schedule={"a": {"task": "a", "schedule": Late(clock)}})
    turn(one)
    operator.pause("a", clock.now)
    clock.now += 1.5 * HOUR
    operator.resume("a", clock.now, skip=True)
    clock.now += timedelta(seconds=1)
    heard(one)
    assert (one.metrics.skipped["resumed"], runs(app, "a")) == (1, [])
    clock.now += HOUR
    published(one, 1)
    assert len(runs(app, "a")) == 1


def test_skipped_by_a_master_that_knows_it(
    app: Celery, make: Make, clock: Clock, entries: dict[str, Any], operator: Operator
) -> None:
    """During a deploy the master's schedule may lack the entry: the next one skips, then."""
    one = make(beat_schedule=entries)
    turn(one)
    begun = clock.now
    one.close()
    two = make(beat_schedule={"b": entries["b"]})
    turn(two)
    operator.pause("a", clock.now)
    clock.now += 2.5 * HOUR
    operator.resume("a", clock.now, skip=True)
    heard(two)
    assert two._loop.control.pauses.skips
    two.close()
    three = make(beat_schedule=entries)
    turn(three)
    assert three.metrics.skipped["resumed"] == 1
    clock.now += HOUR
    wait_until(lambda: turn(three) and runs(app, "a"), PATIENCE, "the next run")
    assert runs(app, "a") == [(1, begun + 3.5 * HOUR)]


@pytest.mark.parametrize("entry", ["a", None])
def test_skipped_when_its_page_is_repaired(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    client: KazooClient,
    root: str,
    entry: str | None,
) -> None:
    """Also if everything was resumed, not the entry."""
    one = make(beat_schedule=entries)
    turn(one)
    begun = clock.now
    one.close()
    path = Paths(root).page(page_of("a"))
    good = client.get(path)[0]
    client.set(path, b"damaged")
    two = make(beat_schedule=entries)
    turn(two)
    operator.pause(entry, clock.now)
    heard(two)
    clock.now += 2.5 * HOUR
    operator.resume(entry, clock.now, skip=True)
    heard(two)
    assert two._loop.control.pauses.everything.skip is None
    client.set(path, good)
    two._loop._loaded_at = -math.inf
    turn(two)
    assert runs(app, "a") == []
    assert not two._loop.control.pauses.skips
    clock.now += HOUR
    wait_until(lambda: turn(two) and runs(app, "a"), PATIENCE, "the next run")
    assert runs(app, "a") == [(1, begun + 3.5 * HOUR)]


def test_an_extra_run(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    client: KazooClient,
    root: str,
) -> None:
    """Whoever asked is told its number and id; the schedule goes on as if nothing had been, also
    while the entry is paused."""
    one = make(beat_schedule=entries)
    turn(one)
    begun = clock.now
    operator.pause("a", clock.now)
    with operator.ask("run", "a") as asking:
        assert asking.answer() is None
        heard(one)
        (message,) = history(app)
        assert asking.answer() == Answer(True, "claimed", 1, message.id)
    assert message.run == 1
    assert [run.note for run in past(client, root, "a")] == ["asked for"]
    operator.resume("a", clock.now)
    clock.now += HOUR
    heard(one)
    assert runs(app, "a")[1:] == [(2, begun + HOUR)]
    assert client.get_children(Paths(root).requests) == []


def test_what_the_entries_are(make: Make, entries: dict[str, Any], operator: Operator) -> None:
    """Whoever asks is told, where it fits into a transaction."""
    one = make(beat_schedule=entries)
    turn(one)
    with operator.ask(TELL) as asking:
        heard(one)
        answer = asking.answer()
    assert answer is not None
    assert answer.ok
    assert {*unpack(answer.text)} == {*one.entries}
    one._loop.ledger.limits.most_bytes = 100
    with operator.ask(TELL) as asking:
        heard(one)
        answer = asking.answer()
    assert answer is not None
    assert not answer.ok
    assert f"{len(one.entries)} entries" in answer.text
    assert "75 fit" in answer.text


def test_an_extra_run_of_what_is_removed_meanwhile(
    app: Celery, make: Make, operator: Operator
) -> None:
    """By another thread, after it was looked up: the run is claimed, and waits for the entry."""
    one = make(beat_schedule={"e": every(3600)})
    turn(one)

    class Options(dict[str, Any]):
        """Is looked into just before the claim."""

        def get(self, *args: Any) -> Any:
            one.schedule.pop("e", None)
            return super().get(*args)

    entry = one.schedule["e"]
    entry.options = Options()
    with operator.ask("run", "e") as asking:
        heard(one)
        answer = asking.answer()
    assert answer is not None
    assert (answer.text, answer.run) == ("claimed", 1)
    assert history(app) == []
    entry.options = {}
    one.schedule["e"] = entry
    turn(one)
    assert [message.id for message in history(app)] == [answer.task_id]


@pytest.mark.parametrize("late", [False, True])
def test_run_of_what_is_claimed_ahead_of_time(
    app: Celery, make: Make, operator: Operator, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """It is due in a moment, or just now: then both are published."""
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    one = make(beat_schedule={"e": every(3600)})
    assert one.election.wait(PATIENCE)
    at = datetime.now(timezone.utc) + timedelta(seconds=0.9)
    one.schedule["e"].last_run_at = at - HOUR
    wait_until(
        lambda: one._loop.turn() is not None and one._loop.ledger.outbox, PATIENCE, "a claim"
    )
    if late:
        wait_until(lambda: datetime.now(timezone.utc) > at, PATIENCE, "the instant")
    with operator.ask("run", "e") as asking:
        heard(one)
        scheduled, asked = history(app)
        assert asking.answer() == Answer(True, "claimed", 2, asked.id)
    assert (scheduled.run, scheduled.due, asked.run) == (1, at, 2)


def test_run_of_an_entry_that_is_new(app: Celery, make: Make, operator: Operator) -> None:
    """Asked for before the master's first turn: its state is made first."""
    one = make(beat_schedule={})
    turn(one)
    one.close()
    two = make(beat_schedule={"e": every(3600)})
    with operator.ask("run", "e") as asking:
        turn(two)
        assert asking.answer() == Answer(True, "claimed", 1, history(app)[0].id)


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("then", ["goes on", "stops", "is asked"])
def test_a_broker_that_is_back(
    app: Celery,
    make: Make,
    operator: Operator,
    monkeypatch: pytest.MonkeyPatch,
    skipped: bool,
    then: str,
) -> None:
    """What failed meanwhile is held back, or skipped: then nothing tells any more of a broker that
    is away, and what comes due is published."""
    monkeypatch.setattr(planner, "_CLAIM_AHEAD", 0.9)
    bad = every(3600, "bad", last_run_at=LONG_AGO)
    policy = {"zk_beat_recovery": "drop", "zk_beat_publish_deadline": 0.5}
    one = make(beat_schedule={"bad": bad}, **policy)
    broker, app.conf.broker_url = app.conf.broker_url, f"redis://127.0.0.1:{free_port()}/0"
    turn(one)
    assert one._loop.dispatcher.publisher.failing_since is not None
    operator.pause("bad", datetime.now(timezone.utc))
    if skipped:
        operator.resume("bad", datetime.now(timezone.utc), skip=True)
    heard(one)
    app.conf.broker_url = broker
    one._broker.drop()
    at = datetime.now(timezone.utc) + timedelta(seconds=1.2)
    one.update_from_dict({"e": every(3600, "e", last_run_at=at - HOUR)})
    wait_until(
        lambda: one._loop.turn() is not None and "e" in one._loop.ledger.outbox, PATIENCE, "a claim"
    )
    if then == "goes on":
        wait_until(lambda: one._loop.turn() is not None and history(app), PATIENCE, "a run")
    elif then == "stops":
        one._loop.dispatcher.close(60)
        one._loop.say_goodbye()
    else:
        with operator.ask("run", "e") as asking:
            heard(one)
            answer = asking.answer()
        assert answer is not None
        assert answer.ok
    assert [message.run for message in history(app)] == ([1, 2] if then == "is asked" else [1])
    assert one.metrics.failed == 1


def test_resigns_in_time(
    app: Celery, make: Make, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the broker is, and however much waits: the rest is left to the next."""
    monkeypatch.setattr(operators, "LAST_PUBLISHING", 0.0)
    one = make(beat_schedule={name: every(3600, last_run_at=LONG_AGO) for name in "abc"})
    publish = one._loop.dispatcher.publisher.publish
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    one._loop.dispatcher.publisher.publish = publish  # type: ignore[method-assign]
    make()
    with operator.ask("resign") as asking:
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        one._loop.turn()
        assert asking.answer() == Answer(True, "resigned")
    assert history(app) == []


def test_paused_while_it_waits(
    app: Celery, make: Make, clock: Clock, entries: dict[str, Any], operator: Operator
) -> None:
    """[I2] A run that waited for the broker, and then for the end of a pause, stands for all that
    came due meanwhile; the next is an hour later."""
    good, begun = away(app), clock.now
    one = make(beat_schedule=entries)
    turn(one)
    clock.now += HOUR
    turn(one)
    operator.pause("a", clock.now)
    heard(one)
    back(app, good, one)
    clock.now += 2.5 * HOUR
    published(one, 1)
    assert runs(app, "a") == []
    operator.resume("a", clock.now)
    heard(one)
    published(one, 2)
    turn(one)
    turn(one)
    assert runs(app, "a") == runs(app, "b") == [(1, begun + HOUR)]
    clock.now += HOUR
    published(one, 4)
    assert runs(app, "a") == [(1, begun + HOUR), (2, begun + 4.5 * HOUR)]


def test_drop(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    client: KazooClient,
    root: str,
) -> None:
    """A run that waits for the broker, and one that no schedule names and that has no state: with
    the answer, and a note of who asked. The next instant runs as ever."""
    good, begun = away(app), clock.now
    one = make(beat_schedule={**entries, "old": every(3600, last_run_at=LONG_AGO)})
    turn(one)
    clock.now += HOUR
    turn(one)
    assert one._loop.ledger.outbox.keys() == {"a", "b", "old"}
    one.close()
    client.delete(one.election.paths.page(page_of("old")))
    two = make(beat_schedule=entries)
    turn(two)
    for entry, waited in (("a", "it waited for the broker"), ("old", "no schedule names it")):
        with operator.ask("drop", entry) as asking:
            heard(two)
            answer = asking.answer()
        assert answer is not None
        assert (answer.ok, answer.run) == (True, 1)
        assert answer.text == "perhaps already published"
        assert entry not in two._loop.ledger.outbox
        notes = [each.note for each in past(client, root, entry)]
        assert notes == [f"dropped: the test asked for it; {waited}"]
    back(app, good, two)
    published(two, 1)
    clock.now += HOUR
    published(two, 3)
    assert runs(app, "a") == [(2, begun + 2 * HOUR)]
    assert runs(app, "b") == [(1, begun + HOUR), (2, begun + 2 * HOUR)]


def test_a_drop_that_is_taken_back(
    make: Make, clock: Clock, entries: dict[str, Any], operator: Operator
) -> None:
    one = make(beat_schedule=entries)
    turn(one)
    clock.now += HOUR
    one._loop.dispatcher.publisher._publish_all = lambda *_: None  # type: ignore[method-assign]
    turn(one)
    with operator.ask("drop", "a") as asking:
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        (request,) = one._loop.control.read()
        assert asking.take_back()
        with pytest.raises(ZkBeatError):
            one._loop.operators._answer(request)
    turn(one)
    assert one._loop.ledger.outbox.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("do", "entry", "to", "says"),
    [
        ("run", "c", None, "no entry 'c'"),
        ("run", None, None, "no entry ''"),
        ("run", "a", None, "run 1 waits for the broker"),
        ("drop", "c", None, "no run of this entry waits"),
        ("drop", None, None, "no run of this entry waits"),
        ("resign", None, "nobody", "could not resign"),
        ("resign", None, "../../x", "could not resign"),
        ("dance", "a", None, "this release does not know the request 'dance'"),
    ],
)
def test_refused(
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    do: str,
    entry: str | None,
    to: str | None,
    says: str,
) -> None:
    """With the reason; the master goes on."""
    one = make(beat_schedule=entries)
    turn(one)
    clock.now += HOUR
    one._loop.dispatcher.publisher._publish_all = lambda *_: None  # type: ignore[method-assign]
    turn(one)
    with operator.ask(do, entry, to) as asking:
        heard(one)
        answer = asking.answer()
    assert answer is not None
    assert not answer.ok
    assert says in answer.text
    assert one.election.is_master


def test_taken_back(
    app: Celery,
    make: Make,
    entries: dict[str, Any],
    operator: Operator,
) -> None:
    """A request that is gone when it would be claimed is not done; one that is done cannot be
    taken back."""
    one = make(beat_schedule=entries)
    turn(one)
    with operator.ask("run", "a") as asking:
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        requests = one._loop.control.read()
        assert asking.take_back()
        with pytest.raises(ZkBeatError):
            one._loop.operators._answer(requests[0])
    turn(one)
    assert history(app) == []
    with operator.ask("run", "a") as asking:
        heard(one)
        assert not asking.take_back()


def test_resignation_taken_back(
    make: Make, entries: dict[str, Any], operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is part of the resignation: who took the request back has the master go on, and
    no other master finds it open, and resigns as well."""
    one = make(beat_schedule=entries)
    turn(one)
    with operator.ask("resign") as asking:
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        (request,) = one._loop.control.read()
        assert asking.take_back()
        one._loop.operators._answer(request)
    assert one.election.is_master
    two = make(zk_beat_id="two")
    session = one.election.session
    commit: Callable[..., list[int]] = session.commit
    with operator.ask("resign") as asking:
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        (request,) = one._loop.control.read()

        def commit_elsewhere(*operations: Operation) -> list[int]:
            assert threading.current_thread() is not threading.main_thread()
            return commit(*operations)

        with monkeypatch.context() as patch:
            patch.setattr(session, "commit", commit_elsewhere)
            one._loop.operators._answer(request)
        turn(two)
        assert asking.answer() == Answer(True, "resigned")
    assert two.election.is_master


def test_hostile_requests(
    make: Make,
    entries: dict[str, Any],
    operator: Operator,
    client: KazooClient,
    root: str,
) -> None:
    """What is no request of ours is left alone."""
    one = make(beat_schedule=entries)
    turn(one)
    paths = Paths(root)
    hostile = [b"", b"not JSON", b"[]", encode({"do": 7}), encode({"do": "run", "entry": ["a"]})]
    for number, data in enumerate(hostile):
        client.create(paths.request(str(number)), data)
    client.set(paths.requests, b"")
    heard(one)
    assert one.election.is_master
    assert [client.get(paths.request(str(number)))[0] for number in range(5)] == hostile


def test_many_requests_hold_nothing_up(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    client: KazooClient,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is due is dispatched, though whenever the master has heard one there is another."""
    one = make(beat_schedule=entries)
    turn(one)
    read: Callable[[], list[Request]] = one._loop.control.read

    def read_and_more() -> list[Request]:
        requests = read()
        client.set(Paths(root).requests, b"")
        wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
        return requests

    client.set(Paths(root).requests, b"")
    wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
    clock.now += HOUR
    one._names.is_current = False
    one._loop.source.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(one._loop.control, "read", read_and_more)
        one._loop.turn()
    assert {each.task for each in history(app)} == {"a", "b"}


@pytest.mark.parametrize(
    "do", ["run", "dance", "too long " * 100_000], ids=["run", "dance", "long"]
)
def test_a_request_that_cannot_be_answered(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    client: KazooClient,
    root: str,
    do: str,
) -> None:
    """Because it is too large, or ours to read alone: is given up, and all goes on."""
    one = make(beat_schedule=entries)
    turn(one)
    request = RequestRecord(do, "a", None, "", "").encode()
    client.create(Paths(root).request("x"), request, acl=READ_ACL_UNSAFE)
    client.set(Paths(root).requests, b"")
    wait_until(lambda: one._loop.control.stale, PATIENCE, "the watch")
    clock.now += HOUR
    wait_until(lambda: turn(one) and len(history(app)) == 2, PATIENCE, "the runs")
    assert runs(app, "a")[0][0] == 1


def test_damaged_pauses(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    operator: Operator,
    client: KazooClient,
    root: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who cannot tell what is held back holds back everything, and says so; nothing is lost."""
    one = make(beat_schedule=entries)
    turn(one)
    path = Paths(root).pauses
    client.set(path, b"garbage")
    clock.now += HOUR
    heard(one)
    assert history(app) == []
    assert f"{path}: not JSON" in caplog.text
    with pytest.raises(RootError, match=path):
        operator.pause("a", clock.now)
    client.set(path, Pauses().encode())
    heard(one)
    assert {each.task for each in history(app)} == {"a", "b"}
    client.delete(path)
    client.delete(Paths(root).requests)
    clock.now += HOUR
    wait_until(lambda: turn(one) and len(history(app)) == 4, PATIENCE, "made anew")


def test_what_is_remembered(
    app: Celery,
    make: Make,
    clock: Clock,
    entries: dict[str, Any],
    client: KazooClient,
    root: str,
) -> None:
    """The last runs; of one that another master published, when and in which epoch it did."""
    one = make(beat_schedule=entries)
    turn(one)
    begun = clock.now
    for _ in range(30):
        clock.now += HOUR
        turn(one)
    remembered = past(client, root, "a")
    assert [run.number for run in remembered] == list(range(11, 31))
    assert remembered[-1].due == begun + 30 * HOUR
    clock.now += HOUR
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    turn(one)
    one.close()
    two = make()
    before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    turn(two)
    two._loop.ledger.flush()
    last = past(client, root, "a")[-1]
    assert (last.number, last.due, last.epoch) == (31, begun + 31 * HOUR, 2)
    assert last.at >= before
    assert two.metrics.resent == two.metrics.published == 2


def test_more_pauses_than_the_master_reads(operator: Operator, make: Make) -> None:
    """[I10] Who asks for them is told, and nothing changes; what is paused can be resumed."""
    one = make(beat_schedule={"e": every(3600)})
    turn(one)
    names = [f"{n}-" + "\u4e2d" * 150 for n in range(280)]

    def many(pauses: Pauses) -> Pauses:
        return Pauses(entries={name: Pause(LONG_AGO) for name in names})

    def too_many(pauses: Pauses) -> Pauses:
        more = {f"more {name}": Pause(LONG_AGO) for name in names}
        return Pauses(entries={**pauses.entries, **more})

    change_pauses(operator.session, operator.paths, many)
    with pytest.raises(TooLarge, match="resume some"):
        change_pauses(operator.session, operator.paths, too_many)
    heard(one)
    assert one._loop.control.damage is None
    assert one._loop.control.holds(names[0])
    operator.pause(None, LONG_AGO)
    operator.resume(names[0], LONG_AGO, skip=True, by="\U0001f600" * 200)
    operator.resume(None, LONG_AGO)
    heard(one)
    assert one._loop.control.damage is None
    assert not one._loop.control.holds(names[0])


def test_requests_of_long_names(app: Celery, operator: Operator, make: Make) -> None:
    """[I10] One of the longest is heard; of one that is longer, who asks is told at once."""
    name = "\u4e2d" * 3300
    one = make(beat_schedule={name: every(3600, "long"), "x" * 40_000: every(0.1, "longer")})
    turn(one)
    with operator.ask(RUN, name) as asking:
        heard(one)
        wait_until(lambda: turn(one) is not None and asking.answer(), PATIENCE, "an answer")
        answer = asking.answer()
        assert answer is not None
        assert answer.ok
    published(one, 1)
    assert [message.task for message in history(app)] == ["long"]
    with pytest.raises(TooLarge, match="40"), operator.ask(RUN, "x" * 40_000):
        pass


def test_what_is_held_back_fills_no_outbox(
    make: Make, client: KazooClient, operator: Operator, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that are paused one after another, while the broker is away: others are claimed all
    the same, and what there is no room for is dropped, with a note."""
    monkeypatch.setattr(dispatcher, "MOST_RUNS", 4)
    monkeypatch.setattr(dispatcher, "MOST_HELD", 1000)
    entries = {f"e{n}": every(60, last_run_at=LONG_AGO) for n in range(20)}
    one = make(beat_schedule=entries)
    one._loop.dispatcher.publisher.publish = lambda runs: None  # type: ignore[method-assign]
    for claimed in range(4, 24, 4):
        wait_until(
            lambda number=claimed: turn(one) is not None and one.metrics.claimed == number,  # type: ignore[misc]
            PATIENCE,
            "a claim",
        )
        for name in list(one._loop.ledger.outbox):
            operator.pause(name, datetime.now(timezone.utc))
        heard(one)
    turn(one)
    assert sum(len(run.text) + 1 for run in one._loop.ledger.outbox.values()) <= 1000
    (note,) = {
        past(client, root, name)[-1].note for name in entries if name not in one._loop.ledger.outbox
    }
    assert note == "dropped: it is paused, and the outbox has no room for more held runs"
    assert one.metrics.dropped + len(one._loop.ledger.outbox) == len(entries)


def test_a_master_without_work_shows_that_it_lives(
    make: Make,
    client: KazooClient,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It writes the outbox now and then, and at once after its election."""
    one = make(beat_schedule={"e": every(3600)})
    turn(one)
    path = Paths(root).outbox
    wait_until(lambda: client.get(path)[1].version >= 1, PATIENCE, "the first sign of life")
    turn(one)
    one._loop.ledger.flush()
    version = client.get(path)[1].version
    turn(one)
    assert client.get(path)[1].version == version
    monkeypatch.setattr(ledger, "TOUCH_EVERY", 0.0)
    turn(one)
    one._loop.ledger.flush()
    assert client.get(path)[1].version > version
    assert json.loads(client.get(path)[0])["runs"] == []
