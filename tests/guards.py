"""Finds the guards of beats from outside; and starts servers that make it hard for guards."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from celery_zk_beat.guard import program
from celery_zk_beat.security import Access
from celery_zk_beat.zookeeper.session import connected
from example_project.processes import REPOSITORY
from example_project.servers import wait_until

from .conftest import PATIENCE

#: Options for Java: with them a server demands credentials on each connection.
STRICT = {
    "enforce.auth": [
        "-Dzookeeper.enforce.auth.enabled=true",
        "-Dzookeeper.enforce.auth.schemes=sasl",
    ],
    "sessionRequireClientSASLAuth": ["-Dzookeeper.sessionRequireClientSASLAuth=true"],
}


def guards() -> dict[int, int]:
    """Returns of all processes: the pid of each guard, and of its parent."""
    return {
        pid: parent
        for pid, (parent, command) in _processes().items()
        if program.__file__ in command
    }


def below(pid: int) -> set[int]:
    """Returns the children of a process, and their children."""
    processes, found = _processes(), {pid}
    while more := {each for each, (parent, _) in processes.items() if parent in found} - found:
        found |= more
    return found - {pid}


def children(pid: int) -> set[int]:
    """Returns the children of a process."""
    return {each for each, (parent, _) in _processes().items() if parent == pid}


def _processes() -> dict[int, tuple[int, list[str]]]:
    """Returns each pid, its parent's pid, and the command."""
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
    """Waits for the guard of the beat that has this pid, and returns it."""

    def look() -> int | None:
        found = [guard for guard, parent in guards().items() if parent == pid]
        return found[0] if found and found[0] != other_than else None

    return wait_until(look, PATIENCE, f"a guard of {pid}")


_DIES = """
import json, os, sys
from celery_zk_beat.security import Access
from celery_zk_beat.zookeeper.operations import Create
from celery_zk_beat.zookeeper.session import connected
hosts, path, sasl = sys.argv[1:]
access = Access.checked(None, json.loads(sasl), None, None)
with connected(hosts, 4.0, 30.0, lambda: None, access) as session:
    session.commit(Create(path, b"", ephemeral=True))
    id, password, servers = session.handle
    print(json.dumps([id, password.hex(), servers]), flush=True)
    os._exit(0)
"""


def check_strict(hosts: str, path: str, sasl: Mapping[str, str]) -> None:
    """Asserts that a dead process's session ends well before its time-out, on servers that let
    nobody without credentials close it."""
    dies = [sys.executable, "-c", _DIES, hosts, path, json.dumps(sasl)]
    said = subprocess.run(dies, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    began = time.monotonic()
    id, password, servers = json.loads(said.stdout)
    program.end({"id": id, "password": password, "servers": servers, "tls": None})
    access = Access.checked(None, dict(sasl), None, None)
    with connected(hosts, 4.0, PATIENCE, lambda: None, access) as looking:
        wait_until(lambda: not looking.exists(path), PATIENCE, "the end of the session")
    assert time.monotonic() - began < 4.0 * 2 / 3, "the least that it would take by itself"
