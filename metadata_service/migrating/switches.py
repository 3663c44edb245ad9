"""The switch, written down on both clusters: for workers that do not hear the store, and know a cluster still.

`__kfed_switches` is a compacted topic with one partition; a record's key is the topic's name, its value a `SwitchNote`.
"""

from __future__ import annotations

import time

import msgspec

from kafka_client import ClientError, ClusterClient, Refused
from kafka_client.topics import TopicInfo, describe
from kafka_wire.errors import ERROR
from kafka_wire.records import values_batch
from metadata_service.models import OWN_PREFIX
from metadata_service.operations.records import MigrationRecord
from metadata_service.store.clock import Backoff

TOPIC = OWN_PREFIX + "switches"
PRODUCE, CREATE_TOPICS = 0, 19
TIMEOUT = 5.0
REPLICAS = 3
CONFIGS = {"cleanup.policy": "compact", "min.insync.replicas": "1"}


class SwitchNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Topic `topic` (logical id `id`) is served by `cluster` from placement epoch `epoch` on. Unknown keys are
    ignored."""

    topic: str
    operation: str
    source: str
    cluster: str
    epoch: int
    id: str = ""
    cut: dict[int, int] = {}


def notes(record: MigrationRecord, epochs: dict[str, int], ids: dict[str, str]) -> list[SwitchNote]:
    """`epochs`, `ids`: of each topic, its placement epoch after the switch and its logical id."""
    return [
        SwitchNote(
            topic=name,
            operation=record.id,
            source=record.source,
            cluster=record.target,
            epoch=epochs[name],
            id=ids.get(name, ""),
            cut=record.cut.get(name, {}),
        )
        for name in sorted(record.topics)
        if name in epochs
    ]


async def ensure(client: ClusterClient) -> TopicInfo:
    """The topic, created where it is missing, with a leader. Raises ClientError."""
    backoff = Backoff(0.02, 0.5)
    for attempt in range(10):
        found = (await describe(client, [TOPIC])).get(TOPIC)
        if found is not None and found.partitions and found.partitions[0].leader >= 0:
            return found
        if found is None:
            if not client.brokers:
                await client.refresh(TIMEOUT)
            new = {
                "name": TOPIC,
                "num_partitions": 1,
                "replication_factor": min(REPLICAS, max(len(client.brokers), 1)),
                "configs": [{"name": name, "value": value} for name, value in CONFIGS.items()],
            }
            message = {"topics": [new], "timeout_ms": int(TIMEOUT * 1000)}
            answer = (await client.call(CREATE_TOPICS, message, timeout=TIMEOUT, retry=True))["topics"][0]
            if answer["error_code"] not in (0, ERROR.TOPIC_ALREADY_EXISTS):
                raise Refused(f"{client.name}: creating {TOPIC}", answer["error_code"], answer["error_message"])
        if attempt:
            await backoff.pause()
    raise Refused(f"{client.name}: {TOPIC}", ERROR.LEADER_NOT_AVAILABLE)


async def write(client: ClusterClient, info: TopicInfo, wanted: list[SwitchNote]) -> None:
    """Raises ClientError: it may be written, or not."""
    pairs = [(one.topic.encode(), msgspec.json.encode(one)) for one in wanted]
    batch = memoryview(values_batch(pairs, int(time.time() * 1000)))
    data = {"name": TOPIC, "topic_id": info.topic.id, "partition_data": [{"index": 0, "records": batch}]}
    message = {"transactional_id": None, "acks": -1, "timeout_ms": int(TIMEOUT * 1000), "topic_data": [data]}
    answer = await client.call(PRODUCE, message, broker=info.partitions[0].leader, timeout=TIMEOUT)
    code = answer["responses"][0]["partition_responses"][0]["error_code"]
    if code:
        raise Refused(f"{client.name}: writing {TOPIC}", code)


__all__ = ["TOPIC", "ClientError", "SwitchNote", "ensure", "notes", "write"]
