"""Output: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NOTHING = "-"

Row = Mapping[str, Any]
Column = tuple[str, str | Callable[[Row], object]]
"""A heading, and the key (dots go deeper) or the function that gives the cell."""


def document(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def text(value: object) -> str:
    """A value as a person reads it; nothing is a dash."""
    if value is None or value == "" or value == [] or value == {}:
        return NOTHING
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"
    if isinstance(value, list | tuple):
        return ", ".join(text(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={text(one)}" for key, one in value.items())
    # Names come from clients: none may steer the reader's terminal.
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(value))


def when(seconds: object) -> str:
    """Unix seconds as local time."""
    if not isinstance(seconds, int | float) or not seconds:
        return NOTHING
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def find(row: Row, path: str) -> object:
    value: object = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def table(columns: Sequence[Column], rows: Iterable[Row], *, empty: str = "none", fold: bool = False) -> None:
    """A table: drawn by rich on a terminal, plain columns (two blanks apart) elsewhere. Numbers stand right.

    Columns that hold nothing are left out. Where a terminal is too narrow, the last columns are left out too, or with
    `fold` (tables of sentences) long cells are folded.
    """
    rows = list(rows)
    if not rows:
        print(empty)
        return
    made = [
        _Made(heading, [find(row, get) if isinstance(get, str) else get(row) for row in rows])
        for heading, get in columns
    ]
    made = [one for n, one in enumerate(made) if n == 0 or not one.empty]
    if sys.stdout.isatty():
        _drawn(made, fold)
    else:
        _plain(made)


class _Made:
    """A column: its heading, its cells as text, and whether it is of numbers."""

    def __init__(self, heading: str, values: Sequence[object]) -> None:
        self.heading = heading
        self.cells = [text(value) for value in values]
        self.right = {type(value) for value in values} - {type(None)} in ({int}, {float}, {int, float})
        self.empty = all(cell == NOTHING for cell in self.cells)
        self.width = max(len(heading), *(len(cell) for cell in self.cells))


def _drawn(columns: Sequence[_Made], fold: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    left_out: list[str] = []
    shown = list(columns)
    while not fold and len(shown) > 2 and sum(one.width + 2 for one in shown) > console.width:
        left_out.insert(0, shown.pop().heading)
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for one in shown:
        drawn.add_column(one.heading, justify="right" if one.right else "left", overflow="fold", no_wrap=not fold)
    for line in zip(*(one.cells for one in shown), strict=True):
        drawn.add_row(*(Text(cell) for cell in line))
    console.print(drawn)
    if left_out:
        console.print(f"(in a wider terminal, or with --json: {', '.join(left_out)})", style="dim")


def _plain(columns: Sequence[_Made]) -> None:
    for line in zip(*([one.heading.upper(), *one.cells] for one in columns), strict=True):
        cells = [
            cell.rjust(one.width) if one.right else cell.ljust(one.width)
            for cell, one in zip(line, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other."""
    pairs = [(name, text(value)) for name, value in pairs]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {value}")
