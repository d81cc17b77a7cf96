"""Serves HTTP in a separate process, a child of the beat's.

So requests take no time from the dispatch loop, however many there are: the child reads ZooKeeper
and makes the JSON. (In one process, 200 requests per second made runs late: benchmarks/http.py.)
The child asks the beat for the :class:`State`, which only the beat knows, at most a few times per
second. A connection serves one request and lives some seconds, whatever its client does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import stat
from typing import NoReturn

from .. import clock
from ..log import get_logger
from .application import Application
from .listener import Listener, address_text, listen
from .readings import Readings, reader
from .state import ANSWERS_WITHIN, Beat, Report, State

logger = get_logger(__name__)

#: Seconds for which a State is good.
_FRESH = 0.2
#: The child's niceness: it gives way to all other processes (sched(7)).
_NICENESS = 19
#: Seconds that closing waits for the child to end.
_GONE_WITHIN = 1.0


class Server:
    """The child process, and the thread that answers its questions.

    It forks. Make it before there is any connection or thread of ours: a child would get half of
    it.

    Raises:
        SettingsError: it cannot listen on the address.
    """

    def __init__(self, beat: Beat, host: str, port: int) -> None:
        sockets = listen(host, port)
        self._beat = beat
        self._state = State.of(beat, clock.boottime())
        self._closing = False
        self._link, link = socket.socketpair()
        for end in (self._link, link):
            end.settimeout(None)  # Celery's default is 30 s, and there may be no request for longer
        # Not a separate program: what it needs of the app (settings, credentials, schedule) is
        # already here, in memory that both share.
        self.pid = os.fork()
        if self.pid == 0:
            self._link.close()
            _serve_until_the_beat_ends(beat, sockets, link, self._state)
        link.close()
        for each in sockets:
            each.close()
        logger.info("serving HTTP at %s, process %d", address_text(host, port), self.pid)
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
                self._link.sendall(State.of(self._beat, self._state.began).encode())
        with contextlib.suppress(ChildProcessError):  # somebody else waits for all children
            _, status = os.waitpid(self.pid, 0)
            if not self._closing:
                logger.error(
                    "the process that serves HTTP has ended (%s): there are no probes, metrics and "
                    "status page until beat is restarted",
                    os.waitstatus_to_exitcode(status),
                )


def _serve_until_the_beat_ends(
    beat: Beat, sockets: list[socket.socket], link: socket.socket, state: State
) -> NoReturn:
    """Runs in the child until the beat ends, in whatever way."""
    try:
        # A terminal, systemd and others send these to all processes. The beat obeys them, and is
        # served until it ends.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _leave_connections(keep={link.fileno(), *(each.fileno() for each in sockets)})
        gc.freeze()  # what is shared with the beat stays shared
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write("zk-beat-http")
        readings = Readings(lambda: reader(beat))
        application = Application(_Asker(link, state), readings, os.getppid(), beat.day)
        Listener(application, sockets).run()
    except BaseException:
        logger.exception("HTTP is not served any longer")
    finally:
        os._exit(1)


def _leave_connections(keep: set[int]) -> None:
    """Releases the sockets that were open when this process was forked. So a connection of the
    beat's (of Celery's remote control, or to a database) ends when the beat closes it. Does not
    close them: Python objects that still exist would close whatever gets the number next."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            number = int(name)
            is_ours = number <= 2 or number in keep
            if not is_ours and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


class _Asker:
    """Asks the beat, at most a few times per second, one question at a time. Ends this process when
    the beat has ended."""

    def __init__(self, link: socket.socket, state: State) -> None:
        self._link = link
        self._state = state
        self._news = clock.Condition()
        #: Since when we wait for an answer, by boottime(); None if we do not wait.
        self._since: float | None = None
        clock.thread(self._listen, "zk-beat-link").start()

    def __call__(self) -> Report:
        with self._news:
            now = clock.boottime()
            if now - self._state.at < _FRESH:
                return Report(self._state, True)
            if self._since is None:
                self._since = now
                self._link.sendall(b"?")
            left = self._since + ANSWERS_WITHIN - now
            answers = self._news.wait_for(lambda: self._since is None, max(0.0, left))
            return Report(self._state, answers)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._link.makefile("rb") as lines:
            for line in lines:
                state = State.decode(line)
                with self._news:
                    self._state, self._since = state, None
                    self._news.notify_all()
        os._exit(0)
