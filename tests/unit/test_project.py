"""What those need who carry the project on: workflows, templates, hooks, the way to a release."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_zk_beat import __version__
from example_project.processes import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
#: Jobs that there must be, by what they run.
WANTED = {"lint", "unit", "test", "docs", "wheel", "simulate"}


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_workflows_run_targets_of_the_makefile() -> None:
    """And all that should run somewhere does."""
    ran = set()
    for workflow in WORKFLOWS:
        for step in steps(workflow):
            for targets in re.findall(r"(?:^|; )make ([a-z -]+)", step.get("run", "")):
                ran |= set(targets.split())
    assert ran <= TARGETS
    assert ran >= WANTED


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_depend_on_nobody(workflow: Path) -> None:
    """No action but that which checks out; rights to read; an end to each job."""
    parsed = yaml.safe_load(workflow.read_text())
    assert {step["uses"] for step in steps(workflow) if "uses" in step} == {"actions/checkout@v4"}
    assert parsed["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in parsed["jobs"].values())
    assert parsed[True]  # `on`, which YAML takes for a yes


def test_hooks_are_local() -> None:
    """Each is a program of .venv, with what `make lint` runs."""
    parsed = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    (repo,) = parsed["repos"]
    assert repo["repo"] == "local"
    lint = (REPOSITORY / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        program, *_ = hook["entry"].removesuffix(" --force-exclude").split(" .")
        assert program.replace(".venv/bin/", "$(BIN)/") in lint


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_templates_of_issues(name: str) -> None:
    text = (REPOSITORY / ".github" / "ISSUE_TEMPLATE" / f"{name}.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert {"name", "about", "labels"} == set(yaml.safe_load(head))
    assert body.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with all that a release takes."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in (".ci/release", "CHANGELOG.md", "celery_zk_beat/version.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    text = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace(".invalid/", ".example/"))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__} (2026-12-31)\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *command: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x", "--allow-empty")
    git(folder, "tag", "-f", "-a", "-m", "x", f"v{__version__}")


def release(folder: Path) -> str:
    """What it says, with a Python that builds nothing."""
    done = subprocess.run(
        [folder / ".ci" / "release", "echo"], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stdout + done.stderr


def test_a_release_is_built(copy: Path) -> None:
    assert release(copy).splitlines()[-1] == "-m build"


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("CHANGELOG.md", "2026-12-31", "unreleased", "CHANGELOG.md begins with"),
        ("CHANGELOG.md", __version__, "9.9.9", "CHANGELOG.md begins with"),
        ("pyproject.toml", ".example/", ".invalid/", "[project.urls]"),
    ],
)
def test_a_release_is_refused(copy: Path, name: str, old: str, new: str, why: str) -> None:
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    commit(copy)
    assert why in release(copy)


def test_what_git_does_not_know_is_not_released(copy: Path) -> None:
    (copy / "new").touch()
    assert "not committed" in release(copy)
    git(copy, "add", "-A")
    git(copy, "commit", "-q", "-m", "later than the tag")
    assert "no tag v" in release(copy)
