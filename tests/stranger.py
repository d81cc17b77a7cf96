"""A stranger between a beat and ZooKeeper, who damages the answers at any byte.

A seed decides what the stranger does. ``python -m tests.stranger --seeds 100`` tries a hundred
seeds, two seconds each. If one fails, it prints the seed and what was wrong.

Faults that lie (a bit is flipped, bytes are left out) can make a beat believe anything; only TCP's
checksums and TLS protect from them. So the only demand under lies is that no beat dispatches that
is not master. Under the other faults, a connection that stalls or ends in the middle of an answer,
nothing may be lost or made twice.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import socket
import tempfile
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

from celery import Celery

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.log import LOGGERS
from example_project.servers import Redis, ZooKeeper, wait_until

from .faults import Road
from .history import Message, check, messages

FAULTS = ("close", "stall")
LIES = ("flip", "garble", "omit", "insert")
#: Seconds: the session time-out, and for how long answers are damaged.
SESSION_TIMEOUT, TROUBLE = 1.0, 2.0
PATIENCE = 30.0
#: How much a beat may do while it gets lies: parts of a processor, log lines a second.
MOST_CPU, MOST_LINES = 0.7, 40


class StrangersRoad(Road):
    """Damages answers, each time after a random number of bytes.

    Args:
        random: decides what happens when.
        faults: some of FAULTS and LIES.
    """

    def __init__(self, port: int, random: random.Random, faults: tuple[str, ...]) -> None:
        super().__init__(port)
        self._random = random
        self._faults = faults
        self.hostile = False
        #: Bytes of answers until the next fault.
        self._left: dict[socket.socket, int] = {}
        self._stalled: set[socket.socket] = set()
        self.done: dict[str, int] = defaultdict(int)

    def _passed_on(self, end: socket.socket, data: bytes) -> bytes | None:
        if end in self._stalled:
            # What was held back never comes. When the stranger is gone, the kernel gives up.
            return None if self.hostile else b""
        if end in self._clients or not self.hostile:
            return data
        if end not in self._left:
            # The answer to the handshake has 41 bytes, the answer to a claim some hundred.
            self._left[end] = self._random.randrange(self._random.choice((41, 300, 3000)))
        place = self._left[end]
        if len(data) <= place:
            self._left[end] -= len(data)
            return data
        del self._left[end]
        fault = self._random.choice(self._faults)
        self.done[fault] += 1
        before, after = data[:place], data[place:]
        if fault in ("close", "stall"):
            with contextlib.suppress(OSError):
                self._other[end].sendall(before)
            if fault == "stall":
                self._stalled |= {end, self._other[end]}
            return b"" if fault == "close" else None
        if fault == "flip":
            return before + bytes([after[0] ^ 1 << self._random.randrange(8)]) + after[1:]
        some = self._random.randint(1, 8)
        if fault == "omit":
            return before + after[some:] or None
        noise = bytes(self._random.getrandbits(8) for _ in range(some))
        return before + noise + (after if fault == "insert" else after[some:])


class _Lines(logging.Handler):
    """Counts what we log, and keeps what must not be there."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.count = 0
        self.bad: list[str] = []
        self.last: deque[str] = deque(maxlen=40)
        self._formatter = logging.Formatter("%(asctime)s %(threadName)s %(message).300s")

    def emit(self, record: logging.LogRecord) -> None:
        self.last.append(self._formatter.format(record))
        self.count += "Sending due task" not in record.msg
        if record.exc_info or not record.getMessage().isprintable():
            self.bad.append(self.last[-1])


@contextlib.contextmanager
def _beat(hosts: str, redis: Redis, root: str, id: str) -> Iterator[ZooKeeperScheduler]:
    """Runs a beat in this process, without a main thread that ticks."""
    app = Celery("stranger", broker=redis.url(0), set_as_current=False)
    app.conf.update(
        zk_beat_hosts=hosts,
        zk_beat_root=root,
        zk_beat_id=id,
        zk_beat_session_timeout=SESSION_TIMEOUT,
        result_expires=None,
        beat_schedule={
            f"{root[1:9]}-{name}": {"task": f"{root[1:9]}-{name}", "schedule": 0.05}
            for name in "xyz"
        },
    )
    scheduler = ZooKeeperScheduler(app)
    assert not scheduler.election.is_master
    scheduler._thread = threading.Thread(target=scheduler._run, daemon=True)
    scheduler._thread.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def meet(seed: int, zookeeper: ZooKeeper, redis: Redis) -> dict[str, int]:
    """Lets one beat meet one stranger. Every other time there is a second beat.

    Returns:
        how many faults there were of each kind.

    Raises:
        AssertionError, TimeoutError: the beat did something wrong.
    """
    chance = random.Random(seed)
    lies = seed % 2 == 1
    faults = FAULTS + LIES if lies else FAULTS
    root = f"/{uuid.UUID(int=chance.getrandbits(128))}-{os.getpid()}-{time.monotonic_ns()}"
    name = f"{root[1:9]}-"

    def history() -> list[Message]:
        return [each for each in messages(redis.url(0)) if each.task.startswith(name)]

    def goes_on(*ids: str) -> None:
        begun = len(history())
        wait_until(
            lambda: {message.master for message in history()[begun:]} & {*ids},
            PATIENCE,
            f"a run by {' or '.join(ids)}",
        )

    road = StrangersRoad(zookeeper.port, chance, faults)
    lines = _Lines()
    log = logging.getLogger(LOGGERS)
    log.addHandler(lines)
    ended: list[str] = []
    hook, threading.excepthook = threading.excepthook, lambda args: ended.append(repr(args))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(road)
            one = stack.enter_context(_beat(road.hosts, redis, root, "one"))
            goes_on("one")
            others: list[ZooKeeperScheduler] = []
            if seed % 4 >= 2:
                others = [stack.enter_context(_beat(zookeeper.hosts, redis, root, "two"))]
            begun, spent, count = time.monotonic(), time.process_time(), lines.count
            road.hostile = True
            time.sleep(TROUBLE)
            seconds = time.monotonic() - begun
            assert time.process_time() - spent < MOST_CPU * seconds, "it spins"
            assert lines.count - count < MOST_LINES * seconds, "it fills the log"
            road.hostile = False
            goes_on("one", "two")
            for other in others:
                other.close()
            goes_on("one")
            for beat in (one, *others):
                assert beat._failure is None
                assert beat.election.failure is None
        assert not lines.bad, "".join(lines.bad)
        assert not ended, "".join(ended)
        found = history()
        masters: dict[int, set[str]] = defaultdict(set)
        for message in found:
            masters[message.epoch].add(message.master)
        assert all(len(ids) == 1 for ids in masters.values()), f"dispatched by no master: {masters}"
        if not lies:
            check(found)
        return dict(road.done)
    except (AssertionError, TimeoutError) as exc:
        what = f"seed {seed}: {exc}; faults: {dict(road.done)}; the last lines:"
        raise AssertionError("\n".join([what, *lines.last])) from exc
    finally:
        threading.excepthook = hook
        log.removeHandler(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stranger", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    args = parser.parse_args()
    logging.getLogger(LOGGERS).setLevel(logging.INFO)
    done: dict[str, int] = defaultdict(int)
    failed = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        zookeeper = stack.enter_context(ZooKeeper(Path(folder), tick_time=200)).start()
        redis = stack.enter_context(Redis(Path(folder))).start()
        for seed in range(args.first, args.first + args.seeds):
            try:
                for fault, count in meet(seed, zookeeper, redis).items():
                    done[fault] += count
            except AssertionError as exc:
                failed.append(seed)
                print(exc)
    print(f"{args.seeds} seeds, {len(failed)} failed: {failed}; faults: {dict(done)}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
