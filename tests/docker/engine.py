"""Whether the tests of this folder can run. Imports nothing that may be missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

INSTALLED = importlib.util.find_spec("pytest_celery") is not None


def _missing() -> str | None:
    """What keeps these tests from running."""
    if not INSTALLED:
        return "pytest-celery is not installed: make docker"
    # In a process of its own, because a client that reaches no engine leaves a socket open, and
    # some other test would have to answer for it.
    ask = [sys.executable, "-c", "import docker; docker.from_env()"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return None
    return f"no Docker engine answers: {answer.stderr.strip().splitlines()[-1]}"


_reason = _missing()
#: On a laptop without an engine these tests are skipped. In CI, whoever installed pytest-celery
#: wants them run: there they fail.
needs_engine = pytest.mark.skipif(
    _reason is not None and not (INSTALLED and "CI" in os.environ), reason=str(_reason)
)
