"""What an attacker, or a broken program, may have written into a znode."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

#: Texts that control terminals, logs and pages, or cannot be encoded.
EVIL_TEXTS = (
    "\x1b]0;owned\x07\x1b[2J",
    "line\n2026-01-01 [CRITICAL] forged\r\n\u2028\u2029",
    "<script>alert(1)</script><img src=x onerror=alert(1)>'\"",
    "\u202egnp.exe\u2066\u200b",
    "../../../etc/passwd",
    "%s%n{0.__class__}${jndi:ldap://x}",
    "\ud800",
    "\x00",
    "A" * 100_000,
)
#: Wrong values for a field.
EVIL_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**300,
    2**63,
    float("nan"),
    float("inf"),
    1e308,
    [],
    {},
    [[[[]]]],
    {"format": 1},
    "9999-12-31T23:59:59.999999+00:00",
    "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59-14:00",
    *EVIL_TEXTS,
)


def nested(depth: int) -> bytes:
    """Makes a record with fields of such a depth: two that no reader needs, and one that all do."""
    deep = b"[" * depth + b"]" * depth
    return b'{"format":2,"entries":{"e":%s},"runs":[%s],"id":%s}' % (deep, deep, deep)


#: Bytes that are no record of any kind.
GARBAGE = {
    "nothing": b"",
    "no JSON": b"{",
    "binary": bytes(range(256)) * 4,
    "another type": b"[]",
    "null": b"null",
    "not a number": b"NaN",
    "a huge number": b'{"format":2,"epoch":%s}' % (b"9" * 4000),
    "a number too long to be read": b"9" * 100_000,
    "another format": b'{"format":1}',
    "a format that is no number": json.dumps({"format": EVIL_TEXTS[1]}).encode(),
    "deep": b"[" * 100_000,
    "as deep as can be read": nested(900),
    "no fields": b'{"format":2}',
    "UTF-16": '{"format":2}'.encode("utf-16"),
    "the same twice": b'{"format":1,"format":2,"app":"x","app":7}',
    "large": b'{"format":2,"x":"' + b"x" * 900_000 + b'"}',
}

INSTANTS = st.sampled_from(
    [
        "2026-01-01T00:00:00.000000+00:00",
        "9999-12-31T23:59:59.999999+00:00",
        "0001-01-01T00:00:00.000000+00:00",
        "9999-12-31T23:59:59.999999-14:00",
        "2026-01-01",
    ]
)
#: What JSON can contain, and what Python's reader accepts in addition.
VALUES = st.recursive(
    st.sampled_from(EVIL_VALUES)
    | INSTANTS
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.integers()
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=8), inner)
    ),
    max_leaves=8,
)


def records(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[bytes]:
    """Makes records that look like one with these fields. Each field may be missing or wrong."""
    wrong = st.fixed_dictionaries(
        {}, optional={name: right | VALUES for name, right in fields.items()}
    )
    return st.one_of(
        wrong.map(lambda found: json.dumps({"format": 2, **found}).encode()),
        VALUES.map(lambda value: json.dumps(value).encode()),
        st.sampled_from(list(GARBAGE.values())),
        st.binary(max_size=40),
    )


_NUMBERS = st.integers(0, 10) | st.just(2**53)
_PAUSES = st.fixed_dictionaries({"since": INSTANTS}, optional={"until": INSTANTS | VALUES})
_TEXTS = st.sampled_from(EVIL_TEXTS) | st.text(max_size=5)
#: Microseconds since 1970.
_INSTANTS = st.just(1_767_225_600_000_000) | st.sampled_from([0, 253_370_764_799_999_999, 2**60])
_OUTCOMES = st.tuples(
    st.sampled_from(["success", "failure", "lost", "late_start", "late_finish"]) | _TEXTS,
    _NUMBERS,
    _NUMBERS | st.none(),
    _TEXTS,
    _TEXTS,
).map(list)
_PAST = st.lists(
    st.tuples(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _TEXTS).map(list)
    | st.tuples(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _TEXTS, _OUTCOMES).map(list)
    | VALUES,
    max_size=3,
)
_STATES = st.tuples(
    _INSTANTS,
    _NUMBERS,
    st.none() | _INSTANTS,
    st.fixed_dictionaries(
        {},
        optional={
            "dropped": st.lists(VALUES, max_size=3) | VALUES,
            "unnamed_since": _INSTANTS,
            "past": _PAST,
            "open": _PAST,
            "failed": _NUMBERS,
            "ran": _NUMBERS,
        },
    ),
).map(list)
_RUNS = st.tuples(
    st.just("e") | _TEXTS,
    _NUMBERS,
    _INSTANTS,
    _INSTANTS,
    _NUMBERS,
    st.fixed_dictionaries(
        {}, optional={"key": VALUES, "error": _TEXTS, "extra": VALUES, "leaves": _INSTANTS}
    ),
).map(list)
ROOTS = records({"app": st.just("shop") | _TEXTS})
INSTALLED = records({"digest": _TEXTS})
MASTERS = records(
    {
        "id": _TEXTS,
        "host": _TEXTS,
        "pid": _NUMBERS,
        "since": INSTANTS,
        "epoch": _NUMBERS,
        "version": _TEXTS,
        "schedule": _TEXTS,
        "successor": _TEXTS,
    }
)
MEMBERS = records(
    {
        "id": _TEXTS,
        "host": _TEXTS,
        "pid": _NUMBERS,
        "state": _TEXTS,
        "since": INSTANTS,
        "version": _TEXTS,
        "schedule": _TEXTS,
        "written": INSTANTS,
    }
)
TERMS = records(
    {
        "masters": st.lists(
            st.fixed_dictionaries(
                {
                    "epoch": _NUMBERS,
                    "id": _TEXTS,
                    "host": _TEXTS,
                    "pid": _NUMBERS,
                    "since": INSTANTS,
                    "until": INSTANTS,
                    "why": _TEXTS,
                }
            )
            | VALUES,
            max_size=3,
        )
    }
)
PAGES = records({"entries": st.dictionaries(st.just("e") | _TEXTS, _STATES | VALUES, max_size=3)})
VOLUMES = records({"entries": st.dictionaries(st.just("e") | _TEXTS, _PAST | VALUES, max_size=3)})
OUTBOXES = records({"runs": st.lists(_RUNS | VALUES, max_size=3)})
PAUSES = records(
    {"all": _PAUSES, "entries": st.dictionaries(st.just("e") | _TEXTS, _PAUSES | VALUES)}
)
_BACKFILLS = st.fixed_dictionaries(
    {
        "since": st.just("2026-01-01T00:00:00+00:00") | INSTANTS,
        "until": st.just("2026-01-02T00:00:00+00:00") | INSTANTS,
        "rate": st.just(1.0) | st.floats() | _NUMBERS,
        "by": _TEXTS,
        "at": INSTANTS,
        "done": _NUMBERS,
    },
    optional={"after": INSTANTS | VALUES, "total": _NUMBERS | VALUES},
)
BACKFILLS = records(
    {"entries": st.dictionaries(st.just("e") | _TEXTS, _BACKFILLS | VALUES, max_size=3)}
)
INDEXES = records(
    {
        "scheduler": st.just("package:Another") | _TEXTS,
        "pages": st.dictionaries(
            st.sampled_from(["3f", "00"]) | _TEXTS, _NUMBERS | VALUES, max_size=3
        ),
    }
)
_CRONS = st.sampled_from(
    ["* * * * *", "0 0 30 2 *", "61 * * * *", "*/0 * * * *", "1-99999999 * * * *", "* * *", ""]
)
_SHOWN = st.fixed_dictionaries(
    {},
    optional={
        "task": _TEXTS,
        "every": st.floats() | _NUMBERS,
        "relative": st.booleans(),
        "cron": _CRONS | _TEXTS,
        "zone": st.sampled_from(["Asia/Tokyo", "../../etc/passwd", "/etc/passwd", "."]) | _TEXTS,
        "schedule": _TEXTS,
        "next_run_at": _NUMBERS,
        "start": _NUMBERS,
        "since": _NUMBERS,
        "disabled": st.booleans(),
        "error": _TEXTS,
    },
)
SHOWN = records({"entries": st.dictionaries(st.just("e") | _TEXTS, _SHOWN | VALUES, max_size=3)})
_OPTIONS = st.dictionaries(
    st.sampled_from(["queue", "link", "task_id", "headers", "expires", "serializer"]) | _TEXTS,
    st.just("pickle") | st.dictionaries(st.just("zk_beat") | _TEXTS, VALUES) | VALUES,
    max_size=3,
)
_LIVE = st.fixed_dictionaries(
    {
        "task": st.just("task") | _TEXTS,
        "schedule": st.fixed_dictionaries({"every": st.just(30) | st.floats() | VALUES})
        | st.fixed_dictionaries({"cron": _CRONS | _TEXTS}, optional={"tz": _TEXTS})
        | VALUES,
        "version": st.just(1) | _NUMBERS,
        "born": st.just("1e0b") | _TEXTS,
        "since": st.just(1_000) | _NUMBERS,
        "changes": st.just([[1, 1_000, "web", ["added"]]])
        | st.lists(st.tuples(_NUMBERS, _NUMBERS, _TEXTS, VALUES).map(list) | VALUES),
    },
    optional={
        "args": st.lists(VALUES) | VALUES,
        "kwargs": st.dictionaries(_TEXTS, VALUES) | VALUES,
        "options": _OPTIONS | VALUES,
        "policy": st.dictionaries(st.sampled_from(["jitter", "starts", "runs"]), VALUES) | VALUES,
        "enabled": st.booleans() | VALUES,
        "override": st.booleans() | VALUES,
        "note": _TEXTS,
    },
)
ENTRIES = records({"entries": st.dictionaries(st.just("e") | _TEXTS, _LIVE | VALUES, max_size=3)})
INDEXES_OF_ENTRIES = records(
    {
        "pages": st.dictionaries(
            st.sampled_from(["3f", "00"]) | _TEXTS,
            st.tuples(_NUMBERS, _NUMBERS).map(list) | VALUES,
            max_size=3,
        ),
        "recent": st.lists(st.just("5b0cc2f1a2d4") | VALUES),
    }
)
REQUESTS = records(
    {
        "do": st.just("run") | st.just("backfill") | _TEXTS,
        "entry": _TEXTS,
        "to": _TEXTS,
        "asked": INSTANTS,
        "by": _TEXTS,
        "since": INSTANTS,
        "until": INSTANTS,
        "rate": st.floats() | _NUMBERS,
        "most": _NUMBERS,
    }
)
ANSWERS = records({"ok": st.booleans(), "text": _TEXTS, "run": _NUMBERS, "task_id": _TEXTS})
REPORTS = records(
    {
        "entry": st.just("e") | _TEXTS,
        "run": _NUMBERS,
        "due": st.just("2026-01-01T00:00:00.000000+00:00") | INSTANTS,
        "id": st.just("task-id") | _TEXTS,
        "worker": _TEXTS,
        "state": st.sampled_from(["started", "success", "failure", "retry", "lost"]),
        "runtime": st.floats() | _NUMBERS,
        "error": _TEXTS,
        "again": st.booleans(),
    }
)
