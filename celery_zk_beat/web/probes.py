"""The probes. Their answers depend only on what the beat reports."""

from __future__ import annotations

from typing import NamedTuple

from .state import ANSWERS_WITHIN, Report, State

#: A beat is alive if its dispatch loop has made progress in the last so many seconds.
ALIVE_WITHIN = 60.0


class Finding(NamedTuple):
    """One line of a probe's answer."""

    holds: bool
    text: str


#: For example, if the beat's process is stopped.
SILENT = Finding(False, f"the beat has not answered for {ANSWERS_WITHIN:g} s")


def alive(state: State, now: float) -> Finding:
    """True while the dispatch loop makes progress; `now` by boottime()."""
    ticked = state.metrics.ticked
    age = now - (ticked or state.began)
    did = f"the dispatch loop moved {age:.1f} s ago" if ticked else "the dispatch loop begins"
    return Finding(age <= ALIVE_WITHIN, did)


def ready(report: Report) -> list[Finding]:
    """All hold for a beat that could dispatch, or take over."""
    state, answers = report
    if not answers:
        return [SILENT]
    if not state.connected:
        return [Finding(False, f"no connection to ZooKeeper at {state.hosts}")]
    connected = f"connected to ZooKeeper, session time-out {state.session_timeout:g} s"
    return [Finding(True, connected), Finding(state.decided, _role(state))]


def leads(report: Report) -> Finding:
    """Holds for the master."""
    state, answers = report
    return Finding(state.epoch is not None, _role(state)) if answers else SILENT


def _role(state: State) -> str:
    if state.epoch is not None:
        return f"{state.id} is master, epoch {state.epoch}"
    if not state.decided:
        return f"{state.id} is neither master nor standby yet"
    known = "no master is known" if state.master is None else f"{state.master} is master"
    return f"{state.id} is a standby, {known}"
