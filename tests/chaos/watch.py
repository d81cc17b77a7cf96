"""Watchers that record what the broker got, what ZooKeeper has, and which processes have ended."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import redis
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError
from redis.backoff import NoBackoff
from redis.retry import Retry

from example_project.processes import wait_until

from .record import Record
from .site import PATIENCE, ROOT, Site

#: Moves what the beats sent to the workers' queue, and keeps a copy with the time, in one step. If
#: the harness loses its connection in the middle, it misses nothing and sees nothing twice.
_MOVE = """
local now = redis.call('TIME')
local message = redis.call('RPOP', 'celery')
while message do
    redis.call('LPUSH', 'work', message)
    redis.call('RPUSH', 'copies', now[1] + now[2] / 1e6 .. ' ' .. message)
    message = redis.call('RPOP', 'celery')
end
"""


@contextlib.contextmanager
def watching(site: Site) -> Iterator[Messages]:
    """Runs all watchers."""
    over = threading.Event()
    messages = Messages(site)
    jobs = [(0.02, messages.look), (0.2, Nurse(site).look)]
    with contextlib.ExitStack() as stack:
        if site.ensemble is not None:
            znodes = stack.enter_context(Znodes(site.ensemble.hosts, site.record))
            jobs += [(0.1, znodes.look_at_master), (1.0, znodes.look_at_states)]
        threads = [threading.Thread(target=_repeat, args=(over, *job), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            yield messages
            if site.ensemble is not None:
                wait_until(znodes.look_at_states, PATIENCE, "the last states")
        finally:
            over.set()
            for thread in threads:
                thread.join(PATIENCE)


def _repeat(over: threading.Event, every: float, look: Callable[[], object]) -> None:
    while not over.wait(every):
        look()


class Messages:
    """Records what the beats sent."""

    def __init__(self, site: Site) -> None:
        self._site = site
        # Without redis-py's own pauses before it tries again: the time of the move counts as the
        # time of arrival.
        retry = Retry(NoBackoff(), 0)
        self._broker = redis.Redis(port=site.broker.port, socket_timeout=2, retry=retry)
        self._seen = 0

    def look(self) -> bool:
        """Takes what has come. Returns False if the broker does not answer or refuses."""
        try:
            self._broker.eval(_MOVE, 0)
            copies = self._broker.lrange("copies", self._seen, -1)
        except redis.RedisError:
            return False
        for copy in copies:
            assert isinstance(copy, bytes)
            at, _, text = copy.partition(b" ")
            self._take(float(at), json.loads(text)["headers"])
        self._seen += len(copies)
        return True

    def drain(self) -> None:
        """Waits until the workers have taken all messages."""

        def empty() -> bool:
            with contextlib.suppress(redis.RedisError):
                return self.look() and not self._broker.llen("work")
            return False

        wait_until(empty, PATIENCE, "the workers to take all messages")

    def _take(self, at: float, headers: dict[str, Any]) -> None:
        mark = headers.get("zk_beat") or {}
        # Celery writes the pid there: gen4711@host.
        sender = self._site.pids[int(headers["origin"].partition("@")[0][3:])]
        self._site.record.write(
            "message",
            at=at,
            entry=headers["task"],
            id=headers["id"],
            beat=sender,
            **{name: mark.get(name) for name in ("run", "epoch", "due")},
        )
        self._site.last_sender = sender


class Znodes:
    """Records what ZooKeeper has, through a connection of its own. What it cannot read now it reads
    the next time."""

    def __init__(self, hosts: str, record: Record) -> None:
        self._client = KazooClient(hosts)
        self._record = record
        self._master: tuple[str | None, int | None] | None = None

    def __enter__(self) -> Znodes:
        self._client.start(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop()
        self._client.close()

    def look_at_master(self) -> None:
        try:
            fields = json.loads(self._get("master")[0])
            master = fields["id"], fields["epoch"]
        except NoNodeError:
            master = None, None
        except (KazooException, KazooTimeoutError):
            return
        if master != self._master:
            self._record.write("master", id=master[0], epoch=master[1])
            self._master = master

    def look_at_states(self) -> bool:
        try:
            pages = self._client.get_children_async(f"{ROOT}/runs").get(timeout=1)
            found = [self._get(f"runs/{page}") for page in pages]
            outbox = json.loads(self._get("outbox")[0])["runs"]
        except (KazooException, KazooTimeoutError):
            return False
        states = {}
        for data, stat in found:
            for name, (last, count, _, *more) in json.loads(data)["entries"].items():
                at = datetime.fromtimestamp(last / 1e6, timezone.utc)
                dropped = more[0].get("dropped", []) if more else []
                states[name] = [at.isoformat(timespec="microseconds"), count, dropped, stat.mzxid]
        runs = [[entry, number] for entry, number, *_ in outbox]
        self._record.write("states", entries=states, outbox=runs)
        return True

    def _get(self, path: str) -> Any:
        return self._client.get_async(f"{ROOT}/{path}").get(timeout=1)


class Nurse:
    """Starts processes again that ended by themselves, as a supervisor would. Records it if it is a
    beat."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def look(self) -> None:
        for beat in self._site.beats.values():
            lock = self._site.lock(f"process {beat.name}")
            if not lock.acquire(blocking=False):
                continue  # one of our faults ended it
            try:
                if not beat.process.alive:
                    code = beat.process.exit_code
                    self._site.record.write("ended", beat=beat.name, exit_code=code)
                    self._site.start_beat(beat)
            finally:
                lock.release()
        for worker in self._site.workers:
            if not worker.alive:  # Celery's worker ends when the broker is full
                worker.start()
