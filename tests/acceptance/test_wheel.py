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
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from celery_zk_beat import __version__
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


@pytest.fixture(scope="module")
def about(wheel: Path) -> Distribution:
    """What the wheel says of itself."""
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (found,) = distributions(path=[str(folder)])
    return found


def needs(about: Distribution, extra: str) -> set[str]:
    """The names of what it needs for an extra alone; with "" for none."""
    found = [Requirement(text) for text in about.requires or ()]
    return {
        need.name + (f"[{','.join(need.extras)}]" if need.extras else "")
        for need in found
        if (need.marker.evaluate({"extra": extra}) if need.marker else not extra)
    }


def test_its_metadata(about: Distribution) -> None:
    meta = about.metadata
    assert (meta["Name"], about.version) == ("celery-zk-beat", __version__)
    assert meta["Requires-Python"] == ">=3.9"
    assert meta["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in (meta.get_all("Classifier") or ())
    assert [file.name for file in about.files or () if file.name == "LICENSE"] == ["LICENSE"]


def test_its_extras(about: Distribution) -> None:
    """Those of docs/api.md, and those for developers."""
    assert needs(about, "") == {"celery", "cronsim", "kazoo"}
    users = {
        "redis": {"celery[redis]"},
        "http": {"prometheus_client", "waitress"},
        "watch": {"rich"},
        "sasl": {"pure-sasl"},
        "kerberos": {"pure-sasl", "kerberos"},
    }
    assert {extra: needs(about, extra) for extra in users} == users
    extras = set(about.metadata.get_all("Provides-Extra") or ())
    assert extras - set(users) == {"demo", "django", "test", "bench", "docker", "docs"}


def test_its_entry_points(about: Distribution, programs: Path, tmp_path: Path) -> None:
    """Each leads to what is installed, and loads it."""
    assert {(each.group, each.name, each.value) for each in about.entry_points} == {
        ("celery.commands", "zk-beat", "celery_zk_beat.cli:zk_beat"),
        ("celery.beat_schedulers", "zookeeper", "celery_zk_beat.schedulers:ZooKeeperScheduler"),
    }
    load = (
        "from importlib.metadata import distribution as d\n"
        "print(*sorted(e.load().__name__ for e in d('celery-zk-beat').entry_points "
        "if e.group == 'celery.beat_schedulers'))"
    )
    assert run(f"{programs}/python", "-c", load, cwd=tmp_path) == "ZooKeeperScheduler\n"
    assert "zk-beat" in run(f"{programs}/celery", "--help", cwd=tmp_path)


def test_its_types(programs: Path, tmp_path: Path) -> None:
    """mypy finds them where it is installed, with no setting of ours."""
    shutil.copy(REPOSITORY / "tests" / "typed_use.py", tmp_path)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file="]
    mypy += ["--ignore-missing-imports", "--python-executable", f"{programs}/python"]
    assert run(*mypy, "typed_use.py", cwd=tmp_path).startswith("Success")
    (tmp_path / "wrong.py").write_text(
        "from celery_zk_beat import MasterElection\nMasterElection(1)\n"
    )
    done = subprocess.run(
        [*mypy, "wrong.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert 'has incompatible type "int"; expected "str"' in done.stdout, done.stdout


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
