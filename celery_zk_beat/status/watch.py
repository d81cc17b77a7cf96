"""``zk-beat watch``: shows a snapshot on the screen and follows the changes in ZooKeeper. Needs
rich."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .. import clock
from ..errors import Uncertain
from . import terminal
from .reader import Reader
from .snapshot import Snapshot

#: Seconds in which changes are collected before they are read.
_GATHER = 0.1
#: Seconds between two pictures if nothing changes: ages grow.
_EVERY = 1.0


def show(reader: Reader, wait: Callable[[float], bool], style: terminal.Style) -> None:
    """Shows snapshots until it is interrupted.

    Args:
        wait: waits, for at most so many seconds, until something changes or the connection comes or
            goes.

    Raises as :meth:`.reader.Reader.read`. But after the first picture it waits if the connection is
    lost.
    """
    console = Console(highlight=False)
    snapshot, lost = reader.read(), False
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_picture(snapshot, lost, console, style), refresh=True)
            if wait(_EVERY):
                clock.sleep(_GATHER)
            try:
                # Sends no request if nothing has changed. But something may be late by now.
                snapshot, lost = reader.read(), False
            except Uncertain:
                lost = True


def _picture(snapshot: Snapshot, lost: bool, console: Console, style: terminal.Style) -> Text:
    now = clock.now()
    lines = terminal.status(snapshot, now, style, console.width, console.height - lost)
    if lost:
        when = terminal.age(snapshot.read_at, now)
        lines.insert(0, style(f"ZooKeeper does not answer; this was its state {when}", "red"))
    picture = Text("\n").join(
        Text.from_ansi(line, no_wrap=True) for line in lines[: console.height]
    )
    picture.no_wrap = True
    return picture
