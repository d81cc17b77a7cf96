"""The history of a campaign: one file of JSON lines, which is all that the checker reads.

Every line has `event` and `at`, seconds since 1970 on the harness's own clock, which no fault
touches. What the events are:

- `site`: what was set up: `contender`, `seed`, `minutes`, `entries` (name to period), `beats`,
  `session_timeout` and `patience` (seconds), `versions`.
- `fault`: `number`, `phase` ("begin" or "end"), `verb`, `on` (what it hurts), `beat`, `seconds`,
  `argument`.
- `skipped`: a `verb` that cannot be done here, and `why`.
- `started`: a process of `beat`, with its `pid`. `ended`: one that nobody had told to, with its
  `exit_code`.
- `message`: as the broker got it, in that order: `entry`, `id`, `beat` (whose process sent it),
  `run`, `epoch`, `due` (None without the header).
- `master`: who is master as ZooKeeper has it, `id` and `epoch`, when that changes; `id` None where
  there is none.
- `states`: `entries` (name to `[last_run_at, total_run_count, dropped, zxid]`), and `outbox`
  (lists of entry and number).
- `received`, `executed`: by the workers (`example_project.journal`).
- `healed`: all faults are over. `turn`: after it, each beat in turn is to be master: `beat`, None
  where nobody was within `patience` seconds.
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
    """Appends events. Thread-safe, and shared with other processes: one line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, event: str, *, at: float | None = None, **fields: Any) -> None:
        line = {"event": event, "at": round(time.time() if at is None else at, 4), **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Event]:
    """All events, by their time."""
    with path.open() as lines:
        return sorted((json.loads(line) for line in lines), key=lambda event: event["at"])
