"""The sockets, and waitress with shorter time-outs than its own."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import waitress.adjustments
import waitress.channel
import waitress.server
import waitress.task
import waitress.wasyncore

from .. import clock
from ..errors import SettingsError

#: How many seconds a connection lives, and how many may be open. If there are more, the oldest is
#: closed.
_LIFETIME, _MOST_CONNECTIONS = 15.0, 128
_THREADS = 4


def listen(host: str, port: int) -> list[socket.socket]:
    """Returns all addresses of the host, except of a kind that this machine does not have."""
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
            f"zk_beat_http = {address_text(host, port)!r}: cannot listen there: {why}"
        ) from None
    return sockets


def address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listener:
    """waitress, with shorter time-outs, on sockets that are bound and listening."""

    def __init__(
        self, application: Callable[..., Iterable[bytes]], sockets: list[socket.socket]
    ) -> None:
        queue_log = logging.getLogger("waitress.queue")
        if queue_log.level == logging.NOTSET:
            queue_log.setLevel(logging.ERROR)  # it logs every request that has to wait
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
        """Does what there is to do, or waits for it: a second at most."""
        waitress.wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
        self._close_old_connections()

    def _close_old_connections(self) -> None:
        """Closes connections that waitress leaves open: those whose client never reads. While too
        many are open, waitress serves nobody."""
        channels = [channel for s in self._servers for channel in s.active_channels.values()]
        channels.sort(key=lambda channel: channel.creation_time)
        surplus, oldest = len(channels) - _MOST_CONNECTIONS, clock.timestamp() - _LIFETIME
        for n, channel in enumerate(channels):
            if n < surplus or channel.creation_time < oldest:
                channel.handle_close()


class _Task(waitress.task.WSGITask):
    """One request per connection: a client that sends thousands and reads no answer would block a
    thread."""

    def build_response_header(self) -> bytes:
        self.set_close_on_finish()
        return bytes(super().build_response_header())


class _Channel(waitress.channel.HTTPChannel):
    task_class = _Task


class _WSGIServer(waitress.server.TcpWSGIServer):
    channel_class = _Channel
