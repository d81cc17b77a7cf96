"""The benchmarks run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from benchmarks.txn_log import Write, read_log
from example_project.processes import REPOSITORY
from example_project.servers import ZooKeeper


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


def test_writes() -> None:
    """What a run costs ZooKeeper: each part that must be there is, and all of them make the sum."""
    command = [sys.executable, "-m", "benchmarks.writes", "--entries", "20"]
    command += ["--period", "5", "--seconds", "4"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    for how in "spread", "burst":
        costs, takeover = (
            [
                int(number)
                for number in re.findall(r"\b\d+\b", line.replace(",", "").split("|", 2)[2])
            ]
            for line in done.stdout.splitlines()
            if line.startswith(f"| 20 of 5 s, {how} ")
        )
        *parts, whole = costs[:7]
        assert min(parts[:5]) > 0  # states, history, claims, confirms, overhead
        assert abs(sum(parts) - whole) <= len(parts)  # they are rounded
        assert min(takeover[:3]) > 0


def test_rows() -> None:
    """So few that the ratio means nothing."""
    pytest.importorskip("django_celery_beat")
    command = [sys.executable, "-m", "benchmarks.rows", "--rows", "20", "--seconds", "5"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode in (0, 1), done.stderr  # 1: the bound is missed
    for who in "by itself", "behind the election":
        (readings,) = re.findall(rf"{who}: readings +([0-9.]+)", done.stdout)
        assert float(readings) >= 1
    assert "ratio of these" in done.stdout


def test_txn_log(tmp_path: Path) -> None:
    with ZooKeeper(tmp_path) as server:
        client = KazooClient(server.start().hosts)
        client.start()
        client.create("/a", b"one")
        multi = client.transaction()
        multi.check("/a", 0)
        multi.set_data("/a", b"two")
        multi.create("/b", b"")
        multi.commit()
        client.stop()
        client.close()
        found = list(read_log(tmp_path / "zookeeper", 0.0))
        (log,) = (tmp_path / "zookeeper" / "version-2").glob("log.*")
        written = len(log.read_bytes().rstrip(b"\0"))
    assert [each.writes for each in found if each.writes] == [
        [Write("/a", b"one")],
        [Write("/a", b"two"), Write("/b", b"")],
    ]
    assert [each.is_multi for each in found if each.writes] == [False, True]
    assert 16 + sum(each.size for each in found) == written  # after a header of 16 bytes
