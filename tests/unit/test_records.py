"""Records: pure functions."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.errors import RootError
from celery_zk_beat.records import (
    LARGEST_MASTERS,
    MasterRecord,
    RootRecord,
    TermRecord,
    decode,
    decode_masters,
    encode,
    encode_masters,
    from_text,
    next_era,
    to_text,
)

RECORD = MasterRecord("a", "host", 1, "2026-01-01T00:00:00.000000+00:00", 7, "0.1.0", None, None)


def test_a_record_comes_back() -> None:
    assert MasterRecord.decode("/m", RECORD.encode()) == RECORD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"format": 1, "app": "x"}',
        b'{"app": "x"}',
        b'{"format": 2}',
        b"[" * 100_000,
    ],
    ids=lambda data: data[:30].decode("latin-1"),
)
def test_what_is_no_record_is_refused_by_name(data: bytes) -> None:
    """Never guessed, never a traceback of json: the message names the znode."""
    with pytest.raises(RootError, match="/some/path"):
        RootRecord.decode("/some/path", data)


@pytest.mark.parametrize(
    ("last", "era"),
    [
        ("", "2026-11-29T12:00:00.500000+00:00"),
        ("2026-11-29T11:00:00.000000+00:00", "2026-11-29T12:00:00.500000+00:00"),
        # The clock was set back, or that of another server is behind.
        ("2026-11-29T13:00:00.000000+00:00", "2026-11-29T13:00:00.001000+00:00"),
        # Written by a stranger.
        ("soon", "2026-11-29T12:00:00.500000+00:00"),
        ("2026-11-29T13:00:00", "2026-11-29T12:00:00.500000+00:00"),
        ("9999-12-31T23:59:59.999999+00:00", "2026-11-29T12:00:00.500000+00:00"),
    ],
)
def test_eras_grow(last: str, era: str) -> None:
    """With ZooKeeper's clock, and without it."""
    now = datetime(2026, 11, 29, 12, 0, 0, 500_999, tzinfo=timezone.utc).timestamp()
    assert next_era(last, now) == era


def test_what_an_earlier_release_did_not_write() -> None:
    """A field that may be None may be missing: beats of two releases meet during an upgrade."""
    fields = {name: value for name, value in asdict(RECORD).items() if value is not None}
    assert MasterRecord.decode("/x", encode(fields)) == RECORD


def test_records_are_ascii() -> None:
    """A lone surrogate cannot be UTF-8, and must not keep a run from being written down."""
    data = encode({"name": "\ud800ü"})
    assert data.isascii()
    assert decode("/x", data)["name"] == "\ud800ü"


@given(st.datetimes(timezones=st.timezones()))
def test_instants_come_back(instant: datetime) -> None:
    try:
        text = to_text(instant)
    except OverflowError:
        return  # the first and last hours of the calendar
    assert from_text(text) == instant.astimezone(timezone.utc)
    assert from_text(text).utcoffset() == timedelta(0)


def test_instants_sort_as_texts() -> None:
    whole = datetime(2026, 1, 1, 12, 0, 0, tzinfo=timezone.utc)
    assert to_text(whole) < to_text(whole + timedelta(microseconds=1))


@pytest.mark.parametrize("text", ["", "soon", "2026-01-01T00:00:00"])
def test_no_instant(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        from_text(text)


def test_masters_with_long_names() -> None:
    """[I10] What is written of them is read, and there is always the last."""
    long = "\U0001f600" * 200
    terms = [TermRecord(n, long, long, 1, long, None, "asked by " + 10 * long) for n in range(60)]
    data = encode_masters(terms)
    assert len(data) <= LARGEST_MASTERS
    assert decode_masters("/masters", data)[-1] == terms[-1]
