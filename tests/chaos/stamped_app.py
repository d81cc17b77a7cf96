"""An app whose messages say when they were sent, in seconds since 1970. It uses Django's database
if the environment names Django's settings."""

from __future__ import annotations

import os
import time
from typing import Any

from celery.signals import before_task_publish

if "DJANGO_SETTINGS_MODULE" in os.environ:
    from tests.acceptance.django_app import app
else:
    from tests.acceptance.app import app

__all__ = ["app"]


@before_task_publish.connect
def _stamp(headers: dict[str, Any], **_: Any) -> None:
    headers["sent"] = time.time()
