"""Log lines that are one line each, whatever stands in them: much of what we log was read from a
znode, and may have been written by a stranger."""

from __future__ import annotations

import logging

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


class _OneLine(logging.Filter):
    """Makes the arguments of a log line printable, and not too long."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                each if isinstance(each, (int, float)) else _short(str(each))
                for each in record.args
            )
        return True


def _short(text: str) -> str:
    return safe(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def get_logger(name: str) -> logging.Logger:
    """A logger like :func:`logging.getLogger`'s; each message is one line of printable text."""
    logger = logging.getLogger(name)
    logger.addFilter(_OneLine())
    return logger
