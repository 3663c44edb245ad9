"""One session's writes to topics that are being moved: requests split by partition, their answers joined in order.

The fence decides for each partition's part; this keeps what belongs to the client's request, and what a part needs to
be sent: the request's frame is read once, and its records are sent as they came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import trio

from kafka_wire.batches import Batch as RecordBatch
from kafka_wire.batches import walk
from kafka_wire.codec import DecodeError, Message, encode, is_flexible
from kafka_wire.errors import ERROR
from kafka_wire.frames import parse_request, response_from_body
from kafka_wire.produce_view import TOPIC_IDS_FROM, NeedMore, produce_head
from metadata_service.operations.fence import Write
from metadata_service.view import ServedTopic
from proxy.apis.contract import Refused
from proxy.apis.moved import produce_answered, produce_asked, translated
from proxy.apis.transactions import STRANGERS
from proxy.moving.lanes import Batch, FarLane, Lane, OwnLane

if TYPE_CHECKING:
    from proxy.moving.worker import WorkerFence
    from proxy.session.session import Session, Slot

PRODUCE, SASL_HANDSHAKE = 0, 17
HEAD = 4096
NO_OFFSET: Message = {"base_offset": -1, "log_append_time_ms": -1, "log_start_offset": -1}
_numbers = count(1)


@dataclass(eq=False, slots=True)
class Part:
    """One partition's part of a request; `result` is the entry of the answer."""

    request: Request
    write: Write
    asked: Message
    result: Message | None = None
    waiting: bool = True  # not sent yet, and not answered
    held: bool = False
    since: float = 0.0

    @property
    def batch(self) -> RecordBatch | None:
        """The header of its first batch; None where it has none that can be read."""
        return first_batch(self.asked)


class Request:
    """A client's Produce that names such topics. `rest` is the answer for its other topics."""

    def __init__(
        self,
        writes: ClientWrites,
        version: int,
        message: Message,
        slot: Slot | None,
        order: list[Any],
        home: str | None,
    ) -> None:
        self.writes = writes
        self.version = version
        self.slot = slot  # None: acks=0
        self.field = "topic_id" if version >= TOPIC_IDS_FROM else "name"
        self.head = {key: value for key, value in message.items() if key != "topic_data"}
        self.order = order
        self.home = home  # of its transaction when it came; None: it has none
        self.parts: list[tuple[Any, Part]] = []
        self.rest: Message = {"responses": []}
        self.left = 1  # parts without an answer, and one for the rest
        self.done = False

    def settled(self) -> None:
        """One more part, or the rest, has its answer."""
        self.left -= 1
        if self.left or self.done:
            return
        self.done = True
        if self.slot is None:
            if any(part.result is not None and part.result["error_code"] for _, part in self.parts):
                self.writes.leaving = True  # as a broker does, which has no other way to say so
        else:
            topics: dict[Any, Message] = {one[self.field]: one for one in self.rest["responses"]}
            for name, part in self.parts:
                entry = topics.setdefault(name, {self.field: name, "partition_responses": []})
                entry["partition_responses"].append(part.result)
            answer = {**self.rest, "responses": [topics[name] for name in dict.fromkeys(self.order) if name in topics]}
            body = encode("response", PRODUCE, self.version, answer)
            frame = response_from_body(PRODUCE, self.version, self.slot.correlation, body)
            self.writes.session.made(self.slot, frame)
        self.writes.finished_one(self)


class ClientWrites:
    """Of one session; `proxy.session.session.Fenced`."""

    def __init__(self, session: Session, fence: WorkerFence) -> None:
        self.id = next(_numbers)
        self.session = session
        self.fence = fence
        self.open: set[Request] = set()
        self.waiting = 0  # parts that are held
        self.leaving = False  # the connection is to be closed once nothing is on its way any longer
        self._own: OwnLane | None = None
        self._far: dict[tuple[str, int], FarLane] = {}
        self._changed = trio.Event()

    # -- Fenced ---------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return bool(self.open)

    @property
    def _blocked(self) -> bool:
        return self.waiting > 0 or (self._own is not None and self._own.unsent)

    def admits(self, window: memoryview) -> bool:
        """What comes behind a held write waits, but for further writes of the kind: they are held in their order."""
        if not self._blocked or len(window) < 12:
            return True
        if self.session.raw_tokens:
            return True
        key, version = int.from_bytes(window[4:6], "big"), int.from_bytes(window[6:8], "big")
        if key == SASL_HANDSHAKE:
            self.fence.reauthenticating(self)
            return not self._blocked
        size = int.from_bytes(window[:4], "big") + 4
        if key != PRODUCE:
            return False
        if len(window) < min(size, HEAD):
            return True  # more is read first
        try:
            topic = _first_topic(window, version)
        except (NeedMore, DecodeError):
            return len(window) < size
        return topic is not None and self.fence.held(topic)

    async def settled(self) -> None:
        while self._blocked:
            await self._changed.wait()

    async def finished(self) -> None:
        while self.pending:
            await self._changed.wait()

    def closed(self) -> None:
        self.fence.left(self)

    def changed(self) -> None:
        """Something was sent, answered or refused."""
        before, self._changed = self._changed, trio.Event()
        before.set()

    def finished_one(self, request: Request) -> None:
        self.open.discard(request)
        self.changed()
        if self.leaving and not self.open:
            self.session.end("acks_0_not_served")

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, cluster: str, parts: Iterable[Part]) -> None:
        """Forward parts to a cluster, in this order; those of one request and one broker together."""
        groups: dict[tuple[Request, int], list[Part]] = {}
        for part in parts:
            if part.waiting:
                part.waiting = False
                self.waiting -= 1
            broker = -1 if cluster == self.session.cluster else self.fence.leader(cluster, part.write)
            if broker is None:
                self.fence.lost(part)
            else:
                groups.setdefault((part.request, broker), []).append(part)
        for (request, broker), some in groups.items():
            self._put(cluster, broker, request, some)
        self.changed()

    def _put(self, cluster: str, broker: int, request: Request, parts: list[Part]) -> None:
        topics: dict[str, list[Part]] = {}
        for part in parts:
            topics.setdefault(part.write.topic, []).append(part)
        asked: list[Message] = []
        served: dict[Any, ServedTopic] = {}  # by what the broker will call it
        sent: list[Part] = []
        for name, some in topics.items():
            topic = self.fence.served(name, cluster)
            entry: Message = {"partition_data": [part.asked for part in some]}
            if topic is not None:
                entry[request.field] = topic.id if request.field == "topic_id" else topic.name
                try:
                    entry = produce_asked(topic, entry, request.field) if translated(topic) else entry
                except Refused:
                    topic = None
            if topic is None:
                for part in some:
                    self.fence.lost(part)
                continue
            served[entry[request.field]] = topic
            asked.append(entry)
            sent += some
        if not sent:
            return

        def answered(response: Message | None) -> None:
            self._answered(cluster, request.field, sent, served, response)

        def lost() -> None:
            for part in sent:
                self.fence.lost(part)

        self._lane(cluster, broker).put(Batch(request.version, {**request.head, "topic_data": asked}, answered, lost))

    def prepare(self, cluster: str, broker: int) -> None:
        """Open the connection that a held write will need."""
        if cluster != self.session.cluster:
            self._lane(cluster, broker)

    def _lane(self, cluster: str, broker: int) -> Lane:
        session = self.session
        if cluster == session.cluster:
            if self._own is None:
                self._own = OwnLane(session)
                self._own.sent_all = self.changed
                session.nursery.start_soon(self._own.run)
            return self._own
        lane = self._far.get((cluster, broker))
        if lane is None or lane.ended:
            principal = session.known_principal if session.around.authenticating(cluster) else None
            lane = self._far[cluster, broker] = FarLane(session, cluster, broker, principal)
            session.nursery.start_soon(lane.run)
        return lane

    def _answered(
        self,
        cluster: str,
        field: str,
        sent: list[Part],
        served: dict[Any, ServedTopic],
        response: Message | None,
    ) -> None:
        found: dict[tuple[str, int], Message] = {}
        raw: dict[tuple[str, int], int] = {}
        if response is not None:
            response = self.fence.cleaned(self.session, response, own=cluster == self.session.cluster)
            for one in response["responses"]:
                topic = served.get(one[field])
                if topic is None:
                    continue
                for entry in one["partition_responses"]:
                    raw[topic.name, entry["index"]] = entry["base_offset"]
                try:
                    if translated(topic):
                        produce_answered(topic, one, field)
                except Refused as refused:
                    for entry in one["partition_responses"]:
                        entry |= {"error_code": refused.code, **NO_OFFSET}
                for entry in one["partition_responses"]:
                    found[topic.name, entry["index"]] = entry
        for entry in found.values():
            if sent[0].request.home is not None and entry["error_code"] in STRANGERS:
                entry["error_code"] = int(self.fence.unknown_producer(sent[0].request))
        for part in sent:
            place = (part.write.topic, part.write.partition)
            entry = found.get(place, {"index": part.write.partition, "error_code": 0, **NO_OFFSET})
            if response is not None and place not in found:
                entry["error_code"] = int(ERROR.UNKNOWN_SERVER_ERROR)
            part.result = entry
            self.fence.answered(part, entry["error_code"], raw.get(place, -1))

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, part: Part, code: int, offset: int = -1) -> None:
        """Answered here: an error, or success at a logical offset."""
        part.result = {"index": part.write.partition, "error_code": code, **NO_OFFSET, "base_offset": offset}
        self.passed(part)

    def passed(self, part: Part) -> None:
        """Its `result` is what the client gets."""
        if part.waiting:
            part.waiting = False
            self.waiting -= 1
        part.request.settled()
        self.changed()


def first_batch(asked: Message) -> RecordBatch | None:
    """The header of the first batch of a partition's entry in a Produce; None where there is none that can be read."""
    records = asked.get("records")
    try:
        return next(walk(records), None) if records else None
    except DecodeError:
        return None


def _first_topic(window: memoryview, version: int) -> str | bytes | None:
    """The first topic of a Produce request at the beginning of `window`. Raises NeedMore, DecodeError."""
    header = parse_request(window[4:], is_flexible(PRODUCE, version))
    return produce_head(window[4:], header.body, version, False).topic
