"""Links within the documentation lead somewhere, and its tables are those that were measured."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_zk_beat
from benchmarks import tables
from celery_zk_beat import ZooKeeperScheduler
from celery_zk_beat.settings import Settings
from example_project.processes import REPOSITORY
from website import pages

PAGES = sorted(
    path for pattern in ("*.md", "*/*.md", "docs/*/*.md") for path in REPOSITORY.glob(pattern)
)
PACKAGE = Path(celery_zk_beat.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links(page: Path) -> None:
    for link in pages.links(page.read_text()):
        if pages.is_outside(link):
            continue
        target = REPOSITORY / pages.target(str(page.relative_to(REPOSITORY)), link)
        anchor = link.partition("#")[2]
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target.read_text()), link


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_architecture_names_each_module(module: Path) -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    table = page[page.index("## Modules") : page.index("## Znodes")]
    place = module.relative_to(PACKAGE)
    if place.parent == Path():
        assert f"`{place}`" in table
    else:
        (row,) = re.findall(rf"^\| `{place.parent}/` .*$", table, re.M)
        assert f"`{place.stem}`" in row


def test_the_page_of_the_api_names_all_of_it() -> None:
    """Of the scheduler also what is no API, with who looks at it."""
    page = (REPOSITORY / "docs" / "api.md").read_text()
    attributes = re.findall(r"self\.(\w+)[^=\n]* = ", inspect.getsource(ZooKeeperScheduler))
    names = {*celery_zk_beat.__all__, *vars(ZooKeeperScheduler), *attributes}
    assert {"settings", "election"} <= names
    for name in names:
        assert name.startswith("_") or f"`{name}`" in page, name


def test_the_page_of_settings_has_each_with_its_default() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(zk_beat_\w+)` \| (.*?) \|", page, re.M))
    assert {*rows} == {*Settings._names()}
    defaults = Settings.from_mapping({}, "shop")
    filled = {"<app name>": "shop", "<host>:<pid>": defaults.id}
    for name, written in rows.items():
        default = getattr(defaults, name.replace("zk_beat_", ""))
        for blank, value in filled.items():
            written = written.replace(blank, value)
        assert written.strip('`"') == ("{}" if name == "zk_beat_policies" else str(default)), name
    assert not defaults.policies.parts


RESULTS = REPOSITORY / "benchmarks" / "results"
#: How the line before a table of docs/performance.md begins, and that of what it is a copy of.
COPIES = {
    "N entries come due at one instant; messages a second": "All due at one instant",
    "In the same bursts, ms of processor time": "Processor time of the beat, ms a message",
    "An idle tick, µs by the clock": "Wall clock",
    "10,000 entries of 60 s": "The share of the runs that came due",
    "One entry of 1 s": "Lateness against a clock",
    "What ours was to reach": "## Ours, and what it must reach",
    "Start of a process with stored state": "From the start of the process to its first message",
    "Take-over by a standby": "SIGTERM and SIGKILL in turn",
}


def tables_of(page: Path) -> Iterator[tuple[str, str]]:
    """Each with the last line of text before it."""
    for match in re.finditer(
        r"^(?P<before>[^|\n]+)\n+(?P<table>(?: *\|.*\n)+)", page.read_text(), re.M
    ):
        yield match["before"], match["table"]


def test_the_tables_are_those_of_the_results() -> None:
    """results.json -> the README beside it -> docs/performance.md."""
    saved = json.loads((RESULTS / "results.json").read_text())
    images = [
        image
        for image in ("burst", "idle", "spread", "drift")
        if (RESULTS / f"{image}.svg").exists()
    ]
    assert (RESULTS / "README.md").read_text() == tables.text(
        saved["about"], saved["results"], images
    )
    measured = dict(tables_of(RESULTS / "README.md"))
    copied = dict(tables_of(REPOSITORY / "docs" / "performance.md"))
    for caption, of in COPIES.items():
        (copy,) = [table for before, table in copied.items() if before.startswith(caption)]
        (table,) = [table for before, table in measured.items() if before.startswith(of)]
        assert copy == table, caption


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_table_is_copied_elsewhere(page: Path) -> None:
    """A table with the titles of a measured one is that, under a line that says what it shows."""
    titles = {table.splitlines()[0] for _, table in tables_of(RESULTS / "README.md")}
    for before, table in tables_of(page):
        if page.parent != RESULTS and table.splitlines()[0] in titles:
            assert page.name == "performance.md"
            assert before.startswith(tuple(COPIES)), before
