"""Tasks that end in every way there is, in workers that report it. The configuration comes from the
environment variable CONF, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Ignore, Reject

from celery_zk_beat import ReportOutcomes

app = Celery("acceptance")
app.config_from_object(json.loads(os.environ["CONF"]))
app.steps["worker"].add(ReportOutcomes)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__()
        self.thing = lambda: None


def first_time(path: str) -> bool:
    """False where a task has called it with this path before."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for(path: str) -> None:
    """Ends once there is such a file."""
    while not Path(path).exists():
        time.sleep(0.02)


@app.task
def works(seconds: float = 0) -> None:
    time.sleep(seconds)


@app.task
def waits(path: str) -> None:
    wait_for(path)


@app.task(acks_late=True)
def waits_late(path: str) -> None:
    wait_for(path)


@app.task
def fails() -> None:
    raise KeyError("secret")


@app.task(acks_late=True)
def fails_late() -> None:
    raise KeyError("secret")


@app.task
def fails_oddly() -> None:
    raise Unpicklable


@app.task(bind=True, max_retries=1)
def retries(self: Any) -> None:
    """Once, and then it succeeds."""
    if not self.request.retries:
        raise self.retry(exc=KeyError("secret"), countdown=0.1)


@app.task(bind=True, max_retries=1)
def retries_in_vain(self: Any) -> None:
    raise self.retry(exc=KeyError("secret"), countdown=0.1)


@app.task
def ignores() -> None:
    raise Ignore


@app.task(acks_late=True)
def rejects() -> None:
    raise Reject("secret", requeue=False)


@app.task(acks_late=True)
def requeues(path: str) -> None:
    """Once, and then it succeeds."""
    if first_time(path):
        raise Reject("secret", requeue=True)


@app.task(rate_limit="50/s")
def limited() -> None:
    pass


@app.task(soft_time_limit=1)
def softly_limited() -> None:
    time.sleep(60)


@app.task(time_limit=1)
def hard_limited() -> None:
    time.sleep(60)


@app.task(time_limit=1, acks_late=True, acks_on_failure_or_timeout=False)
def hard_limited_late(path: str) -> None:
    """Once, and then it succeeds."""
    if first_time(path):
        time.sleep(60)


def lose_process() -> None:
    # If the worker does not know yet that the task began, the pool has another process execute it.
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def dies() -> None:
    lose_process()


@app.task(acks_late=True, reject_on_worker_lost=True)
def dies_late(path: str) -> None:
    """Once, and then it succeeds."""
    if first_time(path):
        lose_process()


@app.task(max_retries=1, default_retry_delay=0, retry_on_worker_lost=True)
def retried_when_lost(path: str) -> None:
    """Once, and then it succeeds. Celery 5.7."""
    if first_time(path):
        lose_process()


@app.task
def succeeds_and_dies() -> None:
    """Its process is lost when the result is stored, which Celery 5.7 sees."""


@signals.task_postrun.connect
def die(sender: Any, **kwargs: Any) -> None:
    if sender.name == succeeds_and_dies.name:
        lose_process()


@app.task(bind=True)
def replaces(self: Any) -> None:
    self.replace(works.s())


@app.task
def exits() -> None:
    sys.exit(3)
