"""Kills or stops the master again and again, and then judges what the broker got.

    python -m tests.soak.kills --times 200              SIGKILL at random instants
    python -m tests.soak.kills --times 20 --pause       SIGSTOP for three session time-outs

Three beats, fifty entries of one second, a session time-out of one second. Exit status 1 if a run
was lost, or made twice under another task id, or if a master that was stopped sent anything after
its successor had claimed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from kazoo.client import KazooClient

from celery_zk_beat.znodes import MasterRecord
from example_project.servers import Redis, ZooKeeper, celery_beat, wait_until
from tests.history import check, messages

ENTRIES = 50
SESSION_TIMEOUT = 1.0
ROOT = "/soak"
PATIENCE = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--pause", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        zookeeper = stack.enter_context(ZooKeeper(folder, tick_time=200)).start()
        broker = stack.enter_context(Redis(folder)).start()
        beats = {}
        for name in ("one", "two", "three"):
            conf = {
                "broker_url": broker.url(),
                "zk_beat_hosts": zookeeper.hosts,
                "zk_beat_root": ROOT,
                "zk_beat_id": name,
                "zk_beat_session_timeout": SESSION_TIMEOUT,
                "beat_schedule": {
                    f"e{n}": {"task": f"e{n}", "schedule": 1.0} for n in range(ENTRIES)
                },
            }
            beat = celery_beat(folder, name, "tests.acceptance.app", env={"CONF": json.dumps(conf)})
            beats[name] = stack.enter_context(beat).start()
        client = KazooClient(zookeeper.hosts)
        client.start(PATIENCE)
        stack.callback(client.stop)

        def master(after: int) -> MasterRecord | None:
            """The master, if it is of a later epoch."""
            if not client.exists(f"{ROOT}/master"):
                return None
            with contextlib.suppress(Exception):
                record = MasterRecord.decode(ROOT, client.get(f"{ROOT}/master")[0])
                return record if record.epoch > after else None
            return None

        epoch = 0
        for turn in range(1, options.times + 1):
            record = wait_until(lambda after=epoch: master(after), PATIENCE, "the next master")
            assert record is not None
            epoch = record.epoch
            beat = beats[record.id]
            beat.wait_for_log("Sending due task", PATIENCE, since=0)
            time.sleep(random.uniform(0, 2))  # the random instant
            if options.pause:
                beat.pause()
                time.sleep(3 * SESSION_TIMEOUT)  # the pause itself
                beat.resume()
            else:
                beat.send(signal.SIGKILL)
                beat.wait(PATIENCE)
                beat.start()
            print(f"{turn}: {record.id}, epoch {epoch}", end="\r", flush=True)
        wait_until(lambda: master(epoch), PATIENCE, "the last master")
        time.sleep(2 * SESSION_TIMEOUT)  # some more runs
        for beat in beats.values():
            beat.terminate(PATIENCE)
        history = messages(broker.url())
        repeats = check(history)
        late = sum(a.epoch > b.epoch for a, b in zip(history, history[1:]))
        print(
            f"{options.times} faults, {epoch} masters, {len(history)} messages: 0 lost, "
            f"{len(repeats)} repeated with the same task id, {late} after a successor's"
        )
        return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
