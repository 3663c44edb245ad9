"""The judge of histories catches each fault it is there for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.history.checker import Acknowledged, Read, faults

TOLD = [Acknowledged(f"p{n % 2}", n // 2, "t", n // 2 % 2, n // 4 * 2 + n % 2) for n in range(20)]
READS = [
    Read(reader, one.producer, one.number, one.topic, one.partition, one.offset)
    for reader in ("a", "b")
    for one in sorted(TOLD, key=lambda each: (each.partition, each.offset))
]


def test_a_good_history_has_no_faults() -> None:
    assert faults(TOLD, READS, ["a", "b"]) == []


@dataclass
class Broken:
    what: str
    reads: list[Read]
    told: list[Acknowledged]


def _swapped(reads: list[Read]) -> list[Read]:
    return [reads[1], reads[0], *reads[2:]]


BROKEN = [
    Broken("a: lost", READS[1:], TOLD),
    Broken("b: lost", READS[:-1], TOLD),
    Broken("c: lost", READS, TOLD),
    Broken("a: read 2 times", [READS[0], *READS], TOLD),
    Broken("a: offset 0 after 1", _swapped(READS), TOLD),
    Broken("a: number 0 after", [READS[0]._replace(number=2), READS[1], READS[2]._replace(number=0), *READS[3:]], TOLD),
    Broken("a: acknowledged at (0, 0), read at (0, 77)", [READS[0]._replace(offset=77), *READS[1:]], TOLD),
    Broken("two records at", [READS[0]._replace(producer="p9"), *READS[1:]], TOLD),
    Broken("acknowledged for two records", READS, [*TOLD, TOLD[0]._replace(producer="p9")]),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda each: str(each.what))
def test_every_kind_of_fault_is_found(broken: Broken) -> None:
    readers = ["a", "b", "c"] if broken.what.startswith("c") else ["a", "b"]
    assert any(text.startswith(broken.what) for text in faults(broken.told, broken.reads, readers))
