"""The demos, as ``make demo`` and ``make demo-django`` run them."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from example_project.servers import Process, wait_until
from tests.conftest import PATIENCE


def demo(folder: Path, name: str = "demo", *args: str) -> Process:
    """A demo with a temporary folder of its own, by which its processes can be told."""
    own = folder / "tmp"
    own.mkdir()
    command = [sys.executable, "-m", f"example_project.{name}", "--plain", *args]
    return Process(folder, "demo", command, env={"TMPDIR": str(own)})


def left_behind(folder: Path) -> list[str]:
    """Command lines of processes that run below the folder, and files that are left in it."""
    found = [str(path) for path in (folder / "tmp").iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder / 'tmp'}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended meanwhile
            continue
    return found


def leaves_nothing(folder: Path) -> None:
    """Soon: a guard may live some seconds longer than its beat."""
    wait_until(lambda: not left_behind(folder), PATIENCE, "the end of all that it started")


@pytest.mark.timeout(240)
def test_demo(tmp_path: Path) -> None:
    """Kill and stop of the master, nothing lost, nothing twice."""
    with demo(tmp_path) as process:
        assert process.start().wait(200) == 0
        text, _, meaning = process.log().partition("(lost: ")
        assert "no run of its own" in meaning
        lines = text.splitlines()
        said = re.fullmatch(r"runs: (\d+) dispatched, (\d+) executed, 0 lost, 0 twice", lines[-1])
        assert said
        assert said[1] == said[2]
        assert int(said[1]) > 50
        assert "SIGKILL" in lines[-3]
        assert "SIGTERM" in lines[-2]
        # Each run is told, one by one or as one of many, and what matters is not hidden by them.
        more = sum(int(count) for count in re.findall(r"(\d+) more runs? dispatched by", text))
        assert more + text.count(", executed by worker") == int(said[1])
        assert len(lines) < 40
        # It is added while beats run, and judged as the others: it has runs of each master.
        assert text.index("a live entry is added: orders, every 3 s") < text.index("SIGKILL to ")
        leaves_nothing(tmp_path)


@pytest.mark.timeout(240)
def test_django(tmp_path: Path) -> None:
    """Kill of the master, changes in the admin; then it stays as long as one likes, and still
    leaves nothing behind."""
    with demo(tmp_path, "django_demo", "--stay") as process:
        process.start().wait_for_log("Ctrl-C ends it", 200)
        for words in (
            r"SIGKILL to beat-\d, the master",
            "sessions is disabled: ",
            "restock runs, ",
            r"runs: (\d+) dispatched, \1 executed, 0 lost, 0 twice",
        ):
            assert re.search(words, process.log())
        process.send(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        leaves_nothing(tmp_path)


@pytest.mark.parametrize("words", ["", "ZooKeeper and Redis run", "is master, epoch 1"])
def test_ctrl_c(tmp_path: Path, words: str) -> None:
    """At any time, it leaves no process and no file behind."""
    with demo(tmp_path) as process:
        process.start()
        wait_until(lambda: os.path.exists(f"/proc/{process.pid}"), PATIENCE, "the demo")
        process.wait_for_log(words or re.compile(r"\Z"), PATIENCE)
        process.send(signal.SIGINT)
        assert process.wait(PATIENCE) != 0
        leaves_nothing(tmp_path)
