"""The connection to the broker: what is asked of it, and how its failures are borne."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import math
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import amqp
from celery.beat import SchedulingError
from celery.signals import after_task_publish
from kombu.exceptions import OperationalError, SerializationError
from kombu.serialization import dumps
from kombu.utils.objects import cached_property

from . import clock
from .ledger import SAFE_PART
from .log import get_logger

logger = get_logger(__name__)

#: Seconds that a broker may leave a request unanswered; without, a black-holed one would hold the
#: dispatch loop for ever.
_SOCKET_TIMEOUT = 5.0
_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "sentinel": 26379}
#: Transport options that make two brokers of one address.
_PARTS_OF_ADDRESS = ("master_name", "global_keyprefix", "queue_name_prefix")
#: Most messages that are handed to the broker together: as many as leave well within the part of
#: the session time-out that is left after the last look at the clock.
MOST_TOGETHER = 100
#: No bound on the commands that kombu gathers: they leave when we say so, after that look.
_UNBOUNDED = 2**31
#: First pause after a publish that failed, seconds; the longest, when the broker is away (which is
#: how late the runs are when it is back), and when it is one entry's fault.
_BACK_OFF, _LONGEST_AWAY, _LONGEST_FAULT = 0.1, 2.0, 10.0


def transport_options(transport: str, session_timeout: float) -> dict[str, Any]:
    """Returns what `broker_transport_options` are with us, unless the user says otherwise."""
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


def broker_digest(app: Any) -> str | None:
    """Of where an app's messages go, so that beats with different brokers can be told: without
    credentials, and whatever the order of several. None where that cannot be understood."""
    try:
        connection = app.connection_for_write()  # connects to nothing yet
        urls = connection.alt or [connection.as_uri()]
        options = connection.transport_options or {}
        where = sorted({_address(app.connection_for_write(url)) for url in urls})
        parts = {name: str(options[name]) for name in _PARTS_OF_ADDRESS if options.get(name)}
    except Exception as exc:  # of a transport that is not installed, for example
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
    """Has a producer look whether a queue is declared before anything else. kombu itself looks
    only after it has made a copy of it, which takes a fifth of the time of a publish."""
    maybe_declare, channel = producer.maybe_declare, producer.channel

    def declare(entity: Any, *args: Any, **kwargs: Any) -> Any:
        cached = getattr(entity, "can_cache_declaration", False) and channel.connection
        if cached and hash(entity) in channel.connection.client.declared_entities:
            return False
        return maybe_declare(entity, *args, **kwargs)

    producer.maybe_declare = declare


class Fault(enum.Enum):
    """Whose fault it is that a message could not be sent."""

    #: The broker's: it is away, and no other message would fare better.
    AWAY = "away"
    #: That of the message, or of what it is sent to; it may pass.
    PASSING = "passing"
    #: That of the message, which cannot be made: it would fail again.
    LASTING = "lasting"


#: Classes of errors that may pass, when a function of the user's raises them. By name, for each
#: library of a database or a broker has its own.
_MAY_PASS = {
    *("OSError", "ConnectionError", "TimeoutError", "OperationalError", "InterfaceError"),
    "MemoryError",
}
#: What is raised in the middle of a publish by a message that does not fit the protocol.
_MALFORMED = (TypeError, ValueError, ArithmeticError, struct.error, SerializationError)
#: What Redis answers to all that write: no memory, a replica, no disk, a cluster that is down.
_NOTHING_TAKEN = {"OutOfMemoryError", "ReadOnlyError", "ClusterDownError", "MasterDownError"}
_NOTHING_TAKEN_TEXTS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY ", "CLUSTERDOWN")
#: The classes of AMQP methods that are about an exchange, a queue or a message.
_OF_MESSAGES = (40, 50, 60)
#: The attribute of an exception that the connection to the broker raised.
_OF_BROKER = "_zk_beat_of_broker"


def comes_from(exc: BaseException, errors: Iterable[type[BaseException]]) -> bool:
    """True for one of these, and for Celery's wrapping of one."""
    chain = (exc, exc.__cause__, exc.__context__)
    return any(isinstance(each, tuple(errors)) for each in chain)


def unwrapped(exc: BaseException) -> BaseException:
    """The exception that Celery's beat has wrapped."""
    inner = exc.__cause__ or exc.__context__
    return inner if isinstance(exc, SchedulingError) and inner is not None else exc


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """It, and what it was explicitly raised from."""
    while exc is not None:
        yield exc
        exc = exc.__cause__


@contextlib.contextmanager
def _of_broker() -> Iterator[None]:
    """Marks what is raised within as raised by the broker, or the connection to it."""
    try:
        yield
    except Exception as exc:
        vars(exc)[_OF_BROKER] = True
        raise


@contextlib.contextmanager
def _as_absent() -> Iterator[None]:
    """Whatever keeps us from reaching the broker, such as a setting that is wrong, is no fault of a
    message."""
    try:
        yield
    except OperationalError:
        raise
    except Exception as exc:
        raise OperationalError(f"{type(exc).__name__}: {exc}") from None


def _raised_by_broker(exc: BaseException | None) -> BaseException | None:
    """The exception of the connection to the broker, if that is what this comes from."""
    while exc is not None and _OF_BROKER not in vars(exc):
        exc = exc.__cause__ or exc.__context__
    return exc


def _is_refusal(exc: BaseException) -> bool:
    """True where RabbitMQ refused a message, or its queue or exchange, with the connection
    intact or not."""
    if isinstance(exc, amqp.exceptions.MessageNacked):
        return True
    return (
        isinstance(exc, amqp.exceptions.AMQPError)
        and not isinstance(exc, amqp.exceptions.InternalError)
        and isinstance(exc.method_sig, tuple)
        and exc.method_sig[0] in _OF_MESSAGES
    )


def _takes_nothing(exc: BaseException) -> bool:
    """True where Redis is there, and takes nothing at the moment, of nobody."""
    names = {kind.__name__ for kind in type(exc).__mro__}
    return "ResponseError" in names and (
        bool(names & _NOTHING_TAKEN) or str(exc).startswith(_NOTHING_TAKEN_TEXTS)
    )


def _nacked() -> Exception:
    """py-amqp's own has no text."""
    text = "RabbitMQ does not take the message (basic.nack), perhaps because its queue is full"
    nacked: Exception = amqp.exceptions.MessageNacked(text)
    return nacked


class Blocked(Exception):
    """RabbitMQ has an alarm (of memory, or of the disk): it reads no more from this connection."""

    def __init__(self) -> None:
        super().__init__("RabbitMQ has an alarm and blocks this connection")


class Broker:
    """The connection to the broker: opened when it is first used, and anew after :meth:`drop`.
    For one thread at a time. `session_timeout` tells that of the ZooKeeper session, seconds;
    `assure` is called as late as anything but the broker can before messages leave, and may raise
    to keep them from it."""

    def __init__(
        self, app: Any, session_timeout: Callable[[], float], assure: Callable[[], object]
    ) -> None:
        self._app, self._session_timeout, self._assure = app, session_timeout, assure
        self._gathering = False
        #: Whether anything may have left since this was last set to False.
        self.may_have_left = False
        self._is_blocked = False
        #: Whether a message is on its way that RabbitMQ takes when its alarm is over.
        self.is_on_its_way = False
        #: How many messages this channel has sent, and what the broker said of the last.
        self._sent = 0
        self._is_taken: bool | None = None
        #: How many messages it takes together; one as long as that is not known.
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
        """Connected; its channel looks at the clock once more when a message is made and all is
        declared. Of messages that leave together :meth:`together` does."""
        # Celery's own tries a hundred times by default; here the dispatch loop is what retries,
        # with an eye on the election.
        with _of_broker(), _as_absent():
            connection = self.connection
            connection.ensure_connection(max_retries=len(connection.alt), interval_start=0)
            producer = self._app.amqp.Producer(connection, auto_declare=False)
            channel = producer.channel  # opened now, not between that look and the sending
        publish = channel.basic_publish
        if hasattr(channel, "connection") and isinstance(channel.connection, amqp.Connection):
            publish = self._heeding_alarms(channel)
            _publish = producer._publish

            def publish_unless_blocked(*args: Any, **kwargs: Any) -> Any:
                self._hear(channel.connection)
                if self._is_blocked:
                    raise Blocked
                return _publish(*args, **kwargs)

            producer._publish = publish_unless_blocked
        producer._publish = _of_broker()(producer._publish)

        def publish_if_master(*args: Any, **kwargs: Any) -> Any:
            if not self._gathering:
                self._begin(channel)
            result = publish(*args, **kwargs)
            self._handed += 1
            return result

        channel.basic_publish = publish_if_master
        _declare_once(producer)
        # kombu has it since 5.7, for Redis. Tasks that are executed here wait for no other.
        is_eager = self._app.conf.task_always_eager
        if getattr(producer, "supports_batch_publish", False) and not is_eager:
            self._takes_together = MOST_TOGETHER
        return producer

    def handed_over(self) -> int:
        """How many messages were handed to the connection so far, and perhaps not sent yet."""
        return self._handed

    @property
    def most_together(self) -> int:
        """How many messages may leave together. Celery sends `after_task_publish` when a message is
        made: where somebody listens, that has to be when it has left, so it leaves alone."""
        return 1 if after_task_publish.receivers else self._takes_together

    # Six functions, none of them complex, that share what is known of one channel.
    def _heeding_alarms(self, channel: Any) -> Callable[..., Any]:  # noqa: C901
        """The channel's way to publish, that does not wait for an alarm to end. RabbitMQ tells of
        one when something is published, which it takes when the alarm is over: so another copy,
        over another connection, would arrive then, too."""
        publish, send_method = channel.basic_publish, channel.send_method
        confirms = channel.connection.confirm_publish

        def note_sent(method: Any, *args: Any, **kwargs: Any) -> Any:
            result = send_method(method, *args, **kwargs)
            if method == amqp.spec.Basic.Publish:
                self._sent += 1
            return result

        def blocked(reason: str) -> None:
            self._is_blocked = True
            if amqp.spec.Basic.Ack in channel._pending:  # else that wait would last to its time-out
                raise Blocked

        def unblocked() -> None:
            self._is_blocked = False

        def answered(taken: bool) -> None:
            self._is_taken = taken

        def publish_heeding_alarms(*args: Any, **kwargs: Any) -> Any:
            sent, self._is_taken = self._sent, None
            try:
                return publish(*args, **kwargs)
            except (Blocked, socket.timeout, TimeoutError):
                if not self._is_blocked:
                    raise
                self.is_on_its_way = confirms and self._sent > sent and self._is_taken is None
                raise Blocked from None
            except amqp.exceptions.MessageNacked:
                raise _nacked() from None

        channel.connection.on_blocked = blocked
        channel.connection.on_unblocked = unblocked
        channel.events["basic_ack"].add(lambda tag, multiple: answered(True))
        channel.events["basic_nack"].add(lambda tag, multiple: answered(False))
        channel.send_method = note_sent
        return publish_heeding_alarms

    def _hear(self, connection: Any) -> None:
        """Reads what RabbitMQ says by itself."""
        with contextlib.suppress(socket.timeout, TimeoutError):
            while not self.is_on_its_way or self._is_taken is None:
                connection.drain_events(timeout=0)

    def late_answer(self) -> bool:
        """True where RabbitMQ has taken the message that is on its way; False: it says nothing yet.
        Where it refuses it, or the connection is lost, raises what :meth:`fault` judges."""
        with _of_broker():
            try:
                self._hear(self.producer.channel.connection)
            except Exception:
                self.is_on_its_way = False
                raise
            if self._is_taken is None:
                return False
            self.is_on_its_way = False
            if not self._is_taken:
                raise _nacked()
            return True

    @contextlib.contextmanager
    def together(self, due: Callable[[], object]) -> Iterator[None]:
        """Messages that are made within leave together, or none does. Where the broker does not
        take them so, a single one leaves by itself. `due` is called before anything leaves, and
        returns when it may."""
        producer = self.producer
        if self.most_together == 1:
            due()
            yield
            return
        with producer.batch(max_size=_UNBOUNDED) as batch:
            self._gathering = True
            try:
                yield
            finally:
                self._gathering = False
            due()
            with _of_broker():
                self._begin(producer.channel)
                batch.flush()

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
        if connection is not None and self._is_blocked:
            connection.collect()  # it would not answer
        elif connection is not None:
            with contextlib.suppress(*connection.connection_errors, *connection.channel_errors):
                connection.release()
        self._is_blocked = self.is_on_its_way = False

    def fault(self, exc: Exception) -> Fault:
        """Whose fault an exception is that sending a message raised."""
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
        # A KeyError is no lost connection, though kombu counts it as one with Redis.
        if any(map(_takes_nothing, errors)):
            return Fault.AWAY
        lost = [each for each in self._errors("connection_errors") if each is not KeyError]
        if any(isinstance(each, (Blocked, OperationalError, OSError, *lost)) for each in errors):
            return Fault.AWAY
        return Fault.LASTING if isinstance(raised, _MALFORMED) else Fault.PASSING

    def has_refused(self, exc: Exception) -> bool:
        """True where the broker is there, and does not take this very message."""
        errors = list(_causes(_raised_by_broker(exc)))
        if any(map(_takes_nothing, errors)):
            return False
        channel_errors = self._errors("channel_errors")
        return any(_is_refusal(each) or isinstance(each, channel_errors) for each in errors)

    def _errors(self, kind: str) -> tuple[type[Exception], ...]:
        try:
            return tuple(getattr(self.connection, kind))
        except Exception:  # it cannot be made: a setting is wrong
            return ()

    def has_wholly_refused(self, exc: Exception) -> bool:
        """The same, and it is certain that no queue has it: a nack is that of one queue, and others
        that the message is for may have taken it."""
        errors = list(_causes(_raised_by_broker(exc)))
        is_nack = any(isinstance(each, amqp.exceptions.MessageNacked) for each in errors)
        return not is_nack and self.has_refused(exc)

    def is_lost(self, exc: Exception) -> bool:
        """True where the connection is of no further use after this."""
        raised = list(_causes(_raised_by_broker(exc)))
        harmless = (Blocked, amqp.exceptions.MessageNacked)
        is_harmless = any(isinstance(each, harmless) for each in raised)
        return bool(raised) and not is_harmless and self.fault(exc) is not Fault.LASTING


class BackOff:
    """Who has to wait after a failure: one entry, or (None) all of them."""

    def __init__(self) -> None:
        #: The last pause, and when it is over: on boottime(), for the clock of day may be set back.
        self._pauses: dict[str | None, tuple[float, float]] = {}

    def punish(self, who: str | None) -> float:
        """Has `who` wait; twice as long each time. Returns the seconds."""
        before, _ = self._pauses.get(who, (_BACK_OFF / 2, 0.0))
        pause = min(2 * before, _LONGEST_AWAY if who is None else _LONGEST_FAULT)
        self._pauses[who] = pause, clock.boottime() + pause
        return pause

    def is_punished(self, entry: str) -> bool:
        """True where the entry failed by itself, and was not forgiven since."""
        return entry in self._pauses

    def forgive(self, entry: str) -> None:
        self._pauses.pop(entry, None)
        self._pauses.pop(None, None)

    def clear(self) -> None:
        self._pauses.clear()

    def left(self, entries: Iterable[str]) -> float:
        """Seconds before the first of the entries may be tried; for ever, where there is none."""
        over_for_all = self._over(None)
        over = min((max(over_for_all, self._over(entry)) for entry in entries), default=math.inf)
        return over - clock.boottime()

    def _over(self, who: str | None) -> float:
        return self._pauses.get(who, (0.0, 0.0))[1]


def why_not_encoded(value: Any, serializer: str) -> str | None:
    """Why a serializer does not take a value, in one line; None where it does."""
    try:
        dumps(value, serializer=serializer)
    except Exception as exc:
        return " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
    return None
