"""All that a candidate knows of one ZooKeeper session, in one object that ends with it."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import MasterRecord


@dataclass
class SessionNotes:
    """Holds for one session. The next one begins with new notes, so nothing is carried over.

    Attributes:
        id: of the session.
        is_greeted: the log tells of it.
        root_is_ready: all that an election needs was made, and is ours.
        made: the master znode as this session made it last.
        announced: role and uselessness, as the member znode of this session tells them.
        announce_at: on boottime(), when the member znode is to be written anew.
    """

    id: int
    is_greeted: bool = False
    root_is_ready: bool = False
    made: MasterRecord | None = None
    announced: tuple[str, str | None] | None = None
    announce_at: float = 0.0
