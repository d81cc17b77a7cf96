"""A stranger on the road to ZooKeeper. Many more of them: ``python -m tests.stranger``."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest

from celery_zk_beat import MasterElection
from celery_zk_beat.log import LOGGERS
from example_project.servers import Redis, ZooKeeper
from tests import stranger
from tests.conftest import PATIENCE
from tests.faults import Road


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_hurt(
    seed: int, zookeeper: ZooKeeper, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The beat neither ends nor spins nor dispatches as no master, and goes on when he is gone."""
    caplog.set_level(logging.INFO, LOGGERS)
    assert stranger.meet(seed, zookeeper, redis_server)


class Garbled(Road):
    """Turns a bit of the first answer to a handshake."""

    place: int | None = None

    def _passed_on(self, end: socket.socket, data: bytes) -> bytes | None:
        if end in self._clients or self.place is None or len(data) <= self.place:
            return data
        place, self.place = self.place, None
        return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


@pytest.mark.parametrize("place", [0, 3, 7, 8, 11, 12, 19, 30])
def test_a_bit_of_the_handshake(
    zookeeper: ZooKeeper, candidate: Callable[..., MasterElection], place: int
) -> None:
    """Of its length, version, session time-out, session id, password: each is got over."""
    with Garbled(zookeeper.port) as road:
        road.place = place
        beat = candidate("a", hosts=road.hosts)
        beat.start()
        assert beat.wait(PATIENCE)
        assert road.place is None
        assert beat.session.timeout < 60
