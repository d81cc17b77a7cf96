"""Other schedulers behind the election, as `celery beat` runs them. Django's has its own file."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from example_project.servers import Redis
from tests.conftest import PATIENCE
from tests.history import check

from .conftest import Site

#: Seconds; the least that sqlalchemy-celery-beat's tables take.
PERIOD = 1.0


@pytest.fixture(params=["redbeat", "sqlalchemy"])
def store(request: pytest.FixtureRequest, site: Site, redis_server: Redis) -> None:
    """That of the scheduler, for which the site is configured."""
    if request.param == "redbeat":
        pytest.importorskip("redbeat")
        site.conf["zk_beat_scheduler"] = "redbeat:RedBeatScheduler"
        site.conf["redbeat_redis_url"] = redis_server.url(2)
    else:
        pytest.importorskip("sqlalchemy_celery_beat")
        site.conf["zk_beat_scheduler"] = "sqlalchemy_celery_beat.schedulers:DatabaseScheduler"
        site.conf["beat_dburi"] = f"sqlite:///{site.folder}/schedule.db"


@pytest.mark.usefixtures("store")
def test_the_master_is_killed_with_another_scheduler(site: Site) -> None:
    """[I1] [I2] Its successor goes on where it left off, though the store does not say where: it
    repeats no run, and starts no clock anew."""
    site.schedule(**{f"entry{number}": PERIOD for number in range(3)})
    one = site.beat("one")
    one.wait_for_log("elected: one is master", PATIENCE)
    two = site.beat("two")
    two.wait_for_log("not elected because one is master", PATIENCE)
    site.wait(lambda history: len(history) > 5, "two runs of each")
    one.kill()
    killed = datetime.now(timezone.utc)
    claimed = site.claimed()
    history = site.wait(
        lambda history: sum(message.master == "two" for message in history) > 5, "two more"
    )
    assert len(check(history)) <= 1  # what it had published, and not yet noted
    for name in site.conf["beat_schedule"]:
        number = claimed[name].run + 1
        first = next(m for m in history if m.task == name and m.run == number)
        # These classes count from when the run was made, which may be late. The first master made
        # it, so it was before its end; a clock that began anew would count from an election after.
        assert first.due - timedelta(seconds=PERIOD) < killed
