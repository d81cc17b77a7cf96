"""Size of the pages of run states, with all that is remembered of past runs, and what they cost:
one claim rewrites a page, a take-over reads all of them."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from datetime import datetime, timezone

from celery_zk_beat import MasterElection
from celery_zk_beat.history import share
from celery_zk_beat.ledger import BELOW_ROOT, RunLedger
from celery_zk_beat.limits import MOST_RUNS
from celery_zk_beat.paths import page_of
from celery_zk_beat.runs import HISTORY, Run
from example_project.servers import ZooKeeper

from .bench import PATIENCE

ENTRIES = (100, 10_000, 100_000)
CLAIMS = 50


def main() -> int:
    print("| entries | pages | bytes, median | bytes, max | claim of one run | reading all |")
    print("|---|---|---|---|---|---|")
    for count in ENTRIES:
        with tempfile.TemporaryDirectory() as folder, ZooKeeper(folder) as server:
            print("|", " | ".join(measure(count, server.start().hosts)), "|", flush=True)
    return 0


def measure(count: int, hosts: str) -> list[str]:
    now = datetime.now(timezone.utc)
    names = [f"billing.customer-{n:06}.invoice" for n in range(count)]
    with MasterElection(hosts, "/pages", below=BELOW_ROOT) as election:
        assert election.wait(PATIENCE)
        term = election.term
        assert term is not None
        ledger = RunLedger(election)
        ledger.load(term)
        ledger.first_seen(dict.fromkeys(names, now))
        rounds = fill(ledger, names, term.epoch)
        claims = []
        for name in names[:CLAIMS]:
            begun = time.perf_counter()
            (run,) = ledger.claim([Run(name, rounds + 1, now, now, term.epoch)])
            claims.append(time.perf_counter() - begun)
            ledger.published(run, run.claimed)
        ledger.flush()
        session, paths = election.session, election.paths
        pages = session.read_all([paths.page(name) for name in session.children(paths.runs)])
        begun = time.perf_counter()
        ledger.load(term)
        loading = time.perf_counter() - begun
    sizes = [len(page.data) for page in pages if page is not None]
    return [
        f"{count:,}",
        str(len(sizes)),
        f"{statistics.median(sizes):,.0f}",
        f"{max(sizes):,}",
        f"{1000 * statistics.median(claims):.1f} ms",
        f"{loading:.2f} s",
    ]


def fill(ledger: RunLedger, names: list[str], epoch: int) -> int:
    """Has each entry run so often that no more of its past is remembered; says how often."""
    now = datetime.now(timezone.utc)
    rounds = share(len(names) // 256) if len(names) > 256 else HISTORY
    names = sorted(names, key=page_of)  # or each batch would touch all pages
    for number in range(1, rounds + 1):
        left = [Run(name, number, now, now, epoch) for name in names]
        while left:
            claimed = ledger.claim(left[:MOST_RUNS])
            for run in claimed:
                ledger.published(run, run.claimed)
            done = {run.entry for run in claimed}
            left = [run for run in left[:MOST_RUNS] if run.entry not in done] + left[MOST_RUNS:]
    return rounds


if __name__ == "__main__":
    sys.exit(main())
