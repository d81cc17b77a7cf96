"""Runs blocks of Python, page by page, each page in its own process: `python -m tests.unit.blocks`.
Reads {page: [[line, text], ...]} as JSON from standard input. Prints what each block raised: {page:
{line: error}}.

The blocks of a page run one after another, as a reader would run them, in a module `proj` that has
an `app`. If they change its settings, these are checked as beat checks them at its start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import types
from typing import Any

from celery import Celery

from celery_zk_beat.settings import Settings

#: The longest time for a block: on a busy machine the first one imports much.
SECONDS = 20


def too_long(*_: object) -> None:
    raise TimeoutError(f"not done after {SECONDS} s: does it wait for a server?")


def proj() -> types.ModuleType:
    module = types.ModuleType("proj")
    sys.modules["proj"] = module
    module.app = Celery("proj", set_as_current=True)  # type: ignore[attr-defined]
    return module


def run(blocks: list[tuple[int, str]], page: str) -> dict[int, str]:
    module = proj()
    errors = {}
    signal.signal(signal.SIGALRM, too_long)
    for line, text in blocks:
        # For tracebacks: the lines of the page.
        code = compile("\n" * line + text, page, "exec")
        signal.alarm(SECONDS)
        try:
            exec(code, module.__dict__)
            given = [name for name in module.__dict__ if name.startswith("CELERY_")]
            if given:  # Django's settings
                module.app.config_from_object(module, namespace="CELERY", force=True)
            Settings.from_app(module.app)
        except BaseException as exc:
            at = [each.lineno for each in traceback.extract_tb(exc.__traceback__)]
            errors[line] = f"{page}:{at[-1] if at else line}: {type(exc).__name__}: {exc}"
    return errors


def main() -> None:
    found: dict[str, Any] = {}
    for page, blocks in json.load(sys.stdin).items():
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(into, json.dumps(run(blocks, page)).encode())
            os._exit(0)
        os.close(into)
        with os.fdopen(out) as answer:
            found[page] = json.loads(answer.read() or '{"0": "the process died"}')
        os.waitpid(pid, 0)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
