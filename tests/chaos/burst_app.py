"""An app whose entries are all due at the same instants, as crontabs at full minutes. CONF is its
configuration, as JSON; BURST is how many entries and how many seconds apart."""

from __future__ import annotations

import json
import os

from celery import Celery

from celery_zk_beat.schedules import every

entries, seconds = os.environ["BURST"].split(",")
app = Celery("burst")
app.config_from_object(json.loads(os.environ["CONF"]))
app.conf.beat_schedule = {
    f"e{n}": {"task": f"e{n}", "schedule": every(float(seconds)), "args": (n,)}
    for n in range(int(entries))
}
