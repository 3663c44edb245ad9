"""Judges a history: each reader reads every acknowledged record exactly once, in order, where it was acknowledged.

Pure. A reader is whoever must see everything once: a group with all its members and restarts, or a consumer alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple


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


class Reported(NamedTuple):
    """What a client library told its application. "abortable": a transaction had to be aborted, and the producer went
    on; "retriable": the library says that it, or the application, may just go on; "fatal": the client is done for."""

    at: float
    client: str
    kind: Literal["retriable", "error", "abortable", "fatal"]
    text: str


class Exempt(NamedTuple):
    """What is not promised to some, where connections are lost or processes killed.

    `again`: readers that may read a record again, from a position committed earlier, and then go on as before.
    `unordered`: producers without sequence numbers, whose retries may come twice, and behind later records.
    """

    again: Collection[str] = ()
    unordered: Collection[str] = ()


NOBODY = Exempt()


def faults(
    acknowledged: Iterable[Acknowledged],
    reads: Iterable[Read],
    readers: Iterable[str],
    *,
    aborted: Collection[tuple[str, int]] = (),
    sent: Mapping[str, int] | None = None,
    exempt: Exempt = NOBODY,
) -> list[str]:
    """What is wrong, in sentences; empty where nothing is. `readers` must have read everything.

    `aborted`: (producer, number) that nobody may read. `sent`: how many records each producer has sent at most; others
    must not appear.
    """
    told = list(acknowledged)
    by_reader: dict[str, list[Read]] = {reader: [] for reader in readers}
    for one in reads:
        by_reader.setdefault(one.reader, []).append(one)
    found = _told_twice(told)
    for reader, mine in by_reader.items():
        if reader in exempt.again:
            mine = _first_times(mine)
        judged = [one for one in mine if one.producer not in exempt.unordered]
        places = [one for one in told if one.producer not in exempt.unordered]
        found += [
            f"{reader}: {text}"
            for text in (
                *_lost(told, mine),
                *_twice(judged),
                *_places(places, judged),
                *_offsets(mine),
                *_numbers(judged),
                *_unwanted(mine, aborted, sent),
            )
        ]
    return found + _disagreements(by_reader)


def _told_twice(told: list[Acknowledged]) -> list[str]:
    places = Counter((one.topic, one.partition, one.offset) for one in told if one.offset >= 0)
    return [f"acknowledged for two records: {place}" for place, count in places.items() if count > 1]


def _first_times(mine: list[Read]) -> list[Read]:
    """Without what was read again, which was the same record at the same place; another one there stays, and is
    found as a disagreement."""
    return list(dict.fromkeys(mine))


def _lost(told: list[Acknowledged], mine: list[Read]) -> list[str]:
    wanted = {(one.topic, one.producer, one.number) for one in told}
    return [f"lost: {one}" for one in sorted(wanted - {(one.topic, one.producer, one.number) for one in mine})]


def _twice(mine: list[Read]) -> list[str]:
    times = Counter((one.topic, one.producer, one.number) for one in mine)
    return [f"read {count} times: {one}" for one, count in sorted(times.items()) if count > 1]


def _places(told: list[Acknowledged], mine: list[Read]) -> list[str]:
    where = {(one.topic, one.producer, one.number): (one.partition, one.offset) for one in mine}
    wrong = []
    for one in told:
        read_at = where.get((one.topic, one.producer, one.number))
        if read_at is not None and one.offset >= 0 and read_at != (one.partition, one.offset):
            wrong.append(f"acknowledged at {(one.partition, one.offset)}, read at {read_at}: {one}")
    return wrong


def _offsets(mine: list[Read]) -> list[str]:
    """They rise within a partition."""
    wrong = []
    last: dict[tuple[str, int], int] = {}
    for one in mine:
        partition = (one.topic, one.partition)
        if one.offset <= last.get(partition, -1):
            wrong.append(f"offset {one.offset} after {last[partition]}: {one}")
        last[partition] = one.offset
    return wrong


def _numbers(mine: list[Read]) -> list[str]:
    """So do the numbers of each producer."""
    wrong = []
    last: dict[tuple[str, int, str], int] = {}
    for one in mine:
        producer = (one.topic, one.partition, one.producer)
        if one.number <= last.get(producer, -1):
            wrong.append(f"number {one.number} after {last[producer]}: {one}")
        last[producer] = one.number
    return wrong


def _unwanted(mine: list[Read], aborted: Collection[tuple[str, int]], sent: Mapping[str, int] | None) -> list[str]:
    wrong = [f"read, though aborted: {one}" for one in mine if (one.producer, one.number) in aborted]
    if sent is not None:
        wrong += [f"read, never sent: {one}" for one in mine if not 0 <= one.number < sent.get(one.producer, 0)]
    return wrong


def _disagreements(by_reader: dict[str, list[Read]]) -> list[str]:
    """One place holds one record, whoever reads it."""
    held: defaultdict[tuple[str, int, int], set[tuple[str, int]]] = defaultdict(set)
    for mine in by_reader.values():
        for one in mine:
            held[one.topic, one.partition, one.offset].add((one.producer, one.number))
    return [f"two records at {place}: {sorted(each)}" for place, each in held.items() if len(each) > 1]


def misbehaved(reports: Iterable[Reported], *, moves: int, killed: bool) -> list[str]:
    """What no client should have been told: nothing at all, but that transactional producers may have had to abort
    once in each of the `moves`. Where processes were `killed`, what the library itself calls retriable is allowed too,
    and transactions may be aborted."""
    abortable: Counter[str] = Counter()
    wrong = []
    for one in reports:
        if one.kind == "abortable":
            abortable[one.client] += 1
        elif one.kind != "retriable" or not killed:
            wrong.append(f"{one.client}: {one.kind}: {one.text}")
    if not killed:
        wrong += [f"{who}: {count} aborts in {moves} moves" for who, count in abortable.items() if count > moves]
    return wrong


def undisturbed(
    moments: Iterable[tuple[float, Acknowledged]], faulty: Sequence[tuple[float, float]]
) -> list[Acknowledged]:
    """Of records that were sent at these moments, with nobody telling whether they arrived: those that had to."""
    return [one for at, one in moments if not any(begin <= at <= end for begin, end in faulty)]


def rebalanced(assignments: Mapping[str, Sequence[float]], since: float, until: float) -> list[str]:
    """Readers that were assigned partitions, or lost some, between those moments."""
    late = {reader: sum(since < at < until for at in moments) for reader, moments in assignments.items()}
    return [f"{reader}: {count} changes of its assignment" for reader, count in late.items() if count]
