"""The containers of a test: by pytest-celery's fixtures a broker, a result backend (both Redis) and
a worker, by ours ZooKeeper and three beats. Worker and beats run the example project's image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from pytest_celery import (
    CELERY_REDIS_BACKEND,
    CELERY_REDIS_BROKER,
    CeleryTestContainer,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RedisContainer,
    defaults,
)
from pytest_docker_tools import build, container, fxtr

from example_project.processes import LOOPBACK, REPOSITORY, wait_until
from tests.conftest import PATIENCE
from tests.history import Message, messages

from . import tasks

TICK_TIME = 500
#: Seconds.
SESSION_TIMEOUT = 2.0
#: The queue that no worker consumes: its messages are the evidence of what was dispatched.
KEPT = "kept"


@pytest.fixture(autouse=True, scope="session")
def published_ports() -> Iterator[None]:
    """pytest-celery reaches its containers through localhost, where only published ports are; on
    a machine that is itself a container, pytest-docker-tools would name the inner ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pytest_docker_tools.wrappers.container.tests_inside_container", lambda: False
        )
        yield


# Without these two, each test would run once for each broker and backend that is installed.
@pytest.fixture(params=[CELERY_REDIS_BROKER])
def celery_broker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[CELERY_REDIS_BACKEND])
def celery_backend(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def _redis() -> Any:
    """As the plugin's own, but on loopback only, and without a volume that would be left behind."""
    return container(
        image="redis:7-alpine",
        ports={"6379/tcp": (LOOPBACK, None)},
        tmpfs={"/data": ""},
        network="{default_pytest_celery_network.name}",
        wrapper_class=RedisContainer,
        timeout=defaults.REDIS_CONTAINER_TIMEOUT,
        command=RedisContainer.command(),
    )


default_redis_broker = _redis()
default_redis_backend = _redis()

zookeeper_container = container(
    image="zookeeper:3.9",
    environment={"ZOO_TICK_TIME": str(TICK_TIME), "ZOO_ADMINSERVER_ENABLED": "false"},
    tmpfs={"/data": "", "/datalog": "", "/logs": ""},
    network="{default_pytest_celery_network.name}",
    wrapper_class=CeleryTestContainer,
    timeout=defaults.CONTAINER_TIMEOUT,
)

# This name replaces the plugin's own image.
celery_base_worker_image = build(
    path=str(REPOSITORY), dockerfile="example_project/Dockerfile", tag="celery-zk-beat-example"
)


@pytest.fixture
def default_worker_tasks() -> set[Any]:
    return {tasks}


@pytest.fixture
def default_worker_app(default_worker_app: Celery, zookeeper_container: Any) -> Celery:
    """The configuration of worker and beats. The plugin writes it by repr(): no timedelta."""
    default_worker_app.conf.update(
        beat_scheduler="celery_zk_beat:ZooKeeperScheduler",
        beat_schedule={
            "kept": {"task": "kept", "schedule": 0.2, "options": {"queue": KEPT}},
            "executed": {"task": "executed", "schedule": 0.5},
        },
        zk_beat_hosts=f"{zookeeper_container.attrs['Config']['Hostname']}:2181",
        zk_beat_session_timeout=SESSION_TIMEOUT,
    )
    return default_worker_app


class _BeatContainer(CeleryWorkerContainer):
    @classmethod
    def command(cls, *args: str, **kwargs: Any) -> list[str]:
        # All containers have one folder, so no beat may write a file of its pid.
        return ["celery", "-A", "app", "beat", "-l", "INFO", "--pidfile=", *args]

    @property
    def ready_prompt(self) -> str:
        return "beat: Starting..."


def _beat() -> Any:
    return container(
        image="{celery_base_worker_image.id}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={"{default_worker_volume.name}": defaults.DEFAULT_WORKER_VOLUME},
        wrapper_class=_BeatContainer,
        timeout=defaults.DEFAULT_WORKER_CONTAINER_TIMEOUT,
        command=_BeatContainer.command(),
    )


beat1_container = _beat()
beat2_container = _beat()
beat3_container = _beat()


class Beat(CeleryTestWorker):
    """One of the beats. Engine calls that pytest-celery has no name for go to the docker package's
    own container."""

    @property
    def id(self) -> str:
        """As in logs and messages: host and pid."""
        return f"{self.container.id[:12]}:1"

    @property
    def engine(self) -> Any:
        return self.container._container


class Site:
    """Three beats and what they dispatched."""

    def __init__(self, beats: list[Beat], broker: str, backend: str) -> None:
        self.beats = beats
        self._broker = broker
        self._backend = backend

    def history(self) -> list[Message]:
        return messages(self._broker, KEPT)

    def wait_for_run(self, *beats: Beat) -> Beat:
        """The one of `beats` that dispatches a run from now on."""
        begun = len(self.history())
        by_id = {beat.id: beat for beat in beats}

        def found() -> Beat | None:
            masters = [message.master for message in self.history()[begun:]]
            return next((by_id[master] for master in masters if master in by_id), None)

        return wait_until(found, PATIENCE, "a run")

    def wait_until_executed(self, epoch: int) -> None:
        """Waits until the worker has executed a run of that epoch, and all runs before it."""

        def done() -> bool:
            epochs = {header["run"]: header["epoch"] for header in self._executed()}
            newest = max((run for run in epochs if epochs[run] == epoch), default=0)
            return newest > 0 and set(range(1, newest)) <= set(epochs)

        wait_until(done, PATIENCE, f"results of all runs up to one of epoch {epoch}")

    def _executed(self) -> list[dict[str, Any]]:
        with redis.Redis.from_url(self._backend) as server:
            found = [json.loads(server.get(key)) for key in server.scan_iter("celery-task-meta-*")]
        assert {each["status"] for each in found} <= {"SUCCESS"}
        return [each["result"] for each in found]


@pytest.fixture
def site(
    celery_setup: CeleryTestSetup,
    beat1_container: CeleryTestContainer,
    beat2_container: CeleryTestContainer,
    beat3_container: CeleryTestContainer,
) -> Iterator[Site]:
    beats = [
        Beat(each, celery_setup.app) for each in (beat1_container, beat2_container, beat3_container)
    ]
    config = celery_setup.broker.config(), celery_setup.backend.config()
    yield Site(beats, *(each["host_url"] for each in config))
    for beat in beats:
        print(beat.id, beat.logs(), sep="\n")  # shown where the test failed
