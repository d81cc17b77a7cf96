"""Lists what each extra installs, and under which licence: writes docs/licences.md (`make
licences`).

It reads the metadata of installed packages, so run it in the environment of the tests.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from example_project.processes import REPOSITORY

PAGE = REPOSITORY / "docs" / "licences.md"
#: The extras of api.md; the others are for developers.
EXTRAS = ("", "redis", "http", "watch", "sasl", "kerberos")
#: Not in the environment of the tests: to install it, one needs a library that is not there.
ABSENT = {"kerberos": "Apache Software License"}
#: Packages whose metadata only say that they have two licences.
_BY_HAND = {"python-dateutil": "Apache-2.0 OR BSD-3-Clause"}

_HEAD = """# Licences

What `pip install celery-zk-beat` brings, and each extra beside that, with the licence that the
metadata of each package name. celery-zk-beat itself is under the [BSD-3-Clause](../LICENSE)
licence. This page was written by `make licences` with {made}; a test fails when the packages are
no longer those. Other releases of Python need a few others (before 3.11.3 `async-timeout`, for
instance), and other releases of a package may be under another licence.
"""


def made() -> str:
    """What the names depend on."""
    celery = ".".join(distribution("celery").version.split(".")[:2])
    return f"Python {sys.version_info[0]}.{sys.version_info[1]} and Celery {celery}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(extra: str) -> set[str]:
    """Returns the names of all packages that an extra needs, with those that they need. "" stands
    for what each installation has."""
    found: set[str] = set()
    waiting = [("celery-zk-beat", frozenset({extra}))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            if name not in ABSENT:
                raise
            needs = []
        for text in needs:
            need = Requirement(text)
            if need.marker and not any(need.marker.evaluate({"extra": e}) for e in extras | {""}):
                continue
            found.add(canonical(need.name))
            further = (canonical(need.name), frozenset(need.extras))
            if further not in seen:
                seen.add(further)
                waiting.append(further)
    return found


def licence(of: Distribution) -> str:
    """Returns the licence in one line, from the metadata field that has it."""
    classes = [
        value.rpartition(" :: ")[2]
        for value in of.metadata.get_all("Classifier") or ()
        if value.startswith("License :: ") and value != "License :: OSI Approved"
    ]
    text = next(
        filter(None, (of.metadata.get_all(key) for key in ("License-Expression", "License"))),
        [""],
    )[0]
    if not text or "\n" in text or len(text) > 60:
        text = ", ".join(classes)
    return text


def row(name: str) -> str:
    if name in ABSENT:
        return f"| `{name}` | | {ABSENT[name]} |\n"
    found = distribution(name)
    says = _BY_HAND.get(name) or licence(found)
    if not says:
        raise SystemExit(f"{name}: its metadata name no licence; look, and add it to _BY_HAND")
    return f"| `{name}` | {found.version} | {says} |\n"


def page() -> str:
    text = _HEAD.format(made=made())
    always = brought_by("")
    for extra in EXTRAS:
        text += f"\n## {f'[{extra}]' if extra else 'Always'}\n\n"
        text += "| package | release | licence |\n|---|---|---|\n"
        names = brought_by(extra) - always if extra else always
        text += "".join(row(name) for name in sorted(names))
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
