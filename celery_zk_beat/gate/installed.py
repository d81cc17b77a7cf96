"""Records which ``beat_schedule`` a beat last wrote into the store of another scheduler.

A scheduler with a store writes ``beat_schedule`` over it each time that it is made. Without us that
is once per process. Behind the election it would be at each election, and a change that somebody
made in the store would last only until the next failover.
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
    """The record of one beat, for its dispatch loop's thread. Methods raise a ZkBeatError if
    ZooKeeper does not answer or another beat is master. If ZooKeeper refuses, they log that once.

    Attributes:
        is_current: the store was last written with the `beat_schedule` that the app has now.
        is_first: this process has not written the store yet.
    """

    def __init__(self, app: Celery, election: MasterElection) -> None:
        self._app, self._session = app, election.session
        self._path, self._epoch_path = election.paths.installed, election.paths.epoch
        self.is_current, self.is_first = False, True
        self._digest = ""
        self._node: Node | None = None
        self._is_refused = self._has_complained = False

    def read(self) -> None:
        """Reads the record. Call it before the scheduler is made."""
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
        """Records, as the master of this epoch, that `beat_schedule` is now in the store."""
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
        """Logs it once, and goes on: no run waits for this record."""
        self._is_refused = True
        if not self._has_complained:
            self._has_complained = True
            logger.error("%s: so beat_schedule is written over its store at each election", exc)


def digest_of(schedule: Mapping[Any, Any]) -> str:
    """Returns a digest that is the same in all processes whose code defines the same schedule."""
    shown = sorted(f"{name!r} {_shown(fields)}" for name, fields in schedule.items())
    return hashlib.sha256(without_addresses("\n".join(shown)).encode(errors="replace")).hexdigest()


def _shown(fields: Any) -> str:
    told = fields if isinstance(fields, Mapping) else vars(fields)
    return repr(sorted((str(name), repr(value)) for name, value in told.items()))
