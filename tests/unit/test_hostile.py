"""Whatever stands in a znode is data: what reads it understands it or says which znode it is, and
what is shown of it steers no terminal, log or page."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kazoo.exceptions import RolledBackError
from kazoo.protocol.states import ZnodeStat

from celery_zk_beat import RootError, ZooKeeperScheduler
from celery_zk_beat.backfills import Backfills
from celery_zk_beat.control import Asking, Pauses, RequestRecord
from celery_zk_beat.errors import Uncertain
from celery_zk_beat.history import decode_volume, encode_volume
from celery_zk_beat.live import definitions
from celery_zk_beat.log import get_logger
from celery_zk_beat.outcomes.reports import Report
from celery_zk_beat.paths import Paths, page_of, volume_of
from celery_zk_beat.records import (
    EpochRecord,
    InstalledRecord,
    MasterRecord,
    MemberRecord,
    RootRecord,
    TermRecord,
    decode_masters,
    encode,
    encode_masters,
)
from celery_zk_beat.runs import Run, decode_outbox, decode_page, encode_outbox, encode_page
from celery_zk_beat.shown import Index, decode_shown, encode_shown
from celery_zk_beat.status import terminal
from celery_zk_beat.status.reader import Basis, Reader
from celery_zk_beat.status.snapshot import Snapshot
from celery_zk_beat.web.readings import Reading
from celery_zk_beat.zookeeper.answers import versions
from celery_zk_beat.zookeeper.operations import Check, Node, Operation, SetData
from tests import hostile

ZNODE_STAT = ZnodeStat(*range(11))
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
PATH = f"/runs/{page_of('e')}"
READERS: dict[str, tuple[Callable[[str, bytes], Any], st.SearchStrategy[bytes]]] = {
    "root": (RootRecord.decode, hostile.ROOTS),
    "installed": (InstalledRecord.decode, hostile.INSTALLED),
    "master": (MasterRecord.decode, hostile.MASTERS),
    "epoch": (EpochRecord.decode, hostile.MASTERS),
    "member": (MemberRecord.decode, hostile.MEMBERS),
    "masters": (decode_masters, hostile.TERMS),
    "page": (decode_page, hostile.PAGES),
    "outbox": (decode_outbox, hostile.OUTBOXES),
    "pauses": (Pauses.decode, hostile.PAUSES),
    "backfills": (Backfills.decode, hostile.BACKFILLS),
    "request": (RequestRecord.decode, hostile.REQUESTS),
    "index": (Index.decode, hostile.INDEXES),
    "shown": (decode_shown, hostile.SHOWN),
    "report": (Report.decode, hostile.REPORTS),
    "index of live entries": (definitions.Index.decode, hostile.INDEXES_OF_ENTRIES),
}

#: A busy machine is no fault.
patiently = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)


def is_one_line(shown: str) -> bool:
    return shown.isprintable()


@pytest.mark.parametrize("kind", READERS)
@patiently
@given(st.data())
def test_what_is_read(kind: str, data: st.DataObject) -> None:
    """It is understood, and what was understood can be written again; or the error names the znode
    and is short."""
    read, znodes = READERS[kind]
    try:
        found = read(PATH, data.draw(znodes))
    except RootError as exc:
        error = str(exc)
    else:
        error = ""
    if error:
        assert PATH in error
        assert len(error) < 2000
        return
    if kind == "page":
        assert decode_page(PATH, encode_page(found)) == found
    elif kind == "outbox":
        assert decode_outbox(PATH, encode_outbox(found)) == found
    elif kind == "shown":
        written = encode_shown(((name, each.to_json()) for name, each in found.items()), most=10**6)
        assert decode_shown(PATH, written) == found
    elif kind == "masters":
        assert decode_masters(PATH, encode_masters(found)) == found
    else:
        assert read(PATH, found.encode()) == found


@patiently
@given(hostile.VOLUMES)
def test_a_history_that_is_read(data: bytes) -> None:
    """Likewise; what is not understood in it is left out."""
    path, error = PATHS.volume(volume_of(page_of("e"))), ""
    try:
        found = decode_volume(path, data)
    except RootError as exc:
        error = str(exc)
    if error:
        assert path in error
        assert len(error) < 2000
    else:
        written = encode_volume(found)
        assert encode_volume(decode_volume(path, written)) == written


LIVE = f"/entries/{definitions.page_of_entry('e')}"


@patiently
@given(hostile.ENTRIES)
@example(
    b'{"format": 2, "entries": {"e": {"task": "task", "schedule": {"every": 30}, "args": [],'
    b' "version": 1, "born": "1e0b", "since": 1000, "changes": [[1, 1000, "web", ["added"]]]}}}'
)
def test_live_entries_that_are_read(data: bytes) -> None:
    """Likewise; what is damaged stands as it was, and says why in short."""
    error = ""
    try:
        found = definitions.Page.decode(LIVE, data)
    except RootError as exc:
        error = str(exc)
    if error:
        assert LIVE in error
        assert len(error) < 2000
        return
    for name, entry in found.entries.items():
        if isinstance(entry, definitions.Definition):
            assert definitions.Definition.of(name, json.loads(json.dumps(entry.told))) == entry
        else:
            assert len(entry.why) < 2000
    try:
        written = found.encode()
    except RecursionError:  # the store says so
        return
    assert definitions.Page.decode(LIVE, written).encode() == written


@pytest.mark.parametrize("garbage", hostile.GARBAGE)
def test_garbage_in_the_place_of_live_entries(garbage: str) -> None:
    data = hostile.GARBAGE[garbage]
    if garbage == "as deep as can be read":
        assert isinstance(definitions.Page.decode(LIVE, data).get("e"), definitions.Damaged)
        return
    with pytest.raises(RootError, match=LIVE):
        definitions.Page.decode(LIVE, data)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("garbage", hostile.GARBAGE)
def test_garbage(kind: str, garbage: str) -> None:
    read, data = READERS[kind][0], hostile.GARBAGE[garbage]
    if kind in ("masters", "pauses", "backfills", "index of live entries") and not data:
        read(PATH, data)  # none at all
        return
    with pytest.raises(RootError, match=PATH) as caught:
        read(PATH, data)
    assert len(str(caught.value)) < 2000


def test_the_deepest_that_can_be_read() -> None:
    """What json reads with the last of the stack must not be too much for what comes after."""

    def at(depth: int) -> bool:
        try:
            json.loads(hostile.nested(depth))
        except RecursionError:
            return False
        for read, _ in READERS.values():
            with pytest.raises(RootError):
                read(PATH, hostile.nested(depth))
        return True

    depths = [*range(100, 3000, 100)]
    deepest = max((depth for depth in depths if at(depth)), default=100)
    for depth in range(deepest, deepest + 100):
        at(depth)


def test_numbers_of_dropped_runs() -> None:
    """What is none is left out: it would be written again, and may be too deep for that."""
    fields: list[Any] = [0, 1, None, {"dropped": [1, "2", None, True, -1, 10**300, [[[[]]]], 3]}]
    assert decode_page(PATH, encode({"entries": {"e": fields}}))["e"].dropped == (1, 3)


def test_a_page_with_entries_of_another() -> None:
    """Its states would be written to the page on which they belong, over those that are there."""
    fields = [0, 1, None]
    with pytest.raises(RootError, match=f"'x', whose page is {page_of('x')}"):
        decode_page(PATH, encode({"entries": {"x": fields}}))


def test_the_list_of_masters_fits_into_a_transaction() -> None:
    """Also when another hand wrote it in letters that we write six times as long."""
    terms = [TermRecord(n, "a", "é" * 3000, 1, "", None, None) for n in range(50)]
    data = encode_masters(terms)
    assert len(data) <= 400_000
    assert decode_masters("/m", data)[-1].epoch == 49


class Garbage:
    """In place of a session: what it reads is given, znode to bytes."""

    connected = True

    def __init__(self, znodes: dict[str, bytes], mtime: float) -> None:
        self._znodes = znodes
        self._mtime = mtime

    def children(self, parent: str, watch: object = None) -> list[str]:
        names = [path[len(parent) + 1 :] for path in self._znodes if path.startswith(f"{parent}/")]
        return [name for name in names if "/" not in name]

    def read_all(self, paths: Sequence[str], watch: object = None) -> list[Node | None]:
        return [
            Node(self._znodes[path], 0, 1, self._mtime) if path in self._znodes else None
            for path in paths
        ]

    def read(self, path: str, watch: object = None) -> Node | None:
        return self.read_all([path])[0]


PATHS = Paths("/shop")
QUOTAS = st.binary() | st.sampled_from(
    [b"count=9,bytes=-9999999999999999999", b"=;byteHardLimit=1;countHardLimit=0,count=7=8,bytes="]
)
#: An index of live entries, with the page that may be there.
NAMES_ONE = definitions.Index({definitions.page_of_entry("e"): definitions.Sum(0, 1)}).encode()
TREES = st.fixed_dictionaries(
    {},
    optional={
        PATHS.root: st.just(RootRecord("shop").encode()) | st.just(b""),
        PATHS.master: hostile.MASTERS,
        PATHS.masters: hostile.TERMS,
        PATHS.pauses: hostile.PAUSES,
        PATHS.backfills: hostile.BACKFILLS,
        PATHS.outbox: hostile.OUTBOXES,
        f"{PATHS.members}/a": hostile.MEMBERS,
        f"{PATHS.members}/\u202eb": hostile.MEMBERS,
        PATHS.page(page_of("e")): hostile.PAGES,
        PATHS.volume(volume_of(page_of("e"))): hostile.VOLUMES,
        f"{PATHS.runs}/no page": hostile.PAGES,
        PATHS.entries: hostile.INDEXES_OF_ENTRIES | st.just(NAMES_ONE),
        PATHS.entries_page(definitions.page_of_entry("e")): hostile.ENTRIES,
        PATHS.shown: hostile.INDEXES | st.just(Index("package:Another", {"3f": 0}).encode()),
        PATHS.shown_page("3f"): hostile.SHOWN,
        "/zookeeper/quota/shop/zookeeper_limits": QUOTAS,
        "/zookeeper/quota/shop/zookeeper_stats": QUOTAS,
    },
)
MTIMES = st.sampled_from([0.0, 1.7e9, 9.2e15, -9.2e15])


@pytest.fixture(scope="module", params=[None, "live", "package:Another"])
def scheduler(request: pytest.FixtureRequest) -> ZooKeeperScheduler:
    """Of which the entries are in its schedule, perhaps with live ones beside them, or told of by a
    master."""
    app = Celery("shop", set_as_current=False)
    app.conf.zk_beat_root = "/shop"
    app.conf.timezone = "Pacific/Kiritimati"  # where 9999 ends first
    app.conf.beat_schedule = {
        "e": {"task": "t", "schedule": 10.0},
        "c": {"task": "t", "schedule": crontab(minute=0)},
        "": {"task": "t", "schedule": 10.0},
        **{name: {"task": "t", "schedule": 10.0} for name in hostile.EVIL_TEXTS[:-1]},
    }
    app.conf.zk_beat_entries = request.param == "live"
    app.conf.zk_beat_entries_tasks = ["*"]
    app.conf.zk_beat_outcomes = "worker"
    if request.param in (None, "live"):
        return ZooKeeperScheduler(app)
    app.conf.zk_beat_scheduler = request.param
    return ZooKeeperScheduler(app, lazy=True)  # whose class is not looked for


def look(scheduler: ZooKeeperScheduler, tree: dict[str, bytes], mtime: float = 0.0) -> Snapshot:
    session: Any = Garbage(tree, mtime)
    return Reader(session, scheduler.settings, scheduler).read()


@patiently
@given(TREES, MTIMES)
def test_what_is_shown(scheduler: ZooKeeperScheduler, tree: dict[str, bytes], mtime: float) -> None:
    """A status of whatever lies there: on a terminal, and as JSON that JavaScript reads."""
    session: Any = Garbage(tree, mtime)
    reader = Reader(session, scheduler.settings, scheduler)
    seen = reader.read()
    for width in (math.inf, 40.0):
        lines = [
            *terminal.status(seen, seen.read_at, lambda message, colour: message, width, 100),
            *terminal.history(
                reader.history(None, 50), NOW, lambda message, colour: message, width, True
            ),
            *terminal.masters(seen.masters, NOW, lambda message, colour: message, width),
        ]
        assert all(map(is_one_line, lines))
    reading = Reading(seen, reader.basis(), 0.0)
    for data in (reading.page, reading.full(), json.dumps(seen.to_json()).encode()):
        assert data.isascii()
        json.loads(data, parse_constant=pytest.fail)


def test_a_run_in_the_future_is_shown(scheduler: ZooKeeperScheduler) -> None:
    """Its entry does not run, and would not say why."""
    for instant in (253_370_764_799_999_999, 32_472_144_000_000_000):
        fields = [instant, 10**15, None]
        page = {PATHS.page(page_of("e")): encode({"entries": {"e": fields}})}
        (warning,) = [each for each in look(scheduler, page).warnings if "in the future" in each]
        assert warning.startswith("e last ran at ")
        assert PATHS.page(page_of("e")) in warning


@pytest.mark.parametrize("evil", hostile.EVIL_TEXTS)
def test_a_log_line_is_one_line(evil: str, caplog: pytest.LogCaptureFixture) -> None:
    """Names, ids and errors cannot forge another, nor steer the terminal that shows them."""
    logger = get_logger("celery_zk_beat.hostile")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("asked by %s to %r: %s, %d, %.1f", evil, evil, RootError(evil), 7, 0.5)
    (message,) = caplog.messages
    assert is_one_line(message)
    assert message.endswith(", 7, 0.5")
    assert len(message) < 10_000


@patiently
@given(hostile.ANSWERS)
def test_what_is_answered(data: bytes) -> None:
    """The master's answer to a command."""

    class Session:
        def read(self, path: str, watch: object = None) -> Node:
            return Node(data, 1, 1)

    session: Any = Session()
    record = RequestRecord("run", "e", None, "", "")
    try:
        answer = Asking(session, PATHS, record, lambda event: None).answer()
    except RootError:
        return
    assert answer is not None
    assert isinstance(answer.text, str)


def test_it_does_not_take_long(scheduler: ZooKeeperScheduler) -> None:
    """The largest that fits into each znode at once."""
    large = 1_000_000
    run = encode_outbox([Run("e", 1, NOW, NOW, 1)])[len(b'{"format":2,"runs":[') : -2]
    state = b'[1767225600000000,1,null,{"past":[%s]}]'
    past = b",".join([b"[1,2,3,4]"] * (large // 10))
    tree = {
        PATHS.outbox: b'{"format":2,"runs":[' + b",".join([run] * (large // len(run))) + b"]}",
        PATHS.volume(volume_of(page_of("e"))): b'{"format":2,"entries":{"e":[%s]}}' % past,
        PATHS.page(page_of("e")): b'{"format":2,"entries":{"e":%s}}' % (state % past),
        PATHS.masters: b'{"format":2,"masters":[%s]}' % b",".join([b"{}"] * (large // 3)),
        PATHS.pauses: b'{"format":2,"all":null,"entries":{%s}}' % (b'"x":{},' * 100_000)[:-1],
    }
    begun = time.process_time()
    seen = look(scheduler, tree)
    terminal.status(seen, seen.read_at, lambda message, colour: message, 80)
    Reading(seen, Basis({}, {}, scheduler.settings), 0.0).full()
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "answers",
    [[], [True], [True, True], ["/x", ZNODE_STAT], [True, RolledBackError()], [None, ZNODE_STAT]],
    ids=repr,
)
def test_an_answer_that_fits_no_question(answers: list[object]) -> None:
    """It says nothing, least of all that a claim was made."""

    asked: list[Operation] = [Check("/epoch", 1), SetData("/outbox", b"")]
    with pytest.raises(Uncertain, match="/epoch: an answer that matches no request"):
        versions(asked, answers)
