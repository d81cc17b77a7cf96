"""When a candidate leaves the field to others, though nobody is master."""

from __future__ import annotations

from typing import Callable

#: Seconds for which a master that resigned leaves the field to the others, or to its successor.
RESIGN_PAUSE = 1.0
#: Seconds for which a candidate that was useless as master leaves the field to others that are
#: not: the first time, twice as long each time, and the longest.
_STAND_BACK, _LONGEST_STAND_BACK = 1.0, 10.0
#: Seconds between two looks whether there is still another that is of use.
_LOOK_EVERY = 1.0


class Restraint:
    """Holds one candidate back after it resigned, and longer where it was useless as master. Pure:
    `now` is what the caller read on boottime().

    Attributes:
        useless: why this candidate was useless, as long as it is taken for that.
        vacant_since: on boottime(), since when nobody is master; None while somebody is.
    """

    def __init__(self) -> None:
        self.useless: str | None = None
        self.vacant_since: float | None = None
        #: How often in a row it was useless.
        self._times_useless = 0
        self._abstains_until = 0.0

    def resigned(self, now: float) -> None:
        """Begins the pause after a resignation."""
        self._abstains_until = now + RESIGN_PAUSE

    def take_for_useless(self, why: str) -> None:
        """Has the candidate stand back, longer each time, until :meth:`take_for_useful`."""
        self._times_useless += 1
        self.useless = why

    def take_for_useful(self, *, as_master: bool) -> bool:
        """Ends that; what it did as master also has the times begin anew. True where it was taken
        for useless. Any thread."""
        if as_master:
            self._times_useless = 0
        if self.useless is None:
            return False
        self.useless = None
        return True

    def pause(self, now: float) -> float:
        """Seconds that are left of the pause after a resignation, below 0 where it is over."""
        return self._abstains_until - now

    def seconds(self, now: float, is_another_of_use: Callable[[], bool]) -> float:
        """Returns for how many seconds the candidate does not contend: 0 or less, it does.
        `is_another_of_use` is asked only where the answer depends on it."""
        pause = self.pause(now)
        if pause > 0 or self.useless is None or self.vacant_since is None:
            return pause
        times = min(self._times_useless - 1, 10)
        patience: float = min(_STAND_BACK * 2**times, _LONGEST_STAND_BACK)
        left = self.vacant_since + patience - now
        if left <= 0 or not is_another_of_use():
            return 0.0
        return min(left, _LOOK_EVERY)  # the other may say meanwhile that it is useless, too
