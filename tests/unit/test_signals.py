"""Signals are sent on a thread of their own, and no receiver disturbs who announces."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery.utils.dispatch import Signal

from celery_zk_beat import signals
from celery_zk_beat.signals import MOST_WAITING, Announcer
from example_project.processes import REPOSITORY, wait_until
from tests.conftest import PATIENCE


class Sender:
    pass


@pytest.fixture
def signal() -> Signal:
    return Signal(name="something", providing_args={"number"})


@pytest.fixture
def announcer() -> Iterator[Announcer]:
    announcer = Announcer(Sender())
    yield announcer
    announcer.close(PATIENCE)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a receiver waits for."""
    gate = threading.Event()
    yield gate
    gate.set()


def hang(signal: Signal, gate: threading.Event, announcer: Announcer) -> list[int]:
    """Has a receiver hang on event 0; what it gets is in the list."""
    got: list[int] = []

    def receiver(number: int, **more: Any) -> None:
        got.append(number)
        gate.wait(PATIENCE)

    signal.connect(receiver, weak=False)
    announcer.send(signal, number=0)
    wait_until(lambda: got, PATIENCE, "the receiver to hang")
    return got


def test_in_order_with_arguments(announcer: Announcer, signal: Signal) -> None:
    """On the announcer's thread, and the sender is the one that it was made for."""
    got: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @signal.connect
    def receiver(sender: Any, number: int, **more: Any) -> None:
        got.put((type(sender), number, threading.current_thread().name))

    for number in range(100):
        announcer.send(signal, number=number)
    assert [got.get(timeout=PATIENCE) for _ in range(100)] == [
        (Sender, number, "zk-beat-signals") for number in range(100)
    ]


def test_nothing_without_a_receiver(announcer: Announcer, signal: Signal) -> None:
    """Neither a thread nor a place in the queue."""
    for _ in range(2 * MOST_WAITING):
        announcer.send(signal, number=1)
    assert announcer._waiting.empty()
    assert announcer._thread is None


def test_one_thread_only(announcer: Announcer, signal: Signal) -> None:
    """However many announce the first event at once."""
    got: queue.SimpleQueue[int] = queue.SimpleQueue()
    barrier = threading.Barrier(8)

    @signal.connect
    def receiver(number: int, **more: Any) -> None:
        got.put(threading.get_ident())

    def announce() -> None:
        barrier.wait(PATIENCE)
        announcer.send(signal, number=1)

    announcing = [threading.Thread(target=announce) for _ in range(8)]
    for thread in announcing:
        thread.start()
    for thread in announcing:
        thread.join(PATIENCE)
    assert len({got.get(timeout=PATIENCE) for _ in range(8)}) == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_a_receiver_raises(
    announcer: Announcer, signal: Signal, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next event comes as ever."""
    got: queue.SimpleQueue[int] = queue.SimpleQueue()

    @signal.connect
    def receiver(number: int, **more: Any) -> None:
        got.put(number)
        raise error

    announcer.send(signal, number=1)
    announcer.send(signal, number=2)
    assert [got.get(timeout=PATIENCE) for _ in range(2)] == [1, 2]
    announcer.close(PATIENCE)
    assert sum("raised" in record.getMessage() for record in caplog.records) == 2


def test_a_receiver_hangs(
    announcer: Announcer,
    signal: Signal,
    gate: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who announces goes on; what does not fit into the queue is dropped, with one warning when it
    begins and one, with the number, when it is over."""
    got = hang(signal, gate, announcer)
    begun = time.monotonic()
    for number in range(1, MOST_WAITING + 301):
        announcer.send(signal, number=number)
    assert time.monotonic() - begun < PATIENCE / 2
    assert [record.getMessage() for record in caplog.records] == [
        "a receiver of the signal something takes too long: 1000 events wait, "
        "and further ones are dropped"
    ]
    gate.set()
    wait_until(lambda: len(caplog.records) == 2, PATIENCE, "the second warning")
    assert caplog.messages[1] == "300 events were dropped; signals are sent again"
    assert got == list(range(MOST_WAITING + 1))


def test_closed_while_a_receiver_hangs(
    signal: Signal, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits as long as it was told, once; the second call, of Celery's, does not wait again."""
    announcer = Announcer(Sender())
    hang(signal, gate, announcer)
    begun = time.monotonic()
    announcer.close(0.2)
    assert 0.2 <= time.monotonic() - begun < PATIENCE
    begun = time.monotonic()
    announcer.close(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    assert "takes too long: beat stops without it" in caplog.messages[0]


def test_closing_lets_them_end(signal: Signal) -> None:
    """What was announced before is sent; what comes after is not."""
    announcer = Announcer(Sender())
    got: list[int] = []

    @signal.connect
    def receiver(number: int, **more: Any) -> None:
        time.sleep(0.001)
        got.append(number)

    for number in range(50):
        announcer.send(signal, number=number)
    announcer.close(PATIENCE)
    assert got == list(range(50))
    announcer.send(signal, number=50)
    assert announcer._waiting.empty()
    assert got == list(range(50))


def test_closed_by_a_receiver(announcer: Announcer, signal: Signal) -> None:
    """It does not wait for itself."""
    done = threading.Event()

    @signal.connect
    def receiver(**more: Any) -> None:
        announcer.close(PATIENCE)
        done.set()

    announcer.send(signal, number=1)
    assert done.wait(PATIENCE / 2)


def test_no_thread_to_be_had(
    announcer: Announcer,
    signal: Signal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Announcing does not raise where the system gives no thread; one line says so."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    @signal.connect
    def receiver(**more: Any) -> None:
        """Never called."""

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for number in range(3):
            announcer.send(signal, number=number)
    announcer.close()
    assert caplog.messages == ["signals are not sent: can't start new thread"]


def test_names_and_arguments_are_documented() -> None:
    """docs/signals.md has each signal with each of its arguments."""
    text = (REPOSITORY / "docs" / "signals.md").read_text()
    for name in signals.__all__:
        signal = getattr(signals, name)
        assert signal.name == name
        rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
        assert len(rows) == 1
        assert all(f"`{argument}`" in rows[0] for argument in signal.providing_args)


def test_who_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Making and closing one leaves no trace."""
    with caplog.at_level(logging.DEBUG):
        Announcer(Sender()).close()
    ours = [record for record in caplog.records if record.name == signals.logger.name]
    assert ours == []
