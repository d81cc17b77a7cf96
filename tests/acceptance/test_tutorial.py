"""docs/tutorial.md does what it says: its app and its commands, as they are printed there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from example_project.servers import REPOSITORY, Process, Redis, ZooKeeper, wait_until
from tests.conftest import PATIENCE

PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text()
#: What is started in a terminal of its own.
BEAT, WORKER = "celery -A proj beat -l INFO --pidfile=", "celery -A proj worker -l INFO"


class Reader:
    """Somebody who types what the page says, in a folder of their own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        # The servers are those of all tests.
        self.env: dict[str, str] = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }

    def starts(self, name: str, command: str) -> Process:
        assert f"\n{command}\n" in PAGE
        process = Process(self.folder, name, command.split(), env=self.env, cwd=self.folder)
        return self.stack.enter_context(process).start()

    def types(self, command: str) -> str:
        assert re.search(rf"^{re.escape(command)}( +#.*)?$", PAGE, re.M), command
        done = subprocess.run(
            command.split(),
            cwd=self.folder,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr


@pytest.fixture
def reader(
    tmp_path: Path, zookeeper: ZooKeeper, redis_server: Redis, root: str
) -> Iterator[Reader]:
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    app = found[1]
    for printed, here in (
        ("redis://localhost", redis_server.url(0)),
        ("localhost:2181", f"{zookeeper.hosts}{root}"),
        ('"schedule": 5.0', '"schedule": 0.5'),
    ):
        assert app.count(printed) == 1
        app = app.replace(printed, here)
    folder = tmp_path / "proj"
    folder.mkdir()
    (folder / "proj.py").write_text(app)
    with ExitStack() as stack:
        yield Reader(folder, stack)


def test_the_tutorial(reader: Reader) -> None:
    assert "master    none" in reader.types("celery -A proj zk-beat status")
    worker = reader.starts("worker", WORKER)
    one = reader.starts("one", BEAT)
    one.wait_for_log("Sending due task hello (proj.hello), run 1", PATIENCE)
    banner = "    . scheduler -> celery_zk_beat.schedulers.ZooKeeperScheduler\n"
    assert banner in PAGE
    assert banner in one.log()
    assert "dispatching 2 entries as master, epoch 1" in one.log()
    two = reader.starts("two", BEAT)
    two.wait_for_log("is master, epoch 1", PATIENCE)
    assert "not elected because" in two.log()

    one.kill()
    two.wait_for_log("elected: ", PATIENCE)
    two.wait_for_log("dispatching 2 entries as master, epoch 2", PATIENCE)
    two.wait_for_log("Sending due task hello (proj.hello), run ", PATIENCE)
    assert re.search(r"master \S+ is gone - contending", two.log())
    worker.wait_for_log(", epoch 2", PATIENCE)

    def without_a_gap() -> bool:
        runs = {int(run) for run in re.findall(r"hello: run (\d+), epoch", worker.log())}
        return len(runs) > 3 and runs == {*range(1, max(runs) + 1)}

    wait_until(without_a_gap, PATIENCE, "runs of both masters, all of them")

    history = reader.types("celery -A proj zk-beat history")
    for title in re.findall(r"^(?:DUE|EPOCH) .*$", PAGE, re.M):
        for word in title.split():
            assert word in history
    assert "its session ended" in history

    reader.starts("three", BEAT).wait_for_log("not elected because", PATIENCE)
    assert "is master, epoch 3" in reader.types("celery -A proj zk-beat resign")
    assert "hello" in reader.types("celery -A proj zk-beat pause hello")
    assert "hello is resumed" in reader.types("celery -A proj zk-beat resume hello")
    assert "of hello" in reader.types("celery -A proj zk-beat run hello")
