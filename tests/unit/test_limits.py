"""How many bytes the ledger writes at once, as answers come or do not. Pure: no I/O."""

from __future__ import annotations

import pytest

from celery_zk_beat.limits import LARGEST_OUTBOX, LARGEST_PAGE, MOST_BYTES, Limits

#: Answered, or not: bytes, and after how many seconds.
ANSWERED, LOST = True, False


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        ([(LOST, 15_000, 1.0)] * 20, MOST_BYTES),  # too small to be lost for its size
        ([(LOST, 300_000, 1.0)], MOST_BYTES),  # once is nothing
        ([(LOST, 300_000, 1.0), (LOST, 200_000, 1.0)], 100_000),  # half of the smallest
        ([(LOST, 300_000, 1.0), (LOST, 200_000, 61.0)], MOST_BYTES),  # long after
        ([(LOST, 300_000, 1.0), (ANSWERED, 150_000, 1.0), (LOST, 300_000, 1.0)], MOST_BYTES),
        ([(LOST, 300_000, 1.0), (ANSWERED, 149_999, 1.0), (LOST, 300_000, 1.0)], 150_000),
        ([(ANSWERED, 300_000, 1.0), *[(LOST, 300_000, 1.0)] * 4], MOST_BYTES),
        ([(ANSWERED, 300_000, 1.0), *[(LOST, 300_000, 1.0)] * 5], 150_000),
        ([(LOST, 300_000, 1.0)] * 3, 75_000),  # from then on one is proof enough
        ([(LOST, 300_000, 1.0)] * 20, 16_000),  # never less
    ],
)
def test_what_is_lost(steps: list[tuple[bool, int, float]], most: int) -> None:
    limits, now = Limits("/root"), 1000.0
    for is_answered, size, after in steps:
        now += after
        if is_answered:
            limits.answered(size)
        else:
            limits.unanswered(size, now)
    assert limits.most_bytes == most
    assert limits.is_lowered == (most < MOST_BYTES)


def test_more_is_tried_again() -> None:
    """After an hour; sooner, at first, where something cannot be written meanwhile."""
    limits = Limits("/root")
    for now in (1000.0, 1001.0):
        limits.unanswered(400_000, now)
    assert limits.most_bytes == 200_000
    limits.try_more(1001.0 + 3600.0)
    assert limits.most_bytes == 200_000
    limits.try_more(1001.0 + 3601.0)
    assert limits.most_bytes == 400_000
    limits.fall_short()
    limits.try_more(4602.0 + 120.0)
    assert limits.most_bytes == 400_000
    limits.fall_short()
    limits.try_more(4602.0 + 121.0)
    assert limits.most_bytes == 800_000
    limits.fall_short()
    limits.try_more(10_000.0)
    assert limits.most_bytes == MOST_BYTES


def test_in_proportion() -> None:
    """A page, the outbox beside it and the longest name fit into a transaction, whatever it may
    hold."""
    limits = Limits("/root")
    assert (limits.largest_page, limits.largest_outbox) == (LARGEST_PAGE, LARGEST_OUTBOX)
    for most in (MOST_BYTES, 500_000, 16_000):
        limits.most_bytes = most
        whole = limits.largest_page + limits.largest_outbox + 2 * limits.longest_name
        assert whole <= most
        assert limits.enough <= most // 2
