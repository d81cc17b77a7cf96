"""The commands on live entries of a real beat."""

from __future__ import annotations

import json
import re

from example_project.servers import wait_until
from tests.conftest import PATIENCE

from .conftest import Site


def test_commands(site: Site) -> None:
    """They know a live entry as one of `beat_schedule`."""
    site.schedule(code=3600.0)
    site.conf.update(zk_beat_entries=True, zk_beat_entries_tasks=["shop.*"])
    site.conf["zk_beat_policies"] = {"tenant-*": {"catch_up": 3600}}
    site.beat("one").wait_for_log("elected: one is master", PATIENCE)

    def does(*args: str) -> str:
        done = site.zk_beat(*args)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    does("add", "tenant-7", "--task", "shop.report", "--cron", "0 9 * * *")
    wait_until(lambda: "tenant-7" in does("status"), PATIENCE, "the entry")
    assert "T09:00:00Z" in does("next", "tenant-7", "--count", "1")
    assert "0 differences" in does("diff")
    range = ("--from", "2026-01-01T00:00Z", "--to", "2026-01-03T00:00Z")
    assert "2 runs; nothing was started" in does("backfill", "tenant-7", *range, "--dry-run")
    assert "run 1 of tenant-7" in does("run", "tenant-7")
    does("set", "tenant-7", "--kwargs", '{"a": 1}', "--note", "x")
    lines = [line for line in does("history", "tenant-7").splitlines() if "Z" in line]
    assert [bool(re.search(r" changed ", line)) for line in lines] == [True, False, True]
    assert "version 2: kwargs, note" in lines[0]
    assert "version 1: added" in lines[2]
    told = json.loads(does("history", "--json"))["changes"]
    assert [(each["entry"], each["version"], each["what"]) for each in told] == [
        ("tenant-7", 2, ["kwargs", "note"]),
        ("tenant-7", 1, ["added"]),
    ]
    does("pause", "tenant-7")
    assert "tenant-7" not in does("next")
    assert "matches no entry of beat_schedule" in does("check")
    entry = json.loads(does("status", "--json"))["entries"][1]
    assert (entry["name"], entry["source"], entry["version"]) == ("tenant-7", "live", 2)
    assert entry["paused"] is not None
