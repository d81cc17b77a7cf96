"""The Celery side: a beat scheduler that dispatches while its process is master.

Celery calls :meth:`ZooKeeperScheduler.tick` in the main thread, where signal handlers may
interrupt any line. So the work is done on a thread of its own, which a handler can only ask to
stop; ``tick()`` waits for a sign of its progress and passes on its errors.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from celery.beat import Scheduler

from . import clock
from .agenda import Agenda, Item, Seen
from .broker import Broker, broker_digest
from .control import DROP_RUN, RESIGN, RUN, Answer, Control, Pauses, Request
from .due import (
    as_of,
    ask_at,
    at_one_instant,
    checksum,
    due_by_celery,
    due_instant,
    is_ahead,
    is_free,
    is_interval,
    last_run,
    missed_instant,
    next_free,
    shown,
    utc_of,
    zone_of,
)
from .election.public import MasterElection
from .errors import (
    AccessDenied,
    Conflict,
    QuotaExceeded,
    SettingsError,
    ZkBeatError,
    ZooKeeperError,
)
from .gate.gated import Gated, SchedulerFailed, open_gate, scheduler_class
from .gate.stores import key_of, start_of
from .ledger import BELOW_ROOT, RunLedger
from .limits import LARGEST_OUTBOX, MOST_RUNS
from .log import get_logger
from .messages import Sender, task_id
from .metrics import Metrics
from .names import NamedByText, as_text, by_text
from .paths import Paths, page_of
from .publishing import Publisher
from .records import to_text
from .runs import NEVER, RETENTION, TOLERANCE, Run, RunState, bytes_of
from .settings import DROP, Settings
from .signals import Announcer, beat_demoted, beat_elected, run_dropped
from .systemd import Unit
from .zookeeper.operations import Operation

if TYPE_CHECKING:
    from .web.server import Server

logger = get_logger(__name__)

#: Most seconds between two turns of the dispatch loop, and so between two ticks: `celery inspect
#: ping` takes a beat for hung whose last tick is a minute old.
_LONGEST_WAIT = 5.0
#: Least seconds between two signs of progress.
SHOWN_EVERY = 0.1
#: Most seconds for which an entry's word is kept that it need not be asked: ten years.
_LONGEST_DELAY = 3.2e8
#: Least seconds after which an entry that is not due is asked again.
_SHORTEST_WAIT = 0.01
#: Seconds before it is due that a run is claimed, so that it is published on time, also where
#: hundreds are; and those for which claims wait for each other, for one of many costs little more
#: than one of one.
_CLAIM_AHEAD, _CLAIM_TOGETHER = 0.025, 0.02
#: Most runs of one claim, so that one can be on its way while those before are published.
_MOST_CLAIMED = MOST_RUNS // 2
#: Most entries of which it is looked, in a turn, whether they were changed by another hand; the
#: part of the time that this may take, but for looks that are shorter than this, and the longest
#: rest in between. In seconds.
_MOST_SEEN = 1000
_SEEN_PART, _SHORT_LOOK, _LONGEST_REST = 0.02, 0.00002, 0.05
#: Most entries that are asked before what is due among them is claimed.
_MOST_LOOKED_AT = 1000
#: Seconds before what was published is noted, when a note is already under way.
_CONFIRM_AFTER = 0.005
#: Seconds before ZooKeeper is asked again after it refused something.
_RETRY_AFTER = 1.0
#: Seconds that a master which is to go gives to publishing what it has claimed; and those that a
#: stopping beat takes in all, with its notes of what was published.
_LAST_PUBLISHING, _STOP_PATIENCE = 1.5, 3.0
#: Why a master is useless; and seconds between two looks of a standby that was, whether it reaches
#: the broker.
_NO_BROKER, _NO_SCHEDULER = "nothing could be published", "the scheduler failed"
_PROBE_EVERY = 1.0
#: Seconds after which the run states are read anew, as after a take-over.
_LOOK_EVERY = 86400.0
_LOOK_AT_DAMAGE_EVERY = 60.0
#: Most bytes in the outbox of runs that are held back, each for a reason of its own.
MOST_HELD = LARGEST_OUTBOX // 2
#: How long a run waits for a master whose schedule names it, and seconds between two looks at that.
UNNAMED_FOR = timedelta(days=1)
_LOOK_AT_HELD_EVERY = 60.0
#: Why a run is held back; what is first is dropped first, where there is no room for all.
_UNNAMED, _AT_FAULT, _PAUSED = "no schedule names it", "it cannot be published", "it is paused"
#: Most runs of the outbox that a take-over tells of, each in a line.
_MOST_TOLD = 20
#: So late a run is published that its entry may have come due again.
_LATE = timedelta(seconds=0.1)
#: Least seconds without progress, twice over, before the dispatch loop is taken for hung.
_LEAST_PATIENCE = 60.0


class ZooKeeperScheduler(Scheduler):
    """``beat_scheduler = "celery_zk_beat:ZooKeeperScheduler"``, or ``beat -S zookeeper``.

    Of all beats with the same root one is master and dispatches; the others wait inside
    :meth:`tick`. Entries are those of ``beat_schedule``, as Celery reads it; their run states are
    in ZooKeeper. With ``zk_beat_scheduler`` they are those of another scheduler, which is made when
    this beat is elected. All methods are for the main thread; nothing connects before the first
    tick.

    Raises:
        SystemExit: a setting cannot work. Not a SettingsError, which Celery would show as a
            traceback; the text is the same line.
    """

    data: dict[str, Any]
    _publisher: Publisher
    #: RedBeat asks whoever is beat's scheduler whether it wants a lock.
    lock_key = None

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        try:
            self.settings = Settings.from_app(app)
            self._gated_class = self._find_class(kwargs.get("lazy", False))
        except SettingsError as exc:
            raise SystemExit(f"celery beat: {exc}") from None
        self._root = Paths.of(self.settings.hosts, self.settings.root).root
        #: With which Celery makes a scheduler.
        self._arguments = {"app": app, **kwargs, "lazy": False}
        self._gated: Gated | None = None
        #: On boottime(): when the gated scheduler began to fail.
        self._gated_failing_since: float | None = None
        #: Its entries when they were looked at last.
        self._taken: Any = None
        self._built_at = clock.now()
        self._agenda = Agenda()
        self._seen = Seen()
        #: On boottime(): not before then is it looked what was changed.
        self._look_again = 0.0
        self._heap_is_current = False
        #: The schedule, and its entries by names that are text.
        self._named: tuple[Any, Any] = None, None
        #: What was said of names and schedules, and is not to be said again.
        self._said: set[str] = set()
        #: Of which pauses the log has told.
        self._told_of = Pauses()
        #: Seconds; of beat_cron_starting_deadline.
        self._starting_deadline: float | None = None
        #: Whether Celery alone says when an entry is due.
        self._computes = False
        #: On boottime(): when the run states were read.
        self._loaded_at = 0.0
        #: On boottime(): when it was looked at what is held back.
        self._held_looked_at = -math.inf
        #: Whether there is no room for one more run, as a gated scheduler is to know.
        self._is_full = False
        #: By how many seconds the clock of day was ahead of boottime() at the last turn.
        self._clock: float | None = None
        #: Whether an entry's state says that it ran in the future.
        self._ahead = False
        #: What this beat has done so far; for any thread to read.
        self.metrics = Metrics()
        self._broker = Broker(app, lambda: self._session_timeout, lambda: self._ledger.assure())
        self._dispatching_epoch = 0
        self._election: Any = None
        self._ledger: Any = None
        self._control: Any = None
        self._unit = Unit()
        self._announcer = Announcer(self)
        self._announced_epoch = 0
        self._server: Server | None = None
        self._thread: clock.Thread | None = None
        #: Looks for the broker, while this is a standby that did not reach it as master.
        self._prober: clock.Thread | None = None
        #: Why this beat was useless when it resigned last, and what it had published until then.
        self._lacked, self._published_before = "", 0
        self._failure: BaseException | None = None
        self._closing = False
        #: On boottime(): until when a stopping beat publishes, and notes what it has published.
        self._publish_until = self._patience_ends = 0.0
        self._news = clock.Wakeup()
        self._progress = clock.Wakeup()
        super().__init__(app, *args, **kwargs)

    def _find_class(self, lazy: bool) -> Any:
        name = self.settings.scheduler
        if name is None or lazy:
            return None
        shown = self.settings.prefix + "scheduler"
        found = scheduler_class(name, shown)
        if issubclass(found, ZooKeeperScheduler):
            raise SettingsError(f"{shown} = {name!r}: leave it out; this is what runs without")
        return found

    @property
    def info(self) -> str:
        """For the start-up banner."""
        hosts, root, gated = self.settings.hosts, self.settings.root, self.settings.scheduler
        lines = [("zookeeper", hosts), ("root", root), ("id", self.settings.id)]
        lines += [] if gated is None else [("elected", gated)]
        return "\n".join(f"    . {name} -> {value}" for name, value in lines)

    # What Celery calls --------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        if self.settings.scheduler is not None:
            return  # the gated one knows its entries, once there is one
        # In this order: Celery's own in-memory one merges last, and so loses the default entries.
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Waits until the dispatch loop has turned, at most some seconds; 0.

        Raises:
            SystemExit: the loop has ended because of something that waiting does not cure, such
                as a root that belongs to another app.
        """
        if self._thread is None:
            _exit_on_sigterm()
            self._prepare()
            self._serve_http()
            self._thread = clock.thread(self._run, "zk-beat-dispatch")
            self._thread.start()
        self._wait_for_progress()
        if self._failure is not None:
            self._raise_failure()
        self._unit.ticked(self._role())
        return 0

    def close(self) -> None:
        """Hands over: lets what is claimed be published, then closes the session, so that another
        beat is elected at once. Returns within some seconds, whatever hangs. Safe to call
        twice, and from a signal handler, as Celery does."""
        if not self._closing:
            self._publish_until = clock.boottime() + _LAST_PUBLISHING
            self._patience_ends = clock.boottime() + _STOP_PATIENCE
            self._unit.stopping()
        self._closing = True
        self._wake()
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(max(0.0, self._patience_ends - clock.boottime()))
        if self._election is not None:
            self._election.stop()
        self._announcer.close()
        if self._server is not None:
            self._server.close()
        if thread is None or not thread.is_alive():
            self._broker.drop()
        self._progress.set()
        if isinstance(self._failure, ZkBeatError):
            self._raise_failure()

    def add(self, **kwargs: Any) -> Any:
        entry = super().add(**kwargs)
        self._heap_is_current = False
        return entry

    def update_from_dict(self, dict_: Any) -> None:
        super().update_from_dict(dict_)
        self._heap_is_current = False

    def merge_inplace(self, b: Any) -> None:
        super().merge_inplace(b)
        self._heap_is_current = False

    @property
    def entries(self) -> Any:
        """The schedule, by names that are text: those of the ledger, the log and the commands.
        Where all of its names are text, the schedule itself. Another one in its place, and names
        that came, are seen by the next turn."""
        if self._named[0] is None or self._gated_class is not None:
            schedule = self.schedule
            if self._named[0] is not schedule:
                self._named = schedule, by_text(schedule)
        return self._named[1]

    def _text_of(self, name: Any) -> str:
        """The name, as in :attr:`entries`, of what has `name` in the schedule."""
        entries = self.entries
        return str(entries.text_of(name) if isinstance(entries, NamedByText) else as_text(name))

    def _look_at_names(self) -> None:
        """Some may have come that are no text."""
        self._named = None, None
        for fault in getattr(self.entries, "faults", ()):
            self._say_once(fault)

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s", what)

    @property
    def connection(self) -> Any:
        return self._broker.connection

    @property
    def producer(self) -> Any:
        return self._broker.producer

    @property
    def _session_timeout(self) -> float:
        """Seconds, as granted if it is known."""
        election = self._election
        return float(election.session.timeout if election else self.settings.session_timeout)

    def _role(self) -> str:
        """For systemd, in a few words."""
        term, master = self._election.term, self._election.master
        if term is not None:
            return f"master, epoch {term.epoch}"
        if not self._election.session.connected:
            return "standby, ZooKeeper does not answer"
        return "standby, no master" if master is None else f"standby, {master.id} is master"

    def _announce_elected(self, epoch: int) -> None:
        self._announced_epoch = epoch
        self._announcer.send(beat_elected, epoch=epoch, id=self.settings.id)

    def _announce_demoted(self, reason: str) -> None:
        self._announcer.send(beat_demoted, epoch=self._announced_epoch, reason=reason)

    def _wait_for_progress(self) -> None:
        deadline = self.settings.publish_deadline
        patience = None if deadline is None else max(deadline, _LEAST_PATIENCE)
        if self.app.conf.task_always_eager:
            patience = None  # a task that is executed here takes as long as it takes
        for _ in range(2):  # twice, because after a suspend the first is over at once
            if self._progress.wait(patience):
                return
        self._failure = ZkBeatError(
            f"nothing has moved for {2 * (patience or 0):g} s, probably because the broker neither "
            "answers nor refuses (look at its time-outs in broker_transport_options)"
        )
        logger.critical("beat stops, so that another can take over: %s", self._failure)

    def _raise_failure(self) -> NoReturn:
        assert self._failure is not None
        if isinstance(self._failure, ZkBeatError):
            raise SystemExit(1)  # not the error itself, of which Celery would show a traceback
        raise self._failure

    # The dispatch loop, on its own thread -------------------------------------------------------

    def _prepare(self) -> None:
        self._election = MasterElection(
            self.settings.hosts,
            self.settings.root,
            id=self.settings.id,
            session_timeout=self.settings.session_timeout,
            app=self.settings.app,
            schedule=self.digest(),
            broker=broker_digest(self.app),
            below=BELOW_ROOT,
            access=self.settings.access,
            on_elected=self._announce_elected,
            on_demoted=self._announce_demoted,
        )
        self._look_at_names()
        self.metrics.entries = len(self.entries)
        self._ledger = RunLedger(self._election)
        self._publisher = Publisher(self, self._broker, self._ledger, self._announcer)
        self._control = Control(self._election.session, self._election.paths, self._wake)
        self._election.subscribe(self._wake)

    def _serve_http(self) -> None:
        if self.settings.http is None:
            return
        try:
            from .web import server, state  # needs an extra

            beat = state.Beat(self.settings, self._election, self.metrics, self)
            self._server = server.Server(beat, *self.settings.http)
        except SettingsError as exc:
            logger.critical("beat stops: %s", exc)
            self._failure = exc  # for close(), because Celery takes a SystemExit here for a wish
            self._raise_failure()

    def _run(self) -> None:
        try:
            self.app.set_current()
            self._election.start(self.settings.connect_timeout)
            while not self._closing:
                wait = self._turn()
                self.show_progress()
                self._wait(wait)
            self._say_goodbye()
        except ZkBeatError as exc:
            logger.critical("beat stops: %s", exc)
            self._failure = exc
        except BaseException as exc:
            self._failure = exc
        finally:
            self._progress.set()

    def _wake(self) -> None:
        self._news.set()

    def _wait(self, seconds: float) -> None:
        self._news.wait(min(seconds, _LONGEST_WAIT, self.max_interval))

    def _turn(self) -> float:
        """Does what is due if this is the master; says for how many seconds nothing will be."""
        if self._election.failure is not None:
            raise self._election.failure
        self._look_at_clock()
        term = self._election.term
        if term is None:
            self._forget()
            self._gated_failing_since = None
            self.metrics.outbox = 0
            if self._election.useless is not None and self._lacked != _NO_SCHEDULER:
                self._look_for_broker()
            return _LONGEST_WAIT
        try:
            if self._ledger.term != term or self._is_time_to_look_again():
                with _no_collector():
                    self._take_over(term)
            return self._dispatch()
        except ZkBeatError as exc:
            # The one recovery path: the ledger has forgotten all, and is loaded anew if this
            # beat is master still.
            if self._closing or self._election.term is None:
                return 0.0
            if isinstance(exc, (AccessDenied, QuotaExceeded)):
                self._election.complain(exc)
            else:
                logger.warning("%s; reading the run states anew", exc)
            self._forget()
            if isinstance(exc, SchedulerFailed):
                self._gated_failing_since = self._gated_failing_since or clock.boottime()
                self._resign_if_useless(self._gated_failing_since, _NO_SCHEDULER)
            self._election.recheck()
            return _RETRY_AFTER

    def _forget(self) -> None:
        self._ledger.forget()
        if self._gated is not None:
            self._gated.throw_away()
            self._gated = None
            self.data = {}

    def _look_at_clock(self) -> None:
        """Where it was set, all that was put on the agenda is for other instants; and what ran
        while it was wrong has set the clocks of entries."""
        since = clock.boottime()
        before, self._clock = self._clock, clock.now().timestamp() - since
        moved = 0.0 if before is None else self._clock - before
        if abs(moved) > TOLERANCE.total_seconds():
            side = "forward" if moved > 0 else "back"
            logger.warning("the clock of this machine was set %s by %.1f s", side, abs(moved))
            self._election.session.clock_moved(moved)
            self._loaded_at = -math.inf

    def _is_time_to_look_again(self) -> bool:
        """A state that was damaged may have been mended; and once a day states grow old."""
        age = clock.boottime() - self._loaded_at
        damaged = self._ledger.is_damaged or self._ahead
        return bool(age > (_LOOK_AT_DAMAGE_EVERY if damaged else _LOOK_EVERY))

    def _say_goodbye(self) -> None:
        try:
            self._publisher.publish_soon(self._ledger.outbox.values())
            self._hand_over()
        except ZkBeatError as exc:
            logger.warning("the next master may repeat a run: %s", exc)
        self._forget()

    def _hand_over(self) -> None:
        """Notes all that the next master should find. Nothing more is to be published then."""
        if self._ledger.term is not None:
            self._ledger.hand_over(self._publisher.unsent())
        if self._gated is not None:
            self._gated.write()

    def _take_over(self, term: Any) -> None:
        """Goes on where the last master left off."""
        self._forget()
        self._ledger.load(term)
        self._set_back_clocks()
        if self._gated_class is not None:
            self._gated = open_gate(self._gated_class, self, **self._arguments)
            self.data = self._gated.entries
        self._control.forget()
        self._loaded_at, self._held_looked_at = clock.boottime(), -math.inf
        self._heap_is_current = False
        self._recover(term.epoch)
        logger.info("dispatching %d entries as master, epoch %d", len(self.entries), term.epoch)
        if term.epoch != self._dispatching_epoch:
            self._dispatching_epoch = term.epoch
            self._publisher.start_over()
            self.metrics.elections += 1

    def _set_back_clocks(self) -> None:
        before = self._ledger.set_back(clock.now())
        for name in sorted(before)[:1]:
            logger.warning(
                "%s ran last at %s, says %s, which is still to come: a clock was ahead. It goes on "
                "from %s%s; what has run already does not run again",
                name,
                to_text(before[name].last_run_at),
                self._election.paths.page(page_of(name)),
                to_text(self._ledger.state(name).last_run_at),
                f", and so for {len(before) - 1} more" if len(before) > 1 else "",
            )

    def _recover(self, epoch: int) -> None:
        """Decides what becomes of the runs that an earlier master claimed and perhaps did not
        publish. Those of this epoch were certainly not, nor were those of which the last master
        knew that when it handed over: they are published in any case."""
        certain = self._ledger.unsent.union(
            name for name, run in self._ledger.outbox.items() if run.epoch == epoch
        )
        drop = []
        for number, run in enumerate(self._ledger.outbox.values()):
            if run.entry not in self.entries:
                fate = "kept, for this beat's schedule does not name it"
            elif self.settings.recovery != DROP or run.entry in certain:
                fate = "published"
            elif self._ledger.state(run.entry) is None:
                fate = "published, for there is no state in which to note that it is dropped"
            else:
                fate = "dropped"
                drop.append(run)
            # Where there are many, as after an outage, the first will do; and what is certain is no
            # news.
            told = fate == "dropped" or (run.entry not in certain and number < _MOST_TOLD)
            logger.log(
                logging.WARNING if told else logging.DEBUG,
                "%s: run %d, due %s, was claimed in epoch %d and perhaps not published: it is %s",
                run.entry,
                run.number,
                to_text(run.due),
                run.epoch,
                fate,
            )
        others = len(self._ledger.outbox) - len(certain)
        if others > _MOST_TOLD:
            logger.warning("%d runs in all were perhaps not published", others)
        if certain:
            logger.warning(
                "%d runs were claimed before and are still to be published", len(certain)
            )
        self._drop(drop, f"zk_beat_recovery, perhaps published in epoch {epoch - 1} or before")

    def _drop(self, runs: list[Run], why: str | Mapping[str, str], *also: Operation) -> None:
        self._ledger.drop(runs, why, *also)
        self.metrics.dropped += len(runs)
        if len(runs) > _MOST_TOLD:
            logger.warning("%d runs in all are dropped", len(runs))
        for number, run in enumerate(runs):
            reason = why if isinstance(why, str) else why[run.entry]
            logger.log(
                logging.WARNING if number < _MOST_TOLD else logging.DEBUG,
                "%s: run %d, due %s, is dropped: %s",
                run.entry,
                run.number,
                to_text(run.due),
                reason,
            )
            self._announcer.send(
                run_dropped,
                entry=run.entry,
                run=run.number,
                due=run.due,
                epoch=self._ledger.term.epoch,
                reason=reason,
            )

    def _held_because(self, run: Run) -> str | None:
        """Why a run waits though the broker may be there; None where it does not."""
        if run.entry not in self.entries:
            return _UNNAMED
        if not self.may_publish(run):
            return _PAUSED
        return _AT_FAULT if run.error or self._publisher.is_at_fault(run.entry) else None

    def _drop_held(self) -> None:
        """Drops the runs that no schedule has named for too long and, of all that are held back,
        those for which there is no room."""
        self._held_looked_at = clock.boottime()
        held: dict[str, list[Run]] = {_UNNAMED: [], _AT_FAULT: [], _PAUSED: []}
        late = []
        for run in self._ledger.outbox.values():
            why = self._held_because(run)
            if why is None or self._ledger.damaged(run.entry):
                continue
            if why == _UNNAMED and self._is_long_unnamed(run):
                late.append(run)
            else:
                held[why].append(run)
        self._drop_noted(late, f"{_UNNAMED}, for longer than {UNNAMED_FOR.days} d")
        over = bytes_of(itertools.chain(*held.values())) - self._most_held
        for why, runs in held.items():
            dropped = []
            for run in sorted(runs, key=lambda run: run.claimed):
                if over > 0:
                    dropped.append(run)
                    over -= bytes_of([run])
            self._drop_noted(dropped, f"{why}, and no more is kept of what is held back")

    @property
    def _most_held(self) -> int:
        return int(min(MOST_HELD, self._ledger.largest_outbox // 2))

    def _is_long_unnamed(self, run: Run) -> bool:
        state = self._ledger.state(run.entry)
        since = run.claimed if state is None else max(run.claimed, state.unnamed_since or NEVER)
        # Neither a clock that is ahead, for a moment, says that it is time, nor ZooKeeper's.
        ahead = timedelta(seconds=max(0.0, self._election.clock_offset))
        return clock.now() - ahead - since > UNNAMED_FOR

    def _drop_noted(self, runs: list[Run], why: str) -> None:
        """As :meth:`_drop`; what has no state gets one, for the note, if there is room for it."""
        unseen = [run for run in runs if self._ledger.state(run.entry) is None]
        self._ledger.first_seen({run.entry: run.claimed for run in unseen})
        runs = [run for run in runs if self._ledger.state(run.entry) is not None]
        self._drop(runs, why, self._control.unchanged)

    def _dispatch(self) -> float:
        requests = self._hear_operators() if self._control.stale else []
        if self._heap_is_current and self._gated is None:
            self._look_for_changes()
        if not self._heap_is_current:
            with _no_collector():
                self._build_heap()
        if requests:
            self._answer_all(requests)
            if self._election.term != self._ledger.term:
                return 0.0  # they had it resign
        is_time = clock.boottime() - self._held_looked_at > _LOOK_AT_HELD_EVERY
        if is_time or self._ledger.outbox_bytes > self._most_held:
            self._drop_held()
        if self._gated is not None:
            self._publish_waiting()
            if not self._heap_is_current:  # some run stands for what has come due since
                self._build_heap()
        left = self._claim() if self._gated is None else self._turn_gated(self._gated)
        self._ledger.confirm()
        self.metrics.outbox = len(self._ledger.outbox)
        is_flagged = self._lacked == _NO_BROKER or self._election.useless is not None
        if is_flagged and self.metrics.published > self._published_before:
            self._is_of_use()
        self._resign_if_useless(self._publisher.failing_since, _NO_BROKER)
        # Where the write before is still on its way: come back for this one, for it is what a
        # crash would repeat.
        if left <= 0:
            return left
        confirm = _CONFIRM_AFTER if self._ledger.unconfirmed else math.inf
        look = math.inf
        if self._seen.is_midway:
            look = max(_SHORTEST_WAIT, self._look_again - clock.boottime())
        return min(left, confirm, look, self._publisher.left())

    def _room(self) -> int:
        """How many runs may be claimed: what waits for the broker is bounded. What is held back for
        a reason of its own takes none of this room: :meth:`_drop_held` bounds it."""
        outbox = self._ledger.outbox
        if self._ledger.full:
            return 0
        if len(outbox) <= MOST_RUNS - _MOST_CLAIMED:
            return MOST_RUNS - len(outbox)  # enough for a claim, without a look at each
        return MOST_RUNS - sum(self._held_because(run) is None for run in outbox.values())

    def _hear_operators(self) -> list[Request]:
        """What they ask for. What they hold back is looked at by :meth:`_claim`."""
        control = self._control
        before = control.pauses, control.damage, control.unchanged
        requests: list[Request] = control.read()
        if (control.pauses, control.damage, control.unchanged) != before:
            self._heap_is_current = False
            news, self._told_of = control.pauses.news(self._told_of), control.pauses
            for line in news[:_MOST_TOLD]:
                logger.warning("%s", line)
            if len(news) > _MOST_TOLD:
                logger.warning("%d changes of pauses in all", len(news))
        if control.damage is not None:
            logger.error("%s; until then nothing is dispatched", control.damage)
        if control.pauses.skips:
            self._heap_is_current = False
            self._skip_missed()
            control.skipped(self._ledger.term.epoch, self._is_known)
        return requests

    def _answer_all(self, requests: list[Request]) -> None:
        for request in requests:
            if self._election.term == self._ledger.term:
                try:
                    self._answer(request)
                except ZooKeeperError:
                    self._control.give_up(request)
                    raise

    def _is_known(self, entry: str) -> bool:
        """Whether this beat can tell what the entry missed: another master may have to."""
        return entry in self.entries and not self._ledger.damaged(entry)

    def _skip_missed(self) -> None:
        """What was due while entries were held back, and is not to be caught up with."""
        why = "an operator resumed without catching up"
        missed = {}
        for name in list(self.entries):
            until, state = self._control.pauses.skip_until(name), self._ledger.state(name)
            if until is not None and state is not None:
                with self._only_logged(name):
                    if found := self._missed(name, state, until):
                        missed[name] = found
        waiting = [
            run
            for name, run in self._ledger.outbox.items()
            if not run.extra and self._ledger.state(name) is not None
            for until in [self._control.pauses.skip_until(name)]
            if until is not None and run.claimed <= until
        ]
        self._drop(waiting, why, self._control.unchanged)
        self._skip(missed, why, self._control.unchanged)

    def _missed(
        self, name: str, state: RunState, until: datetime, ask: bool = True
    ) -> tuple[datetime, datetime] | None:
        """As :func:`missed_instant`, of an entry after its last run."""
        entry = self.entries[name]
        if not hasattr(entry.schedule, "is_due"):
            return None
        # A gated one may know better: it was enabled again, or made anew.
        known = utc_of(entry, entry.last_run_at or NEVER)
        if self._gated is None or known < state.last_run_at:
            entry.last_run_at = as_of(entry, state.last_run_at)
        start = start_of(entry)
        if (start is not None and start > until) or (ask_at(entry, state) or until) > until:
            return None
        found = missed_instant(entry, until, ask)
        if found is None:
            return None
        due, until = next_free(entry, found[0], state), found[1]
        return (due, until) if due is not None and due <= until else None

    def _skip(
        self, missed: dict[str, tuple[datetime, datetime]], why: str, *also: Operation
    ) -> None:
        if missed:
            self._ledger.skip(missed, f"skipped: {why}", *also)
            self.metrics.skipped += len(missed)
            for name, (due, _) in missed.items():
                logger.warning("%s: due %s, is skipped: %s", name, to_text(due), why)

    def _answer(self, request: Request) -> None:
        record, session = request.record, self._election.session
        of = f" {record.entry}" if record.entry else f" to {record.to}" if record.to else ""
        logger.info("asked by %s to %s%s", record.by, record.do, of)
        if record.do == RUN:
            answer = self._run_now(request, record.entry or "")
        elif record.do == DROP_RUN:
            answer = self._drop_now(request, record.entry or "")
        elif record.do == RESIGN:
            self._publisher.publish_soon(self._ledger.outbox.values(), _LAST_PUBLISHING)
            self._hand_over()
            # In one transaction: the next master must not find the request still open.
            if self._election.resign(
                to=record.to,
                why=f"asked by {record.by}",
                also=[request.answer(Answer(True, "resigned"))],
            ):
                return
            self._forget()
            answer = Answer(False, "could not resign: see the master's log")
        else:
            answer = Answer(False, f"{record.do!r} is nothing that this release can be asked for")
        if answer.run is None:
            with contextlib.suppress(Conflict):  # it was taken back
                session.commit(request.answer(answer))

    def _run_now(self, request: Request, name: str) -> Answer:
        """An extra run; of one that is claimed, the answer is part of the claim."""
        entry, state = self.entries.get(name), self._ledger.state(name)
        if entry is None:
            return Answer(False, f"the master's schedule has no entry {name!r}")
        waiting = self._ledger.outbox.get(name)
        if waiting is not None:
            # Else one that is due in a moment would be in the way.
            self._publisher.publish_soon([waiting])
            waiting = self._ledger.outbox.get(name)
        if waiting is not None:
            why = "the end of the pause" if self._control.holds(name) else "the broker"
            return Answer(False, f"run {waiting.number} waits for {why}")
        if state is None:
            return Answer(False, "its run state is missing or damaged: see the master's log")
        if self._ledger.full:
            return Answer(False, "too many runs wait for the broker")
        now = clock.now()
        number = state.total_run_count + 1
        run = Run(name, number, now, now, self._ledger.term.epoch, True, state.key)
        answer = Answer(True, "claimed", number, self.task_id(name, number, now))
        self._claim_runs([run], request.answer(answer))
        if self._gated is None:
            entry.total_run_count = number
        self._publisher.publish([run])
        return answer

    def _drop_now(self, request: Request, name: str) -> Answer:
        """Drops a run that waits; the answer is part of the transaction."""
        run = self._ledger.outbox.get(name)
        if run is None:
            return Answer(False, "no run of it waits")
        if self._ledger.state(name) is None:
            if not self._ledger.damaged(name):
                self._ledger.first_seen({name: run.claimed})
            if self._ledger.state(name) is None:
                return Answer(False, "its run state is missing or damaged: see the master's log")
        text = "not published" if self._publisher.is_unsent(run) else "perhaps published before"
        answer = Answer(True, text, run.number, self.task_id(name, run.number, run.due))
        waited = self._held_because(run) or "it waited for the broker"
        why = f"{request.record.by[:100]} asked for it; {waited}"
        self._drop([run], why, request.answer(answer))
        return answer

    def _publish_waiting(self) -> None:
        self._publisher.publish(self._ledger.outbox.values())

    def _claim_runs(
        self, runs: list[Run], *also: Operation, meanwhile: Callable[[], object] = lambda: None
    ) -> list[Run]:
        begun = clock.boottime()
        claimed: list[Run] = self._ledger.claim(runs, *also, meanwhile=meanwhile)
        self.metrics.claim_seconds.observe(clock.boottime() - begun)
        self.metrics.claimed += len(claimed)
        return claimed

    def _build_heap(self) -> None:
        """All entries with their states from the ledger, in the order of when to ask them."""
        self._heap_is_current = True  # now, for an entry may be added meanwhile
        if self._gated is not None:
            self._read_gated_anew(self._gated)
            return
        self._look_at_names()
        self._note_named()
        ledger, entries = self._ledger, list(self.entries.items())
        changed = self._seen.take(entries, len(self._named[0]))
        self.metrics.entries = len(entries)
        unseen, zones = {}, {}
        for name, entry in entries:
            if ledger.state(name) is None and not ledger.damaged(name):
                with self._only_logged(name):
                    unseen[name] = self._clock_starts(entry)
                    zones[name] = zone_of(entry)
        ledger.first_seen(unseen, zones=zones)
        self._start_anew_in_another_zone(entries)
        self._agenda.clear()
        ahead, now = [], clock.now()
        self._starting_deadline = self.app.conf.beat_cron_starting_deadline
        self._computes = type(self).is_due is Scheduler.is_due and self._starting_deadline is None
        for name, entry in entries:
            state = ledger.state(name)
            if state is None or self._control.holds(name):
                continue
            if not hasattr(entry.schedule, "is_due"):
                what = "missing" if entry.schedule is None else f"{entry.schedule!r}"[:200]
                self._say_once(f"{name}: its schedule is {what}, so it is never due")
                continue
            if is_ahead(state.last_run_at, now):
                ahead.append(name)
                continue
            try:  # not self._only_logged(): there may be a hundred thousand
                entry.last_run_at = as_of(entry, state.last_run_at)
                entry.total_run_count = state.total_run_count
                asked_at = None if name in changed else ask_at(entry, state)
                if asked_at is not None:
                    self._agenda.put(name, asked_at.timestamp())
                    continue
                # A crontab takes its time to tell: not before others are dispatched.
                self._put(name, entry if is_interval(entry.schedule) else None)
            except Exception:
                logger.exception("%s: cannot be scheduled, left out", name)
        self._note_ahead(ahead)

    def _note_named(self) -> None:
        """Tells the ledger what the schedule names, whenever that may have changed. The clock of
        another scheduler's entry is its own."""
        now, anew = clock.now(), self._gated is None
        for name in self._ledger.note_named(self.entries, now, anew=anew):
            logger.warning("%s: not in any schedule for %s, its state is removed", name, RETENTION)

    def _look_for_changes(self) -> None:
        """Has entries that a program has changed by itself, or put into the schedule or taken out
        of it, find their places."""
        begun, known, schedule = clock.boottime(), self._named[0], self.schedule
        if schedule is not known and (
            # Else it is made anew whenever it is asked for.
            schedule is self.schedule or not self.schedules_equal(known, schedule)
        ):
            self._heap_is_current = False
        if begun < self._look_again:
            return
        if self._seen.is_changed(self.entries, len(known), _MOST_SEEN):
            self._heap_is_current = False
        took = clock.boottime() - begun
        self._look_again = begun
        if took > _SHORT_LOOK:
            self._look_again += min(took / _SEEN_PART, _LONGEST_REST)

    def _start_anew_in_another_zone(self, entries: list[tuple[str, Any]]) -> None:
        """What ran last by the hours of another time zone may be due at once by those of this: its
        clock starts anew, as in Celery."""
        now, changed, anew = clock.now(), {}, []
        for name, entry in entries:
            state = self._ledger.state(name)
            zone = None if state is None else zone_of(entry)
            if state is None or zone is None or zone == state.zone:
                continue
            changed[name] = replace(state, zone=zone)
            if state.zone is not None:
                anew.append(name)
                ahead = timedelta(seconds=self._election.clock_offset)
                changed[name] = changed[name].moved(state.last_run_at, now, ahead)
        self._ledger.rewrite(changed)
        if anew:
            logger.warning(
                "%d entries ran last by the hours of another time zone (%s is now at %s), such as "
                "%s: their clocks start anew",
                len(anew),
                self.app.timezone,
                changed[anew[0]].zone,
                anew[0],
            )

    def _ask(self, entry: Any, delay: Any) -> tuple[int, int] | None:
        """For the state of an entry that was due, and said in how many seconds to ask it again."""
        if not (is_free(entry) or type(self).is_due is not Scheduler.is_due):
            return None
        seconds = _seconds(delay)
        if seconds is None or seconds <= 0:
            return None
        at = clock.timestamp() + min(seconds, _LONGEST_DELAY)
        return int(at * 1000), checksum(entry.schedule)

    def _is_ahead(self, name: str) -> bool:
        state = self._ledger.state(name)
        return state is not None and is_ahead(state.last_run_at, clock.now())

    def _note_ahead(self, names: list[str]) -> None:
        """Those that the clock of this machine has wait, because it is behind."""
        self._ahead = bool(names)
        for name in names[:1]:
            logger.error(
                "%s ran last at %s, says %s, which is still to come by the clock of this machine "
                "(%.1f s %s ZooKeeper's)%s: it does not run here until then",
                name,
                to_text(self._ledger.state(name).last_run_at),
                self._election.paths.page(page_of(name)),
                abs(self._election.clock_offset),
                "behind" if self._election.clock_offset < 0 else "ahead of",
                f", and so for {len(names) - 1} more" if len(names) > 1 else "",
            )

    @contextlib.contextmanager
    def _only_logged(self, name: str) -> Iterator[None]:
        """What goes wrong with one entry must not harm the others."""
        try:
            yield
        except Exception:
            logger.exception("%s: cannot be scheduled, left out", name)

    def _clock_starts(self, entry: Any) -> datetime:
        """The `last_run_at` of an entry that is seen for the first time: now, whenever this beat
        was started, unless the configuration gives one."""
        given = utc_of(entry, entry.last_run_at)
        # A time before the scheduler was made cannot be Celery's default.
        return given if given < self._built_at else utc_of(entry, entry.default_now())

    def _due(self, name: str, entry: Any) -> datetime | None:
        """When an entry is due, None if it is to be asked."""
        due, state = due_by_celery(entry) if self._computes else None, self._ledger.state(name)
        return due if state is None else next_free(entry, due, state)

    def _put(self, name: str, entry: Any) -> None:
        """Onto the agenda: for when the entry is due; if that is not known, or it is None, to be
        asked now."""
        due = None if entry is None else self._due(name, entry)
        self._agenda.put(name, 0.0 if due is None else due.timestamp() - _CLAIM_AHEAD, due)

    def _put_later(self, name: str, delay: Any) -> None:
        """Onto the agenda, to be asked after `delay`, as Celery's schedules say it."""
        seconds = _seconds(delay)
        self._agenda.put(
            name, clock.timestamp() + (self.max_interval if seconds is None else seconds)
        )

    def _claim(self) -> float:
        """Claims what is due, or will be in a moment, and publishes it when it is, as long as not
        too much waits for the broker: the outbox is written whole. What is not claimed stays due.
        Returns the seconds after which something may be."""
        if self._control.pauses_stale:
            return 0.0
        due: dict[str, tuple[Item, Run, Any]] = {}
        skipped: dict[str, tuple[datetime, datetime]] = {}
        entries, now, room = self.entries, clock.now(), self._room()
        for _ in range(_MOST_LOOKED_AT):
            item = None
            if len(due) < min(room, _MOST_CLAIMED):
                item = self._agenda.take(now.timestamp(), _CLAIM_TOGETHER)
            if item is None:
                break
            entry = entries.get(item.name)
            if entry is None:
                continue
            if not self._seen.has(item.name, entry):  # and so it does not know of its last run
                self._heap_is_current = False
                continue
            if item.name in self._ledger.outbox:
                # Its last run waits for the broker, and so does the next: not a flood afterwards.
                is_at_fault = self._publisher.is_at_fault(item.name)
                left = self._publisher.back_off(item.name)
                left = max(_RETRY_AFTER if is_at_fault else _SHORTEST_WAIT, left)
                self._agenda.put(item.name, now.timestamp() + left, item.due)
                continue
            instant = item.due
            if instant is None or utc_of(entry, entry.last_run_at) >= instant:
                # Its last run stood for it, too.
                instant = self._due(item.name, entry)
            ahead = _CLAIM_AHEAD + _CLAIM_TOGETHER
            if instant is not None and instant.timestamp() - now.timestamp() > ahead:
                self._agenda.put(item.name, instant.timestamp() - _CLAIM_AHEAD, instant)
                continue
            if instant is not None:
                number, epoch = entry.total_run_count + 1, self._ledger.term.epoch
                run = Run(item.name, number, instant, last_run(entry, instant, now), epoch)
                due[item.name] = item, run, None
                continue
            try:
                with at_one_instant(entry.schedule):
                    if entry.last_run_at.tzinfo is None:
                        # Naive clocks are set back in autumn.
                        last_run_at = self._ledger.state(item.name).last_run_at
                        entry.last_run_at = as_of(entry, last_run_at)
                    is_due, delay = self.is_due(entry)
                    if is_due:
                        following = next(entry)
                        run = self._run_of(item.name, entry, following)
                        free = next_free(entry, run.due, self._ledger.state(item.name))
                        if free is None or free > max(run.due, run.claimed):
                            # What is due has run already.
                            at = now if free is None else free
                            self._put_later(item.name, (at - now).total_seconds() or None)
                            continue
                        run = replace(run, due=free, ask=self._ask(entry, delay))
                        due[item.name] = item, run, (following, delay)
                        continue
                    if self._starting_deadline is not None:
                        # Celery does not start what is older, and only says that it is not due.
                        at = utc_of(entry, entry.default_now())
                        missed = due_instant(entry)
                        if (at - missed).total_seconds() > self._starting_deadline:
                            skipped[item.name] = missed, at
                            entry.last_run_at = as_of(entry, at)
            except Exception:
                logger.exception("%s: cannot tell when it is due, trying again later", item.name)
                delay = self.max_interval
            self._put_later(item.name, max(_SHORTEST_WAIT, delay) if _is_number(delay) else delay)
            self._seen.put(item.name, entry)  # being asked may have changed it
        self._skip(skipped, "older than beat_cron_starting_deadline")
        runs = [run for _, run, _ in due.values()]
        if runs:
            unchanged = self._control.unchanged
            claimed = self._claim_runs(runs, unchanged, meanwhile=self._publish_waiting)
            for run in claimed:
                self._go_on(run, due.pop(run.entry)[2])
            self._agenda.put_back(item for item, _, _ in due.values())
        if not runs or self._agenda.next_at > now.timestamp():
            self._publish_waiting()  # else it is, while what comes next is claimed
        if not self._heap_is_current:
            return 0.0
        next_at = self._agenda.next_at if self._room() > 0 else math.inf
        return next_at - clock.timestamp()

    def _go_on(self, run: Run, asked: Any) -> None:
        """The clock of an entry of which a run was claimed goes on. `asked`: what its class says
        of it, the following and the delay."""
        entry = self.entries.get(run.entry)
        if not self._seen.has(run.entry, entry):
            self._heap_is_current = False  # it was replaced, or removed, just now
        elif asked is None:
            entry.last_run_at, entry.total_run_count = as_of(entry, run.claimed), run.number
            self._put(run.entry, entry)
        else:
            self.entries[run.entry], delay = asked
            self._put_later(run.entry, delay)
            self._seen.put(run.entry, asked[0])

    # Another scheduler behind the election: see gate/ ---------------------------------------------

    def _turn_gated(self, gated: Gated) -> float:
        self._is_full = self._room() <= 0
        left = 0.0 if self._control.pauses_stale else gated.turn()
        self._gated_failing_since = None
        if self._lacked == _NO_SCHEDULER:
            self._is_of_use()
        if gated.entries is not self._taken:
            self._take_entries(gated)
        return left

    def _read_gated_anew(self, gated: Gated) -> None:
        gated.read_anew()
        self._take_entries(gated)
        self._note_ahead([name for name in self.entries if self._is_ahead(name)])

    def _take_entries(self, gated: Gated) -> None:
        self.data = self._taken = gated.entries
        self._look_at_names()
        self.metrics.entries = len(self.entries)
        why = "its entry was deleted or disabled while it waited"
        lost = [
            run
            for name, run in self._ledger.outbox.items()
            if self._ledger.state(name) is not None and gated.has_lost(name, run.key)
        ]
        self._drop(lost, why)
        self._note_named()
        unseen = {
            name: entry
            for name, entry in self.entries.items()
            if self._ledger.state(name) is None and not self._ledger.damaged(name)
        }
        self._ledger.first_seen(
            {name: utc_of(entry, entry.last_run_at or NEVER) for name, entry in unseen.items()},
            {name: key_of(entry) for name, entry in unseen.items()},
        )

    def state(self, name: str) -> RunState | None:
        """For the gated scheduler, as is what follows."""
        state: RunState | None = self._ledger.state(self._text_of(name))
        return state

    def is_open(self) -> bool:
        return bool(self._ledger.term is not None and self._ledger.term == self._election.term)

    def holds_back(self, name: str) -> float | None:
        name = self._text_of(name)
        waiting = self._ledger.outbox.get(name)
        if waiting is not None and self.may_publish(waiting):
            return max(_SHORTEST_WAIT, self._publisher.back_off(name))
        held = waiting is not None or self._control.holds(name) or self._ledger.damaged(name)
        if held or self._control.pauses_stale or self._closing:
            return _LONGEST_WAIT
        if self._ahead and is_ahead(self._ledger.state(name).last_run_at, clock.now()):
            return _LONGEST_WAIT
        return _RETRY_AFTER if self._is_full else None

    def dispatch(self, entry: Any, due: datetime, claimed: datetime) -> None:
        assert self._gated is not None
        self.data = self._gated.entries  # in this very turn it may have read them anew
        name, epoch = self._text_of(entry.name), self._ledger.term.epoch
        state = self._ledger.state(name)
        if name in self._ledger.outbox:
            logger.error("%s: its last run waits for the broker: another is not kept", name)
            return
        if state is None:  # it was read in this very turn
            last_run_at = utc_of(entry, entry.last_run_at or NEVER)
            self._ledger.first_seen({name: last_run_at}, {name: key_of(entry)})
            state = self._ledger.state(name)
            if state is None:
                return  # the ledger has said why
        with at_one_instant(entry.schedule):
            free = next_free(entry, due, state)
        if free is None or free > max(due, claimed):
            return  # it ran already, by a clock that was ahead
        if key_of(entry) is None and due < state.last_run_at - TOLERANCE:
            # By a clock that was behind, and is right again. (A row of a database may be enabled
            # again, to run as if it never had.)
            return
        number = state.total_run_count + 1
        run = Run(name, number, free, claimed, epoch, key=key_of(entry))
        self._publisher.publish(self._claim_runs([run], self._control.unchanged))
        self._is_full = self._room() <= 0

    def _run_of(self, name: str, entry: Any, following: Any) -> Run:
        claimed = utc_of(following, following.last_run_at)
        number, epoch = following.total_run_count, self._ledger.term.epoch
        return Run(name, number, due_instant(entry), claimed, epoch)

    def _resign_if_useless(self, since: float | None, what: str) -> None:
        """A master that does not reach the broker, or its entries, makes way for one that may.
        `since`: on boottime()."""
        deadline = self.settings.publish_deadline
        if deadline is not None and since is not None and clock.boottime() - since > deadline:
            logger.error(
                "%s for %g s (zk_beat_publish_deadline = %g): resigning, so that another beat can "
                "try",
                what,
                clock.boottime() - since,
                deadline,
            )
            self._hand_over()
            self._gated_failing_since = None
            self._lacked, self._published_before = what, self.metrics.published
            self._election.resign(why=f"{what} for {deadline:g} s", useless=True)
            self._forget()

    def _is_of_use(self) -> None:
        self._lacked = ""
        self._election.of_use()

    def _look_for_broker(self) -> None:
        """On a thread of its own: a broker may let one wait for long, and this beat is to stop, or
        to take over, meanwhile."""
        if self._prober is None or not self._prober.is_alive():
            self._prober = clock.thread(self._probe, "zk-beat-probe")
            self._prober.start()

    def _probe(self) -> None:
        while not self._closing and self._election.useless is not None and not self.is_open():
            broker = Broker(self.app, lambda: self._session_timeout, lambda: None)
            try:
                reached = broker.producer is not None
            except Exception as exc:
                reached = False
                logger.debug("the broker cannot be reached: %s", exc)
            with contextlib.suppress(Exception):
                broker.drop()
            if reached:
                logger.info("the broker can be reached again")
                self._election.of_use()
                break
            clock.sleep(_PROBE_EVERY)

    # What the publisher asks: see publishing.py ---------------------------------------------------

    def task_id(self, entry: str, number: int, due: datetime) -> str:
        """The same for the same run, whoever publishes it, and whoever asks."""
        known = self.entries.get(entry)
        own = known.options.get("task_id") if known is not None else None
        return str(own) if own else task_id(self._root, entry, number, due)

    def may_publish(self, run: Run) -> bool:
        return run.entry in self.entries and (run.extra or not self._control.holds(run.entry))

    def goes_on_from(self, run: Run, at: datetime) -> datetime | None:
        state = self._ledger.state(run.entry)
        if run.extra or state is None or at - run.claimed < _LATE:
            return None
        found = None
        with self._only_logged(run.entry):
            # A class that does not say when it was due will say so itself.
            found = self._missed(run.entry, state, at, ask=False)
        if found is None:
            return None
        entry = self.entries[run.entry]
        goes_on_from = last_run(entry, *found)
        if self._gated is None:
            entry.last_run_at = as_of(entry, goes_on_from)
        else:
            self._heap_is_current = False  # the gated one is to know
        return goes_on_from

    def may_publish_now(self) -> bool:
        is_late = self._closing and clock.boottime() > self._publish_until
        return not (is_late or self._control.pauses_stale)

    def sender(self) -> Callable[[Any, Callable[[], object]], None]:
        return Sender(self, self.producer).send if self._gated is None else self._gated.send

    def drop(self, runs: list[Run], why: Mapping[str, str]) -> None:
        self._drop(runs, why)

    def show_progress(self) -> None:
        now = clock.boottime()
        # Each time the main thread wakes up, and this one has to wait for it.
        if now - self.metrics.ticked >= SHOWN_EVERY:
            self.metrics.ticked = now
            if not self._progress.is_set():
                self._progress.set()

    def digest(self) -> str:
        """Of what this beat would run, so that beats with different schedules can be told."""
        entries = sorted(
            (name, str(entry.task), shown(entry.schedule)) for name, entry in self.entries.items()
        )
        of: Any = entries if self.settings.scheduler is None else self.settings.scheduler
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """While much is made that stays, Python's collector looks through all of it again and again: a
    quarter of the time of a take-over with 100,000 entries."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _seconds(delay: Any) -> float | None:
    """Of what a schedule says; None where it is no number."""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    return float(seconds) if _is_number(seconds) and not math.isnan(seconds) else None


def _exit_on_sigterm() -> None:
    """In the process that ``celery worker -B`` starts, SIGTERM ends Python on the spot, and the
    session would have to expire: have it end in order there, as ``celery beat`` does."""
    if not clock.in_main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:

        def leave(number: int, frame: FrameType | None) -> None:
            sys.exit(0)

        signal.signal(signal.SIGTERM, leave)
