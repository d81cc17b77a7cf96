"""An app whose configuration comes from the environment variable CONF, as JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

app = Celery("acceptance")
app.config_from_object(json.loads(os.environ["CONF"]))


@app.task(name="echo", bind=True)
def echo(self: Any, *args: Any) -> dict[str, Any]:
    return {"args": args, "zk_beat": self.request.get("zk_beat"), "id": self.request.id}
