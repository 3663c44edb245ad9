"""Tables as somebody else keeps them: put together from a journal's records, and kept up to date by further ones. Pure.

What is complete when. A checkpoint is complete in itself: its table holds every record that the mirror had on the
target below `covered`; what lies below that outside every run is not the mirror's (control records, foreign writes, in
exchange the cluster's own records). What lies from `covered` on may have arrived without being in the table: only
intents tell of it, and an intent is in the journal *before* its batch is in the log, perhaps without its batch ever
following. So from there on a reader waits for the next checkpoint (a second, while the mirror runs), or judges the
open intents by the batches that are in the log (`judged`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from offset_sync.guard import Guard
from offset_sync.journal import CHUNK, GUARD, INTENT, LOST, STATE, TABLE, Intent, State, Stored, Stream
from offset_sync.recovered import Found, Recovered, judge
from offset_sync.table import Table
from offset_sync.varints import Damaged

SHIP = ""  # the scope of a ship's table; those of an exchange have their source's name
_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Held:
    """What one partition on one cluster holds, at one moment: the log from `start` to `end` (the high watermark), and
    by scope what mirrors wrote there, complete below `end`. Without a ship's entry the log is the topic's own."""

    start: int
    end: int
    written: Mapping[str, Recovered]


class Kept:
    """One stream. Nothing is shown before `settle`; then each checkpoint is applied as a whole.

    `table` stays the same object, so that a mirror which reads from this cluster may hold on to it. 24 bytes a run;
    besides, only open intents are kept, and with `guards` the producers' stored entries.
    """

    __slots__ = (
        "_chunks",
        "_guards",
        "_settled",
        "_table",
        "intents",
        "lost",
        "news",
        "producers",
        "state",
        "stream",
        "table",
    )

    def __init__(self, stream: Stream, *, guards: bool = False) -> None:
        self.stream = stream
        self.state: State | None = None  # None: no mirror has ever written this partition
        self.table = Table()
        self.lost = ""  # how the cluster was found to have lost what is in the table
        self.intents: dict[int, bytes] = {}  # by slot
        self.producers: dict[int, bytes] = {}
        self.news: set[int] = set()  # producers that were changed since somebody cleared this
        self._guards = guards
        self._settled = False
        self._table: bytes | None = None
        self._chunks: dict[int, bytes | None] = {}

    @property
    def covered(self) -> int:
        """The physical offset below which the table is complete."""
        return self.state.scanned if self.state is not None else 0

    def feed(self, kind: bytes, number: int, value: bytes | None) -> None:
        """One record of the stream. Damaged: records in between were missed; `restart`, and feed from the beginning."""
        if kind == CHUNK:
            self._chunks[number] = value
        elif kind == TABLE:
            self._table = value
        elif kind == INTENT:
            if value is None:
                self.intents.pop(number, None)
            else:
                self.intents[number] = value
        elif kind == LOST:
            self.lost = "" if value is None else value.decode(errors="replace")
        elif kind == GUARD:
            if self._guards:
                self._producer(number, value)
        elif kind == STATE:
            self.state = None if value is None else State.decode(value)
            if self._settled:
                self._apply()

    def _producer(self, producer_id: int, value: bytes | None) -> None:
        if value is None:
            self.producers.pop(producer_id, None)
            self.news.discard(producer_id)
        else:
            self.producers[producer_id] = value
            self.news.add(producer_id)

    def settle(self) -> None:
        """The journal was read up to its present end. Damaged: what it holds is no table."""
        if self._settled:
            return
        chunks = [(number, data) for number, data in self._chunks.items() if data is not None]
        self._replace(Table() if self.state is None else Table.load(self._table, chunks))
        self.table.runs = self.table.runs.copy()  # without the room that growing leaves
        self._settled = True
        self._applied()

    def restart(self) -> None:
        """Forget what was read; the table is shown as it was until `settle`."""
        self._settled = False
        self._table = None
        self._chunks.clear()
        self.intents.clear()
        self.producers.clear()
        self.news.clear()
        self.lost = ""

    def _apply(self) -> None:
        """The checkpoint is whole: its state comes last."""
        if self.state is None:
            self._replace(Table())
        else:
            self.table.follow(self._table, self._chunks)
        self._applied()

    def _applied(self) -> None:
        if self.state is not None:
            # Chunks may be newer than the state, where a checkpoint took several batches.
            self.table.runs.cut_from(self.state.scanned)
            first = self.state.number
            for slot in [slot for slot, one in self.intents.items() if Intent.decode(one).number < first]:
                del self.intents[slot]
        self._table = None
        self._chunks = {}

    def _replace(self, by: Table) -> None:
        self.table.runs, self.table.own = by.runs, by.own
        self.table.log_start, self.table.generation = by.log_start, by.generation

    def open_intents(self) -> list[Intent]:
        """What may have been written beyond `covered`. Damaged: an intent is missing."""
        return Stored(self.state, intents=self.intents).open_intents()

    def judged(self, tail: Iterable[Found], end: int, start: int = 0) -> Recovered:
        """State and table as the target's log shows them: `tail` are its batches from `covered` up to `end`.

        `end` must have been asked before the journal was read; then every batch of the mirror below it has its intent.
        `start` is where the target's log begins. Works on a copy.

        Raises:
            Damaged, Inconsistent: journal and log contradict each other.
        """
        state = self.state or State()
        copy = Table()
        copy.runs = self.table.runs.copy()
        copy.log_start, copy.own, copy.generation = self.table.log_start, self.table.own, self.table.generation
        return judge(state, copy, Guard(), self.open_intents(), tail, max(end, state.scanned), start)


class Keeper:
    """The streams of one partition of the journal that somebody asked for; everything else is passed over."""

    def __init__(self) -> None:
        self.streams: dict[Stream, Kept] = {}
        self._by_key: dict[bytes, Kept] = {}

    def add(self, kept: Kept) -> None:
        self.streams[kept.stream] = kept
        self._by_key[_prefix(kept.stream.key(STATE))] = kept

    def remove(self, stream: Stream) -> None:
        if self.streams.pop(stream, None) is not None:
            del self._by_key[_prefix(stream.key(STATE))]

    def feed(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Records in the order of the log. Damaged: as `Kept.feed`."""
        for key, value in records:
            if key is not None and (kept := self._by_key.get(_prefix(key))) is not None:
                kept.feed(key[:1], int.from_bytes(key[-_NUMBER_BYTES:], "big", signed=True), value)


def _prefix(key: bytes) -> bytes:
    """What all keys of a stream share."""
    return key[1:-_NUMBER_BYTES]


__all__ = ["SHIP", "Damaged", "Held", "Keeper", "Kept"]
