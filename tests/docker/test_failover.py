"""Three beats in containers, and what an engine can do to the master among them.

Judged from the messages of a queue that no worker consumes, and from a worker's results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.history import check

from .engine import needs_engine

if TYPE_CHECKING:
    from .stack import Beat, Site

pytestmark = [needs_engine, pytest.mark.timeout(300)]


def test_the_master_is_killed(site: Site) -> None:
    """Another goes on with the same runs; started again, the killed one is a standby."""
    master, others = _roles(site)
    master.kill()
    successor = site.wait_for_run(*others)
    master.engine.start()
    _is_standby(master, successor)
    site.wait_for_run(successor)
    _verdict(site, [master, successor], most_repeats=1)


def test_the_master_is_stopped(site: Site) -> None:
    """SIGTERM to the first process of a container: exit status 0, and nothing is repeated."""
    master, others = _roles(site)
    master.engine.stop(timeout=30)
    successor = site.wait_for_run(*others)
    assert master.engine.wait()["StatusCode"] == 0
    _verdict(site, [master, successor], most_repeats=0)


@pytest.mark.parametrize("fault", ["pause", "disconnect"])
def test_the_master_is_away_for_a_while(
    site: Site, fault: str, default_pytest_celery_network: Any
) -> None:
    """Frozen, or without a network, for longer than its session lasts. Back again, it publishes
    nothing stale and is a standby, and it is elected again when the others are killed."""
    master, others = _roles(site)
    if fault == "pause":
        master.engine.pause()
    else:
        default_pytest_celery_network.disconnect(master.engine)
    successor = site.wait_for_run(*others)
    if fault == "pause":
        master.engine.unpause()
    else:
        default_pytest_celery_network.connect(master.engine)
    _is_standby(master, successor)
    site.wait_for_run(successor)
    next(beat for beat in others if beat is not successor).kill()
    successor.kill()
    site.wait_for_run(master)
    # A frozen one may have looked at the clock already, and not yet sent.
    _verdict(site, [master, successor, master], most_repeats=2, most_late=fault == "pause")


def _roles(site: Site) -> tuple[Beat, list[Beat]]:
    """The master, once it dispatches, and the standbys, once they wait for it."""
    master = site.wait_for_run(*site.beats)
    others = [beat for beat in site.beats if beat is not master]
    for beat in others:
        _is_standby(beat, master)
    return master, others


def _is_standby(beat: Beat, master: Beat) -> None:
    beat.assert_log_exists(f"not elected because {master.id} is master")


def _verdict(site: Site, masters: list[Beat], most_repeats: int, most_late: int = 0) -> None:
    """No run was lost, none has two task ids, nobody dispatched after a successor had, and only one
    run at each fault may have been published and not yet confirmed; the worker executed all."""
    history = site.history()
    assert len(check(history, most_late)) <= most_repeats
    assert {message.epoch: message.master for message in history} == {
        epoch: beat.id for epoch, beat in enumerate(masters, 1)
    }
    site.wait_until_executed(epoch=len(masters))
