"""The names of entries as text. Celery takes anything for a name, such as a number; ZooKeeper, the
log and the commands need text."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any


def as_text(name: object) -> str:
    """A name as it is shown. Raises whatever its class does."""
    if type(name) is str:
        return name
    # Of a class derived from str, as of an enum, its value: what str() shows is not the same in all
    # releases of Python.
    return str.__str__(name) if isinstance(name, str) else str(name)


class NamedByText(MutableMapping[str, Any]):
    """A schedule of which some names are no text, by their texts; its entries are looked up in it.

    Args:
        schedule: name to entry.

    Attributes:
        faults: one line for each name that cannot be its own text.
    """

    def __init__(self, schedule: MutableMapping[Any, Any]) -> None:
        self._schedule = schedule
        self._keys: dict[str, Any] = {}
        self.faults: list[str] = []
        # Those that are text first: they keep their names whatever else there is.
        names = list(schedule)
        for name in sorted(names, key=lambda name: not isinstance(name, str)):
            self._take(name)
        self._texts = {name: text for text, name in self._keys.items()}

    def _take(self, name: Any) -> None:
        kind = type(name).__qualname__
        try:
            text = as_text(name)
        except Exception as exc:
            self.faults.append(
                f"an entry is left out: its name, of type {kind}, has no text: {exc}"
            )
            return
        if text in self._keys:
            other, text = text, f"{text} ({kind})"
            if text in self._keys:
                self.faults.append(f"{other}: two entries have this name, one of them is left out")
                return
            self.faults.append(f"{other}: two entries have this name: one of them is {text!r} here")
        self._keys[text] = name

    def text_of(self, name: Any) -> str:
        """The text that stands for a name of the schedule."""
        return self._texts.get(name) or as_text(name)

    def __getitem__(self, text: str) -> Any:
        return self._schedule[self._keys[text]]

    def __setitem__(self, text: str, entry: Any) -> None:
        self._schedule[self._keys.get(text, text)] = entry

    def __delitem__(self, text: str) -> None:
        del self._schedule[self._keys[text]]

    def __iter__(self) -> Iterator[str]:
        return (text for text, name in self._keys.items() if name in self._schedule)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def by_text(schedule: MutableMapping[Any, Any]) -> MutableMapping[str, Any]:
    """The schedule itself, where all of its names are text."""
    return NamedByText(schedule) if any(type(name) is not str for name in schedule) else schedule
