"""Produce (0) and Fetch (1) where they cannot simply be passed on.

A request that names topics which this connection's cluster does not serve is split: what is allowed goes on, the
rest is answered 6 (placed elsewhere: the client asks for Metadata again) or 3 / 100 (nobody knows it). Versions:
Produce 3-13, Fetch 4-18. Topics that have moved come through here as well, and are translated (`moved`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.produce_view import TOPIC_IDS_FROM
from metadata_service.operations.records import MigrationRecord
from metadata_service.view import ServedTopic, View
from proxy.apis.contract import Call, CloseConnection, Handler, Refused
from proxy.apis.metadata import look
from proxy.apis.moved import (
    arrived_here,
    end_at,
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
from proxy.apis.transactions import STRANGERS, has_moved, note_refused
from proxy.moving.judging import judged
from proxy.moving.placing import cut_down, reading
from proxy.session.judge import FETCH, FETCH_TOPIC_IDS_FROM, PRODUCE

# From these versions on a client understands TRANSACTION_ABORTABLE (KIP-890) and NOT_LEADER hints.
ABORTABLE_FROM = 11
NO_SESSION: Message = {"error_code": int(ERROR.FETCH_SESSION_ID_NOT_FOUND), "session_id": 0, "responses": []}


class _DataCall(Call, Protocol):
    async def forward_unanswered(self, request: Message) -> None: ...

    def fetch_session_is_stale(self) -> bool: ...

    def clean_produce(self, response: Message) -> Message: ...

    def closed_not_too_large(self, response: Message) -> None: ...

    def ready(self, migration: str) -> bool: ...

    @property
    def parked(self) -> bool: ...

    async def forward_parked(self, request: Message, topics: Iterable[str]) -> Message | None: ...

    def fetch_code(self, code: int, same: bool) -> int: ...

    def clean_fetch(self, response: Message) -> Message: ...


@dataclass(slots=True)
class Split:
    """A Produce by what may be written here: `asked` is what is passed on, None where that is nothing."""

    request: Message
    field: str
    errors: dict[Any, int]
    there: dict[Any, ServedTopic]  # by what the broker will call them
    asked: Message | None
    too_large: Callable[[Message], None]
    view: View
    version: int
    told: dict[Any, list[Message]]  # partitions that are answered here, of topics that have moved

    @property
    def refused(self) -> bool:
        """Whether something is not passed on."""
        return any(self.errors.values())

    def joined(self, response: Message) -> Message:
        """The client's answer, from the broker's, in place. Raises Refused."""
        self.too_large(response)
        if self.request["transactional_id"] is not None:
            self._unknown_producers(response)
        for one in response["responses"]:
            served = self.there.get(one[self.field])
            if served is not None and translated(served):
                produce_answered(served, one, self.field)
        answers = {one[self.field]: one for one in response["responses"]}
        for name, parts in self.told.items():
            if parts and name in answers:
                answers[name]["partition_responses"] += parts
            elif parts and not self.errors[name]:
                response["responses"].append({self.field: name, "partition_responses": parts})
        for topic in self.request["topic_data"]:
            if code := self.errors[topic[self.field]]:
                response["responses"].append(refused_produce(topic, self.field, code))
        return response

    def _unknown_producers(self, response: Message) -> None:
        """Of an id whose home has moved: these would be fatal, an abort brings it a producer id of its new home. Who
        has been fenced indeed is told so then."""
        if self.version < ABORTABLE_FROM or not has_moved(self.view, self.request["transactional_id"]):
            return
        for topic in response["responses"]:
            for part in topic["partition_responses"]:
                if part["error_code"] in STRANGERS:
                    part["error_code"] = int(ERROR.TRANSACTION_ABORTABLE)


async def split_produce(call: Call, version: int, request: Message) -> Split:
    """Split a Produce by placement. Raises Refused, DecisionFailed, StoreError."""
    data = cast(_DataCall, call)
    field = "topic_id" if version >= TOPIC_IDS_FROM else "name"
    topics = request["topic_data"]
    named = [topic[field] for topic in topics]
    view, _ = await (look(call, (), named) if version >= TOPIC_IDS_FROM else look(call, named))
    await arrived_here(view, call.cluster, {one[field]: [p["index"] for p in one["partition_data"]] for one in topics})
    errors = {topic[field]: _unwritable(view, call.cluster, topic[field]) for topic in topics}
    if (transactional_id := request["transactional_id"]) is not None:
        # A transaction lives on its home, and the first topic an id names decides where that is.
        home = await call.federation.transaction_writes(transactional_id, call.cluster)
        if home != call.cluster:
            note_refused(transactional_id)
            abort = ERROR.TRANSACTION_ABORTABLE if version >= ABORTABLE_FROM else ERROR.TOPIC_AUTHORIZATION_FAILED
            errors = {topic: error or int(abort) for topic, error in errors.items()}
    allowed: list[Message] = []
    there: dict[str | bytes, ServedTopic] = {}
    told: dict[str | bytes, list[Message]] = {}
    for topic in topics:
        name = topic[field]
        served = served_here(view, call.cluster, name)
        if errors[name] or served is None:
            continue
        left = topic
        if served.record.epoch:
            left, told[name] = await judged(served, topic)
            if not left["partition_data"]:
                continue
        try:
            asked = produce_asked(served, left, field) if translated(served) else left
        except Refused as refused:
            errors[name] = refused.code
            continue
        there[asked[field]] = served
        allowed.append(asked)
    passed_on = request | {"topic_data": allowed} if allowed else None
    return Split(request, field, errors, there, passed_on, data.closed_not_too_large, view, version, told)


async def produce(call: Call, version: int, request: Message) -> Message:
    """Split a Produce by placement."""
    data = cast(_DataCall, call)
    split = await split_produce(call, version, request)
    if request["acks"] == 0:
        if split.asked is not None:
            await data.forward_unanswered(split.asked)
        if split.refused:
            # As a broker does: without an answer, closing is the only way to say so (KIP-1 era behaviour).
            raise CloseConnection("acks=0 to a topic that is not served here")
        return {}
    if split.asked is None:
        return split.joined({"responses": []})
    return split.joined(data.clean_produce(await call.forward(split.asked)))


def _unwritable(view: View, cluster: str, topic: str | bytes) -> int:
    served = served_here(view, cluster, topic)
    if served is not None and served.record.hold is not None:
        return ERROR.NOT_LEADER_OR_FOLLOWER
    return why_not(view, cluster, topic)


async def fetch(call: Call, version: int, request: Message) -> Message:
    """Split a Fetch by placement; without a fetch session, so that the next request names everything again."""
    data = cast(_DataCall, call)
    epoch = request.get("session_epoch", -1)
    if epoch > 0 and data.fetch_session_is_stale():
        return {**NO_SESSION, "responses": []}
    field = "topic_id" if version >= FETCH_TOPIC_IDS_FROM else "topic"
    topics = request["topics"]
    named = [topic[field] for topic in topics]
    view, _ = await (look(call, (), named) if version >= FETCH_TOPIC_IDS_FROM else look(call, named))
    await arrived_here(view, call.cluster, {one[field]: [p["partition"] for p in one["partitions"]] for one in topics})
    here: dict[str | bytes, ServedTopic] = {}
    errors: dict[str | bytes, int] = {}
    moves: dict[str | bytes, MigrationRecord] = {}  # those that are judged by partition
    for name in named:
        place = reading(view, call.cluster, name)
        errors[name] = 0 if place is not None else why_not(view, call.cluster, name)
        if place is not None:
            here[name] = place.topic
            if place.move is not None:
                moves[name] = place.move
    moved = {name for name, served in here.items() if translated(served)}
    held = [served.name for served in here.values() if served.record.hold is not None]
    if not moved and not moves and len(here) == len(set(named)):
        answer = await (data.forward_parked(request, held) if held else call.forward(request))
        if answer is None:
            return {**NO_SESSION, "responses": []} if epoch >= 0 else {"session_id": 0, "responses": []}
        _range_judged(data, data.clean_fetch(answer), field, here)
        return answer
    if epoch > 0:
        # An incremental request that adds such a topic: the client starts over with a full one.
        return {**NO_SESSION, "responses": []}
    asked: list[Message] = []
    ready: dict[str | bytes, list[Message]] = {}
    there: dict[str | bytes, ServedTopic] = {}  # by what the broker will call them
    for topic in topics:
        name = topic[field]
        if errors[name]:
            continue
        mine, gone = topic, []
        if name in moves:
            mine, away = cut_down(moves[name], call.cluster, here[name].name, topic, data.ready(moves[name].id))
            gone = refused_fetch({**topic, "partitions": away}, field, int(ERROR.NOT_LEADER_OR_FOLLOWER))["partitions"]
        if name in moved:
            try:
                mine, ready[name] = fetch_asked(here[name], mine, field)
            except Refused as refused:
                errors[name] = refused.code
                continue
        ready[name] = [*ready.get(name, ()), *gone]
        there[mine[field]] = here[name]
        if mine["partitions"]:
            asked.append(mine)
    response: Message = {"responses": []}
    at_once = any(errors.values()) or any(ready.values())
    if asked and not (at_once and data.parked):
        alone: dict[str, Any] = {"topics": asked, "session_id": 0, "session_epoch": -1, "forgotten_topics_data": []}
        if at_once:
            alone["max_wait_ms"] = 0
        answer = await (data.forward_parked(request | alone, held) if held else call.forward(request | alone))
        if answer is None:
            call.view = call.latest()
            return await fetch(call, version, request)
        response = data.clean_fetch(answer)
        _range_judged(data, response, field, there)
        for one in response["responses"]:
            served = there.get(one[field])
            if served is None:
                continue
            if translated(served):
                fetch_answered(served, one, field)
            move = moves.get(served.id if field == "topic_id" else served.name)
            if move is not None and move.source == call.cluster:
                end_at(one, move.cut.get(served.name, {}))
    elif asked and epoch >= 0:
        # The broker still waits with an earlier answer, which nobody waits for: what is known is said without it.
        for topic in asked:
            known = there[topic[field]]
            empty = refused_fetch(topic, field, 0)
            response["responses"].append({**empty, field: known.id if field == "topic_id" else known.name})
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


def _range_judged(call: _DataCall, response: Message, field: str, judged: Mapping[Any, ServedTopic]) -> None:
    """Offsets are called invalid only by who cannot have missed a switch, and of a topic that is where it was."""
    for topic in response["responses"]:
        for one in topic["partitions"]:
            if one["error_code"] == ERROR.OFFSET_OUT_OF_RANGE:
                then = judged.get(topic[field])
                now = reading(call.latest(), call.cluster, then.name) if then is not None else None
                same = then is not None and now is not None and now.topic.record.timeline == then.record.timeline
                one["error_code"] = call.fetch_code(one["error_code"], same)


HANDLERS: dict[int, Handler] = {PRODUCE: produce, FETCH: fetch}
