"""The documents: every relative link leads somewhere, and every command that they show exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cli import arguments

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")
COMMAND = re.compile(r"(?:^\$ (?:\.venv/bin/)?|`)(kfed [a-z][^`#\n]*)", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def commands() -> set[str]:
    found: set[str] = set()
    for page in PAGES:
        if page.name == "cli.md":
            continue  # made from the grammar itself
        found |= {one.strip() for one in COMMAND.findall(page.read_text())}
    return {one for one in found if "|" not in one}


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_are_right(command: str) -> None:
    arguments.parse(shlex.split(command)[1:])
