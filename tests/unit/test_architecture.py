"""The house keeps its walls."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_zk_beat

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


#: Of others' packages each the room, or the one module, that knows it.
WALLS = {
    "kazoo": "zookeeper",
    "waitress": "web",
    "prometheus_client": "web",
    "rich": "status/watch.py",
}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_walls(module: Path) -> None:
    """What is wrong with another's package, or its next release, is a matter of one room."""
    place = module.relative_to(PACKAGE)
    for name in {imported.partition(".")[0] for imported in _imported(module)}.intersection(WALLS):
        assert place == Path(WALLS[name]) or Path(WALLS[name]) in place.parents


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
