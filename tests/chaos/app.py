"""The app of the beats and workers under test. All of it comes from the environment variable CONF,
as JSON, so that it works with the packages of each contender."""

from __future__ import annotations

import json
import os

from celery import Celery
from celery.schedules import crontab

if "DJANGO_SETTINGS_MODULE" in os.environ:
    import django

    django.setup()

conf = json.loads(os.environ["CONF"])
for entry in conf["beat_schedule"].values():
    if entry["schedule"] == 60:
        entry["schedule"] = crontab()  # when each minute begins

app = Celery("chaos")
app.config_from_object(conf)


def _work() -> None:
    """Does nothing: `example_project.journal` records what a worker receives."""


for name in conf["beat_schedule"]:
    app.task(_work, name=name, ignore_result=True, shared=False)
