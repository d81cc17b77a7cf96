"""ZooKeeper's quotas: the hard limits of a znode, and how much of them is used up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import ZkBeatError
from .operations import Node

#: Where ZooKeeper keeps quotas.
_QUOTAS = "/zookeeper/quota"


@dataclass(frozen=True)
class Quota:
    """The hard limits of a znode, and what lies below it, by ZooKeeper's own count.

    Attributes:
        path: the znode.
        used: how many bytes and znodes.
        most: the limit of each; None if there is none.
    """

    path: str
    used: tuple[int, int]
    most: tuple[int | None, int | None]

    @property
    def is_tight(self) -> bool:
        """True if little more can be written. ZooKeeper does not count refused writes, so a quota
        that is used up may still show some room."""
        pairs = zip(self.used, self.most)
        return any(most is not None and used >= 0.9 * most for used, most in pairs)

    @property
    def limits(self) -> str:
        """Names the limits for people."""
        kinds = zip(self.most, ("bytes", "znodes"))
        return " and ".join(f"{most} {kind}" for most, kind in kinds if most is not None)

    @property
    def remedy(self) -> str:
        kinds = zip(self.most, ("-B BYTES", "-N ZNODES"))
        raise_it = " ".join(option for most, option in kinds if most is not None)
        return (
            f"zkCli.sh setquota {raise_it} {self.path} raises it, delquota {self.path} removes it"
        )


def quota_of(path: str, read_all: Callable[[Sequence[str]], list[Node | None]]) -> Quota | None:
    """Finds the quota of `path`, or of a znode above it (a path has at most one in ZooKeeper).
    Returns None if there is none with hard limits, or if we may not read it."""
    steps = path.strip("/").split("/")
    above = ["/" + "/".join(steps[: count + 1]) for count in range(len(steps))]
    with contextlib.suppress(ZkBeatError):
        nodes = read_all([f"{_QUOTAS}{each}/zookeeper_limits" for each in above])
        for each, node in zip(above, nodes):
            limits = {} if node is None else _numbers(node.data)
            byte_limit, count_limit = (
                limits[name] if limits.get(name, -1) >= 0 else None
                for name in ("byteHardLimit", "countHardLimit")
            )
            most = byte_limit, count_limit
            if most != (None, None):
                (stats,) = read_all([f"{_QUOTAS}{each}/zookeeper_stats"])
                used = {} if stats is None else _numbers(stats.data)
                return Quota(each, (used.get("bytes", 0), used.get("count", 0)), most)
    return None


def _numbers(data: bytes) -> dict[str, int]:
    """Reads ``name=number`` pairs, as ZooKeeper writes a quota."""
    text = data.decode("ascii", "replace")
    return {name: int(number) for name, number in re.findall(r"(\w+)=(-?[0-9]{1,18})", text)}
