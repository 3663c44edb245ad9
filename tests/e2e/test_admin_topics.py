"""Admin calls about topics, configuration and brokers with the Java client, directly and through the endpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.fixtures.sides import Said, Side, Sides, attempt, until
from tools.java_client import Jvm

MISSING = "no-such-topic"


def counts(described: dict[str, Any]) -> list[int]:
    return [len(each.get("partitions", ())) for each in described.values()]


async def test_topics(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        orders, second = side.topic("orders"), side.topic("second")
        async with jvm.admin(side.java) as admin:

            async def create(label: str, *topics: object, **options: object) -> None:
                say(label, await attempt(admin.call("create_topics", topics=list(topics), **options)))

            await create("new", {"name": orders, "partitions": 3, "replication": 1})
            await create("again", {"name": orders, "partitions": 3})
            await create("only asked", {"name": second, "partitions": 2}, validate_only=True)
            await create("again, only asked", {"name": orders}, validate_only=True)
            await create("defaults", {"name": second, "config": {"retention.ms": "3600000"}})
            await create("no partitions", {"name": side("none"), "partitions": 0})
            await create("too many replicas", {"name": side("many"), "partitions": 1, "replication": 3})
            await create("no replicas", {"name": side("none"), "partitions": 1, "replication": 0})
            await create("wrong name", {"name": f"a b {side('wrong')}", "partitions": 1})
            await create("empty name", {"name": "", "partitions": 1})
            await create("long name", {"name": "x" * 250, "partitions": 1})
            await create("dots", {"name": "..", "partitions": 1})
            await create("wrong setting", {"name": side("set"), "config": {"no.such.setting": "1"}})
            await create("wrong value", {"name": side("set"), "config": {"retention.ms": "soon"}})
            await create("one good, one bad", {"name": side("good"), "partitions": 1}, {"name": orders})
            # A plain broker shows a new topic a moment after it was made.
            listed = await until(partial(admin.call, "list_topics"), lambda found: side("good") in found)
            say("list", [side.word(name) for name in listed if side.mine(name)])
            made = partial(admin.call, "describe_topics", topics=[orders, second])
            say("describe", await until(made, lambda found: counts(found) == [3, 1]))
            say("unknown", await attempt(admin.call("describe_topics", topics=[side(MISSING)])))
            say("wrong name", await attempt(admin.call("describe_topics", topics=["a b"])))
            for count in (5, 5, 2, 0, -1):
                say(f"{count} partitions", await attempt(admin.call("create_partitions", topics={orders: count})))
            grow = {side(MISSING): 3, second: 2}
            say("unknown and known", await attempt(admin.call("create_partitions", topics=grow)))
            grown = partial(admin.call, "describe_topics", topics=[orders, second])
            say("grown", await until(grown, lambda found: counts(found) == [5, 2]))
            say("delete", await attempt(admin.call("delete_topics", topics=[orders, second, side(MISSING)])))
            say("gone", await attempt(admin.call("delete_topics", topics=[orders])))
            orders_alone = partial(admin.call, "describe_topics", topics=[orders])
            say("gone too", await until(orders_alone, lambda found: counts(found) == [0]))
            await create("made again", {"name": orders, "partitions": 1})
            say("made again", await until(orders_alone, lambda found: counts(found) == [1]))
            say("list", [side.word(name) for name in await admin.call("list_topics") if side.mine(name)])

    await sides.compare(script)


async def test_topic_configuration(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        orders = side.topic("orders")
        async with jvm.admin(side.java) as admin:
            await admin.create_topic(orders, 1, config={"retention.ms": "3600000", "compression.type": "zstd"})

            async def alter(label: str, *changes: object) -> None:
                say(label, await attempt(admin.call("alter_configs", changes=list(changes))))

            async def describe(label: str, *resources: object) -> None:
                say(label, await attempt(admin.call("describe_configs", resources=list(resources))))

            await describe("all", ["topic", orders])
            await alter("set", ["topic", orders, "max.message.bytes", "2000000"])
            await alter(
                "two, and one away", ["topic", orders, "retention.ms", None], ["topic", orders, "flush.ms", "9"]
            )
            await alter("unknown setting", ["topic", orders, "no.such", "1"])
            await alter("wrong value", ["topic", orders, "retention.ms", "soon"])
            await alter("unknown topic", ["topic", side(MISSING), "retention.ms", "1"])
            await alter(
                "known and unknown", ["topic", orders, "flush.messages", "5"], ["topic", side(MISSING), "flush.ms", "1"]
            )

            async def changed() -> dict[str, Any]:
                (found,) = (await admin.call("describe_configs", resources=[["topic", orders]])).values()
                return dict(found)

            say("changed", await until(changed, lambda found: found["flush.messages"]["value"] == "5"))
            await describe("unknown", ["topic", side(MISSING)])
            await describe("wrong name", ["topic", "a b"])
            await describe("known and unknown", ["topic", orders], ["topic", side(MISSING)])
            say("resources", [each for each in await admin.call("list_config_resources") if side.mine(each)])

    await sides.compare(script)


async def test_broker_configuration(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        async with jvm.admin(side.java) as admin:
            node = str(side.node)

            async def alter(label: str, *changes: object) -> None:
                answers = await attempt(admin.call("alter_configs", changes=list(changes)))
                say(label, list(answers.values()))

            async def describe(label: str, kind: str, name: str) -> dict[str, dict[str, object]]:
                answers = await attempt(admin.call("describe_configs", resources=[[kind, name]]))
                (found,) = answers.values()
                if "error" in found:
                    say(label, found)
                return dict(found)

            settings = await describe("all", "broker", node)
            say("settings", sorted(settings))
            # Where a broker listens and keeps its data, and who its controllers are, differs and is its own business.
            own = {"listeners", "advertised.listeners", "node.id", "broker.id", "log.dirs"}
            own |= {"controller.quorum.voters", "controller.quorum.bootstrap.servers"}
            say("values", {name: value for name, value in settings.items() if name not in own})
            say("its id", settings["node.id"]["value"] == node)
            await alter("set", ["broker", node, "log.cleaner.threads", "2"])
            all_of_it = partial(describe, "all", "broker", node)
            found = await until(all_of_it, lambda found: found["log.cleaner.threads"]["value"] == "2")
            say("changed", found["log.cleaner.threads"])
            await alter("back", ["broker", node, "log.cleaner.threads", None])
            await alter("read-only", ["broker", node, "node.id", "7"])
            await alter("wrong value", ["broker", node, "log.cleaner.threads", "many"])
            await alter("of all", ["broker", "", "log.cleaner.backoff.ms", "14000"])
            of_all = partial(describe, "default", "broker", "")
            say("default", await until(of_all, lambda found: "log.cleaner.backoff.ms" in found))
            await alter("of all, back", ["broker", "", "log.cleaner.backoff.ms", None])
            await describe("no number", "broker", "east")
            loggers = await describe("loggers", "broker_logger", node)
            say("a logger", loggers["kafka.log.LogManager"])
            await alter("log level", ["broker_logger", node, "kafka.log.LogManager", "WARN"])
            await alter("wrong log level", ["broker_logger", node, "kafka.log.LogManager", "LOUD"])
            await alter("log level back", ["broker_logger", node, "kafka.log.LogManager", None])
            group = side.group("g")
            await alter("group", ["group", group, "consumer.session.timeout.ms", "5000"])
            of_group = partial(describe, "group", "group", group)
            say("group", await until(of_group, lambda found: found["consumer.session.timeout.ms"]["value"] == "5000"))
            await alter("group, wrong", ["group", group, "consumer.session.timeout.ms", "1"])
            metrics = side("m")
            await alter("metrics", ["client_metrics", metrics, "interval.ms", "1000"])
            told = partial(describe, "metrics", "client_metrics", metrics)
            say("metrics", await until(told, lambda found: "1000" in str(found)))
            say("resources", [each for each in await admin.call("list_config_resources") if side.mine(each)])
            await alter("metrics away", ["client_metrics", metrics, "interval.ms", None])

    await sides.compare(script, one_by_one=True)


async def test_brokers_that_are_not_there(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        async with jvm.admin(side.java, default_api_timeout_ms="4000", request_timeout_ms="3000") as admin:
            asked = [["broker", "77"]]
            say("configuration", list((await admin.call("describe_configs", resources=asked)).values()))
            say("directories", list((await attempt(admin.call("describe_log_dirs", brokers=[77]))).values()))

    await sides.compare(script)


async def test_offsets_records_and_log_dirs(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        orders = side.topic("orders")
        async with jvm.admin(side.java) as admin, jvm.producer(side.java) as producer:
            await admin.create_topic(orders, 2, config={"retention.ms": "-1"})  # the records are old
            await producer.send(orders, 5, partition=0, timestamp=1_000_000)
            await producer.send(orders, 5, partition=0, timestamp=2_000_000)
            kinds = ("earliest", "latest", "max_timestamp", "earliest_local", "1500000", "9000000", "-9")
            for kind in kinds:
                asked = [[orders, 0, kind], [orders, 1, kind]]
                say(kind, await attempt(admin.call("list_offsets", partitions=asked)))
            say("unknown", await attempt(admin.call("list_offsets", partitions=[[orders, 7, "latest"]])))
            for before in (3, 2, -1, 100, 5):
                say(f"delete < {before}", await attempt(admin.call("delete_records", offsets=[[orders, 0, before]])))
            say("earliest", await attempt(admin.call("list_offsets", partitions=[[orders, 0, "earliest"]])))
            dirs = await attempt(admin.call("describe_log_dirs", brokers=[side.node]))
            (of_broker,) = dirs.values()
            say("sizes", {name: found for name, found in of_broker.items() if name.rpartition("-")[0] == orders})

    await sides.compare(script)


async def test_leaders_and_replicas(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        orders, node = side.topic("orders"), side.node
        async with jvm.admin(side.java) as admin:
            await admin.create_topic(orders, 2)

            async def elect(label: str, *partitions: object, unclean: bool = False) -> None:
                asked = list(partitions) or None
                say(label, await attempt(admin.call("elect_leaders", partitions=asked, unclean=unclean)))

            await elect("preferred", [orders, 0], [orders, 1])
            await elect("unclean", [orders, 0], unclean=True)
            await elect("unknown", [orders, 9], [side(MISSING), 0])

            async def move(label: str, *moves: object) -> None:
                say(label, await attempt(admin.call("reassign", moves=list(moves))))

            await move("as it is", [orders, 0, [node]])
            await move("no such broker", [orders, 0, [node, 77]])
            await move("twice", [orders, 0, [node, node]])
            await move("none", [orders, 0, []])
            await move("negative", [orders, 0, [-3]])
            await move("cancel nothing", [orders, 0, None])
            await move("unknown", [orders, 9, [node]], [side(MISSING), 0, [node]])
            say("under way", await attempt(admin.call("list_reassignments")))

    await sides.compare(script)
