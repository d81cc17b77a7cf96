"""Run as many ``celery beat`` processes as you like: ZooKeeper elects the one that dispatches.

The names here are the public ones; everything else may change without notice.
"""

from .election import MasterElection
from .errors import ConnectTimeout, RootError, SettingsError, UnsupportedEnvironment, ZkBeatError
from .schedulers import ZooKeeperScheduler
from .version import __version__

__all__ = [
    "ConnectTimeout",
    "MasterElection",
    "RootError",
    "SettingsError",
    "UnsupportedEnvironment",
    "ZkBeatError",
    "ZooKeeperScheduler",
    "__version__",
]
