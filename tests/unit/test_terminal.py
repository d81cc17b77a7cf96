"""What the command line prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.log import safe
from celery_zk_beat.status.terminal import Column, age, duration, table

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def plain(message: str, colour: str) -> str:
    return message


@given(st.text(st.characters(exclude_categories=())))
def test_safe(text: str) -> None:
    """Whatever is in a name, what is shown of it cannot steer a terminal, and can be encoded."""
    shown = safe(text)
    assert shown.isprintable()
    shown.encode()
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0234, "23 ms"),
        (0.9999, "999 ms"),
        (1, "1 s"),
        (1.29, "1.2 s"),
        (59.9, "59 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (48 * 3600, "2 d"),
        (1e9, "11574 d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (0.9, "now"), (-0.9, "now"), (-12.7, "12 s ago"), (200, "in 3 min")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(NOW + timedelta(seconds=seconds), NOW) == text
    assert age(None, NOW) == "-"


def test_columns_are_aligned() -> None:
    """Also where a character takes two columns, or none."""
    names = ["日本語", "e\u0301", "x\x1b", "plain"]
    columns: list[Column[str]] = [
        Column("NAME", str),
        Column("N", lambda name: str(10 ** names.index(name)), right=True),
        Column("LAST", lambda name: "end"),
    ]
    assert table(columns, [(name, "") for name in names], plain, math.inf) == [
        "NAME       N  LAST",
        "日本語     1  end",
        "e\u0301         10  end",
        "x\\x1b    100  end",
        "plain   1000  end",
    ]


def test_a_narrow_terminal() -> None:
    """What may be left out is left out, in its order, and only as far as needed; names never."""
    columns: list[Column[Sequence[str]]] = [
        Column("A", lambda row: row[0], drop=2),
        Column("B", lambda row: row[1], drop=1),
        Column("C", lambda row: row[2]),
        Column("D", lambda row: row[3], needed=False),
    ]
    rows: list[tuple[Sequence[str], str]] = [(("a" * 10, "b" * 10, "c" * 10, ""), "")]

    def titles(width: float) -> list[str]:
        return table(columns, rows, plain, width)[0].split()

    assert titles(34) == ["A", "B", "C"]
    assert titles(33) == ["A", "C"]
    assert titles(21) == ["C"]
    assert table(columns, rows, plain, 1) == ["C", "c" * 10]
    rows.append(("abcd", ""))
    assert titles(math.inf) == ["A", "B", "C", "D"]
