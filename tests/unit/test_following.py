"""A process's view and registration, against a scripted store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import pytest
import trio

from metadata_service import models
from metadata_service.failures import ViewBehind
from metadata_service.following import Following
from metadata_service.models import HomeRecord, LeaseRecord, WorkerRecord
from metadata_service.records import Contended, decode, encode, put_new, settle
from metadata_service.registration import Registration
from metadata_service.store.contract import (
    Change,
    Commit,
    Condition,
    Delete,
    Event,
    KeyValue,
    Lease,
    LeaseExpired,
    Operation,
    Put,
    Snapshot,
    StoreUnavailable,
    Unchanged,
)
from tests.fixtures.records import cluster, physical, snapshot, topic

TTL = 10


class FakeStore:
    """Keeps records and a clock; `say` gives an item to whoever follows; `away` makes calls fail."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.revision = 0
        self.fresh_at: float | None = None
        self.values: dict[str, KeyValue] = {}
        self.leases: set[int] = set()
        self.granted = 0
        self.away = False
        self.renewal_takes = 0.0
        self.renewals = 0
        self.connected = True
        self.last_contact = None
        self.description, self.schema = "fake", 1
        self._items, self._next = trio.open_memory_channel[Snapshot | Change](100)

    def say(self, item: Snapshot | Change) -> None:
        self._items.send_nowait(item)

    def follow(self, prefix: str) -> Self:
        assert prefix == models.VIEW
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot | Change:
        return await self._next.receive()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    async def get(self, key: str) -> KeyValue | None:
        await trio.lowlevel.checkpoint()
        self._answer()
        return self.values.get(key)

    async def commit(
        self, conditions: Sequence[Condition], operations: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Commit:
        await trio.lowlevel.checkpoint()
        self._answer()
        for one in conditions:
            found = self.values.get(one.key)
            if isinstance(one, Unchanged) and (found.mod_revision if found else 0) != one.mod_revision:
                return Commit(False, self.revision)
        for step in operations:
            if isinstance(step, Put) and step.lease and step.lease not in self.leases:
                raise LeaseExpired("gone")
        self.revision += 1
        for step in operations:
            if isinstance(step, Put):
                self.values[step.key] = KeyValue(step.key, step.value, 1, self.revision, 1, step.lease)
            elif isinstance(step, Delete):
                self.values.pop(step.key, None)
        return Commit(True, self.revision)

    async def grant(self, ttl: int) -> Lease:
        await trio.lowlevel.checkpoint()
        self._answer()
        self.granted += 1
        self.leases.add(self.granted)
        return Lease(self.granted, ttl)

    async def keep_alive(self, lease: int) -> int:
        await trio.lowlevel.checkpoint()
        self.renewals += 1
        self.now += self.renewal_takes
        self._answer()
        if lease not in self.leases:
            raise LeaseExpired("gone")
        return TTL

    async def revoke(self, lease: int) -> None:
        self._answer()
        self.leases.discard(lease)
        self.values = {key: one for key, one in self.values.items() if one.lease != lease}


def _item(key: str, value: bytes, revision: int = 1) -> KeyValue:
    return KeyValue(key, value, revision, revision, 1)


def _put(revision: int, key: str, value: bytes) -> Change:
    return Change(revision, (Event("put", _item(key, value, revision)),))


def _home(name: str, on: str) -> tuple[str, bytes]:
    return models.GROUP_HOMES + name, encode(HomeRecord(name=name, cluster=on))


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def following(store: FakeStore) -> Following:
    return Following(store, clock=lambda: store.now)  # type: ignore[arg-type]


def _snapshot(revision: int, *items: tuple[str, bytes]) -> Snapshot:
    return Snapshot(revision, tuple(_item(*one) for one in items))


async def test_snapshots_and_changes_become_views(
    store: FakeStore, following: Following, nursery: trio.Nursery
) -> None:
    store.say(_snapshot(5, _home("a", "east"), _home("b", "east")))
    await nursery.start(following.run)
    assert following.view.revision == 5
    assert set(following.view.groups) == {"a", "b"}
    store.say(_put(7, *_home("a", "west")))
    view = await following.reached(7)
    assert view.groups["a"].cluster == "west"
    store.say(Change(8, (Event("delete", KeyValue(models.GROUP_HOMES + "b", b"", 0, 8, 0)),)))
    assert set((await following.reached(8)).groups) == {"a"}


async def test_a_second_snapshot_replaces_and_forgets(
    store: FakeStore, following: Following, nursery: trio.Nursery
) -> None:
    store.say(_snapshot(5, _home("a", "east"), (models.topic_key("t"), encode(topic("t", "east", 1)))))
    await nursery.start(following.run)
    kept = following.view.topics["t"]
    store.say(_snapshot(9, _home("b", "east"), (models.topic_key("t"), encode(topic("t", "east", 1)))))
    view = await following.reached(9)
    assert set(view.groups) == {"b"}
    assert view.topics["t"] is kept  # what did not change was not built again
    assert view.served_generation == {}


async def test_clusters_and_their_snapshots_are_joined(
    store: FakeStore, following: Following, nursery: trio.Nursery
) -> None:
    seen: list[set[str]] = []
    following.on_clusters(lambda records: seen.append(set(records)))
    store.say(_snapshot(1, (models.CLUSTERS + "east", encode(cluster("east", 0)))))
    await nursery.start(following.run)
    assert seen == [set(), {"east"}]
    following.snapshot_changed("east", snapshot([physical("t", 1)]))
    assert "t" in following.view.clusters["east"].snapshot.topics
    assert following.view.revision == 1
    store.say(_put(2, *_home("a", "east")))
    await following.reached(2)
    assert len(seen) == 2


async def test_a_cluster_is_looked_at_again_when_others_made_topics_there(
    store: FakeStore, following: Following, nursery: trio.Nursery
) -> None:
    behind: list[str] = []
    following.on_behind(behind.append)
    store.say(_snapshot(1, (models.CLUSTERS + "east", encode(cluster("east", 0)))))
    await nursery.start(following.run)
    following.snapshot_changed("east", snapshot([physical("t", 1)]))
    for revision, name, number, count in ((2, "t", 1, 1), (3, "t", 1, 2), (4, "new", 2, 1)):
        store.say(_put(revision, models.topic_key(name), encode(topic(name, "east", number, count))))
        await following.reached(revision)
    assert behind == ["east"] * 2


async def test_waiting_is_bounded(store: FakeStore, following: Following, autojump_clock: trio.abc.Clock) -> None:
    started = trio.current_time()
    with pytest.raises(ViewBehind):
        await following.reached(3, timeout=2.0)
    assert trio.current_time() - started == pytest.approx(2.0)
    assert following.lag() == 3


async def test_the_age_of_a_view(store: FakeStore, following: Following, nursery: trio.Nursery) -> None:
    assert following.age() is None
    store.fresh_at = 1000.0
    store.say(_snapshot(1))
    await nursery.start(following.run)
    store.now = 1007.5
    assert following.age() == 7.5


# -- registration -----------------------------------------------------------------------------------------------------

WORKER = WorkerRecord(instance="a", worker=0, role="proxy", pid=1, host="h", started=1.0, version="1")
LEASED = models.worker_key(models.LEASES, "a", "proxy", 0)
REGISTERED = models.worker_key(models.WORKERS, "a", "proxy", 0)


def _registration(store: FakeStore, following: Following, **more: Any) -> Registration:
    return Registration(store, following, WORKER, ttl=TTL, clock=lambda: store.now, **more)  # type: ignore[arg-type]


def _acknowledged(store: FakeStore) -> int:
    return decode(LeaseRecord, store.values[LEASED].value).acknowledged


async def test_freshness_counts_from_when_the_renewal_was_sent(
    store: FakeStore, following: Following, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    registration = _registration(store, following)
    await nursery.start(registration.run)
    assert registration.fresh_until == 1000.0 + TTL
    store.now, store.renewal_takes = 1005.0, 4.0
    await trio.sleep(TTL / 3 + 0.1)
    assert store.renewals == 1
    assert registration.fresh_until == 1005.0 + TTL  # not 1009 + TTL
    assert registration.fresh
    store.now = 1015.0
    assert not registration.fresh


async def test_an_acknowledgement_waits_for_older_views_in_use(
    store: FakeStore, following: Following, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    in_use: list[int | None] = [None]
    registration = _registration(store, following, in_use=lambda: in_use[0])
    store.say(_snapshot(4))
    await nursery.start(following.run)
    await nursery.start(registration.run)
    assert _acknowledged(store) == 4
    in_use[0] = 4
    store.say(_put(6, *_home("a", "east")))
    await following.reached(6)
    await trio.sleep(1.0)
    assert _acknowledged(store) == 4
    in_use[0] = None
    await trio.sleep(1.0)
    assert _acknowledged(store) == 6
    assert store.values[LEASED].lease == registration.lease
    assert store.values[REGISTERED].lease == 0  # the registration outlives the lease


async def test_many_revisions_are_acknowledged_together(
    store: FakeStore, following: Following, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    store.say(_snapshot(1))
    await nursery.start(following.run)
    await nursery.start(_registration(store, following).run)
    await trio.sleep(1.0)
    before = store.revision
    for revision in range(10, 60):
        store.say(_put(revision, *_home("a", "east")))
        await following.reached(revision)
    await trio.sleep(1.0)
    assert _acknowledged(store) == 59
    assert store.revision - before <= 3


async def test_an_expired_lease_is_replaced(
    store: FakeStore, following: Following, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    registration = _registration(store, following)
    await nursery.start(registration.run)
    first = registration.lease
    await store.revoke(first)
    assert LEASED not in store.values
    await trio.sleep(TTL)
    assert registration.lease not in (0, first)
    assert store.values[LEASED].lease == registration.lease


async def test_the_store_away_lets_freshness_run_out_and_come_back(
    store: FakeStore, following: Following, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    registration = _registration(store, following)
    await nursery.start(registration.run)
    store.away, store.now = True, 1020.0
    await trio.sleep(30)
    assert not registration.fresh
    store.away = False
    await trio.sleep(5)
    assert registration.fresh


async def test_a_clean_end_leaves_nothing_behind(store: FakeStore, following: Following) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_registration(store, following).run)
        assert {LEASED, REGISTERED} <= store.values.keys()
        nursery.cancel_scope.cancel()
    assert not store.values


# -- compare and swap -------------------------------------------------------------------------------------------------


async def test_settling_repeats_until_nobody_was_faster(store: FakeStore) -> None:
    key, value = _home("g", "west")
    seen: list[HomeRecord | None] = []

    def decide(now: HomeRecord | None) -> HomeRecord:
        if not seen:  # somebody is faster
            store.revision += 1
            store.values[key] = _item(key, value, store.revision)
        seen.append(now)
        return now or HomeRecord(name="g", cluster="east")

    settled = await settle(store, key, HomeRecord, decide)  # type: ignore[arg-type]
    assert [one and one.cluster for one in seen] == [None, "west"]
    assert settled.value is not None
    assert (settled.value.cluster, settled.changed, settled.revision) == ("west", False, 1)


async def test_a_condition_that_does_not_hold_writes_nothing(store: FakeStore, autojump_clock: trio.abc.Clock) -> None:
    guard = (Unchanged(models.CONTROLLER, 17),)
    with pytest.raises(Contended):
        await settle(store, "view/x", HomeRecord, lambda _: HomeRecord(name="g", cluster="east"), conditions=guard)  # type: ignore[arg-type]
    with pytest.raises(Contended):
        await put_new(store, [("view/x", HomeRecord(name="g", cluster="east"))], conditions=guard)  # type: ignore[arg-type]
    assert not store.values


async def test_new_records_leave_those_that_exist_alone(store: FakeStore) -> None:
    await store.commit((), (Put(*_home("g1", "west")),))
    records = [(models.GROUP_HOMES + f"g{n}", HomeRecord(name=f"g{n}", cluster="east")) for n in range(200)]
    await put_new(store, records)  # type: ignore[arg-type]
    found = {key: decode(HomeRecord, one.value).cluster for key, one in store.values.items()}
    assert len(found) == 200
    assert found.pop(models.GROUP_HOMES + "g1") == "west"
    assert set(found.values()) == {"east"}
