"""SIGKILL of the master at each step from claim to confirmation, and the invariants after it."""

from __future__ import annotations

import pytest

from tests.conftest import PATIENCE
from tests.history import check

from .conftest import Site

ENTRIES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("step", "repeats"),
    [
        ("claim sent", 0),
        ("claim acknowledged", 0),
        ("first made", len(ENTRIES)),
        ("published", len(ENTRIES)),
        ("before the last confirm", len(ENTRIES)),
    ],
)
def test_killed(site: Site, monkeypatch: pytest.MonkeyPatch, step: str, repeats: int) -> None:
    """[I1] [I2] [I3] [I5] Its successor loses no run and makes none twice, except with the same
    task id those that were published and not yet known to be."""
    site.schedule(**dict.fromkeys(ENTRIES, 0.5))
    monkeypatch.setenv("FAULT", step)
    one = site.beat("one", "-S", "tests.acceptance.faulty:Faulty")
    one.wait_for_log("elected: one is master", PATIENCE)
    site.beat("two")
    assert one.wait(PATIENCE) == -9
    history = site.wait(
        lambda history: {m.task for m in history if m.run >= 3} == set(ENTRIES), "third runs"
    )
    repeated = check(history)
    assert len(repeated) <= repeats
    assert all(message.run == 2 and message.master == "two" for message in repeated)
