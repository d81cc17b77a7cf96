"""What all commands have in common: options, errors, and how lines are printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from celery.bin.base import CeleryOption

from .log import safe

#: Exit codes, beside 0.
#: No working master; or the request was refused or not completed.
NOT_DONE = 1
#: ZooKeeper cannot be reached; or a setting or the command line is wrong.
UNREACHABLE = 2

Function = TypeVar("Function", bound=Callable[..., Any])


class Failure(click.ClickException):
    """One line on stderr, and an exit code."""

    exit_code = NOT_DONE

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))


class Unreachable(Failure):
    exit_code = UNREACHABLE


def timeout_option(command: Function) -> Function:
    return click.option(
        "--timeout",
        cls=CeleryOption,
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help_group="zk-beat Options",
        help="How long to wait for ZooKeeper, and for the request to complete.",
    )(command)


def json_option(command: Function, described: str = "docs/status.md") -> Function:
    return click.option(
        "--json",
        "as_json",
        cls=CeleryOption,
        is_flag=True,
        help_group="zk-beat Options",
        help=f"Print one JSON object (described in {described}).",
    )(command)


def print_lines(ctx: click.Context, lines: Iterable[str]) -> None:
    encoding = sys.stdout.encoding or "ascii"
    ctx.obj.echo("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))
