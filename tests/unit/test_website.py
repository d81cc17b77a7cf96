"""The site has all pages, and shows them as the repository does. `make docs` checks the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from example_project.processes import REPOSITORY
from website import check, commands, pages

SITE = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
#: Made while the site is built.
MADE = {"commands.md", "python.md"}


def in_nav(nav: Any) -> Iterator[str]:
    for each in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(each, str):
            yield each
        else:
            yield from in_nav(each)


def test_each_page_is_in_nav_once() -> None:
    """A new page of docs/ needs a line in mkdocs.yml, under the purpose that it serves."""
    found = [*in_nav(SITE["nav"])]
    pages_there = {*pages.names_in_docs(), *pages.MOVED.values(), *MADE}
    assert {*found} ^ pages_there == set(), "to be added to `nav` in mkdocs.yml, or taken out"
    assert len(found) == len(pages_there)


def test_each_file_that_a_page_links_to_is_there() -> None:
    for path in pages.sources():
        assert (REPOSITORY / path).exists(), path


def test_nothing_is_asked_of_other_hosts() -> None:
    """Fonts, and a repository's address, with which the theme asks how it is starred."""
    assert SITE["theme"]["font"] is False
    assert not {"repo_url", "extra_javascript", "extra_css"} & {*SITE}


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("guarantees.md#x", "guarantees.md#x"),
        ("../README.md#settings", "index.md#settings"),
        ("../CHANGELOG.md", "changelog.md"),
        ("deploy/celery-beat.service", "deploy/celery-beat.service"),
        ("../tests/zones.py", "source/tests/zones.py.md"),
        ("../tests/contract", "source/tests/contract.md"),
        ("../benchmarks/results/burst.svg", "source/benchmarks/results/burst.svg"),
        ("#here", "#here"),
        ("https://zookeeper.apache.org", "https://zookeeper.apache.org"),
    ],
)
def test_where_links_lead(link: str, leads: str) -> None:
    assert pages.for_the_site("docs/security.md", f"[a]({link})\n") == f"[a]({leads})\n"


def test_links_of_a_page_in_a_folder() -> None:
    text = "[a](../docs/status.md) and ![b](results/idle.svg)\n"
    assert pages.for_the_site("benchmarks/README.md", text) == (
        "[a](../status.md) and ![b](../source/benchmarks/results/idle.svg)\n"
    )


def test_pages_have_titles() -> None:
    """Where the text is the name of a file."""
    text = "[../CHANGELOG.md](../CHANGELOG.md#a), [policies.md](policies.md), [b.md](api.md)\n"
    assert pages.for_the_site("docs/security.md", text) == (
        "[Changelog](changelog.md#a), [Policies](policies.md), [b.md](api.md)\n"
    )


def test_commands_without_a_prompt_are_no_output() -> None:
    typed, shown = "```console\nmake unit\n```\n", "```console\n$ make\nyes\n```\n"
    assert pages.for_the_site("docs/api.md", typed) == "```bash\nmake unit\n```\n"
    assert pages.for_the_site("docs/api.md", shown) == shown


def test_code_is_left_alone() -> None:
    text = "```python\na = b[c](../README.md)\n# 1. one\n```\n"
    assert pages.for_the_site("docs/security.md", text) == text


def test_lists() -> None:
    """The site's parser wants four blanks and blank lines where GitHub's does not."""
    written = (
        "Text\n- one\n  more\n\n  ```\n  code\n    more\n  ```\n- two\n  - three\n1. a\n   b\n"
    )
    assert pages.for_the_site("docs/security.md", written) == (
        "Text\n\n- one\n    more\n\n    ```\n    code\n      more\n    ```\n\n- two\n    - three\n"
        "\n1. a\n    b\n"
    )
    assert pages.for_the_site("docs/security.md", "It was\n250. More\n") == "It was\n250\\. More\n"


def test_anchors_are_those_of_github() -> None:
    text = "# What happens when …\n## `zk_beat_tls`\n## A [link](b.md)\n## A link\n```\n# no\n```\n"
    assert pages.anchors(text) == {"what-happens-when-", "zk_beat_tls", "a-link", "a-link-1"}


def test_the_page_of_commands() -> None:
    text = commands.page()
    assert "\n## status\n\n```text\ncelery -A proj zk-beat status [OPTIONS]\n" in text
    assert "```console\n$ celery -A proj zk-beat status\n" in text  # an example
    assert "\n| `--timeout SECONDS` | How" in text
    assert "\b" not in text


GOOD = '<article><h1 id="top">A</h1><a href="b.html#there">b</a><img src="c.png"></article>'


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (GOOD, ""),
        (GOOD.replace("#there", "#gone"), "a.html: no such anchor: b.html#gone"),
        (GOOD.replace("b.html", "d.html"), "a.html: leads nowhere: d.html#there"),
        (GOOD.replace("c.png", "d.png"), "a.html: leads nowhere: d.png"),
        ('<script src="https://a.b/c.js">', "a.html: is loaded from elsewhere: https://a.b/c.js"),
        ('<link rel="preconnect" href="//a.b">', "a.html: is loaded from elsewhere: //a.b"),
    ],
)
def test_what_is_wrong_with_a_site(tmp_path: Path, page: str, complaint: str) -> None:
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<h2 id="there">B</h2>')
    (tmp_path / "c.png").touch()
    read = {path.resolve(): check.Page(path) for path in tmp_path.glob("*.html")}
    assert [*check.broken(tmp_path, read)] == [complaint] * bool(complaint)
