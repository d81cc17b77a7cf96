"""Warnings: a line for each thing that somebody should look at. (:mod:`.lenient` makes those about
records that cannot be parsed.)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from ..paths import Paths, page_of
from ..zookeeper.quota import Quota
from ..zookeeper.session import CLOCK_TOLERANCE
from .snapshot import FOR_BROKER, FOR_SCHEDULE, LIVE, Entry, Master, Member, Snapshot, WaitingRun

#: How long a run may be in the outbox before there is a warning.
WAITS_QUIETLY = timedelta(seconds=10)


def warnings_of(
    snapshot: Snapshot,
    quota: Quota | None,
    remarks: Iterable[str],
    ahead: Mapping[str, datetime],
    held_back: Mapping[str, datetime],
) -> Iterator[str]:
    """Makes all warnings of a snapshot, whose own `warnings` are still empty.

    Args:
        quota: the tightest quota that applies to the root.
        remarks: warnings about the asker.
        ahead: entries whose last run is in the future, according to ZooKeeper.
        held_back: entries whose last run is in the future, according to another scheduler's store.
    """
    now = snapshot.read_at
    yield from _about_master(snapshot.master, now)
    yield from _about_quota(quota)
    yield from remarks
    if snapshot.paused is not None:
        by = "" if snapshot.paused_by is None else f" by {snapshot.paused_by}"
        yield f"everything is paused since {_short(snapshot.paused)}{by}"
    yield from _about_single_members(snapshot.members)
    yield from _about_schedules(snapshot.schedule, snapshot.members)
    yield from _about_brokers(snapshot.members)
    yield from _about_outbox(snapshot.outbox, now)
    yield from _about_damaged(snapshot.entries)
    yield from _about_held_back(held_back)
    yield from _about_ahead(ahead, Paths.of(snapshot.hosts, snapshot.root))


def _about_master(master: Master | None, now: datetime) -> Iterator[str]:
    if master is None:
        yield "there is no master: nothing is dispatched"
    elif not master.ticking:
        since = "" if master.ticked_at is None else f" since {_short(master.ticked_at)}"
        yield f"{master.id} is master, but has not ticked{since}: does it hang?"
    if master is not None and master.ticked_at is not None:
        ahead = (master.ticked_at - now).total_seconds()
        if ahead > CLOCK_TOLERANCE:
            yield f"the clock of this machine is {ahead:.1f} s behind ZooKeeper's"


def _about_quota(quota: Quota | None) -> Iterator[str]:
    if quota is not None and quota.is_tight:
        used = f"{quota.used[0]} bytes and {quota.used[1]} znodes"
        yield (
            f"{quota.path} has a quota of {quota.limits}, and {used}: ZooKeeper may refuse to "
            f"write more, so that nothing can be dispatched: {quota.remedy}"
        )


def _about_single_members(members: Iterable[Member]) -> Iterator[str]:
    for member in members:
        offset = member.clock_offset
        if offset is not None and abs(offset) > CLOCK_TOLERANCE:
            side = "ahead of" if offset > 0 else "behind"
            yield f"the clock of {member.id} is {abs(offset):.1f} s {side} ZooKeeper's"
    for member in members:
        if member.useless is not None and member.state != "master":
            yield f"{member.id} stands back for other beats, because as master: {member.useless}"
    for member in members:
        if member.guard not in (None, "on"):
            waits = "so if it dies, standbys wait a session time-out"
            yield f"{member.id} has no guard, {waits}: {member.guard}"


def _about_schedules(digest: str, members: Iterable[Member]) -> Iterator[str]:
    other = [member.id for member in members if member.schedule not in (digest, None)]
    if other:
        yield (
            f"another schedule than the one here: {', '.join(other)}; is a deploy under way, or "
            "is this another configuration?"
        )


def _about_brokers(members: Iterable[Member]) -> Iterator[str]:
    """Does not compare with the asker's broker: an asker needs none."""
    brokers: dict[str, list[str]] = {}
    for member in members:
        if member.broker is not None:
            brokers.setdefault(member.broker, []).append(member.id)
    if len(brokers) > 1:
        told = "; ".join(f"{', '.join(ids)} to {broker}" for broker, ids in brokers.items())
        yield (
            f"the beats send to different brokers ({told}): are these two environments with one "
            "zk_beat_root?"
        )


def _about_outbox(outbox: Iterable[WaitingRun], now: datetime) -> Iterator[str]:
    """Makes one line for all runs that wait for the same. Runs with an error of their own get
    another line."""
    alike: dict[tuple[str, bool], list[WaitingRun]] = {}
    for run in outbox:
        if now - run.claimed > WAITS_QUIETLY:
            has_error = run.waits_for == FOR_BROKER and run.error is not None
            alike.setdefault((run.waits_for, has_error), []).append(run)
    for (waits_for, has_error), runs in sorted(alike.items()):
        count = "1 run waits" if len(runs) == 1 else f"{len(runs)} runs wait"
        line = f"outbox: {count} for {waits_for} since {_short(min(run.claimed for run in runs))}"
        if has_error:
            line += f", such as {runs[0].entry}: {runs[0].error}"
        elif waits_for == FOR_SCHEDULE:
            line += f", such as {runs[0].entry}; `zk-beat drop ENTRY` drops it"
        yield line


def _about_damaged(entries: Iterable[Entry]) -> Iterator[str]:
    damaged = [each for each in entries if each.error is not None and each.source != LIVE]
    for entry in damaged[:1]:
        others = f" (and so are {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        yield f"{entry.name} is damaged in its store{others}, and does not run: {entry.error}"


def _about_held_back(held_back: Mapping[str, datetime]) -> Iterator[str]:
    for name in sorted(held_back)[:1]:
        others = f" (and so of {len(held_back) - 1} more)" if len(held_back) > 1 else ""
        yield (
            f"{name} last ran at {_short(held_back[name])} according to its store{others}, which "
            "is in the future: it does not run until then, unless the store is corrected"
        )


def _about_ahead(ahead: Mapping[str, datetime], paths: Paths) -> Iterator[str]:
    for name in sorted(ahead)[:1]:
        others = f" (and so for {len(ahead) - 1} more)" if len(ahead) > 1 else ""
        yield (
            f"{name} last ran at {_short(ahead[name])} according to {paths.page(page_of(name))}"
            f"{others}, which is in the future: a clock is wrong. It continues when a master whose "
            "clock is right reads this"
        )


def _short(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds").replace("+00:00", "Z")
