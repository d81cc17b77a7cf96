"""The invariants hold in simulated runs, and the simulation would find it if they did not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from kombu import Producer

from example_project.processes import REPOSITORY

from .mutations import FOUND, MUTATIONS, SCENARIOS

pytestmark = pytest.mark.timeout(600)

#: `make simulate` runs many more.
RUNS = 200
#: So many are one test, so that workers share them.
AT_A_TIME = 50
#: Where they do, of which kombu knows since 5.7.
TOGETHER = "no look at the clock before messages leave together"
#: Within which each mutation is found; most are within the first ten.
RUNS_TO_FIND = 1200


def simulate(*args: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, for it puts the clock and the threads of a whole program aside."""
    command = [sys.executable, "-m", "tests.simulation", *args]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("first", range(0, RUNS, AT_A_TIME))
def test_no_violation(first: int) -> None:
    done = simulate(f"{first}:{first + AT_A_TIME}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"{AT_A_TIME} runs, .*: no violation, \d+ s\n", done.stdout)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_found(mutation: str) -> None:
    if mutation == TOGETHER and not hasattr(Producer, "supports_batch_publish"):
        pytest.skip("kombu before 5.7")
    scenario = ["--scenario", SCENARIOS[mutation]] if mutation in SCENARIOS else []
    for seeds in (*FOUND.get(mutation, []), f"0:{RUNS_TO_FIND}"):
        done = simulate(seeds, "--no-shrink", "--mutate", mutation, *scenario)
        if done.returncode != 0:
            break
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.match(r"seed \d+: \d+\.\d+ s: I\d+: ", done.stdout), done.stdout + done.stderr
    assert "ended by itself" not in done.stdout, "a mutation that does not even run"


def test_a_seed_gives_the_same_run_again() -> None:
    one, two = (simulate("7", "--log", "--steps", "3000").stdout for _ in range(2))
    # But for the time that it took, and the id of its process.
    assert re.sub(r"\d+ s$|pid \d+", "", one) == re.sub(r"\d+ s$|pid \d+", "", two)
    assert one.count("Sending due task") > 10


def test_a_failing_run_is_shrunk() -> None:
    """To the faults that it takes; the command that is printed fails the same way."""
    mutation = "the outbox is not read on take-over"
    done = simulate("0:10", "--mutate", mutation)
    again = re.search(r"^again: \S+ -m tests.simulation (.*) --log$", done.stdout, re.M)
    assert again, done.stdout
    shrunk = re.search(r"^with \d+ of its \d+ faults: (.*)$", done.stdout, re.M)
    assert shrunk
    args = again[1].replace("''", "").split(" ")
    assert f": {shrunk[1]}\n" in simulate(*args, "--mutate", mutation).stdout
