"""Signals of real beats, to receivers that are connected in the app's module."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE
from tests.history import check

from .conftest import Site

APP = "tests.acceptance.signals_app"


def received(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_elected_published_demoted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event for each, in order, with the very values that the messages carry."""
    path = tmp_path / "received"
    monkeypatch.setenv("RECEIVED", str(path))
    beat = site.beat("one", app=APP)
    site.wait(lambda history: len(history) > 3, "runs")
    assert beat.terminate(PATIENCE) == 0
    history, events = site.history(), received(path)
    assert {event.pop("sender") for event in events} == {"ZooKeeperScheduler"}
    assert events[0] == {"signal": "beat_elected", "epoch": 1, "id": "one"}
    assert events[-1] == {"signal": "beat_demoted", "epoch": 1, "reason": "stopped"}
    published = events[1:-1]
    assert {event["signal"] for event in published} == {"run_published"}
    assert [event["run"] for event in published] == [message.run for message in history]
    assert [event["task_id"] for event in published] == [message.id for message in history]
    assert [event["due"] for event in published] == [str(message.due) for message in history]
    assert {(event["entry"], event["task"], event["epoch"]) for event in published} == {
        ("often", "often", 1)
    }


@pytest.mark.parametrize("how", ["hang", "raise"])
def test_a_receiver_disturbs(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Dispatch goes on, and the beat stops in time; the master after it repeats nothing."""
    path = tmp_path / "received"
    monkeypatch.setenv("RECEIVED", str(path))
    monkeypatch.setenv("DISTURB", how)
    one = site.beat("one", app=APP)
    site.wait(lambda history: len(history) > 3, "runs")
    begun = time.monotonic()
    assert one.terminate(PATIENCE) == 0
    assert time.monotonic() - begun < PATIENCE / 2
    if how == "hang":
        assert "the signal beat_elected takes too long: beat stops without it" in one.log()
        assert [event["signal"] for event in received(path)] == ["beat_elected"]
    else:
        assert received(path)[-1]["signal"] == "beat_demoted"
        assert "a receiver's own trouble" in one.log()
    two = site.beat("two")
    assert check(site.wait_for_run(two)) == []
