"""The few messages of etcd's v3 API that we use, as protobuf bytes.

Field numbers are those of etcd's rpc.proto and kv.proto, which are frozen. Written by hand because it is little, reads
a KeyValue several times faster than protobuf's pure Python, and binds the project to no protobuf release (see
docs/design/metadata-store.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from metadata_service.store.contract import StoreError

KV_RANGE = "/etcdserverpb.KV/Range"
KV_TXN = "/etcdserverpb.KV/Txn"
KV_COMPACT = "/etcdserverpb.KV/Compact"
WATCH = "/etcdserverpb.Watch/Watch"
LEASE_GRANT = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
STATUS = "/etcdserverpb.Maintenance/Status"

_EQUAL, _GREATER = 0, 1
_CREATE, _MOD = 1, 2


class Malformed(StoreError):
    """What came is no message of etcd's."""


class EtcdKeyValue(msgspec.Struct, frozen=True, gc=False):
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class RangeAnswer(msgspec.Struct, frozen=True):
    revision: int
    items: list[EtcdKeyValue]
    more: bool
    count: int


class TxnAnswer(msgspec.Struct, frozen=True):
    revision: int
    succeeded: bool
    answers: list[RangeAnswer | TxnAnswer | None]
    """One for each operation; None for puts and deletes."""


class EtcdEvent(msgspec.Struct, frozen=True):
    deleted: bool
    kv: EtcdKeyValue
    previous: EtcdKeyValue | None


class WatchAnswer(msgspec.Struct, frozen=True):
    revision: int
    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    fragment: bool
    events: list[EtcdEvent]


class LeaseAnswer(msgspec.Struct, frozen=True):
    lease: int
    ttl: int
    error: str


# Writing


def _varint(value: int) -> bytes:
    if value < 0:
        value += 1 << 64
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    return _message(field, value) if value else b""


def _message(field: int, value: bytes) -> bytes:
    """Also where it is empty: an empty submessage says something, an empty string does not."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def range_request(
    key: bytes,
    range_end: bytes = b"",
    *,
    limit: int = 0,
    revision: int = 0,
    keys_only: bool = False,
    count_only: bool = False,
    min_mod_revision: int = 0,
) -> bytes:
    return b"".join(
        (
            _bytes(1, key),
            _bytes(2, range_end),
            _int(3, limit),
            _int(4, revision),
            _int(8, keys_only),
            _int(9, count_only),
            _int(10, min_mod_revision),
        )
    )


def range_op(request: bytes) -> bytes:
    return _message(1, request)


def put_op(key: bytes, value: bytes, lease: int) -> bytes:
    return _message(2, _bytes(1, key) + _bytes(2, value) + _int(3, lease))


def delete_op(key: bytes, range_end: bytes = b"") -> bytes:
    return _message(3, _bytes(1, key) + _bytes(2, range_end))


def txn_op(request: bytes) -> bytes:
    return _message(4, request)


def mod_revision_is(key: bytes, revision: int) -> bytes:
    # The revision is written also where it is 0: it is a member of a oneof.
    return _int(1, _EQUAL) + _int(2, _MOD) + _bytes(3, key) + _varint(6 << 3) + _varint(revision)


def exists(key: bytes) -> bytes:
    return _int(1, _GREATER) + _int(2, _CREATE) + _bytes(3, key) + _varint(5 << 3) + _varint(0)


def txn_request(compare: Iterable[bytes], success: Iterable[bytes], failure: Iterable[bytes] = ()) -> bytes:
    parts = [_message(1, part) for part in compare]
    parts += [_message(2, part) for part in success]
    parts += [_message(3, part) for part in failure]
    return b"".join(parts)


def compact_request(revision: int) -> bytes:
    return _int(1, revision)


def grant_request(ttl: int) -> bytes:
    return _int(1, ttl)


def lease_request(lease: int) -> bytes:
    return _int(1, lease)


def authenticate_request(name: str, password: str) -> bytes:
    return _bytes(1, name.encode()) + _bytes(2, password.encode())


def watch_request(key: bytes, range_end: bytes, start_revision: int) -> bytes:
    """With previous values, and large answers in fragments."""
    create = _bytes(1, key) + _bytes(2, range_end) + _int(3, start_revision) + _int(6, 1) + _int(8, 1)
    return _message(1, create)


def progress_request() -> bytes:
    return _message(3, b"")


# Reading


def _read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview | bytes) -> Iterator[tuple[int, int, memoryview | bytes]]:
    """(number, value, bytes) of each field; of the two latter, the one its wire type has. Raises Malformed."""
    at = 0
    end = len(data)
    try:
        while at < end:
            tag, at = _read_varint(data, at)
            kind = tag & 7
            if kind == 0:
                value, at = _read_varint(data, at)
                yield tag >> 3, value, b""
            elif kind == 2:
                length, at = _read_varint(data, at)
                if at + length > end:
                    raise Malformed("a protobuf field is longer than its message")
                yield tag >> 3, 0, data[at : at + length]
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise Malformed(f"protobuf wire type {kind}")
    except IndexError:
        raise Malformed("a protobuf message is cut short") from None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _key_value(data: memoryview | bytes) -> EtcdKeyValue:
    key = value = b""
    create = mod = version = lease = 0
    for number, integer, content in _fields(data):
        if number == 1:
            key = bytes(content)
        elif number == 2:
            create = integer
        elif number == 3:
            mod = integer
        elif number == 4:
            version = integer
        elif number == 5:
            value = bytes(content)
        elif number == 6:
            lease = _signed(integer)
    return EtcdKeyValue(key, value, create, mod, version, lease)


def _header_revision(data: memoryview | bytes) -> int:
    return next((value for number, value, _ in _fields(data) if number == 3), 0)


def read_range(data: memoryview | bytes) -> RangeAnswer:
    revision = count = 0
    more = False
    items: list[EtcdKeyValue] = []
    for number, integer, content in _fields(data):
        if number == 1:
            revision = _header_revision(content)
        elif number == 2:
            items.append(_key_value(content))
        elif number == 3:
            more = bool(integer)
        elif number == 4:
            count = integer
    return RangeAnswer(revision, items, more, count)


def read_txn(data: memoryview | bytes) -> TxnAnswer:
    revision = 0
    succeeded = False
    answers: list[RangeAnswer | TxnAnswer | None] = []
    for number, integer, content in _fields(data):
        if number == 1:
            revision = _header_revision(content)
        elif number == 2:
            succeeded = bool(integer)
        elif number == 3:
            answers.append(_operation_answer(content))
    return TxnAnswer(revision, succeeded, answers)


def _operation_answer(data: memoryview | bytes) -> RangeAnswer | TxnAnswer | None:
    for number, _, content in _fields(data):
        if number == 1:
            return read_range(content)
        if number == 4:
            return read_txn(content)
    return None


def read_watch(data: memoryview | bytes) -> WatchAnswer:
    revision = watch_id = compact_revision = 0
    created = canceled = fragment = False
    reason = ""
    events: list[EtcdEvent] = []
    for number, integer, content in _fields(data):
        if number == 1:
            revision = _header_revision(content)
        elif number == 2:
            watch_id = _signed(integer)
        elif number == 3:
            created = bool(integer)
        elif number == 4:
            canceled = bool(integer)
        elif number == 5:
            compact_revision = integer
        elif number == 6:
            reason = bytes(content).decode(errors="replace")
        elif number == 7:
            fragment = bool(integer)
        elif number == 11:
            events.append(_event(content))
    return WatchAnswer(revision, watch_id, created, canceled, compact_revision, reason, fragment, events)


def _event(data: memoryview | bytes) -> EtcdEvent:
    deleted = False
    kv = _key_value(b"")
    previous: EtcdKeyValue | None = None
    for number, integer, content in _fields(data):
        if number == 1:
            deleted = integer == 1
        elif number == 2:
            kv = _key_value(content)
        elif number == 3:
            previous = _key_value(content)
    return EtcdEvent(deleted, kv, previous)


def read_lease(data: memoryview | bytes) -> LeaseAnswer:
    lease = ttl = 0
    error = ""
    for number, integer, content in _fields(data):
        if number == 2:
            lease = _signed(integer)
        elif number == 3:
            ttl = _signed(integer)
        elif number == 4:
            error = bytes(content).decode(errors="replace")
    return LeaseAnswer(lease, ttl, error)


def read_text(data: memoryview | bytes) -> str:
    """Field 2 as text: the token of Authenticate, the version of Status."""
    return next((bytes(content).decode(errors="replace") for number, _, content in _fields(data) if number == 2), "")
