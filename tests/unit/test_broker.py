"""How failures of the broker are borne."""

from __future__ import annotations

import math
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import broker
from celery_zk_beat.broker import BackOff, broker_digest, comes_from


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("redis://h", "redis://user:secret@H:6379/0"),
        ("amqp://guest:guest@h//", "pyamqp://h:5672"),
        ("amqp://a;amqp://b", ["amqp://b:5672//", "amqp://a"]),
        ("sentinel://a;sentinel://b/0", "sentinel://b:26379;sentinel://a"),
    ],
)
def test_one_broker(one: Any, other: Any) -> None:
    assert digest(one) == digest(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("redis://h/0", "redis://h/1"),
        ("redis://h", "redis://i"),
        ("redis://h", "redis://h:6380"),
        ("amqp://h/production", "amqp://h/staging"),
        ("amqp://a;amqp://b", "amqp://a"),
    ],
)
def test_two_brokers(one: str, other: str) -> None:
    assert digest(one) != digest(other)


def test_parts_of_an_address() -> None:
    """One Redis for two environments, whose keys begin otherwise."""
    assert digest("redis://h", global_keyprefix="a") != digest("redis://h", global_keyprefix="b")
    assert digest("redis://h", socket_timeout=1) == digest("redis://h")


def test_an_address_that_nobody_understands() -> None:
    assert digest("no-such-transport://h") is None


def digest(url: Any, **options: Any) -> str | None:
    app = Celery(broker=url, set_as_current=False)
    app.conf.broker_transport_options = options
    return broker_digest(app)
