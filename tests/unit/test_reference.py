"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

from runtime.settings import parse
from tools.reference import configuration
from tools.reference.__main__ import outdated


def test_the_reference_is_current() -> None:
    names = outdated(Path(__file__).parents[2] / "docs" / "reference")
    assert not names, "run python -m tools.reference"


def test_the_example_is_right() -> None:
    assert parse(configuration.EXAMPLE).federation == "demo"
