"""All that a guard runs: a bare Python without the package, so that it is small.

    python -I -S program.py BEAT        BEAT: a descriptor, the beat's pidfd; stdin: the link to it

It waits until the kernel says that the beat is dead. Then it continues the beat's session, by its
id and password, and closes it. That removes the session's ephemeral znodes. It needs no right on
any znode, so no credentials, and it can harm nobody else: znodes of other sessions stay.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import struct
import sys
from collections.abc import Generator, Iterable, Iterator
from typing import Any

#: The beat's last message if it has closed its session itself.
FAREWELL = b"-"
#: Bytes of the longest message.
_LONGEST = 65536
#: Seconds after which the guard of a dead beat ends, whatever ZooKeeper does.
_LASTS = 5
#: Seconds for which a server may be silent; and until all are tried again.
_ANSWERS_WITHIN, _AGAIN_AFTER = 1.0, 0.1
#: Terminals and service managers send these to all processes. The beat obeys them.
_FOR_THE_BEAT = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGTSTP", "SIGUSR1", "SIGUSR2")


def main() -> int:
    for name in _FOR_THE_BEAT:
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write("zk-beat-guard")
    beat, link = int(sys.argv[1]), socket.socket(fileno=0)
    said = last_words(events(beat, link))
    if said:
        signal.alarm(_LASTS)  # ends this process, by default
        end(json.loads(said))
    return 0


def events(beat: int, link: socket.socket) -> Iterator[bytes | None]:
    """Yields each message; b"" when the beat has closed the link; None when it is dead."""
    poll = select.poll()
    poll.register(beat, select.POLLIN)
    poll.register(link, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if link.fileno() in ready:  # first: what a dead beat has sent is still to be read
            message = link.recv(_LONGEST)
            if not message:
                poll.unregister(link)
            yield message
        else:
            yield None


def last_words(events: Iterable[bytes | None]) -> bytes:
    """Returns what a beat said last, when it is dead; b"" if there is nothing to do."""
    said = b""
    for event in events:
        # Do not wait for the end of the link: a beat that closes all files would count as dead, and
        # one with a child that keeps them open would count as alive.
        if event is None:
            return said
        if event == FAREWELL:
            return b""
        said = event or said
    return b""


def end(session: dict[str, Any]) -> None:
    """Ends a session, given in the form that keeper.py writes. Tries for ever."""
    while True:
        with contextlib.closing(_connections(session["servers"])) as connections:
            for connection, name in connections:
                with contextlib.suppress(OSError, ValueError, struct.error):
                    connection.settimeout(_ANSWERS_WITHIN)
                    with _secured(connection, name, session["tls"]) as secured:
                        _close(secured, session)
                    return
        select.select([], [], [], _AGAIN_AFTER)


def _connections(
    servers: Iterable[tuple[str, str, int]],
) -> Generator[tuple[socket.socket, str], None, None]:
    """Connects to all servers at once, so that a silent server costs no time. Yields each
    connection when it is there, with the server's name, and closes it."""
    poll, waiting = select.poll(), {}
    for name, address, port in servers:
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        waiting[connection.fileno()] = connection, name
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.connect_ex((address, port))
        poll.register(connection, select.POLLOUT)
    try:
        while waiting:
            ready = poll.poll(1000 * _ANSWERS_WITHIN)
            if not ready:
                return
            for descriptor, _ in ready:
                connection, name = waiting.pop(descriptor)
                poll.unregister(descriptor)
                with connection:
                    if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        yield connection, name
    finally:
        for connection, _ in waiting.values():
            connection.close()


def _secured(connection: socket.socket, name: str, tls: dict[str, Any] | None) -> socket.socket:
    """As in :meth:`celery_zk_beat.security.Tls.context`."""
    if tls is None:
        return connection
    import ssl  # only now: it needs half as much memory as all the rest

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls["verify"] and tls["check_hostname"]
    context.verify_mode = ssl.CERT_REQUIRED if tls["verify"] else ssl.CERT_NONE
    if tls["ca"] is not None:
        context.load_verify_locations(tls["ca"])
    elif tls["verify"]:
        context.load_default_certs()
    if tls["certificate"] is not None:
        key, password = tls["key"] or tls["certificate"], tls["key_password"]
        context.load_cert_chain(tls["certificate"], key, lambda: password)
    return context.wrap_socket(connection, server_hostname=name)


def _close(connection: socket.socket, session: dict[str, Any]) -> None:
    """Closes a session over a new connection, or finds that it is over.

    Raises:
        OSError: the server does not answer, or closes the connection, as one without a quorum does.
        ValueError, struct.error: it is no ZooKeeper.
    """
    password = bytes.fromhex(session["password"])
    # Protocol 0; the transactions that we know: none; the least time-out that is granted, in case
    # this fails half-way; the session; and no server that can only read.
    request = struct.pack(">iqiqi", 0, 0, 1, session["id"], len(password)) + password + b"\0"
    _send(connection, request)
    _, granted = struct.unpack_from(">ii", _receive(connection))
    if granted > 0:
        _send(connection, struct.pack(">ii", 1, -11))  # the first request: closeSession
        _receive(connection)


def _send(connection: socket.socket, request: bytes) -> None:
    connection.sendall(struct.pack(">i", len(request)) + request)


def _receive(connection: socket.socket) -> bytes:
    (size,) = struct.unpack(">i", _exactly(connection, 4))
    if not 0 < size < _LONGEST:
        raise ValueError(size)
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


if __name__ == "__main__":
    sys.exit(main())
