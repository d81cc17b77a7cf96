"""How failures of the broker are borne."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from typing import Any

import amqp
import pytest
import redis
from celery import Celery
from celery.beat import SchedulingError
from kombu.exceptions import EncodeError, OperationalError

from celery_zk_beat import broker
from celery_zk_beat.broker import BackOff, Broker, Fault, broker_digest, comes_from


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("celery_zk_beat.clock.boottime", lambda: now[0])
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


def error_of_rabbitmq(code: int, method: tuple[int, int]) -> Exception:
    """As py-amqp raises it when the server closes a channel, or the connection."""
    error: Exception = amqp.exceptions.error_for_code(code, "no", method, amqp.ConnectionError)
    return error


@contextlib.contextmanager
def as_celery_wraps_it() -> Iterator[None]:
    """In its beat, and in what sends a message."""
    try:
        try:
            yield
        except (
            OSError,
            amqp.exceptions.MessageNacked,
            amqp.exceptions.RecoverableChannelError,
        ) as exc:
            raise OperationalError(str(exc)) from exc
    except Exception as exc:
        raise SchedulingError("Couldn't apply scheduled task") from exc


def fault(url: str, error: Exception, *, of_broker: bool) -> Fault:
    road = Broker(Celery(broker=url, set_as_current=False), lambda: 4.0, lambda: None)
    try:
        with as_celery_wraps_it(), broker._of_broker() if of_broker else contextlib.nullcontext():
            raise error
    except Exception as exc:
        return road.fault(exc)


PUBLISH, DECLARE, NONE = (60, 40), (50, 10), (0, 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), Fault.AWAY),
        (TimeoutError(), Fault.AWAY),
        (amqp.RecoverableConnectionError("basic_publish: timed out"), Fault.AWAY),
        (error_of_rabbitmq(320, NONE), Fault.AWAY),
        (error_of_rabbitmq(541, PUBLISH), Fault.AWAY),
        (amqp.exceptions.MessageNacked(), Fault.PASSING),
        (error_of_rabbitmq(404, PUBLISH), Fault.PASSING),
        (error_of_rabbitmq(403, PUBLISH), Fault.PASSING),
        (error_of_rabbitmq(405, DECLARE), Fault.PASSING),
        (error_of_rabbitmq(406, DECLARE), Fault.PASSING),
        (error_of_rabbitmq(540, PUBLISH), Fault.PASSING),
        (amqp.exceptions.FrameSyntaxError("no such type"), Fault.LASTING),
        (struct.error("too long"), Fault.LASTING),
        (AttributeError("py-amqp, of a lost connection"), Fault.PASSING),
    ],
    ids=repr,
)
def test_whose_fault_it_is_with_rabbitmq(error: Exception, expected: Fault) -> None:
    assert fault("amqp://", error, of_broker=True) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.ConnectionError(), Fault.AWAY),
        (redis.TimeoutError(), Fault.AWAY),
        (redis.AuthenticationError(), Fault.AWAY),
        (redis.ResponseError("WRONGTYPE"), Fault.PASSING),
        (EncodeError("no JSON"), Fault.LASTING),
        (TypeError("no JSON"), Fault.LASTING),
        (KeyError("queue"), Fault.PASSING),
    ],
    ids=repr,
)
def test_whose_fault_it_is_with_redis(error: Exception, expected: Fault) -> None:
    assert fault("redis://", error, of_broker=True) is expected


@pytest.mark.parametrize("url", ["redis://", "amqp://"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(), Fault.PASSING),
        (ConnectionResetError(), Fault.PASSING),
        (TimeoutError(), Fault.PASSING),
        (redis.ConnectionError(), Fault.PASSING),
        (type("OperationalError", (Exception,), {})("of a database"), Fault.PASSING),
        (ValueError(), Fault.LASTING),
        (TypeError("missing 1 required argument"), Fault.LASTING),
        (EncodeError(), Fault.LASTING),
        (KeyError("no such queue"), Fault.LASTING),
        (type("AlreadyQueued", (Exception,), {})(3), Fault.LASTING),
    ],
    ids=repr,
)
def test_whose_fault_it_is_while_it_is_made(url: str, error: Exception, expected: Fault) -> None:
    """By functions of the user's: it is never that of the broker."""
    assert fault(url, error, of_broker=False) is expected
