"""The lines that the docs print for ZooKeeper's configuration: real servers start with them."""

from __future__ import annotations

import re
from pathlib import Path

from celery_zk_beat import MasterElection
from example_project.servers import LOOPBACK, REPOSITORY, Ensemble, ZooKeeper, free_port
from tests.conftest import PATIENCE, kazoo_client
from tests.secure import Authority


def printed(page: str) -> list[dict[str, str]]:
    """Returns the lines of each block of a page: values by key, as ZooKeeper reads them."""
    blocks = re.findall(r"```properties\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.S)
    return [
        dict(line.split("=", 1) for line in block.splitlines() if not line.startswith("#"))
        for block in blocks
    ]


def test_one_server(tmp_path: Path) -> None:
    one, _ = printed("zookeeper.md")
    assert {one.pop("clientPort"), one.pop("dataDir")} == {"2181", "zookeeper-data"}
    with ZooKeeper(tmp_path, config=one).start() as server:
        assert server.mode == "standalone"


def test_three_servers(tmp_path: Path) -> None:
    """With the lines of both pages; a server that is stopped leaves a majority that serves."""
    _, three = printed("zookeeper.md")
    (deploy,) = printed("deploy/README.md")
    peers = {f"server.{n}": f"zk{n}:2888:3888" for n in (1, 2, 3)}
    assert {key: three.pop(key) for key in peers} == peers
    assert {three.pop("clientPort"), three.pop("dataDir")} == {"2181", "/var/lib/zookeeper"}
    assert three == deploy
    with Ensemble(tmp_path, config=three).start() as ensemble:
        ensemble.leader().stop()
        ensemble.leader()
        with kazoo_client(ensemble.hosts) as client:
            client.create("/app", b"x")
            assert client.get("/app")[0] == b"x"


def test_tls(tmp_path: Path, authority: Authority, root: str) -> None:
    (block,) = printed("security.md")
    port, server, beat = free_port(), authority.issue("server"), authority.issue("beat")
    for key, there, here in (
        ("secureClientPort", "2281", port),
        ("ssl.keyStore.location", "/etc/zookeeper/server.pem", server),
        ("ssl.trustStore.location", "/etc/zookeeper/ca.pem", authority.ca),
    ):
        assert block[key] == there
        block[key] = str(here)
    tls = {"ca": authority.ca, "certificate": beat}
    election = MasterElection(f"{LOOPBACK}:{port}", root, tls=tls)
    with ZooKeeper(tmp_path, config=block).start(), election:
        assert election.wait(PATIENCE)
