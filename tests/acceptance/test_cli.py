"""`celery -A app zk-beat ...`, with real beats."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient

from celery_zk_beat import MasterElection
from celery_zk_beat.command_line import NOT_DONE, UNREACHABLE
from celery_zk_beat.paths import Paths
from example_project.processes import REPOSITORY
from example_project.servers import Process, Redis, ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE, TICK_TIME
from tests.history import check

from . import numbers_app, own_app
from .conftest import APP, Site

COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("history",),
    ("diff",),
    ("pause",),
    ("resume", "often", "--skip"),
    ("run", "often"),
    ("drop", "often"),
    ("resign",),
    ("backfill", "often", "--from", "2026-01-05", "--to", "2026-01-06"),
    ("backfill", "often", "--cancel"),
)


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """It ended with this exit code, and one line that holds these words."""
    assert done.returncode == exit_code, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line


def did(done: subprocess.CompletedProcess[str], pattern: str) -> re.Match[str]:
    assert done.returncode == 0, done
    assert done.stderr == ""
    found = re.search(pattern, done.stdout)
    assert found is not None, done.stdout
    return found


def state_of(site: Site) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(site.zk_beat("status", "--json").stdout)
    return told


def beats(site: Site, *names: str) -> dict[str, Process]:
    """Beats of these names; all are there, and one of them has dispatched something."""
    started = {name: site.beat(name) for name in names}
    for beat in started.values():
        beat.wait_for_log("elected", PATIENCE)
    site.wait(lambda history: history, "a run")
    return started


def test_status_and_history(site: Site) -> None:
    """Who is master, what runs next, what ran: as tables for people, as JSON for programs."""
    site.schedule(often=0.2, seldom=3600)
    running = beats(site, "one", "two")
    told = state_of(site)
    assert {member["id"] for member in told["members"]} == {"one", "two"}
    master = told["master"]
    assert master["ticking"]
    assert master["pid"] == running[master["id"]].pid
    assert told["warnings"] == []

    text = site.console("status")
    did(text, rf"(?m)^master +{master['id']}, epoch 1, since .*Z \(.+\)$")
    did(text, r"(?m)^master .* (one|two)$")
    did(text, r"(?m)^standby .* (one|two)$")
    did(text, r"in 59 min +- +- +0  every 3600 s  +seldom")

    site.wait(lambda history: len(history) >= 3, "three runs")
    history = site.zk_beat("history", "often", "--limit", "3")
    assert len(history.stdout.splitlines()) == 1 + 3
    did(history, rf"Z +\d+ ms +\d+ +1  {master['id']} +[0-9a-f-]{{36}}")
    told = json.loads(site.zk_beat("history", "--json").stdout)
    known = {run["task_id"] for run in told["runs"]}  # the last is perhaps not yet due
    site.wait(lambda history: known <= {each.id for each in history}, "all that it told of")
    assert [term["id"] for term in told["masters"]] == [master["id"]]


def test_a_schedule_that_differs(site: Site) -> None:
    """The status is that of the app that asks; beats with another schedule are marked."""
    beats(site, "one")
    done = site.zk_beat("status", beat_schedule={"other": {"task": "x", "schedule": 1}})
    did(done, r"warning +another schedule than the one here: one")
    did(done, r"[0-9a-f]{16} differs")
    did(done, r"not in schedule +often")


def test_resign(site: Site, root: str) -> None:
    """To whoever is first, or to a named standby; it returns when the next one is master."""
    running = beats(site, "one", "two", "three")
    first = state_of(site)["master"]["id"]
    second = did(site.console("resign"), r"^(\w+) is master, epoch 2, after \d+ ms$")[1]
    assert second != first
    third = ({"one", "two", "three"} - {first, second}).pop()
    done = site.zk_beat("resign", "--to", third)
    did(done, rf"^{third} is master, epoch 3, after \d+ ms$")
    site.wait_for_run(running[third])

    refused(site.zk_beat("resign", "--to", third), NOT_DONE, f"{third} is already master")
    others = ", ".join(sorted((first, second)))
    nobody = f"no standby 'four' under {root}; the standbys are: {others}"
    refused(site.zk_beat("resign", "--to", "four"), NOT_DONE, nobody)
    did(site.zk_beat("history"), rf"{second} +resigned: asked by .+@")

    running[first].terminate()
    running[second].terminate()
    wait_until(lambda: len(state_of(site)["members"]) == 1, PATIENCE, "one beat")
    refused(site.zk_beat("resign"), NOT_DONE, third, "only beat")
    running[third].terminate()
    refused(site.zk_beat("resign"), NOT_DONE, "no master")


def test_a_quota_is_used_up(make_site: Callable[[str], Site], tmp_path: Path, root: str) -> None:
    """The log says so once, not every second, and names the znode that has the quota and what to
    do; status warns, and does not call it fine; what is asked for is refused."""
    quota = f"/zookeeper/quota{root}"
    with ZooKeeper(tmp_path, tick_time=TICK_TIME, config={"enforceQuota": "true"}) as server:
        site = make_site(server.start().hosts)
        site.schedule(often=0.2)
        one, _ = site.pair()
        client = KazooClient(server.hosts)
        client.start(PATIENCE)
        try:
            limits, stats = f"{quota}/zookeeper_limits", f"{quota}/zookeeper_stats"
            client.create(limits, b"count=-1,bytes=-1=;byteHardLimit=100", makepath=True)
            client.create(stats, b"")  # ZooKeeper counts
            one.wait_for_log(f"ZooKeeper refuses to write below {root} (QuotaExceeded)", PATIENCE)

            def stuck() -> subprocess.CompletedProcess[str] | None:
                done = site.zk_beat("status")
                return done if done.returncode == NOT_DONE else None

            done = wait_until(stuck, PATIENCE, "status to see it")
            assert f"{root} has a quota of 100 bytes" in done.stdout
            assert f"delquota {root} removes it" in done.stdout
            told = one.log()
            assert told.count("QuotaExceeded") == 1
            assert f"setquota -B BYTES {root} raises it, delquota {root} removes it" in told
            assert "demoted" not in told
            refused(site.zk_beat("run", "often"), NOT_DONE, f"below {root}", "delquota")
            refused(site.zk_beat("pause", "often"), NOT_DONE, f"below {root}", "delquota")
            client.delete(limits)
            site.wait_for_run(one)
            assert site.zk_beat("status").returncode == 0
        finally:
            client.stop()
            client.close()


def test_resign_when_nobody_knows(site: Site, client: KazooClient, root: str) -> None:
    """The request was deleted while the master hung: it is not said to have resigned."""
    site.schedule(often=0.2)
    site.conf["zk_beat_session_timeout"] = 4.0  # no other is elected meanwhile
    running = beats(site, "one", "two")
    master, requests = running[state_of(site)["master"]["id"]], Paths(root).requests
    master.pause()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(site.zk_beat, "resign", "--timeout", "1")
        (request,) = wait_until(lambda: client.get_children(requests), PATIENCE, "the request")
        client.delete(f"{requests}/{request}")
        refused(asked.result(), UNREACHABLE, "could not be withdrawn")


def test_run(site: Site) -> None:
    """An extra run, under the task id that is told; when the entry is due next stays as it is."""
    site.schedule(often=0.2, seldom=3600)
    site.conf["beat_schedule"]["seldom"].update(args=[1, 2], options={"headers": {"mine": 3}})
    beats(site, "one")
    due = {entry["name"]: entry["next_run_at"] for entry in state_of(site)["entries"]}
    done = did(site.console("run", "seldom"), r"run 1 of seldom, task id (\S+): dispatched after")
    (message,) = [each for each in site.history() if each.task == "seldom"]
    assert (message.id, message.run) == (done[1], 1)
    entries = {entry["name"]: entry for entry in state_of(site)["entries"]}
    assert entries["seldom"]["next_run_at"] == due["seldom"]
    assert entries["seldom"]["total_run_count"] == 1
    refused(site.zk_beat("run", "seldmo"), NOT_DONE, "'seldmo'", "did you mean seldom?")


def test_next(site: Site) -> None:
    """From the last runs that ZooKeeper knows, and without it from now, and it says so."""
    site.schedule(often=3600, nightly=7200, held=3600)
    site.conf["zk_beat_policies"] = {"nightly": {"jitter": 600}}
    site.beat("one").wait_for_log("dispatching", PATIENCE)

    def next_runs() -> dict[str, str | None]:
        due = {entry["name"]: entry["next_run_at"] for entry in state_of(site)["entries"]}
        return due if all(due.values()) else {}

    due = wait_until(next_runs, PATIENCE, "the first states")
    did(site.zk_beat("pause", "held"), "held")
    done = site.console("next", "--json", "--until", "+4h")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["remarks"] == ["held is paused and not shown: `zk-beat resume` ends the pause"]
    assert {run["entry"] for run in told["runs"]} == {"often", "nightly"}
    first = {run["entry"]: run for run in reversed(told["runs"])}
    assert first["often"]["due"] == first["often"]["at"] == due["often"]
    assert first["nightly"]["due"] < first["nightly"]["at"]
    did(site.zk_beat("resume", "held"), "held")
    did(site.zk_beat("next", "often", "--count", "2"), "AT .*RUN")
    did(site.zk_beat("next", "--busy", "--until", "+3h"), "MINUTE +RUNS")
    refused(site.zk_beat("next", "oftn"), NOT_DONE, "'oftn'", "did you mean often?")
    wrong = site.zk_beat("next", "--at", "soon")
    assert wrong.returncode == UNREACHABLE
    assert "Invalid value for --at: " in wrong.stderr
    nowhere = f"127.0.0.1:{free_port()}"
    alone = site.zk_beat("next", "--timeout", "0.5", zk_beat_hosts=nowhere)
    assert alone.returncode == 0
    assert "assuming that each entry ran last now" in alone.stderr


def test_diff(site: Site) -> None:
    """The master tells what it runs; this configuration is compared with that."""
    site.schedule(same=3600, other=3600, gone=0.2, old=7200)
    (master,) = beats(site, "one").values()
    assert did(site.zk_beat("diff"), r"^0 differences from what one runs, of \d+ entries\n$")
    site.schedule(same=3600, other=1800, new=60)
    site.conf["beat_schedule"]["young"] = {"task": "old", "schedule": 7200}
    told = site.zk_beat("diff")
    iso = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    lines = [
        r"removed: gone: gone, every 0\.2 s",
        rf"    next run: now (at once|{iso})",
        r"added: new: new, every 60 s",
        rf"    next run: then {iso}",
        r"changed: other: schedule: every 3600 s -> every 1800 s",
        rf"    next run: now {iso}, then {iso}",
        r"perhaps renamed: old -> young: old, every 7200 s",
        rf"    next run: now {iso}, then {iso}, its clock would start anew",
        r"4 differences from what one runs, of \d+ entries",
    ]
    assert did(told, "^" + "\n".join(lines) + "\n$")
    found = json.loads(site.zk_beat("diff", "--json").stdout)
    assert (found["format"], found["master"]) == (1, "one")
    assert [each["kind"] for each in found["differences"]] == [
        "removed",
        "added",
        "changed",
        "renamed",
    ]
    master.stop()
    refused(site.zk_beat("diff"), NOT_DONE, "no master")
    site.conf["zk_beat_scheduler"] = "celery.beat:Scheduler"
    refused(site.zk_beat("diff"), NOT_DONE, "zk_beat_scheduler", "in its store")


def test_names_that_are_numbers(site: Site) -> None:
    """They run, as with Celery's own beat, and the commands know them by their text."""
    site.app = numbers_app.__name__
    beats(site, "one")
    site.wait(lambda history: {"one", "often"} <= {run.task for run in history}, "both")

    def zk_beat(*args: str) -> subprocess.CompletedProcess[str]:
        return site.zk_beat(*args, beat_schedule=numbers_app.SCHEDULE)

    did(zk_beat("run", "2"), "run 1 of 2, task id")
    did(zk_beat("history", "2"), "asked for")
    did(zk_beat("pause", "2"), "2 is paused")
    told = json.loads(zk_beat("status", "--json").stdout)
    assert {entry["name"] for entry in told["entries"]} == {"1", "2", "often"}
    assert {member["schedule"] for member in told["members"]} == {told["schedule"]}
    did(zk_beat("status"), "paused by .+ +2\n")


def test_a_scheduler_of_the_apps_own(site: Site) -> None:
    """The commands see its entries as beat does."""
    site.app, own = own_app.__name__, f"{own_app.__name__}:Scheduler"
    site.beat("one", "-S", own).wait_for_log("elected: one is master", PATIENCE)
    site.wait(lambda history: "shop.own" in {run.task for run in history}, "a run")
    told = json.loads(site.zk_beat("status", "--json", beat_scheduler=own).stdout)
    entries = {entry["name"]: entry for entry in told["entries"]}
    assert {name: entries[name]["task"] for name in ("often", "own")} == {
        "often": "shop.often",
        "own": "shop.own",
    }
    assert all(
        entry["in_schedule"] for entry in entries.values() if entry["name"] in ("often", "own")
    )
    did(site.zk_beat("run", "own", beat_scheduler=own), "run [0-9]+ of own, task id")


def test_a_scheduler_that_cannot_be_made(site: Site) -> None:
    """The commands work all the same, and say that they may not know all."""
    beats(site, "one")
    done = site.zk_beat("status", beat_scheduler="tests.acceptance.own_app:Broken")
    did(done, "warning +beat_scheduler = '.*:Broken' cannot be created here.*ZeroDivisionError")
    did(done, "often\n")


def test_an_entry_whose_name_shows_an_address(site: Site) -> None:
    """Celery names it so where it is given no name: it is the same one after each start."""
    site.app = own_app.__name__
    name = f"seldom('a', <{own_app.__name__}.Thing object>)"
    for n, beat in enumerate(("one", "two"), 1):
        running = beats(site, beat)[beat]
        assert f"{name}: an entry has this name here" in running.log()
        did(site.console("run", name), f"run {n} of seldom")
        told = json.loads(site.console("status", "--json").stdout)
        assert told["warnings"] == []
        assert {entry["name"] for entry in told["entries"]} == {"often", name}
        running.terminate()


def test_a_beat_that_is_none_of_ours(site: Site) -> None:
    """The settings are there, and the scheduler is forgotten: its log and `status` say so."""
    ours, plain = "celery_zk_beat:ZooKeeperScheduler", "celery.beat:Scheduler"
    said = f"its scheduler is {plain}, which dispatches everything, even when another beat is "
    for scheduler in (ours, "zookeeper", "celery_zk_beat.schedulers.ZooKeeperScheduler"):
        beat = site.beat("one", "-S", scheduler)
        beat.wait_for_log("elected: one is master", PATIENCE)
        assert "takes no part" not in beat.log()
        did(site.zk_beat("status", beat_scheduler=scheduler), "schedule")
        assert state_of(site)["warnings"] == []
        beat.terminate()
    stranger = site.beat("stranger", "-S", plain)
    stranger.wait_for_log(f"{said}master; set beat_scheduler = '{ours}'", PATIENCE)
    site.beat("one").wait_for_log("elected: one is master", PATIENCE)
    wrong = {"beat_scheduler": "celery.beat:PersistentScheduler"}
    warning = rf"warning +beat_scheduler = '{wrong['beat_scheduler']}': .* '{ours}'"
    did(site.zk_beat("status", **wrong), warning)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("celery_zk_beat:ZooKeeperSchedulr", "celery_zk_beat:ZooKeeperScheduler"),
        ("celery_zkbeat.ZooKeeperScheduler", "celery_zk_beat:ZooKeeperScheduler"),
        ("zookeepr", "zookeeper"),
    ],
)
def test_a_misspelt_scheduler(site: Site, wrong: str, meant: str) -> None:
    """One line instead of Celery's traceback; another class that is missing stays Celery's."""
    beat = site.beat("one", "-S", wrong)
    assert beat.wait(PATIENCE) == 1
    assert beat.log().splitlines()[1:] == [
        f"Error: -S {wrong!r}: no such scheduler, did you mean {meant!r}?"
    ]
    done = site.beat("two", "-S", wrong, beat_scheduler=wrong)
    assert done.wait(PATIENCE) == 1
    assert done.log().splitlines()[1].startswith(f"Error: beat_scheduler = {wrong!r}: ")
    other = site.beat("other", "-S", "proj.sched:MyScheduler")
    assert other.wait(PATIENCE) == 1
    assert "No module named 'proj'" in other.log().splitlines()[-1]


def test_run_while_the_broker_is_away(site: Site, redis_server: Redis) -> None:
    """It says that the run waits; the run is dispatched when the broker is back."""
    site.schedule(seldom=3600)
    site.beat("one").wait_for_log("dispatching", PATIENCE)
    redis_server.stop()
    done = site.zk_beat("run", "seldom", "--timeout", "4")
    refused(done, NOT_DONE, "run 1 of seldom", "waits for the broker")
    refused(site.zk_beat("run", "seldom"), NOT_DONE, "run 1 waits for the broker")
    did(site.zk_beat("status"), r"run 1 waits +seldom")
    redis_server.start()
    (message,) = site.wait(lambda history: history, "the run")
    assert message.id in done.stderr


def test_drop(site: Site, redis_server: Redis) -> None:
    """The run that waits is not published; history and log tell who asked."""
    site.schedule(seldom=3600)
    beat = site.beat("one")
    beat.wait_for_log("dispatching", PATIENCE)
    refused(site.zk_beat("drop", "seldmo"), NOT_DONE, "'seldmo'", "did you mean seldom?")
    refused(site.zk_beat("drop", "seldom"), NOT_DONE, "no run of this entry waits", "nothing")
    redis_server.stop()
    refused(site.zk_beat("run", "seldom", "--timeout", "2"), NOT_DONE, "waits for the broker")
    did(site.zk_beat("status"), r"outbox    1 waiting for the broker\n")
    done = did(site.zk_beat("drop", "seldom"), r"run 1 of seldom, task id (\S+): dropped, ")
    did(site.zk_beat("history", "seldom"), rf"{done[1]} +dropped: .+@.+ asked for it; it waited")
    beat.wait_for_log(re.compile("seldom: run 1, due .*, is dropped: "), PATIENCE)
    did(site.zk_beat("status"), "outbox    empty")
    redis_server.start()
    did(site.zk_beat("run", "seldom"), "run 2 of seldom")
    assert [message.run for message in site.history()] == [2]


NOWHERE = "127.0.0.1:1"
PAST = ("--from", "2026-01-05T00:00Z", "--to", "2026-01-05T07:00Z")


def test_backfill(site: Site) -> None:
    """Each instant of the range once, also where the master is killed in the middle."""
    site.schedule(seldom=3600)
    first = site.beat("one")
    first.wait_for_log("elected: one is master", PATIENCE)
    site.beat("two").wait_for_log("not elected because one is master", PATIENCE)
    dry = site.zk_beat("backfill", "seldom", *PAST, "--dry-run")
    listed = did(dry, "7 runs; nothing was started")
    due = [f"2026-01-05T{hour:02}:00:00+00:00" for hour in range(7)]
    assert listed.string.splitlines()[:-1] == due
    done = site.zk_beat("backfill", "seldom", *PAST, "--rate", "0.6")
    did(done, "^backfill of seldom from 2026-01-05T00:00:00Z to .*Z: 7 runs, 0.6 per second; ")
    refused(site.zk_beat("backfill", "seldom", *PAST), NOT_DONE, "is already under way", "nothing")
    site.wait(lambda history: len(history) >= 2, "two runs")
    did(site.zk_beat("status"), r"(?m)^backfill  seldom: \d of 7 runs, the last for 2026.*, by .*@")
    first.kill()
    history = site.wait(lambda history: len({each.id for each in history}) >= 7, "the others")
    check(history)  # one may have come twice, with its task id
    assert [*dict.fromkeys(each.due.isoformat() for each in history)] == due
    told = state_of(site)
    assert told["backfills"] == []
    assert {run["note"] for run in told["recent"]} == {"backfill"}


def test_cancel_a_backfill(site: Site) -> None:
    """With a master or without; only what is under way can be."""
    site.schedule(seldom=3600)
    beat = site.beat("one")
    beat.wait_for_log("dispatching", PATIENCE)
    refused(site.zk_beat("backfill", "seldom", "--cancel"), NOT_DONE, "seldom has no backfill")
    done = site.zk_beat("backfill", "seldom", *PAST, "--rate", "0.01", "--json")
    assert json.loads(done.stdout)["begun"] == "7 runs"
    site.wait(lambda history: history, "a run")
    (told,) = state_of(site)["backfills"]
    assert (told["entry"], told["done"], told["total"], told["waits_for"]) == ("seldom", 1, 7, None)
    beat.terminate()
    did(site.zk_beat("backfill", "seldom", "--cancel"), "is cancelled after 1 of 7 runs")
    refused(site.zk_beat("backfill", "seldom", *PAST), NOT_DONE, "no master", "nothing was started")


@pytest.mark.parametrize(
    ("args", "exit_code", "why"),
    [
        ((), UNREACHABLE, "give --from and --to"),
        ((*PAST, "--cancel"), UNREACHABLE, "--cancel cannot be combined"),
        (("--from", "soon", *PAST[2:]), UNREACHABLE, "'soon' is not an instant"),
        (("--from", "0001-01-01", *PAST[2:]), UNREACHABLE, "is before 1970"),
        (("--from", "\x1b[2J", *PAST[2:]), UNREACHABLE, "is not an instant"),
        (("--from", "2026-01-05T07:00Z", *PAST[2:]), UNREACHABLE, "the range is empty"),
        ((*PAST[:2], "--to", "9999-12-31T23:59:59-14:00"), UNREACHABLE, "out of range"),
        ((*PAST[:2], "--to", "2026-01-06+02:00"), UNREACHABLE, "is not an instant"),
        ((*PAST[:2], "--to", "2026-02-30"), UNREACHABLE, "out of range"),
        ((*PAST[:2], "--to", "2999-01-01Z"), UNREACHABLE, "its end is in the future"),
        ((*PAST[:2], "--to", "2999-01-01"), UNREACHABLE, "its end is in the future"),
        ((*PAST, "--rate", "nan"), UNREACHABLE, "nan is not a number"),
        ((*PAST, "--rate", "0"), UNREACHABLE, "--rate"),
        ((*PAST, "--rate", "1000"), UNREACHABLE, "--rate"),
    ],
    ids=str,
)
def test_a_backfill_of_nonsense(
    site: Site, args: tuple[str, ...], exit_code: int, why: str
) -> None:
    """It says so before anybody is asked."""
    done = site.zk_beat("backfill", "often", *args, zk_beat_hosts=NOWHERE)
    assert done.returncode == exit_code
    assert why in done.stderr
    assert done.stdout == ""


def test_what_a_backfill_would_run(site: Site) -> None:
    """Needs no ZooKeeper; says whose times it took, and what is refused."""
    conf = {"zk_beat_hosts": NOWHERE, "timezone": "Europe/Berlin"}

    def dry(entry: str, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return site.zk_beat("backfill", entry, *args, "--dry-run", **conf, **more)

    site.schedule(seldom=3600, often=1)
    local = ("--from", "2026-01-05", "--to", "2026-01-05T02:00")
    done = did(dry("seldom", *local), r"from 2026-01-04T23:00:00Z to .*, Europe/Berlin\): 2 runs")
    assert done.string.startswith("2026-01-05T00:00:00+01:00\n2026-01-05T01:00:00+01:00\n")
    many = dry("often", *PAST)
    assert many.returncode == NOT_DONE
    assert "more than 1000, refused without --yes" in many.stdout
    assert len(many.stdout.splitlines()) == 1001
    assert len(dry("often", *PAST, "--yes").stdout.splitlines()) == 25201
    told = json.loads(dry("seldom", *PAST, "--json").stdout)
    assert told["instants"] == [f"2026-01-05T{hour:02}:00:00.000000+00:00" for hour in range(7)]
    refused(dry("seldmo", *PAST), NOT_DONE, "'seldmo'", "did you mean seldom?")
    refused(dry("seldom", *PAST, zk_beat_root="x"), UNREACHABLE, "zk_beat_root")


def test_without_a_beat(site: Site, client: KazooClient, root: str) -> None:
    """What needs a master says so, and nothing comes of it later; what does not is done."""
    site.schedule(seldom=3600)
    nowhere = site.zk_beat("status")
    assert nowhere.returncode == NOT_DONE
    assert f"{root}: no such znode" in nowhere.stdout
    refused(site.zk_beat("pause", "seldom"), NOT_DONE, root, "no beat")
    assert client.exists(root) is None

    beat = site.beat("one")
    beat.wait_for_log("dispatching", PATIENCE)
    beat.terminate()
    paths = Paths(root)
    epoch = client.get(paths.epoch)[1].version
    done = site.zk_beat("status")
    assert done.returncode == NOT_DONE
    assert "there is no master" in done.stdout
    refused(site.zk_beat("run", "seldom"), NOT_DONE, root, "no master", "nothing was dispatched")
    assert client.get_children(paths.requests) == []
    did(site.zk_beat("pause", "seldom"), "seldom is paused; `zk-beat resume seldom` ends it")
    did(site.zk_beat("pause", "seldom"), "seldom is already paused, since ")
    did(site.zk_beat("resume"), "everything is not paused; still paused: seldom")
    did(site.zk_beat("resume", "seldom", "--skip"), "seldom is resumed: the next master skips")
    did(site.zk_beat("resume", "seldom"), "seldom is not paused")
    refused(site.zk_beat("resume", "seldmo"), NOT_DONE, "did you mean seldom?")
    assert client.get(paths.epoch)[1].version == epoch
    assert client.get_children(paths.members) == []

    site.beat("two").wait_for_log("dispatching", PATIENCE)
    assert state_of(site)["master"]["epoch"] == epoch + 1
    assert site.history() == []


def test_pause_and_resume(site: Site) -> None:
    """Nothing of a paused entry is dispatched, whoever is master; what it missed is run once, or
    skipped, as the operator has it, and its history says so."""
    site.schedule(often=0.2, other=0.2)
    running = beats(site, "one", "two")

    def count(task: str) -> int:
        return sum(message.task == task for message in site.history())

    def wait_for(task: str, more: int = 3) -> None:
        wanted = count(task) + more
        site.wait(lambda _: count(task) >= wanted, f"runs of {task}")

    did(site.zk_beat("pause", "often"), "often is paused")
    # One of them may have been claimed before; with the next the master has heard of the pause.
    wait_for("other", 2)
    before = count("often")
    wait_for("other")
    master = state_of(site)["master"]["id"]
    running[master].terminate()
    wait_for("other")
    told = state_of(site)
    assert told["master"]["id"] != master
    paused = {entry["name"]: entry["paused"] is not None for entry in told["entries"]}
    assert paused == {"often": True, "other": False}
    assert count("often") == before
    done = site.zk_beat("resume", "often", "--skip")
    did(done, f"often is resumed: {told['master']['id']} skips")
    wait_for("often")
    did(site.zk_beat("history", "often"), "skipped .* an operator resumed without catching up")

    did(site.zk_beat("pause"), "everything is paused")
    done = site.zk_beat("status")
    did(done, "warning +everything is paused since")
    before = len(site.history())
    did(site.zk_beat("resume"), "everything is resumed: .* runs once what was due")
    site.wait(lambda history: len(history) > before, "runs")
    first, second, *_ = (each.due for each in site.history() if each.task == "often")
    assert first < second


def test_pauses_at_the_same_time(site: Site, client: KazooClient, root: str) -> None:
    """None is lost."""
    names = ("a", "b", "c")
    site.schedule(**dict.fromkeys(names, 3600))
    site.beat("one").wait_for_log("dispatching", PATIENCE)
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda name: site.console("pause", name), names))
    assert [each.returncode for each in done] == [0] * len(names)
    assert {each["name"] for each in state_of(site)["entries"] if each["paused"]} == set(names)


def test_zookeeper_is_away(own_site: Site, own_zookeeper: ZooKeeper) -> None:
    """Every command says so in one line that names it, in the time that it was given."""
    for command in COMMANDS:
        done = own_site.zk_beat(*command, "--timeout", "0.1")
        refused(done, UNREACHABLE, own_zookeeper.hosts, "did not answer within 0.1 s")
    refused(own_site.console("status", "--timeout", "0.1"), UNREACHABLE, own_zookeeper.hosts)
    own_zookeeper.start().pause()
    begun = time.monotonic()
    done = own_site.zk_beat("status", "--timeout", "0.3")
    refused(done, UNREACHABLE, own_zookeeper.hosts, "did not answer within 0.3 s")
    assert time.monotonic() - begun < PATIENCE / 2


def test_what_cannot_work(site: Site, candidate: Callable[..., MasterElection], root: str) -> None:
    refused(site.zk_beat("status", zk_beat_hosts=7), UNREACHABLE, "zk_beat_hosts = 7")
    refused(site.zk_beat("run", "x", zk_beat_rot="/x"), UNREACHABLE, "zk_beat_root?")
    assert site.zk_beat("status", "--timeout", "0").returncode == UNREACHABLE
    assert site.zk_beat("run").returncode == UNREACHABLE
    refused(site.zk_beat("watch"), UNREACHABLE, "terminal")

    candidate("one", app="bakery").start(PATIENCE)
    wait_until(lambda: site.zk_beat("status").stderr, PATIENCE, "the other app")
    for command in (("status",), ("pause",), ("run", "often")):
        refused(site.zk_beat(*command), NOT_DONE, root, "'bakery'", "'acceptance'")


def test_names_that_would_steer_a_terminal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown escaped; on a terminal without Unicode, all that it lacks."""
    names = ("\x1b[2J", "two\nlines", "\u202etxt.exe", "日本語", "\x9b31m")
    site.schedule(**dict.fromkeys(names, 0.5))
    beats(site, "one")
    site.zk_beat("pause", names[0])
    for command in (("status",), ("history",), ("run", names[0]), ("run", "two\nlined")):
        done = site.zk_beat(*command)
        shown = done.stdout + done.stderr
        assert all(each.isprintable() or each == "\n" for each in shown), shown
    assert "two\\nlines" in shown
    assert "日本語" in site.zk_beat("status").stdout
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "\\u65e5\\u672c\\u8a9e" in site.console("status").stdout


def test_completion(site: Site) -> None:
    """ENTRY completes from the app's schedule."""
    site.schedule(often=1, oftener=1, seldom=1)
    words = f"celery -A {APP} zk-beat run oft"
    environment = {"_CELERY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "5"}
    done = subprocess.run(
        [Path(sys.executable).parent / "celery"],
        env={**os.environ, **site.env(), **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["plain,often", "plain,oftener"]


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, site: Site, *args: str) -> None:
        self._master, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", APP, "zk-beat", *args],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30", **site.env()},
            cwd=REPOSITORY,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(self._master, False)
        self._shown = b""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def wait_for(self, pattern: str) -> None:
        """Waits for what has not been waited for yet."""

        def shown() -> bool:
            with contextlib.suppress(OSError):
                while piece := os.read(self._master, 65536):
                    self._shown += piece  # it may end within an escape sequence, or a character
            self._shown = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", self._shown)
            found = re.search(pattern.encode(), self._shown)
            if found:
                self._shown = self._shown[found.end() :]
            return found is not None

        wait_until(shown, PATIENCE, f"{pattern} on the screen")

    def interrupt(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(PATIENCE)


def test_watch(own_site: Site, own_zookeeper: ZooKeeper) -> None:
    """It follows the election, the runs and the loss of ZooKeeper, until Ctrl-C."""
    own_zookeeper.start()
    own_site.conf["zk_beat_session_timeout"] = 4.0
    running = beats(own_site, "one", "two")
    with Screen(own_site, "watch") as screen:
        screen.wait_for(r"master +(one|two), epoch 1,")
        screen.wait_for(r"every 0\.2 s +often")
        master = state_of(own_site)["master"]["id"]
        running[master].terminate()
        screen.wait_for(r"master +(one|two), epoch 2,")
        own_site.zk_beat("pause")
        screen.wait_for("everything is paused since")
        own_zookeeper.stop()
        screen.wait_for("ZooKeeper does not answer; this was its state")
        own_zookeeper.start()
        own_site.zk_beat("resume")
        screen.wait_for(r"\n\s*STATE")
        assert screen.interrupt() == 0
