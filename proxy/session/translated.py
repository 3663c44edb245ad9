"""Topics that have moved, on the quick way: requests patched where they lie, answers translated in their turn.

Everything that changes has a fixed width: topic ids, offsets, leader epochs, producer ids, and what of a record batch
lies outside its CRC. What cannot be patched so (a partition refused here, a table that is not here yet, a hold, a
producer's duplicate) goes the handlers' way (`proxy.apis.data`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kafka_wire.batches import HEADER, HEADER_SIZE, Batch
from kafka_wire.codec import Message, encode, read_uvarint, write_uvarint
from kafka_wire.fetch_view import FLEXIBLE_FROM, TOPIC_IDS_FROM, FetchWalk
from kafka_wire.produce_view import FLEXIBLE_FROM as PRODUCE_FLEXIBLE_FROM
from kafka_wire.produce_view import TOPIC_IDS_FROM as PRODUCE_TOPIC_IDS_FROM
from kafka_wire.produce_view import ProduceHead
from kafka_wire.producer_ids import add_to_producer
from metadata_service.view import ServedTopic, View
from offset_sync import serving
from offset_sync.table import Table
from proxy.apis import moved, translation
from proxy.apis.contract import CloseConnection, Refused
from proxy.moving.guarding import placement_tag
from proxy.session.judge import FETCH, topic_passes, transaction_passes
from proxy.session.session import Session

_I16, _I32, _I64 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q")


# -- Produce ----------------------------------------------------------------------------------------------------------


def patch_produce(
    session: Session, view: View, version: int, frame: memoryview, head: ProduceHead, whole: bool
) -> ServedTopic | None:
    """Make a Produce with one partition, of a moved topic, one for its cluster; None: it has to be handled.

    `frame` is changed only where the topic is returned. `whole`: all of it is at hand.
    """
    topic = head.topic
    served = moved.served_here(view, session.cluster, topic) if head.single and topic is not None else None
    if served is None or served.record.hold is not None or not moved.translated(served):
        return None
    if not transaction_passes(view, session.cluster, head.transactional_id):
        return None
    at = head.partition_at
    if len(frame) < at + 16:
        return None
    partition = _I32.unpack_from(frame, at)[0]
    if served.record.epoch and translation.here(served, partition) is None:
        return None
    added = placement_tag(served)
    if added or translation.guarded(served, partition):
        if version >= PRODUCE_FLEXIBLE_FROM:
            size, begins = read_uvarint(frame, at + 4)
            size -= 1
        else:
            size, begins = _I32.unpack_from(frame, at + 4)[0], at + 8
        if size < HEADER_SIZE or len(frame) < begins + HEADER_SIZE:
            return None
        one = Batch._make((0, *HEADER.unpack_from(frame, begins)))
        if one.magic != 2 or one.size != size or translation.judged(served, partition, one).kind not in PASSING:
            return None
        if added and one.producer_id >= 0 and not one.transactional:
            if not whole or len(frame) < begins + size:
                return None
            add_to_producer(frame[begins : begins + size], added)
    if version >= PRODUCE_TOPIC_IDS_FROM:
        frame[at - 17 : at - 1] = served.physical_id  # one partition: its count is one byte
    return served


PASSING = ("unknown", "next")


def produce_answer(response: Message, version: int, served: ServedTopic) -> None:
    """The broker's answer to a patched Produce, in place. Raises CloseConnection."""
    field = "topic_id" if version >= PRODUCE_TOPIC_IDS_FROM else "name"
    try:
        for one in response["responses"]:
            moved.produce_answered(served, one, field)
    except Refused as refused:
        raise CloseConnection(str(refused)) from None  # it was here when the request was passed on


# -- Fetch ------------------------------------------------------------------------------------------------------------


def patch_fetch(session: Session, view: View, version: int, frame: memoryview, body: int, request: Message) -> bool:
    """Make a Fetch that names moved topics one for their cluster, where it lies; False: it has to be handled."""
    field = "topic_id" if version >= TOPIC_IDS_FROM else "topic"
    topics: list[Message] = []
    for asked in request["topics"]:
        name = asked[field]
        if topic_passes(view, session.cluster, name):
            topics.append(asked)
            continue
        served = moved.served_here(view, session.cluster, name)
        if served is None or served.record.hold is not None:
            return False
        try:
            mine, refused = moved.fetch_asked(served, asked, field)
        except Refused:
            return False
        if refused:
            return False
        topics.append(mine)
    patched = {**request, "topics": topics}
    if field == "topic_id" and request.get("forgotten_topics_data"):
        patched["forgotten_topics_data"] = [
            {**one, "topic_id": view.to_physical_id(session.cluster, one["topic_id"])}
            for one in request["forgotten_topics_data"]
        ]
    encoded = encode("request", FETCH, version, patched)
    if len(encoded) != len(frame) - body:
        return False  # with fields that are not known here
    frame[body:] = encoded
    return True


class TranslatingWalk(FetchWalk):
    """Walks an answer and translates partition headers on the way; `records` does the batches.

    Topics are those of the view that the request was judged by; what is not translated there passes.
    """

    __slots__ = ("_cluster", "_served", "_table", "_view", "changed")

    def __init__(
        self, version: int, shift: int, view: View, cluster: str, range_code: Callable[[int], int] | None = None
    ) -> None:
        super().__init__(version, shift, range_code)
        self._view = view
        self._cluster = cluster
        self._served: ServedTopic | None = None
        self._table: Table | None = None
        self.neutralise = True  # the endpoints of leader hints: clients ask for Metadata then
        self.changed: list[tuple[int, int, bytes, list[memoryview]]] = []

    def _topic(self, data: memoryview, pos: int) -> int:
        view, cluster = self._view, self._cluster
        if self._version >= TOPIC_IDS_FROM:
            physical = bytes(data[pos : pos + 16])
            logical = view.to_logical_id(cluster, physical)
            served = view.topics_by_id.get(logical)
            if logical != physical:
                data[pos : pos + 16] = logical
        else:
            if self._version >= FLEXIBLE_FROM:
                n, at = read_uvarint(data, pos)
                n -= 1
            else:
                n, at = _I16.unpack_from(data, pos)[0], pos + 2
            served = view.topics.get(str(data[at : at + n], "utf-8"))
        self._served = served if served is not None and served.cluster == cluster and served.record.epoch else None
        return pos

    def _unit(self, data: memoryview, pos: int) -> int:
        topic = self.at_topic
        end = super()._unit(data, pos)
        if topic:
            self._topic(data, pos)
        return end

    def _partition(self, data: memoryview, pos: int) -> int:
        end = super()._partition(data, pos)
        served = self._served
        if served is None:
            return end
        partition = _I32.unpack_from(data, pos)[0]
        table = self._table = translation.here(served, partition)
        if table is None:
            # It was here when this partition was asked for, or when its fetch session began.
            raise CloseConnection(f"the table of {served.name}-{partition} is not here any longer")
        for at in (pos + 6, pos + 14):
            _I64.pack_into(data, at, serving.bound(table, _I64.unpack_from(data, at)[0]))
        at = pos + 22
        if self._version >= 5:
            _I64.pack_into(data, at, serving.log_start(table, _I64.unpack_from(data, at)[0]))
            at += 8
        aborted, at = self._count(data, at)
        for _ in range(max(aborted, 0)):
            first = table.logical(_I64.unpack_from(data, at + 8)[0])
            if first is not None:
                _I64.pack_into(data, at + 8, first)
            at += 16
            if self._version >= FLEXIBLE_FROM:
                at = self._skip_tags(data, at)
        return end

    def _partition_tags(self, data: memoryview, pos: int) -> int:
        end = super()._partition_tags(data, pos)
        if self._served is None or data[pos] == 0:
            return end
        count, pos = read_uvarint(data, pos)
        for _ in range(count):
            tag, pos = read_uvarint(data, pos)
            size, pos = read_uvarint(data, pos)
            if tag == 1:  # CurrentLeader: leader id, leader epoch
                epoch = _I32.unpack_from(data, pos + 4)[0]
                _I32.pack_into(data, pos + 4, translation.to_logical_epoch(self._served, epoch))
            pos += size
        return end

    def records(self, data: memoryview, pos: int, size: int) -> None:
        """Translate the batches at `pos`. Where that changes their size, `changed` says what they become.

        Raises:
            DecodeError: they are no batches. Exhausted: a leader epoch that cannot be expressed.
        """
        if self._served is None or self._table is None:
            return
        placement = self._served.record.epoch
        done = serving.renumbered(data[pos : pos + size], self._table, placement)
        if done == size:
            return
        out = serving.outgoing(data[pos + done : pos + size], self._table, placement)
        kept = done + out.size
        length = bytearray()
        if self._version >= FLEXIBLE_FROM:
            write_uvarint(length, size + 1)
            begins = pos - len(length)
            length.clear()
            write_uvarint(length, kept + 1)
        else:
            begins = pos - 4
            length += _I32.pack(kept)
        self.changed.append((begins, pos + size, bytes(length), [data[pos : pos + done], *out.parts]))

    def rebuilt(self, frame: memoryview) -> list[memoryview | bytes]:
        """The frame (with its size prefix) in pieces, after the walk, with what has changed its size."""
        pieces: list[memoryview | bytes] = []
        done = 4
        for begins, end, length, parts in self.changed:
            pieces += [frame[done:begins], length, *parts]
            done = end
        pieces.append(frame[done:])
        return [_I32.pack(sum(map(len, pieces))), *pieces]
