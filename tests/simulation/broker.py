"""A broker in memory, as a transport of kombu's: ``broker_url = "simulated://"``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kombu import exceptions
from kombu.transport import TRANSPORT_ALIASES, virtual

from celery_zk_beat.znodes import from_text

from .world import World

TRANSPORT_ALIASES["simulated"] = f"{__name__}:Transport"

#: Seconds that a client waits for an answer.
TIMEOUT = 5.0


@dataclass(frozen=True)
class Sent:
    """A message that a beat handed to the network at `at`; `failed` is what the beat was told.
    `early` is for how many seconds it was not yet due, by the clock of its machine."""

    at: float
    early: float
    machine: str
    #: Which life of the beat it was.
    life: int
    entry: str
    run: int
    epoch: int
    id: str
    arrived: bool
    failed: bool


class Broker:
    """What the machines reach, or not. Each has a mood for it: fine; slow; refusing (connections);
    answer lost (it takes the message and hangs up); black hole (neither answers nor refuses)."""

    current: Broker

    def __init__(self, world: World) -> None:
        Broker.current = self
        self.world = world
        self.moods: dict[str, str] = {}
        #: Whether it takes messages together.
        self.together = True
        self.lives: dict[str, int] = {}
        self.sent: list[Sent] = []
        self.observers: list[Callable[[Sent], None]] = []

    def connect(self) -> None:
        mood = self.moods.get(self.world.here.name, "fine")
        self._suffer("fine" if mood == "answer lost" else mood)

    def take(self, *messages: dict[str, Any]) -> None:
        """Takes messages that leave together, by their headers."""
        mood = self.moods.get(self.world.here.name, "fine")
        # Of what is on its way when a connection ends the first part may have arrived.
        arriving = self.world.random.randint(1, len(messages)) if mood == "answer lost" else None
        for number, headers in enumerate(messages):
            self._note(headers, mood if arriving is None or number < arriving else "cut")
        # Only now: between the last look at the clock and the sending nothing happens.
        self._suffer(mood)

    def _note(self, headers: dict[str, Any], mood: str) -> None:
        machine = self.world.here
        mark = headers["zk_beat"]
        sent = Sent(
            at=self.world.now,
            early=from_text(mark["due"]).timestamp() - machine.wall_clock(),
            machine=machine.name,
            life=self.lives[machine.name],
            entry=headers["task"],
            run=mark["run"],
            epoch=mark["epoch"],
            id=headers["id"],
            arrived=mood in ("fine", "slow", "answer lost"),
            failed=mood not in ("fine", "slow"),
        )
        self.sent.append(sent)
        for observe in self.observers:
            observe(sent)

    def _suffer(self, mood: str) -> None:
        self.world.breathe()
        if mood == "black hole":
            self.world.park(TIMEOUT)
            raise TimeoutError("simulated: no answer")
        if mood == "slow":
            self.world.park(self.world.random.uniform(0, 2.0))
        elif mood != "fine":
            raise ConnectionResetError(f"simulated: {mood}")


class Batch:
    """As kombu's own for Redis."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._gathered: list[dict[str, Any]] = []

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        self.channel.basic_publish(message, _publish_batch=self._gathered, **kwargs)

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        try:
            Broker.current.take(*gathered)
        except OSError as exc:
            raise exceptions.BatchPublishError("delivery is uncertain") from exc

    def discard(self) -> None:
        self._gathered = []

    def close(self) -> None:
        pass


class Channel(virtual.Channel):  # type: ignore[misc]
    @property
    def supports_batch_publish(self) -> bool:
        return Broker.current.together

    def create_publish_batch(self, max_size: int) -> Batch:
        return Batch(self)

    def _put(
        self,
        queue: str,
        message: dict[str, Any],
        _publish_batch: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        headers = json.loads(json.dumps(message["headers"]))
        if _publish_batch is None:
            Broker.current.take(headers)
        else:
            _publish_batch.append(headers)

    def _size(self, queue: str) -> int:
        return 0

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def _purge(self, queue: str) -> int:
        return 0


class Transport(virtual.Transport):  # type: ignore[misc]
    Channel = Channel
    driver_type = driver_name = "simulated"
    implements = virtual.Transport.implements.extend(batch_publish=True)
    connection_errors = (OSError,)
    default_port = 0

    def establish_connection(self) -> Any:
        Broker.current.connect()
        return super().establish_connection()
