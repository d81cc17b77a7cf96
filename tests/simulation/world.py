"""A world with a clock of its own, in which everything that happens is chosen by a seed.

Threads are greenlets: one runs at a time, until it waits for something. Whatever happens, happens
at an instant of the world's clock, and how long each thing takes is drawn from the seed; so the
seed chooses the order of all things, and gives the same one each time.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import random
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

#: The world's clock at its beginning, seconds since 1970.
BEGINNING = 1_800_000_000.0


class Machine:
    """A process: its threads and its wall clock. It may be paused, or die."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.paused = False
        #: Seconds by which its wall clock is ahead.
        self.clock_offset = 0.0
        #: What would have happened while it was paused, in order.
        self._held: list[Callable[[], None]] = []
        self.threads: list[Thread] = []
        #: Errors that ended one of its threads.
        self.failures: list[BaseException] = []
        #: What the kernel tells of its death.
        self.on_death: list[Callable[[], None]] = []

    def wall_clock(self) -> float:
        return BEGINNING + self.world.now + self.clock_offset

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        # What was due first need not come first: the kernel wakes threads as it likes.
        for action in held:
            self.world.after(self.world.moment(), action, self)

    def die(self) -> None:
        """SIGKILL: nothing of it runs any more."""
        self.alive = False
        for thread in self.threads:
            thread.end()
        for tell in self.on_death:
            tell()

    def run(self, action: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.paused:
            self._held.append(action)
        else:
            action()


class Thread:
    """Of a machine; has the interface of :class:`threading.Thread` as far as it is used."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] = lambda: None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        daemon: bool = True,
    ) -> None:
        self.world = World.active
        self.machine = self.world.here
        self.name = name or "thread"
        self._greenlet = greenlet(lambda _: self._run(target, args), parent=self.world.hub)
        #: Grows whenever it goes on, so that a late call to wake it is known to be late.
        self.turn = 0
        self._joining = Condition()

    def start(self) -> None:
        self.machine.threads.append(self)
        self.world.wake(self)

    def is_alive(self) -> bool:
        return not self._greenlet.dead

    def join(self, timeout: float | None = None) -> None:
        if self.is_alive():
            self._joining.wait(timeout)

    def go_on(self, turn: int, value: bool) -> None:
        if self.turn != turn or self._greenlet.dead or not self.machine.alive:
            return
        self.turn += 1
        before, self.world.current = self.world.current, self
        try:
            self._greenlet.switch(value)
        finally:
            self.world.current = before

    def end(self) -> None:
        if self._greenlet and self._greenlet is not getcurrent():
            before, self.world.current = self.world.current, self
            self._greenlet.throw(GreenletExit)
            self.world.current = before

    def _run(self, target: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            target(*args)
        except GreenletExit:
            pass
        except BaseException as exc:
            self.machine.failures.append(exc)
        self._joining.notify_all()


class World:
    """All that is simulated, on one clock.

    Attributes:
        now: seconds since its beginning.
        steps: how many things have happened.
    """

    active: World

    def __init__(self, seed: int, slow: float = 0.01, distance: float = 1.0) -> None:
        World.active = self
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.hub = getcurrent()
        self.current: Any = None
        #: Where the thread that runs is, or whose callback it is.
        self._machine: Machine | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        #: How often a step takes long.
        self._slow = slow
        #: How much longer it takes to somewhere else than on the spot.
        self.distance = distance

    @property
    def here(self) -> Machine:
        machine = self.current.machine if self.current is not None else self._machine
        assert machine is not None
        return machine

    @contextlib.contextmanager
    def on(self, machine: Machine) -> Iterator[None]:
        """What is done within is done by that machine."""
        before, self._machine = self._machine, machine
        current, self.current = self.current, None
        try:
            yield
        finally:
            self._machine, self.current = before, current

    def after(
        self, delay: float, action: Callable[[], None], machine: Machine | None = None
    ) -> None:
        """Has `action` happen in `delay` seconds; by `machine`, if it is alive then and once it is
        not paused."""
        if machine is not None:
            wanted = action

            def action() -> None:
                machine.run(lambda: self._by(machine, wanted))

        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def _by(self, machine: Machine, action: Callable[[], None]) -> None:
        with self.on(machine):
            action()

    @property
    def is_slow(self) -> bool:
        """Whether a step may take long."""
        return self._slow > 0

    def moment(self) -> float:
        """How long something small takes, seconds: mostly very short, now and then very long."""
        chance = self.random.random()
        if chance < self._slow / 10:
            return self.random.uniform(0, 3.0)
        if chance < self._slow:
            return self.random.uniform(0, 0.3)
        return self.random.expovariate(5000)

    def step(self) -> bool:
        """The next thing happens; False where nothing is left to happen."""
        if not self._events:
            return False
        at, _, action = heapq.heappop(self._events)
        self.now = max(self.now, at)
        self.steps += 1
        action()
        return True

    def run(self, until: Callable[[], object], most: float) -> bool:
        """Lets things happen until the condition holds; False if it does not in `most` seconds."""
        end = self.now + most
        while not until():
            if self.now > end or not self.step():
                return False
        return True

    # What threads do ----------------------------------------------------------------------------

    def park(self, timeout: float | None = None) -> bool:
        """The thread that runs waits to be woken; False when the time is over before."""
        thread = self.current
        assert thread is not None, "a callback waits for something"
        if not thread.machine.alive:
            raise GreenletExit
        turn = thread.turn
        if timeout is not None:
            self.after(timeout, lambda: thread.go_on(turn, False), thread.machine)
        return bool(self.hub.switch())

    def wake(self, thread: Thread, turn: int | None = None) -> None:
        """Has a thread go on, unless it has gone on meanwhile (since `turn`, default: now)."""
        turn = thread.turn if turn is None else turn
        self.after(self.moment(), lambda: thread.go_on(turn, True), thread.machine)

    def breathe(self) -> None:
        """Something else may happen first."""
        if self.current is not None:
            self.park(self.moment())


class Lane:
    """What is handed in comes out in the same order, each after a while; at a machine, or anywhere
    (None)."""

    def __init__(self, world: World, machine: Machine | None = None) -> None:
        self.world = world
        self.machine = machine
        #: What it takes longer, seconds.
        self.delay = 0.0
        self._waiting: deque[Callable[[], None]] = deque()

    def put(self, action: Callable[[], None]) -> None:
        self._waiting.append(action)
        delay = self.world.moment() * self.world.distance + self.delay
        self.world.after(delay, self._next, self.machine)

    def _next(self) -> None:
        self._waiting.popleft()()


# What the modules under test get in place of the real ones ------------------------------------


class SimpleQueue:
    """As :class:`queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: list[Thread] = []

    def put(self, item: Any) -> None:
        self._items.append(item)
        for thread in self._waiting:
            World.active.wake(thread)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        world = World.active
        deadline = None if timeout is None else world.now + timeout
        while not self._items:
            left = None if deadline is None else deadline - world.now
            if not block or (left is not None and left <= 0):
                raise queue.Empty
            thread = world.current
            self._waiting.append(thread)
            try:
                world.park(left)
            finally:
                self._waiting.remove(thread)
        return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items


class Condition:
    """As :class:`threading.Condition`; the lock is not needed, as one thread runs at a time."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Thread, int]] = []

    def __enter__(self) -> Condition:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        world = World.active
        self._waiting.append((world.current, world.current.turn))
        return world.park(timeout)

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for thread, turn in waiting:
            World.active.wake(thread, turn)


def boottime() -> float:
    World.active.breathe()
    return World.active.now


def timestamp() -> float:
    """Whoever looks at the clock may be interrupted just before."""
    World.active.breathe()
    return World.active.here.wall_clock()


def now() -> datetime:
    return datetime.fromtimestamp(World.active.here.wall_clock(), timezone.utc)


def sleep(seconds: float) -> None:
    World.active.park(seconds)


#: What stands in for names of the package's module of that name.
CLOCK: dict[str, Any] = {
    "SimpleQueue": SimpleQueue,
    "Thread": Thread,
    "boottime": boottime,
    "in_main_thread": lambda: False,
    "is_current": lambda thread: thread is World.active.current,
    "now": now,
    "sleep": sleep,
    "timestamp": timestamp,
}
