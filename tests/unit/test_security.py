"""What users say about credentials, TLS and rights; and that no secret is ever shown."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kazoo.protocol.serialization import SASL, Auth, Connect

from celery_zk_beat import MasterElection, SettingsError, ZooKeeperScheduler
from celery_zk_beat.log import LOGGERS
from celery_zk_beat.security import Access, Grant, Secret, check_acl, check_sasl, check_tls
from celery_zk_beat.settings import Settings

SECRET = "c0rrect-h0rse"

BAD = [
    # setting, value, what the message must say
    ("auth", SECRET, "expected 'user:password'"),
    ("auth", f":{SECRET}", "expected 'user:password'"),
    ("auth", f"{SECRET}:", "expected 'user:password'"),
    ("auth", "", 'text, {"env": NAME}, {"file": PATH} or a function'),
    ("auth", ("user", SECRET), '{"env": NAME}'),
    ("auth", {"user": SECRET}, '{"env": NAME}'),
    ("auth", {"env": "A", "file": SECRET}, '{"env": NAME}'),
    ("auth", {"env": ""}, '{"env": NAME}'),
    ("auth", f"u:{SECRET}".encode(), '{"env": NAME}'),
    ("sasl", f"user:{SECRET}", "expected a dict with some of mechanism, service, username"),
    ("sasl", {}, "expected a dict"),
    ("sasl", {"username": "user"}, "DIGEST-MD5 takes username and password"),
    ("sasl", {"password": SECRET}, "DIGEST-MD5 takes username and password"),
    ("sasl", {"username": "user", "pasword": SECRET}, "'pasword' is none of"),
    ("sasl", {"username": "user", "password": [SECRET]}, "password (hidden): expected text"),
    ("sasl", {"username": "", "password": SECRET}, "username ''"),
    ("sasl", {"mechanism": "PLAIN", "password": SECRET}, "'DIGEST-MD5' or 'GSSAPI'"),
    ("sasl", {"mechanism": "GSSAPI", "password": SECRET}, "GSSAPI takes no username"),
    ("tls", "/ca.pem", "expected a dict with some of ca, certificate, key"),
    ("tls", {"cafile": "/ca.pem"}, "'cafile' is none of ca,"),
    ("tls", {"ca": 7}, "ca 7: expected the path of a PEM file"),
    ("tls", {"verify": "no"}, "verify 'no': expected True or False"),
    ("tls", {"key": "/key.pem"}, "key has no effect without certificate"),
    ("tls", {"key_password": SECRET}, "key_password has no effect without certificate"),
    ("tls", {"certificate": "/c", "key_password": {"x": SECRET}}, "key_password (hidden)"),
    ("acl", "", "scheme:id:rights"),
    ("acl", [], "scheme:id:rights"),
    ("acl", "world:anyone", "scheme:id:rights"),
    ("acl", "world:anyone:rx", "scheme:id:rights"),
    ("acl", "world::cdrwa", "names nobody"),
    ("acl", [7], "scheme:id:rights"),
    ("acl", "world:anyone:r", "needs the rights cdrw"),
    ("acl", "world:anyone:r,sasl:beat:cdw", "needs the rights cdrw"),
    ("acl", "auth::cdrwa", "set {0}auth, {0}sasl or a certificate in {0}tls"),
]


def _take(prefix: str, name: str, value: Any) -> None:
    if not prefix:
        MasterElection(**{name: value})
        return
    app, django = Celery("shop"), prefix.isupper()
    shown = prefix + (name.upper() if django else name)
    app.config_from_object({shown: value}, namespace="CELERY" if django else None)
    Settings.from_app(app)


@pytest.mark.parametrize(("name", "value", "says"), BAD)
@pytest.mark.parametrize("prefix", ["zk_beat_", "CELERY_ZK_BEAT_", ""])
def test_a_bad_value(name: str, value: Any, says: str, prefix: str) -> None:
    """One line with the setting's name as the user knows it, and what is accepted; not the value
    where that may be a secret."""
    with pytest.raises(SettingsError) as caught:
        _take(prefix, name, value)
    message = str(caught.value)
    if "{0}" in says:
        says = says.format(prefix)
        message, says = (message, says) if not prefix.isupper() else (message.lower(), says.lower())
        prefix = prefix.lower()
    assert message.startswith(f"{prefix}{name.upper() if prefix.isupper() else name} = ")
    assert says in message
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("mechanism", "missing", "extra"),
    [("DIGEST-MD5", "puresasl", "sasl"), ("GSSAPI", "kerberos", "kerberos")],
)
def test_a_missing_library(
    mechanism: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else there(name)
    )
    user = {"username": "beat", "password": SECRET} if mechanism == "DIGEST-MD5" else {}
    with pytest.raises(SettingsError, match=rf"{mechanism} .*celery-zk-beat\[{extra}\]") as caught:
        check_sasl({"mechanism": mechanism, **user})
    assert SECRET not in str(caught.value)


def test_the_forms_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but text are read when they are needed, and each time."""
    file = tmp_path / "secret"
    for source in (SECRET, {"env": "OURS"}, {"file": file}, {"file": str(file)}, lambda: SECRET):
        secret = Secret(source)  # type: ignore[arg-type]
        monkeypatch.setenv("OURS", SECRET)
        file.write_text(f"{SECRET}\n")
        assert secret.read() == SECRET
        assert repr(secret) == str(secret) == f"{secret}" == "***"
        with pytest.raises(TypeError):
            pickle.dumps(secret)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"env": "NO_SUCH_VARIABLE"}, "environment variable 'NO_SUCH_VARIABLE': not set"),
        ({"env": "EMPTY"}, "environment variable 'EMPTY': empty"),
        ({"file": "/no/such/file"}, "file '/no/such/file': No such file"),
        ({"file": os.devnull}, "file '/dev/null': empty"),
        (lambda: int(SECRET), r"<lambda>\(\) raised ValueError$"),
        (lambda: None, "returned no text, but NoneType"),
        (lambda: SECRET.encode(), "returned no text, but bytes"),
    ],
)
def test_a_secret_that_is_not_there(
    source: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(SettingsError, match=says) as caught:
        Secret(source).read()
    assert SECRET not in "".join(traceback.format_exception(caught.type, caught.value, caught.tb))


def test_no_secret_in_what_can_be_printed() -> None:
    app = Celery("shop")
    app.conf.zk_beat_auth = f"user:{SECRET}"
    app.conf.zk_beat_sasl = {"username": "user", "password": SECRET}
    app.conf.zk_beat_tls = {"certificate": "/beat.pem", "key_password": SECRET}
    settings = Settings.from_app(app)
    scheduler = ZooKeeperScheduler(app, lazy=True)
    election = MasterElection(access=settings.access)
    for shown in (settings, settings.access, scheduler, election, election.session):
        assert SECRET not in f"{shown!r} {shown}"
    assert SECRET not in scheduler.info
    hidden = app.conf.table(with_defaults=False)
    assert SECRET not in str({**hidden, "zk_beat_auth": None})
    assert hidden["zk_beat_auth"] == f"user:{SECRET}"  # as docs/security.md says


def test_no_secret_in_kazoos_log(caplog: pytest.LogCaptureFixture) -> None:
    """It logs each request, and what others could take a session over with."""
    log = logging.getLogger(f"{LOGGERS}.kazoo")
    with caplog.at_level(1, log.name):
        for request in (
            Auth(0, "digest", f"user:{SECRET}"),
            SASL(SECRET.encode()),
            Connect(0, 0, 1000, 1, SECRET.encode(), False),
        ):
            log.debug("Sending request(xid=%s): %s", -4, request)
        log.log(5, "Session created, session_passwd: %s", SECRET)
    assert caplog.messages == [
        "Sending request(xid=-4): Auth(***)",
        "Sending request(xid=-4): SASL(***)",
        "Sending request(xid=-4): Connect(***)",
    ]


def test_rights() -> None:
    grants = check_acl("auth::cdrwa,world:anyone:r")
    assert grants == (Grant("auth", "", 31), Grant("world", "anyone", 1))
    assert ",".join(map(str, grants)) == "auth::cdrwa,world:anyone:r"
    assert check_acl(["x509:CN=beat,O=shop:cdrw", "ip:10.0.0.0/8:r"]) == (
        Grant("x509", "CN=beat,O=shop", 15),
        Grant("ip", "10.0.0.0/8", 1),
    )


@pytest.mark.parametrize(
    ("arguments", "grants"),
    [
        ({}, "world:anyone:cdrwa"),
        ({"tls": True}, "world:anyone:cdrwa"),
        ({"auth": "u:p"}, "auth::cdrwa"),
        ({"sasl": {"username": "u", "password": "p"}}, "auth::cdrwa"),
        ({"tls": {"certificate": "/beat.pem"}}, "auth::cdrwa"),
        ({"auth": "u:p", "acl": "auth::cdrw,world:anyone:r"}, "auth::cdrw,world:anyone:r"),
    ],
)
def test_rights_by_default(arguments: dict[str, Any], grants: str) -> None:
    access = Access.checked(**{"auth": None, "sasl": None, "tls": None, "acl": None, **arguments})
    assert access.grants == check_acl(grants)


def test_tls_is_strict_unless_told_otherwise() -> None:
    for value, verifies, checks in (
        (True, True, True),
        ({"check_hostname": False}, True, False),
        ({"verify": False}, False, False),
    ):
        tls = check_tls(value)
        assert tls is not None
        context = tls.context()
        assert (context.verify_mode.name == "CERT_REQUIRED") == verifies
        assert context.check_hostname == checks
        assert context.minimum_version.name == "TLSv1_2"
