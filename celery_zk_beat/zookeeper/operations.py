"""The records with which we read from ZooKeeper and write to it. Pure: no I/O, no kazoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from ..security import Grant


@dataclass(frozen=True)
class Node:
    """A znode as it was read. `data` is empty if the znode has none. `owner` is the session of an
    ephemeral znode, else 0. `mtime` is when it was written, by the server's clock, in seconds since
    1970."""

    data: bytes
    version: int
    owner: int
    mtime: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Create:
    """`acl`: the rights on the znode; None: :attr:`.Access.grants`."""

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
    """All that one needs to continue a session or to end it. `servers`: name, address and port of
    each."""

    id: int
    password: bytes
    servers: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Pending:
    """A transaction on its way. Answers of one connection come in the order of the requests.

    Attributes:
        sent: when it was about to be sent, by :func:`.clock.boottime`. If it is answered, the
            server has heard from us since then. Not the time afterwards: the process may be stopped
            in between.
        answered: says, without waiting, whether the answer is there.
        result: waits for the answer. Returns the new data version of each operation's znode, in
            order: 0 for a created one, the checked one for a check, -1 for a deleted one. Raises
            Conflict if a znode was not as the transaction said, and another ZooKeeperError if it
            was refused for another reason (rights, quota): in both cases nothing was done. Raises
            Uncertain if there is no answer: then it may or may not have been done.
    """

    sent: float
    answered: Callable[[], bool]
    result: Callable[[], list[int]]


def changed_path(event: object) -> str | None:
    """Returns the path of the znode that a watch reports. None: the connection is lost, so any
    znode may have changed."""
    return getattr(event, "path", None)
