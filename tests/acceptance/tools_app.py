"""An app that the tool in the environment variable TOOL watches. What the tool would send away goes
to the file RECEIVED, as JSON lines, without any network."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

from celery.schedules import crontab, schedule

from .app import app as app

LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
app.conf.timezone = "Europe/Berlin"
app.conf.beat_schedule = {
    name: {"task": "echo", "schedule": when, "last_run_at": LONG_AGO}
    for name, when in {
        "nightly": crontab(minute="30", hour="2"),
        "hourly": schedule(3600.0),
        "often": schedule(0.5),
    }.items()
}


def note(**line: Any) -> None:
    with open(os.environ["RECEIVED"], "a") as file:
        file.write(json.dumps({"who": app.conf.zk_beat_id, **line}) + "\n")


def sentry() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class ToFile(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            for item in envelope.items:
                if item.headers["type"] == "check_in":
                    note(**item.payload.json)

    sentry_sdk.init(
        dsn="http://public@127.0.0.1:9/1",
        transport=ToFile,
        integrations=[CeleryIntegration(monitor_beat_tasks=True)],
    )


def datadog() -> None:
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    class ToFile(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            for span in trace:
                note(name=span.name, resource=span.resource, trace=span.trace_id, error=span.error)

    tracer.configure(trace_processors=[ToFile()])
    ddtrace.patch(celery=True)


def opentelemetry() -> None:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class ToFile(SpanExporter):
        def export(self, spans: Any) -> Any:
            for span in spans:
                parent = span.parent and span.parent.span_id
                note(name=span.name, span=span.context.span_id, parent=parent)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    CeleryInstrumentor().instrument(  # type: ignore[no-untyped-call]
        tracer_provider=provider
    )


{"sentry": sentry, "datadog": datadog, "opentelemetry": opentelemetry}[os.environ["TOOL"]]()
