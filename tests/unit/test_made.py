"""What hooks have made of a run, as it lies in the outbox: it tells, and decides nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from types import FunctionType
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry

from celery_zk_beat.hooks import is_patched
from celery_zk_beat.messages import Made, addressed, copied
from celery_zk_beat.runs import Run, decode_outbox, encode_outbox

APP = Celery(set_as_current=False)
NOW = datetime.now(timezone.utc)
RUN = Run("e", 1, NOW, NOW, 1)


def entry_of(**options: Any) -> Any:
    entry = ScheduleEntry(name="e", task="t", schedule=60.0, app=APP, options=options)
    return addressed(entry, "the-id", {"zk_beat": {"run": 1}})


def test_what_a_hook_put_there() -> None:
    before = entry_of(queue="a", headers={"tenant": "x"})
    after = copied(before)
    after.options = {**before.options, "queue": "b", "headers": {**before.options["headers"]}}
    after.options["headers"].update({"trace": "1", "celery_beat_task": True})
    after.kwargs = {"a": 1}
    made = Made.of(after, before)
    assert made.options == {"queue": "b", "headers": {"trace": "1"}}
    again = made.put_on(entry_of(headers={"tenant": "y"}))
    assert again.options["queue"] == "b"
    assert again.options["headers"] == {"zk_beat": {"run": 1}, "tenant": "y", "trace": "1"}
    assert again.kwargs == {"a": 1}


def test_zookeeper_says_nothing_but_headers() -> None:
    """Not where to, not with which arguments, not what is called afterwards; nor a header by which
    a worker knows what to do, or that the entry has itself."""
    headers = {"trace": {"a": [1]}, "task": "evil", "x": {1}}
    made = Made({"link": "evil", "queue": "q", "headers": headers}, [1], {"a": 1}, True)
    assert made.text == '{"trace":{"a":[1]}}'
    assert Made.from_text(made.text) == Made({"headers": {"trace": {"a": [1]}}})
    known = APP.amqp.as_task_v2("id", "task", [], {})[0]
    forged = Made.from_text(json.dumps({"trace": 1, "zk_beat": {}, **dict.fromkeys(known)}))
    assert forged.options == {"headers": {"trace": 1}}
    sent = forged.put_on(entry_of())
    assert sent.options["headers"] == {"zk_beat": {"run": 1}, "trace": 1}
    sent = forged.put_on(entry_of(headers={"trace": "ours"}))
    assert sent.options["headers"]["trace"] == "ours"


def test_it_lies_in_the_outbox() -> None:
    def read(text: str) -> str | None:
        (run,) = decode_outbox("/outbox", encode_outbox([replace(RUN, made=text)]))
        return run.made

    assert read('{"trace":{"a":[1]}}') == '{"trace":{"a":[1]}}'
    # What is not understood is none: hooks are called again.
    assert {read(text) for text in ("null", "1", "[1]", '"a"')} == {None}


class Class:
    def method(self) -> None:
        pass


class Below(Class):
    pass


def test_who_put_a_method_there(monkeypatch: Any) -> None:
    assert not is_patched(Below, "method", Below)
    same = FunctionType(Class.method.__code__, {"__name__": "tool"})
    monkeypatch.setattr(Class, "method", same)
    assert is_patched(Below, "method", Below)
