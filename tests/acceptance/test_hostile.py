"""A real beat in whose znodes a stranger writes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from celery_zk_beat.paths import Paths, page_of, volume_of
from celery_zk_beat.records import MasterRecord, TermRecord, encode, encode_masters
from example_project.servers import Process
from tests import hostile
from tests.conftest import PATIENCE
from tests.history import late

from .conftest import Site

#: Lines that a beat may log of each thing that a stranger wrote, and CPU seconds in each second.
MOST_LINES, MOST_CPU = 12, 0.8


def cpu_seconds(process: Process) -> float:
    """What it has spent so far; it must run."""
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def evil(paths: Paths) -> list[tuple[str, bytes]]:
    master = MasterRecord("x\n\x1b[2J", "\u202e", 1, "never", 2**31 - 1, "<b>", "%s", "beat")
    term = TermRecord(2**50, "\x1b", "\n", 1, "", None, "\r")
    entry = [253_370_764_799_000_000, 1, None]
    return [
        *((path, hostile.GARBAGE["deep"]) for path in (paths.master, paths.epoch, paths.outbox)),
        (f"{paths.members}/beat", hostile.GARBAGE["binary"]),
        (f"{paths.members}/\u202e<b>", hostile.GARBAGE["large"]),
        (f"{paths.requests}/{0:032x}", hostile.GARBAGE["as deep as can be read"]),
        (f"{paths.requests}/{1:032x}", b'{"format":2,"do":"\\n\\u001b","asked":"","by":"\\n"}'),
        (paths.requests, b"x"),
        (paths.page(page_of("future")), encode({"entries": {"future": entry}})),
        (paths.page(page_of("damaged")), hostile.GARBAGE["binary"]),
        (paths.page("000"), encode({"entries": {"often": entry}})),
        (paths.volume(volume_of(page_of("often"))), hostile.GARBAGE["deep"]),
        (paths.masters, encode_masters([term] * 50)),
        (paths.outbox, hostile.GARBAGE["large"]),
        (paths.master, master.encode()),
    ]


def test_a_beat(site: Site, client: KazooClient, root: str) -> None:
    """While it runs, and again when it starts: the entry whose state nobody hurt goes on, and
    neither processor nor log is filled."""
    paths = Paths(root)
    site.schedule(often=0.2, future=0.2, damaged=0.2)
    beat = site.beat()
    for _ in range(2):
        site.wait_for_run(beat)
        begun, spent, lines = time.monotonic(), cpu_seconds(beat), beat.log().count("\n")
        for path, data in evil(paths):
            with contextlib.suppress(NoNodeError):  # while there is no master
                if path != paths.master:
                    client.ensure_path(path)
                client.set(path, data)
        site.wait_for_run(beat)
        time.sleep(max(0.0, begun + 2 - time.monotonic()))  # to see whether it spins
        seconds = time.monotonic() - begun
        assert cpu_seconds(beat) - spent < MOST_CPU * seconds
        sent = beat.log().count("Sending due task")
        assert beat.log().count("\n") - lines - sent < MOST_LINES * len(evil(paths))
        shown = site.zk_beat("status")
        assert shown.stdout.replace("\n", "").isprintable()
        assert beat.terminate(PATIENCE) == 0
        beat.start()
    site.wait_for_run(beat)
    assert "Traceback" not in beat.log()
    assert beat.log().replace("\n", "").isprintable()
    client.set(paths.page(page_of("damaged")), b'{"format":2,"entries":{}}')
    beat.terminate(PATIENCE)
    beat.start()
    site.wait(lambda history: any(m.task == "damaged" for m in history[-9:]), "what was mended")
    site.wait(lambda history: any(m.task == "future" for m in history[-9:]), "no clock was so far")
    often = [message for message in site.history() if message.task == "often"]
    runs = [message.run for message in often]
    assert late(often) == []
    assert len({message.id for message in often}) == len(set(runs))
    # Who overwrites the outbox, as it was twice in each round, loses what was claimed just then.
    assert len(set(range(1, max(runs))) - set(runs)) <= 4
    assert beat.terminate(PATIENCE) == 0
