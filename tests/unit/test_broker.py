"""How failures of the broker are borne."""

from __future__ import annotations

import math

import pytest

from celery_zk_beat import broker
from celery_zk_beat.broker import BackOff, comes_from


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(broker, "boottime", lambda: now[0])
    return now


def test_pauses_grow(clock: list[float]) -> None:
    """Up to a longest, which is short where the broker is away."""
    back_off = BackOff()
    assert [back_off.punish(None) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert [back_off.punish("a") for _ in range(9)][-3:] == [6.4, 10.0, 10.0]


def test_who_waits(clock: list[float]) -> None:
    """One entry, or all of them; the first of several is what counts."""
    back_off = BackOff()
    back_off.punish("a")
    assert back_off.left(["a"]) == pytest.approx(0.1)
    assert back_off.left(["b"]) < 0
    assert back_off.left(["a", "b"]) < 0
    assert back_off.left([]) == math.inf
    for _ in range(3):
        back_off.punish(None)
    assert back_off.left(["a"]) == back_off.left(["b"]) == pytest.approx(0.4)
    clock[0] += 0.5
    assert back_off.left(["a", "b"]) < 0


def test_a_success_ends_the_pause_of_all(clock: list[float]) -> None:
    """But not that of another entry, whose fault it was."""
    back_off = BackOff()
    for who in ("a", "b", None):
        back_off.punish(who)
    back_off.forgive("a")
    assert back_off.left(["a"]) < 0 < back_off.left(["b"])
    assert back_off.punish("a") == 0.1


def test_what_an_error_comes_from() -> None:
    """Celery wraps what the transport raises."""
    try:
        try:
            raise ConnectionResetError
        except ConnectionResetError as exc:
            raise RuntimeError("wrapped") from exc
    except RuntimeError as exc:
        wrapped = exc
    assert comes_from(wrapped, [ConnectionError])
    assert not comes_from(wrapped, [KeyError, TimeoutError])
    assert comes_from(KeyError(), [KeyError])
