"""The judge of histories catches each fault it is there for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.history.checker import Acknowledged, Exempt, Read, Reported, faults, misbehaved, rebalanced, undisturbed

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


SENT = {"p0": 10, "p1": 10}


def test_what_was_aborted_or_never_sent_must_not_be_read() -> None:
    assert faults(TOLD, READS, "ab", aborted={("p0", 10)}, sent=SENT) == []
    told = [one for one in TOLD if (one.producer, one.number) != ("p1", 4)]
    found = faults(told, READS, "ab", aborted={("p1", 4)}, sent={"p0": 9, "p1": 10})
    assert sorted(text[:20] for text in found) == [
        "a: read, never sent:",
        "a: read, though abor",
        "b: read, never sent:",
        "b: read, though abor",
    ]


def test_reading_again_is_allowed_to_some_and_only_from_the_same_place() -> None:
    again = Exempt(again=["a"])
    first = [one for one in READS if one.reader == "a" and one.partition == 0]
    rest = [one for one in READS if one not in first]
    twice = [*first[:7], *first[4:], *rest]
    assert faults(TOLD, twice, "ab", exempt=again) == []
    assert any("read 2 times" in text for text in faults(TOLD, twice, "ab"))
    shifted = [*first[:7], *(one._replace(offset=one.offset + 1) for one in first[4:]), *rest]
    assert any("read 2 times" in text for text in faults(TOLD, shifted, "ab", exempt=again))
    skipped = [*first[:4], *first[5:], first[4], *rest]
    assert any("offset" in text for text in faults(TOLD, skipped, "ab", exempt=again))


def test_retries_without_sequence_numbers_may_come_twice_and_must_not_be_lost() -> None:
    exempt = Exempt(unordered=["p0"])
    told = [one for one in TOLD if one.partition == 0]
    mine = [one for one in READS if one.reader == "a" and one.partition == 0]
    last = [one for one in mine if one.producer == "p0"][-1]
    late = [*mine, last._replace(number=0, offset=mine[-1].offset + 1)]
    assert faults(told, late, "a", exempt=exempt) == []
    assert len(faults(told, late, "a")) == 3, "twice, elsewhere than told, and out of order"
    without = [one for one in late if one.number]
    assert any("lost" in text for text in faults(told, without, "a", exempt=exempt))


def test_clients_are_told_nothing_but_what_is_allowed() -> None:
    abort, again = Reported(1.0, "t", "abortable", "120"), Reported(1.0, "c", "retriable", "disconnected")
    assert misbehaved([abort, abort], moves=2, killed=False) == []
    assert misbehaved([abort, abort], moves=1, killed=False) == ["t: 2 aborts in 1 moves"]
    assert misbehaved([again], moves=1, killed=False) == ["c: retriable: disconnected"]
    assert misbehaved([again, abort], moves=0, killed=True) == []
    for kind in ("error", "fatal"):
        bad = Reported(1.0, "c", kind, "no")
        assert misbehaved([bad], moves=1, killed=True) == [f"c: {kind}: no"]


def test_what_was_sent_into_a_fault_need_not_arrive() -> None:
    moments = [(at, TOLD[number]) for number, at in enumerate((0.0, 1.0, 2.0, 3.0))]
    assert undisturbed(moments, [(0.5, 1.5), (3.0, 4.0)]) == [TOLD[0], TOLD[2]]
    assert rebalanced({"a": [0.5], "b": [0.5, 2.0, 9.0]}, 1.0, 8.0) == ["b: 1 changes of its assignment"]
