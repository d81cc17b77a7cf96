"""How much the ledger writes at once: bounds in bytes that follow what the server takes. No
I/O. Seconds are those of boottime()."""

from __future__ import annotations

from .log import get_logger

logger = get_logger(__name__)

#: Most runs of one transaction: what a crash in the middle may leave in the outbox.
MOST_RUNS = 500
#: Most bytes of one transaction, unless the server takes less: it hangs up on a request of more
#: than its jute.maxbuffer (Administrator's Guide), which is 1,048,575 where nobody has changed it.
#: Where this is less, so are the limits that follow, in proportion.
MOST_BYTES = 1_000_000
#: However little it takes: a request of fewer bytes is not lost for its size.
_LEAST_BYTES = 16_000
#: How often in a row, each within so many seconds, a large transaction has to get no answer to be
#: taken for too large; and how often where one of its size once got one.
_LOST, _LOST_WITHIN, _LOST_AND_ONCE_NOT = 2, 60.0, 5
#: Seconds after which more bytes are tried again.
_RAISE_AFTER = 3600.0
#: The same, at first, where entries do not run for want of them.
_RAISE_SOON = 60.0
#: Most bytes of the outbox when something is claimed, and of a page: both are written together.
LARGEST_OUTBOX, LARGEST_PAGE = 400_000, 500_000
#: Most bytes of an entry's name, in JSON: those of the requests that bear it are bounded, too.
LONGEST_NAME = 20_000
#: Bytes of the pages of a transaction that could hold less: not much more than a claim needs.
_ENOUGH = 480_000


class Limits:
    """Those of one ledger, of the znodes below `root`."""

    def __init__(self, root: str) -> None:
        self._root = root
        #: Most bytes of a transaction; and since when it is so.
        self.most_bytes, self._since = MOST_BYTES, 0.0
        #: The largest transaction that was answered; and, of those in a row that were not since,
        #: how many there are, the bytes of the smallest, and when the last was lost.
        self._passed = 0
        self._lost, self._lost_bytes, self._lost_at = 0, 0, 0.0
        #: Seconds after which more are tried, as long as there are too few for what is to be
        #: written.
        self._raise_after, self._is_short = _RAISE_SOON, False

    @property
    def is_lowered(self) -> bool:
        """True where the server takes less than is usual."""
        return self.most_bytes < MOST_BYTES

    @property
    def largest_page(self) -> int:
        return min(LARGEST_PAGE, self.most_bytes // 2)

    @property
    def largest_volume(self) -> int:
        """Most bytes of a volume of histories: so many are left beside the largest outbox."""
        return self.most_bytes // 10

    @property
    def largest_outbox(self) -> int:
        """Most bytes of the runs in the outbox that something more is claimed beside."""
        return min(LARGEST_OUTBOX, self.most_bytes * 2 // 5)

    @property
    def longest_name(self) -> int:
        return min(LONGEST_NAME, self.most_bytes // 50)

    @property
    def enough(self) -> int:
        """Bytes of pages, and of runs beside them, that one transaction need not exceed."""
        return min(_ENOUGH, self.most_bytes // 2)

    def try_more(self, now: float) -> None:
        """Raises them, if that is due: the server may take more by now, or the network was to
        blame. To be called before all is read, and so judged, anew."""
        after = self._raise_after if self._is_short else _RAISE_AFTER
        self._is_short = False
        if now - self._since > after:
            self.most_bytes = min(2 * self.most_bytes, MOST_BYTES)
            self._since = now

    def fall_short(self) -> None:
        """Notes that something cannot be written, perhaps because they were lowered."""
        self._is_short |= self.is_lowered

    def answered(self, size: int) -> None:
        """Notes that a transaction of so many bytes was."""
        self._passed = max(self._passed, size)
        if 2 * size >= self._lost_bytes:
            self._lost = 0

    def unanswered(self, size: int, now: float) -> None:
        """Notes that the largest of the transactions under way, of so many bytes, was not. A server
        hangs up without a word on what is more than its jute.maxbuffer, again and again: they are
        lowered, and this is reported, where that is likely."""
        if size < _LEAST_BYTES or self.most_bytes <= _LEAST_BYTES:
            return
        if self._lost and now - self._lost_at < _LOST_WITHIN:
            size = min(size, self._lost_bytes)
        else:
            self._lost = 0
        self._lost, self._lost_bytes, self._lost_at = self._lost + 1, size, now
        if self._lost < (_LOST if size > self._passed else _LOST_AND_ONCE_NOT):
            return
        self.most_bytes = max(_LEAST_BYTES, min(size, self.most_bytes) // 2)
        self._since = now
        self._passed = min(self._passed, self.most_bytes)
        self._lost = 1  # the next is proof enough
        self._raise_after = min(2 * self._raise_after, _RAISE_AFTER)
        logger.warning(
            "%s: no answer from ZooKeeper to transactions of %d bytes and more: is its "
            "jute.maxbuffer lower than the default, 1048575? From now on at most %d bytes are "
            "written at once",
            self._root,
            size,
            self.most_bytes,
        )
