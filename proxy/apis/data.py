"""Produce (0) and Fetch (1) where they cannot simply be passed on.

A request that names topics which this connection's cluster does not serve is split: what is allowed goes on, the
rest is answered 6 (placed elsewhere: the client asks for Metadata again) or 3 / 100 (nobody knows it). Versions:
Produce 3-13, Fetch 4-18. Topics that have moved come through here as well, and are translated (`moved`).
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.produce_view import TOPIC_IDS_FROM
from metadata_service.view import ServedTopic, View
from proxy.apis.contract import Call, CloseConnection, Handler, Refused
from proxy.apis.metadata import look
from proxy.apis.moved import (
    fetch_answered,
    fetch_asked,
    produce_answered,
    produce_asked,
    refused_fetch,
    refused_produce,
    served_here,
    translated,
    why_not,
)
from proxy.apis.transactions import note_refused
from proxy.session.judge import FETCH, FETCH_TOPIC_IDS_FROM, PRODUCE

# From these versions on a client understands TRANSACTION_ABORTABLE (KIP-890) and NOT_LEADER hints.
ABORTABLE_FROM = 11


class _DataCall(Call, Protocol):
    async def forward_unanswered(self, request: Message) -> None: ...

    def fetch_session_is_stale(self) -> bool: ...

    def clean_produce(self, response: Message) -> Message: ...

    def clean_fetch(self, response: Message) -> Message: ...


async def produce(call: Call, version: int, request: Message) -> Message:
    """Split a Produce by placement."""
    data = cast(_DataCall, call)
    field = "topic_id" if version >= TOPIC_IDS_FROM else "name"
    topics = request["topic_data"]
    named = [topic[field] for topic in topics]
    view, _ = await (look(call, (), named) if version >= TOPIC_IDS_FROM else look(call, named))
    errors = {topic[field]: _unwritable(view, call.cluster, topic[field]) for topic in topics}
    if (transactional_id := request["transactional_id"]) is not None:
        # A transaction lives on its home, and the first topic an id names decides where that is.
        home = await call.federation.transaction_writes(transactional_id, call.cluster)
        if home != call.cluster:
            note_refused(transactional_id)
            abort = ERROR.TRANSACTION_ABORTABLE if version >= ABORTABLE_FROM else ERROR.TOPIC_AUTHORIZATION_FAILED
            errors = {topic: error or int(abort) for topic, error in errors.items()}
    allowed: list[Message] = []
    there: dict[str | bytes, ServedTopic] = {}  # by what the broker will call them
    for topic in topics:
        name = topic[field]
        served = served_here(view, call.cluster, name)
        if errors[name] or served is None:
            continue
        try:
            asked = produce_asked(served, topic, field) if translated(served) else topic
        except Refused as refused:
            errors[name] = refused.code
            continue
        there[asked[field]] = served
        allowed.append(asked)
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
        for one in response["responses"]:
            served = there.get(one[field])
            if served is not None and translated(served):
                produce_answered(served, one, field)
    for topic in topics:
        if code := errors[topic[field]]:
            response["responses"].append(refused_produce(topic, field, code))
    return response


def _unwritable(view: View, cluster: str, topic: str | bytes) -> int:
    served = served_here(view, cluster, topic)
    if served is not None and served.record.hold is not None:
        return ERROR.NOT_LEADER_OR_FOLLOWER
    return why_not(view, cluster, topic)


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
    here = {name: served for name in named if (served := served_here(view, call.cluster, name)) is not None}
    moved = {name for name, served in here.items() if translated(served)}
    if not moved and len(here) == len(set(named)):
        return data.clean_fetch(await call.forward(request))
    if request.get("session_epoch", -1) > 0:
        # An incremental request that adds such a topic: the client starts over with a full one.
        return {"error_code": ERROR.FETCH_SESSION_ID_NOT_FOUND, "session_id": 0, "responses": []}
    asked: list[Message] = []
    ready: dict[str | bytes, list[Message]] = {}
    there: dict[str | bytes, ServedTopic] = {}  # by what the broker will call them
    for topic in topics:
        name = topic[field]
        if errors[name]:
            continue
        mine = topic
        if name in moved:
            try:
                mine, ready[name] = fetch_asked(here[name], topic, field)
            except Refused as refused:
                errors[name] = refused.code
                continue
        there[mine[field]] = here[name]
        if mine["partitions"]:
            asked.append(mine)
    response: Message = {"responses": []}
    if asked:
        alone: dict[str, Any] = {"topics": asked, "session_id": 0, "session_epoch": -1, "forgotten_topics_data": []}
        if any(errors.values()) or any(ready.values()):
            alone["max_wait_ms"] = 0
        response = data.clean_fetch(await call.forward(request | alone))
    for one in response["responses"]:
        served = there.get(one[field])
        if served is not None and translated(served):
            fetch_answered(served, one, field)
    answers = {one[field]: one for one in response["responses"]}
    for name, parts in ready.items():
        if parts and name in answers:
            answers[name]["partitions"] = [*parts, *answers[name]["partitions"]]
        elif parts:
            response["responses"].append({field: name, "partitions": parts})
    for topic in topics:
        if code := errors[topic[field]]:
            response["responses"].append(refused_fetch(topic, field, code))
    return response


HANDLERS: dict[int, Handler] = {PRODUCE: produce, FETCH: fetch}
