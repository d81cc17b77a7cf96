"""What real beats log in projects that configure logging themselves."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from celery_zk_beat.records import to_text
from tests.conftest import PATIENCE

from .conftest import Site

APP = "tests.acceptance.logging_app"
PLAIN = "celery.beat:Scheduler"


@pytest.fixture
def site(site: Site) -> Site:
    site.app = APP
    return site


def records(log: str) -> list[dict[str, Any]]:
    """The lines that are JSON."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def terms(log: str) -> list[tuple[str, int]]:
    return [(r["action"], r["epoch"]) for r in records(log) if "action" in r and "run" not in r]


@pytest.mark.parametrize("how", ["names", "kept"])
def test_only_celery_is_configured(site: Site, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Ours shows what plain beat does: runs that are sent, and what is wrong with others; and
    also who is master."""
    monkeypatch.setenv("LOGGING", how)
    site.schedule(often=0.2)
    site.conf["beat_schedule"]["bad"] = {
        "task": "bad",
        "schedule": 0.2,
        "options": {"serializer": "of nobody"},
    }
    for scheduler in (PLAIN, "zookeeper"):
        beat = site.beat(scheduler.partition(":")[0], "-S", scheduler)
        for line in r"INFO Scheduler: Sending due task often \(often\)", r"ERROR .*of nobody":
            beat.wait_for_log(re.compile(rf"^celery\.beat\S* {line}", re.M), PATIENCE)
        beat.terminate(PATIENCE)
    assert re.search(r"^celery\.beat\S* INFO elected: zookeeper is master", beat.log(), re.M)


def test_as_the_page_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGGING", "page")
    beat = site.beat("one")
    site.wait_for_run(beat)
    assert beat.terminate(PATIENCE) == 0
    assert "elected: one is master" in beat.log()
    assert "demoted: one was master" in beat.log()
    assert "Sending due task" not in beat.log()


def test_fields(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each line that tells of a run or a term, with the values that the messages carry; of no
    other."""
    monkeypatch.setenv("LOGGING", "json")
    one = site.beat("one")
    site.wait_for_run(one)
    two = site.beat("two")
    two.wait_for_log("not elected because one", PATIENCE)
    assert site.zk_beat("run", "often").returncode == 0
    assert one.terminate(PATIENCE) == 0
    site.wait_for_run(two)
    assert two.terminate(PATIENCE) == 0
    history = site.history()
    for beat, epoch in (one, 1), (two, 2):
        found = records(beat.log())
        assert {record["name"].rpartition("celery.beat")[0] for record in found} == {""}
        sent = [record for record in found if record.get("action") == "sending"]
        fields = ("entry", "run", "due", "epoch", "task_id")
        assert [tuple(record[field] for field in fields) for record in sent] == [
            (message.entry, message.run, to_text(message.due), message.epoch, message.id)
            for message in history
            if message.epoch == epoch
        ]
        for record in found:
            texts = re.match(
                r"(elected|demoted|dispatching|Scheduler: Sending|asked|not elected|master one is)",
                record["message"],
            )
            assert ("action" in record) == bool(texts), record
    assert terms(one.log()) == [("elected", 1), ("dispatching", 1), ("asked", 1), ("demoted", 1)]
    assert terms(two.log()) == [
        ("standby", 1),
        ("contending", 1),
        ("elected", 2),
        ("dispatching", 2),
        ("demoted", 2),
    ]
