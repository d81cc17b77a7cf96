"""Draws a campaign from its history alone: what was damaged, who was master, what was sent.

python -m tests.chaos.plot HISTORY >timeline.svg
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .checker import Fault, Term, check, faults_of, terms_of
from .record import Event, read

#: Seconds in one strip of the picture; pixels of a second; pixels of the names on the left.
STRIP, SECOND, LEFT = 120, 10, 90
#: Pixels: of a row of faults, of the chart of messages, of a letter.
ROW, CHART, LETTER = 13, 50, 5.0
WIDTH = LEFT + STRIP * SECOND + 20
COLOURS = ("#2f6db3", "#3a9150", "#a8731a", "#8a4fa8", "#b04a4a")
FAULTS = {
    "process": "#f2a6a0",
    "zookeeper road": "#f7cf8a",
    "broker road": "#d9c2ee",
    "clock": "#b8d8ba",
    "ensemble": "#f7cf8a",
    "broker": "#d9c2ee",
}


def plot(history: Sequence[Event]) -> str:
    """Returns the picture as SVG: strips of two minutes, one below the other."""
    site = next(event for event in history if event["event"] == "site")
    colours = dict(zip(site["beats"], COLOURS))
    begin, end = history[0]["at"], history[-1]["at"]
    faults, terms = faults_of(history), terms_of(history)
    sent = [event for event in history if event["event"] == "message"]
    parts: list[str] = []
    y = _legend(parts, history, site, colours)
    at = begin
    while at < end:
        y = _strip(parts, sent, terms, faults, colours, begin, at, y) + 22
        at += STRIP
    style = "text{font:9px sans-serif}.name{font-weight:bold;font-size:11px}.dim{fill:#888}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0f}" '
        f'viewBox="0 0 {WIDTH} {y:.0f}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _legend(
    parts: list[str], history: Sequence[Event], site: Event, colours: dict[str, str]
) -> float:
    kinds = Counter(event["event"] for event in history)
    title = f"{site['contender']}, seed {site['seed']}: {kinds['fault'] // 2} faults, "
    title += f"{kinds['message']} messages"
    if site["session_timeout"] is not None:  # otherwise its runs have no numbers to be judged by
        verdict = check(history)
        texts = [f"{kind} {len(found)}" for kind, found in verdict.violations.items()]
        title += f"; {', '.join(texts)}, late {len(verdict.late)}"
    parts.append(_text(10, 18, title, "name"))
    x = 10.0
    for label, colour in [
        *((f"{name}, master or sender", colour) for name, colour in colours.items()),
        ("process hurt", FAULTS["process"]),
        ("ZooKeeper or the road to it", FAULTS["ensemble"]),
        ("broker or the road to it", FAULTS["broker"]),
        ("clock of day set", FAULTS["clock"]),
        ("second without a message", "#fbe3e0"),
        ("same task id again", "#e07b00"),
        ("after a later epoch's", "#d00000"),
    ]:
        parts.append(_rect(x, 27, 10, 10, colour))
        parts.append(_text(x + 13, 35, label))
        x += 28 + LETTER * len(label)
    return 48


def _strip(
    parts: list[str],
    sent: Sequence[Event],
    terms: Sequence[Term],
    faults: Sequence[Fault],
    colours: dict[str, str],
    zero: float,
    begin: float,
    y: float,
) -> float:
    """Draws one strip from its upper edge at y. Returns its lower edge."""
    end = begin + STRIP
    top = y + 12
    for second in range(0, STRIP + 1, 10):
        at = LEFT + second * SECOND
        minutes, rest = divmod(int(begin - zero) + second, 60)
        parts.append(_text(at - 8, y + 8, f"{minutes}:{rest:02}", "dim"))
    y = top
    for lane in ("ZooKeeper", "broker", *colours):
        mine = [fault for fault in faults if _lane(fault) == lane and fault.touches(begin, end)]
        parts.append(_text(6, y + 10, lane, "name"))
        if lane in colours:
            for term in terms:
                if term.beat == lane and term.begin < end and term.end > begin:
                    x, width = _place(term.begin, term.end, begin)
                    parts.append(_rect(x, y + 3, width, 7, colours[lane]))
            y += ROW
        y = _bars(parts, mine, begin, y)
        parts.append(_line(y + 1))
        y += 3
    y = _chart(parts, sent, colours, begin, y)
    for second in range(0, STRIP + 1, 10):
        x = LEFT + second * SECOND
        parts.append(f'<path d="M{x} {top}V{y:.0f}" stroke="#ddd" stroke-width="0.5"/>')
    return y


def _lane(fault: Fault) -> str:
    return fault.beat or ("ZooKeeper" if fault.on == "ensemble" else "broker")


def _place(begin: float, end: float, zero: float) -> tuple[float, float]:
    """Returns the left edge and the width, within the strip."""
    left = max(0.0, begin - zero)
    right = min(float(STRIP), end - zero)
    return LEFT + left * SECOND, max(1.5, (right - left) * SECOND)


def _bars(parts: list[str], faults: Iterable[Fault], begin: float, y: float) -> float:
    """Draws bars with their names, in as many rows as they need so that none covers another."""
    rows: list[float] = [0.0]
    for fault in sorted(faults, key=lambda fault: fault.begin):
        label = fault.verb.replace(" to ZooKeeper", " → ZK").replace(" to the broker", " → broker")
        x, width = _place(fault.begin, fault.end, begin)
        x = min(x, WIDTH - LETTER * len(label))
        row = next((n for n, until in enumerate(rows) if until <= x), len(rows))
        if row == len(rows):
            rows.append(0.0)
        rows[row] = max(x + width, x + 4 + LETTER * len(label))
        top = y + row * ROW
        title = f"<title>{fault.number}: {escape(fault.verb)}, {fault.end - fault.begin:.1f} s"
        parts.append(
            f'<g class="fault">{title}</title>{_rect(x, top + 1, width, ROW - 2, FAULTS[fault.on])}'
            f"{_text(x + 2, top + 10, label)}</g>"
        )
    return y + len(rows) * ROW


def _chart(
    parts: list[str],
    sent: Sequence[Event],
    colours: dict[str, str],
    begin: float,
    y: float,
) -> float:
    """Draws messages a second, by sender; below them what was repeated and what came late."""
    ids: set[str] = set()
    newest = 0
    counts: dict[int, Counter[str]] = {}
    marks: list[tuple[float, str]] = []
    for event in sent:
        late = (event["epoch"] or 0) < newest
        newest = max(newest, event["epoch"] or 0)
        again = event["id"] in ids
        ids.add(event["id"])
        if not begin <= event["at"] < begin + STRIP:
            continue
        counts.setdefault(int(event["at"] - begin), Counter())[event["beat"]] += 1
        if late or again:
            marks.append((event["at"] - begin, "#d00000" if late else "#e07b00"))
    parts.append(_text(6, y + 12, "messages", "name"))
    parts.append(_text(6, y + 23, "per second", "dim"))
    floor = y + CHART
    most = max((sum(count.values()) for count in counts.values()), default=1)
    parts.append(_text(LEFT - 18, y + 8, str(most), "dim"))
    first, last = sent[0]["at"] if sent else 0.0, sent[-1]["at"] if sent else 0.0
    for second in range(STRIP):
        x, top = LEFT + second * SECOND, floor
        count = counts.get(second)
        if count is None and first - begin <= second <= last - begin:
            parts.append(_rect(x, y, SECOND, CHART, "#fbe3e0"))
        for beat, number in (count or {}).items():
            height = number / most * (CHART - 2)
            top -= height
            parts.append(_rect(x + 0.5, top, SECOND - 1, height, colours[beat]))
    parts.append(_line(floor))
    for at, colour in marks:
        parts.append(_rect(LEFT + at * SECOND - 1, floor + 2, 2, 7, colour))
    return floor + 10


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{fill}"/>'


def _line(y: float) -> str:
    return f'<path d="M{LEFT} {y:.1f}h{STRIP * SECOND}" stroke="#bbb" stroke-width="0.5"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


if __name__ == "__main__":
    print(plot(read(Path(sys.argv[1]))), end="")
