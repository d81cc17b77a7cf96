"""Our loggers, and what they log. For people, each message is one line, whatever stands in it: much
of it was read from a znode, and may have been written by a stranger. For machines, fields.
"""

from __future__ import annotations

import logging
from typing import Literal

#: Stands for the package's name in those of its loggers. They are below Celery's own, so that
#: whoever configures `celery`, or `celery.beat`, has configured them, too.
LOGGERS = "celery.beat.zk_beat"
#: What a line tells of a run, and of a term: docs/logging.md.
Action = Literal[
    "asked",
    "sending",
    "published",
    "failed",
    "raised",
    "dropped",
    "skipped",
    "started",
    "finished",
    "late",
    "recovered",
    "contending",
    "elected",
    "standby",
    "dispatching",
    "resigning",
    "stays",
    "demoted",
    "added",
    "changed",
    "removed",
]
#: The key in `extra` under which the fields of a line are on their way to its record.
_FIELDS = "zk_beat_fields"
#: Most characters of one thing in a log line.
_LONGEST = 1000


def safe(text: str) -> str:
    """Escapes what could steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def telling(action: Action, **known: object) -> dict[str, object]:
    """The `extra` of a line that tells of a run or a term. Whatever prints all that a record has,
    as a formatter for JSON does, prints them.

    Args:
        known: `entry`, `run`, `due` (ISO 8601), `epoch` and `task_id`. What is None is left out.
    """
    return {_FIELDS: {"action": action, **known}}


class _OneLine(logging.Filter):
    """Makes the arguments of a log line, and its fields, printable, and not too long."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_printable, record.args))
        found = record.__dict__.pop(_FIELDS, None)
        if found is not None:
            # Here, because logging would raise for a field that a record has already: a user's
            # factory of records may give each a `task_id`.
            for name, value in found.items():
                if value is not None:
                    record.__dict__[name] = _printable(value)
        return True


def _printable(value: object) -> int | float | str:
    return value if isinstance(value, (int, float)) else _short(str(value))


def _short(text: str) -> str:
    return safe(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of ours, by the module's name; each message is one line of printable
    text."""
    logger = logging.getLogger(LOGGERS + name[len(__package__) :])
    logger.addFilter(_OneLine())
    return logger


def show_warnings() -> None:
    """For a command, whose program seldom configures any logging: then Python shows warnings on
    stderr, but not those of loggers below Celery's, which it has made silent."""
    above = map(logging.getLogger, ("", "celery", "celery.beat"))
    handlers = [each for logger in above for each in logger.handlers]
    if logging.lastResort and all(isinstance(each, logging.NullHandler) for each in handlers):
        logging.getLogger(LOGGERS).addHandler(logging.lastResort)
