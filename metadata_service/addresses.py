"""The ports of virtual brokers: one per (listener, cluster, broker), given once, the same on every proxy. Pure.

A broker that vanishes keeps its port, so that it, or its successor under the same id, comes back where clients
expect it. A port in the book is never given to another broker; entries leave the book only when an operator removes
their cluster for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metadata_service.models import MAX_CLUSTER_INDEX, STRIDE, AddressBook, ClusterRecord


@dataclass(frozen=True, slots=True)
class Allocation:
    """`book` with what could be given; `left_out` are the names of virtual brokers for which no port was left."""

    book: AddressBook
    left_out: tuple[str, ...]


class IndexesExhausted(ValueError):
    """Every cluster index has been given once."""


def broker_name(cluster: str, broker: int) -> str:
    """`"east/1"`, the key of an address book."""
    return f"{cluster}/{broker}"


def numberable(broker: int) -> bool:
    """Whether a physical broker id fits into a virtual node id."""
    return 0 <= broker < STRIDE


def allocate(book: AddressBook, ports: Sequence[int], brokers: Iterable[tuple[str, int]]) -> Allocation:
    """A port for each (cluster, broker id) that has none: the lowest one free, in the order of `brokers`.

    Ports outside `ports` that were given before stay. Broker ids that cannot be numbered get none and are not
    listed: that is a finding of its own.
    """
    given = dict(book.ports)
    taken = set(given.values())
    free = (port for port in ports if port not in taken)
    left_out = []
    for cluster, broker in brokers:
        name = broker_name(cluster, broker)
        if name in given or not numberable(broker):
            continue
        port = next(free, None)
        if port is None:
            left_out.append(name)
        else:
            given[name] = port
    return Allocation(book if len(given) == len(book.ports) else AddressBook(ports=given), tuple(left_out))


def without_port(book: AddressBook, brokers: Mapping[str, Iterable[int]]) -> list[str]:
    """Live virtual brokers (cluster -> physical ids) that have no port: clients cannot reach them."""
    return [
        broker_name(cluster, broker)
        for cluster in sorted(brokers)
        for broker in sorted(brokers[cluster])
        if numberable(broker) and broker_name(cluster, broker) not in book.ports
    ]


def next_index(records: Iterable[ClusterRecord]) -> int:
    """The index of a new cluster: one above the highest ever given, so that none is given twice.

    Raises:
        IndexesExhausted: 4095 clusters have been named.
    """
    index = max((one.index for one in records), default=-1) + 1
    if index > MAX_CLUSTER_INDEX:
        raise IndexesExhausted(f"no cluster index left: {MAX_CLUSTER_INDEX + 1} clusters have been named")
    return index
