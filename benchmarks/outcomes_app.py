"""An app with entries of a period of 60 seconds, due one after another, and workers that can report
what becomes of them. BENCHMARK_TRACKED: they do."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from celery import Celery

from celery_zk_beat import ReportOutcomes

ENTRIES = int(os.environ["BENCHMARK_ENTRIES"])
PERIOD = 60.0
BEGUN = datetime.now(timezone.utc) - timedelta(seconds=PERIOD)

app = Celery("benchmark")
app.conf.broker_url = os.environ["CELERY_BROKER_URL"]
app.conf.broker_connection_retry_on_startup = True
app.conf.task_ignore_result = True
app.conf.result_expires = None  # no entry of Celery's own
app.conf.zk_beat_hosts = os.environ["ZK_BEAT_HOSTS"]
app.conf.zk_beat_root = os.environ["ZK_BEAT_ROOT"]
app.conf.zk_beat_session_timeout = 4.0
if os.environ.get("BENCHMARK_TRACKED"):
    app.conf.zk_beat_outcomes = "worker"
    app.conf.zk_beat_policies = {"*": {"track": True}}
app.steps["worker"].add(ReportOutcomes)


@app.task
def work() -> None:
    pass


app.conf.beat_schedule = {
    f"entry-{number}": {
        "task": work.name,
        "schedule": PERIOD,
        "last_run_at": BEGUN + timedelta(seconds=number * PERIOD / ENTRIES),
    }
    for number in range(ENTRIES)
}
