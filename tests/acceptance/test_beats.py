"""Several beats, one of which is master, and what happens to it."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import celery.beat
import pytest
import redis
from kazoo.client import KazooClient
from kazoo.exceptions import NotEmptyError

from example_project.servers import (
    REPOSITORY,
    Ensemble,
    Process,
    Redis,
    ZooKeeper,
    free_port,
    wait_until,
)
from tests.chaos.site import _compile_clock
from tests.conftest import PATIENCE, SESSION_TIMEOUT, TICK_TIME
from tests.faults import Road
from tests.history import all_headers, check
from tests.rabbitmq import RabbitMQ

from .conftest import APP, NOBODY, Site


def test_one_of_three_dispatches(site: Site) -> None:
    """The others say that they wait, and for whom."""
    beats = [site.beat(f"beat{n}") for n in range(3)]
    history = site.wait(lambda history: len(history) >= 10, "ten runs")
    assert check(history) == []
    assert len({message.master for message in history}) == 1
    for beat in beats:
        if beat.name != history[0].master:
            beat.wait_for_log(f"not elected because {history[0].master} is master", PATIENCE)


def test_the_master_is_killed(site: Site) -> None:
    """SIGKILL: after the session time-out the other goes on with the same runs."""
    one, two = site.pair()
    one.kill()
    history = site.wait_for_run(two)
    assert len(check(history)) <= 1  # one may have been published and not yet confirmed
    assert {message.epoch for message in history} == {1, 2}
    one.start()
    one.wait_for_log("not elected because", PATIENCE)


def test_the_master_is_stopped(site: Site) -> None:
    """SIGTERM: exit status 0, and nothing is left to be repeated."""
    one, two = site.pair()
    assert one.terminate(PATIENCE) == 0
    history = site.wait_for_run(two)
    assert check(history) == []
    assert "demoted: one was master, epoch 1: stopped" in one.log()
    assert "perhaps not published" not in two.log()


def test_ctrl_c(site: Site) -> None:
    """As SIGTERM."""
    one, two = site.pair()
    one.send(signal.SIGINT)
    assert one.wait(PATIENCE) == 0
    assert check(site.wait_for_run(two)) == []
    assert "Traceback" not in one.log()


def test_a_standby_is_stopped(site: Site) -> None:
    """At once, though it waits for something that may never come."""
    one, two = site.pair()
    assert two.terminate(PATIENCE) == 0
    assert check(site.wait_for_run(one)) == []


def test_the_master_hangs(site: Site) -> None:
    """SIGSTOP for longer than the session lasts, then SIGCONT: it dispatches nothing more."""
    one, two = site.pair()
    one.pause()
    site.wait_for_run(two)
    one.resume()
    one.wait_for_log("not elected because two is master", PATIENCE)
    history = site.wait_for_run(two)
    # It may have been stopped between its last look at the clock and the sending.
    assert len(check(history, most_late=1)) <= 1
    assert one.alive


def test_it_goes_round(site: Site) -> None:
    """Every master but the last is stopped; the run numbers go on."""
    beats = [site.beat(f"beat{n}") for n in range(4)]
    for left in range(4, 1, -1):
        site.wait(lambda history: history, "a run")
        master = next(b for b in beats if b.name == site.history()[-1].master)
        assert master.terminate(PATIENCE) == 0
        epoch = 5 - left
        site.wait(
            lambda history, old=epoch: history[-1].epoch > old,  # type: ignore[misc]
            "the next master",
        )
    assert check(site.history()) == []


def test_zookeeper_restarts(own_site: Site, own_zookeeper: ZooKeeper) -> None:
    """Under running beats: nothing is dispatched without it, and no hand is needed after it."""
    own_zookeeper.start()
    one, two = own_site.pair()
    own_zookeeper.stop()
    for beat in (one, two):
        beat.wait_for_log("does not answer; waiting for it as a standby", PATIENCE)
    before = len(own_site.history())
    one.wait_for_log("does not answer; waiting for it as a standby", PATIENCE)
    assert len(own_site.history()) == before
    own_zookeeper.start()
    history = own_site.wait(lambda history: len(history) > before + 3, "runs")
    assert len(check(history)) <= 1
    assert one.alive
    assert two.alive


def test_the_leader_of_an_ensemble_is_killed(
    make_site: Callable[[str], Site], tmp_path: Path
) -> None:
    """The other two servers elect a leader, and the same master goes on in the same session."""
    with Ensemble(tmp_path, tick_time=TICK_TIME) as ensemble:
        site = make_site(ensemble.start().hosts)
        site.conf["zk_beat_session_timeout"] = 4.0  # the most of 20 ticks: time for an election
        site.schedule(often=0.2)
        one, _ = site.pair()
        ensemble.leader().kill()
        ensemble.leader()
        before = len(site.history())
        history = site.wait(lambda history: len(history) > before + 5, "runs")
        assert check(history) == []
        assert one.alive


def test_zookeeper_comes_late(own_site: Site, own_zookeeper: ZooKeeper) -> None:
    """The beat waits, says so, and is ready when it comes."""
    beat = own_site.beat()
    beat.wait_for_log("does not answer; waiting for it as a standby", PATIENCE)
    assert own_site.history() == []
    own_zookeeper.start()
    assert check(own_site.wait(lambda history: len(history) > 3, "runs")) == []


def test_zookeeper_never_comes(own_site: Site) -> None:
    """SIGTERM is obeyed all the same."""
    beat = own_site.beat()
    beat.wait_for_log("does not answer", PATIENCE)
    assert beat.terminate(PATIENCE) == 0


def test_zookeeper_hangs(own_site: Site, own_zookeeper: ZooKeeper) -> None:
    """[15] SIGTERM is obeyed while it answers nothing, and nothing hangs on the way out."""
    own_zookeeper.start()
    one, two = own_site.pair()
    own_zookeeper.pause()
    for beat in (one, two):
        assert beat.terminate(PATIENCE) == 0


def test_connect_timeout(own_site: Site) -> None:
    """If asked to, it gives up: one line, exit status 1."""
    beat = own_site.beat(zk_beat_connect_timeout=0.5)
    assert beat.wait(PATIENCE) == 1
    assert "CRITICAL/MainProcess] beat stops: ZooKeeper at 127.0.0.1:" in last_line(beat)
    assert "did not answer within 0.5 s: is it running" in last_line(beat)
    assert "Traceback" not in beat.log()


def test_root_of_another_app(site: Site, client: KazooClient, root: str) -> None:
    client.create(root, b'{"format": 2, "app": "bank"}')
    beat = site.beat()
    assert beat.wait(PATIENCE) == 1
    assert f"beat stops: {root} belongs to the app 'bank', and this is" in last_line(beat)
    assert "Traceback" not in beat.log()


def test_the_master_znode_is_deleted(site: Site, client: KazooClient, root: str) -> None:
    """By hand: it steps down, and one of them is elected again."""
    one, _ = site.pair()
    client.delete(f"{root}/master")
    one.wait_for_log("demoted: one was master, epoch 1: ", PATIENCE)
    history = site.wait(lambda history: history[-1].epoch > 1, "a run of the next master")
    # One may have been on its way when ZooKeeper had another master already.
    assert len(check(history, most_late=1)) <= 1


def test_everything_is_deleted(site: Site, client: KazooClient, root: str) -> None:
    """Root, run states, outbox: by hand, under a running master. It starts anew."""
    one, _ = site.pair()

    def deleted() -> bool:
        try:
            client.delete(root, recursive=True)
        except NotEmptyError:  # they have made something again
            return False
        return True

    wait_until(deleted, PATIENCE, "all to be gone")
    site.wait(lambda history: history[-1].run < history[0].run + len(history) - 1, "a new count")
    assert one.alive


def test_an_interval_longer_than_the_time_between_restarts(site: Site) -> None:
    """[28] Its clock goes on through all of them."""
    site.schedule(seldom=12.0)
    beat = site.beat()
    elections = 0
    while not site.history():
        elections += 1
        beat.wait_for_log("dispatching 1 entries as master", PATIENCE)
        try:
            beat.wait_for_log("Sending due task", SESSION_TIMEOUT)
        except TimeoutError:
            assert beat.terminate(PATIENCE) == 0
            beat.start()
    assert elections > 2
    assert check(site.history()) == []


def test_first_seen_is_when_its_clock_starts(site: Site, client: KazooClient, root: str) -> None:
    """[27] A master that dies before an entry's first run does not restart the entry's clock."""
    site.schedule(seldom=3600.0)
    beat = site.beat()
    beat.wait_for_log("dispatching 1 entries as master", PATIENCE)
    (page,) = wait_until(lambda: client.get_children(f"{root}/runs"), PATIENCE, "a state")
    first = json.loads(client.get(f"{root}/runs/{page}")[0])["entries"]["seldom"]
    beat.kill()
    beat.start()
    beat.wait_for_log("dispatching 1 entries as master", PATIENCE)
    assert json.loads(client.get(f"{root}/runs/{page}")[0])["entries"]["seldom"] == first
    assert first[1:] == [0, None]  # no run, for no instant


def test_names_may_hold_anything(site: Site) -> None:
    names = ["a/b", "with space", "ünï\u20ac", ".", "..", "x" * 300, "/", "a\nb", "%2F"]
    site.conf["beat_schedule"] = {
        name: {"task": f"task{n}", "schedule": 0.2} for n, name in enumerate(names)
    }
    one = site.beat("one")
    site.wait(lambda history: len({m.task for m in history}) == len(names), "a run of each")
    assert one.terminate(PATIENCE) == 0
    two = site.beat("two")
    history = site.wait(
        lambda history: len({m.task for m in history if m.master == two.name}) == len(names),
        "a run of each by the second",
    )
    assert check(history) == []


def test_several_missed_are_one_run(site: Site) -> None:
    """As in Celery; and the header says for which instant."""
    site.schedule(entry=0.5)
    one = site.beat("one")
    site.wait(lambda history: len(history) >= 2, "two runs")
    one.kill()
    last = site.claimed()["entry"]  # and perhaps not published: then it is no missed one
    wait_until(lambda: elapsed(last.at) > 3, PATIENCE, "some runs to be missed")
    site.beat("two")
    history = site.wait(lambda history: history[-1].run >= last.run + 2, "two runs more")
    first, second = (next(m for m in history if m.run == last.run + n) for n in (1, 2))
    assert timedelta(seconds=0.4) < first.due - last.at < timedelta(seconds=0.6)
    assert second.due - first.due > timedelta(seconds=2)


@pytest.mark.usefixtures("broker")
def test_executed_by_a_worker(site: Site, redis_server: Redis) -> None:
    """The header reaches the task, and the result is where Celery puts it."""
    site.conf["beat_schedule"] = {"e": {"task": "echo", "schedule": 0.2, "args": ["x"]}}
    site.worker()
    site.beat("one")
    with redis.Redis.from_url(redis_server.url(1)) as backend:
        key = wait_until(lambda: next(iter(backend.keys("celery-task-meta-*")), None), 30, "result")
        result = json.loads(backend.get(key))["result"]
    assert result["args"] == ["x"]
    assert result["zk_beat"]["master"] == "one"
    assert result["zk_beat"]["epoch"] == 1
    assert result["zk_beat"]["run"] >= 1
    assert key.decode().endswith(result["id"])


@pytest.mark.usefixtures("broker")
def test_own_task_id_and_headers_win(site: Site) -> None:
    site.conf["beat_schedule"] = {
        "e": {
            "task": "t",
            "schedule": 0.2,
            "options": {"task_id": "mine", "headers": {"colour": "blue", "zk_beat": "mine"}},
        }
    }
    site.beat()
    wait_until(lambda: len(all_headers(site.conf["broker_url"])) >= 2, PATIENCE, "two messages")
    for headers in all_headers(site.conf["broker_url"]):
        assert headers["id"] == "mine"
        assert headers["colour"] == "blue"
        assert headers["zk_beat"] == "mine"
        assert headers.get("celery_beat_task", True) is True  # since Celery 5.6


def test_worker_with_beat(site: Site) -> None:
    """[16] ``celery worker -B``: the session is made in the process that Celery forks for it, and
    closed when the worker stops."""
    site.conf["beat_schedule"] = {"e": {"task": "echo", "schedule": 0.2}}
    worker = site.worker("worker", "-B", "-s", str(site.folder / "unused"), zk_beat_id="embedded")
    worker.wait_for_log("elected: embedded is master", PATIENCE)
    worker.wait_for_log("Task echo", PATIENCE)
    two = site.beat("two")
    two.wait_for_log("not elected because embedded is master", PATIENCE)
    assert worker.terminate(PATIENCE) == 0
    two.wait_for_log("elected: two is master", PATIENCE)
    # Written after the other was elected, by a process of its own, which may outlive the worker.
    demoted = "demoted: embedded was master, epoch 1: stopped"
    wait_until(lambda: demoted in worker.log(), PATIENCE, demoted)
    site.wait_for_run(two)


def test_detached(site: Site, tmp_path: Path) -> None:
    """``celery beat --detach``: nothing connects before the fork."""
    pidfile, log = tmp_path / "pid", tmp_path / "detached.log"
    command = [sys.executable, "-m", "celery", "-A", APP, "--workdir", str(REPOSITORY), "beat"]
    command += ["--detach", "-l", "INFO", f"--pidfile={pidfile}", f"--logfile={log}"]
    env = {**site._env("detached", {}), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, cwd=REPOSITORY, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    text = wait_until(
        lambda: pidfile.read_text() if pidfile.exists() else None, PATIENCE, "a pid file"
    )
    pid = int(text)
    try:
        history = site.wait(lambda history: len(history) > 2, "runs")
        assert check(history) == []
        assert history[0].master == "detached"
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists(), PATIENCE, "its end")
    finally:
        if pidfile.exists():
            os.kill(pid, signal.SIGKILL)
    assert "demoted: detached was master, epoch 1: stopped" in log.read_text()


@pytest.mark.skipif(not hasattr(celery.beat, "BeatPidbox"), reason="Celery before 5.7 has none")
def test_a_standby_answers_ping(site: Site) -> None:
    """[25] ``celery inspect ping``, with beat_enable_remote_control."""
    one = site.beat("one", "-n", "one@x", beat_enable_remote_control=True)
    one.wait_for_log("elected", PATIENCE)
    two = site.beat("two", "-n", "two@x", beat_enable_remote_control=True)
    two.wait_for_log("not elected", PATIENCE)
    for beat in (one, two):
        beat.wait_for_log("beat pidbox: Connected", PATIENCE)
    command = [sys.executable, "-m", "celery", "-A", APP, "inspect", "ping", "--timeout", "5"]
    env = {**site._env("x", {}), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, env=env, cwd=REPOSITORY, timeout=60, check=False, capture_output=True, text=True
    )
    assert "one@x: OK" in done.stdout
    assert "two@x: OK" in done.stdout


def test_banner(site: Site, root: str) -> None:
    """[23] What is looked at, and where; it connects to nothing."""
    beat = site.beat("one")
    beat.wait_for_log("beat: Starting...", PATIENCE)
    assert f". zookeeper -> {site.conf['zk_beat_hosts']}" in beat.log()
    assert f". root -> {root}" in beat.log()


@pytest.mark.parametrize(
    ("conf", "line"),
    [
        (
            {"zk_beat_hosts": "zk1:port"},
            "celery beat: zk_beat_hosts = 'zk1:port': 'zk1:port' is not a server; "
            "expected 'host:port,host:port/chroot', ports 1 to 65535",
        ),
        (
            {"zk_beat_session_timeout": 0},
            "celery beat: zk_beat_session_timeout = 0: expected a number of seconds above 0",
        ),
        (
            {"zk_beat_rot": "/x"},
            "celery beat: zk_beat_rot is not a setting of celery-zk-beat: did you mean "
            "zk_beat_root?",
        ),
    ],
)
def test_bad_settings(site: Site, conf: dict[str, Any], line: str) -> None:
    """Before it starts, in one line; tests/unit/test_settings.py knows all of them."""
    beat = site.beat(**conf)
    assert beat.wait(PATIENCE) == 1
    assert last_line(beat) == line
    assert "Traceback" not in beat.log()
    assert "Starting" not in beat.log()


def test_bad_settings_in_a_worker(site: Site) -> None:
    """The worker goes on without its beat, as with any other that does not start; the line says
    why."""
    worker = site.worker("w", "-B", "-s", str(site.folder / "unused"), zk_beat_root="x")
    worker.wait_for_log("celery beat: zk_beat_root = 'x': expected an absolute", PATIENCE)


def test_gevent_is_refused(site: Site) -> None:
    """[31] In a patched process the threads that watch ZooKeeper would not run reliably."""
    code = "from gevent import monkey; monkey.patch_all(); from celery.__main__ import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "-A", APP, "beat", "--pidfile="]
    with Process(site.folder, "beat", command, env=site._env("beat", {})) as beat:
        assert beat.start().wait(PATIENCE) == 1
        assert "beat stops: this process is monkey-patched by gevent" in last_line(beat)


def test_the_broker_is_away(site: Site, broker: Redis | RabbitMQ) -> None:
    """A run that cannot be published stays in the outbox, and no flood follows."""
    site.schedule(entry=0.5)
    broker.stop()
    beat = site.beat()
    beat.wait_for_log("entry: run 1 could not be published, trying again", PATIENCE)
    beat.wait_for_log("trying again in 1.6 s", PATIENCE)
    broker.start()
    history = site.wait(lambda history: len(history) >= 2, "two runs")
    assert check(history) == []
    first, second = (message.due for message in history[:2])
    assert second - first > timedelta(seconds=2)  # what was missed meanwhile is part of the first


def test_the_broker_is_a_black_hole(site: Site, broker: Redis | RabbitMQ) -> None:
    """It neither answers nor refuses. kombu would wait for ever; the beat gives up on it, obeys
    SIGTERM, and the next one sends what it could not."""
    soon = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
    if isinstance(broker, RabbitMQ):
        soon = {"read_timeout": 1.0, "write_timeout": 1.0}
    site.conf["broker_connection_timeout"] = 1.0
    with Road(broker.port) as road:
        url = broker.url().replace(f":{broker.port}/", f":{road.port}/")
        one = site.beat("one", broker_url=url, broker_transport_options=soon)
        site.wait_for_run(one)
        road.block()
        one.wait_for_log("could not be published, trying again", PATIENCE)
        assert one.terminate(PATIENCE) == 0
        two = site.beat("two")
        history = site.wait_for_run(two)
        assert len(check(history)) <= 1  # the message that was on the road


def test_the_master_alone_does_not_reach_the_broker(site: Site, redis_server: Redis) -> None:
    """It resigns, and the other sends what the first had claimed."""
    site.schedule(a=0.5, b=0.5)
    site.conf["zk_beat_publish_deadline"] = 1.0
    with Road(redis_server.port) as road:
        one = site.beat("one", broker_url=f"redis://{road.hosts}/0")
        site.wait_for_run(one)
        two = site.beat("two")
        two.wait_for_log("not elected because one is master", PATIENCE)
        road.cut()
        one.wait_for_log("demoted: one was master, epoch 1: resigned", PATIENCE)
        history = site.wait_for_run(two)
        assert len(check(history)) <= 2  # what was on the road when it was cut


def test_only_one_reaches_the_broker(site: Site, road: Road) -> None:
    """Two beats that do not reach it are nearer to ZooKeeper, and do not keep the third out."""
    site.conf["zk_beat_publish_deadline"] = 2.0
    for name in ("bad1", "bad2"):
        bad = site.beat(name, broker_url=NOBODY)
        bad.wait_for_log("bad1 is master", PATIENCE)
    road.slow(0.02)
    good = site.beat("good", zk_beat_hosts=road.hosts)
    good.wait_for_log("connected to ZooKeeper", PATIENCE)
    begun = time.monotonic()
    history = site.wait_for_run(good)
    assert time.monotonic() - begun < 10.0
    site.wait(lambda now: now[-1].due > history[-1].due + timedelta(seconds=5), "more runs")
    assert {message.epoch for message in site.history()} == {history[-1].epoch}
    warned = site.zk_beat("status").stdout
    assert "bad1 stands back for other beats, because as master: nothing could be" in warned


def test_a_standby_that_reaches_the_broker_again(site: Site, redis_server: Redis) -> None:
    """It resigned for want of it, and then takes over at once."""
    site.conf["zk_beat_publish_deadline"] = 1.0
    with Road(redis_server.port) as road:
        one = site.beat("one", broker_url=f"redis://{road.hosts}/0")
        site.wait_for_run(one)
        two = site.beat("two")
        two.wait_for_log("not elected because one is master", PATIENCE)
        road.cut()
        site.wait_for_run(two)
        road.open()
        one.wait_for_log("the broker can be reached again", PATIENCE)
        two.terminate(PATIENCE)
        site.wait_for_run(one)
        assert len(check(site.history())) <= 2  # what was on the road when it was cut


def test_no_beat_reaches_the_broker(site: Site, redis_server: Redis) -> None:
    """They take turns, without hurry; the runs that wait are the same, and none is lost."""
    site.schedule(a=0.5, b=0.5)
    site.conf["zk_beat_publish_deadline"] = 1.0
    redis_server.stop()
    begun = time.monotonic()
    beats = [site.beat(name) for name in ("one", "two")]
    for beat in beats:
        beat.wait_for_log("epoch 4", PATIENCE)
    assert time.monotonic() - begun > 3 * 1.0  # three masters before waited out the deadline
    for beat in beats:
        assert "run 2" not in beat.log()
    redis_server.start()
    history = site.wait(lambda history: len(history) > 5, "runs")
    assert check(history) == []
    assert history[0].epoch >= 4


def test_rolling_deploy(site: Site) -> None:
    """Old and new code side by side, and back again: what both know goes on, run by run."""
    site.schedule(both=0.2, old=0.2)
    running = [site.beat("old1"), site.beat("old2")]
    site.wait(lambda history: len(history) > 2, "runs")
    for turn, other in enumerate(("new", "old", "new")):
        site.schedule(**{"both": 0.2, other: 0.2})
        for number, leaving in enumerate(list(running), 1):
            running.append(site.beat(f"{other}{number}-{turn}"))
            running[-1].wait_for_log("not elected because", PATIENCE)
            running.remove(leaving)
            assert leaving.terminate(PATIENCE) == 0
            site.wait(
                lambda history, gone=leaving: history[-1].master != gone.name,  # type: ignore[misc]
                "the next master",
            )
        begun = len(site.history())  # not the last: another may come right after it each time
        site.wait(
            lambda history, begun=begun, other=other: (  # type: ignore[misc]
                other in {m.task for m in history[begun:]}
            ),
            "what it knows",
        )
    history = site.history()
    assert check(history) == []
    assert {message.task for message in history} == {"both", "old", "new"}
    assert any("has a different schedule from" in beat.log() for beat in running)


def test_two_environments_with_one_root(site: Site, redis_server: Redis) -> None:
    """Their schedules are the same, their brokers are not: each would send the other's runs."""
    one = site.beat("one")
    site.wait_for_run(one)
    two = site.beat("two", broker_url=redis_server.url(5))
    two.wait_for_log("one, the master, sends to another broker than two", PATIENCE)
    three = site.beat("three", broker_url=f"{NOBODY};{redis_server.url(5)}")
    three.wait_for_log("one, the master, sends to another broker than three", PATIENCE)
    warned = site.zk_beat("status").stdout
    assert re.search("the beats send to different brokers .*one to .*two to .*two environ", warned)
    members = {
        each["id"]: each for each in json.loads(site.zk_beat("status", "--json").stdout)["members"]
    }
    assert len({members[id]["broker"] for id in ("one", "two", "three")}) == 3
    assert "another broker" not in one.log()


def test_stopped_while_the_broker_is_away(site: Site, redis_server: Redis) -> None:
    """The next master publishes what this one could not."""
    redis_server.stop()
    one = site.beat("one")
    one.wait_for_log("run 1 could not be published", PATIENCE)
    assert one.terminate(PATIENCE) == 0
    redis_server.start()
    site.beat("two")
    history = site.wait(lambda history: len(history) > 2, "runs")
    assert check(history) == []
    assert history[0].epoch == 2


def test_one_bad_entry_harms_no_other(site: Site) -> None:
    """One whose message cannot be made is tried again and again; the others run."""
    site.conf["beat_schedule"] = {
        "bad": {"task": "bad", "schedule": 0.2, "options": {"priority": "x", "queue": 7}},
        "good": {"task": "good", "schedule": 0.2},
    }
    beat = site.beat()
    beat.wait_for_log("bad: run 1 could not be published", PATIENCE)
    history = site.wait(lambda history: len(history) > 5, "runs of the good one")
    assert {message.task for message in history} == {"good"}
    assert check(history) == []


def test_two_terminals(zookeeper: ZooKeeper, root: str, site: Site) -> None:
    """The scenario that the project began with: start it twice, kill the first, the second goes
    on. No Celery."""
    command = [sys.executable, "-m", "example_project.election_only", zookeeper.hosts]
    command += ["--root", root + "-only", "--session-timeout", "1"]
    first, second = (Process(site.folder, name, command) for name in ("first", "second"))
    with first, second:
        first.start().wait_for_log("working as master, epoch 1", PATIENCE)
        second.start().wait_for_log("not elected because", PATIENCE)
        first.kill()
        second.wait_for_log("working as master, epoch 2", PATIENCE)
        second.send(signal.SIGINT)
        assert second.wait(PATIENCE) == 0


def test_two_terminals_without_zookeeper(site: Site) -> None:
    """The documented time-out, 3 s, and one line."""
    command = [sys.executable, "-m", "example_project.election_only", f"127.0.0.1:{free_port()}"]
    with Process(site.folder, "only", command) as process:
        assert process.start().wait(PATIENCE) == 1
        said = last_line(process)
        assert "did not answer within 3 s: is it running? (127.0.0.1:" in said
        assert said.endswith(" refuses connections: is hosts right?)")


def last_line(process: Process) -> str:
    return process.log().rstrip().rpartition("\n")[2]


def elapsed(since: datetime) -> float:
    return (datetime.now(timezone.utc) - since).total_seconds()


@pytest.mark.parametrize("seconds", [30, 7200])
def test_a_clock_that_is_ahead_for_a_moment(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """[28] The beat goes on by itself when it is right again; and so does the next."""
    library, clock = _compile_clock(tmp_path / "clock.so"), tmp_path / "clock"
    if library is None:
        pytest.skip("no C compiler, or Python before 3.11")
    clock.write_bytes(struct.pack("=q", 0))
    site.schedule(often=0.5, minutely=60.0)
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("CHAOS_CLOCK", str(clock))
        one = site.beat("one")
    one.wait_for_log("elected: one is master", PATIENCE)
    site.beat("two")
    for ahead in (0, seconds, 0):
        with clock.open("r+b") as file:
            file.write(struct.pack("=q", ahead))
        before = len(site.history())
        site.wait(lambda history: len(history) > before + 3, "runs")  # noqa: B023
    one.terminate()
    history = site.wait(lambda history: history[-1].master == "two", "a run of the other")
    instants = [(message.entry, message.due) for message in history]
    assert len(set(instants)) == len(instants)
