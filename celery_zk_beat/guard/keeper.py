"""The beat's side of its guard. It starts the guard, gives it each session, and starts another
guard if it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

from .. import clock
from ..errors import SettingsError
from ..log import get_logger
from ..security import Access
from ..zookeeper.session import ZooKeeperSession
from . import program

logger = get_logger(__name__)

#: What others see of a guard that knows the session.
ON = "on"
#: Seconds until another guard is started if one has ended; twice as long each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class Guard:
    """The guard of one beat. `access`: the credentials of its sessions. :meth:`tell` and
    :meth:`close` are for one thread."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._on_change: Callable[[], None] = lambda: None
        #: The link to the guard that is alive.
        self._link: socket.socket | None = None
        #: The link, and the number of the connection, with which it got the session.
        self._told: tuple[socket.socket | None, int] = (None, 0)
        #: Why there is no guard.
        self._trouble = "not started"
        self._wakeup = clock.Wakeup()
        self._closing = False
        #: For tests and log lines; None if there is no guard.
        self.pid: int | None = None

    @property
    def state(self) -> str:
        """:data:`ON`, or why there is no guard. For any thread."""
        link = self._link
        return ON if link is not None and self._told[0] is link else self._trouble

    def start(self, on_change: Callable[[], None]) -> None:
        """Starts the guard, on a thread of its own. Call it after the last fork. That thread calls
        `on_change` whenever somebody has to call :meth:`tell`."""
        self._on_change = on_change
        trouble = _missing()
        if trouble is not None:
            self._trouble = trouble
            text = "no guard, so if this beat dies, standbys wait a session time-out: %s"
            logger.info(text, trouble)
            return
        clock.thread(self._run, "zk-beat-guard").start()

    def tell(self, session: ZooKeeperSession) -> None:
        """Gives the guard the session, and the addresses of the servers, if it does not know them
        yet. Never blocks."""
        link, connection = self._link, session.connection
        if link is None or self._told == (link, connection):
            return
        handle = session.handle
        if handle is None:
            return
        message = {"id": handle.id, "password": handle.password.hex(), "servers": handle.servers}
        try:
            link.send(json.dumps({**message, "tls": self._tls()}).encode(), socket.MSG_DONTWAIT)
        except (OSError, SettingsError) as exc:
            self._trouble, self._told = str(exc), (None, 0)
            return
        self._told = link, connection

    def close(self, *, ended: bool) -> None:
        """Lets the guard go. `ended`: the session is over; otherwise the guard waits for the end of
        this process, and then ends the session. Never blocks."""
        self._closing = True
        self._wakeup.set()
        link = self._link
        if link is not None and ended:
            with contextlib.suppress(OSError):
                link.send(program.FAREWELL, socket.MSG_DONTWAIT)

    def _tls(self) -> dict[str, object] | None:
        tls = self._access.tls
        if tls is None:
            return None
        password = "" if tls.key_password is None else tls.key_password.read()
        return {**vars(tls), "key_password": password}

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closing:
            began = clock.boottime()
            try:
                why = f"it has ended ({self._serve()})"
            except OSError as exc:
                why = f"it could not be started: {exc}"
            if self._closing:
                return
            if clock.boottime() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            self._trouble = why
            logger.warning(
                "no guard, so if this beat dies, standbys wait a session time-out: %s; starting "
                "another in %g s",
                why,
                pause,
            )
            self._on_change()
            self._wakeup.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _serve(self) -> int:
        """Starts a guard. Returns its exit code when it has ended."""
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with link, theirs:
            link.settimeout(None)  # Celery's default is 30 s
            beat = os.pidfd_open(os.getpid())
            try:
                # It has its own session and none of the beat's files. So what ends the beat, or a
                # terminal, does not end the guard; and what the beat closes does not stay open in
                # it.
                guard: subprocess.Popen[bytes] = subprocess.Popen(
                    [sys.executable, "-I", "-S", program.__file__, str(beat)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[beat],
                    start_new_session=True,
                    cwd="/",
                )
            finally:
                os.close(beat)
            theirs.close()
            self.pid, self._link = guard.pid, link
            try:
                if self._closing:  # close() was too early to tell it
                    link.send(program.FAREWELL)
                self._on_change()
                with contextlib.suppress(OSError):
                    link.recv(1)  # a guard says nothing: this is its end
            finally:
                self.pid = self._link = None
            return guard.wait()


def _missing() -> str | None:
    """Returns what a guard would need and is missing here. None: nothing."""
    if not hasattr(os, "pidfd_open"):
        return "Python has no os.pidfd_open here"
    if not sys.executable or getattr(sys, "frozen", False) or not os.path.isfile(program.__file__):
        return "there is no Python to run it with"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as exc:
        return f"pidfd_open: {(exc.strerror or str(exc)).lower()}"
    return None
