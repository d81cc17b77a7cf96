"""An app with a task that notes when it begins and ends. Its workers report what becomes of tracked
runs. The configuration comes from the environment variable CONF, as JSON."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery

from celery_zk_beat import ReportOutcomes

app = Celery("overlap")
app.config_from_object(json.loads(os.environ["CONF"]))
app.steps["worker"].add(ReportOutcomes)

#: The list in the broker that gets a line for each begin and end.
NOTES = "notes"


@app.task(bind=True)
def work(self: Any, seconds: float) -> None:
    header = self.request.zk_beat
    worker = self.request.hostname.partition("@")[0]
    note = {"id": self.request.id, "run": header["run"], "due": header["due"], "worker": worker}
    with redis.Redis.from_url(app.conf.broker_url) as server:
        server.rpush(NOTES, json.dumps({**note, "what": "begins", "at": time.time()}))
        time.sleep(seconds)  # the work itself
        server.rpush(NOTES, json.dumps({**note, "what": "ends", "at": time.time()}))
