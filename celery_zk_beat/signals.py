"""Celery signals for the election and for each run.

Connect them like Celery's own, in the module that creates the app::

    from celery_zk_beat.signals import run_published

    @run_published.connect
    def note(entry, run, due, **more):
        ...

A receiver gets keyword arguments: those listed here, ``sender`` (the ZooKeeperScheduler) and
``signal``. It must accept ``**more``, because a later release may send more. Instants are aware
datetimes in UTC.

Receivers run one after another on their own thread, in the order of the events. So they may block
for a while; dispatch does not wait for them. If a receiver raises, that is logged. Delivery is not
guaranteed: a beat that is killed sends no more signals, a beat that stops gives its receivers one
second, and while a receiver hangs, events after the first thousand are dropped. For a reliable
record, read the history in ZooKeeper.
"""

from __future__ import annotations

from typing import Any

from celery.utils.dispatch import Signal

from . import clock
from .log import get_logger

__all__ = [
    *("beat_demoted", "beat_elected", "entries_changed"),
    *("run_dropped", "run_finished", "run_late", "run_published", "run_started"),
]

logger = get_logger(__name__)

#: This beat is master. Also sent when it stayed master and only lost the connection to ZooKeeper
#: for a moment: then the epoch is that of the last beat_demoted.
#:
#: epoch (int): the number of this term; grows with every election.
#: id (str): its zk_beat_id.
beat_elected = Signal(name="beat_elected", providing_args={"epoch", "id"})

#: This beat is no longer master, or cannot be sure that it is, and dispatches nothing.
#:
#: epoch (int): of the term that has ended.
#: reason (str): why, as in the log: "stopped", "resigned", "the connection to ZooKeeper is lost".
beat_demoted = Signal(name="beat_demoted", providing_args={"epoch", "reason"})

#: The broker took a run's message. Sent again, with the same run and task id, if a run is
#: published again because nobody knows whether it was published before.
#:
#: entry (str): name of the entry.
#: task (str): name of its task.
#: run (int): counts the entry's runs, from 1, for ever.
#: due (datetime): the earliest instant at which the entry was due and had not run.
#: epoch (int): of the master that published it: this beat.
#: task_id (str): of the message.
run_published = Signal(
    name="run_published", providing_args={"entry", "task", "run", "due", "epoch", "task_id"}
)

#: A claimed run will not be published. The entry's state records that.
#:
#: entry (str), run (int), due (datetime): as of run_published.
#: epoch (int): of the master that dropped it: this beat.
#: reason (str): why, in words.
run_dropped = Signal(name="run_dropped", providing_args={"entry", "run", "due", "epoch", "reason"})

#: A worker began to execute a tracked run (docs/outcomes.md). Not sent for what began before this
#: beat was elected.
#:
#: entry (str), run (int), due (datetime), task_id (str): as of run_published.
#: epoch (int): of the master that learned of it: this beat.
#: worker (str): the name of the worker.
run_started = Signal(
    name="run_started", providing_args={"entry", "run", "due", "epoch", "task_id", "worker"}
)

#: A tracked run has ended; the entry's history records that.
#:
#: entry (str), run (int), due (datetime), epoch (int), task_id (str): as of run_started.
#: state (str): "success", "failure", "revoked", "expired", "rejected" or "ignored", as reported;
#:     "lost" if its worker is gone; "unknown" if nobody reported its end in time.
#: runtime (float or None): seconds that the task ran.
#: worker (str or None): the name of the worker.
#: error (str or None): the type of the exception.
run_finished = Signal(
    name="run_finished",
    providing_args={
        *("entry", "run", "due", "epoch", "task_id", "state", "runtime", "worker", "error")
    },
)

#: A tracked run has not started, or not ended, as soon as its policy asks for. Sent once a run.
#:
#: entry (str), run (int), due (datetime), epoch (int), task_id (str): as of run_started.
#: what (str): "start" or "finish".
#: seconds (float): what the policy allows, from the dispatch.
run_late = Signal(
    name="run_late",
    providing_args={"entry", "run", "due", "epoch", "task_id", "what", "seconds"},
)

#: The master goes by other live entries from now on. Not sent for what was changed before this
#: beat was elected.
#:
#: added, changed, removed (list of str): names of entries.
#: epoch (int): of the master: this beat.
entries_changed = Signal(
    name="entries_changed", providing_args={"added", "changed", "removed", "epoch"}
)

#: Most events that wait for receivers.
MOST_WAITING = 1000
#: Seconds that a stopping beat gives its receivers for the waiting events.
DRAIN_TIME = 1.0


class Announcer:
    """Sends signals on a thread of its own, which it starts at the first event that has a receiver.

    Any thread and signal handler may use it: nothing here waits for a lock.
    """

    def __init__(self, sender: object) -> None:
        self._sender = sender
        self._waiting: clock.SimpleQueue[tuple[Any, dict[str, Any]] | None] = clock.SimpleQueue()
        #: Held for good by the caller that starts the thread.
        self._start_token = clock.Lock()
        self._thread: clock.Thread | None = None
        self._sending = ""
        self._dropped = 0
        #: By boottime(); None before it is closed.
        self._patience_ends: float | None = None

    def send(self, signal: Any, /, **arguments: Any) -> None:
        """Queues `signal`. Never blocks, never raises; does nothing if there is no receiver."""
        if not signal.receivers or self._patience_ends is not None:
            return
        if self._waiting.qsize() >= MOST_WAITING:
            self._dropped += 1
            if self._dropped == 1:
                logger.warning(
                    "a receiver of the signal %s takes too long: %d events wait, "
                    "and further ones are dropped",
                    self._sending,
                    MOST_WAITING,
                )
            return
        self._waiting.put((signal, arguments))
        if self._start_token.acquire(blocking=False):
            self._start()

    def close(self, timeout: float = DRAIN_TIME) -> None:
        """Accepts no more events, and waits until the queued ones are sent: at most `timeout`
        seconds from the first call."""
        if self._patience_ends is None:
            self._patience_ends = clock.boottime() + timeout
            self._waiting.put(None)
        thread = self._thread
        if thread is None or clock.is_current(thread):
            return
        thread.join(max(0.0, self._patience_ends - clock.boottime()))
        if thread.is_alive():
            text = "a receiver of the signal %s takes too long: beat stops without it"
            logger.warning(text, self._sending)

    def _start(self) -> None:
        thread = clock.thread(self._run, "zk-beat-signals")
        try:
            thread.start()
        except RuntimeError as exc:
            logger.warning("signals are not sent: %s", exc)
            self._patience_ends = 0.0
        else:
            self._thread = thread

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            signal, arguments = event
            self._sending = signal.name
            try:
                signal.send(self._sender, **arguments)  # logs what a receiver raises
            except BaseException:  # such as SystemExit, which would silently end this thread
                logger.exception("a receiver of the signal %s raised", signal.name)
            if self._dropped and self._waiting.empty():
                dropped, self._dropped = self._dropped, 0
                logger.warning("%d events were dropped; signals are sent again", dropped)
