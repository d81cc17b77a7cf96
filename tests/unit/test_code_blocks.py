"""What README and the docs say to type works: Python, settings, commands, make targets.

A block of Python is run, after the blocks above it on its page. One that cannot has a comment
above it that says why: `<!-- not run: it needs a server -->`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import click
import pytest
import yaml
from markdown_it import MarkdownIt

from celery_zk_beat.cli import zk_beat
from celery_zk_beat.settings import Settings
from example_project.processes import REPOSITORY
from website import pages

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "benchmarks/README.md",
    *(f"docs/{page}" for page in pages.names_in_docs()),
]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    #: Why it is not run.
    mark: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    mark = None
    for token in MARKDOWN.parse(text):
        if token.type == "fence" and token.map:
            yield Block(page, token.map[0] + 1, token.info, token.content, mark)
        found = re.match(r"<!-- not run: (.+) -->", token.content)
        mark = found[1] if found and token.type == "html_block" else None


BLOCKS = [block for page in PAGES for block in blocks_of(page, (REPOSITORY / page).read_text())]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def test_what_a_block_is() -> None:
    text = "<!-- not run: why -->\n```python\na\n```\n- b\n\n  ```console\n  c\n  ```\n"
    assert [*blocks_of("p", text)] == [
        Block("p", 2, "python", "a\n", "why"),
        Block("p", 7, "console", "c\n", None),
    ]


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, str]]:
    by_page: dict[str, list[tuple[int, str]]] = {}
    for block in PYTHON:
        if block.mark is None:
            by_page.setdefault(block.page, []).append((block.line, block.text))
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.blocks"],
        input=json.dumps(by_page),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, errors: dict[str, dict[str, str]]) -> None:
    tree = ast.parse(textwrap.dedent(block.text))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("celery_zk_beat"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), name.name
    if block.mark is None:
        error = errors[block.page].get(str(block.line))
        if error and "ModuleNotFoundError" in error and not os.environ.get("CI"):
            pytest.skip(error)  # a tool that a page tells of
        assert error is None


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page: str) -> None:
    """Where a setting is given a value: in Python, a diff, a line of text."""
    text = (REPOSITORY / page).read_text()
    for name in re.findall(r"\b(?:conf\.|CELERY_)(zk_beat_\w+)(?= *=)", text, re.IGNORECASE):
        assert name.lower() in Settings._names()


def typed(block: Block) -> Iterator[str]:
    """The commands: those after a `$`, or each line where there is none."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    yield from prompted or lines


def words_of(command: str) -> Iterator[list[str]]:
    """Of a line, as a shell splits it, without comments."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # text that runs over several lines
        words = command.split()
    part: list[str] = []
    for word in [*words, ";"]:
        if word in ("|", "||", "&&", ";", "&"):
            if part:
                yield part
            part = []
        else:
            part.append(word)


def console() -> Iterator[tuple[Block, list[str]]]:
    for block in BLOCKS:
        if block.language in ("console", "bash", "sh"):
            for command in typed(block):
                for words in words_of(command):
                    yield block, words


def in_text() -> Iterator[tuple[str, list[str]]]:
    """Commands that stand in a sentence: `make demo`."""
    for page in PAGES:
        for token in MARKDOWN.parse((REPOSITORY / page).read_text()):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield from ((page, words) for words in words_of(child.content))


COMMANDS = [*((str(block), words) for block, words in console()), *in_text()]
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))


def test_make_targets_exist() -> None:
    found = [
        (where, word)
        for where, words in COMMANDS
        if words[0] == "make" and len(words) > 1
        for word in words[1:]
        if re.fullmatch(r"[a-z-]+", word)
    ]
    assert found
    assert [each for each in found if each[1] not in TARGETS] == []


def test_modules_exist() -> None:
    found = [
        (where, words[at + 1])
        for where, words in COMMANDS
        for at, word in enumerate(words[:-1])
        if word == "-m" and "python" in words[at - 1]
    ]
    ours = ("benchmarks", "celery_zk_beat", "example_project", "tests", "website")
    found = [(where, name) for where, name in found if name.partition(".")[0] in ours]
    assert found
    for where, name in found:
        assert importlib.util.find_spec(name), (where, name)


def zk_beat_commands() -> Iterator[tuple[str, list[str]]]:
    for where, words in COMMANDS:
        if "zk-beat" in words and (words[0] == "zk-beat" or "celery" in words[0]):
            rest = words[words.index("zk-beat") + 1 :]
            if rest and rest[0] not in ("...", "…", "COMMAND", "--help"):
                yield where, rest


@pytest.mark.parametrize(
    ("where", "words"),
    [*zk_beat_commands()],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_commands(where: str, words: list[str]) -> None:
    """They have these names, options and arguments."""
    name, *rest = words
    with click.Context(zk_beat, info_name="zk-beat") as parent:
        command = zk_beat.get_command(parent, name)
        assert command is not None, f"{where}: {name}"
        if not rest and not where.rpartition(":")[2].isdigit():
            return  # only its name, in a sentence
        options = [each for param in command.params for each in param.opts + param.secondary_opts]
        for word in rest:
            assert not word.startswith("--") or word.partition("=")[0] in options, (where, word)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in ("json", "yaml", "toml")], ids=str
)
def test_data(block: Block) -> None:
    if block.language == "json":
        for line in block.text.splitlines() if "\n{" in block.text else [block.text]:
            json.loads(line)
    elif block.language == "yaml":
        [*yaml.safe_load_all(block.text)]
    else:
        pytest.fail("what is to be done with TOML?")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "properties"], ids=str)
def test_no_comment_after_a_value(block: Block) -> None:
    """ZooKeeper would take it as part of the value, and not start."""
    for line in block.text.splitlines():
        assert re.fullmatch(r"#.*|[\w.]+=\S+", line), line
