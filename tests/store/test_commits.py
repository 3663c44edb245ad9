"""Reading and committing: etcd's semantics, on both backends."""

from __future__ import annotations

import pytest
import trio

from metadata_service.store.contract import (
    MAX_COMMIT_BYTES,
    MAX_KEY_BYTES,
    MAX_OPERATIONS,
    Delete,
    DeletePrefix,
    Exists,
    LeaseExpired,
    Operation,
    Put,
    Store,
    Unchanged,
)
from tests.store.servers import Server, opened


async def test_a_key_counts_its_revisions_and_versions(store: Store) -> None:
    first = await store.commit([], [Put("a", b"1")])
    second = await store.commit([], [Put("a", b"2")])
    kv = await store.get("a")
    assert kv is not None
    assert (kv.key, kv.value, kv.lease) == ("a", b"2", 0)
    assert (kv.create_revision, kv.mod_revision, kv.version) == (first.revision, second.revision, 2)
    assert second.revision > first.revision
    await store.commit([], [Delete("a")])
    assert await store.get("a") is None
    again = await store.commit([], [Put("a", b"")])
    kv = await store.get("a")
    assert kv is not None
    assert (kv.value, kv.create_revision, kv.version) == (b"", again.revision, 1)


async def test_a_range_is_sorted_and_whole_and_of_one_revision(store: Store) -> None:
    names = ["a/é", "a/1", "a/\U0001f600", "a/Z", "a/a/b", "a/"]
    done = await store.commit([], [Put(name, name.encode()) for name in [*names, "a", "b", "a0"]])
    found = await store.range("a/")
    assert [kv.key for kv in found.items] == sorted(names)
    assert {kv.mod_revision for kv in found.items} == {done.revision}
    assert found.revision == done.revision
    assert [kv.key for kv in (await store.range("")).items] == sorted([*names, "a", "b", "a0"])
    assert (await store.range("nothing")).items == ()


async def test_a_range_of_many_pages(store: Store) -> None:
    keys = [f"key/{number:05}" for number in range(4500)]
    async with trio.open_nursery() as nursery:
        for start in range(0, len(keys), MAX_OPERATIONS):
            puts = [Put(key, b"x" * 1000) for key in keys[start : start + MAX_OPERATIONS]]
            nursery.start_soon(store.commit, [], puts)
    found = await store.range("key/")
    assert [kv.key for kv in found.items] == keys
    assert all(kv.value == b"x" * 1000 for kv in found.items)


async def test_conditions_decide_which_branch_happens(store: Store) -> None:
    made = await store.commit([Unchanged("a", 0)], [Put("a", b"1")])
    assert made.succeeded
    assert not (await store.commit([Unchanged("a", 0)], [Put("a", b"2")])).succeeded
    assert not (await store.commit([Exists("b")], [Put("a", b"3")])).succeeded
    assert not (await store.commit([Unchanged("a", made.revision), Exists("b")], [Put("a", b"4")])).succeeded
    kv = await store.get("a")
    assert kv is not None
    assert kv.mod_revision == made.revision
    other = await store.commit([Exists("b")], [Put("a", b"5")], [Put("c", b"6"), Delete("a")])
    assert not other.succeeded
    assert other.revision == made.revision + 1
    assert [kv.key for kv in (await store.range("")).items] == ["c"]
    assert (await store.commit([Exists("c"), Unchanged("a", 0)], [DeletePrefix("")])).succeeded
    assert (await store.range("")).items == ()


async def test_a_commit_that_changes_nothing_takes_no_revision(store: Store) -> None:
    made = await store.commit([], [Put("a", b"1")])
    for operations in ([], [Delete("b")], [DeletePrefix("b")]):
        assert await store.commit([], operations) == type(made)(True, made.revision)
    failed = await store.commit([Exists("b")], [Put("a", b"2")])
    assert failed.revision == made.revision
    assert (await store.commit([], [Put("a", b"1")])).revision == made.revision + 1


async def test_a_prefix_is_deleted_in_one_revision(store: Store) -> None:
    await store.commit([], [Put(key, b"") for key in ("a/1", "a/2", "a", "b")])
    async with store.watch("", (await store.range("")).revision + 1) as watch:
        done = await store.commit([], [DeletePrefix("a/"), Put("c", b"")])
        change = await anext(watch)
    assert change.revision == done.revision
    assert [(event.kind, event.kv.key) for event in change.events] == [
        ("delete", "a/1"),
        ("delete", "a/2"),
        ("put", "c"),
    ]
    assert [kv.key for kv in (await store.range("")).items] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "operations",
    [
        [Put("a", b"1"), Put("a", b"2")],
        [Put("a", b"1"), Delete("a")],
        [DeletePrefix("a"), Put("ab", b"1")],
        [Put("", b"1")],
        [Put("k" * (MAX_KEY_BYTES + 1), b"1")],
        [Put("a", b"x" * (MAX_COMMIT_BYTES + 1))],
        [Put(f"k{number}", b"") for number in range(MAX_OPERATIONS + 1)],
    ],
    ids=["put twice", "put and delete", "put under a deleted prefix", "empty key", "long key", "large", "many"],
)
async def test_what_breaks_the_limits_is_refused_and_does_nothing(store: Store, operations: list[Operation]) -> None:
    with pytest.raises(ValueError):
        await store.commit([], operations)
    with pytest.raises(ValueError):
        await store.commit([], [], operations)
    assert (await store.range("")).items == ()


async def test_the_limits_themselves_fit(store: Store) -> None:
    """In conditions and both branches, with the longest keys."""
    keys = [f"{number:03}".ljust(MAX_KEY_BYTES, "k") for number in range(MAX_OPERATIONS)]
    conditions = [Unchanged(key, 0) for key in keys]
    puts = [Put(key, b"x" * 4000) for key in keys]
    assert (await store.commit(conditions, puts, [Delete(key) for key in keys])).succeeded
    assert len((await store.range("")).items) == MAX_OPERATIONS
    one = Put("one", b"x" * (MAX_COMMIT_BYTES - 3))
    assert (await store.commit([], [one])).succeeded
    kv = await store.get("one")
    assert kv is not None
    assert kv.value == one.value


async def test_a_put_on_a_lease_that_is_gone_does_nothing_at_all(store: Store) -> None:
    lease = await store.grant(60)
    await store.revoke(lease.id)
    await store.revoke(lease.id)
    with pytest.raises(LeaseExpired):
        await store.commit([], [Put("a", b"1"), Put("b", b"1", lease.id)])
    assert (await store.range("")).items == ()
    # A branch that is not taken is not looked at.
    assert (await store.commit([], [Put("a", b"1")], [Put("b", b"1", lease.id)])).succeeded


async def test_no_update_is_lost_among_concurrent_writers(server: Server) -> None:
    """Increments by compare-and-swap, from several clients: read as a history, they form one chain."""
    clients, tasks, rounds = 4, 4, 12
    done: list[tuple[int, int, int]] = []  # (number read, at revision, revision written)

    async def increment(store: Store) -> None:
        for _ in range(rounds):
            while True:
                kv = await store.get("counter")
                number, revision = (0, 0) if kv is None else (int(kv.value), kv.mod_revision)
                result = await store.commit([Unchanged("counter", revision)], [Put("counter", b"%d" % (number + 1))])
                if result.succeeded:
                    done.append((number, revision, result.revision))
                    break

    async def client() -> None:
        async with opened(server) as store, trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(increment, store)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(client)
    done.sort()
    assert [number for number, _, _ in done] == list(range(clients * tasks * rounds))
    assert [read for _, read, _ in done] == [0, *(written for _, _, written in done[:-1])]


async def test_what_was_acknowledged_is_read_by_everybody(server: Server) -> None:
    async with opened(server) as one, opened(server) as other:
        for number in range(50):
            done = await one.commit([], [Put("a", b"%d" % number)])
            kv = await other.get("a")
            assert kv is not None
            assert (kv.mod_revision, kv.value) == (done.revision, b"%d" % number)
            assert (await other.range("")).revision == done.revision
