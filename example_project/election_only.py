"""An election without Celery, for any program of which only one copy may work at a time.

You need a ZooKeeper on localhost. Start this program twice, in two terminals. Then kill the first
(even with ``kill -9``) and watch the second go on::

    python -m example_project.election_only
    python -m example_project.election_only localhost:2181 --session-timeout 4
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from celery_zk_beat import MasterElection, ZkBeatError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("hosts", nargs="?", default="localhost:2181")
    parser.add_argument("--root", default="/election-only")
    parser.add_argument("--session-timeout", type=float, default=4.0, metavar="SECONDS")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        election = MasterElection(
            options.hosts, options.root, session_timeout=options.session_timeout
        )
        election.start(timeout=3)
    except ZkBeatError as exc:
        print(exc, file=sys.stderr)
        return 1
    with election:
        try:
            while True:
                if election.wait(timeout=60):
                    work(election.epoch)
        except KeyboardInterrupt:
            return 0


def work(epoch: int | None) -> None:
    """Does one step of the work. A receiver should refuse an older epoch than the last one."""
    logging.info("working as master, epoch %s", epoch)
    time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
