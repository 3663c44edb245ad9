"""A watch on etcd: it reconnects from where it was, and proves from time to time that it is current.

Proof of being current is two things: the store's newest revision, from a linearizable read (a member that has fallen
behind, or is cut off, knows an older one), and that the stream has delivered everything up to there. For the latter,
etcd 3.5.8 and later answers a progress request in order with the changes. Older releases may answer ahead of changes
that are still to come, so there the watch compares instead: where, at one later revision, the prefix holds no key
written since the last known revision and as many keys as then, its state is the same. (A key that was created and
deleted in between shows in neither; its two changes are handed out when they come.)

Older releases also lose a delete at exactly the revision they are compacted to, if a watch starts there. So nothing is
handed out after connecting before the revision before the start was seen not to be compacted.
"""

from __future__ import annotations

import contextlib
import math
import queue
from collections import deque
from itertools import groupby
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Any, Literal

import grpc
import msgspec
import trio

from metadata_service.store import etcd_wire as wire
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Change, Compacted, Event, Progress, StoreReplaced, StoreUnavailable
from metadata_service.store.etcd_channel import RpcFailed, call_result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metadata_service.store.etcd import EtcdBackend
    from metadata_service.store.etcd_channel import Link

REPEAT_SECONDS = 0.2
"""A progress request is dropped while the watch is catching up, and is therefore repeated."""

QUEUED = 32
"""Answers read ahead; etcd keeps each at 1.5 MiB at most, and most have one change."""

COMPARE_SHARE = 20
"""A comparison, which costs etcd time in proportion to the keys, takes at most one part in so many of all time."""


class _Lost(Exception):
    """The stream is of no more use."""


Call = Literal["newest", "compare", "history"]


class _Answered(msgspec.Struct, frozen=True):
    """The end of a call that was started beside the stream: its answer, or why there is none."""

    call: Call
    result: bytes | RpcFailed


class _Stream:
    """One Watch call, and the calls that belong to it; all answers come through one queue.

    The stream's answers are read by a thread, which waits while QUEUED of them have not been taken.
    """

    def __init__(self, link: Link, request: bytes) -> None:
        self.link = link
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._requests.put(request)
        self._answers: deque[wire.WatchAnswer | _Answered] = deque()
        self._room = Semaphore(QUEUED)
        self._wake = trio.Event()
        self._ended = False
        self._token = trio.lowlevel.current_trio_token()
        self._use = contextlib.ExitStack()
        self._use.enter_context(link.used())
        self._error: RpcFailed | None = None
        call = link.channel.stream_stream(wire.WATCH)
        self._call: Any = call(self._sent(), metadata=link.metadata)
        self._calls: list[Any] = []
        Thread(target=self._pump, name="etcd-watch", daemon=True).start()

    def _sent(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, request: bytes) -> None:
        self._requests.put(request)

    def start(self, name: Call, path: str, request: bytes, timeout: float) -> None:
        """A unary call; its end arrives as _Answered, whoever is cancelled meanwhile."""

        def finished(call: Any) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._finished, name, call)

        call = self.link.start(path, request, timeout)
        self._calls.append(call)
        call.add_done_callback(finished)

    def _finished(self, name: Call, call: Any) -> None:
        self._calls.remove(call)
        self._answers.append(_Answered(name, call_result(call)))
        self._wake.set()

    async def receive(self) -> wire.WatchAnswer | _Answered:
        """Raises RpcFailed or _Lost at the end of the stream."""
        while not self._answers:
            if self._ended:
                raise self._error or _Lost("the stream ended")
            self._wake = trio.Event()
            await self._wake.wait()
        answer = self._answers.popleft()
        if isinstance(answer, wire.WatchAnswer):
            self._room.release()
        return answer

    def _pump(self) -> None:
        try:
            for data in self._call:
                self._room.acquire()
                self._answers.append(wire.read_watch(data))
                self._token.run_sync_soon(self._notice, idempotent=True)
        except grpc.RpcError:
            self._error = RpcFailed(self._call.code(), self._call.details() or "")
        except (wire.Malformed, trio.RunFinishedError):
            pass  # the stream ends, and another takes its place
        self._ended = True
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._notice)

    def _notice(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._requests.put(None)
        for call in (self._call, *self._calls):
            call.cancel()
        self._room.release()  # the thread may be waiting for it, and then finds the call cancelled
        self._use.close()


class EtcdWatch:
    def __init__(self, backend: EtcdBackend, key: bytes, end: bytes, from_revision: int) -> None:
        self._backend = backend
        self._links = backend.links
        self._deadline = backend.deadline
        self._key = key
        self._end = end
        # Where to go on after a reconnect; and the revision whose state a comparison starts from.
        self._next = from_revision
        self._known = max(1, from_revision - 1)
        self._stream: _Stream | None = None
        self._created = False
        self._part: list[wire.EtcdEvent] = []
        # Complete, and to be handed out once the history was seen to be whole.
        self._arrived: list[Change | Progress] = []
        self._whole = False
        # A check of the history is under way; it was started with changes at hand, and so tells about them.
        self._checking = False
        self._check_counts = False
        self._ready: deque[Change | Progress] = deque()
        # One question is open at a time.
        self._asked_at: float | None = None
        self._asked_known = 0
        self._ask_again_at = 0.0
        # The newest revision, and when it was asked for: once the stream is known to have reached it, it was current.
        self._awaited: tuple[int, float] | None = None
        self._repeat_at = math.inf
        self._backoff = Backoff()
        self.last_contact: float | None = None

    @property
    def connected(self) -> bool:
        return self._created and (self._asked_at is None or boottime() < self._silent_at())

    def _silent_at(self) -> float:
        """When an open question makes the stream count as lost."""
        return max(self._asked_at or 0.0, self.last_contact or 0.0) + self._deadline

    async def receive(self) -> Change | Progress:
        while True:
            if self._ready:
                item = self._ready.popleft()
                if isinstance(item, Change):
                    self._next = item.revision + 1
                self._known = max(self._known, item.revision)
                return item
            try:
                await self._step()
            except _Lost:
                self._close(failed=True)
                await self._backoff.pause()
            except RpcFailed as error:
                await self._recover(error)

    async def _step(self) -> None:
        if self._stream is None:
            await self._open()
            return
        if self._arrived and (self._whole or self._next <= 1):
            self._ready += self._arrived
            self._arrived, self._whole = [], True
            return
        if self._arrived and not self._checking:
            self._check_history(self._stream)
        elif self._created and not self._part and self._asked_at is None and boottime() >= self._ask_again_at:
            self._ask(self._stream)
        await self._take(self._stream)

    async def _open(self) -> None:
        link = self._links.link()
        await self._links.authenticate(link, self._deadline)
        if link.version is None:
            text = wire.read_text(await link.unary(wire.STATUS, b"", self._deadline))
            link.version = tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())
        self._stream = _Stream(link, wire.watch_request(self._key, self._end, self._next))
        self._created = self._whole = self._checking = False
        self._part, self._arrived = [], []
        self._awaited, self._repeat_at = None, math.inf
        # Until it is created the stream counts as asked: it must not keep silent for ever.
        self._asked_at = boottime()

    async def _take(self, stream: _Stream) -> None:
        if self._asked_at is not None or self._part:
            limit = min(self._silent_at(), self._repeat_at)
        elif self._checking:
            limit = math.inf  # a call ends by itself
        else:
            limit = self._ask_again_at
        with trio.move_on_after(max(0.0, limit - boottime())) as waiting:
            answer = await stream.receive()
        if waiting.cancelled_caught:
            self._waited(stream)
            return
        self.last_contact = boottime()
        self._backoff.reset()
        if isinstance(answer, wire.WatchAnswer):
            self._read(answer, stream)
        elif isinstance(answer.result, RpcFailed):
            raise answer.result
        elif answer.call == "newest":
            self._newest(wire.read_range(answer.result).revision, stream)
        elif answer.call == "compare":
            self._compared(wire.read_txn(answer.result), stream)
        else:
            self._whole, self._checking = self._whole or self._check_counts, False

    def _waited(self, stream: _Stream) -> None:
        if self._asked_at is None and not self._part:
            return
        if boottime() >= self._silent_at():
            raise _Lost("no answer")
        if boottime() >= self._repeat_at:
            self._request_progress(stream)

    def _read(self, answer: wire.WatchAnswer, stream: _Stream) -> None:
        if answer.compact_revision:
            raise Compacted(answer.compact_revision)
        if answer.canceled:
            raise RpcFailed(_code_of(answer.cancel_reason), answer.cancel_reason)
        if answer.created:
            self._created = True
            self._asked_at, self._ask_again_at = None, boottime()
        elif answer.events:
            self._part += answer.events
            if not answer.fragment:
                self._arrive()
        elif stream.link.reports_progress:
            self._reach(answer.revision)

    def _arrive(self) -> None:
        revision = 0
        for revision, events in groupby(self._part, key=lambda event: event.kv.mod_revision):
            self._arrived.append(Change(revision, tuple(map(self._event, events))))
        self._part = []
        self._reach(revision)

    def _reach(self, revision: int) -> bool:
        """The stream has delivered everything up to a revision. Whether that answers the open question."""
        if self._awaited is None or revision < self._awaited[0]:
            return False
        self._arrived.append(Progress(revision, self._awaited[1]))
        self._awaited, self._asked_at, self._repeat_at = None, None, math.inf
        return True

    def _check_history(self, stream: _Stream) -> None:
        """Ends in Compacted where the store no longer has all changes since the last one handed out."""
        # The key does not matter: a compacted revision is refused for any.
        request = wire.range_request(self._key, revision=self._next - 1, count_only=True)
        stream.start("history", wire.KV_RANGE, request, self._deadline)
        self._checking, self._check_counts = True, bool(self._arrived)

    def _ask(self, stream: _Stream) -> None:
        self._asked_at, self._asked_known = boottime(), self._known
        self._ask_again_at = self._asked_at + self._backend.progress_interval
        if stream.link.reports_progress:
            # The key does not matter: the answer tells the revision.
            stream.start("newest", wire.KV_RANGE, wire.range_request(self._key, count_only=True), self._deadline)
            return
        newer = wire.range_request(self._key, self._end, keys_only=True, limit=1, min_mod_revision=self._known + 1)
        ranges = (
            wire.range_request(self._key, self._end, count_only=True, revision=self._known),
            wire.range_request(self._key, self._end, count_only=True),
            newer,
        )
        stream.start("compare", wire.KV_TXN, wire.txn_request([], map(wire.range_op, ranges)), self._deadline)

    def _newest(self, revision: int, stream: _Stream) -> None:
        if self._asked_at is None:
            return
        if revision < self._asked_known:
            raise StoreReplaced(f"{self._backend.description} is behind revision {self._asked_known}")
        self._awaited = (revision, self._asked_at)
        if not self._reach(self._reached()):
            self._request_progress(stream)

    def _request_progress(self, stream: _Stream) -> None:
        stream.send(wire.progress_request())
        self._repeat_at = boottime() + REPEAT_SECONDS

    def _compared(self, answer: wire.TxnAnswer, stream: _Stream) -> None:
        then, now, newer = answer.answers
        if not (
            isinstance(then, wire.RangeAnswer)
            and isinstance(now, wire.RangeAnswer)
            and isinstance(newer, wire.RangeAnswer)
            and self._asked_at is not None
        ):
            raise _Lost("a comparison was not answered")
        spent = boottime() - self._asked_at
        self._ask_again_at = max(self._ask_again_at, self._asked_at + COMPARE_SHARE * spent)
        self._awaited = (answer.revision, self._asked_at)
        same = then.count == now.count and not newer.items
        reached = max(answer.revision, self._reached()) if same else self._reached()
        if not self._reach(reached) and not self._checking and self._next > 1:
            # The stream must deliver what has changed within the deadline; if it still can.
            self._check_history(stream)

    def _reached(self) -> int:
        return max((self._known, *(item.revision for item in self._arrived)))

    async def _recover(self, error: RpcFailed) -> None:
        link = self._links.link() if self._stream is None else self._stream.link
        self._close(failed=False)
        if "future revision" in error.details:
            raise StoreReplaced(f"{self._backend.description} is behind revision {self._known}") from error
        if error.needs_token and self._links.settings.username is not None:
            link.token = None
        elif not error.passing and not isinstance(translated := self._links.translated(error), StoreUnavailable):
            raise translated from error
        else:
            self._links.failed(link)
        await self._backoff.pause()

    def _event(self, event: wire.EtcdEvent) -> Event:
        previous = None if event.previous is None else self._backend.inner(event.previous)
        return Event("delete" if event.deleted else "put", self._backend.inner(event.kv), previous)

    def _close(self, *, failed: bool) -> None:
        self._created = False
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()
            if failed:
                self._links.failed(stream.link)

    async def aclose(self) -> None:
        self._close(failed=False)


def _code_of(reason: str) -> Any:
    """A cancelled watch gives its reason as text alone."""
    if "permission denied" in reason.lower() or "PermissionDenied" in reason:
        return grpc.StatusCode.PERMISSION_DENIED
    return grpc.StatusCode.UNAVAILABLE
