"""A watch on etcd: it reconnects from where it was, and proves from time to time that it is current.

Proof of being current: etcd 3.5.8 and later answers a progress request in order with the changes. Older releases may
answer ahead of changes that are still to come, so there the watch compares instead: where, at one later revision, the
prefix holds no key written since the last known revision and as many keys as then, its state is the same. (A key that
was created and deleted in between shows in neither; its two changes are handed out when they come.)

Older releases also lose a delete at exactly the revision they are compacted to, if a watch starts there. So nothing is
handed out after connecting before the revision before the start was seen not to be compacted.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from itertools import groupby
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
import trio

from metadata_service.store import etcd_wire as wire
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Change, Compacted, Event, Progress, StoreReplaced, StoreUnavailable
from metadata_service.store.etcd_channel import RpcFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metadata_service.store.etcd import EtcdBackend
    from metadata_service.store.etcd_channel import Link

COMPARE_SHARE = 20
"""A comparison, which costs etcd time in proportion to the keys, takes at most one part in so many of all time."""


class _Lost(Exception):
    """The stream is of no more use."""


class _Stream:
    """One Watch call. Its answers come through a thread, which waits while nobody takes them."""

    def __init__(self, link: Link, request: bytes) -> None:
        self.link = link
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._requests.put(request)
        self._answers_in, self.answers = trio.open_memory_channel[wire.WatchAnswer](4)
        self._token = trio.lowlevel.current_trio_token()
        self._use = contextlib.ExitStack()
        self._use.enter_context(link.used())
        self.error: RpcFailed | None = None
        call = link.channel.stream_stream(wire.WATCH)
        self._call: Any = call(self._sent(), metadata=link.metadata)
        Thread(target=self._pump, name="etcd-watch", daemon=True).start()

    def _sent(self) -> Iterator[bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, request: bytes) -> None:
        self._requests.put(request)

    def _pump(self) -> None:
        try:
            for data in self._call:
                trio.from_thread.run(self._answers_in.send, wire.read_watch(data), trio_token=self._token)
        except grpc.RpcError:
            self.error = RpcFailed(self._call.code(), self._call.details() or "")
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.RunFinishedError, trio.Cancelled):
            pass
        finally:
            with contextlib.suppress(trio.RunFinishedError, trio.Cancelled):
                trio.from_thread.run_sync(self._answers_in.close, trio_token=self._token)

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self.answers.close()
        self._use.close()


class EtcdWatch:
    def __init__(self, backend: EtcdBackend, key: bytes, end: bytes, from_revision: int) -> None:
        self._backend = backend
        self._links = backend.links
        self._key = key
        self._end = end
        # Where to go on after a reconnect; and the revision whose state a comparison starts from.
        self._next = from_revision
        self._known = max(1, from_revision - 1)
        self._stream: _Stream | None = None
        self._created = False
        self._verified = False
        self._part: list[wire.EtcdEvent] = []
        # Complete, and to be handed out once the history was seen to be whole.
        self._arrived: list[Change | Progress] = []
        self._ready: deque[Change | Progress] = deque()
        self._asked_at: float | None = None
        self._ask_again_at = 0.0
        # A comparison at this revision, asked for at that time, found changes that are still to come.
        self._awaited: tuple[int, float] | None = None
        self._backoff = Backoff()
        self.last_contact: float | None = None

    @property
    def connected(self) -> bool:
        return self._created

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
            except (_Lost, StoreUnavailable):
                self._close(failed=True)
                await self._backoff.pause()
            except RpcFailed as error:
                await self._recover(error)

    async def _step(self) -> None:
        if self._stream is None:
            await self._open()
        elif self._arrived:
            await self._verify()
        elif self._created and not self._part and self._asked_at is None and boottime() >= self._ask_again_at:
            await self._ask(self._stream)
        else:
            await self._take(self._stream)

    async def _open(self) -> None:
        link = self._links.link()
        deadline = self._backend.deadline
        await self._links.authenticate(link, deadline)
        if link.version is None:
            text = wire.read_text(await link.unary(wire.STATUS, b"", deadline))
            link.version = tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())
        self._stream = _Stream(link, wire.watch_request(self._key, self._end, self._next))
        self._created = self._verified = False
        self._part, self._arrived, self._awaited = [], [], None
        # Until it is created the stream counts as asked: it must not keep silent for ever.
        self._asked_at = boottime()

    async def _take(self, stream: _Stream) -> None:
        if self._asked_at is None:
            limit = self._ask_again_at
        else:
            limit = max(self._asked_at, self.last_contact or 0.0) + self._backend.deadline
        with trio.move_on_after(max(0.0, limit - boottime())) as waiting:
            try:
                answer = await stream.answers.receive()
            except trio.EndOfChannel:
                raise stream.error or _Lost("the stream ended") from None
        if waiting.cancelled_caught:
            if self._asked_at is not None:
                raise _Lost("no answer")
            return
        self.last_contact = boottime()
        self._read(answer, stream)

    def _read(self, answer: wire.WatchAnswer, stream: _Stream) -> None:
        if answer.compact_revision:
            raise Compacted(answer.compact_revision)
        if answer.canceled:
            raise RpcFailed(_code_of(answer.cancel_reason), answer.cancel_reason)
        self._backoff.reset()
        if answer.created:
            self._created = True
            self._asked_at, self._ask_again_at = None, self.last_contact or 0.0
        elif answer.events:
            self._part += answer.events
            if not answer.fragment:
                self._arrive()
        elif stream.link.reports_progress and (asked_at := self._asked_at) is not None:
            self._arrived.append(Progress(answer.revision, asked_at))
            self._asked_at, self._ask_again_at = None, asked_at + self._backend.progress_interval

    def _arrive(self) -> None:
        revision = 0
        for revision, events in groupby(self._part, key=lambda event: event.kv.mod_revision):
            self._arrived.append(Change(revision, tuple(map(self._event, events))))
        self._part = []
        if self._awaited is not None and revision >= self._awaited[0]:
            self._arrived.append(Progress(revision, self._awaited[1]))
            self._awaited = self._asked_at = None

    async def _verify(self) -> None:
        if not self._verified:
            await self._check_history()
        self._verified = True
        self._ready += self._arrived
        self._arrived = []

    async def _check_history(self) -> None:
        """Raises Compacted where the store no longer has all changes since the last one handed out."""
        if self._next > 1:
            # The key does not matter: a compacted revision is refused for any.
            await self._call(wire.KV_RANGE, wire.range_request(self._key, revision=self._next - 1, count_only=True))

    async def _ask(self, stream: _Stream) -> None:
        now = boottime()
        if stream.link.reports_progress:
            stream.send(wire.progress_request())
            self._asked_at = now
            return
        revision, same = await self._compare()
        if same:
            self._arrived.append(Progress(revision, now))
        else:
            # The stream must deliver what has changed within the deadline.
            await self._check_history()
            self._asked_at, self._awaited = now, (revision, now)
        spent = boottime() - now
        self._ask_again_at = now + max(self._backend.progress_interval, COMPARE_SHARE * spent)

    async def _compare(self) -> tuple[int, bool]:
        """The store's revision, and whether the state under the prefix there is still that of the last known one."""
        known = self._known
        request = wire.txn_request(
            [],
            [
                wire.range_op(wire.range_request(self._key, self._end, count_only=True, revision=known)),
                wire.range_op(wire.range_request(self._key, self._end, count_only=True)),
                wire.range_op(
                    wire.range_request(self._key, self._end, keys_only=True, limit=1, min_mod_revision=known + 1)
                ),
            ],
        )
        answer = wire.read_txn(await self._call(wire.KV_TXN, request))
        self.last_contact = boottime()
        then, now, newer = answer.answers
        if not (
            isinstance(then, wire.RangeAnswer)
            and isinstance(now, wire.RangeAnswer)
            and isinstance(newer, wire.RangeAnswer)
        ):
            raise _Lost("a comparison was not answered")
        return answer.revision, then.count == now.count and not newer.items

    async def _call(self, path: str, request: bytes) -> bytes:
        """A read at an old revision. A revision that is yet to come means that the store went back."""
        try:
            return await self._links.call(path, request, give_up=trio.current_time() + self._backend.deadline)
        except ValueError as error:
            if "future revision" in str(error):
                raise StoreReplaced(f"{self._backend.description} is behind revision {self._known}") from error
            raise

    async def _recover(self, error: RpcFailed) -> None:
        stream = self._stream
        link = self._links.link() if stream is None else stream.link
        if error.needs_token and self._links.settings.username is not None:
            self._close(failed=False)
            if link.token is not None:
                link.token = None
        elif error.code in _PASSING:
            self._close(failed=False)
            self._links.failed(link)
        else:
            self._close(failed=False)
            raise self._links.translated(error) from error
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


_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)


def _code_of(reason: str) -> Any:
    """A cancelled watch gives its reason as text alone."""
    if "permission denied" in reason.lower() or "PermissionDenied" in reason:
        return grpc.StatusCode.PERMISSION_DENIED
    return grpc.StatusCode.UNAVAILABLE
