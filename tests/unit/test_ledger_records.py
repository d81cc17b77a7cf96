"""What the ledger writes can be read again, and is never larger than it reckoned."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_zk_beat.errors import RootError
from celery_zk_beat.pages import size_of
from celery_zk_beat.paths import page_of
from celery_zk_beat.records import encode
from celery_zk_beat.runs import (
    DROPS_REMEMBERED,
    PastRun,
    Run,
    RunState,
    decode_outbox,
    decode_page,
    encode_outbox,
    encode_page,
)

#: Of the entry e.
PAGE = f"/runs/{page_of('e')}"
NAMES = st.text(st.characters(), max_size=400)
COUNTS = st.integers(0, 10**9)
INSTANTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(timezone.utc))
KEYS = st.none() | st.text(max_size=20)
PAIRS = st.tuples(COUNTS, COUNTS)
STATES = st.builds(
    RunState,
    INSTANTS,
    COUNTS,
    st.none() | INSTANTS,
    st.lists(COUNTS, max_size=DROPS_REMEMBERED).map(tuple),
    st.none() | INSTANTS,
    st.lists(
        st.builds(
            PastRun.of,
            st.none() | COUNTS,
            INSTANTS,
            INSTANTS,
            COUNTS,
            st.none() | st.text(min_size=1, max_size=20),
        ),
        max_size=3,
    ).map(tuple),
    KEYS,
    st.none() | st.just("+0100+0200"),
    st.none() | PAIRS,
    st.lists(PAIRS, max_size=3).map(tuple),
    st.lists(PAIRS, max_size=3).map(tuple),
)
RUNS = st.builds(Run, NAMES, COUNTS, INSTANTS, INSTANTS, COUNTS, st.booleans(), KEYS)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no fault
@given(st.dictionaries(NAMES, STATES, max_size=3))
def test_pages(states: dict[str, RunState]) -> None:
    data = encode_page(states)
    assert decode_page(PAGE, encode_page({}, 3)).floor == 3
    for name, state in states.items():
        assert decode_page(f"/runs/{page_of(name)}", encode_page({name: state})) == {name: state}
    reckoned = sum(size_of(name, state) for name, state in states.items())
    assert len(data) <= reckoned + len(encode_page({}))


@pytest.mark.parametrize(
    "instant", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "2026-01-01", "x"]
)
def test_no_instant(instant: str) -> None:
    """A page that holds one is damaged, whatever is wrong with it."""
    fields = {"last_run_at": instant, "total_run_count": 1}
    with pytest.raises(RootError, match="no ISO 8601 instant"):
        decode_page(PAGE, encode({"entries": {"e": fields}}))


@given(st.lists(RUNS, max_size=5))
def test_outbox(runs: list[Run]) -> None:
    data = encode_outbox(runs)
    assert decode_outbox("/outbox", data) == runs
    states = [(run.entry, RunState(run.claimed, run.number, key=run.key)) for run in runs]
    written = sum(len(encode_page(dict([each]))) for each in states) + len(data)
    assert written <= sum(size_of(*each) for each in states) + len(encode_outbox([]))


@pytest.mark.parametrize(
    "item", [None, {}, [], [1, 2, 3], ["1", 2, 3, 4], [1, -2, 3, 4], [1, 2, 10**30, 4], [True] * 4]
)
def test_a_past_that_is_not_understood(item: object) -> None:
    """It is left out; the state is not damaged by it."""
    state = RunState(datetime(2026, 1, 1, tzinfo=timezone.utc), 1)
    fields: dict[str, Any] = {"last_run_at": "2026-01-01T00:00:00+00:00", "total_run_count": 1}
    fields["history"] = [item]
    assert decode_page(PAGE, encode({"entries": {"e": fields}})) == {"e": state}
    fields["history"] = {"1": item}
    assert decode_page(PAGE, encode({"entries": {"e": fields}})) == {"e": state}
