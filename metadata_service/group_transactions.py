"""Open transactions that may commit positions of a group.

A coordinator tells the partitions of a transaction, not the groups. So these are all that name the partition in which
the group's commits lie; they may mean a group beside it.
"""

from __future__ import annotations

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import TRANSACTION
from metadata_service.asking import list_transactions, topics_by_name
from metadata_service.failures import Undecided

DESCRIBE = 65
AT_ONCE = 200  # transactions that are described
OFFSETS_TOPIC = "__consumer_offsets"

Open = dict[str, tuple[int, int, int]]
"""By transactional id: producer id, epoch and start (Unix ms), which no later transaction has."""


def partition_of(group: str, partitions: int) -> int:
    """Where a coordinator keeps a group: by Java's hash of the name."""
    code = 0
    units = group.encode("utf-16-be", "surrogatepass")
    for at in range(0, len(units), 2):
        code = (31 * code + int.from_bytes(units[at : at + 2], "big")) & 0xFFFFFFFF
    signed = code - (1 << 32) if code >= 1 << 31 else code
    return (0 if signed == -(1 << 31) else abs(signed)) % partitions


async def open_transactions(client: ClusterClient, group: str) -> Open:
    """Those that may commit for the group. Raises Undecided."""
    live = sorted(name for name, one in (await list_transactions(client)).items() if one.live)
    if not live:
        return {}
    offsets = (await topics_by_name(client, [OFFSETS_TOPIC])).get(OFFSETS_TOPIC)
    if offsets is None:
        return {}
    mine = partition_of(group, len(offsets.partitions))
    found: Open = {}
    try:
        for name in live[:AT_ONCE]:
            answer = await client.call_coordinator(
                TRANSACTION, name, DESCRIBE, {"transactional_ids": [name]}, retry=True
            )
            one = answer["transaction_states"][0]
            if any(each["topic"] == OFFSETS_TOPIC and mine in each["partitions"] for each in one["topics"]):
                found[name] = one["producer_id"], one["producer_epoch"], one["transaction_start_time_ms"]
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    return found
