"""An app with live entries, and with BENCHMARK_ENTRIES entries in its code. All of those are due
BENCHMARK_OFFSET seconds after midnight UTC."""

from __future__ import annotations

import os

from celery import Celery

from celery_zk_beat.schedules import every

app = Celery("benchmark")
app.conf.broker_url = os.environ["CELERY_BROKER_URL"]
app.conf.zk_beat_hosts = os.environ["ZK_BEAT_HOSTS"]
app.conf.zk_beat_session_timeout = 4.0
app.conf.result_expires = None  # no entry of Celery's own
app.conf.zk_beat_entries = True
app.conf.zk_beat_entries_tasks = ["*"]
app.conf.beat_schedule = {
    f"entry-{number}": {
        "task": "entry",
        "schedule": every(86400, float(os.environ["BENCHMARK_OFFSET"])),
    }
    for number in range(int(os.environ.get("BENCHMARK_ENTRIES", "0")))
}
