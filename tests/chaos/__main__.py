"""A campaign of faults against real processes, and the verdict on it.

    python -m tests.chaos --seed 7 --minutes 5

The same seed makes the same faults at the same times, but the processes run differently each time.
The end of the output names the folder with the history, a picture of it and the summary. The exit
status is 1 if there is any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from . import nemesis
from .checker import check, summary
from .contenders import CONTENDERS
from .plot import plot
from .record import Record, read
from .site import ENTRIES, NAMES, Site, build, wait_for_sender
from .times import judge, table
from .watch import watching


def campaign(folder: Path, name: str, seed: int, minutes: float, *, common: bool = False) -> Path:
    """Runs a campaign against a contender, with all faults or only with those `common` to all
    contenders. Returns the history, in `folder`."""
    contender = CONTENDERS[name]
    path = folder / "history.jsonl"
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(contextlib.closing(Record(path)))
        record.write(
            "site",
            contender=name,
            seed=seed,
            minutes=minutes,
            entries=ENTRIES,
            beats=NAMES,
            session_timeout=contender.session_timeout,
            patience=contender.patience,
            versions={package: version(package) for package in contender.packages},
        )
        # In memory if possible: a disk that other programs keep busy would be a fault by itself.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        directory = tempfile.TemporaryDirectory(prefix="chaos-", dir=memory)
        scratch = Path(stack.enter_context(directory))
        stack.callback(_keep_logs, scratch, folder)
        site = build(stack, scratch, contender, record)
        verbs = nemesis.verbs(site, common)
        faults = nemesis.plan(seed, 60 * minutes, verbs)
        with watching(site) as messages:
            if wait_for_sender(site, contender.patience) is None:
                raise RuntimeError("no beat sent anything before the first fault")
            nemesis.run(site, faults, verbs, 60 * minutes)
            record.write("healed")
            _take_turns(site)
            for beat in site.beats.values():
                # Held to the very end: otherwise it would be started again.
                stack.enter_context(site.lock(f"process {beat.name}"))
                if beat.process.alive:
                    beat.process.terminate()
            messages.drain()
        record.write("end")
    return path


def _keep_logs(scratch: Path, folder: Path) -> None:
    for log in scratch.glob("*.log"):
        shutil.copy(log, folder)


def _take_turns(site: Site) -> None:
    """Makes each beat master once: kills the master until no beat is left."""
    with contextlib.ExitStack() as held:
        killed = []
        for _ in site.beats:
            sender = wait_for_sender(site, site.contender.patience)
            site.record.write("turn", beat=sender)
            if sender is not None:
                # Held: otherwise it would be started again.
                held.enter_context(site.lock(f"process {sender}"))
                site.beats[sender].process.kill()
                killed.append(sender)
        # A beat that comes back publishes what the last one could not.
        for name in killed:
            site.start_beat(site.beats[name])
        if killed:
            wait_for_sender(site, site.contender.patience)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--contender", choices=CONTENDERS, default="ours")
    parser.add_argument(
        "--common", action="store_true", help="only faults that all contenders can meet"
    )
    parser.add_argument("--folder", type=Path, help="folder for the results; default: a new one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order, and leaves nothing behind
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # faults close our own connection, too
    again = f"--seed {options.seed} --minutes {options.minutes:g} --contender {options.contender}"
    again += " --common" if options.common else ""
    print(f"to do it again: python -m tests.chaos {again}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-history-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = campaign(folder, options.contender, options.seed, options.minutes, common=options.common)
    history = read(path)
    (folder / "timeline.svg").write_text(plot(history))
    text, good = table([judge(history)]), True
    if CONTENDERS[options.contender].session_timeout is not None:
        verdict = check(history)
        text, good = summary(verdict) + text, verdict.good
    (folder / "summary.txt").write_text(text)
    print(text)
    print(f"history, picture and logs of the beats: {folder}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
