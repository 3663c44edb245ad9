"""The hand-written protobuf: no answer, whatever it holds, raises anything but Malformed. Real etcds judge the rest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_service.store import etcd_wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable

READERS = [wire.read_range, wire.read_txn, wire.read_watch, wire.read_lease, wire.read_text]
FIELDS = st.lists(
    st.one_of(
        st.builds(wire._int, st.integers(1, 12), st.integers(-(2**63), 2**63 - 1)),
        st.builds(wire._message, st.integers(1, 12), st.binary(max_size=20)),
    ),
    max_size=6,
).map(b"".join)
# Messages in messages, some of them cut short.
MESSAGES = st.recursive(FIELDS, lambda inner: st.builds(wire._message, st.integers(1, 12), inner))


@pytest.mark.parametrize("read", READERS)
@given(
    data=st.one_of(st.binary(max_size=60), MESSAGES, st.builds(lambda data, cut: data[:cut], MESSAGES, st.integers(0)))
)
def test_garbage(read: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(wire.Malformed):
        read(data)


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers(number: int) -> None:
    assert wire.read_lease(wire._int(2, number)).lease == number


@given(st.text(max_size=300), st.binary(max_size=300), st.integers(0, 2**62))
def test_a_put_is_its_fields(key: str, value: bytes, lease: int) -> None:
    ((number, _, content),) = wire._fields(wire.put_op(key.encode(), value, lease))
    assert number == 2
    fields = {field: integer or bytes(inner) for field, integer, inner in wire._fields(content)}
    expected = {1: key.encode(), 2: value, 3: lease}
    assert fields == {field: content for field, content in expected.items() if content}
