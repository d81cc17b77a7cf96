"""Every error that this package raises on purpose. Each message names the setting or the znode,
the value, and what to do about it."""

from __future__ import annotations


class ZkBeatError(Exception):
    """The base of all errors of celery-zk-beat."""


class SettingsError(ZkBeatError, ValueError):
    """A setting has a value that cannot work; found before anything connects."""


class UnsupportedEnvironment(ZkBeatError, RuntimeError):
    """The process is of a kind that this package does not run in (gevent, eventlet)."""


class RootError(ZkBeatError):
    """The znodes under the root are not ours to use: another app's, or of an unknown format."""


class TooLarge(ZkBeatError):
    """A record would be larger than the master reads; nothing was written."""


class ConnectTimeout(ZkBeatError, TimeoutError):
    """ZooKeeper did not answer within the connect time-out that was asked for."""


class ZooKeeperError(ZkBeatError):
    """ZooKeeper answered a request with a refusal that is not part of the protocol."""


class AccessDenied(ZooKeeperError):
    """ZooKeeper knows who asks, or does not, and says no."""


class QuotaExceeded(ZooKeeperError):
    """A write would grow what is below a znode beyond its quota."""


class Uncertain(ZkBeatError):
    """A request got no answer (connection lost, or too late): it may or may not have happened.

    There is one way on: read the state anew, then decide.
    """


class Conflict(ZkBeatError):
    """A transaction was refused, whole, because a znode was not as it said: a normal answer.

    Attributes:
        path: the znode.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


class NotMaster(ZkBeatError):
    """A write was refused because its epoch is over: another was elected, or nobody is master."""
