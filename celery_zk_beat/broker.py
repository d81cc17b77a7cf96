"""The connection to the broker: how we publish through it, and how we handle its failures."""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import itertools
import json
import math
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import amqp
from celery.beat import SchedulingError
from celery.signals import after_task_publish
from kombu.exceptions import KombuError, OperationalError, SerializationError
from kombu.serialization import dumps
from kombu.utils.objects import cached_property

from . import clock
from .confirms import Blocked, Confirms, Returned
from .ledger import SAFE_PART
from .log import get_logger
from .templates import Command, Templates

logger = get_logger(__name__)

#: Seconds that we wait for the broker to answer a request. Without a limit, a broker whose packets
#: are lost would block the dispatch loop for ever.
_SOCKET_TIMEOUT = 5.0
_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "sentinel": 26379}
#: Transport options that distinguish brokers with the same address.
_PARTS_OF_ADDRESS = ("master_name", "global_keyprefix", "queue_name_prefix")
#: Most messages that we hand to the broker together. They must all leave within the part of the
#: session time-out that is left after the last look at the clock.
MOST_TOGETHER = 250
#: Pauses after a failed publish, in seconds: the first; the longest while the broker is away (runs
#: are so late when it is back); the longest if it is one entry's fault.
_BACK_OFF, _LONGEST_AWAY, _LONGEST_FAULT = 0.1, 2.0, 10.0


def transport_options(transport: str, session_timeout: float) -> dict[str, Any]:
    """Returns our defaults for `broker_transport_options`, which the user's options override."""
    if transport in ("redis", "rediss", "sentinel"):
        rest = (1 - SAFE_PART) * session_timeout
        options: dict[str, Any] = {
            "socket_timeout": _SOCKET_TIMEOUT,
            # Between the last look at the clock and the sending, redis-py may connect anew, or
            # first check whether the server is alive.
            "socket_connect_timeout": min(_SOCKET_TIMEOUT, rest),
            "health_check_interval": 0,
        }
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A message that was handed to the kernel in time must not arrive after the session:
            # the kernel gives up on it (tcp(7)). py-amqp sets this by itself, to 1 s.
            options["socket_keepalive"] = True
            options["socket_keepalive_options"] = {socket.TCP_USER_TIMEOUT: math.ceil(1000 * rest)}
        return options
    if transport in ("amqp", "amqps", "pyamqp"):
        return {
            "read_timeout": _SOCKET_TIMEOUT,
            "write_timeout": _SOCKET_TIMEOUT,
            # Without it, a publish only fills the socket's buffer: if RabbitMQ dies, messages that
            # it had not read or stored are lost (see its guide on publisher confirms).
            "confirm_publish": True,
        }
    return {}


def broker_digest(app: Any) -> str | None:
    """Returns a digest of where an app's messages go, to detect beats with different brokers. It
    does not depend on credentials or the order of several URLs. None if it cannot be computed."""
    try:
        connection = app.connection_for_write()  # connects to nothing yet
        urls = connection.alt or [connection.as_uri()]
        options = connection.transport_options or {}
        where = sorted({_address(app.connection_for_write(url)) for url in urls})
        parts = {name: str(options[name]) for name in _PARTS_OF_ADDRESS if options.get(name)}
    except Exception as exc:  # for example, the transport is not installed
        logger.debug("no digest of the broker's address: %s", exc)
        return None
    return hashlib.sha256(json.dumps([where, parts], sort_keys=True).encode()).hexdigest()[:16]


def _address(found: Any) -> tuple[str, ...]:
    transport, host = found.transport_cls or "", (found.hostname or "localhost").lower()
    transport = {"pyamqp": "amqp"}.get(transport, transport)
    port = found.port or _DEFAULT_PORTS.get(transport, "")
    virtual_host = str(found.virtual_host or "/")
    if transport in ("redis", "rediss", "sentinel"):
        virtual_host = virtual_host.strip("/") or "0"
    return transport, host, str(port), virtual_host


def _declare_once(producer: Any) -> None:
    """Makes a producer check first whether a queue is declared. kombu checks only after it has
    copied the queue, which takes a fifth of the time of a publish."""
    maybe_declare, channel = producer.maybe_declare, producer.channel

    def declare(entity: Any, *args: Any, **kwargs: Any) -> Any:
        cached = getattr(entity, "can_cache_declaration", False) and channel.connection
        if cached and hash(entity) in channel.connection.client.declared_entities:
            return False
        return maybe_declare(entity, *args, **kwargs)

    producer.maybe_declare = declare


def _write_at_once(pool: Any) -> None:
    """Makes the connections of a pool of redis-py write what leaves together at once, and not 6 kB
    at a time: that takes a fourth of the time."""
    get_connection = pool.get_connection

    def get(*args: Any, **kwargs: Any) -> Any:
        connection = get_connection(*args, **kwargs)
        if "pack_commands" not in vars(connection):
            pack = connection.pack_commands
            connection.pack_commands = lambda commands: [b"".join(pack(commands))]
        return connection

    pool.get_connection = get


class BatchFailed(KombuError):
    """Messages that were to leave together failed. Any number of them may have left."""


class Batch:
    """Messages that leave together. It is in the place of kombu's own batch for Redis, because we
    need the commands, and send those for one queue as one."""

    def __init__(self, channel: Any) -> None:
        self.channel, self.is_open = channel, False
        #: In the order in which they leave.
        self.commands: list[Command] = []

    def publish(self, message: Any, **kwargs: Any) -> Any:
        """Adds what kombu has made. kombu calls this, and the channel then calls :meth:`add`."""
        return self.channel.basic_publish(message, _publish_batch=self, **kwargs)

    def add(self, name: str, *args: Any) -> None:
        self.commands.append((name, args))

    def flush(self) -> None:
        """Sends all, once."""
        commands, self.commands = self.commands, []
        if not commands:
            return
        try:
            with self.channel.conn_or_acquire() as client, client.pipeline(False) as pipeline:
                for name, args in _joined(commands):
                    getattr(pipeline, name)(*args)
                pipeline.execute()
        except Exception as exc:
            raise BatchFailed("nobody knows which of these messages have left") from exc

    def discard(self) -> None:
        self.commands = []

    close = discard


def _joined(commands: Iterable[Command]) -> Iterator[Command]:
    """Makes one command of several for the same queue: client and server then parse one."""
    for (name, queue), group in itertools.groupby(commands, lambda each: (each[0], each[1][0])):
        if name == "lpush":
            yield name, (queue, *(value for _, args in group for value in args[1:]))
        else:
            yield from group


class Fault(enum.Enum):
    """Whose fault it is that a message could not be sent."""

    #: The broker's: it is away, so any other message would fail, too.
    AWAY = "away"
    #: The message's, or its queue's or exchange's; it may succeed later.
    PASSING = "passing"
    #: The message's: it cannot be made and would fail again.
    LASTING = "lasting"


#: Errors of the user's functions after which a message may succeed later. By class name: each
#: library for a database or a broker has its own classes.
_MAY_PASS = {
    *("OSError", "ConnectionError", "TimeoutError", "OperationalError", "InterfaceError"),
    "MemoryError",
}
#: Errors in the middle of a publish if a message does not fit the protocol.
_MALFORMED = (TypeError, ValueError, ArithmeticError, struct.error, SerializationError)
#: Redis gives these answers to all writers: no memory, a replica, no disk, a cluster that is down.
_NOTHING_TAKEN = {"OutOfMemoryError", "ReadOnlyError", "ClusterDownError", "MasterDownError"}
_NOTHING_TAKEN_TEXTS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY ", "CLUSTERDOWN")
#: The classes of AMQP methods for exchanges, queues and messages.
_OF_MESSAGES = (40, 50, 60)
#: An exception has this attribute if the connection to the broker raised it.
_OF_BROKER = "_zk_beat_of_broker"


def comes_from(exc: BaseException, errors: Iterable[type[BaseException]]) -> bool:
    """True if it is one of these errors, or Celery has wrapped one."""
    chain = (exc, exc.__cause__, exc.__context__)
    return any(isinstance(each, tuple(errors)) for each in chain)


def unwrapped(exc: BaseException) -> BaseException:
    """Returns the exception that Celery's beat has wrapped, else `exc` itself."""
    inner = exc.__cause__ or exc.__context__
    return inner if isinstance(exc, SchedulingError) and inner is not None else exc


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Yields the exception, and those it was explicitly raised from."""
    while exc is not None:
        yield exc
        exc = exc.__cause__


@contextlib.contextmanager
def _of_broker() -> Iterator[None]:
    """Marks exceptions raised within as the broker's, or its connection's."""
    try:
        yield
    except Exception as exc:
        vars(exc)[_OF_BROKER] = True
        raise


@contextlib.contextmanager
def _as_absent() -> Iterator[None]:
    """Turns every error into OperationalError: whatever keeps us from reaching the broker, such as
    a wrong setting, is not a message's fault."""
    try:
        yield
    except OperationalError:
        raise
    except Exception as exc:
        raise OperationalError(f"{type(exc).__name__}: {exc}") from None


def _raised_by_broker(exc: BaseException | None) -> BaseException | None:
    """Returns the exception of the connection to the broker that caused `exc`, or None."""
    while exc is not None and _OF_BROKER not in vars(exc):
        exc = exc.__cause__ or exc.__context__
    return exc


def _is_refusal(exc: BaseException) -> bool:
    """True if RabbitMQ refused a message, its queue or its exchange. It may have closed the
    connection."""
    if isinstance(exc, amqp.exceptions.MessageNacked):
        return True
    return (
        isinstance(exc, amqp.exceptions.AMQPError)
        and not isinstance(exc, amqp.exceptions.InternalError)
        and isinstance(exc.method_sig, tuple)
        and exc.method_sig[0] in _OF_MESSAGES
    )


def _takes_nothing(exc: BaseException) -> bool:
    """True if Redis answers, but takes no writes from anybody at the moment."""
    names = {kind.__name__ for kind in type(exc).__mro__}
    return "ResponseError" in names and (
        bool(names & _NOTHING_TAKEN) or str(exc).startswith(_NOTHING_TAKEN_TEXTS)
    )


class Broker:
    """The connection to the broker. It opens on first use, and again after :meth:`drop`. For one
    thread at a time.

    Args:
        session_timeout: returns the time-out of the ZooKeeper session, in seconds.
        assure: is called as late as possible before messages leave. If it raises, they stay.
    """

    def __init__(
        self, app: Any, session_timeout: Callable[[], float], assure: Callable[[], object]
    ) -> None:
        self._app, self._session_timeout, self._assure = app, session_timeout, assure
        self._batch: Batch | None = None
        #: Whether anything may have left since this was last set to False.
        self.may_have_left = False
        #: With RabbitMQ: what it answers.
        self._confirms: Confirms | None = None
        #: How many messages it takes together; one until we know.
        self._takes_together = 1
        self._handed = 0

    @cached_property
    def connection(self) -> Any:
        """Not yet connected."""
        connection = self._app.connection_for_write()
        ours = transport_options(connection.transport_cls, self._session_timeout())
        connection.transport_options = {**ours, **connection.transport_options}
        return connection

    @cached_property
    def producer(self) -> Any:
        """A connected producer. Its channel looks at the clock once more when a message is made and
        everything is declared. For messages that leave together, :meth:`together` does that."""
        # Celery's own tries a hundred times by default. Here the dispatch loop retries, because it
        # watches the election.
        with _of_broker(), _as_absent():
            connection = self.connection
            connection.ensure_connection(max_retries=len(connection.alt), interval_start=0)
            producer = self._app.amqp.Producer(connection, auto_declare=False)
            channel = producer.channel  # opened now, not between that look and the sending
        publish, confirms = channel.basic_publish, None
        if hasattr(channel, "connection") and isinstance(channel.connection, amqp.Connection):
            with _of_broker(), _as_absent():
                confirms = Confirms(channel, functools.partial(self._begin, channel))
            self._confirms, _publish = confirms, producer._publish
            publish = self._numbered(confirms.publish)

            def publish_unless_blocked(*args: Any, **kwargs: Any) -> Any:
                if not confirms.is_gathering:
                    confirms.check()
                return _publish(*args, **kwargs)

            producer._publish = publish_unless_blocked
        producer._publish = _of_broker()(producer._publish)

        def publish_if_master(*args: Any, **kwargs: Any) -> Any:
            if confirms is None and "_publish_batch" not in kwargs:
                self._begin(channel)
            result = publish(*args, **kwargs)
            self._handed += 1
            return result

        channel.basic_publish = publish_if_master
        _declare_once(producer)
        if self._app.conf.task_always_eager:  # they run here, one by one
            return producer
        if confirms is not None:
            self._takes_together = MOST_TOGETHER if confirms.are_on else 1
        elif getattr(producer, "supports_batch_publish", False):  # kombu 5.7, for Redis
            self._takes_together = MOST_TOGETHER
            self._batch = batch = Batch(channel)
            _write_at_once(channel.pool)
            channel.create_publish_batch = lambda max_size: batch
            producer.templates = Templates(channel, batch)
        return producer

    def _numbered(self, publish: Callable[..., None]) -> Callable[..., None]:
        return lambda *args, **kwargs: publish(self._handed, *args, **kwargs)

    def handed_over(self) -> int:
        """Returns how many messages the connection has been given; some may not have left yet."""
        return self._handed

    @property
    def most_together(self) -> int:
        """How many messages may leave together. Celery sends `after_task_publish` when a message is
        made. If the signal has receivers, the message must have left by then: so it leaves
        alone."""
        return 1 if after_task_publish.receivers else self._takes_together

    @property
    def are_on_their_way(self) -> bool:
        """True if messages are on their way that RabbitMQ will take when its alarm ends."""
        return self._confirms is not None and self._confirms.are_on_their_way

    def late_answers(self) -> bool:
        """True if RabbitMQ has answered for all messages that were on their way. Raises what
        :meth:`fault` judges if the connection is lost."""
        if self._confirms is not None:
            with _of_broker():
                self._confirms.hear()
        return not self.are_on_their_way

    def has_left(self, messages: range) -> bool:
        """True if any of these messages of the last :meth:`together` may have left. They are
        counted as :meth:`handed_over` does."""
        if self._confirms is None:
            return self.may_have_left
        return not self._confirms.written.isdisjoint(messages)

    def has_taken(self, messages: range) -> bool:
        """True if the broker has said of each of these messages that it has taken it."""
        return self._confirms is not None and self._confirms.taken.issuperset(messages)

    def refusal(self, messages: range) -> Exception | None:
        """Returns why the broker has refused one of these messages; None if it has not."""
        refused = self._confirms.refused if self._confirms is not None else {}
        for number in messages:
            if number in refused:
                vars(refused[number])[_OF_BROKER] = True
                return refused[number]
        return None

    @contextlib.contextmanager
    def together(self, due: Callable[[], object], answered: Callable[[], object]) -> Iterator[None]:
        """Messages that are made within leave together. With Redis all of them do, or none; with
        RabbitMQ each has its answer. If the broker does not take several, a single one leaves by
        itself. `due` is called before anything leaves, and returns when it may. `answered` is
        called when the broker has answered for some, before more leave."""
        producer, confirms = self.producer, self._confirms
        if confirms is not None:
            confirms.clear()
        if self.most_together == 1:
            due()
            yield
            return
        if confirms is not None:
            with _of_broker():
                confirms.check()  # else we would wait if we declared anything under an alarm
            with confirms.gathering():
                yield
                due()
                with _of_broker():
                    confirms.flush(answered)
            return
        batch = self._batch
        assert batch is not None
        try:
            with producer.batch():
                batch.is_open = True
                try:
                    yield
                finally:
                    batch.is_open = False
                due()
                with _of_broker():
                    self._begin(producer.channel)
                    batch.flush()
        finally:
            batch.discard()

    def _begin(self, channel: Any) -> None:
        """To be called before anything leaves. Where the connection is known to be lost, this is
        seen now, and it is certain that nothing has left."""
        pool = getattr(getattr(channel, "client", None), "connection_pool", None)  # of Redis
        if pool is not None:
            import redis

            # Before 5.3 (kombu 5.5) it wants a command's name; later releases warn of one.
            pool.release(pool.get_connection(*(("_",) if redis.VERSION < (5, 3) else ())))
        self._assure()
        self.may_have_left = True

    def drop(self) -> None:
        """Closes the connection; also one that is half dead."""
        self.__dict__.pop("producer", None)
        self._takes_together = 1
        connection = self.__dict__.pop("connection", None)
        confirms, self._confirms = self._confirms, None
        if connection is not None and confirms is not None and confirms.is_blocked:
            connection.collect()  # it would not answer
        elif connection is not None:
            with contextlib.suppress(*connection.connection_errors, *connection.channel_errors):
                connection.release()

    def fault(self, exc: Exception) -> Fault:
        """Returns whose fault an exception is that was raised while sending a message."""
        raised = _raised_by_broker(exc)
        if raised is None:  # so the message was still being made
            classes = {
                kind.__name__ for each in _causes(unwrapped(exc)) for kind in type(each).__mro__
            }
            return Fault.PASSING if classes & _MAY_PASS else Fault.LASTING
        errors = list(_causes(raised))
        if self.has_refused(exc):
            return Fault.PASSING
        if any(
            isinstance(each, amqp.exceptions.FrameSyntaxError) and each.method_sig is None
            for each in errors
        ):
            return Fault.LASTING  # py-amqp cannot write it
        # With Redis, kombu wrongly counts a KeyError as a lost connection.
        if any(map(_takes_nothing, errors)):
            return Fault.AWAY
        lost = [each for each in self._errors("connection_errors") if each is not KeyError]
        if any(isinstance(each, (Blocked, OperationalError, OSError, *lost)) for each in errors):
            return Fault.AWAY
        return Fault.LASTING if isinstance(raised, _MALFORMED) else Fault.PASSING

    def has_refused(self, exc: Exception) -> bool:
        """True if the broker answers, but refuses this very message."""
        errors = list(_causes(_raised_by_broker(exc)))
        if any(map(_takes_nothing, errors)):
            return False
        channel_errors = self._errors("channel_errors")
        return any(_is_refusal(each) or isinstance(each, channel_errors) for each in errors)

    def _errors(self, kind: str) -> tuple[type[Exception], ...]:
        try:
            return tuple(getattr(self.connection, kind))
        except Exception:  # a wrong setting: there is no connection
            return ()

    def has_wholly_refused(self, exc: Exception) -> bool:
        """True if the broker refused this message and certainly no queue has it. After a nack
        another queue may have taken the message."""
        errors = list(_causes(_raised_by_broker(exc)))
        is_nack = any(isinstance(each, amqp.exceptions.MessageNacked) for each in errors)
        return not is_nack and self.has_refused(exc)

    def is_lost(self, exc: Exception) -> bool:
        """True if the connection cannot be used after this exception."""
        raised = list(_causes(_raised_by_broker(exc)))
        harmless = (Blocked, Returned, amqp.exceptions.MessageNacked)
        is_harmless = any(isinstance(each, harmless) for each in raised)
        return bool(raised) and not is_harmless and self.fault(exc) is not Fault.LASTING


class BackOff:
    """Who has to wait after a failure: one entry, or (None) all of them."""

    def __init__(self) -> None:
        #: The last pause, and when it ends, by boottime(): the time of day may be set back.
        self._pauses: dict[str | None, tuple[float, float]] = {}

    @property
    def is_needed(self) -> bool:
        """False if nobody has to wait."""
        return bool(self._pauses)

    def punish(self, who: str | None) -> float:
        """Makes `who` wait, twice as long each time. Returns the seconds."""
        before, _ = self._pauses.get(who, (_BACK_OFF / 2, 0.0))
        pause = min(2 * before, _LONGEST_AWAY if who is None else _LONGEST_FAULT)
        self._pauses[who] = pause, clock.boottime() + pause
        return pause

    def is_punished(self, entry: str) -> bool:
        """True if the entry failed through its own fault, and has not succeeded since."""
        return entry in self._pauses

    def forgive(self, entry: str) -> None:
        self._pauses.pop(entry, None)
        self._pauses.pop(None, None)

    def clear(self) -> None:
        self._pauses.clear()

    def left(self, entries: Iterable[str]) -> float:
        """Returns the seconds until the first of the entries may be tried; inf without entries."""
        over_for_all = self._over(None)
        over = min((max(over_for_all, self._over(entry)) for entry in entries), default=math.inf)
        return over - clock.boottime()

    def _over(self, who: str | None) -> float:
        return self._pauses.get(who, (0.0, 0.0))[1]


def why_not_encoded(value: Any, serializer: str) -> str | None:
    """Returns why a serializer refuses a value, in one line, or None if it accepts it."""
    try:
        dumps(value, serializer=serializer)
    except Exception as exc:
        return " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
    return None
