"""Looks at a site that was built: `python -m website.check FOLDER`. Exit status 1 if

- a link or a picture leads nowhere within the site, or to an anchor that is not there,
- a page would load something from another host,
- a page shows other headings, lists, tables or code blocks than the Markdown has on GitHub.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

from website import pages

#: What a browser loads by itself, and from which attribute.
_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
#: What is counted, and by which token GitHub's Markdown has it.
_COUNTED = {
    "h1": "heading_open",
    "li": "list_item_open",
    "table": "table_open",
    "tr": "tr_open",
    "pre": "fence",
}


class Page(HTMLParser):
    """What matters of a page here.

    Attributes:
        links: what it links to, and shows.
        loaded: what a browser loads with it.
        anchors: where links into it may lead.
        counts: elements of its text, by name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.counts: Counter[str] = Counter()
        self._in_text = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "article":
            self._in_text = True
        if self._in_text:
            self.counts["h1" if tag in ("h2", "h3", "h4") else tag] += 1
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in _LOADED and _LOADED[tag] in given and given.get("rel") != "canonical":
            self.loaded.append(given[_LOADED[tag]])

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._in_text = False


def broken(site: Path, read: dict[Path, Page]) -> Iterator[str]:
    for path, page in read.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    yield f"{path.relative_to(site)}: is loaded from elsewhere: {link}"
                continue
            end = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if end.is_dir():
                end /= "index.html"
            if not end.is_file():
                yield f"{path.relative_to(site)}: leads nowhere: {link}"
            elif end in read and unquote(parts.fragment) not in read[end].anchors:
                yield f"{path.relative_to(site)}: no such anchor: {link}"


def odd(site: Path, read: dict[Path, Page]) -> Iterator[str]:
    for source in [*pages.MOVED, *(f"docs/{page}" for page in pages.names_in_docs())]:
        name = pages.place(source).replace("README.md", "index.md")
        shown = read[(site / name).with_suffix(".html").resolve()].counts
        tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(
            (pages.REPOSITORY / source).read_text()
        )
        there = Counter(token.type for token in tokens)
        there["fence"] += there["code_block"]
        for tag, kind in _COUNTED.items():
            if shown[tag] != there[kind]:
                yield f"{source}: {there[kind]} times <{tag}>, on the site {shown[tag]}"


def main(site: Path) -> int:
    read = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    found = [*broken(site.resolve(), read), *odd(site, read)]
    for line in found:
        print(line)
    print(f"{len(read)} pages, {sum(len(page.links) for page in read.values())} links checked")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
