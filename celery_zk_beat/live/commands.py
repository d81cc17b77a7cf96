"""``zk-beat add``, ``set``, ``remove``, ``show``, ``export`` and ``import``: live entries on the
command line. These commands need ZooKeeper only; no beat has to run."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import click
from celery.bin.base import CeleryCommand, CeleryOption

from ..command_line import (
    Failure,
    Unreachable,
    json_option,
    one_line,
    print_lines,
    timeout_option,
)
from ..control import who
from ..errors import (
    EntryError,
    RootError,
    TooLarge,
    VersionConflict,
    ZkBeatError,
)
from ..log import safe, show_warnings
from ..records import FORMAT, to_text
from ..runs import from_milliseconds
from .definitions import Coming, Content, Damaged, Definition, Found, check_name, timing_of
from .public import Entries, EntryVersion, LiveEntry
from .store import Edit, Wanted

Function = TypeVar("Function", bound=Callable[..., Any])

#: Largest file that `import` reads, in characters.
_LARGEST_FILE = 200_000_000
#: Most lines of differences that `import` prints.
_MOST_LINES = 1000


def option(*names: str, **more: Any) -> Callable[[Function], Function]:
    return click.option(*names, cls=CeleryOption, help_group="zk-beat Options", **more)


def _fields(command: Function) -> Function:
    """Adds the options that `add` and `set` share."""
    options = [
        option("--task", metavar="TASK", help="The name of the task."),
        option("--every", type=float, metavar="SECONDS", help="Run it every so many seconds."),
        option(
            "--offset",
            type=float,
            metavar="SECONDS",
            help="With --every: count the intervals from this many seconds after the Unix epoch.",
        ),
        option("--cron", metavar="EXPR", help="Run it by a cron line: '0 9 * * *'."),
        option("--tz", metavar="ZONE", help="With --cron: the time zone. Default: the app's."),
        option("--args", metavar="JSON", help="The task's arguments, a list: '[1, 2]'."),
        option("--kwargs", metavar="JSON", help="The task's keyword arguments: '{\"a\": 1}'."),
        option(
            "--options",
            metavar="JSON",
            help='Message options: \'{"queue": "reports", "expires": 60}\'.',
        ),
        option("--policy", metavar="JSON", help="The entry's policy: '{\"jitter\": 300}'."),
        option("--note", metavar="TEXT", help="A note that `show` prints."),
        option(
            "--override/--no-override",
            "override",
            default=None,
            help="Whether it replaces an entry of the same name in beat_schedule.",
        ),
    ]
    for decorate in reversed(options):
        command = decorate(command)
    return command


def _json(command: Function) -> Function:
    return json_option(command, "docs/live-entries.md")


def _if_version(command: Function) -> Function:
    return option(
        "--if-version",
        type=click.IntRange(min=0),
        metavar="N",
        help="Do it only if the entry has this version.",
    )(command)


@click.command(cls=CeleryCommand)
@click.argument("name")
@_fields
@option("--disabled", is_flag=True, help="Add it disabled: it does not run until `set --enabled`.")
@_json
@timeout_option
@click.pass_context
def add(
    ctx: click.Context, /, name: str, disabled: bool, as_json: bool, timeout: float, **given: Any
) -> None:
    """Add the live entry NAME.

    Any master runs it from now on; you need not restart a beat. The command refuses a name that a
    live entry already has: use `set` to change that entry.

    \b
    Examples:
      $ celery -A proj zk-beat add tenant-7 --task proj.report --cron "0 9 * * *" --tz Europe/Paris
      $ celery -A proj zk-beat add poll --task proj.poll --every 30 --options '{"expires": 30}'
    """
    said = _said(given)
    for field, options in (("task", "--task"), ("schedule", "--every or --cron")):
        if field not in said:
            raise click.UsageError(f"{options} is missing")
    if disabled:
        said["enabled"] = False
    with entries_of(ctx, timeout) as entries:
        try:
            found = entries.put(name, **said, if_version=0)
        except VersionConflict as exc:
            text = f"{name} is there already, version {exc.found}: `zk-beat set` changes it"
            raise Failure(text) from None
    _tell(ctx, as_json, found, f"{name} is added")


@click.command(cls=CeleryCommand, name="set")
@click.argument("name")
@_fields
@option("--enabled/--disabled", "enabled", default=None, help="Whether it runs.")
@_if_version
@_json
@timeout_option
@click.pass_context
def set_(
    ctx: click.Context,
    /,
    name: str,
    enabled: bool | None,
    if_version: int | None,
    as_json: bool,
    timeout: float,
    **given: Any,
) -> None:
    """Change the live entry NAME: only the fields that you give.

    Once the command returns, no beat claims a run by the old definition. The entry keeps its clock,
    unless you change the schedule or enable the entry again: then its next run counts from now.

    \b
    Examples:
      $ celery -A proj zk-beat set tenant-7 --cron "0 10 * * *" --tz Europe/Paris
      $ celery -A proj zk-beat set tenant-7 --disabled --note "unpaid"
    """
    said = _said(given)
    if enabled is not None:
        said["enabled"] = enabled
    if not said:
        raise click.UsageError("give at least one field to change")
    with entries_of(ctx, timeout) as entries:
        before = entries.get(name)
        try:
            found = entries.set(name, **said, if_version=if_version)
        except KeyError:
            raise Failure(_no_entry(name, entries)) from None
    is_changed = before is None or before.version != found.version
    _tell(ctx, as_json, found, f"{name} is changed" if is_changed else f"{name} is so already")


@click.command(cls=CeleryCommand)
@click.argument("name")
@_if_version
@timeout_option
@click.pass_context
def remove(ctx: click.Context, name: str, if_version: int | None, timeout: float) -> None:
    """Remove the live entry NAME.

    Once the command returns, no beat claims a run of it. If you add an entry of this name later, it
    starts as a new entry.

    \b
    Example:
      $ celery -A proj zk-beat remove tenant-7
    """
    with entries_of(ctx, timeout) as entries:
        if not entries.remove(name, if_version):
            raise Failure(_no_entry(name, entries))
    print_lines(ctx, [safe(f"{name} is removed")])


@click.command(cls=CeleryCommand)
@click.argument("name")
@_json
@timeout_option
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool, timeout: float) -> None:
    """Show the live entry NAME, and its last changes: who changed what, and when.

    \b
    Examples:
      $ celery -A proj zk-beat show tenant-7
      $ celery -A proj zk-beat show tenant-7 --json | jq .entry.version
    """
    with entries_of(ctx, timeout) as entries:
        found = entries.get(name)
        if found is None:
            raise Failure(_no_entry(name, entries))
    if as_json:
        click.echo(json.dumps({"format": FORMAT, "entry": as_plain(found)}))
        return
    lines = [found.name]
    for field, value in _content(found).told.items():
        lines.append(f"  {field:10}{value if isinstance(value, str) else json.dumps(value)}")
    lines += [f"  {'version':10}{found.version}", f"  {'clock':10}since {to_text(found.since)}"]
    lines += ["changes"]
    lines += [f"  {_version_line(each)}" for each in reversed(found.changes)]
    print_lines(ctx, map(safe, lines))


def _version_line(each: EntryVersion) -> str:
    at = each.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{each.version:4}  {at}  {each.by}: {', '.join(each.what)}"


@click.command(cls=CeleryCommand)
@click.argument("file", required=False)
@timeout_option
@click.pass_context
def export(ctx: click.Context, file: str | None, timeout: float) -> None:
    """Write all live entries as JSON, to FILE or to the standard output.

    `import` reads this file, for the same root or another one. It does not hold versions or past
    changes.

    \b
    Example:
      $ celery -A proj zk-beat export entries.json
    """
    with entries_of(ctx, timeout) as entries:
        found, damaged = entries.read()
    told = {"format": FORMAT, "entries": {each.name: _content(each).told for each in found}}
    text = json.dumps(told, indent=1)
    for name, why in damaged.items():
        click.echo(safe(f"{name} is left out: {why}"), err=True)
    if file is None or file == "-":
        click.echo(text)
    else:
        try:
            with open(file, "w", encoding="ascii") as out:
                out.write(text + "\n")
        except OSError as exc:
            raise Unreachable(f"{file}: {exc.strerror}") from None
        print_lines(ctx, [safe(f"{len(found)} entries are in {file}")])
    ctx.exit(1 if damaged else 0)


def bring(
    ctx: click.Context,
    entries: Entries,
    wanted: Mapping[str, Wanted],
    prune: bool,
    dry_run: bool,
    keep: Collection[str] = (),
) -> None:
    """Shows how the entries are to change, and changes them. With `prune` the others are removed,
    but for those that are in `keep`."""
    found = entries.definitions()
    changes = _changes(found, wanted, prune, keep)
    _show_changes(ctx, found, changes)
    if dry_run or not changes:
        print_lines(ctx, ["nothing was changed"])
        return
    edits = {name: _edit_to(name, each) for name, each in changes.items()}
    done = 0
    try:
        for part in entries.change_many(edits):
            done += len(part)
    except ZkBeatError as exc:
        text = f"{exc}; {done} of {len(changes)} entries are changed: run it again for the rest"
        if isinstance(exc, (EntryError, TooLarge, RootError)):
            raise Failure(text) from None
        raise Unreachable(text) from None
    print_lines(ctx, [f"{done} entries are changed"])


def read_file(file: str) -> dict[str, Content]:
    """Returns all entries of the file, checked."""
    try:
        if file == "-":
            text = sys.stdin.read(_LARGEST_FILE + 1)
        else:
            with open(file, encoding="utf-8") as read:
                text = read.read(_LARGEST_FILE + 1)
        told = json.loads(text) if len(text) <= _LARGEST_FILE else None
    except OSError as exc:
        raise Unreachable(f"{file}: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:
        raise Unreachable(f"{file}: not JSON: {exc}") from None
    form = f'{{"format": {FORMAT}, "entries": {{NAME: {{...}}}}}}'
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise Unreachable(f"{file}: expected {form}")
    entries = told.get("entries")
    if not isinstance(entries, dict):
        raise Unreachable(f"{file}: expected {form}")
    wanted, wrong = {}, []
    for name, each in entries.items():
        try:
            wanted[check_name(name)] = Content.of(name, each).checked(name)
        except EntryError as exc:
            wrong.append(str(exc))
    if wrong:
        more = f"; and {len(wrong) - 5} more" if wrong[5:] else ""
        raise Unreachable(f"{file}: {'; '.join(wrong[:5])}{more}: nothing was changed")
    return wanted


def _changes(
    found: Mapping[str, Found], wanted: Mapping[str, Wanted], prune: bool, keep: Collection[str]
) -> dict[str, Wanted | None]:
    changes: dict[str, Wanted | None] = {}
    for name, each in wanted.items():
        before, content = found.get(name), _content_of(each)
        is_same = isinstance(before, Definition) and before.content.is_same(content)
        if not is_same or isinstance(each, Coming):
            changes[name] = each
    if prune:
        changes.update((name, None) for name in found if name not in wanted and name not in keep)
    return changes


def _content_of(wanted: Wanted) -> Content:
    return wanted.content if isinstance(wanted, Coming) else wanted


def _show_changes(
    ctx: click.Context, found: Mapping[str, Found], changes: Mapping[str, Wanted | None]
) -> None:
    lines = []
    for name, each in sorted(changes.items()):
        before, clock = found.get(name), ""
        if isinstance(each, Coming):
            clock = f", clock since {to_text(from_milliseconds(each.since))}"
            clock += f", {each.counted} runs" if each.counted else ""
        if each is None:
            lines.append(f"- {name}")
        elif before is None:
            lines.append(f"+ {name}: {json.dumps(_content_of(each).told)}{clock}")
        elif isinstance(before, Damaged):
            lines.append(f"~ {name}: was damaged")
        else:
            what = ", ".join(before.content.differences(_content_of(each))) + clock
            lines.append(f"~ {name}: {what.removeprefix(', ')}")
    if lines[_MOST_LINES:]:
        lines = [*lines[:_MOST_LINES], f"... and {len(lines) - _MOST_LINES} more"]
    added = sum(1 for name in changes if name not in found)
    removed = sum(1 for each in changes.values() if each is None)
    changed = len(changes) - added - removed
    lines.append(f"{added} to add, {changed} to change, {removed} to remove")
    print_lines(ctx, map(safe, lines))


def _edit_to(name: str, wanted: Wanted | None) -> Edit:
    return lambda found: wanted


# Shared by the commands ---------------------------------------------------------------------------


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields given on the command line, as arguments of :meth:`.Entries.put`."""
    said: dict[str, Any] = {
        key: given[key] for key in ("task", "note", "override") if given[key] is not None
    }
    for key in ("args", "kwargs", "options", "policy"):
        if given[key] is not None:
            try:
                said[key] = json.loads(given[key])
            except (ValueError, RecursionError) as exc:
                hint = f"{given[key]!r:.80} is not JSON: {exc}"
                raise click.BadParameter(safe(hint), param_hint=f"--{key}") from None
    every, offset, cron, tz = (given[key] for key in ("every", "offset", "cron", "tz"))
    if every is not None and cron is not None:
        raise click.UsageError("give either --every or --cron, not both")
    if offset is not None and every is None:
        raise click.UsageError("--offset needs --every")
    if tz is not None and cron is None:
        raise click.UsageError("--tz needs --cron")
    if every is not None:
        said["schedule"] = {"every": every, **({} if offset is None else {"offset": offset})}
    if cron is not None:
        said["schedule"] = {"cron": cron, **({} if tz is None else {"tz": tz})}
    return said


@contextlib.contextmanager
def entries_of(ctx: click.Context, timeout: float) -> Iterator[Entries]:
    """Connects. Turns each error of ours into one line and an exit code."""
    hosts = ""
    show_warnings()
    with one_line(lambda: hosts), Entries(ctx.obj.app, timeout, by=who()) as entries:
        hosts = entries.settings.hosts
        if not entries.settings.entries:
            name = entries.settings.prefix + "entries"
            click.echo(
                f"{name} is not True here: beats with this setting run no live entries",
                err=True,
            )
        yield entries


def _no_entry(name: str, entries: Entries) -> str:
    names = [entry.name for entry in entries.read()[0]]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`zk-beat export` lists them"
    return f"no live entry {name!r} in {entries.settings.root}: {hint}"


def _content(entry: LiveEntry) -> Content:
    return Content(
        task=entry.task,
        schedule=timing_of(entry.name, entry.schedule),
        args=entry.args,
        kwargs=entry.kwargs,
        options=entry.options,
        policy=entry.policy,
        enabled=entry.enabled,
        override=entry.override,
        note=entry.note,
    )


def as_plain(entry: LiveEntry) -> dict[str, Any]:
    """For --json."""
    return {
        "name": entry.name,
        **{"args": [], "kwargs": {}, "options": {}, "policy": {}, "note": ""},
        **_content(entry).told,
        "enabled": entry.enabled,
        "override": entry.override,
        "version": entry.version,
        "by": entry.by,
        "at": to_text(entry.at),
        "since": to_text(entry.since),
        "changes": [
            {"version": each.version, "at": to_text(each.at), "by": each.by, "what": [*each.what]}
            for each in entry.changes
        ],
    }


def _tell(ctx: click.Context, as_json: bool, entry: LiveEntry, what: str) -> None:
    if as_json:
        click.echo(json.dumps({"format": FORMAT, "entry": as_plain(entry)}))
        return
    state = "" if entry.enabled else ", disabled"
    print_lines(ctx, [safe(f"{what}: {entry.schedule}, version {entry.version}{state}")])


COMMANDS = (add, set_, remove, show, export)
