"""An app on Django's database whose messages say when they were sent, in seconds since 1970."""

from __future__ import annotations

import time
from typing import Any

from celery.signals import before_task_publish

from tests.acceptance.django_app import app

__all__ = ["app"]


@before_task_publish.connect
def _stamp(headers: dict[str, Any], **_: Any) -> None:
    headers["sent"] = time.time()
