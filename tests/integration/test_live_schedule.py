"""Live entries on real masters: what was answered is in force, whoever is master."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from kazoo.client import KazooClient

from celery_zk_beat import ZooKeeperScheduler, clock
from celery_zk_beat.control import BACKFILL, RUN, Asking, RequestRecord, change_pauses
from celery_zk_beat.live.definitions import Content, Definition, Found, page_of_entry
from celery_zk_beat.live.merging import Merging
from celery_zk_beat.live.store import Changer
from celery_zk_beat.live_schedule import LiveSchedule
from celery_zk_beat.paths import Paths
from celery_zk_beat.runs import RunState
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import LONG_TIMEOUT, PATIENCE
from tests.history import Message

from .conftest import Make, away, back, every, history, past_of, state_of

SOON = {"every": 0.3}
#: Not while a test lasts.
RARELY = {"cron": "0 0 1 1 *"}


class Editor:
    """Changes entries, as users do."""

    def __init__(self, changer: Changer) -> None:
        self._changer = changer

    def put(self, name: str, **said: Any) -> Definition:
        """Has the entry be so; what is not said is as most have it."""
        told = {"task": "shop.one", "schedule": RARELY, **said}
        return self._change(name, lambda found: Content.of(name, told))

    def set(self, name: str, **said: Any) -> Definition:
        """Changes what is said of it."""

        def change(found: Found) -> Content:
            assert isinstance(found, Definition)
            return Content.of(name, {**found.content.told, **said})

        return self._change(name, change)

    def remove(self, name: str) -> None:
        self._do(name, lambda found: None)

    def _change(self, name: str, edit: Callable[[Found], Content]) -> Definition:
        after = self._do(name, edit)
        assert after is not None
        return after

    def _do(self, name: str, edit: Callable[[Found], Content | None]) -> Definition | None:
        deadline = clock.boottime() + PATIENCE
        return self._changer.change({name: edit}, "test", deadline)[name].after

    def put_all(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        edits = {name: self._saying(name, said) for name, said in entries.items()}
        for _ in self._changer.change_many(edits, "test", clock.boottime() + PATIENCE):
            pass

    def _saying(self, name: str, said: Mapping[str, Any]) -> Callable[[Found], Content]:
        return lambda found: Content.of(name, {"task": "shop.one", "schedule": RARELY, **said})


@pytest.fixture
def editor(zookeeper: ZooKeeper, root: str) -> Iterator[Editor]:
    news = clock.Wakeup()
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, news.set) as session:
        yield Editor(Changer(session, Paths(root), news))


@pytest.fixture(autouse=True)
def settings(app: Celery) -> None:
    app.conf.zk_beat_entries = True
    app.conf.zk_beat_entries_tasks = ["shop.*"]


def source_of(scheduler: ZooKeeperScheduler) -> LiveSchedule:
    source = scheduler._loop.source
    assert isinstance(source, LiveSchedule)
    return source


def master(make: Make, **conf: Any) -> ZooKeeperScheduler:
    scheduler = make(**conf)
    assert scheduler.election.wait(PATIENCE)
    scheduler._loop.turn()
    return scheduler


def go(scheduler: ZooKeeperScheduler, until: Callable[[], Any], what: str = "it to come") -> None:
    """Turns until something holds."""
    wait_until(lambda: scheduler._loop.turn() is not None and until(), PATIENCE, what)


def of(app: Celery, entry: str) -> list[Message]:
    return [each for each in history(app) if each.entry == entry]


def more(app: Celery, scheduler: ZooKeeperScheduler, entry: str, count: int) -> list[Message]:
    """The next so many runs of an entry; none is claimed and waits for its instant afterwards, when
    the test changes what it is."""
    before = len(of(app, entry))
    go(
        scheduler,
        lambda: len(of(app, entry)) >= before + count and not scheduler._loop.ledger.outbox,
        f"{count} more of {entry}",
    )
    return of(app, entry)[before : before + count]


def are_in_order(runs: list[Message]) -> bool:
    """Each run once, from the first on."""
    return [each.run for each in runs] == list(range(1, len(runs) + 1))


def learn(scheduler: ZooKeeperScheduler) -> None:
    """Turns once it has heard of a change."""
    wait_until(lambda: source_of(scheduler).live.stale, PATIENCE, "the watch")
    go(scheduler, lambda: not source_of(scheduler).live.stale)


def near(at: datetime, instant: datetime) -> bool:
    return abs(at - instant) < timedelta(seconds=1)


def now() -> datetime:
    return datetime.now(timezone.utc)


def bare(state: RunState) -> tuple[datetime, int]:
    return state.last_run_at, state.total_run_count


# While a beat runs, and across failovers ----------------------------------------------------------


def test_added_changed_and_removed_while_beat_runs(app: Celery, make: Make, editor: Editor) -> None:
    """After the answer nothing is claimed by an older definition. A change reads the entry's page
    alone, and no run state anew."""
    one = master(make, beat_schedule={"code": every(0.3, "shop.code")})
    loaded_at = one._loop._loaded_at
    editor.put("a", schedule=SOON, args=[1], options={"expires": 60})
    assert [each.task for each in more(app, one, "a", 2)] == ["shop.one"] * 2
    editor.set("a", task="shop.two", kwargs={"b": 2})
    assert [each.task for each in more(app, one, "a", 2)] == ["shop.two"] * 2
    editor.put("b", schedule=SOON)
    editor.remove("a")
    before = of(app, "a")
    more(app, one, "b", 3)
    assert of(app, "a") == before
    assert are_in_order(before)
    editor.set("b", enabled=False)
    before = of(app, "b")
    more(app, one, "code", 3)
    assert of(app, "b") == before
    editor.set("b", enabled=True)
    assert more(app, one, "b", 1)[0].run == before[-1].run + 1
    assert one._loop._loaded_at == loaded_at
    assert one.metrics.entries == len(one.entries) == 2


def test_whoever_is_master(app: Celery, make: Make, editor: Editor) -> None:
    """Changes with no master, and before the first."""
    editor.put("a", schedule=SOON)
    one, two = master(make), make()
    more(app, one, "a", 2)
    assert not two.entries, "only a master reads them"
    one.close()
    editor.set("a", task="shop.two")
    editor.put("b", schedule=SOON)
    assert two.election.wait(PATIENCE)
    assert {each.task for each in more(app, two, "a", 2)} == {"shop.two"}
    assert are_in_order(of(app, "a"))
    more(app, two, "b", 1)
    assert of(app, "b")[0].run == 1


def test_a_standby_has_none(app: Celery, make: Make, editor: Editor) -> None:
    """Nor has a beat that was master: it does not know what they are."""
    editor.put("a", override=True)
    one = master(make, beat_schedule={"a": every(3600, "shop.code"), "b": every(3600)})
    assert one.entries["a"].task == "shop.one"
    assert one.election.resign()
    two = make()
    wait_until(lambda: two.election.master is not None, PATIENCE, "a master")
    one._loop.forget()
    assert one.entries["a"].task == "shop.code"
    assert one.metrics.entries == 2


def test_a_change_that_the_master_has_not_heard_of(
    app: Celery, make: Make, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is refused; it reads what has changed, and no run state, and goes on."""
    one = master(make)
    editor.put("a", schedule=SOON)
    more(app, one, "a", 1)
    loaded_at = one._loop._loaded_at
    monkeypatch.setattr(Merging, "_on_watch", lambda self, event: None)
    editor.set("a", note="so that no watch is left that tells")
    learn(one)
    editor.set("a", task="shop.two")
    editor.set("a", kwargs={"n": 1})
    assert not source_of(one).live.stale
    assert [each.task for each in more(app, one, "a", 2)] == ["shop.two"] * 2
    assert one._loop._loaded_at == loaded_at
    assert one.metrics.elections == 1


def test_what_does_not_concern_a_claim(
    app: Celery, make: Make, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[I12] Where others change entries all the time only changes of its entries refuse a claim,
    also of one of beat_schedule, whose place in ZooKeeper is empty."""
    one = master(make, beat_schedule={"code": every(0.3, "shop.code")})
    editor.put("a", schedule=SOON)
    editor.put("other")
    assert len({page_of_entry(name) for name in ("a", "other", "code")}) == 3
    more(app, one, "a", 1)
    monkeypatch.setattr(Merging, "_on_watch", lambda self, event: None)
    live = source_of(one).live
    editor.set("other", args=[0])
    learn(one)
    editor.set("other", args=[1])
    more(app, one, "a", 1)  # it was refused, and read
    version = live._version
    for number in range(2, 5):
        editor.set("other", args=[number])
        more(app, one, "a", 1)
        more(app, one, "code", 1)
    assert live._version == version
    editor.set("a", task="shop.two")
    assert more(app, one, "a", 1)[0].task == "shop.two"
    assert live._version > version
    editor.put("code", override=True, schedule=SOON)
    assert more(app, one, "code", 1)[0].task == "shop.one"
    editor.set("code", task="shop.two")
    assert more(app, one, "code", 1)[0].task == "shop.two"


# Clocks and numbers -------------------------------------------------------------------------------


def test_a_clock_that_is_kept(app: Celery, make: Make, editor: Editor) -> None:
    """By whatever does not say when it is due; and so whoever is master."""
    one = master(make)
    editor.put("a", schedule=SOON)
    more(app, one, "a", 2)
    editor.put("a", schedule={"every": 0.3}, task="shop.two", note="same", policy={"catch_up": 60})
    learn(one)
    before = bare(state_of(one, "a"))
    editor.set("a", args=[1])
    one.close()
    two = master(make)
    assert bare(state_of(two, "a"))[1] - before[1] <= 1
    assert more(app, two, "a", 1)[0].run == len(of(app, "a"))


@pytest.mark.parametrize("is_away", [False, True])
@pytest.mark.parametrize("what", ["schedule", "enabled", "removed"])
@pytest.mark.parametrize("off", [0.0, 3600.0, -3600.0])
def test_a_clock_that_begins_anew(
    make: Make,
    editor: Editor,
    monkeypatch: pytest.MonkeyPatch,
    is_away: bool,
    what: str,
    off: float,
) -> None:
    """At the change that says so, by ZooKeeper's clock, also where no master was there and the
    clock of who changes it is an hour off. Numbers go on."""
    one = master(make)
    editor.put("a", schedule=RARELY)
    learn(one)
    long_ago = now() - timedelta(days=3)
    source_of(one)._ledger.rewrite({"a": RunState(long_ago, 7, key=state_of(one, "a").key)})
    editor.set("a", note="nothing that matters")
    learn(one)
    assert bare(state_of(one, "a")) == (long_ago, 7)
    if is_away:
        one.close()
    with monkeypatch.context() as patch:
        real, real_now = clock.timestamp, clock.now
        patch.setattr(clock, "timestamp", lambda: real() + off)
        patch.setattr(clock, "now", lambda: real_now() + timedelta(seconds=off))
        if what == "schedule":
            editor.set("a", schedule={"cron": "0 0 2 1 *"})
        elif what == "enabled":
            editor.set("a", enabled=False)
            editor.set("a", enabled=True)
        else:
            editor.remove("a")
            editor.put("a", schedule=RARELY)
    changed = now()
    two = master(make) if is_away else one
    if not is_away:
        learn(two)
    last_run_at, number = bare(state_of(two, "a"))
    assert near(last_run_at, changed)
    assert number == 7
    assert two.entries["a"].last_run_at == last_run_at


def test_due_while_nobody_was_there(app: Celery, make: Make, editor: Editor) -> None:
    """It counts from when it was added, not from when a master saw it."""
    master(make).close()
    added = editor.put("a", schedule={"every": 0.2}).since_at
    wait_until(lambda: now() - added > timedelta(seconds=1), PATIENCE, "a second")
    two = master(make)
    more(app, two, "a", 1)
    first = of(app, "a")[0]
    assert first.run == 1
    assert first.due - added <= timedelta(seconds=0.2)


# Runs that wait -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_away", [False, True])
@pytest.mark.parametrize("what", ["removed", "disabled", "added again"])
def test_gone_while_its_run_waits(
    app: Celery, make: Make, editor: Editor, what: str, is_away: bool
) -> None:
    """It is dropped, with a note, also by the next master."""
    one = master(make)
    good = away(app)
    editor.put("a", schedule=SOON)
    go(one, lambda: "a" in one._loop.ledger.outbox)
    if is_away:
        one.close()
    if what == "disabled":
        editor.set("a", enabled=False)
    else:
        editor.remove("a")
    if what == "added again":
        editor.put("a", schedule=RARELY)
    two = master(make) if is_away else one
    if not is_away:
        learn(two)
    back(app, good, two)
    go(two, lambda: not two._loop.ledger.outbox)
    assert of(app, "a") == []
    assert [each.was_dropped for each in past_of(two, "a") if each.number == 1] == [True]


def test_changed_while_its_run_waits(app: Celery, make: Make, editor: Editor) -> None:
    """It is sent as the entry is when it is sent."""
    one = master(make)
    good = away(app)
    editor.put("a", schedule=SOON)
    go(one, lambda: "a" in one._loop.ledger.outbox)
    editor.put("a", task="shop.two")
    learn(one)
    back(app, good, one)
    go(one, lambda: not one._loop.ledger.outbox)
    assert [(each.run, each.task) for each in of(app, "a")] == [(1, "shop.two")]


# Beside those of beat_schedule --------------------------------------------------------------------


def test_code_wins(
    app: Celery, make: Make, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning; unless the live one says that it overrides it. What is hidden is back when
    the live one goes."""
    one = master(make, beat_schedule={"a": every(0.3, "shop.code")})
    editor.put("a", schedule=SOON)
    learn(one)
    editor.set("a", note="once more")
    learn(one)
    assert sum("beat_schedule has an entry of this name" in each for each in caplog.messages) == 1
    assert more(app, one, "a", 1)[0].task == "shop.code"
    editor.set("a", override=True)
    assert more(app, one, "a", 1)[0].task == "shop.one"
    editor.set("a", enabled=False)
    learn(one)
    assert "a" not in one.entries
    editor.remove("a")
    assert more(app, one, "a", 1)[0].task == "shop.code"
    assert are_in_order(of(app, "a"))


def test_code_that_was_hidden_from_the_beginning(app: Celery, make: Make, editor: Editor) -> None:
    """It has never run, and begins when the live one goes."""
    editor.put("a", override=True, enabled=False)
    one = master(make, beat_schedule={"a": every(0.3, "shop.code")})
    assert "a" not in one.entries
    editor.remove("a")
    assert more(app, one, "a", 2)[0].task == "shop.code"


def test_an_entry_that_a_program_adds_outlives_the_term(
    app: Celery, make: Make, editor: Editor
) -> None:
    editor.put("a", schedule=SOON)
    one = master(make)
    more(app, one, "a", 1)
    one.add(name="a", task="shop.code", schedule=3600.0)
    one._loop.forget()
    assert one.entries["a"].task == "shop.code"


def test_what_is_skipped_before_it_was_ever_seen(app: Celery, make: Make, editor: Editor) -> None:
    """Added and resumed with --skip while there was no master."""
    one = master(make)
    paths, session = one.election.paths, one.election.session
    change_pauses(session, paths, lambda pauses: pauses.pause(None, now(), "test"))
    one.close()
    added = editor.put("a", schedule=SOON)
    missed = added.since_at + timedelta(seconds=1)
    wait_until(lambda: now() > missed, PATIENCE, "instants that it misses")
    resumed = now()
    with connected(session._hosts, LONG_TIMEOUT, PATIENCE, lambda: None) as other:
        change_pauses(other, paths, lambda pauses: pauses.resume(None, resumed, True, "test"))
    two = master(make)
    go(two, lambda: len(of(app, "a")) >= 2)
    assert all(each.due > resumed for each in of(app, "a"))


def test_a_program_adds_an_entry_of_the_same_name(app: Celery, make: Make, editor: Editor) -> None:
    editor.put("a", schedule=RARELY)
    one = master(make)
    assert one.entries["a"].task == "shop.one"
    one.add(name="a", task="shop.code", schedule=timedelta(seconds=0.2))
    assert more(app, one, "a", 1)[0].task == "shop.code"
    editor.set("a", override=True)
    learn(one)
    assert one.entries["a"].task == "shop.one"


def test_names_that_are_no_text_beside_live_ones(app: Celery, make: Make, editor: Editor) -> None:
    one = master(make, beat_schedule={7: every(0.3, "shop.seven")})
    editor.put("a", schedule=SOON)
    assert more(app, one, "a", 1)
    assert sorted(one.entries) == ["7", "a"]
    editor.remove("a")
    assert more(app, one, "7", 2)
    assert sorted(one.entries) == ["7"]


def test_policies(app: Celery, make: Make, editor: Editor) -> None:
    """Its own keys win over those of patterns, one by one."""
    one = master(make, zk_beat_policies={"*": {"catch_up": 60, "jitter": 5}})
    editor.put("a", schedule=SOON, policy={"jitter": 0, "runs": 2})
    learn(one)
    policy = one._loop.dispatcher.policies.of("a")
    assert policy is not None
    assert (policy.catch_up, policy.jitter, policy.runs) == (
        timedelta(seconds=60),
        timedelta(),
        2,
    )
    editor.put("b", schedule=SOON, policy={"jitter": 0})
    more(app, one, "b", 5)
    assert [each.run for each in of(app, "a")] == [1, 2]
    editor.set("a", policy={"jitter": 0, "runs": 3})
    assert [each.run for each in more(app, one, "a", 1)] == [3]
    editor.remove("a")
    learn(one)
    policy = one._loop.dispatcher.policies.of("a")
    assert policy is not None
    assert policy.runs is None


def test_policies_that_need_outcomes(
    app: Celery, make: Make, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """[I12] If nobody tells what becomes of runs, a policy does not wait for it. One warning."""
    one = master(make)
    editor.put("a", schedule=SOON, policy={"overlap": "queue", "jitter": 0})
    editor.put("b", schedule=SOON, policy={"track": True})
    learn(one)
    policy = one._loop.dispatcher.policies.of("a")
    assert policy is not None
    assert not policy.is_tracked
    (warning,) = [text for text in caplog.messages if "needs zk_beat_outcomes" in text]
    assert "'overlap'" in warning or "'track'" in warning
    app.conf.zk_beat_outcomes = "worker"
    one.close()
    two = master(make)
    policy = two._loop.dispatcher.policies.of("a")
    assert policy is not None
    assert policy.overlap == "queue"


def test_paused(app: Celery, make: Make, editor: Editor) -> None:
    """A live entry is an entry: also one that comes while everything is held back."""
    one = master(make)
    control, session = one._loop.control, one.election.session
    paths = one.election.paths
    session.commit(*(_pause_all(paths, session.read(paths.pauses)),))
    go(one, lambda: control.pauses.everything.since is not None)
    editor.put("a", schedule=SOON)
    learn(one)
    go(one, lambda: not control.stale)
    assert of(app, "a") == []
    assert not one._loop.ledger.outbox


def _pause_all(paths: Paths, node: Any) -> Any:
    from celery_zk_beat.control import Pauses
    from celery_zk_beat.zookeeper.operations import SetData

    return SetData(paths.pauses, Pauses().pause(None, now(), "test").encode(), node.version)


def test_resumed_while_it_could_not_be_read(
    app: Celery, make: Make, editor: Editor, client: KazooClient
) -> None:
    """What it missed is skipped when it is back, before anything of it runs."""
    editor.put("a", schedule=SOON)
    one = master(make)
    (last,) = more(app, one, "a", 1)
    paths, session = one.election.paths, one.election.session
    good, _ = client.get(paths.entries_page(page_of_entry("a")))
    write(client, paths, "a", b"{")
    learn(one)
    change_pauses(session, paths, lambda pauses: pauses.pause("a", now(), "test"))
    missed = last.due + timedelta(seconds=0.7)
    wait_until(lambda: now() > missed, PATIENCE, "an instant that it misses")
    change_pauses(session, paths, lambda pauses: pauses.resume("a", now(), True, "test"))
    resumed = now()
    go(one, lambda: one._loop.control.pauses.skips and not one._loop.control.stale)
    write(client, paths, "a", good)
    learn(one)
    more(app, one, "a", 2)
    assert all(each.due > resumed for each in of(app, "a") if each.run > last.run)


# What cannot be in force --------------------------------------------------------------------------


def test_broken_definitions_harm_themselves_alone(
    app: Celery,
    make: Make,
    editor: Editor,
    client: KazooClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = master(make)
    editor.put("good", schedule=SOON)
    editor.put("another's", task="os.system", schedule=SOON)
    editor.put("broken", schedule=SOON)
    go(one, lambda: len(source_of(one).live.found) == 3)
    change(client, one.election.paths, "broken", lambda entry: entry.update(schedule={"cron": "?"}))
    go(one, lambda: "broken" not in one.entries)
    assert more(app, one, "good", 2)
    said = [each for each in caplog.messages if "does not run" in each]
    assert len(said) == 2
    assert "os.system" in said[0]
    assert "broken" in said[1]
    assert {*one.entries} == {"good"}
    editor.put("broken", schedule=SOON)
    assert more(app, one, "broken", 1)


def change(
    client: KazooClient, paths: Paths, name: str, edit: Callable[[dict[str, Any]], None]
) -> None:
    """Changes an entry as no release of ours would, and tells of it."""
    path = paths.entries_page(page_of_entry(name))
    told = json.loads(client.get(path)[0])
    edit(told["entries"][name])
    write(client, paths, name, json.dumps(told).encode())


def write(client: KazooClient, paths: Paths, name: str, data: bytes) -> None:
    page = page_of_entry(name)
    index = json.loads(client.get(paths.entries)[0])
    index["pages"][page][0] += 1
    client.set(paths.entries_page(page), data)
    client.set(paths.entries, json.dumps(index).encode())


def test_a_damaged_page(
    app: Celery,
    make: Make,
    editor: Editor,
    client: KazooClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Holds its entries back, and nobody else's, until it is mended; they are not forgotten."""
    one = master(make)
    editor.put("a", schedule=SOON)
    editor.put("b", schedule=SOON)
    more(app, one, "a", 1)
    paths = one.election.paths
    path = paths.entries_page(page_of_entry("a"))
    good = client.get(path)[0]
    write(client, paths, "a", b"{")
    learn(one)
    before = of(app, "a")
    more(app, one, "b", 2)
    assert of(app, "a") == before
    assert [each for each in caplog.messages if path in each]
    assert state_of(one, "a").unnamed_since is None
    client.set(path, good)  # and nobody tells
    one._loop._loaded_at -= 61
    assert more(app, one, "a", 1)[0].run == before[-1].run + 1


def test_a_page_that_is_gone(
    app: Celery, make: Make, editor: Editor, client: KazooClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Another hand has deleted it, not its entries: that is damage, too, which the next change of
    the page mends."""
    one = master(make)
    editor.put("a")
    learn(one)
    paths = one.election.paths
    path = paths.entries_page(page_of_entry("a"))
    client.delete(path)
    editor.put("b")
    learn(one)
    assert {*one.entries} == {"a", "b"}, "nobody has told of it"
    one.close()
    two = master(make)
    assert {*two.entries} == {"b"}
    assert any(path in each for each in caplog.messages)
    assert state_of(two, "a").unnamed_since is None
    editor.put("a", schedule=SOON)
    more(app, two, "a", 1)
    assert not two._loop.source.is_damaged


def test_a_damaged_index(
    app: Celery, make: Make, editor: Editor, client: KazooClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Holds all live entries back; those of code run."""
    one = master(make, beat_schedule={"code": every(0.3, "shop.code")})
    editor.put("a", schedule=SOON)
    more(app, one, "a", 1)
    path = one.election.paths.entries
    good = client.get(path)[0]
    client.set(path, b"no index")
    learn(one)
    before = of(app, "a")
    more(app, one, "code", 3)
    assert of(app, "a") == before
    assert any(path in each for each in caplog.messages)
    assert state_of(one, "a").unnamed_since is None
    client.set(path, good)
    assert more(app, one, "a", 1)[0].run == before[-1].run + 1


def test_many_that_come_at_once(app: Celery, make: Make, editor: Editor) -> None:
    """As of an import: they are looked at together."""
    one = master(make)
    editor.put_all({f"e{n}": {"schedule": {"every": 1}} for n in range(700)})
    go(one, lambda: len({each.entry for each in history(app)}) == 700, "all")
    editor.put_all({f"e{n}": {"schedule": RARELY} for n in range(700)})
    go(one, lambda: all(one.entries[f"e{n}"].schedule is not None for n in range(700)))
    learned = source_of(one)
    assert len(learned._ours) == 700


# Off ----------------------------------------------------------------------------------------------


def test_off(app: Celery, make: Make, client: KazooClient) -> None:
    """It costs nothing: no request, and no znode. It can be seen that a beat has them off."""
    on = ZooKeeperScheduler(app=app).digest()
    one = master(make, zk_beat_entries=False, beat_schedule={"code": every(0.2, "shop.code")})
    more(app, one, "code", 1)
    assert not client.exists(one.election.paths.entries)
    assert list(one._loop.source.conditions([])) == []
    assert one._loop.dispatcher.policies is one.settings.policies
    app.conf.beat_schedule = {}
    assert ZooKeeperScheduler(app=app).digest() != on


# What operators ask for ---------------------------------------------------------------------------


def asked(session: Any, paths: Paths, **fields: Any) -> Asking:
    record = {"entry": "a", "to": None, "asked": "2026-01-01T00:00:00+00:00", "by": "test"}
    return Asking(session, paths, RequestRecord(**{**record, **fields}), lambda event: None)


def test_asked_for_by_an_operator(
    app: Celery, make: Make, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, and a backfill, of the entry as it was answered last, though the master has not heard
    of the change: the claim is refused, and what was asked for is done once all the same."""
    one = master(make)
    editor.put("a")
    learn(one)
    monkeypatch.setattr(Merging, "_on_watch", lambda self, event: None)
    editor.set("a", note="so that no watch is left that tells")
    learn(one)
    session, paths = one.election.session, one.election.paths
    editor.set("a", task="shop.two")
    with asked(session, paths, do=RUN) as asking:
        go(one, lambda: asking.answer() is not None)
        answer = asking.answer()
        assert answer is not None
        assert (answer.ok, answer.run) == (True, 1)
    editor.set("a", task="shop.three", schedule={"cron": "0 0 * * *"})
    range_ = {"since": "2026-01-01T00:00:00+00:00", "until": "2026-01-03T00:00:00+00:00"}
    with asked(session, paths, do=BACKFILL, rate=50.0, **range_) as asking:
        go(one, lambda: asking.answer() is not None)
        go(one, lambda: len(of(app, "a")) == 3)
    assert [each.task for each in of(app, "a")] == ["shop.two", "shop.three", "shop.three"]
    assert are_in_order(of(app, "a"))
    assert one.metrics.elections == 1


def test_a_page_that_was_changed_and_changed_back(
    app: Celery, make: Make, editor: Editor, root: str
) -> None:
    """The index does not tell of it. Claims that check the page are refused once, not for ever."""
    editor.put("a", schedule=SOON)
    scheduler = master(make)
    more(app, scheduler, "a", 1)
    live = source_of(scheduler).live
    beside = next(
        name for n in range(10_000) if page_of_entry(name := f"b{n}") == page_of_entry("a")
    )
    editor.put(beside)
    editor.remove(beside)
    wait_until(lambda: live.stale, PATIENCE, "the watch")
    live.is_refused(Paths(root).entries)  # claims check pages from now on
    more(app, scheduler, "a", 3)


def test_a_standby_reads_ahead(app: Celery, make: Make, editor: Editor) -> None:
    """A take-over reads only what has changed since."""
    editor.put("a", schedule=SOON)
    editor.put("b", schedule=SOON)
    first = master(make)
    second = make()
    wait_until(lambda: second.election.master, PATIENCE, "a master that it knows")
    second._loop.turn()
    ahead = source_of(second)
    assert ahead.live.found.keys() == {"a", "b"}
    assert not ahead.entries
    known = ahead.live.found["b"]
    editor.set("a", task="shop.two")
    wait_until(lambda: ahead.live.stale, PATIENCE, "the watch")
    second._loop.turn()
    assert ahead.live.stale, "it does not read at each change"
    first.close()
    assert second.election.wait(PATIENCE)
    assert [each.task for each in more(app, second, "a", 1)] == ["shop.two"]
    assert ahead.live.found["b"] is known


def test_what_was_made_of_a_run_goes_with_its_entry(make: Make, editor: Editor) -> None:
    """When it is removed or changed: entries that come and go leave nothing."""
    scheduler = master(make)
    ahead = scheduler._loop.dispatcher.ahead
    for name in ("a", "b"):
        editor.put(name, schedule={"every": 8})
    go(scheduler, lambda: ahead.run("a") and ahead.run("b"), "their runs")
    editor.remove("a")
    editor.set("b", schedule=RARELY)
    go(scheduler, lambda: not (ahead.run("a") or ahead.run("b")), "nothing")
