"""Real beats and workers, started through the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext

from celery_zk_beat.cli import zk_beat
from celery_zk_beat.records import from_text
from example_project.servers import (
    REPOSITORY,
    Process,
    Redis,
    ZooKeeper,
    celery_beat,
    celery_worker,
    wait_until,
)
from tests.conftest import PATIENCE, SESSION_TIMEOUT
from tests.history import Message, messages
from tests.rabbitmq import RabbitMQ

APP = "tests.acceptance.app"
#: The address of a broker that does not exist.
NOBODY = "redis://127.0.0.1:1"


@dataclass(frozen=True)
class Claim:
    """A run's number, and the instant from which the entry's clock goes on."""

    run: int
    at: datetime


class Site:
    """Beats and workers of one app, with its own root.

    A test may change `conf` before a process is started. It may also change `app`, the app of the
    beats and of :meth:`console`, and `tree`, the working tree from which they take their code.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack, conf: dict[str, Any]) -> None:
        self.folder = folder
        self.conf = conf
        self.app = APP
        self.tree = REPOSITORY
        self._stack = stack

    def schedule(self, **periods: float) -> None:
        """Sets entries: seconds by name. No worker needs to know their tasks."""
        self.conf["beat_schedule"] = {
            name: {"task": name, "schedule": period} for name, period in periods.items()
        }

    def beat(self, name: str = "beat", *args: str, app: str = "", **conf: Any) -> Process:
        """Starts a beat. `conf` is its own part of the configuration."""
        env = self._env(name, conf)
        process = celery_beat(self.folder, name, app or self.app, env=env, args=args)
        process.cwd = self.tree
        return self._stack.enter_context(process).start()

    def pair(self) -> tuple[Process, Process]:
        """Starts two beats: the first is master and has dispatched, the second is a standby."""
        one = self.beat("one")
        one.wait_for_log("elected: one is master", PATIENCE)
        two = self.beat("two")
        two.wait_for_log("not elected because one is master", PATIENCE)
        self.wait_for_run(one)
        return one, two

    def worker(self, name: str = "worker", *args: str, app: str = APP, **conf: Any) -> Process:
        process = celery_worker(self.folder, name, app, env=self._env(name, conf), args=args)
        self._stack.enter_context(process).start()
        process.wait_for_log("ready.", PATIENCE)
        return process

    def zk_beat(self, *args: str, **conf: Any) -> subprocess.CompletedProcess[str]:
        """Does what ``celery zk-beat ARGS`` does, in this process; see also :meth:`console`."""
        app = Celery("acceptance", set_as_current=False)
        app.config_from_object({"zk_beat_id": "asker", **self.conf, "broker_url": NOBODY, **conf})
        context = CLIContext(app=app, no_color=False, workdir=None)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(contextlib.redirect_stdout(_stream()))
            err = stack.enter_context(contextlib.redirect_stderr(_stream()))
            ended = stack.enter_context(pytest.raises(SystemExit))
            zk_beat.main(list(args), prog_name="celery zk-beat", obj=context)
        exit_code = int(ended.value.code or 0)
        return subprocess.CompletedProcess(args, exit_code, _text(out), _text(err))

    def console(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs the real command in its own process. That takes a second."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", self.app, "zk-beat", *args],
            env={**os.environ, **self.env(broker_url=NOBODY)},
            cwd=self.tree,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
        )

    def claimed(self) -> dict[str, Claim]:
        """Returns the last run of each entry that a master claimed, even if it did not publish
        it."""
        told = json.loads(self.zk_beat("history", "--json", "--limit", "1000").stdout)
        newest_first = (run for run in told["runs"] if run["run"] is not None)
        claims: dict[str, Claim] = {}
        for run in newest_first:
            claims.setdefault(run["entry"], Claim(run["run"], from_text(run["at"])))
        return claims

    def env(self, **conf: Any) -> dict[str, str]:
        """Returns the environment for a process that uses the command line."""
        return self._env("asker", conf)

    def history(self) -> list[Message]:
        return messages(self.conf["broker_url"])

    def wait(self, condition: Callable[[list[Message]], Any], what: str) -> list[Message]:
        """Waits until the history fulfils the condition, and returns it."""

        def look() -> list[Message] | None:
            history = self.history()
            return history if condition(history) else None

        return wait_until(look, PATIENCE, what)

    def wait_for_run(self, master: Process) -> list[Message]:
        """Waits until `master`, a beat of this site, dispatches a run from now on. Returns the
        history."""
        begun = len(self.history())

        def dispatched(history: list[Message]) -> bool:
            return any(message.master == master.name for message in history[begun:])

        return self.wait(dispatched, f"a run of {master.name}")

    def _env(self, id: str, conf: dict[str, Any]) -> dict[str, str]:
        return {"CONF": json.dumps({"zk_beat_id": id, **self.conf, **conf})}


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


@pytest.fixture
def make_site(tmp_path: Path, redis_server: Redis, root: str) -> Iterator[Callable[[str], Site]]:
    with contextlib.ExitStack() as stack:

        def make(hosts: str) -> Site:
            conf = {
                "broker_url": redis_server.url(0),
                "result_backend": redis_server.url(1),
                "broker_connection_retry_on_startup": True,
                "beat_scheduler": "celery_zk_beat:ZooKeeperScheduler",
                "zk_beat_hosts": hosts,
                "zk_beat_root": root,
                "zk_beat_session_timeout": SESSION_TIMEOUT,
            }
            return Site(tmp_path, stack, conf)

        yield make


@pytest.fixture
def site(make_site: Callable[[str], Site], zookeeper: ZooKeeper) -> Site:
    """Beats on the ZooKeeper that all tests share."""
    site = make_site(zookeeper.hosts)
    site.schedule(often=0.2)
    return site


@pytest.fixture
def own_site(make_site: Callable[[str], Site], own_zookeeper: ZooKeeper) -> Site:
    """Beats on their own ZooKeeper, which is not started yet."""
    site = make_site(own_zookeeper.hosts)
    site.schedule(often=0.2)
    return site


@pytest.fixture(params=["redis_server", "rabbitmq"])
def broker(request: pytest.FixtureRequest, site: Site) -> Redis | RabbitMQ:
    """The broker of the site. A test that asks for it runs with each broker that we support."""
    server: Redis | RabbitMQ = request.getfixturevalue(request.param)
    site.conf["broker_url"] = server.url()
    return server
