"""Many runs; and of one that fails, the faults that it takes."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Collection, Iterable

from .run import Run, simulation

#: Seconds between two lines that say how far it is.
_REPORT_EVERY = 30.0


def simulate(
    seeds: Iterable[int],
    steps: int,
    only: Collection[int] | None = None,
    *,
    log: bool = False,
    shrink: bool = True,
) -> int:
    """Runs each seed, until one violates an invariant. Returns the status to exit with."""
    begun = reported = time.monotonic()
    runs = total = seconds = faults = masters = messages = 0
    with simulation():
        for seed in seeds:
            run = _run(seed, steps, only, log)
            runs += 1
            total += run.world.steps
            seconds += round(run.world.now)
            faults += len(run.happened)
            masters += run.checker.epoch
            messages += len(run.broker.sent)
            if run.checker.violation:
                print(f"seed {seed}: {run.checker.violation}")
                if shrink and only is None:
                    _shrink(run, steps)
                return 1
            if time.monotonic() - reported > _REPORT_EVERY:
                reported = time.monotonic()
                print(f"... {runs} runs", file=sys.stderr)
    print(
        f"{runs} runs, {total} steps, {seconds} simulated seconds, {faults} faults, "
        f"{masters} masters, {messages} messages: no violation, {time.monotonic() - begun:.0f} s"
    )
    return 0


def _run(seed: int, steps: int, only: Collection[int] | None, log: bool = False) -> Run:
    logging.disable(logging.NOTSET if log else logging.CRITICAL)
    run = Run(seed, only)
    run.go(steps)
    run.end()
    return run


def _shrink(run: Run, steps: int) -> None:
    """Leaves out one fault after another, as long as some violation remains."""
    needed = set(run.happened)
    for number in sorted(needed, reverse=True):
        if _run(run.seed, steps, needed - {number}).checker.violation:
            needed.discard(number)
    shrunk = _run(run.seed, steps, needed)
    print(f"with {len(needed)} of its {len(run.happened)} faults: {shrunk.checker.violation}")
    for number in sorted(needed):
        print(f"  {number}: {shrunk.faults[number]}")
    numbers = ",".join(map(str, sorted(needed))) or "''"
    python = os.path.relpath(sys.executable)
    args = f"{run.seed} --steps {steps} --only {numbers} --log"
    print(f"again: {python} -m tests.simulation {args}")
