"""What MkDocs calls while it builds the site (`hooks` in mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from website import commands, pages

HERE = Path(__file__).parent
#: Before a page that is the only one of its section.
ALONE = "---\nhide: [navigation]\n---\n\n"


def on_config(config: Any) -> None:
    """Anchors are those of GitHub, so that a link leads to the same place here and there."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = pages.slug


def on_files(files: Any, config: Any) -> None:
    """Adds the pages of files outside of docs/, and those that are made here."""
    made: dict[str, str] = {
        "commands.md": commands.page(),
        "python.md": (HERE / "python.txt").read_text(),
    }
    for path, name in pages.MOVED.items():
        made[name] = pages.for_the_site(path, (pages.REPOSITORY / path).read_text())
    made["index.md"] = ALONE + made["index.md"]
    for path in sorted(pages.sources()):
        name = pages.place(path)
        if name.endswith(".md"):
            made[name] = pages.of_source(path)
        else:
            files.append(File.generated(config, name, abs_src_path=str(pages.REPOSITORY / path)))
    for name in ("site.css", "favicon.svg"):
        made[f"assets/{name}"] = (HERE / name).read_text()
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    config.extra_css.append("assets/site.css")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Of those in docs/: the others are made for the site."""
    if page.file.generated_by:
        return markdown
    return pages.for_the_site(f"{pages.DOCS}/{page.file.src_uri}", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings have roles of Sphinx before names (:attr:`is_master`), which are no Markdown."""
    return re.sub(r":(?:attr|class|meth|func):(?=<code>)", "", html)
