"""Imports the package with one of the changes in ``mutations.diff``."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "celery_zk_beat"


@dataclass(frozen=True)
class Edit:
    """In `module`, `new` lines in the place of the `old` ones, whatever their indentation."""

    module: str
    old: list[str]
    new: list[str]

    @property
    def full_name(self) -> str:
        """Of the package, or of the simulation itself."""
        return self.module if self.module.startswith("tests.") else f"{PACKAGE}.{self.module}"

    def apply(self, source: str) -> str:
        """
        Raises:
            ImportError: the old lines are not there, or not once.
        """
        lines = source.splitlines()
        size = len(self.old)
        found = [
            at
            for at in range(len(lines) - size + 1)
            if textwrap.dedent("\n".join(lines[at : at + size])).splitlines() == self.old
        ]
        if len(found) != 1:
            raise ImportError(f"{self.module} holds {len(found)} times:\n" + "\n".join(self.old))
        (at,) = found
        indentation = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        lines[at : at + size] = [indentation + line for line in self.new]
        return "\n".join(lines)


#: What all runs that look for a mutation have, where that finds it sooner.
SCENARIOS: dict[str, str] = {}
#: The run that found a mutation, where that is far from the first: it may well find it again.
FOUND: dict[str, list[str]] = {}


def _read() -> dict[str, list[Edit]]:
    mutations: dict[str, list[Edit]] = {}
    edits: list[Edit] = []
    for line in Path(__file__).with_suffix(".diff").read_text().splitlines():
        if line.startswith("== "):
            name = line[3:]
            edits = mutations[name] = []
        elif line.startswith("% "):
            SCENARIOS[name] = line[2:]
        elif line.startswith("# "):
            FOUND[name] = [line[2:]]
        elif line.startswith("@@ "):
            edits.append(Edit(line[3:], [], []))
        elif line.startswith("-"):
            edits[-1].old.append(line[1:])
        elif line.startswith("+"):
            edits[-1].new.append(line[1:])
    return mutations


MUTATIONS = _read()


def install(name: str) -> None:
    """Has the package, which must not be imported yet, be imported with a mutation."""
    assert not any(module.startswith(PACKAGE) for module in sys.modules)
    sys.meta_path.insert(0, _Finder(MUTATIONS[name]))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Any:
        edits = [edit for edit in self._edits if fullname == edit.full_name]
        if not edits:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, edits)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def path_stats(self, path: str) -> Any:
        raise OSError  # so that no compiled file is looked at or written

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path).decode()
        for edit in self._edits:
            source = edit.apply(source)
        return source.encode()
