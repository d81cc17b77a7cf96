"""Which files become pages, and what has to change in their text. Knows nothing of MkDocs.

The Markdown files are written for whoever reads them in the repository. On the site some of them
have another place, links out of docs/ lead to a copy of the file, and the parser is a stricter one.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPOSITORY = Path(__file__).parent.parent
DOCS = "docs"

#: Pages of files outside of docs/: the file, and what it is called on the site.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/results/README.md": "benchmarks/results.md",
}
#: Where on the site the copies are of files and folders that pages link to.
SOURCE = "source"
#: Of which a page shows the text; anything else is copied as it is.
LANGUAGES = {
    "": "text",
    ".diff": "diff",
    ".py": "python",
    ".service": "ini",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
}

_LINK = re.compile(r"(?P<text>\[[\w./-]+\.md)?\]\((?P<to>[^)\s]+)\)")
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_ITEM = re.compile(r" *([-*+]|\d+[.)]) +")


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a page, each with whether it is prose and no code."""
    fence = None
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence is None and found:
            fence = found[1]
            yield line, False
        elif fence is not None:
            if found and found[1].startswith(fence) and not line.strip(" `~\n"):
                fence = None
            yield line, False
        else:
            yield line, True


def anchors(text: str) -> set[str]:
    """All that a link into a page may end with. Headings of one name get numbers, as on GitHub."""
    found: set[str] = set()
    for line, is_prose in prose(text):
        heading = re.match(r"#+ (.*)$", line) if is_prose else None
        if heading:
            name = made = slug(re.sub(r"\]\([^)]*\)", "", heading[1]))
            number = 0
            while made in found:
                number += 1
                made = f"{name}-{number}"
            found.add(made)
    return found


def links(text: str) -> Iterator[str]:
    """The targets of a page's links and pictures, in the order in which they stand there."""
    for line, is_prose in prose(text):
        if is_prose:
            for found in _LINK.finditer(line):
                yield found["to"]


def is_outside(link: str) -> bool:
    """Whether it leads to another site."""
    return re.match(r"[a-z]+:", link) is not None


def target(page: str, link: str) -> str:
    """The path in the repository that a link of a page leads to."""
    path = link.partition("#")[0]
    return os.path.normpath(PurePosixPath(page).parent / path) if path else page


def place(path: str) -> str:
    """Where a file or folder of the repository is found on the site."""
    if path in MOVED:
        return MOVED[path]
    if path == DOCS or path.startswith(f"{DOCS}/"):
        return path[len(DOCS) + 1 :]
    if (REPOSITORY / path).is_dir() or PurePosixPath(path).suffix in LANGUAGES:
        return f"{SOURCE}/{path}.md"
    return f"{SOURCE}/{path}"


def sources() -> set[str]:
    """The files and folders outside of docs/, and no pages, to which pages link."""
    pages = [*MOVED, *(f"{DOCS}/{page}" for page in names_in_docs())]
    found = {
        target(page, link)
        for page in pages
        for link in links((REPOSITORY / page).read_text())
        if not is_outside(link)
    }
    found = {path for path in found if path not in MOVED and not path.startswith(f"{DOCS}/")}
    for folder in [path for path in found if (REPOSITORY / path).is_dir()]:
        found |= {f"{folder}/{name}" for name in _files(folder)}
    return found


def names_in_docs() -> list[str]:
    """The pages in docs/, by their paths there."""
    folder = REPOSITORY / DOCS
    return sorted(page.relative_to(folder).as_posix() for page in folder.rglob("*.md"))


def _files(folder: str) -> list[str]:
    """Those directly in a folder of which a page shows the text."""
    return sorted(
        path.name
        for path in (REPOSITORY / folder).iterdir()
        if path.is_file() and path.suffix in LANGUAGES
    )


def of_source(path: str) -> str:
    """The page of a file or a folder: its text, or the names of its files."""
    head = "---\nsearch:\n  exclude: true\nhide:\n  - navigation\n  - toc\n---\n\n"
    if (REPOSITORY / path).is_dir():
        name = PurePosixPath(path).name
        files = "".join(f"- [{file}]({name}/{file}.md)\n" for file in _files(path))
        return f"{head}# {path}/\n\n{files}"
    text = (REPOSITORY / path).read_text()
    fence = "`" * (1 + max([3, *map(len, re.findall(r"`+", text))]))
    language = LANGUAGES[PurePosixPath(path).suffix]
    return f"{head}# {path}\n\n{fence}{language}\n{text}{fence}\n"


def for_the_site(page: str, text: str) -> str:
    """The text of a page (its path in the repository), for its place on the site."""
    return _indented(_moved(page, text))


def title(page: str) -> str:
    """By which the site calls a page where the text has the name of its file."""
    first = (REPOSITORY / page).read_text().lstrip("# ").partition("\n")[0]
    return first.partition(":")[0]


def _moved(page: str, text: str) -> str:
    here = PurePosixPath(place(page)).parent

    def leads(found: re.Match[str]) -> str:
        text, link = found["text"] or "", found["to"]
        if is_outside(link) or link.startswith("#"):
            return found[0]
        path = target(page, link)
        if text and PurePosixPath(text[1:]).name == PurePosixPath(path).name:
            text = f"[{title(path)}"
        anchor = "".join(link.partition("#")[1:])
        return f"{text}]({os.path.relpath(place(path), here)}{anchor})"

    return "".join(_LINK.sub(leads, line) if is_prose else line for line, is_prose in prose(text))


@dataclass
class _Line:
    text: str
    #: The first line of an item of a list, or code.
    is_item: bool = False
    is_code: bool = False
    needs_blank_above: bool = False
    #: By how many blanks the item is indented that it belongs to, here and there.
    given: int = 0
    wanted: int = 0


def _indented(text: str) -> str:
    """GitHub wants what belongs to an item of a list below the item's text; the parser of the
    site wants it four blanks to the right, and blank lines around what has several paragraphs."""
    lines = [_Line(line) for line in text.splitlines()] + [_Line("")]
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        if token.map is not None:
            _note(lines, token)
    return "\n".join(_written(line) for line in lines)


def _note(lines: list[_Line], token: Token) -> None:
    assert token.map is not None
    first, end = token.map
    if token.type in ("bullet_list_open", "ordered_list_open"):
        if token.level == 0 or not lines[first - 1].is_item:
            lines[first].needs_blank_above |= first > 0 and lines[first - 1].text != ""
    elif token.type in ("fence", "code_block"):
        for line in lines[first:end]:
            line.is_code = True
        if token.info == "console" and not re.search(r"^\$ ", token.content, re.M):
            # Commands without a prompt, which are taken for output.
            lines[first].text = lines[first].text.replace("console", "bash")
    elif token.type == "list_item_open":
        item = _ITEM.match(lines[first].text)
        assert item is not None, lines[first]
        lines[first].is_item = True
        for line in lines[first + 1 : end]:
            line.given = item.end()
            line.wanted += 4
        if any(line.text == "" for line in lines[first:end]):
            lines[end].needs_blank_above |= lines[end - 1].text != ""


def _written(line: _Line) -> str:
    bare = line.text.lstrip(" ")
    if not bare:
        return ""
    if not line.is_item and not line.is_code:  # a number at the end of a sentence, say
        bare = re.sub(r"^(\d+)([.)] )", r"\1\\\2", bare)
    indented = max(0, len(line.text) - len(line.text.lstrip(" ")) - line.given)
    return "\n" * line.needs_blank_above + " " * (line.wanted + indented) + bare
