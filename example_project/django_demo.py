"""Shows a failover of a Django project: ``python -m example_project.django_demo`` (or ``make
demo-django``), about 40 seconds.

Starts a ZooKeeper, a Redis, a PostgreSQL (SQLite if it is not installed), the admin, two workers
and two beats of the example's Django project on free ports, in a temporary folder. The beats
dispatch what django-celery-beat's DatabaseScheduler says. Kills the master, starts it again,
disables one entry in the admin and adds another. Then prints how long all that took, and whether
any run was lost or made twice.

Exit status: 0 no run was lost or made twice; 1 one was, or something else went wrong; 2 something
is not installed; 130 Ctrl-C. In every case all processes have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import http.cookiejar
import os
import secrets
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING

from .play import PATIENCE, Failed, Play, main
from .processes import LOOPBACK
from .servers import PostgreSQL, Process, free_port, missing_postgresql

if TYPE_CHECKING:
    from django_celery_beat.models import PeriodicTask

    from .verdict import Entry, Verdict

STEADY = 5.0  # Seconds between two events.
#: Seconds within which DatabaseScheduler looks into its tables again.
ARRIVES = 5.0
USER = "admin"


class DjangoDemo(Play):
    """Two beats of the example's Django project, and its admin."""

    app = "example_project.django_shop"
    name = "shop"
    packages = (*Play.packages, "django", "django_celery_beat")
    extra = "django"

    def schedule(self) -> dict[str, Entry]:
        from .verdict import Entry

        return {
            "heartbeat": Entry("heartbeat", 1),
            "forget_sessions": Entry("sessions", 2),
            "send_invoices": Entry("invoices", 5),
        }

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--stay", action="store_true", help="go on until Ctrl-C, to look at the admin"
        )

    def run(self) -> Verdict:
        self._start_servers()
        self._start_database()
        password = secrets.token_urlsafe(9)
        self._fill(password)
        admin = self._start_admin(password)
        self._start_workers()
        started = self._start_beats(2)
        self._steady("all is well", STEADY)
        self._fault(signal.SIGKILL, "the master is killed")
        self._steady("the successor goes on", STEADY)
        self._restart()
        self._show.event("two beats again, still one master")
        self._phase("the admin disables one entry and adds another")
        self._change(admin)
        verdict = self._stop(started)
        if self._options.stay:
            for line in (*verdict.lost, *verdict.twice, verdict):
                self._show.event(str(line))
            self._restart()
            words = f"the admin: {admin.url} (user {USER}, password {password}); Ctrl-C ends it"
            self._show.event(words, "bold")
            while True:
                self._steady("Ctrl-C ends it", PATIENCE)
        return verdict

    def _start_database(self) -> None:
        if missing := missing_postgresql():
            self._show.event(f"uses SQLite, because something is missing. {missing}")
            self._env["SHOP_DATABASE"] = str(self._folder / "shop.sqlite3")
        else:
            server = PostgreSQL(self._folder)
            self._others.append(self._stack.enter_context(server).start())
            self._env.update(server.env_of())
            self._show.event("PostgreSQL runs")

    def _fill(self, password: str) -> None:
        os.environ.update(self._env, DJANGO_SETTINGS_MODULE=f"{self.app}.settings")
        import django

        django.setup()
        from django.contrib.auth import get_user_model
        from django.core.management import call_command
        from django_celery_beat.models import IntervalSchedule, PeriodicTask

        call_command("migrate", verbosity=0)
        get_user_model().objects.create_superuser(USER, password=password)
        for task, entry in self.schedule().items():
            seconds = IntervalSchedule(every=entry.period, period="seconds")
            seconds.save()
            PeriodicTask.objects.create(
                name=entry.name,
                task=f"{self.app}.tasks.{task}",
                interval=seconds,
                args='["customers-a-to-m"]' if task == "send_invoices" else "[]",
            )
        self._show.event(f"the database holds {len(self._entries)} entries")

    def _start_admin(self, password: str) -> Admin:
        port = free_port()
        args = [sys.executable, "-m", self.app, "runserver", "--noreload", "--insecure"]
        server = Process(self._folder, "admin", [*args, f"{LOOPBACK}:{port}"], env=self._env)
        self._others.append(self._stack.enter_context(server).start())
        admin = Admin(f"http://{LOOPBACK}:{port}/admin/")
        self._until(admin.answers, "the admin")
        admin.log_in(password)
        self._show.event(f"the admin is at {admin.url} (user {USER}, password {password})")
        return admin

    def _change(self, admin: Admin) -> None:
        """Disables one entry and adds another. A change may take ARRIVES seconds to have an effect:
        after that the one must not run any more, and the other must have run."""
        from .verdict import Entry

        place = next(n for n, entry in enumerate(self._entries) if entry.name == "sessions")
        sessions, restock = self._entries[place], Entry("restock", 1)
        admin.act("disable_tasks", sessions.name)
        disabled = time.time()
        self._entries[place] = replace(sessions, until=disabled)
        self._show.event(f"the admin disables {sessions.name}", "bold")
        admin.add(restock.name, f"{self.app}.tasks.restock", like="heartbeat")
        added = time.time()
        self._show.event(f"the admin adds {restock.name}, every second", "bold")

        self._until(lambda: self._runs(restock), f"the first run of {restock.name}")
        first = min(self._runs(restock))
        if first > added + ARRIVES + restock.period:
            raise Failed(f"{restock.name} ran {first - added:.1f} s after it had been added")
        self._entries.append(replace(restock, since=first))
        self._show.event(f"{restock.name} runs, {first - added:.1f} s after it was added", "green")

        self._steady(self.board.phase, disabled + ARRIVES + 2 * sessions.period - time.time())
        last = max(self._runs(sessions))
        if last > disabled + ARRIVES:
            raise Failed(f"{sessions.name} ran {last - disabled:.1f} s after it had been disabled")
        after = f"its last run {last - disabled:.1f} s later" if last > disabled else "no run since"
        self._show.event(f"{sessions.name} is disabled: {after}", "green")

    def _runs(self, entry: Entry) -> list[float]:
        return [run.received for run in self._journal.deliveries if run.entry == entry.name]


class Admin:
    """Uses Django's admin as a browser does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._cookies = http.cookiejar.CookieJar()
        handler = urllib.request.HTTPCookieProcessor(self._cookies)
        no_proxy = urllib.request.ProxyHandler({})
        self._opener = urllib.request.build_opener(handler, no_proxy)

    def answers(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(self._get("login/"))
        return False

    def log_in(self, password: str) -> None:
        self._post("login/", username=USER, password=password, next=self.url)

    def act(self, action: str, name: str) -> None:
        """Does what the list of periodic tasks offers, to one task."""
        self._post(_TASKS, action=action, _selected_action=str(_task(name).pk))

    def add(self, name: str, task: str, like: str) -> None:
        """Adds a periodic task with the interval of another."""
        interval = str(_task(like).interval_id)
        fields = {"name": name, "task": task, "interval": interval, "enabled": "on"}
        self._post(f"{_TASKS}add/", **fields, args="[]", kwargs="{}", headers="{}")

    def _get(self, path: str) -> str:
        with self._opener.open(self.url + path, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def _post(self, path: str, **fields: str) -> None:
        """Raises Failed where the admin does not do it."""
        token = next(c.value for c in self._cookies if c.name == "csrftoken")
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        try:
            with self._opener.open(self.url + path, data, timeout=PATIENCE) as answer:
                refused = b"errornote" in answer.read()
        except urllib.error.URLError as exc:
            raise Failed(f"the admin answers {exc} at {path}") from None
        if refused:
            raise Failed(f"the admin refuses {fields} at {path}")


#: The path of the list of periodic tasks.
_TASKS = "django_celery_beat/periodictask/"


def _task(name: str) -> PeriodicTask:
    from django_celery_beat.models import PeriodicTask

    return PeriodicTask.objects.get(name=name)


if __name__ == "__main__":
    sys.exit(main(DjangoDemo, "example_project.django_demo", __doc__))
