"""Half a minute of faults on real processes. It uses every part of the harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import campaign
from tests.chaos.checker import check, summary
from tests.chaos.plot import plot
from tests.chaos.record import read

SEED = 5
MINUTES = 0.5


@pytest.mark.timeout(300)
def test_campaign(tmp_path: Path) -> None:
    """[I1-I6] Whatever these faults meet, no run is lost or made twice under another id, no two
    masters overlap, and every beat is master again afterwards."""
    history = read(campaign(tmp_path, "ours", SEED, MINUTES))
    verdict = check(history)
    assert verdict.good, summary(verdict)
    assert len(verdict.faults) >= 5
    assert plot(history).count('class="fault"') >= len(verdict.faults)
