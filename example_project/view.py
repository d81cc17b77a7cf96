"""What the demo shows: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from .processes import Process
from .verdict import Delivery, Entry

COLOURS = ("cyan", "magenta", "yellow")
MASTER, STANDBY, STARTING, KILLED, STOPPED = "MASTER", "standby", "starting", "killed", "stopped"
_FRAME = 0.1  # Seconds between two pictures.
#: rich's own template loads its font from the network. A picture in a README must not do that.
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, "DejaVu Sans Mono", Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass
class Beat:
    """A beat as the demo knows it. `pids`: one for each time that it was started."""

    name: str
    colour: str
    process: Process
    role: str = STARTING
    epoch: int | None = None
    pids: list[int] = field(default_factory=list)

    def made(self, delivery: Delivery) -> bool:
        """True if it dispatched that run: a master's id ends in its pid."""
        return any(delivery.master.endswith(f":{pid}") for pid in self.pids)


@dataclass
class Term:
    """`beat` was master from `since` to `until` (None: it still is); seconds since 1970."""

    beat: Beat
    epoch: int
    since: float
    until: float | None = None


@dataclass
class TakeOver:
    """What happened after a fault at `at`; `elected` and `resumed` are seconds after it."""

    signal: str
    victim: Beat
    at: float
    successor: Beat | None = None
    elected: float = 0.0
    resumed: float = 0.0

    @property
    def short(self) -> str:
        successor = self.successor.name if self.successor else "nobody"
        return (
            f"{successor} took over in {self.elected:.2f} s, "
            f"first run {self.resumed:.2f} s after {self.signal}"
        )

    def __str__(self) -> str:
        successor = self.successor.name if self.successor else "nobody"
        return (
            f"{self.signal} of {self.victim.name}: {successor} is master after "
            f"{self.elected:.2f} s, its first run comes after {self.resumed:.2f} s"
        )


@dataclass
class Board:
    """All that the demo shows."""

    entries: Sequence[Entry]
    deliveries: Sequence[Delivery]
    beats: list[Beat] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    faults: list[TakeOver] = field(default_factory=list)
    events: list[tuple[float, str, str]] = field(default_factory=list)  # when, text, style
    phase: str = ""
    began: float = field(default_factory=time.time)

    def beat_of(self, delivery: Delivery) -> Beat | None:
        return next((beat for beat in self.beats if beat.made(delivery)), None)


class Lines:
    """Plain lines for logs and pipes: each event, the first run of each master, and how many runs
    followed it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._epoch = 0  # The epoch of the last run with its own line.
        self._more: Counter[str] = Counter()  # Runs without a line, by beat.

    def event(self, text: str, style: str = "") -> None:
        """Prints an event. An event with a style is one of the few that matter."""
        now = time.time()
        self._board.events.append((now, text, style))
        self._count(now)
        self._print(now, text)

    def executed(self, run: Delivery) -> None:
        at, beat = run.executed or run.received, self._board.beat_of(run)
        if (run.epoch or 0) > self._epoch:
            self._epoch = run.epoch or 0
            self._count(at)
            self._print(at, _run_line(self._board, run).plain)
        else:
            self._more[beat.name if beat else "?"] += 1

    def refresh(self) -> None:
        """Nothing to do: lines are printed as they come."""

    def close(self) -> None:
        """Nothing to do."""

    def summary(self) -> list[str]:
        """Returns what the reader has not seen yet: nothing."""
        return []

    def _count(self, at: float) -> None:
        for name, runs in self._more.items():
            self._print(at, f"{runs} more {'run' if runs == 1 else 'runs'} dispatched by {name}")
        self._more.clear()

    def _print(self, at: float, text: str) -> None:
        print(f"{at - self._board.began:6.2f} s  {text}", flush=True)


class Screen(Lines):
    """The live view, on the terminal's second screen."""

    def __init__(self, board: Board, console: Console) -> None:
        super().__init__(board)
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._live.start()
        self._next = 0.0

    def executed(self, run: Delivery) -> None:
        """Nothing to do: the view shows all runs."""

    def refresh(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _FRAME
            width, height = self._console.size
            self._live.update(render(self._board, time.time(), width, height), refresh=True)

    def close(self) -> None:
        """Leaves the second screen, and prints the last picture."""
        self._live.stop()
        width, height = self._console.size
        self._console.print(render(self._board, time.time(), width, min(height, 24)))

    def summary(self) -> list[str]:
        """Returns the events that matter, because the second screen is gone."""
        began, events = self._board.began, self._board.events
        return [f"{at - began:6.2f} s  {text}" for at, text, style in events if style]

    def _print(self, at: float, text: str) -> None:
        self._next = 0.0


def save_svg(board: Board, path: Path) -> None:
    """Saves the view of this moment as a picture that loads nothing from the network."""
    console = Console(
        record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(render(board, time.time(), 100, 28))
    path.write_text(
        console.export_svg(
            title="make demo", theme=SVG_EXPORT_THEME, code_format=_SVG, unique_id="zk-beat-demo"
        )
    )


def render(board: Board, now: float, width: int, height: int) -> RenderableType:
    """Makes the view: `width` columns, `height` lines."""
    fixed = 1 + (len(board.beats) + 3) + (len(board.entries) + 4)
    events = max(2, (height - fixed - 4) // 2)
    runs = max(2, height - fixed - 4 - events)
    return Group(
        _title(board, now, width),
        _panel("beats", _beats(board)),
        _panel("one column, one second", _timeline(board, now, width - 4)),
        _panel("runs", _recent_runs(board, runs)),
        _panel("what happens", _recent_events(board, events)),
    )


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="bright_black")


def _title(board: Board, now: float, width: int) -> Text:
    done = sum(run.executed is not None for run in board.deliveries)
    left = Text.assemble((" celery-zk-beat ", "bold reverse"), "  ", (board.phase, "bold"))
    right = f"{len(board.deliveries)} dispatched  {done} executed  {now - board.began:.0f} s "
    return Text.assemble(left, " " * max(1, width - left.cell_len - len(right)), right)


def _beats(board: Board) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    for name, justify in (("beat", "left"), ("role", "left"), ("epoch", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("pid", "runs", "last run"):
        table.add_column(name, justify="right")
    styles = {MASTER: "bold green", KILLED: "bold red", STOPPED: "red", STARTING: "bright_black"}
    for beat in board.beats:
        made = [run for run in board.deliveries if beat.made(run)]
        table.add_row(
            Text(f"● {beat.name}", style=beat.colour),
            Text(beat.role, style=styles.get(beat.role, "")),
            str(beat.epoch) if beat.role == MASTER else "",
            str(beat.pids[-1]) if beat.pids and beat.process.alive else "",
            str(len(made)),
            f"{made[-1].entry} {made[-1].run}" if made else "",
        )
    return table


# The picture has layers: a loop for each.
def _timeline(board: Board, now: float, width: int) -> Text:  # noqa: C901
    """Makes a lane for the master and one for each entry. The colours say which beat was master or
    dispatched the run."""
    label = max(len(entry.name) for entry in board.entries) + 2
    columns = width - label
    first = board.terms[0].since if board.terms else now
    # Runs of the fastest entry come about a second after the election: put them mid-column, so
    # that none slips into the next.
    first = max(first - 0.5, now - columns + 1)

    def column(at: float) -> int:
        return int((at - first) // 1)

    lanes = {name: [(" ", "")] * columns for name in ["master", *(e.name for e in board.entries)]}

    def mark(lane: str, at: int, glyph: str, style: str) -> None:
        if 0 <= at < columns:
            lanes[lane][at] = (glyph, style)

    def bar(begin: float, end: float, glyph: str, style: str) -> None:
        for at in range(max(0, column(begin)), column(end) + 1):
            mark("master", at, glyph, style)

    for term in board.terms:
        bar(term.since, term.until or now, "━", term.beat.colour)
    for fault in board.faults:
        # ZooKeeper keeps a killed master until its session ends; the picture does not.
        bar(fault.at, fault.at + fault.elected if fault.successor else now, "┄", "red")
    for term in board.terms[1:]:
        mark("master", column(term.since), "━", term.beat.colour)
    for fault in board.faults:
        mark("master", column(fault.at), "✗" if fault.signal == "SIGKILL" else "▼", "bold red")
    for run in board.deliveries:
        beat = board.beat_of(run)
        if run.entry in lanes:
            glyph = "○" if run.executed is None else "●"
            mark(run.entry, column(run.received), glyph, beat.colour if beat else "")
    axis = [" "] * columns
    for at in range(columns):
        second = int(first - board.began) + at
        if second % 10 == 0:
            axis[at : at + len(str(second))] = str(second)
    text = Text(no_wrap=True)
    for name, cells in lanes.items():
        text.append(name.ljust(label), "bold" if name == "master" else "")
        for glyph, style in cells:
            text.append(glyph, style)
        text.append("\n")
    return text.append(" " * label + "".join(axis[:columns]), "bright_black")


def _recent_runs(board: Board, count: int) -> Text:
    lines = [_run_line(board, run) for run in board.deliveries[-count:]]
    return Text("\n", no_wrap=True, overflow="ellipsis").join(
        lines + [Text()] * (count - len(lines))
    )


def _run_line(board: Board, run: Delivery) -> Text:
    beat = board.beat_of(run)
    took = "" if run.executed is None else f"{1000 * (run.executed - run.received):.0f} ms"
    return Text.assemble(
        f"{run.entry:<10} run {run.run or '?':>3}  dispatched by ",
        (beat.name if beat else "?", beat.colour if beat else ""),
        f", {'executed' if took else 'received'} by {run.worker}  ",
        (took, "bright_black"),
    )


def _recent_events(board: Board, count: int) -> Text:
    lines = [
        Text.assemble((f"{at - board.began:5.1f} s  ", "bright_black"), (text, style))
        for at, text, style in board.events[-count:]
    ]
    return Text("\n", no_wrap=True, overflow="ellipsis").join(
        lines + [Text()] * (count - len(lines))
    )


def _block(lines: Sequence[Text], count: int) -> Text:
    """Makes `count` lines: adds blank ones if there are too few, cuts those that are too long."""
    blank = [Text()] * (count - len(lines))
    return Text("\n", no_wrap=True, overflow="ellipsis").join([*lines, *blank])
