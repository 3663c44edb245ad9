"""The clients as tests see them. Every call is one request to the JVM; what a Java client throws comes as JavaError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tools.java_client.wire import Conversation, JavaError, failure

Partition = tuple[str, int]
PartitionOffset = tuple[str, int, int]


class Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    key: str | None
    value: str | None
    timestamp: int
    leader_epoch: int
    delivery_count: int
    headers: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Event:
    """assigned, revoked, lost: `partitions`; error: `error`. A consumer holds after an error that is not retriable."""

    kind: str
    partitions: tuple[Partition, ...] = ()
    error: JavaError | None = None


@dataclass(frozen=True)
class Taken:
    records: list[Record]
    events: list[Event]


@dataclass(frozen=True)
class Sent:
    """What became of record `number`; either acknowledged at (partition, offset), or an error."""

    number: int
    partition: int = -1
    offset: int = -1
    error: JavaError | None = None


@dataclass(frozen=True)
class Transaction:
    """One that a load ended: records `first` .. `first + count - 1`. "unknown": the producer cannot go on.

    `error` is why it was aborted, where that was not asked for, or why nobody knows.
    """

    first: int
    count: int
    how: Literal["committed", "aborted", "unknown"]
    error: JavaError | None = None


@dataclass(frozen=True)
class Gap:
    """So many seconds in which a load got no answer, or a consumer no record; `end` in Unix seconds."""

    end: float
    seconds: float


def _record(row: Sequence[Any]) -> Record:
    return Record._make([*row[:8], tuple((name, value) for name, value in row[8])])


def _event(row: Mapping[str, Any]) -> Event:
    if row["kind"] == "error":
        return Event("error", error=failure(row["error"]))
    return Event(row["kind"], tuple((topic, partition) for topic, partition in row["partitions"]))


def _taken(answer: Mapping[str, Any]) -> Taken:
    return Taken([_record(row) for row in answer["records"]], [_event(row) for row in answer["events"]])


def _sent(rows: Sequence[Sequence[Any]]) -> list[Sent]:
    return [
        Sent(row[0], error=failure(row[1])) if isinstance(row[1], dict) else Sent(row[0], row[1], row[2])
        for row in rows
    ]


def _offsets(rows: Sequence[Sequence[Any]]) -> dict[Partition, int]:
    return {(topic, partition): offset for topic, partition, offset in rows}


class Client:
    def __init__(self, conversation: Conversation, name: str) -> None:
        self._conversation = conversation
        self.name = name

    async def call(self, operation: str, **arguments: Any) -> Any:
        return await self._conversation.ask(
            {"do": "call", "client": self.name, "operation": operation, "arguments": arguments}
        )


class Producer(Client):
    def __init__(self, conversation: Conversation, name: str) -> None:
        super().__init__(conversation, name)
        self.ended: list[Transaction] = []
        """A load's transactions, as far as `take` and `stop` have brought word of them."""

    async def send(
        self,
        topic: str,
        count: int = 1,
        *,
        first: int = 0,
        partition: int | None = None,
        key: str | None = None,
        keys: int = 0,
        prefix: str = "",
        size: int = 0,
        tombstone: bool = False,
        timestamp: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[Sent]:
        """Sends records `first` .. `first + count - 1` and waits for all answers; see `start` for the fields."""
        answer = await self.call(
            "send",
            topic=topic,
            count=count,
            first=first,
            partition=partition,
            key=key,
            keys=keys,
            prefix=prefix,
            size=size,
            tombstone=tombstone,
            timestamp=timestamp,
            headers=dict(headers or {}),
        )
        return _sent(answer["results"])

    async def start(
        self,
        topic: str,
        *,
        per_second: int,
        count: int = 2**31 - 1,
        first: int = 0,
        partition: int | None = None,
        keys: int = 0,
        prefix: str = "",
        size: int = 0,
        per_transaction: int = 0,
        abort_every: int = 0,
    ) -> None:
        """A steady load in the background until `stop`. The value of a record is its prefix, its number, a dot and
        padding up to `size`; `keys` different keys in turn; transactions of `per_transaction` records each, of which
        every `abort_every`th is aborted. One that has to be aborted is, and the next one begins."""
        await self.call(
            "start",
            topic=topic,
            per_second=per_second,
            count=count,
            first=first,
            partition=partition,
            keys=keys,
            prefix=prefix,
            size=size,
            per_transaction=per_transaction,
            abort_every=abort_every,
        )

    async def take(self, count: int = 0, timeout: float = 0) -> list[Sent]:
        """What was answered since the last call; waits until there are `count` answers, at most `timeout` s."""
        return await self._took("take", count=count, timeout=timeout)

    async def stop(self) -> list[Sent]:
        """Ends the load, waits for what is under way, and gives every answer that was not taken yet."""
        return await self._took("stop")

    async def _took(self, operation: str, **arguments: Any) -> list[Sent]:
        answer = await self.call(operation, **arguments)
        self.ended += [
            Transaction(row[0], row[1], row[2], failure(row[3]) if row[3] else None) for row in answer["transactions"]
        ]
        return _sent(answer["results"])

    async def gaps(self) -> list[Gap]:
        """Gaps of 20 ms and more between two acknowledgements since the last call."""
        return [Gap(*row) for row in await self.call("gaps")]

    async def init_transactions(self) -> None:
        await self.call("init_transactions")

    async def begin(self) -> None:
        await self.call("begin")

    async def commit(self) -> None:
        await self.call("commit")

    async def abort(self) -> None:
        await self.call("abort")

    async def send_offsets(
        self, offsets: Sequence[PartitionOffset], *, consumer: Consumer | None = None, group: str | None = None
    ) -> None:
        """sendOffsetsToTransaction: as a member (`consumer`), or for a `group` this process is no member of."""
        await self.call(
            "send_offsets", offsets=list(offsets), consumer=consumer.name if consumer else None, group=group
        )

    async def partitions_for(self, topic: str) -> dict[int, int]:
        """Partition -> leader."""
        return {row["partition"]: row["leader"] for row in await self.call("partitions_for", topic=topic)}


class Consumer(Client):
    """Polls by itself from `subscribe` or `assign` on; `take` gives what it read."""

    async def subscribe(self, *topics: str, pattern: str | None = None, server_pattern: str | None = None) -> None:
        """Names, or a regular expression judged by the client (`pattern`) or by the brokers (`server_pattern`)."""
        await self.call("subscribe", topics=list(topics), pattern=pattern, server_pattern=server_pattern)

    async def unsubscribe(self) -> None:
        await self.call("unsubscribe")

    async def assign(self, *partitions: Partition) -> None:
        await self.call("assign", partitions=list(partitions))

    async def seek(self, partition: Partition, offset: int | Literal["beginning", "end"]) -> None:
        await self.call("seek", partition=list(partition), offset=offset)

    async def read(self, count: int = 0, timeout: float = 20, *, events: int = 0) -> Taken:
        """Records and events since the last call; waits until there are that many of each, at most `timeout` s."""
        return _taken(await self.call("take", count=count, timeout=timeout, events=events))

    async def take(self, count: int, timeout: float = 20) -> list[Record]:
        """At least `count` records, or AssertionError; events are dropped, unless it failed with one."""
        taken = await self.read(count, timeout)
        if len(taken.records) < count:
            raise AssertionError(f"{len(taken.records)} of {count} records after {timeout} s; {taken.events}")
        return taken.records

    async def gaps(self) -> list[Gap]:
        """Gaps of 20 ms and more between two polls that gave records, since the last call."""
        return [Gap(*row) for row in await self.call("gaps")]

    async def hold(self) -> None:
        """No polls until `go_on`: a consumer whose application is stuck."""
        await self.call("hold")

    async def go_on(self) -> None:
        await self.call("go_on")

    async def pause(self) -> None:
        await self.call("pause")

    async def resume(self) -> None:
        await self.call("resume")

    async def commit(self, offsets: Sequence[Sequence[Any]] | None = None) -> None:
        """Its own position, or [(topic, partition, offset[, metadata])]."""
        await self.call("commit", offsets=None if offsets is None else [list(row) for row in offsets])

    async def assignment(self) -> list[Partition]:
        return [(topic, partition) for topic, partition in await self.call("assignment")]

    async def position(self, partition: Partition) -> int:
        return int(await self.call("position", partition=list(partition)))

    async def committed(self, *partitions: Partition) -> dict[Partition, int]:
        """-1: nothing committed."""
        return _offsets(await self.call("committed", partitions=list(partitions)))

    async def beginning_offsets(self, *partitions: Partition) -> dict[Partition, int]:
        return _offsets(await self.call("beginning_offsets", partitions=list(partitions)))

    async def end_offsets(self, *partitions: Partition) -> dict[Partition, int]:
        return _offsets(await self.call("end_offsets", partitions=list(partitions)))

    async def offsets_for_times(self, *times: PartitionOffset) -> dict[Partition, int]:
        return _offsets(await self.call("offsets_for_times", times=list(times)))

    async def list_topics(self) -> list[str]:
        return list(await self.call("list_topics"))

    async def group(self) -> dict[str, Any]:
        """group, member, generation."""
        return dict(await self.call("group"))

    async def enforce_rebalance(self) -> None:
        await self.call("enforce_rebalance")


class ShareConsumer(Client):
    """Polls only inside `take`."""

    async def subscribe(self, *topics: str) -> None:
        await self.call("subscribe", topics=list(topics))

    async def unsubscribe(self) -> None:
        await self.call("unsubscribe")

    async def take(self, count: int = 1, timeout: float = 20, *, once: bool = False) -> list[Record]:
        """Polls until there are `count` records or `timeout` s are over; `once`: until a poll gave any.

        With explicit acknowledgement every record must be acknowledged before the next poll: use `once`."""
        answer = await self.call("take", count=count, timeout=timeout, once=once)
        return [_record(row) for row in answer["records"]]

    async def acknowledge(
        self, records: Sequence[Record], kind: Literal["accept", "release", "reject"] = "accept"
    ) -> None:
        await self.call("acknowledge", records=[list(record[:3]) for record in records], **{"as": kind})

    async def commit(self) -> list[Any]:
        """The partitions whose acknowledgements failed, each with its error."""
        return list(await self.call("commit"))


class Streams(Client):
    async def start(self, *sources: str, sink: str, count: bool = False) -> None:
        """Copies the sources to the sink; `count`: counts them by value, over a repartition and a changelog topic."""
        await self.call("start", sources=list(sources), sink=sink, count=count)

    async def state(self) -> dict[str, str]:
        """state ("RUNNING"), failure ("" or the exception)."""
        return dict(await self.call("state"))


class Admin(Client):
    """`await admin.call(operation, ...)`; the operations are the cases of AdminClient.java, AdminGroups.java and
    AdminSecurity.java. Where Java answers per key, so do they: {key: value or {"error": {...}}}."""

    async def done(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """As `call`, for operations that answer per key; raises the first error any key has."""
        answer: dict[str, Any] = await self.call(operation, **arguments)
        for value in answer.values():
            if isinstance(value, dict) and isinstance(value.get("error"), dict):
                raise failure(value["error"])
        return answer

    async def create_topic(
        self, name: str, partitions: int | None = None, *, config: Mapping[str, str] | None = None
    ) -> None:
        """None: as many partitions as the cluster gives by default; so are replicas. Ready for writes when it returns.

        A broker's metadata is ahead of its logs: an idempotent producer that is quick enough would have its first batch
        refused and its second one taken, and never get over it. Offsets are asked for until there are some.
        """
        await self.done(
            "create_topics", topics=[{"name": name, "partitions": partitions, "config": dict(config or {})}]
        )
        await self.done("list_offsets", partitions=[[name, number, "latest"] for number in range(partitions or 1)])
