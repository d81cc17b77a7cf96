"""``celery -A proj zk-beat ...``: shows the beats' state, and sends requests to the master.

It reads and writes ZooKeeper only. It never starts a beat, takes part in no election and needs no
broker.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import itertools
import json
import math
import shutil
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
from .command_line import (
    NOT_DONE,
    Failure,
    Unreachable,
    json_option,
    one_line,
    print_lines,
    timeout_option,
)
from .control import (
    BACKFILL,
    DROP_RUN,
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
from .control import (
    who as _who,
)
from .due import instants, tells_instants
from .errors import (
    Conflict,
    SettingsError,
    Uncertain,
    ZkBeatError,
)
from .forecast import Outlook
from .importing import import_
from .live import commands as live_commands
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

#: How many times to try a write that conflicts with other writers.
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


class _Site:
    """What a command needs while it is connected."""

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
    """Runs at the start of each beat: Celery imports this module for its command line."""
    kind, conf = type(sender.scheduler), sender.app.conf
    if not issubclass(kind, ZooKeeperScheduler) and has_settings(conf):
        logger.critical(
            "this beat takes no part in the election: its scheduler is %s, which dispatches "
            "everything, even when another beat is master; set %s = %r and start beat without "
            "another -S, or remove the settings %s",
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
    """Connects. Turns each error of ours into one line and an exit code."""
    hosts = ""
    show_warnings()
    with one_line(lambda: hosts):
        settings = Settings.from_app(ctx.obj.app)
        hosts = settings.hosts
        session_timeout = min(timeout, settings.session_timeout)
        with connected(hosts, session_timeout, timeout, news.set, settings.access) as session:
            session.catch_up(settings.root)
            yield _Site(ctx, settings, session, timeout)


# The commands -------------------------------------------------------------------------------------


def _complete_entry(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        app: Any = find_app(ctx.find_root().params["app"])
        return [name for name in app.conf.beat_schedule if str(name).startswith(incomplete)]
    except Exception:  # shell completion must not print errors
        return []


def _entry(required: bool) -> Callable[[Function], Function]:
    return click.argument("entry", required=required, shell_complete=_complete_entry)


@click.group(name="zk-beat")
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def zk_beat(ctx: click.Context, **kwargs: Any) -> None:
    """See and control the beats of an app.

    These commands talk to ZooKeeper only. They need no broker and start no beat. They use the
    app's settings (zk_beat_hosts, zk_beat_root, ...).

    \b
    Exit status:
      0  success
      1  no working master; or the request was refused or not completed
      2  ZooKeeper cannot be reached; or a setting or the command line is wrong

    \b
    Example:
      $ celery -A proj zk-beat status
    """
    gc.disable()  # a command runs for a second: collecting garbage would only slow it down
    ctx.call_on_close(gc.enable)


@zk_beat.command(cls=CeleryCommand)
@json_option
@timeout_option
@click.pass_context
def status(ctx: click.Context, as_json: bool, timeout: float) -> None:
    """Show who is master, what runs next and what is wrong.

    Entries are sorted by their next run. A member is marked if its schedule differs from the
    schedule that this command reads from the app. Clocks are compared with ZooKeeper's clock
    (+ is ahead). The exit status is 0 only if there is a working master.

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
        print_lines(ctx, terminal.status(snapshot, snapshot.read_at, _style(ctx), _width()))
    ctx.exit(0 if snapshot.ok else NOT_DONE)


@zk_beat.command(cls=CeleryCommand)
@click.option(
    "--strict",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="Exit with 1 for warnings too, not only for errors.",
)
@json_option
@click.pass_context
def check(ctx: click.Context, strict: bool, as_json: bool) -> None:
    """Check the configuration before you deploy it.

    Needs neither ZooKeeper nor a broker. Prints one line per finding: an error does not work; a
    warning may be intended; a note says what an entry does in the nights of the next year when
    clocks change. The exit status is 1 if there is an error.

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
        print_lines(ctx, [*(safe(str(each)) for each in found), f"{count} entries: {summary}"])
    is_bad = counts[checking.ERROR] or (strict and counts[checking.WARNING])
    ctx.exit(NOT_DONE if is_bad else 0)


@zk_beat.command(cls=CeleryCommand)
@json_option
@timeout_option
@click.pass_context
def diff(ctx: click.Context, as_json: bool, timeout: float) -> None:
    """Compare this configuration's entries with the master's.

    Shows which entries a deploy would add, remove or change, and which were perhaps renamed: the
    clock of a renamed entry starts anew. For each it shows the next run, now and with this
    configuration. Live entries count for both. The master must answer. Entries of another
    scheduler (zk_beat_scheduler) are kept in its store and are not compared.

    \b
    Examples:
      $ celery -A proj zk-beat diff
      $ celery -A proj zk-beat diff --json | jq .differences[].entry
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        if site.settings.scheduler is not None:
            raise Failure(
                f"{site.settings.prefix}scheduler is set: its entries are in its store, which diff "
                "does not compare"
            )
        reader = site.reader()
        snapshot = reader.read()
        if snapshot.master is None:
            raise Failure(f"no master under {snapshot.root}: nothing to compare with")
        master, states, now = snapshot.master.id, reader.states(), clock.now()
        with Asking(site.session, site.paths, _request(TELL), news.set) as asking:
            answer = _until(asking.answer, news, deadline) or _withdraw(asking)
        if answer is None:
            raise Failure(f"{master} did not answer within {timeout:g} s")
        if not answer.ok:
            raise Failure(f"{master}: {answer.text}")
        app, entries = ctx.obj.app, reader.named()
        found = comparing.compare(entries, comparing.unpack(answer.text), states, app, now)
    if as_json:
        told = {"format": FORMAT, "master": master, "differences": plain(found)}
        click.echo(json.dumps(told))
        return
    count = f"{len(found)} differences" if len(found) != 1 else "1 difference"
    lines = [safe(line) for each in found for line in _difference(each, now)]
    print_lines(ctx, [*lines, safe(f"{count} from what {master} runs, of {len(entries)} entries")])


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
        yield f"    next run: {', '.join(runs)}"


def _findings(app: Any) -> tuple[list[checking.Finding], int]:
    """Returns what is wrong with an app's configuration, and how many entries were checked."""
    found: list[checking.Finding] = []

    def add(level: str, kind: str, text: object) -> None:
        found.append(checking.Finding(level, kind, None, " ".join(str(text).split())))

    settings: Settings | None = None
    try:
        settings = Settings.from_app(app)
        found += checking.check_names(app.conf)
    except SettingsError as exc:
        add(checking.ERROR, "setting", exc)
    except Exception as exc:  # from Celery, or from the app's modules
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
@timeout_option
@click.pass_context
def watch(ctx: click.Context, timeout: float) -> None:
    """Show what `status` shows, live, until Ctrl-C.

    Nothing is polled: ZooKeeper reports what has changed, and only that is read again. Needs the
    package rich (the extra `watch`: celery-zk-beat[watch]).

    \b
    Example:
      $ celery -A proj zk-beat watch
    """
    try:
        from .status.watch import show
    except ImportError as exc:
        raise Unreachable(f"{exc}: pip install 'celery-zk-beat[watch]'") from None
    if not sys.stdout.isatty():
        raise Unreachable("watch needs a terminal; use `zk-beat status` without one")
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
    help="The standby that becomes master. Default: the first that is elected.",
)
@timeout_option
@click.pass_context
def resign(ctx: click.Context, to: str | None, timeout: float) -> None:
    """Make the master hand over to another beat.

    The master first records what it has published, so nothing is lost or repeated. Then it becomes
    a standby. The command returns when the next master is elected, and says how long that took. It
    is refused if there is no other beat.

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
    print_lines(ctx, [safe(f"{found.id} is master, epoch {found.epoch}, after {took}")])


def _successor_wanted(snapshot: Snapshot, to: str | None) -> Master:
    """Returns the master if it can resign, perhaps to the beat `to`. Raises Failure if not."""
    master = snapshot.master
    if master is None:
        raise Failure(f"no master under {snapshot.root}: no beat can resign")
    others = [member.id for member in snapshot.members if member.id != master.id]
    if not others:
        raise Failure(f"{master.id} is the only beat under {snapshot.root}: start another first")
    if to == master.id:
        raise Failure(f"{to} is already master")
    if to is not None and to not in others:
        known = ", ".join(others)
        raise Failure(f"no standby {to!r} under {snapshot.root}; the standbys are: {known}")
    return master


def _read_master(site: _Site, news: clock.Wakeup) -> MasterRecord | None:
    """Returns the master's record, None if there is no master. Sets watches on both cases."""
    site.session.children(site.paths.root, news.set)
    node = site.session.read(site.paths.master, news.set)
    return None if node is None else MasterRecord.decode(site.paths.master, node.data)


def _not_resigned(asking: Asking, answer: Answer | None, master: Master, timeout: float) -> None:
    answer = answer or _withdraw(asking)
    if answer is None:
        raise Failure(f"{master.id} did not answer within {timeout:g} s; it stays master")
    if not answer.ok:
        raise Failure(f"{master.id}: {answer.text}")
    raise Failure(
        f"{master.id} resigned, but no beat was elected within {timeout:g} s: see `zk-beat status`"
    )


@zk_beat.command(cls=CeleryCommand)
@_entry(required=False)
@timeout_option
@click.pass_context
def pause(ctx: click.Context, entry: str | None, timeout: float) -> None:
    """Stop dispatching ENTRY, or all entries, until `resume`.

    The pause is kept in ZooKeeper: it needs no running beat, and every later master obeys it. A
    run that was already sent to the broker is not called back. `zk-beat run` still works.

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
        print_lines(ctx, [safe(f"{what} is already paused, since {terminal.iso(known.since)}{by}")])
    else:
        how = "zk-beat resume" if entry is None else f"zk-beat resume {entry}"
        print_lines(ctx, [safe(f"{what} is paused; `{how}` ends it")])


@zk_beat.command(cls=CeleryCommand)
@_entry(required=False)
@click.option(
    "--catch-up/--skip",
    "catch_up",
    cls=CeleryOption,
    default=True,
    show_default=True,
    help_group="zk-beat Options",
    help="Run an entry once if it was due during the pause, or skip it.",
)
@timeout_option
@click.pass_context
def resume(ctx: click.Context, entry: str | None, catch_up: bool, timeout: float) -> None:
    """Dispatch ENTRY, or all entries, again after `pause`.

    With --catch-up an entry that was due during the pause runs once, immediately. With --skip it
    runs when it is due next, and its history records what was skipped. The pause of everything is
    separate from the pauses of single entries: `resume` without ENTRY ends only the pause of
    everything.

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
        print_lines(ctx, [safe(f"{what} is not paused{_other_pauses(after, entry)}")])
        return
    who = "the next master" if snapshot.master is None else snapshot.master.id
    missed = f"{who} runs once what was due" if catch_up else f"{who} skips what was due"
    print_lines(ctx, [safe(f"{what} is resumed: {missed}{_other_pauses(after, entry)}")])


def _change(site: _Site, change: Callable[[Pauses], Pauses]) -> tuple[Pauses, Pauses]:
    return _again(lambda: change_pauses(site.session, site.paths, change))


def _again(write: Callable[[], T]) -> T:
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(Conflict):
            return write()
    return write()


def _other_pauses(pauses: Pauses, entry: str | None) -> str:
    """Says what is still paused after `entry`, or everything, was resumed."""
    if entry is not None:
        held = pauses.everything.since is not None
        return "; but everything is still paused: `zk-beat resume` ends that" if held else ""
    names = [name for name, pause in pauses.entries.items() if pause.since is not None]
    return f"; still paused: {', '.join(sorted(names))}" if names else ""


@zk_beat.command(cls=CeleryCommand)
@_entry(required=True)
@click.option(
    "--overlap",
    is_flag=True,
    help="Even if a run of ENTRY is still open, and its policy forbids that two overlap.",
)
@timeout_option
@click.pass_context
def run(ctx: click.Context, entry: str, overlap: bool, timeout: float) -> None:
    """Make the master dispatch ENTRY once, now.

    The extra run has the entry's own arguments and options. It does not change when ENTRY is due
    next. It works even while ENTRY is paused. The command returns when the broker has the message.

    \b
    Example:
      $ celery -A proj zk-beat run invoices
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        begun = clock.boottime()
        asked = replace(_request(RUN, entry), overlap=1 if overlap else None)
        answer, number = _ask(site, asked, "dispatched", news, deadline)
        claimed = f"run {number} of {entry}, task id {answer.task_id}"
        if _until(lambda: _has_left(site, entry, number, news), news, deadline) is None:
            raise Failure(f"{claimed}: claimed, waits for the broker")
        if number in _dropped(site, entry):
            raise Failure(f"{claimed}: dropped; see `zk-beat history {entry}`")
    took = terminal.duration(clock.boottime() - begun)
    print_lines(ctx, [safe(f"{claimed}: dispatched after {took}")])


@zk_beat.command(cls=CeleryCommand)
@_entry(required=True)
@timeout_option
@click.pass_context
def drop(ctx: click.Context, entry: str, timeout: float) -> None:
    """Make the master drop the waiting run of ENTRY.

    A run waits for the broker, for the end of a pause, or for a master whose schedule has ENTRY:
    `status` says which. The history records that the run was dropped, and who asked. The drop does
    not change when ENTRY is due next. If ENTRY became due again while the run waited, it may run
    immediately.

    \b
    Example:
      $ celery -A proj zk-beat drop invoices
    """
    news, deadline = clock.Wakeup(), clock.boottime() + timeout
    with _site(ctx, timeout, news) as site:
        answer, number = _ask(site, _request(DROP_RUN, entry), "dropped", news, deadline)
    what = f"run {number} of {entry}, task id {answer.task_id}: dropped, {answer.text}"
    print_lines(ctx, [safe(what)])


def _ask(
    site: _Site, request: RequestRecord, done: str, news: clock.Wakeup, deadline: float
) -> tuple[Answer, int]:
    """Sends the master a request about one entry.

    Args:
        done: what an error says was not done.

    Returns:
        the answer, and the number of the run.
    """
    entry = request.entry or ""
    answer = _answered(site, request, done, f"history {entry}", news, deadline)
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
    """Sends the master a request about one entry, and returns the answer if it was done.

    Args:
        done: what an error says was not done.
        tells: the command that shows whether it was done, for when the answer was lost.
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
        raise Unreachable(f"{exc}; `zk-beat {tells}` shows whether {entry} was {done}") from None
    if answer is None:
        waited = f"{site.timeout:g} s"
        raise Failure(f"{master.id} did not answer within {waited}: nothing was {done}")
    if not answer.ok:
        raise Failure(f"{entry}: {answer.text}: nothing was {done}")
    return answer


@dataclass(frozen=True)
class _Range:
    """The range to backfill: from `since` up to but not including `until`, in UTC. `zone` is the
    app's time zone if the command line gave an instant without one, else None."""

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
    help="The start of the range, ISO 8601. Without an offset or Z it is in the app's time zone.",
)
@click.option(
    "--to",
    "until",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="The end of the range; this instant is not included.",
)
@click.option(
    "--rate",
    cls=CeleryOption,
    type=click.FloatRange(min=0, min_open=True, max=MOST_RATE),
    default=RATE,
    show_default=True,
    metavar="N",
    help_group="zk-beat Options",
    help="At most this many runs per second.",
)
@click.option(
    "--yes",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help=f"Allow more than {MOST_UNASKED:,} runs.",
)
@click.option(
    "--dry-run",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="Only list the instants, by this configuration's schedule.",
)
@click.option(
    "--cancel",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="Stop the backfill of ENTRY.",
)
@json_option
@timeout_option
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
    """Make the master run ENTRY for a range in the past.

    Each instant of ENTRY's schedule in the range becomes an extra run, with that instant as `due`.
    An interval counts from --from. The backfill does not change when ENTRY is due next. The master
    sends these runs slowly, when nothing else is due, and not while ENTRY is paused. A later master
    continues where it stopped. The command returns when the master has accepted the backfill;
    `status` shows its progress.

    \b
    Examples:
      $ celery -A proj zk-beat backfill report --from 2026-11-01 --to 2026-11-08 --dry-run
      $ celery -A proj zk-beat backfill report --from 2026-11-01T00:00Z --to 2026-11-08T00:00Z
      $ celery -A proj zk-beat backfill report --cancel
    """
    if cancel:
        if since is not None or until is not None or dry_run:
            raise click.UsageError("--cancel cannot be combined with --from, --to or --dry-run")
        _cancel_backfill(ctx, entry, timeout, as_json)
        return
    if since is None or until is None:
        raise click.UsageError("give --from and --to, or --cancel")
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
        answer = _answered(site, request, "started", "status", news, deadline)
    if as_json:
        click.echo(wanted.to_json(begun=answer.text))
        return
    line = f"backfill of {wanted}: {answer.text}, {rate:g} per second; `zk-beat status` shows it, "
    print_lines(ctx, [safe(f"{line}`zk-beat backfill {entry} --cancel` stops it")])


def _range(app: Any, entry: str, since: str, until: str, rate: float) -> _Range:
    if math.isnan(rate):
        raise click.BadParameter("nan is not a number", param_hint="--rate")
    first, last = _instant(app, "--from", since), _instant(app, "--to", until)
    zone = str(app.timezone) if first[1] or last[1] else None
    wanted = _Range(entry, first[0], last[0], rate, zone)
    if wanted.since >= wanted.until:
        raise click.BadParameter(f"{wanted}: the range is empty", param_hint="--to")
    if wanted.until > clock.now():
        raise click.BadParameter(f"{wanted}: its end is in the future", param_hint="--to")
    return wanted


def _instant(app: Any, option: str, text: str) -> tuple[datetime, bool]:
    """Returns the instant in UTC, and whether the app's time zone was used."""
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
    """Lists what a backfill would run. Needs no ZooKeeper if all entries are the app's own."""
    app, entry = ctx.obj.app, wanted.entry
    if app.conf.get("zk_beat_scheduler") or app.conf.get("zk_beat_entries"):
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
        raise Failure(f"{entry}: its instants are not known here: only its scheduler knows them")
    found = instants(known, wanted.since, wanted.until)
    due = [*itertools.islice(found, None if most is None else most + 1)]
    is_refused = most is not None and len(due) > most
    if as_json:
        click.echo(wanted.to_json(instants=[to_text(at) for at in due[:most]], more=is_refused))
    else:
        count = f"more than {most}, refused without --yes" if is_refused else f"{len(due)}"
        lines = [at.astimezone(app.timezone).isoformat() for at in due[:most]]
        print_lines(ctx, [*lines, safe(f"{wanted}: {count} runs; nothing was started")])
    ctx.exit(NOT_DONE if is_refused or not due else 0)


def _cancel_backfill(ctx: click.Context, entry: str, timeout: float, as_json: bool) -> None:
    with _site(ctx, timeout, clock.Wakeup()) as site:
        found = _again(lambda: cancel_backfill(site.session, site.paths, entry))
    if found is None:
        raise Failure(f"{entry} has no backfill")
    of = "" if found.total is None else f" of {found.total}"
    if as_json:
        told = {"format": FORMAT, "entry": entry, "done": found.done, "total": found.total}
        click.echo(json.dumps(told))
    else:
        print_lines(
            ctx, [safe(f"the backfill of {entry} is cancelled after {found.done}{of} runs")]
        )


def _withdraw(asking: Asking) -> Answer | None:
    """Withdraws a request. Returns None if that worked, else the answer that came just before.

    Raises:
        Uncertain: nobody knows whether the request was withdrawn.
    """
    if asking.take_back():
        return None
    answer = asking.answer()
    if answer is None:
        raise Uncertain("the request could not be withdrawn")
    return answer


def _has_left(site: _Site, entry: str, number: int, news: clock.Wakeup) -> bool | None:
    """Returns True if a run has left the outbox, else None."""
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
    help="Show at most this many runs.",
)
@json_option
@timeout_option
@click.pass_context
def history(
    ctx: click.Context, entry: str | None, limit: int, as_json: bool, timeout: float
) -> None:
    """Show past runs of ENTRY or of all entries, and past masters.

    For each due instant it shows when it was dispatched, how late, by which beat, and the task id;
    or why it was skipped. Of tracked runs it also shows what became of them. Several missed
    instants become one run: that of the first. ZooKeeper keeps up to 20 runs of each entry, and the
    last 50 masters. Of live entries it also shows the last 10 changes of each: who changed what.

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
    changes = reader.changes(entry)[:limit]
    if as_json:
        told = {"format": FORMAT, "root": snapshot.root, "entry": entry}
        told.update(runs=plain(runs), masters=plain(masters), changes=plain(changes))
        click.echo(json.dumps(told))
        return
    now, style = snapshot.read_at, _style(ctx)
    print_lines(ctx, terminal.history(runs, now, style, _width(), entry is None, changes))
    if entry is None:
        print_lines(ctx, ["", *terminal.masters(masters, now, style, _width())])


@zk_beat.command(cls=CeleryCommand, name="next")
@_entry(required=False)
@click.option(
    "--at",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="Start at this instant, such as 2026-11-01T03:00Z. Without an offset it is in the app's "
    "time zone. Default: now.",
)
@click.option(
    "--until",
    cls=CeleryOption,
    metavar="INSTANT",
    help_group="zk-beat Options",
    help="Stop at this instant, or after +7d, +12h, +30m. Default: a year; with --busy a day.",
)
@click.option(
    "--count",
    cls=CeleryOption,
    type=click.IntRange(min=1),
    metavar="N",
    help_group="zk-beat Options",
    help="Show at most this many runs. Default: 10; with --until all.",
)
@click.option(
    "--busy",
    cls=CeleryOption,
    is_flag=True,
    help_group="zk-beat Options",
    help="Show how many runs each minute has, the busiest minute first.",
)
@json_option
@timeout_option
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
    """Show future runs of ENTRY or of all entries.

    Policies, pauses and time zones are applied: the same code decides in production. Only how long
    runs take is not known: an `overlap` policy may skip or delay some of those shown. It reads the
    schedule from the app, and the last runs, from which intervals count, from ZooKeeper. If
    ZooKeeper does not answer, the command assumes that each entry ran last now, and says so. Days
    on which clocks change are marked.

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
            print_lines(ctx, upcoming.table_of_minutes(minutes, _style(ctx), _width()))
        return
    most = count if count is not None else None if until else 10
    runs = list(itertools.islice(schedule.runs(begin, end, entry), most))
    if as_json:
        click.echo(json.dumps({**told, "entry": entry, "runs": plain(runs)}))
    else:
        print_lines(ctx, upcoming.table_of(runs, now, _style(ctx), _width(), entry is None))


def _at(option: str, text: str | None, read: Callable[[str], datetime]) -> datetime | None:
    try:
        return None if text is None else read(text)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(safe(str(exc)), param_hint=option) from None


def _upcoming(
    ctx: click.Context, timeout: float, now: datetime
) -> tuple[Outlook, set[str], list[str]]:
    """Returns the schedule, the names of its entries, and remarks for the user."""
    remarks: list[str] = []
    try:
        with _site(ctx, timeout, clock.Wakeup()) as site:
            reader, scheduler = site.reader(), site.scheduler
            snapshot = reader.read()
            entries, states, settings = reader.basis()
        paused = {each.name for each in snapshot.entries if each.paused is not None}
        if snapshot.paused is not None:
            paused = set(entries)
        held = sorted(paused & set(entries))
        if held:
            some = f"{len(held)} entries are" if len(held) > 1 else f"{held[0]} is"
            remarks.append(f"{some} paused and not shown: `zk-beat resume` ends the pause")
    except Unreachable as exc:
        settings = _settings(ctx.obj.app)
        if settings.scheduler is not None:
            raise
        scheduler, _ = scheduler_of(ctx.obj.app)
        entries, states, paused = scheduler.entries, {}, set()
        remarks.append(
            f"{exc.format_message()}: assuming that each entry ran last now, and that none is "
            "paused"
        )
        if settings.entries:
            remarks.append("live entries are in ZooKeeper, and are not shown")
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


def _until(look: Callable[[], T | None], news: clock.Wakeup, deadline: float) -> T | None:
    """Calls `look`, which sets a watch, after each change until it returns something.

    Returns:
        what `look` returned; None if that was nothing before the deadline.

    Raises:
        Uncertain: there was no connection at the deadline.
    """
    while True:
        lost: Uncertain | None = None
        try:
            found = look()
            if found is not None:
                return found
        except Uncertain as exc:
            lost = exc  # the connection may come back, which wakes us
        if not news.wait(deadline - clock.boottime()) and clock.boottime() >= deadline:
            if lost is not None:
                raise lost
            return None


def _style(ctx: click.Context) -> terminal.Style:
    def style(message: str, colour: str) -> str:
        how: dict[str, Any] = {"bold": True} if colour == "bold" else {"fg": colour}
        return str(ctx.obj.style(message, **how))

    return style


def _width() -> float:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


for _command in (*live_commands.COMMANDS, import_):
    zk_beat.add_command(_command)
