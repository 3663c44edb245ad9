"""Transactional ids that come to a coordinator which has known them before: their producers must be strangers there.

Each cluster counts producer ids from the beginning, so a producer may by chance have the id and the epoch that the
coordinator gave to one of the same transactional id long ago: it would be taken for that one, and its sequence numbers
for that one's. So the coordinator is made to give out another epoch before the id comes.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import TRANSACTION
from runtime import logging

log = logging.get(__name__)

INIT_PRODUCER_ID, DESCRIBE_TRANSACTIONS = 22, 65
TIMEOUT_MS = 60_000  # clients' default for transactions; theirs is told when they come
PATIENCE = 5.0  # seconds for a coordinator
AT_ONCE = 16  # ids


async def make_strangers(source: ClusterClient, target: ClusterClient, ids: Iterable[str]) -> None:
    """For ids that are at home at the source. What cannot be asked is left as it is: it takes a chance meeting to do
    harm. Never raises but Cancelled."""
    room = trio.CapacityLimiter(AT_ONCE)

    async def one(name: str) -> None:
        async with room:
            try:
                there = await _newest(target, name)
                if there is not None and there == await _newest(source, name):
                    asked = {"transactional_id": name, "transaction_timeout_ms": TIMEOUT_MS}
                    await target.call_coordinator(TRANSACTION, name, INIT_PRODUCER_ID, asked, timeout=PATIENCE)
            except ClientError as error:
                log.debug("a coordinator does not say what it knows of an id", cluster=target.name, error=str(error))

    async with trio.open_nursery() as nursery:
        for name in ids:
            nursery.start_soon(one, name)


async def _newest(client: ClusterClient, name: str) -> tuple[int, int] | None:
    """(producer id, epoch) of an id's newest producer; None where the cluster does not know the id."""
    asked = {"transactional_ids": [name]}
    answer = await client.call_coordinator(
        TRANSACTION, name, DESCRIBE_TRANSACTIONS, asked, timeout=PATIENCE, retry=True
    )
    (state,) = answer["transaction_states"]
    return None if state["error_code"] else (state["producer_id"], state["producer_epoch"])
