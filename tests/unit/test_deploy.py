"""docs/deploy says what the code does; tests/acceptance has beats that are started so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from celery_zk_beat import schedulers
from celery_zk_beat.settings import check_http
from celery_zk_beat.web.application import PATHS
from celery_zk_beat.web.probes import ALIVE_WITHIN
from example_project.processes import REPOSITORY

DEPLOY = REPOSITORY / "docs" / "deploy"
DEPLOYMENT, BUDGET = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]
BEAT = POD["spec"]["containers"][0]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def environment() -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in BEAT["env"]}


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_schema(version: str) -> None:
    """Kubernetes takes it, without a field that it does not know."""
    for manifest in (DEPLOYMENT, BUDGET):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_selectors() -> None:
    """All of them mean the beats' pods."""
    labels = POD["metadata"]["labels"]
    terms = POD["spec"]["affinity"]["podAntiAffinity"].popitem()[1]
    selectors = [DEPLOYMENT["spec"]["selector"], BUDGET["spec"]["selector"]]
    selectors += [term["podAffinityTerm"]["labelSelector"] for term in terms]
    assert [selector["matchLabels"] for selector in selectors] == [labels] * 4


def test_probes() -> None:
    """They ask where the beat listens, for what it answers: liveness never for the role, nor for
    ZooKeeper; it is more patient than the kubelet's restart is quick."""
    gets = {name: BEAT[name]["httpGet"] for name in PROBES}
    assert {name: get["path"] for name, get in gets.items()} == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    assert {get["path"] for get in gets.values()} <= set(PATHS)
    (port,) = BEAT["ports"]
    assert {get["port"] for get in gets.values()} == {port["name"]}
    assert check_http(environment()["ZK_BEAT_HTTP"]) == ("0.0.0.0", port["containerPort"])
    liveness = BEAT["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= ALIVE_WITHIN


def test_settings() -> None:
    """The app that the page refers to reads what the manifest gives it."""
    code = (
        "import json; from example_project.app import app; "
        "from celery_zk_beat.settings import Settings; s = Settings.from_app(app); "
        "print(json.dumps([s.id, s.hosts, s.http, app.conf.broker_url]))"
    )
    env = {name: value or f"given-{name}" for name, value in environment().items()}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, check=True
    )
    hosts = env["ZK_BEAT_HOSTS"]
    assert json.loads(done.stdout) == [
        "given-ZK_BEAT_ID",
        hosts,
        ["0.0.0.0", 8080],
        "given-CELERY_BROKER_URL",
    ]
    assert len(env) == 4


def test_watchdog() -> None:
    """It comes after the beat's own check of its dispatch loop."""
    found = re.search(r"WatchdogSec=(\d+)", (DEPLOY / "celery-beat.service").read_text())
    assert found is not None
    assert int(found[1]) > 2 * schedulers._LEAST_PATIENCE
