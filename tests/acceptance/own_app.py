"""An app with its own scheduler class and its own class of entries."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry

from celery_zk_beat import ZooKeeperScheduler


class Entry(ScheduleEntry):
    """Of a task in a package that it need not name."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{**fields, "task": f"shop.{fields['task'].rpartition('.')[2]}"})


class Scheduler(ZooKeeperScheduler):
    Entry = Entry

    def setup_schedule(self) -> None:
        super().setup_schedule()
        self.add(name="own", task="own", schedule=0.2)


class Broken(ZooKeeperScheduler):
    def setup_schedule(self) -> None:
        raise ZeroDivisionError("its database is away")


app = Celery("acceptance", set_as_current=False)
app.config_from_object(json.loads(os.environ.get("CONF", "{}")))


class Thing(list):  # type: ignore[type-arg]
    """An argument whose repr() shows its address."""

    __repr__ = object.__repr__


@app.on_after_finalize.connect
def add_without_a_name(sender: Celery, **kwargs: Any) -> None:
    sender.add_periodic_task(3600.0, sender.signature("seldom", args=("a", Thing())))
