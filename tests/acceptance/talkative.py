"""The app of app.py, where every logger logs as much as it can."""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger

from celery_zk_beat.log import LOGGERS

from .app import app

__all__ = ["app"]


@after_setup_logger.connect
def _say_all(logger: logging.Logger, **kwargs: Any) -> None:
    for name in ("", LOGGERS, f"{LOGGERS}.kazoo", "kazoo"):
        logging.getLogger(name).setLevel(1)
