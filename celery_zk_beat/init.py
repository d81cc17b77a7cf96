"""The first process of a container, with a program as its child.

    python -m celery_zk_beat.init celery -A proj beat ...

When the first process of a container ends the kernel ends all others in it, so a beat that is the
first takes its guard along. This one passes signals on to its child, reaps what others leave
behind, and waits, when the child has ended, until the guard has done its work. Then it ends as the
child did: with its status, or 128 and the signal that ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

#: Seconds for which the guard, and whatever else is there, is waited for.
_LASTS = 6.0
#: Linux, prctl(2): orphans become children of this process, though it be not the first.
_SET_CHILD_SUBREAPER = 36
#: Faults of this process' own, and what a terminal does to a process in its background.
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
#: As a shell's, where the program is not there.
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
        # In a group of its own, or a terminal's Ctrl-C would reach it twice.
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
    """Passes signals on until the child ends; returns how it did."""
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
    """Returns pid and status of all that have ended; and whether others are left."""
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
