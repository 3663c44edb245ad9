"""Export and import."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from metadata_service.store.contract import (
    Backend,
    Delete,
    Put,
    SchemaTooNew,
    StoreError,
    StoreNotEmpty,
    StoreReplaced,
    StoreUnavailable,
)
from metadata_service.store.opened import SCHEMA, OpenedStore
from metadata_service.store.transfer import IMPORTING_KEY, export, import_
from tests.store.servers import Server, opened

MANY = {f"topics/{number:04}": b"x" * 3000 for number in range(700)} | {
    "text": "grüße".encode(),
    "empty": b"",
    "binary": bytes(range(256)),
    "large": b"y" * 900_000,
}


async def fill(store: OpenedStore, content: dict[str, bytes]) -> None:
    for key, value in content.items():
        await store.commit([], [Put(key, value)])


async def content(store: OpenedStore) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await store.range("")).items}


async def exported(server: Server) -> dict[str, Any]:
    """Through text, as a file would hold it."""
    async with opened(server) as store:
        document: dict[str, Any] = json.loads(json.dumps(await export(store)))
        return document


async def test_round_trip(server: Server) -> None:
    async with opened(server) as store:
        await fill(store, MANY)
        lease = await store.grant(60)
        await store.commit([], [Put("workers/1", b"alive", lease.id)])
    document = await exported(server)
    async with opened(server) as store:
        await store.commit([], [Put("later", b"")])
        with pytest.raises(StoreNotEmpty, match=str(len(MANY) + 2)):
            await import_(store, document)
        assert len(await content(store)) == len(MANY) + 2
        assert await import_(store, document, replace=True, settle=0.0) == len(MANY)
        with pytest.raises(StoreReplaced):
            await store.get("text")
        # Nothing is left but the schema and the new content.
        assert len((await store.backend.range(None, "")).items) == len(MANY) + 1
    async with opened(server) as store:
        assert await content(store) == MANY
    again = await exported(server)
    assert again["items"] == document["items"]
    assert again["store"] == document["store"]


async def test_an_import_into_an_empty_store(server: Server) -> None:
    document = await exported(server)
    document["items"] = [{"key": "a", "text": "1"}, {"key": "b", "base64": "/w=="}]
    async with opened(server) as store:
        assert await import_(store, document) == 2
    async with opened(server) as store:
        assert await content(store) == {"a": b"1", "b": b"\xff"}


class Breaking:
    """A backend whose commits fail after so many."""

    def __init__(self, backend: Backend, commits: int) -> None:
        self._backend = backend
        self._left = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def commit(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise StoreUnavailable("broken off", outcome_unknown=True)
        return await self._backend.commit(*arguments)


async def test_an_import_that_breaks_off_anywhere_changes_nothing(server: Server) -> None:
    old = {"old/1": b"1", "old/2": b"2"}
    async with opened(server) as store:
        await fill(store, old)
    document = await exported(server)
    for commits in range(20):
        new = {f"new/{number:03}": b"%d" % commits for number in range(250)}
        document["items"] = [{"key": key, "text": str(commits)} for key in new]
        async with opened(server) as store, opened(server) as reader:
            backend = store.backend
            store.backend = Breaking(backend, commits)
            try:
                await import_(store, document, replace=True, settle=0.0)
            except StoreUnavailable:
                async with opened(server) as other:
                    found = await content(other)
                if found == old:
                    assert await content(reader) == old
                    key, value = min(old.items())
                    assert (await reader.commit([], [Put(key, value)])).succeeded
                else:
                    # Broken off while cleaning up: the import is done, and the reader knows.
                    assert found == new
                    with pytest.raises(StoreReplaced):
                        await reader.range("")
                    old = new
            else:
                break
    else:
        pytest.fail("the import never came to an end")
    async with opened(server) as store:
        assert await content(store) == new
        assert len((await store.backend.range(None, "")).items) == len(new) + 1


async def test_an_import_that_lost_its_lock_changes_nothing(server: Server) -> None:
    """It stood still for longer than its lease, and another may be at work."""
    async with opened(server) as store:
        await fill(store, {"old": b"1"})
    document = await exported(server)
    document["items"] = [{"key": f"{number:03}", "text": "x"} for number in range(300)]
    for commits in range(1, 5):
        async with opened(server) as store:
            store.backend = Losing(store.backend, commits)
            with pytest.raises(StoreError):
                await import_(store, document, replace=True, settle=0.0)
        async with opened(server) as store:
            assert await content(store) == {"old": b"1"}


class Losing:
    """A backend whose import lock is gone after so many commits."""

    def __init__(self, backend: Backend, commits: int) -> None:
        self._backend = backend
        self._left = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def commit(self, *arguments: Any) -> Any:
        if self._left == 0:
            await self._backend.commit(None, [], [Delete(IMPORTING_KEY)], [])
        self._left -= 1
        return await self._backend.commit(*arguments)


async def test_two_imports_exclude_each_other(server: Server) -> None:
    document = await exported(server)
    document["items"] = [{"key": f"{number:03}", "text": "x"} for number in range(300)]
    outcomes: list[str] = []

    async def run() -> None:
        async with opened(server) as store:
            try:
                await import_(store, document, replace=True, settle=0.0)
                outcomes.append("done")
            except StoreError as error:
                outcomes.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run)
    assert "done" in outcomes
    async with opened(server) as store:
        assert len(await content(store)) == 300
        assert len((await store.backend.range(None, "")).items) == 301


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema": SCHEMA + 1}, SchemaTooNew),
        ({"format": "other"}, ValueError),
        ({"items": [{"key": "a", "text": "1"}, {"key": "a", "text": "2"}]}, ValueError),
        ({"items": [{"key": "a", "base64": "?"}]}, ValueError),
        ({"items": [{"key": "", "text": "1"}]}, ValueError),
        ({"items": "none"}, ValueError),
        ({"more": 1}, ValueError),
    ],
)
async def test_what_is_no_export_is_refused(
    embedded_server: Server, change: dict[str, Any], error: type[Exception]
) -> None:
    document = await exported(embedded_server)
    async with opened(embedded_server) as store:
        await store.commit([], [Put("a", b"1")])
        with pytest.raises(error):
            await import_(store, document | change, replace=True, settle=0.0)
        assert await content(store) == {"a": b"1"}
