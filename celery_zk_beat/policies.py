"""What an entry's policy says of an instant: run, skip (why), or wait until. Pure: no I/O, no
clock."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, Protocol

from .errors import SettingsError

#: Values of `coalesce`: one run for all that was missed, or each its own.
ONE, ALL = "one", "all"
#: Values of `overlap`: what becomes of an instant that comes while a run of the entry is open.
ALLOW, SKIP, QUEUE = "allow", "skip", "queue"
#: A wait that ends when the open run does, not by time.
_FOREVER = datetime(9999, 1, 1, tzinfo=timezone.utc)
#: So late a run may always be: claims, and clocks, are not exact.
LEAST_CATCH_UP = timedelta(seconds=1)
#: Most runs that "all" may have wait.
_LARGEST_LIMIT = 10_000
_LONGEST = timedelta(days=3650)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND, _MILLISECOND = timedelta(microseconds=1), timedelta(milliseconds=1)


class Instants(Protocol):
    """When an entry is due by its schedule. Instants are aware, UTC."""

    #: True where they are the same whenever the entry ran last.
    is_fixed: bool

    def beginning(self, instant: datetime) -> Instants:
        """Those of an entry that is due at this one first."""

    def after(self, instant: datetime) -> datetime | None:
        """The first after another; None where there is none."""

    def clock_before(self, instant: datetime) -> datetime:
        """A `last_run_at` after which the entry is due at this one next."""

    def last(self, since: datetime, until: datetime, most: int) -> datetime | None:
        """Of those from `since`, which is one, up to `until`: the first of the last so many; None
        where there are no more than that."""


class Verdict(NamedTuple):
    """What is to become of an entry.

    Attributes:
        due: the instant that it is about; None: nothing more runs.
        leaves: when the run for it is to be published, at or after `due`.
        skipped: why `due` is skipped, one of metrics.SKIPPED; None where it runs.
        clock: the `last_run_at` from which the entry's clock goes on, where that does not depend
            on when the run is claimed.
        waits: when to decide again; None if it is decided.
    """

    due: datetime | None
    leaves: datetime
    skipped: str | None = None
    clock: datetime | None = None
    waits: datetime | None = None


@dataclass(frozen=True)
class Policy:
    """How an entry runs. Immutable.

    Attributes:
        catch_up: how late a run may start; None: without limit.
        coalesce: what becomes of several missed instants: one run, or each its own.
        limit: most missed instants that run where each has its own: the last so many.
        jitter: a run leaves up to so much later than it is due, but before it is due again.
        starts, ends: nothing that is due before, or after, runs; aware.
        runs: how many runs, in all.
        track: record what becomes of each run.
        overlap: what becomes of an instant that comes while a run is open: "allow" runs it too,
            "skip" skips it, "queue" lets it wait until the open run has ended.
        overlap_timeout: how long a run may be open before it counts as ended, though nobody has
            reported that.
        start_within, finish_within: how long after it is dispatched a run is to have begun, and
            ended; None: without limit.
        pause_after_failures: pause the entry once so many runs have failed in a row; None: never.
    """

    catch_up: timedelta | None = None
    coalesce: str = ONE
    limit: int = 100
    jitter: timedelta = timedelta()
    starts: datetime | None = None
    ends: datetime | None = None
    runs: int | None = None
    track: bool = False
    overlap: str = ALLOW
    overlap_timeout: timedelta = timedelta(days=1)
    start_within: timedelta | None = None
    finish_within: timedelta | None = None
    pause_after_failures: int | None = None

    @property
    def is_tracked(self) -> bool:
        """True if anything of it needs to know what becomes of runs."""
        return bool(
            self.track
            or self.overlap != ALLOW
            or self.start_within is not None
            or self.finish_within is not None
            or self.pause_after_failures
        )

    def decide(
        self,
        due: datetime,
        now: datetime,
        instants: Instants,
        ran: int,
        seed: str,
        last_due: datetime | None = None,
        is_open: bool = False,
    ) -> Verdict:
        """What is to become of `due`, the first instant at which the entry is due after its last
        run, by `now`.

        Args:
            ran: how many runs there were.
            seed: of the jitter; the same for an entry at each beat.
            last_due: the last instant that ran.
            is_open: a run of the entry has not ended.
        """
        verdict = self._decide(due, now, instants, ran, seed, last_due)
        if not is_open or self.overlap == ALLOW or verdict.due is None or verdict.skipped:
            return verdict
        if now < verdict.leaves:  # the run may end until then
            return verdict._replace(waits=verdict.leaves)
        if self.overlap == SKIP:
            return verdict._replace(skipped="overlap")
        return verdict._replace(waits=_FOREVER)

    def _decide(
        self,
        due: datetime,
        now: datetime,
        instants: Instants,
        ran: int,
        seed: str,
        last_due: datetime | None,
    ) -> Verdict:
        first = self._first(due, instants, last_due)
        if first is None or (self.runs is not None and ran >= self.runs):
            return Verdict(None, due)
        instants = instants.beginning(first)
        due, leaves = first, self.leaves(first, instants, seed)
        if self.is_too_late(leaves, now):
            return self._skip_late(due, now, instants, seed)
        if self.coalesce != ALL:
            return Verdict(due, leaves)
        until = now if self.ends is None else min(now, self.ends)
        if due < until:
            kept = instants.last(due, until, self.limit)
            if kept is not None:
                return Verdict(due, leaves, "limit", instants.clock_before(kept))
        # The next is due after this one, though it is missed already.
        return Verdict(due, leaves, clock=due)

    def is_too_late(self, leaves: datetime, now: datetime) -> bool:
        """True where what was to be published then is not to start any more."""
        catch_up = self.catch_up
        return catch_up is not None and now - leaves > max(catch_up, LEAST_CATCH_UP)

    def _first(
        self, due: datetime, instants: Instants, last_due: datetime | None
    ) -> datetime | None:
        """`due`, or the first instant from `starts` on; None where that is after `ends`."""
        first, starts = due, self.starts
        if starts is not None and due < starts:
            # `starts` itself is no instant of an interval that has run by a clock that was ahead.
            is_grid = instants.is_fixed or (last_due is not None and last_due >= starts)
            found = instants.after(starts - _MICROSECOND) if is_grid else starts
            if found is None:
                return None
            first = found
        return None if self.ends is not None and first > self.ends else first

    def leaves(self, due: datetime, instants: Instants, seed: str) -> datetime:
        """When the run for `due` is to be published: the same at each beat, before the next."""
        if not self.jitter:
            return due
        following, most = instants.after(due), self.jitter
        if following is not None:
            most = min(most, following - due)
        name = f"{seed}/{(due - _EPOCH) // _MILLISECOND}".encode("utf-8", "surrogatepass")
        share = int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / 2**48
        return due + math.floor(share * (most / _MILLISECOND)) * _MILLISECOND

    def _skip_late(self, due: datetime, now: datetime, instants: Instants, seed: str) -> Verdict:
        """Skips all that is too late by now."""
        assert self.catch_up is not None
        # What leaves before the next is due is too late where that is, too.
        oldest = now - max(self.catch_up, LEAST_CATCH_UP)
        kept: datetime | None = instants.last(due, oldest, 1) or due
        while kept is not None and self.is_too_late(self.leaves(kept, instants, seed), now):
            kept = instants.after(kept)
        clock = now if kept is None else instants.clock_before(kept)
        return Verdict(due, due, "catch_up", max(due, clock))


#: Keys of a policy that users write.
_KEYS = (*(each.name for each in dataclasses.fields(Policy)), "once")
#: Those that make sense where another scheduler decides what is due.
_GATED_KEYS = (
    *("catch_up", "jitter", "track", "overlap", "overlap_timeout"),
    *("start_within", "finish_within", "pause_after_failures"),
)
#: Those that need to know what becomes of runs, with the values that do not.
_TRACKING_KEYS: dict[str, tuple[Any, ...]] = {
    "track": (False,),
    "overlap": (ALLOW,),
    "start_within": (None,),
    "finish_within": (None,),
    "pause_after_failures": (None,),
}


@dataclass(frozen=True)
class Policies:
    """The setting ``zk_beat_policies``: patterns of names, as of fnmatch, to parts of policies.

    Attributes:
        parts: those that come later win, key by key.
    """

    parts: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    _known: dict[str, Policy | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __bool__(self) -> bool:
        return bool(self.parts)

    def of(self, name: str) -> Policy | None:
        """That of an entry; None where no pattern matches its name. From any thread."""
        if not self.parts:
            return None
        if name not in self._known:
            found = self._keys_of(name)
            self._known[name] = _policy(found) if found else None
        return self._known[name]

    def _keys_of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pattern, keys in self.parts:
            if fnmatch.fnmatchcase(name, pattern):
                found.update(keys)
        return found

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of these."""
        names = list(names)
        return [pattern for pattern, _ in self.parts if not fnmatch.filter(names, pattern)]

    def refuse_tracking(self, remedy: str) -> None:
        """Raises SettingsError, which ends with `remedy`, if a policy needs to know what becomes of
        runs."""
        for pattern, keys in self.parts:
            for key in needs_outcomes(keys):
                raise SettingsError(f"{pattern!r}: {key!r}: {keys[key]!r} {remedy}")

    def refuse_what_gated_cannot(self) -> None:
        """Raises SettingsError where a policy has a key that makes no sense where another
        scheduler decides what is due."""
        for pattern, keys in self.parts:
            for key in keys:
                if key not in _GATED_KEYS:
                    raise SettingsError(
                        f"{pattern!r}: {key!r} does not work with zk_beat_scheduler, which decides "
                        f"what is due; expected one of {', '.join(_GATED_KEYS)}"
                    )
            if keys.get("overlap") == QUEUE:
                raise SettingsError(
                    f"{pattern!r}: 'overlap': {QUEUE!r} does not work with zk_beat_scheduler, "
                    f"which goes on to the next instant; expected {ALLOW!r} or {SKIP!r}"
                )


NO_POLICIES = Policies()


class OwnPolicies(Policies):
    """Where entries have policies of their own beside those of the setting: their keys win."""

    _own: dict[str, Policy]

    def __init__(self, setting: Policies) -> None:
        super().__init__(setting.parts)
        object.__setattr__(self, "_own", {})

    def __bool__(self) -> bool:
        return bool(self.parts or self._own)

    def of(self, name: str) -> Policy | None:
        return self._own.get(name) or super().of(name)

    def give(self, name: str, keys: Mapping[str, Any]) -> None:
        """Has an entry have these keys of its own; perhaps none."""
        if keys:
            self._own[name] = _policy({**self._keys_of(name), **keys})
        else:
            self._own.pop(name, None)


def _policy(keys: Mapping[str, Any]) -> Policy:
    fields = dict(keys)
    if fields.pop("once", False):
        fields["runs"] = 1
    return Policy(**fields)


def check_policies(value: Any) -> Policies:
    """Returns policies of what a user wrote.

    Raises:
        SettingsError: a pattern, key or value that cannot be.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{value!r}: expected a dictionary, pattern to policy")
    parts = []
    for pattern, keys in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise SettingsError(f"{pattern!r}: expected a pattern of entries' names")
        if not isinstance(keys, Mapping):
            raise SettingsError(f"{pattern!r}: {keys!r}: expected a dictionary")
        try:
            checked = check_policy(keys)
        except SettingsError as exc:
            raise SettingsError(f"{pattern!r}: {exc}") from None
        parts.append((pattern, checked))
    return Policies(tuple(parts))


def check_policy(keys: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the keys of one policy. Raises as :func:`check_policies`."""
    checked = {key: _check(key, item) for key, item in keys.items()}
    _check_together(checked)
    return checked


def needs_outcomes(keys: Mapping[str, Any]) -> list[str]:
    """The keys of a checked policy that need to know what becomes of runs."""
    return [key for key, free in _TRACKING_KEYS.items() if key in keys and keys[key] not in free]


_SPANS = ("catch_up", "jitter", "overlap_timeout", "start_within", "finish_within")
_CHOICES = {"coalesce": (ONE, ALL), "overlap": (ALLOW, SKIP, QUEUE)}
_MOST = {"limit": _LARGEST_LIMIT, "runs": 10**9, "pause_after_failures": 1000}
_MAY_BE_NONE = (
    *("catch_up", "starts", "ends", "runs"),
    *("start_within", "finish_within", "pause_after_failures"),
)


def _check(key: Any, value: Any) -> Any:
    if key not in _KEYS:
        raise SettingsError(f"{key!r} is not a key of a policy; expected one of {', '.join(_KEYS)}")
    if value is None and key in _MAY_BE_NONE:
        return None
    if key in _SPANS:
        return _check_span(key, value)
    if key in ("starts", "ends"):
        return _check_instant(key, value)
    if key in _CHOICES and value not in _CHOICES[key]:
        choices = [repr(each) for each in _CHOICES[key]]
        raise SettingsError(
            f"{key!r}: {value!r}: expected {', '.join(choices[:-1])} or {choices[-1]}"
        )
    if key in ("once", "track") and not isinstance(value, bool):
        raise SettingsError(f"{key!r}: {value!r}: expected True or False")
    if key in _MOST:
        most = _MOST[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise SettingsError(f"{key!r}: {value!r}: expected a whole number, 1 to {most}")
    return value


def _check_span(key: str, value: Any) -> timedelta:
    span = value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        span = timedelta(seconds=min(max(value, -1), 1e10))
    if not isinstance(span, timedelta) or not timedelta() <= span <= _LONGEST:
        raise SettingsError(
            f"{key!r}: {value!r}: expected seconds or a timedelta, 0 to {_LONGEST.days} days"
        )
    return span


def _check_instant(key: str, value: Any) -> datetime:
    instant = value
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            instant = None
    if isinstance(instant, datetime) and instant.utcoffset() is not None:
        with contextlib.suppress(OverflowError):  # in UTC it is before year 1, or after 9999
            return instant.astimezone(timezone.utc)
    raise SettingsError(
        f"{key!r}: {value!r}: expected an aware datetime, or as '2026-06-01T09:00:00+02:00'"
    )


def _check_together(keys: Mapping[str, Any]) -> None:
    starts, ends = keys.get("starts"), keys.get("ends")
    if starts is not None and ends is not None and ends < starts:
        raise SettingsError("'ends' is before 'starts': nothing would ever run")
    if keys.get("once") and (keys.get("runs") or 1) != 1:
        raise SettingsError(f"'once' and 'runs': {keys['runs']} contradict each other")
    if "limit" in keys and keys.get("coalesce") == ONE:
        raise SettingsError(f"'limit' is for 'coalesce': {ALL!r} alone")
