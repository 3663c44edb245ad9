"""Where an audit begins on both sides, when their logs begin in different places."""

from __future__ import annotations

import pytest

from offset_sync.table import Table
from replicator.audit import Reach
from replicator.auditor import _clipped, _floor

WHOLE = Reach(0, 10, 0, 14, 14, 0)


def tables() -> tuple[Table, Table]:
    """A source that never moved; a target with a control record in front, and a hole in the middle."""
    source, target = Table(), Table()
    source.open(0, 0)
    target.append(0, 1, 5)
    target.append(5, 8, 5)
    return source, target


@pytest.mark.parametrize(
    ("start", "floor"), [(0, 0), (1, 0), (3, 2), (6, 5), (7, 5), (8, 5), (9, 6), (13, 10), (50, 10)]
)
def test_what_a_log_that_begins_there_cannot_hold(start: int, floor: int) -> None:
    assert _floor(tables()[1], start) == floor


@pytest.mark.parametrize(
    ("starts", "source", "target", "floor"),
    [
        ((0, 0), 0, 0, 0),
        ((3, 0), 3, 4, 3),
        ((0, 7), 5, 8, 5),  # the target's log begins in the hole
        ((6, 3), 6, 9, 6),
        ((0, 50), 10, 14, 10),  # nothing is left to compare
        ((10, 0), 10, 13, 10),
    ],
)
def test_it_begins_with_the_later_log(starts: tuple[int, int], source: int, target: int, floor: int) -> None:
    assert _clipped(WHOLE, starts, tables()) == WHOLE._replace(source=source, target=target, floor=floor)
