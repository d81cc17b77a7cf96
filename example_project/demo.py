"""Shows a failover: ``python -m example_project.demo`` (or ``make demo``), about 70 seconds.

Starts a ZooKeeper, a Redis, two workers and three beats of the example project on free ports, in
a temporary folder. Adds a live entry while they run. Kills the master, stops the next one, starts
both again. Then prints how long each take-over took, and whether any run was lost or made twice.
That includes the runs of the added entry. The session time-out is the default, 10 s: a standby
replaces the killed master long before that.

Exit status: 0 no run was lost or made twice; 1 one was, or something else went wrong; 2 something
is not installed; 130 Ctrl-C. In every case all processes have ended.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .play import Play, main

if TYPE_CHECKING:
    from .verdict import Entry, Verdict

STEADY = 10.0  # Seconds between two faults.
#: Seconds from the first election to the end: long enough for a minute to begin well inside.
LENGTH = 62.5


class Demo(Play):
    """Three beats of the example project."""

    app = "example_project.app"
    name = "example"

    def schedule(self) -> dict[str, Entry]:
        from .app import app
        from .verdict import Entry

        return {
            entry["task"].rpartition(".")[2]: Entry(name, entry["schedule"])
            if isinstance(entry["schedule"], float)
            else Entry(name, 60, on_the_minute=True)
            for name, entry in app.conf.beat_schedule.items()
        }

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        # The file for a picture of the live view after the second fault.
        parser.add_argument("--svg", type=Path, help=argparse.SUPPRESS)

    def run(self) -> Verdict:
        self._start_servers()
        self._start_workers()
        started = self._start_beats(3)
        self._steady("all is well", STEADY / 2)
        self._add("orders", 3.0)
        self._steady("there is one entry more", STEADY / 2)
        self._fault(signal.SIGKILL, "the master is killed")
        self._steady("the successor goes on", STEADY)
        self._fault(signal.SIGTERM, "the next master is stopped")
        self._steady("the last one goes on", STEADY / 2)
        if self._options.svg:
            from .view import save_svg

            save_svg(self.board, self._options.svg)
        self._phase("both start again")
        self._restart()
        self._show.event("three beats again, still one master")
        self._steady("three beats again", started + LENGTH - time.time())
        return self._stop(started)

    def _add(self, name: str, period: float) -> None:
        """Adds a live entry, as a web application would. Later masters have it, too."""
        from celery_zk_beat import Entries
        from celery_zk_beat.schedules import every

        from .app import app, orders
        from .verdict import Entry

        app.conf.zk_beat_hosts = self._env["ZK_BEAT_HOSTS"]
        with Entries(app, by="demo") as entries:
            entries.put(name, task=orders.name, schedule=every(period))
        self._entries.append(Entry(name, period, since=time.time()))
        self._show.event(f"a live entry is added: {name}, every {period:g} s", "bold blue")


if __name__ == "__main__":
    sys.exit(main(Demo, "example_project.demo", __doc__))
