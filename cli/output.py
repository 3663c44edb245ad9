"""Output: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, str | Callable[[Row], object]]
"""A heading, and the key (dots go deeper) or the function that gives the cell."""


def document(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def text(value: object) -> str:
    """A value as a person reads it; nothing is a dash."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
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
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def find(row: Row, path: str) -> object:
    value: object = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def table(columns: Sequence[Column], rows: Iterable[Row], *, title: str = "", empty: str = "none") -> None:
    """A table: drawn by rich on a terminal, plain columns (two blanks apart) elsewhere. Numbers stand right."""
    rows = list(rows)
    if title:
        print(title)
    if not rows:
        print(empty)
        return
    cells = [[find(row, get) if isinstance(get, str) else get(row) for _, get in columns] for row in rows]
    right = [
        {type(value) for value in column} - {type(None)} in ({int}, {float}, {int, float})
        for column in zip(*cells, strict=True)
    ]
    headings = [heading for heading, _ in columns]
    lines = [[text(value) for value in row] for row in cells]
    if sys.stdout.isatty():
        _drawn(headings, lines, right)
    else:
        _plain(headings, lines, right)


def _drawn(headings: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading, to_right in zip(headings, right, strict=True):
        drawn.add_column(heading, justify="right" if to_right else "left", overflow="fold")
    for line in lines:
        drawn.add_row(*(_escaped(cell) for cell in line))
    Console(highlight=False).print(drawn)


def _escaped(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def _plain(headings: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    shown = [[heading.upper() for heading in headings], *lines]
    widths = [max(len(cell) for cell in column) for column in zip(*shown, strict=True)]
    for line in shown:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other."""
    pairs = [(name, text(value)) for name, value in pairs]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {value}")
