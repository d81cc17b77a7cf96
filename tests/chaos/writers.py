"""Writers change the same live entries, while ZooKeeper's leader and the writers themselves are
killed. Then this judges what is left.

    python -m tests.chaos.writers                     eight writers for a minute
    python -m tests.chaos.writers --seconds 10 --writers 4

Some entries belong to all writers: each change adds its id to the arguments, if the entry still has
the version that was read. Some are pairs, and one transaction changes both. And each writer adds,
changes and removes one entry of its own. The exit status is 0 only if every acknowledged change is
there, once, if no change is half there, and if nothing is there that nobody asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from celery_zk_beat import ConnectTimeout, Entries, LiveEntry, Uncertain, VersionConflict
from celery_zk_beat.live.definitions import Content, Damaged, Found, Timing
from example_project.processes import REPOSITORY
from example_project.servers import Ensemble

ROOT = "/writers"
TASK = "shop.report"
#: How many entries, and pairs, all writers share.
SHARED, PAIRS = 6, 3
#: Seconds.
SESSION_TIMEOUT = 4.0
#: The most ids in one entry. Then the writers use the next entry.
MOST_IDS = 400


def entries_at(hosts: str, by: str) -> Entries:
    app = Celery("writers", set_as_current=False)
    app.conf.update(
        zk_beat_hosts=hosts,
        zk_beat_root=ROOT,
        zk_beat_session_timeout=SESSION_TIMEOUT,
        zk_beat_entries_tasks=[TASK],
    )
    return Entries(app, timeout=20.0, by=by)


# A writer -----------------------------------------------------------------------------------------


class Writer:
    """Prints what it asks for, before, and what was acknowledged, after: each as a line of JSON."""

    def __init__(self, entries: Entries, name: str) -> None:
        self._entries, self._name = entries, name
        self._random = random.Random(name)

    def work(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(ConnectTimeout, Uncertain, VersionConflict):
                self._random.choice([self.append, self.append, self.both, self.own])()

    def append(self) -> None:
        """Adds its id to an entry that all change, if it still has the version that was read."""
        entry = f"shared-{self._random.randrange(SHARED)}"
        found, entry = self._room(entry)
        ids = [] if found is None else found.args
        id = self._begin([entry])
        self._entries.put(
            entry,
            task=TASK,
            schedule=3600,
            args=[*ids, id],
            if_version=0 if found is None else found.version,
        )
        self._done(id)

    def both(self) -> None:
        """Adds its id to both of a pair, or to none."""
        pair = self._random.randrange(PAIRS)
        _, left = self._room(f"left-{pair}")
        right = left.replace("left", "right")
        id = self._begin([left, right])

        def edit(found: Found) -> Content:
            assert not isinstance(found, Damaged)
            ids = [] if found is None else list(found.content.args)
            return Content(TASK, Timing(every=3600.0), args=[*ids, id])

        self._entries._with(
            lambda link, until: link.changer.change({left: edit, right: edit}, self._name, until)
        )
        self._done(id)

    def own(self) -> None:
        """Adds, changes or removes its own entry."""
        entry = f"own-{self._name}"
        id = uuid.uuid4().hex[:6]
        if self._random.random() < 0.3:
            self._tell(asked=id, own=entry, args=None)
            self._entries.remove(entry)
        else:
            self._tell(asked=id, own=entry, args=[id])
            self._entries.put(entry, task=TASK, schedule=3600, args=[id])
        self._done(id)

    def _room(self, entry: str) -> tuple[LiveEntry | None, str]:
        generation = 0
        while True:
            name = f"{entry}.{generation}"
            found = self._entries.get(name)
            if found is None or len(found.args) < MOST_IDS:
                return found, name
            generation += 1

    def _begin(self, entries: list[str]) -> str:
        id = uuid.uuid4().hex[:6]
        self._tell(asked=id, entries=entries)
        return id

    def _done(self, id: str) -> None:
        self._tell(done=id)

    def _tell(self, **told: Any) -> None:
        print(json.dumps(told), flush=True)


# The judge ----------------------------------------------------------------------------------------


@dataclass
class Told:
    """What the writers said: by id, which entries they asked to change, and what was acknowledged;
    of each writer's own entry, what it may be."""

    asked: dict[str, list[str]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    own: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Told:
        told = cls()
        for file in sorted(folder.glob("*.told")):
            for line in file.read_text().splitlines():
                told._add(json.loads(line))
        return told

    def _add(self, line: Mapping[str, Any]) -> None:
        if "own" in line:
            # The last request may be in force, or what was there before it, until it is
            # acknowledged.
            may_be = self.own.setdefault(line["own"], [None])
            may_be.append(line["args"])
            self.asked[line["asked"]] = [line["own"]]
        elif "asked" in line:
            self.asked[line["asked"]] = line["entries"]
        else:
            self.done.add(line["done"])
            (entry, *_) = self.asked[line["done"]]
            if entry in self.own:
                self.own[entry] = self.own[entry][-1:]


def judge(told: Told, found: Mapping[str, LiveEntry]) -> list[str]:
    """Returns what is wrong, a line each."""
    faults = []
    for name, may_be in told.own.items():
        is_there = found[name].args if name in found else None
        if is_there not in may_be:
            faults.append(f"{name}: is {is_there}, expected one of {may_be}")
    ids = {name: list(entry.args) for name, entry in found.items() if name not in told.own}
    for name, there in ids.items():
        faults += [f"{name}: {id} is there {n} times" for id, n in Counter(there).items() if n > 1]
        faults += [f"{name}: nobody asked for {id}" for id in there if id not in told.asked]
        if found[name].version != len(there):
            faults.append(f"{name}: version {found[name].version} of {len(there)} changes")
        twin = name.replace("left", "right")
        if twin != name and ids.get(twin) != there:
            faults.append(f"{name}: and {twin} differ")
    for id, entries in told.asked.items():
        if entries[0] in told.own:
            continue
        if id in told.done:
            faults += [f"{name}: {id} is lost" for name in entries if id not in ids.get(name, [])]
    return faults


# The whole ----------------------------------------------------------------------------------------


def start_writer(hosts: str, name: str, seconds: float, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.chaos.writers", "--writer", name, "--hosts", hosts]
    with open(folder / f"{name}.told", "wb") as out, open(folder / f"{name}.err", "wb") as err:
        return subprocess.Popen(
            [*command, "--seconds", f"{seconds:g}"], cwd=REPOSITORY, stdout=out, stderr=err
        )


@contextlib.contextmanager
def ended(writers: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for writer in writers.values():
            if writer.poll() is None:
                writer.kill()
            writer.wait()


def campaign(folder: Path, seconds: float, count: int, pause: float, seed: int) -> int:
    """Prints what happened and what is wrong. Returns the exit status."""
    rng = random.Random(seed)
    writers: dict[str, subprocess.Popen[bytes]] = {}
    kills = Counter[str]()
    with Ensemble(folder, tick_time=200) as ensemble, ended(writers):
        ensemble.start()
        begun = time.monotonic()
        for number in range(count):
            writers[f"w{number}"] = start_writer(ensemble.hosts, f"w{number}", seconds, folder)
        while (left := begun + seconds - time.monotonic()) > pause:
            time.sleep(pause)
            if rng.random() < 0.6:
                victim = rng.choice([ensemble.leader(), *ensemble.servers])
                victim.kill()
                time.sleep(rng.uniform(0, 1))
                victim.start()
                kills["servers"] += 1
            else:
                name = rng.choice([name for name, each in writers.items() if each.poll() is None])
                writers[name].send_signal(signal.SIGKILL)
                again = f"{name}x"
                writers[again] = start_writer(ensemble.hosts, again, left - pause, folder)
                kills["writers"] += 1
        for writer in writers.values():
            writer.wait(60)
        with entries_at(ensemble.hosts, "judge") as entries:
            found, damaged = entries.read()
    told = Told.of(folder)
    faults = judge(told, {entry.name: entry for entry in found})
    faults += [f"{name}: {why}" for name, why in damaged.items()]
    for name, writer in writers.items():
        if writer.returncode not in (0, -signal.SIGKILL):
            errors = (folder / f"{name}.err").read_text().splitlines()
            faults.append(f"writer {name} ended with {writer.returncode}: {errors[-1:]}")
    if not told.done:
        faults.append("nothing was acknowledged")
    lines = [
        f"{count} writers, {seconds:g} s: {len(told.asked)} changes were tried, "
        f"{len(told.done)} acknowledged; killed: {kills['servers']} servers of ZooKeeper, "
        f"{kills['writers']} writers: {len(faults)} faults"
    ]
    print("\n".join([*lines, *faults[:20]]))
    return 1 if faults else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", help=argparse.SUPPRESS)
    parser.add_argument("--hosts", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.writer:
        with entries_at(options.hosts, options.writer) as entries:
            Writer(entries, options.writer).work(options.seconds)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return campaign(Path(folder), options.seconds, options.writers, options.pause, options.seed)


if __name__ == "__main__":
    sys.exit(main())
