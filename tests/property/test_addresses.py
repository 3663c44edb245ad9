"""Ports of virtual brokers: given once, never twice, never lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_service.addresses import IndexesExhausted, allocate, broker_name, next_index, without_port
from metadata_service.models import MAX_CLUSTER_INDEX, STRIDE, AddressBook
from tests.fixtures.records import cluster

BROKERS = st.lists(st.tuples(st.sampled_from(["east", "west", "north"]), st.integers(0, 8)), unique=True)


@given(st.lists(BROKERS, max_size=6), st.integers(1, 20))
def test_a_port_is_given_once_and_stays(rounds: list[list[tuple[str, int]]], size: int) -> None:
    book, ports = AddressBook(), range(9301, 9301 + size)
    for brokers in rounds:
        before = dict(book.ports)
        found = allocate(book, ports, brokers)
        book = found.book
        assert before.items() <= book.ports.items()
        assert len(set(book.ports.values())) == len(book.ports)
        assert set(book.ports.values()) <= set(ports)
        # Somebody is left out only where every port is given.
        assert not found.left_out or len(book.ports) == size
        assert {broker_name(*one) for one in brokers} == set(found.left_out) | (
            book.ports.keys() & {broker_name(*one) for one in brokers}
        )


@given(BROKERS, BROKERS)
def test_allocating_again_changes_nothing(some: list[tuple[str, int]], others: list[tuple[str, int]]) -> None:
    book = allocate(AddressBook(), range(9301, 9400), some).book
    assert allocate(book, range(9301, 9400), some).book is book
    # A narrower range later: what was given before stays.
    assert book.ports.items() <= allocate(book, range(9301, 9302), others).book.ports.items()


def test_broker_ids_that_cannot_be_numbered_get_no_port() -> None:
    found = allocate(AddressBook(), range(9301, 9304), [("east", STRIDE), ("east", STRIDE - 1), ("east", -1)])
    assert found.book.ports == {f"east/{STRIDE - 1}": 9301}
    assert found.left_out == ()


def test_who_is_left_without_a_port_is_named() -> None:
    found = allocate(AddressBook(), range(9301, 9302), [("east", 1), ("west", 1)])
    assert found.left_out == ("west/1",)
    assert without_port(found.book, {"west": [1], "east": [1, STRIDE]}) == ["west/1"]


@given(st.lists(st.integers(0, MAX_CLUSTER_INDEX - 1), max_size=8, unique=True))
def test_a_cluster_index_is_never_given_twice(indexes: list[int]) -> None:
    records = [cluster(f"c{one}", one) for one in indexes]
    assert next_index(records) > max(indexes, default=-1)


def test_cluster_indexes_end() -> None:
    with pytest.raises(IndexesExhausted, match="no cluster index left"):
        next_index([cluster("last", MAX_CLUSTER_INDEX)])
