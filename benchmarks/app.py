"""An app with entries of a period of BENCHMARK_PERIOD seconds. All are due at the same time, or one
after another with BENCHMARK_SPREAD. BENCHMARK_HTTP: where to serve HTTP. BENCHMARK_UNGUARDED: beats
have no guards."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from celery import Celery

ENTRIES = int(os.environ.get("BENCHMARK_ENTRIES", "1"))
PERIOD = float(os.environ["BENCHMARK_PERIOD"])
SPREAD = PERIOD / ENTRIES if os.environ.get("BENCHMARK_SPREAD") else 0.0
BEGUN = datetime.now(timezone.utc) - timedelta(seconds=PERIOD)

app = Celery("benchmark")
app.conf.broker_url = os.environ["CELERY_BROKER_URL"]
app.conf.zk_beat_hosts = os.environ["ZK_BEAT_HOSTS"]
app.conf.zk_beat_session_timeout = float(os.environ["ZK_BEAT_SESSION_TIMEOUT"])
app.conf.zk_beat_fast_takeover = not os.environ.get("BENCHMARK_UNGUARDED")
app.conf.zk_beat_http = os.environ.get("BENCHMARK_HTTP")
app.conf.beat_schedule = {
    f"entry-{n}": {
        "task": f"entry-{n}",
        "schedule": PERIOD,
        **({"last_run_at": BEGUN + timedelta(seconds=n * SPREAD)} if SPREAD else {}),
    }
    for n in range(ENTRIES)
}
