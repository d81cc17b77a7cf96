"""What a live entry may be, and what is remembered of its life."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_zk_beat.errors import EntryError, RootError
from celery_zk_beat.live.definitions import (
    CHANGES,
    DEEPEST,
    LARGEST,
    LARGEST_PAGE,
    RECENT,
    Content,
    Damaged,
    Definition,
    Index,
    Page,
    Sum,
    Timing,
    as_policy,
    check_name,
    page_of_entry,
    refusal,
)
from celery_zk_beat.schedules import cron, every

PLAIN: dict[str, Any] = {"task": "shop.report", "schedule": {"every": 30}}
FULL: dict[str, Any] = {
    "task": "shop.report",
    "schedule": {"cron": "0 9 * * *", "tz": "Europe/Paris"},
    "args": [1, "two", None, [True, 0.5]],
    "kwargs": {"deep": {"er": [1]}},
    "options": {
        "queue": "reports",
        "priority": 3,
        "expires": 60,
        "headers": {"tenant": 7},
        "compression": "gzip",
        "delivery_mode": 1,
        "ignore_result": True,
    },
    "policy": {"catch_up": 3600, "starts": "2026-06-01T09:00:00+02:00"},
    "enabled": False,
    "override": True,
    "note": "by hand",
}


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("told", [PLAIN, FULL], ids=["plain", "full"])
def test_what_is_told_is_understood(told: dict[str, Any]) -> None:
    content = Content.of("e", told)
    assert content.checked("e") == content
    again = Content.of("e", json.loads(json.dumps(content.told)))
    assert again.told == content.told
    assert set(told) == set(content.told)


def test_schedules() -> None:
    assert Timing(every=30.0).schedule() == every(30)
    assert Timing(every=60.0, offset=5.0).schedule() == every(60, 5)
    with_zone = Timing(cron="0 9 * * *", tz="Europe/Paris")
    assert with_zone.schedule() == cron("0 9 * * *", "Europe/Paris")
    assert with_zone.schedule() is Timing(cron="0 9 * * *", tz="Europe/Paris").schedule()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("task", "", "task is ''"),
        ("task", "x" * 301, "a text of 1 to 300 characters"),
        ("task", "a\nb", "printable"),
        ("task", 7, "task is 7"),
        ("schedule", 30, "schedule is 30"),
        ("schedule", {"every": 30, "tz": "UTC"}, '{"cron"'),
        ("schedule", {"every": "30"}, "schedule.every is '30'"),
        ("schedule", {"every": float("nan")}, "schedule.every is nan"),
        ("schedule", {"every": 10, "offset": 10}, "the offset is not less"),
        ("schedule", {"every": 0}, "more than 0 seconds"),
        ("schedule", {"cron": "61 * * * *"}, "minute '61'"),
        ("schedule", {"cron": "0 0 30 2 *"}, "no such day"),
        ("schedule", {"cron": "0 9 * * *", "tz": "Europe/Pariss"}, "time zone"),
        ("schedule", {"cron": "0 9 * * *", "tz": "../../etc/passwd"}, "time zone"),
        ("schedule", {"cron": "*" * 301}, "schedule.cron is"),
        ("args", {}, "args is {}: expected a list"),
        ("args", "", "args is '': expected a list"),
        ("args", [float("inf")], "finite"),
        ("args", [2**64], "64 bits"),
        ("args", [object()], "a value that JSON can hold"),
        ("args", deep(DEEPEST + 1), "deep"),
        ("kwargs", [], "kwargs is []: expected an object"),
        ("kwargs", {"a": {1: 2}}, "texts as keys"),
        ("options", {"que": "x"}, "options.que is 'x': expected one of queue,"),
        ("options", {"que": "x"}, "did you mean 'queue'?"),
        ("options", {"task_id": "mine"}, "options.task_id"),
        ("options", {"link": {"task": "other"}}, "options.link"),
        ("options", {"serializer": "pickle"}, "'json' or 'msgpack'"),
        (
            "options",
            {"priority": 256},
            "options.priority is 256: expected a whole number",
        ),
        ("options", {"priority": True}, "options.priority is True"),
        ("options", {"expires": 0}, "options.expires is 0: expected seconds"),
        ("options", {"headers": {"task": "other"}}, "options.headers is 'task'"),
        ("options", {"headers": {"zk_beat": {}}}, "options.headers is 'zk_beat'"),
        ("options", {"headers": {"stamps": {}}}, "options.headers is 'stamps'"),
        ("policy", {"jittr": 1}, "'jittr' is not a key of a policy"),
        ("policy", {"catch_up": -1}, "'catch_up': -1"),
        ("policy", {"once": True, "runs": 2}, "contradict"),
        ("enabled", 1, "enabled is 1: expected true or false"),
        ("override", None, "override is None"),
        ("note", "x" * 501, "at most 500"),
        ("shedule", {}, "did you mean 'schedule'?"),
    ],
)
def test_what_cannot_be_is_named(field: str, value: Any, said: str) -> None:
    with pytest.raises(EntryError) as raised:
        _checked({**PLAIN, field: value})
    assert said in str(raised.value)
    assert str(raised.value).startswith("tenant-7: ")
    assert raised.value.name == "tenant-7"
    assert raised.value.field is not None
    assert raised.value.field.split(".")[0] == field


def _checked(told: Any) -> Content:
    return Content.of("tenant-7", told).checked("tenant-7")


@pytest.mark.parametrize(
    ("field", "value"),
    [("args", {}), ("kwargs", []), ("options", ()), ("policy", ""), ("note", None), ("enabled", 0)],
)
def test_what_is_empty_and_of_another_kind(field: str, value: Any) -> None:
    content = Content("shop.report", Timing(every=30.0), **{field: value})
    with pytest.raises(EntryError, match=f"{field} is"):
        content.checked("e")


@pytest.mark.parametrize("field", ["task", "schedule"])
def test_what_has_to_be_there(field: str) -> None:
    with pytest.raises(EntryError, match=f"{field} is None"):
        Content.of("e", {key: value for key, value in PLAIN.items() if key != field})


def test_an_entry_has_a_bound() -> None:
    fits = {**PLAIN, "args": ["x" * (LARGEST - 100)]}
    assert _checked(fits).size <= LARGEST
    with pytest.raises(EntryError, match=f"bytes of JSON.*at most {LARGEST}"):
        _checked({**PLAIN, "args": ["x" * LARGEST]})


@pytest.mark.parametrize("name", ["", 7, None, "x" * 20_001, "\u20ac" * 4_000, "<f at 0x7f00aa>"])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(EntryError, match="name is"):
        check_name(name)


@pytest.mark.parametrize(
    ("task", "patterns", "said"),
    [
        ("shop.report", None, None),
        ("shop.reprot", None, "is not registered: did you mean 'shop.report'?"),
        ("celery.map", None, "is Celery's own: zk_beat_entries_tasks must name it"),
        ("shop.report", ("shop.*",), None),
        ("elsewhere.task", ("elsewhere.*",), None),
        ("shop.report", ("elsewhere.*",), "matches no pattern of zk_beat_entries_tasks"),
        ("celery.map", ("*",), "matches no pattern"),
        ("celery.backend_cleanup", ("celery.backend_*",), None),
    ],
)
def test_tasks(task: str, patterns: tuple[str, ...] | None, said: str | None) -> None:
    """Those that are registered or, where patterns say so, those that match one; in no case by
    chance one that runs others."""
    found = refusal(task, ["shop.report", "celery.map"], patterns, "zk_beat_entries_tasks")
    assert (found is None) == (said is None)
    assert said is None or said in (found or "")


def added(at: int = 1_000, **more: Any) -> Definition:
    return Definition.added(Content.of("e", {**PLAIN, **more}), "1e0b", at, "web")


def test_a_life() -> None:
    entry = added()
    assert (entry.version, entry.since, entry.key) == (1, 1_000, "1e0b.3e8")
    assert entry.since_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc)
    changed = entry.changed(Content.of("e", {**PLAIN, "args": [1], "note": "x"}), 2_000, "you")
    assert (changed.version, changed.since, changed.born) == (2, 1_000, "1e0b")
    assert changed.changes[-1] == (2, 2_000, "you", ("args", "note"))
    assert Definition.of("e", json.loads(json.dumps(changed.told))) == changed


@pytest.mark.parametrize(
    ("said", "what", "is_anew"),
    [
        ({"schedule": {"every": 31}}, ("schedule",), True),
        ({"schedule": {"every": 30, "offset": 1}}, ("schedule",), True),
        ({"enabled": False}, ("disabled",), False),
        ({"task": "shop.other"}, ("task",), False),
        ({"policy": {"jitter": 1}}, ("policy",), False),
        ({"override": True, "options": {"queue": "q"}}, ("options", "override"), False),
    ],
)
def test_what_begins_the_clock_anew(
    said: dict[str, Any], what: tuple[str, ...], is_anew: bool
) -> None:
    before = added()
    after = before.changed(Content.of("e", {**PLAIN, **said}), 2_000, "you")
    assert after.changes[-1].what == what
    assert after.since == (2_000 if is_anew else 1_000)
    assert (after.key == before.key) == (not is_anew)


def test_enabled_again_its_clock_begins_anew() -> None:
    disabled = added(enabled=False)
    after = disabled.changed(Content.of("e", PLAIN), 2_000, "you")
    assert (after.since, after.changes[-1].what) == (2_000, ("enabled",))


def test_another_schedule_is_another_clock_where_the_time_is_behind() -> None:
    """The time of an answer that was slow is before the last change."""
    before = added().changed(Content.of("e", {**PLAIN, "schedule": {"every": 31}}), 2_000, "you")
    after = before.changed(Content.of("e", {**PLAIN, "schedule": {"every": 32}}), 1_500, "them")
    assert after.key != before.key
    assert after.since == 2_001


@pytest.mark.parametrize(
    "said",
    [
        {"schedule": {"every": 10**400}},
        {"schedule": {"every": 30, "offset": -(10**400)}},
        {"options": {"expires": 10**400}},
    ],
)
def test_a_number_that_no_float_holds(said: dict[str, Any]) -> None:
    with pytest.raises(EntryError):
        Content.of("e", {**PLAIN, **said})


def test_the_same_is_no_change() -> None:
    before = added(args=[1])
    assert before.changed(Content.of("e", {**PLAIN, "args": (1,)}), 2_000, "you") is before
    for other in (True, 1.0, "1"):
        content = Content.of("e", {**PLAIN, "args": [other]})
        assert before.changed(content, 2_000, "you").version == 2


def test_changes_are_in_order_and_bounded() -> None:
    entry = added()
    for number in range(1, CHANGES + 5):
        content = Content.of("e", {**PLAIN, "args": [number]})
        entry = entry.changed(content, 1_000 - number, "x" * 999)
    assert len(entry.changes) == CHANGES
    assert {change.at for change in entry.changes} == {1_000}
    versions = [change.version for change in entry.changes]
    assert versions == [*range(entry.version - CHANGES + 1, entry.version + 1)]
    assert Definition.of("e", entry.told).told == entry.told


PAGE = f"/entries/{page_of_entry('e')}"


def page_with(**told: Any) -> Page:
    data = json.dumps({"format": 2, "entries": told}).encode()
    return Page.decode(PAGE, data, 3, 5_000)


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {**PLAIN, "version": 1},
        {**added().told, "version": 0},
        {**added().told, "version": True},
        {**added().told, "born": "<script>"},
        {**added().told, "since": -1},
        {**added().told, "since": 10**16},
        {**added().told, "changes": 7},
        {**added().told, "changes": [[1]]},
        {**added().told, "changes": [[1, 1, "x", "task"]]},
        {**added().told, "task": ["a"]},
        {**added().told, "options": {"task_id": "x"}},
        {**added().told, "later": 1},
    ],
)
def test_what_is_damaged_harms_itself_alone(told: Any) -> None:
    """And stands on the page as it was when another is changed."""
    neighbour = next(f"n{n}" for n in range(9999) if page_of_entry(f"n{n}") == page_of_entry("e"))
    page = page_with(e=told, **{neighbour: added().told})
    assert isinstance(page.entries["e"], Damaged)
    assert page.entries[neighbour] == Definition.of(neighbour, added().told)
    after = Page.decode(PAGE, page.changed({neighbour: None}).encode())
    assert after.told == {"e": told}


def test_what_lies_on_a_page_that_is_not_its_own_is_none() -> None:
    assert page_with(e=added().told).entries.keys() == {"e"}
    other = next(f"o{n}" for n in range(9999) if page_of_entry(f"o{n}") != page_of_entry("e"))
    assert not page_with(**{other: added().told}).entries


def test_a_page_that_was_not_written_by_us() -> None:
    for data in (b"{", b"[]", b'{"format":3}', b'{"format":2}', b" " * (LARGEST_PAGE + 1)):
        with pytest.raises(RootError, match=PAGE):
            Page.decode(PAGE, data)


def test_the_index() -> None:
    index = Index()
    for number in range(RECENT + 3):
        index = index.changed({"2a": Sum(number, number)}, f"{number:x}")
    assert index.entries == RECENT + 2
    assert len(index.recent) == RECENT
    assert Index.decode("/entries", index.encode()) == index
    assert Index.decode("/entries", b"") == Index()


@pytest.mark.parametrize(
    "told",
    [
        {"pages": {}},
        {"pages": {"2a": 7}, "recent": []},
        {"pages": {"2a": [1]}, "recent": []},
        {"pages": {"2a": [1, -1]}, "recent": []},
        {"pages": {"../../x": [1, 1]}, "recent": []},
        {"pages": {}, "recent": [7]},
        {"pages": {}, "recent": ["x"] * (RECENT + 1)},
        {"pages": {}, "recent": ["x" * 60_000]},
    ],
)
def test_an_index_that_is_none(told: Any) -> None:
    with pytest.raises(RootError, match="/entries"):
        Index.decode("/entries", json.dumps({"format": 2, **told}).encode())


def test_a_policy_as_json() -> None:
    at = datetime(2026, 6, 1, 9, tzinfo=timezone.utc)
    told = as_policy({"jitter": timedelta(minutes=5), "starts": at, "coalesce": "all"})
    content = Content.of("e", {**PLAIN, "policy": json.loads(json.dumps(told))})
    assert content.policy_keys == {
        "jitter": timedelta(minutes=5),
        "starts": at,
        "coalesce": "all",
    }
