"""What the entries of other people's schedulers tell beside what Celery's own do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..due import to_utc


def key_of(entry: Any) -> str | None:
    """The primary key of an entry's row, where it has one: another entry of the same name, made
    after this one was deleted, has another."""
    model = getattr(entry, "model", None)
    key = getattr(model, "pk", None) or getattr(model, "id", None)
    return None if key is None else str(key)


def start_of(entry: Any) -> datetime | None:
    """The instant before which it does not run, UTC, where it has one."""
    start = getattr(getattr(entry, "model", None), "start_time", None)
    return None if start is None else to_utc(start)
