"""A scheduler that a site has written itself, as docs/other-schedulers.md describes it. Each entry
is a file in a folder that all beats see: JSON with `task`, `seconds`, and perhaps `last_run_at` and
`enabled`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from celery.beat import ScheduleEntry, Scheduler


class FolderScheduler(Scheduler):
    """The folder is the app's setting `beat_folder`."""

    def setup_schedule(self) -> None:
        self._seen: Any = None
        #: When each entry ran last, according to its file.
        self._written: dict[str, datetime | None] = {}

    @property
    def schedule(self) -> dict[str, ScheduleEntry]:
        if (now := self._look()) != self._seen:
            self.sync()
            self._seen, self.data = now, dict(self._read())
            self._heap = None  # Celery would notice a changed task or schedule, not a last run
        data: dict[str, ScheduleEntry] = self.data
        return data

    @schedule.setter
    def schedule(self, schedule: Mapping[str, ScheduleEntry]) -> None:
        self.data = dict(schedule)

    def _look(self) -> list[tuple[str, int, int]]:
        files = (
            (path.stem, path.stat()) for path in Path(self.app.conf.beat_folder).glob("*.json")
        )
        return sorted((name, stat.st_mtime_ns, stat.st_ino) for name, stat in files)

    def _read(self) -> Any:
        for name, _, _ in self._look():
            try:
                fields = read(self.app.conf.beat_folder, name)
                entry = self.Entry(name, fields["task"], schedule=fields["seconds"], app=self.app)
            except ValueError:
                continue  # load the others
            if at := fields.get("last_run_at"):
                entry.last_run_at = datetime.fromisoformat(at)
            if fields.get("enabled", True):
                self._written[name] = entry.last_run_at
                yield name, entry

    def sync(self) -> None:
        # Not only reserved entries: zk-beat sets a clock forward if it knows of later runs.
        for name, entry in self.data.items():
            if entry.last_run_at != self._written[name]:
                self._written[name] = entry.last_run_at
                with contextlib.suppress(OSError, ValueError):  # deleted, or damaged
                    at = entry.last_run_at.isoformat()
                    write(self.app.conf.beat_folder, name, last_run_at=at)


def read(folder: str, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((Path(folder) / f"{name}.json").read_text())
    return fields


def write(folder: str, name: str, text: str | None = None, **fields: Any) -> None:
    """Replaces an entry's file with a new one: `text`, or the old fields with `fields` changed."""
    path = Path(folder) / f"{name}.json"
    if text is None:
        text = json.dumps({**read(folder, name), **fields})
    new = path.with_name(f".{name}")
    new.write_text(text)
    os.replace(new, path)
