"""The words for reading from ZooKeeper and writing to it. Pure: no I/O, no kazoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True)
class Node:
    """A znode as it was read. `data` is empty also where there is none, `owner` the session of an
    ephemeral one, else 0; `mtime` is the server's clock when it was written, seconds since 1970."""

    data: bytes
    version: int
    owner: int
    mtime: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Create:
    path: str
    data: bytes
    ephemeral: bool = False


@dataclass(frozen=True)
class SetData:
    path: str
    data: bytes
    version: int = -1


@dataclass(frozen=True)
class Check:
    path: str
    version: int


@dataclass(frozen=True)
class Delete:
    path: str
    version: int = -1


Operation = Union[Create, SetData, Check, Delete]


class Pending:
    """A transaction on its way. Answers of one connection come in the order of the requests.

    Args:
        sent: just before it was sent, on :func:`.clock.boottime`: the server has heard of us since
            then. Not just after, for a process may be stopped in between.
        is_answered: tells without waiting.
        wait: is :meth:`result`.
    """

    def __init__(
        self, sent: float, is_answered: Callable[[], bool], wait: Callable[[], list[int]]
    ) -> None:
        self.sent = sent
        self._is_answered = is_answered
        self._wait = wait

    @property
    def answered(self) -> bool:
        return self._is_answered()

    def result(self) -> list[int]:
        """Waits for the answer: the new data version of each operation's znode, in order (0 for
        a created one, the checked one for a check, -1 for a deleted one).

        Raises:
            Conflict: a znode was not as the transaction said; nothing was done.
            Uncertain: no answer, so it may or may not have been done.
            ZooKeeperError: refused for another reason (rights, quota); nothing was done.
        """
        return self._wait()


def changed_path(event: object) -> str | None:
    """Returns the znode of which a watch tells; None: the connection is lost, so it may be any."""
    return getattr(event, "path", None)
