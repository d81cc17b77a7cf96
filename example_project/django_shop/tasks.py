"""The periodic tasks of the shop."""

from __future__ import annotations

import logging
from typing import Any

from celery import shared_task
from django.core.management import call_command

logger = logging.getLogger(__name__)


@shared_task
def heartbeat() -> None:
    """Logs a line: tasks get from beat to a worker."""
    logger.info("all is well")


@shared_task
def forget_sessions() -> None:
    """Deletes expired sessions from the database."""
    call_command("clearsessions")


@shared_task(bind=True)
def send_invoices(self: Any, batch: str) -> str:
    """Does work that must not be done twice.

    The header `zk_beat` identifies the run: `run` is its number, `due` is the instant that it is
    for, and `epoch` grows with every election, so that a receiver can refuse an older one.
    """
    run = self.request.get("zk_beat") or {"run": "by hand", "due": "now"}
    return f"invoices of {batch}: run {run['run']}, due {run['due']}"


@shared_task
def restock() -> None:
    """Orders what is running out."""
    logger.info("ordered what is running out")
