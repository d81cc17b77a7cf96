"""When a candidate holds back, by table: nobody waits for a clock here."""

from __future__ import annotations

import pytest

from celery_zk_beat.election.restraint import RESIGN_PAUSE, Restraint


def nobody_asks() -> bool:
    raise AssertionError("the members need not be read for this")


def test_after_a_resignation() -> None:
    """It leaves the field to others for a moment, whoever they are, and then contends."""
    restraint = Restraint()
    assert restraint.seconds(50.0, nobody_asks) <= 0
    restraint.resigned(100.0)
    assert restraint.seconds(100.0, nobody_asks) == RESIGN_PAUSE
    assert restraint.seconds(100.25, nobody_asks) == RESIGN_PAUSE - 0.25
    assert restraint.seconds(100.0 + RESIGN_PAUSE, nobody_asks) <= 0


@pytest.mark.parametrize(
    ("times", "patience"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (5000, 10.0)]
)
def test_who_was_useless_stands_back(times: int, patience: float) -> None:
    """Longer each time, up to ten seconds of vacancy; it looks once a second whether another that
    is of use is still there, and contends where none is."""
    restraint = Restraint()
    for _ in range(times):
        restraint.take_for_useless("no broker")
    restraint.vacant_since = 100.0
    nearly = 100.0 + patience - 0.125
    assert restraint.seconds(100.0, lambda: True) == 1.0
    assert restraint.seconds(nearly, lambda: True) == 0.125
    assert restraint.seconds(nearly, lambda: False) <= 0
    assert restraint.seconds(100.0 + patience, nobody_asks) <= 0


def test_who_can_do_something_again() -> None:
    """It contends at once. What it could do as a standby does not have the times begin anew."""
    restraint = Restraint()
    restraint.vacant_since = 100.0
    restraint.take_for_useless("no broker")
    assert restraint.take_for_useful(as_master=False)
    assert not restraint.take_for_useful(as_master=False)
    assert restraint.seconds(100.0, nobody_asks) <= 0
    restraint.take_for_useless("no broker")
    assert restraint.seconds(101.5, lambda: True) == 0.5
    restraint.take_for_useful(as_master=True)
    restraint.take_for_useless("no broker")
    assert restraint.seconds(101.5, nobody_asks) <= 0


def test_who_was_useless_while_there_is_a_master() -> None:
    """Without a vacancy it is not held back: the successor that a master names takes over."""
    restraint = Restraint()
    restraint.take_for_useless("no broker")
    assert restraint.seconds(100.0, nobody_asks) <= 0
