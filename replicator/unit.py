"""Partitions that share an identity, and their part of the journal; pure, as `core` is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kafka_wire.batches import advance
from kafka_wire.records import values_batch
from offset_sync.journal import Pair, Stream, intent_pair, lost_pair
from replicator.core import WINDOW, Identity, Partition
from replicator.cut import Cut

JOURNAL_BYTES = 900 << 10  # of records to a batch: below the 1 MiB that brokers take by default


@dataclass(slots=True)
class _Entry:
    """Journal records that must lie in one batch, and what is known once they are stored."""

    pairs: list[Pair]
    size: int
    stream: Stream
    intent: int = -1
    checkpoint: int = -1


class Unit:
    """Partitions that share an identity, and their part of the journal. Journal batches are stored in order."""

    def __init__(self, name: str, identity: Identity) -> None:
        self.name = name
        self.identity = identity
        self.partitions: dict[Stream, Partition] = {}
        self._queue: deque[_Entry] = deque()
        self._in_flight: deque[list[_Entry]] = deque()
        self._sequence = 0

    def add(self, partition: Partition) -> None:
        """Its first checkpoint ends the intents of its predecessor, and is stored before any intent of its own."""
        self.partitions[partition.stream] = partition
        self.checkpoint(partition)

    def take(self, partition: Partition, made: Cut, now: int, mirrored: Callable[[int], bool]) -> None:
        """`Partition.take`, with the intent on its way to the journal."""
        intent = partition.take(made, now, mirrored)
        if intent is not None:
            pair = intent_pair(partition.stream, intent)
            self._queue.append(_Entry([pair], _size(pair), partition.stream, intent=intent.number))

    def checkpoint(self, partition: Partition) -> None:
        """Write down where a partition stands, if anything has changed."""
        number, pairs = partition.checkpoint()
        if not pairs:
            return
        # The state comes last: where one batch is too small, what came before it is ahead of the state and harmless.
        part: list[Pair] = []
        size = 0
        for pair in pairs:
            if part and size + _size(pair) > JOURNAL_BYTES:
                self._queue.append(_Entry(part, size, partition.stream))
                part, size = [], 0
            part.append(pair)
            size += _size(pair)
        self._queue.append(_Entry(part, size, partition.stream, checkpoint=number))

    def lose(self, stream: Stream, detail: str) -> None:
        """Write down that the target lost data of a partition, for all who come after."""
        pair = lost_pair(stream, detail)
        self._queue.append(_Entry([pair], _size(pair), stream))

    def journal_batch(self, now: int) -> memoryview | None:
        """The next batch for the journal, stamped; None where there is nothing or enough in flight. `now`: Unix ms."""
        if not self._queue or len(self._in_flight) >= WINDOW:
            return None
        entries = [self._queue.popleft()]
        size = entries[0].size
        while self._queue and size + self._queue[0].size <= JOURNAL_BYTES:
            entries.append(self._queue.popleft())
            size += entries[-1].size
        pairs = [pair for entry in entries for pair in entry.pairs]
        batch = values_batch(
            pairs,
            now,
            producer_id=self.identity.producer_id,
            producer_epoch=self.identity.epoch,
            base_sequence=self._sequence,
        )
        self._sequence = advance(self._sequence, len(pairs))
        self._in_flight.append(entries)
        return memoryview(batch)

    def journal_stored(self) -> list[Stream]:
        """The oldest journal batch in flight is stored. Returns the streams that may have more to send."""
        touched = []
        for entry in self._in_flight.popleft():
            partition = self.partitions.get(entry.stream)
            if partition is None:
                continue
            if entry.intent >= 0:
                partition.stored(entry.intent)
                touched.append(entry.stream)
            if entry.checkpoint >= 0:
                partition.checkpointed(entry.checkpoint)
        return touched

    @property
    def idle(self) -> bool:
        """Nothing to write, nothing in flight."""
        return not self._queue and not self._in_flight and all(one.idle for one in self.partitions.values())


def _size(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1] or b"") + 24
