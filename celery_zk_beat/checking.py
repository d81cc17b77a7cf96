"""Finds what is wrong with a configuration before it is deployed: without ZooKeeper, and without a
broker. It runs nothing, and computes no lazy argument."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import celery.app.defaults
from celery.beat import BeatLazyFunc, Scheduler

from .broker import why_not_encoded
from .due import interval_of, is_free, name_schedule, schedule_text, timing, why_never, why_no_row
from .names import by_text
from .nights import Meeting, meetings
from .outcomes.backend import why_not_told
from .policies import Policies, Policy
from .settings import BACKEND, Settings, as_written

ERROR, WARNING, NOTE = "error", "warning", "note"
_YEAR = timedelta(days=366)
_SECOND = timedelta(seconds=1)
#: Kinds of stores that make rows from the entries of `beat_schedule`.
_WITH_ROWS = ("django_celery_beat", "sqlalchemy_celery_beat", "redbeat")


@dataclass(frozen=True)
class Finding:
    """One line. An error does not work; a warning may not work; a note is only for information.

    Attributes:
        kind: for programs: setting, entry, task, arguments, schedule, clocks, policy.
        entry: its name; None if it is not about an entry.
    """

    level: str
    kind: str
    entry: str | None
    text: str

    def __str__(self) -> str:
        text = self.text if self.entry is None else f"{self.entry}: {self.text}"
        return f"{self.level}: {text}"


def made_of(app: Any, found: list[Finding]) -> dict[str, Any]:
    """Makes the entries of ``beat_schedule``, one by one. An entry that cannot be made is an
    error."""
    scheduler, entries = Scheduler(app, lazy=True), {}
    for name, fields in by_text(dict(app.conf.beat_schedule)).items():
        try:
            entry = scheduler._maybe_entry(name, fields)
            name_schedule(name, entry)
            entries[name] = entry
        except Exception as exc:
            text = f"cannot be made: {type(exc).__name__}: {exc}"
            found.append(Finding(ERROR, "entry", name, text))
    return entries


def check_names(conf: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds settings of beat that have a name which Celery does not know."""
    known = celery.app.defaults.DEFAULTS
    old = celery.app.defaults._OLD_DEFAULTS
    ours = [name for name in known if name.startswith("beat_")]
    written = {as_written(conf, name) for name in (*known, *old)}
    for key in sorted(key for key in conf if isinstance(key, str)):
        match = re.fullmatch(r"(?:celery_?)?(beat_.*)", key, re.I)
        if match is None or key in known or key in old or key in written:
            continue
        name = match[1].lower()
        if name in ours:
            text = f"{key} has no effect: write {as_written(conf, name)}"
            yield Finding(ERROR, "setting", None, text)
        elif difflib.get_close_matches(name, ours, 1, 0.85):
            guess = as_written(conf, difflib.get_close_matches(name, ours, 1, 0.85)[0])
            text = f"{key} is not a setting of Celery: did you mean {guess}?"
            yield Finding(WARNING, "setting", None, text)


def check(
    app: Any, entries: Mapping[str, Any], settings: Settings | None, now: datetime
) -> Iterator[Finding]:
    """Checks entries, one by one. `settings`: None if they cannot be read."""
    nights = _Nights(now)
    for name, entry in entries.items():
        checks: Iterable[Callable[[], Iterator[tuple[str, str, str]]]] = (
            lambda entry=entry: _check_task(app, entry),  # type: ignore[misc]
            lambda entry=entry: _check_schedule(entry, now),  # type: ignore[misc]
            lambda entry=entry: nights.of(entry),  # type: ignore[misc]
            lambda name=name, entry=entry: _check_policy(name, entry, settings, now),  # type: ignore[misc]
            lambda name=name, entry=entry: _check_outcomes(app, name, entry, settings),  # type: ignore[misc]
        )
        for each in checks:
            for level, kind, text in each():
                yield Finding(level, kind, name, text)
    if settings is not None:
        yield from _check_together(entries, settings)


def _check_task(app: Any, entry: Any) -> Iterator[tuple[str, str, str]]:
    name = str(entry.task)
    task = app.tasks.get(name)
    if task is None:
        close = difflib.get_close_matches(name, [*app.tasks], 1, 0.8)
        hint = f": did you mean {close[0]!r}?" if close else ""
        yield WARNING, "task", f"its task {name!r} is not registered here{hint}"
    args, kwargs = _known(entry.args or ()), _known(entry.kwargs or {})
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
        yield ERROR, "arguments", "its args must be a list or tuple, and its kwargs a dictionary"
        return
    options = entry.options or {}
    of_task = None if task is None else task.serializer
    serializer = options.get("serializer") or of_task or app.conf.task_serializer
    why = why_not_encoded([args, kwargs, {}], serializer)
    if why is not None:
        yield ERROR, "arguments", f"its arguments cannot be encoded as {serializer}: {why}"
    if task is not None and task.typing:
        try:
            task.__header__(*args, **kwargs)
        except TypeError as exc:
            yield ERROR, "arguments", f"its task does not accept its arguments: {exc}"


def _known(value: Any) -> Any:
    """Returns what is known now, without what is computed for each run."""
    if isinstance(value, BeatLazyFunc):
        return None
    if isinstance(value, (list, tuple)):
        return [_known(each) for each in value]
    return {key: _known(each) for key, each in value.items()} if type(value) is dict else value


def _check_schedule(entry: Any, now: datetime) -> Iterator[tuple[str, str, str]]:
    why = why_never(entry, now)
    if why is not None:
        yield ERROR, "schedule", why
    interval = interval_of(entry.schedule)
    if interval is not None and interval < _SECOND:
        level = WARNING if interval > timedelta() else ERROR
        yield level, "schedule", f"runs every {interval.total_seconds():g} s, less than 1 s"


class _Nights:
    """The nights of one year from now on. Cached: many entries have the same schedule."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._known: dict[Any, list[Meeting]] = {}

    def of(self, entry: Any) -> Iterator[tuple[str, str, str]]:
        schedule = entry.schedule
        key = schedule_text(schedule), repr(timing(schedule)), str(getattr(schedule, "tz", None))
        if key not in self._known:
            self._known[key] = [*meetings(entry, self._now, self._now + _YEAR)]
        for meeting in self._known[key]:
            yield NOTE if meeting.is_harmless else WARNING, "clocks", meeting.text


def _check_policy(
    name: str, entry: Any, settings: Settings | None, now: datetime
) -> Iterator[tuple[str, str, str]]:
    policy: Policy | None = None if settings is None else settings.policies.of(name)
    if policy is None:
        return
    if is_free(entry):
        yield WARNING, "policy", "its policy is not applied: a class of yours says when it is due"
    if policy.ends is not None:
        if policy.starts is not None and policy.ends < policy.starts:
            yield ERROR, "policy", "'ends' is before 'starts' in its policy: it never runs"
        elif policy.ends < now:
            yield WARNING, "policy", f"its policy has ended: {policy.ends.isoformat()}"


def _check_outcomes(
    app: Any, name: str, entry: Any, settings: Settings | None
) -> Iterator[tuple[str, str, str]]:
    """What nobody can tell of its runs."""
    policy = None if settings is None else settings.policies.of(name)
    if settings is None or settings.outcomes != BACKEND or policy is None or not policy.is_tracked:
        return
    for text in why_not_told(app, entry, policy.start_within is not None):
        yield WARNING, "policy", text


def _check_together(entries: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    if settings.scheduler is None:
        policies: Policies = settings.policies
        for pattern in policies.unmatched(entries):
            text = f"{settings.prefix}policies: {pattern!r} matches no entry"
            if settings.entries:
                yield Finding(
                    NOTE, "policy", None, f"{text} of beat_schedule: live ones are unseen"
                )
            else:
                yield Finding(WARNING, "policy", None, text)
        return
    package = settings.scheduler.partition(".")[0].partition(":")[0]
    for name, entry in entries.items() if package in _WITH_ROWS else ():
        why = why_no_row(entry.schedule, keeps_zones=package != "redbeat")
        if why is not None:
            yield Finding(ERROR, "schedule", name, why)
