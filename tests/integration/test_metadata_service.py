"""The metadata service on two real clusters and an embedded store: adoption, homes, stubs, the controller, the store
going away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from metadata_service import doctor
from metadata_service.controller import Controller, run_controller
from metadata_service.discovery import WrongCluster
from metadata_service.failures import StubRefused
from metadata_service.identity import identify
from metadata_service.member import Member, join
from metadata_service.models import CLUSTERS, INVENTORY, AddressBook, ClusterRecord, InventoryRecord
from metadata_service.records import read
from metadata_service.seeding import apply, seed
from metadata_service.status import proxies, read_facts
from metadata_service.store.contract import Store, StoreUnavailable
from metadata_service.store.open import open_store
from metadata_service.stubs import is_closed
from metadata_service.topics import Topics
from metadata_service.view import View
from runtime.settings import Settings, parse
from tests.fixtures.names import Names
from tests.store.servers import EmbeddedServer
from tools.local_cluster import Cluster

pytestmark = pytest.mark.timeout(120)

QUICK = 0.2  # the controller's duties at a fifth of their intervals
PATIENCE = 20.0
_NO_BOOK = AddressBook()


@dataclass
class World:
    east: Cluster
    west: Cluster
    server: EmbeddedServer
    store: Store
    settings: Settings

    def settings_with(self, *rules: str, default: str = "east") -> Settings:
        return parse(
            f"""
federation: demo
store: {{kind: embedded, path: "{self.server.directory}"}}
clusters:
  east: {{bootstrap: ["{self.east.bootstrap()}"]}}
  west: {{bootstrap: ["{self.west.bootstrap()}"]}}
placement: {{default: {default}, rules: [{", ".join(rules)}]}}
"""
        )

    @contextlib.asynccontextmanager
    async def worker(self, number: int = 0) -> AsyncIterator[Member]:
        await seed(self.store, self.settings)
        async with join(self.store, instance="a", worker=number, role="proxy", interval=1.0) as member:
            await member.settled()
            yield member

    @contextlib.asynccontextmanager
    async def controller(self, instance: str = "c") -> AsyncIterator[Controller]:
        async with trio.open_nursery() as nursery:
            started: list[Controller] = []
            ready = trio.Event()

            def note(one: Controller) -> None:
                started.append(one)
                ready.set()

            async def run() -> None:
                await run_controller(self.store, self.settings, instance=instance, pace=QUICK, started=note)

            nursery.start_soon(run)
            with trio.fail_after(PATIENCE):
                await ready.wait()
            yield started[0]
            nursery.cancel_scope.cancel()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    one = EmbeddedServer(tmp_path / "state")
    one.start()
    yield one
    one.kill()


@pytest.fixture
async def world(east: Cluster, west: Cluster, server: EmbeddedServer, names: Names) -> AsyncIterator[World]:
    """Topics called `two-...` of this test go to west, everything else to east."""
    made = World(east, west, server, None, None)  # type: ignore[arg-type]
    made.settings = made.settings_with(f'{{topics: "two-{names.suffix}", cluster: west}}')
    async with open_store(made.settings.store, "demo", progress_interval=0.1) as made.store:
        yield made


async def _admin(cluster: Cluster, work: Callable[[AdminClient], dict[str, Future[None]]]) -> None:
    def do() -> None:
        admin = AdminClient(cluster.librdkafka())
        for future in work(admin).values():
            future.result()

    await trio.to_thread.run_sync(do)


async def _create(cluster: Cluster, topic: str, partitions: int = 1) -> None:
    await _admin(cluster, lambda admin: admin.create_topics([NewTopic(topic, partitions)]))


async def _delete(cluster: Cluster, topic: str) -> None:
    await _admin(cluster, lambda admin: admin.delete_topics([topic]))


async def _expand(cluster: Cluster, topic: str, partitions: int) -> None:
    await _admin(cluster, lambda admin: admin.create_partitions([NewPartitions(topic, partitions)]))


async def _commit(cluster: Cluster, group: str, topic: str, offset: int) -> None:
    def work() -> None:
        consumer = Consumer({**cluster.librdkafka(), "group.id": group})
        consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
        consumer.close()

    await trio.to_thread.run_sync(work)


async def _committed(cluster: Cluster, group: str, topic: str) -> int:
    def work() -> int:
        consumer = Consumer({**cluster.librdkafka(), "group.id": group})
        found = consumer.committed([TopicPartition(topic, 0)], timeout=10)
        consumer.close()
        return int(found[0].offset)

    return await trio.to_thread.run_sync(work)


async def _produce(cluster: Cluster, topic: str, count: int, **config: bool | str) -> None:
    def work() -> None:
        producer = Producer({**cluster.librdkafka(), **config})
        for n in range(count):
            producer.produce(topic, b"%d" % n, partition=0)
        assert producer.flush(20) == 0

    await trio.to_thread.run_sync(work)


async def _seen(member: Member, predicate: Callable[[View], bool]) -> View:
    return await member.following.wait_for(predicate, PATIENCE)


# -- adoption ---------------------------------------------------------------------------------------------------------


async def test_what_exists_is_adopted_with_its_groups(world: World, names: Names) -> None:
    one, two, both = names("one"), names("elsewhere"), names("both")
    await _create(world.east, one, 3)
    await _create(world.west, two, 2)
    await _create(world.east, both, 1)
    await _create(world.west, both, 4)
    await _commit(world.west, names("reader"), two, 5)
    await _produce(world.west, two, 12)
    async with world.controller() as controller, world.worker() as worker:
        wanted = {one, two, both}
        view = await _seen(worker, lambda view: wanted <= view.topics.keys() and names("reader") in view.groups)
        assert {name: view.topics[name].cluster for name in wanted} == {one: "east", two: "west", both: "east"}
        assert view.topics[both].record.conflict == ("west",)
        assert (view.topics[both].record.partitions, view.topics[two].record.partitions) == (1, 2)
        assert view.topics[one].record.adopted
        assert view.topics[one].id == view.topics[one].physical_id
        assert not view.topics[one].special
        assert view.groups[names("reader")].cluster == "west"
        # Positions stay where they were: nothing was copied or reset.
        assert await _committed(world.west, names("reader"), two) == 5
        # Addresses and features appear without anybody's asking.
        view = await _seen(worker, lambda view: "main" in view.addresses and view.features.epoch > 0)
        assert {"east/1", "west/11"} <= view.addresses["main"].ports.keys()
        assert view.features.levels["transaction.version"] == 2
        await _until(lambda: _lag(world, two, names("reader")), 7)
        facts = await read_facts(world.store, worker.view, worker.following.age())
        found = {(one.kind, one.subject) for one in doctor.findings(facts)}
        assert ("topic conflict", both) in found
        assert controller.leading
        shown = proxies(facts)["proxies"]
        assert isinstance(shown, list)
        assert [(entry["instance"], entry["alive"]) for entry in shown] == [("a", True)]


async def _lag(world: World, topic: str, group: str) -> int | None:
    use = await read(world.store, INVENTORY + topic, InventoryRecord)
    return use.groups[group].lag if use is not None and group in use.groups else None


async def _until(ask: Callable[[], object], wanted: object) -> None:
    """Waits, bounded, until what `ask` gives is `wanted`."""
    last: object = None
    with trio.move_on_after(PATIENCE):
        while True:
            last = await ask()  # type: ignore[misc]
            if last == wanted:
                return
            await trio.sleep(0.05)
    raise AssertionError(f"{last!r} is not {wanted!r} after {PATIENCE} s")


async def test_a_conflict_is_decided_by_a_rule_that_names_one_of_them(world: World, names: Names) -> None:
    two = names("two")  # the rule says west
    await _create(world.east, two, 1)
    await _create(world.west, two, 2)
    async with world.worker() as worker:
        await worker.federation.find_topics([two])
        record = worker.view.topics[two].record
        assert (record.cluster, record.conflict, record.partitions) == ("west", ("east",), 2)


async def test_rules_changed_live_decide_a_known_conflict(world: World, names: Names) -> None:
    both = names("both")
    await _create(world.east, both, 1)
    await _create(world.west, both, 2)
    async with world.controller(), world.worker() as worker:
        await _seen(worker, lambda view: both in view.topics and bool(view.topics[both].record.conflict))
        assert worker.view.topics[both].cluster == "east"
        served = worker.view.served_generation.get("east", 0)
        changes = await apply(world.store, world.settings_with(f'{{topics: "{both}", cluster: west}}'))
        assert [one.key for one in changes] == ["placement"]
        view = await _seen(worker, lambda view: view.topics[both].cluster == "west")
        assert view.topics[both].record.conflict == ("east",)
        assert view.served_generation["east"] > served


async def test_a_topic_made_outside_is_found_at_first_mention(world: World, names: Names) -> None:
    later = names("later")
    async with world.worker() as worker:
        await worker.federation.find_topics([later])
        assert later not in worker.view.topics
        await _create(world.west, later, 2)
        # Looked up in vain a moment ago: not asked again within a second.
        asked = trio.current_time()
        await worker.federation.find_topics([later])
        if trio.current_time() - asked < 0.5:
            assert later not in worker.view.topics

        async def found() -> bool:
            await worker.federation.find_topics([later])
            return later in worker.view.topics

        await _until(found, True)
        physical = worker.view.physical(worker.view.topics[later])
        assert physical is not None
        assert len(physical.partitions) == 2
        by_id = names("by-id")
        await _create(world.east, by_id)
        topic_id = (await worker.discovery.looked("east")).topics[by_id].id
        await worker.federation.find_topic_ids([topic_id])
        assert worker.view.topics_by_id[topic_id].name == by_id
        # Another topic under a known name: neither a controller nor the next look at the cluster is waited for.
        await _delete(world.east, by_id)
        await _create(world.east, by_id, 3)
        client = worker.clients.get("east")
        assert client is not None
        again = (await client.metadata([by_id]))["topics"][0]["topic_id"]
        await worker.federation.find_topic_ids([again])
        assert worker.view.topics_by_id[again].record.partitions == 3


async def test_topics_deleted_and_recreated_behind_our_back_are_noticed(world: World, names: Names) -> None:
    gone, again = names("gone"), names("again")
    await _create(world.west, gone)
    await _create(world.west, again, 1)
    async with world.controller(), world.worker() as worker:
        await _seen(worker, lambda view: {gone, again} <= view.topics.keys())
        await worker.federation.ensure_stubs("east", [gone, again])
        before = worker.view.topics[again]
        await _delete(world.west, gone)
        await _delete(world.west, again)
        await _create(world.west, again, 3)
        await _seen(worker, lambda view: gone not in view.topics and ("east", gone) not in view.stubs)
        view = await _seen(worker, lambda view: again in view.topics and view.topics[again].id != before.id)
        assert view.topics[again].record.partitions == 3
        assert view.physical(view.topics[again]) is not None
        await worker.federation.ensure_stubs("east", [again])
        assert worker.view.stubs["east", again].partitions == 3


async def test_topics_made_expanded_and_deleted_through_the_endpoint(world: World, names: Names) -> None:
    two = names("two")
    async with world.controller(), world.worker() as worker, world.worker(1) as other:
        assert worker.federation.place_topic(two) == "west"
        await _create(world.west, two, 2)
        await worker.federation.topics_created("west", [two])
        topic = worker.view.topics[two]
        physical = worker.view.physical(topic)
        assert physical is not None
        assert (topic.cluster, topic.record.adopted, len(physical.partitions)) == ("west", False, 2)
        await _seen(other, lambda view: two in view.topics)
        await worker.federation.ensure_stubs("east", [two])
        assert await _partitions(worker, "east", two) == 2
        # Stubs first: nobody can write to a partition the group's coordinator does not know.
        await worker.federation.expand_stubs({two: 5})
        assert await _partitions(worker, "east", two) == 5
        # Until the topic follows, the controller lets the stub be: there may be positions in it.
        stub = worker.view.stubs["east", two].topic_id
        for marker in (names("one"), names("other")):
            await _create(world.west, marker)
            await _seen(worker, lambda view, marker=marker: marker in view.topics)  # type: ignore[misc]
        assert (worker.view.stubs["east", two].topic_id, await _partitions(worker, "east", two)) == (stub, 5)
        await _expand(world.west, two, 5)
        await worker.federation.partitions_created([two])
        physical = worker.view.physical(worker.view.topics[two])
        assert physical is not None
        assert (len(physical.partitions), worker.view.topics[two].record.partitions) == (5, 5)
        await _delete(world.west, two)
        await worker.federation.topics_deleted([two])
        assert two not in worker.view.topics
        assert ("east", two) not in worker.view.stubs
        assert await _partitions(worker, "east", two) == 0


async def _partitions(member: Member, cluster: str, topic: str) -> int:
    """As the cluster itself says, asked now."""
    client = member.clients.get(cluster)
    assert client is not None
    answer = (await client.metadata([topic]))["topics"][0]
    return 0 if answer["error_code"] else len(answer["partitions"])


# -- stubs ------------------------------------------------------------------------------------------------------------


async def test_a_stub_is_closed_and_known_and_follows_its_topic(world: World, names: Names) -> None:
    two, group = names("two"), names("g")
    await _create(world.west, two, 3)
    async with world.controller(), world.worker() as worker, world.worker(1) as other:
        await _seen(worker, lambda view: two in view.topics)
        async with trio.open_nursery() as nursery:  # two workers at once make one stub
            for one in (worker, worker, other):
                nursery.start_soon(one.federation.ensure_stubs, "east", [two])
        stub = worker.view.stubs["east", two]
        client = worker.clients.get("east")
        assert client is not None
        assert (stub.partitions, stub.borrowed) == (3, False)
        assert await _partitions(worker, "east", two) == 3
        assert await is_closed(client, two)
        assert worker.view.to_logical_id("east", bytes.fromhex(stub.topic_id)) == worker.view.topics[two].id
        # Positions of a topic that lives on west are kept by a group on east.
        await _commit(world.east, group, two, 7)
        assert await _committed(world.east, group, two) == 7
        # A stub is not taken for a topic of its own, nor for a conflict.
        again = Topics(worker.store, worker.following, worker.clients, worker.discovery)
        assert await again.adopt([two]) == {two}
        assert worker.view.topics[two].cluster == "west"
        assert worker.view.topics[two].record.conflict == ()
        # Expanded past us: the controller brings record and stub to it, and the positions stay.
        await _expand(world.west, two, 6)
        await _seen(worker, lambda view: view.stubs["east", two].partitions == 6)
        await _seen(worker, lambda view: view.topics[two].record.partitions == 6)
        assert await _partitions(worker, "east", two) == 6
        assert await _committed(world.east, group, two) == 7
        # Deleted past us: made again.
        await _delete(world.east, two)
        await _seen(worker, lambda view: view.stubs["east", two].topic_id not in ("", stub.topic_id))


async def test_an_unrelated_topic_in_the_way_of_a_stub(world: World, names: Names) -> None:
    same, other = names("two"), names("both")
    for topic, here, there in ((same, 2, 2), (other, 1, 3)):
        await _create(world.east, topic, here)
        await _create(world.west, topic, there)
    async with world.worker() as worker:
        await worker.federation.find_topics([same, other])
        assert (worker.view.topics[same].cluster, worker.view.topics[other].cluster) == ("west", "east")
        await worker.federation.ensure_stubs("east", [same])
        assert worker.view.stubs["east", same].borrowed
        with pytest.raises(StubRefused, match="3 partitions instead of 1"):
            await worker.federation.ensure_stubs("west", [other])
        # It is still a conflict, and is left as it is.
        client = worker.clients.get("east")
        assert client is not None
        assert not await is_closed(client, same)
        await worker.federation.find_topics([same])
        assert worker.view.topics[same].record.conflict == ("east",)


# -- homes ------------------------------------------------------------------------------------------------------------


async def test_a_groups_home_follows_its_commits_and_all_workers_agree(world: World, names: Names) -> None:
    topic = names("elsewhere")
    await _create(world.west, topic)
    await _commit(world.west, names("old"), topic, 3)
    async with world.worker() as worker, world.worker(1) as other:
        assert await worker.federation.group_home(names("old")) == "west"
        assert await worker.federation.group_home(names("new")) == "east"
        answers: list[str] = []

        async def ask(member: Member) -> None:
            answers.append(await member.federation.group_home(names("raced")))

        async with trio.open_nursery() as nursery:
            for member in (worker, other, worker, other):
                nursery.start_soon(ask, member)
        assert answers == ["east"] * 4
        await worker.federation.groups_deleted([names("new")])
        assert names("new") not in worker.view.groups


async def test_commits_of_a_group_on_two_clusters_both_count(world: World, names: Names) -> None:
    for cluster in (world.east, world.west):
        await _create(cluster, names("both"))
        await _commit(cluster, names("twice"), names("both"), 1)
    async with world.controller(), world.worker() as worker:
        view = await _seen(worker, lambda view: names("twice") in view.groups)
        home = view.groups[names("twice")]
        assert (home.cluster, home.conflict, home.carry) == ("east", (), ("west",))
        facts = await read_facts(world.store, view, 0.0)
        # A conflict is only what is live on both: that needs a decision, this does not.
        assert ("group conflict", names("twice")) not in {(one.kind, one.subject) for one in doctor.findings(facts)}


async def test_a_transactional_id_is_at_home_where_it_writes_first(world: World, names: Names) -> None:
    async with world.worker() as worker:
        federation = worker.federation
        first, second, tied = names("t1"), names("t2"), names("t3")
        assert await federation.transaction_home(first) == "east"
        assert not worker.view.transactions[first].written
        assert await federation.transaction_writes(first, "west") == "west"
        assert await federation.transaction_writes(first, "east") == "west"
        assert await federation.transaction_writes(second, "west") == "west"
        # A group that is nowhere yet follows the id; one with commits does not, and an id that is free follows it.
        assert await federation.tie_transaction_to_group(first, names("free")) == "west"
        assert worker.view.groups[names("free")].cluster == "west"
        await _create(world.east, names("x"))
        await _commit(world.east, names("fixed"), names("x"), 1)
        assert await federation.tie_transaction_to_group(first, names("fixed")) == "west"
        assert await federation.group_home(names("fixed")) == "east"
        assert await federation.tie_transaction_to_group(tied, names("fixed")) == "east"


async def test_a_transactional_id_that_a_cluster_knows_stays_there(world: World, names: Names) -> None:
    def work() -> None:
        producer = Producer({**world.west.librdkafka(), "transactional.id": names("old")})
        producer.init_transactions(30)

    await trio.to_thread.run_sync(work)
    async with world.worker() as worker:
        assert await worker.federation.transaction_home(names("old")) == "west"
        assert worker.view.transactions[names("old")].written


# -- the controller and the store -------------------------------------------------------------------------------------


async def test_a_second_controller_takes_over(world: World, names: Names) -> None:
    async with world.worker() as worker, world.controller("first") as first:
        with trio.fail_after(PATIENCE):
            await first.active.wait()
        async with world.controller("second") as second:
            assert not second.leading
            # It stops without a word, as a process that was killed or hangs: its lease has to run out.
            silent = _Silent(first._member.store)
            object.__setattr__(first._member, "store", silent)
            with trio.fail_after(15.0):
                await second.active.wait()
            await _create(world.west, names("later"))
            await _seen(worker, lambda view: names("later") in view.topics)
            await _until(_saying(lambda: first.leading), False)


class _Silent:
    """A store nobody answers from."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        async def away(*_: object, **__: object) -> None:
            await trio.sleep(0.05)
            raise StoreUnavailable("not heard")

        return away


async def test_the_store_away_and_back_changes_nothing_for_a_running_view(world: World, names: Names) -> None:
    one = names("one")
    await _create(world.east, one)
    async with world.worker() as worker:
        await worker.federation.find_topics([one])
        await worker.federation.group_home(names("g"))
        before, lease = worker.view, worker.registration.lease
        world.server.kill()
        await _until(_saying(lambda: worker.following.connected), False)
        assert worker.view.topics == before.topics
        assert await worker.federation.group_home(names("g")) == "east"  # known: no store is needed
        with pytest.raises(StoreUnavailable):
            await worker.federation.group_home(names("unknown"))
        # What the clusters say goes on being followed.
        await _expand(world.east, one, 4)
        worker.federation.refresh("east")
        await _seen(worker, lambda view: len(view.clusters["east"].snapshot.topics[one].partitions) == 4)
        generation = dict(worker.view.served_generation)
        world.server.start()
        await _until(_saying(lambda: worker.following.connected), True)
        assert worker.view.topics == before.topics
        assert worker.view.served_generation == generation
        assert await worker.federation.group_home(names("unknown")) == "east"
        await _until(_saying(lambda: worker.registration.acknowledged >= worker.view.revision), True)
        await _until(_saying(lambda: worker.registration.fresh), True)
        assert worker.registration.lease == lease  # the embedded store gives every lease its full time again


def _saying(fact: Callable[[], bool]) -> Callable[[], object]:
    async def ask() -> bool:
        return fact()

    return ask


async def test_a_cluster_away_keeps_its_last_snapshot_and_comes_back(world: World, names: Names) -> None:
    topic = names("elsewhere")
    await _create(world.west, topic)
    async with world.controller(), world.worker() as worker:
        await _seen(worker, lambda view: topic in view.topics)
        await _seen(worker, lambda view: "west/11" in view.addresses.get("main", _NO_BOOK).ports)
        port = worker.view.addresses["main"].ports["west/11"]
        world.west.stop()
        view = await _seen(worker, lambda view: not view.clusters["west"].snapshot.reachable)
        assert topic in view.clusters["west"].snapshot.topics
        assert topic in view.topics
        assert view.clusters["west"].snapshot.reason
        assert await worker.federation.group_home(names("g")) == "east"  # the others go on
        await _until(lambda: _findings(world, worker), {("cluster away", "west")})
        await trio.to_thread.run_sync(world.west.mend)
        view = await _seen(worker, lambda view: view.clusters["west"].snapshot.reachable)
        assert topic in view.topics
        assert view.addresses["main"].ports["west/11"] == port
        await _until(lambda: _findings(world, worker), set())


async def _findings(world: World, worker: Member) -> set[tuple[str, str]]:
    facts = await read_facts(world.store, worker.view, worker.following.age())
    return {(one.kind, one.subject) for one in doctor.findings(facts) if one.kind == "cluster away"}


async def test_another_cluster_behind_a_name_is_refused(world: World) -> None:
    async with world.worker() as worker:
        view = await _seen(worker, lambda view: all(one.record.kafka_id for one in view.clusters.values()))
        assert view.clusters["east"].record.kafka_id == world.east.id
        swapped = parse(
            f"""
federation: demo
store: {{kind: embedded, path: x}}
clusters:
  east: {{bootstrap: ["{world.west.bootstrap()}"]}}
  west: {{bootstrap: ["{world.west.bootstrap()}"]}}
  twin: {{bootstrap: ["{world.west.bootstrap()}"]}}
placement: {{default: east}}
"""
        )
        await apply(world.store, swapped)
        view = await _seen(
            worker, lambda view: all("refused" in view.clusters[one].snapshot.reason for one in ("east", "twin"))
        )
        assert "but was" in view.clusters["east"].snapshot.reason
        assert "same cluster as west" in view.clusters["twin"].snapshot.reason
        assert view.clusters["twin"].record.index == 2
        assert not view.clusters["east"].snapshot.topics
        assert view.clusters["west"].snapshot.reachable
        with pytest.raises(WrongCluster):
            await identify(world.store, view.clusters["east"].record, world.west.id)


async def test_clusters_come_and_go_and_keep_their_index(world: World) -> None:
    async with world.worker() as worker:
        without = parse(
            f"""
federation: demo
store: {{kind: embedded, path: x}}
clusters:
  east: {{bootstrap: ["{world.east.bootstrap()}"]}}
placement: {{default: east}}
"""
        )
        await apply(world.store, without)
        view = await _seen(worker, lambda view: view.clusters["west"].record.state == "removed")
        assert not view.clusters["west"].snapshot.reachable
        assert await apply(world.store, without) == []
        await apply(world.store, world.settings)
        await _seen(worker, lambda view: view.clusters["west"].snapshot.reachable)
        record = await read(world.store, CLUSTERS + "west", ClusterRecord)
        assert record is not None
        assert (record.index, record.state, record.kafka_id) == (1, "active", world.west.id)
