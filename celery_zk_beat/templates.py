"""Messages from templates. The messages of most entries differ in a few texts: names, ids, instants
and arguments. What is around these is made once, by Celery and kombu, and then used again. So a
burst of thousands takes a fraction of the time.

A template is used only for a message that Celery would make with the same options, for a task with
the same options. What these are is part of a template's key, so a change of an entry or a task is
seen with the next message.
"""

from __future__ import annotations

import functools
import itertools
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
#: Most bytes of arguments that are kept, and about how many each takes beside its texts.
_MOST_BYTES, _OVERHEAD = 32_000_000, 400
#: What a body has beside the arguments, of a task that nothing is chained to.
_EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: How kombu writes a header.
_to_json = json.JSONEncoder().encode


class Arguments(NamedTuple):
    """What a message says of its arguments, as JSON: what Celery shows of them, and the body."""

    args: str
    kwargs: str
    body: str


class Texts:
    """What differs from message to message, beside its task and its arguments."""

    def __init__(self, task_id: str, headers: Mapping[str, Any]) -> None:
        self.task_id, self.headers = task_id, headers

    @functools.cached_property
    def written(self) -> dict[str, str]:
        """As JSON, by the names of a template's gaps."""
        values = {"task_id": _quoted(self.task_id)}
        for name, value in self.headers.items():
            values[name] = _to_json(value)
        return values


class Gathered(Protocol):
    """The messages that are to leave together, as commands."""

    commands: list[Command]
    #: True while messages are gathered.
    is_open: bool


class Template(NamedTuple):
    """A message with gaps. `serializer` is that of its body; `plain` is for a message that has no
    arguments."""

    command: str
    queue: str
    text: str
    serializer: str
    plain: Arguments

    def fill(self, task: str, texts: Texts, arguments: Arguments, tag: str) -> Command:
        """Returns the command that sends the message. `tag` is the delivery tag."""
        values = {
            **texts.written,
            "body": arguments.body,
            "args": arguments.args,
            "kwargs": arguments.kwargs,
            "tag": _quoted(tag),
            "task": _quoted(task),
        }
        return self.command, (self.queue, self.text % values)


class _Cache:
    """What was last used of :class:`Arguments`, by their bytes. It takes about 32 MB at most."""

    def __init__(self) -> None:
        self._new: dict[bytes, Arguments] = {}
        self._old: dict[bytes, Arguments] = {}
        self._bytes = 0

    def get(self, key: bytes) -> Arguments | None:
        found = self._new.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: bytes, arguments: Arguments) -> None:
        self._new[key] = arguments
        self._bytes += _OVERHEAD + len(key) + sum(map(len, arguments))
        if self._bytes > _MOST_BYTES // 2:
            self._old, self._new, self._bytes = self._new, {}, 0


class Templates:
    """Those of one channel. For one thread.

    Args:
        gathered: the messages that are to leave together.
    """

    def __init__(self, channel: Any, gathered: Gathered) -> None:
        self._channel, self._gathered = channel, gathered
        self._arguments = _Cache()
        #: As kombu's delivery tags: no two are the same. Random bytes for each would cost a tenth
        #: of the time of a message.
        self._tag, self._tags = str(uuid.uuid4())[:24], itertools.count()
        self._by_key: dict[Key, Template | None] = {}
        self._asked: dict[Key, int] = {}
        self._same: object = None

    def begin(self, same: object) -> None:
        """To be called for each group of messages. `same` is what all messages depend on: if it
        differs from that of the last group, no template is used again."""
        if same != self._same:
            self._by_key.clear()
            self._asked.clear()
            self._arguments = _Cache()
            self._same = same

    @property
    def count(self) -> int:
        """How many commands are to leave together so far."""
        return len(self._gathered.commands)

    def get(self, key: Key | None) -> Template | None:
        """Returns the template for messages of a key, if there is one and messages are gathered."""
        return self._by_key.get(key) if key is not None and self._gathered.is_open else None

    def add(
        self, template: Template, task: str, texts: Texts, args: Any, kwargs: Any, show: Show
    ) -> None:
        """Adds a message to those that leave together. `show` returns what Celery shows of the
        arguments."""
        arguments, tag = template.plain, f"{self._tag}{next(self._tags):012x}"
        if args or kwargs:
            arguments = self._arguments_of(template.serializer, args, kwargs, show)
        self._gathered.commands.append(template.fill(task, texts, arguments, tag))

    def _arguments_of(self, serializer: str, args: Any, kwargs: Any, show: Show) -> Arguments:
        key = as_bytes((serializer, args, kwargs))
        if key is None:
            return self._written(serializer, args, kwargs, *show(args, kwargs))
        found = self._arguments.get(key)
        if found is None:
            found = self._written(serializer, args, kwargs, *show(args, kwargs))
            self._arguments.put(key, found)
        return found

    def _written(
        self, serializer: str, args: Any, kwargs: Any, argsrepr: str, kwargsrepr: str
    ) -> Arguments:
        _, _, body = dumps((args or (), kwargs or {}, _EMBEDDED), serializer)
        encoded = self._channel.encode_body(body, self._channel.body_encoding)[0]
        return Arguments(_quoted(argsrepr), _quoted(kwargsrepr), _to_json(encoded))

    def is_wanted(self, key: Key) -> bool:
        """True if a template is to be made with the next message of this key."""
        if key in self._by_key or not self._gathered.is_open:
            return False
        if len(self._asked) >= _MOST:
            self._asked.clear()
            self._by_key.clear()
        self._asked[key] = asked = self._asked.get(key, 0) + 1
        return asked >= _MADE_AFTER

    def learn(
        self,
        key: Key,
        since: int,
        task: str,
        texts: Texts,
        args: Any,
        kwargs: Any,
        show: Show,
        mark: Mark,
    ) -> None:
        """Makes a template for messages of a key. If it does not give the very message that Celery
        has made, there is none.

        Args:
            since: how many commands there were before that message.
            task, texts, args, kwargs: of that message.
            show: returns what Celery shows of the arguments.
            mark: makes another one, without arguments.
        """
        commands, template = self._gathered.commands, None
        made, end = commands[since:], len(commands)
        try:
            name, marks = uuid.uuid4().hex, _marks_of(texts)
            shown = uuid.uuid4().hex, uuid.uuid4().hex
            serializer = mark(name, marks, *shown)
            if serializer is not None:
                written = self._written(serializer, args, kwargs, *show(args, kwargs))
                plain = self._written(serializer, (), {}, "()", "{}")
                found = _template_of(commands[end:], serializer, name, marks, shown, plain)
                is_same = found is not None and _gives(found, made, task, texts, written)
                template = found if is_same else None
        except Exception:
            template = None
        finally:
            del commands[end:]
        self._by_key[key] = template


def _gives(
    template: Template, made: Sequence[Command], task: str, texts: Texts, arguments: Arguments
) -> bool:
    """True if the template gives the message that Celery and kombu have made."""
    tag = json.loads(made[0][1][1])["properties"]["delivery_tag"]
    return [template.fill(task, texts, arguments, tag)] == made


#: Returns what Celery shows of positional and keyword arguments.
Show = Callable[[Any, Any], tuple[str, str]]
#: Has Celery make a message without arguments, for a task of this name, with these texts, in which
#: these are shown for the arguments. Returns its serializer; None if it made none.
Mark = Callable[[str, Texts, str, str], Optional[str]]


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
    return Texts(uuid.uuid4().hex, {name: uuid.uuid4().hex for name in texts.headers})


def _template_of(
    commands: Sequence[Command],
    serializer: str,
    task: str,
    marks: Texts,
    shown: tuple[str, str],
    plain: Arguments,
) -> Template | None:
    """Makes a template of a message with marks in it. None if it is no such message, or something
    else than the serializer made its body."""
    if len(commands) != 1 or commands[0][0] != "lpush" or len(commands[0][1]) != 2:
        return None
    command, (queue, text) = commands[0]
    gaps = {"task": task, "task_id": marks.task_id, **marks.headers}
    gaps.update(zip(("args", "kwargs"), shown))
    gaps["tag"] = json.loads(text)["properties"]["delivery_tag"]
    text = text.replace("%", "%%")
    for name, mark in gaps.items():
        text = text.replace(_quoted(mark), f"%({name})s")
    beginning = f'{{"body": {plain.body},'
    if not text.startswith(beginning):
        return None
    text = f'{{"body": %(body)s,{text[len(beginning) :]}'
    return Template(command, queue, text, serializer, plain)
