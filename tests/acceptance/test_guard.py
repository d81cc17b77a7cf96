"""Guards of real beats: a session time-out of 20 s, and nobody waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from celery_zk_beat.guard.program import _LASTS
from example_project.servers import Process, Redis, ZooKeeper, celery_beat, wait_until
from tests.conftest import PATIENCE
from tests.faults import Road
from tests.guards import below, children, guard_of, guards
from tests.history import check, late

from .conftest import Site

#: Seconds. A dead master's session is over after two thirds of it, at the earliest.
LONG = 20.0
#: Seconds within which it is replaced, on a machine that has other things to do.
SOON = 5.0
DYING = "tests.acceptance.dying_app"


@pytest.fixture(scope="module")
def patient_zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    """A server that grants long sessions."""
    with ZooKeeper(tmp_path_factory.mktemp("patient"), tick_time=1000) as server:
        yield server.start()


@pytest.fixture
def site(make_site: Callable[[str], Site], patient_zookeeper: ZooKeeper) -> Site:
    site = make_site(patient_zookeeper.hosts)
    site.conf["zk_beat_session_timeout"] = LONG
    site.schedule(often=0.1)
    return site


@pytest.fixture
def client(patient_zookeeper: ZooKeeper) -> Iterator[KazooClient]:
    client = KazooClient(patient_zookeeper.hosts)
    client.start(PATIENCE)
    yield client
    client.stop()
    client.close()


def _is_gone(pid: int) -> bool:
    """It has ended; whoever is its parent by now may not have seen that yet."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def _replaced(site: Site, successor: Process, since: float, within: float = SOON) -> None:
    site.wait_for_run(successor)
    assert time.monotonic() - since < within


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGABRT", "os._exit", "a terminal closes"])
def test_a_dead_master_is_replaced_at_once(site: Site, how: str) -> None:
    site.app = DYING
    with contextlib.ExitStack() as stack:
        if how == "a terminal closes":
            one, die = _in_a_terminal(site, stack)
        else:
            number = signal.SIGUSR1 if how == "os._exit" else getattr(signal, how)
            process = site.beat("one")
            one, die = process.pid, lambda: process.send(number)
        site.wait(lambda history: history, "a run of one")
        two = site.beat("two")
        two.wait_for_log("not elected because one is master", PATIENCE)
        guard = guard_of(one)
        began = time.monotonic()
        die()
        _replaced(site, two, began)
        wait_until(lambda: _is_gone(guard), SOON, "the end of the guard")
        site.wait_for_run(two)


def _in_a_terminal(site: Site, stack: contextlib.ExitStack) -> tuple[int, Callable[[], None]]:
    """A beat with a terminal; its pid, and what closes that."""
    beat = celery_beat(site.folder, "one", site.app, env=site._env("one", {}))
    master, slave = pty.openpty()
    # Below nohup, as the tests may be, SIGHUP would be ignored.
    command = ["env", "--default-signal=HUP", "setsid", "--ctty", *beat.args]
    env = {key: value for key, value in beat.env.items() if value is not None}
    popen = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **env}, cwd=beat.cwd
    )
    os.close(slave)
    stack.callback(popen.wait)
    stack.callback(popen.kill)
    return popen.pid, lambda: os.close(master)


def test_a_master_that_stands_still_stays_master(site: Site) -> None:
    """SIGSTOP is no death, and nor is the end of what it says."""
    one, two = site.pair()
    one.pause()
    time.sleep(5)  # the pause itself
    one.resume()
    site.wait_for_run(one)
    assert {message.epoch for message in site.history()} == {1}
    assert two.alive


def test_sigterm_to_all(site: Site) -> None:
    """As systemd sends it: the beat ends in order, and its guard has nothing to do."""
    one, two = site.pair()
    guard = guard_of(one.pid)
    os.kill(guard, signal.SIGTERM)
    os.killpg(one.pid, signal.SIGTERM)
    began = time.monotonic()
    assert one.wait(PATIENCE) == 0
    _replaced(site, two, began)
    wait_until(lambda: _is_gone(guard), 1.0, "the end of the guard")
    assert "no guard" not in one.log()
    *_, first = json.loads(site.zk_beat("status", "--json").stdout)["masters"]
    assert first["why"] == "stopped", "and not by the end of its session"


def test_a_guard_that_is_killed_is_replaced(site: Site) -> None:
    one, two = site.pair()
    first = guard_of(one.pid)
    os.kill(first, signal.SIGKILL)
    one.wait_for_log("no guard, so if this beat dies, standbys wait a session time-out", PATIENCE)
    second = guard_of(one.pid, other_than=first)
    wait_until(lambda: "none" not in site.zk_beat("status").stdout, PATIENCE, "it is known")
    site.wait_for_run(one)
    began = time.monotonic()
    one.kill()
    _replaced(site, two, began)
    wait_until(lambda: _is_gone(second), SOON, "the end of the guard")


def test_a_guard_holds_nothing_of_its_beat(site: Site) -> None:
    """No file, no group, no folder; and it is small."""
    one = site.beat("one")
    site.wait_for_run(one)
    proc = Path(f"/proc/{guard_of(one.pid)}")
    held = {int(each.name): os.readlink(each) for each in (proc / "fd").iterdir()}
    assert held.pop(0).startswith("socket:")
    assert held.pop(1) == held.pop(2) == os.devnull
    assert [each for each in held.values() if "pidfd" not in each] == []
    assert os.readlink(proc / "cwd") == "/"
    assert os.getsid(int(proc.name)) == os.getpgid(int(proc.name)) == int(proc.name)
    sizes = [line.split() for line in (proc / "smaps_rollup").read_text().splitlines()]
    own = sum(int(size[1]) for size in sizes if size[0].startswith("Private_"))
    assert own < 8_000, f"{own} kB"


def test_a_guard_does_not_outlive_its_beat_for_long(
    make_site: Callable[[str], Site], own_zookeeper: ZooKeeper
) -> None:
    """Though no ZooKeeper answers."""
    own_zookeeper.start()
    site = make_site(own_zookeeper.hosts)
    site.schedule(often=0.2)
    one = site.beat("one")
    site.wait_for_run(one)
    guard = guard_of(one.pid)
    own_zookeeper.pause()
    began = time.monotonic()
    one.kill()
    wait_until(lambda: _is_gone(guard), PATIENCE, "the end of the guard")
    assert time.monotonic() - began < _LASTS + SOON
    own_zookeeper.resume()


def test_without(site: Site) -> None:
    """Switched off, there is none; and status tells."""
    site.conf["zk_beat_fast_takeover"] = False
    one = site.beat("one")
    site.wait_for_run(one)
    two = site.beat("two", zk_beat_fast_takeover=True)
    two.wait_for_log("not elected because one is master", PATIENCE)
    guard_of(two.pid)
    assert one.pid not in guards().values()

    def told() -> dict[str, str]:
        lines = site.zk_beat("status").stdout.splitlines()
        (title,) = (number for number, line in enumerate(lines) if line.endswith("  MEMBER"))
        at = lines[title].index("GUARD")
        rows = lines[title + 1 : lines.index("", title)]
        return {row.split()[-1]: row[at:].split()[0] for row in rows}

    wait_until(lambda: told() == {"one": "-", "two": "on"}, PATIENCE, "both in the status")


def test_what_a_dead_master_had_sent_arrives_late(site: Site, redis_server: Redis) -> None:
    """After its successor's, which has sent the same runs, with the same task ids."""
    with Road(redis_server.port) as road:
        one = site.beat("one", broker_url=f"redis://{road.hosts}/0")
        site.wait_for_run(one)
        two = site.beat("two")
        two.wait_for_log("not elected because one is master", PATIENCE)
        road.block()
        published = max(message.run for message in site.history())
        wait_until(lambda: site.claimed()["often"].run > published, PATIENCE, "one that is blocked")
        time.sleep(0.2)  # it is handed to the kernel when it is due, 45 ms later
        began = time.monotonic()
        one.kill()
        _replaced(site, two, began)
        road.open()
        history = site.wait(late, "what was on its way")
        assert {message.epoch for message in late(history)} == {1}
        assert set(late(history)) <= set(check(history, most_late=len(late(history))))


def test_starts_and_stops_leave_nothing(site: Site, client: KazooClient) -> None:
    """No process, no znode. (tests.chaos.kills --times 1000 --starts does it more often.)"""
    members = f"{site.conf['zk_beat_root']}/members"
    for turn in range(4):
        beat = site.beat("one")
        beat.wait_for_log("dispatching", PATIENCE)
        guard = guard_of(beat.pid)
        if turn % 2:
            beat.kill()
        else:
            assert beat.terminate(PATIENCE) == 0
        wait_until(lambda: _is_gone(guard), SOON, "the end of the guard")  # noqa: B023
        assert client.get_children(members) == []
        assert not client.exists(f"{site.conf['zk_beat_root']}/master")


# As the first process of a container --------------------------------------------------------------

INIT = [sys.executable, "-m", "celery_zk_beat.init"]
#: A namespace of its own, in which the command is process 1, as in a container.
CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@contextlib.contextmanager
def _nothing_left(process: Process) -> Iterator[None]:
    """Also where the test fails, of what is below a process."""
    try:
        yield
    finally:
        for pid in below(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _init(site: Site, name: str, *before: str) -> Process:
    beat = celery_beat(site.folder, name, site.app, env=site._env(name, {}))
    return Process(site.folder, name, [*before, *INIT, *beat.args], env=beat.env)


@pytest.mark.parametrize("where", ["here", "in a container"])
def test_a_beat_below_a_small_parent(site: Site, where: str) -> None:
    """SIGKILL of the beat: replaced at once, and the parent ends with its status."""
    before = [] if where == "here" else CONTAINER
    if before and (os.geteuid() != 0 or shutil.which("unshare") is None):
        pytest.skip("unshare --pid is root's")
    one = _init(site, "one", *before)
    with one.start(), _nothing_left(one):
        site.wait_for_run(one)
        two = site.beat("two")
        two.wait_for_log("not elected because one is master", PATIENCE)
        (beat,) = below(one.pid) & set(guards().values())
        began = time.monotonic()
        os.kill(beat, signal.SIGKILL)
        _replaced(site, two, began)
        assert one.wait(SOON) == 128 + signal.SIGKILL


@pytest.mark.parametrize("where", ["here", "in a container"])
def test_a_small_parent_passes_signals_on(site: Site, where: str) -> None:
    """And ends as its child does."""
    before = [] if where == "here" else CONTAINER
    if before and (os.geteuid() != 0 or shutil.which("unshare") is None):
        pytest.skip("unshare --pid is root's")
    one = _init(site, "one", *before)
    with one.start(), _nothing_left(one):
        site.wait_for_run(one)
        (beat,) = below(one.pid) & set(guards().values())
        (parent,) = (each for each in (one.pid, *below(one.pid)) if beat in children(each))
        os.kill(parent, signal.SIGTERM)
        assert one.wait(PATIENCE) == 0
        assert _is_gone(beat)
