"""A broker in memory, as a transport of kombu's: ``broker_url = "simulated://"``."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import MessageNacked
from kombu.transport import TRANSPORT_ALIASES, virtual

from celery_zk_beat.records import from_text

from .world import Condition, World

TRANSPORT_ALIASES["simulated"] = f"{__name__}:Transport"

#: Seconds that a client waits for an answer.
TIMEOUT = 5.0
#: Moods in which what is sent is on its way. And for how many seconds a kernel keeps it: a third of
#: the session time-out, for in the first two it may be handed to the kernel.
HOLDING = ("alarm", "kernel")
KERNEL_HOLDS = 4.0 / 3


@dataclass
class Sent:
    """A message that a beat handed to the network at `at`; `failed` is what the beat was told, or
    will be. `early` is for how many seconds it was not to leave yet, by its machine's clock."""

    at: float
    early: float
    machine: str
    #: Which life of the beat it was.
    life: int
    entry: str
    run: int
    due: str
    leaves: str | None
    era: str
    epoch: int
    id: str
    arrived: bool
    failed: bool
    #: The arguments of the task, as text.
    label: str | None = None
    #: What a hook put into it.
    hook: str | None = None
    #: The header zk_beat.
    mark: dict[str, Any] = field(default_factory=dict, repr=False)


class Broker:
    """What the machines reach, or not. Each has a mood for it: fine; slow; refusing (connections);
    answer lost (it takes the message and hangs up); black hole (neither answers nor refuses); alarm
    (what is sent arrives when that is over, whether somebody lives and waits for the answer or
    not); kernel (the same, but of what was sent longer ago the machine's kernel has given up)."""

    current: Broker

    def __init__(self, world: World) -> None:
        Broker.current = self
        self.world = world
        self._moods: dict[str, str] = {}
        #: What is sent to an alarmed one, by machine, and who waits for the answer.
        self._held: dict[str, list[Sent]] = {}
        self._alarm_over = Condition()
        #: Machines that never reach it.
        self.unreached: Collection[str] = ()
        #: Entries whose messages it refuses (a full queue).
        self.refused: Collection[str] = ()
        #: Whether it takes messages together.
        self.together = True
        self.lives: dict[str, int] = {}
        self.sent: list[Sent] = []
        #: Called with each message that is sent; and when it arrives, if it does.
        self.observers: list[Callable[[Sent], None]] = []
        self.receivers: list[Callable[[Sent], None]] = []

    def mood(self, machine: str) -> str:
        return "refusing" if machine in self.unreached else self._moods.get(machine, "fine")

    def set_mood(self, machine: str, mood: str = "fine") -> None:
        before, self._moods[machine] = self.mood(machine), mood
        if mood not in HOLDING:
            for sent in self._held.pop(machine, ()):
                if before != "kernel" or self.world.now - sent.at < KERNEL_HOLDS:
                    self._arrive(sent)
            self._alarm_over.notify_all()

    def connect(self) -> None:
        mood = self.mood(self.world.here.name)
        self._suffer("fine" if mood in ("answer lost", *HOLDING) else mood)

    def take(self, *messages: dict[str, Any]) -> None:
        """Takes messages that leave together, by their headers."""
        machine = self.world.here.name
        mood = self.mood(machine)
        refuses = mood in ("fine", "slow") and messages[0]["task"] in self.refused
        # Of what is on its way when a connection ends the first part may have arrived.
        arriving = self.world.random.randint(1, len(messages)) if mood == "answer lost" else None
        all_sent = [
            self._note(headers, mood if arriving is None or number < arriving else "cut", refuses)
            for number, headers in enumerate(messages)
        ]
        # Only now: between the last look at the clock and the sending nothing happens.
        if mood in HOLDING:
            self._wait_for_the_alarm(machine, all_sent)
            return
        self._suffer(mood)
        if refuses:
            raise MessageNacked

    def _wait_for_the_alarm(self, machine: str, all_sent: list[Sent]) -> None:
        self._held.setdefault(machine, []).extend(all_sent)
        end = self.world.now + TIMEOUT
        while not all(sent.arrived for sent in all_sent):
            if self.world.now >= end:
                raise TimeoutError("simulated: no answer")
            self._alarm_over.wait(end - self.world.now)
        for sent in all_sent:
            sent.failed = False

    def _arrive(self, sent: Sent) -> None:
        sent.arrived = True
        for receive in self.receivers:
            receive(sent)

    def _note(self, headers: dict[str, Any], mood: str, refuses: bool) -> Sent:
        machine = self.world.here
        mark = headers["zk_beat"]
        sent = Sent(
            at=self.world.now,
            early=from_text(mark.get("leaves", mark["due"])).timestamp() - machine.wall_clock(),
            machine=machine.name,
            life=self.lives[machine.name],
            entry=headers["task"],
            run=mark["run"],
            due=mark["due"],
            leaves=mark.get("leaves"),
            era=mark.get("era", ""),
            epoch=mark["epoch"],
            id=headers["id"],
            arrived=False,
            failed=refuses or mood not in ("fine", "slow"),
            label=headers.get("argsrepr"),
            hook=headers.get("hook"),
            mark=mark,
        )
        self.sent.append(sent)
        for observe in self.observers:
            observe(sent)
        if mood in ("fine", "slow", "answer lost") and not refuses:
            self._arrive(sent)
        return sent

    def _suffer(self, mood: str) -> None:
        self.world.breathe()
        if mood == "black hole":
            self.world.park(TIMEOUT)
            raise TimeoutError("simulated: no answer")
        if mood == "slow":
            self.world.park(self.world.random.uniform(0, 2.0))
        elif mood != "fine":
            raise ConnectionResetError(f"simulated: {mood}")


class Pipeline:
    """As one of redis-py."""

    def __init__(self) -> None:
        self._gathered: list[dict[str, Any]] = []

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._gathered = []

    def lpush(self, queue: str, *messages: str) -> None:
        self._gathered.extend(json.loads(message)["headers"] for message in messages)

    def execute(self) -> None:
        Broker.current.take(*self._gathered)


class Client:
    """As redis-py's."""

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline()


class Pool:
    """As redis-py's; a simulated connection comes from none."""

    def get_connection(self) -> Any:
        raise NotImplementedError


class Channel(virtual.Channel):
    @functools.cached_property
    def pool(self) -> Pool:
        return Pool()

    @property
    def supports_batch_publish(self) -> bool:
        return Broker.current.together

    @contextlib.contextmanager
    def conn_or_acquire(self) -> Iterator[Client]:
        yield Client()

    def _put(
        self,
        queue: str,
        message: dict[str, Any],
        _publish_batch: Any = None,
        **kwargs: Any,
    ) -> None:
        text = json.dumps(message)
        if _publish_batch is None:
            Broker.current.take(json.loads(text)["headers"])
        else:
            _publish_batch.add("lpush", queue, text)

    def _size(self, queue: str) -> int:
        return 0

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def _purge(self, queue: str) -> int:
        return 0


class Transport(virtual.Transport):
    Channel = Channel
    driver_type = driver_name = "simulated"
    implements = virtual.Transport.implements.extend(batch_publish=True)
    connection_errors = (OSError,)
    default_port: Any = 0

    def establish_connection(self) -> Any:
        Broker.current.connect()
        return super().establish_connection()  # type: ignore[no-untyped-call]
