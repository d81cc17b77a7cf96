"""``zk-beat import``: live entries from a file, from ``beat_schedule``, or from another scheduler's
store, with their clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import click
from celery.beat import Scheduler
from celery.bin.base import CeleryCommand

from . import clock
from .command_line import Unreachable, print_lines, timeout_option
from .due import utc_of
from .errors import EntryError, SettingsError, ZkBeatError
from .gate.gated import scheduler_class
from .gate.stores import adapter_of
from .live.coming import Newcomer, come_over
from .live.commands import Function, bring, entries_of, option, read_file
from .live.definitions import Definition, check_name
from .live.public import Entries, refuse_tracking
from .live.store import Wanted
from .log import safe

#: Of each option, the scheduler whose store it reads.
_STORES = {
    "redbeat": "redbeat:RedBeatScheduler",
    "django": "django_celery_beat.schedulers:DatabaseScheduler",
    "sqlalchemy": "sqlalchemy_celery_beat.schedulers:DatabaseScheduler",
}
#: Each beat of an app has it without being told.
_OF_CELERY = "celery.backend_cleanup"


def _from(name: str, what: str) -> Callable[[Function], Function]:
    return option(f"--from-{name}", "source", flag_value=name, help=f"Take those of {what}.")


@click.command(cls=CeleryCommand, name="import")
@click.argument("file", required=False)
@_from("redbeat", "RedBeat")
@_from("django", "django-celery-beat")
@_from("sqlalchemy", "sqlalchemy-celery-beat")
@_from("schedule", "the app's beat_schedule")
@option("--skip", is_flag=True, help="With --from-...: leave out what cannot come over.")
@option("--prune", is_flag=True, help="Remove live entries that are not there.")
@option("--dry-run", is_flag=True, help="Show the difference; change nothing.")
@timeout_option
@click.pass_context
def import_(
    ctx: click.Context,
    file: str | None,
    source: str | None,
    skip: bool,
    prune: bool,
    dry_run: bool,
    timeout: float,
) -> None:
    """Add and change live entries as FILE says ("-": standard input). `export` writes such a file.
    Or take the entries of another scheduler, with their clocks.

    The command first checks everything and shows the differences. Changes of up to about 500 kB
    are one transaction: all or nothing. It makes more changes in several transactions, one after
    another. If it is interrupted, run it again: it makes only the changes that are left. --timeout
    applies to each transaction.

    --from-... reads the store of the other scheduler by the settings of the app, and writes nothing
    there. Stop the beats of that scheduler first. It names each entry that cannot be a live entry,
    and then changes nothing without --skip.

    \b
    Examples:
      $ celery -A proj zk-beat import entries.json --dry-run
      $ celery -A proj zk-beat import entries.json --prune
      $ celery -A proj zk-beat import --from-redbeat --dry-run
    """
    if (file is None) == (source is None):
        raise click.UsageError("expected FILE, or one of --from-redbeat, --from-django ...")
    if skip and source is None:
        raise click.UsageError("--skip goes with --from-...")
    wanted: Mapping[str, Wanted] = {} if file is None else read_file(file)
    refused: dict[str, str] = {}
    with entries_of(ctx, timeout) as entries:
        if source is None:
            for name, each in wanted.items():
                entries.check_task(name, each.task)  # type: ignore[union-attr]
                refuse_tracking(entries.settings, name, each.policy)  # type: ignore[union-attr]
        else:
            wanted = _coming(ctx, entries, source, refused)
            print_lines(ctx, [safe(f"! {name}: {why}") for name, why in refused.items()])
        is_held = bool(refused) and not skip
        bring(ctx, entries, wanted, prune, dry_run or is_held, keep=refused)
    if is_held:
        text = f"{len(refused)} entries cannot come over; --skip leaves them where they are"
        click.echo(text, err=True)
        ctx.exit(1)


def _coming(
    ctx: click.Context, entries: Entries, source: str, refused: dict[str, str]
) -> dict[str, Wanted]:
    """All that can come over; into `refused`, why others cannot."""
    app, now = ctx.obj.app, clock.now()
    try:
        if source == "schedule":
            found = list(_of_code(app, refused, now))
        else:
            found = list(_of_store(app, source, refused))
    except (ZkBeatError, Unreachable):
        raise
    except Exception as exc:  # of another's classes, and its store
        what = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise Unreachable(f"--from-{source}: cannot be read: {what}") from None
    before, states = entries.definitions(), entries.states(new.name for new in found)
    wanted: dict[str, Wanted] = {}
    for new in found:
        name = new.name
        if name == _OF_CELERY and new.entry.task == _OF_CELERY:
            print_lines(ctx, [f"{name} stays: each beat has it without being told"])
            continue
        try:
            check_name(name)
            entries.check_task(name, new.entry.task)
            if source != "schedule" and name in app.conf.beat_schedule:
                what = "a name that is not in beat_schedule, which would win"
                raise EntryError(name, "name", name, what)
            wanted[name] = come_over(new, before.get(name), states.get(name), now)
        except EntryError as exc:
            refused[name] = exc.what
        known = before.get(name)
        if name in refused and isinstance(known, Definition):
            refused[name] += "; it is a live entry already, which stays as it is"
    return wanted


def _of_store(app: Any, source: str, refused: dict[str, str]) -> Iterator[Newcomer]:
    kind = scheduler_class(_STORES[source], f"--from-{source}")
    adapter_class = adapter_of(kind)
    # Lazy: it writes no entries of code into its store.
    scheduler: Any = type(kind.__name__, (kind,), adapter_class.reading(kind))(app=app, lazy=True)
    adapter = adapter_class(scheduler)
    try:
        for entry, is_enabled in adapter.everything():
            yield adapter.newcomer(entry, is_enabled)
        refused.update(adapter.unreadable)
    finally:
        adapter.forget()


def _of_code(app: Any, refused: dict[str, str], now: datetime) -> Iterator[Newcomer]:
    app.finalize()
    scheduler = Scheduler(app=app, lazy=True)
    for name, fields in app.conf.beat_schedule.items():
        try:
            entry = scheduler._maybe_entry(name, fields)
        except Exception as exc:
            raise SettingsError(f"beat_schedule: {name}: {exc}") from None
        last = utc_of(entry, entry.last_run_at)
        # Without one Celery takes the present time.
        yield Newcomer(str(name), entry, last_run_at=min(last, now), has_run=last < now)
