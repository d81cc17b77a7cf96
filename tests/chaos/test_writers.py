"""The short version of :mod:`.writers`, and a test that its judge finds what is wrong."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from celery_zk_beat import LiveEntry
from celery_zk_beat.schedules import every

from .writers import Told, campaign, judge

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.timeout(180)
def test_every_change_that_was_acknowledged_is_there(tmp_path: Path) -> None:
    assert campaign(tmp_path, seconds=12, count=4, pause=3, seed=1) == 0


def entry(name: str, args: list[Any], version: int | None = None) -> LiveEntry:
    version = len(args) if version is None else version
    rest: tuple[Any, ...] = ({}, {}, {}, True, False, "", version, "me", NOW, NOW, ())
    return LiveEntry(name, "t", every(1), args, *rest)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([entry("s", ["a", "b"])], []),
        ([entry("s", ["a"])], ["s: b is lost"]),
        ([entry("s", ["a", "b", "c"])], []),
        ([entry("s", ["a", "b", "b"])], ["s: b is there 2 times"]),
        ([entry("s", ["a", "b", "x"])], ["s: nobody asked for x"]),
        ([entry("s", ["a", "b"], 3)], ["s: version 3 of 2 changes"]),
        ([], ["s: a is lost", "s: b is lost"]),
    ],
)
def test_the_judge(found: list[LiveEntry], said: list[str]) -> None:
    """`c` was not acknowledged: it may be there."""
    told = Told({"a": ["s"], "b": ["s"], "c": ["s"]}, {"a", "b"}, {})
    assert judge(told, {each.name: each for each in found}) == said


def test_a_pair_that_is_half_there() -> None:
    told = Told({"a": ["left-1", "right-1"]}, set(), {})
    assert judge(told, {"left-1": entry("left-1", ["a"])}) == ["left-1: and right-1 differ"]


def test_an_entry_of_ones_own() -> None:
    told = Told()
    for line in ({"asked": "a", "own": "o", "args": ["a"]}, {"done": "a"}):
        told._add(line)
    assert judge(told, {}) == ["o: is None, expected one of [['a']]"]
    told._add({"asked": "b", "own": "o", "args": None})
    assert judge(told, {}) == []
    assert judge(told, {"o": entry("o", ["a"])}) == []
