"""The words for reading from ZooKeeper and writing to it. Pure: no I/O, no kazoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from ..security import Grant


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
    """`acl`: the rights on it; None: those of :attr:`.Access.grants`."""

    path: str
    data: bytes
    ephemeral: bool = False
    acl: tuple[Grant, ...] | None = None


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


class Handle(NamedTuple):
    """All that it takes to go on with a session, or to end it. `servers`: name, address and port of
    each."""

    id: int
    password: bytes
    servers: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Pending:
    """A transaction on its way. Answers of one connection come in the order of the requests.

    Attributes:
        sent: just before it was sent, on :func:`.clock.boottime`: the server has heard of us since
            then. Not just after, for a process may be stopped in between.
        answered: tells without waiting.
        result: waits for the answer: the new data version of each operation's znode, in order (0
            for a created one, the checked one for a check, -1 for a deleted one). It raises
            Conflict where a znode was not as the transaction said, and another ZooKeeperError where
            it was refused for another reason (rights, quota): then nothing was done. With
            Uncertain, no answer, it may or may not have been done.
    """

    sent: float
    answered: Callable[[], bool]
    result: Callable[[], list[int]]


def changed_path(event: object) -> str | None:
    """Returns the znode of which a watch tells; None: the connection is lost, so it may be any."""
    return getattr(event, "path", None)
