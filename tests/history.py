"""Reads from the broker what was dispatched, and checks the invariants."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import amqp
import kombu
import redis

from celery_zk_beat.records import from_text


@dataclass(frozen=True)
class Message:
    """A message that was published. `task` is the name of the task, `run` the run's number."""

    task: str
    id: str
    run: int
    epoch: int
    due: datetime
    master: str
    era: str = ""
    entry: str = ""


def messages(broker: str, queue: str = "celery") -> list[Message]:
    """Returns all messages that wait in a queue, in the order in which they were published."""
    return [message_of(headers) for headers in all_headers(broker, queue)]


def all_headers(broker: str, queue: str = "celery") -> list[dict[str, Any]]:
    """Returns the headers of all messages that wait in a queue. The messages stay there."""
    if broker.startswith("redis:"):
        with redis.Redis.from_url(broker) as server:
            return [json.loads(text)["headers"] for text in reversed(server.lrange(queue, 0, -1))]
    found = []
    with kombu.Connection(broker) as connection, contextlib.suppress(amqp.NotFound):
        channel = connection.channel()
        while (message := channel.basic_get(queue)) is not None:
            found.append(message.headers)
    return found  # We did not acknowledge them, so RabbitMQ puts each back in its place.


def message_of(headers: dict[str, Any]) -> Message:
    mark = headers["zk_beat"]
    due = from_text(mark["due"])
    return Message(
        headers["task"],
        headers["id"],
        mark["run"],
        mark["epoch"],
        due,
        mark["master"],
        mark["era"],
        mark["entry"],
    )


def late(history: Sequence[Message]) -> list[Message]:
    """Returns the messages that a master sent after one of its successors had sent a message of the
    same task."""
    newest: dict[str, int] = {}
    found = []
    for message in history:
        newest[message.task] = max(message.epoch, newest.get(message.task, 0))
        if message.epoch < newest[message.task]:
            found.append(message)
    return found


def check(history: Sequence[Message], most_late: int = 0) -> list[Message]:
    """Asserts that no run was lost, that none was made twice under another id, and that at most
    `most_late` messages came :func:`late`.

    Returns:
        the messages that repeat a run, with the same task id.
    """
    assert len(late(history)) <= most_late, f"sent after a successor's: {late(history)}"
    by_task: dict[str, list[Message]] = defaultdict(list)
    for message in history:
        by_task[message.task].append(message)
    repeats = []
    for task, sent in by_task.items():
        first: dict[int, Message] = {}
        for message in sent:
            if first.setdefault(message.run, message) is not message:
                repeats.append(message)
                assert message.id == first[message.run].id, f"{task}: a run with two task ids"
                assert message.due == first[message.run].due
        assert list(first) == list(range(1, len(first) + 1)), f"{task}: runs {list(first)}"
        assert len({m.id for m in first.values()}) == len(first), f"{task}: an id for two runs"
        dues = [message.due for message in first.values()]
        assert dues == sorted(set(dues)), f"{task}: two runs for one instant, or out of order"
    return repeats
