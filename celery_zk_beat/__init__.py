"""Run as many ``celery beat`` processes as you like: ZooKeeper elects the one that dispatches.

The names here are the public ones; everything else may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ConnectTimeout,
    EntryError,
    RootError,
    SettingsError,
    TooLarge,
    Uncertain,
    UnsupportedEnvironment,
    VersionConflict,
    ZkBeatError,
)
from .version import __version__

if TYPE_CHECKING:
    from .election.public import MasterElection
    from .live.public import Entries, EntryChange, EntryVersion, LiveEntry
    from .outcomes.worker import ReportOutcomes
    from .schedulers import ZooKeeperScheduler

__all__ = [
    "ConnectTimeout",
    "Entries",
    "EntryChange",
    "EntryError",
    "EntryVersion",
    "LiveEntry",
    "MasterElection",
    "ReportOutcomes",
    "RootError",
    "SettingsError",
    "TooLarge",
    "Uncertain",
    "UnsupportedEnvironment",
    "VersionConflict",
    "ZkBeatError",
    "ZooKeeperScheduler",
    "__version__",
]

#: Imported on first use: an election needs no Celery, and Celery's own commands need neither.
_LARGE = {
    **dict.fromkeys(("Entries", "EntryChange", "EntryVersion", "LiveEntry"), ".live.public"),
    "MasterElection": ".election.public",
    "ReportOutcomes": ".outcomes.worker",
    "ZooKeeperScheduler": ".schedulers",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _LARGE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LARGE[name], __name__), name)
