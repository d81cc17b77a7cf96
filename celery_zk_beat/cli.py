"""``celery -A proj zk-beat ...``: asks ZooKeeper how the beats are, and the master to do things.

It never starts a beat, takes part in no election and needs no broker.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import getpass
import itertools
import json
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import click
from celery.app.utils import find_app
from celery.beat import Service
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.signals import beat_init, import_modules
from celery.utils.imports import load_extension_class_names, symbol_by_name

from . import checking, clock, comparing, upcoming
from .backfills import MOST_RATE, MOST_UNASKED, RATE
from .control import (
    BACKFILL,
    DROP_RUN,
    LONGEST_WHO,
    RESIGN,
    RUN,
    TELL,
    Answer,
    Asking,
    Pauses,
    RequestRecord,
    cancel_backfill,
    change_pauses,
)
from .due import instants, tells_instants
from .errors import (
    Conflict,
    QuotaExceeded,
    RootError,
    SettingsError,
    TooLarge,
    Uncertain,
    ZkBeatError,
)
from .forecast import Outlook
from .log import get_logger, safe, show_warnings
from .paths import Paths, page_of
from .records import MasterRecord, to_text
from .runs import NEVER, decode_outbox, decode_page
from .schedulers import OUR_SCHEDULER, ZooKeeperScheduler, scheduler_of
from .settings import Settings, as_written, has_settings
from .status import terminal
from .status.reader import Reader
from .status.snapshot import FORMAT, Master, Snapshot, plain
from .zookeeper.session import ZooKeeperSession, connected

#: Exit codes, beside 0.
#: There is no master that ticks; what was asked is refused, or not done.
NOT_DONE = 1
#: ZooKeeper cannot be reached; a setting, or the command line, is wrong.
UNREACHABLE = 2

#: How many times a write is tried that others make at the same time.
_ATTEMPTS = 10

#: As `-S` takes it, too.
_ALIAS = "zookeeper"
_OUR_NAMES = (
    _ALIAS,
    OUR_SCHEDULER.replace(":", "."),
    f"{ZooKeeperScheduler.__module__}.{ZooKeeperScheduler.__name__}",
)

logger = get_logger(__name__)

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


class Failure(click.ClickException):
    """One line on stderr, and an exit code."""

    exit_code = NOT_DONE

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))


class Unreachable(Failure):
    exit_code = UNREACHABLE


class _Site:
    """The things that a command works with, while it is connected."""

    def __init__(
        self, ctx: click.Context, settings: Settings, session: ZooKeeperSession, timeout: float
    ) -> None:
        self.settings = settings
        self.timeout = timeout
        self.session = session
        self.paths = Paths.of(settings.hosts, settings.root)
        self.scheduler, self._remarks = scheduler_of(ctx.obj.app)

    def reader(self, on_change: Callable[[], None] | None = None) -> Reader:
        return Reader(self.session, self.settings, self.scheduler, on_change, self._remarks)

    def read(self) -> Snapshot:
        return self.reader().read()


@beat_init.connect  # type: ignore[untyped-decorator]
def _say_if_not_ours(sender: Service, **kwargs: Any) -> None:
    """At the start of each beat, because Celery imports this module for its command line."""
    kind, conf = type(sender.scheduler), sender.app.conf
    if not issubclass(kind, ZooKeeperScheduler) and has_settings(conf):
        logger.critical(
            "this beat takes no part in the election: its scheduler is %s, which dispatches "
            "everything, whoever is master; set %s = %r and start it without another -S, or remove "
            "the settings %s",
            f"{kind.__module__}:{kind.__qualname__}",
            as_written(conf, "beat_scheduler"),
            OUR_SCHEDULER,
            as_written(conf, "zk_beat_..."),
        )


@import_modules.connect  # type: ignore[untyped-decorator]
def _refuse_misspelt_scheduler(sender: Any, **kwargs: Any) -> None:
    """Before Celery makes a beat's scheduler: one line where that would be a traceback.

    Looks only at names that are nearly ours. To import another class here, before Django is set
    up, might break what works.

    Raises:
        Failure: no such scheduler.
    """
    ctx = click.get_current_context(silent=True)
    if ctx is None or ctx.info_name != "beat":
        return
    name = str(ctx.params.get("scheduler"))  # Of -S, else of the setting.
    if not difflib.get_close_matches(name.replace(":", "."), _OUR_NAMES, 1, 0.7):
        return
    try:
        symbol_by_name(name, aliases=dict(load_extension_class_names("celery.beat_schedulers")))
    except (ImportError, AttributeError):
        setting = as_written(sender.conf, "beat_scheduler")
        where = f"{setting} =" if name == sender.conf.beat_scheduler else "-S"
        meant = OUR_SCHEDULER if "." in name or ":" in name else _ALIAS
        raise Failure(f"{where} {name!r}: no such scheduler, did you mean {meant!r}?") from None


@contextlib.contextmanager
def _site(ctx: click.Context, timeout: float, news: clock.Wakeup) -> Iterator[_Site]:
    """Connects, and turns each error of ours into its line and exit code."""
    hosts = ""
    show_warnings()
    try:
        settings = Settings.from_app(ctx.obj.app)
        hosts = settings.hosts
        session_timeout = min(timeout, settings.session_timeout)
        with connected(hosts, session_timeout, timeout, news.set, settings.access) as session:
            session.catch_up(settings.root)
            yield _Site(ctx, settings, session, timeout)
    except (RootError, TooLarge) as exc:
        raise Failure(str(exc)) from None
    except QuotaExceeded as exc:
        raise Failure(f"ZooKeeper at {hosts}: {exc}") from None
    except ZkBeatError as exc:
        where = f"ZooKeeper at {hosts}: " if hosts and hosts not in str(exc) else ""
        raise Unreachable(f"{where}{exc}") from None


# The commands -------------------------------------------------------------------------------------


def _timeout(command: Function) -> Function:
    return click.option(
        "--timeout",
        cls=CeleryOption,
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help_group="zk-beat Options",
        help="How long to wait: for ZooKeeper, and for what was asked to be done.",
    )(command)


def _json(command: Function) -> Function:
    return click.option(
        "--json",
        "as_json",
        cls=CeleryOption,
        is_flag=True,
        help_group="zk-beat Options",
        help="One JSON object, as docs/status.md describes it.",
    )(command)


def _complete_entry(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        app: Any = find_app(ctx.find_root().params["app"])
        return [name for name in app.conf.beat_schedule if str(name).startswith(incomplete)]
    except Exception:  # a shell that waits for a completion is no place for an error
        return []


def _entry(required: bool) -> Callable[[Function], Function]:
    return click.argument("entry", required=required, shell_complete=_complete_entry)


@click.group(name="zk-beat")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def zk_beat(ctx: click.Context, **kwargs: Any) -> None:
    """See and steer the beats of an app that share a ZooKeeper.

    Needs only ZooKeeper, not the broker; starts no beat. The settings are those of the app
    (zk_beat_hosts, zk_beat_root, ...).

    \b
    Exit status:
      0  fine
      1  no master that ticks; or what was asked was refused, or is not done
      2  ZooKeeper cannot be reached; or a setting, or the command line, is wrong

    \b
    Example:
      $ celery -A proj zk-beat status
    """
    gc.disable()  # a command lives for a second, and what it makes is no garbage before its end
    ctx.call_on_close(gc.enable)


@zk_beat.command(cls=CeleryCommand)
@_json
@_timeout
@click.pass_context
def status(ctx: click.Context, as_json: bool, timeout: float) -> None:
    """Show who is master, what runs next and what is amiss.

    Members are marked whose schedule differs from the one that this command reads from the app,
    and clocks are compared with ZooKeeper's (+ is ahead). Entries stand in the order in which they
    run next. The exit status is 0 only if there is a master and it ticks.

    \b
    Examples:
      $ celery -A proj zk-beat status
      $ celery -A proj zk-beat status --json | jq .master.id
    """
    with _site(ctx, timeout, clock.Wakeup()) as site:
        snapshot = site.read()
    if as_json:
        click.echo(json.dumps(snapshot.to_json()))
    else:
        _print(ctx, terminal.status(snapshot, snapshot.read_at, _style(ctx), _width()))
    ctx.exit(0 if snapshot.ok else NOT_DONE)


@zk_beat.command(cls=CeleryCommand)
@click.option(
    "--strict",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="Exit with 1 where there are warnings, too.",
)
@_json
@click.pass_context
def check(ctx: click.Context, strict: bool, as_json: bool) -> None:
    """Look at the configuration before it is deployed; needs neither ZooKeeper nor a broker.

    One line for each finding: an error does not work; a warning may be meant; a note says what an
    entry does in the nights of the next year in which clocks change. The exit status is 1 where
    there is an error.

    \b
    Examples:
      $ celery -A proj zk-beat check --strict
      $ celery -A proj zk-beat check --json | jq '.findings[] | select(.level == "error")'
    """
    found, count = _findings(ctx.obj.app)
    levels = (checking.ERROR, checking.WARNING, checking.NOTE)
    found.sort(key=lambda each: levels.index(each.level))
    counts = {level: sum(each.level == level for each in found) for level in levels}
    if as_json:
        told = {"format": FORMAT, "entries": count, "findings": [vars(each) for each in found]}
        click.echo(json.dumps(told))
    else:
        summary = ", ".join(
            f"{number} {level}{'' if number == 1 else 's'}" for level, number in counts.items()
        )
        _print(ctx, [*(safe(str(each)) for each in found), f"{count} entries: {summary}"])
    is_bad = counts[checking.ERROR] or (strict and counts[checking.WARNING])
    ctx.exit(NOT_DONE if is_bad else 0)


@zk_beat.command(cls=CeleryCommand)
@_json
@_timeout
@click.pass_context
def diff(ctx: click.Context, as_json: bool, timeout: float) -> None:
    """Compare the entries of this configuration with what the master runs.

    Tells which would be added, removed or changed by a deploy, and which are perhaps renamed: the
    clock of such an entry starts anew. With each, when it runs next, as things are and with this
    configuration. The master has to answer; entries of another scheduler (zk_beat_scheduler) are in
    its store, and not compared.

    \b
    Examples:
      $ celery -A proj zk-beat diff
      $ celery -A proj zk-beat diff --json | jq .differences[].entry
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        if site.settings.scheduler is not None:
            raise Failure(f"{site.settings.prefix}scheduler is set: its entries are in its store")
        reader = site.reader()
        snapshot = reader.read()
        if snapshot.master is None:
            raise Failure(f"there is no master under {snapshot.root} to compare with")
        master, states, now = snapshot.master.id, reader.states(), clock.now()
        with Asking(site.session, site.paths, _request(TELL), news.set) as asking:
            answer = _until(asking.answer, news, deadline) or _withdraw(asking)
        if answer is None:
            raise Failure(f"{master} did not answer within {timeout:g} s")
        if not answer.ok:
            raise Failure(f"{master}: {answer.text}")
        app, entries = ctx.obj.app, site.scheduler.entries
        found = comparing.compare(entries, comparing.unpack(answer.text), states, app, now)
    if as_json:
        told = {"format": FORMAT, "master": master, "differences": plain(found)}
        click.echo(json.dumps(told))
        return
    count = f"{len(found)} differences" if len(found) != 1 else "1 difference"
    lines = [safe(line) for each in found for line in _difference(each, now)]
    _print(ctx, [*lines, safe(f"{count} from what {master} runs, of {len(entries)} entries")])


def _difference(each: comparing.Difference, now: datetime) -> Iterator[str]:
    name = each.entry if each.was is None else f"{each.was} -> {each.entry}"
    kind = "perhaps renamed" if each.kind == comparing.RENAMED else each.kind
    separator = "; " if each.kind == comparing.CHANGED else ", "
    yield f"{kind}: {name}: {separator.join(each.what)}"
    runs = [
        f"{what} {'at once' if at <= now else terminal.iso(at)}"
        for what, at in (("now", each.before), ("then", each.after))
        if at is not None
    ]
    if each.kind == comparing.RENAMED:
        runs.append("its clock would start anew")
    if runs:
        yield f"    runs next: {', '.join(runs)}"


def _findings(app: Any) -> tuple[list[checking.Finding], int]:
    """What is wrong with an app's configuration, and how many entries were looked at."""
    found: list[checking.Finding] = []

    def add(level: str, kind: str, text: object) -> None:
        found.append(checking.Finding(level, kind, None, " ".join(str(text).split())))

    settings: Settings | None = None
    try:
        settings = Settings.from_app(app)
        found += checking.check_names(app.conf)
    except SettingsError as exc:
        add(checking.ERROR, "setting", exc)
    except Exception as exc:  # of Celery, or of the modules of the app
        add(checking.ERROR, "setting", f"{type(exc).__name__}: {exc}")
        return found, 0
    entries: dict[str, Any] | None = None
    why: object = None
    try:
        scheduler, remarks = scheduler_of(app)
        for remark in remarks:
            add(checking.WARNING, "setting", remark)
        if settings is not None and settings.scheduler is None:
            entries = dict(scheduler.entries)
    except (Exception, SystemExit) as exc:
        why = exc
    if entries is None:
        known = len(found)
        entries = checking.made_of(app, found)
        if why is not None and settings is not None and len(found) == known:
            add(checking.ERROR, "setting", f"beat does not start: {why}")
    found += checking.check(app, entries, settings, clock.now())
    return found, len(entries)


@zk_beat.command(cls=CeleryCommand)
@_timeout
@click.pass_context
def watch(ctx: click.Context, timeout: float) -> None:
    """Show the same live, until Ctrl-C.

    Nothing is polled: ZooKeeper tells what has changed, and only that is read again. Needs the
    package rich (pip install 'celery-zk-beat[watch]').

    \b
    Example:
      $ celery -A proj zk-beat watch
    """
    try:
        from .status.watch import show
    except ImportError as exc:
        raise Unreachable(f"{exc}: pip install 'celery-zk-beat[watch]'") from None
    if not sys.stdout.isatty():
        raise Unreachable("watch needs a terminal; `zk-beat status` does not")
    gc.enable()
    news = clock.Wakeup()
    with _site(ctx, timeout, news) as site:
        reader = site.reader(news.set)
        with contextlib.suppress(KeyboardInterrupt):
            show(reader, news.wait, _style(ctx))


@zk_beat.command(cls=CeleryCommand)
@click.option(
    "--to",
    cls=CeleryOption,
    metavar="ID",
    help_group="zk-beat Options",
    help="The standby that is to be master; without, whoever is first.",
)
@_timeout
@click.pass_context
def resign(ctx: click.Context, to: str | None, timeout: float) -> None:
    """Have the master hand over to another beat.

    The master first notes what it has published, so nothing is lost or repeated; it stays as a
    standby. Returns when the next one is elected, and says how long that took. Refused where there
    is no other beat.

    \b
    Examples:
      $ celery -A proj zk-beat resign
      $ celery -A proj zk-beat resign --to host2:4711
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        master = _successor_wanted(site.read(), to)
        begun = clock.boottime()
        with Asking(site.session, site.paths, _request(RESIGN, to=to), news.set) as asking:
            answer: Answer | None = None

            def next_master() -> MasterRecord | None:
                nonlocal answer
                answer = answer or asking.answer()
                if answer is not None and not answer.ok:
                    raise Failure(f"{master.id}: {answer.text}")
                found = _read_master(site, news)
                return found if found is not None and found.epoch > master.epoch else None

            found = _until(next_master, news, deadline)
            if found is None:
                _not_resigned(asking, answer, master, timeout)
                return
    took = terminal.duration(clock.boottime() - begun)
    _print(ctx, [safe(f"{found.id} is master, epoch {found.epoch}, after {took}")])


def _successor_wanted(snapshot: Snapshot, to: str | None) -> Master:
    """The master, if it can do what is asked."""
    master = snapshot.master
    if master is None:
        raise Failure(f"there is no master under {snapshot.root}, so nobody can resign")
    others = [member.id for member in snapshot.members if member.id != master.id]
    if not others:
        raise Failure(f"{master.id} is the only beat under {snapshot.root}: start another first")
    if to == master.id:
        raise Failure(f"{to} is master already")
    if to is not None and to not in others:
        known = ", ".join(others)
        raise Failure(f"there is no standby {to!r} under {snapshot.root}; there is: {known}")
    return master


def _read_master(site: _Site, news: clock.Wakeup) -> MasterRecord | None:
    """The record of the master, None where there is none; watched, and so is its coming."""
    site.session.children(site.paths.root, news.set)
    node = site.session.read(site.paths.master, news.set)
    return None if node is None else MasterRecord.decode(site.paths.master, node.data)


def _not_resigned(asking: Asking, answer: Answer | None, master: Master, timeout: float) -> None:
    answer = answer or _withdraw(asking)
    if answer is None:
        raise Failure(f"{master.id} did not answer within {timeout:g} s; it goes on as master")
    if not answer.ok:
        raise Failure(f"{master.id}: {answer.text}")
    raise Failure(f"{master.id} resigned, and within {timeout:g} s nobody was elected: see status")


@zk_beat.command(cls=CeleryCommand)
@_entry(required=False)
@_timeout
@click.pass_context
def pause(ctx: click.Context, entry: str | None, timeout: float) -> None:
    """Dispatch nothing of ENTRY, or nothing at all, until `resume`.

    It is kept in ZooKeeper, so it holds for every master to come, and needs no running beat. A run
    that is already on its way to a worker is not called back. `zk-beat run` works all the same.

    \b
    Examples:
      $ celery -A proj zk-beat pause invoices
      $ celery -A proj zk-beat pause
    """
    with _site(ctx, timeout, clock.Wakeup()) as site:
        snapshot = site.read()
        if entry is not None:
            _known(snapshot, entry)
        now = clock.now()
        before, after = _change(site, lambda pauses: pauses.pause(entry, now, _who()))
    known = after.of(entry)
    what = "everything" if entry is None else entry
    if before == after:
        by = "" if known.by is None else f", by {known.by}"
        _print(ctx, [safe(f"{what} is paused already, since {terminal.iso(known.since)}{by}")])
    else:
        how = "zk-beat resume" if entry is None else f"zk-beat resume {entry}"
        _print(ctx, [safe(f"{what} is paused; `{how}` ends it")])


@zk_beat.command(cls=CeleryCommand)
@_entry(required=False)
@click.option(
    "--catch-up/--skip",
    "catch_up",
    cls=CeleryOption,
    default=True,
    show_default=True,
    help_group="zk-beat Options",
    help="Whether what was due meanwhile is run once, or not at all.",
)
@_timeout
@click.pass_context
def resume(ctx: click.Context, entry: str | None, catch_up: bool, timeout: float) -> None:
    """Go on dispatching ENTRY, or everything, after `pause`.

    With --catch-up an entry that was due while it was paused runs once, at once. With --skip it
    runs when it is due next, and its history says what was skipped. Pauses of single entries and
    that of everything are apart: `resume` without ENTRY ends only the latter.

    \b
    Examples:
      $ celery -A proj zk-beat resume invoices --skip
      $ celery -A proj zk-beat resume
    """
    with _site(ctx, timeout, clock.Wakeup()) as site:
        snapshot, now = site.read(), clock.now()
        before, after = _change(
            site, lambda pauses: pauses.resume(entry, now, not catch_up, _who())
        )
        if before == after and entry is not None:
            _known(snapshot, entry)
    what = "everything" if entry is None else entry
    if before == after:
        _print(ctx, [safe(f"{what} is not paused{_other_pauses(after, entry)}")])
        return
    who = "the next master" if snapshot.master is None else snapshot.master.id
    missed = f"{who} runs once what was due" if catch_up else f"{who} skips what was due"
    _print(ctx, [safe(f"{what} goes on: {missed}{_other_pauses(after, entry)}")])


def _change(site: _Site, change: Callable[[Pauses], Pauses]) -> tuple[Pauses, Pauses]:
    return _again(lambda: change_pauses(site.session, site.paths, change))


def _again(write: Callable[[], T]) -> T:
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(Conflict):
            return write()
    return write()


def _other_pauses(pauses: Pauses, entry: str | None) -> str:
    """Tells what is still held back when `entry`, or everything, is not."""
    if entry is not None:
        held = pauses.everything.since is not None
        return "; but everything is paused: `zk-beat resume` ends that" if held else ""
    names = [name for name, pause in pauses.entries.items() if pause.since is not None]
    return f"; still paused: {', '.join(sorted(names))}" if names else ""


@zk_beat.command(cls=CeleryCommand)
@_entry(required=True)
@_timeout
@click.pass_context
def run(ctx: click.Context, entry: str, timeout: float) -> None:
    """Have the master dispatch ENTRY now, once more.

    With the entry's own arguments and options, as a run of its own: when it is due next does not
    change. Works while the entry is paused, too. Returns when the broker has it.

    \b
    Example:
      $ celery -A proj zk-beat run invoices
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        begun = clock.boottime()
        answer, number = _ask(site, RUN, entry, "dispatched", news, deadline)
        claimed = f"run {number} of {entry}, task id {answer.task_id}"
        if _until(lambda: _has_left(site, entry, number, news), news, deadline) is None:
            raise Failure(f"{claimed}: is claimed, and waits for the broker")
        if number in _dropped(site, entry):
            raise Failure(f"{claimed}: was dropped; see `zk-beat history {entry}`")
    took = terminal.duration(clock.boottime() - begun)
    _print(ctx, [safe(f"{claimed}: dispatched after {took}")])


@zk_beat.command(cls=CeleryCommand)
@_entry(required=True)
@_timeout
@click.pass_context
def drop(ctx: click.Context, entry: str, timeout: float) -> None:
    """Have the master drop the run of ENTRY that waits.

    It waits for the broker, for the end of a pause, or for a master whose schedule names ENTRY, as
    `status` tells. Its history says that it was dropped, and who asked. When ENTRY is due next does
    not change; what came due while the run waited may run at once.

    \b
    Example:
      $ celery -A proj zk-beat drop invoices
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        answer, number = _ask(site, DROP_RUN, entry, "dropped", news, deadline)
    what = f"run {number} of {entry}, task id {answer.task_id}: dropped, {answer.text}"
    _print(ctx, [safe(what)])


def _ask(
    site: _Site, do: str, entry: str, done: str, news: clock.Wakeup, deadline: float
) -> tuple[Answer, int]:
    """Asks the master for something of one entry.

    Args:
        done: what was not done where there is an error.

    Returns:
        its answer, and the number of the run that it is about.
    """
    answer = _answered(site, _request(do, entry), done, f"history {entry}", news, deadline)
    if answer.run is None:
        raise Failure(f"{entry}: {answer.text}: nothing was {done}")
    return answer, answer.run


def _answered(
    site: _Site,
    request: RequestRecord,
    done: str,
    tells: str,
    news: clock.Wakeup,
    deadline: float,
) -> Answer:
    """Asks the master for something of one entry, and returns its answer: that it is done.

    Args:
        done: what was not done where there is an error.
        tells: the command that says whether it was, where nobody knows.
    """
    snapshot, entry = site.read(), request.entry or ""
    _known(snapshot, entry)
    master = snapshot.master
    if master is None:
        raise Failure(f"no master under {snapshot.root}: nothing was {done}")
    try:
        with Asking(site.session, site.paths, request, news.set) as asking:
            answer = _until(asking.answer, news, deadline) or _withdraw(asking)
    except Uncertain as exc:
        raise Unreachable(f"{exc}; whether {entry} was {done}, `zk-beat {tells}` tells") from None
    if answer is None:
        waited = f"{site.timeout:g} s"
        raise Failure(f"{master.id} did not answer within {waited}: nothing was {done}")
    if not answer.ok:
        raise Failure(f"{entry}: {answer.text}: nothing was {done}")
    return answer


@dataclass(frozen=True)
class _Range:
    """What is to be run of the past: from `since` on and before `until`, UTC. `zone`: the one that
    was taken where the command line names none; None where it names one of both."""

    entry: str
    since: datetime
    until: datetime
    rate: float
    zone: str | None

    def __str__(self) -> str:
        zone = "" if self.zone is None else f" (in the app's time zone, {self.zone})"
        return f"{self.entry} from {_exact(self.since)} to {_exact(self.until)}{zone}"

    def to_json(self, **more: Any) -> str:
        told = {"format": FORMAT, "entry": self.entry, "zone": self.zone, "rate": self.rate}
        instants = {"since": to_text(self.since), "until": to_text(self.until)}
        return json.dumps({**told, **instants, **more})


@zk_beat.command(cls=CeleryCommand)
@_entry(required=True)
@click.option(
    "--from",
    "since",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="The first instant of the range, ISO 8601; without an offset, or Z, in the app's zone.",
)
@click.option(
    "--to",
    "until",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="The end of the range, which is no part of it.",
)
@click.option(
    "--rate",
    cls=CeleryOption,
    type=click.FloatRange(min=0, min_open=True, max=MOST_RATE),
    default=RATE,
    show_default=True,
    metavar="N",
    help_group="zk-beat Options",
    help="So many runs a second, at most.",
)
@click.option(
    "--yes",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help=f"Also where these are more than {MOST_UNASKED:,} runs.",
)
@click.option(
    "--dry-run",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="Only list the instants, by the schedule that is read here.",
)
@click.option(
    "--cancel",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="End the backfill of ENTRY that is under way.",
)
@_json
@_timeout
@click.pass_context
def backfill(
    ctx: click.Context,
    entry: str,
    since: str | None,
    until: str | None,
    rate: float,
    yes: bool,
    dry_run: bool,
    cancel: bool,
    as_json: bool,
    timeout: float,
) -> None:
    """Have the master run ENTRY for the instants of a range in the past.

    Each instant of ENTRY's schedule (an interval is counted from --from) becomes an extra run, with
    that instant as `due`: when ENTRY is due next does not change. The master does it when nothing
    else is due, slowly; not while ENTRY is paused; and the next master goes on where it left off.
    Returns when the master has taken it; `status` shows how far it is.

    \b
    Examples:
      $ celery -A proj zk-beat backfill report --from 2026-11-01 --to 2026-11-08 --dry-run
      $ celery -A proj zk-beat backfill report --from 2026-11-01T00:00Z --to 2026-11-08T00:00Z
      $ celery -A proj zk-beat backfill report --cancel
    """
    if cancel:
        if since is not None or until is not None or dry_run:
            raise click.UsageError("--cancel goes with none of --from, --to and --dry-run")
        _cancel_backfill(ctx, entry, timeout, as_json)
        return
    if since is None or until is None:
        raise click.UsageError("--from and --to are needed, or --cancel")
    wanted = _range(ctx.obj.app, entry, since, until, rate)
    most = None if yes else MOST_UNASKED
    if dry_run:
        _show_backfill(ctx, wanted, most, timeout, as_json)
        return
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    request = replace(
        _request(BACKFILL, entry),
        since=to_text(wanted.since),
        until=to_text(wanted.until),
        rate=rate,
        most=most,
    )
    with _site(ctx, timeout, news) as site:
        answer = _answered(site, request, "begun", "status", news, deadline)
    if as_json:
        click.echo(wanted.to_json(begun=answer.text))
        return
    line = f"backfill of {wanted}: {answer.text}, {rate:g} a second; `zk-beat status` shows it, "
    _print(ctx, [safe(f"{line}`zk-beat backfill {entry} --cancel` ends it")])


def _range(app: Any, entry: str, since: str, until: str, rate: float) -> _Range:
    if math.isnan(rate):
        raise click.BadParameter("nan is no number", param_hint="--rate")
    first, last = _instant(app, "--from", since), _instant(app, "--to", until)
    zone = str(app.timezone) if first[1] or last[1] else None
    wanted = _Range(entry, first[0], last[0], rate, zone)
    if wanted.since >= wanted.until:
        raise click.BadParameter(f"{wanted}: the range is empty", param_hint="--to")
    if wanted.until > clock.now():
        raise click.BadParameter(f"{wanted}: its end is still to come", param_hint="--to")
    return wanted


def _instant(app: Any, option: str, text: str) -> tuple[datetime, bool]:
    """In UTC, and whether it is by the app's time zone."""
    try:
        at = upcoming.utc(text, app.timezone)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(safe(f"{text!r}: {exc}"), param_hint=option) from None
    if at < NEVER:
        raise click.BadParameter(safe(f"{text!r} is before 1970"), param_hint=option)
    return at, upcoming.names_no_zone(text)


def _exact(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _show_backfill(
    ctx: click.Context, wanted: _Range, most: int | None, timeout: float, as_json: bool
) -> None:
    """Lists what a backfill would run; without ZooKeeper, where the entries are the app's own."""
    app, entry = ctx.obj.app, wanted.entry
    if app.conf.get("zk_beat_scheduler"):
        with _site(ctx, timeout, clock.Wakeup()) as site:
            reader = site.reader()
            _known(reader.read(), entry)
            known = reader.named().get(entry)
    else:
        _settings(app)
        entries = scheduler_of(app)[0].entries
        if entry not in entries:
            raise Failure(_no_entry(entry, entries, "the app's schedule"))
        known = entries[entry]
    if known is None or known.schedule is None or not tells_instants(known.schedule):
        raise Failure(f"{entry}: its instants cannot be told here: only its scheduler knows them")
    found = instants(known, wanted.since, wanted.until)
    due = [*itertools.islice(found, None if most is None else most + 1)]
    is_refused = most is not None and len(due) > most
    if as_json:
        click.echo(wanted.to_json(instants=[to_text(at) for at in due[:most]], more=is_refused))
    else:
        count = f"more than {most}, refused without --yes" if is_refused else f"{len(due)}"
        lines = [at.astimezone(app.timezone).isoformat() for at in due[:most]]
        _print(ctx, [*lines, safe(f"{wanted}: {count} runs; nothing was begun")])
    ctx.exit(NOT_DONE if is_refused or not due else 0)


def _cancel_backfill(ctx: click.Context, entry: str, timeout: float, as_json: bool) -> None:
    with _site(ctx, timeout, clock.Wakeup()) as site:
        found = _again(lambda: cancel_backfill(site.session, site.paths, entry))
    if found is None:
        raise Failure(f"no backfill of {entry} is under way")
    of = "" if found.total is None else f" of {found.total}"
    if as_json:
        told = {"format": FORMAT, "entry": entry, "done": found.done, "total": found.total}
        click.echo(json.dumps(told))
    else:
        _print(ctx, [safe(f"the backfill of {entry} is ended after {found.done}{of} runs")])


def _withdraw(asking: Asking) -> Answer | None:
    """None: it is withdrawn, or nobody knows; else the answer that came at the last moment."""
    if asking.take_back():
        return None
    answer = asking.answer()
    if answer is None:
        raise Uncertain("the request could not be withdrawn")
    return answer


def _has_left(site: _Site, entry: str, number: int, news: clock.Wakeup) -> bool | None:
    """True when a run has left the outbox, else None."""
    path = site.paths.outbox
    node = site.session.read(path, news.set)
    runs = [] if node is None else decode_outbox(path, node.data)
    return None if any((run.entry, run.number) == (entry, number) for run in runs) else True


def _dropped(site: _Site, entry: str) -> tuple[int, ...]:
    path = site.paths.page(page_of(entry))
    node = site.session.read(path)
    states = {} if node is None else decode_page(path, node.data)
    return states[entry].dropped if entry in states else ()


@zk_beat.command(cls=CeleryCommand)
@_entry(required=False)
@click.option(
    "--limit",
    cls=CeleryOption,
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help_group="zk-beat Options",
    help="How many runs at most.",
)
@_json
@_timeout
@click.pass_context
def history(
    ctx: click.Context, entry: str | None, limit: int, as_json: bool, timeout: float
) -> None:
    """Show what ran last, of ENTRY or of all, and who was master.

    For each instant that was due: when it was dispatched, how late, by whom, and the task id; or
    why it was skipped. Several missed instants become one run, that of the first. Up to 20 runs of
    an entry are kept, and the last 50 masters.

    \b
    Examples:
      $ celery -A proj zk-beat history invoices
      $ celery -A proj zk-beat history --json --limit 1000
    """
    with _site(ctx, timeout, clock.Wakeup()) as site:
        reader = site.reader()
        snapshot = reader.read()
    if entry is not None:
        _known(snapshot, entry)
    runs, masters = reader.history(entry, limit), snapshot.masters
    if as_json:
        told = {"format": FORMAT, "root": snapshot.root, "entry": entry}
        click.echo(json.dumps({**told, "runs": plain(runs), "masters": plain(masters)}))
        return
    now, style = snapshot.read_at, _style(ctx)
    _print(ctx, terminal.history(runs, style, _width(), with_entry=entry is None))
    if entry is None:
        _print(ctx, ["", *terminal.masters(masters, now, style, _width())])


@zk_beat.command(cls=CeleryCommand, name="next")
@_entry(required=False)
@click.option(
    "--at",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="From when on, such as 2026-11-01T03:00Z; without an offset it is of the app's timezone. "
    "Default: now.",
)
@click.option(
    "--until",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="Until when: an instant, or +7d, +12h, +30m. Default: a year; with --busy a day.",
)
@click.option(
    "--count",
    cls=CeleryOption,
    type=click.IntRange(min=1),
    metavar="N",
    help_group="zk-beat Options",
    help="How many runs at most. Default: 10, with --until as many as there are.",
)
@click.option(
    "--busy",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="How many runs fall into each minute, the busiest first.",
)
@_json
@_timeout
@click.pass_context
def next_(
    ctx: click.Context,
    entry: str | None,
    at: str | None,
    until: str | None,
    count: int | None,
    busy: bool,
    as_json: bool,
    timeout: float,
) -> None:
    """Show what will run, of ENTRY or of all, with policies, pauses and time zones.

    The code that decides in production computes it from the app's schedule. ZooKeeper is asked for
    the last runs, from which intervals count. Where it does not answer, each entry is assumed to
    have run last now, and a line says so. Days on which clocks change are marked.

    \b
    Examples:
      $ celery -A proj zk-beat next
      $ celery -A proj zk-beat next nightly --until +30d
      $ celery -A proj zk-beat next --busy --at 2026-12-24T00:00
    """
    now, app = clock.now(), ctx.obj.app
    begin = _at("--at", at, lambda text: upcoming.utc(text, app.timezone)) or now
    end = _at(
        "--until",
        until or ("+1d" if busy else "+366d"),
        lambda text: upcoming.end_of(text, begin, lambda each: upcoming.utc(each, app.timezone)),
    )
    assert end is not None
    schedule, names, remarks = _upcoming(ctx, timeout, now)
    if entry is not None and entry not in names:
        raise Failure(_no_entry(entry, names, "the app's schedule"))
    for remark in remarks:
        click.echo(safe(remark), err=True)
    told = {"format": FORMAT, "from": to_text(begin), "until": to_text(end), "remarks": remarks}
    if busy:
        minutes = schedule.busy(begin, end)
        if as_json:
            told["minutes"] = {to_text(minute): runs for minute, runs in minutes.items()}
            click.echo(json.dumps(told))
        else:
            _print(ctx, upcoming.table_of_minutes(minutes, _style(ctx), _width()))
        return
    most = count if count is not None else None if until else 10
    runs = list(itertools.islice(schedule.runs(begin, end, entry), most))
    if as_json:
        click.echo(json.dumps({**told, "entry": entry, "runs": plain(runs)}))
    else:
        _print(ctx, upcoming.table_of(runs, now, _style(ctx), _width(), entry is None))


def _at(option: str, text: str | None, read: Callable[[str], datetime]) -> datetime | None:
    try:
        return None if text is None else read(text)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(safe(str(exc)), param_hint=option) from None


def _upcoming(
    ctx: click.Context, timeout: float, now: datetime
) -> tuple[Outlook, set[str], list[str]]:
    """The schedule, the names of its entries, and what is to be said of it."""
    remarks: list[str] = []
    try:
        with _site(ctx, timeout, clock.Wakeup()) as site:
            reader, scheduler, settings = site.reader(), site.scheduler, site.settings
            snapshot = reader.read()
            entries, states = reader.named(), reader.states()
        paused = {each.name for each in snapshot.entries if each.paused is not None}
        if snapshot.paused is not None:
            paused = set(entries)
        held = sorted(paused & set(entries))
        if held:
            some = f"{len(held)} entries are" if len(held) > 1 else f"{held[0]} is"
            remarks.append(f"{some} paused and not shown: `zk-beat resume` has them go on")
    except Unreachable as exc:
        settings = _settings(ctx.obj.app)
        if settings.scheduler is not None:
            raise
        scheduler, _ = scheduler_of(ctx.obj.app)
        entries, states, paused = scheduler.entries, {}, set()
        remarks.append(
            f"{exc.format_message()}: it is assumed that each entry ran last now, and that none is "
            "paused"
        )
    known = {name: each for name, each in entries.items() if each.schedule is not None}
    schedule = Outlook(scheduler, settings, known, states, paused, now)
    return schedule, set(entries), remarks


def _settings(app: Any) -> Settings:
    try:
        return Settings.from_app(app)
    except ZkBeatError as exc:
        raise Unreachable(str(exc)) from None


# What they share ----------------------------------------------------------------------------------


def _known(snapshot: Snapshot, entry: str) -> None:
    names = [each.name for each in snapshot.entries]
    if entry not in names:
        raise Failure(_no_entry(entry, names, f"the app's schedule or {snapshot.root}"))


def _no_entry(entry: str, names: Iterable[str], where: str) -> str:
    close = difflib.get_close_matches(entry, list(names), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`zk-beat status` lists them"
    return f"no entry {entry!r} in {where}: {hint}"


def _request(do: str, entry: str | None = None, to: str | None = None) -> RequestRecord:
    return RequestRecord(do, entry, to, to_text(clock.now()), _who())


def _who() -> str:
    """Who asks, for the log and the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:LONGEST_WHO]


def _until(look: Callable[[], T | None], news: clock.Wakeup, deadline: float) -> T | None:
    """Waits until `look`, which sets a watch, finds something; None if it did not by the deadline.

    Raises:
        Uncertain: there was no connection then.
    """
    while True:
        lost: Uncertain | None = None
        try:
            found = look()
            if found is not None:
                return found
        except Uncertain as exc:
            lost = exc  # it may come back, and says so then
        if not news.wait(deadline - clock.boottime()) and clock.boottime() >= deadline:
            if lost is not None:
                raise lost
            return None


def _print(ctx: click.Context, lines: Iterable[str]) -> None:
    encoding = sys.stdout.encoding or "ascii"
    ctx.obj.echo("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))


def _style(ctx: click.Context) -> terminal.Style:
    def style(message: str, colour: str) -> str:
        how: dict[str, Any] = {"bold": True} if colour == "bold" else {"fg": colour}
        return str(ctx.obj.style(message, **how))

    return style


def _width() -> float:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
