"""A program that adds live entries, such as a web application: a report for each tenant.

You need a ZooKeeper on localhost, but no beat to try it::

    python -m example_project.live_entries add 7 --hour 9
    python -m example_project.live_entries list
    python -m example_project.live_entries remove 7

The beats that run the entries need the same settings as `app` below.
"""

from __future__ import annotations

import argparse
import os
import sys

from celery import Celery

from celery_zk_beat import Entries, EntryError, VersionConflict, ZkBeatError
from celery_zk_beat.schedules import cron

app = Celery("shop")
app.conf.zk_beat_hosts = os.environ.get("ZOOKEEPER", "localhost:2181")
app.conf.zk_beat_root = os.environ.get("ROOT", "/live-entries")
app.conf.zk_beat_entries = True
# A user who may change the entries can run these tasks, and no others.
app.conf.zk_beat_entries_tasks = ["example_project.live_entries.*"]


@app.task
def report(tenant: int) -> None:
    print(f"the report of tenant {tenant}")


def add(entries: Entries, tenant: int, hour: int, zone: str) -> str:
    """Does what a view would do with a form. An EntryError says which field is wrong."""
    made = entries.put(
        f"report-{tenant}",
        task=report.name,
        schedule=cron(f"0 {hour} * * *", zone),
        kwargs={"tenant": tenant},
        policy={"jitter": 300},
    )
    return f"{made.name}: {made.schedule}, version {made.version}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["add", "list", "remove"])
    parser.add_argument("tenant", nargs="?", type=int, default=1)
    parser.add_argument("--hour", type=int, default=9)
    parser.add_argument("--zone", default="Europe/Paris")
    options = parser.parse_args(arguments)
    try:
        # In a web application: make one for the whole process.
        with Entries(app, timeout=5, by="example") as entries:
            if options.what == "add":
                print(add(entries, options.tenant, options.hour, options.zone))
            elif options.what == "remove":
                print("removed" if entries.remove(f"report-{options.tenant}") else "not there")
            else:
                for entry in entries:
                    print(f"{entry.name}: {entry.schedule}, by {entry.by}, {entry.kwargs}")
    except (EntryError, ValueError) as exc:
        print(f"wrong: {exc}", file=sys.stderr)
        return 2
    except (VersionConflict, ZkBeatError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
