"""django-celery-results shows which entry a task's result is of."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from example_project.servers import REPOSITORY, wait_until
from tests.conftest import PATIENCE

from .conftest import Site

APP = "tests.acceptance.django_app"
DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
ADD = """
import django
django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
second = IntervalSchedule.objects.create(every=1, period="seconds")
PeriodicTask.objects.create(name="nightly", task="echo", interval=second)
"""


@pytest.fixture
def database(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the tables of both, for all processes of the site."""
    path = tmp_path / "django.sqlite3"
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.acceptance.results_settings")
    monkeypatch.setenv("DJANGO_DATABASE", str(path))
    site.app = APP
    site.conf.update(result_backend="django-db", result_extended=True)
    django("-m", "django", "migrate", "--verbosity=0")
    return path


def django(*args: str) -> None:
    subprocess.run([sys.executable, *args], cwd=REPOSITORY, check=True, timeout=PATIENCE)


def results(database: Path) -> list[tuple[Any, ...]]:
    select = "SELECT periodic_task_name, task_id FROM django_celery_results_taskresult"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(select).fetchall()


@pytest.mark.parametrize("scheduler", [None, DATABASE_SCHEDULER])
def test_the_name_of_the_entry(site: Site, database: Path, scheduler: str | None) -> None:
    site.conf["zk_beat_scheduler"] = scheduler
    if scheduler is None:
        site.conf["beat_schedule"] = {"nightly": {"task": "echo", "schedule": 1.0}}
    else:
        del site.conf["beat_schedule"]
        django("-c", ADD)
    beat = site.beat("one")
    history = site.wait_for_run(beat)
    site.worker(app=APP)
    found = wait_until(lambda: results(database), PATIENCE, "a result")
    assert ("nightly", history[0].id) in found
    assert {name for name, _ in found} == {"nightly"}
