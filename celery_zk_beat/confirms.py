"""Publishes to RabbitMQ: messages are written together, and their confirmations are awaited
together."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import amqp
from amqp.serialization import dumps

#: At most so many bytes wait for their confirmations, or one message that is longer. The buffers of
#: both kernels hold as much. So to write them does not block when RabbitMQ has an alarm and stops
#: reading, and they leave within the part of the session time-out that is left.
_MOST_BYTES = 98_304


class Blocked(Exception):
    """RabbitMQ has an alarm (memory or disk): it reads nothing more from this connection."""

    def __init__(self) -> None:
        super().__init__("RabbitMQ has an alarm and blocks this connection")


class Returned(amqp.exceptions.ChannelError):  # type: ignore[misc]
    """RabbitMQ has no queue for a message that must go to one (`mandatory`)."""


class _Message(NamedTuple):
    """A message that waits to be written."""

    number: int
    frames: bytes
    exchange: str
    #: RabbitMQ may refuse it without saying which message it means.
    is_alone: bool
    #: Seconds to wait for an answer; None: the connection's own time-out.
    timeout: float | None


class Confirms:
    """What is published over one channel of py-amqp's, and how RabbitMQ answers. For one thread.

    Args:
        begin: is called just before anything is written. If it raises, nothing is written.

    Attributes:
        is_blocked: True while RabbitMQ has an alarm.
        is_gathering: True within :meth:`gathering`.
        written: the numbers of messages that may have left, since :meth:`clear`.
        taken: those that RabbitMQ has confirmed.
        refused: those that it has refused, with its reason.
    """

    def __init__(self, channel: Any, begin: Callable[[], object]) -> None:
        self._channel, self._begin = channel, begin
        connection = channel.connection
        #: Whether RabbitMQ is to confirm messages: the user may not want it.
        self.are_on = bool(connection.confirm_publish)
        self._frames = bytearray()
        into_frames = SimpleNamespace(write=self._frames.extend)
        self._write_frames = connection.frame_writer_cls(connection, into_frames)
        self.is_blocked = False
        self.is_gathering = self._is_held_up = False
        self._gathered: list[_Message] = []
        self.clear()
        #: The delivery tag of the last message; those that are not answered, with their numbers.
        self._last_tag = 0
        self._open: dict[int, int] = {}
        #: Exchanges that have taken a message, so they exist, and we may write to them.
        self._known_exchanges: set[str] = set()
        self._returned: Exception | None = None
        connection.on_blocked = lambda reason: self._note_blocked(True)
        connection.on_unblocked = lambda: self._note_blocked(False)
        channel.events["basic_return"].add(self._note_returned)
        channel.events["basic_ack"].add(self._note_taken)
        channel.events["basic_nack"].add(self._note_nacked)
        self._select()  # now, not between the last look at the clock and the sending

    def clear(self) -> None:
        """Forgets the answers."""
        self.written: set[int] = set()
        self.taken: set[int] = set()
        self.refused: dict[int, Exception] = {}

    @property
    def are_on_their_way(self) -> bool:
        """True if RabbitMQ will take messages when its alarm ends. So we must not send copies over
        another connection: both would arrive."""
        return self._is_held_up and bool(self._open)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """What is published within leaves at :meth:`flush`, or never."""
        self.is_gathering = True
        try:
            yield
        finally:
            self.is_gathering = False
            self._gathered.clear()

    def publish(
        self,
        number: int,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publishes a message, as `basic_publish` of py-amqp, and waits until RabbitMQ has taken
        it. `number` is how the caller knows it. Raises what RabbitMQ says if it refuses it."""
        arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
        self._frames.clear()
        publish = amqp.spec.Basic.Publish
        self._write_frames(1, self._channel.channel_id, publish, arguments, message)
        timeout = confirm_timeout or timeout
        is_alone = bool(mandatory or immediate or timeout)
        made = _Message(number, bytes(self._frames), exchange, is_alone, timeout)
        self.refused.pop(number, None)
        self._gathered.append(made)
        if not self.is_gathering:
            self.flush()
            if number in self.refused:
                raise self.refused[number]

    def flush(self, answered: Callable[[], object] = lambda: None) -> None:
        """Writes what was gathered, and waits until RabbitMQ has taken or refused each message.
        Calls `answered` each time that there are answers.

        Raises:
            Blocked: RabbitMQ has an alarm.
            Exception: the connection or the channel is lost. What is neither written, taken nor
                refused has not left.
        """
        gathered, self._gathered = self._gathered, []
        for messages in self._parts(gathered):
            self._write(messages)
            answered()

    def _parts(self, messages: Iterable[_Message]) -> Iterator[list[_Message]]:
        """Yields messages that may be written together. If RabbitMQ closes the channel, it does not
        say because of which message, and what came after it is lost. So the first message for an
        exchange goes alone."""
        part: list[_Message] = []
        size = 0
        for message in messages:
            is_alone = message.is_alone or message.exchange not in self._known_exchanges
            if part and (is_alone or size + len(message.frames) > _MOST_BYTES):
                yield part
                part, size = [], 0
            part.append(message)
            size += len(message.frames)
            if is_alone:
                yield part
                part, size = [], 0
        if part:
            yield part

    def _write(self, messages: list[_Message]) -> None:
        self.check()
        self._select()
        self._begin()
        self._returned, self._is_held_up = None, False
        self.written.update(message.number for message in messages)
        if self.are_on:
            tags = range(self._last_tag + 1, self._last_tag + 1 + len(messages))
            self._open = dict(zip(tags, [message.number for message in messages]))
            self._last_tag += len(messages)
        self._connection.transport.write(b"".join([message.frames for message in messages]))
        self._await(messages[0].timeout)
        if messages[0].number in self.taken:
            self._known_exchanges.add(messages[0].exchange)

    def _await(self, timeout: float | None) -> None:
        while self._open:
            try:
                self._connection.drain_events(timeout=timeout)
            except (socket.timeout, TimeoutError):
                raise TimeoutError("RabbitMQ does not confirm a message in time") from None
            if self._open and self.is_blocked:
                self._is_held_up = True
                raise Blocked

    def check(self) -> None:
        """Reads what RabbitMQ says by itself. Raises if nothing can be published: :class:`Blocked`,
        or what has ended the connection."""
        self.hear()
        if self.is_blocked:
            raise Blocked

    def hear(self) -> None:
        """Reads what RabbitMQ says by itself."""
        with contextlib.suppress(socket.timeout, TimeoutError):
            while True:
                self._connection.drain_events(timeout=0)

    @property
    def _connection(self) -> Any:
        """py-amqp would open a closed one again."""
        connection = self._channel.connection
        if connection is None or not connection.connected:
            raise amqp.exceptions.RecoverableConnectionError("the connection is closed")
        return connection

    def _select(self) -> None:
        """Has RabbitMQ confirm what is published. py-amqp opens a channel anew that RabbitMQ has
        closed, and notes in the same attribute that it must select again."""
        if self.are_on and not self._channel._confirm_selected:
            self._channel._confirm_selected = True
            self._channel.confirm_select()
            self._last_tag = 0

    def _note_blocked(self, is_blocked: bool) -> None:
        self.is_blocked = is_blocked

    def _note_returned(self, exc: Exception, *args: Any) -> None:
        """The message that was written alone goes to no queue. Its confirmation follows."""
        self._returned = Returned(str(exc), amqp.spec.Basic.Return)

    def _note_taken(self, tag: int, multiple: bool) -> None:
        for number in self._answered(tag, multiple):
            if self._returned is None:
                self.taken.add(number)
            else:
                self.refused[number] = self._returned

    def _note_nacked(self, tag: int, multiple: bool) -> None:
        # py-amqp's own exception has no text.
        text = "RabbitMQ does not take the message (basic.nack), perhaps because its queue is full"
        for number in self._answered(tag, multiple):
            self.refused[number] = amqp.exceptions.MessageNacked(text)

    def _answered(self, tag: int, multiple: bool) -> list[int]:
        """Returns the numbers of the messages that an answer with this tag is about."""
        tags = [each for each in self._open if each <= tag] if multiple else [tag]
        return [self._open.pop(each) for each in tags if each in self._open]
