"""The embedded store's server: one process owns the file, the others reach it over a Unix socket.

Requests are carried out in rounds: everything that has arrived is carried out in memory, in order; what that changed is
made durable with one SQLite commit (group commit); only then is anything of the round answered or shown to watches. So
no answer, of a read either, shows what a crash could take back. A watch is a cursor into the bounded history: one that
falls behind the history is told so (Behind), and costs no memory meanwhile.

After a restart every lease runs its full TTL anew; likewise after the server itself stood still for PAUSE_SECONDS,
when its clients could not renew.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from metadata_service.store.clock import boottime
from metadata_service.store.contract import Change, Event, GuardFailed, KeyValue, LeaseExpired, StoreError, StoreInUse
from metadata_service.store.embedded_log import Delta, Log
from metadata_service.store.embedded_state import FIRST_REVISION, State, size_of
from metadata_service.store.embedded_wire import (
    MAX_REQUEST,
    PART,
    Ask,
    BadFrame,
    Behind,
    Changed,
    Compact,
    Current,
    Done,
    Failed,
    FrameReader,
    Grant,
    Granted,
    GuardDidNotHold,
    Invalid,
    Items,
    KeepAlive,
    NoSuchLease,
    Read,
    ReadPrefix,
    Reply,
    Request,
    Revoke,
    WatchFrom,
    Write,
    Written,
    encode_frame,
    request_decoder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

HISTORY_REVISIONS = 20_000
HISTORY_BYTES = 32 << 20
MAX_CONNECTIONS = 1024
MAX_LEASES = 10_000
LEASE_TICK_SECONDS = 0.25
PAUSE_SECONDS = 2.0


class Expire:
    """Our own request: end these leases, where they have not been renewed meanwhile."""

    def __init__(self, leases: list[int]) -> None:
        self.leases = leases


class _Found:
    """Keys as they were in the round; turned into frames when they are sent."""

    def __init__(self, revision: int, items: list[KeyValue]) -> None:
        self.revision = revision
        self.items = items


class _Waiting:
    def __init__(self, request: Request | Expire) -> None:
        self.request = request
        self.answered = trio.Event()
        self.reply: Reply | _Found = Done()


class _Wake:
    """An event that can be waited for again and again; setting it while nobody waits is remembered."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


class Server:
    def __init__(self, journal: Log, state: State) -> None:
        self._journal = journal
        self._state = state
        # Of the last durable round; watches see nothing beyond.
        self._published = state.revision
        self._queue: list[_Waiting] = []
        self._work = _Wake()
        self._watches: set[_Wake] = set()
        self._connections = 0
        self._disk = trio.CapacityLimiter(1)

    # Rounds

    async def run_rounds(self) -> None:
        while True:
            await self._work.wait()
            batch, self._queue = self._queue, []
            delta = Delta(revision=0, compacted=0, changes=[], granted=[], ended=[])
            compacted = self._state.compacted
            for waiting in batch:
                waiting.reply = self._carry_out(waiting.request, delta)
            self._state.trim(HISTORY_REVISIONS, HISTORY_BYTES)
            delta.revision, delta.compacted = self._state.revision, self._state.compacted
            if delta.changes or delta.granted or delta.ended or delta.compacted > compacted:
                await self._save(delta, batch)
            for waiting in batch:
                waiting.answered.set()
            if self._published != self._state.revision or self._state.compacted > compacted:
                self._published = self._state.revision
                for watch in self._watches:
                    watch.set()

    async def _save(self, delta: Delta, batch: list[_Waiting]) -> None:
        try:
            await trio.to_thread.run_sync(self._journal.save, delta, limiter=self._disk)
        except sqlite3.Error as error:
            # Back to what the disk holds. If even that cannot be read, this process ends and is started again.
            log.error("the store's file could not be written: %s", error)
            self._state = await trio.to_thread.run_sync(self._journal.load, boottime(), limiter=self._disk)
            unknown = self._state.revision != self._published
            for waiting in batch:
                waiting.reply = Failed(f"the store's file could not be written: {error}", unknown)

    def _carry_out(self, request: Request | Expire, delta: Delta) -> Reply | _Found:
        state, before = self._state, self._state.revision
        try:
            return self._answer(request, state, delta)
        except GuardFailed:
            return GuardDidNotHold()
        except LeaseExpired:
            return NoSuchLease(request.lease if isinstance(request, KeepAlive | Revoke) else 0)
        except ValueError as error:
            return Invalid(str(error))
        finally:
            delta.changes += [state.change(revision) for revision in range(before + 1, state.revision + 1)]

    def _answer(self, request: Request | Expire, state: State, delta: Delta) -> Reply | _Found:
        match request:
            case Read(guard, key):
                state.check(guard)
                return _Found(state.revision, [state.items[key]] if key in state.items else [])
            case ReadPrefix(guard, prefix):
                state.check(guard)
                return _Found(state.revision, list(state.under(prefix)))
            case Write(guard, conditions, operations, otherwise):
                done = state.commit(guard, conditions, operations, otherwise)
                return Written(done.succeeded, done.revision)
            case KeepAlive(lease):
                return Granted(lease, state.keep_alive(lease, boottime()))
            case Grant(ttl):
                return self._grant(ttl, state, delta)
            case Revoke(lease):
                if state.revoke(lease):
                    delta.ended.append(lease)
            case Expire():
                ended = set(state.ended(boottime()))
                for lease in ended.intersection(request.leases):
                    state.revoke(lease)
                    delta.ended.append(lease)
            case Compact(revision):
                if revision > self._published:
                    raise ValueError(f"revision {revision} lies in the future: the store is at {self._published}")
                state.compact(revision)
            case _:
                raise ValueError(f"{type(request).__name__} is no request of its own")
        return Done()

    def _grant(self, ttl: int, state: State, delta: Delta) -> Reply:
        if not 0 < ttl < 1 << 31:
            raise ValueError(f"a lease runs for 1 to {(1 << 31) - 1} seconds, not {ttl}")
        if len(state.leases) >= MAX_LEASES:
            return Failed(f"there are {MAX_LEASES} leases already", outcome_unknown=False)
        while (lease := secrets.randbits(62)) in state.leases or lease == 0:
            pass
        state.grant(lease, ttl, boottime())
        delta.granted.append((lease, ttl))
        return Granted(lease, ttl)

    async def _submit(self, request: Request | Expire) -> Reply | _Found:
        waiting = _Waiting(request)
        self._queue.append(waiting)
        self._work.set()
        await waiting.answered.wait()
        return waiting.reply

    async def run_leases(self) -> None:
        last = boottime()
        while True:
            await trio.sleep(LEASE_TICK_SECONDS)
            last, before = boottime(), last
            if last - before > PAUSE_SECONDS:
                log.warning("stood still for %.1f s: every lease runs its full time anew", last - before)
                self._state.renew_all(last)
            elif ended := self._state.ended(last):
                await self._submit(Expire(ended))

    # Connections

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Never raises but for cancellation: no client can end the server."""
        if self._connections >= MAX_CONNECTIONS:
            log.warning("refused a connection: there are %d", self._connections)
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            await self._converse(stream)
        except BadFrame as error:
            log.warning("closed a connection: %s", error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:
            log.exception("a connection ended by an error of ours")
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        reader = FrameReader(stream, request_decoder, MAX_REQUEST)
        while (request := await reader.receive()) is not None:
            if isinstance(request, WatchFrom):
                await self._serve_watch(stream, reader, request)
                return
            reply = await self._submit(request)
            for part in _item_parts(reply) if isinstance(reply, _Found) else (reply,):
                await stream.send_all(encode_frame(part))

    async def _serve_watch(self, stream: trio.SocketStream, reader: FrameReader[Request], request: WatchFrom) -> None:
        wake = _Wake()
        asked: list[float] = []

        async def until_closed() -> None:
            try:
                while isinstance(ask := await reader.receive(), Ask):
                    # One question is open at a time; an impatient client's next one replaces it.
                    asked[:] = [ask.asked_at]
                    wake.set()
            except (BadFrame, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        self._watches.add(wake)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_closed)
                try:
                    await self._send_changes(stream, request, wake, asked)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()
        finally:
            self._watches.discard(wake)

    async def _send_changes(self, stream: trio.SocketStream, watch: WatchFrom, wake: _Wake, asked: list[float]) -> None:
        cursor = max(watch.from_revision, FIRST_REVISION + 1)
        while True:
            while cursor <= self._published:
                if cursor <= self._state.compacted:
                    await stream.send_all(encode_frame(Behind(self._state.compacted)))
                    return
                for part in _change_parts(self._state.change(cursor), watch.prefix):
                    await stream.send_all(encode_frame(part))
                cursor += 1
            if asked:
                await stream.send_all(encode_frame(Current(self._published, asked.pop())))
            else:
                await wake.wait()


def _item_parts(found: _Found) -> Iterator[Items]:
    part: list[KeyValue] = []
    size = 0
    for kv in found.items:
        part.append(kv)
        size += len(kv.key) + len(kv.value) + 32
        if size >= PART:
            yield Items(found.revision, tuple(part), more=True)
            part, size = [], 0
    yield Items(found.revision, tuple(part), more=False)


def _change_parts(change: Change, prefix: str) -> Iterator[Changed]:
    part: list[Event] = []
    size = 0
    sent = False
    for event in change.events:
        if not event.kv.key.startswith(prefix):
            continue
        if size >= PART:
            yield Changed(change.revision, tuple(part), more=True)
            part, size, sent = [], 0, True
        part.append(event)
        size += size_of(event)
    if part or sent:
        yield Changed(change.revision, tuple(part), more=False)


@contextlib.contextmanager
def _only_server(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StoreInUse(f"process {lock.read().strip() or '?'} already serves the store in {directory}") from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _listen(path: Path) -> trio.SocketListener:
    # A socket that is there is left over: who has the lock is the only server.
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise StoreError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(mask)
    listening.listen(128)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


def default_socket(directory: Path) -> Path:
    return directory / "store.sock"


async def serve(
    directory: Path,
    socket_path: Path | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the store in `directory` until cancelled; started once clients can connect (socket mode 0600).

    Raises StoreInUse where another process serves it, StoreError, and sqlite3.Error where the file is damaged.
    """
    socket_path = socket_path or default_socket(directory)
    with _only_server(directory), contextlib.closing(Log(directory / "store.sqlite3")) as journal:
        server = Server(journal, journal.load(boottime()))
        listener = _listen(socket_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run_rounds)
            nursery.start_soon(server.run_leases)
            await nursery.start(trio.serve_listeners, server.serve_connection, [listener])
            task_status.started()


def main(arguments: list[str] | None = None) -> int:
    """A server in a process of its own: prints `ready`, ends in order on SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="embedded-store", description="Serves an embedded store to this machine.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--socket", type=Path, default=None)
    options = parser.parse_args(arguments)
    try:
        trio.run(_run, options.directory, options.socket)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(directory: Path, socket_path: Path | None) -> None:
    failed: StoreError | None = None
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            try:
                await nursery.start(serve, directory, socket_path)
            except StoreError as error:
                failed = error
            else:
                print("ready", flush=True)
                await anext(signals)
            nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


if __name__ == "__main__":
    sys.exit(main())
