"""What becomes of tracked runs, from Celery's result backend: real beats and workers."""

from __future__ import annotations

from kazoo.client import KazooClient

from celery_zk_beat.history import decode_volume, merged
from celery_zk_beat.paths import Paths, page_of, volume_of
from celery_zk_beat.runs import PastRun, decode_page
from example_project.servers import wait_until
from tests.conftest import PATIENCE

from .conftest import Site

APP = "tests.acceptance.outcomes_app"
LASTS = 0.8


def past_of(client: KazooClient, paths: Paths, entry: str) -> list[PastRun]:
    page, volume = paths.page(page_of(entry)), paths.volume(volume_of(page_of(entry)))
    if not client.exists(page):
        return []
    state = decode_page(page, client.get(page)[0]).get(entry)
    pasts = decode_volume(volume, client.get(volume)[0]) if client.exists(volume) else {}
    return [*merged(pasts.get(entry, ()), () if state is None else state.past)]


def test_the_result_backend(site: Site, client: KazooClient) -> None:
    """Of a task that takes longer than its period, never two runs at once, also across a take-over;
    what becomes of each run is in the history."""
    paths = Paths(site.conf["zk_beat_root"])
    site.conf["beat_schedule"] = {
        "long": {"task": f"{APP}.works", "schedule": 0.3, "args": [LASTS]},
        "bad": {"task": f"{APP}.fails", "schedule": 1.0},
    }
    site.conf["zk_beat_policies"] = {"long": {"overlap": "skip"}, "bad": {"track": True}}
    site.conf.update(zk_beat_outcomes="backend", result_extended=True)
    site.worker("worker", "-c", "3", app=APP)
    master = site.beat("one")
    master.wait_for_log("elected: one is master", PATIENCE)
    site.beat("two")

    def ended(entry: str, count: int) -> list[PastRun]:
        found = [each for each in past_of(client, paths, entry) if each.outcome is not None]
        return found if len(found) >= count else []

    bad = wait_until(lambda: ended("bad", 1), PATIENCE, "a failure")
    assert bad[0].outcome is not None
    assert (bad[0].outcome.state, bad[0].outcome.error) == ("failure", "KeyError")
    assert (bad[0].outcome.worker or "").startswith("worker@")
    wait_until(lambda: ended("long", 2), PATIENCE, "two ends")
    master.kill()
    long = wait_until(lambda: ended("long", 5), PATIENCE, "five ends")
    assert {each.outcome.state for each in long if each.outcome} == {"success"}
    runs = [each for each in past_of(client, paths, "long") if each.number is not None]
    assert all((b.at - a.at).total_seconds() > LASTS for a, b in zip(runs, runs[1:]))
