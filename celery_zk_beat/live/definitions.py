"""Live entries as data: what users define, checked; versions and past changes; the JSON of entries,
pages and the index. Pure: no I/O, no clock.

Data read from a znode goes through the same checks as data that a user gives. So a client with
write access to the znodes can define valid entries, and do nothing else.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Union

from .. import schedules
from ..control import LONGEST_WHO
from ..errors import EntryError, RootError, SettingsError
from ..limits import LONGEST_NAME
from ..messages import RESERVED_HEADERS
from ..names import without_addresses
from ..paths import page_of
from ..policies import check_policy
from ..records import FORMAT, LARGEST_NUMBER, count, decode, encode, shown, to_text
from ..records import field as field_of
from ..runs import LATEST, from_milliseconds

#: Most bytes of a content in JSON; most characters of a task or queue name, and of a note.
LARGEST, LONGEST_TEXT, LONGEST_NOTE = 8_000, 300, 500
#: Most characters of a cron expression, and of a time zone.
_LONGEST_CRON, _LONGEST_ZONE = 300, 100
#: How deep lists and objects may be nested in the arguments.
DEEPEST = 20
#: Most entries; most bytes of a page.
MOST_ENTRIES, LARGEST_PAGE = 100_000, 400_000
#: How many changes each entry keeps; how many transactions the index keeps.
CHANGES, RECENT = 10, 100
#: Most bytes of the index.
LARGEST_INDEX = 50_000

_MILLISECOND = timedelta(milliseconds=1)
_LATEST_MS = 1000 * LATEST
#: Made once: making an encoder takes longer than using it.
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Timing(NamedTuple):
    """When an entry is due: every so many seconds, counted from `offset` seconds after the Unix
    epoch; or by a cron expression in a time zone (None: the app's)."""

    every: float | None = None
    offset: float = 0.0
    cron: str | None = None
    tz: str | None = None

    def schedule(self) -> schedules.cron | schedules.every:
        """Returns the schedule; usually the same object each time, from a cache.

        Raises:
            ValueError: there is no such schedule. The message is one line.
        """
        return _schedule(self)

    @property
    def told(self) -> dict[str, Any]:
        """Its JSON object."""
        if self.cron is not None:
            return {"cron": self.cron, **({} if self.tz is None else {"tz": self.tz})}
        return {"every": self.every, **({"offset": self.offset} if self.offset else {})}


@functools.lru_cache(1 << 17)
def _schedule(timing: Timing) -> schedules.cron | schedules.every:
    if timing.cron is not None:
        return schedules.cron(timing.cron, timing.tz)
    return schedules.every(timing.every or 0, timing.offset)


@dataclass(frozen=True)
class Content:
    """What users define of an entry.

    Attributes:
        args, kwargs, options: for the message. JSON can hold them; nobody changes them.
        policy: keys of :class:`.policies.Policy`, as JSON; :attr:`policy_keys` has them checked.
        override: it is in force even if the app's `beat_schedule` has an entry of its name.
    """

    task: str
    schedule: Timing
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool = True
    override: bool = False
    note: str = ""

    @property
    def policy_keys(self) -> dict[str, Any]:
        """The policy's keys, checked, as :class:`.policies.Policies` keeps them for a pattern."""
        return check_policy(self.policy)

    @classmethod
    def of(cls, name: str, said: Any) -> Content:
        """Reads a JSON object such as :attr:`told`.

        Raises:
            EntryError: it names the field, the value, and what is accepted.
        """
        if type(said) is not dict:
            raise EntryError(name, None, said, "an object with task, schedule ...")
        unknown = [key for key in said if key not in _CHECKS]
        if unknown:
            raise EntryError(name, str(unknown[0]), said[unknown[0]], _instead(unknown[0], _CHECKS))
        for key in ("task", "schedule"):
            if key not in said:
                raise EntryError(name, key, None, _ACCEPTED[key])
        found: dict[str, Any] = {}
        for key, value in said.items():
            try:
                found[key] = _CHECKS[key](value)
            except _Refused as exc:
                raise EntryError(name, exc.field or key, exc.value, exc.accepted) from None
        return cls(**found)

    @property
    def told(self) -> dict[str, Any]:
        """Its JSON object, without the fields that have their default."""
        told: dict[str, Any] = {"task": self.task, "schedule": self.schedule.told}
        for name in ("args", "kwargs", "options", "policy", "note"):
            if value := getattr(self, name):
                told[name] = value
        if not self.enabled:
            told["enabled"] = False
        if self.override:
            told["override"] = True
        return told

    @property
    def size(self) -> int:
        """The bytes of its JSON."""
        return len(_to_json(self.told))

    def differences(self, after: Content) -> tuple[str, ...]:
        """Returns the names of the fields that differ in `after`; "enabled" or "disabled"."""
        return _differences(self, after)

    def is_same(self, other: Content | None) -> bool:
        return other is not None and not _differences(self, other)

    def checked(self, name: str) -> Content:
        """Returns the same content, if it is valid and can be stored.

        Raises:
            EntryError: as :meth:`of`; also if it is too large, or its schedule is not valid.
        """
        # Not `told`: it leaves out empty values, even those of a wrong type.
        raw = {**vars(self), "schedule": self.schedule.told}
        content = Content.of(name, raw)
        check_timing(name, content.schedule)
        if self.size > LARGEST:
            what = f"{self.size} bytes of JSON"
            raise EntryError(name, None, what, f"at most {LARGEST}: keep large arguments elsewhere")
        return content


def check_timing(name: str, timing: Timing) -> None:
    """Raises EntryError if it is not a valid schedule."""
    try:
        timing.schedule()
    except ValueError as exc:
        raise EntryError(name, "schedule", timing.told, f"a valid schedule: {exc}") from None


class Coming(NamedTuple):
    """An entry that comes over from another scheduler: its content; milliseconds since 1970 from
    which its clock goes on; how many runs have been counted."""

    content: Content
    since: int
    counted: int = 0


class Change(NamedTuple):
    """A change of an entry: the `version` it made, when (milliseconds since 1970), by whom, and
    what: names of fields, or "added", "enabled", "disabled", "clock"."""

    version: int
    at: int
    by: str
    what: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """A live entry.

    Attributes:
        version: 1 when it was added, one more with each change.
        born: a random id. An entry of this name that was removed or is added later has another.
        since: when its clock started (it was added, its schedule was changed, or it was enabled
            again): milliseconds since 1970, by ZooKeeper's clock.
        changes: the last changes, oldest first.
    """

    content: Content
    version: int
    born: str
    since: int
    changes: tuple[Change, ...] = ()
    #: How many runs it had where it has come from: its numbers go on from there.
    counted: int = 0

    @property
    def since_at(self) -> datetime:
        return from_milliseconds(self.since)

    @property
    def key(self) -> str:
        """The key of its run state. It changes whenever the entry's clock starts anew."""
        return f"{self.born}.{self.since:x}"

    @property
    def told(self) -> dict[str, Any]:
        return {
            **self.content.told,
            "version": self.version,
            "born": self.born,
            "since": self.since,
            **({"counted": self.counted} if self.counted else {}),
            "changes": [[*change[:3], list(change.what)] for change in self.changes],
        }

    @classmethod
    def of(cls, name: str, told: Any) -> Definition:
        """Reads :attr:`told`. Raises EntryError if it is damaged. It does not check whether the
        schedule is valid: :meth:`Timing.schedule` does."""
        if not isinstance(told, dict):
            raise EntryError(name, None, told, "an object")
        said, life = dict(told), {}
        for key in _LIFE:
            life[key] = said.pop(key, None)
        version, since, born = life["version"], life["since"], life["born"]
        if not _is_count(version, LARGEST_NUMBER) or not version:
            raise EntryError(name, "version", version, "a number from 1")
        if not _is_count(since, _LATEST_MS):
            raise EntryError(name, "since", since, "milliseconds since 1970")
        if not isinstance(born, str) or not re.fullmatch("[0-9a-f]{1,32}", born):
            raise EntryError(name, "born", born, "hexadecimal digits")
        counted = life["counted"] or 0
        if not _is_count(counted, LARGEST_NUMBER):
            raise EntryError(name, "counted", counted, "a number")
        changes = tuple(_changes(name, life["changes"]))
        return cls(Content.of(name, said), version, born, since, changes, counted)

    def changed(
        self, content: Content, at: int, by: str, coming: Coming | None = None
    ) -> Definition:
        """Returns the definition with another content from `at` on; itself if nothing differs."""
        what = _differences(self.content, content)
        if coming is not None and (coming.since, coming.counted) != (self.since, self.counted):
            what = (*what, "clock")
        if not what:
            return self
        # Keep the changes in order even if a clock was set back.
        at = max([at, *(change.at for change in self.changes[-1:])])
        is_anew = "schedule" in what or "enabled" in what
        # Another instant in any case, for `key` tells of it: clocks that are told apart by the time
        # of an answer may be behind the change before.
        since = max(at, self.since + 1) if is_anew else self.since
        version = self.version + 1
        change = Change(version, at, by[:LONGEST_WHO], what)
        return replace(
            self,
            content=content,
            version=version,
            since=since if coming is None else coming.since,
            counted=self.counted if coming is None else coming.counted,
            changes=(*self.changes, change)[-CHANGES:],
        )

    @classmethod
    def added(
        cls, content: Content, born: str, at: int, by: str, coming: Coming | None = None
    ) -> Definition:
        changes = (Change(1, at, by[:LONGEST_WHO], ("added",)),)
        if coming is None:
            return cls(content, 1, born, at, changes)
        return cls(content, 1, born, coming.since, changes, coming.counted)


_LIFE = ("version", "born", "since", "changes", "counted")


@dataclass(frozen=True)
class Damaged:
    """An entry that cannot be parsed, and why."""

    why: str


#: What a page has under a name.
Found = Union[Definition, Damaged, None]


def _differences(before: Content, after: Content) -> tuple[str, ...]:
    what = [
        each.name
        for each in fields(Content)
        if each.name != "enabled"
        and _text_of(getattr(before, each.name)) != _text_of(getattr(after, each.name))
    ]
    if before.enabled != after.enabled:
        what.append("enabled" if after.enabled else "disabled")
    return tuple(what)


def _text_of(value: Any) -> str:
    """For comparison: in Python 1, 1.0 and True are equal; as arguments they differ."""
    return _to_json(value)


def _changes(name: str, told: Any) -> Iterable[Change]:
    if not isinstance(told, list) or len(told) > CHANGES:
        raise EntryError(name, "changes", told, f"a list of at most {CHANGES}")
    for each in told:
        if not isinstance(each, list) or len(each) != 4:
            raise EntryError(name, "changes", each, "[version, at, by, what]")
        version, at, by, what = each
        if not _is_count(version, LARGEST_NUMBER) or not _is_count(at, _LATEST_MS):
            raise EntryError(name, "changes", each, "a version and milliseconds since 1970")
        if not isinstance(by, str) or not isinstance(what, list):
            raise EntryError(name, "changes", each, "a text and a list")
        if len(what) > len(_CHECKS) or not all(isinstance(one, str) for one in what):
            raise EntryError(name, "changes", each, "names of fields")
        yield Change(version, at, by[:LONGEST_WHO], tuple(one[:40] for one in what))


# Checks of what users define ----------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, value: Any, accepted: str, field: str | None = None) -> None:
        self.value, self.accepted, self.field = value, accepted, field


def check_name(name: Any) -> str:
    """Returns the name. Raises EntryError if an entry cannot have this name."""
    accepted = "a text that is not empty"
    if not isinstance(name, str) or not name:
        raise EntryError(str(name), "name", name, accepted)
    if without_addresses(name) != name:
        raise EntryError(name, "name", name, f"{accepted} and shows no address of an object")
    if len(name) > LONGEST_NAME or len(_to_json(name)) > LONGEST_NAME:
        raise EntryError(name, "name", f"{len(name)} characters", f"{LONGEST_NAME} bytes of JSON")
    return name


def refusal(
    task: str, registered: Collection[str], patterns: Sequence[str] | None, setting: str
) -> str | None:
    """Returns why a live entry may not run a task, or None if it may. `patterns` are those of the
    `setting` ``zk_beat_entries_tasks``: only tasks that match may run. Without patterns the
    registered tasks may run.

    Celery's own tasks may run only if a pattern starts with ``celery.``: ``celery.map`` and others
    run any task that their arguments name.
    """
    own = "celery."
    if patterns is not None:
        named = [each for each in patterns if not task.startswith(own) or each.startswith(own)]
        if any(fnmatch.fnmatchcase(task, each) for each in named):
            return None
        return f"the task {shown(task)} matches no pattern of {setting}"
    if task.startswith(own):
        return f"the task {shown(task)} is Celery's own: {setting} must name it"
    if task in registered:
        return None
    return f"the task {shown(task)} is not registered{_close(task, map(str, registered))}"


def _close(word: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word)[:LONGEST_TEXT], list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _instead(word: Any, known: Iterable[str]) -> str:
    known = list(known)
    return f"one of {', '.join(known)}{_close(word, known)}"


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > LONGEST_TEXT:
        raise _Refused(value, f"a text of 1 to {LONGEST_TEXT} characters")
    if not value.isprintable():
        raise _Refused(value, "printable characters")
    return value


def _note(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NOTE:
        raise _Refused(value, f"a text of at most {LONGEST_NOTE} characters")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Refused(value, "true or false")
    return value


_KINDS_OF_TIMING = (
    '{"every": SECONDS}, optionally with "offset": SECONDS, or {"cron": "0 9 * * *"}, optionally '
    'with "tz": "Europe/Paris"'
)


def _timing(value: Any) -> Timing:
    if type(value) is not dict:
        raise _Refused(value, _KINDS_OF_TIMING)
    keys = set(value)
    if "cron" in keys and keys <= {"cron", "tz"}:
        expression, tz = value["cron"], value.get("tz")
        if not isinstance(expression, str) or len(expression) > _LONGEST_CRON:
            raise _Refused(expression, "five fields as text", "schedule.cron")
        if tz is not None and (not isinstance(tz, str) or len(tz) > _LONGEST_ZONE):
            raise _Refused(tz, "the name of a time zone, such as 'Europe/Paris'", "schedule.tz")
        return Timing(cron=expression, tz=tz)
    if "every" in keys and keys <= {"every", "offset"}:
        for key in keys:
            if not _is_number(value[key]) or not 0 <= value[key] <= 1e10:
                raise _Refused(value[key], "seconds, 0 to 1e10", f"schedule.{key}")
        return Timing(every=float(value["every"]), offset=float(value.get("offset", 0)))
    raise _Refused(value, _KINDS_OF_TIMING)


def timing_of(name: str, schedule: Any) -> Timing:
    """Reads a schedule that a Python program gives. Raises EntryError if it is not one."""
    if isinstance(schedule, schedules.cron) and schedule.key is None:
        zone = schedule.zone
        return Timing(cron=schedule.expression, tz=None if zone is None else zone.key)
    if isinstance(schedule, schedules.every):
        return Timing(every=schedule.seconds, offset=schedule.offset.total_seconds())
    if isinstance(schedule, timedelta):
        return Timing(every=schedule.total_seconds())
    if _is_number(schedule):
        schedule = {"every": schedule}
    try:
        return _timing(schedule)
    except _Refused as exc:
        accepted = exc.accepted if exc.field else "cron(...) without a key, every(...), or seconds"
        raise EntryError(name, exc.field or "schedule", exc.value, accepted) from None


def _is_number(value: Any) -> bool:
    # A large int is no float: isfinite() would raise.
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _data(value: Any, depth: int = 0) -> None:
    """Refuses values that JSON cannot hold or some JSON parsers cannot read."""
    if type(value) in (dict, list, tuple):
        if depth >= DEEPEST:
            raise _Refused("...", f"lists and objects nested at most {DEEPEST} deep")
        if type(value) is dict:
            for key in value:
                if type(key) is not str:
                    raise _Refused(key, "texts as keys")
            value = value.values()
        for each in value:
            _data(each, depth + 1)
    else:
        _scalar(value)


def _scalar(value: Any) -> None:
    if type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise _Refused(value, "numbers of at most 64 bits")
    elif type(value) is float:
        if not math.isfinite(value):
            raise _Refused(value, "finite numbers")
    elif value is not None and type(value) not in (str, bool):
        raise _Refused(value, "a value that JSON can hold")


def _args(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise _Refused(value, _ACCEPTED["args"])
    _data(value)
    return value or ()  # none, however it was written, is the default


def _kwargs(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise _Refused(value, _ACCEPTED["kwargs"])
    _data(value)
    return value


def _seconds(value: Any) -> float:
    if not _is_number(value) or not 0 < value <= 1e9:
        raise _Refused(value, "seconds, more than 0 and at most 1e9")
    return value  # type: ignore[no-any-return]


def _priority(value: Any) -> int:
    if not _is_count(value, 255):
        raise _Refused(value, "a whole number, 0 to 255")
    return value  # type: ignore[no-any-return]


def _one_of(*accepted: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, (bool, list, dict)) or value not in accepted:
            raise _Refused(value, " or ".join(map(repr, accepted)))
        return value

    return check


def _headers(value: Any) -> Mapping[str, Any]:
    found = _kwargs(value)
    for name in found:
        if name in RESERVED_HEADERS:
            raise _Refused(name, "a header that neither Celery nor celery-zk-beat uses")
    return found


#: Message options. None of them loads code, chooses the task or its id, or makes beat wait.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "queue": _text,
    "exchange": _text,
    "routing_key": _text,
    "priority": _priority,
    "delivery_mode": _one_of(1, 2),
    "expires": _seconds,
    "countdown": _seconds,
    "time_limit": _seconds,
    "soft_time_limit": _seconds,
    "ignore_result": _flag,
    "serializer": _one_of("json", "msgpack"),
    "compression": _one_of("zlib", "gzip", "bzip2"),
    "headers": _headers,
}


def _options(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise _Refused(value, "an object with options of apply_async()")
    for key, each in value.items():
        if key not in _OPTIONS:
            raise _Refused(each, _instead(key, _OPTIONS), f"options.{key}")
        try:
            _OPTIONS[key](each)
        except _Refused as exc:
            raise _Refused(exc.value, exc.accepted, f"options.{key}") from None
    return value


def _policy(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise _Refused(value, "an object with keys as in zk_beat_policies")
    _data(value)
    try:
        check_policy(value)
    except SettingsError as exc:
        raise _Refused(value, f"a policy: {exc}") from None
    return value


_ACCEPTED = {
    "task": "the name of a task",
    "schedule": _KINDS_OF_TIMING,
    "args": "a list",
    "kwargs": "an object",
}
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "task": _text,
    "schedule": _timing,
    "args": _args,
    "kwargs": _kwargs,
    "options": _options,
    "policy": _policy,
    "enabled": _flag,
    "override": _flag,
    "note": _note,
}


def as_policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a policy that JSON can hold: a timedelta as seconds, an instant as text."""
    return {key: _as_json(value) for key, value in policy.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return to_text(value)
    return value


# Pages and their index ----------------------------------------------------------------------------


def page_of_entry(name: str) -> str:
    """Returns the name of an entry's page, ``"00"`` to ``"ff"``. It never changes."""
    return page_of(name)[:2]


def is_page_of_entries(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{2}", name) is not None


def checksum(data: bytes) -> int:
    return zlib.crc32(data)


class Sum(NamedTuple):
    """A page's line in the index: the checksum of its bytes, and its number of entries."""

    checksum: int
    entries: int


@dataclass(frozen=True)
class Index:
    """The record of the znode ``entries``. Each change writes it. So all changes have one order,
    and one watch reports them all.

    Attributes:
        pages: checksum and size of each page, as last written.
        recent: the ids of the last transactions, oldest first. A client that got no answer looks
            for its own.
    """

    pages: Mapping[str, Sum] = field(default_factory=dict)
    recent: tuple[str, ...] = ()

    @property
    def entries(self) -> int:
        return sum(each.entries for each in self.pages.values())

    def changed(self, pages: Mapping[str, Sum], id: str) -> Index:
        return Index({**self.pages, **pages}, (*self.recent, id)[-RECENT:])

    def encode(self) -> bytes:
        told = {
            "format": FORMAT,
            "pages": {page: list(each) for page, each in sorted(self.pages.items())},
            "recent": list(self.recent),
        }
        return _to_json(told).encode("ascii")

    @classmethod
    def decode(cls, path: str, data: bytes) -> Index:
        """Reads an index. Empty `data` is an empty index.

        Raises:
            RootError: it is damaged.
        """
        if not data:
            return cls()
        if len(data) > LARGEST_INDEX:
            raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_INDEX}")
        told = decode(path, data)
        pages = {}
        for page, each in field_of(path, told, "pages", dict).items():
            if not is_page_of_entries(page) or not isinstance(each, list) or len(each) != 2:
                raise RootError(f"{path}: {page!r:.80}: {shown(each)} describes no page")
            numbers = {"checksum": each[0], "entries": each[1]}
            pages[page] = Sum(*(count(path, numbers, name) for name in numbers))
        recent = field_of(path, told, "recent", list)
        if len(recent) > RECENT or not all(isinstance(each, str) for each in recent):
            raise RootError(f"{path}: the field 'recent' is {shown(recent)}, expected ids")
        return cls(pages, tuple(recent))


@dataclass(frozen=True)
class Page:
    """A page as it was read.

    Attributes:
        told: the JSON of each entry. Entries that do not change are written back as they were.
        version: the znode's version; None if there is no znode.
        size: its bytes.
        written: when it was written: milliseconds since 1970, by ZooKeeper's clock.
    """

    told: Mapping[str, Any] = field(default_factory=dict)
    version: int | None = None
    written: int = 0
    size: int = field(default=0, compare=False)

    @functools.cached_property
    def entries(self) -> dict[str, Definition | Damaged]:
        """All entries of the page."""
        return {name: self._understood(name) for name in self.told}

    def get(self, name: str) -> Found:
        """Returns one entry."""
        return self._understood(name) if name in self.told else None

    def _understood(self, name: str) -> Definition | Damaged:
        try:
            return Definition.of(check_name(name), self.told[name])
        except EntryError as exc:
            return Damaged(exc.what)
        except Exception as exc:  # a fault of ours must not keep the other entries from running
            return Damaged(f"cannot be read: {exc!r:.200}")

    def changed(self, changes: Mapping[str, Definition | None]) -> Page:
        """Returns a page with these entries put in; None removes an entry."""
        told = dict(self.told)
        for name, after in changes.items():
            if after is None:
                told.pop(name, None)
            else:
                told[name] = after.told
        return Page(told)

    def encode(self) -> bytes:
        """Raises RecursionError if a damaged entry is nested too deeply."""
        # Not by _to_json: a damaged entry may hold values that _to_json refuses.
        return encode({"entries": dict(sorted(self.told.items()))})

    @classmethod
    def decode(cls, path: str, data: bytes, version: int | None = None, written: int = 0) -> Page:
        """Reads a page; single entries may be damaged.

        Raises:
            RootError: `data` is not a page; it names `path`.
        """
        if len(data) > LARGEST_PAGE:
            raise RootError(f"{path}: has {len(data)} bytes, expected at most {LARGEST_PAGE}")
        told = field_of(path, decode(path, data), "entries", dict)
        page = path.rpartition("/")[2]
        return cls(
            {name: each for name, each in told.items() if page_of_entry(name) == page},
            version,
            written,
            len(data),
        )
