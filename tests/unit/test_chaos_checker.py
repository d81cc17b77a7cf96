"""The checker of tests.chaos finds each kind of violation in a history that was made by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from celery_zk_beat.records import to_text
from tests.chaos.checker import KINDS, check, summary
from tests.chaos.plot import plot
from tests.chaos.record import Event, Record, read
from tests.chaos.times import judge, table

History = list[Event]
#: When the message of run n of entry `e` arrives, n from 1.
SECONDS = [100.0 + n for n in range(1, 31)]


def message(run: int, at: float, **more: Any) -> Event:
    fields = {"entry": "e", "id": f"e/{run}", "beat": "one", "epoch": 1, "due": "", **more}
    return {"event": "message", "at": at, "run": run, **fields}


def fault(verb: str, on: str, beat: str | None, begin: float, end: float) -> History:
    number = int(10 * begin)
    first = {"verb": verb, "on": on, "beat": beat, "seconds": end - begin, "argument": 0.5}
    return [
        {"event": "fault", "phase": "begin", "at": begin, "number": number, **first},
        {"event": "fault", "phase": "end", "at": end, "number": number},
    ]


def states(count: int, at: float, zxid: int, **more: Any) -> Event:
    entries = {"e": [f"2026-01-01T00:00:{count:02}", count, more.get("dropped", []), zxid]}
    return {"event": "states", "at": at, "entries": entries, "outbox": more.get("outbox", [])}


def good() -> History:
    """Half a minute of an entry of one second, without a fault, and two beats that take turns."""
    site = {"contender": "ours", "seed": 1, "minutes": 0.5, "entries": {"e": 1.0}, "versions": {}}
    site.update(beats=["one", "two"], session_timeout=2.0)
    return [
        {"event": "site", "at": 100.0, **site},
        {"event": "master", "at": 100.5, "id": "one", "epoch": 1},
        *(message(run, at) for run, at in enumerate(SECONDS, 1)),
        *({"event": "executed", "at": at, "id": f"e/{n}"} for n, at in enumerate(SECONDS, 1)),
        states(10, 110.5, 7),
        {"event": "healed", "at": 130.1},
        {"event": "turn", "at": 130.2, "beat": "one"},
        {"event": "turn", "at": 130.3, "beat": "two"},
        states(30, 130.4, 9),
        {"event": "end", "at": 131.0},
    ]


def without(run: int) -> Callable[[History], History]:
    return lambda history: [event for event in history if event.get("run") != run]


def silent(begin: int, end: int, *more: Event) -> Callable[[History], History]:
    """No run between, and none missing: the later ones have the numbers that follow."""

    def change(history: History) -> History:
        kept = [e for e in history if e["event"] != "message" or not begin < e["at"] < end]
        runs = [e for e in kept if e["event"] == "message"]
        for number, event in enumerate(runs, 1):
            event.update(run=number, id=f"e/{number}")
        rest = [e for e in kept if e["event"] != "states"]
        return [*rest, states(len(runs), 130.4, 9), *more]

    return change


def also(*more: Event) -> Callable[[History], History]:
    return lambda history: [*history, *more]


def found(history: History) -> dict[str, int]:
    verdict = check(sorted(history, key=lambda event: event["at"]))
    assert verdict.good == (not any(verdict.violations.values()))
    return {kind: len(texts) for kind, texts in verdict.violations.items() if texts}


def test_nothing_is_wrong() -> None:
    assert found(good()) == {}


@pytest.mark.parametrize(
    ("seconds", "later", "is_fine"), [(4.0, 0.0, True), (4.0, 20.0, False), (40.0, 0.0, False)]
)
def test_a_clock_that_was_ahead_is_set_back(seconds: float, later: float, is_fine: bool) -> None:
    """By so much as it was ahead, and while it was."""
    begin, history = 1_800_000_000.0, good()
    for zxid, at in enumerate((begin + seconds, begin + 0.5), 10):
        entries = {"e": [to_text(datetime.fromtimestamp(at, timezone.utc)), 30, [], zxid]}
        history.append({"event": "states", "at": begin, "entries": entries, "outbox": []})
    history += fault("clock step", "clock", "one", begin - 1 - later, begin - later)
    assert (check(history).violations["backwards"] == []) == is_fine


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(without(12), "lost", id="a run in the middle"),
        pytest.param(without(30), "lost", id="the last run that was claimed"),
        pytest.param(silent(110, 116), "lost", id="silent without a fault"),
        pytest.param(
            silent(110, 124, *fault("kill", "process", "one", 110.5, 111)),
            "lost",
            id="silent for longer than a fault explains",
        ),
        pytest.param(
            silent(110, 116, *fault("kill", "process", "two", 110.5, 116)),
            "lost",
            id="silent though only a standby was hurt",
        ),
        pytest.param(
            also(message(12, 112.6)), "repeated without cause", id="by the same master, unhurt"
        ),
        pytest.param(also(message(12, 112.6, id="x")), "other id", id="a run with two ids"),
        pytest.param(
            lambda history: [{**e, "id": "e/1"} if e.get("run") == 9 else e for e in history],
            "other id",
            id="an id for two runs",
        ),
        pytest.param(also(message(31, 130.05)), "backwards", id="a state that lags its runs"),
        pytest.param(also(states(9, 110.6, 8)), "backwards", id="a state that went back"),
        pytest.param(also(message(0, 120.5)), "backwards", id="an earlier run for the first time"),
        pytest.param(
            lambda history: [
                {**e, "epoch": 2, "beat": "two"} if e.get("run") == 9 else e for e in history
            ],
            "overlap",
            id="a run of another epoch in between",
        ),
        pytest.param(
            also({"event": "ended", "at": 110.0, "beat": "two", "exit_code": 1}),
            "hand",
            id="a beat that ended",
        ),
        pytest.param(
            lambda history: [e for e in history if e["event"] != "turn" or e["beat"] == "one"],
            "hand",
            id="a beat that is never master again",
        ),
        pytest.param(
            lambda history: [e for e in history if e["event"] != "turn"], "hand", id="cut short"
        ),
    ],
)
def test_violation(change: Callable[[History], History], kind: str) -> None:
    assert kind in KINDS
    kinds = found(change(good()))
    assert kind in kinds
    assert set(kinds) <= {kind, "overlap"}  # a message out of place may break the order as well


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            silent(110, 116, *fault("kill", "process", "one", 110.5, 111)), id="master killed"
        ),
        pytest.param(
            silent(110, 120, *fault("full stop", "ensemble", None, 110.5, 115)), id="no ZooKeeper"
        ),
        pytest.param(
            lambda history: [
                {**e, "outbox": [["e", 30]]} if e["event"] == "states" else e
                for e in without(30)(history)
            ],
            id="the last run is in the outbox",
        ),
        pytest.param(
            lambda history: [
                states(30, 130.4, 9, dropped=[12]) if e["at"] == 130.4 else e
                for e in without(12)(history)
            ],
            id="dropped by policy",
        ),
        pytest.param(
            also(message(12, 112.6), *fault("cut to the broker", "broker road", "one", 111, 112)),
            id="sent again when the answer was lost",
        ),
    ],
)
def test_excused(change: Callable[[History], History]) -> None:
    assert found(change(good())) == {}


def after_a_successor(count: int, apart: float) -> History:
    """Beat `one` sends `count` runs again after `two` has been master, and had been stopped."""
    history = [
        {**e, "epoch": 2, "beat": "two"} if e["event"] == "message" and e["run"] > 15 else e
        for e in good()
    ]
    late = [message(15 - n, 118.1 + apart * n) for n in range(count)]
    return [*history, *late, *fault("long stop", "process", "one", 114.5, 118)]


def test_late() -> None:
    """A stop explains one message after the successor's, or those that left together, no more."""
    for count in (1, 2):
        history = after_a_successor(count, apart=0.0)
        verdict = check(sorted(history, key=lambda event: event["at"]))
        assert not verdict.violations["overlap"]
        assert len(verdict.late) == count
        assert "also sent by another master" in verdict.late[0]
    assert found(after_a_successor(3, apart=0.01))["overlap"] == 2


def test_by_times() -> None:
    """An entry of one second: what is missing, what is too much, and what is neither."""
    history = silent(110, 116, *fault("kill", "process", "one", 110, 111))(good())
    history.append(message(99, 125.2))
    history.append(message(9, 127.2))
    times = judge(sorted(history, key=lambda event: event["at"]))
    assert (times.missed, times.many, times.same_id) == (5, 2, 1)
    assert times.longest == 6.0
    assert "| ours | 1 | 0.5 | 1 |" in table([times])


def test_files(tmp_path: Path) -> None:
    """What is written is what is read, by its time; the summary and the picture come from it."""
    record = Record(tmp_path / "history")
    for event in reversed(good()):
        record.write(**event)
    record.close()
    history = read(record.path)
    assert [event["at"] for event in history] == sorted(event["at"] for event in good())
    assert all(event in good() for event in history)
    assert "lost 0" in summary(check(history))
    assert plot(history).startswith("<svg")
