"""Judges a campaign by times alone, so that one can compare schedulers without run numbers.

    python -m tests.chaos.times HISTORY...      a table in Markdown

An entry should send a message every period. An instant is missed if no message stands for it: two
messages that are n periods apart miss n - 1. A message is one too many if it comes less than half a
period after the one before, and there is no reason why that one was late. A reason is: 1.3 periods
or more have passed since the one before it, or a clock was set in between. Messages with the task
id of an earlier one are counted separately, because a receiver can recognize them, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

from .checker import STEP, Fault, faults_of, span_of
from .record import Event, read

#: Seconds; most outages are shorter than the period of an entry that is rarely due.
OFTEN = 10.0
#: The part of a period by which a message may be early or late.
PLAY = 0.1


@dataclass
class Times:
    """The result for one campaign.

    `due` and `missed` count instants, for entries that are due `OFTEN` and for rare ones. Most
    outages skip some of the former. If one of the latter is missed, a run is lost.

    Of the messages that were too `many`, `same_id` repeat an earlier task id. `longest` is the
    longest gap in seconds, of entries that are due often. `ended` counts beats that ended by
    themselves, and `turns` those that were master again after the faults, out of `beats`.
    """

    site: Event
    faults: int = 0
    due: int = 0
    missed: int = 0
    rare_due: int = 0
    rare_missed: int = 0
    many: int = 0
    same_id: int = 0
    longest: float = 0.0
    ended: int = 0
    turns: int = 0
    beats: int = 0


def judge(history: Sequence[Event]) -> Times:
    """Judges a whole history by times."""
    site = next(event for event in history if event["event"] == "site")
    faults = faults_of(history)
    times = Times(site, faults=len(faults), beats=len(site["beats"]))
    times.ended = sum(event["event"] == "ended" for event in history)
    times.turns = len({e["beat"] for e in history if e["event"] == "turn"} - {None})
    begin, end = span_of(history)
    sent: dict[str, list[Event]] = {name: [] for name in site["entries"]}
    for event in history:
        if event["event"] == "message" and begin <= event["at"] <= end:
            sent[event["entry"]].append(event)
    clocks = [fault for fault in faults if fault.on == "clock"]
    for entry, messages in sent.items():
        period = site["entries"][entry]
        _judge_gaps(times, period, [begin, *(m["at"] for m in messages), end])
        _judge_too_many(times, period, messages, clocks)
    return times


def _judge_gaps(times: Times, period: float, instants: Sequence[float]) -> None:
    gaps = [after - before for before, after in zip(instants, instants[1:])]
    due = int((instants[-1] - instants[0]) / period)
    missed = sum(max(0, floor(gap / period + PLAY) - 1) for gap in gaps)
    if period < OFTEN:
        times.due += due
        times.missed += missed
        times.longest = max(times.longest, *gaps)
    else:
        times.rare_due += due
        times.rare_missed += missed


def _judge_too_many(
    times: Times, period: float, messages: Sequence[Event], clocks: Sequence[Fault]
) -> None:
    ids: set[str] = set()
    in_place: list[float] = []
    for message in messages:
        at = message["at"]
        again = message["id"] in ids
        ids.add(message["id"])
        close = len(in_place) > 1 and at - in_place[-1] < period / 2
        close = close and at - in_place[-2] < 1.3 * period
        # A step has an effect until the entry is due by the new clock.
        clock = any(fault.touches(at - STEP - 2 * period, at) for fault in clocks)
        if again or (close and not clock):
            times.many += 1
            times.same_id += again
        else:
            in_place.append(at)


def table(all_times: Sequence[Times]) -> str:
    """Returns a table in Markdown."""
    head = (
        "contender",
        "seed",
        "minutes",
        "faults",
        "instants missed, entries of 1 and 2 s",
        "of 10 and 60 s",
        "too many",
        "… with the same task id",
        "longest gap, s",
        "beats that ended",
        "beats that took their turn",
    )
    rows: list[tuple[object, ...]] = [head, ("---",) * len(head)]
    rows += [
        (
            each.site["contender"],
            each.site["seed"],
            f"{each.site['minutes']:g}",
            each.faults,
            _share(each.missed, each.due),
            _share(each.rare_missed, each.rare_due),
            each.many,
            each.same_id,
            f"{each.longest:.1f}",
            each.ended,
            f"{each.turns} of {each.beats}",
        )
        for each in all_times
    ]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / max(whole, 1):.0%})"


if __name__ == "__main__":
    print(table([judge(read(Path(name))) for name in sys.argv[1:]]), end="")
