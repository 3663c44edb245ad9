"""What a partition's leader answers about positions, and share consumption.

ListOffsets 2 (1-11), OffsetForLeaderEpoch 23 (2-4), DeleteRecords 21 (0-2), DescribeProducers 61 (0),
WriteTxnMarkers 27 (1-2), ShareFetch 78 (1-2), ShareAcknowledge 79 (1-2).

A request goes to this connection's broker, for the topics the view places on its cluster; the others are answered 6
(NOT_LEADER_OR_FOLLOWER), what nobody has 3 or 100, and both answers are joined in the request's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.view import ServedTopic, View
from proxy.apis.contract import Call, Handler, Refused
from proxy.apis.mapping import forward, to_physical_ids
from proxy.apis.metadata import find
from proxy.apis.refusals import refusal
from proxy.apis.transactions import without_placement
from proxy.apis.translation import arrived, current_epoch, epoch_end, offsets_of, to_logical_epoch

LIST_OFFSETS, DELETE_RECORDS, LEADER_EPOCH, MARKERS, PRODUCERS = 2, 21, 23, 27, 61
SHARE_FETCH, SHARE_ACKNOWLEDGE = 78, 79
CONSUMER, DEBUGGER = -1, -2  # replica ids of clients
EARLIEST = -2  # ListOffsets' timestamp for where the log begins


def _placed(view: View, cluster: str, topics: Iterable[Message], field: str) -> tuple[list[Message], list[Message]]:
    """(topics served by `cluster`, the others)."""
    here: list[Message] = []
    others: list[Message] = []
    for one in topics:
        topic = view.topics.get(one[field])
        (here if topic is not None and topic.cluster == cluster else others).append(one)
    return here, others


def _refused(key: int, version: int, view: View, others: Iterable[Message], field: str, results: str) -> list[Message]:
    """Results for topics that are not served here."""
    out: list[Message] = []
    for one in others:
        code = ERROR.NOT_LEADER_OR_FOLLOWER if one[field] in view.topics else ERROR.UNKNOWN_TOPIC_OR_PARTITION
        out += refusal(key, version, {"topics": [one]}, code)[results]
    return out


async def _split(
    call: Call,
    key: int,
    version: int,
    request: Message,
    field: str = "name",
    *,
    prepare: Callable[[ServedTopic, Message], tuple[Message, list[Message]]] | None = None,
    finish: Callable[[ServedTopic, Message], None] | None = None,
) -> Message:
    """Ask this broker about the topics served here; join with the results of the others.

    `prepare` turns a topic of the request into (what to ask, partition results that are known already); `finish`
    maps a topic's result in place. Either may raise Refused: then the topic is refused.
    """
    if request.get("replica_id", CONSUMER) not in (CONSUMER, DEBUGGER):
        raise Refused(ERROR.CLUSTER_AUTHORIZATION_FAILED)  # no broker is a client here
    view = await find(call, [one[field] for one in request["topics"]])
    here, others = _placed(view, call.cluster, request["topics"], field)
    await arrived([(view.topics[one[field]], _numbers(one)) for one in here])
    joined = _refused(key, version, view, others, field, "topics")
    known: dict[str, list[Message]] = {}
    asked: list[Message] = []
    for one in here:
        try:
            mine, ready = (one, []) if prepare is None else prepare(view.topics[one[field]], one)
        except Refused as error:
            joined += refusal(key, version, {"topics": [one]}, error.code, error.text)["topics"]
            continue
        known[one[field]] = ready
        asked.append(mine)
    response: Message = {"topics": []}
    if any(mine.get("partitions", mine.get("partition_indexes")) for mine in asked) or not (joined or known):
        response = await forward(call, view, key, {**request, "topics": asked})
    answers = {one[field]: one for one in response["topics"]}
    for name, ready in known.items():
        result = answers.get(name, {field: name, "partitions": []})
        try:
            if finish is not None:
                finish(view.topics[name], result)
        except Refused as error:
            again = next(one for one in here if one[field] == name)
            result = refusal(key, version, {"topics": [again]}, error.code, error.text)["topics"][0]
        else:
            result["partitions"] = [*ready, *result["partitions"]]
        joined.append(result)
    found = {one[field]: one for one in joined}
    response["topics"] = [found[one[field]] for one in request["topics"] if one[field] in found]
    return response


def _numbers(topic: Message) -> list[int]:
    """The partitions that a topic of a request names."""
    if "partition_indexes" in topic:
        return list(topic["partition_indexes"])
    return [one["partition"] if "partition" in one else one["partition_index"] for one in topic["partitions"]]


async def list_offsets(call: Call, version: int, request: Message) -> Message:
    beginnings: set[tuple[str, int]] = set()

    def prepare(topic: ServedTopic, asked: Message) -> tuple[Message, list[Message]]:
        offsets_of(topic)
        partitions: list[Message] = []
        ready: list[Message] = []
        for one in asked["partitions"]:
            if one["timestamp"] == EARLIEST:
                beginnings.add((topic.name, one["partition_index"]))
            code, epoch = current_epoch(topic, one.get("current_leader_epoch", -1))
            if code:
                ready.append({"partition_index": one["partition_index"], "error_code": code})
            else:
                partitions.append({**one, "current_leader_epoch": epoch})
        return {**asked, "partitions": partitions}, ready

    def finish(topic: ServedTopic, result: Message) -> None:
        offsets = offsets_of(topic)
        for one in result["partitions"]:
            index = one["partition_index"]
            to_logical = offsets.to_log_start if (topic.name, index) in beginnings else offsets.to_logical
            one["offset"] = to_logical(topic, index, one["offset"])
            one["leader_epoch"] = to_logical_epoch(topic, one.get("leader_epoch", -1))

    return await _split(call, LIST_OFFSETS, version, request, prepare=prepare, finish=finish)


async def offset_for_leader_epoch(call: Call, version: int, request: Message) -> Message:
    def prepare(topic: ServedTopic, asked: Message) -> tuple[Message, list[Message]]:
        offsets_of(topic)
        partitions: list[Message] = []
        ready: list[Message] = []
        for one in asked["partitions"]:
            code, epoch = current_epoch(topic, one.get("current_leader_epoch", -1))
            past = epoch_end(topic, one["partition"], one["leader_epoch"]) if one["leader_epoch"] >= 0 else None
            if code:
                ready.append({"partition": one["partition"], "error_code": code})
            elif past is not None:
                told = {"leader_epoch": past[0], "end_offset": past[1]}
                ready.append({"partition": one["partition"], "error_code": 0, **told})
            else:
                _, wanted = current_epoch(topic, one["leader_epoch"])
                partitions.append({**one, "current_leader_epoch": epoch, "leader_epoch": wanted})
        return {**asked, "partitions": partitions}, ready

    def finish(topic: ServedTopic, result: Message) -> None:
        offsets = offsets_of(topic)
        for one in result["partitions"]:
            one["end_offset"] = offsets.to_logical(topic, one["partition"], one["end_offset"])
            one["leader_epoch"] = to_logical_epoch(topic, one.get("leader_epoch", -1))

    return await _split(call, LEADER_EPOCH, version, request, "topic", prepare=prepare, finish=finish)


async def delete_records(call: Call, version: int, request: Message) -> Message:
    def prepare(topic: ServedTopic, asked: Message) -> tuple[Message, list[Message]]:
        offsets = offsets_of(topic)
        partitions = [
            {**one, "offset": offsets.to_deletable(topic, one["partition_index"], one["offset"])}
            for one in asked["partitions"]
        ]
        return {**asked, "partitions": partitions}, []

    def finish(topic: ServedTopic, result: Message) -> None:
        offsets = offsets_of(topic)
        for one in result["partitions"]:
            one["low_watermark"] = offsets.to_log_start(topic, one["partition_index"], one["low_watermark"])

    return await _split(call, DELETE_RECORDS, version, request, prepare=prepare, finish=finish)


async def describe_producers(call: Call, version: int, request: Message) -> Message:
    """Producer ids as their producers know them; positions of open transactions as clients see them."""

    def finish(topic: ServedTopic, result: Message) -> None:
        offsets = offsets_of(topic)
        for partition in result["partitions"]:
            for one in partition.get("active_producers", ()):
                one["producer_id"] = without_placement(one["producer_id"])
                start = one.get("current_txn_start_offset", -1)
                one["current_txn_start_offset"] = offsets.to_logical(topic, partition["partition_index"], start)

    return await _split(call, PRODUCERS, version, request, finish=finish)


async def write_markers(call: Call, version: int, request: Message) -> Message:
    """How an operator ends a hanging transaction (`kafka-transactions abort`); the broker asks for ALTER or more."""
    view = await find(call, {topic["name"] for marker in request["markers"] for topic in marker["topics"]})
    asked: list[Message] = []
    refused: dict[int, list[Message]] = {}
    for marker in request["markers"]:
        here, others = _placed(view, call.cluster, marker["topics"], "name")
        asked.append({**marker, "topics": here})
        for one in others:
            code = ERROR.NOT_LEADER_OR_FOLLOWER if one["name"] in view.topics else ERROR.UNKNOWN_TOPIC_OR_PARTITION
            partitions = [{"partition_index": index, "error_code": code} for index in one["partition_indexes"]]
            refused.setdefault(marker["producer_id"], []).append({"name": one["name"], "partitions": partitions})
    asked = [marker for marker in asked if marker["topics"]]
    response: Message = {"markers": []}
    if asked or not refused:
        response = await forward(call, view, MARKERS, {"markers": asked})
    for producer_id, topics in refused.items():
        mine = next((one for one in response["markers"] if one["producer_id"] == producer_id), None)
        if mine is None:
            response["markers"].append({"producer_id": producer_id, "topics": topics})
        else:
            mine["topics"] += topics
    return response


def _shared(key: int) -> Handler:
    """Share consumption: topics by id. Share groups read topics of one cluster, and none that is being translated."""

    async def handler(call: Call, version: int, request: Message) -> Message:
        view = await find(call, (), [one["topic_id"] for one in request["topics"]])
        here: list[Message] = []
        refused: list[Message] = []
        for one in request["topics"]:
            topic = view.topics_by_id.get(one["topic_id"])
            if topic is not None and topic.cluster == call.cluster and topic.record.epoch == 0:
                here.append(one)
                continue
            code = ERROR.UNKNOWN_TOPIC_ID if topic is None else ERROR.NOT_LEADER_OR_FOLLOWER
            refused += refusal(key, version, {"topics": [one]}, code)["responses"]
        asked = to_physical_ids(view, call.cluster, key, version, {**request, "topics": here})
        # Also with nothing left to ask: the session's epoch, and its end, are the broker's to count.
        response = await forward(call, view, key, asked)
        if not response["error_code"]:
            response["responses"] = [*response["responses"], *refused]
        return response

    return handler


HANDLERS: dict[int, Handler] = {
    LIST_OFFSETS: list_offsets,
    DELETE_RECORDS: delete_records,
    LEADER_EPOCH: offset_for_leader_epoch,
    MARKERS: write_markers,
    PRODUCERS: describe_producers,
    SHARE_FETCH: _shared(SHARE_FETCH),
    SHARE_ACKNOWLEDGE: _shared(SHARE_ACKNOWLEDGE),
}
