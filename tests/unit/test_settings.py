"""Every bad setting ends in one line that names the setting, the value and what is accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from celery import Celery

from celery_zk_beat import MasterElection, SettingsError
from celery_zk_beat.security import Grant, Tls
from celery_zk_beat.settings import Settings, check_hosts, check_http, default_root

NAN = float("nan")

BAD = [
    # setting, value, what else the message must say
    ("hosts", "", "host:port"),
    ("hosts", " ", "host:port"),
    ("hosts", 2181, "host:port"),
    ("hosts", ["zk1:2181"], "host:port"),
    ("hosts", "zk1:", "'zk1:' is not a server"),
    ("hosts", ":2181", "':2181' is not a server"),
    ("hosts", "zk1:2181,", "'' is not a server"),
    ("hosts", "zk1,,zk2", "'' is not a server"),
    ("hosts", "zk1:0", "ports 1 to 65535"),
    ("hosts", "zk1:65536", "ports 1 to 65535"),
    ("hosts", "zk1:-1", "ports 1 to 65535"),
    ("hosts", "zk1:http", "ports 1 to 65535"),
    ("hosts", "zk1:²", "ports 1 to 65535"),
    ("hosts", "zk1:2181:2182", "is not a server"),
    ("hosts", "zk 1:2181", "is not a server"),
    ("hosts", "::1:2181", "is not a server"),
    ("hosts", "zk1:2181//a", "absolute znode path"),
    ("hosts", "zk1:2181/a/../b", "not a path that ZooKeeper accepts"),
    ("root", "", "absolute znode path"),
    ("root", "celery", "absolute znode path"),
    ("root", "/", "absolute znode path"),
    ("root", "/a/", "not a path that ZooKeeper accepts"),
    ("root", "/a//b", "not a path that ZooKeeper accepts"),
    ("root", "/a/./b", "not a path that ZooKeeper accepts"),
    ("root", "/a\x00", "not a path that ZooKeeper accepts"),
    ("root", "/zookeeper/quota", "belongs to the server"),
    ("root", b"/a", "absolute znode path"),
    ("id", "", "1 to 200 printable characters"),
    ("id", "a\nb", "1 to 200 printable characters"),
    ("id", "x" * 201, "1 to 200 printable characters"),
    ("id", 7, "1 to 200 printable characters"),
    *[
        ("http", value, "'host:port', or a port of 127.0.0.1")
        for value in (
            "",
            "host",
            "host:",
            ":80",
            "host:0",
            65536,
            0,
            True,
            80.0,
            "a b:80",
            "::1:80",
        )
    ],
    *[("scheduler", value, "'package.module:Class'") for value in ("", "Database", 7, "a b:C")],
    *[
        (name, value, "a list of patterns such as ['nightly-*']")
        for name in ("metrics_entries", "entries_tasks")
        for value in ("nightly-*", [""], [7], {"a": 1}, True)
    ],
    ("policies", {"a": {"jitter": "1 h"}}, "seconds or a timedelta"),
    ("outcomes_acl", "worker", "'worker' is not scheme:id:rights"),
    ("entries_acl", "web", "'web' is not scheme:id:rights"),
    *[
        ("outcomes", value, "'worker', 'backend' or None")
        for value in ("", "Worker", True, ["worker"])
    ],
    ("recovery", "", "'resend' or 'drop'"),
    ("recovery", "Drop", "'resend' or 'drop'"),
    ("recovery", True, "'resend' or 'drop'"),
    *[
        (name, value, "True or False")
        for name in ("fast_takeover", "entries")
        for value in (0, 1, "no", [True])
    ],
    *[
        (name, value, "number of seconds above 0")
        for name in ("session_timeout", "connect_timeout", "publish_deadline")
        for value in (0, 0.0, -1, NAN, math.inf, "10", "soon", True, [1], 2**31)
    ],
]


@pytest.mark.parametrize(("name", "value", "says"), BAD)
@pytest.mark.parametrize("namespaced", [False, True], ids=["plain", "namespaced"])
def test_a_bad_value(name: str, value: Any, says: str, namespaced: bool) -> None:
    """The message shows the name as the user wrote it, in plain and in Django style."""
    app, shown = Celery("shop"), f"zk_beat_{name}"
    if namespaced:
        shown = f"CELERY_ZK_BEAT_{name.upper()}"
        app.config_from_object({shown: value}, namespace="CELERY")
    else:
        app.conf[shown] = value
    with pytest.raises(SettingsError) as caught:
        Settings.from_app(app)
    message = str(caught.value)
    assert message.startswith(f"{shown} = ")
    assert name == "policies" or repr(value) in message  # of which it shows the part
    assert says in message
    assert "\n" not in message


def test_every_setting_can_be_bad() -> None:
    """The table above forgets none but those of test_security.py."""
    others = {"app", "prefix", "result_extended", "auth", "sasl", "tls", "acl"}
    assert {name for name, _, _ in BAD} == set(Settings.__dataclass_fields__) - others


def test_a_password_is_not_shown() -> None:
    app = Celery("shop")
    app.conf.zk_beat_hosts = "user:secret@zk1:2181"
    with pytest.raises(SettingsError, match="credentials do not belong here") as caught:
        Settings.from_app(app)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("zk_beat_host", "zk_beat_hosts"),
        ("zk_beat_Hosts", "zk_beat_hosts"),
        ("ZK_BEAT_ROOT", "zk_beat_root"),
        ("zk_beat_sesion_timeout", "zk_beat_session_timeout"),
        ("CELERY_ZK_BEAT_HOSTS", "zk_beat_hosts"),
    ],
)
def test_a_slip_of_the_pen(written: str, meant: str) -> None:
    """An unknown name would be ignored in silence, and the default taken."""
    app = Celery("shop")
    app.conf[written] = "x"
    with pytest.raises(SettingsError, match=f"{written} is not a setting.*did you mean {meant}"):
        Settings.from_app(app)


def test_a_slip_in_django_style() -> None:
    app = Celery("shop")
    app.config_from_object({"CELERY_ZK_BEAT_HOST": "x"}, namespace="CELERY")
    with pytest.raises(SettingsError, match="did you mean CELERY_ZK_BEAT_HOSTS"):
        Settings.from_app(app)


def test_a_strange_name() -> None:
    """Nothing resembles it, so nothing is suggested."""
    app = Celery("shop")
    app.conf.zk_beat_colour_of_the_sky = "blue"
    with pytest.raises(SettingsError, match=r"zk_beat_colour_of_the_sky is not a setting"):
        Settings.from_app(app)


def test_good_values() -> None:
    """All at once, in Django style."""
    app = Celery("shop")
    settings = {
        "CELERY_ZK_BEAT_HOSTS": " zk1:2181, zk2 ,[::1]:2183/chroot/ ",
        "CELERY_ZK_BEAT_ROOT": "/billing/beat é",
        "CELERY_ZK_BEAT_ID": "beat one",
        "CELERY_ZK_BEAT_SESSION_TIMEOUT": 4,
        "CELERY_ZK_BEAT_CONNECT_TIMEOUT": 2.5,
        "CELERY_ZK_BEAT_RECOVERY": "drop",
        "CELERY_ZK_BEAT_PUBLISH_DEADLINE": None,
        "CELERY_ZK_BEAT_HTTP": "[::1]:8080",
        "CELERY_ZK_BEAT_FAST_TAKEOVER": False,
        "CELERY_ZK_BEAT_METRICS_ENTRIES": ["nightly-*", "é"],
        "CELERY_ZK_BEAT_TLS": True,
        "CELERY_ZK_BEAT_ACL": "world:anyone:cdrw",
        "CELERY_ZK_BEAT_ENTRIES": True,
        "CELERY_ZK_BEAT_ENTRIES_TASKS": ["shop.*"],
        "CELERY_ZK_BEAT_ENTRIES_ACL": "digest:web:x=:cdrw",
        "CELERY_ZK_BEAT_OUTCOMES": "backend",
        "CELERY_ZK_BEAT_OUTCOMES_ACL": "digest:worker:x=:cdrw",
        "CELERY_RESULT_EXTENDED": True,
    }
    app.config_from_object(settings, namespace="CELERY")
    assert Settings.from_app(app) == Settings(
        hosts="zk1:2181,zk2,[::1]:2183/chroot",
        root="/billing/beat é",
        id="beat one",
        session_timeout=4.0,
        connect_timeout=2.5,
        recovery="drop",
        publish_deadline=None,
        http=("::1", 8080),
        app="shop",
        fast_takeover=False,
        metrics_entries=("nightly-*", "é"),
        tls=Tls(),
        acl=(Grant("world", "anyone", 15),),
        entries=True,
        entries_tasks=("shop.*",),
        entries_acl=(Grant("digest", "web:x=", 15),),
        outcomes="backend",
        outcomes_acl=(Grant("digest", "worker:x=", 15),),
        result_extended=True,
        prefix="CELERY_ZK_BEAT_",
    )


def test_entries_of_another_scheduler_are_not_live() -> None:
    app = Celery("shop")
    app.conf.update(zk_beat_entries=True, zk_beat_scheduler="redbeat:RedBeatScheduler")
    with pytest.raises(SettingsError, match=r"zk_beat_entries = True.*with zk_beat_scheduler"):
        Settings.from_app(app)


def test_rights_on_entries_of_an_identity_that_there_is_not() -> None:
    app = Celery("shop")
    app.conf.zk_beat_entries_acl = "auth::cdrwa"
    with pytest.raises(SettingsError, match="zk_beat_entries_acl = 'auth::cdrwa': its scheme"):
        Settings.from_app(app)


def test_defaults() -> None:
    settings = Settings.from_app(Celery("my shop/beta"))
    assert settings.hosts == "127.0.0.1:2181"
    assert settings.root == "/celery-zk-beat/my shop%2Fbeta"
    assert settings.session_timeout == 10
    assert settings.connect_timeout is None
    assert settings.recovery == "resend"
    assert settings.publish_deadline == 30
    assert settings.fast_takeover
    assert settings.metrics_entries is None
    assert not settings.entries
    assert settings.entries_tasks is None
    assert settings.entries_acl is None
    assert settings.outcomes is None
    assert settings.outcomes_acl is None
    assert settings.id


def test_apps_have_roots_of_their_own() -> None:
    """Two apps on one ensemble never share an election by accident."""
    names = ["a", "A", "a/b", "a%2Fb", ".", "..", "é"]
    assert len({default_root(name) for name in names}) == len(names)
    assert all(default_root(name).count("/") == 2 for name in names)


def test_an_app_without_a_name() -> None:
    """All of them would share one root."""
    with pytest.raises(SettingsError, match="zk_beat_root is not set and the Celery app has no"):
        Settings.from_app(Celery())
    app = Celery()
    app.conf.zk_beat_root = "/mine"
    assert Settings.from_app(app).root == "/mine"


def test_a_chroot_may_be_given_as_a_slash() -> None:
    assert check_hosts("zk1:2181/") == "zk1:2181"


@pytest.mark.parametrize(
    "arguments",
    [{"hosts": ""}, {"root": "x"}, {"id": ""}, {"session_timeout": 0}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_an_election_checks_its_arguments(arguments: dict[str, Any]) -> None:
    """Before anything connects, by the same rules."""
    name, value = next(iter(arguments.items()))
    with pytest.raises(SettingsError, match=f"^{name} = {value!r}"):
        MasterElection(**arguments)


@pytest.mark.parametrize(
    ("value", "address"),
    [(8080, ("127.0.0.1", 8080)), ("8080", ("127.0.0.1", 8080)), ("0.0.0.0:80", ("0.0.0.0", 80))],
)
def test_http(value: Any, address: tuple[str, int]) -> None:
    """A port alone is not open to the world."""
    assert check_http(value) == address
