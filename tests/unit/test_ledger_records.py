"""What the ledger writes can be read again, and is never larger than it reckoned."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_zk_beat.errors import RootError
from celery_zk_beat.history import decode_volume
from celery_zk_beat.pages import size_of
from celery_zk_beat.paths import Paths, page_of, volume_of
from celery_zk_beat.records import encode
from celery_zk_beat.runs import (
    DROPS_REMEMBERED,
    NEVER,
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
    COUNTS,
).map(lambda state: replace(state, ran=min(state.ran, state.total_run_count)))
RUNS = st.builds(
    Run,
    NAMES,
    COUNTS,
    INSTANTS,
    INSTANTS,
    COUNTS,
    st.booleans(),
    KEYS,
    leaves=st.none() | INSTANTS,
    late=st.none() | INSTANTS,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no fault
@given(st.dictionaries(NAMES, STATES, max_size=3))
def test_pages(states: dict[str, RunState]) -> None:
    data = encode_page(states)
    assert decode_page(PAGE, encode_page({}, 3)).floor == 3
    for name, state in states.items():
        assert decode_page(f"/runs/{page_of(name)}", encode_page({name: state})) == {name: state}
    reckoned = sum(size_of(name, state) for name, state in states.items())
    assert len(data) <= reckoned + len(encode_page({}))


@pytest.mark.parametrize("instant", [-1, 2**60, True, 1.5, None, "2026-01-01T00:00:00+00:00", []])
def test_no_instant(instant: object) -> None:
    """A page that holds one is damaged, whatever is wrong with it; which, is said."""
    with pytest.raises(RootError, match=r"'last_run_at' is .*, expected microseconds since 1970"):
        decode_page(PAGE, encode({"entries": {"e": [instant, 1, None]}}))
    if instant is not None:  # none yet
        with pytest.raises(RootError, match="'due' is "):
            decode_page(PAGE, encode({"entries": {"e": [0, 1, instant]}}))


@pytest.mark.parametrize("ran", [8, 10**15])
def test_no_more_ran_than_there_were(ran: int) -> None:
    """What a policy counts would end the entry else."""
    found = decode_page(PAGE, encode({"entries": {"e": [0, 7, None, {"ran": ran}]}}))
    assert found["e"].ran == 7


@pytest.mark.parametrize("instant", ["1960-01-01", "0001-01-01", "9999-12-31"])
def test_an_instant_that_cannot_be_read_again(instant: str) -> None:
    """[I10] The nearest that can is written in its place."""
    at = datetime.fromisoformat(f"{instant}T00:00:00+00:00")
    read = decode_page(PAGE, encode_page({"e": RunState(at, 1, at)}))["e"]
    (run,) = decode_outbox("/outbox", encode_outbox([Run("e", 1, at, at, 1)]))
    assert read.last_run_at == read.due == run.due == run.claimed
    assert (read.last_run_at == NEVER) == (instant < "1970")


@given(st.lists(RUNS, max_size=5))
def test_outbox(runs: list[Run]) -> None:
    data = encode_outbox(runs)
    found = decode_outbox("/outbox", data)
    assert found == runs
    assert [(run.leaves, run.late) for run in found] == [(run.leaves, run.late) for run in runs]
    states = [
        (run.entry, RunState(run.claimed, run.number, key=run.key, ran=run.number)) for run in runs
    ]
    written = sum(len(encode_page(dict([each]))) for each in states) + len(data)
    assert written <= sum(size_of(*each) for each in states) + len(encode_outbox([]))


@pytest.mark.parametrize(
    "item", [None, {}, [], [1, 2, 3], ["1", 2, 3, 4], [1, -2, 3, 4], [1, 2, 10**30, 4], [True] * 4]
)
def test_a_past_that_is_not_understood(item: object) -> None:
    """It is left out; the state is not damaged by it."""
    state = RunState(datetime(2026, 1, 1, tzinfo=timezone.utc), 1)
    at = int(state.last_run_at.timestamp() * 1e6)
    for past in ([item], {"1": item}):
        fields = [at, 1, None, {"past": past}]
        assert decode_page(PAGE, encode({"entries": {"e": fields}})) == {"e": state}
        volume = Paths("").volume(volume_of(page_of("e")))
        assert decode_volume(volume, encode({"entries": {"e": past, "x": past}})) == {"e": ()}
