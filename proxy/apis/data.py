"""Produce (0) and Fetch (1) where they cannot simply be passed on.

A request that names topics which this connection's cluster does not serve is split: what is allowed goes on, the
rest is answered 6 (placed elsewhere: the client asks for Metadata again) or 3 / 100 (nobody knows it). Versions:
Produce 3-13, Fetch 4-18. Topics that need a translation or a hold come through here as well.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.produce_view import TOPIC_IDS_FROM
from metadata_service.view import View
from proxy.apis.contract import Call, CloseConnection, Handler
from proxy.apis.metadata import look
from proxy.apis.transactions import note_refused
from proxy.session.judge import FETCH, FETCH_TOPIC_IDS_FROM, PRODUCE, topic_passes

# From these versions on a client understands TRANSACTION_ABORTABLE (KIP-890) and NOT_LEADER hints.
ABORTABLE_FROM = 11


class _DataCall(Call, Protocol):
    async def forward_unanswered(self, request: Message) -> None: ...

    def fetch_session_is_stale(self) -> bool: ...

    def clean_produce(self, response: Message) -> Message: ...

    def clean_fetch(self, response: Message) -> Message: ...


def why_not(view: View, cluster: str, topic: str | bytes) -> int:
    """The error for a topic: 0 (it passes), 6 (another cluster serves it), 3 or 100 (unknown)."""
    if topic_passes(view, cluster, topic):
        return 0
    known = view.topics.get(topic) if isinstance(topic, str) else view.topics_by_id.get(topic)
    if known is None:
        return ERROR.UNKNOWN_TOPIC_OR_PARTITION if isinstance(topic, str) else ERROR.UNKNOWN_TOPIC_ID
    return ERROR.NOT_LEADER_OR_FOLLOWER


async def produce(call: Call, version: int, request: Message) -> Message:
    """Split a Produce by placement."""
    data = cast(_DataCall, call)
    field = "topic_id" if version >= TOPIC_IDS_FROM else "name"
    topics = request["topic_data"]
    named = [topic[field] for topic in topics]
    view, _ = await (look(call, (), named) if version >= TOPIC_IDS_FROM else look(call, named))
    errors = {topic[field]: why_not(view, call.cluster, topic[field]) for topic in topics}
    if (transactional_id := request["transactional_id"]) is not None:
        # A transaction lives on its home, and the first topic an id names decides where that is.
        home = await call.federation.transaction_writes(transactional_id, call.cluster)
        if home != call.cluster:
            note_refused(transactional_id)
            abort = ERROR.TRANSACTION_ABORTABLE if version >= ABORTABLE_FROM else ERROR.TOPIC_AUTHORIZATION_FAILED
            errors = {topic: error or int(abort) for topic, error in errors.items()}
    allowed = [topic for topic in topics if not errors[topic[field]]]
    if request["acks"] == 0:
        if allowed:
            await data.forward_unanswered(request | {"topic_data": allowed})
        if len(allowed) < len(topics):
            # As a broker does: without an answer, closing is the only way to say so (KIP-1 era behaviour).
            raise CloseConnection("acks=0 to a topic that is not served here")
        return {}
    response: Message = {"responses": []}
    if allowed:
        response = data.clean_produce(await call.forward(request | {"topic_data": allowed}))
    for topic in topics:
        if code := errors[topic[field]]:
            parts = [
                {"index": part["index"], "error_code": code, "base_offset": -1, "log_start_offset": -1}
                for part in topic["partition_data"]
            ]
            response["responses"].append({field: topic[field], "partition_responses": parts})
    return response


async def fetch(call: Call, version: int, request: Message) -> Message:
    """Split a Fetch by placement; without a fetch session, so that the next request names everything again."""
    data = cast(_DataCall, call)
    if request.get("session_epoch", -1) > 0 and data.fetch_session_is_stale():
        return {"error_code": ERROR.FETCH_SESSION_ID_NOT_FOUND, "session_id": 0, "responses": []}
    field = "topic_id" if version >= FETCH_TOPIC_IDS_FROM else "topic"
    topics = request["topics"]
    named = [topic[field] for topic in topics]
    view, _ = await (look(call, (), named) if version >= FETCH_TOPIC_IDS_FROM else look(call, named))
    errors = {topic[field]: why_not(view, call.cluster, topic[field]) for topic in topics}
    allowed = [topic for topic in topics if not errors[topic[field]]]
    if len(allowed) == len(topics):
        return data.clean_fetch(await call.forward(request))
    if (version < 7 and not allowed) or (request.get("session_epoch", -1) <= 0 and not allowed):
        response: Message = {"responses": []}
    elif request.get("session_epoch", -1) > 0:
        # An incremental request that adds such a topic: the client starts over with a full one.
        return {"error_code": ERROR.FETCH_SESSION_ID_NOT_FOUND, "session_id": 0, "responses": []}
    else:
        alone: dict[str, Any] = {"topics": allowed, "max_wait_ms": 0, "session_id": 0, "session_epoch": -1}
        response = data.clean_fetch(await call.forward(request | alone))
    for topic in topics:
        if code := errors[topic[field]]:
            parts = [
                {
                    "partition_index": part["partition"],
                    "error_code": code,
                    "high_watermark": -1,
                    "last_stable_offset": -1,
                    "log_start_offset": -1,
                    "preferred_read_replica": -1,
                    "aborted_transactions": None,
                    "records": b"",
                }
                for part in topic["partitions"]
            ]
            response["responses"].append({field: topic[field], "partitions": parts})
    return response


HANDLERS: dict[int, Handler] = {PRODUCE: produce, FETCH: fetch}
