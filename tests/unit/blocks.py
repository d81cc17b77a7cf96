"""Runs blocks of Python, page by page, each page in a process of its own: `python -m
tests.unit.blocks`, with {page: [[line, text], ...]} as JSON on its standard input. Prints what each
raised, {page: {line: error}}.

The blocks of a page run one after another, as a reader has them, in a module `proj` that has an
`app`. What they make of its settings is checked as beat checks it at its start.
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

#: Most for a block: on a busy machine the first one imports much.
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
        # The lines of the page, in tracebacks.
        code = compile("\n" * line + text, page, "exec")
        signal.alarm(SECONDS)
        try:
            exec(code, module.__dict__)
            given = [name for name in module.__dict__ if name.startswith("CELERY_")]
            if given:  # a settings module of Django
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
