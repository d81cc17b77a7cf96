"""What all commands have in common: options, errors, and how lines are printed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click
from celery.bin.base import CeleryOption

from .errors import (
    EntryError,
    QuotaExceeded,
    RootError,
    SettingsError,
    TooLarge,
    VersionConflict,
    ZkBeatError,
)
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


@contextlib.contextmanager
def one_line(hosts: Callable[[], str]) -> Iterator[None]:
    """Turns each error of ours into one line and an exit code. `hosts`: where ZooKeeper is, empty
    as long as that is not known."""
    try:
        yield
    except (EntryError, SettingsError) as exc:
        raise Unreachable(str(exc)) from None
    except (RootError, TooLarge, VersionConflict) as exc:
        raise Failure(str(exc)) from None
    except QuotaExceeded as exc:
        raise Failure(f"ZooKeeper at {hosts()}: {exc}") from None
    except ZkBeatError as exc:
        is_named = not hosts() or hosts() in str(exc)
        raise Unreachable(f"{exc}" if is_named else f"ZooKeeper at {hosts()}: {exc}") from None


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
