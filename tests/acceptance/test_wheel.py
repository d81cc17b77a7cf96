"""The wheel, installed elsewhere. pip builds and installs it from the index that `.ci/setup` asks,
too: some 8 seconds where its cache has the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from example_project.processes import LOOPBACK, REPOSITORY, Process
from example_project.servers import Redis, ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE, SESSION_TIMEOUT
from tests.history import messages

PACKAGE = REPOSITORY / "celery_zk_beat"


def run(*command: str, cwd: Path) -> str:
    """The output of what must not fail, and does not see the repository."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, for a build leaves files behind that the next one would take in."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(
        PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", ".", ".", cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """Where those of an environment are that has the wheel and what it depends on, in the releases
    that are here, and nothing else."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", symlinks=True)
    releases = folder / "constraints.txt"
    releases.write_text(
        "".join(f"{each.metadata['Name']}=={each.version}\n" for each in distributions())
    )
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv")]
    run(*pip, "install", "-q", "-c", str(releases), f"{wheel}[redis,http]", cwd=folder)
    return folder / "venv" / "bin"


def test_it_holds_all_files(wheel: Path) -> None:
    """Sub-packages, the page's files, the mark of a typed package."""
    wanted = {
        str(path.relative_to(REPOSITORY))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith(f"{PACKAGE.name}/")}
    assert found == wanted
    assert {f"{PACKAGE.name}/py.typed", f"{PACKAGE.name}/web/page/index.html"} < found


def test_it_runs(
    programs: Path, tmp_path: Path, zookeeper: ZooKeeper, redis_server: Redis, root: str
) -> None:
    """A beat that dispatches and shows its page, and the command that asks for it."""
    port = free_port()
    broker = redis_server.url(0)
    conf = {
        "beat_scheduler": "celery_zk_beat:ZooKeeperScheduler",
        "beat_schedule": {"often": {"task": "often", "schedule": 0.2}},
        "zk_beat_hosts": zookeeper.hosts,
        "zk_beat_root": root,
        "zk_beat_session_timeout": SESSION_TIMEOUT,
        "zk_beat_http": port,
    }
    (tmp_path / "shop.py").write_text(
        f"from celery import Celery\napp = Celery('shop', broker={broker!r})\n"
        f"app.conf.update({conf!r})\n"
    )
    where = run(f"{programs}/python", "-c", "import celery_zk_beat as p; print(p)", cwd=tmp_path)
    assert str(programs.parent) in where
    celery = [f"{programs}/celery", "-A", "shop"]
    command = [*celery, "beat", "--pidfile=", "-l", "INFO"]
    with Process(tmp_path, "beat", command, env={"PYTHONPATH": None}, cwd=tmp_path) as beat:
        beat.start()
        wait_until(lambda: messages(broker), PATIENCE, "a run")
        for path, says in (("", b"<title>"), ("page.js", b"use strict"), ("readyz", b"ok: ")):
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/{path}") as answer:
                assert says in answer.read()
        status = run(*celery, "zk-beat", "status", cwd=tmp_path)
        assert f"root      {root} at {zookeeper.hosts}\nmaster    " in status
        assert "often" in status
        assert beat.terminate(PATIENCE) == 0
        assert "Traceback" not in beat.log()
