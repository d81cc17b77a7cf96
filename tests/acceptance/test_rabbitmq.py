"""What RabbitMQ alone does to a beat. What it does as any other broker is in test_beats.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from example_project.servers import wait_until
from tests.conftest import PATIENCE
from tests.history import check
from tests.rabbitmq import RabbitMQ

from .conftest import Site

#: Seconds, and options, that make a beat give up soon.
SOON = {"read_timeout": 1.0, "write_timeout": 1.0}
TWO_SENT = re.compile("Sending due task.*Sending due task", re.DOTALL)


@pytest.fixture
def site(site: Site, rabbitmq: RabbitMQ) -> Site:
    site.conf["broker_url"] = rabbitmq.url()
    site.conf["broker_connection_timeout"] = 1.0
    site.conf["broker_transport_options"] = SOON
    return site


def test_it_hangs_and_is_killed(site: Site, rabbitmq: RabbitMQ) -> None:
    """[I2] As when it is out of memory: it stops reading, and what it has not read is gone."""
    beat = site.beat()
    site.wait_for_run(beat)
    rabbitmq.pause()
    beat.wait_for_log("could not be published", PATIENCE, since=len(beat.log()))
    rabbitmq.stop()
    rabbitmq.start()
    # One may have been stored, and the server killed before it could say so.
    assert len(check(site.wait_for_run(beat))) <= 1


def test_it_is_killed_again_and_again(site: Site, rabbitmq: RabbitMQ) -> None:
    """[I2] [I3] Under ten entries; no more than the runs that wait for their confirmations are sent
    twice."""
    count, kills = 10, 3
    site.schedule(**{f"entry{number}": 0.2 for number in range(count)})
    beat = site.beat()
    for _ in range(kills):
        site.wait_for_run(beat)
        beat.wait_for_log(TWO_SENT, PATIENCE, since=len(beat.log()))
        rabbitmq.stop()
        rabbitmq.start()
    assert len(check(site.wait_for_run(beat))) <= kills * count


def test_sigterm_while_it_hangs(site: Site, rabbitmq: RabbitMQ) -> None:
    """A beat that waits for a confirmation ends all the same; the next one sends that run, too."""
    options = {**SOON, "read_timeout": 2 * PATIENCE}
    one = site.beat("one", broker_transport_options=options)
    site.wait_for_run(one)
    since = len(one.log())  # after the pause it may begin with one, and with none any more
    rabbitmq.pause()
    one.wait_for_log("Sending due task", PATIENCE, since=since)
    assert one.terminate(PATIENCE / 2) == 0
    rabbitmq.resume()
    two = site.beat("two")
    assert len(check(site.wait_for_run(two))) <= 1  # the message that was in the socket


def test_an_entry_that_it_refuses_harms_no_other(site: Site) -> None:
    """One for an exchange that does not exist is tried again and again; the others run."""
    nowhere = {"exchange": "nowhere", "routing_key": "x"}
    site.conf["beat_schedule"] = {
        "bad": {"task": "bad", "schedule": 0.2, "options": nowhere},
        "good": {"task": "good", "schedule": 0.2},
    }
    beat = site.beat()
    beat.wait_for_log("bad: run 1 could not be published, trying again in 3.2 s", PATIENCE)
    history = site.history()
    assert check(history) == []
    assert len(history) > 3  # in the 3.1 s that this has taken


def test_an_idle_connection(site: Site, rabbitmq: RabbitMQ) -> None:
    """RabbitMQ hangs up on a client that sends no heartbeats, as a beat that sleeps does not; the
    next run finds it out and connects anew."""
    site.schedule(seldom=4.5)
    beat = site.beat(broker_url=rabbitmq.url() + "?heartbeat=1")
    site.wait_for_run(beat)
    rabbitmq.wait_for_log("missed heartbeats from client, timeout: 1s", PATIENCE)
    history = site.wait_for_run(beat)
    assert check(history) == []
    assert [message.run for message in history] == [1, 2]


def test_it_leaves_nothing_behind(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """Our server: none of the processes that Erlang starts around it outlives it."""

    def left() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"HOME={tmp_path}".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text())
            except OSError:
                continue
        return found

    assert len(left()) > 1
    rabbitmq.stop()
    wait_until(lambda: not left(), PATIENCE, "the end of all of it")
