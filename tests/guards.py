"""Guards of beats, found from outside."""

from __future__ import annotations

import contextlib
from pathlib import Path

from celery_zk_beat.guard import program
from example_project.servers import wait_until

from .conftest import PATIENCE


def guards() -> dict[int, int]:
    """Of all processes: the pid of each guard, and of its parent."""
    return {
        pid: parent
        for pid, (parent, command) in _processes().items()
        if program.__file__ in command
    }


def below(pid: int) -> set[int]:
    """The children of a process, and theirs."""
    processes, found = _processes(), {pid}
    while more := {each for each, (parent, _) in processes.items() if parent in found} - found:
        found |= more
    return found - {pid}


def children(pid: int) -> set[int]:
    """Those of a process."""
    return {each for each, (parent, _) in _processes().items() if parent == pid}


def _processes() -> dict[int, tuple[int, list[str]]]:
    """Each pid, that of the parent, and the command."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                status = (process / "status").read_text()
                (parent,) = (line for line in status.splitlines() if line.startswith("PPid:"))
                found[int(process.name)] = int(parent.split()[1]), command
    return found


def guard_of(pid: int, other_than: int = 0) -> int:
    """The guard of the beat that has this pid, once there is one."""

    def look() -> int | None:
        found = [guard for guard, parent in guards().items() if parent == pid]
        return found[0] if found and found[0] != other_than else None

    return wait_until(look, PATIENCE, f"a guard of {pid}")
