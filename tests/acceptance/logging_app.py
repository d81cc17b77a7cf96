"""The app of app.py with its own logging. LOGGING is one of:

- `names`: only the logger `celery` is configured, and all other loggers that exist are disabled;
- `kept`: the same, but they are not disabled;
- `page`: as docs/logging.md prints it;
- `json`: every record of `celery` is a line of JSON.
"""

from __future__ import annotations

import json
import logging.config
import os
import re
from pathlib import Path
from typing import Any

from celery.signals import setup_logging

from .app import app

__all__ = ["app"]

HOW = os.environ["LOGGING"]
PAGE = Path(__file__).parents[2] / "docs" / "logging.md"


class AsJson(logging.Formatter):
    """Formats the text and all fields that not every record has."""

    _usual = vars(logging.makeLogRecord({})).keys()

    def format(self, record: logging.LogRecord) -> str:
        more = {key: value for key, value in vars(record).items() if key not in self._usual}
        return json.dumps({"name": record.name, "message": record.getMessage(), **more})


def configure(**kwargs: Any) -> None:
    formatter = (
        {"()": AsJson} if HOW == "json" else {"format": "%(name)s %(levelname)s %(message)s"}
    )
    logging.config.dictConfig(
        {
            "version": 1,
            **({} if HOW == "names" else {"disable_existing_loggers": False}),
            "formatters": {"of the app": formatter},
            "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "of the app"}},
            "loggers": {"celery": {"handlers": ["err"], "level": "INFO", "propagate": False}},
        }
    )


if HOW == "page":
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (printed,) = [block for block in blocks if "@setup_logging" in block]
    module: dict[str, Any] = {}  # Kept: the signal has only a weak reference to the receiver.
    exec(printed, module)
else:
    setup_logging.connect(configure)
