"""Groups over both clusters with three libraries: protocols, members, expressions, positions, restarts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest
import trio
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as Position

from tests.e2e.reading import BOUND, create, produce, take
from tests.fixtures.sides import Said, Side, Sides
from tools.java_client import Consumer as JavaConsumer
from tools.java_client import Jvm

Protocol = Literal["classic", "consumer"]
PROTOCOLS = ("classic", "consumer")


def both(sides: Sides, word: str) -> list[str]:
    """A topic on either cluster."""
    return [sides.here.topic(word), sides.there.topic(word)]


def fill(sides: Sides, topics: list[str], first: int, count: int) -> list[tuple[str, bytes]]:
    """(topic, value) of what was produced: `count` records from number `first` on to each topic."""
    records = [
        {"topic": topic, "partition": n % 2, "value": b"%d" % n}
        for n in range(first, first + count)
        for topic in topics
    ]
    produce(sides.here.librdkafka, records, enable_idempotence=True)
    return [(str(one["topic"]), bytes(one["value"])) for one in records]  # type: ignore[call-overload]


def read_as_group(sides: Sides, topics: list[str], count: int, **settings: Any) -> list[tuple[str, bytes | None]]:
    """`count` records, then whatever else there is at once; committed."""
    named = {name.replace("_", "."): value for name, value in settings.items()}
    base = {"auto.offset.reset": "earliest", "enable.auto.commit": False, "log_level": 0}
    consumer = Consumer({**sides.here.librdkafka, **base, **named})
    found: list[tuple[str, bytes | None]] = []
    consumer.subscribe(topics)
    try:
        quiet = 0
        for _ in range(600):
            message = consumer.poll(0.2)
            if message is None:
                quiet += 1
                if len(found) >= count and quiet >= 3:
                    break
                continue
            assert message.error() is None, message.error()
            found.append((message.topic() or "", message.value()))
            quiet = 0
        assert len(found) >= count, f"{len(found)} of {count}"
        consumer.commit(asynchronous=False)
    finally:
        consumer.close()
    return found


@pytest.mark.parametrize("ending", ["", "-west"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_librdkafka_restarts_where_it_was(sides: Sides, protocol: Protocol, ending: str) -> None:
    """A group of either home over topics of both clusters: nothing lost, nothing twice."""
    topics = both(sides, "restart")
    create(sides.here.librdkafka, *topics, partitions=2)
    group = sides.here.group("g") + ending
    everything: list[tuple[str, bytes | None]] = []
    expected: list[tuple[str, bytes]] = []
    for start in range(3):
        expected += fill(sides, topics, start * 40, 40)
        everything += read_as_group(sides, topics, 80, group_id=group, group_protocol=protocol)
    assert sorted(everything, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_java_restarts_where_it_was(sides: Sides, jvm: Jvm, protocol: Protocol) -> None:
    topics = both(sides, "restart")
    await trio.to_thread.run_sync(partial(create, sides.here.librdkafka, *topics, partitions=2))
    group, everything = sides.there.group("g"), []
    async with jvm.producer(sides.here.java) as producer:
        for start in range(3):
            for topic in topics:
                await producer.send(topic, 40, first=start * 40)
            async with jvm.consumer(sides.here.java, group=group, protocol=protocol) as consumer:
                await consumer.subscribe(*topics)
                everything += await consumer.take(80)
                everything += (await consumer.read(1, 0.3)).records
                await consumer.commit()
    found = sorted((each.topic, int(each.value or "")) for each in everything)
    assert found == sorted((topic, n) for topic in topics for n in range(120))


def test_aiokafka_restarts_where_it_was(sides: Sides) -> None:
    topics = both(sides, "restart")
    create(sides.here.librdkafka, *topics, partitions=2)

    async def read(count: int) -> list[tuple[str, bytes | None]]:
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=sides.here.bootstrap,
            group_id=sides.here.group("aio"),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            found: list[tuple[str, bytes | None]] = []
            while len(found) < count:
                batch = await asyncio.wait_for(consumer.getone(), BOUND)
                found.append((batch.topic, batch.value))
            for more in (await consumer.getmany(timeout_ms=300)).values():
                found += [(one.topic, one.value) for one in more]
            await consumer.commit()
            return found
        finally:
            await consumer.stop()

    everything: list[tuple[str, bytes | None]] = []
    expected: list[tuple[str, bytes]] = []
    for start in range(3):
        expected += fill(sides, topics, start * 40, 40)
        everything += asyncio.run(read(80))
    assert sorted(everything, key=str) == sorted(expected, key=str)


@dataclass
class Group:
    """Members, and what all of them have read; records given twice count once."""

    members: list[JavaConsumer]
    records: set[tuple[str, str]]

    async def _read(self) -> None:
        for member in self.members:
            taken = await member.read(1, 0.05)
            self.records.update((each.topic, each.value or "") for each in taken.records)

    async def spread(self, partitions: int) -> None:
        """Until every member has its share, and all partitions are assigned once."""
        with trio.fail_after(60):
            while True:
                held = [await member.assignment() for member in self.members]
                every = [one for some in held for one in some]
                if all(held) and len(every) == len(set(every)) == partitions:
                    return
                await self._read()

    async def gather(self, count: int) -> None:
        with trio.move_on_after(60):
            while len(self.records) < count:
                await self._read()
        assert len(self.records) == count


@pytest.mark.parametrize("kind", ["eager", "cooperative", "static", "consumer"])
async def test_java_members_share_topics_of_both_clusters(sides: Sides, jvm: Jvm, kind: str) -> None:
    """Two, one, two members under load: every record once in the end, in order, whatever moves."""
    topics = both(sides, "shared")
    await trio.to_thread.run_sync(partial(create, sides.here.librdkafka, *topics, partitions=2))
    protocol: Protocol = "consumer" if kind == "consumer" else "classic"
    member = partial(
        jvm.consumer,
        sides.here.java,
        group=sides.here.group("g"),
        protocol=protocol,
        cooperative=kind == "cooperative",
        auto_commit=True,
    )

    def named(number: int) -> dict[str, Any]:
        return {"instance_id": f"m{number}"} if kind == "static" else {}

    async with jvm.producer(sides.here.java) as producer:
        records: set[tuple[str, str]] = set()

        async def more(first: int) -> None:
            for topic in topics:
                await producer.send(topic, 50, first=first)

        await more(0)
        async with member(**named(1)) as one:
            await one.subscribe(*topics)
            async with member(**named(2)) as two:
                await two.subscribe(*topics)
                together = Group([one, two], records)
                await together.spread(4)
                await more(50)
                await together.gather(200)
            await more(100)
            if kind == "static":
                # Its partitions wait for it: it comes back under its name and goes on.
                async with member(**named(2)) as again:
                    await again.subscribe(*topics)
                    together = Group([one, again], records)
                    await together.spread(4)
                    await together.gather(300)
            else:
                await Group([one], records).gather(300)
        assert records == {(topic, str(n)) for topic in topics for n in range(150)}


def test_librdkafka_members_rebalance(sides: Sides) -> None:
    for strategy in ("range", "cooperative-sticky"):
        topics = both(sides, f"r-{strategy}")
        create(sides.here.librdkafka, *topics, partitions=2)
        settings = {
            "group.id": sides.here.group(strategy),
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": strategy,
            "session.timeout.ms": 6000,
            "log_level": 0,
        }
        members = [Consumer({**sides.here.librdkafka, **settings}) for _ in range(2)]
        try:
            for member in members:
                member.subscribe(topics)
            fill(sides, topics, 0, 40)
            found: set[tuple[str, bytes | None]] = set()
            for _ in range(600):
                for member in members:
                    message = member.poll(0.05)
                    if message is not None and message.error() is None:
                        found.add((message.topic() or "", message.value()))
                if len(found) == 80 and all(len(member.assignment()) == 2 for member in members):
                    break
            assert len(found) == 80, strategy
            assert [len(member.assignment()) for member in members] == [2, 2], strategy
        finally:
            for member in members:
                member.close()


async def test_java_expressions_find_topics_of_both_clusters(sides: Sides, jvm: Jvm) -> None:
    """Judged by the client (both protocols) and by the brokers (RE2, KIP-848), also for topics made later."""
    first, later = both(sides, "expr"), both(sides, "expr-later")
    await trio.to_thread.run_sync(partial(create, sides.here.librdkafka, *first))
    expression = f"expr.*-({sides.here.run}|{sides.there.run}-west)"
    found: dict[str, set[str]] = {}

    async with jvm.admin(sides.here.java) as admin, jvm.producer(sides.here.java) as producer:

        async def follow(protocol: Protocol, server: bool, task_status: trio.TaskStatus[None]) -> None:
            name = f"{protocol}-{server}"
            async with jvm.consumer(sides.here.java, group=sides.here.group(name), protocol=protocol) as consumer:
                if server:
                    await consumer.subscribe(server_pattern=expression)
                else:
                    await consumer.subscribe(pattern=expression)
                await consumer.take(2, 40)
                task_status.started()
                seen = found.setdefault(name, set())
                with trio.move_on_after(40):
                    while not seen >= set(later):
                        # Without commits a rebalance makes it read the first ones again.
                        seen |= {each.topic for each in (await consumer.read(1, 0.5)).records}

        for topic in first:
            await producer.send(topic, 1)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as starting:
                for protocol, server in (("classic", False), ("consumer", False), ("consumer", True)):
                    starting.start_soon(nursery.start, follow, protocol, server)
            for topic in later:
                await admin.create_topic(topic, 1)
                await producer.send(topic, 1)
    assert len(found) == 3
    assert all(set(first) | topics == {*first, *later} for topics in found.values()), found


def test_expressions_of_librdkafka_and_aiokafka(sides: Sides) -> None:
    topics = both(sides, "expr")
    create(sides.here.librdkafka, *topics, partitions=2)
    fill(sides, topics, 0, 4)
    expression = f"^expr-({sides.here.run}|{sides.there.run}-west)$"
    for protocol in PROTOCOLS:
        group = {"group_id": sides.here.group(protocol), "group_protocol": protocol}
        assert len(read_as_group(sides, [expression], 8, **group)) == 8, protocol

    async def read() -> int:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=sides.here.bootstrap, group_id=sides.here.group("aio"), auto_offset_reset="earliest"
        )
        consumer.subscribe(pattern=expression)
        await consumer.start()
        try:
            return len([await asyncio.wait_for(consumer.getone(), BOUND) for _ in range(8)])
        finally:
            await consumer.stop()

    assert asyncio.run(read()) == 8


async def test_positions_of_java(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        topic = side.topic("positions")
        zero, one = (topic, 0), (topic, 1)
        async with (
            jvm.admin(side.java) as admin,
            jvm.producer(side.java) as producer,
            jvm.consumer(side.java, group=side.group("g")) as consumer,
        ):
            await admin.create_topic(topic, 2, config={"retention.ms": "-1"})
            for n in range(10):
                await producer.send(topic, 1, first=n, partition=0, timestamp=1_000_000 + 1000 * n)
            say("beginning", sorted((await consumer.beginning_offsets(zero, one)).values()))
            say("end", sorted((await consumer.end_offsets(zero, one)).values()))
            times = [(topic, 0, 1_004_500), (topic, 0, 0), (topic, 0, 9_999_999), (topic, 1, 0)]
            for time in times:
                say(f"at {time[1:]}", list((await consumer.offsets_for_times(time)).values()))
            await consumer.assign(zero, one)
            say("all", [each.offset for each in await consumer.take(10)])
            await consumer.hold()
            places: tuple[Literal["beginning", "end"] | int, ...] = (4, "end", "beginning", 9)
            for where in places:
                await consumer.seek(zero, where)
                say(f"position {where}", await consumer.position(zero))
            await consumer.go_on()
            say("last", [each.value for each in await consumer.take(1)])
            await consumer.commit([[topic, 0, 7, "here"]])
            say("committed", list((await consumer.committed(zero, one)).values()))
            await consumer.seek(zero, 500)
            say("too far", [each.offset for each in await consumer.take(10)])
            await admin.call("delete_records", offsets=[[topic, 0, 3]])
            await consumer.seek(zero, 1)
            say("deleted", [each.offset for each in await consumer.take(7)])
            listed = await consumer.list_topics()
            say("listed", topic in listed)
            say("leaders", len(await producer.partitions_for(topic)))

    await sides.compare(script)


def test_positions_of_librdkafka(sides: Sides) -> None:
    def work(side: Side) -> object:
        topic, said = side.topic("positions"), list[object]()
        create(side.librdkafka, topic, retention_ms="-1")
        base = {"topic": topic, "partition": 0}
        produce(side.librdkafka, [{**base, "value": b"%d" % n, "timestamp": 1_000_000 + 1000 * n} for n in range(10)])
        settings = {"group.id": side.group("g"), "enable.auto.commit": False, "auto.offset.reset": "error"}
        consumer = Consumer({**side.librdkafka, **settings, "log_level": 0})
        try:
            said.append(consumer.get_watermark_offsets(Position(topic, 0), timeout=BOUND))
            found = consumer.offsets_for_times([Position(topic, 0, 1_004_500)], timeout=BOUND)
            said.append([one.offset for one in found])
            consumer.assign([Position(topic, 0, 6)])
            said.append([one.offset for one in take(consumer, 4)])
            consumer.seek(Position(topic, 0, 2))
            said.append([one.value for one in take(consumer, 3)])
            consumer.commit(offsets=[Position(topic, 0, 8)], asynchronous=False)
            said.append([one.offset for one in consumer.committed([Position(topic, 0)], timeout=BOUND)])
            consumer.seek(Position(topic, 0, 99))
            message = until_error(consumer)
            said.append(message)
        finally:
            consumer.close()
        return said

    expected = work(sides.direct)
    for side in (sides.here, sides.there):
        assert work(side) == expected, side.name


def until_error(consumer: Consumer) -> int:
    """The code of the next error a consumer reports."""
    for _ in range(int(BOUND)):
        message = consumer.poll(1.0)
        error = None if message is None else message.error()
        if error is not None:
            return error.code()
    raise AssertionError("no error")


def test_positions_of_aiokafka(sides: Sides) -> None:
    async def talk(side: Side) -> object:
        topic, said = side.topic("positions"), list[object]()
        zero = TopicPartition(topic, 0)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=side.bootstrap, group_id=side.group("g"), enable_auto_commit=False
        )
        await consumer.start()
        try:
            consumer.assign([zero])
            said.append(list((await consumer.beginning_offsets([zero])).values()))
            said.append(list((await consumer.end_offsets([zero])).values()))
            found = await consumer.offsets_for_times({zero: 1_004_500})
            said.append([one.offset for one in found.values()])
            consumer.seek(zero, 7)
            said.append([(await asyncio.wait_for(consumer.getone(), BOUND)).offset for _ in range(3)])
            await consumer.commit({zero: 5})
            said.append(await consumer.committed(zero))
            await consumer.seek_to_beginning(zero)
            said.append((await asyncio.wait_for(consumer.getone(), BOUND)).value)
            return said
        finally:
            await consumer.stop()

    def work(side: Side) -> object:
        topic = side.topic("positions")
        create(side.librdkafka, topic, retention_ms="-1")
        base = {"topic": topic, "partition": 0}
        produce(side.librdkafka, [{**base, "value": b"%d" % n, "timestamp": 1_000_000 + 1000 * n} for n in range(10)])
        return asyncio.run(talk(side))

    expected = work(sides.direct)
    for side in (sides.here, sides.there):
        assert work(side) == expected, side.name
