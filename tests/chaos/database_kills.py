"""Kills the beat that dispatches the entries of a store again and again. Then judges what the
broker got.

    python -m tests.chaos.database_kills --times 100                  behind the election
    python -m tests.chaos.database_kills --times 100 --store mariadb
    python -m tests.chaos.database_kills --times 20 --plain           its scheduler by itself

Stores: django-celery-beat on `postgresql` or `mariadb`, `redbeat`, `sqlalchemy` (on PostgreSQL).
There are three beats, two of them standbys, with 20 entries of one second and 5 of ten. A killed
beat is started again at once, as the best of supervisors would. The session time-out is one second.
The exit status is 1 if a run was lost, made twice under another task id, or came too early.

A run is too early if it comes within half a period of the one before. Missed are instants that
became one run with the next, because nobody dispatched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import redis
from kazoo.client import KazooClient

from celery_zk_beat.records import from_text
from example_project.servers import (
    MariaDB,
    PostgreSQL,
    Process,
    Redis,
    ZooKeeper,
    celery_beat,
    wait_until,
)
from tests.history import all_headers, check, messages
from tests.stores import Django, RedBeat, SQLAlchemy, Store

from .kills import PATIENCE, ROOT, SESSION_TIMEOUT, next_master

PERIODS = {1: 20, 10: 5}
STORES = ("postgresql", "mariadb", "redbeat", "sqlalchemy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--store", choices=STORES, default="postgresql")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
        broker = stack.enter_context(Redis(folder)).start()
        store = _store(options.store, stack, folder, broker)
        for period, count in PERIODS.items():
            for number in range(count):
                store.add(f"{period} s, {number}", period)
        conf: dict[str, Any] = {**store.conf, "broker_url": broker.url(), "zk_beat_id": "one"}
        conf["result_expires"] = None  # no entry of Celery's own
        kill = _kill_plain if options.plain else _kill_masters
        kill(stack, folder, broker, store, conf, options.times)
        print()
        headers = all_headers(broker.url())
        if not options.plain:
            history = messages(broker.url())
            repeats = check(history)
            print(f"0 lost, {len(repeats)} repeated with the same task id, ", end="")
        early, told = _times(headers)
        print(f"{options.times} kills, {len(headers)} messages: {told}")
        return 1 if early and not options.plain else 0


def _store(name: str, stack: contextlib.ExitStack, folder: Path, broker: Redis) -> Store:
    if name == "redbeat":
        return RedBeat(broker.url(1))
    server = MariaDB(folder) if name == "mariadb" else PostgreSQL(folder)
    stack.enter_context(server).start()
    store: Store = (SQLAlchemy if name == "sqlalchemy" else Django)(folder, server)
    stack.callback(store.close)
    return store


def _kill_masters(
    stack: contextlib.ExitStack,
    folder: Path,
    broker: Redis,
    store: Store,
    conf: dict[str, Any],
    times: int,
) -> None:
    zookeeper = stack.enter_context(ZooKeeper(folder, tick_time=200)).start()
    conf["zk_beat_hosts"], conf["zk_beat_root"] = zookeeper.hosts, ROOT
    conf["zk_beat_scheduler"] = store.scheduler
    conf["zk_beat_session_timeout"] = SESSION_TIMEOUT
    beats = {}
    for name in ("one", "two", "three"):
        beat = _beat(folder, name, store, {**conf, "zk_beat_id": name})
        beats[name] = stack.enter_context(beat).start()
    client = KazooClient(zookeeper.hosts)
    client.start(PATIENCE)
    stack.callback(client.stop)
    epoch = 0
    for turn in range(1, times + 1):
        record = next_master(client, epoch)
        epoch = record.epoch
        _wait_for_message(broker)
        time.sleep(random.uniform(0, 2))  # the random instant
        beats[record.id].kill()
        beats[record.id].start()
        print(f"{turn}: {record.id}, epoch {epoch}", end="\r", flush=True)
    next_master(client, epoch)
    _wait_for_message(broker)
    for beat in beats.values():
        beat.terminate(PATIENCE)


def _kill_plain(
    stack: contextlib.ExitStack,
    folder: Path,
    broker: Redis,
    store: Store,
    conf: dict[str, Any],
    times: int,
) -> None:
    beat = stack.enter_context(_beat(folder, "one", store, conf, "-S", store.scheduler)).start()
    for turn in range(1, times + 1):
        _wait_for_message(broker)
        time.sleep(random.uniform(0, 2))  # the random instant
        beat.kill()
        beat.start()
        print(f"{turn}", end="\r", flush=True)
    _wait_for_message(broker)
    beat.terminate(PATIENCE)


def _beat(folder: Path, name: str, store: Store, conf: dict[str, Any], *args: str) -> Process:
    env = {**store.env, "CONF": json.dumps(conf)}
    return celery_beat(folder, name, "tests.chaos.stamped_app", env=env, args=args)


def _wait_for_message(broker: Redis) -> None:
    """Waits for a message that is sent from now on."""
    with redis.Redis.from_url(broker.url()) as queue:
        sent = queue.llen("celery")
        wait_until(lambda: queue.llen("celery") > sent, PATIENCE, "a message")


def _times(headers: list[dict[str, Any]]) -> tuple[int, str]:
    """Returns how many runs came too early; and, in words, what happened to the instants for which
    runs were due or, if the messages do not say it, at which they were sent."""
    instants: dict[str, dict[str, float]] = defaultdict(dict)
    for each in headers:
        instants[each["task"]].setdefault(each["id"], _instant(each))
    told, all_early = [], 0
    for period in PERIODS:
        early = missed = 0
        for task, found in instants.items():
            if task.startswith(f"{period} s,"):
                ordered = sorted(found.values())
                apart = [later - one for one, later in zip(ordered, ordered[1:])]
                early += sum(each < period / 2 for each in apart)
                missed += sum(max(0, round(each / period) - 1) for each in apart)
        told.append(f"of {period} s: {early} too early, {missed} missed")
        all_early += early
    return all_early, "; ".join(told)


def _instant(headers: dict[str, Any]) -> float:
    mark = headers.get("zk_beat")
    return float(from_text(mark["due"]).timestamp() if mark else headers["sent"])


if __name__ == "__main__":
    sys.exit(main())
