"""What the fence of a worker needs of the tables and the producer guards of topics that move.

`proxy.moving.fence` holds, forwards and answers writes; whoever keeps tables and guards implements `Guards`.
"""

from __future__ import annotations

from typing import Protocol

from kafka_wire.batches import Batch
from metadata_service.operations.records import MigrationRecord
from offset_sync.guard import Verdict


class Guards(Protocol):
    """The producer guards of a cluster that took topics over, and when all that a switch needs is here."""

    def judge(self, cluster: str, topic: str, partition: int, batch: Batch) -> Verdict:
        """What a batch is that is about to go to `cluster`: by the source's last batches, as far as they are known.

        `batch` is as the client wrote it: the producer's id has no placement added. Called for every write of an
        idempotent producer, also to clusters that never took this topic over, so the first look must be quick:
        `unknown` there, and wherever the leader has state for the producer. The offset of a duplicate is logical.
        """

    def guarded(self, cluster: str, topic: str, partition: int) -> bool:
        """Whether `judge` knows any producer there."""

    async def ready(self, migration: MigrationRecord) -> None:
        """Returns once the target's tables and guards of all partitions are here, complete up to the settled end
        (`migration.ends`, and the log's end `opened` where the switch is recorded). Never raises but Cancelled; goes
        on trying. It is called as soon as there is a hold, and cancelled where that is lifted.
        """


class NoGuards:
    """For a worker without tables: every batch is judged by the broker alone, and everything is ready at once.

    Topics that have moved are still refused where their table is asked for (`proxy.apis.translation`).
    """

    def judge(self, cluster: str, topic: str, partition: int, batch: Batch) -> Verdict:
        return UNKNOWN

    def guarded(self, cluster: str, topic: str, partition: int) -> bool:
        return False

    async def ready(self, migration: MigrationRecord) -> None:
        return


UNKNOWN = Verdict("unknown")
