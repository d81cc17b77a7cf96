"""Whether the tests of this folder can run. Imports nothing that may be missing."""

from __future__ import annotations

import importlib.util
import os

import pytest

INSTALLED = importlib.util.find_spec("pytest_celery") is not None


def _missing() -> str | None:
    """What keeps these tests from running."""
    if not INSTALLED:
        return "pytest-celery is not installed: make docker"
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env().close()  # asks the engine for its version
    except DockerException as exc:
        return f"no Docker engine answers: {exc}"
    return None


_reason = _missing()
#: On a laptop without an engine these tests are skipped. In CI, whoever installed pytest-celery
#: wants them run: there they fail.
needs_engine = pytest.mark.skipif(
    _reason is not None and not (INSTALLED and "CI" in os.environ), reason=str(_reason)
)
