"""One partition's producer guard in a worker: what was written elsewhere, and whom the leader here knows by now."""

from __future__ import annotations

from kafka_client import ClientError, ClusterClient
from kafka_client.topics import describe
from kafka_wire.batches import Batch
from metadata_service.view import ServedTopic
from offset_sync.guard import Guard, Verdict

DESCRIBE_PRODUCERS = 61
PLACEMENT_BIT = 52  # what lies above was added on the way in, and is not the client's own id

UNKNOWN = Verdict("unknown")


def client_id_of(producer_id: int) -> int:
    """A producer's id as the producer knows it; -1 passes."""
    return producer_id if producer_id < 0 else producer_id & ((1 << PLACEMENT_BIT) - 1)


def placement_tag(topic: ServedTopic) -> int:
    """What is added to idempotent producers' ids on the way to the cluster that serves the topic."""
    return topic.record.epoch << PLACEMENT_BIT if topic.record.timeline[-1].tag_producers else 0


class Guarding:
    """A duplicate is one, whatever the leader knows. All else is the leader's to judge once it knows the producer."""

    __slots__ = ("_guard", "_known", "_looking")

    def __init__(self) -> None:
        self._guard = Guard()
        self._known: set[int] = set()  # producers of whom the leader has state
        self._looking = False

    def load(self, producer_id: int, data: bytes) -> None:
        """Raises Damaged."""
        self._guard.load(producer_id, data)

    def settle(self) -> None:
        self._guard.settle()

    def expire(self, now: int) -> bool:
        """Forget who has been silent for too long (`now`: Unix ms); whether nobody is left."""
        if self._guard.expire(now):
            self._known = {one for one in self._known if one in self._guard}
        return not len(self._guard)

    def judge(self, batch: Batch) -> Verdict:
        producer_id = client_id_of(batch.producer_id)
        # No transaction goes on over a move, and the ids of transactional producers are not told apart by cluster:
        # an equal one that wrote elsewhere is somebody else.
        if producer_id < 0 or batch.transactional or producer_id not in self._guard:
            return UNKNOWN
        verdict = self._guard.judge(producer_id, batch.producer_epoch, batch.base_sequence, batch.last_sequence)
        if verdict.kind == "duplicate":
            return verdict
        if producer_id in self._known:
            return UNKNOWN
        if verdict.kind == "next":
            self._known.add(producer_id)  # it is sent now, and what follows is the leader's to judge
        return verdict

    def begin_look(self) -> bool:
        """Whether to `look` now; at most one at a time."""
        before, self._looking = self._looking, True
        return not before

    async def look(self, client: ClusterClient, topic: ServedTopic, partition: int) -> None:
        """Learn from the leader whom it knows; of those it knew in an earlier placement it knows nothing that counts.

        Never raises but Cancelled.
        """
        try:
            info = (await describe(client, [topic.name])).get(topic.name)
            if info is None or partition not in info.partitions:
                return
            added = placement_tag(topic)
            asked = {"topics": [{"name": topic.name, "partition_indexes": [partition]}]}
            answer = await client.call(DESCRIBE_PRODUCERS, asked, broker=info.partitions[partition].leader)
            for one in answer["topics"][0]["partitions"]:
                if not one["error_code"]:
                    ids = {each["producer_id"] - added for each in one["active_producers"]}
                    self._known |= {each for each in ids if each in self._guard}
        except ClientError:
            pass
        finally:
            self._looking = False
