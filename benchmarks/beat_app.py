"""The app of the beats that are compared: its load and its further settings are JSON in the
environment variables BENCHMARK_LOAD and BENCHMARK_CONF."""

from __future__ import annotations

import json
import os

from celery import Celery

from .contenders import Load

if "DJANGO_SETTINGS_MODULE" in os.environ:
    import django

    django.setup()

app = Celery("benchmark")
app.conf.update(json.loads(os.environ["BENCHMARK_CONF"]))
app.conf.result_expires = None  # no entry of Celery's own
if load := os.environ.get("BENCHMARK_LOAD"):
    app.conf.beat_schedule = {
        name: {"task": name, "schedule": period, "last_run_at": last}
        for name, period, last in Load(**json.loads(load)).entries()
    }
