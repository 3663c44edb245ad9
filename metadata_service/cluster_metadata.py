"""A Metadata response read incrementally: what did not change is recognised by its bytes and not decoded again.

Reads the body at versions 9 to 13 (every broker since Kafka 2.4). Decoding 10,000 partitions takes a good part of a
second in Python, comparing their bytes a millisecond; and of a large response usually one topic has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kafka_wire.codec import DecodeError, read_uvarint
from kafka_wire.frames import skip_tags
from metadata_service.view import Broker, Partition, PhysicalTopic

LOWEST, HIGHEST = 9, 13
_I32 = struct.Struct(">i")
_PARTITION = struct.Struct(">hiii")
_NO_ID = bytes(16)


@dataclass(frozen=True, slots=True)
class ClusterMetadata:
    """A decoded response. `raw` and `spans` are kept to recognise unchanged topics in the next one."""

    version: int
    cluster_id: str
    controller: int
    brokers: Mapping[int, Broker]
    topics: Mapping[str, PhysicalTopic]
    errors: Mapping[str, int]  # topics the response names with an error instead of partitions
    error: int = 0
    raw: bytes = b""
    topics_at: int = 0
    spans: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)  # encoded name -> its bytes in `raw`
    decoded: int = 0  # topics that had to be decoded


def _string(view: memoryview, pos: int) -> tuple[str, int]:
    size, pos = read_uvarint(view, pos)
    if size == 0:
        return "", pos
    end = pos + size - 1
    if end > len(view):
        raise DecodeError("a string longer than the message")
    return str(view[pos:end], "utf-8"), end


def _ids(view: memoryview, pos: int) -> tuple[tuple[int, ...], int]:
    count, pos = read_uvarint(view, pos)
    count = max(count - 1, 0)
    return struct.unpack_from(f">{count}i", view, pos), pos + 4 * count


def _brokers(view: memoryview, pos: int) -> tuple[dict[int, Broker], int]:
    count, pos = read_uvarint(view, pos)
    brokers: dict[int, Broker] = {}
    for _ in range(max(count - 1, 0)):
        (node,) = _I32.unpack_from(view, pos)
        host, pos = _string(view, pos + 4)
        (port,) = _I32.unpack_from(view, pos)
        rack, pos = _string(view, pos + 4)
        pos = skip_tags(view, pos)
        brokers[node] = Broker(node, host, port, rack or None)
    return dict(sorted(brokers.items())), pos


def _partition(view: memoryview, pos: int) -> tuple[Partition, int]:
    error, index, leader, epoch = _PARTITION.unpack_from(view, pos)
    replicas, pos = _ids(view, pos + _PARTITION.size)
    isr, pos = _ids(view, pos)
    offline, pos = _ids(view, pos)
    return Partition(index, leader, epoch, replicas, isr, offline, error), skip_tags(view, pos)


def _topic(view: memoryview, pos: int, version: int) -> tuple[int, PhysicalTopic, int]:
    """(error code, topic, next position)."""
    (error,) = struct.unpack_from(">h", view, pos)
    name, pos = _string(view, pos + 2)
    topic_id = _NO_ID
    if version >= 10:
        topic_id = bytes(view[pos : pos + 16])
        pos += 16
    internal = view[pos] != 0
    count, pos = read_uvarint(view, pos + 1)
    partitions = []
    for _ in range(max(count - 1, 0)):
        one, pos = _partition(view, pos)
        partitions.append(one)
    pos = skip_tags(view, pos + 4)
    partitions.sort(key=lambda one: one.index)
    return error, PhysicalTopic(name, topic_id, internal, tuple(partitions)), pos


def _newest(topic: PhysicalTopic, before: PhysicalTopic | None) -> PhysicalTopic:
    """Where the broker that answered lags behind what was seen: the partitions of the higher leader epoch."""
    if before is None or before.id != topic.id or topic.id == _NO_ID:
        return topic
    known = {one.index: one for one in before.partitions}
    if all((old := known.get(one.index)) is None or old.leader_epoch <= one.leader_epoch for one in topic.partitions):
        return topic
    merged = tuple(
        old if (old := known.get(one.index)) is not None and old.leader_epoch > one.leader_epoch else one
        for one in topic.partitions
    )
    return PhysicalTopic(topic.name, topic.id, topic.internal, merged)


def read_metadata(body: bytes, version: int, before: ClusterMetadata | None = None) -> ClusterMetadata:
    """The response's body, reusing what `before` holds.

    Raises:
        DecodeError: not such a response, or a version outside 9 to 13.
    """
    if not LOWEST <= version <= HIGHEST:
        raise DecodeError(f"Metadata v{version}")
    try:
        return _read(body, version, before)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"Metadata v{version}: {error}") from None


def _read(body: bytes, version: int, before: ClusterMetadata | None) -> ClusterMetadata:
    view = memoryview(body)
    brokers, pos = _brokers(view, 4)
    cluster_id, pos = _string(view, pos)
    (controller,) = _I32.unpack_from(view, pos)  # under KRaft a random broker: it alone changes from call to call
    pos += 4
    if before is not None and before.version == version and body[pos:] == before.raw[before.topics_at :]:
        return replace(
            before,
            cluster_id=cluster_id,
            controller=controller,
            brokers=before.brokers if before.brokers == brokers else brokers,
            decoded=0,
        )
    start = pos
    usable = before if before is not None and before.version == version else None
    topics: dict[str, PhysicalTopic] = {}
    errors: dict[str, int] = {}
    spans: dict[bytes, tuple[int, int]] = {}
    decoded = 0
    count, pos = read_uvarint(view, pos)
    for _ in range(max(count - 1, 0)):
        size, at = read_uvarint(view, pos + 2)
        key = body[at : at + size - 1]
        if usable is not None and (span := usable.spans.get(key)) is not None:
            end = pos + span[1] - span[0]
            if body[pos:end] == usable.raw[span[0] : span[1]]:
                name = key.decode()
                spans[key] = (pos, end)
                if (same := usable.topics.get(name)) is not None:
                    topics[name] = same
                else:
                    errors[name] = usable.errors[name]
                pos = end
                continue
        error, topic, end = _topic(view, pos, version)
        decoded += 1
        spans[key] = (pos, end)
        if error:
            errors[topic.name] = error
        else:
            topics[topic.name] = _newest(topic, before.topics.get(topic.name) if before else None)
        pos = end
    if version <= 10:
        pos += 4
    (failure,) = struct.unpack_from(">h", view, pos) if version >= 13 else (0,)
    return ClusterMetadata(
        version, cluster_id, controller, brokers, topics, errors, failure, body, start, spans, decoded
    )
