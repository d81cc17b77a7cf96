"""example_project/live_entries.py does what it says."""

from __future__ import annotations

import pytest

from example_project import live_entries
from example_project.servers import ZooKeeper, free_port


def test_it_adds_lists_and_removes(
    zookeeper: ZooKeeper,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(live_entries.app.conf, "zk_beat_hosts", zookeeper.hosts)
    monkeypatch.setitem(live_entries.app.conf, "zk_beat_root", root)
    for arguments, status, out, err in (
        (["add", "7"], 0, "report-7: cron 0 9 * * * Europe/Paris, version 1\n", ""),
        (["add", "7", "--hour", "10"], 0, "0 10 * * * Europe/Paris, version 2\n", ""),
        (["add", "8", "--hour", "25"], 2, "", "wrong: cron('0 25 * * *'): hour '25'"),
        (["list"], 0, "report-7: cron 0 10 * * * Europe/Paris, by example, {'tenant': 7}\n", ""),
        (["remove", "7"], 0, "removed\n", ""),
        (["remove", "7"], 0, "not there\n", ""),
        (["list"], 0, "", ""),
    ):
        assert live_entries.main(arguments) == status
        shown = capsys.readouterr()
        assert shown.out.endswith(out)
        assert err in shown.err


def test_zookeeper_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = f"127.0.0.1:{free_port()}"
    monkeypatch.setitem(live_entries.app.conf, "zk_beat_hosts", hosts)
    assert live_entries.main(["list"]) == 1
    assert hosts in capsys.readouterr().err
