"""What is asked of the road to the broker, and how its failures are borne."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from typing import Any

from .ledger import SAFE_PART
from .session import boottime

#: Seconds that a broker may leave a request unanswered; without, a black-holed one would hold the
#: dispatch loop for ever.
_SOCKET_TIMEOUT = 5.0
#: First pause after a publish that failed, seconds; the longest, when the broker is away (which is
#: how late the runs are when it is back), and when it is one entry's fault.
_BACK_OFF, _LONGEST_AWAY, _LONGEST_FAULT = 0.1, 2.0, 10.0


def transport_options(transport: str, session_timeout: float) -> dict[str, Any]:
    """What `broker_transport_options` are with us, unless the user says otherwise."""
    if transport in ("redis", "rediss", "sentinel"):
        rest = (1 - SAFE_PART) * session_timeout
        options: dict[str, Any] = {
            "socket_timeout": _SOCKET_TIMEOUT,
            # Between the last look at the clock and the sending, redis-py may connect anew, or
            # ask first whether the server still lives.
            "socket_connect_timeout": min(_SOCKET_TIMEOUT, rest),
            "health_check_interval": 0,
        }
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A message that was handed to the kernel in time must not arrive after the session:
            # the kernel gives up on it (tcp(7)). py-amqp has it so for itself, after 1 s.
            options["socket_keepalive"] = True
            options["socket_keepalive_options"] = {socket.TCP_USER_TIMEOUT: math.ceil(1000 * rest)}
        return options
    if transport in ("amqp", "amqps", "pyamqp"):
        return {
            "read_timeout": _SOCKET_TIMEOUT,
            "write_timeout": _SOCKET_TIMEOUT,
            # Without, a publish only fills the socket's buffer: what a dying RabbitMQ had not
            # read, or had not written down, would be lost (its guide on publisher confirms).
            "confirm_publish": True,
        }
    return {}


def declare_once(producer: Any) -> None:
    """Has a producer look whether a queue is declared before anything else. kombu itself looks
    only after it has made a copy of it, which takes a fifth of the time of a publish."""
    maybe_declare, channel = producer.maybe_declare, producer.channel

    def declare(entity: Any, *args: Any, **kwargs: Any) -> Any:
        cached = getattr(entity, "can_cache_declaration", False) and channel.connection
        if cached and hash(entity) in channel.connection.client.declared_entities:
            return False
        return maybe_declare(entity, *args, **kwargs)

    producer.maybe_declare = declare


def comes_from(exc: Exception, errors: Iterable[type[BaseException]]) -> bool:
    """Whether it is one of these, or Celery's wrapping of one."""
    chain = (exc, exc.__cause__, exc.__context__)
    return any(isinstance(each, tuple(errors)) for each in chain)


class BackOff:
    """Who has to wait after a failure: one entry, or (None) all of them."""

    def __init__(self) -> None:
        #: The last pause, and when it is over: on boottime(), for the clock of day may be set back.
        self._pauses: dict[str | None, tuple[float, float]] = {}

    def punish(self, who: str | None) -> float:
        """Has `who` wait; twice as long each time. Returns the seconds."""
        before, _ = self._pauses.get(who, (_BACK_OFF / 2, 0.0))
        pause = min(2 * before, _LONGEST_AWAY if who is None else _LONGEST_FAULT)
        self._pauses[who] = pause, boottime() + pause
        return pause

    def forgive(self, entry: str) -> None:
        self._pauses.pop(entry, None)
        self._pauses.pop(None, None)

    def clear(self) -> None:
        self._pauses.clear()

    def left(self, entries: Iterable[str]) -> float:
        """Seconds before the first of the entries may be tried; for ever, where there is none."""
        over_for_all = self._over(None)
        over = min((max(over_for_all, self._over(entry)) for entry in entries), default=math.inf)
        return over - boottime()

    def _over(self, who: str | None) -> float:
        return self._pauses.get(who, (0.0, 0.0))[1]
