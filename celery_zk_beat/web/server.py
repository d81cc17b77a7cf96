"""HTTP is served by a process of its own, a child of the beat's.

So requests, and what is read of ZooKeeper and made into JSON for them, take no time of the dispatch
loop's, however many they are. (In one process, 200 requests a second made runs late:
benchmarks/http.py.) What only the beat itself knows, its :class:`State`, the child asks of it, a
few times a second at most. A connection is good for one request and lives some seconds, whatever
its client does.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import heapq
import json
import logging
import math
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, NamedTuple, NoReturn

import waitress.adjustments
import waitress.channel
import waitress.server
import waitress.task
import waitress.wasyncore
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .. import clock
from ..errors import SettingsError, ZkBeatError
from ..log import get_logger, safe
from ..metrics import Histogram, Metrics
from ..records import to_text
from ..session import connected
from ..status.reader import Reader, Snapshot
from ..version import __version__

logger = get_logger(__name__)

#: Seconds within which the dispatch loop of a beat that is alive moves.
ALIVE_WITHIN = 60.0
#: Seconds for which a State is good, and that a request waits for a newer one.
_TOLD, _TOLD_WITHIN = 0.2, 1.0
#: Seconds from one reading of ZooKeeper to the next; more where reading takes long, so that no more
#: than a part of the time is spent on it.
_EVERY, _PART = 2.0, 1 / 5
#: Seconds for which a reading is given out, and after which reading ends if nobody asks.
_CURRENT, _IDLE = 10.0, 30.0
#: Seconds that a request waits for a reading, and how many may: fewer than there are threads.
_PATIENCE, _MOST_WAITING = 2.0, 2
#: Most entries that the page shows.
_MOST_SHOWN = 50

#: Seconds that a connection lives, and how many may be open: more, and the oldest is closed.
_LIFETIME, _MOST_CONNECTIONS = 15.0, 128
_THREADS = 4
#: How willingly the child gives way to others: as willingly as it can (sched(7)).
_NICENESS = 19
#: Seconds that closing waits for the child.
_GONE_WITHIN = 1.0

_STATUS_LINES = {
    200: "200 OK",
    404: "404 Not Found",
    405: "405 Method Not Allowed",
    503: "503 Service Unavailable",
}
_HEADERS = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]
_TEXT, _JSON = "text/plain; charset=utf-8", "application/json"
_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: All that there is to ask for.
PATHS = ("/livez", "/readyz", "/leader", "/metrics", "/status.json", "/page.json", *_ASSETS)


def serve(scheduler: Any) -> Server:
    """Serves what there is to know of a scheduler with an election. Forks: to be called before
    there is a connection, or a thread of ours.

    Raises:
        SettingsError: it cannot listen where ``zk_beat_http`` says.
    """
    return Server(scheduler)


# What the beat tells ----------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What a beat knows of itself. Times on boottime().

    Attributes:
        at: when it told this.
        began: when serving began.
        epoch: its own as master; None on a standby.
        master, master_epoch: the master that it knows, itself included; None and 0 before.
    """

    at: float
    began: float
    id: str
    hosts: str
    root: str
    connected: bool
    session_timeout: float
    clock_offset: float
    decided: bool
    epoch: int | None
    master: str | None
    master_epoch: int
    metrics: Metrics

    @classmethod
    def of(cls, scheduler: Any, began: float) -> State:
        """That of a scheduler with an election. Any thread."""
        election = scheduler._election
        session, epoch, master = election.session, election.epoch, election.master
        return cls(
            at=clock.boottime(),
            began=began,
            id=election.id,
            hosts=election.hosts,
            root=scheduler.settings.root,
            connected=session.connected,
            session_timeout=session.timeout,
            clock_offset=election.clock_offset,
            decided=election.decided,
            epoch=epoch,
            master=None if master is None else master.id,
            master_epoch=epoch or (0 if master is None else master.epoch),
            metrics=scheduler.metrics,
        )

    def encode(self) -> bytes:
        """One line."""
        return json.dumps(vars(self), default=vars).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> State:
        fields = json.loads(line)
        metrics = Metrics(**fields.pop("metrics"))
        metrics.lateness = _decode_histogram(metrics.lateness)
        metrics.claim_seconds = _decode_histogram(metrics.claim_seconds)
        return cls(metrics=metrics, **fields)


def _decode_histogram(fields: Any) -> Histogram:
    histogram = Histogram(fields["bounds"])
    histogram.counts, histogram.sum = fields["counts"], fields["sum"]
    return histogram


class Told(NamedTuple):
    """The newest State; `answers`: whether it is of this second."""

    state: State
    answers: bool


# What is answered -------------------------------------------------------------------------------


class Check(NamedTuple):
    """One line of a probe's answer."""

    holds: bool
    text: str


def alive(state: State, now: float) -> Check:
    """Whether the dispatch loop moves; `now` on boottime()."""
    ticked = state.metrics.ticked
    age = now - (ticked or state.began)
    did = f"the dispatch loop moved {age:.1f} s ago" if ticked else "the dispatch loop begins"
    return Check(age <= ALIVE_WITHIN, did)


def ready(told: Told) -> list[Check]:
    """Whether a beat could dispatch, or take over."""
    state, answers = told
    if not answers:
        return [_SILENT]
    if not state.connected:
        return [Check(False, f"no connection to ZooKeeper at {state.hosts}")]
    connected = f"connected to ZooKeeper, session time-out {state.session_timeout:g} s"
    return [Check(True, connected), Check(state.decided, _role(state))]


def leads(told: Told) -> Check:
    return Check(told.state.epoch is not None, _role(told.state)) if told.answers else _SILENT


#: A process that is stopped, for example.
_SILENT = Check(False, f"the beat has not answered for {_TOLD_WITHIN:g} s")


def _role(state: State) -> str:
    if state.epoch is not None:
        return f"{state.id} is master, epoch {state.epoch}"
    if not state.decided:
        return f"{state.id} is neither master nor standby yet"
    known = "no master is known" if state.master is None else f"{state.master} is master"
    return f"{state.id} is a standby, {known}"


class Answer(NamedTuple):
    status: int
    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Application:
    """The WSGI application.

    Args:
        ask: asks the beat.
        statuses: who reads ZooKeeper.
        pid: of the beat, whose process's metrics are shown, too.
    """

    def __init__(self, ask: Callable[[], Told], statuses: Statuses, pid: int) -> None:
        self._ask = ask
        self._statuses = statuses
        self._pid = pid
        self._paths: dict[str, Callable[[dict[str, Any]], Answer]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/leader": self._leader,
            "/metrics": self._metrics,
            "/status.json": self._status,
            "/page.json": self._page,
        }
        folder = files(__package__) / "page"
        self._assets = {
            path: Answer(200, type, (folder / name).read_bytes())
            for path, (name, type) in _ASSETS.items()
        }

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        answer = self._answer(method, environ)
        length = ("Content-Length", str(len(answer.body)))
        headers = [("Content-Type", answer.type), length, *_HEADERS, *answer.headers]
        start_response(_STATUS_LINES[answer.status], headers)
        return [] if method == "HEAD" else [answer.body]

    def _answer(self, method: str, environ: dict[str, Any]) -> Answer:
        path = environ.get("PATH_INFO", "")
        if asset := self._assets.get(path):
            answer: Callable[[dict[str, Any]], Answer] = lambda _: asset  # noqa: E731
        elif path in self._paths:
            answer = self._paths[path]
        else:
            return Answer(404, _TEXT, b"no such page\n")
        if method not in ("GET", "HEAD"):
            return Answer(405, _TEXT, b"GET and HEAD only\n", (("Allow", "GET, HEAD"),))
        return answer(environ)

    def _livez(self, environ: dict[str, Any]) -> Answer:
        return _probe(alive(self._ask().state, clock.boottime()))

    def _readyz(self, environ: dict[str, Any]) -> Answer:
        return _probe(*ready(self._ask()))

    def _leader(self, environ: dict[str, Any]) -> Answer:
        return _probe(leads(self._ask()))

    def _metrics(self, environ: dict[str, Any]) -> Answer:
        state, answers = self._ask()
        if not answers:
            return _probe(_SILENT)  # so that Prometheus takes the beat for down
        encode, type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        registry = CollectorRegistry()
        registry.register(_Collector(state))
        ProcessCollector(pid=lambda: self._pid, registry=registry)
        return Answer(200, type, encode(registry))

    def _status(self, environ: dict[str, Any]) -> Answer:
        reading, error = self._statuses.get()
        if error is None and reading is not None:
            return Answer(200, _JSON, reading.full())
        found = {"error": error, **_age_of(reading)}
        return Answer(503, _JSON, json.dumps(found).encode())

    def _page(self, environ: dict[str, Any]) -> Answer:
        """What the page shows: of the entries, only some; and, unlike /status.json, the last that
        is known where ZooKeeper does not answer."""
        reading, error = self._statuses.get()
        state, answers = self._ask()  # afterwards, for the status may take a while
        head = {
            "beat": {
                "id": state.id,
                "version": __version__,
                "answers": answers,
                "connected": state.connected,
            },
            "now": to_text(clock.now()),
            "error": error,
            **_age_of(reading),
        }
        status = b"null" if reading is None else reading.page
        body = json.dumps(head).encode()[:-1] + b', "status": ' + status + b"}"
        return Answer(200, _JSON, body)


def _probe(*checks: Check) -> Answer:
    """One line a check."""
    lines = [f"{'ok' if holds else 'failed'}: {safe(text)}\n" for holds, text in checks]
    status = 200 if all(check.holds for check in checks) else 503
    return Answer(status, _TEXT, "".join(lines).encode(errors="backslashreplace"))


def _age_of(reading: Reading | None) -> dict[str, Any]:
    if reading is None:
        return {"read_at": None, "age": None}
    age = clock.boottime() - reading.at
    return {"read_at": to_text(reading.snapshot.read_at), "age": round(age, 3)}


class _Collector(Collector):
    """The numbers of a beat as Prometheus wants them; docs/monitoring.md lists them."""

    def __init__(self, state: State) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._state
        metrics = state.metrics
        yield InfoMetricFamily(
            "celery_zk_beat",
            "What this beat is.",
            {"version": __version__, "id": state.id, "root": state.root},
        )
        gauges = (
            ("is_master", "Whether this beat is master: 1 or 0.", int(state.epoch is not None)),
            (
                "epoch",
                "Epoch of the master that this beat knows, itself included; 0 before the first.",
                state.master_epoch,
            ),
            (
                "session_connected",
                "Whether there is a connection to ZooKeeper: 1 or 0.",
                int(state.connected),
            ),
            (
                "clock_offset_seconds",
                "How far this machine's clock is at least ahead of ZooKeeper's; below 0: behind.",
                state.clock_offset,
            ),
            ("entries", "Entries of this beat's schedule.", metrics.entries),
            (
                "outbox_runs",
                "Runs that are claimed and not known to be published; 0 on a standby.",
                metrics.outbox,
            ),
            (
                # Not an age: that would stand still, and look well, if nobody counted it on.
                "last_tick_timestamp_seconds",
                "When the dispatch loop moved last, as seconds since 1970; before: when it began.",
                clock.timestamp() - (clock.boottime() - (metrics.ticked or state.began)),
            ),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"celery_zk_beat_{name}", text, value)
        counters = (
            ("elections", "Times that this beat was elected.", metrics.elections),
            ("runs_claimed", "Runs that this beat claimed.", metrics.claimed),
            ("runs_published", "Runs that this beat published.", metrics.published),
            (
                "runs_resent",
                "Runs among the published that perhaps were so before, with the same task id.",
                metrics.resent,
            ),
            ("runs_dropped", "Claimed runs that this beat dropped.", metrics.dropped),
            ("runs_skipped", "Due instants that this beat gave no run.", metrics.skipped),
            ("publish_failures", "Attempts to publish a run that failed.", metrics.failed),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"celery_zk_beat_{name}", text, value)
        yield _histogram(
            "dispatch_lateness_seconds",
            "From the instant that a run was for to its publish.",
            metrics.lateness,
        )
        yield _histogram(
            "claim_duration_seconds",
            "How long claims took, of one run or many at once.",
            metrics.claim_seconds,
        )


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    counts, buckets, below = list(values.counts), [], 0
    for bound, count in zip((*map(str, values.bounds), "+Inf"), counts):
        below += count
        buckets.append((bound, below))
    return HistogramMetricFamily(f"celery_zk_beat_{name}", text, buckets, values.sum)


# What is read of ZooKeeper ----------------------------------------------------------------------


class Reading:
    """A snapshot, taken at `at` on boottime(), as JSON for all and for the page."""

    def __init__(self, snapshot: Snapshot, at: float) -> None:
        self.snapshot = snapshot
        self.at = at
        self.page = _for_page(snapshot)
        self._full = b""
        self._making = clock.Lock()

    def full(self) -> bytes:
        with self._making:
            self._full = self._full or json.dumps(self.snapshot.to_json()).encode()
            return self._full


def _for_page(snapshot: Snapshot) -> bytes:
    planned = (entry for entry in snapshot.entries if entry.next_run_at is not None)
    upcoming = heapq.nsmallest(_MOST_SHOWN, planned, key=lambda e: (e.next_run_at, e.name))
    paused = [entry for entry in snapshot.entries if entry.paused is not None]
    shown = replace(snapshot, entries=(*upcoming, *paused[:_MOST_SHOWN])).to_json()
    entries = shown.pop("entries")
    shown["upcoming"], shown["paused_entries"] = entries[: len(upcoming)], entries[len(upcoming) :]
    shown["counts"] = {"entries": len(snapshot.entries), "paused": len(paused)}
    return json.dumps(shown).encode()


class Statuses:
    """Reads the status for all who ask: every few seconds, as long as somebody asks.

    Args:
        connect: how to come to a function that reads, within a ``with`` block; both raise a
            ZkBeatError where they fail.
    """

    def __init__(
        self, connect: Callable[[], contextlib.AbstractContextManager[Callable[[], Snapshot]]]
    ) -> None:
        self._connect = connect
        self._news = clock.Condition()
        self._last: Reading | None = None
        self._error: str | None = None
        self._waiting = 0
        # All on boottime().
        self._asked = 0.0
        #: When the last attempt to read ended, and since when the present one goes on.
        self._ended, self._begun = -math.inf, math.inf
        self._at_work = False

    def get(self) -> tuple[Reading | None, str | None]:
        """The last reading there is and, if that is not of these seconds, why. Any thread; waits
        for as long as ``_PATIENCE`` where nobody has asked for a while."""
        with self._news:
            self._asked = clock.boottime()
            if not self._at_work:
                self._at_work = True
                clock.thread(self._work, "zk-beat-status").start()
            if not self._is_current() and self._waiting < _MOST_WAITING:
                self._waiting += 1
                self._news.wait_for(self._is_current, _PATIENCE)
                self._waiting -= 1
            if self._is_current():
                return self._last, self._error
            age = clock.boottime() - self._begun
            return self._last, (
                f"ZooKeeper has not answered for {age:.1f} s" if age > 1 else "being read just now"
            )

    def _is_current(self) -> bool:
        return clock.boottime() - self._ended < _CURRENT

    def _work(self) -> None:
        while self._is_wanted():
            self._begun = clock.boottime()
            try:
                with self._connect() as read:
                    while self._is_wanted():
                        self._begun = begun = clock.boottime()
                        try:
                            self._note(Reading(read(), begun), None)
                        except ZkBeatError as exc:
                            self._note(None, str(exc))
                        clock.sleep(max(_EVERY, (self._ended - begun) / _PART))
            except ZkBeatError as exc:
                self._note(None, str(exc))
                clock.sleep(_EVERY)
            except Exception as exc:
                logger.exception("the status cannot be read")
                self._note(None, f"the status cannot be read: {exc!r}")
                clock.sleep(_EVERY)

    def _is_wanted(self) -> bool:
        with self._news:
            self._at_work = clock.boottime() - self._asked < _IDLE
            return self._at_work

    def _note(self, reading: Reading | None, error: str | None) -> None:
        with self._news:
            self._last, self._error = reading or self._last, error
            self._ended, self._begun = clock.boottime(), math.inf
            self._news.notify_all()


@contextlib.contextmanager
def _reader(scheduler: Any) -> Iterator[Callable[[], Snapshot]]:
    """With a session for this alone: that of the beat has more urgent things to do."""
    settings, timeout = scheduler.settings, scheduler.settings.session_timeout
    with connected(settings.hosts, timeout, _PATIENCE, lambda: None, settings.access) as session:
        yield Reader(session, settings, scheduler, on_change=lambda: None).read


# How it is served -------------------------------------------------------------------------------


class Server:
    """The child, from its birth, and the thread that tells it what it asks for.

    Args:
        scheduler: for any thread: ``metrics``, ``settings``, ``_election``.

    Raises:
        SettingsError: it cannot listen where ``settings.http`` says.
    """

    def __init__(self, scheduler: Any) -> None:
        host, port = scheduler.settings.http
        sockets = _listen(host, port)
        self._scheduler = scheduler
        self._state = State.of(scheduler, clock.boottime())
        self._closing = False
        self._link, link = socket.socketpair()
        for end in (self._link, link):
            end.settimeout(None)  # Celery's default is 30 s: nobody may have asked for so long
        self.pid = os.fork()
        if self.pid == 0:
            self._link.close()
            _be_the_child(scheduler, sockets, link, self._state)
        link.close()
        for each in sockets:
            each.close()
        logger.info("serving HTTP at %s, process %d", _shown(host, port), self.pid)
        self._thread = clock.thread(self._run, "zk-beat-http")
        self._thread.start()

    def close(self) -> None:
        """Ends the child. Returns within a second. Safe to call twice, and from a signal handler,
        on the thread that made it."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._thread.join(_GONE_WITHIN)

    def _run(self) -> None:
        with self._link, contextlib.suppress(OSError):
            while self._link.recv(64):
                self._link.sendall(State.of(self._scheduler, self._state.began).encode())
        with contextlib.suppress(ChildProcessError):  # somebody else waits for all children
            _, status = os.waitpid(self.pid, 0)
            if not self._closing:
                logger.error(
                    "the process that serves HTTP has ended (%s): there are no probes, metrics and "
                    "status page until beat is started anew",
                    os.waitstatus_to_exitcode(status),
                )


def _be_the_child(
    scheduler: Any, sockets: list[socket.socket], link: socket.socket, state: State
) -> NoReturn:
    """Serves until the beat is gone, whichever way."""
    try:
        # A terminal, systemd and others send these to all processes; the beat obeys, and is served
        # until then.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _leave_connections(keep={link.fileno(), *(each.fileno() for each in sockets)})
        gc.freeze()  # what is shared with the beat stays shared
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write("zk-beat-http")
        statuses = Statuses(lambda: _reader(scheduler))
        _Listener(Application(_Asker(link, state), statuses, os.getppid()), sockets).run()
    except BaseException:
        logger.exception("HTTP is not served any longer")
    finally:
        os._exit(1)


def _leave_connections(keep: set[int]) -> None:
    """Lets go of the sockets that were open when this process was forked, so that a connection of
    the beat's (that of Celery's remote control, a database's) ends when the beat closes it. Not by
    closing them: Python objects that are still there would close what gets the number next."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            number = int(name)
            is_ours = number <= 2 or number in keep
            if not is_ours and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


class _Asker:
    """Asks the beat; a few times a second at most, and one thing at a time. Ends this process when
    the beat has ended."""

    def __init__(self, link: socket.socket, state: State) -> None:
        self._link = link
        self._state = state
        self._news = clock.Condition()
        #: On boottime(): since when an answer is awaited; None: it is not.
        self._since: float | None = None
        clock.thread(self._listen, "zk-beat-link").start()

    def __call__(self) -> Told:
        with self._news:
            now = clock.boottime()
            if now - self._state.at < _TOLD:
                return Told(self._state, True)
            if self._since is None:
                self._since = now
                self._link.sendall(b"?")
            left = self._since + _TOLD_WITHIN - now
            answers = self._news.wait_for(lambda: self._since is None, max(0.0, left))
            return Told(self._state, answers)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._link.makefile("rb") as lines:
            for line in lines:
                state = State.decode(line)
                with self._news:
                    self._state, self._since = state, None
                    self._news.notify_all()
        os._exit(0)


class _Listener:
    """waitress, with less patience.

    Args:
        sockets: bound and listening.
    """

    def __init__(
        self, application: Callable[..., Iterable[bytes]], sockets: list[socket.socket]
    ) -> None:
        queue_log = logging.getLogger("waitress.queue")
        if queue_log.level == logging.NOTSET:
            queue_log.setLevel(logging.ERROR)  # it tells of every request that has to wait
        self._map: dict[int, Any] = {}
        settings = waitress.adjustments.Adjustments(
            sockets=sockets,
            connection_limit=_MOST_CONNECTIONS + 64,
            channel_timeout=int(_LIFETIME),
            cleanup_interval=int(_LIFETIME),
            max_request_header_size=16384,
            max_request_body_size=1024,
            log_socket_errors=False,
            ident=None,
        )
        dispatcher = waitress.task.ThreadedTaskDispatcher()
        dispatcher.set_thread_count(_THREADS)
        self._servers = [
            _WSGIServer(
                application,
                self._map,
                True,
                each,
                dispatcher=dispatcher,
                adj=settings,
                bind_socket=False,
                sockinfo=(each.family, each.type, each.proto, each.getsockname()),
            )
            for each in sockets
        ]

    def run(self) -> NoReturn:
        while True:
            self.turn()

    def turn(self) -> None:
        """Does what there is to do, and waits for it, a second at most."""
        waitress.wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
        self._close_old_connections()

    def _close_old_connections(self) -> None:
        """waitress does not close one whose client never reads, and while too many are open it
        serves nobody."""
        channels = [channel for s in self._servers for channel in s.active_channels.values()]
        channels.sort(key=lambda channel: channel.creation_time)
        surplus, oldest = len(channels) - _MOST_CONNECTIONS, clock.timestamp() - _LIFETIME
        for n, channel in enumerate(channels):
            if n < surplus or channel.creation_time < oldest:
                channel.handle_close()


class _Task(waitress.task.WSGITask):
    """One request a connection: a client that sends thousands and reads no answer would have a
    thread wait for it."""

    def build_response_header(self) -> bytes:
        self.set_close_on_finish()
        return bytes(super().build_response_header())


class _Channel(waitress.channel.HTTPChannel):
    task_class = _Task


class _WSGIServer(waitress.server.TcpWSGIServer):
    channel_class = _Channel


def _listen(host: str, port: int) -> list[socket.socket]:
    """All addresses of the host, except those of a kind that this machine has not."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(socket.create_server(address[:2], family=family))
            except OSError as exc:
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc
        if not sockets:
            raise missing or OSError("no address")
    except (OSError, UnicodeError) as exc:
        for each in sockets:
            each.close()
        # create_server() adds the address to the text.
        number = exc.errno if isinstance(exc, OSError) else None
        why = os.strerror(number) if number is not None and number > 0 else exc
        raise SettingsError(
            f"zk_beat_http = {_shown(host, port)!r}: cannot listen there: {why}"
        ) from None
    return sockets


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
