"""RunLedger against a real server."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from kazoo.client import KazooClient, TransactionRequest

from celery_zk_beat import MasterElection, clock, history, limits
from celery_zk_beat import ledger as ledger_module
from celery_zk_beat.errors import Conflict, NotMaster, Outdated, Uncertain, ZooKeeperError
from celery_zk_beat.history import decode_volume, merged
from celery_zk_beat.ledger import BELOW_ROOT, SAFE_PART, RunLedger
from celery_zk_beat.limits import LARGEST_PAGE, LONGEST_NAME, MOST_BYTES, MOST_RUNS
from celery_zk_beat.paths import page_of, volume_of
from celery_zk_beat.runs import (
    ABSENCE,
    RETENTION,
    Run,
    RunState,
    decode_page,
    encode_outbox,
    encode_page,
    milliseconds,
)
from celery_zk_beat.zookeeper.operations import Check, SetData
from example_project.servers import ZooKeeper, wait_until
from tests.conftest import PATIENCE, kazoo_of
from tests.faults import Road

Candidate = Callable[..., MasterElection]

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


def run(entry: str, number: int = 1, at: datetime = NOW) -> Run:
    return Run(entry, number, at - SECOND, at, 1)


@pytest.fixture
def election(candidate: Candidate) -> MasterElection:
    election = candidate("one", session_timeout=4.0)
    election.start(PATIENCE)
    assert election.wait(PATIENCE)
    return election


@pytest.fixture(autouse=True)
def small_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written as soon as large ones would be."""
    monkeypatch.setattr(history, "_LEAST", 0)


@pytest.fixture
def ledger(election: MasterElection) -> RunLedger:
    return load(election)


def bare(state: RunState | None) -> RunState | None:
    """Without what else is remembered."""
    return state and replace(state, past=(), leaps=())


def unnamed(ledger: RunLedger, time: timedelta, *names: str) -> None:
    """No schedule has named them for so long."""
    since = datetime.now(timezone.utc) - time
    states = {name: ledger.state(name) for name in names}
    ledger.rewrite(
        {n: state and replace(state, unnamed_since=since) for n, state in states.items()}
    )


def rename(ledger: RunLedger, **names: str) -> list[str]:
    """From old to new; the old names of those for which it was done."""
    return sorted((old for moved in ledger.rename(names) for old in moved), key=list(names).index)


def load(election: MasterElection) -> RunLedger:
    ledger = RunLedger(election)
    assert election.term is not None
    ledger.load(election.term)
    return ledger


def test_a_run_from_claim_to_confirmation(election: MasterElection, ledger: RunLedger) -> None:
    ledger.first_seen({"a": NOW})
    assert bare(ledger.state("a")) == RunState(NOW)
    (claimed,) = ledger.claim([run("a", 1, NOW + SECOND)])
    assert load(election).outbox == {"a": claimed}
    assert bare(load(election).state("a")) == RunState(NOW + SECOND, 1, NOW)
    ledger.assure()
    ledger.published(claimed, NOW)
    ledger.confirm()
    ledger.flush()
    assert load(election).outbox == {}
    assert bare(load(election).state("a")) == RunState(NOW + SECOND, 1, NOW)


def test_the_next_claim_carries_over(election: MasterElection, ledger: RunLedger) -> None:
    """What is unpublished stays in the outbox, what was published leaves it."""
    ledger.first_seen(dict.fromkeys("abc", NOW))
    a, b = ledger.claim([run("a"), run("b")])
    ledger.published(a, NOW)
    (c,) = ledger.claim([run("c")])
    assert load(election).outbox == {"b": b, "c": c}


def test_any_name(election: MasterElection, ledger: RunLedger) -> None:
    names = ["", ".", "..", "a/b", "/", " ", "ünï", "\ud800", "x" * 300, "a\nb", "\x00", "%2F"]
    ledger.first_seen(dict.fromkeys(names, NOW))
    ledger.claim([run(name) for name in names])
    again = load(election)
    assert set(again.outbox) == set(names)
    assert [bare(again.state(name)) for name in names] == [RunState(NOW, 1, NOW - SECOND)] * len(
        names
    )


def test_another_name(election: MasterElection, ledger: RunLedger) -> None:
    """A state and a run that waits go on under it, in one transaction; numbers go on from the
    higher, and the history stays."""
    ledger.first_seen({"old": NOW, "new": NOW}, {"old": "7", "new": "8"})
    for number in (1, 2):
        ledger.published(ledger.claim([replace(run("new", number), key="8")])[0], NOW)
    (claimed,) = ledger.claim([replace(run("old"), key="7")])
    before, other = ledger.state("old"), ledger.state("new")
    assert before is not None
    assert other is not None
    assert ledger.names_by_key() == {"7": "old", "8": "new"}
    assert rename(ledger, old="new") == ["old"]
    for each in (ledger, load(election)):
        assert each.outbox == {"new": replace(claimed, entry="new", was="old")}
        assert each.state("new") == replace(before, total_run_count=2, past=other.past)
        left = each.state("old")
        assert left is not None
        assert left.unnamed_since is not None
        assert left == replace(before, key=None, unnamed_since=left.unnamed_since)
    ledger.drop([ledger.outbox["new"]], "nobody wants it")
    state = ledger.state("new")
    assert state is not None
    assert state.past[-1].note == "dropped: nobody wants it"


@pytest.mark.parametrize("at_once", [2, 500])
def test_names_that_are_taken_over(
    election: MasterElection, ledger: RunLedger, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of entries that take each other's names each goes on as it was, and so do those of which one
    takes the name that another leaves: runs that wait, too. A master that dies in between leaves
    what the next one finds as it should be, and does the rest."""
    monkeypatch.setattr("celery_zk_beat.ledger.MOST_RUNS", at_once)
    keys = {"a": "1", "b": "2", "x": "3", "y": "4"}
    ledger.first_seen(dict.fromkeys(keys, NOW), keys)
    for name, count in (("b", 2), ("y", 1)):
        for number in range(1, count + 1):
            ledger.published(ledger.claim([replace(run(name, number), key=keys[name])])[0], NOW)
    waiting = [replace(run(name), key=keys[name]) for name in "ax"]
    ledger.claim([*waiting, replace(run("b", 3), key="2"), replace(run("y", 2), key="4")])
    before = {name: ledger.state(name) for name in keys}
    names = {"a": "b", "b": "a", "x": "y", "y": "z"}
    rest = ledger
    while names:
        moved = next(rest.rename(names))
        assert len(moved) == (2 if "a" in moved else 1) or at_once > 2
        names = {old: new for old, new in names.items() if old not in moved}
        rest = load(election)  # the next master
    assert rest.names_by_key() == {"1": "b", "2": "a", "3": "y", "4": "z"}
    for old, new in {"a": "b", "b": "a", "x": "y", "y": "z"}.items():
        state, of = rest.state(new), before[old]
        assert state is not None
        assert of is not None
        assert (state.last_run_at, state.due, state.key) == (of.last_run_at, of.due, of.key)
        assert rest.outbox[new].was == old
        assert rest.outbox[new].number == of.total_run_count <= state.total_run_count
    left = rest.state("x")
    assert left is not None
    assert left.key is None


def test_many_names(election: MasterElection, ledger: RunLedger) -> None:
    """Take few transactions, of a bounded size."""
    names = {f"{number}": f"the {number}" for number in range(2000)}
    ledger.first_seen(dict.fromkeys(names, NOW), {name: name for name in names})
    some = list(names)[:200]
    ledger.claim([replace(run(name), key=name) for name in some])
    writes = ledger.writes
    assert rename(ledger, **names) == list(names)
    assert ledger.writes - writes < 20
    again = load(election)
    assert again.names_by_key() == names
    assert {run.entry: run.was for run in again.outbox.values()} == {
        names[name]: name for name in some
    }


def test_a_name_that_is_not_left(ledger: RunLedger) -> None:
    """It is not taken: the entry that has it would lose what is known of it."""
    keys = {"a": "1", "b": "2", "c": "3"}
    ledger.first_seen(dict.fromkeys(keys, NOW), keys)
    ledger.claim([replace(run("c"), key="3")])
    assert rename(ledger, a="b", b="c") == []
    assert ledger.names_by_key() == {"1": "a", "2": "b", "3": "c"}


def test_what_is_known_to_be_unsent_has_another_name(
    election: MasterElection, ledger: RunLedger
) -> None:
    ledger.first_seen({"a": NOW, "b": NOW}, {"a": "1", "b": "2"})
    ledger.claim([replace(run("a"), key="1"), replace(run("b"), key="2")])
    ledger.hand_over(["a"])
    again = load(election)
    assert again.unsent == {"a"}
    assert rename(again, a="b", b="a") == ["a", "b"]
    assert again.unsent == {"b"}
    assert again.term is not None
    again.load(again.term)
    assert again.unsent == {"b"}


def test_another_name_that_has_a_run(ledger: RunLedger) -> None:
    """Of that name another waits: it stays as it is, until that does not."""
    ledger.first_seen({"old": NOW, "new": NOW}, {"old": "7", "new": "8"})
    waiting = ledger.claim([replace(run("old"), key="7"), replace(run("new"), key="8")])
    before = ledger.state("old")
    assert rename(ledger, old="new") == []
    assert list(ledger.outbox.values()) == waiting
    assert ledger.state("old") == before


def test_nothing_goes_backwards(ledger: RunLedger) -> None:
    """[I5] Not even when the clock of this machine is behind the last master's."""
    ledger.first_seen({"a": NOW})
    ledger.claim([run("a", 1, NOW - 5 * SECOND)])
    assert bare(ledger.state("a")) == RunState(NOW, 1, NOW - 6 * SECOND)


def test_only_the_master_writes(candidate: Candidate, ledger: RunLedger) -> None:
    """[I4] The epoch is checked by the transaction, whatever the old master believes."""
    ledger.first_seen({"a": NOW})
    one, two = ledger._election, candidate("two", session_timeout=4.0)
    two.start(PATIENCE)
    term = one.term
    assert one.resign()
    assert two.wait(PATIENCE)
    one._candidate._term = term  # as a paused process would
    for write in (lambda: ledger.claim([run("a")]), lambda: ledger.first_seen({"b": NOW})):
        ledger.forget()
        ledger.term = term
        with pytest.raises(Conflict, match=one.paths.epoch):
            write()
        assert ledger.term is None
    assert bare(load(two).state("a")) == RunState(NOW)
    assert load(two).state("b") is None
    ledger.term = term
    with pytest.raises(Conflict):
        ledger.assure()
    assert term is not None
    with pytest.raises(NotMaster):
        ledger.load(term)


def test_a_stale_confirmation_harms_nobody(candidate: Candidate, ledger: RunLedger) -> None:
    """[I2] The successor's outbox is not wiped by what the old master says late."""
    ledger.first_seen({"a": NOW, "b": NOW})
    (a,) = ledger.claim([run("a")])
    one, two = ledger._election, candidate("two", session_timeout=4.0)
    two.start(PATIENCE)
    assert one.resign()
    assert two.wait(PATIENCE)
    successor = load(two)
    successor.claim([run("b")])
    ledger.published(a, NOW)
    with pytest.raises(Conflict):
        ledger.flush()
    assert set(load(two).outbox) == {"a", "b"}


def test_not_loaded_not_written(election: MasterElection) -> None:
    with pytest.raises(NotMaster, match="not loaded"):
        RunLedger(election).claim([run("a")])


def test_not_assured_as_standby(ledger: RunLedger) -> None:
    """[1] Nothing is published from the moment that the connection is lost."""
    ledger.first_seen({"a": NOW})
    ledger.assure()
    assert ledger._election.resign()
    with pytest.raises(NotMaster):
        ledger.assure()


def test_a_write_vouches_for_a_while(ledger: RunLedger) -> None:
    """[2] Counted from when it was sent, by the time-out that the server granted."""
    before = clock.boottime()
    ledger.first_seen({"a": NOW})
    after = clock.boottime()
    assert before + 4 * 2 / 3 <= ledger._entitled_until <= after + 4 * 2 / 3
    ledger._entitled_until = 0.0
    ledger.assure()
    assert ledger._entitled_until > after


def test_the_deadline_counts_from_before_the_sending(
    election: MasterElection, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped while it sends has no more time afterwards."""
    sending = 0.0
    commit = TransactionRequest.commit_async

    def stopped(transaction: TransactionRequest) -> object:
        nonlocal sending
        sending = clock.boottime()
        result = commit(transaction)
        wait_until(lambda: clock.boottime() > sending + 0.1, PATIENCE, "the end of the stop")
        return result

    monkeypatch.setattr(TransactionRequest, "commit_async", stopped)
    ledger.first_seen({"a": NOW})
    assert ledger._entitled_until <= sending + SAFE_PART * election.session.timeout


def test_lost_answer(candidate: Candidate, road: Road) -> None:
    """A claim without an answer was made or not: reading tells, and nothing is lost or repeated."""
    one = candidate("one", road.hosts, session_timeout=4.0)
    one.start(PATIENCE)
    assert one.wait(PATIENCE)
    ledger = load(one)
    ledger.first_seen({"a": NOW})
    road.block_answers()
    sent = ledger._send({"a": RunState(NOW, 1, NOW)}, {"a": run("a")})
    road.cut()
    with pytest.raises(Uncertain):
        ledger._finish(sent)
    assert ledger.term is None
    road.open()
    assert one.wait(PATIENCE)
    again = load(one)
    state = again.state("a")
    assert state is not None
    assert (state.total_run_count, len(again.outbox)) in ((0, 0), (1, 1))


def test_a_claim_in_flight_is_not_overwritten(ledger: RunLedger) -> None:
    """Between a claim without an answer and its discovery, no other write slips in: both the page
    and the outbox are at versions that the ledger does not know."""
    ledger.first_seen({"a": NOW, "b": NOW})
    other = load(ledger._election)
    ledger.claim([run("a")])
    with pytest.raises(Conflict, match="outbox"):
        other.claim([run("b")])


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_a_claim_that_is_refused_for_what_it_goes_by(
    election: MasterElection, ledger: RunLedger, is_confirmed: bool
) -> None:
    """[I1] Nothing has to be read anew; not even where a confirmation was sent after it, which
    counts on it and so is refused, too. A run that was published late is told of all the same."""
    together = names_on_the_page_of("a", 2)
    ledger.first_seen(dict.fromkeys([*together, "new"], NOW))
    (late,) = ledger.claim([run(together[0])])
    term, at, path = ledger.term, NOW + timedelta(hours=1), election.paths.pauses
    election.session.ensure(path)
    election.session.commit(SetData(path, b"", 0))
    goes_by = Check(path, 0)

    def meanwhile() -> None:
        ledger.published(late, at, at)
        if is_confirmed:
            ledger.confirm()

    with pytest.raises(Outdated, match="pauses"):
        ledger.claim([run(together[1]), run("new")], goes_by, meanwhile=meanwhile)
    assert ledger.term is term
    assert ledger.outbox == {}
    assert bare(ledger.state("new")) == RunState(NOW)
    assert set(load(election).outbox) == {together[0]}
    ledger.flush()
    assert load(election).outbox == {}
    assert bare(load(election).state(together[0])) == RunState(at, 1, NOW - SECOND)
    again = ledger.claim([run(together[1]), run("new")])
    assert list(load(election).outbox.values()) == again
    assert bare(load(election).state("new")) == RunState(NOW, 1, NOW - SECOND)


def test_a_drop_that_is_refused_while_a_claim_is_on_its_way(
    election: MasterElection, ledger: RunLedger
) -> None:
    """[I2] It is not the claim that was refused: what was claimed is not forgotten."""
    ledger.first_seen(dict.fromkeys(["late", "new"], NOW))
    (late,) = ledger.claim([run("late")])
    path = election.paths.pauses
    election.session.ensure(path)
    election.session.commit(SetData(path, b"", 0))
    with pytest.raises(Conflict, match="pauses") as caught:
        ledger.claim([run("new")], meanwhile=lambda: ledger.drop([late], "late", Check(path, 0)))
    assert not isinstance(caught.value, Outdated)
    assert ledger.term is None
    assert set(load(election).outbox) == {"late", "new"}


def test_confirmations_are_coalesced(election: MasterElection, ledger: RunLedger) -> None:
    """One is on its way at a time, and takes along what has gathered."""
    names = [f"e{n}" for n in range(100)]
    ledger.first_seen(dict.fromkeys(names, NOW))
    version = ledger._outbox_version
    for claimed in ledger.claim([run(name) for name in names]):
        ledger.published(claimed, NOW)
        ledger.confirm()
    ledger.flush()
    assert load(election).outbox == {}
    assert 1 < ledger._outbox_version - version < 90


@pytest.mark.parametrize("count", [MOST_RUNS + 100, 3000])
def test_more_than_fits(election: MasterElection, ledger: RunLedger, count: int) -> None:
    """A transaction stays below what ZooKeeper takes; the rest is claimed by the next."""
    names = [f"{n}-" + "x" * 300 for n in range(count)]
    ledger.first_seen(dict.fromkeys(names, NOW))
    left = {name: run(name) for name in names}
    transactions = 0
    while left:
        claimed = ledger.claim(list(left.values()))
        assert 0 < len(claimed) <= MOST_RUNS
        transactions += 1
        for each in claimed:
            assert left.pop(each.entry) == each
            ledger.published(each, NOW)
    assert transactions >= count / MOST_RUNS
    ledger.flush()
    again = load(election)
    assert all(bare(again.state(name)) == RunState(NOW, 1, NOW - SECOND) for name in names)


def test_long_names_fit(ledger: RunLedger) -> None:
    """The limit is one of bytes, and a name in JSON may be six times as long as it looks."""
    names = [f"{n}-" + "\u20ac" * 2000 for n in range(100)]
    ledger.first_seen(dict.fromkeys(names, NOW))
    claimed = ledger.claim([run(name) for name in names])
    assert 0 < len(claimed) * 2 * 12_000 < MOST_BYTES / 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not JSON",
        b'{"format": 99, "entries": {}}',
        b'{"format": 2}',
        b'{"format": 2, "entries": []}',
        b'{"format": 2, "entries": {"a": null}}',
        b'{"format": 2, "entries": {"a": {"last_run_at": 7, "total_run_count": 1}}}',
        b'{"format": 2, "entries": {"a": ["soon", 1, null]}}',
        b'{"format": 2, "entries": {"a": [7, 1]}}',
        b'{"format": 2, "entries": {"a": [7, -1, null]}}',
        b'{"format": 2, "entries": {"a": [7, true, null]}}',
        b'{"format": 2, "entries": {"a": [7, 1, null, []]}}',
    ],
)
def test_damaged_page(
    ledger: RunLedger, client: KazooClient, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, and left as it is; the other entries go on."""
    ledger.first_seen({"a": NOW, "b": NOW})
    path = ledger._paths.page(page_of("a"))
    client.set(path, data)
    again = load(ledger._election)
    assert path in caplog.text
    assert again.damaged("a")
    assert again.state("a") is None
    assert not again.damaged("b")
    again.claim([run("b")])
    assert client.get(path)[0] == data


@pytest.mark.parametrize("data", [b"not JSON", b'{"format": 2, "runs": [{"entry": 1}]}'])
def test_damaged_outbox(
    ledger: RunLedger, client: KazooClient, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs may be in it, so it is put aside, and both znodes are named; the others go on."""
    client.set(ledger._paths.outbox, data)
    again = load(ledger._election)
    aside = ledger._paths.damaged_outbox(data)
    assert f"saved as {aside}" in caplog.text
    assert f"{ledger._paths.outbox}: " in caplog.text
    assert client.get(aside)[0] == data
    again.first_seen({"a": NOW})
    again.claim([run("a")])


def test_damaged_outboxes_at_one_version(ledger: RunLedger, client: KazooClient) -> None:
    """As after its deletion: each is put aside, and neither is in the way of the other."""
    path = ledger._paths.outbox
    for data in (b"one", b"two", b"one"):
        client.delete(path)
        client.create(path, data)
        load(ledger._election)
        assert client.get(ledger._paths.damaged_outbox(data))[0] == data
        assert client.get(path)[0] == encode_outbox(())


def test_page_too_large(ledger: RunLedger, client: KazooClient) -> None:
    """One of another hand's that could not be written again is left alone, like a damaged one."""
    ledger.first_seen({"a": NOW})
    path = ledger._paths.page(page_of("a"))
    state = RunState(NOW, key="\u20ac" * (LARGEST_PAGE // 5))
    client.set(path, encode_page({"a": state}).replace(b"\\u20ac", "\u20ac".encode()))
    assert load(ledger._election).damaged("a")


def names_on_the_page_of(entry: str, count: int, text: str = "n") -> list[str]:
    page = page_of(entry)
    names = (f"{text}-{n}" for n in itertools.count())
    return list(itertools.islice((name for name in names if page_of(name) == page), count))


def nothing_aside(client: KazooClient, ledger: RunLedger) -> bool:
    children = client.get_children(ledger._paths.root)
    return not [name for name in children if "damaged" in name]


@pytest.mark.parametrize("name", ["x" * 1900, "\u4e2d" * 300, "\u044f" * 200, "\U0001f600" * 150])
def test_the_outbox_is_bounded_in_bytes(
    election: MasterElection,
    client: KazooClient,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """[I10] However many runs wait, what was written is read, and all of them are published."""
    monkeypatch.setattr(limits, "MOST_BYTES", 100_000)
    ledger = load(election)
    left = {f"{n}-{name}": run(f"{n}-{name}") for n in range(100)}
    ledger.first_seen(dict.fromkeys(left, NOW))
    seen: set[str] = set()
    while left:
        while left and not ledger.full:
            claimed = ledger.claim(list(left.values()))
            assert claimed
            for each in claimed:
                assert left.pop(each.entry) == each
        assert len(client.get(ledger._paths.outbox)[0]) < 41_000
        assert ledger.full or not left
        ledger = load(election)
        for each in list(ledger.outbox.values()):
            seen.add(each.entry)
            ledger.published(each, NOW + 5 * SECOND)
        ledger.flush()
    assert len(seen) == 100
    assert nothing_aside(client, ledger)


def test_an_outbox_that_is_too_large_to_claim_more(
    election: MasterElection, client: KazooClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another release may write it: it is published, with and without a state of its entries,
    and gets smaller."""
    monkeypatch.setattr(limits, "MOST_BYTES", 100_000)
    ledger = load(election)
    names = [f"{n}-" + "x" * 840 for n in range(105)]
    ledger.first_seen(dict.fromkeys(names[:70], NOW))
    data = encode_outbox([run(name) for name in names])
    assert 90_000 < len(data) < 100_000
    client.set(ledger._paths.outbox, data)
    ledger = load(election)
    assert list(ledger.outbox) == names
    assert ledger.full
    assert ledger.claim([run("new")]) == []
    ledger.first_seen({"new": NOW})
    ledger.drop([ledger.outbox[name] for name in names[:10]], "by the test")
    for each in list(ledger.outbox.values()):
        ledger.published(each, NOW + 5 * SECOND)
        ledger.confirm()
    ledger.flush()
    ledger.claim([run("new")])
    assert set(load(election).outbox) == {"new"}
    assert nothing_aside(client, ledger)


def test_a_name_that_is_too_long(
    election: MasterElection, ledger: RunLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out with a line, and the others go on."""
    caplog.clear()
    long = "\u4e2d" * (LONGEST_NAME // 6 + 1)
    ledger.first_seen({long: NOW, "a": NOW, long[2:]: NOW})
    assert caplog.text.count("too long") == 1
    for each in (ledger, load(election)):
        assert each.state(long) is None
        assert each.state("a") == each.state(long[2:]) == RunState(NOW)
    assert ledger.damaged(long)
    assert not ledger.damaged("a")


def test_a_page_full_of_what_is_named_no_longer(
    election: MasterElection,
    ledger: RunLedger,
    client: KazooClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """[I10] It makes room for what is new, but not a state whose run waits; the numbers of runs go
    on."""
    ledger.limits.most_bytes = 50_000
    ledger.note_named({"nightly"})
    ledger.first_seen({"nightly": NOW})
    names = names_on_the_page_of("nightly", 300)
    waits, others = names[0], names[1:]
    ledger.first_seen({waits: NOW - 100 * SECOND})
    ledger.claim([run(waits, 7)])
    for n in range(0, len(others), 23):
        batch = others[n : n + 23]
        ledger.first_seen(dict.fromkeys(batch, NOW))
        for each in ledger.claim([run(name, 3, NOW + n * SECOND) for name in batch]):
            ledger.published(each, each.claimed)
        ledger.note_named({"nightly"})
    ledger.flush()
    assert len(client.get(ledger._paths.page(page_of("nightly")))[0]) <= 25_000
    assert "in no schedule" in caplog.text
    again = load(election)
    assert again.state("nightly") is not None
    assert again.state(waits) is not None
    assert again.state(others[0]) is None
    assert again.state(others[-1]) is not None
    again.first_seen({others[0]: NOW})
    assert again.state(others[0]) == RunState(NOW, 3)


def test_a_page_full_of_what_is_named(
    election: MasterElection, ledger: RunLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry for which there is no room is left out, with one line for all of a page."""
    ledger.limits.most_bytes = 50_000
    names = names_on_the_page_of("a", 300)
    ledger.note_named({"a", *names})
    ledger.first_seen({"a": NOW})
    ledger.first_seen(dict.fromkeys(names, NOW))
    assert caplog.text.count("no room") == 1
    kept = [name for name in names if not ledger.damaged(name)]
    assert 50 < len(kept) < 200
    ledger.note_named(set())
    for number in range(1, 4):
        for each in ledger.claim([run(name, number) for name in ["a", *kept]]):
            ledger.published(each, NOW + 9 * SECOND)
        ledger.skip(dict.fromkeys(["a", *kept], (NOW, NOW)), "skipped: " + "\u4e2d" * 300)
    ledger.flush()
    again = load(election)
    assert not again.is_damaged
    assert all(again.state(name) is not None for name in ["a", *kept])


def test_the_last_past_is_what_stays(ledger: RunLedger) -> None:
    """Of the past, on a page that has no room for all of it."""
    ledger.limits.most_bytes = 25_000
    names = ["a", *names_on_the_page_of("a", 4)]
    ledger.first_seen(dict.fromkeys(names, NOW))
    for number in range(1, 21):
        ledger.skip(dict.fromkeys(names, (NOW, NOW)), f"{number} " + "\u4e2d" * 150)
    for name in names:
        state = ledger.state(name)
        assert state is not None
        assert 0 < len(state.past) < 20
        assert state.past[-1].note == "20 " + "\u4e2d" * 150


def test_drop(election: MasterElection, ledger: RunLedger) -> None:
    """[I2] A run that is dropped is noted as such, in the transaction that takes it out."""
    ledger.first_seen({"a": NOW, "b": NOW})
    a, b = ledger.claim([run("a"), run("b")])
    ledger.drop([a], "by the test")
    again = load(election)
    assert again.outbox == {"b": b}
    assert bare(again.state("a")) == RunState(NOW, 1, NOW - SECOND, dropped=(1,))
    ledger.claim([run("a", 2, NOW + SECOND)])
    ledger.drop([run("a", 2, NOW + SECOND)], "by the test")
    state = load(election).state("a")
    assert state is not None
    assert state.dropped == (1, 2)


def test_forgotten_entries(election: MasterElection, ledger: RunLedger) -> None:
    """States that nobody names are kept for a while, marked, and then removed; being named again
    takes the mark away."""
    ledger.first_seen({"kept": NOW, "old": NOW, "back": NOW, "waiting": NOW})
    ledger.claim([run("waiting")])
    now = datetime.now(timezone.utc)
    assert ledger.note_named({"kept"}) == []
    left = load(election).state("old")
    assert left is not None
    assert left.unnamed_since is not None
    assert abs(left.unnamed_since - now) < 60 * SECOND
    unnamed(ledger, RETENTION - 60 * SECOND, "old", "back", "waiting")
    assert ledger.note_named({"kept", "back"}) == []
    assert bare(load(election).state("back")) == RunState(NOW)
    unnamed(ledger, RETENTION + SECOND, "old", "waiting")
    assert ledger.note_named({"kept", "back"}) == ["old"]
    again = load(election)
    assert again.state("old") is None
    assert bare(again.state("kept")) == RunState(NOW)
    assert again.state("waiting") is not None  # a run of it is in the outbox


def test_an_entry_that_comes_back(election: MasterElection, ledger: RunLedger) -> None:
    """After longer than a rolling deploy takes its clock starts anew, if its clock is ours."""
    ledger.first_seen({"a": NOW, "b": NOW, "named": NOW})
    ledger.claim([run("a", 5)])
    ledger.published(ledger.outbox["a"], NOW)
    ledger.flush()
    ledger.note_named({"named"}, anew=True)
    unnamed(ledger, ABSENCE + 2 * SECOND, "a")
    unnamed(ledger, ABSENCE - 60 * SECOND, "b")
    now = datetime.now(timezone.utc)
    ledger.note_named({"named", "a", "b"}, anew=True)
    again = load(election)
    state = again.state("a")
    assert state is not None
    assert now <= state.last_run_at < now + 60 * SECOND
    assert bare(state) == RunState(state.last_run_at, 5, NOW - SECOND)
    assert bare(again.state("b")) == bare(again.state("named")) == RunState(NOW)
    ledger.note_named({}, anew=True)
    unnamed(ledger, 2 * ABSENCE, "a")
    ledger.note_named({"a"})
    assert bare(load(election).state("a")) == bare(state)


def test_numbers_go_on_after_the_retention(election: MasterElection, ledger: RunLedger) -> None:
    """[I5] Of an entry whose state was removed, and of each that is new on its page."""
    neighbour = names_on_the_page_of("yearly", 1)[0]
    ledger.first_seen({"yearly": NOW, "other": NOW})
    ledger.claim([run("yearly", 41)])
    ledger.published(ledger.outbox["yearly"], NOW)
    ledger.flush()
    unnamed(ledger, RETENTION + SECOND, "yearly")
    assert ledger.note_named({"other"}) == ["yearly"]
    again = load(election)
    again.first_seen({"yearly": NOW, neighbour: NOW})
    for name in ("yearly", neighbour):
        assert load(election).state(name) == RunState(NOW, 41)
    assert load(election).state("other") == RunState(NOW)


def test_an_entry_that_runs_is_named(election: MasterElection, ledger: RunLedger) -> None:
    """A schedule of which parts come and go may name it only when it is due."""
    ledger.first_seen({"a": NOW})
    unnamed(ledger, RETENTION + SECOND, "a")
    (claimed,) = ledger.claim([run("a")])
    ledger.published(claimed, NOW)
    assert ledger.note_named(set()) == []
    assert ledger.state("a") is not None


def test_what_is_known_to_be_published_stays_so(
    election: MasterElection, ledger: RunLedger
) -> None:
    """[I3] The write that would have confirmed it was lost with the connection; the same process
    does not publish it again."""
    ledger.first_seen({"a": NOW, "b": NOW})
    a, b = ledger.claim([run("a"), run("b")])
    ledger.published(a, NOW)
    ledger.forget()
    assert election.term is not None
    ledger.load(election.term)
    assert ledger.outbox == {"b": b}
    ledger.flush()
    assert load(election).outbox == {"b": b}
    assert ledger._published == {}


def test_what_is_not_written_yet_was_not_ahead(
    election: MasterElection, ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[I13] A master noted a late publish, its answer was lost, and its clock fell far behind: the
    page is older than that note, which does not make it one of a clock that was ahead."""
    now, minute = datetime.now(timezone.utc), 60 * SECOND
    (other,) = names_on_the_page_of("late", 1)
    ledger.first_seen({"late": now, other: now + 5 * minute})
    (late,) = ledger.claim([run("late", at=now)])
    ledger.published(late, now + minute, goes_on_from=now + minute)
    ledger.forget()
    assert election.term is not None
    ledger.load(election.term)
    behind = now - 60 * minute
    monkeypatch.setattr(clock, "now", lambda: behind)
    monkeypatch.setattr(clock, "timestamp", behind.timestamp)
    assert ledger.set_back().keys() == {other}
    state = load(election).state("late")
    assert state is not None
    assert state.last_run_at == now + minute


def test_the_clock_was_set_back_since_a_run_was_published(
    election: MasterElection, ledger: RunLedger
) -> None:
    """[I13] It is not open for as much longer as that clock was ahead, also if the note of it has
    to be made again."""
    now, hour = datetime.now(timezone.utc), 3600 * SECOND
    ledger.first_seen({"late": now})
    (late,) = ledger.claim([replace(run("late", at=now), tracked=True)])
    ledger.published(late, now + hour)
    for again in (False, True):
        if again:
            ledger.forget()
            assert election.term is not None
            ledger.load(election.term)
        state = ledger.state("late")
        assert state is not None
        assert now - SECOND < state.open[0].at < now + hour / 2


def test_the_clock_was_set_forward_since_a_run_was_due(
    ledger: RunLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracked run is open from its claim on by ZooKeeper's clock, not from an hour before."""
    now, hour = datetime.now(timezone.utc), 3600 * SECOND
    ledger.first_seen({"e": now})
    monkeypatch.setattr(clock, "now", lambda: datetime.now(timezone.utc) + hour)
    monkeypatch.setattr(clock, "timestamp", lambda: time.time() + 3600)
    ledger.claim([replace(run("e", at=now), tracked=True)])
    state = ledger.state("e")
    assert state is not None
    assert now - SECOND < state.open[0].at < now + hour / 2


@pytest.mark.parametrize("kind", ["claimed", "skipped", "begun anew"])
def test_the_clock_was_set_back_since_something_was_due(ledger: RunLedger, kind: str) -> None:
    """[I13] What has run already, by a clock that was ahead, is still to come by the right one."""
    now, hour = datetime.now(timezone.utc), 3600 * SECOND
    done = ((milliseconds(now), milliseconds(now + hour / 2)),)
    ledger.first_seen({"e": now})
    ledger.rewrite({"e": RunState(now, done=done)})
    if kind == "claimed":
        ledger.claim([run("e", at=now + hour)])
    elif kind == "skipped":
        ledger.skip({"e": (now, now + hour)}, "why")
    else:
        ledger.begin_anew({"e": now + hour}, {"e": "1"})
    state = ledger.state("e")
    assert state is not None
    assert (state.last_run_at, state.done) == (now + hour, done)


def test_what_is_confirmed_is_not_remembered(ledger: RunLedger) -> None:
    """Names come and go while a master lives."""
    for n in range(100):
        ledger.first_seen({f"e{n}": NOW})
        for each in ledger.claim([run(f"e{n}")], meanwhile=ledger.confirm):
            ledger.published(each, NOW)
            ledger.confirm()
        assert len(ledger._published) < 10
    ledger.flush()
    assert ledger._published == {}


def test_a_server_that_takes_less(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """[I10] It hangs up without a word: what is written becomes smaller until it passes, and the
    log says why."""
    names = [f"e{n}" for n in range(1000)]
    long = [f"{n}-" + "x" * 700 for n in range(100)]
    server = ZooKeeper(tmp_path, java=("-Djute.maxbuffer=65536",))
    with server:
        server.start()
        with MasterElection(
            server.hosts, "/less", id="one", session_timeout=4.0, below=BELOW_ROOT
        ) as election:
            assert election.wait(PATIENCE)
            ledger = RunLedger(election)
            left = {name: run(name) for name in [*names, *long]}
            deadline = clock.boottime() + PATIENCE
            while left or ledger.outbox:
                assert clock.boottime() < deadline
                try:
                    if ledger.term is None:
                        assert election.wait(PATIENCE)
                        assert election.term is not None
                        ledger.load(election.term)
                        unseen = [name for name in left if ledger.state(name) is None]
                        ledger.first_seen(dict.fromkeys(unseen, NOW))
                    for each in list(ledger.outbox.values()):
                        left.pop(each.entry, None)
                        ledger.published(each, NOW + 5 * SECOND)
                    ledger.flush()
                    if left:
                        ledger.claim(list(left.values())[:500])
                except (Uncertain, NotMaster):
                    assert ledger.term is None
            assert 0 < caplog.text.count("jute.maxbuffer") < 6
            assert 16_000 <= ledger.limits.most_bytes < 65_536
            again = load(election)
            assert all(again.state(name) is not None for name in [*names, *long])


def lose_an_answer(one: MasterElection, ledger: RunLedger, road: Road, entry: str) -> None:
    """The state of an entry is written, no answer comes, and the ledger is loaded anew."""
    road.block_answers()
    sent = ledger._send({entry: RunState(NOW)}, ledger.outbox)
    road.cut()
    with pytest.raises(Uncertain):
        ledger._finish(sent)
    road.open()
    assert one.wait(PATIENCE)
    assert one.term is not None
    ledger.load(one.term)


def test_an_ordinary_failure_lowers_nothing(candidate: Candidate, road: Road) -> None:
    """Small requests say nothing, and neither does one large one, or several of a size that was
    answered before."""
    one = candidate("one", road.hosts, session_timeout=4.0)
    one.start(PATIENCE)
    assert one.wait(PATIENCE)
    ledger = load(one)
    ledger.first_seen({f"{n}-" + "x" * 700: NOW for n in range(100)})
    for n in range(4):
        lose_an_answer(one, ledger, road, f"{n}-" + "x" * 20_000 * (n > 1))
    assert ledger.limits.most_bytes == MOST_BYTES


def test_a_page_that_two_lost_answers_stop(candidate: Candidate, road: Road) -> None:
    """They look like those of a server that takes less than the page has: its entries stand still
    for some minutes, in which more is tried again, not for an hour each time."""
    names = names_on_the_page_of("a", 100, "x" * 3000)
    one = candidate("one", road.hosts, session_timeout=4.0)
    one.start(PATIENCE)
    assert one.wait(PATIENCE)
    load(one).first_seen(dict.fromkeys(names, NOW))
    ledger = load(one)
    for _ in range(2):
        lose_an_answer(one, ledger, road, names[0])
    assert ledger.damaged(names[0])
    # Each time it is twice as much.
    assert one.term is not None
    for seconds, stops in [(50, True), (80, True), (130, False)]:
        ledger.limits._since -= seconds
        ledger.load(one.term)
        assert ledger.damaged(names[0]) is stops
    assert ledger.claim([run(names[0])])


def test_refused_by_quota(tmp_path: Path) -> None:
    """kazoo does not know this answer, and would end its loop over it."""
    with ZooKeeper(tmp_path, config={"enforceQuota": "true"}) as server:
        server.start()
        with MasterElection(server.hosts, "/quota", below=BELOW_ROOT) as election:
            assert election.wait(PATIENCE)
            ledger = load(election)
            ledger.first_seen({"a": NOW})
            client = kazoo_of(election.session)
            client.create(
                "/zookeeper/quota/quota/zookeeper_limits",
                b"count=-1,bytes=-1,byteHardLimit=10",
                makepath=True,
            )
            client.create("/zookeeper/quota/quota/zookeeper_stats", b"count=1,bytes=1000")
            with pytest.raises(ZooKeeperError, match="QuotaExceeded"):
                ledger.claim([run("a")])
            assert election.session.connected


def test_deleted_underfoot(ledger: RunLedger, client: KazooClient) -> None:
    ledger.first_seen({"a": NOW})
    client.delete(ledger._paths.page(page_of("a")))
    with pytest.raises(Conflict, match="runs"):
        ledger.claim([run("a")])
    again = load(ledger._election)
    assert again.state("a") is None
    client.delete(ledger._paths.outbox)
    with pytest.raises(Conflict, match="outbox"):
        again.first_seen({"a": NOW})
    load(ledger._election).first_seen({"a": NOW})


def test_what_stands_in_zookeeper(ledger: RunLedger, client: KazooClient) -> None:
    """The format that the next release must read."""
    ledger.first_seen({"a": NOW})
    ledger.claim([run("a", 1, NOW + SECOND)])
    assert json.loads(client.get(ledger._paths.page(page_of("a")))[0]) == {
        "format": 2,
        "entries": {
            "a": [
                1_767_268_801_000_000,
                1,
                1_767_268_800_000_000,
                {"past": [[1, 1767268800000, 1767268801000, 1]]},
            ]
        },
    }
    assert json.loads(client.get(ledger._paths.outbox)[0]) == {
        "format": 2,
        "runs": [["a", 1, 1_767_268_800_000_000, 1_767_268_801_000_000, 1]],
    }


def past_of(client: KazooClient, ledger: RunLedger, entry: str) -> list[int | None]:
    """The numbers of the past runs that ZooKeeper has of an entry, by its history and its state."""
    volume = ledger._paths.volume(volume_of(page_of(entry)))
    old = decode_volume(volume, client.get(volume)[0]) if client.exists(volume) else {}
    page = ledger._paths.page(page_of(entry))
    new = decode_page(page, client.get(page)[0])
    return [past.number for past in merged(old.get(entry, ()), new[entry].past)]


def run_through(ledger: RunLedger, entry: str, number: int) -> None:
    (claimed,) = ledger.claim([run(entry, number)])
    ledger.published(claimed, NOW)
    ledger.flush()


def test_histories(election: MasterElection, ledger: RunLedger, client: KazooClient) -> None:
    """Past runs leave the states; at no moment is one of the last twenty in neither, whoever
    is master next."""
    last = dict.fromkeys(["a", *names_in_the_volume_of("a", 1)], 0)
    ledger.first_seen(dict.fromkeys(last, NOW))
    for number in range(1, 60):
        if number % 17 == 0:
            ledger = load(election)
        entry = [*last][number % 3 == 0]
        last[entry] += 1
        run_through(ledger, entry, last[entry])
        first = max(1, last[entry] - 19)
        assert past_of(client, ledger, entry) == [*range(first, last[entry] + 1)]
    volume = ledger._paths.volume(volume_of(page_of("a")))
    assert len(decode_volume(volume, client.get(volume)[0])["a"]) == 20
    assert 4 < client.get(volume)[1].version < 30
    state = ledger.state("a")
    assert state is not None
    assert len(state.past) < 10


def test_histories_of_bursts(ledger: RunLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs leave together, and however soon the next do."""
    names = [f"n{number}" for number in range(30)]
    ledger.first_seen(dict.fromkeys(names, NOW))

    def burst(number: int) -> int:
        for each in ledger.claim([run(name, number) for name in names]):
            ledger.published(each, NOW)
        ledger.flush()
        states = map(ledger.state, names)
        return sum(len(state.past) for state in states if state is not None)

    assert [burst(number) for number in (1, 2)] == [30, 60]
    monkeypatch.setattr(ledger_module, "HISTORIES_WITHIN", 0.0)
    assert burst(3) == 0


@pytest.mark.parametrize("parent", ["runs", "history"])
def test_a_parent_deleted_by_hand(ledger: RunLedger, client: KazooClient, parent: str) -> None:
    """It is made again."""
    ledger.first_seen({"a": NOW})
    client.delete(f"{ledger._paths.root}/{parent}", recursive=True)
    with pytest.raises(Conflict):  # noqa: PT012
        run_through(ledger, "a", 1)
        run_through(ledger, "a", 2)
    again = load(ledger._election)
    again.first_seen({"b": NOW})
    run_through(again, "b", 1)
    run_through(again, "b", 2)
    assert past_of(client, again, "b") == [1, 2]


def test_a_name_for_which_there_is_no_room(ledger: RunLedger) -> None:
    """Nothing is changed, and nothing harmed: not the entry that had the name."""
    ledger.limits.most_bytes = 16_000
    other = names_on_the_page_of("a", 60)
    ledger.first_seen(dict.fromkeys(["old", "a", *other], NOW))
    rename(ledger, old="a")
    assert not ledger.damaged("a")
    for name in ("old", "a"):  # as large as may be, each
        ledger._pages.of(name).size = ledger.limits.largest_page
    assert rename(ledger, old="a") == []


def test_a_history_deleted_underfoot(ledger: RunLedger, client: KazooClient) -> None:
    """It costs the past runs that were in it, and no run."""
    ledger.first_seen({"a": NOW})
    run_through(ledger, "a", 1)
    client.delete(ledger._paths.volume(volume_of(page_of("a"))))
    numbers = iter(range(2, 50))
    with pytest.raises(Conflict, match="history"):  # noqa: PT012
        for number in numbers:
            run_through(ledger, "a", number)
    term = ledger._election.term
    assert term is not None
    ledger.load(term)
    assert not ledger.outbox
    run_through(ledger, "a", next(numbers))
    run_through(ledger, "a", next(numbers))
    assert past_of(client, ledger, "a")[-4:] == [number - 1, number, number + 1, number + 2]


def test_what_is_told_of_a_run_that_its_history_has(ledger: RunLedger, client: KazooClient) -> None:
    """A drop of it is noted all the same, in its place."""
    (other,) = names_in_the_volume_of("a", 1)
    ledger.first_seen({"a": NOW, other: NOW})
    a, b = ledger.claim([run("a"), run(other)])
    ledger.published(b, NOW)
    for number in range(2, 10):
        run_through(ledger, other, number)
    state = ledger.state("a")
    assert state is not None
    assert state.past == ()
    ledger.drop([a], "the test wants it")
    path = ledger._paths.page(page_of("a"))
    (past,) = decode_page(path, client.get(path)[0])["a"].past
    assert (past.number, past.note) == (1, "dropped: the test wants it")
    assert past_of(client, ledger, "a") == [1]


def names_in_the_volume_of(entry: str, count: int) -> list[str]:
    names = (f"n-{n}" for n in range(count * 20_000))
    return [
        name
        for name in names
        if volume_of(page_of(name)) == volume_of(page_of(entry)) and page_of(name) != page_of(entry)
    ][:count]


def test_repr(ledger: RunLedger) -> None:
    ledger.first_seen({"a": NOW})
    ledger.claim([run("a")])
    assert "epoch=1" in repr(ledger)
    assert "1 states, 1 in the outbox" in repr(ledger)
    wait_until(lambda: ledger._election.is_master, PATIENCE, "a master")
