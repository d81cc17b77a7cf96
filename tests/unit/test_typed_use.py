"""tests/typed_use.py, which mypy reads, leaves nothing of the public API out."""

from __future__ import annotations

import pytest

import celery_zk_beat
from celery_zk_beat import schedules, signals, testing
from example_project.processes import REPOSITORY

USED = (REPOSITORY / "tests" / "typed_use.py").read_text()
#: What docs/api.md names of modules that list no names of their own.
OF_SCHEDULES = ["cron", "every"]


@pytest.mark.parametrize(
    "name",
    [*celery_zk_beat.__all__, *signals.__all__, *testing.__all__, *OF_SCHEDULES],
)
def test_it_is_used(name: str) -> None:
    """Imported, and then used."""
    assert USED.count(name) >= (1 if name == "__version__" else 2)


def test_schedules_has_no_list_of_names() -> None:
    """Else the list above is to be its."""
    assert not hasattr(schedules, "__all__")
