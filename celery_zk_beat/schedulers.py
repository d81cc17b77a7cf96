"""The Celery side: a beat scheduler that dispatches while its process is master.

Celery calls :meth:`ZooKeeperScheduler.tick` in the main thread, where a signal handler may
interrupt any line. So another thread does the work (loop.py), and a handler can only ask it to
stop. ``tick()`` waits for progress of that thread and passes on its errors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from celery.beat import Scheduler, Service
from celery.utils.imports import load_extension_class_names, symbol_by_name

from . import clock
from .beat_schedule import BeatSchedule
from .broker import Broker, broker_digest
from .dispatcher import Dispatcher
from .due import name_schedule, shown
from .election.public import MasterElection
from .errors import SettingsError, ZkBeatError
from .forecast import next_day
from .gate.entries import GatedEntries
from .gate.gated import scheduler_class
from .guard.keeper import Guard
from .hooks import Hooked
from .ledger import BELOW_ROOT
from .log import get_logger
from .loop import Loop
from .messages import run_id
from .metrics import Metrics
from .names import Entries
from .paths import Paths
from .settings import BACKEND, Settings, as_written
from .signals import Announcer, beat_demoted, beat_elected
from .source import Source
from .systemd import Unit

if TYPE_CHECKING:
    from .web.server import Server

logger = get_logger(__name__)

OUR_SCHEDULER = "celery_zk_beat:ZooKeeperScheduler"

#: How many seconds a stopping beat takes in all, including what it records.
_STOP_PATIENCE = 3.0
#: Least seconds without progress, twice in a row, after which the dispatch loop counts as hung.
_LEAST_PATIENCE = 60.0


class ZooKeeperScheduler(Hooked):
    """``beat_scheduler = "celery_zk_beat:ZooKeeperScheduler"``, or ``beat -S zookeeper``.

    One of all beats with the same root is master and dispatches; the others wait inside
    :meth:`tick`. The entries are those of ``beat_schedule``, as Celery reads it; their run states
    are in ZooKeeper. With ``zk_beat_scheduler`` they are those of another scheduler, which is
    created when this beat is elected. All methods are for the main thread. Nothing connects before
    the first tick.

    Raises:
        SystemExit: a setting cannot work; the text is that of the SettingsError, which Celery would
            show as a traceback.
    """

    data: dict[str, Any]
    #: RedBeat asks beat's scheduler whether it wants a lock.
    lock_key = None

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        try:
            self.settings = Settings.from_app(app)
            self._gated_class = self._find_gated(kwargs.get("lazy", False))
            if self.settings.outcomes == BACKEND:
                from .outcomes.backend import check_backend  # which most have no use for

                check_backend(app, self.settings)
        except SettingsError as exc:
            raise SystemExit(f"celery beat: {exc}") from None
        #: The arguments with which Celery makes a scheduler.
        self._arguments = {"app": app, **kwargs, "lazy": False}
        is_gated = self._gated_class is not None
        # Nobody has given names to the entries that another scheduler runs.
        self._names = Entries(lambda: self.schedule, is_gated, None if is_gated else name_schedule)
        #: What this beat has done so far. Any thread may read it.
        self.metrics = Metrics()
        self._broker = Broker(app, self._session_timeout, lambda: self._loop.ledger.assure())
        self._announcer = Announcer(self)
        self._announced_epoch = 0
        self._unit = Unit()
        self._server: Server | None = None
        self._thread: clock.Thread | None = None
        self._progress = clock.Wakeup()
        self._failure: BaseException | None = None
        #: On boottime(): how long to wait for a stopping beat; None before it is stopped.
        self._patience_ends: float | None = None
        super().__init__(app, *args, **kwargs)

    def _find_gated(self, lazy: bool) -> type[Scheduler] | None:
        """Returns the class of the scheduler whose entries are dispatched instead of our own."""
        name = self.settings.scheduler
        if name is None or lazy:
            return None
        shown = f"{self.settings.prefix}scheduler"
        found = scheduler_class(name, shown)
        if issubclass(found, ZooKeeperScheduler):
            raise SettingsError(f"{shown} = {name!r}: remove it; this is the scheduler without it")
        return found

    @property
    def info(self) -> str:
        """The lines for the start-up banner."""
        hosts, root, gated = self.settings.hosts, self.settings.root, self.settings.scheduler
        lines = [("zookeeper", hosts), ("root", root), ("id", self.settings.id)]
        lines += [] if gated is None else [("elected", gated)]
        return "\n".join(f"    . {name} -> {value}" for name, value in lines)

    # What Celery calls --------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        if self.settings.scheduler is not None:
            return  # the gated one knows its entries, when there is one
        # In this order: Celery's own in-memory one merges last, and so loses the default entries.
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Waits for progress of the dispatch loop, a few seconds at most. Returns 0.

        Raises:
            SystemExit: the loop has ended for a reason that waiting does not cure, such as a root
                that belongs to another app.
        """
        if self._thread is None:
            _exit_on_sigterm()
            loop = self._loop
            if self._patience_ends is not None:
                loop.close()  # a signal handler called close() before the loop existed
            self._serve_http()
            self._thread = clock.thread(self._run, "zk-beat-dispatch")
            self._thread.start()
        self._wait_for_progress()
        if self._failure is not None:
            self._raise_failure()
        self._unit.ticked(self._role())
        self.tick_for_hooks()
        return 0

    def close(self) -> None:
        """Hands over: publishes what is claimed, then closes the session, so that another beat is
        elected immediately. Returns within a few seconds, whatever hangs. May be called twice, and
        from a signal handler, as Celery does."""
        if self._patience_ends is None:
            self._patience_ends = clock.boottime() + _STOP_PATIENCE
            self._unit.stopping()
        # Not the property: it would make one.
        loop, thread = vars(self).get("_loop"), self._thread
        if loop is not None:
            loop.close()
        if thread is not None and thread.is_alive():
            thread.join(max(0.0, self._patience_ends - clock.boottime()))
        if loop is not None:
            loop.election.stop()
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
        self._names.is_current = False
        return entry

    def update_from_dict(self, dict_: Any) -> None:
        super().update_from_dict(dict_)
        self._names.is_current = False

    def merge_inplace(self, b: Any) -> None:
        super().merge_inplace(b)
        self._names.is_current = False

    @property
    def entries(self) -> Mapping[str, Any]:
        """The schedule, by names as text: the names in the ledger, the log and the commands."""
        return self._names.get()

    @property
    def election(self) -> MasterElection:
        """The election of this beat; not started before the first tick."""
        return self._loop.election

    def task_id(self, entry: str, number: int, due: datetime) -> str:
        """The task id of a run: the same in every beat. `due` is aware."""
        root = Paths.of(self.settings.hosts, self.settings.root).root
        return run_id(root, self.entries, entry, number, due)

    def digest(self) -> str:
        """A hash of what this beat would run; it differs if schedules differ."""
        entries = sorted(
            (name, str(entry.task), shown(entry.schedule)) for name, entry in self.entries.items()
        )
        of: Any = entries if self.settings.scheduler is None else self.settings.scheduler
        if self.settings.entries:
            of = [of, "and live entries", self.settings.entries_tasks]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]

    @property
    def connection(self) -> Any:
        return self._broker.connection

    @property
    def producer(self) -> Any:
        return self._broker.producer

    # The dispatch loop, and what surrounds it ----------------------------------------------------

    @functools.cached_property
    def _loop(self) -> Loop:
        """The loop. The first tick makes it: only then is the schedule complete."""
        settings = self.settings
        election = MasterElection(
            settings.hosts,
            settings.root,
            id=settings.id,
            session_timeout=settings.session_timeout,
            app=settings.app,
            schedule=self.digest(),
            broker=broker_digest(self.app),
            access=settings.access,
            guard=Guard(settings.access) if settings.fast_takeover else None,
            on_elected=self._announce_elected,
            on_demoted=self._announce_demoted,
            below=BELOW_ROOT,
        )
        self._names.look_anew()
        source = "code" if settings.scheduler is None else "store"
        self.metrics.by_source = {source: len(self.entries)}
        return Loop(
            self,
            settings,
            self.metrics,
            election,
            self._broker,
            self._announcer,
            self._make_source,
            self._progress,
        )

    def _session_timeout(self) -> float:
        """In seconds, as granted if that is known. Makes no loop before the first tick: the
        schedule may not be complete yet."""
        loop = vars(self).get("_loop")
        return self.settings.session_timeout if loop is None else loop.election.session.timeout

    def _make_source(self, dispatcher: Dispatcher) -> Source:
        if self.settings.entries:
            from .live_schedule import LiveSchedule  # most do not need it

            return LiveSchedule(self, self._names, dispatcher)
        if self._gated_class is None:
            return BeatSchedule(self, self._names, dispatcher)
        return GatedEntries(self, self._names, dispatcher, self._gated_class, self._arguments)

    def _run(self) -> None:
        try:
            self.app.set_current()
            self._loop.run()
        except ZkBeatError as exc:
            logger.critical("beat stops: %s", exc)
            self._failure = exc
        except BaseException as exc:
            self._failure = exc
        finally:
            self._progress.set()

    def _role(self) -> str:
        """The role in a few words, for systemd."""
        election = self._loop.election
        term, master = election.term, election.master
        if term is not None:
            return f"master, epoch {term.epoch}"
        if not election.session.connected:
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
            patience = None  # a task that is executed here may take any time
        for _ in range(2):  # twice, because after a suspend the first wait ends at once
            if self._progress.wait(patience):
                return
        self._failure = ZkBeatError(
            f"no progress for {2 * (patience or 0):g} s, probably because the broker neither "
            "answers nor refuses (look at its time-outs in broker_transport_options)"
        )
        logger.critical("beat stops, so that another can take over: %s", self._failure)

    def _raise_failure(self) -> NoReturn:
        assert self._failure is not None
        if isinstance(self._failure, ZkBeatError):
            raise SystemExit(1)  # not the error itself: Celery would show a traceback
        raise self._failure

    def _serve_http(self) -> None:
        if self.settings.http is None:
            return
        try:
            from .web import server, state  # needs an extra

            day = functools.partial(next_day, self)
            beat = state.Beat(self.settings, self.election, self.metrics, self, day)
            self._server = server.Server(beat, *self.settings.http)
        except SettingsError as exc:
            logger.critical("beat stops: %s", exc)
            self._failure = exc  # for close(): Celery treats a SystemExit here as a wish
            self._raise_failure()


def _exit_on_sigterm() -> None:
    """In the process that ``celery worker -B`` starts, SIGTERM ends Python at once, and the session
    would have to time out. Makes it end in order there, as in ``celery beat``."""
    if not clock.in_main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:

        def leave(number: int, frame: FrameType | None) -> None:
            sys.exit(0)

        signal.signal(signal.SIGTERM, leave)


def scheduler_of(app: Any) -> tuple[ZooKeeperScheduler, list[str]]:
    """Returns the scheduler as beat would make it, and the lines about it. Commands need its
    schedule, to which the app's modules may add, and a class of the app's own."""
    app.loader.import_default_modules()
    app.finalize()
    name, shown = app.conf.beat_scheduler, as_written(app.conf, "beat_scheduler")
    aliases = dict(load_extension_class_names("celery.beat_schedulers"))
    ours = f"set it to {OUR_SCHEDULER!r}"
    try:
        kind = symbol_by_name(name, aliases=aliases)
        if not issubclass(kind, ZooKeeperScheduler):
            why = "takes no part in the election, and dispatches everything"
            remark = f"{shown} = {name!r}: a beat that is started with it {why}; {ours}"
            return ZooKeeperScheduler(app), [remark]
        return Service(app, scheduler_cls=kind).scheduler, []
    except (Exception, SystemExit) as exc:
        why = f"{type(exc).__name__}: {exc}"
        remark = f"{shown} = {name!r} cannot be created here, so its entries may differ: {why}"
        return ZooKeeperScheduler(app), [remark]
