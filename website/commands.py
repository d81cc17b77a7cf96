"""The page of the commands, made of the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click

from celery_zk_beat.cli import zk_beat

NAME = "celery -A proj zk-beat"


def page() -> str:
    with click.Context(zk_beat, info_name=NAME) as parent:
        text = [
            "# Commands\n\n",
            "This page is made of the commands' own help: `celery -A proj zk-beat COMMAND --help` "
            "says the same.\n\n",
            *_help(zk_beat.help or ""),
            *_table(["command", "what it does"], _summaries(parent)),
        ]
        for name in zk_beat.list_commands(parent):
            command = zk_beat.get_command(parent, name)
            assert command is not None
            with click.Context(command, info_name=name, parent=parent) as ctx:
                text += _of_command(command, ctx)
    return "".join(text)


def _summaries(parent: click.Context) -> Iterator[tuple[str, str]]:
    for name in zk_beat.list_commands(parent):
        command = zk_beat.get_command(parent, name)
        assert command is not None
        yield f"[`{name}`](#{name})", command.get_short_help_str(limit=200)


def _of_command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    usage = " ".join([NAME, ctx.info_name or "", *command.collect_usage_pieces(ctx)])
    yield f"## {ctx.info_name}\n\n```text\n{usage}\n```\n\n"
    yield from _help(command.help or "")
    rows = [
        (f"`{names}`", what)
        for names, what in (
            param.get_help_record(ctx) or ("", "")
            for param in command.get_params(ctx)
            if isinstance(param, click.Option)
        )
        if names and names != "--help"
    ]
    if rows:
        yield from _table(["option", "meaning"], rows)


def _help(text: str) -> Iterator[str]:
    """Its paragraphs; what click is not to wrap (below a \\b) is shown as it stands."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        paragraph = paragraph.lstrip(" ")
        if paragraph.startswith("\b"):
            title, *lines = paragraph[1:].strip("\n").splitlines()
            indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
            language = "console" if "Example" in title else "text"
            block = "\n".join(line[indent:] for line in lines)
            yield f"{title.strip()}\n\n```{language}\n{block}\n```\n\n"
        else:
            yield _plain(" ".join(paragraph.split())) + "\n\n"


def _table(titles: list[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}\n"
    for left, right in rows:
        yield f"| {left} | {_plain(' '.join(right.split()))} |\n"
    yield "\n"


def _plain(text: str) -> str:
    """As Markdown that shows these characters and no others; names that are typed as code."""
    made = ""
    for number, part in enumerate(text.split("`")):
        if number % 2:
            made += f"`{part}`"
            continue
        part = re.sub(r"([\\*_<>|\[\]])", r"\\\1", part)
        part = re.sub(r"(?<![\w-])--[a-z-]+|\bzk(?:\\_\w+)+", _code, part)
        made += re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", part)
    return made


def _code(found: re.Match[str]) -> str:
    return "`" + found[0].replace("\\", "") + "`"
