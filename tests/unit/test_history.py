"""Past runs go from the states into the histories: when, how many, and none is lost. Pure: no
I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone

import pytest

from celery_zk_beat import history
from celery_zk_beat.history import (
    Histories,
    Pasts,
    Volume,
    decode_volume,
    encode_volume,
    merged,
    share,
)
from celery_zk_beat.limits import Limits
from celery_zk_beat.paths import Paths, volume_of
from celery_zk_beat.runs import PastRun, RunState
from celery_zk_beat.zookeeper.operations import Create, Node, Operation, SetData

PATHS = Paths("/root")
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)
#: The page of the entry e.
PAGE = "3f7"
PATH = PATHS.volume(volume_of(PAGE))


@pytest.fixture(autouse=True)
def small_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written as soon as large ones would be."""
    monkeypatch.setattr(history, "_LEAST", 0)


def ran(*numbers: int, note: str | None = None) -> tuple[PastRun, ...]:
    return tuple(PastRun.of(number, NOW, NOW, 1, note) for number in numbers)


SKIPPED = PastRun.of(None, NOW, NOW, 1, "skipped: it is paused")


@pytest.mark.parametrize(
    ("old", "new", "most", "expected"),
    [
        ((), ran(1, 2), 20, ran(1, 2)),
        (ran(1, 2), ran(3), 20, ran(1, 2, 3)),
        (ran(1, 2), ran(2, 3), 20, ran(1, 2, 3)),  # it was taken over, and stands there still
        (ran(1, 2, 3), ran(2, note="late"), 20, (*ran(1), *ran(2, note="late"), *ran(3))),
        ((*ran(1), SKIPPED), (SKIPPED, *ran(2)), 20, (*ran(1), SKIPPED, *ran(2))),
        (ran(1, 2), ran(3, 4), 3, ran(2, 3, 4)),
        (ran(1, 2), ran(3), 0, ()),
        (ran(3), ran(1, 2, 3), 1, ran(3)),  # taken over before, and cut: not as the newest again
        (ran(3), ran(1, 2, 3, 4), 1, ran(4)),
        (ran(2, 3), (*ran(4), *ran(3, note="late")), 20, (*ran(2), *ran(3, note="late"), *ran(4))),
    ],
)
def test_both_together(
    old: tuple[PastRun, ...], new: tuple[PastRun, ...], most: int, expected: tuple[PastRun, ...]
) -> None:
    """Each once, in their order, and the state knows better."""
    assert merged(old, new, most) == expected


@pytest.mark.parametrize(("entries", "each"), [(0, 20), (1, 20), (10, 20), (40, 5), (400, 1)])
def test_how_many_are_kept(entries: int, each: int) -> None:
    assert share(entries) == each


def test_what_is_too_large_is_cut() -> None:
    """The oldest go; entries that are no more are forgotten."""
    volume = Volume({"e": ran(*range(1, 20)), "gone": ran(1)}, 7, 0)
    after, operation = volume.after(PATH, {"e": ran(20), "f": ()}, 10_000)
    assert after.pasts == {"e": ran(*range(1, 21))}
    after, operation = volume.after(PATH, {"e": ran(20)}, 400)
    assert after.pasts == {"e": ran(*range(11, 21))}
    assert operation == SetData(PATH, encode_volume(after.pasts), 7)
    assert (after.version, after.size) == (8, len(operation.data))


class States:
    """One entry's."""

    def __init__(self) -> None:
        self.past: tuple[PastRun, ...] = ()
        self.number = 0
        self.is_damaged = False

    def run(self, histories: Histories) -> None:
        self.number += 1
        self.past = (*self.past, *ran(self.number))
        histories.note_written(PAGE, {"e": RunState(NOW, past=self.past)})

    def pasts(self, volume: str) -> Pasts | None:
        return None if self.is_damaged else {"e": self.past}

    def take_over(self, pasts: Pasts) -> None:
        assert pasts == {"e": self.past}
        self.past = ()


class There:
    """What can be read; and how often it was."""

    def __init__(self, data: bytes | None) -> None:
        self.node = None if data is None else Node(data, 3, 0)
        self.count = 0

    def read_all(self, paths: Sequence[str]) -> list[Node | None]:
        self.count += len(paths)
        return [self.node for _ in paths]


def write(
    histories: Histories, states: States, there: There, room: int = 1_000_000
) -> list[Operation]:
    return histories.write(states, there.read_all, room)


def test_a_history_is_written_when_it_pays() -> None:
    """Once the past runs have cost, in states, what the history costs."""
    histories, states, there = Histories(PATHS, Limits("/root")), States(), There(None)
    assert write(histories, states, there) == []
    written: list[int] = []
    for number in range(1, 200):
        states.run(histories)
        if operations := write(histories, states, there):
            written.append(number)
            (operation,) = operations
            assert operation.path == PATH
            assert states.past == ()
    assert there.count == 1
    # At once what is small, and of 20 past runs each sixth or seventh.
    assert written[0] == 1
    apart = [b - a for a, b in zip(written, written[1:])]
    assert apart[0] < 3
    assert 5 <= apart[-1] <= 8


def test_a_small_history_is_not_written_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_LEAST", 2_000)
    histories, states, there = Histories(PATHS, Limits("/root")), States(), There(None)
    written = []
    for number in range(1, 31):
        states.run(histories)
        if write(histories, states, there):
            written.append(number)
    assert written == [10, 20, 30]


def test_what_is_there_is_kept() -> None:
    """It is read before it is written; where it is large, that has to pay first."""
    histories, states = Histories(PATHS, Limits("/root")), States()
    old = tuple(PastRun.of(n, NOW, NOW, 1, "x" * 30) for n in range(81, 101))
    there = There(encode_volume({"e": old}))
    writes: list[Operation] = []
    while not writes:
        states.run(histories)
        writes = write(histories, states, there)
    (operation,) = writes
    assert isinstance(operation, SetData)
    assert operation.version == 3
    numbers = [past.number for past in decode_volume(PATH, operation.data)["e"]]
    assert len(numbers) == 20
    assert numbers[-1] == states.number < 20
    assert 100 in numbers


def test_there_is_no_room() -> None:
    """It waits; nothing is forgotten meanwhile."""
    histories, states, there = Histories(PATHS, Limits("/root")), States(), There(None)
    states.run(histories)
    assert write(histories, states, there, room=0) == []
    assert write(histories, states, there, room=50) == []
    assert states.past == ran(1)
    (operation,) = write(histories, states, there)
    assert isinstance(operation, Create)


def test_one_for_which_there_is_no_room_keeps_no_other() -> None:
    histories, there = Histories(PATHS, Limits("/root")), There(None)
    large = {f"e{n}": ran(1, note="x" * 200) for n in range(20)}
    pasts: dict[str, Pasts] = {"aa": large, "bb": {"e": ran(1)}}
    taken: list[Pasts] = []

    class Both:
        def pasts(self, volume: str) -> Pasts:
            return pasts[volume]

        def take_over(self, pasts: Pasts) -> None:
            taken.append(pasts)

    for page, volume in (("aa0", "aa"), ("bb0", "bb")):
        states = {name: RunState(NOW, past=past) for name, past in pasts[volume].items()}
        histories.note_written(page, states)
    (operation,) = histories.write(Both(), there.read_all, 2_000)
    assert operation.path == PATHS.volume("bb")
    assert taken == [pasts["bb"]]
    assert histories.due_since < math.inf
    (operation,) = histories.write(Both(), there.read_all, 20_000)
    assert operation.path == PATHS.volume("aa")
    assert histories.due_since == math.inf


def test_one_that_cannot_be_understood(caplog: pytest.LogCaptureFixture) -> None:
    """It is named, once, and left alone: the states keep what they can."""
    histories, states, there = Histories(PATHS, Limits("/root")), States(), There(b"[]")
    for _ in range(3):
        states.run(histories)
        assert write(histories, states, there) == []
    assert len(caplog.messages) == 1
    assert histories.is_damaged
    assert PATH in caplog.text
    assert there.count == 1
    assert states.past == ran(1, 2, 3)


def test_a_page_that_cannot_be_understood() -> None:
    """The past of its entries is not forgotten with it."""
    histories, states, there = Histories(PATHS, Limits("/root")), States(), There(None)
    states.is_damaged = True
    states.run(histories)
    assert write(histories, states, there) == []
    states.is_damaged = False
    states.run(histories)
    assert len(write(histories, states, there)) == 1
