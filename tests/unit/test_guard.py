"""What a guard takes for the death of its beat; process and protocol are in integration/."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from celery_zk_beat.guard.program import FAREWELL, events, last_words


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        ([b"one", b"two", None], b"two"),
        ([b"one", b"", None], b"one"),
        ([b"one", FAREWELL], b""),
        ([b"", None], b""),
    ],
    ids=["dead", "dead, after its link", "ended in order", "dead before it said anything"],
)
def test_last_words(happens: list[bytes | None], words: bytes) -> None:
    assert last_words(iter(happens)) == words


def test_only_the_kernel_says_that_a_beat_is_dead() -> None:
    """Not the end of the link, however long the beat lives after it."""

    def alive() -> Iterator[bytes | None]:
        yield b"one"
        yield b""
        raise TimeoutError("it waits")

    with pytest.raises(TimeoutError, match="it waits"):
        last_words(alive())


@pytest.fixture
def links() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_what_a_dead_beat_has_said_is_heard(links: tuple[socket.socket, socket.socket]) -> None:
    """All of it, before the death itself: the session that it named last is the one to end."""
    ours, theirs = links
    beat = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(beat.pid)
    ours.send(b"one")
    ours.send(b"two")
    ours.close()
    happens = events(pidfd, theirs)
    assert [next(happens) for _ in range(3)] == [b"one", b"two", b""]
    beat.kill()
    assert next(happens) is None
    beat.communicate()
    os.close(pidfd)
