"""Tells systemd how a beat is: sd_notify(3), for units of ``Type=notify``. Nothing elsewhere."""

from __future__ import annotations

import os
import socket

from . import clock

#: Least seconds between two signs of life.
_AT_MOST_EVERY = 1.0
#: Characters.
_LONGEST_STATUS = 300


class Unit:
    """This process as a unit. Nothing here blocks or raises: where systemd does not take a
    datagram, the next one says the same. For one thread, and its signal handlers."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        #: Begins with a NUL byte in Linux's abstract name space, which is written as an @.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._ready = False
        self._status = ""
        self._told_at = 0.0

    def ticked(self, status: str) -> None:
        """Has systemd know that beat ticks, and its status, one line.

        The first tick makes it ready, whether or not ZooKeeper answers: a standby that waits for
        it is well, and a start that waited would only be timed out and begun again.
        """
        # The name of a master is what somebody wrote into a znode.
        status = "".join(c if c.isprintable() else "?" for c in status[:_LONGEST_STATUS])
        now = clock.boottime()
        if status == self._status and now < self._told_at + _AT_MOST_EVERY:
            return
        ready = [] if self._ready else ["READY=1"]
        if self._tell(*ready, "WATCHDOG=1", f"STATUS={status}"):
            self._ready, self._status, self._told_at = True, status, now

    def stopping(self) -> None:
        """Has systemd know that beat ends."""
        self._tell("STOPPING=1", "STATUS=stopping")

    def _tell(self, *lines: str) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:
            return False
        return True
