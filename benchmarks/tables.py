"""Makes tables and plots from the results of benchmarks.compare. To make them again from
results.json:

    python -m benchmarks.tables benchmarks/results
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
NAMES = {
    "ours": "ours",
    "stock": "celery.beat:Scheduler",
    "persistent": "PersistentScheduler",
    "redbeat": "RedBeat",
    "database": "DatabaseScheduler",
    "stock-gated": "celery.beat:Scheduler, elected",
    "database-gated": "DatabaseScheduler, elected",
    "multibeat": "multibeat",
    "ours-sentry": "ours, with Sentry",
    "ours-policies": "ours, with policies",
    "stock-sentry": "celery.beat:Scheduler, with Sentry",
    "standby": "a standby of ours",
}
P50, P99, MAX = 50, 99, 100


@dataclass(frozen=True)
class Bound:
    """What ours must reach: `bound` is the least value if `at_least`, otherwise the greatest."""

    what: str
    value: float
    bound: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


class Values:
    """The median of each kind of value over all rounds."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results

    def get(self, case: str, who: str, key: str, n: int | None = None) -> Any:
        """Returns None if there is none. A list comes from the last round."""
        found = [
            result[key]
            for result in self._results
            if (result["case"], result.get("who"), result.get("n")) == (case, who, n)
            and result.get(key) is not None
        ]
        if found and isinstance(found[0], (list, str)):
            return found[-1]
        return statistics.median(found) if found else None

    def all(self, case: str, who: str, key: str, n: int | None = None) -> list[float]:
        return [
            result[key]
            for result in self._results
            if (result["case"], result.get("who"), result.get("n")) == (case, who, n)
        ]

    def sizes(self, case: str) -> list[int]:
        return sorted({result["n"] for result in self._results if result["case"] == case})

    def who(self, case: str) -> list[str]:
        found = {result["who"] for result in self._results if result["case"] == case}
        return [name for name in NAMES if name in found]

    def ratio(
        self, case: str, key: str, n: int, other: str = "stock", mine: str = "ours"
    ) -> float | None:
        ours, theirs = self.get(case, mine, key, n), self.get(case, other, key, n)
        return ours / theirs if ours is not None and theirs else None


# Long because each row is there only if it was measured; so are text() and plots().
def bounds(results: Sequence[Result]) -> list[Bound]:  # noqa: C901
    """Returns the bounds for our numbers."""
    values, found = Values(results), []
    least = {1000: 10.0, 10_000: 50.0}
    for n in values.sizes("burst"):
        for other, times in (
            ("stock", least.get(n, 1.0)),
            ("redbeat", 1.0),
            ("stock-sentry", 3.0 if n >= 1000 else 1.0),
        ):
            mine = "ours-sentry" if other == "stock-sentry" else "ours"
            if (ratio := values.ratio("burst", "rate", n, other, mine)) is not None:
                what = f"burst of {n:,}: times {NAMES[other]}"
                found.append(Bound(what, ratio, times, at_least=True))
    small, large = (values.get("burst", "ours", "rate", n) for n in (10_000, 100_000))
    if small and large:
        what = "burst of 100,000: messages/s, of those of 10,000"
        found.append(Bound(what, large / small, 0.9, at_least=True))
    ticks = {n: values.get("idle", "ours", "cpu", n) for n in values.sizes("idle")}
    ticks = {n: tick for n, tick in ticks.items() if tick is not None}
    for n, tick in ticks.items():
        found.append(Bound(f"idle tick, {n:,} entries", tick, 20.0, unit="µs"))
    if len(ticks) > 1:
        what = "idle tick, most entries, times that of fewest"
        found.append(Bound(what, ticks[max(ticks)] / ticks[min(ticks)], 1.5))
    for case, what in ("start", "start with stored state"), ("takeover", "take-over"):
        for n in values.sizes(case):
            elected = values.all(case, "ours", "elected", n)
            if elected and n in (10_000, 100_000):
                seconds = 0.5 if n == 10_000 else 3.0
                label = f"{what}, {n:,} entries: election to first message"
                found.append(Bound(label, max(elected), seconds, unit="s"))
    if late := values.get("spread", "ours", "late_ms"):
        missing, cpu = (values.get("spread", "ours", key) for key in ("missing", "cpu_minute"))
        found.append(Bound("10,000 of 60 s: runs not sent", missing, 0))
        found.append(Bound("10,000 of 60 s: lateness, p50", late[P50], 5.0, unit="ms"))
        found.append(Bound("10,000 of 60 s: lateness, p99", late[P99], 30.0, unit="ms"))
        found.append(Bound("10,000 of 60 s: processor, a minute", cpu, 22.0, unit="s"))
    if period := values.get("drift", "ours", "period"):
        due = round(values.get("drift", "ours", "seconds"))
        runs = values.get("drift", "ours", "runs")
        found.append(Bound(f"1 s, runs that are missing of {due}", abs(due - runs), 0))
        found.append(Bound("1 s, mean period off by", 100 * abs(period - 1), 0.1, unit="%"))
    for result in results:
        if result["case"] == "failover" and result.get("bound") is not None:
            worst = max(result["values"])
            found.append(Bound(result["what"], worst, result["bound"], unit="s"))
        if result["case"] == "failover" and result.get("fault"):
            found.append(Bound(result["what"], 1, 0))
    return found


def write(folder: Path) -> str:
    """Writes the table and the plots from the results in the folder. Returns the table."""
    saved = json.loads((folder / "results.json").read_text())
    content = text(saved["about"], saved["results"], plots(saved["results"], folder))
    (folder / "README.md").write_text(content)
    return content


def text(  # noqa: C901
    about: Iterable[str], results: Sequence[Result], images: Sequence[str] = ()
) -> str:
    """Returns the tables as Markdown. `images`: the names of plots in the same folder."""
    values = Values(results)
    parts = ["# Measured\n", "Made by `make bench`; see [benchmarks](../README.md).\n", *about, ""]
    parts += [f"![{name}]({name}.svg)\n" for name in images]
    if found := bounds(results):
        parts += ["## Ours, and what it must reach\n", _bounds(found)]
    if sizes := values.sizes("burst"):
        heads = [f"N = {n:,}" for n in sizes]
        parts += [
            "## Burst: messages a second\n",
            "All due at one instant, until the last is in the broker; in brackets the ratio to "
            "`celery.beat:Scheduler`. Of N = 1, one divided by the lateness. A contender that "
            "needs too long is stopped, and what it reached until then counts.\n",
            _by_who(values, "burst", heads, lambda who: [_rate(values, who, n) for n in sizes]),
            "Processor time of the beat, ms a message:\n",
            _columns(values, "burst", "cpu_ms", heads, sizes),
        ]
    if sizes := values.sizes("idle"):
        heads = [f"N = {n:,}" for n in sizes]
        parts += [
            "## Idle tick: µs\n",
            "Wall clock; of ours, the turn of its dispatch loop.\n",
            _columns(values, "idle", "wall", heads, sizes),
            "Processor time:\n",
            _columns(values, "idle", "cpu", heads, sizes),
        ]
    if sizes := values.sizes("start"):
        heads = [f"{what}, N = {n:,}" for what in ("s", "MB") for n in sizes]
        parts += [
            "## Start with stored state\n",
            "From the start of the process to its first message, and the most memory until then.\n",
            _by_who(
                values,
                "start",
                heads,
                lambda who: [
                    number(values.get("start", who, key, n))
                    for key in ("seconds", "memory")
                    for n in sizes
                ],
            ),
        ]
    if sizes := values.sizes("takeover"):
        rows = [
            [
                f"{n:,}",
                _span(values.all("takeover", "ours", "elected", n)),
                _span(values.all("takeover", "ours", "seconds", n)),
                number(values.get("takeover", "ours", "memory", n)),
            ]
            for n in sizes
        ]
        heads = [
            "entries",
            "elected and a run due, to its message, s",
            "signal to it, s",
            "MB of a standby",
        ]
        parts += [
            "## Take-over by a standby of ours\n",
            "SIGTERM and SIGKILL in turn, session time-out 2 s; least, median, most.\n",
            table(heads, rows),
        ]
    if values.who("spread"):
        heads = ["dispatched", "p50, ms late", "p99", "max", "processor, s a minute"]
        parts += [
            "## 10,000 entries of 60 s, one every 6 ms\n",
            "The share of the runs that came due which were sent before the end.\n",
            _by_who(values, "spread", heads, lambda who: _spread(values, who)),
        ]
    if values.who("drift"):
        heads = ["runs", "mean period, s", "p50, ms late", "p99", "the last", "s a minute"]
        parts += [
            "## One entry of 1 s\n",
            "Lateness against a clock that begins with the first; processor time.\n",
            _by_who(values, "drift", heads, lambda who: _drift(values, who)),
        ]
    rows = [
        [result["what"], _span(result["values"]), number(result["bound"])]
        for result in results
        if result["case"] == "failover" and "values" in result
    ]
    if rows:
        parts += [
            "## The master ends\n",
            "Three beats of ours, session time-out 2 s; least, median, most. Of others, see "
            "[reliability](../../docs/reliability.md#others-in-the-same).\n",
            table(["", "s", "bound"], rows),
        ]
    if rows := list(_requests(values)):
        parts += ["## Requests to ZooKeeper\n", table(["", "a run"], rows)]
    if errors := [result for result in results if "error" in result]:
        parts += ["## Not measured\n"]
        for result in errors:
            what = f"{NAMES[result['who']]}, {result['case']} {result.get('n', '')}"
            parts.append(f"- {what.strip()}: {result['error'].splitlines()[0]}")
    return "\n".join(parts).rstrip() + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float | None) -> str:
    """Returns the number with about three digits; a dash if there is none."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def _bounds(bounds: Sequence[Bound]) -> str:
    rows = [
        [
            bound.what,
            f"{number(bound.value)} {bound.unit}".strip(),
            f"{'≥' if bound.at_least else '≤'} {bound.bound:g} {bound.unit}".strip(),
            "met" if bound.met else "**missed**",
        ]
        for bound in bounds
    ]
    return table(["", "measured", "bound", ""], rows)


def _by_who(values: Values, case: str, heads: Sequence[str], row: Any) -> str:
    rows = [[NAMES[who], *row(who)] for who in values.who(case)]
    return table(["", *heads], rows)


def _columns(
    values: Values, case: str, key: str, heads: Sequence[str], sizes: Sequence[int]
) -> str:
    def row(who: str) -> list[str]:
        return [number(values.get(case, who, key, n)) for n in sizes]

    return _by_who(values, case, heads, row)


def _rate(values: Values, who: str, n: int) -> str:
    rate, stock = values.get("burst", who, "rate", n), values.get("burst", "stock", "rate", n)
    if rate is None or not stock or who == "stock":
        return number(rate)
    return f"{number(rate)} ({number(rate / stock)})"


def _span(values: Sequence[float]) -> str:
    return " / ".join(map(number, (min(values), statistics.median(values), max(values))))


def _spread(values: Values, who: str) -> list[str]:
    late, share = values.get("spread", who, "late_ms"), values.get("spread", who, "share")
    cells = [number(late[part]) if late else "-" for part in (P50, P99, MAX)]
    cpu = number(values.get("spread", who, "cpu_minute"))
    return ["-" if share is None else f"{100 * share:.4g} %", *cells, cpu]


def _drift(values: Values, who: str) -> list[str]:
    late, period = values.get("drift", who, "late_ms"), values.get("drift", who, "period")
    cells = ["-", "-", "-"]
    if late:
        ordered = sorted(late)
        parts = [ordered[round((len(late) - 1) * part / 100)] for part in (P50, P99)]
        cells = [number(value) for value in (*parts, late[-1])]
    cpu = number(values.get("drift", who, "cpu_minute"))
    mean = f"{period:.5f}" if period else "-"
    return [str(values.get("drift", who, "runs")), mean, *cells, cpu]


def _requests(values: Values) -> Iterable[list[str]]:
    for n in values.sizes("burst"):
        if value := values.get("burst", "ours", "requests", n):
            yield [f"burst of {n:,}", number(value)]
    if value := values.get("spread", "ours", "requests"):
        yield ["10,000 entries of 60 s", number(value)]
    if value := values.get("drift", "ours", "requests"):
        yield ["one entry of 1 s, with pings", number(value)]
    if value := values.get("drift", "standby", "requests"):
        yield ["its standby, a second, pings", number(value)]


def plots(results: Sequence[Result], folder: Path) -> list[str]:  # noqa: C901
    """Writes the plots as SVG files. Returns their names."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError:
        print("no plots without matplotlib: pip install -e .[bench]")
        return []
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"

    values, names = Values(results), []

    def plot(name: str, across: str, up: str, lines: Mapping[str, tuple[Any, Any]]) -> None:
        figure, axes = pyplot.subplots(figsize=(7, 4))
        for who, (xs, ys) in lines.items():
            axes.plot(xs, ys, marker="o" if len(xs) < 10 else "", label=NAMES[who])
        axes.set(xlabel=across, ylabel=up, yscale="linear" if name == "drift" else "log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        if across.startswith("entries"):
            axes.set_xscale("log")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
        names.append(name)

    def by_size(case: str, key: str) -> dict[str, tuple[Any, Any]]:
        lines: dict[str, tuple[Any, Any]] = {}
        for who in values.who(case):
            got = {n: values.get(case, who, key, n) for n in values.sizes(case)}
            points = {n: value for n, value in got.items() if value}
            lines[who] = list(points), list(points.values())
        return lines

    if len(values.sizes("burst")) > 1:
        plot("burst", "entries due at once", "messages/s", by_size("burst", "rate"))
    if len(values.sizes("idle")) > 1:
        plot("idle", "entries", "µs of an idle tick", by_size("idle", "wall"))
    late = {who: values.get("spread", who, "late_ms") for who in values.who("spread")}
    if lines := {who: (range(101), each) for who, each in late.items() if each}:
        plot("spread", "% of the messages that were sent", "at most so many ms late", lines)
    late = {who: values.get("drift", who, "late_ms") for who in values.who("drift")}
    if lines := {who: (range(len(each)), each) for who, each in late.items() if each}:
        plot("drift", "run of the entry of 1 s", "ms late", lines)
    return names


if __name__ == "__main__":
    write(Path(sys.argv[1]))
