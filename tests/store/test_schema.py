"""The schema version, and stores that are replaced while they are open."""

from __future__ import annotations

import msgspec
import pytest
import trio

from metadata_service.store.contract import Put, SchemaTooNew, SchemaTooOld, Snapshot, StoreReplaced, Unchanged
from metadata_service.store.opened import SCHEMA, SCHEMA_KEY, OpenedStore, SchemaRecord
from tests.store.servers import Server, opened


async def test_a_store_written_by_a_newer_release_is_refused(server: Server) -> None:
    async with opened(server, release=SCHEMA + 1) as store:
        await store.commit([], [Put("a", b"1")])
    with pytest.raises(SchemaTooNew, match=f"version {SCHEMA + 1}.*{SCHEMA} at most"):
        async with opened(server):
            pass
    async with opened(server, release=SCHEMA + 1) as store:
        assert len((await store.range("")).items) == 1


async def test_a_store_that_is_one_version_older_works_and_stays_as_it_is(server: Server) -> None:
    async with opened(server) as old, opened(server, release=SCHEMA + 1) as new:
        assert old.schema == new.schema == SCHEMA
        await new.commit([], [Put("a", b"new")])
        await old.commit([], [Put("b", b"old")])
        assert (await old.range("")).items == (await new.range("")).items
    with pytest.raises(SchemaTooOld, match=f"version {SCHEMA}.*{SCHEMA + 1} and {SCHEMA + 2}"):
        async with opened(server, release=SCHEMA + 2):
            pass


async def test_many_that_open_an_empty_store_at_once_open_the_same(server: Server) -> None:
    records: list[SchemaRecord] = []

    async def open_it() -> None:
        async with opened(server) as store:
            records.append(store.record)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(open_it)
    assert records == [records[0]] * 10


async def rewrite_schema(store: OpenedStore, record: SchemaRecord) -> None:
    put = Put(SCHEMA_KEY, msgspec.json.encode(record))
    assert (await store.backend.commit(store.guard, [], [put], [])).succeeded


async def test_an_upgrade_fences_off_who_still_has_the_old_version_open(server: Server) -> None:
    async with opened(server) as old:
        await old.commit([], [Put("a", b"1")])
        async with opened(server) as other:
            await rewrite_schema(other, msgspec.structs.replace(other.record, schema=SCHEMA + 1))
        with pytest.raises(SchemaTooNew):
            await old.commit([Unchanged("b", 0)], [Put("b", b"2")])
        with pytest.raises(SchemaTooNew):
            await old.get("a")
        with pytest.raises(SchemaTooNew):
            await old.range("")
    async with opened(server, release=SCHEMA + 1) as new:
        assert [kv.key for kv in (await new.range("")).items] == ["a"]


async def test_a_follower_of_a_replaced_store_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadata_service.store.opened.CHECK_SECONDS", 0.3)
    async with opened(server) as store, store.follow("") as following:
        assert isinstance(await anext(following), Snapshot)
        async with opened(server) as other:
            await rewrite_schema(other, msgspec.structs.replace(other.record, generation="other"))
        with trio.fail_after(10), pytest.raises(StoreReplaced):
            await anext(following)


async def test_a_store_that_went_back_is_noticed(server: Server) -> None:
    """As after a restore: the schema key is the same, and the revision is lower than what was seen."""
    async with opened(server) as store:
        done = await store.commit([], [Put("a", b"1")])
        store.note(done.revision + 5, 0)
        with pytest.raises(StoreReplaced, match="old backup"):
            await store.get("a")
        async with store.watch("", done.revision + 5) as watch:
            with trio.fail_after(10), pytest.raises(StoreReplaced):
                await anext(watch)


async def test_an_unreadable_schema_is_refused(server: Server) -> None:
    async with opened(server) as store:
        assert (await store.backend.commit(None, [], [Put(SCHEMA_KEY, b"?")], [])).succeeded
    with pytest.raises(StoreReplaced, match="not readable"):
        async with opened(server):
            pass
