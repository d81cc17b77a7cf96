"""Where the znodes of an election lie. Pure, and imports nothing of ours."""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from dataclasses import dataclass
from urllib.parse import quote

#: How many pages there are for each volume of histories.
PAGES_OF_VOLUME = 16


@dataclass(frozen=True)
class Paths:
    """The znodes of one election. `root` is absolute and holds the chroot, if there is one."""

    root: str

    @classmethod
    def of(cls, hosts: str, root: str) -> Paths:
        """The paths of `root` below the chroot of a connection string, if it has one."""
        chroot = hosts.partition("/")[2]
        return cls((f"/{chroot}" if chroot else "") + root)

    @property
    def master(self) -> str:
        """Ephemeral; the beat that created it is master."""
        return f"{self.root}/master"

    @property
    def epoch(self) -> str:
        """Persistent; its data version counts elections: the fencing token."""
        return f"{self.root}/epoch"

    @property
    def members(self) -> str:
        return f"{self.root}/members"

    @property
    def masters(self) -> str:
        """Persistent; the last terms, :data:`.TERMS_REMEMBERED` at most."""
        return f"{self.root}/masters"

    @property
    def installed(self) -> str:
        """Persistent; exists only with another scheduler that has a store: which `beat_schedule`
        was last written into the store."""
        return f"{self.root}/installed"

    @property
    def pauses(self) -> str:
        """Persistent; what operators have paused. Empty: nothing."""
        return f"{self.root}/pauses"

    @property
    def requests(self) -> str:
        """Persistent; each request below it also writes it, so that one watch is enough."""
        return f"{self.root}/requests"

    def request(self, name: str) -> str:
        """Ephemeral; the one who asks creates it, and the master writes its answer into it."""
        return f"{self.requests}/{name}"

    @property
    def backfills(self) -> str:
        """Persistent; the first backfill creates it: which backfills are under way, and how far
        each is."""
        return f"{self.root}/backfills"

    @property
    def runs(self) -> str:
        """Persistent; parent of the pages of run states."""
        return f"{self.root}/runs"

    @property
    def history(self) -> str:
        """Persistent; parent of the histories."""
        return f"{self.root}/history"

    def damaged_outbox(self, data: bytes) -> str:
        """Persistent; an outbox that could not be parsed and was put aside. Its checksum is part of
        the name."""
        return f"{self.root}/outbox-damaged-{zlib.crc32(data):08x}"

    @property
    def outbox(self) -> str:
        """Persistent; the runs that are claimed and not confirmed."""
        return f"{self.root}/outbox"

    @property
    def shown(self) -> str:
        """Persistent; exists only with another scheduler: what it knows of its entries. Its data is
        the index of the pages below it."""
        return f"{self.root}/shown"

    def shown_page(self, page: str) -> str:
        return f"{self.shown}/{page}"

    @property
    def entries(self) -> str:
        """Persistent; the first live entry, or a beat that looks for some, creates it. Its data is
        the index of the pages below it. Each change writes it."""
        return f"{self.root}/entries"

    def entries_page(self, page: str) -> str:
        """Persistent; the live entries of one page."""
        return f"{self.entries}/{page}"

    @property
    def inbox(self) -> str:
        """Persistent, where a policy asks what becomes of runs; parent of the next two. Workers
        write below them, and nowhere else."""
        return f"{self.root}/inbox"

    @property
    def inbox_reports(self) -> str:
        """Persistent; a persistent znode for each delivery of a tracked run's message."""
        return f"{self.inbox}/reports"

    @property
    def inbox_running(self) -> str:
        """Persistent; an ephemeral znode of the worker's for each delivery that it executes."""
        return f"{self.inbox}/running"

    def member(self, id: str) -> str:
        """Ephemeral; one for each beat."""
        return f"{self.members}/{quote_name(id)}"

    def page(self, page: str) -> str:
        """Persistent; the run states of the entries whose :func:`page_of` is `page`."""
        return f"{self.runs}/{page}"

    def volume(self, volume: str) -> str:
        """Persistent; the past runs of the entries on the 16 pages whose :func:`volume_of` is
        `volume`."""
        return f"{self.history}/{volume}"


@functools.lru_cache(1 << 17)
def page_of(entry: str) -> str:
    """Returns the page (``"000"`` to ``"fff"``) that holds the run state of an entry. It never
    changes. It is a hash, so that any text can be an entry's name."""
    return hashlib.sha256(entry.encode("utf-8", "surrogatepass")).hexdigest()[:3]


def is_page(name: str) -> bool:
    """True if a znode below ``runs`` is a page."""
    return re.fullmatch("[0-9a-f]{3}", name) is not None


def volume_of(page: str) -> str:
    """Returns the volume (``"00"`` to ``"ff"``) that holds the histories of a page's entries."""
    return page[:2]


def is_volume(name: str) -> bool:
    """True if a znode below ``history`` is a volume."""
    return re.fullmatch("[0-9a-f]{2}", name) is not None


def quote_name(name: str) -> str:
    """Makes any text one component of a path; :func:`urllib.parse.unquote` reverses it."""
    quoted = quote(name, safe=" !$&'()*+,;=:@")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted
