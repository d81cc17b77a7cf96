"""Logs trouble that may last: now and then, not each time it is met."""

from __future__ import annotations

from .. import clock
from ..errors import QuotaExceeded, ZooKeeperError
from ..log import get_logger
from ..zookeeper.session import ZooKeeperSession

logger = get_logger(__name__)

#: Seconds until we try again what was refused or is in the way.
RETRY_AFTER = 1.0
#: Seconds between two log lines about a ZooKeeper that does not answer.
REMIND_EVERY = 5.0
#: Seconds between two log lines about a quota that is used up.
_REMIND_OF_QUOTA_EVERY = 60.0


class Complaints:
    """The log lines of one candidate about what it waits for.

    Attributes:
        last: the text of the last complaint; empty if there was none.
    """

    def __init__(self, session: ZooKeeperSession, hosts: str) -> None:
        self._session, self._hosts = session, hosts
        self.last = ""
        #: On boottime(): until when the last complaint is not logged again; when to log next that
        #: ZooKeeper does not answer, 0 while it answers.
        self._silent_until = self._remind_at = 0.0

    def add(self, what: str | ZooKeeperError) -> None:
        """Logs now and then what may come every second. Logs a used-up quota rarely, because an
        administrator may need time to raise it. For any thread."""
        complaint = str(what)
        every = _REMIND_OF_QUOTA_EVERY if isinstance(what, QuotaExceeded) else REMIND_EVERY
        now = clock.boottime()
        if complaint != self.last or now >= self._silent_until:
            logger.warning("%s; trying again every %g s", complaint, RETRY_AFTER)
            self.last, self._silent_until = complaint, now + every

    def no_answer(self) -> float:
        """Logs now and then that ZooKeeper does not answer or refuses. Returns after how many
        seconds to call this again."""
        now = clock.boottime()
        refusal = self._session.servers.refusal
        if refusal is not None:
            self.add(refusal)
        if self._remind_at <= now:
            if self._remind_at and refusal is None:
                logger.warning(
                    "ZooKeeper at %s does not answer; waiting for it as a standby%s",
                    self._hosts,
                    self._session.servers.trouble,
                )
            self._remind_at = now + REMIND_EVERY
        return max(0.1, self._remind_at - now)

    def answered(self) -> None:
        """Notes that ZooKeeper answers."""
        self._remind_at = 0.0
