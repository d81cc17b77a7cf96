"""How much the ledger writes at once: limits in bytes, which follow what the server accepts. No
I/O. Times are seconds of boottime()."""

from __future__ import annotations

from .log import get_logger

logger = get_logger(__name__)

#: Most runs of one transaction. A crash in the middle may leave so many in the outbox.
MOST_RUNS = 500
#: Most bytes of one transaction, unless the server accepts less: it closes the connection if a
#: request is larger than its jute.maxbuffer (Administrator's Guide). The default is 1,048,575. If
#: this value is lowered, the limits that follow sink in proportion.
MOST_BYTES = 1_000_000
#: We never go below: a request of fewer bytes does not fail because of its size.
_LEAST_BYTES = 16_000
#: A large transaction counts as too large if it gets no answer so often in a row, each time within
#: so many seconds; and so often if one of its size was answered before.
_LOST, _LOST_WITHIN, _LOST_AND_ONCE_NOT = 2, 60.0, 5
#: Seconds after which we try more bytes again.
_RAISE_AFTER = 3600.0
#: The same, at first, while entries do not run because the limits are too low.
_RAISE_SOON = 60.0
#: Most bytes of the outbox when something is claimed, and of a page: both are written together.
LARGEST_OUTBOX, LARGEST_PAGE = 400_000, 500_000
#: Most bytes of an entry's name in JSON. Requests contain it, and their size is limited, too.
LONGEST_NAME = 20_000
#: How many bytes of pages are enough for a transaction that could also hold fewer pages: not much
#: more than a claim needs.
_ENOUGH = 480_000


class Limits:
    """The limits of one ledger, whose znodes lie below `root`."""

    def __init__(self, root: str) -> None:
        self._root = root
        #: Most bytes of a transaction; and since when that is the limit.
        self.most_bytes, self._since = MOST_BYTES, 0.0
        #: The bytes of the largest transaction that was answered.
        self._passed = 0
        #: Transactions in a row that were not answered since: how many, the bytes of the smallest,
        #: and when the last one was lost.
        self._lost, self._lost_bytes, self._lost_at = 0, 0, 0.0
        #: Seconds after which we try more bytes while something cannot be written; and whether
        #: that is so.
        self._raise_after, self._is_short = _RAISE_SOON, False

    @property
    def is_lowered(self) -> bool:
        """True if the server accepts less than usual."""
        return self.most_bytes < MOST_BYTES

    @property
    def largest_page(self) -> int:
        return min(LARGEST_PAGE, self.most_bytes // 2)

    @property
    def largest_volume(self) -> int:
        """Most bytes of a volume of histories: so many are left beside the largest outbox and
        page."""
        return self.most_bytes // 10

    @property
    def largest_outbox(self) -> int:
        """Most bytes that the runs in the outbox may have while more runs are claimed."""
        return min(LARGEST_OUTBOX, self.most_bytes * 2 // 5)

    @property
    def longest_name(self) -> int:
        return min(LONGEST_NAME, self.most_bytes // 50)

    @property
    def enough(self) -> int:
        """How many bytes of pages and runs are enough for one transaction."""
        return min(_ENOUGH, self.most_bytes // 2)

    def try_more(self, now: float) -> None:
        """Raises the limits if it is time for that: the server may accept more by now, or the
        network was to blame. Call it before the ledger is loaded again: that checks all sizes."""
        after = self._raise_after if self._is_short else _RAISE_AFTER
        self._is_short = False
        if now - self._since > after:
            self.most_bytes = min(2 * self.most_bytes, MOST_BYTES)
            self._since = now

    def fall_short(self) -> None:
        """Notes that something cannot be written, perhaps because the limits were lowered."""
        self._is_short |= self.is_lowered

    def answered(self, size: int) -> None:
        """Notes that a transaction of so many bytes was answered."""
        self._passed = max(self._passed, size)
        if 2 * size >= self._lost_bytes:
            self._lost = 0

    def unanswered(self, size: int, now: float) -> None:
        """Notes that the largest of the transactions under way, of so many bytes, was not answered.
        A server closes the connection without an answer, each time, if a request is larger than
        its jute.maxbuffer. If that is likely, this lowers the limits and logs a warning."""
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
        self._lost = 1  # one more is proof enough
        self._raise_after = min(2 * self._raise_after, _RAISE_AFTER)
        logger.warning(
            "%s: no answer from ZooKeeper to transactions of %d bytes and more: is its "
            "jute.maxbuffer lower than the default, 1048575? From now on at most %d bytes are "
            "written at once",
            self._root,
            size,
            self.most_bytes,
        )
