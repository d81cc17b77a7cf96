"""Says when a candidate does not contend although nobody is master."""

from __future__ import annotations

from typing import Callable

#: Seconds for which a master that resigned lets the others, or its successor, go first.
RESIGN_PAUSE = 1.0
#: Seconds for which a candidate that was useless as master lets useful ones go first: the first
#: time, and at most. Each time is twice as long as the one before.
_STAND_BACK, _LONGEST_STAND_BACK = 1.0, 10.0
#: Seconds between two looks whether another useful candidate is still there.
_LOOK_EVERY = 1.0


class Restraint:
    """Holds one candidate back after it resigned, and longer if it was useless as master. Pure:
    `now` is what the caller read on boottime().

    Attributes:
        useless: why this candidate counts as useless; None if it does not.
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
        """Lets the candidate stand back, longer each time, until :meth:`take_for_useful`."""
        self._times_useless += 1
        self.useless = why

    def take_for_useful(self, *, as_master: bool) -> bool:
        """Ends that. If it was of use `as_master`, the next time is short again. Returns True if it
        counted as useless. For any thread."""
        if as_master:
            self._times_useless = 0
        if self.useless is None:
            return False
        self.useless = None
        return True

    def pause(self, now: float) -> float:
        """Returns how many seconds are left of the pause after a resignation; below 0 if it is
        over."""
        return self._abstains_until - now

    def seconds(self, now: float, is_another_of_use: Callable[[], bool]) -> float:
        """Returns for how many seconds the candidate does not contend; 0 or less: it may contend.
        Calls `is_another_of_use` only if the answer depends on it."""
        pause = self.pause(now)
        if pause > 0 or self.useless is None or self.vacant_since is None:
            return pause
        times = min(self._times_useless - 1, 10)
        patience: float = min(_STAND_BACK * 2**times, _LONGEST_STAND_BACK)
        left = self.vacant_since + patience - now
        if left <= 0 or not is_another_of_use():
            return 0.0
        return min(left, _LOOK_EVERY)  # the other may turn out to be useless, too
