"""A guard on a real ZooKeeper: the bytes that end a session, and what a beat knows of its guard."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient

from celery_zk_beat import MasterElection
from celery_zk_beat.guard import program
from celery_zk_beat.guard.keeper import ON, Guard
from celery_zk_beat.records import MemberRecord
from celery_zk_beat.security import Access
from celery_zk_beat.zookeeper.operations import Create
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import LOOPBACK, ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE
from tests.faults import Road
from tests.guards import STRICT, check_strict
from tests.secure import BEAT, Authority, SecureZooKeeper

Server = tuple[str, str, int]


@pytest.fixture
def other(zookeeper: ZooKeeper) -> Iterator[KazooClient]:
    """Whose session is to be ended."""
    client = KazooClient(zookeeper.hosts, timeout=4.0)
    client.start(PATIENCE)
    yield client
    client.stop()
    client.close()


def _session_of(client: KazooClient, *servers: Server) -> dict[str, Any]:
    id, password = client.client_id
    return {"id": id, "password": password.hex(), "servers": servers, "tls": None}


def _here(server: ZooKeeper) -> Server:
    return LOOPBACK, LOOPBACK, server.port


def test_a_session_is_ended(
    zookeeper: ZooKeeper, client: KazooClient, other: KazooClient, root: str
) -> None:
    """And with it what it made; what another session made stays, wherever it lies."""
    client.create(root)
    other.create(f"{root}/of-the-dead", ephemeral=True)
    client.create(f"{root}/of-another", ephemeral=True)
    session = _session_of(other, _here(zookeeper))
    program.end(session)
    assert client.get_children(root) == ["of-another"]
    program.end(session)  # which is over by now
    assert client.get_children(root) == ["of-another"]


def test_a_session_is_ended_by_who_has_its_password(
    zookeeper: ZooKeeper, client: KazooClient, other: KazooClient, root: str
) -> None:
    other.create(root, ephemeral=True)
    program.end({**_session_of(other, _here(zookeeper)), "password": "00" * 16})
    assert client.exists(root)
    assert other.exists(root), "it lives on"


def test_a_server_that_is_silent_costs_no_time(
    zookeeper: ZooKeeper, client: KazooClient, other: KazooClient, root: str
) -> None:
    """Nor one that is away, or no ZooKeeper."""
    other.create(root, ephemeral=True)
    with socket.socket() as full, socket.socket() as more, socket.socket() as stranger:
        full.bind((LOOPBACK, 0))
        full.listen(0)
        silent: Server = ("silent", LOOPBACK, full.getsockname()[1])
        more.connect(silent[1:])  # no room for another
        stranger.bind((LOOPBACK, 0))
        stranger.listen(1)
        away: Server = ("away", LOOPBACK, free_port())
        began = time.monotonic()
        program.end(_session_of(other, silent, away, _here(zookeeper)))
        assert time.monotonic() - began < program._ANSWERS_WITHIN
    assert not client.exists(root)


def test_a_server_that_answers_no_more(
    zookeeper: ZooKeeper, client: KazooClient, other: KazooClient, root: str
) -> None:
    """It takes the connection, and no more; the next is asked after a second."""
    other.create(root, ephemeral=True)
    with socket.socket() as mute:
        mute.bind((LOOPBACK, 0))
        mute.listen(5)
        began = time.monotonic()
        program.end(_session_of(other, ("mute", LOOPBACK, mute.getsockname()[1]), _here(zookeeper)))
        assert time.monotonic() - began < 2 * program._ANSWERS_WITHIN
    assert not client.exists(root)


def test_a_server_that_hangs_up(
    zookeeper: ZooKeeper, client: KazooClient, other: KazooClient, road: Road, root: str
) -> None:
    """As one without a quorum does: it is asked again."""
    other.create(root, ephemeral=True)
    road.cut()
    _, port = road.hosts.split(":")
    asked = []

    def connections(
        servers: list[Server], real: Callable[..., Any] = program._connections
    ) -> Iterator[Any]:
        asked.append(servers)
        if len(asked) == 3:
            road.open()
        return real(servers)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "_connections", connections)
        program.end(_session_of(other, (LOOPBACK, LOOPBACK, int(port))))
    assert len(asked) >= 3
    assert not client.exists(root)


@pytest.mark.parametrize("how", ["digest", "SASL", "TLS", "a certificate"])
def test_no_credentials_are_needed(
    secure_zookeeper: SecureZooKeeper, authority: Authority, root: str, how: str
) -> None:
    """Whoever made what the session leaves behind; only TLS has to be spoken to the server."""
    tls: dict[str, Any] = {"ca": str(authority.ca)}
    key = str(authority.issue("guarded", password="k3y"))
    access = {
        "digest": Access.checked("beat:sesame", None, None, None),
        "SASL": Access.checked(None, BEAT, None, None),
        "TLS": Access.checked("beat:sesame", None, tls, None),
        "a certificate": Access.checked(
            None, None, {**tls, "certificate": key, "key_password": "k3y"}, None
        ),
    }[how]
    hosts = secure_zookeeper.hosts if access.tls is None else secure_zookeeper.secure_hosts
    with connected(hosts, 4.0, PATIENCE, lambda: None, access) as session:
        session.commit(Create(root, b"", ephemeral=True))
        handle = session.handle
        assert handle is not None
        assert handle.servers == [(LOOPBACK, LOOPBACK, int(hosts.rpartition(":")[2]))]
        guard = Guard(access)
        program.end(
            {
                "id": handle.id,
                "password": handle.password.hex(),
                "servers": handle.servers,
                "tls": guard._tls(),
            }
        )
        with connected(hosts, 4.0, PATIENCE, lambda: None, access) as looking:
            assert not looking.exists(root)


@pytest.mark.parametrize("flags", STRICT.values(), ids=STRICT)
def test_servers_that_refuse_strangers(
    tmp_path: Path, authority: Authority, root: str, flags: list[str]
) -> None:
    """They do not let the session be closed, but it is over after two or three ticks."""
    server = SecureZooKeeper(tmp_path, authority, authority.issue("strict"))
    server.args[1:1] = flags
    with server:
        server.start()
        check_strict(server.hosts, root, BEAT)


# The beat's side ----------------------------------------------------------------------------------


@pytest.fixture
def guarded(
    candidate: Callable[..., MasterElection],
) -> Callable[[str], tuple[MasterElection, Guard]]:
    """Makes an election with a guard, which is started and is master."""

    def make(id: str) -> tuple[MasterElection, Guard]:
        guard = Guard(Access())
        election = candidate(id, guard=guard, session_timeout=4.0)
        election.start(PATIENCE)
        return election, guard

    return make


def _told(client: KazooClient, election: MasterElection) -> str | None:
    path = election.paths.member(election.id)
    if not client.exists(path):
        return None
    return MemberRecord.decode(path, client.get(path)[0]).guard


def test_a_beat_tells_whether_it_has_a_guard(
    guarded: Callable[[str], tuple[MasterElection, Guard]],
    candidate: Callable[..., MasterElection],
    client: KazooClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Killed, it is replaced, and the log tells of it."""
    election, guard = guarded("one")
    wait_until(lambda: _told(client, election) == ON, PATIENCE, "a guard")
    first = guard.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "it has ended (-9)" in (_told(client, election) or ""), PATIENCE, "no guard")
    wait_until(lambda: _told(client, election) == ON, PATIENCE, "another guard")
    assert guard.pid not in (None, first)
    assert "no guard, so if this beat dies, standbys wait a session time-out" in caplog.text
    assert election.is_master
    without = candidate("two")
    without.start(PATIENCE)
    wait_until(lambda: client.exists(without.paths.member("two")), PATIENCE, "two")
    assert _told(client, without) is None


def test_a_guard_ends_with_its_election(
    guarded: Callable[[str], tuple[MasterElection, Guard]], client: KazooClient
) -> None:
    election, guard = guarded("one")
    wait_until(lambda: guard.state == ON, PATIENCE, "a guard")
    pid = guard.pid
    election.stop()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), PATIENCE, "its end")
    assert guard.pid is None


def test_a_guard_that_is_stopped_holds_up_nothing(
    guarded: Callable[[str], tuple[MasterElection, Guard]],
) -> None:
    """However much it is told and does not hear."""
    election, guard = guarded("one")
    wait_until(lambda: guard.state == ON, PATIENCE, "a guard")
    assert guard.pid is not None
    os.kill(guard.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        while guard.state == ON:
            guard._told = guard._link, 0  # of another connection
            guard.tell(election.session)
            assert time.monotonic() < began + PATIENCE, "its link is never full"
        assert "temporarily unavailable" in guard.state
    finally:
        os.kill(guard.pid, signal.SIGKILL)
