"""A Fetch response walked without decoding it: partition headers are read and patched, records are stepped over.

Node ids in it (preferred read replica, leader hints) are patched in place, which changes no length, so the walk can
begin to pass a response on before the rest has arrived. The endpoints of leader hints (KIP-951, v16) would change
the length: where the whole response is at hand the caller decodes and rewrites it (`hints`); in a response that is
passed on in pieces the field is turned into a tag that no client knows (`NEUTRAL_TAG`), which KIP-482 has clients
skip; they then ask for Metadata, as after any NOT_LEADER.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kafka_wire.codec import DecodeError, read_uvarint

FLEXIBLE_FROM = 12
TOPIC_IDS_FROM = 13
NEUTRAL_TAG = 100
OFFSET_OUT_OF_RANGE = 1
STALE_LEADER = frozenset((3, 6, 74, 75, 76, 100, 103))  # errors after which this side's metadata is out of date too

_HEAD, _TOPIC, _PARTITION, _RECORDS, _PARTITION_TAGS, _TOPIC_TAGS, _TAGS, _END = range(8)
_I16, _I32 = struct.Struct(">h"), struct.Struct(">i")
_FIXED = struct.Struct(">ihq")  # partition, error, high watermark


class FetchWalk:
    """One response of version 4 to 18.

    Feed it with `advance` from the start of the body. `shift` is added to non-negative node ids. After the walk
    `hints` tells whether a leader hint was seen, `stale` whether an error asks for fresh metadata. `range_code` gives
    the code to put in the place of OFFSET_OUT_OF_RANGE.
    """

    __slots__ = (
        "_partitions",
        "_range_code",
        "_records",
        "_shift",
        "_state",
        "_topics",
        "_version",
        "hints",
        "neutralise",
        "stale",
    )

    def __init__(self, version: int, shift: int, range_code: Callable[[int], int] | None = None) -> None:
        self._version = version
        self._shift = shift
        self._range_code = range_code
        self._state = _HEAD
        self._topics = self._partitions = self._records = 0
        self.hints = self.stale = False
        self.neutralise = False  # set by the caller once the response's beginning is on its way

    @property
    def done(self) -> bool:
        """Whether the last byte has been walked."""
        return self._state == _END

    @property
    def at_topic(self) -> bool:
        """Whether the next unit names a topic."""
        return self._state == _TOPIC

    def advance(self, data: memoryview, pos: int) -> tuple[int, int]:
        """Walk `data` (writable) from `pos`: (next position, bytes of records that begin there).

        (p, 0) and not `done`: a unit (header, tags) that begins at p is not complete in `data`.

        Raises:
            DecodeError: the bytes are no Fetch response.
        """
        try:
            while self._state != _END:
                pos = self._unit(data, pos)
                if self._state == _RECORDS:
                    self._state = _PARTITION_TAGS if self._version >= FLEXIBLE_FROM else self._after_partition()
                    if self._records > 0:
                        return pos, self._records
        except (IndexError, struct.error):
            pass
        return pos, 0

    def _after_partition(self) -> int:
        self._partitions -= 1
        if self._partitions > 0:
            return _PARTITION
        return _TOPIC_TAGS if self._version >= FLEXIBLE_FROM else self._after_topic()

    def _after_topic(self) -> int:
        self._topics -= 1
        if self._topics > 0:
            return _TOPIC
        return _TAGS if self._version >= FLEXIBLE_FROM else _END

    def _unit(self, data: memoryview, pos: int) -> int:
        """One unit; nothing is changed (state or bytes) where it is incomplete, since an exception leaves first."""
        state, flexible = self._state, self._version >= FLEXIBLE_FROM
        if state == _PARTITION:
            return self._partition(data, pos)
        if state == _PARTITION_TAGS:
            pos = self._partition_tags(data, pos)
            self._state = self._after_partition()
        elif state == _TOPIC:
            if self._version >= TOPIC_IDS_FROM:
                pos += 16
            elif flexible:
                n, pos = read_uvarint(data, pos)
                pos += n - 1
            else:
                pos += 2 + _I16.unpack_from(data, pos)[0]
            count, pos = self._count(data, pos)
            self._partitions = count
            self._state = _PARTITION if count > 0 else (_TOPIC_TAGS if flexible else self._after_topic())
        elif state == _TOPIC_TAGS:
            pos = self._skip_tags(data, pos)
            self._state = self._after_topic()
        elif state == _HEAD:
            pos += 4 if self._version < 7 else 10
            count, pos = self._count(data, pos)
            self._topics = count
            self._state = _TOPIC if count > 0 else (_TAGS if flexible else _END)
        else:
            pos = self._tags(data, pos)
            self._state = _END
        return pos

    def _count(self, data: memoryview, pos: int) -> tuple[int, int]:
        if self._version >= FLEXIBLE_FROM:
            n, pos = read_uvarint(data, pos)
            return n - 1, pos
        return _I32.unpack_from(data, pos)[0], pos + 4

    def _partition(self, data: memoryview, pos: int) -> int:
        version, begins = self._version, pos
        _, error, _ = _FIXED.unpack_from(data, pos)
        pos += 22 if version < 5 else 30  # + last stable offset (8), from v5 on log start offset (8)
        aborted, pos = self._count(data, pos)
        if aborted > 0:
            if version >= FLEXIBLE_FROM:
                for _ in range(aborted):
                    pos = self._skip_tags(data, pos + 16)
            else:
                pos += 16 * aborted
        replica_at = pos
        if version >= 11:
            pos += 4
        self._records, pos = self._count(data, pos)
        if self._records > 0x7FFFFFFF:
            raise DecodeError("records of more than 2 GiB")
        if error and self._failed(data, begins, error) in STALE_LEADER:
            self.stale = True
        if version >= 11:
            self._patch(data, replica_at)
        self._state = _RECORDS
        return pos

    def _failed(self, data: memoryview, begins: int, error: int) -> int:
        if error == OFFSET_OUT_OF_RANGE and self._range_code is not None:
            error = self._range_code(error)
            _I16.pack_into(data, begins + 4, error)
        return error

    def _patch(self, data: memoryview, at: int) -> None:
        node = _I32.unpack_from(data, at)[0]
        if node >= 0:
            _I32.pack_into(data, at, node + self._shift)

    def _skip_tags(self, data: memoryview, pos: int) -> int:
        count, pos = read_uvarint(data, pos)
        for _ in range(count):
            _, pos = read_uvarint(data, pos)
            size, pos = read_uvarint(data, pos)
            pos += size
        if pos > len(data):
            raise IndexError
        return pos

    def _partition_tags(self, data: memoryview, pos: int) -> int:
        if data[pos] == 0:
            return pos + 1
        leaders = []
        end = self._skip_tags(data, pos)
        count, pos = read_uvarint(data, pos)
        for _ in range(count):
            tag, pos = read_uvarint(data, pos)
            size, pos = read_uvarint(data, pos)
            if tag == 1:  # CurrentLeader: leader id, leader epoch
                leaders.append(pos)
            pos += size
        for at in leaders:
            self.hints = True
            self._patch(data, at)
        return end

    def _tags(self, data: memoryview, pos: int) -> int:
        if data[pos] == 0:
            return pos + 1
        end = self._skip_tags(data, pos)
        count, pos = read_uvarint(data, pos)
        for _ in range(count):
            at = pos
            tag, pos = read_uvarint(data, pos)
            size, pos = read_uvarint(data, pos)
            if tag == 0:  # NodeEndpoints
                self.hints = True
                if self.neutralise:
                    data[at] = NEUTRAL_TAG
                    data[pos : pos + size] = bytes(size)
            pos += size
        return end
