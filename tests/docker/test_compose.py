"""docker-compose.yml, as the README has it started."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from example_project.processes import REPOSITORY, wait_until

from .engine import needs_engine

pytestmark = [needs_engine, pytest.mark.timeout(300)]

#: Seconds in which nine containers come up, one after another.
PATIENCE = 120.0


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[tuple[str, Callable[..., None]]]:
    """The name of a project, and Compose (v2 or v1) for it; in the end all of it is removed."""
    project = f"zk-beat-{uuid.uuid4().hex[:8]}"
    # The network's name is fixed, for the README's sake; ours must not meet a reader's.
    override = tmp_path / "override.yml"
    override.write_text(json.dumps({"networks": {"default": {"name": project}}}))
    program = _compose()

    def run(*args: str) -> None:
        files = ["-f", "docker-compose.yml", "-f", str(override)]
        subprocess.run([*program, "-p", project, *files, *args], cwd=REPOSITORY, check=True)

    try:
        yield project, run
        run("logs", "--no-color", "beat1", "beat2", "beat3")  # shown where the test failed
    finally:
        run("down", "-v", "--timeout", "5")


def _compose() -> list[str]:
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]):
            asked = subprocess.run([*program, "version"], capture_output=True, check=False)
            if asked.returncode == 0:
                return program
    reason = "neither docker compose nor docker-compose is installed"
    return pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)


def test_compose_file(compose: tuple[str, Callable[..., None]], docker_client: Any) -> None:
    """Every container gets healthy, one beat is master; killed in its container, which ends as it
    did, it is replaced by another, and so is that when its container is killed. `zk-beat status`
    says so."""
    project, run = compose
    run("up", "-d", "--build")

    def containers(**only: str) -> list[Any]:
        labels = {"project": project, **only}
        filters = [f"com.docker.compose.{key}={value}" for key, value in labels.items()]
        return list(docker_client.containers.list(all=True, filters={"label": filters}))

    def healthy() -> bool:
        return all(each.attrs["State"]["Health"]["Status"] == "healthy" for each in containers())

    def master_of(epoch: int) -> str | None:
        names = ("beat1", "beat2", "beat3")
        masters = [
            name
            for name in names
            for beat in containers(service=name)
            if re.search(
                f" elected: {name}:[0-9]+ is master, epoch {epoch}\n", beat.logs().decode()
            )
        ]
        assert len(masters) <= 1
        return masters[0] if masters else None

    wait_until(healthy, PATIENCE, "nine healthy containers")
    assert len(containers()) == 9
    first = master_of(1)
    assert first is not None
    run("exec", "-T", first, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
    second = wait_until(lambda: master_of(2), PATIENCE, "another master")
    assert second != first
    (ended,) = containers(service=first)
    assert ended.wait()["StatusCode"] == 128 + signal.SIGKILL
    run("kill", second)
    third = wait_until(lambda: master_of(3), PATIENCE, "a third master")
    assert third not in (first, second)
    # Exit status 0 says that there is a master and that it ticks.
    run("exec", "-T", third, "celery", "-A", "example_project.app", "zk-beat", "status")
    executed = [
        each.logs().decode().count(" succeeded in ") for each in containers(service="worker")
    ]
    assert sum(executed) > 0
