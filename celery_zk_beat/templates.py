"""Messages from templates. The messages of most entries differ in a few texts: names, ids, instants
and arguments. What is around these is made once, by Celery and kombu, and then used again. So a
burst of thousands takes a fraction of the time.

A template is used only for a message that Celery would make with the same options, for a task with
the same options. What these are is part of a template's key, so a change of an entry or a task is
seen with the next message. Nothing is made ahead of time, so nothing can be outdated.
"""

from __future__ import annotations

import json
import marshal
import uuid
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NamedTuple, Optional, Protocol

from kombu.serialization import dumps

#: What a template is known by; a message without a key is made by Celery alone.
Key = tuple[bytes, bytes, tuple[str, ...]]
#: A command for the broker: its name and arguments.
Command = tuple[str, tuple[Any, ...]]

#: Most templates that are kept. An app has a few; each takes about 2 kB.
_MOST = 500
#: A template is made when so many messages could have used it: making one takes as long as making
#: two messages.
_MADE_AFTER = 3
#: What a body has beside the arguments, of a task that nothing is chained to.
_EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: How kombu writes a header.
_to_json = json.JSONEncoder().encode


class Texts(NamedTuple):
    """What differs from message to message. `argsrepr` and `kwargsrepr` are what Celery shows of
    the arguments."""

    task: str
    task_id: str
    argsrepr: str
    kwargsrepr: str
    headers: Mapping[str, Any]


class Gathered(Protocol):
    """The messages that are to leave together, as commands."""

    commands: list[Command]
    #: True while messages are gathered.
    is_open: bool


class Template(NamedTuple):
    """A message with gaps. `serializer` is that of its body; `plain` is a body without arguments,
    as JSON."""

    command: str
    queue: str
    text: str
    serializer: str
    plain: str

    def fill(self, texts: Texts, body: str, tag: str) -> Command:
        """Returns the command that sends the message. `body` is JSON; `tag` is the delivery tag."""
        values = {
            "body": body,
            "tag": _quoted(tag),
            "task": _quoted(texts.task),
            "task_id": _quoted(texts.task_id),
            "argsrepr": _quoted(texts.argsrepr),
            "kwargsrepr": _quoted(texts.kwargsrepr),
        }
        for name, value in texts.headers.items():
            values[name] = _to_json(value)
        return self.command, (self.queue, self.text % values)

    def body(self, channel: Any, args: Any, kwargs: Any) -> str:
        """Returns the JSON of the body of a message with these arguments."""
        return self.written(channel, args, kwargs) if args or kwargs else self.plain

    def written(self, channel: Any, args: Any, kwargs: Any) -> str:
        """Does what :meth:`body` does, by the serializer in any case."""
        _, _, body = dumps((args or (), kwargs or {}, _EMBEDDED), self.serializer)
        return _to_json(channel.encode_body(body, channel.body_encoding)[0])


class Templates:
    """Those of one channel. For one thread.

    Args:
        gathered: the messages that are to leave together.
    """

    def __init__(self, channel: Any, gathered: Gathered) -> None:
        self._channel, self._gathered = channel, gathered
        self._by_key: dict[Key, Template | None] = {}
        self._asked: dict[Key, int] = {}
        self._same: object = None

    def begin(self, same: object) -> None:
        """To be called for each group of messages. `same` is what all messages depend on: if it
        differs from that of the last group, no template is used again."""
        if same != self._same:
            self._by_key.clear()
            self._asked.clear()
            self._same = same

    @property
    def count(self) -> int:
        """How many commands are to leave together so far."""
        return len(self._gathered.commands)

    def get(self, key: Key | None) -> Template | None:
        """Returns the template for messages of a key, if there is one and messages are gathered."""
        return self._by_key.get(key) if key is not None and self._gathered.is_open else None

    def add(self, template: Template, texts: Texts, args: Any, kwargs: Any) -> None:
        """Adds a message to those that leave together."""
        body = template.body(self._channel, args, kwargs)
        tag = self._channel._next_delivery_tag()
        self._gathered.commands.append(template.fill(texts, body, tag))

    def is_wanted(self, key: Key) -> bool:
        """True if a template is to be made with the next message of this key."""
        if key in self._by_key or not self._gathered.is_open:
            return False
        if len(self._asked) >= _MOST:
            self._asked.clear()
            self._by_key.clear()
        self._asked[key] = asked = self._asked.get(key, 0) + 1
        return asked >= _MADE_AFTER

    def learn(self, key: Key, since: int, texts: Texts, args: Any, kwargs: Any, mark: Mark) -> None:
        """Makes a template for messages of a key. If it does not give the very message that Celery
        has made, there is none.

        Args:
            since: how many commands there were before that message.
            texts, args, kwargs: of that message.
            mark: makes another one, without arguments.
        """
        commands, marks, template = self._gathered.commands, _marks_of(texts), None
        made, end = commands[since:], len(commands)
        try:
            serializer = mark(marks)
            if serializer is not None:
                template = _template_of(commands[end:], serializer, marks)
            if template is not None and not self._gives(template, made, texts, args, kwargs):
                template = None
        except Exception:
            template = None
        finally:
            del commands[end:]
        self._by_key[key] = template

    def _gives(
        self, template: Template, made: Sequence[Command], texts: Texts, args: Any, kwargs: Any
    ) -> bool:
        """True if the template gives the message that Celery and kombu have made, and nothing but
        the serializer made its body."""
        tag = json.loads(made[0][1][1])["properties"]["delivery_tag"]
        body = template.body(self._channel, args, kwargs)
        is_written = template.written(self._channel, (), {}) == template.plain
        return is_written and [template.fill(texts, body, tag)] == made


#: Has Celery make a message without arguments, with these texts. Returns its serializer; None if it
#: made none.
Mark = Callable[[Texts], Optional[str]]


def key_of(
    task: bytes | None, options: Mapping[str, Any], headers: Mapping[str, Any]
) -> Key | None:
    """Returns what a template is known by. None if there can be none: the options hold something
    that cannot be compared. `task`: the options of the task."""
    own = as_bytes(options) if options else b""
    return None if own is None or task is None else (task, own, tuple(headers))


def as_bytes(value: Any) -> bytes | None:
    """Returns bytes that differ if a value of plain types differs, or a part of it; None for other
    types. It tells True from 1, and sees what was changed in place."""
    try:
        return marshal.dumps(value, 2)  # later versions also depend on who else has the value
    except ValueError:
        return None


def _marks_of(texts: Texts) -> Texts:
    """Returns texts that are in no other message."""
    task, task_id, argsrepr, kwargsrepr = (uuid.uuid4().hex for _ in range(4))
    headers = {name: uuid.uuid4().hex for name in texts.headers}
    return Texts(task, task_id, argsrepr, kwargsrepr, headers)


def _template_of(commands: Sequence[Command], serializer: str, marks: Texts) -> Template | None:
    """Makes a template of a message with marks in it. None if it is no such message."""
    if len(commands) != 1 or commands[0][0] != "lpush" or len(commands[0][1]) != 2:
        return None
    command, (queue, text) = commands[0]
    message = json.loads(text)
    body, tag = _to_json(message["body"]), message["properties"]["delivery_tag"]
    text = text.replace("%", "%%")
    gaps = {**marks._asdict(), **marks.headers, "tag": tag}
    del gaps["headers"]
    for name, mark in gaps.items():
        text = text.replace(_quoted(mark), f"%({name})s")
    beginning = '{"body": '
    if not text.startswith(beginning + body):
        return None
    text = f"{beginning}%(body)s{text[len(beginning + body) :]}"
    return Template(command, queue, text, serializer, body)
