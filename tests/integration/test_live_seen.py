"""What readers see of live entries."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from queue import SimpleQueue
from typing import Any

import pytest
from celery import Celery
from kazoo.client import KazooClient

from celery_zk_beat import ZooKeeperScheduler, clock
from celery_zk_beat.live.definitions import page_of_entry
from celery_zk_beat.live.store import Changer
from celery_zk_beat.paths import Paths
from celery_zk_beat.signals import entries_changed
from celery_zk_beat.status import terminal
from celery_zk_beat.status.reader import Reader
from celery_zk_beat.status.snapshot import Entry, Snapshot
from celery_zk_beat.zookeeper.session import ZooKeeperSession, connected
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import LONG_TIMEOUT, PATIENCE

from .conftest import Make, every
from .test_live_schedule import Editor, learn, master, more


@pytest.fixture
def session(zookeeper: ZooKeeper) -> Iterator[ZooKeeperSession]:
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, lambda: None) as session:
        yield session


@pytest.fixture
def editor(zookeeper: ZooKeeper, root: str) -> Iterator[Editor]:
    news = clock.Wakeup()
    with connected(zookeeper.hosts, LONG_TIMEOUT, PATIENCE, news.set) as session:
        yield Editor(Changer(session, Paths(root), news))


@pytest.fixture(autouse=True)
def settings(app: Celery) -> None:
    app.conf.zk_beat_entries = True
    app.conf.zk_beat_entries_tasks = ["shop.*"]
    app.conf.beat_schedule = {"code": every(3600.0, "shop.code"), "both": every(3600.0)}


class Look:
    """The status, by a reader of its own; `on_change`: it sets watches."""

    def __init__(self, app: Celery, session: ZooKeeperSession, follows: bool = False) -> None:
        scheduler = ZooKeeperScheduler(app=app)
        self.news = threading.Event()
        on_change = self.news.set if follows else None
        self.reader = Reader(session, scheduler.settings, scheduler, on_change)

    def __call__(self) -> Snapshot:
        return self.reader.read()

    def entries(self) -> dict[str, Entry]:
        return {each.name: each for each in self().entries}

    def warnings(self) -> list[str]:
        """Those about live entries."""
        return [each for each in self().warnings if "live entr" in each]


@pytest.fixture
def look(app: Celery, session: ZooKeeperSession) -> Look:
    return Look(app, session)


def test_where_they_come_from(app: Celery, make: Make, editor: Editor, look: Look) -> None:
    """With version, and who changed it last; the next run by its own policy."""
    editor.put("a", schedule={"every": 600}, policy={"jitter": 0})
    changed = editor.set("a", kwargs={"b": 1})
    editor.put("later", schedule={"every": 0.2}, policy={"starts": "2100-01-01T00:00:00Z"})
    one = master(make)
    wait_until(lambda: look.entries()["a"].next_run_at, PATIENCE, "the master")
    seen = look.entries()
    a = seen["a"]
    assert (a.source, a.version, a.changed_by, a.disabled) == ("live", 2, "test", False)
    assert a.changed_at is not None
    assert round(a.changed_at.timestamp() * 1000) == changed.changes[-1].at
    assert (a.task, a.schedule) == ("shop.one", "every 600 s, offset 0 s")
    state = one._loop.ledger.state("a")
    assert state is not None
    assert a.next_run_at == after(state.last_run_at, 600)
    assert seen["later"].next_run_at is not None
    assert seen["later"].next_run_at.year == 2100
    code = seen["code"]
    assert (code.source, code.version, code.changed_at) == ("code", None, None)
    assert look.warnings() == []
    told = json.loads(json.dumps(look().to_json()))
    assert [each["source"] for each in told["entries"]] == ["live", "code", "code", "live"]
    (line,) = [each for each in lines(look()) if each.endswith(" a")]
    assert "live, version 2" in line
    assert " by test" in line


def after(instant: datetime, seconds: int) -> datetime:
    """The next multiple of so many seconds since 1970."""
    count = int(instant.timestamp() // seconds) + 1
    return datetime.fromtimestamp(count * seconds, timezone.utc)


def lines(snapshot: Snapshot) -> list[str]:
    return terminal.status(snapshot, snapshot.read_at, lambda text, colour: text, math.inf)


def test_without_a_master(editor: Editor, look: Look) -> None:
    """The next run counts from the change."""
    editor.put("a", schedule={"every": 600})
    seen = look.entries()["a"]
    assert seen.changed_at is not None
    assert seen.next_run_at is not None
    assert seen.next_run_at == after(seen.changed_at, 600)


def test_a_change_that_no_master_has_seen(make: Make, editor: Editor, look: Look) -> None:
    """A clock that begins anew does so at once for those who look."""
    editor.put("a", schedule={"every": 600})
    one = master(make)
    before = look.entries()["a"].next_run_at
    one.close()
    changed = editor.set("a", schedule={"every": 1})
    then = look.entries()["a"].next_run_at
    assert before is not None
    assert then is not None
    assert then == after(changed.since_at, 1)
    editor.set("a", note="which changes no clock")
    assert look.entries()["a"].next_run_at == then


def test_what_does_not_run(
    app: Celery, make: Make, editor: Editor, look: Look, client: KazooClient, root: str
) -> None:
    """Each is named once, with its reason."""
    editor.put("off", enabled=False)
    editor.put("foreign", task="other.one")
    editor.put("both")
    editor.put("torn")
    path = Paths(root).entries_page(page_of_entry("torn"))
    told = json.loads(client.get(path)[0])
    told["entries"]["torn"]["schedule"] = {"never": 1}
    client.set(path, json.dumps(told).encode())
    master(make)
    seen = look.entries()
    assert (seen["off"].disabled, seen["off"].next_run_at) == (True, None)
    assert seen["off"].schedule == "cron 0 0 1 1 *"
    assert seen["foreign"].error is not None
    assert "matches no pattern of zk_beat_entries_tasks" in seen["foreign"].error
    assert seen["torn"].error is not None
    assert {each.source for each in seen.values() if each.name != "code"} == {"live", "code"}
    assert seen["both"].source == "code"
    broken, hidden, disabled = look.warnings()
    assert broken.startswith("2 live entries do not run, such as foreign: the task ")
    assert hidden.startswith("1 live entry does not run, because beat_schedule has an entry")
    assert hidden.endswith(": both")
    assert disabled == "1 live entry is disabled: off"
    (line,) = [each for each in lines(look()) if each.endswith(" foreign")]
    assert "does not run: the task " in line

    editor.set("both", override=True, task="shop.two")
    both = look.entries()["both"]
    assert (both.source, both.task, both.version) == ("live", "shop.two", 2)
    editor.set("both", enabled=False)
    assert (look.entries()["both"].disabled, look.entries()["both"].next_run_at) == (True, None)


def test_damage(
    app: Celery, make: Make, editor: Editor, look: Look, client: KazooClient, root: str
) -> None:
    """A page, or the index, that cannot be understood is named, and everything else is seen."""
    editor.put("a", schedule={"every": 0.3})
    editor.put("d")
    one, paths = master(make), Paths(root)
    more(app, one, "a", 1)
    page = paths.entries_page(page_of_entry("a"))
    good = client.get(page)[0]
    client.set(page, b"[")
    (warning,) = look.warnings()
    assert warning.startswith(f"{page}: ")
    assert "until it is repaired the live entries on this page do not run" in warning
    seen = look.entries()
    assert seen["d"].next_run_at is not None
    assert seen["a"].next_run_at is None
    assert seen["a"].in_schedule, "it may be there: nobody knows"
    client.set(page, good)
    assert look.warnings() == []
    client.set(paths.entries, b"[")
    (warning,) = look.warnings()
    assert warning.startswith(f"{paths.entries}: ")
    assert look.entries()["code"].source == "code"


def test_following(app: Celery, session: ZooKeeperSession, editor: Editor, root: str) -> None:
    """A watch tells of each change, the first included, and only pages are read that are others;
    what it sees is what one without watches sees."""
    follows, fresh = Look(app, session, follows=True), Look(app, session)
    follows()
    follows.news.clear()
    wanted = list[str]()
    read_all = session.read_all
    pages = f"{Paths(root).entries}/"

    def reading(paths: list[str], *more: Any) -> Any:
        wanted.extend(path for path in paths if path.startswith(pages))
        return read_all(paths, *more)

    def sees(name: str) -> Entry | None:
        assert follows.news.wait(PATIENCE)
        follows.news.clear()
        wanted.clear()
        session.read_all = reading  # type: ignore[assignment, method-assign]
        found = follows.entries()
        session.read_all = read_all  # type: ignore[method-assign]
        assert found.keys() == fresh.entries().keys()
        assert found.get(name) == fresh.entries().get(name)
        return found.get(name)

    editor.put("a")
    assert sees("a")
    assert wanted == [pages + page_of_entry("a")]
    editor.put("d")
    assert sees("d")
    assert wanted == [pages + page_of_entry("d")]
    editor.set("a", policy={"starts": "2100-01-01T00:00:00Z"})
    seen = sees("a")
    assert seen is not None
    assert seen.version == 2
    assert seen.next_run_at is not None
    assert seen.next_run_at.year == 2100
    editor.remove("a")
    assert sees("a") is None
    follows()
    assert wanted == [pages + page_of_entry("a")], "nothing is read while nothing changes"


def test_off(app: Celery, session: ZooKeeperSession, editor: Editor, root: str) -> None:
    """Then nobody asks for them."""
    editor.put("a")
    app.conf.zk_beat_entries = False
    look, asked = Look(app, session), list[str]()
    for name in ("read", "exists", "read_all", "children"):
        verb = getattr(session, name)

        def asking(path: Any, *more: Any, verb: Any = verb) -> Any:
            asked.extend([path] if isinstance(path, str) else path)
            return verb(path, *more)

        setattr(session, name, asking)
    assert set(look.entries()) == {"both", "code"}
    assert asked
    assert not [path for path in asked if path.startswith(Paths(root).entries)]


def test_who_changed_what(
    app: Celery, make: Make, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, by a signal, and in the metrics; not what was so before this term."""
    caplog.set_level(logging.INFO)
    heard: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def hear(added: Any, changed: Any, removed: Any, epoch: int, **more: Any) -> None:
        heard.put({"added": added, "changed": changed, "removed": removed, "epoch": epoch})

    entries_changed.connect(hear)
    try:
        editor.put("old")
        one = master(make)
        assert one.metrics.by_source == {"code": 2, "live": 1}
        editor.put("new")
        learn(one)
        news = {"added": ["new"], "changed": [], "removed": [], "epoch": 1}
        assert heard.get(timeout=PATIENCE) == news
        editor.set("old", kwargs={"a": 1}, note="x")
        learn(one)
        assert heard.get(timeout=PATIENCE)["changed"] == ["old"]
        editor.remove("new")
        editor.set("old", enabled=False)
        learn(one)
        seen = [heard.get(timeout=PATIENCE)]
        if not seen[0]["changed"]:
            learn(one)
            seen.append(heard.get(timeout=PATIENCE))
        assert [each for one in seen for each in one["removed"]] == ["new"]
        assert heard.empty()
    finally:
        entries_changed.disconnect(hear)
    assert one.metrics.by_source == {"code": 2, "live": 0}
    assert [line for line in caplog.messages if line.startswith("live entry ")] == [
        "live entry new is added by test (version 1)",
        "live entry old is changed by test: kwargs, note (version 2)",
        "live entry new is removed",
        "live entry old is changed by test: disabled (version 3)",
    ]
    (record,) = [each for each in caplog.records if "kwargs" in each.getMessage()]
    assert (record.action, record.entry, record.epoch) == (  # type: ignore[attr-defined]
        "changed",
        "old",
        1,
    )


def test_damage_is_no_removal(
    app: Celery,
    make: Make,
    editor: Editor,
    client: KazooClient,
    root: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    editor.put("a")
    one, paths = master(make), Paths(root)
    client.set(paths.entries_page(page_of_entry("a")), b"[")
    index = json.loads(client.get(paths.entries)[0])
    index["pages"][page_of_entry("a")][0] ^= 1
    client.set(paths.entries, json.dumps(index).encode())
    learn(one)
    assert any("until then the live entries on this page" in each for each in caplog.messages)
    assert not any("removed" in each for each in caplog.messages)
