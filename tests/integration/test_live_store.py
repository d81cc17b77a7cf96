"""Live entries in a real ZooKeeper: a change is there whole or not at all, once, whatever becomes
of its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from kazoo.client import KazooClient

from celery_zk_beat import clock
from celery_zk_beat.errors import ConnectTimeout, EntryError, RootError, TooLarge, Uncertain
from celery_zk_beat.live import store
from celery_zk_beat.live.definitions import (
    MOST_ENTRIES,
    RECENT,
    Content,
    Damaged,
    Definition,
    Found,
    Index,
    Sum,
    page_of_entry,
)
from celery_zk_beat.live.store import Changer
from celery_zk_beat.paths import Paths
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import LONG_TIMEOUT, PATIENCE
from tests.faults import Road

Make = Callable[..., Changer]


@pytest.fixture
def paths(root: str) -> Paths:
    return Paths(root)


@pytest.fixture
def changer(zookeeper: ZooKeeper, paths: Paths) -> Iterator[Changer]:
    with changer_at(zookeeper.hosts, paths) as changer:
        yield changer


@pytest.fixture
def far(road: Road, paths: Paths) -> Iterator[Changer]:
    """Another, whose road can be cut."""
    with changer_at(f"127.0.0.1:{road.port}", paths) as changer:
        yield changer


class changer_at:
    def __init__(self, hosts: str, paths: Paths) -> None:
        self.news, self.paths = clock.Wakeup(), paths
        self._connected = connected(hosts, LONG_TIMEOUT, PATIENCE, self.news.set)

    def __enter__(self) -> Changer:
        return Changer(self._connected.__enter__(), self.paths, self.news)

    def __exit__(self, *exc: object) -> None:
        self._connected.__exit__(None, None, None)


def saying(**said: Any) -> Callable[[Found], Content]:
    told = {"task": "shop.report", "schedule": {"every": 30}, **said}
    return lambda found: Content.of("e", told)


def gone(found: Found) -> None:
    return None


def soon() -> float:
    return clock.boottime() + PATIENCE


def change(changer: Changer, _by: str = "me", /, **edits: Any) -> dict[str, store.Changed]:
    return changer.change(edits, _by, soon())


def put(changer: Changer, edits: Mapping[str, store.Edit]) -> dict[str, store.Changed]:
    return changer.change(edits, "me", soon())


def entries(changer: Changer) -> dict[str, Definition | Damaged]:
    return store.read(changer._session, changer._paths).entries


def definition(found: Found) -> Definition:
    assert isinstance(found, Definition)
    return found


def test_add_change_remove(changer: Changer, client: KazooClient, paths: Paths) -> None:
    """Each change, and nothing else, makes a new version of the index, by ZooKeeper's clock."""
    e = definition(change(changer, e=saying())["e"].after)
    assert entries(changer) == {"e": e}
    _, stat = client.get(paths.entries_page(page_of_entry("e")))
    assert stat.mtime - 5_000 < e.since <= stat.mtime + 5
    assert stat.ephemeralOwner == 0
    assert not [each for each in client.get_children(paths.entries) if len(each) > 2]
    again = change(changer, e=saying())["e"]
    assert (again.is_changed, client.get(paths.entries)[1].version) == (False, 1)
    e2 = definition(change(changer, "you", e=saying(args=[1]))["e"].after)
    assert (e2.version, e2.since, e2.born) == (2, e.since, e.born)
    assert (e2.changes[-1].by, e2.changes[-1].what) == ("you", ("args",))
    assert change(changer, e=gone)["e"].before == e2
    assert entries(changer) == {}
    assert not change(changer, e=gone)["e"].is_changed
    e3 = definition(change(changer, e=saying(args=[1]))["e"].after)
    assert (e3.version, e3.born != e.born) == (1, True)
    assert Index.decode("", client.get(paths.entries)[0]).entries == 1


def test_many_at_once_or_none(changer: Changer) -> None:
    edits = {f"e{n}": saying(args=[n]) for n in range(50)}
    assert len(changer.change(edits, "me", soon())) == 50

    def refuse(found: Found) -> Content:
        return Content.of("e7", {"schedule": {"every": 1}, "task": ""})

    with pytest.raises(EntryError, match="e7: task"):
        changer.change({**{f"e{n}": gone for n in range(50)}, "e7": refuse}, "me", soon())
    assert len(entries(changer)) == 50


def test_others_are_faster(changer: Changer, far: Changer) -> None:
    """What both want is there."""
    asked = []

    def meddle(found: Found) -> Content:
        asked.append(found)
        if len(asked) == 1:
            change(far, e=saying(args=[1]))
        before = definition(found).content.args if found else []
        return saying(args=[*before, 2])(found)

    change(changer, e=meddle)
    e = definition(entries(changer)["e"])
    assert (e.version, list(e.content.args)) == (2, [1, 2])


def test_others_are_faster_elsewhere(
    changer: Changer, far: Changer, client: KazooClient, paths: Paths
) -> None:
    """The index knows both changes, though they are on two pages."""
    other = next(f"o{n}" for n in range(999) if page_of_entry(f"o{n}") != page_of_entry("e"))
    asked = []

    def meddle(found: Found) -> Content:
        asked.append(found)
        if len(asked) == 1:
            put(far, {other: saying()})
        return saying()(found)

    change(changer, e=meddle)
    index = Index.decode("", client.get(paths.entries)[0])
    assert set(index.pages) == {page_of_entry("e"), page_of_entry(other)}


def test_a_page_that_somebody_mends_meanwhile(
    changer: Changer, client: KazooClient, paths: Paths
) -> None:
    """By hand, and so without the index: it is not written over."""
    change(changer, e=saying())
    path = paths.entries_page(page_of_entry("e"))
    asked = []

    def meddle(found: Found) -> Content:
        asked.append(found)
        if len(asked) == 1:
            client.set(path, client.get(path)[0].replace(b"shop.report", b"shop.mended"))
        return replace(definition(found).content, args=[1])

    change(changer, e=meddle)
    assert definition(entries(changer)["e"]).content.task == "shop.mended"


def test_an_answer_that_is_lost(
    changer: Changer, far: Changer, road: Road, client: KazooClient, paths: Paths
) -> None:
    """The change was done, and is not done again."""
    change(changer, other=saying())
    road_is_blocked = False

    def last_moment(found: Found) -> Content:
        nonlocal road_is_blocked
        if not road_is_blocked:
            road_is_blocked = True
            far.now()  # or it would be asked for behind the block
            road.block_answers()
            clock.thread(open_again, "test").start()
        return saying()(found)

    def open_again() -> None:
        wait_until(lambda: client.get(paths.entries)[1].version == 2, PATIENCE, "the change")
        change(changer, later=saying())
        road.cut()
        road.open()

    far.now()
    found = change(far, e=last_moment)["e"]
    assert found.is_changed
    assert road_is_blocked
    assert entries(changer)["e"] == found.after
    assert client.get(paths.entries)[1].version == 3


def test_added_without_an_answer_and_removed_by_another(
    changer: Changer, far: Changer, road: Road, client: KazooClient, paths: Paths
) -> None:
    """It was added: it is not added again."""
    calls = []

    def last_moment(found: Found) -> Content:
        calls.append(found)
        if len(calls) == 1:
            road.block_answers()
            clock.thread(remove, "test").start()
        return saying()(found)

    def remove() -> None:
        wait_until(lambda: client.get(paths.entries)[1].version == 2, PATIENCE, "the change")
        change(changer, e=gone)
        road.cut()
        road.open()

    change(changer, other=saying())
    far.now()
    assert change(far, e=last_moment)["e"].after is not None
    assert set(entries(changer)) == {"other"}


def test_a_request_that_is_lost(changer: Changer, far: Changer, road: Road) -> None:
    """It is made again."""
    calls = []

    def last_moment(found: Found) -> Content:
        calls.append(found)
        if len(calls) == 1:
            road.block_requests()
            clock.thread(open_again, "test").start()
        return saying()(found)

    def open_again() -> None:
        wait_until(lambda: not far._session.connected, PATIENCE, "the loss of the connection")
        road.cut()
        road.open()

    change(changer, other=saying())
    far.now()
    change(far, e=last_moment)
    assert len(calls) > 1
    assert definition(entries(changer)["e"]).version == 1


def test_so_much_was_changed_since_that_nobody_knows(
    changer: Changer, far: Changer, road: Road, client: KazooClient, paths: Paths
) -> None:
    calls = []

    def last_moment(found: Found) -> Content:
        calls.append(found)
        if len(calls) == 1:
            road.block_answers()
            clock.thread(much, "test").start()
        return saying()(found)

    def much() -> None:
        wait_until(lambda: client.get(paths.entries)[1].version == 2, PATIENCE, "the change")
        for number in range(RECENT):
            change(changer, other=saying(args=[number]))
        road.cut()
        road.open()

    change(changer, other=saying())
    far.now()
    with pytest.raises(Uncertain, match="nobody knows whether it was changed"):
        change(far, e=last_moment)


def test_zookeeper_is_away(far: Changer, road: Road) -> None:
    change(far, other=saying())
    road.cut()
    wait_until(lambda: not far._session.connected, PATIENCE, "the loss of the connection")
    begun = clock.boottime()
    with pytest.raises(ConnectTimeout, match="nothing was changed"):
        far.change({"e": saying()}, "me", clock.boottime() + 0.2)
    assert clock.boottime() - begun < LONG_TIMEOUT


def test_damage(changer: Changer, client: KazooClient, paths: Paths) -> None:
    """What is damaged is not written over, and named; the others can be changed."""
    other = next(f"o{n}" for n in range(999) if page_of_entry(f"o{n}") != page_of_entry("e"))
    put(changer, {"e": saying(), other: saying()})
    path = paths.entries_page(page_of_entry("e"))
    client.set(path, json.dumps({"format": 2, "entries": {"e": {"task": 7}}}).encode())
    assert isinstance(entries(changer)["e"], Damaged)
    client.set(path, b"{")
    with pytest.raises(RootError, match=path):
        change(changer, e=saying(args=[1]))
    put(changer, {other: saying(args=[1])})
    found = store.read(changer._session, paths)
    assert set(found.entries) == {other}
    assert set(found.damaged_pages) == {page_of_entry("e")}
    client.set(paths.entries, b"{")
    with pytest.raises(RootError, match=f"{paths.entries}: not JSON"):
        put(changer, {other: saying(args=[2])})
    assert store.read_index(changer._session, paths).damage is not None


def test_a_damaged_entry_is_replaced_and_removed(
    changer: Changer, client: KazooClient, paths: Paths
) -> None:
    path = paths.entries_page(page_of_entry("e"))
    for edit in (saying(), gone):
        change(changer, e=saying())
        client.set(path, json.dumps({"format": 2, "entries": {"e": {"task": 7}}}).encode())
        assert isinstance(change(changer, e=edit)["e"].before, Damaged)
        assert ("e" in entries(changer)) == (edit is not gone)


def test_bounds(changer: Changer, client: KazooClient, paths: Paths) -> None:
    """Of a page, and of all entries; what is there can always be removed, disabled and read."""
    names = (f"e{n}" for n in range(10**6))
    same = [next(n for n in names if page_of_entry(n) == "00") for _ in range(60)]
    large = saying(args=["x" * 7_500])
    with pytest.raises(TooLarge, match="and a page holds"):  # noqa: PT012 - at one of them
        for name in same:
            put(changer, {name: large})
    there = entries(changer)
    assert 40 < len(there) < 60
    for name in there:
        put(changer, {name: saying(args=["x" * 7_500], enabled=False)})
    assert len(entries(changer)) == len(there)
    put(changer, {same[0]: gone})

    index = Index({"00": Sum(1, MOST_ENTRIES)}, ())
    client.set(paths.entries, index.encode())
    with pytest.raises(TooLarge, match=f"and {MOST_ENTRIES} are allowed"):
        put(changer, {next(n for n in names if page_of_entry(n) == "01"): saying()})


def test_many_more_than_one_transaction_holds(changer: Changer) -> None:
    edits = {f"tenant-{n}": saying(args=["x" * 2_000, n]) for n in range(1_000)}
    parts = list(changer.change_many(edits, "import", PATIENCE))
    assert len(parts) > 3
    assert {name for part in parts for name in part} == set(edits)
    assert set(entries(changer)) == set(edits)
    parts = list(changer.change_many(edits, "import", PATIENCE))
    assert not any(each.is_changed for part in parts for each in part.values())
