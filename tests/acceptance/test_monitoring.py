"""What docs/monitoring.md and the files beside it say of metrics: compared with what a beat
exports, and checked with Prometheus's own tool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from celery_zk_beat.metrics import SKIPPED
from example_project.servers import REPOSITORY, wait_until
from tests.conftest import PATIENCE

from .conftest import Site
from .test_http import Server

DOCS = REPOSITORY / "docs"
ALERTS = DOCS / "monitoring" / "alerts.yml"
ALERTS_TESTS = [DOCS / "monitoring" / f"alerts_{name}.yml" for name in ("test", "days_test")]
DASHBOARD = DOCS / "monitoring" / "dashboard.json"

OURS = re.compile(r"\bcelery_zk_beat_\w+")

Promtool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def promtool() -> Promtool:
    """Skips the test where it is not installed, except in CI."""
    program = shutil.which("promtool")
    if program is None and not os.environ.get("CI"):
        pytest.skip("promtool is not installed")
    assert program is not None, "promtool is not installed"

    def run(*args: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *args], input=input, capture_output=True, text=True, timeout=4 * PATIENCE
        )

    return run


@pytest.fixture(scope="module")
def later_promtool(promtool: Promtool) -> Promtool:
    """One that knows names of tests and ``--lint``."""
    if "--lint" not in promtool("check", "rules", "--help").stdout:
        pytest.skip("promtool is too old")
    return promtool


@pytest.fixture
def exported(site: Site) -> str:
    """What a master that has published something exports."""
    server = Server(site, zk_beat_metrics_entries=["*"], zk_beat_outcomes="worker")

    def text() -> str | None:
        _, found = server.get("/metrics")  # no metrics from a beat that takes a second to answer
        published = re.search(r"^celery_zk_beat_runs_published_total [1-9]", found, re.MULTILINE)
        return found if published and "celery_zk_beat_entry_last_run" in found else None

    return wait_until(text, PATIENCE, "a run that is published") or ""


def test_metrics(exported: str, promtool: Promtool) -> None:
    """What is exported is as Prometheus wants it; docs/monitoring.md has each of our metrics and no
    other, with its type; alerts and dashboard ask for no other."""
    checked = promtool("check", "metrics", input=exported)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    families = [
        family
        for family in text_string_to_metric_families(exported)
        if family.name.startswith("celery_zk_beat")
    ]
    row = re.compile(r"^\| `(celery_zk_beat\w+)(?:\{\w+\})?` \| (\w+) \|", re.MULTILINE)
    rows = row.findall(_read("monitoring.md"))
    assert sorted(rows) == sorted((_full_name(family), family.type) for family in families)
    for reason in SKIPPED:
        assert f"`{reason}`" in _read("monitoring.md")
    samples = {sample.name for family in families for sample in family.samples}
    samples |= {family.name for family in families}  # of what was skipped there is no sample
    for path in (ALERTS, *ALERTS_TESTS, DASHBOARD):
        assert set(OURS.findall(path.read_text())) <= samples, path


def test_alerts(later_promtool: Promtool) -> None:
    """Each fires when it should, and none in good times."""
    checked = later_promtool("check", "rules", str(ALERTS))
    assert (checked.returncode, checked.stderr) == (0, "")
    tested = later_promtool("test", "rules", *map(str, ALERTS_TESTS))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    tests = "".join(path.read_text() for path in ALERTS_TESTS)
    described = _read("monitoring.md")
    for name in names:
        assert f'alertname="{name}"' in tests
        assert f"| `{name}` |" in described


def test_dashboard(tmp_path: Path, later_promtool: Promtool) -> None:
    """Each query is one that Prometheus understands, of the data source and the job that are
    chosen; no two panels overlap."""
    dashboard = json.loads(DASHBOARD.read_text())
    rules = []
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            for metric in OURS.finditer(target["expr"]):
                assert target["expr"].startswith('{job="$job"}', metric.end()), target["expr"]
            rules.append({"record": "query", "expr": _filled_in(target["expr"])})
    path = tmp_path / "dashboard.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = later_promtool("check", "rules", "--lint=none", str(path))
    assert checked.returncode == 0, checked.stderr


def _read(name: str) -> str:
    return (DOCS / name).read_text()


def _full_name(family: Metric) -> str:
    """The parser takes it from counters."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def _filled_in(expression: str) -> str:
    return expression.replace("$job", "celery-beat").replace("$__rate_interval", "1m")
