"""Faults of the network."""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Road:
    """A TCP proxy for a server on loopback. It can cut, block or delay what passes. Thread-safe.

    Args:
        port: the port of the server.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.hosts = f"127.0.0.1:{self.port}"
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._orders: queue.SimpleQueue[tuple[str, float, threading.Event]] = queue.SimpleQueue()
        #: The other end of each end. The first of a pair is the client's.
        self._other: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._refusing = False
        self._blocked: set[str] = set()
        self._delay = 0.0
        #: What is on its way: when it arrives, where, and the bytes. No bytes: the end of the
        #: connection.
        self._travelling: deque[tuple[float, socket.socket, bytes]] = deque()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def cut(self) -> None:
        """Closes all connections, and each new one at once."""
        self._order("cut")

    def block(self) -> None:
        """Lets nothing through, in both directions, and closes no connection."""
        self._order("block")

    def block_answers(self) -> None:
        """Lets requests through, but no answers."""
        self._order("block answers")

    def block_requests(self) -> None:
        """Lets answers through, but no requests."""
        self._order("block requests")

    def slow(self, seconds: float) -> None:
        """Delays everything by `seconds`, in each direction."""
        self._order("slow", seconds)

    def open(self) -> None:
        """Ends every fault. Delivers what was held back."""
        self._order("open")

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._order("stop")
        self._thread.join(10)

    def _order(self, what: str, delay: float = 0.0) -> None:
        done = threading.Event()
        self._orders.put((what, delay, done))
        self._wake_writer.send(b"!")
        assert done.wait(10)

    def _run(self) -> None:
        while True:
            wait = max(0.0, self._travelling[0][0] - time.monotonic()) if self._travelling else None
            events = self._selector.select(wait)
            self._deliver()
            for key, _ in events:
                if key.fileobj is self._wake_reader:
                    self._wake_reader.recv(1)
                    what, self._delay, done = self._orders.get()
                    self._obey(what)
                    done.set()
                    if what == "stop":
                        return
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and self._is_read(key.fileobj):
                    self._forward(key.fileobj)

    def _obey(self, what: str) -> None:
        self._refusing = what == "cut"
        self._blocked = {
            "block": {"requests", "answers"},
            "block requests": {"requests"},
            "block answers": {"answers"},
        }.get(what, set())
        if what in ("cut", "stop"):
            for client in list(self._clients):
                self._close(client)
        if what == "stop":
            for thing in (self._listener, self._wake_reader, self._wake_writer, self._selector):
                thing.close()
            return
        for end in list(self._other):
            self._watch(end)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            if self._refusing:
                raise ConnectionError
            server = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            client.close()
            return
        self._clients.add(client)
        for end, other in ((client, server), (server, client)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._other[end] = other
            self._watch(end)

    def _watch(self, end: socket.socket) -> None:
        """Reads from an end. Does not while its direction is blocked: then TCP keeps the bytes."""
        blocked = ("requests" if end in self._clients else "answers") in self._blocked
        with contextlib.suppress(KeyError):
            self._selector.unregister(end)
        if not blocked:
            self._selector.register(end, selectors.EVENT_READ)

    def _is_read(self, end: socket.socket) -> bool:
        """False if it was closed or blocked since it had something to read."""
        return end in self._other and end in self._selector.get_map()

    def _forward(self, end: socket.socket) -> None:
        data: bytes | None = b""
        with contextlib.suppress(OSError):
            data = self._passed_on(end, end.recv(1 << 20))
        if data is None:
            return
        if not data:
            self._selector.unregister(end)
        # What left earlier arrives earlier, even if the road is no longer slow.
        arrival = time.monotonic() + self._delay
        if self._travelling:
            arrival = max(arrival, self._travelling[-1][0])
        self._travelling.append((arrival, self._other[end], data))
        self._deliver()

    def _passed_on(self, end: socket.socket, data: bytes) -> bytes | None:
        """Returns what of `data`, which came from `end`, to send on. b"" ends the connection; None:
        nothing."""
        return data

    def _deliver(self) -> None:
        """Delivers what has arrived."""
        while self._travelling and self._travelling[0][0] <= time.monotonic():
            _, end, data = self._travelling.popleft()
            if end not in self._other:
                continue  # it was closed in between
            try:
                if data:
                    end.sendall(data)
                    continue
            except OSError:
                pass
            self._close(end)

    def _close(self, end: socket.socket) -> None:
        for each in (end, self._other[end]):
            with contextlib.suppress(KeyError):
                self._selector.unregister(each)
            del self._other[each]
            self._clients.discard(each)
            each.close()
