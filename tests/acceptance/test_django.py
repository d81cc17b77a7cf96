"""django-celery-beat's DatabaseScheduler behind the election, on real databases."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from example_project.servers import wait_until
from tests.conftest import PATIENCE
from tests.django_database import Database
from tests.history import Message, check

from .conftest import Site

SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
#: Seconds within which DatabaseScheduler looks into its tables again.
ARRIVES = 5.0
#: Seconds that a busy machine may add.
SLACK = 5.0


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def database(request: Any, tmp_path: Path) -> Iterator[Database]:
    """On the server that the fixture of that name makes."""
    server = None if request.param == "sqlite" else request.getfixturevalue(request.param)
    database = Database(tmp_path, server)
    yield database
    database.close()


@pytest.fixture
def shop(site: Site, database: Database) -> Site:
    """Whose entries are those of the database."""
    del site.conf["beat_schedule"]
    site.conf["zk_beat_scheduler"] = SCHEDULER
    site.app = "tests.acceptance.django_app"
    return site


on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def runs(history: list[Message], task: str) -> list[Message]:
    return [message for message in history if message.task == task]


def test_changes_arrive(shop: Site, database: Database) -> None:
    """Entries that are added, disabled, changed, deleted, and made anew under the same name."""
    fast = database.add("off", 0.2, enabled=False).interval
    shop.beat().wait_for_log("as master", PATIENCE)
    database.add("first", 0.5)
    added = time.monotonic()
    shop.wait(lambda history: runs(history, "first"), "a run of what was added")
    assert time.monotonic() - added < 0.5 + ARRIVES + SLACK

    # Its first run is written at once, and with it all columns of the row: a change that is made
    # in the same moment is lost, by django-celery-beat alone too.
    wait_until(lambda: database.get("first").last_run_at, PATIENCE, "that run to be written")
    database.change("first", enabled=False)
    database.add("second", 0.5)
    before = runs(shop.wait(lambda history: runs(history, "second"), "the next"), "first")
    database.change("second", interval=fast)
    database.add("third", 0.2)
    history = shop.wait(lambda history: len(runs(history, "third")) > 3, "four runs")
    assert runs(history, "first") == before

    def is_faster(history: list[Message]) -> bool:
        last, next_to_last = runs(history, "second")[:-3:-1]
        return last.due - next_to_last.due < timedelta(seconds=0.4)

    shop.wait(is_faster, "the new interval")

    database.get("second").delete()
    database.add("second", 0.2, task="second anew")
    shop.wait(lambda history: runs(history, "second anew"), "a run of what was made anew")
    assert runs(shop.history(), "off") == []


def test_the_master_is_killed(shop: Site, database: Database) -> None:
    """Its successor finds a database that does not know of its last runs; none is repeated or lost,
    and what is to run once does so."""
    periods = {"often": 0.2, "seldom": 1.0}
    for name, period in periods.items():
        database.add(name, period)
    shop.conf["zk_beat_fast_takeover"] = False  # there is time to look into the database
    one, two = shop.pair()
    database.add("once", 2.0, one_off=True)
    history = shop.wait(lambda history: runs(history, "once"), "the run of once")
    one.kill()
    killed = datetime.now(timezone.utc)
    claimed = shop.claimed()
    assert database.get("often").total_run_count < len(runs(history, "often"))
    assert database.get("once").total_run_count == 0
    assert database.get("once").enabled
    shop.wait_for_run(two)
    epoch = shop.history()[-1].epoch
    history = shop.wait(
        lambda history: sum(m.epoch == epoch for m in runs(history, "seldom")) > 1, "two more"
    )
    assert len(check(history)) <= 1
    assert len({message.id for message in runs(history, "once")}) == 1
    for name, period in periods.items():
        number = claimed[name].run + 1
        first = next(message for message in runs(history, name) if message.run == number)
        # The class counts from when the run was made, which may be late. The first master made it,
        # so it was before its end; a clock that began anew would count from an election after.
        assert first.due - timedelta(seconds=period) < killed
    wait_until(lambda: not database.get("once").enabled, PATIENCE, "once to be disabled")
    database.change("once", enabled=True)
    shop.wait(lambda history: len({m.id for m in runs(history, "once")}) == 2, "it to run again")


@on_postgresql
def test_a_demoted_master_writes_nothing(shop: Site, database: Database) -> None:
    """Neither when it finds that it is none any more, nor when it ends; a master that ends does."""
    database.add("often", 0.2)
    database.watch_writers()
    one, two = shop.pair()
    one.pause()
    shop.wait_for_run(two)
    one.resume()
    one.wait_for_log("not elected because two is master", PATIENCE)
    before = database.writers().count("one")
    shop.wait_for_run(two)
    assert one.terminate(PATIENCE) == 0
    assert database.writers().count("one") == before
    assert two.terminate(PATIENCE) == 0
    assert "two" in database.writers()
    last = shop.history()[-1]
    assert timedelta(0) <= database.get("often").last_run_at - last.due < timedelta(seconds=SLACK)


@on_postgresql
def test_commands(shop: Site, database: Database) -> None:
    """Entries that only the database knows can be paused, run, and looked at."""
    database.add("often", 0.2)
    database.add("seldom", 3600)
    one, _ = shop.pair()

    def entry(name: str) -> dict[str, Any]:
        told = json.loads(shop.zk_beat("status", "--json").stdout)
        return next(entry for entry in told["entries"] if entry["name"] == name)

    shop.wait(lambda history: entry("seldom")["task"], "what the master tells")
    assert (entry("seldom")["task"], entry("seldom")["schedule"]) == ("seldom", "every 3600 s")
    assert entry("seldom")["next_run_at"] is not None
    done = shop.zk_beat("run", "seldom")
    assert done.returncode == 0, done
    (extra,) = runs(shop.history(), "seldom")
    assert (extra.run, extra.master) == (1, "one")
    assert entry("seldom")["total_run_count"] == 1

    assert shop.zk_beat("pause", "often").returncode == 0
    before = shop.history()
    time.sleep(1)  # five periods in which nothing may happen
    assert len(shop.history()) <= len(before) + 1
    assert shop.zk_beat("resume", "often").returncode == 0
    shop.wait_for_run(one)
    assert check(shop.history()) == []

    told = json.loads(shop.zk_beat("history", "often", "--json").stdout)
    known = {run["task_id"] for run in told["runs"]}  # the last is perhaps on its way
    shop.wait(lambda history: known <= {m.id for m in history}, "all that it told of")
    assert shop.zk_beat("resign").returncode == 0
    assert check(shop.wait(lambda history: history[-1].master == "two", "a run of two")) == []
