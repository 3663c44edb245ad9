"""A partition that is given to somebody else while a Fetch for it is on its way."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from kafka_client.topics import FETCH, Fetched, Place, Topic
from kafka_wire.codec import Message, decode
from kafka_wire.frames import response_frame
from replicator.feeder import Feeder, Limit
from replicator.wire import Wanted

VERSION = 12
PLACE: Place = (Topic("orders", bytes(16)), 0)


class Lane:
    """Wants one offset, and notes what it is told."""

    origin = PLACE

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.told: list[Fetched] = []

    def wanted(self) -> Wanted | None:
        return Wanted(self.offset, -1, 1000)

    async def fetched(self, answer: Fetched) -> None:
        self.told.append(answer)


class Broker:
    """A connection, and its stream; answers when it is told to."""

    raw = reauthenticate_at = None
    max_frame = 1 << 20

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.answers, self._answers = trio.open_memory_channel[Message](10)
        self._correlation = 0

    @property
    def stream(self) -> Broker:
        return self

    def version(self, _: int) -> int:
        return VERSION

    @asynccontextmanager
    async def dedicated(self, _: int) -> AsyncIterator[Broker]:
        yield self

    async def send_all(self, data: bytes) -> None:
        (self._correlation,) = struct.unpack_from(">i", data, 8)
        body = memoryview(data)[4 + 4 + 4 + 2 + len(b"kfed-replicator") + 1 :]
        self.requests.append(decode("request", FETCH, VERSION, body, 0))

    async def receive_some(self, _: int) -> bytes:
        return bytes(response_frame(FETCH, VERSION, self._correlation, await self._answers.receive()))


def answer(offset: int) -> Message:
    part = {"partition_index": 0, "error_code": 0, "high_watermark": offset, "log_start_offset": 7, "records": None}
    return {"error_code": 0, "session_id": 5, "responses": [{"topic": "orders", "partitions": [part]}]}


async def test_an_answer_is_for_whom_it_was_asked() -> None:
    broker = Broker()
    feeder = Feeder(broker, 1, Limit(None), lambda _: None)  # type: ignore[arg-type]
    first, second = Lane(100), Lane(90)
    async with trio.open_nursery() as nursery:
        feeder.add(first)
        nursery.start_soon(feeder.run)
        await trio.testing.wait_all_tasks_blocked()
        await broker.answers.send(answer(1))
        await trio.testing.wait_all_tasks_blocked()
        assert [one.high_watermark for one in first.told] == [1]
        assert [(one["session_id"], one["session_epoch"]) for one in broker.requests] == [(0, 0), (5, 1)]
        # The unit begins anew behind the request: it stands where less has been copied.
        feeder.remove(first)
        feeder.add(second)
        await broker.answers.send(answer(2))
        await trio.testing.wait_all_tasks_blocked()
        assert not second.told and len(first.told) == 1
        # What the session thinks is known is not: everything is asked for, and told, again.
        last = broker.requests[-1]
        assert (last["session_id"], last["session_epoch"]) == (5, 0)
        assert last["topics"][0]["partitions"][0]["fetch_offset"] == 90
        await broker.answers.send(answer(3))
        await trio.testing.wait_all_tasks_blocked()
        assert [one.high_watermark for one in second.told] == [3]
        assert broker.requests[-1]["session_epoch"] == 1 and not broker.requests[-1]["topics"]
        nursery.cancel_scope.cancel()
