"""What the clusters say of themselves: one snapshot a cluster, read again every few seconds and when asked.

One connection a cluster polls the metadata of all topics; an unchanged answer is recognised by its bytes. A cluster
that does not answer keeps its last snapshot, marked unreachable, and is asked again with growing pauses. A cluster
that answers with another cluster.id than the one recorded under its name is refused: its snapshot is empty.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import trio

from kafka_client import BrokerUnavailable, ClientError, ClusterClient, ClusterMismatch, Connection, UnsupportedApi
from kafka_client.connection import connect
from kafka_wire.codec import DecodeError
from kafka_wire.errors import error_name
from kafka_wire.frames import request_frame, response_body
from metadata_service.addresses import numberable
from metadata_service.clients import Clients
from metadata_service.cluster_metadata import HIGHEST, LOWEST, ClusterMetadata, read_metadata
from metadata_service.failures import Undecided
from metadata_service.models import ClusterRecord
from metadata_service.store.clock import boottime
from metadata_service.store.contract import StoreError
from metadata_service.view import EMPTY, Snapshot
from runtime import logging

log = logging.get(__name__)

METADATA = 3
INTERVAL = 5.0  # seconds between two looks at a cluster
CLOSEST = 0.05  # ... and at least this between two that were asked for
OFFERS_INTERVAL = 60.0  # versions and features of every broker; also at once when the brokers change
CALL_TIMEOUT = 10.0
BROKERS_TIMEOUT = 4.0  # for finding any broker: a start waits for it, and the next look has its own pause
STAY = 60.0  # on one broker: one that is cut off from its controller must not be believed for ever
AWAY_FIRST, AWAY_LAST = 0.5, 10.0


class WrongCluster(Exception):
    """Another cluster answers behind this name than the one that was recorded."""


Identify = Callable[[ClusterRecord, str], Awaitable[None]]
"""Records the cluster.id of a cluster seen for the first time. Raises WrongCluster."""


@dataclass
class _Watched:
    """One cluster's state within this process."""

    record: ClusterRecord
    snapshot: Snapshot = EMPTY
    metadata: ClusterMetadata | None = None
    connection: Connection | None = None
    connected_to: int = -1
    connected_at: float = 0.0
    offers_at: float = -1e9
    offers_of: frozenset[int] = frozenset()
    attempts: int = 0  # looks begun
    looks: int = 0  # looks ended, well or not
    failures: int = 0
    wake: trio.Event = field(default_factory=trio.Event)
    looked: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Discovery:
    """Watches the clusters of the records it is given. `changed(name, snapshot)` is called with every new snapshot."""

    def __init__(
        self,
        clients: Clients,
        changed: Callable[[str, Snapshot], None],
        identify: Identify,
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._clients = clients
        self._changed = changed
        self._identify = identify
        self._interval = interval
        self._watched: dict[str, _Watched] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watches until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for one in self._watched.values():
                self._nursery.start_soon(self._watch, one)
            task_status.started()
            await trio.sleep_forever()

    def follow(self, records: Mapping[str, ClusterRecord]) -> None:
        """Take over the cluster records; starts and ends watching as they come and go."""
        self._clients.follow(records)
        for name, one in [*self._watched.items()]:
            record = records.get(name)
            if record is None or record.state != "active" or record.settings != one.record.settings:
                one.scope.cancel()
                self._drop(one)
                del self._watched[name]
                self._changed(name, replace(one.snapshot, reachable=False, reason="not watched"))
            else:
                one.record = record
        for name, record in records.items():
            if record.state == "active" and name not in self._watched:
                self._watched[name] = _Watched(record)
                if self._nursery is not None:
                    self._nursery.start_soon(self._watch, self._watched[name])

    def snapshot(self, cluster: str) -> Snapshot:
        one = self._watched.get(cluster)
        return EMPTY if one is None else one.snapshot

    def refresh(self, cluster: str) -> None:
        """Look again as soon as may be; a look that is under way does not count, as it may have read too early."""
        if (one := self._watched.get(cluster)) is not None:
            one.wake.set()

    async def looked(self, cluster: str, timeout: float = 5.0) -> Snapshot:
        """The snapshot of a look that began after this call.

        Raises:
            Undecided: the cluster does not answer, is not watched, or `timeout` (seconds) is over.
        """
        one = self._watched.get(cluster)
        if one is None:
            raise Undecided(cluster, "not an active cluster")
        wanted = one.attempts + 1
        with trio.move_on_after(timeout):
            while one.looks < wanted and self._watched.get(cluster) is one:
                one.wake.set()
                await one.looked.wait()
            if one.snapshot.reachable:
                return one.snapshot
        raise Undecided(cluster, one.snapshot.reason or f"not seen within {timeout:g} s")

    # -- one cluster ----------------------------------------------------------------------------------------------

    async def _watch(self, one: _Watched) -> None:
        try:
            with one.scope:
                while True:
                    one.wake = trio.Event()
                    one.attempts += 1
                    await self._look(one)
                    one.looks = one.attempts
                    one.looked.set()
                    one.looked = trio.Event()
                    await self._pause(one)
        finally:
            self._drop(one)

    async def _pause(self, one: _Watched) -> None:
        if one.failures:
            top = min(AWAY_LAST, AWAY_FIRST * 2.0 ** min(one.failures - 1, 10))
            first, rest = AWAY_FIRST, top * random.uniform(0.5, 1.0) - AWAY_FIRST  # noqa: S311 - spreads load
        else:
            first, rest = CLOSEST, self._interval * random.uniform(0.8, 1.0)  # noqa: S311
        await trio.sleep(first)
        with trio.move_on_after(max(rest, 0.0)):
            await one.wake.wait()

    async def _look(self, one: _Watched) -> None:
        name = one.record.name
        try:
            with trio.fail_after(CALL_TIMEOUT):
                snapshot = await self._read(one)
        except (ClientError, DecodeError, WrongCluster, StoreError, trio.TooSlowError) as error:
            self._drop(one)
            reason = f"no answer in {CALL_TIMEOUT:g} s" if isinstance(error, trio.TooSlowError) else str(error)
            if not one.failures or reason != one.snapshot.reason:
                log.warning("a cluster is away", cluster=name, reason=reason)
            one.failures += 1
            foreign = isinstance(error, WrongCluster | ClusterMismatch)
            known = EMPTY if foreign else one.snapshot
            snapshot = replace(known, reachable=False, reason=("refused: " if foreign else "") + reason)
        else:
            if one.failures:
                log.info("a cluster is back", cluster=name)
            one.failures = 0
        if snapshot is not one.snapshot:
            one.snapshot = snapshot
            self._changed(name, snapshot)

    async def _read(self, one: _Watched) -> Snapshot:
        client = self._clients.get(one.record.name)
        if client is None:
            raise BrokerUnavailable("no client")
        taken = boottime()
        found = await self._poll(one, client)
        if one.record.kafka_id != found.cluster_id:
            await self._identify(one.record, found.cluster_id)
        brokers = frozenset(found.brokers)
        now = trio.current_time()
        if brokers != one.offers_of or now - one.offers_at > OFFERS_INTERVAL:
            await client.probe(CALL_TIMEOUT / 2)
            one.offers_at, one.offers_of = now, brokers
        before = one.snapshot
        offers = client.features
        versions = {key: (span.low, span.high) for key, span in offers.apis.items()}
        finalized = {feature: levels[1] for feature, levels in offers.finalized.items()}
        same = before.reachable and found is one.metadata
        one.metadata = found
        if same and (versions, finalized) == (before.versions, before.finalized):
            return before
        return Snapshot(
            cluster_id=found.cluster_id,
            controller=found.controller,
            brokers={number: broker for number, broker in found.brokers.items() if numberable(number)},
            topics=found.topics,
            versions=versions,
            features=offers.supported,
            taken=taken,
            finalized=finalized,
            too_large=tuple(number for number in found.brokers if not numberable(number)),
        )

    async def _poll(self, one: _Watched, client: ClusterClient) -> ClusterMetadata:
        connection = await self._connection(one, client)
        version = connection.version(METADATA)
        if version < LOWEST:
            raise UnsupportedApi(f"the brokers of {one.record.name} are older than Kafka 2.4")
        version = min(version, HIGHEST)
        frame = request_frame(METADATA, version, 0, client.client_id, _ALL_TOPICS)[4:]
        answer = bytes(await connection.exchange(frame, timeout=CALL_TIMEOUT))
        body = answer[response_body(METADATA, version, answer) :]
        found = read_metadata(body, version, one.metadata)
        if found.error:
            raise BrokerUnavailable(f"Metadata: {error_name(found.error)}")
        if not found.brokers:
            raise BrokerUnavailable("the broker has only just started")
        known = one.metadata
        if (
            known is not None
            and found.topics is known.topics
            and found.brokers is known.brokers
            and found.cluster_id == known.cluster_id
        ):
            return known
        return found

    async def _connection(self, one: _Watched, client: ClusterClient) -> Connection:
        """The polling connection; moves to another broker now and then."""
        old = one.connection
        if old is not None and old.usable() and trio.current_time() - one.connected_at < STAY:
            return old
        brokers = await client.refresh(BROKERS_TIMEOUT)
        choices = [number for number in brokers if number != one.connected_to] or [*brokers]
        random.shuffle(choices)
        self._drop(one)
        failure: ClientError = BrokerUnavailable("no broker")
        for number in choices:
            try:
                one.connection = await connect(
                    brokers[number].host, brokers[number].port, client.security, client_id=client.client_id
                )
            except ClientError as error:
                failure = error
                continue
            one.connected_to, one.connected_at = number, trio.current_time()
            return one.connection
        raise failure

    def _drop(self, one: _Watched) -> None:
        if one.connection is not None:
            one.connection.close()
            one.connection = None


_ALL_TOPICS = {
    "topics": None,
    "allow_auto_topic_creation": False,
    "include_cluster_authorized_operations": False,
    "include_topic_authorized_operations": False,
}
