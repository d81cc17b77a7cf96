"""`zk-beat add`, `set`, `remove`, `show`, `export` and `import`, without a beat."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celery_zk_beat import clock
from celery_zk_beat.command_line import NOT_DONE, UNREACHABLE
from celery_zk_beat.live.definitions import page_of_entry
from celery_zk_beat.paths import Paths
from example_project.servers import free_port
from tests.conftest import kazoo_client

from .conftest import Site
from .test_cli import did, refused

TASK = ("--task", "shop.report")


@pytest.fixture
def shop(site: Site) -> Site:
    site.conf["zk_beat_entries"] = True
    site.conf["zk_beat_entries_tasks"] = ["shop.*"]
    return site


def add(site: Site, name: str, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(site, "add", name, *TASK, *more, "--json"))["entry"]
    return found


def done(site: Site, *args: str) -> str:
    found = site.zk_beat(*args)
    assert (found.returncode, found.stderr) == (0, ""), found
    return found.stdout


def shown(site: Site, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(site, "show", name, "--json"))["entry"]
    return found


def test_add_set_show_remove(shop: Site) -> None:
    schedule = ("--cron", "0 9 * * *", "--tz", "Europe/Paris")
    did(
        shop.zk_beat("add", "tenant-7", *TASK, *schedule, "--kwargs", '{"tenant": 7}'),
        r"tenant-7 is added: cron 0 9 \* \* \* Europe/Paris, version 1",
    )
    refused(
        shop.zk_beat("add", "tenant-7", *TASK, "--every", "30"),
        NOT_DONE,
        "tenant-7 is there already, version 1: `zk-beat set` changes it",
    )
    did(shop.zk_beat("set", "tenant-7", "--disabled", "--note", "unpaid"), "version 2, disabled")
    did(shop.zk_beat("set", "tenant-7", "--disabled"), "tenant-7 is so already.*version 2")
    refused(
        shop.zk_beat("set", "tenant-7", "--enabled", "--if-version", "1"),
        NOT_DONE,
        "is of version 2, expected version 1",
    )
    did(shop.zk_beat("set", "tenant-7", "--every", "60", "--offset", "5"), "every 60 s, offset 5 s")
    text = done(shop, "show", "tenant-7")
    for line in (
        r"tenant-7$",
        r"  task      shop\.report$",
        r'  schedule  \{"every": 60\.0, "offset": 5\.0\}$',
        r'  kwargs    \{"tenant": 7\}$',
        r"  note      unpaid$",
        r"  enabled   false$",
        r"  version   3$",
        r"  clock     since 2\d{3}-",
        r"     3  \S+Z  \S+@\S+: schedule$",
        r"     2  \S+Z  \S+@\S+: note, disabled$",
        r"     1  \S+Z  \S+@\S+: added$",
    ):
        assert re.search(f"(?m)^{line}", text), line
    found = shown(shop, "tenant-7")
    assert [change["what"] for change in found["changes"]] == [
        ["added"],
        ["note", "disabled"],
        ["schedule"],
    ]
    assert found["schedule"] == {"every": 60.0, "offset": 5.0}
    assert not found["enabled"]
    did(shop.zk_beat("remove", "tenant-7"), "tenant-7 is removed")
    refused(shop.zk_beat("remove", "tenant-7"), NOT_DONE, "no live entry 'tenant-7'")


def test_no_such_entry(shop: Site) -> None:
    add(shop, "tenant-7", "--every", "30")
    for command in (("show",), ("remove",), ("set", "--note", "x")):
        found = shop.zk_beat(command[0], "tenant-8", *command[1:])
        refused(found, NOT_DONE, "no live entry 'tenant-8'", "did you mean tenant-7?")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--every", "0"), "every(0): expected more than 0 seconds"),
        (("--every", "30", "--cron", "* * * * *"), "give either --every or --cron, not both"),
        (("--cron", "* * * * *", "--offset", "1"), "--offset needs --every"),
        (("--every", "1", "--tz", "UTC"), "--tz needs --cron"),
        (("--cron", "61 * * * *"), "minute '61'"),
        (("--every", "1", "--args", "{"), "--args"),
        (("--every", "1", "--args", "{}"), "args is {}: expected a list"),
        (("--every", "1", "--options", '{"que": 1}'), "did you mean 'queue'?"),
        (("--every", "1", "--policy", '{"jittr": 1}'), "expected a policy: 'jittr' is not a key"),
        ((), "--every or --cron is missing"),
    ],
)
def test_a_command_line_that_is_wrong(shop: Site, given: tuple[str, ...], said: str) -> None:
    found = shop.zk_beat("add", "e", *TASK, *given)
    assert found.returncode == UNREACHABLE
    assert said in found.stderr
    refused(shop.zk_beat("show", "e"), NOT_DONE)


def test_a_task_that_may_not_run(shop: Site) -> None:
    found = shop.zk_beat("add", "e", "--task", "os.system", "--every", "1")
    refused(found, UNREACHABLE, "e: task is 'os.system'", "zk_beat_entries_tasks")


def test_beats_without_live_entries(shop: Site) -> None:
    found = shop.zk_beat("add", "e", *TASK, "--every", "1", zk_beat_entries=False)
    assert found.returncode == 0
    assert "zk_beat_entries is not True here" in found.stderr


def test_zookeeper_is_away(shop: Site, tmp_path: Path) -> None:
    shop.conf["zk_beat_hosts"] = hosts = f"127.0.0.1:{free_port()}"
    file = tmp_path / "entries.json"
    file.write_text('{"format": 2, "entries": {}}')
    for command in (("add", "e", *TASK, "--every", "1"), ("show", "e"), ("export",)):
        refused(shop.zk_beat(*command, "--timeout", "0.1"), UNREACHABLE, hosts)
    refused(shop.zk_beat("import", str(file), "--timeout", "0.1"), UNREACHABLE, hosts)


def import_(site: Site, told: object, *options: str) -> subprocess.CompletedProcess[str]:
    file = site.folder / "import.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    return site.zk_beat("import", str(file), *options)


def test_export_and_import(shop: Site) -> None:
    add(shop, "a", "--every", "30", "--disabled")
    add(shop, "b", "--cron", "0 9 * * *", "--args", "[1]", "--policy", '{"jitter": 5}')
    file = shop.folder / "entries.json"
    did(shop.zk_beat("export", str(file)), "2 entries are in")
    exported = json.loads(done(shop, "export"))
    assert exported == json.loads(file.read_text())
    assert exported["entries"]["a"] == {
        "task": "shop.report",
        "schedule": {"every": 30.0},
        "enabled": False,
    }
    did(import_(shop, exported), "0 to add, 0 to change, 0 to remove\nnothing was changed")

    entries = exported["entries"]
    entries["c"] = {"task": "shop.report", "schedule": {"every": 5}}
    entries["a"]["enabled"] = True
    del entries["b"]
    dry = import_(shop, exported, "--prune", "--dry-run")
    did(dry, r"(?m)^~ a: enabled$")
    did(dry, r'(?m)^\+ c: \{"task": "shop\.report"')
    did(dry, r"(?m)^- b$")
    did(dry, "1 to add, 1 to change, 1 to remove\nnothing was changed")
    assert shown(shop, "b")["version"] == 1
    did(import_(shop, exported), "1 to add, 1 to change, 0 to remove\n2 entries are changed")
    assert shown(shop, "b")["version"] == 1
    assert shown(shop, "a")["version"] == 2
    did(import_(shop, exported, "--prune"), "- b\n.*1 to remove\n1 entries are changed")
    refused(shop.zk_beat("show", "b"), NOT_DONE)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected {"),
        ({"format": 1, "entries": {}}, "expected {"),
        ({"format": 2, "entries": []}, "expected {"),
        ({"format": 2, "entries": {"a": {"task": "x"}}}, "a: schedule is None"),
        (
            {
                "format": 2,
                "entries": {
                    "good": {"task": "shop.report", "schedule": {"every": 1}},
                    "": {},
                    "b": {"task": "shop.report", "schedule": {"cron": "x"}},
                },
            },
            "b: schedule",
        ),
        (
            {"format": 2, "entries": {"a": {"task": "os.system", "schedule": {"every": 1}}}},
            "zk_beat_entries_tasks",
        ),
    ],
)
def test_a_file_that_is_wrong_changes_nothing(shop: Site, told: object, said: str) -> None:
    refused(import_(shop, told), UNREACHABLE, said)
    assert json.loads(done(shop, "export"))["entries"] == {}


def test_10_000_entries(shop: Site) -> None:
    """In one command, in less than 10 s on a machine that does nothing else; and again, after it
    was interrupted, it does what is left."""
    entries = {
        f"tenant-{n}": {"task": "shop.report", "schedule": {"every": 3600}, "kwargs": {"tenant": n}}
        for n in range(10_000)
    }
    begun = clock.boottime()
    did(import_(shop, {"format": 2, "entries": entries}), "10000 entries are changed")
    took = clock.boottime() - begun
    print(f"10,000 entries are imported in {took:.1f} s")
    assert took < 60
    entries["tenant-5"]["kwargs"] = {"tenant": 6}
    did(import_(shop, {"format": 2, "entries": entries}), "~ tenant-5: kwargs\n.*1 to change")
    did(import_(shop, {"format": 2, "entries": {}}, "--prune"), "10000 to remove")


def test_what_is_damaged_is_named(shop: Site, root: str) -> None:
    add(shop, "a", "--every", "30")
    paths = Paths(root)
    with kazoo_client(shop.conf["zk_beat_hosts"]) as client:
        page = paths.entries_page(page_of_entry("a"))
        client.set(page, json.dumps({"format": 2, "entries": {"a": {"task": "\x1b[2J"}}}).encode())
        found = shop.zk_beat("export")
        assert found.returncode == NOT_DONE
        assert "a is left out: " in found.stderr
        assert "\x1b" not in found.stderr
        refused(shop.zk_beat("show", "a"), UNREACHABLE, "expected an entry that can be understood")
        client.set(page, b"\x1b")
        refused(shop.zk_beat("set", "a", "--note", "x"), NOT_DONE, page)
        client.set(page, b'{"format":2,"entries":{}}')
        client.set(paths.entries, b"{")
        refused(shop.zk_beat("add", "b", *TASK, "--every", "1"), NOT_DONE, f"{paths.entries}: not")
