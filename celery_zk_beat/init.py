"""The first process of a container, with a program as its child.

    python -m celery_zk_beat.init celery -A proj beat ...

When the first process of a container ends, the kernel ends all others in it. So if beat itself were
the first, its guard would end with it. This process passes signals to its child and reaps orphans.
When the child has ended, it waits until the guard has done its work. Then it exits with the child's
status, or with 128 plus the number of the signal that ended the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

#: How many seconds we wait for the guard and other processes that are left.
_LASTS = 6.0
#: Linux, prctl(2): orphans become children of this process, even if it is not the first.
_SET_CHILD_SUBREAPER = 36
#: Faults of this process itself, and what a terminal sends to a background process.
_NOT_PASSED_ON = (
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGTRAP,
    signal.SIGABRT,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
#: What a shell returns if the program does not exist.
_NO_PROGRAM = 127


def main(command: list[str]) -> int:
    if not command:
        print("usage: python -m celery_zk_beat.init PROGRAM [ARGUMENT ...]", file=sys.stderr)
        return 2
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = {int(each) for each in signal.valid_signals() if each not in _NOT_PASSED_ON}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        # In a process group of its own: else a terminal's Ctrl-C would reach it twice.
        child = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
        )
    except OSError as exc:
        print(f"{command[0]}: {exc.strerror}", file=sys.stderr)
        return _NO_PROGRAM
    status = _serve(child, signals)
    _wait_for_the_rest()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _serve(child: int, signals: set[int]) -> int:
    """Passes signals on until the child ends. Returns the child's wait status."""
    while True:
        number = signal.sigwait(signals)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        ended, _ = _reap()
        if child in ended:
            return ended[child]


def _wait_for_the_rest() -> None:
    signal.setitimer(signal.ITIMER_REAL, _LASTS)
    while _reap()[1]:
        if signal.sigwait({signal.SIGCHLD, signal.SIGALRM}) == signal.SIGALRM:
            return


def _reap() -> tuple[dict[int, int], bool]:
    """Reaps all processes that have ended. Returns their pids and statuses, and whether others are
    left."""
    ended: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return ended, True
            ended[pid] = status
    except ChildProcessError:
        return ended, False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
