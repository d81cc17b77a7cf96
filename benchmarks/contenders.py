"""The schedulers to compare, and how each gets its schedule: from the app's configuration or, if it
has a store, from there. Each has the settings that its documentation gives as defaults.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import redis

from tests.chaos.contenders import CONTENDERS as IN_CHAOS
from tests.chaos.contenders import Contender

CONTENDERS = {
    "ours": IN_CHAOS["ours-defaults"],
    "stock": Contender("celery.beat:Scheduler"),
    "persistent": Contender("celery.beat:PersistentScheduler"),
    "redbeat": IN_CHAOS["redbeat-defaults"],
    "database": Contender("django_celery_beat.schedulers:DatabaseScheduler", database=True),
    "multibeat": IN_CHAOS["multibeat-defaults"],
}
#: Two of them behind our election, where each dispatch is a claim: measured only on request.
GATED = {
    f"{name}-gated": replace(
        CONTENDERS[name],
        scheduler="celery_zk_beat:ZooKeeperScheduler",
        settings={**CONTENDERS[name].settings, "zk_beat_scheduler": CONTENDERS[name].scheduler},
        packages=IN_CHAOS["ours"].packages,
    )
    for name in ("stock", "database")
}
#: Two of them with Sentry's monitors of beat's tasks. They make a check-in for each run and send it
#: nowhere. Measured only on request.
WATCHED = {
    f"{name}-sentry": replace(
        CONTENDERS[name],
        settings={**CONTENDERS[name].settings, "benchmark_sentry": True},
        packages=(*CONTENDERS[name].packages, "sentry-sdk"),
    )
    for name in ("ours", "stock")
}
#: Ours with every policy on each entry. The jitter is small, because lateness counts from `due`.
RULED = {
    "ours-policies": replace(
        CONTENDERS["ours"],
        settings={
            **CONTENDERS["ours"].settings,
            "zk_beat_policies": {
                "*": {
                    "catch_up": 3600,
                    "coalesce": "all",
                    "limit": 1000,
                    "jitter": 0.002,
                    "starts": "2020-01-01T00:00:00Z",
                    "ends": "2100-01-01T00:00:00Z",
                    "runs": 1_000_000,
                }
            },
        },
    )
}
EACH = {**CONTENDERS, **GATED, **WATCHED, **RULED}
#: The name of the entry that is not counted.
PROBE = "probe"
DAY = 86400.0


@dataclass(frozen=True)
class Load:
    """A schedule: `count` entries of one period, and perhaps a probe.

    Attributes:
        first: when the first is due, seconds since 1970.
        together: how many are due at the same time.
        apart: how many seconds later the next ones are due, and so on.
        probe: the period of the probe, and when it is due.
    """

    count: int
    period: float
    first: float
    together: int = 1
    apart: float = 0.0
    probe: tuple[float, float] | None = None

    def entries(self) -> Iterator[tuple[str, float, datetime]]:
        """Yields of each entry its name, which is also its task's, its period, and when its last
        run would have been."""
        if self.probe is not None:
            yield PROBE, self.probe[0], _run_before(*self.probe)
        for number in range(self.count):
            due = self.first + number // self.together * self.apart
            yield f"entry-{number}", self.period, _run_before(self.period, due)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def _run_before(period: float, due: float) -> datetime:
    return datetime.fromtimestamp(due, timezone.utc) - timedelta(seconds=period)


def in_configuration(contender: Contender) -> bool:
    """True if it takes its schedule from the app's configuration. The others have a store."""
    return not contender.database and contender.url != "redbeat_redis_url"


def fill(contender: Contender, load: Load, folder: Path, url: str) -> None:
    """Puts the schedule into the contender's empty store, if it has one: `folder` or Redis.

    Does not use ``beat_schedule``: RedBeat and django-celery-beat would write it to their stores
    entry by entry at each start, the latter without the time of the last run.
    """
    if contender.database:
        _fill_database(load, folder)
    elif not in_configuration(contender):
        _fill_redbeat(load, url)


def _fill_redbeat(load: Load, url: str) -> None:
    """Writes what RedBeatSchedulerEntry.save() would write, a thousand entries at a time."""
    from celery.schedules import schedule
    from redbeat.decoder import RedBeatJSONEncoder

    def write(value: Any) -> str:
        return json.dumps(value, cls=RedBeatJSONEncoder)

    with redis.Redis.from_url(url) as server, server.pipeline(transaction=False) as pipe:
        for number, (name, period, last) in enumerate(load.entries()):
            definition = {
                "name": name,
                "task": name,
                "args": None,
                "kwargs": None,
                "options": {},
                "schedule": schedule(period),
                "enabled": True,
            }
            key = f"redbeat:{name}"
            pipe.hset(key, "definition", write(definition))
            pipe.hset(key, "meta", write({"last_run_at": last}))
            pipe.zadd("redbeat::schedule", {key: int(last.timestamp() + period)})
            if number % 1000 == 999:
                pipe.execute()
        pipe.execute()


def _fill_database(load: Load, folder: Path) -> None:
    file = _set_up_django(folder.parent)
    from django.db import connection
    from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

    with connection.cursor() as cursor:  # Django's delete() goes through the rows one by one
        cursor.execute(f"DELETE FROM {PeriodicTask._meta.db_table}")
    intervals = {
        period: IntervalSchedule.objects.get_or_create(
            every=round(period * 1e6), period=IntervalSchedule.MICROSECONDS
        )[0]
        for period in {period for _, period, _ in load.entries()}
    }
    PeriodicTask.objects.bulk_create(
        (
            PeriodicTask(name=name, task=name, interval=intervals[period], last_run_at=last)
            for name, period, last in load.entries()
        ),
        batch_size=1000,
    )
    PeriodicTasks.update_changed()
    connection.close()
    shutil.copy(file, folder)


def _set_up_django(folder: Path) -> str:
    """Gives this process its own database, with all tables. Returns the name of its file."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    if not settings.configured:
        env = CONTENDERS["database"].env(folder)
        os.environ.update(env)
        from tests import django_settings

        for name in env:
            del os.environ[name]  # otherwise Celery would set up Django in every beat
        given = {key: value for key, value in vars(django_settings).items() if key.isupper()}
        settings.configure(**given)
        django.setup()
        call_command("migrate", verbosity=0)
    return str(settings.DATABASES["default"]["NAME"])
