"""A campaign of faults against real processes, and the verdict on it.

    python -m tests.chaos --seed 7 --minutes 5

The same seed makes the same faults at the same times; what they meet differs from run to run. The
history, a picture of it and the summary are left in the folder that is named at the end. Exit
status 1 with any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from . import nemesis
from .checker import check, summary
from .contenders import OURS, Contender
from .plot import plot
from .record import Record, read
from .site import (
    ENTRIES,
    NAMES,
    PUBLISH_DEADLINE,
    SESSION_TIMEOUT,
    Site,
    build,
    wait_for_sender,
)
from .watch import watching


def campaign(folder: Path, contender: Contender, seed: int, minutes: float) -> Path:
    """Puts a contender to the test. Returns the history, in `folder`."""
    path = folder / "history.jsonl"
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(contextlib.closing(Record(path)))
        record.write(
            "site",
            contender=contender.name,
            seed=seed,
            minutes=minutes,
            entries=ENTRIES,
            beats=NAMES,
            session_timeout=SESSION_TIMEOUT,
            publish_deadline=PUBLISH_DEADLINE,
            patience=contender.patience,
            versions={name: version(name) for name in ("celery", "kombu", "kazoo", "redis")},
        )
        # In memory where that can be: a disk that others keep busy would be a fault of its own.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        directory = tempfile.TemporaryDirectory(prefix="chaos-", dir=memory)
        scratch = Path(stack.enter_context(directory))
        stack.callback(_keep_logs, scratch, folder)
        site = build(stack, scratch, contender, record)
        verbs = nemesis.verbs(site)
        faults = nemesis.plan(seed, 60 * minutes, verbs)
        with watching(site):
            if wait_for_sender(site, contender.patience) is None:
                raise RuntimeError("no beat sent anything before the first fault")
            nemesis.run(site, faults, verbs, 60 * minutes)
            record.write("healed")
            _take_turns(site)
        record.write("end")
    return path


def _keep_logs(scratch: Path, folder: Path) -> None:
    for log in scratch.glob("*.log"):
        shutil.copy(log, folder)


def _take_turns(site: Site) -> None:
    """Each beat is to be master once: kills the one that is, until none is left."""
    with contextlib.ExitStack() as held:
        for name in site.beats:
            held.enter_context(site.lock(f"process {name}"))  # or they would be started again
        sender = None
        for _ in site.beats:
            sender = wait_for_sender(site, site.contender.patience)
            site.record.write("turn", beat=sender)
            if sender is not None:
                site.beats[sender].process.kill()
        # Whoever comes back publishes what the last one could not.
        last = site.beats[sender or NAMES[0]]
        if not last.process.alive:
            site.start_beat(last)
        wait_for_sender(site, site.contender.patience)
        for beat in site.beats.values():
            if beat.process.alive:
                beat.process.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, help="for what is left; default: a new one")
    options = parser.parse_args()
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # our own road to ZooKeeper ends at will
    print(f"seed {options.seed}, {options.minutes:g} minutes; to do it again:")
    print(f"    python -m tests.chaos --seed {options.seed} --minutes {options.minutes:g}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-history-"))
    folder.mkdir(parents=True, exist_ok=True)
    history = campaign(folder, OURS, options.seed, options.minutes)
    events = read(history)
    (folder / "timeline.svg").write_text(plot(events))
    verdict = check(events)
    text = summary(verdict)
    (folder / "summary.txt").write_text(text)
    print(text)
    print(f"history, picture and logs of the beats: {folder}")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
