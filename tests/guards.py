"""Guards of beats, found from outside."""

from __future__ import annotations

from pathlib import Path

from celery_zk_beat.guard import program
from example_project.servers import wait_until

from .conftest import PATIENCE


def guards() -> dict[int, int]:
    """Of all processes: the pid of each guard, and of its parent."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().decode().split("\0")
                status = (process / "status").read_text()
            except OSError:  # it has just ended
                continue
            if program.__file__ in command:
                (parent,) = (line for line in status.splitlines() if line.startswith("PPid:"))
                found[int(process.name)] = int(parent.split()[1])
    return found


def guard_of(pid: int, other_than: int = 0) -> int:
    """The guard of the beat that has this pid, once there is one."""

    def look() -> int | None:
        found = [guard for guard, parent in guards().items() if parent == pid]
        return found[0] if found and found[0] != other_than else None

    return wait_until(look, PATIENCE, f"a guard of {pid}")
