"""What is held back, and what is to be skipped, whatever operators do in which order."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.control import Pauses
from celery_zk_beat.errors import RootError
from celery_zk_beat.records import encode

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
ENTRIES = ("a", "b")
#: "pause", "catch up" or "skip", of one entry or (None) of all.
ACTIONS = st.tuples(
    st.sampled_from(["pause", "catch up", "skip"]), st.sampled_from([None, *ENTRIES])
)


def done(actions: list[tuple[str, str | None]]) -> Pauses:
    pauses = Pauses()
    for number, (what, entry) in enumerate(actions):
        at = START + timedelta(hours=number)
        if what == "pause":
            pauses = pauses.pause(entry, at)
        else:
            pauses = pauses.resume(entry, at, skip=what == "skip")
    return pauses


@given(st.lists(ACTIONS, max_size=8))
def test_what_is_held(actions: list[tuple[str, str | None]]) -> None:
    """By the last word on the entry, or on all of them; and it can be read again."""
    pauses = done(actions)
    assert Pauses.decode("/pauses", pauses.encode()) == pauses
    for entry in ENTRIES:
        last = {of: what for what, of in actions if of in (None, entry)}
        held = "pause" in last.values()
        assert (pauses.since(entry) is not None) == held
        after = pauses.without_skips(lambda entry: True)
        assert after.since(entry) == pauses.since(entry)
        assert not after.skips


def test_a_pause_keeps_its_beginning() -> None:
    """Paused again is not paused anew."""
    assert done([("pause", "a"), ("pause", "a")]) == done([("pause", "a")])


def test_what_is_skipped_later() -> None:
    """Of an entry on a damaged page, unless it is paused by itself."""
    pauses = done([("pause", None), ("pause", "b"), ("skip", None)])
    after = pauses.without_skips(lambda entry: False, ["a", "b"])
    assert after.everything == done([]).everything
    assert after.skip_until("a") == START + timedelta(hours=2)
    assert after.of("b") == pauses.of("b")
    assert after.without_skips(lambda entry: False, ["a", "b"]) == after
    assert after.without_skips(lambda entry: True).entries.keys() == {"b"}


def test_what_is_skipped() -> None:
    """What was due until it was resumed; of all but those that are held back by themselves."""
    pauses = done([("pause", None), ("pause", "b"), ("skip", None)])
    assert pauses.skip_until("a") == START + timedelta(hours=2)
    assert pauses.skip_until("b") is None
    pauses = done([("pause", "a"), ("pause", None), ("skip", "a")])
    assert pauses.skip_until("a") == START + timedelta(hours=2)
    assert pauses.skip_until("b") is None
    pauses = done([("pause", "a"), ("skip", "a"), ("pause", "a"), ("catch up", "a")])
    assert pauses.skip_until("a") == START + timedelta(hours=1)  # no master was there to do so
    assert pauses.without_skips(lambda entry: entry != "a") == pauses
    assert done([("pause", "a"), ("catch up", "a")]) == Pauses()
    assert done([("skip", "a")]) == Pauses()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"entries": []},
        {"entries": {"a": None}},
        {"entries": {"a": {"since": 7}}},
        {"entries": {"a": {"since": "2026-01-01T00:00:00+00:00", "skip": "soon"}}},
        {"all": "yes", "entries": {}},
    ],
)
def test_damaged(fields: dict[str, Any]) -> None:
    with pytest.raises(RootError, match="/pauses"):
        Pauses.decode("/pauses", encode(fields))
