"""What all sessions of a worker share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from kafka_wire.codec import Message
from kafka_wire.schema import by_key
from metadata_service.view import View
from proxy.apis.contract import Federation, Handler
from proxy.transport.channel import SCRATCH, Channel
from proxy.transport.splice import BUFFER, Pipes
from runtime.metrics import ApiCounters, Metrics
from runtime.settings import Limits

if TYPE_CHECKING:
    from proxy.moving.worker import WorkerFence


class Identity(Protocol):
    """How questions reach clusters on somebody's behalf (see proxy.identity)."""

    async def ask_as(
        self, principal: str, host: str, cluster: str, key: int, request: Message, *, broker: int | None
    ) -> Message:
        """Ask a cluster as a principal. Raises ClusterAway or Refused."""

    async def visible(
        self, principal: str, host: str, cluster: str, operation: int, resource_type: int, names: Iterable[str]
    ) -> set[str]:
        """Those of `names` on which the principal may do `operation` there."""

    async def decidable(self, cluster: str) -> bool:
        """Whether its rules are known here. Raises ClusterAway: not now."""


class Budget:
    """Bytes of frames that are held whole, over all sessions of a worker."""

    def __init__(self, total: int, metrics: Metrics) -> None:
        self._free = total
        self._total = total
        self._waiting: list[tuple[int, trio.Event]] = []
        self._metrics = metrics

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for bytes that others hold."""
        return bool(self._waiting)

    def has(self, size: int) -> bool:
        """Whether `hold` gives so much at once, without a wait."""
        return not self._waiting and size <= self._free

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Waits, first come first served, until `size` bytes are free; a frame above the total waits for all."""
        size = min(size, self._total)
        if self._waiting or size > self._free:
            event = trio.Event()
            entry = (size, event)
            self._waiting.append(entry)
            try:
                await event.wait()
            except BaseException:
                if event.is_set():
                    self._release(size)
                else:
                    self._waiting.remove(entry)
                    self._grant()  # it may have stood in front of one that fits
                raise
        else:
            self._free -= size
        self._metrics.buffered_bytes += size
        try:
            yield
        finally:
            self._metrics.buffered_bytes -= size
            self._release(size)

    def _release(self, size: int) -> None:
        self._free += size
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            granted, event = self._waiting.pop(0)
            self._free -= granted
            event.set()


class Frames:
    """Memory for whole answers, lent: to take pages from the system anew for each costs more than to fill them."""

    def __init__(self, keep: int = 4, most: int = 8 << 20) -> None:
        self._free: list[bytearray] = []
        self._keep = keep
        self._most = most

    @contextmanager
    def lent(self, size: int) -> Iterator[memoryview]:
        """So many bytes, with anything in them."""
        one = self._free.pop() if self._free else bytearray()
        if len(one) < size:
            one = bytearray(size)
        view = memoryview(one)
        try:
            yield view[:size]
        finally:
            if len(one) <= self._most and len(self._free) < self._keep:
                self._free.append(one)


@dataclass
class Surroundings:
    """A worker's parts, as a session sees them."""

    view: Callable[[], View]
    federation: Federation
    identity: Identity
    handlers: Mapping[int, Handler]
    # Opens a channel to a broker: (cluster, physical broker id or -1 for any, principal to log in as or None: the
    # client does that itself) -> (channel, broker id). Raises ClusterAway.
    connect: Callable[[str, int, str | None], Awaitable[tuple[Channel, int]]]
    # (listener, cluster, physical broker id) -> (advertised host, port) of the virtual broker, None if none is given
    address: Callable[[str, str, int], tuple[str, int] | None]
    # Renews a login made by `connect`: (how to ask on the connection, cluster, broker, principal) -> when next.
    log_in_again: (
        Callable[[Callable[[int, int, Message], Awaitable[Message]], str, int, str], Awaitable[float]] | None
    ) = None
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    pipes: Pipes = field(default_factory=Pipes)
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(SCRATCH)))
    bulk: memoryview = field(
        default_factory=lambda: memoryview(bytearray(BUFFER))
    )  # lent for what goes to clients in large pieces
    frames: Frames = field(default_factory=Frames)
    # SASL clusters, whose clients are known only once their broker has answered them.
    authenticating: Callable[[str], bool] = lambda cluster: False
    # Answers made of cached bytes, without decoding the request: key -> body or None to take the handler's way.
    encoded: Mapping[int, Callable[..., Awaitable[bytes | None]]] = field(default_factory=dict)
    moving: WorkerFence | None = None  # what is done with topics while they move
    budget: Budget = field(init=False)
    accepting: bool = True  # False while the worker drains

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits.buffered_bytes, self.metrics)
        self._apis: dict[tuple[int, str], ApiCounters] = {}

    def api(self, key: int, cluster: str) -> ApiCounters:
        """The counters of an API on a cluster."""
        counters = self._apis.get((key, cluster))
        if counters is None:
            known = by_key("request").get(key)
            name = known.name.removesuffix("Request") if known else str(key)
            counters = self._apis[key, cluster] = self.metrics.api(name, cluster)
        return counters

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self.metrics.refusals[reason] += 1
