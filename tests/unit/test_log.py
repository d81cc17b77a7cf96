"""Our loggers are below Celery's, and what lines tell machines is what docs/logging.md says."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import celery_zk_beat
from celery_zk_beat.live import merging
from celery_zk_beat.log import LOGGERS, Action, get_logger, telling
from example_project.processes import REPOSITORY

PACKAGE = Path(celery_zk_beat.__file__).parent
PAGE = (REPOSITORY / "docs" / "logging.md").read_text()
ACTIONS = {*get_args(Action)}


def table(title: str) -> dict[str, list[str]]:
    """Of the page, the one of this title: what stands as code in the first cell of a row, to what
    does in the last."""
    text = PAGE[PAGE.index(f"\n## {title}\n") :]
    (rows, *_) = re.findall(r"(?:^\|.*\n)+", text, re.M)
    found: dict[str, list[str]] = {}
    for row in rows.splitlines()[2:]:
        first, *_, last = (re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split("|"))
        found.update(dict.fromkeys(first, last))
    return found


def told() -> Iterator[tuple[str, set[str]]]:
    """What each line of code tells: an action, and the fields."""
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            words = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
            if name == "telling" and isinstance(node.args[0], ast.Attribute):
                assert node.args[0].attr == "kind"
                words = [*get_args(merging.Kind)]
            for action in words if name == "telling" else ():
                fields = {str(each.arg) for each in node.keywords}
                if isinstance(node.func, ast.Attribute):  # of a run
                    fields = {"entry", "run", "due", "epoch", "task_id"}
                yield action, fields


def test_the_page_names_all_loggers() -> None:
    have = {
        ".".join(module.relative_to(PACKAGE).with_suffix("").parts)
        for module in PACKAGE.rglob("*.py")
        if "logger = get_logger(__name__)" in module.read_text()
    }
    named = {name.removeprefix(".") for name in table("Loggers")}
    assert named == {*have, "kazoo"}


def test_the_page_names_all_actions_and_fields() -> None:
    found: dict[str, set[str]] = {action: set() for action in ACTIONS}
    for action, fields in told():
        found[action] |= fields
    assert all(found.values()), "an action of which no line tells"
    assert {action: {*fields} for action, fields in table("Actions").items()} == found


@pytest.mark.parametrize("module", ["publishing", "election.candidate"])
def test_a_logger_is_below_those_of_celery(module: str) -> None:
    logger = get_logger(f"celery_zk_beat.{module}")
    assert logger.name == f"celery.beat.zk_beat.{module}" == f"{LOGGERS}.{module}"


def test_fields(caplog: pytest.LogCaptureFixture) -> None:
    """What is not known is left out."""
    logger = get_logger("celery_zk_beat.fields")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("%s", "a", extra=telling("asked", entry="e", epoch=3, run=None))
    ours = vars(caplog.records[0]).items() - vars(logging.makeLogRecord({})).items()
    known = {key: value for key, value in ours if key in {"action", "entry", "epoch", "run"}}
    assert known == {"action": "asked", "entry": "e", "epoch": 3}


def test_a_users_factory_of_records_has_such_a_field(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With an `extra` of that name logging would raise, and the run not be sent."""
    real = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = real(*args, **kwargs)
        record.task_id = None
        return record

    logger = get_logger("celery_zk_beat.fields")
    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("one", extra=telling("sending", task_id="t"))
        logger.info("two")
    assert [record.task_id for record in caplog.records] == ["t", None]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("configure", "heard"),
    [("pass", "heard\n"), ("logging.basicConfig(format='*%(message)s')", "*heard\n")],
)
def test_a_command_shows_warnings(configure: str, heard: str) -> None:
    """Once; also where nobody has configured logging, for then Celery's loggers are silent."""
    lines = (
        "import logging, celery.beat",
        "from celery_zk_beat.log import get_logger, show_warnings",
        configure,
        "show_warnings()",
        "get_logger('celery_zk_beat.cli').info('not heard')",
        "get_logger('celery_zk_beat.cli').warning('heard')",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    assert subprocess.run(command, capture_output=True, text=True).stderr == heard
