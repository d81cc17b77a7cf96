"""An app with one entry, whose period in seconds is the environment variable BENCHMARK_PERIOD."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("benchmark")
app.conf.broker_url = os.environ["CELERY_BROKER_URL"]
app.conf.zk_beat_hosts = os.environ["ZK_BEAT_HOSTS"]
app.conf.zk_beat_session_timeout = float(os.environ["ZK_BEAT_SESSION_TIMEOUT"])
app.conf.beat_schedule = {
    "only": {"task": "only", "schedule": float(os.environ["BENCHMARK_PERIOD"])},
}
