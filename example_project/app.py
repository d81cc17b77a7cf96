"""A small Celery app whose periodic tasks go on when a beat dies.

Start as many beats as you like, on as many machines as you like. One of them is master::

    celery -A example_project.app worker
    celery -A example_project.app beat
    celery -A example_project.app beat      # a standby: kill the other and watch
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery
from celery.schedules import crontab

from celery_zk_beat import ReportOutcomes

logger = logging.getLogger(__name__)

app = Celery("example")  # The name is part of the election's root, so every app has its own.

app.conf.broker_url = os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0")
app.conf.result_backend = os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost:6379/1")
app.conf.broker_connection_retry_on_startup = True

# All that celery-zk-beat needs: the name of its scheduler, and the address of ZooKeeper.
app.conf.beat_scheduler = "celery_zk_beat:ZooKeeperScheduler"
app.conf.zk_beat_hosts = os.environ.get("ZK_BEAT_HOSTS", "localhost:2181")
app.conf.zk_beat_id = os.environ.get("ZK_BEAT_ID")  # None: host and pid
app.conf.zk_beat_http = os.environ.get("ZK_BEAT_HTTP")  # None: no health, metrics, status page
if "ZK_BEAT_SESSION_TIMEOUT" in os.environ:
    app.conf.zk_beat_session_timeout = float(os.environ["ZK_BEAT_SESSION_TIMEOUT"])

# Entries may also be added while beats run: `zk-beat add orders --task example_project.app.orders
# --every 3`.
app.conf.zk_beat_entries = True

# Workers report what becomes of the runs whose policy asks for that: `zk-beat history invoices`.
app.conf.zk_beat_outcomes = "worker"
app.conf.zk_beat_policies = {"invoices": {"finish_within": 60}}
app.steps["worker"].add(ReportOutcomes)

# A schedule as Celery knows it. It does not mention the election.
app.conf.beat_schedule = {
    "heartbeat": {"task": "example_project.app.heartbeat", "schedule": 1.0},
    "metrics": {"task": "example_project.app.collect_metrics", "schedule": 2.0},
    "invoices": {
        "task": "example_project.app.send_invoices",
        "schedule": 5.0,
        "args": ("customers-a-to-m",),
    },
    "report": {"task": "example_project.app.minute_report", "schedule": crontab()},
}


@app.task(ignore_result=True)
def heartbeat() -> None:
    """Logs a line: tasks get from beat to a worker."""
    logger.info("all is well")


@app.task
def collect_metrics() -> dict[str, float]:
    """Returns the load of the worker's machine."""
    one, five, fifteen = os.getloadavg()
    return {"load1": one, "load5": five, "load15": fifteen}


@app.task(bind=True)
def send_invoices(self: Any, batch: str) -> str:
    """Does work that must not be done twice.

    The header `zk_beat` identifies the run: `run` is its number, `due` is the instant that it is
    for, and `epoch` grows with every election, so that a receiver can refuse an older one.
    """
    run = self.request.get("zk_beat") or {"run": "by hand", "due": "now"}
    return f"invoices of {batch}: run {run['run']}, due {run['due']}"


@app.task(ignore_result=True)
def orders() -> None:
    """Has no entry in the schedule above: the demo adds one while beats run."""
    logger.info("orders are looked through")


@app.task(bind=True)
def minute_report(self: Any) -> str:
    """Has a crontab entry: it is due when a minute begins, no matter which beat is master."""
    return f"report {self.request.id}"
