"""Direct writes to a cluster that took a topic over: what their producers wrote elsewhere is not taken again."""

from __future__ import annotations

import trio

from kafka_wire.batches import walk
from kafka_wire.codec import DecodeError, Message
from kafka_wire.errors import ERROR
from metadata_service.operations.fence import GAP_WAIT
from metadata_service.view import ServedTopic
from offset_sync.guard import Verdict
from proxy.apis import translation

LOOK = 0.05  # seconds between two looks at what came before a gap
CODES = {"gap": ERROR.OUT_OF_ORDER_SEQUENCE_NUMBER, "fenced": ERROR.INVALID_PRODUCER_EPOCH}


async def judged(topic: ServedTopic, asked: Message) -> tuple[Message, list[Message]]:
    """(what is left to be sent of a Produce's topic, the results of partitions that are answered here).

    A duplicate succeeds at the offset that its batch has. A gap waits for what comes before it, at most `GAP_WAIT`.
    """
    rows = asked["partition_data"]
    if not any(translation.guarded(topic, one["index"]) for one in rows):
        return asked, []
    left: list[Message] = []
    told: list[Message] = []
    deadline = trio.current_time() + GAP_WAIT
    for one in rows:
        verdict = _verdict(topic, one)
        while verdict.kind in CODES and trio.current_time() < deadline:
            await trio.sleep(LOOK)
            verdict = _verdict(topic, one)
        if verdict.kind == "duplicate":
            told.append({"index": one["index"], "error_code": 0, "base_offset": verdict.offset, **NO_TIMES})
        elif verdict.kind in CODES:
            told.append({"index": one["index"], "error_code": int(CODES[verdict.kind]), "base_offset": -1, **NO_TIMES})
        else:
            left.append(one)
    return {**asked, "partition_data": left}, told


NO_TIMES: Message = {"log_append_time_ms": -1, "log_start_offset": -1}


def _verdict(topic: ServedTopic, one: Message) -> Verdict:
    records = one["records"]
    try:
        batch = next(walk(records), None) if records else None
    except DecodeError:
        batch = None  # for the broker to refuse
    return Verdict("unknown") if batch is None else translation.judged(topic, one["index"], batch)
