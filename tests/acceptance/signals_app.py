"""The app of app.py with receivers of our signals. They write what they get into the file RECEIVED,
as JSON lines. With HANG, another receiver hangs or raises."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery_zk_beat import signals

from .app import app as app


def note(signal: Any, sender: Any, **arguments: Any) -> None:
    line = {"signal": signal.name, "sender": type(sender).__name__, **arguments}
    with open(os.environ["RECEIVED"], "a") as file:
        file.write(json.dumps(line, default=str) + "\n")


def disturb(**more: Any) -> None:
    if os.environ["DISTURB"] == "hang":
        time.sleep(3600)
    raise ValueError("a receiver's own trouble")


for name in signals.__all__:
    signal = getattr(signals, name)
    signal.connect(note)
    if "DISTURB" in os.environ:
        signal.connect(disturb)
