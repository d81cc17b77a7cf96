"""A stranger who writes into our znodes while a beat runs, and before it starts. It goes on, or
says which znode is to be mended and goes on then; it dispatches nothing twice and does not end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from kazoo.client import KazooClient

from celery_zk_beat import MasterElection, ZooKeeperScheduler, loop
from celery_zk_beat.backfills import Backfill, Backfills
from celery_zk_beat.control import Pause, Pauses, RequestRecord
from celery_zk_beat.election import candidate as candidate_module
from celery_zk_beat.election import restraint
from celery_zk_beat.limits import LARGEST_OUTBOX
from celery_zk_beat.paths import Paths, page_of
from celery_zk_beat.records import MasterRecord, TermRecord, encode, encode_masters
from celery_zk_beat.runs import Run, encode_outbox
from example_project.servers import wait_until
from tests import hostile
from tests.conftest import PATIENCE
from tests.faults import Road
from tests.history import check

from .conftest import LONG_AGO, Make, every, history, turn

#: Two entries on different pages.
SCHEDULE = {"e": every(0.001, "e"), "other": every(0.001, "other")}
PAGE, OTHER = page_of("e"), page_of("other")
CHOSEN = ("nothing", "binary", "no fields", "as deep as can be read", "a huge number", "large")
EVIL = hostile.EVIL_TEXTS[:-1]
NOW = datetime.now(timezone.utc)
END = datetime(9998, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
#: Microseconds since 1970.
THEN, AT_LAST = 1_767_225_600_000_000, 253_370_764_799_999_999


def state(at: int = THEN, count: int = 1, due: object = None, **more: object) -> object:
    return [at, count, due, more] if more else [at, count, due]


def master(id: str, epoch: int = 1, successor: str | None = None) -> bytes:
    return MasterRecord(id, id, 1, id, epoch, id, id, successor).encode()


class Stranger:
    def __init__(self, client: KazooClient, paths: Paths) -> None:
        self.client = client
        self.paths = paths

    def write(self, path: str, data: bytes) -> bytes:
        """Returns what was there."""
        if self.client.exists(path) is None:
            self.client.create(path, data, makepath=True)
            return b""
        before: bytes = self.client.get(path)[0]
        self.client.set(path, data)
        return before


@pytest.fixture
def stranger(client: KazooClient, root: str) -> Stranger:
    return Stranger(client, Paths(root))


def goes_on(scheduler: ZooKeeperScheduler, app: Celery, *tasks: str) -> None:
    """The tasks run; all, where none is named."""
    before = len(history(app))

    def ran() -> bool:
        assert scheduler.election.failure is None
        turn(scheduler)
        return {message.task for message in history(app)[before:]} >= {*(tasks or SCHEDULE)}

    wait_until(ran, PATIENCE, "a run")


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> object:
    caplog.set_level(logging.INFO)
    yield
    for record in caplog.get_records("call"):
        assert record.getMessage().isprintable()
        assert record.exc_info is None
        assert len(record.getMessage()) < 10_000


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOOK_AT_DAMAGE_EVERY", -math.inf)


@pytest.mark.parametrize("znode", ["root", "master", "epoch", "members", "masters", "requests"])
def test_where_nothing_need_be_mended(
    app: Celery, make: Make, stranger: Stranger, znode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    path = getattr(stranger.paths, znode)
    values = [hostile.GARBAGE[name] for name in CHOSEN]
    if znode == "master":
        values += [master(EVIL[1], 10**9), master("x", 2**31 - 1, scheduler.settings.id)]
    if znode == "masters":
        term = TermRecord(2**50, EVIL[0], EVIL[1], 1, "", None, EVIL[2])
        monkeypatch.setattr(restraint, "RESIGN_PAUSE", 0.0)
        growing = TermRecord(1, "€" * 130_000, "", 1, "", None, None)
        values += [encode_masters([term] * 50), encode_masters([growing])]
    for value in values:
        stranger.write(path, value)
        if znode == "masters":
            scheduler.election.resign()  # it is read at an election
        goes_on(scheduler, app)
    check(history(app))


def test_backfills(app: Celery, make: Make, stranger: Stranger) -> None:
    """What is none holds up nothing; what is one runs instants of the past, each once."""
    scheduler = make(beat_schedule={**SCHEDULE, "own": every(3600, "own")})
    turn(scheduler)
    path, start = stranger.paths.backfills, datetime(1970, 1, 1, tzinfo=timezone.utc)
    endless = Backfill(start, END, 100.0, EVIL[1], NOW, done=2**52)
    for value in (
        *(hostile.GARBAGE[name] for name in CHOSEN),
        Backfills(dict.fromkeys((*EVIL, "own"), endless)).encode(),
    ):
        stranger.write(path, value)
        goes_on(scheduler, app)
    filled = [each.due for each in history(app) if each.task == "own"]
    assert filled == [start + timedelta(hours=n) for n in range(len(filled))]
    check(history(app))


def test_pages(app: Celery, make: Make, stranger: Stranger) -> None:
    """The entries on a damaged page wait until it is mended; the others run."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    path = stranger.paths.page(PAGE)
    values = [
        *(hostile.GARBAGE[name] for name in CHOSEN),
        encode({"entries": {"e": state(count=10**300)}}),
        encode({"entries": {"e": state(), "other": state(unnamed_since="1999-01-01T00:00:00Z")}}),
    ]
    for value in values:
        before = stranger.write(path, value)
        goes_on(scheduler, app, "other")
        scheduler._loop.dispatcher.publisher.publish_soon(
            scheduler._loop.ledger.outbox.values()
        )  # claimed before
        ran = [message.task for message in history(app)].count("e")
        goes_on(scheduler, app, "other")
        assert [message.task for message in history(app)].count("e") == ran
        stranger.write(path, before)
        goes_on(scheduler, app)
    check(history(app))


def test_states_that_are_no_damage(app: Celery, make: Make, stranger: Stranger) -> None:
    """Strange as they are, the entry goes on from there."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    for value in (
        state(0, 100),
        # No clock that is right wrote that.
        state(AT_LAST - 1_000_000, 120),
        state(AT_LAST, 140),
        state(count=200, dropped=["x" * 1000, None, 1e300], past=[[1, 2, 3, 4, "\x1b\n"], "x"]),
        state(count=300, due=AT_LAST, unnamed_since=0),
        state(count=2**53 - 2),
    ):
        stranger.write(stranger.paths.page(PAGE), encode({"entries": {"e": value}}))
        goes_on(scheduler, app)
    turn(scheduler)
    turn(scheduler)  # past the largest number that we read
    goes_on(scheduler, app, "other")


def test_a_page_that_grows(app: Celery, make: Make, stranger: Stranger) -> None:
    """In letters that we write three times as long: what no schedule names makes room."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    names = [name for n in range(30_000) for name in ["é" * 2000 + f"{n}"] if page_of(name) == PAGE]
    growing = encode({"entries": {"e": state(), **{name: state() for name in names[:100]}}})
    stranger.write(stranger.paths.page(PAGE), growing.replace(b"\\u00e9", "é".encode()))
    goes_on(scheduler, app)


def test_the_outbox(app: Celery, make: Make, stranger: Stranger) -> None:
    """What is none is put aside, in pieces where it is large; of what is one, nothing is lost."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    path = stranger.paths.outbox
    unknown = Run("nobody's", 1, END, END, 2**53 - 1)
    # As many as fit, in letters that we write three times as long.
    most = [Run("é" * 2000 + f"{n}", 1, NOW, NOW, 1) for n in range(LARGEST_OUTBOX // 4200)]
    raw = encode_outbox(most).replace(b"\\u00e9", "é".encode())
    values = [
        *(hostile.GARBAGE[name] for name in CHOSEN),
        raw,
        b" " * (1_000_000),
    ]
    for value in values:
        # Else what is claimed already may go with the outbox, or be all that goes on.
        scheduler._loop.dispatcher.publisher.publish_soon(scheduler._loop.ledger.outbox.values())
        stranger.write(path, value)
        goes_on(scheduler, app)
        aside = [n for n in stranger.client.get_children(stranger.paths.root) if "damaged" in n]
        pieces = [stranger.client.get(f"{stranger.paths.root}/{n}")[0] for n in aside]
        assert sum(map(len, pieces)) == len(value)
        for name in aside:
            stranger.client.delete(f"{stranger.paths.root}/{name}")
    check(history(app))
    stranger.write(path, encode_outbox([unknown, unknown]))
    goes_on(scheduler, app)
    assert scheduler._loop.ledger.outbox == {unknown.entry: unknown}


def test_pauses(app: Celery, make: Make, stranger: Stranger) -> None:
    """Those that cannot be understood hold everything back; mended, all goes on."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    path = stranger.paths.pauses
    many = {f"é{n}": Pause(LONG_AGO, LONG_AGO) for n in range(4000)}
    for value in (
        *(hostile.GARBAGE[name] for name in CHOSEN if name not in ("nothing", "no fields")),
        encode({"all": {"since": 10**300}}),
        Pauses(entries=many).encode().replace(b"\\u00e9", "é".encode()),
        Pauses(Pause(END)).encode(),
    ):
        stranger.write(path, value)

        def hears() -> bool:
            turn(scheduler)
            return bool(scheduler._loop.control.holds("e"))

        wait_until(hears, PATIENCE, "the pause")
        before = len(history(app))
        turn(scheduler)
        assert len(history(app)) == before
        stranger.write(path, b"")
        goes_on(scheduler, app)
    check(history(app))
    stranger.write(path, Pauses(Pause(None, END)).encode())  # drops what is claimed already
    goes_on(scheduler, app)


def test_requests(app: Celery, make: Make, stranger: Stranger) -> None:
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    path = stranger.paths.requests
    values = [hostile.GARBAGE[name] for name in CHOSEN]
    values += [
        RequestRecord("run", "nobody's", None, EVIL[0], EVIL[1]).encode(),
        RequestRecord("resign", None, EVIL[2], EVIL[0], EVIL[1]).encode(),
        RequestRecord("resign", None, None, "", "\x1b\n" * 1000).encode(),
        RequestRecord(EVIL[1], EVIL[2], "../..", "", EVIL[3]).encode(),
    ]
    for n, value in enumerate(values):
        stranger.write(f"{path}/{n:032x}", value)
        stranger.write(f"{path}/{n} a request", value)
        stranger.write(path, b"")
        goes_on(scheduler, app)
    check(history(app))


def test_odd_children(app: Celery, make: Make, stranger: Stranger) -> None:
    """Names that nothing of ours bears, wherever there are children."""
    for parent in (
        stranger.paths.root,
        stranger.paths.members,
        stranger.paths.runs,
        stranger.paths.requests,
    ):
        for name in ("...", "%2e%2e", "<b>", "0", "00", "0000", "FFF", "ü\u200b", "a" * 200):
            stranger.write(f"{parent}/{name}", hostile.GARBAGE["binary"])
    stranger.write(f"{stranger.paths.history}/000", hostile.GARBAGE["binary"])
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    goes_on(scheduler, app)
    assert not scheduler._loop.ledger.is_damaged


def test_a_znode_below_ours(app: Celery, make: Make, stranger: Stranger) -> None:
    """Keeps it from being deleted, as by who resigns; children of an ephemeral one cannot be."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    for path in (stranger.paths.outbox, stranger.paths.epoch, stranger.paths.page(PAGE)):
        stranger.write(f"{path}/x", b"x")
    goes_on(scheduler, app)
    scheduler.election.resign()
    goes_on(scheduler, app)


def test_a_master_that_is_none(
    stranger: Stranger,
    candidate: Callable[..., MasterElection],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A znode that no session keeps, with whatever in it: said once, and waited for."""
    for value in (hostile.GARBAGE["binary"], master(EVIL[0]), b""):
        stranger.write(stranger.paths.master, value)
        with candidate("a") as beat:
            wait_until(lambda: "is not ephemeral" in caplog.text, PATIENCE, "a line")
            assert not beat.wait(0.5)
            assert caplog.text.count("is not ephemeral") == 1
            caplog.clear()
            stranger.client.delete(stranger.paths.master)
            assert beat.wait(PATIENCE)


def test_a_root_that_is_damaged_meanwhile(
    stranger: Stranger,
    candidate: Callable[..., MasterElection],
    road: Road,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A beat that has been fine does not end over it, nor over another app's name: it waits."""
    monkeypatch.setattr(candidate_module, "REMIND_EVERY", 0.1)
    beat = candidate("a", hosts=road.hosts, app="shop")
    beat.start(PATIENCE)
    assert beat.wait(PATIENCE)
    for value in (hostile.GARBAGE["binary"], encode({"app": EVIL[1]})):
        before = stranger.write(stranger.paths.root, value)
        session = beat.session.id
        road.cut()
        wait_until(
            lambda: stranger.client.exists(stranger.paths.master) is None, PATIENCE, "expiry"
        )
        road.open()
        wait_until(
            lambda s=session: beat.session.id not in (0, s),  # type: ignore[misc]
            PATIENCE,
            "a new session",
        )
        assert not beat.wait(0.3)
        stranger.write(stranger.paths.root, before)
        assert beat.wait(PATIENCE)


def test_a_pause_that_ends_in_the_future(app: Celery, make: Make, stranger: Stranger) -> None:
    """What is skipped is what was due by now: not all that will ever be."""
    scheduler = make(beat_schedule=SCHEDULE)
    turn(scheduler)
    stranger.write(stranger.paths.pauses, Pauses(entries={"e": Pause(None, END)}).encode())
    goes_on(scheduler, app)
    found = scheduler._loop.ledger.state("e")
    assert found is not None
    assert found.last_run_at - datetime.now(timezone.utc) < timedelta(seconds=5)
