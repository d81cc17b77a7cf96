"""Kills or stops the master again and again. Then judges what the broker got.

    python -m tests.chaos.kills --times 200              SIGKILL at random instants
    python -m tests.chaos.kills --times 20 --pause       SIGSTOP for three session time-outs
    python -m tests.chaos.kills --times 20 --outage      no beat reaches the broker for ten seconds
    python -m tests.chaos.kills --times 1000 --starts    each beat starts, and is stopped or killed
    python -m tests.chaos.kills --times 200 --burst      SIGKILL while 2,000 runs leave together

There are three beats, fifty entries of one second, and a session time-out of one second. The exit
status is 1 if a run was lost or made twice under another task id, or if a process or an ephemeral
znode was left behind. Late messages are those that a stopped master sent after its successor had
sent some.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import redis
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from celery_zk_beat.guard import program
from celery_zk_beat.records import MasterRecord
from example_project.servers import Process, Redis, ZooKeeper, celery_beat, wait_until
from tests.faults import Road
from tests.guards import guards
from tests.history import Message, check, late, message_of, messages

ENTRIES = 50
SESSION_TIMEOUT = 1.0
ROOT = "/kills"
PATIENCE = 60.0
#: Seconds.
OUTAGE = 10.0
#: Entries that are due at the same instants, and seconds between these. A kill comes so many
#: seconds after such an instant.
BURST, APART, WITHIN = 2000, 6.0, (-0.05, 0.6)
_IGNORED = re.compile(r"Exception ignored in(?s:.{0,2000})KeyboardInterrupt")


def next_master(client: KazooClient, epoch: int) -> MasterRecord:
    """Waits for a master of a later epoch."""

    def look() -> MasterRecord | None:
        try:
            data, _ = client.get(f"{ROOT}/master")
        except NoNodeError:
            return None
        record = MasterRecord.decode(f"{ROOT}/master", data)
        return record if record.epoch > epoch else None

    return wait_until(look, PATIENCE, "the next master")


def take(broker: Redis) -> list[Message]:
    """Takes all messages from the queue, the oldest first."""
    found: list[Message] = []
    with redis.Redis.from_url(broker.url()) as server:
        while taken := server.rpop("celery", 10_000):
            found.extend(message_of(json.loads(text)["headers"]) for text in taken)
    return found


def wait_for_burst() -> None:
    """Returns at a random instant while a burst leaves."""
    now = time.time()
    time.sleep(APART - now % APART + random.uniform(*WITHIN))  # the random instant


def suffer_outage(road: Road, broker: Redis) -> None:
    """Cuts the beats off from the broker for a while. They must go on afterwards."""
    road.cut()
    time.sleep(OUTAGE)  # the outage itself
    road.open()
    wanted = len(messages(broker.url())) + 3 * ENTRIES
    wait_until(lambda: len(messages(broker.url())) >= wanted, PATIENCE, "runs after the outage")


def start_and_end(beats: Sequence[Process], times: int, client: KazooClient) -> int:
    """Ends each beat at a random instant of its life: while Python starts, before it connects, as
    master. Returns the exit status."""
    began = ignored = 0
    while began < times:
        for beat in beats:
            beat.start()
        begun = time.monotonic()
        ends = {beat: random.uniform(0, 2 if random.random() < 0.8 else 5) for beat in beats}
        sent = {}
        for beat in sorted(beats, key=lambda beat: ends[beat]):
            time.sleep(max(0.0, begun + ends[beat] - time.monotonic()))  # the random instant
            sent[beat] = random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
            beat.send(sent[beat])
        for beat in beats:
            ignored += _end(beat, sent[beat])
        began += len(beats)
        print(f"{began} starts", end="\r", flush=True)
    time.sleep(program._LASTS + 1)  # how long guards may take
    processes = [pid for pid, parent in guards().items() if parent not in _strangers()]
    znodes = [name for name in ("master", "members") if _is_left(client, name)]
    print(
        f"{began} starts, {ignored} of which Python ignored the SIGINT; "
        f"left behind: {processes or 'no'} processes, {znodes or 'no'} znodes"
    )
    return 1 if processes or znodes else 0


def _end(beat: Process, sent: signal.Signals) -> bool:
    """Waits for the end of a beat. Returns True if it needed a second signal: Python drops a
    KeyboardInterrupt that is raised in a callback of its import locks, and logs that."""
    try:
        beat.wait(PATIENCE)
    except TimeoutError as exc:
        try:
            beat.wait_for_log(_IGNORED, 0)
        except TimeoutError:
            raise TimeoutError(f"{sent.name} did not end it: {exc}") from None
        beat.send(signal.SIGTERM)
        beat.wait(PATIENCE)
        return True
    return False


def _strangers() -> set[int]:
    """Returns parents of guards that do not belong to this program: living beats of other tests."""
    return {parent for parent in guards().values() if parent > 1 and _is_beat(parent)}


def _is_beat(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"beat" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _is_left(client: KazooClient, name: str) -> bool:
    found = client.exists(f"{ROOT}/{name}")
    return found is not None and (name == "master" or found.numChildren > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--times", type=int, default=200)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--pause", action="store_true")
    kind.add_argument("--outage", action="store_true")
    kind.add_argument("--starts", action="store_true")
    kind.add_argument("--burst", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
        zookeeper = stack.enter_context(ZooKeeper(folder, tick_time=200)).start()
        broker = stack.enter_context(Redis(folder)).start()
        road = stack.enter_context(Road(broker.port))
        beats = {}
        for name in ("one", "two", "three"):
            conf: dict[str, object] = {
                "broker_url": f"redis://{road.hosts}/0",
                "zk_beat_hosts": zookeeper.hosts,
                "zk_beat_root": ROOT,
                "zk_beat_id": name,
                "zk_beat_session_timeout": SESSION_TIMEOUT,
            }
            app, env = "tests.acceptance.app", {}
            if options.burst:
                app, env = "tests.chaos.burst_app", {"BURST": f"{BURST},{APART}"}
            else:
                conf["beat_schedule"] = {
                    f"e{n}": {"task": f"e{n}", "schedule": 1.0} for n in range(ENTRIES)
                }
            beat = celery_beat(folder, name, app, env={"CONF": json.dumps(conf), **env})
            beats[name] = stack.enter_context(beat)
        client = KazooClient(zookeeper.hosts)
        client.start(PATIENCE)
        stack.callback(client.stop)

        if options.starts:
            return start_and_end([*beats.values()], options.times, client)
        for beat in beats.values():
            beat.start()
        epoch, history = 0, []
        for turn in range(1, options.times + 1):
            record = next_master(client, epoch)
            epoch = record.epoch
            beat = beats[record.id]
            beat.wait_for_log("Sending due task", PATIENCE, since=0)
            if options.burst:
                wait_for_burst()
                history += take(broker)
            else:
                time.sleep(random.uniform(0, 2))  # the random instant
            if options.outage:
                suffer_outage(road, broker)
                epoch -= 1  # the same master may go on
            elif options.pause:
                beat.pause()
                time.sleep(3 * SESSION_TIMEOUT)  # the pause itself
                beat.resume()
            else:
                beat.kill()
                beat.start()
            print(f"{turn}: {record.id}, epoch {epoch}", end="\r", flush=True)
        last = next_master(client, epoch)
        time.sleep(2 * APART if options.burst else 2 * SESSION_TIMEOUT)  # some more runs
        for beat in beats.values():
            beat.terminate(PATIENCE)
        history += take(broker)
        # A stop may fall between the last look at the clock and the sending. Then one message is
        # late, of a run that its successor repeats with the same task id (docs/guarantees.md).
        repeats = check(history, most_late=options.times if options.pause else 0)
        print(
            f"{options.times} faults, {last.epoch} masters, {len(history)} messages: 0 lost, "
            f"{len(repeats)} repeated with the same task id, {len(late(history))} of them late"
        )
        return 0


if __name__ == "__main__":
    sys.exit(main())
