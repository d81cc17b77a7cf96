"""An app with as many entries as the environment variable BENCHMARK_ENTRIES says. Intervals and
crontabs alternate, and no two are the same."""

from __future__ import annotations

import os

from celery import Celery
from celery.schedules import crontab

app = Celery("benchmark")
app.conf.zk_beat_hosts = os.environ["ZK_BEAT_HOSTS"]
app.conf.timezone = "Europe/Berlin"
app.conf.beat_schedule = {
    f"billing.customer-{number:06}.invoice": {
        "task": "invoice",
        "schedule": crontab(minute=number % 60, hour=number // 60 % 24, day_of_week="mon-fri")
        if number % 2
        else 60.0 + number,
    }
    for number in range(int(os.environ["BENCHMARK_ENTRIES"]))
}
