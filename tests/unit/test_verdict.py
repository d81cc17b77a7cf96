"""The demo's verdict, which must be able to be a bad one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from example_project.verdict import Delivery, Entry, judge

ENTRIES = [Entry("second", 1.0), Entry("minute", 60.0, on_the_minute=True)]


def delivery(entry: str, run: int, at: float, **more: Any) -> Delivery:
    fields = {"id": f"{entry}/{run}", "epoch": 1, "received": at, "executed": at + 0.01, **more}
    return Delivery(entry, run=run, **fields)


def good() -> list[Delivery]:
    """Twenty seconds around the beginning of minute 2, without a fault."""
    seconds = [delivery("second", n, 110.0 + n) for n in range(1, 21)]
    return [*seconds, delivery("minute", 1, 120.1)]


def verdict(deliveries: list[Delivery], faults: list[float] | None = None) -> str:
    return str(judge(deliveries, ENTRIES, faults or [], started=110.0, ended=131.0))


def test_nothing_is_wrong() -> None:
    assert verdict(good()) == "runs: 21 dispatched, 21 executed, 0 lost, 0 twice"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda runs: runs.pop(5), "20 dispatched, 20 executed, 1 lost, 0 twice"),
        (lambda runs: runs.pop(-1), "20 dispatched, 20 executed, 1 lost, 0 twice"),
        (lambda runs: runs.append(replace(runs[5])), "21 dispatched, 22 executed, 0 lost, 1 twice"),
        (
            lambda runs: runs.append(delivery("second", 6, 116.5, id="other")),
            "22 dispatched, 22 executed, 0 lost, 1 twice",
        ),
        (
            lambda runs: runs.append(delivery("minute", 2, 121.0)),
            "22 dispatched, 22 executed, 0 lost, 1 twice",
        ),
        (
            lambda runs: runs.append(delivery("second", 21, 130.05, id="early")),
            "22 dispatched, 22 executed, 0 lost, 1 twice",
        ),
        (
            lambda runs: setattr(runs[3], "executed", None),
            "21 dispatched, 20 executed, 1 lost, 0 twice",
        ),
    ],
    ids=[
        "one was lost",
        "the minute was lost",
        "one message came twice",
        "one run had two messages",
        "the minute ran twice",
        "one came too early",
        "one was never executed",
    ],
)
def test_something_is_wrong(change: Callable[[list[Delivery]], object], says: str) -> None:
    runs = good()
    change(runs)
    assert verdict(runs) == f"runs: {says}"


def test_a_late_one() -> None:
    """On a loaded machine a message may take most of a period; the next is in its place."""
    runs = good()
    runs[5] = delivery("second", 6, 116.7)
    assert verdict(runs) == "runs: 21 dispatched, 21 executed, 0 lost, 0 twice"


def silent(first: int, count: int) -> list[Delivery]:
    """No run for some seconds, and the run numbers go on after them in a new epoch."""
    runs = [delivery("second", n, 110.0 + n) for n in range(1, first)]
    later = range(first, 21 - count)
    return [
        *runs,
        *(delivery("second", n, 110.0 + n + count, epoch=2) for n in later),
        delivery("minute", 1, 120.1),
    ]


def test_silence() -> None:
    """Without a fault, time in which nothing ran is counted by what was due in it."""
    assert verdict(silent(5, 6)).endswith("5 lost, 0 twice")


def test_silence_after_a_fault() -> None:
    """While nobody was master, nothing could run; what was missed became one run."""
    assert verdict(silent(5, 6), [114.5]).endswith("0 lost, 0 twice")


def test_silence_before_a_fault() -> None:
    """A fault excuses nothing that was before it."""
    assert not verdict(silent(5, 6), [119.5]).endswith("0 lost, 0 twice")


def test_in_the_schedule_for_a_while() -> None:
    """Before and after it nothing is missed; in it, silence is."""
    entry, runs = replace(ENTRIES[0], since=115.0, until=125.0), good()[5:15]
    renumbered = [replace(run, run=n) for n, run in enumerate(runs, 1)]
    assert judge(renumbered, [entry], [], 110.0, 131.0).good
    assert not judge(renumbered[:5], [entry], [], 110.0, 131.0).good
    assert not judge(renumbered, [ENTRIES[0]], [], 110.0, 131.0).good


def test_nothing_at_all() -> None:
    """Is not good."""
    assert not judge([], ENTRIES, [], 110.0, 110.5).good
