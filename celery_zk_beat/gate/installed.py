"""Which ``beat_schedule`` was written into the store of another scheduler last, by any beat.

Those that have a store write what code defines over it whenever they are made: once in the life of
a process, by themselves; behind the election, at each of its elections. Then a change that was made
in the store would last until the next failover.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from celery import Celery

from ..election.public import MasterElection
from ..errors import RootError, ZooKeeperError
from ..log import get_logger
from ..names import without_addresses
from ..records import InstalledRecord
from ..zookeeper.operations import Check, Create, Node, SetData

logger = get_logger(__name__)


class Installed:
    """Of one beat, for its dispatch loop's thread. Its methods raise a ZkBeatError where ZooKeeper
    does not answer, or another is master. Where it refuses, that is logged, once.

    Attributes:
        is_current: it was the `beat_schedule` of the app.
        is_first: this process has not written anything yet.
    """

    def __init__(self, app: Celery, election: MasterElection) -> None:
        self._app, self._session = app, election.session
        self._path, self._epoch_path = election.paths.installed, election.paths.epoch
        self.is_current, self.is_first = False, True
        self._digest = ""
        self._node: Node | None = None
        self._is_refused = self._has_complained = False

    def read(self) -> None:
        """To be called before the scheduler is made."""
        self._digest = digest_of(self._app.conf.beat_schedule)
        self._node, self.is_current, self._is_refused = None, False, False
        try:
            self._node = self._session.read(self._path)
        except ZooKeeperError as exc:
            self._complain(exc)
        if self._node is not None:
            try:
                known = InstalledRecord.decode(self._path, self._node.data)
            except RootError as exc:
                logger.warning("%s; it is written again", exc)
            else:
                self.is_current = known.digest == self._digest

    def note(self, epoch: int) -> None:
        """It is written now, by the master of this epoch."""
        self.is_first = False
        if not (self.is_current or self._is_refused):
            data = InstalledRecord(self._digest).encode()
            write = Create(self._path, data) if self._node is None else SetData(self._path, data)
            try:
                self._session.commit(Check(self._epoch_path, epoch), write)
            except ZooKeeperError as exc:
                self._complain(exc)
            else:
                self.is_current = True

    def _complain(self, exc: ZooKeeperError) -> None:
        """Once. Nothing that runs is to wait for it."""
        self._is_refused = True
        if not self._has_complained:
            self._has_complained = True
            logger.error("%s: so beat_schedule is written over its store at each election", exc)


def digest_of(schedule: Mapping[Any, Any]) -> str:
    """The same in each process for which code defines the same."""
    shown = sorted(f"{name!r} {_shown(fields)}" for name, fields in schedule.items())
    return hashlib.sha256(without_addresses("\n".join(shown)).encode(errors="replace")).hexdigest()


def _shown(fields: Any) -> str:
    told = fields if isinstance(fields, Mapping) else vars(fields)
    return repr(sorted((str(name), repr(value)) for name, value in told.items()))
