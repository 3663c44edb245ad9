"""A Produce request looked at without decoding it: whose topic, whose transaction, how many partitions.

Only the bytes in front of the first record batch are read, so the answer is there before the body has arrived.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kafka_wire.codec import DecodeError, read_uvarint

FLEXIBLE_FROM = 9
TOPIC_IDS_FROM = 13
_ACKS_TIMEOUT = struct.Struct(">hi")
_I16, _I32 = struct.Struct(">h"), struct.Struct(">i")


class NeedMore(Exception):
    """The bytes end before the first record batch begins."""


@dataclass(frozen=True, slots=True)
class ProduceHead:
    """`topic` is a name (str), or a topic id (bytes of 16) from v13 on; None where the request names no topic.

    `single`: one topic with one partition, so that nothing else is named behind the records; the partition's index
    then lies at `partition_at`.
    """

    transactional_id: str | None
    acks: int
    topic: str | bytes | None
    single: bool
    partition_at: int = 0


def produce_head(frame: memoryview, pos: int, version: int, whole: bool) -> ProduceHead:
    """The head of a Produce request (KIP-98, KIP-482, KIP-516) whose body begins at `pos`.

    Raises:
        NeedMore: `frame` is a beginning that is too short (only where `whole` is False).
        DecodeError: the bytes are no Produce request.
    """
    try:
        return _head(frame, pos, version)
    except (IndexError, struct.error):
        if whole:
            raise DecodeError("a Produce request that ends early") from None
        raise NeedMore from None
    except UnicodeDecodeError:
        raise DecodeError("a topic or transactional id that is not UTF-8") from None


def _text(frame: memoryview, pos: int, size: int) -> str:
    if pos + size > len(frame):
        raise IndexError
    return str(frame[pos : pos + size], "utf-8")


def _head(frame: memoryview, pos: int, version: int) -> ProduceHead:
    transactional_id = None
    flexible = version >= FLEXIBLE_FROM
    if flexible:
        n, pos = read_uvarint(frame, pos)
        n -= 1
    else:
        n, pos = _I16.unpack_from(frame, pos)[0], pos + 2
    if n >= 0:
        transactional_id = _text(frame, pos, n)
        pos += n
    acks, _timeout = _ACKS_TIMEOUT.unpack_from(frame, pos)
    pos += _ACKS_TIMEOUT.size
    if flexible:
        topics, pos = read_uvarint(frame, pos)
        topics -= 1
    else:
        topics, pos = _I32.unpack_from(frame, pos)[0], pos + 4
    if topics < 1:
        return ProduceHead(transactional_id, acks, None, False)
    topic: str | bytes
    if version >= TOPIC_IDS_FROM:
        if pos + 16 > len(frame):
            raise IndexError
        topic, pos = bytes(frame[pos : pos + 16]), pos + 16
    else:
        if flexible:
            n, pos = read_uvarint(frame, pos)
            n -= 1
        else:
            n, pos = _I16.unpack_from(frame, pos)[0], pos + 2
        if n < 0:
            raise DecodeError("a Produce request with a null topic")
        topic, pos = _text(frame, pos, n), pos + n
    if flexible:
        partitions, pos = read_uvarint(frame, pos)
        partitions -= 1
    else:
        partitions, pos = _I32.unpack_from(frame, pos)[0], pos + 4
    return ProduceHead(transactional_id, acks, topic, topics == 1 and partitions == 1, pos)
