"""SASL GSSAPI with a real KDC (MIT's) and a real server. Skipped, in CI too, where the KDC's
programs or the package `kerberos` are missing: Debian's krb5-kdc, krb5-admin-server and krb5-user,
and `pip install '.[kerberos]'`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_zk_beat import MasterElection
from celery_zk_beat.security import Grant
from example_project.servers import LOOPBACK, Process, ZooKeeper, free_port, wait_until
from tests.conftest import PATIENCE, TICK_TIME
from tests.guards import STRICT, check_strict
from tests.secure import PROVIDER

REALM = "TEST.INVALID"
BEAT = f"beat@{REALM}"
#: Where Debian has the KDC's programs; not on everybody's PATH.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
PROGRAMS = ["krb5kdc", "kdb5_util", "kadmin.local", "kinit"]

missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
if not importlib.util.find_spec("kerberos"):
    missing.append("Python's kerberos")
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


class Kdc(Process):
    """A KDC with the principals of a ZooKeeper at ``localhost`` and of a beat, all in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        address = f"{LOOPBACK}:{self.port}"
        self.config = folder / "krb5.conf"
        self.config.write_text(f"""
[libdefaults]
    default_realm = {REALM}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    udp_preference_limit = 1
[realms]
    {REALM} = {{
        kdc = {address}
    }}
""")
        profile = folder / "kdc.conf"
        profile.write_text(f"""
[realms]
    {REALM} = {{
        database_name = {folder}/principal
        key_stash_file = {folder}/stash
        acl_file = {folder}/none
        kdc_listen = {address}
        kdc_tcp_listen = {address}
    }}
""")
        self._settings = {
            "PATH": PATH,
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(profile),
        }
        args = [_program("krb5kdc"), "-n", "-P", str(folder / "kdc.pid")]
        super().__init__(folder, "kdc", args, env=self._settings, cwd=folder)
        self._run("kdb5_util", "create", "-s", "-r", REALM, "-P", "sesame")
        for principal in (f"zookeeper/localhost@{REALM}", BEAT):
            self._run("kadmin.local", "-r", REALM, "-q", f"addprinc -randkey {principal}")
            keytab = self.keytab(principal)
            self._run("kadmin.local", "-r", REALM, "-q", f"ktadd -k {keytab} {principal}")

    def keytab(self, principal: str) -> Path:
        return self.folder / f"{principal.partition('@')[0].replace('/', '-')}.keytab"

    def ticket(self, cache: Path) -> None:
        """For the beat."""
        self._run("kinit", "-c", f"FILE:{cache}", "-k", "-t", str(self.keytab(BEAT)), BEAT)

    def _run(self, program: str, *args: str) -> None:
        command = [_program(program), *args]
        subprocess.run(
            command,
            env={**os.environ, **self._settings},
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )


def _program(name: str) -> str:
    return shutil.which(name, path=PATH) or name


@pytest.fixture(scope="module")
def kdc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kdc]:
    with Kdc(tmp_path_factory.mktemp("kdc")) as kdc:
        kdc.start()

        def answers() -> bool:
            with socket.socket() as probe:
                return not probe.connect_ex((LOOPBACK, kdc.port))

        wait_until(answers, PATIENCE, "the KDC")
        yield kdc


def _server(kdc: Kdc, folder: Path, *flags: str) -> ZooKeeper:
    """One that takes tickets of the KDC, not yet started."""
    principal = f"zookeeper/localhost@{REALM}"
    jaas = folder / "jaas.conf"
    jaas.write_text(f"""
Server {{
    com.sun.security.auth.module.Krb5LoginModule required
    useKeyTab=true keyTab="{kdc.keytab(principal)}" storeKey=true principal="{principal}";
}};
""")
    java = [
        f"-Djava.security.auth.login.config={jaas}",
        f"-Djava.security.krb5.conf={kdc.config}",
        f"-Dzookeeper.authProvider.sasl={PROVIDER}.SASLAuthenticationProvider",
        *flags,
    ]
    return ZooKeeper(folder, tick_time=TICK_TIME, java=java)


@pytest.fixture(scope="module")
def server(kdc: Kdc) -> Iterator[ZooKeeper]:
    with _server(kdc, kdc.folder) as server:
        yield server.start()


Start = Callable[..., MasterElection]


@pytest.fixture
def cache(kdc: Kdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process' cache of tickets, empty as yet."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("KRB5_CONFIG", str(kdc.config))
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{cache}")
    monkeypatch.setenv("KRB5_CLIENT_KTNAME", str(tmp_path / "none"))
    return cache


@pytest.fixture
def start(server: ZooKeeper, cache: Path, root: str) -> Iterator[Start]:
    """Starts candidates, and stops them in the end."""
    made: list[MasterElection] = []

    def start(host: str = "localhost", **options: str) -> MasterElection:
        sasl = {"mechanism": "GSSAPI", **options}
        made.append(MasterElection(f"{host}:{server.port}", root, session_timeout=4.0, sasl=sasl))
        made[-1].start()
        return made[-1]

    yield start
    for election in made:
        election.stop()


@pytest.mark.parametrize("options", [{}, {"principal": BEAT}], ids=["any principal", "principal"])
def test_a_ticket_that_comes_late(
    options: dict[str, str],
    kdc: Kdc,
    cache: Path,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a ticket one line says so; with it a beat that runs is elected, and its znodes are
    its principal's."""
    election = start(**options)
    said = "client principal beat@" if options else "No Kerberos credentials available"
    wait_until(lambda: said in caplog.text, PATIENCE, "the line about the ticket")
    assert "sasl: Kerberos: " in caplog.text
    assert not any(record.exc_info for record in caplog.records)
    kdc.ticket(cache)
    assert election.wait(PATIENCE)
    assert election.session.grants([election.paths.root]) == [[Grant("sasl", BEAT, 31)]]


def test_a_keytab(kdc: Kdc, cache: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Kerberos library gets a ticket itself where it is given the key."""
    monkeypatch.setenv("KRB5_CLIENT_KTNAME", str(kdc.keytab(BEAT)))
    assert start(principal=BEAT).wait(PATIENCE)


@pytest.mark.parametrize(
    "wrong", [{"service": "other"}, {"host": LOOPBACK}], ids=["service", "host"]
)
def test_a_server_that_the_kdc_does_not_know(
    wrong: dict[str, str],
    kdc: Kdc,
    cache: Path,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kdc.ticket(cache)
    start(**wrong)
    name = f"{wrong.get('service', 'zookeeper')}/{wrong.get('host', 'localhost')}@"
    said = f"sasl: Kerberos: Server {name}"
    wait_until(lambda: said in caplog.text, PATIENCE, "the line about the server")


@pytest.mark.parametrize("flags", STRICT.values(), ids=STRICT)
def test_a_killed_beat_where_servers_refuse_strangers(
    kdc: Kdc, cache: Path, tmp_path: Path, root: str, flags: list[str]
) -> None:
    """Its guard has no ticket, and need not have one."""
    kdc.ticket(cache)
    with _server(kdc, tmp_path, *flags) as strict:
        strict.start()
        check_strict(f"localhost:{strict.port}", root, {"mechanism": "GSSAPI"})
