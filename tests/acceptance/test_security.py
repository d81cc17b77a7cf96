"""Real beats with credentials: what they show, and what becomes of them when those change."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from kazoo.client import KazooClient
from kazoo.security import make_digest_acl

from example_project.servers import Process, free_port
from tests.conftest import PATIENCE
from tests.secure import BEAT, Authority, SecureZooKeeper

from .conftest import Site

MakeSite = Callable[[str], Site]
#: Of three kinds.
SECRETS = ("d1gest-secret", BEAT["password"], "k3y-secret")


def _znodes(client: KazooClient, path: str) -> Iterator[bytes]:
    yield path.encode()
    yield client.get(path)[0]
    for name in client.get_children(path):
        yield from _znodes(client, f"{path}/{name}")


def test_no_secret_is_shown(
    make_site: MakeSite, secure_zookeeper: SecureZooKeeper, authority: Authority
) -> None:
    """Not in a log, however talkative, nor in the banner, a command's answer, on a page, in a
    znode, or in the list of processes; whether all is well or not."""
    digest, sasl, key = SECRETS
    http = free_port()
    site = make_site(secure_zookeeper.secure_hosts)
    site.schedule(often=0.2)
    site.conf.update(
        zk_beat_auth=f"beat:{digest}",
        zk_beat_sasl={"username": "beat", "password": sasl},
        zk_beat_tls={
            "ca": str(authority.ca),
            "certificate": str(authority.issue("talkative", password=key)),
            "key_password": key,
        },
    )
    app = "tests.acceptance.talkative"
    beat = site.beat("good", "-l", "DEBUG", app=app, zk_beat_http=http)
    bad = site.beat("bad", "-l", "DEBUG", app=app, zk_beat_hosts=secure_zookeeper.hosts)
    worse = {"zk_beat_sasl": {"username": "beat", "password": f"x{sasl}"}, "zk_beat_id": "worse"}
    worst = site.beat("worst", "-l", "DEBUG", app=app, **worse)
    site.wait_for_run(beat)
    bad.wait_for_log("no TLS with ZooKeeper at", PATIENCE)
    worst.wait_for_log("refuses zk_beat_auth or zk_beat_sasl", PATIENCE)
    shown = [process.log().encode() for process in (beat, bad, worst)]
    assert b"Sending request(xid=-4): Auth(***)" in shown[0]
    for process in (beat, bad, worst):
        for pid in _family(process):
            shown.append(Path(f"/proc/{pid}/cmdline").read_bytes())
            shown.append(Path(f"/proc/{pid}/comm").read_bytes())
    for command in (["status"], ["status", "--json"], ["history"], ["run", "often"]):
        answer = site.zk_beat(*command)
        assert answer.returncode == 0, answer.stderr
        shown += [answer.stdout.encode(), answer.stderr.encode()]
    refused = site.zk_beat("status", **worse)
    assert refused.returncode == 2
    shown += [refused.stdout.encode(), refused.stderr.encode()]
    for page in ("", "status.json", "metrics", "livez", "readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/{page}", timeout=PATIENCE) as answer:
            shown.append(answer.read())
    client = KazooClient(secure_zookeeper.hosts, auth_data=[("digest", f"beat:{digest}")])
    client.start(PATIENCE)
    shown += _znodes(client, site.conf["zk_beat_root"])
    client.stop()
    client.close()
    assert beat.terminate(PATIENCE) == 0
    shown.append(beat.log().encode())
    everything = b"\n".join(shown)
    for secret in SECRETS:
        assert secret.encode() not in everything
    assert b"Traceback" not in everything


def _family(process: Process) -> list[int]:
    """What of it runs now; a process that is started by a launcher has children."""
    pid = process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def test_looking_on(make_site: MakeSite, secure_zookeeper: SecureZooKeeper) -> None:
    """Others may read if they are let, and no more."""
    site = make_site(secure_zookeeper.hosts)
    site.schedule(often=0.2)
    ours = {"zk_beat_auth": "beat:sesame", "zk_beat_acl": "auth::cdrwa,world:anyone:r"}
    site.wait_for_run(site.beat("beat", **ours))
    assert site.zk_beat("status").returncode == 0
    assert site.zk_beat("pause", "often", **ours).returncode == 0
    for command in (["resume", "often"], ["run", "often"]):
        answer = site.zk_beat(*command)
        assert answer.returncode == 2
        (line,) = answer.stderr.splitlines()
        assert "denied by ZooKeeper (NoAuth): no credentials: set zk_beat_auth, " in line


def test_credentials_change_under_a_master(
    make_site: MakeSite, authority: Authority, tmp_path: Path
) -> None:
    """The server has another password; then an administrator takes the rights away. The beat says
    what is the matter, asks about once a second, and goes on when all is right again."""
    certificate = authority.issue("own")
    folder = tmp_path / "zookeeper"
    folder.mkdir()
    with SecureZooKeeper(folder, authority, certificate) as server:
        server.start()
        site = make_site(server.hosts)
        site.schedule(often=0.2)
        password = tmp_path / "password"
        password.write_text(BEAT["password"])
        site.conf["zk_beat_sasl"] = {"username": "beat", "password": {"file": str(password)}}
        beat = site.beat()
        site.wait_for_run(beat)

        server.users = {"beat": "another"}
        server.restart()
        beat.wait_for_log("refuses zk_beat_sasl", PATIENCE)
        asked = "Closing client connection due to SASL authentication failure"
        _about_once_a_second(beat, lambda: server.log().count(asked))
        password.write_text("another")
        site.wait_for_run(beat)

        root = site.conf["zk_beat_root"]
        administrator = KazooClient(
            server.hosts,
            sasl_options={
                "mechanism": "DIGEST-MD5",
                "username": "beat",
                "password": "another",
            },
        )
        administrator.start(PATIENCE)
        administrator.add_auth("digest", "root:x")
        paths = [root, f"{root}/epoch", f"{root}/outbox"]
        before = {path: administrator.get_acls(path)[0] for path in paths}
        for path in paths:
            administrator.set_acls(path, [make_digest_acl("root", "x", all=True)])
        beat.wait_for_log("denied by ZooKeeper (NoAuth) to the user of zk_beat_sasl", PATIENCE)
        _about_once_a_second(beat, lambda: beat.log().count("denied by ZooKeeper"))
        for path, acl in before.items():
            administrator.set_acls(path, acl)
        site.wait_for_run(beat)
        administrator.stop()
        administrator.close()
        assert beat.terminate(PATIENCE) == 0
    assert "Traceback" not in beat.log()


def _about_once_a_second(beat: Process, tries: Callable[[], int]) -> None:
    """It does not spin: neither in its own process nor at the server's."""
    begun, before, cpu = time.monotonic(), tries(), _cpu(beat)
    time.sleep(2.5)
    seconds = time.monotonic() - begun
    assert tries() - before <= 3 * seconds
    assert _cpu(beat) - cpu < 0.5 * seconds


def _cpu(process: Process) -> float:
    """Seconds of CPU that it has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
