"""Translates kazoo's answers into ours: data versions and errors. Adds error codes that kazoo does
not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kazoo import exceptions
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import ZnodeStat

from ..errors import AccessDenied, Conflict, QuotaExceeded, Uncertain, ZkBeatError, ZooKeeperError
from ..security import Access
from .operations import Check, Create, Delete, Operation, SetData
from .quota import Quota

#: Answers of ZooKeeper 3.8 (KeeperException.Code) that kazoo 2.11 does not know. Each would end
#: kazoo's loop.
_UNKNOWN_TO_KAZOO = {
    -13: "NewConfigNoQuorum",
    -14: "ReconfigInProgress",
    -123: "ReconfigDisabled",
    -124: "SessionClosedRequireSaslAuth",
    -125: "QuotaExceeded",
    -127: "ThrottledOp",
}
for _code, _name in _UNKNOWN_TO_KAZOO.items():
    _class = type(_name, (exceptions.ZookeeperError,), {"code": _code})
    exceptions.EXCEPTIONS.setdefault(_code, _class)

_UNCERTAIN = (
    exceptions.ConnectionLoss,
    exceptions.ConnectionClosedError,
    KazooTimeoutError,
    exceptions.OperationTimeoutError,
    exceptions.SessionExpiredError,
    exceptions.SessionMovedError,
)
_CONFLICTS = (
    *(exceptions.NodeExistsError, exceptions.NoNodeError, exceptions.BadVersionError),
    exceptions.NotEmptyError,
)
_OVER_QUOTA = exceptions.EXCEPTIONS[-125]
#: The last one is the answer of a server that demands credentials of all clients.
_DENIALS = (exceptions.NoAuthError, exceptions.AuthFailedError, exceptions.EXCEPTIONS[-124])
#: The answers of the operations of a refused transaction that did not cause the refusal.
_BYSTANDER = (exceptions.RolledBackError, exceptions.RuntimeInconsistency)
#: The types that kazoo's answers have.
_KINDS = {Create: str, SetData: ZnodeStat, Check: bool, Delete: bool}


def refusal(
    operations: Sequence[Operation], answers: Sequence[Any]
) -> tuple[str, Exception] | None:
    """Finds the znode and the error because of which a transaction was refused. None: it was
    done."""
    for operation, answer in zip(operations, answers):
        if isinstance(answer, Exception) and not isinstance(answer, _BYSTANDER):
            path = operation.path
            # The rights to create and to delete are rights on the parent.
            on_parent = isinstance(operation, (Create, Delete))
            if on_parent and isinstance(answer, exceptions.NoAuthError):
                path = path.rpartition("/")[0] or "/"
            return path, answer
    return None


def versions(operations: Sequence[Operation], answers: Sequence[Any]) -> list[int]:
    """Returns the data versions that :meth:`.Pending.result` promises.

    Raises:
        Uncertain: these answers do not match these operations.
    """
    if [type(answer) for answer in answers] != [_KINDS[type(each)] for each in operations]:
        raise Uncertain(f"{operations[0].path}: an answer that matches no request")
    return [_version_after(each, answer) for each, answer in zip(operations, answers)]


def _version_after(operation: Operation, answer: Any) -> int:
    if isinstance(operation, SetData):
        return int(answer.version)
    if isinstance(operation, Check):
        return operation.version
    return 0 if isinstance(operation, Create) else -1


def error(
    path: str, exc: Exception, access: Access, quota: Callable[[], Quota | None]
) -> ZkBeatError:
    """Turns kazoo's error about the znode `path` into ours. `quota` finds the quota that applies to
    it."""
    name = type(exc).__name__
    if isinstance(exc, _CONFLICTS):
        return Conflict(path, name)
    if isinstance(exc, _UNCERTAIN):
        return Uncertain(f"{path}: no answer from ZooKeeper ({name})")
    if isinstance(exc, _DENIALS):
        return denied(path, access, name.replace("Error", ""))
    if isinstance(exc, _OVER_QUOTA):
        return _over_quota(path, quota())
    return ZooKeeperError(f"{path}: refused by ZooKeeper ({name}{f': {exc}' if str(exc) else ''})")


def denied(path: str, access: Access, name: str = "NoAuth") -> AccessDenied:
    """Makes an error that names the settings with the credentials, or those that could hold
    them."""
    if not access.identified:
        names = access.credentials("or")
        return AccessDenied(f"{path}: denied by ZooKeeper ({name}): no credentials: set {names}")
    names = access.credentials("and")
    return AccessDenied(
        f"{path}: denied by ZooKeeper ({name}) to the user of {names}: is that the right one, "
        f"and is it in the znode's ACL (getAcl {path})?"
    )


def _over_quota(path: str, quota: Quota | None) -> QuotaExceeded:
    """Makes an error that names the quota, not the znode that was to be written: other znodes below
    the quota use it up as well."""
    if quota is None:
        return QuotaExceeded(
            f"{path}: refused by ZooKeeper (QuotaExceeded): the quota of this znode, or of one "
            "above it, is used up: zkCli.sh listquota shows it, setquota raises it, delquota "
            "removes it"
        )
    return QuotaExceeded(
        f"ZooKeeper refuses to write below {quota.path} (QuotaExceeded): the quota of "
        f"{quota.limits} of that znode is used up: {quota.remedy}"
    )
