"""What workers report: pure functions."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat import RootError
from celery_zk_beat.limits import LONGEST_NAME
from celery_zk_beat.outcomes.reports import LARGEST_REPORT, Report, delivery_of

DUE = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
STARTED = Report("invoices", 7, DUE, "task-id", "celery@host", "started", again=True)
HEADER = {"entry": "invoices", "run": 7, "due": "2026-01-01T12:00:00.000000+00:00", "epoch": 3}


def with_field(name: str, value: Any) -> bytes:
    return json.dumps({**json.loads(STARTED.encode()), name: value}).encode()


def test_a_report_is_made_of_a_header() -> None:
    assert Report.of(HEADER, "task-id", "celery@host") == replace(STARTED, again=False)
    assert STARTED.key == (7, 1_767_268_800_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("entry", None),
        ("entry", "x" * (LONGEST_NAME + 1)),
        ("run", True),
        ("run", -1),
        ("run", 2**53),
        ("run", 1.0),
        ("due", "yesterday"),
        ("due", "2026-01-01"),
        ("due", "1969-12-31T23:59:59+00:00"),
        ("due", "9999-12-31T23:59:59+00:00"),
        ("due", 0),
        ("state", "lost"),
        ("state", None),
        ("id", "x" * 501),
        ("id", 1),
        ("worker", 1),
        ("format", 1),
    ],
)
def test_what_is_no_report(name: str, value: Any) -> None:
    with pytest.raises(RootError, match=r"/inbox/reports/x"):
        Report.decode("/inbox/reports/x", with_field(name, value))
    if name in HEADER:
        with pytest.raises(RootError, match="zk_beat"):
            Report.of({**HEADER, name: value}, "task-id", "celery@host")


@pytest.mark.parametrize(
    ("name", "value", "understood"),
    [
        ("runtime", 5, 5.0),
        ("runtime", -1, None),
        ("runtime", float("nan"), None),
        ("runtime", float("inf"), None),
        ("runtime", 10**400, None),
        ("runtime", True, None),
        ("runtime", "5", None),
        ("error", "E" * 200, "E" * 100),
        ("error", 5, None),
        ("again", 1, False),
        ("worker", "w" * 300, "w" * 200),
    ],
)
def test_what_only_adds_is_left_out_if_it_is_wrong(name: str, value: Any, understood: Any) -> None:
    report = Report.decode("/x", with_field(name, value))
    assert report == replace(STARTED, **{name: understood})


def test_a_report_that_is_too_large_is_not_read() -> None:
    padding = b" " * (LARGEST_REPORT - len(STARTED.encode()))
    assert Report.decode("/x", STARTED.encode() + padding) == STARTED
    with pytest.raises(RootError, match="bytes"):
        Report.decode("/x", STARTED.encode() + padding + b" ")


texts = st.text(st.characters(exclude_categories=()), max_size=30)


@given(
    st.builds(
        Report,
        entry=texts | st.just("\x00" * LONGEST_NAME),
        run=st.integers(0, 2**53 - 1),
        due=st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31)).map(
            lambda at: at.replace(tzinfo=timezone.utc)
        ),
        id=texts | st.just("\x00" * 500),
        worker=texts | st.just("\x00" * 200),
        state=st.sampled_from(["started", "retry", "requeued", "success", "expired"]),
        runtime=st.none() | st.floats(0, 1e10),
        error=st.none() | texts,
        again=st.booleans(),
    )
)
def test_what_is_written_is_read(report: Report) -> None:
    """Whatever it holds, and however long: a master that refused it would never know the end."""
    assert Report.decode("/x", report.encode()) == report


@pytest.mark.parametrize(
    ("runtime", "kept"), [(None, None), (1.23456789, 1.234568), (-1.0, None), (1e300, None)]
)
def test_the_end(runtime: float | None, kept: float | None) -> None:
    ended = STARTED.ended("failure", runtime, "K" * 200)
    assert ended == replace(STARTED, state="failure", runtime=kept, error="K" * 100)
    assert ended.is_final
    assert not STARTED.is_final


@given(texts)
def test_a_delivery_is_one_znode(id: str) -> None:
    name = delivery_of(id, "0a1b2c3d", 7)
    assert name.endswith(".0a1b2c3d-7")
    assert name.isascii()
    assert name.isprintable()
    assert "/" not in name
    assert name.count(".") == 1
    assert len(name) < 130


def test_an_id_is_told_from_another() -> None:
    names = {delivery_of(id, "0a1b2c3d", 1) for id in ("a", "b", "a/b", "a.b", "", "ü", "a" * 500)}
    assert len(names) == 7
    assert delivery_of("50927bdd-35c0-58fd", "0a1b2c3d", 1).startswith("50927bdd-35c0-58fd.")


def test_due_counts_in_milliseconds() -> None:
    """A header has microseconds; a history has not."""
    report = replace(STARTED, due=DUE + timedelta(microseconds=1999))
    assert report.key == (7, 1_767_268_800_001)
