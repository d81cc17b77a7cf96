"""The simulation's mutations can be made. Whether it finds them takes longer to tell."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS


@pytest.mark.parametrize("name", MUTATIONS)
def test_its_lines_are_there_once(name: str) -> None:
    for edit in MUTATIONS[name]:
        found = importlib.util.find_spec(edit.full_name)
        assert found is not None
        assert found.origin is not None
        edit.apply(Path(found.origin).read_text())
