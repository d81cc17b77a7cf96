"""The tools that watch a beat, as whoever has them with Celery's own beat has them: real beats,
real workers, the real libraries."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from example_project.servers import wait_until
from tests.conftest import PATIENCE

from .conftest import Site

APP = "tests.acceptance.tools_app"
Received = Callable[[], list[dict[str, Any]]]
Watch = Callable[[str], Received]


@pytest.fixture
def watch(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Has the site's processes be watched by a tool; returns what that gets."""
    site.app, path = APP, tmp_path / "received"
    for name in (
        *("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "DD_REMOTE_CONFIGURATION_ENABLED"),
        *("DD_CRASHTRACKING_ENABLED", "DD_TRACE_STATS_COMPUTATION_ENABLED"),
    ):
        monkeypatch.setenv(name, "false")
    monkeypatch.setenv("DD_CELERY_DISTRIBUTED_TRACING", "true")
    monkeypatch.setenv("RECEIVED", str(path))

    def received() -> list[dict[str, Any]]:
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def watch(tool: str) -> Received:
        monkeypatch.setenv("TOOL", tool)
        return received

    return watch


def dispatched(site: Site) -> dict[str, int]:
    """How many runs each entry has had."""
    return {name: claim.run for name, claim in site.claimed().items()}


@pytest.mark.parametrize("gated", [None, "celery.beat:Scheduler"])
def test_sentry_monitors_of_beat_tasks(site: Site, watch: Watch, gated: str | None) -> None:
    """One check-in opens and one closes for each run, of whichever master, with the monitor's
    right configuration. (sentry-python#2823)"""
    received = watch("sentry")
    site.conf["zk_beat_scheduler"] = gated
    site.worker("worker", "--pool=solo", app=APP)

    def pairs() -> dict[str, list[list[str]]]:
        """By monitor, what became of each check-in."""
        found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for line in received():
            found[line["monitor_slug"]][line["check_in_id"]].append(
                f"{line['who']} {line['status']}"
            )
        return {slug: list(each.values()) for slug, each in found.items()}

    def wait_for(who: str) -> None:
        def there() -> bool:
            found, runs = pairs(), dispatched(site)
            return all(
                len(found.get(slug, [])) == runs.get(slug)
                and found[slug][-1] == [f"{who} in_progress", "worker ok"]
                for slug in ("nightly", "hourly")
            )

        wait_until(there, PATIENCE, f"a pair for each run, the last of {who}")

    one = site.beat("one")
    wait_for("one")
    two = site.beat("two")
    two.wait_for_log("not elected because one is master", PATIENCE)
    one.kill()
    two.wait_for_log("dispatching", PATIENCE)
    for _ in range(2):
        for name in "nightly", "hourly":
            answer = site.zk_beat("run", name)
            assert answer.returncode == 0, answer.stderr
        wait_for("two")
    assert {slug: len(each) for slug, each in pairs().items()} == {"nightly": 3, "hourly": 3}
    configurations = {line["monitor_slug"]: line.get("monitor_config") for line in received()}
    assert configurations == {
        "nightly": {
            "schedule": {"type": "crontab", "value": "30 2 * * *"},
            "timezone": "Europe/Berlin",
        },
        "hourly": {
            "schedule": {"type": "interval", "value": 1, "unit": "hour"},
            "timezone": "Europe/Berlin",
        },
    }


def test_datadog_spans_of_beat(site: Site, watch: Watch) -> None:
    """One for each run, by the name of its entry; and those of ticks. (dd-trace-py, PR 5327)"""
    received = watch("datadog")
    site.worker("worker", "--pool=solo", app=APP)
    one = site.beat("one")

    def spans(name: str, who: str) -> list[dict[str, Any]]:
        return [line for line in received() if (line["name"], line["who"]) == (name, who)]

    wait_until(lambda: len(spans("celery.run", "worker")) >= 4, PATIENCE, "runs")
    one.terminate(PATIENCE)
    runs = dispatched(site)
    wait_until(
        lambda: len(spans("celery.run", "worker")) == sum(runs.values()), PATIENCE, "all runs"
    )
    opened = spans("celery.beat.apply_entry", "one")
    assert sorted(line["resource"] for line in opened) == sorted(
        name for name, count in runs.items() for _ in range(count)
    )
    assert len(spans("celery.beat.tick", "one")) > 1
    # What a worker does belongs to the trace that beat began.
    traces = {line["trace"] for line in opened}
    assert {line["trace"] for line in spans("celery.run", "worker")} == traces
    assert not any(line["error"] for line in received())


def test_opentelemetry_parents(site: Site, watch: Watch) -> None:
    """The span of a worker has that of beat as its parent, and no two have the same."""
    received = watch("opentelemetry")
    site.worker("worker", "--pool=solo", app=APP)
    site.beat("one")

    def spans(name: str, who: str) -> list[dict[str, Any]]:
        return [line for line in received() if (line["name"], line["who"]) == (name, who)]

    wait_until(lambda: len(spans("run/echo", "worker")) >= 4, PATIENCE, "runs")
    done, sent = spans("run/echo", "worker"), spans("apply_async/echo", "one")
    parents = [line["parent"] for line in done]
    assert len(set(parents)) == len(parents)
    assert set(parents) <= {line["span"] for line in sent}
    assert {line["parent"] for line in sent} == {None}
