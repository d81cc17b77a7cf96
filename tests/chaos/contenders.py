"""The schedulers that are put to the test, ours among them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _no_conf(url: str, folder: Path, name: str) -> dict[str, Any]:
    return {}


def _no_env(folder: Path) -> dict[str, str]:
    return {}


def _no_args(folder: Path, name: str) -> list[str]:
    return []


@dataclass(frozen=True)
class Contender:
    """`conf` is what it needs besides the broker and the schedule, of a beat by its name;
    `patience` the seconds within which it should have replaced a dead master."""

    name: str
    scheduler: str
    zookeeper: bool = False
    patience: float = 60.0
    conf: Callable[[str, Path, str], dict[str, Any]] = _no_conf
    env: Callable[[Path], Mapping[str, str]] = _no_env
    args: Callable[[Path, str], list[str]] = _no_args
    python: Path = Path(sys.executable)


OURS = Contender("ours", "zookeeper", zookeeper=True)
