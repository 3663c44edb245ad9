"""Judges a history: each reader reads every acknowledged record exactly once, in order, where it was acknowledged.

Pure. A reader is whoever must see everything once: a group with all its members and restarts, or a consumer alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple


class Acknowledged(NamedTuple):
    """Record `number` of a producer; offset -1 where the producer was not told (acks=0)."""

    producer: str
    number: int
    topic: str
    partition: int
    offset: int


class Read(NamedTuple):
    """One record as a reader got it, in the order of reading."""

    reader: str
    producer: str
    number: int
    topic: str
    partition: int
    offset: int


def faults(acknowledged: Iterable[Acknowledged], reads: Iterable[Read], readers: Iterable[str]) -> list[str]:
    """What is wrong, in sentences; empty where nothing is. `readers` must have read everything."""
    told = list(acknowledged)
    by_reader: dict[str, list[Read]] = {reader: [] for reader in readers}
    for one in reads:
        by_reader.setdefault(one.reader, []).append(one)
    found = _told_twice(told)
    for reader, mine in by_reader.items():
        found += [f"{reader}: {text}" for text in (*_counts(told, mine), *_places(told, mine), *_order(mine))]
    return found + _disagreements(by_reader)


def _told_twice(told: list[Acknowledged]) -> list[str]:
    places = Counter((one.topic, one.partition, one.offset) for one in told if one.offset >= 0)
    return [f"acknowledged for two records: {place}" for place, count in places.items() if count > 1]


def _counts(told: list[Acknowledged], mine: list[Read]) -> list[str]:
    times = Counter((one.topic, one.producer, one.number) for one in mine)
    wanted = {(one.topic, one.producer, one.number) for one in told}
    lost = [f"lost: {one}" for one in sorted(wanted - times.keys())]
    return lost + [f"read {count} times: {one}" for one, count in sorted(times.items()) if count > 1]


def _places(told: list[Acknowledged], mine: list[Read]) -> list[str]:
    where = {(one.topic, one.producer, one.number): (one.partition, one.offset) for one in mine}
    wrong = []
    for one in told:
        read_at = where.get((one.topic, one.producer, one.number))
        if read_at is not None and one.offset >= 0 and read_at != (one.partition, one.offset):
            wrong.append(f"acknowledged at {(one.partition, one.offset)}, read at {read_at}: {one}")
    return wrong


def _order(mine: list[Read]) -> list[str]:
    """Offsets rise within a partition, and so do the numbers of each producer."""
    wrong = []
    offsets: dict[tuple[str, int], int] = {}
    numbers: dict[tuple[str, int, str], int] = {}
    for one in mine:
        partition, producer = (one.topic, one.partition), (one.topic, one.partition, one.producer)
        if one.offset <= offsets.get(partition, -1):
            wrong.append(f"offset {one.offset} after {offsets[partition]}: {one}")
        if one.number <= numbers.get(producer, -1):
            wrong.append(f"number {one.number} after {numbers[producer]}: {one}")
        offsets[partition], numbers[producer] = one.offset, one.number
    return wrong


def _disagreements(by_reader: dict[str, list[Read]]) -> list[str]:
    """One place holds one record, whoever reads it."""
    held: defaultdict[tuple[str, int, int], set[tuple[str, int]]] = defaultdict(set)
    for mine in by_reader.values():
        for one in mine:
            held[one.topic, one.partition, one.offset].add((one.producer, one.number))
    return [f"two records at {place}: {sorted(each)}" for place, each in held.items() if len(each) > 1]
