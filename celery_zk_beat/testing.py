"""For tests of your schedule: what runs when, without servers.

from celery_zk_beat.testing import timeline

def test_the_night_of_the_change() -> None:
    found = timeline(app, "2026-10-24T22:00Z", "2026-10-25T06:00Z")
    assert [run.due.hour for run in found.runs_of("nightly")] == [1]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Union

from .forecast import Forecast, Missed, Upcoming
from .runs import RunState
from .schedulers import scheduler_of
from .source import no_collector

__all__ = ["Missed", "Timeline", "Upcoming", "timeline"]

#: An aware datetime, or ISO 8601 with an offset or Z.
Instant = Union[datetime, str]


@dataclass(frozen=True)
class Timeline:
    """What happens to a schedule. Instants are aware, in UTC.

    Attributes:
        runs: in the order in which they are sent.
        skips: the instants that policies skip, in order.
    """

    runs: tuple[Upcoming, ...]
    skips: tuple[Missed, ...]

    def runs_of(self, entry: str) -> list[Upcoming]:
        """The runs of one entry."""
        return [run for run in self.runs if run.entry == entry]

    def skips_of(self, entry: str) -> list[Missed]:
        """The skips of one entry."""
        return [skip for skip in self.skips if skip.entry == entry]


def timeline(
    app: Any,
    start: Instant,
    end: Instant,
    outages: Iterable[tuple[Instant, Instant]] = (),
    last_run_at: Mapping[str, Instant] | None = None,
) -> Timeline:
    """Returns what an app's ``beat_schedule`` runs and skips between two instants. The app's
    policies apply: the same code decides in production.

    Args:
        app: the Celery app.
        start, end: both included.
        outages: pairs of instants between which no beat dispatches.
        last_run_at: when entries last ran, by name; the clocks of other entries start at `start`.

    Raises:
        ValueError: an instant is not aware, or is not an instant; or an outage ends before it
            begins.
        SystemExit: a setting cannot work, as at the start of beat.

    If an entry's own class reads the clock itself, not through its schedule's ``nowfun``, it sees
    the present time, not that of the timeline.
    """
    began, ended = _utc(start), _utc(end)
    cuts = sorted((_utc(since), _utc(until)) for since, until in outages)
    for since, until in cuts:
        if until < since:
            raise ValueError(f"an outage from {since} ends before that, at {until}")
    scheduler, _ = scheduler_of(app)
    states = {name: RunState(_utc(at)) for name, at in (last_run_at or {}).items()}
    forecast = Forecast(scheduler, scheduler.settings, began, states)
    found: list[Upcoming | Missed] = []
    with no_collector():  # all that is found stays
        for since, until in cuts:
            if since <= ended and until > forecast.now:
                found += forecast.until(min(since, ended))
                forecast.outage(until)
        found += forecast.until(ended)
    runs = [each for each in found if isinstance(each, Upcoming)]
    runs.sort(key=lambda run: run.at)
    return Timeline(tuple(runs), tuple(each for each in found if isinstance(each, Missed)))


def _utc(instant: Instant) -> datetime:
    found = instant
    if isinstance(found, str):
        found = datetime.fromisoformat(found.replace("Z", "+00:00"))
    if not isinstance(found, datetime) or found.utcoffset() is None:
        raise ValueError(
            f"{instant!r}: expected an aware datetime, or a text such as '2026-06-01T09:00Z'"
        )
    return found.astimezone(timezone.utc)
