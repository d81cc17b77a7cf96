"""Which entries have numbers of their own."""

from __future__ import annotations

from celery_zk_beat.metrics import LONGEST_SELECTED, MOST_SELECTED, Selected, select


def test_patterns() -> None:
    """As fnmatch has them; upper and lower case are apart, and a name is no pattern."""
    names = ["nightly-b", "nightly-a", "Nightly-c", "x.nightly-d", "a+b", "aab", "two\nlines"]
    assert select(["nightly-?", "a+b", "two*"], names, "SETTING") == Selected(
        ["a+b", "nightly-a", "nightly-b", "two\nlines"], 4, []
    )


def test_faults() -> None:
    """Each pattern of no use; and where there are too many the first by their names are taken."""
    names = [f"e{n:04}" for n in range(MOST_SELECTED + 1)]
    selected = select(["*", "f*"], [*names, "d" * (LONGEST_SELECTED + 1)], "SETTING")
    assert (selected.names, selected.matching) == (names[:MOST_SELECTED], MOST_SELECTED + 2)
    assert selected.faults == [
        "SETTING: no entry has a name like 'f*'",
        "SETTING: 102 entries match, and 100 of them have metrics of their own: 100 at most, "
        "with names of up to 200 characters",
    ]
