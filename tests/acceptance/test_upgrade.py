"""Beats of an older commit beside beats of this one, on the same znodes: docs/upgrade.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from example_project.servers import REPOSITORY, Process
from tests.conftest import PATIENCE
from tests.history import Message, check

from .conftest import Site

#: Landed, with the same format of records; and the last one with the format before.
OLDER = "1a2e7971bacc493fa8c91fe685b7e5b2234cb0fa"
FORMAT_1 = "4d43e61cc8a06783703d9ab3e8353da7e83e6627"
#: What the older tree says that it is, so that a test sees which of both a beat runs.
OLDER_VERSION = "0.0.1"

Trees = dict[str, Path]


def tree_of(commit: str, folder: Path) -> Path:
    """All files of a commit; skips the test where there is no history, or a short one."""
    if redis.VERSION < (5, 3):
        pytest.skip("with redis-py before 5.3 older ones drop each run")
    git = ["git", "-C", str(REPOSITORY)]
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    ask = [*git, "rev-parse", "--is-shallow-repository"]
    if subprocess.run(ask, capture_output=True, text=True).stdout.strip() != "false":
        pytest.skip("this is no clone with the whole history")
    archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True)
    subprocess.run(["tar", "-xC", str(folder)], check=True, input=archive.stdout)
    version = folder / "celery_zk_beat" / "version.py"
    assert '"0.1.0"' in version.read_text()
    version.write_text(version.read_text().replace('"0.1.0"', f'"{OLDER_VERSION}"'))
    return folder


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    return {"older": tree_of(OLDER, tmp_path_factory.mktemp("older")), "this": REPOSITORY}


@pytest.fixture
def start(site: Site, trees: Trees) -> Callable[..., Process]:
    """Starts a beat of a release, and waits until it is one of the members."""

    def start(release: str, name: str, *args: str) -> Process:
        site.tree = trees[release]
        beat = site.beat(name, *args)
        beat.wait_for_log(re.compile("elected: .* is master|not elected because"), PATIENCE)
        return beat

    return start


def versions(site: Site) -> dict[str, str]:
    """The release of each beat, as ZooKeeper has it."""
    told = json.loads(site.zk_beat("status", "--json").stdout)
    return {each["id"]: each["version"] for each in told["members"]}


@pytest.mark.parametrize(("before", "after"), [("older", "this"), ("this", "older")])
def test_a_rolling_deploy(
    site: Site, start: Callable[..., Process], before: str, after: str
) -> None:
    """Three beats of a release are replaced one by one, and back again, while a hundred runs a
    second are due: the mastership goes from release to release, no run is lost, and none is made
    twice."""
    site.schedule(**{f"entry-{n}": 0.5 for n in range(50)})
    beats = [start(before, f"{before}-{n}") for n in range(3)]
    site.wait_for_run(beats[0])
    for new, generation in ((after, 1), (before, 2)):
        for number in range(3):
            beats.append(start(new, f"{new}-{generation}-{number}"))
            old = beats.pop(0)  # for the first of each three: the master
            assert old.terminate(PATIENCE) == 0
            site.wait_for_run(one_of(beats, site))
        expected = OLDER_VERSION if new == "older" else "0.1.0"
        assert versions(site) == {beat.name: expected for beat in beats}
    history = site.history()
    assert check(history) == []
    assert len({message.epoch for message in history}) >= 3
    masters = {message.master.partition("-")[0] for message in history}
    assert masters == {"older", "this"}
    for beat in beats:
        assert "Traceback" not in beat.log()


def one_of(beats: list[Process], site: Site) -> Process:
    """The beat that is master, once one is."""

    def master(_: list[Message]) -> Any:
        told = json.loads(site.zk_beat("status", "--json").stdout)["master"]
        found.extend(beat for beat in beats if told and beat.name == told["id"])
        return found

    found: list[Process] = []
    site.wait(master, "a master")
    return found[0]


@pytest.mark.parametrize(("first", "second"), [("older", "this"), ("this", "older")])
@pytest.mark.parametrize(("step", "repeats"), [("claim acknowledged", 0), ("published", 3)])
def test_a_killed_master_of_the_other(
    site: Site,
    start: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    step: str,
    repeats: int,
) -> None:
    """What it has claimed and not confirmed, the other release publishes under its task ids."""
    site.schedule(a=0.5, b=0.5, c=0.5)
    monkeypatch.setenv("FAULT", step)
    one = start(first, "one", "-S", "tests.acceptance.faulty:Faulty")
    start(second, "two")
    assert one.wait(PATIENCE) == -9
    history = site.wait(
        lambda history: {m.task for m in history if m.run >= 3} == {"a", "b", "c"}, "third runs"
    )
    repeated = check(history)
    assert len(repeated) <= repeats
    assert all(message.run == 2 and message.master == "two" for message in repeated)
    assert {message.master for message in history} == {"one", "two"}


@pytest.mark.parametrize(("beat", "asker"), [("older", "this"), ("this", "older")])
def test_commands_of_the_other(
    site: Site, start: Callable[..., Process], trees: Trees, beat: str, asker: str
) -> None:
    """They read what its master writes, and it does what they ask."""
    site.conf["beat_schedule"] = {"rare": {"task": "rare", "schedule": 3600.0}}
    start(beat, "one")
    site.tree = trees[asker]

    def ask(*args: str) -> str:
        done = site.console(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ask("run", "rare")
    ask("pause", "rare")
    status = json.loads(ask("status", "--json"))
    assert status["master"]["id"] == "one"
    (entry,) = status["entries"]
    assert entry["name"] == "rare"
    assert entry["paused"]
    ask("resume", "rare")
    assert "rare" in ask("history")
    assert [message.run for message in site.history()] == [1]


@pytest.mark.parametrize(("there", "comes"), [("format 1", "this"), ("this", "format 1")])
def test_another_format_is_refused(
    site: Site,
    tmp_path_factory: pytest.TempPathFactory,
    there: str,
    comes: str,
) -> None:
    """By name; whoever is there goes on."""
    trees = {
        "format 1": tree_of(FORMAT_1, tmp_path_factory.mktemp("format-1")),
        "this": REPOSITORY,
    }
    site.tree = trees[there]
    one = site.beat("one")
    site.wait_for_run(one)
    site.tree = trees[comes]
    two = site.beat("two")
    assert two.wait(PATIENCE) != 0
    mine, other = (2, 1) if comes == "this" else (1, 2)
    assert f"a record of format {other}, and this release reads format {mine}" in two.log()
    assert "run the release that wrote it, or" in two.log()
    site.wait_for_run(one)
    assert check(site.history()) == []
