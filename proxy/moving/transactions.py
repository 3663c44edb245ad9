"""Which transactions go on while their topics are drained: those that have named a topic before may write and end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import TRANSACTION
from kafka_wire.codec import Message
from metadata_service.following import Following
from proxy.moving.writes import first_batch
from proxy.session.session import Session
from runtime import logging

log = logging.get(__name__)

DESCRIBE_TRANSACTIONS = 65
PATIENCE = 2.0  # seconds for the coordinator
REMEMBERED = 20_000
# A transaction's first writes may be on their way over another connection: its coordinator is asked so often, with so
# many seconds between. To hold a later write of a transaction that goes on would keep it from ending.
LOOKS, PAUSE = 4, 0.02


class OpenTransactions:
    """By (id, topic, producer id, epoch): from Produce 12 on each transaction has an epoch of its own (KIP-890)."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, int, int], None] = OrderedDict()

    async def begun(self, client: ClusterClient, request: Message, topics: Sequence[str]) -> frozenset[str]:
        """Those of `topics` that the transaction of a Produce has not named yet; all where that is not known."""
        name = request["transactional_id"]
        parts = (part for topic in request["topic_data"] for part in topic["partition_data"])
        batch = next((one for part in parts if (one := first_batch(part)) is not None), None)
        if batch is None:
            return frozenset()
        producer = (batch.producer_id, batch.producer_epoch)
        named = {one for one in topics if (name, one, *producer) in self._known}
        for look in range(LOOKS):
            if named.issuperset(topics):
                break
            if look:
                await trio.sleep(PAUSE)
            try:
                named |= await self._named(client, name, producer)
            except ClientError as error:
                log.debug("a transaction's state is not known", error=str(error))
                break
        self._known.update(((name, one, *producer), None) for one in named)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return frozenset(topics) - named

    async def _named(self, client: ClusterClient, name: str, producer: tuple[int, int]) -> set[str]:
        """The topics that this producer's open transaction has named. Raises ClientError."""
        asked = {"transactional_ids": [name]}
        answer = await client.call_coordinator(TRANSACTION, name, DESCRIBE_TRANSACTIONS, asked, timeout=PATIENCE)
        return {
            topic["topic"]
            for state in answer["transaction_states"]
            if not state["error_code"]
            and state["transaction_state"] == "Ongoing"
            and (state["producer_id"], state["producer_epoch"]) == producer
            for topic in state["topics"]
        }


class BeginningCall:
    """A call that waits because it would begin a transaction. Once it is decided it counts as being judged again."""

    def __init__(self, session: Session, following: Following) -> None:
        self.cluster = ""  # where it may go; "": nowhere
        self.decided = trio.Event()
        self._session = session
        self._following = following

    def decide(self, cluster: str) -> None:
        self.cluster = cluster
        revision = self._following.view.revision
        self._session.handling = min(revision, self._session.handling or revision)
        self.decided.set()
