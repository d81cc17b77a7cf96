"""MasterElection against a real server. Numbers in brackets are those of docs/pitfalls.md."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError, NotEmptyError, SessionExpiredError
from kazoo.protocol.states import KazooState
from kazoo.security import READ_ACL_UNSAFE, make_digest_acl

from celery_zk_beat import ConnectTimeout, MasterElection, RootError
from celery_zk_beat.election import restraint
from celery_zk_beat.errors import Uncertain
from celery_zk_beat.log import LOGGERS
from celery_zk_beat.records import (
    TERMS_REMEMBERED,
    EpochRecord,
    MasterRecord,
    MemberRecord,
    TermRecord,
    decode_masters,
    encode_masters,
)
from celery_zk_beat.zookeeper.session import ZooKeeperSession
from example_project.servers import ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE, SESSION_TIMEOUT, kazoo_of
from tests.faults import Road

Candidate = Callable[..., MasterElection]
T = TypeVar("T")


def elect(election: MasterElection) -> MasterElection:
    election.start(PATIENCE)
    assert election.wait(PATIENCE)
    return election


def terms(client: KazooClient, election: MasterElection) -> list[TermRecord]:
    path = election.paths.masters
    return decode_masters(path, client.get(path)[0])


def begun_anew(client: KazooClient, election: MasterElection, epoch: int) -> bool:
    """Whether the list of masters is there again, with one of them."""
    with contextlib.suppress(NoNodeError, RootError):
        return [term.epoch for term in terms(client, election)] == [epoch]
    return False


def until(condition: Callable[[], T | None], what: str) -> T:
    return wait_until(condition, PATIENCE, what)


def members(client: KazooClient, election: MasterElection) -> list[str]:
    try:
        return sorted(client.get_children(election.paths.members))
    except NoNodeError:
        return []


def expire(hosts: str, election: MasterElection) -> None:
    """Ends the session on the server as if it had expired: another connection joins it, and closes
    it (ZooKeeper FAQ, "How should I handle SESSION_EXPIRED?", on testing)."""
    thief = KazooClient(hosts, client_id=kazoo_of(election.session).client_id)
    thief.start(PATIENCE)
    thief.stop()
    thief.close()


def test_one_is_elected(candidate: Candidate, client: KazooClient) -> None:
    """And all can see who it is."""
    one = elect(candidate("one"))
    two = candidate("two")
    two.start(PATIENCE)
    assert one.is_master
    assert one.epoch == 1
    assert not two.is_master
    assert two.epoch is None
    assert two.master is not None
    assert two.master.id == "one"
    data, stat = client.get(one.paths.master)
    record = MasterRecord.decode("master", data)
    assert (record.id, record.epoch) == ("one", 1)
    assert stat.ephemeralOwner == one.session.id
    assert client.get(one.paths.epoch)[1].version == 1
    until(lambda: members(client, one) == ["one", "two"], "two members")

    def role(id: str) -> str:
        return str(json.loads(client.get(one.paths.member(id))[0])["state"])

    until(lambda: role("one") == "master", "a master among the members")
    assert role("two") == "standby"


def test_another_goes_on(candidate: Candidate, client: KazooClient) -> None:
    """Stopping hands over at once, under a new epoch."""
    one, two = elect(candidate("one")), candidate("two")
    two.start(PATIENCE)
    one.stop()
    assert two.wait(PATIENCE)
    assert two.epoch == 2
    assert not one.is_master
    until(lambda: members(client, two) == ["two"], "one member")


def test_callbacks(candidate: Candidate) -> None:
    """They come in order, on a thread of their own; one that raises or blocks harms nothing."""
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    blocked = threading.Event()

    def elected(epoch: int) -> None:
        calls.put((epoch, threading.current_thread().name))
        blocked.wait(PATIENCE)
        raise ValueError("a callback's own trouble")

    one = candidate("one", on_elected=elected, on_demoted=calls.put)
    elect(one)
    assert calls.get(timeout=PATIENCE) == (1, "zk-beat-callbacks")
    assert one.resign()
    assert calls.empty()  # the first still blocks, and only itself
    blocked.set()
    assert calls.get(timeout=PATIENCE) == "resigned"


def test_stopping_is_told(candidate: Candidate) -> None:
    """By the time stop() returns, on_demoted has been called."""
    calls: list[Any] = []
    one = candidate("one", on_elected=calls.append, on_demoted=calls.append)
    elect(one)
    one.stop()
    assert calls == [1, "stopped"]


def test_resign(candidate: Candidate) -> None:
    """The other is elected, though the one that resigned goes on as a candidate."""
    one, two = elect(candidate("one")), candidate("two")
    two.start(PATIENCE)
    assert not two.resign()
    assert one.resign()
    assert not one.is_master
    assert two.wait(PATIENCE)
    two.stop()
    assert one.wait(PATIENCE)
    assert one.epoch == 3


def test_resigning_alone(candidate: Candidate) -> None:
    """Nobody else is there, so it is elected again after a pause."""
    one = elect(candidate("one"))
    assert one.resign()
    assert one.wait(PATIENCE)
    assert one.epoch == 2


def test_who_was_useless_stands_back(candidate: Candidate, client: KazooClient) -> None:
    """While there is another that may be of use, for a time that grows; not when it can do
    something again, and not where all are useless."""
    one = elect(candidate("one"))
    path = one.paths.member("two")
    other = MemberRecord("two", "host", 1, "standby", "", "1", None, "", None)
    client.create(path, other.encode())

    def vacancy(then: Callable[[], object] = lambda: None) -> float:
        assert one.resign(why="no broker", useless=True)
        begun = time.monotonic()
        assert one.useless == "no broker"
        shown = MemberRecord.decode(path, client.get(one.paths.member("one"))[0])
        assert shown.useless == "no broker" or shown.state == "master"
        then()
        assert one.wait(PATIENCE)
        return time.monotonic() - begun

    assert vacancy() > 0.9
    assert vacancy() > 1.9
    assert vacancy() > 3.9
    assert vacancy(one.of_use) < 7.9  # by now it were 8
    assert one.useless is None
    client.set(path, replace(other, useless="no broker").encode())
    assert vacancy() < 9.9


def test_who_was_useless_does_something(candidate: Candidate, client: KazooClient) -> None:
    """As master: then the time is forgotten."""
    one = elect(candidate("one"))
    other = MemberRecord("two", "host", 1, "standby", "", "1", None, "", None)
    client.create(one.paths.member("two"), other.encode())
    for _ in range(2):
        assert one.resign(why="no broker", useless=True)
        assert one.wait(PATIENCE)
    one.of_use()
    begun = time.monotonic()
    assert one.resign(why="no broker", useless=True)
    assert one.wait(PATIENCE)
    assert time.monotonic() - begun < 3.9  # it were 4


def test_the_useless_take_turns(candidate: Candidate) -> None:
    """Where all are, there is a master nearly all the time."""
    one, two = elect(candidate("one")), candidate("two")
    two.start(PATIENCE)
    terms = []
    for _ in range(6):
        (master,) = (each for each in (one, two) if each.is_master)
        terms.append(master.id)
        begun = time.monotonic()
        assert master.resign(why="no broker", useless=True)
        until(lambda: one.is_master or two.is_master, "a master")
        assert time.monotonic() - begun < 3.0
    assert set(terms) == {"one", "two"}


def test_context_manager(zookeeper: ZooKeeper, root: str, client: KazooClient) -> None:
    with MasterElection(zookeeper.hosts, root) as election:
        assert election.wait(PATIENCE)
        until(lambda: members(client, election) == [election.id], "all that it makes")
        found = sorted(client.get_children(root))
        assert found == ["epoch", "master", "masters", "members"], "and nothing of a ledger's"
    assert client.exists(election.paths.master) is None
    with pytest.raises(RuntimeError, match="create a new MasterElection"):
        election.start()


def test_deleted_by_hand(candidate: Candidate, client: KazooClient) -> None:
    """[5] The master watches its own znode: without it, it is not master."""
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    one = elect(candidate("one", on_demoted=reasons.put))
    client.delete(one.paths.master)
    assert reasons.get(timeout=PATIENCE) == "its znode is gone"
    until(lambda: one.epoch == 2, "a new election")


def test_written_by_hand(candidate: Candidate, client: KazooClient) -> None:
    """An epoch that another hand has advanced is a fence against us too."""
    one = elect(candidate("one"))
    client.set(one.paths.epoch, client.get(one.paths.epoch)[0])
    one.recheck()
    until(lambda: one.epoch == 2, "the epoch as it is")
    client.set(one.paths.epoch, EpochRecord("stranger", "0x0", "").encode())
    one.recheck()
    until(lambda: (one.epoch or 0) > 3, "a new election")
    client.set(one.paths.epoch, b"not JSON")
    one.recheck()
    until(lambda: (one.epoch or 0) > 5, "another one")


@pytest.mark.parametrize("epoch", [2**40, -1, -7])
@pytest.mark.parametrize("successor", [None, "one"])
def test_a_master_of_an_impossible_epoch(
    candidate: Candidate, client: KazooClient, epoch: int, successor: str | None
) -> None:
    """Written by hand: it is waited for, as any other, and does not end this one."""
    one = candidate("one")
    client.ensure_path(one.paths.root)
    record = MasterRecord("stranger", "host", 1, "", epoch, "", None, successor)
    client.create(one.paths.master, record.encode())
    one.start(PATIENCE)
    assert not one.is_master
    client.delete(one.paths.master)
    assert one.wait(PATIENCE)
    assert one.epoch == 1


def test_a_znode_without_data(candidate: Candidate, client: KazooClient) -> None:
    """Other clients of ZooKeeper make them; it is one of an unknown format."""
    one = candidate("one")
    client.ensure_path(one.paths.root)
    for path in (one.paths.master, one.paths.masters, one.paths.epoch):
        client.create(path)
        client.set(path, None)
    one.start(PATIENCE)
    assert one.master is not None
    assert one.master.id == "unknown"
    client.delete(one.paths.master)
    assert one.wait(PATIENCE)


def test_masters_deleted_by_hand(candidate: Candidate, client: KazooClient) -> None:
    """Without the list of masters one can resign all the same."""
    one = elect(candidate("one"))
    until(lambda: begun_anew(client, one, 1), "it in the list of masters")
    client.delete(one.paths.masters)
    assert one.resign()
    assert one.wait(PATIENCE)
    until(lambda: begun_anew(client, one, 2), "a new list")


def test_masters_that_cannot_be_written_again(candidate: Candidate, client: KazooClient) -> None:
    """A list that ZooKeeper took, and would not take with one more, begins anew."""
    one = candidate("one")
    client.ensure_path(one.paths.root)
    term = TermRecord(0, "stranger", "host", 1, "", "", "x" * 1_048_200)
    client.create(one.paths.masters, encode_masters([term]))
    elect(one)
    until(lambda: begun_anew(client, one, 1), "a new list")


def test_masters_that_may_not_be_written(candidate: Candidate, client: KazooClient) -> None:
    """Nobody stops being master for what is only to be remembered."""
    demoted: list[str] = []
    one = candidate("one", on_demoted=demoted.append)
    client.ensure_path(one.paths.root)
    client.create(one.paths.masters, acl=READ_ACL_UNSAFE)
    elect(one)
    until(lambda: members(client, one) == ["one"], "what comes after it")
    assert one.resign()
    assert demoted == [] or demoted == ["resigned"]


def test_nothing_new_is_not_told(candidate: Candidate, client: KazooClient) -> None:
    """Or whoever has it look again after a refusal would be woken at once, again and again."""
    one = elect(candidate("one"))
    until(lambda: members(client, one) == ["one"], "the end of the news of its election")
    told: list[None] = []
    one.subscribe(lambda: told.append(None))
    one.recheck()
    assert one.resign()  # dealt with after it
    assert len(told) == 1  # of the resignation


def test_a_mistake_of_ones_own_is_a_failure(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not leave a candidate that nobody knows to be dead."""
    one = elect(candidate("one"))
    monkeypatch.setattr(one._candidate, "turn", lambda: 1 / 0)
    one.recheck()
    until(lambda: one.failure is not None, "the failure")
    assert "ZeroDivisionError" in str(one.failure)
    assert not one.is_master


def test_all_deleted_by_hand(candidate: Candidate, client: KazooClient) -> None:
    """The whole root gone: what is needed is made again."""
    one, two = elect(candidate("one")), candidate("two")
    two.start(PATIENCE)

    def deleted() -> bool:
        with contextlib.suppress(NotEmptyError):  # they make it again while it is deleted
            client.delete(one.paths.root, recursive=True)
            return True
        return False

    until(deleted, "the end of all")
    until(lambda: one.is_master or two.is_master, "a new election")
    until(lambda: members(client, one) == ["one", "two"], "the members")


def test_no_release_of_a_successor(candidate: Candidate, client: KazooClient) -> None:
    """[20] A master that does not know yet that it was replaced deletes nothing by resigning."""
    one = elect(candidate("one"))
    term = one.term
    with_successor = client.transaction()
    with_successor.delete(one.paths.master)
    with_successor.create(one.paths.master, b"{}")
    with_successor.set_data(one.paths.epoch, b"")
    with_successor.commit()
    one._candidate._term = term
    one._candidate.resign(None, "resigned")
    assert client.exists(one.paths.master)


def test_resigning_in_favour_of_one(
    candidate: Candidate, client: KazooClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many standbys, the one that is named is the next master; there is no time without one."""
    monkeypatch.setattr(restraint, "RESIGN_PAUSE", PATIENCE)
    one = elect(candidate("one"))
    others = [candidate(name) for name in ("two", "three", "four")]
    for other in others:
        other.start(PATIENCE)
    until(lambda: members(client, one) == ["four", "one", "three", "two"], "all members")
    for successor, old in ((others[1], one), (others[0], others[1]), (one, others[0])):
        epoch = old.epoch
        assert old.resign(to=successor.id, why="asked by the test")
        assert not old.is_master
        assert successor.wait(PATIENCE)
        assert successor.epoch == (epoch or 0) + 1
    until(lambda: len(terms(client, one)) == 4, "what is written of it")
    *past, last = terms(client, one)
    assert [(term.epoch, term.id) for term in past] == [(1, "one"), (2, "three"), (3, "two")]
    assert {term.why for term in past} == {"resigned: asked by the test"}
    assert all(term.until is not None for term in past)
    assert (last.epoch, last.id, last.until, last.why) == (4, "one", None, None)


def test_a_successor_that_has_just_resigned(
    candidate: Candidate, client: KazooClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the field to others for a while, but not when it is asked to take over."""
    monkeypatch.setattr(restraint, "RESIGN_PAUSE", 2 * PATIENCE)
    one, two = elect(candidate("one")), candidate("two")
    two.start(PATIENCE)
    until(lambda: members(client, one) == ["one", "two"], "both members")
    assert one.resign()
    assert two.wait(PATIENCE)
    assert two.resign(to="one")
    assert one.wait(PATIENCE)


def test_a_successor_that_does_not_come(
    candidate: Candidate, client: KazooClient, road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master goes on, in the same epoch: nobody else was elected."""
    monkeypatch.setattr(restraint, "RESIGN_PAUSE", 0.2)  # all within the successor's session
    one, two = elect(candidate("one")), candidate("two", road.hosts, session_timeout=4.0)
    two.start(PATIENCE)
    until(lambda: members(client, one) == ["one", "two"], "both members")
    road.block()
    assert one.resign(to="two")
    assert one.wait(PATIENCE)
    assert one.epoch == 1
    until(lambda: [term.until for term in terms(client, one)] == [None], "the term as it is")
    assert one.resign(to="two", why="again")  # it can be asked once more
    road.open()


@pytest.mark.parametrize("written", ["master", "epoch"])
def test_written_by_hand_while_handing_over(
    candidate: Candidate, client: KazooClient, road: Road, written: str
) -> None:
    """The successor does not come, and the epoch is no longer that of the master znode: goes on."""
    one, two = elect(candidate("one")), candidate("two", road.hosts, session_timeout=4.0)
    two.start(PATIENCE)
    until(lambda: members(client, one) == ["one", "two"], "both members")
    road.block()
    assert one.resign(to="two")
    if written == "master":
        record = MasterRecord("stranger", "host", 1, "", 99, "", None, "two")
        client.set(one.paths.master, record.encode())
    else:
        client.set(one.paths.epoch, b"by hand")
    assert one.wait(PATIENCE)
    assert one.epoch == (1 if written == "master" else 3)
    road.open()


@pytest.mark.parametrize("to", ["one", "nobody", "", "../master", "\ud800"])
def test_resigning_in_favour_of_nobody(candidate: Candidate, to: str) -> None:
    """Of itself, or of a beat that is not there: it stays master."""
    one = elect(candidate("one"))
    assert not one.resign(to=to)
    assert one.is_master


def test_the_masters_are_remembered(
    candidate: Candidate, client: KazooClient, zookeeper: ZooKeeper
) -> None:
    """With how each ended, as far as it could tell; the last fifty."""
    one = elect(candidate("one"))
    one.stop()
    two = elect(candidate("two"))
    until(lambda: len(terms(client, two)) == 2, "two masters")
    expire(zookeeper.hosts, two)
    until(lambda: two.epoch == 3 and len(terms(client, two)) == 3, "the third")
    whys = [term.why for term in terms(client, two)]
    assert whys == ["stopped", "its session ended", None]
    two.stop()
    path = two.paths.masters
    client.set(path, encode_masters(terms(client, two)[:1] * TERMS_REMEMBERED))
    three = elect(candidate("three"))
    until(lambda: terms(client, two)[-1].epoch == 4, "the fourth")
    assert len(terms(client, two)) == TERMS_REMEMBERED
    three.stop()
    client.set(path, b"not JSON")
    elect(candidate("four"))
    until(lambda: b"JSON" not in client.get(path)[0], "a list made anew")


def test_the_clock_shows_in_the_member(candidate: Candidate, client: KazooClient) -> None:
    """What a beat wrote there, and when the server wrote it down, are at most a moment apart."""
    one = elect(candidate("one"))
    until(lambda: members(client, one) == ["one"], "the member")
    data, stat = client.get(one.paths.member("one"))
    written = datetime.fromisoformat(MemberRecord.decode("", data).written).timestamp()
    assert abs(written - stat.mtime / 1000) < PATIENCE


def test_session_expiry(zookeeper: ZooKeeper, candidate: Candidate) -> None:
    """Demoted, then elected again in a new session, under a new epoch."""
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    one = elect(candidate("one", on_demoted=reasons.put))
    session = one.session.id
    expire(zookeeper.hosts, one)
    assert reasons.get(timeout=PATIENCE)
    until(lambda: one.epoch == 2, "a new election")
    assert one.session.id != session


def test_suspended_is_not_master(candidate: Candidate, road: Road) -> None:
    """[1] The moment the connection is lost, and not only when the session is."""
    one = elect(candidate("one", road.hosts, session_timeout=10.0))
    road.cut()
    until(lambda: not one.is_master, "demotion")
    road.open()
    assert one.wait(PATIENCE)
    assert one.epoch == 1  # the session lived on


def test_old_connection_proves_nothing(candidate: Candidate, road: Road) -> None:
    """[3] [4] What was learnt over the last connection is not believed on the next, before the
    owner was read again."""
    one = elect(candidate("one", road.hosts, session_timeout=10.0))
    term = one.term
    assert term is not None
    road.cut()
    until(lambda: not one.session.connected, "the end of the connection")
    road.open()
    assert one.wait(PATIENCE)
    assert one.term is not None
    assert one.term != term
    assert one.term.epoch == term.epoch


def test_cut_off_for_long(candidate: Candidate, road: Road) -> None:
    """[2] kazoo does not learn of the expiry while it is cut off. Another is elected, and the old
    one, back again, is a standby."""
    one, two = elect(candidate("one", road.hosts)), candidate("two")
    two.start(PATIENCE)
    road.block()
    assert two.wait(PATIENCE)
    assert not one.is_master
    road.open()
    until(lambda: one.master == two.master and one.session.connected, "one to see two")
    assert not one.is_master
    assert two.epoch == 2


def test_answer_lost(candidate: Candidate, road: Road, client: KazooClient) -> None:
    """[6] The transaction that elects is done, and its answer lost with the connection: the owner
    of the znode settles it, without a second election."""
    zero = elect(candidate("zero"))
    one = candidate("one", road.hosts, session_timeout=10.0)
    one.start(PATIENCE)
    epoch = one.session.read(one.paths.epoch)
    assert epoch is not None
    road.block_answers()
    # It cannot see this through the blocked road, so have it contend by itself.
    zero.stop()

    def contend() -> None:
        with contextlib.suppress(Uncertain):
            one._candidate.elect(epoch)

    contending = threading.Thread(target=contend)
    contending.start()
    until(lambda: client.exists(one.paths.master), "the election")
    road.cut()
    road.open()
    contending.join()
    assert one.wait(PATIENCE)
    assert one.epoch == 2
    assert client.get(one.paths.epoch)[1].version == 2


def test_watches_are_armed_again(candidate: Candidate, road: Road) -> None:
    """[7] A standby whose connection was lost meanwhile is elected all the same."""
    one, two = elect(candidate("one")), candidate("two", road.hosts, session_timeout=10.0)
    two.start(PATIENCE)
    for _ in range(2):
        road.cut()
        until(lambda: not two.session.connected, "the end of the connection")
        road.open()
        until(lambda: two.session.connected, "the next connection")
    one.stop()
    assert two.wait(PATIENCE)


def test_old_session_of_ones_own(
    candidate: Candidate, zookeeper: ZooKeeper, client: KazooClient
) -> None:
    """[3] A master znode of an earlier session, with our own id on it, is not ours."""
    other = KazooClient(zookeeper.hosts)
    other.start(PATIENCE)
    one = candidate("one")
    old = MasterRecord("one", "host", 1, "2026-01-01T00:00:00.000000+00:00", 1, "0.1.0", None, None)
    other.create(one.paths.master, old.encode(), ephemeral=True, makepath=True)
    one.start(PATIENCE)
    assert not one.is_master
    other.stop()
    other.close()
    assert one.wait(PATIENCE)


def test_two_with_one_name(candidate: Candidate, caplog: pytest.LogCaptureFixture) -> None:
    """As two containers whose host name and process id are the same: it is not said that the other
    is an earlier session; and after the time of a session, that there are two."""
    caplog.set_level(logging.INFO, LOGGERS)
    one, two = elect(candidate("same")), candidate("same")
    two.start(PATIENCE)
    until(lambda: "so there are two beats with the id same" in caplog.text, "a line")
    assert "not elected because same (another process with the same id, pid" in caplog.text
    assert "members/same is held by another process with the same id, pid" in caplog.text
    assert "an earlier session of this process" not in caplog.text
    one.stop()
    assert two.wait(PATIENCE)


def test_zookeeper_is_not_there(candidate: Candidate) -> None:
    """[14] The documented example: an error after three seconds, which says what to look at."""
    one = candidate("one", f"127.0.0.1:{free_port()}")
    with pytest.raises(ConnectTimeout, match=r"did not answer within 0\.5 s: is it running"):
        one.start(timeout=0.5)
    assert not one.wait(PATIENCE)  # stopped: nothing to wait for


def test_zookeeper_comes_later(
    candidate: Candidate, own_zookeeper: ZooKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    """[14] Waiting is the default; the log says so."""
    caplog.set_level(logging.INFO, LOGGERS)
    one = candidate("one", own_zookeeper.hosts)
    one.start()
    until(lambda: "does not answer; waiting for it as a standby" in caplog.text, "a log line")
    own_zookeeper.start()
    assert one.wait(PATIENCE)


def test_zookeeper_restarts(candidate: Candidate, own_zookeeper: ZooKeeper) -> None:
    """Without its data, too: all sessions and znodes are gone, and the election goes on."""
    own_zookeeper.start()
    one = elect(candidate("one", own_zookeeper.hosts))
    own_zookeeper.restart()
    assert one.wait(PATIENCE)


def test_chroot(candidate: Candidate, zookeeper: ZooKeeper, client: KazooClient) -> None:
    """[17] kazoo only warns of one that is missing; here it is made."""
    one = elect(candidate("one", f"{zookeeper.hosts}/not/there", root="/yet"))
    assert client.exists("/not/there/yet/master")
    assert one.paths.root == "/not/there/yet"


def test_root_of_another_app(candidate: Candidate) -> None:
    elect(candidate("one", app="shop"))
    two = candidate("two", app="bank")
    with pytest.raises(RootError, match=r"belongs to the app 'shop', and this is 'bank'.*\(root\)"):
        two.start(PATIENCE)
    assert isinstance(two.failure, RootError)
    with pytest.raises(RootError):
        two.wait(PATIENCE)


def test_two_claim_the_root(candidate: Candidate) -> None:
    """Of many that start at once, one writes its name into the root; none fails."""
    elections = [candidate(f"c{n}", app="shop") for n in range(5)]
    for election in elections:
        election.start()
    until(lambda: sum(e.is_master for e in elections) == 1, "one master")
    until(lambda: all(e.master for e in elections), "all to know it")
    assert not any(e.failure for e in elections)


@pytest.mark.parametrize("data", [b"\xff", b'{"format": 99, "app": "shop"}'])
def test_root_of_the_future(candidate: Candidate, client: KazooClient, data: bytes) -> None:
    """A format that this release does not know is refused by name, never guessed."""
    one = candidate("one", app="shop")
    client.create(one.paths.root, data)
    with pytest.raises(RootError, match=one.paths.root):
        one.start(PATIENCE)


@pytest.mark.parametrize(
    "data",
    [
        b"not ours",
        b'{"format":2,"id":"x","host":"x","pid":1,"since":"","epoch":"7","version":"","schedule":null}',
        b'{"format":2,"id":[],"host":"x","pid":1,"since":"","epoch":7.5,"version":"","schedule":null}',
    ],
    ids=["no JSON", "a text for the epoch", "other types"],
)
def test_master_znode_of_a_stranger(candidate: Candidate, client: KazooClient, data: bytes) -> None:
    """Whatever is in it, somebody else is master; when it goes, the election goes on."""
    one = candidate("one")
    client.create(one.paths.master, data, makepath=True)
    one.start(PATIENCE)
    assert not one.is_master
    client.delete(one.paths.master)
    assert one.wait(PATIENCE)


def test_no_rights(candidate: Candidate, client: KazooClient) -> None:
    """[9] A refusal is tried again, for rights may come late."""
    one = candidate("one")
    acl = [make_digest_acl("u", "p", all=True)]
    client.add_auth("digest", "u:p")
    client.create(one.paths.root, b"", acl=acl)
    one.start()
    assert not one.wait(0.5)
    client.set_acls(one.paths.root, client.get_acls("/")[0])
    assert one.wait(PATIENCE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_client(candidate: Candidate) -> None:
    """[10] kazoo's loop can end for good; then a new client is made. An answer that comes after
    AUTH_FAILED ends it by an IndexError, which is as good an end as the other."""
    one = elect(candidate("one"))
    client = one.session._client
    kazoo = kazoo_of(one.session)
    kazoo.add_auth_async("no such scheme", "x")  # the server ends the session: AUTH_FAILED
    until(lambda: one.session._client not in (client, None), "a new client")
    assert one.wait(PATIENCE)


def test_stopping_while_zookeeper_hangs(candidate: Candidate, road: Road) -> None:
    """[15] kazoo's own stop() would wait; ours is bounded."""
    one = elect(candidate("one", road.hosts, session_timeout=10.0))
    road.block()
    begun = time.monotonic()
    one.stop()
    assert time.monotonic() - begun < 10
    one.stop()


def test_stopping_what_never_started(candidate: Candidate) -> None:
    candidate("one").stop()


def test_stop_from_a_signal_handler(candidate: Candidate) -> None:
    """[15] The handler interrupts wait() in the main thread, wherever it is."""
    one = elect(candidate("one"))
    two = candidate("two")
    two.start(PATIENCE)
    old = signal.signal(signal.SIGALRM, lambda number, frame: two.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert not two.wait(PATIENCE)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert one.is_master


def test_negotiated_timeout(
    candidate: Candidate, caplog: pytest.LogCaptureFixture, zookeeper: ZooKeeper
) -> None:
    """[2] kazoo throws it away (kazoo#769); the server grants 2 to 20 ticks, and the log says so
    when it is not what was asked for."""
    caplog.set_level(logging.INFO, LOGGERS)
    one = elect(candidate("one", session_timeout=100.0))
    assert one.session.timeout == 4
    assert "session time-out 4 s (asked for 100 s)" in caplog.text


def test_what_the_log_says(candidate: Candidate, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGERS)
    one, two = elect(candidate("one")), candidate("two")
    two.start(PATIENCE)
    one.stop()
    assert two.wait(PATIENCE)
    for line in (
        "connected to ZooKeeper at",
        "elected: one is master, epoch 1",
        "not elected because one is master, epoch 1",
        "demoted: one was master, epoch 1: stopped",
        "master one is gone - contending",
        "elected: two is master, epoch 2",
    ):
        until(lambda line=line: line in caplog.text, line)  # type: ignore[misc]


def test_is_master_asks_nobody(candidate: Candidate, road: Road) -> None:
    """Cheap, no network: it answers while nothing gets through."""
    one = elect(candidate("one", road.hosts, session_timeout=10.0))
    road.block()
    begun = time.monotonic()
    for _ in range(10_000):
        assert one.is_master
    assert time.monotonic() - begun < 3


def test_never_read_only(candidate: Candidate) -> None:
    """[13] A read-only server looks connected."""
    assert kazoo_of(elect(candidate("one")).session).read_only is False


def test_kazoo_is_kept_short(candidate: Candidate) -> None:
    """[11] [12] No pause grows beyond a second, and no request is repeated behind our back."""
    kazoo = kazoo_of(elect(candidate("one")).session)
    assert kazoo._conn_retry.max_delay <= 1
    assert SessionExpiredError not in kazoo._retry.retry_exceptions
    assert kazoo._retry.max_tries == 1


def test_callbacks_of_a_stopped_client(zookeeper: ZooKeeper) -> None:
    """[4] What an old client says late is not heard."""
    news: list[int] = []
    session = ZooKeeperSession(zookeeper.hosts, SESSION_TIMEOUT, lambda: news.append(1))
    session.start()
    until(lambda: session.connected, "a connection")
    old = kazoo_of(session)
    session.stop(PATIENCE)
    before = session.connection, len(news)
    (listener,) = old.state_listeners
    listener(KazooState.CONNECTED)
    assert (session.connection, len(news)) == before


def test_repr(candidate: Candidate, root: str) -> None:
    one = elect(candidate("one"))
    assert "one master of epoch 1" in repr(one)


def test_a_zookeeper_that_has_lost_its_data(
    own_zookeeper: ZooKeeper, candidate: Callable[..., MasterElection], tmp_path: Path
) -> None:
    """It hangs up on a client that has seen more than it has: on ours not for ever."""
    own_zookeeper.start()
    election = candidate("a", own_zookeeper.hosts)
    election.start(PATIENCE)
    assert election.wait(PATIENCE)
    own_zookeeper.stop()
    shutil.rmtree(tmp_path / "zookeeper" / "version-2")
    own_zookeeper.start()
    wait_until(lambda: election.epoch == 1 and election.is_master, PATIENCE, "another epoch 1")
