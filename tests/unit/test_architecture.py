"""The house keeps its walls."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_zk_beat
from example_project.processes import REPOSITORY

PACKAGE = Path(celery_zk_beat.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def _clocks_read(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}:
                yield name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_clock_knows_time_and_threads(module: Path) -> None:
    """A clock that the simulation does not replace runs on real time without a word."""
    reached = (
        {"time", "threading", "queue"}.intersection(_imported(module)),
        [*_clocks_read(module)],
    )
    if module.name == "clock.py":
        assert reached == ({"time", "threading", "queue"}, ["datetime.now"])
    else:
        assert reached == (set(), [])


def test_imports_point_downwards(tmp_path: Path) -> None:
    """The layers, and what may not be reached at all, are in pyproject.toml."""
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    found = subprocess.run(
        [*lint, "--cache-dir", tmp_path],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert found.returncode == 0, found.stdout


#: Of others' packages each the rooms, and the modules, that know it.
WALLS = {
    "kazoo": {"zookeeper"},
    "waitress": {"web"},
    "prometheus_client": {"web"},
    "rich": {"status/watch.py"},
    "click": {"cli.py", "command_line.py", "importing.py", "live/commands.py"},
    # What is an entry, a schedule, a message, a signal, a setting of it: each in one place. The
    # sources of entries and the loop take its scheduler for what they are given.
    "celery": {
        "beat_schedule.py",
        "broker.py",
        "checking.py",
        "cli.py",
        "command_line.py",
        "due.py",
        "forecast.py",
        "gate",
        "hooks.py",
        "importing.py",
        "live/coming.py",
        "live/commands.py",
        "live_schedule.py",
        "loop.py",
        "messages.py",
        "outcomes/backend.py",
        "outcomes/worker.py",
        "planner.py",
        "schedulers.py",
        "schedules.py",
        "signals.py",
        "source.py",
    },
    "cronsim": {"schedules.py"},
    "kombu": {"broker.py", "publishing.py", "templates.py"},
    "amqp": {"broker.py", "confirms.py"},
    "django": {"gate/stores.py"},
}


@pytest.mark.parametrize("name", WALLS)
def test_walls(name: str) -> None:
    """What is wrong with another's package, or its next release, is a matter of few rooms; and
    what is listed here does import it."""
    found = set()
    for module in MODULES:
        if name in {imported.partition(".")[0] for imported in _imported(module)}:
            place = module.relative_to(PACKAGE)
            found |= {each.as_posix() for each in (place, *place.parents)} & WALLS[name] or {
                f"not {place}"
            }
    assert found == WALLS[name]


#: Classes that are longer than some 300 lines, and why.
LONG = {
    "RunLedger": "all of it serves one transaction, _send: what that checks and leaves behind has "
    "to be known wherever something is written, or on its way",
}


def test_no_class_eats_the_rest() -> None:
    """Nor is any left in the list that has become shorter."""
    found = {
        node.name
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 320
    }
    assert found == {*LONG}


def test_an_election_loads_no_celery() -> None:
    """Nor what else only a beat needs."""
    show = "import sys, celery_zk_beat; celery_zk_beat.MasterElection; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", show], check=True, stdout=subprocess.PIPE, text=True
    )
    loaded = set(found.stdout.split())
    assert "celery_zk_beat.election.public" in loaded
    assert not loaded & {"celery", "kombu", "celery_zk_beat.schedulers", "celery_zk_beat.ledger"}


def test_public_names() -> None:
    """All are there, those that are imported late, too; others are not."""
    assert {*celery_zk_beat.__all__} <= {*dir(celery_zk_beat)}
    assert all(getattr(celery_zk_beat, name) for name in celery_zk_beat.__all__)
    assert not hasattr(celery_zk_beat, "Scheduler")
