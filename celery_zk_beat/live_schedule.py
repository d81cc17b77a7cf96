"""The schedule of ``beat_schedule`` and live entries. It follows the changes in ZooKeeper during a
term."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from celery.beat import Scheduler

from . import clock
from .beat_schedule import BeatSchedule
from .dispatcher import Dispatcher
from .due import copied_at, zone_of
from .errors import ZkBeatError
from .live.definitions import Content, Timing, refusal
from .live.merging import Live, Merging, entry_of, log_news, news_of
from .log import get_logger
from .names import Entries
from .policies import OwnPolicies, needs_outcomes
from .runs import Run
from .signals import entries_changed
from .source import no_collector
from .zookeeper.operations import Check

logger = get_logger(__name__)

#: Up to this many changed entries are planned one by one; for more the agenda is built again.
_MOST_ONE_BY_ONE = 500
#: Least seconds between two readings of a standby.
_READ_AHEAD_EVERY = 10.0
#: How many different schedules the cache keeps.
_MOST_SCHEDULES = 1 << 17
#: The form of :attr:`.definitions.Definition.key`: `born`, and when its clock started.
_KEY = re.compile(r"([0-9a-f]+)\.[0-9a-f]+")


class LiveSchedule(BeatSchedule):
    """The entries of ``beat_schedule`` and, while this beat is master, the live ones."""

    def __init__(self, scheduler: Scheduler, names: Entries, dispatcher: Dispatcher) -> None:
        dispatcher.policies = self._policies = OwnPolicies(dispatcher.settings.policies)
        super().__init__(scheduler, names, dispatcher)
        session, paths = dispatcher.election.session, dispatcher.election.paths
        acl = dispatcher.settings.entries_acl
        self.live = Merging(session, paths, self._make, self._refusal, dispatcher.wake, acl)
        #: Live entries that are in the schedule.
        self._ours: dict[str, Live] = {}
        #: Entries of beat_schedule that live entries replace.
        self._hidden: dict[str, Any] = {}
        #: It was said that policies need outcomes.
        self._has_warned = False
        #: The epoch in which live entries were read last.
        self._read_in: int | None = None
        #: On boottime(): when a standby may read them again.
        self._read_again = 0.0
        self._schedule = functools.lru_cache(_MOST_SCHEDULES)(_schedule_of)

    def _make(self, name: str, content: Content) -> Any:
        schedule = self._schedule(content.schedule)
        return entry_of(self._scheduler.Entry, self._scheduler.app, name, content, schedule)

    def _refusal(self, task: str) -> str | None:
        settings = self._dispatcher.settings
        setting = f"{settings.prefix}entries_tasks"
        return refusal(task, self._scheduler.app.tasks, settings.entries_tasks, setting)

    # For the planner and claims -------------------------------------------------------------------

    def key(self, name: str) -> str | None:
        live = self._ours.get(name)
        return None if live is None else live.key

    def conditions(self, runs: Iterable[Run]) -> Sequence[Check]:
        return self.live.unchanged(run.entry for run in runs)

    def is_refused(self, path: str) -> None:
        self.live.is_refused(path)

    @property
    def is_damaged(self) -> bool:
        return self.live.is_damaged

    # For the loop (Source) ------------------------------------------------------------------------

    def stand_by(self) -> None:
        """Reads the entries ahead of a term: a take-over then reads only what has changed since."""
        now, election = clock.boottime(), self._election
        if not self.live.stale or now < self._read_again or election.master is None:
            return
        self._read_again = now + _READ_AHEAD_EVERY
        with contextlib.suppress(ZkBeatError), no_collector():
            self.live.read()

    def open(self) -> None:
        super().open()
        self._tell(self.live.read())
        self._place_all()
        self._begin(self._ours)  # before pauses are read: a skip needs a state
        self._drop_lost()

    def close(self) -> None:
        """Removes the live entries from the schedule: only a master knows them."""
        super().close()
        entries = self._names.get()
        for name, live in self._ours.items():
            if _is_of(live, entries.get(name)):  # keep what a program has put there
                entries.pop(name, None)
            self._policies.give(name, {})
        for name, entry in self._hidden.items():
            self._names.put(name, entry)
        if self._ours or self._hidden:
            self._ours, self._hidden = {}, {}
            self.outdated()
            self._note_counts()

    def refresh(self) -> None:
        if self.live.stale:
            self._take_changes()
        super().refresh()

    def look_at(self, names: list[str]) -> None:
        if self.live.stale:
            self.refresh()

    def _take_changes(self) -> None:
        changed = self.live.read()
        self._tell(changed)
        for name in changed:
            self._place(name)
        if any(self._control.pauses.skip_until(name) is not None for name in changed):
            self._control.outdated()  # what it missed is skipped before it runs
        self._drop_lost()
        self._leave(changed)
        entries = self._names.get()
        is_of_code = any(name in entries and name not in self._ours for name in changed)
        if len(changed) > _MOST_ONE_BY_ONE or is_of_code:
            self.outdated()
        if self._names.is_current:
            self._begin(changed)
            self._plan_anew(changed)

    def _plan_anew(self, names: Iterable[str]) -> None:
        """Puts single entries on the agenda, or removes them."""
        entries, now, ahead = self._names.get(), clock.now(), []
        for name in names:
            self._dispatcher.ahead.forget(name)
            if name not in entries:
                self._planner.remove(name)
            elif not self._planner.put(name, entries[name], now):
                ahead.append(name)
        if ahead:
            self._note_ahead(ahead)
        self.readings += 1
        self._note_counts()

    def _note_counts(self) -> None:
        live = len(self._ours)
        counts = {"code": len(self.entries) - live, "live": live}
        self._dispatcher.metrics.by_source = counts

    def _build(self) -> None:
        self._place_all()  # a program may have replaced one
        self._begin(self._ours)
        super()._build()

    def _named(self) -> Container[str]:
        return _Named(self)

    def _tell(self, before: Mapping[str, Live | None]) -> None:
        """Reports what others have changed in this term, but not what they changed before it."""
        epoch, self._read_in = self._read_in, self._dispatcher.epoch
        if epoch != self._read_in:
            return
        news = news_of(before, self.live)
        log_news(news, epoch)
        if news:
            names: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
            for each in news:
                names[each.kind].append(each.name)
            self._dispatcher.announce(entries_changed, **names, epoch=epoch)

    # In the schedule ------------------------------------------------------------------------------

    def _place_all(self) -> None:
        for name in {*self.live.found, *self._ours, *self._hidden}:
            self._place(name)

    def _place(self, name: str) -> None:
        """Puts into the schedule the entry that is in force under a name: the live entry, unless
        `beat_schedule` has one that it does not override."""
        entries, live, ours = self._names.get(), self.live.found.get(name), self._ours.get(name)
        there = entries.get(name)
        is_ours = ours is not None and _is_of(ours, there)
        if is_ours and ours is live:
            return
        code = self._hidden.pop(name, None) if is_ours or there is None else there
        wanted = code
        if live is not None and (code is None or live.overrides):
            wanted = live.entry
            if code is not None:
                self._hidden[name] = code
        elif live is not None and live.entry is not None:
            self._names.warn_once(
                f"{name}: beat_schedule has an entry of this name, which runs; the live entry does "
                "not run, because it does not override it"
            )
        if live is not None and wanted is live.entry and wanted is not None:
            assert live.definition is not None
            self._ours[name] = live
            self._policies.give(name, self._usable(name, live.definition.content.policy_keys))
        elif self._ours.pop(name, None) is not None:
            self._policies.give(name, {})
        if wanted is None:
            entries.pop(name, None)
        elif wanted is not there:
            self._names.put(name, wanted)

    def _usable(self, name: str, keys: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a policy without the keys that need to know what became of runs, if nobody tells:
        a run that is open for ever would keep its entry from running."""
        settings = self._dispatcher.settings
        useless = needs_outcomes(keys) if settings.outcomes is None else []
        if not useless:
            return keys
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: its policy's %s needs %soutcomes, which is not set: it is ignored, here and "
                "in other live entries",
                name,
                " and ".join(map(repr, useless)),
                settings.prefix,
            )
        return {key: value for key, value in keys.items() if key not in useless}

    # In the ledger --------------------------------------------------------------------------------

    def _begin(self, names: Iterable[str]) -> None:
        """Starts the clocks of entries that are new, replace a removed one, have another schedule
        or were enabled again. A clock starts at the time of the change, even if we see it later."""
        ledger = self._ledger
        unseen: dict[str, datetime] = {}
        anew: dict[str, datetime] = {}
        keys: dict[str, str | None] = {}
        zones: dict[str, str | None] = {}
        counted: dict[str, int] = {}
        for name in names:
            live, state = self._ours.get(name), ledger.state(name)
            if live is None or (state is None and ledger.damaged(name)):
                continue
            if state is None or state.key != live.key:
                (unseen if state is None else anew)[name] = self._begins(live)
                keys[name], zones[name] = live.key, zone_of(live.entry)
                if live.definition is not None and live.definition.counted:
                    counted[name] = live.definition.counted
        ledger.first_seen(unseen, keys, zones, counted)
        ledger.begin_anew(anew, keys, zones)

    def _begins(self, live: Live) -> datetime:
        """When an entry's clock starts, by this machine's clock, which run states use."""
        ahead = timedelta(seconds=self._election.clock_offset)
        return min(live.begins + ahead, clock.now())

    def _leave(self, names: Iterable[str]) -> None:
        """Records which entries have left the schedule."""
        named = self._named()
        self._ledger.leave([name for name in names if name not in named])

    def _drop_lost(self) -> None:
        """Drops waiting runs of entries that were removed or disabled."""
        ledger = self._ledger
        lost = [
            run
            for name, run in ledger.outbox.items()
            if self._is_lost(run) and ledger.state(name) is not None
        ]
        why = "its entry was removed or disabled while it waited"
        self._dispatcher.drop(lost, why)

    def _is_lost(self, run: Run) -> bool:
        name = run.entry
        live, born = self.live.found.get(name), _KEY.fullmatch(run.key or "")
        if live is None:
            is_named = name in self._names.get() or self.live.holds(name)
            return born is not None and not is_named
        if live.definition is None or (name in self._names.get() and name not in self._ours):
            return False  # it is damaged, or beat_schedule has the entry
        is_others = born is not None and born[1] != live.definition.born
        return live.is_disabled or is_others


class _Named:
    """The names that the schedule has, also of disabled and damaged live entries."""

    def __init__(self, source: LiveSchedule) -> None:
        self._entries, self._live = source.entries, source.live

    def __contains__(self, name: object) -> bool:
        return name in self._entries or self._live.holds(str(name))


def _is_of(live: Live, entry: Any) -> bool:
    """True if `entry` is the live entry, or the one that its class made from it after a run."""
    return entry is not None and (
        entry is live.entry or getattr(entry, "schedule", None) is live.entry.schedule
    )


def _schedule_of(timing: Timing) -> Any:
    """Makes a schedule that uses the app's clock."""
    return copied_at(timing.schedule(), None)
