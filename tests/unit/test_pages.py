"""What fits on a page of run states, and what makes room. Pure: no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from celery_zk_beat.limits import Limits
from celery_zk_beat.pages import Page, Pages, size_of
from celery_zk_beat.paths import Paths, page_of
from celery_zk_beat.runs import PastRun, RunState

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
PAST = tuple(PastRun.of(n, NOW, NOW, 1) for n in range(1, 21))


def names() -> Iterator[str]:
    return (f"e{n}" for n in range(100_000))


def page(**unnamed_for: float) -> Page:
    """One of states that no schedule has named for so many hours; 0: one does."""
    states = {
        name: RunState(NOW, unnamed_since=NOW - hours * HOUR if hours else None)
        for name, hours in unnamed_for.items()
    }
    page = Page(states)
    page.encode(1_000_000)
    return page


def is_unnamed(entry: str, state: RunState) -> bool:
    return state.unnamed_since is not None


@pytest.mark.parametrize(
    ("on_it", "new", "room", "removed", "refused"),
    [
        ({}, "ab", 1360, "", ""),
        ({}, "abc", 950, "", "c"),  # those fit that come first
        ({"named": 0}, "a", 1360, "", ""),
        ({"named": 0}, "a", 750, "", "a"),
        ({"old": 2, "older": 3, "named": 0}, "a", 2040, "", ""),
        ({"old": 2, "older": 3, "named": 0}, "a", 1560, "older", ""),
        ({"old": 2, "older": 3, "named": 0}, "a", 1300, "older old", ""),  # a tenth more
        ({"old": 2, "older": 3, "named": 0}, "ab", 1360, "older old", ""),
        ({"old": 2, "older": 3}, "abcd", 1360, "older old", "d"),
    ],
)
def test_room_for_what_is_new(
    on_it: dict[str, float], new: str, room: int, removed: str, refused: str
) -> None:
    """On a page of at most `room` bytes, of which a state takes some 380 as it may grow."""
    states = {name: RunState(NOW) for name in new}
    assert page(**on_it).admit(states, room, is_unnamed) == (removed.split(), list(refused))


@pytest.mark.parametrize(
    ("most", "left", "remembers"),
    [
        (10_000, ["named", "old", "older"], 20),
        (2_000, ["named", "old", "older"], 10),  # what is oldest of the past goes first
        (1_000, ["named", "old", "older"], 5),
        (400, ["named", "old", "older"], 1),
        (200, ["named", "old", "older"], 0),
        (150, ["named", "old"], 0),  # then states that no schedule names
        (10, ["named", "old"], 0),
    ],
)
def test_a_page_is_cut(most: int, left: list[str], remembers: int) -> None:
    full = page(named=0, old=2, older=3)
    full.states = {name: replace(state, past=PAST) for name, state in full.states.items()}
    excess = full.cut(most, is_unnamed)
    assert sorted(full.states) == left
    assert max(len(state.past) for state in full.states.values()) == remembers
    assert excess == full.size - most
    assert (excess > 0) == (most == 10)


def test_numbers_outlive_the_state() -> None:
    """[I5] Of an entry that comes back after its state was removed."""
    states = page()
    for number in (7, 3):
        states.change("e", RunState(NOW, number))
        states.change("e", None)
    assert states.floor == 7


def test_batches_are_page_by_page() -> None:
    """Each holds as many states as fit, and the page that they are on; one in any case."""
    pages = Pages(Paths("/root"), Limits("/root"))
    full, other = (
        [name for name in names() if page_of(name) == page_of(first)][:5] for first in ("e0", "e1")
    )
    pages.change(dict.fromkeys(full, RunState(NOW)))
    pages.of(full[0]).encode(1_000_000)
    size = size_of(full[0], RunState(NOW)) + 10
    states: dict[str, RunState | None] = dict.fromkeys([*full, *other], RunState(NOW))

    def batch(room: int) -> list[str]:
        return [*pages.next_batch(left, states, room)]

    left = deque([*full, *other])
    assert batch(0) == full[:1]
    assert batch(pages.of(full[0]).size + 300 + 2 * size) == full[1:3]
    assert batch(pages.of(full[0]).size + 600 + 5 * size) == [*full[3:], *other[:3]]
    assert batch(1_000_000) == other[3:]
    assert not left
