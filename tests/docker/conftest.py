"""The fixtures, where what they need is installed; elsewhere each test is skipped before it would
ask for one."""

from __future__ import annotations

from .engine import INSTALLED

if INSTALLED:
    from .stack import *  # noqa: F403
