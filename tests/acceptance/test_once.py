"""celery-once and celery-singleton, as docs/integrations.md has them: a task that is queued is not
queued again."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from example_project.servers import wait_until
from tests.conftest import PATIENCE

from .conftest import Site

APP = "tests.acceptance.once_app"
TASKS = {"once": "proj.export", "graceful": "proj.tidy", "singleton": "proj.sync"}


@pytest.mark.parametrize("gated", [None, "celery.beat:Scheduler"])
def test_once(site: Site, gated: str | None) -> None:
    """One message of each waits. Where the task refuses, the history says so; where it does not,
    the run counts as published. Once the task is done, the next run has its message."""
    site.app = APP
    site.conf["beat_schedule"] = {
        name: {"task": task, "schedule": 0.5} for name, task in TASKS.items()
    }
    site.conf["zk_beat_scheduler"] = gated
    beat = site.beat("one")

    def notes() -> dict[str, list[str | None]]:
        """Of each entry's runs, oldest first, once each has some."""
        told = json.loads(site.zk_beat("history", "--json", "--limit", "1000").stdout)
        found: dict[str, list[str | None]] = {name: [] for name in TASKS}
        for run in reversed(told["runs"]):
            found[run["entry"]].append(run["note"])
        return found if min(map(len, found.values())) > 3 else {}

    found: dict[str, Any] = wait_until(notes, PATIENCE, "runs")
    refused = "dropped: cannot be sent, AlreadyQueued: "
    assert found["once"][0] is None
    assert all(note.startswith(refused) for note in found["once"][1:-1])
    assert {*found["graceful"], *found["singleton"]} == {None}
    assert Counter(message.entry for message in site.history()) == dict.fromkeys(TASKS, 1)
    assert "Traceback" not in beat.log()
    worker = site.worker("worker", "--pool=solo", app=APP)

    def all_ran_again() -> bool:
        log = worker.log()
        return all(log.count(f"Task {task}[") > 3 for task in TASKS.values())

    wait_until(all_ran_again, PATIENCE, "further runs of each")
    assert "Traceback" not in worker.log()
