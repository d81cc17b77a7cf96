"""What the package relies on in ZooKeeper and kazoo. The simulation is worth no more than this
holds for both back ends."""

from __future__ import annotations

import contextlib

import pytest

from celery_zk_beat import clock
from celery_zk_beat.errors import Conflict, Uncertain
from celery_zk_beat.zookeeper.operations import Check, Create, Delete, Node, Operation, SetData
from celery_zk_beat.zookeeper.session import ZooKeeperSession
from tests.conftest import kazoo_of

from .conftest import Backend


def test_a_znode(backend: Backend, root: str) -> None:
    """Its data version counts from 0, one for each write; one made again begins anew."""
    session = backend.session()
    assert session.read(root) is None
    assert session.commit(Create(root, b"one")) == [0]
    assert session.read(root) == Node(b"one", 0, 0)
    assert session.commit(SetData(root, b"two", 0), Check(root, 1)) == [1, 1]
    assert session.commit(SetData(root, b"three")) == [2]
    assert session.commit(Delete(root, 2)) == [-1]
    assert session.read(root) is None
    assert session.commit(Create(root, b"")) == [0]


@pytest.mark.parametrize(
    ("operation", "culprit"),
    [
        (Create("{root}/here", b""), "{root}/here"),
        (Create("{root}/not/here", b""), "{root}/not/here"),
        (SetData("{root}/here", b"x", 7), "{root}/here"),
        (SetData("{root}/gone", b"x"), "{root}/gone"),
        (Check("{root}/here", 7), "{root}/here"),
        (Check("{root}/gone", 0), "{root}/gone"),
        (Delete("{root}/here", 7), "{root}/here"),
        (Delete("{root}/gone"), "{root}/gone"),
    ],
    ids=str,
)
def test_all_or_nothing(backend: Backend, root: str, operation: Operation, culprit: str) -> None:
    """A transaction that is refused has done nothing, and says whose fault it was."""
    session = backend.session()
    session.commit(Create(root, b""), Create(f"{root}/here", b""))
    fields = {**vars(operation), "path": operation.path.format(root=root)}
    refused = type(operation)(**fields)
    with pytest.raises(Conflict) as refusal:
        session.commit(SetData(f"{root}/here", b"new"), refused, Create(f"{root}/more", b""))
    assert refusal.value.path == culprit.format(root=root)
    assert session.read(f"{root}/here") == Node(b"", 0, 0)
    assert session.read(f"{root}/more") is None


def test_within_a_transaction_each_sees_those_before(backend: Backend, root: str) -> None:
    session = backend.session()
    assert session.commit(Create(root, b""), Create(f"{root}/a", b""), SetData(root, b"x", 0)) == [
        0,
        0,
        1,
    ]


def test_children(backend: Backend, root: str) -> None:
    session = backend.session()
    assert session.children(root) == []
    session.ensure(f"{root}/a/b")
    session.ensure(f"{root}/c")
    session.ensure(f"{root}/c")
    assert sorted(session.children(root)) == ["a", "c"]
    a, nothing, c = session.read_all([f"{root}/a", f"{root}/b", f"{root}/c"])
    assert a == c == Node(b"", 0, 0)
    assert nothing is None


def test_answers_come_in_order(backend: Backend, root: str) -> None:
    """What was sent first is done first; when the last is answered, so are all."""
    session = backend.session()
    session.commit(Create(root, b""))
    sent = [session.send(SetData(root, str(n).encode(), n)) for n in range(10)]
    assert sent[-1].result() == [10]
    assert all(pending.answered() for pending in sent)
    assert session.read(root) == Node(b"9", 10, 0)


def test_a_check_is_a_write(backend: Backend, root: str) -> None:
    """With a place among all others: what a session reads behind it is no older, whatever server it
    has."""
    one, two = backend.session(6.0), backend.session(6.0)
    one.commit(Create(root, b""))
    one.commit(Create(f"{root}/checked", b""), Create(f"{root}/caught", b""))
    for version in range(1, 21):
        one.commit(SetData(root, b""))
        before = kazoo_of(two).last_zxid
        checked = two.send(Check(f"{root}/checked", 0))
        assert two.read(root) == Node(b"", version, 0)
        assert checked.result() == [0]
        assert kazoo_of(two).last_zxid > before
        two.commit(SetData(f"{root}/caught", b""))
        one.catch_up(root)
        assert one.read(f"{root}/caught") == Node(b"", version, 0)
    one.catch_up(f"{root}/nowhere")


def test_an_ephemeral_ends_with_its_session(backend: Backend, root: str) -> None:
    one, two = backend.session(), backend.session()
    one.commit(Create(root, b"", ephemeral=True))
    assert one.read(root) == Node(b"", 0, one.id)
    backend.until(lambda: two.read(root) is not None)
    one.stop(10.0)
    backend.until(lambda: two.read(root) is None)


def test_who_is_first(backend: Backend, root: str) -> None:
    """Of several that create a znode one succeeds, and the others know."""
    sessions = [backend.session() for _ in range(3)]
    sent = [session.send(Create(root, b"", ephemeral=True)) for session in sessions]
    won = []
    for session, pending in zip(sessions, sent):
        try:
            pending.result()
            won.append(session.id)
        except Conflict:
            pass
    node = sessions[0].read(root)
    assert node is None or [node.owner] == won
    assert len(won) == 1


@pytest.mark.parametrize("change", [SetData("", b"x"), Delete("")], ids=["changed", "deleted"])
def test_a_watch_fires_once(backend: Backend, root: str, change: SetData | Delete) -> None:
    one, two = backend.session(), backend.session()
    one.commit(Create(root, b""), Create(f"{root}/a", b""))
    backend.until(lambda: two.read(f"{root}/a") is not None)
    events: list[object] = []
    two.read(f"{root}/a", watch=events.append)
    assert not events
    fields = {**vars(change), "path": f"{root}/a"}
    one.commit(type(change)(**fields))
    backend.until(lambda: events)
    one.commit(
        *([SetData(f"{root}/a", b"")] if isinstance(change, SetData) else []), Check(root, 0)
    )
    two.read(root)
    assert len(events) == 1


def test_a_watch_of_children(backend: Backend, root: str) -> None:
    """It tells once that one was made or deleted, and not that one was changed."""
    one, two = backend.session(), backend.session()
    one.commit(Create(root, b""), Create(f"{root}/a", b""))
    events: list[object] = []
    changes: tuple[Operation, ...] = (Create(f"{root}/b", b""), Delete(f"{root}/b"))
    for number, change in enumerate(changes, 1):
        two.catch_up(root)
        two.children(root, events.append)
        one.commit(SetData(f"{root}/a", b"x"), SetData(root, b"x"))
        one.commit(change)
        one.commit(Create(f"{root}/c{number}", b""))
        two.catch_up(root)
        backend.until(lambda: len(events) >= number)  # noqa: B023
        assert [event.path for event in events] == [root] * number  # type: ignore[attr-defined]


def test_no_watch_on_what_is_not_there(backend: Backend, root: str) -> None:
    """So whoever finds nothing has to look again, or create it."""
    one, two = backend.session(), backend.session()
    events: list[object] = []
    assert two.read(root, watch=events.append) is None
    one.commit(Create(root, b""))
    backend.until(lambda: two.read(root) is not None)
    assert not events


@pytest.mark.parametrize("there", [False, True])
def test_a_watch_on_what_may_come_or_go(backend: Backend, root: str, there: bool) -> None:
    """exists() tells of both, once."""
    one, two = backend.session(), backend.session()
    if there:
        one.commit(Create(root, b""))
        backend.until(lambda: two.read(root) is not None)
    events: list[object] = []
    assert two.exists(root, watch=events.append) is there
    one.commit(Delete(root) if there else Create(root, b""))
    backend.until(lambda: events)
    assert two.exists(root) is not there
    assert len(events) == 1


def test_a_short_cut(backend: Backend, root: str) -> None:
    """The session lives on; watches and requests under way do not."""
    session = backend.session(timeout=4.0)
    session.commit(Create(root, b"", ephemeral=True))
    events: list[object] = []
    session.read(root, watch=events.append)
    id, connection = session.id, session.connection
    backend.cut(session)
    backend.until(lambda: not session.connected)
    backend.until(lambda: events)
    assert session.connection > connection
    with pytest.raises(Uncertain):
        session.read(root)
    backend.open(session)
    backend.until(lambda: session.connected and session.connection > connection + 1)
    assert session.id == id
    assert session.read(root) == Node(b"", 0, id)


def test_a_long_cut(backend: Backend, root: str) -> None:
    """The session expires, and what it had made is gone; the next has another id."""
    one, two = backend.session(timeout=1.0), backend.session()
    one.commit(Create(root, b"", ephemeral=True))
    backend.until(lambda: two.read(root) is not None)
    id = one.id
    backend.block(one)
    backend.until(lambda: two.read(root) is None)
    backend.open(one)
    backend.until(lambda: one.connected and one.id != id)
    assert one.read(root) is None


def test_an_answer_that_does_not_come(backend: Backend, root: str) -> None:
    """It may have been done, or not."""
    session = backend.session(timeout=1.0)
    session.commit(Create(root, b""))
    backend.block(session)
    with pytest.raises(Uncertain):
        session.commit(SetData(root, b"x"))
    backend.open(session)
    other = backend.session()
    node = other.read(root)
    assert node in (Node(b"", 0, 0), Node(b"x", 1, 0))


def test_what_was_sent_before_a_cut(backend: Backend, root: str) -> None:
    """The versions tell, after a reconnect, whether it was done; nothing of it is done later."""
    session = backend.session(timeout=4.0)
    session.commit(Create(root, b""))
    for _ in range(5):
        before = session.read(root)
        assert before is not None
        sent = session.send(SetData(root, b"x", before.version))
        backend.cut(session)
        with contextlib.suppress(Uncertain):
            sent.result()
        backend.until(lambda: not session.connected)
        backend.open(session)
        backend.until(lambda: session.connected)
        after = session.commit(SetData(root, b"y"))
        assert after[0] in (before.version + 1, before.version + 2)


@pytest.mark.parametrize(("asked", "ticks"), [(0.1, 2), (1000.0, 20)])
def test_negotiated_timeout(backend: Backend, asked: float, ticks: int) -> None:
    session = backend.session(timeout=asked)
    assert session.timeout == pytest.approx(ticks * backend.tick)


@pytest.mark.parametrize(
    ("day", "boot", "offset"),
    [(0.0, 0.0, 0.0), (3600.0, 0.0, 3600.0), (-3600.0, 0.0, -3600.0), (3600.0, 3600.0, 0.0)],
    ids=["as it was", "set forward", "set back", "suspended"],
)
def test_clocks(
    backend: Backend,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    day: float,
    boot: float,
    offset: float,
) -> None:
    """The answer to a write bears the server's time. So this machine knows it from then on, also
    after its own clock of day was set, without another answer."""
    session: ZooKeeperSession = backend.session()
    assert session.clock_offset == 0.0
    session.commit(Create(root, b""), SetData(root, b""))
    timestamp, boottime = clock.timestamp, clock.boottime
    monkeypatch.setattr(clock, "timestamp", lambda: timestamp() + day)
    monkeypatch.setattr(clock, "boottime", lambda: boottime() + boot)
    assert abs(session.clock_offset - offset) < 1.0


def test_stopped(backend: Backend, root: str) -> None:
    session = backend.session()
    session.stop(10.0)
    session.stop(10.0)
    assert not session.connected
    with pytest.raises(Uncertain):
        session.read(root)
