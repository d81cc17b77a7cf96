"""Judges a campaign by its history alone.

    python -m tests.chaos.checker HISTORY

A run is one due execution of an entry, identified by the number in its message. Violations are:

- lost: a run whose message never came and that at the end is neither in the outbox nor recorded as
  dropped; or an entry that was silent for longer than its period and the faults explain;
- repeated with another task id; or repeated with the same id although between the two no other
  master was elected, and neither the broker nor the connection to it had a fault;
- backwards: an entry's number of runs went down; or its `last_run_at`, unless a clock that was
  ahead had written it;
- overlap: a message of an epoch came after one of a later epoch, unless it was delayed on its way
  (its sender was stopped, or the broker or the connection to it had a fault; for each such fault
  one message, or as many as left together). Those are counted as late (docs/guarantees.md);
- hand: a beat ended by itself, or did not become master again when its turn came.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from celery_zk_beat.broker import MOST_TOGETHER

from .record import Event, read

#: Seconds that a busy machine may take for what has no other limit: to notice that a session is
#: over, elect, read the run states, and connect again.
RECOVERY = 3.0
#: Seconds that beat allows for a request to the broker, and the longest pause before the next.
BROKER_TIMEOUT, BACK_OFF = 5.0, 10.0
#: How far a clock is set off, seconds.
STEP = 5.0
SLACK = 1.0

KINDS = ("lost", "other id", "repeated without cause", "backwards", "overlap", "hand")


@dataclass(frozen=True)
class Fault:
    """A fault as it happened. Times are seconds since 1970."""

    number: int
    verb: str
    on: str
    beat: str | None
    begin: float
    end: float

    def touches(self, begin: float, end: float) -> bool:
        return self.begin <= end and self.end >= begin

    @property
    def holds_up(self) -> bool:
        """True if a message that was on its way may arrive when the fault is over."""
        return self.on == "broker" or (self.on == "broker road" and "cut" not in self.verb)


@dataclass
class Verdict:
    """`violations` are sentences by kind. The rest are counts and seconds."""

    site: Event
    faults: list[Fault]
    violations: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    messages: int = 0
    runs: int = 0
    executed: int = 0
    epochs: int = 0
    repeated: int = 0
    late: list[str] = field(default_factory=list)
    turns: list[str | None] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    longest: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return self.messages > 0 and not any(self.violations.values())


def check(history: Sequence[Event]) -> Verdict:
    """Judges a whole history."""
    by_kind: dict[str, list[Event]] = defaultdict(list)
    for event in history:
        by_kind[event["event"]].append(event)
    messages = by_kind["message"]
    verdict = Verdict(by_kind["site"][0], faults_of(history), messages=len(messages))
    verdict.epochs = max((m["epoch"] or 0 for m in messages), default=0)
    verdict.skipped = [f"{event['verb']}: {event['why']}" for event in by_kind["skipped"]]
    verdict.turns = [event["beat"] for event in by_kind["turn"]]
    ids = {message["id"] for message in messages}
    verdict.executed = len(ids & {event["id"] for event in by_kind["executed"]})

    by_entry: dict[str, list[Event]] = {name: [] for name in verdict.site["entries"]}
    for message in messages:
        by_entry[message["entry"]].append(message)
    states = by_kind["states"]
    for entry, sent in by_entry.items():
        _check_runs(verdict, entry, sent, states[-1] if states else None)
        _check_repeats(verdict, entry, sent)
        _check_states(verdict, entry, states)
    _check_order(verdict, messages)
    _check_silence(verdict, by_entry, span_of(history), terms_of(history))
    _check_hands(verdict, by_kind)
    return verdict


def faults_of(history: Iterable[Event]) -> list[Fault]:
    """Returns the faults. A fault that never ended lasts to the end of the history."""
    events = list(history)
    ends: dict[int, float] = {
        e["number"]: e["at"] for e in events if e["event"] == "fault" and e["phase"] == "end"
    }
    over: float = events[-1]["at"] if events else 0.0
    return [
        Fault(
            e["number"],
            e["verb"],
            e["on"],
            e["beat"],
            e["at"],
            ends.get(e["number"], over),
        )
        for e in events
        if e["event"] == "fault" and e["phase"] == "begin"
    ]


def _check_runs(verdict: Verdict, entry: str, sent: Sequence[Event], last: Event | None) -> None:
    """Checks that every run up to the last claimed one has come, or is known to be on its way, or
    is known not to come at all."""
    numbers = {message["run"] for message in sent}
    verdict.runs += len(numbers)
    if last is None:
        verdict.violations["lost"].append(f"{entry}: no state was ever read")
        return
    _, claimed, dropped, _ = last["entries"].get(entry, ("", 0, [], 0))
    excused = set(dropped) | {number for name, number in last["outbox"] if name == entry}
    for number in range(1, max([claimed, *numbers], default=0) + 1):
        if number not in numbers and number not in excused:
            verdict.violations["lost"].append(f"{entry}: run {number} of {claimed} never came")
    if numbers and max(numbers) > claimed:
        text = f"{entry}: run {max(numbers)} came, and its state knows only {claimed}"
        verdict.violations["backwards"].append(text)


def _check_repeats(verdict: Verdict, entry: str, sent: Sequence[Event]) -> None:
    first: dict[int, Event] = {}
    runs: dict[str, int] = {}
    newest = 0
    for message in sent:
        run = message["run"]
        if runs.setdefault(message["id"], run) != run:
            text = f"{entry}: {message['id']} is the id of the runs {runs[message['id']]} and {run}"
            verdict.violations["other id"].append(text)
        before = first.setdefault(run, message)
        if before is not message:
            _check_repeat(verdict, entry, before, message)
        elif run < newest:
            text = f"{entry}: run {run} first came after run {newest}"
            verdict.violations["backwards"].append(text)
        newest = max(newest, run)


def _check_repeat(verdict: Verdict, entry: str, before: Event, message: Event) -> None:
    """Checks that a repeated run had a reason to be repeated, and has the same id."""
    text = f"{entry}: run {message['run']} of epoch {before['epoch']} came again, "
    text += f"{message['at'] - before['at']:.2f} s later, from epoch {message['epoch']}"
    if message["id"] != before["id"]:
        verdict.violations["other id"].append(text)
        return
    verdict.repeated += 1
    begin, end = before["at"] - BROKER_TIMEOUT, message["at"]
    hurt = any(
        fault.on in ("broker", "broker road") and fault.touches(begin, end)
        for fault in verdict.faults
    )
    if before["epoch"] == message["epoch"] and not hurt:
        verdict.violations["repeated without cause"].append(text)


def _check_states(verdict: Verdict, entry: str, states: Sequence[Event]) -> None:
    """Checks the states in the order in which ZooKeeper accepted them. We may have read them in
    another order, if our own session changed the server."""
    seen = sorted(
        (e["entries"][entry][3], *e["entries"][entry][:2]) for e in states if entry in e["entries"]
    )
    for (_, at, count), (zxid, next_at, next_count) in zip(seen, seen[1:]):
        is_back = next_at < at and not _was_ahead(verdict, at, next_at)
        if is_back or next_count < count:
            text = f"{entry}: from run {count} at {at} to {next_count} at {next_at}, zxid {zxid}"
            verdict.violations["backwards"].append(text)


def _was_ahead(verdict: Verdict, at: str, next_at: str) -> bool:
    """True if a beat whose clock was ahead may have written `at`, and another beat set it back."""
    last, earlier = map(datetime.fromisoformat, (at, next_at))
    written = last.timestamp() - STEP - SLACK, last.timestamp() + SLACK
    return (last - earlier).total_seconds() <= STEP + SLACK and any(
        fault.on == "clock" and fault.touches(*written) for fault in verdict.faults
    )


def _check_order(verdict: Verdict, messages: Sequence[Event]) -> None:
    """Checks for messages of an older epoch after those of a newer one."""
    newest: Event | None = None
    ids = Counter(message["id"] for message in messages)
    held: dict[int, list[Event]] = defaultdict(list)
    for message in messages:
        if newest is None or message["epoch"] >= newest["epoch"]:
            newest = message
            continue
        text = f"{message['entry']}: run {message['run']} of epoch {message['epoch']} from "
        text += f"{message['beat']} came after one of epoch {newest['epoch']} from {newest['beat']}"
        text += f" ({'also' if ids[message['id']] > 1 else 'not'} sent by another master)"
        for fault in verdict.faults:
            # A little longer, until what it delayed has arrived.
            near = fault.begin <= message["at"] <= fault.end + SLACK
            stopped = fault.on == "process" and "stop" in fault.verb
            hers = fault.beat in (message["beat"], None)
            explains = near and hers and (stopped or fault.holds_up)
            if explains and _left_with(message, held[fault.number]):
                held[fault.number].append(message)
                verdict.late.append(f"{text}; {fault.verb} of {fault.end - fault.begin:.1f} s")
                break
        else:
            verdict.violations["overlap"].append(text)


def _left_with(message: Event, others: Sequence[Event]) -> bool:
    """True if it may have left together with these; there may be none of them."""
    fields = ("at", "beat", "epoch")
    return len(others) < MOST_TOGETHER and all(
        message[field] == other[field] for other in others for field in fields
    )


@dataclass(frozen=True)
class Term:
    """The term of `beat`, as the samples show it; None: there was no master."""

    beat: str | None
    begin: float
    end: float


def terms_of(history: Sequence[Event]) -> list[Term]:
    """Returns who was master when."""
    masters = [event for event in history if event["event"] == "master"]
    ends = [*(event["at"] for event in masters[1:]), history[-1]["at"]]
    return [Term(event["id"], event["at"], end) for event, end in zip(masters, ends)]


def span_of(history: Sequence[Event]) -> tuple[float, float]:
    """Returns the time from the first message to a while after the end of the faults."""
    first = next((e["at"] for e in history if e["event"] == "message"), history[0]["at"])
    healed = next((e["at"] for e in history if e["event"] == "healed"), history[-1]["at"])
    return first, healed


def excuses(verdict: Verdict, terms: Sequence[Term], timeout: float) -> list[tuple[float, float]]:
    """Returns the times in which nobody could dispatch, or nobody had to yet: from the beginning of
    a fault to the latest time at which all must work again."""
    found = []
    for fault in verdict.faults:
        length = fault.end - fault.begin
        until = fault.end
        if fault.on in ("process", "zookeeper road"):
            if not _hits_master(fault, terms):
                continue
            until = min(fault.end, fault.begin + 1.5 * timeout)
        elif fault.on == "broker road":
            if not _hits_master(fault, terms):
                continue
            until += BROKER_TIMEOUT + min(length, BACK_OFF)
        elif fault.on == "broker":
            until += BROKER_TIMEOUT + min(length, BACK_OFF)
        elif fault.on == "clock":
            until += STEP
        elif fault.on == "ensemble":
            until += 1.5 * timeout
        found.append((fault.begin, until + RECOVERY))
    return _united(found)


def _hits_master(fault: Fault, terms: Sequence[Term]) -> bool:
    """True if its victim was master at any time during it, as far as samples show."""
    return any(
        term.beat == fault.beat and fault.touches(term.begin - SLACK, term.end + SLACK)
        for term in terms
    )


def _united(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    united: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if united and begin <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((begin, end))
    return united


def _check_silence(
    verdict: Verdict,
    by_entry: dict[str, list[Event]],
    span: tuple[float, float],
    terms: Sequence[Term],
) -> None:
    excused = excuses(verdict, terms, verdict.site["session_timeout"])
    for entry, sent in by_entry.items():
        period = verdict.site["entries"][entry]
        inside = [m["at"] for m in sent if span[0] <= m["at"] <= span[1]]
        times = [span[0], *inside, span[1]]
        for begin, end in zip(times, times[1:]):
            gap = end - begin
            if gap > verdict.longest.get(entry, (0.0, 0.0))[0]:
                verdict.longest[entry] = gap, begin
            if gap <= 2 * period + SLACK:
                continue
            excuse = sum(max(0.0, min(end, b) - max(begin, a)) for a, b in excused)
            if gap - excuse > 2 * period + SLACK:
                text = f"{entry}: silent for {gap:.1f} s, of which faults explain {excuse:.1f} s, "
                text += f"from {begin:.3f}"
                verdict.violations["lost"].append(text)


def _check_hands(verdict: Verdict, by_kind: dict[str, list[Event]]) -> None:
    hands = verdict.violations["hand"]
    for event in by_kind["ended"]:
        hands.append(f"{event['beat']} ended by itself with {event['exit_code']}")
    missing = set(verdict.site["beats"]) - {event["beat"] for event in by_kind["turn"]}
    if not by_kind["turn"]:
        hands.append("the history ends before the beats had their turns")
    elif missing:
        hands += [f"{name} did not become master when its turn came" for name in sorted(missing)]


def summary(verdict: Verdict) -> str:
    """Returns a summary as plain text."""
    site = verdict.site
    verbs = Counter(fault.verb for fault in verdict.faults)
    versions = ", ".join(f"{name} {number}" for name, number in site["versions"].items())
    short = [gap for entry, gap in verdict.longest.items() if site["entries"][entry] < 10]
    longest = max(short, default=(0.0, 0.0))
    lines = [
        f"{site['contender']}, seed {site['seed']}, {site['minutes']:g} minutes ({versions})",
        f"  {len(verdict.faults)} faults: "
        + ", ".join(f"{count} {verb}" for verb, count in sorted(verbs.items())),
        *(f"  skipped: {text}" for text in verdict.skipped),
        f"  {verdict.messages} messages of {verdict.runs} runs in {verdict.epochs} epochs; "
        f"{verdict.executed} runs executed",
        f"  lost {_count(verdict, 'lost')}, repeated with the same task id {verdict.repeated} "
        f"(without cause {_count(verdict, 'repeated without cause')}), with another "
        f"{_count(verdict, 'other id')}, backwards {_count(verdict, 'backwards')}",
        f"  overlaps {_count(verdict, 'overlap')}, late {len(verdict.late)}, "
        f"beats that needed a hand {_count(verdict, 'hand')}, longest gap {longest[0]:.1f} s",
        *(f"  late: {text}" for text in verdict.late),
    ]
    for kind, texts in verdict.violations.items():
        lines += [f"  VIOLATION, {kind}: {text}" for text in texts]
    lines.append("  good" if verdict.good else "  NOT GOOD")
    return "\n".join(lines) + "\n"


def _count(verdict: Verdict, kind: str) -> int:
    return len(verdict.violations[kind])


def main(path: str) -> int:
    verdict = check(read(Path(path)))
    print(summary(verdict), end="")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
