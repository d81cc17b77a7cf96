"""An app whose entries have numbers as names."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

SCHEDULE: dict[Any, Any] = {
    1: {"task": "one", "schedule": 0.3},
    2: {"task": "two", "schedule": 3600},
    "often": {"task": "often", "schedule": 0.3},
}

app = Celery("acceptance", set_as_current=False)
app.config_from_object({**json.loads(os.environ.get("CONF", "{}")), "beat_schedule": SCHEDULE})
