"""A cluster as a caller sees it: its brokers, pooled connections to them, what they offer, how they are.

Connections are opened when needed and closed when unused (looked at whenever the client is used). Which errors are
retried: a connection that could not be opened, always, where any broker will do; one that was lost with a request on
it, only where the caller says `retry=True` (reads, and calls that may happen twice). KRaft brokers forward controller
requests, so any broker will do for those.
"""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from kafka_client.connection import API_VERSIONS, MAX_FRAME, SOFTWARE, Connection, connect
from kafka_client.failures import (
    AuthenticationFailed,
    BrokerUnavailable,
    CallTimeout,
    ClientError,
    ClusterMismatch,
    Refused,
)
from kafka_client.security import PLAINTEXT, Security
from kafka_wire.errors import ERROR
from kafka_wire.schema import Versions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from types import TracebackType

    from kafka_wire.codec import Message

API_METADATA, API_FIND_COORDINATOR = 3, 10
GROUP, TRANSACTION, SHARE = 0, 1, 2  # coordinator key types
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 2.0
CONNECTIONS_PER_BROKER = 4
IDLE_CLOSE = 60.0  # seconds; brokers close after 600 by default
CONNECT_TIMEOUT = 10.0
_MOVED = {ERROR.NOT_COORDINATOR, ERROR.COORDINATOR_NOT_AVAILABLE}
_COORDINATOR_RETRY = _MOVED | {ERROR.COORDINATOR_LOAD_IN_PROGRESS}

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Broker:
    """A live broker as Metadata names it, on the listener we are connected to."""

    id: int
    host: str
    port: int
    rack: str | None = None


@dataclass(frozen=True, slots=True)
class Features:
    """What every broker heard from offers.

    `apis`: key -> version range that all share. `supported`, `finalized`: feature -> (min, max) level; `finalized` is
    of the highest `epoch` seen (-1: none).
    """

    apis: Mapping[int, Versions]
    supported: Mapping[str, tuple[int, int]]
    finalized: Mapping[str, tuple[int, int]]
    epoch: int


@dataclass(frozen=True, slots=True)
class Health:
    """How the cluster answers. Times are `time.monotonic()` seconds."""

    reachable: frozenset[int]  # brokers whose newest connection attempt or call succeeded
    unreachable: Mapping[int, str]  # known brokers that failed last, and how
    last_ok: float | None
    last_error: str | None
    last_error_at: float | None


@dataclass(slots=True)
class _Pool:
    """The connections to one address, and when it may be tried again after a failure."""

    address: Address
    connections: list[Connection] = field(default_factory=list)
    opening: int = 0
    failures: int = 0
    not_before: float = 0.0
    changed: trio.Event = field(default_factory=trio.Event)


def backoff(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row (n >= 1): 50 ms doubling to 2 s, and half of it at random."""
    top = min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(failures - 1, 16))
    return top * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


def parse_address(text: str) -> Address:
    """`"host:port"` or `"[v6]:port"`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"not host:port: {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def error_codes(message: Any) -> Iterable[int]:
    """Every `error_code` in a message, at any depth."""
    if isinstance(message, dict):
        for name, value in message.items():
            if name == "error_code":
                yield value
            elif isinstance(value, (dict, list)):
                yield from error_codes(value)
    elif isinstance(message, list):
        for one in message:
            if isinstance(one, (dict, list)):
                yield from error_codes(one)


class ClusterClient:
    """A client of one cluster; an async context manager that closes its connections.

    Usable from many tasks at once. `bootstrap` are `host:port` texts; they are also the way back when every known
    broker is gone.
    """

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[str],
        security: Security = PLAINTEXT,
        client_id: str = "kfed",
        *,
        idle_close: float = IDLE_CLOSE,
        per_broker: int = CONNECTIONS_PER_BROKER,
        connect_timeout: float = CONNECT_TIMEOUT,
        max_frame: int = MAX_FRAME,
    ) -> None:
        if not bootstrap:
            raise ValueError("at least one bootstrap address is needed")
        self.name = name
        self.security = security
        self.client_id = client_id
        self.cluster_id: str | None = None
        self.controller_id = -1
        self.brokers: Mapping[int, Broker] = {}
        self._bootstrap = tuple(parse_address(one) for one in bootstrap)
        self._idle_close = idle_close
        self._per_broker = per_broker
        self._connect_timeout = connect_timeout
        self._max_frame = max_frame
        self._pools: dict[Address, _Pool] = {}
        self._offers: dict[Address, Message] = {}
        self._errors: dict[Address, str] = {}
        self._answered: set[Address] = set()
        self._coordinators: dict[tuple[int, str], int] = {}
        self._last_ok: float | None = None
        self._last_error: tuple[str, float] | None = None
        self._closed = False

    async def __aenter__(self) -> ClusterClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection at once; calls in flight fail. Idempotent."""
        self._closed = True
        for pool in self._pools.values():
            for one in pool.connections:
                one.close()
            pool.changed.set()
        self._pools.clear()

    def retire(self) -> None:
        """Take no more calls; connections close when the callers on them have left."""
        self._closed = True
        for pool in self._pools.values():
            for one in pool.connections:
                one.retire()
            pool.changed.set()
        self._pools.clear()

    def adopt(self, other: ClusterClient) -> None:
        """Take over what another client of the same cluster knows of its brokers."""
        if other.brokers is not self.brokers and other.brokers:
            self.brokers, self.cluster_id = other.brokers, other.cluster_id
            self._drop_strangers()

    # -- calls ----------------------------------------------------------------------------------------------------

    async def call(
        self,
        key: int,
        message: Message,
        broker: int | None = None,
        version: int | None = None,
        timeout: float = 10.0,
        *,
        retry: bool = False,
        answer_bytes: int = 0,
    ) -> Message:
        """A request to one broker, or to any live one; the decoded answer.

        `answer_bytes` is how large it may well be: room for it is then made at once instead of bit by bit.

        With `retry`, failures of the connection are retried with backoff until `timeout` (seconds, for everything);
        without, only those where the request was certainly not sent, and only while another broker can be tried.

        Raises:
            BrokerUnavailable, CallTimeout, AuthenticationFailed, UnsupportedApi: as `Connection.call`.
        A `broker` that fresh metadata does not name is BrokerUnavailable too.
        """
        deadline = trio.current_time() + timeout
        tried: set[Address] = set()
        failures = 0
        reason: BrokerUnavailable | None = None
        while True:
            address = await self._target(broker, tried, deadline)
            try:
                left = deadline - trio.current_time()
                return await self._call_at(address, key, message, version, max(left, 0.0), answer_bytes)
            except BrokerUnavailable as error:
                tried.add(address)
                if self._closed:
                    raise
                if reason is None or error.sent or not isinstance(error, CallTimeout):
                    reason = error  # "no time left" would hide what used it up
                left = deadline - trio.current_time()
                others = broker is None and not tried.issuperset(self._candidates())
                if left <= 0 or not (retry or (others and not error.sent)):
                    raise reason from None
                if not others:
                    failures += 1
                    tried.clear()
                    await trio.sleep(min(backoff(failures), left))
                    if broker is not None and broker in self.brokers:
                        await self._quiet_refresh(deadline)  # it may have come back under another address

    @asynccontextmanager
    async def dedicated(self, broker: int) -> AsyncIterator[Connection]:
        """A connection to `broker` of the caller's own: for long polls, and where the order of requests matters."""
        host, port = await self._target(broker, set(), trio.current_time() + self._connect_timeout)
        connection = await self._open((host, port), self._connect_timeout)
        try:
            yield connection
        finally:
            connection.close()

    async def metadata(self, topics: Sequence[str] | None = None, *, timeout: float = 10.0, **fields: Any) -> Message:
        """Metadata of all topics (None), of some, or of none (`[]`); never creates one. Updates `brokers`.

        `fields` are further request fields (`include_topic_authorized_operations=True`).

        Raises: as `call`; `ClusterMismatch` where the answer is another cluster's; Refused.
        """
        named = None if topics is None else [{"name": one} for one in topics]
        message = {"topics": named, "allow_auto_topic_creation": False, **fields}
        answer = await self.call(API_METADATA, message, timeout=timeout, retry=True)
        if answer.get("error_code"):
            raise Refused(f"{self.name}: Metadata", answer["error_code"])
        self._learn(answer)
        return answer

    async def refresh(self, timeout: float = 10.0) -> Mapping[int, Broker]:
        """Ask for the brokers again, and return them. Raises as `metadata`."""
        await self.metadata([], timeout=timeout)
        return self.brokers

    async def probe(self, timeout: float = 5.0) -> Health:
        """Refresh, and contact every broker. Never raises for a cluster that is away: `health` says so."""
        try:
            await self.refresh(timeout)
        except ClientError as error:
            self._note_error(str(error))
            return self.health

        async def contact(broker: Broker) -> None:
            address = (broker.host, broker.port)
            try:
                self._offers[address] = await self._call_at(address, API_VERSIONS, dict(SOFTWARE), None, timeout)
            except ClientError as error:
                self._note_error(str(error), address)

        async with trio.open_nursery() as nursery:
            for broker in self.brokers.values():
                nursery.start_soon(contact, broker)
        return self.health

    # -- coordinators ---------------------------------------------------------------------------------------------

    async def coordinator(self, key_type: int, name: str, timeout: float = 10.0) -> int:
        """The broker that coordinates a group (0), transactional id (1) or share partition (2); cached.

        Waits, with backoff, while there is none yet. Raises Refused (30, 53: not authorised), and as `call`.
        """
        known = self._coordinators.get((key_type, name))
        if known is not None and known in self.brokers:
            return known
        deadline = trio.current_time() + timeout
        failures = 0
        while True:
            left = max(deadline - trio.current_time(), 0.0)
            message = {"key_type": key_type, "key": name, "coordinator_keys": [name]}
            answer = await self.call(API_FIND_COORDINATOR, message, timeout=left, retry=True)
            found = answer["coordinators"][0] if "coordinators" in answer else answer
            code = found["error_code"]
            if not code:
                if found["node_id"] not in self.brokers:
                    await self.refresh(max(deadline - trio.current_time(), 0.0))
                self._coordinators[key_type, name] = found["node_id"]
                return int(found["node_id"])
            failures += 1
            pause = backoff(failures)
            if code not in _COORDINATOR_RETRY or trio.current_time() + pause >= deadline:
                raise Refused(f"{self.name}: the coordinator of {name!r}", code, found["error_message"])
            await trio.sleep(pause)

    def forget_coordinator(self, key_type: int, name: str) -> None:
        """To be called on NOT_COORDINATOR (16): the next `coordinator` asks again."""
        self._coordinators.pop((key_type, name), None)

    async def call_coordinator(
        self,
        key_type: int,
        name: str,
        key: int,
        message: Message,
        version: int | None = None,
        timeout: float = 10.0,
        *,
        retry: bool = False,
    ) -> Message:
        """A call to a coordinator, following it when it moves or is still loading (14, 15, 16: nothing was done).

        Only for messages about that one group or id: any of those codes anywhere in the answer repeats the call.
        """
        deadline = trio.current_time() + timeout
        failures = 0
        while True:
            left = deadline - trio.current_time()
            broker = await self.coordinator(key_type, name, max(left, 0.0))
            try:
                left = max(deadline - trio.current_time(), 0.0)
                answer = await self.call(key, message, broker, version, left)
            except BrokerUnavailable as error:
                self.forget_coordinator(key_type, name)
                if (error.sent and not retry) or trio.current_time() >= deadline:
                    raise
            else:
                codes = set(error_codes(answer))
                if codes & _MOVED:
                    self.forget_coordinator(key_type, name)
                if not codes & _COORDINATOR_RETRY:
                    return answer
                if trio.current_time() >= deadline:
                    return answer
            failures += 1
            await trio.sleep(min(backoff(failures), max(deadline - trio.current_time(), 0.0)))

    # -- what is known --------------------------------------------------------------------------------------------

    @property
    def features(self) -> Features:
        """The intersection over the brokers heard from (`probe` hears from all)."""
        current = {(one.host, one.port) for one in self.brokers.values()}
        offers = [offer for address, offer in self._offers.items() if address in current] or [*self._offers.values()]
        apis: dict[int, Versions] | None = None
        supported: dict[str, tuple[int, int]] | None = None
        finalized: dict[str, tuple[int, int]] = {}
        epoch = -1
        for offer in offers:
            theirs = {a["api_key"]: Versions(a["min_version"], a["max_version"]) for a in offer["api_keys"]}
            levels = {f["name"]: (f["min_version"], f["max_version"]) for f in offer.get("supported_features", ())}
            apis = theirs if apis is None else _shared(apis, theirs)
            supported = levels if supported is None else _shared_levels(supported, levels)
            if offer.get("finalized_features_epoch", -1) > epoch:
                epoch = offer["finalized_features_epoch"]
                finalized = {
                    f["name"]: (f["min_version_level"], f["max_version_level"]) for f in offer["finalized_features"]
                }
        return Features(apis or {}, supported or {}, finalized, epoch)

    @property
    def health(self) -> Health:
        at = {one.id: (one.host, one.port) for one in self.brokers.values()}
        message, when = self._last_error or (None, None)
        return Health(
            reachable=frozenset(one for one, address in at.items() if address in self._answered),
            unreachable={one: self._errors[address] for one, address in at.items() if address in self._errors},
            last_ok=self._last_ok,
            last_error=message,
            last_error_at=when,
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Address]:
        known = [(one.host, one.port) for one in self.brokers.values()]
        return known + [one for one in self._bootstrap if one not in known]

    async def _target(self, broker: int | None, tried: set[Address], deadline: float) -> Address:
        """Where to send: the broker's address, or a random live one (open connections and healthy brokers first)."""
        if broker is not None:
            if broker not in self.brokers:
                await self.refresh(max(deadline - trio.current_time(), 0.0))
            one = self.brokers.get(broker)
            if one is None:
                raise BrokerUnavailable(f"{self.name} has no live broker {broker}")
            return one.host, one.port
        known = [(one.host, one.port) for one in self.brokers.values()]
        now = trio.current_time()

        def rank(address: Address) -> tuple[bool, bool, bool, float]:
            pool = self._pools.get(address)
            waiting = pool is not None and pool.not_before > now
            has = pool is not None and any(not one.closed for one in pool.connections)
            return waiting, address not in known, not has, random.random()  # noqa: S311

        return min((one for one in self._candidates() if one not in tried), key=rank)

    async def _call_at(
        self,
        address: Address,
        key: int,
        message: Message,
        version: int | None,
        timeout: float,
        answer_bytes: int = 0,
    ) -> Message:
        started = trio.current_time()
        connection: Connection | None = None
        with trio.move_on_after(timeout):
            connection = await self._connection(address)
        if connection is None:
            raise CallTimeout(f"{address[0]}:{address[1]}: no connection within {timeout:g} s")
        connection.grow = max(connection.grow, answer_bytes)
        left = max(timeout - (trio.current_time() - started), 0.0)
        try:
            answer = await connection.call(key, message, version, left)
        except (BrokerUnavailable, AuthenticationFailed) as error:
            connection.retire()  # after a timeout the broker may still be busy with it: nothing shall queue behind
            self._note_error(str(error), address)
            raise
        self._note_ok(address)
        return answer

    async def _connection(self, address: Address) -> Connection:
        """A pooled connection: an idle one, a new one while there is room, else the least loaded."""
        while True:
            if self._closed:
                raise BrokerUnavailable(f"{self.name}: the client is closed")
            self._sweep()
            pool = self._pools.setdefault(address, _Pool(address))
            usable = [one for one in pool.connections if one.usable()]
            pool.connections = usable
            best = min(usable, key=lambda one: (one.load, -one.last_used), default=None)
            if best is not None and (best.load == 0 or len(usable) + pool.opening >= self._per_broker):
                return best
            if pool.opening and len(usable) + pool.opening >= self._per_broker:
                await pool.changed.wait()
                continue
            return await self._open_pooled(pool)

    async def _open_pooled(self, pool: _Pool) -> Connection:
        pool.opening += 1
        try:
            # Waiting counts as opening: a broker that is down is not tried by every caller at once.
            await trio.sleep_until(max(pool.not_before, trio.current_time()))
            connection = await self._open(pool.address, self._connect_timeout)
        except BrokerUnavailable:
            pool.failures += 1
            pool.not_before = trio.current_time() + backoff(pool.failures)
            raise
        finally:
            pool.opening -= 1
            pool.changed.set()
            pool.changed = trio.Event()
        pool.failures = 0
        pool.not_before = 0.0
        if self._closed:
            connection.close()
            raise BrokerUnavailable(f"{self.name}: the client is closed")
        # The pool may have been dropped while we connected: put it where closing looks.
        self._pools.setdefault(pool.address, pool).connections.append(connection)
        return connection

    async def _open(self, address: Address, timeout: float) -> Connection:
        try:
            connection = await connect(
                *address,
                self.security,
                client_id=self.client_id,
                connect_timeout=timeout,
                max_frame=self._max_frame,
            )
        except ClientError as error:
            self._note_error(str(error), address)
            raise
        self._offers[address] = connection.api_versions
        self._note_ok(address)
        return connection

    def _sweep(self) -> None:
        """Close what has been idle for long, and what belongs to brokers that are gone."""
        oldest = trio.current_time() - self._idle_close
        for pool in self._pools.values():
            if any(one.last_used < oldest for one in pool.connections):
                for one in pool.connections:
                    if one.last_used < oldest and not one.load:
                        one.close()
                pool.connections = [one for one in pool.connections if not one.closed]

    def _learn(self, answer: Message) -> None:
        cluster_id = answer.get("cluster_id")
        if cluster_id is not None:
            if self.cluster_id is not None and cluster_id != self.cluster_id:
                raise ClusterMismatch(f"{self.name}: was cluster {self.cluster_id}, answers as {cluster_id}")
            self.cluster_id = cluster_id
        if not answer["brokers"]:
            return  # a broker that has just started knows nobody yet
        self.controller_id = answer.get("controller_id", -1)
        found = [Broker(one["node_id"], one["host"], one["port"], one.get("rack")) for one in answer["brokers"]]
        brokers = {one.id: one for one in sorted(found, key=lambda one: one.id)}
        if brokers != self.brokers:
            self.brokers = brokers
            self._drop_strangers()

    def _drop_strangers(self) -> None:
        current = set(self._candidates())
        for address in [one for one in self._pools if one not in current]:
            for connection in self._pools.pop(address).connections:
                connection.retire()
        for memory in (self._offers, self._errors):
            for address in [one for one in memory if one not in current]:
                del memory[address]
        self._answered &= current

    async def _quiet_refresh(self, deadline: float) -> None:
        try:
            await self.refresh(max(min(deadline - trio.current_time(), 1.0), 0.0))
        except BrokerUnavailable:
            pass  # the caller's own attempt reports

    def _note_ok(self, address: Address) -> None:
        self._last_ok = time.monotonic()
        self._answered.add(address)
        self._errors.pop(address, None)

    def _note_error(self, error: str, address: Address | None = None) -> None:
        self._last_error = (error, time.monotonic())
        if address is not None:
            self._errors[address] = error
            self._answered.discard(address)


def _shared(a: Mapping[int, Versions], b: Mapping[int, Versions]) -> dict[int, Versions]:
    both = {key: Versions(max(a[key].low, b[key].low), min(a[key].high, b[key].high)) for key in a if key in b}
    return {key: one for key, one in both.items() if one.low <= one.high}


def _shared_levels(a: Mapping[str, tuple[int, int]], b: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    both = {name: (max(a[name][0], b[name][0]), min(a[name][1], b[name][1])) for name in a if name in b}
    return {name: levels for name, levels in both.items() if levels[0] <= levels[1]}
