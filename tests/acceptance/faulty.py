"""A scheduler that kills its process when it dispatches for the second time, at the step that the
environment variable FAULT names."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.loop import Loop
from celery_zk_beat.runs import Run


class Faulty(ZooKeeperScheduler):
    @functools.cached_property
    def _loop(self) -> Loop:
        loop = super()._loop
        ledger, publisher = loop.ledger, loop.dispatcher.publisher
        batch: list[Run] = []

        def second() -> bool:
            return any(run.number == 2 for run in batch)

        def dies(step: str, when: Callable[[], bool] = second) -> None:
            if os.environ["FAULT"] == step and when():
                os.kill(os.getpid(), signal.SIGKILL)

        write, claim = ledger._send, ledger.claim

        def after_write(states: Any, outbox: Any, *also: Any) -> Any:
            pending = write(states, outbox, *also)
            if states:
                batch[:] = ledger._claiming.values()
                dies("claim sent")
            return pending

        def after_claim(runs: Sequence[Run], *also: Any, **more: Any) -> list[Run]:
            claimed: list[Run] = claim(runs, *also, **more)
            batch[:] = claimed
            dies("claim acknowledged")
            return claimed

        def after_made(run: Run, send: Any, make: Any = publisher._send) -> None:
            make(run, send)
            dies("first made")

        def after_publish(
            runs: list[Run], left: datetime, note: Any = publisher._note_published
        ) -> None:
            dies("published", lambda: second() and len(runs) == len(ledger.outbox))
            note(runs, left)

        def before_confirm(confirm: Any = ledger.confirm) -> None:
            dies("before the last confirm", lambda: second() and not ledger.outbox)
            confirm()

        vars(ledger).update(_send=after_write, claim=after_claim, confirm=before_confirm)
        vars(publisher).update(_send=after_made, _note_published=after_publish)
        return loop
