"""The app of the beats to compare. The environment variables BENCHMARK_LOAD and BENCHMARK_CONF hold
its load and further settings as JSON."""

from __future__ import annotations

import json
import os
from typing import Any

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


def watch() -> None:
    """Turns on Sentry's monitors. Their check-ins are made and thrown away."""
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            envelope.serialize()

    sentry_sdk.init(
        dsn="http://public@127.0.0.1:9/1",
        transport=Nowhere,
        integrations=[CeleryIntegration(monitor_beat_tasks=True)],
    )


if app.conf.get("benchmark_sentry"):
    watch()
