"""An hour of runs, one a second, in half a minute: nothing stays behind."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from celery_zk_beat.paths import page_of, volume_of
from example_project.processes import Process
from example_project.servers import Redis, ZooKeeper, wait_until
from tests.conftest import PATIENCE, kazoo_client

from .conftest import Site
from .test_http import Server

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")

ENTRIES, PERIOD = 24, 0.24
#: Runs before anything is measured, and as many in each of the rounds that follow.
ROUND, ROUNDS = 600, 5
#: Most KiB by which a beat may grow in all those: a run that keeps 2 KiB makes it 6,000.
GROWTH = 5000
#: Descriptors more than before: of a connection of kombu's that was lost, until Python's collector
#: comes by, and of a wait of kazoo's. Fewer than there are rounds.
SPARE = 2


class Life:
    """Two beats, what reads their status, and all that could stay behind of it."""

    def __init__(self, site: Site, zookeeper: ZooKeeper, server: Redis) -> None:
        self.site, self.zookeeper = site, zookeeper
        self.broker = redis.Redis.from_url(server.url(0))
        self.servers = [Server(site, name) for name in ("one", "two")]
        self.beats: list[Process] = [each.beat for each in self.servers]
        self.published = 0

    def go_on(self, count: int) -> None:
        """Until `count` more messages are there; they are thrown away."""
        arrived = 0

        def enough() -> bool:
            nonlocal arrived
            pipe = self.broker.pipeline()
            pipe.llen("celery")
            pipe.delete("celery")
            got: int = pipe.execute()[0]
            arrived += got
            return arrived >= count

        wait_until(enough, PATIENCE, f"{count} messages")
        self.published += arrived

    def be_busy(self) -> None:
        """Elections, failed publishes and readers of the status."""
        wait_until(lambda: self.site.zk_beat("resign").returncode == 0, PATIENCE, "a standby")
        self.go_on(ENTRIES)
        self.broker.client_kill_filter(_type="normal", skipme=True)
        self.broker.config_set("maxmemory", 1)
        time.sleep(0.5)  # for how long no publish succeeds
        self.broker.config_set("maxmemory", 0)
        self.go_on(ENTRIES)
        for _ in range(10):
            assert self.site.zk_beat("status", "--json").returncode == 0
            assert self.site.zk_beat("history", "--limit", "5").returncode == 0
            for each in self.servers:
                assert each.get("/metrics")[0] == 200

    def left(self) -> dict[str, int]:
        """What there is, apart from memory: each has to be what it was."""
        counts = {}
        for beat in self.beats:
            of = Path(f"/proc/{beat.pid}")
            counts[f"{beat.name}: descriptors"] = len(list((of / "fd").iterdir()))
            counts[f"{beat.name}: threads"] = len(list((of / "task").iterdir()))
        monitored = dict(re.findall(r"^(zk_\S+)\t(\d+)$", self.zookeeper.four_letter("mntr"), re.M))
        for name in ("zk_watch_count", "zk_znode_count", "zk_ephemerals_count"):
            counts[name] = int(monitored[name])
        counts["connections to ZooKeeper"] = int(monitored["zk_num_alive_connections"])
        counts["channels"] = len(self.broker.pubsub_channels())
        counts["clients of Redis"] = len(self.broker.client_list())
        counts["keys"] = sum(
            each["keys"] for name, each in self.broker.info("keyspace").items() if name != "db0"
        )
        return counts

    def memory(self) -> dict[str, int]:
        """KiB that each beat holds."""
        status = {beat.name: Path(f"/proc/{beat.pid}/status").read_text() for beat in self.beats}
        return {name: int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) for name, text in status.items()}


def test_nothing_stays_behind(
    own_site: Site, own_zookeeper: ZooKeeper, redis_server: Redis
) -> None:
    """Memory, descriptors, threads, subscriptions, watches, znodes: after thousands of runs,
    elections, failed publishes and looks at the status they are what they were."""
    own_zookeeper.start()
    names = [f"entry{n}" for n in range(ENTRIES)]
    own_site.schedule(**dict.fromkeys(names, PERIOD))
    # One whose message Celery makes, not we.
    own_site.conf["beat_schedule"]["entry0"]["options"] = {"expires": 60}
    life = Life(own_site, own_zookeeper, redis_server)
    for _ in range(2):  # each is master once
        life.be_busy()
        life.go_on(ROUND // 2)
    with kazoo_client(own_zookeeper.hosts) as client:
        # Each volume of histories is made once, when enough has happened to its entries.
        volumes = {volume_of(page_of(name)) for name in names}
        wait_until(
            lambda: set(client.get_children(f"{own_site.conf['zk_beat_root']}/history")) == volumes,
            PATIENCE,
            "all volumes",
        )
    before, memory = life.left(), life.memory()
    for name in before:
        if "descriptors" in name:
            before[name] += SPARE
    for _ in range(ROUNDS):
        life.be_busy()
        life.go_on(ROUND)
    _settle(life.left, before)
    grown = {name: now - memory[name] for name, now in life.memory().items()}
    assert max(grown.values()) < GROWTH, grown
    assert life.published > ROUND * ROUNDS


def _settle(left: Callable[[], dict[str, int]], before: dict[str, int]) -> None:
    """Waits until nothing is more than it was."""

    def more() -> dict[str, str]:
        return {
            name: f"{before[name]} -> {now}" for name, now in left().items() if now > before[name]
        }

    try:
        wait_until(lambda: not more(), 5.0, "nothing to be more than before")
    except Exception:
        assert more() == {}
