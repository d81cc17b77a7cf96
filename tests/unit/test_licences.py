"""docs/licences.md names what each extra brings."""

from __future__ import annotations

import re
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement

from example_project.processes import REPOSITORY
from tests import licences

#: Wanted by redis before Python 3.11.3 alone.
BACKPORTS = {"async-timeout"}


def named(page: str) -> dict[str, set[str]]:
    """The packages of each extra; with "" those that are always there."""
    _, *sections = re.split(r"^## (.*)$", page, flags=re.M)
    return {
        "" if title == "Always" else title.strip("[]"): {*re.findall(r"^\| `(.*?)`", table, re.M)}
        - BACKPORTS
        for title, table in zip(sections[::2], sections[1::2])
    }


def test_the_page_is_current() -> None:
    page = licences.PAGE.read_text()
    if licences.made() not in page:
        pytest.skip(f"this is {licences.made()}, and the page is of others")
    assert named(page) == named(licences.page())


def test_it_has_what_is_asked_for() -> None:
    """In any environment: what pyproject.toml names."""
    found = named(licences.PAGE.read_text())
    for text in distribution("celery-zk-beat").requires or ():
        need = Requirement(text)
        for extra in licences.EXTRAS:
            if need.marker is None or (extra and need.marker.evaluate({"extra": extra})):
                there = found[extra if need.marker else ""] | found[""]
                assert licences.canonical(need.name) in there, (extra, text)


def test_it_has_the_extras_of_users() -> None:
    api = (REPOSITORY / "docs" / "api.md").read_text()
    (row,) = re.findall(r"^\| the extras (.*?) \|", api, re.M)
    assert {*re.findall(r"`(.*?)`", row), ""} == set(named(licences.PAGE.read_text()))
