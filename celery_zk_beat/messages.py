"""Makes and sends the message of a run: that of Celery's own beat, with the run's id and header.

Most messages are made in a short way: what Celery's ``send_task`` does when nothing is asked of it
that takes more. Most of the time of a burst is spent there, and much of that on what an entry of a
schedule seldom has.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from celery import VERSION
from celery.beat import (
    BeatLazyFunc,
    Scheduler,
    SchedulingError,
    _evaluate_entry_args,
    _evaluate_entry_kwargs,
)
from celery.signals import after_task_publish, before_task_publish, task_prerun, task_sent
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr

from .log import get_logger, telling
from .runs import milliseconds, to_json
from .templates import Texts, as_bytes, key_of

logger = get_logger(__name__)

#: Whether it is the release of Celery whose way is known.
_KNOWN = VERSION[:2] == (5, 7)
#: What an entry and its task may ask for of a message that is made in the short way.
_PLAIN = {
    *("queue", "exchange", "routing_key", "priority", "delivery_mode", "mandatory", "immediate"),
    *("serializer", "compression", "headers", "task_id", "retry"),
    *("time_limit", "soft_time_limit", "ignore_result"),
}
#: Most characters of a name there. django-celery-results keeps it in a column as wide as this, and
#: where a database refuses what is longer, or not printable, the result would be lost.
_LONGEST_SHOWN = 255


def task_id(root: str, entry: str, number: int, due: datetime) -> str:
    """That of a run: the same whoever publishes it, and never that of another run. Of two runs of
    one number, as after the root was deleted, the instants differ. `root` is the whole path, with
    the chroot; `due` is aware and counts in milliseconds, as in the history."""
    # What uuid.uuid5() does, but any text can be an entry's name.
    name = f"{entry}/{number}/{milliseconds(due)}".encode("utf-8", "surrogatepass")
    digest = hashlib.sha1(_namespace(root) + name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


@functools.lru_cache(maxsize=16)
def _namespace(root: str) -> bytes:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"celery-zk-beat:{root}").bytes


def run_id(
    root: str,
    entries: Mapping[str, Any],
    entry: str,
    number: int,
    due: datetime,
    was: str | None = None,
) -> str:
    """The :func:`task_id` of a run, or that which the options of its entry give. `was`: the name
    that its entry had when it was claimed, if it is another now."""
    known = entries.get(entry)
    options = None if known is None else known.options
    own = None if options is None else options.get("task_id")
    return str(own) if own else task_id(root, was or entry, number, due)


def copied(entry: Any) -> Any:
    """A copy, with the same attributes."""
    copy = object.__new__(type(entry))  # not copy.copy(), for which each class has its own way
    vars(copy).update(vars(entry))
    return copy


def headers_of(run: dict[str, Any], *, is_extended: bool) -> dict[str, Any]:
    """Those that we give to a message, by what our own says of the run. `is_extended`: the app's
    `result_extended`, without which nobody would look at the other."""
    name = run["entry"]
    if is_extended and len(name) <= _LONGEST_SHOWN and name.isprintable():
        return {"zk_beat": run, "periodic_task_name": name}
    return {"zk_beat": run}


def ours(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Of a message's headers those of :func:`headers_of`."""
    return {key: headers[key] for key in ("zk_beat", "periodic_task_name") if key in headers}


def addressed(entry: Any, task_id: str, headers: Mapping[str, Any]) -> Any:
    """A copy of an entry of which a run is to be sent: by `task_id` and with `headers`, unless its
    options have them of their own."""
    copy, own = copied(entry), entry.options.get("task_id")
    # Both are new dictionaries: Celery adds headers of its own to the ones it is given.
    copy.options = {
        **entry.options,
        "task_id": str(own) if own else task_id,
        "headers": {**headers, **(entry.options.get("headers") or {})},
        # The outbox is what retries; Celery's own would do so without a look at the election, and
        # multiply the time-outs of a broker that does not answer.
        "retry": False,
    }
    return copy


class Made(NamedTuple):
    """What hooks have made of a run's entry: of its options what they have put there, and, as long
    as this process lives, its arguments."""

    options: dict[str, Any]
    args: Any = None
    kwargs: Any = None
    #: Not from the outbox.
    is_known: bool = False

    @classmethod
    def of(cls, entry: Any, before: Any) -> Made:
        """From an entry that was :func:`addressed`, and the same before hooks had it."""
        options = _changed(entry.options, before.options, _ADDRESS)
        if "headers" in options:
            was = before.options["headers"]
            options["headers"] = _changed(entry.options["headers"], was, _ADDRESS)
        return cls(options, entry.args, entry.kwargs, True)

    @classmethod
    def from_text(cls, text: str) -> Made:
        return cls({"headers": _only_shown(json.loads(text))})

    @property
    def text(self) -> str:
        """The headers as JSON, for the outbox, as far as they can be. Nothing else: whoever may
        write there is not to choose what is sent, or where to."""
        headers = _only_shown(self.options.get("headers") or {})
        return to_json({name: value for name, value in headers.items() if _is_json(value)})

    def put_on(self, entry: Any) -> Any:
        """A copy of an entry that was :func:`addressed`, changed as hooks have changed it. What the
        outbox says is only added."""
        copy = copied(entry)
        headers, own = self.options.get("headers", {}), entry.options["headers"]
        if self.is_known:
            copy.args, copy.kwargs = self.args, self.kwargs
            headers = {**own, **headers}
        else:
            headers = {**headers, **own}
        copy.options = {**entry.options, **self.options, "headers": headers}
        return copy


#: What is of each attempt's own, and no hook's.
_ADDRESS = {"task_id", "retry", "zk_beat", "periodic_task_name", "celery_beat_task"}


def _changed(after: Mapping[str, Any], before: Mapping[str, Any], but: set[str]) -> dict[str, Any]:
    missing = object()
    return {
        key: value
        for key, value in after.items()
        if key not in but and (value is not before.get(key, missing))
    }


#: The headers by which a worker knows what to do.
_OF_CELERY = {
    *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
    *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result"),
    *("replaced_task_nesting", "stamped_headers", "stamps", "callbacks", "errbacks", "chain"),
    *("chord", "method", "meth", "args", "kwargs", "reply_to", "correlation_id", "delivery_info"),
}
#: What only Celery and we put into a message.
RESERVED_HEADERS = frozenset(_OF_CELERY | _ADDRESS)


def _only_shown(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Those that only tell something."""
    return {name: value for name, value in headers.items() if name not in RESERVED_HEADERS}


def _is_json(value: Any) -> bool:
    try:
        return bool(to_json(value))
    except (TypeError, ValueError, RecursionError):
        return False


@dataclass
class Attempt:
    """To send a run.

    Attributes:
        plain: its entry, as the schedule has it.
        texts: what its message has of its own.
        until_due: returns when the run is due. To be called before anything that could look at the
            clock, such as a lazy argument or a function of the user's.
        handed: how many messages have been handed to the broker's connection so far.
        before: what hooks made of the entry at an earlier attempt; None where they had none.
        made: what they make of it at this one.
    """

    plain: Any
    texts: Texts
    until_due: Callable[[], object]
    handed: Callable[[], int]
    before: Made | None = None
    made: Made | None = None

    @functools.cached_property
    def entry(self) -> Any:
        """The entry, :func:`addressed`."""
        return addressed(self.plain, self.texts.task_id, self.texts.headers)


def apply_plainly(scheduler: Scheduler, entry: Any, producer: Any, advance: bool = False) -> Any:
    """Does what Celery's own ``apply_async`` does, whatever wraps that."""
    app, task = scheduler.app, scheduler.app.tasks.get(entry.task)
    try:
        args, kwargs = _evaluate_entry_args(entry.args), _evaluate_entry_kwargs(entry.kwargs)
        entry.options["headers"]["celery_beat_task"] = True
        if task is None:
            return app.send_task(entry.task, args, kwargs, producer=producer, **entry.options)
        return task.apply_async(args, kwargs, producer=producer, **entry.options)
    except Exception as exc:
        what = f"Couldn't apply scheduled task {entry.name}: {exc}"
        raise SchedulingError(what)  # noqa: B904 - as Celery does


class Sender:
    """Does what ``apply_async(entry, producer, advance=False)`` of Celery's scheduler does, in less
    time where nothing but Celery's own takes part. For messages that leave together: what is the
    same for all is looked at once. For one thread. `apply_async`: of the scheduler, by default."""

    def __init__(
        self,
        scheduler: Scheduler,
        producer: Any,
        apply_async: Callable[..., object] | None = None,
    ) -> None:
        self._producer = producer
        self._app = app = scheduler.app
        # What Celery calls, or what does without what it would call.
        methods = [
            app.send_task,
            *(app.amqp.router.route, app.amqp.create_task_message, app.amqp.send_task_message),
        ]
        if apply_async is None:
            apply_async = scheduler.apply_async
            methods += apply_async, scheduler.send_task, scheduler.sync
        self._apply_async = apply_async
        self._is_short = _KNOWN and all(map(is_own, methods))
        self._has_routes = bool(app.amqp.routes)
        self._is_watched = bool(
            before_task_publish.receivers or after_task_publish.receivers or task_sent.receivers
        )
        self._is_eager = app.conf.task_always_eager
        #: Of every message.
        self._same = {
            "reply_to": app.thread_oid,
            "create_sent_event": app.conf.task_send_sent_event,
            "origin": anon_nodename(),
        }
        #: What templates have to know of tasks, by name.
        self._tasks: dict[str, _Task] = {}
        self._templates = getattr(producer, "templates", None)
        looked_at = self._has_routes or self._is_watched or self._is_eager
        if not self._is_short or looked_at or app.conf.task_send_sent_event:
            self._templates = None
        if self._templates is not None:
            amqp = app.amqp
            makers = amqp.create_task_message, amqp.send_task_message, amqp.default_queue
            self._levels = app.conf.task_repr_maxlevels
            sizes = amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize, self._levels
            self._templates.begin((*makers, *sizes, *self._same.values()))

    def send_plain(self, attempt: Attempt) -> None:
        """Sends an entry that no hook is to see, from a template if there is one. Raises as
        :meth:`send`."""
        templates, entry = self._templates, attempt.plain
        if templates is None or _is_lazy(entry):
            self.send(attempt.entry, attempt.until_due)
            return
        task, texts = self._tasks.get(entry.task) or self._task(entry.task), attempt.texts
        key = key_of(task.options, entry.options, texts.headers)
        args, kwargs = _evaluate_entry_args(entry.args), _evaluate_entry_kwargs(entry.kwargs)
        # Of a task whose arguments are wrong Celery makes no message.
        template = templates.get(key)
        if template is not None and (task.takes is None or _takes(task.takes, args, kwargs)):
            templates.add(template, task.name, texts, args, kwargs, self._show)
            return
        begun = templates.count
        self.send(attempt.entry, attempt.until_due)
        if key is not None and templates.is_wanted(key):
            mark = functools.partial(self._mark, entry)
            templates.learn(key, begun, task.name, texts, args, kwargs, self._show, mark)

    def _show(self, args: Any, kwargs: Any) -> tuple[str, str]:
        amqp, levels = self._app.amqp, self._levels
        argsrepr, kwargsrepr = "()", "{}"
        if args:
            argsrepr = saferepr(args, amqp.argsrepr_maxsize, maxlevels=levels)
        if kwargs:
            kwargsrepr = saferepr(kwargs, amqp.kwargsrepr_maxsize, maxlevels=levels)
        return argsrepr, kwargsrepr

    def _task(self, name: str) -> _Task:
        """Looks at a task, once for each group of messages."""
        task = self._app.tasks.get(name)
        found = _Task(name, b"", None)
        if task is not None:
            options = {**task._get_exec_options(), "ignore_result": task.ignore_result}
            is_plain = self._is_plain(task)
            has_check = task.typing and hasattr(task, "__header__")
            takes = task.__header__ if has_check else None
            found = _Task(task.name, as_bytes(options) if is_plain else None, takes)
        self._tasks[name] = found
        return found

    def _mark(
        self, entry: Any, name: str, texts: Texts, argsrepr: str, kwargsrepr: str
    ) -> str | None:
        """Makes a message without arguments: see :meth:`.Templates.learn`."""
        task = self._app.tasks.get(entry.task)
        options = self._plain_options(addressed(entry, texts.task_id, texts.headers), task)
        if options is None:
            return None
        serializer: str = options.get("serializer") or self._app.conf.task_serializer
        self._make(name, task, (), {}, options, (argsrepr, kwargsrepr))
        return serializer

    def send(self, entry: Any, until_due: Callable[[], object]) -> None:
        """Sends an entry that was :func:`addressed`; celery.beat.SchedulingError where it could not
        be made, or not be sent. `until_due` returns when the entry is due. It is called before
        anything that could look at the clock, such as a lazy argument or a function of the user's.
        """
        task = self._app.tasks.get(entry.task)
        options = self._plain_options(entry, task) if self._is_short else None
        if options is None:
            until_due()
            send_by_celery(self._apply_async, self._app, self._producer, entry)
            return
        if self._has_routes or self._is_watched or _is_lazy(entry):
            until_due()
        try:
            self._send(entry, task, options)
        except Exception as exc:
            what = f"Couldn't apply scheduled task {entry.name}: {exc}"
            raise SchedulingError(what)  # noqa: B904 - as Celery does

    def _plain_options(self, entry: Any, task: Any) -> dict[str, Any] | None:
        """Those of a message that can be made in the short way: of the entry and, where it has
        none, of its task."""
        if task is None:
            options = dict(entry.options)
        elif not self._is_plain(task):
            return None
        else:
            ignored = {"ignore_result": task.ignore_result}
            options = {**task._get_exec_options(), **ignored, **entry.options}
            if options["expires"] is None:
                del options["expires"]
        return options if options.keys() <= _PLAIN else None

    def _is_plain(self, task: Any) -> bool:
        return not (
            self._is_eager
            or task.__v2_compat__
            or task._dump_pydantic_arguments
            or task.soft_time_limit  # which Celery compares with the other
            or not is_own(task.apply_async)
            or not is_own(task.shadow_name)
        )

    def _send(self, entry: Any, task: Any, options: dict[str, Any]) -> None:
        args, kwargs = _evaluate_entry_args(entry.args), _evaluate_entry_kwargs(entry.kwargs)
        if task is not None and task.typing and hasattr(task, "__header__"):
            task.__header__(*args, **kwargs)
        # As Celery would find out by itself, more slowly.
        reprs = None if args else "()", None if kwargs else "{}"
        name = entry.task if task is None else task.name
        self._make(name, task, args, kwargs, options, reprs)

    def _make(
        self,
        name: str,
        task: Any,
        args: Any,
        kwargs: Any,
        options: dict[str, Any],
        reprs: tuple[str | None, str | None],
    ) -> None:
        app = self._app
        options["headers"]["celery_beat_task"] = True
        task_id, ignored = options.pop("task_id"), options.pop("ignore_result", None)
        limits = options.pop("time_limit", None), options.pop("soft_time_limit", None)
        if self._has_routes or options.get("queue"):
            options = app.amqp.router.route(options, name, args, kwargs, task)
        else:
            options = {key: value for key, value in options.items() if value is not None}
            options["queue"] = app.amqp.default_queue
        message = app.amqp.create_task_message(
            task_id,
            name,
            args,
            kwargs,
            time_limit=limits[0],
            soft_time_limit=limits[1],
            ignore_result=ignored,
            argsrepr=reprs[0],
            kwargsrepr=reprs[1],
            **self._same,
            **options,
        )
        # Celery would tell the result backend now, and make a result object: see _without_result().
        with self._producer.connection._reraise_as_library_errors():
            app.amqp.send_task_message(self._producer, name, message, **options)


class _Task(NamedTuple):
    """What a template has to know of a task: its name, its options (None: its messages are made
    without a template), and a function that raises if the task does not take the arguments."""

    name: str
    options: bytes | None
    takes: Callable[..., object] | None


def _takes(check: Callable[..., object], args: Any, kwargs: Any) -> bool:
    try:
        check(*args, **kwargs)
    except Exception:
        return False
    return True


def send_by_celery(apply_async: Callable[..., object], app: Any, producer: Any, entry: Any) -> None:
    """Sends an entry that was :func:`addressed` as Celery does, by `apply_async` of a scheduler."""
    task_id = entry.options["task_id"]
    with _without_result(app, producer, task_id), _executed_here(app, entry, task_id):
        apply_async(entry, producer=producer, advance=False)


@contextlib.contextmanager
def _executed_here(app: Any, entry: Any, task_id: str) -> Iterator[None]:
    """With `task_always_eager` Celery executes the task instead of sending it: so what the task
    raises is not what sending raises. A task finds our header in its request, as in a worker."""
    if not app.conf.task_always_eager:
        yield
        return
    began = False

    def note(task: Any, **kwargs: Any) -> None:
        nonlocal began
        if kwargs.get("task_id") == task_id:
            began = True
            task.request.zk_beat = entry.options["headers"]["zk_beat"]

    task_prerun.connect(note, weak=False)
    try:
        yield
    except Exception as exc:
        if not began:
            raise
        told = telling("raised", entry=entry.name, task_id=task_id)
        text = "%s: %s raised %s: %s"
        logger.error(text, entry.name, entry.task, type(exc).__name__, exc, extra=told)
    finally:
        task_prerun.disconnect(note)


@contextlib.contextmanager
def _without_result(app: Any, producer: Any, task_id: str) -> Iterator[None]:
    """While Celery sends a message within, the result backend of the app is not used for it. Nobody
    reads the result of a run in beat. So beat must not subscribe to it (in Redis that would stay
    for ever), and must not wait for a backend that is away."""
    backend = _Backend(app, producer, task_id)
    app._backend = backend
    try:
        yield
    finally:
        if backend.thread_safe:
            app._backend_cache = backend.real
        else:
            app._local.backend = backend.real


class _Backend:
    """Stands for the result backend while a message is sent. It passes on everything that does not
    belong to this message, and makes the real backend only for that."""

    def __init__(self, app: Any, producer: Any, task_id: str) -> None:
        #: Celery asks this to learn whether all threads, or this one, are to use the backend.
        self.thread_safe = bool(app.conf.get("result_backend_thread_safe"))
        self.real = app._backend
        self._app, self._producer, self._task_id = app, producer, task_id

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        if producer is self._producer or task_id == self._task_id:
            return {}
        return self._made().on_task_call(producer, task_id)

    def remove_pending_result(self, result: Any) -> Any:
        """Celery calls this when a result object is thrown away."""
        if self.real is None or result.id == self._task_id:
            return result
        return self.real.remove_pending_result(result)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made(), name)

    def _made(self) -> Any:
        if self.real is None:
            self.real = self._app._get_backend()
        return self.real


def _is_lazy(entry: Any) -> bool:
    """True where an argument is made when the message is."""
    if not entry.args and not entry.kwargs:
        return False
    for value in (*(entry.args or ()), *(entry.kwargs or {}).values()):  # any() takes longer
        if isinstance(value, BeatLazyFunc):
            return True
    return False


def is_own(method: Any) -> bool:
    """True where it is Celery's, or ours: not overridden, and not wrapped, as tracing tools do."""
    # By their very types and globals, for all else a wrapper takes over from what it wraps.
    function = method.__func__ if type(method) is MethodType else method
    if type(function) is not FunctionType:
        return False
    return str(function.__globals__.get("__name__")).startswith(("celery.", "celery_zk_beat."))
