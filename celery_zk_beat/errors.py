"""All errors that this package raises on purpose. Each message names the setting or the znode, the
value, and what to do."""

from __future__ import annotations

from reprlib import Repr

#: Not all of what may be large, or so deep that repr() gives up.
_shown = Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 80
_repr = _shown.repr


class ZkBeatError(Exception):
    """The base of all errors of celery-zk-beat."""


class SettingsError(ZkBeatError, ValueError):
    """A setting has a value that cannot work. Raised before anything connects."""


class UnsupportedEnvironment(ZkBeatError, RuntimeError):
    """The process is of a kind that this package does not support (gevent, eventlet)."""


class RootError(ZkBeatError):
    """The znodes under the root belong to another app, or have an unknown format."""


class TooLarge(ZkBeatError):
    """A record would be larger than the master reads. Nothing was written."""


class EntryError(ZkBeatError, ValueError):
    """What is said of a live entry cannot be.

    Attributes:
        name: of the entry.
        field: what of it, such as "task" or "options.queue"; None: all of it.
        value: what was given.
        accepted: what is accepted.
        what: the message without the name.
    """

    def __init__(self, name: str, field: str | None, value: object, accepted: str) -> None:
        shown = _repr(value)
        self.what = f"{field or 'the entry'} is {shown}: expected {accepted}"
        super().__init__(f"{name:.200}: {self.what}")
        self.name, self.field, self.value, self.accepted = name, field, value, accepted


class VersionConflict(ZkBeatError):
    """A live entry is of another version than was asked for; nothing was changed.

    Attributes:
        name: of the entry.
        wanted: the version that it was to have, 0: that it was not to be there.
        found: the version that it has, 0: it is not there.
    """

    def __init__(self, name: str, wanted: int, found: int) -> None:
        is_there = f"is of version {found}" if found else "is not there"
        expected = f"version {wanted}" if wanted else "no such entry"
        super().__init__(f"{name:.200}: {is_there}, expected {expected}: nothing was changed")
        self.name, self.wanted, self.found = name, wanted, found


class ConnectTimeout(ZkBeatError, TimeoutError):
    """ZooKeeper did not answer within the connect time-out."""


class ZooKeeperError(ZkBeatError):
    """ZooKeeper refused a request, and the protocol does not expect that."""


class AccessDenied(ZooKeeperError):
    """ZooKeeper does not allow this user, or an unknown one, to do that."""


class QuotaExceeded(ZooKeeperError):
    """A write would exceed the quota of a znode."""


class Uncertain(ZkBeatError):
    """A request got no answer, or too late: it may or may not have been done.

    Read the state again, then decide.
    """


class Conflict(ZkBeatError):
    """A transaction was refused as a whole, because a znode was not as it expected. This is normal.

    Attributes:
        path: the znode.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


class Outdated(Conflict):
    """A claim was refused for one reason alone: what it goes by, such as the pauses, is no longer
    as it was read. The run states are as they were."""


class NotMaster(ZkBeatError):
    """A write was refused because its epoch is over: another beat, or none, is master."""
