"""What only the embedded server has: its file, its socket, its bounds."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from metadata_service.store import embedded_server as module
from metadata_service.store.contract import (
    Commit,
    Compacted,
    LeaseExpired,
    Put,
    StoreError,
    StoreInUse,
    StoreUnavailable,
)
from metadata_service.store.embedded import EmbeddedBackend
from metadata_service.store.embedded_log import FORMAT, Log
from metadata_service.store.embedded_server import default_socket, serve
from metadata_service.store.embedded_wire import MAX_REQUEST, WatchFrom, encode_frame
from metadata_service.store.opened import OpenedStore, open_backend
from tests.store.servers import ROOT, EmbeddedServer, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def local(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[OpenedStore]:
    """A server in this process."""
    await nursery.start(serve, tmp_path)
    backend = EmbeddedBackend(default_socket(tmp_path), progress_interval=0.05)
    yield await open_backend(backend)
    await backend.aclose()


async def test_a_second_server_is_refused(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, tmp_path)
        with pytest.raises(StoreInUse, match=str(os.getpid())):
            await serve(tmp_path)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, tmp_path)
        nursery.cancel_scope.cancel()


async def test_a_second_process_says_so_in_one_line(embedded_server: EmbeddedServer) -> None:
    command = [sys.executable, "-m", "metadata_service.store.embedded_server", str(embedded_server.directory)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert str(embedded_server.daemon.pid) in line
    async with opened(embedded_server) as store:
        await store.commit([], [Put("a", b"")])


async def test_the_server_ends_in_order_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "metadata_service.store.embedded_server", str(tmp_path)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    backend = EmbeddedBackend(default_socket(tmp_path))
    try:
        printed = b""
        while not printed.endswith(b"\n"):
            printed += await process.stdout.receive_some()
        assert printed == b"ready\n"
        async with (await open_backend(backend)).follow("") as following:
            await anext(following)
            process.terminate()
            with trio.fail_after(5):
                assert await process.wait() == 0
    finally:
        process.kill()
        await backend.aclose()


async def test_only_the_owner_reaches_it(local: OpenedStore, tmp_path: Path) -> None:
    assert stat.S_IMODE(default_socket(tmp_path).stat().st_mode) == 0o600


async def test_the_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    Log(tmp_path / "store.sqlite3").close()
    with sqlite3.connect(tmp_path / "store.sqlite3") as database:
        database.execute(f"PRAGMA user_version={FORMAT + 1}")
    database.close()
    with pytest.raises(StoreError, match="newer"):
        await serve(tmp_path)


async def test_a_socket_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot listen"):
        await serve(tmp_path, tmp_path / ("x" * 200))


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", MAX_REQUEST + 1),
        struct.pack(">I", 3) + b"abc",
        struct.pack(">I", 1) + b"\xc1",
        encode_frame(WatchFrom("", 1)) + b"\xff" * 100,
        b"\0\0",
        b"",
    ],
)
async def test_garbage_ends_its_connection_and_disturbs_no_other(
    local: OpenedStore, tmp_path: Path, garbage: bytes
) -> None:
    async with await trio.open_unix_socket(str(default_socket(tmp_path))) as stream:
        await stream.send_all(garbage)
        await stream.send_eof()
        with trio.fail_after(5):
            while await stream.receive_some():
                pass
    assert (await local.commit([], [Put("a", b"")])).succeeded


async def test_a_thousand_connections_opened_and_dropped(local: OpenedStore, tmp_path: Path) -> None:
    for _ in range(1000):
        stream = await trio.open_unix_socket(str(default_socket(tmp_path)))
        await trio.aclose_forcefully(stream)
    assert (await local.commit([], [Put("a", b"")])).succeeded


async def test_connections_are_bounded(local: OpenedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await local.get("a")
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    streams = [await trio.open_unix_socket(str(default_socket(tmp_path))) for _ in range(5)]
    with trio.fail_after(5):
        assert await streams[-1].receive_some() == b""
    assert await local.get("a") is None
    for stream in streams:
        await trio.aclose_forcefully(stream)


async def test_a_watch_that_nobody_reads_is_dropped_behind_the_history(
    local: OpenedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HISTORY_REVISIONS", 50)
    done = await local.commit([], [Put("a", b"")])
    async with local.watch("", done.revision) as watch, local.follow("") as following:
        await anext(following)
        await anext(watch)
        for number in range(200):
            await local.commit([], [Put(f"k{number % 10}", b"x" * 100_000)])
        with pytest.raises(Compacted):
            for _ in range(200):
                await anext(watch)
        last = (await local.range("")).revision
        with trio.fail_after(10):
            while following.revision < last:
                await anext(following)
        assert following.snapshots == 2


async def test_the_history_is_bounded_in_bytes_and_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HISTORY_BYTES", 1 << 20)
    backend = EmbeddedBackend(default_socket(tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, tmp_path)
        store = await open_backend(backend)
        for _ in range(100):
            await store.commit([], [Put("a", b"x" * 50_000)])
        nursery.cancel_scope.cancel()
    await backend.aclose()
    log = Log(tmp_path / "store.sqlite3")
    state = log.load(0.0)
    log.close()
    assert len(state.history) > 3
    assert state.history_bytes <= 1 << 20
    assert min(state.history) == state.compacted + 1
    assert max(state.history) == state.revision


async def test_a_disk_that_fails_takes_nothing_half(local: OpenedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done = await local.commit([], [Put("a", b"1")])
    lease = await local.grant(60)
    write = Log._write

    def full(self: Log, delta: object) -> None:
        write(self, delta)  # type: ignore[arg-type]
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Log, "_write", full)
    with pytest.raises(StoreUnavailable, match="disk is full") as caught:
        await local.commit([], [Put("a", b"2"), Put("b", b"2")])
    assert not caught.value.outcome_unknown
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await local.grant(60)
    found = await local.range("")
    assert [(kv.key, kv.value) for kv in found.items] == [("a", b"1")]
    assert found.revision == done.revision
    monkeypatch.setattr(Log, "_write", write)
    assert await local.commit([], [Put("b", b"3")]) == Commit(True, done.revision + 1)
    assert await local.keep_alive(lease.id) == 60


async def test_the_first_commit_after_a_restart_is_sure(embedded_server: EmbeddedServer) -> None:
    """The idle connections are known to be dead; none is used to send a commit into nothing."""
    async with opened(embedded_server) as store:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(store.commit, [], [Put(f"k{number}", b"")])
        for _ in range(3):
            await trio.to_thread.run_sync(embedded_server.kill)
            await trio.to_thread.run_sync(embedded_server.start)
            assert (await store.commit([], [Put("a", b"")])).succeeded


async def test_leases_run_anew_when_the_server_stood_still(embedded_server: EmbeddedServer) -> None:
    """Nobody could renew meanwhile."""
    async with opened(embedded_server, deadline=2.0) as store:
        lease = await store.grant(3)
        done = await store.commit([], [Put("a", b"", lease.id)])
        embedded_server.pause()
        await trio.sleep(4)  # longer than the lease
        embedded_server.resume()
        resumed_at = trio.current_time()
        assert await store.get("a") is not None
        async with store.watch("a", done.revision + 1) as watch:
            with trio.fail_after(10):
                await anext(watch)
        assert trio.current_time() - resumed_at >= lease.ttl - 0.5
        with pytest.raises(LeaseExpired):
            await store.keep_alive(lease.id)


async def test_writers_share_the_disk_s_commits(local: OpenedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = 0
    save = Log.save

    def counted(self: Log, delta: object) -> None:
        nonlocal saves
        saves += 1
        save(self, delta)  # type: ignore[arg-type]

    monkeypatch.setattr(Log, "save", counted)

    async def write(number: int) -> None:
        for _ in range(20):
            await local.commit([], [Put(f"k{number}", b"")])

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(write, number)
    assert saves <= 100
