"""Writes a worker's reports to ZooKeeper, on a thread of its own. Knows nothing of Celery.

For each delivery ZooKeeper is to hold the newest report and, while the delivery is executed, an
ephemeral znode of this process' session. Normally this takes two transactions, one when it begins
and one when it ends, without a look at what is there. Whenever it is not certain what is there
(no answer, a new session, a refusal) the thread reads, and writes what is missing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .. import clock
from ..errors import AccessDenied, Conflict, Uncertain, ZkBeatError
from ..log import get_logger
from ..paths import Paths
from ..settings import Settings
from ..zookeeper.operations import Create, Delete, Node, Operation, Pending, SetData
from ..zookeeper.session import ZooKeeperSession
from .reports import Report

#: How many deliveries that have ended are kept while ZooKeeper does not take their reports.
MOST_KEPT = 10_000
#: Seconds that the beginning of a delivery waits until ZooKeeper knows of it.
BEGIN_WITHIN = 1.0
#: Seconds that the end of the worker waits until ZooKeeper knows how its deliveries ended.
END_WITHIN = 5.0
#: Seconds to wait for the end of the session.
_CLOSE_WITHIN = 2.0
#: Most transactions on their way at once.
_TOGETHER = 100
#: Seconds before a report is tried again: first, and at most.
_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
#: Seconds between two log lines about the same trouble.
_REMIND_EVERY = 60.0

logger = get_logger(__name__)


class _Told(NamedTuple):
    """What the worker says of a delivery, which replaces what it said before. `is_running`: it is
    being executed."""

    name: str
    report: Report
    is_running: bool
    written: clock.Wakeup | None = None


class _Delivery:
    """What the thread knows of one delivery.

    Attributes:
        told: what the worker said last.
        is_written: ZooKeeper holds that, as far as is known.
        is_new: nothing of it was sent yet.
        is_certain: what is there is what was written last. If it is not, it must be read.
        not_before: when to try again, on boottime().
    """

    def __init__(self, told: _Told) -> None:
        self.told = told
        self.is_written = False
        self.is_new = self.is_certain = True
        self.not_before = 0.0
        self._pause = _PAUSE

    def put_off(self) -> None:
        """Call this if it could not be written."""
        self.is_new = self.is_certain = False
        self.not_before = clock.boottime() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def note_written(self) -> None:
        self.is_new, self.is_certain, self.is_written = False, True, True
        self.not_before, self._pause = 0.0, _PAUSE
        if self.told.written is not None:
            self.told.written.set()


class Sender:
    """Reports to the beats what becomes of deliveries. Connects at the first :meth:`start`.

    :meth:`begin` and :meth:`end` may be called from any thread and from signal handlers. They never
    raise.
    """

    def __init__(self, settings: Settings) -> None:
        self._paths = Paths.of(settings.hosts, settings.root)
        self._acl = settings.outcomes_acl
        self._hosts = settings.hosts
        self._session = ZooKeeperSession(
            settings.hosts.partition("/")[0],
            settings.session_timeout,
            lambda: self._queue.put(None),
            settings.access,
        )
        #: Of this process' own: see :func:`.reports.delivery_of`.
        self.process = uuid.uuid4().hex[:8]
        #: What the worker says. None wakes the thread.
        self._queue: clock.SimpleQueue[_Told | None] = clock.SimpleQueue()
        self._thread: clock.Thread | None = None
        self._is_closing = self._is_over = False
        #: ZooKeeper did not take a beginning in time, and has answered nothing since.
        self._is_silent = False
        #: Until when it is worth waiting for the first connection, on boottime().
        self._patient_until = 0.0
        # The rest is the thread's own.
        self._deliveries: dict[str, _Delivery] = {}
        #: The session that made the ephemeral znodes, and the connection of the last turn.
        self._session_id = 0
        self._connection = 0
        #: The connection on which what is read is no older than what was written.
        self._caught_up = -1
        self._dropped = 0
        self._said: dict[str, float] = {}

    @property
    def inbox(self) -> str:
        """Where it reports to."""
        return self._paths.inbox

    def start(self) -> None:
        """Connects, unless that was done. Returns at once. For the thread that receives messages,
        in the process that forks the pool, not in its children.

        Raises:
            UnsupportedEnvironment: gevent or eventlet has patched this process.
        """
        if self._thread is None:
            self._session.start()
            self._patient_until = clock.boottime() + BEGIN_WITHIN
            self._thread = clock.thread(self._run, "zk-beat-reports")
            self._thread.start()

    def begin(self, name: str, report: Report) -> None:
        """Says that a delivery is being executed. Waits until ZooKeeper knows it, but not for long,
        and not at all while ZooKeeper is away."""
        written = clock.Wakeup()
        self._queue.put(_Told(name, report, True, written))
        if self._is_silent:
            return
        patience = self._patient_until - clock.boottime()
        if self._session.connected:
            patience = BEGIN_WITHIN
        if patience > 0 and not written.wait(patience):
            self._is_silent = True

    def end(self, name: str, report: Report) -> None:
        """Says how a delivery ended, or that it never began. It is kept until ZooKeeper knows it,
        as long as this process lives and no more than :data:`MOST_KEPT` have ended since."""
        self._queue.put(_Told(name, report, False))

    def stop(self) -> None:
        """Ends the session, and what is still executed with it. First it waits some seconds, if
        there is an end that ZooKeeper does not know yet."""
        if self._thread is None:
            return
        self._is_closing = True
        self._queue.put(None)
        self._thread.join(END_WITHIN)
        self._is_over = True
        self._queue.put(None)
        self._session.stop(_CLOSE_WITHIN)
        self._thread.join(_CLOSE_WITHIN)
        left = sum(not each.told.is_running for each in list(self._deliveries.values()))
        if left:
            logger.warning(
                "%d runs have ended and ZooKeeper at %s was not told of it: the beats take them "
                "for lost",
                left,
                self._hosts,
            )

    # On the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except Exception:
            # Without its session: or what is executed would seem to be so for ever.
            logger.exception("outcomes of runs are not reported any more: restart this worker")
            self._session.stop(_CLOSE_WITHIN)

    def _work(self) -> None:
        while not self._is_over:
            self._hear(self._rest())
            if self._session.dead:
                self._connect_anew()
            elif self._session.connected:
                self._write()
            if self._is_closing and all(each.told.is_running for each in self._deliveries.values()):
                return

    def _rest(self) -> float | None:
        """Returns how many seconds there is nothing to do; None: for ever."""
        if not self._session.connected:
            return _LONGEST_PAUSE
        times = [each.not_before for each in self._deliveries.values() if not each.is_written]
        return max(0.0, min(times) - clock.boottime()) if times else None

    def _hear(self, seconds: float | None) -> None:
        """Waits so long for what the worker says, and takes all that it has said."""
        try:
            told = self._queue.get(timeout=seconds)
            while True:
                if told is not None:
                    self._take(told)
                told = self._queue.get_nowait()
        except clock.Empty:
            return

    def _take(self, told: _Told) -> None:
        known = self._deliveries.get(told.name)
        if known is None:
            self._deliveries[told.name] = _Delivery(told)
        else:
            known.told, known.is_written = told, False
        if len(self._deliveries) > MOST_KEPT and not told.is_running:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        ended = [name for name, each in self._deliveries.items() if not each.told.is_running]
        if len(ended) > MOST_KEPT:
            del self._deliveries[ended[0]]
            self._dropped += 1
            self._say(
                "ended",
                f"more than {MOST_KEPT} runs have ended while ZooKeeper at {self._hosts} was away: "
                "the outcomes of the oldest are forgotten",
            )

    def _connect_anew(self) -> None:
        """After refused credentials, or an answer that kazoo cannot parse."""
        self._session.stop(_CLOSE_WITHIN)
        clock.sleep(_PAUSE)
        self._session.start()

    def _write(self) -> None:
        """Writes what is to be written now."""
        self._look_at_session()
        now = clock.boottime()
        due = [
            each
            for each in self._deliveries.values()
            if not each.is_written and each.not_before <= now
        ]
        self._write_blindly([each for each in due if each.is_certain][:_TOGETHER])
        self._write_with_care([each for each in due if not each.is_certain][:_TOGETHER])

    def _look_at_session(self) -> None:
        """A new session has none of the ephemeral znodes of the last one."""
        if self._session.connection != self._connection:
            self._connection = self._session.connection
            for each in self._deliveries.values():
                each.not_before = 0.0
        if self._session.id != self._session_id:
            self._session_id = self._session.id
            for each in self._deliveries.values():
                if not each.is_new:
                    each.is_written = each.is_certain = False

    def _write_blindly(self, deliveries: Sequence[_Delivery]) -> None:
        self._send([(each, self._first_or_last(each)) for each in deliveries], self._note_refusal)

    def _first_or_last(self, delivery: _Delivery) -> list[Operation]:
        told = delivery.told
        report, running = self._paths_of(told.name)
        if not delivery.is_new:
            return [SetData(report, told.report.encode()), Delete(running)]
        made = self._create(report, told)
        return [made, self._create_running(running)] if told.is_running else [made]

    def _write_with_care(self, deliveries: Sequence[_Delivery]) -> None:
        """Reads what is there, and writes what is missing."""
        if not deliveries:
            return
        paths = [path for each in deliveries for path in self._paths_of(each.told.name)]
        try:
            connection = self._session.connection
            if connection != self._caught_up:
                # Another server may be behind the last one.
                self._session.catch_up(self._paths.inbox_reports)
                self._caught_up = connection
            nodes = self._session.read_all(paths)
        except ZkBeatError as exc:
            for each in deliveries:
                each.put_off()
            self._complain(exc)
            return
        there = zip(deliveries, nodes[::2], nodes[1::2])
        self._send(
            [(each, self._missing(each.told, *found)) for each, *found in there], self._complain
        )

    def _missing(self, told: _Told, report: Node | None, running: Node | None) -> list[Operation]:
        """Returns the operations after which ZooKeeper holds what the worker said."""
        operations: list[Operation] = []
        report_path, running_path = self._paths_of(told.name)
        data = told.report.encode()
        if report is None:
            operations.append(self._create(report_path, told))
        elif report.data != data:
            operations.append(SetData(report_path, data, report.version))
        is_ours = running is not None and running.owner == self._session.id
        if running is not None and not (told.is_running and is_ours):
            operations.append(Delete(running_path))
        if told.is_running and not is_ours:
            operations.append(self._create_running(running_path))
        return operations

    def _send(
        self,
        all: Sequence[tuple[_Delivery, list[Operation]]],
        on_error: Callable[[ZkBeatError], None],
    ) -> None:
        """Sends one transaction for each delivery, and then waits for the answers."""
        sent: list[tuple[_Delivery, Pending | None]] = []
        for delivery, operations in all:
            try:
                sent.append((delivery, self._session.send(*operations) if operations else None))
            except Uncertain:
                delivery.put_off()
        for delivery, pending in sent:
            try:
                if pending is not None:
                    pending.result()
            except ZkBeatError as exc:
                delivery.put_off()
                on_error(exc)
            else:
                self._is_silent = False
                delivery.note_written()
                if not delivery.told.is_running:
                    self._deliveries.pop(delivery.told.name, None)

    def _note_refusal(self, exc: ZkBeatError) -> None:
        if not isinstance(exc, Conflict):  # over which it is read what is there
            self._complain(exc)

    def _complain(self, exc: ZkBeatError) -> None:
        if isinstance(exc, Uncertain):
            return  # the next connection is awaited
        self._say(type(exc).__name__, f"a report is not written, it is tried again: {exc}")
        if isinstance(exc, AccessDenied) and self._session.outdated:
            self._connect_anew()

    def _say(self, kind: str, what: str) -> None:
        now = clock.boottime()
        if now >= self._said.get(kind, 0.0):
            self._said[kind] = now + _REMIND_EVERY
            logger.warning("%s", what)

    def _create(self, path: str, told: _Told) -> Create:
        return Create(path, told.report.encode(), acl=self._acl)

    def _create_running(self, path: str) -> Create:
        return Create(path, b"", ephemeral=True, acl=self._acl)

    def _paths_of(self, name: str) -> tuple[str, str]:
        return f"{self._paths.inbox_reports}/{name}", f"{self._paths.inbox_running}/{name}"
