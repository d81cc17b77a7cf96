"""Credentials, TLS and rights, on a real server that knows users and certificates."""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_acl, make_digest_acl

from celery_zk_beat import ConnectTimeout, MasterElection
from celery_zk_beat.errors import AccessDenied
from celery_zk_beat.ledger import BELOW_ROOT
from celery_zk_beat.log import LOGGERS
from celery_zk_beat.security import Access, Grant
from celery_zk_beat.zookeeper.client import Handler
from celery_zk_beat.zookeeper.operations import Create
from celery_zk_beat.zookeeper.servers import Servers
from celery_zk_beat.zookeeper.session import connected
from example_project.servers import LOOPBACK, wait_until
from tests.conftest import PATIENCE
from tests.secure import BEAT, Authority, SecureZooKeeper

WORLD = [Grant("world", "anyone", 31)]

Start = Callable[..., MasterElection]


@pytest.fixture
def server(secure_zookeeper: SecureZooKeeper) -> SecureZooKeeper:
    return secure_zookeeper


@pytest.fixture
def start(server: SecureZooKeeper, root: str) -> Iterator[Start]:
    """Starts candidates, and stops them in the end."""
    made: list[MasterElection] = []

    def start(hosts: str = server.hosts, **options: Any) -> MasterElection:
        options = {"session_timeout": 4.0, "root": root, "below": BELOW_ROOT, **options}
        made.append(MasterElection(hosts, **options))
        made[-1].start()
        return made[-1]

    yield start
    for election in made:
        election.stop()


@pytest.fixture(params=["digest", "sasl", "tls", "mutual tls", "sasl over tls"])
def way(
    request: pytest.FixtureRequest, server: SecureZooKeeper, authority: Authority
) -> dict[str, Any]:
    """Arguments of an election."""
    tls = {"ca": authority.ca}
    ways: dict[str, dict[str, Any]] = {
        "digest": {"auth": "beat:sesame"},
        "sasl": {"sasl": BEAT},
        "tls": {"hosts": server.secure_hosts, "tls": tls},
        "mutual tls": {
            "hosts": server.secure_hosts,
            "tls": {
                **tls,
                "certificate": authority.issue("beat", password="sesame"),
                "key_password": "sesame",
            },
        },
        "sasl over tls": {"hosts": server.secure_hosts, "tls": tls, "sasl": BEAT},
    }
    return ways[request.param]


def elected(election: MasterElection) -> bool:
    return election.wait(PATIENCE)


def rights(election: MasterElection, *names: str) -> list[list[Grant]]:
    return election.session.grants([f"{election.paths.root}{name}" for name in names])


def complaint(caplog: pytest.LogCaptureFixture, said: str) -> str:
    """The warning that says so, once it is there: one line, and no traceback with it. A server that
    is slow, or busy with starting, may have made for another before."""

    def look() -> set[str]:
        assert not any(record.exc_info for record in caplog.records)
        warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        return {line for line in warnings if said in line}

    (line,) = wait_until(look, PATIENCE, said)
    assert "\n" not in line
    return line


def test_each_way_in(way: dict[str, Any], start: Start, root: str) -> None:
    """Who is somebody makes all znodes for himself alone."""
    election = start(**way)
    assert elected(election)
    wait_until(lambda: election.session.children(election.paths.members), PATIENCE, "a member")
    member = f"/members/{election.session.children(election.paths.members)[0]}"
    everything = rights(election, "", "/epoch", "/master", "/runs", "/masters", member)
    if election.session.access.identified:
        assert len({str(grants) for grants in everything}) == 1
        (grant,) = everything[0]
        assert grant.scheme in ("digest", "sasl", "x509")
        assert grant.id.startswith("CN=beat" if grant.scheme == "x509" else "beat")
    else:
        assert everything == [WORLD] * 6


def test_what_tls_has_read_ahead(authority: Authority) -> None:
    """Two answers may come as one packet, of which the socket itself shows nothing any more after
    the first was read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # they come as packets, too
    context.load_cert_chain(authority.issue("two"))
    access = Access.checked(None, None, {"ca": authority.ca}, None)
    handler = Handler(Servers(PATIENCE, access), access)
    handler.server_name = LOOPBACK
    with socket.create_server((LOOPBACK, 0)) as listening, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(handler.create_connection, address=listening.getsockname())
        with context.wrap_socket(listening.accept()[0], server_side=True) as server:
            server.sendall(b"two")
            with coming.result() as client, socket.socket() as idle:
                client.setblocking(False)
                assert handler.select([client], [], [], PATIENCE)[0] == [client]
                for letter in (b"t", b"w", b"o"):
                    assert client.recv(1) == letter
                    more = handler.select([client, idle], [idle], [], 0)[0]
                    assert (client in more) == (letter != b"o")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sasl": {**BEAT, "password": "wrong"}}, "refuses sasl"),
        ({"sasl": {**BEAT, "password": {"env": "NO_SUCH"}}}, "sasl: password: environment var"),
        ({"auth": {"file": "/no/such"}}, "auth: file '/no/such': No such file"),
        ({"auth": lambda: 1 / 0}, "<lambda>() raised ZeroDivisionError"),
        ({"tls": True}, "tls: the certificate of ZooKeeper at {tls} is not accepted: unable to"),
        ({"tls": {"ca": "/no/such"}}, "tls: ca '/no/such': No such file"),
        ({"tls": {}, "hosts": "localhost:{port}"}, "not accepted: Hostname mismatch"),
        ({"tls": {}, "hosts": "{plain}"}, "no TLS with ZooKeeper at {plain}"),
        ({"tls": {"certificate": "expired"}}, "{tls} refuses the certificate of tls: "),
        ({"tls": {"certificate": "stranger"}}, "{tls} refuses the certificate of tls: "),
        ({"tls": {"certificate": "locked"}}, "locked.pem': cannot be understood: is key_password"),
    ],
    ids=[
        "SASL password",
        "no secret in the environment",
        "no file with the secret",
        "a function that raises",
        "a CA that is not known",
        "no file with the CA",
        "another host name",
        "no TLS there",
        "expired client certificate",
        "client certificate of another CA",
        "no password of the key",
    ],
)
def test_what_is_wrong_is_one_line(
    wrong: dict[str, Any],
    said: str,
    start: Start,
    server: SecureZooKeeper,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    names = {"plain": server.hosts, "tls": server.secure_hosts, "port": server.secure_port}
    arguments: dict[str, Any] = {"hosts": server.secure_hosts if "tls" in wrong else server.hosts}
    arguments.update(wrong)
    arguments["hosts"] = arguments["hosts"].format(**names)
    if isinstance(arguments.get("tls"), dict):
        arguments["tls"] = tls = {"ca": authority.ca, **arguments["tls"]}
        certificate = tls.get("certificate")
        if certificate == "expired":
            tls["certificate"] = authority.issue("expired", days=-1)
        elif certificate == "stranger":
            tls["certificate"] = Authority(tmp_path).issue("stranger")
        elif certificate == "locked":
            tls["certificate"] = authority.issue("locked", password="sesame")
    start(**arguments)
    complaint(caplog, said.format(**names))


def test_a_wrong_user_is_told_the_znode(
    start: Start, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """ZooKeeper takes every digest user, so only the znode's ACL tells."""
    right = start(auth="beat:sesame")
    assert elected(right)
    start(auth="beat:wrong")
    line = complaint(caplog, "denied by ZooKeeper (NoAuth) to the user of auth")
    assert line.startswith(root)
    assert f"getAcl {root}" in line


def test_nobody_is_told_what_to_set(
    start: Start, server: SecureZooKeeper, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert elected(start(auth="beat:sesame"))
    with connected(server.hosts, 4.0, PATIENCE, lambda: None) as session:
        with pytest.raises(
            AccessDenied, match=f"^{root}: denied .*: no credentials: set auth, sasl or"
        ):
            session.read(root)
        with pytest.raises(AccessDenied, match=f"^{root}: "):
            session.ensure(f"{root}/some/thing")
        with pytest.raises(AccessDenied, match=f"^{root}: "):
            session.commit(Create(f"{root}/thing", b""))


@pytest.mark.parametrize("kind", ["sasl", "tls"])
def test_a_command_is_refused_at_once(kind: str, server: SecureZooKeeper, root: str) -> None:
    access = Access.checked(
        None, {**BEAT, "password": "wrong"} if kind == "sasl" else None, kind == "tls", None
    )
    hosts = server.secure_hosts if kind == "tls" else server.hosts
    refused = pytest.raises(ConnectTimeout, match=re.escape(f"ZooKeeper at {hosts}"))
    with refused, connected(hosts, 4.0, 4 * PATIENCE, lambda: None, access):
        pass


def test_a_start_that_gives_up_says_why(server: SecureZooKeeper, root: str) -> None:
    election = MasterElection(server.hosts, root, sasl={**BEAT, "password": "wrong"})
    with pytest.raises(ConnectTimeout, match="refuses sasl; gave up after 3 s"):
        election.start(3.0)


@pytest.mark.parametrize("kind", ["auth", "sasl"])
def test_right_again(
    kind: str,
    start: Start,
    root: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A password that was wrong is mended while the beat runs, in a file."""
    caplog.set_level(logging.DEBUG, LOGGERS)
    if kind == "auth":
        first = start(auth="beat:sesame", id="first")
        assert elected(first)
        first.stop()
    file = tmp_path / "password"
    before = "beat:" if kind == "auth" else ""
    file.write_text(f"{before}wrong\n")
    secret = {"file": file}
    options: dict[str, Any] = (
        {"auth": secret} if kind == "auth" else {"sasl": {**BEAT, "password": secret}}
    )
    election = start(**options, id="second")
    what = "denied" if kind == "auth" else "refuses"
    wait_until(lambda: what in caplog.text, PATIENCE, "a refusal")
    file.write_text(f"{before}sesame\n")
    assert elected(election)
    assert "sesame" not in caplog.text
    assert "wrong" not in caplog.text


def test_a_root_of_an_administrators(start: Start, server: SecureZooKeeper, root: str) -> None:
    """Nothing above it need be ours, not even to read, and no more than cdrw on it."""
    administrator = KazooClient(server.hosts, auth_data=[("digest", "root:secret")])
    administrator.start(PATIENCE)
    closed = make_digest_acl("root", "secret", all=True)
    beat = make_digest_acl("beat", "sesame", create=True, delete=True, read=True, write=True)
    administrator.create(root, acl=[closed])
    administrator.create(f"{root}/shop", acl=[closed, beat])
    election = start(auth="beat:sesame", root=f"{root}/shop", app="shop")
    assert elected(election)
    administrator.stop()
    administrator.close()


def test_an_acl_of_the_users(start: Start, server: SecureZooKeeper, root: str) -> None:
    """Others may be let look on."""
    election = start(auth="beat:sesame", acl="auth::cdrwa,world:anyone:r")
    assert elected(election)
    with connected(server.hosts, 4.0, PATIENCE, lambda: None) as session:
        assert session.read(election.paths.master)
        with pytest.raises(AccessDenied):
            session.commit(Create(f"{root}/x", b""))


def test_an_open_root_is_told_once(
    start: Start, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all = start(id="one")
    assert elected(open_to_all)
    line = complaint(caplog, f"can change {root}: set auth, sasl or a certificate in tls")
    open_to_all.stop()
    caplog.clear()
    assert elected(start(auth="beat:sesame", id="two"))
    line = complaint(caplog, "give world:anyone:cdrwa, which is more than")
    assert line.startswith(f"{root} and 5 more ")
    assert f"setAcl -R {root} auth::cdrwa" in line


def test_others_rights_that_were_meant(
    start: Start, server: SecureZooKeeper, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An administrator and whoever else has a name are no strangers."""
    administrator = KazooClient(server.hosts)
    administrator.start(PATIENCE)
    administrator.create(
        root,
        acl=[
            make_digest_acl("root", "secret", all=True),
            make_digest_acl("beat", "sesame", all=True),
            make_acl("world", "anyone", read=True),
        ],
    )
    administrator.stop()
    administrator.close()
    assert elected(start(auth="beat:sesame", acl="auth::cdrwa,world:anyone:r"))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_server_whose_certificate_is_renewed(
    authority: Authority, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An expired certificate is told; so is that the server wants one of us; both can be mended
    while the beat runs."""
    certificate = authority.issue("renewed", days=-1)
    ours = tmp_path / "ours.pem"
    ours.write_bytes(authority.issue("outdated", days=-1).read_bytes())
    with SecureZooKeeper(tmp_path, authority, certificate, client_certificate="need") as server:
        server.start()
        election = start(server.secure_hosts, tls={"ca": authority.ca, "certificate": ours})
        complaint(caplog, "is not accepted: certificate has expired")
        caplog.clear()
        authority.issue("renewed")
        server.restart()
        wait_until(lambda: "refuses the certificate of tls" in caplog.text, PATIENCE, "a refusal")
        ours.write_bytes(authority.issue("ours").read_bytes())
        assert elected(election)
