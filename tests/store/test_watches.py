"""Watching and following: order, completeness, resuming, compaction, and knowing how old a view is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from metadata_service.store.clock import boottime
from metadata_service.store.contract import (
    Change,
    Compacted,
    Delete,
    Following,
    KeyValue,
    Put,
    Snapshot,
    Store,
    StoreError,
    StoreUnavailable,
    Unchanged,
)
from tests.store.servers import Server, opened

if TYPE_CHECKING:
    from collections.abc import Callable


class View:
    """What a follower's reader would keep, and the revisions it saw."""

    def __init__(self) -> None:
        self.items: dict[str, KeyValue] = {}
        self.revisions: list[int] = []
        self.snapshots = 0

    def apply(self, item: Snapshot | Change) -> None:
        if isinstance(item, Snapshot):
            self.items = {kv.key: kv for kv in item.items}
            self.snapshots += 1
        else:
            assert item.events
            for event in item.events:
                assert event.kv.mod_revision == item.revision
                assert event.previous == self.items.get(event.kv.key)
                if event.kind == "put":
                    self.items[event.kv.key] = event.kv
                else:
                    del self.items[event.kv.key]
        assert not self.revisions or self.revisions[-1] < item.revision or isinstance(item, Snapshot)
        self.revisions.append(item.revision)

    async def follow(self, following: Following, revision: int) -> None:
        """Applies items until the view is complete up to a revision."""
        with trio.fail_after(20):
            while not self.revisions or following.revision < revision:
                # Progress is only taken in while somebody waits for the next item.
                with trio.move_on_after(0.05):
                    self.apply(await anext(following))


async def write(store: Store, prefix: str, count: int) -> None:
    """Changes of one to three events, some deletes among them."""
    for number in range(count):
        key = f"{prefix}/{number % 7}"
        if number % 5 == 4:
            await store.commit([], [Delete(key), Put(f"{prefix}/last", b"%d" % number)])
        else:
            await store.commit([], [Put(key, b"%d" % number), Put(f"{prefix}/last", b"%d" % number), Put("other", b"")])


async def test_a_watch_gives_every_change_once_in_order(server: Server, store: Store) -> None:
    """Under concurrent writers: what two watches and a late one saw is the same, and replays to what is stored."""
    start = (await store.range("")).revision
    view, late = View(), View()
    async with opened(server) as reader, trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(write, store, f"w{number}", 40)
        async with reader.watch("", start + 1) as watch:
            for _ in range(6 * 40):
                view.apply(await anext(watch))
        async with reader.watch("", start + 1) as watch:
            for _ in range(6 * 40):
                late.apply(await anext(watch))
    found = await store.range("")
    assert view.revisions == late.revisions == sorted(set(view.revisions))
    assert view.revisions[-1] == found.revision
    assert view.items == late.items == {kv.key: kv for kv in found.items}


async def test_a_watch_sees_its_prefix_only(store: Store) -> None:
    async with store.watch("a/", (await store.range("")).revision + 1) as watch:
        await store.commit([], [Put("b/1", b"")])
        done = await store.commit([], [Put("a/1", b"x"), Put("b/2", b""), Delete("b/1")])
        change = await anext(watch)
        assert change.revision == watch.revision == done.revision
        assert [(event.kind, event.kv.key, event.previous) for event in change.events] == [("put", "a/1", None)]
        gone = await store.commit([], [Delete("a/1"), Delete("b/2")])
        change = await anext(watch)
        (event,) = change.events
        assert (event.kind, event.kv.key, event.kv.value) == ("delete", "a/1", b"")
        assert event.kv.mod_revision == gone.revision
        assert event.previous is not None
        assert event.previous.value == b"x"


async def test_a_change_of_megabytes_comes_in_one_piece(store: Store) -> None:
    # 90 values of 11 kB, put over others, in one revision: more than one message of either backend.
    await store.commit([], [Put(f"big/{number:02}", b"x" * 11_000) for number in range(90)])
    done = await store.commit([], [Put(f"big/{number:02}", b"y" * 11_000) for number in range(90)])
    async with store.watch("big/", done.revision) as watch:
        change = await anext(watch)
        assert change.revision == done.revision
        assert [event.kv.key for event in change.events] == [f"big/{number:02}" for number in range(90)]
        assert all(event.previous is not None and event.previous.value[:1] == b"x" for event in change.events)


async def test_following_starts_with_a_snapshot_and_goes_on_with_changes(store: Store) -> None:
    await store.commit([], [Put("a/1", b"1"), Put("b", b"")])
    async with store.follow("a/") as following:
        assert following.revision == 0
        assert following.fresh_at is None
        snapshot = await anext(following)
        assert isinstance(snapshot, Snapshot)
        assert [kv.key for kv in snapshot.items] == ["a/1"]
        assert following.revision == snapshot.revision
        done = await store.commit([], [Put("a/2", b"2")])
        change = await anext(following)
        assert isinstance(change, Change)
        assert change.revision == following.revision == done.revision


async def test_a_view_knows_that_it_is_current_while_nothing_changes(store: Store) -> None:
    await store.commit([], [Put("a/1", b"1")])
    view = View()
    async with store.follow("a/") as following:
        view.apply(await anext(following))
        # Changes elsewhere raise the revision, and the view follows without an item.
        done = await store.commit([], [Put("b/1", b"")])
        before = boottime()
        await view.follow(following, done.revision)
        assert following.connected
        while following.fresh_at is None or following.fresh_at < before:
            with trio.move_on_after(0.05):
                view.apply(await anext(following))
        assert following.fresh_at <= boottime()
        assert following.last_contact is not None
        assert following.last_contact >= following.fresh_at
    assert view.snapshots == 1
    assert len(view.revisions) == 1


async def test_a_view_is_known_to_be_current_under_constant_writes(server: Server, store: Store) -> None:
    """Questions cross changes on their way all the time."""
    async with (
        opened(server, progress_interval=0.01) as reader,
        reader.follow("") as following,
        trio.open_nursery() as nursery,
    ):
        for number in range(4):
            nursery.start_soon(write, store, f"w{number}", 1_000_000)
        view = View()
        view.apply(await anext(following))
        fresh: set[float | None] = set()
        with trio.fail_after(20):
            while len(fresh) < 20:
                view.apply(await anext(following))
                fresh.add(following.fresh_at)
        assert view.snapshots == 1
        nursery.cancel_scope.cancel()


async def test_being_cancelled_while_waiting_loses_nothing(store: Store) -> None:
    view = View()
    async with trio.open_nursery() as nursery, store.follow("") as following:
        view.apply(await anext(following))
        nursery.start_soon(write, store, "w", 100)
        while "w/last" not in view.items or view.items["w/last"].value != b"99":
            with trio.move_on_after(0.001):
                view.apply(await anext(following))
    assert view.items == {kv.key: kv for kv in (await store.range("")).items}
    assert view.snapshots == 1


@pytest.mark.parametrize("progress_interval", [0.1, 60.0])
async def test_following_survives_a_killed_server(server: Server, progress_interval: float) -> None:
    """Killed and started again between writes: no change is missing or comes twice, without a new snapshot."""
    view = View()
    async with (
        opened(server, progress_interval=progress_interval) as store,
        opened(server) as writer,
        store.follow("") as following,
    ):
        view.apply(await anext(following))
        acknowledged: list[int] = []
        for turn in range(4):
            for number in range(10):
                done = await writer.commit([], [Put(f"k{number}", b"")])
                acknowledged.append(done.revision)
                if turn % 2 == 0:
                    await view.follow(following, done.revision)
            # Now all changes were read, now some are still on their way.
            await trio.to_thread.run_sync(server.kill)
            with trio.move_on_after(0.3):
                view.apply(await anext(following))
            await trio.to_thread.run_sync(server.start)
        await view.follow(following, acknowledged[-1])
        assert view.snapshots == 1
        assert view.revisions[1:] == acknowledged
        assert view.items == {kv.key: kv for kv in (await store.range("")).items}


async def poll_until(following: Following, condition: Callable[[Following], bool]) -> None:
    """Reads a view that nothing is written to."""
    with trio.fail_after(20):
        while not condition(following):
            with trio.move_on_after(0.1):
                await anext(following)


async def test_a_follower_says_that_it_is_cut_off(server: Server) -> None:
    view = View()
    async with opened(server, deadline=1.0) as store, store.follow("") as following:
        view.apply(await anext(following))
        done = await store.commit([], [Put("a", b"")])
        await view.follow(following, done.revision)
        await poll_until(following, lambda following: following.connected)
        server.pause()
        paused_at = boottime()
        await poll_until(following, lambda following: not following.connected)
        assert following.fresh_at is not None
        assert following.fresh_at <= paused_at
        assert following.last_contact is not None
        assert following.last_contact < boottime() - 0.5
        server.resume()
        await poll_until(following, lambda following: following.connected and (following.fresh_at or 0.0) > paused_at)
        done = await store.commit([], [Put("b", b"")])
        await view.follow(following, done.revision)
        assert set(view.items) == {"a", "b"}


async def test_history_below_a_compaction_is_refused(store: Store) -> None:
    revisions = [(await store.commit([], [Put("a", b"%d" % number)])).revision for number in range(5)]
    await store.compact(revisions[2])
    await store.compact(revisions[1])
    with pytest.raises(ValueError):
        await store.compact(revisions[-1] + 1000)
    for gone in (1, revisions[0], revisions[2]):
        async with store.watch("a", gone) as watch:
            with pytest.raises(Compacted):
                await anext(watch)
    async with store.watch("a", revisions[3]) as watch:
        assert [(await anext(watch)).revision for _ in range(2)] == revisions[3:]


async def test_a_delete_at_the_compacted_revision_is_not_lost(store: Store) -> None:
    await store.commit([], [Put("a", b"")])
    done = await store.commit([], [Delete("a")])
    await store.compact(done.revision)
    async with store.watch("a", done.revision) as watch:
        with pytest.raises(Compacted):
            with trio.fail_after(10):
                await anext(watch)


async def test_following_survives_a_compaction_while_it_was_cut_off(server: Server) -> None:
    view = View()
    async with opened(server, deadline=1.0) as store, store.follow("a/") as following:
        view.apply(await anext(following))
        done = await store.commit([], [Put("a/1", b""), Put("a/2", b"")])
        await view.follow(following, done.revision)
        await trio.to_thread.run_sync(server.kill)
        with trio.move_on_after(0.3):
            await anext(following)
        await trio.to_thread.run_sync(server.start)
        # Nobody reads the view meanwhile.
        async with opened(server) as other:
            await other.commit([], [Delete("a/1")])
            done = await other.commit([], [Put("a/3", b"")])
            done = await other.commit([], [Put("b", b"")])
            await other.compact(done.revision)
        await view.follow(following, done.revision)
        assert view.snapshots == 2
        assert set(view.items) == {"a/2", "a/3"}
        done = await store.commit([], [Put("a/4", b"")])
        await view.follow(following, done.revision)
        assert set(view.items) == {"a/2", "a/3", "a/4"}


async def test_writers_and_a_follower_through_kills_and_pauses(server: Server) -> None:
    """Read as a history: every acknowledged increment is there, unknown ones happened once or not at all."""
    acknowledged: dict[int, int] = {}  # revision: number
    unknown: set[int] = set()
    stop = trio.Event()

    async def increment(store: Store) -> None:
        number = 0
        while not stop.is_set():
            try:
                kv = await store.get("counter")
                number, revision = (0, 0) if kv is None else (json.loads(kv.value), kv.mod_revision)
                done = await store.commit(
                    [Unchanged("counter", revision)],
                    [Put("counter", json.dumps(number + 1).encode()), Put("twin", json.dumps(number + 1).encode())],
                )
                if done.succeeded:
                    acknowledged[done.revision] = number + 1
            except StoreUnavailable as error:
                if error.outcome_unknown:
                    unknown.add(number + 1)

    async def client() -> None:
        async with opened(server, deadline=1.0) as store:
            await increment(store)

    async def hurt() -> None:
        for turn in range(3):
            goal = len(acknowledged) + 30
            with trio.fail_after(30):
                while len(acknowledged) < goal:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            if turn == 1:
                server.pause()
                await trio.sleep(1.5)  # longer than the writers' deadline
                server.resume()
            else:
                await trio.to_thread.run_sync(server.kill)
                await trio.to_thread.run_sync(server.start)
        stop.set()

    view = View()
    seen: dict[int, int] = {}
    async with opened(server, deadline=1.0) as store, store.follow("") as following:
        view.apply(await anext(following))
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(client)
            nursery.start_soon(hurt)
        last = (await store.range("")).revision
        with trio.fail_after(20):
            while following.revision < last:
                with trio.move_on_after(0.05):
                    item = await anext(following)
                    view.apply(item)
                    assert isinstance(item, Change)
                    assert [event.kv.key for event in item.events] == ["counter", "twin"], "half a commit"
                    assert item.events[0].kv.value == item.events[1].kv.value
                    seen[item.revision] = json.loads(item.events[0].kv.value)
    assert list(seen.values()) == list(range(1, len(seen) + 1)), "an update was lost or applied twice"
    assert acknowledged.items() <= seen.items(), "an acknowledged commit is missing"
    assert {number for revision, number in seen.items() if revision not in acknowledged} <= unknown
    assert view.snapshots == 1


async def test_a_watch_never_starts_before_the_first_revision(store: Store) -> None:
    with pytest.raises(ValueError):
        store.watch("", 0)
    with pytest.raises(StoreError):
        await store.keep_alive(12345)
