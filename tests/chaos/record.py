"""The history of a campaign: one file of JSON lines. The checker reads nothing else.

Every line has `event` and `at`, seconds since 1970 on the harness's own clock, which no fault
changes. The events are:

- `site`: what was set up: `contender`, `seed`, `minutes`, `entries` (period by name), `beats`,
  `session_timeout` and `patience` (seconds), `versions`.
- `fault`: `number`, `phase` ("begin" or "end"), `verb`, `on` (what it damages), `beat`, `seconds`,
  `argument`.
- `skipped`: a `verb` that cannot be used here, and `why`.
- `started`: a process of `beat`, with its `pid`. `ended`: a process that ended by itself, with its
  `exit_code`.
- `message`: a message in the order in which the broker got them: `entry`, `id`, `beat` (whose
  process sent it), `run`, `epoch`, `due` (None without the header).
- `master`: written when the master in ZooKeeper changes: `id` and `epoch`; `id` is None if there is
  no master.
- `states`: `entries` (`[last_run_at, total_run_count, dropped, zxid]` by name), and `outbox` (lists
  of entry and number).
- `received`, `executed`: written by the workers (`example_project.journal`).
- `healed`: all faults are over. `turn`: afterwards each beat has to become master once: `beat`,
  None if nobody did within `patience` seconds.
- `end`: the broker's queues are empty and all messages are in this file.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Record:
    """Appends events. Thread-safe, also between processes: one line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, event: str, *, at: float | None = None, **fields: Any) -> None:
        line = {"event": event, "at": round(time.time() if at is None else at, 4), **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Event]:
    """Returns all events, by their time."""
    with path.open() as lines:
        return sorted((json.loads(line) for line in lines), key=lambda event: event["at"])
