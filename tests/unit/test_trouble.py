"""What is said of a store that is away: when that begins, once a minute, and when it is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from celery_zk_beat.gate import trouble as module
from celery_zk_beat.gate.trouble import Trouble

logger = logging.getLogger("somebody's database scheduler")


class Scheduler:
    """Has a module with a logger."""


class Derived(Scheduler):
    pass


class Site:
    """A scheduler that looks at its store each second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "clock", SimpleNamespace(boottime=lambda: self.now))
        self.trouble = Trouble("Scheduler", lambda exc: isinstance(exc, OSError))
        self.trouble.listen(Derived)
        self.caplog = caplog

    def look(self, seconds: int, error: Exception | None) -> list[str]:
        """For so many seconds; returns what was said."""
        self.caplog.clear()
        for _ in range(seconds):
            self.now += 1.0
            if error is not None:
                try:
                    raise error
                except Exception as exc:
                    logger.exception("Database gave error: %r", exc)
                    logger.warning("waiting to retry")
            self.trouble.turned()
        return self.caplog.messages


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    site = Site(monkeypatch, caplog)
    yield site
    site.trouble.stop()


AWAY = "Scheduler continues with what it has read, because its store does not answer"


def test_a_store_that_is_away(site: Site) -> None:
    error = ConnectionError("refused")
    assert site.look(10, None) == []
    assert site.look(59, error) == [f"{AWAY}: ConnectionError: refused"]
    assert site.look(61, error) == [f"{AWAY}, for 60 s now: ConnectionError: refused"]
    assert site.look(60, error) == [f"{AWAY}, for 120 s now: ConnectionError: refused"]
    assert site.look(100, None) == ["Scheduler works again, after 179 s of this"]
    assert site.look(1, error) == [f"{AWAY}: ConnectionError: refused"]
    assert site.caplog.records[0].exc_info is None


def test_errors_of_several_kinds(site: Site) -> None:
    """Of a store that is away they are one; others have a traceback, once."""
    for error in (ConnectionError("one"), TimeoutError("two")):
        site.look(1, error)
    assert site.caplog.messages == []
    for _ in range(5):
        site.trouble.add("failed", ValueError("a bug"))
    (record,) = site.caplog.records
    assert record.getMessage() == "Scheduler failed: ValueError: a bug"
    assert record.exc_info


def test_what_is_no_matter_of_its_store(site: Site) -> None:
    """Is left to it, and so is all that it says otherwise."""
    own = ["Database gave error: ValueError('x')", "waiting to retry"]
    assert site.look(2, ValueError("x")) == 2 * own
    logger.warning("something")
    assert site.caplog.messages[-1] == "something"
    assert not site.trouble.lasts


def test_nobody_listens_any_more(site: Site) -> None:
    site.trouble.stop()
    assert logger.filters == []
    assert len(site.look(1, OSError("x"))) == 2


def test_its_store_comes_and_goes(site: Site) -> None:
    """It is over when nothing was heard of it for some seconds."""
    error = ConnectionError("refused")
    said = []
    for _ in range(20):
        said += site.look(1, error)
        said += site.look(2, None)
    assert said == [f"{AWAY}: ConnectionError: refused"]


def test_another_that_was_not_stopped(site: Site) -> None:
    """Keeps nothing from the one that is at work now."""
    new = Trouble("New", lambda exc: isinstance(exc, OSError))
    new.listen(Derived)
    assert site.look(1, ConnectionError("refused"))[0].startswith("New continues")
    new.stop()
