"""The schedulers to test: ours, and others to compare it with.

`...-defaults` have the defaults of their documentation. The others are tuned to replace a dead
master within two seconds, or as fast as they can. Other packages than ours must be installed: `make
contenders` does that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A scheduler and its settings.

    Attributes:
        scheduler: as `celery beat -S` takes it.
        settings: what it needs besides the broker and the schedule.
        url: the setting with the address of Redis, if it has a lock there.
        packages: the packages whose versions matter.
        database: True if its schedule and states are in Django's database.
        patience: seconds within which a dead master must be replaced.
        session_timeout: seconds, of ours in ZooKeeper; None if it has no session.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    packages: tuple[str, ...] = ()
    database: bool = False
    patience: float = 60.0
    session_timeout: float | None = None

    def prepare(self, folder: Path) -> None:
        """Makes the database."""
        if self.database:
            command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
            subprocess.run(command, env={**os.environ, **self.env(folder)}, check=True)

    def env(self, folder: Path) -> dict[str, str]:
        if not self.database:
            return {}
        return {
            "DJANGO_SETTINGS_MODULE": "tests.django_settings",
            "DJANGO_DATABASE": str(folder / "django.sqlite3"),
        }


#: Seconds, for those that are tuned to notice a dead master fast.
SESSION_TIMEOUT = 2.0
#: As ours has for requests to the broker. Without it, these wait for ever if no answer comes.
_TIMEOUTS = {"socket_timeout": 5, "socket_connect_timeout": 5}
_REDBEAT = ("celery", "celery-redbeat", "redis")
_MULTIBEAT = ("celery", "celery-multibeat-scheduler", "django-celery-beat", "redis")
_LEASED = ("celery", "celery-leased-beat", "django-celery-beat", "redis")
_OURS = ("celery", "kombu", "redis", "kazoo")

CONTENDERS: dict[str, Contender] = {
    "ours": Contender(
        "zookeeper",
        {"zk_beat_session_timeout": SESSION_TIMEOUT, "zk_beat_publish_deadline": 5.0},
        packages=_OURS,
        session_timeout=SESSION_TIMEOUT,
    ),
    "ours-defaults": Contender("zookeeper", packages=_OURS, session_timeout=10.0),
    "redbeat": Contender(
        "redbeat.RedBeatScheduler",
        {
            "redbeat_lock_timeout": 2,
            "beat_max_loop_interval": 0.5,
            "broker_transport_options": _TIMEOUTS,
        },
        url="redbeat_redis_url",
        packages=_REDBEAT,
    ),
    "redbeat-defaults": Contender(
        "redbeat.RedBeatScheduler",
        url="redbeat_redis_url",
        packages=_REDBEAT,
        patience=100.0,
    ),
    "multibeat": Contender(
        "multibeat.django.MultiBeatDatabaseScheduler",
        {
            "multibeat_lock_timeout": 2,
            "multibeat_refresh_ratio": 0.5,
            "multibeat_standby_ratio": 0.25,
            "multibeat_min_refresh_seconds": 0.5,
            "multibeat_min_standby_seconds": 0.5,
            "multibeat_watchdog_grace_seconds": 5,
            "multibeat_transport_options": {"socket_timeout": 1, "socket_connect_timeout": 1},
            "broker_transport_options": _TIMEOUTS,
        },
        url="multibeat_url",
        packages=_MULTIBEAT,
        database=True,
    ),
    "multibeat-defaults": Contender(
        "multibeat.django.MultiBeatDatabaseScheduler",
        url="multibeat_url",
        packages=_MULTIBEAT,
        database=True,
        patience=100.0,
    ),
    "leased": Contender(
        "celery_leased_beat.django.LeasedDjangoScheduler",
        {
            "CELERY_LEASE_LOCK_TTL": 2,
            "CELERY_LEASE_INTERVAL": 1,
            "CELERY_LEASE_OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1},
            "broker_transport_options": _TIMEOUTS,
        },
        url="CELERY_LEASE_URL",
        packages=_LEASED,
        database=True,
    ),
    "leased-defaults": Contender(
        "celery_leased_beat.django.LeasedDjangoScheduler",
        url="CELERY_LEASE_URL",
        packages=_LEASED,
        database=True,
        patience=100.0,
    ),
}
