"""The workers' own record of what they received. The demo judges by it: no beat can influence it.

A worker loads this module with ``--include example_project.journal``. It appends a line of JSON to
the file that ``DEMO_JOURNAL`` names when it receives a task, and another when it has executed it.
Several workers share the file: one ``write`` in append mode is one whole line.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery.signals import task_postrun, task_received

from .verdict import Delivery

VARIABLE = "DEMO_JOURNAL"


def _append(event: str, task: str, id: str, hostname: str, header: dict[str, Any]) -> None:
    line = {
        "event": event,
        "at": time.time(),
        "task": task.rpartition(".")[2],
        "id": id,
        "worker": hostname.partition("@")[0],
        "run": header.get("run"),
        "epoch": header.get("epoch"),
        "master": header.get("master"),
    }
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def _received(request: Any, **_: Any) -> None:
    header = request.request_dict.get("zk_beat") or {}
    _append("received", request.name, request.id, request.hostname, header)


def _executed(task: Any, task_id: str, state: str, **_: Any) -> None:
    if state == "SUCCESS":
        header = task.request.get("zk_beat") or {}
        _append("executed", task.name, task_id, task.request.hostname, header)


if VARIABLE in os.environ:
    task_received.connect(_received)
    task_postrun.connect(_executed)


class Journal:
    """Reads the file as it grows.

    Args:
        path: the file that the workers write. It may not exist yet.
        entries: entry names by task name (without the task's module).
    """

    def __init__(self, path: Path, entries: dict[str, str]) -> None:
        self._path = path
        self._entries = entries
        self._offset = 0
        self.deliveries: list[Delivery] = []

    def read(self) -> list[Delivery]:
        """Reads what was written since the last call. Returns what was executed, in order."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        news = (self._take(json.loads(line)) for line in text.splitlines())
        return [delivery for delivery in news if delivery is not None]

    def _take(self, line: dict[str, Any]) -> Delivery | None:
        if line["event"] == "executed":
            for delivery in reversed(self.deliveries):
                if delivery.executed is None and delivery.same(line["id"], line["worker"]):
                    delivery.executed = line["at"]
                    return delivery
        delivery = Delivery(
            entry=self._entries.get(line["task"], line["task"]),
            id=line["id"],
            run=line["run"],
            epoch=line["epoch"],
            received=line["at"],
            executed=line["at"] if line["event"] == "executed" else None,
            worker=line["worker"],
            master=line["master"] or "",
        )
        self.deliveries.append(delivery)
        return delivery if delivery.executed is not None else None
