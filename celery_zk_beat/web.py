"""HTTP, where `zk_beat_http` asks for it: probes, metrics and the status page. Read-only.

Everything here runs beside the dispatch loop in one process, so it must hold neither that loop nor
its GIL for long: what is asked of ZooKeeper is read by one thread, now and then, for all who ask;
a connection is good for one request and lives some seconds, whatever its client does.

Importing this module needs the extra ``http``.

Raises:
    SettingsError: on import, where a package is missing.
"""

from __future__ import annotations

import errno
import heapq
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any, NamedTuple

from .errors import SettingsError, ZkBeatError
from .log import get_logger, safe
from .metrics import Histogram
from .session import Node, ZooKeeperSession, boottime
from .status import Reader, Snapshot
from .version import __version__
from .znodes import to_text

try:
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
except ImportError as exc:
    raise SettingsError(
        "zk_beat_http needs prometheus_client and waitress: pip install 'celery-zk-beat[http]' "
        f"({exc})"
    ) from None

logger = get_logger(__name__)

#: Seconds within which the dispatch loop of a beat that is alive moves.
ALIVE_WITHIN = 60.0
#: Seconds from one reading of ZooKeeper to the next; more where reading takes long, so that no more
#: than a part of the time is spent on it.
_EVERY, _PART = 2.0, 1 / 5
#: Seconds for which a reading is given out, and after which reading ends if nobody asks.
_CURRENT, _IDLE = 10.0, 10.0
#: How many znodes are asked for at once, and seconds before the next are.
_AT_ONCE, _PAUSE = 4, 0.002
#: Seconds that a request waits for a reading, and how many may: fewer than there are threads.
_PATIENCE, _MOST_WAITING = 2.0, 2
#: Most entries that the page shows.
_MOST_SHOWN = 50

#: Seconds that a connection lives, and how many may be open: more, and the oldest is closed.
_LIFETIME, _MOST_CONNECTIONS = 20.0, 128
_THREADS = 4

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
    """Serves, on threads of its own, what there is to know of a scheduler with an election.

    Raises:
        SettingsError: it cannot listen where ``zk_beat_http`` says.
    """
    return Server(scheduler)


# What is answered -------------------------------------------------------------------------------


class Check(NamedTuple):
    """One line of a probe's answer."""

    holds: bool
    text: str


def alive(ticked: float, began: float, now: float) -> Check:
    """Whether the dispatch loop moves. All on :func:`.session.boottime`.

    Args:
        ticked: when it moved last; 0: not yet.
        began: when there was somebody to ask.
    """
    age = now - (ticked or began)
    did = f"the dispatch loop moved {age:.1f} s ago" if ticked else "the dispatch loop begins"
    return Check(age <= ALIVE_WITHIN, did)


def ready(election: Any) -> list[Check]:
    """Whether a beat could dispatch, or take over."""
    session = election.session
    if not session.connected:
        return [Check(False, f"no connection to ZooKeeper at {election.hosts}")]
    connected = f"connected to ZooKeeper, session time-out {session.timeout:g} s"
    return [Check(True, connected), Check(election.decided, _role(election))]


def leads(election: Any) -> Check:
    return Check(election.is_master, _role(election))


def _role(election: Any) -> str:
    epoch, master = election.epoch, election.master
    if epoch is not None:
        return f"{election.id} is master, epoch {epoch}"
    if not election.decided:
        return f"{election.id} is neither master nor standby yet"
    known = "no master is known" if master is None else f"{master.id} is master"
    return f"{election.id} is a standby, {known}"


class Answer(NamedTuple):
    status: int
    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Application:
    """The WSGI application.

    Args:
        scheduler: read by any thread: ``metrics``, ``settings``, ``_election``.
        statuses: who reads ZooKeeper.
    """

    def __init__(self, scheduler: Any, statuses: Statuses) -> None:
        self._scheduler = scheduler
        self._statuses = statuses
        self._began = boottime()
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(scheduler, self._began))
        ProcessCollector(registry=self._registry)
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
        return _probe(alive(self._scheduler.metrics.ticked, self._began, boottime()))

    def _readyz(self, environ: dict[str, Any]) -> Answer:
        return _probe(*ready(self._scheduler._election))

    def _leader(self, environ: dict[str, Any]) -> Answer:
        return _probe(leads(self._scheduler._election))

    def _metrics(self, environ: dict[str, Any]) -> Answer:
        encode, type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        return Answer(200, type, encode(self._registry))

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
        election = self._scheduler._election
        head = {
            "beat": {
                "id": election.id,
                "version": __version__,
                "connected": election.session.connected,
            },
            "now": to_text(datetime.now(timezone.utc)),
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
    age = boottime() - reading.at
    return {"read_at": to_text(reading.snapshot.read_at), "age": round(age, 3)}


class _Collector(Collector):
    """The numbers of a beat as Prometheus wants them; docs/monitoring.md lists them."""

    def __init__(self, scheduler: Any, began: float) -> None:
        self._scheduler = scheduler
        self._began = began

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        metrics, election = self._scheduler.metrics, self._scheduler._election
        epoch, master = election.epoch, election.master
        settings = self._scheduler.settings
        yield InfoMetricFamily(
            "celery_zk_beat",
            "What this beat is.",
            {"version": __version__, "id": election.id, "root": settings.root},
        )
        gauges = (
            ("is_master", "Whether this beat is master: 1 or 0.", int(epoch is not None)),
            (
                "epoch",
                "Epoch of the master that this beat knows, itself included; 0 before the first.",
                epoch or (0 if master is None else master.epoch),
            ),
            (
                "session_connected",
                "Whether there is a connection to ZooKeeper: 1 or 0.",
                int(election.session.connected),
            ),
            (
                "clock_offset_seconds",
                "How far this machine's clock is at least ahead of ZooKeeper's; below 0: behind.",
                election.clock_offset,
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
                time.time() - (boottime() - (metrics.ticked or self._began)),
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
    """A snapshot, taken at `at` on :func:`.session.boottime`, as JSON for all and for the page."""

    def __init__(self, snapshot: Snapshot, at: float) -> None:
        self.snapshot = snapshot
        self.at = at
        self.page = _for_page(snapshot)
        self._full = b""
        self._making = threading.Lock()

    def full(self) -> bytes:
        with self._making:
            self._full = self._full or _for_all(self.snapshot)
            return self._full


def _for_all(snapshot: Snapshot) -> bytes:
    """In pieces, because json.dumps lets no other thread run: 10,000 entries are 3 MB."""
    rest = replace(snapshot, entries=()).to_json()
    rest.pop("entries")
    bare = replace(snapshot, outbox=(), recent=(), masters=())
    pieces = []
    for n in range(0, len(snapshot.entries), 50):
        some = replace(bare, entries=snapshot.entries[n : n + 50]).to_json()
        pieces.append(json.dumps(some["entries"])[1:-1])
    return (json.dumps(rest)[:-1] + ', "entries": [' + ", ".join(pieces) + "]}").encode()


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
        read: reads; raises a ZkBeatError where that fails.
    """

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read
        self._news = threading.Condition()
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
            self._asked = now = boottime()
            if not self._at_work:
                self._at_work = True
                threading.Thread(target=self._work, name="zk-beat-status", daemon=True).start()
            if not self._is_current() and self._waiting < _MOST_WAITING:
                self._waiting += 1
                self._news.wait_for(self._is_current, _PATIENCE)
                self._waiting -= 1
            if self._is_current():
                return self._last, self._error
            age = now - self._begun
            return self._last, (
                f"ZooKeeper has not answered for {age:.1f} s" if age > 1 else "being read just now"
            )

    def _is_current(self) -> bool:
        return boottime() - self._ended < _CURRENT

    def _work(self) -> None:
        while True:
            begun = self._begun = boottime()
            reading, error = None, None
            try:
                reading = Reading(self._read(), begun)
            except ZkBeatError as exc:
                error = str(exc)
            except Exception as exc:
                logger.exception("the status cannot be read")
                error = f"the status cannot be read: {exc!r}"
            with self._news:
                self._last, self._error = reading or self._last, error
                self._ended, self._begun = boottime(), math.inf
                self._news.notify_all()
            time.sleep(max(_EVERY, (self._ended - begun) / _PART))
            with self._news:
                if boottime() - self._asked > _IDLE:
                    self._at_work = False
                    return


def _reader(scheduler: Any) -> Callable[[], Snapshot]:
    """Reads with the election's own session; made at the first read, for it takes a while."""
    made: list[Reader] = []

    def read() -> Snapshot:
        if not made:
            session: Any = _Gently(scheduler._election.session)
            made.append(Reader(session, scheduler.settings, scheduler, on_change=lambda: None))
        return made[0].read()

    return read


class _Gently:
    """Reads with a session that has something more urgent to do: a few znodes at a time, because
    a claim has to wait until those that were asked for before it have come."""

    def __init__(self, session: ZooKeeperSession) -> None:
        self._session = session
        self.children = session.children

    @property
    def connected(self) -> bool:
        return self._session.connected

    def read_all(self, paths: Sequence[str], watch: Any = None) -> list[Node | None]:
        nodes: list[Node | None] = []
        for n in range(0, len(paths), _AT_ONCE):
            nodes += self._session.read_all(paths[n : n + _AT_ONCE], watch)
            time.sleep(_PAUSE)
        return nodes


# How it is served -------------------------------------------------------------------------------


class Server:
    """Listens from the moment that it is made.

    Args:
        scheduler: as for :class:`Application`; ``settings.http`` says where to listen.

    Raises:
        SettingsError: it cannot listen there.
    """

    def __init__(self, scheduler: Any) -> None:
        sockets = _listen(*scheduler.settings.http)
        queue_log = logging.getLogger("waitress.queue")
        if queue_log.level == logging.NOTSET:
            queue_log.setLevel(logging.ERROR)  # it tells of every request that has to wait
        application = Application(scheduler, Statuses(_reader(scheduler)))
        self._closing = False
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
        self._dispatcher = waitress.task.ThreadedTaskDispatcher()
        self._dispatcher.set_thread_count(_THREADS)
        self._servers = [
            _WSGIServer(
                application,
                self._map,
                True,
                each,
                dispatcher=self._dispatcher,
                adj=settings,
                bind_socket=False,
                sockinfo=(each.family, each.type, each.proto, each.getsockname()),
            )
            for each in sockets
        ]
        self._thread = threading.Thread(target=self._run, name="zk-beat-http", daemon=True)
        self._thread.start()
        logger.info("serving HTTP at %s", _shown(*scheduler.settings.http))

    def close(self) -> None:
        """Closes, within a second. Safe to call twice, and from a signal handler."""
        # waitress could be woken, through a pipe; but perhaps it has closed that by now.
        self._closing = True

    def _run(self) -> None:
        while not self._closing:
            waitress.wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
            self._close_old_connections()
        self._dispatcher.set_thread_count(0)
        waitress.wasyncore.close_all(self._map)

    def _close_old_connections(self) -> None:
        """waitress does not close one whose client never reads, and while too many are open it
        serves nobody."""
        channels = [channel for s in self._servers for channel in s.active_channels.values()]
        channels.sort(key=lambda channel: channel.creation_time)
        surplus, oldest = len(channels) - _MOST_CONNECTIONS, time.time() - _LIFETIME
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
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise SettingsError(
            f"zk_beat_http = {_shown(host, port)!r}: cannot listen there: {why}"
        ) from None
    return sockets


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
