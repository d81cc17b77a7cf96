"""What is checked of the entries that have a policy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone

from celery_zk_beat.records import from_text
from celery_zk_beat.runs import RunState, end_of

from .broker import Sent
from .scenario import Rule
from .world import BEGINNING, World

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Seconds by which a run may always be late, those more that one has which was claimed just in
#: time, and those for which a beat may stand still before it sends.
_LEAST, _MORE, _SLACK = 1.0, 1.0, 8.0
#: Of what the history says of an instant that is skipped by a policy.
_LATE, _LIMIT = "skipped: later than catch_up", "skipped: more were missed than limit"


class PolicyChecker:
    """
    Attributes:
        rules: by the names of entries.
        ran: how many runs of each were claimed by its schedule.
        is_gated: another scheduler decides what is due, and counts its intervals by its store.
        clocks_are_right: of all machines, at all times.
    """

    def __init__(self, world: World, fail: Callable[[str], None], root: str) -> None:
        self._world, self._fail, self._root = world, fail, root
        self.rules: Mapping[str, Rule] = {}
        self.ran: Counter[str] = Counter()
        self.is_gated = False
        self.clocks_are_right = True

    def on_claim(self, entry: str, before: RunState, state: RunState, is_told: bool) -> bool:
        """Looks at a claim; True where several instants that were missed have a run each.

        Args:
            is_told: the claim may tell that the run before was published late, too.
        """
        rule, due = self.rules.get(entry), state.due
        if rule is None or due is None:
            return False
        policy, is_all = rule.policy, "coalesce" in rule.policy
        self.ran[entry] += 1
        most = policy.get("runs")
        if most is not None and self.ran[entry] > most:
            self._fail(f"I2: {entry}: {self.ran[entry]} runs, and not {most}: {state}")
        since = due.timestamp() - BEGINNING
        if not policy.get("starts", since) <= since <= policy.get("ends", since):
            self._fail(f"I9: {entry} runs {since} s after the beginning, against {policy}")
        if self.is_gated:
            return False
        expected = self.first(rule, before)
        # One run may have stood for what came due while it waited.
        if due != expected and not (due > expected and is_told and not self._must_all(rule)):
            self._fail(f"I2: {entry}: after {before} {expected} is due, and not {state}")
        if self._must_all(rule) and _after(rule, due) <= state.last_run_at:
            self._fail(f"I2: {entry}: one run stands for several: {before}, {state}")
        return is_all

    def on_moved(self, entry: str, before: RunState, state: RunState, is_told: bool) -> bool:
        """Looks at a clock that goes on without a run; True where a policy has skipped something,
        and another may not be the reason."""
        rule = self.rules.get(entry)
        last = state.past[-1] if state.past else None
        if rule is None:
            return False
        if last is None or last.number is not None:
            if self._must_all(rule):
                self._fail(f"I2: {entry} goes on without a run: {before}, {state}")
            return False
        note = last.note or ""
        if not note.startswith((_LATE, _LIMIT)):
            return False
        key = "catch_up" if note.startswith(_LATE) else "limit"
        if key not in rule.policy and not (key == "limit" and "coalesce" in rule.policy):
            self._fail(f"I2: {entry}: skipped against {rule.policy}: {last}")
        if not self.is_gated:
            self._on_skip(entry, rule, before, state, key, is_told)
        return True

    def _on_skip(
        self, entry: str, rule: Rule, before: RunState, state: RunState, key: str, is_told: bool
    ) -> None:
        """Nothing is skipped for the reason `key` that its policy would have run."""
        first, last, now = self.first(rule, before), state.past[-1], self._now()
        if last.due != _in_milliseconds(first) and not (last.due > first and is_told):
            self._fail(f"I2: {entry}: skipped is {last}, and not what was due after {before}")
        following = _after(rule, state.last_run_at)
        if not self.clocks_are_right:
            return
        if key == "catch_up":
            newest = following - timedelta(seconds=rule.period)
            late = (now - newest).total_seconds()
            if late <= max(_LEAST, rule.policy["catch_up"]):
                self._fail(f"I2: {entry}, due {newest}, is skipped {late} s later: {state}")
        else:
            left = (now - following) // timedelta(seconds=rule.period) + 1
            if left < rule.policy.get("limit", 100):
                self._fail(f"I2: {entry}: only {left} of those that were missed run: {state}")

    def on_sent(self, sent: Sent) -> None:
        """Looks at a message, of a run that nobody asked for."""
        rule = self.rules.get(sent.entry)
        if rule is None:
            return
        due = from_text(sent.due)
        leaves = due if sent.leaves is None else from_text(sent.leaves)
        expected = {self._leaves(sent.entry, rule, due)}
        if rule.changes:
            expected.add(due)
        if leaves not in expected:
            self._fail(f"I9: {sent} was to leave at {expected}")
        catch_up = rule.policy.get("catch_up")
        if catch_up is not None:
            late = (self._now() - leaves).total_seconds()
            if late > max(_LEAST, catch_up) + _MORE + _SLACK:
                self._fail(f"I2: {sent}: sent {late} s later than it was to leave")

    def _must_all(self, rule: Rule) -> bool:
        return "coalesce" in rule.policy and not rule.changes

    def _now(self) -> datetime:
        return datetime.fromtimestamp(BEGINNING + self._world.now, timezone.utc)

    def first(self, rule: Rule, before: RunState) -> datetime:
        """The first instant after the last run."""
        first = _after(rule, before.last_run_at)
        if rule.is_fixed:
            for _ in before.done:
                end = end_of(before.done, first)
                first = first if end is None else _after(rule, end)
        starts = rule.policy.get("starts")
        if starts is not None:
            starts = datetime.fromtimestamp(BEGINNING + starts, timezone.utc)
            if first < starts:
                last = starts - timedelta(microseconds=1)
                if rule.is_fixed:
                    first = _after(rule, last)
                elif before.due is not None and before.due >= starts:
                    # It ran for `starts` by a clock that was ahead.
                    first += -((first - starts) // timedelta(seconds=rule.period)) * timedelta(
                        seconds=rule.period
                    )
                else:
                    first = starts
        return first

    def _leaves(self, entry: str, rule: Rule, due: datetime) -> datetime:
        """As docs/policies.md has it: of root, name and instant."""
        jitter = min(rule.policy.get("jitter", 0.0), rule.period)
        name = f"{self._root}/{entry}/{(due - _EPOCH) // timedelta(milliseconds=1)}"
        share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
        return due + timedelta(milliseconds=int(share * jitter * 1000))


def _in_milliseconds(instant: datetime) -> datetime:
    return instant - (instant - _EPOCH) % timedelta(milliseconds=1)


def _after(rule: Rule, instant: datetime) -> datetime:
    """When an entry that ran then is due next."""
    period = timedelta(seconds=rule.period)
    return instant + period - (instant - _EPOCH) % period if rule.is_fixed else instant + period
