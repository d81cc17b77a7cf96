"""The names of entries as text, the same in each process. Celery allows any object as a name, such
as a number. ZooKeeper, the log and the commands need text."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from . import clock
from .log import get_logger

logger = get_logger(__name__)

_SIGN = " at 0x"
_ADDRESS = re.compile(f"{_SIGN}[0-9a-fA-F]+")


def without_addresses(shown: str) -> str:
    """Removes the addresses of objects, which differ between processes, from a text that repr()
    made."""
    return _ADDRESS.sub("", shown) if _SIGN in shown else shown


def as_text(name: object) -> str:
    """Returns a name as we show it. Raises whatever its class raises."""
    if type(name) is str:
        return name
    # For a class derived from str, such as an enum, the value: what str() shows differs between
    # releases of Python.
    return str.__str__(name) if isinstance(name, str) else str(name)


def in_order(names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Orders changes of names, old to new, no two to the same new name. Each finds its new name
    free. Changes that form a ring come together."""
    left = dict(names)
    while left:
        chain = [next(iter(left))]
        while (new := left[chain[-1]]) in left and new != chain[0]:
            chain.append(new)
        if new == chain[0]:
            yield {old: left.pop(old) for old in chain}
        else:
            yield from ({old: left.pop(old)} for old in reversed(chain))


class NamedByText(MutableMapping[str, Any]):
    """A schedule with names that are not text, or show addresses. This maps texts to its entries.

    Args:
        schedule: entries by name.

    Attributes:
        faults: one line for each name that must be changed.
    """

    def __init__(self, schedule: MutableMapping[Any, Any]) -> None:
        self._schedule = schedule
        self._keys: dict[str, Any] = {}
        self.faults: list[str] = []
        for name in sorted(schedule, key=self._turn):
            self._take(name)
        self._texts = {name: text for text, name in self._keys.items()}

    def _turn(self, name: Any) -> tuple[bool, bool, str]:
        """Sorts names that are text first: they keep their names in any case. Sorts names that
        differ only in addresses in an order that does not depend on these."""
        with contextlib.suppress(Exception):
            if _SIGN in as_text(name):
                of = self._schedule[name]
                shown = repr((of.schedule, of.args, of.kwargs, of.options))
                return True, not isinstance(name, str), without_addresses(shown)
        return False, not isinstance(name, str), ""

    def _take(self, name: Any) -> None:
        kind = type(name).__qualname__
        try:
            shown = as_text(name)
        except Exception as exc:
            self.faults.append(f"an entry does not run: its name, a {kind}, has no text: {exc}")
            return
        text = wanted = without_addresses(shown)
        if wanted != shown:
            text = self._free(wanted)
            self.faults.append(
                f"{text}: an entry has this name here, because its own shows a memory address, "
                "which differs at each start; give it a name (add_periodic_task(..., name=...))"
            )
        elif wanted in self._keys:
            text = self._free(f"{wanted} ({kind})")
            self.faults.append(
                f"{wanted}: two entries have this name: one of them is {text!r} here"
            )
        self._keys[text] = name

    def _free(self, text: str) -> str:
        numbered = (f"{text} #{number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([text], numbered) if each not in self._keys)

    def text_of(self, name: Any) -> str:
        """Returns the text for a name of the schedule."""
        return self._texts.get(name) or as_text(name)

    def __getitem__(self, text: str) -> Any:
        return self._schedule[self._keys[text]]

    def __setitem__(self, text: str, entry: Any) -> None:
        self._schedule[self._keys.setdefault(text, text)] = entry

    def __delitem__(self, text: str) -> None:
        del self._schedule[self._keys[text]]

    def __iter__(self) -> Iterator[str]:
        return (text for text, name in self._keys.items() if name in self._schedule)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def by_text(schedule: MutableMapping[Any, Any]) -> MutableMapping[str, Any]:
    """Returns the schedule itself if all of its names are text and the same in each process."""
    # A list, because other threads may add to it.
    if any(type(name) is not str or _SIGN in name for name in list(schedule)):
        return NamedByText(schedule)
    return schedule


class Entries:
    """The entries of a scheduler, by names that are text. The ledger, the log and the commands use
    these names.

    Args:
        schedule: returns the scheduler's schedule as it is now.
        is_replaced: the schedule may be another object at each look, as with a database.
        tell: called with each entry and its name when the schedule is looked at.
    """

    def __init__(
        self,
        schedule: Callable[[], Any],
        is_replaced: bool,
        tell: Callable[[str, Any], None] | None = None,
    ) -> None:
        self._schedule, self._is_replaced, self._tell = schedule, is_replaced, tell
        #: The schedule when we last looked at it.
        self.known: Any = None
        self._by_text: MutableMapping[str, Any] = {}
        #: False if the schedule may have changed since we looked at it.
        self.is_current = False
        #: No entry was made earlier.
        self.made_at = clock.now()
        self._said: set[str] = set()

    def get(self) -> MutableMapping[str, Any]:
        """Returns all entries; the schedule itself if all of its names are text. It sees another
        schedule, and new names, only after :meth:`look_anew`."""
        if self.known is None or self._is_replaced:
            schedule = self._schedule()
            if self.known is not schedule:
                self.known, self._by_text = schedule, by_text(schedule)
                if self._tell is not None:
                    for name, entry in list(self._by_text.items()):
                        self._tell(name, entry)
        return self._by_text

    def put(self, name: str, entry: Any) -> None:
        """Puts an entry into the schedule, perhaps in place of another. Its name is text."""
        entries = self.get()
        if self._tell is not None:
            self._tell(name, entry)
        entries[name] = entry

    def text_of(self, name: Any) -> str:
        """Returns the name here of the entry that has `name` in the schedule."""
        entries = self.get()
        return entries.text_of(name) if isinstance(entries, NamedByText) else as_text(name)

    def look_anew(self) -> None:
        """Looks at the schedule again: there may be new names that are not text."""
        self.known = None
        for fault in getattr(self.get(), "faults", ()):
            self.warn_once(fault)

    def warn_once(self, what: str) -> None:
        """Logs a warning, unless it was logged before."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s", what)
