"""Simulated runs, one a seed. Ends with status 1 at the first that violates an invariant, and says
which of its faults it takes.

    python -m tests.simulation 0:10000           many
    python -m tests.simulation 4711 --log        one, with what its beats log
    python -m tests.simulation 4711 --only 3,7   one, with two of its faults
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from .mutations import MUTATIONS, install


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("seeds", help="one, or FIRST:END")
    parser.add_argument("--steps", type=int, default=1500, help="of each run, until all is healed")
    parser.add_argument("--only", help="numbers of the faults that happen")
    parser.add_argument("--mutate", choices=MUTATIONS, help="break the package first")
    parser.add_argument("--scenario", help="what all runs have: see scenario.py, KINDS")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="stop at once")
    parser.add_argument("--log", action="store_true", help="show faults, and what the beats log")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Else the order of a set of texts would be another in each process.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    if options.mutate:
        install(options.mutate)
    from . import scenario
    from .driver import simulate

    if options.scenario not in (None, *scenario.KINDS):
        parser.error(f"--scenario: one of {', '.join(scenario.KINDS)}")
    scenario.CHOSEN = options.scenario

    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    only = None if options.only is None else {int(n) for n in options.only.split(",") if n}
    return simulate(seeds, options.steps, only, log=options.log, shrink=options.shrink)


if __name__ == "__main__":
    sys.exit(main())
