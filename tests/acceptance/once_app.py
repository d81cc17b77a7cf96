"""The app of app.py with tasks that are queued once: as docs/integrations.md has them."""

from __future__ import annotations

from typing import Any

from celery_once import QueueOnce
from celery_singleton import Singleton

from .app import app as app

PLACE = app.conf.result_backend
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": PLACE, "default_timeout": 3600},
}
app.conf.singleton_backend_url = PLACE


@app.task(name="once", base=QueueOnce)
def once() -> None: ...


@app.task(name="graceful", base=QueueOnce, once={"graceful": True})
def graceful() -> None: ...


@app.task(name="singleton", base=Singleton)
def singleton(*args: Any) -> None: ...
