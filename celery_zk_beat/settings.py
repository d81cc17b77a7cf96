"""Reads ``app.conf`` into immutable, checked values. No other module reads them from there."""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

from .errors import SettingsError
from .paths import quote_name
from .policies import NO_POLICIES, Policies, check_policies
from .security import Access, Grant, Sasl, Secret, Tls, check_acl, check_auth, check_sasl, check_tls

T = TypeVar("T")

RESEND, DROP = "resend", "drop"
WORKER, BACKEND = "worker", "backend"

_PREFIX = "zk_beat_"
_PORTS = range(1, 65536)
#: ZooKeeper's client protocol carries the time-out as a signed 32-bit number of milliseconds.
_MAX_SECONDS = (2**31 - 1) / 1000
#: What ZooKeeper's data model forbids in a path (Programmer's Guide, "The ZooKeeper Data Model").
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff]")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]@,]+)(?::(?P<port>[^:]*))?\Z")


@dataclass(frozen=True)
class Settings:
    """The values of the ``zk_beat_*`` settings. Immutable, so safe to share between threads.

    Attributes:
        hosts: ZooKeeper connection string, ``host:port,host:port/chroot``.
        root: absolute znode path (below the chroot) of this app's election.
        id: the name of this beat; default ``<host>:<pid>``.
        session_timeout: the seconds to ask ZooKeeper for, which has limits of its own.
        connect_timeout: seconds to wait for ZooKeeper at start-up; None: for ever, as a standby.
        scheduler: class of the scheduler that decides what is due, as ``package.module:Class``;
            None: our own, for the entries in ``beat_schedule``.
        recovery: what to do with a run that a master claimed and perhaps did not publish before it
            died: "resend" or "drop".
        publish_deadline: seconds after which a master that cannot publish resigns; None: never.
        http: host and port for health, metrics and status page; None: serve none of them.
        metrics_entries: patterns of the names of entries that get metrics of their own; None: no
            entry does.
        entries: run live entries, too, beside the app's `beat_schedule`.
        entries_tasks: patterns of the names of tasks that live entries may run; None: all
            registered tasks.
        entries_acl: the rights on the znodes of live entries; None: as on all other znodes.
        outcomes: who says what became of runs: the "worker" or Celery's result "backend"; None:
            nobody.
        outcomes_acl: the rights on the znodes that workers write; None: as on all other znodes.
        auth, sasl, tls, acl: see :class:`~.security.Access`.
        fast_takeover: a small process beside this beat ends its session if it dies.
        policies: how entries run, by patterns of their names: see :mod:`~.policies`.
        app: the Celery app's name, or None; protects the root from other apps.
    """

    hosts: str
    root: str
    id: str
    session_timeout: float
    connect_timeout: float | None
    recovery: str
    publish_deadline: float | None
    http: tuple[str, int] | None
    app: str | None
    scheduler: str | None = None
    fast_takeover: bool = True
    metrics_entries: tuple[str, ...] | None = None
    auth: Secret | None = None
    sasl: Sasl | None = None
    tls: Tls | None = None
    acl: tuple[Grant, ...] | None = None
    policies: Policies = NO_POLICIES
    entries: bool = False
    entries_tasks: tuple[str, ...] | None = None
    entries_acl: tuple[Grant, ...] | None = None
    outcomes: str | None = None
    outcomes_acl: tuple[Grant, ...] | None = None
    #: Celery's own, which asks for what django-celery-results shows of a task.
    result_extended: bool = False
    #: Before the names of all settings, as the user writes them.
    prefix: str = _PREFIX

    @classmethod
    def from_app(cls, app: Any) -> Settings:
        """Reads the settings of a Celery app, in plain (``zk_beat_hosts``) or namespaced Django
        style (``CELERY_ZK_BEAT_HOSTS``).

        Raises:
            SettingsError: a value cannot work, or a name is unknown. One line, naming the
                setting, the value and what is accepted.
        """
        return cls.from_mapping(app.conf, app.main)

    @classmethod
    def from_mapping(cls, conf: Mapping[str, Any], app: str | None = None) -> Settings:
        """Reads them like :meth:`from_app`, from any mapping and the app's name."""
        read = _Reader(conf)
        read.refuse_unknown_names(cls._names())
        settings = cls(
            hosts=read("hosts", check_hosts, "127.0.0.1:2181"),
            root=read("root", check_path, None) or default_root(app),
            id=read("id", check_id, None) or default_id(),
            session_timeout=read("session_timeout", check_seconds, 10.0),
            connect_timeout=read("connect_timeout", check_seconds_or_none, None),
            scheduler=read("scheduler", check_scheduler, None),
            recovery=read("recovery", check_recovery, RESEND),
            publish_deadline=read("publish_deadline", check_seconds_or_none, 30.0),
            http=read("http", check_http, None),
            fast_takeover=read("fast_takeover", check_bool, True),
            metrics_entries=read("metrics_entries", check_patterns, None),
            auth=read("auth", check_auth, None),
            sasl=read("sasl", check_sasl, None),
            tls=read("tls", check_tls, None),
            acl=read("acl", check_acl, None),
            policies=read("policies", check_policies, NO_POLICIES),
            entries=read("entries", check_bool, False),
            entries_tasks=read("entries_tasks", check_patterns, None),
            entries_acl=read("entries_acl", check_acl, None),
            outcomes=read("outcomes", check_outcomes, None),
            outcomes_acl=read("outcomes_acl", check_acl, None),
            app=app,
            result_extended=bool(conf.get("result_extended")),
            prefix=read.shown(_PREFIX),
        )
        settings.access.check()
        settings.access.check_acl("entries_acl", settings.entries_acl)
        settings.access.check_acl("outcomes_acl", settings.outcomes_acl)
        if settings.outcomes is None:
            remedy = f"needs {read.shown(_PREFIX + 'outcomes')} = 'worker' or 'backend'"
            try:
                settings.policies.refuse_tracking(remedy)
            except SettingsError as exc:
                raise SettingsError(f"{read.shown(_PREFIX + 'policies')} = {exc}") from None
        if settings.scheduler is not None:
            try:
                settings.policies.refuse_what_gated_cannot()
            except SettingsError as exc:
                raise SettingsError(f"{read.shown(_PREFIX + 'policies')} = {exc}") from None
            if settings.entries:
                raise SettingsError(
                    f"{read.shown(_PREFIX + 'entries')} = True does not work together with "
                    f"{read.shown(_PREFIX + 'scheduler')}, which decides what its entries are"
                )
        return settings

    @property
    def access(self) -> Access:
        """The beat's credentials for ZooKeeper, TLS, and the rights on its znodes."""
        return Access(self.auth, self.sasl, self.tls, self.acl, self.prefix)

    @classmethod
    def _names(cls) -> list[str]:
        ours = ("app", "prefix", "result_extended")
        return [_PREFIX + name for name in cls.__dataclass_fields__ if name not in ours]


def has_settings(conf: Mapping[str, Any]) -> bool:
    """True if a configuration has any of our settings."""
    return any(conf.get(name) is not None for name in Settings._names())


def as_written(conf: Mapping[str, Any], name: str) -> str:
    """A setting's name as the user writes it, perhaps ``CELERY_BEAT_SCHEDULER``."""
    return _Reader(conf).shown(name)


class _Reader:
    def __init__(self, conf: Mapping[str, Any]) -> None:
        self._conf = conf
        # First, because it makes Celery load a lazy configuration; before, there is no prefix.
        self._keys = [key for key in conf if isinstance(key, str)]
        #: How Celery prefixes the names with ``config_from_object(..., namespace="CELERY")``.
        self._namespace = (getattr(conf, "prefix", None) or "").rstrip("_").upper()

    def __call__(self, name: str, check: Callable[[Any], T], default: Any) -> T:
        value = self._conf.get(_PREFIX + name)
        # None is a value only where it means something else than the default.
        if value is None and (default is None or _PREFIX + name not in self._conf):
            return default  # type: ignore[no-any-return]
        try:
            return check(value)
        except SettingsError as exc:
            raise SettingsError(f"{self.shown(_PREFIX + name)} = {exc}") from None

    def refuse_unknown_names(self, known: Iterable[str]) -> None:
        accepted = {self.shown(name) for name in known} | set(known)
        ours = re.compile(rf"(?:celery_|{re.escape(self._namespace)}_)?({_PREFIX}.*)", re.I | re.S)
        for key in self._keys:
            match = ours.fullmatch(key) if key not in accepted else None
            if match is None:
                continue
            guess = difflib.get_close_matches(match[1].lower(), list(known), n=1)
            hint = f"did you mean {self.shown(guess[0])}?" if guess else "see the settings page"
            raise SettingsError(f"{key} is not a setting of celery-zk-beat: {hint}")

    def shown(self, name: str) -> str:
        return f"{self._namespace}_{name.upper()}" if self._namespace else name


def check_hosts(value: Any) -> str:
    """Returns the connection string with a chroot that has no trailing slash.

    Raises:
        SettingsError: not of the form ``host:port,host:port/chroot``.
    """
    wanted = "'host:port,host:port/chroot', ports 1 to 65535"
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{value!r}: expected {wanted}")
    if "@" in value:
        # Not shown: what stands before the @ is most likely a password.
        raise SettingsError(f"(hidden): expected {wanted}; credentials do not belong here")
    servers, slash, chroot = value.strip().partition("/")
    for server in servers.split(","):
        match = _HOST.match(server.strip())
        port = (match["port"] or "2181") if match and match["port"] != "" else ""
        if not (port.isascii() and port.isdigit() and int(port) in _PORTS):
            raise SettingsError(f"{value!r}: {server.strip()!r} is not a server; expected {wanted}")
    chroot = chroot.rstrip("/")
    if slash and chroot:
        try:
            check_path(slash + chroot)
        except SettingsError as exc:
            raise SettingsError(f"{value!r}: the chroot {exc}") from None
    names = ",".join(server.strip() for server in servers.split(","))
    return f"{names}/{chroot}" if chroot else names


def check_path(value: Any) -> str:
    """Returns `value`, an absolute znode path.

    Raises:
        SettingsError: relative, empty, with empty or dot components, a trailing slash, or
            characters that ZooKeeper refuses.
    """
    wanted = "an absolute znode path such as '/celery-zk-beat/shop'"
    if not isinstance(value, str) or not value.startswith("/") or value == "/":
        raise SettingsError(f"{value!r}: expected {wanted}")
    if {"", ".", ".."} & set(value[1:].split("/")) or _FORBIDDEN.search(value):
        raise SettingsError(f"{value!r}: not a path that ZooKeeper accepts; expected {wanted}")
    if value.split("/")[1] == "zookeeper":
        raise SettingsError(f"{value!r}: /zookeeper belongs to the server; expected {wanted}")
    return value


def check_id(value: Any) -> str:
    """Returns `value`, the name of one beat.

    Raises:
        SettingsError: no text, empty, too long, or with control characters.
    """
    if (
        not isinstance(value, str)
        or not value.strip()
        or len(value) > 200
        or not value.isprintable()
    ):
        raise SettingsError(f"{value!r}: expected 1 to 200 printable characters")
    return value


def check_seconds(value: Any) -> float:
    """Returns `value` as seconds.

    Raises:
        SettingsError: no number, not above zero, NaN, infinite, or past what ZooKeeper can hold.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= _MAX_SECONDS:
        raise SettingsError(f"{value!r}: expected a number of seconds above 0")
    return float(value)


def check_seconds_or_none(value: Any) -> float | None:
    """Checks like :func:`check_seconds`, and lets None pass."""
    if value is None:
        return None
    try:
        return check_seconds(value)
    except SettingsError as exc:
        raise SettingsError(f"{exc}, or None") from None


def check_bool(value: Any) -> bool:
    """Returns `value`.

    Raises:
        SettingsError: neither True nor False.
    """
    if not isinstance(value, bool):
        raise SettingsError(f"{value!r}: expected True or False")
    return value


def check_http(value: Any) -> tuple[str, int] | None:
    """Returns host and port of ``"host:port"``, or of a port alone, which is one of 127.0.0.1.

    Raises:
        SettingsError: anything else.
    """
    if value is None:
        return None
    match = re.fullmatch(
        r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):)?(?P<port>[0-9]{1,5})", f"{value}"
    )
    if (
        isinstance(value, bool)
        or not isinstance(value, (str, int))
        or match is None
        or int(match["port"]) not in _PORTS
    ):
        raise SettingsError(f"{value!r}: expected 'host:port', or a port of 127.0.0.1")
    return (match["host"] or "127.0.0.1").strip("[]"), int(match["port"])


def check_patterns(value: Any) -> tuple[str, ...] | None:
    """Returns the patterns of a list, as :mod:`fnmatch` has them; None where there is none.

    Raises:
        SettingsError: anything else.
    """
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(each, str) and each for each in value
    ):
        raise SettingsError(f"{value!r}: expected a list of patterns such as ['nightly-*']")
    return tuple(value) or None


def check_scheduler(value: Any) -> str | None:
    """Returns the name of a class, as ``package.module:Class``. Whether the class exists is checked
    when beat starts.

    Raises:
        SettingsError: anything else.
    """
    if value is None:
        return None
    if isinstance(value, type):
        return f"{value.__module__}:{value.__qualname__}"
    match = (
        re.fullmatch(r"(?P<module>[\w.]+)[.:](?P<name>\w+)", value)
        if isinstance(value, str)
        else None
    )
    if match is None:
        raise SettingsError(
            f"{value!r}: expected a scheduler's class as 'package.module:Class', or None"
        )
    return f"{match['module']}:{match['name']}"


def check_recovery(value: Any) -> str:
    """Returns `value`.

    Raises:
        SettingsError: neither "resend" nor "drop".
    """
    if value not in (RESEND, DROP):
        raise SettingsError(f"{value!r}: expected {RESEND!r} or {DROP!r}")
    return str(value)


def check_outcomes(value: Any) -> str | None:
    """Returns `value`.

    Raises:
        SettingsError: neither "worker" nor "backend" nor None.
    """
    if value not in (WORKER, BACKEND, None):
        raise SettingsError(f"{value!r}: expected {WORKER!r}, {BACKEND!r} or None")
    return None if value is None else str(value)


def default_id() -> str:
    """Returns ``<host>:<pid>`` of the calling process: call it after a fork, not before."""
    return f"{socket.gethostname()}:{os.getpid()}"


def default_root(app: str | None) -> str:
    """The root of an app: it contains the app's name, so that two apps never share an election.

    Raises:
        SettingsError: the app has no name.
    """
    if not app:
        raise SettingsError(
            "zk_beat_root is not set and the Celery app has no name to make a root of: "
            "write Celery('name'), or set zk_beat_root to a znode path of this app's own"
        )
    return f"/celery-zk-beat/{quote_name(app)}"
