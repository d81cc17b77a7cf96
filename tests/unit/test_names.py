"""Names of entries, which need not be text, as text."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry

from celery_zk_beat.due import shown
from celery_zk_beat.names import NamedByText, by_text, in_order

APP = Celery("names", set_as_current=False)


class Thing:
    pass


def entry(name: Any, task: str = "task", period: float = 1.0, **more: Any) -> ScheduleEntry:
    return ScheduleEntry(name=name, task=task, schedule=period, app=APP, **more)


def test_where_all_are_text() -> None:
    """As a rule: nothing is wrapped, nothing costs."""
    schedule = {"a": entry("a"), "b at 0": entry("b at 0")}
    assert by_text(schedule) is schedule


def test_an_address_is_left_out() -> None:
    """What Celery calls an entry that has no name, where an argument shows its address."""
    name = repr(APP.signature("task", args=(Thing(), "at 0x")))
    (found, fault) = (by_text({name: entry(name)}), None)
    assert isinstance(found, NamedByText)
    (text,) = found
    assert text == f"task(<{__name__}.Thing object>, 'at 0x')"
    (fault,) = found.faults
    assert fault.startswith(f"{text}: ")
    assert found.text_of(name) == text
    assert found[text].name == name


@pytest.mark.parametrize("count", [2, 3])
def test_addresses_that_differ(count: int) -> None:
    """Each is an entry; which of them is which does not depend on the addresses."""
    things = [Thing() for _ in range(count)]
    for _ in range(2):
        things.reverse()
        schedule = {
            repr(thing): entry(repr(thing), period=float(number), args=(thing,))
            for number, thing in enumerate(things, 2)
        }
        found = by_text(dict(sorted(schedule.items(), key=lambda each: hash(each[0]))))
        stem = f"<{__name__}.Thing object>"
        texts = [stem, *(f"{stem} #{number}" for number in range(2, count + 1))]
        assert {text: each.schedule.seconds for text, each in found.items()} == {
            text: number for number, text in enumerate(texts, 2)
        }


def test_changes_show_through() -> None:
    schedule = {1: entry(1), "a": entry("a")}
    found = by_text(schedule)
    found["1"] = new = entry(1)
    assert schedule[1] is new
    del schedule["a"]
    assert list(found) == ["1"]
    assert len(found) == 1
    assert found.get("a") is None
    assert "a" not in found


def test_a_schedule_that_shows_an_address() -> None:
    """So that two beats with the same one do not take it for another."""

    class Odd:
        def __init__(self) -> None:
            self.of = Thing()

        def __repr__(self) -> str:
            return f"<Odd of {self.of!r}>"

    assert shown(Odd()) == shown(Odd()) == f"<Odd of <{__name__}.Thing object>>"


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        ({}, []),
        ({"a": "b"}, [{"a": "b"}]),
        ({"a": "b", "b": "c", "c": "d"}, [{"c": "d"}, {"b": "c"}, {"a": "b"}]),
        ({"b": "c", "a": "b"}, [{"b": "c"}, {"a": "b"}]),
        ({"a": "b", "b": "a"}, [{"a": "b", "b": "a"}]),
        ({"a": "b", "x": "y", "b": "c", "c": "a"}, [{"a": "b", "b": "c", "c": "a"}, {"x": "y"}]),
    ],
)
def test_changes_of_names_in_order(names: dict[str, str], steps: list[dict[str, str]]) -> None:
    assert list(in_order(names)) == steps
