"""Which Kafka cluster a name stands for: its own cluster.id, recorded when it is first reached, compared ever after."""

from __future__ import annotations

import msgspec

from metadata_service.discovery import WrongCluster
from metadata_service.models import CLUSTERS, IDENTITIES, ClusterRecord
from metadata_service.records import decode, encode
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Put, Store, Unchanged

TRIES = 10


class Identity(msgspec.Struct, frozen=True):
    """The name a cluster.id has here."""

    name: str


async def identify(store: Store, record: ClusterRecord, kafka_id: str) -> None:
    """Accept that `record`'s addresses answer as `kafka_id`, and record it where that is new.

    Raises:
        WrongCluster: they answered as another cluster before, or this cluster already has another name here.
        StoreUnavailable: it is new, and cannot be recorded now.
    """
    if record.kafka_id is not None:
        if record.kafka_id != kafka_id:
            raise WrongCluster(f"answers as cluster.id {kafka_id}, but was {record.kafka_id}")
        return
    backoff = Backoff(0.01, 0.2)
    key = CLUSTERS + record.name
    for _ in range(TRIES):
        stored = await store.get(key)
        owner = await store.get(IDENTITIES + kafka_id)
        if stored is None:
            raise WrongCluster("its record is gone")
        now = decode(ClusterRecord, stored.value)
        if now.kafka_id is not None:
            if now.kafka_id != kafka_id:
                raise WrongCluster(f"answers as cluster.id {kafka_id}, but was {now.kafka_id}")
            return
        if owner is not None and (name := decode(Identity, owner.value).name) != record.name:
            raise WrongCluster(f"is the same cluster as {name} (cluster.id {kafka_id})")
        done = await store.commit(
            (Unchanged(key, stored.mod_revision), Unchanged(IDENTITIES + kafka_id, owner.mod_revision if owner else 0)),
            (
                Put(key, encode(msgspec.structs.replace(now, kafka_id=kafka_id))),
                Put(IDENTITIES + kafka_id, encode(Identity(record.name))),
            ),
        )
        if done.succeeded:
            return
        await backoff.pause()
    raise WrongCluster("its record is being changed by others")
