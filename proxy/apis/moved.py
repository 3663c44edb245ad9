"""Fetch (1) and Produce (0) of topics that have moved, between what clients see and what the serving cluster stores.

Pure but for the tables: requests in, what to ask the broker and what is answered at once out; answers translated in
place. The broker is asked without a fetch session, whose partitions it would otherwise keep by physical offsets.
"""

from __future__ import annotations

from collections.abc import Mapping

from kafka_wire.batches import walk
from kafka_wire.codec import DecodeError, Message
from kafka_wire.errors import ERROR
from kafka_wire.producer_ids import add_to_producer
from metadata_service.view import ServedTopic, View
from offset_sync import serving
from offset_sync.table import Table
from proxy.apis.contract import Refused
from proxy.apis.translation import arrived, current_epoch, offsets_of, table_of, to_logical_epoch
from proxy.moving.guarding import placement_tag

NO_FETCH: Message = {
    "high_watermark": -1,
    "last_stable_offset": -1,
    "log_start_offset": -1,
    "preferred_read_replica": -1,
    "aborted_transactions": None,
    "records": b"",
}


def served_here(view: View, cluster: str, topic: str | bytes) -> ServedTopic | None:
    """The topic if `cluster` serves it, translated or not; by name, or by logical id."""
    served = view.topics.get(topic) if isinstance(topic, str) else view.topics_by_id.get(topic)
    return served if served is not None and served.cluster == cluster else None


def translated(topic: ServedTopic) -> bool:
    """Whether offsets and epochs of this topic are others on its cluster, or its topic id is."""
    return topic.record.epoch > 0 or topic.physical_id != topic.id


async def arrived_here(view: View, cluster: str, asked: Mapping[str | bytes, list[int]]) -> None:
    """Wait for the tables of what is served here, by partition; bounded."""
    found = [(served_here(view, cluster, topic), partitions) for topic, partitions in asked.items()]
    await arrived([(served, partitions) for served, partitions in found if served is not None])


# -- Fetch ------------------------------------------------------------------------------------------------------------


def fetch_asked(topic: ServedTopic, asked: Message, field: str) -> tuple[Message, list[Message]]:
    """(what to ask the broker about a topic of the request, the partitions that are answered at once)."""
    ready: list[Message] = []
    partitions: list[Message] = []
    offsets = offsets_of(topic)
    for one in asked["partitions"]:
        index = one["partition"]
        code, epoch = current_epoch(topic, one.get("current_leader_epoch", -1))
        try:
            position = offsets.to_physical(topic, index, one["fetch_offset"])
        except Refused as refused:
            code, position = code or refused.code, -1
        if code:
            ready.append({"partition_index": index, "error_code": code, **NO_FETCH})
            continue
        partitions.append({**one, "current_leader_epoch": epoch, "fetch_offset": position, "last_fetched_epoch": -1})
    named = topic.physical_id if field == "topic_id" else topic.name
    return {**asked, field: named, "partitions": partitions}, ready


def fetch_answered(topic: ServedTopic, answer: Message, field: str) -> None:
    """A topic of the broker's answer, in place, as clients may see it. Raises DecodeError, Refused."""
    _named(topic, answer, field, "partitions")
    for one in answer["partitions"]:
        if topic.record.epoch == 0:
            continue
        table = table_of(topic, one["partition_index"])
        for name in ("high_watermark", "last_stable_offset"):
            one[name] = serving.bound(table, one[name])
        _log_start(one, table)
        if one.get("aborted_transactions"):
            pairs = [(each["producer_id"], each["first_offset"]) for each in one["aborted_transactions"]]
            one["aborted_transactions"] = [
                {"producer_id": producer, "first_offset": first} for producer, first in serving.aborted(pairs, table)
            ]
        records = one.get("records")
        if records:
            view = memoryview(records)
            told = serving.outgoing(memoryview(bytearray(view)) if view.readonly else view, table, topic.record.epoch)
            one["records"] = told.parts[0] if len(told.parts) == 1 else b"".join(told.parts)


def end_at(answer: Message, ends: Mapping[int, int]) -> None:
    """The former cluster's answer, in place, up to where its placement ended, by partition.

    A marker that came to its log since then would be given an offset that is a record's on the new cluster.
    """
    for one in answer["partitions"]:
        end = ends.get(one["partition_index"])
        if end is None:
            continue
        for name in ("high_watermark", "last_stable_offset"):
            one[name] = min(one[name], end)
        records = one.get("records")
        if records:
            behind = next((each.at for each in walk(records) if each.base_offset >= end), None)
            one["records"] = records if behind is None else records[:behind]


# -- Produce ----------------------------------------------------------------------------------------------------------


def produce_asked(topic: ServedTopic, asked: Message, field: str) -> Message:
    """What to send the broker for a topic of the request. Raises Refused where its tables are not here."""
    rows = asked["partition_data"]
    for one in rows:
        if topic.record.epoch:
            table_of(topic, one["index"])  # without it the answer's offset could not be told
    added = placement_tag(topic)
    if added:
        rows = [{**one, "records": told_apart(one["records"], added)} for one in rows]
    return {**asked, field: topic.physical_id if field == "topic_id" else topic.name, "partition_data": rows}


def told_apart(records: memoryview | bytes | None, added: int) -> memoryview | None:
    """Batches with the ids of idempotent producers as a cluster knows them that has served the topic before: its log
    still has what they wrote then. A copy. A transaction's coordinator compares ids, so those stay."""
    if records is None:
        return None
    out = memoryview(bytearray(records))
    try:
        for one in walk(out):
            if one.magic == 2 and one.producer_id >= 0 and not one.transactional:
                add_to_producer(out[one.at : one.end], added)
    except DecodeError:
        pass  # the broker refuses it
    return out


def produce_answered(topic: ServedTopic, answer: Message, field: str) -> None:
    """A topic of the broker's answer, in place, as clients may see it. Raises Refused."""
    _named(topic, answer, field, "partition_responses")
    for one in answer["partition_responses"]:
        if topic.record.epoch == 0:
            continue
        table = table_of(topic, one["index"])
        one["base_offset"] = serving.bound(table, one["base_offset"])
        _log_start(one, table)


def _named(topic: ServedTopic, answer: Message, field: str, partitions: str) -> None:
    """The topic as clients name it, and leader hints with the epochs they know."""
    answer[field] = topic.id if field == "topic_id" else topic.name
    for one in answer[partitions]:
        if hint := one.get("current_leader"):
            hint["leader_epoch"] = to_logical_epoch(topic, hint.get("leader_epoch", -1))


def _log_start(answer: Message, table: Table) -> None:
    if "log_start_offset" in answer:  # Fetch and Produce from version 5 on
        answer["log_start_offset"] = serving.log_start(table, answer["log_start_offset"])


def refused_fetch(asked: Message, field: str, code: int) -> Message:
    """A topic of a Fetch that is not read here."""
    parts = [{"partition_index": one["partition"], "error_code": code, **NO_FETCH} for one in asked["partitions"]]
    return {field: asked[field], "partitions": parts}


def refused_produce(asked: Message, field: str, code: int) -> Message:
    """A topic of a Produce that is not written here."""
    parts = [
        {"index": one["index"], "error_code": code, "base_offset": -1, "log_start_offset": -1}
        for one in asked["partition_data"]
    ]
    return {field: asked[field], "partition_responses": parts}


def why_not(view: View, cluster: str, topic: str | bytes) -> int:
    """The error for a topic: 0 (it is served here), 6 (another cluster serves it), 3 or 100 (unknown)."""
    if served_here(view, cluster, topic) is not None:
        return 0
    known = view.topics.get(topic) if isinstance(topic, str) else view.topics_by_id.get(topic)
    if known is None:
        return ERROR.UNKNOWN_TOPIC_OR_PARTITION if isinstance(topic, str) else ERROR.UNKNOWN_TOPIC_ID
    return ERROR.NOT_LEADER_OR_FOLLOWER
