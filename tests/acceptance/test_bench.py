"""The benchmarks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from example_project.processes import REPOSITORY


def test_compare(tmp_path: Path) -> None:
    """Ours and Celery's own, side by side, with so few entries that the numbers mean nothing."""
    command = [sys.executable, "-m", "benchmarks.compare", "burst", "idle", "drift", "--quick"]
    command += ["--n", "10", "--seconds", "2", "--contenders", "ours,stock"]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode in (0, 1), done.stderr  # 1: a bound is missed
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert not [result for result in results if "error" in result]
    found = {(result["case"], result["who"]): result for result in results}
    for who in "ours", "stock":
        assert found["burst", who]["dispatched"] == 10
        assert found["idle", who]["cpu"] > 0
        assert found["drift", who]["runs"] > 0  # 2, but for those that come late
    assert found["drift", "standby"]["runs"] == 0
    assert "| ours |" in (tmp_path / "README.md").read_text()
